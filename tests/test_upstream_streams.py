"""Queries over TCP: few connections, many queries on each, and what happens when connections or servers end."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine

import pytest

from kdns.errors import UpstreamError
from kdns.upstream import streams
from tests.support import procs
from tests.support.upstream import ADDRESS, Asked, Asking, Connection, FakeUpstream, addresses, reply, usual

MANY = 200


def run(steps: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(steps, 20))


def closing_after(count: int) -> Callable[[Asked], Coroutine[object, object, None]]:
    """Answers so many queries on each connection, then closes it."""

    answered: Counter[Connection] = Counter()

    async def script(asked: Asked) -> None:
        if asked.on is None:  # a health check
            await usual(asked)
            return
        answered[asked.on] += 1
        if answered[asked.on] <= count:
            await usual(asked)
        if answered[asked.on] == count:
            asked.close()

    return script


def distinct(asked: Asked) -> str:
    """An address that only this name has."""
    return f"A 10.0.{int(asked.name.split('.')[0]) // 256}.{int(asked.name.split('.')[0]) % 256}"


def test_many_queries_in_flight_are_answered_out_of_order_on_two_connections() -> None:
    held: list[Asked] = []

    async def script(asked: Asked) -> None:
        held.append(asked)
        if len(held) == MANY:
            random.shuffle(held)
            for one in held:
                one.send(reply(one, distinct(one)))

    async def steps() -> None:
        with FakeUpstream(script) as upstream:
            async with Asking(upstream.target) as asking:
                answers = await asking.many(MANY)
            assert [addresses(answer) for answer in answers] == [[f"10.0.0.{n}"] for n in range(MANY)]
            assert upstream.most_open == 2
            hits = asking.counted("coredns_proxy_conn_cache_hits_total", proto="tcp", to=upstream.to)
            assert hits == MANY - 2
            assert asking.counted("coredns_proxy_conn_cache_misses_total", proto="tcp", to=upstream.to) == 2

    run(steps())


def test_a_few_queries_need_one_connection_and_what_comes_together_leaves_together() -> None:
    async def steps() -> None:
        with FakeUpstream() as upstream:
            async with Asking(upstream.target) as asking:
                await asking.ask()
                sizes: list[int] = []
                connection = asking.group.upstreams[0]._streams._connections[0]  # type: ignore[union-attr]
                transport = connection._transport
                assert transport is not None
                write = transport.write

                def noting(data: bytes | bytearray | memoryview) -> None:
                    sizes.append(len(data))
                    write(data)

                transport.write = noting  # type: ignore[method-assign]
                answers = await asking.many(20)
            assert all(addresses(answer) == [ADDRESS] for answer in answers)
            assert len(sizes) == 1
            assert upstream.most_open == 1

    run(steps())


def test_a_connection_that_the_upstream_closes_while_idle_is_no_failure() -> None:
    async def steps() -> None:
        with FakeUpstream() as upstream:
            async with Asking(upstream.target) as asking:
                for _ in range(3):
                    assert addresses(await asking.ask()) == [ADDRESS]
                    upstream.disconnect()
                    await _until(lambda: upstream.open == 0)
                assert len(upstream.connections) == 3
                assert upstream.names() == ["a.test"] * 3  # not one health check
                assert asking.counted("kdns_forward_resent_total") == 0

    run(steps())


@pytest.mark.parametrize("how", ["close", "reset"])
def test_queries_on_a_connection_that_ends_are_asked_again(how: str) -> None:
    async def script(asked: Asked) -> None:
        assert asked.on is not None
        if asked.on.number == 0:
            if asked.on.asked == 30:
                getattr(asked, how)()
        else:
            await usual(asked)

    async def steps() -> None:
        with FakeUpstream(script) as upstream:
            async with Asking(upstream.target) as asking:
                answers = await asking.many(30)
                assert all(addresses(answer) == [ADDRESS] for answer in answers)
                assert asking.counted("kdns_forward_resent_total") == 30
                assert sorted(upstream.names()) == sorted([f"{n}.test" for n in range(30)] * 2)

    run(steps())


def test_they_are_asked_again_of_another_upstream_if_there_is_one() -> None:
    async def dies(asked: Asked) -> None:
        asked.reset()

    async def steps() -> None:
        with FakeUpstream(dies) as first, FakeUpstream() as second:
            async with Asking(first.target, second.target, policy="sequential", max_attempts=1) as asking:
                assert addresses(await asking.ask()) == [ADDRESS]
            assert (len(first.names()), len(second.names())) == (1, 1)

    run(steps())


def test_a_query_is_asked_again_only_once_without_counting_as_a_failure() -> None:
    async def dies(asked: Asked) -> None:
        asked.reset()

    async def steps() -> None:
        with FakeUpstream(dies) as upstream:
            async with Asking(upstream.target, max_attempts=1, max_fails=0) as asking:
                with pytest.raises(UpstreamError, match=f"^{upstream.to}: the tcp connection was reset"):
                    await asking.ask()
            assert len(upstream.names()) == 2

    run(steps())


@pytest.mark.parametrize("count", [1, 7, 128])
def test_none_is_lost_to_an_upstream_that_closes_after_some_answers(count: int) -> None:
    async def steps() -> None:
        with FakeUpstream(closing_after(count)) as upstream:
            async with Asking(upstream.target, max_fails=0) as asking:
                await asking.ask()  # the first connection shows how it is
                for _ in range(3):
                    answers = await asking.many(MANY)
                    assert all(addresses(answer) == [ADDRESS] for answer in answers)
            assert upstream.most_open <= streams.MAX_LIMITED_CONNECTIONS

    run(steps())


def test_a_learned_limit_keeps_further_queries_from_being_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_CLOSING", 5.0)  # on a busy machine the end may come long after the last answer

    async def steps() -> None:
        with FakeUpstream(closing_after(1)) as upstream:
            async with Asking(upstream.target) as asking:
                await asking.many(5)
                lost = asking.counted("kdns_forward_resent_total")
                assert lost > 0
                answers = await asking.many(MANY)
                assert all(addresses(answer) == [ADDRESS] for answer in answers)
                assert asking.counted("kdns_forward_resent_total") == lost

    run(steps())


def test_a_connection_on_which_all_answers_come_too_late_is_left() -> None:
    async def script(asked: Asked) -> None:
        if asked.on is not None and asked.on.number == 0:
            await asyncio.sleep(min(0.02 * asked.on.asked, 0.6))
        await usual(asked)

    async def steps() -> None:
        with FakeUpstream(script) as upstream:
            async with Asking(upstream.target, max_attempts=1, max_fails=0, read_timeout=0.3) as asking:
                asked = []
                for _ in range(80):
                    asked.append(asyncio.create_task(asking.ask()))
                    await asyncio.sleep(0.02)
                found = await asyncio.gather(*asked, return_exceptions=True)
                assert addresses(found[0]) == addresses(found[-1]) == [ADDRESS]
                assert any(isinstance(answer, UpstreamError) for answer in found)

    run(steps())


def test_a_query_that_had_to_wait_for_a_connection_is_given_up_in_time_too() -> None:
    async def script(asked: Asked) -> None:
        if asked.name.endswith(".test"):
            await usual(asked)
            asked.close()

    async def steps() -> None:
        with FakeUpstream(script) as upstream:
            async with Asking(upstream.target, max_attempts=1, max_fails=0, read_timeout=0.5) as asking:
                await asking.many(10)
                first = [asyncio.create_task(asking.ask("mute")) for _ in range(streams.MAX_LIMITED_CONNECTIONS)]
                await asyncio.sleep(0.2)
                last = asyncio.create_task(asking.ask("mute"))
                await asyncio.gather(*first, return_exceptions=True)
                with pytest.raises(UpstreamError, match="no answer"):
                    await asyncio.wait_for(last, 2)

    run(steps())


def test_a_limit_that_proves_wrong_is_forgotten() -> None:
    async def steps() -> None:
        with FakeUpstream(closing_after(1)) as upstream:
            async with Asking(upstream.target) as asking:
                await asking.many(5)
                upstream.script = usual
                await asking.ask()
                pool = asking.group.upstreams[0]._streams
                assert pool is not None
                assert pool.limit == 1
                await _until(lambda: pool.limit == 0)
                before = len(upstream.connections)
                await asking.many(20)
                assert len(upstream.connections) == before

    run(steps())


def test_a_limit_that_proves_wrong_is_forgotten_under_load_too() -> None:
    async def steps() -> None:
        with FakeUpstream(closing_after(1)) as upstream:
            async with Asking(upstream.target) as asking:
                await asking.many(5)
                upstream.script = usual
                pool = asking.group.upstreams[0]._streams
                assert pool is not None
                assert pool.limit == 1
                for _ in range(20):
                    await asking.many(20)
                    await asyncio.sleep(0.005)
                assert pool.limit == 0

    run(steps())


def test_wrong_ids_and_questions_are_dropped_and_counted_and_the_right_answer_still_counts() -> None:
    async def script(asked: Asked) -> None:
        good = reply(asked, f"A {ADDRESS}")
        forged = reply(asked, "A 203.0.113.9")
        asked.send(bytes((good[0] ^ 1,)) + forged[1:])
        asked.send(forged.replace(b"\x04test", b"\x04evil"))
        asked.send(forged[:2] + b"\0" + forged[3:])
        asked.send(good)

    async def steps() -> None:
        with FakeUpstream(script) as upstream:
            async with Asking(upstream.target) as asking:
                assert addresses(await asking.ask()) == [ADDRESS]
                for reason in ("id", "question", "query"):
                    name = "kdns_forward_discarded_total"
                    assert asking.counted(name, reason=reason, to=upstream.to) == 1

    run(steps())


def test_the_question_may_come_back_in_another_case() -> None:
    async def script(asked: Asked) -> None:
        asked.send(reply(asked, f"A {ADDRESS}").replace(b"\x04test", b"\x04TeSt"))

    async def steps() -> None:
        with FakeUpstream(script) as upstream:
            async with Asking(upstream.target) as asking:
                assert addresses(await asking.ask()) == [ADDRESS]

    run(steps())


def test_half_a_message_costs_no_more_than_the_time_of_one_answer() -> None:
    async def script(asked: Asked) -> None:
        if asked.on is not None and asked.on.number == 0:
            asked.raw(b"\x01\x00" + reply(asked, f"A {ADDRESS}")[:20])
        else:
            await usual(asked)

    async def steps() -> None:
        with FakeUpstream(script) as upstream:
            async with Asking(upstream.target, read_timeout=0.3) as asking:
                start = time.monotonic()
                assert addresses(await asking.ask()) == [ADDRESS]
                assert 0.25 < time.monotonic() - start < 1
                await _until(lambda: upstream.open == 1)  # the stalled connection is given up

    run(steps())


def test_a_slow_answer_holds_up_no_other_on_its_connection() -> None:
    async def script(asked: Asked) -> None:
        if asked.name == "0.test":
            await asyncio.sleep(0.4)
        await usual(asked)

    async def steps() -> None:
        with FakeUpstream(script) as upstream:
            async with Asking(upstream.target) as asking:
                slow = asyncio.create_task(asking.ask("0.test"))
                start = time.monotonic()
                for n in range(1, 11):
                    await asking.ask(f"{n}.test")
                assert time.monotonic() - start < 0.3
                assert not slow.done()
                assert addresses(await slow) == [ADDRESS]
                assert len(upstream.connections) == 1

    run(steps())


def test_a_malformed_answer_is_a_failure_and_the_next_upstream_is_asked() -> None:
    async def script(asked: Asked) -> None:
        asked.send(reply(asked, f"A {ADDRESS}") + b"trailing")

    async def steps() -> None:
        with FakeUpstream(script) as bad, FakeUpstream() as good:
            async with Asking(bad.target, good.target, policy="sequential") as asking:
                assert addresses(await asking.ask()) == [ADDRESS]
                assert asking.counted("kdns_forward_discarded_total", reason="malformed", to=bad.to) == 1
            async with Asking(bad.target) as asking:
                with pytest.raises(UpstreamError, match=f"{bad.to}: malformed answer: 8 bytes"):
                    await asking.ask()

    run(steps())


def test_a_refused_connection_fails_at_once() -> None:
    async def steps() -> None:
        with FakeUpstream(tcp=False) as upstream:
            async with Asking(upstream.target) as asking:
                start = time.monotonic()
                with pytest.raises(UpstreamError, match=r"no tcp connection.*refused"):
                    await asking.ask()
                assert time.monotonic() - start < 0.5

    run(steps())


def test_a_silent_upstream_is_given_up_before_a_client_asks_again() -> None:
    async def silent(_: Asked) -> None:
        return

    async def steps() -> None:
        with FakeUpstream(silent) as upstream:
            async with Asking(upstream.target, max_attempts=0) as asking:
                start = time.monotonic()
                with pytest.raises(UpstreamError, match=r"no answer within .* i/o timeout$"):
                    await asking.ask()
                assert 4 < time.monotonic() - start < 4.9

    run(steps())


def test_idle_connections_are_closed_after_expire() -> None:
    async def steps() -> None:
        with FakeUpstream() as upstream:
            async with Asking(upstream.target, expire=0.2) as asking:
                await asking.ask()
                await asking.ask()
                assert (len(upstream.connections), upstream.open) == (1, 1)
                await _until(lambda: upstream.open == 0)
                await asking.ask()
                assert len(upstream.connections) == 2

    run(steps())


def test_max_idle_conns_bounds_those_that_are_kept() -> None:
    held: list[Asked] = []

    async def script(asked: Asked) -> None:
        held.append(asked)
        if len(held) == MANY:
            for one in held:
                await usual(one)

    async def steps(most: int, kept: int) -> None:
        held.clear()
        with FakeUpstream(script) as upstream:
            async with Asking(upstream.target, max_idle=most) as asking:
                await asking.many(MANY)
                assert upstream.most_open == 2
                await _until(lambda: upstream.open == kept)

    run(steps(1, 1))
    run(steps(0, 2))


def test_max_age_ends_a_connection_for_new_queries() -> None:
    async def steps() -> None:
        with FakeUpstream() as upstream:
            async with Asking(upstream.target, max_age=0.2) as asking:
                until = time.monotonic() + 0.5
                while time.monotonic() < until:
                    await asking.ask()
                    await asyncio.sleep(0.01)
            assert 2 <= len(upstream.connections) <= 4

    run(steps())


def test_an_upstream_that_ends_and_comes_back_is_used_again() -> None:
    async def steps() -> None:
        with FakeUpstream() as upstream:
            async with Asking(upstream.target, health_interval=0.02) as asking:
                await asking.ask()
                upstream.stop()
                with pytest.raises(UpstreamError):
                    await asking.ask()
                upstream.start()
                assert addresses(await asking.ask()) == [ADDRESS]

    run(steps())


async def _until(condition: Callable[[], bool]) -> None:
    await asyncio.get_running_loop().run_in_executor(None, procs.wait_until, condition, 5.0, "the condition")
