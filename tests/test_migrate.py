"""`kdns migrate`: manifests of kdns from those of CoreDNS and NodeLocal DNSCache."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from kdns.errors import KdnsError
from kdns.tools import coredns
from kdns.tools.carry import MANIFESTS, Plan
from kdns.tools.corefiles import Finding, Verdict
from kdns.tools.migrate import plans
from kdns.tools.takeover import Options
from tests.support import deploy, readme
from tests.support.server import ROOT

FIXTURES = ROOT / "tests" / "fixtures" / "coredns"
NODE_LOCAL = ROOT / "tests" / "fixtures" / "nodelocaldns.yaml"
PILLARS = {
    "localip": {"__PILLAR__LOCAL__DNS__": "169.254.20.10", "__PILLAR__DNS__SERVER__": "10.96.0.10"},
}
VERSION = "1.33"
DEPLOYMENT = ("Deployment", "kube-system", "kdns")
CONFIGMAP = ("ConfigMap", "kube-system", "kdns")


def kdns(*arguments: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """The command, run to its end in the top folder."""
    command = [sys.executable, "-m", "kdns", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=60)


def given(name: str) -> list[coredns.KubeObject]:
    """The objects of a fixture."""
    found = coredns.read((FIXTURES / f"{name}.yaml").read_text(), f"{name}.yaml")
    assert found is not None
    return found


def plan_of(objects: list[coredns.KubeObject], **options: Any) -> Plan:
    """What becomes of the one server that there is."""
    (found,) = plans(objects, [], Options(**options))
    return found


def written(found: Plan, folder: Path) -> deploy.Objects:
    """What kustomize makes of a plan's files, all of them objects that Kubernetes takes."""
    for name, text in found.files.items():
        (folder / name).write_text(text)
    objects = deploy.kustomization(folder)
    for name in {"daemonset.yaml", "service.yaml"} & set(found.files):  # there already
        by_itself = deploy.objects(found.files[name])
        assert not set(by_itself) & set(objects)
        if name == "daemonset.yaml":
            objects |= by_itself
    for item in objects.values():
        kubernetes_validate.validate(item, VERSION, strict=True)
    return objects


def about(found: Plan, what: str) -> Finding:
    """The finding about a thing."""
    (mine,) = [each for each in found.findings if each.what.startswith(what)]
    return mine


def container(item: dict[str, Any]) -> dict[str, Any]:
    """The only container of a workload."""
    (mine,) = item["spec"]["template"]["spec"]["containers"]
    assert isinstance(mine, dict)
    return mine


def ours(kind: str) -> dict[str, Any]:
    """An object as our own manifests have it."""
    return next(item for (found, _, _), item in deploy.files("cluster/kdns.yaml").items() if found == kind)


# Clusters


def test_a_cluster_of_kubeadm_is_taken_over_as_it_is(tmp_path: Path) -> None:
    objects = given("kubeadm")
    corefile = objects[0].data["data"]["Corefile"]
    found = plan_of(objects)
    assert found.verdict is Verdict.DIFFERS
    assert found.files["Corefile"] == corefile
    made = written(found, tmp_path)
    assert "k8s-app" not in made[DEPLOYMENT]["metadata"]["labels"], "kubeadm takes it for its own"
    assert {key[0] for key in made} == {
        "ConfigMap", "Deployment", "PodDisruptionBudget", "ServiceAccount", "ClusterRole", "ClusterRoleBinding",
    }  # fmt: skip
    assert made[CONFIGMAP]["data"] == {"Corefile": corefile}
    base, mine, theirs = ours("Deployment"), made[DEPLOYMENT], objects[1].data
    spec, their_spec = mine["spec"]["template"]["spec"], theirs["spec"]["template"]["spec"]
    assert mine["spec"]["replicas"] == 2
    for name in ("nodeSelector", "tolerations", "affinity", "priorityClassName", "dnsPolicy"):
        assert spec[name] == their_spec[name]
    assert spec["affinity"] != base["spec"]["template"]["spec"]["affinity"]
    for name in ("securityContext", "volumes", "serviceAccountName", "topologySpreadConstraints"):
        assert spec[name] == base["spec"]["template"]["spec"][name]
    assert container(mine)["resources"] == container(base)["resources"]
    assert container(mine)["args"] == ["--conf=/etc/kdns/Corefile"]
    assert mine["spec"]["selector"] == base["spec"]["selector"]
    service = yaml.safe_load(found.files["service.yaml"])
    assert service["spec"] == objects[2].data["spec"], "it stays as it is"
    assert set(service["metadata"]) == {"name", "namespace", "labels", "annotations"}
    assert service["spec"]["selector"].items() <= mine["spec"]["template"]["metadata"]["labels"].items()


def test_kdns_check_has_nothing_against_what_is_written(tmp_path: Path) -> None:
    done = kdns("migrate", FIXTURES / "kubeadm.yaml", "--output", tmp_path)
    assert done.returncode == 3, done.stderr
    checked = kdns("check", tmp_path / "cluster" / "Corefile")
    assert (checked.returncode, checked.stderr) == (0, "")


def test_on_k3s_the_names_of_nodes_go_on_being_followed(tmp_path: Path) -> None:
    found = plan_of(given("k3s"))
    made = written(found, tmp_path)[DEPLOYMENT]
    spec = made["spec"]["template"]["spec"]
    assert made["spec"]["replicas"] == 1
    assert container(made)["args"] == ["--conf=/etc/coredns/Corefile"]
    mounts = {each["mountPath"]: each["name"] for each in container(made)["volumeMounts"]}
    volumes = {each["name"]: each for each in spec["volumes"]}
    assert volumes[mounts["/etc/coredns"]]["projected"]["sources"] == [
        {"configMap": {"name": "kdns", "items": [{"key": "Corefile", "path": "Corefile"}]}},
        {"configMap": {"name": "coredns", "items": [{"key": "NodeHosts", "path": "NodeHosts"}]}},
    ]
    assert volumes[mounts["/etc/coredns/custom"]]["configMap"] == {"name": "coredns-custom", "optional": True}
    assert about(found, "NodeHosts beside the Corefile").verdict is Verdict.CARRIED
    assert about(found, "topologySpreadConstraints").why, "DoNotSchedule counts pods of both"
    (corp,) = [each for each in found.findings if each.what == "corp.example:53 {"]
    assert corp.where == "k3s.yaml:45"
    assert (FIXTURES / "k3s.yaml").read_text().splitlines()[44].strip() == corp.what
    service = yaml.safe_load(found.files["service.yaml"])
    assert service["spec"]["clusterIPs"] == ["10.43.0.10", "fd00:43::a"]


def test_on_eks_autoscaler_budget_and_the_role_for_pods_are_carried_over(tmp_path: Path) -> None:
    found = plan_of(given("eks"))
    made = written(found, tmp_path)
    assert "replicas" not in made[DEPLOYMENT]["spec"]
    autoscaler = made["HorizontalPodAutoscaler", "kube-system", "kdns"]["spec"]
    assert autoscaler["scaleTargetRef"] == ours("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert (autoscaler["minReplicas"], autoscaler["maxReplicas"]) == (3, 12)
    assert autoscaler["metrics"][0]["resource"]["target"]["averageUtilization"] == 60
    budget = made["PodDisruptionBudget", "kube-system", "kdns"]["spec"]
    assert budget == {**ours("PodDisruptionBudget")["spec"], "maxUnavailable": 2}
    assert ("ClusterRole", "", "kdns-pods") in made, "pods verified"
    assert about(found, "pods verified").where == "eks.yaml (coredns, Corefile):8", "JSON has it in one line"


def test_on_kops_a_budget_that_selects_both_stays_the_only_one(tmp_path: Path) -> None:
    found = plan_of(given("kops"))
    made = written(found, tmp_path)
    assert not [key for key in made if key[0] == "PodDisruptionBudget"]
    assert "cannot be evicted" in about(found, '{"maxUnavailable": "50%"}').why[0]
    mine = container(made[DEPLOYMENT])
    assert mine["resources"]["requests"]["memory"] == "256Mi"
    assert mine["resources"]["limits"]["memory"] == "512Mi"
    assert {"name": "etc-hosts", "mountPath": "/rootfs/etc/hosts", "readOnly": True} in mine["volumeMounts"]
    assert "not root" in about(found, "volume etc-hosts").why[0]


def test_on_aks_what_is_not_supported_stops_the_writing(tmp_path: Path) -> None:
    found = plan_of(given("aks"))
    assert found.verdict is Verdict.UNSUPPORTED
    assert found.files == {}
    refused = [(each.where, each.what) for each in found.findings if each.verdict is Verdict.UNSUPPORTED]
    text = (FIXTURES / "aks.yaml").read_text().splitlines()
    assert [what for _, what in refused] == ["dnstap tcp://10.0.0.5:6000 full"]
    for where, what in refused:
        assert text[int(where.removeprefix("aks.yaml:")) - 1].strip() == what


def test_without_what_is_not_supported_it_is_written(tmp_path: Path) -> None:
    objects = given("aks")
    found = plan_of(objects, without_unsupported=True, image="registry.example/kdns:2")
    assert found.verdict is Verdict.UNSUPPORTED, "that it is not there any more does not change"
    made = written(found, tmp_path)
    corefile = made[CONFIGMAP]["data"]["Corefile"]
    before = objects[0].data["data"]["Corefile"].splitlines()
    assert corefile.splitlines() == before, "the rest is as it was"
    custom = made["ConfigMap", "kube-system", "kdns-coredns-custom"]["data"]
    assert custom["log.override"] == (
        "log\n# not supported by kdns: dnstap is not supported by this version of kdns\n"
        "# dnstap tcp://10.0.0.5:6000 full\n"
    )
    assert custom["corp.server"] == objects[1].data["data"]["corp.server"]
    spec = made[DEPLOYMENT]["spec"]["template"]["spec"]
    volumes = {each["name"]: each for each in spec["volumes"]}
    assert volumes["custom-config-volume"]["configMap"]["name"] == "kdns-coredns-custom"
    mine = container(made[DEPLOYMENT])
    assert mine["image"] == "registry.example/kdns:2"
    assert [each["name"] for each in mine["env"]] == ["KDNS_STATE_DIR", "REGION"], "GOMAXPROCS is for Go"
    assert mine["resources"]["limits"] == {"memory": "500Mi", "cpu": "3"}
    assert made[DEPLOYMENT]["spec"]["template"]["metadata"]["annotations"] == {"prometheus.io/port": "9153"}
    assert len([each for each in spec["volumes"] if each["name"] == "tmp"]) == 1
    left = {each.what.split(":")[0] for each in found.findings if each.verdict is Verdict.LEFT_OUT}
    assert left == {"Deployment kube-system/coredns-autoscaler", "container metrics-proxy", "lifecycle"}
    assert about(found, "affinity").why, "required anti-affinity counts pods of both"


@pytest.mark.parametrize("name", ["kubeadm", "k3s", "eks", "kops"])
def test_what_is_written_differs_from_what_was_read_where_it_has_to(name: str, tmp_path: Path) -> None:
    objects = given(name)
    theirs = {(each.kind, each.namespace, each.name) for each in objects}
    made = written(plan_of(objects), tmp_path)
    assert not theirs & set(made), "nothing of CoreDNS is overwritten, or goes with kdns"
    labels = made[DEPLOYMENT]["spec"]["template"]["metadata"]["labels"]
    selector = next(each.data["spec"]["selector"]["matchLabels"] for each in objects if each.kind == "Deployment")
    mine = made[DEPLOYMENT]["spec"]["selector"]["matchLabels"]
    assert mine.items() <= labels.items()
    assert not set(mine) & set(selector), "neither Deployment takes pods of the other"


# Single things


def changed(**paths: Any) -> list[coredns.KubeObject]:
    """kubeadm's objects with something else at paths of the Deployment, such as spec__replicas."""
    objects = given("kubeadm")
    for path, value in paths.items():
        *way, last = path.split("__")
        place: Any = objects[1].data
        for step in way:
            place = place[int(step)] if step.isdigit() else place.setdefault(step, {})
        place[last] = value
    return objects


IN_POD = "spec__template__spec"
IN_CONTAINER = f"{IN_POD}__containers__0"


def corefile(objects: list[coredns.KubeObject], text: str) -> list[coredns.KubeObject]:
    """The objects with another Corefile."""
    objects[0].data["data"]["Corefile"] = text
    return objects


def test_ports_and_probes_are_those_of_the_corefile(tmp_path: Path) -> None:
    text = ".:1053 {\n    health :9080\n    ready :9181\n    prometheus :9253\n    whoami\n}\n"
    objects = corefile(changed(**{f"{IN_CONTAINER}__args": ["-conf=/etc/coredns/Corefile", "-dns.port", "1053"]}), text)
    ports = [{"name": "dns", "containerPort": 1053, "protocol": "UDP"}, {"containerPort": 1053, "protocol": "TCP"}]
    objects[1].data["spec"]["template"]["spec"]["containers"][0]["ports"] = ports
    found = plan_of(objects)
    mine = container(written(found, tmp_path)[DEPLOYMENT])
    assert mine["args"] == ["--conf=/etc/kdns/Corefile", "--dns-port=1053"]
    assert mine["ports"] == [
        *ports,
        {"name": "metrics", "containerPort": 9253, "protocol": "TCP"},
        {"name": "liveness-probe", "containerPort": 9080, "protocol": "TCP"},
        {"name": "readiness-probe", "containerPort": 9181, "protocol": "TCP"},
    ]
    probes = {name: mine[name]["httpGet"]["port"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert probes == {"startupProbe": 9080, "livenessProbe": 9080, "readinessProbe": 9181}
    lost = [each.why[0] for each in found.findings if each.where == "Service kube-dns"]
    assert lost == [f"it leads to {port}, where no pod of kdns listens" for port in (53, 53, 9153)]


def test_without_health_and_ready_there_are_no_probes(tmp_path: Path) -> None:
    found = plan_of(corefile(changed(), ".:53 {\n    whoami\n}\n"))
    mine = container(written(found, tmp_path)[DEPLOYMENT])
    assert not {"startupProbe", "livenessProbe", "readinessProbe"} & set(mine)
    assert about(found, "health is not").verdict is about(found, "ready is not").verdict is Verdict.LEFT_OUT


@pytest.mark.parametrize(
    ("lameduck", "grace", "wanted"), [("5s", None, 30), ("60s", None, 70), ("5s", 45, 45), ("15s", 10, 30)]
)
def test_a_pod_has_the_time_to_end(lameduck: str, grace: int | None, wanted: int) -> None:
    objects = changed(**{f"{IN_POD}__terminationGracePeriodSeconds": grace})
    text = f".:53 {{\n    health {{\n        lameduck {lameduck}\n    }}\n    whoami\n}}\n"
    found = plan_of(corefile(objects, text))
    spec = yaml.safe_load(found.files["deployment.yaml"])["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] == wanted
    advice = [
        each for each in found.findings if each.where == "Deployment kube-system/coredns" and "lameduck" in each.what
    ]
    assert bool(advice) == (lameduck == "5s"), "less than our manifests have"


def test_a_custom_image_is_told_of() -> None:
    found = plan_of(changed(**{f"{IN_CONTAINER}__image": "registry.example/dns-with-more:1@sha256:abc"}))
    assert about(found, "image:").verdict is Verdict.LEFT_OUT
    mirrored = plan_of(changed(**{f"{IN_CONTAINER}__image": "rancher/mirrored-coredns-coredns:1.12"}))
    assert about(mirrored, "image:").verdict is Verdict.REPLACED


@pytest.mark.parametrize(
    ("path", "value", "verdict"),
    [
        (f"{IN_POD}__runtimeClassName", "gvisor", Verdict.CARRIED),
        (f"{IN_POD}__hostAliases", [{"ip": "10.0.0.1", "hostnames": ["a.example"]}], Verdict.CARRIED),
        (f"{IN_POD}__imagePullSecrets", [{"name": "pull"}], Verdict.CARRIED),
        (f"{IN_POD}__initContainers", [{"name": "wait", "image": "a"}], Verdict.LEFT_OUT),
        (f"{IN_POD}__shareProcessNamespace", True, Verdict.LEFT_OUT),
        (f"{IN_CONTAINER}__lifecycle", {"preStop": {"sleep": {"seconds": 5}}}, Verdict.LEFT_OUT),
        (f"{IN_CONTAINER}__envFrom", [{"configMapRef": {"name": "more"}}], Verdict.CARRIED),
        (f"{IN_CONTAINER}__workingDir", "/work", Verdict.CARRIED),
    ],
)
def test_each_thing_of_a_pod_is_told(path: str, value: Any, verdict: Verdict, tmp_path: Path) -> None:
    found = plan_of(changed(**{path: value, f"{IN_CONTAINER}__args": ["-conf", "/etc/coredns/Corefile"]}))
    name = path.rsplit("__", 1)[1]
    assert about(found, name).verdict is verdict
    spec = written(found, tmp_path)[DEPLOYMENT]["spec"]["template"]["spec"]
    place = spec["containers"][0] if path.startswith(IN_CONTAINER) else spec
    assert place.get(name) == (value if verdict is Verdict.CARRIED else None)


@pytest.mark.parametrize(
    ("given_resources", "requests", "limits"),
    [
        ({"requests": {"memory": "400Mi"}}, {"cpu": "100m", "memory": "400Mi"}, {"memory": "400Mi"}),
        ({"limits": {"cpu": "50m"}}, {"cpu": "50m", "memory": "128Mi"}, {"memory": "256Mi", "cpu": "50m"}),
        ({"limits": {"memory": "1e9"}}, {"cpu": "100m", "memory": "128Mi"}, {"memory": 10**9}),
        ({"limits": {"memory": "170Mi"}}, {"cpu": "100m", "memory": "128Mi"}, {"memory": "256Mi"}),
    ],
)
def test_no_request_is_above_its_limit(
    given_resources: dict[str, Any], requests: dict[str, Any], limits: dict[str, Any], tmp_path: Path
) -> None:
    found = plan_of(changed(**{f"{IN_CONTAINER}__resources": given_resources}))
    mine = container(written(found, tmp_path)[DEPLOYMENT])["resources"]
    assert mine == {"requests": requests, "limits": limits}, "Kubernetes would refuse it"


def test_what_belongs_to_the_other_container_or_to_the_node_is_left_out(tmp_path: Path) -> None:
    profile = "container.apparmor.security.beta.kubernetes.io/coredns"
    annotations = {profile: "runtime/default", "prometheus.io/port": "9153"}
    ports = [{"name": "dns", "containerPort": 53, "protocol": "UDP", "hostPort": 53}]
    objects = changed(**{"spec__template__metadata__annotations": annotations, f"{IN_CONTAINER}__ports": ports})
    objects.append(coredns.KubeObject(json.loads(json.dumps(SCALER)), "hpa.yaml"))
    found = plan_of(objects)
    made = written(found, tmp_path)
    assert made[DEPLOYMENT]["spec"]["template"]["metadata"]["annotations"] == {"prometheus.io/port": "9153"}
    assert about(found, f"annotation {profile}").verdict is Verdict.LEFT_OUT, "no container has that name"
    assert about(found, "hostPort: 53").verdict is Verdict.LEFT_OUT
    (metric,) = made["HorizontalPodAutoscaler", "kube-system", "kdns"]["spec"]["metrics"]
    assert metric["containerResource"]["container"] == container(made[DEPLOYMENT])["name"]


SCALER = {
    "apiVersion": "autoscaling/v2",
    "kind": "HorizontalPodAutoscaler",
    "metadata": {"name": "coredns", "namespace": "kube-system"},
    "spec": {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "coredns"},
        "minReplicas": 2,
        "maxReplicas": 9,
        "metrics": [
            {
                "type": "ContainerResource",
                "containerResource": {
                    "name": "cpu",
                    "container": "coredns",
                    "target": {"type": "Utilization", "averageUtilization": 60},
                },
            }
        ],
    },
}


def test_objects_of_other_namespaces_are_none_of_its_own() -> None:
    objects = given("kubeadm")
    others = [
        coredns.KubeObject(json.loads(json.dumps(each.data)), "other.yaml")
        for each in objects
        if each.kind != "Deployment"
    ]
    others.append(coredns.KubeObject(json.loads(json.dumps(SCALER)), "hpa.yaml"))
    for each in others:
        each.data["metadata"]["namespace"] = "other"
    others[0].data["data"]["Corefile"] = ".:53 {\n    whoami\n}\n"
    alone = plan_of(objects)
    assert plan_of([*objects, *others]) == alone
    assert plan_of([*others, *objects]) == alone


def test_an_object_without_namespace_is_beside_any_other() -> None:
    objects = given("kubeadm")
    objects[1].data["metadata"]["namespace"] = "dns"
    for each in (objects[0], objects[2]):
        del each.data["metadata"]["namespace"]
    assert about(plan_of(objects), "ClusterIP").verdict is Verdict.CARRIED


PROJECTED = {
    "name": "config-volume",
    "projected": {"sources": [{"configMap": {"name": "coredns"}}, {"configMap": {"name": "more"}}]},
}
WHOLE = {"name": "config-volume", "configMap": {"name": "coredns"}}


@pytest.mark.parametrize(("volume", "owner"), [(PROJECTED, "more"), (WHOLE, "coredns")])
def test_what_is_beside_the_corefile_is_without_the_unsupported_too(
    volume: dict[str, Any], owner: str, tmp_path: Path
) -> None:
    objects = corefile(changed(**{f"{IN_POD}__volumes": [volume]}), ".:53 {\n    import *.override\n    whoami\n}\n")
    more = {"kind": "ConfigMap", "metadata": {"name": "more", "namespace": "kube-system"}, "data": {}}
    objects.append(coredns.KubeObject(more, "more.yaml"))
    next(each for each in objects if each.name == owner).data["data"]["a.override"] = "errors\ngeoip /geo.mmdb\n"
    made = written(plan_of(objects, without_unsupported=True), tmp_path)
    volumes = made[DEPLOYMENT]["spec"]["template"]["spec"]["volumes"]
    sources = next(each["projected"]["sources"] for each in volumes if each["name"] == "config")
    found = [made["ConfigMap", "kube-system", each["configMap"]["name"]]["data"] for each in sources]
    assert found[0] == {"Corefile": objects[0].data["data"]["Corefile"]}
    assert found[-1]["a.override"].startswith("errors\n# not supported by kdns: geoip")


def test_flags_that_kdns_has_not_are_told() -> None:
    found = plan_of(changed(**{f"{IN_CONTAINER}__args": ["-conf", "/etc/coredns/Corefile", "-plugins", "-quiet"]}))
    assert about(found, "-plugins").verdict is Verdict.LEFT_OUT


def test_no_replicas_become_two() -> None:
    found = plan_of(changed(spec__replicas=0))
    assert yaml.safe_load(found.files["deployment.yaml"])["spec"]["replicas"] == 2


def test_labels_that_a_service_selects_are_carried_over(tmp_path: Path) -> None:
    objects = changed(spec__template__metadata__labels={"k8s-app": "kube-dns", "app": "dns", "other": "x"})
    objects[2].data["spec"]["selector"] = {"app": "dns"}
    made = written(plan_of(objects), tmp_path)[DEPLOYMENT]
    labels = made["spec"]["template"]["metadata"]["labels"]
    assert labels["app"] == "dns"
    assert "other" not in labels


def test_another_namespace_is_carried_over(tmp_path: Path) -> None:
    objects = changed()
    for each in objects:
        each.data["metadata"]["namespace"] = "dns"
    made = written(plan_of(objects), tmp_path)
    assert {namespace for _, namespace, _ in made} == {"dns", ""}
    assert made["ClusterRoleBinding", "", "kdns"]["subjects"][0]["namespace"] == "dns"


def test_a_pod_in_the_network_of_its_node_is_refused() -> None:
    assert about(plan_of(changed(**{f"{IN_POD}__hostNetwork": True})), "hostNetwork").verdict is Verdict.UNSUPPORTED
    found = plan_of(changed(**{f"{IN_POD}__hostNetwork": True}), without_unsupported=True)
    assert "hostNetwork" not in found.files["deployment.yaml"]


def test_a_daemonset_of_coredns_has_a_report_and_no_manifests() -> None:
    for without in (False, True):
        found = plan_of(changed(kind="DaemonSet"), without_unsupported=without)
        assert about(found, "a DaemonSet").verdict is Verdict.UNSUPPORTED
        assert found.files == {}
        assert found.findings[3].what == "lameduck 5s"
        assert found.findings[3].verdict is Verdict.UNCHANGED


def test_a_volume_with_a_name_of_ours_gets_another(tmp_path: Path) -> None:
    objects = changed()
    spec = objects[1].data["spec"]["template"]["spec"]
    spec["volumes"].append({"name": "config", "secret": {"secretName": "tls"}})
    spec["containers"][0]["volumeMounts"].append({"name": "config", "mountPath": "/etc/tls", "readOnly": True})
    made = written(plan_of(objects), tmp_path)[DEPLOYMENT]["spec"]["template"]["spec"]
    assert {"name": "coredns-config", "secret": {"secretName": "tls"}} in made["volumes"]
    assert {"name": "coredns-config", "mountPath": "/etc/tls", "readOnly": True} in made["containers"][0][
        "volumeMounts"
    ]


def test_a_configmap_that_is_mounted_and_was_not_given_is_told() -> None:
    objects = [each for each in given("k3s") if each.name != "coredns-custom"]
    assert about(plan_of(objects), "ConfigMap coredns-custom").verdict is Verdict.LEFT_OUT


def test_a_corefile_that_is_not_there_is_one_error() -> None:
    objects = [each for each in given("kubeadm") if each.kind != "ConfigMap"]
    with pytest.raises(KdnsError, match=r"reads /etc/coredns/Corefile, which is in no ConfigMap .* \(coredns\)"):
        plan_of(objects)


def test_without_a_deployment_the_manifests_are_ours(tmp_path: Path) -> None:
    objects = [each for each in given("kubeadm") if each.kind == "ConfigMap"]
    found = plan_of(objects)
    assert about(found, "the Deployment").verdict is Verdict.REPLACED
    made = written(found, tmp_path)
    base = ours("Deployment")
    container(base)["args"] = container(made[DEPLOYMENT])["args"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        container(base)[probe]["httpGet"]["port"] = container(made[DEPLOYMENT])[probe]["httpGet"]["port"]
    assert made[DEPLOYMENT] == base
    assert ("HorizontalPodAutoscaler", "kube-system", "kdns") in made


# Nodes


def node_local() -> str:
    """NodeLocal DNSCache as an installer leaves it: addresses filled in, the rest of the variables not."""
    text = NODE_LOCAL.read_text()
    manifest, separator, daemonset = text.partition("---\napiVersion: apps/v1")
    for name, value in PILLARS["localip"].items():
        daemonset = daemonset.replace(name, value)
    item = yaml.safe_load(f"apiVersion: apps/v1{daemonset}")
    labels = {"k8s-app": "node-local-dns", "app": "node-cache"}
    item["spec"]["selector"] = {"matchLabels": labels}
    item["spec"]["template"]["metadata"] = {"labels": labels}
    item["spec"]["template"]["spec"] |= {
        "serviceAccountName": "node-local-dns",
        "priorityClassName": "system-node-critical",
        "tolerations": [{"operator": "Exists"}],
        "nodeSelector": {"pool": "a"},
    }
    mine = container(item)
    mine["image"] = "registry.k8s.io/dns/k8s-dns-node-cache:1.26.4"
    mine["resources"] = {"requests": {"cpu": "25m", "memory": "5Mi"}, "limits": {"memory": "200Mi"}}
    mine["ports"] = [{"containerPort": 53, "name": "dns", "protocol": "UDP"}]
    mine["args"] += ["-skipteardown=true", "-v=2"]
    return manifest + separator.rstrip() + "\n" + yaml.safe_dump(item).replace("apiVersion: apps/v1\n", "", 1)


def test_a_node_cache_is_replaced_in_its_place(tmp_path: Path) -> None:
    objects = coredns.read(node_local(), "node.yaml")
    assert objects is not None
    found = plan_of(objects)
    assert (found.part, found.verdict) == ("node", Verdict.DIFFERS)
    made = written(found, tmp_path)
    theirs = objects[1].data
    item = made["DaemonSet", "kube-system", "node-local-dns"]
    assert item["spec"]["selector"] == theirs["spec"]["selector"], "which nothing can change"
    spec, mine = item["spec"]["template"]["spec"], container(item)
    assert mine["command"] == ["kdns", "node"]
    assert mine["args"] == [
        "-localip=169.254.20.10,10.96.0.10", "-upstreamsvc=kube-dns-upstream", "-skipteardown=true",
        "-conf=/run/kdns/Corefile", "-pidfile=/run/kdns/pid",
    ]  # fmt: skip
    assert spec["nodeSelector"] == {"pool": "a"}
    assert mine["resources"] == {"requests": {"cpu": "25m", "memory": "64Mi"}, "limits": {"memory": "200Mi"}}
    assert "ports" not in mine
    assert mine["livenessProbe"]["httpGet"]["host"] == "169.254.20.10"
    assert made["ConfigMap", "kube-system", "kdns-node"]["data"] == objects[0].data["data"]
    volumes = {each["name"]: each for each in spec["volumes"]}
    mounts = {each["mountPath"]: volumes[each["name"]] for each in mine["volumeMounts"]}
    assert mounts["/etc/coredns"]["configMap"] == {
        "name": "kdns-node", "items": [{"key": "Corefile", "path": "Corefile.base"}],
    }  # fmt: skip
    assert mounts["/etc/kube-dns"]["configMap"] == {"name": "kube-dns", "optional": True}
    assert about(found, "-v=2").verdict is Verdict.LEFT_OUT


@pytest.mark.parametrize("unsupported", [False, True])
def test_files_beside_the_base_file_of_a_node_stay_there(unsupported: bool, tmp_path: Path) -> None:
    objects = coredns.read(node_local(), "node.yaml")
    assert objects is not None
    data = objects[0].data["data"]
    data["Corefile"] += "import /etc/coredns/*.server\n"
    data["corp.server"] = (
        "corp:53 {\n    errors\n" + "    geoip /geo.mmdb\n" * unsupported + "    forward . 10.1.1.1\n}\n"
    )
    volumes = objects[1].data["spec"]["template"]["spec"]["volumes"]
    mine = next(each["configMap"] for each in volumes if each["name"] == "config-volume")
    mine["items"] = [{"key": "Corefile", "path": "Corefile.base"}, {"key": "corp.server", "path": "corp.server"}]
    made = written(plan_of(objects, without_unsupported=True), tmp_path)
    item = made["DaemonSet", "kube-system", "node-local-dns"]
    volume = next(each for each in item["spec"]["template"]["spec"]["volumes"] if each["name"] == "corefile")
    owner = "kdns-node-node-local-dns" if unsupported else "node-local-dns"
    assert volume["projected"]["sources"] == [
        {"configMap": {"name": "kdns-node", "items": [{"key": "Corefile", "path": "Corefile.base"}]}},
        {"configMap": {"name": owner, "items": [{"key": "corp.server", "path": "corp.server"}]}},
    ]
    assert ("ConfigMap", "kube-system", owner) in made or not unsupported
    if unsupported:
        assert "# geoip /geo.mmdb" in made["ConfigMap", "kube-system", owner]["data"]["corp.server"]


def test_a_manifest_of_the_add_on_that_nobody_filled_in_is_refused() -> None:
    objects = coredns.read(NODE_LOCAL.read_text(), "node.yaml")
    assert objects is not None
    found = plan_of(objects)
    assert about(found, "-localip=__PILLAR__").verdict is Verdict.UNSUPPORTED
    assert found.files == {}


def test_cluster_and_nodes_in_one_go(tmp_path: Path) -> None:
    (tmp_path / "node.yaml").write_text(node_local())
    done = kdns("migrate", FIXTURES / "kubeadm.yaml", tmp_path / "node.yaml", "-o", tmp_path)
    assert done.returncode == 3, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["cluster", "node"]
    checked = kdns("check", "--node", tmp_path / "node" / "Corefile")
    assert (checked.returncode, checked.stderr) == (0, "")


def test_a_base_file_by_itself_is_that_of_a_node(tmp_path: Path) -> None:
    (tmp_path / "base").write_text("__PILLAR__DNS__DOMAIN__:53 {\n    bind __PILLAR__LOCAL__DNS__\n    whoami\n}\n")
    done = kdns("migrate", tmp_path / "base", "--json")
    (found,) = json.loads(done.stdout)
    assert (found["part"], done.returncode) == ("node", 3)


# The command


def test_the_report_is_a_line_for_each_thing_with_its_reasons_below() -> None:
    done = kdns("migrate", FIXTURES / "aks.yaml")
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert lines[0] == "cluster: ConfigMap kube-system/coredns"
    at = lines.index(f"{FIXTURES}/aks.yaml:46: not supported: dnstap tcp://10.0.0.5:6000 full")
    assert lines[at + 1] == "    dnstap is not supported by this version of kdns; instead: log"
    assert f"{FIXTURES}/aks.yaml:10: unchanged: errors" in lines
    assert re.fullmatch(r"\d+ unchanged, \d+ differs, 1 not supported, .*", lines[-1])


def test_nothing_is_written_as_long_as_something_is_not_supported(tmp_path: Path) -> None:
    done = kdns("migrate", FIXTURES / "aks.yaml", "-o", tmp_path / "out")
    assert done.returncode == 1
    assert "--without-unsupported, which comments it out" in done.stderr
    assert not (tmp_path / "out").exists()
    done = kdns("migrate", FIXTURES / "aks.yaml", "-o", tmp_path / "out", "--without-unsupported")
    assert done.returncode == 3, done.stderr
    assert kdns("check", tmp_path / "out" / "cluster" / "Corefile").returncode == 0


def test_files_that_are_there_stay_unless_they_may_go(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "Corefile").write_text("mine")
    done = kdns("migrate", FIXTURES / "kubeadm.yaml", "-o", tmp_path)
    assert done.returncode == 1
    assert f"nothing is written: {tmp_path}/cluster/Corefile exists" in done.stderr
    assert [path.name for path in (tmp_path / "cluster").iterdir()] == ["Corefile"]
    assert (tmp_path / "cluster" / "Corefile").read_text() == "mine"
    assert kdns("migrate", FIXTURES / "kubeadm.yaml", "-o", tmp_path, "--force").returncode == 3
    assert (tmp_path / "cluster" / "Corefile").read_text().startswith(".:53 {")


def test_what_cannot_be_written_whole_is_not_written(tmp_path: Path) -> None:
    assert kdns("migrate", FIXTURES / "kubeadm.yaml", "-o", tmp_path, "--image", "kdns:0").returncode == 3
    before = {path: path.read_bytes() for path in (tmp_path / "cluster").iterdir()}
    command = [sys.executable, "-m", "kdns", "migrate", str(FIXTURES / "kubeadm.yaml"), "-o", str(tmp_path), "--force"]
    done = subprocess.run(
        ["sh", "-c", 'ulimit -f 4; exec "$@"', "sh", *command], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, "cannot be written: File too large" in done.stderr) == (1, True), done.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "cluster").iterdir()} == before


def test_two_corefiles_are_not_written_over_each_other(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(".:53 {\n    whoami\n}\n")
    done = kdns("migrate", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "out")
    assert done.returncode == 1
    assert f"there are several for {tmp_path}/out/cluster: {tmp_path}/a, {tmp_path}/b" in done.stderr
    assert not (tmp_path / "out").exists()


def test_empty_documents_and_values_are_nothing() -> None:
    text = "---\n---\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: coredns\ndata:\n  Corefile:\n---\n"
    done = kdns("migrate", "-", stdin=text)
    assert "there is no server block" in done.stdout
    done = kdns("migrate", "-", stdin=text.replace("Corefile:", "Corefile: |\n    .:53 {\n        whoami\n    }\n"))
    assert "stdin:9: unchanged: .:53 {" in done.stdout


def test_objects_may_come_in_several_files_and_from_stdin(tmp_path: Path) -> None:
    objects = given("kubeadm")
    for each in objects:
        (tmp_path / f"{each.kind}.yaml").write_text(yaml.safe_dump(each.data))
    whole = json.loads(kdns("migrate", FIXTURES / "kubeadm.yaml", "--json").stdout)
    parts = kdns("migrate", *sorted(tmp_path.iterdir()), "--json")
    piped = kdns("migrate", "-", "--json", stdin=json.dumps({"kind": "List", "items": [each.data for each in objects]}))
    for done in (parts, piped):
        (found,) = json.loads(done.stdout)
        assert [(each["what"], each["verdict"]) for each in found["findings"]] == [
            (each["what"], each["verdict"]) for each in whole[0]["findings"]
        ]
    assert json.loads(piped.stdout)[0]["findings"][0]["where"] == "stdin (coredns, Corefile):1"


def test_what_works_unchanged_is_exit_code_0(tmp_path: Path) -> None:
    text = "example.org:53 {\n    any\n    local\n    health\n    ready\n}\n"
    (tmp_path / "Corefile").write_text(text)
    bare = kdns("migrate", tmp_path / "Corefile")
    assert f"{tmp_path}/Corefile:2: unchanged: any\n" in bare.stdout
    assert bare.returncode == 0, bare.stdout
    objects = [each.data for each in corefile(changed(), text)]
    assert kdns("migrate", "-", stdin=json.dumps({"kind": "List", "items": objects})).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "told"),
    [
        ([], "", 2, "give either files, or --kubeconfig"),
        (["-", "--kubeconfig", "x"], "", 2, "give either files, or --kubeconfig"),
        (["nowhere"], "", 1, "nowhere cannot be read: No such file or directory"),
        (["--kubeconfig", "nowhere"], "", 1, "kubeconfig nowhere: No such file or directory"),
        (
            ["-"],
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n",
            1,
            "there is no CoreDNS in this (Namespace)",
        ),
        (["-"], "apiVersion: v1\nkind: [\n", 1, "stdin:3: "),
        (["-"], "a: b\n---\nkind: ConfigMap\n", 1, "stdin:1: this document has no kind"),
        (["-"], "", 1, "there is no server block"),
    ],
)
def test_what_cannot_be_done_is_said(arguments: list[str], stdin: str, code: int, told: str) -> None:
    done = kdns("migrate", *arguments, stdin=stdin)
    assert done.returncode == code, done.stderr + done.stdout
    assert told in " ".join((done.stderr + done.stdout).replace("│", " ").split())


def test_two_of_them_are_one_too_many() -> None:
    objects = [*given("kubeadm"), *given("k3s")]
    with pytest.raises(KdnsError, match="there are several: Deployment kube-system/coredns, Deployment"):
        plan_of(objects)


def test_the_manifests_are_those_of_the_repository() -> None:
    assert MANIFESTS.samefile(ROOT / "deploy" / "kubernetes")
    assert (MANIFESTS / "cluster" / "kdns.yaml").is_file()
    text = (ROOT / "pyproject.toml").read_text()
    for path in ("manifests/cluster/*.yaml", "manifests/node/*.yaml", "manifests/components/*/*.yaml"):
        assert path in text, "in the package too"


# A cluster


class Api(http.server.BaseHTTPRequestHandler):
    """Answers GET with the objects that the server has by path; others are 404, and `denied` ones 403."""

    objects: dict[str, Any]
    denied: frozenset[str]

    def do_GET(self) -> None:
        """One request."""
        path = self.path.partition("?")[0]
        code, body = 200, self.objects.get(path)
        if path.rsplit("/", 1)[1] in self.denied:
            code, body = 403, {"kind": "Status", "message": f"cannot list {path.rsplit('/', 1)[1]}"}
        elif body is None:
            code, body = 404, {"kind": "Status", "message": "not found"}
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@cache
def lists() -> dict[str, Any]:
    """k3s's objects as an API lists them, without a ConfigMap coredns-custom."""
    base, apps = "/api/v1/namespaces/kube-system", "/apis/apps/v1/namespaces/kube-system"
    by_kind: dict[str, list[Any]] = {}
    for each in given("k3s"):
        item = {key: value for key, value in each.data.items() if key not in ("kind", "apiVersion")}
        by_kind.setdefault(each.kind, []).append(item)
    other = {
        "metadata": {"name": "other"},
        "spec": {"template": {"spec": {"containers": [{"name": "a", "image": "b"}]}}},
    }
    return {
        f"{apps}/deployments": {"items": [other, *by_kind["Deployment"]]},
        f"{apps}/daemonsets": {"items": [other]},
        f"{base}/services": {"items": by_kind["Service"]},
        f"{base}/configmaps/coredns": {"apiVersion": "v1", **by_kind["ConfigMap"][0]},
        "/apis/autoscaling/v2/namespaces/kube-system/horizontalpodautoscalers": {"items": []},
        "/apis/policy/v1/namespaces/kube-system/poddisruptionbudgets": {"items": []},
    }


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Starts an API with objects; returns its kubeconfig."""
    servers = []

    def start(*denied: str) -> Path:
        handler = type("Handler", (Api,), {"objects": lists(), "denied": frozenset(denied)})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "a", "users": [{"name": "a", "user": {}}],
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
            "clusters": [{"name": "a", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        }  # fmt: skip
        (tmp_path / "config").write_text(json.dumps(config))
        return tmp_path / "config"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_cluster_is_read_through_its_api(api: Callable[..., Path], tmp_path: Path) -> None:
    done = kdns("migrate", "--kubeconfig", api(), "--output", tmp_path / "out")
    assert done.returncode == 3, done.stderr
    assert "ConfigMap kube-system/coredns, Corefile:1: unchanged: .:53 {" in done.stdout
    assert "coredns-custom: left out" not in done.stdout, "the API has none, so there is nothing to look at"
    assert (tmp_path / "out" / "cluster" / "deployment.yaml").is_file()
    service = yaml.safe_load((tmp_path / "out" / "cluster" / "service.yaml").read_text())
    assert service["spec"]["clusterIP"] == "10.43.0.10"


def test_what_the_api_refuses_is_told(api: Callable[..., Path]) -> None:
    some = kdns("migrate", "--kubeconfig", api("poddisruptionbudgets"))
    assert some.returncode == 3
    assert "poddisruptionbudgets: cannot list poddisruptionbudgets; the role needs get and list" in some.stderr
    needed = kdns("migrate", "--kubeconfig", api("deployments"))
    assert (needed.returncode, needed.stdout, needed.stderr.count("\n")) == (1, "", 1)
    assert needed.stderr.startswith("/apis/apps/v1/namespaces/kube-system/deployments: cannot list deployments")
    nothing = kdns("migrate", "--kubeconfig", api(), "--namespace", "elsewhere")
    assert nothing.returncode == 1
    assert "not found" in nothing.stderr


# The README


SECTION = readme.sections()["From CoreDNS to kdns, and back"]


def test_the_commands_of_the_readme_print_what_it_shows(tmp_path: Path) -> None:
    """`...` stands for lines that are left out."""
    (tmp_path / "before.yaml").write_text((FIXTURES / "kubeadm.yaml").read_text())
    shown = readme.sessions("From CoreDNS to kdns, and back")
    assert len(shown) == 3
    for one in shown:
        command = re.sub(r"^kdns\b", f"{sys.executable} -m kdns", one.command)
        done = subprocess.run(
            ["/bin/sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, env=environ(), timeout=60
        )
        pattern = re.escape(one.output).replace(re.escape("...\n"), "(?:.*\n)+?")
        assert re.fullmatch(pattern, done.stdout + done.stderr), done.stdout + done.stderr


def environ() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_what_the_readme_shows_as_on_purpose_is_what_compare_says() -> None:
    reasons = re.findall(r"^  [\d,]+: (.*)$", SECTION, re.MULTILINE)
    assert len(reasons) == 7
    source = (ROOT / "kdns" / "tools" / "compare.py").read_text()
    assert [reason for reason in reasons if f'"{reason}"' not in source] == []


def test_what_the_readme_writes_has_the_image_that_it_names(tmp_path: Path) -> None:
    name = re.search(r"--image (\S+)", SECTION)
    assert name is not None
    found = plan_of(given("kubeadm"), image=name[1])
    assert container(yaml.safe_load(found.files["deployment.yaml"]))["image"] == name[1]
