"""Taking over from NodeLocal DNSCache: its DaemonSet, with kdns in it."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from kdns.tools import carry, coredns
from kdns.tools.carry import COREFILE
from kdns.tools.coredns import Data, Pod, items, part
from kdns.tools.takeover import Takeover

CONFIGMAP = "kdns-node"
LABELS = {"app.kubernetes.io/name": "kdns", "app.kubernetes.io/component": "node"}
FLAGS = frozenset((
    "localip", "upstreamsvc", "interfacename", "setupinterface", "setupiptables", "skipteardown", "syncinterval",
    "health-port", "metrics-listen-address", "dns.port", "p", "basecorefile", "kubednscm", "reloadwithsignal",
))  # fmt: skip
"""Those of `kdns node` that it has from node-cache. -conf and -pidfile have places of their own."""
DAEMONSET_NOTE = """\
# It takes the place of one that is there: kubectl replace -f daemonset.yaml, once the ConfigMap is there (kubectl apply
# -k). An apply could leave containers and ports of the other one in it.
"""
_OWN_FLAGS = frozenset(("conf", "pidfile", "corefile"))
_BASE = "/etc/coredns/Corefile.base"


class Node(Takeover):
    """The DaemonSet is replaced in its place; the ConfigMap is one of kdns, so that the other stays as it is."""

    part = "node"
    own = CONFIGMAP
    is_node = True

    def base_file(self, pod: Pod) -> str:
        """The base file, or where there is none the Corefile itself."""
        base = pod.flags.get("basecorefile") or _BASE
        there = {source.path for source, _, _ in pod.files(self.given.objects)}
        conf = pod.flags.get("conf") or pod.flags.get("corefile") or "/etc/Corefile"
        return conf if conf in there and base not in there else base

    def carry(self) -> None:
        """Name, selector, flags, files and where it runs."""
        documents = carry.load("node/node-local-dns.yaml")
        self.daemonset: Data = next(each for each in documents if each["kind"] == "DaemonSet")
        template = self.daemonset["spec"]["template"]
        self.ours: Data = template["spec"]
        self.container: Data = self.ours["containers"][0]
        self.container["image"] = self.given.options.image
        self._volume("corefile")["configMap"]["name"] = CONFIGMAP
        if self.pod is None:
            told = "it is not known: flags, addresses and the rest are as in our manifests"
            self.plan.replaced(self.origin, "the DaemonSet", told)
            return
        self._carry_identity(self.pod, template)
        carry.pod(self.plan, self.pod, template)
        carry.container(self.plan, self.pod, self.container)
        self._carry_flags(self.pod)
        self._carry_volumes(self.pod)
        if probe := part(self.pod.container, "livenessProbe", "httpGet"):
            self.container["livenessProbe"]["httpGet"] = probe
            self.plan.carried(self.origin, f"livenessProbe: {carry.shown(probe)}")

    def _carry_identity(self, pod: Pod, template: Data) -> None:
        own = self.daemonset
        own["metadata"]["name"], own["metadata"]["namespace"] = pod.workload.name, pod.workload.namespace
        own["spec"]["selector"] = part(pod.workload.data, "spec", "selector")
        template["metadata"]["labels"] |= pod.labels
        self.ours["serviceAccountName"] = pod.spec.get("serviceAccountName", "default")
        self.plan.carried(self.origin, "name, selector and service account", "it is replaced in its place")
        if strategy := part(pod.workload.data, "spec", "updateStrategy"):
            told = "a new pod of a node comes first, then the old one goes"
            self.plan.replaced(self.origin, f"updateStrategy: {carry.shown(strategy)}", told)
        if ports := [str(each.get("containerPort")) for each in items(pod.container, "ports")]:
            told = "none are declared: each would be a port of the node, which two pods cannot have at a time"
            self.plan.replaced(self.origin, f"ports: {', '.join(ports)}", told)

    def _carry_flags(self, pod: Pod) -> None:
        own = [arg for arg in self.container["args"] if re.match(r"-(conf|pidfile)=", arg)]
        if self.main.path == pod.flags.get("conf"):  # there is no base file
            own[0] = f"-conf={self.main.path}"
        args = []
        for name, value in pod.flags.items():
            text = f"-{name}={value}" if value else f"-{name}"
            if "__PILLAR__" in value:
                told = "a variable of its installer has no value; accepted: the object as it is in the cluster"
                self.plan.refused(self.origin, text, told)
            elif name in FLAGS:
                args.append(text)
                self.plan.carried(self.origin, text)
            elif name not in _OWN_FLAGS:
                self.plan.left_out(self.origin, text, "kdns node has no such flag")
        self.container["args"] = [*args, *own]

    def _carry_volumes(self, pod: Pod) -> None:
        mounts: list[Data] = self.container["volumeMounts"]
        own = {each["mountPath"]: each["name"] for each in mounts}
        for mount, volume in pod.mounts():
            place = str(mount.get("mountPath"))
            if self.configmap is not None and self.configmap.name in dict(coredns.configmaps(volume)):
                mine = next(each for each in mounts if each["name"] == "corefile")
                mine["mountPath"] = place
                path = str(PurePosixPath(self.main.path).relative_to(place))
                chosen = {"name": CONFIGMAP, "items": [{"key": COREFILE, "path": path}]}
                self._fill(self._volume("corefile"), chosen, list(self.beside_corefile(volume)))
            elif place in own and "configMap" in volume:
                self._volume(own[place])["configMap"] = self.without_unsupported(volume)["configMap"]
                self.plan.carried(self.origin, f"ConfigMap {volume['configMap'].get('name')} at {place}")
            elif place not in own:
                mounts.append(dict(mount))
                self.ours["volumes"].append(self.without_unsupported(volume))
                self.plan.carried(self.origin, f"volume {volume['name']} at {place}")

    def _fill(self, volume: Data, chosen: Data, beside: list[Data]) -> None:
        """Put the Corefile into its volume, and what else was there."""
        volume["configMap"] = chosen
        if beside:
            volume["projected"] = {"sources": [{"configMap": volume.pop("configMap")}, *beside]}

    def _volume(self, name: str) -> Data:
        found: Data = next(each for each in self.ours["volumes"] if each["name"] == name)
        return found

    def write(self) -> None:
        """The Corefile, and the DaemonSet by itself. Services and service account are there, and stay."""
        files = self.plan.files
        files[COREFILE] = self.sources[0].text
        files["daemonset.yaml"] = DAEMONSET_NOTE + carry.dump([self.daemonset], self.origin)
        objects = {"configmaps.yaml": copies} if (copies := self.copies(LABELS)) else {}
        files |= {name: carry.dump(group, self.origin) for name, group in objects.items()}
        document = carry.kustomization(self.namespace, CONFIGMAP, LABELS, objects)
        files["kustomization.yaml"] = carry.dump([document], self.origin)
