"""What a worker's zone transfers share: what is sent, how many at a time, and the messages of whole zones."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from kdns.errors import StoreError
from kdns.wire import names
from kdns.wire.message import Transfer
from kdns.zone import journal, transfer
from kdns.zone.journal import Difference
from kdns.zone.reader import Reader, Snapshot
from kdns.zone.store import SYNCED, Zone
from kdns.zone.transfer import Messages, Packer
from kdns.zone.values import decode_rrsets

MOST = 50
"""Transfers of a worker that are sent at a time; others wait."""
MOST_OF_ONE = 10
"""Those of one client address among them: who reads slowly has no more of them."""
WAITING = 4000
"""Transfers that are sent or wait; with more, they get SERVFAIL at once. Each that waits is a query that waits."""
WAITING_OF_ONE = 1000
"""Those of one client address among these."""
WAIT = 30.0
"""Seconds that they wait before they get SERVFAIL."""
PREPARING = 60.0
"""Seconds in which a zone is made into messages, or else is not sent: the store keeps all old pages meanwhile."""
FRESH = 5.0
"""Seconds for which a zone that was made into messages is good enough for new followers, who get what has changed at
once: if all come at the same time, it is not made for each of them while it changes."""
_PORTION = 200
"""Names that are made into messages before others have their turn."""
_INLINE = 300
_INLINE_BYTES = 64 << 10
"""Differences, and bytes of them, that are condensed without a thread."""
ROUND, OF_ONE, OF_ALL = 0.2, 0.01, 0.05
"""Seconds, and how many of them may go to differences without a thread for one client address, and for all: more of
them are made one after the other, as those that are much to do."""
REST = 3
"""After what was made in a thread, so many times of what it took pass before there is another one."""
SHARED = 0.05
"""Seconds for which a difference is good enough for other followers with the same serial, who get the rest with the
next round: where changes come faster than all are told, it would be another one for almost each of them."""
_Version = tuple[int, bytes]
_RECENT = 100
_KEPT = 1 << 20
"""Differences that have been condensed, and bytes of them, that are kept for others who have the same serial."""


class Whole:
    """A zone as messages. It is there as long as somebody sends it. revision: of its data. made: when, of
    `time.monotonic()`."""

    def __init__(self, zone: Zone, revision: int, messages: Messages, made: float) -> None:
        self.zone = zone
        self.revision = revision
        self.messages = messages
        self.made = made


class Made:
    """What leads from a serial to a zone as it is then, as messages. It is there as long as somebody sends it, and
    longer if it is small. made: when, of `time.monotonic()`."""

    def __init__(self, zone: Zone, difference: Difference) -> None:
        self.zone = zone
        self.made = time.monotonic()
        self.messages = transfer.difference(zone.origin, difference)
        self.size = sum(len(records) for _, records in self.messages)


class _Share:
    """What a client address has of the transfers. count: of those that are sent or wait; sent: of those that are."""

    def __init__(self) -> None:
        self.count = 0
        self.sent = 0


class _Spent:
    """Seconds of CPU time that differences without a thread have taken in this round, by client address."""

    def __init__(self) -> None:
        self._began = 0.0
        self._all = 0.0
        self._of: dict[str, float] = {}

    def may(self, host: str) -> bool:
        """Whether there may be another one for an address."""
        now = time.monotonic()
        if now - self._began >= ROUND:
            self._began, self._all = now, 0.0
            self._of.clear()
        return self._all < OF_ALL and self._of.get(host, 0.0) < OF_ONE

    @contextmanager
    def by(self, host: str) -> Iterator[None]:
        """Count what is done in the context."""
        started = time.thread_time()
        try:
            yield
        finally:
            took = time.thread_time() - started
            self._all += took
            self._of[host] = self._of.get(host, 0.0) + took


class Outgoing:
    """The transfers of a worker."""

    def __init__(self, store: Reader) -> None:
        self.store = store
        self._shares: dict[str, _Share] = {}
        self._waiting: dict[asyncio.Future[None], _Share] = {}
        self._count = 0
        self._sent = 0
        self._packing = asyncio.Lock()
        self._condensing = asyncio.Lock()
        self._spent = _Spent()
        self._rested = 0.0
        self._whole: weakref.WeakValueDictionary[tuple[int, _Version], Whole] = weakref.WeakValueDictionary()
        self._made: weakref.WeakValueDictionary[tuple[int, str, int, _Version], Made] = weakref.WeakValueDictionary()
        self._last: weakref.WeakValueDictionary[tuple[int, str, int], Made] = weakref.WeakValueDictionary()
        self._recent: deque[Made] = deque()
        self._recent_bytes = 0

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """The store as it is now."""
        found = self.store.snapshot()
        try:
            yield found
        finally:
            found.end()

    async def slot(self, host: str) -> Slot:
        """Wait until another transfer may be sent to a client address. Raises TimeoutError."""
        share = self._shares.get(host) or _Share()
        if self._count >= WAITING or share.count >= WAITING_OF_ONE:
            raise TimeoutError
        self._shares[host] = share
        share.count += 1
        self._count += 1
        with ExitStack() as undo:
            undo.callback(self._leave, host, share)
            await self._place(share)
            undo.callback(self._free, share)
            return Slot(undo.pop_all().close)

    def has_to_yield(self, host: str, *, slow: bool) -> bool:
        """Whether a transfer that has been sent to a client address for a while has to end, as another address waits.

        If the client takes it slowly, for any that has fewer; else for one that has then no more than it.
        """
        sent = self._shares[host].sent
        fewest = min((share.sent for share in self._waiting.values()), default=sent)
        return fewest < sent if slow else fewest + 1 < sent

    async def _place(self, share: _Share) -> None:
        """Wait until another transfer may be sent to an address. Raises TimeoutError."""
        place = asyncio.get_running_loop().create_future()
        self._waiting[place] = share
        self._fill()
        try:
            async with asyncio.timeout(WAIT):
                await place
        except BaseException:
            if self._waiting.pop(place, None) is None:  # it was there at the same time
                self._free(share)
            raise

    def _fill(self) -> None:
        """Give places to those who wait: to the address that has the fewest of them, and who came first."""
        while self._sent < MOST:
            able = [place for place, of in self._waiting.items() if of.sent < MOST_OF_ONE and not place.done()]
            if not able:
                return
            place = min(able, key=lambda place: self._waiting[place].sent)
            share = self._waiting.pop(place)
            share.sent += 1
            self._sent += 1
            place.set_result(None)

    def _free(self, share: _Share) -> None:
        """A transfer is sent."""
        self._sent -= 1
        share.sent -= 1
        self._fill()

    def _leave(self, host: str, share: _Share) -> None:
        """A transfer is sent, or waits no more."""
        self._count -= 1
        share.count -= 1
        if not share.count:
            del self._shares[host]

    async def whole(self, wanted: Zone, *, followed: bool = False, revision: int = 0) -> Whole | None:
        """All of a zone as it is now, of one commit; None if it is not, or no more, to be served.

        One is made into messages at a time, in portions, with pauses that are as long. followed: it may be one of
        FRESH ago, but of no earlier revision than this. Raises StoreError if the store does not let us, TimeoutError if
        it takes too long.
        """
        async with asyncio.timeout(PREPARING):
            async with self._packing:
                with self.snapshot() as found:
                    return await self._whole_of(found, wanted, FRESH if followed else 0.0, revision)

    async def _whole_of(self, found: Snapshot, wanted: Zone, fresh: float, least: int) -> Whole | None:
        with found.open() as txn:
            zone = next((zone for zone in txn.zones() if zone.number == wanted.number), None)
            revision = txn.revision(zone) if zone is not None else 0
        if zone is None or zone.state != SYNCED:
            return None
        if (zone.source, zone.origin) != (wanted.source, wanted.origin):  # its number was given to another one
            return None
        there = self._whole.get((zone.number, zone.version)) or self._recent_whole(
            zone, time.monotonic() - fresh, least
        )
        if there is None:
            made = time.monotonic()
            there = Whole(zone, revision, await self._pack(found, zone), made)
            self._whole[zone.number, zone.version] = there
        return there

    def _recent_whole(self, zone: Zone, since: float, least: int) -> Whole | None:
        """All of a zone as it was a short time ago, if somebody sends that."""
        recent = (one for one in list(self._whole.values()) if one.made > since and one.revision >= least)
        return next((one for one in recent if _same(one.zone, zone)), None)

    async def _pack(self, found: Snapshot, zone: Zone) -> Messages:
        packer = Packer(zone.origin)
        soa = None
        while entries := found.entries(zone.prefix, _PORTION):
            started = time.monotonic()
            for key, value in entries:
                if soa is None:
                    soa = transfer.soa(zone.origin, decode_rrsets(value)) if key == zone.prefix else None
                    if soa is None:
                        raise StoreError(f"zone {names.to_text(zone.origin)} has no SOA record")
                    packer.add(soa)
                for row in transfer.rows(zone, key, value):
                    if row != soa:
                        packer.add(row)
            await asyncio.sleep(time.monotonic() - started)
        if soa is None:
            raise StoreError(f"zone {names.to_text(zone.origin)} has no records")
        packer.add(soa)
        return packer.done()

    def difference_at_once(self, zone: Zone, serial: int, host: str, *, followed: bool = False) -> Made | None:
        """What leads from a serial to a zone's, if it is there already, or is little to do; else None.

        The zone may be a newer one than was asked for. host: the client's address, for which not too much was done of
        late. followed: or one of SHARED ago.
        """
        made = self._made.get(_step(zone, serial))
        if made is not None:
            return made
        made = self._shared(zone, serial, time.monotonic()) if followed else None
        if made is not None:
            return made
        if not self._spent.may(host):
            return None
        with self._spent.by(host):
            made = self._little(zone, serial)
        return self._keep(serial, made) if made is not None else None

    def _little(self, zone: Zone, serial: int) -> Made | None:
        """What leads from a serial to a zone's, if that is little to do."""
        with self.store as reader:
            there = reader.zone(zone.number)
            if there is None or not _same(there, zone):
                return None
            txn = reader.transaction()
            way = journal.way(txn, there, serial)
            if way is None or len(way) > _INLINE:
                return None
            entries = journal.entries(txn, there, way, there.serial, _INLINE_BYTES)
        return Made(there, journal.condensed(entries)) if entries is not None else None

    def _shared(self, zone: Zone, serial: int, asked: float) -> Made | None:
        """What leads from a serial to one that a zone had SHARED before somebody has asked, or later."""
        made = self._last.get((zone.number, zone.source, serial))
        return made if made is not None and made.made > asked - SHARED and _same(made.zone, zone) else None

    async def difference(self, zone: Zone, serial: int, host: str, *, followed: bool = False) -> Made | None:
        """The same however much it is, in a thread if it is not there; None if there is no such way.

        One is made at a time, and the next one not at once. Raises StoreError if the store does not let us,
        TimeoutError if it takes too long.
        """
        asked = time.monotonic()
        made = self.difference_at_once(zone, serial, host, followed=followed)
        if made is not None:
            return made
        async with asyncio.timeout(PREPARING):
            async with self._condensing:
                made = self._made.get(_step(zone, serial))
                if made is None and followed:
                    made = self._shared(zone, serial, asked)
                if made is not None:
                    return made
                await asyncio.sleep(self._rested - time.monotonic())
                async with self._packing:  # not before: whole zones are made meanwhile
                    started = time.monotonic()
                    made = await asyncio.to_thread(self._make, zone, serial)
                    self._rested = time.monotonic() + (time.monotonic() - started) * REST
                return self._keep(serial, made) if made is not None else None

    def _make(self, zone: Zone, serial: int) -> Made | None:
        """Read in portions, between which others may read."""
        with self.snapshot() as found:
            with found.open() as txn:
                there = next((one for one in txn.zones() if one.number == zone.number), None)
                if there is None or not _same(there, zone):
                    return None
                left = journal.way(txn, there, serial)
            entries: list[bytes] = []
            upto = there.serial
            while left:
                portion, left = left[-_PORTION:], left[:-_PORTION]
                with found.open() as txn:
                    more = journal.entries(txn, there, portion, upto)
                if more is None:
                    return None
                entries[:0] = more
                upto = journal.begins(more[0])
        return Made(there, journal.condensed(entries)) if entries else None

    def _keep(self, serial: int, made: Made) -> Made:
        """Let others have it too."""
        self._made[_step(made.zone, serial)] = made
        self._last[made.zone.number, made.zone.source, serial] = made
        if made.size <= _KEPT:
            self._recent.append(made)
            self._recent_bytes += made.size
            while self._recent_bytes > _KEPT or len(self._recent) > _RECENT:
                self._recent_bytes -= self._recent.popleft().size
        return made


def _same(one: Zone, other: Zone) -> bool:
    """Whether it is one zone, at two times, and its serials are of one lineage."""
    first, second = ((zone.number, zone.source, zone.origin, zone.lineage) for zone in (one, other))
    return first == second


def _step(zone: Zone, serial: int) -> tuple[int, str, int, _Version]:
    """What leads from a serial to that of a zone."""
    return zone.number, zone.source, serial, zone.version


class Slot:
    """The right to send a transfer; given back when it is closed."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release: Callable[[], None] | None = release

    def close(self) -> None:
        """Let another one have it."""
        release, self._release = self._release, None
        if release is not None:
            release()

    def of(self, origin: bytes, messages: Messages, kept: object = None, followed: Zone | None = None) -> Transfer:
        """A zone's transfer that has it until its end. kept: what is to be there as long. followed: see Transfer."""
        return Transfer(origin, messages, self.close, kept, followed)
