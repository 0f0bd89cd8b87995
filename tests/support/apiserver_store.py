"""The part of the test API server that plays etcd: objects with one global revision, and their history.

An object is kept as the JSON that is sent. `kind` and `apiVersion` are not in it: items of a list of built-in types
do not have them, and the objects of watch events do.
"""

from __future__ import annotations

import bisect
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

Object = dict[str, Any]

ADDED, MODIFIED, DELETED = "ADDED", "MODIFIED", "DELETED"
CREATED_AT = "2026-01-02T03:04:05Z"
_MARK = b'"resourceVersion":"'
_SNAPSHOTS_KEPT = 4
_FIELDS = {"Pod": {"status.phase", "spec.nodeName"}, "Namespace": {"status.phase"}}


class StoreError(Exception):
    """An object that cannot be created, changed or deleted."""


class ExpiredError(Exception):
    """The history has been compacted beyond the revision that was asked for."""


class SelectorError(ValueError):
    """A label or field selector that cannot be understood."""


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of object and where the API has it."""

    plural: str
    kind: str
    version: str = "v1"
    """As in apiVersion."""
    namespaced: bool = True
    custom: bool = False
    """Made by a CustomResourceDefinition: absent until installed, and its items in a list name their kind."""

    @property
    def root(self) -> str:
        """The path of its group and version."""
        return f"/api/{self.version}" if "/" not in self.version else f"/apis/{self.version}"

    @property
    def group(self) -> str:
        """Of its version; empty for the core."""
        return self.version.rpartition("/")[0]

    @property
    def prefix(self) -> bytes:
        """What replaces the opening brace of a stored object where kind and apiVersion are sent."""
        return b'{"kind":"%s","apiVersion":"%s",' % (self.kind.encode(), self.version.encode())


RESOURCES = (
    Resource("services", "Service"),
    Resource("namespaces", "Namespace", namespaced=False),
    Resource("pods", "Pod"),
    Resource("endpointslices", "EndpointSlice", "discovery.k8s.io/v1"),
    Resource("configmaps", "ConfigMap"),
    Resource("serviceaccounts", "ServiceAccount"),
    Resource("deployments", "Deployment", "apps/v1"),
    Resource("daemonsets", "DaemonSet", "apps/v1"),
    Resource("poddisruptionbudgets", "PodDisruptionBudget", "policy/v1"),
    Resource("horizontalpodautoscalers", "HorizontalPodAutoscaler", "autoscaling/v2"),
    Resource("roles", "Role", "rbac.authorization.k8s.io/v1"),
    Resource("rolebindings", "RoleBinding", "rbac.authorization.k8s.io/v1"),
    Resource("clusterroles", "ClusterRole", "rbac.authorization.k8s.io/v1", namespaced=False),
    Resource("clusterrolebindings", "ClusterRoleBinding", "rbac.authorization.k8s.io/v1", namespaced=False),
    Resource("serviceimports", "ServiceImport", "multicluster.x-k8s.io/v1alpha1", custom=True),
    Resource("servicemonitors", "ServiceMonitor", "monitoring.coreos.com/v1", custom=True),
    Resource("prometheusrules", "PrometheusRule", "monitoring.coreos.com/v1", custom=True),
)
BY_KIND = {resource.kind: resource for resource in RESOURCES}


@dataclass(frozen=True, slots=True)
class Target:
    """What a path names."""

    resource: Resource
    namespace: str
    name: str
    """Empty: the collection."""

    @property
    def key(self) -> str:
        """Of the object in the store."""
        return f"{self.namespace}/{self.name}" if self.resource.namespaced else self.name


@dataclass(frozen=True, slots=True)
class Entry:
    """An object at one revision."""

    key: str
    """`namespace/name`, or `name`."""
    labels: Mapping[str, str]
    fields: Mapping[str, str]
    """What field selectors can ask for."""
    uid: str
    revision: int
    data: bytes
    at: int
    """Where in `data` the resourceVersion's digits begin."""

    def at_revision(self, revision: int) -> bytes:
        """The object with another resourceVersion: the last state of a deleted one has that of its deletion."""
        return self.data[: self.at] + b"%d" % revision + self.data[self.at + len(str(self.revision)) :]


@dataclass(frozen=True, slots=True)
class Event:
    """A change: entry is None for a deletion, old is None for a creation."""

    revision: int
    resource: Resource
    key: str
    entry: Entry | None
    old: Entry | None


@dataclass(frozen=True, slots=True)
class Scope:
    """What a list or watch selects."""

    resource: Resource
    namespace: str = ""
    """Empty: all."""
    labels: Callable[[Mapping[str, str]], bool] | None = None
    fields: Callable[[Mapping[str, str]], bool] | None = None

    @property
    def selects(self) -> bool:
        """Whether there is a selector."""
        return self.labels is not None or self.fields is not None

    def has(self, entry: Entry | None) -> bool:
        """Whether an object is selected; False for none."""
        return (
            entry is not None
            and (not self.namespace or entry.fields["metadata.namespace"] == self.namespace)
            and (self.labels is None or self.labels(entry.labels))
            and (self.fields is None or self.fields(entry.fields))
        )

    def event(self, event: Event) -> tuple[str, bytes] | None:
        """Type and object of the watch event for a change; None if the change is outside of the scope.

        An object that starts to match is ADDED, one that no longer does is DELETED in its last matching state.
        """
        had, has = self.has(event.old), self.has(event.entry)
        if has and event.entry is not None:
            return (MODIFIED if had else ADDED), self.resource.prefix + event.entry.data[1:]
        if had and event.old is not None:
            return DELETED, self.resource.prefix + event.old.at_revision(event.revision)[1:]
        return None


@dataclass(slots=True)
class Snapshot:
    """All objects of a resource at one revision."""

    revision: int
    keys: list[str]
    """Sorted, as etcd lists them."""
    entries: Mapping[str, Entry]


@dataclass(slots=True)
class _Table:
    entries: dict[str, Entry] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    keys: list[str] | None = None


class Store:
    """Objects of all resources. `revision` is that of the last change; `compacted` the newest that is forgotten."""

    def __init__(self, revision: int = 1000) -> None:
        self.revision = revision
        self.compacted = 0
        self.managed_fields = False
        """Whether objects that are written get the bulk that server-side apply leaves in real ones."""
        self._made = 0
        self._tables = {resource.kind: _Table() for resource in RESOURCES}
        self._snapshots: dict[tuple[str, int], Snapshot] = {}

    def count(self, resource: Resource) -> int:
        """How many objects there are."""
        return len(self._tables[resource.kind].entries)

    def get(self, resource: Resource, key: str) -> Entry | None:
        """An object as it is now."""
        return self._tables[resource.kind].entries.get(key)

    def write(self, operation: str, item: Object) -> Event:
        """create, update, apply (either of them) or delete. Raises StoreError."""
        resource = BY_KIND.get(item.get("kind", ""))
        if resource is None:
            raise StoreError(f"no such kind: {item.get('kind')!r}")
        metadata = item["metadata"]
        key = f"{metadata['namespace']}/{metadata['name']}" if resource.namespaced else metadata["name"]
        table = self._tables[resource.kind]
        old = table.entries.get(key)
        if operation not in ("create", "update", "apply", "delete"):
            raise StoreError(f"unknown operation {operation!r}")
        if (operation == "create" and old is not None) or (operation in ("update", "delete") and old is None):
            raise StoreError(f"cannot {operation} {resource.kind} {key}: it is {'absent' if old is None else 'there'}")
        self.revision += 1
        entry = None if operation == "delete" else self._entry(resource, key, item, old)
        if entry is None:
            del table.entries[key]
        else:
            table.entries[key] = entry
        if entry is None or old is None:
            table.keys = None
        event = Event(self.revision, resource, key, entry, old)
        table.events.append(event)
        return event

    def _entry(self, resource: Resource, key: str, item: Object, old: Entry | None) -> Entry:
        given = item["metadata"]
        self._made += old is None
        metadata = {
            "name": given["name"],
            **({"namespace": given["namespace"]} if resource.namespaced else {}),
            "uid": old.uid if old else given.get("uid") or str(uuid.UUID(int=self._made, version=4)),
            "resourceVersion": str(self.revision),
            "creationTimestamp": given.get("creationTimestamp", CREATED_AT),
        }
        metadata |= {name: value for name, value in given.items() if name not in metadata}
        rest = {name: value for name, value in item.items() if name not in ("kind", "apiVersion", "metadata")}
        if resource.kind == "Namespace":
            metadata["labels"] = metadata.get("labels", {}) | {"kubernetes.io/metadata.name": given["name"]}
            rest = {"spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}} | rest
        if self.managed_fields:
            metadata["managedFields"] = _managed_fields(resource, item)
        data = msgspec.json.encode({"metadata": metadata} | rest)
        fields = {"metadata.name": given["name"], "metadata.namespace": given.get("namespace", "")}
        if resource.kind in ("Pod", "Namespace"):
            fields["status.phase"] = rest.get("status", {}).get("phase", "")
        if resource.kind == "Pod":
            fields["spec.nodeName"] = rest.get("spec", {}).get("nodeName", "")
        labels = metadata.get("labels") or {}
        at = data.index(_MARK) + len(_MARK)
        return Entry(key, labels, fields, metadata["uid"], self.revision, data, at)

    def after(self, resource: Resource, revision: int) -> list[Event]:
        """The changes since a revision. Raises ExpiredError."""
        if revision < self.compacted:
            raise ExpiredError
        events = self._tables[resource.kind].events
        return events[bisect.bisect_right(events, revision, key=lambda event: event.revision) :]

    def snapshot(self, resource: Resource, revision: int | None = None) -> Snapshot:
        """The objects now, or at an earlier revision. Raises ExpiredError."""
        revision = self.revision if revision is None else revision
        undone = self.after(resource, revision)
        table = self._tables[resource.kind]
        if not undone:
            table.keys = sorted(table.entries) if table.keys is None else table.keys
            return Snapshot(revision, table.keys, table.entries)
        if (resource.kind, revision) not in self._snapshots:
            entries = dict(table.entries)
            for event in reversed(undone):
                if event.old is None:
                    del entries[event.key]
                else:
                    entries[event.key] = event.old
            while len(self._snapshots) >= _SNAPSHOTS_KEPT:
                del self._snapshots[next(iter(self._snapshots))]
            self._snapshots[resource.kind, revision] = Snapshot(revision, sorted(entries), entries)
        return self._snapshots[resource.kind, revision]

    def compact(self, revision: int | None = None) -> int:
        """Forget the history up to a revision (now, unless given), as etcd does every five minutes; returns it."""
        self.compacted = max(self.compacted, self.revision if revision is None else revision)
        for table in self._tables.values():
            del table.events[: bisect.bisect_right(table.events, self.compacted, key=lambda event: event.revision)]
        self._snapshots.clear()
        return self.compacted

    def clear(self, resource: Resource) -> None:
        """Forget a resource, history included: its CustomResourceDefinition was deleted."""
        self.revision += 1
        self._tables[resource.kind] = _Table()


def _managed_fields(resource: Resource, item: Object) -> list[Object]:
    owner = "endpointslice-controller" if resource.kind == "EndpointSlice" else "kube-controller-manager"
    labels: Object = {f"f:{label}": {} for label in item["metadata"].get("labels", {})}
    parts: Object = {f"f:{part}": {} for part in item if part not in ("kind", "apiVersion", "metadata")}
    spec: Object = {f"f:{part}": {".": {}} for part in item.get("spec", {})}
    fields = {"f:metadata": {"f:labels": {".": {}} | labels, "f:generateName": {}}, **parts, "f:spec": spec}
    common = {"apiVersion": resource.version, "operation": "Update", "time": CREATED_AT, "fieldsType": "FieldsV1"}
    return [{"manager": owner, "fieldsV1": fields, **common}]


# Selectors (Kubernetes documentation: Labels and Selectors; Field Selectors)

_LABEL = re.compile(
    r"\s*(?:(?P<absent>!)\s*)?(?P<key>[\w./-]+)\s*"
    r"(?:(?P<sign>==|=|!=)\s*(?P<value>[\w.-]*)|\s(?P<set>in|notin)\s*\((?P<values>[^)]*)\))?\s*(?:,|$)"
)


def label_selector(text: str) -> Callable[[Mapping[str, str]], bool] | None:
    """Equality and set based requirements, all of which have to hold; None if there is none. Raises SelectorError."""
    tests: list[Callable[[Mapping[str, str]], bool]] = []
    at = 0
    while at < len(text):
        found = _LABEL.match(text, at)
        if found is None or (found["absent"] and (found["sign"] or found["set"])):
            raise SelectorError(f"unable to parse requirement: {text[at:]!r}")
        tests.append(_label_test(found))
        at = found.end()
    return (lambda labels: all(test(labels) for test in tests)) if tests else None


def _label_test(found: re.Match[str]) -> Callable[[Mapping[str, str]], bool]:
    key = found["key"]
    if found["absent"]:
        return lambda labels: key not in labels
    if not found["sign"] and not found["set"]:
        return lambda labels: key in labels
    values = {found["value"]} if found["sign"] else {value.strip() for value in found["values"].split(",")}
    if found["sign"] == "!=" or found["set"] == "notin":
        return lambda labels: labels.get(key) not in values
    return lambda labels: labels.get(key) in values


def field_selector(text: str, resource: Resource) -> Callable[[Mapping[str, str]], bool] | None:
    """`metadata.name`, `metadata.namespace`, `status.phase` of Pods and Namespaces, `spec.nodeName` of Pods.

    Raises SelectorError.
    """
    wanted: list[tuple[str, bool, str]] = []
    known = {"metadata.name", "metadata.namespace"} | _FIELDS.get(resource.kind, set())
    for part in filter(None, text.split(",")):
        name, sign, value = re.match(r"([^=!]*)(==|=|!=|$)(.*)", part, re.DOTALL).groups()  # type: ignore[union-attr]
        if not sign:
            raise SelectorError(f"invalid selector: {part!r}; can't understand {part!r}")
        if name not in known:
            raise SelectorError(f"field label not supported: {name}")
        wanted.append((name, sign != "!=", value))
    if not wanted:
        return None
    return lambda fields: all((fields[name] == value) is equal for name, equal, value in wanted)
