"""What a worker's zone transfers share: what is sent, how many at a time, and the messages of whole zones."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from kdns.errors import StoreError
from kdns.wire import names
from kdns.wire.message import Transfer
from kdns.zone import journal, transfer
from kdns.zone.reader import Reader, Snapshot
from kdns.zone.store import SYNCED, Zone
from kdns.zone.transfer import Messages, Packer
from kdns.zone.values import decode_rrsets

MOST = 50
"""Transfers of a worker that are sent at a time; others wait."""
WAIT = 30.0
"""Seconds that they wait before they get SERVFAIL."""
PREPARING = 60.0
"""Seconds in which a zone is made into messages, or else is not sent: the store keeps all old pages meanwhile."""
_PORTION = 200
"""Names that are made into messages before others have their turn."""
_INLINE = 100
"""Differences that are condensed without a thread."""


class Whole:
    """A zone as messages. It is there as long as somebody sends it."""

    def __init__(self, zone: Zone, messages: Messages) -> None:
        self.zone = zone
        self.messages = messages


class Outgoing:
    """The transfers of a worker."""

    def __init__(self, store: Reader) -> None:
        self.store = store
        self._slots = asyncio.Semaphore(MOST)
        self._packing = asyncio.Lock()
        self._whole: weakref.WeakValueDictionary[tuple[int, int], Whole] = weakref.WeakValueDictionary()

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """The store as it is now."""
        found = self.store.snapshot()
        try:
            yield found
        finally:
            found.end()

    async def slot(self) -> Slot:
        """Wait until another transfer may be sent. Raises TimeoutError."""
        async with asyncio.timeout(WAIT):
            await self._slots.acquire()
        return Slot(self._slots)

    async def whole(self, wanted: Zone) -> Whole | None:
        """All of a zone as it is now, of one commit; None if it is not, or no more, to be served.

        One is made into messages at a time, in portions, with pauses that are as long. Raises StoreError if the store
        does not let us, TimeoutError if it takes too long.
        """
        async with asyncio.timeout(PREPARING):
            async with self._packing:
                with self.snapshot() as found:
                    return await self._whole_of(found, wanted)

    async def _whole_of(self, found: Snapshot, wanted: Zone) -> Whole | None:
        with found.open() as txn:
            zone = next((zone for zone in txn.zones() if zone.number == wanted.number), None)
        if zone is None or zone.state != SYNCED:
            return None
        if (zone.source, zone.origin) != (wanted.source, wanted.origin):  # its number was given to another one
            return None
        there = self._whole.get((zone.number, zone.serial))
        if there is None:
            there = self._whole[zone.number, zone.serial] = Whole(zone, await self._pack(found, zone))
        return there

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
                for row in transfer.rows(zone.origin, key, value):
                    if row != soa:
                        packer.add(row)
            await asyncio.sleep(time.monotonic() - started)
        if soa is None:
            raise StoreError(f"zone {names.to_text(zone.origin)} has no records")
        packer.add(soa)
        return packer.done()

    async def difference(self, zone: Zone, entries: list[bytes]) -> Messages:
        """What leads to a zone's serial, from differences of its journal."""
        if len(entries) > _INLINE:
            found = await asyncio.to_thread(journal.condensed, entries)
        else:
            found = journal.condensed(entries)
        return transfer.difference(zone.origin, found)


class Slot:
    """The right to send a transfer; given back when it is closed."""

    def __init__(self, slots: asyncio.Semaphore) -> None:
        self._slots: asyncio.Semaphore | None = slots

    def close(self) -> None:
        """Let another one have it."""
        slots, self._slots = self._slots, None
        if slots is not None:
            slots.release()

    def of(self, origin: bytes, messages: Messages, kept: object = None) -> Transfer:
        """A zone's transfer that has it until its end. kept: what is to be there as long."""
        return Transfer(origin, messages, self.close, kept)
