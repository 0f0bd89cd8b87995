"""The packet cache's bound counts all that an entry takes."""

from __future__ import annotations

import tracemalloc

from kdns.observe.counters import QueryCounters, Region
from kdns.server import packet_cache
from kdns.server.packet_cache import Entry, PacketCache
from kdns.server.respond import Block
from kdns.wire.message import Query, Response
from kdns.zone.changes import Changes


async def nothing(_: Query) -> Response:
    return Response()


def test_answers_that_depend_on_many_names_are_bounded_too() -> None:
    region = Region.create()
    block = Block(QueryCounters(region, "dns://:53", "."), nothing, None, None)
    cache = PacketCache(Changes.create(), region)
    tracemalloc.start()
    for number in range(2000):
        # As an SRV answer of a Service with 2,000 endpoint names, cut to fit over UDP.
        hashes = tuple(range(1000 + number, 3000 + number))
        cache.put(b"%d" % number, Entry(bytes(1200), 0, None, block, hashes), cache.seen)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert cache.young
    assert size < 3 * packet_cache.BYTES


def test_an_answer_that_would_drive_out_the_others_is_not_kept() -> None:
    region = Region.create()
    block = Block(QueryCounters(region, "dns://:53", "."), nothing, None, None)
    cache = PacketCache(Changes.create(), region)
    cache.put(b"small", Entry(b"response", 0, None, block, (1,)), cache.seen)
    for number in range(3):
        cache.put(b"%d" % number, Entry(bytes(packet_cache.BYTES), 0, None, block, ()), cache.seen)
    assert set(cache.young) == {b"small"}
    assert not cache.old
