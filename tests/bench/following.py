"""A thousand nodes that follow a cluster's zone on one worker, in simulation: what a change costs the server, how long
it takes to the last of them, what it costs when all connect at once, and how long others' queries wait meanwhile.

The server has one CPU. The nodes, the API server and who else asks share the other, so times are upper bounds.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.bench import api, load, native, queries, targets
from tests.bench.api import RATE, Times
from tests.bench.cluster import ZONE, Cluster
from tests.bench.load import PACE
from tests.bench.nodes import Nodes
from tests.support.apiserver import ApiServer, Changed

PARTS = ("followers",)
SLOW = 2
"""Changes a second that come one by one, as each is everywhere before the next."""
_COPIED_SECONDS = 120.0
_MISSED = 200
"""Changes that nodes have missed which come back."""
_LEAD = 0.3
"""Seconds of other queries before nodes connect."""
_SETTLED = 1
"""Seconds after the last change."""
_BRIEF = 2
"""And all of them, where nodes get little."""
_COPIED = 2000
"""Services whose records all nodes get in about a second."""
_GROUPS = 5
"""Each stretch changes other Services, as an address is new only once."""
_PLUGINS = f"transfer {ZONE} {{\n        to *\n    }}"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure. sizes: of each turn, how many nodes and how many Services. seconds: of each stretch."""

    sizes: tuple[tuple[int, int], ...]
    seconds: int


FULL = Plan(sizes=((1000, 1000), (1000, 10_000), (250, 10_000)), seconds=10)
SHORT = Plan(sizes=((200, 1000),), seconds=3)


@dataclass(frozen=True, slots=True)
class Others:
    """Queries of others at an even rate: how many had an answer, how many had none, and microseconds to the answer."""

    answered: int
    lost: int
    p50: float
    p99: float
    longest: float


@dataclass(frozen=True, slots=True)
class Stretch:
    """Changes at an even rate. count: of them. cpu: seconds of the supervisor and of the worker. transfers: by kind,
    see Nodes. reached: from the event leaving the API server to each node that was sent the change, which another one
    may have undone before. first, last: the same to the first and the last node, for each change. others: None
    without such queries."""

    rate: int
    count: int
    cpu: tuple[float, float]
    transfers: dict[str, int]
    reached: Times | None
    first: Times | None
    last: Times | None
    others: Others | None


@dataclass(frozen=True, slots=True)
class Storm:
    """All nodes connect at once. seconds: until all of them have it. failed: answers that were none, and connections
    that were ended. others: from shortly before, for some seconds."""

    seconds: float
    cpu: tuple[float, float]
    transfers: dict[str, int]
    failed: int
    received: int
    others: Others


@dataclass(frozen=True, slots=True)
class Followed:
    """A cluster and its nodes. alone, followed: stretches without and with them, "slow" and "busy". costs: microseconds
    of CPU time that a change of each takes for a node, beyond what it takes without any. storms: by what the nodes had.
    memory: PSS in bytes by when."""

    cluster: Cluster
    nodes: int
    alone: dict[str, Stretch]
    followed: dict[str, Stretch]
    costs: dict[str, float]
    storms: dict[str, Storm]
    memory: dict[str, int]


@dataclass(frozen=True, slots=True)
class Figures:
    """All that was measured here."""

    clusters: list[Followed] = field(default_factory=list)


def measure(folder: Path, plan: Plan, parts: Sequence[str], say: Callable[[str], None]) -> Figures:
    """Measure with each cluster. say: told what begins.

    Raises RuntimeError if kdns fails, or nodes do not get what there is.
    """
    found = Figures()
    if not parts:
        return found
    folder.mkdir()
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {int(load.CLIENT_CPU)})
    try:
        for number, (nodes, services) in enumerate(plan.sizes):
            cluster = Cluster(services)
            with api.serving(folder / f"api-{number}", cluster) as server:
                centre = _Centre(folder / str(number), server, cluster, nodes, plan.seconds, say)
                found.clusters.append(centre.run())
    finally:
        os.sched_setaffinity(0, cpus)
    return found


class _Centre:
    """A kdns that is followed."""

    def __init__(
        self,
        folder: Path,
        server: ApiServer,
        cluster: Cluster,
        nodes: int,
        seconds: int,
        say: Callable[[str], None],
    ) -> None:
        self._server = server
        self._cluster = cluster
        self._count = nodes
        self._seconds = seconds
        self._say = say
        self._kdns = api.Follower(folder, server, 1, _PLUGINS)
        self._drive = native.build(native.DRIVE, folder)
        self._asked = queries.write_repeated(folder / "repeated", cluster)
        self._changed = 0
        self._nodes = Nodes(self._kdns.port, ZONE, nodes)

    def run(self) -> Followed:
        """Measure all of it."""
        memory = {}
        copied = max(_BRIEF, self._cluster.services // _COPIED)
        try:
            targets.start_with(self._kdns, load.pinned(load.SERVER_CPU), self._cluster)
            load.measure(self._kdns, self._asked, ["-n", "2"])
            rates = {"slow": SLOW, "busy": RATE}
            alone = {kind: self._stretch(rate, f"{rate} changes a second") for kind, rate in rates.items()}
            memory["without nodes"] = targets.memory(self._kdns)
            storms = {"nothing": self._storm("with nothing", copied, b"")}
            memory["with nodes"] = targets.memory(self._kdns)
            followed = {
                kind: self._stretch(rate, f"{rate} changes a second, {self._count:,} nodes")
                for kind, rate in rates.items()
            }
            self._nodes.close()
            storms["all"] = self._storm("with all of it", _BRIEF)
            self._nodes.close()
            self._change(RATE, _MISSED / RATE)
            self._server.wait_churn(30)
            storms["most"] = self._storm(f"after {_MISSED} changes", _BRIEF)
            self._nodes.close()
            storms["another lineage"] = self._storm("with another lineage", copied, b"another!")
            memory["after all of it"] = targets.memory(self._kdns)
        finally:
            self._nodes.close()
            self._kdns.stop()
        costs = {kind: cost(alone[kind], followed[kind], self._count) for kind in followed}
        return Followed(self._cluster, self._count, alone, followed, costs, storms, memory)

    def _change(self, rate: int, seconds: float) -> None:
        """Begin to change Services that have not had their turn."""
        self._server.churn(rate, seconds, under=f"team-{self._changed % _GROUPS}")
        self._changed += 1

    def _stretch(self, rate: int, title: str) -> Stretch:
        self._say(f"{self._cluster.services:,} Services: {title}")
        nodes, seconds = self._nodes, self._seconds
        nodes.clear()
        nodes.run(1)
        before = self._kdns.cpu()
        others = self._drive_for(seconds) if rate == RATE else None
        self._change(rate, seconds)
        nodes.run(seconds + _SETTLED)
        spent = _between(before, self._kdns.cpu())
        changed = self._server.wait_churn(seconds + 60)
        waited = _finished(others) if others is not None else None
        reached, first, last = map(_times, _delays(nodes, changed))
        return Stretch(rate, len(changed), spent, dict(nodes.transfers), reached, first, last, waited)

    def _storm(self, title: str, asked: int, lineage: bytes | None = None) -> Storm:
        self._say(f"{self._cluster.services:,} Services: {self._count:,} nodes connect {title}")
        nodes = self._nodes
        nodes.clear()
        nodes.run(1)
        others = self._drive_for(asked)
        time.sleep(_LEAD)
        before = self._kdns.cpu()
        begun = time.monotonic()
        nodes.connect(lineage)
        nodes.run(_COPIED_SECONDS, nodes.settled)
        seconds = time.monotonic() - begun
        spent = _between(before, self._kdns.cpu())
        if not nodes.settled():
            raise RuntimeError(f"after {seconds:.0f} s there are nodes without the zone: {nodes.transfers}")
        nodes.run(asked + 1, lambda: others.poll() is not None)
        return Storm(seconds, spent, dict(nodes.transfers), nodes.failed, nodes.received, _finished(others))

    def _drive_for(self, seconds: float) -> subprocess.Popen[str]:
        command = [str(self._drive), str(self._kdns.port), str(self._asked), str(seconds), str(PACE)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _finished(others: subprocess.Popen[str]) -> Others:
    text, _ = others.communicate(timeout=30)
    if others.returncode:
        raise RuntimeError(f"drive: {others.returncode}")
    found = json.loads(text)
    answered = found["answered"]
    return Others(answered, found["sent"] - answered, found["p50"], found["p99"], found["longest"])


def cost(alone: Stretch, followed: Stretch, nodes: int) -> float:
    """Microseconds of CPU time that a change takes for a node, beyond what it takes without any."""
    each, without = (sum(stretch.cpu) / stretch.count for stretch in (followed, alone))
    return (each - without) / nodes * 1e6


def _between(before: tuple[float, float], after: tuple[float, float]) -> tuple[float, float]:
    return after[0] - before[0], after[1] - before[1]


def _delays(nodes: Nodes, changed: list[Changed]) -> tuple[list[float], list[float], list[float]]:
    """Seconds from each change to each node, and for each change to the first and to the last one."""
    events = {one.address: one.time for one in changed}
    by_address: dict[str, list[float]] = {}
    for part in nodes.parts:
        for address in set(part.added) & events.keys():
            by_address.setdefault(address, []).extend(at - events[address] for at in part.times)
    seen = [times for times in by_address.values() if times]
    return [at for times in seen for at in times], [min(times) for times in seen], [max(times) for times in seen]


def _times(found: list[float]) -> Times | None:
    if not found:
        return None
    found.sort()
    return Times(len(found), median(found), found[int(len(found) * 0.99)], found[-1])
