"""The HTTPS side of a worker (RFC 8484): connections of tcp.py that carry HTTP, by TLS or, for a proxy, without.

Loaded only where a server has it. Which version of HTTP it is, TLS has agreed on (ALPN); without TLS the client's first
bytes tell.
"""

from __future__ import annotations

import time
from collections import deque
from http import HTTPStatus
from socket import SocketType

from kdns.plugins.timeouts import Limits
from kdns.server import doh
from kdns.server.doh import BrokenError, Request, Session
from kdns.server.http1 import Http1
from kdns.server.http2 import Http2
from kdns.server.packet_cache import Entry
from kdns.server.respond import Pending
from kdns.server.tcp import Connection, TcpServer

TURN = 32
"""Requests of a connection that are answered before others have their turn."""
SLICE = 4 << 10
"""Bytes that are read as HTTP together."""
TURN_SECONDS = 0.003
"""After that others have their turn too; it may be one answer or one such piece more."""
BYTES = 24 << 10
"""About what HTTP takes for a connection, in bytes."""
_PREFACE = b"PRI "
_CLOCK = doh.Clock()


class HttpConnection(Connection):
    """One client. Its `pending` are requests."""

    __slots__ = ("_leaving", "_progress", "_requests", "_session", "_stream", "_stuck", "_todo", "_warned")

    def __init__(
        self, server: TcpServer, sock: SocketType, fd: int, client: tuple[str, int], local: tuple[str, int]
    ) -> None:
        Connection.__init__(self, server, sock, fd, client, local)
        self._overhead = BYTES
        self._session: Session | None = None
        self._stream = 0  # of the request that is being answered
        self._requests = 0
        self._todo: deque[Request] = deque()  # requests whose turn comes
        self._leaving = False
        self._warned = False
        self._progress = 0  # that of the session, when it was looked at last
        self._stuck = 0.0  # since when that has not changed and answers are due, 0.0 if it has

    def _came(self, data: bytes, now: int) -> None:
        if self._server.connections.taking_turns:
            self._rest = self._rest + data if self._rest else data
            self._turn = True
            self._server.connections.turn_later(self)
            self._note()
        else:
            Connection._came(self, data, now)

    def _agreed(self) -> None:
        assert self._secure is not None
        self._use(Http2() if self._secure.protocol == "h2" else Http1())

    def _use(self, session: Session) -> None:
        self._session = session
        self._most = session.most
        self._send()

    def _proceed(self, now: int) -> None:
        """Answer the requests that are complete."""
        server = self._server
        if server.counters[0] != server.cache.seen:
            server.cache.sync()
        if self._session is None:
            if len(self._rest) < len(_PREFACE) and _PREFACE.startswith(self._rest):
                self._settle()
                return
            self._use(Http2() if self._rest.startswith(_PREFACE) else Http1())
        try:
            self._converse(now)
        except BrokenError as error:
            self._send()
            self.close(error.reason)
            return
        finally:
            server.count_durations(now)
        self._send()
        if self._open and not self._closing:
            self._settle()

    def _converse(self, now: int) -> None:
        session = self._session
        assert session is not None
        count = 0
        until = time.monotonic() + TURN_SECONDS
        while self._open and not self._blocked and self.pending < self._most and (self._todo or not session.ended):
            if self._todo:
                request = self._todo.popleft()
                count += 1
                if not self._leaving and not session.reject(request.stream):
                    self._answer(request, now)
            else:
                data, self._rest = self._rest[:SLICE], self._rest[SLICE:]
                self._todo.extend(session.receive(data, now / 1e9))
                if not self._todo and not self._rest:
                    return
            if count >= TURN or time.monotonic() > until:
                self._turn = True
                self._server.connections.turn_later(self)
                return

    def _settle(self) -> None:
        """See what is left to do when nothing more can be read now."""
        session = self._session
        if session is not None and (session.ended or self._leaving):
            if session.ended:
                self._rest = b""  # no request comes any more
            if not (self.pending or session.due or self._turn or self._todo):
                self._finish()
                return
        if session is None:
            self._started = (self._started or self._heard) if self._rest else 0.0
        else:
            self._started = session.since
        self._watch()
        self._note()

    def _note(self) -> None:
        """Say how much is held, if that has changed."""
        size = self._overhead + len(self._rest)
        if self._session is not None:
            size += self._session.held
        if self._blocked:
            size += len(self._unsent)
        if size != self.held and self._open:
            self._server.connections.hold(self, size)

    def _answer(self, request: Request, now: int) -> None:
        limits: Limits = self._server.limits
        assert self._session is not None
        self._requests += 1
        if self._requests == limits.queries:
            self._leaving = True
            self._count("queries")
            self._session.leave(request.stream)
        if request.status is not HTTPStatus.OK:
            self._refuse(request.stream, request.status)
            return
        self._stream = request.stream
        pending = self.pending
        reply = self._take(request.query, now)
        if reply is not None:
            self._respond(request.stream, reply[2:])
        elif self.pending == pending:
            self._refuse(request.stream, HTTPStatus.INTERNAL_SERVER_ERROR)

    def _respond(self, stream: int, message: bytes) -> None:
        assert self._session is not None
        self._count_status(HTTPStatus.OK)
        self._session.answer(stream, HTTPStatus.OK, doh.answered(message, _CLOCK), message)

    def _refuse(self, stream: int, status: HTTPStatus) -> None:
        assert self._session is not None
        self._count_status(status)
        fields, body = doh.refused(status, _CLOCK)
        self._session.answer(stream, status, fields, body)

    def _count_status(self, status: HTTPStatus) -> None:
        server = self._server
        name = "coredns_dns_https_responses_total"
        server.region.count(("count", name, "server", server.label, "status", str(int(status))))

    def _wait(self, pending: Pending, query: bytes, started: int) -> None:
        self.pending += 1
        stream = self._stream

        def deliver(entry: Entry | None) -> None:
            self.pending -= 1
            if self._open and not self._closing:
                now = time.monotonic_ns()
                self._heard = now / 1e9
                if entry is not None:
                    self._respond(stream, entry.answer(query, self._client, self._local, "tcp", started))
                else:
                    self._refuse(stream, HTTPStatus.INTERNAL_SERVER_ERROR)
                self._send()
                self._resume(now)

        self._server.responder.finish(pending, deliver)

    def _send(self) -> None:
        if self._session is not None:
            data = self._session.take()
            if data:
                self._write(data)

    def expire(self, now: float) -> None:
        """Close the connection if it is idle or stalled at this time."""
        session = self._session
        if session is not None and session.due and not self._closing:
            if session.progress != self._progress or not self._stuck:
                self._progress, self._stuck = session.progress, now
            elif now - self._stuck > self._server.limits.write:
                self._count("slow")
                self.abort()
                return
        else:
            self._stuck = 0.0
        Connection.expire(self, now)

    def drain(self, now: float, *, late: bool) -> None:
        """As Connection does; the client is told before that there will be an end."""
        if self._session is not None and not self._warned and not self._closing:
            self._warned = True
            self._session.warn()
            self._send()
        Connection.drain(self, now, late=late)

    def _leave(self) -> None:
        if self._session is not None and self._open and not self._closing:
            self._session.leave()
            self._send()
        Connection._leave(self)
