"""The last warnings and errors: bounded, each kind once with its count, of several processes together."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from kdns.observe.logs import Log, Sink
from kdns.observe.recent import LONGEST, MOST, Message, Recent, merged


@pytest.fixture
def log() -> Iterator[Log]:
    fd = os.open(os.devnull, os.O_WRONLY)
    sink = Sink(fd)
    yield Log(sink, debug=True)
    sink.close()
    os.close(fd)


def texts(recent: Recent) -> list[str]:
    return [message.text for message in recent.messages()]


def test_warnings_and_errors_are_kept_the_last_one_first(log: Log) -> None:
    begun = time.time()
    log.info("nothing")
    log.debug("nothing")
    log.raw("[ERROR] a query log may say anything")
    log.warning("first")
    log.plugin("forward").error("second")
    assert [(message.level, message.text, message.count) for message in log.recent.messages()] == [
        ("ERROR", "plugin/forward: second", 1),
        ("WARNING", "first", 1),
    ]
    for message in log.recent.messages():
        assert begun <= message.first == message.last <= time.time()


def test_repeated_messages_are_counted_though_they_are_not_said(log: Log) -> None:
    for number in range(5):
        log.warning(f"down: {number}", key="down")
    log.error("other", key="down")
    (other, down) = log.recent.messages()
    assert (down.text, down.count) == ("down: 4", 5)
    assert (other.text, other.count) == ("other", 1)
    assert down.first < down.last < other.first


def test_kinds_of_two_plugins_are_different(log: Log) -> None:
    log.plugin("a").error("x", key="same")
    log.plugin("b").error("x", key="same")
    assert texts(log.recent) == ["plugin/b: x", "plugin/a: x"]


def test_errors_of_many_names_do_not_drive_out_what_else_went_wrong(log: Log) -> None:
    log.warning("upstream is down")
    for number in range(1000):
        log.error(f"2 {number}.test. A: no answer", kind="2 no answer")
    assert texts(log.recent) == ["2 999.test. A: no answer", "upstream is down"]
    assert log.recent.messages()[0].count == 1000


def test_the_number_of_kinds_and_their_length_are_bounded() -> None:
    recent = Recent()
    for number in range(3 * MOST):
        recent.note("ERROR", f"{number}" + "x" * 10_000, f"{number}" + "y" * 10_000)
    assert len(recent.messages()) == MOST
    assert texts(recent)[0].startswith(f"{3 * MOST - 1}y")
    assert {len(text) for text in texts(recent)} == {LONGEST}
    assert recent.number == 3 * MOST


def test_what_is_not_printable_is_kept_as_an_escape() -> None:
    recent = Recent()
    recent.note("ERROR", "kind\n", "a\x1b[2J\udcff\u202e\n")
    (message,) = recent.messages()
    assert (message.kind, message.text) == (r"kind\n", r"a\x1b[2J\udcff\u202e\n")


def test_threads_lose_no_message() -> None:
    recent = Recent()

    def note() -> None:
        for _ in range(2000):
            recent.note("ERROR", "kind", "text")

    threads = [threading.Thread(target=note) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [message.count for message in recent.messages()] == [8000]


def test_messages_of_processes_count_together() -> None:
    here = [Message("ERROR", "k", "k here", 10.0, 20.0, 2), Message("WARNING", "w", "w", 1.0, 1.0)]
    there = [Message("ERROR", "k", "k there", 5.0, 30.0, 3), Message("WARNING", "k", "not the same", 40.0, 40.0)]
    assert merged([here, there]) == (
        Message("WARNING", "k", "not the same", 40.0, 40.0),
        Message("ERROR", "k", "k there", 5.0, 30.0, 5),
        Message("WARNING", "w", "w", 1.0, 1.0),
    )
    assert len(merged([[Message("ERROR", str(n), "", n, n) for n in range(100)]])) == MOST


def test_what_an_ended_process_had_is_kept() -> None:
    recent = Recent()
    recent.note("ERROR", "own", "own")
    recent.merge([Message("ERROR", "own", "own", 1.0, 2.0, 7), Message("ERROR", "last words", "last words", 1.0, 2.0)])
    assert {message.kind: message.count for message in recent.messages()} == {"own": 8, "last words": 1}


def test_old_messages_of_an_ended_process_do_not_drive_out_newer_ones() -> None:
    recent = Recent(most=3)
    for kind in ("one", "two"):
        recent.note("ERROR", kind, kind)
    recent.merge(Message("ERROR", f"old {number}", "", 1.0, 10.0 - number) for number in range(5))
    assert [message.kind for message in recent.messages()] == ["two", "one", "old 0"]
    recent.note("ERROR", "three", "three")
    assert [message.kind for message in recent.messages()] == ["three", "two", "one"]
