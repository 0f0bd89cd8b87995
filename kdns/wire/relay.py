"""Responses of other servers, which pass as the bytes that they are (RFC 3597: types that nobody here knows too).

Only the OPT is taken out, as it says something about one hop (RFC 6891 6.2.6). Everything that is said of a response
is found in one walk over it; nothing that breaks the format gets past it.
"""

from __future__ import annotations

import itertools
import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator

from msgspec import Struct, structs

from kdns.errors import FormatError
from kdns.wire import names, rr
from kdns.wire.rrset import RRset

HEADER = struct.Struct("!HHHHHH")
QUESTION_AT = HEADER.size
QR, TC, OPCODE = 0x8000, 0x0200, 0x7800
_FIXED = struct.Struct("!HHIH")
_TTL_AT = 4  # behind the owner
_DATA_AT = _FIXED.size
_POINTER = 0xC000
_TO_QUESTION = b"\xc0\x0c"
WITH_NAMES = {
    rr.NS: (0, 1, 0), 3: (0, 1, 0), 4: (0, 1, 0), rr.CNAME: (0, 1, 0), rr.SOA: (0, 2, 20), 7: (0, 1, 0), 8: (0, 1, 0),
    9: (0, 1, 0), rr.PTR: (0, 1, 0), 14: (0, 2, 0), 15: (2, 1, 0), 17: (0, 2, 0), 18: (2, 1, 0), 21: (2, 1, 0),
    26: (2, 2, 0), rr.SRV: (6, 1, 0), 36: (2, 1, 0), 39: (0, 1, 0),
}  # fmt: skip
"""Types whose rdata may hold compressed names (RFC 3597 4): bytes before them, their number, bytes behind them."""
_SIZES = {rr.A: 4, rr.AAAA: 16}
_NO_QUESTION = (rr.FORMERR, rr.NOTIMP, rr.SERVFAIL, rr.REFUSED)


class Relay(Struct, frozen=True, eq=False, gc=False):
    """A whole response of another server.

    body: header (12 bytes, the ID as it came, counts that are right), question, records but for the OPT. size: of the
    question. flags: of the header. rcode: with the upper bits that the OPT had. ttls: offsets of the TTL fields in the
    body. ttl: the least of them in seconds, 0 if there are none. answered: the answer section has the type that was
    asked for, at the end of the CNAME chain. denial: it says that name or type do not exist, and has the SOA to say how
    long (RFC 2308 2). negative_ttl: the lesser of the SOA's TTL and MINIMUM (RFC 2308 5); -1 without an SOA.
    """

    body: bytes
    size: int
    flags: int
    rcode: int
    ttls: tuple[int, ...]
    ttl: int
    answered: bool
    denial: bool
    negative_ttl: int

    @property
    def truncated(self) -> bool:
        """Whether records are missing (TC)."""
        return bool(self.flags & TC)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Records of the answer, authority and additional sections."""
        return struct.unpack_from("!HHH", self.body, 6)

    def end_of(self, record: int) -> int:
        """The offset behind a record, numbered from 0 over all sections; of the question for -1."""
        if record < 0:
            return QUESTION_AT + self.size
        at = self.ttls[record]
        return at + 6 + int.from_bytes(self.body[at + 4 : at + 6], "big")

    def cut(self, counts: tuple[int, int, int]) -> bytes:
        """The body with the first records only, so many of each section; what is left out has to be the last ones."""
        end = self.end_of(sum(counts) - 1)
        return self.body[:6] + struct.pack("!HHH", *counts) + self.body[QUESTION_AT:end]

    def answers_only(self) -> Relay:
        """The same without authority and additional sections."""
        count = self.counts[0]
        return structs.replace(self, body=self.cut((count, 0, 0)), ttls=self.ttls[:count])

    def addresses(self) -> tuple[int, int, int]:
        """The first run of equally long A or AAAA records of one owner: offset, bytes of each, how many.

        No more than one record, or none, is (0, 0, 0). The owner has to be a pointer, as it is when compressed.
        """
        body, found = self.body, (0, 0, 0)
        start = self.end_of(-1)
        for record in range(self.counts[0]):
            end = self.end_of(record)
            head = body[start : start + 6]
            if head[0] >= 0xC0 and int.from_bytes(head[2:4], "big") in _SIZES and end - start == 12 + _SIZES[head[3]]:
                first, step, count = found
                if not count:
                    found = (start, end - start, 1)
                elif first + step * count == start and body[first : first + 6] == head:
                    found = (first, step, count + 1)
            start = end
        return found if found[2] > 1 else (0, 0, 0)

    def records(self) -> Iterator[tuple[bytes, int, int, int, bytes]]:
        """All records in their order: owner as it was sent, type, class, TTL in seconds, rdata; names in full."""
        start = self.end_of(-1)
        for record in range(len(self.ttls)):
            owner, at = expand(self.body, start)
            rtype, klass, ttl, size = _FIXED.unpack_from(self.body, at)
            yield owner, rtype, klass, ttl, full_rdata(self.body, at + _DATA_AT, rtype, size)
            start = self.end_of(record)

    def answer(self) -> list[tuple[bytes, RRset]]:
        """The answer section, its names in full: owner (lower case) and RRset."""
        return _rrsets(itertools.islice(self.records(), self.counts[0]))

    def sections(self) -> tuple[list[tuple[bytes, RRset]], list[tuple[bytes, RRset]], list[tuple[bytes, RRset]]]:
        """The same of answer, authority and additional section."""
        records = self.records()
        answer, authority, additional = (_rrsets(itertools.islice(records, count)) for count in self.counts)
        return answer, authority, additional


def _rrsets(records: Iterable[tuple[bytes, int, int, int, bytes]]) -> list[tuple[bytes, RRset]]:
    """Records as `Relay.records` gives them, put together: one TTL for each RRset, the least (RFC 2181 5.2)."""
    found: dict[tuple[bytes, int, int], tuple[int, dict[bytes, None]]] = {}
    for owner, rtype, klass, ttl, rdata in records:
        key = owner.lower(), rtype, klass
        least, rdatas = found.get(key, (ttl, {}))
        rdatas[rdata] = None
        found[key] = min(least, ttl), rdatas
    return [(owner, RRset(rtype, ttl, tuple(rdatas), klass)) for (owner, rtype, klass), (ttl, rdatas) in found.items()]


def stamp(data: bytes, offsets: Iterable[int], ttl: int) -> bytes:
    """The same bytes with a TTL, in seconds, at these offsets."""
    stamped = bytearray(data)
    four = ttl.to_bytes(4, "big")
    for at in offsets:
        stamped[at : at + 4] = four
    return bytes(stamped)


def same_question(data: bytes, question: bytes) -> bool:
    """Whether the question of a message (at least a header) is this one but for case, in wire format."""
    asked = data[QUESTION_AT : QUESTION_AT + len(question)]
    return asked == question or (asked[:-4].lower() == question[:-4].lower() and asked[-4:] == question[-4:])


def read(data: bytes, question: bytes) -> Relay:
    """Take a response apart.

    question: name, type and class as they were asked, in wire format; the response's has to be equal but for case. One
    that only says that the query could not be dealt with may leave it out. Raises FormatError for everything else that
    is no such response.
    """
    if len(data) < QUESTION_AT:
        raise FormatError(f"{len(data)} bytes are no message")
    _, flags, questions, *counts = HEADER.unpack_from(data)
    if not flags & QR or flags & OPCODE:
        raise FormatError("not the response to a query")
    if not questions and flags & 0xF in _NO_QUESTION and not counts[0] and not counts[1]:
        data = data[:4] + b"\0\1" + data[6:QUESTION_AT] + question + data[QUESTION_AT:]
    elif questions != 1:
        raise FormatError(f"{questions} questions")
    if not same_question(data, question):
        raise FormatError("another question")
    return _Walk(data, question, flags, counts).relay()


class _Walk:
    """One pass over the records of a response."""

    __slots__ = (
        "aliases", "counts", "data", "flags", "name", "negative_ttl", "opt", "owners", "pointers", "qtype", "question",
        "rcode", "runs", "ttl", "ttls",
    )  # fmt: skip

    def __init__(self, data: bytes, question: bytes, flags: int, counts: list[int]) -> None:
        self.data = data
        self.question = question
        self.name = question[:-4].lower()
        self.qtype = int.from_bytes(question[-4:-2], "big")
        self.flags = flags
        self.counts = counts
        self.rcode = flags & 0xF
        self.ttls: list[int] = []
        self.ttl = -1
        self.negative_ttl = -1
        self.aliases: dict[bytes, set[bytes]] = {}
        self.owners: set[bytes] = set()  # those of the asked type
        self.opt: tuple[int, int] | None = None
        self.pointers: list[int] = []  # where they stand, behind the OPT
        self.runs: list[tuple[int, int, bool]] = []  # what pointers lead to, see `expand`

    def relay(self) -> Relay:
        at = QUESTION_AT + len(self.question)
        for section, count in enumerate(self.counts):
            for _ in range(count):
                at = self._record(at, section)
        if at != len(self.data):
            raise FormatError(f"{len(self.data) - at} bytes behind the message")
        for start, end, goes_on in self.runs:
            self._check_run(start, end, goes_on)
        answered = self.rcode == rr.NOERROR and self._answered()
        denies = self.rcode == rr.NXDOMAIN or (self.rcode == rr.NOERROR and not answered)
        return Relay(
            self._body(),
            len(self.question),
            self.flags,
            self.rcode,
            tuple(self.ttls),
            max(self.ttl, 0),
            answered,
            denies and self.negative_ttl >= 0,
            self.negative_ttl,
        )

    def _record(self, start: int, section: int) -> int:
        """Note what a record says; returns the offset behind it."""
        data = self.data
        if data[start : start + 2] == _TO_QUESTION:
            owner, at = self.name, start + 2
            if self.opt is not None:
                self.pointers.append(start)
        else:
            owner, at = expand(data, start, self.pointers if self.opt is not None else None, self.runs)
            owner = owner.lower()
        if at + _DATA_AT > len(data):
            raise FormatError("a record is cut short")
        rtype, _, ttl, size = _FIXED.unpack_from(data, at)
        end: int = at + _DATA_AT + size
        if end > len(data):
            raise FormatError("a record's data is cut short")
        if rtype == rr.OPT:
            if self.opt is not None or section != 2 or owner != names.ROOT:
                raise FormatError("more than one OPT, or one where none belongs")
            self.opt = start, end
            self.rcode |= ttl >> 24 << 4
            return end
        if ttl & 0x80000000:  # RFC 2181 8
            ttl = 0
        self.ttls.append(at + _TTL_AT)
        self.ttl = ttl if self.ttl < 0 else min(self.ttl, ttl)
        targets = self._targets(at + _DATA_AT, rtype, size)
        if section == 0:
            if rtype == rr.CNAME:
                self.aliases.setdefault(owner, set()).add(targets[0].lower())
            if rtype == self.qtype or self.qtype == rr.ANY:
                self.owners.add(owner)
        elif section == 1 and rtype == rr.SOA:
            minimum = int.from_bytes(data[end - 4 : end], "big")
            self.negative_ttl = min(ttl, 0 if minimum & 0x80000000 else minimum)
        return end

    def _targets(self, at: int, rtype: int, size: int) -> list[bytes]:
        """The names in rdata, in full. Raises FormatError if the rdata is not what its type has."""
        layout = WITH_NAMES.get(rtype)
        if layout is None:
            if _SIZES.get(rtype, size) != size:
                raise FormatError(f"an address of {size} bytes")
            return []
        before, count, behind = layout
        end = at + size
        at += before
        found = []
        for _ in range(count):
            if at >= end:
                raise FormatError("a name in a record's data is missing")
            name, at = expand(self.data, at, self.pointers if self.opt is not None else None, self.runs)
            found.append(name)
        if at + behind != end:
            raise FormatError(f"data of type {rr.type_text(rtype)} is malformed")
        return found

    def _check_run(self, start: int, end: int, goes_on: bool) -> None:
        """Raises FormatError if a name leads through what is not the same later: TTLs count down, addresses take turns,
        the OPT is taken out. Pointers are to lead to names (RFC 1035 4.1.4), but in rdata nobody knows where they are.
        """
        record = bisect_left(self.ttls, end + _TTL_AT) - 1
        if record >= 0:
            at = self.ttls[record]
            behind = at + 6
            if int.from_bytes(self.data[at - _TTL_AT : at - 2], "big") in _SIZES:
                behind += _SIZES[self.data[at - 3]]
            if behind > start:
                raise FormatError("a name points into a record's numbers")
        opt = self.opt
        if opt is None or opt[0] >= end:
            return
        if start < opt[1] or (goes_on and end - 2 not in self.pointers):
            raise FormatError("a name points into the OPT, or into data behind it that has a pointer")

    def _answered(self) -> bool:
        """Follow the CNAMEs from the question (RFC 1034 3.6.2); an owner has one, and none comes twice."""
        if self.qtype in (rr.CNAME, rr.ANY):
            return self.name in self.owners and len(self.aliases.get(self.name, ())) <= 1
        name, seen = self.name, set()
        while targets := self.aliases.get(name):
            if name in seen or len(targets) > 1:
                return False
            seen.add(name)
            (name,) = targets
        return name in self.owners

    def _body(self) -> bytes:
        """The message without its OPT. What is behind it moves, and so do the pointers there that point behind it."""
        if self.opt is None:
            return self.data
        start, end = self.opt
        size = end - start
        self.counts[2] -= 1
        body = bytearray(self.data)
        struct.pack_into("!HHH", body, 6, *self.counts)
        for at in self.pointers:
            target = int.from_bytes(body[at : at + 2], "big") & ~_POINTER
            if start <= target < end:
                raise FormatError("a name points into the OPT")
            if target >= end:
                struct.pack_into("!H", body, at, _POINTER | target - size)
        del body[start:end]
        self.ttls = [at if at < start else at - size for at in self.ttls]
        return bytes(body)


def expand(
    data: bytes, at: int, pointers: list[int] | None = None, runs: list[tuple[int, int, bool]] | None = None
) -> tuple[bytes, int]:
    """A name in full, and the offset behind where it stands. Pointers have to point backwards (RFC 1035 4.1.4).

    pointers: gets the offset of the pointer that the name itself ends in. runs: gets where the bytes that pointers lead
    to begin and end, and whether they end in another pointer. Raises FormatError.
    """
    parts: list[bytes] = []
    size = 1
    behind = 0
    limit = at
    pointers_left = names.MAX_NAME // 2  # one for each label that a name can have
    end = len(data)
    while at < end:
        length = data[at]
        if not length:
            if behind and runs is not None:
                runs.append((limit, at + 1, False))
            return b"".join(parts) + names.ROOT, behind or at + 1
        if length > names.MAX_LABEL:
            if length < 0xC0 or at + 1 >= end:
                break
            if not behind:
                behind = at + 2
                if pointers is not None:
                    pointers.append(at)
            elif runs is not None:
                runs.append((limit, at + 2, True))
            at = (length & 0x3F) << 8 | data[at + 1]
            if not QUESTION_AT <= at < limit:
                break
            limit = at
            pointers_left -= 1
            if pointers_left < 0:
                break
            continue
        parts.append(data[at : at + 1 + length])
        size += 1 + length
        if size > names.MAX_NAME:
            break
        at += 1 + length
    raise FormatError("a record's name is malformed")


def full_rdata(data: bytes, at: int, rtype: int, size: int) -> bytes:
    """rdata with its names in full. Raises FormatError if it is not what its type has."""
    end = at + size
    if _SIZES.get(rtype, size) != size:
        raise FormatError(f"an address of {size} bytes")
    layout = WITH_NAMES.get(rtype)
    if layout is None:
        return data[at:end]
    before, count, behind = layout
    parts = [data[at : at + before]]
    at += before
    for _ in range(count):
        name, at = expand(data, at)
        parts.append(name)
    if at + behind != end:
        raise FormatError(f"data of type {rr.type_text(rtype)} is malformed")
    return b"".join(parts) + data[at:end]
