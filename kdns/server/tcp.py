"""The TCP side of a worker (RFC 7766): many queries on a connection, each answered as soon as it can be.

A message is preceded by its length (2 bytes, big endian). A connection is closed when nothing came for some time, when
a message does not become complete or answers are not taken for some time (those that are still due when it is closed
get as long), when it has had its number of queries (see Limits), and when there are too many connections: then the one
that has been idle longest makes room.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import OrderedDict

from kdns.observe.counters import Region
from kdns.plugins.budget import UNBOUNDED, Budget
from kdns.plugins.timeouts import Limits
from kdns.server.packet_cache import Entry, PacketCache
from kdns.server.plan import BACKLOG
from kdns.server.respond import Pending, Responder, Via
from kdns.zone.changes import Changes

CONNECTIONS = 1000
"""Most connections of a worker, over all its listeners."""
UNSENT = 256 << 10
"""Bytes of answers that may wait for a slow client; no more is read from it until they are taken. Less where memory is
short."""
WRITE = 64 << 10
"""Bytes of answers that are written together."""
TURN = 100
"""Queries of a connection that are answered before others have their turn. If not one of them can be, it is closed."""
QUIET = 1.0
"""Seconds that a connection has to be silent to be closed when the worker ends: then no query is likely on its way."""
_ACCEPTED = 100
"""Connections that are accepted before others have their turn."""
_PAUSE = 0.5
"""Seconds without accepting when the system has no room for more."""
_DRAIN_TURN = 0.01
PENDING = 256
"""Queries of a connection that may wait for an answer at once; no more is read until some have it."""
LINGER = 1.0
"""Seconds that a client has to close a connection that we have ended: what it still sends would reset it, and with it
the answers that are on their way."""


class Connections:
    """The connections of a worker, the one that was idle longest first.

    most: bytes that they may hold together of incomplete messages and of answers that are not taken. unsent: see
    UNSENT.
    """

    def __init__(self, region: Region, most: int = UNBOUNDED) -> None:
        self.region = region
        self.open: OrderedDict[Connection, None] = OrderedDict()
        self.unsent = min(UNSENT, most // 2 // CONNECTIONS)
        self._most = most
        self._held = 0

    def add(self, connection: Connection) -> None:
        """Note a new connection; another one is closed if there are too many."""
        if len(self.open) >= CONNECTIONS:
            self._evict(next((other for other in self.open if not other.pending), next(iter(self.open))))
        self.open[connection] = None
        self._count()

    def remove(self, connection: Connection) -> None:
        """Note that a connection has ended."""
        self._forget(connection)
        self._count()

    def hold(self, connection: Connection, size: int) -> None:
        """Note how many bytes a connection holds; when all hold too many, the one with most of them is closed."""
        if connection not in self.open:
            return
        self._held += size - connection.held
        connection.held = size
        while self._held > self._most:
            self._evict(max(self.open, key=_held))

    def _evict(self, connection: Connection) -> None:
        self._forget(connection)  # now, so that the next one in a burst makes another one go
        connection.evict()

    def _forget(self, connection: Connection) -> None:
        if connection in self.open:
            del self.open[connection]
            self._held -= connection.held

    def _count(self) -> None:
        self.region.set(("gauge", "kdns_tcp_connections"), len(self.open))

    async def sweep(self) -> None:
        """Close what is idle or stalled, for ever."""
        while True:
            await asyncio.sleep(0.5)
            now = time.monotonic()
            for connection in list(self.open):
                connection.expire(now)

    async def drain(self, patience: float) -> None:
        """Close each connection when it has its answers and asks no more, all of them after `patience` seconds."""
        last = time.monotonic()
        until = last + patience
        stood = 0.0  # what the machine did not run for is no silence of a client's
        while self.open:  # each turn closes what it can, and all of it in the end
            await asyncio.sleep(_DRAIN_TURN)
            now = time.monotonic()
            stood += max(0.0, now - last - 5 * _DRAIN_TURN)
            last = now
            for connection in list(self.open):
                connection.drain(now - stood, late=now > until)


def _held(connection: Connection) -> int:
    return connection.held


class TcpServer:
    """Accepts connections on one listening socket, in the event loop."""

    def __init__(
        self,
        sock: socket.socket,
        responder: Responder,
        changes: Changes,
        connections: Connections,
        budget: Budget,
        limits: Limits | None = None,
    ) -> None:
        self._socket = sock
        self.responder = responder
        self.changes = changes
        self.connections = connections
        self.limits = limits or Limits()
        self.region = connections.region
        self.cache = PacketCache(changes, self.region, budget)
        self.family = sock.family
        self.local: tuple[str, int] = sock.getsockname()[:2]
        self.hits = self.region.series(("count", "kdns_packet_cache_hits_total"), 1)
        self.misses = self.region.series(("count", "kdns_packet_cache_misses_total"), 1)
        self._arriving: set[asyncio.Task[object]] = set()
        self._pause: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to accept."""
        self._socket.setblocking(False)
        asyncio.get_running_loop().add_reader(self._socket, self._accept)

    async def stop(self, *, leaving: bool = False) -> None:
        """Accept no more; what is connected stays, and what waits in the socket is left to others that share it.

        leaving: nobody else will read it. What waits is accepted, and the kernel refuses what comes from then on.
        (asyncio's own server would drop what it has accepted in the same moment.)
        """
        if leaving:
            for _ in range(BACKLOG // _ACCEPTED + 1):
                self._accept()
        asyncio.get_running_loop().remove_reader(self._socket)
        if leaving:
            self._socket.close()
        if self._pause is not None:
            self._pause.cancel()
        await asyncio.gather(*self._arriving, return_exceptions=True)

    def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(_ACCEPTED):
            try:
                sock, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:  # nothing is left of descriptors or memory: the next try is not at once
                self.region.count(("count", "kdns_tcp_accept_errors_total"))
                loop.remove_reader(self._socket)
                self._pause = loop.call_later(_PAUSE, self.start)
                return
            sock.setblocking(False)
            arriving = loop.create_task(loop.connect_accepted_socket(lambda: Connection(self), sock))
            self._arriving.add(arriving)
            arriving.add_done_callback(self._arriving.discard)


class Connection(asyncio.Protocol):
    """One client. held: bytes, see Connections."""

    def __init__(self, server: TcpServer) -> None:
        self._server = server
        self._buffer = bytearray()
        self._transport: asyncio.Transport
        self._client: tuple[str, int] = ("", 0)
        self._via: Via
        self._heard = 0.0
        self._started = 0.0  # when the message that is still incomplete began to come, 0.0 without one
        self._half_closed = False
        self._blocked = 0.0  # since when answers are not taken, 0.0 if they are
        self._closing = 0.0  # since when it ends as soon as its answers are taken, 0.0 if it does not
        self._turn: asyncio.Handle | None = None  # the next one, if there is more in the buffer
        self._asked = 0
        self._ended = 0.0  # since when it has had its number of queries and their answers
        self.pending = 0
        self.held = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=self._server.connections.unsent)
        self._client = (transport.get_extra_info("peername") or ("", 0))[:2]
        local = (transport.get_extra_info("sockname") or self._server.local)[:2]
        self._via = Via("tcp", self._server.family, local, self._server.cache)
        self._heard = time.monotonic()
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._turn is not None:
            self._turn.cancel()
        self._server.connections.remove(self)

    def data_received(self, data: bytes) -> None:
        if self._asked == self._server.limits.queries:
            return
        self._heard = time.monotonic()
        self._server.connections.open.move_to_end(self)
        self._buffer += data
        self._proceed()

    def _proceed(self) -> None:
        """Answer the complete messages that have come, as long as the client takes the answers."""
        buffer = self._buffer
        at = 0
        replies: list[bytes] = []
        unsent = count = 0
        answers = False
        most = self._server.limits.queries
        while not self._blocked and self.pending < PENDING and len(buffer) - at >= 2 and self._asked != most:
            end = at + 2 + int.from_bytes(buffer[at : at + 2], "big")
            if end > len(buffer):
                break
            if count == TURN and not answers:
                self.close("unanswerable")
                return
            if count == TURN:
                self._transport.pause_reading()
                self._turn = asyncio.get_running_loop().call_soon(self._next_turn)
                break
            self._asked += 1
            count += 1
            pending = self.pending
            reply = self._take(bytes(buffer[at + 2 : end]))
            at = end
            answers = answers or reply is not None or self.pending > pending
            if reply is not None:
                replies.append(reply)
                unsent += len(reply)
                if unsent > WRITE:
                    self._transport.write(b"".join(replies))
                    replies.clear()
                    unsent = 0
        if self._asked == most:
            at = len(buffer)
        if at:
            del buffer[:at]
            self._started = 0.0
        if replies:
            self._transport.write(b"".join(replies))
        if not buffer or self._blocked or self._turn is not None or self.pending >= PENDING:
            self._started = 0.0
        elif not self._started:
            self._started = time.monotonic()
        if self.pending >= PENDING:
            self._transport.pause_reading()
        if self._asked == most and not self.pending:
            self._end()
        self._note()

    def _note(self) -> None:
        """Say how much is held, if that has changed."""
        size = len(self._buffer)
        if self._blocked:
            size += self._transport.get_write_buffer_size()
        if size != self.held:
            self._server.connections.hold(self, size)

    def _end(self) -> None:
        """Say behind the last answer that there will be no more; the client is given time to read that."""
        if self._ended or self._transport.is_closing():
            return
        self._ended = time.monotonic()
        self._count("queries")
        self._transport.write_eof()

    def _take(self, query: bytes) -> bytes | None:
        """The reply to a message; None if it gets none, or gets it later."""
        server = self._server
        cells = server.region.cells
        started = time.monotonic_ns()
        if server.changes.counters[0] != server.cache.seen:
            server.cache.sync()
        key = query[2:]
        entry = server.cache.young.get(key)
        if entry is None or (entry.turns is not None and entry.turns.until <= started):
            entry = server.cache.from_old(key, started)
        if entry is not None:
            cells[server.hits] += 1
        else:
            cells[server.misses] += 1
            result = server.responder.respond(query, self._via, self._client, self._via.local)
            if isinstance(result, Pending):
                self._wait(result, query, started)
                return None
            if result is None:
                return None
            entry = result
        return self._reply(query, entry, started)

    def _reply(self, query: bytes, entry: Entry, started: int) -> bytes:
        """An answer behind its length."""
        response = entry.answer(query, self._client, self._via.local, "tcp", started)
        return len(response).to_bytes(2, "big") + response

    def _wait(self, pending: Pending, query: bytes, started: int) -> None:
        self.pending += 1

        def deliver(entry: Entry) -> None:
            self.pending -= 1
            if not self._transport.is_closing():
                self._heard = time.monotonic()
                self._transport.write(self._reply(query, entry, started))
                self._resume()
                self._note()

        self._server.responder.finish(pending, deliver)

    def eof_received(self) -> bool:
        """The client has no more questions; the answers that are due still go out."""
        self._half_closed = True
        return self._blocked > 0 or self._busy

    def pause_writing(self) -> None:
        self._blocked = time.monotonic()
        self._transport.pause_reading()
        self._note()

    def resume_writing(self) -> None:
        self._blocked = 0.0
        self._note()
        self._resume()

    @property
    def _busy(self) -> bool:
        """True if answers are being worked out."""
        return self.pending > 0 or self._turn is not None

    def _next_turn(self) -> None:
        self._turn = None
        if not self._transport.is_closing():
            self._resume()

    def _resume(self) -> None:
        """Go on with what was left in the buffer, then with reading."""
        if self._turn is None:
            self._proceed()
        if self._blocked or self._turn is not None or self.pending >= PENDING:
            return
        if not self._half_closed:
            self._transport.resume_reading()
        elif not self.pending:
            self._transport.close()

    def expire(self, now: float) -> None:
        """Close the connection if it is idle or stalled at this time."""
        limits = self._server.limits
        if self._transport.is_closing():
            self._closing = self._closing or now
            if now - self._closing > limits.write:
                self.abort()
        elif self._blocked and now - self._blocked > limits.write:
            self._count("slow")
            self.abort()
        elif self._ended:
            if now - self._ended > LINGER and not self._blocked:
                self._transport.close()
        elif self._started and now - self._started > limits.read:
            self.close("incomplete")
        elif not self._busy and not self._blocked and now - self._heard > limits.idle:
            self.close("idle")

    def drain(self, now: float, *, late: bool) -> None:
        """Close the connection if nothing is due on it and none of its queries is likely to be on its way.

        late: at any rate, and what is due is lost.
        """
        if self._busy or self._transport.is_closing():
            if late:
                self.abort()
        elif late or now - self._heard > QUIET:
            self.close("shutdown")

    def close(self, reason: str) -> None:
        """Close it after the answers that are written; `reason` is counted."""
        if not self._transport.is_closing():
            self._count(reason)
            self._transport.close()

    def evict(self) -> None:
        """Close it at once because another one needs its place."""
        self._count("crowded")
        self.abort()

    def abort(self) -> None:
        """Close it at once."""
        self._transport.abort()

    def _count(self, reason: str) -> None:
        self._server.region.count(("count", "kdns_tcp_connections_closed_total", "reason", reason))
