"""A board in shared memory: one process posts bytes on it, another reads the last ones at any time, and neither waits.

Layout, in words of 64 bits, native byte order:

    0      which half has the last post: 0 or 1
    1, 2   of each half: (bytes << 32 | their CRC-32)
    8..    the halves, ROOM bytes each

A post goes into the half that is not the last one's, which is the last one from the moment in which word 0 says so. Who
has read for so long that the half was written again sees it by the checksum.
"""

from __future__ import annotations

import zlib

SIZE = 1 << 20
_HEADS = 64
ROOM = (SIZE - _HEADS) // 2
"""Bytes of a post, at most. Memory is taken for what was posted only."""
_TRIES = 3


class Board:
    """One board. Only one thread of one process posts."""

    def __init__(self, memory: memoryview) -> None:
        """memory: SIZE bytes, aligned to 8, and all zero before the first post."""
        self._memory = memory
        self._heads = memory[:_HEADS].cast("Q")

    def post(self, data: bytes) -> bool:
        """Put this in the place of what was posted before; False, and nothing is done, if there is no room for it."""
        if len(data) > ROOM:
            return False
        half = 1 - (self._heads[0] & 1)
        at = _HEADS + half * ROOM
        self._memory[at : at + len(data)] = data
        self._heads[1 + half] = len(data) << 32 | zlib.crc32(data)
        self._heads[0] = half
        return True

    def read(self) -> bytes:
        """What was posted last; b"" if nothing was, or if it cannot be read."""
        for _ in range(_TRIES):
            half = self._heads[0] & 1
            head = self._heads[1 + half]
            at = _HEADS + half * ROOM
            data = bytes(self._memory[at : at + min(head >> 32, ROOM)])
            if zlib.crc32(data) == head & 0xFFFFFFFF:
                return data
        return b""

    def close(self) -> None:
        """Let go of the memory."""
        self._heads.release()
        self._memory.release()
