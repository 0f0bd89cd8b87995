"""HTTP/1.1 (RFC 9112) for one connection, by h11: one request after the other, however many come at once."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from http import HTTPStatus

import h11

from kdns.server import doh
from kdns.server.doh import BrokenError, Fields, Request
from kdns.wire.message import MAX_MESSAGE

_LENGTHS = {b"content-length", b"transfer-encoding"}
"""Both together say where a request ends in two ways, of which a proxy may take the other (RFC 9112 6.3)."""


class Http1:
    """See doh.Session. A request is answered before the next one is read."""

    most = 1
    due = False
    progress = 0

    def __init__(self) -> None:
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=doh.HEAD)
        self._out: list[bytes] = []
        self._head: h11.Request | None = None
        self._body = bytearray()
        self._broken = False
        self._last = False
        self.since = 0.0

    @property
    def held(self) -> int:
        """Bytes of what is incomplete."""
        return len(self._body) + len(self._h11.trailing_data[0])

    @property
    def ended(self) -> bool:
        """Whether the answer that was given is the last one."""
        return self._h11.our_state in (h11.MUST_CLOSE, h11.CLOSED, h11.ERROR)

    def receive(self, data: bytes, now: float) -> Sequence[Request]:
        """See doh.Session."""
        if self._broken:
            return ()
        try:
            if data:
                self._h11.receive_data(data)
            return self._events(now)
        except h11.RemoteProtocolError as error:
            self._broken = True
            if self._h11.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
                raise BrokenError("http") from None
            return (Request(0, _status(error.error_status_hint)),)

    def _events(self, now: float) -> Sequence[Request]:
        while True:
            event = self._h11.next_event()
            if isinstance(event, h11.Request):
                self._head = event
                self.since = self.since or now
                if {name for name, _ in event.headers} >= _LENGTHS:
                    self._broken = True
                    return (Request(0, HTTPStatus.BAD_REQUEST),)
                if self._h11.they_are_waiting_for_100_continue:
                    self._send(h11.InformationalResponse(status_code=100, headers=[]))
            elif isinstance(event, h11.Data):
                self._body += event.data
                if len(self._body) > MAX_MESSAGE:
                    self._broken = True
                    return (Request(0, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),)
            elif isinstance(event, h11.EndOfMessage):
                return (self._complete(),)
            elif event is h11.NEED_DATA:
                begun = self._head is not None or self._h11.trailing_data[0]
                self.since = (self.since or now) if begun else 0.0
                return ()
            else:  # an answer has to go first
                return ()

    def _complete(self) -> Request:
        assert self._head is not None
        body = bytes(self._body)
        self._body.clear()
        self.since = 0.0
        return doh.asked(0, self._head.method, self._head.target, body)

    def answer(self, stream: int, status: HTTPStatus, fields: Fields, body: bytes) -> None:
        """See doh.Session."""
        if self._h11.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        if self._broken or self._last:
            fields = [*fields, (b"connection", b"close")]
        self._send(h11.Response(status_code=status, headers=fields, reason=status.phrase.encode()))
        if self._head is None or self._head.method != b"HEAD":
            self._send(h11.Data(data=body))
        self._send(h11.EndOfMessage())
        self._head = None
        with contextlib.suppress(h11.LocalProtocolError):  # the connection ends with this answer
            self._h11.start_next_cycle()

    def _send(self, event: h11.Event) -> None:
        self._out.append(self._h11.send(event) or b"")

    def reject(self, stream: int) -> bool:
        """See doh.Session."""
        return False

    def take(self) -> bytes:
        """See doh.Session."""
        found = b"".join(self._out)
        self._out.clear()
        return found

    def warn(self) -> None:
        """See doh.Session: the next answer says it."""
        self._last = True

    def leave(self, last: int | None = None) -> None:
        """See doh.Session."""
        self._last = True


def _status(number: int) -> HTTPStatus:
    try:
        return HTTPStatus(number)
    except ValueError:
        return HTTPStatus.BAD_REQUEST
