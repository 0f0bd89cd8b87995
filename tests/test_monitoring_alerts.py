"""Each alert, by promtool: on its fault it fires, with no other than those that belong to it, and on nothing less."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.deploy import SHORT_LIVED
from tests.support.monitoring import RULE, RULES

FAULT = 30
"""The minute in which all faults begin; before, all is well."""
LAST = 150

DAY = 86400
CERTIFICATE = {"certificate": "/tls/tls.crt"}

Values = str
"""As promtool has them: `1+2x3` is 1 3 5 7, `5x2` is 5 5 5, `_` is no value."""


def steady(value: float, after: float | str | None = None) -> Values:
    """A value for each minute, and another one from the fault on; `_` if the series ends."""
    if after == "_":
        return f"{value:g}x{FAULT - 1} stale"
    then = value if after is None else after
    return f"{value:g}x{FAULT - 1} {then:g}x{LAST}"


def counter(per_minute: float, after: float | None = None) -> Values:
    """A counter that rises so much in a minute, and otherwise from the fault on."""
    then = per_minute if after is None else after
    return f"0+{per_minute:g}x{FAULT - 1} {per_minute * FAULT:g}+{then:g}x{LAST}"


def once(count: float) -> Values:
    """A counter that rises in the minute of the fault, and not again."""
    return f"0x{FAULT - 1} {count:g}x{LAST}"


CLUSTER = ("kdns-a", "kdns-b")
NODES = ("node-1", "node-2", "node-3")
PLACES = [("kube-dns", instance) for instance in CLUSTER] + [("node-local-dns", instance) for instance in NODES]


def at(name: str, job: str, instance: str, **labels: str) -> str:
    """A series' name."""
    return selector(name, {"job": job, "instance": instance, **labels})


def selector(name: str, labels: Mapping[str, str]) -> str:
    """A metric with labels, as PromQL has it."""
    pairs = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return f"{name}{{{pairs}}}"


def buckets(name: str, job: str, instance: str, slow: float, per_minute: float, **labels: str) -> dict[str, Values]:
    """A histogram's series, with answers within 4 ms, and from the fault on a share `slow` that takes 3 to 4 s."""
    fast = {bound: counter(per_minute, per_minute * (1 - slow)) for bound in ("0.004", "1.024", "2.048")}
    rest = dict.fromkeys(("4.096", "+Inf"), counter(per_minute))
    found = {at(f"{name}_bucket", job, instance, le=bound, **labels): values for bound, values in (fast | rest).items()}
    return found | {at(f"{name}_count", job, instance, **labels): counter(per_minute)}


def healthy(load: float = 1.0) -> dict[str, Values]:
    """Two instances of a cluster and three of nodes. load: 1 for a busy day with the small faults that it brings,
    0 for nobody who asks anything."""
    found: dict[str, Values] = {}
    for job, instance in PLACES:
        found |= _instance(job, instance, load)
    for instance in CLUSTER:
        found |= _of_the_cluster(instance, load)
    for instance in NODES:
        found |= _of_a_node(instance, load)
    return found


def _instance(job: str, instance: str, load: float) -> dict[str, Values]:
    def here(name: str, **labels: str) -> str:
        return at(name, job, instance, **labels)

    zone = {"server": "dns://:53", "zone": "."}
    answers = {"NOERROR": 40_000, "NXDOMAIN": 60_000, "SERVFAIL": 60}
    duration, upstream = "coredns_dns_request_duration_seconds", "coredns_proxy_request_duration_seconds"
    found = {
        here("up"): steady(1),
        here("kdns_workers"): steady(2),
        here("coredns_build_info", version="0.1.0", goversion="3.11.7"): steady(1),
        here("kdns_configuration_outdated"): steady(0),
        here("kdns_loop_detected", zone="."): steady(0),
        here("kdns_hosts_unreadable", hostsfile="/etc/hosts"): steady(0),
        here("kdns_tls_certificate_expiry_timestamp_seconds", **CERTIFICATE): steady(30 * DAY),
        here("kdns_tls_certificate_unusable", **CERTIFICATE): steady(0),
        here("process_resident_memory_bytes"): steady(100e6),
        here("kdns_memory_limit_bytes"): steady(128e6),
        here("coredns_panics_total"): steady(0),
        here("kdns_worker_restarts_total"): once(1 * load),
        here("kdns_dropped_total", reason="queue"): once(20 * load),
        here("kdns_dropped_total", reason="send"): counter(2 * load),
        here("kdns_pending_rejects_total"): steady(0),
        here("coredns_forward_max_concurrent_rejects_total"): steady(0),
        here("kdns_tcp_accept_errors_total"): steady(0),
        here("kdns_log_dropped_total"): once(100 * load),
        here("kdns_metrics_refused_series_total"): steady(0),
        here("coredns_forward_healthcheck_broken_total"): once(5 * load),
        here("kdns_forward_upstreams", to="192.0.2.1:53", state="up"): steady(2),
        here("kdns_forward_upstreams", to="192.0.2.1:53", state="down"): steady(0),
        here("coredns_cache_misses_total", zones="."): counter(600 * load),
        here("coredns_cache_evictions_total", zones=".", type="success"): counter(60 * load),
        **{here("coredns_dns_responses_total", rcode=code, **zone): counter(n * load) for code, n in answers.items()},
    }
    found |= buckets(duration, job, instance, 0.005 * load, 1000 * load, **zone)
    return found | buckets(upstream, job, instance, 0.005 * load, 600 * load, to="192.0.2.1:53", rcode="NOERROR")


def _of_the_cluster(instance: str, load: float) -> dict[str, Values]:
    def here(name: str, **labels: str) -> str:
        return at(name, "kube-dns", instance, **labels)

    return {
        here("kdns_kubernetes_synced"): steady(1),
        here("kdns_kubernetes_data_age_seconds"): f"0x{FAULT - 1} {60 * load:g} 0x{LAST}",  # an API server restarts
        here("kdns_kubernetes_watch_errors_total", kind="Service", reason="closed"): once(2 * load),
        here("kdns_store_errors_total"): steady(0),
        here("kdns_manifest_errors"): steady(0),
        here("coredns_reload_version_info", hash="sha512", value="aaaa"): steady(1),
    }


def _of_a_node(instance: str, load: float) -> dict[str, Values]:
    def here(name: str, **labels: str) -> str:
        return at(name, "node-local-dns", instance, **labels)

    return {
        **{here("kdns_node_intercepted", address=a, by="nftables"): steady(1) for a in ("169.254.20.10", "10.96.0.10")},
        here("coredns_nodecache_setup_errors_total", errortype="interface_check"): once(3 * load),
        here("coredns_nodecache_setup_errors_total", errortype="configmap"): steady(0),
    }


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong, and what is told.

    series: in the place of the healthy ones, or beside them. alerts: all that fire `by` so many minutes after the
    fault, with the labels that they have beside those of their rule.
    """

    name: str
    series: Mapping[str, Values]
    alerts: list[tuple[str, Mapping[str, str]]]
    by: int

    def __str__(self) -> str:
        return self.name


def dead(*instances: str) -> dict[str, Values]:
    """The series of instances that are no longer scraped."""
    found: dict[str, Values] = {}
    for name, values in healthy().items():
        if any(f'instance="{instance}"' in name for instance in instances):
            found[name] = steady(1, 0) if name.startswith("up{") else f"{values.split()[0]} stale"
    return found


def a(name: str, **labels: str) -> str:
    """A series of an instance of the cluster."""
    return at(name, "kube-dns", "kdns-a", **labels)


def b(name: str, **labels: str) -> str:
    """A series of the other one."""
    return at(name, "kube-dns", "kdns-b", **labels)


def node(name: str, **labels: str) -> str:
    """A series of a node."""
    return at(name, "node-local-dns", "node-1", **labels)


A = {"job": "kube-dns", "instance": "kdns-a"}
B = {"job": "kube-dns", "instance": "kdns-b"}
NODE = {"job": "node-local-dns", "instance": "node-1"}
UPSTREAM = {"to": "192.0.2.1:53"}
ZONE = {"server": "dns://:53", "zone": "."}
DURATION, PROXY = "coredns_dns_request_duration_seconds", "coredns_proxy_request_duration_seconds"
READY = {here("kdns_kubernetes_synced"): steady(1, 0) for here in (a, b)}
WANTED = 'kube_deployment_spec_replicas{namespace="kube-system",deployment="kdns"}'
SET = 'namespace="kube-system",daemonset="node-local-dns"'


def servfail(here: Callable[..., str], per_minute: float) -> dict[str, Values]:
    return {here("coredns_dns_responses_total", rcode="SERVFAIL", **ZONE): counter(0, per_minute)}


FAULTS = [
    Fault(
        "all of the cluster's DNS is gone",
        dead(*CLUSTER),
        [("KdnsAbsent", {}), ("KdnsInstanceDown", A), ("KdnsInstanceDown", B)],
        by=11,
    ),
    Fault("an instance is gone", dead("kdns-b"), [("KdnsInstanceDown", B)], by=11),
    Fault(
        "one instance is left",
        dead("kdns-b"),
        [("KdnsInstanceDown", B), ("KdnsTooFewReady", {"job": "kube-dns"})],
        by=16,
    ),
    Fault("one instance is wanted", dead("kdns-b") | {WANTED: steady(1)}, [("KdnsInstanceDown", B)], by=60),
    Fault("nobody has read the cluster", READY, [("KdnsNoneReady", {"job": "kube-dns"})], by=4),
    Fault(
        "an instance has not read the cluster", {b("kdns_kubernetes_synced"): steady(1, 0)}, [("KdnsNotReady", B)], by=6
    ),
    Fault(
        "the API server is gone",
        {a("kdns_kubernetes_data_age_seconds"): counter(0, 60)},
        [("KdnsDataOld", A)],
        by=8,
    ),
    Fault(
        "the API server stays away",
        {a("kdns_kubernetes_data_age_seconds"): counter(0, 60)},
        [("KdnsDataOld", A), ("KdnsDataVeryOld", A)],
        by=33,
    ),
    Fault(
        "a watch is forbidden",
        {a("kdns_kubernetes_watch_errors_total", kind="EndpointSlice", reason="forbidden"): counter(0, 1)},
        [("KdnsWatchErrors", A | {"kind": "EndpointSlice", "reason": "forbidden"})],
        by=17,
    ),
    Fault("the disk is full", {b("kdns_store_errors_total"): counter(0, 60)}, [("KdnsStoreErrors", B)], by=6),
    Fault("a manifest is broken", {a("kdns_manifest_errors"): steady(0, 2)}, [("KdnsManifestErrors", A)], by=6),
    Fault(
        "one instance has not taken the Corefile",
        {
            b("coredns_reload_version_info", hash="sha512", value="aaaa"): steady(1, "_"),
            b("coredns_reload_version_info", hash="sha512", value="bbbb"): f"_x{FAULT} 1x{LAST}",
        },
        [("KdnsConfigurationsDiffer", {"job": "kube-dns"})],
        by=16,
    ),
    Fault("a node's instance is gone", dead("node-1"), [("KdnsNodeDown", NODE)], by=6),
    Fault(
        "a node has no instance",
        {
            f"kube_daemonset_status_desired_number_scheduled{{{SET}}}": steady(3),
            f"kube_daemonset_status_number_ready{{{SET}}}": steady(3, 2),
        },
        [("KdnsNodeMissing", {"namespace": "kube-system", "daemonset": "node-local-dns"})],
        by=16,
    ),
    Fault(
        "a node's table of nftables is not there",
        {
            node("kdns_node_intercepted", address="10.96.0.10", by="nftables"): steady(1, "_"),
            node("kdns_node_intercepted", address="10.96.0.10", by=""): f"_x{FAULT} 0x{LAST}",
        },
        [("KdnsNodeNotIntercepting", NODE | {"address": "10.96.0.10"})],
        by=6,
    ),
    Fault(
        "a node has no nftables",
        {
            node("kdns_node_intercepted", address="10.96.0.10", by="nftables"): steady(1, "_"),
            node("kdns_node_intercepted", address="10.96.0.10", by="link"): f"_x{FAULT} 1x{LAST}",
        },
        [("KdnsNodeWithoutFallback", {"job": "node-local-dns"})],
        by=16,
    ),
    Fault(
        "something undoes a node's rules",
        {node("coredns_nodecache_setup_errors_total", errortype="interface_check"): counter(0, 1)},
        [("KdnsNodeSetupErrors", NODE | {"errortype": "interface_check"})],
        by=9,
    ),
    Fault(
        "a node does not reach its upstreams",
        servfail(node, 20_000),
        [("KdnsNodeServfail", NODE), ("KdnsServfail", {"job": "node-local-dns"})],
        by=17,
    ),
    Fault(
        "the cluster DNS is out of reach for a node that has a copy",
        {
            node("kdns_secondary_age_seconds", zone="cluster.local."): counter(0, 60),
            node("kdns_secondary_transfers_total", zone="cluster.local.", result="failed"): counter(0, 6),
        },
        [("KdnsCopyOld", {"job": "node-local-dns", "zone": "cluster.local."})],
        by=17,
    ),
    Fault(
        "one query in fifty fails",
        servfail(a, 2000) | servfail(b, 2000),
        [("KdnsServfail", {"job": "kube-dns"})],
        by=15,
    ),
    Fault(
        "one query in five fails",
        servfail(a, 25_000) | servfail(b, 25_000),
        [("KdnsServfail", {"job": "kube-dns"}), ("KdnsServfailMany", {"job": "kube-dns"})],
        by=13,
    ),
    Fault(
        "one query in thirty waits",
        buckets(DURATION, "kube-dns", "kdns-a", 0.07, 1000, **ZONE),
        [("KdnsSlow", {"job": "kube-dns"})],
        by=15,
    ),
    Fault("a query is too much for us", {a("coredns_panics_total"): once(1)}, [("KdnsPanics", A)], by=1),
    Fault("no worker is there", {node("kdns_workers"): steady(1, 0)}, [("KdnsNoWorkers", NODE)], by=2),
    Fault(
        "workers are killed again and again",
        {node("kdns_worker_restarts_total"): counter(0, 0.5)},
        [("KdnsWorkersRestarting", NODE)],
        by=9,
    ),
    Fault(
        "workers do not keep up",
        {a("kdns_dropped_total", reason="queue"): once(150)},
        [("KdnsQueriesDropped", A | {"reason": "queue"})],
        by=1,
    ),
    Fault(
        "too many wait for upstreams",
        {a("kdns_pending_rejects_total"): counter(0, 30)},
        [("KdnsQueriesRejected", A)],
        by=7,
    ),
    Fault(
        "more than max_concurrent wait",
        {b("coredns_forward_max_concurrent_rejects_total"): counter(0, 30)},
        [("KdnsQueriesRejected", B)],
        by=7,
    ),
    Fault(
        "there are no descriptors left",
        {a("kdns_tcp_accept_errors_total"): counter(0, 60)},
        [("KdnsTcpNotAccepted", A)],
        by=7,
    ),
    Fault(
        "an upstream is down",
        {here("kdns_forward_upstreams", state="down", **UPSTREAM): steady(0, 2) for here in (a, b)},
        [("KdnsUpstreamDown", UPSTREAM | {"job": "kube-dns"})],
        by=6,
    ),
    Fault(
        "all upstreams are down",
        {node("coredns_forward_healthcheck_broken_total"): counter(0, 600)},
        [("KdnsUpstreamsDown", NODE)],
        by=6,
    ),
    Fault(
        "an upstream is slow",
        buckets(PROXY, "kube-dns", "kdns-a", 0.2, 600, rcode="NOERROR", **UPSTREAM),
        [("KdnsUpstreamSlow", UPSTREAM | {"job": "kube-dns"})],
        by=15,
    ),
    Fault(
        "what is forwarded comes back",
        {a("kdns_loop_detected", zone="."): steady(0, 1)},
        [("KdnsLoop", A | {"zone": "."})],
        by=2,
    ),
    Fault(
        "the ConfigMap has a mistake",
        {here("kdns_configuration_outdated"): steady(0, 1) for here in (a, b)},
        [("KdnsConfigurationOutdated", {"job": "kube-dns"})],
        by=6,
    ),
    Fault(
        "a hosts file is gone",
        {b("kdns_hosts_unreadable", hostsfile="/etc/hosts"): steady(0, 1)},
        [("KdnsHostsUnreadable", B | {"hostsfile": "/etc/hosts"})],
        by=6,
    ),
    Fault(
        "nobody renews a certificate",
        {b("kdns_tls_certificate_expiry_timestamp_seconds", **CERTIFICATE): steady(30 * DAY, 3 * DAY)},
        [("KdnsCertificateExpiring", B | CERTIFICATE)],
        by=11,
    ),
    Fault(
        "a key is not that of its certificate",
        {a("kdns_tls_certificate_unusable", **CERTIFICATE): steady(0, 1)},
        [("KdnsCertificateUnusable", A | CERTIFICATE)],
        by=6,
    ),
    Fault(
        "an update stops half-way",
        {
            b("coredns_build_info", version="0.1.0", goversion="3.11.7"): steady(1, "_"),
            b("coredns_build_info", version="0.2.0", goversion="3.11.7"): f"_x{FAULT} 1x{LAST}",
        },
        [("KdnsVersionsDiffer", {"job": "kube-dns"})],
        by=61,
    ),
    Fault(
        "memory grows",
        {a("process_resident_memory_bytes"): steady(100e6, 120e6)},
        [("KdnsMemoryNearLimit", A)],
        by=16,
    ),
    Fault(
        "the cache is small",
        {node("coredns_cache_evictions_total", zones=".", type="success"): counter(60, 400)},
        [("KdnsCacheEvicting", NODE)],
        by=42,
    ),
    Fault("nobody takes log lines", {a("kdns_log_dropped_total"): counter(0, 10)}, [("KdnsLogDropped", A)], by=17),
    Fault(
        "there are too many series",
        {a("kdns_metrics_refused_series_total"): once(5)},
        [("KdnsMetricsRefused", A)],
        by=1,
    ),
]

COREDNS = {
    at("up", "kube-dns", "coredns-1"): steady(1),
    at("coredns_build_info", "kube-dns", "coredns-1", version="1.13.2", goversion="go1.25"): steady(1),
    at("coredns_reload_version_info", "kube-dns", "coredns-1", hash="sha512", value="cccc"): steady(1),
}
"""A pod of CoreDNS behind the same Service, while one takes over from the other."""

ALMOST: dict[str, Values] = {
    a("kdns_kubernetes_data_age_seconds"): steady(0, 290),
    a("kdns_tls_certificate_expiry_timestamp_seconds", **CERTIFICATE): steady(30 * DAY, 3 * DAY + 3 * 3600),
    a("kdns_tls_certificate_unusable", **CERTIFICATE): f"0x{FAULT - 1} 1x3 0x{LAST}",
    a("process_resident_memory_bytes"): steady(100e6, 115e6),
    a("kdns_worker_restarts_total"): once(3),
    a("kdns_dropped_total", reason="queue"): once(95),
    a("coredns_reload_version_info", hash="sha512", value="aaaa"): f"1x{FAULT - 1} _x12 1x{LAST}",
    a("coredns_reload_version_info", hash="sha512", value="bbbb"): f"_x{FAULT} 1x12 stale",
    b("coredns_build_info", version="0.1.0", goversion="3.11.7"): f"1x{FAULT - 1} _x55 1x{LAST}",
    b("coredns_build_info", version="0.2.0", goversion="3.11.7"): f"_x{FAULT} 1x55 stale",
    b("kdns_kubernetes_synced"): f"1x{FAULT - 1} 0x3 1x{LAST}",
    b("up"): f"1x{FAULT - 1} 0x8 1x{LAST}",
    node("up"): f"1x{FAULT - 1} 0x3 1x{LAST}",
    node("coredns_nodecache_setup_errors_total", errortype="interface_check"): once(5),
    node("coredns_cache_evictions_total", zones=".", type="success"): counter(60, 290),
    node("kdns_node_intercepted", address="10.96.0.10", by="nftables"): f"1x{FAULT - 1} _x3 1x{LAST}",
    node("kdns_node_intercepted", address="10.96.0.10", by=""): f"_x{FAULT} 0x3 stale",
    **servfail(a, 900),
    **servfail(b, 900),
    **servfail(node, 2500),
    **buckets(DURATION, "kube-dns", "kdns-a", 0.009, 1000, **ZONE),
    **buckets(PROXY, "kube-dns", "kdns-a", 0.009, 600, rcode="NOERROR", **UPSTREAM),
}
"""Everything just below its limit, or over it for a shorter time."""


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rules") / "rules.yaml"
    path.write_text(yaml.safe_dump(RULE["spec"]))
    return path


def fired(alert: str, labels: Mapping[str, str]) -> dict[str, Any]:
    [rule] = [rule for rule in RULES if rule["alert"] == alert]
    everything = {"alertname": alert, "alertstate": "firing", **rule["labels"], **labels}
    return {"labels": selector("ALERTS", everything), "value": 1}


def run(rules: Path, series: Mapping[str, Values], expected: list[dict[str, Any]]) -> None:
    """Let promtool evaluate all rules once a minute, and compare what queries give."""
    unit = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": expected,
    }
    path = rules.with_name("unit.yaml")
    path.write_text(yaml.safe_dump({"rule_files": [rules.name], "evaluation_interval": "1m", "tests": [unit]}))
    command, environ = ["promtool", "test", "rules", str(path)], os.environ | SHORT_LIVED
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)
    assert done.returncode == 0, done.stdout + done.stderr


def minutes(text: str) -> int:
    """Of a rule's `for`."""
    return int(text[:-1]) * {"m": 1, "h": 60}[text[-1]]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_is_told_and_nothing_else(needs: Callable[..., None], rules: Path, fault: Fault) -> None:
    needs("promtool")
    now = f"{FAULT + fault.by}m"
    firing = [fired(alert, labels) for alert, labels in fault.alerts]
    expected: list[dict[str, Any]] = [
        {"expr": 'ALERTS{alertstate="firing"}', "eval_time": f"{FAULT - 1}m"},
        {"expr": 'ALERTS{alertstate="firing"}', "eval_time": now, "exp_samples": firing},
    ]
    for rule in RULES:
        if "for" in rule and rule["alert"] in {alert for alert, _ in fault.alerts}:
            query = f'ALERTS{{alertstate="firing",alertname="{rule["alert"]}"}}'
            expected.append({"expr": query, "eval_time": f"{FAULT + minutes(rule['for']) - 1}m"})
    run(rules, {**healthy(), **fault.series}, expected)


def test_every_alert_has_its_fault() -> None:
    assert {alert for fault in FAULTS for alert, _ in fault.alerts} == {rule["alert"] for rule in RULES}


@pytest.mark.parametrize(
    ("series", "query"),
    [
        pytest.param(healthy(0), "max_over_time(ALERTS[170m])", id="idle"),
        pytest.param(healthy(), 'max_over_time(ALERTS{alertstate="firing"}[170m])', id="busy"),
        pytest.param(healthy() | COREDNS, 'max_over_time(ALERTS{alertstate="firing"}[170m])', id="beside CoreDNS"),
        pytest.param(healthy() | ALMOST, 'max_over_time(ALERTS{alertstate="firing"}[170m])', id="almost"),
    ],
)
def test_nothing_is_told_of_a_cluster_that_is_well(
    needs: Callable[..., None], rules: Path, series: Mapping[str, Values], query: str
) -> None:
    needs("promtool")
    run(rules, series, [{"expr": query, "eval_time": "175m"}])
