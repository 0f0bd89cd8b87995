"""What an API server delivers, in whatever order and however merged: the store holds what the objects make, at every
step, with the versions that they are of."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import msgspec.structs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdns.cluster import objects
from kdns.cluster.delivery import Delivery
from kdns.cluster.inventory import KINDS, key_text
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
from kdns.cluster.publisher import Outcome, Publisher
from kdns.errors import StoreError
from kdns.wire import names, rr
from kdns.zone.changes import Changes
from kdns.zone.store import EXPIRED, SYNCED, UNSYNCED, Store, Transaction
from tests.support.publishing import (
    FULL,
    HTTP,
    IPV6,
    NET,
    PLAIN,
    Z2,
    Z,
    anew,
    contents,
    empty,
    everything,
    everything_anew,
    exists,
    items,
    lookup,
    piece,
    storable,
)

S, E, N = "Service", "EndpointSlice", "Namespace"
SCOPES = {S: "services", E: "slices", N: "namespaces"}
DUAL = replace(PLAIN, reverse=(NET, IPV6))
WEB = "web.a.svc.cluster.local."
CLUSTER_IP = Service("a", "web", cluster_ips=("10.96.0.1",), ports=(HTTP,))
HEADLESS = Service("a", "web", headless=True, ports=(HTTP,))
EXTERNAL = Service("a", "web", "ExternalName", external_name="example.com")


def rows(found: Iterable[Object]) -> dict[str, bytes | None]:
    return {key_text(item.key): objects.pack(item) for item in found}


def listed(kind: str, *found: Object, version: str = "1", kept: Iterable[str] = ()) -> Delivery:
    """All objects of a kind."""
    return Delivery(kind, version, True, rows(found), set(kept))


def changed(kind: str, *found: Object, gone: Iterable[str] = (), version: str = "2") -> Delivery:
    """Events of a kind."""
    return Delivery(kind, version, False, rows(found) | dict.fromkeys(gone))


def events(*found: Object) -> Delivery:
    """Objects of one kind that were added or modified."""
    return changed(found[0].key[0], *found)


def gone(item: Object) -> Delivery:
    """An object was deleted."""
    return changed(item.key[0], gone=[key_text(item.key)])


class Cluster:
    """A publisher that has been synced with some objects, and compares each step with a fresh start."""

    def __init__(self, store: Store, *found: Object) -> None:
        self.store = store
        self.publisher = Publisher(store, "main", DUAL)
        self.publisher.begin(SCOPES, strict=True)
        self._objects: dict[Key, Object] = {}
        for kind in SCOPES:
            self._learn(listed(kind, *(item for item in found if item.key[0] == kind)))
        first = [listed(kind, *(item for item in found if item.key[0] == kind)) for kind in SCOPES]
        self.publisher.deliver(first, complete=True, current=True)

    def _learn(self, delivery: Delivery) -> None:
        for text, row in delivery.rows.items():
            namespace, _, name = text.rpartition("/")
            self._objects.pop((delivery.kind, namespace, name), None)
            if row is not None:
                item = objects.unpack(row)
                self._objects[item.key] = item

    def step(self, *deliveries: Delivery) -> None:
        for delivery in deliveries:
            self._learn(delivery)
        self.publisher.deliver(deliveries, complete=True, current=True)
        assert everything(self.store) == everything_anew(self.store, DUAL, self._objects.values())

    def a(self, text: str = WEB) -> list[str]:
        return lookup(self.store, text, rr.A)

    def ptr(self, address: str) -> list[str]:
        return lookup(self.store, names.to_text(names.reverse(address)), rr.PTR)


# Orders that real clusters produce


@pytest.fixture
def cluster(store: Store) -> Cluster:
    return Cluster(store, Namespace("a"))


def test_a_slice_before_its_service(cluster: Cluster) -> None:
    cluster.step(events(piece("web", "10.0.0.1")))
    assert not exists(cluster.store, WEB)
    assert cluster.ptr("10.0.0.1") == []
    cluster.step(events(HEADLESS))
    assert cluster.a() == ["10.0.0.1"]
    assert cluster.ptr("10.0.0.1") == ["10-0-0-1." + WEB]


def test_a_service_is_deleted_and_made_again_under_its_name(cluster: Cluster) -> None:
    cluster.step(events(CLUSTER_IP), events(piece("web", "10.0.0.1")))
    cluster.step(gone(CLUSTER_IP))
    assert not exists(cluster.store, WEB)
    assert cluster.ptr("10.96.0.1") == cluster.ptr("10.0.0.1") == []
    cluster.step(events(msgspec.structs.replace(CLUSTER_IP, cluster_ips=("10.96.0.2",))))
    assert cluster.a() == ["10.96.0.2"]
    assert cluster.ptr("10.96.0.2") == [WEB]
    assert cluster.a("10-0-0-1." + WEB) == ["10.0.0.1"], "the slice of before is still there"
    cluster.step(gone(piece("web", "10.0.0.1")))
    assert not exists(cluster.store, "10-0-0-1." + WEB)


def test_a_service_that_was_made_again_meanwhile(cluster: Cluster) -> None:
    cluster.step(events(CLUSTER_IP), events(piece("web", "10.0.0.1")))
    merged = gone(CLUSTER_IP)
    merged.merge(events(HEADLESS))
    cluster.step(merged)
    assert cluster.a() == ["10.0.0.1"]
    assert cluster.ptr("10.96.0.1") == []


TYPES = (CLUSTER_IP, HEADLESS, EXTERNAL)


@pytest.mark.parametrize("before", TYPES, ids=lambda item: item.type + "None" * item.headless)
@pytest.mark.parametrize("after", TYPES, ids=lambda item: item.type + "None" * item.headless)
@pytest.mark.parametrize("slice_comes", ["first", "last"])
def test_a_service_changes_its_type(before: Service, after: Service, slice_comes: str, cluster: Cluster) -> None:
    old, new = piece("web", "10.0.0.1"), piece("web", "10.0.0.2")
    cluster.step(events(before), events(old))
    steps = [events(new), events(after)] if slice_comes == "first" else [events(after), events(new)]
    for step in steps:
        cluster.step(step)
    assert cluster.a() == {"ClusterIP": list(after.cluster_ips) or ["10.0.0.2"], "ExternalName": []}[after.type]
    assert lookup(cluster.store, WEB, rr.CNAME) == ["example.com."] * (after is EXTERNAL)
    assert cluster.ptr("10.0.0.2") == ["10-0-0-2." + WEB] * (after is not EXTERNAL)
    assert cluster.ptr("10.0.0.1") == []
    assert cluster.ptr("10.96.0.1") == [WEB] * (after is CLUSTER_IP)


def test_a_slice_whose_service_label_changes(cluster: Cluster) -> None:
    api = Service("a", "api", headless=True, ports=(HTTP,))
    cluster.step(events(HEADLESS, api), events(piece("web", "10.0.0.1")))
    cluster.step(events(piece("api", "10.0.0.1")))
    assert not exists(cluster.store, WEB)
    assert cluster.a("api.a.svc.cluster.local.") == ["10.0.0.1"]
    assert cluster.ptr("10.0.0.1") == ["10-0-0-1.api.a.svc.cluster.local."]
    cluster.step(events(piece("", "10.0.0.1")))
    assert cluster.ptr("10.0.0.1") == []


def test_one_address_in_two_slices_and_then_in_one(cluster: Cluster) -> None:
    cluster.step(events(HEADLESS), events(piece("web", "10.0.0.1", name="x")))
    cluster.step(events(piece("web", "10.0.0.1", "10.0.0.2", name="y")))
    assert cluster.a() == ["10.0.0.1", "10.0.0.2"]
    cluster.step(events(piece("web", name="x")))
    assert cluster.a() == ["10.0.0.1", "10.0.0.2"]
    assert cluster.ptr("10.0.0.1") == ["10-0-0-1." + WEB]
    cluster.step(gone(piece("web", name="x")))
    assert cluster.a() == ["10.0.0.1", "10.0.0.2"]
    cluster.step(gone(piece("web", name="y")))
    assert not exists(cluster.store, WEB)
    assert cluster.ptr("10.0.0.1") == []


@pytest.mark.parametrize("slice_comes", ["first", "last"])
def test_a_service_becomes_dual_stack(slice_comes: str, cluster: Cluster) -> None:
    cluster.step(events(CLUSTER_IP), events(piece("web", "10.0.0.1", name="x")))
    dual = msgspec.structs.replace(CLUSTER_IP, cluster_ips=("10.96.0.1", "fd00::1"))
    second = msgspec.structs.replace(piece("web", "fd00:1::1", name="y"), address_type="IPv6")
    for step in (second, dual) if slice_comes == "first" else (dual, second):
        cluster.step(events(step))
    assert cluster.a() == ["10.96.0.1"]
    assert lookup(cluster.store, WEB, rr.AAAA) == ["fd00::1"]
    assert cluster.ptr("fd00::1") == [WEB]
    assert cluster.ptr("fd00:1::1") == ["fd00-1--1." + WEB]


@pytest.mark.parametrize("namespace_goes", ["first", "last"])
def test_a_namespace_ends(namespace_goes: str, cluster: Cluster) -> None:
    namespace, endpoints = Namespace("a"), piece("web", "10.0.0.1")
    cluster.step(events(CLUSTER_IP), events(endpoints))
    cluster.step(events(namespace))
    assert cluster.a() == ["10.96.0.1"], "while it terminates, its Services work"
    inside: list[Object] = [CLUSTER_IP, endpoints]
    for item in (namespace, *inside) if namespace_goes == "first" else (*inside, namespace):
        cluster.step(gone(item))
    assert not exists(cluster.store, "a.svc.cluster.local.")
    assert cluster.ptr("10.96.0.1") == cluster.ptr("10.0.0.1") == []


def test_a_namespace_that_is_selected_by_its_labels_and_comes_after_its_services(store: Store) -> None:
    wanted = replace(PLAIN, namespace_labels=lambda labels: labels.get("env") != "prod")
    publisher = Publisher(store, "main", wanted)
    publisher.begin(SCOPES, strict=True)
    publisher.deliver([listed(kind) for kind in SCOPES], complete=True, current=True)

    def shown_after(delivery: Delivery) -> bool:
        publisher.deliver([delivery], complete=True, current=True)
        return exists(store, WEB)

    assert not shown_after(events(CLUSTER_IP)), "the labels of its namespace are not known"
    assert shown_after(events(Namespace("a")))
    assert not shown_after(events(Namespace("a", {"env": "prod"})))
    assert shown_after(events(Namespace("a", {"env": "test"})))
    assert not shown_after(gone(Namespace("a")))


def test_a_list_without_an_object_deletes_it_and_one_that_keeps_it_does_not(cluster: Cluster) -> None:
    other = Service("a", "api", cluster_ips=("10.96.0.2",))
    cluster.step(events(CLUSTER_IP, other))
    cluster.publisher.deliver([listed(S, kept={"a/web", "a/unknown"})], complete=True, current=True)
    assert cluster.a() == ["10.96.0.1"]
    assert not exists(cluster.store, "api.a.svc.cluster.local.")
    cluster.publisher.deliver([listed(S)], complete=True, current=True)
    assert not exists(cluster.store, WEB)


# Any order


@st.composite
def deliveries(draw: st.DrawFn, known: dict[Key, Object]) -> list[Delivery]:
    """A few deliveries of different kinds: lists, some with objects that could not be read, and events."""
    found: dict[str, Delivery] = {}
    puts = draw(st.lists(items, max_size=5))
    for kind in draw(st.permutations(KINDS)):
        have = [key for key in known if key[0] == kind]
        own = [item for item in puts if item.key[0] == kind]
        lost = draw(st.lists(st.sampled_from(have), max_size=3)) if have else []
        if draw(st.integers(0, 4)) == 0:
            stays = [known[key] for key in have if key not in lost]
            kept = draw(st.lists(st.sampled_from(have), max_size=2)) if have else []
            found[kind] = listed(kind, *stays, *own)
            for key in kept:
                found[kind].keep(key_text(key))
        elif own or lost:
            found[kind] = changed(kind, gone=map(key_text, lost))
            found[kind].rows.update(rows(own))
    return list(found.values())


def learn(known: dict[Key, Object], delivery: Delivery) -> None:
    """What the objects are after a delivery."""
    if delivery.complete:
        for key in [key for key in known if key[0] == delivery.kind]:
            if key_text(key) not in delivery.rows.keys() | delivery.kept:
                del known[key]
    texts = {key_text(key): key for key in known if key[0] == delivery.kind}
    for text, row in delivery.rows.items():
        if text in texts:
            del known[texts[text]]
        if row is not None and storable(item := objects.unpack(row)):
            known[item.key] = item


@pytest.mark.parametrize(
    "wanted", [DUAL, FULL, replace(FULL, multicluster=(Z2,))], ids=["dual-stack", "full", "multicluster"]
)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_any_deliveries_end_where_a_fresh_start_ends(wanted: object, shared: Store, data: st.DataObject) -> None:
    empty(shared)
    publisher = Publisher(shared, "main", wanted)  # type: ignore[arg-type]
    publisher.begin(dict.fromkeys(KINDS, "all"), strict=True)
    known: dict[Key, Object] = {}
    waiting: dict[str, Delivery] = {}
    for _ in range(data.draw(st.integers(1, 5))):
        for delivery in data.draw(deliveries(known)):
            learn(known, delivery)
            if delivery.kind in waiting:
                waiting[delivery.kind].merge(delivery)
            else:
                waiting[delivery.kind] = delivery
        if data.draw(st.booleans()):
            continue  # the writer is slow
        publisher.deliver(waiting.values(), complete=True, current=True)
        waiting = {}
        assert everything(shared) == everything_anew(shared, publisher.settings, known.values())
    publisher.deliver(waiting.values(), complete=True, current=True)
    assert everything(shared) == everything_anew(shared, publisher.settings, known.values())


HOSTILE_KEYS = ("", "/", "a/b/c", "a\0b/c", "A/b", "a/" + "x" * 600, "x" * 600, "a/b\nc", "\N{KELVIN SIGN}/x", "é/é")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("complete", [True, False], ids=["list", "events"])
def test_names_that_no_object_can_have_break_nothing(kind: str, complete: bool, store: Store) -> None:
    publisher = Publisher(store, "main", FULL)
    publisher.begin(dict.fromkeys(KINDS, "all"), strict=True)
    hostile: dict[str, bytes | None] = {}
    for key in HOSTILE_KEYS:
        namespace, _, name = key.partition("/")
        found: dict[str, Object] = {
            "Service": Service(namespace, name, cluster_ips=("10.96.0.1",)),
            "EndpointSlice": EndpointSlice(namespace, name, name, imported=name),
            "Endpoints": EndpointSlice(namespace, name, name, legacy=True),
            "Namespace": Namespace(key),
            "Pod": Pod(namespace, name, ("10.0.0.1",)),
            "ServiceImport": ServiceImport(namespace, name, ips=("10.96.0.1",)),
        }
        hostile[key] = objects.pack(found[kind])
    good: list[Object] = [Namespace("a"), CLUSTER_IP, piece("web", "10.0.0.3")]

    def refused(delivery: Delivery) -> list[str]:
        told = publisher.deliver([delivery], complete=True, current=True).warnings
        assert all(len(warning) < 400 for warning in told)
        return sorted(warning for warning in told if "does not allow" in warning)

    first = refused(Delivery(kind, "1", complete, hostile))
    assert len(first) >= 4
    publisher.deliver([events(item) for item in good], complete=True, current=True)
    assert lookup(store, WEB, rr.A) == ["10.96.0.1"]
    trouble = dict.fromkeys(HOSTILE_KEYS, 1.0)
    again = Delivery(kind, "2", complete, hostile | rows(item for item in good if item.key[0] == kind), set(), trouble)
    assert refused(again) == first
    assert refused(Delivery(kind, "2", False, dict.fromkeys(hostile))) == []
    assert lookup(store, WEB, rr.A) == ["10.96.0.1"]


def test_an_object_that_cannot_be_kept_any_more_is_gone(store: Store) -> None:
    cluster = Cluster(store, Namespace("a"), HEADLESS, piece("web", "10.0.0.1"))
    outcome = cluster.publisher.deliver([events(piece("s" * 64, "10.0.0.1"))], complete=True, current=True)
    assert len(outcome.warnings) == 1
    assert not exists(store, WEB)


# Versions


def versions(publisher: Publisher, *, strict: bool = False) -> dict[str, str]:
    return publisher.begin(SCOPES, strict=strict)


def states(store: Store) -> set[int]:
    return store.read(lambda txn: {zone.state for zone in txn.zones()})


def test_each_kind_is_followed_from_the_version_that_was_delivered_last(store: Store) -> None:
    publisher = Publisher(store, "main", PLAIN)
    assert versions(publisher, strict=True) == {}
    publisher.deliver([listed(S, version="10"), listed(E, version="11"), listed(N)], complete=True, current=True)
    publisher.deliver([changed(S, CLUSTER_IP, version="12")], complete=True, current=True)
    publisher.deliver([changed(E, version="13")], complete=True, current=True)
    assert versions(Publisher(store, "main", PLAIN)) == {S: "12", E: "13", N: "1"}
    assert Publisher(store, "main", PLAIN).begin(SCOPES | {S: "others"}, strict=False) == {E: "13", N: "1"}
    assert versions(Publisher(store, "main", PLAIN)) == {S: "12", E: "13", N: "1"}, "nothing of another scope came"


def revisions(store: Store) -> set[int]:
    return store.read(lambda txn: {txn.revision(zone) for zone in txn.zones()})


def test_all_zones_have_the_latest_revision_at_which_nothing_was_missing(store: Store) -> None:
    publisher = Publisher(store, "main", FULL)  # with zones beside its own
    publisher.begin(SCOPES, strict=True)
    publisher.deliver([listed(S, version="10")], complete=False, current=False)
    assert revisions(store) == {0}
    publisher.deliver([listed(E, version="11"), listed(N, version="v1")], complete=True, current=True)
    assert revisions(store) == {11}
    publisher.deliver([changed(S, CLUSTER_IP, version="12")], complete=True, current=False)  # a slice may be older
    assert revisions(store) == {11}
    publisher.deliver([], complete=True, current=True)
    assert revisions(store) == {12}
    Publisher(store, "main", FULL).replace([CLUSTER_IP])  # of a file
    assert revisions(store) == {0}


def test_a_version_is_written_with_what_it_is_of_or_not_at_all(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(store, Namespace("a"))
    delivery = changed(S, CLUSTER_IP, version="5")
    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "raise_serials", _no_space)
        with pytest.raises(StoreError):
            cluster.publisher.deliver([delivery], complete=True, current=True)
    assert versions(cluster.publisher)[S] == "1"
    assert not exists(store, WEB)
    cluster.publisher.deliver([delivery], complete=True, current=True)
    assert versions(cluster.publisher)[S] == "5"
    assert exists(store, WEB)


def _no_space(_: Transaction) -> None:
    raise OSError(28, "No space left on device")


def test_a_kind_that_the_server_does_not_have_counts_as_delivered(store: Store) -> None:
    scopes = SCOPES | {"ServiceImport": "imports"}
    publisher = Publisher(store, "main", PLAIN)
    publisher.begin(scopes, strict=True)
    found = [*map(listed, SCOPES), listed("ServiceImport", version="")]
    publisher.deliver(found, complete=True, current=True)
    assert Publisher(store, "main", PLAIN).begin(scopes, strict=True) == dict.fromkeys(SCOPES, "1")
    assert states(store) == {SYNCED}


def test_an_event_without_a_version_leaves_the_one_that_is_known(cluster: Cluster) -> None:
    cluster.publisher.deliver([changed(S, CLUSTER_IP, version="")], complete=True, current=True)
    assert versions(cluster.publisher)[S] == "1"


def test_a_start_that_lacks_a_kind_answers_what_is_there_and_denies_nothing(store: Store) -> None:
    cluster = Cluster(store, Namespace("a"), CLUSTER_IP)
    publisher = Publisher(store, "main", replace(DUAL, records=replace(DUAL.records, pods="verified")))
    scopes = SCOPES | {"Pod": "pods"}
    publisher.begin(scopes, strict=False)
    assert states(store) == {SYNCED}, "a reload: what was denied a moment ago may be denied now"
    publisher.begin(scopes, strict=True)
    assert states(store) == {UNSYNCED}
    assert cluster.a() == ["10.96.0.1"]
    publisher.deliver([changed(S, version="4")], complete=False, current=False)
    assert states(store) == {UNSYNCED}
    publisher.deliver([listed("Pod", Pod("a", "p", ("10.0.0.1",)))], complete=True, current=True)
    assert states(store) == {SYNCED}
    assert cluster.a("10-0-0-1.a.pod.cluster.local.") == ["10.0.0.1"]


def test_data_that_is_too_old_is_served_again_when_all_of_it_was_delivered(store: Store) -> None:
    cluster = Cluster(store, Namespace("a"), CLUSTER_IP)
    cluster.publisher.expire()
    versions(cluster.publisher, strict=True)
    assert states(store) == {EXPIRED}
    cluster.publisher.deliver([], complete=False, current=False)
    assert states(store) == {EXPIRED}
    cluster.publisher.deliver([], complete=True, current=True)
    assert states(store) == {SYNCED}


def test_another_zone_has_all_names_at_once(store: Store) -> None:
    Cluster(store, Namespace("a"), CLUSTER_IP)
    publisher = Publisher(store, "main", replace(DUAL, forward=(Z, Z2)))
    assert not publisher.synced
    assert versions(publisher) == dict.fromkeys(SCOPES, "1")
    assert publisher.synced
    assert lookup(store, "web.a.svc.example.org.", rr.A) == ["10.96.0.1"]


def test_other_settings_hold_before_anything_is_delivered(store: Store) -> None:
    Cluster(store, Namespace("a"), CLUSTER_IP)
    wanted = replace(DUAL, records=replace(DUAL.records, ttl=60))
    seen = store.changes.generation
    versions(Publisher(store, "main", DUAL), strict=True)
    assert store.changes.generation == seen, "the same settings change nothing"
    assert versions(Publisher(store, "main", wanted), strict=True) == dict.fromkeys(SCOPES, "1")
    assert contents(store) == anew(store, wanted, [Namespace("a"), CLUSTER_IP])
    assert states(store) == {SYNCED}


def test_objects_of_kinds_that_are_not_followed_any_more_are_forgotten(store: Store) -> None:
    wanted = replace(DUAL, records=replace(DUAL.records, pods="verified"))
    publisher = Publisher(store, "main", wanted)
    publisher.replace([Namespace("a"), CLUSTER_IP, piece("web", "10.0.0.1"), Pod("a", "p", ("10.0.0.2",))])
    publisher.begin({S: "services", N: "namespaces"}, strict=False)
    assert publisher.counts() == dict.fromkeys(KINDS, 0) | {S: 1, N: 1}
    assert everything(store) == everything_anew(store, wanted, [Namespace("a"), CLUSTER_IP])
    publisher.begin(SCOPES, strict=False)
    publisher.deliver([listed(kind) for kind in SCOPES], complete=True, current=True)
    publisher.begin({S: "services"}, strict=False)
    assert versions(publisher) == {S: "1"}


def test_objects_of_files_have_no_version(store: Store) -> None:
    cluster = Cluster(store, Namespace("a"), CLUSTER_IP)
    cluster.publisher.identify("this one")
    Publisher(store, "main", DUAL).replace([CLUSTER_IP])
    publisher = Publisher(store, "main", DUAL)
    assert versions(publisher, strict=True) == {}
    assert states(store) == {UNSYNCED}
    assert not publisher.identify("another")


def test_versions_of_another_server_are_forgotten_and_its_objects_served(store: Store) -> None:
    cluster = Cluster(store, Namespace("a"), CLUSTER_IP)
    publisher = cluster.publisher
    assert not publisher.identify("this one")
    assert not publisher.identify("this one")
    assert versions(publisher, strict=True) == dict.fromkeys(SCOPES, "1")
    assert publisher.identify("another")
    assert not publisher.identify("another")
    assert versions(publisher, strict=True) == {}
    assert states(store) == {SYNCED}
    assert cluster.a() == ["10.96.0.1"]
    publisher.deliver([listed(kind, version="7") for kind in SCOPES], complete=True, current=True)
    assert versions(publisher) == dict.fromkeys(SCOPES, "7")


def test_the_age_of_the_data_is_that_of_the_last_delivery_that_was_current(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    cluster = Cluster(store, Namespace("a"))
    monkeypatch.setattr(time, "time", lambda: now + 60)
    cluster.publisher.deliver([events(CLUSTER_IP)], complete=True, current=False)
    assert cluster.publisher.age() == pytest.approx(60, abs=0.01)
    cluster.publisher.deliver([], complete=True, current=True)
    assert cluster.publisher.age() == pytest.approx(0, abs=0.01)


# What a delivery tells


def test_slices_that_are_served_tell_when_the_change_happened(store: Store) -> None:
    other = Service("a", "api", headless=True)
    cluster = Cluster(store, Namespace("a"), CLUSTER_IP, other, EXTERNAL, piece("web", "10.0.0.9", name="old"))
    found = [piece("web", name="x"), piece("api", name="y"), piece("none", name="z"), piece("", name="v")]
    delivery = changed(E, *found, gone=["a/old"])
    delivery.triggers = {"a/x": 1.5, "a/y": 2.5, "a/z": 3.5, "a/v": 4.5, "a/old": 5.5}
    programmed = cluster.publisher.deliver([delivery], complete=True, current=True).programmed
    assert programmed == [("cluster_ip", 1.5), ("headless_with_selector", 2.5)]


# Cost


def many(count: int) -> list[Object]:
    """Services with 10 endpoints each."""
    found: list[Object] = [Namespace(f"ns-{n}") for n in range(20)]
    for n in range(count):
        namespace, name = f"ns-{n % 20}", f"service-{n}"
        found.append(Service(namespace, name, cluster_ips=(f"10.96.{n // 250}.{n % 250}",), ports=(HTTP,)))
        addresses = [f"10.{n // 250}.{n % 250}.{e}" for e in range(10)]
        found.append(piece(name, *addresses, name=f"{name}-x", namespace=namespace))
    return found


def relist(found: Iterable[Object], version: str) -> list[Delivery]:
    return [listed(kind, *(item for item in found if item.key[0] == kind), version=version) for kind in SCOPES]


def test_a_list_of_what_is_there_writes_nothing_but_its_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store.open(tmp_path, Changes.create(), pytest.fail)
    publisher = Publisher(store, "main", PLAIN)
    versions(publisher)
    found = many(2000)
    start = time.process_time()
    assert publisher.deliver(relist(found, "1"), complete=True, current=True).changed == len(found)
    filled = time.process_time() - start
    seen, zones, before = store.changes.generation, store.read(lambda txn: txn.zones()), everything(store)
    deliveries_ = relist(found, "2")
    start = time.process_time()
    assert publisher.deliver(deliveries_, complete=True, current=True) == Outcome()
    compared = time.process_time() - start
    assert store.changes.generation == seen
    assert store.read(lambda txn: txn.zones()) == zones
    assert everything(store) == before
    assert versions(publisher) == dict.fromkeys(SCOPES, "2")
    store.close()
    with capsys.disabled():
        print(f"\n2,000 Services x 10: delivered in {filled:.2f} s of CPU, listed again in {compared:.3f} s")
    assert compared < filled / 5


def test_a_list_with_a_few_differences_touches_no_other_name(store: Store) -> None:
    publisher = Publisher(store, "main", PLAIN)
    versions(publisher)
    found = many(30)
    publisher.deliver(relist(found, "1"), complete=True, current=True)
    seen = store.changes.generation
    before = contents(store)
    found[-1] = msgspec.structs.replace(found[-1], subsets=())
    publisher.deliver(relist(found, "2"), complete=True, current=True)
    _, noted = store.changes.since(seen)
    assert noted is not None
    gone = before.keys() - contents(store).keys()
    assert len(gone) == 20, "ten names and ten addresses"
    assert len(noted) < 30
    assert everything(store) == everything_anew(store, PLAIN, found)


def test_a_list_in_which_most_has_changed_leads_where_a_fresh_start_leads(store: Store) -> None:
    publisher = Publisher(store, "main", PLAIN)
    versions(publisher)
    publisher.deliver(relist(many(1200), "1"), complete=True, current=True)
    other: list[Object] = [
        Service(item.namespace, item.name, headless=True) if isinstance(item, Service) else item for item in many(1300)
    ]
    seen = store.changes.generation
    publisher.deliver(relist(other, "2"), complete=True, current=True)
    assert store.changes.since(seen)[1] is None, "made anew, all at once"
    assert everything(store) == everything_anew(store, PLAIN, other)


def test_numbers_of_objects_are_kept_up_to_date(cluster: Cluster) -> None:
    cluster.step(events(CLUSTER_IP), events(piece("web", "10.0.0.1", name="x"), piece("web", name="y")))
    assert cluster.publisher.counts() == dict.fromkeys(KINDS, 0) | {S: 1, E: 2, N: 1}
    cluster.step(gone(CLUSTER_IP), events(piece("web", name="x")))
    assert cluster.publisher.counts() == dict.fromkeys(KINDS, 0) | {E: 2, N: 1}


def test_an_endpoint_that_goes_and_comes_leaves_the_store_as_it_was(cluster: Cluster) -> None:
    ports = (HTTP, Port("dns", "UDP", 53))
    full = EndpointSlice("a", "x", "web", "IPv4", (Subset(ports, (Endpoint(("10.0.0.1",)), Endpoint(("10.0.0.2",)))),))
    cluster.step(events(HEADLESS), events(full))
    before = everything(cluster.store)
    cluster.step(events(msgspec.structs.replace(full, subsets=(Subset(ports, (Endpoint(("10.0.0.2",)),)),))))
    cluster.step(events(full))
    assert everything(cluster.store) == before
