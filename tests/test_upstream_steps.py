"""Coroutines that are driven by hand: what they may wait for, and what they come to."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from kdns.upstream.steps import Run, Wait, in_loop, in_task


class Noted(Run):
    """Keeps what it has come to."""

    def __init__(self, steps: Coroutine[Any, Any, Any]) -> None:
        super().__init__(steps)
        self.end: tuple[Any, BaseException | None] | None = None

    def ended(self, value: Any, error: BaseException | None) -> None:
        """Note it."""
        self.end = value, error


async def call(function: Callable[..., object], *args: object) -> None:
    """Call something in a turn of the loop that no task has, and let one more turn pass."""
    asyncio.get_running_loop().call_soon(function, *args)
    for _ in range(3):
        await asyncio.sleep(0)


def test_a_run_goes_on_in_the_moment_that_what_it_waits_for_is_set() -> None:
    async def steps(waits: list[Wait]) -> list[Any]:
        await in_loop()
        return [await wait for wait in waits]

    async def test() -> None:
        waits = [Wait(), Wait()]
        run = Noted(steps(waits))

        def turn() -> None:
            run.begin()
            waits[0].set(1)
            assert run.end is None
            waits[1].set(2)
            assert run.end == ([1, 2], None)

        await call(turn)
        assert run.end is not None

    asyncio.run(test())


def test_what_is_set_before_it_is_waited_for_is_not_waited_for() -> None:
    async def steps(wait: Wait) -> Any:
        return await wait

    async def test() -> None:
        wait = Wait()
        wait.set("now")
        run = Noted(steps(wait))
        await call(run.begin)
        assert run.end == ("now", None)
        assert await wait == "now"

    asyncio.run(test())


class WatchedError(Exception):
    """One that can be watched."""


def test_a_failure_is_raised_where_it_was_waited_for_and_leaves_no_cycle() -> None:
    async def steps(wait: Wait) -> str:
        try:
            await wait
        except WatchedError as error:
            return str(error)
        return ""

    async def test() -> None:
        wait = Wait()
        run = Noted(steps(wait))
        await call(run.begin)
        failure = WatchedError("no")
        watched = weakref.ref(failure)
        wait.fail(failure)
        del failure
        assert run.end is None  # only in the next turn: who fails it may be a coroutine
        await asyncio.sleep(0)
        assert run.end == ("no", None)
        assert watched() is None

    gc.disable()
    try:
        asyncio.run(test())
    finally:
        gc.enable()


def test_what_a_coroutine_raises_is_told() -> None:
    async def steps() -> None:
        raise KeyError("x")

    async def test() -> None:
        run = Noted(steps())
        await call(run.begin)
        assert run.end is not None
        assert isinstance(run.end[1], KeyError)

    asyncio.run(test())


def test_a_run_may_wait_for_futures_of_asyncio() -> None:
    async def steps() -> str:
        await asyncio.sleep(0.01)
        return "slept"

    async def test() -> None:
        run = Noted(steps())
        await call(run.begin)
        assert run.end is None
        await asyncio.sleep(0.05)
        assert run.end == ("slept", None)

    asyncio.run(test())


def test_who_needs_a_task_gets_one() -> None:
    async def steps() -> str:
        assert asyncio.current_task() is None
        await in_task()
        assert asyncio.current_task() is not None
        try:
            async with asyncio.timeout(0.01):
                await Wait()
        except TimeoutError:
            return "in time"
        return ""

    async def test() -> None:
        run = Noted(steps())
        await call(run.begin)
        await asyncio.sleep(0.05)
        assert run.end == ("in time", None)

    asyncio.run(test())


def test_steps_that_were_begun_in_another_thread_go_on_in_the_loop() -> None:
    async def steps(wait: Wait) -> Any:
        await in_loop()
        return await wait

    coroutine = steps(wait := Wait())
    assert coroutine.send(None) is None

    async def test() -> None:
        run = Noted(coroutine)
        await call(run.begin)
        await call(wait.set, 3)
        assert run.end == (3, None)

    asyncio.run(test())


def test_a_run_that_a_task_begins_is_a_task_of_its_own() -> None:
    async def steps() -> asyncio.Task[Any] | None:
        return asyncio.current_task()

    async def test() -> None:
        run = Noted(steps())
        run.begin()
        await asyncio.sleep(0.01)
        assert run.end is not None
        assert run.end[0] not in (None, asyncio.current_task())

    asyncio.run(test())


@pytest.mark.parametrize("reason", [None, "too late"])
def test_a_task_that_waits_can_be_cancelled(reason: str | None) -> None:
    async def steps(wait: Wait) -> None:
        await wait

    async def test() -> None:
        wait = Wait()
        task = asyncio.create_task(steps(wait))
        await asyncio.sleep(0)
        task.cancel(reason)
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert wait.is_done
        assert caught.value.args == (() if reason is None else (reason,))

    asyncio.run(test())


def test_an_end_that_cannot_be_told_does_not_stop_who_has_set_it() -> None:
    class Broken(Run):
        def ended(self, value: Any, error: BaseException | None) -> None:
            raise RuntimeError("broken")

    async def steps(wait: Wait) -> None:
        await wait

    async def test() -> None:
        reported: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, report: reported.append(report))
        wait = Wait()
        run = Broken(steps(wait))
        await call(run.begin)
        await call(wait.set, None)
        assert [str(report["exception"]) for report in reported] == ["broken"]

    asyncio.run(test())
