"""What `cache` keeps, for how long, and who asks for it again. Time is a number that the tests set."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import random
import struct
import threading
import tracemalloc
import warnings
import weakref
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.errors import ConfigError
from kdns.observe.counters import Region
from kdns.observe.logs import Log, Sink
from kdns.plugins import cache, loads
from kdns.plugins.budget import Budget
from kdns.plugins.cache import DENIAL, SUCCESS, Handler, Item, Items, Limits, Options, Prefetch, Stale
from kdns.plugins.chain import in_task
from kdns.plugins.site import Site
from kdns.wire import message, relay, rr
from kdns.wire.message import Query, Response
from kdns.wire.rrset import RRset
from kdns.zone.changes import Changes, name_hash

T = TypeVar("T")
Answer: TypeAlias = Callable[[Query], Response]
START = 1_000_000.25
NAME = "www.example.com."
SOA = "example.com. {} IN SOA ns.example.com. hostmaster.example.com. 1 7200 1800 86400 {}"


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


def asked(
    name: str = NAME, rdtype: str = "A", *, do: bool = False, flags: int = dns.flags.RD, proto: str = "udp"
) -> Query:
    wire = dns.message.make_query(name, rdtype, want_dnssec=do, flags=flags).to_wire()
    query = message.parse(wire, proto, ("127.0.0.1", 5353), ("127.0.0.1", 53), message.DEFAULT_UDP)
    query.server = "dns://:53"
    return query


def answered(
    query: Query,
    *records: str,
    authority: tuple[str, ...] = (),
    rcode: str = "NOERROR",
    flags: int = 0,
    error: str = "",
) -> Response:
    """What another server says to a query. records: "name ttl IN type data"."""
    reply = dns.message.make_response(dns.message.from_wire(query.data), recursion_available=True)
    reply.set_rcode(dns.rcode.from_text(rcode))
    reply.flags |= flags
    for section, texts in ((reply.answer, records), (reply.authority, authority)):
        for text in texts:
            name, ttl, klass, rdtype, data = text.split(" ", 4)
            rrset = dns.rrset.from_text(name, int(ttl), klass, rdtype, data)
            section.append(rrset)
    body = relay.read(reply.to_wire(), message.question(query))
    return Response(relay=body, recursion=True, plugin="forward", error=error)


def positive(ttl: int = 300) -> Answer:
    return lambda query: answered(query, f"{NAME} {ttl} IN A 192.0.2.1")


def nxdomain(ttl: int = 300, minimum: int = 300) -> Answer:
    return lambda query: answered(query, authority=(SOA.format(ttl, minimum),), rcode="NXDOMAIN")


def servfail(query: Query) -> Response:
    return answered(query, rcode="SERVFAIL")


def ours(query: Query) -> Response:
    return Response(answer=[(query.lname, RRset(rr.A, 5, (b"\x0a\0\0\1",)))], plugin="kubernetes")


A300 = positive()


class Upstream:
    """The rest of the chain. It answers at once, or waits for `go`."""

    def __init__(self, answer: Answer, *, waits: bool = False) -> None:
        self.answer = answer
        self.waits = waits
        self.go = asyncio.Event()
        self.queries: list[Query] = []

    async def __call__(self, query: Query) -> Response:
        if self.waits:
            await in_task()
        self.queries.append(query)
        if self.waits:
            await self.go.wait()
        return self.answer(query)


def _close(*fds: int) -> None:
    for fd in fds:
        os.close(fd)


class Place:
    """A handler with all that it needs, and what it did."""

    def __init__(self, options: Options | None = None, zones: tuple[str, ...] = (".",)) -> None:
        self.clock = Clock()
        self.region = Region.create()
        self.later: list[Coroutine[Any, Any, None]] = []
        reader, self.writer = os.pipe()
        self.output = reader
        weakref.finalize(self, _close, reader, self.writer)
        self.log = Log(Sink(self.writer))
        self.budget = Budget()
        self.site = Site(
            self.region, self.log, zones, "", Upstream(A300), self._background, Changes.create(), self.budget
        )
        self.upstream = Upstream(A300)
        self.wall = 1_700_000_000.0
        self.handler = Handler(options or Options(), self.site, self.clock, lambda: self.wall)

    def _background(self, steps: Coroutine[Any, Any, None]) -> None:
        self.later.append(steps)

    def respond(self, query: Query | None = None) -> Response:
        """The handler's response, where nothing has to wait."""
        return at_once(self.handler(query or asked(), self.upstream))

    def reply(self, query: Query | None = None) -> dns.message.Message:
        """The same as the client gets it."""
        query = query or asked()
        return dns.message.from_wire(message.encode(query, self.respond(query)).wire)

    def run_later(self) -> None:
        """Do what was left to the event loop."""

        async def run() -> None:
            while self.later:
                await self.later.pop(0)

        asyncio.run(run())

    def count(self, name: str, **labels: str) -> int:
        wanted = {"server": "dns://:53", "view": "", **labels}
        return sum(
            cells[0]
            for key, cells in self.region.read().items()
            if key[1] == f"coredns_cache_{name}"
            and wanted.items() <= dict(zip(key[2::2], key[3::2], strict=True)).items()
        )


def at_once(steps: Coroutine[Any, Any, T]) -> T:
    try:
        steps.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    steps.close()
    raise AssertionError("it waits")


def ttls(reply: dns.message.Message) -> set[int]:
    return {rrset.ttl for section in (reply.answer, reply.authority, reply.additional) for rrset in section}


def made(options: Options | None = None, *, answer: Answer = A300, **more: Any) -> Place:
    found = Place(options, **more)
    found.upstream.answer = answer
    return found


def parsed(line: str) -> Options:
    options: Options = loads(f"cluster.local 10.0.0.0/16 {{\n{line}\n}}").blocks[0].plugins["cache"]
    return options


# What is kept


def test_the_least_ttl_rules_and_every_record_shows_what_is_left_of_it() -> None:
    place = made(
        answer=lambda query: answered(
            query,
            f"{NAME} 300 IN CNAME a.example.com.",
            "a.example.com. 60 IN A 192.0.2.1",
            authority=("com. 900 IN NS a.",),
        )
    )
    seen = []
    for elapsed in (0, 0.5, 1, 29.9, 30, 59.9):
        place.clock.now = START + elapsed
        (ttl,) = ttls(place.reply())
        seen.append(ttl)
    assert seen == [60, 60, 59, 31, 30, 1]
    assert len(place.upstream.queries) == 1
    place.clock.now = START + 60
    assert ttls(place.reply()) == {60}
    assert len(place.upstream.queries) == 2


def test_a_hit_is_what_the_other_server_sent() -> None:
    place = made(answer=lambda query: answered(query, f"{NAME} 300 IN A 192.0.2.1", flags=dns.flags.AA))
    first, second = place.reply(asked(do=True)), place.reply(asked("WwW.ExAmPlE.cOm.", do=True))
    assert first.answer == second.answer
    assert first.flags == second.flags == dns.flags.QR | dns.flags.AA | dns.flags.RD | dns.flags.RA
    assert second.question[0].name.to_text() == "WwW.ExAmPlE.cOm."
    assert len(place.upstream.queries) == 1
    assert place.respond(asked(do=True)).plugin == "cache"


@pytest.mark.parametrize(
    ("options", "ttl", "shown"),
    [
        (Options(), 100_000, 3600),
        (Options(), 1, 5),
        (Options(), 0, 5),
        (Options(), 0x80000001, 5),
        (Options(success=Limits(1024, 30)), 100, 30),
        (Options(success=Limits(1024, 30, 20)), 10, 20),
        (Options(success=Limits(1024, 2, 5)), 10, 2),
    ],
)
def test_ttls_are_within_the_limits_from_the_first_answer_on(options: Options, ttl: int, shown: int) -> None:
    place = made(options, answer=positive(ttl))
    assert [ttls(place.reply()), ttls(place.reply())] == [{shown}, {shown}]
    assert len(place.upstream.queries) == 1


def test_a_ttl_of_0_is_not_kept_where_the_least_time_is_0() -> None:
    place = made(Options(success=Limits(1024, 30, 0)), answer=positive(0))
    assert not place.respond().cacheable
    assert ttls(place.reply()) == {0}
    assert len(place.upstream.queries) == 2


@pytest.mark.parametrize(
    ("ttl", "minimum", "shown"), [(300, 60, 60), (60, 300, 60), (90_000, 90_000, 1800), (0, 0, 5), (60, 0xFFFFFFFF, 5)]
)
def test_a_denial_is_kept_as_long_as_the_soa_says(ttl: int, minimum: int, shown: int) -> None:
    place = made(answer=nxdomain(ttl, minimum))
    assert [ttls(place.reply()), ttls(place.reply())] == [{shown}, {shown}]
    place.clock.now += shown
    place.reply()
    assert len(place.upstream.queries) == 2


def test_no_data_is_a_denial_too() -> None:
    alias = f"{NAME} 300 IN CNAME a.example.com."
    place = made(answer=lambda query: answered(query, alias, authority=(SOA.format(60, 60),)))
    place.respond()
    place.respond()
    assert place.count("hits_total", type="denial") == 1
    assert place.count("entries", type="denial") == 1


@pytest.mark.parametrize(
    "answer",
    [
        lambda query: answered(query, rcode="NXDOMAIN"),
        lambda query: answered(query),
        lambda query: answered(query, authority=("example.com. 300 IN NS ns.example.com.",)),
        lambda query: answered(query, f"{NAME} 300 IN CNAME a.example.com."),
        lambda query: answered(query, f"{NAME} 300 IN A 192.0.2.1", flags=dns.flags.TC),
        lambda query: answered(query, rcode="REFUSED"),
        lambda query: answered(query, rcode="FORMERR"),
        ours,
        lambda query: Response(rcode=rr.SERVFAIL, error="no upstream"),
    ],
    ids=["no soa", "nothing", "referral", "half a chain", "truncated", "refused", "formerr", "ours", "no upstream"],
)
def test_what_is_no_answer_to_keep_passes(answer: Answer) -> None:
    place = made(answer=answer)
    for _ in range(2):
        response = place.respond()
        assert (response.cacheable, response.aging, response.ttl) == (False, None, None)
    assert len(place.upstream.queries) == 2
    assert place.count("misses_total") == 2


@pytest.mark.parametrize("rcode", ["SERVFAIL", "NOTIMP"])
def test_a_failure_is_kept_for_5_seconds(rcode: str) -> None:
    place = made(answer=lambda query: answered(query, rcode=rcode))
    for elapsed in (0, 4.9, 5):
        place.clock.now = START + elapsed
        assert place.respond().rcode == dns.rcode.from_text(rcode)
    assert len(place.upstream.queries) == 2


def test_how_long_failures_are_kept_can_be_said() -> None:
    for seconds, after, queries in ((0.5, 0.4, 1), (0.5, 0.5, 2), (60, 59, 1), (0, 0, 2)):
        place = made(Options(servfail=seconds), answer=servfail)
        place.respond()
        place.clock.now += after
        place.respond()
        assert len(place.upstream.queries) == queries


def test_without_rd_what_is_kept_is_answered_and_no_failure_is_kept() -> None:
    place = made(answer=servfail)
    assert place.respond(asked(flags=0)).rcode == rr.SERVFAIL
    place.upstream.answer = positive()
    assert place.respond().rcode == rr.NOERROR
    place.upstream.answer = servfail
    assert place.respond(asked(flags=0)).rcode == rr.NOERROR
    assert len(place.upstream.queries) == 2


def test_those_with_and_without_rd_do_not_wait_for_each_other() -> None:
    async def run() -> None:
        place = made(answer=lambda query: servfail(query) if not query.flags & dns.flags.RD else positive()(query))
        place.upstream.waits = True
        plain = asyncio.create_task(place.handler(asked(flags=0), place.upstream))
        usual = asyncio.create_task(place.handler(asked(), place.upstream))
        await asyncio.sleep(0)
        place.upstream.go.set()
        assert ((await plain).rcode, (await usual).rcode) == (rr.SERVFAIL, rr.NOERROR)

    asyncio.run(run())


def test_name_type_do_and_cd_are_kept_apart() -> None:
    place = made(answer=lambda query: answered(query, f"{NAME} 300 IN {rr.type_text(query.type)} {DATA[query.type]}"))
    queries = [
        asked(),
        asked(rdtype="AAAA"),
        asked(do=True),
        asked(flags=dns.flags.RD | dns.flags.CD),
        asked(do=True, flags=dns.flags.RD | dns.flags.CD),
    ]
    for query in queries * 2:
        place.respond(query)
    assert len(place.upstream.queries) == len(queries)
    assert len({cache.key_of(query) for query in queries}) == len(queries)


DATA = {rr.A: "192.0.2.1", rr.AAAA: "2001:db8::1"}


def test_a_key_tells_classes_and_types_apart_whose_bytes_are_letters() -> None:
    upper, lower, chaos = asked(rdtype="TYPE65"), asked(rdtype="TYPE97"), asked(rdtype="TYPE65")
    chaos.klass = rr.CH
    assert len({cache.key_of(query) for query in (upper, lower, chaos)}) == 3


def test_only_names_of_its_zones_are_kept() -> None:
    place = made(Options(zones=("org.",)))
    place.respond()
    place.respond()
    assert len(place.upstream.queries) == 2
    assert place.count("requests_total") == 0
    place = made(zones=("example.com.", "org."))
    place.respond()
    place.respond()
    assert len(place.upstream.queries) == 1
    assert place.count("requests_total", zones="example.com.,org.") == 2


@pytest.mark.parametrize(("zone", "queries"), [(".", 2), ("example.com.", 2), ("org.", 1), ("ample.com.", 1)])
def test_answers_and_denials_are_not_kept_where_that_is_disabled(zone: str, queries: int) -> None:
    place = made(Options(success=Limits(1024, 3600, disabled=(zone,))))
    place.respond()
    place.respond()
    assert len(place.upstream.queries) == queries
    place = made(Options(denial=Limits(1024, 3600, disabled=(zone,))), answer=nxdomain())
    place.respond()
    place.respond()
    assert len(place.upstream.queries) == queries
    place = made(Options(denial=Limits(1024, 3600, disabled=(zone,))))
    place.respond()
    place.respond()
    assert len(place.upstream.queries) == 1


def test_keepttl_shows_the_whole_ttl_until_the_end() -> None:
    place = made(Options(keepttl=True), answer=positive(60))
    for elapsed in (0, 30, 59.9):
        place.clock.now = START + elapsed
        response = place.respond()
        assert response.ttl == 60
        assert response.aging is not None
        assert not response.aging.counts_down
    place.clock.now = START + 60
    place.respond()
    assert len(place.upstream.queries) == 2


def signed(query: Query, inception: int, expiration: int) -> Response:
    times = f"{expiration % 2**32} {inception % 2**32}"
    return answered(query, f"{NAME} 300 IN A 192.0.2.1", f"{NAME} 300 IN RRSIG A 8 3 300 {times} 1 example.com. AAAA")


@pytest.mark.parametrize(("inception", "expiration", "queries"), [(-10, 10, 1), (-20, -10, 2), (10, 20, 2)])
def test_an_expired_signature_is_not_kept_for_who_asks_for_signatures(
    inception: int, expiration: int, queries: int
) -> None:
    place = made()
    now = int(place.wall)
    place.upstream.answer = lambda query: signed(query, now + inception, now + expiration)
    place.respond(asked(do=True))
    place.respond(asked(do=True))
    assert len(place.upstream.queries) == queries
    place.respond()
    place.respond()
    assert len(place.upstream.queries) == queries + 1


def test_what_plugins_behind_it_said_of_the_header_is_kept() -> None:
    def changed(query: Query) -> Response:
        response = positive()(query)
        response.set_flags, response.clear_flags, response.recursion = message.AA, message.RA, False
        return response

    place = made(answer=changed)
    first, second = place.respond(), place.respond()
    for response in (first, second):
        assert (response.set_flags, response.clear_flags, response.recursion) == (message.AA, message.RA, False)


# What the packet cache is told


def test_the_packet_cache_may_answer_until_the_end() -> None:
    place = made(answer=positive(60))
    for response in (place.respond(), place.respond()):
        assert response.cacheable
        assert response.aging is not None
        assert response.aging.expires == response.aging.until == START + 60
        assert response.aging.counts_down
    before = place.count("requests_total"), place.count("hits_total", type="success")
    assert response.aging is not None
    assert response.aging.asked is None
    for index in response.aging.counted:
        response.aging.cells[index] += 1
    assert (place.count("requests_total"), place.count("hits_total", type="success")) == (before[0] + 1, before[1] + 1)


def test_the_packet_cache_may_answer_until_it_is_time_to_prefetch() -> None:
    place = made(Options(prefetch=Prefetch(2, 60, 25)), answer=positive(60))
    response = place.respond()
    assert response.aging is not None
    assert (response.aging.expires, response.aging.until) == (START + 60, START + 45)
    place.clock.now = START + 45
    assert not place.respond().cacheable


# What is popular


def test_what_is_asked_for_often_is_asked_again_before_it_ends() -> None:
    place = made(Options(prefetch=Prefetch(3, 60, 10)), answer=positive(60))
    for elapsed in (0, 1, 2, 53.9):
        place.clock.now = START + elapsed
        place.respond()
    assert not place.later
    place.clock.now = START + 54
    assert place.respond().ttl == 6
    place.respond()
    assert len(place.later) == 1
    place.run_later()
    assert len(place.upstream.queries) == 2
    assert place.count("prefetch_total") == 1
    assert place.respond().ttl == 60


def test_a_renewed_answer_is_as_popular_as_before() -> None:
    place = made(Options(prefetch=Prefetch(3, 100, 10)), answer=positive(60))
    for elapsed in (0, 1, 2, 54, 54 + 54):
        place.clock.now = START + elapsed
        place.respond()
        place.run_later()
    assert len(place.upstream.queries) == 3


def test_a_long_pause_ends_popularity() -> None:
    place = made(Options(prefetch=Prefetch(3, 10, 10)), answer=positive(60))
    for elapsed in (0, 1, 2, 3, 54):
        place.clock.now = START + elapsed
        place.respond()
    assert not place.later


def test_answers_of_the_packet_cache_count_for_popularity() -> None:
    place = made(Options(prefetch=Prefetch(10, 60, 10)), answer=positive(60))
    aging = place.respond().aging
    assert aging is not None
    assert aging.asked is not None
    for elapsed in range(9):
        place.clock.now = START + elapsed
        aging.asked()
    place.clock.now = START + 54
    place.respond()
    assert len(place.later) == 1
    place.run_later()


def test_a_prefetch_that_fails_leaves_what_there_is() -> None:
    place = made(Options(prefetch=Prefetch(1, 60, 50)), answer=positive(60))
    place.respond()
    place.clock.now = START + 30
    place.upstream.answer = servfail
    place.respond()
    place.run_later()
    assert place.respond().ttl == 30
    assert place.respond().rcode == rr.NOERROR
    for steps in place.later:
        steps.close()


def test_a_prefetch_that_comes_after_the_end_serves_those_who_wait() -> None:
    async def run() -> None:
        place = made(Options(prefetch=Prefetch(1, 60, 10)), answer=positive(60))
        await place.handler(asked(), place.upstream)
        place.clock.now = START + 55
        place.upstream.waits = True
        await asyncio.to_thread(place.respond)
        await until(lambda: bool(place.later))
        renewal = asyncio.create_task(place.later.pop())
        await asyncio.sleep(0)
        place.clock.now = START + 61
        client = asyncio.create_task(place.handler(asked(), place.upstream))
        await asyncio.sleep(0)
        place.upstream.go.set()
        assert (await client).ttl == 60
        await renewal
        assert len(place.upstream.queries) == 2

    asyncio.run(run())


def test_what_fell_through_our_zones_is_asked_for_again_when_they_change() -> None:
    place = made(answer=positive(300))
    place.upstream.answer, usual = lambda query: replace(usual(query), depends=(query.lname,)), place.upstream.answer
    for _ in range(3):
        place.respond()
    assert len(place.upstream.queries) == 1
    place.site.changes.note([name_hash(asked("other.example.com.").lname)])
    assert place.respond().depends == (asked().lname,)
    assert len(place.upstream.queries) == 1
    place.site.changes.note([name_hash(asked().lname)])
    place.respond()
    assert len(place.upstream.queries) == 2
    place.site.changes.note_everything()
    place.respond()
    assert len(place.upstream.queries) == 3


def test_what_changes_in_our_zones_while_others_are_asked_is_not_missed() -> None:
    place = made(answer=lambda query: replace(A300(query), depends=(query.lname,)))
    place.upstream.waits = True

    async def client() -> None:
        place.upstream.queries.clear()
        place.upstream.go.clear()
        response = asyncio.create_task(place.handler(asked(), place.upstream))
        await until(lambda: bool(place.upstream.queries))
        place.site.changes.note([name_hash(asked().lname)])
        place.upstream.go.set()
        await response

    async def run() -> None:
        await client()
        await client()

    asyncio.run(run())


def test_a_query_that_is_changed_on_its_way_does_not_keep_others_waiting() -> None:
    def without_rd(query: Query) -> Response:
        query.flags &= ~dns.flags.RD  # as `header` does
        return A300(query)

    place = made(answer=without_rd)
    place.upstream.waits = True
    place.upstream.go.set()

    async def run() -> None:
        await asyncio.wait_for(place.handler(asked(), place.upstream), 5)
        assert not place.handler._flights

    asyncio.run(run())


def test_what_is_added_to_a_response_is_not_seen_by_others_who_waited_for_the_same() -> None:
    place = made()
    place.upstream.waits = True

    async def client() -> bytes:
        response = await place.handler(asked(), place.upstream)
        response.edns_options += b"x"
        return response.edns_options

    async def run() -> None:
        clients = [asyncio.create_task(client()) for _ in range(3)]
        await until(lambda: bool(place.upstream.queries))
        place.upstream.go.set()
        assert await asyncio.gather(*clients) == [b"x"] * 3
        assert len(place.upstream.queries) == 1

    asyncio.run(run())


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_for_one_query_alone_is_not_kept_and_nobody_else_gets_it(fails: bool) -> None:
    def answer(query: Query) -> Response:
        return replace(Response(rcode=rr.SERVFAIL) if fails else A300(query), apart=True)

    place = made(answer=answer)
    place.upstream.waits = True

    async def run() -> None:
        clients = [asyncio.create_task(place.handler(asked(), place.upstream)) for _ in range(3)]
        await until(lambda: bool(place.upstream.queries))
        place.upstream.go.set()
        await asyncio.gather(*clients)
        assert len({id(query) for query in place.upstream.queries}) == 3
        await place.handler(asked(), place.upstream)
        assert len(place.upstream.queries) == 4

    asyncio.run(run())


# What is stale


def test_a_stale_answer_comes_at_once_and_is_renewed_for_the_next() -> None:
    place = made(Options(stale=Stale(100)), answer=positive(60))
    place.respond()
    place.clock.now = START + 159
    for _ in range(3):
        response = place.respond()
        assert (response.ttl, response.cacheable, response.aging) == (0, False, None)
    assert len(place.later) == 1
    assert place.count("served_stale_total") == 3
    place.run_later()
    assert place.respond().ttl == 60
    assert (place.count("hits_total", type="success"), place.count("misses_total")) == (4, 1)


def test_what_is_stale_for_too_long_is_not_used() -> None:
    place = made(Options(stale=Stale(100)), answer=positive(60))
    place.respond()
    place.clock.now = START + 160
    assert place.respond().ttl == 60
    assert place.count("served_stale_total") == 0


def test_denials_are_served_stale_too_but_no_failures() -> None:
    place = made(Options(stale=Stale(100)), answer=nxdomain(60, 60))
    place.respond()
    place.clock.now = START + 100
    assert place.respond().rcode == rr.NXDOMAIN
    assert len(place.upstream.queries) == 1
    place.run_later()
    place = made(Options(stale=Stale(100)), answer=servfail)
    place.respond()
    place.clock.now = START + 6
    place.respond()
    assert len(place.upstream.queries) == 2


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize(
    "failing",
    [servfail, lambda query: answered(query, rcode="REFUSED"), lambda _: Response(rcode=rr.SERVFAIL, error="x")],
)
def test_a_failed_refresh_leaves_the_stale_answer(verify: bool, failing: Answer) -> None:
    place = made(Options(stale=Stale(1000, verify=verify, response_ttl=30)), answer=positive(60))
    place.respond()
    place.upstream.answer = failing
    for elapsed in (100, 200, 300):
        place.clock.now = START + elapsed
        response = place.respond()
        assert (response.rcode, response.ttl, response.error) == (rr.NOERROR, 30, "")
        place.run_later()
    assert len(place.upstream.queries) == 4
    assert place.count("served_stale_total") == 3


def test_a_denial_replaces_a_stale_answer() -> None:
    for verify in (False, True):
        place = made(Options(stale=Stale(1000, verify=verify)), answer=positive(60))
        place.respond()
        place.clock.now = START + 100
        place.upstream.answer = nxdomain(60, 60)
        first = place.respond()
        assert first.rcode == (rr.NXDOMAIN if verify else rr.NOERROR)
        place.run_later()
        assert place.respond().rcode == rr.NXDOMAIN
        assert (place.count("entries", type="success"), place.count("entries", type="denial")) == (0, 1)


def test_after_a_failed_refresh_nobody_asks_for_a_while() -> None:
    for verify in (False, True):
        place = made(Options(stale=Stale(1000, verify=verify, recheck=30)), answer=positive(60))
        place.upstream.waits = True
        place.upstream.go.set()
        asyncio.run(place.handler(asked(), place.upstream))
        place.upstream.answer = servfail
        counts = []
        for elapsed in (100, 101, 129, 130, 131):
            place.clock.now = START + elapsed
            assert asyncio.run(place.handler(asked(), place.upstream)).rcode == rr.NOERROR
            place.run_later()
            counts.append(len(place.upstream.queries))
        assert counts == [2, 2, 2, 3, 3]


def test_verify_answers_with_what_is_new() -> None:
    place = made(Options(stale=Stale(1000, verify=True)), answer=positive(60))
    place.respond()
    place.clock.now = START + 100
    assert place.respond().ttl == 60
    assert place.count("served_stale_total") == 0


def test_verify_waits_no_longer_than_it_is_told_and_keeps_what_comes_later() -> None:
    async def run() -> None:
        place = made(Options(stale=Stale(1000, verify=True, verify_timeout=0.05, response_ttl=7)), answer=positive(60))
        await place.handler(asked(), place.upstream)
        place.clock.now = START + 100
        place.upstream.waits = True
        clients = [asyncio.create_task(place.handler(asked(), place.upstream)) for _ in range(5)]
        assert {response.ttl for response in await asyncio.gather(*clients)} == {7}
        place.upstream.go.set()
        await until(lambda: not place.handler._flights)
        assert place.respond().ttl == 60
        assert len(place.upstream.queries) == 2

    asyncio.run(run())


def test_with_a_recheck_nobody_waits_for_a_refresh_that_is_under_way() -> None:
    async def run() -> None:
        place = made(Options(stale=Stale(1000, verify=True, recheck=30)), answer=positive(60))
        await place.handler(asked(), place.upstream)
        place.clock.now = START + 100
        place.upstream.waits = True
        first = asyncio.create_task(place.handler(asked(), place.upstream))
        await until(lambda: len(place.upstream.queries) == 2)
        assert (await place.handler(asked(), place.upstream)).ttl == 0
        place.upstream.go.set()
        assert (await first).ttl == 60

    asyncio.run(run())


def test_prefer_positive_keeps_the_answer_when_it_is_denied() -> None:
    for verify in (False, True):
        place = made(Options(stale=Stale(1000, verify=verify, prefer_positive=True)), answer=positive(60))
        place.respond()
        for elapsed, answer in ((100, nxdomain(60, 60)), (101, servfail), (102, lambda query: answered(query))):
            place.clock.now = START + elapsed
            place.upstream.answer = answer
            assert place.respond().rcode == rr.NOERROR
            place.run_later()
        place.clock.now = START + 103
        place.upstream.answer = positive(60)
        place.respond()
        place.run_later()
        assert place.respond().ttl == 60
        assert place.count("entries", type="denial") == 0


def test_the_whole_ttl_is_shown_of_a_stale_answer_with_keepttl() -> None:
    place = made(Options(stale=Stale(1000), keepttl=True), answer=positive(60))
    place.respond()
    place.clock.now = START + 100
    assert place.respond().ttl == 60
    place.run_later()


def test_a_failure_does_not_hide_what_is_valid() -> None:
    items = Items(Options(), Budget())
    query = asked()

    def item(response: Response, kind: str, failure: bool = False) -> Item:
        assert response.relay is not None
        return Item(response, response.relay, kind, failure, 60, START)

    good, bad, none = (
        item(positive()(query), SUCCESS),
        item(servfail(query), DENIAL, True),
        item(nxdomain()(query), DENIAL),
    )
    for known in (good, none):
        assert items.put(b"key", known, START)
        assert not items.put(b"key", bad, START)
        assert items.find(b"key", START) is known
    assert items.put(b"other", bad, START)
    assert items.put(b"other", good, START)
    assert items.find(b"other", START) is good
    assert items.count(DENIAL)[0] == 1


# Who waits


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not come to be")


@pytest.fixture
def strict() -> Iterator[list[dict[str, Any]]]:
    """What event loops complained of, and coroutines that nobody awaited as errors."""
    complaints: list[dict[str, Any]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield complaints
        gc.collect()
    assert not complaints


def run_strictly(complaints: list[dict[str, Any]], test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        await test()
        gc.collect()
        await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(run(), 20))


def begun(place: Place, count: int, query: Callable[[], Query] = asked) -> list[asyncio.Task[Response]]:
    """Clients that wait, each begun outside of a task as a UDP thread does it."""
    tasks = []
    for _ in range(count):
        steps = place.handler(query(), place.upstream)
        thread = threading.Thread(target=steps.send, args=(None,))
        thread.start()
        thread.join()
        tasks.append(asyncio.create_task(steps))
    return tasks


def test_a_thousand_clients_share_one_query(strict: list[dict[str, Any]]) -> None:
    async def test() -> None:
        place = made()
        place.upstream.waits = True
        tasks = begun(place, 500)
        protocols = iter(("udp", "tcp") * 500)
        tasks += [
            asyncio.create_task(place.handler(asked("wWw.example.com.", proto=next(protocols)), place.upstream))
            for _ in range(500)
        ]
        await until(lambda: bool(place.upstream.queries))
        await asyncio.sleep(0.01)
        place.upstream.go.set()
        responses = await asyncio.gather(*tasks)
        assert len(place.upstream.queries) == 1
        assert {(response.ttl, response.rcode, response.plugin) for response in responses} == {(300, 0, "forward")}
        assert len({id(response) for response in responses}) == 1000
        assert not place.handler._flights
        assert place.count("misses_total") == place.count("requests_total") == 1000

    run_strictly(strict, test)


def test_a_client_that_hangs_up_does_not_end_the_query_of_the_others(strict: list[dict[str, Any]]) -> None:
    async def test() -> None:
        place = made()
        place.upstream.waits = True
        first, second, *_ = begun(place, 2)
        await until(lambda: bool(place.upstream.queries))
        first.cancel()
        await asyncio.sleep(0)
        place.upstream.go.set()
        assert (await second).ttl == 300
        assert len(place.upstream.queries) == 1

    run_strictly(strict, test)


def test_what_comes_when_all_have_hung_up_is_kept(strict: list[dict[str, Any]]) -> None:
    async def test() -> None:
        place = made()
        place.upstream.waits = True
        (client,) = begun(place, 1)
        await until(lambda: bool(place.upstream.queries))
        client.cancel()
        await asyncio.sleep(0)
        place.upstream.go.set()
        await until(lambda: not place.handler._flights)
        assert place.respond().ttl == 300

    run_strictly(strict, test)


def test_a_failure_is_told_once(strict: list[dict[str, Any]]) -> None:
    async def test() -> None:
        for answer in (
            lambda query: Response(rcode=rr.SERVFAIL, error="no upstream"),
            lambda query: answered(query, rcode="SERVFAIL", error="no upstream"),
        ):
            place = made(answer=answer)
            place.upstream.waits = True
            tasks = begun(place, 20)
            await until(lambda place=place: bool(place.upstream.queries))  # type: ignore[misc]
            tasks[0].cancel()
            await asyncio.sleep(0)
            place.upstream.go.set()
            responses = await asyncio.gather(*tasks[1:])
            assert len(place.upstream.queries) == 1
            assert {response.rcode for response in responses} == {rr.SERVFAIL}
            assert sorted(response.error for response in responses) == [""] * 18 + ["no upstream"]

    run_strictly(strict, test)


def test_an_exception_is_raised_once_and_the_key_is_free_again(strict: list[dict[str, Any]]) -> None:
    def broken(_: Query) -> Response:
        raise ValueError("broken")

    async def test() -> None:
        place = made(answer=broken)
        place.upstream.waits = True
        tasks = begun(place, 3)
        await until(lambda: bool(place.upstream.queries))
        place.upstream.go.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(outcome, ValueError) for outcome in outcomes) == 1
        assert sum(isinstance(outcome, Response) and outcome.rcode == rr.SERVFAIL for outcome in outcomes) == 2
        place.upstream.answer = positive()
        assert (await place.handler(asked(), place.upstream)).ttl == 300

    run_strictly(strict, test)


def test_an_exception_in_the_background_is_logged(strict: list[dict[str, Any]]) -> None:
    def broken(_: Query) -> Response:
        raise ValueError("broken")

    for verify in (False, True):

        async def test(verify: bool = verify) -> None:
            place = made(Options(stale=Stale(1000, verify=verify)), answer=positive(60))
            place.upstream.waits = True
            place.upstream.go.set()
            await place.handler(asked(), place.upstream)
            place.clock.now = START + 100
            place.upstream.answer = broken
            assert (await place.handler(asked(), place.upstream)).ttl == 0
            await asyncio.sleep(0)
            for steps in place.later:
                await steps
            place.log.flush()
            assert b"plugin/cache: asking again failed: ValueError('broken')" in os.read(place.output, 4096)

        run_strictly(strict, test)


def test_answers_of_our_own_are_not_shared_between_clients(strict: list[dict[str, Any]]) -> None:
    """Such as whoami's, behind a plugin that waits."""

    async def test() -> None:
        place = made(answer=ours)
        tasks = [asyncio.create_task(place.handler(asked(), place.upstream)) for _ in range(3)]
        await asyncio.gather(*tasks)
        assert len({id(query) for query in place.upstream.queries}) == 3

    run_strictly(strict, test)


def test_an_answer_that_came_meanwhile_is_used(strict: list[dict[str, Any]]) -> None:
    async def test() -> None:
        place = made()
        place.upstream.waits = True
        place.upstream.go.set()
        steps = place.handler(asked(), place.upstream)
        await asyncio.to_thread(steps.send, None)
        (await asyncio.gather(*begun(place, 1)))[0]
        assert (await asyncio.create_task(steps)).plugin == "cache"
        assert len(place.upstream.queries) == 1

    run_strictly(strict, test)


def test_different_keys_do_not_wait_for_each_other(strict: list[dict[str, Any]]) -> None:
    async def test() -> None:
        place = made(answer=lambda query: answered(query, authority=(SOA.format(60, 60),), rcode="NXDOMAIN"))
        place.upstream.waits = True
        tasks = begun(place, 1) + begun(place, 1, lambda: asked(do=True))
        await until(lambda: len(place.upstream.queries) == 2)
        place.upstream.go.set()
        await asyncio.gather(*tasks)

    run_strictly(strict, test)


# Room


def fill(place: Place, count: int, answer: Answer | None = None) -> None:
    place.upstream.answer = answer or (lambda query: answered(query, f"{query_name(query)} 300 IN A 192.0.2.1"))
    for index in range(count):
        place.respond(asked(f"n{index}.example.com."))


def query_name(query: Query) -> str:
    return dns.message.from_wire(query.data).question[0].name.to_text()


def test_the_number_of_answers_is_bounded_and_the_least_recently_used_go() -> None:
    place = made(Options(success=Limits(1024, 3600)))
    fill(place, 1024)
    place.respond(asked("n0.example.com."))
    assert place.count("evictions_total") == 0
    place.respond(asked("one.example.com."))
    place.respond(asked("two.example.com."))
    assert place.count("entries", type="success") == 1024
    assert place.count("evictions_total", type="success") == 2
    before = len(place.upstream.queries)
    place.respond(asked("n0.example.com."))
    assert len(place.upstream.queries) == before
    place.respond(asked("n1.example.com."))
    assert len(place.upstream.queries) == before + 1


def test_random_names_do_not_push_out_answers() -> None:
    place = made(Options(denial=Limits(1024, 1800)))
    place.respond()
    fill(place, 1500, nxdomain())
    before = len(place.upstream.queries)
    place.respond()
    assert len(place.upstream.queries) == before
    assert (place.count("entries", type="success"), place.count("entries", type="denial")) == (1, 1024)
    assert place.count("evictions_total", type="denial") == 1500 - 1024


def test_bytes_are_bounded_too() -> None:
    place = made(Options(success=Limits(1024, 3600)))
    text = " ".join(f'"{"x" * 250}"' for _ in range(200))
    place.upstream.answer = lambda query: answered(query, f"{query_name(query)} 300 IN TXT {text}")
    for index in range(40):
        place.respond(asked(f"n{index}.example.com.", "TXT", proto="tcp"))
    count, size, evicted = place.handler._items.count(SUCCESS)
    assert 20 < count < 30
    assert size <= 1024 * 1280
    assert count + evicted == 40


def test_what_an_answer_takes_is_not_more_than_is_reckoned(record: Callable[[str, object], None]) -> None:
    items = Items(Options(success=Limits(1 << 20, 3600)), Budget())
    asking = [asked(f"name-{index}.example.com.") for index in range(1000)]
    addresses = [(query, (f"{query_name(query)} 300 IN A 192.0.2.{host}" for host in (1, 2))) for query in asking]
    bodies = [answered(query, *records).relay for query, records in addresses]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for query, body in zip(asking, bodies, strict=True):
            assert body is not None
            copy = relay.read(bytes(bytearray(body.body)), message.question(query))
            item = Item(Response(), copy, SUCCESS, False, 300, START + random.random())
            key = cache.key_of(query)
            item.size += len(key)
            items.put(key, item, START)
        del copy, item, key
        gc.collect()
        taken = (tracemalloc.get_traced_memory()[0] - before) / len(asking)
    finally:
        tracemalloc.stop()
    reckoned = items.count(SUCCESS)[1] / len(asking)
    record("bytes per entry", f"{taken:.0f} taken, {reckoned:.0f} reckoned")
    assert 0.8 * reckoned < taken < 1.1 * reckoned


def test_several_threads_may_use_it_at_once() -> None:
    options = Options(success=Limits(1024, 3600), denial=Limits(1024, 3600))
    place = made(options)
    responses = {}
    for index in range(1200):
        query = asked(f"n{index}.example.com.")
        responses[query] = answered(query, f"{query_name(query)} 1 IN A 192.0.2.1")
    broken: list[BaseException] = []

    async def next(query: Query) -> Response:
        found = responses[query]
        return Response(relay=found.relay, recursion=True)

    def work(seed: int) -> None:
        chance = random.Random(seed)
        queries = list(responses)
        try:
            for _ in range(3000):
                place.clock.now += 0.001
                response = at_once(place.handler(chance.choice(queries), next))
                assert response.ttl is not None
                assert 1 <= response.ttl <= 5
        except BaseException as error:
            broken.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not broken
    assert place.handler._items.count(SUCCESS)[0] <= 1024


# What is counted


def test_metrics() -> None:
    place = made(Options(zones=("com.", "org.")))
    place.respond()
    place.respond()
    place.upstream.answer = nxdomain()
    for _ in range(3):
        place.respond(asked("no.example.com."))
    where = {"server": "dns://:53", "zones": "com.,org.", "view": ""}
    assert place.count("requests_total", **where) == 5
    assert place.count("misses_total", **where) == 2
    assert place.count("hits_total", **where, type="success") == 1
    assert place.count("hits_total", **where, type="denial") == 2
    assert place.count("entries", **where, type="success") == place.count("entries", **where, type="denial") == 1


# Its options


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("cache", Options()),
        ("cache 30", Options(success=Limits(9984, 30), denial=Limits(9984, 30))),
        ("cache Example.ORG 10.1.0.0/16", Options(zones=("example.org.", "1.10.in-addr.arpa."))),
        ("cache 30 1", Options(("1.",), Limits(9984, 30), Limits(9984, 30))),
        ("cache {\nsuccess 5000\ndenial 10\n}", Options(success=Limits(5000, 3600), denial=Limits(1024, 1800))),
        (
            "cache 30 {\nsuccess 9984 60 0\ndenial 9984 5\n}",
            Options(success=Limits(9984, 60, 0), denial=Limits(9984, 5)),
        ),
        ("cache {\nprefetch 3\n}", Options(prefetch=Prefetch(3, 60, 10))),
        ("cache {\nprefetch 3 2m 90%\n}", Options(prefetch=Prefetch(3, 120, 90))),
        ("cache {\nprefetch 0\n}", Options()),
        ("cache {\nserve_stale\n}", Options(stale=Stale(3600))),
        ("cache {\nserve_stale 0\n}", Options(stale=Stale(0))),
        ("cache {\nserve_stale 2h IMMEDIATE 30s 1m\n}", Options(stale=Stale(7200, False, 0, 30, 60))),
        ("cache {\nserve_stale 2h verify\n}", Options(stale=Stale(7200, True))),
        ("cache {\nserve_stale 2h verify 100ms 30s 5m\n}", Options(stale=Stale(7200, True, 0.1, 30, 300))),
        (
            "cache {\nserve_stale_policy Prefer_Positive\nserve_stale 1h\n}",
            Options(stale=Stale(3600, prefer_positive=True)),
        ),
        ("cache {\nservfail 0\n}", Options(servfail=0)),
        ("cache {\nservfail 5m\n}", Options(servfail=300)),
        (
            "cache {\ndisable success\ndisable denial a.org\ndisable denial b.org\n}",
            Options(success=Limits(9984, 3600, 5, (".",)), denial=Limits(9984, 1800, 5, ("a.org.", "b.org."))),
        ),
        ("cache {\ndisable denial a.org\ndenial 2000\n}", Options(denial=Limits(2000, 1800, 5, ("a.org.",)))),
        ("cache {\nkeepttl\n}", Options(keepttl=True)),
    ],
)
def test_options(line: str, options: Options) -> None:
    assert parsed(line) == options


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("cache 0", 'cache: "0" is out of range'),
        ("cache -5", 'cache: "-5" is out of range'),
        ("cache 30 ex_.*!", 'cache: "ex_.*!" is not a zone'),
        ("cache\ncache", "cache is given twice in a server block"),
        ("cache {\nsuccess\n}", 'cache: "success" has 0 arguments'),
        ("cache {\nsuccess 1 2 3 4\n}", 'cache: "success" has 4 arguments'),
        ("cache {\nsuccess many\n}", 'cache: "many" is not a whole number'),
        ("cache {\ndenial 5000 0\n}", 'cache: "0" is out of range'),
        ("cache {\ndenial 5000 5 -1\n}", 'cache: "-1" is out of range'),
        ("cache {\nprefetch\n}", 'cache: "prefetch" has 0 arguments'),
        ("cache {\nprefetch -1\n}", 'cache: "-1" is out of range'),
        ("cache {\nprefetch 1 soon\n}", 'cache: "soon" is not a duration'),
        ("cache {\nprefetch 1 1m 50\n}", 'cache: "50" is not a percentage'),
        ("cache {\nprefetch 1 1m 9%\n}", 'cache: "9" is out of range'),
        ("cache {\nprefetch 1 1m 91%\n}", 'cache: "91" is out of range'),
        ("cache {\nserve_stale -1h\n}", 'cache: "-1h" is too short'),
        ("cache {\nserve_stale 1h later\n}", 'cache: "later" is not known'),
        ("cache {\nserve_stale 1h immediate 30s 30s 30s\n}", 'cache: serve_stale has "30s" too many'),
        ("cache {\nserve_stale 1h verify 1s 1s 1s 1s\n}", 'cache: "serve_stale" has 6 arguments'),
        ("cache {\nserve_stale 1h immediate 1500ms\n}", 'cache: "1500ms" cannot be a TTL'),
        ("cache {\nserve_stale 1h immediate 1000000h\n}", 'cache: "1000000h" cannot be a TTL'),
        ("cache {\nserve_stale 1h immediate 1s 6m\n}", 'cache: "6m" is too long'),
        ("cache {\nserve_stale_policy prefer_positive\n}", "cache: serve_stale_policy is nothing without serve_stale"),
        ("cache {\nserve_stale\nserve_stale_policy other\n}", 'cache: "other" is not known'),
        ("cache {\nservfail 5m1s\n}", 'cache: "5m1s" is too long'),
        ("cache {\nservfail -1s\n}", 'cache: "-1s" is too short'),
        ("cache {\ndisable\n}", 'cache: "disable" has 0 arguments'),
        ("cache {\ndisable error\n}", 'cache: "error" is not known'),
        ("cache {\ndisable denial a..b\n}", 'zone "a..b" has an empty label'),
        ("cache {\nkeepttl 5\n}", 'cache: "keepttl" has 1 argument'),
        ("cache {\nkeep\n}", 'cache has no option "keep"'),
    ],
)
def test_mistakes_are_refused(line: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(line)
    assert [mistake.message for mistake in caught.value.mistakes if said in mistake.message], caught.value


OPTIONS = ["success", "denial", "prefetch", "serve_stale", "serve_stale_policy", "servfail", "disable", "keepttl"]
VALUES = [
    "verify",
    "immediate",
    "prefer_positive",
    "0",
    "1",
    "-1",
    "30",
    "5000",
    "1h",
    "5m",
    "10%",
    "9%",
    "1500ms",
    "x..y",
]
WORDS = st.sampled_from([*OPTIONS, *VALUES, "example.org", ".", "10.0.0.0/8"])


@given(st.lists(WORDS, max_size=3), st.lists(st.lists(WORDS, min_size=1, max_size=6), max_size=4))
def test_any_words_are_options_or_mistakes(args: list[str], lines: list[list[str]]) -> None:
    block = "\n".join(" ".join(words) for words in lines)
    try:
        options = parsed(f"cache {' '.join(args)} {{\n{block}\n}}")
    except ConfigError:
        return
    assert min(options.success.capacity, options.denial.capacity) >= 1024
    assert min(options.success.ttl, options.denial.ttl) >= 1
    assert options.stale is None or not math.isnan(options.stale.duration)


def test_a_threshold_is_at_least_a_second() -> None:
    assert [Prefetch(1, 60, percent).threshold(ttl) for percent, ttl in ((10, 5), (10, 300), (90, 10))] == [1, 30, 9]


def test_signature_times_wrap_around() -> None:
    now = 2**32 + 5
    body = b"\0\x2e\0\1" + bytes(6) + bytes(8) + struct.pack("!II", 10, 2**32 - 10)
    assert cache._is_valid(body, 4, now)
    assert not cache._is_valid(body, 4, now + 6)
    assert not cache._is_valid(body, 4, 2**32 - 11)
