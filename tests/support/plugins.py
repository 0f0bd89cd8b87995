"""A plugin's handler without a server around it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import dns.message

from kdns.observe.counters import Region
from kdns.observe.logs import Log
from kdns.plugins.budget import Budget
from kdns.plugins.chain import Next
from kdns.plugins.site import Site
from kdns.wire import message, rr
from kdns.wire.message import Query, Response
from kdns.zone.changes import Changes

CLIENT = ("192.0.2.7", 40000)


class Lines(Log):
    """A log that keeps what is written."""

    def __init__(self, lines: list[str] | None = None, prefix: str = "", *, debug: bool = False) -> None:
        self.lines: list[str] = [] if lines is None else lines
        self._prefix = prefix
        self.debugging = debug

    def plugin(self, name: str) -> Log:
        return Lines(self.lines, f"plugin/{name}: ", debug=self.debugging)

    def raw(self, text: str) -> None:
        self.lines.append(text)

    def _say(self, level: str, text: str, key: str, kind: str = "") -> None:
        self.lines.append(f"[{level}] {self._prefix}{text}")


class Ground:
    """A Site, with what was logged and what was to run in the background."""

    def __init__(self, zones: tuple[str, ...] = (".",), ask: Next | None = None, *, debug: bool = False) -> None:
        self.log = Lines(debug=debug)
        self.region = Region.create()
        self.background: list[Coroutine[Any, Any, None]] = []
        asked = ask or self._nobody
        changes = Changes.create()
        self.site = Site(self.region, self.log, zones, "t0ken", asked, self.background.append, changes, Budget())

    async def _nobody(self, query: Query) -> Response:
        raise AssertionError(f"nobody was to be asked for {query.lname!r}")

    def value(self, kind: str, name: str, *labels: str) -> int | None:
        """The one cell of a series."""
        return self.region.read().get((kind, name, *labels), (None,))[0]


class Behind:
    """The rest of the chain; keeps the query that reached it."""

    def __init__(self, response: Response | None = None) -> None:
        self.response = response or Response(rcode=rr.REFUSED, plugin="behind")
        self.query: Query | None = None

    async def __call__(self, query: Query) -> Response:
        self.query = query
        return self.response


def query(name: str, rdtype: str = "A", client: tuple[str, int] = CLIENT, proto: str = "udp", **make: Any) -> Query:
    """A query as it is read from a client."""
    data = dns.message.make_query(name, rdtype, **make).to_wire()
    return message.parse(data, proto, client, ("192.0.2.1", 53), message.DEFAULT_UDP)


def answered(handler: object, asked: Query, behind: Next | None = None) -> Response:
    """What a handler answers in a loop of its own."""
    assert callable(handler)
    response = asyncio.run(handler(asked, behind or Behind()))
    assert isinstance(response, Response)
    return response


def read(asked: Query, response: Response) -> dns.message.Message:
    """The response as dnspython reads it."""
    return dns.message.from_wire(message.encode(asked, response).wire)
