"""What happens in one moment: descriptors that are used again, queries that are read when the server ends, sockets that
have no room."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import dns.message
import pytest

from kdns.observe.counters import QueryCounters, Region
from kdns.plugins.budget import Budget
from kdns.plugins.chain import Next, in_task, link
from kdns.server import tcp
from kdns.server.respond import Block, Responder, Waiting
from kdns.server.tcp import Connections, TcpServer
from kdns.server.udp import UdpServer
from kdns.wire import names, rr
from kdns.wire.message import Query, Response
from kdns.zone.changes import Changes
from kdns.zone.reader import Reader
from tests.support import netns
from tests.support.answering import Answering, publish
from tests.support.objects import service
from tests.support.server import read_message
from tests.test_server_tcp import framed
from tests.test_waiting import run

QUERY = framed(dns.message.make_query("any.test", "A", id=7).to_wire())


class Hurries:
    """Waits for what does not come, and says so."""

    async def __call__(self, query: Query, next: Next) -> Response:
        await in_task()
        try:
            async with asyncio.timeout(0.05):
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            return Response(rcode=rr.NOTIMP)
        return await next(query)


async def refuse(_: Query) -> Response:
    return Response(rcode=rr.REFUSED)


@asynccontextmanager
async def server(*plugins: Hurries) -> AsyncIterator[tuple[TcpServer, tuple[str, int]]]:
    """A server on a free port; not started."""
    region, changes = Region.create(), Changes.create()
    block = Block(QueryCounters(region, "dns://:53", "."), link(plugins, refuse), None, None)
    responder = Responder("dns://:53", {names.ROOT: block}, region, print, Waiting())
    connections = Connections(region)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield TcpServer(listener, responder, changes, connections, Budget()), listener.getsockname()
        await connections.drain(0.5)


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_what_befell_a_connection_does_not_end_the_next_one_with_its_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tcp, "CONNECTIONS", 2)

    async def test() -> None:
        async with server() as (served, address):
            served.start()
            first, second = (socket.create_connection(address) for _ in range(2))
            await turns(5)
            assert len(served.connections.open) == 2
            more = [socket.create_connection(address) for _ in range(2)]
            first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            first.close()
            await turns(5)
            for sock in more:
                sock.sendall(QUERY)
            await turns(5)
            for sock in more:
                assert (await asyncio.to_thread(read_message, sock) or b"")[:2] == b"\0\7"
                sock.close()
            second.close()
            await served.stop()

    run(test)


def test_what_waits_to_be_accepted_when_the_server_ends_may_take_its_time() -> None:
    async def test() -> None:
        async with server(Hurries()) as (served, address):
            served.start()
            with socket.create_connection(address) as sock:
                sock.sendall(QUERY)
                await served.stop(leaving=True)
                answer = await asyncio.to_thread(read_message, sock)
                assert answer is not None
                assert answer[3] & 0xF == rr.NOTIMP

    run(test)


ROOT = ("dev", "lo", "root")
COREFILE = """\
.:53 {
    kubernetes cluster.local {
        manifests $manifests
    }
    forward . 127.0.0.1:9
}
"""


def test_while_a_socket_has_no_room_the_store_can_be_read(tmp_path: Path, needs: Callable[..., None]) -> None:
    needs("tc")
    try:
        netns.require()
    except netns.NetnsUnavailableError as error:
        pytest.skip(str(error))
    ground = publish(tmp_path, [service("web", ips=("10.96.1.1",))], COREFILE)
    known = dns.message.make_query("web.default.svc.cluster.local", "A").to_wire()
    forwarded = dns.message.make_query("example.com", "A").to_wire()
    reader = Reader(ground.path, ground.changes)

    def read() -> bool:
        with reader:
            return True

    async def test(space: netns.Netns) -> None:
        with (
            Answering(ground, reader) as worker,
            space.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
            space.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        ):
            sock.bind(("127.0.0.1", 0))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            client.connect(sock.getsockname())
            for data in (*[known] * 40, forwarded):
                client.send(data)
            space.run("tc", "qdisc", "add", *ROOT, "tbf", "rate", "8bit", "burst", "1600", "limit", "1000000")
            loop = asyncio.get_running_loop()
            udp = UdpServer(sock, worker.responder, worker.changes, worker.region, loop, Budget())
            udp.start()
            await asyncio.sleep(0.3)
            try:
                reading = asyncio.to_thread(read)
                assert await asyncio.wait_for(asyncio.shield(reading), 2)
            finally:
                space.run("tc", "qdisc", "del", *ROOT)
                await udp.stop()

    with netns.Netns("kdns") as space:
        run(lambda: test(space))
    reader.close()
