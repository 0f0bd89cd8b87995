"""GET of /metrics from a server."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import threading
import time
from dataclasses import dataclass

from kdns.errors import KdnsError
from kdns.observe.text import printable

PORT = 9153
LARGEST = 32 << 20
"""Bytes of a body that are read."""
_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\s:/\[\]]*))(?::(?P<port>\d{1,5}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Place:
    """Where metrics are. title: as it was asked for."""

    title: str
    scheme: str
    host: str
    port: int
    path: str

    @property
    def url(self) -> str:
        """The whole address."""
        return f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}{self.path}"


def place(text: str) -> Place:
    """Read HOST, HOST:PORT, :PORT, [IPV6]:PORT or a URL. Raises KdnsError."""
    accepted = "accepted: HOST, HOST:PORT, :PORT, [IPV6]:PORT or http://HOST:PORT/metrics"
    scheme = text.partition("://")[0]
    if scheme != text:
        if scheme not in ("http", "https"):
            raise KdnsError(f"{text!r} is neither http:// nor https://; {accepted}")
        address, slash, path = text.partition("://")[2].partition("/")
        path = slash + path
        usual = 443 if scheme == "https" else 80
    else:
        scheme, address, path, usual = "http", text, "", PORT
    match = _ADDRESS.fullmatch(address)
    if match is None or not text.isprintable() or " " in text or not 0 < int(match["port"] or usual) < 1 << 16:
        raise KdnsError(f"{text!r} is no address of metrics; {accepted}")
    host = match["v6"] or match["host"] or "127.0.0.1"
    return Place(text, scheme, host, int(match["port"] or usual), path if path not in ("", "/") else "/metrics")


def get(where: Place, timeout: float) -> str:
    """The body. timeout: seconds, for all of it. Raises KdnsError."""
    end = time.monotonic() + timeout
    if where.scheme == "https":
        context = ssl.create_default_context()
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            where.host, where.port, timeout=timeout, context=context
        )
    else:
        connection = http.client.HTTPConnection(where.host, where.port, timeout=timeout)
    try:
        connection.connect()
        cut = threading.Timer(max(end - time.monotonic(), 0.0), _cut, (connection.sock,))
        cut.daemon = True
        cut.start()
    except (OSError, UnicodeError) as error:
        connection.close()
        raise _told(where, error, end, timeout) from None
    try:
        connection.request("GET", where.path, headers={"Accept": "text/plain;version=0.0.4", "Connection": "close"})
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise KdnsError(f"{where.url}: status {response.status}")
        return _body(response, where, end).decode(errors="replace")
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise _told(where, error, end, timeout) from None
    finally:
        cut.cancel()
        connection.close()


def _cut(sock: socket.socket) -> None:
    """End a connection whose other side sends now and again, and never all of it."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _told(where: Place, error: Exception, end: float, timeout: float) -> KdnsError:
    if isinstance(error, TimeoutError) or time.monotonic() >= end:
        return KdnsError(f"{where.url}: no answer in {timeout:g} s")
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return KdnsError(f"{where.url}: {printable(reason.strip())}")


def _body(response: http.client.HTTPResponse, where: Place, end: float) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := response.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > LARGEST:
            raise KdnsError(f"{where.url}: more than {LARGEST >> 20} MiB")
        if time.monotonic() > end:
            raise TimeoutError
    if time.monotonic() >= end:
        raise TimeoutError
    if response.length:
        raise KdnsError(f"{where.url}: ended before its end: {response.length} bytes are missing")
    return b"".join(parts)
