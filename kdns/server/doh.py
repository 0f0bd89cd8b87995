"""DNS over HTTPS (RFC 8484): which query a request brings, and what goes with its answer. Nothing of HTTP's framing."""

from __future__ import annotations

import binascii
import re
import time
from collections.abc import Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import NamedTuple, Protocol
from urllib.parse import unquote_to_bytes

from kdns.wire import rr
from kdns.wire.message import MAX_MESSAGE, QUESTION_AT

PATH = b"/dns-query"
TYPE = b"application/dns-message"
HEAD = 16 << 10
"""Bytes that the head of a request may have."""
SHORT_AGE, LONGEST_AGE = 5, 3600
"""Seconds that an answer may be kept by caches of HTTP: if it has no TTLs that count, and at most."""
_PLAIN = re.compile(rb"dns=([A-Za-z0-9_-]*)")
_BASE64 = re.compile(rb"[A-Za-z0-9_-]*")
_OPCODE, _QR = 0x78, 0x80

Fields = list[tuple[bytes, bytes]]
"""Of a head, with lower-case names."""


class Request(NamedTuple):
    """A request that is complete. stream: where its answer goes. status: OK, or that of an answer without a message."""

    stream: int
    status: HTTPStatus
    query: bytes = b""


class BrokenError(Exception):
    """The connection cannot go on. reason: as it is counted."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Session(Protocol):
    """HTTP on one connection, without its socket.

    most: requests that may wait for their answers. since: when the oldest request that is incomplete began, 0.0
    without one (of the times that `receive` is given). held: bytes of what is incomplete, and of answers that cannot go
    yet. due: whether there are such. progress: changes when one of them has gone on. ended: no request comes any more.
    """

    most: int

    @property
    def since(self) -> float: ...
    @property
    def held(self) -> int: ...
    @property
    def due(self) -> bool: ...
    @property
    def progress(self) -> int: ...
    @property
    def ended(self) -> bool: ...

    def receive(self, data: bytes, now: float) -> Sequence[Request]:
        """What these bytes complete; b"" for what waits behind a request that is answered by now.

        Raises BrokenError; what is to be said of that is in `take`.
        """

    def answer(self, stream: int, status: HTTPStatus, fields: Fields, body: bytes) -> None:
        """Answer a request, if it still wants that."""

    def reject(self, stream: int) -> bool:
        """Whether a request was sent back, as too much waits for the client to take it; it may ask elsewhere."""

    def take(self) -> bytes:
        """What is to be sent."""

    def warn(self) -> None:
        """Say that this connection ends soon."""

    def leave(self, last: int | None = None) -> None:
        """Take no more requests, and say so. last: the stream of the last one that is answered, if not all are."""


def asked(stream: int, method: bytes, target: bytes, body: bytes) -> Request:
    """What a request wants."""
    path, _, parameters = target.partition(b"?")
    if path != PATH and unquote_to_bytes(_path(path)) != PATH:
        return Request(stream, HTTPStatus.NOT_FOUND)
    if method == b"POST":
        if len(body) > MAX_MESSAGE:
            return Request(stream, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        query: bytes | None = body
    elif method == b"GET":
        query = _parameter(parameters)
    else:
        return Request(stream, HTTPStatus.METHOD_NOT_ALLOWED)
    if query is None or len(query) < QUESTION_AT or query[2] & _QR:
        return Request(stream, HTTPStatus.BAD_REQUEST)
    return Request(stream, HTTPStatus.OK, query)


def _path(path: bytes) -> bytes:
    """The path of a target that may be a whole URL, as proxies are sent (RFC 9112 3.2.2)."""
    if path.startswith(b"/"):
        return path
    rest = path.partition(b"://")[2]
    return rest[rest.find(b"/") :] if b"/" in rest else b""


def _parameter(parameters: bytes) -> bytes | None:
    """The message in the parameter `dns`, base64url without padding; None if there is none, or several."""
    match = _PLAIN.fullmatch(parameters)
    if match is not None:
        text = match[1]
    else:
        pairs = [pair.partition(b"=") for pair in parameters.split(b"&")]
        values = [value for name, _, value in pairs if unquote_to_bytes(name) == b"dns"]
        if len(values) != 1:
            return None
        text = unquote_to_bytes(values[0])
        if _BASE64.fullmatch(text) is None:
            return None
    try:
        return binascii.a2b_base64(text.translate(_TO_STANDARD) + b"=" * (-len(text) % 4))
    except binascii.Error:
        return None


_TO_STANDARD = bytes.maketrans(b"-_", b"+/")


# What goes with answers


class Clock:
    """The time as HTTP writes it."""

    def __init__(self) -> None:
        self._second = -1
        self._text = b""

    def text(self) -> bytes:
        """Now."""
        second = int(time.time())
        if second != self._second:
            self._second, self._text = second, formatdate(second, usegmt=True).encode()
        return self._text


def answered(message: bytes, clock: Clock) -> Fields:
    """The head of an answer with a message."""
    return [
        (b"content-type", TYPE),
        (b"cache-control", b"max-age=%d" % max_age(message)),
        (b"content-length", b"%d" % len(message)),
        (b"date", clock.text()),
    ]


def refused(status: HTTPStatus, clock: Clock) -> tuple[Fields, bytes]:
    """The head and the body of an answer without one."""
    body = f"{status.phrase}\n".encode()
    fields = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"x-content-type-options", b"nosniff"),
        (b"content-length", b"%d" % len(body)),
        (b"date", clock.text()),
    ]
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        fields.append((b"allow", b"GET, POST"))
    return fields, body


def max_age(message: bytes) -> int:
    """Seconds for which caches of HTTP may keep a response (RFC 8484 5.1): the least of its TTLs, as in CoreDNS."""
    try:
        return _least_ttl(message)
    except IndexError:
        return SHORT_AGE


def _least_ttl(message: bytes) -> int:
    rcode = message[3] & 15
    questions, *counts = (int.from_bytes(message[at : at + 2], "big") for at in (4, 6, 8, 10))
    answers, authorities, _ = counts
    if message[2] & _OPCODE or rcode not in (rr.NOERROR, rr.NXDOMAIN) or (answers and rcode == rr.NXDOMAIN):
        return SHORT_AGE
    at = QUESTION_AT
    for _ in range(questions):
        at = _behind_name(message, at) + 4
    least = LONGEST_AGE
    found = delegated = proven = False
    for number in range(sum(counts)):
        at = _behind_name(message, at)
        kind = message[at] << 8 | message[at + 1]
        if kind == rr.OPT:
            if message[at + 4]:  # the upper bits of the response code
                return SHORT_AGE
        else:
            found = True
            least = min(least, int.from_bytes(message[at + 4 : at + 8], "big"))
        if answers <= number < answers + authorities:
            proven = proven or kind == rr.SOA
            delegated = delegated or kind == rr.NS
        at += 10 + (message[at + 8] << 8 | message[at + 9])
    if not found or (delegated and not proven and not answers and rcode == rr.NOERROR):
        return SHORT_AGE
    return least


def _behind_name(message: bytes, at: int) -> int:
    """Where a name ends. Raises IndexError."""
    while True:
        size = message[at]
        if size >= 0xC0:
            return at + 2
        at += size + 1
        if not size:
            return at
