"""What Services have for clients outside of the cluster: kept with them, and made into records of other zones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kdns.cluster import objects, records
from kdns.cluster.delivery import Delivery
from kdns.cluster.objects import Endpoint, EndpointSlice, Pod, Port, Service, Subset
from kdns.cluster.publisher import External, Publisher, Settings
from kdns.cluster.records import ExternalOptions, RecordOptions
from kdns.wire import names, rr
from kdns.zone import clients
from kdns.zone.store import EXPIRED, SYNCED, UNSYNCED, Store
from tests.support.publishing import HTTP, OUTSIDE, OUTSIDE_NET, PLAIN, Z, contents, lookup, piece
from tests.test_records import lines

S, E, N = "Service", "EndpointSlice", "Namespace"
SCOPES = {S: "services", E: "slices", N: "namespaces"}
WANTED = replace(PLAIN, external=External((OUTSIDE,), (OUTSIDE_NET,), ExternalOptions()))
BALANCED = Service("a", "web", cluster_ips=("10.96.0.1",), ports=(HTTP,), external=("198.51.100.1",))
WITHOUT = msgspec.structs.replace(BALANCED, external=())
NAME = "web.a.outside.test."
CLUSTER = RecordOptions(Z)
OPTIONS = ExternalOptions()


# Objects


def manifest(spec: dict[str, Any], status: Any = None) -> bytes:
    found = {"metadata": {"name": "web", "namespace": "a"}, "spec": spec}
    return json.dumps(found if status is None else found | {"status": status}).encode()


def balanced(*ingress: dict[str, str]) -> dict[str, Any]:
    return {"loadBalancer": {"ingress": list(ingress)}}


@pytest.mark.parametrize(
    ("spec", "status", "external"),
    [
        ({}, None, ()),
        ({"externalIPs": None}, {"loadBalancer": None}, ()),
        ({}, {"loadBalancer": {}}, ()),
        ({"externalIPs": ["192.0.2.1", "192.0.2.2"]}, None, ("192.0.2.1", "192.0.2.2")),
        ({}, balanced({"ip": "192.0.2.1"}, {"hostname": "lb.example"}), ("192.0.2.1", "lb.example")),
        ({}, balanced({"ip": "192.0.2.1", "hostname": "lb.example"}, {}), ("192.0.2.1",)),
        ({"externalIPs": ["192.0.2.1"]}, balanced({"ip": "192.0.2.1"}), ("192.0.2.1",)),
    ],
)
def test_a_service_has_its_external_ips_and_what_its_load_balancer_has(
    spec: dict[str, Any], status: Any, external: tuple[str, ...]
) -> None:
    found = objects.read(S, manifest(spec, status))
    assert isinstance(found.item, Service)
    assert found.item.external == external
    assert objects.unpack(found.packed) == found.item


class Former(msgspec.Struct, frozen=True, array_like=True, tag="S", tag_field="tag"):
    """A Service as it was kept before it had `external`."""

    namespace: str
    name: str
    type: str = "ClusterIP"
    headless: bool = False
    cluster_ips: tuple[str, ...] = ()
    external_name: str = ""
    ports: tuple[Port, ...] = ()
    publish_not_ready: bool = False
    labels: dict[str, str] = {}


def test_rows_are_those_of_before_unless_there_is_something_external() -> None:
    former = Former("a", "web", cluster_ips=("10.96.0.1",), ports=(HTTP,))
    assert objects.pack(WITHOUT) == msgspec.msgpack.encode(former)
    assert objects.unpack(msgspec.msgpack.encode(former)) == WITHOUT
    assert msgspec.msgpack.decode(objects.pack(BALANCED), type=Former) == former
    assert objects.unpack(objects.pack(BALANCED)) == BALANCED


# Records


def derived(
    service: Service,
    *slices: EndpointSlice,
    options: ExternalOptions = OPTIONS,
    cluster: RecordOptions = CLUSTER,
    warnings: list[str] | None = None,
) -> dict[str, list[str]]:
    """The names of a Service, without outside.test."""
    said: list[str] = []
    found = records.derive_external(service, slices, OUTSIDE, options, cluster, said.append)
    if warnings is not None:
        warnings += said
    return {names.to_text(name).removesuffix(".outside.test."): lines(rrsets) for name, rrsets in found.names.items()}


def test_addresses_and_ports() -> None:
    service = Service("a", "web", ports=(HTTP, Port("", "UDP", 53)), external=("192.0.2.2", "2001:db8::1", "192.0.2.1"))
    assert derived(service) == {
        "web.a": ["A 192.0.2.1", "A 192.0.2.2", "AAAA 2001:db8::1", f"SRV 0 50 53 {NAME}", f"SRV 0 50 80 {NAME}"],
        "_http._tcp.web.a": [f"SRV 0 100 80 {NAME}"],
    }
    assert derived(Service("a", "web", external=("192.0.2.1",))) == {"web.a": ["A 192.0.2.1"]}
    assert derived(WITHOUT) == {}


def test_a_host_name_is_an_alias_and_nothing_else() -> None:
    warnings: list[str] = []
    service = Service("a", "web", ports=(HTTP,), external=("LB.example.",))
    assert derived(service, warnings=warnings) == {
        "web.a": ["CNAME lb.example."],
        "_http._tcp.web.a": ["SRV 0 100 80 lb.example."],
    }
    assert warnings == []
    both = msgspec.structs.replace(service, external=("lb.example", "192.0.2.1"))
    assert derived(both, warnings=warnings)["web.a"] == [
        "A 192.0.2.1",
        "SRV 0 50 80 lb.example.",
        f"SRV 0 50 80 {NAME}",
    ]
    several = msgspec.structs.replace(service, external=("lb.example", "lb2.example"))
    assert derived(several, warnings=warnings)["web.a"] == ["CNAME lb.example."]
    which = "of its addresses and host names outside of the cluster, its name there has"
    assert warnings == [f"Service a/web: {which} addresses", f"Service a/web: {which} only lb.example."]


def test_what_no_record_can_have_is_left_out() -> None:
    warnings: list[str] = []
    assert derived(Service("a", "web", ports=(HTTP,), external=("no name",)), warnings=warnings) == {}
    assert warnings == ["Service a/web: 'no name' is neither an IP address nor a domain name, not published"]
    assert derived(Service("A" * 64, "web", external=("192.0.2.1",))) == {}


def test_the_namespace_of_the_zones_own_names_is_not_published() -> None:
    warnings: list[str] = []
    service = Service("dns", "web", external=("192.0.2.1",))
    assert derived(service, warnings=warnings) == {}
    assert "accepted: another one in `apex`" in warnings[0]
    assert derived(service, options=ExternalOptions(apex="ns"))
    assert records.external_namespace("dns", OUTSIDE, ExternalOptions()) is None
    assert records.external_namespace("a", OUTSIDE, ExternalOptions()) == names.from_text("a.outside.test.")


def endpoints(service: str) -> EndpointSlice:
    found = (Endpoint(("10.1.0.1",), True, "h-0", "p"), Endpoint(("10.1.0.2",), True, "", "q"))
    return EndpointSlice("a", "x", service, "IPv4", (Subset((HTTP,), (*found, Endpoint(("10.1.0.3",), False))),))


def test_endpoints_are_published_with_headless() -> None:
    headless = Service("a", "db", headless=True, ports=(HTTP,))
    options = ExternalOptions(headless=True)
    targets = [f"SRV 0 50 80 {name}.db.a.outside.test." for name in ("h-0", "10-1-0-2")]
    ports = {
        name: [f"A {ip}", f"SRV 0 100 80 {name}.outside.test."]
        for name, ip in (("10-1-0-2.db.a", "10.1.0.2"), ("h-0.db.a", "10.1.0.1"))
    }
    found = derived(headless, endpoints("db"), options=options)
    assert {name: sorted(texts) for name, texts in found.items()} == {
        "db.a": sorted(["A 10.1.0.1", "A 10.1.0.2", *targets]),
        "_http._tcp.db.a": sorted(targets),
        **ports,
    }
    assert derived(headless, endpoints("db")) == {}
    usual = Service("a", "db", cluster_ips=("10.96.0.1",), ports=(HTTP,))
    assert derived(usual, endpoints("db"), options=options) == ports
    external = msgspec.structs.replace(headless, external=("192.0.2.1",))
    assert list(derived(external, endpoints("db"), options=options)) == ["_http._tcp.db.a", "db.a"]
    named = replace(CLUSTER, endpoint_pod_names=True)
    assert "q.db.a" in derived(headless, endpoints("db"), options=options, cluster=named)
    assert derived(headless, endpoints("db"), options=options, cluster=replace(CLUSTER, endpoints=False)) == {}


def test_the_apex() -> None:
    found = records.external_apex(OUTSIDE, 7, ExternalOptions(30, "own"), ["192.0.2.53", "2001:db8::53"])
    assert {names.to_text(name): lines(rrsets) for name, rrsets in found.items()} == {
        "outside.test.": [
            "SOA ns1.own.outside.test. hostmaster.own.outside.test. 7 7200 1800 86400 30",
            "NS ns1.own.outside.test.",
        ],
        "ns1.own.outside.test.": ["A 192.0.2.53", "AAAA 2001:db8::53"],
    }
    assert {rrset.ttl for rrsets in found.values() for rrset in rrsets} == {30}


# What a publisher makes of them; that changes lead where a start leads is in test_publisher.py


def test_pointers_are_to_every_service_that_has_the_address(store: Store) -> None:
    publisher = Publisher(store, "main", WANTED)
    other = Service("a", "other", external=("198.51.100.1", "198.51.100.2"))
    publisher.replace([BALANCED, other])
    first, second = (names.to_text(records.reverse_owner(rr.address(f"198.51.100.{n}"))) for n in (1, 2))
    assert lookup(store, first, rr.PTR) == [NAME, "other.a.outside.test."]
    publisher.apply([msgspec.structs.replace(other, external=("198.51.100.2",))], [])
    assert (lookup(store, first, rr.PTR), lookup(store, second, rr.PTR)) == ([NAME], ["other.a.outside.test."])
    publisher.apply([], [other.key])
    assert (lookup(store, first, rr.PTR), lookup(store, second, rr.PTR)) == ([NAME], [])


def test_the_name_server_has_the_addresses_of_services_that_select_this_server(store: Store) -> None:
    wanted = replace(WANTED, listens=("10.1.0.53",))
    publisher = Publisher(store, "main", wanted)
    publisher.replace([])
    assert lookup(store, "ns1.dns.outside.test.", rr.A) == ["10.1.0.53"]
    dns = Service("a", "dns", cluster_ips=("10.96.0.10",))
    publisher.apply([dns, piece("dns", "10.1.0.53", "10.1.0.54")], [])
    assert lookup(store, "ns1.dns.outside.test.", rr.A) == []
    publisher.apply([msgspec.structs.replace(dns, external=("198.51.100.53", "lb.example"))], [])
    assert lookup(store, "ns1.dns.outside.test.", rr.A) == ["198.51.100.53"]
    headless = replace(wanted, external=External((OUTSIDE,), (), ExternalOptions(headless=True)))
    publisher = Publisher(store, "main", headless)
    publisher.replace([Service("a", "dns", headless=True), piece("dns", "10.1.0.53", "10.1.0.54")])
    assert lookup(store, "ns1.dns.outside.test.", rr.A) == ["10.1.0.53", "10.1.0.54"]


def complete(kind: str, version: str, *items: objects.Object) -> Delivery:
    rows: dict[str, bytes | None] = {"/".join(item.key[1:]).lstrip("/"): objects.pack(item) for item in items}
    return Delivery(kind, version=version, complete=True, rows=rows)


def states(store: Store, publisher: Publisher) -> tuple[set[int], set[int]]:
    """Of the zones of the cluster, and of those for clients outside of it."""

    def of(numbers: list[int]) -> set[int]:
        return store.read(lambda txn: {txn.zone(number).state for number in numbers})

    inside, outside = publisher.zones.values(), publisher.external.values()
    return of([zone.number for zone in inside]), of([zone.number for zone in outside])


def delivered(store: Store) -> Publisher:
    publisher = Publisher(store, "main", WANTED)
    assert publisher.begin(SCOPES, strict=True) == {}
    first = [complete(S, "5", BALANCED), complete(E, "6"), complete(N, "7")]
    publisher.deliver(first, complete=True, current=True)
    return publisher


def test_services_that_were_kept_without_are_listed_again_and_nothing_inside_waits(store: Store) -> None:
    former = Publisher(store, "main", PLAIN)
    former.begin(SCOPES, strict=True)
    former.deliver([complete(S, "5", WITHOUT), complete(E, "6"), complete(N, "7")], complete=True, current=True)
    store.write(lambda txn: txn.delete_meta("externals main"))  # as a kdns leaves it that knows nothing of them
    publisher = Publisher(store, "main", WANTED)
    assert publisher.begin(SCOPES, strict=True) == {E: "6", N: "7"}
    assert states(store, publisher) == ({SYNCED}, {UNSYNCED})
    assert publisher.synced
    assert lookup(store, NAME, rr.A) == []
    publisher.deliver([complete(S, "9", BALANCED)], complete=True, current=False)
    assert states(store, publisher) == ({SYNCED}, {SYNCED})
    assert lookup(store, NAME, rr.A) == ["198.51.100.1"]
    assert Publisher(store, "main", WANTED).begin(SCOPES, strict=True) == {S: "9", E: "6", N: "7"}


def test_some_services_with_all_do_not_make_up_for_those_without(store: Store) -> None:
    former = Publisher(store, "main", PLAIN)
    former.begin(SCOPES, strict=True)
    former.deliver([complete(S, "5", WITHOUT), complete(E, "6"), complete(N, "7")], complete=True, current=True)
    store.write(lambda txn: txn.delete_meta("externals main"))
    publisher = Publisher(store, "main", PLAIN)
    publisher.begin(SCOPES, strict=True)
    publisher.deliver([Delivery(S, version="8")], complete=False, current=True)
    assert Publisher(store, "main", WANTED).begin(SCOPES, strict=True) == {E: "6", N: "7"}


def test_services_that_were_kept_with_all_need_no_list(store: Store) -> None:
    former = Publisher(store, "main", PLAIN)
    former.begin(SCOPES, strict=True)
    former.deliver([complete(S, "5", BALANCED), complete(E, "6"), complete(N, "7")], complete=True, current=True)
    former.deliver([Delivery(S, version="8")], complete=False, current=True)
    publisher = Publisher(store, "main", WANTED)
    assert publisher.begin(SCOPES, strict=True) == {S: "8", E: "6", N: "7"}
    assert states(store, publisher) == ({SYNCED}, {SYNCED})
    assert lookup(store, NAME, rr.A) == ["198.51.100.1"]


def test_what_another_version_went_on_with_is_listed_again(store: Store) -> None:
    delivered(store)
    scope = SCOPES[S]
    store.write(lambda txn: txn.put_meta("version Service main", f"8\n{scope}".encode()))
    publisher = Publisher(store, "main", WANTED)
    assert publisher.begin(SCOPES, strict=True) == {E: "6", N: "7"}
    assert states(store, publisher) == ({SYNCED}, {UNSYNCED})


def test_zones_outside_expire_and_are_revived_with_those_inside(store: Store) -> None:
    publisher = delivered(store)
    publisher.expire()
    assert states(store, publisher) == ({EXPIRED}, {EXPIRED})
    publisher.revive()
    assert states(store, publisher) == ({SYNCED}, {SYNCED})


def test_without_the_directive_its_zones_go(store: Store) -> None:
    delivered(store)
    Publisher(store, "main", PLAIN)
    assert {zone.source for zone in store.read(lambda txn: txn.zones())} == {"main"}


@pytest.mark.parametrize("wanted", [WANTED, replace(PLAIN, clients=True)], ids=["external", "clients"])
def test_zones_that_come_again_are_filled_whatever_was_published_meanwhile(store: Store, wanted: Settings) -> None:
    items: list[objects.Object] = [BALANCED, Pod("a", "p", ("10.1.0.1",))]
    Publisher(store, "main", wanted).replace(items)
    before = contents(store)
    Publisher(store, "main", PLAIN)  # ended before it has published anything
    publisher = Publisher(store, "main", wanted)
    publisher.replace(items)
    assert contents(store) == before


# The index of clients


def namespaces(store: Store, publisher: Publisher, address: str) -> set[str]:
    number = publisher.clients
    assert number is not None
    owner = clients.owner(rr.address(address))
    return store.read(lambda txn: clients.namespaces(txn.get(txn.zone(number), owner)))


def test_the_index_has_the_namespaces_of_running_pods(store: Store) -> None:
    publisher = Publisher(store, "main", replace(PLAIN, clients=True))
    publisher.replace([Pod("a", "p", ("10.1.0.1", "fd00::1")), Pod("b", "p", ("10.1.0.2",))])
    assert namespaces(store, publisher, "10.1.0.1") == namespaces(store, publisher, "fd00:0::1") == {"a"}
    publisher.apply([Pod("b", "host", ("10.1.0.1",)), Pod("b", "host-2", ("10.1.0.1",))], [])
    assert namespaces(store, publisher, "10.1.0.1") == {"a", "b"}
    publisher.apply([Pod("a", "p", ("10.1.0.1",), running=False)], [("Pod", "b", "host")])
    assert namespaces(store, publisher, "10.1.0.1") == {"b"}
    assert namespaces(store, publisher, "fd00::1") == set()
    publisher.apply([], [("Pod", "b", "host-2")])
    assert namespaces(store, publisher, "10.1.0.1") == set()


def test_the_index_is_there_only_where_it_is_wanted(store: Store, tmp_path: Path) -> None:
    assert Publisher(store, "main", PLAIN).clients is None
    entries = store.entries
    Publisher(store, "main", PLAIN).replace([Pod("a", "p", ("10.1.0.1",))])
    assert store.entries == entries + 1  # the name of the namespace
