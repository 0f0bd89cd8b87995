"""The node's network: queries from pods and from the node are brought to our sockets, and let go again.

A pod, a node and the cluster's DNS are network namespaces. The node has kube-proxy's part: ClusterIPs are DNATed to the
cluster's DNS by iptables. Whoever answers a query says its own name.
"""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import dns.message
import dns.query
import pytest

from tests.support import netns, procs
from tests.support.netns import Netns

ROOT = Path(__file__).resolve().parent.parent
LOCAL, CLUSTER, CLUSTER6 = "169.254.20.10", "10.96.0.10", "fd10:96::a"
ALL = (LOCAL, CLUSTER, CLUSTER6)
SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Place:
    """A pod, the node that it is on, and the host of the cluster's DNS."""

    pod: Netns
    node: Netns
    cluster: Netns


class Running:
    """A process of tests.support.interceptor, and what it has said."""

    def __init__(self, namespace: Netns, name: str, what: Any, path: str | None = None) -> None:
        program = [sys.executable, "-m", "tests.support.interceptor", name, json.dumps(what)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)} | ({"PATH": path} if path is not None else {})
        self.lines: list[str] = []
        self._more: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.process = namespace.inside(
            lambda: subprocess.Popen(program, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    def said(self, text: str) -> list[str]:
        return [line for line in self.lines if text in line]

    def wait_for(self, text: str) -> Self:
        procs.wait_until(lambda: bool(self.said(text)) or self.process.poll() is not None, SECONDS, text)
        assert self.said(text), self.lines
        return self

    def end(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait(SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def place() -> Iterator[Place]:
    netns.require()
    with Netns("pod") as pod, Netns("node") as node, Netns("dns") as cluster:
        pod.connect(node, ["10.244.1.2/24", "fd44:1::2/64"], ["10.244.1.1/24", "fd44:1::1/64"])
        cluster.connect(node, ["10.244.9.9/24", "fd44:9::9/64"], ["10.244.9.1/24", "fd44:9::1/64"])
        for host, gateway, gateway6 in (
            (pod, "10.244.1.1", "fd44:1::1"),
            (cluster, "10.244.9.1", "fd44:9::1"),
            (node, "10.244.9.9", "fd44:9::9"),
        ):
            host.ip("route", "add", "default", "via", gateway)
            host.ip("-6", "route", "add", "default", "via", gateway6)
        node.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        be_kube_proxy(node)
        with Running(cluster, "cluster", ["10.244.9.9", "fd44:9::9"]) as dns_of_cluster:
            dns_of_cluster.wait_for("open")
            for host in (pod, node):  # IPv6 links take a moment
                procs.wait_until(lambda host=host: ask(host, CLUSTER6) == "cluster", SECONDS, "IPv6")  # type: ignore[misc]
            yield Place(pod, node, cluster)


def be_kube_proxy(node: Netns) -> None:
    for program, address, backend in (
        ("iptables", CLUSTER, "10.244.9.9"),
        ("ip6tables", CLUSTER6, "fd44:9::9"),
    ):
        for chain in ("PREROUTING", "OUTPUT"):
            for protocol in ("udp", "tcp"):
                match = ["-d", address, "-p", protocol, "--dport", "53", "-j", "DNAT", "--to-destination", backend]
                node.run(program, "-t", "nat", "-A", chain, *match)


def interceptor(node: Netns, name: str = "node", path: str | None = None, **settings: Any) -> Running:
    fields = {"addresses": ALL, "port": 53} | settings
    return Running(node, name, fields, path)


def ask(namespace: Netns, address: str, *, tcp: bool = False) -> str:
    """Who answers at an address; "" for nobody within a second."""
    query = dns.message.make_query("who.example.", "TXT")
    way = dns.query.tcp if tcp else dns.query.udp
    try:
        response = namespace.inside(lambda: way(query, address, timeout=1))
    except (dns.exception.Timeout, OSError, EOFError):
        return ""
    return str(response.answer[0][0]).strip('"')


def tracked(node: Netns) -> list[str]:
    """The conntrack entries of DNS."""
    lines = [node.run("conntrack", "-L", "-f", family).stdout for family in ("ipv4", "ipv6")]
    return [line for line in "".join(lines).splitlines() if re.search(r"port=53\b", line)]


def tables(node: Netns) -> list[str]:
    return re.findall(r"kdns-node-\w+", node.run("nft", "list", "tables").stdout)


@pytest.mark.parametrize("address", ALL)
def test_queries_from_a_pod_and_from_the_node_are_answered_by_the_node_and_leave_no_conntrack_entry(
    place: Place, address: str
) -> None:
    assert ask(place.pod, address) == ("" if address == LOCAL else "cluster")
    place.node.run("conntrack", "-F")
    with interceptor(place.node).wait_for("open"):
        answers = {ask(host, address, tcp=tcp) for host in (place.pod, place.node) for tcp in (False, True)}
        assert answers == {"node"}
        assert tracked(place.node) == []
