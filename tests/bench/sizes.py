"""Clusters of several sizes: a query costs the same in each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench import load, queries, targets
from tests.bench.cluster import Cluster
from tests.bench.load import Run
from tests.bench.targets import Kdns
from tests.bench.workloads import SIZED, SIZED_ANY

PARTS = ("sizes",)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure. sizes: Services of each cluster. endpoints: of each Service. queries: of each run."""

    rounds: int
    sizes: tuple[int, ...]
    endpoints: int
    queries: int


FULL = Plan(rounds=5, sizes=(100, 10_000, 100_000), endpoints=2, queries=200_000)
SHORT = Plan(rounds=1, sizes=(100, 10_000), endpoints=2, queries=50_000)


def measure(folder: Path, plan: Plan, say: Callable[[str], None]) -> dict[str, dict[str, list[Run]]]:
    """Ask each cluster in turns. say: told what begins.

    Raises RuntimeError if a server or dnsperf fails.
    """
    folder.mkdir()
    clusters = {f"{size:,} Services": Cluster(size, plan.endpoints) for size in plan.sizes}
    found: dict[str, dict[str, list[Run]]] = {
        workload: {name: [] for name in clusters} for workload in (SIZED, SIZED_ANY)
    }
    with contextlib.ExitStack() as stack:
        servers = {}
        for name, cluster in clusters.items():
            say(f"sizes: start with {name}")
            servers[name] = target = Kdns.of(cluster, folder / str(cluster.services))
            stack.callback(target.stop)
            targets.start_with(target, load.pinned(load.SERVER_CPU), cluster)
        for number in range(plan.rounds):
            say(f"sizes: round {number + 1} of {plan.rounds}")
            for workload, write in ((SIZED, queries.write_unlike), (SIZED_ANY, queries.write_any)):
                for name, target in servers.items():
                    path = write(folder / "queries", clusters[name], plan.queries, number)
                    found[workload][name].append(load.measure(target, path, ["-n", "1"]))
    return found
