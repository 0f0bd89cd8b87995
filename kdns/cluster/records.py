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

from kdns.cluster.objects import Endpoint, EndpointSlice, Pod, Port, Service, ServiceImport, Subset
from kdns.wire import names, rr
from kdns.wire.rrset import RRset

SCHEMA_VERSION = b"1.1.0"
SCHEMA_TTL = 28800

Records: TypeAlias = dict[bytes, tuple[RRset, ...]]
"""RRsets by owner."""
Warn: TypeAlias = Callable[[str], None]
AnyService: TypeAlias = Service | ServiceImport

_SVC = b"\x03svc"
_POD = b"\x03pod"
_REVERSE = (names.from_text("in-addr.arpa."), names.from_text("ip6.arpa."))
_LENGTH = [bytes((length,)) for length in range(64)]
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
class ExternalOptions:
    """What the `k8s_external` directive says about records.

    ttl: seconds. apex: the label of the zone's own names, lower case; a namespace of that name is not published.
    headless: endpoints too, of Services that nothing outside reaches.
    """

    ttl: int = 5
    apex: str = "dns"
    headless: bool = False


@dataclass(frozen=True, slots=True)
class ServiceRecords:
    """All that one Service or ServiceImport and its endpoints are responsible for.

    names: the records at and below S.N.svc.Z: A, AAAA, SRV, or CNAME for an ExternalName.

    pointers: the PTR targets of each address (as 4 or 16 bytes): S.N.svc.Z or E.S.N.svc.Z. Several Services may have
    one address; the answer has the targets of all of them. `reverse_owner` has the name. A ServiceImport has none.

    zonal: what `ZONE.pin._zone.S.N.svc.Z` and `ZONE.prefer._zone.S.N.svc.Z` answer: A, AAAA and SRV by topology zone.
    Zones are in lower case; "" has all endpoints, in a zone or not. {} says that there are no zonal names (it is no
    headless Service, or the option is off); a headless Service without endpoints has {"": ()}.
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
    service: AnyService, slices: Iterable[EndpointSlice], options: RecordOptions, warn: Warn = _silent
) -> ServiceRecords:
    """Everything about one Service, or about one ServiceImport in a clusterset zone, in one pass.

    slices: EndpointSlices and Endpoints of the namespace; those of others are passed over. Legacy ones count only if
    there are no others. Records of different Services share no owner (but see `ServiceRecords.pointers`). The names of
    a ServiceImport's endpoints have the cluster that they are in: E.CLUSTER.S.N.svc.Z (E.S.N.svc.Z if none is told).
    """
    owner = _service_name(service, options.zone, warn)
    if owner is None:
        return ServiceRecords({}, {}, {})
    if isinstance(service, ServiceImport):
        ips, publish_not_ready = service.ips, False
    elif service.type == "ExternalName":
        return ServiceRecords(_external(service, owner, options.ttl, warn), {}, {})
    else:
        ips, publish_not_ready = service.cluster_ips, service.publish_not_ready
    if not (service.headless or ips):
        accepted = "Headless, addresses" if isinstance(service, ServiceImport) else "None, addresses"
        warn(f"{_where(service)}: it has no clusterIP, not published; accepted: {accepted}")
    subsets = _subsets(service, slices, warn) if options.endpoints else []
    ready = _ready(service, owner, subsets, publish_not_ready, options.endpoint_pod_names, warn)
    cluster_ips = [rdata for ip in ips if (rdata := _address(ip, service, warn))]
    found = _names(service, owner, cluster_ips, ready, options, warn)
    if isinstance(service, ServiceImport):
        return ServiceRecords(found, {}, {})
    zonal = _zonal(ready, options.ttl) if options.zonal and service.headless else {}
    return ServiceRecords(found, _pointers(owner, cluster_ips, ready), zonal)


def derive_external(
    service: Service,
    slices: Iterable[EndpointSlice],
    zone: bytes,
    options: ExternalOptions,
    cluster: RecordOptions,
    warn: Warn = _silent,
) -> ServiceRecords:
    """Everything about one Service in a zone that is for clients outside of the cluster.

    cluster: the options of the cluster's own zones; they say how endpoints are called, and whether there are any. A
    name that leads to a host name has its CNAME and nothing else (RFC 1034 3.6.2).
    """
    owner = _external_name(service, zone, options, warn)
    if owner is None:
        return ServiceRecords({}, {}, {})
    if not service.external:
        if not (options.headless and cluster.endpoints):
            return ServiceRecords({}, {}, {})
        subsets = _subsets(service, slices, warn)
        ready = _ready(service, owner, subsets, service.publish_not_ready, cluster.endpoint_pod_names, warn)
        found = _names(service, owner, [], ready, RecordOptions(zone, options.ttl), warn)
        return ServiceRecords(_with_ports(found, ready, options.ttl), {}, {})
    addresses = {rdata for text in service.external if (rdata := _ip(text)) is not None}
    hosts = _hosts(service, warn)
    if hosts and (addresses or len(hosts) > 1):
        what = "addresses" if addresses else f"only {names.to_text(hosts[0])}"
        warn(f"{_where(service)}: of its addresses and host names outside of the cluster, its name there has {what}")
    targets = ([owner] if addresses else []) + hosts
    if not targets:
        return ServiceRecords({}, {}, {})
    by_port = {port: {(port.port, target) for target in targets} for port in service.ports}
    found = _srv_records(service, owner, by_port, options.ttl, warn)
    if addresses:
        found[owner] = (*_address_rrsets(addresses, options.ttl), *found.pop(owner, ()))
    elif hosts:
        found[owner] = (RRset(rr.CNAME, options.ttl, (hosts[0],)),)
    return ServiceRecords(found, dict.fromkeys(addresses, (owner,)), {})


def _external_name(service: Service, zone: bytes, options: ExternalOptions, warn: Warn) -> bytes | None:
    """S.N.Z; None if it cannot be a name, which `derive` has warned of."""
    name, namespace = _label(service.name), _label(service.namespace)
    if name is None or namespace is None or len(name + namespace + zone) > names.MAX_NAME:
        return None
    if service.namespace == options.apex:
        if service.external:
            where = f"{_where(service)}: its namespace has the name of k8s_external's apex"
            warn(f"{where}, not published in {names.to_text(zone)}; accepted: another one in `apex`")
        return None
    return name + namespace + zone


def _hosts(service: Service, warn: Warn) -> list[bytes]:
    found = []
    for text in service.external:
        if _ip(text) is not None:
            continue
        target = _domain(text)
        if target is None:
            warn(f"{_where(service)}: {text!r} is neither an IP address nor a domain name, not published")
        elif target not in found:
            found.append(target)
    return found


def _with_ports(found: Records, ready: Iterable[_Ready], ttl: int) -> Records:
    """The same with SRV records for the ports of each endpoint at its own name."""
    by_name: dict[bytes, set[tuple[int, bytes]]] = {}
    for endpoint in ready:
        ports = {(port.port, endpoint.name) for port in endpoint.ports if 0 < port.port <= 0xFFFF}
        by_name.setdefault(endpoint.name, set()).update(ports)
    return found | {name: (*found[name], _srv_rrset(targets, ttl)) for name, targets in by_name.items() if targets}


def _pointers(owner: bytes, cluster_ips: Iterable[bytes], ready: Iterable[_Ready]) -> dict[bytes, tuple[bytes, ...]]:
    targets: dict[bytes, tuple[bytes, ...]] = dict.fromkeys(cluster_ips, (owner,))
    for endpoint in ready:
        have = targets.get(endpoint.rdata)
        if have is None:
            targets[endpoint.rdata] = (endpoint.name,)
        elif endpoint.name not in have:
            targets[endpoint.rdata] = tuple(sorted((*have, endpoint.name)))
    return targets


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


def external_apex(zone: bytes, serial: int, options: ExternalOptions, ns_addresses: Iterable[str]) -> Records:
    """SOA and NS of a zone for clients outside of the cluster, and the names that they lead to.

    serial: 32 bits. ns_addresses: see `apex`.
    """
    above = names.join([options.apex.encode()])[:-1] + zone
    nameserver = b"\x03ns1" + above
    soa = rr.soa(nameserver, b"\x0ahostmaster" + above, serial, 7200, 1800, 86400, options.ttl)
    return {
        zone: (RRset(rr.SOA, options.ttl, (soa,)), RRset(rr.NS, options.ttl, (nameserver,))),
        nameserver: tuple(_address_rrsets({rr.address(text) for text in ns_addresses}, options.ttl)),
    }


def external_namespace(name: str, zone: bytes, options: ExternalOptions) -> bytes | None:
    """The name that a namespace makes exist without records in a zone for clients outside of the cluster."""
    label = _label(name)
    return None if label is None or name == options.apex else label + zone


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


def _where(service: AnyService) -> str:
    return f"{service.key[0]} {service.namespace}/{service.name}"


def _service_name(service: AnyService, zone: bytes, warn: Warn) -> bytes | None:
    name, namespace = _label(service.name), _label(service.namespace)
    if name is None or namespace is None:
        what = ("name", service.name) if name is None else ("namespace", service.namespace)
        warn(f"{_where(service)}: {_not_label(*what)}")
        return None
    owner = name + namespace + _SVC + zone
    if len(owner) > names.MAX_NAME:
        warn(f"{_where(service)}: its name has {len(owner)} bytes, not published")
        return None
    return owner


def _address(text: str, service: AnyService, warn: Warn) -> bytes | None:
    rdata = _ip(text)
    if rdata is None:
        warn(f"{_where(service)}: {text!r} is no IP address, not published")
    return rdata


def _external(service: Service, owner: bytes, ttl: int, warn: Warn) -> Records:
    """The CNAME of an ExternalName. An address in its place makes no record: there is nothing it could be a name of."""
    where = f"{_where(service)}: externalName {service.external_name!r}"
    target = _domain(service.external_name)
    if target is None:
        warn(f"{where} is no domain name, not published")
    elif _ip(service.external_name.removesuffix(".")) is not None:
        warn(f"{where} is an IP address, not published; accepted: a domain name")
    else:
        return {owner: (RRset(rr.CNAME, ttl, (target,)),)}
    return {}


def _domain(text: str) -> bytes | None:
    """A domain name in lower case, None if the text is none."""
    labels = [_label(part) for part in text.removesuffix(".").lower().split(".")]
    target = b"".join(filter(None, labels)) + names.ROOT
    return None if None in labels or len(target) > names.MAX_NAME else target


def _ip(text: str) -> bytes | None:
    """An address as 4 or 16 bytes, None if the text is none."""
    try:
        return rr.address(text)
    except (OSError, ValueError):
        return None


def _subsets(service: AnyService, slices: Iterable[EndpointSlice], warn: Warn) -> list[tuple[bytes, Subset]]:
    """The subsets that belong to a Service or ServiceImport, each with the labels of its cluster ("" for none)."""
    imported = isinstance(service, ServiceImport)
    own = [
        piece
        for piece in slices
        if (piece.imported if imported else piece.service) == service.name
        and piece.namespace == service.namespace
        and piece.address_type != "FQDN"
    ]
    legacy = all(piece.legacy for piece in own)
    return [
        (_cluster(service, piece.cluster, warn) if imported else b"", subset)
        for piece in own
        if piece.legacy is legacy
        for subset in piece.subsets
    ]


def _cluster(service: AnyService, cluster: str, warn: Warn) -> bytes:
    labels = [_label(part) for part in cluster.split(".")] if cluster else []
    if None in labels:
        warn(f"{_where(service)}: cluster {cluster!r} is no domain name, its endpoints have names without it")
        return b""
    return b"".join(filter(None, labels))


def _ready(
    service: AnyService,
    owner: bytes,
    subsets: Iterable[tuple[bytes, Subset]],
    publish_not_ready: bool,
    pod_names: bool,
    warn: Warn,
) -> list[_Ready]:
    found: list[_Ready] = []
    for cluster, subset in subsets:
        below = cluster + owner
        for endpoint in subset.endpoints:
            if not (endpoint.ready or publish_not_ready):
                continue
            label = _endpoint_label(service, endpoint, pod_names, warn)
            for ip in endpoint.addresses:
                rdata = _address(ip, service, warn)
                if rdata is not None:
                    name = (label or _address_label(ip)) + below
                    if len(name) <= names.MAX_NAME:
                        found.append(_Ready(rdata, name, subset.ports, endpoint.zone.lower()))
                    else:
                        warn(f"{_where(service)}: endpoint {ip} has a name of over 255 bytes")
    return found


def _endpoint_label(service: AnyService, endpoint: Endpoint, pod_names: bool, warn: Warn) -> bytes | None:
    """The label that an endpoint's hostname or pod gives it, None if it goes by its addresses."""
    if endpoint.hostname:
        label = _label(endpoint.hostname)
        if label is not None:
            return label
        warn(f"{_where(service)}: {_not_label('hostname', endpoint.hostname)}")
    return _label(endpoint.pod) if pod_names and endpoint.pod else None


def _address_label(ip: str) -> bytes:
    """The label of an endpoint that goes by its address, as it is spelled there.

    A 0 keeps one that ends in `::` from ending in a hyphen.
    """
    label = _dashed(ip)
    if label.endswith(b"-"):
        label += b"0"
    return _LENGTH[len(label)] + label


def _names(
    service: AnyService,
    owner: bytes,
    cluster_ips: list[bytes],
    ready: list[_Ready],
    options: RecordOptions,
    warn: Warn,
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
    service: AnyService,
    owner: bytes,
    by_port: Mapping[Port, set[tuple[int, bytes]]],
    ttl: int,
    warn: Warn,
) -> Records:
    """SRV RRsets for each named port, and at the owner itself one for all ports, named or not."""
    by_owner: dict[bytes, set[tuple[int, bytes]]] = {}
    for port, targets in by_port.items():
        if not 0 < port.port <= 0xFFFF:
            warn(f"{_where(service)}: port {port.port} is out of range, not published; accepted: 1 to 65535")
            continue
        by_owner.setdefault(owner, set()).update(targets)
        if not port.name:
            continue
        name, protocol = _label("_" + port.name), _label("_" + port.protocol)
        if name is None or protocol is None:
            what = ("name", port.name) if name is None else ("protocol", port.protocol)
            warn(f"{_where(service)}: port {port.port}: {_not_label(*what)}")
        elif len(name) + len(protocol) + len(owner) > names.MAX_NAME:
            warn(f"{_where(service)}: port {port.port}: a name of over 255 bytes, not published")
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
