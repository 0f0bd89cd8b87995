"""HTTP/2 (RFC 9113) for one connection, by h2: many requests at once, answered as their answers are there.

Frames that are no requests cost the client what its requests earn: who resets its requests, or sends other frames, far
more often than it is answered, has its connection ended.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Sequence
from http import HTTPStatus

from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings

from kdns.server import doh
from kdns.server.doh import BrokenError, Fields, Request
from kdns.server.hpack import FieldEncoder, HeadDecoder
from kdns.wire.message import MAX_MESSAGE

STREAMS = 100
"""Requests that may be under way on a connection."""
CREDIT = 1000
"""Frames without a request that a client may send at first, and has left at most."""
EARNED = 10
"""How many more it may send for each answer."""
RESET = 10
"""A request that it resets counts as so many."""
UNSEEN = 64 << 10
"""Bytes that may come without a whole frame."""
BODIES = 4 * MAX_MESSAGE
"""Bytes of requests that are incomplete."""
QUEUED = 256 << 10
"""Bytes of answers that the client's windows do not let go; with more, requests are refused until it takes some."""
_GOAWAY = struct.Struct("!BHBBLLL")
_GOAWAY_TYPE = 7
_LAST = 2**31 - 1
_TABLE = 4096
"""Bytes of fields that are remembered for a client, which may offer any number."""


class _Connection(H2Connection):
    MAX_CLOSED_STREAMS = 1024
    DEFAULT_MAX_HEADER_LIST_SIZE = doh.HEAD


_CONFIG = H2Configuration(
    client_side=False,
    header_encoding=None,
    validate_outbound_headers=False,
    normalize_outbound_headers=False,
)


_FOR_ALL = (events.WindowUpdated, events.RemoteSettingsChanged)
"""What may let answers of several streams go."""


class _Incoming:
    """A request that is incomplete."""

    __slots__ = ("body", "method", "since", "target")

    def __init__(self, method: bytes, target: bytes, since: float) -> None:
        self.method = method
        self.target = target
        self.since = since
        self.body = bytearray()


class Http2:
    """See doh.Session."""

    most = STREAMS

    def __init__(self) -> None:
        self._h2 = _Connection(_CONFIG)
        self._h2.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: STREAMS,
                SettingCodes.MAX_HEADER_LIST_SIZE: doh.HEAD,
            },
        )
        self._h2.encoder, self._h2.decoder = FieldEncoder(), HeadDecoder()
        self._h2.decoder.max_header_list_size = doh.HEAD
        self._h2.initiate_connection()
        self._incoming: dict[int, _Incoming] = {}
        self._bodies = 0
        self._asked: dict[int, bytes] = {}  # the methods of requests that wait for their answers
        self._unfinished: set[int] = set()
        self._queue: dict[int, memoryview] = {}
        self._queued = 0
        self._unseen = 0
        self._unseen_since = 0.0
        self._credit = CREDIT
        self._highest = 0
        self._left = False
        self._goodbye = b""
        self.progress = 0
        self.ended = False

    @property
    def since(self) -> float:
        """See doh.Session."""
        oldest = next(iter(self._incoming.values()), None)
        return oldest.since if oldest is not None else self._unseen_since

    @property
    def held(self) -> int:
        """See doh.Session."""
        return self._bodies + self._queued + self._unseen

    @property
    def due(self) -> bool:
        """See doh.Session."""
        return bool(self._queue)

    def receive(self, data: bytes, now: float) -> Sequence[Request]:
        """See doh.Session."""
        if not data:
            return ()
        try:
            found = self._h2.receive_data(data)
        except Exception as error:  # h2 has said GOAWAY, unless it did not foresee this
            self._left = True
            raise BrokenError("http") from error
        if found:
            self._unseen, self._unseen_since = 0, 0.0
        else:
            self._unseen += len(data)
            self._unseen_since = self._unseen_since or now
        requests: list[Request] = []
        try:
            for event in found:
                self._credit -= 1
                self._happened(event, now, requests)
            if any(isinstance(event, _FOR_ALL) for event in found):
                self._push_all()
        except H2Error as error:
            raise BrokenError("http") from error
        if self._credit < 0 or self._unseen > UNSEEN or self._bodies > BODIES:
            self._left = True
            self._say_goodbye(self._highest, ErrorCodes.ENHANCE_YOUR_CALM)
            raise BrokenError("flood")
        return requests

    def _happened(self, event: events.Event, now: float, requests: list[Request]) -> None:
        if isinstance(event, events.RequestReceived):
            self._begun(event, now)
        elif isinstance(event, events.DataReceived):
            self._filled(event, requests)
        elif isinstance(event, events.StreamEnded):
            self._complete(event.stream_id, requests)
        elif isinstance(event, events.WindowUpdated):
            self._push(event.stream_id)
        elif isinstance(event, events.RemoteSettingsChanged):
            if self._h2.encoder.header_table_size > _TABLE:
                self._h2.encoder.header_table_size = _TABLE
        elif isinstance(event, events.StreamReset):
            self._credit -= RESET
            self._forget(event.stream_id)
        elif isinstance(event, events.ConnectionTerminated):
            self.ended = True

    def _begun(self, event: events.RequestReceived, now: float) -> None:
        stream = event.stream_id
        self._highest = max(self._highest, stream)
        if self._left or self.ended or len(self._asked) >= STREAMS:
            self._reset(stream, ErrorCodes.REFUSED_STREAM)
            return
        head = dict(event.headers)
        self._incoming[stream] = _Incoming(head.get(b":method", b""), head.get(b":path", b""), now)

    def _filled(self, event: events.DataReceived, requests: list[Request]) -> None:
        stream = event.stream_id
        incoming = self._incoming.get(stream)
        if event.flow_controlled_length:
            self._h2.acknowledge_received_data(event.flow_controlled_length, stream)
        if incoming is None:
            return
        incoming.body += event.data
        self._bodies += len(event.data)
        if len(incoming.body) > MAX_MESSAGE:
            self._take(stream)
            self._asked[stream] = incoming.method
            self._unfinished.add(stream)
            requests.append(Request(stream, HTTPStatus.REQUEST_ENTITY_TOO_LARGE))

    def _complete(self, stream: int, requests: list[Request]) -> None:
        self._unfinished.discard(stream)
        incoming = self._take(stream)
        if incoming is not None:
            self._asked[stream] = incoming.method
            requests.append(doh.asked(stream, incoming.method, incoming.target, bytes(incoming.body)))

    def _take(self, stream: int) -> _Incoming | None:
        incoming = self._incoming.pop(stream, None)
        if incoming is not None:
            self._bodies -= len(incoming.body)
        return incoming

    def _forget(self, stream: int) -> None:
        self._take(stream)
        self._asked.pop(stream, None)
        self._unfinished.discard(stream)
        self._queued -= len(self._queue.pop(stream, b""))

    def _reset(self, stream: int, code: ErrorCodes) -> None:
        self._forget(stream)
        with contextlib.suppress(H2Error):  # the client has done so already
            self._h2.reset_stream(stream, code)

    def answer(self, stream: int, status: HTTPStatus, fields: Fields, body: bytes) -> None:
        """See doh.Session."""
        method = self._asked.pop(stream, None)
        if method is None:
            return
        if method == b"HEAD":
            body = b""
        self._credit = min(CREDIT, self._credit + EARNED)
        try:
            self._h2.send_headers(stream, [(b":status", b"%d" % status), *fields], end_stream=not body)
        except H2Error:  # the connection or the stream has ended meanwhile
            self._forget(stream)
            return
        if body:
            self._queue[stream] = memoryview(body)
            self._queued += len(body)
            self._push(stream)

    def _push_all(self) -> None:
        """Send what the client's windows let go."""
        for stream in list(self._queue):
            self._push(stream)

    def _push(self, stream: int | None) -> None:
        """The same of one stream."""
        rest = self._queue.get(stream or 0)
        if stream is None or rest is None:
            return
        try:
            self._push_one(stream, rest)
        except H2Error:
            self._forget(stream)

    def _push_one(self, stream: int, rest: memoryview) -> None:
        while True:
            size = min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size, len(rest))
            if size <= 0:
                self._queue[stream] = rest
                return
            self._h2.send_data(stream, bytes(rest[:size]), end_stream=size == len(rest))
            self.progress += size
            self._queued -= size
            rest = rest[size:]
            if not rest:
                break
        del self._queue[stream]
        if stream in self._unfinished:
            self._reset(stream, ErrorCodes.NO_ERROR)

    def reject(self, stream: int) -> bool:
        """See doh.Session."""
        if self._queued <= QUEUED:
            return False
        self._reset(stream, ErrorCodes.REFUSED_STREAM)
        return True

    def take(self) -> bytes:
        """See doh.Session."""
        found = self._h2.data_to_send()
        if self._goodbye:
            found, self._goodbye = found + self._goodbye, b""
        return found

    def warn(self) -> None:
        """See doh.Session (RFC 9113 6.8: requests that are on their way are still taken)."""
        self._say_goodbye(_LAST, ErrorCodes.NO_ERROR)

    def leave(self, last: int | None = None) -> None:
        """See doh.Session."""
        if not self._left:
            self._left = True
            self._say_goodbye(self._highest if last is None else last, ErrorCodes.NO_ERROR)

    def _say_goodbye(self, last: int, code: ErrorCodes) -> None:
        """GOAWAY; said to h2, it would let no answer go any more."""
        self._goodbye += _GOAWAY.pack(0, 8, _GOAWAY_TYPE, 0, 0, last, code)
