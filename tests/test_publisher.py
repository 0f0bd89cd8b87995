"""From objects to the zone store: after every change the store holds what making it anew would give."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

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
    Port,
    Service,
    ServiceImport,
    Subset,
)
from kdns.cluster.publisher import Publisher, Settings
from kdns.cluster.records import RecordOptions
from kdns.corefile import values
from kdns.errors import StoreError
from kdns.wire import names, rr
from kdns.wire.rrset import RRset
from kdns.zone.changes import Changes, name_hash
from kdns.zone.store import EXPIRED, SYNCED, UNSYNCED, Records, Store, Transaction

Z, Z2 = names.from_text("cluster.local."), names.from_text("example.org.")
NET = names.from_text("10.in-addr.arpa.")
SUBNET = names.from_text("0.0.10.in-addr.arpa.")
ONE = names.from_text("1.0.0.10.in-addr.arpa.")
IPV6 = names.from_text("ip6.arpa.")
PLAIN = Settings((Z,), (NET,))
FULL = Settings(
    (Z, Z2),
    (NET, SUBNET, ONE, IPV6),
    namespace_labels=values.selector("hidden notin (yes, true)").matches,
    labels=values.selector("!hidden").matches,
    listens=("10.0.0.1", "2001:db8::1"),
    records=RecordOptions(names.ROOT, endpoint_pod_names=True, ignore_empty_service=True, zonal=True, pods="verified"),
)
NO_ENDPOINTS = replace(FULL.records, endpoints=False, zonal=False)
HTTP = Port("http", "TCP", 80)

Contents = dict[tuple[bytes, bytes], Records]
"""Entries by origin and name, without serials."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = Store.open(tmp_path_factory.mktemp("state"), Changes.create(), pytest.fail)
    yield opened
    opened.close()


@pytest.fixture
def store(shared: Store) -> Store:
    """An empty store."""
    _empty(shared)
    return shared


def _empty(store: Store) -> None:
    def action(txn: Transaction) -> None:
        for source in {zone.source for zone in txn.zones()}:
            txn.drop_source(source)

    store.write(action)


def _contents(store: Store, source: str = "main") -> Contents:
    def action(txn: Transaction) -> Contents:
        return {
            (zone.origin, name): tuple(map(_without_serial, found))
            for zone in txn.zones()
            if zone.source == source
            for name, found in txn.below(zone, zone.origin)
        }

    return store.read(action)


def _without_serial(rrset: RRset) -> RRset:
    if rrset.type != rr.SOA:
        return rrset
    return replace(rrset, rdatas=tuple(rdata[:-20] + bytes(4) + rdata[-16:] for rdata in rrset.rdatas))


def _anew(store: Store, wanted: Settings, items: Iterable[Object]) -> Contents:
    """What a new publisher makes of the objects."""
    Publisher(store, "anew", wanted).replace(items)
    found = _contents(store, "anew")
    store.write(lambda txn: txn.drop_source("anew"))
    return found


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
        self._before = _contents(store)

    def written(self) -> Written:
        now = _contents(self._store)
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


def _answer(contents: Contents, origin: bytes, name: bytes) -> Records | bool:
    found = contents.get((origin, name))
    if found is not None:
        return found
    return any(zone == origin and names.is_subdomain(other, name) for zone, other in contents)


def _name(text: str) -> bytes:
    return names.from_text(text)


def _found(store: Store, text: str, rtype: int) -> list[str]:
    """The records of a name, addresses and names as text; the first forward zone that has it."""
    name = names.from_text(text)
    for (_, owner), rrsets in sorted(_contents(store).items()):
        if owner == name:
            rdatas = [rdata for rrset in rrsets if rrset.type == rtype for rdata in rrset.rdatas]
            return [rr.address_text(rdata) if rtype in (rr.A, rr.AAAA) else names.to_text(rdata) for rdata in rdatas]
    return []


def _exists(store: Store, text: str) -> bool:
    return any(names.is_subdomain(owner, names.from_text(text)) for _, owner in _contents(store))


def _slice(
    service: str, *addresses: str, name: str = "x", namespace: str = "a", ready: bool = True, legacy: bool = False
) -> EndpointSlice:
    endpoints = tuple(Endpoint((address,), ready) for address in addresses)
    return EndpointSlice(namespace, name, service, "IPv4", (Subset((HTTP,), endpoints),), legacy)


# Everything against everything

CLUSTER_IPS = ("10.96.0.1", "10.96.0.2", "10.0.0.1", "2001:db8::1")
ENDPOINT_IPS = ("10.0.0.1", "10.0.0.2", "10.0.1.1", "2001:db8::1", "no address")
HOSTILE = ["x" * 63, "x" * 300, "a/b", "a\0b", "a\nb", "-a", "a.b", "", "é", "Web", "S", "_zone", "svc"]


def _mostly(*usual: str) -> st.SearchStrategy[str]:
    """Names that occur again and again, and among them a hostile one."""
    return st.sampled_from([*usual] * (60 // len(usual)) + HOSTILE)


namespaces = st.sampled_from(["a", "a", "a-b", "b"])
service_names = st.sampled_from(["s", "s-2", "t"])
labels = st.sampled_from([{}, {"hidden": "yes"}, {"hidden": "no"}])
ports = st.lists(
    st.sampled_from(
        [HTTP, Port("", "TCP", 80), Port("dns", "UDP", 53), Port("Bad name", "TCP", 1), Port("x", "TCP", 0)]
    ),
    max_size=2,
).map(tuple)
services = st.builds(
    Service,
    namespaces,
    _mostly("s", "s-2", "t"),
    ports=ports,
    labels=labels,
    publish_not_ready=st.booleans(),
    cluster_ips=st.lists(st.sampled_from(CLUSTER_IPS), max_size=2, unique=True).map(tuple),
) | st.builds(Service, namespaces, service_names, headless=st.just(True), ports=ports, labels=labels)
externals = st.builds(
    Service,
    namespaces,
    service_names,
    st.just("ExternalName"),
    external_name=st.sampled_from(["example.com", "s.a.svc.cluster.local", "10.0.0.1", "-", ""]),
)
endpoints = st.builds(
    Endpoint,
    st.lists(st.sampled_from(ENDPOINT_IPS), min_size=1, max_size=2).map(tuple),
    st.booleans(),
    st.sampled_from(["", "h-0", "h-1", "bad name"]),
    st.sampled_from(["", "p", "q"]),
    zone=st.sampled_from(["", "zone.one", "TWO"]),
)
subsets = st.lists(st.builds(Subset, ports, st.lists(endpoints, max_size=3).map(tuple)), max_size=2).map(tuple)
slices = st.builds(
    EndpointSlice,
    namespaces,
    _mostly("x", "y"),
    _mostly("s", "s-2", "t"),
    st.sampled_from(["IPv4", "IPv6", "FQDN"]),
    subsets,
)
imported = st.builds(
    EndpointSlice,
    namespaces,
    st.sampled_from(["x", "y"]),
    st.sampled_from(["", "", "s"]),
    subsets=subsets,
    imported=_mostly("s", "s-2", "t"),
    cluster=st.sampled_from(["", "east", "west", "eu.west", "-"]),
)
imports = st.builds(
    ServiceImport,
    namespaces,
    service_names,
    st.booleans(),
    st.lists(st.sampled_from(CLUSTER_IPS), max_size=2, unique=True).map(tuple),
    ports,
)
legacy = service_names.flatmap(
    lambda name: st.builds(EndpointSlice, namespaces, st.just(name), st.just(name), st.just(""), subsets, st.just(True))
)
pods = st.builds(
    Pod,
    _mostly("a", "a-b", "b"),
    _mostly("p", "q"),
    st.lists(st.sampled_from(ENDPOINT_IPS), max_size=2).map(tuple),
    st.booleans(),
)
items: st.SearchStrategy[Object] = (
    services
    | externals
    | slices
    | imported
    | imports
    | legacy
    | pods
    | st.builds(Namespace, namespaces, labels)
    | st.builds(Namespace, _mostly("a", "a-b", "b"), labels)
)
objects_of_names = st.lists(items, max_size=8)


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


def _storable(item: Object) -> bool:
    """What the strategies above make and the publisher takes."""
    texts = [*item.key[1:], *([item.service, item.imported] if isinstance(item, EndpointSlice) else [])]
    if any(char in text for text in texts for char in "/\0\n") or any(text != text.lower() for text in item.key[1:]):
        return False
    return not any(len(text) > 63 for text in texts)


@pytest.mark.parametrize(
    "wanted",
    [PLAIN, FULL, replace(FULL, multicluster=(Z2,)), replace(FULL, records=NO_ENDPOINTS)],
    ids=["plain", "full", "multicluster", "noendpoints"],
)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_changes_lead_where_a_fresh_start_leads(wanted: Settings, shared: Store, data: st.DataObject) -> None:
    _empty(shared)
    publisher = Publisher(shared, "main", wanted)
    model: dict[Key, Object] = {item.key: item for item in data.draw(objects_of_names) if _storable(item)}
    publisher.replace(model.values())
    for puts, deletes in data.draw(batches()):
        watch = Watch(shared)
        outcome = publisher.apply(puts, deletes)
        for key in deletes:
            model.pop(key, None)
        for item in puts:
            if _storable(item):
                model[item.key] = item
            else:
                model.pop(item.key, None) if _is_last(item, puts) else None
        refused = sum(not _storable(item) for item in puts)
        assert sum("does not allow" in warning for warning in outcome.warnings) == refused
        _check_written(watch.written())
        assert _contents(shared) == _anew(shared, wanted, model.values())
    _check_indexes(shared, publisher, model)


def _is_last(item: Object, puts: list[Object]) -> bool:
    return not any(other.key == item.key and _storable(other) for other in puts)


def _check_written(written: Written) -> None:
    """Noted is what differs, and what may have gone and come again with it: names above, apexes for their serial."""
    assert written.noted is not None
    allowed = {Z, Z2, NET, SUBNET, ONE, IPV6}
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
    assert _contents(store) == _anew(store, publisher.settings, ())


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(objects_of_names, objects_of_names)
def test_a_replacement_leads_where_a_fresh_start_leads(
    shared: Store, first: list[Object], second: list[Object]
) -> None:
    _empty(shared)
    publisher = Publisher(shared, "main", FULL)
    publisher.replace(first)
    watch = Watch(shared)
    publisher.replace(second)
    if any(map(_storable, first)):
        _check_written(watch.written())
    assert _contents(shared) == _anew(shared, FULL, second)
    watch = Watch(shared)
    publisher.replace(second[::-1] if len({item.key for item in second}) == len(second) else second)
    assert watch.written() == Written(set(), set())


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(objects_of_names, objects_of_names)
def test_what_is_kept_stays_beside_what_is_given(shared: Store, first: list[Object], second: list[Object]) -> None:
    _empty(shared)
    publisher = Publisher(shared, "main", FULL)
    publisher.replace(first)
    publisher.replace(second, keep=True)
    merged = {item.key: item for item in (*first, *second) if _storable(item)}
    assert _contents(shared) == _anew(shared, FULL, merged.values())


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
    PLAIN,
]


@pytest.mark.parametrize("wanted", OTHER_SETTINGS, ids=range(len(OTHER_SETTINGS)))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(found=objects_of_names)
def test_other_settings_lead_where_a_fresh_start_leads(wanted: Settings, shared: Store, found: list[Object]) -> None:
    _empty(shared)
    Publisher(shared, "main", FULL).replace(found)
    publisher = Publisher(shared, "main", wanted)
    watch = Watch(shared)
    publisher.replace(found)
    assert watch.written().noted is None, "everything may be another"
    assert _contents(shared) == _anew(shared, wanted, found)
    watch = Watch(shared)
    publisher.replace(found)
    assert watch.written() == Written(set(), set())


# Single stories, most of them of bugs


def test_pointers_of_a_service_that_empty_service_hides_go_with_it(store: Store) -> None:
    publisher = Publisher(store, "main", replace(PLAIN, records=replace(PLAIN.records, ignore_empty_service=True)))
    service = Service("a", "s", cluster_ips=("10.96.0.1",))
    publisher.replace([service])
    assert _found(store, "s.a.svc.cluster.local.", rr.A) == []
    assert _found(store, "1.0.96.10.in-addr.arpa.", rr.PTR) == ["s.a.svc.cluster.local."]
    publisher.apply([Service("a", "s", cluster_ips=("10.96.0.2",))], [])
    assert _found(store, "1.0.96.10.in-addr.arpa.", rr.PTR) == []
    assert _found(store, "2.0.96.10.in-addr.arpa.", rr.PTR) == ["s.a.svc.cluster.local."]
    publisher.apply([], [service.key])
    assert not _exists(store, "2.0.96.10.in-addr.arpa.")


def test_two_services_share_a_pointer_until_one_goes(store: Store) -> None:
    publisher = Publisher(store, "main", PLAIN)
    publisher.replace(
        [
            Service("a", "s", headless=True),
            Service("a", "t", headless=True),
            _slice("s", "10.0.0.9"),
            _slice("t", "10.0.0.9", name="y"),
        ]
    )
    both = ["10-0-0-9.s.a.svc.cluster.local.", "10-0-0-9.t.a.svc.cluster.local."]
    assert _found(store, "9.0.0.10.in-addr.arpa.", rr.PTR) == both
    publisher.apply([], [("Service", "a", "s")])
    assert _found(store, "9.0.0.10.in-addr.arpa.", rr.PTR) == both[1:]
    publisher.apply([_slice("s", "10.0.0.9", name="y")], [])
    assert not _exists(store, "9.0.0.10.in-addr.arpa.")


def test_the_reverse_zone_of_one_address_has_its_apex_and_its_pointers(store: Store) -> None:
    publisher = Publisher(store, "main", Settings((Z,), (ONE,)))
    publisher.replace([Service("a", "s", cluster_ips=("10.0.0.1",))])

    def types() -> set[int]:
        return {rrset.type for rrset in _contents(store)[ONE, ONE]}

    assert types() == {rr.SOA, rr.NS, rr.PTR}
    publisher.apply([Service("a", "t", cluster_ips=("10.0.0.1",))], [])
    assert _found(store, "1.0.0.10.in-addr.arpa.", rr.PTR) == ["s.a.svc.cluster.local.", "t.a.svc.cluster.local."]
    publisher.apply([], [("Service", "a", "s"), ("Service", "a", "t")])
    assert types() == {rr.SOA, rr.NS}


def test_a_slice_that_spells_a_service_in_capitals_does_not_touch_it(store: Store) -> None:
    publisher = Publisher(store, "main", PLAIN)
    publisher.replace([Service("a", "web", cluster_ips=("10.96.0.1",))])
    publisher.apply([_slice("Web", "10.0.0.1")], [])
    assert _found(store, "web.a.svc.cluster.local.", rr.A) == ["10.96.0.1"]


@pytest.mark.parametrize(
    "item",
    [
        Service("a", "x" * 300),
        Service("x" * 64, "s"),
        Service("a", "a/b"),
        Service("a", "a\0b"),
        Service("a", "Web"),
        _slice("x" * 253, "10.0.0.1", name="x" * 253, namespace="x" * 253),
        _slice("a\0b", "10.0.0.1"),
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
    assert _found(store, "s.a.svc.cluster.local.", rr.A) == []
    assert publisher.counts()["Service"] == 1


def test_names_that_are_long_but_allowed_fit_the_store(store: Store) -> None:
    publisher = Publisher(store, "kubernetes-0123456789abcdef", FULL)
    namespace, service = "n" * 63, "s" * 63
    found: list[Object] = [
        Service(namespace, service, headless=True),
        _slice(service, "10.0.0.1", name="x" * 253, namespace=namespace),
        Pod(namespace, "p" * 253, ("2001:db8:1111:2222:3333:4444:5555:6666",)),
    ]
    assert publisher.replace(found).changed == 3
    assert publisher.apply([], [item.key for item in found]).changed == 3


def test_an_object_that_becomes_one_that_cannot_be_kept_is_gone(store: Store) -> None:
    publisher = Publisher(store, "main", PLAIN)
    publisher.replace([Service("a", "s", headless=True), _slice("s", "10.0.0.1")])
    publisher.apply([_slice("s" * 64, "10.0.0.1")], [])
    assert _found(store, "s.a.svc.cluster.local.", rr.A) == []


def test_the_name_server_has_the_addresses_of_the_service_that_selects_it(store: Store) -> None:
    publisher = Publisher(store, "main", Settings((Z, Z2), (NET,), listens=("10.0.0.1", "10.0.0.2")))
    hosts = [f"ns.dns.{zone}" for zone in ("cluster.local.", "example.org.", "10.in-addr.arpa.")]

    def addresses() -> list[str]:
        first, *others = [_found(store, host, rr.A) for host in hosts]
        assert all(other == first for other in others)
        return first

    assert addresses() == ["10.0.0.1", "10.0.0.2"]
    publisher.replace([Service("kube-system", "kube-dns", cluster_ips=("10.96.0.10",))])
    assert addresses() == ["10.0.0.1", "10.0.0.2"]
    own = _slice("kube-dns", "10.0.0.7", "10.0.0.1", namespace="kube-system")
    publisher.apply([own], [])
    assert addresses() == ["10.96.0.10"]
    publisher.apply([Service("kube-system", "kube-dns", cluster_ips=("10.96.0.11", "no address"))], [])
    assert addresses() == ["10.96.0.11"]
    publisher.apply([Service("b", "dns", cluster_ips=("10.96.0.2",)), _slice("dns", "10.0.0.2", namespace="b")], [])
    assert addresses() == ["10.96.0.2", "10.96.0.11"]
    publisher.apply([], [own.key])
    assert addresses() == ["10.96.0.2"]
    publisher.apply([Service("b", "dns", headless=True)], [])
    assert addresses() == ["10.0.0.1", "10.0.0.2"]


def test_the_name_server_without_any_address_has_none(store: Store) -> None:
    Publisher(store, "main", replace(PLAIN, listens=("10.0.0.1",))).replace([])
    publisher = Publisher(store, "main", PLAIN)
    publisher.replace([])
    assert not _exists(store, "ns.dns.cluster.local.")


def test_the_type_of_a_service_changes_under_the_same_name(store: Store) -> None:
    publisher = Publisher(store, "main", PLAIN)
    publisher.replace([Service("a", "s", cluster_ips=("10.96.0.1",), ports=(HTTP,)), _slice("s", "10.0.0.9")])
    publisher.apply([Service("a", "s", "ExternalName", external_name="example.com")], [])
    assert _found(store, "s.a.svc.cluster.local.", rr.CNAME) == ["example.com."]
    assert not _exists(store, "_tcp.s.a.svc.cluster.local.")
    assert not _exists(store, "0.10.in-addr.arpa.")
    publisher.apply([Service("a", "s", headless=True)], [])
    assert _found(store, "s.a.svc.cluster.local.", rr.A) == ["10.0.0.9"]
    assert _found(store, "s.a.svc.cluster.local.", rr.CNAME) == []


def test_endpoints_count_until_there_are_slices(store: Store) -> None:
    publisher = Publisher(store, "main", PLAIN)
    old = _slice("s", "10.0.0.8", name="s", legacy=True)
    publisher.replace([Service("a", "s", headless=True), old])
    assert _found(store, "s.a.svc.cluster.local.", rr.A) == ["10.0.0.8"]
    publisher.apply([_slice("s", "10.0.0.9")], [])
    assert _found(store, "s.a.svc.cluster.local.", rr.A) == ["10.0.0.9"]
    publisher.apply([], [("EndpointSlice", "a", "x")])
    assert _found(store, "s.a.svc.cluster.local.", rr.A) == ["10.0.0.8"]


def test_a_namespace_comes_and_goes_with_its_labels(store: Store) -> None:
    publisher = Publisher(store, "main", FULL)
    publisher.replace(
        [
            Namespace("a", {"hidden": "yes"}),
            Service("a", "s", headless=True),
            _slice("s", "10.0.0.2"),
            Pod("a", "p", ("10.0.0.2",)),
            Namespace("a-b"),
            Service("a-b", "s", headless=True),
        ]
    )
    hidden = ("a.svc.cluster.local.", "10-0-0-2.a.pod.cluster.local.", "2.0.0.10.in-addr.arpa.")
    assert [_exists(store, text) for text in hidden] == [False] * 3
    assert _exists(store, "a-b.svc.cluster.local.")
    publisher.apply([Namespace("a")], [])
    assert [_exists(store, text) for text in hidden] == [True] * 3
    publisher.apply([Namespace("a", {"hidden": "true"})], [])
    assert [_exists(store, text) for text in hidden] == [False] * 3
    publisher.apply([Namespace("a")], [])
    assert [_exists(store, text) for text in hidden] == [True] * 3
    publisher.apply([], [("Namespace", "", "a")])
    assert [_exists(store, text) for text in hidden] == [False] * 3, "whether it would be selected is not known"


def test_without_a_selector_a_namespace_exists_as_long_as_something_is_in_it(store: Store) -> None:
    publisher = Publisher(store, "main", PLAIN)
    publisher.replace([Namespace("a"), Service("a", "s", headless=True), _slice("s", "10.0.0.2")])
    publisher.apply([], [("Namespace", "", "a")])
    assert _found(store, "s.a.svc.cluster.local.", rr.A) == ["10.0.0.2"]
    publisher.apply([], [("Service", "a", "s")])
    assert _exists(store, "a.svc.cluster.local.")
    publisher.apply([], [("EndpointSlice", "a", "x")])
    assert not _exists(store, "a.svc.cluster.local.")


def test_pods_on_their_nodes_network_share_an_address(store: Store) -> None:
    publisher = Publisher(store, "main", replace(PLAIN, records=replace(PLAIN.records, pods="verified")))
    first, second = Pod("a", "p", ("10.0.0.1",)), Pod("a", "q", ("10.0.0.1",))
    publisher.replace([first, second])
    publisher.apply([], [first.key])
    assert _found(store, "10-0-0-1.a.pod.cluster.local.", rr.A) == ["10.0.0.1"]
    publisher.apply([replace_running(second)], [])
    assert not _exists(store, "10-0-0-1.a.pod.cluster.local.")
    assert _exists(store, "a.pod.cluster.local."), "the namespace is there as long as something is in it"


def replace_running(pod: Pod) -> Pod:
    """The pod when it has ended."""
    return Pod(pod.namespace, pod.name, pod.ips, False)


def test_topology_zones_have_names_of_their_own(store: Store) -> None:
    publisher = Publisher(store, "main", replace(PLAIN, records=replace(PLAIN.records, zonal=True)))
    subset = Subset((HTTP,), (Endpoint(("10.0.0.1",), zone="Zone.One"), Endpoint(("10.0.0.2",))))
    publisher.replace([Service("a", "s", headless=True), EndpointSlice("a", "x", "s", "IPv4", (subset,))])
    assert _found(store, r"zone\.one._zone.s.a.svc.cluster.local.", rr.A) == ["10.0.0.1"]
    assert _found(store, "*._zone.s.a.svc.cluster.local.", rr.A) == ["10.0.0.1", "10.0.0.2"]
    publisher.apply([Service("a", "s", cluster_ips=("10.96.0.1",))], [])
    assert not _exists(store, "_zone.s.a.svc.cluster.local.")


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


def test_a_restart_touches_nothing(tmp_path: Path) -> None:
    found: list[Object] = [Service("a", "s", headless=True), _slice("s", "10.0.0.2"), Pod("b", "p", ("10.0.0.3",))]
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
    code = "from tests.test_publisher import FULL; print(FULL.fingerprint.hex())"
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
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
    assert not _exists(store, "a.svc.cluster.local.")
    assert _contents(store) == _anew(store, PLAIN, ())


def test_growing_the_map_in_the_middle_leads_to_the_same(tmp_path: Path, store: Store) -> None:
    found: list[Object] = [Service("a", f"s{n}", cluster_ips=(f"10.96.{n // 250}.{n % 250}",)) for n in range(2000)]
    opened = Store.open(tmp_path, Changes.create(), pytest.fail, map_size=64 * 1024)
    publisher = Publisher(opened, "main", PLAIN)
    assert publisher.replace(found).changed == 2000
    assert _contents(opened) == _anew(store, PLAIN, found)
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
    assert _found(store, "s.a.svc.cluster.local.", rr.A) == ["10.96.0.1"]


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
            _slice(name, *(f"10.{n // 250}.{n % 250}.{e}" for e in range(1, 11)), name=f"{name}-x", namespace=namespace)
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
        changed = _slice(service.name, f"10.200.0.{turn}", name=f"{service.name}-x", namespace=service.namespace)
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
