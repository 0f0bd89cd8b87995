"""The journal of a zone: from any serial that it reaches back to, its differences lead to what the zone has now."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns.wire import names, rr
from kdns.wire.rrset import RRset
from kdns.zone import journal, transfer
from kdns.zone.changes import Changes
from kdns.zone.journal import Difference, Row
from kdns.zone.store import SYNCED, Store, Transaction, Zone
from kdns.zone.values import Records, encode_rrsets

ORIGIN = b"\7cluster\5local\0"
SOA = RRset(rr.SOA, 5, (rr.soa(b"\2ns" + ORIGIN, b"\4host" + ORIGIN, 1, 7200, 1800, 86400, 5),))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[], Store]]:
    """Open the store of the test, again if it is open."""
    stores: list[Store] = []

    def start() -> Store:
        while stores:
            stores.pop().close()
        stores.append(Store.open(tmp_path / "state", Changes.create(), lambda _: None))
        stores[0].journaled = lambda zone: zone.source == "test"
        return stores[0]

    yield start
    while stores:
        stores.pop().close()


@pytest.fixture
def store(make: Callable[[], Store]) -> Store:
    return make()


def begin(store: Store, source: str = "test") -> Zone:
    def action(txn: Transaction) -> Zone:
        zone = txn.add_zone(source, ORIGIN)
        txn.put(zone, ORIGIN, (SOA, RRset(rr.NS, 5, (b"\2ns" + ORIGIN,))))
        txn.set_state(zone, SYNCED)
        return zone

    return store.write(action)


def name(label: str) -> bytes:
    return names.join([label.encode()])[:-1] + ORIGIN


def a(*addresses: str, ttl: int = 5) -> Records:
    return (RRset(rr.A, ttl, tuple(map(rr.address, addresses))),)


def put(store: Store, zone: Zone, label: str, records: Records) -> None:
    store.write(lambda txn: txn.put(zone, name(label), records))


def current(store: Store, zone: Zone) -> Zone:
    return store.read(lambda txn: txn.zone(zone.number))


def since(store: Store, zone: Zone, serial: int) -> list[bytes] | None:
    return store.read(lambda txn: journal.since(txn, txn.zone(zone.number), serial))


def rows(store: Store, zone: Zone) -> set[Row]:
    """All records but the SOA."""
    return {
        Row(owner, rrset.type, rrset.ttl, rdata)
        for owner, rrsets in store.read(lambda txn: list(txn.below(zone, ORIGIN)))
        for rrset in rrsets
        if rrset.type != rr.SOA
        for rdata in rrset.rdatas
    }


def kept(store: Store) -> int:
    return store.read(lambda txn: sum(1 for _ in txn.object_keys("test", "journal")))


def test_a_difference_has_the_records_that_differ_and_no_others(store: Store) -> None:
    zone = begin(store)
    put(store, zone, "web", a("10.0.0.1", "10.0.0.2"))
    before = current(store, zone)
    put(store, zone, "web", a("10.0.0.2", "10.0.0.3"))
    found = since(store, zone, before.serial)
    assert found is not None
    difference = journal.condensed(found)
    web = name("web")
    assert difference.removed == [Row(web, rr.A, 5, rr.address("10.0.0.1"))]
    assert difference.added == [Row(web, rr.A, 5, rr.address("10.0.0.3"))]
    assert journal.serial_of(difference.before) == before.serial
    assert journal.serial_of(difference.after) == current(store, zone).serial


def test_a_new_ttl_is_another_record(store: Store) -> None:
    zone = begin(store)
    put(store, zone, "web", a("10.0.0.1"))
    before = current(store, zone).serial
    put(store, zone, "web", a("10.0.0.1", ttl=7))
    difference = journal.condensed(since(store, zone, before) or [])
    assert [(row.ttl, row.rdata) for row in difference.removed + difference.added] == [
        (5, rr.address("10.0.0.1")),
        (7, rr.address("10.0.0.1")),
    ]


def test_what_comes_and_goes_between_is_not_told(store: Store) -> None:
    zone = begin(store)
    put(store, zone, "web", a("10.0.0.1"))
    before = current(store, zone).serial
    put(store, zone, "new", a("10.0.0.9"))
    store.write(lambda txn: txn.delete(zone, name("web")))
    store.write(lambda txn: txn.delete(zone, name("new")))
    put(store, zone, "web", a("10.0.0.1"))
    found = since(store, zone, before)
    assert found is not None
    assert len(found) == 4
    difference = journal.condensed(found)
    assert (difference.removed, difference.added) == ([], [])


def test_it_outlives_the_process(make: Callable[[], Store]) -> None:
    store = make()
    zone = begin(store)
    before = current(store, zone).serial
    put(store, zone, "web", a("10.0.0.1"))
    store = make()
    put(store, zone, "web", a("10.0.0.2"))
    difference = journal.condensed(since(store, zone, before) or [])
    assert [row.rdata for row in difference.added] == [rr.address("10.0.0.2")]


def test_the_oldest_go_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MOST_BYTES", 2000)
    zone = begin(store)
    serials = []
    for number in range(50):
        serials.append(current(store, zone).serial)
        put(store, zone, f"n{number}", a("10.0.0.1"))
    reached = [since(store, zone, serial) is not None for serial in serials]
    assert reached == sorted(reached)
    assert 3 < sum(reached) == kept(store) < 25
    size = store.read(lambda txn: sum(len(data) for _, data in txn.objects("test", "journal")))
    assert size <= 2000
    put(store, zone, "wide", (RRset(rr.TXT, 5, (rr.txt(b"x" * 250) * 10,)),))  # more than a journal may have
    assert kept(store) == 0
    put(store, zone, "next", a("10.0.0.1"))
    assert kept(store) == 1


def test_a_serial_is_found_or_not_in_a_few_steps(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    zone = store.write(lambda txn: txn.add_zone("test", ORIGIN, given_serial=True))
    first = (1 << 32) - 300
    for number in range(200):  # beyond the end of the ring
        rewrite(store, zone, (first + 3 * number) & 0xFFFFFFFF, f"10.0.0.{number}")
    reads = 0
    get_object = Transaction.get_object

    def count(self: Transaction, source: str, kind: str, key: str) -> bytes | None:
        nonlocal reads
        reads += 1
        return get_object(self, source, kind, key)

    monkeypatch.setattr(Transaction, "get_object", count)
    for serial in (first - 1, first + 1, first + 298, first + 301, first + 596):
        assert since(store, zone, serial & 0xFFFFFFFF) is None
    assert reads <= 5 * 11
    for number in (0, 99, 100, 101, 198):
        assert len(since(store, zone, (first + 3 * number) & 0xFFFFFFFF) or []) == 199 - number


def test_what_is_missing_in_the_middle_is_no_way(store: Store) -> None:
    zone = store.write(lambda txn: txn.add_zone("test", ORIGIN, given_serial=True))
    for serial in range(10):
        store.journaled = lambda zone, serial=serial: serial != 5
        rewrite(store, zone, serial + 1, f"10.0.0.{serial}")
    assert since(store, zone, 5) is None
    assert since(store, zone, 3) is None
    assert len(since(store, zone, 6) or []) == 4


@pytest.mark.parametrize("how", ["clear", "between", "fill", "drop"])
def test_a_zone_that_is_written_anew_begins_another_one(store: Store, how: str) -> None:
    zone = begin(store)
    before = current(store, zone).serial
    put(store, zone, "web", a("10.0.0.1"))
    assert kept(store) == 1

    def action(txn: Transaction) -> None:
        if how in ("clear", "between"):
            if how == "between":
                txn.put(zone, ORIGIN, (SOA, RRset(rr.NS, 7, (b"\3ns2" + ORIGIN,))))
            txn.clear(zone)
            txn.put(zone, ORIGIN, (SOA,))
        elif how == "fill":
            txn.fill(zone, [(name("web"), a("10.0.0.7"))])
        else:
            txn.drop_zone(zone)

    store.write(action)
    assert kept(store) == 0
    assert store.read(lambda txn: list(txn.object_keys("test", "journals"))) == []
    if how != "drop":
        assert journal.rises(before, current(store, zone).serial)
        assert since(store, zone, before) is None


def test_zones_that_nobody_follows_have_none(store: Store) -> None:
    zone = begin(store, "other")
    put(store, zone, "web", a("10.0.0.1"))
    assert store.read(lambda txn: list(txn.object_keys("other", "journal"))) == []
    store.journaled = None
    zone = begin(store)
    put(store, zone, "web", a("10.0.0.1"))
    assert kept(store) == 0


def given_rows(zone: Zone, serial: int, *addresses: str) -> list[tuple[bytes, bytes]]:
    soa = RRset(rr.SOA, 5, (rr.soa(b"\2ns" + ORIGIN, b"\4host" + ORIGIN, serial, 1, 2, 3, 4),))
    entries = [(ORIGIN, (soa,)), (name("web"), a(*addresses))]
    return [(zone.key(owner)[2:], encode_rrsets(b"", records)[4:]) for owner, records in entries]


def rewrite(store: Store, zone: Zone, serial: int, *addresses: str) -> None:
    store.write(lambda txn: txn.replace(zone, given_rows(zone, serial, *addresses)))


def test_of_a_file_the_serials_are_those_of_its_soa(store: Store) -> None:
    zone = store.write(lambda txn: txn.add_zone("test", ORIGIN, given_serial=True))
    for serial, address in ((7, "10.0.0.1"), (9, "10.0.0.2"), (10, "10.0.0.3")):
        rewrite(store, zone, serial, address)
    difference = journal.condensed(since(store, zone, 7) or [])
    assert [row.rdata for row in difference.removed + difference.added] == [*map(rr.address, ("10.0.0.1", "10.0.0.3"))]
    assert since(store, zone, 8) is None
    rewrite(store, zone, 10, "10.0.0.3")  # it is read again, as at each start
    store.write(lambda txn: txn.change(zone, {}))
    assert len(since(store, zone, 7) or []) == 2
    rewrite(store, zone, 10, "10.0.0.4")  # the same serial for something else
    assert since(store, zone, 9) is None
    rewrite(store, zone, 3, "10.0.0.5")  # it goes back
    assert (since(store, zone, 10), kept(store)) == (None, 0)


def test_a_serial_rises_though_the_store_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change takes longer than a tick: there are 200 a second, and then it is made anew at once."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    last: list[int] = []
    for attempt in ("first", "second"):
        store = Store.open(tmp_path / attempt, Changes.create(), lambda _: None)
        zone = begin(store)
        for number in range(20):
            now += 1 / 200
            put(store, zone, "web", a(f"10.0.0.{number}"))
            serial = current(store, zone).serial
            assert not last or journal.rises(last[-1], serial)
            last.append(serial)
        store.close()


def test_another_source_of_a_zone_goes_on_from_its_serial(store: Store) -> None:
    ahead = (int(time.time() * 256) + 5_000_000) & 0xFFFFFFFF
    zone = store.write(lambda txn: txn.add_zone("file", ORIGIN, given_serial=True))
    rewrite(store, zone, ahead, "10.0.0.1")
    heir = begin(store)
    assert journal.rises(ahead, current(store, heir).serial)
    store.write(lambda txn: txn.drop_zone(zone))
    put(store, heir, "web", a("10.0.0.1"))
    assert journal.rises(ahead, current(store, heir).serial)


LABELS = st.sampled_from(["a", "b", "c", "a.x", "b.x"])
ADDRESSES = st.lists(st.integers(1, 5), max_size=3, unique=True)


@settings(max_examples=40)
@given(st.lists(st.lists(st.tuples(LABELS, ADDRESSES, st.integers(5, 6)), max_size=4), min_size=1, max_size=12))
def test_differences_lead_from_anything_to_what_there_is(
    tmp_path_factory: pytest.TempPathFactory, steps: list[list[tuple[str, list[int], int]]]
) -> None:
    store = Store.open(tmp_path_factory.mktemp("journal"), Changes.create(), lambda _: None)
    store.journaled = lambda _: True
    try:
        zone = begin(store)
        seen: list[tuple[int, set[Row]]] = [(current(store, zone).serial, rows(store, zone))]
        for step in steps:

            def action(txn: Transaction, step: list[tuple[str, list[int], int]] = step) -> None:
                for label, numbers, ttl in step:
                    owner = names.join([part.encode() for part in label.split(".")])[:-1] + ORIGIN
                    if numbers:
                        txn.put(zone, owner, a(*(f"10.0.0.{number}" for number in numbers), ttl=ttl))
                    else:
                        txn.delete(zone, owner)

            store.write(action)
            seen.append((current(store, zone).serial, rows(store, zone)))
        end = seen[-1][1]
        for serial, before in seen[:-1]:
            if serial == seen[-1][0]:
                continue
            found = since(store, zone, serial)
            assert found is not None
            difference = journal.condensed(found)
            assert set(difference.removed) <= before
            assert not set(difference.added) & before
            assert (before - set(difference.removed)) | set(difference.added) == end
    finally:
        store.close()


# As messages


def unpacked(messages: transfer.Messages, origin: bytes = ORIGIN) -> list[tuple[str, str, str]]:
    """The records, as dnspython reads them."""
    import dns.message

    found = []
    for count, body in messages:
        head = b"\0\0\x84\0\0\1" + count.to_bytes(2) + bytes(4)
        read = dns.message.from_wire(head + origin + b"\0\xfc\0\1" + body, one_rr_per_rrset=True)
        found += [(str(one.name), one.to_text().split(" ")[3], str(one[0])) for one in read.answer]
    return found


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.lists(st.sampled_from("abcdefgh"), max_size=6), st.integers(0, 900)), max_size=80),
    st.integers(200, 2000),
)
def test_records_come_out_as_they_went_in(found: list[tuple[list[str], int]], preferred: int) -> None:
    packer = transfer.Packer(ORIGIN, preferred)
    wanted: Counter[tuple[str, str]] = Counter()
    for labels, size in found:
        owner = names.join([label.encode() * 5 for label in labels])[:-1] + ORIGIN
        packer.add(Row(owner, 65280, 5, b"x" * size))
        wanted[names.to_text(owner), f"\\# {size}" + (" " + "78" * size if size else "")] += 1
    messages = packer.done()
    got = Counter((owner, text.replace(" ", "")) for owner, _, text in unpacked(messages))
    assert got == Counter({(owner, text.replace(" ", "")): count for (owner, text), count in wanted.items()})
    assert all(count == 1 or len(body) + len(ORIGIN) + 16 <= preferred for count, body in messages)


def test_a_difference_is_between_two_serials() -> None:
    rdatas = [rr.soa(b"\2ns" + ORIGIN, b"\4host" + ORIGIN, serial, 1, 2, 3, 4) for serial in (1, 2)]
    old, new = (Row(ORIGIN, rr.SOA, 5, rdata) for rdata in rdatas)
    one, two = (Row(name(label), rr.A, 5, rr.address("10.0.0.1")) for label in ("one", "two"))
    read = unpacked(transfer.difference(ORIGIN, Difference(old, new, [one], [two])))
    shape = [text.split()[2] if kind == "SOA" else owner.partition(".")[0] for owner, kind, text in read]
    assert shape == ["2", "1", "one", "2", "two", "2"]
