"""The zone store: DNS data, and the state of its sources, in one LMDB environment.

One process writes (`Store`), any number read (`kdns.zone.reader`); a reader sees a transaction whole or not at all. The
files outlive the process and are the snapshot that the next start answers from.

Databases:

    names    name key (`kdns.zone.keys`) -> the name's RRsets; none for a name that exists without records
    zones    zone number (2 bytes, big endian) -> Zone as msgpack
    objects  source, kind, object key, joined by zero bytes -> what the source keeps of an object
    meta     text -> bytes: the store's "version", its "lineage" (`kdns.wire.following`), its "whereabouts" and others

A commit does not wait for the disk, so a power cut can leave anything behind: `Store.open` reads all of it once, checks
every value's checksum (`kdns.zone.values`), and sets a damaged store aside.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import itertools
import os
import shutil
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import lmdb
import msgspec

from kdns.errors import StoreError
from kdns.wire import following, names, rr
from kdns.wire.rrset import RRset
from kdns.zone import journal, sources
from kdns.zone.changes import Changes, name_hash
from kdns.zone.keys import key_name, name_key, zone_prefix
from kdns.zone.values import Records, decode_rrsets, encode_rrsets, is_sealed, is_special, seal

VERSION = b"3"
FIRST_MAP_SIZE = 1 << 30
"""Bytes of address space, which cost nothing. Data that need more make a transaction run again in a map twice as large:
slow where a whole cluster is in one transaction."""
_MANY_NAMES = 20_000
"""Names that a transaction fills in before its memory is worth giving back: some megabytes."""
_MANY_BYTES = 1 << 20
"""Bytes of objects that it goes through before their pages are."""
_PORTION = 2000
"""Entries that are written together."""
UNSYNCED, SYNCED, EXPIRED = 0, 1, 2
_TICKS = 256
"""Serials count these parts of a second. So a zone that is written anew without the store has a serial behind the one
that it had, though it had changed that often each second; and it takes 97 days to get half around the ring."""
_ARPA = b"\4arpa\0"
_LINEAGE, _WHEREABOUTS = "lineage", "whereabouts"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
DATA_FILE = "data.mdb"

_READERS_SIZE = 8192
"""Bytes of LMDB's file `lock.mdb`, for the 126 readers of its default."""
_FLOCK = struct.Struct("@hhqqi4x")
DATABASES = (b"names", b"zones", b"objects", b"meta")

Result = TypeVar("Result")
_Opened = tuple[lmdb.Environment, "list[lmdb._Database]"]


class Zone(msgspec.Struct, frozen=True):
    """A zone in the store.

    number: what its keys start with. source: who writes it. origin: its apex, lower case wire format. state: UNSYNCED
    until the source has delivered everything once (a name that is not there may yet come), then SYNCED; EXPIRED when
    the data is too old to be served. given_serial: the serial is that of the source's SOA, which is served as it is.
    special: its names for which `values.is_special` says so; None if they have not been counted. lineage: the one that
    its serials are of (`kdns.wire.following`) if it is a copy; empty for the store's own, and for who knows of none.
    """

    number: int
    source: str
    origin: bytes
    serial: int
    state: int
    given_serial: bool = False
    special: int | None = None
    lineage: bytes = b""

    @property
    def version(self) -> tuple[int, bytes]:
        """What is another one whenever the zone is."""
        return self.serial, self.lineage

    @property
    def plain(self) -> bool:
        """True if the answer to a name is what that name has, and nothing else."""
        return self.special == 0

    @property
    def prefix(self) -> bytes:
        """The key of its apex."""
        return zone_prefix(self.number)

    def key(self, name: bytes) -> bytes:
        """The key of a name at or below its apex."""
        return name_key(self.prefix, name, self.origin)


class Store:
    """The writing side. One per state directory, held by a lock on its file `lock`.

    size: bytes that the data takes on disk. zones, entries: the zones, and how many names have an entry, both as of the
    last commit: for whoever shall not wait for a transaction. journaled: which zones have a journal
    (`kdns.zone.journal`), None for none.
    """

    def __init__(self, directory: Path, opened: _Opened, lock: int, changes: Changes) -> None:
        env, _ = opened
        self.directory = directory
        self.changes = changes
        self._opened: _Opened | None = opened  # None: closed, and to be opened again by whoever needs it
        self._map_size = int(env.info()["map_size"])
        self._lock = lock
        self._files = _identities(directory)
        self._dirty = False
        # The environment is closed, and its map moved, with both locks; it is used with either and opened with the
        # second.
        self._mutex = threading.Lock()
        self._mapping = threading.RLock()
        self.size = _used(env)
        self.zones: tuple[Zone, ...] = ()
        self.entries = 0
        self.journaled: Callable[[Zone], bool] | None = None

    @classmethod
    def open(
        cls, directory: Path, changes: Changes, warn: Callable[[str], None], map_size: int = FIRST_MAP_SIZE
    ) -> Store:
        """Open the store in a directory, which is made if it is not there.

        A store that is damaged or of another version is moved aside, with one warning, and an empty one takes its
        place. A short-lived child reads it all, since damage can end the process that reads it; it is forked, or where
        there are threads already, started. Raises StoreError if the directory cannot be used or another process has it.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock = _take_lock(directory / "lock")
        except OSError as error:
            raise StoreError(
                f"state directory {directory}: {error.strerror}; name one that can be written with --state-dir or "
                "KDNS_STATE_DIR"
            ) from error
        path = directory / DATA_FILE
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, lock)
            try:
                if path.exists() and (reason := damage(directory)):
                    aside = _set_aside(path)
                    warn(f"zone store {path} {reason}; it was moved to {aside.name} and is made anew from its sources")
                opened = _open(directory, max(map_size, _file_size(path) * 2))
                undo.callback(opened[0].close)
                store = cls(directory, opened, lock, changes)
            except (lmdb.Error, OSError) as error:
                raise StoreError(f"zone store {path}: {error}") from error
            store.write(lambda txn: txn.put_meta("version", VERSION))
            with contextlib.suppress(StoreError):  # one of before, on a full disk: it is served, if not followed
                store.write(lambda txn: txn.begin_lineage(_whereabouts(path)))
            undo.pop_all()
        return store

    def write(self, action: Callable[[Transaction], Result]) -> Result:
        """Run `action` in a transaction and commit it; readers are told what changed.

        The action may run more than once, from the start, when the map has to grow. Raises StoreError when the disk
        refuses; the store is then as it was.
        """
        with self._mutex, self._store_errors():
            result, txn, zones, entries = self._commit(action)
            self.zones, self.entries = zones, entries
            self._dirty = True
            if txn.everything:
                self.changes.note_everything()
            elif txn.changed:
                self.changes.note(txn.changed)
            # What is committed is never refused: what goes wrong from here on, the next transaction meets again.
            with contextlib.suppress(lmdb.Error, StoreError):
                self.size = _used(self._environment()[0])
            if txn.filled >= _MANY_NAMES or txn.passed >= _MANY_BYTES:
                self._renew()
        return result

    def _commit(self, action: Callable[[Transaction], Result]) -> tuple[Result, Transaction, tuple[Zone, ...], int]:
        while True:
            try:
                with self._transaction(write=True) as txn:
                    result = action(txn)
                    txn.raise_serials()
                    zones, entries = tuple(txn.zones()), txn.entries()
                return result, txn, zones, entries
            except lmdb.MapFullError:
                self._grow()

    @contextlib.contextmanager
    def _transaction(self, *, write: bool) -> Iterator[Transaction]:
        env, databases = self._environment()
        try:
            with env.begin(write=write) as raw:
                yield Transaction(raw, databases, self.journaled)
        except lmdb.PanicError:  # after a commit that the disk refused half-way, LMDB wants to be opened anew
            self._close()
            raise

    def _grow(self) -> None:
        """Make the map twice as large."""
        with self._mapping:
            env, _ = self._environment()
            try:
                env.set_mapsize(self._map_size * 2)
            except lmdb.Error:
                self._close()  # the old map is gone, and it cannot be used without one
                raise
            self._map_size *= 2

    def _renew(self) -> None:
        """Open the environment anew, as it keeps the memory that the pages of its largest transaction took for ever.

        What was read of the file is mapped no more, either. Where that fails it stays closed until it is needed.
        """
        with self._mapping:
            self._close()
            with contextlib.suppress(StoreError):
                self._environment()
        _give_memory_back()

    def _environment(self) -> _Opened:
        """The environment and its databases, opened again if they are closed. Raises StoreError."""
        if self._opened is not None:
            return self._opened
        with self._mapping, self._store_errors():
            if self._opened is None:
                if self._lock < 0:
                    raise StoreError(f"zone store {self.directory / DATA_FILE}: it is closed")
                self._opened = _open(self.directory, self._map_size)
            return self._opened

    def _close(self) -> None:
        with self._mapping:
            opened, self._opened = self._opened, None
            if opened is not None:
                opened[0].close()

    @contextlib.contextmanager
    def _store_errors(self) -> Iterator[None]:
        """Make StoreError of what LMDB and the operating system raise inside."""
        try:
            yield
        except (lmdb.Error, OSError) as error:
            raise StoreError(f"zone store {self.directory / DATA_FILE}: {error}") from error

    def read(self, action: Callable[[Transaction], Result]) -> Result:
        """Run `action` in a transaction that sees the last commit and writes nothing. Raises StoreError."""
        with self._mutex, self._store_errors(), self._transaction(write=False) as txn:
            return action(txn)

    def sync(self) -> None:
        """Bring what was committed to the disk. Raises StoreError when the disk refuses."""
        if self._dirty:
            self._dirty = False
            try:
                with self._mapping, self._store_errors():
                    self._environment()[0].sync(True)
            except StoreError:
                self._dirty = True
                raise

    def clear_dead_readers(self) -> int:
        """Free the slots, and the old pages, of readers whose process has ended; returns how many there were.

        Raises StoreError.
        """
        with self._mapping, self._store_errors():
            return int(self._environment()[0].reader_check())

    def is_there(self) -> bool:
        """Whether the directory still has the files that were opened.

        Who opens it with another table of readers is told of no commit; with another lock, two could write.
        """
        return self._files == _identities(self.directory)

    def close(self) -> None:
        """Sync, close, and let go of the directory. Does nothing the second time."""
        with self._mutex:
            if self._lock < 0:
                return
            with contextlib.suppress(StoreError):
                self.sync()
            with self._mapping:
                lock, self._lock = self._lock, -1
                self._close()
            os.close(lock)


class Transaction:
    """Reads and writes that become visible together.

    changed: hashes of the names whose answers may have changed. everything: too many to name. touched: numbers of the
    zones in which something changed. filled: names that `fill` has written. passed: bytes of objects that were gone
    through.
    """

    __slots__ = (
        "_before",
        "_cursor",
        "_journaled",
        "_meta",
        "_names",
        "_objects",
        "_rewritten",
        "_special",
        "_txn",
        "_zones",
        "changed",
        "everything",
        "filled",
        "passed",
        "touched",
    )

    def __init__(
        self,
        txn: lmdb.Transaction[bytes],
        databases: list[lmdb._Database],
        journaled: Callable[[Zone], bool] | None = None,
    ) -> None:
        """journaled: see Store."""
        self._txn = txn
        self._journaled = journaled
        self._before: dict[int, dict[bytes, bytes | None] | None] = {}
        self._rewritten: set[int] = set()
        self._special: dict[int, int] = {}
        self._names, self._zones, self._objects, self._meta = databases
        self._cursor = txn.cursor(self._names)
        self.changed: set[int] = set()
        self.everything = False
        self.touched: set[int] = set()
        self.filled = 0
        self.passed = 0

    # Zones

    def zones(self) -> list[Zone]:
        """All zones, in the order of their numbers, but those for reverse look-up last."""
        found = [msgspec.msgpack.decode(value[4:], type=Zone) for _, value in self._txn.cursor(self._zones)]
        return sorted(found, key=lambda zone: zone.origin.endswith(_ARPA))

    def add_zone(self, source: str, origin: bytes, *, given_serial: bool = False) -> Zone:
        """The zone of that source and origin, made if it is not there.

        The number of a zone that was dropped before may be taken again: where both happen in one transaction, zones are
        dropped last. Readers are told of a drop, so none of them takes one zone for another.
        """
        zones = self.zones()
        for zone in zones:
            if (zone.source, zone.origin) == (source, origin):
                return zone
        taken = {zone.number for zone in zones}
        number = next(number for number in range(1 << 16) if number not in taken)
        serial = _ticks()
        for zone in zones:
            if zone.origin == origin and journal.rises(serial, zone.serial):
                serial = zone.serial  # RFC 1982 3.2: not below; another source's zone that this one may replace
        zone = Zone(number, source, origin, serial, UNSYNCED, given_serial)
        self._put_zone(zone)
        return zone

    def set_state(self, zone: Zone, state: int) -> None:
        """Make a zone UNSYNCED, SYNCED or EXPIRED."""
        current = self.zone(zone.number)
        if current.state != state:
            self._put_zone(msgspec.structs.replace(current, state=state))
            self.everything = True

    def set_lineage(self, zone: Zone, lineage: bytes) -> None:
        """Note which lineage a zone's serials are of. With another one its journal begins anew."""
        current = self.zone(zone.number)
        if current.lineage != lineage:
            self._put_zone(msgspec.structs.replace(current, lineage=lineage))
            journal.end(self, zone)
            self._rewritten.add(zone.number)
            self.changed.add(name_hash(zone.origin))

    def set_revision(self, revision: int, source: str, origin: bytes = b"") -> None:
        """Note the revision (`kdns.wire.following`) of a source's data, or of what it has of one zone."""
        self.put_meta(_revision_key(source, origin), str(revision).encode())

    def revision(self, zone: Zone) -> int:
        """That of a zone's data; 0 for none."""
        found = self.get_meta(_revision_key(zone.source, zone.origin))
        return int(found or self.get_meta(_revision_key(sources.whose(zone.source))) or 0)

    def zone(self, number: int) -> Zone:
        """The zone of that number. Raises KeyError."""
        value = self._txn.get(zone_prefix(number), db=self._zones)
        if value is None:
            raise KeyError(number)
        return msgspec.msgpack.decode(value[4:], type=Zone)

    def drop_zone(self, zone: Zone) -> None:
        """Remove a zone and all that is in it."""
        journal.end(self, zone)
        self._txn.delete(zone.prefix, db=self._zones)
        self._delete_prefix(self._names, zone.prefix)
        self.touched.discard(zone.number)
        self._special.pop(zone.number, None)
        self.everything = True

    def raise_serials(self) -> None:
        """Give each zone that was touched its next serial, in its SOA too (RFC 1982: the serial is a ring).

        Where the source gives it, only take note of it.
        """
        for number in self.touched:
            zone = self.zone(number)
            if zone.given_serial:
                self._take_given(zone)
            else:
                self._raise_serial(zone)
            if self._journaled is not None and self._journaled(zone):
                self._write_journal(zone)

    def _raise_serial(self, zone: Zone) -> None:
        now = _ticks()
        serial = now if journal.rises(zone.serial, now) else (zone.serial + 1) & 0xFFFFFFFF
        self._put_zone(msgspec.structs.replace(zone, serial=serial))
        value = self._txn.get(zone.prefix, db=self._names)
        if value is not None:
            self._keep(zone, zone.prefix, value)
            apex = tuple(_with_serial(rrset, serial) for rrset in decode_rrsets(value))
            self._txn.put(zone.prefix, encode_rrsets(zone.prefix, apex), db=self._names)
            self.changed.add(name_hash(zone.origin))

    def _keep(self, zone: Zone, key: bytes, value: bytes | None) -> None:
        """Note what a key had before this transaction, for the zone's journal."""
        if self._journaled is None:
            return
        if zone.number not in self._before:
            self._before[zone.number] = {} if self._journaled(zone) else None
        before = self._before[zone.number]
        if before is not None:
            before.setdefault(key, value)

    def _write_journal(self, zone: Zone) -> None:
        before = self._before.get(zone.number, {})
        if zone.number in self._rewritten or before is None:
            journal.end(self, zone)
            return
        if not before:  # it was compared with what is there, and is the same
            return
        after = {key: value for key in before if (value := self._txn.get(key, db=self._names)) is not None}
        before.setdefault(zone.prefix, after.get(zone.prefix))
        journal.append(self, zone, before, after)

    def _take_given(self, zone: Zone) -> None:
        """Note the serial that a zone has, and how many of its names are special."""
        serial = zone.serial
        for rrset in decode_rrsets(self._txn.get(zone.prefix, db=self._names) or b"", rr.SOA):
            serial = soa_serial(rrset)
        new = msgspec.structs.replace(zone, serial=serial, special=self._special.get(zone.number, zone.special))
        if new != zone:
            self._put_zone(new)
        if zone.plain and not new.plain:
            self.everything = True  # answers have been of one name, and are of others too

    def _put_zone(self, zone: Zone) -> None:
        self._txn.put(zone.prefix, seal(zone.prefix, msgspec.msgpack.encode(zone)), db=self._zones)

    # Names

    def entries(self) -> int:
        """How many names have an entry, in all zones."""
        return int(self._txn.stat(self._names)["entries"])

    def get(self, zone: Zone, name: bytes) -> Records | None:
        """The RRsets of a name; None if it has no entry."""
        value = self._txn.get(zone.key(name), db=self._names)
        return None if value is None else decode_rrsets(value)

    def put(self, zone: Zone, name: bytes, rrsets: Records) -> bool:
        """Give a name these RRsets and no others; False if it had them already, and nothing was written."""
        key = zone.key(name)
        value = encode_rrsets(key, rrsets)
        old = self._txn.get(key, db=self._names)
        if old == value or (old is not None and key == zone.prefix and _same_but_serial(old, value)):
            return False
        if old is None:
            self._note_ancestors(zone, name, key)
        self._keep(zone, key, old)
        self._txn.put(key, value, db=self._names)
        self._note(zone, name)
        return True

    def delete(self, zone: Zone, name: bytes) -> bool:
        """Remove a name's entry; False if there was none."""
        key = zone.key(name)
        old = self._txn.pop(key, db=self._names)
        if old is None:
            return False
        self._keep(zone, key, old)
        self._note(zone, name)
        self._note_ancestors(zone, name, key)
        return True

    def below(self, zone: Zone, name: bytes) -> Iterator[tuple[bytes, Records]]:
        """The entries at and below a name, in the order of the tree. The zone must not be written meanwhile."""
        prefix = zone.key(name)
        cursor = self._txn.cursor(self._names)
        if cursor.set_range(prefix):
            for key, value in cursor:
                if not key.startswith(prefix):
                    break
                yield key_name(key, zone.origin), decode_rrsets(value)

    def put_below(
        self, zone: Zone, name: bytes, wanted: Mapping[bytes, Records]
    ) -> dict[bytes, tuple[Records, Records]]:
        """Make these all the entries at and below a name. Returns those that differ: what they had, what they have."""
        prefix = zone.key(name)
        before: dict[bytes, bytes] = {}
        cursor = self._txn.cursor(self._names)
        if cursor.set_range(prefix):
            for key, value in cursor:
                if not key.startswith(prefix):
                    break
                before[key] = value
        differing: dict[bytes, tuple[Records, Records]] = {}
        for (owner, rrsets), (key, _) in zip(wanted.items(), _with_keys(zone, wanted.items()), strict=True):
            old = before.pop(key, None)
            if old is None or old != encode_rrsets(key, rrsets):
                differing[owner] = (() if old is None else decode_rrsets(old), rrsets)
                self.put(zone, owner, rrsets)
        for key, old in before.items():
            owner = key_name(key, zone.origin)
            differing[owner] = (decode_rrsets(old), ())
            self.delete(zone, owner)
        return differing

    def clear(self, zone: Zone) -> None:
        """Remove all entries of a zone."""
        self._delete_prefix(self._names, zone.prefix)
        self.touched.add(zone.number)
        self._rewritten.add(zone.number)
        self.everything = True

    def fill(
        self,
        zone: Zone,
        entries: Iterable[tuple[bytes, Records]],
        join: Callable[[Records, Records], Records] | None = None,
    ) -> None:
        """Write entries at once, without looking at what was there: all counts as changed.

        join: makes one of what a name has already and what is given now, which else takes its place.
        """
        rows = sorted([(key, encode_rrsets(key, rrsets)) for key, rrsets in _with_keys(zone, entries)])
        if not rows:
            return
        consumed, added = self._cursor.putmulti(rows, overwrite=join is None)
        if join is not None and added < consumed:
            for key, value in rows:
                there = self._txn.get(key, db=self._names)
                if there is not None and there != value:
                    joined = join(decode_rrsets(there), decode_rrsets(value))
                    self._txn.put(key, encode_rrsets(key, joined), db=self._names)
        self.filled += consumed
        self._rewritten.add(zone.number)
        self.everything = True
        self.touched.add(zone.number)

    def replace(self, zone: Zone, rows: Iterable[tuple[bytes, bytes]]) -> int:
        """Make these all the entries of a zone whose serial is given; returns how many names differ from before.

        rows: what stands behind the zone's prefix in a key, and the value without its checksum; in the order of keys.
        They are gone through once.
        """
        self.touched.add(zone.number)
        self._special[zone.number] = 0
        rows = self._counted(zone, rows)
        cursor = self._txn.cursor(self._names)
        if not (cursor.set_range(zone.prefix) and cursor.key().startswith(zone.prefix)):
            return self._fill_rows(zone, rows)
        differing = list(_differing(zone, _below(cursor, zone.prefix), rows))
        self._apply(zone, differing)
        return len(differing)

    def change(self, zone: Zone, wanted: Mapping[bytes, Records]) -> None:
        """Give names of a zone whose serial is given these RRsets and no others; without any they have no entry."""
        self.touched.add(zone.number)
        differing = []
        for name, rrsets in wanted.items():
            key = zone.key(name)
            old = self._txn.get(key, db=self._names)
            new = encode_rrsets(key, rrsets) if rrsets else None
            if old != new:
                differing.append((key, old, new))
        special = self._special.get(zone.number, self.zone(zone.number).special)
        self._apply(zone, differing)
        if special is None:
            special = sum(_special(key, value) for key, value in self._entries(zone))
        else:
            special += sum(_special(key, new) - _special(key, old) for key, old, new in differing)
        self._special[zone.number] = special

    def _entries(self, zone: Zone) -> Iterator[tuple[bytes, bytes]]:
        """All keys of a zone and their values."""
        cursor = self._txn.cursor(self._names)
        return _below(cursor, zone.prefix) if cursor.set_range(zone.prefix) else iter(())

    def _counted(self, zone: Zone, rows: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        """Rows of a zone; those of special names are counted."""
        for row in rows:
            if is_special(*row):
                self._special[zone.number] += 1
            yield row

    def _apply(self, zone: Zone, differing: Iterable[tuple[bytes, bytes | None, bytes | None]]) -> None:
        """Write keys of a zone whose serial is given: what they had, what they are to have."""
        for key, old, new in differing:
            name = key_name(key, zone.origin)
            self._keep(zone, key, old)
            if key == zone.prefix and not (old and new and _same_but_serial(old, new)):
                self.everything = True  # its NS, its DNAME or the TTL of denials are part of answers for other names
            if old is None:
                self._note_ancestors(zone, name, key)
            if new is not None:
                self._txn.put(key, new, db=self._names)
            else:
                self._txn.delete(key, db=self._names)
                self._note_ancestors(zone, name, key)
            self._note(zone, name)

    def _fill_rows(self, zone: Zone, rows: Iterable[tuple[bytes, bytes]]) -> int:
        """The same for a zone without entries."""
        count = 0
        sealed = ((zone.prefix + suffix, seal(zone.prefix + suffix, data)) for suffix, data in rows)
        while portion := list(itertools.islice(sealed, _PORTION)):
            self._cursor.putmulti(portion)
            count += len(portion)
        self._rewritten.add(zone.number)
        self.filled += count
        self.everything = True
        return count

    def _note(self, zone: Zone, name: bytes) -> None:
        self.touched.add(zone.number)
        self.changed.add(name_hash(name))

    def _note_ancestors(self, zone: Zone, name: bytes, key: bytes) -> None:
        """Note the names above that begin or cease to exist with this one, which is not in the store now."""
        while not (self._cursor.set_range(key) and self._cursor.key().startswith(key)):
            self.changed.add(name_hash(name))
            if name == zone.origin:
                return
            name = names.parent(name)
            key = key[: key.rindex(b"\0", 2, -1) + 1] if b"\0" in key[2:-1] else key[:2]

    # Objects and what else a source keeps

    def get_object(self, source: str, kind: str, key: str) -> bytes | None:
        """What was put under that kind and key."""
        value = self._txn.get(_object_key(source, kind, key), db=self._objects)
        return None if value is None else value[4:]

    def put_object(self, source: str, kind: str, key: str, data: bytes) -> None:
        """Keep an object. key: text without zero bytes; its order is the order of `objects`."""
        path = _object_key(source, kind, key)
        self._txn.put(path, seal(path, data), db=self._objects)

    def delete_object(self, source: str, kind: str, key: str) -> bool:
        """Forget an object; False if it was not there."""
        return bool(self._txn.delete(_object_key(source, kind, key), db=self._objects))

    def objects(self, source: str, kind: str, prefix: str = "") -> Iterator[tuple[str, bytes]]:
        """Keys and data of the objects of a kind whose key starts with `prefix`. Must not be written meanwhile."""
        start = _object_key(source, kind, prefix)
        skip = len(_object_key(source, kind, ""))
        cursor = self._txn.cursor(self._objects)
        if cursor.set_range(start):
            for key, value in cursor:
                if not key.startswith(start):
                    break
                self.passed += len(value)
                yield key[skip:].decode(), value[4:]

    def object_keys(self, source: str, kind: str, prefix: str = "") -> Iterator[str]:
        """The keys alone of the same objects, in the same order."""
        start = _object_key(source, kind, prefix)
        skip = len(_object_key(source, kind, ""))
        cursor = self._txn.cursor(self._objects)
        if cursor.set_range(start):
            for key in cursor.iternext(values=False):
                if not key.startswith(start):
                    break
                yield key[skip:].decode()

    def drop_source(self, source: str) -> None:
        """Forget all objects of a source, its zones with what is in them, and its meta values ("TEXT SOURCE")."""
        self._delete_prefix(self._objects, source.encode() + b"\0")
        for key in [key for key, _ in self._txn.cursor(self._meta) if key.endswith(b" " + source.encode())]:
            self._txn.delete(key, db=self._meta)
        for zone in self.zones():
            if zone.source == source:
                self.drop_zone(zone)

    def begin_lineage(self, whereabouts: bytes) -> None:
        """Give the store a lineage if it has none, or one that it got elsewhere.

        A copy of its files goes its own way from there on, and a power cut may have taken serials that others know.
        """
        if self.lineage is None or self.get_meta(_WHEREABOUTS) != whereabouts:
            self.put_meta(_LINEAGE, os.urandom(following.LINEAGE))
            self.put_meta(_WHEREABOUTS, whereabouts)

    @property
    def lineage(self) -> bytes | None:
        """The store's lineage (`kdns.wire.following`); None if it could not be written yet."""
        return self.get_meta(_LINEAGE)

    def get_meta(self, key: str) -> bytes | None:
        """A value by its name."""
        value = self._txn.get(key.encode(), db=self._meta)
        return None if value is None else value[4:]

    def put_meta(self, key: str, data: bytes) -> None:
        """Keep a value under a name."""
        if self.get_meta(key) != data:
            self._txn.put(key.encode(), seal(key.encode(), data), db=self._meta)

    def delete_meta(self, key: str) -> None:
        """Forget a value, if it is there."""
        self._txn.delete(key.encode(), db=self._meta)

    def _delete_prefix(self, database: lmdb._Database, prefix: bytes) -> None:
        cursor = self._txn.cursor(database)
        found = cursor.set_range(prefix)
        while found and cursor.key().startswith(prefix):
            found = cursor.delete()


def _revision_key(source: str, origin: bytes = b"") -> str:
    return f"revision {origin.hex()} {source}"


def _ticks() -> int:
    return int(time.time() * _TICKS) & 0xFFFFFFFF


def soa_serial(rrset: RRset) -> int:
    """The serial of an SOA RRset."""
    return int.from_bytes(rrset.rdatas[0][-20:-16], "big")


def _below(cursor: lmdb.Cursor[bytes], prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    """What a database has from where the cursor stands, as far as keys have that prefix."""
    for key, value in cursor:
        if not key.startswith(prefix):
            return
        yield key, value


def _special(key: bytes, value: bytes | None) -> bool:
    """Whether an entry, if there is one, is of a special name."""
    return value is not None and is_special(key[2:], value[4:])


def _differing(
    zone: Zone, before: Iterator[tuple[bytes, bytes]], rows: Iterable[tuple[bytes, bytes]]
) -> Iterator[tuple[bytes, bytes | None, bytes | None]]:
    """Keys whose value is another one, or is there on one side only: the key, what it had, what it has."""
    there = next(before, None)
    for suffix, data in rows:
        key = zone.prefix + suffix
        while there is not None and there[0] < key:
            yield *there, None
            there = next(before, None)
        old = there[1] if there is not None and there[0] == key else None
        if old is None or old[4:] != data:
            yield key, old, seal(key, data)
        if old is not None:
            there = next(before, None)
    while there is not None:
        yield *there, None
        there = next(before, None)


def _with_keys(zone: Zone, entries: Iterable[tuple[bytes, Records]]) -> Iterator[tuple[bytes, Records]]:
    """The entries with keys in the place of names; that of the name above, which neighbours share, is made once."""
    above: dict[bytes, bytes] = {}
    for name, rrsets in entries:
        parent = name[1 + name[0] :]
        label = name[1 : 1 + name[0]]
        if name == zone.origin or b"\0" in label or b"\1" in label:
            yield zone.key(name), rrsets
            continue
        key = above.get(parent)
        if key is None:
            key = above[parent] = zone.key(parent)
        yield key + label + b"\0", rrsets


def is_held(directory: Path) -> bool:
    """True if a process holds the store in that directory for writing. Takes no lock, not even for a moment."""
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
    try:
        answer = fcntl.fcntl(fd, fcntl.F_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
    finally:
        os.close(fd)


def _object_key(source: str, kind: str, key: str) -> bytes:
    return f"{source}\0{kind}\0{key}".encode()


def _with_serial(rrset: RRset, serial: int) -> RRset:
    if rrset.type != rr.SOA:
        return rrset
    (rdata,) = rrset.rdatas
    return RRset(rr.SOA, rrset.ttl, (rdata[:-20] + struct.pack("!I", serial) + rdata[-16:],))


def _same_but_serial(old: bytes, new: bytes) -> bool:
    """True if two values of an apex differ in nothing but the SOA's serial, which only `raise_serials` changes."""
    left, right = (tuple(_with_serial(rrset, 0) for rrset in decode_rrsets(value)) for value in (old, new))
    return left == right


def _take_lock(path: Path) -> int:
    """Lock the file for this process and write its pid into it. Raises StoreError if another process has it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        holder = os.pread(fd, 20, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise StoreError(
            f"state directory {path.parent} is in use by process {holder}; end it, or name another directory with "
            "--state-dir or KDNS_STATE_DIR"
        ) from error
    with contextlib.suppress(OSError):  # a full disk must not keep us from serving what is there
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _open(directory: Path, map_size: int) -> _Opened:
    _make_room(directory / "lock.mdb")
    env = lmdb.open(str(directory), map_size=map_size, max_dbs=8, sync=False)
    try:
        return env, [env.open_db(name) for name in DATABASES]
    except BaseException:
        env.close()
        raise


def _make_room(path: Path) -> None:
    """Let LMDB's table of readers have its blocks: a full disk ends a process that writes to a hole in mapped memory.

    Raises OSError.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if os.fstat(fd).st_blocks * 512 < _READERS_SIZE:
            os.posix_fallocate(fd, 0, _READERS_SIZE)
    finally:
        os.close(fd)


def _used(env: lmdb.Environment) -> int:
    """Bytes of the pages that are in use or were."""
    return int((env.info()["last_pgno"] + 1) * env.stat()["psize"])


def _give_memory_back() -> None:
    """Let glibc return what is free between other things, which it does not do by itself."""
    with contextlib.suppress(ImportError, OSError):
        import ctypes

        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)


def _identities(directory: Path) -> tuple[tuple[int, int], ...]:
    """What tells a store's files from others that have their names; empty if one cannot be found."""
    try:
        found = [(directory / name).stat() for name in (DATA_FILE, "lock.mdb", "lock")]
    except OSError:
        return ()
    return tuple((each.st_dev, each.st_ino) for each in found)


def _whereabouts(path: Path) -> bytes:
    """What is not the same for a copy of a file, nor after a start of the machine (random(4) boot_id)."""
    try:
        boot = _BOOT.read_bytes().strip()
    except OSError:
        boot = b""
    return b"%s %d" % (boot, path.stat().st_ino)


def _file_size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _set_aside(path: Path) -> Path:
    """Rename a store's file; an older one that was set aside is replaced."""
    aside = path.with_suffix(".damaged")
    _remove(aside)
    path.replace(aside)
    _remove(path.with_name("lock.mdb"))
    return aside


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def damage(directory: Path) -> str:
    """Why the store cannot be used; empty if it can. A child reads it all, as damage may end it by a signal."""
    if threading.active_count() > 1:
        import subprocess  # hardly ever needed

        command = [sys.executable, "-m", __name__, str(directory)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else "is damaged"
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            faulthandler.disable()
            os.write(writing, _inspect(directory).encode())
            os._exit(0)
        os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        reason = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    return reason if status == 0 else "is damaged"


def _inspect(directory: Path) -> str:
    """Read every value of the store and check it, and that its pages are accounted for."""
    try:
        env = lmdb.open(str(directory), readonly=True, max_dbs=8)
        databases = [env.open_db(name, create=False) for name in DATABASES]
        with env.begin() as txn:
            version = txn.get(b"version", db=databases[3])
            if version is None and not any(txn.stat(database)["entries"] for database in databases):
                return ""  # a first start that did not get far
            if version is None or version[4:] != VERSION:
                found = "none" if version is None else version[4:].decode(errors="replace")
                return f"has format {found} where this kdns writes {VERSION.decode()}"
            for database in databases:
                count = 0
                for key, value in txn.cursor(database):
                    if not is_sealed(key, value):
                        return "is damaged"
                    count += 1
                if count != txn.stat(database)["entries"]:
                    return "is damaged (entries are missing)"
        with open(os.devnull, "wb") as sink:  # noqa: PTH123
            env.copyfd(sink.fileno(), compact=True)  # fails unless each page is in use or in the list of free ones
    except lmdb.Error as error:
        return f"is damaged ({error})"
    return ""


if __name__ == "__main__":
    faulthandler.disable()
    print(_inspect(Path(sys.argv[1])), end="")
