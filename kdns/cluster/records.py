"""From Kubernetes objects to DNS records: pure functions, one object (and what belongs to it) at a time.

The schema is https://github.com/kubernetes/dns/blob/master/docs/specification.md, version 1.1.0. Owners are lower
case absolute names; the rdatas of an RRset are sorted and unique, so that equal objects make equal records. What the
cluster calls something that no DNS label can hold is left out and told to `warn`, one sentence each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias

from kdns.cluster.objects import Endpoint, EndpointSlice, Pod, Port, Service, Subset
from kdns.wire import names, rr
from kdns.wire.rrset import RRset

SCHEMA_VERSION = b"1.1.0"
SCHEMA_TTL = 28800

Records: TypeAlias = dict[bytes, tuple[RRset, ...]]
"""RRsets by owner."""
Warn: TypeAlias = Callable[[str], None]

_SVC = b"\x03svc"
_POD = b"\x03pod"
_REVERSE = (names.from_text("in-addr.arpa."), names.from_text("ip6.arpa."))
_DECIMAL = [names.join([str(number).encode()])[:-1] for number in range(256)]
_NIBBLES = [names.join([f"{number & 15:x}".encode(), f"{number >> 4:x}".encode()])[:-1] for number in range(256)]


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """What the `kubernetes` directive says about records.

    zone: the forward zone, lower case. ttl: seconds. endpoints: False with `noendpoints`: headless Services and
    endpoint names do not exist then, and `ignore_empty_service` has nothing to judge by and does nothing.
    """

    zone: bytes
    ttl: int = 5
    endpoint_pod_names: bool = False
    ignore_empty_service: bool = False
    zonal: bool = False
    endpoints: bool = True
    pods: Literal["disabled", "insecure", "verified"] = "disabled"


@dataclass(frozen=True, slots=True)
class ServiceRecords:
    """All that one Service and its endpoints are responsible for.

    names: see `service_records`. pointers: see `pointers`. zonal: see `zonal_records`.
    """

    names: Records
    pointers: dict[bytes, tuple[bytes, ...]]
    zonal: dict[str, tuple[RRset, ...]]


class _Ready(NamedTuple):
    """An address that counts. rdata: of its A or AAAA record. name: E.S.N.svc.Z. zone: topology zone, lower case."""

    rdata: bytes
    name: bytes
    ports: tuple[Port, ...]
    zone: str


def _silent(_: str) -> None:
    pass


def derive(
    service: Service, slices: Iterable[EndpointSlice], options: RecordOptions, warn: Warn = _silent
) -> ServiceRecords:
    """Everything about one Service in one pass.

    slices: EndpointSlices and Endpoints of the namespace; those of other Services are passed over. Legacy ones count
    only if there are no others. Records of different Services share no owner (but see `pointers`).
    """
    owner = _service_name(service, options.zone, warn)
    if owner is None:
        return ServiceRecords({}, {}, {})
    if service.type == "ExternalName":
        return ServiceRecords(_external(service, owner, options.ttl, warn), {}, {})
    if not (service.headless or service.cluster_ips):
        warn(
            f"Service {service.namespace}/{service.name}: it has no clusterIP, not published; accepted: None, addresses"
        )
    ready = _ready(service, owner, slices, options, warn)
    cluster_ips = [rdata for ip in service.cluster_ips if (rdata := _address(ip, service, warn))]
    targets: dict[bytes, set[bytes]] = {rdata: {owner} for rdata in cluster_ips}
    for endpoint in ready:
        targets.setdefault(endpoint.rdata, set()).add(endpoint.name)
    return ServiceRecords(
        _names(service, owner, cluster_ips, ready, options, warn),
        {rdata: tuple(sorted(found)) for rdata, found in targets.items()},
        _zonal(ready, options.ttl) if options.zonal and service.headless else {},
    )


def service_records(
    service: Service, slices: Iterable[EndpointSlice], options: RecordOptions, warn: Warn = _silent
) -> Records:
    """The records at and below S.N.svc.Z: A, AAAA, SRV, or CNAME for an ExternalName."""
    return derive(service, slices, options, warn).names


def pointers(
    service: Service, slices: Iterable[EndpointSlice], options: RecordOptions, warn: Warn = _silent
) -> dict[bytes, tuple[bytes, ...]]:
    """The PTR targets of each address (as 4 or 16 bytes) of a Service: S.N.svc.Z or E.S.N.svc.Z.

    Several Services may have one address; the answer has the targets of all of them. `reverse_owner` has the name.
    """
    return derive(service, slices, options, warn).pointers


def zonal_records(
    service: Service, slices: Iterable[EndpointSlice], options: RecordOptions, warn: Warn = _silent
) -> dict[str, tuple[RRset, ...]]:
    """What `ZONE.pin._zone.S.N.svc.Z` and `ZONE.prefer._zone.S.N.svc.Z` answer: A, AAAA and SRV by topology zone.

    Zones are in lower case; "" has all endpoints, in a zone or not. {} says that there are no zonal names (the Service
    is not headless, or the option is off); a headless Service without endpoints has {"": ()}.
    """
    return derive(service, slices, options, warn).zonal


def pod_records(pod: Pod, options: RecordOptions, warn: Warn = _silent) -> Records:
    """1-2-3-4.N.pod.Z for each address of a running Pod with `pods verified`, else nothing.

    Pods on their node's network share an address, hence owner and records.
    """
    namespace = _label(pod.namespace)
    if options.pods != "verified" or not pod.running:
        return {}
    if namespace is None:
        warn(f"Pod {pod.namespace}/{pod.name}: {_not_label('namespace', pod.namespace)}")
        return {}
    found: Records = {}
    for ip in pod.ips:
        try:
            rdata = rr.address(ip)
        except (OSError, ValueError):
            warn(f"Pod {pod.namespace}/{pod.name}: {ip!r} is no IP address, not published")
            continue
        label = _dashed(rr.address_text(rdata))
        owner = bytes((len(label),)) + label + namespace + _POD + options.zone
        if len(owner) <= names.MAX_NAME:
            found[owner] = (RRset(rr.address_type(rdata), options.ttl, (rdata,)),)
    return found


def apex(zone: bytes, serial: int, ttl: int, ns_addresses: Iterable[str]) -> Records:
    """SOA and NS of a zone, the addresses of ns.dns.Z, and for a zone that is not for reverse look-up the schema.

    serial: 32 bits. ns_addresses: the addresses of this DNS service as text; ValueError or OSError if one is none.
    """
    nameserver = b"\x02ns\x03dns" + zone
    soa = rr.soa(nameserver, b"\x0ahostmaster" + zone, serial, 7200, 1800, 86400, ttl)
    found: Records = {
        zone: (RRset(rr.SOA, ttl, (soa,)), RRset(rr.NS, ttl, (nameserver,))),
    }
    if addresses := _address_rrsets({rr.address(text) for text in ns_addresses}, ttl):
        found[nameserver] = tuple(addresses)
    if not any(names.is_subdomain(zone, above) for above in _REVERSE):
        found[b"\x0bdns-version" + zone] = (RRset(rr.TXT, SCHEMA_TTL, (rr.txt(SCHEMA_VERSION),)),)
    return found


def structural_names(options: RecordOptions) -> tuple[bytes, ...]:
    """Names that exist in every cluster without having records: svc.Z and pod.Z."""
    return _SVC + options.zone, _POD + options.zone


def namespace_names(name: str, options: RecordOptions, warn: Warn = _silent) -> tuple[bytes, ...]:
    """Names that a namespace makes exist without records: N.svc.Z, and N.pod.Z unless `pods disabled`."""
    label = _label(name)
    if label is None:
        warn(f"Namespace {name}: {_not_label('name', name)}")
        return ()
    return tuple(label + above for above in structural_names(options)[: 1 if options.pods == "disabled" else 2])


def reverse_owner(rdata: bytes) -> bytes:
    """The name under in-addr.arpa or ip6.arpa of an address (4 or 16 bytes; RFC 1035 3.5, RFC 3596 2.5)."""
    if len(rdata) == 4:
        return b"".join([_DECIMAL[byte] for byte in reversed(rdata)]) + _REVERSE[0]
    return b"".join([_NIBBLES[byte] for byte in reversed(rdata)]) + _REVERSE[1]


@lru_cache(maxsize=4096)
def _label(text: str) -> bytes | None:
    """A lower case label behind its length, None if the text is none."""
    if not names.is_label(text):
        return None
    return bytes((len(text),)) + text.lower().encode()


def _not_label(what: str, text: str) -> str:
    return f"{what} {text!r} is no DNS label (1 to 63 letters, digits and inner hyphens), not published"


def _dashed(address: str) -> bytes:
    return address.lower().replace(".", "-").replace(":", "-").encode()


def _service_name(service: Service, zone: bytes, warn: Warn) -> bytes | None:
    name, namespace = _label(service.name), _label(service.namespace)
    if name is None or namespace is None:
        what = ("name", service.name) if name is None else ("namespace", service.namespace)
        warn(f"Service {service.namespace}/{service.name}: {_not_label(*what)}")
        return None
    owner = name + namespace + _SVC + zone
    if len(owner) > names.MAX_NAME:
        warn(f"Service {service.namespace}/{service.name}: its name has {len(owner)} bytes, not published")
        return None
    return owner


def _address(text: str, service: Service, warn: Warn) -> bytes | None:
    try:
        return rr.address(text)
    except (OSError, ValueError):
        warn(f"Service {service.namespace}/{service.name}: {text!r} is no IP address, not published")
        return None


def _external(service: Service, owner: bytes, ttl: int, warn: Warn) -> Records:
    """The CNAME of an ExternalName. An address in its place makes no record: there is nothing it could be a name of."""
    where = f"Service {service.namespace}/{service.name}: externalName {service.external_name!r}"
    text = service.external_name.removesuffix(".").lower()
    labels = [_label(part) for part in text.split(".")]
    target = b"".join(filter(None, labels)) + names.ROOT
    if None in labels or len(target) > names.MAX_NAME:
        warn(f"{where} is no domain name, not published")
    elif _is_address(text):
        warn(f"{where} is an IP address, not published; accepted: a domain name")
    else:
        return {owner: (RRset(rr.CNAME, ttl, (target,)),)}
    return {}


def _is_address(text: str) -> bool:
    try:
        rr.address(text)
    except (OSError, ValueError):
        return False
    return True


def _subsets(service: Service, slices: Iterable[EndpointSlice]) -> Iterable[Subset]:
    own = [
        piece
        for piece in slices
        if piece.service == service.name and piece.namespace == service.namespace and piece.address_type != "FQDN"
    ]
    legacy = all(piece.legacy for piece in own)
    return [subset for piece in own if piece.legacy is legacy for subset in piece.subsets]


def _ready(
    service: Service, owner: bytes, slices: Iterable[EndpointSlice], options: RecordOptions, warn: Warn
) -> list[_Ready]:
    found: list[_Ready] = []
    if not options.endpoints:
        return found
    for subset in _subsets(service, slices):
        for endpoint in subset.endpoints:
            if not (endpoint.ready or service.publish_not_ready):
                continue
            label = _endpoint_label(service, endpoint, options, warn)
            for ip in endpoint.addresses:
                rdata = _address(ip, service, warn)
                if rdata is not None:
                    name = (label or _address_label(rdata)) + owner
                    if len(name) <= names.MAX_NAME:
                        found.append(_Ready(rdata, name, subset.ports, endpoint.zone.lower()))
                    else:
                        warn(f"Service {service.namespace}/{service.name}: endpoint {ip} has a name of over 255 bytes")
    return found


def _endpoint_label(service: Service, endpoint: Endpoint, options: RecordOptions, warn: Warn) -> bytes | None:
    """The label that an endpoint's hostname or pod gives it, None if it goes by its addresses."""
    if endpoint.hostname:
        label = _label(endpoint.hostname)
        if label is not None:
            return label
        warn(f"Service {service.namespace}/{service.name}: {_not_label('hostname', endpoint.hostname)}")
    return _label(endpoint.pod) if options.endpoint_pod_names and endpoint.pod else None


def _address_label(rdata: bytes) -> bytes:
    """The label of an endpoint that goes by its address; a 0 keeps one that ends in `::` from ending in a hyphen."""
    label = _dashed(rr.address_text(rdata))
    if label.endswith(b"-"):
        label += b"0"
    return bytes((len(label),)) + label


def _names(
    service: Service, owner: bytes, cluster_ips: list[bytes], ready: list[_Ready], options: RecordOptions, warn: Warn
) -> Records:
    ttl = options.ttl
    by_name: dict[bytes, set[bytes]] = {}
    for endpoint in ready:
        by_name.setdefault(endpoint.name, set()).add(endpoint.rdata)
    found: Records = {name: tuple(_address_rrsets(rdatas, ttl)) for name, rdatas in by_name.items()}
    if service.headless:
        addresses = {endpoint.rdata for endpoint in ready}
        by_port = _headless_targets(ready)
    else:
        if options.ignore_empty_service and options.endpoints and not ready:
            return found
        addresses = set(cluster_ips)
        by_port = {port: {(port.port, owner)} for port in service.ports} if addresses else {}
    services = _srv_records(service, owner, by_port, ttl, warn)
    at_owner = _address_rrsets(addresses, ttl) + list(services.pop(owner, ()))
    if at_owner:
        found[owner] = tuple(at_owner)
    found.update(services)
    return found


def _headless_targets(ready: Iterable[_Ready]) -> dict[Port, set[tuple[int, bytes]]]:
    found: dict[Port, set[tuple[int, bytes]]] = {}
    for endpoint in ready:
        for port in endpoint.ports:
            found.setdefault(port, set()).add((port.port, endpoint.name))
    return found


def _srv_records(
    service: Service, owner: bytes, by_port: Mapping[Port, set[tuple[int, bytes]]], ttl: int, warn: Warn
) -> Records:
    """SRV RRsets for each named port, and at the owner itself one for all ports, named or not."""
    by_owner: dict[bytes, set[tuple[int, bytes]]] = {}
    for port, targets in by_port.items():
        where = f"Service {service.namespace}/{service.name}: port {port.port}"
        if not 0 < port.port <= 0xFFFF:
            warn(f"{where} is out of range, not published; accepted: 1 to 65535")
            continue
        by_owner.setdefault(owner, set()).update(targets)
        if not port.name:
            continue
        name, protocol = _label("_" + port.name), _label("_" + port.protocol)
        if name is None or protocol is None:
            what = ("name", port.name) if name is None else ("protocol", port.protocol)
            warn(f"{where}: {_not_label(*what)}")
        elif len(name) + len(protocol) + len(owner) > names.MAX_NAME:
            warn(f"{where}: a name of over 255 bytes, not published")
        else:
            by_owner.setdefault(name + protocol + owner, set()).update(targets)
    return {name: (_srv_rrset(targets, ttl),) for name, targets in by_owner.items()}


def _srv_rrset(targets: Collection[tuple[int, bytes]], ttl: int) -> RRset:
    weight = max(1, 100 // len(targets))
    return RRset(rr.SRV, ttl, tuple([rr.srv(0, weight, port, target) for port, target in sorted(targets)]))


def _address_rrsets(rdatas: Collection[bytes], ttl: int) -> list[RRset]:
    """The A and the AAAA RRset of some addresses, each only if it has any."""
    if len(rdatas) == 1:
        (rdata,) = rdatas
        return [RRset(rr.address_type(rdata), ttl, (rdata,))]
    found = []
    for kind, size in ((rr.A, 4), (rr.AAAA, 16)):
        if family := tuple(sorted([rdata for rdata in rdatas if len(rdata) == size])):
            found.append(RRset(kind, ttl, family))
    return found


def _zonal(ready: list[_Ready], ttl: int) -> dict[str, tuple[RRset, ...]]:
    by_zone: dict[str, list[_Ready]] = {"": ready}
    for endpoint in ready:
        if endpoint.zone:
            by_zone.setdefault(endpoint.zone, []).append(endpoint)
    found = {}
    for zone, members in by_zone.items():
        rrsets = _address_rrsets({endpoint.rdata for endpoint in members}, ttl)
        targets = {
            target for port, group in _headless_targets(members).items() if 0 < port.port <= 0xFFFF for target in group
        }
        if targets:
            rrsets.append(_srv_rrset(targets, ttl))
        found[zone] = tuple(rrsets)
    return found
