"""The cluster that is measured: Services with endpoints as manifests, and the same names as a zone file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import yaml

from tests.support import objects
from tests.support.objects import Object

ZONE = "cluster.local"
NAMESPACES = 50
_SERVICES_AT = IPv4Address("10.96.0.1")
_PODS_AT = IPv4Address("10.128.0.1")


@dataclass(frozen=True, slots=True)
class Cluster:
    """So many ClusterIP Services, spread over 50 namespaces, with so many ready endpoints each and one named port."""

    services: int = 5000
    endpoints: int = 10

    def service(self, number: int) -> tuple[str, str]:
        """Name and namespace of a Service."""
        return f"service-{number:05d}", f"team-{number % NAMESPACES:02d}"

    def address(self, number: int) -> str:
        """The ClusterIP of a Service."""
        return str(_SERVICES_AT + number)

    def endpoint_addresses(self, number: int) -> list[str]:
        """The addresses of a Service's endpoints."""
        return [str(_PODS_AT + number * self.endpoints + index) for index in range(self.endpoints)]

    def service_names(self) -> list[str]:
        """The Services' names in DNS, without the last dot, in the order of their numbers."""
        return [f"{name}.{namespace}.svc.{ZONE}" for name, namespace in map(self.service, range(self.services))]

    def endpoint_names(self) -> list[str]:
        """The endpoints' names in DNS (their addresses with dashes), without the last dot."""
        owners = self.service_names()
        return [
            f"{address.replace('.', '-')}.{owner}"
            for number, owner in enumerate(owners)
            for address in self.endpoint_addresses(number)
        ]

    def objects(self) -> Iterator[Object]:
        """Services and EndpointSlices with the fields that an API server shows."""
        for number in range(self.services):
            name, namespace = self.service(number)
            service = objects.service(name, namespace, ips=[self.address(number)], labels={"app": name})
            service["metadata"] |= self._metadata(number)
            yield service
            found = [self._endpoint(number, index, ip) for index, ip in enumerate(self.endpoint_addresses(number))]
            group = objects.endpoint_slice(name, found, namespace, suffix=f"{number:05x}")
            group["metadata"] |= self._metadata(number + self.services)
            yield group

    def _endpoint(self, number: int, index: int, address: str) -> Object:
        name, namespace = self.service(number)
        pod = f"{name}-7d9c6b5f4-{number:04x}{index}"
        endpoint = objects.endpoint(address, pod=pod)
        endpoint["conditions"] |= {"serving": True, "terminating": False}
        endpoint["targetRef"] |= {"namespace": namespace, "uid": f"5a0c8b9e-0000-4000-8000-{number:08x}{index:04x}"}
        return endpoint | {"nodeName": f"node-{(number + index) % 100:03d}"}

    def _metadata(self, number: int) -> Object:
        return {
            "uid": f"3f2b1c00-0000-4000-8000-{number:012x}",
            "resourceVersion": str(100000 + number),
            "creationTimestamp": "2026-01-02T03:04:05Z",
        }

    def write_json(self, folder: Path) -> Path:
        """One JSON List, as `kubectl get -o json` prints it."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "cluster.json"
        path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(self.objects())}, indent=2))
        return path

    def write_yaml(self, folder: Path) -> Path:
        """One YAML file of many documents."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "cluster.yaml"
        with path.open("w") as file:
            yaml.dump_all(self.objects(), file, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False)
        return path

    def write_zone(self, path: Path, ttl: int = 5) -> Path:
        """The forward zone as a master file: addresses and SRV records of Services and endpoints."""
        lines = [
            f"$ORIGIN {ZONE}.",
            f"$TTL {ttl}",
            f"@ SOA ns.dns hostmaster 1 7200 1800 86400 {ttl}",
            "@ NS ns.dns",
            "ns.dns A 127.0.0.1",
            'dns-version TXT "1.1.0"',
        ]
        for number in range(self.services):
            owner = ".".join((*self.service(number), "svc"))
            lines.append(f"{owner} A {self.address(number)}")
            lines += [f"{prefix}{owner} SRV 0 100 80 {owner}" for prefix in ("", "_http._tcp.")]
            lines += [f"{ip.replace('.', '-')}.{owner} A {ip}" for ip in self.endpoint_addresses(number)]
        path.write_text("\n".join(lines) + "\n")
        return path

    def write_hosts(self, path: Path) -> Path:
        """The address records in the format of /etc/hosts."""
        lines = [f"{self.address(number)} {owner}" for number, owner in enumerate(self.service_names())]
        for number, owner in enumerate(self.service_names()):
            lines += [f"{ip} {ip.replace('.', '-')}.{owner}" for ip in self.endpoint_addresses(number)]
        path.write_text("\n".join(lines) + "\n")
        return path
