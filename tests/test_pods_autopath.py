"""autopath, as C libraries see it: one query in the place of four, from pods whose namespace the server knows."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.conftest import require
from tests.support import procs, stubs
from tests.support.netns import Netns
from tests.support.objects import Object, namespace, pod, service
from tests.support.server import Server

pytestmark = pytest.mark.one_speed

Z = "cluster.local"
DNS, DNS6 = "10.96.0.53", "fd00:96::53"
CONF = f"search shop.svc.{Z} svc.{Z} {Z} node.example\noptions ndots:5 timeout:2 attempts:1\n"
OUTSIDE, OUTSIDE6, FOUR = "192.0.2.80", "2001:db8::80", "192.0.2.44"
WEB, WEB6 = "10.96.0.11", "fd00:96::11"
COREFILE = f"""\
.:53 {{
    errors
    log . "{{name}} {{type}} {{rcode}}"
    autopath @kubernetes
    kubernetes {Z} {{
        manifests $manifests
        pods verified
    }}
    hosts /nowhere example.com node.example {{
        {OUTSIDE} www.example.com
        {OUTSIDE6} www.example.com
        {FOUR} four.example.com
        {FOUR} box.node.example
    }}
}}
"""


@dataclass(frozen=True)
class Place:
    """known: a pod of namespace shop. unknown: one that the server has not heard of. Both have two nameservers."""

    server: Server
    known: Netns
    unknown: Netns

    def asked(self, name: str, mark: int, *wanted: str) -> list[str]:
        """The queries for a name, whatever is behind it, that were logged since the log was `mark` long, sorted.

        wanted: those that have to be there soon: lines are written some time after the answers are sent.
        """

        def lines() -> list[str]:
            return re.findall(rf"^\[INFO\] ({re.escape(name)}\..*)$", self.server.log[mark:], re.MULTILINE)

        procs.wait_until(lambda: set(wanted) <= set(lines()), 5, f"{wanted}", 0.01)
        return sorted(lines())


def cluster() -> list[Object]:
    return [
        *(namespace(name) for name in ("shop", "other")),
        service("web", "other", ips=(WEB, WEB6)),
        pod("client", "shop", "10.99.0.2", "fd99:0::2"),
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    require("ip", "getent")
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(Netns("node", f"nameserver {DNS}\nsearch node.example\n"))
        pods = []
        for number, role in enumerate(("known", "unknown")):
            each = stack.enter_context(Netns(role, f"nameserver {DNS}\nnameserver {DNS6}\n{CONF}"))
            node.connect(
                each,
                [f"10.99.{number}.1/24", f"fd99:{number}::1/64"],
                [f"10.99.{number}.2/24", f"fd99:{number}::2/64"],
            )
            each.ip("route", "add", "default", "via", f"10.99.{number}.1")
            each.ip("route", "add", "default", "via", f"fd99:{number}::1")
            pods.append(each)
        for address in (f"{DNS}/32", f"{DNS6}/128"):
            node.ip("address", "add", address, "dev", "lo")
        folder = tmp_path_factory.mktemp("pods")
        server = Server(folder, cluster(), corefile=COREFILE, prefix=node.prefix, connect=None)
        stack.enter_context(server)
        ask = stubs.Getent(pods[1])
        procs.wait_until(lambda: bool(ask.find("addresses", "box.node.example.")), 20, "the server", 0.05)
        yield Place(server, *pods)


NAMES = [
    ("www.example.com", [OUTSIDE, OUTSIDE6]),
    ("four.example.com", [FOUR]),
    ("web.other", [WEB, WEB6]),
    (f"web.other.svc.{Z}", [WEB, WEB6]),
    ("box", [FOUR]),
]


@pytest.mark.parametrize(("name", "addresses"), NAMES)
def test_glibc_asks_once_for_each_family(place: Place, name: str, addresses: list[str]) -> None:
    mark = len(place.server.log)
    assert stubs.Getent(place.known).find("addresses", name) == addresses
    wanted = [f"{name}.shop.svc.{Z}. {rdtype} NOERROR" for rdtype in ("A", "AAAA")]
    assert place.asked(name, mark, *wanted) == wanted


def test_glibc_asks_four_times_where_the_pod_is_not_known(place: Place) -> None:
    mark = len(place.server.log)
    assert stubs.Getent(place.unknown).find("addresses", f"web.other.svc.{Z}") == [WEB, WEB6]
    name = f"web.other.svc.{Z}"
    asked = place.asked(name, mark, f"{name}. A NOERROR", f"{name}. AAAA NOERROR")
    ends = (f".shop.svc.{Z}.", f".svc.{Z}.", f".{Z}.", ".node.example.", ".")
    assert {line.split()[0] for line in asked} == {name + end for end in ends}


def test_what_is_nowhere_is_not_found(place: Place) -> None:
    assert stubs.Getent(place.known).find("addresses", "gone.other") == []


@pytest.fixture(scope="module")
def musl(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[stubs.Program]:
    """musl's getaddrinfo, in the pod that is known."""
    with stubs.musl(place.known, tmp_path_factory.mktemp("musl")) as program:
        yield program


@pytest.mark.parametrize(("name", "addresses"), NAMES)
def test_musl_asks_for_one_name(place: Place, musl: stubs.Program, name: str, addresses: list[str]) -> None:
    """It asks both nameservers at once, by IPv4 and by IPv6, which are addresses of one pod."""
    mark = len(place.server.log)
    assert musl.find("addresses", name) == addresses
    wanted = [f"{name}.shop.svc.{Z}. {rdtype} NOERROR" for rdtype in ("A", "AAAA")]
    assert set(place.asked(name, mark, *wanted)) == set(wanted)
