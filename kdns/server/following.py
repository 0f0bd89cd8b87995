"""A worker's followers: on which connections zones are followed (`kdns.wire.following`), and who is told of changes.

As long as there are any, the generation of changes is looked at every few milliseconds. A follower whose zone has
another serial than it was sent gets one NOTIFY, and the next when it has been sent the zone again. What all that costs,
the answers too, is a part of the worker's time at most: rounds of NOTIFYs come the later the longer the last one took.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from typing import Protocol

import lmdb

from kdns.wire import message
from kdns.zone.changes import Changes
from kdns.zone.reader import Reader
from kdns.zone.store import SYNCED, Zone

INTERVAL = 0.01
"""Seconds between two looks."""
PART = 4
"""A round is followed by another one when so many times of what it took have passed."""
PAUSE = 1.0
"""Seconds after which it is at any rate: who asks for more than is told of is in no follower's way."""
ZONES = 1000
"""Zones that may be followed on a connection."""
MOST = 20_000
"""Zones of all connections of a worker together."""
_TURN = 50
"""NOTIFYs that are sent before others have their turn."""
_NOWHERE = -1, b""


class Follower(Protocol):
    """A connection."""

    def notify(self, data: bytes) -> None:
        """Send a NOTIFY."""
        ...


class _Followed:
    """A zone.

    version: that of the last look, _NOWHERE if it is not there any more, None if it is not served. told: its followers
    that may get a NOTIFY, and the version that each has. asked: those that got one and have not been sent the zone
    since.
    """

    __slots__ = ("asked", "told", "version", "zone")

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self.version: tuple[int, bytes] | None = zone.version
        self.told: dict[Follower, tuple[int, bytes]] = {}
        self.asked: set[Follower] = set()


class Following:
    """The followers of a worker, in its event loop.

    count: zones of all connections together. spent: seconds of CPU time that the last round has taken so far.
    """

    def __init__(self, store: Reader, changes: Changes) -> None:
        self.count = 0
        self.spent = 0.0
        self._store = store
        self._changes = changes
        self._zones: dict[tuple[int, str, bytes], _Followed] = {}
        self._followers: dict[Follower, set[_Followed]] = {}
        self._due: deque[tuple[Follower, _Followed]] = deque()
        self._fresh: set[_Followed] = set()
        self._seen = changes.generation
        self._began = 0.0
        self._looking = False

    @property
    def crowded(self) -> bool:
        """Whether a follower has to go."""
        return self.count > MOST

    def zones_of(self, follower: Follower) -> int:
        """How many zones one follows."""
        return len(self._followers.get(follower, ()))

    def add(self, follower: Follower, zone: Zone) -> bool:
        """Note that a follower has been sent a zone as it was then; False if it has too many."""
        key = zone.number, zone.source, zone.origin
        followed = self._zones.get(key)
        if followed is None:
            followed = self._zones[key] = _Followed(zone)
            self._fresh.add(followed)
        zones = self._followers.setdefault(follower, set())
        if followed not in zones:
            if len(zones) >= ZONES:
                return False
            zones.add(followed)
            self.count += 1
        followed.asked.discard(follower)
        followed.told[follower] = zone.version
        if followed.version != zone.version:
            self._fresh.add(followed)
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_later(INTERVAL, self._go_on)
        return True

    def remove(self, follower: Follower) -> None:
        """A connection has ended."""
        for followed in self._followers.pop(follower, ()):
            self.count -= 1
            followed.asked.discard(follower)
            followed.told.pop(follower, None)
            if not (followed.asked or followed.told):
                zone = followed.zone
                self._fresh.discard(followed)
                del self._zones[zone.number, zone.source, zone.origin]

    def _go_on(self) -> None:
        """Look for changes if it is time to, and tell some followers."""
        if not self._followers:
            self._looking = False
            self._due.clear()
            return
        loop = asyncio.get_running_loop()
        now, started = time.monotonic(), time.thread_time()
        try:
            if not self._due and now - self._began >= min(self.spent * PART, PAUSE):
                self._look(now)
            self._tell()
        except lmdb.Error:
            pass  # the next look may find it well
        finally:
            self.spent += time.thread_time() - started
            if self._due:
                loop.call_soon(self._go_on)
            else:
                loop.call_later(INTERVAL, self._go_on)

    def _look(self, now: float) -> None:
        """Note who has to be told. Raises lmdb.Error."""
        generation = self._changes.generation
        zones = list(self._fresh if generation == self._seen else self._zones.values())
        if not zones:
            return
        with self._store:
            found = [(followed, self._version(followed.zone)) for followed in zones]
        self._began, self.spent, self._seen = now, 0.0, generation
        for followed, version in found:
            if version != followed.version or followed in self._fresh:
                followed.version = version
                if version is not None:
                    self._due += [(one, followed) for one, has in followed.told.items() if has != version]
        self._fresh.clear()

    def _version(self, zone: Zone) -> tuple[int, bytes] | None:
        """That of a zone as it is now; None if it is not to be served."""
        there = self._store.zone(zone.number)
        if there is None or (there.source, there.origin) != (zone.source, zone.origin):
            return _NOWHERE
        return there.version if there.state == SYNCED else None

    def _tell(self) -> None:
        """Send some NOTIFYs."""
        for _ in range(min(_TURN, len(self._due))):
            follower, followed = self._due.popleft()
            has = followed.told.get(follower)
            if has is not None and followed.version is not None and has != followed.version:
                del followed.told[follower]
                followed.asked.add(follower)
                follower.notify(message.notify(random.getrandbits(16), followed.zone.origin))
