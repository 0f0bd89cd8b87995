"""From objects to the zone store: what has changed in the cluster becomes changed records, and nothing else is touched.

The objects are kept in the store beside the records (`kdns.cluster.inventory`), in the same transaction, so that a
start knows what the records were made of. Meta values of a source (each name ends with a space and the source):

    settings        the fingerprint of the settings that the records were made by
    own services    keys of the Services that select this server, one a line
    current         when the objects were last known to be current (Unix time)
    version KIND    the resourceVersion that the objects of a kind are of, and behind a line feed their selection
    identity        what tells the API server that the versions are of
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import MethodType
from typing import TypeVar

from kdns.cluster import objects, records
from kdns.cluster.delivery import Delivery
from kdns.cluster.inventory import KINDS, Inventory, counts, is_storable, key_text, rdatas, refusal
from kdns.cluster.objects import EndpointSlice, Key, Namespace, Object, Packed, Pod, Service
from kdns.cluster.records import AnyService, RecordOptions, ServiceRecords
from kdns.wire import names, rr
from kdns.wire.rrset import RRset
from kdns.zone.store import EXPIRED, SYNCED, UNSYNCED, Store, Transaction, Zone
from kdns.zone.values import Records

Matches = Callable[[Mapping[str, str]], bool]
Result = TypeVar("Result")

_PORTION = 2000
"""Entries that are written together when a zone is filled."""
_SCHEMA = "2"
"""Part of the fingerprint: raised when the same objects and settings make other records than before."""
_NOTHING = ServiceRecords({}, {}, {})


@dataclass(frozen=True, slots=True)
class Settings:
    """What the `kubernetes` directive says about what is published.

    forward, reverse: origins, lower case. multicluster: the forward zones that are clusterset zones, which have the
    names of ServiceImports and not those of Services. namespaces: those to show, all if empty. namespace_labels,
    labels: selectors, None for all. listens: addresses of this server as text. records: options of all forward zones;
    its own zone does not count.
    """

    forward: tuple[bytes, ...]
    reverse: tuple[bytes, ...] = ()
    multicluster: tuple[bytes, ...] = ()
    namespaces: frozenset[str] = frozenset()
    namespace_labels: Matches | None = None
    labels: Matches | None = None
    listens: tuple[str, ...] = ()
    records: RecordOptions = field(default_factory=lambda: RecordOptions(names.ROOT))

    @property
    def own_cluster(self) -> tuple[bytes, ...]:
        """The forward zones that have the names of Services; PTR records point into the first of them."""
        return tuple(origin for origin in self.forward if origin not in self.multicluster)

    def options(self, zone: bytes) -> RecordOptions:
        """The options of one forward zone."""
        return replace(self.records, zone=zone)

    def selects(self, namespace: str, labels: Mapping[str, str] | None) -> bool:
        """True if a namespace of this name with these labels is shown. labels: None if they are not known."""
        if self.namespaces and namespace not in self.namespaces:
            return False
        return self.namespace_labels is None or (labels is not None and self.namespace_labels(labels))

    @property
    def fingerprint(self) -> bytes:
        """The same for settings that make the same records."""
        return hashlib.sha256(f"{_SCHEMA}{_canonical(self)}".encode()).digest()


@dataclass(slots=True)
class Outcome:
    """What a call has done.

    changed: objects that differ from what was there; all of them if none does, and other settings made all records
    anew. warnings: one sentence each. programmed: for each EndpointSlice that is served now and told when the change
    behind it happened, the kind of its Service ("cluster_ip" or "headless_with_selector") and that time (Unix time).
    """

    changed: int = 0
    warnings: list[str] = field(default_factory=list)
    programmed: list[tuple[str, float]] = field(default_factory=list)


class Publisher:
    """Keeps the zones of one source in line with its objects.

    source: identifies it in the store across restarts.
    """

    def __init__(self, store: Store, source: str, settings: Settings) -> None:
        self.source = source
        self.settings = settings
        self._store = store
        self._fingerprint = settings.fingerprint
        self._scopes: Mapping[str, str] = {}
        self.zones = self._write(self._zones)

    def _zones(self, txn: Transaction) -> dict[bytes, Zone]:
        """The zones by origin, made if they are not there; those that the settings no longer have are dropped."""
        # Names of Services come in the order of their keys, with which LMDB fills its pages. It fills only half of them
        # where other keys are behind, so these zones get the last numbers.
        wanted = (*self.settings.reverse, *self.settings.forward)
        for zone in txn.zones():
            if zone.source == self.source and zone.origin not in wanted:
                txn.drop_zone(zone)
        zones = {origin: txn.add_zone(self.source, origin) for origin in wanted}
        for zone in zones.values():
            if txn.get(zone, zone.origin) is None:
                _Entries(self.settings, zones, Inventory(txn, self.source)).put_apex(zone, ())
        return {origin: zones[origin] for origin in (*self.settings.forward, *self.settings.reverse)}

    # State

    def age(self) -> float | None:
        """Seconds since the objects in the store were last known to be current; None if they never were."""
        return None if self._stamped is None else max(0.0, time.time() - self._stamped)

    def _write(self, action: Callable[[Transaction], Result]) -> Result:
        """Commit, and remember what is asked for often: nobody who asks waits for a transaction of somebody else."""

        def with_state(txn: Transaction) -> tuple[Result, bytes | None, dict[str, int]]:
            return action(txn), txn.get_meta(f"current {self.source}"), counts(txn, self.source)

        result, stamp, self._counts = self._store.write(with_state)
        self._stamped = None if stamp is None else float(stamp)
        return result

    def touch(self) -> None:
        """Note that the objects in the store are current now."""
        self._write(self._stamp)

    def _stamp(self, txn: Transaction) -> None:
        txn.put_meta(f"current {self.source}", f"{time.time():.3f}".encode())

    def expire(self, unless: Callable[[], bool] = lambda: False) -> bool:
        """Stop answering from the data, because it is too old, until all of it has been delivered.

        unless: is asked when nothing else can be written; with this, nothing is done. Returns whether it was.
        """

        def action(txn: Transaction) -> bool:
            if unless():
                return False
            self._set_state(txn, SYNCED, EXPIRED)
            return True

        return self._store.write(action)

    @property
    def expired(self) -> bool:
        """True if the data is too old to be answered from."""
        return self._store.read(lambda txn: any(txn.zone(zone.number).state == EXPIRED for zone in self.zones.values()))

    def revive(self) -> None:
        """Take back what `expire` did: the data is not too old any more, by other settings."""
        self._store.write(lambda txn: self._set_state(txn, EXPIRED, SYNCED))

    def _set_state(self, txn: Transaction, before: int, after: int) -> None:
        for zone in self.zones.values():
            if txn.zone(zone.number).state == before:
                txn.set_state(zone, after)

    @property
    def synced(self) -> bool:
        """True if all objects have been published once, be it before a restart, and may be served."""
        return self._store.read(lambda txn: all(txn.zone(zone.number).state == SYNCED for zone in self.zones.values()))

    def counts(self) -> dict[str, int]:
        """How many objects of each kind there are."""
        return self._counts

    # Objects of an API server

    def begin(self, scopes: Mapping[str, str], *, strict: bool) -> dict[str, str]:
        """Make ready for deliveries; returns the resourceVersion from which each kind can be followed, if there is one.

        scopes: each kind that will be delivered, and a text that tells which of its objects. What the store has of
        other kinds is forgotten, and what it has of these is published by the settings of now.

        strict: unless each kind has been delivered in this scope before, a name that is not there may yet come: the
        zones are not synced until all kinds are complete. (What is there is answered.) Else their state stays.
        """

        def action(txn: Transaction) -> dict[str, str]:
            self._publish(txn, [Delivery(kind, complete=True) for kind in KINDS if kind not in scopes])
            found: dict[str, str] = {}
            for kind in KINDS:
                version, _, scope = (txn.get_meta(self._version_key(kind)) or b"").decode().partition("\n")
                if kind not in scopes:
                    txn.delete_meta(self._version_key(kind))
                elif scope == scopes[kind]:
                    found[kind] = version
            if found.keys() == scopes.keys():
                self._set_state(txn, UNSYNCED, SYNCED)
            elif strict:
                self._set_state(txn, SYNCED, UNSYNCED)
            return {kind: version for kind, version in found.items() if version}

        found = self._write(action)
        self._scopes = dict(scopes)
        return found

    def identify(self, identity: str) -> bool:
        """Note which API server the deliveries are of; True if the objects in the store are those of another.

        Their versions are forgotten then, so that everything has to be listed anew; until then it is served.
        """

        def action(txn: Transaction) -> bool:
            known = txn.get_meta(f"identity {self.source}")
            txn.put_meta(f"identity {self.source}", identity.encode())
            if known is None or known == identity.encode():
                return False
            for kind in KINDS:
                version = txn.get_meta(self._version_key(kind))
                if version is not None:
                    txn.put_meta(self._version_key(kind), b"\n" + version.partition(b"\n")[2])
            return True

        return self._store.write(action)

    def deliver(self, deliveries: Iterable[Delivery], *, complete: bool, current: bool) -> Outcome:
        """Publish what has come from an API server, all in one transaction with the versions that it is of.

        complete: with this, every kind has been delivered as a whole since the zones were last not synced; they are
        now. current: with this, the store has all that the API server has now. Raises StoreError, and then nothing has
        happened.
        """
        found = tuple(deliveries)

        def action(txn: Transaction) -> Outcome:
            outcome = self._publish(txn, found)
            for delivery in found:
                scope = self._scopes.get(delivery.kind)
                if scope is not None and (delivery.version or delivery.complete):
                    txn.put_meta(self._version_key(delivery.kind), f"{delivery.version}\n{scope}".encode())
            if complete:
                self._sync(txn)
            if current:
                self._stamp(txn)
            return outcome

        return self._write(action)

    def _version_key(self, kind: str) -> str:
        return f"version {kind} {self.source}"

    # Objects of files

    def replace(self, items: Iterable[Object], *, keep: bool = False) -> Outcome:
        """Make the given objects all that there are.

        keep: those stay that are there and are not given, and so do the age of the data and the state of the zones.
        """
        found = Packed()
        for item in items:
            found.put(item)
        return self.replace_packed(found, keep=keep)

    def replace_packed(self, found: Packed, *, keep: bool = False) -> Outcome:
        """The same, without all objects in memory as such at a time."""
        wanted: dict[str, dict[str, bytes | None]] = {kind: {} for kind in KINDS}
        for key, row in found.rows.items():
            wanted[key[0]][key_text(key)] = row
        deliveries = [Delivery(kind, complete=not keep, rows=rows) for kind, rows in wanted.items()]

        def action(txn: Transaction) -> Outcome:
            outcome = self._publish(txn, deliveries)
            for kind in KINDS:
                txn.delete_meta(self._version_key(kind))
            txn.delete_meta(f"identity {self.source}")
            if not keep:
                self._sync(txn)
            if not keep or txn.get_meta(f"current {self.source}") is None:
                self._stamp(txn)
            return outcome

        return self._write(action)

    def apply(self, puts: Iterable[Object], deletes: Iterable[Key], *, current: bool = True) -> Outcome:
        """Put and delete objects, deletes first, in one transaction.

        current: with this, the store has all that the source has now.
        """
        warnings: list[str] = []
        puts = tuple(puts)
        wanted: dict[str, dict[str, bytes | None]] = {kind: {} for kind in KINDS}
        for key in (*deletes, *(item.key for item in puts)):
            wanted[key[0]][key_text(key)] = None
        for item in _storable(puts, warnings):
            wanted[item.key[0]][key_text(item.key)] = objects.pack(item)
        deliveries = [Delivery(kind, rows=rows) for kind, rows in wanted.items()]

        def action(txn: Transaction) -> Outcome:
            outcome = self._publish(txn, deliveries)
            if current:
                self._stamp(txn)
            outcome.warnings = warnings + outcome.warnings
            return outcome

        return self._write(action)

    # All of them

    def _publish(self, txn: Transaction, deliveries: Sequence[Delivery]) -> Outcome:
        """Write the objects that differ, and the records that this changes."""
        inventory = Inventory(txn, self.source)
        for delivery in deliveries:
            inventory.take(delivery)
        entries = _Entries(self.settings, self.zones, inventory)
        if txn.get_meta(f"settings {self.source}") != self._fingerprint or inventory.is_new:
            _Rebuild(entries).run()
            txn.put_meta(f"settings {self.source}", self._fingerprint)
            changed = inventory.changed or inventory.size
        else:
            _Update(entries).run()
            changed = inventory.changed
        inventory.finish()
        return Outcome(changed, inventory.warnings, _programmed(inventory, deliveries))

    def _sync(self, txn: Transaction) -> None:
        for zone in self.zones.values():
            txn.set_state(zone, SYNCED)


def _programmed(inventory: Inventory, deliveries: Iterable[Delivery]) -> list[tuple[str, float]]:
    found = []
    for delivery in deliveries:
        for key, since in delivery.triggers.items():
            piece = inventory.get(delivery.kind, key) if is_storable(delivery.kind, key) else None
            if isinstance(piece, EndpointSlice) and piece.service:
                service = inventory.service(piece.namespace, piece.service)
                if service is not None:
                    found.append(("headless_with_selector" if service.headless else "cluster_ip", since))
    return found


class _Entries:
    """What the objects of a transaction make of the settings: the entries of the zones.

    inventory: with all changes made. primary: the forward zone that PTR records point into, if there is one.
    """

    def __init__(self, settings: Settings, zones: Mapping[bytes, Zone], inventory: Inventory) -> None:
        self.settings = settings
        self.zones = zones
        self.inventory = inventory
        self.txn = inventory.txn
        self.primary = next(iter(settings.own_cluster), None)
        self._options = {origin: settings.options(origin) for origin in settings.forward}
        self._reverse = names.Zones({origin: zones[origin] for origin in settings.reverse})
        self._listens = set(map(rr.address_text, rdatas(settings.listens)))
        self._shown: dict[str, bool] = {}

    def shows(self, namespace: str) -> bool:
        """True if a namespace exists (itself or by an object in it) and the settings show it."""
        shown = self._shown.get(namespace)
        if shown is None:
            own = self.inventory.get("Namespace", namespace)
            labels = own.labels if isinstance(own, Namespace) else None
            shown = self.settings.selects(namespace, labels) and (own is not None or self.inventory.has_any(namespace))
            self._shown[namespace] = shown
        return shown

    def of_namespace(self, origin: bytes, namespace: str) -> tuple[bytes, ...]:
        """Names that exist without records because a namespace does."""
        return records.namespace_names(namespace, self._options[origin], self._warn(origin, self.settings.forward))

    def of_service(self, origin: bytes, service: AnyService | None, slices: list[EndpointSlice]) -> ServiceRecords:
        """The records of a Service, or of a ServiceImport in a clusterset zone; none for what is hidden or not there.

        The entries of topology zones are among its names, at one label below _zone.S.N.svc.Z: the topology zone, dots
        included, or `*` for all endpoints.
        """
        settings = self.settings
        if service is None or not self.shows(service.namespace):
            return _NOTHING
        among = settings.multicluster
        if isinstance(service, Service):
            among = settings.own_cluster
            if settings.labels is not None and not settings.labels(service.labels):
                return _NOTHING
        found = records.derive(service, slices, self._options[origin], self._warn(origin, among))
        for zone, rrsets in found.zonal.items():
            label = zone.encode() or b"*"
            owner = _service_owner(service.namespace, service.name, origin)
            if owner is None or len(label) > names.MAX_LABEL:
                continue
            name = bytes((len(label),)) + label + b"\x05_zone" + owner
            if len(name) <= names.MAX_NAME:
                found.names[name] = rrsets
        return found

    def of_pod(self, origin: bytes, pod: Pod) -> Mapping[bytes, Records]:
        """The records of a Pod, whatever the settings hide."""
        return records.pod_records(pod, self._options[origin], self._warn(origin, self.settings.forward))

    def _warn(self, origin: bytes, among: tuple[bytes, ...]) -> records.Warn:
        """Warnings are given once, not once for each zone."""
        return self.inventory.warnings.append if origin == among[0] else _silent

    def reverse_zone(self, owner: bytes) -> Zone | None:
        """The reverse zone that a name belongs into."""
        return self._reverse.find(owner)

    def ptr(self, targets: Iterable[bytes]) -> RRset:
        """The PTR records of an address."""
        return RRset(rr.PTR, self.settings.records.ttl, tuple(sorted(targets)))

    def is_own(self, service: Service | None, slices: list[EndpointSlice]) -> bool:
        """True if one of the endpoints of a Service is this server."""
        if service is None or not self._listens:
            return False
        texts = {
            text
            for piece in slices
            for subset in piece.subsets
            for endpoint in subset.endpoints
            for text in endpoint.addresses
            if text in self._listens or ":" in text  # IPv6 has many spellings
        }
        return not self._listens.isdisjoint(map(rr.address_text, rdatas(texts)))

    # Apexes

    def own_services(self) -> set[str]:
        """Keys ("namespace/name") of the Services that select this server, as they were written down."""
        kept = self.txn.get_meta(f"own services {self.inventory.source}")
        return set(kept.decode().split("\n")) if kept else set()

    def put_apexes(self, own: set[str]) -> None:
        """Write down which Services select this server, and make the apexes of all zones say so."""
        self.txn.put_meta(f"own services {self.inventory.source}", "\n".join(sorted(own)).encode())
        for zone in self.zones.values():
            self.put_apex(zone, own)

    def put_apex(self, zone: Zone, own: Iterable[str]) -> None:
        """Write what a zone has anyway. At the apex of the reverse zone of one address are its PTR records too."""
        txn = self.txn
        serial = txn.zone(zone.number).serial
        found = dict(records.apex(zone.origin, serial, self.settings.records.ttl, self._nameservers(own)))
        if zone.origin in self.settings.forward:
            found |= dict.fromkeys(records.structural_names(self._options[zone.origin]), ())
        nameserver = b"\x02ns\x03dns" + zone.origin
        if nameserver not in found:
            txn.delete(zone, nameserver)
        found[zone.origin] += _pointers(txn.get(zone, zone.origin))
        for name, rrsets in found.items():
            txn.put(zone, name, rrsets)

    def _nameservers(self, own: Iterable[str]) -> list[str]:
        """The addresses of ns.dns.Z: of the Services that select this server, else those that it listens on."""
        found: set[str] = set()
        for key in own:
            service = self.inventory.get("Service", key)
            if isinstance(service, Service):
                found.update(map(rr.address_text, rdatas(service.cluster_ips)))
        return sorted(found) or sorted(self.settings.listens)


class _Fill:
    """Writes all entries of a zone, in portions, in the place of those that it has."""

    def __init__(self, txn: Transaction, zone: Zone) -> None:
        txn.clear(zone)
        self._txn = txn
        self._zone = zone
        self._entries: list[tuple[bytes, Records]] = []

    def put(self, entries: Mapping[bytes, Records]) -> None:
        """Take entries."""
        self._entries += entries.items()
        if len(self._entries) >= _PORTION:
            self.flush()

    def flush(self) -> None:
        """Write what was taken."""
        self._txn.fill(self._zone, self._entries)
        self._entries.clear()


class _Rebuild:
    """Makes all records anew. One Service is in memory at a time."""

    def __init__(self, entries: _Entries) -> None:
        self._entries = entries
        self._fills = {origin: _Fill(entries.txn, zone) for origin, zone in entries.zones.items()}
        self._pointers: dict[bytes, tuple[bytes, ...]] = {}

    def run(self) -> None:
        entries, inventory, settings = self._entries, self._entries.inventory, self._entries.settings
        own = {key for key in inventory.keys("Service") if self._service(*key.split("/"))}
        for key in inventory.keys("ServiceImport"):
            self._import(*key.split("/"))
        for key in inventory.keys("Pod"):
            self._pod(key)
        for namespace in filter(entries.shows, inventory.all_namespaces()):
            for origin in settings.forward:
                self._fills[origin].put(dict.fromkeys(entries.of_namespace(origin, namespace), ()))
        self._flush_pointers()
        for fill in self._fills.values():
            fill.flush()
        entries.put_apexes(own)

    def _service(self, namespace: str, name: str) -> bool:
        """Put the records of a Service; True if it selects this server."""
        entries = self._entries
        service = entries.inventory.service(namespace, name)
        slices = entries.inventory.slices("slices", namespace, name)
        for origin in entries.settings.own_cluster:
            found = entries.of_service(origin, service, slices)
            self._fills[origin].put(found.names)
            if origin == entries.primary:
                for rdata, targets in found.pointers.items():
                    self._pointers[rdata] = self._pointers.get(rdata, ()) + targets
        if len(self._pointers) >= _PORTION:
            self._flush_pointers()
        return entries.is_own(service, slices)

    def _import(self, namespace: str, name: str) -> None:
        entries = self._entries
        service = entries.inventory.service_import(namespace, name)
        slices = entries.inventory.slices("imports", namespace, name)
        for origin in entries.settings.multicluster:
            self._fills[origin].put(entries.of_service(origin, service, slices).names)

    def _pod(self, key: str) -> None:
        entries = self._entries
        pod = entries.inventory.get("Pod", key)
        if isinstance(pod, Pod) and entries.shows(pod.namespace):
            for origin in entries.settings.forward:
                self._fills[origin].put(entries.of_pod(origin, pod))

    def _flush_pointers(self) -> None:
        """Write PTR records, beside those to other Services that an address has already."""
        entries = self._entries
        by_zone: dict[bytes, list[tuple[bytes, Records]]] = {}
        for rdata, targets in self._pointers.items():
            name = records.reverse_owner(rdata)
            zone = entries.reverse_zone(name)
            if zone is not None:
                by_zone.setdefault(zone.origin, []).append((name, (entries.ptr(targets),)))
        for origin, found in by_zone.items():
            entries.txn.fill(entries.zones[origin], found, lambda *both: (entries.ptr(_targets(sum(both, ()))),))
        self._pointers.clear()


class _Update:
    """Writes the records of all that is affected by what has changed."""

    def __init__(self, entries: _Entries) -> None:
        self._entries = entries
        self._inventory = entries.inventory
        self._txn = entries.txn

    def run(self) -> None:
        entries, inventory = self._entries, self._inventory
        for namespace in inventory.namespaces:
            self._namespace(namespace)
        before = entries.own_services()
        own = set(before)
        for namespace, name in inventory.services:
            key = f"{namespace}/{name}"
            if self._service(namespace, name):
                own.add(key)
            else:
                own.discard(key)
        for namespace, name in inventory.imports:
            self._import(namespace, name)
        for namespace, ip in inventory.pods:
            self._pod(namespace, ip)
        if own != before or any(f"{namespace}/{name}" in own for namespace, name in inventory.services):
            entries.put_apexes(own)

    def _namespace(self, namespace: str) -> None:
        """Make a namespace's own names exist or not. If that changes, all that is in it is affected too."""
        entries = self._entries
        shown = entries.shows(namespace)
        for origin in entries.settings.forward:
            zone = entries.zones[origin]
            for name in entries.of_namespace(origin, namespace):
                if self._txn.put(zone, name, ()) if shown else self._txn.delete(zone, name):
                    self._inventory.affect_all(namespace)

    def _service(self, namespace: str, name: str) -> bool:
        """Write what has changed about a Service; True if it selects this server."""
        entries, inventory = self._entries, self._inventory
        service = inventory.service(namespace, name)
        slices = inventory.slices("slices", namespace, name)
        for origin in entries.settings.own_cluster:
            owner = _service_owner(namespace, name, origin)
            if owner is None:
                continue
            found = entries.of_service(origin, service, slices)
            differing = self._txn.put_below(entries.zones[origin], owner, found.names)
            if origin == entries.primary:
                # An address of the name itself is one of a name below it, or a cluster IP: whether it is published
                # or not (`ignore_empty_service`), it has a PTR record.
                differing.pop(owner, None)
                ips = rdatas(service.cluster_ips) if service is not None else set()
                ips |= inventory.cluster_ips.get((namespace, name), set())
                self._put_pointers(owner, ips.union(*map(_addresses, differing.values())), found.pointers)
        return entries.is_own(service, slices)

    def _import(self, namespace: str, name: str) -> None:
        entries, inventory = self._entries, self._inventory
        service = inventory.service_import(namespace, name)
        slices = inventory.slices("imports", namespace, name)
        for origin in entries.settings.multicluster:
            owner = _service_owner(namespace, name, origin)
            if owner is not None:
                found = entries.of_service(origin, service, slices)
                self._txn.put_below(entries.zones[origin], owner, found.names)

    def _put_pointers(self, owner: bytes, rdatas: set[bytes], pointers: Mapping[bytes, tuple[bytes, ...]]) -> None:
        """Bring the PTR records of some addresses in line that point to a Service's names; those to others stay."""
        entries, txn = self._entries, self._txn
        for rdata in rdatas:
            name = records.reverse_owner(rdata)
            zone = entries.reverse_zone(name)
            if zone is None:
                continue
            there = txn.get(zone, name)
            have = _targets(_pointers(there))
            targets = {target for target in have if not names.is_subdomain(target, owner)}
            targets.update(pointers.get(rdata, ()))
            if targets == have:
                continue
            rrsets = tuple(rrset for rrset in there or () if rrset.type != rr.PTR)  # the zone of one address: its apex
            if targets:
                rrsets += (entries.ptr(targets),)
            if rrsets:
                txn.put(zone, name, rrsets)
            else:
                txn.delete(zone, name)

    def _pod(self, namespace: str, ip: str) -> None:
        entries = self._entries
        used = next(self._inventory.keys("addresses", f"{namespace}/{ip}/"), None) is not None
        for origin in entries.settings.forward:
            zone = entries.zones[origin]
            for name, rrsets in entries.of_pod(origin, Pod(namespace, ip, (ip,))).items():
                if used and entries.shows(namespace):
                    self._txn.put(zone, name, rrsets)
                else:
                    self._txn.delete(zone, name)


def _addresses(differing: tuple[Records, Records]) -> set[bytes]:
    """The addresses (4 or 16 bytes) that an entry had or has."""
    return {
        rdata for rrsets in differing for rrset in rrsets if rrset.type in (rr.A, rr.AAAA) for rdata in rrset.rdatas
    }


def _targets(rrsets: Records) -> set[bytes]:
    return {target for rrset in rrsets for target in rrset.rdatas}


def _pointers(rrsets: Records | None) -> Records:
    return tuple(rrset for rrset in rrsets or () if rrset.type == rr.PTR)


def _storable(items: Iterable[Object], warnings: list[str]) -> list[Object]:
    """The objects whose names Kubernetes could have given them; the others cannot be keys of the store."""
    found = []
    for item in items:
        key = key_text(item.key)
        if is_storable(item.key[0], key, item):
            found.append(item)
        else:
            warnings.append(refusal(item.key[0], key))
    return found


def _service_owner(namespace: str, name: str, origin: bytes) -> bytes | None:
    """S.N.svc.Z; None if it cannot be a name. A slice may say `Web`, which is not the Service `web`."""
    if not (names.is_label(namespace) and names.is_label(name)) or name != name.lower():
        return None
    owner = names.join([name.encode(), namespace.encode(), b"svc"])[:-1] + origin
    return owner if len(owner) <= names.MAX_NAME else None


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


def _silent(_: str) -> None:
    pass
