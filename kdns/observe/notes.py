"""What a worker tells of itself beside its counters, as it is posted on the board of its region."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from kdns.observe.recent import Message


@dataclass(frozen=True, slots=True)
class TopName:
    """A name that is asked for often. name: in master file format. rate: queries a second, estimated."""

    name: str
    type: str
    rcode: str
    rate: float


@dataclass(frozen=True, slots=True)
class Notes:
    """messages: the last warnings and errors, the last one first. names: the most frequent first."""

    messages: tuple[Message, ...] = ()
    names: tuple[TopName, ...] = ()

    def encode(self) -> bytes:
        """As it is posted."""
        return msgspec.msgpack.encode(self)


def read(boards: Iterable[bytes]) -> list[Notes]:
    """The notes on these boards, without what cannot be read."""
    found = []
    for data in boards:
        try:
            found.append(msgspec.msgpack.decode(data, type=Notes))
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    return found


def top_names(found: Iterable[Notes], most: int) -> list[TopName]:
    """The names that are asked for most over all workers, the most frequent first."""
    rates: dict[tuple[str, str, str], float] = defaultdict(float)
    for name in (name for notes in found for name in notes.names):
        rates[name.name, name.type, name.rcode] += name.rate
    ordered = sorted(rates.items(), key=lambda item: (-item[1], item[0]))
    return [TopName(*key, rate) for key, rate in ordered[:most]]
