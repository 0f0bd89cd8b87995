"""The process log: CoreDNS's form, one line per record, and nobody who logs ever waits."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.observe.logs import MAX_LINE, MAX_WAITING, Log, Repeats, Sink, line
from tests.support import procs


@dataclass
class Pipe:
    """A log whose output is a pipe."""

    read: int
    write: int
    lost: list[int] = field(default_factory=list)

    def sink(self, repeat_seconds: float = 60.0) -> Sink:
        return Sink(self.write, lost=self.lost.append, repeat_seconds=repeat_seconds)

    def log(self) -> Log:
        return Log(self.sink())

    def text(self) -> str:
        return os.read(self.read, 1 << 20).decode()

    def drain(self) -> str:
        """What is in the pipe until nothing has come for a while."""
        os.set_blocking(self.read, False)
        parts: list[bytes] = []
        quiet = 0
        while quiet < 20:
            try:
                parts.append(os.read(self.read, 1 << 20))
                quiet = 0
            except BlockingIOError:
                quiet += 1
                time.sleep(0.01)
        return b"".join(parts).decode()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    pipe = Pipe(read, write)
    yield pipe
    os.close(read)  # a thread that is stuck in a write gets EPIPE and ends
    os.close(write)


def test_lines_have_the_form_of_coredns(pipe: Pipe) -> None:
    log = pipe.log()
    log.info("kdns-0.1.0")
    log.plugin("reload").info("Running configuration SHA512 = f00")
    log.plugin("kubernetes").warning("skipped")
    log.plugin("errors").error("2 example.org. A: timeout")
    log.debug("not shown")
    Log(pipe.sink(), debug=True).plugin("cache").debug("shown")
    assert log.flush()
    lines = pipe.drain().splitlines()
    assert lines[-5:].count("[DEBUG] plugin/cache: shown") == 1
    assert [text for text in lines if "DEBUG" not in text] == [
        "[INFO] kdns-0.1.0",
        "[INFO] plugin/reload: Running configuration SHA512 = f00",
        "[WARNING] plugin/kubernetes: skipped",
        "[ERROR] plugin/errors: 2 example.org. A: timeout",
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\n[ERROR] forged", r"a\n[ERROR] forged"),
        ("a\r\nb", r"a\r\nb"),
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("\x85 \u2028 \u202e", r"\x85 \u2028 \u202e"),
        ("\ud800", r"\ud800"),
        ("zürich 域", "zürich 域"),
        (r"w\032x", r"w\032x"),
    ],
)
def test_text_cannot_begin_another_line_or_steer_a_terminal(text: str, shown: str) -> None:
    assert line("INFO", text) == f"[INFO] {shown}\n".encode()


@given(st.text(alphabet=st.characters(), max_size=3000))
def test_whatever_is_logged_is_one_printable_line_that_a_pipe_takes_whole(text: str) -> None:
    data = line("WARNING", text)
    assert data.endswith(b"\n")
    assert len(data) <= MAX_LINE
    assert data[:-1].decode().isprintable()


def test_a_line_that_is_too_long_is_cut_and_shows_it() -> None:
    data = line("INFO", "ü" * 5000)
    assert MAX_LINE - 2 <= len(data) <= MAX_LINE
    assert data.endswith("ü...\n".encode())


def test_lines_of_several_threads_stay_whole(pipe: Pipe) -> None:
    fcntl.fcntl(pipe.write, fcntl.F_SETPIPE_SZ, 1 << 20)
    log = pipe.log()

    def write(n: int) -> None:
        for i in range(200):
            log.info(f"{n} {i} " + "x" * (i * 7))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.flush(5)
    lines = pipe.drain().splitlines()
    expected = {f"[INFO] {n} {i} " + "x" * (i * 7) for n in range(4) for i in range(200)}
    assert set(lines) == expected
    for n in range(4):
        numbers = [int(text.split()[2]) for text in lines if text.split()[1] == str(n)]
        assert numbers == list(range(200))


def test_a_reader_that_is_stuck_costs_lines_and_no_time(pipe: Pipe) -> None:
    log = pipe.log()
    slowest = 0.0
    sent = MAX_WAITING * 3
    for n in range(sent):
        start = time.perf_counter()
        log.info(f"line {n} {'x' * 80}")
        slowest = max(slowest, time.perf_counter() - start)
    assert slowest < 0.5
    assert not log.flush(0.05)
    lines = pipe.drain().splitlines()
    kept = [text for text in lines if text.startswith("[INFO] line ")]
    assert kept[0].startswith("[INFO] line 0 ")
    assert MAX_WAITING <= len(kept) < sent
    assert len(kept) + sum(pipe.lost) == sent
    assert sum(int(text.split()[1]) for text in lines if "were lost" in text) == sum(pipe.lost)
    log.info("after")
    assert log.flush()
    assert pipe.drain() == "[INFO] after\n"


def test_a_process_whose_reader_is_stuck_can_end() -> None:
    code = (
        "from kdns.observe.logs import Log, Sink\n"
        "sink = Sink(); log = Log(sink)\n"
        "for _ in range(3000): log.info('x' * 200)\n"
        "sink.close(0.1)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.wait(10) == 0
    finally:
        process.kill()
        assert process.stdout is not None
        process.stdout.close()


def test_a_reader_that_is_gone_costs_lines_only() -> None:
    read, write = os.pipe()
    lost: list[int] = []
    log = Log(Sink(write, lost=lost.append))
    os.close(read)
    log.info("nobody hears this")
    assert log.flush()
    os.close(write)
    log.info("nor this")
    assert log.flush()
    end = time.monotonic() + 5
    while sum(lost) < 2 and time.monotonic() < end:
        time.sleep(0.001)
    assert sum(lost) == 2


def test_an_output_that_does_not_block_still_gets_every_line(pipe: Pipe) -> None:
    os.set_blocking(pipe.write, False)
    log = pipe.log()
    for n in range(500):
        log.info(f"line {n} {'x' * 100}")
    assert [text.split()[2] for text in pipe.drain().splitlines()] == [str(n) for n in range(500)]
    assert not pipe.lost


def test_a_forked_process_writes_its_own_lines_only(pipe: Pipe) -> None:
    log = pipe.log()
    log.info("parent")
    assert log.flush()
    pid = os.fork()
    if pid == 0:
        log.info("child")
        os._exit(0 if log.flush() else 1)
    end = time.monotonic() + 10
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)
    assert ended[1] == 0
    assert pipe.drain() == "[INFO] parent\n[INFO] child\n"


def test_a_sink_can_be_closed_and_used_again(pipe: Pipe) -> None:
    before = threading.active_count()
    sink = pipe.sink()
    log = Log(sink)
    log.info("one")
    assert sink.close()
    end = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.001)
    assert threading.active_count() == before
    log.info("two")
    assert sink.close()
    assert pipe.drain() == "[INFO] one\n[INFO] two\n"


def test_a_repeated_warning_is_said_once_and_then_counted(pipe: Pipe) -> None:
    log = Log(pipe.sink(repeat_seconds=0.2)).plugin("kubernetes")
    for n in range(10):
        log.warning(f"bad label {n}", key="label")
    log.warning("something else", key="else")
    log.info("never limited")
    log.info("never limited")
    assert log.flush()
    now = pipe.text().splitlines()
    assert now == [
        "[WARNING] plugin/kubernetes: bad label 0",
        "[WARNING] plugin/kubernetes: something else",
        *["[INFO] plugin/kubernetes: never limited"] * 2,
    ]
    time.sleep(0.3)
    assert pipe.drain() == "[WARNING] plugin/kubernetes: bad label 9 (9 more in the last 0.2 s)\n"
    time.sleep(0.3)
    log.warning("bad label 10", key="label")
    assert log.flush()
    assert pipe.drain() == "[WARNING] plugin/kubernetes: bad label 10\n"


def test_counts_come_once_per_interval() -> None:
    repeats = Repeats(60)
    assert repeats.first("a", "WARNING", "x", 0)
    assert not repeats.first("a", "WARNING", "x", 1)
    assert repeats.due(59.9) == []
    assert repeats.next_due() == 60
    assert repeats.due(60) == [("WARNING", "x (1 more in the last 60 s)")]
    assert not repeats.first("a", "WARNING", "x", 61)
    assert repeats.due(120) == [("WARNING", "x (1 more in the last 60 s)")]
    assert repeats.due(180) == []
    assert repeats.next_due() is None
    assert repeats.first("a", "WARNING", "x", 181)


def test_the_number_of_keys_is_bounded() -> None:
    repeats = Repeats(60, keys=3)
    said = [repeats.first(str(n), "WARNING", f"w{n}", 0) for n in range(100)]
    assert said == [True] * 3 + [False] * 97
    assert repeats.due(60) == [("WARNING", "messages of other kinds (97 more in the last 60 s)")]


def test_a_log_that_goes_writes_no_more_into_the_number_that_was_its_descriptor(pipe: Pipe) -> None:
    before = set(threading.enumerate())
    sink = pipe.sink(repeat_seconds=0.1)
    log = Log(sink)
    for _ in range(2):
        log.warning("it is down", key="down")
    assert sink.flush()
    assert "it is down" in pipe.text()
    (thread,) = set(threading.enumerate()) - before
    other, number = os.pipe()
    os.dup2(number, pipe.write)  # which is another file's number now
    os.set_blocking(other, False)
    procs.wait_until(lambda: "more in the last" in pipe.drain(), 5, "the count of repetitions")
    with pytest.raises(BlockingIOError):
        os.read(other, 1)
    del log, sink
    thread.join(5)
    assert not thread.is_alive()
    for fd in (other, number):
        os.close(fd)
