"""The TCP side of a worker (RFC 7766): many queries on a connection, each answered as soon as it can be.

A message is preceded by its length (2 bytes, big endian). A connection is closed when nothing came for some time, when
a message does not become complete or answers are not taken for some time (those that are still due when it is closed
get as long), when it has had its number of queries (see Limits), and when there are too many connections: then the one
that has been idle longest makes room.

All sockets are in one epoll object, which is itself what the event loop waits for: most connections live for one query,
and a transport of asyncio with its callbacks would cost more than the query. A connection is read as soon as it is
accepted, as the query is usually there by then. The sockets are never told not to block: each call says so.

With TLS (`tls://`, RFC 7858) the same bytes go through an object of their own (`secure.py`). Handshakes take long, and
are done a few at a time: what else the event loop has to do comes between them.
"""

from __future__ import annotations

import asyncio
import fcntl
import select
import socket
import ssl
import sys
import termios
import time
from collections import OrderedDict, deque
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT
from socket import MSG_DONTWAIT, SOCK_STREAM, SocketType
from typing import TYPE_CHECKING

from kdns.observe.counters import Region
from kdns.plugins.budget import UNBOUNDED, Budget
from kdns.plugins.timeouts import Limits
from kdns.server.packet_cache import Entry, PacketCache
from kdns.server.plan import BACKLOG, WILDCARDS
from kdns.server.respond import Block, Pending, Responder, Via, family_label
from kdns.server.secure import BYTES as TLS_BYTES
from kdns.server.secure import Secure
from kdns.wire.message import Transfer
from kdns.zone.changes import Changes
from kdns.zone.store import Zone

if TYPE_CHECKING:
    from kdns.server.certificates import Credential
    from kdns.server.following import Following

CONNECTIONS = 1000
"""Most connections of a worker, over all its listeners, on which no zone is followed."""
FOLLOWERS = 2000
"""Most connections of a worker on which zones are followed (`kdns.wire.following`)."""
FOLLOWER_BYTES = 4 << 10
"""About what one of them takes, with what the system needs for it."""
FOLLOWER_IDLE = 30.0
"""Seconds in which a follower has to ask for something."""
UNSENT = 256 << 10
"""Bytes of answers that may wait for a slow client; no more is read from it until most of them are taken. Less where
memory is short."""
READ = 64 << 10
"""Bytes of queries that are read together."""
READ_SECURE = 8 << 10
"""The same with TLS, where a few bytes may be much to do."""
WRITE = 64 << 10
"""Bytes of answers that are written together."""
TURN = 100
"""Queries of a connection that are answered before others have their turn. If not one of them can be, it is closed."""
SMALL = 16 << 10
"""Bytes that make no difference when a connection has to go for what it holds."""
QUIET = 1.0
"""Seconds that a connection has to be silent to be closed when the worker ends: then no query is likely on its way."""
_ACCEPTED = 50
"""Connections that are accepted before others have their turn."""
_EVENTS = 100
"""Sockets that are looked at together."""
_LOOKS = 4
"""How often they are looked at before the rest of the event loop has its turn, which costs more than a look."""
_SERVED = 30
"""Followers that are served before others have their turn."""
_PAUSE = 0.5
"""Seconds without accepting when the system has no room for more."""
_DRAIN_TURN = 0.01
PENDING = 256
"""Queries of a connection that may wait for an answer at once; no more is read until some have it."""
HANDSHAKES = 200
"""TLS handshakes of a worker that may be under way; with more, the one that began first is ended."""
SHAKING = 0.003
"""Seconds in which handshakes go on until the rest of the event loop has its turn; it may be one more."""
TURNS = 0.01
"""Seconds in which connections that take turns have theirs until the rest of the event loop has its; it may be one
more."""
MESSAGES = 4
"""Messages of a transfer that are written before others have their turn."""
RATE, PACE = 16 << 10, 10.0
"""Bytes of each of its transfers that a client has to take in a second, over so many seconds, when others wait for
their places."""
LINGER = 1.0
"""Seconds that a client has to close a connection that we have ended: what it still sends would reset it, and with it
the answers that are on their way."""


class Connections:
    """The connections of a worker, the one that was idle longest first, and the sockets that listen for more.

    most: bytes that they may hold together of incomplete messages and of answers that are not taken. unsent: see
    UNSENT. open: by file descriptor; followed: likewise those on which zones are followed, which make room for each
    other only, those first whose client address has most of them. shares: how many each address has. shaking: those
    whose TLS handshake is under way, the first one first. following: tells followers of changes, None if nobody can be
    one.
    """

    def __init__(self, region: Region, most: int = UNBOUNDED) -> None:
        self.region = region
        self.open: OrderedDict[int, Connection] = OrderedDict()
        self.followed: OrderedDict[int, Connection] = OrderedDict()
        self.following: Following | None = None
        self.unsent = min(UNSENT, most // 2 // CONNECTIONS)
        self.epoll = select.epoll()
        self._servers: dict[int, TcpServer] = {}
        self._most = most
        self._held = 0
        self.shaking: dict[int, Connection] = {}
        self._due: deque[Connection] = deque()
        self._turns: deque[Connection] = deque()
        self._taking = False
        self.shares: dict[str, int] = {}
        self._gauge = region.series(("gauge", "kdns_tcp_connections"), 1)
        self._followers = region.series(("gauge", "kdns_followers"), 1)

    def listen(self, fd: int, server: TcpServer) -> None:
        """Call a server when somebody connects to its socket."""
        asyncio.get_running_loop().add_reader(self.epoll.fileno(), self._look)
        self._servers[fd] = server
        self.epoll.register(fd, EPOLLIN)

    def ignore(self, fd: int) -> None:
        """Call nobody any more, until the next `listen`."""
        self.epoll.unregister(fd)
        del self._servers[fd]

    def _look(self) -> None:
        """Serve the sockets on which something has happened."""
        connections, followed, servers = self.open, self.followed, self._servers
        served = 0
        for _ in range(_LOOKS):
            found = self.epoll.poll(0, _EVENTS)
            listening = []
            for fd, events in found:
                connection = connections.get(fd)
                if connection is not None:
                    connection.happened(events)
                elif fd in followed:
                    served += 1
                    if served <= _SERVED:  # the others are found again
                        self.serve_follower(followed[fd], events)
                elif fd in servers:
                    listening.append(servers[fd])
            # Last: a new connection may get the descriptor of one that was closed meanwhile, but not its events.
            for server in listening:
                server.accept()
            if not found or served >= _SERVED:
                return

    def add(self, fd: int, connection: Connection) -> None:
        """Note a new connection; another one is closed if there are too many."""
        if len(self.open) >= CONNECTIONS:
            self._idlest().evict()
        self.open[fd] = connection
        self._show()

    def _show(self) -> None:
        """Keep the gauges."""
        self.region.cells[self._gauge] = len(self.open) + len(self.followed)
        self.region.cells[self._followers] = len(self.followed)

    def follow(self, fd: int, connection: Connection, zone: Zone) -> bool:
        """Note that a client follows a zone, and what of it was sent; others are closed if there are too many.

        False if it cannot follow this one too.
        """
        following = self.following
        if following is None or not following.add(connection, zone):
            return False
        if not connection.follows:
            self.followed[fd] = self.open.pop(fd)
            self.shares[connection.host] = self.shares.get(connection.host, 0) + 1
            connection.become_follower()
            self._show()
        while len(self.followed) > 1 and (len(self.followed) > FOLLOWERS or following.crowded):
            self._most_following(self._weights() if following.crowded else self.shares, connection).evict()
        return True

    def _weights(self) -> dict[str, int]:
        """How many zones are followed by each client address."""
        assert self.following is not None
        found: dict[str, int] = {}
        for one in self.followed.values():
            found[one.host] = found.get(one.host, 0) + self.following.zones_of(one)
        return found

    def _most_following(self, shares: dict[str, int], newest: Connection | None = None) -> Connection:
        """Who makes room: of the client addresses with the largest share, the follower that was silent longest.

        newest: goes only if its address has no other one.
        """
        most = max(shares.values())
        for one in self.followed.values():
            if one is not newest and shares[one.host] == most:
                return one
        assert newest is not None
        return newest

    def serve_follower(self, connection: Connection, events: int) -> None:
        """Do what epoll has found to be possible."""
        started = time.thread_time()
        connection.happened(events)
        self.spend(started)

    def spend(self, started: float) -> None:
        """Note that a follower has been served since a time of `time.thread_time()`."""
        if self.following is not None:
            self.following.spent += time.thread_time() - started

    def everyone(self) -> list[Connection]:
        """All connections."""
        return [*self.open.values(), *self.followed.values()]

    def touch(self, fd: int, connection: Connection) -> None:
        """Note that a client has sent something."""
        (self.followed if connection.follows else self.open).move_to_end(fd)

    def _idlest(self) -> Connection:
        """The one that has been idle longest, if possible one whose queries all have their answers."""
        for connection in self.open.values():
            if not connection.pending:
                return connection
        return next(iter(self.open.values()))

    def remove(self, fd: int, connection: Connection) -> None:
        """Note that a connection ends."""
        if self.open.pop(fd, None) is None:
            del self.followed[fd]
            left = self.shares[connection.host] = self.shares[connection.host] - 1
            if not left:
                del self.shares[connection.host]
        if connection.follows and self.following is not None:
            self.following.remove(connection)
        if self.shaking:
            self.shaking.pop(fd, None)
        self._held -= connection.held
        self._show()

    def hold(self, connection: Connection, size: int) -> None:
        """Note how many bytes a connection holds; when all hold too many, one is closed."""
        self._held += size - connection.held
        connection.held = size
        while self._held > self._most:
            self._largest().evict()

    def _largest(self) -> Connection:
        """The one with most beside what it takes by itself; where none has much, the one that has been idle longest."""
        found: Connection | None = None
        most = -1
        for connection in self.everyone():
            size = connection.excess() // SMALL
            if connection.held and size > most:
                found, most = connection, size
        assert found is not None, "somebody holds it"
        return self._most_following(self.shares) if found.follows and not most else found

    def begin_shaking(self, fd: int, connection: Connection) -> None:
        """Note that a handshake begins; the one that began first is ended if there are too many."""
        if len(self.shaking) >= HANDSHAKES:
            next(iter(self.shaking.values())).evict()
        self.shaking[fd] = connection

    def shake_later(self, connection: Connection) -> None:
        """Let a connection's handshake go on when those before it have."""
        self._due.append(connection)
        if len(self._due) == 1:
            asyncio.get_running_loop().call_soon(self._shake_some)

    def _shake_some(self) -> None:
        until = time.monotonic() + SHAKING
        while self._due:
            connection = self._due.popleft()
            connection.shake()
            if time.monotonic() > until:
                break
        if self._due:
            asyncio.get_running_loop().call_soon(self._shake_some)

    @property
    def taking_turns(self) -> bool:
        """Whether connections wait for their turn."""
        return self._taking

    def turn_later(self, connection: Connection) -> None:
        """Let a connection go on when those before it have had their turn."""
        self._turns.append(connection)
        if not self._taking:
            self._taking = True
            asyncio.get_running_loop().call_soon(self._take_turns)

    def _take_turns(self) -> None:
        until = time.monotonic() + TURNS
        for _ in range(len(self._turns)):
            self._turns.popleft().next_turn()
            if time.monotonic() > until:
                break
        self._taking = bool(self._turns)
        if self._taking:
            asyncio.get_running_loop().call_soon(self._take_turns)

    async def sweep(self) -> None:
        """Close what is idle or stalled, for ever."""
        while True:
            await asyncio.sleep(0.5)
            now = time.monotonic()
            for connection in self.everyone():
                connection.expire(now)

    async def drain(self, patience: float) -> None:
        """Close each connection when it has its answers and asks no more, all of them after `patience` seconds."""
        last = time.monotonic()
        until = last + patience
        stood = 0.0  # what the machine did not run for is no silence of a client's
        while self.open or self.followed:  # each turn closes what it can, and all of it in the end
            await asyncio.sleep(_DRAIN_TURN)
            now = time.monotonic()
            stood += max(0.0, now - last - 5 * _DRAIN_TURN)
            last = now
            for connection in self.everyone():
                connection.drain(now - stood, late=now > until)
        asyncio.get_running_loop().remove_reader(self.epoll.fileno())
        self.epoll.close()


class TcpServer:
    """Accepts connections on one listening socket, in the event loop.

    certificate: for TLS, None without. kind: what its connections speak; plain DNS messages if that is not said.
    label: as in metrics, `https://:443`.
    """

    def __init__(
        self,
        sock: socket.socket,
        responder: Responder,
        changes: Changes,
        connections: Connections,
        budget: Budget,
        limits: Limits | None = None,
        certificate: Credential | None = None,
        kind: type[Connection] | None = None,
        label: str = "",
    ) -> None:
        self._socket = sock
        self.label = label
        self.certificate = certificate
        self._kind = kind or Connection
        self.responder = responder
        self.connections = connections
        self.limits = limits or Limits()
        self.region = connections.region
        self.cache = PacketCache(changes, self.region, budget)
        self.family = int(sock.family)
        self.local: tuple[str, int] = sock.getsockname()[:2]
        self.wildcard = self.local[0] in WILDCARDS.values()
        direct = responder.direct("tcp", family_label(self.family))
        self.via = Via("tcp", self.family, self.local, self.cache, direct, self._kind is Connection)
        self.counters = changes.counters
        self.cells = self.region.cells
        self.hits = self.region.series(("count", "kdns_packet_cache_hits_total"), 1)
        self.misses = self.region.series(("count", "kdns_packet_cache_misses_total"), 1)
        self.block: Block | None = None  # of the last `same` answers, whose durations are not counted yet
        self.same = 0
        self._pause: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to accept."""
        self._pause = None
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections have it from their listener
        self.connections.listen(self._socket.fileno(), self)

    async def stop(self, *, leaving: bool = False) -> None:
        """Accept no more; what is connected stays, and what waits in the socket is left to others that share it.

        leaving: nobody else will read it. What waits is accepted, and the kernel refuses what comes from then on.
        """
        # Not in the caller's task: plugins that answer would take it for theirs, see `in_task`.
        asyncio.get_running_loop().call_soon(self._stop, leaving)
        await asyncio.sleep(0)

    def _stop(self, leaving: bool) -> None:
        if leaving:
            for _ in range(BACKLOG // _ACCEPTED + 1):
                self.accept()
        if self._pause is not None:
            self._pause.cancel()
        else:
            self.connections.ignore(self._socket.fileno())
        if leaving:
            self._socket.close()

    def accept(self) -> None:
        """Take the connections that wait, and answer what has come on them."""
        for _ in range(_ACCEPTED):
            try:  # accept() does the same, and takes as long again to find out what we know
                fd, client = self._socket._accept()  # type: ignore[attr-defined]
                sock = SocketType(self.family, SOCK_STREAM, 0, fd)
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:  # nothing is left of descriptors or memory: the next try is not at once
                self.region.count(("count", "kdns_tcp_accept_errors_total"))
                if self._pause is None:
                    self.connections.ignore(self._socket.fileno())
                    self._pause = asyncio.get_running_loop().call_later(_PAUSE, self.start)
                return
            local = sock.getsockname()[:2] if self.wildcard else self.local
            connection = self._kind(self, sock, fd, client[:2], local)
            connection.begin()

    def count_durations(self, started: int) -> None:
        """Count the durations of the last answers. started: `time.monotonic_ns()` when their queries were read."""
        if self.same and self.block is not None:
            self.block.counters.duration(time.monotonic_ns() - started, self.same)
            self.same = 0


class Connection:
    """One client. pending: queries that wait for their answers. held: bytes, see Connections. follows: zones are
    followed on it. Times are those of `time.monotonic()`."""

    __slots__ = (
        "_asked", "_blocked", "_client", "_closing", "_ended", "_fd", "_half_closed", "_heard", "_local", "_most",
        "_open", "_overhead", "_paced", "_questioned", "_rest", "_secure", "_server", "_socket", "_started",
        "_streamed", "_streams", "_taken", "_told", "_turn", "_unsent", "_watched", "_written", "follows", "held",
        "pending",
    )  # fmt: skip

    def __init__(
        self, server: TcpServer, sock: SocketType, fd: int, client: tuple[str, int], local: tuple[str, int]
    ) -> None:
        self._server = server
        self._socket = sock
        self._fd = fd
        self._client = client
        self._local = local
        self._open = True
        self._watched = -1  # the events that epoll looks for, -1 before it knows the socket
        self._rest = b""  # what has come and is not answered
        self._unsent = bytearray()
        self._heard = 0.0
        self._started = 0.0  # when the message that is still incomplete began to come, 0.0 without one
        self._half_closed = False
        self._blocked = 0.0  # since when answers are not taken, 0.0 if they are
        self._closing = 0.0  # since when it ends as soon as its answers are taken, 0.0 if it does not
        self._turn = False  # whether there is more to answer in the next one
        self._streams: list[Transfer] = []  # transfers that are under way
        self._streamed = 0.0  # when the last message of one was written
        self._written = 0  # bytes of them
        self._taken = 0  # what the client had of these
        self._paced = 0.0  # at this time
        self._asked = 0
        self._ended = 0.0  # since when it has had its number of queries and their answers
        self._most = PENDING  # what may be pending until no more is read
        self._overhead = 0  # bytes that it takes by itself
        self._secure = None if server.certificate is None else Secure(server.certificate.context())
        self._told = 0  # NOTIFYs that it has not answered
        self._questioned = 0.0  # when a follower has asked for something
        self.follows = False
        self.pending = 0
        self.held = 0

    def begin(self) -> None:
        """Answer what has come with a new connection, and look out for more."""
        self._server.connections.add(self._fd, self)
        if self._secure is not None:
            self._begin_secure()
        self._read()
        self._heard = self._heard or time.monotonic()
        self._watch()

    def _begin_secure(self) -> None:
        self._started = time.monotonic()
        self._overhead += TLS_BYTES
        self._server.connections.begin_shaking(self._fd, self)
        self._note()

    def happened(self, events: int) -> None:
        """Do what epoll has found to be possible."""
        if events & EPOLLERR or (events & EPOLLHUP and not events & EPOLLIN):
            self.abort()
            return
        if events & EPOLLOUT:
            self._flush()
        if events & EPOLLIN & self._watched and self._open and not self._turn:
            self._read()

    def _watch(self) -> None:
        """Let epoll look for what can be done."""
        events = 0
        if not (self._blocked or self._half_closed or self._closing or self.pending >= self._most):
            events = EPOLLIN
        if self._unsent:
            events |= EPOLLOUT
        if events == self._watched or not self._open:
            return
        epoll = self._server.connections.epoll
        try:
            if self._watched < 0:
                epoll.register(self._fd, events)
            else:
                epoll.modify(self._fd, events)
        except OSError:  # no memory for it, or more than one user may have
            self.abort()
        self._watched = events

    def _read(self) -> None:
        try:
            data = self._socket.recv(READ if self._secure is None else READ_SECURE, MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.abort()
            return
        if not data:
            self._half_close()
            return
        if self._asked == self._server.limits.queries:
            return
        now = time.monotonic_ns()
        self._heard = now / 1e9
        self._server.connections.touch(self._fd, self)
        if self._secure is not None:
            data = self._unseal(data)
        if data:
            self._came(data, now)
        if self._secure is not None and self._open:
            if self._secure.ended and not self._half_closed:
                self._half_close()
            elif self._unsent:  # it may be no answer, but a word of TLS
                self._watch()
                self._note()

    def _came(self, data: bytes, now: int) -> None:
        """Go on with what the client has sent."""
        self._rest = self._rest + data if self._rest else data
        try:
            self._proceed(now)
        except Exception as error:  # whatever it is, others have to be served
            self._server.responder.panic(error)
            self.abort()

    # TLS

    def _unseal(self, data: bytes) -> bytes:
        """What is to be read of these bytes of TLS; nothing as long as there is a handshake."""
        assert self._secure is not None
        try:
            self._secure.feed(data)
        except ssl.SSLError:
            self._shook("failed")
            self._break("tls")
            return b""
        if self._secure.done:
            return self._opened()
        self._turn = True
        self._server.connections.shake_later(self)
        return b""

    def _opened(self) -> bytes:
        """What the client has sent."""
        assert self._secure is not None
        try:
            data = self._secure.read()
        except (ssl.SSLError, ValueError):
            self._break("tls")
            return b""
        self._transmit(self._secure.rest())
        return data

    def shake(self) -> None:
        """Take the next step of the handshake."""
        self._turn = False
        secure = self._secure
        if secure is None or not self._open or self._closing:
            return
        try:
            done = secure.shake()
        except (ssl.SSLError, ValueError, OSError):
            self._shook("failed")
            self._break("tls")
            return
        self._transmit(secure.rest())
        if done and self._open:
            self._shook("complete")
            self._started = 0.0
            self._server.connections.shaking.pop(self._fd, None)
            self._agreed()
            now = time.monotonic_ns()
            data = self._opened()
            if data:
                self._came(data, now)
            if secure.ended and self._open:
                self._half_close()
        self._watch()

    def _agreed(self) -> None:
        """The handshake is done."""

    def _shook(self, result: str) -> None:
        self._server.region.count(("count", "kdns_tls_handshakes_total", "result", result))

    def _break(self, reason: str) -> None:
        """Close it at once, but say what TLS has to say of that."""
        self._count(reason)
        assert self._secure is not None
        self._transmit(self._secure.rest())
        self.abort()

    def _leave(self) -> None:
        """Say that nothing more will come, if there is a word for it."""
        if self._secure is not None and self._secure.done:
            self._transmit(self._secure.leave())

    # Messages

    def _half_close(self) -> None:
        """The client has no more questions; the answers that are due still go out."""
        self._half_closed = True
        if self._busy or self._blocked:
            self._watch()
        else:
            self._finish()

    def _proceed(self, now: int) -> None:
        """Answer the complete messages that have come, as long as the client takes the answers.

        now: `time.monotonic_ns()`.
        """
        server, data = self._server, self._rest
        size = len(data)
        if server.counters[0] != server.cache.seen:
            server.cache.sync()
        at = count = unsent = 0
        replies: list[bytes] = []
        answers = False
        most = server.limits.queries
        while size - at >= 2 and self.pending < self._most and self._asked != most and not self._blocked:
            end = at + 2 + (data[at] << 8 | data[at + 1])
            if end > size:
                break
            if count == TURN:
                if not answers:
                    self.close("unanswerable")
                    return
                self._turn = True
                asyncio.get_running_loop().call_soon(self.next_turn)
                break
            self._asked += 1
            count += 1
            pending = self.pending + self._told
            if self.follows and self._is_answer(data[at + 2 : end], now):
                reply = None
            else:
                reply = self._take(data[at + 2 : end], now)
            at = end
            if reply is not None:
                answers = True
                replies.append(reply)
                unsent += len(reply)
                if unsent > WRITE:
                    self._write(b"".join(replies))
                    replies.clear()
                    unsent = 0
            elif self.pending + self._told != pending:
                answers = True
        server.count_durations(now)
        if replies:
            self._write(replies[0] if len(replies) == 1 else b"".join(replies))
        if self._open:
            self._keep(size if self._asked == most else at)

    def _keep(self, done: int) -> None:
        """Keep what is behind so many bytes of what has come for later."""
        if done:
            self._rest = self._rest[done:]
            self._started = 0.0
        if not self._rest or self._blocked or self._turn or self.pending >= self._most:
            self._started = 0.0
        elif not self._started:
            self._started = self._heard
        if self._asked == self._server.limits.queries and not (self.pending or self._streams):
            self._end()
        self._watch()
        self._note()

    @property
    def host(self) -> str:
        """The client's address."""
        return self._client[0]

    def excess(self) -> int:
        """Bytes that it holds beside what it takes by itself."""
        return self.held - self._overhead

    def _note(self) -> None:
        """Say how much is held, if that has changed."""
        size = self._overhead + len(self._rest)
        if self._blocked or self.follows:
            size += len(self._unsent)
        if size != self.held and self._open:
            self._server.connections.hold(self, size)

    def _end(self) -> None:
        """Say behind the last answer that there will be no more; the client is given time to read that."""
        if self._ended or self._closing:
            return
        self._ended = time.monotonic()
        self._count("queries")
        if not self._unsent:
            self._say_end()

    def _say_end(self) -> None:
        self._leave()
        if self._unsent or not self._open:
            return
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.abort()

    def _take(self, query: bytes, now: int) -> bytes | None:
        """The reply to a message; None if it gets none, or gets it later."""
        server = self._server
        cache = server.cache
        key = query[2:]
        entry = cache.young.get(key)
        if entry is None or entry.seen != cache.seen or (entry.turns is not None and entry.turns.until <= now):
            entry = cache.find(key, now)
        if entry is not None:
            server.cells[server.hits] += 1
        else:
            server.cells[server.misses] += 1
            result = server.responder.respond(query, server.via, self._client, self._local)
            if isinstance(result, Pending):
                if result.entry is None:
                    self._wait(result, query, now)
                    return None
                if result.transfer is not None:
                    self._send_on(result.transfer)
                result = result.entry
            if result is None:
                return None
            entry = result
        return self._reply(query, entry, now)

    def _reply(self, query: bytes, entry: Entry, now: int) -> bytes:
        """An answer behind its length; as Entry.answer, but for the durations, which TcpServer counts together."""
        server, block = self._server, entry.block
        response = query[:2] + (entry.response if entry.turns is None else entry.turns.next(entry.response, now))
        size = len(query)
        length = len(response)
        cell = entry.cell
        server.cells[cell] += 1
        server.cells[cell + 1] += size
        server.cells[cell + 2] += length
        if block is not server.block:
            server.count_durations(now)
            server.block = block
        server.same += 1
        if block.sample is not None:
            block.sample(response, now)
        if block.log is not None:
            block.log(query, response, self._client, self._local, "tcp", (time.monotonic_ns() - now) / 1e9)
        return length.to_bytes(2, "big") + response

    def _wait(self, pending: Pending, query: bytes, started: int) -> None:
        self.pending += 1

        def deliver(entry: Entry | None) -> None:
            self.pending -= 1
            if self._open and not self._closing:
                now = time.monotonic_ns()
                self._heard = now / 1e9
                if entry is not None:
                    response = entry.answer(query, self._client, self._local, "tcp", started)
                    self._write(len(response).to_bytes(2, "big") + response)
                    if pending.transfer is not None:
                        self._send_on(pending.transfer)
                self._resume(now)
            elif pending.transfer is not None:
                pending.transfer.close()

        self._server.responder.finish(pending, deliver)

    def _follow(self, zone: Zone) -> None:
        """Note that the client follows a zone from this answer on; or that it goes, if it has too many."""
        if not self._open:
            return
        self._asked = 0
        self._questioned = time.monotonic()
        if not self._server.connections.follow(self._fd, self, zone):
            asyncio.get_running_loop().call_soon(self.evict)

    def become_follower(self) -> None:
        """Note that zones are followed on it from now on."""
        self.follows = True
        self._overhead += FOLLOWER_BYTES
        self._note()

    def _is_answer(self, data: bytes, now: int) -> bool:
        """Whether a follower's message answers a NOTIFY; else it is a question."""
        if self._told and len(data) > 2 and data[2] & 0x80:
            self._told -= 1
            self._server.region.count(("count", "kdns_notifies_total", "result", "answered"))
            return True
        self._questioned = now / 1e9
        return False

    def notify(self, data: bytes) -> None:
        """Send a follower a NOTIFY."""
        if not self._open or self._closing or self._ended:
            return
        self._told += 1
        self._server.region.count(("count", "kdns_notifies_total", "result", "sent"))
        self._write(len(data).to_bytes(2, "big") + data)
        self._watch()
        self._note()

    def _send_on(self, transfer: Transfer) -> None:
        """Send what is behind the first message of a transfer, as fast as the client takes it."""
        if transfer.followed is not None:
            self._follow(transfer.followed)
        if len(transfer.messages) <= 1 or not self._open:
            transfer.close()
            return
        self._streams.append(transfer)
        self._streamed = time.monotonic()
        self._look_at_pace(self._streamed)
        if len(self._streams) == 1:
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        """Write some more messages of the first transfer, unless those before wait for the client."""
        started = time.thread_time()
        count = 0
        while self._streams and self._open and not (self._unsent or self._closing):
            if count == MESSAGES:
                asyncio.get_running_loop().call_soon(self._go_on)
                break
            count += 1
            message = next(self._streams[0].stream, None)
            if message is None:
                self._streams.pop(0).close()
                continue
            self._write(len(message).to_bytes(2, "big") + message)
            self._written += 2 + len(message)
            now = time.monotonic_ns()
            self._heard = self._streamed = now / 1e9
        if not self._streams:
            self._resume(time.monotonic_ns())
        self._watch()
        if self.follows:
            self._note()
            self._server.connections.spend(started)

    def _look_at_pace(self, now: float) -> int:
        """Bytes of transfers that the client has taken since the last look."""
        try:
            waiting = fcntl.ioctl(self._fd, termios.TIOCOUTQ, bytes(4))
        except OSError:
            waiting = bytes(4)
        before = self._taken
        self._taken = self._written - len(self._unsent) - int.from_bytes(waiting, sys.byteorder)
        self._paced = now
        return self._taken - before

    def _is_in_the_way(self, now: float) -> bool:
        """Whether others wait for the places of its transfers, and it has to make room."""
        seconds = now - self._paced
        if not self._streams or seconds < PACE:
            return False
        slow = self._look_at_pace(now) < RATE * seconds * len(self._streams)
        return bool(self._unsent) and self._streams[0].has_to_yield(slow=slow)

    def _write(self, data: bytes) -> None:
        """Send answers."""
        if self._secure is not None and self._open:
            try:
                data = self._secure.seal(data)
            except (ssl.SSLError, ValueError):
                self._break("tls")
                return
        self._transmit(data)

    def _transmit(self, data: bytes) -> None:
        """Let the network have these bytes; what the system does not take now goes when it can."""
        if not self._open or not data:
            return
        sent = 0
        if not self._unsent:
            try:
                sent = self._socket.send(data, MSG_DONTWAIT)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                self.abort()
                return
            if sent == len(data):
                return
        self._unsent += data[sent:]
        if len(self._unsent) > self._server.connections.unsent and not self._blocked:
            self._blocked = time.monotonic()

    def _flush(self) -> None:
        """Send more of what was not taken."""
        try:
            sent = self._socket.send(self._unsent, MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.abort()
            return
        del self._unsent[:sent]
        if not self._unsent and self._closing:
            self.abort()
        elif not self._unsent and self._ended:
            self._say_end()
        if self._open and len(self._unsent) <= self._server.connections.unsent // 4:
            self._blocked = 0.0
            self._resume(time.monotonic_ns())
        if self._streams and not self._unsent:
            self._go_on()

    @property
    def _busy(self) -> bool:
        """True if answers are being worked out."""
        return self.pending > 0 or self._turn or bool(self._streams)

    def next_turn(self) -> None:
        """Go on with what was left for others to have their turn."""
        self._turn = False
        if not self._open or self._closing:
            return
        try:
            self._resume(time.monotonic_ns())
        except Exception as error:  # whatever it is, others have to be served
            self._server.responder.panic(error)
            self.abort()

    def _resume(self, now: int) -> None:
        """Go on with what was left, then with reading."""
        if not self._open or self._closing or (self._secure is not None and not self._secure.done):
            return
        if not self._turn:
            self._proceed(now)
        if self._half_closed and self._open and not (self._busy or self._blocked):
            self._finish()

    def expire(self, now: float) -> None:
        """Close the connection if it is idle or stalled at this time."""
        limits = self._server.limits
        if self._closing:
            if now - self._closing > limits.write:
                self.abort()
        elif (self._blocked and now - self._blocked > limits.write) or (
            self._streams and now - self._streamed > limits.write
        ):
            self._count("slow")
            self.abort()
        elif self._is_in_the_way(now):
            self.evict()
        elif self._ended:
            if now - self._ended > LINGER and not self._blocked:
                self._finish()
        elif self._started and now - self._started > limits.read:
            self.close("incomplete" if self._secure is None or self._secure.done else "handshake")
        elif not self._busy and not self._blocked and self._is_idle(now):
            self.close("idle")

    def _is_idle(self, now: float) -> bool:
        if self.follows:
            return now - max(self._questioned, self._streamed) > FOLLOWER_IDLE
        return bool(now - self._heard > self._server.limits.idle)

    def drain(self, now: float, *, late: bool) -> None:
        """Close the connection if nothing is due on it and none of its queries is likely to be on its way.

        late: at any rate, and what is due is lost.
        """
        if self._busy or self._closing:
            if late:
                self.abort()
        elif late or self.follows or now - self._heard > QUIET:
            self.close("shutdown")

    def close(self, reason: str) -> None:
        """Close it after the answers that are written; `reason` is counted."""
        if not self._closing:
            self._count(reason)
            self._finish()

    def _finish(self) -> None:
        """Close it after the answers that are written."""
        self._leave()
        if not self._unsent:
            self.abort()
        elif not self._closing:
            self._closing = time.monotonic()
            self._watch()

    def evict(self) -> None:
        """Close it at once because another one needs its place."""
        if self._open:
            self._count("crowded")
            self.abort()

    def abort(self) -> None:
        """Close it at once."""
        if self._open:
            self._open = False
            self._server.connections.remove(self._fd, self)
            self._socket.close()
            for transfer in self._streams:
                transfer.close()
            self._streams.clear()

    def _count(self, reason: str) -> None:
        self._server.region.count(("count", "kdns_tcp_connections_closed_total", "reason", reason))
