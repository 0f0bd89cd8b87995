"""The node's network: queries from pods and from the node are brought to our sockets, and let go again.

A pod, a node and the cluster's DNS are network namespaces. The node has kube-proxy's part: ClusterIPs are DNATed to the
cluster's DNS by iptables. Whoever answers a query says its own name.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import dns.exception
import dns.message
import dns.query
import pytest
from pyroute2 import IPRoute

from kdns.errors import NodeError
from kdns.node import change, iptables, network, nft, rtnetlink, table
from kdns.node.change import Changes
from kdns.node.links import Wanted, differences
from kdns.node.listeners import others_listen
from kdns.node.network import Network
from kdns.node.settings import ROUTES, Settings
from kdns.observe.logs import Log, Sink
from tests.support import netns, procs
from tests.support.interceptor import listening
from tests.support.netns import Netns

ROOT = Path(__file__).resolve().parent.parent
LOCAL, CLUSTER, CLUSTER6 = "169.254.20.10", "10.96.0.10", "fd10:96::a"
ALL = (LOCAL, CLUSTER, CLUSTER6)
SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Place:
    """Two pods, the node that they are on, and the host of the cluster's DNS. The second pod is behind a bridge, whose
    packets pass iptables (bridge-nf-call-iptables)."""

    pod: Netns
    bridged: Netns
    node: Netns
    cluster: Netns


class Running:
    """A process that writes lines, as tests.support.interceptor does, and what it has said."""

    def __init__(self, namespace: Netns, command: Sequence[str], path: str | None = None) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)} | ({"PATH": path} if path is not None else {})
        self.lines: list[str] = []
        self.process = namespace.inside(
            lambda: subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    def said(self, text: str) -> list[str]:
        return [line for line in self.lines if text in line]

    def wait_for(self, text: str) -> Self:
        procs.wait_until(lambda: bool(self.said(text)) or not self._reader.is_alive(), SECONDS, text)
        assert self.said(text), self.lines
        return self

    def end(self, number: int = signal.SIGTERM) -> None:
        """Send a signal, and wait for the end."""
        self.process.send_signal(number)
        self.process.wait(SECONDS)
        self._reader.join(SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Asking:
    """Queries one after the other, each from a socket of its own, over UDP from a host to an address.

    answers: (time of sending, who answered or ""), times of time.monotonic. seconds: to wait for an answer.
    """

    def __init__(self, host: Netns, address: str, threads: int = 3, seconds: float = 5.0) -> None:
        self._seconds = seconds
        self.answers: list[tuple[float, str]] = []
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=host.inside, args=(lambda: self._ask(address),)) for _ in range(threads)
        ]

    def _ask(self, address: str) -> None:
        while not self._ended.is_set():
            sent = time.monotonic()
            self.answers.append((sent, whose(address, tcp=False, seconds=self._seconds)))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, name: str) -> None:
        """Wait for an answer to a query that is sent from now on."""
        now = time.monotonic()
        procs.wait_until(lambda: name in self.since(now), SECONDS, f"answers of {name}")

    def since(self, start: float) -> list[str]:
        return [name for sent, name in list(self.answers) if sent >= start]

    def names(self) -> set[str]:
        return set(self.since(0.0))


@pytest.fixture(scope="module")
def hosts() -> Iterator[Place]:
    netns.require()
    with Netns("pod") as pod, Netns("bridged") as bridged, Netns("node") as node, Netns("dns") as cluster:
        for host in (pod, bridged, node, cluster):  # else links get more addresses and routes a second later
            host.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
        pod.connect(node, ["10.244.1.2/24", "fd44:1::2/64"], ["10.244.1.1/24", "fd44:1::1/64"])
        port = bridged.connect(node, ["10.244.2.2/24", "fd44:2::2/64"], [])[1]
        node.ip("link", "add", "cni0", "type", "bridge")
        node.ip("link", "set", port, "master", "cni0")
        node.ip("address", "add", "10.244.2.1/24", "dev", "cni0")
        node.ip("address", "add", "fd44:2::1/64", "dev", "cni0", "nodad")
        node.ip("link", "set", "cni0", "up")
        cluster.connect(node, ["10.244.9.9/24", "fd44:9::9/64"], ["10.244.9.1/24", "fd44:9::1/64"])
        for host, gateway, gateway6 in (
            (pod, "10.244.1.1", "fd44:1::1"),
            (bridged, "10.244.2.1", "fd44:2::1"),
            (cluster, "10.244.9.1", "fd44:9::1"),
            (node, "10.244.9.9", "fd44:9::9"),
        ):
            host.ip("route", "add", "default", "via", gateway)
            host.ip("-6", "route", "add", "default", "via", gateway6)
        bridge = ("net.bridge.bridge-nf-call-iptables=1", "net.bridge.bridge-nf-call-ip6tables=1")
        node.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", *bridge)
        with Running(cluster, program("cluster", ["10.244.9.9", "fd44:9::9"])) as dns_of_cluster:
            dns_of_cluster.wait_for("open")
            yield Place(pod, bridged, node, cluster)


def batch(program: str, *lines: str) -> str:
    """A command of a shell: lines on the standard input of a program."""
    return "\n".join((f"{program} <<end", *lines, "end"))


EMPTY = "\n".join(
    (
        "nft flush ruleset",
        "ip link del nodelocaldns",
        *(
            batch(
                f"ip {family} -force -batch -",
                *["rule del priority 53"] * len(ALL),
                "route flush table 10053",
                *(f"address del {address} dev lo" for address in addresses),
            )
            for family, addresses in (("-4", (LOCAL, CLUSTER)), ("-6", (CLUSTER6,)))
        ),
    )
)
"""Takes away whatever a test has left on a node."""
KUBE_PROXY = "\n".join(
    batch(
        f"{program} --noflush",
        "*nat",
        *(
            f"-A {chain} -d {address} -p {protocol} --dport 53 -j DNAT --to-destination {backend}"
            for chain in ("PREROUTING", "OUTPUT")
            for protocol in ("udp", "tcp")
        ),
        "COMMIT",
    )
    for program, address, backend in (
        ("iptables-restore", CLUSTER, "10.244.9.9"),
        ("ip6tables-restore", CLUSTER6, "fd44:9::9"),
    )
)


@pytest.fixture
def place(hosts: Place) -> Place:
    """The hosts, with nothing on the node but kube-proxy."""
    node = hosts.node
    node.run("sh", "-c", EMPTY, check=False)
    be_kube_proxy(node)
    for host in (hosts.pod, hosts.bridged, node):  # IPv6 links take a moment at first
        wait_for_answer(host, CLUSTER6, "cluster")
    node.run("conntrack", "-F")
    return hosts


def be_kube_proxy(node: Netns) -> None:
    node.run("sh", "-ec", KUBE_PROXY)


def program(name: str, what: Any) -> list[str]:
    return [sys.executable, "-m", "tests.support.interceptor", name, json.dumps(what)]


def interceptor(
    node: Netns, name: str = "node", *, prefix: Sequence[str] = (), path: str | None = None, **settings: Any
) -> Running:
    """prefix: goes before the command."""
    return Running(node, [*prefix, *program(name, {"addresses": ALL, "port": 53} | settings)], path)


def classic(node: Netns, name: str = "node", *, path: str | None = None, **settings: Any) -> Running:
    """One that has no libnftables."""
    hide = f'mount --bind /dev/null {library("libnftables.so.1")} && exec "$@"'
    restored = ["/usr/bin/env", f"PATH={path}"] if path is not None else []
    return interceptor(node, name, prefix=["unshare", "-m", "sh", "-c", hide, "sh", *restored], **settings)


def library(name: str) -> str:
    """Its file."""
    ctypes.CDLL(name)
    stem = name.split(".")[0]
    paths = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if f"/{stem}." in line}
    (path,) = paths
    return path


def whose(address: str, *, tcp: bool, seconds: float = 5.0) -> str:
    query = dns.message.make_query("who.example.", "TXT")
    way = dns.query.tcp if tcp else dns.query.udp
    try:
        response = way(query, address, timeout=seconds)
    except (dns.exception.DNSException, OSError, EOFError):
        return ""
    return str(response.answer[0][0]).strip('"')


def ask(host: Netns, address: str, *, tcp: bool = False, seconds: float = 5.0) -> str:
    """Who answers at an address; "" for nobody within that time."""
    return host.inside(lambda: whose(address, tcp=tcp, seconds=seconds))


def wait_for_answer(host: Netns, address: str, name: str) -> None:
    procs.wait_until(lambda: ask(host, address, seconds=1) == name, SECONDS, f"answer of {name} at {address}")


def who_answers(place: Place, address: str) -> set[str]:
    """Asked from pods and node, over UDP and TCP."""
    hosts = (place.pod, place.bridged, place.node)
    return {ask(host, address, tcp=tcp) for host in hosts for tcp in (False, True)}


def tracked(node: Netns) -> list[str]:
    """The conntrack entries of DNS."""
    lines = [node.run("conntrack", "-L", "-f", family).stdout for family in ("ipv4", "ipv6")]
    return [line for line in "".join(lines).splitlines() if re.search(r"port=53\b", line)]


def tables(node: Netns) -> list[str]:
    """Those of the interception."""
    return re.findall(r"kdns-node-\w+", node.run("nft", "list", "tables").stdout)


def state(node: Netns) -> str:
    """Links, addresses, rules, routes and packet rules, without counters."""
    commands = (
        "ip -br link",
        "ip -br address",
        "ip -4 rule",
        "ip -6 rule",
        "ip -4 route show table all",
        "ip -6 route show table all",
        "iptables -S",
        "ip6tables -S",
        "iptables -t raw -S",
        "ip6tables -t raw -S",
        "nft list tables inet",
    )
    return node.run("sh", "-ec", "\n".join(commands)).stdout


@pytest.mark.parametrize("address", ALL)
def test_queries_from_pods_and_from_the_node_are_answered_by_the_node_and_leave_no_conntrack_entry(
    place: Place, address: str
) -> None:
    assert ask(place.pod, address, seconds=1) == ("" if address == LOCAL else "cluster")
    place.node.run("conntrack", "-F")
    with interceptor(place.node).wait_for("open"):
        assert who_answers(place, address) == {"node"}
        assert tracked(place.node) == []


def test_when_it_ends_nothing_is_left_behind(place: Place) -> None:
    before = state(place.node)
    with interceptor(place.node).wait_for("open") as running:
        during = state(place.node)
        running.end()
    assert state(place.node) == before != during
    assert not running.said("counted")


@pytest.mark.parametrize("address", [CLUSTER, CLUSTER6])
def test_no_query_is_lost_when_it_begins_and_ends(place: Place, address: str) -> None:
    with Asking(place.pod, address) as pod, Asking(place.node, address) as node:
        pod.wait_for("cluster")
        with interceptor(place.node) as running:
            for asking in (pod, node):
                asking.wait_for("node")
            running.end()
        for asking in (pod, node):
            asking.wait_for("cluster")
    assert pod.names() == node.names() == {"cluster", "node"}


@pytest.mark.parametrize("address", [CLUSTER, CLUSTER6])
def test_connections_that_are_open_when_it_withdraws_go_on_and_new_ones_go_to_the_cluster(
    place: Place, address: str
) -> None:
    query = dns.message.make_query("who.test", "TXT")
    with interceptor(place.node).wait_for("open") as running:
        with place.pod.inside(lambda: socket.create_connection((address, 53), SECONDS)) as connection:
            for _ in range(2):
                dns.query.send_tcp(connection, query)
                response, _ = dns.query.receive_tcp(connection)
                assert "node" in str(response.answer)
                running.process.send_signal(signal.SIGUSR2)
                running.wait_for("withdrawn")
            assert ask(place.pod, address, tcp=True) == ask(place.pod, address) == "cluster"
            assert ask(place.node, address, tcp=True) == ask(place.node, address) == "cluster"
        running.end()


@pytest.mark.parametrize("address", [CLUSTER, CLUSTER6])
def test_queries_sent_after_it_was_killed_are_answered_by_the_cluster(place: Place, address: str) -> None:
    with interceptor(place.node).wait_for("open") as running:
        with Asking(place.pod, address) as pod, Asking(place.node, address) as node:
            for asking in (pod, node):
                asking.wait_for("node")
            running.end(signal.SIGKILL)
            dead = time.monotonic()
            for asking in (pod, node):
                asking.wait_for("cluster")
        assert set(pod.since(dead)) == set(node.since(dead)) == {"cluster"}
    assert tables(place.node) == []


@pytest.mark.parametrize("address", [CLUSTER, CLUSTER6])
def test_an_answer_that_comes_after_it_was_killed_does_not_keep_a_port_from_the_cluster(
    place: Place, address: str
) -> None:
    with interceptor(place.node).wait_for("open") as running:
        running.end(signal.SIGKILL)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        place.pod.socket(family, socket.SOCK_DGRAM) as client,
        place.node.inside(lambda: listening(address, 53, socket.SOCK_DGRAM, anywhere=True)) as worker,
    ):
        client.settimeout(5)
        client.bind(("fd44:1::2" if ":" in address else "10.244.1.2", 0))
        worker.sendto(b"late", client.getsockname())
        assert client.recv(512) == b"late"
        assert tracked(place.node) == []
        client.sendto(dns.message.make_query("who.test", "TXT").to_wire(), (address, 53))
        assert "cluster" in str(dns.message.from_wire(client.recv(512)).answer)


def test_what_a_killed_one_left_is_used_by_the_next_and_removed(place: Place) -> None:
    before = state(place.node)
    with interceptor(place.node).wait_for("open") as first:
        first.end(signal.SIGKILL)
    with interceptor(place.node).wait_for("open") as second:
        assert who_answers(place, LOCAL) == who_answers(place, CLUSTER) == {"node"}
        second.end()
    assert state(place.node) == before


def test_a_second_one_takes_over_without_a_lost_query(place: Place) -> None:
    with interceptor(place.node, "first") as first, Asking(place.pod, CLUSTER) as asking:
        asking.wait_for("first")
        with Asking(place.pod, LOCAL) as local, interceptor(place.node, "second") as second:
            for each in (asking, local):
                each.wait_for("second")
            second.wait_for("open")  # it shares the other one's queries before
            assert len(tables(place.node)) == 2
            first.end(signal.SIGUSR1)
            left = time.monotonic()
            for each in (asking, local):
                each.wait_for("second")
            place.node.run("conntrack", "-F")
            for address in ALL:
                assert who_answers(place, address) == {"second"}
            assert tracked(place.node) == []
            assert set(asking.since(left)) == set(local.since(left)) == {"second"}
            assert not second.said("counted")
    assert asking.names() >= {"first", "second"}
    assert len(tables(place.node)) == 0


def test_rules_flushed_by_somebody_else_do_not_touch_the_interception(place: Place) -> None:
    with interceptor(place.node, sync_seconds=0.5).wait_for("open") as running, Asking(place.pod, CLUSTER) as asking:
        asking.wait_for("node")
        asking.answers.clear()
        place.node.run("nft", "flush", "ruleset")
        (table,) = tables(place.node)
        assert place.node.run("nft", "delete", "table", "inet", table, check=False).returncode
        running.wait_for("not as it should be: added iptables rule in filter INPUT")
        running.wait_for("counted iptables")
    assert asking.names() == {"node"}


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("ip address del 169.254.20.10 dev lo", "added address 169.254.20.10 to lo"),
        ("ip rule del priority 53 to 10.96.0.10", "added rule for 10.96.0.10"),
        ("ip -6 rule del priority 53", "added rule for fd10:96::a"),
        ("ip route flush table 10053", "added local route to table 10053"),
        ("ip -6 route flush table 10053", "added local route to table 10053"),
    ],
)
def test_what_somebody_takes_away_is_put_back(place: Place, command: str, kind: str) -> None:
    with interceptor(place.node, sync_seconds=600).wait_for("open") as running:
        place.node.run(*command.split())
        running.wait_for(f"not as it should be: {kind}").wait_for("counted interface_check")
        for address in ALL:
            assert who_answers(place, address) == {"node"}


@pytest.mark.parametrize("command", ["ip rule del priority 53 to 10.96.0.10", "ip route flush table 10053"])
def test_while_queries_would_be_led_nowhere_the_cluster_has_them(place: Place, command: str) -> None:
    with interceptor(place.node, sync_seconds=600).wait_for("open"), Asking(place.pod, CLUSTER, seconds=0.01) as asking:
        asking.wait_for("node")
        place.node.run(*command.split())
        asking.wait_for("cluster")
        asking.wait_for("node")


def test_rules_and_routes_look_as_if_the_kernel_had_made_them(place: Place) -> None:
    """systemd-networkd removes others when it starts (ManageForeignRoutingPolicyRules and ManageForeignRoutes)."""
    with interceptor(place.node).wait_for("open"):
        for family in ("-4", "-6"):
            rules = place.node.ip("-details", family, "rule", "list", "priority", "53").splitlines()
            routes = place.node.ip("-details", family, "route", "show", "table", "10053").splitlines()
            assert rules
            assert routes
            assert all("proto kernel" in line for line in (*rules, *routes))


def test_an_existing_link_is_used_and_completed_and_kept(place: Place) -> None:
    place.node.ip("link", "add", "nodelocaldns", "type", "bridge")
    place.node.ip("address", "add", "192.0.2.1/32", "dev", "nodelocaldns")
    with interceptor(place.node).wait_for("open") as running:
        assert LOCAL in place.node.ip("-br", "address", "show", "nodelocaldns")
        assert who_answers(place, LOCAL) == {"node"}
        running.end()
    assert place.node.ip("-br", "address", "show", "nodelocaldns").split()[2] == "192.0.2.1/32"


def test_a_link_that_somebody_deletes_is_replaced(place: Place) -> None:
    place.node.ip("link", "add", "nodelocaldns", "type", "bridge")
    with interceptor(place.node, sync_seconds=600).wait_for("open") as running:
        with Asking(place.pod, LOCAL) as pod:
            pod.wait_for("node")
            place.node.ip("link", "del", "nodelocaldns")
            running.wait_for("not as it should be: added address 169.254.20.10 to lo")
        assert pod.names() == {"node"}
        assert who_answers(place, LOCAL) == {"node"}
        place.node.ip("link", "add", "nodelocaldns", "type", "bridge")
        running.wait_for("added address 169.254.20.10 to nodelocaldns")


def test_somebody_who_keeps_deleting_does_not_keep_it_busy(place: Place) -> None:
    with interceptor(place.node, sync_seconds=600).wait_for("open") as running:
        end = time.monotonic() + 2
        while time.monotonic() < end:
            place.node.run("ip", "rule", "del", "priority", "53", "to", CLUSTER, check=False)
        assert 1 <= len(running.said("counted interface_check")) <= 8
        procs.wait_until(lambda: CLUSTER in place.node.ip("rule"), SECONDS, "the rule")


def test_without_libnftables_the_addresses_are_on_the_link_and_iptables_has_node_caches_rules(place: Place) -> None:
    before = state(place.node)
    with classic(place.node).wait_for("open") as running:
        assert len(running.said("[WARNING] node: an nftables table that goes with this process cannot be had")) == 1
        place.node.run("conntrack", "-F")
        for address in ALL:
            assert who_answers(place, address) == {"node"}
        assert tracked(place.node) == []
        assert tables(place.node) == []
        rules = place.node.run("iptables", "-S").stdout + place.node.run("iptables", "-t", "raw", "-S").stdout
        for address in (LOCAL, CLUSTER):
            assert len(re.findall(rf"{address}/32 .*NodeLocal DNS Cache", rules)) == 12
        running.end()
    assert state(place.node) == before


def test_without_libnftables_rules_are_put_back(place: Place) -> None:
    with classic(place.node, sync_seconds=0.5).wait_for("open") as running:
        running.wait_for("added ip6tables rule in raw OUTPUT: -p tcp -s fd10:96::a")
        place.node.run("iptables", "-t", "raw", "-F")
        running.wait_for("not as it should be: added iptables rule in raw PREROUTING").wait_for("counted iptables")


def test_without_libnftables_and_iptables_it_says_so_and_serves_at_the_addresses(place: Place) -> None:
    with classic(place.node, path="/nonexistent").wait_for("open") as running:
        assert who_answers(place, LOCAL) == {"node"}
        running.wait_for("there is no program ip6tables in PATH").wait_for("counted iptables")


def test_without_the_program_iptables_the_interception_is_complete_and_nothing_is_wrong(place: Place) -> None:
    with interceptor(place.node, path="/nonexistent").wait_for("open") as running:
        for address in ALL:
            assert who_answers(place, address) == {"node"}
        running.end()
    assert not running.said("counted")
    assert not running.said("ERROR")


def test_setupiptables_false_puts_all_addresses_on_the_link_and_makes_no_rules(place: Place) -> None:
    with interceptor(place.node, setup_iptables=False).wait_for("open") as running:
        assert all(address in place.node.ip("-br", "address", "show", "lo") for address in ALL)
        assert who_answers(place, LOCAL) == {"node"}
        assert who_answers(place, CLUSTER) == {"cluster"}, "kube-proxy was before us"
        assert tables(place.node) == []
        assert "NodeLocal" not in state(place.node)
        running.end()


def test_setupinterface_false_leaves_links_and_queries_alone_and_tracks_nothing(place: Place) -> None:
    place.node.ip("address", "add", f"{LOCAL}/32", "dev", "lo")
    before = state(place.node)
    with interceptor(place.node, addresses=[LOCAL], setup_interface=False).wait_for("open") as running:
        place.node.run("conntrack", "-F")
        assert who_answers(place, LOCAL) == {"node"}
        assert tracked(place.node) == []
        assert place.node.ip("rule").count("10053") == 0
        running.end()
    assert state(place.node) == before


def test_nothing_is_set_up_for_loopback_and_unspecified_addresses(place: Place) -> None:
    before = state(place.node)
    with interceptor(place.node, addresses=["127.0.0.1", "::"]).wait_for("open") as running:
        assert state(place.node) == before
        assert ask(place.node, "127.0.0.1") == "node"
        running.end()
    assert running.lines == ["open", "withdrawn", "removed"]


def test_skipteardown_leaves_everything_but_the_table(place: Place) -> None:
    with interceptor(place.node, skip_teardown=True).wait_for("open") as running:
        procs.wait_until(lambda: "NodeLocal" in state(place.node), SECONDS, "rules")
        during = state(place.node)
        (table,) = tables(place.node)
        running.end()
    assert state(place.node) == during.replace(f"table inet {table}\n", "")
    assert ask(place.pod, CLUSTER) == "cluster"


def test_a_firewall_that_drops_what_it_does_not_know_lets_dns_through(place: Place) -> None:
    for rule in (
        "-A INPUT -i lo -j ACCEPT",
        "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A OUTPUT -m conntrack --ctstate NEW,RELATED,ESTABLISHED -j ACCEPT",
        "-P INPUT DROP",
        "-P OUTPUT DROP",
    ):
        place.node.run("iptables", *rule.split())
    with interceptor(place.node).wait_for("open"):
        for address in (LOCAL, CLUSTER):
            assert ask(place.pod, address) == ask(place.pod, address, tcp=True) == "node"


def test_strict_reverse_path_checks_do_not_drop_what_is_marked(place: Place) -> None:
    old = [
        place.node.run("sysctl", "-n", f"net.ipv4.conf.all.{name}").stdout for name in ("rp_filter", "src_valid_mark")
    ]
    try:
        place.node.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.all.src_valid_mark=1")
        with interceptor(place.node).wait_for("open"):
            assert who_answers(place, LOCAL) == who_answers(place, CLUSTER) == {"node"}
    finally:
        for name, value in zip(("rp_filter", "src_valid_mark"), old, strict=True):
            place.node.run("sysctl", "-qw", f"net.ipv4.conf.all.{name}={value.strip()}")


def test_without_the_capability_there_is_one_warning_and_queries_are_answered_where_they_come(place: Place) -> None:
    place.node.ip("address", "add", f"{LOCAL}/32", "dev", "lo")
    drop = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--ambient-caps=-all"]
    with interceptor(place.node, prefix=drop).wait_for("open") as running:
        assert who_answers(place, LOCAL) == {"node"}
        assert who_answers(place, CLUSTER) == {"cluster"}
        running.end()
    assert [line for line in running.lines if "CAP_NET_ADMIN" in line] == running.said("[")
    assert running.said("counted") == ["counted interface_add"]


def test_a_user_who_is_not_root_is_told_how_a_container_gets_capabilities(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(_: Network) -> None:
        pass

    monkeypatch.setattr("kdns.node.rights.has", lambda _: False)
    assert "runAsUser" not in in_this_process(place, nothing)
    monkeypatch.setattr("os.geteuid", lambda: 53530)
    assert "CAP_NET_ADMIN (a container's capabilities are root's: runAsUser: 0)" in in_this_process(place, nothing)


def test_without_ipv6_addresses_of_ipv4_are_intercepted_nevertheless(place: Place) -> None:
    with Netns("four") as node:
        node.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
        with interceptor(node, addresses=[LOCAL, CLUSTER, CLUSTER6]).wait_for("open") as running:
            assert len(tables(node)) == 1
            assert f"ip daddr {CLUSTER}" in node.run("nft", "list", "ruleset").stdout
            assert len([line for line in running.lines if "has no IPv6" in line]) == 1
            running.end()


def test_what_nodelocal_dnscache_left_behind_is_cleared_away(place: Place) -> None:
    node = place.node
    leave_as_node_cache(node)
    assert ask(place.pod, CLUSTER, seconds=1) == ""
    with interceptor(node).wait_for("open") as running:
        running.wait_for(f"removed address {CLUSTER} from nodelocaldns")
        for address in (LOCAL, CLUSTER):
            assert who_answers(place, address) == {"node"}
        running.end(signal.SIGKILL)
    assert who_answers(place, CLUSTER) == {"cluster"}


def test_what_it_left_in_the_legacy_tables_is_cleared_away_too(place: Place) -> None:
    if not shutil.which("iptables-legacy"):
        pytest.skip("there is no iptables-legacy")
    node = place.node
    words = ["PREROUTING", "-p", "udp", "-d", CLUSTER, "--dport", "53", "-j", "NOTRACK"]
    words += ["-m", "comment", "--comment", "NodeLocal DNS Cache: skip conntrack"]
    node.run("iptables-legacy", "-t", "raw", "-A", *words)
    node.run("iptables-legacy", "-A", "INPUT", "-i", "lo", "-j", "ACCEPT")
    try:
        with interceptor(node).wait_for("open") as running:
            procs.wait_until(lambda: "NodeLocal" in node.run("iptables-legacy", "-S").stdout, SECONDS, "ACCEPT rules")
            running.end(signal.SIGKILL)
        assert "NodeLocal" not in node.run("iptables-legacy", "-t", "raw", "-S").stdout
        assert ask(place.pod, CLUSTER) == "cluster"
        with interceptor(node).wait_for("open") as running:
            running.end()
        assert "NodeLocal" not in node.run("iptables-legacy", "-S").stdout
    finally:
        node.run("iptables-legacy", "-t", "raw", "-F")
        node.run("iptables-legacy", "-F")


def test_legacy_tables_that_it_may_not_change_are_named_once_and_are_no_fault(place: Place) -> None:
    if not shutil.which("iptables-legacy"):
        pytest.skip("there is no iptables-legacy")
    place.node.run("iptables-legacy", "-A", "INPUT", "-i", "lo", "-j", "ACCEPT")
    two = ["setpriv", "--bounding-set=-all,+net_admin,+net_bind_service", "--inh-caps=-all", "--ambient-caps=-all"]
    try:
        with interceptor(place.node, prefix=two).wait_for("open") as running:
            assert who_answers(place, CLUSTER) == {"node"}
            running.end()
    finally:
        place.node.run("iptables-legacy", "-F")
    (line,) = running.said("CAP_NET_RAW")
    assert "iptables-legacy" in line
    assert running.said("cannot") == []


def test_while_nodelocal_dnscache_still_serves_both_answer(place: Place) -> None:
    node = place.node
    leave_as_node_cache(node)
    with (
        Running(node, program("old", [LOCAL, CLUSTER])).wait_for("open") as old,
        interceptor(node, sync_seconds=0.3).wait_for("open") as running,
    ):
        for address in (LOCAL, CLUSTER):
            with Asking(place.pod, address) as pod, Asking(node, address) as own:
                for asking in (pod, own):
                    asking.wait_for("node")
                    asking.wait_for("old")
            assert pod.names() == own.names() == {"node", "old"}
        old.end(signal.SIGKILL)
        running.wait_for(f"removed address {CLUSTER} from nodelocaldns")
        for address in (LOCAL, CLUSTER):
            assert who_answers(place, address) == {"node"}


def test_what_another_server_at_the_same_address_needs_stays(place: Place) -> None:
    with interceptor(place.node).wait_for("open") as running:
        with Running(place.node, program("other", [LOCAL])).wait_for("open"), Asking(place.pod, LOCAL) as asking:
            asking.wait_for("other")
            running.end()
            asking.wait_for("other")
        assert running.said("stay for another server")
        assert "NodeLocal" in state(place.node)


@pytest.mark.parametrize("address", ["127.0.0.7", "::1"])
@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_sockets_of_others_at_an_address_are_seen(address: str, kind: socket.SocketKind) -> None:
    text = f"""if True:
        from tests.support.interceptor import listening, say
        sock = listening("{address}", 0, {int(kind)}, anywhere=False)
        say(str(sock.getsockname()[1]))
        input()
    """
    with subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        try:
            assert others_listen(address, port)
            assert not others_listen("127.0.0.8" if "." in address else "::2", port)
        finally:
            process.kill()
    assert not others_listen(address, port)


def test_ones_own_sockets_are_not_those_of_others() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.7", 0))
        assert not others_listen("127.0.0.7", sock.getsockname()[1])


@pytest.mark.parametrize(
    ("addresses", "services", "local"),
    [
        ((LOCAL, CLUSTER), (), (LOCAL,)),
        ((CLUSTER, CLUSTER6), (), ()),
        ((LOCAL, "fd00::10", CLUSTER, CLUSTER6), (), (LOCAL, "fd00::10")),
        (("127.0.0.1", "0.0.0.0", "::", "::1"), (), ()),  # noqa: S104 - not to bind
        (("192.168.255.53", CLUSTER), (CLUSTER,), ("192.168.255.53",)),
        ((CLUSTER6, "fd00::10"), (CLUSTER6,), ("fd00::10",)),
        (("fd00::10",), (), ()),
        (("fd00::10",), (CLUSTER6,), ("fd00::10",)),
        ((LOCAL, CLUSTER, "fd00::10", CLUSTER6), (CLUSTER,), (LOCAL, "fd00::10")),
        ((CLUSTER,), (CLUSTER,), ()),
        ((LOCAL, CLUSTER), ("10.96.0.1",), (LOCAL,)),
    ],
)
def test_which_addresses_belong_on_the_link(
    addresses: tuple[str, ...], services: tuple[str, ...], local: tuple[str, ...]
) -> None:
    assert Settings(addresses, 53, services=frozenset(services)).local == local


def leave_as_node_cache(node: Netns) -> None:
    """The link, the addresses and the rules that NodeLocal DNSCache makes."""
    node.ip("link", "add", "nodelocaldns", "type", "bridge")
    for address in (LOCAL, CLUSTER):
        node.ip("address", "add", f"{address}/32", "dev", "nodelocaldns")
        for protocol in ("tcp", "udp"):
            for chain, ends in (("PREROUTING", "d"), ("OUTPUT", "ds")):
                for end in ends:
                    match = f"-p {protocol} -{end} {address} --{end}port 53 -j NOTRACK -m comment --comment"
                    node.run(
                        "iptables", "-t", "raw", "-I", chain, *match.split(), "NodeLocal DNS Cache: skip conntrack"
                    )


SERVE = """if True:
    import asyncio, sys, threading, time
    from kdns.node import table
    from kdns.node.links import Wanted, change
    from kdns.node.nft import Library, Owned
    from kdns.node.settings import Settings
    from tests.support.interceptor import say, serve

    SETTINGS = Settings(("169.254.20.10", "10.96.0.10", "fd10:96::a"), 53)

    async def main(then):
        await serve("node", SETTINGS.own, 53, anywhere=True)
        change("ensure", Wanted("nodelocaldns", (), (), SETTINGS.own))
        threading.Thread(target=then, daemon=True).start()
        await asyncio.Event().wait()
"""
"""A program that serves like `interceptor`, and leaves the table to what follows."""


def test_kernels_without_tproxy_are_served_too(place: Place) -> None:
    text = """
    def intercept():
        text = table.commands(SETTINGS, "kdns-node-1", intercept=True, tproxy=False)
        assert "tproxy" not in text
        owned = Owned(Library(), text)
        say("open")
        time.sleep(60)

    asyncio.run(main(intercept))
    """
    with Running(place.node, [sys.executable, "-c", SERVE + text]).wait_for("open"):
        for address in ALL:
            assert who_answers(place, address) == {"node"}
        assert tracked(place.node) == []


def test_packets_that_are_under_way_when_the_table_comes_and_goes_are_not_lost(place: Place) -> None:
    """The kernel adds and removes chains one by one: here it does so many times."""
    text = """
    def come_and_go():
        interception = table.Interception(SETTINGS)
        say("open")
        for _ in range(40):
            interception.begin(SETTINGS.own)
            interception.check()
            time.sleep(0.02)
            interception.drain()
            time.sleep(0.02)
            interception.end()
        say("done")

    asyncio.run(main(come_and_go))
    """
    server = Running(place.node, [sys.executable, "-c", SERVE + text]).wait_for("open")
    with server, Asking(place.pod, CLUSTER) as pod, Asking(place.node, CLUSTER6) as node:
        server.wait_for("done")
    assert pod.names() == node.names() == {"cluster", "node"}


@pytest.mark.parametrize("when", ["made", "being made"])
def test_a_child_that_is_forked_does_not_keep_the_table(place: Place, when: str) -> None:
    """As long as a child has the socket, the table would stay when its owner is killed."""
    text = f"""if True:
        import os, subprocess, time
        from kdns.node.nft import Library
        from kdns.node.settings import Settings
        from kdns.node.table import Interception

        def fork():
            child = os.fork()
            if not child:
                os.write(1, b"forked\\n")
                time.sleep(60)
            other = subprocess.Popen(["sleep", "60"], close_fds=False)
            os.write(1, b"%d %d\\n" % (child, other.pid))

        def run(library, context, commands):
            result = real(library, context, commands)
            if "kdns-node" in commands:
                fork()
            return result

        interception = Interception(Settings(("10.96.0.10",), 53))
        interception.begin(["10.96.0.10"])
        real = Library.run
        if {when == "being made"}:
            Library.run = run
        interception.check()
        if {when == "made"}:
            fork()
        os.write(1, b"ready\\n")
        time.sleep(60)
    """
    owner = place.node.inside(
        lambda: subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    )
    assert owner.stdout is not None
    said = [owner.stdout.readline() for _ in range(3)]
    children = [int(pid) for line in said for pid in line.split() if pid.isdigit()]
    try:
        assert len(children) == 2
        assert len(tables(place.node)) == 1
        owner.kill()
        owner.wait()
        assert all(procs.is_alive(child) for child in children)
        assert tables(place.node) == []
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()
        procs.kill(children)


def test_the_link_is_made_and_removed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a kind of link that every kernel has: some that this is tested on have no dummy."""
    monkeypatch.setattr(change, "KIND", "bridge")
    wanted = Wanted("nodelocaldns", (LOCAL, CLUSTER6), (), ())

    def work(action: str) -> Changes:
        with IPRoute() as ip:
            changes = Changes(ip, wanted)
            getattr(changes, action)()
            return changes

    made = place.node.inside(lambda: work("ensure"))
    assert made.failed == []
    link = place.node.ip("-br", "address", "show", "nodelocaldns")
    assert LOCAL in link
    assert CLUSTER6 in link
    assert not list(differences(wanted, place.node.inside(lambda: rtnetlink.view(ROUTES)), loopback=False))
    assert place.node.inside(lambda: work("ensure")).done == []
    place.node.ip("address", "add", "192.0.2.1/32", "dev", "nodelocaldns")
    place.node.inside(lambda: work("remove"))
    assert place.node.ip("-br", "address", "show", "nodelocaldns").split()[2] == "192.0.2.1/32"
    place.node.ip("address", "del", "192.0.2.1/32", "dev", "nodelocaldns")
    assert place.node.inside(lambda: work("remove")).failed == []
    assert "nodelocaldns" not in place.node.ip("link")


def test_a_change_that_is_refused_is_named_and_counted(place: Place) -> None:
    place.node.run("sysctl", "-qw", "net.ipv6.conf.lo.disable_ipv6=1")
    try:
        with interceptor(place.node, addresses=[CLUSTER6], setup_iptables=False).wait_for("open") as running:
            running.wait_for(f"cannot add address {CLUSTER6} to lo").wait_for("counted interface_check")
    finally:
        place.node.run("sysctl", "-qw", "net.ipv6.conf.lo.disable_ipv6=0")


def test_a_lock_that_somebody_holds_is_counted_apart(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    legacy = shutil.which("iptables-legacy")
    assert legacy is not None  # iptables of nftables has no lock
    (tmp_path / "iptables").symlink_to(legacy)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "lock"))
    monkeypatch.setattr(iptables, "LOCK_SECONDS", "1")
    rules = list(iptables.accepting(Settings(("192.0.2.1",), 53)))
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused = place.node.inside(lambda: iptables.ensure(rules, time.monotonic() + 60))
    assert [note.kind for note in refused.failed] == ["iptables_lock"], "nor is each rule waited for"
    assert len(place.node.inside(lambda: iptables.ensure(rules, time.monotonic() + 60)).done) == len(rules)
    assert place.node.inside(lambda: iptables.remove(rules, time.monotonic() + 60)).failed == ()


def test_an_address_without_a_socket_is_left_to_the_cluster_and_named(place: Place) -> None:
    with interceptor(place.node, bound=[[LOCAL, CLUSTER6]]).wait_for("open") as running:
        running.wait_for("no socket is bound to")
        assert who_answers(place, CLUSTER) == {"cluster"}
        assert who_answers(place, LOCAL) == who_answers(place, CLUSTER6) == {"node"}
        (line,) = running.said("no socket is bound to")
        assert f"to {CLUSTER} port 53" in line
        assert f"`bind {CLUSTER}`" in line
        assert f"-d {CLUSTER}/32" not in place.node.run("iptables", "-S").stdout
        running.end()


@pytest.mark.parametrize("address", [CLUSTER, CLUSTER6])
def test_no_query_is_lost_when_a_reload_drops_an_address_and_takes_it_again(place: Place, address: str) -> None:
    with (
        interceptor(place.node, bound=[ALL, [LOCAL], ALL]).wait_for("open") as running,
        Asking(place.pod, address) as pod,
        Asking(place.node, address) as node,
        Asking(place.pod, LOCAL) as local,
    ):
        for expected in ("node", "cluster", "node"):
            for asking in (pod, node):
                asking.wait_for(expected)
            running.process.send_signal(signal.SIGHUP)
    assert pod.names() == node.names() == {"node", "cluster"}
    assert local.names() == {"node"}


def test_without_libnftables_too_an_address_without_a_socket_is_left_to_the_cluster(place: Place) -> None:
    with classic(place.node, bound=[[LOCAL], ALL, [LOCAL]]).wait_for("open") as running:
        assert who_answers(place, CLUSTER) == {"cluster"}
        running.process.send_signal(signal.SIGHUP)
        for host in (place.pod, place.node):
            wait_for_answer(host, CLUSTER, "node")
        running.process.send_signal(signal.SIGHUP)
        for host in (place.pod, place.node):
            wait_for_answer(host, CLUSTER, "cluster")
        assert who_answers(place, LOCAL) == {"node"}


def test_without_libnftables_the_cluster_answers_as_soon_as_it_withdraws(place: Place) -> None:
    before = state(place.node)
    with classic(place.node).wait_for("open") as running, Asking(place.pod, CLUSTER) as asking:
        asking.wait_for("node")
        running.process.send_signal(signal.SIGUSR2)
        running.wait_for("withdrawn")
        for address in (CLUSTER, CLUSTER6):
            assert who_answers(place, address) == {"cluster"}
        asking.wait_for("cluster")
        running.end()
    assert asking.names() == {"node", "cluster"}
    assert state(place.node) == before


def test_without_libnftables_an_answer_that_comes_after_it_withdrew_leaves_no_conntrack_entry(place: Place) -> None:
    with classic(place.node).wait_for("open") as running:
        running.process.send_signal(signal.SIGUSR2)
        running.wait_for("withdrawn")
        with (
            place.pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
            place.node.inside(lambda: listening(CLUSTER, 53, socket.SOCK_DGRAM, anywhere=True)) as worker,
        ):
            client.settimeout(5)
            client.bind(("10.244.1.2", 0))
            worker.sendto(b"late", client.getsockname())
            assert client.recv(512) == b"late"
            port = client.getsockname()[1]
        assert [line for line in tracked(place.node) if str(port) in line] == []


def test_without_libnftables_one_killed_while_it_ends_strands_nobody(place: Place) -> None:
    with classic(place.node).wait_for("open") as running:
        running.process.send_signal(signal.SIGUSR2)
        running.wait_for("withdrawn").end(signal.SIGKILL)
    for address in (CLUSTER, CLUSTER6):
        assert who_answers(place, address) == {"cluster"}


def test_without_libnftables_what_another_instance_needs_stays(place: Place) -> None:
    with classic(place.node, "first").wait_for("open") as first, classic(place.node, "second").wait_for("open"):
        first.end(signal.SIGUSR1)
        for address in ALL:
            assert who_answers(place, address) == {"second"}


def test_without_libnftables_what_another_instance_does_not_serve_is_left_to_the_cluster(place: Place) -> None:
    new: dict[str, Any] = {"addresses": [LOCAL]}
    with classic(place.node, "old").wait_for("open") as old, classic(place.node, "new", **new).wait_for("open"):
        old.end(signal.SIGUSR1)
        assert who_answers(place, CLUSTER) == who_answers(place, CLUSTER6) == {"cluster"}
        assert who_answers(place, LOCAL) == {"new"}


def test_an_upgrade_from_iptables_to_a_table_leaves_nothing_behind(place: Place) -> None:
    before = state(place.node)
    with classic(place.node, "old").wait_for("open") as old, interceptor(place.node, "new").wait_for("open") as new:
        old.end(signal.SIGUSR1)
        for address in ALL:
            assert who_answers(place, address) == {"new"}
        new.end()
    assert state(place.node) == before


def test_an_address_that_the_loopback_link_had_before_is_kept(place: Place) -> None:
    place.node.ip("address", "add", f"{LOCAL}/32", "dev", "lo")
    before = state(place.node)
    for start in (interceptor, classic):
        with start(place.node).wait_for("open") as running:
            running.end()
        assert state(place.node) == before


def meddled(place: Place, path: Path, text: str, **settings: Any) -> Running:
    """One whose process that changes links runs this first."""
    lines = ["import sys", 'if any("kdns.node.change" in word for word in sys.orig_argv):']
    (path / "sitecustomize.py").write_text("\n".join([*lines, *(f"    {line}" for line in text.splitlines())]))
    return interceptor(place.node, prefix=["env", f"PYTHONPATH={path}:{ROOT}"], **settings)


@pytest.mark.parametrize("times", [1, 3])
def test_a_failure_to_change_links_does_not_keep_it_from_its_table_for_ever(
    place: Place, tmp_path: Path, times: int
) -> None:
    text = f"""
import os
if len(os.listdir("{tmp_path}")) <= {times}:
    open("{tmp_path}/" + str(os.getpid()), "w")
    os._exit(137)
"""
    with meddled(place, tmp_path, text).wait_for("open") as running:
        running.wait_for("added table of nftables")
        for address in ALL:
            assert who_answers(place, address) == {"node"}
        assert not running.said("cannot be had")
        running.end(signal.SIGKILL)
    assert who_answers(place, CLUSTER) == who_answers(place, CLUSTER6) == {"cluster"}


def test_where_the_kernel_refuses_rules_iptables_has_them(place: Place, tmp_path: Path) -> None:
    text = """
import os
from kdns.node import change
from pyroute2.netlink.exceptions import NetlinkError
class Refused:
    def __init__(self, ip): self.ip = ip
    def __getattr__(self, name): return getattr(self.ip, name)
    def rule(self, *_, **__): raise NetlinkError(95)
made = change.Changes.__init__
change.Changes.__init__ = lambda self, ip, wanted: made(self, Refused(ip), wanted)
sys.argv = ["change", "ensure"]
change.main()
sys.stdout.flush()
os._exit(0)
"""
    with meddled(place, tmp_path, text).wait_for("open") as running:
        (line,) = running.said("cannot be had")
        assert "Operation not supported" in line
        for address in ALL:
            assert who_answers(place, address) == {"node"}


def in_this_process(place: Place, steps: Callable[[Network], Awaitable[None]], **settings: Any) -> str:
    """Do something with a `Network` that is open for ALL; returns its log."""
    read, write = os.pipe()

    async def run() -> None:
        network = Network(Settings(ALL, 53, **settings), Log(Sink(write)), lambda kind: None)
        await network.prepare()
        await network.open(frozenset((address, 53) for address in ALL))
        try:
            await steps(network)
        finally:
            await network.withdraw()
            await network.remove(alone=True)

    with os.fdopen(read, "rb") as log, os.fdopen(write, "wb"):
        place.node.inside(lambda: asyncio.run(run()))
        os.set_blocking(read, False)
        time.sleep(0.1)
        return (log.read() or b"").decode()


async def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.02)


def test_while_nobody_can_say_where_queries_are_led_the_cluster_has_them(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = rtnetlink.view

    def fail(table: int) -> rtnetlink.View:
        raise OSError(24, "Too many open files")

    async def steps(network: Network) -> None:
        follower = asyncio.create_task(network.follow())
        assert len(tables(place.node)) == 1
        monkeypatch.setattr(rtnetlink, "view", fail)
        place.node.ip("rule", "del", "priority", "53", "to", CLUSTER)
        await until(lambda: not tables(place.node), "no table")
        monkeypatch.setattr(rtnetlink, "view", real)
        await until(lambda: bool(tables(place.node)), "the table again")
        assert CLUSTER in place.node.ip("rule")
        follower.cancel()

    log = in_this_process(place, steps, sync_seconds=600)
    assert "cannot see links, rules and routes" in log


def test_it_tells_what_brings_the_queries_of_each_address(place: Place) -> None:
    found: list[dict[str, str]] = []

    async def steps(network: Network) -> None:
        found.append(network.ways())
        await network.suspend()
        found.append(network.ways())
        await network.open(frozenset({(LOCAL, 53)}))
        found.append(network.ways())
        await network.withdraw()
        found.append(network.ways())

    in_this_process(place, steps, sync_seconds=600)
    link = dict.fromkeys(ALL, "") | dict.fromkeys(Settings(ALL, 53).local, "link")
    only = link | {LOCAL: "nftables"}
    assert found == [dict.fromkeys(ALL, "nftables"), link, only, link]


def test_without_a_table_the_link_brings_the_queries(place: Place) -> None:
    found: list[dict[str, str]] = []

    async def steps(network: Network) -> None:
        found.append(network.ways())

    in_this_process(place, steps, setup_iptables=False)
    in_this_process(place, steps, setup_interface=False)
    assert found == [dict.fromkeys(ALL, "link"), {}]


def test_without_the_shared_table_queries_are_intercepted_all_the_same(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "answers", lambda settings, name: "nonsense")

    async def steps(network: Network) -> None:
        assert len(tables(place.node)) == 1

    assert "cannot add table of nftables" in in_this_process(place, steps)


def test_the_shared_table_has_its_rules_once_and_goes_whoever_made_it(place: Place) -> None:
    def work() -> None:
        interception = table.Interception(Settings(ALL, 53))
        interception.begin(ALL)
        interception.check()
        name = table._shared_name(Settings(ALL, 53))
        rules = interception._library.do(f"list table inet {name}")
        interception._library.do(table.answers(Settings(ALL, 53), name))
        assert interception._library.do(f"list table inet {name}") == rules
        interception.end()
        assert "kdns-answers" in state(place.node)
        table.Interception(Settings((LOCAL,), 53)).remove_shared()

    place.node.inside(work)
    assert "kdns-answers" not in state(place.node)


def test_a_table_that_cannot_be_kept_to_this_process_is_not_left_alive(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = nft._sockets, itertools.count(1)

    def sockets() -> set[int]:
        if next(calls) == 2:
            raise OSError(24, "Too many open files")
        return real()

    def work() -> None:
        library = nft.Library()
        monkeypatch.setattr(nft, "_sockets", sockets)
        with pytest.raises(NodeError, match="Too many open files"):
            nft.Owned(library, "table inet kdns-node-1 { flags owner; }")
        assert real() == set()

    place.node.inside(work)
    assert tables(place.node) == []


def test_programs_that_are_started_while_a_table_is_made_do_not_get_it(place: Place) -> None:
    seen: list[bool] = []

    class Watched(nft.Library):
        def run(self, context: int, commands: str) -> str:
            seen.extend(os.get_inheritable(fd) for fd in nft._sockets())
            return super().run(context, commands)

    place.node.inside(lambda: nft.Owned(Watched(), "table inet kdns-node-1 { flags owner; }").close())
    assert seen == [False]


def hang(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let iptables never end."""
    for name in ("iptables", "ip6tables"):
        (directory / name).write_text("#!/bin/sh\nexec sleep 600\n")
        (directory / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


def test_an_iptables_that_hangs_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hang(tmp_path, monkeypatch)
    settings = Settings(("192.0.2.1",), 53)
    start = time.monotonic()
    for work in (iptables.ensure, iptables.remove):
        (note,) = work(iptables.untracking(settings), time.monotonic() + 0.3).failed
        assert "takes too long" in note.text
    assert iptables.stranding(settings, time.monotonic() + 0.3) == []
    assert time.monotonic() - start < 0.3 * 8, "there are 8 rules"


def test_an_iptables_that_hangs_delays_neither_start_nor_end_for_long(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(place.node)
    hang(tmp_path, monkeypatch)
    monkeypatch.setattr(iptables, "SECONDS", 1.0)
    monkeypatch.setattr(network, "REMOVE_SECONDS", 6.0)
    start = time.monotonic()

    async def steps(_: Network) -> None:
        assert len(tables(place.node)) == 1

    in_this_process(place, steps)
    assert time.monotonic() - start < 20
    monkeypatch.undo()
    assert state(place.node) == before
