"""The dashboards and alerts in deploy/kubernetes/monitoring, and what they name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from tests.support.prometheus import parse
from tests.support.server import ROOT
from tests.test_observe_metrics import COREDNS, OURS, PROCESS

FOLDER = ROOT / "deploy/kubernetes/monitoring"
BOARDS: dict[str, Any] = {
    path.stem: json.loads(path.read_text()) for path in sorted((FOLDER / "dashboards").glob("*.json"))
}
RULE: Any = yaml.safe_load((FOLDER / "prometheus-rule.yaml").read_text())
RULES: list[dict[str, Any]] = [rule for group in RULE["spec"]["groups"] for rule in group["rules"]]

TARGET = {"job", "instance"}
"""The labels that every series has from the place where it was scraped."""
FOREIGN: dict[str, set[str]] = {
    "up": TARGET,
    "ALERTS": {"alertname", "alertstate", "severity", *TARGET},
    "kube_deployment_spec_replicas": {"namespace", "deployment"},
    "kube_daemonset_status_desired_number_scheduled": {"namespace", "daemonset"},
    "kube_daemonset_status_number_ready": {"namespace", "daemonset"},
}
"""Metrics of Prometheus itself and of kube-state-metrics, with those of their labels that may be used."""
OWN = COREDNS | OURS | PROCESS


@dataclass(frozen=True, slots=True)
class Wanted:
    """A query of a panel."""

    board: str
    panel: Mapping[str, Any]
    target: Mapping[str, Any]

    @property
    def expr(self) -> str:
        """In PromQL, with variables."""
        return str(self.target["expr"])

    @property
    def title(self) -> str:
        """Dashboard, panel and letter."""
        return f"{self.board}: {self.panel['title']}: {self.target['refId']}"


def panels(board: str) -> list[Mapping[str, Any]]:
    """All but the rows."""
    return [panel for panel in BOARDS[board]["panels"] if panel["type"] != "row"]


def variables(board: str) -> dict[str, Any]:
    """A dashboard's variables by name."""
    return {found["name"]: found for found in BOARDS[board]["templating"]["list"]}


QUERIES = [Wanted(board, panel, target) for board in BOARDS for panel in panels(board) for target in panel["targets"]]


def filled(expr: str, values: Mapping[str, str]) -> str:
    """As Grafana fills in variables. A name that is not there stays."""
    return re.sub(r"\$(\w+)", lambda match: values.get(match[1], match[0]), expr)


def family(name: str) -> str:
    """The metric that a series belongs to: a histogram's without its ending. Raises AssertionError for none of ours."""
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    found = base if base in OWN and OWN[base][0] == "histogram" else name
    assert found in OWN, f"{name} is not among kdns's metrics"
    assert OWN[found][0] != "histogram" or base != name, f"{name} is a histogram: _bucket, _sum or _count"
    return found


def labels_of(name: str) -> set[str]:
    """The labels that series of this name have. Raises AssertionError for a metric that is not known."""
    if name in FOREIGN:
        return FOREIGN[name]
    return OWN[family(name)][1] | TARGET | ({"le"} if name.endswith("_bucket") else set())


def check_names(expr: str) -> None:
    """Raises AssertionError if a query names a metric or a label that does not exist."""
    found = parse(expr)
    assert found.selectors
    available = set(found.made)
    for name, labels in found.selectors:
        assert labels <= labels_of(name), (name, labels)
        available |= labels_of(name)
    assert found.grouped <= available, found.grouped - available
