"""Answers from the store's zones, for the directives whose zones are data and no cluster: `file` and `auto`.

A directive has sources in the store. Which zones a source has is looked up again whenever one of them may have come or
gone, so that nobody has to tell a worker.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kdns.corefile.config import ServerConfig
from kdns.plugins import bind, view
from kdns.plugins.aliases import chase
from kdns.plugins.chain import Next
from kdns.plugins.site import Site
from kdns.wire import message, names, rr
from kdns.wire.message import LONGEST_CHAIN, Query, Response
from kdns.zone.lookup import ZoneView
from kdns.zone.reader import Reader


@dataclass(frozen=True, slots=True)
class Source:
    """What a directive's zones are kept under in the store.

    within: the only zones that are answered for, None for all that the source has. fallthrough: the zones in which what
    does not exist is passed on. All lower case, with their last dot.
    """

    id: str
    within: tuple[str, ...] | None = None
    fallthrough: tuple[str, ...] = ()


def source_id(name: str, block: ServerConfig, words: Iterable[str]) -> str:
    """What a directive's data is kept under: the same for the same words in the same server block after a restart."""
    bound = block.plugins.get(bind.NAME)
    binds = [token.text for one in bound.binds for token in one.wanted] if isinstance(bound, bind.Options) else []
    keys = [f"{key.scheme}://{key.zone}:{key.port}" for key in block.keys]
    views = [f"view {view.name_of(block)}"] if view.NAME in block.plugins else []
    text = " ".join((*sorted(keys), *sorted(binds), *words, *views))
    return f"{name}-{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()[:16]}"


class _Rules:
    """What a source's zones are answered for, and where they are not the end."""

    def __init__(self, source: Source) -> None:
        self.within = names.zone_set(source.within) if source.within is not None else None
        self.falls = names.zone_set(source.fallthrough)

    def covers(self, name: bytes) -> bool:
        return self.within is None or bool(self.within.find(name))


class Handler:
    """Answers from the zones that some sources have in the store."""

    def __init__(self, name: str, sources: Sequence[Source], store: Reader, site: Site) -> None:
        """name: the directive."""
        from kdns.zone.authority import Lookup  # the supervisor has this module, and answers nothing

        self._lookup = Lookup
        self._name = name
        self._rules = {source.id: _Rules(source) for source in sources}
        self._store = store
        self._ask = site.ask
        self._changes = site.changes
        self._floor = -1
        self._views: names.Zones[ZoneView] = names.Zones({})
        self._rules_of: Mapping[bytes, _Rules] = {}

    async def __call__(self, query: Query, next: Next) -> Response:
        """What the zones say, or what the rest of the chain answers."""
        floor = self._changes.floor
        with self._store as store:
            if floor != self._floor:
                self._list(store)
                self._floor = floor
            view = self._find(query)
            if view is not None:
                lookup = self._lookup(store, self._views, query, self._name)
                target = lookup.run(view)
        if view is None:
            return await next(query)
        response = lookup.response
        if (
            response.rcode == rr.NXDOMAIN
            and not response.answer
            and self._rules_of[view.origin].falls.find(query.lname)
        ):
            depends = response.depends
            response = await next(query)
            response.depends += depends
            return response
        if target is None or lookup.links >= LONGEST_CHAIN or query.type in (rr.CNAME, rr.ANY):
            return response
        followed = message.follow(query, target, lookup.links)
        return await chase(self._ask, followed, response, self._name, whole=True)

    def _list(self, store: Reader) -> None:
        """Look up which zones there are. Of two sources with the same zone the first one counts."""
        views: dict[bytes, ZoneView] = {}
        rules = {}
        zones = store.transaction().zones()
        for source in self._rules:
            for zone in zones:
                if zone.source == source and zone.origin not in views:
                    views[zone.origin] = ZoneView(zone.number, zone.origin)
                    rules[zone.origin] = self._rules[source]
        self._views, self._rules_of = names.Zones(views), rules

    def _find(self, query: Query) -> ZoneView | None:
        """The zone that answers: the longest one, but for DS, which is above the cut (RFC 4035 3.1.4.1)."""
        view = self._views.find(query.lname)
        if view is not None and query.type == rr.DS and view.origin == query.lname:
            view = self._views.find(names.parent(query.lname)) or view
        return view if view is not None and self._rules_of[view.origin].covers(query.lname) else None
