"""How the plugins of a server block follow each other.

A handler is called with the query and with what comes after it, and returns a response, its own or that of the next.
It is a coroutine so that it may wait, but one that does not wait is run to its end right where the query was read,
without an event loop. A handler that is about to wait for anything says `await in_task()` first.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator, Iterable
from typing import Any, Protocol, TypeAlias

from kdns.wire.message import Query, Response

Next: TypeAlias = Callable[[Query], Coroutine[Any, Any, Response]]
"""The rest of the chain."""


class Handler(Protocol):
    """A plugin that takes part in answering queries."""

    async def __call__(self, query: Query, next: Next) -> Response:
        """Answer the query, or pass it on by `await next(query)`."""
        ...


@types.coroutine
def in_task() -> Generator[None, None, None]:
    """Go on in a task of the event loop, where futures can be awaited. Costs nothing if that is so already."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    if task is None:
        yield


def attempt(steps: Coroutine[Any, Any, Response]) -> Response | None:
    """What the rest of the chain answers, if it can do so without waiting.

    None if it has to wait, or may wait as this is a task already: then it goes on as a task of its own,
    `asyncio.create_task(steps)`, or is dropped by `steps.close()`.
    """
    try:
        if asyncio.current_task() is not None:
            return None
    except RuntimeError:
        pass
    try:
        steps.send(None)
    except StopIteration as end:
        response: Response = end.value
        return response
    return None


def link(handlers: Iterable[Handler], last: Next) -> Next:
    """The chain of these handlers, ending in `last`."""
    chain = last
    for handler in reversed(list(handlers)):
        chain = _bind(handler, chain)
    return chain


def _bind(handler: Handler, following: Next) -> Next:
    def call(query: Query) -> Coroutine[Any, Any, Response]:
        return handler(query, following)

    return call
