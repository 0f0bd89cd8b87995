"""What a worker's transfers share: places to send from, and the messages of whole zones."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdns.errors import StoreError
from kdns.plugins import outgoing
from kdns.plugins.outgoing import Outgoing
from kdns.wire import names, rr
from kdns.wire.rrset import RRset
from kdns.zone.changes import Changes
from kdns.zone.reader import Reader
from kdns.zone.store import EXPIRED, SYNCED, Store, Transaction, Zone

ORIGIN = b"\7example\4test\0"
SOA = RRset(rr.SOA, 5, (rr.soa(b"\2ns" + ORIGIN, b"\4host" + ORIGIN, 1, 60, 60, 600, 5),))
COUNT = 1000
ZONE = Zone(0, "test", ORIGIN, 1, SYNCED)
BARE = Zone(1, "test", b"\4bare\0", 1, SYNCED)
OLD = Zone(2, "test", b"\3old\0", 1, SYNCED)


def write(directory: Path, action: Callable[[Transaction], Any]) -> None:
    """Write, and close the store: one process has it open once only."""
    store = Store.open(directory, Changes.create(), lambda _: None)
    store.write(action)
    store.close()


def fill(txn: Transaction) -> None:
    zone = txn.add_zone("test", ORIGIN)
    txn.put(zone, ORIGIN, (SOA,))
    for number in range(COUNT):
        owner = names.join([b"n%d" % number])[:-1] + ORIGIN
        txn.put(zone, owner, (RRset(rr.A, 5, (rr.address("192.0.2.1"), rr.address("192.0.2.2"))),))
    txn.set_state(zone, SYNCED)
    bare = txn.add_zone("test", b"\4bare\0")
    txn.set_state(bare, SYNCED)
    old = txn.add_zone("test", b"\3old\0")
    txn.put(old, old.origin, (SOA,))
    txn.set_state(old, EXPIRED)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    write(tmp_path / "state", fill)
    found = Reader(tmp_path / "state", Changes.create())
    yield found
    found.close()


def run(steps: Awaitable[None]) -> None:
    async def main() -> None:
        await steps

    asyncio.run(main())


def test_a_zone_is_made_into_messages_once_for_all_who_take_it(reader: Reader) -> None:
    async def steps() -> None:
        sending = Outgoing(reader)
        one, two = await asyncio.gather(sending.whole(ZONE), sending.whole(ZONE))
        assert one is two
        assert one is not None
        assert sum(count for count, _ in one.messages) == 2 * COUNT + 2
        assert len(one.messages) > 1
        assert len(sending._whole) == 1
        del one, two
        await asyncio.sleep(0)
        assert len(sending._whole) == 0  # nobody has it any more

    run(steps())


def test_who_had_it_from_another_server_gets_nothing_earlier(reader: Reader, tmp_path: Path) -> None:
    def change(txn: Transaction) -> None:
        txn.put(txn.zone(ZONE.number), b"\3new" + ORIGIN, (RRset(rr.A, 5, (rr.address("192.0.2.1"),)),))
        txn.set_revision(7, "test")

    async def steps() -> None:
        sending = Outgoing(reader)
        first = await sending.whole(ZONE, followed=True)
        reader.close()
        write(tmp_path / "state", change)
        sending.store = Reader(tmp_path / "state", Changes.create())
        assert await sending.whole(ZONE, followed=True) is first
        found = await sending.whole(ZONE, followed=True, revision=7)
        assert found is not None
        assert (found.revision, found is first) == (7, False)
        sending.store.close()

    run(steps())


def test_others_have_their_turn_while_a_zone_is_prepared(reader: Reader) -> None:
    async def steps() -> None:
        sending = Outgoing(reader)
        turns = 0
        making = asyncio.ensure_future(sending.whole(ZONE))
        while not making.done():
            await asyncio.sleep(0)
            turns += 1
        assert turns > COUNT // outgoing._PORTION

    run(steps())


def test_zones_that_are_not_to_be_served_are_not_sent(reader: Reader) -> None:
    async def steps() -> None:
        sending = Outgoing(reader)
        assert await sending.whole(OLD) is None  # it is too old
        for other in (
            Zone(9, "test", ORIGIN, 1, SYNCED),
            Zone(0, "test", OLD.origin, 1, SYNCED),  # its number is another zone's now
            Zone(0, "other", ORIGIN, 1, SYNCED),
        ):
            assert await sending.whole(other) is None
        with pytest.raises(StoreError, match="has no records"):
            await sending.whole(BARE)

    run(steps())


def test_so_many_are_sent_and_others_wait(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "MOST", 2)
    monkeypatch.setattr(outgoing, "WAIT", 0.05)

    async def steps() -> None:
        sending = Outgoing(reader)
        first, second = await sending.slot("192.0.2.1"), await sending.slot("192.0.2.1")
        with pytest.raises(TimeoutError):
            await sending.slot("192.0.2.1")
        transfer = first.of(ORIGIN, [(1, b"")])
        transfer.close()
        transfer.close()  # it is given back once
        third = await sending.slot("192.0.2.1")
        with pytest.raises(TimeoutError):
            await sending.slot("192.0.2.1")
        dropped = second.of(ORIGIN, [(1, b"")])
        del dropped  # nobody sends it
        fourth = await sending.slot("192.0.2.1")
        assert third is not fourth
        third.close()
        fourth.close()
        assert (sending._shares, sending._count) == ({}, 0)

    run(steps())


def test_one_address_has_a_part_of_what_is_sent(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "MOST", 3)
    monkeypatch.setattr(outgoing, "MOST_OF_ONE", 2)
    slow, node = "192.0.2.1", "192.0.2.2"

    async def steps() -> None:
        sending = Outgoing(reader)
        held = [await sending.slot(slow), await sending.slot(slow)]
        waiting = [asyncio.ensure_future(sending.slot(slow)) for _ in range(5)]
        await asyncio.sleep(0)
        for _ in range(3):  # one after the other
            slot = await asyncio.wait_for(sending.slot(node), 1)
            slot.close()
        held[0].close()
        held.append(await asyncio.wait_for(waiting[0], 1))
        assert [one.done() for one in waiting] == [True, False, False, False, False]
        for one in waiting[1:]:
            one.cancel()
        await asyncio.wait(waiting)
        for each in held:
            each.close()
        assert (sending._shares, sending._count) == ({}, 0)

    run(steps())


def test_places_are_shared_by_addresses(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "MOST", 4)
    one, two, node = "192.0.2.1", "192.0.2.2", "192.0.2.3"

    async def steps() -> None:
        sending = Outgoing(reader)
        held = {host: [await sending.slot(host), await sending.slot(host)] for host in (one, two)}
        assert not any(sending.has_to_yield(one, slow=slow) for slow in (True, False))  # nobody waits
        more = [asyncio.ensure_future(sending.slot(host)) for host in (one, two, one)]
        await asyncio.sleep(0)
        assert not any(sending.has_to_yield(one, slow=slow) for slow in (True, False))  # who waits has as many
        new = asyncio.ensure_future(sending.slot(node))
        await asyncio.sleep(0)
        assert [sending.has_to_yield(one, slow=slow) for slow in (True, False)] == [True, True]
        held[one].pop().close()
        slot = await asyncio.wait_for(new, 1)  # though it came last
        assert [sending.has_to_yield(two, slow=slow) for slow in (True, False)] == [True, False]
        assert not sending.has_to_yield(one, slow=True)
        slot.close()
        last = await asyncio.wait_for(more[0], 1)  # who has fewest
        for waiting in more[1:]:
            waiting.cancel()
        await asyncio.wait(more)
        for each in (*held[one], *held[two], last):
            each.close()
        assert (sending._shares, sending._count, sending._sent, sending._waiting) == ({}, 0, 0, {})

    run(steps())


def test_so_many_wait_and_no_more(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "MOST", 1)
    monkeypatch.setattr(outgoing, "WAITING", 4)
    monkeypatch.setattr(outgoing, "WAITING_OF_ONE", 2)

    async def steps() -> None:
        sending = Outgoing(reader)
        first = await sending.slot("192.0.2.1")
        many = [asyncio.ensure_future(sending.slot(f"192.0.2.{number}")) for number in (1, 1, 2, 2, 2, 3, 3)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [one.done() for one in many] == [False, True, False, False, True, True, True]
        assert all(isinstance(one.exception(), TimeoutError) for one in many if one.done())
        first.close()
        for one in (many[0], many[2], many[3]):
            (await asyncio.wait_for(one, 1)).close()
        assert (sending._shares, sending._count) == ({}, 0)

    run(steps())


def test_a_snapshot_stays_as_it_was_and_ends_when_the_map_grows(reader: Reader) -> None:
    snapshot = reader.snapshot()
    prefix = b"\0\0"
    first = snapshot.entries(prefix, 600)
    with reader:  # look-ups go on beside it
        assert reader.find(prefix)
    rest = snapshot.entries(prefix, 600)
    assert (len(first), len(rest), snapshot.entries(prefix, 600)) == (600, COUNT + 1 - 600, [])
    assert [key for key, _ in first + rest] == sorted(key for key, _ in first + rest)
    other = reader.snapshot()
    reader._follow_map()
    for ended in (snapshot, other):
        with pytest.raises(StoreError, match="has ended"):
            ended.entries(prefix, 1)
    other.end()
    assert len(reader.snapshot().entries(prefix, 5000)) == COUNT + 1


def test_what_takes_too_long_is_given_up(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "PREPARING", 0.001)
    monkeypatch.setattr(outgoing, "_PORTION", 1)

    async def steps() -> None:
        sending = Outgoing(reader)
        with pytest.raises(TimeoutError):
            await sending.whole(ZONE)
        assert not sending._packing.locked()

    run(steps())
