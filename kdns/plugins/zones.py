"""Answers from the store's zones, for the directives whose zones are data and no cluster: `file`, `auto`, `secondary`.

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
from kdns.zone.store import SYNCED


@dataclass(frozen=True, slots=True)
class Source:
    """What a directive's zones are kept under in the store.

    within: the only zones that are answered for, None for all that the source has. fallthrough: the zones in which what
    does not exist is passed on. All lower case, with their last dot. fallback: as long as a zone cannot be answered
    from, its names are passed on.
    """

    id: str
    within: tuple[str, ...] | None = None
    fallthrough: tuple[str, ...] = ()
    fallback: bool = False


def source_id(name: str, block: ServerConfig, words: Iterable[str]) -> str:
    """What a directive's data is kept under: the same for the same words in the same server block after a restart."""
    bound = block.plugins.get(bind.NAME)
    binds = [token.text for one in bound.binds for token in one.wanted] if isinstance(bound, bind.Options) else []
    keys = [f"{key.scheme}://{key.zone}:{key.port}" for key in block.keys]
    views = [f"view {view.name_of(block)}"] if view.NAME in block.plugins else []
    text = " ".join((*sorted(keys), *sorted(binds), *words, *views))
    return f"{name}-{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()[:16]}"


class Rules:
    """What a source's zones are answered for, and where they are not the end."""

    def __init__(self, source: Source) -> None:
        self.within = names.zone_set(source.within) if source.within is not None else None
        self.falls = names.zone_set(source.fallthrough)
        self.fallback = source.fallback

    def covers(self, name: bytes) -> bool:
        return self.within is None or bool(self.within.find(name))


class Handler:
    """Answers from the zones that some sources have in the store.

    name: the directive. views: the zones, as they were when `look` was called last. rules: theirs, by origin. last: no
    other plugin of the server block comes after it.
    """

    def __init__(self, name: str, sources: Sequence[Source], store: Reader, site: Site, *, last: bool) -> None:
        from kdns.zone.authority import Lookup  # the supervisor has this module, and answers nothing

        self._lookup = Lookup
        self.name = name
        self._sources = {source.id: Rules(source) for source in sources}
        self._store = store
        self._ask = site.ask
        self._last = last
        self._floor = -1
        self.views: names.Zones[ZoneView] = names.Zones({})
        self.rules: Mapping[bytes, Rules] = {}
        self._passed: frozenset[bytes] = frozenset()

    async def __call__(self, query: Query, next: Next) -> Response:
        """What the zones say, or what the rest of the chain answers; of names in none of them the last one knows that
        this server has nothing to do with them."""
        with self._store as store:
            self.look(store)
            view = self._find(query)
            passed = view is not None and view.origin in self._passed
            if view is not None and not passed:
                lookup = self._lookup(store, self.views, query, self.name, self._passed)
                target = lookup.run(view)
                falls = self.rules[view.origin].falls
        if view is None:
            return Response(rcode=rr.REFUSED) if self._last else await next(query)
        if passed:
            response = await next(query)
            response.depends += (query.lname,)  # whoever keeps it forgets it when the zone is there
            return response
        response = lookup.response
        if response.rcode == rr.NXDOMAIN and not response.answer and falls.find(query.lname):
            depends = response.depends
            response = await next(query)
            response.depends += depends
            return response
        if target is None or lookup.links >= LONGEST_CHAIN or query.type in (rr.CNAME, rr.ANY):
            return response
        followed = message.follow(query, target, lookup.links)
        return await chase(self._ask, followed, response, self.name, whole=True)

    def look(self, store: Reader) -> None:
        """Learn which zones there are, if that may have changed. The reader is entered."""
        if store.floor != self._floor:
            self._list(store)
            self._floor = store.floor

    def _list(self, store: Reader) -> None:
        """Look up which zones there are, and which are passed. Of two sources with a zone the first one counts.

        A zone that was there before keeps its view.
        """
        views: dict[bytes, ZoneView] = {}
        rules: dict[bytes, Rules] = {}
        passed = set()
        zones = store.transaction().zones()
        for source, its in self._sources.items():
            for zone in zones:
                if zone.source != source or zone.origin in views:
                    continue
                view = self.views.by_zone.get(zone.origin)
                if view is None or view.number != zone.number or self.rules[zone.origin] is not its:
                    view = ZoneView(zone.number, zone.origin)
                views[zone.origin] = view
                rules[zone.origin] = its
                if its.fallback and zone.state != SYNCED:
                    passed.add(zone.origin)
        self.views, self.rules, self._passed = names.Zones(views), rules, frozenset(passed)

    def _find(self, query: Query) -> ZoneView | None:
        """The zone that answers: the longest one, but for DS, which is above the cut (RFC 4035 3.1.4.1)."""
        view = self.views.find(query.lname)
        if view is not None and query.type == rr.DS and view.origin == query.lname:
            view = self.views.find(names.parent(query.lname)) or view
        return view if view is not None and self.rules[view.origin].covers(query.lname) else None
