"""The UDP side of a worker: one thread for each socket, which blocks in recvmmsg and answers what it can at once.

The loop over a batch is the path that almost every query takes: a slice of the query's bytes, one look-up in the packet
cache, and the response copied over the query.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from random import random

from kdns.observe.counters import QueryCounters, Region
from kdns.plugins.budget import Budget
from kdns.server.batch import MSG_DONTWAIT, MSG_WAITFORONE, SIZE, SLOT, Batch, Envelope, ask_for_packet_info
from kdns.server.packet_cache import Entry, PacketCache
from kdns.server.respond import Block, Pending, Responder, Via, WriteDown
from kdns.server.sampling import LONGEST
from kdns.zone.changes import Changes

_DISCARD = 9
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
LAST_BATCHES = 64
"""How many batches a thread that is told to stop still takes out of its socket, at most."""


class UdpServer:
    """Answers on one socket, in a thread of its own.

    The socket may be bound to all addresses; the answer then leaves from the one that was asked.
    """

    def __init__(
        self,
        sock: socket.socket,
        responder: Responder,
        changes: Changes,
        region: Region,
        loop: asyncio.AbstractEventLoop,
        budget: Budget,
    ) -> None:
        wildcard = sock.getsockname()[0] in ("0.0.0.0", "::")  # noqa: S104
        if wildcard:
            ask_for_packet_info(sock)
        self._socket = sock
        self._batch = Batch(sock, wildcard)
        self._responder = responder
        self._sampler = responder.sampler()
        self._generation = changes.counters
        self._region = region
        self._cells = region.cells
        self._loop = loop
        self.cache = PacketCache(changes, region, budget)
        self.personal = PacketCache(changes, region, budget) if responder.personal else None
        self._via = Via("udp", sock.family, sock.getsockname()[:2], self.cache, personal=self.personal)
        self._direct = responder.direct("udp", self._via.family_label)
        self._refused = region.series(("count", "kdns_dropped_total", "reason", "send"), 1)
        self._hits = region.series(("count", "kdns_packet_cache_hits_total"), 1)
        self._misses = region.series(("count", "kdns_packet_cache_misses_total"), 1)
        self._pending = 0
        self._due: list[tuple[bytes, Envelope]] = []
        self._outgoing: Batch | None = None
        self._done: asyncio.Event | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"udp-{self._via.local}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def turn_away(self) -> None:
        """Let the kernel give new queries to the other sockets that share the address, and keep those that are here.

        A UDP socket with a peer gets datagrams of that peer only, and we give it one that sends nothing (the discard
        port of an address of ours). It can still send to anybody. Not for a socket that another worker will read.
        """
        host = self._via.local[0]
        # The address itself may not be there at all (IP_TRANSPARENT), nor a way to it.
        for peer in (_LOOPBACK.get(host, host), _LOOPBACK["::" if ":" in host else "0.0.0.0"]):  # noqa: S104
            with contextlib.suppress(OSError):
                self._socket.connect((peer, _DISCARD))
                return

    async def stop(self) -> None:
        """End the thread after it has answered what waits in the socket, and wait for what is pending."""
        self._stopping = True
        while self._thread.is_alive():
            # The signal ends a recvmmsg that blocks; it is lost on a thread that is just about to call it.
            with contextlib.suppress(ProcessLookupError):
                signal.pthread_kill(self._thread.ident or 0, signal.SIGUSR2)
            await asyncio.sleep(0.005)
        await asyncio.sleep(0)  # lets what the thread handed over begin
        if self._pending:
            self._done = asyncio.Event()
            await self._done.wait()

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._turn(MSG_WAITFORONE)
            except Exception as error:  # whatever it is, the thread has to go on
                self._responder.panic(error)
        for _ in range(LAST_BATCHES):
            try:
                if not self._turn(MSG_DONTWAIT):
                    break
            except Exception as error:
                self._responder.panic(error)

    def _turn(self, flags: int) -> bool:
        """Receive one batch and answer it; False if there was none."""
        try:
            count = self._batch.receive(flags)
        except OSError as error:
            if not isinstance(error, InterruptedError | BlockingIOError):
                self._region.count(("count", "kdns_dropped_total", "reason", "receive"))
            return False
        started = self._batch.now()
        if self._generation[0] != self.cache.seen:
            self.cache.sync()
        if self.personal is not None and self._generation[0] != self.personal.seen:
            self.personal.sync()
        waiting: list[tuple[Pending, Envelope]] = []
        try:
            self._answer(count, started, waiting)
        finally:
            if self._direct is not None:
                self._direct.leave()
            if waiting:
                self._loop.call_soon_threadsafe(self._finish_later, waiting, started)
        return True

    def _answer(self, count: int, started: int, waiting: list[tuple[Pending, Envelope]]) -> None:
        """Answer what is in the batch. What has to wait for its answer goes to `waiting`."""
        batch, cache, personal, cells = self._batch, self.cache, self.personal, self._cells
        lengths = batch.lengths
        young, old, seen = cache.young, cache.old, cache.seen
        first = 0  # of the slots with answers that are not sent yet
        misses = 0
        block: Block | None = None
        counters: QueryCounters | None = None  # of `block`
        write_down: WriteDown | None = None  # of `block`
        same = 0  # how many answers in a row are of `block`
        logged: list[tuple[int, WriteDown, bytes]] = []
        for slot in range(count):
            key = batch.key(slot)
            entry = young.get(key)
            if entry is None or entry.seen != seen or (entry.turns is not None and entry.turns.until <= started):
                if entry is not None or old:
                    entry = cache.find(key, started)
                if entry is None and personal is not None:
                    entry = personal.find(key + batch.address(slot), started)
                if entry is None:
                    misses += 1
                    entry = self._miss(slot, key, waiting)
                young, old = cache.young, cache.old
                if entry is None:
                    if first < slot and self._direct is not None:
                        self._direct.leave()  # a socket without room blocks, and others want to read the store
                    self._send(first, slot)
                    first = slot + 1
                    continue
            owner = entry.block
            if owner is not block:
                if counters is not None:
                    counters.duration(batch.now() - started, same)
                block = owner
                counters = owner.counters
                write_down = owner.log
                same = 0
            same += 1
            if write_down is not None:
                logged.append((slot, write_down, batch.query(slot)))
            response = entry.response if entry.turns is None else entry.turns.next(entry.response, started)
            length = batch.answer(slot, response)
            cell = entry.cell
            size = lengths[slot]
            cells[cell] += 1
            cells[cell + 1] += size
            cells[cell + 2] += length
        if self._direct is not None:
            self._direct.leave()
        cells[self._misses] += misses
        cells[self._hits] += count - misses
        self._send(first, count)
        elapsed = batch.now() - started
        if counters is not None:
            counters.duration(elapsed, same)
        if self._sampler is not None:
            answer = batch.answered(int(random() * count), LONGEST)
            if answer:  # not every one is, or not yet
                self._sampler.offer(answer, count, started)
        for slot, write, query in logged:
            write(query, batch.answered(slot, SLOT), batch.client(slot), self._local(slot), "udp", elapsed / 1e9)

    def _miss(self, slot: int, key: bytes, waiting: list[tuple[Pending, Envelope]]) -> Entry | None:
        """What the cache does not have. key: the query without its ID."""
        if self._direct is not None:
            entry = self._direct.answer(key, self.cache)
            if entry is not None:
                return entry
        result = self._responder.respond(
            self._batch.query(slot), self._via, self._batch.client(slot), self._local(slot)
        )
        if isinstance(result, Pending):
            waiting.append((result, self._batch.envelope(slot)))
            return None
        return result

    def _finish_later(self, waiting: list[tuple[Pending, Envelope]], started: int) -> None:
        """In the event loop: wait for answers and send them."""
        self._pending += len(waiting)
        for pending, envelope in waiting:
            self._finish(pending, envelope, started)

    def _finish(self, pending: Pending, envelope: Envelope, started: int) -> None:
        def deliver(entry: Entry | None) -> None:
            if entry is None:
                self._delivered(1)
                return
            query = pending.query
            response = entry.answer(query.data, query.client, query.local, "udp", started)
            if not self._due:
                self._loop.call_soon(self._flush)
            self._due.append((response, envelope))

        self._responder.finish(pending, deliver)

    def _flush(self) -> None:
        """Send what became due in one turn of the event loop."""
        if self._outgoing is None:
            self._outgoing = Batch(self._socket, self._batch.packet_info)
        outgoing, due, self._due = self._outgoing, self._due, []
        for first in range(0, len(due), SIZE):
            part = due[first : first + SIZE]
            for slot, (response, envelope) in enumerate(part):
                outgoing.load(slot, response, envelope)
            refused = outgoing.send(0, len(part), MSG_DONTWAIT)
            if refused:
                self._region.cells[self._refused] += refused
        self._delivered(len(due))

    def _delivered(self, count: int) -> None:
        self._pending -= count
        if self._done is not None and not self._pending:
            self._done.set()

    def _local(self, slot: int) -> tuple[str, int]:
        """The address that the datagram in a slot was sent to."""
        host, port = self._via.local
        return self._batch.destination(slot) or host, port

    def _send(self, start: int, end: int) -> None:
        if start < end:
            refused = self._batch.send(start, end)
            if refused:
                self._region.cells[self._refused] += refused
