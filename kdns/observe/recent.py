"""The warnings and errors that a process has logged last, for whoever looks at it without its log."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from kdns.observe.text import printable

MOST = 20
"""Kinds of messages that are kept."""
LONGEST = 400
"""Characters of a text that are kept, before those that are not printable become escapes."""


@dataclass(frozen=True, slots=True)
class Message:
    """Messages of one kind: those of a kind differ in details only.

    text: the last one's. first, last: when they came, of time.time().
    """

    level: str
    kind: str
    text: str
    first: float
    last: float
    count: int = 1


class Recent:
    """The last messages, each kind once. Safe to use from several threads.

    number: raised with each message.
    """

    def __init__(self, most: int = MOST) -> None:
        self.number = 0
        self._most = most
        self._lock = threading.Lock()
        self._kinds: dict[tuple[str, str], Message] = {}  # the one that came last is the last one

    def note(self, level: str, kind: str, text: str) -> None:
        """A message has come."""
        now = time.time()
        message = Message(level, printable(kind[:LONGEST]), printable(text[:LONGEST]), now, now)
        key = (message.level, message.kind)
        with self._lock:
            self.number += 1
            before = self._kinds.pop(key, None)
            if before is None and len(self._kinds) >= self._most:
                del self._kinds[next(iter(self._kinds))]
            self._kinds[key] = message if before is None else together(before, message)

    def merge(self, messages: Iterable[Message]) -> None:
        """Messages of another process, which has ended; the last ones of both are kept."""
        with self._lock:
            found = merged([reversed(self._kinds.values()), messages], self._most)
            self.number += 1
            self._kinds = {(message.level, message.kind): message for message in reversed(found)}

    def messages(self) -> tuple[Message, ...]:
        """All, the last one first."""
        with self._lock:
            return tuple(reversed(self._kinds.values()))


def together(one: Message, other: Message) -> Message:
    """Two of the same kind as one."""
    later = one if one.last > other.last else other
    return replace(later, first=min(one.first, other.first), count=one.count + other.count)


def merged(groups: Iterable[Iterable[Message]], most: int = MOST) -> tuple[Message, ...]:
    """Messages of several processes, the last one first; those of the same kind count together."""
    found: dict[tuple[str, str], Message] = {}
    for message in (message for group in groups for message in group):
        key = (message.level, message.kind)
        found[key] = together(found[key], message) if key in found else message
    return tuple(sorted(found.values(), key=lambda message: message.last, reverse=True)[:most])
