"""What /metrics shows: CoreDNS's metrics under CoreDNS's names, so that its dashboards and alerts work, and kdns's own.

Counts come from the shared memory of the processes (`Totals`), all else from one `SupervisorState` per scrape.
"""

from __future__ import annotations

import gzip
import platform
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from kdns.observe.counters import HISTOGRAMS, SIZE_BUCKETS, TIME_BUCKETS, Key, Totals
from kdns.observe.notes import TopName
from kdns.observe.text import printable

_SECOND = 1_000_000_000
_GZIP_LEVEL = 1
_TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class SupervisorState:
    """What the supervisor knows at one moment, beside the counters.

    plugins: (server, zone, view, directive) of each directive in each server block. config_sha512: of the running
    configuration, in hex, "" without the `reload` directive. workers: how many are running. pids: of all processes, the
    supervisor's first; their CPU time and memory are summed. data_age_seconds: since the Kubernetes objects were last
    known to be current, None without the `kubernetes` directive. synced: whether all of them are there and may be
    served, None likewise. objects: how many of each kind. manifest_errors: files that could not be read or parsed and
    stand with their last good content; zone_file_errors: the same of `file` and `auto`. memory_limit: bytes that all
    processes together may take, None without a limit.
    ways: on a node, by address, what brings queries here, "" if nothing does. outdated: the configuration's files have
    a mistake, and what they said before is served, or something is left out. top_names: what is asked for most, with
    the option `top_names`. compiled: whether what is on the way of a query is. certificates: of `tls`, path, when the
    first one in it ends (of time.time()), and whether its files can be used now.
    """

    version: str
    revision: str = ""
    compiled: bool = False
    plugins: tuple[tuple[str, str, str, str], ...] = ()
    config_sha512: str = ""
    workers: int = 0
    pids: tuple[int, ...] = ()
    store_generation: int = 0
    store_bytes: int = 0
    data_age_seconds: float | None = None
    synced: bool | None = None
    objects: Mapping[str, int] = field(default_factory=dict)
    manifest_errors: int = 0
    zone_file_errors: int = 0
    memory_limit: int | None = None
    ways: Mapping[str, str] = field(default_factory=dict)
    outdated: bool = False
    top_names: tuple[TopName, ...] = ()
    certificates: tuple[tuple[str, float, bool], ...] = ()
    copies: Mapping[str, float] = field(default_factory=dict)


class Family(NamedTuple):
    """A metric whose values are kept under ("count", name, ...), ("gauge", name, ...) or ("shared", name, ...)."""

    name: str
    help: str
    labels: tuple[str, ...] = ()


_CACHE = ("server", "zones", "view")
_CACHE_KINDS = ("server", "type", "zones", "view")
_ZONE = ("server", "zone", "view")
_TEMPLATE = (*_ZONE, "class", "type")
_FAILURE = (*_TEMPLATE, "section", "template")
COUNTERS = (
    Family("coredns_panics_total", "Queries whose handling ended in an unexpected error."),
    Family("coredns_reload_failed_total", "Reloads that kept the old configuration because the new one is wrong."),
    Family("coredns_health_request_failures_total", "Requests to the own health endpoint that failed."),
    Family(
        "coredns_nodecache_setup_errors_total",
        "What had to be put right, or could not be, of a node's addresses, packet rules and ConfigMaps.",
        ("errortype",),
    ),
    Family("coredns_local_localhost_requests_total", "Queries for names below localhost or starting with it."),
    Family("coredns_acl_blocked_requests_total", "Queries that acl refused.", _ZONE),
    Family("coredns_acl_filtered_requests_total", "Queries that acl answered without records.", _ZONE),
    Family("coredns_acl_dropped_requests_total", "Queries that acl did not answer.", _ZONE),
    Family("coredns_acl_allowed_requests_total", "Queries that acl let pass.", ("server", "view")),
    Family("coredns_dns64_requests_translated_total", "Queries answered with IPv6 made of IPv4.", ("server",)),
    Family("coredns_template_matches_total", "Queries that a template was for.", _TEMPLATE),
    Family("coredns_template_template_failures_total", "Templates that failed, by their text.", _FAILURE),
    Family("coredns_template_rr_failures_total", "Templates that made no record, by their text.", _FAILURE),
    Family("coredns_forward_healthcheck_broken_total", "Queries for which every upstream was down."),
    Family("coredns_forward_max_concurrent_rejects_total", "Queries refused because of max_concurrent."),
    Family("coredns_proxy_healthcheck_failures_total", "Health checks of upstreams that failed.", ("proxy_name", "to")),
    Family(
        "coredns_proxy_conn_cache_hits_total",
        "Queries to upstreams on a connection that was there, by protocol.",
        ("proxy_name", "to", "proto"),
    ),
    Family(
        "coredns_proxy_conn_cache_misses_total",
        "Queries to upstreams that needed a new connection or socket, by protocol.",
        ("proxy_name", "to", "proto"),
    ),
    Family(
        "kdns_forward_discarded_total",
        "Messages that came from upstreams, or as if from them, and answered nothing that was asked, by what is wrong.",
        ("to", "reason"),
    ),
    Family(
        "kdns_forward_resent_total", "Queries whose connection to an upstream ended before the answer came.", ("to",)
    ),
    Family("coredns_cache_requests_total", "Queries that came to the cache.", _CACHE),
    Family("coredns_cache_hits_total", "Queries answered from the cache.", _CACHE_KINDS),
    Family("coredns_cache_misses_total", "Queries whose answer was not in the cache.", _CACHE),
    Family("coredns_cache_prefetch_total", "Queries to renew what is in the cache.", _CACHE),
    Family("coredns_cache_served_stale_total", "Queries answered from the cache with what had expired.", _CACHE),
    Family("coredns_cache_evictions_total", "Answers dropped from the cache to make room.", _CACHE_KINDS),
    Family("coredns_autopath_success_total", "Queries answered with a later name of a search list.", ("server",)),
    Family("kdns_packet_cache_hits_total", "Queries answered from the packet cache."),
    Family("kdns_packet_cache_misses_total", "Queries whose answer was not in the packet cache."),
    Family("kdns_packet_cache_evictions_total", "Answers dropped from the packet cache to make room."),
    Family("kdns_packet_cache_invalidations_total", "Answers dropped from the packet cache because a name changed."),
    Family("kdns_store_commits_total", "Transactions written to the zone store."),
    Family("kdns_store_errors_total", "Times that the zone store could not be written, so that answers stay old."),
    Family("kdns_worker_restarts_total", "Worker processes that were replaced after they ended unexpectedly."),
    Family("kdns_malformed_total", "Messages that are not well-formed queries, by what is wrong.", ("reason",)),
    Family("kdns_dropped_total", "Messages that got no answer, by why.", ("reason",)),
    Family(
        "kdns_pending_rejects_total", "Queries answered with SERVFAIL as too many waited for their answers already."
    ),
    Family("kdns_tcp_accept_errors_total", "Times that no TCP connection could be accepted: no descriptor, no memory."),
    Family("kdns_tcp_connections_closed_total", "TCP connections closed, by why.", ("reason",)),
    Family(
        "kdns_secondary_transfers_total",
        "Times that primaries were asked for zones, by zone and what came of it.",
        ("zone", "result"),
    ),
    Family("kdns_transfers_total", "Zone transfers that were asked for, by what came of them.", ("result",)),
    Family("kdns_notifies_total", "NOTIFYs to those who have copies of zones, sent and answered.", ("result",)),
    Family("kdns_tls_handshakes_total", "TLS handshakes of clients, by how they ended.", ("result",)),
    Family("coredns_dns_https_responses_total", "HTTP responses by server and status.", ("server", "status")),
    Family("kdns_log_dropped_total", "Log lines dropped because standard output was closed or did not keep up."),
    Family(
        "coredns_kubernetes_rest_client_requests_total",
        "Requests to the Kubernetes API by status code, method and host.",
        ("code", "method", "host"),
    ),
    Family(
        "kdns_kubernetes_lists_total",
        "Whole lists that the Kubernetes API was asked for, by kind and by how they come: as a stream or in pages.",
        ("kind", "how"),
    ),
    Family(
        "kdns_kubernetes_watch_errors_total",
        "What went wrong between the Kubernetes API and kdns, by kind of object and reason.",
        ("kind", "reason"),
    ),
)
"""Counters of one cell; those without labels show as 0 from the start."""

GAUGES = (
    Family("coredns_cache_entries", "Answers in the caches of all workers.", _CACHE_KINDS),
    Family("kdns_packet_cache_entries", "Answers in the packet caches of all workers."),
    Family("kdns_packet_cache_bytes", "Bytes of the queries and answers in the packet caches of all workers."),
    Family("kdns_tcp_connections", "TCP connections of clients that are open."),
    Family("kdns_followers", "Those of them on which copies of zones are kept up to date."),
    Family(
        "kdns_forward_upstreams",
        "How many of those that use an upstream, each forward of each worker, find it up, and how many down.",
        ("to", "state"),
    ),
)
"""Values of one cell that may fall, summed over the living processes."""
SHARED = (
    Family("coredns_hosts_entries", "Entries of a hosts file and of the Corefile, reverse ones too.", ("hostsfile",)),
    Family(
        "kdns_hosts_unreadable",
        "1 while a hosts file cannot be read, so that its names are missing or old.",
        ("hostsfile",),
    ),
    Family("kdns_secondary_expired", "1 while a copy of a zone is too old to be served.", ("zone",)),
    Family("coredns_hosts_reload_timestamp_seconds", "When the hosts file that was read last was changed."),
    Family(
        "kdns_forward_last_failure_timestamp_seconds",
        "When an upstream last gave no usable answer to a query or a health check.",
        ("to",),
    ),
    Family("kdns_loop_detected", "Whether what is forwarded for a zone comes back to this server.", ("zone",)),
)
"""Values of one cell that all processes have alike."""


class Exposition:
    """The page /metrics in the format that the client asks for. Safe to use from several threads."""

    def __init__(self, totals: Totals, state: Callable[[], SupervisorState]) -> None:
        """state: is called once per scrape, in the thread of the scrape."""
        self._lock = threading.Lock()
        processes = _Processes()
        self._text = CollectorRegistry(auto_describe=False)
        self._text.register(_Metrics(totals, state, processes, _go_number))
        self._openmetrics = CollectorRegistry(auto_describe=False)
        self._openmetrics.register(_Metrics(totals, state, processes, _float))

    def render(self, accept: str = "", accept_encoding: str = "") -> tuple[dict[str, str], bytes]:
        """Headers and body for a request with these Accept and Accept-Encoding headers.

        Without OpenMetrics in `accept` it is the text format 0.0.4. One scrape is rendered at a time.
        """
        wanted = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
        with self._lock:
            if "application/openmetrics-text" in wanted:
                content_type, body = openmetrics.CONTENT_TYPE_LATEST, _openmetrics(self._openmetrics)
            else:
                content_type, body = _TEXT_FORMAT, generate_latest(self._text)
        headers = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
        if _accepts_gzip(accept_encoding):
            headers["Content-Encoding"] = "gzip"
            body = gzip.compress(body, _GZIP_LEVEL, mtime=0)
        return headers, body


def _openmetrics(registry: CollectorRegistry) -> bytes:
    body: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
    return body


def _accepts_gzip(accept_encoding: str) -> bool:
    for part in accept_encoding.split(","):
        coding, *parameters = (text.strip() for text in part.lower().split(";"))
        if coding == "gzip":
            return not any(p.replace(" ", "").rstrip("0").rstrip(".") in ("q=", "q=0") for p in parameters)
    return False


def _float(value: float) -> str:
    """A bucket's bound as OpenMetrics wants it: "100.0"."""
    return repr(float(value))


def _go_number(value: float) -> str:
    """A bucket's bound as CoreDNS writes it in the text format: "100"."""
    return _float(value).removesuffix(".0")


class _Metrics(Collector):
    """Families for one scrape; `bound` writes the bounds of buckets."""

    def __init__(
        self,
        totals: Totals,
        state: Callable[[], SupervisorState],
        processes: _Processes,
        bound: Callable[[float], str],
    ) -> None:
        self._totals = totals
        self._state = state
        self._processes = processes
        self._bound = bound

    def collect(self) -> Iterator[Metric]:
        state = self._state()
        totals = self._totals.totals()
        yield from self._queries(totals)
        yield self._durations(totals)
        yield from self._histograms(totals)
        yield from _simple(totals)
        yield _total(
            Family("kdns_metrics_refused_series_total", "Updates of these metrics that had no room in shared memory."),
            {(): self._totals.refused()},
        )
        yield from _supervisor(state)
        yield from self._processes.collect(state.pids)

    def _queries(self, totals: Mapping[Key, tuple[int, ...]]) -> Iterator[Metric]:
        requests: dict[Key, int] = defaultdict(int)
        responses: dict[Key, int] = defaultdict(int)
        dnssec: dict[Key, int] = defaultdict(int)
        sizes = _Sizes("coredns_dns_request_size_bytes", "Sizes of queries in bytes.")
        answers = _Sizes("coredns_dns_response_size_bytes", "Sizes of responses in bytes.")
        for key, (count, request_bytes, response_bytes) in _of_kind(totals, "query"):
            server, zone, view, proto, family, qtype, rcode, plugin, do, request, response = key
            requests[server, zone, view, proto, family, qtype] += count
            responses[server, zone, view, rcode, plugin] += count
            if do:
                dnssec[server, zone, view] += count
            sizes.add((server, zone, view, proto), request, count, request_bytes)
            answers.add((server, zone, view, proto), response, count, response_bytes)
        where = ("server", "zone", "view")
        yield _total(
            Family(
                "coredns_dns_requests_total",
                "Queries by server, zone, transport, address family (1 is IPv4, 2 is IPv6) and type.",
                (*where, "proto", "family", "type"),
            ),
            requests,
        )
        by_rcode = "Responses by server, zone, response code and the plugin that answered."
        yield _total(Family("coredns_dns_responses_total", by_rcode, (*where, "rcode", "plugin")), responses)
        yield _total(Family("coredns_dns_do_requests_total", "Queries with the DO bit (RFC 3225) set.", where), dnssec)
        yield sizes.family(self._bound)
        yield answers.family(self._bound)

    def _durations(self, totals: Mapping[Key, tuple[int, ...]]) -> Metric:
        family = HistogramMetricFamily(
            "coredns_dns_request_duration_seconds",
            "Time from a query's arrival to its response.",
            labels=("server", "zone", "view"),
        )
        bounds = [bound / _SECOND for bound in TIME_BUCKETS]
        for (server, zone, view), (*counts, total) in _of_kind(totals, "duration"):
            family.add_metric((server, zone, view), _cumulative(bounds, counts, self._bound), total / _SECOND)
        return family

    def _histograms(self, totals: Mapping[Key, tuple[int, ...]]) -> Iterator[Metric]:
        found: dict[str, dict[Key, tuple[int, ...]]] = defaultdict(dict)
        for (name, *pairs), cells in _of_kind(totals, "histogram"):
            found[name][tuple(pairs[1::2])] = cells
        for durations in HISTOGRAMS:
            samples = found[durations.name]
            if not durations.labels and not samples:
                samples[()] = (0,) * (len(durations.bounds) + 2)
            bounds = [bound / _SECOND for bound in durations.bounds]
            family = HistogramMetricFamily(durations.name, durations.help, labels=durations.labels)
            for values, (*counts, total) in samples.items():
                family.add_metric(values, _cumulative(bounds, counts, self._bound), total / _SECOND)
            yield family


class _Sizes:
    """A histogram of sizes in the making."""

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._text = text
        self._counts: dict[Key, list[int]] = defaultdict(lambda: [0] * (len(SIZE_BUCKETS) + 1))
        self._sums: dict[Key, int] = defaultdict(int)

    def add(self, labels: Key, bucket: str, count: int, total: int) -> None:
        self._counts[labels][len(SIZE_BUCKETS) if bucket == "+" else int(bucket)] += count
        self._sums[labels] += total

    def family(self, bound: Callable[[float], str]) -> Metric:
        family = HistogramMetricFamily(self._name, self._text, labels=("server", "zone", "view", "proto"))
        for labels, counts in self._counts.items():
            family.add_metric(labels, _cumulative(SIZE_BUCKETS, counts, bound), self._sums[labels])
        return family


def _of_kind(totals: Mapping[Key, tuple[int, ...]], kind: str) -> Iterator[tuple[Key, tuple[int, ...]]]:
    return ((key[1:], cells) for key, cells in totals.items() if key[0] == kind)


def _cumulative(
    bounds: Sequence[float], counts: Sequence[int], text: Callable[[float], str]
) -> list[tuple[str, float]]:
    """Prometheus' buckets, each with all that is below it, from counts per bucket and one more above the last."""
    buckets: list[tuple[str, float]] = []
    below = 0
    for bound, count in zip((*map(text, bounds), "+Inf"), counts, strict=True):
        below += count
        buckets.append((bound, below))
    return buckets


def _simple(totals: Mapping[Key, tuple[int, ...]]) -> Iterator[Metric]:
    """The families of COUNTERS, GAUGES and SHARED, and those of a name in neither, with what labels they have."""
    values: dict[tuple[str, str], dict[Key, int]] = defaultdict(lambda: defaultdict(int))
    families = {"count": COUNTERS, "gauge": GAUGES, "shared": SHARED}
    declared = {(kind, family.name): family for kind, members in families.items() for family in members}
    for kind in families:
        for (name, *pairs), (value,) in _of_kind(totals, kind):
            labels = dict(zip(pairs[::2], pairs[1::2], strict=True))
            family = declared.setdefault((kind, name), Family(name, "A value without a description.", tuple(labels)))
            values[kind, name][tuple(labels.get(label, "") for label in family.labels)] += value
    for (kind, name), family in declared.items():
        samples = values[kind, name]
        if not family.labels and not samples:
            samples[()] = 0
        yield _total(family, samples) if kind == "count" else _gauge(family, samples)


def _total(family: Family, samples: Mapping[Key, float]) -> Metric:
    metric = CounterMetricFamily(family.name, family.help, labels=family.labels)
    for labels, value in samples.items():
        metric.add_metric(labels, value)
    return metric


def _gauge(family: Family, samples: Mapping[Key, float]) -> Metric:
    metric = GaugeMetricFamily(family.name, family.help, labels=family.labels)
    for labels, value in samples.items():
        metric.add_metric(labels, value)
    return metric


def _supervisor(state: SupervisorState) -> Iterator[Metric]:
    build = (state.version, state.revision, platform.python_version())
    yield _gauge(
        Family(
            "coredns_build_info",
            "Always 1; the version of kdns, its revision, and the version of Python that runs it.",
            ("version", "revision", "goversion"),
        ),
        {build: 1},
    )
    yield _gauge(
        Family("kdns_compiled", "1 if what is on the way of a query runs compiled, 0 if it runs as Python.", ()),
        {(): int(state.compiled)},
    )
    yield _gauge(
        Family(
            "coredns_plugin_enabled",
            "1 for each directive in each server block of the configuration.",
            ("server", "zone", "view", "name"),
        ),
        dict.fromkeys(state.plugins, 1),
    )
    yield _gauge(
        Family("coredns_reload_version_info", "Always 1; the hash of the running configuration.", ("hash", "value")),
        {("sha512", state.config_sha512): 1} if state.config_sha512 else {},
    )
    yield _gauge(
        Family(
            "kdns_configuration_outdated", "1 while a mistake keeps what the configuration's files say from being used."
        ),
        {(): state.outdated},
    )
    yield _gauge(Family("kdns_workers", "Worker processes that are running."), {(): state.workers})
    yield _gauge(
        Family("kdns_store_generation", "How many changes of names the zone store has told its readers of."),
        {(): state.store_generation},
    )
    yield _gauge(Family("kdns_store_bytes", "Size of the zone store in bytes."), {(): state.store_bytes})
    yield _gauge(
        Family(
            "kdns_kubernetes_data_age_seconds",
            "Seconds since the Kubernetes objects were last known to be current.",
        ),
        {} if state.data_age_seconds is None else {(): state.data_age_seconds},
    )
    yield _gauge(
        Family(
            "kdns_kubernetes_synced",
            "1 if the Kubernetes objects are all there and may be served, be they from before a restart; 0 if not yet.",
        ),
        {} if state.synced is None else {(): state.synced},
    )
    yield _gauge(
        Family("kdns_kubernetes_objects", "Kubernetes objects known, by kind.", ("kind",)),
        {(kind,): count for kind, count in state.objects.items()},
    )
    yield _gauge(
        Family("kdns_manifest_errors", "Manifest files that cannot be used and stand with their last good content."),
        {(): state.manifest_errors},
    )
    yield _gauge(
        Family("kdns_zone_files_unusable", "Master files that cannot be used; what they held before is served."),
        {(): state.zone_file_errors},
    )
    yield _gauge(
        Family(
            "kdns_secondary_age_seconds",
            "Seconds since a copy of a zone was last known to be what a primary has.",
            ("zone",),
        ),
        {(zone,): seconds for zone, seconds in state.copies.items()},
    )
    yield _gauge(
        Family("kdns_memory_limit_bytes", "What all processes together may take, if their control group has a limit."),
        {} if state.memory_limit is None else {(): state.memory_limit},
    )
    yield _gauge(
        Family(
            "kdns_node_intercepted",
            "1 while queries for an address of this node are brought here, and by what: nftables, or link if the "
            "address is on a link; else 0.",
            ("address", "by"),
        ),
        {(address, by): bool(by) for address, by in state.ways.items()},
    )
    yield _gauge(
        Family(
            "kdns_tls_certificate_expiry_timestamp_seconds",
            "When the first one of the certificates that are served from a file ends.",
            ("certificate",),
        ),
        {(printable(path),): ends for path, ends, _ in state.certificates},
    )
    yield _gauge(
        Family(
            "kdns_tls_certificate_unusable",
            "1 while a certificate's files cannot be used, so that what they held before is.",
            ("certificate",),
        ),
        {(printable(path),): not usable for path, _, usable in state.certificates},
    )
    yield _gauge(
        Family(
            "kdns_top_names",
            "Queries a second for the names that are asked for most, estimated over about the last minute (top_names).",
            ("name", "type", "rcode"),
        ),
        {(top.name, top.type, top.rcode): top.rate for top in state.top_names},
    )


class _Processes:
    """process_* for all processes of the server as if they were one.

    CPU time, memory and open files are summed, the limit of files is the lowest, and the start is the first. Memory
    that processes share counts once (PSS) where the kernel tells. CPU time of processes that have ended is kept.
    """

    _HOW: Mapping[str, Callable[[Iterable[float]], float]] = {
        "process_virtual_memory_bytes": sum,
        "process_resident_memory_bytes": sum,
        "process_start_time_seconds": min,
        "process_cpu_seconds": sum,
        "process_open_fds": sum,
        "process_max_fds": min,
    }

    def __init__(self) -> None:
        self._cpu: dict[int, float] = {}
        self._cpu_ended = 0.0

    def collect(self, pids: Sequence[int]) -> Iterator[Metric]:
        found: dict[str, dict[int, Metric]] = defaultdict(dict)
        for pid in pids:
            for metric in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
                if metric.name in self._HOW:
                    found[metric.name][pid] = metric
        for name, metrics in found.items():
            values = {pid: metric.samples[0].value for pid, metric in metrics.items()}
            if name == "process_resident_memory_bytes":
                values = {pid: _shared_once(pid, value) for pid, value in values.items()}
            total = self._HOW[name](values.values())
            metric = next(iter(metrics.values()))
            if name == "process_cpu_seconds":
                yield CounterMetricFamily(name, metric.documentation, value=total + self._ended(values))
            else:
                yield GaugeMetricFamily(name, metric.documentation, value=total)

    def _ended(self, now: Mapping[int, float]) -> float:
        """CPU seconds of processes that have ended, as far as an earlier scrape saw them."""
        for pid, before in self._cpu.items():
            if now.get(pid, -1.0) < before:
                self._cpu_ended += before
        self._cpu = dict(now)
        return self._cpu_ended


def _shared_once(pid: int, otherwise: float) -> float:
    found = proportional_set_size(pid)
    return otherwise if found is None else found


def proportional_set_size(pid: int) -> int | None:
    """Bytes of a process's memory, of what it shares its part, from /proc/PID/smaps_rollup ("Pss:  1234 kB").

    None if there is no such process, or the kernel does not tell.
    """
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
