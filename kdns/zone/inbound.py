"""Zone transfers as they come (RFC 5936, RFC 1995): from messages to what a zone is to have.

Whoever sends them may be wrong or hostile: what is not as it has to be raises FormatError and nothing else, and there
is a bound on everything. No sockets and no clocks.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from kdns.errors import ConfigError, FormatError
from kdns.wire import following, names, rr
from kdns.wire.message import opt_record, option, options_of, skip_name
from kdns.wire.relay import expand, full_rdata
from kdns.wire.rrset import RRset
from kdns.wire.tsig import Asker, Key
from kdns.zone import journal
from kdns.zone.journal import Row
from kdns.zone.keys import key_name, name_key
from kdns.zone.masterfile import Content, add
from kdns.zone.values import Records, encode_rrsets

MOST_BYTES = 64 << 20
"""What a zone may take, in messages. In memory it is two to three times as much while it comes."""
MOST_MEMORY = 4 * MOST_BYTES
"""What its records may take with their names in full: two bytes of a message can stand for 255."""
_OBJECT, _STEP_OBJECT = 40, 800
"""Bytes that a record takes beside its own; in a difference it is several objects, and more when it is written."""
_HEADER = struct.Struct("!HHHHHH")
_FIXED = struct.Struct("!HHIH")
_QUESTION_AT = 12
_NOWHERE = "transfer", 0
_QR, _AA = 0x8000, 0x0400
_NOTIFY = 4 << 11
_PREFIX = b"\0\0"
_STORED = struct.Struct("!HI")


class RcodeError(FormatError):
    """A response that says no. rcode: how."""

    def __init__(self, rcode: int) -> None:
        super().__init__(rr.rcode_text(rcode))
        self.rcode = rcode


class TooLargeError(FormatError):
    """A transfer of more than there is room for."""


class LineageError(FormatError):
    """A response that says nothing to whom has a copy of another lineage (`kdns.wire.following`)."""


class BehindError(FormatError):
    """A server has not reached the revision of our copy (`kdns.wire.following`), which is of another one."""

    def __init__(self) -> None:
        super().__init__("it is behind the one that our copy is of")


@dataclass(slots=True)
class Step:
    """A difference (RFC 1995 4): the SOA records before and after, and what was removed and added."""

    before: Row
    after: Row
    removed: list[Row] = field(default_factory=list)
    added: list[Row] = field(default_factory=list)


def query(ident: int, origin: bytes, rtype: int, soa: bytes | None = None, mark: bytes | None = None) -> bytes:
    """A query for a zone's SOA record or for a transfer. soa: for IXFR, the rdata that we have.

    mark: of what we have, empty for nothing, if we want to follow the zone (`kdns.wire.following`).
    """
    record = b"" if soa is None else b"\xc0\x0c" + _FIXED.pack(rr.SOA, rr.IN, 0, len(soa)) + soa
    opt = b"" if mark is None else opt_record(False, options=option(following.OPTION, mark))
    header = _HEADER.pack(ident, 0, 1, 0, int(bool(record)), int(bool(opt)))
    return header + origin + struct.pack("!HH", rtype, rr.IN) + record + opt


def records_at(data: bytes, ident: int, origin: bytes, rtype: int) -> int:
    """The offset of the records of a response to one of these queries. Raises FormatError, or RcodeError."""
    if len(data) < _QUESTION_AT:
        raise FormatError("a response is cut short")
    found, flags, questions, *_ = _HEADER.unpack_from(data)
    if found != ident or not flags & 0x8000 or flags & 0x7A00:
        raise FormatError("it is no response to what was asked")
    if flags & 0xF:
        raise RcodeError(flags & 0xF)
    if not questions:
        return _QUESTION_AT
    name, at = expand(data, _QUESTION_AT)
    if questions != 1 or name.lower() != origin or data[at : at + 4] != struct.pack("!HH", rtype, rr.IN):
        raise FormatError("it answers another question")
    return at + 4


def question_end(data: bytes) -> int:
    """The offset behind the question, if there is one. Raises FormatError."""
    return expand(data, _QUESTION_AT)[1] + 4 if data[5] else _QUESTION_AT


def marked(data: bytes, at: int) -> tuple[bytes, int]:
    """The lineage and the revision in a response, whose records begin at an offset; empty and 0 if it has none.

    Raises FormatError.
    """
    for _ in range(sum(_HEADER.unpack_from(data)[3:])):
        at = skip_name(data, at)
        if at + _FIXED.size > len(data):
            raise FormatError("a record is cut short")
        rtype, _, _, size = _FIXED.unpack_from(data, at)
        at += _FIXED.size
        if at + size > len(data):
            raise FormatError("a record's data is cut short")
        if rtype == rr.OPT:
            options = options_of(data[at : at + size])
            return following.lineage(options) or b"", following.revision(options)
        at += size
    return b"", 0


def notified(data: bytes) -> tuple[bytes, bytes]:
    """The zone that a NOTIFY is for, and the answer to it (RFC 1996 3.12). Raises FormatError for anything else."""
    if len(data) < _QUESTION_AT:
        raise FormatError("a message is cut short")
    ident, flags, questions, *_ = _HEADER.unpack_from(data)
    if flags & 0xF800 != _NOTIFY or questions != 1:
        raise FormatError("it is neither a response nor a NOTIFY")
    name, at = expand(data, _QUESTION_AT)
    if data[at : at + 4] != struct.pack("!HH", rr.SOA, rr.IN):
        raise FormatError("a NOTIFY is for something else than an SOA record")
    header = _HEADER.pack(ident, _QR | _NOTIFY | _AA, 1, 0, 0, 0)
    return name.lower(), header + data[_QUESTION_AT : at + 4]


def answers(data: bytes, at: int) -> Iterator[Row]:
    """The records of class IN in the answer section, with names in full. Raises FormatError."""
    for _ in range(_HEADER.unpack_from(data)[3]):
        owner, at = expand(data, at)
        if at + _FIXED.size > len(data):
            raise FormatError("a record is cut short")
        rtype, klass, ttl, size = _FIXED.unpack_from(data, at)
        at += _FIXED.size
        if at + size > len(data):
            raise FormatError("a record's data is cut short")
        if klass != rr.IN:
            raise FormatError(f"a record is of class {rr.class_text(klass)}")
        # RFC 2181 8: a TTL with its highest bit is 0
        yield Row(owner.lower(), rtype, ttl if ttl < 1 << 31 else 0, full_rdata(data, at, rtype, size))
        at += size


class Inbound:
    """A transfer. done: all of it is here.

    soa: the zone's new SOA record. current: there is nothing newer than what we have. steps: how it has changed; empty
    if all of it comes anew. count: of records; outside: of those that were left out as they are not in the zone.
    """

    def __init__(self, origin: bytes, serial: int | None, room: int = MOST_MEMORY) -> None:
        """serial: for IXFR, that of what we have; None for AXFR. room: bytes for its records, with names in full."""
        self.done = False
        self.current = False
        self.soa: Row | None = None
        self.steps: list[Step] = []
        self.count = 0
        self.outside = 0
        self._origin = origin
        self._serial = serial
        self._room = room
        self._size = 0
        self._memory = 0
        self._records: list[bytes] = []  # suffix of the key, zero byte, type, TTL, rdata: their order is that of keys
        self._adding = True
        self._differs: bool | None = None if serial is not None else False

    def take(self, data: bytes, at: int) -> None:
        """Go on with a message, whose records begin at an offset. Raises FormatError."""
        self._size += len(data)
        if self._size > MOST_BYTES:
            raise TooLargeError(f"it is of more than {MOST_BYTES >> 20} MiB")
        for row in answers(data, at):
            if self.done:
                raise FormatError("there are records behind its end")
            self.count += 1
            self._memory += len(row.owner) + len(row.rdata) + (_STEP_OBJECT if self._differs else _OBJECT)
            if self._memory > self._room:
                why = "" if self._room == MOST_MEMORY else ", more than the limit of memory leaves for it"
                raise TooLargeError(f"its names in full take more than {self._room >> 20} MiB{why}")
            if not names.is_subdomain(row.owner, self._origin):
                self.outside += 1
                continue
            self._record(row)
        if not self.count:
            raise FormatError("there are no records in it")
        if self.count == 1 and self.soa is not None and self._serial is not None and not self.done:
            self.current = self.done = not journal.rises(self._serial, journal.serial_of(self.soa))

    def _record(self, row: Row) -> None:
        is_soa = row.type == rr.SOA
        if is_soa and row.owner != self._origin:
            raise FormatError("there is an SOA record below the apex")
        if self.soa is None:
            if not is_soa:
                raise FormatError("it does not begin with the SOA record")
            self.soa = row
            return
        if self._differs is None:
            self._differs = is_soa and row.rdata != self.soa.rdata
        if self._differs:
            self._step(row)
        elif is_soa:
            if journal.serial_of(row) != journal.serial_of(self.soa):
                raise FormatError("it ends with another serial than it began with")
            self._add(self.soa)
            self.done = True
        else:
            self._add(row)

    def _add(self, row: Row) -> None:
        suffix = name_key(_PREFIX, row.owner, self._origin)[len(_PREFIX) :]
        self._records.append(suffix + b"\0" + _STORED.pack(row.type, row.ttl) + row.rdata)

    def rows(self) -> Iterator[tuple[bytes, bytes]]:
        """All of the zone for `Transaction.replace`. Raises FormatError for records that cannot be together."""
        self._records.sort()
        for suffix, records in itertools.groupby(self._records, _suffix):
            name = key_name(_PREFIX + suffix, self._origin)
            content = Content()
            for record in records:
                at = len(suffix) + 1
                rtype, ttl = _STORED.unpack_from(record, at)
                _add(content, self._origin, Row(name, rtype, ttl, record[at + _STORED.size :]))
            yield suffix, encode_rrsets(b"", content.records(name))[4:]

    def _step(self, row: Row) -> None:
        """A record of a chain of differences: SOA, what is removed, SOA, what is added, and so on."""
        assert self.soa is not None
        if row.type != rr.SOA:
            step = self.steps[-1]
            (step.added if self._adding else step.removed).append(row)
            return
        if not self._adding:
            self.steps[-1].after = row
            self._adding = True
            return
        if self.steps and journal.serial_of(self.steps[-1].after) == journal.serial_of(self.soa):
            if not row.rdata == self.steps[-1].after.rdata == self.soa.rdata:
                raise FormatError("it ends with another SOA record than it began with")
            self.done = True
            return
        known = journal.serial_of(self.steps[-1].after) if self.steps else self._serial
        if journal.serial_of(row) != known:
            raise FormatError("a difference is of another serial than we have")
        self.steps.append(Step(row, row))
        self._adding = False


@dataclass(frozen=True, slots=True)
class Have:
    """What we have of a zone: the rdata of its SOA record, and its lineage and revision, empty and 0 for none."""

    soa: bytes
    lineage: bytes = b""
    revision: int = 0

    @property
    def serial(self) -> int:
        """The zone's serial."""
        return int.from_bytes(self.soa[-20:-16])


class Question:
    """A question about a zone, and what comes of it.

    data: the query. got: the transfer; for the SOA record, which is no transfer, it only says whether there is anything
    newer. lineage, revision: those of what is coming, empty and 0 for none. begun: the first response is here.
    """

    def __init__(
        self,
        ident: int,
        origin: bytes,
        rtype: int,
        have: Have | None,
        key: Key | None,
        now: float,
        *,
        follow: bool,
        room: int = MOST_MEMORY,
    ) -> None:
        """have: for all but the first AXFR. key: to sign with. now: in seconds since 1970. follow: tell that we want
        to. room: see Inbound."""
        self.lineage = b""
        self.revision = 0
        self.begun = False
        self._ident = ident
        self._origin = origin
        self._type = rtype
        self._room = room
        mark = (following.mark(have.lineage, have.revision) if have is not None else b"") if follow else None
        data = query(ident, origin, rtype, have.soa if have is not None and rtype == rr.IXFR else None, mark)
        self._have = have = have if rtype != rr.AXFR else None
        self._asker = Asker(key) if key is not None else None
        self.data = data if self._asker is None else self._asker.sign(data, now)
        self.got = Inbound(origin, have.serial if have is not None else None, room)

    def take(self, data: bytes, now: float) -> bool:
        """Go on with a response; True if it is the last one. Raises FormatError."""
        try:
            at = records_at(data, self._ident, self._origin, self._type)
        except RcodeError as error:
            if error.rcode == rr.SERVFAIL and marked(data, question_end(data))[0]:
                raise BehindError from None
            raise
        signed = self._asker is None or self._asker.check(data, question_end(data), now)
        if self._type == rr.SOA:
            self._compare(data, at)
        else:
            if not self.begun:
                self._begin(data, at)
            self.got.take(data, at)
        self.begun = True
        if self.got.done and not signed:
            raise FormatError("the last response is not signed")
        return self.got.done or self._type == rr.SOA

    def _begin(self, data: bytes, at: int) -> None:
        """Look at whose lineage it is: in another one than ours serials mean nothing."""
        self.lineage, self.revision = marked(data, at)
        if self._have is not None and self.lineage != self._have.lineage:
            if _HEADER.unpack_from(data)[3] == 1:
                raise LineageError("it has another lineage than our copy")
            self.got = Inbound(self._origin, None, self._room)

    def _compare(self, data: bytes, at: int) -> None:
        assert self._have is not None
        theirs = [row for row in answers(data, at) if row.type == rr.SOA and row.owner == self._origin]
        if not theirs:
            raise FormatError("it has no SOA record for the zone")
        if not journal.rises(self._have.serial, journal.serial_of(theirs[-1])):
            self.got.soa = Row(self._origin, rr.SOA, 0, self._have.soa)
            self.got.current = self.got.done = True


def changed(origin: bytes, steps: list[Step], there: Mapping[bytes, Records]) -> dict[bytes, Records]:
    """What names are to have after some differences. there: what all names in them have now.

    Raises FormatError if they do not fit to that.
    """
    rows: dict[bytes, dict[Row, None]] = {
        name: {Row(name, rrset.type, 0, rdata): None for rrset in rrsets for rdata in rrset.rdatas}
        for name, rrsets in there.items()
    }
    ttls = {(name, rrset.type): rrset.ttl for name, rrsets in there.items() for rrset in rrsets}
    for step in steps:
        for row in (step.before, *step.removed):
            found = rows.setdefault(row.owner, {})
            bare = row._replace(ttl=0)
            if bare not in found:
                raise FormatError(f"{names.to_text(row.owner)} has not what is to be removed")
            del found[bare]
        for row in (*step.added, step.after):
            rows.setdefault(row.owner, {})[row._replace(ttl=0)] = None
            ttls[row.owner, row.type] = row.ttl
    content = Content()
    for name, found in rows.items():
        for row in found:
            _add(content, origin, row._replace(ttl=ttls[name, row.type]))
    return {name: content.records(name) if name in content.names else () for name in rows}


def _suffix(record: bytes) -> bytes:
    """What stands behind the zone's prefix in the key: empty, or up to the first of two zero bytes."""
    return record[: record.index(b"\0\0") + 1] if record[0] else b""


def _add(content: Content, origin: bytes, row: Row) -> None:
    """Add a record to others. Raises FormatError if it cannot be beside them."""
    try:
        add(content, origin, row.owner, row.ttl, row.type, row.rdata, _NOWHERE)
    except ConfigError as error:
        raise FormatError(error.mistakes[0].message) from None


def touched(steps: list[Step]) -> set[bytes]:
    """All names in some differences."""
    return {row.owner for step in steps for row in (step.before, *step.removed, *step.added, step.after)}


def soa_numbers(soa: RRset) -> tuple[int, int, int]:
    """Refresh, retry and expire of an SOA record, in seconds."""
    _, refresh, retry, expire, _ = struct.unpack("!IIIII", soa.rdatas[0][-20:])
    return refresh, retry, expire
