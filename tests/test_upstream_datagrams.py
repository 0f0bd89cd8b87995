"""Queries over UDP: a port and an ID for each, and what is no answer changes nothing."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Coroutine

import dns.flags
import dns.message
import dns.rcode
import pytest

from kdns.errors import UpstreamError
from kdns.upstream import datagrams
from tests.support import ports
from tests.support.upstream import ADDRESS, Asked, Asking, FakeUpstream, addresses, reply, usual

FORGED = "A 203.0.113.9"


def run(steps: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(steps, 20))


async def silent(_: Asked) -> None:
    return


def test_each_query_has_its_own_port_and_id() -> None:
    async def steps() -> None:
        with FakeUpstream() as upstream:
            async with Asking(upstream.target) as asking:
                for answer in await asking.many(300, tcp=False):
                    assert addresses(answer) == [ADDRESS]
            assert len({asked.data[:2] for asked in upstream.asked}) > 290
            assert len({asked.peer[1] for asked in upstream.asked}) > 290

    run(steps())


@pytest.mark.parametrize("how", ["id", "question", "query", "short"])
def test_a_message_that_does_not_match_is_dropped_and_counted(how: str) -> None:
    async def script(asked: Asked) -> None:
        forged = reply(asked, FORGED)
        wrong = {
            "id": bytes((forged[0] ^ 1,)) + forged[1:],
            "question": forged.replace(b"\x04test", b"\x04evil"),
            "query": forged[:2] + b"\0" + forged[3:],
            "short": forged[:11],
        }
        asked.send(wrong[how])
        await usual(asked)

    async def steps() -> None:
        with FakeUpstream(script) as upstream:
            async with Asking(upstream.target) as asking:
                assert addresses(await asking.ask(tcp=False)) == [ADDRESS]
                assert asking.counted("kdns_forward_discarded_total", reason=how, to=upstream.to) == 1

    run(steps())


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2"])
def test_an_answer_from_another_port_or_address_is_dropped_and_counted(address: str) -> None:
    async def script(asked: Asked) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((address, 0))
            sock.sendto(reply(asked, FORGED), asked.peer)
        await usual(asked)

    async def steps() -> None:
        with FakeUpstream(script) as upstream:
            async with Asking(upstream.target) as asking:
                assert addresses(await asking.ask(tcp=False)) == [ADDRESS]
                assert asking.counted("kdns_forward_discarded_total", reason="peer", to=upstream.to) == 1

    run(steps())


def test_wrong_messages_do_not_prolong_the_wait() -> None:
    async def script(asked: Asked) -> None:
        for _ in range(100):
            asked.send(b"\xff" * 20)
            await asyncio.sleep(0.01)

    async def steps() -> None:
        with FakeUpstream(script) as upstream:
            async with Asking(upstream.target, read_timeout=0.2, max_attempts=1) as asking:
                start = time.monotonic()
                with pytest.raises(UpstreamError, match=f"{upstream.to}: no answer within 0.[23] s: i/o timeout$"):
                    await asking.ask(tcp=False)
                assert time.monotonic() - start < 0.5

    run(steps())


def test_a_closed_port_is_noticed_at_once() -> None:
    async def steps() -> None:
        with FakeUpstream(udp=False, tcp=False) as upstream:
            async with Asking(upstream.target) as asking:
                start = time.monotonic()
                with pytest.raises(UpstreamError, match=f"{upstream.to}: UDP: connection refused"):
                    await asking.ask(tcp=False)
                assert time.monotonic() - start < 0.5

    run(steps())


def test_a_truncated_answer_is_asked_for_again_over_tcp() -> None:
    async def script(asked: Asked) -> None:
        asked.send(reply(asked, tc=True) if asked.proto == "udp" else reply(asked, f"A {ADDRESS}"))

    async def steps() -> None:
        with FakeUpstream(script) as upstream:
            async with Asking(upstream.target) as asking:
                answer = await asking.ask(tcp=False)
            assert addresses(answer) == [ADDRESS]
            assert not answer.truncated
            assert [asked.proto for asked in upstream.asked] == ["udp", "tcp"]

    run(steps())


def test_without_tcp_the_truncated_answer_is_passed_on() -> None:
    async def script(asked: Asked) -> None:
        asked.send(reply(asked, f"A {ADDRESS}", tc=True))

    async def steps() -> None:
        with FakeUpstream(script, tcp=False) as upstream:
            async with Asking(upstream.target) as asking:
                answer = await asking.ask(tcp=False)
                assert (addresses(answer), answer.truncated) == ([ADDRESS], True)

    run(steps())


@pytest.mark.parametrize("rcode", ["FORMERR", "NOTIMP"])
@pytest.mark.parametrize("bare", [True, False])
def test_a_server_that_does_not_know_edns_is_asked_without_it(rcode: str, bare: bool) -> None:
    async def script(asked: Asked) -> None:
        if asked.message.edns < 0:
            await usual(asked)
        elif bare:
            asked.send(asked.data[:2] + struct.pack("!HHHHH", 0x8000 | dns.rcode.from_text(rcode), 0, 0, 0, 0))
        else:
            response = dns.message.make_response(dns.message.from_wire(asked.data))
            response.use_edns(False)
            response.set_rcode(dns.rcode.from_text(rcode))
            asked.send(response.to_wire())

    async def steps() -> None:
        with FakeUpstream(script) as upstream:
            async with Asking(upstream.target) as asking:
                assert addresses(await asking.ask(tcp=False, edns=True)) == [ADDRESS]
            assert [asked.message.edns for asked in upstream.asked] == [0, -1]

    run(steps())


def test_further_queries_wait_while_all_sockets_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagrams, "MAX_SOCKETS", 3)
    waiting = most = 0

    async def script(asked: Asked) -> None:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        await asyncio.sleep(0.02)
        waiting -= 1
        await usual(asked)

    async def steps() -> None:
        with FakeUpstream(script) as upstream:
            async with Asking(upstream.target) as asking:
                assert all(addresses(answer) == [ADDRESS] for answer in await asking.many(20, tcp=False))
            assert most == 3
            upstream.script = silent
            async with Asking(upstream.target, read_timeout=0.2, max_attempts=1) as asking:
                answers = await asking.many(20, tcp=False)
                assert all(isinstance(answer, UpstreamError) for answer in answers)

    run(steps())


@pytest.mark.skipif(not ports.has_ipv6(), reason="no ::1")
def test_ipv6_upstreams_are_asked_alike() -> None:
    async def steps() -> None:
        with FakeUpstream(address="::1") as upstream:
            async with Asking(upstream.target) as asking:
                assert addresses(await asking.ask(tcp=False)) == [ADDRESS]
                assert addresses(await asking.ask(tcp=True)) == [ADDRESS]

    run(steps())
