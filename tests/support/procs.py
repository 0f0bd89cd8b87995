"""Processes as /proc shows them: who belongs to a server, what they cost, and their end."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

_CPUCLOCK_SCHED = 2


@dataclass(frozen=True, slots=True)
class Stat:
    """A line of /proc/PID/stat (proc(5))."""

    pid: int
    state: str
    parent: int
    session: int


def stat(pid: int) -> Stat | None:
    """What the kernel says about a process; None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return Stat(pid, fields[0], int(fields[1]), int(fields[3]))


def session(leader: int) -> list[Stat]:
    """The living processes of a session, orphans too, oldest pid first."""
    found = (stat(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return sorted((s for s in found if s and s.session == leader and s.state not in "ZX"), key=lambda s: s.pid)


def is_alive(pid: int) -> bool:
    """False for a zombie too."""
    found = stat(pid)
    return found is not None and found.state not in "ZX"


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time that all threads of the processes have used so far, those that ended included.

    From each process's CPU clock (clock_getcpuclockid(3)), in nanoseconds, where /proc/PID/stat counts hundredths of a
    second. A process that is gone counts nothing.
    """
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)
    return total


def pss(pids: Iterable[int]) -> int:
    """Proportional set size in bytes: private memory, and of shared pages each process's part."""
    return sum(_rollup(pid, "Pss:") for pid in pids)


def alone(pids: Iterable[int]) -> int:
    """The proportional set size in bytes that processes would have if nobody else had mapped their files.

    Anonymous pages are shared within a family of forked processes only. Of a file (libraries, shared memory) each part
    counts once, as much of it as the process has that has most.
    """
    files: dict[tuple[str, str], int] = {}
    for pid in pids:
        own: dict[tuple[str, str], int] = {}
        part = "0", "0"
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            fields = line.split()
            if "-" in fields[0]:
                part = fields[4], fields[2]  # inode and offset (proc(5))
            elif fields[0] in ("Rss:", "Anonymous:") and part[0] != "0":
                own[part] = own.get(part, 0) + (1 if fields[0] == "Rss:" else -1) * int(fields[1]) * 1024
        for part, size in own.items():
            files[part] = max(files.get(part, 0), size)
    return sum(files.values()) + sum(_rollup(pid, "Pss_Anon:") for pid in pids)


def private(pids: Iterable[int]) -> int:
    """Memory in bytes that no other process maps."""
    return sum(_rollup(pid, "Private_Clean:") + _rollup(pid, "Private_Dirty:") for pid in pids)


def anonymous(pids: Iterable[int]) -> int:
    """Memory in bytes that is of no file, whether a process that was forked shares it still or has a copy."""
    return sum(_rollup(pid, "Anonymous:") for pid in pids)


def _rollup(pid: int, field: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def kill(pids: Iterable[int]) -> None:
    """SIGKILL to each that is still there."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def wait_until(condition: Callable[[], bool], seconds: float, what: str, pause: float = 0.005) -> float:
    """Try a condition until it holds; returns the seconds it took. Raises AssertionError when the time is up."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > seconds:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(pause)
    return time.monotonic() - start
