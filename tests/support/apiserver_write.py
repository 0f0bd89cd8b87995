"""The part of the test API server that takes objects over HTTP: create, update, patch, delete, and what it refuses.

Objects of Kubernetes itself are validated against the schemas of VALIDATED, strictly: a field that is unknown is an
error. A patch is an apply (Server-Side Apply of one manager, who wins every conflict) or a merge patch (RFC 7386).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
import yaml

from tests.support.apiserver_http import RefusedError, Request
from tests.support.apiserver_store import BY_KIND, Entry, Object, Resource, Store, Target

VALIDATED = "1.34"
VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
APPLY, MERGE = "application/apply-patch+yaml", "application/merge-patch+json"
SERVICE_RANGE = "10.96"
"""Services that name no address get one of 10.96.128.0/17."""


class Writer:
    """Turns requests into writes of the store."""

    def __init__(self) -> None:
        self._applied: dict[str, Object] = {}
        self._numbers = itertools.count(1)

    def take(self, store: Store, found: Target, request: Request) -> tuple[str, Object]:
        """The operation of the store that a request stands for. Raises RefusedError."""
        old = store.get(found.resource, found.key)
        kind = request.headers.get("content-type", "")
        if request.method == "POST":
            return "create", self._new(store, found, _read(request))
        if (request.method, kind) == ("PATCH", APPLY):
            if "fieldManager" not in request.query:
                raise RefusedError(400, "PatchOptions.meta.k8s.io is invalid: fieldManager is required for apply patch")
            return "apply" if old else "create", self._apply(store, found, _read(request), old)
        if old is None:
            raise RefusedError(404, f'{found.resource.plural} "{found.name}" not found')
        if request.method == "DELETE":
            return "delete", object_of(found.resource, old)
        if request.method == "PUT":
            return "update", self._checked(store, found, _unchanged(found, old, _read(request)))
        if kind != MERGE:
            raise RefusedError(415, f"the body of the request was in an unknown format - accepted: {APPLY}, {MERGE}")
        return "update", self._checked(store, found, merged(object_of(found.resource, old), _read(request)))

    def _new(self, store: Store, found: Target, item: Object) -> Object:
        made = self._checked(store, found, item)
        name = made["metadata"]["name"]
        if store.get(found.resource, replace(found, name=name).key):
            raise RefusedError(409, f'{found.resource.plural} "{name}" already exists', "AlreadyExists")
        return made

    def _apply(self, store: Store, found: Target, item: Object, old: Entry | None) -> Object:
        """What the manager has applied before and has no more goes; what others have set stays."""
        key = f"{found.resource.kind} {found.key}"
        rest = _without(object_of(found.resource, old), self._applied.get(key, {})) if old is not None else {}
        made = self._checked(store, found, merged(rest, item))
        self._applied[key] = item
        return made

    def _checked(self, store: Store, found: Target, item: Object) -> Object:
        """An object that belongs where it was sent, has a namespace that is there, and is valid."""
        resource = found.resource
        given = item.get("apiVersion"), item.get("kind")
        if given != (resource.version, resource.kind):
            wanted = f"apiVersion {resource.version}, kind {resource.kind}"
            raise RefusedError(400, f"the API version or kind in the data {given} is not that of the URL: {wanted}")
        metadata = item.setdefault("metadata", {})
        if found.name and metadata.get("name") != found.name:
            raise RefusedError(
                400, f"the name of the object ({metadata.get('name')}) is not that of the URL ({found.name})"
            )
        if not metadata.get("name"):
            raise RefusedError(422, "metadata.name: Required value: name or generateName is required")
        if metadata.setdefault("namespace", found.namespace) != found.namespace:
            raise RefusedError(400, f"the namespace of the object ({metadata['namespace']}) does not match that of the"
                               f" request ({found.namespace})")  # fmt: skip
        if not resource.namespaced:
            del metadata["namespace"]
        elif store.get(BY_KIND["Namespace"], found.namespace) is None:
            raise RefusedError(404, f'namespaces "{found.namespace}" not found')
        if not resource.custom:
            _validate(item)
        if resource.kind == "Service":
            self._give_address(item["spec"])
        return item

    def _give_address(self, spec: Object) -> None:
        if spec.get("type", "ClusterIP") != "ExternalName":
            spec.setdefault("clusterIP", f"{SERVICE_RANGE}.128.{next(self._numbers)}")
            spec.setdefault("clusterIPs", [spec["clusterIP"]])


def _read(request: Request) -> Object:
    """The body: JSON, or YAML where it says so. Raises RefusedError."""
    try:
        if "yaml" in request.headers.get("content-type", ""):
            found = yaml.safe_load(request.body)
        else:
            found = msgspec.json.decode(request.body)
    except (yaml.YAMLError, msgspec.DecodeError) as error:
        raise RefusedError(400, f"the object provided is unrecognized: {error}") from None
    if not isinstance(found, dict):
        raise RefusedError(400, "the object provided is no object")
    return found


def _unchanged(found: Target, old: Entry, item: Object) -> Object:
    """An update that names the version it is made of is refused if there is another one."""
    if item.get("metadata", {}).get("resourceVersion", str(old.revision)) != str(old.revision):
        raise RefusedError(
            409,
            f'Operation cannot be fulfilled on {found.resource.plural} "{found.name}": the object has been modified;'
            " please apply your changes to the latest version and try again",
            "Conflict",
        )
    return item


def _validate(item: Object) -> None:
    import kubernetes_validate  # a third of the start of a server that nobody may write to

    try:
        kubernetes_validate.validate(item, VALIDATED, strict=True)
    except kubernetes_validate.ValidationError as error:
        raise RefusedError(400, f"strict decoding error: {error.json_path}: {error.message}") from None


def object_of(resource: Resource, entry: Entry) -> Object:
    """A stored object, whole."""
    item: Object = msgspec.json.decode(resource.prefix + entry.data[1:])
    return item


def merged(old: Any, patch: Any) -> Any:
    """A merge patch's result (RFC 7386 2)."""
    if not isinstance(patch, dict):
        return patch
    made = dict(old) if isinstance(old, dict) else {}
    for name, value in patch.items():
        if value is None:
            made.pop(name, None)
        else:
            made[name] = merged(made.get(name), value)
    return made


def _without(item: Mapping[str, Any], applied: Mapping[str, Any]) -> Object:
    """What is left when the fields that were applied are taken away. Lists count as a whole."""
    left: Object = {}
    for name, value in item.items():
        if name not in applied:
            left[name] = value
        elif isinstance(value, dict) and isinstance(applied[name], dict) and (rest := _without(value, applied[name])):
            left[name] = rest
    return left
