"""The part of the test API server that decides who may do what: Roles and their bindings (Using RBAC Authorization)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from tests.support.apiserver_store import BY_KIND, Store

ADMIN = "kubernetes-admin"
"""A member of system:masters, who may do everything."""
_ACCOUNT = "system:serviceaccount:"


@dataclass(frozen=True, slots=True)
class Deed:
    """What somebody wants to do. group: of the API, empty for the core. namespace, name: empty for all."""

    user: str
    verb: str
    group: str
    resource: str
    namespace: str = ""
    name: str = ""


def allows(store: Store, deed: Deed) -> bool:
    """Whether a rule of a role that the user is bound to has it."""
    if deed.user == ADMIN:
        return True
    return any(_covers(rule, deed) for rule in _rules(store, deed))


def _rules(store: Store, deed: Deed) -> Iterable[Mapping[str, Any]]:
    for binding in _objects(store, "ClusterRoleBinding"):
        if _is_bound(binding, deed.user):
            yield from _role(store, binding, "")
    for binding in _objects(store, "RoleBinding"):
        namespace = binding["metadata"]["namespace"]
        if namespace == deed.namespace and _is_bound(binding, deed.user):
            yield from _role(store, binding, namespace)


def _role(store: Store, binding: Mapping[str, Any], namespace: str) -> list[Mapping[str, Any]]:
    reference = binding["roleRef"]
    key = f"{namespace}/{reference['name']}" if reference["kind"] == "Role" else reference["name"]
    entry = store.get(BY_KIND[reference["kind"]], key)
    return [] if entry is None else msgspec.json.decode(entry.data).get("rules") or []


def _objects(store: Store, kind: str) -> Iterable[Mapping[str, Any]]:
    snapshot = store.snapshot(BY_KIND[kind])
    return (msgspec.json.decode(snapshot.entries[key].data) for key in snapshot.keys)


def _is_bound(binding: Mapping[str, Any], user: str) -> bool:
    groups = {"system:authenticated"} if user != "system:anonymous" else {"system:unauthenticated"}
    if user.startswith(_ACCOUNT):
        groups |= {"system:serviceaccounts", f"system:serviceaccounts:{user.split(':')[2]}"}
    for subject in binding.get("subjects") or ():
        name = subject["name"]
        if subject["kind"] == "ServiceAccount":
            if user == f"{_ACCOUNT}{subject['namespace']}:{name}":
                return True
        elif name == user if subject["kind"] == "User" else name in groups:
            return True
    return False


def _covers(rule: Mapping[str, Any], deed: Deed) -> bool:
    """Each of its lists has the deed's, or `*`. Names, if there are any, are of single objects."""
    wanted = {"apiGroups": deed.group, "resources": deed.resource, "verbs": deed.verb}
    if not all({value, "*"} & set(rule.get(field) or ()) for field, value in wanted.items()):
        return False
    return not rule.get("resourceNames") or (bool(deed.name) and deed.name in rule["resourceNames"])
