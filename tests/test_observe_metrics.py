"""/metrics: CoreDNS's names, labels and buckets, both exposition formats, and sums over processes."""

from __future__ import annotations

import gzip
import os
import platform
import re
from collections.abc import Callable

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from kdns.observe.counters import HISTOGRAMS, QueryCounters, Region, Totals
from kdns.observe.metrics import COUNTERS, GAUGES, SHARED, Exposition, SupervisorState
from kdns.observe.notes import TopName

OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"

COREDNS = {
    "coredns_build_info": ("gauge", {"version", "revision", "goversion"}),
    "coredns_dns_requests_total": ("counter", {"server", "zone", "view", "proto", "family", "type"}),
    "coredns_dns_responses_total": ("counter", {"server", "zone", "view", "rcode", "plugin"}),
    "coredns_dns_do_requests_total": ("counter", {"server", "zone", "view"}),
    "coredns_dns_request_duration_seconds": ("histogram", {"server", "zone", "view"}),
    "coredns_dns_request_size_bytes": ("histogram", {"server", "zone", "view", "proto"}),
    "coredns_dns_response_size_bytes": ("histogram", {"server", "zone", "view", "proto"}),
    "coredns_panics_total": ("counter", set()),
    "coredns_plugin_enabled": ("gauge", {"server", "zone", "view", "name"}),
    "coredns_reload_failed_total": ("counter", set()),
    "coredns_reload_version_info": ("gauge", {"hash", "value"}),
    "coredns_health_request_duration_seconds": ("histogram", set()),
    "coredns_health_request_failures_total": ("counter", set()),
    "coredns_kubernetes_dns_programming_duration_seconds": ("histogram", {"service_kind"}),
    "coredns_kubernetes_rest_client_request_duration_seconds": ("histogram", {"verb", "host"}),
    "coredns_kubernetes_rest_client_rate_limiter_duration_seconds": ("histogram", {"verb", "host"}),
    "coredns_kubernetes_rest_client_requests_total": ("counter", {"code", "method", "host"}),
    "coredns_autopath_success_total": ("counter", {"server"}),
    "coredns_hosts_entries": ("gauge", {"hostsfile"}),
    "coredns_hosts_reload_timestamp_seconds": ("gauge", set()),
    "coredns_nodecache_setup_errors_total": ("counter", {"errortype"}),
    "coredns_local_localhost_requests_total": ("counter", set()),
    "coredns_dns_https_responses_total": ("counter", {"server", "status"}),
    "coredns_acl_blocked_requests_total": ("counter", {"server", "zone", "view"}),
    "coredns_acl_filtered_requests_total": ("counter", {"server", "zone", "view"}),
    "coredns_acl_dropped_requests_total": ("counter", {"server", "zone", "view"}),
    "coredns_acl_allowed_requests_total": ("counter", {"server", "view"}),
    "coredns_dns64_requests_translated_total": ("counter", {"server"}),
    "coredns_template_matches_total": ("counter", {"server", "zone", "view", "class", "type"}),
    "coredns_template_template_failures_total": (
        "counter",
        {"server", "zone", "view", "class", "type", "section", "template"},
    ),
    "coredns_template_rr_failures_total": (
        "counter",
        {"server", "zone", "view", "class", "type", "section", "template"},
    ),
    "coredns_forward_healthcheck_broken_total": ("counter", set()),
    "coredns_forward_max_concurrent_rejects_total": ("counter", set()),
    "coredns_proxy_request_duration_seconds": ("histogram", {"proxy_name", "to", "rcode"}),
    "coredns_proxy_healthcheck_failures_total": ("counter", {"proxy_name", "to"}),
    "coredns_proxy_conn_cache_hits_total": ("counter", {"proxy_name", "to", "proto"}),
    "coredns_proxy_conn_cache_misses_total": ("counter", {"proxy_name", "to", "proto"}),
    "coredns_cache_entries": ("gauge", {"server", "type", "zones", "view"}),
    "coredns_cache_requests_total": ("counter", {"server", "zones", "view"}),
    "coredns_cache_hits_total": ("counter", {"server", "type", "zones", "view"}),
    "coredns_cache_misses_total": ("counter", {"server", "zones", "view"}),
    "coredns_cache_prefetch_total": ("counter", {"server", "zones", "view"}),
    "coredns_cache_served_stale_total": ("counter", {"server", "zones", "view"}),
    "coredns_cache_evictions_total": ("counter", {"server", "type", "zones", "view"}),
}
OURS = {
    "kdns_forward_discarded_total": ("counter", {"to", "reason"}),
    "kdns_forward_resent_total": ("counter", {"to"}),
    "kdns_forward_upstreams": ("gauge", {"to", "state"}),
    "kdns_forward_last_failure_timestamp_seconds": ("gauge", {"to"}),
    "kdns_packet_cache_hits_total": ("counter", set()),
    "kdns_packet_cache_misses_total": ("counter", set()),
    "kdns_packet_cache_evictions_total": ("counter", set()),
    "kdns_packet_cache_invalidations_total": ("counter", set()),
    "kdns_packet_cache_entries": ("gauge", set()),
    "kdns_packet_cache_bytes": ("gauge", set()),
    "kdns_store_generation": ("gauge", set()),
    "kdns_store_bytes": ("gauge", set()),
    "kdns_store_commits_total": ("counter", set()),
    "kdns_store_errors_total": ("counter", set()),
    "kdns_kubernetes_data_age_seconds": ("gauge", set()),
    "kdns_kubernetes_synced": ("gauge", set()),
    "kdns_kubernetes_objects": ("gauge", {"kind"}),
    "kdns_kubernetes_lists_total": ("counter", {"kind", "how"}),
    "kdns_kubernetes_watch_errors_total": ("counter", {"kind", "reason"}),
    "kdns_configuration_outdated": ("gauge", set()),
    "kdns_workers": ("gauge", set()),
    "kdns_worker_restarts_total": ("counter", set()),
    "kdns_malformed_total": ("counter", {"reason"}),
    "kdns_dropped_total": ("counter", {"reason"}),
    "kdns_pending_rejects_total": ("counter", set()),
    "kdns_tcp_connections": ("gauge", set()),
    "kdns_followers": ("gauge", set()),
    "kdns_tcp_accept_errors_total": ("counter", set()),
    "kdns_tcp_connections_closed_total": ("counter", {"reason"}),
    "kdns_loop_detected": ("gauge", {"zone"}),
    "kdns_hosts_unreadable": ("gauge", {"hostsfile"}),
    "kdns_compiled": ("gauge", set()),
    "kdns_manifest_errors": ("gauge", set()),
    "kdns_zone_files_unusable": ("gauge", set()),
    "kdns_memory_limit_bytes": ("gauge", set()),
    "kdns_node_intercepted": ("gauge", {"address", "by"}),
    "kdns_top_names": ("gauge", {"name", "type", "rcode"}),
    "kdns_tls_handshakes_total": ("counter", {"result"}),
    "kdns_transfers_total": ("counter", {"result"}),
    "kdns_notifies_total": ("counter", {"result"}),
    "kdns_secondary_transfers_total": ("counter", {"zone", "result"}),
    "kdns_secondary_expired": ("gauge", {"zone"}),
    "kdns_secondary_age_seconds": ("gauge", {"zone"}),
    "kdns_tls_certificate_expiry_timestamp_seconds": ("gauge", {"certificate"}),
    "kdns_tls_certificate_unusable": ("gauge", {"certificate"}),
    "kdns_log_dropped_total": ("counter", set()),
    "kdns_metrics_refused_series_total": ("counter", set()),
}
PROCESS: dict[str, tuple[str, set[str]]] = {
    "process_virtual_memory_bytes": ("gauge", set()),
    "process_resident_memory_bytes": ("gauge", set()),
    "process_start_time_seconds": ("gauge", set()),
    "process_cpu_seconds_total": ("counter", set()),
    "process_open_fds": ("gauge", set()),
    "process_max_fds": ("gauge", set()),
}
DURATION_BUCKETS = (
    "0.00025 0.0005 0.001 0.002 0.004 0.008 0.016 0.032 0.064 0.128 0.256 0.512 1.024 2.048 4.096 8.192 +Inf"
)
SIZE_BUCKETS = "0 100 200 300 400 511 1023 2047 4095 8291 16000 32000 48000 64000 +Inf"
PROBE_BUCKETS = "0.00025 0.0025 0.025 0.25 2.5 +Inf"
REST_BUCKETS = "0.005 0.01 0.025 0.05 0.1 0.25 0.5 1 2.5 5 10 +Inf"
PROGRAMMING_BUCKETS = (
    "0.001 0.002 0.004 0.008 0.016 0.032 0.064 0.128 0.256 0.512 1.024 2.048 4.096 8.192 16.384 32.768 65.536 131.072 "
    "262.144 524.288 +Inf"
)

STATE = SupervisorState(
    version="0.1.0",
    revision="abc",
    compiled=True,
    plugins=(("dns://:53", "cluster.local.", "", "kubernetes"),),
    config_sha512="f00",
    certificates=(("/etc/tls/tls.crt", 1.8e9, True), ("/etc/tls/\udcff.crt", 1.9e9, False)),
    copies={"cluster.local.": 2.5},
    workers=2,
    pids=(os.getpid(),),
    store_generation=17,
    store_bytes=4096,
    data_age_seconds=1.5,
    synced=True,
    objects={"Service": 5, "Pod": 0},
    manifest_errors=1,
    zone_file_errors=2,
    memory_limit=1 << 27,
    ways={"169.254.20.10": "nftables", "10.96.0.10": ""},
    outdated=True,
    top_names=(TopName("web.test.", "A", "NOERROR", 12.5), TopName('a"\\255\\010.test.', "TYPE99", "NXDOMAIN", 0.1)),
)


def busy_region() -> Region:
    region = Region.create()
    counters = QueryCounters(region, "dns://:53", "cluster.local.")
    for do in (False, True):
        i = counters.key("udp", "1", "A", "NOERROR", "kubernetes", do, 50, 150)
        region.cells[i] += 10
        region.cells[i + 1] += 500
        region.cells[i + 2] += 1500
    i = counters.key("tcp", "2", "SRV", "NXDOMAIN", "", False, 101, 65000)
    region.cells[i] += 1
    region.cells[i + 1] += 101
    region.cells[i + 2] += 65000
    counters.duration(300_000, 20)
    counters.duration(9_000_000_000, 1)
    for durations in HISTOGRAMS:
        durations.histogram(region, *("x" for _ in durations.labels)).observe(1_000_000)
    for family in COUNTERS:
        region.count(("count", family.name, *(text for label in family.labels for text in (label, "x"))), 3)
    for family in GAUGES:
        region.set(("gauge", family.name, *(text for label in family.labels for text in (label, "x"))), 4)
    for family in SHARED:
        region.set(("shared", family.name, *(text for label in family.labels for text in (label, "x"))), 5)
    return region


@pytest.fixture
def totals() -> Totals:
    totals = Totals()
    totals.add_region(busy_region())
    return totals


def scrape(totals: Totals, state: Callable[[], SupervisorState] = lambda: STATE, accept: str = "") -> str:
    _, body = Exposition(totals, state).render(accept)
    return body.decode()


def parsed(text: str) -> dict[str, Metric]:
    families = {}
    for family in text_string_to_metric_families(text):
        families[family.name + "_total" if family.type == "counter" else family.name] = family
    return families


def value(text: str, sample: str, **labels: str) -> float:
    found = [
        s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
        if s.name == sample and labels.items() <= s.labels.items()
    ]
    assert len(found) == 1, (sample, labels, found)
    return found[0]


def test_names_types_and_labels_are_these(totals: Totals) -> None:
    found = {
        name: (family.type, {label for sample in family.samples for label in sample.labels} - {"le"})
        for name, family in parsed(scrape(totals)).items()
    }
    assert found == COREDNS | OURS | PROCESS


def test_every_family_has_one_help_and_one_type_and_they_come_first(totals: Totals) -> None:
    text = scrape(totals)
    helped = re.findall(r"^# HELP (\S+) \S.+$", text, re.MULTILINE)
    typed = re.findall(r"^# TYPE (\S+) (?:counter|gauge|histogram)$", text, re.MULTILINE)
    assert helped == typed
    assert len(set(typed)) == len(typed)
    current = ""
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            current = line.split()[2]
        elif not line.startswith("#"):
            name = re.match(r"[a-z_0-9]+", line)
            assert name is not None
            assert re.sub(r"_(bucket|sum|count)$", "", name[0]) == current


def test_no_sample_is_there_twice(totals: Totals) -> None:
    lines = [line.rpartition(" ")[0] for line in scrape(totals).splitlines() if not line.startswith("#")]
    assert len(lines) == len(set(lines))


def test_help_texts_say_more_than_the_name() -> None:
    for family in text_string_to_metric_families(scrape(Totals())):
        assert len(family.documentation.split()) > 3
        assert family.documentation.endswith(".")


def test_queries_are_counted_by_their_labels(totals: Totals) -> None:
    text = scrape(totals)
    where = {"server": "dns://:53", "zone": "cluster.local.", "view": ""}
    assert value(text, "coredns_dns_requests_total", **where, proto="udp", family="1", type="A") == 20
    assert value(text, "coredns_dns_requests_total", **where, proto="tcp", family="2", type="SRV") == 1
    assert value(text, "coredns_dns_responses_total", **where, rcode="NOERROR", plugin="kubernetes") == 20
    assert value(text, "coredns_dns_responses_total", **where, rcode="NXDOMAIN", plugin="") == 1
    assert value(text, "coredns_dns_do_requests_total", **where) == 10
    assert value(text, "coredns_dns_request_size_bytes_sum", **where, proto="udp") == 1000
    assert value(text, "coredns_dns_response_size_bytes_sum", **where, proto="udp") == 3000
    assert value(text, "coredns_dns_response_size_bytes_count", **where, proto="tcp") == 1
    assert value(text, "coredns_dns_response_size_bytes_bucket", **where, proto="tcp", le="64000") == 0
    assert value(text, "coredns_dns_response_size_bytes_bucket", **where, proto="udp", le="100") == 0
    assert value(text, "coredns_dns_response_size_bytes_bucket", **where, proto="udp", le="200") == 20
    assert value(text, "coredns_dns_request_duration_seconds_bucket", **where, le="0.00025") == 0
    assert value(text, "coredns_dns_request_duration_seconds_bucket", **where, le="0.0005") == 20
    assert value(text, "coredns_dns_request_duration_seconds_count", **where) == 21
    assert value(text, "coredns_dns_request_duration_seconds_sum", **where) == pytest.approx(9.006)
    assert value(text, "coredns_health_request_duration_seconds_bucket", le="0.0025") == 1
    assert value(text, "coredns_health_request_duration_seconds_sum") == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        ("coredns_dns_request_duration_seconds", DURATION_BUCKETS),
        ("coredns_dns_request_size_bytes", SIZE_BUCKETS),
        ("coredns_dns_response_size_bytes", SIZE_BUCKETS),
        ("coredns_health_request_duration_seconds", PROBE_BUCKETS),
        ("coredns_proxy_request_duration_seconds", DURATION_BUCKETS),
        ("coredns_kubernetes_dns_programming_duration_seconds", PROGRAMMING_BUCKETS),
        ("coredns_kubernetes_rest_client_request_duration_seconds", REST_BUCKETS),
        ("coredns_kubernetes_rest_client_rate_limiter_duration_seconds", REST_BUCKETS),
    ],
)
def test_buckets_are_those_of_coredns_and_cumulative(totals: Totals, name: str, bounds: str) -> None:
    family = parsed(scrape(totals))[name]
    series: dict[str, list[tuple[str, float]]] = {}
    for sample in family.samples:
        if sample.name.endswith("_bucket"):
            series.setdefault(sample.labels.get("proto", ""), []).append((sample.labels["le"], sample.value))
    assert series
    for buckets in series.values():
        assert [bound for bound, _ in buckets] == bounds.split()
        values = [count for _, count in buckets]
        assert values == sorted(values)


def test_the_supervisors_values_are_shown(totals: Totals) -> None:
    text = scrape(totals)
    assert value(text, "coredns_build_info", version="0.1.0", revision="abc", goversion=platform.python_version()) == 1
    assert value(text, "coredns_plugin_enabled", zone="cluster.local.", view="", name="kubernetes") == 1
    assert value(text, "coredns_reload_version_info", hash="sha512", value="f00") == 1
    assert value(text, "kdns_workers") == 2
    assert value(text, "kdns_configuration_outdated") == 1
    assert value(text, "kdns_store_generation") == 17
    assert value(text, "kdns_store_bytes") == 4096
    assert value(text, "kdns_kubernetes_data_age_seconds") == 1.5
    assert value(text, "kdns_kubernetes_objects", kind="Service") == 5
    assert value(text, "kdns_compiled") == 1
    assert value(text, "kdns_manifest_errors") == 1
    assert value(text, "kdns_zone_files_unusable") == 2
    assert value(text, "kdns_tls_certificate_expiry_timestamp_seconds", certificate="/etc/tls/tls.crt") == 1.8e9
    assert value(text, "kdns_tls_certificate_unusable", certificate="/etc/tls/tls.crt") == 0
    assert value(text, "kdns_tls_certificate_unusable", certificate="/etc/tls/\\udcff.crt") == 1
    assert value(text, "kdns_top_names", name="web.test.", type="A", rcode="NOERROR") == 12.5
    assert value(text, "kdns_top_names", name='a"\\255\\010.test.') == 0.1
    assert value(text, "kdns_kubernetes_synced") == 1
    assert value(text, "kdns_memory_limit_bytes") == 1 << 27
    assert value(text, "kdns_node_intercepted", address="169.254.20.10", by="nftables") == 1
    assert value(text, "kdns_node_intercepted", address="10.96.0.10", by="") == 0
    assert value(text, "kdns_malformed_total", reason="x") == 3
    assert value(text, "kdns_packet_cache_entries") == 4


def test_counters_without_labels_are_0_before_the_first_event() -> None:
    text = scrape(Totals(), lambda: SupervisorState(version="0.1.0"))
    for name, (kind, labels) in (COREDNS | OURS).items():
        if kind == "counter" and not labels:
            assert value(text, name) == 0
    for absent in ("data_age_seconds", "synced"):
        assert not parsed(text)[f"kdns_kubernetes_{absent}"].samples
    assert not parsed(text)["kdns_memory_limit_bytes"].samples
    assert not parsed(text)["coredns_reload_version_info"].samples
    assert value(text, "kdns_configuration_outdated") == 0


def test_a_dead_worker_keeps_its_counts_and_loses_its_gauges() -> None:
    totals = Totals()
    dead, alive = busy_region(), busy_region()
    totals.add_region(dead)
    totals.add_region(alive)
    dead.set(("shared", "coredns_hosts_entries", "hostsfile", "x"), 6)
    before = scrape(totals)
    assert value(before, "kdns_packet_cache_entries") == 8
    assert value(before, "coredns_hosts_entries") == 6
    totals.retire(dead)
    after = scrape(totals)
    assert value(after, "kdns_packet_cache_entries") == 4
    assert value(after, "coredns_hosts_entries") == 5
    assert value(after, "kdns_packet_cache_hits_total") == value(before, "kdns_packet_cache_hits_total") == 6


def test_a_count_that_nobody_described_is_shown_all_the_same(totals: Totals) -> None:
    region = Region.create()
    region.count(("count", "kdns_new_total", "why", "a"), 2)
    totals.add_region(region)
    assert value(scrape(totals), "kdns_new_total", why="a") == 2


def test_hostile_label_values_are_escaped(totals: Totals) -> None:
    region = Region.create()
    QueryCounters(region, 'dns://"\n\\:53', "x.").duration(1, 1)
    totals.add_region(region)
    text = scrape(totals)
    assert value(text, "coredns_dns_request_duration_seconds_count", server='dns://"\n\\:53') == 1


def test_openmetrics_is_given_when_asked_for_and_says_the_same(totals: Totals) -> None:
    headers, body = Exposition(totals, lambda: STATE).render(OPENMETRICS)
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name: family for family in parse_openmetrics(body.decode())}  # type: ignore[no-untyped-call]
    assert {name.removesuffix("_total") for name in COREDNS | OURS | PROCESS} == set(families)
    bounds = [s.labels["le"] for s in families["coredns_health_request_duration_seconds"].samples if "le" in s.labels]
    assert bounds == PROBE_BUCKETS.split()
    assert 'le="100.0"' in body.decode()


@pytest.mark.parametrize(
    "accept",
    ["", "*/*", "text/plain", "text/html", "text/plain;version=1.0.0", ";;,=", "text/plain;version"],
)
def test_any_other_accept_header_gives_a_format_that_parses(totals: Totals, accept: str) -> None:
    headers, body = Exposition(totals, lambda: STATE).render(accept)
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "coredns_build_info" in parsed(body.decode())


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("gzip", True),
        ("deflate, gzip;q=0.5", True),
        ("", False),
        ("gzip;q=0", False),
        ("gzip; q=0.00", False),
        ("br", False),
    ],
)
def test_gzip_is_used_when_asked_for(totals: Totals, accepted: str, packed: bool) -> None:
    headers, body = Exposition(totals, lambda: STATE).render("", accepted)
    assert (headers.get("Content-Encoding") == "gzip") is packed
    text = (gzip.decompress(body) if packed else body).decode()
    assert value(text, "kdns_workers") == 2


def test_process_metrics_are_summed_and_cpu_time_never_falls() -> None:
    pid = os.fork()
    if pid == 0:
        sum(n * n for n in range(20_000_000))
        os._exit(0)
    status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert status is not None
    pids = [(os.getpid(),), (os.getpid(), pid), (os.getpid(),)]
    exposition = Exposition(Totals(), lambda: SupervisorState(version="", pids=pids.pop()))
    alone = value(exposition.render()[1].decode(), "process_cpu_seconds_total")
    both = value(exposition.render()[1].decode(), "process_cpu_seconds_total")
    os.waitpid(pid, 0)
    after = value(exposition.render()[1].decode(), "process_cpu_seconds_total")
    assert alone + 0.2 < both <= after
