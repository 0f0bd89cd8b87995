"""Copies of the cluster's zone on a node in network namespaces, with the Corefiles that `overlays/node-copies` has.

Pods ask the node, the node follows the cluster's DNS through a Service. kdns is both.
"""

from __future__ import annotations

import contextlib
import ipaddress
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import deploy, netns, objects, procs
from tests.support.node import IPV4, IPV6, MARKED, MARKER, Family, Instance, Topology, ask
from tests.support.server import Server

pytestmark = pytest.mark.one_speed

KEY = "X28hl0BOfAL5G0jsmJWSacrwn7YRm2f6U5brnzwWEus="
ZONE = "cluster.local."
ZONES = ZONE, "in-addr.arpa.", "ip6.arpa."
NAME, OTHER, MISSING = "web.default.svc.cluster.local", "db.default.svc.cluster.local", "no.default.svc.cluster.local"
OF_A_POD = "10-1-2-3.default.pod.cluster.local"
POINTER = "2.7.96.10.in-addr.arpa PTR"
TRYING_AGAIN_SOON = "import kdns.cli; from kdns.server import storage as s; s.REFUSALS, s.WITHIN = 2, 2; kdns.cli.app()"
"""`python -m kdns`, but a disk is taken for full, and left alone, sooner."""
NXDOMAIN, SERVFAIL = "NXDOMAIN", "SERVFAIL"


def corefile(component: str) -> str:
    """What the overlay has in a ConfigMap."""
    found = deploy.kustomization(deploy.FOLDER / "overlays" / "node-copies")
    text = found["ConfigMap", "kube-system", component]["data"]["Corefile"]
    assert isinstance(text, str)
    return text


class Centre(Server):
    """The cluster's DNS, of manifests in the place of an API server."""

    def __init__(self, topology: Topology, folder: Path) -> None:
        text = corefile("kdns").replace("ttl 30\n", "ttl 30\n            manifests $manifests\n")
        self.topology = topology
        super().__init__(
            folder,
            world(),
            corefile=text,
            dns_port=53,
            connect=None,
            prefix=topology.dns.prefix,
            environ={"KDNS_COPIES_KEY": KEY},
        )

    def begin(self) -> Centre:
        """Start it, and wait until it answers."""
        self.start(wait=False)
        address = IPV4.cluster_dns[1]
        procs.wait_until(lambda: ask(self.topology.node, address, OTHER) is not None, 20, "the cluster's DNS")
        return self


class Copying(Instance):
    """A node's instance with copies."""

    def __init__(
        self, topology: Topology, folder: Path, number: int, state: Path | None = None, family: Family = IPV4
    ) -> None:
        self.state = state or folder / "state"
        super().__init__(topology, folder, number, options=["-state-dir", str(self.state)])
        self.family = family
        self.program = ["env", f"KDNS_COPIES_KEY={KEY}", *self.program]
        self.write_base(corefile("node-local-dns"))

    def write_base(self, text: str) -> None:
        """Write the base file, with the block that tells instances apart."""
        marked = MARKED.replace("$marker", MARKER).replace("$answer", self.answer)
        (self.folder / "Corefile.base").write_text(text + marked)

    def transfers(self, result: str) -> float:
        found = self.metrics().samples
        labels = frozenset({("zone", ZONE), ("result", result)})
        return found.get(("kdns_secondary_transfers_total", labels), 0)

    def wait_for_copy(self) -> None:
        procs.wait_until(lambda: self.log.count(" records from ") >= len(ZONES), 20, f"copies:\n{self.log}")


def world(address: str = "10.96.7.1", *more: str) -> list[objects.Object]:
    """Two Services, and more of them. What has the address 10.96.7.N has fd00:10:96:7::N, too."""
    services = {"web": address, "db": "10.96.7.2"} | dict.fromkeys(more, "10.96.7.9")
    both = {name: (ip, f"fd00:10:96:7::{ip.rpartition('.')[2]}") for name, ip in services.items()}
    return [objects.namespace("default"), *(objects.service(name, ips=ips) for name, ips in both.items())]


@pytest.fixture(scope="module")
def topology(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    netns.require()
    with Topology(tmp_path_factory.mktemp("topology"), servers=("upstream",)) as running:
        yield running


@pytest.fixture
def centre(topology: Topology, tmp_path: Path) -> Iterator[Centre]:
    server = Centre(topology, tmp_path / "centre")
    try:
        yield server.begin()
    finally:
        server.kill()


def told(topology: Topology, name: str, family: Family = IPV4) -> str:
    """What a pod gets for a name (and a type), at the ClusterIP: data of a record, or a response code."""
    command = ["dig", "+time=5", "+tries=1", f"@{family.cluster_ip}", *name.split()]
    done = topology.pods[0].run(*command, check=False).stdout
    status = done.partition("status: ")[2].partition(",")[0]
    answers = [line.split() for line in done.splitlines() if line and not line.startswith(";")]
    return answers[0][-1] if status == "NOERROR" and answers else status


def comes(topology: Topology, name: str, answer: str, seconds: float = 10) -> float:
    return procs.wait_until(lambda: told(topology, name) == answer, seconds, f"{answer} for {name}")


def test_it_is_the_same_over_ipv6_alone(topology: Topology, centre: Centre, tmp_path: Path) -> None:
    with Copying(topology, tmp_path / "node", 37, family=IPV6) as node:
        node.wait_for_copy()
        assert told(topology, "fd00--1-2.default.pod.cluster.local AAAA", IPV6) == "fd00::1:2"
        centre.write_objects(world("10.96.7.3"))
        procs.wait_until(lambda: told(topology, f"{NAME} AAAA", IPV6) == "fd00:10:96:7::3", 10, "the change")
        assert (node.transfers("axfr"), node.transfers("ixfr")) == (1, 1)
        centre.kill()
        pointer = ipaddress.ip_address("fd00:10:96:7::2").reverse_pointer
        assert [told(topology, asked, IPV6) for asked in (f"{pointer} PTR", MISSING)] == [f"{OTHER}.", NXDOMAIN]
        node.stop()


def test_answers_are_local_stay_and_catch_up(topology: Topology, centre: Centre, tmp_path: Path) -> None:
    with Copying(topology, tmp_path / "node", 31) as node:
        node.wait_for_copy()
        assert told(topology, NAME) == "10.96.7.1"
        assert told(topology, OF_A_POD) == "10.1.2.3"
        centre.write_objects(world("10.96.7.3"))
        comes(topology, NAME, "10.96.7.3")
        assert (node.transfers("axfr"), node.transfers("ixfr")) == (1, 1)
        assert "Transfer failed" in topology.pods[0].run("dig", f"@{IPV4.cluster_dns[1]}", ZONE, "AXFR").stdout

        centre.kill()
        assert [told(topology, name) for name in (NAME, OTHER, MISSING)] == ["10.96.7.3", "10.96.7.2", NXDOMAIN]
        assert told(topology, POINTER) == f"{OTHER}."
        centre.write_objects(world("10.96.7.4", "new"))
        centre.begin()
        comes(topology, NAME, "10.96.7.4", 20)
        assert told(topology, "new.default.svc.cluster.local") == "10.96.7.9"
        assert node.transfers("axfr") == 1
        assert node.transfers("ixfr") >= 2

        centre.kill()
        shutil.rmtree(centre.state_dir)
        centre.write_objects(world("10.96.7.5"))
        centre.begin()  # with other serials
        comes(topology, NAME, "10.96.7.5", 20)
        assert node.transfers("axfr") == 2
        node.stop()


def test_it_is_turned_on_by_one_directive_outlives_a_restart_and_is_turned_off_again(
    topology: Topology, centre: Centre, tmp_path: Path
) -> None:
    text = corefile("node-local-dns")
    before, _, rest = text.partition("    secondary {\n")
    without = before + rest.partition("    }\n")[2]
    node = Copying(topology, tmp_path / "node", 32)
    node.write_base(without)
    with node:
        assert told(topology, NAME) == "10.96.7.1"
        assert not node.state.exists()
        node.write_base(text)
        node.send(node.supervisor(), signal.SIGHUP)
        node.wait_for_copy()
        centre.kill()
        node.kill()
        node.start()
        assert [told(topology, name) for name in (NAME, MISSING)] == ["10.96.7.1", NXDOMAIN]
        node.write_base(without)
        node.send(node.supervisor(), signal.SIGHUP)
        comes(topology, MISSING, SERVFAIL)
        node.stop()


def test_an_upgrade_has_its_own_copy_before_the_old_one_goes(
    topology: Topology, centre: Centre, tmp_path: Path
) -> None:
    """No question is lost meanwhile, and with the cluster's DNS gone the new one answers by itself."""
    old, new = Copying(topology, tmp_path / "old", 35), Copying(topology, tmp_path / "new", 36)
    with old, contextlib.ExitStack() as undo:
        old.wait_for_copy()
        with asking(topology) as answers:
            undo.callback(new.kill)
            new.start(wait=False)
            new.wait_for_copy()
            centre.kill()
            old.stop()
            new.wait_serving()
        assert set(answers) == {"10.96.7.1"}
        assert len(answers) > 5
        assert told(topology, MISSING) == NXDOMAIN
        new.stop()


def test_on_a_disk_that_fills_up_answers_do_not_get_old(
    topology: Topology, centre: Centre, tmp_path: Path, small_disk: Path
) -> None:
    node = Copying(topology, tmp_path / "node", 34, small_disk / "state")
    node.program[-3:] = ["-c", TRYING_AGAIN_SOON, "node"]
    with node:
        node.wait_for_copy()
        filler = small_disk / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(small_disk).free))
        centre.write_objects(world("10.96.7.5", *(f"more-{number}" for number in range(1000))))
        comes(topology, NAME, "10.96.7.5", 20)
        assert "nothing can be written" in node.log
        filler.unlink()
        procs.wait_until(lambda: node.log.count("cluster.local.: serial") == 2, 20, "the change")
        centre.kill()
        comes(topology, MISSING, NXDOMAIN, 20)
        assert told(topology, NAME) == "10.96.7.5"
        node.stop()


@contextlib.contextmanager
def asking(topology: Topology) -> Iterator[list[str]]:
    """Let a pod ask for NAME again and again; what it gets."""
    found: list[str] = []
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            found.append(told(topology, NAME))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
