"""The reading side of the zone store."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import lmdb
import msgspec

from kdns.errors import StoreError
from kdns.zone.changes import Changes
from kdns.zone.keys import zone_prefix
from kdns.zone.store import DATABASES, Transaction, Zone


class Snapshot:
    """All that the store has, as it was when this was made; for what takes longer than a look-up.

    The store cannot use old pages again meanwhile: it is to be ended soon. It ends by itself if the store's map grows.
    """

    def __init__(
        self, txn: lmdb.Transaction[bytes], databases: list[lmdb._Database], mutex: AbstractContextManager[object]
    ) -> None:
        self._txn: lmdb.Transaction[bytes] | None = txn
        self._databases = databases
        self._mutex = mutex
        self._cursor: lmdb.Cursor[bytes] | None = None

    @contextmanager
    def open(self) -> Iterator[Transaction]:
        """What there is, to be read inside of the context and at once. Raises StoreError if it has ended."""
        with self._mutex:
            if self._txn is None:
                raise StoreError("a snapshot of the zone store has ended")
            yield Transaction(self._txn, self._databases)

    def entries(self, prefix: bytes, most: int) -> list[tuple[bytes, bytes]]:
        """The next name keys with a prefix, and their values; none behind the last one. Raises StoreError."""
        with self.open():
            cursor = self._cursor
            if cursor is None:
                assert self._txn is not None
                self._cursor = cursor = self._txn.cursor(self._databases[0])
                there = cursor.set_range(prefix)
            else:
                there = bool(cursor.key())
            found: list[tuple[bytes, bytes]] = []
            while there and len(found) < most:
                key = cursor.key()
                if not key.startswith(prefix):
                    break
                found.append((key, cursor.value()))
                there = cursor.next()
            return found

    def end(self) -> None:
        """Let the store go on without it."""
        with self._mutex:
            txn, self._txn, self._cursor = self._txn, None, None
            if txn is not None:
                txn.abort()


class Reader:
    """The reading side, for the threads of one process; opened after a fork.

    Use it as a context manager around look-ups, or `enter` and `leave`: what is read inside is of one commit. One
    thread at a time.

    commit: the number of the commit that is read. floor: that of the changes before it was.
    """

    def __init__(self, directory: Path, changes: Changes) -> None:
        self.commit = 0
        self.floor = 0
        self._changes = changes
        self._env = lmdb.open(str(directory), readonly=True, max_dbs=8, max_spare_txns=2, subdir=True)
        self._databases = [self._env.open_db(name, create=False) for name in DATABASES]
        self._names, self._zones = self._databases[:2]
        self._mutex = threading.RLock()
        self._snapshots: weakref.WeakSet[Snapshot] = weakref.WeakSet()
        self._depth = 0
        self._txn: lmdb.Transaction[bytes]
        self._set_range: Callable[[bytes], bool]
        self._key: Callable[[], bytes]
        self._value: Callable[[], bytes]
        self._cursor: lmdb.Cursor[bytes]

    def __enter__(self) -> Reader:
        self.enter()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def enter(self) -> None:
        """Begin to read what is there now. Raises lmdb.Error."""
        self._mutex.acquire()
        self._depth += 1
        if self._depth == 1:
            self.floor = self._changes.counters[1]
            try:
                self._txn = self._begin()
                self.commit = self._txn.id()
                self._cursor = cursor = self._txn.cursor(self._names)
                self._set_range, self._key, self._value = cursor.set_range, cursor.key, cursor.value
            except BaseException:
                self._depth -= 1
                self._mutex.release()
                raise

    def leave(self) -> None:
        """The end of what `enter` began."""
        self._depth -= 1
        if not self._depth:
            self._txn.abort()
        self._mutex.release()

    def snapshot(self) -> Snapshot:
        """What is there now, for longer than a look-up. Raises lmdb.Error."""
        with self._mutex:
            snapshot = Snapshot(self._begin(), self._databases, self._mutex)
            self._snapshots.add(snapshot)
            return snapshot

    def _begin(self) -> lmdb.Transaction[bytes]:
        try:
            return self._env.begin()
        except lmdb.MapResizedError:
            self._follow_map()
            return self._env.begin()

    def _follow_map(self) -> None:
        """Map all of a file that has grown, which cannot be done while anything is read."""
        for snapshot in list(self._snapshots):
            snapshot.end()
        self._env.set_mapsize(0)

    def find(self, key: bytes) -> bytes | None:
        """The sealed value of a name key; b"" for a name that only has names below it; None if it does not exist."""
        if self._set_range(key):
            found = self._key()
            if found == key:
                return self._value()
            if found.startswith(key):
                return b""
        return None

    def before(self, key: bytes) -> tuple[bytes, bytes] | None:
        """The last name key in front of a key, which need not be there, and its sealed value; None if there is none."""
        cursor = self._cursor
        found = cursor.prev() if cursor.set_range(key) else cursor.last()
        return (cursor.key(), cursor.value()) if found else None

    def zone(self, number: int) -> Zone | None:
        """The zone of that number."""
        value = self._txn.get(zone_prefix(number), db=self._zones)
        return None if value is None else msgspec.msgpack.decode(value[4:], type=Zone)

    def transaction(self) -> Transaction:
        """All that the store has, as it is inside of the context, and only there. It can be read, not written."""
        return Transaction(self._txn, self._databases)

    def close(self) -> None:
        """Close the environment."""
        self._env.close()
