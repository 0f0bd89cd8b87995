"""How the plugins of a server block follow each other.

A handler is called with the query and with what comes after it, and returns a response, its own or that of the next.
It is a coroutine so that it may wait, but one that does not wait is run to its end right where the query was read,
without an event loop. A handler that is about to wait for anything says `await in_loop()` first, or `await in_task()`.
"""

from __future__ import annotations

from asyncio import _get_running_loop
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from kdns.upstream.steps import in_loop, in_task
from kdns.wire.message import Query, Response

if TYPE_CHECKING:
    from kdns.plugins.zones import Rules
    from kdns.wire import names
    from kdns.zone.lookup import ZoneView
    from kdns.zone.reader import Reader

__all__ = [
    "Bounding", "Completing", "Handler", "Next", "Provider", "Transparent", "Zoned", "attempt", "in_loop", "in_task",
    "link",
]  # fmt: skip

Next: TypeAlias = Callable[[Query], Coroutine[Any, Any, Response]]
"""The rest of the chain."""


class Handler(Protocol):
    """A plugin that takes part in answering queries."""

    async def __call__(self, query: Query, next: Next) -> Response:
        """Answer the query, or pass it on by `await next(query)`."""
        ...


@runtime_checkable
class Transparent(Protocol):
    """A handler that lets some answers pass: authoritative ones with at most one record, of a usual type, that it does
    not make, change or keep. They need not go through the chain then (`kdns.server.direct`).
    """

    def passing(self, zone: bytes, server: str) -> tuple[int, ...] | None:
        """The cells that each of them for a name in a zone (lower case), on a server, raises by one; None if it does
        more there."""
        ...


@runtime_checkable
class Bounding(Protocol):
    """A handler that lowers TTLs of what it lets pass."""

    @property
    def bounds(self) -> tuple[int, int]:
        """The greatest TTL of a record that there is, in seconds, and of one that says what there is not."""
        ...


@runtime_checkable
class Provider(Protocol):
    """A handler that knows more of queries (`metadata`), under labels that begin with its directive and a slash."""

    def is_of_the_name(self, label: str) -> bool:
        """Whether the value of a label, without its beginning, is the same for all queries for a name."""
        ...

    def fact(self, label: str, name: bytes, client: str) -> str:
        """Its value for a query for a name (lower case) of a client, an address; empty if there is none."""
        ...


@runtime_checkable
class Completing(Protocol):
    """A handler that may put another answer in the place of one that says that a name does not exist."""

    def completes(self, zone: bytes) -> bool:
        """Whether it may do so for a name in a zone (lower case)."""
        ...


@runtime_checkable
class Zoned(Protocol):
    """A handler that answers from zones of the store that come and go (`kdns.plugins.zones`)."""

    name: str
    views: names.Zones[ZoneView]
    rules: Mapping[bytes, Rules]

    def look(self, store: Reader) -> None:
        """Learn which zones there are now."""
        ...


def attempt(steps: Coroutine[Any, Any, Response]) -> Response | None:
    """What the rest of the chain answers, if it can do so without waiting.

    None if it has to wait, or may wait as this is the event loop already: then it goes on as a Run or a task of its
    own, or is dropped by `steps.close()`.
    """
    if _get_running_loop() is not None:
        return None
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
