"""Zones as the messages that transfer them (RFC 5936, RFC 1995), but for what differs from client to client.

A message's header, its question in the client's letters, an OPT and a signature are put around by whoever sends it; so
several clients may get the same messages.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from kdns.errors import FormatError
from kdns.wire import names, rr
from kdns.zone import sources
from kdns.zone.journal import Difference, Row
from kdns.zone.keys import key_name
from kdns.zone.store import Zone
from kdns.zone.values import Records, decode_rrsets

PREFERRED = 16 << 10
"""Bytes of a message: in more, pointers of compressed names do not reach everywhere."""
LARGEST = 65535 - 1024
"""Bytes that a message may have if a single record needs them. The rest is for an OPT and a signature."""
_QUESTION_AT = 12
_POINTER = 0xC000
_POINTER_END = 0x4000
_FIXED = struct.Struct("!HHIH")

Messages = list[tuple[int, bytes]]
"""For each message how many records it has, and the records."""


class Packer:
    """Puts records into messages, one behind the other, with the names of owners compressed (RFC 1035 4.1.4).

    size: bytes of all messages so far.
    """

    def __init__(self, origin: bytes, preferred: int = PREFERRED) -> None:
        """origin: the name in the question."""
        self.messages: Messages = []
        self.size = 0
        self._origin = origin
        self._preferred = preferred
        self._start = _QUESTION_AT + len(origin) + 4
        self._begin()

    def _begin(self) -> None:
        self._parts: list[bytes] = []
        self._count = 0
        self._at = self._start
        self._offsets: dict[bytes, int] = {}
        self._remember(self._origin, _QUESTION_AT, len(self._origin) - 1)

    def add(self, row: Row) -> None:
        """Put a record behind the others. Raises FormatError for one that is too large for any message."""
        owner, rtype, ttl, rdata = row
        head, plain = self._name(owner)
        size = len(head) + _FIXED.size + len(rdata)
        if self._at + size > self._preferred and self._count:
            self._finish()
            head, plain = self._name(owner)
            size = len(head) + _FIXED.size + len(rdata)
        if self._at + size > LARGEST:
            raise FormatError(f"a record of {names.to_text(owner)} has {len(rdata)} bytes")
        self._parts.append(head + _FIXED.pack(rtype, rr.IN, ttl, len(rdata)) + rdata)
        self._remember(owner, self._at, plain)
        self._at += size
        self._count += 1

    def _name(self, name: bytes) -> tuple[bytes, int]:
        """A name, compressed; and how many of its bytes are not."""
        step = 0
        offsets = self._offsets
        while name[step]:
            known = offsets.get(name[step:])
            if known is not None:
                return name[:step] + known.to_bytes(2), step
            step += 1 + name[step]
        return name, step

    def _remember(self, name: bytes, at: int, upto: int) -> None:
        step = 0
        while step < upto and at + step < _POINTER_END:
            self._offsets.setdefault(name[step:], _POINTER | at + step)
            step += 1 + name[step]

    def _finish(self) -> None:
        body = b"".join(self._parts)
        self.messages.append((self._count, body))
        self.size += len(body)
        self._begin()

    def done(self) -> Messages:
        """All messages. No records can be added any more."""
        if self._count:
            self._finish()
        return self.messages


def rows(zone: Zone, key: bytes, value: bytes) -> Iterable[Row]:
    """The records that a zone has under a key, as far as they are for others."""
    name = key_name(key, zone.origin)
    if sources.is_inner(zone.source, name):
        return []
    return [Row(name, rrset.type, rrset.ttl, rdata) for rrset in decode_rrsets(value) for rdata in rrset.rdatas]


def soa(origin: bytes, apex: Records) -> Row | None:
    """The SOA record of an apex; None if it has none."""
    for rrset in apex:
        if rrset.type == rr.SOA:
            return Row(origin, rr.SOA, rrset.ttl, rrset.rdatas[0])
    return None


def difference(origin: bytes, found: Difference) -> Messages:
    """The answer to whom a difference brings up to date (RFC 1995 4)."""
    packer = Packer(origin)
    packer.add(found.after)
    packer.add(found.before)
    for row in found.removed:
        packer.add(row)
    packer.add(found.after)
    for row in found.added:
        packer.add(row)
    packer.add(found.after)
    return packer.done()


def alone(row: Row) -> Messages:
    """The answer to whom nothing is missing, or to whom the difference cannot be sent (RFC 1995 4)."""
    packer = Packer(row.owner)
    packer.add(row)
    return packer.done()
