"""What came from the API server and is not in the store yet.

Watches put it here as it comes, one writer takes all there is. What waits is merged by object, so that however long the
writer takes, no more waits than a cluster has objects, and the names of those that were deleted meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Delivery:
    """Objects of one kind: all there are (a list), or those that changed (events of a watch).

    kind: "Service", "EndpointSlice" and so on. version: the resourceVersion that is reached with this; "" where there
    is none. complete: the rows are all objects there are. rows: key ("namespace/name", of a Namespace its name) to the
    object as `objects.pack` writes it; None: it was deleted (never in a complete one). kept: keys of objects that exist
    but could not be understood, so that what is known of them stays (only in a complete one). triggers: when the change
    happened that a row of an EndpointSlice tells of, in Unix time, as far as that is known.
    """

    kind: str
    version: str = ""
    complete: bool = False
    rows: dict[str, bytes | None] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    triggers: dict[str, float] = field(default_factory=dict)

    def put(self, key: str, packed: bytes, trigger: float | None = None) -> None:
        """The object is now this."""
        self.rows[key] = packed
        self.kept.discard(key)
        if trigger is not None:
            self.triggers[key] = trigger
        else:
            self.triggers.pop(key, None)

    def delete(self, key: str) -> None:
        """The object is gone."""
        if self.complete:
            self.rows.pop(key, None)
        else:
            self.rows[key] = None
        self.kept.discard(key)
        self.triggers.pop(key, None)

    def keep(self, key: str) -> None:
        """In a list: the object is something that cannot be understood, and stays what it was."""
        if key not in self.rows:
            self.kept.add(key)

    def merge(self, later: Delivery) -> None:
        """Take in what came after this, of the same kind. The later one is not to be used any more.

        A list replaces all. What it keeps is what is known by then, be it in the store or in here.
        """
        self.version = later.version
        if later.complete:
            rows, untold = self.rows, self.kept if self.complete else later.kept - self.rows.keys()
            self.complete = True
            self.rows = {key: rows[key] for key in later.kept if rows.get(key) is not None} | later.rows
            self.kept, self.triggers = later.kept & untold, later.triggers
            return
        for key, packed in later.rows.items():
            if packed is None:
                self.delete(key)
            else:
                self.put(key, packed, later.triggers.get(key))


class Inbox:
    """Deliveries that wait for the writer, one of each kind. Any thread may use it."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._pending: dict[str, Delivery] = {}
        self._closed = False

    @property
    def closed(self) -> bool:
        """`close` was called: nothing comes in or out."""
        return self._closed

    def put(self, delivery: Delivery) -> None:
        """Add a delivery. It belongs to the inbox from now on."""
        with self._condition:
            if self._closed:
                return
            pending = self._pending.setdefault(delivery.kind, delivery)
            if pending is not delivery:
                pending.merge(delivery)
            self._condition.notify_all()

    def put_back(self, deliveries: Iterable[Delivery]) -> None:
        """Return what `take` gave and could not be used: it goes in front of what came since."""
        with self._condition:
            if self._closed:
                return
            newer, self._pending = self._pending, {delivery.kind: delivery for delivery in deliveries}
            for kind, delivery in newer.items():
                pending = self._pending.setdefault(kind, delivery)
                if pending is not delivery:
                    pending.merge(delivery)
            self._condition.notify_all()

    def take(self, wanted: frozenset[str], timeout: float) -> list[Delivery]:
        """All that is there, one delivery of each kind, in the order in which the first of each came.

        Waits up to `timeout` seconds until there is something, and something complete of each kind in `wanted`. Empty
        if that does not happen, or after `close`.
        """
        with self._condition:
            self._condition.wait_for(lambda: self._closed or self._ready(wanted), timeout)
            if self._closed or not self._ready(wanted):
                return []
            taken, self._pending = self._pending, {}
            return list(taken.values())

    def close(self) -> None:
        """Wake whoever waits, and let nothing in or out any more."""
        with self._condition:
            self._closed = True
            self._pending = {}
            self._condition.notify_all()

    def _ready(self, wanted: frozenset[str]) -> bool:
        pending = self._pending
        return bool(pending) and all(kind in pending and pending[kind].complete for kind in wanted)
