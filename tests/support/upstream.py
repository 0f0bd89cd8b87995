"""A DNS server whose answers and faults a test scripts: UDP, TCP, TLS, HTTPS, in a thread of the test's process."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import parse_qs, urlsplit

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import h2.config
import h2.connection
import h2.events

from kdns.observe.counters import Region
from kdns.observe.logs import Log, Sink
from kdns.upstream.ask import Ask
from kdns.upstream.group import Group
from kdns.upstream.settings import Settings, Target
from kdns.upstream.upstream import Surroundings
from kdns.wire import message, rr
from kdns.wire.relay import Relay
from tests.support import ports

ADDRESS = "192.0.2.1"
"""What every name has for an A record, unless a test says otherwise."""


@dataclass(eq=False)
class Connection:
    """A TCP connection that was accepted. number: counted from 0. asked: how many queries came on it."""

    number: int
    peer: tuple[str, int]
    writer: asyncio.StreamWriter
    asked: int = 0
    is_open: bool = True


@dataclass(eq=False)
class Asked:
    """A query. proto: udp, tcp, tls or https. number: counted from 0 over all. on: its connection, None over UDP."""

    data: bytes
    proto: str
    peer: tuple[str, int]
    number: int
    on: Connection | None
    send: Callable[[bytes], None]
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def message(self) -> dns.message.Message:
        """The query, parsed."""
        return dns.message.from_wire(self.data)

    @property
    def name(self) -> str:
        """The name as asked, without its last dot."""
        return self.message.question[0].name.to_text(omit_final_dot=True)

    @property
    def rdtype(self) -> str:
        """The type's mnemonic."""
        return dns.rdatatype.to_text(self.message.question[0].rdtype)

    def raw(self, data: bytes) -> None:
        """Write bytes to the connection as they are."""
        assert self.on is not None
        self.on.writer.write(data)

    def close(self) -> None:
        """Close the connection after what was written."""
        assert self.on is not None
        self.on.writer.close()

    def reset(self) -> None:
        """Reset the connection."""
        assert self.on is not None
        sock = self.on.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.on.writer.transport.abort()


class Asking:
    """A group of upstreams as a worker has it, in this process's event loop. Options are those of Settings."""

    def __init__(self, *targets: Target, **settings: Any) -> None:
        self.region = Region.create()
        self._tasks: list[asyncio.Task[None]] = []
        self._log = os.open(os.devnull, os.O_WRONLY)
        around = Surroundings(self.region, Log(Sink(self._log)), self._background)
        self.group = Group(targets, Settings(**settings), around)

    def _background(self, steps: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(steps))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)
        os.close(self._log)

    async def ask(self, name: str = "a.test", *, tcp: bool = True, edns: bool = False) -> Relay:
        """The answer to a question for type A."""
        query = dns.message.make_query(name, "A", use_edns=0 if edns else -1).to_wire()
        end = message.question_end(query)
        begun = asyncio.get_running_loop().time()
        return await self.group.ask(Ask(query[2:], query[12:end]), tcp, begun)

    async def many(self, count: int, *, tcp: bool = True) -> list[Relay | BaseException]:
        """The answers to so many questions, asked together, for 0.test, 1.test, and so on."""
        return await asyncio.gather(*(self.ask(f"{n}.test", tcp=tcp) for n in range(count)), return_exceptions=True)

    def counted(self, name: str, **labels: str) -> int:
        """The sum of all counters and gauges of a name that have these labels."""
        found = self.region.read().items()
        wanted = set(labels.items())
        return sum(
            cells[0] for key, cells in found if key[1] == name and wanted <= set(zip(key[2::2], key[3::2], strict=True))
        )


def addresses(answer: Relay | BaseException) -> list[str]:
    """The A and AAAA records of an answer."""
    assert isinstance(answer, Relay), answer
    return [rr.address_text(rdata) for _, rrset in answer.answer() for rdata in rrset.rdatas]


Script = Callable[[Asked], Awaitable[None]]
"""Answers a query, or does something else about it. Runs as a task in the upstream's event loop."""


def reply(
    asked: Asked, *records: str, rcode: str = "NOERROR", ttl: int = 60, tc: bool = False, aa: bool = False
) -> bytes:
    """A response. records: `TYPE rdata` for the answer section, owned by the name that was asked for."""
    query = asked.message
    response = dns.message.make_response(query, recursion_available=True)
    response.set_rcode(dns.rcode.from_text(rcode))
    for record in records:
        rdtype, _, rdata = record.partition(" ")
        response.answer.append(dns.rrset.from_text(query.question[0].name, ttl, "IN", rdtype, rdata))
    if tc:
        response.flags |= dns.flags.TC
    if aa:
        response.flags |= dns.flags.AA
    return response.to_wire()


async def usual(asked: Asked) -> None:
    """ADDRESS for type A, NODATA for others."""
    asked.send(reply(asked, *([f"A {ADDRESS}"] if asked.rdtype == "A" else [])))


class FakeUpstream:
    """Listens on one port for UDP and TCP (with `tls` for TLS, with `https` for HTTPS, instead).

    script: may be changed at any time. asked, connections: all so far, oldest first.
    """

    def __init__(
        self,
        script: Script = usual,
        *,
        address: str = "127.0.0.1",
        port: int | None = None,
        tls: ssl.SSLContext | None = None,
        https: ssl.SSLContext | None = None,
        udp: bool = True,
        tcp: bool = True,
    ) -> None:
        self.script = script
        self.address = address
        self.port = port or ports.free_port()
        self.asked: list[Asked] = []
        self.connections: list[Connection] = []
        self.most_open = 0
        self._tls, self._https, self._udp, self._tcp = tls, https, udp and not (tls or https), tcp
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._started = threading.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._datagrams: asyncio.DatagramTransport | None = None
        self._failed: BaseException | None = None

    @property
    def target(self) -> Target:
        """As the client has it."""
        transport = "https" if self._https else "tls" if self._tls else "dns"
        return Target(transport, self.address, self.port)

    @property
    def to(self) -> str:
        """Address and port as a Corefile has it."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

    def names(self, proto: str = "") -> list[str]:
        """The names that were asked for, over one protocol or all; without those of health checks."""
        return [a.name for a in list(self.asked) if (not proto or a.proto == proto) and a.name != "."]

    @property
    def open(self) -> int:
        """TCP connections that are open."""
        return sum(connection.is_open for connection in list(self.connections))

    # Its life

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(10)
        if self._failed is not None:
            raise self._failed
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def stop(self) -> None:
        """Listen no more, reset all connections."""
        self._call(self._stop())

    def start(self) -> None:
        """Listen again."""
        self._call(self._start())

    def disconnect(self) -> None:
        """Close all connections."""

        async def close() -> None:
            for connection in self.connections:
                connection.writer.close()

        self._call(close())

    def _call(self, steps: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(steps, self._loop).result(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._start())
        except BaseException as error:
            self._failed = error
            self._started.set()
            return
        self._started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._end())

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)

    async def _start(self) -> None:
        if self._udp:
            self._datagrams, _ = await self._loop.create_datagram_endpoint(
                lambda: _Datagrams(self), local_addr=(self.address, self.port)
            )
        if self._tcp:
            secure = self._https or self._tls
            serve = self._http if self._https else self._stream
            self._server = await asyncio.start_server(serve, self.address, self.port, ssl=secure, backlog=1000)

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._datagrams is not None:
            self._datagrams.close()
            self._datagrams = None
        for connection in self.connections:
            if connection.is_open:
                connection.writer.transport.abort()
        await asyncio.sleep(0.01)

    # Queries

    def take(
        self,
        data: bytes,
        proto: str,
        peer: tuple[str, int],
        on: Connection | None,
        send: Callable[[bytes], None],
        headers: dict[str, str] | None = None,
    ) -> None:
        asked = Asked(data, proto, peer, len(self.asked), on, send, headers or {})
        if on is not None:
            on.asked += 1
        self.asked.append(asked)
        task = self._loop.create_task(self._answer(asked))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, asked: Asked) -> None:
        await self.script(asked)

    def _accepted(self, writer: asyncio.StreamWriter) -> Connection:
        connection = Connection(len(self.connections), writer.get_extra_info("peername")[:2], writer)
        self.connections.append(connection)
        self.most_open = max(self.most_open, self.open)
        return connection

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = self._accepted(writer)

        def send(data: bytes) -> None:
            writer.write(len(data).to_bytes(2, "big") + data)

        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                size = int.from_bytes(await reader.readexactly(2), "big")
                data = await reader.readexactly(size)
                self.take(data, "tls" if self._tls else "tcp", connection.peer, connection, send)
        connection.is_open = False
        writer.close()

    async def _http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """HTTP/2 (RFC 9113) with one kind of resource, /dns-query (RFC 8484)."""
        connection = self._accepted(writer)
        http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        http.initiate_connection()
        writer.write(http.data_to_send())
        requests: dict[int, tuple[dict[str, str], bytearray]] = {}

        def answer(stream: int) -> Callable[[bytes], None]:
            def send(data: bytes) -> None:
                kind = "application/dns-message"
                headers = [(":status", "200"), ("content-type", kind), ("content-length", str(len(data)))]
                http.send_headers(stream, headers)
                http.send_data(stream, data, end_stream=True)
                writer.write(http.data_to_send())

            return send

        with contextlib.suppress(OSError, asyncio.CancelledError):
            while data := await reader.read(65535):
                for event in http.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived):
                        found = {str(name): str(value) for name, value in event.headers}
                        requests[event.stream_id] = found, bytearray()
                    elif isinstance(event, h2.events.DataReceived):
                        requests[event.stream_id][1].extend(event.data)
                        http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    elif isinstance(event, h2.events.StreamEnded):
                        headers, body = requests.pop(event.stream_id)
                        query = bytes(body) or _from_path(headers[":path"])
                        self.take(query, "https", connection.peer, connection, answer(event.stream_id), headers)
                writer.write(http.data_to_send())
        connection.is_open = False
        writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, owner: FakeUpstream) -> None:
        self._owner = owner

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        transport = self._transport
        self._owner.take(data, "udp", addr[:2], None, lambda response: transport.sendto(response, addr))


def _from_path(path: str) -> bytes:
    text = parse_qs(urlsplit(path).query)["dns"][0]
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
