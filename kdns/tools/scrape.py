"""What two looks at `/metrics` say about a DNS server: kdns, and CoreDNS and NodeLocal DNSCache as far as they tell.

Counters become rates over the time between the two. A counter that has fallen began anew, and counts from 0. Several
servers are added up.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from kdns.errors import KdnsError
from kdns.observe.quantile import quantile
from kdns.observe.status import FULL
from kdns.observe.text import printable

Labels = tuple[tuple[str, str], ...]
Series = Mapping[str, Mapping[Labels, float]]
"""Values by the metric's name and its labels, which are sorted."""

LARGEST = float(1 << 63)
"""What is larger is no count of anything, nor is what is no number."""
_OURS = ("coredns_", "kdns_", "process_")
_DNS = ("coredns_", "kdns_")
_RISING = ("_total", "_bucket", "_count", "_sum")
_DURATIONS = "coredns_dns_request_duration_seconds_bucket"
_PERCENTS = (50.0, 90.0, 99.0)
_ASKED = ("coredns_proxy_request_duration_seconds", "coredns_forward_request_duration_seconds")
"""Of upstreams, by `to` and `rcode`; the second one is that of CoreDNS before 1.11."""
_TOTALS = ("kdns_worker_restarts_total",)
"""Counters that are also told as they are."""
_PROBLEMS = {
    "kdns_dropped_total": "messages get no answer",
    "kdns_pending_rejects_total": "queries are refused as too many wait",
    "coredns_forward_healthcheck_broken_total": "queries find all upstreams down",
    "coredns_panics_total": "queries end in an unexpected error",
}
_FAILED = ("coredns_proxy_healthcheck_failures_total", "coredns_forward_healthcheck_failures_total")


@dataclass(frozen=True, slots=True)
class Scrape:
    """One look. taken: seconds of a clock that does not jump."""

    taken: float
    series: Series


def parse(body: str, taken: float) -> Scrape:
    """Read the text format of /metrics; what is not about DNS is left out.

    Raises KdnsError for what is no such text, or has nothing of a DNS server.
    """
    lines = [line for line in body.split("\n") if line.startswith(_OURS)]
    found: dict[str, dict[Labels, float]] = defaultdict(dict)
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                if abs(sample.value) <= LARGEST:
                    found[sample.name][tuple(sorted(sample.labels.items()))] = float(sample.value)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise KdnsError(f"not metrics as Prometheus reads them: {printable(str(error)[:80])}") from None
    if not any(name.startswith(_DNS) for name in found):
        raise KdnsError("no metrics of a DNS server: nothing that begins with coredns_ or kdns_")
    return Scrape(taken, dict(found))


@dataclass(frozen=True, slots=True)
class Change:
    """What happened between two looks. rates: of counters, a second. now: all else, as it is now."""

    seconds: float
    rates: Series
    now: Series


def change(before: Scrape, after: Scrape) -> Change:
    """The second one must be later."""
    seconds = max(after.taken - before.taken, 1e-9)
    rates: dict[str, dict[Labels, float]] = {}
    for name, values in after.series.items():
        if name.endswith(_RISING):
            old = before.series.get(name, {})
            rates[name] = {labels: _rise(old.get(labels, 0.0), value) / seconds for labels, value in values.items()}
    now = {name: values for name, values in after.series.items() if name not in rates}
    return Change(seconds, rates, now | {name: after.series[name] for name in _TOTALS if name in after.series})


def _rise(before: float, after: float) -> float:
    """How much a counter has risen, which is 0 again when its process starts anew."""
    return max(after - before if after >= before else after, 0.0)


# What they say


@dataclass(frozen=True, slots=True)
class Upstream:
    """state: up, down, part (some of those that use it find it down), failing (its health checks fail), or unknown.

    answers, failed_checks: a second. seconds: mean until it answers.
    """

    to: str
    state: str
    answers: float
    seconds: float | None
    failed_checks: float


@dataclass(frozen=True, slots=True)
class Name:
    """A name that is asked for often. rate: a second."""

    name: str
    type: str
    rcode: str
    rate: float


@dataclass(frozen=True, slots=True)
class View:
    """What one server, or several together, do. Rates are a second; what a server does not tell is None or empty.

    software: name and version. percentiles: seconds until the response, by percent. packet_cache, cache: share of
    hits. data_age: seconds, of the oldest. workers_replaced: since the start. cpu: CPUs in use. memory: bytes.
    attention: what is not as it should be. missing: what these servers do not tell, and what would make them.
    """

    software: tuple[str, ...] = ()
    queries: float = 0.0
    types: Mapping[str, float] = field(default_factory=dict)
    rcodes: Mapping[str, float] = field(default_factory=dict)
    percentiles: Mapping[str, float] = field(default_factory=dict)
    packet_cache: float | None = None
    cache: float | None = None
    cache_entries: int | None = None
    data_age: float | None = None
    objects: Mapping[str, int] = field(default_factory=dict)
    workers: int | None = None
    workers_replaced: int | None = None
    cpu: float | None = None
    memory: float | None = None
    upstreams: tuple[Upstream, ...] = ()
    names: tuple[Name, ...] = ()
    attention: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def view(changes: Sequence[Change]) -> View:
    """Of these servers together."""
    rates = _sum(each.rates for each in changes)
    now = _sum(each.now for each in changes)
    responses = rates.get("coredns_dns_responses_total", {})
    return View(
        software=_software(changes),
        queries=sum(responses.values()),
        types=_by("type", rates.get("coredns_dns_requests_total", {})),
        rcodes=_by("rcode", responses),
        percentiles=_percentiles(rates.get(_DURATIONS, {})),
        packet_cache=_hits(rates, "kdns_packet_cache_hits_total", "kdns_packet_cache_misses_total"),
        cache=_hits(rates, "coredns_cache_hits_total", "coredns_cache_misses_total"),
        cache_entries=_whole(now, "coredns_cache_entries"),
        data_age=max(_values(changes, "kdns_kubernetes_data_age_seconds"), default=None),
        objects={
            kind: int(count) for kind, count in _by("kind", now.get("kdns_kubernetes_objects", {})).items() if count
        },
        workers=_whole(now, "kdns_workers"),
        workers_replaced=_whole(now, "kdns_worker_restarts_total"),
        cpu=_total(rates, "process_cpu_seconds_total"),
        memory=_total(now, "process_resident_memory_bytes"),
        upstreams=tuple(_upstreams(rates, now)),
        names=_names(now.get("kdns_top_names", {})),
        attention=tuple(_attention(changes, rates, now)),
        missing=tuple(_missing(rates, now)),
    )


def _sum(series: Iterable[Series]) -> dict[str, dict[Labels, float]]:
    found: dict[str, dict[Labels, float]] = {}
    for each in series:
        for name, values in each.items():
            into = found.setdefault(name, {})
            for labels, value in values.items():
                into[labels] = into.get(labels, 0.0) + value
    return found


def _by(label: str, values: Mapping[Labels, float]) -> dict[str, float]:
    """The sums by one label, the largest first."""
    found: dict[str, float] = defaultdict(float)
    for labels, value in values.items():
        found[dict(labels).get(label, "")] += value
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _total(series: Series, name: str) -> float | None:
    values = series.get(name)
    return sum(values.values()) if values else None


def _whole(series: Series, name: str) -> int | None:
    value = _total(series, name)
    return None if value is None else int(value)


def _values(changes: Iterable[Change], name: str) -> list[float]:
    return [value for each in changes for value in each.now.get(name, {}).values()]


def _software(changes: Iterable[Change]) -> tuple[str, ...]:
    found = {
        f"{'kdns' if 'kdns_workers' in each.now else 'CoreDNS'} {dict(labels).get('version', '')}".rstrip()
        for each in changes
        for labels in each.now.get("coredns_build_info", {})
    }
    return tuple(sorted(found))


def _percentiles(values: Mapping[Labels, float]) -> dict[str, float]:
    below: dict[float, float] = defaultdict(float)
    for labels, value in values.items():
        bound = _number(dict(labels).get("le", ""))
        if bound is not None:
            below[bound] += value
    bounds = sorted(below)
    counts = [max(below[bound] - (below[bounds[at - 1]] if at else 0.0), 0.0) for at, bound in enumerate(bounds)]
    found = {f"{percent:g}": quantile(percent / 100, bounds, counts) for percent in _PERCENTS}
    return {percent: value for percent, value in found.items() if value is not None}


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return None if math.isnan(value) else value


def _hits(rates: Series, hits: str, misses: str) -> float | None:
    """The share of hits; None if nothing was asked."""
    hit, missed = (_total(rates, name) or 0.0 for name in (hits, misses))
    return hit / (hit + missed) if hit + missed else None


def _upstreams(rates: Series, now: Series) -> Iterable[Upstream]:
    answers: dict[str, float] = defaultdict(float)
    spent: dict[str, float] = defaultdict(float)
    failed: dict[str, float] = defaultdict(float)
    for name in _ASKED:
        for into, suffix in ((answers, "_count"), (spent, "_sum")):
            for to, value in _by("to", rates.get(name + suffix, {})).items():
                into[to] += value
    for name in _FAILED:
        for to, value in _by("to", rates.get(name, {})).items():
            failed[to] += value
    standing: dict[str, dict[str, float]] = defaultdict(dict)
    for labels, value in now.get("kdns_forward_upstreams", {}).items():
        found = dict(labels)
        standing[found.get("to", "")][found.get("state", "")] = value
    gone = {to for to, states in standing.items() if not any(states.values())}
    for to in sorted({*answers, *failed, *standing} - gone):
        mean = spent[to] / answers[to] if answers[to] else None
        yield Upstream(to, _state(standing.get(to), failed[to]), answers[to], mean, failed[to])


def _state(standing: Mapping[str, float] | None, failed: float) -> str:
    if standing is None:
        return "failing" if failed else "unknown"
    if not standing.get("down"):
        return "up"
    return "part" if standing.get("up") else "down"


def _names(values: Mapping[Labels, float]) -> tuple[Name, ...]:
    found = [
        Name(labels.get("name", ""), labels.get("type", ""), labels.get("rcode", ""), rate)
        for labels, rate in ((dict(pairs), rate) for pairs, rate in values.items())
    ]
    return tuple(sorted(found, key=lambda each: (-each.rate, each.name, each.type, each.rcode)))


def _attention(changes: Sequence[Change], rates: Series, now: Series) -> Iterable[str]:
    if any(_values(changes, "kdns_configuration_outdated")):
        yield "the configuration has a mistake, and the one from before is in use"
    if not all(_values(changes, "kdns_kubernetes_synced")):
        yield "Kubernetes objects are not read yet"
    for labels, value in sorted(now.get("kdns_node_intercepted", {}).items()):
        if not value:
            yield f"queries for {dict(labels).get('address')} are not brought to the node's server"
    for labels, value in sorted(now.get("kdns_loop_detected", {}).items()):
        if value:
            yield f"what is forwarded for {dict(labels).get('zone')} comes back"
    for name, what in _PROBLEMS.items():
        rate = _total(rates, name)
        if rate:
            yield f"{what}: {rate:.3g} a second"
    if any(_is_full(each.now) for each in changes):
        yield f"over {FULL:.0%} of the memory limit are in use"


def _is_full(now: Series) -> bool:
    limit, used = (_total(now, name) for name in ("kdns_memory_limit_bytes", "process_resident_memory_bytes"))
    return bool(limit) and used is not None and limit is not None and used > FULL * limit


def _missing(rates: Series, now: Series) -> Iterable[str]:
    if "kdns_workers" not in now:
        yield "CoreDNS does not tell: age of data, workers, state of upstreams, names"
    elif not now.get("kdns_top_names"):
        yield "names: add top_names to prometheus in the Corefile"
    if "coredns_dns_responses_total" not in rates:
        yield "queries: none yet in a server block with prometheus"
