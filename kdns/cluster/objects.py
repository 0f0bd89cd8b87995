"""Kubernetes objects in the few fields that become records.

Two layers. The structs with a public name are what the rest of kdns sees and what the store keeps: flat, frozen,
written as short MessagePack arrays. Those with an underscore mirror the JSON of the Kubernetes API
(https://kubernetes.io/docs/reference/kubernetes-api/), where null means the same as absence, and live only while an
object is read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Annotated, Any, NamedTuple, Protocol, TypeAlias, TypeVar

import msgspec
from msgspec import Struct, field

SERVICE_NAME = "kubernetes.io/service-name"
"""Label of an EndpointSlice: the Service that it belongs to."""
IMPORT_NAME = "multicluster.kubernetes.io/service-name"
SOURCE_CLUSTER = "multicluster.kubernetes.io/source-cluster"
"""Labels of an EndpointSlice that was imported (Multi-Cluster Services API): its ServiceImport and its cluster."""
DEFAULT_NAMESPACE = "default"

Key: TypeAlias = tuple[str, str, str]
"""Kind, namespace ("" for a Namespace) and name of an object."""


class Port(Struct, frozen=True, array_like=True, gc=False):
    """A port of a Service or of endpoints. name: "" if it has none. protocol: TCP, UDP or SCTP."""

    name: str
    protocol: str
    port: int


class Service(Struct, frozen=True, array_like=True, gc=False, tag="S", tag_field="tag"):
    """A Service.

    cluster_ips: addresses as text; empty for a headless Service, an ExternalName or one that has none assigned.
    headless: `clusterIP: None`. publish_not_ready: its endpoints count whether they are ready or not. external:
    addresses and host names by which it is reached from outside: its `externalIPs`, and what its load balancer has.
    """

    namespace: str
    name: str
    type: str = "ClusterIP"
    headless: bool = False
    cluster_ips: tuple[str, ...] = ()
    external_name: str = ""
    ports: tuple[Port, ...] = ()
    publish_not_ready: bool = False
    labels: dict[str, str] = {}
    external: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return "Service", self.namespace, self.name


class Endpoint(Struct, frozen=True, array_like=True, gc=False):
    """One endpoint. pod: name of the Pod it targets. zone: its topology zone. Texts are "" where there is none."""

    addresses: tuple[str, ...]
    ready: bool = True
    hostname: str = ""
    pod: str = ""
    node: str = ""
    zone: str = ""


class Subset(Struct, frozen=True, array_like=True, gc=False):
    """Endpoints that share their ports. A port that is open to any number is left out."""

    ports: tuple[Port, ...]
    endpoints: tuple[Endpoint, ...]


class EndpointSlice(Struct, frozen=True, array_like=True, gc=False, tag="E", tag_field="tag"):
    """An EndpointSlice, or a v1 Endpoints object (`legacy`), which counts only where a Service has no slices.

    service: name of the Service it belongs to, "" for none. address_type: IPv4, IPv6, FQDN; "" for Endpoints.
    subsets: one for a slice, any number for Endpoints. imported: name of the ServiceImport it belongs to, and cluster:
    the cluster that its endpoints are in; "" for none.
    """

    namespace: str
    name: str
    service: str
    address_type: str = "IPv4"
    subsets: tuple[Subset, ...] = ()
    legacy: bool = False
    imported: str = ""
    cluster: str = ""

    @property
    def key(self) -> Key:
        return "Endpoints" if self.legacy else "EndpointSlice", self.namespace, self.name


class Namespace(Struct, frozen=True, array_like=True, gc=False, tag="N", tag_field="tag"):
    """A Namespace."""

    name: str
    labels: dict[str, str] = {}

    @property
    def key(self) -> Key:
        return "Namespace", "", self.name


class Pod(Struct, frozen=True, array_like=True, gc=False, tag="P", tag_field="tag"):
    """A Pod. ips: addresses as text. running: it has not ended and is not being deleted."""

    namespace: str
    name: str
    ips: tuple[str, ...] = ()
    running: bool = True

    @property
    def key(self) -> Key:
        return "Pod", self.namespace, self.name


class ServiceImport(Struct, frozen=True, array_like=True, gc=False, tag="I", tag_field="tag"):
    """A Service of a cluster set (Multi-Cluster Services API). headless: it has no addresses of its own; else `ips`."""

    namespace: str
    name: str
    headless: bool = False
    ips: tuple[str, ...] = ()
    ports: tuple[Port, ...] = ()

    @property
    def key(self) -> Key:
        return "ServiceImport", self.namespace, self.name


Object: TypeAlias = Service | EndpointSlice | Namespace | Pod | ServiceImport

_packer = msgspec.msgpack.Encoder()
_unpacker: msgspec.msgpack.Decoder[Object] = msgspec.msgpack.Decoder(
    Service | EndpointSlice | Namespace | Pod | ServiceImport
)


_FIELDS = 0x90 + 1 + len(Service.__struct_fields__)
"""How a packed Service begins: an array of its kind and its fields."""


def pack(item: Object) -> bytes:
    """The object as the store keeps it: a MessagePack array of a one-letter kind and the fields in their order.

    A Service that has nothing `external` ends before it, as each did when there was no such field.
    """
    data = _packer.encode(item)
    if isinstance(item, Service) and not item.external:
        return bytes((_FIELDS - 1,)) + data[1:-1]
    return data


def unpack(data: bytes) -> Object:
    """The object that `pack` wrote. Raises msgspec.DecodeError for anything else."""
    try:
        return _unpacker.decode(data)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(str(error)) from None


class Packed(Mapping[Key, Object]):
    """Objects by their keys, kept packed: a fifth of the memory, and some microseconds for each that is looked at.

    rows: the objects as `pack` writes them.
    """

    __slots__ = ("rows",)

    def __init__(self) -> None:
        self.rows: dict[Key, bytes] = {}

    def put(self, item: Object) -> None:
        """Keep an object, in the place of another one of its key."""
        self.rows[item.key] = pack(item)

    def __getitem__(self, key: Key) -> Object:
        return unpack(self.rows[key])

    def __iter__(self) -> Iterator[Key]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


class Found(Protocol):
    """Where objects go that are read."""

    def append(self, item: Object, /) -> None:
        """Take an object."""


class _Annotations(Struct, frozen=True, gc=False):
    trigger_time: Any = field(name="endpoints.kubernetes.io/last-change-trigger-time", default=None)


class _Meta(Struct, frozen=True, gc=False, rename="camel"):
    name: str
    namespace: str | None = None
    labels: dict[str, str] | None = None
    deletion_timestamp: Any = None
    resource_version: Any = None
    annotations: _Annotations | None = None


_Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]


class _Port(Struct, frozen=True, gc=False):
    port: _Int32 | None = None
    name: str | None = None
    protocol: str | None = None


class _ServiceSpec(Struct, frozen=True, gc=False, rename="camel"):
    type: str | None = None
    cluster_ip: str | None = field(name="clusterIP", default=None)
    cluster_ips: tuple[str, ...] | None = field(name="clusterIPs", default=None)
    external_name: str | None = None
    ports: tuple[_Port, ...] | None = None
    publish_not_ready_addresses: bool | None = None
    external_ips: tuple[str, ...] | None = field(name="externalIPs", default=None)


class _Ingress(Struct, frozen=True, gc=False):
    ip: str | None = None
    hostname: str | None = None


class _LoadBalancer(Struct, frozen=True, gc=False):
    ingress: tuple[_Ingress, ...] | None = None


class _ServiceStatus(Struct, frozen=True, gc=False, rename="camel"):
    load_balancer: _LoadBalancer | None = None

    def places(self) -> list[str]:
        """The load balancer's addresses, and its host names where it has no address."""
        entries = self.load_balancer.ingress if self.load_balancer is not None else None
        return [entry.ip or entry.hostname or "" for entry in entries or ()]


class _Service(Struct, frozen=True, gc=False):
    metadata: _Meta
    spec: _ServiceSpec | None = None
    status: _ServiceStatus | None = None

    def slim(self) -> Service:
        meta, spec = self.metadata, self.spec or _ServiceSpec()
        balanced = self.status.places() if self.status is not None else []
        ips = spec.cluster_ips or ((spec.cluster_ip,) if spec.cluster_ip else ())
        kind = spec.type or "ClusterIP"
        return Service(
            namespace=_namespace(meta),
            name=meta.name,
            type=kind,
            headless=kind != "ExternalName" and ips[:1] == ("None",),
            cluster_ips=() if kind == "ExternalName" else tuple(ip for ip in ips if ip not in ("None", "")),
            external_name=spec.external_name or "",
            ports=_ports(spec.ports),
            publish_not_ready=bool(spec.publish_not_ready_addresses),
            labels=meta.labels or {},
            external=tuple(dict.fromkeys(filter(None, (*(spec.external_ips or ()), *balanced)))),
        )


class _Conditions(Struct, frozen=True, gc=False):
    ready: bool | None = None


class _Reference(Struct, frozen=True, gc=False):
    kind: str | None = None
    name: str | None = None


class _Endpoint(Struct, frozen=True, gc=False, rename="camel"):
    addresses: tuple[str, ...] | None = None
    conditions: _Conditions | None = None
    hostname: str | None = None
    target_ref: _Reference | None = None
    node_name: str | None = None
    zone: str | None = None

    def slim(self) -> Endpoint:
        return Endpoint(
            self.addresses or (),
            self.conditions is None or self.conditions.ready is not False,
            self.hostname or "",
            _pod(self.target_ref),
            sys.intern(self.node_name or ""),
            sys.intern(self.zone or ""),
        )


class _EndpointSlice(Struct, frozen=True, gc=False, rename="camel"):
    metadata: _Meta
    address_type: str | None = None
    ports: tuple[_Port, ...] | None = None
    endpoints: tuple[_Endpoint, ...] | None = None

    def slim(self) -> EndpointSlice:
        meta = self.metadata
        labels = meta.labels or {}
        endpoints = tuple([endpoint.slim() for endpoint in self.endpoints or ()])
        return EndpointSlice(
            namespace=_namespace(meta),
            name=meta.name,
            service=labels.get(SERVICE_NAME, ""),
            address_type=sys.intern(self.address_type or "IPv4"),
            subsets=(Subset(_ports(self.ports), endpoints),) if endpoints else (),
            imported=labels.get(IMPORT_NAME, ""),
            cluster=labels.get(SOURCE_CLUSTER, ""),
        )


class _Address(Struct, frozen=True, gc=False, rename="camel"):
    ip: str
    hostname: str | None = None
    node_name: str | None = None
    target_ref: _Reference | None = None

    def slim(self, ready: bool) -> Endpoint:
        return Endpoint((self.ip,), ready, self.hostname or "", _pod(self.target_ref), self.node_name or "")


class _Subset(Struct, frozen=True, gc=False, rename="camel"):
    addresses: tuple[_Address, ...] | None = None
    not_ready_addresses: tuple[_Address, ...] | None = None
    ports: tuple[_Port, ...] | None = None

    def slim(self) -> Subset:
        ready = [address.slim(True) for address in self.addresses or ()]
        unready = [address.slim(False) for address in self.not_ready_addresses or ()]
        return Subset(_ports(self.ports), tuple(ready + unready))


class _Endpoints(Struct, frozen=True, gc=False):
    metadata: _Meta
    subsets: tuple[_Subset, ...] | None = None

    def slim(self) -> EndpointSlice:
        meta = self.metadata
        subsets = tuple(subset.slim() for subset in self.subsets or ())
        return EndpointSlice(_namespace(meta), meta.name, meta.name, "", subsets, True)


class _Namespace(Struct, frozen=True, gc=False):
    metadata: _Meta

    def slim(self) -> Namespace:
        return Namespace(self.metadata.name, self.metadata.labels or {})


class _PodIP(Struct, frozen=True, gc=False):
    ip: str | None = None


class _PodStatus(Struct, frozen=True, gc=False):
    phase: str | None = None
    pod_ip: str | None = field(name="podIP", default=None)
    pod_ips: tuple[_PodIP, ...] | None = field(name="podIPs", default=None)


class _Pod(Struct, frozen=True, gc=False):
    metadata: _Meta
    status: _PodStatus | None = None

    def slim(self) -> Pod:
        meta, status = self.metadata, self.status or _PodStatus()
        ips = [entry.ip for entry in status.pod_ips or ()] or [status.pod_ip]
        running = meta.deletion_timestamp is None and status.phase not in ("Succeeded", "Failed", "Unknown")
        return Pod(_namespace(meta), meta.name, tuple(ip for ip in ips if ip), running)


class _ImportSpec(Struct, frozen=True, gc=False):
    type: str | None = None
    ips: tuple[str, ...] | None = None
    ports: tuple[_Port, ...] | None = None


class _ServiceImport(Struct, frozen=True, gc=False):
    metadata: _Meta
    spec: _ImportSpec | None = None

    def slim(self) -> ServiceImport:
        meta, spec = self.metadata, self.spec or _ImportSpec()
        headless = spec.type == "Headless"
        ips = () if headless else tuple(ip for ip in spec.ips or () if ip)
        return ServiceImport(_namespace(meta), meta.name, headless, ips, _ports(spec.ports))


def _namespace(meta: _Meta) -> str:
    return sys.intern(meta.namespace or DEFAULT_NAMESPACE)


def _ports(ports: Iterable[_Port] | None) -> tuple[Port, ...]:
    return tuple(
        [
            Port(sys.intern(port.name or ""), sys.intern(port.protocol or "TCP"), port.port)
            for port in ports or ()
            if port.port is not None
        ]
    )


def _pod(reference: _Reference | None) -> str:
    if reference is None or reference.kind not in ("Pod", None):
        return ""
    return reference.name or ""


_Form: TypeAlias = _Service | _EndpointSlice | _Endpoints | _Namespace | _Pod | _ServiceImport
_FORMS: Mapping[tuple[str, str], type[_Form]] = {
    ("v1", "Service"): _Service,
    ("discovery.k8s.io/v1", "EndpointSlice"): _EndpointSlice,
    ("v1", "Endpoints"): _Endpoints,
    ("v1", "Namespace"): _Namespace,
    ("v1", "Pod"): _Pod,
    ("multicluster.x-k8s.io/v1alpha1", "ServiceImport"): _ServiceImport,
}
_FormT = TypeVar("_FormT", bound=_Form)


def _json_decoder(form: type[_FormT]) -> msgspec.json.Decoder[_FormT]:
    return msgspec.json.Decoder(form)


_DECODERS = {key: _json_decoder(form) for key, form in _FORMS.items()}
_OF_KIND = {kind: decoder for (_, kind), decoder in _DECODERS.items()}


class _Head(Struct, frozen=True, gc=False, rename="camel"):
    """What tells the kind of a JSON object; `items` means something only if it is a list."""

    kind: str | None = None
    api_version: str | None = None
    items: msgspec.Raw = msgspec.Raw(b"null")


_head = msgspec.json.Decoder(_Head)
_items = msgspec.json.Decoder(list[msgspec.Raw] | None)


class ObjectError(ValueError):
    """Text that is no JSON, or an object that does not have the shape that Kubernetes gives it.

    item: the JSON of the object, or what was read in its place; empty where there was no JSON.
    path: where in the object, as in `$.spec.ports[0]`. at: the byte of `item` where it stops being JSON, else None.
    """

    def __init__(self, message: str, path: str, item: bytes = b"", at: int | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.item = item
        self.at = at


def from_json(data: bytes, found: Found) -> int:
    """Read one object or list of objects in the JSON form of the Kubernetes API, and append it to `found`.

    A list is anything with a kind that ends in List; its items may leave out their kind where the list's tells it.
    Returns how many objects were of other kinds. Raises ObjectError.
    """
    return _from_json(data, "", "", found)


def _from_json(data: bytes | msgspec.Raw, kind: str, version: str, found: Found) -> int:
    try:
        head = _head.decode(data)
        kind, version = head.kind or kind, head.api_version or version
        if kind.endswith("List"):
            kind = kind.removesuffix("List")
            return sum(_from_json(item, kind, version, found) for item in _items.decode(head.items) or ())
        decoder = _DECODERS.get((version, kind))
        if decoder is None:
            _refuse_version(kind, version, bytes(data))
            return 1
        found.append(decoder.decode(data).slim())
    except _UNREADABLE as error:
        raise _object_error(error, bytes(data)) from None
    return 0


_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def _object_error(error: Exception, data: bytes) -> ObjectError:
    """What a decoder's exception (one of `_UNREADABLE`) says about the JSON that it was given."""
    if isinstance(error, msgspec.ValidationError):
        return ObjectError(*_explained(error), data)
    if isinstance(error, msgspec.DecodeError):
        text, _, at = str(error).removesuffix(")").partition(" (byte ")
        return ObjectError(text, "$", data, int(at) if at else len(data))
    text = "text that is not UTF-8" if isinstance(error, UnicodeDecodeError) else "nested too deeply"
    return ObjectError(text, "$", data)


class Read(NamedTuple):
    """An object of the Kubernetes API, and what a watch has to know of it.

    key: as in the store ("namespace/name"; of a Namespace its name). version: its resourceVersion, "" for none.
    packed: see `pack`. trigger: when the change happened that made an EndpointSlice what it is now (Unix time), as far
    as it says so.
    """

    key: str
    version: str
    item: Object
    packed: bytes
    trigger: float | None


def read(kind: str, data: bytes | msgspec.Raw) -> Read:
    """Read the JSON of one object of a known kind, as an item of a list or in an event; it need not tell its kind.

    Raises ObjectError if it is no JSON, or has not the shape of that kind.
    """
    try:
        form = _OF_KIND[kind].decode(data)
    except _UNREADABLE as error:
        raise _object_error(error, bytes(data)) from None
    item, meta = form.slim(), form.metadata
    notes = meta.annotations
    return Read(
        meta.name if kind == "Namespace" else f"{item.key[1]}/{meta.name}",
        _text(meta.resource_version),
        item,
        pack(item),
        _unix_time(notes.trigger_time) if notes is not None and kind == "EndpointSlice" else None,
    )


class _AnyMeta(Struct, frozen=True, gc=False, rename="camel"):
    name: Any = None
    namespace: Any = None
    resource_version: Any = None
    annotations: Any = None


class _AnyObject(Struct, frozen=True, gc=False):
    metadata: _AnyMeta | None = None


_any_object = msgspec.json.Decoder(_AnyObject)


def identify(kind: str, data: bytes | msgspec.Raw) -> str | None:
    """The key, as `read` gives it, of an object that may have any shape; None if it does not tell its name."""
    try:
        meta = _any_object.decode(data).metadata
    except _UNREADABLE:
        return None
    if meta is None or not isinstance(meta.name, str) or not isinstance(meta.namespace, str | None):
        return None
    return meta.name if kind == "Namespace" else f"{meta.namespace or DEFAULT_NAMESPACE}/{meta.name}"


def read_bookmark(data: bytes | msgspec.Raw) -> tuple[str, bool]:
    """The resourceVersion of a bookmark's object, "" for none, and whether it ends a streaming list.

    Raises ObjectError.
    """
    try:
        meta = _any_object.decode(data).metadata or _AnyMeta()
    except _UNREADABLE as error:
        raise _object_error(error, bytes(data)) from None
    notes = meta.annotations if isinstance(meta.annotations, dict) else {}
    return _text(meta.resource_version), notes.get("k8s.io/initial-events-end") == "true"


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _unix_time(text: object) -> float | None:
    """Seconds since 1970 of an RFC 3339 time, None for anything else."""
    try:
        time = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return time.timestamp() if time is not None and time.tzinfo is not None else None


def _refuse_version(kind: str, version: str, item: bytes = b"", path: str = "$") -> None:
    """Raise ObjectError for an object that is meant for us and has no apiVersion, or one of another time.

    The same kind in another group is another kind: `serving.knative.dev/v1` has a Service too.
    """
    for accepted, known in _FORMS:
        group = accepted.rpartition("/")[0]
        if kind == known and (not version or (group and version.startswith(f"{group}/"))):
            raise ObjectError(
                f"{kind} of apiVersion {version!r} where {accepted!r} is expected", f"{path}.apiVersion", item
            )


def from_mapping(data: object, found: Found) -> int:
    """The same as `from_json` for an object that is already made of dict, list, str and so on.

    The `path` of an ObjectError starts at `data`.
    """
    return _from_mapping(data, "", "", "$", found)


def _from_mapping(data: object, kind: str, version: str, path: str, found: Found) -> int:
    if not isinstance(data, dict):
        raise ObjectError(f"expected an object with kind and apiVersion, got {type(data).__name__}", path)
    own_kind, own_version = data.get("kind"), data.get("apiVersion")
    kind = own_kind if isinstance(own_kind, str) else kind
    version = own_version if isinstance(own_version, str) else version
    if kind.endswith("List"):
        items = data.get("items") or ()
        if not isinstance(items, list | tuple):
            raise ObjectError(f"expected a list, got {type(items).__name__}", path + ".items")
        kind = kind.removesuffix("List")
        return sum(_from_mapping(item, kind, version, f"{path}.items[{at}]", found) for at, item in enumerate(items))
    form = _FORMS.get((version, kind))
    if form is None:
        _refuse_version(kind, version, path=path)
        return 1
    try:
        found.append(msgspec.convert(data, form).slim())
    except msgspec.ValidationError as error:
        message, place = _explained(error)
        raise ObjectError(message, path + place[1:]) from None
    return 0


def _explained(error: msgspec.ValidationError) -> tuple[str, str]:
    """What msgspec found wrong, and the path to it."""
    message, _, place = str(error).partition(" - at `")
    return message[:1].lower() + message[1:], "$" + place.partition("$")[2].rstrip("`")
