"""Queries over TCP and TLS: few connections, many queries in flight on each, answers in any order (RFC 7766 6.2).

A query belongs to a connection from the moment that it is asked, connected or not. All queries that are put on a
connection in one turn of the event loop leave in one write, and all answers that one read brings are given out in the
same turn.

Some servers close after a number of answers. When a connection ends with queries on it after few answers, or after as
many as the one before, that number is noted for a while, and no connection gets more queries than that, so that none is
lost. If a server then does not close, it is forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable
from functools import partial
from random import getrandbits

from kdns.errors import ConnectionLostError, UpstreamError
from kdns.upstream.ask import Ask
from kdns.upstream.faults import NOT_USED, TIMEOUT, told
from kdns.upstream.meters import Meter
from kdns.upstream.settings import Settings, Target
from kdns.upstream.steps import Wait, in_task

CONNECT_SECONDS = 1.5
"""How long a connection may take until it can be used, the TLS handshake included."""
BUSY = 32
"""Queries in flight on a connection from which on another one is opened beside it."""
MAX_CONNECTIONS = 2
MAX_LIMITED_CONNECTIONS = 64
"""The same for a server that closes after a number of answers."""
MAX_IN_FLIGHT = 16384
LIMIT_SECONDS = 60.0
FEW_ANSWERS = 16
LARGEST_LIMIT = 1024
"""With more answers than that on each connection, what is asked again does not matter."""
_BUFFER = 1 << 17
_QUIET = 0.5
_PROOF = 1.0
_CLOSING = 0.02  # the end of a connection comes with the last answer, or right behind it


class Asked(Wait):
    """A query in flight, whose answer is waited for. sent, until: when it was sent and how long it waits (of the event
    loop's clock)."""

    __slots__ = ("ask", "sent", "until")

    def __init__(self, ask: Ask, sent: float, until: float) -> None:
        super().__init__()
        self.ask = ask
        self.sent = sent
        self.until = until


class Streams:
    """The connections to one address. To be used in the event loop only."""

    __slots__ = (
        "_cells", "_connections", "_current", "_ended_after", "_hits", "_limited_until", "_misses", "_room", "context",
        "limit", "max_age", "meter", "proto", "settings", "target",
    )  # fmt: skip

    def __init__(self, target: Target, settings: Settings, context: ssl.SSLContext | None, meter: Meter) -> None:
        """context: None for plain TCP."""
        self.target = target
        self.settings = settings
        self.max_age = settings.max_age
        self.context = context
        self.meter = meter
        self._cells = meter.cells
        self.proto = "tcp" if context is None else "tcp-tls"
        self.limit = 0  # queries for each connection, 0 if there is no limit
        self._limited_until = 0.0
        self._ended_after = 0
        self._connections: list[Connection] = []
        self._current: Connection | None = None  # the one that was used last
        self._hits, self._misses = meter.connections(self.proto)
        self._room: asyncio.Future[None] | None = None

    def ask(self, ask: Ask, now: float, until: float) -> Awaitable[bytes]:
        """What brings the answer, from its ID on. until: of the event loop's clock, as `now` is; noticed by `tick`.

        Raises ConnectionLostError or UpstreamError when it is awaited.
        """
        connection = self._current
        if connection is not None and len(connection.waiting) < BUSY and not self.limit and connection.takes_more(now):
            cells, hits = self._cells, self._hits
            cells[hits] += 1
            return connection.put(ask, now, until)
        connection = self._pick(now)
        if connection is None:
            return self._ask_later(ask, until)
        self._current = connection
        return connection.put(ask, now, until)

    async def _ask_later(self, ask: Ask, until: float) -> bytes:
        """The same when there is room."""
        await in_task()
        connection: Connection | None = None
        while connection is None:
            await self._wait(until)
            now = asyncio.get_running_loop().time()
            connection = self._pick(now)
        self._current = connection
        answer: bytes = await connection.put(ask, now, until)
        return answer

    def tick(self, now: float) -> bool:
        """End waits and connections whose time is over; False if no query is in flight."""
        busy = False
        for connection in list(self._connections):
            connection.tick(now)
            busy = busy or bool(connection.waiting)
        return busy

    @property
    def is_open(self) -> bool:
        """Whether there is any connection."""
        return bool(self._connections)

    def close(self) -> None:
        """End all connections and what waits on them."""
        for connection in list(self._connections):
            connection.end(NOT_USED)

    def _pick(self, now: float) -> Connection | None:
        """The connection for the next query; None if it has to wait."""
        if self.limit and now > self._limited_until:
            self.limit = 0
        best: Connection | None = None
        for connection in self._connections:
            if connection.takes_more(now) and (best is None or connection.load() < best.load()):
                best = connection
        most = MAX_LIMITED_CONNECTIONS if self.limit else MAX_CONNECTIONS
        crowded = best is None or (len(best.waiting) >= BUSY and len(self._connections) < MAX_CONNECTIONS)
        if best is None and len(self._connections) >= most:
            self._evict(now)
        if crowded and len(self._connections) < most:
            opened = Connection(self, now)
            self._connections.append(opened)
            self.meter.count(self._misses)
            return best or opened
        if best is not None:
            cells, hits = self._cells, self._hits
            cells[hits] += 1
        return best

    def _evict(self, now: float) -> None:
        """Close a connection that is idle and takes no more queries, though it was for the server to do so."""
        for connection in self._connections:
            if not connection.waiting:
                if self.limit and now - connection.idle_since > _CLOSING:
                    self.limit = 0
                connection.end("")
                return

    async def _wait(self, until: float) -> None:
        """Wait until a connection ends or is done with something."""
        if self._room is None:
            self._room = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout_at(until):
                await asyncio.shield(self._room)
        except TimeoutError:
            raise UpstreamError(f"all of {len(self._connections)} connections were taken") from None

    def moved(self) -> None:
        """There may be room for those who wait."""
        if self._room is not None:
            room, self._room = self._room, None
            room.set_result(None)

    def idle(self, connection: Connection) -> None:
        """A connection has no query in flight any more: close it if that is one too many."""
        self.moved()
        kept = self.settings.max_idle
        spare = kept and sum(not other.waiting for other in self._connections) > kept
        if spare or self.settings.expire <= 0:
            connection.end("")

    def gone(self, connection: Connection) -> None:
        """A connection has ended."""
        with contextlib.suppress(ValueError):
            self._connections.remove(connection)
        if self._current is connection:
            self._current = None
        self.moved()

    def learn(self, answers: int) -> None:
        """The server ended a connection with queries on it after this many answers."""
        if answers < FEW_ANSWERS or answers == self._ended_after <= LARGEST_LIMIT:
            self.limit = answers
            self._limited_until = asyncio.get_running_loop().time() + LIMIT_SECONDS
        self._ended_after = answers


class _Receiver(asyncio.BufferedProtocol):
    """What the transport of a connection calls."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._connection.room()

    def buffer_updated(self, nbytes: int) -> None:
        self._connection.filled(nbytes)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._connection.connected(transport)

    def eof_received(self) -> None:
        self._connection.lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.lost(exc)


class Connection:
    """One connection, from the moment that it is wanted."""

    __slots__ = (
        "_answers", "_buffer", "_connecting", "_ended", "_filled", "_heard", "_loop", "_opened", "_out", "_pool",
        "_put", "_socket", "_transport", "_view", "idle_since", "waiting",
    )  # fmt: skip

    def __init__(self, pool: Streams, now: float) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self.waiting: dict[int, Asked] = {}
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._out: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._socket: socket.socket | None = None
        self._ended = False
        self._put = 0
        self._answers = 0
        self._opened = self._heard = self.idle_since = now
        self._connecting = self._loop.create_task(self._connect())

    def load(self) -> int:
        """Which of two connections is to be preferred, the lesser one: one that is connected, with fewer queries."""
        return len(self.waiting) + (MAX_IN_FLIGHT if self._transport is None else 0)

    def takes_more(self, now: float) -> bool:
        """Whether another query may be put on it."""
        pool = self._pool
        if self._ended or (pool.limit and self._put >= pool.limit) or len(self.waiting) >= MAX_IN_FLIGHT:
            return False
        return not pool.max_age or now - self._opened < pool.max_age

    def put(self, ask: Ask, now: float, until: float) -> Asked:
        """Send a query, or keep it until there is a connection.

        The ID need not be hard to guess here, where nobody can answer but the other end; it only has to be free.
        """
        waiting = self.waiting
        ident = getrandbits(16)
        while ident in waiting:
            ident = getrandbits(16)
        waiting[ident] = asked = Asked(ask, now, until)
        self._put += 1
        out = self._out
        if not out and self._transport is not None:
            self._loop.call_soon(self._flush)
        body = ask.body
        out.append((len(body) + 2 << 16 | ident).to_bytes(4, "big"))
        out.append(body)
        return asked

    def _flush(self) -> None:
        if self._out and self._transport is not None:
            self._transport.write(b"".join(self._out))
            self._out.clear()

    async def _connect(self) -> None:
        target, settings = self._pool.target, self._pool.settings
        secure = self._pool.context
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._loop.create_connection(
                    partial(_Receiver, self),
                    target.host,
                    target.port,
                    local_addr=(settings.source, 0) if settings.source else None,
                    ssl=secure,
                    server_hostname=(target.server_name or target.host) if secure is not None else None,
                )
        except TimeoutError:
            self._fail(f"no {self._pool.proto} connection within {CONNECT_SECONDS:g} s: {TIMEOUT}")
        except OSError as error:
            self._fail(f"no {self._pool.proto} connection: {told(error)}")

    def _fail(self, text: str) -> None:
        """No connection came about."""
        self._ended = True
        self._pool.gone(self)
        for asked in self._taken():
            asked.fail(UpstreamError(text))

    def connected(self, transport: asyncio.Transport) -> None:
        """It can be used."""
        self._transport = transport
        self._socket = transport.get_extra_info("socket")
        self.idle_since = self._loop.time()
        if self._ended:
            transport.abort()
        self._flush()

    def room(self) -> memoryview:
        """Where to put what comes: a buffer that holds at least one message of any size."""
        return self._view[self._filled :]

    def filled(self, nbytes: int) -> None:
        """So many bytes have come: take the complete messages out of the buffer."""
        self._filled = end = self._filled + nbytes
        answered: list[tuple[Asked, bytes]] = []
        if end >= 2 and end >= 2 + (self._buffer[0] << 8 | self._buffer[1]):
            self._messages(bytes(self._view[:end]), answered)
        if self.waiting and self._socket is not None:
            # A server without TCP_NODELAY keeps the next answer until it has our ACK, which we would delay (tcp(7)).
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        for asked, answer in answered:
            if not asked.is_done:
                asked.set(answer)

    def _messages(self, data: bytes, answered: list[tuple[Asked, bytes]]) -> None:
        """Take apart what has come, at least one message, and note what it answers."""
        end, at = len(data), 0
        while end - at >= 2:
            following = at + 2 + (data[at] << 8 | data[at + 1])
            if following > end:
                break
            self._take(data[at + 2 : following], answered)
            at = following
        self._view[: end - at] = data[at:]
        self._filled = end - at
        now = self._loop.time()
        if answered:
            self._answers += len(answered)
            self._heard = now
        if not self.waiting and not self._ended:
            self.idle_since = now
            self._pool.idle(self)

    def _take(self, data: bytes, answered: list[tuple[Asked, bytes]]) -> None:
        """Note what a message answers. data: from its ID on."""
        ident = int.from_bytes(data[:2], "big")
        asked = self.waiting.get(ident)
        wrong = asked.ask.mismatch(data) if asked is not None else "id"
        if asked is None or wrong:
            self._pool.meter.discarded(wrong, data)
            return
        del self.waiting[ident]
        answered.append((asked, data))

    def lost(self, error: Exception | None) -> None:
        """It has ended, or the other end sends no more. error: if it was not closed."""
        if self._ended:
            return
        self._ended = True
        self._pool.gone(self)
        if not self.waiting:
            return
        quiet = min(asked.sent for asked in self.waiting.values()) - self._heard > _QUIET
        if self._answers and not quiet:
            self._pool.learn(self._answers)
        self._lose(f"the {self._pool.proto} connection was {'reset' if error is not None else 'closed'}")

    def _lose(self, text: str) -> None:
        for asked in self._taken():
            asked.fail(ConnectionLostError(text))

    def _taken(self) -> list[Asked]:
        """Those who still wait, who wait here no more."""
        waiting = [asked for asked in self.waiting.values() if not asked.is_done]
        self.waiting.clear()
        self._out.clear()
        return waiting

    def tick(self, now: float) -> None:
        """End the waits that are over.

        If nobody has had an answer since such a query was sent, the connection is taken for dead: where all answers
        come too late, a new one leaves behind what waits at the server. One that is open though it has had as many
        queries as the server is said to answer shows that the server does not count.
        """
        late = [(ident, asked) for ident, asked in self.waiting.items() if asked.until <= now]
        dead = False
        for ident, asked in late:
            del self.waiting[ident]
            dead = dead or asked.sent >= self._heard
            if not asked.is_done:
                asked.fail(UpstreamError(f"no answer within {now - asked.sent:.1f} s: {TIMEOUT}"))
        if dead:
            self.end("the connection is dead")
        elif late and not self.waiting:
            self.idle_since = now
            self._pool.idle(self)
        elif not self.waiting:
            settings = self._pool.settings
            if now - self.idle_since >= settings.expire or 0 < self._pool.max_age <= now - self._opened:
                self.end("")
            elif self._pool.limit and self._put >= self._pool.limit and now - self.idle_since > _PROOF:
                self._pool.limit = 0

    def end(self, text: str) -> None:
        """Close the connection; queries on it are lost, for this reason."""
        if self._ended:
            return
        self._ended = True
        self._pool.gone(self)
        if self._transport is None:
            self._connecting.cancel()
        elif self.waiting or self._out:
            self._transport.abort()
        else:
            self._transport.close()
        self._lose(text)
