"""What directives answer whose data is in the zone store, while that cannot be used: a node must have DNS all the same.

Without a store, their zones are as if nothing of them had been read. In one that cannot be written, copies get old:
those that have `fallback` are passed over then, and others stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from kdns.corefile.config import ServerConfig
from kdns.plugins.chain import Next
from kdns.plugins.zones import Source
from kdns.wire import names, rr
from kdns.wire.message import Query, Response

_WHY = "there is no zone store"


def zones_of(name: str, options: Any) -> list[str]:
    """The zones of a directive for which nobody else is to be asked: all, but those of `secondary` with `fallback`."""
    match name:
        case "file":
            return [zone for each in options.files for zone in each.zones]
        case "secondary":
            return [zone for copy in options.copies if not copy.fallback for zone in copy.zones]
    return list(options.zones)


def can_fall_back(block: ServerConfig) -> bool:
    """Whether there are copies of zones in a server block that others can answer for."""
    options = block.plugins.get("secondary")
    return options is not None and any(source.fallback for source in options.sources(block))


def kept(sources: Sequence[Source]) -> list[Source]:
    """Those of a directive that are answered from a store that cannot be written."""
    return [source for source in sources if not source.fallback]


class Zones:
    """In the place of `file`, `auto` and `secondary`: as if nothing of their zones had been read yet."""

    def __init__(self, name: str, zones: Iterable[str]) -> None:
        self._name = name
        self._zones = names.zone_set(zones)

    async def __call__(self, query: Query, next: Next) -> Response:
        """SERVFAIL for what is in the zones, what the rest of the chain answers for all else."""
        if self._zones.find(query.lname):
            return Response(rcode=rr.SERVFAIL, plugin=self._name, error=_WHY)
        return await next(query)


class Transfers:
    """In the place of `transfer`."""

    async def __call__(self, query: Query, next: Next) -> Response:
        """SERVFAIL for transfers."""
        if query.type in (rr.AXFR, rr.IXFR):
            return Response(rcode=rr.SERVFAIL, plugin="transfer", error=_WHY)
        return await next(query)
