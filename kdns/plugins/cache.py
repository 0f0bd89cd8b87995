"""cache: answers of other servers, kept for as long as they hold.

## Name

*cache* - keeps what *forward* brings, and answers from it.

## Description

An answer is kept for the least TTL of its records, and every record of it shows the seconds that are left. What does
not exist is kept as long as the SOA in the answer says (RFC 2308), a failure of the other server (SERVFAIL, NOTIMP)
for 5 seconds. Kept apart are name, type, class, the bits DO and CD of the query, and the EDNS options that *rewrite*
has other servers get. An answer that is truncated, that denies without an SOA, that has an expired signature for a
client who asked for signatures, or that does not answer the question is not kept, nor is a failure of a query without
RD.

Only what came from another server is kept. Answers that this server has itself (*kubernetes*, *hosts*, *template*)
pass, so that they are never old. Their TTLs are lowered to **TTL**, so that no client keeps them for longer.

All who ask for the same while it is not known yet wait for one query to the other server, which goes on if the first
of them hangs up. Each worker has a cache of its own. Where the control group of the processes has a memory limit, all
that a worker keeps stays within a part of what the limit leaves, whatever **CAPACITY** says.

## Syntax

```
cache [TTL] [ZONES...] {
    success CAPACITY [TTL] [MINTTL]
    denial CAPACITY [TTL] [MINTTL]
    prefetch AMOUNT [DURATION [PERCENTAGE%]]
    serve_stale [DURATION] [immediate [RESPONSE_TTL [FAILURE_RECHECK]]]
    serve_stale [DURATION] verify [VERIFY_TIMEOUT [RESPONSE_TTL [FAILURE_RECHECK]]]
    serve_stale_policy prefer_positive
    servfail DURATION
    disable success|denial [ZONES...]
    keepttl
}
```

* **TTL**: the longest time that an answer is kept, in seconds. Default: 3600, and 1800 for what does not exist.
* **ZONES**: the names that are kept are those at or below these zones; default: those of the server block.
* `success` and `denial`: how many answers are kept that have what was asked for, or that deny it: default 9984 each, at
  least 1024. Together they may take 1.25 KiB for each of **CAPACITY**. Where there is no room, those go that were not
  used for the longest time. **TTL** as above. **MINTTL**: the least time that an answer is kept, in seconds; default 5.
* `prefetch`: ask again for what is used often, before it ends: for what was asked for **AMOUNT** times with no pause of
  **DURATION** (default 1m) or longer, when **PERCENTAGE** (10% to 90%, default 10%) of its time is left, or a second.
  An **AMOUNT** of 0 is none.
* `serve_stale`: answer with what has ended, for another **DURATION** (default 1h), when there is nothing better.
  `immediate` (the default) does so at once and asks the other server for the next client. `verify` asks first, for no
  longer than **VERIFY_TIMEOUT** (default 0: as long as it takes), and answers so if that fails. Records show
  **RESPONSE_TTL** (whole seconds, default 0). After a failure nobody asks again for **FAILURE_RECHECK** (default 0, at
  most 5m). RFC 8767 recommends 30s for both. Failures are not served stale.
* `serve_stale_policy prefer_positive`: a kept answer with records is used, stale or not, although the other server has
  denied since that they exist.
* `servfail`: how long failures of the other server are kept: default 5s, at most 5m, 0 for not at all.
* `disable`: do not keep answers with records, or denials, for names at or below **ZONES** (default: all names). It may
  be repeated.
* `keepttl`: show the whole TTL for as long as an answer is kept, instead of what is left.

## Metrics

* `coredns_cache_entries{server, type, zones, view}`: answers that are kept; the type is `success` or `denial`
* `coredns_cache_requests_total{server, zones, view}`
* `coredns_cache_hits_total{server, type, zones, view}`, `coredns_cache_misses_total{server, zones, view}`
* `coredns_cache_prefetch_total{server, zones, view}`: queries to renew what is kept, by `prefetch` or `serve_stale`
* `coredns_cache_served_stale_total{server, zones, view}`
* `coredns_cache_evictions_total{server, type, zones, view}`: answers that had to go before their time

## Examples

```corefile
.:53 {
    cache 30
    whoami
}
```

As NodeLocal DNSCache has it for the cluster's names:

```corefile
cluster.local:53 {
    cache {
        success 9984 30
        denial 9984 5
    }
    whoami
}
```

Old answers for a day while upstreams are out of reach, and no negative ones below example.org:

```corefile
.:53 {
    cache {
        serve_stale 24h verify 500ms 30s 30s
        disable denial example.org
    }
    whoami
}
```

## Differences from CoreDNS

Hits keep the AA bit of the other server's answer; CoreDNS sets it. An NXDOMAIN at the end of a CNAME is kept, as RFC
2308 2.1 has it. An empty answer without an SOA is not kept. The TTL of a denial is not above the SOA's MINIMUM. The
newer of an answer and its denial replaces the other. A failure replaces nothing and is not served stale. One query
serves all who wait, with or without `serve_stale`; those with and without RD wait apart. Answers from this server's own
zones are not kept, nor is a TTL of theirs raised to **MINTTL**. **CAPACITY** is exact and bounds memory too, and what
goes is not up to chance. `coredns_cache_drops_total` does not exist: *forward* takes no answer to another question.

## See also

*forward*, *loadbalance*. RFC 2308 (negative answers), RFC 8767 (stale answers).
"""

from __future__ import annotations

import asyncio
import functools
import struct
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from math import ceil, inf
from typing import Any

from cachetools import LRUCache
from msgspec import structs

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.lexer import Token
from kdns.corefile.options import Reader
from kdns.errors import ConfigValueError, Mistake
from kdns.observe.counters import Region
from kdns.plugins.budget import Budget
from kdns.plugins.chain import Next, attempt, in_loop, in_task
from kdns.plugins.site import Site
from kdns.upstream.steps import Run, Wait
from kdns.wire import names, rr
from kdns.wire.message import CD, RD, Aging, Query, Response, passed_options
from kdns.wire.relay import Relay
from kdns.wire.rrset import RRset
from kdns.zone.changes import name_hash

NAME = "cache"
SITED = True
SUCCESS, DENIAL = "success", "denial"
DEFAULT_CAPACITY, MIN_CAPACITY = 9984, 1024
PER_ENTRY = 1280
"""Bytes that may be taken for each answer of the capacity, on average."""
OVERHEAD = 570
"""About what an entry takes beside its key, message and list of offsets, in bytes."""
PER_RECORD = 40
"""About what the offset of a record's TTL takes, in bytes."""
MAX_TTL = 2**31 - 1
_FIVE_MINUTES = 300.0
_KEY = struct.Struct("!HHB")
_SIGNATURE = struct.Struct("!II")
_NEVER = -inf


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one kind of answers. ttl, min_ttl: seconds. disabled: zones (lower case, last dot) that are not kept."""

    capacity: int
    ttl: int
    min_ttl: int = 5
    disabled: tuple[str, ...] = ()

    def clamp(self, ttl: int) -> int:
        """The seconds that an answer with this TTL is kept; the maximum overrules the minimum."""
        return min(max(ttl, self.min_ttl), self.ttl)


@dataclass(frozen=True, slots=True)
class Prefetch:
    """amount: of queries with no pause of `duration` seconds. percentage: of the TTL that is left."""

    amount: int
    duration: float = 60.0
    percentage: int = 10

    def threshold(self, ttl: int) -> int:
        """Seconds before its end from which on an answer is asked for again."""
        return ceil(ttl * self.percentage / 100)


@dataclass(frozen=True, slots=True)
class Stale:
    """What serve_stale says; all in seconds. verify_timeout: 0 for none."""

    duration: float = 3600.0
    verify: bool = False
    verify_timeout: float = 0.0
    response_ttl: int = 0
    recheck: float = 0.0
    prefer_positive: bool = False


@dataclass(frozen=True, slots=True)
class Options:
    """zones: lower case with the last dot; empty for the server block's. prefetch, stale: None without them."""

    zones: tuple[str, ...] = ()
    success: Limits = Limits(DEFAULT_CAPACITY, 3600)
    denial: Limits = Limits(DEFAULT_CAPACITY, 1800)
    prefetch: Prefetch | None = None
    stale: Stale | None = None
    servfail: float = 5.0
    keepttl: bool = False


def parse(directive: Directive, _block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    return _Parser(directive, mistakes).parse()


@dataclass(slots=True)
class _Parser:
    """Collects what the lines of the block say; `found` has arguments for Options."""

    directive: Directive
    mistakes: list[Mistake]
    reader: Reader = field(init=False)
    found: dict[str, Any] = field(default_factory=dict)
    disabled: dict[str, tuple[str, ...]] = field(default_factory=dict)
    policy: Token | None = None

    def parse(self) -> Options | None:
        self.reader = reader = Reader(self.directive, self.mistakes)
        success, denial = Options().success, Options().denial
        args = list(self.directive.args)
        if args and args[0].text.lstrip("+-").isdecimal():
            ttl = reader.value(args.pop(0), _ttl) or MAX_TTL
            success, denial = replace(success, ttl=ttl), replace(denial, ttl=ttl)
        zones = reader.zones(args)
        self.found = {SUCCESS: success, DENIAL: denial}
        known: dict[str, Callable[[Directive], None]] = {
            SUCCESS: self._limits,
            DENIAL: self._limits,
            "prefetch": self._prefetch,
            "serve_stale": self._serve_stale,
            "serve_stale_policy": self._policy,
            "servfail": self._servfail,
            "disable": self._disable,
            "keepttl": self._keepttl,
        }
        reader.options(known, repeatable=("disable",))
        if self.policy is not None:
            self._prefer_positive(self.policy)
        if not reader.sound:
            return None
        for kind, disabled in self.disabled.items():
            self.found[kind] = replace(self.found[kind], disabled=disabled)
        return Options(zones, **self.found)

    def _limits(self, item: Directive) -> None:
        kind = item.name.text
        args = self.reader.arguments(item, 1, 3, f"{kind} CAPACITY [TTL] [MINTTL]")
        readers: tuple[tuple[str, Callable[[str], int]], ...] = (
            ("capacity", lambda text: max(values.integer(text, 0, MAX_TTL), MIN_CAPACITY)),
            ("ttl", _ttl),
            ("min_ttl", lambda text: values.integer(text, 0, MAX_TTL)),
        )
        given = {name: self.reader.value(token, read) for token, (name, read) in zip(args, readers, strict=False)}
        self.found[kind] = replace(self.found[kind], **given)

    def _prefetch(self, item: Directive) -> None:
        args = self.reader.arguments(item, 1, 3, "prefetch AMOUNT [DURATION [PERCENTAGE%]]")
        readers: tuple[tuple[str, Callable[[str], float]], ...] = (
            ("amount", lambda text: values.integer(text, 0, MAX_TTL)),
            ("duration", values.duration),
            ("percentage", _percentage),
        )
        given: dict[str, Any] = {
            name: self.reader.value(token, read) for token, (name, read) in zip(args, readers, strict=False)
        }
        if given.get("amount"):
            self.found["prefetch"] = Prefetch(**given)

    def _serve_stale(self, item: Directive) -> None:
        usage = "serve_stale [DURATION] [immediate|verify ...]"
        args = list(self.reader.arguments(item, 0, 5, usage))
        given: dict[str, Any] = {}
        if args:
            given["duration"] = self.reader.value(args.pop(0), values.duration)
        if args:
            mode = self.reader.value(args.pop(0), lambda text: values.choice(text.lower(), ("immediate", "verify")))
            given["verify"] = mode == "verify"
        if args and given["verify"]:
            given["verify_timeout"] = self.reader.value(args.pop(0), values.duration)
        if args:
            given["response_ttl"] = self.reader.value(args.pop(0), _whole_seconds)
        if args:
            given["recheck"] = self.reader.value(args.pop(0), _up_to_five_minutes)
        for token in args:
            self.reader.refuse(token, f"cache: serve_stale has {values.shown(token.text)} too many", usage)
        self.found["stale"] = Stale(**given)

    def _policy(self, item: Directive) -> None:
        convert = functools.partial(_choice_of_any_case, known=("prefer_positive",))
        if self.reader.one(item, convert, "serve_stale_policy prefer_positive"):
            self.policy = item.name

    def _prefer_positive(self, policy: Token) -> None:
        if "stale" not in self.found:
            self.reader.refuse(policy, "cache: serve_stale_policy is nothing without serve_stale", "serve_stale")
        else:
            self.found["stale"] = replace(self.found["stale"], prefer_positive=True)

    def _servfail(self, item: Directive) -> None:
        self.found["servfail"] = self.reader.one(item, _up_to_five_minutes, "servfail DURATION")

    def _disable(self, item: Directive) -> None:
        args = self.reader.arguments(item, 1, None, "disable success|denial [ZONES...]")
        if args:
            kind = self.reader.value(args[0], lambda text: values.choice(text, (SUCCESS, DENIAL)))
            zones = self.reader.zones(args[1:]) if args[1:] else (".",)
            self.disabled[kind or ""] = self.disabled.get(kind or "", ()) + zones

    def _keepttl(self, item: Directive) -> None:
        self.reader.arguments(item, 0, 0, "keepttl")
        self.found["keepttl"] = True


def _ttl(text: str) -> int:
    return values.integer(text, 1, MAX_TTL)


def _percentage(text: str) -> int:
    if not text.endswith("%"):
        raise ConfigValueError(f"{values.shown(text)} is not a percentage", "10% to 90%")
    return values.integer(text[:-1], 10, 90)


def _choice_of_any_case(text: str, known: tuple[str, ...]) -> str:
    return values.choice(text.lower(), known)


def _whole_seconds(text: str) -> int:
    seconds = values.duration(text)
    if seconds != int(seconds) or seconds > MAX_TTL:
        raise ConfigValueError(f"{values.shown(text)} cannot be a TTL", "whole seconds, such as 30s")
    return int(seconds)


def _up_to_five_minutes(text: str) -> float:
    seconds = values.duration(text)
    if seconds > _FIVE_MINUTES:
        raise ConfigValueError(f"{values.shown(text)} is too long", "at most 5m")
    return seconds


class Item:
    """A response that is kept.

    kind: SUCCESS or DENIAL; failure: it is a DENIAL that says nothing of the name. ttl: whole seconds that it had at
    first. expires: when it ends. until: when `prefetch` may begin, else `expires`. size: about what it takes, in bytes.
    depends, seen: the names of our zones that had to be without an answer for it, and the generation at which they
    were. hits, last: how often it was asked for without a long pause, and when. refreshing: a query to renew it is
    under way in the background; retry: when the next may be sent. Times are those of the cache's clock.
    """

    __slots__ = (
        "clear_flags", "depends", "expires", "failure", "hits", "kind", "last", "recursion", "refreshing", "relay",
        "retry", "seen", "set_flags", "size", "ttl", "until",
    )  # fmt: skip

    def __init__(self, response: Response, relay: Relay, kind: str, failure: bool, seconds: float, now: float) -> None:
        """seconds: how long it is kept, more than 0."""
        self.relay = relay
        self.depends = response.depends
        self.seen = 0
        self.recursion = response.recursion
        self.set_flags = response.set_flags
        self.clear_flags = response.clear_flags
        self.kind = kind
        self.failure = failure
        self.ttl = ceil(seconds)
        self.until = self.expires = now + seconds
        self.size = OVERHEAD + len(relay.body) + PER_RECORD * len(relay.ttls)
        self.hits = 0
        self.last = _NEVER
        self.refreshing = False
        self.retry = _NEVER

    def left(self, now: float) -> int:
        """The TTL that it shows before it expires."""
        return min(self.ttl, ceil(self.expires - now))

    def asked(self, now: float, pause: float) -> None:
        """Note a query for it. pause: seconds without any after which the count starts again."""
        self.hits = self.hits + 1 if now - self.last <= pause else 1
        self.last = now


class _Kept:
    """Items of one kind, as many as fit. size: bytes of all. evicted: how many made room for others."""

    __slots__ = ("_items", "_most", "capacity", "evicted", "size")

    def __init__(self, capacity: int) -> None:
        self._items: LRUCache[bytes, Item] = LRUCache(capacity)
        self._most = capacity * PER_ENTRY
        self.capacity = capacity
        self.size = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._items)

    def has(self, key: bytes) -> bool:
        """Whether there is an item. Needs no lock."""
        return key in self._items

    def use(self, key: bytes) -> Item | None:
        """The item, which is the last one to go from now on."""
        return self._items.get(key)

    def put(self, key: bytes, item: Item) -> None:
        """Keep an item, in place of another one with this key, and evict what has no room any more."""
        self.drop(key)
        items = self._items
        while items and (len(items) >= self.capacity or self.size + item.size > self._most):
            self.evict()
        items[key] = item
        self.size += item.size

    def drop(self, key: bytes) -> None:
        """Forget an item, if it is there."""
        item = self._items.pop(key, None)
        if item is not None:
            self.size -= item.size

    def evict(self) -> int:
        """Let go what was not used for the longest time; returns its bytes, 0 if there is nothing."""
        if not self._items:
            return 0
        _, item = self._items.popitem()
        self.size -= item.size
        self.evicted += 1
        return item.size


class Items:
    """All that is kept, by key. Safe to use from several threads.

    What is over stays, unused, until its place is wanted: looking for it would cost more than it takes.
    """

    def __init__(self, options: Options, budget: Budget) -> None:
        stale = options.stale or Stale(0.0)
        self._prefer_positive = stale.prefer_positive
        self._longer = stale.duration
        self._lock = threading.Lock()
        self._success, self._denial = _Kept(options.success.capacity), _Kept(options.denial.capacity)
        self._kept = {SUCCESS: self._success, DENIAL: self._denial}
        self._budget = budget
        budget.join(self)

    @property
    def size(self) -> int:
        """About how many bytes all items take."""
        return self._success.size + self._denial.size

    def shed(self) -> int:
        """Evict of the kind that takes more what was not used for the longest time; returns its bytes."""
        with self._lock:
            return (self._success if self._success.size >= self._denial.size else self._denial).evict()

    def find(self, key: bytes, now: float) -> Item | None:
        """The item to answer with, which may have expired if `serve_stale` wants it.

        What has records comes before what denies.
        """
        for kept in (self._success, self._denial):
            if kept.has(key):
                with self._lock:
                    item = kept.use(key)
                if item is not None and now < item.expires + (0.0 if item.failure else self._longer):
                    return item
        return None

    def put(self, key: bytes, item: Item, now: float) -> bool:
        """Keep an item in place of what it makes invalid; False if what is there is better, as for a failure."""
        known = self.find(key, now)
        if known is not None:
            if item.failure and not known.failure:
                return False
            item.hits, item.last = known.hits, known.last
        kept = self._kept[item.kind]
        with self._lock:
            before = self.size
            if item.kind == SUCCESS:
                self._denial.drop(key)
            elif not self._prefer_positive:
                self._success.drop(key)
            kept.put(key, item)
            more = self.size - before
        self._budget.add(more)
        return True

    def claim(self, item: Item, now: float) -> bool:
        """Whether the caller is to renew the item in the background; then `item.refreshing` until that is over."""
        with self._lock:
            if item.refreshing or now < item.retry:
                return False
            item.refreshing = True
            return True

    def count(self, kind: str) -> tuple[int, int, int]:
        """Of one kind: items, about how many bytes they take, and how many were evicted so far."""
        kept = self._kept[kind]
        return len(kept), kept.size, kept.evicted


class _Counts:
    """Where the queries of one server are counted: indexes of cells."""

    __slots__ = ("cells", "entries", "evictions", "hits", "misses", "prefetches", "requests", "served", "stale")

    def __init__(self, region: Region, server: str, zones: str, view: str) -> None:
        def cell(name: str, kind: str = "", what: str = "count") -> int:
            typed = ("type", kind) if kind else ()
            return region.series(
                (what, f"coredns_cache_{name}", "server", server, *typed, "zones", zones, "view", view), 1
            )

        kinds = (SUCCESS, DENIAL)
        self.cells = region.cells
        self.requests = cell("requests_total")
        self.misses = cell("misses_total")
        self.prefetches = cell("prefetch_total")
        self.stale = cell("served_stale_total")
        self.hits = {kind: cell("hits_total", kind) for kind in kinds}
        self.evictions = {kind: cell("evictions_total", kind) for kind in kinds}
        self.entries = {kind: cell("entries", kind, "gauge") for kind in kinds}
        self.served = {kind: (self.requests, self.hits[kind]) for kind in kinds}


class _Flight(Run):
    """A query to the rest of the chain that several clients may wait for; used in the event loop only.

    query, key, way, counts: of the client for whom it began. seen: the generation of our zones before that. waiting:
    those who wait. response: when it has landed; failed: what was raised instead, until somebody has told of it. Both
    None: it has not landed, or was cancelled.
    """

    __slots__ = (
        "cancelled", "counts", "failed", "handler", "key", "query", "response", "seen", "told", "waiting", "way",
    )  # fmt: skip

    def __init__(
        self,
        handler: Handler,
        steps: Coroutine[Any, Any, Response],
        query: Query,
        key: bytes,
        way: bytes,
        counts: _Counts,
        seen: int,
    ) -> None:
        super().__init__(steps)
        self.handler = handler
        self.query = query
        self.key = key
        self.way = way
        self.counts = counts
        self.seen = seen
        self.waiting: list[Wait] = []
        self.response: Response | None = None
        self.failed: Exception | None = None
        self.cancelled = False
        self.told = False

    def wait(self) -> Wait:
        """To be awaited; who is cancelled harms no other."""
        wait = Wait()
        self.waiting.append(wait)
        if self.cancelled:
            wait.cancel()
        elif self.response is not None or self.failed is not None:
            wait.set(None)
        return wait

    def ended(self, value: Any, error: BaseException | None) -> None:
        """Keep what it brings, and let those who wait go on."""
        self.handler.land(self, value, error)
        for wait in self.waiting:
            if not wait.is_done:
                if self.cancelled:
                    wait.cancel()
                else:
                    wait.set(None)


def key_of(query: Query) -> bytes:
    """What an answer is kept under: name in lower case, type, class, DO and CD, and the options that are passed on."""
    bits = (query.flags & CD) | (query.edns is not None and query.edns.do)
    key: bytes = query.lname + _KEY.pack(query.type, query.klass, bits)
    return key + passed_options(query) if query.passed else key


def _flight_of(query: Query, key: bytes) -> bytes:
    """What a flight is found under.

    Without RD other servers may refuse, or refer elsewhere. A query behind CNAMEs that we follow is not to wait for one
    that began with fewer of them, which may be the one that waits for it.
    """
    return key + bytes((query.links, bool(query.flags & RD)))


class Handler:
    """Answers from what is kept, and keeps what it is answered."""

    __slots__ = (
        "_cells", "_clock", "_counts", "_disabled", "_everything", "_evicted", "_flights", "_items", "_keepttl",
        "_label", "_log", "_options", "_prefetching", "_recheck", "_site", "_wall", "_zones",
    )  # fmt: skip

    def __init__(
        self,
        options: Options,
        site: Site,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """To be called in the event loop that `site.background` uses, if there is one yet.

        clock: seconds, never going back, the same as the packet cache's. wall: for signatures, seconds since 1970.
        """
        zones = options.zones or site.zones
        self._options = options
        self._prefetching = options.prefetch
        self._keepttl = options.keepttl
        self._recheck = options.stale.recheck if options.stale is not None else 0.0
        self._site = site
        self._cells = site.region.cells
        self._log = site.log.plugin(NAME)
        self._clock = clock
        self._wall = wall
        self._everything = "." in zones
        self._zones = names.zone_set(zones)
        self._disabled = {
            SUCCESS: names.zone_set(options.success.disabled),
            DENIAL: names.zone_set(options.denial.disabled),
        }
        self._label = ",".join(zones)
        self._items = Items(options, site.budget)
        self._evicted = {SUCCESS: 0, DENIAL: 0}
        self._counts: dict[str, _Counts] = {}
        self._flights: dict[bytes, _Flight] = {}

    async def __call__(self, query: Query, next: Next) -> Response:
        """What is kept, or what the rest of the chain answers."""
        if not self._everything and self._zones.find(query.lname) is None:
            return await next(query)
        if query.type in (rr.AXFR, rr.IXFR):
            return await next(query)
        counts = self._counts.get(query.server) or self._count_for(query.server)
        key = key_of(query)
        now = self._clock()
        item = self._find(key, now, counts)
        if item is None:
            outcome = await self._ask(query, next, key, counts)
            if isinstance(outcome, Response):
                return outcome
            await outcome.wait()
            return self._landed(outcome, query) or await next(query)
        if now >= item.expires:
            return await self._stale(query, next, key, item, counts)
        if self._prefetching is not None:
            self._prefetch(self._prefetching, query, next, key, item, now, counts)
        return self._hit(item, now, counts)

    def passing(self, zone: bytes, server: str) -> tuple[int, ...] | None:
        """They are asked for and not there: what the server knows itself need not be kept here."""
        if not self._everything and self._zones.find(zone) is None:
            return None
        counts = self._counts.get(server) or self._count_for(server)
        return counts.requests, counts.misses

    @property
    def bounds(self) -> tuple[int, int]:
        """See Bounding."""
        return self._options.success.ttl, self._options.denial.ttl

    def _find(self, key: bytes, now: float, counts: _Counts) -> Item | None:
        """What is kept, and may have expired, counted as a hit or a miss."""
        item = self._items.find(key, now)
        if item is not None and item.depends and self._is_outdated(item):
            item = None
        cells, requests = counts.cells, counts.requests
        index = counts.misses if item is None else counts.hits[item.kind]
        cells[requests] += 1
        cells[index] += 1
        return item

    def _prefetch(
        self, prefetch: Prefetch, query: Query, next: Next, key: bytes, item: Item, now: float, counts: _Counts
    ) -> None:
        """Note that an item is asked for, and renew it if that is due."""
        item.asked(now, prefetch.duration)
        if now >= item.until and item.hits >= prefetch.amount:
            self._renew(query, next, key, item, counts)

    def _count_for(self, server: str) -> _Counts:
        counts = self._counts[server] = _Counts(self._site.region, server, self._label, self._site.view)
        return counts

    def _count(self, counts: _Counts, index: int) -> None:
        cells = counts.cells
        cells[index] += 1

    # Answers from what is kept

    def _hit(self, item: Item, now: float, counts: _Counts) -> Response:
        ttl = item.ttl if self._keepttl else item.left(now)
        return _answer(item, ttl, self._aging(item, counts) if now < item.until else None)

    def _aging(self, item: Item, counts: _Counts) -> Aging:
        asked: Callable[[], None] | None = None
        if self._prefetching is not None:
            asked = functools.partial(self._asked, item, self._prefetching.duration)
        return Aging(item.expires, item.until, not self._keepttl, self._cells, counts.served[item.kind], asked)

    def _asked(self, item: Item, pause: float) -> None:
        item.asked(self._clock(), pause)

    async def _stale(self, query: Query, next: Next, key: bytes, item: Item, counts: _Counts) -> Response:
        """An item that has expired, or better."""
        stale = self._options.stale or Stale()
        if not stale.verify:
            self._renew(query, next, key, item, counts)
        elif not (stale.recheck and (_flight_of(query, key) in self._flights or self._clock() < item.retry)):
            response = await self._verified(query, next, key, item, counts)
            if response is not None:
                return response
        self._count(counts, counts.stale)
        ttl = stale.response_ttl or (item.ttl if self._keepttl else 0)
        return _answer(item, ttl, None)

    async def _verified(self, query: Query, next: Next, key: bytes, item: Item, counts: _Counts) -> Response | None:
        """What the rest of the chain answers, if that comes in time and may replace a stale item."""
        stale = self._options.stale or Stale()
        outcome = await self._ask(query, next, key, counts)
        if isinstance(outcome, Response):
            return outcome if self._replaces(item, outcome) else None
        await in_task()
        try:
            async with asyncio.timeout(stale.verify_timeout or None):
                await outcome.wait()
        except TimeoutError:
            return None
        if outcome.response is None or not self._replaces(item, outcome.response):
            self._tell(outcome)
            return None
        return self._landed(outcome, query) or await next(query)

    def _replaces(self, item: Item, response: Response) -> bool:
        """Whether a stale item has been refreshed (RFC 8767 4: NOERROR and NXDOMAIN do)."""
        relay = response.relay
        if response.rcode not in (rr.NOERROR, rr.NXDOMAIN) or (relay is not None and relay.truncated):
            return False
        preferred = self._options.stale is not None and self._options.stale.prefer_positive and item.kind == SUCCESS
        return not preferred or relay is None or relay.answered

    # Asking

    async def _ask(self, query: Query, next: Next, key: bytes, counts: _Counts) -> Response | _Flight:
        """Ask the rest of the chain: its response if it does not wait, else the flight of all who wait for the key."""
        steps: Coroutine[Any, Any, Response] | None = None
        seen = self._site.changes.generation
        way = _flight_of(query, key)  # before `header` changes the query
        if way not in self._flights:
            steps = next(query)
            response = attempt(steps)
            if response is not None:
                return self._keep(query, response, key, counts, seen)
        await in_loop()
        outcome = self._flights.get(way) or self._meanwhile(key, counts)
        if outcome is None:
            return self._start(steps or next(query), query, key, way, counts, seen)
        if steps is not None:
            steps.close()
        return outcome

    def _meanwhile(self, key: bytes, counts: _Counts) -> Response | None:
        now = self._clock()
        item = self._items.find(key, now)
        if item is None or now >= item.expires or (item.depends and self._is_outdated(item)):
            return None
        return self._hit(item, now, counts)

    def _is_outdated(self, item: Item) -> bool:
        """Whether our zones may have an answer now to what fell through them (`fallthrough`)."""
        seen = self._site.changes.generation
        if self._have_changed(item.depends, item.seen):
            return True
        item.seen = seen
        return False

    def _have_changed(self, depends: tuple[bytes, ...], seen: int) -> bool:
        """Whether names may have changed since a generation of our zones."""
        _, hashes = self._site.changes.since(seen)
        return hashes is None or not set(map(name_hash, depends)).isdisjoint(hashes)

    def _start(
        self, steps: Coroutine[Any, Any, Response], query: Query, key: bytes, way: bytes, counts: _Counts, seen: int
    ) -> _Flight:
        flight = self._flights[way] = _Flight(self, steps, query, key, way, counts, seen)
        flight.begin()
        return flight

    def land(self, flight: _Flight, response: Response | None, error: BaseException | None) -> None:
        """Keep what a flight brings."""
        key = flight.key
        del self._flights[flight.way]
        if response is not None:
            try:
                flight.response = self._keep(flight.query, response, key, flight.counts, flight.seen)
            except Exception as raised:
                error = raised
        if isinstance(error, Exception):
            flight.failed = error
        elif error is not None:
            flight.cancelled = True
            return
        if self._recheck:
            now = self._clock()
            item = self._items.find(key, now)
            if item is not None and not (flight.response is not None and self._replaces(item, flight.response)):
                item.retry = now + self._recheck

    def _landed(self, flight: _Flight, query: Query) -> Response | None:
        """A flight's response for a query that has waited. The first to get it is the only one with its error.

        A response that is no relay belongs to the query that it answers, so that others ask for themselves (None),
        unless it failed. So does everyone if our zones may have an answer by now.
        """
        response = flight.response
        if response is not None and response.apart and query is not flight.query:
            return None
        first, flight.told = not flight.told, True
        if first:
            if flight.failed is not None:
                raise flight.failed
            if response is not None and not response.depends and len(flight.waiting) == 1:
                return response
        if response is None:
            return Response(rcode=rr.SERVFAIL)
        if response.depends and self._have_changed(response.depends, flight.seen):
            return None
        if first:
            return replace(response)
        if response.relay is None and response.rcode != rr.SERVFAIL:
            return None
        return replace(response, error="")

    def _renew(self, query: Query, next: Next, key: bytes, item: Item, counts: _Counts) -> None:
        """Ask for an item again in the background, unless that is being done. Called in any thread."""
        if not (query.flags & RD and self._items.claim(item, self._clock())):
            return
        self._count(counts, counts.prefetches)
        self._site.background(self._renewal(query, next, key, item, counts))

    async def _renewal(self, query: Query, next: Next, key: bytes, item: Item, counts: _Counts) -> None:
        try:
            seen = self._site.changes.generation
            way = _flight_of(query, key)
            flight = self._flights.get(way) or self._start(next(query), query, key, way, counts, seen)
            await flight.wait()
            self._tell(flight)
        finally:
            item.refreshing = False

    def _tell(self, flight: _Flight) -> None:
        """Log what a flight raised, where no client gets to know of it."""
        if flight.failed is not None and not flight.told:
            flight.told = True
            self._log.error(f"asking again failed: {flight.failed!r}", key=type(flight.failed).__name__)

    # Keeping

    def _keep(self, query: Query, response: Response, key: bytes, counts: _Counts, seen: int) -> Response:
        """The response with the TTL that it is kept for, after it was kept if it may be.

        seen: the generation of our zones before it was asked for.
        """
        relay = response.relay
        if relay is None:
            return self._bounded(response)
        verdict = self._verdict(query, relay)
        if verdict is None or response.apart:
            return response
        kind, failure, seconds = verdict
        response.ttl = ceil(seconds)
        if not seconds or self._disabled[kind].find(query.lname) or not self._holds(query, relay):
            return response
        now = self._clock()
        item = Item(response, relay, kind, failure, seconds, now)
        item.size += len(key)
        item.seen = seen
        if self._prefetching is not None:
            item.until = max(now, item.expires - self._prefetching.threshold(item.ttl))
        if self._items.put(key, item, now):
            response.cacheable = now < item.until
            response.aging = self._aging(item, counts) if response.cacheable else None
            self._report(counts)
        return response

    def _bounded(self, response: Response) -> Response:
        """An answer of our own, in which no TTL is above that for which another server's would be kept."""
        success, denial = self.bounds
        most = denial if response.rcode == rr.NXDOMAIN or not response.answer else success
        response.answer = _lowered(response.answer, most)
        response.authority = _lowered(response.authority, most)
        response.additional = _lowered(response.additional, most)
        return response

    def _verdict(self, query: Query, relay: Relay) -> tuple[str, bool, float] | None:
        """The kind of answer, whether it is a failure, and the seconds to keep it; None for what is not kept."""
        if relay.truncated:
            return None
        if relay.answered:
            return SUCCESS, False, self._options.success.clamp(relay.ttl)
        if relay.denial:
            return DENIAL, False, self._options.denial.clamp(min(relay.ttl, relay.negative_ttl))
        if relay.rcode in (rr.SERVFAIL, rr.NOTIMP) and query.flags & RD and self._options.servfail:
            return DENIAL, True, self._options.servfail
        return None

    def _holds(self, query: Query, relay: Relay) -> bool:
        """False if the client asked for signatures and one of them is not valid at this time (RFC 4034 3.1.5)."""
        if query.edns is None or not query.edns.do:
            return True
        now = int(self._wall())
        return all(_is_valid(relay.body, at, now) for at in relay.ttls)

    def _report(self, counts: _Counts) -> None:
        cells = counts.cells
        for kind, index in counts.entries.items():
            entries, _, evicted = self._items.count(kind)
            cells[index] = entries
            more = evicted - self._evicted[kind]
            if more:
                self._evicted[kind] = evicted
                index = counts.evictions[kind]
                cells[index] += more


def _lowered(section: list[tuple[bytes, RRset]], most: int) -> list[tuple[bytes, RRset]]:
    """A section with no TTL above one in seconds."""
    if all(rrset.ttl <= most for _, rrset in section):
        return section
    return [(owner, structs.replace(rrset, ttl=min(rrset.ttl, most))) for owner, rrset in section]


def _answer(item: Item, ttl: int, aging: Aging | None) -> Response:
    return Response(
        relay=item.relay,
        ttl=ttl,
        recursion=item.recursion,
        depends=item.depends,
        set_flags=item.set_flags,
        clear_flags=item.clear_flags,
        cacheable=aging is not None,
        aging=aging,
        plugin=NAME,
    )


def _is_valid(body: bytes, at: int, now: int) -> bool:
    """Whether a record is no RRSIG, or one at whose time it is now. at: offset of its TTL."""
    if body[at - 4 : at - 2] != b"\0\x2e":
        return True
    expiration, inception = _SIGNATURE.unpack_from(body, at + 14)
    return bool((expiration - now) % 2**32 < 2**31 and (now - inception) % 2**32 < 2**31)
