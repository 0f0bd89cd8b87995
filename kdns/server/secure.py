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
_MOST = 2 * HELLO
"""The same with the records that it comes in, and those that may come in between."""
_HANDSHAKE = 22
_BESIDE = (20, 21, 23)
"""Records of other types (RFC 8446 B.1)."""
_LARGEST = (16 << 10) + 256
"""Bytes that a record may have (RFC 8446 5.2)."""
_RECORD, _HEAD = 5, 4
"""Bytes that records and messages begin with; the last ones are the length."""
_RETRY = bytes.fromhex("CF21AD74E59A6111BE1D8C021E65B891C2A211167ABB8C5E079E09E2C8A8339C")
"""In the place of a random number: the client is to begin anew, with another key (RFC 8446 4.1.3)."""


class Secure:
    """The server's side. done: the handshake is. ended: the client has said that nothing more will come."""

    __slots__ = (
        "_behind",
        "_first",
        "_incoming",
        "_left",
        "_object",
        "_outgoing",
        "_renegotiable",
        "_said",
        "done",
        "ended",
    )

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = MemoryBIO()
        self._outgoing = MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._renegotiable = False
        self._left = False
        self._first: _First | None = _First()  # until it is complete
        self._behind = b""  # what has come behind it
        self._said = b""  # what is to be sent, and was looked at
        self.done = False
        self.ended = False

    @property
    def protocol(self) -> str | None:
        """What both have agreed on (ALPN, RFC 7301); None if the client named nothing that we have."""
        return self._object.selected_alpn_protocol()

    def feed(self, data: bytes) -> None:
        """Take what has come from the network. Raises ssl.SSLError if that begins with too much."""
        first = self._first
        if first is None:
            self._incoming.write(data)
        elif first.take(data):
            self._incoming.write(first.data[: first.end])
            self._behind = first.data[first.end :]
            self._first = None

    def shake(self) -> bool:
        """Go on with the handshake; True when it is done. Raises ssl.SSLError."""
        while True:
            try:
                self._object.do_handshake()
                break
            except SSLWantReadError:
                said = self._outgoing.read()
                self._said += said
                if _RETRY in said:
                    self._first = _First(again=True)
                behind, self._behind = self._behind, b""
                if not behind:
                    return False
                self.feed(behind)
        if self._behind:
            self._incoming.write(self._behind)
            self._behind = b""
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
        said, self._said = self._said, b""
        return said + self._outgoing.read() if self._outgoing.pending else said


class _First:
    """The first message of a client, as it comes (RFC 8446 4, 5.1).

    again: it is the second one of that kind, with other records in front or in between. data: what has come. end: of
    the record that it ends with; of everything, where that is no TLS.
    """

    __slots__ = ("_again", "_head", "_size", "data", "end")

    def __init__(self, again: bool = False) -> None:
        self._again = again
        self.data = b""
        self.end = 0
        self._head = b""
        self._size = 0  # of what is in complete records

    def take(self, data: bytes) -> bool:
        """Take more; True when it is complete, or none. Raises ssl.SSLError if it is too large."""
        self.data += data
        while len(self.data) - self.end >= _RECORD:
            kind, at = self.data[self.end], self.end + _RECORD
            size = self.data[at - 2] << 8 | self.data[at - 1]
            if kind not in _BESIDE and kind != _HANDSHAKE:
                self.end = len(self.data)
                return True
            if size > _LARGEST or (kind != _HANDSHAKE and not self._again):
                raise ssl.SSLError("this is not how a client begins")
            head = self._head
            if kind == _HANDSHAKE:
                head = (head + self.data[at : at + min(size, _HEAD)])[:_HEAD]
                if not size or int.from_bytes(head[1:], "big") > HELLO:
                    raise ssl.SSLError("the first message is empty or too large")
            if at + size > len(self.data):
                break
            self.end = at + size
            if kind == _HANDSHAKE:
                self._head = head
                self._size += size
                if len(head) == _HEAD and self._size >= _HEAD + int.from_bytes(head[1:], "big"):
                    return True
        if len(self.data) > _MOST:
            raise ssl.SSLError("there is too much around the first message")
        return False
