"""Two workers beside one: what the second costs. Neither is kept on a CPU, as two need two; who asks them takes a part
of one. What a query costs depends on how many a worker finds waiting: with the same load for both, each of two finds
fewer; so there is a workload as well in which two have twice the load."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench import load, queries, targets
from tests.bench.cluster import Cluster
from tests.bench.load import Run
from tests.bench.targets import Kdns
from tests.bench.workloads import EACH, ONE, TWO, WORKERS, WORKERS_EACH

PARTS = ("workers",)
CLIENTS = ("-c", "20")
"""Sockets: the kernel spreads them over the workers."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure. seconds: of each run."""

    rounds: int
    seconds: float


FULL = Plan(rounds=5, seconds=4)
SHORT = Plan(rounds=2, seconds=1)


def measure(folder: Path, cluster: Cluster, plan: Plan, say: Callable[[str], None]) -> dict[str, dict[str, list[Run]]]:
    """Ask one and two workers in turns. say: told what begins.

    Raises RuntimeError if a server or dnsperf fails.
    """
    folder.mkdir()
    repeated = queries.write_repeated(folder / "repeated", cluster)
    found: dict[str, dict[str, list[Run]]] = {workload: {ONE: [], TWO: []} for workload in (WORKERS, WORKERS_EACH)}
    with contextlib.ExitStack() as stack:
        servers = []
        for name, number in ((ONE, 1), (TWO, 2)):
            target = Kdns.of(cluster, folder / str(number), name=name, workers=number)
            stack.callback(target.stop)
            targets.start_with(target, [], cluster)
            load.measure(target, repeated, ["-n", "10", *CLIENTS])  # so that each worker has seen each name
            servers.append(target)
        for number in range(plan.rounds):
            say(f"workers: round {number + 1} of {plan.rounds}")
            options = ["-l", str(plan.seconds), *CLIENTS]
            for target in servers:
                found[WORKERS][target.name].append(load.measure(target, repeated, options))
            for target in servers:
                rate = ["-Q", str(EACH * target.server.workers)]
                found[WORKERS_EACH][target.name].append(load.measure(target, repeated, [*options, *rate]))
    return found
