"""From objects to the zone store: what has changed in the cluster becomes changed records, and nothing else is touched.

The objects are kept in the store beside the records (`kdns.cluster.inventory`), in the same transaction, so that a
start knows what the records were made of. Meta values of a source (each name ends with a space and the source):

    settings        the fingerprint of the settings that the records were made by
    own services    keys of the Services that select this server, one a line
    current         when the objects were last known to be current (Unix time)
    version KIND    the resourceVersion that the objects of a kind are of, and behind a line feed their selection
    revision        the latest of these versions, as of when the objects were last known to be current, 0 for files
    externals       the version of the Services, if what they have `external` was kept of all of them
    identity        what tells the API server that the versions are of

Zones for clients outside of the cluster (`k8s_external`) and the index of clients (`autopath`) are kept as those of
other sources (`kdns.zone.sources`).
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import MethodType
from typing import TypeVar

from kdns.cluster import objects, records
from kdns.cluster.delivery import Delivery
from kdns.cluster.inventory import KINDS, Inventory, counts, is_storable, key_text, rdatas, refusal
from kdns.cluster.objects import EndpointSlice, Key, Namespace, Object, Packed, Pod, Service
from kdns.cluster.records import AnyService, ExternalOptions, RecordOptions, ServiceRecords
from kdns.wire import names, rr
from kdns.wire.rrset import RRset
from kdns.zone import clients, sources
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
class External:
    """What the `k8s_external` directive says about what is published. forward, reverse: origins, lower case."""

    forward: tuple[bytes, ...]
    reverse: tuple[bytes, ...]
    records: ExternalOptions


@dataclass(frozen=True, slots=True)
class Settings:
    """What the `kubernetes` directive says about what is published.

    forward, reverse: origins, lower case. multicluster: the forward zones that are clusterset zones, which have the
    names of ServiceImports and not those of Services. namespaces: those to show, all if empty. namespace_labels,
    labels: selectors, None for all. listens: addresses of this server as text. records: options of all forward zones;
    its own zone does not count. external: zones for clients outside of the cluster. clients: whether it is to be kept
    which namespace an address is in.
    """

    forward: tuple[bytes, ...]
    reverse: tuple[bytes, ...] = ()
    multicluster: tuple[bytes, ...] = ()
    namespaces: frozenset[str] = frozenset()
    namespace_labels: Matches | None = None
    labels: Matches | None = None
    listens: tuple[str, ...] = ()
    records: RecordOptions = field(default_factory=lambda: RecordOptions(names.ROOT))
    external: External | None = None
    clients: bool = False

    @property
    def external_forward(self) -> tuple[bytes, ...]:
        """The zones for clients outside of the cluster that have names; PTR records point into the first of them."""
        return self.external.forward if self.external is not None else ()

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


@dataclass(frozen=True, slots=True)
class Zones:
    """The zones of a source by their origin. clients: the index of clients, if it is kept."""

    cluster: Mapping[bytes, Zone]
    external: Mapping[bytes, Zone]
    clients: Zone | None

    @property
    def served(self) -> tuple[Zone, ...]:
        """All that queries are answered from."""
        return (*self.cluster.values(), *self.external.values())


class Publisher:
    """Keeps the zones of one source in line with its objects.

    source: identifies it in the store across restarts. zones: of the cluster; external: for clients outside of it.
    clients: the number of the index of clients, None if it is not kept.
    """

    def __init__(self, store: Store, source: str, settings: Settings) -> None:
        self.source = source
        self.settings = settings
        self._store = store
        self._fingerprint = settings.fingerprint
        self._scopes: Mapping[str, str] = {}
        self._all = self._write(self._zones)
        self.zones = self._all.cluster
        self.external = self._all.external
        self.clients = self._all.clients.number if self._all.clients is not None else None

    def _zones(self, txn: Transaction) -> Zones:
        """The zones, made if they are not there; those that the settings no longer have are dropped."""
        # Names of Services come in the order of their keys, with which LMDB fills its pages. It fills only half of them
        # where other keys are behind, so these zones get the last numbers.
        settings, external = self.settings, self.settings.external
        outside, index = sources.beside(self.source, sources.EXTERNAL), sources.beside(self.source, sources.CLIENTS)
        wanted = [(index, clients.ORIGIN)] if settings.clients else []
        if external is not None:
            wanted += [(outside, origin) for origin in (*external.reverse, *external.forward)]
        wanted += [(self.source, origin) for origin in (*settings.reverse, *settings.forward)]
        there = {(zone.source, zone.origin): zone for zone in txn.zones() if sources.whose(zone.source) == self.source}
        if there.keys() != set(wanted):
            txn.delete_meta(f"settings {self.source}")  # what was published by them is not all that is there now
        made = {key: txn.add_zone(*key) for key in wanted}
        for key in there.keys() - made.keys():
            txn.drop_zone(there[key])
        found = Zones(
            {origin: made[self.source, origin] for origin in (*settings.forward, *settings.reverse)},
            {origin: zone for (source, origin), zone in made.items() if source == outside},
            made.get((index, clients.ORIGIN)),
        )
        _Entries(settings, found, Inventory(txn, self.source)).put_missing_apexes()
        return found

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
        return self._store.read(lambda txn: any(txn.zone(zone.number).state == EXPIRED for zone in self._all.served))

    def revive(self) -> None:
        """Take back what `expire` did: the data is not too old any more, by other settings."""
        self._store.write(lambda txn: self._set_state(txn, EXPIRED, SYNCED))

    def _set_state(self, txn: Transaction, before: int, after: int, zones: Iterable[Zone] | None = None) -> None:
        """Change the state of the zones that are in another one; of all of them unless they are given."""
        for zone in self._all.served if zones is None else zones:
            if txn.zone(zone.number).state == before:
                txn.set_state(zone, after)

    @property
    def synced(self) -> bool:
        """True if all objects have been published once, be it before a restart, and may be served.

        What is missing for clients outside of the cluster, after a change of the Corefile, is nothing to those inside.
        """
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

        If the Services were kept without what they have `external`, which is wanted now, they have to be listed anew;
        until then only the zones for clients outside of the cluster are not synced.
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
            lacking = bool(self.external) and not self._keeps_externals(txn)
            if found.keys() == scopes.keys():
                self._set_state(txn, UNSYNCED, SYNCED, self.zones.values() if lacking else None)
            elif strict:
                self._set_state(txn, SYNCED, UNSYNCED)
            if lacking:
                self._set_state(txn, SYNCED, UNSYNCED, self.external.values())
                found.pop("Service", None)
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
                    keeps = delivery.kind == "Service" and (delivery.complete or self._keeps_externals(txn))
                    version = f"{delivery.version}\n{scope}".encode()
                    txn.put_meta(self._version_key(delivery.kind), version)
                    if keeps:
                        txn.put_meta(self._externals_key, version)
            if complete:
                self._sync(txn)
            if current:
                txn.set_revision(self._revision(txn), self.source)
                self._stamp(txn)
            return outcome

        return self._write(action)

    def _revision(self, txn: Transaction) -> int:
        """The latest of the versions that have been reached, if they are numbers: those of one cluster count on.

        It is that of all kinds only where nothing is known to be missing of any.
        """
        found = ((txn.get_meta(self._version_key(kind)) or b"").partition(b"\n")[0] for kind in self._scopes)
        return max((int(version) for version in found if version.isdigit() and len(version) < 20), default=0)

    def _version_key(self, kind: str) -> str:
        return f"version {kind} {self.source}"

    @property
    def _externals_key(self) -> str:
        return f"externals {self.source}"

    def _keeps_externals(self, txn: Transaction) -> bool:
        """Whether the Services in the store have what they have `external`. A kdns that knows nothing of it keeps them
        without, and leaves its version."""
        version = txn.get_meta(self._version_key("Service"))
        return version is not None and txn.get_meta(self._externals_key) == version

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
            txn.set_revision(0, self.source)
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
        entries = _Entries(self.settings, self._all, inventory)
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
        for zone in self._all.served:
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

    def __init__(self, settings: Settings, zones: Zones, inventory: Inventory) -> None:
        self.settings = settings
        self.zones = zones.cluster
        self.external = zones.external
        self.clients = zones.clients
        self.inventory = inventory
        self.txn = inventory.txn
        self.primary = next(iter(settings.own_cluster), None)
        self._options = {origin: settings.options(origin) for origin in settings.forward}
        self._reverse = names.Zones({origin: self.zones[origin] for origin in settings.reverse})
        reverse = settings.external.reverse if settings.external is not None else ()
        self._external_reverse = names.Zones({origin: self.external[origin] for origin in reverse})
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

    def of_namespace(self, namespace: str) -> Iterator[tuple[Zone, bytes]]:
        """Names that exist without records because a namespace does."""
        for origin, options in self._options.items():
            for name in records.namespace_names(namespace, options, self._warn(origin, self.settings.forward)):
                yield self.zones[origin], name
        external = self.settings.external
        if external is None:
            return
        for origin in external.forward:
            own = records.external_namespace(namespace, origin, external.records)
            if own is not None:
                yield self.external[origin], own

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
            if not self.selects(service):
                return _NOTHING
        found = records.derive(service, slices, self._options[origin], self._warn(origin, among))
        for zone, rrsets in found.zonal.items():
            label = zone.encode() or b"*"
            owner = _service_owner(service.namespace, service.name, origin)
            if owner is None or len(label) > names.MAX_LABEL:
                continue
            name = bytes((len(label),)) + label + sources.ZONAL + owner
            if len(name) <= names.MAX_NAME:
                found.names[name] = rrsets
        return found

    def of_outside(self, origin: bytes, service: Service | None, slices: list[EndpointSlice]) -> ServiceRecords:
        """The records of a Service in a zone for clients outside of the cluster; none for what is hidden."""
        external = self.settings.external
        if service is None or external is None or not self.selects(service):
            return _NOTHING
        warn = self._warn(origin, external.forward)
        return records.derive_external(service, slices, origin, external.records, self.settings.records, warn)

    def outside_owner(self, namespace: str, name: str, origin: bytes) -> bytes | None:
        """S.N.Z in a zone for clients outside of the cluster; None if it cannot be a name there."""
        external = self.settings.external
        if external is None or namespace == external.records.apex:
            return None
        return _owner((name, namespace), origin)

    def selects(self, service: Service) -> bool:
        """True if the settings show a Service."""
        labels = self.settings.labels
        return self.shows(service.namespace) and (labels is None or labels(service.labels))

    def of_pod(self, origin: bytes, pod: Pod) -> Mapping[bytes, Records]:
        """The records of a Pod, whatever the settings hide."""
        return records.pod_records(pod, self._options[origin], self._warn(origin, self.settings.forward))

    def _warn(self, origin: bytes, among: tuple[bytes, ...]) -> records.Warn:
        """Warnings are given once, not once for each zone."""
        return self.inventory.warnings.append if origin == among[0] else _silent

    def pointers(self, *, outside: bool) -> _Pointers:
        """Where PTR records go. outside: those that point into zones for clients outside of the cluster."""
        if outside:
            ttl = self.settings.external.records.ttl if self.settings.external is not None else 0
            return _Pointers(self.txn, self._external_reverse, ttl)
        return _Pointers(self.txn, self._reverse, self.settings.records.ttl)

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
            self._put_apex(zone, own)
        for zone in self.external.values():
            self._put_external_apex(zone, own)

    def put_missing_apexes(self) -> None:
        """The same for zones that have none yet, of which no Service is known to select this server."""
        for zone in self.zones.values():
            if self.txn.get(zone, zone.origin) is None:
                self._put_apex(zone, ())
        for zone in self.external.values():
            if self.txn.get(zone, zone.origin) is None:
                self._put_external_apex(zone, ())

    def _put_apex(self, zone: Zone, own: Iterable[str]) -> None:
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

    def _put_external_apex(self, zone: Zone, own: Iterable[str]) -> None:
        """The same for a zone for clients outside of the cluster."""
        assert self.settings.external is not None
        serial, options = self.txn.zone(zone.number).serial, self.settings.external.records
        addresses = self._external_nameservers(own, options)
        found = dict(records.external_apex(zone.origin, serial, options, addresses))
        found[zone.origin] += _pointers(self.txn.get(zone, zone.origin))
        for name, rrsets in found.items():
            self.txn.put(zone, name, rrsets)

    def _external_nameservers(self, own: Iterable[str], options: records.ExternalOptions) -> list[str]:
        """The addresses outside of the cluster that the Services have which select this server.

        Those that it listens on if there is no such Service.
        """
        keys = sorted(own)
        found: set[bytes] = set()
        for key in keys:
            service = self.inventory.service(*key.split("/"))
            if service is None:
                continue
            found |= rdatas(service.external)
            if options.headless and service.headless:
                slices = self.inventory.slices("slices", service.namespace, service.name)
                inside = records.derive(service, slices, self.settings.options(names.ROOT))
                found |= set(inside.pointers)
        return sorted(map(rr.address_text, found) if keys else self.settings.listens)


class _Pointers:
    """Writes PTR records into the reverse zones that have the addresses' names.

    An address may be of several Services: the records to the others stay.
    """

    def __init__(self, txn: Transaction, zones: names.Zones[Zone], ttl: int) -> None:
        self._txn = txn
        self._zones = zones
        self._ttl = ttl

    def _rrset(self, targets: Iterable[bytes]) -> RRset:
        return RRset(rr.PTR, self._ttl, tuple(sorted(targets)))

    def fill(self, pointers: Mapping[bytes, Iterable[bytes]]) -> None:
        """Add targets to those that addresses have."""
        by_zone: dict[int, tuple[Zone, list[tuple[bytes, Records]]]] = {}
        for rdata, targets in pointers.items():
            name = records.reverse_owner(rdata)
            zone = self._zones.find(name)
            if zone is not None:
                by_zone.setdefault(zone.number, (zone, []))[1].append((name, (self._rrset(targets),)))
        for zone, found in by_zone.values():
            self._txn.fill(zone, found, lambda *both: (self._rrset(_targets(sum(both, ()))),))

    def update(self, owner: bytes, rdatas: Iterable[bytes], pointers: Mapping[bytes, tuple[bytes, ...]]) -> None:
        """Bring the records of some addresses in line that point to names at and below the owner."""
        txn = self._txn
        for rdata in rdatas:
            name = records.reverse_owner(rdata)
            zone = self._zones.find(name)
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
                rrsets += (self._rrset(targets),)
            if rrsets:
                txn.put(zone, name, rrsets)
            else:
                txn.delete(zone, name)


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
        zones = (*entries.zones.values(), *entries.external.values())
        self._fills = {zone.number: _Fill(entries.txn, zone) for zone in zones}
        self._inside = entries.pointers(outside=False)
        self._outside = entries.pointers(outside=True)
        self._pointers: dict[bytes, tuple[bytes, ...]] = {}
        self._pointers_outside: dict[bytes, tuple[bytes, ...]] = {}

    def run(self) -> None:
        entries, inventory = self._entries, self._entries.inventory
        own = {key for key in inventory.keys("Service") if self._service(*key.split("/"))}
        for key in inventory.keys("ServiceImport"):
            self._import(*key.split("/"))
        for key in inventory.keys("Pod"):
            self._pod(key)
        for namespace in filter(entries.shows, inventory.all_namespaces()):
            for zone, name in entries.of_namespace(namespace):
                self._fills[zone.number].put({name: ()})
        self._flush_pointers()
        for fill in self._fills.values():
            fill.flush()
        entries.put_apexes(own)
        if entries.clients is not None:
            self._index_clients(entries.clients)

    def _put(self, zone: Zone, found: Mapping[bytes, Records]) -> None:
        self._fills[zone.number].put(found)

    def _service(self, namespace: str, name: str) -> bool:
        """Put the records of a Service; True if it selects this server."""
        entries = self._entries
        service = entries.inventory.service(namespace, name)
        slices = entries.inventory.slices("slices", namespace, name)
        for origin in entries.settings.own_cluster:
            found = entries.of_service(origin, service, slices)
            self._put(entries.zones[origin], found.names)
            if origin == entries.primary:
                _join(self._pointers, found.pointers)
        for number, origin in enumerate(entries.settings.external_forward):
            found = entries.of_outside(origin, service, slices)
            self._put(entries.external[origin], found.names)
            if not number:
                _join(self._pointers_outside, found.pointers)
        if len(self._pointers) + len(self._pointers_outside) >= _PORTION:
            self._flush_pointers()
        return entries.is_own(service, slices)

    def _import(self, namespace: str, name: str) -> None:
        entries = self._entries
        service = entries.inventory.service_import(namespace, name)
        slices = entries.inventory.slices("imports", namespace, name)
        for origin in entries.settings.multicluster:
            self._put(entries.zones[origin], entries.of_service(origin, service, slices).names)

    def _pod(self, key: str) -> None:
        entries = self._entries
        pod = entries.inventory.get("Pod", key)
        if isinstance(pod, Pod) and entries.shows(pod.namespace):
            for origin in entries.settings.forward:
                self._put(entries.zones[origin], entries.of_pod(origin, pod))

    def _index_clients(self, zone: Zone) -> None:
        txn = self._entries.txn
        txn.clear(zone)
        keys = self._entries.inventory.keys("addresses")
        while portion := list(itertools.islice(keys, _PORTION)):
            known: dict[bytes, set[str]] = {}
            for key in portion:
                namespace, ip, _ = key.split("/")
                known.setdefault(rr.address(ip), set()).add(namespace)
            found = [(clients.owner(rdata), clients.entry(spaces)) for rdata, spaces in known.items()]
            txn.fill(zone, found, lambda *both: clients.entry(clients.namespaces(sum(both, ()))))

    def _flush_pointers(self) -> None:
        """Write PTR records, beside those to other Services that an address has already."""
        self._inside.fill(self._pointers)
        self._outside.fill(self._pointers_outside)
        self._pointers.clear()
        self._pointers_outside.clear()


class _Update:
    """Writes the records of all that is affected by what has changed."""

    def __init__(self, entries: _Entries) -> None:
        self._entries = entries
        self._inventory = entries.inventory
        self._txn = entries.txn
        self._inside = entries.pointers(outside=False)
        self._outside = entries.pointers(outside=True)

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
        for zone, name in entries.of_namespace(namespace):
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
                self._inside.update(owner, ips.union(*map(_addresses, differing.values())), found.pointers)
        self._outsides(namespace, name, service, slices)
        return entries.is_own(service, slices)

    def _outsides(self, namespace: str, name: str, service: Service | None, slices: list[EndpointSlice]) -> None:
        """The same in the zones for clients outside of the cluster."""
        entries = self._entries
        for number, origin in enumerate(entries.settings.external_forward):
            owner = entries.outside_owner(namespace, name, origin)
            if owner is None:
                continue
            found = entries.of_outside(origin, service, slices)
            self._txn.put_below(entries.external[origin], owner, found.names)
            if not number:
                ips = rdatas(service.external) if service is not None else set()
                ips |= self._inventory.external_ips.get((namespace, name), set())
                self._outside.update(owner, ips, found.pointers)

    def _import(self, namespace: str, name: str) -> None:
        entries, inventory = self._entries, self._inventory
        service = inventory.service_import(namespace, name)
        slices = inventory.slices("imports", namespace, name)
        for origin in entries.settings.multicluster:
            owner = _service_owner(namespace, name, origin)
            if owner is not None:
                found = entries.of_service(origin, service, slices)
                self._txn.put_below(entries.zones[origin], owner, found.names)

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
        if entries.clients is not None:
            self._client(entries.clients, namespace, ip, used)

    def _client(self, zone: Zone, namespace: str, ip: str, used: bool) -> None:
        """Bring the index of clients in line: a namespace has running pods with an address, or has not."""
        owner = clients.owner(rr.address(ip))
        found = clients.namespaces(self._txn.get(zone, owner))
        if used:
            found.add(namespace)
        else:
            found.discard(namespace)
        if found:
            self._txn.put(zone, owner, clients.entry(found))
        else:
            self._txn.delete(zone, owner)


def _join(found: dict[bytes, tuple[bytes, ...]], more: Mapping[bytes, tuple[bytes, ...]]) -> None:
    """Add targets to those that addresses have."""
    for rdata, targets in more.items():
        found[rdata] = found.get(rdata, ()) + targets


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
    """S.N.svc.Z; None if it cannot be a name."""
    return _owner((name, namespace, "svc"), origin)


def _owner(labels: Sequence[str], origin: bytes) -> bytes | None:
    """The labels above an origin; None if that cannot be a name. A slice may say `Web`, not the Service `web`."""
    if not all(map(names.is_label, labels)) or labels[0] != labels[0].lower():
        return None
    owner = names.join([label.encode() for label in labels])[:-1] + origin
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
