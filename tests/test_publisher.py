"""From objects to the zone store: after every change the store holds what making it anew would give."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import lmdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdns.cluster.inventory import KINDS
from kdns.cluster.objects import (
    Endpoint,
    EndpointSlice,
    Key,
    Namespace,
    Object,
    Pod,
    Service,
    Subset,
)
from kdns.cluster.publisher import External, Publisher, Settings
from kdns.cluster.records import ExternalOptions
from kdns.corefile import values
from kdns.errors import StoreError
from kdns.wire import names, rr
from kdns.zone.changes import Changes, name_hash
from kdns.zone.store import EXPIRED, SYNCED, UNSYNCED, Store, Transaction
from kdns.zone.values import Records
from tests.support.publishing import (
    DB8,
    FULL,
    HTTP,
    IPV6,
    NET,
    NO_ENDPOINTS,
    ONE,
    OUTSIDE,
    OUTSIDE2,
    OUTSIDE_NET,
    PLAIN,
    SUBNET,
    Z2,
    Contents,
    Z,
    anew,
    contents,
    empty,
    exists,
    items,
    lookup,
    objects_of_names,
    piece,
    storable,
)  # fmt: skip


@dataclass(frozen=True)
class Written:
    """What a step has done to the store."""

    changed: set[bytes]
    noted: set[int] | None


class Watch:
    """Tells which names changed between two moments, and which were noted."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen = store.changes.generation
        self._before = contents(store)

    def written(self) -> Written:
        now = contents(self._store)
        changed = {
            name
            for origin, name in _with_ancestors(now.keys() | self._before.keys())
            if _answer(now, origin, name) != _answer(self._before, origin, name)
        }
        _, hashes = self._store.changes.since(self._seen)
        return Written(changed, None if hashes is None else set(hashes))


def _with_ancestors(keys: Iterable[tuple[bytes, bytes]]) -> set[tuple[bytes, bytes]]:
    found = set(keys)
    for origin, name in list(found):
        while name != origin:
            found.add((origin, name))
            name = names.parent(name)
    return found


def _answer(entries: Contents, origin: bytes, name: bytes) -> Records | bool:
    found = entries.get((origin, name))
    if found is not None:
        return found
    return any(zone == origin and names.is_subdomain(other, name) for zone, other in entries)


def _name(text: str) -> bytes:
    return names.from_text(text)


# Everything against everything


@st.composite
def batches(draw: st.DrawFn) -> list[tuple[list[Object], list[Key]]]:
    """Transactions: objects put and keys deleted, most of them of objects that are there."""
    known: list[Key] = []
    found: list[tuple[list[Object], list[Key]]] = []
    for _ in range(draw(st.integers(1, 6))):
        puts = draw(st.lists(items, max_size=4))
        deletes = draw(st.lists(st.sampled_from(known), max_size=3)) if known else []
        known += [item.key for item in puts]
        found.append((puts, deletes))
    return found


@pytest.mark.parametrize(
    "wanted",
    [PLAIN, FULL, replace(FULL, multicluster=(Z2,)), replace(FULL, records=NO_ENDPOINTS)],
    ids=["plain", "full", "multicluster", "noendpoints"],
)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_changes_lead_where_a_fresh_start_leads(wanted: Settings, shared: Store, data: st.DataObject) -> None:
    empty(shared)
    publisher = Publisher(shared, "main", wanted)
    model: dict[Key, Object] = {item.key: item for item in data.draw(objects_of_names) if storable(item)}
    publisher.replace(model.values())
    for puts, deletes in data.draw(batches()):
        watch = Watch(shared)
        was_empty = not model
        outcome = publisher.apply(puts, deletes)
        for key in deletes:
            model.pop(key, None)
        for item in puts:
            if storable(item):
                model[item.key] = item
            else:
                model.pop(item.key, None) if _is_last(item, puts) else None
        refused = sum(not storable(item) for item in puts)
        assert sum("does not allow" in warning for warning in outcome.warnings) == refused
        if was_empty and outcome.changed:
            assert watch.written().noted is None, "everything"
        else:
            _check_written(watch.written())
        assert contents(shared) == anew(shared, wanted, model.values())
    _check_indexes(shared, publisher, model)


def _is_last(item: Object, puts: list[Object]) -> bool:
    return not any(other.key == item.key and storable(other) for other in puts)


def _check_written(written: Written) -> None:
    """Noted is what differs, and what may have gone and come again with it: names above, apexes for their serial."""
    assert written.noted is not None
    allowed = {Z, Z2, NET, SUBNET, ONE, IPV6, OUTSIDE, OUTSIDE2, OUTSIDE_NET, DB8, names.ROOT}
    for name in written.changed:
        while name != names.ROOT:
            allowed.add(name)
            name = names.parent(name)
    assert {name_hash(name) for name in written.changed} <= written.noted
    assert written.noted <= set(map(name_hash, allowed))
    assert bool(written.noted) is bool(written.changed)


def _check_indexes(store: Store, publisher: Publisher, model: dict[Key, Object]) -> None:
    """What is left when all objects are gone: nothing."""
    publisher.apply((), list(model))

    def left(txn: Transaction) -> list[str]:
        return [key for kind in (*KINDS, "slices", "imports", "addresses") for key, _ in txn.objects("main", kind)]

    assert store.read(left) == []
    assert publisher.counts() == dict.fromkeys(KINDS, 0)
    assert contents(store) == anew(store, publisher.settings, ())


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(objects_of_names, objects_of_names)
def test_a_replacement_leads_where_a_fresh_start_leads(
    shared: Store, first: list[Object], second: list[Object]
) -> None:
    empty(shared)
    publisher = Publisher(shared, "main", FULL)
    publisher.replace(first)
    watch = Watch(shared)
    publisher.replace(second)
    if any(map(storable, first)):
        _check_written(watch.written())
    assert contents(shared) == anew(shared, FULL, second)
    watch = Watch(shared)
    publisher.replace(second[::-1] if len({item.key for item in second}) == len(second) else second)
    assert watch.written() == Written(set(), set())


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(objects_of_names, objects_of_names)
def test_what_is_kept_stays_beside_what_is_given(shared: Store, first: list[Object], second: list[Object]) -> None:
    empty(shared)
    publisher = Publisher(shared, "main", FULL)
    publisher.replace(first)
    publisher.replace(second, keep=True)
    merged = {item.key: item for item in (*first, *second) if storable(item)}
    assert contents(shared) == anew(shared, FULL, merged.values())


OTHER_SETTINGS = [
    replace(FULL, forward=(Z,)),
    replace(FULL, forward=(Z2, Z)),
    replace(FULL, multicluster=(Z,)),
    replace(FULL, multicluster=(Z2, Z)),
    replace(FULL, reverse=()),
    replace(FULL, reverse=(NET,)),
    replace(FULL, reverse=(names.from_text("2.0.0.10.in-addr.arpa."), NET)),
    replace(FULL, records=replace(FULL.records, ttl=30)),
    replace(FULL, records=replace(FULL.records, pods="disabled")),
    replace(FULL, records=replace(FULL.records, pods="insecure")),
    replace(FULL, records=NO_ENDPOINTS),
    replace(FULL, listens=()),
    replace(FULL, namespaces=frozenset({"a"}), namespace_labels=None),
    replace(FULL, labels=None),
    replace(FULL, external=None),
    replace(FULL, external=External((OUTSIDE2,), (OUTSIDE_NET,), ExternalOptions())),
    replace(FULL, external=External((OUTSIDE2, OUTSIDE), (), ExternalOptions(30, "a-b"))),
    replace(FULL, clients=False),
    PLAIN,
]


@pytest.mark.parametrize("wanted", OTHER_SETTINGS, ids=range(len(OTHER_SETTINGS)))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(found=objects_of_names)
def test_other_settings_lead_where_a_fresh_start_leads(wanted: Settings, shared: Store, found: list[Object]) -> None:
    empty(shared)
    Publisher(shared, "main", FULL).replace(found)
    publisher = Publisher(shared, "main", wanted)
    watch = Watch(shared)
    publisher.replace(found)
    assert watch.written().noted is None, "everything may be another"
    assert contents(shared) == anew(shared, wanted, found)
    watch = Watch(shared)
    publisher.replace(found)
    assert watch.written() == Written(set(), set())


# Single stories, most of them of bugs


def test_pointers_of_a_service_that_empty_service_hides_go_with_it(store: Store) -> None:
    publisher = Publisher(store, "main", replace(PLAIN, records=replace(PLAIN.records, ignore_empty_service=True)))
    service = Service("a", "s", cluster_ips=("10.96.0.1",))
    publisher.replace([service])
    assert lookup(store, "s.a.svc.cluster.local.", rr.A) == []
    assert lookup(store, "1.0.96.10.in-addr.arpa.", rr.PTR) == ["s.a.svc.cluster.local."]
    publisher.apply([Service("a", "s", cluster_ips=("10.96.0.2",))], [])
    assert lookup(store, "1.0.96.10.in-addr.arpa.", rr.PTR) == []
    assert lookup(store, "2.0.96.10.in-addr.arpa.", rr.PTR) == ["s.a.svc.cluster.local."]
    publisher.apply([], [service.key])
    assert not exists(store, "2.0.96.10.in-addr.arpa.")


def test_two_services_share_a_pointer_until_one_goes(store: Store) -> None:
    publisher = Publisher(store, "main", PLAIN)
    publisher.replace(
        [
            Service("a", "s", headless=True),
            Service("a", "t", headless=True),
            piece("s", "10.0.0.9"),
            piece("t", "10.0.0.9", name="y"),
        ]
    )
    both = ["10-0-0-9.s.a.svc.cluster.local.", "10-0-0-9.t.a.svc.cluster.local."]
    assert lookup(store, "9.0.0.10.in-addr.arpa.", rr.PTR) == both
    publisher.apply([], [("Service", "a", "s")])
    assert lookup(store, "9.0.0.10.in-addr.arpa.", rr.PTR) == both[1:]
    publisher.apply([piece("s", "10.0.0.9", name="y")], [])
    assert not exists(store, "9.0.0.10.in-addr.arpa.")


def test_the_reverse_zone_of_one_address_has_its_apex_and_its_pointers(store: Store) -> None:
    publisher = Publisher(store, "main", Settings((Z,), (ONE,)))
    publisher.replace([Service("a", "s", cluster_ips=("10.0.0.1",))])

    def types() -> set[int]:
        return {rrset.type for rrset in contents(store)[ONE, ONE]}

    assert types() == {rr.SOA, rr.NS, rr.PTR}
    publisher.apply([Service("a", "t", cluster_ips=("10.0.0.1",))], [])
    assert lookup(store, "1.0.0.10.in-addr.arpa.", rr.PTR) == ["s.a.svc.cluster.local.", "t.a.svc.cluster.local."]
    publisher.apply([], [("Service", "a", "s"), ("Service", "a", "t")])
    assert types() == {rr.SOA, rr.NS}


def test_a_slice_that_spells_a_service_in_capitals_does_not_touch_it(store: Store) -> None:
    publisher = Publisher(store, "main", PLAIN)
    publisher.replace([Service("a", "web", cluster_ips=("10.96.0.1",))])
    publisher.apply([piece("Web", "10.0.0.1")], [])
    assert lookup(store, "web.a.svc.cluster.local.", rr.A) == ["10.96.0.1"]


@pytest.mark.parametrize(
    "item",
    [
        Service("a", "x" * 300),
        Service("x" * 64, "s"),
        Service("a", "a/b"),
        Service("a", "a\0b"),
        Service("a", "Web"),
        piece("x" * 253, "10.0.0.1", name="x" * 253, namespace="x" * 253),
        piece("a\0b", "10.0.0.1"),
        Pod("a", "x" * 600, ("10.0.0.1",)),
        Namespace("a/b"),
    ],
    ids=lambda item: repr(item)[:40],
)
def test_hostile_names_are_skipped_with_a_warning(item: Object, store: Store) -> None:
    publisher = Publisher(store, "main", FULL)
    good = Service("a", "s", cluster_ips=("10.96.0.1",))
    (warning,) = publisher.replace([item, good]).warnings
    assert warning.startswith(f"{item.key[0]} ")
    assert warning.endswith("a name that Kubernetes does not allow, not published")
    assert len(warning) < 400
    assert publisher.apply([item], []).warnings == [warning]
    assert publisher.apply([], [item.key]).changed == 0
    assert lookup(store, "s.a.svc.cluster.local.", rr.A) == []
    assert publisher.counts()["Service"] == 1


def test_names_that_are_long_but_allowed_fit_the_store(store: Store) -> None:
    publisher = Publisher(store, "kubernetes-0123456789abcdef", FULL)
    namespace, service = "n" * 63, "s" * 63
    found: list[Object] = [
        Service(namespace, service, headless=True),
        piece(service, "10.0.0.1", name="x" * 253, namespace=namespace),
        Pod(namespace, "p" * 253, ("2001:db8:1111:2222:3333:4444:5555:6666",)),
    ]
    assert publisher.replace(found).changed == 3
    assert publisher.apply([], [item.key for item in found]).changed == 3


def test_an_object_that_becomes_one_that_cannot_be_kept_is_gone(store: Store) -> None:
    publisher = Publisher(store, "main", PLAIN)
    publisher.replace([Service("a", "s", headless=True), piece("s", "10.0.0.1")])
    publisher.apply([piece("s" * 64, "10.0.0.1")], [])
    assert lookup(store, "s.a.svc.cluster.local.", rr.A) == []


def test_the_name_server_has_the_addresses_of_the_service_that_selects_it(store: Store) -> None:
    publisher = Publisher(store, "main", Settings((Z, Z2), (NET,), listens=("10.0.0.1", "10.0.0.2")))
    hosts = [f"ns.dns.{zone}" for zone in ("cluster.local.", "example.org.", "10.in-addr.arpa.")]

    def addresses() -> list[str]:
        first, *others = [lookup(store, host, rr.A) for host in hosts]
        assert all(other == first for other in others)
        return first

    assert addresses() == ["10.0.0.1", "10.0.0.2"]
    publisher.replace([Service("kube-system", "kube-dns", cluster_ips=("10.96.0.10",))])
    assert addresses() == ["10.0.0.1", "10.0.0.2"]
    own = piece("kube-dns", "10.0.0.7", "10.0.0.1", namespace="kube-system")
    publisher.apply([own], [])
    assert addresses() == ["10.96.0.10"]
    publisher.apply([Service("kube-system", "kube-dns", cluster_ips=("10.96.0.11", "no address"))], [])
    assert addresses() == ["10.96.0.11"]
    publisher.apply([Service("b", "dns", cluster_ips=("10.96.0.2",)), piece("dns", "10.0.0.2", namespace="b")], [])
    assert addresses() == ["10.96.0.2", "10.96.0.11"]
    publisher.apply([], [own.key])
    assert addresses() == ["10.96.0.2"]
    publisher.apply([Service("b", "dns", headless=True)], [])
    assert addresses() == ["10.0.0.1", "10.0.0.2"]


def test_the_name_server_without_any_address_has_none(store: Store) -> None:
    Publisher(store, "main", replace(PLAIN, listens=("10.0.0.1",))).replace([])
    publisher = Publisher(store, "main", PLAIN)
    publisher.replace([])
    assert not exists(store, "ns.dns.cluster.local.")


def test_the_type_of_a_service_changes_under_the_same_name(store: Store) -> None:
    publisher = Publisher(store, "main", PLAIN)
    publisher.replace([Service("a", "s", cluster_ips=("10.96.0.1",), ports=(HTTP,)), piece("s", "10.0.0.9")])
    publisher.apply([Service("a", "s", "ExternalName", external_name="example.com")], [])
    assert lookup(store, "s.a.svc.cluster.local.", rr.CNAME) == ["example.com."]
    assert not exists(store, "_tcp.s.a.svc.cluster.local.")
    assert not exists(store, "0.10.in-addr.arpa.")
    publisher.apply([Service("a", "s", headless=True)], [])
    assert lookup(store, "s.a.svc.cluster.local.", rr.A) == ["10.0.0.9"]
    assert lookup(store, "s.a.svc.cluster.local.", rr.CNAME) == []


def test_endpoints_count_until_there_are_slices(store: Store) -> None:
    publisher = Publisher(store, "main", PLAIN)
    old = piece("s", "10.0.0.8", name="s", legacy=True)
    publisher.replace([Service("a", "s", headless=True), old])
    assert lookup(store, "s.a.svc.cluster.local.", rr.A) == ["10.0.0.8"]
    publisher.apply([piece("s", "10.0.0.9")], [])
    assert lookup(store, "s.a.svc.cluster.local.", rr.A) == ["10.0.0.9"]
    publisher.apply([], [("EndpointSlice", "a", "x")])
    assert lookup(store, "s.a.svc.cluster.local.", rr.A) == ["10.0.0.8"]


def test_a_namespace_comes_and_goes_with_its_labels(store: Store) -> None:
    publisher = Publisher(store, "main", FULL)
    publisher.replace(
        [
            Namespace("a", {"hidden": "yes"}),
            Service("a", "s", headless=True),
            piece("s", "10.0.0.2"),
            Pod("a", "p", ("10.0.0.2",)),
            Namespace("a-b"),
            Service("a-b", "s", headless=True),
        ]
    )
    hidden = ("a.svc.cluster.local.", "10-0-0-2.a.pod.cluster.local.", "2.0.0.10.in-addr.arpa.")
    assert [exists(store, text) for text in hidden] == [False] * 3
    assert exists(store, "a-b.svc.cluster.local.")
    publisher.apply([Namespace("a")], [])
    assert [exists(store, text) for text in hidden] == [True] * 3
    publisher.apply([Namespace("a", {"hidden": "true"})], [])
    assert [exists(store, text) for text in hidden] == [False] * 3
    publisher.apply([Namespace("a")], [])
    assert [exists(store, text) for text in hidden] == [True] * 3
    publisher.apply([], [("Namespace", "", "a")])
    assert [exists(store, text) for text in hidden] == [False] * 3, "whether it would be selected is not known"


def test_without_a_selector_a_namespace_exists_as_long_as_something_is_in_it(store: Store) -> None:
    publisher = Publisher(store, "main", PLAIN)
    publisher.replace([Namespace("a"), Service("a", "s", headless=True), piece("s", "10.0.0.2")])
    publisher.apply([], [("Namespace", "", "a")])
    assert lookup(store, "s.a.svc.cluster.local.", rr.A) == ["10.0.0.2"]
    publisher.apply([], [("Service", "a", "s")])
    assert exists(store, "a.svc.cluster.local.")
    publisher.apply([], [("EndpointSlice", "a", "x")])
    assert not exists(store, "a.svc.cluster.local.")


def test_pods_on_their_nodes_network_share_an_address(store: Store) -> None:
    publisher = Publisher(store, "main", replace(PLAIN, records=replace(PLAIN.records, pods="verified")))
    first, second = Pod("a", "p", ("10.0.0.1",)), Pod("a", "q", ("10.0.0.1",))
    publisher.replace([first, second])
    publisher.apply([], [first.key])
    assert lookup(store, "10-0-0-1.a.pod.cluster.local.", rr.A) == ["10.0.0.1"]
    publisher.apply([replace_running(second)], [])
    assert not exists(store, "10-0-0-1.a.pod.cluster.local.")
    assert exists(store, "a.pod.cluster.local."), "the namespace is there as long as something is in it"


def replace_running(pod: Pod) -> Pod:
    """The pod when it has ended."""
    return Pod(pod.namespace, pod.name, pod.ips, False)


def test_topology_zones_have_names_of_their_own(store: Store) -> None:
    publisher = Publisher(store, "main", replace(PLAIN, records=replace(PLAIN.records, zonal=True)))
    subset = Subset((HTTP,), (Endpoint(("10.0.0.1",), zone="Zone.One"), Endpoint(("10.0.0.2",))))
    publisher.replace([Service("a", "s", headless=True), EndpointSlice("a", "x", "s", "IPv4", (subset,))])
    assert lookup(store, r"zone\.one._zone.s.a.svc.cluster.local.", rr.A) == ["10.0.0.1"]
    assert lookup(store, "*._zone.s.a.svc.cluster.local.", rr.A) == ["10.0.0.1", "10.0.0.2"]
    publisher.apply([Service("a", "s", cluster_ips=("10.96.0.1",))], [])
    assert not exists(store, "_zone.s.a.svc.cluster.local.")


# State


def test_zones_are_synced_by_the_first_replacement_and_stay_so(store: Store) -> None:
    publisher = Publisher(store, "main", PLAIN)
    assert not publisher.synced
    assert publisher.age() is None
    publisher.replace([])
    assert publisher.synced
    assert Publisher(store, "main", PLAIN).synced
    publisher.expire()
    states = store.read(lambda txn: {zone.state for zone in txn.zones()})
    assert states == {EXPIRED}
    assert not publisher.synced
    publisher.replace([])
    assert store.read(lambda txn: {zone.state for zone in txn.zones()}) == {SYNCED}


def test_data_that_is_being_written_anew_does_not_expire(store: Store) -> None:
    publisher = Publisher(store, "main", PLAIN)
    publisher.replace([])
    being_written = threading.Event()

    def write(txn: Transaction) -> None:
        time.sleep(0.1)
        being_written.set()

    writing = threading.Thread(target=store.write, args=(write,))
    writing.start()
    assert not publisher.expire(being_written.is_set)  # it has to wait for the writer before it asks
    writing.join()
    assert publisher.synced
    assert publisher.expire(lambda: False)
    assert publisher.expired


def test_age_and_counts_do_not_wait_for_a_writer(store: Store) -> None:
    publisher = Publisher(store, "main", PLAIN)
    publisher.replace([Namespace("x")])
    done, go_on = threading.Event(), threading.Event()

    def write(txn: Transaction) -> None:
        done.set()
        go_on.wait(10)

    writing = threading.Thread(target=store.write, args=(write,))
    writing.start()
    assert done.wait(10)
    begin = time.monotonic()
    assert publisher.age() is not None
    assert publisher.counts()["Namespace"] == 1
    assert time.monotonic() - begin < 1
    go_on.set()
    writing.join()


def test_a_zone_that_was_never_synced_does_not_expire(store: Store) -> None:
    Publisher(store, "main", PLAIN).expire()
    assert store.read(lambda txn: {zone.state for zone in txn.zones()}) == {UNSYNCED}


def test_the_age_of_the_data_is_never_negative(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    publisher = Publisher(store, "main", PLAIN)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    publisher.replace([])
    monkeypatch.setattr(time, "time", lambda: now + 60)
    assert publisher.age() == pytest.approx(60, abs=0.01)
    publisher.touch()
    assert publisher.age() == pytest.approx(0, abs=0.01)
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    assert publisher.age() == 0.0


def test_names_of_services_fill_the_pages_of_the_store(tmp_path: Path, large: list[Object]) -> None:
    store = Store.open(tmp_path, Changes.create(), pytest.fail)
    publisher = Publisher(store, "main", Settings((Z,), (NET,)))
    publisher.replace(large)
    store.close()
    taken: dict[bool, int] = {True: 0, False: 0}
    with lmdb.open(str(tmp_path), readonly=True, max_dbs=8) as env:
        database = env.open_db(b"names", create=False)
        with env.begin() as txn:
            pages = txn.stat(database)["leaf_pages"]
            for key, value in txn.cursor(database):
                taken[key.startswith(publisher.zones[Z].prefix)] += len(key) + len(value) + 10
    in_half_full_pages = taken[False] / (4096 * 0.5)
    assert taken[True] / (pages - in_half_full_pages) > 4096 * 0.75


def test_a_restart_touches_nothing(tmp_path: Path) -> None:
    found: list[Object] = [Service("a", "s", headless=True), piece("s", "10.0.0.2"), Pod("b", "p", ("10.0.0.3",))]
    opened = Store.open(tmp_path, Changes.create(), pytest.fail)
    Publisher(opened, "main", FULL).replace(found)
    before = opened.read(lambda txn: txn.zones())
    opened.close()
    opened = Store.open(tmp_path, Changes.create(), pytest.fail)
    publisher = Publisher(opened, "main", FULL)
    assert publisher.synced
    outcome = publisher.replace(found)
    assert (outcome.changed, outcome.warnings) == (0, [])
    assert opened.changes.generation == 0
    assert opened.read(lambda txn: txn.zones()) == before
    opened.close()


def test_a_fingerprint_is_the_same_in_another_process() -> None:
    code = "from tests.support.publishing import FULL; print(FULL.fingerprint.hex())"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in "123456"
    }
    assert found == {FULL.fingerprint.hex()}


def test_settings_that_make_other_records_have_other_fingerprints() -> None:
    found = {one.fingerprint for one in (FULL, *OTHER_SETTINGS)}
    assert len(found) == len(OTHER_SETTINGS) + 1
    other = replace(FULL, labels=values.selector("!other").matches)
    assert other.fingerprint not in found


def test_zones_that_the_settings_no_longer_have_are_dropped(store: Store) -> None:
    Publisher(store, "other", PLAIN)
    Publisher(store, "main", FULL).replace([])
    Publisher(store, "main", PLAIN)
    zones = store.read(lambda txn: {(zone.source, zone.origin) for zone in txn.zones()})
    assert zones == {(source, origin) for source in ("main", "other") for origin in (Z, NET)}


def test_objects_that_were_applied_before_a_replacement_leave_nothing(store: Store) -> None:
    publisher = Publisher(store, "main", PLAIN)
    publisher.apply([Service("a", "s", cluster_ips=("10.96.0.1",))], [])
    publisher.replace([])
    assert not exists(store, "a.svc.cluster.local.")
    assert contents(store) == anew(store, PLAIN, ())


def test_growing_the_map_in_the_middle_leads_to_the_same(tmp_path: Path, store: Store) -> None:
    found: list[Object] = [Service("a", f"s{n}", cluster_ips=(f"10.96.{n // 250}.{n % 250}",)) for n in range(2000)]
    opened = Store.open(tmp_path, Changes.create(), pytest.fail, map_size=64 * 1024)
    publisher = Publisher(opened, "main", PLAIN)
    assert publisher.replace(found).changed == 2000
    assert contents(opened) == anew(store, PLAIN, found)
    more: list[Object] = [Service("b", f"s{n}", cluster_ips=(f"10.97.{n // 250}.{n % 250}",)) for n in range(20_000)]
    outcome = publisher.replace(more, keep=True)
    assert (outcome.changed, outcome.warnings) == (20_000, [])
    assert publisher.counts()["Service"] == 22_000
    opened.close()


def test_what_the_store_refuses_is_done_by_the_next_call(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    publisher = Publisher(store, "main", PLAIN)
    service = Service("a", "s", cluster_ips=("10.96.0.1",))
    publisher.replace([])
    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "raise_serials", _no_space)
        with pytest.raises(StoreError):
            publisher.apply([service], [])
    assert publisher.apply([service], []).changed == 1
    assert lookup(store, "s.a.svc.cluster.local.", rr.A) == ["10.96.0.1"]


def _no_space(_: Transaction) -> None:
    raise OSError(28, "No space left on device")


# Size


@pytest.fixture(scope="module")
def large() -> list[Object]:
    """5,000 Services with 10 endpoints each."""
    found: list[Object] = []
    for n in range(5000):
        namespace, name = f"ns-{n // 50}", f"service-{n}"
        found.append(Service(namespace, name, cluster_ips=(f"10.96.{n // 250}.{n % 250}",), ports=(HTTP,)))
        found.append(
            piece(name, *(f"10.{n // 250}.{n % 250}.{e}" for e in range(1, 11)), name=f"{name}-x", namespace=namespace)
        )
    return found


def test_one_change_among_many_takes_its_own_time(
    tmp_path: Path, large: list[Object], capsys: pytest.CaptureFixture[str]
) -> None:
    opened = Store.open(tmp_path, Changes.create(), pytest.fail)
    publisher = Publisher(opened, "main", PLAIN)
    start = time.perf_counter()
    publisher.replace(large)
    filled = time.perf_counter() - start

    seen, start = opened.changes.generation, time.perf_counter()
    publisher.replace(large)
    again = time.perf_counter() - start
    assert opened.changes.generation == seen

    times = []
    for turn in range(100):
        service = large[2 * (turn * 37 % 5000)]
        assert isinstance(service, Service)
        changed = piece(service.name, f"10.200.0.{turn}", name=f"{service.name}-x", namespace=service.namespace)
        start = time.perf_counter()
        publisher.apply([changed], [])
        times.append(time.perf_counter() - start)
    one = sorted(times)[len(times) // 2]
    opened.close()
    start = time.perf_counter()
    opened = Store.open(tmp_path, Changes.create(), pytest.fail)
    checked = time.perf_counter() - start
    start = time.perf_counter()
    Publisher(opened, "main", replace(PLAIN, records=replace(PLAIN.records, ttl=6))).replace([], keep=True)
    rewritten = time.perf_counter() - start
    with capsys.disabled():
        print(
            f"\n5,000 Services x 10: made anew {filled:.2f} s, compared {again:.2f} s, another TTL {rewritten:.2f} s, "
            f"one slice {one * 1000:.2f} ms, opened and checked {checked:.2f} s ({opened.size >> 20} MB)"
        )
    opened.close()
    assert one < filled / 100, "one change costs as if everything was looked at"
