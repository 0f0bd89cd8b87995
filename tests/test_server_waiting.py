"""What plugins that wait may expect of the server."""

from __future__ import annotations

import asyncio
import socket

import dns.message

from kdns.observe.counters import QueryCounters, Region
from kdns.plugins.budget import Budget
from kdns.plugins.chain import Next, in_task, link
from kdns.server.respond import Block, Responder, Waiting
from kdns.server.udp import UdpServer
from kdns.wire import names, rr
from kdns.wire.message import Query, Response
from kdns.wire.rrset import RRset
from kdns.zone.changes import Changes
from tests.test_waiting import ask_udp, query, run

ADDRESSES = tuple(bytes((10, 0, 0, last)) for last in range(1, 5))


class Waits:
    """Waits a moment, then passes on."""

    async def __call__(self, query: Query, next: Next) -> Response:
        await in_task()
        await asyncio.sleep(0.01)
        return await next(query)


async def addresses(query: Query) -> Response:
    return Response(answer=[(query.lname, RRset(rr.A, 5, ADDRESSES))], rotate=True)


def test_address_records_of_an_answer_that_had_to_wait_rotate_over_udp() -> None:
    async def test() -> None:
        region, changes = Region.create(), Changes.create()
        block = Block(QueryCounters(region, "dns://:53", "."), link([Waits()], addresses), None, None)
        responder = Responder("dns://:53", {names.ROOT: block}, region, print, Waiting())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            udp = UdpServer(sock, responder, changes, region, asyncio.get_running_loop(), Budget())
            udp.start()
            asked = [query("slow.test", ident) for ident in range(40)]
            answers: list[dns.message.Message] = await asyncio.to_thread(ask_udp, sock.getsockname(), *asked)
            await udp.stop()
        first = {answer.answer[0][0].address for answer in answers}
        assert len(first) > 1

    run(test)


def test_what_gets_no_answer_after_all_is_not_waited_for_any_more() -> None:
    """Nor is it sent: only the second of two queries is answered, and the socket has nothing pending then."""

    async def silent_once(query: Query) -> Response:
        return Response(rcode=rr.SERVFAIL, silent=True) if query.id == 1 else await addresses(query)

    async def test() -> None:
        region, changes = Region.create(), Changes.create()
        block = Block(QueryCounters(region, "dns://:53", "."), link([Waits()], silent_once), None, None)
        waiting = Waiting()
        responder = Responder("dns://:53", {names.ROOT: block}, region, print, waiting)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, socket.socket(type=socket.SOCK_DGRAM) as client:
            sock.bind(("127.0.0.1", 0))
            client.connect(sock.getsockname())
            client.setblocking(False)
            udp = UdpServer(sock, responder, changes, region, asyncio.get_running_loop(), Budget())
            udp.start()
            for ident in (1, 2):
                client.send(dns.message.make_query("slow.test", "A", id=ident).to_wire())
            answer = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 512), 3)
            await asyncio.wait_for(udp.stop(), 3)
            assert answer[:2] == b"\0\2"
            assert not waiting.queries
            try:
                more = client.recv(512)
            except BlockingIOError:
                more = b""
            assert not more

    run(test)
