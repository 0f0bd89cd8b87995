"""What each worker may take of the memory that there is, so that hostile clients do not get us killed.

Without a limit of a control group, what is kept is bounded by the Corefile (`cache`) and by constants. With one, the
processes and their modules come first, and the rest is shared out; some of it stays free, as what Python gives back to
the system comes in large pieces only.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from kdns.plugins.budget import UNBOUNDED
from kdns.server.respond import MOST_PENDING

PROCESSES = 56 << 20
"""About what the supervisor, the nursery and the modules that all share take, in bytes; and for a moment the process
that changes a node's links."""
WORKER = 12 << 20
"""About what a worker takes beside what is counted here."""
PENDING = 10 << 10
"""About what a query takes while it waits for an answer of another server."""
CLUSTER = 4
"""The part of the limit that is left to the supervisor for the objects of a cluster, one in so many."""
_WHILE_COMING = 5, 2
"""What a copy of a zone takes of the supervisor's part while all of it comes, for its records: five halves, with what
is written of it."""
LEAST = 4 << 20
"""What a worker gets in the smallest group: then the limit is too low, and it may come to a kill."""
_M_TRIM_THRESHOLD = -1
_KEPT = 128 << 10
"""Bytes: what glibc begins with."""


LEAST_HANDICAP = 200
"""For a limit that is set later, too."""


@dataclass(frozen=True, slots=True)
class Share:
    """A worker's part, in bytes but for `waiting`.

    cached: of all that its caches keep. waiting: how many queries may wait for an answer. held: what TCP connections
    may hold of messages that are incomplete, and of answers that are not taken.
    """

    cached: int = UNBOUNDED
    waiting: int = MOST_PENDING
    held: int = UNBOUNDED


UNLIMITED = Share()


def return_early() -> None:
    """Let glibc return what is free at the end of its heaps as soon as that is worth it (mallopt(3), M_TRIM_THRESHOLD).

    By itself it begins to keep up to twice as much there as the largest block had that was ever freed, in each thread.
    """
    with contextlib.suppress(ImportError, OSError):
        import ctypes

        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_M_TRIM_THRESHOLD, _KEPT)


def room(limit: int, workers: int, *, cluster: bool) -> int:
    """Bytes that each of the workers may take beside its modules; less than LEAST if the limit is too low.

    limit: bytes for all processes together. cluster: whether the supervisor follows one.
    """
    return (limit - PROCESSES - (limit // CLUSTER if cluster else 0)) // workers - WORKER


def arriving(limit: int | None, most: int) -> int:
    """Bytes for the records of a transfer while it comes; `most` without a limit."""
    if limit is None:
        return most
    times, of = _WHILE_COMING
    return min(most, limit // CLUSTER * of // times)


def share(limit: int | None, workers: int, *, cluster: bool = False) -> Share:
    """What each of the workers may take. limit: None if there is none."""
    if limit is None:
        return UNLIMITED
    found = max(LEAST, room(limit, workers, cluster=cluster))
    return Share(cached=found * 2 // 5, waiting=min(MOST_PENDING, found // 5 // PENDING), held=found // 5)


def handicap(limit: int | None) -> int:
    """What to add to a worker's oom_score_adj so that it is killed, and no process that may be larger (proc(5)).

    Thousandths of the memory that the kernel counts by: of the limit, or of the machine's.
    """
    return LEAST_HANDICAP if limit is None else min(1000, max(LEAST_HANDICAP, 1000 * PROCESSES * 3 // 2 // limit))
