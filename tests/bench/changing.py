"""Repeated names while Services change: what the changes cost the workers, which is not the supervisor's share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench import api, load, queries, targets
from tests.bench.api import RATE, Follower
from tests.bench.cluster import Cluster
from tests.bench.load import Run
from tests.bench.workloads import BUSY, CHANGING, CHANGING_PACED, QUIET
from tests.support.apiserver import ApiServer

PARTS = ("changes",)
_GROUPS = 5
"""Each round changes the Services of other namespaces, as an address is new only once."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure. seconds: of each stretch, without and with changes."""

    rounds: int
    seconds: float


FULL = Plan(rounds=5, seconds=4)
SHORT = Plan(rounds=1, seconds=2)


def measure(folder: Path, cluster: Cluster, plan: Plan, say: Callable[[str], None]) -> dict[str, dict[str, list[Run]]]:
    """Ask one worker that follows an API server, in turns without changes and with 200 a second. say: told what
    begins.

    Raises RuntimeError if kdns or dnsperf fails.
    """
    folder.mkdir()
    found: dict[str, dict[str, list[Run]]] = {
        workload: {QUIET: [], BUSY: []} for workload in (CHANGING, CHANGING_PACED)
    }
    repeated = queries.write_repeated(folder / "repeated", cluster)
    say("changes: start")
    with api.serving(folder / "api", cluster) as server:
        follower = Follower(folder / "kdns", server, 1)
        try:
            targets.start_with(follower, load.pinned(load.SERVER_CPU), cluster)
            for number in range(plan.rounds):
                say(f"changes: round {number + 1} of {plan.rounds}")
                for workload, options in ((CHANGING, []), (CHANGING_PACED, ["-Q", str(load.PACE)])):
                    load.measure(follower, repeated, ["-n", "2"])
                    options = ["-l", str(plan.seconds), *options]
                    found[workload][QUIET].append(load.measure(follower, repeated, options, _workers(follower)))
                    busy = _while_changing(server, follower, repeated, plan.seconds, options, number)
                    found[workload][BUSY].append(busy)
        finally:
            follower.stop()
    return found


def _while_changing(
    server: ApiServer, follower: Follower, repeated: Path, seconds: float, options: list[str], number: int
) -> Run:
    """A run, and what is changed meanwhile. Raises RuntimeError if there were fewer changes than there should be."""
    server.churn(RATE, seconds + 1, under=f"team-{number % _GROUPS}")
    run = load.measure(follower, repeated, options, _workers(follower))
    changed = len(server.wait_churn(seconds + 60))
    if changed < RATE * seconds * 0.9:
        raise RuntimeError(f"the API server made {changed} changes in {seconds + 1} s, not {RATE} a second")
    return run


def _workers(follower: Follower) -> list[int]:
    return follower.server.worker_pids()
