"""TLS of one connection, without its socket: what the network brings goes in, what it is to have comes out."""

from __future__ import annotations

import contextlib
import ssl
from ssl import MemoryBIO, SSLWantReadError

READ = 64 << 10
BYTES = 24 << 10
"""About what a connection's TLS takes, in bytes: less when nothing comes, twice as much while there is a handshake."""


HELLO = 16 << 10
"""Bytes that the first message of a client may have; it is a few hundred, 2,000 with keys against quantum computers.
OpenSSL takes up to 128 KB, and makes room for it as soon as it is announced."""
_HANDSHAKE, _RECORD, _MESSAGE = 22, 5, 4
_UNTOLD = 512
"""Bytes by which the size of the first message has to be told."""


class Secure:
    """The server's side. done: the handshake is. ended: the client has said that nothing more will come."""

    __slots__ = ("_incoming", "_left", "_object", "_outgoing", "_renegotiable", "_start", "done", "ended")

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = MemoryBIO()
        self._outgoing = MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._renegotiable = False
        self._left = False
        self._start: bytes | None = b""  # what has come, until it tells the size of the first message
        self.done = False
        self.ended = False

    @property
    def protocol(self) -> str | None:
        """What both have agreed on (ALPN, RFC 7301); None if the client named nothing that we have."""
        return self._object.selected_alpn_protocol()

    def feed(self, data: bytes) -> None:
        """Take what has come from the network. Raises ssl.SSLError if that is the start of too much."""
        if self._start is not None:
            self._start += data
            size = _first_size(self._start)
            if size > HELLO or (size < 0 and len(self._start) > _UNTOLD):
                raise ssl.SSLError("the first message is too large")
            if size >= 0:
                self._start = None
        self._incoming.write(data)

    def shake(self) -> bool:
        """Go on with the handshake; True when it is done. Raises ssl.SSLError."""
        try:
            self._object.do_handshake()
        except SSLWantReadError:
            return False
        self._renegotiable = self._object.version() == "TLSv1.2"
        self.done = True
        return True

    def read(self) -> bytes:
        """What the client has sent. Raises ssl.SSLError if it breaks TLS, or wants to negotiate anew."""
        found = b""
        incoming, secure = self._incoming, self._object
        try:
            while incoming.pending or secure.pending():
                data = secure.read(READ)
                if not data:
                    self.ended = True
                    break
                found = found + data if found else data
        except SSLWantReadError:
            pass
        if self._renegotiable and self._outgoing.pending:
            raise ssl.SSLError("the client wants to negotiate anew")
        return found

    def seal(self, data: bytes) -> bytes:
        """What is to be sent so that the client reads this."""
        self._object.write(data)
        return self._outgoing.read()

    def leave(self) -> bytes:
        """What tells the client that nothing more will come."""
        if self._left:
            return b""
        self._left = True
        with contextlib.suppress(ssl.SSLError, ValueError):  # the client has not said the same yet
            self._object.unwrap()
        return self._outgoing.read()

    def rest(self) -> bytes:
        """What is to be sent by itself: handshakes, alerts, new keys."""
        return self._outgoing.read() if self._outgoing.pending else b""


def _first_size(data: bytes) -> int:
    """The size of the message that a handshake begins with (RFC 8446 4, 5.1), be it in several records.

    -1 if it has not been told yet, 0 if there is no such message.
    """
    at, head = 0, b""
    while len(data) - at >= _RECORD:
        if data[at] != _HANDSHAKE:
            return 0
        size = data[at + 3] << 8 | data[at + 4]
        at += _RECORD
        head += data[at : at + size]
        if len(head) >= _MESSAGE:
            return int.from_bytes(head[1:_MESSAGE], "big")
        at += size
    return -1
