"""The part of the test API server that speaks HTTP/1.1: requests, responses, and the ways in which these go wrong."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec

BLOCK = 1 << 18
"""Bytes of a response that are handed to the transport at once."""
WHOLE = 2048
"""A longer body is sent in chunks, as Go's net/http does."""

REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    410: "Expired",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


@dataclass(slots=True)
class Record:
    """What is known of a request. Times are CLOCK_MONOTONIC in seconds."""

    time: float
    kind: str
    """`list`, `watch`, `stream` (a watch that asks for initial events), `get`, `write`, or `other`."""
    method: str
    path: str
    query: dict[str, str]
    agent: str
    connection: int
    """Counts the connections of the server."""
    user: str = ""
    status: int = 0
    """0: none was sent."""
    sent: int = 0
    """Bytes of the response so far, head included, before TLS."""
    ended: float | None = None

    @property
    def is_list(self) -> bool:
        """A list, be it a stream, or a page of one."""
        return self.kind in ("list", "stream")


@dataclass(slots=True)
class Fault:
    """What happens to the next `times` requests that match."""

    path: str = ""
    """A part of the path; empty: every path."""
    kind: str = ""
    """As in Record; empty: every kind."""
    times: int = 1
    delay: float = 0.0
    """Seconds before anything else happens."""
    status: int = 0
    """Answer with this code and a Status object, or `body`."""
    retry_after: str = ""
    body: str | None = None
    data: str = ""
    """Base64 of bytes that a watch sends, in one chunk, behind its initial events."""
    split: list[int] = field(default_factory=list)
    """Offsets where `data` is divided into several chunks."""
    cut: int | None = None
    """Bytes of the body after which the response breaks off."""
    then: str = ""
    """How it ends: `end` (as a complete response does), `fin`, `rst`, `silent` (nothing more is sent). If there is no
    status, data or cut: in place of any answer. Empty: as an answer that has no fault."""

    def matches(self, record: Record) -> bool:
        """Whether it is for this request."""
        return self.times > 0 and self.path in record.path and self.kind in ("", record.kind)


class EndedError(Exception):
    """The response ends here. `then`: as in Fault."""

    def __init__(self, then: str) -> None:
        super().__init__(then)
        self.then = then


def status(code: int, message: str, reason: str = "", **more: Any) -> dict[str, Any]:
    """A Status object; reason is the usual one for the code unless given."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": more.pop("metadata", {}),
        "status": "Failure",
        "message": message,
        "reason": reason or REASONS.get(code, "Unknown"),
        **more,
        "code": code,
    }


class RefusedError(Exception):
    """A request is answered with a Status."""

    def __init__(self, code: int, message: str, reason: str = "", **more: Any) -> None:
        super().__init__(message)
        self.code = code
        self.status = status(code, message, reason, **more)


@dataclass(frozen=True, slots=True)
class Request:
    """Names of headers are in lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: bytes = b""


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """The next request; None at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return None
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    method, _, rest = first.partition(" ")
    path, _, query = rest.partition(" ")[0].partition("?")
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, unquote(path), dict(parse_qsl(query, keep_blank_values=True)), headers, body)


class Response:
    """One answer on a connection; counts what it sends into its Record."""

    def __init__(self, writer: asyncio.StreamWriter, record: Record, cut: int | None = None, then: str = "") -> None:
        self._writer = writer
        self._record = record
        self._left = cut
        self._then = then or "fin"
        self._chunked = False

    @property
    def begun(self) -> bool:
        """Whether the head was sent."""
        return self._record.status != 0

    def _write(self, data: bytes) -> None:
        self._record.sent += len(data)
        self._writer.write(data)

    def begin(
        self,
        code: int,
        kind: str = "application/json",
        length: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send the head; without a length the body comes in chunks."""
        self._record.status = code
        self._chunked = length is None
        found = {"Cache-Control": "no-cache, private", "Content-Type": kind, "Date": formatdate(usegmt=True)}
        found |= headers or {}
        found |= {"Transfer-Encoding": "chunked"} if length is None else {"Content-Length": str(length)}
        phrase = HTTPStatus(code).phrase if code in set(HTTPStatus) else "Unknown"
        lines = [f"HTTP/1.1 {code} {phrase}", *(f"{name}: {value}" for name, value in found.items())]
        self._write("\r\n".join([*lines, "", ""]).encode("latin-1"))

    async def whole(
        self, code: int, body: bytes, kind: str = "application/json", headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a complete response. Raises EndedError where it is to break off."""
        chunked = len(body) > WHOLE or self._left is not None
        self.begin(code, kind, None if chunked else len(body), headers)
        if not chunked:
            self._write(body)
            return
        for at in range(0, len(body), BLOCK):
            self.chunk(body[at : at + BLOCK])
            await self._writer.drain()
        self.end()

    def chunk(self, data: bytes) -> None:
        """Send one chunk. Raises EndedError where the response is to break off."""
        if self._left is None:
            self._write(b"%x\r\n%b\r\n" % (len(data), data))
        elif len(data) < self._left:
            self._left -= len(data)
            self._write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self._break_off(data)

    def _break_off(self, data: bytes) -> None:
        part = data[: self._left]
        if self._then == "end":
            self._write(b"%x\r\n%b\r\n" % (len(part), part))
        else:
            self._write(b"%x\r\n%b" % (len(data), part))
        raise EndedError(self._then)

    async def chunks(self, parts: Iterable[bytes]) -> None:
        """Send each part as a chunk of its own, many in one write. Raises EndedError."""
        block: list[bytes] = []
        size = 0
        for part in parts:
            if self._left is not None:
                self.chunk(part)
                continue
            block += (b"%x\r\n" % len(part), part, b"\r\n")
            size += len(part)
            if size >= BLOCK:
                self._write(b"".join(block))
                block, size = [], 0
                await self._writer.drain()
        self._write(b"".join(block))
        await self._writer.drain()

    def pieces(self, data: bytes, offsets: Iterable[int], pause: float) -> None:
        """Send one line as several chunks, divided at offsets (from its end where below 0), with seconds between."""
        at = 0
        for offset in sorted({offset % len(data) for offset in offsets} - {0}):
            self.chunk(data[at:offset])
            time.sleep(pause)
            at = offset
        self.chunk(data[at:])

    def end(self) -> None:
        """Send the end of a body in chunks, once."""
        if self._chunked:
            self._chunked = False
            self._write(b"0\r\n\r\n")

    async def conclude(self, then: str, reader: asyncio.StreamReader) -> bool:
        """End as a Fault's `then` says; returns whether the connection goes on."""
        if then in ("", "end"):
            self.end()
            await self._writer.drain()
            return True
        if then == "silent":
            while await reader.read(BLOCK):
                continue
        elif then == "fin":
            self._writer.transport.set_write_buffer_limits(1)
            await self._writer.drain()
            self._writer.transport.abort()
        elif then == "rst":
            reset(self._writer.transport)
        return False


def reset(transport: asyncio.WriteTransport) -> None:
    """Close a connection by RST."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def dumps(value: object) -> bytes:
    """JSON in one line."""
    return msgspec.json.encode(value)
