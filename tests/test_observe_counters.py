"""Counters in shared memory: what one process counts, another reads, whatever happens to the first."""

from __future__ import annotations

import ast
import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kdns
from kdns.errors import KdnsError
from kdns.observe.counters import (
    HEALTH_REQUESTS,
    MAX_WIDTH,
    SIZE_BUCKETS,
    TIME_BUCKETS,
    QueryCounters,
    Region,
    Totals,
)

HITS = ("count", "kdns_packet_cache_hits_total")


@pytest.fixture
def region() -> Iterator[Region]:
    with Region.create() as region:
        yield region


@contextlib.contextmanager
def forked(work: Callable[[], None]) -> Iterator[int]:
    """A child process that runs `work` and is killed with -9 at the end."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(1)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_the_same_key_has_the_same_cells_and_another_key_has_others(region: Region) -> None:
    first = region.series(("count", "a"), 1)
    wide = region.series(("count", "b"), 18)
    assert region.series(("count", "a"), 1) == first
    region.cells[first] += 5
    for n in range(18):
        region.cells[wide + n] += n
    assert region.read() == {("count", "a"): (5,), ("count", "b"): tuple(range(18))}


@given(st.lists(st.tuples(st.lists(st.text(), min_size=1, max_size=6), st.integers(1, 20)), max_size=40))
def test_any_text_may_be_in_a_key(wanted: list[tuple[list[str], int]]) -> None:
    with Region.create() as region:
        expected: dict[tuple[str, ...], tuple[int, ...]] = {}
        for n, (texts, width) in enumerate(wanted):
            key = tuple(texts)
            if key in expected:
                continue
            first = region.series(key, width)
            region.cells[first + width - 1] += n
            expected[key] = (*[0] * (width - 1), n)
        assert region.read() == expected
        with Region.attach(os.dup(region.fd)) as other:
            assert other.read() == expected


@pytest.mark.parametrize("width", [0, -1, MAX_WIDTH + 1])
def test_a_width_that_no_series_has_is_refused(region: Region, width: int) -> None:
    with pytest.raises(ValueError, match="cells"):
        region.series(("count", "a"), width)


def test_a_full_region_counts_what_it_refuses_and_keeps_what_it_has() -> None:
    with Region.create(4096) as region:
        first = region.series(("count", "kept"), 1)
        cells = [region.series(("count", str(n)), 1) for n in range(200)]
        last = region.series(("count", "too much"), MAX_WIDTH)
        assert region.refused > 100
        assert cells[-1] == last
        for n in range(MAX_WIDTH):
            region.cells[last + n] += 7
        region.cells[first] += 1
        read = region.read()
        assert read[("count", "kept")] == (1,)
        assert ("count", "too much") not in read
        assert all(values == (0,) for key, values in read.items() if key != ("count", "kept"))
        assert region.series(("count", "kept"), 1) == first


def test_a_file_that_is_no_region_is_refused() -> None:
    with tempfile.TemporaryFile() as file:
        with pytest.raises(KdnsError, match="not a region"):
            Region.attach(file.fileno())
        for size in (8192, 1 << 20):
            file.write(bytes(size))
            file.flush()
            with pytest.raises(KdnsError, match="not a region"):
                Region.attach(file.fileno())


def test_no_process_can_truncate_a_region(region: Region) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(region.fd, 0)


def test_a_reader_survives_a_region_that_its_writer_has_overwritten(region: Region) -> None:
    region.count(HITS)
    later = region.series(("count", "later"), 1)
    with Region.attach(os.dup(region.fd)) as reader:
        region.cells[later - 2] ^= 1 << 17
        region.cells[1] = (1 << 64) - 1
        assert reader.read()[HITS] == (1,)
    with Region.attach(os.dup(region.fd)) as reader:
        assert reader.read() == {HITS: (1,)}


def test_an_entry_is_seen_only_after_it_is_complete(region: Region) -> None:
    region.count(HITS)
    used = region.cells[1]
    region.series(("count", "half"), 1)
    region.cells[1] = used + 2
    with Region.attach(os.dup(region.fd)) as reader:
        assert reader.read() == {HITS: (1,)}


def test_threads_that_share_a_cell_lose_no_count(region: Region) -> None:
    counters = QueryCounters(region, "dns://:53", ".")
    rounds, threads = 50_000, 4

    def count() -> None:
        cells = region.cells
        for _ in range(rounds):
            i = counters.key("udp", "1", "A", "NOERROR", "kubernetes", False, 50, 60)
            cells[i] += 1
            cells[i + 1] += 50
            cells[i + 2] += 60
            counters.duration(1000, 1)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        running = [threading.Thread(target=count) for _ in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    total = rounds * threads
    queries = [cells for key, cells in region.read().items() if key[0] == "query"]
    assert queries == [(total, total * 50, total * 60)]
    assert region.read()["duration", "dns://:53", ".", ""] == (total, *[0] * 16, total * 1000)


def test_threads_that_ask_for_the_same_new_series_get_the_same_cells(region: Region) -> None:
    results: list[list[int]] = [[] for _ in range(4)]

    def ask(mine: list[int]) -> None:
        mine.extend(region.series(("count", str(n)), 1) for n in range(2000))

    threads = [threading.Thread(target=ask, args=(mine,)) for mine in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1] == results[2] == results[3]
    assert len(set(results[0])) == 2000


def test_a_reader_never_sees_a_series_that_is_not_whole(region: Region) -> None:
    def write() -> None:
        with Region.attach(os.dup(region.fd)) as mine:
            for n in itertools.count():
                mine.cells[mine.series(("count", "x" * (n % 90), str(n)), 1 + n % 5)] += n
                if n == 6000:
                    time.sleep(60)

    with forked(write):
        seen = 0
        end = time.monotonic() + 30
        while seen < 6000 and time.monotonic() < end:
            read = region.read()
            assert len(read) >= seen
            seen = len(read)
            for key, cells in itertools.islice(read.items(), max(seen - 10, 0), None):
                n = int(key[2])
                assert (len(key[1]), len(cells)) == (n % 90, 1 + n % 5)
                assert cells[0] in (0, n)
        assert seen >= 6000


def test_kill_9_in_the_middle_of_increments_keeps_the_totals() -> None:
    totals = Totals()
    region = Region.create()
    totals.add_region(region)

    def write() -> None:
        counters = QueryCounters(Region.attach(os.dup(region.fd)), "dns://:53", ".")
        cells = counters.cells
        for n in itertools.count():
            i = counters.key("udp", "1", "A", "NOERROR", "kubernetes", False, n % 900, 60)
            cells[i] += 1
            cells[i + 1] += n % 900
            cells[i + 2] += 60

    with forked(write):
        seen = 0

        def grown() -> bool:
            nonlocal seen
            now = sum(cells[0] for key, cells in totals.totals().items() if key[0] == "query")
            assert now >= seen
            seen = now
            return now > 20_000

        until(grown)
    at_death = totals.totals()
    assert sum(cells[0] for key, cells in at_death.items() if key[0] == "query") >= seen
    totals.retire(region)
    assert totals.totals() == at_death
    assert region.fd == -1


def test_a_replacement_counts_on_from_what_the_dead_worker_had() -> None:
    totals = Totals()
    for count in (3, 4):
        region = Region.create()
        totals.add_region(region)
        region.count(HITS, count)
        region.set(("gauge", "kdns_packet_cache_entries"), 100 * count)
        if count == 3:
            totals.retire(region)
            assert totals.totals() == {HITS: (3,)}
    assert totals.totals() == {HITS: (7,), ("gauge", "kdns_packet_cache_entries"): (400,)}


def test_refused_series_are_summed_over_dead_and_living() -> None:
    totals = Totals()
    regions = [Region.create(4096), Region.create(4096)]
    for region in regions:
        totals.add_region(region)
        for n in range(200):
            region.series(("count", str(n)), 1)
    before = totals.refused()
    totals.retire(regions[0])
    assert totals.refused() == before == 2 * regions[1].refused > 0


def test_a_region_goes_through_exec(region: Region) -> None:
    code = (
        "import sys; from kdns.observe.counters import Region\n"
        "with Region.attach(int(sys.argv[1])) as region: region.count(('count', 'x'), 41)"
    )
    subprocess.run([sys.executable, "-c", code, str(region.fd)], pass_fds=[region.fd], check=True, timeout=30)
    assert region.read() == {("count", "x"): (41,)}


def test_a_region_goes_through_a_socket_and_its_keys_stay_where_they_are(region: Region) -> None:
    first = region.series(HITS, 1)
    here, there = socket.socketpair()
    with here, there:
        socket.send_fds(here, [b"x"], [region.fd])
        _, fds, _, _ = socket.recv_fds(there, 1, 1)
    with Region.attach(fds[0]) as other:
        assert other.series(HITS, 1) == first
        other.cells[first] += 1
    assert region.read() == {HITS: (1,)}


def test_memory_is_taken_only_for_series_that_exist(region: Region) -> None:
    region.count(HITS)
    assert os.fstat(region.fd).st_blocks * 512 <= 16384


def queries(region: Region) -> dict[tuple[str, ...], tuple[int, ...]]:
    return {key[4:]: cells for key, cells in region.read().items() if key[0] == "query"}


@pytest.mark.parametrize(
    ("size", "bucket"),
    [(0, "0"), (1, "1"), (100, "1"), (101, "2"), (511, "5"), (512, "6"), (64000, "13"), (64001, "+"), (65535, "+")],
)
def test_a_size_counts_in_the_first_bucket_that_holds_it(region: Region, size: int, bucket: str) -> None:
    QueryCounters(region, "dns://:53", ".").key("tcp", "2", "A", "NOERROR", "file", True, size, 100)
    assert list(queries(region)) == [("tcp", "2", "A", "NOERROR", "file", "do", bucket, "1")]


@pytest.mark.parametrize(
    ("text", "label"), [("AAAA", "AAAA"), ("ANY", "ANY"), ("TYPE65280", "other"), ("HINFO", "other")]
)
def test_types_beyond_the_known_ones_are_counted_as_other(region: Region, text: str, label: str) -> None:
    QueryCounters(region, "dns://:53", ".").key("udp", "1", text, "NOERROR", "", False, 50, 60)
    assert [key[2] for key in queries(region)] == [label]


def test_clients_that_vary_everything_cannot_crowd_out_the_counts() -> None:
    with Region.create(64 * 1024) as region:
        counters = QueryCounters(region, "dns://:53", ".")
        sent = 0
        for size, answer, proto, family, qtype, do in itertools.product(
            SIZE_BUCKETS, SIZE_BUCKETS, ("udp", "tcp"), "12", ("A", "SRV", "TYPE9"), (True, False)
        ):
            i = counters.key(proto, family, qtype, "NXDOMAIN", "kubernetes", do, size, answer)
            region.cells[i] += 1
            region.cells[i + 1] += size
            sent += 1
        later = QueryCounters(region, "dns://:53", "later.").key("udp", "1", "A", "NOERROR", "", False, 1, 1)
        region.cells[later] += 1
        found = queries(region)
        assert sum(cells[0] for cells in found.values()) == sent + 1
        assert sum(cells[1] for cells in found.values()) == sum(SIZE_BUCKETS) * sent // len(SIZE_BUCKETS)
        assert region.refused == 0
        assert len(counters._index) < len(found)


@pytest.mark.parametrize("bound", range(16))
def test_a_duration_counts_in_the_first_bucket_that_holds_it(region: Region, bound: int) -> None:
    counters = QueryCounters(region, "dns://:53", ".")
    counters.duration(TIME_BUCKETS[bound], 3)
    counters.duration(TIME_BUCKETS[bound] + 1, 2)
    cells = region.read()["duration", "dns://:53", ".", ""]
    expected = [0] * 17
    expected[bound], expected[bound + 1] = 3, 2
    assert cells == (*expected, 5 * TIME_BUCKETS[bound] + 2)


@pytest.mark.parametrize("nanoseconds", [0, -5])
def test_a_clock_that_stands_still_or_runs_back_counts_as_one_nanosecond(region: Region, nanoseconds: int) -> None:
    QueryCounters(region, "dns://:53", ".").duration(nanoseconds, 1)
    assert region.read()["duration", "dns://:53", ".", ""] == (1, *[0] * 16, 1)


def test_a_duration_beyond_the_last_bucket_is_counted(region: Region) -> None:
    QueryCounters(region, "dns://:53", ".").duration(10**12, 1)
    assert region.read()["duration", "dns://:53", ".", ""] == (*[0] * 16, 1, 10**12)


def test_probes_have_their_own_buckets(region: Region) -> None:
    probe = HEALTH_REQUESTS.histogram(region)
    low, high = HEALTH_REQUESTS.bounds[0], HEALTH_REQUESTS.bounds[-1]
    probe.observe(low)
    probe.observe(high + 1)
    assert region.read()["histogram", HEALTH_REQUESTS.name] == (1, 0, 0, 0, 0, 1, low + high + 1)


def test_no_cell_is_added_to_by_a_statement_with_a_call_in_which_threads_could_change() -> None:
    found = []
    for path in Path(kdns.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Subscript):
                counts = ast.unparse(node.target.value).endswith("cells")
                if counts and any(isinstance(part, ast.Call) for part in ast.walk(node)):
                    found.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
    assert found == []
