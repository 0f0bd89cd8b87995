"""What look-ups cost: the answers that real clients in a pod get, and every query that they send for them.

The pod and the cluster's DNS are network namespaces, with a ClusterIP between them as kube-proxy makes it. Each test
runs twice: with kdns as the cluster's DNS alone, and with `kdns node` on the pod's node besides, which then sees the
same queries. Both log what they are asked.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import require
from tests.support import procs, stubs
from tests.support.netns import Netns
from tests.support.node import EXTERNAL, EXTERNAL6, IPV4, IPV6, Instance, Topology, ask, resolv_conf
from tests.support.objects import Object, endpoint, endpoint_slice, external_name, namespace, service
from tests.support.server import ROOT, Server
from tests.support.stubs import Stub

Z = "cluster.local"
SEARCH = f"default.svc.{Z}", f"svc.{Z}", Z
LOG = 'log . "asked by {remote} {port} {proto} {name} {type}"'
ASKED = re.compile(r"^\[INFO\] asked by (\S+) (\S+) (\S+) (\S+)\. (\S+)$", re.MULTILINE)
COREFILE = f"""\
.:53 {{
    errors
    {LOG}
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        manifests $manifests
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }}
    forward . /etc/resolv.conf
    cache 30
    loadbalance
}}
"""
WEB, WEB6, OTHER = "10.96.1.1", "fd00:10:96:1::1", "10.96.1.2"
DB = ["10.244.9.1", "10.244.9.2"]
TOOLS = "ip", "knotd", "iptables", "ip6tables", "conntrack", "curl", "dig", "getent", "musl-gcc", "node", "javac"


def objects() -> list[Object]:
    pods = [endpoint(address, hostname=f"db-{number}") for number, address in enumerate(DB)]
    return [
        *(namespace(name) for name in ("default", "other")),
        service("web", ips=(WEB, WEB6)),
        service("web", "other", ips=(OTHER,)),
        service("new", ips=("10.96.1.3",)),
        service("db", ips=(), ports=(("postgres", 5432),)),
        endpoint_slice("db", pods, ports=(("postgres", 5432),)),
        external_name("alias", f"web.other.svc.{Z}"),
        external_name("outside", "api.example.com"),
    ]


@dataclass(frozen=True, slots=True)
class Lookup:
    """A name, its addresses, and how many names are tried for it: those of the search list in turn, then itself, or
    itself first if it has five dots (`ndots:5`); itself alone if it ends with a dot.

    The rest is the number of queries. getaddrinfo: A and AAAA of each. ipv4: A of each. getent_hosts: AAAA of each or,
    if there is none, of all that could be tried, and then A of each. resolve4: A of the name as it is, without the
    search list.
    """

    name: str
    addresses: list[str]
    tries: int
    getaddrinfo: int
    ipv4: int
    getent_hosts: int
    resolve4: int = 1

    def tried(self) -> list[str]:
        """The full names, in their order."""
        name = self.name.lower()  # as the log has it
        if name.endswith("."):
            return [name[:-1]]
        searched = [f"{name}.{suffix}" for suffix in SEARCH]
        return [name, *searched] if name.count(".") >= 5 else [*searched, name]


ALL = [WEB, WEB6]
ABROAD = [EXTERNAL, EXTERNAL6]
LOOKUPS = [
    #                                       names tried, getaddrinfo, ipv4, getent hosts
    Lookup("web", ALL, 1, 2, 1, 1),
    Lookup("web.other", [OTHER], 2, 4, 2, 6),
    Lookup("web.other.svc", [OTHER], 3, 6, 3, 7),
    Lookup(f"web.default.svc.{Z}", ALL, 4, 8, 4, 4),
    Lookup(f"web.default.svc.{Z}.", ALL, 1, 2, 1, 1),
    Lookup("WEB.Default", ALL, 2, 4, 2, 2),
    Lookup("db", DB, 1, 2, 1, 5),  # headless
    Lookup("db-1.db", DB[1:], 1, 2, 1, 5),  # a pod of a StatefulSet
    Lookup(f"db-1.db.default.svc.{Z}", DB[1:], 1, 2, 1, 5),
    Lookup("alias", [OTHER], 1, 2, 1, 2),  # ExternalName, of a Service
    Lookup("outside", ABROAD, 1, 2, 1, 1),  # ExternalName
    Lookup("example.com", ABROAD, 4, 8, 4, 4),
    Lookup("example.com.", ABROAD, 1, 2, 1, 1),
    Lookup("api.example.com", ABROAD, 4, 8, 4, 4),
    Lookup("gone", [], 4, 8, 4, 8),
    Lookup("gone.example.com", [], 4, 8, 4, 8),
    Lookup("gone.example.com.", [], 1, 2, 1, 2),
]
"""What a look-up costs in a pod of the namespace `default`."""

Query = tuple[str, str]
"""A name without its last dot, and a type."""
Found = tuple[list[str], list[Query]]
"""What a client finds, and the queries that it sent."""


def by_getaddrinfo(lookup: Lookup) -> Found:
    """Both types of one name are asked at once, so their order says nothing."""
    queries = [(name, rdtype) for name in lookup.tried()[: lookup.tries] for rdtype in ("A", "AAAA")]
    assert len(queries) == lookup.getaddrinfo
    return lookup.addresses, queries


def by_ipv4(lookup: Lookup) -> Found:
    queries = [(name, "A") for name in lookup.tried()[: lookup.tries]]
    assert len(queries) == lookup.ipv4
    return ipv4(lookup.addresses), queries


def by_getent_hosts(lookup: Lookup) -> Found:
    """An address, of any family, or an alias ends the search; a name that has only addresses of the other does not."""
    if ipv6 := [address for address in lookup.addresses if ":" in address]:
        queries = [(name, "AAAA") for name in lookup.tried()[: lookup.tries]]
    else:
        six = lookup.tries if lookup.name == "alias" else None
        queries = [(name, "AAAA") for name in lookup.tried()[:six]]
        queries += [(name, "A") for name in lookup.tried()[: lookup.tries]]
    assert len(queries) == lookup.getent_hosts
    return ipv6 or lookup.addresses, queries


def by_resolve4(lookup: Lookup) -> Found:
    assert lookup.resolve4 == 1
    name = lookup.name.lower().removesuffix(".")
    return ipv4(lookup.addresses) if name in lookup.tried()[: lookup.tries] else [], [(name, "A")]


def ipv4(addresses: Sequence[str]) -> list[str]:
    return [address for address in addresses if ":" not in address]


@dataclass(frozen=True, slots=True)
class Client:
    """verb: as in tests.support.stubs. costs: which of the columns."""

    stub: str
    verb: str
    costs: Callable[[Lookup], Found]


CLIENTS = {
    "getent ahosts": Client("getent ahosts", "addresses", by_getaddrinfo),
    "getent hosts": Client("getent hosts", "addresses", by_getent_hosts),
    "musl": Client("musl", "addresses", by_getaddrinfo),
    "python getaddrinfo": Client("python", "addresses", by_getaddrinfo),
    "python AF_INET": Client("python", "addresses4", by_ipv4),
    "node dns.lookup": Client("node", "addresses", by_getaddrinfo),
    "node dns.resolve4": Client("node", "resolve4", by_resolve4),
    "java": Client("java", "addresses", by_getaddrinfo),
    "dig +search": Client("dig", "A", by_ipv4),
}


@dataclass(frozen=True, slots=True)
class Asked:
    """A query as a server logged it."""

    remote: str
    port: str
    proto: str
    name: str
    rdtype: str


class Asks:
    """What a server has been asked, by its log."""

    _numbers = itertools.count(1)

    def __init__(self, server: Server | Instance, pod: Netns, address: str) -> None:
        self.server = server
        self.pod = pod
        self.address = address

    def during(self, work: Callable[[], list[str]], expected: int = 0) -> tuple[list[str], list[Asked]]:
        """What some work finds, and the queries that it sent. A last query, of ours, tells that all are logged.

        expected: how many queries are waited for, as those over TCP may be logged behind ours.
        """
        mark = len(self.server.log)
        found = work()
        name = f"mark-{next(self._numbers)}.test"
        assert ask(self.pod, self.address, name, 5) is None
        procs.wait_until(lambda: name in self.server.log[mark:], 5, f"{name} in the log")
        return found, self.since(mark, expected)

    def since(self, mark: int, expected: int = 0) -> list[Asked]:
        """The queries since the log was so long. expected: how many are waited for."""
        with contextlib.suppress(AssertionError):
            procs.wait_until(lambda: len(self._logged(mark)) >= expected, 1, f"{expected} queries")
        return self._logged(mark)

    def _logged(self, mark: int) -> list[Asked]:
        lines = [Asked(*found) for found in ASKED.findall(self.server.log[mark:])]
        return [asked for asked in lines if not re.fullmatch(r"mark-\d+\.test", asked.name)]


@dataclass(frozen=True, slots=True)
class Place:
    """Who is asked. cluster: the cluster's DNS. node: the instance on the node, where there is one."""

    topology: Topology
    cluster: Server
    node: Instance | None
    folder: Path

    def asks(self, pod: int = 0, address: str = IPV4.cluster_ip) -> Asks:
        """What a pod asks."""
        return Asks(self.node or self.cluster, self.topology.pods[pod], address)


class Node(Instance):
    """It logs, and remembers what does not exist for as long as what does, so that slow tests count the same."""

    def write_corefile(self, cache: str = "cache 30") -> None:
        super().write_corefile(cache)
        path = self.folder / "Corefile.base"
        text = path.read_text().replace("    errors\n", f"    errors\n    {LOG}\n")
        path.write_text(text.replace("denial 9984 5", "denial 9984 30"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lookups")


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[tuple[Topology, Server]]:
    require(*TOOLS)
    with Topology(folder, servers=["upstream"]) as topology:
        prefix = topology.dns.prefix
        with Server(folder / "kdns", objects(), corefile=COREFILE, prefix=prefix, connect=None, dns_port=53) as server:
            name, address = f"web.default.svc.{Z}", IPV4.cluster_dns[1]
            procs.wait_until(lambda: ask(topology.node, address, name) == WEB, 20, "the cluster's DNS", 0.05)
            yield topology, server


@pytest.fixture(scope="module", params=["cluster", "node"])
def place(request: pytest.FixtureRequest, cluster: tuple[Topology, Server], folder: Path) -> Iterator[Place]:
    if request.param == "cluster":
        yield Place(*cluster, None, folder)
        return
    with Node(cluster[0], folder / "node") as instance:
        yield Place(*cluster, instance, folder)


@pytest.fixture(scope="module")
def programs(folder: Path) -> dict[str, list[str]]:
    """The commands of our programs."""
    return {
        "musl": stubs.compile_c("musl-gcc", folder),
        "python": stubs.PYTHON,
        "node": stubs.NODE,
        "java": stubs.compile_java(folder),
    }


@contextlib.contextmanager
def stub(kind: str, pod: Netns, programs: dict[str, list[str]]) -> Iterator[Stub]:
    """A stub resolver in a pod."""
    if kind in programs:
        with stubs.Program(pod, programs[kind]) as program:
            yield program
    elif kind == "dig":
        yield stubs.Dig(pod)
    else:
        yield stubs.Getent(pod, kind.removeprefix("getent "))


def plain(answers: Sequence[str]) -> list[str]:
    """Addresses in their usual form: Java writes all zeros of IPv6's."""
    return sorted(str(ipaddress.ip_address(answer)) for answer in answers)


def by_name(queries: Sequence[Query]) -> list[Query]:
    """In the order of the names; of each, in that of the types."""
    runs = [list(run) for _, run in itertools.groupby(queries, key=lambda query: query[0])]
    return [query for run in runs for query in sorted(run)]


@pytest.mark.parametrize("name", CLIENTS)
def test_what_a_client_finds_and_asks(place: Place, programs: dict[str, list[str]], name: str) -> None:
    client = CLIENTS[name]
    asks = place.asks()
    found: dict[str, Found] = {}
    expected: dict[str, Found] = {}
    with stub(client.stub, asks.pod, programs) as resolver:
        for lookup in LOOKUPS:
            addresses, queries = client.costs(lookup)
            answers, asked = asks.during(partial(resolver.find, client.verb, lookup.name), len(queries))
            found[lookup.name] = plain(answers), by_name([(one.name, one.rdtype) for one in asked])
            expected[lookup.name] = addresses, by_name(queries)
            assert {(one.remote, one.proto) for one in asked} == {(IPV4.pods[0][1], "udp")}
    assert found == expected


def test_the_readme_has_these_costs() -> None:
    text = (ROOT / "README.md").read_text()
    table = text[text.index("| queries for |") :].partition("\n\n")[0]
    names, _, *rows = ([cell.strip(" `") for cell in line.split("|")[2:-1]] for line in table.splitlines())
    chosen = [lookup for name in names for lookup in LOOKUPS if lookup.name == name]
    assert len(chosen) == len(names) == 7
    found = {lookup.name: bool(by_resolve4(lookup)[0]) for lookup in chosen}
    assert rows == [
        [str(lookup.getaddrinfo) for lookup in chosen],
        [str(lookup.ipv4) for lookup in chosen],
        [str(lookup.getent_hosts) for lookup in chosen],
        [str(lookup.resolve4) if found[lookup.name] else "not found" for lookup in chosen],
    ]


SERVICES = [
    # client, name, targets, names tried
    ("dig", "_http._tcp.web", [f"web.default.svc.{Z}:80"], [f"_http._tcp.web.default.svc.{Z}"]),
    (
        "dig",
        "_postgres._tcp.db",
        [f"db-0.db.default.svc.{Z}:5432", f"db-1.db.default.svc.{Z}:5432"],
        [f"_postgres._tcp.db.default.svc.{Z}"],
    ),
    (
        "dig",
        "_http._tcp.web.other",
        [f"web.other.svc.{Z}:80"],
        [f"_http._tcp.web.other.default.svc.{Z}", f"_http._tcp.web.other.svc.{Z}"],
    ),
    ("node", f"_http._tcp.web.default.svc.{Z}", [f"web.default.svc.{Z}:80"], [f"_http._tcp.web.default.svc.{Z}"]),
    ("node", "_http._tcp.web", [], ["_http._tcp.web"]),
    ("java", f"_http._tcp.web.default.svc.{Z}", [f"web.default.svc.{Z}:80"], [f"_http._tcp.web.default.svc.{Z}"]),
    ("java", "_http._tcp.web", [], ["_http._tcp.web"]),
]
"""dig searches, the others' own resolvers do not."""


def test_services_are_found_by_srv_records(place: Place, programs: dict[str, list[str]]) -> None:
    asks = place.asks()
    for kind, lookups in itertools.groupby(SERVICES, key=lambda row: row[0]):
        with stub(kind, asks.pod, programs) as resolver:
            for _, name, targets, tried in lookups:
                found, asked = asks.during(partial(resolver.find, "services", name), len(tried))
                assert (kind, name, found) == (kind, name, targets)
                assert [(one.name, one.rdtype) for one in asked] == [(name, "SRV") for name in tried]


@pytest.mark.parametrize("kind", ["getent hosts", "musl", "python", "node", "java", "dig"])
def test_an_address_leads_to_its_name_by_one_query(place: Place, programs: dict[str, list[str]], kind: str) -> None:
    """But Java looks the name up again, as any other, to see whether it has that address."""
    asks = place.asks()
    reverse = {
        WEB: f"web.default.svc.{Z}",
        WEB6: f"web.default.svc.{Z}",
        DB[1]: f"db-1.db.default.svc.{Z}",
        "10.96.1.99": "10.96.1.99" if kind == "java" else "",
    }
    costs = dict.fromkeys(reverse, 1) | ({WEB: 1 + 8, DB[1]: 1 + 2} if kind == "java" else {})
    with stub(kind, asks.pod, programs) as resolver:
        for address, name in reverse.items():
            found, asked = asks.during(partial(resolver.find, "names", address), costs[address])
            assert found == name.split()
            pointer = ipaddress.ip_address(address).reverse_pointer
            assert [(one.name, one.rdtype) for one in asked if one.rdtype == "PTR"] == [(pointer, "PTR")]
            assert len(asked) == costs[address]  # WEB6 has the name of WEB, which Java remembers


def test_java_asks_for_a_name_once_in_thirty_seconds(place: Place, programs: dict[str, list[str]]) -> None:
    asks = place.asks()
    with stub("java", asks.pod, programs) as resolver:
        counts = [len(asks.during(partial(resolver.find, "addresses", "web"))[1]) for _ in range(3)]
    assert counts == [2, 0, 0]


# What leaves the node


@pytest.mark.parametrize("place", ["node"], indirect=True)
@pytest.mark.parametrize(
    ("name", "addresses", "queries", "to_cluster", "to_upstream"),
    [("new", ["10.96.1.3"], 2, 2, 0), ("www.example", ABROAD, 8, 6, 2), ("no.example", ABROAD, 8, 6, 2)],
)
def test_what_is_asked_again_does_not_leave_the_node(
    place: Place, name: str, addresses: list[str], queries: int, to_cluster: int, to_upstream: int
) -> None:
    assert place.node is not None
    asks = place.asks()
    for pod, address in ((0, IPV4.cluster_ip), (0, IPV4.cluster_ip), (1, IPV4.local)):
        asks = place.asks(pod, address)
        mark, before = len(place.cluster.log), forwarded(place.node, IPV4.upstream[1])
        found, asked = asks.during(partial(stubs.Getent(asks.pod).find, "addresses", name), queries)
        assert (found, len(asked)) == (addresses, queries)
        passed = Asks(place.cluster, asks.pod, address).since(mark, to_cluster)
        # The node's address on its default route: queries to a Service are sent before their destination is known.
        assert {(one.remote, one.proto) for one in passed} <= {(IPV4.upstream[0], "tcp")}
        assert len(passed) == to_cluster
        assert forwarded(place.node, IPV4.upstream[1]) - before == to_upstream + 1  # ours, behind them
        to_cluster = to_upstream = 0


def forwarded(instance: Instance, address: str) -> float:
    """Queries that an instance sent to an upstream."""
    return instance.metrics().value("coredns_proxy_request_duration_seconds_count", to=f"{address}:53")


# What resolv.conf may say


@contextlib.contextmanager
def options(pod: Netns, text: str, nameserver: str = IPV4.cluster_ip) -> Iterator[None]:
    """Other `options` than ndots:5."""
    pod.write_resolv_conf(resolv_conf(nameserver).replace("ndots:5", text))
    try:
        yield
    finally:
        pod.write_resolv_conf(resolv_conf(IPV4.cluster_ip))


def test_with_ndots_1_musl_does_not_find_other_namespaces(place: Place, programs: dict[str, list[str]]) -> None:
    """A name with a dot is tried as it is: glibc goes on with the search list, musl does not."""
    asks = place.asks()
    costs = {
        "getent ahosts": {"web": 2, "web.other": 6, f"web.default.svc.{Z}": 2, "example.com": 2},
        "musl": {"web": 2, "web.other": 2, f"web.default.svc.{Z}": 2, "example.com": 2},
    }
    answers = {lookup.name: lookup.addresses for lookup in LOOKUPS}
    with options(asks.pod, "ndots:1"):
        for kind, counts in costs.items():
            with stub(kind, asks.pod, programs) as resolver:
                for name, count in counts.items():
                    found, asked = asks.during(partial(resolver.find, "addresses", name), count)
                    assert len(asked) == count, (kind, name)
                    assert found == ([] if (kind, name) == ("musl", "web.other") else answers[name])


@pytest.mark.parametrize(
    ("text", "ports", "proto"),
    [("", 1, "udp"), (" single-request", 1, "udp"), (" single-request-reopen", 2, "udp"), (" use-vc", 1, "tcp")],
)
def test_the_pair_of_queries_as_glibc_can_be_told_to_send_it(place: Place, text: str, ports: int, proto: str) -> None:
    """From one socket or two, over UDP or TCP: as many queries, and the same answer."""
    asks = place.asks()
    with options(asks.pod, f"ndots:5{text}"):
        found, asked = asks.during(partial(stubs.Getent(asks.pod).find, "addresses", "web"), 2)
    assert found == ALL
    assert sorted(one.rdtype for one in asked) == ["A", "AAAA"]
    assert ({one.proto for one in asked}, len({one.port for one in asked})) == ({proto}, ports)
    if "single" in text:
        assert [one.rdtype for one in asked] == ["A", "AAAA"]


@pytest.mark.parametrize("place", ["cluster"], indirect=True)
@pytest.mark.parametrize("kind", ["python", "musl", "node", "java"])
def test_a_pod_that_has_only_ipv6_finds_the_same(place: Place, programs: dict[str, list[str]], kind: str) -> None:
    pod = place.topology.pods[1]
    asks = place.asks(1, IPV6.cluster_ip)
    with options(pod, "ndots:5", IPV6.cluster_ip), without_ipv4(pod), stub(kind, pod, programs) as resolver:
        for name, addresses, count in (("web.other", [OTHER], 4), ("example.com", ABROAD, 8)):
            found, asked = asks.during(partial(resolver.find, "addresses", name), count)
            assert plain(found) == addresses
            assert [one.remote for one in asked] == [f"[{IPV6.pods[1][1]}]"] * count


@contextlib.contextmanager
def without_ipv4(pod: Netns) -> Iterator[None]:
    """Its IPv4 address is not there, nor the route."""
    address = f"{IPV4.pods[1][1]}/{IPV4.prefix}"
    link = pod.ip("-4", "-o", "address", "show", "to", address).split()[1]
    pod.ip("address", "delete", address, "dev", link)
    try:
        yield
    finally:
        pod.ip("address", "add", address, "dev", link)
        pod.ip("route", "add", "default", "via", IPV4.pods[1][0])
