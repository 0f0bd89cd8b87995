"""Taking over from CoreDNS: a Deployment of kdns beside it, behind the same Service."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from kdns import plugins
from kdns.corefile.config import Config
from kdns.tools import carry, coredns, corefiles
from kdns.tools.carry import COREFILE
from kdns.tools.coredns import Data, KubeObject, Pod, items, part, strings
from kdns.tools.takeover import Takeover

NAME = "kdns"
LABELS = {"app.kubernetes.io/name": NAME, "app.kubernetes.io/component": "cluster"}
REPLICAS = 2
"""Where CoreDNS has none at the moment."""
LAST_ANSWERS = 10
"""Seconds that kdns may take to end behind its lameduck."""
SERVICE_NOTE = """\
# The Service as it is, for the record. kustomization.yaml leaves it out: it is there already, and must not go when kdns
# is deleted.
"""

_OWN_VOLUMES = frozenset(("config", "state", "tmp"))
_OWN_FLAGS = frozenset(("conf", "pidfile", "quiet", "logtostderr", "alsologtostderr", "stderrthreshold"))
_HTTP = {"metrics": "prometheus", "liveness-probe": "health", "readiness-probe": "ready"}
"""Our ports for HTTP, and the directives that open them."""
_PROBES = {"liveness-probe": ("startupProbe", "livenessProbe"), "readiness-probe": ("readinessProbe",)}


class Cluster(Takeover):
    """The names are kdns's own. The Service stays as it is: it is not among what is applied."""

    part = "cluster"
    own = NAME

    def carry(self) -> None:
        """The pod, its files, and what else the cluster has for CoreDNS."""
        documents = {each["kind"]: each for each in carry.load("cluster/kdns.yaml")}
        self.deployment: Data = documents["Deployment"]
        self.budget: Data | None = documents["PodDisruptionBudget"]
        self.autoscaler: Data | None = documents["HorizontalPodAutoscaler"]
        self.services: list[Data] = []
        template = self.deployment["spec"]["template"]
        self.labels: dict[str, str] = template["metadata"]["labels"]
        self.ours: Data = template["spec"]
        self.container: Data = self.ours["containers"][0]
        self.container["image"] = self.given.options.image
        if self.pod is None:
            told = "it is not known: replicas, resources and the rest are as in our manifests"
            self.plan.replaced(self.origin, "the Deployment", told)
        else:
            self._carry_workload(self.pod)
            carry.pod(self.plan, self.pod, template)
            carry.container(self.plan, self.pod, self.container)
            self._carry_flags(self.pod)
            self._carry_volumes(self.pod)
        self._carry_services()
        self._carry_budgets()
        self._carry_ports()
        self._carry_end(documents["ConfigMap"]["data"][COREFILE])

    # How many there are

    def _carry_workload(self, pod: Pod) -> None:
        plan, spec = self.plan, part(pod.workload.data, "spec")
        if pod.workload.kind != "Deployment":
            told = "kdns has manifests of a Deployment; accepted: a CoreDNS that is one"
            plan.refused(self.origin, f"a {pod.workload.kind}", told)
            self.is_possible = False
        if pod.spec.get("hostNetwork"):
            told = (
                "kdns's pods have port 53 by a sysctl, which a pod in the network of its node cannot set; accepted: a"
            )
            plan.refused(self.origin, "hostNetwork: true", f"{told} network of its own, as with --without-unsupported")
        if "strategy" in spec:
            told = "a new pod comes first, then an old one goes"
            plan.replaced(self.origin, f"strategy: {carry.shown(spec['strategy'])}", told)
        for name in ("serviceAccountName", "securityContext"):
            if pod.spec.get(name):
                told = "kdns has a role of its own" if name == "serviceAccountName" else "kdns is not root"
                plan.replaced(self.origin, f"{name}: {carry.shown(pod.spec[name])}", told)
        self._carry_replicas(
            spec.get("replicas", 1), [each for each in self.given.objects if _scales(each, pod.workload)]
        )

    def _carry_replicas(self, replicas: int, scalers: Iterable[KubeObject]) -> None:
        theirs = None
        for each in scalers:
            if each.kind == "HorizontalPodAutoscaler":
                theirs = each
            else:
                told = f"it sets the replicas of CoreDNS only; kdns's with --target=deployment/{NAME}"
                self.plan.left_out(self.origin, f"{each.title}", told)
        if theirs is not None and self.autoscaler is not None:
            own, spec = self.autoscaler, part(theirs.data, "spec")
            own["apiVersion"] = theirs.data.get("apiVersion", own["apiVersion"])
            own["spec"] = {**spec, "scaleTargetRef": own["spec"]["scaleTargetRef"]}
            for metric in items(own["spec"], "metrics"):
                if "containerResource" in metric:  # a name that no pod has would stop it
                    metric["containerResource"]["container"] = self.container["name"]
            bounds = f"{spec.get('minReplicas', 1)} to {spec.get('maxReplicas')} replicas"
            self.plan.carried(theirs.title, bounds, f"in the HorizontalPodAutoscaler {NAME}")
            return
        self.autoscaler = None
        self.deployment["spec"] = {"replicas": replicas or REPLICAS, **self.deployment["spec"]}
        if replicas:
            self.plan.carried(self.origin, f"replicas: {replicas}", "a fixed number: there is no autoscaler")
        else:
            self.plan.replaced(self.origin, "replicas: 0", f"it is {REPLICAS}")

    def _carry_flags(self, pod: Pod) -> None:
        for name, value in pod.flags.items():
            text = f"-{name}={value}" if value else f"-{name}"
            if name in ("dns.port", "p"):
                self.container["args"].append(f"--dns-port={self.port}")
                self.plan.carried(self.origin, text)
            elif name not in _OWN_FLAGS:
                self.plan.left_out(self.origin, text, "kdns serve has no such flag")

    # Its files

    def _carry_volumes(self, pod: Pod) -> None:
        """Put the files where they were. The Corefile stays in its place if there is something beside or below it."""
        folder = str(PurePosixPath(self.main.path).parent)
        mounts = pod.mounts()
        of_corefile = [volume for _, volume in mounts if self._has_corefile(volume)]
        beside = [each for volume in of_corefile for each in self.beside_corefile(volume)]
        below = [mount for mount, _ in mounts if str(mount.get("mountPath")).startswith(f"{folder}/")]
        if beside or below:
            chosen = [{"key": COREFILE, "path": PurePosixPath(self.main.path).name}]
            mount = next(each for each in self.container["volumeMounts"] if each["name"] == "config")
            mount["mountPath"] = folder
            volume = next(each for each in self.ours["volumes"] if each["name"] == "config")
            del volume["configMap"]
            volume["projected"] = {"sources": [{"configMap": {"name": NAME, "items": chosen}}, *beside]}
            self.container["args"][0] = f"--conf={self.main.path}"
        for mount, volume in mounts:
            if volume not in of_corefile:
                self._carry_volume(mount, volume)

    def _has_corefile(self, volume: Mapping[str, Any]) -> bool:
        return self.configmap is not None and self.configmap.name in dict(coredns.configmaps(volume))

    def _carry_volume(self, mount: Data, volume: Data) -> None:
        place = str(mount.get("mountPath"))
        what = f"volume {volume['name']} at {place}"
        if any(each["mountPath"] == place for each in self.container["volumeMounts"]):
            self.plan.replaced(self.origin, what)
            return
        volume, mount = json.loads(json.dumps(volume)), dict(mount)
        if volume["name"] in _OWN_VOLUMES:
            volume["name"] = mount["name"] = f"coredns-{volume['name']}"
        volume = self.without_unsupported(volume)
        if "projected" in volume:
            sources = items(volume["projected"], "sources")
            volume["projected"]["sources"] = [self.without_unsupported(source) for source in sources]
        if volume["name"] not in [each["name"] for each in self.ours["volumes"]]:
            self.ours["volumes"].append(volume)
        self.container["volumeMounts"].append(mount)
        own = ["kdns is not root: it has to be readable for others"] if "hostPath" in volume else []
        self.plan.carried(self.origin, what, *own)

    # What stands around it

    def _carry_services(self) -> None:
        labels = self.pod.labels if self.pod is not None else {"k8s-app": "kube-dns"}
        for each in self.beside("Service"):
            selector = part(each.data, "spec", "selector")
            if not selector or not selector.items() <= labels.items():
                continue
            self.labels |= {str(key): str(value) for key, value in selector.items()}
            addresses = strings(each.data["spec"], "clusterIPs") or [str(each.data["spec"].get("clusterIP", "none"))]
            told = "it stays as it is, with the pods of both behind it"
            self.plan.carried(each.title, f"ClusterIP {', '.join(addresses)}", told)
            self.services.append(carry.clean(each.data))
        if not self.services:
            wanted = ", ".join(f"{key}: {value}" for key, value in self.labels.items() if key not in LABELS)
            told = f"it is not known, and stays as it is; it has to select kdns's pods by {wanted}"
            (self.plan.left_out if self.pod is not None else self.plan.replaced)(self.origin, "the Service", told)

    def _carry_budgets(self) -> None:
        labels = self.pod.labels if self.pod is not None else {}
        for each in self.beside("PodDisruptionBudget"):
            selector = part(each.data, "spec", "selector")
            if not selector or not coredns.selects(selector, labels):
                continue
            bounds = {
                key: value for key, value in each.data["spec"].items() if key in ("minAvailable", "maxUnavailable")
            }
            if coredns.selects(selector, self.labels):
                told = "it selects kdns's pods too; kdns has none of its own, as a pod with two cannot be evicted"
                self.plan.carried(each.title, carry.shown(bounds), told)
                self.budget = None
            elif self.budget is not None:
                rest = {key: value for key, value in self.budget["spec"].items() if key != "maxUnavailable"}
                self.budget["spec"] = {**bounds, **rest}
                self.plan.carried(each.title, carry.shown(bounds), f"in the PodDisruptionBudget {NAME}")

    def _carry_ports(self) -> None:
        """Ports by their names, and those of the Corefile; probes go to the latter."""
        if self.config is None:
            return
        theirs = items(self.pod.container, "ports") if self.pod is not None else []
        ports: list[Data] = [
            {key: each[key] for key in ("name", "containerPort", "protocol") if key in each} for each in theirs
        ]
        if of_node := [str(each["hostPort"]) for each in theirs if each.get("hostPort")]:
            told = "two pods of a node cannot have it at a time: kdns has its port in pods alone"
            self.plan.left_out(self.origin, f"hostPort: {', '.join(of_node)}", told)
        numbers = self._numbers()
        for own in self.container["ports"]:
            number = numbers.get(own["name"])
            taken = {(each["containerPort"], each.get("protocol", "TCP")) for each in ports}
            if number is not None and (number, own["protocol"]) not in taken:
                name = {} if own["name"] in [each.get("name") for each in ports] else {"name": own["name"]}
                ports.append({**name, "containerPort": number, "protocol": own["protocol"]})
        self.container["ports"] = ports
        for port, probes in _PROBES.items():
            for probe in probes:
                if port in numbers:
                    self.container[probe]["httpGet"]["port"] = numbers[port]
                else:
                    del self.container[probe]
            if port not in numbers:
                told = f"the pods of kdns have no {' and no '.join(probes)}"
                self.plan.left_out(self.origin, f"{_HTTP[port]} is not in the Corefile", told)
        self._check_services(ports)

    def _numbers(self) -> dict[str, int]:
        """Of each of our ports, as the Corefile has it."""
        assert self.config is not None
        dns = min((key.port for block in self.config.blocks for key in block.keys), default=self.port)
        numbers = {"dns": dns, "dns-tcp": dns}
        for port, plugin in _HTTP.items():
            options: list[Any] = corefiles.directives(self.config, plugin)
            if options:
                numbers[port] = options[0].address.port
        return numbers

    def _carry_end(self, corefile: str) -> None:
        """How long a pod takes to end. corefile: of our manifests."""
        if self.config is None:
            return
        lameduck, usual = (_lameduck(config) for config in (self.config, plugins.loads(corefile)))
        theirs = self.pod.spec.get("terminationGracePeriodSeconds") if self.pod is not None else None
        own = self.ours["terminationGracePeriodSeconds"]
        self.ours["terminationGracePeriodSeconds"] = max(own, theirs or 0, math.ceil(lameduck) + LAST_ANSWERS)
        if lameduck < usual:
            told = f"our manifests have {usual:g}s: for so long a node may send queries to a pod that is to end"
            self.plan.carried(self.origin, f"lameduck {lameduck:g}s", told)

    def _check_services(self, ports: Iterable[Data]) -> None:
        known = {known for port in ports for known in (port.get("name"), port["containerPort"])}
        for service in self.services:
            for port in items(service["spec"], "ports"):
                target = port.get("targetPort", port.get("port"))
                if target not in known:
                    told = f"it leads to {target}, where no pod of kdns listens"
                    self.plan.left_out(f"Service {service['metadata']['name']}", f"port {port.get('port')}", told)

    # What is written

    def write(self) -> None:
        """Everything but the Service, which is there: for the record only."""
        objects: dict[str, list[Data]] = {"rbac.yaml": self._roles(), "deployment.yaml": [self.deployment]}
        if self.budget is not None:
            objects["budget.yaml"] = [self.budget]
        if self.autoscaler is not None:
            objects["autoscaler.yaml"] = [self.autoscaler]
        if copies := self.copies(LABELS):
            objects["configmaps.yaml"] = copies
        for each in (each for group in objects.values() for each in group):
            if each["kind"] not in ("ClusterRole", "ClusterRoleBinding"):
                each["metadata"]["namespace"] = self.namespace
            for subject in each.get("subjects", []):
                subject["namespace"] = self.namespace
        files = self.plan.files
        files[COREFILE] = self.sources[0].text
        files |= {name: carry.dump(group, self.origin) for name, group in objects.items()}
        document = carry.kustomization(self.namespace, NAME, LABELS, objects)
        files["kustomization.yaml"] = carry.dump([document], self.origin)
        if self.services:
            files["service.yaml"] = SERVICE_NOTE + carry.dump(self.services, self.origin)

    def _roles(self) -> list[Data]:
        """The roles that the Corefile needs."""
        assert self.config is not None
        options: list[Any] = corefiles.directives(self.config, "kubernetes")
        found = carry.load("cluster/rbac.yaml")
        if any(each.pods == "verified" for each in options):
            found += carry.load("components/pods-verified/rbac.yaml")
        if any(each.multicluster for each in options):
            found += carry.load("components/multicluster/rbac.yaml")
        return found


def _lameduck(config: Config) -> float:
    """Seconds for which a pod answers that is to end."""
    options: list[Any] = corefiles.directives(config, "health")
    return max((each.lameduck for each in options), default=0.0)


def _scales(each: KubeObject, workload: KubeObject) -> bool:
    """Whether an object sets the number of a workload's replicas."""
    if each.kind == "HorizontalPodAutoscaler":
        target = part(each.data, "spec", "scaleTargetRef")
        return (target.get("kind"), target.get("name")) == (workload.kind, workload.name) and each.is_beside(workload)
    if each.kind != "Deployment" or each is workload:
        return False
    wanted = f"--target={workload.kind}/{workload.name}".lower()
    return any(
        word.lower() == wanted
        for found in items(part(each.data, "spec", "template", "spec"), "containers")
        for word in (*strings(found, "command"), *strings(found, "args"))
    )
