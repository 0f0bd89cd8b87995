"""Clusterset zones: the names of ServiceImports (Multi-Cluster Services API), and where they stop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kdns.cluster import records
from kdns.cluster.objects import Endpoint, EndpointSlice, Namespace, Object, Pod, Port, Service, ServiceImport, Subset
from kdns.cluster.publisher import Publisher, Settings
from kdns.cluster.records import RecordOptions
from kdns.wire import names, rr
from kdns.zone.changes import Changes
from kdns.zone.store import Store
from tests.support.publishing import contents, exists, lookup
from tests.test_records import lines

SET = names.from_text("clusterset.local.")
OWN = names.from_text("cluster.local.")
NET = names.from_text("10.in-addr.arpa.")
OPTIONS = RecordOptions(SET)
WANTED = Settings((SET, OWN), (NET,), (SET,))
HTTP = Port("http", "TCP", 80)


def imported(*addresses: str, cluster: str = "east", name: str = "x", ready: bool = True) -> EndpointSlice:
    subset = Subset((HTTP,), tuple(Endpoint((address,), ready, zone="zone-a") for address in addresses))
    return EndpointSlice("shop", name, "", "IPv4", (subset,), imported="web", cluster=cluster)


def published(item: ServiceImport, *slices: EndpointSlice, options: RecordOptions = OPTIONS) -> dict[str, list[str]]:
    """The names of a ServiceImport, without svc.clusterset.local."""
    found = records.derive(item, slices, options)
    assert (found.pointers, found.zonal) == ({}, {})
    return {
        names.to_text(name).removesuffix(".svc.clusterset.local."): lines(rrsets)
        for name, rrsets in found.names.items()
    }


CLUSTER_SET_IP = ServiceImport("shop", "web", False, ("10.97.0.1", "fd00::1"), (HTTP, Port("", "UDP", 53)))
HEADLESS = ServiceImport("shop", "web", True, (), (HTTP,))


def test_a_cluster_set_ip() -> None:
    target = "web.shop.svc.clusterset.local."
    assert published(CLUSTER_SET_IP) == {
        "web.shop": ["A 10.97.0.1", "AAAA fd00::1", f"SRV 0 50 53 {target}", f"SRV 0 50 80 {target}"],
        "_http._tcp.web.shop": [f"SRV 0 100 80 {target}"],
    }


def test_a_headless_import_has_the_endpoints_of_all_clusters() -> None:
    found = published(HEADLESS, imported("10.1.0.1"), imported("10.1.0.1", "10.2.0.2", cluster="west", name="y"))
    targets = [
        "SRV 0 33 80 10-1-0-1.east.web.shop.svc.clusterset.local.",
        "SRV 0 33 80 10-1-0-1.west.web.shop.svc.clusterset.local.",
        "SRV 0 33 80 10-2-0-2.west.web.shop.svc.clusterset.local.",
    ]
    assert found == {
        "web.shop": ["A 10.1.0.1", "A 10.2.0.2", *targets],
        "_http._tcp.web.shop": targets,
        "10-1-0-1.east.web.shop": ["A 10.1.0.1"],
        "10-1-0-1.west.web.shop": ["A 10.1.0.1"],
        "10-2-0-2.west.web.shop": ["A 10.2.0.2"],
    }


def test_endpoints_of_a_cluster_set_ip_have_names() -> None:
    assert published(CLUSTER_SET_IP, imported("10.1.0.1"))["10-1-0-1.east.web.shop"] == ["A 10.1.0.1"]


@pytest.mark.parametrize(
    ("cluster", "name", "warnings"),
    [
        ("", "10-1-0-1.web.shop", 0),
        ("East-1", "10-1-0-1.east-1.web.shop", 0),
        ("one.east", "10-1-0-1.one.east.web.shop", 0),
        ("a..b", "10-1-0-1.web.shop", 1),
        ("-", "10-1-0-1.web.shop", 1),
    ],
)
def test_the_cluster_is_in_the_name_of_an_endpoint_if_it_is_told(cluster: str, name: str, warnings: int) -> None:
    told: list[str] = []
    found = records.derive(HEADLESS, [imported("10.1.0.1", cluster=cluster)], OPTIONS, told.append)
    assert names.from_text(f"{name}.svc.clusterset.local.") in found.names
    assert len(told) == warnings
    assert all(text.startswith("ServiceImport shop/web: ") for text in told)


def test_only_imported_slices_of_the_same_namespace_and_name_count() -> None:
    local = EndpointSlice("shop", "z", "web", "IPv4", imported("10.9.0.9").subsets)
    other = EndpointSlice("shop", "z", "", "IPv4", imported("10.9.0.9").subsets, imported="api")
    elsewhere = EndpointSlice("prod", "z", "", "IPv4", imported("10.9.0.9").subsets, imported="web")
    assert published(HEADLESS, local, other, elsewhere) == {}


def test_an_import_without_an_address_yet_does_not_exist() -> None:
    told: list[str] = []
    assert records.derive(ServiceImport("shop", "web", ports=(HTTP,)), (), OPTIONS, told.append).names == {}
    assert told == ["ServiceImport shop/web: it has no clusterIP, not published; accepted: Headless, addresses"]


def test_endpoints_that_are_not_ready_do_not_count() -> None:
    assert published(HEADLESS, imported("10.1.0.1", ready=False)) == {}


def test_an_import_without_endpoints_can_be_ignored() -> None:
    options = replace(OPTIONS, ignore_empty_service=True)
    assert published(CLUSTER_SET_IP, imported("10.1.0.1", ready=False), options=options) == {}
    assert "web.shop" in published(CLUSTER_SET_IP, imported("10.1.0.1"), options=options)


def test_there_are_no_names_of_topology_zones() -> None:
    assert published(HEADLESS, imported("10.1.0.1"), options=replace(OPTIONS, zonal=True))


# In the store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path, Changes.create(), pytest.fail)
    yield opened
    opened.close()


def owners(store: Store, zone: bytes) -> set[str]:
    return {names.to_text(name).removesuffix(names.to_text(zone)) for origin, name in contents(store) if origin == zone}


APEX = {"", "ns.dns.", "dns-version.", "svc.", "pod."}
"""Less ns.dns where there is no address for it."""


def test_each_zone_has_its_own_services(store: Store) -> None:
    publisher = Publisher(store, "main", WANTED)
    service = Service("shop", "api", cluster_ips=("10.96.0.1",))
    local = EndpointSlice("shop", "l", "api", "IPv4", (Subset((), (Endpoint(("10.8.0.1",)),)),))
    found: list[Object] = [Namespace("shop"), service, local, CLUSTER_SET_IP, imported("10.1.0.1")]
    publisher.replace(found)
    assert owners(store, OWN) == APEX - {"ns.dns."} | {"shop.svc.", "api.shop.svc.", "10-8-0-1.api.shop.svc."}
    assert owners(store, SET) == APEX - {"ns.dns."} | {
        "shop.svc.",
        "web.shop.svc.",
        "_http._tcp.web.shop.svc.",
        "10-1-0-1.east.web.shop.svc.",
    }


def test_pointers_go_to_the_first_zone_of_the_own_cluster_and_to_no_import(store: Store) -> None:
    publisher = Publisher(store, "main", WANTED)
    publisher.replace([Service("shop", "api", cluster_ips=("10.96.0.1",)), CLUSTER_SET_IP, imported("10.1.0.1")])
    assert lookup(store, "1.0.96.10.in-addr.arpa.", rr.PTR) == ["api.shop.svc.cluster.local."]
    assert not exists(store, "1.0.97.10.in-addr.arpa.")
    assert not exists(store, "1.0.1.10.in-addr.arpa.")


def test_without_a_zone_of_the_own_cluster_there_are_no_pointers(store: Store) -> None:
    publisher = Publisher(store, "main", replace(WANTED, forward=(SET,)))
    publisher.replace([Service("shop", "api", cluster_ips=("10.96.0.1",))])
    publisher.apply([Service("shop", "db", cluster_ips=("10.96.0.2",))], [])
    assert not exists(store, "96.10.in-addr.arpa.")
    assert owners(store, SET) == APEX - {"ns.dns."} | {"shop.svc."}


def test_an_import_and_its_slices_come_and_go(store: Store) -> None:
    publisher = Publisher(store, "main", WANTED)
    publisher.replace([Namespace("shop")])
    nothing = contents(store)
    both = EndpointSlice("shop", "x", "api", "IPv4", imported("10.1.0.1").subsets, imported="web", cluster="east")
    publisher.apply([both], [])
    assert contents(store) == nothing
    publisher.apply([HEADLESS], [])
    assert lookup(store, "web.shop.svc.clusterset.local.", rr.A) == ["10.1.0.1"]
    publisher.apply([imported("10.1.0.2", cluster="west")], [])
    assert lookup(store, "10-1-0-2.west.web.shop.svc.clusterset.local.", rr.A) == ["10.1.0.2"]
    assert not exists(store, "east.web.shop.svc.clusterset.local.")
    publisher.apply([both, Service("shop", "api", headless=True)], [])
    assert lookup(store, "api.shop.svc.cluster.local.", rr.A) == ["10.1.0.1"], "a slice may have both labels"
    assert lookup(store, "web.shop.svc.clusterset.local.", rr.A) == ["10.1.0.1"]
    publisher.apply([CLUSTER_SET_IP], [both.key, ("Service", "shop", "api")])
    assert lookup(store, "web.shop.svc.clusterset.local.", rr.A) == ["10.97.0.1"]
    publisher.apply([], [CLUSTER_SET_IP.key])
    assert contents(store) == nothing


def test_pods_and_namespaces_are_in_both_zones(store: Store) -> None:
    publisher = Publisher(store, "main", replace(WANTED, records=replace(WANTED.records, pods="verified", zonal=True)))
    publisher.replace([Pod("shop", "p", ("10.5.0.1",)), HEADLESS, imported("10.1.0.1")])
    for zone in ("cluster.local.", "clusterset.local."):
        assert lookup(store, f"10-5-0-1.shop.pod.{zone}", rr.A) == ["10.5.0.1"]
        assert exists(store, f"shop.svc.{zone}")
    assert not exists(store, "_zone.web.shop.svc.clusterset.local.")


def test_an_import_in_a_namespace_that_is_not_shown_is_hidden(store: Store) -> None:
    publisher = Publisher(store, "main", replace(WANTED, namespaces=frozenset({"prod"})))
    publisher.replace([HEADLESS, imported("10.1.0.1")])
    assert not exists(store, "shop.svc.clusterset.local.")


def test_warnings_are_given_once(store: Store) -> None:
    bad = ServiceImport("shop", "web", False, ("10.97.0.300",))
    other = names.from_text("other.local.")
    publisher = Publisher(store, "main", replace(WANTED, forward=(OWN, SET, other), multicluster=(SET, other)))
    warnings = publisher.replace([bad, Service("shop", "web", cluster_ips=("10.96.0.300",))]).warnings
    assert sorted(warnings) == [
        "Service shop/web: '10.96.0.300' is no IP address, not published",
        "ServiceImport shop/web: '10.97.0.300' is no IP address, not published",
    ]
