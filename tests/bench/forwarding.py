"""Names of others: kdns with `cache` and `forward` beside Unbound, both asking the same local Knot DNS over TCP."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import dns.message
import dns.query

from tests.bench import load, peers, queries, targets
from tests.bench.load import Run
from tests.bench.targets import Kdns, Other, Target
from tests.bench.workloads import HITS, MISSES

PARTS = ("cache", "misses", "ttls")
"""What can be measured alone."""
SAMPLES_A_SECOND = 4
_NAMES = 5000
_WARM = f"warm.{peers.WILDCARD}"

COREFILE = """\
.:$dns {{
    bind 127.0.0.1
    errors
    ready 127.0.0.1:$ready
    prometheus 127.0.0.1:$metrics
    cache
    forward . 127.0.0.1:{port} {{
        force_tcp
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure. seconds: of each run of hits. fresh: queries of each run of misses. watched: seconds for
    which TTLs are looked at."""

    rounds: int
    seconds: float
    fresh: int
    watched: float


FULL = Plan(rounds=5, seconds=4, fresh=150_000, watched=60)
SHORT = Plan(rounds=1, seconds=0.5, fresh=15_000, watched=12)


@dataclass(frozen=True, slots=True)
class Ttls:
    """What a client sees of one name. ttl: the upstream's. shown: the TTL at every second.

    An answer begins anew when the one before has ended; between, `largest` and `smallest` are the greatest and least
    difference, in seconds, of the TTL that is shown and what is exactly left.
    """

    ttl: int
    renewals: int
    smallest: float
    largest: float
    shown: list[int]


@dataclass(frozen=True, slots=True)
class Figures:
    """All that was measured here. runs: by mix, then by server, one for each round. ttls: by server, then by name."""

    versions: dict[str, str] = field(default_factory=dict)
    runs: dict[str, dict[str, list[Run]]] = field(default_factory=dict)
    ttls: dict[str, dict[str, Ttls]] = field(default_factory=dict)


def measure(folder: Path, plan: Plan, parts: Sequence[str], say: Callable[[str], None]) -> Figures:
    """Measure the parts. say: told what begins. Without Knot nothing is measured, without Unbound only kdns.

    Raises RuntimeError if a server or dnsperf fails.
    """
    found = Figures()
    if not parts:
        return found
    folder.mkdir()
    upstream = peers.wildcard(folder / "upstream")
    if upstream is None:
        say("knot is not installed, so nothing is forwarded")
        return found
    with contextlib.ExitStack() as stack:
        stack.callback(upstream.stop)
        targets.start(upstream, load.pinned(load.CLIENT_CPU), _WARM, peers.WILDCARD_ADDRESS)
        servers: list[Target] = []
        for target in _targets(folder, upstream, say):
            stack.callback(target.stop)
            targets.start(target, load.pinned(load.SERVER_CPU), _WARM, peers.WILDCARD_ADDRESS)
            servers.append(target)
        found.versions.update({target.name: target.version() for target in servers})
        for mix, part in ((HITS, "cache"), (MISSES, "misses")):
            if part in parts:
                found.runs[mix] = {target.name: [] for target in servers}
        for number in range(plan.rounds if found.runs else 0):
            say(f"forwarding: round {number + 1} of {plan.rounds}")
            _round(folder, plan, servers, found.runs, number)
        if "ttls" in parts:
            say(f"TTLs: {plan.watched:.0f} s")
            found.ttls.update(_watch(servers, plan.watched))
    return found


def _targets(folder: Path, upstream: Other, say: Callable[[str], None]) -> list[Target]:
    own: list[Target] = [Kdns(folder / "kdns", COREFILE.format(port=upstream.port))]
    unbound = peers.forwarder(folder / "unbound", upstream.port)
    if unbound is None:
        say("unbound is not installed, so it is left out")
        return own
    return [*own, unbound]


def _round(
    folder: Path, plan: Plan, servers: Sequence[Target], runs: dict[str, dict[str, list[Run]]], number: int
) -> None:
    """Each mix on each server in turns."""
    if HITS in runs:
        warm = queries.write_names(folder / "warm", (f"w{n}.{peers.WILDCARD}" for n in range(_NAMES)))
        for server in servers:
            load.measure(server, warm, ["-n", "3"])  # names that never repeat have driven these out
        for server in servers:
            runs[HITS][server.name].append(load.measure(server, warm, ["-l", str(plan.seconds)]))
    if MISSES in runs:
        fresh = (f"m{number:x}-{n:x}.{peers.WILDCARD}" for n in range(plan.fresh))
        path = queries.write_names(folder / "fresh", fresh)
        for server in servers:
            runs[MISSES][server.name].append(load.measure(server, path, ["-n", "1"]))


def _watch(servers: Sequence[Target], seconds: float) -> dict[str, dict[str, Ttls]]:
    """Ask every server for names of short and long TTLs, all over the time."""
    names = {f"ttl{ttl}.{peers.WILDCARD}": ttl for ttl in peers.TTLS}
    seen: dict[str, dict[str, list[tuple[float, int]]]] = {server.name: {n: [] for n in names} for server in servers}
    begun = time.monotonic()
    while (passed := time.monotonic() - begun) < seconds:
        for server in servers:
            for name, samples in seen[server.name].items():
                query = dns.message.make_query(name, "A")
                answer = dns.query.udp(query, "127.0.0.1", timeout=5, port=server.port)
                samples.append((time.monotonic() - begun, answer.answer[0].ttl))
        time.sleep(max(0.0, begun + passed + 1 / SAMPLES_A_SECOND - time.monotonic()))
    return {
        server: {name: judge(names[name], samples) for name, samples in by_name.items()}
        for server, by_name in seen.items()
    }


def judge(ttl: int, samples: Sequence[tuple[float, int]]) -> Ttls:
    """Compare the TTLs that were shown with the time that passed since each answer was new.

    samples: seconds, and the TTL that was shown then.
    """
    began, before, renewals = samples[0][0], samples[0][1], 0
    differences = []
    for at, shown in samples:
        if shown > before:
            began, renewals = at, renewals + 1
        before = shown
        differences.append(shown - (ttl - (at - began)))
    each_second = [next(shown for at, shown in samples if at >= second) for second in range(int(samples[-1][0]) + 1)]
    return Ttls(ttl, renewals, min(differences), max(differences), each_second)
