"""The process log: lines on standard output as CoreDNS's users know them.

    [INFO] plugin/reload: Running configuration SHA512 = 0a1b...
    [WARNING] plugin/kubernetes: ...

Nobody who logs waits: lines go through a bounded queue to a thread that writes them, so that a reader of our output who
is stuck, or gone, costs lines and nothing else. How many were lost is said when output flows again.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from kdns.observe.recent import Recent
from kdns.observe.text import printable

MAX_LINE = 4096
"""Longest line in bytes, the newline included: PIPE_BUF, what a pipe takes whole (POSIX write(2))."""
MAX_WAITING = 2048
"""Lines that may wait for a slow reader; more are dropped."""
MAX_KEYS = 256
"""Different messages whose repetitions are counted apart."""
REPEAT_SECONDS = 60.0

_CUT = b"...\n"
_KEPT = ("WARNING", "ERROR")
"""Levels that are among the last messages (`Sink.recent`)."""


def line(level: str, text: str) -> bytes:
    """One line of output: what could start another line or steer a terminal is escaped, what is too long is cut."""
    return escaped(f"[{level}] {text}")


def escaped(text: str) -> bytes:
    """A text as one line of output; see `line`."""
    data = f"{printable(text)}\n".encode()
    if len(data) > MAX_LINE:
        data = data[: MAX_LINE - len(_CUT)].decode(errors="ignore").encode() + _CUT
    return data


@dataclass(slots=True)
class _Repeated:
    until: float
    level: str
    text: str
    count: int = 0


class Repeats:
    """Which messages to say and which only to count. Times are seconds of one clock; safe to use from several threads.

    The first message of a key is said at once. Those that follow within `seconds` are counted, and the count is `due`
    at the end of that time, when the next such time begins. A key that stayed quiet for one such time is forgotten.
    """

    def __init__(self, seconds: float = REPEAT_SECONDS, keys: int = MAX_KEYS) -> None:
        self._seconds = seconds
        self._keys = keys
        self._lock = threading.Lock()
        self._known: dict[str, _Repeated] = {}

    def first(self, key: str, level: str, text: str, now: float) -> bool:
        """Whether to say the message now; it is counted if not. With too many keys, new ones are counted together."""
        with self._lock:
            known = self._known.get(key)
            if known is None and len(self._known) >= self._keys:
                key, text = "", "messages of other kinds"
                known = self._known.setdefault(key, _Repeated(now + self._seconds, level, text))
            if known is None:
                self._known[key] = _Repeated(now + self._seconds, level, text)
                return True
            known.level, known.text = level, text
            known.count += 1
            return False

    def due(self, now: float) -> list[tuple[str, str]]:
        """(level, text) of the counts whose time has come, the oldest first."""
        said: list[tuple[str, str]] = []
        with self._lock:
            for key, known in list(self._known.items()):
                if known.until > now:
                    continue
                if not known.count:
                    del self._known[key]
                    continue
                said.append((known.level, f"{known.text} ({known.count} more in the last {self._seconds:g} s)"))
                known.count = 0
                known.until = now + self._seconds
        return said

    def next_due(self) -> float | None:
        """When to call `due` again."""
        with self._lock:
            return min((known.until for known in self._known.values()), default=None)


class _Writer:
    """The queue and the thread of one process. The thread has a descriptor of its own, as long as it lives."""

    def __init__(self, fd: int, lost: Callable[[int], None] | None, repeats: Repeats) -> None:
        self.repeats = repeats
        self.accepted = 0
        self.finished = 0
        self.stopped = False
        try:
            self._fd = self._own = os.dup(fd)
        except OSError:  # it is closed, or there is no number left
            self._fd, self._own = fd, -1
        self._lost = lost
        self._queue: SimpleQueue[bytes] = SimpleQueue()
        self._refused = 0

    def start(self) -> None:
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def put(self, data: bytes) -> None:
        if self._queue.qsize() >= MAX_WAITING:
            self._refused += 1
        else:
            self._queue.put(data)
            self.accepted += 1

    def stop(self) -> None:
        self.stopped = True
        self._queue.put(b"")

    def _run(self) -> None:
        while True:
            lines = self._take()
            now = time.monotonic()
            counts = [line(level, text) for level, text in self.repeats.due(now)]
            for chunk in _chunks(lines + counts):
                self._write(chunk)
            self.finished += sum(map(bool, lines))
            self._report()
            if self.stopped and self._queue.empty():
                if self._own >= 0:
                    os.close(self._own)
                return

    def _take(self) -> list[bytes]:
        """The lines that wait, at least one unless a count of repetitions is due."""
        due = self.repeats.next_due()
        try:
            first = self._queue.get(timeout=None if due is None else max(due - time.monotonic(), 0.0))
        except Empty:
            return []
        return [first, *(self._queue.get() for _ in range(self._queue.qsize()))]

    def _write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:
                self._wait()
            except OSError:
                self._refused += data.count(b"\n")
                return

    def _wait(self) -> None:
        """Wait for room in an output that somebody has set to O_NONBLOCK."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        poll.poll(1000)

    def _report(self) -> None:
        """Count what was dropped; say it too if the queue was full and now is not, for then somebody reads."""
        refused, self._refused = self._refused, 0
        if refused and self._lost:
            self._lost(refused)
        if refused:
            try:
                os.write(self._fd, line("WARNING", f"{refused} lines of this log were lost: nobody took them in time"))
            except OSError:
                return


def _chunks(lines: list[bytes]) -> Iterator[bytes]:
    """Whole lines together, as many as a pipe takes at once."""
    chunk: list[bytes] = []
    size = 0
    for data in lines:
        if size + len(data) > MAX_LINE:
            yield b"".join(chunk)
            chunk, size = [], 0
        chunk.append(data)
        size += len(data)
    yield b"".join(chunk)


class Sink:
    """Where lines go: a file descriptor, written by a thread, whole lines in writes of at most MAX_LINE bytes.

    The thread starts with the first line, in whatever process that is: a process forked off has its own. It ends when
    the object goes. Until then it has a descriptor of its own: the number of the one that was given may be another
    file's by the time that a count of repetitions is due.
    recent: the last warnings and errors.
    """

    def __init__(
        self, fd: int = 1, *, lost: Callable[[int], None] | None = None, repeat_seconds: float = REPEAT_SECONDS
    ) -> None:
        """lost: told how many lines were dropped, in the writing thread. repeat_seconds: see Repeats."""
        self._fd = fd
        self._lost = lost
        self._repeat_seconds = repeat_seconds
        self._writers: dict[int, _Writer] = {}
        weakref.finalize(self, _stop_all, self._writers).atexit = False
        self.recent = Recent()

    def put(self, data: bytes) -> None:
        """Queue one line as `line` makes it. Never waits, never raises."""
        self._writer().put(data)

    def repeated(self, key: str, level: str, text: str) -> bool:
        """Whether the message is only counted, because its key was seen a short time ago."""
        return not self._writer().repeats.first(key, level, text, time.monotonic())

    def flush(self, timeout: float = 1.0) -> bool:
        """Wait until what was queued before is written or lost, at most `timeout` seconds; whether it is."""
        writer = self._writer()
        wanted = writer.accepted
        end = time.monotonic() + timeout
        while writer.finished < wanted:
            if time.monotonic() > end:
                return False
            time.sleep(0.001)
        return True

    def close(self, timeout: float = 1.0) -> bool:
        """Flush and end the thread; as flush. A later line starts another thread."""
        flushed = self.flush(timeout)
        self._writers.pop(os.getpid()).stop()
        return flushed

    def _writer(self) -> _Writer:
        pid = os.getpid()
        writer = self._writers.get(pid)
        if writer is None:
            mine = _Writer(self._fd, self._lost, Repeats(self._repeat_seconds))
            writer = self._writers.setdefault(pid, mine)
            if writer is mine:
                with contextlib.suppress(RuntimeError):  # no thread to be had: lines are counted as they do not fit
                    mine.start()
        return writer


def _stop_all(writers: dict[int, _Writer]) -> None:
    for writer in writers.values():
        writer.stop()


class Log:
    """What the modules of one process write to.

    A `key` marks a message that may come often: it is said once, then counted (see Repeats). Messages with the same key
    should differ in details only. `kind` is for messages without a key that do so too, of which each is said.
    """

    def __init__(self, sink: Sink, *, debug: bool = False, prefix: str = "") -> None:
        """debug: whether to write what `debug` is given. prefix: goes before each text."""
        self._sink = sink
        self._prefix = prefix
        self.debugging = debug

    def plugin(self, name: str) -> Log:
        """The log of a directive, whose lines begin with "plugin/NAME: "."""
        return Log(self._sink, debug=self.debugging, prefix=f"plugin/{name}: ")

    def raw(self, text: str) -> None:
        """Write a line that has its level in front already."""
        self._sink.put(escaped(text))

    def debug(self, text: str, key: str = "") -> None:
        if self.debugging:
            self._say("DEBUG", text, key)

    def info(self, text: str, key: str = "") -> None:
        self._say("INFO", text, key)

    def warning(self, text: str, key: str = "", *, kind: str = "") -> None:
        self._say("WARNING", text, key, kind)

    def error(self, text: str, key: str = "", *, kind: str = "") -> None:
        self._say("ERROR", text, key, kind)

    @property
    def recent(self) -> Recent:
        """The last warnings and errors of this process."""
        return self._sink.recent

    def _say(self, level: str, text: str, key: str, kind: str = "") -> None:
        if level in _KEPT:
            self.recent.note(level, self._prefix + (kind or key or text), self._prefix + text)
        text = self._prefix + text
        if key and self._sink.repeated(key, level, text):
            return
        self._sink.put(line(level, text))

    def flush(self, timeout: float = 1.0) -> bool:
        """Wait until the lines so far are written, at most `timeout` seconds; whether they are."""
        return self._sink.flush(timeout)
