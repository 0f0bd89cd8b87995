"""Finished responses by the bytes of their query.

The key is the query without its ID: two queries that are equal but for the ID get the same answer. One cache serves
one socket, so that protocol, address family and server block are the same for equal queries. A UDP socket has a second
one where answers are made for their client (`autopath`), whose address is in the key as well.

A query is remembered, as one byte of its hash, before its answer is kept: what is asked only once (the usual miss under
a search suffix, or a flood of random names) takes no room from what is asked again and again.

What a plugin keeps for a time of its own (`cache`) is answered from here too, with TTLs that count down, until the
plugin wants to be asked again. Times are those of `time.monotonic_ns()`.

When names change, no entry is touched. Their changes are counted by hash, and an entry that is asked for after that is
looked at once: it holds if the sum of its names' counts is what it was.

Two generations of entries bound the cache without a list of uses: new entries go into `young`; when that is full it
becomes `old`, and what was in `old` until then is dropped. A hit in `old` moves the entry to `young`. All caches of a
worker share a budget of bytes besides.
"""

from __future__ import annotations

import threading
import time
from array import array
from typing import TYPE_CHECKING

from kdns.observe.counters import Region
from kdns.plugins.budget import Budget
from kdns.wire.message import Aging, Rotation
from kdns.wire.relay import stamp
from kdns.zone.changes import Changes

if TYPE_CHECKING:
    from kdns.server.respond import Block

ENTRIES = 16384
BYTES = 5 << 20
ASKED = 1 << 16
"""Slots for the queries that have come, a byte of the hash of the last one in each."""
_MARK_AT = 32
_MARK_OF_ZERO = 1
"""A slot that is 0 has had no query."""
OVERHEAD = 280
"""About what an entry takes beside its key and response, in bytes."""
AGING = 220
"""About what a Countdown takes beside its response, in bytes."""
PER_NAME = 40
"""What each name takes that an entry depends on, in bytes: its hash."""
VERSIONS = 1 << 14
"""How many counts of changes there are; names whose hashes have the same rest share one."""
_VERSIONS = VERSIONS
PART = 8
"""A generation takes no more than this part of the worker's budget, and an entry no more than this part of it."""


class Turns:
    """The address records of a response, each time starting with another (`loadbalance`).

    Offsets count from behind the message's ID, as responses in the cache do.
    """

    __slots__ = ("at", "bytes", "end", "size", "start", "step", "twice")

    until = 1 << 62
    """When an entry with these is over: never."""

    def __init__(self, rotation: Rotation, first: int) -> None:
        self.start = rotation.start - 2
        self.end = rotation.end - 2
        self.size = len(rotation.records)
        self.step = rotation.step
        self.twice = rotation.records * 2
        self.bytes = len(self.twice)
        self.at = first % (self.size // self.step) * self.step

    def next(self, response: bytes, _: int) -> bytes:
        """The response with the next record in front."""
        self.at = at = (self.at + self.step) % self.size
        return response[: self.start] + self.twice[at : at + self.end - self.start] + response[self.end :]


class Countdown:
    """The TTLs of a response, one less each second, and its address records in turns.

    aging: see there. response: behind its ID. ttls: offsets in it. rotation: None without `loadbalance`.
    """

    __slots__ = (
        "_asked", "_begun", "_cells", "_counted", "_current", "_expires", "_left", "_rotation", "_ttls", "_turns",
        "bytes", "until",
    )  # fmt: skip

    def __init__(
        self, aging: Aging, response: bytes, ttls: tuple[int, ...], rotation: Rotation | None, first: int
    ) -> None:
        self._expires = int(aging.expires * 1e9)
        self.until = self._expires if aging.until == aging.expires else int(aging.until * 1e9)
        self._cells = aging.cells
        self._counted = aging.counted
        self._asked = aging.asked
        self._begun = False
        self._ttls = ttls if aging.counts_down else ()
        self._rotation = rotation
        self._turns = Turns(rotation, first) if rotation is not None else None
        self._left = -1
        self._current = response
        self.bytes = AGING + len(response) + (self._turns.bytes if self._turns is not None else 0)

    def next(self, _: bytes, now: int) -> bytes:
        """The response with the TTLs that it has now. The first time it goes to the client whom a plugin answered."""
        if self._begun:
            cells = self._cells
            for cell in self._counted:
                cells[cell] += 1
            if self._asked is not None:
                self._asked()
        self._begun = True
        current = self._current
        if self._ttls:
            left = -((now - self._expires) // 1_000_000_000)
            if left != self._left:
                current = self._at(left)
        return current if self._turns is None else self._turns.next(current, now)

    def _at(self, left: int) -> bytes:
        """Write the TTL into every record; who asked before the response was kept sees the one that it began with."""
        current = self._current
        for at in self._ttls[:1]:
            left = min(left, int.from_bytes(current[at : at + 4], "big"))
        current = stamp(current, self._ttls, max(left, 0))
        if self._turns is not None and self._rotation is not None:
            start, end, step, _ = self._rotation
            records = current[start - 2 : end - 2]
            self._turns = Turns(Rotation(start, end, step, records), self._turns.at // step)
        self._current = current
        self._left = left  # last: a thread that finds it so may be another one
        return current


class Entry:
    """What answers a query.

    response: the message behind its ID; empty if a Countdown has it. cell: where the query is counted. turns: what
    changes from one answer to the next, see Turns and Countdown. block: the server block that it belongs to. hashes: of
    the names that it depends on. seen, stamp: the cache's generation when it was last known to hold, and the sum of the
    names' changes then.
    """

    __slots__ = ("block", "cell", "hashes", "response", "seen", "stamp", "turns")

    def __init__(
        self, response: bytes, cell: int, turns: Turns | Countdown | None, block: Block, hashes: tuple[int, ...]
    ) -> None:
        self.response = response
        self.cell = cell
        self.turns = turns
        self.block = block
        self.hashes = hashes
        self.seen = 0
        self.stamp = 0

    def answer(self, query: bytes, client: tuple[str, int], local: tuple[str, int], proto: str, started: int) -> bytes:
        """The whole response to a query, counted and logged: for answers that go out one by one.

        started: `time.monotonic_ns()` when the query was read.
        """
        response = query[:2] + (self.response if self.turns is None else self.turns.next(self.response, started))
        counters = self.block.counters
        cells, cell = counters.cells, self.cell
        size, length = len(query), len(response)
        cells[cell] += 1
        cells[cell + 1] += size
        cells[cell + 2] += length
        elapsed = time.monotonic_ns() - started
        counters.duration(elapsed)
        if self.block.sample is not None:
            self.block.sample(response, started)
        if self.block.log is not None:
            self.block.log(query, response, client, local, proto, elapsed / 1e9)
        return response


class PacketCache:
    """The cache of one socket.

    young: what came last, or was asked for last. A look-up needs no lock: `young.get(key)`, whose result holds if its
    `seen` is the cache's and it is not over; else `find(key, now)` tells.
    """

    __slots__ = (
        "_asked", "_budget", "_bytes", "_cells", "_changes", "_lock", "_most", "_old_bytes", "_versions", "old", "seen",
        "young",
    )  # fmt: skip

    def __init__(self, changes: Changes, region: Region, budget: Budget) -> None:
        self._changes = changes
        self.seen = changes.generation
        self.young: dict[bytes, Entry] = {}
        self.old: dict[bytes, Entry] = {}
        self._versions = array("Q", bytes(8 * VERSIONS))
        self._bytes = 0  # of the young generation
        self._old_bytes = 0
        self._most = min(BYTES, budget.limit // PART)
        self._asked = bytearray(ASKED)
        self._lock = threading.Lock()
        self._cells = _Cells(region)
        self._budget = budget
        budget.join(self)

    @property
    def size(self) -> int:
        """About how many bytes the entries take."""
        return self._bytes + self._old_bytes

    def wants(self, key: bytes) -> bool:
        """True if the query has come before, and its answer is worth keeping."""
        number = hash(key)
        slot = number & ASKED - 1
        mark = number >> _MARK_AT & 0xFF or _MARK_OF_ZERO
        if self._asked[slot] == mark:
            return True
        self._asked[slot] = mark
        return False

    def find(self, key: bytes, now: int) -> Entry | None:
        """An entry that holds and is not over. One of the old generation becomes young by this."""
        entry = self.young.get(key) or self.old.get(key)
        if entry is None:
            return None
        if entry.seen != self.seen and not self._holds(entry):
            self._drop(key)
            return None
        if entry.turns is not None and entry.turns.until <= now:
            return None
        if key not in self.young:
            self.put(key, entry, self.seen)
        return entry

    def _holds(self, entry: Entry) -> bool:
        """Whether none of the names that an entry depends on has changed since it was last looked at."""
        if self._stamp(entry.hashes) != entry.stamp:
            return False
        entry.seen = self.seen
        return True

    def _stamp(self, hashes: tuple[int, ...]) -> int:
        """What rises with each change of one of these names."""
        stamp = 0
        for number in hashes:
            stamp += self._versions[number % _VERSIONS]
        return stamp

    def _drop(self, key: bytes) -> None:
        """Drop an entry that does not hold any more."""
        with self._lock:
            before = self.size
            self._bytes -= _take(self.young, key)
            self._old_bytes -= _take(self.old, key)
            self._invalidated(1)
            less = before - self.size
        self._budget.add(-less)

    def put(self, key: bytes, entry: Entry, seen: int) -> None:
        """Keep an entry that was made of what the store held when `seen` was the cache's generation.

        If the store has changed since, the entry may be out of date already and is not kept.
        """
        size = _size(key, entry)
        with self._lock:
            if seen != self.seen or size > self._most // PART:
                return
            before = self.size
            if len(self.young) >= ENTRIES or self._bytes + size > self._most:
                self._turn()
            self._old_bytes -= _take(self.old, key)
            self._bytes += size - _take(self.young, key)
            entry.seen = seen
            entry.stamp = self._stamp(entry.hashes)
            self.young[key] = entry
            more = self.size - before
        self._budget.add(more)

    def shed(self) -> int:
        """Drop the old generation; all, if there is none."""
        with self._lock:
            before = self.size
            if not self.old:
                self._turn()
            self._evict_old()
            return before - self.size

    def _turn(self) -> None:
        self._evict_old()
        self.old, self._old_bytes = self.young, self._bytes
        self.young, self._bytes = {}, 0

    def _evict_old(self) -> None:
        cells, evicted = self._cells, len(self.old)
        cells.region.cells[cells.evictions] += evicted
        self.old, self._old_bytes = {}, 0

    def sync(self) -> None:
        """Learn what the store's writer says has changed since the last time."""
        with self._lock:
            before = self.size
            self.seen, hashes = self._changes.since(self.seen)
            if hashes is None:
                self._invalidated(len(self.young) + len(self.old))
                self.young, self.old = {}, {}
                self._bytes = self._old_bytes = 0
            else:
                versions = self._versions
                for number in hashes:
                    versions[number % _VERSIONS] += 1
            less = before - self.size
        if less:
            self._budget.add(-less)

    def _invalidated(self, count: int) -> None:
        cells = self._cells
        cells.region.cells[cells.invalidations] += count

    def report(self) -> tuple[int, int]:
        """Entries, and about how many bytes they take."""
        return len(self.young) + len(self.old), self.size


class _Cells:
    __slots__ = ("evictions", "invalidations", "region")

    def __init__(self, region: Region) -> None:
        self.region = region
        self.evictions = region.series(("count", "kdns_packet_cache_evictions_total"), 1)
        self.invalidations = region.series(("count", "kdns_packet_cache_invalidations_total"), 1)


def _size(key: bytes, entry: Entry) -> int:
    size = len(key) + len(entry.response) + OVERHEAD + PER_NAME * len(entry.hashes)
    return size if entry.turns is None else size + entry.turns.bytes


def _take(entries: dict[bytes, Entry], key: bytes) -> int:
    """Take an entry out; returns its bytes, 0 if it is not there."""
    entry = entries.pop(key, None)
    return 0 if entry is None else _size(key, entry)
