"""The packet cache: bounded, and never older than the store."""

from __future__ import annotations

import pytest

from kdns.observe.counters import QueryCounters, Region
from kdns.plugins.budget import Budget
from kdns.server import packet_cache
from kdns.server.packet_cache import Countdown, Entry, PacketCache, Turns
from kdns.server.respond import Block
from kdns.wire.message import Aging, Query, Response, Rotation
from kdns.zone.changes import SLOTS, Changes, name_hash

WEB, MAIL = name_hash(b"\x03web\0"), name_hash(b"\x04mail\0")


async def nothing(_: Query) -> Response:
    return Response()


@pytest.fixture
def changes() -> Changes:
    return Changes.create()


@pytest.fixture
def region() -> Region:
    return Region.create()


@pytest.fixture
def cache(changes: Changes, region: Region) -> PacketCache:
    return PacketCache(changes, region, Budget())


@pytest.fixture
def block(region: Region) -> Block:
    return Block(QueryCounters(region, "dns://:53", "."), nothing, None, None)


def entry(block: Block, *hashes: int, response: bytes = b"response") -> Entry:
    return Entry(response, 0, None, block, hashes)


def test_a_changed_name_takes_its_answers_with_it_and_no_others(
    cache: PacketCache, changes: Changes, block: Block
) -> None:
    cache.put(b"web A", entry(block, WEB), cache.seen)
    cache.put(b"web SRV", entry(block, WEB, MAIL), cache.seen)
    cache.put(b"mail A", entry(block, MAIL), cache.seen)
    changes.note([WEB])
    cache.sync()
    assert [cache.find(key, 0) is not None for key in (b"web A", b"web SRV", b"mail A")] == [False, False, True]
    assert set(cache.young) == {b"mail A"}
    assert cache.report() == (1, cache.size)


def test_answers_in_the_old_generation_go_too(cache: PacketCache, changes: Changes, block: Block) -> None:
    cache.put(b"web A", entry(block, WEB), cache.seen)
    for number in range(packet_cache.ENTRIES):
        cache.put(b"%d" % number, entry(block), cache.seen)
    assert b"web A" in cache.old
    changes.note([WEB])
    cache.sync()
    assert cache.find(b"web A", 0) is None
    assert cache.find(b"0", 0) is not None


def test_what_was_made_before_a_change_is_not_kept_after_it(cache: PacketCache, changes: Changes, block: Block) -> None:
    seen = cache.seen
    changes.note([MAIL])
    cache.sync()
    cache.put(b"web A", entry(block, WEB), seen)
    assert cache.young == {}


def test_a_cache_that_was_overtaken_by_changes_starts_empty(cache: PacketCache, changes: Changes, block: Block) -> None:
    cache.put(b"web A", entry(block, WEB), cache.seen)
    changes.note([MAIL] * (SLOTS + 1))
    cache.sync()
    assert cache.young == {}
    assert cache.seen == changes.generation


def test_an_answer_that_was_made_anew_holds_after_its_names_have_changed(
    cache: PacketCache, changes: Changes, block: Block
) -> None:
    for response in (b"first", b"second"):
        cache.put(b"web SRV", entry(block, WEB, MAIL, response=response), cache.seen)
        changes.note([name_hash(b"\x05other\0")])
        cache.sync()
        found = cache.find(b"web SRV", 0)
        assert found is not None
        assert found.response == response
        changes.note([MAIL])
        cache.sync()
        assert cache.find(b"web SRV", 0) is None


def test_what_does_not_hold_is_counted_and_takes_no_room(
    cache: PacketCache, changes: Changes, region: Region, block: Block
) -> None:
    for number in range(100):
        cache.put(b"%d" % number, entry(block, WEB), cache.seen)
    changes.note([WEB])
    cache.sync()
    assert not any(cache.find(b"%d" % number, 0) for number in range(100))
    assert cache.report() == (0, 0)
    assert region.read()["count", "kdns_packet_cache_invalidations_total"] == (100,)


def test_entries_are_bounded_and_those_in_use_stay(cache: PacketCache, block: Block) -> None:
    cache.put(b"web A", entry(block, WEB), cache.seen)
    for number in range(5 * packet_cache.ENTRIES):
        cache.put(b"%d" % number, entry(block), cache.seen)
        if number % 1000 == 0:
            assert cache.find(b"web A", 0) is not None
    assert cache.report()[0] <= 2 * packet_cache.ENTRIES


def test_bytes_are_bounded(cache: PacketCache, block: Block) -> None:
    for number in range(1000):
        cache.put(b"%d" % number, entry(block, response=bytes(60000)), cache.seen)
    kept = sum(len(one.response) for half in (cache.young, cache.old) for one in half.values())
    assert kept <= 2 * packet_cache.BYTES


def test_every_address_comes_first_in_its_turn() -> None:
    records = b"".join(b"owner record %02d" % number for number in range(5))
    turns = Turns(Rotation(12, 12 + len(records), 15, records), 3)
    response = bytes(10) + records + b"tail"
    got = [turns.next(response, 0) for _ in range(10)]
    assert {one[10:25] for one in got} == {b"owner record %02d" % number for number in range(5)}
    assert all(len(one) == len(response) and one.endswith(b"tail") for one in got)
    assert got[:5] == got[5:]


def test_turns_of_a_truncated_answer_bring_every_address() -> None:
    records = b"".join(b"owner record %02d" % number for number in range(5))
    turns = Turns(Rotation(2, 2 + 30, 15, records), 0)
    got = [turns.next(records[:30], 0) for _ in range(5)]
    assert {one[:15] for one in got} == {records[at : at + 15] for at in range(0, 75, 15)}
    assert all(len(one) == 30 for one in got)


def test_an_answer_is_kept_when_it_is_asked_for_a_second_time(cache: PacketCache) -> None:
    assert [cache.wants(b"web A") for _ in range(3)] == [False, True, True]


def test_no_query_has_come_before_the_first_one(changes: Changes, region: Region) -> None:
    """Whatever its hash is: a byte of it is 0 for one in 256."""
    for number in range(2048):
        assert not PacketCache(changes, region, Budget()).wants(b"web %d" % number)


def test_queries_that_never_repeat_are_not_kept(cache: PacketCache) -> None:
    kept = sum(cache.wants(b"random %d" % number) for number in range(10 * packet_cache.ASKED))
    assert kept < packet_cache.ASKED // 10
    assert [cache.wants(b"web A") for _ in range(2)][1] is True


def test_ttls_count_down_by_whole_seconds_and_each_answer_but_the_first_is_told() -> None:
    told: list[None] = []
    cells = memoryview(bytearray(32)).cast("Q")
    aging = Aging(103.0, 102.0, True, cells, (1, 3), lambda: told.append(None))
    record = b"head" + b"\0\0\0\3" + b"rest"
    countdown = Countdown(aging, record, (4,), None, 0)
    got = [
        countdown.next(record, int(now * 1e9))[4:8] for now in (99.9, 100.0, 100.5, 101.0, 101.01, 102.9, 103.0, 110.0)
    ]
    assert [int.from_bytes(ttl, "big") for ttl in got] == [3, 3, 3, 2, 2, 1, 0, 0]
    assert len(told) == 7
    assert cells.tolist() == [0, 7, 0, 7]
    kept = Countdown(aging._replace(counts_down=False), record, (4,), None, 0)
    assert kept.next(record, int(101e9)) is record


def test_addresses_take_turns_while_their_ttls_count_down() -> None:
    records = b"".join(bytes((number, 0, 0, 0, 3)) for number in range(3))
    rotation = Rotation(2, 17, 5, records)
    countdown = Countdown(
        Aging(103.0, 103.0, True, memoryview(bytearray(16)).cast("Q"), (0, 1)), records, (1, 6, 11), rotation, 0
    )
    got = [countdown.next(records, int(now * 1e9)) for now in (100.5, 100.6, 101.5, 101.6)]
    assert [(answer[0], answer[4], answer[9]) for answer in got] == [(1, 3, 3), (2, 3, 3), (0, 2, 2), (1, 2, 2)]


def test_an_entry_whose_time_is_over_is_not_taken_from_the_old_generation(cache: PacketCache, block: Block) -> None:
    countdown = Countdown(
        Aging(103.0, 102.0, True, memoryview(bytearray(16)).cast("Q"), (0, 1)), b"response", (), None, 0
    )
    cache.put(b"web A", Entry(b"", 0, countdown, block, ()), cache.seen)
    cache.old, cache.young = cache.young, {}
    assert cache.find(b"web A", int(102e9)) is None
    assert cache.find(b"web A", int(101.9e9)) is not None
