"""Answers straight from the zone store, for the questions that make up almost all of what no packet cache has.

That is a query of class IN, with no more than an empty OPT behind its question, for a name in a zone of `kubernetes`:
its one address, or that there is no such record or no such name (less than the 512 bytes that any client takes). The
bytes are those that the plugins would give, which stay the only place for everything else: what is not answered here is
asked there.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias

from kdns.observe.counters import BUCKET_OF, TYPES, Region
from kdns.plugins import forward, kubernetes
from kdns.plugins.chain import Completing, Handler, Transparent
from kdns.server.packet_cache import Entry, PacketCache
from kdns.server.respond import Block
from kdns.wire import message, names, rr
from kdns.wire.rrset import RRset
from kdns.zone.changes import name_hash
from kdns.zone.keys import name_key
from kdns.zone.lookup import ZoneView
from kdns.zone.reader import Reader
from kdns.zone.store import EXPIRED, SYNCED

_QUESTION_AT = 10
"""Offset of the question in a query without its ID."""
_OPT_SIZE = 11
_OWNER = b"\xc0\x0c"
_CLASS = b"\0\1"
_POD = b"\3pod"
_KINDS = {rr.type_number(text): text for text in sorted(TYPES - {"ANY", "AXFR", "IXFR"})}
"""Types that no plugin treats apart and that have a label of their own in the metrics."""
_ANSWER, _NO_DATA, _NO_NAME = 0, 1, 2
_RCODES = ("NOERROR", "NOERROR", "NXDOMAIN")
_A, _AAAA, _CNAME, _OPT, _IN = rr.A, rr.AAAA, rr.CNAME, rr.OPT, rr.IN
_CD, _RA, _FLAGS = message.CD, message.RA, message.QR | message.AA
_LONGEST_LABEL, _LONGEST_NAME = names.MAX_LABEL, names.MAX_NAME
_EXPIRED = EXPIRED


class Served(NamedTuple):
    """A server block on one server. handlers: its plugins by directive, in their order."""

    server: str
    block: Block
    handlers: Mapping[str, Handler]


class DirectZone:
    """A zone of one server block.

    index: its number on this listening address. plugin: whose zone it is. counted: cells that every answer raises by
    one. recursion: RA for all of its names.
    """

    __slots__ = (
        "_denies", "_pods", "_soa", "_soas", "block", "counted", "index", "origin", "plugin", "recursion",
        "view",
    )  # fmt: skip

    def __init__(
        self,
        index: int,
        view: ZoneView,
        handler: kubernetes.Handler,
        block: Block,
        counted: tuple[int, ...],
        recursion: bool,
        denies: bool,
    ) -> None:
        """denies: whether no plugin in front of its own has another answer for what does not exist."""
        self.index = index
        self.view = view
        self.origin = view.origin
        self.plugin = handler.name
        self.block = block
        self.counted = counted
        self.recursion = recursion
        self._denies = denies and not any(
            names.is_subdomain(zone, view.origin) or names.is_subdomain(view.origin, zone) for zone in handler.fall
        )
        self._pods = _POD + view.origin if handler.options.pods == "insecure" else b""
        self._soa: RRset | None = None
        self._soas: dict[int, bytes] = {}

    def denies(self, name: bytes) -> bool:
        """Whether a name that the store does not have does not exist. (The name of a pod spells its address.)"""
        return self._denies and self.view.state == SYNCED and not (self._pods and name.endswith(self._pods))

    def authority(self, at: int) -> bytes:
        """The SOA record of a negative answer where the zone's name begins at an offset of the message.

        Empty if there is none.
        """
        soa = self.view.soa
        if soa is not self._soa:
            self._soa = soa
            self._soas.clear()
        found = self._soas.get(at)
        if found is None:
            found = self._soas[at] = message.soa_record(self.origin, soa, at) if soa is not None else b""
        return found


Directory: TypeAlias = names.Zones[DirectZone | Literal[False]]
"""Who answers for a name directly; False where only the plugins of a server block do."""


def directory(blocks: Mapping[bytes, Served]) -> Directory | None:
    """The zones that can be answered from directly, of the server blocks by their zone; None if there is none."""
    owners = names.Zones({zone: zone for zone in blocks})
    found: dict[bytes, DirectZone | Literal[False]] = dict.fromkeys(blocks, False)
    numbers = itertools.count()
    for zone, served in blocks.items():
        known: dict[bytes, tuple[ZoneView, kubernetes.Handler]] = {}
        for handler in served.handlers.values():
            if not isinstance(handler, kubernetes.Handler):
                continue
            for view in handler.views:
                if owners.find(view.origin) == zone:
                    known.setdefault(view.origin, (view, handler))
        for origin, (view, handler) in known.items():
            found[origin] = _zone(next(numbers), view, handler, served) or False
    return names.Zones(found) if any(found.values()) else None


def _zone(index: int, view: ZoneView, handler: kubernetes.Handler, served: Served) -> DirectZone | None:
    """A zone, if the plugins in front of its own let its answers pass and its names are those in the store."""
    counted: tuple[int, ...] = ()
    denies = True
    for name, other in served.handlers.items():
        if name == handler.name:
            break
        cells = other.passing(view.origin, served.server) if isinstance(other, Transparent) else None
        if cells is None:
            return None
        counted += cells
        denies = denies and not (isinstance(other, Completing) and other.completes(view.origin))
    offered = served.handlers.get(forward.NAME)
    recursion = offered.covers_below(view.origin) if isinstance(offered, forward.Handler) else False
    if handler.options.zonal or recursion is None:
        return None
    return DirectZone(index, view, handler, served.block, counted, recursion, denies)


class Direct:
    """For what comes by one protocol and address family, in one thread."""

    __slots__ = (
        "_by_zone",
        "_cells",
        "_family",
        "_heads",
        "_indexes",
        "_inside",
        "_opts",
        "_proto",
        "_reader",
        "_sizes",
    )

    def __init__(self, zones: Directory, reader: Reader, region: Region, proto: str, family: str) -> None:
        """proto, family: as metrics call them."""
        self._by_zone = zones.by_zone
        self._sizes = zones.sizes
        self._reader = reader
        self._inside = False
        self._cells = region.cells
        self._proto = proto
        self._family = family
        self._opts = (message.opt_record(False), message.opt_record(True))
        self._heads: dict[int, bytes] = {}
        self._indexes: dict[int, int] = {}

    def answer(self, key: bytes, cache: PacketCache) -> Entry | None:
        """The answer to a query without its ID; None if the plugins have to be asked.

        What is read stays of one commit until `leave` is called. The cache keeps the answer if it wants it.
        """
        octets = key
        size = len(key)
        if size < _QUESTION_AT + 5 or key[0] & 0xF8 or key[3] != 1 or key[2] or key[4] or key[5] or key[6] or key[7]:
            return None
        at = _QUESTION_AT
        length = key[at]
        while length:
            at += 1 + length
            if length > _LONGEST_LABEL or at >= size:
                return None
            length = key[at]
        end = at + 1
        rest = size - end - 4
        if rest < 0 or end - _QUESTION_AT > _LONGEST_NAME:
            return None
        qtype = key[end] << 8 | key[end + 1]
        if key[end + 2] or key[end + 3] != _IN or key[8] or qtype not in _KINDS:
            return None
        do = 0
        if rest:
            at = end + 4
            if rest != _OPT_SIZE or key[9] != 1 or key[at] or key[at + 1] or key[at + 2] != _OPT:
                return None
            if key[at + 6] or key[at + 9] or key[at + 10]:  # another version, or options
                return None
            do = key[at + 7] >> 7
        elif key[9]:
            return None
        name = octets[_QUESTION_AT:end].lower()
        zone = names.longest(self._by_zone, self._sizes, name)
        if not zone:
            return None
        try:
            return self._look_up(key, name, qtype, do, rest != 0, zone, cache)
        except Exception:  # what cannot be read: the plugins find it too, and answer for it
            return None

    def _look_up(
        self, key: bytes, name: bytes, qtype: int, do: int, edns: bool, zone: DirectZone, cache: PacketCache
    ) -> Entry | None:
        """What the store has for the question. do: 1 or 0."""
        if not self._inside:
            self._enter()
        view = zone.view
        view.refresh(self._reader)
        if view.state == _EXPIRED:
            return None
        value = self._reader.find(name_key(view.prefix, name, zone.origin))
        if value is None:
            if not zone.denies(name):
                return None
            kind = _NO_NAME
            record = b""
        else:
            found = address(value, qtype)
            if found is None:
                return None
            kind = _ANSWER if found else _NO_DATA
            record = found
        octets = key
        end = _QUESTION_AT + len(name) + 4
        if not record:
            record = zone.authority(end - len(zone.origin) - 2)
            if not record:
                return None
        flags = (key[0] & 1) << 8 | key[1] & _CD
        if zone.recursion:
            flags |= _RA
        head = self._head(flags, kind, edns)
        response = b"".join((head, octets[_QUESTION_AT:end], record, self._opts[do] if edns else b""))
        cells = self._cells
        for cell in zone.counted:
            cells[cell] += 1
        index = self._index(zone, kind, qtype, do, len(key) + 2, len(response) + 2)
        if not cache.wants(key):
            return Entry(response, index, None, zone.block, ())
        entry = Entry(response, index, None, zone.block, (name_hash(name),))
        cache.put(key, entry, cache.seen)
        return entry

    def _head(self, flags: int, kind: int, edns: bool) -> bytes:
        """The header without its ID. flags: what is sent back of the query's, and RA."""
        wanted = flags << 3 | kind << 1 | edns
        head = self._heads.get(wanted)
        if head is None:
            flags |= _FLAGS | (rr.NXDOMAIN if kind == _NO_NAME else rr.NOERROR)
            counts = (1, kind == _ANSWER, kind != _ANSWER, edns)
            head = self._heads[wanted] = message.HEADER.pack(0, flags, *counts)[2:]
        return head

    def _index(self, zone: DirectZone, kind: int, qtype: int, do: int, size: int, length: int) -> int:
        """The cells that count such a query and answer."""
        wanted = (((zone.index << 2 | kind) << 1 | do) << 16 | qtype) << 8 | BUCKET_OF[size] << 4 | BUCKET_OF[length]
        index = self._indexes.get(wanted)
        if index is None:
            index = self._indexes[wanted] = zone.block.counters.key(
                self._proto, self._family, _KINDS[qtype], _RCODES[kind], zone.plugin, do != 0, size, length
            )
        return index

    def _enter(self) -> None:
        self._reader.enter()
        self._inside = True

    def leave(self) -> None:
        """The end of a batch of queries."""
        if self._inside:
            self._inside = False
            self._reader.leave()


def address(value: bytes, qtype: int) -> bytes | None:
    """The answer's record for a name that has this value in the store, behind a pointer to the question.

    Empty if the name has no such record; None unless it is one address and no CNAME is there.
    """
    octets = value
    at = 4
    size = len(value)
    found = b""
    while at < size:
        if at + 14 > size:
            return None
        rtype = value[at] << 8 | value[at + 1]
        length = value[at + 12] << 8 | value[at + 13]
        end = at + 14 + length
        if rtype == _CNAME or value[at + 10] or value[at + 11] or end > size:
            return None
        if rtype == qtype:
            one = not (value[at + 6] or value[at + 7] or value[at + 8]) and value[at + 9] == 1
            if not one or (qtype != _A and qtype != _AAAA):
                return None
            found = b"".join((_OWNER, octets[at : at + 2], _CLASS, octets[at + 2 : at + 6], octets[at + 14 : end]))
        at = end
    return found
