"""Dashboards, alerts and monitors as files: what they name exists, and they say what people need to know."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from kdns.cli import app
from tests.support import deploy
from tests.support.monitoring import (
    BOARDS,
    FOLDER,
    FOREIGN,
    OWN,
    QUERIES,
    RULE,
    RULES,
    TARGET,
    Wanted,
    check_names,
    family,
    labels_of,
    panels,
    variables,
)
from tests.support.prometheus import Expression, parse
from tests.support.server import ROOT

MONITORS: dict[str, Any] = {
    found["metadata"]["name"]: found for found in yaml.safe_load_all((FOLDER / "service-monitor.yaml").read_text())
}
OBJECTS = deploy.files("cluster/kdns.yaml", "node/node-local-dns.yaml")
MOST_APPLIED = 256 << 10
"""Bytes that `kubectl apply` may keep in an annotation of an object: all of it, as JSON."""
VERBS = {"apply", "auth", "delete", "describe", "edit", "exec", "get", "logs", "port-forward", "rollout", "scale"}
"""Of kubectl."""
KDNS_ONLY = "and on (job, instance) kdns_workers"
"""What leaves out the pods of CoreDNS, which may stand behind the same Service."""

each_board = pytest.mark.parametrize("board", BOARDS)
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])


def queries(board: str) -> list[Wanted]:
    return [wanted for wanted in QUERIES if wanted.board == board]


def test_queries_are_taken_apart() -> None:
    assert parse('sum by (le, a) (rate(b_bucket{c="d(e{",f=~"g"}[5m])) / on (h) (i > 0) or vector(0)') == Expression(
        (("b_bucket", frozenset({"c", "f"})), ("i", frozenset())), frozenset({"le", "a", "h"}), frozenset()
    )
    assert parse('label_replace(a and on (b) c, "d", "$1", "b", "(.).*")') == Expression(
        (("a", frozenset()), ("c", frozenset())), frozenset({"b"}), frozenset({"d"})
    )
    assert parse("max(a) unless b offset 5m == 1e3").metrics == {"a", "b"}


@pytest.mark.parametrize(
    "query",
    [
        "kdns_workerss",
        'kdns_workers{zone="."}',
        "sum by (zone) (kdns_workers)",
        "coredns_dns_request_duration_seconds",
        "kdns_workers_bucket",
        'up{zone="."}',
    ],
)
def test_a_name_that_does_not_exist_is_found(query: str) -> None:
    with pytest.raises(AssertionError):
        check_names(query)


# Dashboards


@each_board
def test_a_dashboard_can_be_imported_and_provisioned(board: str) -> None:
    found = BOARDS[board]
    assert (found["id"], found["uid"], found["schemaVersion"]) == (None, board, 42)
    assert "__inputs" not in found
    assert "kdns" in found["tags"]
    assert found["title"].startswith("kdns / ")


@each_board
def test_variables_have_defaults_and_take_several_values(board: str) -> None:
    found = variables(board)
    assert list(found) == ["datasource", "job", "instance", "zone"]
    assert (found["datasource"]["type"], found["datasource"]["query"]) == ("datasource", "prometheus")
    job = {"kdns-cluster": "kube-dns", "kdns-node": "node-local-dns"}[board]
    assert found["job"]["current"] == {"text": [job], "value": [job]}
    for name in ("instance", "zone"):
        assert found[name]["current"]["value"] == ["$__all"]
        assert (found[name]["includeAll"], found[name]["allValue"]) == (True, ".*")
    for name in ("job", "instance", "zone"):
        assert found[name]["multi"]
        assert found[name]["datasource"]["uid"] == "${datasource}"
        assert found[name]["query"]["query"] == found[name]["definition"]
        match = re.fullmatch(r"label_values\((.+), (\w+)\)", found[name]["definition"])
        assert match is not None
        check_names(match[1])
        assert match[2] in labels_of(next(iter(parse(match[1]).metrics)))


@each_board
def test_panels_have_places_of_their_own(board: str) -> None:
    everything = BOARDS[board]["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        at = panel["gridPos"]
        cells = set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    heights = [panel["gridPos"]["y"] for panel in everything]
    assert heights == sorted(heights)


@each_board
def test_a_panel_says_what_it_shows_and_what_is_normal(board: str) -> None:
    titles = [panel["title"] for panel in panels(board)]
    assert len(set(titles)) == len(titles)
    for panel in panels(board):
        assert panel["type"] in {"timeseries", "stat", "table", "bargauge"}, panel["title"]
        assert re.fullmatch(r"[A-Z\d].* Normal: .*\.", panel["description"]), panel["title"]
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"] in {"none", "reqps", "ops", "s", "bytes", "percentunit"}, panel["title"]
        for item in [panel, *panel["targets"]]:
            assert item["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)


@each_board
def test_panels_ask_for_metrics_and_labels_that_exist(board: str) -> None:
    for wanted in queries(board):
        check_names(wanted.expr)
        assert set(re.findall(r"\$(\w+)", wanted.expr)) <= {"job", "instance", "zone", "__rate_interval", "1"}
        for name, labels in parse(wanted.expr.replace(KDNS_ONLY, "")).selectors:
            assert name == "ALERTS" or labels >= TARGET, f"{wanted.title}: {name} is of any job or instance"


@each_board
def test_rates_are_of_what_only_rises(board: str) -> None:
    for wanted in queries(board):
        for function, name in re.findall(r"\b(rate|increase|delta|deriv)\((\w+)", wanted.expr):
            rises = OWN[family(name)][0] in ("counter", "histogram") or name == "kdns_store_generation"
            assert function in ("rate", "increase"), wanted.title
            assert rises, wanted.title


@each_board
def test_a_legend_names_labels_that_the_result_has(board: str) -> None:
    for wanted in queries(board):
        found, legend = parse(wanted.expr), wanted.target["legendFormat"]
        assert set(re.findall(r"{{(\w+)}}", legend)) <= found.grouped - {"le"}, wanted.title
        if wanted.panel["type"] == "timeseries":
            assert legend not in ("", "__auto"), wanted.title


@each_board
def test_all_metrics_that_are_about_a_fault_are_on_a_dashboard(board: str) -> None:
    shown = {family(name) for wanted in queries(board) for name in parse(wanted.expr).metrics if name not in FOREIGN}
    faults = {name for name in OWN if re.search(r"_(errors|failed|failures|refused|dropped|rejects|panics)", name)}
    if board == "kdns-node":
        faults = {name for name in faults if not re.search(r"_(kubernetes|manifest|store|reload)_", name)}
    else:
        faults -= {"coredns_nodecache_setup_errors_total"}
    assert faults <= shown


def test_every_metric_of_ours_is_on_a_dashboard() -> None:
    shown = {family(name) for wanted in QUERIES for name in parse(wanted.expr).metrics if name not in FOREIGN}
    assert {name for name in OWN if name.startswith("kdns_")} <= shown


def test_dashboards_fit_into_config_maps_that_kubectl_applies() -> None:
    for path in (FOLDER / "dashboards").iterdir():
        assert len(json.dumps({"data": {path.name: path.read_text()}})) < MOST_APPLIED * 3 // 4


# Alerts


@each_rule
def test_an_alert_asks_for_metrics_and_labels_that_exist(rule: Mapping[str, Any]) -> None:
    check_names(rule["expr"])
    for name, labels in parse(rule["expr"].replace(KDNS_ONLY, "")).selectors:
        assert "job" in labels or name.startswith("kube_"), f"{name} is of any job"


@each_rule
def test_an_alert_says_what_it_means_and_what_to_do(rule: Mapping[str, Any]) -> None:
    assert re.fullmatch(r"Kdns[A-Za-z]+", rule["alert"])
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    notes = rule["annotations"]
    assert notes.keys() == {"summary", "description", "runbook"}
    assert re.findall(r"^(\w+): ", notes["runbook"], re.MULTILINE) == ["Means", "Look", "Do", "Limit"]
    assert all(notes[name].endswith(".") for name in ("summary", "description"))
    found = parse(rule["expr"])
    kept = found.grouped if " by (" in rule["expr"] else labels_of(next(iter(found.metrics)))
    assert set(re.findall(r"\$labels\.(\w+)", str(notes))) <= kept
    assert set(re.findall(r"\bKdns[A-Z]\w+", notes["runbook"])) <= {other["alert"] for other in RULES}


def test_promtool_takes_the_rules(needs: Callable[..., None], tmp_path: Path) -> None:
    needs("promtool")
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(RULE["spec"]))
    done = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {len(RULES)} rules found" in done.stdout
    assert len({rule["alert"] for rule in RULES}) == len(RULES)


# What people are told to run


def told() -> Iterator[tuple[str, str]]:
    """The commands of the runbooks, and whose they are."""
    for rule in RULES:
        for command in re.findall(r"^ *\$ (.+)$", rule["annotations"]["runbook"], re.MULTILINE):
            yield rule["alert"], command


def kdns_commands() -> Iterator[tuple[str, list[str]]]:
    """Those of kdns, in words."""
    for alert, command in told():
        _, kdns, words = re.sub(r" \| .*", "", command).rpartition("kdns ")
        if kdns and (command.startswith("kdns ") or "-- kdns " in command):
            yield alert, words.split()


def test_commands_of_kdns_exist_with_these_options() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    found = list(kdns_commands())
    assert {words[0] for _, words in found} >= {"check", "query", "records", "version"}
    for alert, (name, *words) in found:
        assert name in commands, f"{alert}: kdns {name}"
        options = {option for param in commands[name].params for option in (*param.opts, *param.secondary_opts)}
        assert {word for word in words if word.startswith("-")} <= options, alert
    for wanted in QUERIES:
        for name in re.findall(r"`kdns (\w+)", wanted.panel["description"]):
            assert name in commands, wanted.title


def test_what_kubectl_is_to_look_at_exists() -> None:
    there = {f"{kind.lower()}/{name}" for kind, _, name in OBJECTS} | {"deployment/coredns"}
    labels = [item["metadata"].get("labels", {}) for item in OBJECTS.values()]
    named = selected = 0
    for alert, command in told():
        if not command.startswith("kubectl "):
            continue
        command = re.sub(r" -- .*| \| .*", "", command)
        for kind, space, name in re.findall(r"\b(deployment|daemonset|configmap)([/ ])([a-z-]+)", command):
            assert f"{kind}/{name}" in there, (alert, space)
            named += 1
        for key, value in re.findall(r" -l ([\w./-]+)=([\w-]+)", command):
            assert any(found.get(key) == value for found in labels), alert
            selected += 1
        for folder in re.findall(r" -k (\S+)", command):
            assert (ROOT / folder / "kustomization.yaml").exists(), alert
        verb = re.sub(r" -n kube-system", "", command).split()[1]
        assert verb in VERBS, alert
    assert named > 10
    assert selected > 10


# What the operator is told


def check_keys(found: Any, *allowed: str) -> None:
    assert isinstance(found, dict)
    assert found.keys() <= set(allowed), found.keys() - set(allowed)


def check_metadata(found: Any, kind: str) -> None:
    """The form of https://prometheus-operator.dev/docs/api-reference/api/, as far as we use it."""
    check_keys(found, "apiVersion", "kind", "metadata", "spec")
    assert (found["apiVersion"], found["kind"]) == ("monitoring.coreos.com/v1", kind)
    check_keys(found["metadata"], "name", "namespace", "labels")
    assert found["metadata"]["namespace"] == "kube-system"


def test_the_rules_have_the_form_of_a_prometheus_rule() -> None:
    check_metadata(RULE, "PrometheusRule")
    check_keys(RULE["spec"], "groups")
    names = [group["name"] for group in RULE["spec"]["groups"]]
    assert len(set(names)) == len(names)
    for group in RULE["spec"]["groups"]:
        check_keys(group, "name", "rules")
    for rule in RULES:
        check_keys(rule, "alert", "expr", "for", "labels", "annotations")
        assert isinstance(rule["expr"], str)
        assert re.fullmatch(r"\d+[mh]", rule.get("for", "0m"))
        assert all(isinstance(value, str) for part in ("labels", "annotations") for value in rule[part].values())


@pytest.mark.parametrize("monitor", MONITORS.values(), ids=lambda monitor: monitor["metadata"]["name"])
def test_the_monitors_have_the_form_of_a_service_monitor(monitor: Any) -> None:
    check_metadata(monitor, "ServiceMonitor")
    check_keys(monitor["spec"], "selector", "endpoints")
    check_keys(monitor["spec"]["selector"], "matchLabels")
    for end in monitor["spec"]["endpoints"]:
        check_keys(end, "port", "relabelings")
        assert isinstance(end["port"], str), "a number would be targetPort's"
        for relabeling in end["relabelings"]:
            check_keys(relabeling, "action", "sourceLabels", "targetLabel")
            assert relabeling["action"] == "replace"
            assert all(re.fullmatch(r"__meta_kubernetes_pod_\w+", label) for label in relabeling["sourceLabels"])


@pytest.mark.parametrize(
    ("monitor", "job", "port"), [("kdns", "kube-dns", 9153), ("kdns-node", "node-local-dns", 9253)]
)
def test_a_monitor_selects_the_port_of_one_service_whose_name_is_the_job(monitor: str, job: str, port: int) -> None:
    spec = MONITORS[monitor]["spec"]
    wanted = spec["selector"]["matchLabels"].items()
    [end] = spec["endpoints"]
    selected = [
        (name, namespace, found["port"])
        for (kind, namespace, name), item in OBJECTS.items()
        if kind == "Service" and wanted <= item["metadata"]["labels"].items()
        for found in item["spec"]["ports"]
        if found.get("name") == end["port"]
    ]
    assert selected == [(job, MONITORS[monitor]["metadata"]["namespace"], port)]
    corefiles = [item["data"]["Corefile"] for (kind, _, _), item in OBJECTS.items() if kind == "ConfigMap"]
    assert any(f"prometheus :{port}\n" in corefile for corefile in corefiles)


def test_kustomize_makes_all_of_it() -> None:
    found = deploy.kustomization(FOLDER)
    names = {(kind, name) for kind, _, name in found}
    assert names == {
        ("PrometheusRule", "kdns"),
        ("ServiceMonitor", "kdns"),
        ("ServiceMonitor", "kdns-node"),
        ("ConfigMap", "kdns-dashboard-cluster"),
        ("ConfigMap", "kdns-dashboard-node"),
    }
    assert {namespace for _, namespace, _ in found} == {"kube-system"}
    for (kind, _, name), item in found.items():
        if kind == "ConfigMap":
            board = name.replace("-dashboard", "")
            assert item["metadata"]["labels"]["grafana_dashboard"] == "1"
            assert json.loads(item["data"][f"{board}.json"]) == BOARDS[board]


# The README

README = (ROOT / "README.md").read_text()


def test_the_readme_lists_all_alerts() -> None:
    rows = re.findall(r"^\| `(Kdns\w+)` \| (\w+) \| (.+) \|$", README, re.MULTILINE)
    assert [(name, severity) for name, severity, _ in rows] == [
        (rule["alert"], rule["labels"]["severity"]) for rule in RULES
    ]
    for (_, _, text), rule in zip(rows, RULES, strict=True):
        assert text.lower() == rule["annotations"]["summary"].removesuffix(".").lower()
    assert f"and {len(RULES)} alerts" in README


def test_the_readme_has_jobs_for_a_prometheus_without_an_operator(needs: Callable[..., None], tmp_path: Path) -> None:
    needs("promtool")
    [text] = re.findall(r"^```yaml\n(scrape_configs:\n.*?)^```$", README, re.MULTILINE | re.DOTALL)
    config = yaml.safe_load(text)
    for job in config["scrape_configs"]:  # Debian's promtool knows nothing of Kubernetes
        [found] = job.pop("kubernetes_sd_configs")
        assert found == {"role": "endpointslice", "namespaces": {"names": ["kube-system"]}}
    path = tmp_path / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    done = subprocess.run(["promtool", "check", "config", str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    for job in config["scrape_configs"]:
        kept, renamed = job["relabel_configs"]
        service, _, port = kept["regex"].partition(";")
        ports = OBJECTS["Service", "kube-system", service]["spec"]["ports"]
        assert (service, [port]) == (job["job_name"], [found["name"] for found in ports if found["name"] == port])
        [monitor] = [found for found in MONITORS.values() if job["job_name"] in str(found["spec"]["selector"])]
        [relabeling] = monitor["spec"]["endpoints"][0]["relabelings"]
        assert renamed["source_labels"] == relabeling["sourceLabels"]
        assert renamed["target_label"] == relabeling["targetLabel"]
