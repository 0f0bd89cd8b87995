"""Whole instances of `kdns node` that come, go and change their configuration, on a node in network namespaces."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import dns.message
import dns.query
import pytest

from kdns.node.settings import PROBLEMS
from tests.support import netns, procs
from tests.support.node import CLUSTER_ANSWER, IPV4, MARKER, Instance, Topology, ask

ERRORS = "coredns_nodecache_setup_errors_total"


@pytest.fixture(scope="module")
def topology(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    netns.require()
    with Topology(tmp_path_factory.mktemp("topology")) as running:
        yield running


@pytest.fixture(autouse=True)
def _programs(needs: Callable[..., None]) -> None:
    needs("unbound", "knotd", "iptables", "ip6tables", "nft", "conntrack", "setpriv", "ss")


def wait_for_answer(topology: Topology, address: str, answer: str) -> None:
    """Wait until a pod gets this answer at an address, over UDP."""
    procs.wait_until(lambda: topology.answered_by(address) == answer, 20, f"{answer} at {address}")


@contextlib.contextmanager
def starting(instance: Instance) -> Iterator[Instance]:
    """Start an instance, without waiting until it answers, and end it in any case."""
    try:
        yield instance.start(wait=False)
    finally:
        instance.kill()


def wait_for_start(instance: Instance) -> None:
    """Wait until an instance says that it serves."""
    procs.wait_until(lambda: "kdns-0" in instance.log, 20, "the start")


def left(topology: Topology) -> list[str]:
    """What instances may leave behind on the node."""
    node = topology.node
    tables = node.run("nft", "list", "tables", "inet").stdout.splitlines()
    rules = [line for line in node.ip("rule").splitlines() if line.startswith("53:")]
    addresses = [line for line in node.ip("-br", "address").split() if line.startswith((IPV4.local, IPV4.cluster_ip))]
    filters = [line for line in node.run("iptables", "-S").stdout.splitlines() if "NodeLocal" in line]
    return [*(line for line in tables if "kdns" in line), *rules, *addresses, *filters]


def sockets(topology: Topology) -> str:
    """The unix sockets of the node."""
    return topology.node.run("ss", "-xa").stdout


def bind(instance: Instance, addresses: str) -> None:
    """Let all server blocks listen on these addresses, and reload."""
    base = instance.folder / "Corefile.base"
    lines = base.read_text().splitlines()
    base.write_text("\n".join(f"bind {addresses}" if line.split()[:1] == ["bind"] else line for line in lines) + "\n")
    instance.send(instance.supervisor(), signal.SIGHUP)


def test_an_address_that_no_server_block_binds_is_left_to_the_cluster(topology: Topology, tmp_path: Path) -> None:
    with Instance(topology, tmp_path / "one", 7) as instance:
        bind(instance, IPV4.local)
        wait_for_answer(topology, IPV4.cluster_ip, CLUSTER_ANSWER)
        wait_for_answer(topology, IPV4.local, instance.answer)
        bind(instance, f"{IPV4.local} {IPV4.cluster_ip}")
        wait_for_answer(topology, IPV4.cluster_ip, instance.answer)
        assert f"{IPV4.cluster_ip}" in next(line for line in instance.log.splitlines() if "WARNING" in line)
        instance.stop()
    assert left(topology) == []


def test_a_server_block_that_binds_all_addresses_has_those_of_the_node(topology: Topology, tmp_path: Path) -> None:
    with Instance(topology, tmp_path / "all", 17) as instance:
        bind(instance, "0.0.0.0")  # noqa: S104
        procs.wait_until(lambda: "Running configuration" in instance.log.partition("kdns-0")[2], 20, "the reload")
        procs.wait_until(lambda: len(instance.workers()) == 1, 20, "the end of the old worker and its listeners")
        topology.node.run("conntrack", "-F", check=False)
        for address in IPV4.served:
            for where in (*topology.pods, topology.node):
                assert ask(where, address, MARKER, 3) == instance.answer
                tcp = where.inside(partial(dns.query.tcp, dns.message.make_query(MARKER, "A"), address, timeout=5))
                assert instance.answer in str(tcp.answer)
            assert not topology.tracked(address)
        instance.stop()
    assert left(topology) == []


def test_instances_that_end_together_leave_nothing_behind(topology: Topology, tmp_path: Path) -> None:
    for turn in range(3):
        first = Instance(topology, tmp_path / f"{turn}-first", 8)
        second = Instance(topology, tmp_path / f"{turn}-second", 9)
        with first, starting(second):
            wait_for_start(second)
            for instance in (first, second):
                instance.send(instance.supervisor(), signal.SIGTERM)
            for instance in (first, second):
                assert instance.process is not None
                assert instance.process.wait(20) == 0
        assert left(topology) == []


def test_an_instance_that_ends_takes_nothing_from_the_one_that_stays(topology: Topology, tmp_path: Path) -> None:
    first, second = Instance(topology, tmp_path / "leaves", 15), Instance(topology, tmp_path / "stays", 16)
    with first, starting(second):
        wait_for_start(second)
        assert first.terminate() < 15
        wait_for_answer(topology, IPV4.local, second.answer)
        topology.node.run("conntrack", "-F", check=False)
        assert topology.answered_by(IPV4.cluster_ip) == second.answer
        assert not topology.tracked(IPV4.cluster_ip)
        assert "not as it should be" not in second.log
        metrics = second.metrics()
        assert not any(metrics.value(ERRORS, errortype=kind) for kind in PROBLEMS)
        second.stop()
    assert left(topology) == []


def test_an_orphaned_worker_answers_until_the_next_instance_does(topology: Topology, tmp_path: Path) -> None:
    with Instance(topology, tmp_path / "old", 10) as old:
        old.send(old.supervisor(), signal.SIGKILL)
        new = Instance(topology, tmp_path / "new", 11)
        with starting(new):
            procs.wait_until(lambda: f"@kdns-node/{IPV4.local}#53" in sockets(topology), 20, "the new instance")
            if "kdns-node-serving" not in sockets(topology):
                os.kill(new.supervisor(), signal.SIGSTOP)
                until = time.monotonic() + (2.5 if "kdns-node-serving" not in sockets(topology) else 0)
                while time.monotonic() < until:
                    assert topology.answered_by(IPV4.local) == old.answer
                os.kill(new.supervisor(), signal.SIGCONT)
            new.wait_serving()
            procs.wait_until(lambda: not old.pids(), 10, "the end of the orphan")
            new.stop()
    assert left(topology) == []


def test_without_the_right_to_change_networks_it_goes_on_without_its_addresses(
    topology: Topology, tmp_path: Path
) -> None:
    """With the add-on's `health` at an address that is then not there."""
    instance = Instance(topology, tmp_path / "weak", 12)
    prefix = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    instance.program = [*prefix, *instance.program]
    with starting(instance):
        wait_for_start(instance)
        assert "CAP_NET_ADMIN" in instance.log
        assert topology.answered_by(IPV4.cluster_ip) == CLUSTER_ANSWER
        assert instance.metrics().value(ERRORS, errortype="interface_add") == 1
        assert instance.terminate() < 15
    assert left(topology) == []


def test_a_hanging_iptables_keeps_neither_queries_nor_the_end(topology: Topology, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("iptables", "ip6tables"):
        (programs / name).write_text("#!/bin/sh\nexec sleep 1000\n")
        (programs / name).chmod(0o755)
    instance = Instance(topology, tmp_path / "hanging", 13)
    instance.program = ["env", f"PATH={programs}:{os.environ['PATH']}", *instance.program]
    with instance:
        assert instance.terminate(60) < 45
        assert instance.process is not None
        assert instance.process.returncode == 0
    wait_for_answer(topology, IPV4.cluster_ip, CLUSTER_ANSWER)


def test_while_its_worker_does_not_answer_the_cluster_does(topology: Topology, tmp_path: Path) -> None:
    with Instance(topology, tmp_path / "stopped", 14) as instance:
        (worker,) = instance.workers()
        os.kill(worker, signal.SIGSTOP)
        wait_for_answer(topology, IPV4.cluster_ip, CLUSTER_ANSWER)
        os.kill(worker, signal.SIGCONT)
        wait_for_answer(topology, IPV4.cluster_ip, instance.answer)
        instance.stop()
    assert left(topology) == []
