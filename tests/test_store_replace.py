"""A zone of the store is replaced as a whole: what differs is written and noted, and its serial is the source's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from kdns.wire import names, rr
from kdns.wire.rrset import RRset
from kdns.zone.changes import Changes, name_hash
from kdns.zone.reader import Reader
from kdns.zone.store import SYNCED, Store, Transaction, Zone
from kdns.zone.values import Records, encode_rrsets

ORIGIN = names.from_text("example.org")


def soa(serial: int, minimum: int = 5) -> RRset:
    return RRset(rr.SOA, 60, (rr.soa(b"\2ns" + ORIGIN, b"\4host" + ORIGIN, serial, 1, 2, 3, minimum),))


def a(*addresses: str) -> Records:
    return (RRset(rr.A, 60, tuple(map(rr.address, addresses))),)


def below(text: str) -> bytes:
    return names.from_text(f"{text}.example.org")


def rows(zone: Zone, wanted: Mapping[bytes, Records]) -> list[tuple[bytes, bytes]]:
    keys = sorted((zone.key(name), rrsets) for name, rrsets in wanted.items())
    return [(key[2:], encode_rrsets(key, rrsets)[4:]) for key, rrsets in keys]


class Ground:
    """A store with a zone whose serial is given."""

    def __init__(self, folder: Path) -> None:
        self.changes = Changes.create()
        self.store = Store.open(folder, self.changes, pytest.fail)

    def replace(self, wanted: Mapping[bytes, Records]) -> int:
        def action(txn: Transaction) -> int:
            zone = txn.add_zone("test", ORIGIN, given_serial=True)
            count = txn.replace(zone, rows(zone, wanted))
            txn.set_state(zone, SYNCED)
            return count

        return self.store.write(action)

    def change(self, wanted: Mapping[bytes, Records]) -> None:
        self.store.write(lambda txn: txn.change(self.zone_in(txn), wanted))

    def forget_count(self) -> None:
        """Leave the zone as a kdns that did not count has written it."""

        def action(txn: Transaction) -> None:
            txn._put_zone(structs.replace(self.zone_in(txn), special=None))

        self.store.write(action)

    def zone_in(self, txn: Transaction) -> Zone:
        (zone,) = txn.zones()
        return zone

    def noted(self, seen: int) -> set[int] | None:
        _, hashes = self.changes.since(seen)
        return None if hashes is None else set(hashes)

    def content(self) -> dict[bytes, Records]:
        zone = self.zone
        return self.store.read(lambda txn: dict(txn.below(zone, ORIGIN)))

    @property
    def zone(self) -> Zone:
        return self.store.read(self.zone_in)


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    found = Ground(tmp_path / "state")
    yield found
    found.store.close()


def test_the_serial_is_that_of_the_source(ground: Ground) -> None:
    for serial in (7, 3, 0, 2**32 - 1, 5):
        ground.replace({ORIGIN: (soa(serial),)})
        assert ground.content() == {ORIGIN: (soa(serial),)}
        assert ground.zone.serial == serial
    ground.replace({ORIGIN: (soa(5),), below("a"): a("192.0.2.1")})
    assert ground.zone.serial == 5


def test_a_zone_that_is_new_changes_everything_and_a_new_serial_only_the_apex(ground: Ground) -> None:
    floor = ground.changes.floor
    ground.replace({ORIGIN: (soa(1),), below("a"): a("192.0.2.1")})
    assert ground.changes.floor > floor
    floor, seen = ground.changes.floor, ground.changes.generation
    assert ground.replace({ORIGIN: (soa(2),), below("a"): a("192.0.2.1")}) == 1
    assert (ground.changes.floor, ground.noted(seen)) == (floor, {name_hash(ORIGIN)})
    seen = ground.changes.generation
    assert ground.replace({ORIGIN: (soa(2),), below("a"): a("192.0.2.1")}) == 0
    assert ground.changes.generation == seen


@pytest.mark.parametrize(
    "apex",
    [
        pytest.param((RRset(rr.NS, 60, (below("ns"),)), soa(1)), id="NS"),
        pytest.param((soa(1), RRset(rr.DNAME, 60, (below("new"),))), id="DNAME"),
        pytest.param((soa(1, minimum=6),), id="minimum"),
    ],
)
def test_what_else_changes_at_the_apex_changes_everything(ground: Ground, apex: Records) -> None:
    ground.replace({ORIGIN: (soa(1),), below("a"): a("192.0.2.1")})
    seen = ground.changes.generation
    ground.replace({ORIGIN: apex, below("a"): a("192.0.2.1")})
    assert ground.noted(seen) is None


def test_names_that_come_and_go_are_noted_with_those_above_them(ground: Ground) -> None:
    base = {ORIGIN: (soa(1),), below("old.b.c"): a("192.0.2.1"), below("stays"): a("192.0.2.1")}
    ground.replace(base)
    seen = ground.changes.generation
    count = ground.replace({ORIGIN: (soa(2),), below("stays"): a("192.0.2.1"), below("new.d.e"): a("192.0.2.2")})
    assert count == 3
    wanted = {ORIGIN, *map(below, ("old.b.c", "b.c", "c", "new.d.e", "d.e", "e"))}
    assert ground.noted(seen) == set(map(name_hash, wanted))


def test_many_names_are_written_in_portions(ground: Ground) -> None:
    wanted = {below(f"n{number}"): a("192.0.2.1") for number in range(4500)} | {ORIGIN: (soa(1),)}
    assert ground.replace(wanted) == 4501
    assert ground.content() == wanted


NAMES = [ORIGIN, *map(below, ("a", "b.a", "c.b.a", "b", "*", "x.*", "*.a", "d"))]
contents = st.dictionaries(st.sampled_from(NAMES[1:]), st.sampled_from([a("192.0.2.1"), a("192.0.2.2")]))


def existing(content: Mapping[bytes, Records]) -> dict[bytes, Records]:
    """All names that exist."""
    found: dict[bytes, Records] = {}
    for name, records in content.items():
        found[name] = records
        while (name := names.parent(name)) != names.from_text("org"):
            found.setdefault(name, ())
    return found


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(contents, min_size=2, max_size=4))
def test_every_name_that_is_different_afterwards_is_noted(ground: Ground, steps: list[dict[bytes, Records]]) -> None:
    ground.replace({ORIGIN: (soa(0),)})
    before: dict[bytes, Records] = {ORIGIN: (soa(0),)}
    for serial, step in enumerate(steps, 1):
        after = {ORIGIN: (soa(serial),)} | step
        seen = ground.changes.generation
        ground.replace(after)
        assert ground.content() == ordered(ground, after)
        was, now = existing(before), existing(after)
        different = {name for name in was.keys() | now.keys() if was.get(name) != now.get(name)}
        noted = ground.noted(seen)
        assert noted is None or set(map(name_hash, different)) <= noted
        before = after


def one(rtype: int, rdata: bytes) -> Records:
    return (RRset(rtype, 60, (rdata,)),)


APEX: Records = (soa(1), RRset(rr.NS, 60, (below("ns"),)))
PLAIN = {ORIGIN: APEX, below("a"): a("192.0.2.1"), below("x.star*"): a("192.0.2.1"), below("b"): one(rr.DS, bytes(36))}


@pytest.mark.parametrize(
    ("name", "records"),
    [
        pytest.param(below("*"), a("192.0.2.1"), id="wildcard"),
        pytest.param(below("*.b"), one(rr.TXT, b"\1a"), id="wildcard below"),
        pytest.param(below("b.*.a"), a("192.0.2.1"), id="wildcard without records"),
        pytest.param(below("b"), (RRset(rr.A, 60, (bytes(4),)), RRset(rr.NS, 60, (below("ns"),))), id="cut"),
        pytest.param(below("b"), one(rr.DNAME, below("new")), id="DNAME"),
        pytest.param(ORIGIN, (*APEX, RRset(rr.DNAME, 60, (below("new"),))), id="DNAME of all"),
        pytest.param(below("a"), (*a("192.0.2.1"), RRset(rr.RRSIG, 60, (bytes(20),))), id="RRSIG"),
        pytest.param(ORIGIN, (*APEX, RRset(rr.NSEC, 60, (bytes(20),))), id="NSEC"),
    ],
)
def test_what_makes_a_zone_less_than_plain(ground: Ground, name: bytes, records: Records) -> None:
    """It may come and go by itself or with all of the zone; when it comes, everything has changed."""
    ground.replace(PLAIN)
    assert ground.zone.plain
    for bring in (ground.replace, lambda wanted: ground.change({name: wanted[name]})):
        seen = ground.changes.generation
        bring(PLAIN | {name: records})
        assert (ground.zone.special, ground.noted(seen)) == (1, None)
        ground.change({name: PLAIN.get(name, ())})
        assert ground.zone.plain
        assert ground.content() == ordered(ground, PLAIN)
    ground.replace(PLAIN | {name: records})
    ground.replace(PLAIN)
    assert ground.zone.plain


SPECIAL = [(), a("192.0.2.1"), one(rr.NS, below("ns")), one(rr.DNAME, below("d")), one(rr.NSEC, bytes(9))]
anything = st.dictionaries(st.sampled_from(NAMES[1:]), st.sampled_from(SPECIAL), max_size=5)
steps = st.lists(st.tuples(st.booleans(), anything), min_size=1, max_size=5)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps, st.integers(0, 5))
def test_special_names_are_counted(ground: Ground, steps: list[tuple[bool, dict[bytes, Records]]], lost: int) -> None:
    wanted: dict[bytes, Records] = {}
    for serial, (whole, step) in enumerate(steps):
        if whole or not serial:
            wanted = {name: records for name, records in step.items() if records} | {ORIGIN: (soa(serial),)}
            ground.replace(wanted)
        else:
            ground.change(step | {ORIGIN: (soa(serial),)})
            wanted |= step | {ORIGIN: (soa(serial),)}
        special = sum(
            bool(records) and (b"\1*" in name or any(rrset.type in (rr.NS, rr.DNAME, rr.NSEC) for rrset in records))
            for name, records in wanted.items()
        )
        assert ground.zone.special == special
        if serial == lost:
            ground.forget_count()
            assert not ground.zone.plain


def ordered(ground: Ground, content: Mapping[bytes, Records]) -> dict[bytes, Records]:
    return dict(sorted(content.items(), key=lambda item: ground.zone.key(item[0])))


def test_the_entry_in_front_of_a_key(ground: Ground, tmp_path: Path) -> None:
    ground.replace({ORIGIN: (soa(1),), below("a"): a("192.0.2.1"), below("c"): a("192.0.2.2")})
    zone = ground.zone
    ground.store.close()  # it can be open once in a process
    reader = Reader(tmp_path / "state", ground.changes)
    with reader:
        found = [reader.before(key) for key in (zone.prefix, *map(zone.key, map(below, ("a", "b", "c", "d"))))]
    assert [entry and entry[0] for entry in found] == [None, zone.prefix, *map(zone.key, map(below, "aac"))]
    reader.close()
