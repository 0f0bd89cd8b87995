"""DNS messages (RFC 1035 4, RFC 6891): a query is parsed in place, a response is assembled from prepared pieces.

Bytes from the network raise FormatError and nothing else, and no loop runs longer than the message.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from msgspec import structs

from kdns.errors import FormatError
from kdns.wire import names, rr
from kdns.wire.relay import Relay, stamp
from kdns.wire.rrset import RRset

if TYPE_CHECKING:
    from kdns.wire.tsig import Signed

HEADER = struct.Struct("!HHHHHH")
QUESTION_AT = HEADER.size
QR, AA, TC, RD, RA, AD, CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010
OPCODE = 0x7800
NOTIFY = 0x2000
"""The opcode (RFC 1996 3.7)."""
DO = 0x8000
NSID = 3
EDE = 15
MIN_UDP = 512
DEFAULT_UDP = 1232
MAX_MESSAGE = 65535
LONGEST_CHAIN = 10
"""How many CNAMEs are followed for one query."""

_TYPE_CLASS = struct.Struct("!HH")
_FIXED = struct.Struct("!HHIH")
_OPT = struct.Struct("!BHHIH")
_POINTER_TO_QUESTION = b"\xc0\x0c"
_POINTER = 0xC000
_POINTER_END = 0x4000
"""The first offset that a pointer cannot say (RFC 1035 4.1.4: 14 bits)."""
_COMPRESSED = frozenset((rr.NS, rr.CNAME, rr.PTR, rr.SOA))


@dataclass(slots=True)
class Edns:
    """The OPT record of a query (RFC 6891 6.1).

    payload: the client's UDP size as sent. options: code to data; of a repeated code the last one.
    """

    payload: int
    version: int
    do: bool
    options: dict[int, bytes]


class Metadata(Protocol):
    """What plugins know of a query beside its question, by labels such as `kubernetes/namespace` (`metadata`)."""

    def value(self, label: str) -> str:
        """The value of a label, worked out when it is asked for; empty if there is none."""
        ...

    def note(self, label: str, value: str) -> None:
        """Set the value of a label, for what comes to light while the query is answered."""
        ...


@dataclass(slots=True, eq=False)
class Query:
    """One question of a client.

    data: the whole message. name: the question's name as asked, uncompressed; lname: in lower case.
    question_end: offset behind the question. limit: the largest response in bytes that may be sent.
    udp_size: what our OPT offers. client, local: address and port. server: who was asked, as metrics call it. links:
    CNAMEs that were followed until this was asked. metadata: None in a server block without the directive. passed: the
    codes of those EDNS options that other servers are to get (`rewrite`), rising. signed: None without a
    signature, and where nobody looks at it (`tsig`).
    """

    data: bytes
    id: int
    flags: int
    name: bytes
    lname: bytes
    type: int
    klass: int
    question_end: int
    edns: Edns | None
    proto: str
    client: tuple[str, int]
    local: tuple[str, int]
    limit: int
    udp_size: int = DEFAULT_UDP
    server: str = ""
    links: int = 0
    metadata: Metadata | None = None
    passed: tuple[int, ...] = ()
    signed: Signed | None = None


class Aging(NamedTuple):
    """How long a response is kept, and how its TTLs count down. Times are those of time.monotonic(), in seconds.

    expires: when they are 0. until: as long as the packet cache may answer without asking the plugins again.
    counts_down: False if they stay as they are. Each answer from the packet cache raises `cells` by one at the indexes
    in `counted`, and calls `asked`, in any thread, if that is not None.
    """

    expires: float
    until: float
    counts_down: bool
    cells: memoryview
    counted: tuple[int, ...]
    asked: Callable[[], None] | None = None


class Transfer:
    """An answer of many messages (`transfer`).

    name: in the question (lower case). messages: for each how many records its answer section has, and these records,
    for offsets behind that question. stream: the bytes of what is still to be sent, once that has begun. followed: the
    zone that the client follows from then on (`kdns.wire.following`), None if it does not. has_to_yield: called when
    the client has not taken all of it for a while, and with whether that is slow: whether others wait for its place, so
    that the connection is to be closed.
    """

    __slots__ = ("_done", "_kept", "followed", "has_to_yield", "messages", "name", "stream")

    def __init__(
        self,
        name: bytes,
        messages: Sequence[tuple[int, bytes]],
        done: Callable[[], None],
        kept: object = None,
        followed: Any = None,
        has_to_yield: Callable[..., bool] = lambda *, slow: False,
    ) -> None:
        """done: called once, when nobody sends them any more. kept: has to be there until then."""
        self.name = name
        self.messages = messages
        self.followed = followed
        self.has_to_yield = has_to_yield
        self.stream: Iterator[bytes] = iter(())
        self._done: Callable[[], None] | None = done
        self._kept = kept

    def close(self) -> None:
        """Send no more of it."""
        done, self._done, self._kept = self._done, None, None
        self.messages = ()
        self.stream = iter(())
        if done is not None:
            done()

    def __del__(self) -> None:
        self.close()


@dataclass(slots=True, eq=False)
class Response:
    """What a plugin answers. Sections are lists of an owner name (lower case) and an RRset.

    relay: answer with another server's response instead; ttl: for all of its records, None as they are; aging: see
    there, for a relay that is cacheable, or what was made of one. set_flags, clear_flags: masks of header flags, which
    overrule all else. edns_options: options of our OPT in wire format, sent only if the query had an OPT.
    recursion: RA. cacheable: whether the packet cache may hold it; personal: whether it may, if that is not so, for the
    client's address alone, as `autopath` has left it; depends: the names in our zones that it was made of (lower case),
    whose change ends that. apart: it is for this query alone: `cache` does not keep it, nor gives it to those who wait
    for the same. rotate: address records may be sent in turns (`loadbalance`). plugin: who answered. error: what
    `errors` logs. silent: nothing is sent. transfer: what is sent in place of the sections; over UDP only its first
    message.
    """

    rcode: int = rr.NOERROR
    authoritative: bool = False
    recursion: bool = False
    answer: list[tuple[bytes, RRset]] = field(default_factory=list)
    authority: list[tuple[bytes, RRset]] = field(default_factory=list)
    additional: list[tuple[bytes, RRset]] = field(default_factory=list)
    edns_options: bytes = b""
    cacheable: bool = False
    personal: bool = False
    depends: tuple[bytes, ...] = ()
    rotate: bool = False
    apart: bool = False
    plugin: str = ""
    error: str = ""
    relay: Relay | None = None
    ttl: int | None = None
    aging: Aging | None = None
    set_flags: int = 0
    clear_flags: int = 0
    silent: bool = False
    transfer: Transfer | None = None

    def __post_init__(self) -> None:
        if self.relay is not None:
            self.rcode = self.relay.rcode
            self.authoritative = bool(self.relay.flags & AA)


def opened(response: Response) -> Response:
    """The same response with records that can be changed: what another server sent is taken apart.

    A relay may be of others too: it, and its response, stay as they are. The AD bit, which vouches for those bytes, is
    lost, and the packet cache does not hold the new one.
    """
    relay = response.relay
    if relay is None:
        return response
    ttl = response.ttl
    sections = (
        [(owner, rrset if ttl is None else structs.replace(rrset, ttl=ttl)) for owner, rrset in section]
        for section in relay.sections()
    )
    answer, authority, additional = sections
    return replace(
        response,
        answer=answer,
        authority=authority,
        additional=additional,
        relay=None,
        ttl=None,
        aging=None,
        cacheable=False,
        set_flags=response.set_flags | (TC if relay.truncated else 0),
    )


class Rotation(NamedTuple):
    """Address records of an encoded response that may be sent in any order.

    start, end: where those that fit lie in the message. step: bytes of one record. records: all of the RRset's, one
    behind the other.
    """

    start: int
    end: int
    step: int
    records: bytes


class Encoded(NamedTuple):
    """A response as bytes, what of it may be rotated, and the offsets of TTLs that count down."""

    wire: bytes
    rotation: Rotation | None
    ttls: tuple[int, ...] = ()


def question_end(data: bytes) -> int:
    """The offset behind the question that starts at byte 12.

    Raises FormatError for a name that is too long, compressed (nothing precedes it that it could point to), of an
    unknown label type, or cut short.
    """
    at = QUESTION_AT
    size = len(data)
    while True:
        if at >= size:
            raise FormatError("the question's name is cut short")
        length = data[at]
        at += 1
        if not length:
            break
        if length > names.MAX_LABEL:
            raise FormatError("the question's name has a pointer or an unknown label type")
        at += length
    if at - QUESTION_AT > names.MAX_NAME:
        raise FormatError("the question's name is longer than 255 bytes")
    if at + 4 > size:
        raise FormatError("the question is cut short")
    return at + 4


def parse(data: bytes, proto: str, client: tuple[str, int], local: tuple[str, int], udp_size: int) -> Query:
    """Read a query of at least 12 bytes.

    udp_size: the largest UDP response that we send, in bytes; the client's size holds down to 512 (RFC 6891 6.2.3).
    Raises FormatError unless it is exactly one well-formed question, well-formed further records with at most one
    OPT, and nothing behind them.
    """
    ident, flags, questions, answers, authorities, additionals = HEADER.unpack_from(data)
    if questions != 1:
        raise FormatError(f"{questions} questions")
    end = question_end(data)
    name = data[QUESTION_AT : end - 4]
    qtype, klass = _TYPE_CLASS.unpack_from(data, end - 4)
    if end == len(data) and not (answers or authorities or additionals):
        edns = None
    else:
        edns = _records(data, end, answers + authorities, additionals)
    if proto != "udp":
        limit = MAX_MESSAGE
    elif edns is None:
        limit = MIN_UDP
    else:
        limit = max(MIN_UDP, min(edns.payload, udp_size))
    return Query(data, ident, flags, name, name.lower(), qtype, klass, end, edns, proto, client, local, limit, udp_size)


def _records(data: bytes, at: int, before: int, additionals: int) -> Edns | None:
    """Walk over the records behind the question; returns the OPT if there is one. Raises FormatError."""
    edns = None
    for index in range(before + additionals):
        owner = at
        at = skip_name(data, at)
        if at + 10 > len(data):
            raise FormatError("a record is cut short")
        rtype, klass, ttl, size = _FIXED.unpack_from(data, at)
        at += 10
        if at + size > len(data):
            raise FormatError("a record's data is cut short")
        if rtype == rr.OPT:
            if edns is not None or index < before or data[owner]:
                raise FormatError("more than one OPT, or one where none belongs")
            edns = Edns(klass, ttl >> 16 & 0xFF, bool(ttl & DO), options_of(data[at : at + size]))
        at += size
    if at != len(data):
        raise FormatError(f"{len(data) - at} bytes behind the message")
    return edns


def skip_name(data: bytes, at: int) -> int:
    """The offset behind a possibly compressed name. Raises FormatError."""
    size = len(data)
    while at < size:
        length = data[at]
        if not length:
            return at + 1
        if length >= 0xC0:
            return at + 2
        if length > names.MAX_LABEL:
            break
        at += 1 + length
    raise FormatError("a record's name is malformed")


def options_of(data: bytes) -> dict[int, bytes]:
    """EDNS options (RFC 6891 6.1.2): code, length, data. Raises FormatError."""
    found = {}
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise FormatError("an EDNS option is cut short")
        code, size = _TYPE_CLASS.unpack_from(data, at)
        at += 4
        if at + size > len(data):
            raise FormatError("an EDNS option is cut short")
        found[code] = data[at : at + size]
        at += size
    return found


def opt_record(do: bool, udp_size: int = DEFAULT_UDP, rcode: int = 0, options: bytes = b"") -> bytes:
    """An OPT record of ours (RFC 6891 6.1.3). options: in wire format."""
    flags = (rcode >> 4) << 24 | (DO if do else 0)
    return _OPT.pack(0, rr.OPT, udp_size, flags, len(options)) + options


def option(code: int, data: bytes) -> bytes:
    """One EDNS option in wire format."""
    return _TYPE_CLASS.pack(code, len(data)) + data


def encode(query: Query, response: Response) -> Encoded:
    """Assemble a response of at most `query.limit` bytes.

    The question is sent back byte for byte. Whole records are left out from the end where they do not fit, and TC is
    set (RFC 2181 9). Our OPT is kept always, its options only if there is room beside the question.
    """
    opt = b""
    if query.edns is not None:
        opt = opt_record(query.edns.do, query.udp_size, response.rcode, response.edns_options)
        if query.question_end + len(opt) > query.limit:
            opt = opt_record(query.edns.do, query.udp_size, response.rcode)
    if response.relay is not None:
        return _relay(query, response, response.relay, opt)
    writer = _Writer(query, query.limit - len(opt))
    if not response.answer and not response.additional and len(response.authority) == 1:
        counts = [0, writer.negative(*response.authority[0]), 0]
    else:
        counts = [
            writer.section(response.answer, response.rotate),
            writer.section(response.authority, False),
            writer.section(response.additional, False),
        ]
    flags = _flags(query, response) | (TC if writer.full else 0)
    header = HEADER.pack(query.id, flags, 1, counts[0], counts[1], counts[2] + bool(opt))
    writer.parts[0] = header
    writer.parts.append(opt)
    return Encoded(b"".join(writer.parts), writer.rotation)


def transfer_messages(query: Query, response: Response, transfer: Transfer) -> Iterator[bytes]:
    """The messages of a transfer (RFC 5936 2.2), each with the question as it was asked, and our OPT if one was: in the
    first one with the response's options."""
    opt = first = b""
    if query.edns is not None:
        opt = opt_record(query.edns.do, query.udp_size)
        first = opt_record(query.edns.do, query.udp_size, options=response.edns_options)
    flags = _flags(query, response)
    for count, records in transfer.messages:
        header = HEADER.pack(query.id, flags, 1, count, 0, bool(opt))
        yield b"".join((header, question(query), records, first or opt))
        first = b""


def _flags(query: Query, response: Response) -> int:
    """The header's second 16 bits, but for TC. An rcode over 15 needs an OPT (RFC 6891 6.1.3): SERVFAIL without one."""
    rcode = response.rcode if response.rcode < 16 or query.edns is not None else rr.SERVFAIL
    flags = QR | query.flags & (OPCODE | RD | CD) | rcode & 0xF
    if response.authoritative:
        flags |= AA
    if response.recursion:
        flags |= RA
    return flags & ~response.clear_flags | response.set_flags


def _relay(query: Query, response: Response, relay: Relay, opt: bytes) -> Encoded:
    """Another server's response under our header, question and OPT.

    The question is as long as the one that was asked there, so all offsets hold. AD is for those who can make something
    of it (RFC 6840 5.7).
    """
    ttls = relay.ttls
    flags = _flags(query, response) | relay.flags & TC
    if query.flags & AD or (query.edns is not None and query.edns.do):
        flags |= relay.flags & AD
    body, counts = relay.body, relay.counts
    if len(body) + len(opt) > query.limit:
        flags |= TC
        kept = _fitting(relay, query.limit - len(opt))
        ttls = ttls[:kept]
        counts = _first(counts, kept)
        body = relay.cut(counts)
    if response.ttl is not None:
        body = stamp(body, ttls, response.ttl)
    header = HEADER.pack(query.id, flags, 1, counts[0], counts[1], counts[2] + bool(opt))
    question = query.data[QUESTION_AT : query.question_end]
    rotation = _run(relay, body) if response.rotate and not flags & TC else None
    return Encoded(header + question + body[query.question_end :] + opt, rotation, ttls)


def _fitting(relay: Relay, size: int) -> int:
    """How many records of a relay fit, from the first."""
    kept = len(relay.ttls)
    while kept and relay.end_of(kept - 1) > size:
        kept -= 1
    return kept


def _first(counts: tuple[int, int, int], kept: int) -> tuple[int, int, int]:
    """The first records, by section."""
    answers = min(counts[0], kept)
    authorities = min(counts[1], kept - answers)
    return answers, authorities, kept - answers - authorities


def _run(relay: Relay, body: bytes) -> Rotation | None:
    """The address records of a relay's answer that may be sent in any order."""
    start, step, count = relay.addresses()
    return Rotation(start, start + step * count, step, body[start : start + step * count]) if count else None


class _Writer:
    """The growing message: `parts` joined is the message, `at` its length so far."""

    __slots__ = ("at", "end", "full", "offsets", "parts", "query", "rotation")

    def __init__(self, query: Query, end: int) -> None:
        self.query = query
        self.end = end
        self.parts = [b"", query.data[QUESTION_AT : query.question_end]]
        self.at = query.question_end
        self.full = False
        self.offsets: dict[bytes, int] | None = None
        self.rotation: Rotation | None = None

    def section(self, records: list[tuple[bytes, RRset]], rotate: bool) -> int:
        """Write RRsets as far as they fit; returns the number of records written."""
        count = 0
        for owner, rrset in records:
            if self.full:
                break
            count += self._addresses(owner, rrset, rotate) if rrset.type in (rr.A, rr.AAAA) else self._any(owner, rrset)
        return count

    def negative(self, owner: bytes, rrset: RRset) -> int:
        """Write an authority section that is the zone's SOA, as almost every negative answer has it."""
        at = len(self.query.lname) - len(owner)
        if rrset.type != rr.SOA or at < 0 or self.query.lname[at:] != owner:
            return self.section([(owner, rrset)], False)
        return int(self._add(soa_record(owner, rrset, QUESTION_AT + at)))

    def _addresses(self, owner: bytes, rrset: RRset, rotate: bool) -> int:
        """Records of one size each, whose owner is written once and pointed at from then on."""
        head = self._name(owner) if owner != self.query.lname else _POINTER_TO_QUESTION
        fixed = _FIXED.pack(rrset.type, rrset.klass, rrset.ttl, len(rrset.rdatas[0]))
        count = 0
        if len(head) > 2:
            if not self._add(head + fixed + rrset.rdatas[0]):
                return 0
            count = 1
            first = self.at - len(head) - len(fixed) - len(rrset.rdatas[0])
            if first < _POINTER_END:
                head = (_POINTER | first).to_bytes(2, "big")
        prefix = head + fixed
        step = len(prefix) + len(rrset.rdatas[0])
        fit = min(len(rrset.rdatas) - count, (self.end - self.at) // step)
        if rotate and not count and len(rrset.rdatas) > 1 and self.rotation is None:
            records = b"".join([prefix + rdata for rdata in rrset.rdatas])
            self.rotation = Rotation(self.at, self.at + fit * step, step, records)
            self.parts.append(records[: fit * step])
        else:
            self.parts += [prefix + rdata for rdata in rrset.rdatas[count : count + fit]]
        self.at += fit * step
        count += fit
        self.full = count < len(rrset.rdatas)
        return count

    def _any(self, owner: bytes, rrset: RRset) -> int:
        count = 0
        for rdata in rrset.rdatas:
            head = self._name(owner) if owner != self.query.lname else _POINTER_TO_QUESTION
            if rrset.type in _COMPRESSED:
                rdata = self._rdata(rrset.type, rdata, self.at + len(head) + 10)
            record = head + _FIXED.pack(rrset.type, rrset.klass, rrset.ttl, len(rdata)) + rdata
            start = self.at
            if not self._add(record):
                break
            if rrset.type == rr.SRV:
                self._remember(rdata[6:], start + len(head) + 16)
            count += 1
        return count

    def _add(self, record: bytes) -> bool:
        if self.at + len(record) > self.end:
            self.full = True
            return False
        self.parts.append(record)
        self.at += len(record)
        return True

    def _rdata(self, rtype: int, rdata: bytes, at: int) -> bytes:
        """rdata of NS, CNAME, PTR and SOA with its names compressed, for the offset where it will stand."""
        first_end = skip_name(rdata, 0)
        first = self._name(rdata[:first_end], at)
        if rtype != rr.SOA:
            return first
        second_end = skip_name(rdata, first_end)
        return first + self._name(rdata[first_end:second_end], at + len(first)) + rdata[second_end:]

    def _name(self, name: bytes, at: int | None = None) -> bytes:
        """A name, compressed against the question and the names already written (RFC 1035 4.1.4).

        at: the offset where it will stand; from there on it can be pointed at.
        """
        if self.offsets is None:
            self.offsets = {}
            self._remember(self.query.lname, QUESTION_AT)
        start = self.at if at is None else at
        step = 0
        while name[step]:
            known = self.offsets.get(name[step:])
            if known is not None:
                break
            step += 1 + name[step]
        else:
            known = None
        compressed = name[:step] + ((_POINTER | known).to_bytes(2, "big") if known is not None else names.ROOT)
        self._remember(name, start, step)
        return compressed

    def _remember(self, name: bytes, at: int, upto: int | None = None) -> None:
        """Note where the suffixes of a name stand that begin before `upto`. Pointers have 14 bits."""
        if self.offsets is None:
            self.offsets = {}
            self._remember(self.query.lname, QUESTION_AT)
        step = 0
        end = len(name) - 1 if upto is None else upto
        while step < end and at + step < _POINTER_END:
            self.offsets.setdefault(name[step:], at + step)
            step += 1 + name[step]


def soa_record(zone: bytes, rrset: RRset, at: int) -> bytes:
    """A zone's SOA record as the first behind a question whose name ends in the zone's, at an offset of the message."""
    mname, up, rname, upper, across, numbers = _soa_pieces(zone, rrset.rdatas[0])
    start = at + len(zone) + 4 + 2 + _FIXED.size
    first = mname + _pointer(at, up)
    second = rname + (_pointer(at, upper) if across is None else _pointer(start, across))
    fixed = _FIXED.pack(rr.SOA, rrset.klass, rrset.ttl, len(first) + len(second) + len(numbers))
    return b"".join((_pointer(at, 0), fixed, first, second, numbers))


def _pointer(at: int, step: int | None) -> bytes:
    """A pointer to somewhere behind an offset; the root if there is nothing to point to."""
    return names.ROOT if step is None else (_POINTER | at + step).to_bytes(2, "big")


@lru_cache(maxsize=1024)
def _soa_pieces(zone: bytes, rdata: bytes) -> tuple[bytes, int | None, bytes, int | None, int | None, bytes]:
    """MNAME and RNAME of an SOA as far as they are written out, each with where the rest is: in the zone's name, or of
    RNAME in MNAME; None for the root. Behind them the numbers."""
    first = skip_name(rdata, 0)
    second = skip_name(rdata, first)
    mname, rname = rdata[:first], rdata[first:second]
    end, up = _shared(mname, zone)
    written, upper = _shared(rname, zone)
    aside, across = _shared(rname, mname)
    if aside >= written or across is None or across >= end:
        return mname[:end], up, rname[:written], upper, None, rdata[second:]
    return mname[:end], up, rname[:aside], None, across, rdata[second:]


def _shared(name: bytes, other: bytes) -> tuple[int, int | None]:
    """Where in a name its longest part begins that another one ends in too, and where that is in the other.

    The end and None if that is but the root.
    """
    step = 0
    while name[step]:
        at = len(other) - len(name) + step
        if at >= 0 and other.endswith(name[step:]) and names.is_between_labels(other, at):
            return step, at
        step += 1 + name[step]
    return step, None


def error(data: bytes, rcode: int) -> bytes:
    """The answer to a message that is not a usable query: its header, and its question if that can be read.

    data: at least 12 bytes.
    """
    ident, flags, questions, *_ = HEADER.unpack_from(data)
    question = b""
    if questions == 1:
        try:
            question = data[QUESTION_AT : question_end(data)]
        except FormatError:
            question = b""
    return HEADER.pack(ident, QR | flags & (OPCODE | RD) | rcode, 1 if question else 0, 0, 0, 0) + question


def notify(ident: int, origin: bytes) -> bytes:
    """A NOTIFY for a zone (RFC 1996 3.7)."""
    return HEADER.pack(ident, NOTIFY | AA, 1, 0, 0, 0) + origin + _TYPE_CLASS.pack(rr.SOA, rr.IN)


def question(query: Query) -> bytes:
    """Name, type and class as they were asked."""
    return query.data[QUESTION_AT : query.question_end]


def follow(query: Query, name: bytes, links: int) -> Query:
    """The same question about the name that a CNAME leads to, asked by ourselves. links: CNAMEs followed on the way."""
    wire = name + query.data[query.question_end - 4 : query.question_end]
    data = HEADER.pack(query.id, query.flags, 1, 0, 0, 0) + wire
    lname, end = name.lower(), QUESTION_AT + len(wire)
    return replace(query, data=data, name=name, lname=lname, question_end=end, limit=MAX_MESSAGE, links=links)


def links_of(links: int, before: int) -> int:
    """How many CNAMEs a query behind another one counts as, after so many for the same response.

    If each response led to two more, and each of these, there would be thousands. So the second query gets half of
    what a chain has, and those behind it nothing.
    """
    return min(links + LONGEST_CHAIN // 2 * before, LONGEST_CHAIN)


def passed_options(query: Query) -> bytes:
    """The EDNS options that other servers are to get, in wire format."""
    options = query.edns.options if query.edns is not None else {}
    return b"".join([option(code, options[code]) for code in query.passed if code in options])


def upstream_query(query: Query, ident: int, *, edns: bool = True) -> bytes:
    """The query that asks another server for the same.

    RD and CD are the client's. AD asks for the AD bit, whoever can use it (RFC 6840 5.7). With an OPT of ours and the
    options that are to be passed, if there is one in the query and `edns` is True.
    """
    opt = b""
    if query.edns is not None and edns:
        opt = opt_record(query.edns.do, options=passed_options(query))
    return HEADER.pack(ident, query.flags & (RD | CD) | AD, 1, 0, 0, bool(opt)) + question(query) + opt
