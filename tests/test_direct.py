"""Answers straight from the zone store are those that the plugins give: the same bytes, counted and kept the same."""

from __future__ import annotations

import multiprocessing
import random
import struct
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns.plugins.errors import Handler as Errors
from kdns.server.packet_cache import Entry
from kdns.wire import message, names, rr
from kdns.zone.changes import Changes
from kdns.zone.reader import Reader
from kdns.zone.store import DATABASES, EXPIRED, SYNCED, Store, Transaction
from tests.support import worlds
from tests.support.answering import Answering, Ground, fill, publish
from tests.support.corpus import SEEDS
from tests.support.worlds import ELSEWHERE, GONE, MASTER, POD, REVERSE, WEB, WORLDS

TYPES = (
    rr.A, rr.AAAA, rr.NS, rr.CNAME, rr.SOA, rr.PTR, rr.TXT, rr.SRV, rr.ANY, rr.AXFR, rr.HINFO, rr.OPT, 65, 46, 0, 65535,
    rr.DS, rr.MX, rr.NSEC,
)  # fmt: skip
OPTS = (
    b"",
    message.opt_record(False),
    message.opt_record(True),
    message.opt_record(True, 512),
    message.opt_record(False, 0),
    message.opt_record(False, 65535),
    b"\0\0\x29\x04\xd0\x07\0\x80\0\0\0",  # upper bits of an rcode
    b"\0\0\x29\x04\xd0\0\0\x7f\xff\0\0",  # flags but for DO
    b"\0\0\x29\x04\xd0\0\1\0\0\0\0",  # version 1
    b"\0\0\x29\x04\xd0\0\0\0\0\0\4\0\3\0\0",  # NSID
    b"\0\0\x29\x04\xd0\0\0\0\0\1\0" + bytes(256),  # an option of 252 bytes
    b"\1a\0\x29\x04\xd0\0\0\0\0\0\0",  # with an owner
    b"\0\0\1\0\1\0\0\0\5\0\4\n\0\0\1",  # no OPT at all
    b"\0\0\x29\x04\xd0\0\0\0\0\0",  # cut short
    b"\0\0\x29\x04\xd0\0\0\0\0\0\0\0",  # and a byte more
)
FLAGS = (0x0100, 0x0000, 0x0110, 0x0010, 0x0120, 0x0030, 0x0700, 0x07FF, 0x0001, 0x8100, 0x2100, 0x7900)


class Pair:
    """Two workers with the same configuration and store; one has no way round the plugins."""

    def __init__(self, ground: Ground, known: list[bytes] | None = None) -> None:
        """known: the names that the store has, if that needs not be looked up."""
        self.known = ground.names() if known is None else known
        self.reader = Reader(ground.path, ground.changes)
        self.first = Answering(ground, self.reader)
        self.second = Answering(ground, self.reader, without_direct=True)

    def ask(self, data: bytes) -> bool:
        """Let both answer, if one can do so directly; whether it could."""
        direct = self.first.direct
        if direct is None:
            return False
        entry = direct.answer(data[2:], self.first.cache)
        direct.leave()
        if entry is None:
            return False
        other = self.second.respond(data)
        assert isinstance(other, Entry), f"the plugins have no answer to {data.hex()}"
        assert entry.response.hex() == other.response.hex(), f"to {data.hex()}"
        assert other.turns is None
        assert entry.hashes == other.hashes, data.hex()
        self.first.region.cells[entry.cell] += 1
        self.second.region.cells[other.cell] += 1
        return True

    def check(self) -> None:
        """What both counted and keep is the same, and no plugin failed."""
        assert self.first.counted() == self.second.counted()
        young = [
            {key: (entry.response, entry.hashes) for key, entry in worker.cache.young.items()}
            for worker in (self.first, self.second)
        ]
        assert young[0] == young[1]
        assert self.first.reported == self.second.reported == []

    def close(self) -> None:
        for worker in (self.first, self.second):
            worker.__exit__()
        self.reader.close()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Pair]]:
    found = {title: Pair(worlds.build(_folder(tmp_path_factory), world)) for title, world in WORLDS.items()}
    yield found
    for pair in found.values():
        pair.close()


def _folder(factory: pytest.TempPathFactory) -> Path:
    return factory.mktemp("world")


def query(name: bytes, qtype: int, opt: bytes = b"", flags: int = 0x0100, klass: int = rr.IN) -> bytes:
    return message.HEADER.pack(7, flags, 1, 0, 0, bool(opt)) + name + struct.pack("!HH", qtype, klass) + opt


@pytest.mark.parametrize("title", WORLDS)
def test_what_is_answered_directly(pairs: dict[str, Pair], title: str) -> None:
    pair = pairs[title]
    asked = dict.fromkeys((*WORLDS[title].direct, WEB, GONE, POD, REVERSE, ELSEWHERE))
    if "file" in title or WORLDS[title].data:
        asked |= dict.fromkeys(worlds.ASKED)
    assert [text for text in asked if pair.ask(query(names.from_text(text), rr.A))] == list(WORLDS[title].direct)
    pair.check()


@pytest.mark.parametrize("title", WORLDS)
def test_names_of_a_store_and_those_around_them(pairs: dict[str, Pair], title: str) -> None:
    pair, choice = pairs[title], random.Random(title)
    answered = 0
    known = choice.sample(pair.known, min(len(pair.known), 150))  # other ones for each
    for name in worlds.near(known, choice):
        asked = worlds.mixed(name, choice)
        for qtype in (*TYPES[:2], *choice.sample(TYPES[2:], 3)):
            data = query(asked, qtype, choice.choice(OPTS[:3]), choice.choice(FLAGS[:6]))
            for _ in range(choice.choice((1, 1, 3))):  # the third time it is kept
                answered += pair.ask(data)
    pair.check()
    assert answered > (60 if WORLDS[title].direct else -1)


labels = st.sampled_from(worlds.LABELS) | st.binary(min_size=1, max_size=63)
ZONES = (
    *(prefix + worlds.Z for prefix in ("", "svc.", "default.svc.", "pod.")),
    *("in-addr.arpa", "ip6.arpa", "example.org", "."),
)
zones = st.sampled_from(ZONES).map(names.from_text)


@st.composite
def asked_names(draw: Any) -> bytes:
    """A name below one of the zones, no longer than a message may have it in most cases, spelled in any case."""
    name: bytes = draw(zones)
    for label in draw(st.lists(labels, max_size=6)):
        name = bytes((len(label),)) + label + name
    upper = draw(st.integers(0, (1 << 40) - 1))
    return bytes(byte - 32 if 97 <= byte <= 122 and upper >> at % 40 & 1 else byte for at, byte in enumerate(name))


@st.composite
def messages(draw: Any) -> bytes:
    """Queries of all sorts, and what breaks them."""
    opt: bytes = draw(st.sampled_from(OPTS))
    klass = draw(st.sampled_from((1, 1, 1, 1, 3, 255, 0x0101)))
    data: bytes = query(draw(asked_names()), draw(st.sampled_from(TYPES)), opt, draw(st.sampled_from(FLAGS)), klass)
    data += draw(st.sampled_from((b"", b"", b"", b"", b"\0", message.opt_record(False))))
    for _ in range(draw(st.sampled_from((0, 0, 0, 1, 2)))):
        at = draw(st.integers(0, len(data) - 1))
        cut = draw(st.sampled_from((0, 1, 1, 2)))
        data = data[:at] + draw(st.binary(max_size=2)) + data[at + cut :]
    return data


@settings(max_examples=400)
@given(st.lists(st.sampled_from(sorted(WORLDS)), min_size=1, max_size=6, unique=True), messages())
def test_any_message(pairs: dict[str, Pair], titles: list[str], data: bytes) -> None:
    for title in titles:
        for _ in range(3):
            pairs[title].ask(data)
        pairs[title].check()


def test_messages_that_broken_clients_send(pairs: dict[str, Pair]) -> None:
    for pair in pairs.values():
        for data in SEEDS.values():
            pair.ask(data)
        pair.check()


def test_what_cannot_be_read_is_told_by_the_plugins(tmp_path: Path) -> None:
    ground = worlds.build(tmp_path, next(iter(WORLDS.values())))
    with lmdb.open(str(ground.path), max_dbs=8) as store, store.begin(write=True) as txn:
        zones = store.open_db(DATABASES[1], txn=txn)
        for key in [key for key, _ in txn.cursor(zones)]:
            txn.put(key, b"crc!\xc1", db=zones)
    reader = Reader(ground.path, ground.changes)
    with Answering(ground, reader) as worker:
        data = query(names.from_text(WEB), rr.A)
        assert worker.direct is not None
        assert worker.direct.answer(data[2:], worker.cache) is None
        worker.direct.leave()
        entry = worker.respond(data)
        assert isinstance(entry, Entry)
        assert entry.response[1] & 0xF == rr.SERVFAIL
        assert len(worker.reported) == 1
    reader.close()


def write(ground: Ground, orders: Connection) -> None:
    """Write to a ground's store what is ordered, as a supervisor does: in a process of its own, while workers read."""
    store = Store.open(ground.path, ground.changes, print)
    while (order := orders.recv()) is not None:
        *wanted, told = order
        store.changes = ground.changes if told else Changes.create()
        store.write(lambda txn, wanted=wanted: _write(ground, txn, *wanted))  # type: ignore[misc]
        orders.send(True)
    store.close()


def _write(ground: Ground, txn: Transaction, title: str, wanted: str | int | None) -> None:
    """wanted: a master file, a state, or None to drop the zone."""
    if isinstance(wanted, str):
        fill(ground.path.parent, ground.config.blocks, title, wanted)(txn)
        return
    (zone,) = (zone for zone in txn.zones() if zone.origin == names.from_text(title.split()[1]))
    if wanted is None:
        txn.drop_zone(zone)
    else:
        txn.set_state(zone, wanted)


class Moving:
    """A pair whose zones come, go and change."""

    corefile = (
        ".:53 {\nerrors\nfile db example.org example.com\nauto example.org example.net {\ndirectory zones\n}\n}\n"
    )

    def __init__(self, folder: Path) -> None:
        ground = publish(folder, [], self.corefile)
        fork = multiprocessing.get_context("fork")
        self._orders, orders = fork.Pipe()
        self._writer = fork.Process(target=write, args=(ground, orders), daemon=True)
        self._writer.start()
        self.pair = Pair(ground, known=[])

    def write(self, title: str, wanted: str | int | None, *, told: bool = True) -> None:
        """told: readers are told of it, as they are soon after it."""
        self._orders.send((title, wanted, told))
        assert self._orders.poll(20)
        self._orders.recv()

    def close(self) -> None:
        self._orders.send(None)
        self._writer.join(20)
        self.pair.close()

    def direct(self) -> set[str]:
        """Which of some names are answered directly now."""
        for worker in (self.pair.first, self.pair.second):
            worker.cache.sync()
        asked = ("host.example.org", "gone.example.org", "host.sub.example.org", "host.example.net")
        found = {text for text in asked if self.pair.ask(query(names.from_text(text), rr.A))}
        self.pair.check()
        return found


@pytest.fixture
def moving(tmp_path: Path) -> Iterator[Moving]:
    found = Moving(tmp_path)
    yield found
    found.close()


def test_zones_that_come_and_go(moving: Moving) -> None:
    host, gone, below, other = ("host.example.org", "gone.example.org", "host.sub.example.org", "host.example.net")
    assert moving.direct() == set()
    moving.write("file example.org", MASTER)
    assert moving.direct() == {host, gone, below}
    moving.write("auto example.net", MASTER)
    assert moving.direct() == {host, gone, below, other}
    moving.write("auto sub.example.org", MASTER)  # `file` has its names
    assert moving.direct() == {host, gone, other}
    moving.write("file example.org", None)
    assert moving.direct() == {below, other}
    moving.write("file example.org", MASTER.replace("host ", "ghost "))  # its number is that of another one before
    moving.write("auto sub.example.org", None)
    assert moving.direct() == {host, gone, below, other}
    moving.write("file example.org", EXPIRED)
    assert moving.direct() == {other}
    moving.write("file example.org", SYNCED)
    assert moving.direct() == {host, gone, below, other}


def test_zones_that_stay_are_not_made_anew(moving: Moving, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be thousands: each is looked at when it is asked for first, and not again when others come."""
    moving.write("auto example.net", MASTER)
    moving.write("auto sub.example.org", MASTER)
    passed = 0
    passing = Errors.passing

    def counting(self: Errors, zone: bytes, server: str) -> tuple[int, ...]:
        nonlocal passed
        passed += 1
        return passing(self, zone, server)

    monkeypatch.setattr(Errors, "passing", counting)
    assert moving.pair.ask(query(names.from_text("host.example.net"), rr.A))
    assert passed == 1
    moving.write("file example.com", MASTER)
    assert moving.pair.ask(query(names.from_text("gone.example.net"), rr.A))
    assert passed == 1
    assert moving.pair.ask(query(names.from_text("host.sub.example.org"), rr.A))
    assert passed == 2


def test_zones_that_are_plain_no_more(moving: Moving) -> None:
    moving.write("file example.org", MASTER)
    moving.write("auto example.net", MASTER)
    every = moving.direct()
    assert len(every) == 4
    kept = query(names.from_text("gone.example.org"), rr.A)
    for record in ("* A 192.0.2.7", "sub NS ns", "sub DNAME example.net.", "host NSEC ns A NSEC"):
        for _ in range(2):
            assert moving.pair.ask(kept)
        assert kept[2:] in moving.pair.first.cache.young
        moving.write("file example.org", f"{MASTER}{record}\n")
        assert moving.direct() == {"host.example.net"}
        assert kept[2:] not in moving.pair.first.cache.young
        moving.write("file example.org", MASTER)
        assert moving.direct() == every


def test_zones_as_they_are_before_readers_are_told(moving: Moving) -> None:
    """Nothing new is answered by what an older commit says of a zone, though it is not known yet what has changed."""
    moving.write("file example.org", MASTER)
    assert "gone.example.org" in moving.direct()
    moving.write("file example.org", MASTER + "* A 192.0.2.7\n", told=False)
    assert moving.direct() == set()
    moving.write("file example.org", MASTER)
    assert "gone.example.org" in moving.direct()
    moving.write("file example.org", None, told=False)
    moving.write("auto example.net", MASTER, told=False)  # it has the number of the other one
    assert moving.direct() == set()


def test_zones_that_come_while_a_batch_is_answered(moving: Moving) -> None:
    """What is read stays of one commit; what came meanwhile is seen with the next batch, by the plugins too."""
    moving.write("file example.org", MASTER)
    worker, new = moving.pair.first, query(names.from_text("host.example.net"), rr.A)
    assert worker.direct is not None
    old = worker.direct.answer(query(names.from_text("host.example.org"), rr.A)[2:], worker.cache)
    assert old is not None
    moving.write("auto example.net", MASTER)
    assert worker.direct.answer(new[2:], worker.cache) is None
    nobody = worker.respond(new)
    assert isinstance(nobody, Entry)
    assert nobody.response[1] & 0xF == rr.REFUSED
    worker.direct.leave()
    assert worker.direct.answer(new[2:], worker.cache) is not None
    worker.direct.leave()
    answered = worker.respond(new)
    assert isinstance(answered, Entry)
    assert answered.response[1] & 0xF == rr.NOERROR
