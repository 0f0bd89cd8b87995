"""Which objects of a cluster an answer came from, and why a name has none: in words, for people who look for a fault.

The names are those of the Kubernetes DNS schema 1.1.0, `Z` being the cluster's zone:

    S.N.svc.Z, _port._proto.S.N.svc.Z, E.S.N.svc.Z     a Service S in namespace N, its ports and its endpoints
    1-2-3-4.N.pod.Z                                    an address in namespace N
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from msgspec import structs

from kdns.cluster import records
from kdns.cluster.inventory import Inventory
from kdns.cluster.objects import Endpoint, EndpointSlice, Namespace, Service, ServiceImport, Subset
from kdns.cluster.publisher import Settings
from kdns.cluster.records import RecordOptions
from kdns.plugins.kubernetes import pod_address
from kdns.tools.offline import Answered
from kdns.tools.snapshot import View
from kdns.wire import names, rr
from kdns.zone.store import Zone

_AnyService = Service | ServiceImport
_ALIKE = 0.6
"""How alike two names are that may be meant for each other (difflib)."""
_SHOWN = 5
"""How many of a list are named."""


@dataclass(frozen=True, slots=True)
class Slice:
    """An EndpointSlice (or Endpoints) of a Service, and how its endpoints are called. kind: of the object."""

    kind: str
    name: str
    ready: tuple[str, ...]
    not_ready: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an answer came from.

    text: a sentence without its end. kind: Service, ServiceImport, or "" for what no object is behind. type: of a
    Service, such as ClusterIP, Headless or ExternalName. slices: that count for it.
    """

    text: str
    kind: str = ""
    namespace: str = ""
    name: str = ""
    type: str = ""
    slices: tuple[Slice, ...] = ()


@dataclass(frozen=True, slots=True)
class Missing:
    """Why a name has no such records.

    text: a sentence without its end. hints: what may have been meant, or what is wrong; strong: they leave little doubt
    that the name was meant to be one of the cluster.
    """

    text: str
    hints: tuple[str, ...] = ()
    strong: bool = False


@dataclass(frozen=True, slots=True)
class _Place:
    """A name below svc.Z. labels: those before the Service, as text."""

    origin: bytes
    namespace: str
    service: str
    labels: tuple[str, ...]


class Origins:
    """Looks names up in the objects of a view.

    settings: what was published, as far as it is known. pods: how names of pods are answered. namespace: of the pod
    that asks, for short names.
    """

    def __init__(self, view: View, settings: Settings | None, pods: str, namespace: str) -> None:
        self._view = view
        self._pods = pods
        self._settings = settings
        self._namespace = namespace

    # What there is

    def found(self, answered: Answered) -> tuple[Origin, ...]:
        """The origin of each owner in an answer, aliases first; of a PTR record that of the name it points to."""
        found: dict[Origin, None] = {}
        for owner, rrset in answered.answer:
            owners = rrset.rdatas if rrset.type == rr.PTR else (owner,)
            found |= {origin: None for each in owners if (origin := self._of_owner(names.lower(each))) is not None}
        return tuple(found)

    def _of_owner(self, owner: bytes) -> Origin | None:
        zone = self._view.zone_of(owner)
        if zone is None:
            return None
        place = _place(owner, zone.origin)
        if place is not None:
            return self._of_place(zone, place)
        relative = _relative(owner, zone.origin)
        if len(relative) == 3 and relative[2] == "pod":
            return self._of_pod(zone, relative)
        return Origin(f"the zone {names.to_text(zone.origin)} itself")

    def _of_place(self, zone: Zone, place: _Place) -> Origin | None:
        service, slices, _ = self._held(zone, place)
        if service is None:
            return None
        title = f"{service.key[0]} {place.namespace}/{place.service}"
        text = f"{title}, {_type_text(service)}"
        if place.labels and place.labels[0].startswith("_"):
            text = f"port {_port_text(place)} of {title}, {_type_text(service)}"
        elif place.labels[-1:] == ("_zone",):
            text = f"endpoints of {title} by topology zone ({'.'.join(place.labels[:-1])})"
        elif place.labels:
            text = f"endpoint {place.labels[0]} of {title}"
            slices = [piece for piece in slices if self._names_one(zone, service, piece, place.labels[0])]
        shown = tuple(_slice(service, piece) for piece in slices)
        if _type(service) != "ExternalName":
            text = f"{text}; {_slices_text(service, shown)}"
        return Origin(text, service.key[0], place.namespace, place.service, _type(service), shown)

    def _names_one(self, zone: Zone, service: _AnyService, piece: EndpointSlice, label: str) -> bool:
        """True if a slice has an endpoint of that name."""
        endpoints = (endpoint for subset in piece.subsets for endpoint in subset.endpoints)
        return any(label in self._labels(zone, service, endpoint) for endpoint in endpoints)

    def _of_pod(self, zone: Zone, relative: Sequence[str]) -> Origin:
        rdata = pod_address(relative[0].encode())
        inventory = self._view.inventory(zone.source)
        if self._pods == "verified" and rdata is not None:
            prefix = f"{relative[1]}/{rr.address_text(rdata)}/"
            pods = ", ".join(key.split("/")[2] for key in inventory.keys("addresses", prefix))
            return Origin(f"running pod {pods} in namespace {relative[1]} (pods verified)", "Pod", relative[1], pods)
        return Origin(f"any address in namespace {relative[1]} has such a name (pods insecure)")

    # What there is not

    def covers(self, name: bytes) -> bool:
        """Whether a name (lower case) is in a zone of the data."""
        return self._view.zone_of(name) is not None

    def missing(self, name: bytes, rtype: int, answered: Answered) -> Missing:
        """Why a name has no records of a type. name: lower case."""
        if answered.error:
            return Missing(answered.error)
        zone = self._view.zone_of(name)
        if zone is None:
            return Missing(f"{answered.plugin or 'nobody'} has no such records for it")
        place = _place(name, zone.origin)
        if place is not None:
            return self._no_service(zone, place, rtype, answered)
        relative = _relative(name, zone.origin)
        if relative[-1:] == ["pod"]:
            return self._no_pod(zone, relative, answered)
        if _is_reverse(zone.origin):
            return self._no_address(zone, name)
        if answered.rcode == rr.NOERROR and relative[1:] == ["svc"]:
            space = relative[0]
            return Missing(f"it is namespace {space} itself", (f"Services of namespace {space} are SERVICE.{space}",))
        if answered.rcode == rr.NOERROR:
            return Missing("it exists for the names below it, and has no such records")
        if relative[-1:] == ["svc"]:
            return Missing(f"there is no namespace {relative[0]}", self._like_namespace(zone, relative[0]))
        return Missing(f"no name of the cluster ends in {relative[-1]}.{bare(zone.origin)} (svc and pod do)")

    def _no_service(self, zone: Zone, place: _Place, rtype: int, answered: Answered) -> Missing:
        inventory = self._view.inventory(zone.source)
        service, slices, kind = self._held(zone, place)
        if not self._exists(inventory, place.namespace):
            return self._no_namespace(inventory, place)
        hidden = self._hidden(inventory, place.namespace, service)
        if hidden:
            return Missing(hidden, (hidden,), True)
        if service is None:
            return self._not_there(inventory, place, kind)
        if place.labels:
            return self._nothing_below(zone, place, service, slices)
        return self._nothing_at(place, service, slices, rtype, answered)

    def _no_namespace(self, inventory: Inventory, place: _Place) -> Missing:
        text = f"there is no namespace {place.namespace}"
        if place.labels:
            return Missing(text)
        spaces = sorted(inventory.all_namespaces())
        holders = [space for space in spaces if inventory.service(space, place.service) is not None]
        alike = [space for space in _alike(place.namespace, spaces) if space in holders]
        hints = [f"namespace {space} has a Service {place.service}: {place.service}.{space}" for space in alike]
        return Missing(text, tuple(hints), bool(hints))

    def _not_there(self, inventory: Inventory, place: _Place, kind: str) -> Missing:
        text = f"there is no {kind} {place.service} in namespace {place.namespace}"
        siblings = [key.partition("/")[2] for key in inventory.keys(kind, f"{place.namespace}/")]
        alike = _alike(place.service, siblings)
        if place.labels:
            owner = place.labels[0]
            found = [name for name in alike if self._has_endpoint(inventory, place.namespace, name, owner)]
            hints = [
                f"{owner} is an endpoint of {place.namespace}/{name}: {owner}.{self._short(name, place.namespace)}"
                for name in found
            ]
            return Missing(text, tuple(hints), bool(hints))
        elsewhere = sorted(
            space
            for space in inventory.all_namespaces()
            if space != place.namespace and inventory.get(kind, f"{space}/{place.service}") is not None
        )
        hints = [
            f"{kind} {place.service} is in namespace {space}: {self._short(place.service, space)}"
            for space in elsewhere[:_SHOWN]
        ]
        hints += [f"a {kind} with a similar name is there: {self._short(name, place.namespace)}" for name in alike]
        return Missing(text, tuple(hints), bool(hints))

    def _nothing_at(
        self,
        place: _Place,
        service: _AnyService,
        slices: Sequence[EndpointSlice],
        rtype: int,
        answered: Answered,
    ) -> Missing:
        """A Service that is there and shown, and has no such records at its own name."""
        title = f"{service.key[0]} {place.namespace}/{place.service}"
        if isinstance(service, Service) and service.type == "ExternalName":
            return self._bad_alias(service, title, answered)
        if answered.rcode == rr.NOERROR and rtype in (rr.A, rr.AAAA):
            family = "IPv4" if rtype == rr.A else "IPv6"
            return Missing(f"{title} has no {family} address", (f"{title} has no {family} address",))
        if answered.rcode == rr.NOERROR:
            return Missing(f"{title} has no {rr.type_text(rtype)} records")
        shown = tuple(_slice(service, piece) for piece in slices)
        if service.headless or shown:
            text = f"{title} has no endpoint that is ready: {_slices_text(service, shown)}"
        elif isinstance(service, Service) and not service.cluster_ips:
            text = f"{title} has no clusterIP yet"
        else:
            text = f"{title} has no endpoints"
        options = self._options(place.origin)
        if options is not None and not options.endpoints and service.headless:
            text = f"{title} is headless, and `noendpoints` leaves it no records"
        elif options is not None and options.ignore_empty_service and not service.headless:
            text = f"{text}, and `ignore empty_service` hides it"
        return Missing(text, (text,), True)

    def _bad_alias(self, service: Service, title: str, answered: Answered) -> Missing:
        last = answered.answer[-1][1] if answered.answer else None
        if last is None or last.type != rr.CNAME:
            return Missing(f"{title}: its externalName {service.external_name!r} is no domain name")
        target = names.lower(last.rdatas[0])
        text = f"{title} is an alias of {bare(target)}, which does not resolve"
        if self._view.zone_of(target) is None:
            return Missing(text)
        why = self.missing(target, rr.A, Answered(self._view.lookup(target, rr.A).rcode, "kubernetes"))
        return Missing(f"{text}: {why.text}", (f"{text}: {why.text}", *why.hints), True)

    def _nothing_below(
        self, zone: Zone, place: _Place, service: _AnyService, slices: Sequence[EndpointSlice]
    ) -> Missing:
        title = f"{service.key[0]} {place.namespace}/{place.service}"
        if isinstance(service, Service) and service.type == "ExternalName":
            text = f"{title} is an ExternalName: there is nothing below it"
            return Missing(text, (text,), True)
        if place.labels[0].startswith("_"):
            ports = [f"_{port.name}._{port.protocol.lower()}" for port in service.ports if port.name]
            text = f"{title} has no port {_port_text(place)}"
            hint = f"the named ports of {title}: {', '.join(ports) or 'none'}"
            return Missing(text, (hint,), True)
        if "_zone" in place.labels:
            return Missing(f"{title} has no names by topology zone: they need `zonal`, and a headless Service")
        label = place.labels[0]
        endpoints = [endpoint for piece in slices for subset in piece.subsets for endpoint in subset.endpoints]
        named = {name: endpoint for endpoint in endpoints for name in self._labels(zone, service, endpoint)}
        endpoint = named.get(label)
        if endpoint is not None and not endpoint.ready:
            text = f"endpoint {label} of {title} is not ready"
            return Missing(text, (text, *self._peers(zone, place, label)), True)
        text = f"{title} has no endpoint {label}"
        return Missing(text, tuple(self._called(title, label, named, endpoints)), bool(endpoints))

    def _called(self, title: str, label: str, named: dict[str, Endpoint], endpoints: Iterable[Endpoint]) -> list[str]:
        """How the endpoints of a Service are called instead."""
        of_pod = [name for name, endpoint in named.items() if endpoint.pod == label]
        if of_pod:
            return [f"pod {label} is there as {of_pod[0]}: it has no hostname (spec.hostname and spec.subdomain)"]
        known = sorted(named)
        if not known:
            return [f"{title} has no endpoints"]
        return [f"the endpoints of {title}: {_listed(known)}"]

    def _peers(self, zone: Zone, place: _Place, label: str) -> list[str]:
        """Other Services of the namespace that have a name for an endpoint, whether it is ready or not."""
        inventory = self._view.inventory(zone.source)
        found = []
        for key in inventory.keys("Service", f"{place.namespace}/"):
            name = key.partition("/")[2]
            service = inventory.service(place.namespace, name)
            if name == place.service or service is None or not service.publish_not_ready:
                continue
            if self._has_endpoint(inventory, place.namespace, name, label):
                short = self._short(name, place.namespace)
                found.append(f"Service {name} publishes what is not ready: {label}.{short}")
        return found[:_SHOWN]

    def _no_pod(self, zone: Zone, relative: Sequence[str], answered: Answered) -> Missing:
        if self._pods == "disabled":
            strong = len(relative) == 3 and pod_address(relative[0].encode()) is not None
            hint = "`pods insecure` or `pods verified` makes names of pods"
            return Missing("there are no names of pods (`pods disabled`)", (hint,), strong)
        if len(relative) < 3:
            return Missing(f"there is no namespace {relative[0]}" if answered.rcode else "it has no records itself")
        rdata = pod_address(relative[-3].encode()) if len(relative) == 3 else None
        if rdata is None:
            return Missing(f"{'.'.join(relative[:-2])} spells no address")
        inventory = self._view.inventory(zone.source)
        if not self._exists(inventory, relative[1]):
            text = f"there is no namespace {relative[1]}"
            return Missing(text, (text, *self._like_namespace(zone, relative[1])), True)
        return Missing(f"no running pod in namespace {relative[1]} has {rr.address_text(rdata)} (pods verified)")

    def _no_address(self, zone: Zone, name: bytes) -> Missing:
        address = _spelled(name)
        if address is None:
            return Missing(f"it is no name of an address, or of a part of {bare(zone.origin)}")
        inventory = self._view.inventory(zone.source)
        for item in self._view.objects("EndpointSlice"):
            if isinstance(item, EndpointSlice) and item.service:
                service = inventory.service(item.namespace, item.service)
                for subset in item.subsets:
                    for endpoint in subset.endpoints:
                        if service is not None and not endpoint.ready and address in endpoint.addresses:
                            text = (
                                f"{address} is {_label(endpoint)} of Service {item.namespace}/{item.service}, not ready"
                            )
                            return Missing(text, (text,), True)
        return Missing(f"no Service and no ready endpoint has {address}")

    # Objects

    def _exists(self, inventory: Inventory, namespace: str) -> bool:
        return inventory.get("Namespace", namespace) is not None or inventory.has_any(namespace)

    def _hidden(self, inventory: Inventory, namespace: str, service: _AnyService | None) -> str:
        """Why the settings do not show a namespace or Service that is there; "" if they do."""
        settings = self._settings
        if settings is None:
            return ""
        own = inventory.get("Namespace", namespace)
        labels = own.labels if isinstance(own, Namespace) else None
        if not settings.selects(namespace, labels):
            if settings.namespaces:
                shown = ", ".join(sorted(settings.namespaces))
                return f"namespace {namespace} is hidden: `namespaces` of the Corefile shows {shown}"
            return f"namespace {namespace} is hidden: `namespace_labels` of the Corefile does not match its labels"
        if isinstance(service, Service) and settings.labels is not None and not settings.labels(service.labels):
            return f"Service {namespace}/{service.name} is hidden: `labels` of the Corefile does not match its labels"
        return ""

    def _held(self, zone: Zone, place: _Place) -> tuple[_AnyService | None, list[EndpointSlice], str]:
        """The Service or ServiceImport of a name, its slices, and which of the two kinds it is.

        Which zones have names of ServiceImports is not known without the settings; then a Service comes first.
        """
        inventory, settings = self._view.inventory(zone.source), self._settings
        service: _AnyService | None = inventory.service(place.namespace, place.service)
        if zone.origin in settings.multicluster if settings is not None else service is None:
            imported = inventory.service_import(place.namespace, place.service)
            if imported is not None or settings is not None:
                slices = inventory.slices("imports", place.namespace, place.service)
                return imported, counting(slices), "ServiceImport"
        return service, counting(inventory.slices("slices", place.namespace, place.service)), "Service"

    def _options(self, origin: bytes) -> RecordOptions | None:
        return None if self._settings is None else self._settings.options(origin)

    def _labels(self, zone: Zone, service: _AnyService, endpoint: Endpoint) -> list[str]:
        """The labels that an endpoint has below its Service, were it ready."""
        if isinstance(service, ServiceImport):
            return [_label(endpoint)]
        options = self._options(zone.origin) or RecordOptions(zone.origin)
        piece = EndpointSlice(service.namespace, "", service.name, subsets=(Subset((), (endpoint,)),))
        alone = structs.replace(service, headless=True, cluster_ips=(), ports=(), publish_not_ready=True)
        made = records.derive(alone, [piece], options).names
        depth = len(names.labels(zone.origin)) + 4
        return [found[0].decode(errors="replace") for found in map(names.labels, made) if len(found) == depth]

    def _has_endpoint(self, inventory: Inventory, namespace: str, service: str, label: str) -> bool:
        return any(
            endpoint.hostname == label or endpoint.pod == label
            for piece in inventory.slices("slices", namespace, service)
            for subset in piece.subsets
            for endpoint in subset.endpoints
        )

    def _short(self, service: str, namespace: str) -> str:
        """The shortest name that the pod can use."""
        return service if namespace == self._namespace else f"{service}.{namespace}"

    def _like_namespace(self, zone: Zone, name: str) -> tuple[str, ...]:
        spaces = sorted(self._view.inventory(zone.source).all_namespaces())
        return tuple(f"a namespace with a similar name: {space}" for space in _alike(name, spaces))


def counting(slices: Iterable[EndpointSlice]) -> list[EndpointSlice]:
    """The slices that count: none of names, and Endpoints only where there is nothing else."""
    own = [piece for piece in slices if piece.address_type != "FQDN"]
    legacy = all(piece.legacy for piece in own)
    return [piece for piece in own if piece.legacy is legacy]


def _place(name: bytes, origin: bytes) -> _Place | None:
    """The parts of a name below svc.Z; None for another one."""
    relative = _relative(name, origin)
    if len(relative) < 3 or relative[-1] != "svc":
        return None
    return _Place(origin, relative[-2], relative[-3], tuple(relative[:-3]))


def _relative(name: bytes, origin: bytes) -> list[str]:
    """The labels of a name before those of its zone."""
    labels = names.labels(name[: len(name) - len(origin)] + names.ROOT)
    return [label.decode(errors="replace") for label in labels]


def bare(name: bytes) -> str:
    """A name without the dot at its end, as people write it."""
    return names.to_text(name).removesuffix(".") or "."


def _is_reverse(origin: bytes) -> bool:
    return origin.endswith((b"\x07in-addr\x04arpa\0", b"\x03ip6\x04arpa\0"))


def _spelled(name: bytes) -> str | None:
    """The address of a name under in-addr.arpa or ip6.arpa; None if it is not the name of one."""
    labels = [label.decode(errors="replace") for label in reversed(names.labels(name))]
    parts = labels[2:]
    v6 = len(parts) == 32
    groups = ["".join(parts[at : at + 4]) for at in range(0, 32, 4)]
    text = ":".join(groups) if v6 else ".".join(parts)
    try:
        address = rr.address_text(rr.address(text))
    except (OSError, ValueError):
        return None
    return address if names.lower(names.reverse(address)) == name else None


def _type(service: _AnyService) -> str:
    if service.headless:
        return "Headless"
    return service.type if isinstance(service, Service) else "ClusterSetIP"


def _type_text(service: _AnyService) -> str:
    kind = _type(service)
    if isinstance(service, Service) and kind == "ExternalName":
        return f"ExternalName {service.external_name}"
    return "headless" if service.headless else kind


def _port_text(place: _Place) -> str:
    return ".".join(place.labels[:2])


def _label(endpoint: Endpoint) -> str:
    return endpoint.hostname or endpoint.pod or next(iter(endpoint.addresses), "without an address")


def _slice(service: _AnyService, piece: EndpointSlice) -> Slice:
    everything = isinstance(service, Service) and service.publish_not_ready
    ready, not_ready = dict[str, None](), dict[str, None]()
    for subset in piece.subsets:
        for endpoint in subset.endpoints:
            (ready if endpoint.ready or everything else not_ready)[_label(endpoint)] = None
    return Slice(piece.key[0], piece.name, tuple(ready), tuple(not_ready))


def _slices_text(service: _AnyService, slices: Sequence[Slice]) -> str:
    if not slices:
        return "no EndpointSlice" if service.headless else "no EndpointSlice: there is nothing behind it"
    everything = isinstance(service, Service) and service.publish_not_ready
    parts = []
    for piece in slices[:_SHOWN]:
        count = f"{len(piece.ready)} {'in all' if everything else 'ready'}"
        failing = f", not ready: {_listed(piece.not_ready)}" if piece.not_ready else ""
        parts.append(f"{piece.kind} {piece.name} ({count}{failing})")
    if len(slices) > _SHOWN:
        parts.append(f"{len(slices) - _SHOWN} more")
    nothing = "" if service.headless or any(piece.ready for piece in slices) else "; nothing is ready behind it"
    return "; ".join(parts) + nothing


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def _alike(name: str, known: Iterable[str]) -> list[str]:
    """Names that somebody who wrote this one may have meant, the likeliest first; not the name itself."""
    return [found for found in difflib.get_close_matches(name, list(known), 3, _ALIKE) if found != name]
