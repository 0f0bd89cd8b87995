"""The supervisor's zone store: there from the start, or on a node from when a configuration first needs it.

A node must have DNS whatever its disk is like. There the store can be done without: as long as it cannot be used,
workers have none, and what directives would answer from it is asked elsewhere (`kdns.plugins.storeless`).
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from kdns.corefile.config import Config
from kdns.errors import StoreError
from kdns.observe.logs import Log
from kdns.zone.changes import Changes
from kdns.zone.store import Store

NEEDING = ("transfer", "k8s_external", "kubernetes", "file", "auto", "secondary")
"""Directives with data in the store."""
REFUSALS, WITHIN = 3, 10.0
"""So many transactions that the disk refuses in so many seconds, and for as long after the last one: it is stuck."""
PAUSES = 1.0, 30.0
"""Seconds until what cannot be opened is tried again: twice as long each time, up to the second."""
_PROBE, _PROBE_BYTES = "probe", 64 << 10


def needed_by(config: Config) -> bool:
    """Whether a configuration has data to keep."""
    return any(name in block.plugins for block in config.blocks for name in NEEDING) or _watches_pods(config)


def _watches_pods(config: Config) -> bool:
    if not any("autopath" in block.plugins for block in config.blocks):
        return False
    from kdns.plugins import autopath  # loaded only where it is used

    return any(map(autopath.watches, config.blocks))


class Storage:
    """The zone store, or why there is none.

    store: None while there is none. lacking: why there is none for a configuration that needs it; empty if none does.
    """

    def __init__(
        self, directory: Path, changes: Changes, log: Log, count: Callable[[], None], *, on_demand: bool
    ) -> None:
        """count: told each time when it is done without. on_demand: see `kdns.server.supervisor.Start`."""
        self.on_demand = on_demand
        self.store: Store | None = None
        self.lacking = ""
        self._directory = directory
        self._changes = changes
        self._log = log
        self._count = count
        self._mutex = threading.Lock()
        self._refused: deque[float] = deque(maxlen=REFUSALS)
        self._pause = PAUSES[0]
        self._again = 0.0

    def provide(self, config: Config) -> Store | None:
        """The store, opened if it has to be; None where a configuration does not need it.

        Raises StoreError, unless it can be done without.
        """
        with self._mutex:
            if not self.on_demand:
                self.store = self.store or self._open()
                return self.store
            if not needed_by(config):
                return None
            if self.store is None and time.monotonic() >= self._again:
                self._try_to_open()
            return self.store

    def is_gone(self) -> bool:
        """Whether somebody has taken a file of the store away: then no other process can open what is open here."""
        store = self.store
        return self.on_demand and store is not None and not store.is_there()

    def refused(self) -> None:
        """The disk has refused a transaction. In any thread."""
        self._refused.append(time.monotonic())

    def is_stuck(self, config: Config) -> bool:
        """Whether the disk keeps refusing what is written, so that copies get old which others could answer for."""
        seen = tuple(self._refused)
        refuses = len(seen) == REFUSALS and seen[-1] - seen[0] < WITHIN and time.monotonic() - seen[-1] < WITHIN
        if not (self.on_demand and refuses):
            return False
        from kdns.plugins import storeless  # hardly ever needed

        return any(map(storeless.can_fall_back, config.blocks))

    def drop(self) -> None:
        """Close it, as no configuration needs it any more."""
        with self._mutex:
            found, self.store, self.lacking = self.store, None, ""
            self._pause, self._again = PAUSES[0], 0.0
            self._refused.clear()
        if found is not None:
            found.close()

    def give_up(self, why: str) -> None:
        """Close it, as it cannot be used; it is tried again later."""
        self.drop()
        with self._mutex:
            self._lack(why)

    def close(self) -> None:
        """Close it for ever."""
        if self.store is not None:
            self.store.close()

    def _open(self) -> Store:
        return Store.open(self._directory, self._changes, self._log.warning)

    def _try_to_open(self) -> None:
        try:
            store = self._open()
            try:
                _probe(store)
            except StoreError:
                store.close()
                raise
        except StoreError as error:
            self._lack(str(error))
            return
        if self.lacking:
            self._log.info("the zone store can be used")
        self.store, self.lacking, self._pause = store, "", PAUSES[0]

    def _lack(self, why: str) -> None:
        if why != self.lacking:
            self._log.warning(f"{why}; until it can be used, there are no zones of files and no copies", key="no store")
        self.lacking = why
        self._count()
        self._again = time.monotonic() + self._pause
        self._pause = min(self._pause * 2, PAUSES[1])


def _probe(store: Store) -> None:
    """Write something, which a disk that is full or not to be written refuses. Raises StoreError."""
    store.write(lambda txn: txn.put_meta(_PROBE, os.urandom(_PROBE_BYTES)))
    store.write(lambda txn: txn.delete_meta(_PROBE))
