"""What is in deploy/: files, kustomizations and chart make the same objects, and those fit together and fit Kubernetes.

What a kubelet and a pod make of them is tested elsewhere: test_node_manifest for the node role, for example.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate import utils

import kdns
from kdns.cli.check import report
from kdns.cli.node import example
from kdns.corefile.config import Config
from kdns.plugins import forward, health, kubernetes, load, prometheus, ready
from kdns.server import memory
from kdns.server.supervisor import MOST_WORKERS
from kdns.server.workers import STOP_SECONDS
from tests.support import deploy
from tests.support.deploy import CHART, FOLDER, RENEW, Case, Objects
from tests.support.server import ROOT

pytestmark = pytest.mark.one_speed

CASES = {case.name: case for case in deploy.cases()}
PLAIN = {
    "cluster": ("cluster/rbac.yaml", "cluster/kdns.yaml"),
    "node": ("node/node-local-dns.yaml",),
}
SAME = {
    "cluster": "default",
    "node": "node",
    **{path.name: path.name for path in sorted((FOLDER / "overlays").iterdir())},
}
"""Folders of kustomizations, and the files of values that make the same of the chart."""
FOLDERS = [FOLDER / name if name in PLAIN else FOLDER / "overlays" / name for name in SAME]
ENVIRON = {
    "CORP_DNS": "192.0.2.99",
    "KDNS_COPIES_KEY": "X28hl0BOfAL5G0jsmJWSacrwn7YRm2f6U5brnzwWEus=",
    "NODE_NAME": "node-1",
}
"""What containers get from values, Secrets and the downward API."""
OF_HELM = {
    "app.kubernetes.io/instance": "kdns",
    "app.kubernetes.io/managed-by": "Helm",
    "helm.sh/chart": f"kdns-{kdns.__version__}",
}
"""Labels that every object of the chart has and no other. Its Service has an annotation besides: see `without_helm`."""
CLUSTER_POD = {"app.kubernetes.io/name": "kdns", "app.kubernetes.io/component": "cluster"}
COREDNS_POD = {"k8s-app": "kube-dns", "pod-template-hash": "5d78c9869d"}
OLDEST = (1, 29)
VERSIONS = [
    version
    for version in dict.fromkeys(map(utils.major_minor, utils.all_versions()))
    if tuple(map(int, version.split("."))) >= OLDEST
]
SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
}
"""Those that the Pod Security Standards allow in every Kubernetes since 1.29."""
VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
"""Kinds of volumes that the standard "restricted" allows."""


def everything() -> dict[str, Objects]:
    """All sets of objects, by where they are from."""
    kustomizations = {f"kustomization {folder.name}": deploy.kustomization(folder) for folder in FOLDERS}
    return kustomizations | {f"chart {case.name}": case.objects() for case in CASES.values()}


SETS = [*(f"kustomization {folder.name}" for folder in FOLDERS), *(f"chart {name}" for name in CASES)]


@pytest.fixture
def found(request: pytest.FixtureRequest) -> Objects:
    """A set of objects, by its name in SETS."""
    kind, name = request.param.split()
    if kind == "chart":
        return CASES[name].objects()
    return deploy.kustomization(FOLDERS[list(SAME).index(name)])


every_set = pytest.mark.parametrize("found", SETS, indirect=True)
every_cluster = pytest.mark.parametrize(
    "found", [name for name in SETS if name.split()[1] not in ("node", "node-link-local")], indirect=True
)
"""Sets that have the cluster role."""


# They agree


def without_helm(found: Objects) -> Objects:
    """The chart's objects without what Helm has beside the others: all of that has to be there."""
    found = copy.deepcopy(found)
    for (kind, _, name), item in found.items():
        labels = item["metadata"]["labels"]
        assert {key: labels.pop(key) for key in OF_HELM} == OF_HELM
        if (kind, name) == ("Service", "kube-dns"):
            assert item["metadata"]["annotations"].pop("helm.sh/resource-policy") == "keep"
    return found


def differences(left: Objects, right: Objects) -> list[str]:
    """What the one or the other has alone, and each line that is another."""
    lines = [f"only on the left: {key}" for key in left.keys() - right.keys()]
    lines += [f"only on the right: {key}" for key in right.keys() - left.keys()]
    for key in left.keys() & right.keys():
        lines += [f"{key}{text}" for text in _compare(left[key], right[key])]
    return sorted(lines)


def _compare(left: Any, right: Any, where: str = "") -> Iterator[str]:
    if isinstance(left, dict) and isinstance(right, dict):
        for name in sorted(left.keys() | right.keys()):
            yield from _compare(left.get(name), right.get(name), f"{where}.{name}")
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            yield from _compare(one, other, f"{where}[{index}]")
    elif left != right or type(left) is not type(right):
        yield f"{where}: {left!r} != {right!r}"


@pytest.mark.parametrize("name", PLAIN)
def test_plain_files_and_base_are_the_same(name: str) -> None:
    assert differences(deploy.files(*PLAIN[name]), deploy.kustomization(FOLDER / name)) == []
    listed = yaml.safe_load((FOLDER / name / "kustomization.yaml").read_text())["resources"]
    assert [f"{name}/{file}" for file in listed] == list(PLAIN[name])


@pytest.mark.parametrize("name", SAME)
def test_kustomization_and_chart_are_the_same(name: str) -> None:
    folder = FOLDERS[list(SAME).index(name)]
    assert differences(deploy.kustomization(folder), without_helm(CASES[SAME[name]].objects())) == []


def test_the_comparison_sees_differences() -> None:
    ours = without_helm(CASES["default"].objects())
    for path in (("spec", "strategy", "rollingUpdate", "maxSurge"), ("metadata", "labels", "app.kubernetes.io/name")):
        theirs = copy.deepcopy(ours)
        part = theirs["Deployment", "kube-system", "kdns"]
        for step in path[:-1]:
            part = part[step]
        part[path[-1]] = str(part[path[-1]]) + "0"
        [line] = differences(ours, theirs)
        assert "." + ".".join(path) in line
    theirs = dict(ours)
    del theirs["Service", "kube-system", "kube-dns"]
    assert differences(ours, theirs) == ["only on the left: ('Service', 'kube-system', 'kube-dns')"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_kubectl_makes_the_same_as_kustomize(folder: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("not installed: kubectl")
    done = subprocess.run(["kubectl", "version", "--client", "-o", "json"], capture_output=True, text=True, timeout=60)
    version = json.loads(done.stdout).get("kustomizeVersion", "v0")
    if int(version.lstrip("v").split(".")[0]) < 5:
        pytest.skip(f"kubectl has kustomize {version}")
    assert differences(deploy.kustomization(folder), deploy.kubectl_kustomization(folder)) == []


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_the_chart_makes_is_what_is_kept(case: Case) -> None:
    assert deploy.dump(case.objects()) == case.path.read_text(), (
        f"{case.path.relative_to(ROOT)} is not what the chart makes; if that is wanted, write it again with: {RENEW}"
    )


def test_nothing_is_kept_that_no_values_make() -> None:
    stored = {path.name for path in deploy.STORED.iterdir()}
    assert stored == {f"{name}{end}" for name in CASES for end in (".yaml", ".values.yaml")}


# They are what Kubernetes takes


@functools.cache
def _schema(filename: str, version: str) -> Any:
    return _read_schema(filename, version)


_read_schema = utils.schema_contents


def test_every_object_is_valid_in_every_supported_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils, "schema_contents", _schema)  # else each object reads some MB of JSON again
    different = {json.dumps(item, sort_keys=True): item for found in everything().values() for item in found.values()}
    assert len(different) > 50
    for version, item in itertools.product(VERSIONS, different.values()):
        if item["apiVersion"].startswith("monitoring.coreos.com/"):  # not of Kubernetes
            continue
        try:
            assert kubernetes_validate.validate(item, version, strict=True) == version
        except kubernetes_validate.ValidationError as error:
            name = f"{item['kind']} {item['metadata']['name']}"
            raise AssertionError(f"{name}, Kubernetes {version}: {error.json_path}: {error.message}") from None


def test_the_validation_is_strict() -> None:
    item = copy.deepcopy(CASES["default"].objects()["Deployment", "kube-system", "kdns"])
    item["spec"]["template"]["spec"]["containers"][0]["livenessProbes"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenessProbes"):
        kubernetes_validate.validate(item, VERSIONS[0], strict=True)


def test_the_supported_versions_are_told() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["kubeVersion"] == f">={VERSIONS[0]}.0-0"
    told = re.search(r"Kubernetes (1\.\d+) to (1\.\d+)", (ROOT / "README.md").read_text())
    assert told is not None
    assert told[1] == VERSIONS[0]
    assert told[2] in VERSIONS


def test_versions_are_the_same_everywhere() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = {
        container["image"]
        for name in ("default", "cluster-and-node")
        for pod in pods(CASES[name].objects()).values()
        for container in pod["spec"]["containers"]
    }
    assert images == {f"kdns:{kdns.__version__}"}
    assert (chart["appVersion"], chart["version"], project) == (kdns.__version__,) * 3


# They fit together


def pods(found: Objects) -> dict[str, Any]:
    """The templates of pods, by the names of their controllers."""
    return {
        name: item["spec"]["template"] for (kind, _, name), item in found.items() if kind in ("Deployment", "DaemonSet")
    }


def of_kind(found: Objects, *kinds: str) -> dict[str, Any]:
    return {name: item for (kind, _, name), item in found.items() if kind in kinds}


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return selector.items() <= labels.items()


@every_set
def test_every_object_says_what_it_belongs_to(found: Objects) -> None:
    for (kind, namespace, _), item in found.items():
        labels = item["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "kdns"
        assert labels["app.kubernetes.io/component"] in ("cluster", "node", "autoscaler", "monitoring")
        assert namespace == ("" if kind.startswith("ClusterRole") else "kube-system")


@every_set
def test_pods_have_what_they_refer_to(found: Objects) -> None:
    accounts = of_kind(found, "ServiceAccount").keys() | {"dns"}  # which another-cluster says is there
    config_maps = of_kind(found, "ConfigMap").keys() | {"kube-dns", "hosts"}  # optional; the values' own
    for controller in of_kind(found, "Deployment", "DaemonSet").values():
        labels = controller["spec"]["template"]["metadata"]["labels"]
        assert selects(controller["spec"]["selector"]["matchLabels"], labels)
    for pod in pods(found).values():
        spec = pod["spec"]
        assert spec["serviceAccountName"] in accounts
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        mounts = {mount["name"] for container in spec["containers"] for mount in container.get("volumeMounts", [])}
        assert mounts == volumes.keys()
        assert {volume["configMap"]["name"] for volume in volumes.values() if "configMap" in volume} <= config_maps
        for container in spec["containers"]:
            probes = [container[name] for name in container if name.endswith("Probe")]
            named = {probe["httpGet"]["port"] for probe in probes if "httpGet" in probe}
            ports = {port["name"] for port in container.get("ports", [])}
            assert {port for port in named if isinstance(port, str)} <= ports


@every_set
def test_no_pod_is_in_two_budgets_and_none_of_corednss_in_ours(found: Objects) -> None:
    budgets = [budget["spec"]["selector"]["matchLabels"] for budget in of_kind(found, "PodDisruptionBudget").values()]
    for labels in (pod["metadata"]["labels"] for pod in pods(found).values()):
        assert sum(selects(selector, labels) for selector in budgets) == int(
            bool(budgets) and labels["app.kubernetes.io/component"] == "cluster"
        )
    controllers = of_kind(found, "Deployment", "DaemonSet").values()
    selectors = [*budgets, *(controller["spec"]["selector"]["matchLabels"] for controller in controllers)]
    assert not any(selects(selector, COREDNS_POD) for selector in selectors)


@every_set
def test_kubeadm_finds_no_second_deployment_of_corednss(found: Objects) -> None:
    """`kubeadm upgrade` stops where several Deployments in kube-system have the label of CoreDNS's."""
    for deployment in of_kind(found, "Deployment").values():
        assert "k8s-app" not in deployment["metadata"]["labels"]


@every_set
def test_services_bring_queries_to_the_clusters_pods(found: Objects) -> None:
    services, labels = of_kind(found, "Service"), {name: pod["metadata"]["labels"] for name, pod in pods(found).items()}
    for name, service in services.items():
        selector = service["spec"]["selector"]
        wanted = "node" if service["spec"].get("clusterIP") == "None" else "cluster"
        chosen = {each["app.kubernetes.io/component"] for each in labels.values() if selects(selector, each)}
        assert chosen <= {wanted}
        assert chosen or name == "kube-dns-upstream"  # of the node role alone
        assert selects(selector, COREDNS_POD) == (wanted == "cluster")
    if "kube-dns" in services:
        [container] = next(pod for pod in pods(found).values() if selects(CLUSTER_POD, pod["metadata"]["labels"]))[
            "spec"
        ]["containers"]
        ports = {(port["name"], port["port"], port["protocol"]) for port in services["kube-dns"]["spec"]["ports"]}
        assert ports == {("dns", 53, "UDP"), ("dns-tcp", 53, "TCP"), ("metrics", 9153, "TCP")}
        has = {(port["containerPort"], port["protocol"]) for port in container["ports"]}
        assert {(port["targetPort"], port["protocol"]) for port in services["kube-dns"]["spec"]["ports"]} <= has


@every_set
def test_the_number_of_pods_has_one_master(found: Objects) -> None:
    deployments = of_kind(found, "Deployment")
    scaled = [scaler["spec"]["scaleTargetRef"]["name"] for scaler in of_kind(found, "HorizontalPodAutoscaler").values()]
    for name, pod in pods(found).items():
        if pod["metadata"]["labels"]["app.kubernetes.io/component"] == "autoscaler":
            options = dict(argument.split("=", 1) for argument in pod["spec"]["containers"][0]["args"])
            scaled.append(options["--target"].removeprefix("deployment/"))
            allowed = of_kind(found, "Role")[name]["rules"]
            assert [rule["resourceNames"] for rule in allowed] == [[scaled[-1]], [options["--configmap"]]]
            parameters = json.loads(of_kind(found, "ConfigMap")[options["--configmap"]]["data"]["linear"])
            assert parameters["min"] >= 2
    own = [name for name, item in deployments.items() if selects(CLUSTER_POD, item["spec"]["selector"]["matchLabels"])]
    fixed = [name for name in own if "replicas" in deployments[name]["spec"]]
    assert sorted(scaled + fixed) == own


# They are secure


def restricted(pod: Mapping[str, Any]) -> list[str]:
    """What the Pod Security Standard "restricted" does not allow of a pod.

    https://kubernetes.io/docs/concepts/security/pod-security-standards/
    """
    spec, context = pod["spec"], pod["spec"].get("securityContext", {})
    problems = [name for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    problems += [f"volume {volume['name']}" for volume in spec.get("volumes", []) if not volume.keys() & allowed]
    problems += [f"sysctl {item['name']}" for item in context.get("sysctls", []) if item["name"] not in SAFE_SYSCTLS]
    for container in spec["containers"]:
        own = context | container.get("securityContext", {})
        capabilities = own.get("capabilities", {})
        wrong = {
            "privileged": own.get("privileged", False),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is not False,
            "runAsNonRoot": own.get("runAsNonRoot") is not True,
            "runAsUser": own.get("runAsUser") == 0,
            "seccompProfile": own.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"),
            "drop": capabilities.get("drop") != ["ALL"],
            "add": not set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"},
            "hostPort": any("hostPort" in port for port in container.get("ports", [])),
        }
        problems += [f"{container['name']} {name}" for name, is_wrong in wrong.items() if is_wrong]
    return problems


@every_set
def test_pods_keep_to_the_pod_security_standards(found: Objects) -> None:
    for pod in pods(found).values():
        node = pod["metadata"]["labels"]["app.kubernetes.io/component"] == "node"
        assert restricted(pod) == (
            ["hostNetwork", "volume xtables-lock", "kdns runAsNonRoot", "kdns runAsUser", "kdns add"] if node else []
        )
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_what_the_standard_does_not_allow_is_found() -> None:
    pod = copy.deepcopy(CASES["default"].objects()["Deployment", "kube-system", "kdns"]["spec"]["template"])
    pod["spec"]["securityContext"]["sysctls"].append({"name": "net.core.somaxconn", "value": "1"})
    pod["spec"]["containers"][0]["securityContext"]["capabilities"] = {"add": ["NET_ADMIN"]}
    assert restricted(pod) == ["sysctl net.core.somaxconn", "kdns drop", "kdns add"]


# The Corefiles


def corefile(found: Objects, component: str) -> str | None:
    """The text in the ConfigMap that the pods of a component mount."""
    for pod in pods(found).values():
        if pod["metadata"]["labels"]["app.kubernetes.io/component"] == component:
            names = [volume["configMap"]["name"] for volume in pod["spec"]["volumes"] if "configMap" in volume]
            text = of_kind(found, "ConfigMap")[names[0]]["data"]["Corefile"]
            assert isinstance(text, str)
            return text
    return None


@pytest.fixture
def configured(found: Objects, tmp_path: Path) -> Config:
    """The cluster role's configuration, with the environment of its container."""
    (tmp_path / "Corefile").write_text(corefile(found, "cluster") or "")
    return load(tmp_path / "Corefile", environ=ENVIRON)


def options(config: Config, name: str) -> list[Any]:
    """What each server block says about a directive."""
    return [block.plugins[name] for block in config.blocks if name in block.plugins]


@every_set
def test_corefiles_are_accepted(found: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    texts = {component: text for component in ("cluster", "node") if (text := corefile(found, component))}
    assert texts
    for component, text in texts.items():
        (tmp_path / component).write_text(text)
        checked = report(tmp_path / component, node=component == "node")
        assert checked["ok"], checked["mistakes"]


def needed(config: Config) -> set[tuple[str, str]]:
    """API groups and resources that have to be listed and watched for a configuration."""
    found = {("", "services"), ("", "namespaces"), ("discovery.k8s.io", "endpointslices")}
    for each in options(config, kubernetes.NAME):
        found |= {("", "pods")} if each.pods == "verified" else set()
        found |= {("multicluster.x-k8s.io", "serviceimports")} if each.multicluster else set()
    return found


def allowed(found: Objects, account: str) -> set[tuple[str, str, str]]:
    """API groups, resources and verbs that a ServiceAccount is allowed."""
    subject = {"kind": "ServiceAccount", "name": account, "namespace": "kube-system"}
    bindings = of_kind(found, "ClusterRoleBinding", "RoleBinding")
    bound = [binding["roleRef"]["name"] for binding in bindings.values() if binding["subjects"] == [subject]]
    rules = [rule for name in bound for rule in of_kind(found, "ClusterRole")[name]["rules"]]
    return {each for rule in rules for each in itertools.product(rule["apiGroups"], rule["resources"], rule["verbs"])}


@every_cluster
def test_the_roles_allow_what_the_corefile_needs_and_no_more(found: Objects, configured: Config) -> None:
    [account] = {
        pod["spec"]["serviceAccountName"]
        for pod in pods(found).values()
        if selects(CLUSTER_POD, pod["metadata"]["labels"])
    }
    wanted = {(*each, verb) for each in needed(configured) for verb in ("list", "watch")}
    assert allowed(found, account) == wanted


@every_set
def test_a_node_may_list_pods_if_its_corefile_needs_that_and_nothing_else(found: Objects) -> None:
    """It has a token only then, its name, and a place for what it knows."""
    for pod in pods(found).values():
        if pod["metadata"]["labels"]["app.kubernetes.io/component"] != "node":
            continue
        follows = "autopath @kubernetes {" in (corefile(found, "node") or "")
        account = pod["spec"]["serviceAccountName"]
        assert allowed(found, account) == ({("", "pods", verb) for verb in ("list", "watch")} if follows else set())
        made = found.get(("ServiceAccount", "kube-system", account), {})
        token = pod["spec"].get("automountServiceAccountToken", made.get("automountServiceAccountToken"))
        assert token is follows
        [container] = pod["spec"]["containers"]
        environ = {each["name"]: each for each in container.get("env", [])}
        assert ("NODE_NAME" in environ) is follows
        if follows:
            assert environ["NODE_NAME"]["valueFrom"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}
            [mount] = (each for each in container["volumeMounts"] if each["name"] == "state")
            assert mount["mountPath"] == environ["KDNS_STATE_DIR"]["value"]
            assert "state" in {volume["name"] for volume in pod["spec"]["volumes"]}


@every_cluster
def test_probes_and_ports_are_those_of_the_corefile(found: Objects, configured: Config) -> None:
    for pod in pods(found).values():
        if not selects(CLUSTER_POD, pod["metadata"]["labels"]):
            continue
        [container] = pod["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for plugin, port in ((health, "liveness-probe"), (ready, "readiness-probe"), (prometheus, "metrics")):
            [address] = {each.address for each in options(configured, plugin.NAME)}
            assert (address.host, address.port) == ("", ports[port])
        assert {key.port for block in configured.blocks for key in block.keys} == {ports["dns"], ports["dns-tcp"]}


@every_cluster
def test_a_pod_has_time_to_end(found: Objects, configured: Config) -> None:
    """UDP's flows go on to a pod that ends until its readiness probe has failed and kube-proxy has heard of it."""
    lameduck = max(each.lameduck for each in options(configured, health.NAME))
    for pod in pods(found).values():
        if selects(CLUSTER_POD, pod["metadata"]["labels"]):
            [container] = pod["spec"]["containers"]
            probe = container["readinessProbe"]
            assert lameduck >= probe["periodSeconds"] * probe["failureThreshold"] + 2
            assert pod["spec"]["terminationGracePeriodSeconds"] >= lameduck + STOP_SECONDS + 2


def test_memory_is_enough_for_all_workers_that_may_be_started() -> None:
    found = CASES["cluster-and-node"].objects()
    for component, workers in (("cluster", MOST_WORKERS), ("node", 1)):
        [pod] = (
            pod for pod in pods(found).values() if pod["metadata"]["labels"]["app.kubernetes.io/component"] == component
        )
        limit = pod["spec"]["containers"][0]["resources"]["limits"]["memory"]
        assert limit.endswith("Mi")
        room = memory.room(int(limit[:-2]) << 20, workers, cluster=component == "cluster")
        assert room >= 4 * memory.LEAST


@pytest.mark.parametrize("name", PLAIN)
def test_manuals_in_the_manifests_name_what_has_to_be_changed(name: str) -> None:
    text = (FOLDER / PLAIN[name][-1]).read_text()
    head = text[: text.index("apiVersion")]
    for word in ("10.96.0.10", "image") if name == "node" else ("clusterIP", "cluster.local", "image"):
        assert word in head
        assert word in text[len(head) :]


def test_the_node_role_asks_the_clusters_dns_and_its_upstreams(tmp_path: Path) -> None:
    (tmp_path / "Corefile").write_text(corefile(CASES["another-cluster"].objects(), "node") or "")
    config = example(tmp_path / "Corefile")
    zones = {key.zone: block for block in config.blocks for key in block.keys}
    assert str(zones["."].plugins[forward.NAME]).count("192.0.2.53") == 1
    assert "corp.example." in zones


# The README


def test_the_readmes_kustomization_builds(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    match = re.search(r"^```yaml\n(# kustomization\.yaml.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert match is not None
    shutil.copytree(FOLDER, tmp_path / "kdns" / "deploy" / "kubernetes")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "kustomization.yaml").write_text(match[1])
    made, base = deploy.kustomization(tmp_path / "own"), deploy.kustomization(FOLDER / "overlays" / "cluster-and-node")
    lines = differences(base, made)
    assert {line.split(")", 1)[1].split(":")[0].split("[")[0] for line in lines} == {
        ".data.Corefile", ".spec.clusterIP", ".spec.template.spec.containers",
    }  # fmt: skip
    (tmp_path / "Corefile").write_text(corefile(made, "cluster") or "")
    assert report(tmp_path / "Corefile")["ok"]


def test_every_overlay_and_component_is_in_the_readme_and_is_tested() -> None:
    text = (ROOT / "README.md").read_text()
    for folder in [*(FOLDER / "overlays").iterdir(), *(FOLDER / "components").iterdir()]:
        assert f"{folder.parent.name}/{folder.name}" in text
    used = {
        path.name
        for overlay in (FOLDER / "overlays").iterdir()
        for entry in yaml.safe_load((overlay / "kustomization.yaml").read_text()).get("components", [])
        for path in [(overlay / entry).resolve()]
    }
    assert used == {path.name for path in (FOLDER / "components").iterdir()}
