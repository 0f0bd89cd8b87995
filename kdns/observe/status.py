"""What the status page shows, as values: facts of the supervisor, and what the counters of all processes say.

Times of day are seconds since 1970, all others seconds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kdns.observe.counters import TIME_BUCKETS, Key
from kdns.observe.notes import TopName
from kdns.observe.quantile import quantile
from kdns.observe.recent import Message

OLD_SECONDS = 30.0
"""An age of data that is worth a word: sources note once in 30 seconds that theirs is current."""
FULL = 0.9
"""The part of the memory limit that is worth a word."""

_SECOND = 1_000_000_000
_HEALTH_CHECKS = "coredns_proxy_healthcheck_failures_total"
Totals = Mapping[Key, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Process:
    """role: supervisor, nursery, or worker and its number. memory: bytes (PSS), None if it cannot be seen."""

    role: str
    pid: int
    since: float | None
    memory: int | None
    well: bool = True


@dataclass(frozen=True, slots=True)
class Block:
    """A server block: its zones, and the names of its plugins in the order in which they run."""

    zones: tuple[str, ...]
    plugins: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Server:
    """An address with its server blocks. label: as in metrics, dns://:53. sockets: such as udp 10.0.0.1:53."""

    label: str
    sockets: tuple[str, ...]
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """Where the data of a directive comes from. age: None if there is no data, or nothing is old. objects: by kind.

    problems: files that cannot be used and stand with their last good content. unreached: zones that could not be
    fetched when that was tried last (`secondary`).
    """

    zones: tuple[str, ...]
    origin: str
    synced: bool
    age: float | None
    objects: Mapping[str, int]
    problems: int
    unreached: int = 0


@dataclass(frozen=True, slots=True)
class ZoneState:
    """A zone in the store. state: synced, not yet, or expired."""

    zone: str
    serial: int
    state: str


@dataclass(frozen=True, slots=True)
class Upstream:
    """to: address and port. up, down: how many of those that use it find it so. seconds: mean until it answers."""

    to: str
    up: int
    down: int
    answers: int
    seconds: float | None
    failed_checks: int
    last_failure: float | None


@dataclass(frozen=True, slots=True)
class Cache:
    """A `cache` directive at a server. entries: by type, success or denial. hit_rate: None before the first query."""

    server: str
    zones: str
    entries: Mapping[str, int]
    requests: int
    hits: int
    hit_rate: float | None
    stale: int


@dataclass(frozen=True, slots=True)
class PacketCache:
    """Those of all workers together."""

    entries: int
    bytes: int
    hits: int
    misses: int
    hit_rate: float | None


@dataclass(frozen=True, slots=True)
class Queries:
    """What was asked since the start, of the server blocks with `prometheus`. per_second: None if not known yet.

    percentiles: seconds until the response, by percent.
    """

    total: int
    per_second: float | None
    rcodes: Mapping[str, int]
    types: Mapping[str, int]
    protocols: Mapping[str, int]
    percentiles: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Counts:
    """All that comes from counters."""

    queries: Queries
    upstreams: tuple[Upstream, ...]
    caches: tuple[Cache, ...]
    packet_cache: PacketCache
    worker_restarts: int
    loops: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Status:
    """All of it.

    mode: cluster or node. files: of the configuration. outdated: they have a mistake, and what they said before is
    served. wanted: workers that there should be. memory: bytes of all processes; limit: None without one. ways: on a
    node, what brings queries here by address, "" if nothing does. names_wanted: whether there is `top_names`.
    """

    version: str
    host: str
    mode: str
    now: float
    started: float
    files: tuple[str, ...]
    digest: str
    outdated: bool
    servers: tuple[Server, ...]
    sources: tuple[Source, ...]
    zones: tuple[ZoneState, ...]
    store_entries: int
    store_bytes: int
    processes: tuple[Process, ...]
    wanted: int
    memory: int
    limit: int | None
    ways: Mapping[str, str]
    counts: Counts
    top_names: tuple[TopName, ...]
    names_wanted: bool
    messages: tuple[Message, ...]
    attention: tuple[str, ...] = ()


def attention(status: Status) -> tuple[str, ...]:
    """What is not as it should be now, each in a sentence; most urgent first."""
    return (*_processes_and_node(status), *_data(status), *_outside(status))


def _processes_and_node(status: Status) -> Iterable[str]:
    workers = [process for process in status.processes if process.role.startswith("worker")]
    well = sum(process.well for process in workers)
    if well < status.wanted:
        yield f"{well} of {status.wanted} workers answer"
    for address, by in status.ways.items():
        if not by:
            yield f"queries for {address} are not brought here"
    if status.outdated:
        yield "the configuration has a mistake, and the one from before is in use: see the last errors"


def _data(status: Status) -> Iterable[str]:
    for source in status.sources:
        zones = " ".join(source.zones)
        if not source.synced:
            yield f"{zones}: not read yet; what is not known is answered with SERVFAIL"
        elif source.age is not None and source.age > OLD_SECONDS:
            yield f"{zones}: data is {source.age:.0f} s old; answers stay as they were then"
        if source.problems:
            yield f"{zones}: {source.problems} files cannot be used; what they said before is served"
        if source.unreached:
            yield f"{zones}: {source.unreached} zones cannot be fetched; what is there is served until it expires"


def _outside(status: Status) -> Iterable[str]:
    for upstream in status.counts.upstreams:
        if upstream.down:
            part = f" for {upstream.down} of {upstream.up + upstream.down} that use it" if upstream.up else ""
            yield f"upstream {upstream.to} is down{part}"
    for zone in status.counts.loops:
        yield f"what is forwarded for {zone} comes back to this server"
    if status.limit is not None and status.memory > FULL * status.limit:
        yield f"{status.memory / status.limit:.0%} of the memory limit are in use"


# From counters


def counts(totals: Totals, per_second: float | None) -> Counts:
    """What they say. per_second: queries, as far as that is known."""
    simple: dict[str, dict[Key, int]] = defaultdict(lambda: defaultdict(int))
    for (kind, name, *pairs), values in totals.items():
        if kind in ("count", "gauge", "shared"):
            simple[name][tuple(pairs[1::2])] += values[0]
    return Counts(
        queries=_queries(totals, per_second),
        upstreams=tuple(_upstreams(totals, simple)),
        caches=tuple(_caches(simple)),
        packet_cache=_packet_cache(simple),
        worker_restarts=simple["kdns_worker_restarts_total"][()],
        loops=tuple(sorted(zone for (zone,), found in simple["kdns_loop_detected"].items() if found)),
    )


def answered(totals: Totals) -> int:
    """Queries that were answered, of the server blocks with `prometheus`."""
    return sum(cells[0] for key, cells in totals.items() if key[0] == "query")


def _queries(totals: Totals, per_second: float | None) -> Queries:
    rcodes: dict[str, int] = defaultdict(int)
    types: dict[str, int] = defaultdict(int)
    protocols: dict[str, int] = defaultdict(int)
    buckets = [0] * (len(TIME_BUCKETS) + 1)
    for key, cells in totals.items():
        if key[0] == "query":
            for found, label in ((protocols, key[4]), (types, key[6]), (rcodes, key[7])):
                found[label] += cells[0]
        elif key[0] == "duration":
            buckets = [one + other for one, other in zip(buckets, cells, strict=False)]
    bounds = [*(bound / _SECOND for bound in TIME_BUCKETS), float("inf")]
    percentiles = {f"{q:g}": quantile(q / 100, bounds, buckets) for q in (50, 90, 99)}
    return Queries(
        total=sum(rcodes.values()),
        per_second=per_second,
        rcodes=_largest_first(rcodes),
        types=_largest_first(types),
        protocols=_largest_first(protocols),
        percentiles={q: value for q, value in percentiles.items() if value is not None},
    )


def _largest_first(found: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _upstreams(totals: Totals, simple: Mapping[str, Mapping[Key, int]]) -> Iterable[Upstream]:
    standing: dict[str, dict[str, int]] = defaultdict(lambda: {"up": 0, "down": 0})
    for (to, state), number in simple["kdns_forward_upstreams"].items():
        standing[to][state] += number
    answers: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for key, (*buckets, nanoseconds) in totals.items():
        if key[:2] == ("histogram", "coredns_proxy_request_duration_seconds"):
            answers[key[5]][0] += sum(buckets)
            answers[key[5]][1] += nanoseconds
    failed = {to: number for (_, to), number in simple[_HEALTH_CHECKS].items()}
    last = {to: time for (to,), time in simple["kdns_forward_last_failure_timestamp_seconds"].items()}
    for to, states in sorted(standing.items()):
        if states["up"] or states["down"]:
            count, nanoseconds = answers[to]
            mean = nanoseconds / count / _SECOND if count else None
            yield Upstream(to, states["up"], states["down"], count, mean, failed.get(to, 0), last.get(to))


def _caches(simple: Mapping[str, Mapping[Key, int]]) -> Iterable[Cache]:
    kinds: dict[str, dict[Key, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
    for name in ("coredns_cache_entries", "coredns_cache_hits_total"):
        for (server, kind, zones, view), number in simple[name].items():
            kinds[name][server, zones, view][kind] = number
    for where in sorted(simple["coredns_cache_requests_total"]):
        server, zones, view = where
        entries, hits = (kinds[name][where] for name in ("coredns_cache_entries", "coredns_cache_hits_total"))
        requests, hit = simple["coredns_cache_requests_total"][where], sum(hits.values())
        stale = simple["coredns_cache_served_stale_total"].get((server, zones, view), 0)
        yield Cache(server, zones, entries, requests, hit, _share(hit, requests), stale)


def _packet_cache(simple: Mapping[str, Mapping[Key, int]]) -> PacketCache:
    entries, size, hits, misses = (
        simple[f"kdns_packet_cache_{name}"].get((), 0) for name in ("entries", "bytes", "hits_total", "misses_total")
    )
    return PacketCache(entries, size, hits, misses, _share(hits, hits + misses))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
