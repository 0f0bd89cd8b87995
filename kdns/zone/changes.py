"""What the writer of the zone store tells its readers: which names have changed, and that something has.

Shared memory of one writer and many readers. Layout, in native byte order:

    0   uint64  generation: how many names have been noted since the memory was made
    8   uint64  floor: a reader that stands below it has to take everything as changed
    16  uint64  goal: the generation that the writer is filling slots for, or has reached
    64  uint32  a ring of SLOTS hashes; the note number i is in slot i % SLOTS

The writer sets the goal, fills slots, and raises the generation last, after its commit. A reader that sees generation g
has to look at the notes since the one that it saw last. If the goal, looked at when they have been copied, is further
away than the ring is long, slots were overwritten meanwhile, and everything may have changed.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
import zlib
from collections.abc import Iterable

SLOTS = 1 << 16
SIZE = 64 + 4 * SLOTS


def name_hash(name: bytes) -> int:
    """The 32-bit hash by which a name (lower case wire format) is noted. Two names that share one drop each other's
    cached answers, which costs a look-up and nothing else."""
    return zlib.crc32(name)


class Changes:
    """The shared memory, from either side.

    fd: a descriptor of it that can be handed to other processes.
    """

    __slots__ = ("__weakref__", "_barrier", "_map", "counters", "fd", "slots")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, SIZE)
        view = memoryview(self._map)
        self.counters = view[:24].cast("Q")
        self.slots = view[64:].cast("I")
        self._barrier = threading.Lock()

    @classmethod
    def create(cls) -> Changes:
        """New memory with generation 0. Its descriptor is closed when the object goes."""
        fd = os.memfd_create("kdns-changes", os.MFD_CLOEXEC)
        os.ftruncate(fd, SIZE)
        changes = cls(fd)
        weakref.finalize(changes, os.close, fd).atexit = False
        return changes

    @property
    def generation(self) -> int:
        """How many names have been noted so far."""
        return self.counters[0]

    @property
    def floor(self) -> int:
        """Rises whenever every name may have changed: with each zone that is added, dropped, or served from now on."""
        return self.counters[1]

    def note(self, hashes: Iterable[int]) -> None:
        """Writer: names with these hashes have changed. Called after the commit."""
        at = self.counters[0]
        found = tuple(hashes)
        # Taking a lock orders the stores before it and those behind it on machines that reorder them.
        with self._barrier:
            self.counters[2] = at + len(found)
        for index, value in enumerate(found, at):
            self.slots[index % SLOTS] = value
        with self._barrier:
            self.counters[0] = at + len(found)

    def note_everything(self) -> None:
        """Writer: every name may have changed."""
        with self._barrier:
            self.counters[1] = self.counters[2] = self.counters[0] + 1
            self.counters[0] += 1

    def since(self, seen: int) -> tuple[int, list[int] | None]:
        """Reader: the generation now, and the hashes noted since the generation `seen`; None if they are not all
        there any more and every name has to be taken as changed."""
        now = self.counters[0]
        if now - seen > SLOTS or seen < self.counters[1]:
            return now, None
        start, end = seen % SLOTS, now % SLOTS
        if seen == now:
            hashes: list[int] = []
        elif start < end:
            hashes = self.slots[start:end].tolist()
        else:
            hashes = self.slots[start:].tolist() + self.slots[:end].tolist()
        with self._barrier:
            overtaken = self.counters[2] - seen > SLOTS or seen < self.counters[1]
        return now, None if overtaken else hashes
