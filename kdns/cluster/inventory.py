"""The objects of a source in the zone store: what is there, what changes, and what depends on a change.

Beside the objects themselves, packed, by their kind and "namespace/name" (`kdns.cluster.objects`), the source keeps
three indexes without content, and how many objects of each kind there are:

    slices      "namespace/service/kind/name"   the EndpointSlices and Endpoints of a Service
    imports     "namespace/import/kind/name"    the EndpointSlices of a ServiceImport
    addresses   "namespace/address/pod"         the running Pods that have an address
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import msgspec

from kdns.cluster import objects
from kdns.cluster.delivery import Delivery
from kdns.cluster.objects import EndpointSlice, Key, Object, Pod, Service, ServiceImport
from kdns.wire import rr
from kdns.zone.store import Transaction

KINDS = ("Service", "EndpointSlice", "Endpoints", "Namespace", "Pod", "ServiceImport")

_LONGEST_NAME = 253
_LONGEST_LABEL = 63
_NOT_IN_NAMES = frozenset("/\0\n")
_USUAL = re.compile(r"[a-z0-9.-]{0,63}")
"""Most names."""
_MANY = 1000


class Inventory:
    """A source's objects in one transaction.

    changed: how many differ from what was there. warnings: one sentence for each object that could not be kept.

    What the changes affect, to be published again when all are made: services, imports: namespace and name. pods:
    namespace and address. namespaces: those that may have come or gone. cluster_ips, external_ips: of Services that
    changed, before and after.
    """

    def __init__(self, txn: Transaction, source: str) -> None:
        self.txn = txn
        self.source = source
        self.changed = 0
        self.warnings: list[str] = []
        self.services: set[tuple[str, str]] = set()
        self.imports: set[tuple[str, str]] = set()
        self.pods: set[tuple[str, str]] = set()
        self.namespaces: set[str] = set()
        self.cluster_ips: dict[tuple[str, str], set[bytes]] = {}
        self.external_ips: dict[tuple[str, str], set[bytes]] = {}
        self._counts = counts(txn, source)
        self._was_empty = not any(self._counts.values())

    # What is there

    @property
    def size(self) -> int:
        """How many objects there are."""
        return sum(self._counts.values())

    @property
    def is_new(self) -> bool:
        """So much has changed that all records can as well be made anew; they must, if there was no object before."""
        affected = len(self.services) + len(self.imports) + len(self.pods)
        owners = sum(self._counts[kind] for kind in ("Service", "ServiceImport", "Pod"))
        return (self._was_empty and self.changed > 0) or (affected > _MANY and affected * 4 > owners)

    def get(self, kind: str, key: str) -> Object | None:
        """An object by its key; None if it is not there."""
        data = self.txn.get_object(self.source, kind, key)
        return None if data is None else objects.unpack(data)

    def service(self, namespace: str, name: str) -> Service | None:
        """A Service."""
        found = self.get("Service", f"{namespace}/{name}")
        return found if isinstance(found, Service) else None

    def service_import(self, namespace: str, name: str) -> ServiceImport | None:
        """A ServiceImport."""
        found = self.get("ServiceImport", f"{namespace}/{name}")
        return found if isinstance(found, ServiceImport) else None

    def slices(self, index: str, namespace: str, name: str) -> list[EndpointSlice]:
        """The EndpointSlices and Endpoints of a Service (index "slices") or a ServiceImport ("imports")."""
        found = []
        for key in self.keys(index, f"{namespace}/{name}/"):
            _, _, kind, own = key.split("/")
            piece = self.get(kind, f"{namespace}/{own}")
            if isinstance(piece, EndpointSlice):
                found.append(piece)
        return found

    def keys(self, kind: str, prefix: str = "") -> Iterator[str]:
        """The keys of a kind, or of an index, that start so. Nothing of the kind may be written meanwhile."""
        return self.txn.object_keys(self.source, kind, prefix)

    def has_any(self, namespace: str) -> bool:
        """True if there is an object in the namespace."""
        return any(next(self.keys(kind, f"{namespace}/"), None) is not None for kind in KINDS if kind != "Namespace")

    def all_namespaces(self) -> set[str]:
        """Every namespace that exists itself or has an object."""
        return {key.partition("/")[0] for kind in KINDS if self._counts[kind] for key in self.keys(kind)}

    # Changes

    def take(self, delivery: Delivery) -> None:
        """Make a delivery's objects what is there; those that do not differ cost a comparison and nothing else."""
        kind, rows = delivery.kind, delivery.rows
        if not delivery.complete:
            for key, row in rows.items():
                if is_storable(kind, key):
                    self._take(kind, key, row, self.txn.get_object(self.source, kind, key))
                elif row is not None:
                    self._refuse(kind, key)
            return
        seen = set()
        differing: list[tuple[str, bytes | None, bytes]] = []
        for key, old in self.txn.objects(self.source, kind):
            row = rows.get(key)
            seen.add(key)
            if row != old and not (row is None and key in delivery.kept):
                differing.append((key, row, old))
        for key, row, old in differing:
            self._take(kind, key, row, old)
        for key in rows.keys() - seen:
            self._take(kind, key, rows[key], None)

    def _take(self, kind: str, key: str, row: bytes | None, old: bytes | None) -> None:
        """Put an object in the place of an old one, or delete it, or refuse it, which deletes what was there too."""
        if row == old:
            return
        item = objects.unpack(row) if row is not None else None
        if item is not None and not is_storable(kind, key, item):
            self._refuse(kind, key)
            item = row = None
            if old is None:
                return
        before = None if old is None else objects.unpack(old)
        self.changed += 1
        self._counts[kind] += (item is not None) - (before is not None)
        if item is None or row is None:
            self.txn.delete_object(self.source, kind, key)
        else:
            self.txn.put_object(self.source, kind, key, row)
        self._reindex(before, item)
        if self._was_empty:
            return  # everything is affected
        for one in (before, item):
            if one is not None:
                self._affects(one)
        if before is None or item is None:
            self.namespaces.add(key.partition("/")[0])

    def _refuse(self, kind: str, key: str) -> None:
        self.warnings.append(refusal(kind, key))

    def _reindex(self, before: Object | None, item: Object | None) -> None:
        gone, come = _index_keys(before), _index_keys(item)
        for index, key in gone - come:
            self.txn.delete_object(self.source, index, key)
        for index, key in come - gone:
            self.txn.put_object(self.source, index, key, b"")

    def _affects(self, item: Object) -> None:
        """Note what has to be published again when an object comes, goes or becomes another."""
        if isinstance(item, Service):
            self.services.add((item.namespace, item.name))
            self.cluster_ips.setdefault((item.namespace, item.name), set()).update(rdatas(item.cluster_ips))
            if item.external:
                self.external_ips.setdefault((item.namespace, item.name), set()).update(rdatas(item.external))
        elif isinstance(item, EndpointSlice):
            if item.service:
                self.services.add((item.namespace, item.service))
            if item.imported:
                self.imports.add((item.namespace, item.imported))
        elif isinstance(item, ServiceImport):
            self.imports.add((item.namespace, item.name))
        elif isinstance(item, Pod):
            self.pods.update((item.namespace, rr.address_text(rdata)) for rdata in rdatas(item.ips))
        else:
            self.namespaces.add(item.name)

    def affect_all(self, namespace: str) -> None:
        """Note that all that is in a namespace has to be published again."""
        self.services.update((namespace, key.partition("/")[2]) for key in self.keys("Service", f"{namespace}/"))
        self.imports.update((namespace, key.partition("/")[2]) for key in self.keys("ServiceImport", f"{namespace}/"))
        self.pods.update((namespace, key.split("/")[1]) for key in self.keys("addresses", f"{namespace}/"))

    def finish(self) -> None:
        """Write down how many objects there are."""
        self.txn.put_meta(f"counts {self.source}", msgspec.msgpack.encode(self._counts))


def counts(txn: Transaction, source: str) -> dict[str, int]:
    """How many objects of each kind a source has."""
    kept = txn.get_meta(f"counts {source}")
    return dict.fromkeys(KINDS, 0) if kept is None else msgspec.msgpack.decode(kept, type=dict[str, int])


def key_text(key: Key) -> str:
    """As in the store: "namespace/name", or the name of a Namespace."""
    kind, namespace, name = key
    return name if kind == "Namespace" else f"{namespace}/{name}"


def is_storable(kind: str, key: str, item: Object | None = None) -> bool:
    """True if Kubernetes could have given an object its names, and those that it belongs to; else it cannot be kept."""
    labels = (item.service, item.imported) if isinstance(item, EndpointSlice) else ()
    namespace, slash, name = ("", "/", key) if kind == "Namespace" else key.partition("/")
    if not slash or all(map(_USUAL.fullmatch, (namespace, name, *labels))):
        return bool(slash)
    short = (namespace, *labels, name) if kind in ("Service", "ServiceImport", "Namespace") else (namespace, *labels)
    return (
        all(len(text.encode()) <= _LONGEST_LABEL for text in short)
        and len(name.encode()) <= _LONGEST_NAME
        and key == key.lower()
        and _NOT_IN_NAMES.isdisjoint("".join((namespace, name, *labels)))
    )


def refusal(kind: str, key: str) -> str:
    """The warning about an object that is not storable."""
    return f"{kind} {key!r:.300}: a name that Kubernetes does not allow, not published"


def rdatas(addresses: Iterable[str]) -> set[bytes]:
    """The addresses that are some (4 or 16 bytes)."""
    found = set()
    for text in addresses:
        try:
            found.add(rr.address(text))
        except (OSError, ValueError):
            continue
    return found


def _index_keys(item: Object | None) -> set[tuple[str, str]]:
    """Index and key of each index entry of an object."""
    if isinstance(item, EndpointSlice):
        owners = (("slices", item.service), ("imports", item.imported))
        return {(index, f"{item.namespace}/{name}/{item.key[0]}/{item.name}") for index, name in owners if name}
    if isinstance(item, Pod) and item.running:
        texts = map(rr.address_text, rdatas(item.ips))
        return {("addresses", f"{item.namespace}/{ip}/{item.name}") for ip in texts}
    return set()
