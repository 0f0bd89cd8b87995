"""The cluster's names: kdns, at each of its speeds, beside the kernel's floor and other servers, over UDP and TCP."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.bench import load, native, peers, queries, targets, tcp_load
from tests.bench.cluster import Cluster
from tests.bench.load import Run
from tests.bench.targets import AS_PYTHON, KDNS, PYTHON, Kdns, Target
from tests.bench.workloads import (
    FRESH,
    LIMIT,
    PACED,
    RANDOM,
    REPEATED,
    SUFFIXED,
    TCP_PIPELINED,
    TCP_SHORT,
    Start,
)

PARTS = ("udp", "tcp")
"""What can be measured alone."""
SERVERS = (KDNS, PYTHON, *peers.MAKERS)
OVER_TCP = (KDNS, PYTHON, peers.KNOT, peers.NSD, peers.UNBOUND)
"""Not dnsmasq, which forks for a connection: who is gone cannot be asked what it cost."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure. seconds: of each run of repeated names. fresh: queries of each run of others."""

    rounds: int
    seconds: float
    fresh: int
    servers: Sequence[str]


FULL = Plan(rounds=5, seconds=2, fresh=150_000, servers=SERVERS)
SHORT = Plan(rounds=2, seconds=0.5, fresh=15_000, servers=(KDNS, peers.FLOOR, peers.KNOT, peers.UNBOUND))


@dataclass(frozen=True, slots=True)
class Figures:
    """All that was measured here. starts: one of each other server. memory: PSS of each server after all rounds."""

    versions: dict[str, str] = field(default_factory=dict)
    starts: dict[str, Start] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    runs: dict[str, dict[str, list[Run]]] = field(default_factory=dict)


def measure(folder: Path, cluster: Cluster, plan: Plan, parts: Sequence[str], say: Callable[[str], None]) -> Figures:
    """Measure the parts. say: told what begins, and who is left out.

    Raises RuntimeError if a server or what asks it fails.
    """
    found = Figures()
    if not parts:
        return found
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        servers: list[Target] = []
        for number, name in enumerate(plan.servers):
            target = _target(name, folder / str(number), cluster)
            if target is None:
                say(f"{name} is not installed, so it is left out")
                continue
            say(f"{name}: start")
            stack.callback(target.stop)
            begun = targets.start_with(target, load.pinned(load.SERVER_CPU), cluster)
            if name not in (KDNS, PYTHON):
                found.starts[name] = Start(begun.answered, begun.ready, begun.pss, 0)
            servers.append(target)
        rounds = _Rounds(folder, cluster, plan, servers, parts, say)
        for number in range(plan.rounds):
            rounds.run(number)
        found.runs.update(rounds.runs)
        found.memory.update({target.name: targets.memory(target) for target in servers})
        found.versions.update({target.name: target.version() for target in servers})
    for name, start in found.starts.items():
        found.starts[name] = Start(start.answered, start.ready, start.pss_synced, found.memory[name])
    return found


def _target(name: str, folder: Path, cluster: Cluster) -> Target | None:
    if name not in (KDNS, PYTHON):
        return peers.MAKERS[name](folder, cluster)
    return Kdns.of(cluster, folder, name=name, environ=AS_PYTHON if name == PYTHON else {})


class _Rounds:
    """Every workload on every server in turns, so that what else happens on the machine meets all of them; from round
    to round the servers' order is turned."""

    def __init__(
        self,
        folder: Path,
        cluster: Cluster,
        plan: Plan,
        servers: Sequence[Target],
        parts: Sequence[str],
        say: Callable[[str], None],
    ) -> None:
        self.runs: dict[str, dict[str, list[Run]]] = {}
        self._folder = folder
        self._cluster = cluster
        self._plan = plan
        self._servers = servers
        self._parts = parts
        self._say = say
        self._number = 0
        self._drive = native.build(native.DRIVE, folder)
        self._tcp_load = tcp_load.build(folder)
        self._repeated = queries.write_repeated(folder / "repeated", cluster)

    def run(self, number: int) -> None:
        """A round of all. number: from 0."""
        self._number = number + 1
        servers = self._servers if number % 2 == 0 else self._servers[::-1]
        if "udp" in self._parts:
            self._udp(servers)
        if "tcp" in self._parts:
            self._tcp([server for server in servers if server.name in OVER_TCP])

    def _udp(self, servers: Sequence[Target]) -> None:
        repeated, seconds, seed = self._repeated, self._plan.seconds, self._number
        for server in servers:
            load.measure(server, repeated, ["-n", "2"])  # the names that never repeat have driven these out of caches
        self._each(REPEATED, servers, lambda server: load.measure(server, repeated, ["-l", str(seconds)]))
        self._each(PACED, servers, lambda server: load.drive(self._drive, server, repeated, seconds, load.PACE))
        self._each(LIMIT, servers, lambda server: load.drive(self._drive, server, repeated, seconds / 2, 0))
        path, count = self._folder / "fresh", self._plan.fresh
        queries.write_suffixed(path, count, seed)
        self._each(SUFFIXED, servers, lambda server: load.measure(server, path, ["-n", "1"]))
        queries.write_random(path, count, seed)
        self._each(RANDOM, servers, lambda server: load.measure(server, path, ["-n", "1"]))
        queries.write_fresh(path, self._cluster, count, seed + 1000)
        self._each(FRESH, servers, lambda server: load.measure(server, path, ["-n", "1"]))

    def _tcp(self, servers: Sequence[Target]) -> None:
        for workload, options in ((TCP_SHORT, tcp_load.SHORT), (TCP_PIPELINED, tcp_load.PIPELINED)):
            ask = partial(self._ask_tcp, options=[*options, "-l", str(math.ceil(self._plan.seconds))])
            self._each(workload, servers, ask)

    def _ask_tcp(self, server: Target, options: Sequence[str]) -> Run:
        return tcp_load.measure(self._tcp_load, server, self._repeated, options)

    def _each(self, workload: str, servers: Sequence[Target], run: Callable[[Target], Run]) -> None:
        self._say(f"round {self._number} of {self._plan.rounds}: {workload}")
        found = self.runs.setdefault(workload, {server.name: [] for server in self._servers if server in servers})
        for server in servers:
            found[server.name].append(run(server))
