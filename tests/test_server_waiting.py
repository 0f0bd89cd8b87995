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
