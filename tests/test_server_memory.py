"""The bounds of what a worker keeps count all that it takes, and all caches of a worker share one."""

from __future__ import annotations

import tracemalloc

import pytest

from kdns.observe.counters import QueryCounters, Region
from kdns.plugins.budget import Budget, Keeper
from kdns.plugins.cache import SUCCESS, Item, Items, Options
from kdns.server import memory, packet_cache
from kdns.server.packet_cache import Entry, PacketCache
from kdns.server.respond import Block
from kdns.wire.message import Query, Response
from kdns.wire.relay import Relay
from kdns.zone.changes import Changes

MEGABYTE = 1 << 20


async def nothing(_: Query) -> Response:
    return Response()


@pytest.fixture
def region() -> Region:
    return Region.create()


@pytest.fixture
def block(region: Region) -> Block:
    return Block(QueryCounters(region, "dns://:53", "."), nothing, None, None)


def item(size: int) -> Item:
    relay = Relay(bytes(size), 0, 0, 0, (), 300, True, False, -1)
    return Item(Response(), relay, SUCCESS, False, 300, 0)


def test_answers_that_depend_on_many_names_are_bounded_too(region: Region, block: Block) -> None:
    cache = PacketCache(Changes.create(), region, Budget())
    tracemalloc.start()
    for number in range(2000):
        # As an SRV answer of a Service with 2,000 endpoint names, cut to fit over UDP.
        hashes = tuple(range(1000 + number, 3000 + number))
        cache.put(b"%d" % number, Entry(bytes(1200), 0, None, block, hashes), cache.seen)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert cache.young
    assert size < 3 * packet_cache.BYTES


def test_an_answer_that_would_drive_out_the_others_is_not_kept(region: Region, block: Block) -> None:
    cache = PacketCache(Changes.create(), region, Budget())
    cache.put(b"small", Entry(b"response", 0, None, block, (1,)), cache.seen)
    for number in range(3):
        cache.put(b"%d" % number, Entry(bytes(packet_cache.BYTES), 0, None, block, ()), cache.seen)
    assert set(cache.young) == {b"small"}
    assert not cache.old


def test_the_caches_of_a_worker_never_take_more_than_their_budget(region: Region, block: Block) -> None:
    budget = Budget(MEGABYTE)
    packets = [PacketCache(Changes.create(), region, budget) for _ in range(4)]
    blocks = [Items(Options(), budget) for _ in range(3)]
    keepers: list[Keeper] = [*packets, *blocks]
    for number in range(3000):
        key = b"%d" % number
        packets[number % 4].put(key, Entry(bytes(600), 0, None, block, (number,)), packets[number % 4].seen)
        blocks[number % 3].put(key, item(900), 0)
        assert sum(keeper.size for keeper in keepers) == budget.used <= budget.limit
    assert all(keeper.size for keeper in keepers)


def test_a_busy_server_block_has_what_the_others_do_not_use(region: Region, block: Block) -> None:
    budget = Budget(MEGABYTE)
    busy, quiet = Items(Options(), budget), Items(Options(), budget)
    for number in range(50):
        quiet.put(b"%d" % number, item(900), 0)
    for number in range(3000):
        busy.put(b"%d" % number, item(900), 0)
    assert busy.size > 0.9 * (MEGABYTE - quiet.size)
    assert quiet.count(SUCCESS)[0] == 50
    assert busy.find(b"2999", 0) is not None
    assert busy.find(b"0", 0) is None


def test_what_is_dropped_replaced_or_out_of_date_is_not_counted_any_more(region: Region, block: Block) -> None:
    budget, changes = Budget(MEGABYTE), Changes.create()
    packets, items = PacketCache(changes, region, budget), Items(Options(), budget)
    for _ in range(3):
        for number in range(50):
            packets.put(b"%d" % number, Entry(bytes(600), 0, None, block, (number,)), packets.seen)
            items.put(b"%d" % number, item(900), 0)
    once = budget.used
    assert once < 50 * (600 + 900 + 1250)
    changes.note(range(25))
    packets.sync()
    assert not any(packets.find(b"%d" % number, 0) for number in range(25))
    assert budget.used == packets.size + items.size < once
    changes.note_everything()
    packets.sync()
    assert (packets.size, budget.used) == (0, items.size)
    packets.put(b"1", Entry(bytes(600), 0, None, block, ()), packets.seen)
    assert budget.used == packets.size + items.size


def test_an_answer_that_moves_to_the_young_generation_counts_once(region: Region, block: Block) -> None:
    budget = Budget()
    cache = PacketCache(Changes.create(), region, budget)
    for number in range(packet_cache.ENTRIES + 1):
        cache.put(b"%d" % number, Entry(b"response", 0, None, block, ()), cache.seen)
    entries, size = cache.report()
    assert cache.find(b"0", 0) is not None
    assert cache.report() == (entries, size)
    assert budget.used == size


def test_transfers_that_come_keep_within_the_supervisors_part() -> None:
    assert memory.arriving(None, 1 << 28) == 1 << 28
    assert memory.arriving(64 << 30, 1 << 28) == 1 << 28
    assert memory.arriving(128 << 20, 1 << 28) == (128 << 20) // memory.CLUSTER * 2 // 5
