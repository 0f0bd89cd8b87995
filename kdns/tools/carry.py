"""What pods of kdns take over from the pods of another server, and how it is written down."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from kdns.tools.coredns import Data, Pod, items, part
from kdns.tools.corefiles import Finding, Verdict

MANIFESTS = Path(__file__).resolve().parent / "manifests"
"""deploy/kubernetes."""
COREFILE = "Corefile"
HEADER = "# Written by kdns migrate from {origin}.\n"

_SHOWN = 110
_FORGOTTEN = re.compile(r"(kubectl|deployment|deprecated)\.(kubernetes|daemonset)\.")
"""Annotations that a cluster makes."""
_OF_GO = frozenset(("GOMAXPROCS", "GOMEMLIMIT", "GOGC", "GODEBUG"))
_OF_CONTAINER = "container.apparmor.security.beta.kubernetes.io/"
"""What annotations begin with that have the name of a container at their end."""
_QUANTITY = re.compile(r"(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)([a-zA-Z]*)", re.ASCII)
_SIZES = {
    "n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18,
    "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50, "Ei": 1 << 60,
}  # fmt: skip
_POD = (
    "nodeSelector", "tolerations", "affinity", "topologySpreadConstraints", "priorityClassName", "dnsPolicy",
    "dnsConfig", "hostAliases", "imagePullSecrets", "schedulerName", "runtimeClassName",
)  # fmt: skip
"""What is carried over from a pod as it is."""
_DEFAULTS: Mapping[str, Any] = {"schedulerName": "default-scheduler"}
_POD_SEEN = frozenset((
    "containers", "volumes", "restartPolicy", "serviceAccount", "enableServiceLinks", "hostNetwork", "priority",
    "terminationGracePeriodSeconds", "securityContext", "serviceAccountName",
))  # fmt: skip
"""What is looked at elsewhere, or is kdns's own in any case."""
_CONTAINER_SEEN = frozenset((
    "image", "imagePullPolicy", "command", "name", "args", "env", "envFrom", "ports", "resources", "volumeMounts",
    "livenessProbe", "readinessProbe", "startupProbe", "terminationMessagePath", "terminationMessagePolicy",
    "securityContext", "workingDir",
))  # fmt: skip


@dataclass(slots=True)
class Plan:
    """What becomes of CoreDNS or of NodeLocal DNSCache.

    part: "cluster" or "node". origin: what its Corefile is in. files: what to write, by name; none if something is in
    the way.
    """

    part: str
    origin: str
    findings: list[Finding] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)

    def carried(self, where: str, what: str, *why: str) -> None:
        """Note what goes on as it was."""
        self.findings.append(Finding(where, Verdict.CARRIED, what, why))

    def replaced(self, where: str, what: str, *why: str) -> None:
        """Note what kdns has one of its own of."""
        self.findings.append(Finding(where, Verdict.REPLACED, what, why))

    def left_out(self, where: str, what: str, *why: str) -> None:
        """Note what somebody may miss."""
        self.findings.append(Finding(where, Verdict.LEFT_OUT, what, why))

    def refused(self, where: str, what: str, *why: str) -> None:
        """Note what stands in the way."""
        self.findings.append(Finding(where, Verdict.UNSUPPORTED, what, why))

    @property
    def verdict(self) -> Verdict:
        """What becomes of it as a whole."""
        found = {finding.verdict for finding in self.findings}
        if Verdict.UNSUPPORTED in found:
            return Verdict.UNSUPPORTED
        return Verdict.DIFFERS if found & {Verdict.DIFFERS, Verdict.LEFT_OUT} else Verdict.UNCHANGED


# Pods


def pod(plan: Plan, theirs: Pod, template: Data) -> None:
    """Carry over where a pod may run, and what it is called by."""
    where, ours = theirs.workload.title, template["spec"]
    for name in _POD:
        value = theirs.spec.get(name)
        if value not in (None, [], {}, _DEFAULTS.get(name)):
            ours[name] = value
            plan.carried(where, f"{name}: {shown(value)}", *_in_the_way(name, value))
    annotations = kept_annotations(part(theirs.template, "metadata"))
    for name in [name for name in annotations if str(name).startswith(_OF_CONTAINER)]:
        plan.left_out(where, f"annotation {name}: {annotations.pop(name)}", "kdns's pods have no such container")
    if annotations:
        template["metadata"]["annotations"] = annotations
        plan.carried(where, f"annotations: {', '.join(annotations)}")
    for name in theirs.others:
        plan.left_out(where, f"container {name}")
    for name, value in theirs.spec.items():
        if name not in _POD and name not in _POD_SEEN and value not in (None, False, [], {}):
            plan.left_out(where, f"{name}: {shown(value)}")


def _in_the_way(name: str, value: Any) -> Iterator[str]:
    """Conditions under which pods of kdns may find no place while the others are there."""
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    apart = name == "affinity" and part(value, "podAntiAffinity").get(required)
    spread = name == "topologySpreadConstraints" and any(
        each.get("whenUnsatisfiable") == "DoNotSchedule" for each in value
    )
    if apart or spread:
        yield "it counts the pods of CoreDNS too: those of kdns may have to wait until there are fewer"


def container(plan: Plan, theirs: Pod, ours: Data) -> None:
    """Carry over image, environment and resources of a container."""
    where, found = theirs.workload.title, theirs.container
    image = str(found.get("image", ""))
    if PurePosixPath(image.partition("@")[0]).name.partition(":")[0].endswith(("coredns", "node-cache")):
        plan.replaced(where, f"image: {image}", f"it is {ours['image']}")
    else:
        told = f"it is {ours['image']}, without what may have been compiled into the other"
        plan.left_out(where, f"image: {image}", told)
    _environment(plan, where, found, ours)
    _resources(plan, where, part(found, "resources"), ours["resources"])
    if found.get("workingDir"):
        ours["workingDir"] = found["workingDir"]
        plan.carried(where, f"workingDir: {found['workingDir']}")
    for name, value in found.items():
        if name not in _CONTAINER_SEEN and value not in (None, False, [], {}):
            plan.left_out(where, f"{name}: {shown(value)}")


def _environment(plan: Plan, where: str, theirs: Data, ours: Data) -> None:
    own = {each["name"] for each in items(ours, "env")}
    for each in items(theirs, "env"):
        name = str(each.get("name"))
        if name in _OF_GO:
            plan.replaced(where, f"env {name}", "it means something to Go only")
        elif name not in own:
            ours.setdefault("env", []).append(each)
            plan.carried(where, f"env {name}")
    if sources := items(theirs, "envFrom"):
        ours["envFrom"] = sources
        plan.carried(where, f"envFrom: {shown(sources)}", "the values are not known here, and taken to be empty")


def _resources(plan: Plan, where: str, theirs: Data, ours: Data) -> None:
    """Theirs, but never less memory than our manifests have."""
    for kind in ("requests", "limits"):
        for name, value in part(theirs, kind).items():
            own = part(ours, kind).get(name)
            what = f"resources: {kind}: {name}: {value}"
            if name == "memory" and own is not None and _number(value) < _number(own):
                plan.replaced(where, what, f"it is {own}: kdns has several processes")
                continue
            ours.setdefault(kind, {})[name] = value
            plan.carried(where, what)
    for name, limit in part(ours, "limits").items():  # Kubernetes takes no request above its limit
        request = part(ours, "requests").get(name)
        if request is not None and _number(request) > _number(limit):
            kind, value = ("limits", request) if name in part(theirs, "requests") else ("requests", limit)
            ours[kind][name] = value
            plan.replaced(where, f"resources: {kind}: {name}", f"it is {value}: no request may be above its limit")


def _number(quantity: object) -> float:
    match = _QUANTITY.fullmatch(str(quantity))
    return float(match[1]) * _SIZES[match[2]] if match and match[2] in _SIZES else 0.0


def kept_annotations(metadata: Mapping[str, Any]) -> Data:
    """Those that people have made."""
    return {key: value for key, value in part(metadata, "annotations").items() if not _FORGOTTEN.match(str(key))}


def clean(data: Data) -> Data:
    """An object without what the cluster adds to it."""
    metadata = part(data, "metadata")
    kept: Data = {key: metadata[key] for key in ("name", "namespace", "labels") if key in metadata}
    if annotations := kept_annotations(metadata):
        kept["annotations"] = annotations
    return {"apiVersion": data.get("apiVersion", "v1"), "kind": data["kind"], "metadata": kept, "spec": data["spec"]}


# Text


def shown(value: Any) -> str:
    """A value in a line."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def load(name: str) -> list[Data]:
    """The objects of one of our manifests."""
    return [each for each in yaml.safe_load_all((MANIFESTS / name).read_text()) if each is not None]


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, and lists indented, as in our manifests."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def dump(documents: Sequence[Data], origin: str) -> str:
    """Objects as YAML. origin: what they were made from."""
    text = yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)
    return HEADER.format(origin=origin) + text


def configmap(name: str, data: Data, labels: Mapping[str, str]) -> Data:
    """A ConfigMap of ours."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": dict(labels)}, "data": data}


def kustomization(namespace: str, configmap: str, labels: Mapping[str, str], files: Iterable[str]) -> Data:
    """Files with objects, and a ConfigMap of that name with the Corefile."""
    options = {"disableNameSuffixHash": True, "labels": dict(labels)}
    generator = {"name": configmap, "namespace": namespace, "files": [COREFILE], "options": options}
    resources = {"resources": found} if (found := list(files)) else {}
    head = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    return {**head, **resources, "configMapGenerator": [generator]}
