"""cancel: a query that waits too long is given up."""

from __future__ import annotations

import asyncio
import socket
import time

import dns.rcode
import pytest

from kdns.plugins import cancel
from kdns.plugins.chain import in_task
from kdns.wire import rr
from kdns.wire.message import Query, Response
from tests.conftest import Serve
from tests.support import procs
from tests.support.configs import options, refused
from tests.support.plugins import Behind, answered, query

COREFILE = """
.:$dns {
    bind 127.0.0.1
    errors
    cancel 300ms
    forward . $upstream {
        prefer_udp
    }
}
cluster.local:$dns {
    bind 127.0.0.1
    whoami
}
"""


class Slow:
    """Answers after a while; keeps whether it was let."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.cancelled = False

    async def __call__(self, query: Query) -> Response:
        await in_task()
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return Response(plugin="slow")


def test_an_answer_that_does_not_come_in_time_is_servfail_and_the_work_ends() -> None:
    slow = Slow(5)
    begun = time.monotonic()
    response = answered(cancel.Handler(cancel.Options(0.05)), query("a.test"), slow)
    assert time.monotonic() - begun < 2
    assert (response.rcode, response.plugin, response.error) == (rr.SERVFAIL, "cancel", "no answer within 50 ms")
    assert slow.cancelled


def test_an_answer_that_comes_in_time_passes() -> None:
    slow = Slow(0.05)
    assert answered(cancel.Handler(cancel.Options(5)), query("a.test"), slow).plugin == "slow"
    assert not slow.cancelled


def test_an_answer_without_waiting_needs_no_event_loop() -> None:
    steps = cancel.Handler(cancel.Options())(query("a.test"), Behind(Response(plugin="quick")))
    with pytest.raises(StopIteration) as end:
        steps.send(None)
    assert end.value.value.plugin == "quick"


def test_what_begins_without_an_event_loop_goes_on_in_one() -> None:
    steps = cancel.Handler(cancel.Options(0.05))(query("a.test"), Slow(5))
    steps.send(None)

    async def finish() -> Response:
        return await asyncio.create_task(steps)

    assert asyncio.run(finish()).rcode == rr.SERVFAIL


def test_what_a_plugin_raises_goes_on() -> None:
    async def broken(_query: Query) -> Response:
        await in_task()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        answered(cancel.Handler(cancel.Options()), query("a.test"), broken)


def test_a_query_that_is_given_up_by_others_ends_too() -> None:
    slow = Slow(5)

    async def test() -> None:
        task = asyncio.create_task(cancel.Handler(cancel.Options())(query("a.test"), slow))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert slow.cancelled

    asyncio.run(test())


def test_a_client_of_an_upstream_that_does_not_answer_gets_servfail_in_time(serve: Serve) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        server = serve(corefile=COREFILE.replace("$upstream", f"127.0.0.1:{silent.getsockname()[1]}"))
        for tcp in (False, True):
            begun = time.monotonic()
            assert server.query("a.test", tcp=tcp).rcode() == dns.rcode.SERVFAIL
            assert 0.3 <= time.monotonic() - begun < 1.5
        line = "[ERROR] plugin/errors: 2 a.test. A: no answer within 300 ms\n"
        procs.wait_until(lambda: server.log.count(line) == 2, 5, line)


def test_options() -> None:
    assert options("cancel").timeout == 5.001
    assert options("cancel 1s").timeout == 1


@pytest.mark.parametrize(
    ("directive", "message"),
    [
        ("cancel soon", '1: cancel: "soon" is not a duration'),
        ("cancel -1s", '1: cancel: "-1s" is too short'),
        ("cancel 0s", '1: cancel: "0s" is no time at all'),
        ("cancel 1s 2s", "1: cancel has 2 arguments"),
        ("cancel {\nx\n}", '2: cancel has no option "x"'),
    ],
)
def test_mistakes(directive: str, message: str) -> None:
    assert refused(directive) == [message]
