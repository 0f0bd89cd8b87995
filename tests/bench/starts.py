"""How soon kdns answers after it was started, and what memory it has then and after load. On all CPUs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.bench import load, queries, targets
from tests.bench.cluster import Cluster
from tests.bench.targets import Kdns
from tests.bench.workers import CLIENTS
from tests.bench.workloads import JSON, JSON_TWO, SNAPSHOT, SNAPSHOT_TWO, YAML, Start

PARTS = ("starts",)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure: rounds of starts of these kinds. One from a snapshot comes right behind the one that leaves
    it. fresh: names that never repeat, asked before memory is read again."""

    rounds: int
    kinds: tuple[str, ...]
    fresh: int


FULL = Plan(rounds=5, kinds=(YAML, JSON, SNAPSHOT, JSON_TWO, SNAPSHOT_TWO), fresh=200_000)
SHORT = Plan(rounds=1, kinds=(JSON, SNAPSHOT, JSON_TWO), fresh=15_000)


def measure(folder: Path, cluster: Cluster, plan: Plan, say: Callable[[str], None]) -> dict[str, Start]:
    """Start with an empty state directory, and on what that left, in turns. say: told what begins.

    Raises RuntimeError if kdns or dnsperf fails.
    """
    folder.mkdir()
    repeated = queries.write_repeated(folder / "repeated", cluster)
    fresh = queries.write_fresh(folder / "fresh", cluster, plan.fresh, seed=0)
    found: dict[str, list[Start]] = {kind: [] for kind in plan.kinds}
    for number in range(plan.rounds):
        say(f"starts: round {number + 1} of {plan.rounds}")
        for kind in plan.kinds:
            if kind not in (SNAPSHOT, SNAPSHOT_TWO):
                place = folder / f"{number}-{plan.kinds.index(kind)}"
                target = Kdns(place, workers=2 if kind == JSON_TWO else 1)
                (cluster.write_yaml if kind == YAML else cluster.write_json)(place / "manifests")
            found[kind].append(_start(target, cluster, repeated, fresh))
        for place in folder.glob(f"{number}-*"):
            shutil.rmtree(place)
    return {kind: _medians(starts) for kind, starts in found.items()}


def _start(target: Kdns, cluster: Cluster, repeated: Path, fresh: Path) -> Start:
    """Memory after repeated names and names that never repeat, from as many sockets as reach all workers."""
    try:
        begun = targets.start_with(target, [], cluster)
        load.measure(target, repeated, ["-l", "1", *CLIENTS])
        load.measure(target, fresh, ["-n", "1", *CLIENTS])
        return Start(begun.answered, begun.ready, begun.pss, targets.memory(target))
    finally:
        target.stop()


def _medians(starts: Sequence[Start]) -> Start:
    ready = [start.ready for start in starts if start.ready is not None]
    return Start(
        median(start.answered for start in starts),
        median(ready) if ready else None,
        int(median(start.pss_synced for start in starts)),
        int(median(start.pss_loaded for start in starts)),
    )
