"""autopath of `kdns node`, as C libraries see it: a pod of the node sends one query in the place of four."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.conftest import require
from tests.support import procs, stubs
from tests.support.apiserver import ApiServer
from tests.support.netns import Netns
from tests.support.node import EXTERNAL, EXTERNAL6, IPV4, OUTSIDE, Instance, Topology
from tests.support.objects import pod

pytestmark = pytest.mark.one_speed

Z = "cluster.local"
ENDS = (f".default.svc.{Z}.", f".svc.{Z}.", f".{Z}.", ".")
SERVICE = ["10.96.1.3", "fd00:10:96::1:3"]
NAMES = [
    ("service-3", SERVICE),
    ("service-3.default", SERVICE),
    (f"service-3.default.svc.{Z}", SERVICE),
    (OUTSIDE[1], [EXTERNAL, EXTERNAL6]),
]
"""The last one is known to the node's upstream, not to the cluster's DNS."""
BLOCK = "    autopath @kubernetes {\n        node node-1\n        kubeconfig $config\n    }\n"
LOG = '    log . "asked {name} {type} {rcode}"\n'


@dataclass(frozen=True)
class Place:
    """known: a pod of the namespace `default` on this node. other: one with the address of a pod elsewhere."""

    instance: Instance
    api: ApiServer
    known: Netns
    other: Netns

    def asked(self, name: str, mark: int, *wanted: str) -> list[str]:
        """The queries for a name, whatever is behind it, that were logged since the log was `mark` long, sorted.

        wanted: those that have to be there soon.
        """

        def lines() -> list[str]:
            found = re.findall(rf"asked {re.escape(name)}(\..*)$", self.instance.log[mark:], re.MULTILINE)
            return [f"{name}{line}" for line in found]

        procs.wait_until(lambda: set(wanted) <= set(lines()), 5, f"{wanted}", 0.01)
        return sorted(lines())


def answered(name: str, end: str = ENDS[0]) -> list[str]:
    return [f"{name}{end} {rdtype} NOERROR" for rdtype in ("A", "AAAA")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    require("unbound", "knotd", "iptables", "ip6tables", "nft", "getent")
    folder = tmp_path_factory.mktemp("node")
    with contextlib.ExitStack() as stack:
        topology = stack.enter_context(Topology(tmp_path_factory.mktemp("topology")))
        api = stack.enter_context(ApiServer(folder / "api", prefix=topology.node.prefix))
        api.load(
            [
                pod("client", "default", IPV4.pods[0][1], node="node-1"),
                pod("other", "default", IPV4.pods[1][1], node="node-2"),
            ]
        )
        config = api.kubeconfig(folder / "kubeconfig")
        instance = Instance(topology, folder / "instance", 7, options=["-state-dir", str(folder / "state")])
        base = instance.folder / "Corefile.base"
        first, *others = base.read_text().split("    errors\n")
        block = LOG + BLOCK.replace("$config", str(config))
        base.write_text(first + "    errors\n" + block + f"    errors\n{LOG}".join(others))
        stack.enter_context(instance)
        place = Place(instance, api, *topology.pods)
        procs.wait_until(lambda: bool(instance.metrics().value("kdns_kubernetes_objects")), 10, "the pods", 0.05)
        yield place


def test_only_pods_of_the_node_are_there(place: Place) -> None:
    assert place.instance.metrics().value("kdns_kubernetes_objects", kind="Pod") == 1
    assert {each.query["fieldSelector"].split(",")[0] for each in place.api.requests(path="/pods")} == {
        "spec.nodeName=node-1"
    }


@pytest.mark.parametrize(("name", "addresses"), NAMES)
def test_glibc_asks_once_for_each_family(place: Place, name: str, addresses: list[str]) -> None:
    mark = len(place.instance.log)
    assert stubs.Getent(place.known).find("addresses", name) == addresses
    assert place.asked(name, mark, *answered(name)) == answered(name)


def test_a_pod_that_is_not_known_goes_through_its_list(place: Place) -> None:
    name = OUTSIDE[1]
    mark = len(place.instance.log)
    assert stubs.Getent(place.other).find("addresses", name) == [EXTERNAL, EXTERNAL6]
    asked = place.asked(name, mark, *answered(name, "."))
    assert {line.split()[0] for line in asked} == {name + end for end in ENDS}
    assert len(asked) == 8


def test_what_is_nowhere_is_not_found(place: Place) -> None:
    assert stubs.Getent(place.known).find("addresses", "gone.default") == []


@pytest.fixture(scope="module")
def musl(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[stubs.Program]:
    """musl's getaddrinfo, in the pod that is known."""
    with stubs.musl(place.known, tmp_path_factory.mktemp("musl")) as program:
        yield program


@pytest.mark.parametrize(("name", "addresses"), NAMES)
def test_musl_asks_once_for_each_family(place: Place, musl: stubs.Program, name: str, addresses: list[str]) -> None:
    mark = len(place.instance.log)
    assert musl.find("addresses", name) == addresses
    assert set(place.asked(name, mark, *answered(name))) == set(answered(name))
