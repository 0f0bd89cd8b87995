"""Answers straight from the zone store are those that the plugins give: the same bytes, counted and kept the same."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns.server.packet_cache import Entry
from kdns.wire import message, names, rr
from kdns.zone.reader import Reader
from kdns.zone.store import DATABASES
from tests.support import worlds
from tests.support.answering import Answering, Ground
from tests.support.corpus import SEEDS
from tests.support.worlds import ELSEWHERE, GONE, POD, REVERSE, WEB, WORLDS

TYPES = (
    rr.A, rr.AAAA, rr.NS, rr.CNAME, rr.SOA, rr.PTR, rr.TXT, rr.SRV, rr.ANY, rr.AXFR, rr.HINFO, rr.OPT, 65, 46, 0, 65535
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

    def __init__(self, ground: Ground) -> None:
        self.known = ground.names()
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
    assert [text for text in asked if pair.ask(query(names.from_text(text), rr.A))] == list(WORLDS[title].direct)
    pair.check()


@pytest.mark.parametrize("title", WORLDS)
def test_every_name_of_a_store_and_those_around_it(pairs: dict[str, Pair], title: str) -> None:
    pair, choice = pairs[title], random.Random(title)
    answered = 0
    for name in worlds.near(pair.known, choice):
        asked = worlds.mixed(name, choice)
        for qtype in (*TYPES[:2], *choice.sample(TYPES[2:], 3)):
            data = query(asked, qtype, choice.choice(OPTS[:3]), choice.choice(FLAGS[:6]))
            for _ in range(choice.choice((1, 1, 3))):  # the third time it is kept
                answered += pair.ask(data)
    pair.check()
    assert answered > (100 if WORLDS[title].direct else -1)


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
