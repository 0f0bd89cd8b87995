"""Which names are asked for most: some of a worker's answers are looked at (`prometheus`, option `top_names`).

A thread that answers looks at one answer in INTERVAL at most, chosen by chance among those since the last one, which it
stands for. So the effort does not grow with the queries, and where these are few, nearly all are looked at.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from random import random

from kdns.observe.frequent import Frequent
from kdns.observe.notes import TopName
from kdns.wire import names, rr

INTERVAL = 2_000_000
"""Nanoseconds between two looks of a thread."""
COUNTERS = 16
"""Names that a worker counts, for each that is shown."""
LONGEST = 12 + names.MAX_NAME + 4
"""Bytes of an answer up to the end of its question, at most."""
LEAST = 0.005
"""Queries a second below which a name is not shown."""

_SECOND = 1_000_000_000
Question = tuple[bytes, int, int]
"""Name (lower case), type, and response code."""


class TopNames:
    """Those of one worker."""

    def __init__(self, most: int) -> None:
        """most: how many are shown."""
        self._most = most
        self._found: Frequent[Question] = Frequent(most * COUNTERS, time.monotonic())

    def add(self, question: Question, weight: float, now: float) -> None:
        """It was asked, and stands for so many. now: of time.monotonic()."""
        self._found.add(question, weight, now)

    def report(self) -> tuple[TopName, ...]:
        """The names that were asked for most over about the last minute, the most frequent first."""
        found = self._found.top(self._most, time.monotonic())
        return tuple(
            TopName(names.to_text(name), rr.type_text(qtype), rr.rcode_text(rcode), round(rate, 3))
            for (name, qtype, rcode), rate, _ in found
            if rate >= LEAST
        )


def read(answer: bytes) -> Question | None:
    """What was asked and what came of it; None for an answer without a question, or not of class IN."""
    at = 12
    try:
        if answer[5] != 1:
            return None
        while answer[at]:
            at += 1 + answer[at]
        at += 1
        if answer[at + 2] or answer[at + 3] != rr.IN:
            return None
    except IndexError:
        return None
    return answer[12:at].lower(), answer[at] << 8 | answer[at + 1], answer[3] & 0xF


class Sampler:
    """The choice of one thread, in which alone it is used."""

    __slots__ = ("_chosen", "_due", "_names", "_total", "_wanted")

    def __init__(self, found: TopNames, wanted: Callable[[bytes], bool] = lambda _: True) -> None:
        """wanted: whether a name (lower case) is to be among them."""
        self._names = found
        self._wanted = wanted
        self._total = 0
        self._chosen = b""
        self._due = 0

    def offer(self, answer: bytes, weight: int, now: int) -> None:
        """An answer, or its first LONGEST bytes, chosen by chance out of so many. now: of time.monotonic_ns()."""
        self._total = total = self._total + weight
        if total == weight or random() * total < weight:
            self._chosen = answer
        if now >= self._due:
            self._due = now + INTERVAL
            self._total = 0
            question = read(self._chosen)
            if question is not None and self._wanted(question[0]):
                self._names.add(question, total, now / _SECOND)

    def one(self, answer: bytes, now: int) -> None:
        """An answer of a thread that offers all of them."""
        self.offer(answer, 1, now)
