"""The zone store: what is written is read back, whole or not at all, whatever happens to the process or the disk."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lmdb
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kdns.errors import StoreError
from kdns.wire import names, rr
from kdns.wire.rrset import RRset
from kdns.zone import store as store_module
from kdns.zone.changes import SLOTS, Changes, name_hash
from kdns.zone.lookup import ZoneView
from kdns.zone.reader import Reader
from kdns.zone.store import DATA_FILE, EXPIRED, SYNCED, UNSYNCED, Store, Transaction, Zone, is_held
from kdns.zone.values import Records, decode_rrsets, encode_rrsets, is_sealed, seal

ORIGIN = names.from_text("cluster.local.")
SOA = RRset(rr.SOA, 5, (rr.soa(b"\x02ns" + ORIGIN, b"\x04host" + ORIGIN, 0, 7200, 1800, 86400, 5),))
PAGE = 4096
spawn = multiprocessing.get_context("spawn")

record_types = st.integers(0, 0xFFFF).filter(lambda number: number != rr.ANY)
rrsets = st.builds(
    RRset, record_types, st.integers(0, 2**32 - 1), st.lists(st.binary(max_size=40), max_size=5).map(tuple)
)
few_names = st.lists(st.sampled_from([b"a", b"b", b"\0", b"\1", b"a\0b"]), max_size=4).map(
    lambda labels: names.join(labels)[:-1] + ORIGIN
)


def _name(text: str) -> bytes:
    return names.from_text(f"{text}.cluster.local.") if text else ORIGIN


def _a(*addresses: str, ttl: int = 5) -> Records:
    return (RRset(rr.A, ttl, tuple(map(rr.address, addresses))),)


class Warnings(list[str]):
    """What Store.open warned of."""


@pytest.fixture
def warnings() -> Warnings:
    return Warnings()


@pytest.fixture
def opened(tmp_path: Path, warnings: Warnings) -> Iterator[Callable[..., Store]]:
    """Open the store in tmp_path/state; what is open is closed with the test, or by opening it again."""
    stores: list[Store] = []

    def start(directory: Path | None = None, **options: Any) -> Store:
        while stores:
            stores.pop().close()
        stores.append(Store.open(directory or tmp_path / "state", Changes.create(), warnings.append, **options))
        return stores[-1]

    yield start
    while stores:
        stores.pop().close()


@pytest.fixture
def store(opened: Callable[..., Store]) -> Store:
    return opened()


def _zone(store: Store, *, soa: bool = True) -> Zone:
    def action(txn: Transaction) -> Zone:
        zone = txn.add_zone("test", ORIGIN)
        if soa:
            txn.put(zone, ORIGIN, (SOA,))
        return zone

    return store.write(action)


def _put(store: Store, zone: Zone, name: bytes, records: Records) -> bool:
    return store.write(lambda txn: txn.put(zone, name, records))


def _get(store: Store, zone: Zone, name: bytes) -> Records | None:
    return store.read(lambda txn: txn.get(zone, name))


def _serial(store: Store, zone: Zone) -> int:
    return store.read(lambda txn: txn.zone(zone.number)).serial


def _contents(store: Store) -> dict[bytes, Records]:
    def action(txn: Transaction) -> dict[bytes, Records]:
        return {name: found for zone in txn.zones() for name, found in txn.below(zone, zone.origin)}

    return store.read(action)


# Values


@given(st.lists(rrsets, max_size=5, unique_by=lambda rrset: rrset.type).map(tuple), st.binary(max_size=20))
def test_rrsets_come_back_as_they_were(records: Records, key: bytes) -> None:
    value = encode_rrsets(key, records)
    assert is_sealed(key, value)
    assert decode_rrsets(value) == records
    for rrset in records:
        assert decode_rrsets(value, rrset.type) == (rrset,)


def test_an_rrset_may_have_more_records_than_16_bits_count() -> None:
    records = (RRset(rr.TXT, 5, tuple(struct.pack("!I", number) for number in range(70_000))),)
    assert decode_rrsets(encode_rrsets(b"", records)) == records


@given(st.binary(min_size=1, max_size=50), st.binary(min_size=1, max_size=20), st.data())
def test_a_seal_is_broken_by_any_flipped_bit(data: bytes, key: bytes, draw: st.DataObject) -> None:
    value = bytearray(seal(key, data))
    bit = draw.draw(st.integers(0, len(value) * 8 - 1))
    value[bit // 8] ^= 1 << bit % 8
    assert not is_sealed(key, bytes(value))
    other = bytearray(key)
    other[bit // 8 % len(key)] ^= 1 << bit % 8
    assert not is_sealed(bytes(other), seal(key, data))
    assert not is_sealed(key, b"abc")


# Names


def test_what_is_put_is_read_and_what_is_deleted_is_gone(store: Store) -> None:
    zone = _zone(store)
    assert _put(store, zone, _name("a"), _a("10.0.0.1"))
    assert _get(store, zone, _name("a")) == _a("10.0.0.1")
    assert _get(store, zone, _name("b")) is None
    assert store.write(lambda txn: txn.delete(zone, _name("a")))
    assert _get(store, zone, _name("a")) is None
    assert not store.write(lambda txn: txn.delete(zone, _name("a")))


def test_the_longest_name_can_be_stored(store: Store) -> None:
    zone = store.write(lambda txn: txn.add_zone("test", names.ROOT))
    name = names.join([b"\1" * 63, b"\0" * 63, b"\1" * 63, b"\0" * 61])
    assert _put(store, zone, name, ())
    assert store.read(lambda txn: list(txn.below(zone, names.ROOT))) == [(name, ())]


@given(st.sets(few_names, max_size=12), few_names)
def test_below_is_a_subtree_in_the_order_of_the_tree(stored: set[bytes], above: bytes) -> None:
    _rollback(lambda txn, zone: _check_below(txn, zone, stored, above))


def _check_below(txn: Transaction, zone: Zone, stored: set[bytes], above: bytes) -> None:
    neighbour = txn.add_zone("test", names.from_text("other."))
    txn.put(neighbour, names.from_text("a.other."), ())
    for name in stored:
        txn.put(zone, name, _a("10.0.0.1"))
    found = [name for name, _ in txn.below(zone, above)]
    assert set(found) == {name for name in stored if names.is_subdomain(name, above)}
    assert found == sorted(found, key=lambda name: names.labels(name)[::-1])


def test_a_zone_that_is_cleared_has_no_names_but_goes_on(store: Store) -> None:
    zone = _zone(store)
    _put(store, zone, _name("a.b"), ())
    serial, seen = _serial(store, zone), store.changes.generation
    store.write(lambda txn: txn.clear(zone))
    assert _contents(store) == {}
    assert store.changes.since(seen)[1] is None
    assert _serial(store, zone) == serial + 1


def test_fill_writes_everything_in_any_order(store: Store) -> None:
    zone = _zone(store)
    entries = {_name(text): _a("10.0.0.1") for text in ("z", "a.z", "b", "a", "c.b.a")}
    seen = store.changes.generation
    serial = _serial(store, zone)
    store.write(lambda txn: txn.fill(zone, entries.items()))
    assert {name: found for name, found in _contents(store).items() if name != ORIGIN} == entries
    assert store.changes.since(seen)[1] is None
    assert _serial(store, zone) == serial + 1


@given(st.sets(few_names, max_size=12))
def test_fill_writes_under_the_keys_that_put_would_use(filled: set[bytes]) -> None:
    zone = Zone(7, "test", ORIGIN, 0, SYNCED)
    entries = [(name, _a("10.0.0.1")) for name in filled]
    assert list(store_module._with_keys(zone, entries)) == [(zone.key(name), found) for name, found in entries]


def test_fill_can_join_with_what_is_there(store: Store) -> None:
    zone = _zone(store)
    first = {_name(text): _a("10.0.0.1") for text in "abc"}
    second = {_name(text): _a("10.0.0.2") for text in "bcd"} | {_name("c"): _a("10.0.0.1")}
    store.write(lambda txn: txn.fill(zone, first.items()))
    store.write(lambda txn: txn.fill(zone, second.items(), lambda old, new: old + new))
    assert {name: found for name, found in _contents(store).items() if name != ORIGIN} == {
        _name("a"): _a("10.0.0.1"),
        _name("b"): _a("10.0.0.1") + _a("10.0.0.2"),
        _name("c"): _a("10.0.0.1"),
        _name("d"): _a("10.0.0.2"),
    }
    store.write(lambda txn: txn.fill(zone, second.items()))
    assert _get(store, zone, _name("b")) == _a("10.0.0.2")


_LARGE = """
import sys
from pathlib import Path
from kdns.wire import names
from kdns.wire.rrset import RRset
from kdns.zone.changes import Changes
from kdns.zone.store import Store

def memory():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

store = Store.open(Path(sys.argv[1]), Changes.create(), print)
origin = names.from_text("example.")
zone = store.write(lambda txn: txn.add_zone("test", origin))
before = memory()
entries = ((names.from_text(f"n{n:06}.example."), (RRset(16, 5, (bytes(200),)),)) for n in range(100_000))
store.write(lambda txn: txn.fill(zone, entries))
print(store.size, memory() - before)
store.close()
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another libc gives memory back as it likes")
def test_a_large_transaction_gives_its_memory_back(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _LARGE, tmp_path], capture_output=True, text=True, check=True)
    size, grown = map(int, done.stdout.split())
    assert size > 20_000_000
    assert grown < size / 2


def test_what_a_transaction_went_through_is_mapped_no_more(store: Store) -> None:
    def read(txn: Transaction) -> int:
        return sum(len(data) for _, data in txn.objects("test", "Service"))

    def mapped() -> int:
        """Bytes of the store's file that this process has in memory."""
        parts = Path("/proc/self/smaps").read_text().split(str(store.directory / "data.mdb"))[1:]
        return sum(int(line.split()[1]) << 10 for part in parts for line in part.splitlines()[:5] if "Rss:" in line)

    def put(txn: Transaction) -> None:
        for number in range(4000):
            txn.put_object("test", "Service", f"default/web-{number}", bytes(1000))

    store.write(put)
    assert store.read(read) == 4_000_000
    assert mapped() > 4_000_000
    assert store.write(read) == 4_000_000
    assert mapped() < 1_000_000


def test_after_a_large_transaction_everybody_goes_on(
    store: Store, follower: Callable[[Store], Follower], monkeypatch: pytest.MonkeyPatch
) -> None:
    zone = _zone(store)
    other = follower(store)
    monkeypatch.setattr(store_module, "_MANY_NAMES", 1)
    store.write(lambda txn: txn.fill(zone, [(_name("a"), _a("10.0.0.1"))]))
    assert other.ask(zone, _name("a"))[2] == [(_a("10.0.0.1"), True)]
    _put(store, zone, _name("b"), _a("10.0.0.2"))
    assert other.ask(zone, _name("b"))[2] == [(_a("10.0.0.2"), True)]
    assert _get(store, zone, _name("a")) == _a("10.0.0.1")
    store.sync()
    assert store.clear_dead_readers() == 0


# An environment that cannot be opened again


class Opening:
    """Stands for lmdb.open: fails as often as it was told to.

    envs: what it has opened.
    """

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.envs: list[lmdb.Environment] = []
        self._open = lmdb.open

    def __call__(self, *arguments: Any, **options: Any) -> lmdb.Environment:
        if self.failures:
            raise self.failures.pop()
        self.envs.append(self._open(*arguments, **options))
        return self.envs[-1]


@pytest.fixture
def opening(monkeypatch: pytest.MonkeyPatch) -> Opening:
    """Every transaction that fills in names opens the environment anew."""
    instead = Opening()
    monkeypatch.setattr(lmdb, "open", instead)
    monkeypatch.setattr(store_module, "_MANY_NAMES", 1)
    return instead


def _fill(store: Store, zone: Zone, *texts: str) -> str:
    def action(txn: Transaction) -> str:
        txn.fill(zone, [(_name(text), _a("10.0.0.1")) for text in texts])
        return "filled"

    return store.write(action)


def _names(store: Store) -> set[bytes]:
    return _contents(store).keys() - {ORIGIN}


USES: dict[str, Callable[[Store, Zone], object]] = {
    "write": lambda store, zone: _put(store, zone, _name("b"), _a("10.0.0.2")),
    "read": lambda store, zone: _get(store, zone, _name("a")),
    "sync": lambda store, zone: store.sync(),
    "clear_dead_readers": lambda store, zone: store.clear_dead_readers(),
}
REFUSALS = [lmdb.MemoryError("no address space"), OSError(24, "Too many open files")]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("use", USES)
def test_what_is_committed_stands_when_the_environment_cannot_be_opened_again(
    use: str, refusal: Exception, store: Store, opening: Opening
) -> None:
    zone = _zone(store)
    seen, size = store.changes.generation, store.size
    opening.failures = [refusal] * 3
    assert _fill(store, zone, "a", *(f"n{number}" for number in range(500))) == "filled"
    assert store.changes.since(seen) == (seen + 1, None), "readers are told"
    assert store.size > size
    assert len(opening.failures) == 2
    for _ in range(2):
        with pytest.raises(StoreError, match=f"{store.directory}/data.mdb: .*{refusal.args[-1]}"):
            USES[use](store, zone)
    USES[use](store, zone)
    assert not opening.failures
    assert _get(store, zone, _name("a")) == _a("10.0.0.1")
    assert _put(store, zone, _name("c"), _a("10.0.0.3"))
    store.sync()
    assert store.clear_dead_readers() == 0


def test_readers_are_told_before_the_environment_is_opened_anew(
    store: Store, opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone = _zone(store)
    seen = store.changes.generation
    told: list[bool] = []

    def look(*arguments: Any, **options: Any) -> lmdb.Environment:
        told.append(store.changes.generation > seen)
        return opening(*arguments, **options)

    monkeypatch.setattr(lmdb, "open", look)
    _fill(store, zone, "a")
    assert told == [True]


def test_an_environment_that_is_opened_by_half_is_closed_again(
    store: Store, opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMDB does not open a file a second time."""
    zone = _zone(store)
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "DATABASES", tuple(b"%d" % number for number in range(9)))
        assert _fill(store, zone, "a") == "filled"
        with pytest.raises(StoreError, match="MDB_DBS_FULL"):
            _names(store)
    assert _names(store) == {_name("a")}


@pytest.mark.parametrize("reopens", [True, False])
def test_a_store_that_could_not_be_opened_again_can_be_closed(
    reopens: bool, opened: Callable[..., Store], opening: Opening, warnings: Warnings
) -> None:
    store = opened()
    zone = _zone(store)
    opening.failures = [lmdb.Error("no")] * (1 if reopens else 2)
    _fill(store, zone, "a")
    store.close()
    store.close()
    assert not opening.failures
    assert _elsewhere(_ask_held, store.directory) == [False] * 3
    assert _names(opened()) == {_name("a")}
    assert warnings == []


def test_a_closed_store_refuses_and_stays_closed(store: Store, opening: Opening) -> None:
    zone = _zone(store)
    store.close()
    store.sync()
    for use in ("write", "read", "clear_dead_readers"):
        with pytest.raises(StoreError, match=r"data\.mdb: it is closed"):
            USES[use](store, zone)
    assert opening.envs == []


def test_an_action_that_lmdb_refuses_leaves_the_store_as_it_was(store: Store) -> None:
    zone = _zone(store)
    _put(store, zone, _name("a"), _a("10.0.0.1"))
    seen, long = store.changes.generation, "x" * 600

    def action(txn: Transaction) -> None:
        txn.put(zone, _name("b"), _a("10.0.0.1"))
        txn.put_object("test", "Pod", long, b"")

    for _ in range(2):
        with pytest.raises(StoreError, match=r"data\.mdb: .*MDB_BAD_VALSIZE"):
            store.write(action)
        with pytest.raises(StoreError, match=r"data\.mdb: .*Permission denied"):
            store.read(lambda txn: txn.put_object("test", "Pod", "a/b", b""))
    assert store.changes.generation == seen
    assert _names(store) == {_name("a")}
    assert _put(store, zone, _name("b"), _a("10.0.0.1"))


def test_a_map_that_cannot_grow_refuses_the_transaction_and_nothing_else(
    store: Store, follower: Callable[[Store], Follower]
) -> None:
    zone = _zone(store)
    other = follower(store)
    runs = 0

    def action(txn: Transaction) -> None:
        """Does not end before the machine has no more addresses."""
        nonlocal runs
        runs += 1
        txn.put(zone, _name("b"), _a("10.0.0.1"))
        raise lmdb.MapFullError("larger")

    for _ in range(2):
        with pytest.raises(StoreError, match="Cannot allocate memory"):
            store.write(action)
        assert _names(store) == set()
    assert runs > 2
    _put(store, zone, _name("a"), _a("10.0.0.1"))
    assert other.ask(zone, _name("a"), _name("b"))[2] == [(_a("10.0.0.1"), True), (None, False)]


class Panicking:
    """An environment of which LMDB says that it is of no use any more."""

    panics = False

    def __init__(self, env: lmdb.Environment) -> None:
        self._env = env

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def begin(self, **options: Any) -> Any:
        if self.panics:
            raise lmdb.PanicError("MDB_PANIC")
        return self._env.begin(**options)


@pytest.mark.parametrize("use", ["write", "read"])
def test_an_environment_that_lmdb_gives_up_is_opened_anew(
    use: str, opened: Callable[..., Store], opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Panicking] = []

    def panicking(*arguments: Any, **options: Any) -> Panicking:
        made.append(Panicking(opening(*arguments, **options)))
        return made[-1]

    monkeypatch.setattr(lmdb, "open", panicking)
    store = opened()
    zone = _zone(store)
    made[0].panics = True
    with pytest.raises(StoreError, match="MDB_PANIC"):
        USES[use](store, zone)
    USES[use](store, zone)
    assert len(made) == 2


def test_threads_go_on_while_the_environment_is_opened_anew(
    store: Store, opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One opening in three fails: whoever is met by it gets StoreError, and what is read is whole."""
    zone = _zone(store)
    _fill(store, zone, "a", "b")
    turn = 0

    def sometimes(*arguments: Any, **options: Any) -> lmdb.Environment:
        nonlocal turn
        turn += 1
        if turn % 3 == 0:
            raise lmdb.MemoryError("no address space")
        return opening(*arguments, **options)

    monkeypatch.setattr(lmdb, "open", sometimes)
    over = threading.Event()
    done = dict.fromkeys(("read", "sync", "clear"), 0)
    wrong: list[object] = []

    def again(what: str, use: Callable[[], object], wanted: object) -> None:
        while not over.wait(0.001):
            try:
                found = use()
            except StoreError:
                continue
            except Exception as error:
                wrong.append(error)
                return
            done[what] += 1
            if found != wanted:
                wrong.append(found)

    uses: list[tuple[str, Callable[[], object], object]] = [
        ("read", lambda: _names(store), {_name("a"), _name("b")}),
        ("sync", store.sync, None),
        ("clear", store.clear_dead_readers, 0),
    ]
    threads = [threading.Thread(target=again, args=use) for use in (*uses, uses[0])]
    for thread in threads:
        thread.start()
    written = 0
    deadline = time.monotonic() + 20
    while (written < 30 or not all(done.values())) and time.monotonic() < deadline and not wrong:
        with contextlib.suppress(StoreError):
            _fill(store, zone, "a", "b")
            written += 1
    over.set()
    for thread in threads:
        thread.join(20)
    assert not wrong
    assert not any(thread.is_alive() for thread in threads)
    assert written >= 30
    assert all(done.values())


# Serials and notes


def test_an_equal_value_is_not_written_and_not_noted(store: Store) -> None:
    zone = _zone(store)
    _put(store, zone, _name("a"), _a("10.0.0.1"))
    before = store.changes.generation, _serial(store, zone)
    assert not _put(store, zone, _name("a"), _a("10.0.0.1"))
    assert not _put(store, zone, ORIGIN, (SOA,)), "an apex that differs in its serial only"
    assert (store.changes.generation, _serial(store, zone)) == before


def test_each_transaction_that_changes_names_raises_the_serial_once(store: Store) -> None:
    zone = _zone(store)
    other = store.write(lambda txn: txn.add_zone("test", names.from_text("other.")))
    serial, untouched = _serial(store, zone), _serial(store, other)
    store.write(lambda txn: [txn.put(zone, _name(text), ()) for text in "abc"])
    assert _serial(store, zone) == serial + 1
    store.write(lambda txn: txn.delete(zone, _name("a")))
    assert _serial(store, zone) == serial + 2
    store.write(lambda txn: txn.put_object("test", "Pod", "a/b", b"1"))
    store.write(lambda txn: txn.delete(zone, _name("nothing")))
    assert _serial(store, zone) == serial + 2
    assert _serial(store, other) == untouched


def test_zones_and_entries_are_known_without_a_transaction(store: Store) -> None:
    zone = store.write(lambda txn: txn.add_zone("test", ORIGIN))
    assert (store.zones, store.entries) == ((zone,), 0)
    _put(store, zone, _name("a"), _a("10.0.0.1"))
    known = store.zones, store.entries
    assert known == (tuple(store.read(Transaction.zones)), 1)
    assert store.zones[0].serial > zone.serial

    def refused(txn: Transaction) -> None:
        txn.put(zone, _name("b"), _a("10.0.0.1"))
        txn.put_object("test", "Pod", "x" * 600, b"")

    with pytest.raises(StoreError):
        store.write(refused)
    assert (store.zones, store.entries) == known


def test_the_soa_has_the_serial_of_the_zone(store: Store) -> None:
    zone = _zone(store)
    for text in "abc":
        _put(store, zone, _name(text), ())
        soa = store.read(lambda txn: txn.get(zone, ORIGIN) or ())[0]
        assert struct.unpack("!I", soa.rdatas[0][-20:-16]) == (_serial(store, zone),)
        assert soa.rdatas[0][-16:] == SOA.rdatas[0][-16:]


def test_the_serial_goes_round(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: (2.0**32 - 1) / 256)
    zone = _zone(store, soa=False)
    assert zone.serial == 2**32 - 1
    _put(store, zone, ORIGIN, (SOA,))
    assert _serial(store, zone) == 0


def test_a_zone_that_takes_the_place_of_another_goes_on_from_its_serial(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone = _zone(store)
    for number in range(5):
        _put(store, zone, _name(f"a{number}"), ())
    monkeypatch.setattr(time, "time", lambda: 1000.0)  # the clock has gone back
    heir = store.write(lambda txn: txn.add_zone("heir", ORIGIN))
    assert heir.serial == _serial(store, zone)


def test_a_change_of_state_is_told_for_every_name(store: Store) -> None:
    zone = _zone(store)
    assert store.read(lambda txn: txn.zone(zone.number)).state == UNSYNCED
    seen = store.changes.generation
    store.write(lambda txn: txn.set_state(zone, SYNCED))
    assert store.changes.since(seen)[1] is None
    seen = store.changes.generation
    store.write(lambda txn: txn.set_state(zone, SYNCED))
    assert store.changes.generation == seen
    store.write(lambda txn: txn.set_state(zone, EXPIRED))
    assert store.read(lambda txn: txn.zone(zone.number)).state == EXPIRED


def _rollback(action: Callable[[Transaction, Zone], None]) -> None:
    """Run an action on a zone of a store in memory, in a transaction that leaves nothing behind."""

    class Undo(Exception):  # noqa: N818 - not an error
        pass

    def run(txn: Transaction) -> None:
        for zone in txn.zones():
            txn.drop_zone(zone)
        zone = txn.add_zone("test", ORIGIN)
        txn.changed.clear()
        action(txn, zone)
        raise Undo

    with pytest.raises(Undo):
        _scratch().write(run)


_scratch_store: list[Store] = []


def _scratch() -> Store:
    if not _scratch_store:
        raise AssertionError("no scratch store")
    return _scratch_store[0]


@pytest.fixture(autouse=True, scope="module")
def _scratch_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    _scratch_store.append(Store.open(tmp_path_factory.mktemp("scratch"), Changes.create(), pytest.fail))
    yield
    _scratch_store.pop().close()


nested = st.sampled_from([ORIGIN, *(_name(text) for text in ("a", "b.a", "c.b.a", "d.c.b.a", "bb.a", "aa", r"\000.a"))])
operations = st.lists(st.tuples(nested, st.sampled_from([None, (), _a("10.0.0.1"), _a("10.0.0.2")])), max_size=6)


@given(st.lists(operations, max_size=5))
@example([[(_name("c.b.a"), ())], [(_name("c.b.a"), None)]])
def test_every_name_whose_answer_changed_is_noted(transactions: list[list[tuple[bytes, Records | None]]]) -> None:
    """Model: a dict of names; a name without an entry exists if there is one below it."""
    everything = sorted({above for batch in transactions for name, _ in batch for above in _ancestors(name)})

    def check(txn: Transaction, zone: Zone) -> None:
        model: dict[bytes, Records] = {}
        for batch in transactions:
            before = {name: _answer(model, name) for name in everything}
            txn.changed.clear()
            for name, records in batch:
                if records is None:
                    assert txn.delete(zone, name) is (model.pop(name, None) is not None)
                else:
                    assert txn.put(zone, name, records) is (model.get(name) != records)
                    model[name] = records
            changed = {name for name in everything if _answer(model, name) != before[name]}
            assert {name_hash(name) for name in changed} <= txn.changed
            touched = {above for name, _ in batch for above in _ancestors(name)}
            assert txn.changed <= {name_hash(name) for name in touched}
        assert dict(txn.below(zone, ORIGIN)) == model

    _rollback(check)


def _ancestors(name: bytes) -> list[bytes]:
    found = [name]
    while found[-1] != ORIGIN:
        found.append(names.parent(found[-1]))
    return found


def _answer(model: dict[bytes, Records], name: bytes) -> Records | str | None:
    if name in model:
        return model[name]
    return "exists" if any(names.is_subdomain(other, name) for other in model) else None


def test_notes_of_two_writing_threads_do_not_overwrite_each_other(opened: Callable[..., Store]) -> None:
    class Slow(Changes):
        """Takes its time between the first and the last note."""

        def note(self, hashes: Any) -> None:
            at = self.generation
            time.sleep(0.005)
            super().note(hashes)
            assert self.counters[0] > at

    store = opened()
    zone = _zone(store)
    before = store.changes
    store.changes = Slow(before.fd)
    seen = store.changes.generation
    texts = [[f"{thread}{number}" for number in range(10)] for thread in "ab"]

    def run(mine: list[str]) -> None:
        for text in mine:
            _put(store, zone, _name(text), ())

    threads = [threading.Thread(target=run, args=(mine,)) for mine in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _, hashes = store.changes.since(seen)
    assert hashes is not None
    assert {name_hash(_name(text)) for mine in texts for text in mine} <= set(hashes)


def test_a_reader_that_is_overtaken_while_it_copies_takes_everything_as_changed() -> None:
    changes = Changes.create()
    changes.note(range(SLOTS))
    reader = Changes(changes.fd)
    answers: list[tuple[int, list[int] | None]] = []

    class Slots:
        """The writer's ring; a reader looks when the first slot is overwritten."""

        def __setitem__(self, index: int, value: int) -> None:
            slots[index] = value
            if not answers:
                answers.append(reader.since(0))

    slots, changes.slots = changes.slots, Slots()  # type: ignore[assignment]
    changes.note([1_000_000, 1_000_001])
    assert answers == [(SLOTS, None)]


# Sources


def test_objects_are_found_by_source_kind_and_prefix_and_nothing_else(store: Store) -> None:
    rows = [
        ("s", "Pod", "ns/a"), ("s", "Pod", "ns/ab"), ("s", "Pod", "ns-2/a"), ("s", "Pod", "ns2/a"),
        ("s", "Pods", "ns/z"),
        ("s2", "Pod", "ns/a"), ("s", "Endpoints", "ns/a"), ("s", "EndpointSlice", "ns/a"),
    ]  # fmt: skip

    def action(txn: Transaction) -> None:
        for source, kind, key in rows:
            txn.put_object(source, kind, key, "|".join((source, kind, key)).encode())

    store.write(action)
    assert store.read(lambda txn: list(txn.objects("s", "Pod", "ns/"))) == [
        ("ns/a", b"s|Pod|ns/a"),
        ("ns/ab", b"s|Pod|ns/ab"),
    ]
    assert store.read(lambda txn: [key for key, _ in txn.objects("s", "Pod")]) == ["ns-2/a", "ns/a", "ns/ab", "ns2/a"]
    assert store.read(lambda txn: list(txn.object_keys("s", "Pod"))) == ["ns-2/a", "ns/a", "ns/ab", "ns2/a"]
    assert store.read(lambda txn: list(txn.object_keys("s", "Pod", "ns/"))) == ["ns/a", "ns/ab"]
    assert store.read(lambda txn: txn.get_object("s", "Endpoints", "ns/a")) == b"s|Endpoints|ns/a"
    assert store.write(lambda txn: txn.delete_object("s", "Pod", "ns/a"))
    assert not store.write(lambda txn: txn.delete_object("s", "Pod", "ns/a"))
    assert store.read(lambda txn: txn.get_object("s2", "Pod", "ns/a")) == b"s2|Pod|ns/a"


def test_a_value_by_name_can_be_forgotten(store: Store) -> None:
    store.write(lambda txn: txn.put_meta("current s", b"1"))
    store.write(lambda txn: txn.delete_meta("current s"))
    store.write(lambda txn: txn.delete_meta("current s"))
    assert store.read(lambda txn: txn.get_meta("current s")) is None


def test_dropping_a_source_leaves_the_others(store: Store) -> None:
    def action(txn: Transaction) -> None:
        for source in ("s", "s2"):
            zone = txn.add_zone(source, ORIGIN)
            txn.put(zone, _name("a"), _a("10.0.0.1"))
            txn.put_object(source, "Pod", "ns/a", b"")
            txn.put_meta(f"current {source}", b"1")

    store.write(action)
    seen = store.changes.generation
    store.write(lambda txn: txn.drop_source("s"))
    (zone,) = store.read(lambda txn: txn.zones())
    assert zone.source == "s2"
    assert _contents(store) == {_name("a"): _a("10.0.0.1")}
    assert store.read(lambda txn: (list(txn.objects("s", "Pod")), list(txn.objects("s2", "Pod")))) == (
        [],
        [("ns/a", b"")],
    )
    assert store.read(lambda txn: (txn.get_meta("current s"), txn.get_meta("current s2"))) == (None, b"1")
    assert store.changes.since(seen)[1] is None


def test_zones_have_their_own_numbers_and_keep_them(store: Store) -> None:
    def action(txn: Transaction) -> list[int]:
        return [txn.add_zone(source, names.from_text(text)).number for source in "ab" for text in ("x.", "y.")]

    numbers = store.write(action)
    assert len(set(numbers)) == 4
    assert store.write(action) == numbers
    with pytest.raises(KeyError):
        store.read(lambda txn: txn.zone(99))


# Readers in other processes


def _follow(directory: str, fd: int, connection: Connection) -> None:
    """A reader: for each number received it answers what it sees of that zone."""
    reader = Reader(Path(directory), Changes(fd))
    connection.send("ready")
    while (asked := connection.recv()) is not None:
        if asked == "hold":
            reader.__enter__()
            connection.send("held")
            continue
        number, queried = asked
        with reader:
            view = ZoneView(number, ORIGIN)
            view.refresh(reader)
            found = [(view.find(reader, name), view.exists(reader, name)) for name in queried]
            connection.send((view.soa, view.state, found))
    reader.close()


class Follower:
    """A reader in another process, started while the store is open here."""

    def __init__(self, store: Store) -> None:
        self._pipe, there = spawn.Pipe()
        os.set_inheritable(store.changes.fd, True)
        path = f"/proc/{os.getpid()}/fd/{store.changes.fd}"
        self.process = spawn.Process(target=_follow_path, args=(str(store.directory), path, there))
        self.process.start()
        assert self._pipe.poll(20)
        assert self._pipe.recv() == "ready"

    def hold(self) -> None:
        """Let it enter a transaction and stay in it."""
        self._pipe.send("hold")
        assert self._pipe.poll(20)
        self._pipe.recv()

    def ask(self, zone: Zone, *queried: bytes) -> tuple[RRset | None, int, list[tuple[Records | None, bool]]]:
        self._pipe.send((zone.number, queried))
        assert self._pipe.poll(20), "no answer"
        found: tuple[RRset | None, int, list[tuple[Records | None, bool]]] = self._pipe.recv()
        return found

    def close(self) -> None:
        if self.process.is_alive():
            self._pipe.send(None)
        self.process.join(20)
        assert self.process.exitcode is not None


def _follow_path(directory: str, path: str, connection: Connection) -> None:
    _follow(directory, os.open(path, os.O_RDWR), connection)


@pytest.fixture
def follower() -> Iterator[Callable[[Store], Follower]]:
    started: list[Follower] = []

    def start(store: Store) -> Follower:
        started.append(Follower(store))
        return started[-1]

    yield start
    for one in started:
        one.close()


def test_a_reader_sees_each_commit(store: Store, follower: Callable[[Store], Follower]) -> None:
    zone = _zone(store)
    other = follower(store)
    _put(store, zone, _name("c.b.a"), _a("10.0.0.1"))
    store.write(lambda txn: txn.set_state(zone, SYNCED))
    soa, state, found = other.ask(zone, _name("c.b.a"), _name("b.a"), _name("x.a"), _name("bb.a"))
    assert state == SYNCED
    assert soa == (_get(store, zone, ORIGIN) or ())[0]
    assert found == [(_a("10.0.0.1"), True), ((), True), (None, False), (None, False)]
    store.write(lambda txn: txn.delete(zone, _name("c.b.a")))
    assert other.ask(zone, _name("b.a"))[2] == [(None, False)]
    store.write(lambda txn: txn.drop_zone(zone))
    assert other.ask(zone, ORIGIN) == (None, UNSYNCED, [(None, False)])


def test_a_reader_goes_on_while_the_map_grows(
    opened: Callable[..., Store], follower: Callable[[Store], Follower], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    store = opened(map_size=64 * 1024)
    zone = _zone(store)
    other = follower(store)
    wide = (RRset(rr.TXT, 5, (b"x" * 60_000,)),)
    runs = 0

    def action(txn: Transaction) -> None:
        nonlocal runs
        runs += 1
        for number in range(500):
            txn.put(zone, _name(f"n{number}"), wide)

    store.write(action)
    assert runs > 1
    assert store.size > 30_000_000, "more than a reader maps at first"
    assert store.size <= (store.directory / DATA_FILE).stat().st_size
    assert other.ask(zone, _name("n0"), _name("n499"))[2] == [(wide, True)] * 2
    for number in range(500, 1000):
        _put(store, zone, _name(f"n{number}"), wide)
    assert other.ask(zone, _name("n999"))[2] == [(wide, True)]
    assert _serial(store, zone) - zone.serial == 1 + 1 + 500, "what ran in vain has left no trace"


def test_a_reader_sees_whole_transactions(store: Store, follower: Callable[[Store], Follower]) -> None:
    zone = _zone(store)
    queried = [_name(f"n{number}") for number in range(50)]

    def write(address: str) -> None:
        store.write(lambda txn: [txn.put(zone, name, _a(address)) for name in queried])

    write("10.0.0.0")
    other = follower(store)
    stop = threading.Event()

    def busy() -> None:
        number = 0
        while not stop.is_set():
            number = (number + 1) % 250
            write(f"10.0.0.{number}")

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        seen = set()
        for _ in range(300):
            answers = {found for found, _ in other.ask(zone, *queried)[2]}
            assert len(answers) == 1
            seen |= answers
        assert len(seen) > 10
    finally:
        stop.set()
        thread.join()


def test_dead_readers_are_cleared(store: Store, follower: Callable[[Store], Follower]) -> None:
    _zone(store)
    other = follower(store)
    other.hold()
    assert store.clear_dead_readers() == 0
    other.process.kill()
    other.process.join()
    assert store.clear_dead_readers() == 1
    assert store.clear_dead_readers() == 0


def test_a_reader_of_this_process_can_be_entered_twice(opened: Callable[..., Store], tmp_path: Path) -> None:
    store = opened()
    zone = _zone(store)
    store.close()
    reader = Reader(tmp_path / "state", store.changes)
    with reader:
        with reader:
            assert reader.find(zone.prefix)
        assert reader.find(zone.prefix)
        assert reader.floor == store.changes.floor
    reader.close()


# The next start


def test_a_store_is_as_it_was_after_a_restart(opened: Callable[..., Store], warnings: Warnings) -> None:
    store = opened()
    zone = _zone(store)
    _put(store, zone, _name("a.b"), _a("10.0.0.1"))
    store.write(lambda txn: txn.put_object("test", "Pod", "a/b", b"data"))
    before = _contents(store), _serial(store, zone)
    store = opened()
    assert (_contents(store), _serial(store, zone)) == before
    assert store.read(lambda txn: txn.get_object("test", "Pod", "a/b")) == b"data"
    assert store.changes.generation == 0
    assert warnings == []


def _flip_value(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for at in _all(data, rr.address("10.1.2.3")):
        data[at] ^= 0x10
    path.write_bytes(data)


def _flip_key(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for at in _all(data, b"nearly\0"):
        data[at + 5] += 1
    path.write_bytes(data)


def _all(data: bytes | bytearray, what: bytes) -> list[int]:
    found, at = [], data.find(what)
    while at >= 0:
        found.append(at)
        at = data.find(what, at + 1)
    assert found
    return found


def _zero_pages(path: Path, which: Callable[[bytes], bool]) -> None:
    data = bytearray(path.read_bytes())
    pages = [at for at in range(2 * PAGE, len(data), PAGE) if which(bytes(data[at : at + PAGE]))]
    assert pages
    for at in pages[:1]:
        data[at : at + PAGE] = bytes(PAGE)
    path.write_bytes(data)


def _is_leaf(page: bytes) -> bool:
    return struct.unpack_from("=H", page, 10)[0] == 2 and page.count(b"name-") > 10


def _is_branch(page: bytes) -> bool:
    return struct.unpack_from("=H", page, 10)[0] == 1 and page.count(b"name-") > 3


def _truncate(path: Path, size: int) -> None:
    os.truncate(path, size)


def _garbage(path: Path, at: int, size: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(os.urandom(size))


def _overwrite(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").write_text("in the way")


DAMAGE: dict[str, Callable[[Path], None]] = {
    "flipped bits in a value": _flip_value,
    "a flipped bit in a key": _flip_key,
    "a zeroed leaf page": lambda path: _zero_pages(path, _is_leaf),
    "a zeroed branch page": lambda path: _zero_pages(path, _is_branch),
    "truncated in the middle": lambda path: _truncate(path, path.stat().st_size // 2 + 100),
    "truncated to its head": lambda path: _truncate(path, 2 * PAGE),
    "truncated in its head": lambda path: _truncate(path, 100),
    "empty": lambda path: _truncate(path, 0),
    "garbage at its start": lambda path: _garbage(path, 0, PAGE * 2),
    "garbage behind its head": lambda path: _garbage(path, 2 * PAGE, 40 * PAGE),
    "all garbage": lambda path: _garbage(path, 0, path.stat().st_size),
    "zeros": lambda path: _overwrite(path, bytes(path.stat().st_size)),
    "text": lambda path: _overwrite(path, b"no database"),
    "a folder in its place": _directory,
}


def _put_all(zone: Zone, entries: dict[bytes, Records], txn: Transaction) -> None:
    for name, records in entries.items():
        txn.put(zone, name, records)


@contextlib.contextmanager
def another_thread() -> Iterator[None]:
    """A process that has one is not forked to read a store."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_a_whole_store_is_found_so_beside_other_threads(opened: Callable[..., Store], warnings: Warnings) -> None:
    opened().close()
    with another_thread():
        opened()
    assert warnings == []


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_store_is_set_aside_with_one_warning(
    kind: str, opened: Callable[..., Store], warnings: Warnings, tmp_path: Path
) -> None:
    for round in (1, 2):  # what is set aside takes the place of what was set aside before
        store = opened()
        zone = _zone(store)
        entries = {_name(f"name-{n:04}"): _a("10.0.0.1", "10.0.0.2") for n in range(2000)}
        store.write(partial(_put_all, zone, entries | {_name("nearly"): _a("10.1.2.3")}))
        store.close()
        DAMAGE[kind](tmp_path / "state" / DATA_FILE)
        with another_thread() if round == 2 else contextlib.nullcontext():
            store = opened()
        assert len(warnings) == round, warnings
        assert f"{tmp_path}/state/data.mdb is damaged" in warnings[-1]
        assert "moved to data.damaged" in warnings[-1]
        assert (tmp_path / "state/data.damaged").exists()
        assert _contents(store) == {}
        zone = _zone(store)
        _put(store, zone, _name("a"), _a("10.0.0.1"))
        store.close()
    assert _contents(opened()).keys() == {ORIGIN, _name("a")}
    assert len(warnings) == 2


def test_random_damage_never_ends_the_process_that_opens_the_store(
    opened: Callable[..., Store], warnings: Warnings, tmp_path: Path
) -> None:
    store = opened()
    zone = _zone(store)
    entries = {_name(f"name-{n}"): _a("10.0.0.1") for n in range(300)}
    store.write(lambda txn: txn.fill(zone, entries.items()))
    whole = _contents(store)
    store.close()
    path = tmp_path / "state" / DATA_FILE
    good = path.read_bytes()
    damaged = 0
    for number in range(60):
        data = bytearray(good)
        at = number * len(good) // 60
        data[at : at + 64] = bytes(byte ^ 0xFF for byte in data[at : at + 64])
        path.write_bytes(data)
        warnings.clear()
        store = opened()
        assert len(warnings) <= 1
        damaged += len(warnings)
        assert _contents(store) == ({} if warnings else whole)
        store.close()
    assert damaged > 5


def test_a_store_of_another_version_is_set_aside(
    opened: Callable[..., Store], warnings: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "VERSION", b"0")
    _zone(opened())
    monkeypatch.undo()
    assert _contents(opened()) == {}
    (warning,) = warnings
    assert f"has format 0 where this kdns writes {store_module.VERSION.decode()}" in warning


def test_a_damaged_list_of_free_pages_is_found(
    opened: Callable[..., Store], warnings: Warnings, tmp_path: Path
) -> None:
    store = opened()
    zone = _zone(store)
    for number in range(50):
        store.write(partial(_churn, zone, 0, number, (RRset(rr.TXT, 5, (b"x" * 5000,)),)))
    store.close()
    path = tmp_path / "state" / DATA_FILE
    data = bytearray(path.read_bytes())
    metas = [data[at : at + PAGE] for at in (0, PAGE)]
    newest = max(metas, key=lambda meta: int.from_bytes(meta[16 + 24 + 2 * 48 + 8 :][:8], sys.byteorder))
    root = int.from_bytes(newest[16 + 24 + 40 :][:8], sys.byteorder)
    entry = root * PAGE + int.from_bytes(data[root * PAGE + 16 :][:2], sys.byteorder)
    count = entry + 8 + 8  # behind the node's head and its key, a transaction's number
    pages = int.from_bytes(data[count : count + 8], sys.byteorder)
    assert 0 < pages < 500
    data[count : count + 8] = (pages - 1).to_bytes(8, sys.byteorder)
    path.write_bytes(data)
    opened()
    assert len(warnings) == 1


def test_a_lock_table_that_is_garbage_does_no_harm(
    opened: Callable[..., Store], warnings: Warnings, tmp_path: Path
) -> None:
    store = opened()
    _put(store, _zone(store), _name("a"), ())
    store.close()
    (tmp_path / "state/lock.mdb").write_bytes(os.urandom(8192))
    assert _name("a") in _contents(opened())
    assert warnings == []


def test_a_lock_table_of_before_gets_its_blocks(opened: Callable[..., Store], tmp_path: Path) -> None:
    """LMDB makes it as long as it is, but leaves holes, for which a full disk has no room."""
    lock = tmp_path / "state/lock.mdb"
    opened().close()
    lock.write_bytes(b"")
    os.truncate(lock, 8192)
    opened()
    assert lock.stat().st_blocks * 512 >= 8192


# The state directory


def _try_open(directory: Path, connection: Connection, uid: int = 0) -> None:
    if uid:
        os.setuid(uid)
    try:
        Store.open(directory, Changes.create(), connection.send).close()
        connection.send("opened")
    except StoreError as error:
        connection.send(f"StoreError: {error}")


def _elsewhere(target: Callable[..., None], *arguments: Any) -> Any:
    """What a function sends that runs in another process."""
    here, there = spawn.Pipe()
    process = spawn.Process(target=target, args=(arguments[0], there, *arguments[1:]))
    process.start()
    assert here.poll(20)
    answer = here.recv()
    process.join(20)
    assert process.exitcode == 0
    return answer


def test_a_second_store_on_the_directory_is_refused(store: Store) -> None:
    answer = _elsewhere(_try_open, store.directory)
    assert answer.startswith("StoreError")
    assert f"in use by process {os.getpid()};" in answer
    assert "--state-dir" in answer
    store.close()
    assert _elsewhere(_try_open, store.directory) == "opened"


def _ask_held(directory: Path, connection: Connection) -> None:
    connection.send([is_held(directory) for _ in range(3)])


def test_whether_a_store_is_held_can_be_seen_without_disturbing(opened: Callable[..., Store], tmp_path: Path) -> None:
    store = opened()
    assert _elsewhere(_ask_held, store.directory) == [True] * 3
    assert _elsewhere(_try_open, store.directory).startswith("StoreError"), "it is held as before"
    store.close()
    assert _elsewhere(_ask_held, store.directory) == [False] * 3
    opened()


def test_a_failed_start_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise StoreError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", fail)
        with pytest.raises(StoreError):
            Store.open(tmp_path, Changes.create(), pytest.fail)
    assert _elsewhere(_ask_held, tmp_path) == [False] * 3
    Store.open(tmp_path, Changes.create(), pytest.fail).close()


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_directory_that_cannot_be_is_told_with_the_way_out(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=rf"{tmp_path / place}: .*--state-dir"):
        Store.open(tmp_path / place, Changes.create(), pytest.fail)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_a_directory_of_somebody_else_is_told_with_the_way_out(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    directory.mkdir(mode=0o755)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o5 != 0o5 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o5)
        if folder.name.startswith("pytest-of"):
            break
    answer = _elsewhere(_try_open, directory, 65534)
    assert answer.startswith(f"StoreError: state directory {directory}: ")
    assert "--state-dir" in answer


# Disks that are full, processes that die


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    mount = shutil.which("mount")
    place = tmp_path / "disk"
    place.mkdir()
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=1m", "kdns-test", str(place)]
    if os.geteuid() != 0 or mount is None or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs root to mount a small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_refuses_writes_and_nothing_else(
    small_disk: Path, opened: Callable[..., Store], tmp_path: Path
) -> None:
    store = opened(small_disk)
    try:
        zone = _zone(store)
        _put(store, zone, _name("a"), _a("10.0.0.1"))
        wide = (RRset(rr.TXT, 5, (b"x" * 20_000,)),)
        written = 0

        def fill() -> None:
            nonlocal written
            for written in range(200):
                _put(store, zone, _name(f"n{written}"), wide)

        with pytest.raises(StoreError, match=f"{small_disk}/data.mdb"):
            fill()
        before, seen = _contents(store), store.changes.generation
        assert _name(f"n{written - 1}") in before
        assert _name(f"n{written}") not in before
        for _ in range(3):
            with pytest.raises(StoreError):
                store.write(lambda txn: [txn.put(zone, _name(f"m{n}"), wide) for n in range(5)])
        assert _contents(store) == before
        assert store.changes.generation == seen
        subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
        _put(store, zone, _name(f"n{written}"), wide)
        assert _get(store, zone, _name(f"n{written}")) == wide
    finally:
        opened(tmp_path / "elsewhere")  # closes the one on the small disk


def _fill_disk(place: Path) -> None:
    with contextlib.suppress(OSError), (place / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(512))


def test_a_start_on_a_full_disk_serves_what_is_there(
    small_disk: Path, opened: Callable[..., Store], tmp_path: Path, warnings: Warnings
) -> None:
    try:
        store = opened(small_disk)
        zone = _zone(store)
        _put(store, zone, _name("a"), _a("10.0.0.1"))
        store.close()
        _fill_disk(small_disk)
        store = opened(small_disk)
        assert _get(store, zone, _name("a")) == _a("10.0.0.1")
        assert _elsewhere(_try_open, small_disk).startswith("StoreError")
        assert warnings == []
    finally:
        opened(tmp_path / "elsewhere")


WRITER = """
import sys
from pathlib import Path
from kdns.wire import names, rr
from kdns.wire.rrset import RRset
from kdns.zone.changes import Changes
from kdns.zone.store import Store

store = Store.open(Path(sys.argv[1]), Changes.create(), lambda text: print("WARNING", text, flush=True))
origin = names.from_text("cluster.local.")
number = int(sys.argv[2])
while True:
    number += 1
    record = (RRset(rr.TXT, 5, (str(number).encode() + b"x" * (number % 3000),)),)

    def action(txn):
        zone = txn.add_zone("test", origin)
        for n in range(20):
            txn.put(zone, names.from_text(f"n{(n * 7 + number) % 100}.cluster.local."), record)
            txn.delete(zone, names.from_text(f"n{(n * 7 + number + 50) % 100}.cluster.local."))
        for n in range(20):
            txn.put_object("test", "Pod", f"ns/{n}", str(number).encode())
        txn.put_meta("last", str(number).encode())

    store.write(action)
    if number % 50 == 0:
        print(number, flush=True)
"""


def test_a_killed_writer_leaves_whole_transactions(
    opened: Callable[..., Store], warnings: Warnings, tmp_path: Path
) -> None:
    directory = tmp_path / "state"
    last = 0
    for turn in range(10):
        command = [sys.executable, "-c", WRITER, str(directory), str(last)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = process.stdout.readline()
            time.sleep(0.003 * turn)
            process.send_signal(signal.SIGKILL)
            said += process.stdout.read()
        assert "WARNING" not in said
        store = opened()
        assert warnings == []
        now = int(store.read(lambda txn: txn.get_meta("last")) or b"0")
        assert now >= int(said.split()[0])
        rows = store.read(lambda txn: {data for _, data in txn.objects("test", "Pod")})
        assert rows == {str(now).encode()}
        texts = [int(found[0].rdatas[0].rstrip(b"x")) for name, found in _contents(store).items() if name != ORIGIN]
        assert texts.count(now) == 20
        assert max(texts) == now
        last = now
        store.close()


def test_a_store_that_was_written_for_long_accounts_for_all_its_pages(
    opened: Callable[..., Store], warnings: Warnings
) -> None:
    """The check of the list of free pages at a start finds no fault where there is none."""
    for turn in range(4):
        store = opened(map_size=1 << 20)
        zone = _zone(store)
        for step in range(60):
            wide = (RRset(rr.TXT, 5, (b"x" * (step * 997 % 20_000),)),)

            store.write(partial(_churn, zone, turn, step, wide))
    opened()
    assert warnings == []


def _churn(zone: Zone, turn: int, step: int, records: Records, txn: Transaction) -> None:
    for n in range(30):
        name = _name(f"n{(n * step + turn) % 211}")
        if n % 3:
            txn.put(zone, name, records)
        else:
            txn.delete(zone, name)


def test_a_lineage_ends_where_the_store_is_another_one_or_the_machine_was_started_again(
    tmp_path: Path, opened: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lineage(name: str) -> bytes | None:
        store = opened(tmp_path / name)
        found = store.read(lambda txn: txn.lineage)
        store.close()
        return found

    first = lineage("state")
    assert lineage("state") == first is not None
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    assert lineage("copy") != first
    assert lineage("state") == first
    (tmp_path / "boot_id").write_text("another start")
    monkeypatch.setattr(store_module, "_BOOT", tmp_path / "boot_id")
    another = lineage("state")
    assert another != first
    assert lineage("state") == another
