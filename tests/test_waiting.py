"""Plugins that wait: their answers come later, over UDP and TCP, and do not hold up others."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import dns.message
import dns.rcode

from kdns.observe.counters import QueryCounters, Region
from kdns.plugins.budget import Budget
from kdns.plugins.chain import Next, in_task, link
from kdns.server.respond import MOST_PENDING, Block, Responder, Waiting, WriteDown
from kdns.server.tcp import Connections, TcpServer
from kdns.server.udp import UdpServer
from kdns.wire import names, rr
from kdns.wire.message import Query, Response
from kdns.wire.rrset import RRset
from kdns.zone.changes import Changes


class Slow:
    """Waits for names that begin with `slow`, breaks at `broken`."""

    async def __call__(self, query: Query, next: Next) -> Response:
        if query.lname.startswith(b"\x04slow"):
            await in_task()
            await asyncio.sleep(0.2)
        if query.lname.startswith(b"\x06broken"):
            await in_task()
            await asyncio.sleep(0)
            raise ValueError("broken")
        return await next(query)


async def address(query: Query) -> Response:
    return Response(answer=[(query.lname, RRset(rr.A, 5, (b"\x0a\0\0\1",)))])


@asynccontextmanager
async def serving(
    host: str = "127.0.0.1", most: int = MOST_PENDING, log: WriteDown | None = None
) -> AsyncIterator[tuple[tuple[str, int], tuple[str, int], list[str], Region]]:
    """Addresses for UDP and TCP, what was reported, and the counters."""
    region, changes, reported = Region.create(), Changes.create(), list[str]()
    chain = link([Slow()], address)
    block = Block(QueryCounters(region, "dns://:53", "."), chain, None, log)
    responder = Responder("dns://:53", {names.ROOT: block}, region, reported.append, Waiting(most))
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind((host, 0))
    streams = socket.socket()
    streams.bind(("127.0.0.1", 0))
    streams.listen()
    budget = Budget()
    udp = UdpServer(datagrams, responder, changes, region, asyncio.get_running_loop(), budget)
    connections = Connections(region)
    tcp = TcpServer(streams, responder, changes, connections, budget)
    udp.start()
    tcp.start()
    yield ("127.0.0.1", datagrams.getsockname()[1]), streams.getsockname(), reported, region
    await tcp.stop()
    await udp.stop()
    await connections.drain(1)
    datagrams.close()


def query(name: str, ident: int) -> bytes:
    return dns.message.make_query(name, "A", id=ident).to_wire()


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    before = signal.signal(signal.SIGUSR2, lambda *_: None)  # as workers have it: it ends a thread's recvmmsg
    try:
        asyncio.run(asyncio.wait_for(test(), 20))
    finally:
        signal.signal(signal.SIGUSR2, before)


def ask_udp(server: tuple[str, int], *asked: bytes) -> list[dns.message.Message]:
    """Answers in the order in which they come."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect(server)
        for data in asked:
            sock.send(data)
        return [dns.message.from_wire(sock.recv(4096)) for _ in asked]


def test_over_udp_a_waiting_query_is_answered_later_than_one_that_came_after_it() -> None:
    async def test() -> None:
        for host in ("127.0.0.1", "0.0.0.0"):  # noqa: S104
            async with serving(host) as (udp, _, _, region):
                answers = await asyncio.to_thread(ask_udp, udp, query("slow.test", 1), query("fast.test", 2))
                assert [answer.id for answer in answers] == [2, 1]
                assert all(answer.answer[0][0].address == "10.0.0.1" for answer in answers)
                total = sum(cells[0] for key, cells in region.read().items() if key[0] == "query")
                assert total == 2

    run(test)


def test_over_tcp_a_waiting_query_is_answered_later_than_one_that_came_after_it() -> None:
    async def test() -> None:
        async with serving() as (_, tcp, _, _):
            reader, writer = await asyncio.open_connection(*tcp[:2])
            for data in (query("slow.test", 1), query("fast.test", 2)):
                writer.write(len(data).to_bytes(2, "big") + data)
            got = []
            for _ in range(2):
                size = int.from_bytes(await reader.readexactly(2), "big")
                got.append(dns.message.from_wire(await reader.readexactly(size)))
            assert [answer.id for answer in got] == [2, 1]
            writer.close()

    run(test)


def test_more_queries_than_may_wait_are_refused_at_once_until_others_have_their_answers() -> None:
    async def test() -> None:
        async with serving(most=10) as (udp, _, _, region):
            asked = [query("slow.test", ident) for ident in range(12)]
            for _ in range(2):
                answers = await asyncio.to_thread(ask_udp, udp, *asked)
                assert [answer.rcode() for answer in answers] == [dns.rcode.SERVFAIL] * 2 + [dns.rcode.NOERROR] * 10
            assert region.read()["count", "kdns_pending_rejects_total"] == (4,)

    run(test)


def test_a_client_that_closes_its_side_gets_the_answers_that_are_due() -> None:
    async def test() -> None:
        async with serving() as (_, tcp, _, _):
            reader, writer = await asyncio.open_connection(*tcp[:2])
            data = query("slow.test", 1)
            writer.write(len(data).to_bytes(2, "big") + data)
            writer.write_eof()
            size = int.from_bytes(await reader.readexactly(2), "big")
            assert dns.message.from_wire(await reader.readexactly(size)).id == 1
            assert await reader.read() == b""
            writer.close()

    run(test)


def test_what_a_plugin_raises_while_it_waits_is_servfail_and_counted() -> None:
    async def test() -> None:
        async with serving() as (udp, _, reported, region):
            (answer,) = await asyncio.to_thread(ask_udp, udp, query("broken.test", 1))
            assert answer.rcode() == dns.rcode.SERVFAIL
            assert region.read()["count", "coredns_panics_total"] == (1,)
            assert "broken" in reported[0]

    run(test)


def test_stopping_waits_for_what_is_due() -> None:
    async def test() -> None:
        async with serving() as (udp, _, _, _):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(5)
                sock.connect(udp)
                sock.send(query("slow.test", 1))
                await asyncio.sleep(0.05)
                begun = time.monotonic()
        assert time.monotonic() - begun > 0.1

    run(test)


def test_what_breaks_while_a_tcp_query_is_answered_ends_that_connection_only() -> None:
    def broken(*_: object) -> None:
        raise ValueError("no room for a line")

    async def test() -> None:
        async with serving(log=broken) as (_, tcp, reported, region):
            for count in (1, 2):
                reader, writer = await asyncio.open_connection(*tcp[:2])
                data = query("fast.test", 1)
                writer.write(len(data).to_bytes(2, "big") + data)
                assert await reader.read() == b""
                writer.close()
                assert region.read()["count", "coredns_panics_total"] == (count,)
            assert "no room for a line" in reported[0]
            assert region.read()["gauge", "kdns_tcp_connections"] == (0,)

    run(test)
