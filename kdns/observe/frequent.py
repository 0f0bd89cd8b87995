"""What comes most often, and how often a second, in memory that does not grow.

Space-Saving (Metwally, Agrawal, El Abbadi 2005): so many keys have a counter; a new key takes over the one that is
lowest, with its count, which is then the most by which the new one may be overestimated. What comes often enough
always has a counter. Counts fade (Cormode, Shkapenyuk, Srivastava, Xu 2009, "forward decay"): each weighs less the
longer ago it was, so that the rates are those of about the last minute.
"""

from __future__ import annotations

import heapq
import math
import threading
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)

FADING_SECONDS = 60.0
"""After so long, a count weighs 1/e."""
_LARGEST = 200.0
"""Of an exponent: then all counts are made smaller together."""


class Rate(NamedTuple, Generic[K]):
    """How often a key came. rate: a second; excess: the most by which that may be too high."""

    key: K
    rate: float
    excess: float


class Frequent(Generic[K]):
    """Safe to use from several threads. Times are seconds of one clock."""

    def __init__(self, size: int, now: float) -> None:
        """size: how many keys have a counter."""
        self._size = size
        self._begun = self._origin = now
        self._lock = threading.Lock()
        self._counts: dict[K, list[float]] = {}  # count and excess
        self._lowest: list[tuple[float, int, K]] = []  # a heap; counts may have grown since
        self._number = 0

    def add(self, key: K, weight: float, now: float) -> None:
        """The key came, and stands for so many that came."""
        with self._lock:
            age = (now - self._origin) / FADING_SECONDS
            if age > _LARGEST:
                self._shrink(age, now)
                age = 0.0
            count = weight * math.exp(age)
            known = self._counts.get(key)
            if known is not None:
                known[0] += count
                return
            excess = self._take_lowest() if len(self._counts) >= self._size else 0.0
            self._counts[key] = [count + excess, excess]
            self._push(key, count + excess)

    def _push(self, key: K, count: float) -> None:
        self._number += 1  # keys need not have an order
        heapq.heappush(self._lowest, (count, self._number, key))

    def _take_lowest(self) -> float:
        """Take away the counter that is lowest; returns its count."""
        while True:
            then, _, key = heapq.heappop(self._lowest)
            now = self._counts[key][0]
            if now == then:
                del self._counts[key]
                return now
            self._push(key, now)

    def _shrink(self, age: float, now: float) -> None:
        factor = math.exp(-age)
        self._origin = now
        self._lowest = []
        for key, known in self._counts.items():
            known[:] = (value * factor for value in known)
            self._push(key, known[0])

    def top(self, most: int, now: float) -> list[Rate[K]]:
        """What came most often, that first; without those of which less than half is certain."""
        with self._lock:
            found = [(key, count, excess) for key, (count, excess) in self._counts.items() if excess * 2 <= count]
            age = (now - self._origin) / FADING_SECONDS
            since = (now - self._begun) / FADING_SECONDS
        # A rate of 1 adds up to this many, which fade meanwhile.
        one = FADING_SECONDS * max(-math.expm1(-since), 1 / FADING_SECONDS)
        scale = math.exp(-age) / one
        largest = heapq.nlargest(most, found, key=lambda each: each[1])
        return [Rate(key, count * scale, excess * scale) for key, count, excess in largest]
