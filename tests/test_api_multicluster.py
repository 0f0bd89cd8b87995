"""Clusterset zones, asked of a running server: ServiceImports and slices of two clusters, from an API server and files.

Names are those of the Multi-Cluster Services API's DNS specification; E is an endpoint's name, as in a cluster's zone.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest

from tests.support import procs
from tests.support.apiserver import ApiServer
from tests.support.ask import ask, records, shows_within
from tests.support.objects import Object, endpoint, endpoint_slice, namespace, service, service_import
from tests.support.server import API_COREFILE, COREFILE, Server

OWN, SET = "shop.svc.cluster.local", "shop.svc.clusterset.local"
SERVICE_NAME, SOURCE_CLUSTER = "multicluster.kubernetes.io/service-name", "multicluster.kubernetes.io/source-cluster"
ZONES = "cluster.local clusterset.local"
MULTICLUSTER = "multicluster clusterset.local"
SOON = 2.0
"""Seconds within which a change is answered."""
ENTRY = """
from kdns.cli import app
from kdns.cluster import watch
watch.Reflector.__init__.__kwdefaults__["pace"] = watch.Pace(absent=3.0)
app(prog_name="kdns")
"""
"""`kdns` that looks for a kind that the API server does not know every 3 s (for users 15 s), and believes after as long
that what was known of it is gone."""
LOOK = 3.0 * 1.2
"""Seconds within which a resource is found that the API server did not have before."""
TARGETS = (("http", 8080), ("dns", 5353, "UDP"))


def imported(name: str, cluster: str, *endpoints: Object, suffix: str = "") -> Object:
    """A slice of a ServiceImport whose endpoints are in a cluster."""
    family = "IPv6" if ":" in endpoints[0]["addresses"][0] else "IPv4"
    return endpoint_slice(
        name,
        endpoints,
        "shop",
        suffix=f"{cluster}{suffix}",
        ports=TARGETS,
        address_type=family,
        labels={SOURCE_CLUSTER: cluster},
        service_label=SERVICE_NAME,
    )


WEB = service_import("web", "shop", ips=["10.112.0.1", "fd00:112::1"], ports=(("http", 80), ("", 9000)))
DB = service_import("db", "shop", ips=(), ports=(("http", 80),))
DB_EAST = imported("db", "east", endpoint("10.8.1.1", hostname="db-0"), endpoint("10.8.1.2"))
DB_WEST = imported("db", "west", endpoint("10.9.1.1", hostname="db-0"), endpoint("10.9.1.3", ready=False))
CLUSTER = [
    namespace("shop"),
    WEB,
    imported("web", "east", endpoint("10.8.0.1", hostname="web-0")),
    imported("web", "west", endpoint("10.9.0.1")),
    DB,
    DB_EAST,
    imported("db", "east", endpoint("2001:db8:8::1", hostname="db-0"), suffix="-6"),
    DB_WEST,
    # Of this cluster: one has the name of an import, the other is none.
    service("web", "shop", ips=["10.96.0.1"]),
    endpoint_slice("web", [endpoint("10.1.0.1")], "shop"),
    service("inner", "shop", ips=["10.96.0.2"]),
    endpoint_slice("inner", [endpoint("10.1.0.2", hostname="in")], "shop"),
]


class Source:
    """Where the objects are, and how they change."""

    def __init__(self, server: Server, api: ApiServer | None) -> None:
        self.server = server
        self._api = api
        self._items = {_key(item): item for item in CLUSTER}

    def apply(self, *items: Object) -> None:
        self._items |= {_key(item): item for item in items}
        if self._api is not None:
            self._api.apply(*items)
        else:
            self.server.write_objects(self._items.values())

    def delete(self, *items: Object) -> None:
        for item in items:
            del self._items[_key(item)]
        if self._api is not None:
            self._api.delete(*items)
        else:
            self.server.write_objects(self._items.values())

    def shows(self, name: str, rdtype: str, *rdatas: str) -> None:
        """Wait until a name has these records; without any, until it does not exist."""
        rcode = "NOERROR" if rdatas else "NXDOMAIN"
        shows_within(self.server, SOON, name, rdtype, (rcode, records(name, rdtype, rdatas)))


def _key(item: Object) -> tuple[str, str]:
    return item["kind"], item["metadata"]["name"]


def with_zones(corefile: str) -> str:
    return corefile.replace("kubernetes cluster.local", f"kubernetes {ZONES}")


@dataclass(frozen=True, slots=True)
class Late:
    """A server that was started before the API server had ServiceImports. installed: when it got them."""

    api: ApiServer
    server: Server
    before: dict[str, str]
    installed: float


LATE = [f"web.{SET}", "shop.svc.clusterset.local", f"inner.{OWN}", f"in.inner.{OWN}"]


@pytest.fixture(scope="module", autouse=True)
def late(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Late]:
    """Started first, so that the other tests fill the time until it looks for the resource again."""
    folder = tmp_path_factory.mktemp("late")
    with ApiServer(folder / "api") as api:
        api.load(item for item in CLUSTER if item["kind"] != "ServiceImport")
        options = f"kubeconfig {api.kubeconfig(folder / 'kubeconfig')}\n{MULTICLUSTER}"
        with Server(folder / "kdns", corefile=with_zones(API_COREFILE), kubernetes=options, program=ENTRY) as server:
            before = {name: ask(server, name).rcode for name in LATE}
            api.install()
            api.create(WEB, DB)
            yield Late(api, server, before, time.monotonic())


@pytest.fixture(scope="module", params=["api", "manifests"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "manifests":
        with Server(folder, CLUSTER, corefile=with_zones(COREFILE), kubernetes=MULTICLUSTER) as server:
            yield Source(server, None)
        return
    with ApiServer(folder / "api") as api:
        api.install()
        api.load(CLUSTER)
        options = f"kubeconfig {api.kubeconfig(folder / 'kubeconfig')}\n{MULTICLUSTER}"
        with Server(folder / "kdns", corefile=with_zones(API_COREFILE), kubernetes=options) as server:
            yield Source(server, api)


Answers = Callable[..., None]


@pytest.fixture
def answers(source: Source) -> Answers:
    """answers(NAME, TYPE, RDATA...): that is the answer; without rdatas the name does not exist."""

    def check(name: str, rdtype: str, *rdatas: str, additional: Sequence[str] = ()) -> None:
        found = ask(source.server, name, rdtype)
        assert (found.rcode, found.answer) == ("NOERROR" if rdatas else "NXDOMAIN", records(name, rdtype, rdatas))
        assert found.additional == sorted(additional)
        assert "aa" in found.flags

    return check


def reverse(address: str) -> str:
    return ipaddress.ip_address(address).reverse_pointer


def test_a_cluster_set_ip_has_its_addresses_and_ports(answers: Answers) -> None:
    answers(f"web.{SET}", "A", "10.112.0.1")
    answers(f"web.{SET}", "AAAA", "fd00:112::1")
    both = [f"web.{SET}. A 10.112.0.1", f"web.{SET}. AAAA fd00:112::1"]
    answers(f"_http._tcp.web.{SET}", "SRV", f"0 100 80 web.{SET}.", additional=both)
    answers(f"web.{SET}", "SRV", f"0 50 80 web.{SET}.", f"0 50 9000 web.{SET}.", additional=both)


def test_endpoints_of_a_cluster_set_ip_have_names_with_their_cluster(answers: Answers) -> None:
    answers(f"web-0.east.web.{SET}", "A", "10.8.0.1")
    answers(f"10-9-0-1.west.web.{SET}", "A", "10.9.0.1")
    for name in ("web-0.west", "10-9-0-1.east", "web-0", "10-9-0-1"):
        answers(f"{name}.web.{SET}", "A")


def test_a_headless_import_has_the_ready_endpoints_of_all_clusters(answers: Answers) -> None:
    answers(f"db.{SET}", "A", "10.8.1.1", "10.8.1.2", "10.9.1.1")
    answers(f"db.{SET}", "AAAA", "2001:db8:8::1")
    answers(f"db-0.east.db.{SET}", "A", "10.8.1.1")
    answers(f"db-0.east.db.{SET}", "AAAA", "2001:db8:8::1")
    answers(f"db-0.west.db.{SET}", "A", "10.9.1.1")
    answers(f"10-8-1-2.east.db.{SET}", "A", "10.8.1.2")
    answers(f"10-9-1-3.west.db.{SET}", "A")
    answers(f"db-0.db.{SET}", "A")


def test_srv_records_of_a_headless_import_point_to_endpoints_in_their_clusters(answers: Answers) -> None:
    hosts = [f"{name}.db.{SET}." for name in ("db-0.east", "10-8-1-2.east", "db-0.west")]
    additional = [
        f"{hosts[0]} A 10.8.1.1",
        f"{hosts[0]} AAAA 2001:db8:8::1",
        f"{hosts[1]} A 10.8.1.2",
        f"{hosts[2]} A 10.9.1.1",
    ]
    answers(f"_http._tcp.db.{SET}", "SRV", *(f"0 33 8080 {host}" for host in hosts), additional=additional)
    answers(f"_dns._udp.db.{SET}", "SRV", *(f"0 33 5353 {host}" for host in hosts), additional=additional)
    every = [f"0 16 {port} {host}" for host in hosts for port in (8080, 5353)]
    answers(f"db.{SET}", "SRV", *every, additional=additional)


@pytest.mark.parametrize("name", [f"east.db.{SET}", f"_tcp.web.{SET}", SET, "svc.clusterset.local"])
def test_names_between_exist_without_records(source: Source, name: str) -> None:
    found = ask(source.server, name)
    assert (found.rcode, found.answer) == ("NOERROR", [])
    assert [line.split()[0:2] for line in found.authority] == [["clusterset.local.", "SOA"]]


def test_a_clusterset_zone_has_an_apex_of_its_own(source: Source, answers: Answers) -> None:
    soa, ns = (ask(source.server, "clusterset.local", rdtype).answer for rdtype in ("SOA", "NS"))
    assert soa[0].startswith("clusterset.local. SOA ns.dns.clusterset.local. hostmaster.clusterset.local. ")
    assert ns == ["clusterset.local. NS ns.dns.clusterset.local."]
    answers("dns-version.clusterset.local", "TXT", '"1.1.0"')


def test_services_that_are_not_imported_are_not_in_the_clusterset(answers: Answers) -> None:
    answers(f"inner.{OWN}", "A", "10.96.0.2")
    answers(f"in.inner.{OWN}", "A", "10.1.0.2")
    for name in (f"inner.{SET}", f"in.inner.{SET}", f"_http._tcp.inner.{SET}", f"10-1-0-1.web.{SET}"):
        answers(name, "A")


def test_imports_are_not_in_the_zone_of_the_cluster(answers: Answers) -> None:
    answers(f"web.{OWN}", "A", "10.96.0.1")
    answers(f"10-1-0-1.web.{OWN}", "A", "10.1.0.1")
    for name in (f"db.{OWN}", f"db-0.east.db.{OWN}", f"web-0.east.web.{OWN}", f"web-0.web.{OWN}", f"east.web.{OWN}"):
        answers(name, "A")


def test_no_ptr_record_points_into_the_clusterset(answers: Answers) -> None:
    for address in ("10.112.0.1", "fd00:112::1", "10.8.0.1", "10.9.0.1", "10.8.1.1", "2001:db8:8::1"):
        answers(reverse(address), "PTR")
    answers(reverse("10.96.0.1"), "PTR", f"web.{OWN}.")
    answers(reverse("10.1.0.1"), "PTR", f"10-1-0-1.web.{OWN}.")


def test_an_import_and_its_slices_come_and_go_in_any_order(source: Source) -> None:
    late, east = service_import("late", "shop", ips=()), imported("late", "east", endpoint("10.8.2.1", hostname="a"))
    west = imported("late", "west", endpoint("10.9.2.1"))
    source.apply(east)
    source.apply(late)
    source.shows(f"late.{SET}", "A", "10.8.2.1")
    source.apply(west)
    source.shows(f"late.{SET}", "A", "10.8.2.1", "10.9.2.1")
    source.delete(east)
    source.shows(f"late.{SET}", "A", "10.9.2.1")
    source.shows(f"a.east.late.{SET}", "A")
    source.delete(late)
    source.shows(f"late.{SET}", "A")
    source.shows(f"10-9-2-1.west.late.{SET}", "A")
    source.apply(late)
    source.shows(f"late.{SET}", "A", "10.9.2.1")
    source.delete(west, late)
    source.shows(f"late.{SET}", "A")


def test_an_import_changes_its_type_and_its_addresses(source: Source) -> None:
    source.apply(service_import("web", "shop", ips=["10.112.0.7"]))
    source.shows(f"web.{SET}", "A", "10.112.0.7")
    source.shows(f"_http._tcp.web.{SET}", "SRV", f"0 100 80 web.{SET}.")
    source.apply(service_import("web", "shop", ips=()))
    source.shows(f"web.{SET}", "A", "10.8.0.1", "10.9.0.1")
    source.shows(
        f"_http._tcp.web.{SET}", "SRV", f"0 50 8080 web-0.east.web.{SET}.", f"0 50 8080 10-9-0-1.west.web.{SET}."
    )
    source.apply(WEB)
    source.shows(f"web.{SET}", "A", "10.112.0.1")
    assert ask(source.server, f"web.{OWN}").rdata == ["10.96.0.1"]


def test_a_slice_is_said_to_be_in_another_cluster_and_of_another_import(source: Source) -> None:
    moved = imported("db", "north", *DB_WEST["endpoints"])
    moved["metadata"]["name"] = DB_WEST["metadata"]["name"]
    source.apply(moved)
    source.shows(f"db-0.north.db.{SET}", "A", "10.9.1.1")
    source.shows(f"db-0.west.db.{SET}", "A")
    other = imported("web", "west", *DB_WEST["endpoints"])
    other["metadata"]["name"] = DB_WEST["metadata"]["name"]
    source.apply(other)
    source.shows(f"db-0.west.web.{SET}", "A", "10.9.1.1")
    source.shows(f"db.{SET}", "A", "10.8.1.1", "10.8.1.2")
    own = endpoint_slice("inner", DB_WEST["endpoints"], "shop")
    own["metadata"]["name"] = DB_WEST["metadata"]["name"]
    source.apply(own)
    source.shows(f"db-0.inner.{OWN}", "A", "10.9.1.1")
    source.shows(f"db-0.west.web.{SET}", "A")
    source.apply(DB_WEST)
    source.shows(f"db.{SET}", "A", "10.8.1.1", "10.8.1.2", "10.9.1.1")
    source.shows(f"db-0.inner.{OWN}", "A")


def test_a_cluster_without_the_resource_is_served_and_the_resource_may_come_and_go(late: Late) -> None:
    assert late.before == dict(zip(LATE, ("NXDOMAIN", "NOERROR", "NOERROR", "NOERROR"), strict=True))
    api, server = late.api, late.server
    left = LOOK - (time.monotonic() - late.installed)
    come = ("NOERROR", records(f"web.{SET}", "A", ["10.112.0.1"]))
    shows_within(server, max(left, 0) + SOON, f"web.{SET}", "A", come)
    assert ask(server, f"db.{SET}").rdata == ["10.8.1.1", "10.8.1.2", "10.9.1.1"]
    assert len(api.requests(path="/serviceimports")) <= 4  # it is looked for now and then, no more
    assert server.ready().status == 200
    api.update(service_import("web", "shop", ips=["10.112.0.7"]))
    shows_within(server, SOON, f"web.{SET}", "A", ("NOERROR", records(f"web.{SET}", "A", ["10.112.0.7"])))
    api.uninstall()
    gone = time.monotonic()
    shows_within(server, LOOK + 4 * SOON, f"web.{SET}", "A", ("NXDOMAIN", []))
    assert time.monotonic() - gone > 2.5  # a moment of not knowing takes nothing away
    for name in (f"web.{SET}", f"db.{SET}", f"db-0.east.db.{SET}"):
        shows_within(server, SOON, name, "A", ("NXDOMAIN", []))
    assert ask(server, f"inner.{OWN}").rdata == ["10.96.0.2"]
    assert server.ready().status == 200
    procs.wait_until(lambda: server.metrics().value("kdns_kubernetes_data_age_seconds") == 0.0, SOON, "current data")
