"""Look-ups as pods make them: a network namespace as the pod, another as the node that has the cluster's DNS.

The pod's resolv.conf is the one that the kubelet writes. glibc is asked by getent, musl by a program that is compiled
for it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.support import digs, netns, procs, stubs
from tests.support.netns import Netns
from tests.support.objects import Object, endpoint, endpoint_slice, external_name, service
from tests.support.server import Server

Z = "cluster.local"
DNS, DNS6 = "10.96.0.53", "fd00:96::53"
SEARCH = f"search shop.svc.{Z} svc.{Z} {Z}\noptions ndots:5 timeout:2 attempts:1\n"
COREFILE = """\
.:53 {
    errors
    log . "{name} {type} {rcode}" {
        class all
    }
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        manifests $manifests
    }
    loadbalance
}
example.com:53 {
    log . "{name} {type} {rcode}"
    kubernetes {
        manifests $manifests
    }
}
"""
"""example.com stands for the world outside the cluster."""
WEB, WEB6 = "10.96.0.10", "fd00:96::10"
EXTERNAL = "web.shop.svc.example.com"


def cluster() -> list[Object]:
    many = [endpoint(f"10.2.{number // 200}.{number % 200}") for number in range(300)]
    return [
        service("web", "shop", ips=(WEB, WEB6)),
        service("web", "other", ips=("10.96.0.11",)),
        service("only-there", "other", ips=("10.96.0.12",)),
        service("db", "shop", ips=()),
        endpoint_slice("db", [endpoint(f"10.1.0.{n + 1}", hostname=f"db-{n}") for n in range(3)], "shop"),
        service("big", "shop", ips=()),
        endpoint_slice("big", many, "shop"),
        external_name("alias", f"web.shop.svc.{Z}", "shop"),
        service("kube-dns", "kube-system", ips=(DNS, DNS6)),
        endpoint_slice("kube-dns", [endpoint(DNS)], "kube-system"),
    ]


@dataclass(frozen=True)
class Cluster:
    """pod: has one nameserver. musl_pod: has two, of both families."""

    server: Server
    pod: Netns
    musl_pod: Netns

    def asked(self, count: int, mark: int) -> list[str]:
        """The queries that were logged since the log was `mark` long; there have to be `count` soon, and no more."""

        def lines() -> list[str]:
            return re.findall(r"^\[INFO\] (.*)$", self.server.log[mark:], re.MULTILINE)

        procs.wait_until(lambda: len(lines()) >= count, 2, f"{count} queries")
        assert len(lines()) == count, lines()
        return lines()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    try:
        netns.require()
    except netns.NetnsUnavailableError as error:
        pytest.skip(str(error))
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(Netns("node"))
        pod = stack.enter_context(Netns("pod", f"nameserver {DNS}\n{SEARCH}"))
        musl_pod = stack.enter_context(Netns("musl", f"nameserver {DNS}\nnameserver {DNS6}\n{SEARCH}"))
        for number, each in enumerate((pod, musl_pod)):
            own, other = (
                [f"10.99.{number}.1/24", f"fd99:{number}::1/64"],
                [f"10.99.{number}.2/24", f"fd99:{number}::2/64"],
            )
            node.connect(each, own, other)
            each.ip("route", "add", "default", "via", f"10.99.{number}.1")
            each.ip("route", "add", "default", "via", f"fd99:{number}::1")
        for address in (f"{DNS}/32", f"{DNS6}/128"):
            node.ip("address", "add", address, "dev", "lo")
        folder = tmp_path_factory.mktemp("pods")
        server = Server(folder, cluster(), corefile=COREFILE, prefix=node.prefix, connect=None)
        stack.enter_context(server)
        procs.wait_until(lambda: bool(getent(pod, f"web.shop.svc.{Z}.")), 20, "the server", 0.05)
        yield Cluster(server, pod, musl_pod)


def getent(pod: Netns, name: str) -> list[str]:
    """The addresses that glibc finds, sorted; none for a name that it does not find."""
    return stubs.Getent(pod).find("addresses", name)


SHORT = [
    ("web", [WEB, WEB6]),
    ("web.shop", [WEB, WEB6]),
    ("web.shop.svc", [WEB, WEB6]),
    (f"web.shop.svc.{Z}", [WEB, WEB6]),
    (f"web.shop.svc.{Z}.", [WEB, WEB6]),
    ("WEB.Shop", [WEB, WEB6]),
    ("web.other", ["10.96.0.11"]),
    ("web.other.svc", ["10.96.0.11"]),
    ("only-there.other", ["10.96.0.12"]),
    ("alias", [WEB, WEB6]),
    ("db", ["10.1.0.1", "10.1.0.2", "10.1.0.3"]),
    ("db-1.db", ["10.1.0.2"]),
    ("db-1.db.shop.svc", ["10.1.0.2"]),
    ("kube-dns.kube-system", [DNS, DNS6]),
    (EXTERNAL, [WEB, WEB6]),
    (f"{EXTERNAL}.", [WEB, WEB6]),
    ("only-there", []),
    ("gone", []),
    ("web.nowhere.svc", []),
    ("gone.shop.svc.example.com", []),
]


@pytest.mark.parametrize(("name", "addresses"), SHORT)
def test_glibc_finds_the_names_that_pods_use(place: Cluster, name: str, addresses: list[str]) -> None:
    assert getent(place.pod, name) == addresses


@pytest.mark.parametrize(("name", "addresses"), [pair for pair in SHORT if not pair[0].endswith(".")])
def test_dig_search_finds_the_same(place: Cluster, needs: Callable[..., None], name: str, addresses: list[str]) -> None:
    needs("dig")
    found = []
    for rdtype in ("A", "AAAA"):
        done = place.pod.run("dig", "+search", "+tries=1", "+time=3", name, rdtype)
        answer = digs.parse(done.stdout)
        assert answer.status in (("NOERROR",) if addresses else ("NXDOMAIN", "SERVFAIL")), done.stdout
        found += [line.split()[4] for line in answer.answer if line.split()[3] == rdtype]
    assert sorted(found) == addresses


def test_dig_search_shows_the_full_name(place: Cluster, needs: Callable[..., None]) -> None:
    needs("dig")
    answer = digs.parse(place.pod.run("dig", "+search", "web").stdout)
    assert answer.answer == [f"web.shop.svc.{Z}. 5 IN A {WEB}"]


def test_an_external_name_is_asked_for_under_each_search_domain_before_itself(place: Cluster) -> None:
    mark = len(place.server.log)
    assert getent(place.pod, EXTERNAL) == [WEB, WEB6]
    asked = place.asked(8, mark)
    wanted = [f"{EXTERNAL}.{suffix}. {{}} NXDOMAIN" for suffix in (f"shop.svc.{Z}", f"svc.{Z}", Z)]
    wanted.append(f"{EXTERNAL}. {{}} NOERROR")
    pairs = [sorted(asked[at : at + 2]) for at in range(0, 8, 2)]
    assert pairs == [[line.format("A"), line.format("AAAA")] for line in wanted]


def test_a_name_with_no_address_of_one_family_takes_one_question_for_each(place: Cluster) -> None:
    mark = len(place.server.log)
    assert getent(place.pod, "db") == ["10.1.0.1", "10.1.0.2", "10.1.0.3"]
    assert sorted(place.asked(2, mark)) == [f"db.shop.svc.{Z}. A NOERROR", f"db.shop.svc.{Z}. AAAA NOERROR"]


def test_a_large_answer_comes_whole(place: Cluster) -> None:
    assert len(getent(place.pod, "big")) == 300


@pytest.mark.parametrize(
    ("address", "name"),
    [(WEB, f"web.shop.svc.{Z}"), (WEB6, f"web.shop.svc.{Z}"), ("10.1.0.2", f"db-1.db.shop.svc.{Z}")],
)
def test_an_address_leads_back_to_its_name(place: Cluster, needs: Callable[..., None], address: str, name: str) -> None:
    needs("dig")
    assert digs.parse(place.pod.run("dig", "-x", address).stdout).rdata() == [f"{name}."]
    done = place.pod.run("getent", "hosts", address)
    assert done.stdout.split() == [address, name]


# musl


@pytest.fixture(scope="module")
def musl(place: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[stubs.Program]:
    """musl's getaddrinfo."""
    with stubs.musl(place.musl_pod, tmp_path_factory.mktemp("musl")) as program:
        yield program


@pytest.mark.parametrize(("name", "addresses"), [pair for pair in SHORT if pair[1]])
def test_musl_finds_the_same_with_two_nameservers(musl: stubs.Program, name: str, addresses: list[str]) -> None:
    assert musl.find("addresses", name) == addresses


def test_musl_takes_nxdomain_for_an_answer(musl: stubs.Program) -> None:
    assert musl.ask("addresses", "gone.shop.svc.example.com") == "!EAI_NONAME"


def test_musl_takes_a_large_answer(musl: stubs.Program) -> None:
    found = musl.find("addresses", "big")
    assert 20 <= len(found) <= 300
    assert all(line.startswith("10.2.") for line in found)
