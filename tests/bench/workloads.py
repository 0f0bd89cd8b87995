"""What is asked, by its name in tables, and what kdns is meant to reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from tests.bench.load import PACE, Run
from tests.bench.peers import DNSDIST, FLOOR, KNOT, UNBOUND
from tests.bench.targets import KDNS

REPEATED = "repeated names"
SUFFIXED = "NXDOMAIN under search suffixes, each name new"
RANDOM = "NXDOMAIN of random labels, each name new"
FRESH = "Services, endpoints and NXDOMAIN, hardly a name twice"
PACED = f"repeated names at an even {PACE:,} q/s"
LIMIT = "repeated names, as many as it takes"
TCP_SHORT = "TCP, one query a connection"
TCP_PIPELINED = "TCP, 100 pipelined"
DOT_FEW, DOT = "DNS over TLS, 10 under way", "DNS over TLS, 100 under way"
DOT_SHORT = "DNS over TLS, one query a connection"
DOH_FEW, DOH = "DNS over HTTPS (GET), 10 under way", "DNS over HTTPS (GET), 100 under way"
DOH_POST = "DNS over HTTPS (POST), 100 under way"
HITS = "forwarded names, from the cache"
MISSES = "forwarded names, each new, over TCP to a local Knot"
SIZED, SIZED_ANY = "random Services, no query seen before", "random Services, some seen before"
CHANGING, CHANGING_PACED = "repeated names during changes", f"repeated names at {PACE:,} q/s during changes"
EACH = 30_000
WORKERS, WORKERS_EACH = "repeated names from 20 sockets", f"the same, {EACH:,} q/s for each worker"

QUIET, BUSY = "kdns", "kdns, 200 changes a second"
ONE, TWO = "kdns, 1 worker", "kdns, 2 workers"
JSON, YAML, SNAPSHOT = "kdns, JSON", "kdns, YAML", "kdns, snapshot"
"""What kdns starts from."""
JSON_TWO, SNAPSHOT_TWO = f"{JSON}, 2 workers", f"{SNAPSHOT}, 2 workers"

Runs = Mapping[str, Mapping[str, Sequence[Run]]]
"""By workload, then by server, one for each round."""
FIGURES = {"cpu": "CPU", "p99": "p99"}
"""A field of Run, and its short name."""


@dataclass(frozen=True, slots=True)
class Start:
    """Medians of starts of one kind. Seconds to the first right answer and to readiness (None: it does not tell); PSS
    in bytes after the first sync and after load."""

    answered: float
    ready: float | None
    pss_synced: int
    pss_loaded: int


@dataclass(frozen=True, slots=True)
class Ratio:
    """The figure of one server is at most `bound` times that of another."""

    workload: str
    subject: str
    reference: str
    bound: float
    figure: str = "cpu"


@dataclass(frozen=True, slots=True)
class Spread:
    """The highest of all figures of a workload is at most `bound` times the lowest."""

    workload: str
    bound: float


@dataclass(frozen=True, slots=True)
class Limit:
    """A field of a Start is at most `bound`."""

    start: str
    field: str
    bound: float


AIMS: tuple[Ratio | Spread | Limit, ...] = (
    Ratio(REPEATED, KDNS, FLOOR, 1.15),
    Ratio(REPEATED, KDNS, KNOT, 1.0),
    Ratio(SUFFIXED, KDNS, KNOT, 1.25),
    Ratio(RANDOM, KDNS, KNOT, 1.25),
    Ratio(PACED, KDNS, KNOT, 0.8),
    Ratio(PACED, KDNS, KNOT, 1.0, "p99"),
    Ratio(HITS, KDNS, UNBOUND, 0.7),
    Ratio(MISSES, KDNS, UNBOUND, 1.5),
    Ratio(TCP_SHORT, KDNS, UNBOUND, 1.0),
    Ratio(TCP_PIPELINED, KDNS, UNBOUND, 1.0),
    Ratio(DOT_FEW, KDNS, DNSDIST, 1.0),
    Ratio(DOT, KDNS, DNSDIST, 1.0),
    Spread(SIZED, 1.25),
    Ratio(CHANGING, BUSY, QUIET, 1.2),
    Ratio(CHANGING_PACED, BUSY, QUIET, 1.2),
    Ratio(WORKERS, TWO, ONE, 1.1),
    Ratio(WORKERS_EACH, TWO, ONE, 1.1),
    Limit(JSON_TWO, "pss_loaded", 100e6),
    Limit(SNAPSHOT, "answered", 0.3),
    Limit(JSON, "answered", 1.5),
    Limit(YAML, "answered", 1.5),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of an aim. what: the figure, and beside whose. own, other: medians, microseconds; other is None for a
    bound that is no ratio. value: what the bound is for: a ratio, bytes or seconds by `unit` ("", "MB", "s")."""

    workload: str
    what: str
    own: float | None
    other: float | None
    value: float
    bound: float
    unit: str
    met: bool


def judge(runs: Runs, starts: Mapping[str, Start]) -> list[Verdict]:
    """Every aim of which there are figures."""
    found = (_judge(aim, runs, starts) for aim in AIMS)
    return [verdict for verdict in found if verdict is not None]


def _judge(aim: Ratio | Spread | Limit, runs: Runs, starts: Mapping[str, Start]) -> Verdict | None:
    match aim:
        case Ratio():
            return _ratio(aim, runs.get(aim.workload, {}))
        case Spread():
            return _spread(aim, runs.get(aim.workload, {}))
        case Limit():
            return _limit(aim, starts)


def _ratio(aim: Ratio, servers: Mapping[str, Sequence[Run]]) -> Verdict | None:
    value = ratio(servers, aim.subject, aim.reference, aim.figure)
    if value is None:
        return None
    own, other = (middle(servers[name], aim.figure) for name in (aim.subject, aim.reference))
    what = f"{FIGURES[aim.figure]}, {aim.subject} / {aim.reference}"
    return Verdict(aim.workload, what, own, other, value, aim.bound, "", value <= aim.bound)


def _spread(aim: Spread, servers: Mapping[str, Sequence[Run]]) -> Verdict | None:
    if len(servers) < 2:
        return None
    costs = {name: middle(runs, "cpu") for name, runs in servers.items()}
    high, low = max(costs, key=costs.__getitem__), min(costs, key=costs.__getitem__)
    value = costs[high] / costs[low]
    what = f"CPU, {high} / {low}"
    return Verdict(aim.workload, what, costs[high], costs[low], value, aim.bound, "", value <= aim.bound)


def _limit(aim: Limit, starts: Mapping[str, Start]) -> Verdict | None:
    if aim.start not in starts:
        return None
    value: Any = getattr(starts[aim.start], aim.field)
    what, unit = ("memory after load", "MB") if aim.field.startswith("pss") else ("start to first answer", "s")
    return Verdict(aim.start, what, None, None, value, aim.bound, unit, value <= aim.bound)


def ratio(servers: Mapping[str, Sequence[Run]], name: str, reference: str, figure: str = "cpu") -> float | None:
    """The median over rounds of a server's figure divided by the reference's in the same round; None without both."""
    if name not in servers or reference not in servers:
        return None
    pairs = zip(servers[name], servers[reference], strict=True)
    return float(median(getattr(own, figure) / getattr(other, figure) for own, other in pairs))


def middle(runs: Sequence[Run], figure: str) -> float:
    """The median over rounds."""
    return float(median(getattr(run, figure) for run in runs))
