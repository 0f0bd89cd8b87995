"""Objects, settings and what a publisher makes of them, for tests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from hypothesis import strategies as st
from msgspec import structs

from kdns.cluster.inventory import KINDS
from kdns.cluster.objects import Endpoint, EndpointSlice, Namespace, Object, Pod, Port, Service, ServiceImport, Subset
from kdns.cluster.publisher import External, Publisher, Settings
from kdns.cluster.records import ExternalOptions, RecordOptions
from kdns.corefile import values
from kdns.wire import names, rr
from kdns.wire.rrset import RRset
from kdns.zone.sources import whose
from kdns.zone.store import Store, Transaction
from kdns.zone.values import Records

Z, Z2 = names.from_text("cluster.local."), names.from_text("example.org.")
NET = names.from_text("10.in-addr.arpa.")
SUBNET = names.from_text("0.0.10.in-addr.arpa.")
ONE = names.from_text("1.0.0.10.in-addr.arpa.")
IPV6 = names.from_text("ip6.arpa.")
OUTSIDE, OUTSIDE2 = names.from_text("outside.test."), names.from_text("prod.test.")
DB8 = names.from_text("8.b.d.0.1.0.0.2.ip6.arpa.")
OUTSIDE_NET = names.from_text("100.51.198.in-addr.arpa.")
PLAIN = Settings((Z,), (NET,))
FULL = Settings(
    (Z, Z2),
    (NET, SUBNET, ONE, IPV6),
    namespace_labels=values.selector("hidden notin (yes, true)").matches,
    labels=values.selector("!hidden").matches,
    listens=("10.0.0.1", "2001:db8::1"),
    records=RecordOptions(names.ROOT, endpoint_pod_names=True, ignore_empty_service=True, zonal=True, pods="verified"),
    external=External((OUTSIDE, OUTSIDE2), (OUTSIDE_NET, DB8), ExternalOptions(30, "a-b", headless=True)),
    clients=True,
)
NO_ENDPOINTS = replace(FULL.records, endpoints=False, zonal=False)
HTTP = Port("http", "TCP", 80)

Contents = dict[tuple[bytes, bytes], Records]
"""Entries by origin and name, without serials."""


def empty(store: Store) -> None:
    def action(txn: Transaction) -> None:
        for source in {zone.source for zone in txn.zones()}:
            txn.drop_source(source)

    store.write(action)


def contents(store: Store, source: str = "main") -> Contents:
    def action(txn: Transaction) -> Contents:
        return {
            (zone.origin, name): tuple(map(_without_serial, found))
            for zone in txn.zones()
            if whose(zone.source) == source
            for name, found in txn.below(zone, zone.origin)
        }

    return store.read(action)


def _without_serial(rrset: RRset) -> RRset:
    if rrset.type != rr.SOA:
        return rrset
    return structs.replace(rrset, rdatas=tuple(rdata[:-20] + bytes(4) + rdata[-16:] for rdata in rrset.rdatas))


def anew(store: Store, wanted: Settings, items: Iterable[Object]) -> Contents:
    """What a new publisher makes of the objects."""
    return everything_anew(store, wanted, items)[0]


Everything = tuple[Contents, dict[tuple[str, str], bytes], set[bytes]]


def everything(store: Store, source: str = "main") -> Everything:
    """The entries, the objects with their indexes, and what counts them and tells which Services are this server."""

    def action(txn: Transaction) -> tuple[dict[tuple[str, str], bytes], set[bytes]]:
        kinds = (*KINDS, "slices", "imports", "addresses")
        rows = {(kind, key): data for kind in kinds for key, data in txn.objects(source, kind)}
        return rows, {txn.get_meta(f"{key} {source}") or b"" for key in ("counts", "own services")}

    return contents(store, source), *store.read(action)


def everything_anew(store: Store, wanted: Settings, items: Iterable[Object]) -> Everything:
    """All that a new publisher makes of the objects."""
    Publisher(store, "anew", wanted).replace(items)
    found = everything(store, "anew")

    def drop(txn: Transaction) -> None:
        for name in {zone.source for zone in txn.zones() if whose(zone.source) == "anew"}:
            txn.drop_source(name)

    store.write(drop)
    return found


def lookup(store: Store, text: str, rtype: int) -> list[str]:
    """The records of a name, addresses and names as text; the first forward zone that has it."""
    name = names.from_text(text)
    for (_, owner), rrsets in sorted(contents(store).items()):
        if owner == name:
            rdatas = [rdata for rrset in rrsets if rrset.type == rtype for rdata in rrset.rdatas]
            return [rr.address_text(rdata) if rtype in (rr.A, rr.AAAA) else names.to_text(rdata) for rdata in rdatas]
    return []


def exists(store: Store, text: str) -> bool:
    return any(names.is_subdomain(owner, names.from_text(text)) for _, owner in contents(store))


def piece(
    service: str, *addresses: str, name: str = "x", namespace: str = "a", ready: bool = True, legacy: bool = False
) -> EndpointSlice:
    endpoints = tuple(Endpoint((address,), ready) for address in addresses)
    return EndpointSlice(namespace, name, service, "IPv4", (Subset((HTTP,), endpoints),), legacy)


# Objects of any kind

EXTERNALS = ("198.51.100.1", "198.51.100.2", "2001:db8::1", "lb.example.net", "LB2.example.net.", "no address")
CLUSTER_IPS = ("10.96.0.1", "10.96.0.2", "10.0.0.1", "2001:db8::1")
ENDPOINT_IPS = ("10.0.0.1", "10.0.0.2", "10.0.1.1", "2001:db8::1", "no address")
HOSTILE = ["x" * 63, "x" * 300, "a/b", "a\0b", "a\nb", "-a", "a.b", "", "é", "Web", "S", "_zone", "svc"]


def mostly(*usual: str) -> st.SearchStrategy[str]:
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
outside = st.lists(st.sampled_from(EXTERNALS), max_size=2, unique=True).map(tuple)
services = st.builds(
    Service,
    namespaces,
    mostly("s", "s-2", "t"),
    ports=ports,
    labels=labels,
    publish_not_ready=st.booleans(),
    cluster_ips=st.lists(st.sampled_from(CLUSTER_IPS), max_size=2, unique=True).map(tuple),
    external=outside,
) | st.builds(Service, namespaces, service_names, headless=st.just(True), ports=ports, labels=labels, external=outside)
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
    mostly("x", "y"),
    mostly("s", "s-2", "t"),
    st.sampled_from(["IPv4", "IPv6", "FQDN"]),
    subsets,
)
imported = st.builds(
    EndpointSlice,
    namespaces,
    st.sampled_from(["x", "y"]),
    st.sampled_from(["", "", "s"]),
    subsets=subsets,
    imported=mostly("s", "s-2", "t"),
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
    mostly("a", "a-b", "b"),
    mostly("p", "q"),
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
    | st.builds(Namespace, mostly("a", "a-b", "b"), labels)
)
objects_of_names = st.lists(items, max_size=8)


def storable(item: Object) -> bool:
    """What the strategies above make and the publisher takes."""
    texts = [*item.key[1:], *([item.service, item.imported] if isinstance(item, EndpointSlice) else [])]
    if any(char in text for text in texts for char in "/\0\n") or any(text != text.lower() for text in item.key[1:]):
        return False
    return not any(len(text) > 63 for text in texts)
