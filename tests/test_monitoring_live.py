"""Dashboards and alerts in a real Prometheus that scrapes running servers: first all is well, then it is not."""

from __future__ import annotations

import contextlib
import itertools
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dns.exception
import dns.message
import dns.query
import pytest
import yaml

from tests.conftest import require
from tests.support import procs
from tests.support.apiserver import ApiServer
from tests.support.monitoring import BOARDS, QUERIES, RULE, Wanted, filled, variables
from tests.support.netns import Netns
from tests.support.node import IPV4, Cgroup, Instance, Topology
from tests.support.objects import Object, endpoint, endpoint_slice, namespace, service
from tests.support.prometheus import Prometheus, numbers, relayed
from tests.support.server import Server
from tests.support.upstream import ADDRESS, Asked, FakeUpstream, reply

COREFILE = """\
.:{$DNS} {
    bind 127.0.0.1
    errors
    health 127.0.0.1:{$HEALTH}
    prometheus 127.0.0.1:{$METRICS} {
        top_names
    }
    reload 2s 0s
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        kubeconfig $manifests/../../kubeconfig
        fallthrough in-addr.arpa
    }
    hosts $manifests/../../hosts hosts.test {
        reload 200ms
        fallthrough
    }
    forward . {$FIRST} {$SECOND} {
        policy sequential
        max_concurrent 1000
    }
    cache 30
    loop
    timeouts {
        read 1s
        write 1s
        idle 1s
    }
    $plugins
}
"""
"""The same text for both servers, as in a ConfigMap."""
HEALTHY_SECONDS = 6.0
RATE = "10s"
CALM_SECONDS = 10.0
BROKEN_SECONDS = 30.0
VALUES: dict[str, dict[str, list[str]]] = {
    "kdns-cluster": {"job": ["kube-dns"], "instance": ["kdns-a", "kdns-b"], "zone": ["."]},
    "kdns-node": {"job": ["node-local-dns"], "instance": ["node-1"], "zone": [".", "cluster.local.", "in-addr.arpa."]},
}
"""What each dashboard's variables can have; of `zone`, some."""
WELL = {"Alerts": [0], "SERVFAIL": [0], "Upstreams down": [0], "Restarts and panics, 1 h": [0]}
STATS = {
    "kdns-cluster": WELL | {"Instances ready": [2, 2], "Age of the cluster's data": [0]},
    "kdns-node": WELL | {"Nodes answering": [1, 1], "Addresses not intercepted": [0]},
}
"""What single numbers are while all is well, but for those that depend on the load."""
BROKEN = {
    "KdnsConfigurationOutdated",
    "KdnsConfigurationsDiffer",
    "KdnsHostsUnreadable",
    "KdnsNodeSetupErrors",
    "KdnsUpstreamDown",
    "KdnsUpstreamsDown",
    "KdnsWatchErrors",
    "KdnsWorkersRestarting",
}
"""The alerts that `Stage.break_things` is about."""
NO_ANSWER = OSError, EOFError, dns.exception.DNSException
"""What a question may end with while things are broken."""
EMPTY = {
    "kdns-node: Addresses that are not intercepted: A": "all of them are",
    "kdns-node: Discarded messages of upstreams: A": "the node's upstreams send what they were asked for",
    "kdns-node: Failed health requests: A": "none has failed",
    "kdns-node: Failures of upstreams: C": "no connection was lost with a query on it",
    "kdns-node: Memory: B": "ip netns exec hides control groups, and so their limits",
    "kdns-node: Names asked for most: A": "the node's Corefile has no top_names",
    "kdns-node: TCP connections: B": "none was idle for 10 s",
    **dict.fromkeys(
        (
            *(f"{board}: Policy and templates: {part}" for board in BOARDS for part in "ABC"),
            *(f"kdns-cluster: Transfers and NOTIFY: {part}" for part in "ABC"),
            *(f"kdns-cluster: Certificates {what}: A" for what in ("end in", "that cannot be used")),
            "kdns-cluster: Copies that are too old: A",
            "kdns-node: Age of copies: A",
            "kdns-node: Updates of copies: A",
            "kdns-cluster: TLS handshakes: A",
        ),
        "no Corefile here has these directives",
    ),
}
"""Queries that find nothing here, and why."""
UNLIMITED = {"kdns-cluster: Memory: B"}
"""Those that need a control group with a memory limit, which not everybody may make."""


def cluster() -> list[Object]:
    return [
        namespace("a"),
        service("web", "a", ips=["10.96.0.1"]),
        service("database", "a", ips=["None"]),
        *(
            item
            for n in range(20)
            for item in (
                service(f"many-{n}", "a", ips=[f"10.96.1.{n}"]),
                endpoint_slice(f"many-{n}", [endpoint(f"10.1.0.{n}")], "a"),
            )
        ),
    ]


async def answer(asked: Asked) -> None:
    """Names below `late` get an answer to another question first; connections are reset for those below `lost`."""
    if asked.name.endswith("late.test"):
        asked.send(b"\xff\xff" + reply(asked)[2:])
    if asked.name.endswith("lost.test") and asked.on is not None and asked.on.number % 2 == 0:
        asked.reset()
        return
    asked.send(reply(asked, *([f"A {ADDRESS}"] if asked.rdtype == "A" else [])))


class Traffic:
    """Asks all kinds of questions until told to stop."""

    def __init__(self, servers: list[Server], pods: list[tuple[Netns, str]]) -> None:
        self._stop = threading.Event()
        self._servers = servers
        self._pods = pods
        self._threads = [
            threading.Thread(target=self._run, args=(work,), daemon=True) for work in (self._ask, self._pod)
        ]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, work: Callable[[int], None]) -> None:
        for turn in itertools.count():
            work(turn)
            if self._stop.wait(0.2):
                return

    def _ask(self, turn: int) -> None:
        names = ["web.a", "many-3.a", "nothing.a"]
        questions = [(f"{name}.svc.cluster.local", rdtype) for name in names for rdtype in ("A", "AAAA")]
        questions += [("web.a.svc.cluster.local", "SRV"), ("1.0.96.10.in-addr.arpa", "PTR"), ("a.hosts.test", "A")]
        questions += [("again.test", "A")]
        questions += [(f"{turn}{zone}.test", "A") for zone in ("", ".late", ".lost")]
        for server in self._servers:
            for name, rdtype in questions:
                with contextlib.suppress(*NO_ANSWER):
                    server.query(name, rdtype, tcp=turn % 3 == 0, want_dnssec=turn % 5 == 0, timeout=0.5)
            server.raw_udp(bytes(5), timeout=0.01)

    def _pod(self, turn: int) -> None:
        names = [f"service-{turn % 20}.default.svc.cluster.local", f"new-{turn}.default.svc.cluster.local"]
        names += ["www1.example", f"www{turn}.example", "1.0.96.10.in-addr.arpa"]
        questions = [(name, rdtype) for name in names for rdtype in ("A", "AAAA")]
        for where, address in self._pods:
            ask_from(where, address, questions, tcp=turn % 4 == 0)
            with where.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
                sock.sendto(bytes(5), (address, 53))


def ask_from(where: Netns, address: str, questions: list[tuple[str, str]], *, tcp: bool = False) -> None:
    """Ask from a namespace; whether there are answers does not matter."""

    def ask() -> None:
        for name, rdtype in questions:
            query = dns.message.make_query(name, rdtype, use_edns=0)
            with contextlib.suppress(*NO_ANSWER):
                (dns.query.tcp if tcp else dns.query.udp)(query, address, timeout=0.3)

    where.inside(ask)


Stats = dict[str, dict[str, list[float]]]


def stats(prometheus: Prometheus) -> Stats:
    """What each dashboard's single numbers are now, by the panel's title."""
    found: Stats = {board: {} for board in BOARDS}
    for wanted in QUERIES:
        if wanted.panel["type"] == "stat":
            values = [value for series in prometheus.query(chosen(wanted)) for value in numbers(series)]
            found[wanted.board].setdefault(wanted.panel["title"], []).extend(values)
    return found


def chosen(wanted: Wanted, *, all_of_them: bool = True) -> str:
    """A query with its variables, as Grafana fills them in where everything is selected, or several values."""
    values = {"__rate_interval": RATE}
    for name, found in VALUES[wanted.board].items():
        every = variables(wanted.board)[name].get("allValue") if all_of_them else None
        words = [word.replace(".", r"\\.") for word in found]
        values[name] = every or (words[0] if len(words) == 1 else f"({'|'.join(words)})")
    return filled(wanted.expr, values)


@dataclass(frozen=True, slots=True)
class Scene:
    """What happened. calm, broken: the alerts that were there then; calm_stats, broken_stats: single numbers."""

    prometheus: Prometheus
    began: float
    ended: float
    limited: bool
    calm: list[dict[str, Any]]
    broken: list[dict[str, Any]]
    unhealthy: list[str]
    calm_stats: Stats
    broken_stats: Stats


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    require("prometheus", "unbound", "knotd", "iptables", "ip6tables", "nft", "conntrack", "sysctl")
    with contextlib.ExitStack() as stack:
        yield Stage(tmp_path_factory.mktemp("scene"), stack).play()


class Stage:
    """Two servers of a cluster, a node with an instance, and Prometheus."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self._enter = stack.enter_context
        self.upstreams = [self._enter(FakeUpstream(answer)) for _ in range(2)]
        self.api = self._enter(ApiServer(folder / "api"))
        self.api.load(cluster())
        self.api.kubeconfig(folder / "kubeconfig")
        self.hosts = folder / "hosts"
        self.hosts.write_text("192.0.2.7 a.hosts.test\n")
        self.limited = Cgroup.available()
        self.servers = [self._enter(self._server(name)) for name in VALUES["kdns-cluster"]["instance"]]
        (folder / "topology").mkdir()
        self.topology = self._enter(Topology(folder / "topology"))
        self.instance = self._enter(Instance(self.topology, folder / "node"))
        self.prometheus = self._watch()
        self._enter(Traffic(self.servers, list(zip(self.topology.pods, IPV4.served[::-1], strict=True))))

    def _server(self, name: str) -> Server:
        corefile = COREFILE.replace("$manifests/../..", str(self.folder))
        prefix = self._enter(Cgroup(name, 256 << 20)).prefix if self.limited else ()
        server = Server(self.folder / name, corefile=corefile, addresses=["127.0.0.1"], prefix=prefix)
        server.environ |= {
            "DNS": str(server.port),
            "HEALTH": str(server.health_port),
            "METRICS": str(server.metrics_port),
            "FIRST": self.upstreams[0].to,
            "SECOND": self.upstreams[1].to,
        }
        return server

    def _watch(self) -> Prometheus:
        node = self.topology.node
        relay = self._enter(relayed(lambda: node.inside(lambda: socket.create_connection(("127.0.0.1", 9253), 5))))
        rules = self.folder / "rules.yaml"
        rules.write_text(yaml.safe_dump(RULE["spec"]))
        targets = {
            "kube-dns": {server.folder.name: f"127.0.0.1:{server.metrics_port}" for server in self.servers},
            "node-local-dns": {"node-1": relay},
        }
        return self._enter(Prometheus(self.folder / "prometheus", targets, rules))

    def play(self) -> Scene:
        """First all is well, then it is not."""
        began = time.time()
        self.api.churn(10, 60, limit=10)
        with contextlib.ExitStack() as idle:
            for server in self.servers:
                idle.enter_context(server.tcp_socket()).sendall(b"\0")  # of a message's length, the half
            time.sleep(HEALTHY_SECONDS)
            prometheus = self.prometheus
            calm = self.wait_calm()
            unhealthy, calm_stats = prometheus.unhealthy(), stats(prometheus)
            self.break_things()
            self.wait_broken()
            broken, broken_stats = prometheus.alerts(), stats(prometheus)
            time.sleep(1.5)  # for what is a rate
            end = time.time()
            return Scene(prometheus, began, end, self.limited, calm, broken, unhealthy, calm_stats, broken_stats)

    def wait_calm(self) -> list[dict[str, Any]]:
        """Until no alert is left of what a busy machine may bring, but not for ever; those that are."""
        end = time.monotonic() + CALM_SECONDS
        while (found := self.prometheus.alerts()) and time.monotonic() < end:
            time.sleep(0.2)
        return found

    def wait_broken(self) -> None:
        """Until all that is broken shows, which takes as long as queries wait and connections are tried."""
        end = time.monotonic() + BROKEN_SECONDS
        while left := self._unseen():
            assert time.monotonic() < end, f"not there after {BROKEN_SECONDS} s: {left}"
            self.break_again(left)
            time.sleep(0.5)

    def _unseen(self) -> set[str]:
        """Alerts that are not there, and single numbers that are as if all was well."""
        found = stats(self.prometheus)
        well = {
            f"{board}: {title}" for board in BOARDS for title in WELL if not min(found[board][title], default=0) > 0
        }
        return well | (BROKEN - names(self.prometheus.alerts()))

    def break_things(self) -> None:
        """What BROKEN names."""
        first, second = self.servers
        for upstream in self.upstreams:
            upstream.stop()
        self.topology.silence_upstream(True)
        self.hosts.unlink()
        first.write_corefile(plugins="nsid other")
        second.write_corefile(plugins="nonsense")
        self.api.forbid("endpointslices")
        self.api.break_watches()

    def break_again(self, left: set[str]) -> None:
        """What is mended at once, and shows only when it happens often. left: what does not show yet."""
        if "KdnsNodeSetupErrors" in left:
            with contextlib.suppress(subprocess.CalledProcessError):  # it was not put back yet
                self.topology.node.ip("rule", "delete", "pref", "53")
        if "KdnsWorkersRestarting" in left:
            procs.kill(self.servers[1].worker_pids())
        if "kdns-node: Restarts and panics, 1 h" in left:
            procs.kill(self.instance.workers())


def names(alerts: list[dict[str, Any]]) -> set[str]:
    return {alert["labels"]["alertname"] for alert in alerts}


def test_everything_is_scraped(scene: Scene) -> None:
    assert scene.unhealthy == []


def test_no_alert_is_even_pending_while_all_is_well(scene: Scene) -> None:
    assert names(scene.calm) == set()


def test_what_breaks_is_told(scene: Scene) -> None:
    assert names(scene.broken) >= BROKEN


def test_what_is_told_is_complete_sentences(scene: Scene) -> None:
    for alert in scene.broken:
        for text in alert["annotations"].values():
            assert "<" not in text.replace("KdnsNo", ""), text
            assert "  " not in text.replace("\n  ", "\n"), text


@pytest.mark.parametrize("board", BOARDS)
def test_single_numbers_are_right_while_all_is_well(scene: Scene, board: str) -> None:
    found = scene.calm_stats[board]
    assert {title: found[title] for title in STATS[board]} == STATS[board]
    [queries], [latency] = found["Queries"], found["99 % answered within"]
    assert queries > 10
    assert 0 < latency < 1


@pytest.mark.parametrize("board", BOARDS)
def test_single_numbers_tell_what_is_broken(scene: Scene, board: str) -> None:
    found = scene.broken_stats[board]
    for title in WELL:
        assert min(found[title]) > 0, title


@pytest.mark.parametrize("all_of_them", [True, False], ids=["All", "several"])
def test_every_query_finds_something(scene: Scene, all_of_them: bool) -> None:
    nothing = set()
    for wanted in QUERIES:
        query = chosen(wanted, all_of_them=all_of_them)
        if wanted.target["instant"]:
            found = scene.prometheus.query(query)
        else:
            found = scene.prometheus.over(query, scene.began, scene.ended)
        values = [value for series in found for value in numbers(series)]
        if not values:
            nothing.add(wanted.title)
        if wanted.panel["fieldConfig"]["defaults"]["unit"] == "percentunit":
            assert all(-1e-9 < value < 1 + 1e-9 for value in values), wanted.title
    assert nothing == EMPTY.keys() | (set() if scene.limited else UNLIMITED)


@pytest.mark.parametrize("board", BOARDS)
def test_variables_find_their_values(scene: Scene, board: str) -> None:
    for name, values in VALUES[board].items():
        selector, _, label = variables(board)[name]["definition"].removeprefix("label_values(").rpartition(", ")
        found = scene.prometheus.label_values(filled(selector, {"job": VALUES[board]["job"][0]}), label.rstrip(")"))
        assert set(values) <= set(found), name
        assert name != "instance" or values == found
