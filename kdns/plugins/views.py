"""Which of several server blocks takes a query, where views tell them apart (`view`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from kdns.plugins.conditions import Asked, View
from kdns.wire import names
from kdns.wire.message import Metadata, Query

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Candidate(Generic[T]):
    """A server block. view: None for one that takes every query. known: its `metadata`, None without it.

    block: what answers. apart: the same for a query that was chosen by more than its bytes: its answer is not for all.
    """

    block: T
    apart: T
    view: View | None = None
    known: Callable[[bytes, str], Metadata] | None = None


class Views(Generic[T]):
    """The server blocks of one listening address by the zone (lower case) that they answer for, in the order of the
    file."""

    def __init__(self, zones: Mapping[bytes, Sequence[Candidate[T]]]) -> None:
        self.zones = names.Zones(zones)

    def find(self, query: Query) -> T | None:
        """The first server block that takes a query, of the longest zone that has one; None if none does."""
        candidates = self.zones.by_zone
        zone = query.lname
        apart = False
        while True:
            for candidate in candidates.get(zone, ()):
                view = candidate.view
                if view is not None:
                    apart = apart or view.personal
                    known = candidate.known(query.lname, query.client[0]) if candidate.known is not None else None
                    if not view.takes(Asked(query, known)):
                        continue
                return candidate.apart if apart else candidate.block
            if zone == names.ROOT:
                return None
            zone = names.parent(zone)

    def at(self, name: bytes) -> Sequence[Candidate[T]]:
        """The server blocks of the longest zone at or above a name (lower case)."""
        return self.zones.find(name) or ()
