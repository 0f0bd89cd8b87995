"""Builders of Kubernetes objects as the API server would show them, in the fields that matter to DNS."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Object = dict[str, Any]
Port = tuple[str, int] | tuple[str, int, str]
"""Name (may be empty), number, and protocol (TCP unless given)."""


def service(
    name: str,
    namespace: str = "default",
    *,
    ips: Sequence[str] = ("10.96.0.10",),
    ports: Sequence[Port] = (("http", 80),),
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    publish_not_ready: bool = False,
) -> Object:
    """A ClusterIP Service; `ips=()` makes it headless."""
    addresses = list(ips) or ["None"]
    families = ["IPv6" if ":" in ip else "IPv4" for ip in ips] or ["IPv4"]
    spec: Object = {
        "type": "ClusterIP",
        "clusterIP": addresses[0],
        "clusterIPs": addresses,
        "ipFamilies": families,
        "ports": [_port(port) for port in ports],
        "selector": {"app": name},
    }
    if publish_not_ready:
        spec["publishNotReadyAddresses"] = True
    metadata = _metadata(name, namespace, labels, annotations)
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def external_name(name: str, target: str, namespace: str = "default") -> Object:
    """An ExternalName Service."""
    spec = {"type": "ExternalName", "externalName": target}
    return {"apiVersion": "v1", "kind": "Service", "metadata": _metadata(name, namespace), "spec": spec}


def endpoint(
    *addresses: str,
    hostname: str | None = None,
    pod: str | None = None,
    ready: bool | None = True,
    zone: str | None = None,
) -> Object:
    """One endpoint of a slice. ready=None leaves the condition out, which counts as ready."""
    found: Object = {"addresses": list(addresses), "conditions": {} if ready is None else {"ready": ready}}
    if hostname is not None:
        found["hostname"] = hostname
    if pod is not None:
        found["targetRef"] = {"kind": "Pod", "name": pod}
    if zone is not None:
        found["zone"] = zone
    return found


def endpoint_slice(
    service_name: str,
    endpoints: Iterable[Object],
    namespace: str = "default",
    *,
    suffix: str = "1",
    ports: Sequence[Port] = (("http", 8080),),
    address_type: str = "IPv4",
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    service_label: str = "kubernetes.io/service-name",
) -> Object:
    """An EndpointSlice of a Service, named `SERVICE-SUFFIX`; labels are added to the one that names the Service."""
    found = {service_label: service_name, **(labels or {})}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": _metadata(f"{service_name}-{suffix}", namespace, found, annotations),
        "addressType": address_type,
        "endpoints": list(endpoints),
        "ports": [_port(port) for port in ports],
    }


def service_import(
    name: str,
    namespace: str = "default",
    *,
    ips: Sequence[str] = ("10.112.0.10",),
    ports: Sequence[Port] = (("http", 80),),
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Object:
    """A ServiceImport (multicluster.x-k8s.io/v1alpha1) of type ClusterSetIP; `ips=()` makes it Headless."""
    spec: Object = {"type": "ClusterSetIP" if ips else "Headless", "ports": [_port(port) for port in ports]}
    if ips:
        spec["ips"] = list(ips)
    return {
        "apiVersion": "multicluster.x-k8s.io/v1alpha1",
        "kind": "ServiceImport",
        "metadata": _metadata(name, namespace, labels, annotations),
        "spec": spec,
    }


def namespace(name: str, labels: Mapping[str, str] | None = None) -> Object:
    """A Namespace."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": dict(labels or {})}}


def pod(
    name: str,
    namespace: str,
    *ips: str,
    phase: str = "Running",
    labels: Mapping[str, str] | None = None,
    node: str = "",
) -> Object:
    """A Pod with its addresses. node: where it runs."""
    status = {"phase": phase, "podIP": ips[0], "podIPs": [{"ip": ip} for ip in ips]}
    found = {"apiVersion": "v1", "kind": "Pod", "metadata": _metadata(name, namespace, labels), "status": status}
    return found | ({"spec": {"nodeName": node}} if node else {})


def write_list(path: Path, objects: Iterable[Object]) -> Path:
    """Write objects as one JSON `List`; the file is replaced at once, never seen half-written."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))
    temporary.replace(path)
    return path


def _metadata(
    name: str,
    namespace: str,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Object:
    found: Object = {"name": name, "namespace": namespace}
    if labels:
        found["labels"] = dict(labels)
    if annotations:
        found["annotations"] = dict(annotations)
    return found


def _port(port: Port) -> Object:
    found: Object = {"port": port[1], "protocol": port[2] if len(port) == 3 else "TCP"}
    if port[0]:
        found["name"] = port[0]
    return found


def many(count: int) -> tuple[list[Object], list[str]]:
    """A Service `web`, and a headless one, `many`, with so many addresses, which come as well."""
    addresses = [f"10.{1 + number // 250}.0.{1 + number % 250}" for number in range(count)]
    headless = service("many", ips=[]), endpoint_slice("many", [endpoint(address) for address in addresses])
    return [service("web", ips=["10.96.0.1"]), *headless], addresses
