"""The Helm chart: every value has an effect, a wrong one is refused, and the documents say what there is."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import deploy
from tests.support.deploy import CHART, RENEW, Case, RefusedError
from tests.support.server import ROOT

CASES = {case.name: case for case in deploy.cases()}
VALUES = list(deploy.values())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())

CORE = """\
.:53 {
    health {
        lameduck 5s
    }
    ready
    prometheus :9153
    kubernetes cluster.local
}
"""
NODE = {"node": {"enabled": True}}
COPIES = {"node": {"enabled": True, "copies": {"enabled": True}}}
NO_SURGE = {"node": {"enabled": True, "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}}
PROPORTIONAL = {"autoscaling": "proportional"}
BUSY = [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]
MONITORING = ("serviceMonitor", "prometheusRule", "dashboards")
VOLUME = {"name": "more", "emptyDir": {}}
MOUNT = {"name": "more", "mountPath": "/more"}
TOLERATION = {"key": "dedicated", "operator": "Equal", "value": "dns", "effect": "NoExecute", "tolerationSeconds": 5}
SPREAD = {"topologyKey": "kubernetes.io/hostname", "maxSkew": 2, "whenUnsatisfiable": "DoNotSchedule"}

OTHER: dict[str, Any] = {
    "cluster.enabled": False,
    "fullnameOverride": "other",
    "clusterDomain": "other.example",
    "image.repository": "registry.example/other",
    "image.tag": "other",
    "image.pullPolicy": "Always",
    "image.pullSecrets": [{"name": "other"}],
    "customLabels": {"other": "label"},
    "customAnnotations": {"other": "annotation"},
    "pods": "disabled",
    "multicluster": ["other.example"],
    "ttl": 7,
    "upstreams": ["192.0.2.7"],
    "maxConcurrent": 7,
    "cache": 7,
    "lameduckSeconds": 7,
    "extraPlugins": "log",
    "extraServers": "other.example { whoami }",
    "corefile": CORE,
    "autoscaling": "proportional",
    "replicaCount": 7,
    "hpa.minReplicas": 7,
    "hpa.maxReplicas": 7,
    "hpa.metrics": BUSY,
    "hpa.behavior": {"scaleDown": {"stabilizationWindowSeconds": 7}},
    "autoscaler.coresPerReplica": 7,
    "autoscaler.nodesPerReplica": 7,
    "autoscaler.min": 7,
    "autoscaler.max": 7,
    "autoscaler.preventSinglePointFailure": False,
    "autoscaler.includeUnschedulableNodes": True,
    "autoscaler.image.repository": "registry.example/other",
    "autoscaler.image.tag": "other",
    "autoscaler.image.pullPolicy": "Always",
    "autoscaler.customFlags": ["--other"],
    "autoscaler.resources": {"requests": {"cpu": "7m"}},
    "autoscaler.nodeSelector": {"other": "node"},
    "autoscaler.tolerations": [TOLERATION],
    "autoscaler.priorityClassName": "other",
    "service.create": False,
    "service.name": "other",
    "service.clusterIP": "10.7.0.10",
    "service.clusterIPs": ["10.96.0.10", "fd00::a"],
    "service.ipFamilyPolicy": "PreferDualStack",
    "service.trafficDistribution": "PreferClose",
    "service.annotations": {"other": "annotation"},
    "podDisruptionBudget.maxUnavailable": "50%",
    "podDisruptionBudget.unhealthyPodEvictionPolicy": "IfHealthyBudget",
    "serviceAccount.create": False,
    "serviceAccount.name": "other",
    "serviceAccount.annotations": {"other": "annotation"},
    "rbac.create": False,
    "resources": {"limits": {"memory": "7Gi"}},
    "extraArgs": ["--workers=7"],
    "env": [{"name": "OTHER", "value": "7"}],
    "state.sizeLimit": "7Gi",
    "state.medium": "Memory",
    "extraVolumes": [VOLUME],
    "extraVolumeMounts": [MOUNT],
    "rollingUpdate.maxSurge": 7,
    "rollingUpdate.maxUnavailable": "7%",
    "terminationGracePeriodSeconds": 77,
    "startupProbe": {"periodSeconds": 7},
    "livenessProbe": {"initialDelaySeconds": 7},
    "readinessProbe": {"successThreshold": 7},
    "priorityClassName": "other",
    "nodeSelector": {"other": "node"},
    "tolerations": [TOLERATION],
    "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "topologySpreadConstraints": [SPREAD],
    "podLabels": {"other": "label"},
    "podAnnotations": {"other": "annotation"},
    "podSecurityContext": {"runAsUser": 7},
    "securityContext": {"privileged": True},
    "node.enabled": True,
    "node.fullnameOverride": "other",
    "node.localAddresses": ["169.254.7.7", "fd00::7"],
    "node.takeClusterIP": False,
    "node.upstreams": ["192.0.2.7"],
    "node.extraServers": "other.example { whoami }",
    "node.corefile": "other.example { whoami }",
    "node.autopath": True,
    "node.copies.enabled": True,
    "node.copies.secret": "other",
    "node.copies.sizeLimit": "7Gi",
    "node.extraArgs": ["-workers=7"],
    "node.env": [{"name": "OTHER", "value": "7"}],
    "node.resources": {"limits": {"memory": "7Gi"}},
    "node.extraVolumes": [VOLUME],
    "node.extraVolumeMounts": [MOUNT],
    "node.serviceAccount.create": False,
    "node.serviceAccount.name": "other",
    "node.serviceAccount.annotations": {"other": "annotation"},
    "node.service.annotations": {"other": "annotation"},
    "node.rollingUpdate.maxSurge": 7,
    "node.rollingUpdate.maxUnavailable": "7%",
    "node.minReadySeconds": 7,
    "node.terminationGracePeriodSeconds": 77,
    "node.livenessProbe": {"failureThreshold": 7},
    "node.readinessProbe": {"failureThreshold": 7},
    "node.priorityClassName": "other",
    "node.nodeSelector": {"other": "node"},
    "node.tolerations": [TOLERATION],
    "node.affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "node.podLabels": {"other": "label"},
    "node.podAnnotations": {"other": "annotation"},
    "monitoring.serviceMonitor.enabled": True,
    "monitoring.serviceMonitor.labels": {"other": "label"},
    "monitoring.serviceMonitor.interval": "7s",
    "monitoring.serviceMonitor.scrapeTimeout": "7s",
    "monitoring.prometheusRule.enabled": True,
    "monitoring.prometheusRule.labels": {"other": "label"},
    "monitoring.dashboards.enabled": True,
    "monitoring.dashboards.labels": {"other": "label"},
    "monitoring.dashboards.annotations": {"other": "annotation"},
}
"""Each value of values.yaml, and another that it can have."""

BESIDE: dict[str, dict[str, Any]] = {
    "cluster.enabled": NODE,
    "replicaCount": {"autoscaling": "none"},
    "autoscaler": PROPORTIONAL,
    "node": NODE,
    "node.enabled": {},
    "node.copies": COPIES,
    "node.copies.enabled": NODE,
    "node.rollingUpdate.maxUnavailable": {
        "node": {"enabled": True, "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    },
    **{f"monitoring.{name}": {"monitoring": {name: {"enabled": True}}} for name in MONITORING},
    **{f"monitoring.{name}.enabled": {} for name in MONITORING},
}
"""What has to be set beside a value, or all below a name, for it to be of use."""


def nested(name: str, value: Any) -> dict[str, Any]:
    """A value with its dotted name as values have it."""
    for step in reversed(name.split(".")):
        value = {step: value}
    assert isinstance(value, dict)
    return value


def merged(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    """Values of which the right ones count more."""
    found = dict(left)
    for name, value in right.items():
        both = isinstance(found.get(name), dict) and isinstance(value, dict)
        found[name] = merged(found[name], value) if both else value
    return found


def beside(name: str) -> dict[str, Any]:
    """The longest name in BESIDE that leads to a value says what is set beside it."""
    steps = name.split(".")
    names = [".".join(steps[:count]) for count in range(len(steps), 0, -1)]
    return next((BESIDE[each] for each in names if each in BESIDE), {})


# Values


def leaves(tree: dict[str, Any], path: str = "") -> Iterator[str]:
    """The dotted names of all that is no map, or an empty one."""
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def test_every_value_is_explained_where_it_stands() -> None:
    names = [value.name for value in VALUES]
    assert len(set(names)) == len(names)
    for leaf in leaves(deploy.defaults()):
        assert any(leaf == name or leaf.startswith(f"{name}.") for name in names), leaf
    for value in VALUES:
        assert re.fullmatch(r"[A-Z].*[.)]", value.text), f"{value.name}: {value.text}"


def test_the_table_in_the_charts_readme_is_that_of_the_values() -> None:
    text = (CHART / "README.md").read_text()
    assert deploy.table() in text, f"write it again with: {RENEW}"
    assert deploy.with_table(text) == text


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value.name)
def test_every_value_has_an_effect(value: deploy.Value) -> None:
    own = OTHER[value.name]
    assert own != value.default
    context = beside(value.name)
    before, after = _chart(json.dumps(context)), deploy.chart(merged(context, nested(value.name, own)))
    assert before != after


_known: dict[str, deploy.Objects] = {}


def _chart(values: str) -> deploy.Objects:
    if values not in _known:
        _known[values] = deploy.chart(json.loads(values))
    return _known[values]


def test_every_value_is_tried() -> None:
    assert list(OTHER) == [value.name for value in VALUES]


def properties(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """The dotted names of what a schema knows; below what values.yaml explains as one, nothing."""
    for name, part in schema["properties"].items():
        found = SCHEMA["definitions"][part["$ref"].split("/")[-1]] if "$ref" in part else part
        if f"{path}{name}" not in OTHER and "properties" in found:
            yield from properties(found, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def test_the_schema_knows_the_values_and_no_others() -> None:
    added = {"global", "podDisruptionBudget.minAvailable"}  # Helm's own; in the place of maxUnavailable
    assert set(properties(SCHEMA)) == set(OTHER) | added


def _objects(part: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(part, dict):
        if "properties" in part:
            yield path, part
        for name, below in part.items():
            yield from _objects(below, f"{path}/{name}")


def test_the_schema_takes_no_name_that_it_does_not_know() -> None:
    found = dict(_objects(SCHEMA, ""))
    assert len(found) > 20
    assert [path for path, part in found.items() if part.get("additionalProperties") is not False] == []


# What is wrong


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"replicas": 3}, "Additional property replicas is not allowed"),
        ({"hpa": {"enabled": True}}, "hpa: Additional property enabled is not allowed"),
        ({"node": {"port": 53}}, "node: Additional property port is not allowed"),
        ({"pods": "all"}, 'pods must be one of the following: "disabled", "insecure", "verified"'),
        ({"autoscaling": True}, 'autoscaling must be one of the following: "none", "hpa", "proportional"'),
        ({"ttl": 3601}, "ttl: Must be less than or equal to 3600"),
        ({"ttl": "30s"}, "ttl: Invalid type. Expected: integer, given: string"),
        ({"cache": 0}, "cache: Must be greater than or equal to 1"),
        ({"upstreams": []}, "upstreams: Array must have at least 1 items"),
        ({"upstreams": ["a b"]}, "upstreams.0: Does not match pattern"),
        ({"clusterDomain": "cluster.local."}, "clusterDomain: Does not match format 'hostname'"),
        ({"multicluster": ["a.example", "a.example"]}, "multicluster: array items[0,1] must be unique"),
        ({"service": {"clusterIP": "kube-dns"}}, "service.clusterIP: Does not match format 'ipv4'"),
        ({"node": {"localAddresses": ["169.254.20.300"]}}, "localAddresses.0: Does not match format 'ipv4'"),
        ({"image": {"repository": "kdns:1"}}, "image.repository: Does not match pattern"),
        ({"resources": {"limits": {"memory": "256 MB"}}}, "resources.limits.memory: Does not match pattern"),
        ({"customLabels": {"k8s-app": "mine"}}, 'customLabels: Property name of "k8s-app" does not match'),
        ({"livenessProbe": {"enabled": False}}, "livenessProbe: Additional property enabled is not allowed"),
        ({"tolerations": [{"op": "Exists"}]}, "tolerations.0: Additional property op is not allowed"),
        ({"extraArgs": ["workers"]}, "extraArgs.0: Does not match pattern '^-'"),
        (
            {"cluster": {"enabled": False}},
            "cluster.enabled and node.enabled are both false: nothing would be installed",
        ),
        ({"hpa": {"minReplicas": 11}}, "hpa.minReplicas is 11, which is more than hpa.maxReplicas, 10"),
        (
            PROPORTIONAL | {"autoscaler": {"max": 1}},
            "autoscaler.min is 2, which is more than autoscaler.max, 1",
        ),
        (
            PROPORTIONAL | {"autoscaler": {"coresPerReplica": 0, "nodesPerReplica": 0}},
            "autoscaler.coresPerReplica and autoscaler.nodesPerReplica are both 0",
        ),
        ({"rollingUpdate": {"maxSurge": "0%"}}, "rollingUpdate.maxSurge and rollingUpdate.maxUnavailable are both 0"),
        (
            {"node": {"enabled": True, "rollingUpdate": {"maxUnavailable": 1}}},
            "node.rollingUpdate: of maxSurge (1) and maxUnavailable (1) one has to be 0, and the other not",
        ),
        (
            {"lameduckSeconds": 25},
            "terminationGracePeriodSeconds is 30: with lameduckSeconds 25, at least 35 are needed",
        ),
        (
            {"podDisruptionBudget": {"minAvailable": 1}},
            "podDisruptionBudget has minAvailable and maxUnavailable: set one of them to null",
        ),
        (
            {"service": {"clusterIPs": ["fd00::a"]}},
            "service.clusterIP is 10.96.0.10 and the first of service.clusterIPs fd00::a: they have to be the same",
        ),
        (NODE | {"service": {"clusterIP": ""}}, "node.takeClusterIP needs service.clusterIP, which is empty"),
        ({"corefile": CORE, "ttl": 5}, "ttl has no effect beside corefile: leave it out, and write it into corefile"),
        (
            {"node": {"enabled": True, "corefile": "x", "upstreams": ["192.0.2.1"]}},
            "node.upstreams has no effect beside node.corefile",
        ),
        (
            {"node": {"enabled": True, "corefile": "x", "autopath": True}},
            "node.autopath has no effect beside node.corefile",
        ),
        ({"corefile": CORE} | COPIES, "node.copies.enabled has no effect beside corefile"),
        (
            {"node": {"enabled": True, "corefile": "x", "copies": {"enabled": True}}},
            "node.copies.enabled has no effect beside node.corefile",
        ),
        *(
            ({"corefile": CORE.replace(name, f"# {name}")}, f"corefile has no `{name}`")
            for name in ("health", "ready", "prometheus")
        ),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RefusedError, match=re.escape(message)):
        deploy.chart(values)


@pytest.mark.parametrize(
    "name", ["pods", "multicluster", "ttl", "upstreams", "maxConcurrent", "cache", "lameduckSeconds", "extraPlugins",
             "extraServers"],
)  # fmt: skip
def test_no_value_for_the_corefile_is_lost_beside_a_whole_one(name: str) -> None:
    deploy.chart({"corefile": CORE} | nested(name, deploy.defaults()[name]))
    with pytest.raises(RefusedError, match=f"{name} has no effect beside corefile"):
        deploy.chart({"corefile": CORE} | nested(name, OTHER[name]))


@pytest.mark.parametrize(
    ("values", "keeps"),
    [
        ({"corefile": ".:53 {\n    secondary z.test {\n        transfer from 192.0.2.1\n    }\n}\n"}, True),
        ({"extraServers": "z.test { file db }"}, True),
        (
            {"corefile": ".:53 {\n    hosts /etc/file\n    autopath /etc/resolv.conf\n    forward . 192.0.2.1\n}\n"},
            False,
        ),
    ],
)
def test_nodes_have_a_place_for_the_zones_of_a_corefile_that_somebody_wrote(
    values: dict[str, Any], keeps: bool
) -> None:
    """The image's own files cannot be written."""
    found = deploy.chart({"node": {"enabled": True} | values})
    spec = found["DaemonSet", "kube-system", "node-local-dns"]["spec"]["template"]["spec"]
    [container] = spec["containers"]
    environ = {each["name"]: each.get("value") for each in container.get("env", ())}
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert environ.get("KDNS_STATE_DIR") == ("/var/lib/kdns" if keeps else None)
    assert mounted.get("/var/lib/kdns") == ("state" if keeps else None)
    assert ("state" in [volume["name"] for volume in spec["volumes"]]) is keeps


def test_a_default_goes_away_with_null() -> None:
    found = deploy.chart({"podDisruptionBudget": None, "service": {"annotations": {"prometheus.io/scrape": None}}})
    assert "PodDisruptionBudget" not in {kind for kind, _, _ in found}
    annotations = found["Service", "kube-system", "kube-dns"]["metadata"]["annotations"]
    assert annotations == {"helm.sh/resource-policy": "keep", "prometheus.io/port": "9153"}


def test_large_numbers_stay_numbers() -> None:
    found = deploy.chart({"podSecurityContext": {"runAsUser": 1_000_680_000}, "maxConcurrent": 10_000_000})
    user = found["Deployment", "kube-system", "kdns"]["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
    assert (user, type(user)) == (1_000_680_000, int)
    assert "max_concurrent 10000000\n" in found["ConfigMap", "kube-system", "kdns"]["data"]["Corefile"]


def test_the_chart_can_be_a_part_of_another(tmp_path: Path) -> None:
    (tmp_path / "charts").mkdir()
    shutil.copytree(CHART, tmp_path / "charts" / "kdns")
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: platform\nversion: 1.0.0\n")
    values = {"global": {"region": "eu"}, "kdns": {"ttl": 5}}
    found = deploy.objects(deploy.helm("template", values=values, chart=tmp_path))
    assert found == deploy.chart({"ttl": 5})


# For Prometheus and Grafana

WATCHED = {"monitoring": {name: {"enabled": True} for name in MONITORING}}


def monitoring(values: dict[str, Any], *arguments: str) -> deploy.Objects:
    """The objects for Prometheus and Grafana."""
    found = deploy.chart(merged(WATCHED, values), *arguments)
    return {key: item for key, item in found.items() if deploy.of_monitoring(item)}


def groups(found: deploy.Objects) -> set[str]:
    """The names of the groups of rules."""
    [rule] = (item for (kind, _, _), item in found.items() if kind == "PrometheusRule")
    return {group["name"] for group in rule["spec"]["groups"]}


def test_each_role_has_its_monitors_dashboards_and_alerts() -> None:
    cluster, node = monitoring({}), monitoring(NODE | {"cluster": {"enabled": False}})
    both = monitoring(NODE)
    assert {(kind, name) for kind, _, name in both.keys() - node.keys()} == {
        ("ServiceMonitor", "kdns"), ("ConfigMap", "kdns-dashboard-cluster"),
    }  # fmt: skip
    assert {(kind, name) for kind, _, name in both.keys() - cluster.keys()} == {
        ("ServiceMonitor", "kdns-node"), ("ConfigMap", "kdns-dashboard-node"),
    }  # fmt: skip
    assert groups(both) - groups(node) == {"kdns-cluster"}
    assert groups(both) - groups(cluster) == {"kdns-node"}


def test_rules_and_dashboards_have_the_names_that_the_objects_have() -> None:
    values = {
        "fullnameOverride": "cluster-dns",
        "clusterDomain": "k8s.example",
        "service": {"name": "dns-service"},
        "serviceAccount": {"name": "dns-account"},
        "node": {"enabled": True, "fullnameOverride": "dns-agent", "localAddresses": ["169.254.25.10"]},
    }
    found = monitoring(values, "--namespace=dns-space")
    assert {namespace for _, namespace, _ in found} == {"dns-space"}
    assert {name for kind, _, name in found if kind == "ServiceMonitor"} == {"cluster-dns", "cluster-dns-node"}
    text = "\n".join(texts(list(found.values())))
    jobs = {job for words in re.findall(r'\bjob=~?"([^"$]+)"', text) for job in words.split("|")}
    assert jobs == {"dns-service", "dns-agent"}
    assert set(re.findall(r'-n ([a-z-]+)|namespace="([a-z-]+)', text)) == {("dns-space", ""), ("", "dns-space")}
    assert set(re.findall(r"deployment(?:/|=\")([a-z-]+)", text)) == {"cluster-dns", "coredns"}
    assert set(re.findall(r"daemonset(?:/|=\"| )([a-z]+-[a-z-]+)", text)) == {"dns-agent"}
    assert set(re.findall(r"serviceaccount:([a-z:-]+)", text)) == {"dns-space:dns-account"}
    assert not re.search(r"svc\.cluster\.local|169\.254\.20\.10", text)


def texts(part: Any) -> Iterator[str]:
    """All texts in what JSON can say."""
    if isinstance(part, dict):
        yield from texts([*part, *part.values()])
    elif isinstance(part, list):
        for each in part:
            yield from texts(each)
    elif isinstance(part, str):
        yield from texts(json.loads(part)) if part.startswith("{\n") else [part]


# What Helm says


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_helm_has_nothing_to_say(case: Case) -> None:
    said = deploy.helm("lint", "--strict", values=case.values)
    problems = [line for line in said.splitlines() if line.startswith(("[WARNING]", "[ERROR]"))]
    assert problems == []
    assert "1 chart(s) linted, 0 chart(s) failed" in said


def notes(values: dict[str, Any], folder: Path) -> str:
    """What is printed after an installation."""
    shutil.copytree(CHART, folder / "chart")
    text = 'notes: |\n  {{- include (print $.Template.BasePath "/NOTES.txt") . | nindent 2 }}\n'
    (folder / "chart" / "templates" / "notes.yaml").write_text(text)
    made = deploy.helm("template", "--show-only", "templates/notes.yaml", values=values, chart=folder / "chart")
    found = yaml.safe_load(made)["notes"]
    assert isinstance(found, str)
    return found


@pytest.mark.parametrize(
    ("values", "said", "unsaid"),
    [
        (
            {},
            ["status deployment/kdns", "svc.cluster.local 10.96.0.10", "kube-dns stays", "keeps 2 pods"],
            ["daemonset"],
        ),
        ({"service": {"create": False}, "autoscaling": "none"}, ["left as it is"], ["stays", "metrics server"]),
        (
            NODE | {"clusterDomain": "k8s.example"},
            [
                "svc.k8s.example 10.96.0.10",
                "rollout status daemonset/node-local-dns",
                "queries to 10.96.0.10 are answered",
            ],
            ["kubelet"],
        ),
        (
            {"cluster": {"enabled": False}, "node": {"enabled": True, "takeClusterIP": False}},
            ["clusterDNS is 169.254.20.10"],
            ["deployment", "CoreDNS"],
        ),
    ],
    ids=["cluster", "own service", "both", "node"],
)
def test_notes_tell_what_to_do_next(values: dict[str, Any], said: list[str], unsaid: list[str], tmp_path: Path) -> None:
    text = notes(values, tmp_path)
    assert [word for word in said if word not in text] == []
    assert [word for word in unsaid if word in text] == []
    assert "\n\n\n" not in text


def test_links_in_the_charts_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (CHART / "README.md").read_text()):
        assert "://" in target or (CHART / target).exists(), target


def test_the_readmes_commands_are_taken() -> None:
    """Those of Helm in the chart's README and in the project's, with what they set."""
    texts = [(CHART / "README.md").read_text(), (ROOT / "README.md").read_text()]
    lines = [line for text in texts for line in text.splitlines() if line.startswith(("helm install", "helm upgrade"))]
    assert len(lines) >= 4
    for line in lines:
        words = line.split()
        assert words[2:4] == ["kdns", "deploy/helm/kdns"]
        sets = [words[index + 1] for index, word in enumerate(words) if word == "--set"]
        assert deploy.chart(None, *(f"--set={each}" for each in sets))
    for names in re.findall(r"\| (`[^|]*=[^|]*`) \|$", texts[1], re.MULTILINE):
        assert deploy.chart(None, *(f"--set={each}" for each in re.findall(r"`([\w.]+=[^`]*)`", names)))
