"""Bytes that all that a worker keeps may take together.

Each cache counts for itself and says here what it has come to take more or less. When the sum is too large, the cache
that takes most gives something up, so that the busy one has what others do not need.
"""

from __future__ import annotations

import threading
from typing import Protocol

UNBOUNDED = 1 << 62


class Keeper(Protocol):
    """A cache."""

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        ...

    def shed(self) -> int:
        """Give up what is wanted least; returns its bytes, 0 if there is nothing. Called in any thread."""
        ...


class Budget:
    """The sum over all caches of a worker. Safe to use from several threads.

    limit: bytes. used: bytes that are taken, about.
    """

    __slots__ = ("_keepers", "_lock", "limit", "used")

    def __init__(self, limit: int = UNBOUNDED) -> None:
        self.limit = limit
        self.used = 0
        self._keepers: list[Keeper] = []
        self._lock = threading.Lock()

    def join(self, keeper: Keeper) -> None:
        """Let a cache, which is empty yet, take part."""
        self._keepers.append(keeper)

    def add(self, size: int) -> None:
        """Note that a cache takes so many bytes more (or less, below 0), and make room if that was too much.

        Not to be called with a lock held that a keeper's `shed` takes.
        """
        with self._lock:
            self.used += size
            while self.used > self.limit:
                freed = max(self._keepers, key=_size).shed()
                if not freed:
                    return
                self.used -= freed


def _size(keeper: Keeper) -> int:
    return keeper.size
