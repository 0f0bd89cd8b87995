"""What a cluster has of CoreDNS or NodeLocal DNSCache: objects from files or the API, and the files of their pods."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, TypeAlias

import yaml

from kdns.cluster.connection import Access, Connection
from kdns.errors import ApiError, KdnsError
from kdns.tools.corefiles import Source

Data: TypeAlias = dict[str, Any]
MAX_FILE = 64 << 20
SILENCE_SECONDS = 30.0
WORKLOADS = ("Deployment", "DaemonSet", "StatefulSet")
_PLACEHOLDER = "192.0.2.1"
"""What a variable of the container is taken for that is an address of the pod or node."""


@dataclass(frozen=True, slots=True)
class KubeObject:
    """An object, and where it was found. file: a file's name, or the API. texts: places of a ConfigMap's texts, by key:
    the name for messages, and the line in which the text begins."""

    data: Data
    file: str
    texts: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Such as Deployment."""
        return str(self.data.get("kind", ""))

    @property
    def name(self) -> str:
        """Of its metadata."""
        return str(part(self.data, "metadata").get("name", ""))

    @property
    def namespace(self) -> str:
        """Of its metadata; kube-system if it tells none."""
        return str(part(self.data, "metadata").get("namespace") or "kube-system")

    def is_beside(self, other: KubeObject) -> bool:
        """Whether both are in one namespace. One that tells none is where the other is."""
        told = [part(each.data, "metadata").get("namespace") for each in (self, other)]
        return not all(told) or told[0] == told[1]

    @property
    def title(self) -> str:
        """For messages: `Deployment kube-system/coredns`."""
        return f"{self.kind} {self.namespace}/{self.name}"

    def source(self, key: str, path: str) -> Source:
        """A text of a ConfigMap as a file of a pod."""
        name, line = self.texts.get(key, (f"{self.title}, {key}", 1))
        text = part(self.data, "data")[key]
        return Source(path, "" if text is None else str(text), name, line)


def part(data: Mapping[str, Any], *path: str) -> Data:
    """What stands at a path of keys if that is an object, else an empty one."""
    for key in path:
        found = data.get(key)
        data = found if isinstance(found, dict) else {}
    return dict(data)


def items(data: Mapping[str, Any], key: str) -> list[Data]:
    """The objects of a list; none if there is no list."""
    found = data.get(key)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


# Objects of files


def read(text: str, file: str) -> list[KubeObject] | None:
    """The objects of YAML or JSON: documents, lists of objects. None if it is something else, as a Corefile is.

    Raises KdnsError for what begins as objects do and cannot be read.
    """
    try:
        nodes = [node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if node is not None]
        documents = [(node, data) for node in nodes if (data := _construct(node)) is not None]
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if "apiVersion" not in text:
            return None
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "it is not YAML or JSON"
        raise KdnsError(f"{file}:{mark.line + 1 if mark else 1}: {problem}; accepted: objects of Kubernetes") from None
    others = [node for node, data in documents if not isinstance(data, dict) or "kind" not in data]
    if len(others) == len(documents):
        return None
    if others:
        line = others[0].start_mark.line + 1
        raise KdnsError(f"{file}:{line}: this document has no kind; accepted: objects of Kubernetes")
    return [found for node, data in documents for found in _objects(node, data, file)]


def _construct(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _objects(node: yaml.Node, data: Data, file: str) -> Iterator[KubeObject]:
    """One object, or those of a list."""
    if not str(data["kind"]).endswith("List"):
        yield KubeObject(data, file, dict(_texts(node, data, file)))
        return
    inner = _value(node, "items")
    nodes = inner.value if isinstance(inner, yaml.SequenceNode) else []
    for each, item in zip(nodes, items(data, "items"), strict=False):
        item.setdefault("kind", str(data["kind"]).removesuffix("List"))
        yield from _objects(each, item, file)


def _texts(node: yaml.Node, data: Data, file: str) -> Iterator[tuple[str, tuple[str, int]]]:
    """Where the texts of a ConfigMap stand: in a block (`|`) each line has a line of the file."""
    inner = _value(node, "data")
    for key, value in inner.value if isinstance(inner, yaml.MappingNode) else []:
        if isinstance(value, yaml.ScalarNode) and value.style == "|":
            yield str(key.value), (file, value.start_mark.line + 2)
        else:
            yield str(key.value), (f"{file} ({part(data, 'metadata').get('name', '')}, {key.value})", 1)


def _value(node: yaml.Node, key: str) -> yaml.Node | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((value for name, value in pairs if name.value == key), None)


# Objects of an API


class _Unwatched:
    """An observer of a connection who does not care."""

    def request(self, verb: str, host: str, code: str, seconds: float) -> None:
        """A request has its answer's headers."""

    def throttled(self, verb: str, host: str, seconds: float) -> None:
        """A request has waited."""


def of_kubeconfig(access: Access, namespace: str) -> tuple[list[KubeObject], list[str]]:
    """What a namespace of a cluster has, as `fetch` says. Raises ApiError."""
    connection = Connection(access, _Unwatched())
    try:
        return fetch(connection, namespace)
    finally:
        connection.close()


def fetch(connection: Connection, namespace: str) -> tuple[list[KubeObject], list[str]]:
    """What a namespace has of CoreDNS and NodeLocal DNSCache, and what could not be looked at, a sentence each.

    Raises ApiError if the workloads, Services or ConfigMaps cannot be read.
    """
    base, apps = f"/api/v1/namespaces/{namespace}", f"/apis/apps/v1/namespaces/{namespace}"
    found: list[KubeObject] = []
    left_out: list[str] = []
    for path, kind, needed in (
        (f"{apps}/deployments", "Deployment", True),
        (f"{apps}/daemonsets", "DaemonSet", True),
        (f"{base}/services", "Service", True),
        (f"/apis/autoscaling/v2/namespaces/{namespace}/horizontalpodautoscalers", "HorizontalPodAutoscaler", False),
        (f"/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets", "PodDisruptionBudget", False),
    ):
        try:
            for item in items(_get(connection, path), "items"):
                found.append(KubeObject({**item, "kind": kind}, "the API"))
        except ApiError as error:
            if needed or error.reason not in ("forbidden", "not_found"):
                raise
            left_out.append(f"{error}: not looked at")
    names = {name for each in found if is_coredns(each) or is_node_cache(each) for name in Pod(each).configmaps()}
    for name in sorted(names):
        try:
            data = {**_get(connection, f"{base}/configmaps/{name}"), "kind": "ConfigMap"}
            found.append(KubeObject(data, "the API"))
        except ApiError as error:
            if error.reason != "not_found":
                raise
            metadata = {"name": name, "namespace": namespace}
            found.append(KubeObject({"kind": "ConfigMap", "metadata": metadata, "data": {}}, "the API"))
    return found, left_out


def _get(connection: Connection, path: str) -> Data:
    answer = connection.get(path, {}, silence=SILENCE_SECONDS)
    body = answer.read(MAX_FILE)
    reasons = {401: "unauthorized", 403: "forbidden", 404: "not_found", 429: "throttled"}
    try:
        data = json.loads(body)
    except ValueError:
        data = {}
    if answer.status != 200 or not isinstance(data, dict):
        told = part({"it": data}, "it").get("message") or f"HTTP {answer.status}"
        accepted = "; the role needs get and list" if answer.status == 403 else ""
        raise ApiError(f"{path}: {told}{accepted}", reasons.get(answer.status, "server"))
    return data


# What is what


class Pod:
    """The pod that a workload makes, and the container in it that is CoreDNS or node-cache."""

    def __init__(self, workload: KubeObject) -> None:
        self.workload = workload
        self.template = part(workload.data, "spec", "template")
        self.spec = part(self.template, "spec")
        containers = items(self.spec, "containers")
        self.container = next(filter(_is_dns, containers), containers[0] if containers else {})
        self.others = [str(each.get("name")) for each in containers if each is not self.container]
        self.flags = dict(_flags([*strings(self.container, "command"), *strings(self.container, "args")]))

    @property
    def labels(self) -> dict[str, str]:
        """Those of the pod."""
        return {str(key): str(value) for key, value in part(self.template, "metadata", "labels").items()}

    def mounts(self) -> list[tuple[Data, Data]]:
        """Each mount of the container, and its volume."""
        volumes = {str(volume.get("name")): volume for volume in items(self.spec, "volumes")}
        found = items(self.container, "volumeMounts")
        return [(mount, volumes[str(mount.get("name"))]) for mount in found if str(mount.get("name")) in volumes]

    def configmaps(self) -> list[str]:
        """The names of all ConfigMaps that it mounts."""
        return [name for _, volume in self.mounts() for name, _ in configmaps(volume)]

    def files(self, found: Iterable[KubeObject]) -> list[tuple[Source, KubeObject, str]]:
        """The files that ConfigMaps give it, as far as those are known: file, ConfigMap and key."""
        known = {each.name: each for each in found if each.kind == "ConfigMap" and each.is_beside(self.workload)}
        return [
            (known[name].source(key, path), known[name], key)
            for mount, volume in self.mounts()
            for name, keys in configmaps(volume)
            if name in known
            for key, file in (keys or {key: key for key in part(known[name].data, "data")}).items()
            if key in part(known[name].data, "data")
            if (path := _mounted(mount, file)) is not None
        ]

    def environ(self) -> dict[str, str]:
        """The container's variables, as far as they are known here."""
        found = {}
        for each in items(self.container, "env"):
            source = part(each, "valueFrom", "fieldRef").get("fieldPath", "")
            value = _PLACEHOLDER if str(source).endswith("IP") else "node" if source else str(each.get("value") or "")
            found[str(each.get("name"))] = value
        return found


def _mounted(mount: Data, file: str) -> str | None:
    """Where a file of a volume is in the pod; None if a subPath leaves it out."""
    place, sub = str(mount.get("mountPath", "")).rstrip("/"), str(mount.get("subPath") or "")
    if not sub:
        return f"{place}/{file}"
    return place if sub == file else None


def configmaps(volume: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """The ConfigMaps of a volume: name, and the file of each key that is chosen; {} for all keys."""
    sources = [part(each, "configMap") for each in items(part(volume, "projected"), "sources") if "configMap" in each]
    for source in [part(volume, "configMap"), *sources]:
        if source.get("name"):
            yield str(source["name"]), {str(each["key"]): str(each["path"]) for each in items(source, "items")}


def strings(data: Mapping[str, Any], key: str) -> list[str]:
    """A list of strings; empty if there is none."""
    found = data.get(key)
    return list(map(str, found)) if isinstance(found, list) else []


def _flags(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Go's flags: -name value, -name=value, with one dash or two; a switch has an empty value."""
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("-"):
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if not equals and left and not left[0].startswith("-"):
            value = left.pop(0)
        yield name, value


def _is_dns(container: Mapping[str, Any]) -> bool:
    image = PurePosixPath(str(container.get("image", "")).partition("@")[0]).name
    words = (image, str(container.get("name", "")))
    return any("coredns" in word or "node-cache" in word or word == "dns" for word in words)


def is_node_cache(workload: KubeObject) -> bool:
    """Whether it is NodeLocal DNSCache."""
    if workload.kind not in WORKLOADS:
        return False
    pod = Pod(workload)
    return "localip" in pod.flags or "node-cache" in str(pod.container.get("image", ""))


def is_coredns(workload: KubeObject) -> bool:
    """Whether it is CoreDNS."""
    if workload.kind not in WORKLOADS or is_node_cache(workload):
        return False
    pod = Pod(workload)
    return _is_dns(pod.container) and ("conf" in pod.flags or "coredns" in str(pod.container.get("image", "")))


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector (matchLabels, matchExpressions) selects these labels."""
    wanted = part(selector, "matchLabels").items()
    return all(labels.get(str(key)) == str(value) for key, value in wanted) and all(
        _expression(each, labels) for each in items(selector, "matchExpressions")
    )


def _expression(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, values = str(expression.get("key")), strings(expression, "values")
    match expression.get("operator"):
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
    return key not in labels
