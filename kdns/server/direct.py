"""Answers straight from the zone store, for the questions that make up almost all of what no packet cache has.

That is a query of class IN, with no more than an empty OPT behind its question, for a name in a zone of `kubernetes`,
or in a plain one of `file`, `auto` or `secondary`: its one address, or that there is no such record or no such name (in
the 512 bytes that any client takes). The bytes are those that the plugins would give, which stay the only place for
everything else: what is not answered here is asked there.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple, TypeAlias

from msgspec import structs

from kdns.observe.counters import BUCKET_OF, TYPES, Region
from kdns.plugins import forward, kubernetes
from kdns.plugins.chain import Bounding, Completing, Handler, Transparent, Zoned
from kdns.server.packet_cache import Entry, PacketCache
from kdns.server.respond import Block
from kdns.wire import message, names, rr
from kdns.wire.rrset import RRset
from kdns.zone.changes import name_hash
from kdns.zone.keys import name_key
from kdns.zone.lookup import ZoneView, denying
from kdns.zone.reader import Reader
from kdns.zone.store import EXPIRED, SYNCED

_QUESTION_AT = 10
"""Offset of the question in a query without its ID."""
_OPT_SIZE = 11
_OWNER = b"\xc0\x0c"
_TTL, _DATA_SIZE = 6, 10
"""Offsets in a record with such an owner."""
_MAX_TTL = 2**31 - 1
_CLASS = b"\0\1"
_POD = b"\3pod"
_KINDS = {rr.type_number(text): text for text in sorted(TYPES - {"ANY", "AXFR", "IXFR"})}
"""Types that no plugin treats apart and that have a label of their own in the metrics."""
_ANSWER, _NO_DATA, _NO_NAME = 0, 1, 2
_RCODES = ("NOERROR", "NOERROR", "NXDOMAIN")
_A, _AAAA, _CNAME, _DS, _OPT, _IN = rr.A, rr.AAAA, rr.CNAME, rr.DS, rr.OPT, rr.IN
_CD, _RA, _FLAGS = message.CD, message.RA, message.QR | message.AA
_LONGEST_LABEL, _LONGEST_NAME = names.MAX_LABEL, names.MAX_NAME
_LEAST_LIMIT = message.MIN_UDP
_EXPIRED, _SYNCED = EXPIRED, SYNCED


class Served(NamedTuple):
    """A server block on one server. handlers: its plugins by directive, in their order."""

    server: str
    block: Block
    handlers: Mapping[str, Handler]


class DirectZone:
    """A zone of one server block.

    index: a number for its server block and plugin. plugin: whose zone it is. counted: cells that every answer raises
    by one. recursion: RA for all of its names. bound: the greatest TTL of an answer as its record has it, empty if none
    can be above it.
    """

    __slots__ = (
        "_denial", "_denies", "_fall_sizes", "_falls", "_of_data", "_pods", "_soa", "_soas", "block", "bound",
        "counted", "index", "origin", "plugin", "recursion", "view",
    )  # fmt: skip

    def __init__(
        self,
        index: int,
        view: ZoneView,
        handler: kubernetes.Handler | Zoned,
        block: Block,
        counted: tuple[int, ...],
        recursion: bool,
        denies: bool,
        bounds: tuple[int, int],
    ) -> None:
        """denies: whether no plugin in front of its own has another answer for what does not exist. bounds: of the TTLs
        of what there is, and of what there is not."""
        self.index = index
        self.view = view
        self.origin = origin = view.origin
        self.plugin = handler.name
        self.block = block
        self.counted = counted
        self.recursion = recursion
        self._of_data = not isinstance(handler, kubernetes.Handler)
        fall = handler.fall if isinstance(handler, kubernetes.Handler) else handler.rules[origin].falls.by_zone
        self._denies = denies and not any(names.is_subdomain(origin, zone) for zone in fall)
        below = names.Zones({zone: True for zone in fall if names.is_subdomain(zone, origin)})
        self._falls, self._fall_sizes = below.by_zone, below.sizes
        is_insecure = isinstance(handler, kubernetes.Handler) and handler.options.pods == "insecure"
        self._pods = _POD + origin if is_insecure else b""
        most, self._denial = bounds
        is_below = isinstance(handler, kubernetes.Handler) and handler.options.ttl <= most
        self.bound = b"" if is_below or most >= _MAX_TTL else most.to_bytes(4)
        self._soa: RRset | None = None
        self._soas: dict[int, bytes] = {}

    def serves(self) -> bool:
        """Whether the answer to a name is what the store has for it."""
        view = self.view
        if self._of_data:
            return view.plain and view.state == _SYNCED and view.soa is not None
        return view.state != _EXPIRED

    def denies(self, name: bytes) -> bool:
        """Whether a name that the store does not have does not exist. (The name of a pod spells its address.)"""
        if not self._denies or self.view.state != _SYNCED or (self._pods and name.endswith(self._pods)):
            return False
        return not self._falls or names.longest(self._falls, self._fall_sizes, name) is None

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
            found = message.soa_record(self.origin, self._denying(soa), at) if soa is not None else b""
            self._soas[at] = found
        return found

    def _denying(self, soa: RRset) -> RRset:
        found = denying(soa)
        return found if found.ttl <= self._denial else structs.replace(found, ttl=self._denial)


class Unasked(NamedTuple):
    """A zone that nobody has asked for yet: it may be one of many. zone: that of the server block."""

    zone: bytes
    served: Served
    view: ZoneView
    handler: Handler


Found: TypeAlias = DirectZone | Literal[False]
Zones: TypeAlias = names.Zones[Found | Unasked]
"""Who answers for a name directly; False where only the plugins of a server block do."""


class Directory:
    """The zones that can be answered from directly, of the server blocks of an address.

    moving: some come and go.
    """

    def __init__(self, blocks: Mapping[bytes, Served]) -> None:
        """blocks: by their zone."""
        self._blocks = blocks
        self._owners = names.Zones({zone: zone for zone in blocks})
        self._numbers: dict[tuple[bytes, str], int] = {}
        self._made: dict[bytes, tuple[ZoneView, Found]] = {}
        self._floor = -1
        self._zones: Zones = names.Zones({})
        self.moving = any(isinstance(each, Zoned) for served in blocks.values() for each in served.handlers.values())
        if not self.moving:
            self._list()
            for each in [each for each in self._zones.by_zone.values() if isinstance(each, Unasked)]:
                self.make(each)

    def __bool__(self) -> bool:
        return self.moving or any(self._zones.by_zone.values())

    @property
    def zones(self) -> Zones:
        """Those that there were when they were looked for last."""
        return self._zones

    def look(self, reader: Reader) -> Zones:
        """Those that there are in the store. The reader is entered."""
        if reader.floor != self._floor:
            for served in self._blocks.values():
                for handler in served.handlers.values():
                    if isinstance(handler, Zoned):
                        handler.look(reader)
            self._list()
            self._floor = reader.floor
        return self._zones

    def _list(self) -> None:
        found: dict[bytes, Found | Unasked] = dict.fromkeys(self._blocks, False)
        made: dict[bytes, tuple[ZoneView, Found]] = {}
        for zone, served in self._blocks.items():
            taken: names.Zones[bool] = names.Zones({})
            for handler in served.handlers.values():
                views = _views(handler)
                for view in views:
                    origin = view.origin
                    if self._owners.find(origin) != zone:
                        continue
                    if taken.find(origin):  # a plugin in front answers for its names
                        found.setdefault(origin, False)
                        continue
                    known = self._made.get(origin)
                    if known is not None and known[0] is view:
                        made[origin] = known
                        found[origin] = known[1]
                    else:
                        found[origin] = Unasked(zone, served, view, handler)
                if views:
                    taken = names.Zones(taken.by_zone | {view.origin: True for view in views})
        self._zones, self._made = names.Zones(found), made

    def make(self, asked: Unasked) -> Found:
        """A zone that is asked for. It has its place among the others from then on."""
        view = asked.view
        found = self._zone(*asked)
        self._zones.by_zone[view.origin] = found
        self._made[view.origin] = view, found
        return found

    def _zone(self, zone: bytes, served: Served, view: ZoneView, handler: Handler) -> Found:
        """A zone, if the plugins in front of its own let its answers pass and its names are those in the store."""
        assert isinstance(handler, kubernetes.Handler | Zoned)
        origin = view.origin
        counted: tuple[int, ...] = ()
        denies = True
        bounds = _MAX_TTL, _MAX_TTL
        for other in itertools.takewhile(lambda other: other is not handler, served.handlers.values()):
            if isinstance(other, kubernetes.Handler | Zoned):  # its zones are other ones
                continue
            cells = other.passing(origin, served.server) if isinstance(other, Transparent) else None
            if cells is None:
                return False
            counted += cells
            denies = denies and not (isinstance(other, Completing) and other.completes(origin))
            if isinstance(other, Bounding):
                bounds = other.bounds
        offered = served.handlers.get(forward.NAME)
        recursion = offered.covers_below(origin) if isinstance(offered, forward.Handler) else False
        if recursion is None or not _is_looked_up(handler, origin):
            return False
        number = self._numbers.setdefault((zone, handler.name), len(self._numbers))
        return DirectZone(number, view, handler, served.block, counted, recursion, denies, bounds)


def _views(handler: Handler) -> Collection[ZoneView]:
    """The zones that a handler answers for from the store."""
    if isinstance(handler, kubernetes.Handler):
        return handler.views
    return handler.views.by_zone.values() if isinstance(handler, Zoned) else ()


def _is_looked_up(handler: kubernetes.Handler | Zoned, origin: bytes) -> bool:
    """Whether all names of a zone are answered by a handler, and are those in the store."""
    if isinstance(handler, kubernetes.Handler):
        return not handler.options.zonal
    return handler.rules[origin].covers(origin)


class Direct:
    """For what comes by one protocol and address family, in one thread."""

    __slots__ = (
        "_by_zone",
        "_cells",
        "_directory",
        "_family",
        "_heads",
        "_indexes",
        "_inside",
        "_moving",
        "_opts",
        "_proto",
        "_reader",
        "_sizes",
    )

    def __init__(self, directory: Directory, reader: Reader, region: Region, proto: str, family: str) -> None:
        """proto, family: as metrics call them."""
        self._directory = directory
        self._moving = directory.moving
        self._by_zone = directory.zones.by_zone
        self._sizes = directory.zones.sizes
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
        if self._moving and not self._inside and not self._look():
            return None
        name = octets[_QUESTION_AT:end].lower()
        zone = names.longest(self._by_zone, self._sizes, name)
        if not isinstance(zone, DirectZone):
            zone = self._directory.make(zone) if zone else False
        if not zone or (qtype == _DS and len(name) == len(zone.origin)):  # which is above the cut
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
        if not zone.serves():
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
            if zone.bound and record[_TTL:_DATA_SIZE] > zone.bound:
                record = b"".join((record[:_TTL], zone.bound, record[_DATA_SIZE:]))
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
        if len(response) + 2 > _LEAST_LIMIT:
            return None
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

    def _look(self) -> bool:
        """Begin to read what is there now, of the zones that there are; False if they cannot be read."""
        self._by_zone = {}
        try:
            self._enter()
            zones = self._directory.look(self._reader)
        except Exception:  # the plugins find it too
            return False
        self._by_zone, self._sizes = zones.by_zone, zones.sizes
        return True

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
