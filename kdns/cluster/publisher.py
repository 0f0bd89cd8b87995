"""From objects to the zone store: what has changed in the cluster becomes changed records, and nothing else is touched.

The objects are kept in the store beside the records, in the same transaction, so that a start knows what the records
were made of. Beside the objects themselves (`kdns.cluster.objects`, by their kind and "namespace/name") the source
keeps two indexes without content:

    slices   "namespace/service/kind/name"   the EndpointSlices and Endpoints of a Service
    addresses   "namespace/address/pod"      the running Pods that have an address
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import MethodType

from kdns.cluster import objects, records
from kdns.cluster.objects import EndpointSlice, Key, Namespace, Object, Pod, Service
from kdns.cluster.records import RecordOptions, ServiceRecords
from kdns.wire import names, rr
from kdns.wire.rrset import RRset
from kdns.zone.store import EXPIRED, SYNCED, UNSYNCED, Records, Store, Transaction, Zone

KINDS = ("Service", "EndpointSlice", "Endpoints", "Namespace", "Pod")
Matches = Callable[[Mapping[str, str]], bool]

_LONGEST_NAME = 253
_LONGEST_LABEL = 63
_NOT_IN_NAMES = frozenset("/\0\n")
_PORTION = 2000
"""Entries that are written together when a zone is filled."""
_SCHEMA = "1"
"""Part of the fingerprint: raised when the same objects and settings make other records than before."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the `kubernetes` directive says about what is published.

    forward, reverse: origins, lower case; the first forward zone is the one that PTR records point into.
    namespaces: those to show, all if empty. namespace_labels, labels: selectors, None for all. listens: addresses of
    this server as text. records: options of all forward zones; its own zone does not count.
    """

    forward: tuple[bytes, ...]
    reverse: tuple[bytes, ...] = ()
    namespaces: frozenset[str] = frozenset()
    namespace_labels: Matches | None = None
    labels: Matches | None = None
    listens: tuple[str, ...] = ()
    records: RecordOptions = field(default_factory=lambda: RecordOptions(names.ROOT))

    def options(self, zone: bytes) -> RecordOptions:
        """The options of one forward zone."""
        return replace(self.records, zone=zone)

    @property
    def fingerprint(self) -> bytes:
        """The same for settings that make the same records."""
        return hashlib.sha256(f"{_SCHEMA}{_canonical(self)}".encode()).digest()


@dataclass(slots=True)
class Outcome:
    """What a call has done. changed: objects that differ from what was there. warnings: one sentence each."""

    changed: int = 0
    warnings: list[str] = field(default_factory=list)


class Publisher:
    """Keeps the zones of one source in line with its objects.

    source: identifies it in the store across restarts.
    """

    def __init__(self, store: Store, source: str, settings: Settings) -> None:
        self.source = source
        self.settings = settings
        self._store = store
        self._listens = {rr.address(text) for text in settings.listens}
        self.zones = store.write(self._zones)
        self._reverse = names.Zones({origin: self.zones[origin] for origin in settings.reverse})

    def _zones(self, txn: Transaction) -> dict[bytes, Zone]:
        """The zones by origin, made if they are not there; those that the settings no longer have are dropped."""
        wanted = (*self.settings.forward, *self.settings.reverse)
        for zone in txn.zones():
            if zone.source == self.source and zone.origin not in wanted:
                txn.drop_zone(zone)
        zones = {origin: txn.add_zone(self.source, origin) for origin in wanted}
        for zone in zones.values():
            if txn.get(zone, zone.origin) is None:
                self._put_apex(txn, zone, ())
        return zones

    # State

    def age(self) -> float | None:
        """Seconds since the objects in the store were last known to be current; None if they never were."""
        stamp = self._store.read(lambda txn: txn.get_meta(f"current {self.source}"))
        return None if stamp is None else max(0.0, time.time() - float(stamp))

    def touch(self) -> None:
        """Note that the objects in the store are current now."""
        self._store.write(self._stamp)

    def _stamp(self, txn: Transaction) -> None:
        txn.put_meta(f"current {self.source}", f"{time.time():.3f}".encode())

    def expire(self) -> None:
        """Stop answering from the data, because it is too old, until `replace` has put in new."""

        def action(txn: Transaction) -> None:
            for zone in self.zones.values():
                if txn.zone(zone.number).state == SYNCED:
                    txn.set_state(zone, EXPIRED)

        self._store.write(action)

    @property
    def synced(self) -> bool:
        """True if all objects have been published once, be it before a restart, and may be served."""
        return self._store.read(lambda txn: all(txn.zone(zone.number).state == SYNCED for zone in self.zones.values()))

    def counts(self) -> dict[str, int]:
        """How many objects of each kind there are."""
        return self._store.read(lambda txn: {kind: sum(1 for _ in txn.objects(self.source, kind)) for kind in KINDS})

    # Changes

    def replace(self, items: Iterable[Object], *, keep: bool = False) -> Outcome:
        """Make the given objects all that there are.

        keep: those stay that are there and are not given, and so do the age of the data and the state of the zones.
        """
        warnings: list[str] = []
        wanted = {item.key: item for item in _storable(items, warnings)}
        fingerprint = f"settings {self.source}"

        def action(txn: Transaction) -> Outcome:
            kept = txn.get_meta(fingerprint)
            have = {(kind, *_parts(kind, key)): data for kind in KINDS for key, data in txn.objects(self.source, kind)}
            if keep:
                for key, data in have.items():
                    wanted.setdefault(key, objects.unpack(data))
            if kept == self.settings.fingerprint and have:
                update = _Update(self, txn)
                for key in have.keys() - wanted.keys():
                    update.delete(key)
                for key, item in wanted.items():
                    update.put(item, have.get(key))
                outcome = update.publish()
            else:
                outcome = self._rebuild(txn, wanted)
            txn.put_meta(fingerprint, self.settings.fingerprint)
            if not keep:
                for zone in self.zones.values():
                    txn.set_state(zone, SYNCED)
            if not keep or txn.get_meta(f"current {self.source}") is None:
                self._stamp(txn)
            return replace(outcome, warnings=warnings + outcome.warnings)

        return self._store.write(action)

    def apply(self, puts: Iterable[Object], deletes: Iterable[Key], *, current: bool = True) -> Outcome:
        """Put and delete objects, deletes first, in one transaction.

        current: with this, the store has all that the source has now.
        """
        warnings: list[str] = []
        items = tuple(puts)
        puts = _storable(items, warnings)
        refused = {item.key for item in items} - {item.key for item in puts}
        deletes = [key for key in (*deletes, *sorted(refused)) if _is_storable(key)]

        def action(txn: Transaction) -> Outcome:
            update = _Update(self, txn)
            for key in deletes:
                update.delete(key)
            for item in puts:
                update.put(item)
            outcome = update.publish()
            if current:
                self._stamp(txn)
            return replace(outcome, warnings=warnings + outcome.warnings)

        return self._store.write(action)

    def _rebuild(self, txn: Transaction, items: dict[Key, Object]) -> Outcome:
        """Work out everything anew, and write what differs."""
        for kind in (*KINDS, "slices", "addresses"):
            for key in [key for key, _ in txn.objects(self.source, kind)]:
                txn.delete_object(self.source, kind, key)
        for kind in KINDS:
            rows = [(_key_text(key), objects.pack(item)) for key, item in items.items() if key[0] == kind]
            txn.fill_objects(self.source, kind, rows)
        outcome = Outcome(len(items))
        for index in ("slices", "addresses"):
            rows = [(key, b"") for item in items.values() for name, key in _index_keys(item) if name == index]
            txn.fill_objects(self.source, index, rows)
        sinks = {origin: _Sink(txn, zone) for origin, zone in self.zones.items()}
        own = self._work_out(items, sinks, outcome.warnings)
        txn.put_meta(f"own services {self.source}", "\n".join(sorted(own)).encode())
        for zone in self.zones.values():
            sinks[zone.origin].finish(self._apex(txn, zone, self._addresses(txn, sorted(own))))
        return outcome

    def _work_out(self, items: dict[Key, Object], sinks: Mapping[bytes, _Sink], warnings: list[str]) -> set[str]:
        """Give all entries but those of the apexes to the sinks; returns the keys of the Services that select this
        server."""
        settings = self.settings
        own: set[str] = set()
        slices: dict[tuple[str, str], list[EndpointSlice]] = {}
        labels: dict[str, Mapping[str, str]] = {}
        for item in items.values():
            if isinstance(item, EndpointSlice):
                slices.setdefault((item.namespace, item.service), []).append(item)
            if isinstance(item, Namespace):
                labels[item.name] = item.labels
            else:
                labels.setdefault(item.namespace, {})
        shown = {name for name, found in labels.items() if self.selects(name, found)}
        pointers: dict[bytes, tuple[bytes, ...]] = {}
        for origin in settings.forward:
            options, put = settings.options(origin), sinks[origin].put
            warn = warnings.append if origin == settings.forward[0] else _silent
            for namespace in sorted(shown):
                for name in records.namespace_names(namespace, options, warn):
                    put(name, ())
            for item in items.values():
                if isinstance(item, Service):
                    own_slices = slices.get((item.namespace, item.name), [])
                    if self.is_own(own_slices):
                        own.add(f"{item.namespace}/{item.name}")
                    if item.namespace not in shown or not _selected(settings, item):
                        continue
                    derived = records.derive(item, own_slices, options, warn)
                    owner = _service_owner(item.namespace, item.name, origin)
                    if owner is None:
                        continue
                    for name, rrsets in self.service_names(derived, owner).items():
                        put(name, rrsets)
                    if origin == settings.forward[0]:
                        for rdata, targets in derived.pointers.items():
                            pointers[rdata] = pointers.get(rdata, ()) + targets
                elif isinstance(item, Pod) and item.namespace in shown:
                    for name, rrsets in records.pod_records(item, options, warn).items():
                        put(name, rrsets)
        for rdata, targets in pointers.items():
            name = records.reverse_owner(rdata)
            zone = self.reverse_zone(name)
            if zone is not None:
                sinks[zone.origin].put(name, (RRset(rr.PTR, settings.records.ttl, tuple(sorted(targets))),))
        return own

    # Apexes

    def _apex(self, txn: Transaction, zone: Zone, addresses: Iterable[str]) -> dict[bytes, Records]:
        serial = txn.zone(zone.number).serial
        found: dict[bytes, Records] = dict(records.apex(zone.origin, serial, self.settings.records.ttl, addresses))
        if zone.origin in self.settings.forward:
            for name in records.structural_names(self.settings.options(zone.origin)):
                found[name] = ()
        return found

    def _put_apex(self, txn: Transaction, zone: Zone, own: Iterable[str]) -> None:
        apex = self._apex(txn, zone, self._addresses(txn, own))
        nameserver = b"\x02ns\x03dns" + zone.origin
        if nameserver not in apex:
            txn.delete(zone, nameserver)
        apex[zone.origin] += _pointers(txn.get(zone, zone.origin))
        for name, rrsets in apex.items():
            txn.put(zone, name, rrsets)

    def _addresses(self, txn: Transaction, own: Iterable[str]) -> list[str]:
        """The addresses of ns.dns.Z: of the Services that select this server, else those that it listens on."""
        found: set[str] = set()
        for key in own:
            data = txn.get_object(self.source, "Service", key)
            service = objects.unpack(data) if data is not None else None
            if isinstance(service, Service):
                found.update(map(rr.address_text, _rdatas(service.cluster_ips)))
        return sorted(found) or sorted(self.settings.listens)

    # Objects of the transaction

    def shows(self, txn: Transaction, namespace: str) -> bool:
        """True if a namespace exists (itself or by an object in it) and the settings show it."""
        data = txn.get_object(self.source, "Namespace", namespace)
        own = objects.unpack(data) if data is not None else None
        labels = own.labels if isinstance(own, Namespace) else {}
        return self.selects(namespace, labels) and (
            own is not None or any(self._any_object(txn, kind, namespace) for kind in KINDS if kind != "Namespace")
        )

    def selects(self, namespace: str, labels: Mapping[str, str]) -> bool:
        """True if the settings show a namespace of this name with these labels."""
        settings = self.settings
        if settings.namespaces and namespace not in settings.namespaces:
            return False
        return settings.namespace_labels is None or settings.namespace_labels(labels)

    def _any_object(self, txn: Transaction, kind: str, namespace: str) -> bool:
        return next(iter(txn.objects(self.source, kind, f"{namespace}/")), None) is not None

    def is_own(self, slices: Iterable[EndpointSlice]) -> bool:
        """True if one of the endpoints is this server."""
        return bool(self._listens) and any(
            not self._listens.isdisjoint(_rdatas(endpoint.addresses))
            for piece in slices
            for subset in piece.subsets
            for endpoint in subset.endpoints
        )

    def service_names(self, derived: ServiceRecords, owner: bytes) -> dict[bytes, Records]:
        """All entries of a Service in a forward zone, those of its topology zones included.

        These are at one label below _zone.S.N.svc.Z: the topology zone, dots included, or `*` for all endpoints.
        """
        found: dict[bytes, Records] = dict(derived.names)
        for zone, rrsets in derived.zonal.items():
            label = zone.encode() or b"*"
            if len(label) > names.MAX_LABEL:
                continue
            name = bytes((len(label),)) + label + b"\x05_zone" + owner
            if len(name) <= names.MAX_NAME:
                found[name] = rrsets
        return found

    def reverse_zone(self, owner: bytes) -> Zone | None:
        """The reverse zone that a name belongs into."""
        return self._reverse.find(owner)


class _Sink:
    """Takes all entries of a zone, and makes them what the zone holds.

    A zone that has never been filled takes them as they come; for another they are gathered, to write what differs.
    """

    def __init__(self, txn: Transaction, zone: Zone) -> None:
        self._txn = txn
        self._zone = zone
        self._fresh = txn.zone(zone.number).state == UNSYNCED
        if self._fresh:
            txn.clear(zone)
        self._entries: dict[bytes, Records] = {}
        self._at_apex: Records = ()

    def put(self, name: bytes, rrsets: Records) -> None:
        """Take an entry. One at the apex comes beside what the apex has anyway."""
        if name == self._zone.origin:
            self._at_apex = rrsets
            return
        self._entries[name] = rrsets
        if self._fresh and len(self._entries) >= _PORTION:
            self._txn.fill(self._zone, self._entries.items())
            self._entries.clear()

    def finish(self, apex: dict[bytes, Records]) -> None:
        """Write what is left, and the entries of the apex."""
        txn, zone = self._txn, self._zone
        found = self._entries | apex
        found[zone.origin] += self._at_apex
        if self._fresh:
            txn.put(zone, zone.origin, found.pop(zone.origin))
            txn.fill(zone, found.items())
            return
        for name in [name for name, _ in txn.below(zone, zone.origin) if name not in found]:
            txn.delete(zone, name)
        for name, rrsets in found.items():
            txn.put(zone, name, rrsets)


class _Update:
    """One transaction's changes: first the objects, then whatever depends on one that changed."""

    def __init__(self, publisher: Publisher, txn: Transaction) -> None:
        self._publisher = publisher
        self._source = publisher.source
        self._txn = txn
        self._outcome = Outcome()
        self._services: set[tuple[str, str]] = set()
        self._namespaces: set[str] = set()
        self._pods: set[tuple[str, str]] = set()
        self._cluster_ips: dict[tuple[str, str], set[bytes]] = {}

    def put(self, item: Object, old: bytes | None = None) -> None:
        """Put an object; nothing happens if it is there already. old: what the store has, if that is known."""
        key = _key_text(item.key)
        data = objects.pack(item)
        if old is None:
            old = self._txn.get_object(self._source, item.key[0], key)
        if old == data:
            return
        if old is not None:
            self._affects(objects.unpack(old), gone=True)
        self._txn.put_object(self._source, item.key[0], key, data)
        self._affects(item, gone=False)
        self._outcome.changed += 1

    def delete(self, key: Key) -> None:
        """Delete an object, if it is there."""
        text = _key_text(key)
        old = self._txn.get_object(self._source, key[0], text)
        if old is not None:
            self._txn.delete_object(self._source, key[0], text)
            self._affects(objects.unpack(old), gone=True)
            self._outcome.changed += 1

    def _affects(self, item: Object, *, gone: bool) -> None:
        """Bring the indexes in line, and note what has to be published again."""
        for index, key in _index_keys(item):
            if gone:
                self._txn.delete_object(self._source, index, key)
            else:
                self._txn.put_object(self._source, index, key, b"")
        if isinstance(item, Namespace):
            self._namespaces.add(item.name)
            return
        self._namespaces.add(item.namespace)
        if isinstance(item, Service):
            self._services.add((item.namespace, item.name))
            self._cluster_ips.setdefault((item.namespace, item.name), set()).update(_rdatas(item.cluster_ips))
        elif isinstance(item, EndpointSlice):
            self._services.add((item.namespace, item.service))
        else:
            self._pods.update((item.namespace, rr.address_text(rdata)) for rdata in _rdatas(item.ips))

    def publish(self) -> Outcome:
        """Write the records of all that is affected."""
        publisher, txn = self._publisher, self._txn
        for namespace in self._namespaces:
            self._publish_namespace(namespace)
        shown = {namespace: publisher.shows(txn, namespace) for namespace, _ in self._services | self._pods}
        own_before = own_services(txn, self._source)
        own = set(own_before)
        for namespace, name in self._services:
            if self._publish_service(namespace, name, shown[namespace]):
                own.add(f"{namespace}/{name}")
            else:
                own.discard(f"{namespace}/{name}")
        for namespace, ip in self._pods:
            self._publish_pod(namespace, ip, shown[namespace])
        if own != own_before or any(f"{namespace}/{name}" in own for namespace, name in self._services):
            txn.put_meta(f"own services {self._source}", "\n".join(sorted(own)).encode())
            for zone in publisher.zones.values():
                publisher._put_apex(txn, zone, sorted(own))
        return self._outcome

    def _publish_namespace(self, namespace: str) -> None:
        """Make a namespace's own names exist or not. If that changes, all that is in it is affected too."""
        publisher, txn = self._publisher, self._txn
        shown = publisher.shows(txn, namespace)
        for origin in publisher.settings.forward:
            zone = publisher.zones[origin]
            for name in records.namespace_names(namespace, publisher.settings.options(origin), self._warn(origin)):
                if txn.put(zone, name, ()) if shown else txn.delete(zone, name):
                    self._affect_all(namespace)

    def _affect_all(self, namespace: str) -> None:
        for key, _ in self._txn.objects(self._source, "Service", f"{namespace}/"):
            self._services.add((namespace, key.partition("/")[2]))
        for key, _ in self._txn.objects(self._source, "addresses", f"{namespace}/"):
            self._pods.add((namespace, key.split("/")[1]))

    def _publish_service(self, namespace: str, name: str, shown: bool) -> bool:
        """Write what has changed about a Service; True if it selects this server."""
        publisher, txn = self._publisher, self._txn
        settings = publisher.settings
        service = self._object("Service", f"{namespace}/{name}")
        slices = [piece for piece in self._slices(namespace, name) if isinstance(piece, EndpointSlice)]
        if not isinstance(service, Service):
            service = None
        show = shown and service is not None and _selected(settings, service)
        for origin in settings.forward:
            zone = publisher.zones[origin]
            owner = _service_owner(namespace, name, origin)
            if owner is None:
                continue
            derived = ServiceRecords({}, {}, {})
            if show and service is not None:
                derived = records.derive(service, slices, settings.options(origin), self._warn(origin))
            wanted = publisher.service_names(derived, owner)
            before = dict(txn.below(zone, owner))
            if origin == settings.forward[0]:
                # PTR records may point to a name without addresses (`ignore_empty_service`).
                once = addresses_in(before) | self._cluster_ips.get((namespace, name), set())
                if service is not None:
                    once |= _rdatas(service.cluster_ips)
                self._publish_pointers(owner, once, derived.pointers)
            for entry in before.keys() - wanted.keys():
                txn.delete(zone, entry)
            for entry, rrsets in wanted.items():
                if before.get(entry) != rrsets:
                    txn.put(zone, entry, rrsets)
        return service is not None and publisher.is_own(slices)

    def _publish_pointers(self, owner: bytes, once: set[bytes], pointers: dict[bytes, tuple[bytes, ...]]) -> None:
        """Bring the PTR records in line that point to a Service's names; those to other Services stay.

        once: addresses whose PTR records may have pointed there until now.
        """
        publisher, txn = self._publisher, self._txn
        for rdata in once | pointers.keys():
            name = records.reverse_owner(rdata)
            zone = publisher.reverse_zone(name)
            if zone is None:
                continue
            there = txn.get(zone, name)
            have = {target for rrset in _pointers(there) for target in rrset.rdatas}
            targets = {target for target in have if not names.is_subdomain(target, owner)}
            targets.update(pointers.get(rdata, ()))
            if targets == have:
                continue
            rrsets = tuple(rrset for rrset in there or () if rrset.type != rr.PTR)  # the zone of one address: its apex
            if targets:
                rrsets += (RRset(rr.PTR, publisher.settings.records.ttl, tuple(sorted(targets))),)
            if rrsets:
                txn.put(zone, name, rrsets)
            else:
                txn.delete(zone, name)

    def _publish_pod(self, namespace: str, ip: str, shown: bool) -> None:
        publisher, txn = self._publisher, self._txn
        used = next(iter(txn.objects(self._source, "addresses", f"{namespace}/{ip}/")), None) is not None
        for origin in publisher.settings.forward:
            zone = publisher.zones[origin]
            options = publisher.settings.options(origin)
            pod = Pod(namespace, ip, (ip,), True)
            for name, rrsets in records.pod_records(pod, options, self._warn(origin)).items():
                if used and shown:
                    txn.put(zone, name, rrsets)
                else:
                    txn.delete(zone, name)

    def _object(self, kind: str, key: str) -> Object | None:
        data = self._txn.get_object(self._source, kind, key)
        return None if data is None else objects.unpack(data)

    def _slices(self, namespace: str, service: str) -> list[Object | None]:
        keys = [key for key, _ in self._txn.objects(self._source, "slices", f"{namespace}/{service}/")]
        return [self._object(key.split("/")[2], f"{namespace}/{key.split('/')[3]}") for key in keys]

    def _warn(self, origin: bytes) -> records.Warn:
        """Warnings are given once, not once for each zone."""
        return self._outcome.warnings.append if origin == self._publisher.settings.forward[0] else _silent


def own_services(txn: Transaction, source: str) -> set[str]:
    """Keys ("namespace/name") of the Services that select this server."""
    kept = txn.get_meta(f"own services {source}")
    return set(kept.decode().split("\n")) if kept else set()


def _pointers(rrsets: Records | None) -> Records:
    return tuple(rrset for rrset in rrsets or () if rrset.type == rr.PTR)


def addresses_in(entries: Mapping[bytes, Records]) -> set[bytes]:
    """All addresses (4 or 16 bytes) in A and AAAA records."""
    return {
        rdata
        for rrsets in entries.values()
        for rrset in rrsets
        if rrset.type in (rr.A, rr.AAAA)
        for rdata in rrset.rdatas
    }


def _storable(items: Iterable[Object], warnings: list[str]) -> list[Object]:
    """The objects whose names Kubernetes could have given them; the others cannot be keys of the store."""
    found = []
    for item in items:
        labels = (item.service,) if isinstance(item, EndpointSlice) else ()
        if _is_storable(item.key, labels):
            found.append(item)
        else:
            warnings.append(
                f"{item.key[0]} {item.key[1:]!r:.300}: a name that Kubernetes does not allow, not published"
            )
    return found


def _is_storable(key: Key, labels: tuple[str, ...] = ()) -> bool:
    """True if the names of an object, and of others that it belongs to (`labels`), can be keys of the store."""
    kind, namespace, name = key
    short = (namespace, name, *labels) if kind in ("Service", "Namespace") else (namespace, *labels)
    return (
        all(len(text.encode()) <= _LONGEST_LABEL for text in short)
        and len(name.encode()) <= _LONGEST_NAME
        and namespace == namespace.lower()
        and name == name.lower()
        and not _NOT_IN_NAMES.intersection("".join((namespace, name, *labels)))
    )


def _selected(settings: Settings, service: Service) -> bool:
    return settings.labels is None or settings.labels(service.labels)


def _service_owner(namespace: str, name: str, origin: bytes) -> bytes | None:
    """S.N.svc.Z; None if it cannot be a name. A slice may say `Web`, which is not the Service `web`."""
    if not (names.is_label(namespace) and names.is_label(name)) or name != name.lower():
        return None
    owner = names.join([name.encode(), namespace.encode(), b"svc"])[:-1] + origin
    return owner if len(owner) <= names.MAX_NAME else None


def _index_keys(item: Object) -> list[tuple[str, str]]:
    """Index and key of each index entry of an object."""
    if isinstance(item, EndpointSlice):
        return [("slices", f"{item.namespace}/{item.service}/{item.key[0]}/{item.name}")]
    if isinstance(item, Pod) and item.running:
        texts = sorted(map(rr.address_text, _rdatas(item.ips)))
        return [("addresses", f"{item.namespace}/{ip}/{item.name}") for ip in texts]
    return []


def _key_text(key: Key) -> str:
    """As in the store: "namespace/name", or the name of a Namespace."""
    kind, namespace, name = key
    return name if kind == "Namespace" else f"{namespace}/{name}"


def _parts(kind: str, text: str) -> tuple[str, str]:
    if kind == "Namespace":
        return "", text
    namespace, _, name = text.partition("/")
    return namespace, name


def _canonical(value: object) -> str:
    """A text of a value that is the same in another process: repr, but for sets in order and methods by their owner."""
    if isinstance(value, frozenset):
        return f"{{{','.join(sorted(map(_canonical, value)))}}}"
    if isinstance(value, tuple):
        return f"({','.join(map(_canonical, value))})"
    if isinstance(value, MethodType):
        return f"{_canonical(value.__self__)}.{value.__name__}"
    if is_dataclass(value) and not isinstance(value, type):
        parts = (f"{item.name}={_canonical(getattr(value, item.name))}" for item in fields(value))
        return f"{type(value).__name__}({','.join(parts)})"
    return repr(value)


def _rdatas(addresses: Iterable[str]) -> set[bytes]:
    found = set()
    for text in addresses:
        try:
            found.add(rr.address(text))
        except (OSError, ValueError):
            continue
    return found


def _silent(_: str) -> None:
    pass
