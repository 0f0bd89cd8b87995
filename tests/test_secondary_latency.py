"""secondary: how long after the cluster has changed a server that follows its zone answers so."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import dns.message
import pytest

from tests.support import procs
from tests.support.apiserver import ApiServer, Changed
from tests.support.server import API_COREFILE, Server

pytestmark = pytest.mark.one_speed

RATE, SECONDS = 200, 1
NODE = """
cluster.local:$dns {
    bind 127.0.0.1
    prometheus $host:$metrics
    secondary {
        transfer from 127.0.0.1:$centre
    }
}
"""


def test_a_change_is_answered_within_a_tenth_of_a_second_at_200_a_second(
    serve: Callable[..., Server], tmp_path: Path, record: Callable[[str, object], None]
) -> None:
    with ApiServer(tmp_path / "api") as api:
        api.load_cluster(300, 5)
        access = f"kubeconfig {api.kubeconfig(tmp_path / 'kubeconfig')}"
        plugins = "transfer cluster.local {\n        to *\n    }"
        central = serve(corefile=API_COREFILE, kubernetes=access, plugins=plugins, addresses=["127.0.0.1"])
        node = serve(corefile=NODE.replace("$centre", str(central.port)), addresses=["127.0.0.1"])
        node._wait(lambda: bool(node.texts("dns-version.cluster.local", "TXT")), 10, "a copy")
        before = procs.cpu_seconds(node.pids())
        api.churn(RATE, SECONDS)
        delays = sorted(followed(node, api))
        spent = procs.cpu_seconds(node.pids()) - before
    assert len(delays) == RATE * SECONDS
    p50, p99 = (delays[int(len(delays) * share)] for share in (0.5, 0.99))
    record("milliseconds from an event to a node's answer, p50, p99", (round(p50 * 1000, 1), round(p99 * 1000, 1)))
    record("differences", transfers(node, "ixfr"))
    record("CPU seconds of the node for each second", round(spent / SECONDS, 3))
    assert p50 < 0.1
    assert p99 < 0.5  # a busy machine is no fault
    assert (transfers(node, "axfr"), transfers(node, "failed")) == (1, 0)


def transfers(server: Server, result: str) -> float:
    return server.metrics().value("kdns_secondary_transfers_total", zone="cluster.local.", result=result)


def followed(node: Server, api: ApiServer) -> list[float]:
    """Seconds from each change to an answer that has it, in their order."""
    delays: list[float] = []
    waiting: list[Changed] = []
    until = time.monotonic() + SECONDS + 20
    with node.udp_socket() as sock:
        sock.settimeout(1)
        while len(delays) < RATE * SECONDS and time.monotonic() < until:
            waiting = waiting or api.churned(len(delays))
            while waiting and is_there(sock, waiting[0]):
                delays.append(time.monotonic() - waiting.pop(0).time)
    return delays


def is_there(sock: socket.socket, change: Changed) -> bool:
    """Whether a node has an endpoint's new name."""
    name = f"{change.address.replace('.', '-')}.{change.service}.{change.namespace}.svc.cluster.local"
    sock.send(dns.message.make_query(name, "A").to_wire())
    return not sock.recv(4096)[3] & 15
