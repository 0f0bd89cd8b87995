"""The board in shared memory: what one process posts, another reads whole or not at all."""

from __future__ import annotations

import os
import signal
import time

from hypothesis import given
from hypothesis import strategies as st

from kdns.observe.board import ROOM, SIZE, Board
from kdns.observe.counters import Region, Totals
from kdns.observe.notes import Notes, TopName
from kdns.observe.recent import LONGEST, MOST, Recent
from kdns.plugins.prometheus import MOST_NAMES


def test_nothing_is_there_before_the_first_post() -> None:
    with Region.create() as region:
        assert region.board.read() == b""


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=8))
def test_the_last_post_counts_and_others_see_it(posts: list[bytes]) -> None:
    with Region.create(4096) as region, Region.attach(os.dup(region.fd)) as other:
        for data in posts:
            assert region.board.post(data)
            assert other.board.read() == data


def test_a_post_that_has_no_room_leaves_the_one_before() -> None:
    board = Board(memoryview(bytearray(SIZE)))
    assert board.post(b"x" * ROOM)
    assert not board.post(b"y" * (ROOM + 1))
    assert board.read() == b"x" * ROOM


def test_there_is_room_for_all_that_a_worker_may_tell() -> None:
    recent = Recent()
    for number in range(2 * MOST):
        recent.note("WARNING", chr(0xE0001 + number) * LONGEST, "\U000e0001" * LONGEST)
    name = TopName("\\000" * 250 + "....", "TYPE65535", "SERVFAIL", 123456.789)
    assert len(Notes(recent.messages(), (name,) * MOST_NAMES).encode()) <= ROOM


def test_what_was_overwritten_while_it_was_read_is_not_taken_for_a_post() -> None:
    memory = bytearray(SIZE)
    board = Board(memoryview(memory))
    board.post(b"first")
    at = memory.index(b"first")
    memory[at] ^= 1
    assert board.read() == b""
    memory[at] ^= 1
    assert board.read() == b"first"
    memory[8:24] = b"\xff" * 16
    assert board.read() == b""


def test_a_reader_never_sees_a_post_that_is_not_whole() -> None:
    with Region.create() as region:
        pid = os.fork()
        if pid == 0:
            try:
                while True:
                    for n in range(256):
                        region.board.post(bytes([n]) * (1 + 97 * n))
            finally:
                os._exit(1)
        try:
            found: set[bytes] = set()
            end = time.monotonic() + 20
            while len(found) < 100 and time.monotonic() < end:
                found.update(region.board.read() for _ in range(100))
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert len(found) >= 100
    assert all(data == data[:1] * (1 + 97 * data[0]) for data in found if data)


def test_counters_and_the_board_do_not_touch_each_other() -> None:
    with Region.create(4096) as region:
        region.board.post(b"\xff" * ROOM)
        region.board.post(b"\xff" * ROOM)
        for n in range(200):
            region.count(("count", str(n)))
        assert region.refused
        assert set(region.read().values()) == {(1,)}
        assert region.board.read() == b"\xff" * ROOM


def test_memory_is_taken_for_what_was_posted_only() -> None:
    with Region.create() as region:
        region.board.post(b"x" * 1000)
        region.board.post(b"y" * 1000)
        assert os.fstat(region.fd).st_blocks * 512 <= 16384


def test_totals_have_the_boards_of_the_living() -> None:
    totals = Totals()
    silent, one, two = Region.create(), Region.create(), Region.create()
    for region in (silent, one, two):
        totals.add_region(region)
    one.board.post(b"one")
    two.board.post(b"two")
    assert totals.boards() == [b"one", b"two"]
    totals.retire(one)
    assert totals.boards() == [b"two"]
    for region in (silent, two):
        totals.retire(region)
