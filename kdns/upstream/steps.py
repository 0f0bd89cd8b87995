"""Coroutines that wait without a task of asyncio's, of which each query would need two.

A `Run` drives a coroutine in the event loop. Mostly it waits for a `Wait`, and goes on in the moment that this is set,
not in the loop's next turn. It may wait for futures of asyncio's too. What needs a task, as `asyncio.timeout` does, is
to say `await in_task()` first: from there on there is one.

A coroutine may take its first steps in any thread, without an event loop; before it waits for anything it has to say
`await in_loop()`.
"""

from __future__ import annotations

import asyncio
from asyncio import _get_running_loop, current_task
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context
from typing import Any


class _InLoop:
    def __await__(self) -> Generator[None, None, None]:
        if _get_running_loop() is None:
            yield


class _InTask:
    def __await__(self) -> Generator[None, None, None]:
        while _get_running_loop() is None or current_task() is None:
            yield


_IN_LOOP, _IN_TASK = _InLoop(), _InTask()


def in_loop() -> Awaitable[None]:
    """Go on in the event loop, where one can wait. Costs little if that is so already."""
    return _IN_LOOP


def in_task() -> Awaitable[None]:
    """Go on in a task of the event loop. Costs little if that is so already."""
    return _IN_TASK


class Wait:
    """What one coroutine waits for, in a Run or in a task. To be used in the event loop only.

    is_done: it is set, has failed, or was cancelled by the task that waited.
    """

    __slots__ = ("_asyncio_future_blocking", "_call", "_context", "_error", "_run", "_value", "is_done")

    def __init__(self) -> None:
        self.is_done = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._run: Run | None = None
        self._call: Callable[[Wait], object] | None = None
        self._context: Context | None = None
        self._asyncio_future_blocking = False

    def set(self, value: Any) -> None:
        """Let who waits go on with a value: a Run at once, so that this is not to be called by a coroutine."""
        self.is_done = True
        self._value = value
        run = self._run
        if run is not None:
            self._run = None
            run.go_on()
        elif self._call is not None:
            self._wake()

    def fail(self, error: BaseException) -> None:
        """Let who waits go on with an exception, in the loop's next turn."""
        self.is_done = True
        self._error = error
        run, self._run = self._run, None
        if run is not None:
            asyncio.get_running_loop().call_soon(run.go_on)
        elif self._call is not None:
            self._wake()

    def _wake(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            asyncio.get_running_loop().call_soon(call, self, context=self._context)

    def wake(self, run: Run) -> None:
        """Have a Run go on when this is done, which it is not yet."""
        self._run = run

    def __await__(self) -> Generator[Any, None, Any]:
        if not self.is_done:
            self._asyncio_future_blocking = True
            yield self
        if self._error is not None:
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error  # its traceback has this frame
        return self._value

    # What a task of asyncio's wants of a future

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The running one."""
        return asyncio.get_running_loop()

    def add_done_callback(self, call: Callable[[Wait], object], *, context: Context | None = None) -> None:
        """Have a task go on when this is done."""
        self._call = call
        self._context = context
        if self.is_done:
            self._wake()

    def result(self) -> Any:
        """The value; raises what it failed with, which is raised again in the coroutine."""
        if self._error is not None:
            raise self._error
        return self._value

    def cancel(self, msg: object = None) -> bool:
        """The task is cancelled; False if this is done."""
        if self.is_done:
            return False
        self.fail(asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg))
        return True


class Run:
    """A coroutine on its way to its end, of which `ended` is told. To be kept by who wants it to get there."""

    __slots__ = ("_steps", "_task")

    def __init__(self, steps: Coroutine[Any, Any, Any]) -> None:
        """steps: new, or with its first steps taken."""
        self._steps = steps
        self._task: asyncio.Task[Any] | None = None

    def begin(self) -> None:
        """Take the steps up to the first wait. Called by a task, they become one of their own."""
        if current_task() is None:
            self.go_on()
        else:
            self._become_task()

    def go_on(self) -> None:
        """Take the steps up to the next wait, or to the end. Not to be called by a task."""
        value: Any = None
        error: BaseException | None = None
        try:
            waited = self._steps.send(None)
        except StopIteration as end:
            value = end.value
        except (Exception, asyncio.CancelledError) as raised:
            error = raised
        else:
            self.wait_for(waited)
            return
        self._end(value, error)

    def wait_for(self, waited: Any) -> None:
        """Go on when that is done which the last step has given."""
        if isinstance(waited, Wait):
            waited.wake(self)
        elif waited is None:
            self._become_task()
        else:
            waited._asyncio_future_blocking = False
            waited.add_done_callback(self._woken)

    def _woken(self, _: asyncio.Future[Any]) -> None:
        self.go_on()

    def _become_task(self) -> None:
        self._task = task = asyncio.get_running_loop().create_task(self._steps)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        self._task = None
        if task.cancelled():
            self._end(None, asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self._end(None, error)
        else:
            self._end(task.result(), None)

    def _end(self, value: Any, error: BaseException | None) -> None:
        try:
            self.ended(value, error)
        except Exception as raised:
            report = {"message": "a coroutine has ended and nobody could be told", "exception": raised}
            asyncio.get_running_loop().call_exception_handler(report)

    def ended(self, value: Any, error: BaseException | None) -> None:
        """Called once, with what the coroutine has returned or raised; CancelledError if it was cancelled."""
        raise NotImplementedError
