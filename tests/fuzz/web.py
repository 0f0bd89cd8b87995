"""TLS and HTTP: what is done with the bytes of clients, and with those of upstreams over HTTPS."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import struct
from collections.abc import Iterator
from unittest import mock
from unittest.mock import Mock

from hpack import Decoder

from kdns.errors import ConnectionLostError, UpstreamError
from kdns.observe.counters import QueryCounters, Region
from kdns.plugins.budget import Budget
from kdns.server import doh, https
from kdns.server.https import HttpConnection
from kdns.server.respond import Block, Responder, Waiting
from kdns.server.secure import Secure
from kdns.server.tcp import Connections, TcpServer
from kdns.upstream.ask import plain_ask
from kdns.upstream.https import Https
from kdns.upstream.settings import Settings, Target
from kdns.upstream.steps import in_task
from kdns.wire import names, rr
from kdns.wire.message import Query, Response
from kdns.wire.rrset import RRset
from kdns.zone.changes import Changes
from tests.fuzz.ground import Stores, exchanged
from tests.fuzz.sound import records

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SLOW, LARGE = b"\4slow\4test\0", b"\5large\4test\0"
"""Names whose answers take some turns, and are of many bytes."""
HELD = 2 << 20
"""Bytes that a connection may hold at most."""
ASKED = plain_ask(names.from_text("www.example.com"), rr.A)
_FRAME = struct.Struct("!BHBBL")
_COMPACT = struct.Struct("!BBBH")
_DATA, _HEADERS, _RESET, _GOAWAY, _CONTINUATION = 0, 1, 3, 7, 9


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame (RFC 9113 4.1)."""
    return _FRAME.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def compact(data: bytes) -> bytes:
    """Frames as inputs have them: a length that a mutation changes takes more or less of what follows, and fits."""
    found = b""
    for kind, flags, stream, payload in frames(data):
        found += _COMPACT.pack(kind, flags, stream & 0xFF, len(payload)) + payload
    return found


def expanded(data: bytes) -> bytes:
    """The frames of an input."""
    found, at = [], 0
    while at + _COMPACT.size <= len(data):
        kind, flags, stream, size = _COMPACT.unpack_from(data, at)
        at += _COMPACT.size
        found.append(frame(kind, flags, stream, data[at : at + size]))
        at += size
    return b"".join(found)


def frames(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """The frames of a stream: type, flags, stream and payload."""
    at = 0
    while at < len(data):
        assert at + 9 <= len(data), "a frame is cut short"
        high, low, kind, flags, stream = _FRAME.unpack_from(data, at)
        at += 9 + (high << 16 | low)
        assert at <= len(data), "a frame is cut short"
        yield kind, flags, stream, data[at - (high << 16 | low) : at]


def _pieces(first: int, data: bytes) -> list[bytes]:
    size = max(1 + 3 * first, len(data) // 8)
    return [data[at : at + size] for at in range(0, len(data), size)]


async def _answers(query: Query) -> Response:
    if query.lname == SLOW:
        await in_task()
        await asyncio.sleep(0)
    count = 180 if query.lname == LARGE else 1
    rdatas = tuple(b"\xc8" + bytes((number,)) * 200 for number in range(count))
    return Response(answer=[(query.lname, RRset(rr.TXT, 60, rdatas))])


class Requests:
    """Bytes of an HTTPS client behind its TLS, in pieces: what comes is HTTP, and each request has one answer."""

    def __init__(self, stores: Stores) -> None:
        self._reported: list[str] = []
        region = Region.create()
        block = Block(QueryCounters(region, "https://:443", "."), _answers, None, None)
        responder = Responder("https://:443", {b"\0": block}, region, self._reported.append, Waiting())
        self._connections = Connections(region)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._server = TcpServer(
            self._listening, responder, Changes.create(), self._connections, Budget(), kind=HttpConnection, label="a"
        )
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._listen())

    async def _listen(self) -> None:
        self._server.start()

    def __call__(self, data: bytes) -> object:
        """data: the first byte says how long the pieces are; the second one if frames follow, as `compact` has them."""
        random.seed(0)
        is_frames = len(data) > 1 and data[1] & 1
        stream = PREFACE + frame(4, 0, 0) + expanded(data[2:]) if is_frames else data[2:]
        # What is read together is not to depend on the machine, nor what is answered on the time.
        with mock.patch.object(https, "TURN_SECONDS", 60.0), mock.patch.object(doh.Clock, "text", return_value=b"now"):
            received = self._loop.run_until_complete(self._serve(_pieces(data[0], stream) if data else []))
        assert not self._reported, self._reported
        if stream.startswith(b"PRI ") and received:
            return _spoken(received)
        assert not received or received.startswith(b"HTTP/1.1 ") or b"PRI ".startswith(stream[:4])
        return received

    async def _serve(self, pieces: list[bytes]) -> bytes:
        def look() -> None:
            assert all(connection.held < HELD for connection in self._connections.open.values())

        unsent = ConnectionError, BlockingIOError
        return await exchanged(self._listening, self._connections, pieces, unsent=unsent, look=look)


def _spoken(data: bytes) -> object:
    """What a server has said: heads that can be read, and bodies as long as they say."""
    decoder, statuses = Decoder(), dict[int, bytes]()
    bodies, ended, resets = dict[int, bytes](), set[int](), set[int]()
    lengths = dict[int, int]()
    goodbye = False
    decoder.max_allowed_table_size = 1 << 32  # whatever the client has offered
    for kind, flags, stream, payload in frames(data):
        assert len(payload) <= 16384, "a frame is larger than every client takes"
        if kind == _HEADERS:
            assert stream % 2
            assert stream not in statuses, "a request has two answers"
            assert not flags & 0x28, "padding or a priority"
            assert flags & 4, "a head in several frames"
            head = dict(decoder.decode(payload, raw=True))
            assert decoder.header_table_size <= 4096, "more is remembered for a client than it is worth"
            statuses[stream], bodies[stream] = head[b":status"], b""
            lengths[stream] = int(head[b"content-length"])
            if flags & 1:
                ended.add(stream)
        elif kind == _DATA:
            assert stream in statuses
            assert stream not in ended | resets, "there is something behind the end"
            bodies[stream] += payload
            if flags & 1:
                ended.add(stream)
        elif kind == _RESET:
            resets.add(stream)
        goodbye |= kind == _GOAWAY
    for stream in ended:
        body = bodies[stream]
        assert len(body) in (0, lengths[stream]), "a body is not as long as its head says"
        if statuses[stream] == b"200" and body:
            records(body)
    found = [(stream, statuses[stream], len(bodies[stream])) for stream in sorted(ended)]
    return found, sorted(resets), goodbye


class Handshakes:
    """TLS of a client, whose flights are changed on their way: nothing is read but what the client has written."""

    _PLAIN = b"0123456789" * 40

    def __init__(self, stores: Stores) -> None:
        folder = stores.folder
        self._servers, self._clients = [], []
        for number in range(3):
            server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            server.load_cert_chain(folder / "server.crt", folder / "server.key")
            server.options |= ssl.OP_NO_RENEGOTIATION
            server.num_tickets = 1
            server.set_alpn_protocols(["h2", "dot"])
            client = ssl.create_default_context(cafile=str(folder / "ca.pem"))
            client.set_alpn_protocols(["dot"])
            if number == 1:
                client.maximum_version = ssl.TLSVersion.TLSv1_2
            elif number == 2:
                server.set_ecdh_curve("secp384r1")  # the client's first key is for another one: it has to begin anew
            self._servers.append(server)
            self._clients.append(client)

    def __call__(self, data: bytes) -> None:
        """data: the first byte says how both are set up, then five bytes for each change, and what is put in."""
        kind = data[0] % 3 if data else 0
        count = data[1] % 8 if len(data) > 1 else 0
        changes = [data[at : at + 5] for at in range(2, 2 + 5 * count, 5) if at + 5 <= len(data)]
        rest = data[2 + 5 * count :]
        secure = Secure(self._servers[kind])
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = self._clients[kind].wrap_bio(incoming, outgoing, server_hostname="dns.test")
        written = read = b""
        for flight in range(6):
            with contextlib.suppress(ssl.SSLError):
                client.do_handshake()
                client.write(self._PLAIN)
                written += self._PLAIN
            pieces = [outgoing.read()]
            for change in changes:
                if change[0] % 6 == flight:
                    pieces = _changed(pieces, change[1], int.from_bytes(change[2:4]), change[4], rest)
            try:
                for piece in pieces:
                    secure.feed(piece)
                    done = secure.done or secure.shake()
                    incoming.write(secure.rest())
                    if done:
                        read += secure.read()
                        incoming.write(secure.rest())
                if secure.done and flight == 5:
                    incoming.write(secure.seal(b"answer") + secure.leave())
            except (ssl.SSLError, ValueError, OSError):
                assert changes, "what is as it should be is refused"
                return
            assert written.startswith(read), "nobody has written what is read"
        assert changes or (secure.done and read == written)


def _changed(pieces: list[bytes], kind: int, at: int, value: int, rest: bytes) -> list[bytes]:
    """Change what a client sends. A flight is changed as a whole, or cut into pieces."""
    flight = bytearray(b"".join(pieces))
    at = at % (len(flight) + 1)
    match kind % 8:
        case 0 if at < len(flight):
            flight[at] = value
        case 1 if at < len(flight):
            flight[at] ^= 1 << value % 8
        case 2:
            del flight[at:]
        case 3:
            flight[at:at] = rest
        case 4:
            flight *= 1 + value % 8
        case 5:
            return [bytes(flight[at : at + value + 1]) for at in range(0, len(flight), value + 1)]
        case 6:  # one record as two
            if at > 5 and len(flight) > 5 and at < 5 + int.from_bytes(flight[3:5]):
                head, size = flight[:3], int.from_bytes(flight[3:5])
                flight[at:at] = head + (size - at + 5).to_bytes(2)
                flight[3:5] = (at - 5).to_bytes(2)
        case 7:
            flight[:] = rest
    return [bytes(flight)]


class _Network:
    """In place of httpcore's: every connection brings the same pieces, and ends."""

    def __init__(self, pieces: list[bytes], protocol: str) -> None:
        self._pieces = pieces
        self._protocol = protocol

    async def connect_tcp(self, *_: object, **__: object) -> _Connected:
        return _Connected(self._pieces, self._protocol)


class _Connected:
    def __init__(self, pieces: list[bytes], protocol: str) -> None:
        self._pieces = iter(pieces)
        self._protocol = protocol

    async def start_tls(self, *_: object, **__: object) -> _Connected:
        return self

    def get_extra_info(self, info: str) -> Mock | None:
        return Mock(selected_alpn_protocol=lambda: self._protocol) if info == "ssl_object" else None

    async def read(self, *_: object, **__: object) -> bytes:
        return next(self._pieces, b"")

    async def write(self, *_: object, **__: object) -> None:
        """Nobody reads it."""

    async def aclose(self) -> None:
        """Nothing is open."""


class Answers:
    """Bytes of an upstream over HTTPS behind its TLS: an answer to what was asked, or one of two exceptions."""

    def __init__(self, stores: Stores) -> None:
        self._loop = asyncio.new_event_loop()
        self._context = ssl.create_default_context()

    def __call__(self, data: bytes) -> object:
        """data: the first byte says how long the pieces are; the second one which method and version of HTTP."""
        return self._loop.run_until_complete(self._ask(data)) if len(data) > 1 else None

    async def _ask(self, data: bytes) -> object:
        mode = data[1]
        stream = expanded(data[2:]) if mode & 3 == 1 else data[2:]
        settings = Settings(doh_method="GET" if mode & 4 else "POST")
        upstream = Https(Target("https", "127.0.0.1", 443), settings, self._context)
        client = upstream._client
        pool = client._transport._pool  # type: ignore[attr-defined]
        pool._network_backend = _Network(_pieces(data[0], stream), "h2" if mode & 1 else "http/1.1")
        found: list[object] = []
        try:
            while len(found) < 2 and upstream._client is client:  # a new one would connect
                try:
                    found.append(await upstream.ask(ASKED, self._loop.time() + 60.0))
                except (ConnectionLostError, UpstreamError) as error:
                    found.append(str(error))
                else:
                    assert not ASKED.mismatch(found[-1])  # type: ignore[arg-type]
        finally:
            await upstream.close()
        return found
