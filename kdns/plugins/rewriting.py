"""The rules of `rewrite`: what each does to a query, and what it wants to be done to the response.

Names are matched and changed as text, in the way in which CoreDNS writes them. What comes of that may be no name: then
NoName is raised, and nothing else.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias

from kdns.corefile.values import Regex
from kdns.errors import DomainNameError
from kdns.wire import message, names, rr
from kdns.wire.message import Edns, Query
from kdns.wire.rrset import RRset

EXACT, PREFIX, SUFFIX, SUBSTRING, REGEX = "exact", "prefix", "suffix", "substring", "regex"
KINDS = (EXACT, PREFIX, SUFFIX, SUBSTRING, REGEX)
SET, APPEND, REPLACE, UNSET = "set", "append", "replace", "unset"
ACTIONS = (SET, APPEND, REPLACE, UNSET)
SUBNET = 8
"""The EDNS option of RFC 7871."""
VARIABLES = ("qname", "qtype", "client_ip", "client_port", "protocol", "server_ip", "server_port")

_OF_THE_QUERY = frozenset(("qname", "qtype", "protocol"))
"""Variables that are the same for all clients of a socket who send the same."""
_LONGEST_TEXT = 1020
"""More characters are no name: 255 bytes, each of which may be written with four."""
_GROUP = re.compile(r"\{(0|[1-9]\d{0,4})\}", re.ASCII)
_PLAIN = re.compile(rb"[-\w*/+=:!#$%&,<>?\[\]^`{|}~.]+", re.ASCII)
_ESCAPED = frozenset(b". '@;()\"\\")
_TEXTS = tuple(
    f"\\{chr(byte)}" if byte in _ESCAPED else chr(byte) if 0x21 <= byte <= 0x7E else f"\\{byte:03d}"
    for byte in range(256)
)
_QUESTION = struct.Struct("!HH")
_NAPTR = 35
_NAME_AT = {rr.SRV: 6, rr.MX: 2, rr.CNAME: 0, rr.NS: 0, 39: 0, rr.SOA: 0, rr.PTR: 0}
"""Where the name in rdata begins that a rule for values is about, by type. In an SOA it is the first one."""

Text: TypeAlias = Callable[[str], str]
Records: TypeAlias = list[tuple[bytes, RRset]]


class NoName(Exception):  # noqa: N818 - it says what was made
    """A rule has made a text of a name that is none."""


def text_of(name: bytes) -> str:
    """A name as rules see it, with its last dot."""
    labels = names.labels(name)
    plain = b".".join(labels)
    if _PLAIN.fullmatch(plain) and plain.count(b".") == len(labels) - 1:  # all at once: some have a hundred labels
        return plain.decode("ascii") + "."
    return ".".join(["".join([_TEXTS[byte] for byte in label]) for label in labels]) + "."


def name_of(text: str) -> bytes:
    """The name that a text stands for. Raises NoName."""
    if text and len(text) <= _LONGEST_TEXT:
        try:
            return names.from_text(text)
        except (DomainNameError, UnicodeEncodeError):
            pass
    raise NoName


def dotted(text: str) -> str:
    """The text with a dot at its end, if it has none that counts."""
    bare = text.removesuffix(".")
    escaped = (len(bare) - len(bare.rstrip("\\"))) % 2
    return text if text != bare and not escaped else text + "."


@dataclass(frozen=True, slots=True)
class Template:
    """What a name becomes. parts: text, and the numbers of groups whose text belongs there."""

    parts: tuple[str | int, ...]

    @classmethod
    def read(cls, text: str) -> Template:
        """`{1}` stands for the first group, `{0}` for all that was matched."""
        pieces = _GROUP.split(text)
        return cls(tuple(int(piece) if index % 2 else piece for index, piece in enumerate(pieces)))

    @property
    def groups(self) -> int:
        """The highest number of a group in it."""
        return max((part for part in self.parts if isinstance(part, int)), default=0)

    def fill(self, groups: list[str]) -> str:
        """The text with the groups, each as it is."""
        return "".join([groups[part] if isinstance(part, int) else part for part in self.parts])


@dataclass(frozen=True, slots=True)
class Pattern:
    """Which names a rule is about. text: for all kinds but REGEX, which has `regex`."""

    kind: str
    text: str = ""
    regex: Regex | None = None

    def matches(self, name: str) -> bool:
        """Whether a name, in lower case, is one of them."""
        match self.kind:
            case "exact":
                return name == self.text
            case "prefix":
                return name.startswith(self.text)
            case "suffix":
                return name.endswith(self.text)
            case "substring":
                return self.text in name
        assert self.regex is not None
        return self.regex.matches(name)

    def replaced(self, name: str, to: Template) -> str | None:
        """What becomes of a name; None if it is none of them."""
        if self.regex is not None:
            groups = self.regex.search(name)
            return None if groups is None else to.fill(groups)
        if not self.matches(name):
            return None
        text = to.fill([])
        match self.kind:
            case "exact":
                return text
            case "prefix":
                return text + name[len(self.text) :]
            case "suffix":
                return name[: len(name) - len(self.text)] + text
        return name.replace(self.text, text)

    def spares(self, zone: str) -> bool:
        """True if no name in a zone (lower case, with its last dot) can be one of them."""
        if self.kind == EXACT:
            return zone != "." and self.text != zone and not self.text.endswith("." + zone)
        return self.kind == SUFFIX and not zone.endswith(self.text) and not self.text.endswith(zone)


# What is done to responses


@dataclass(frozen=True, slots=True)
class ByRegex:
    """Changes texts that an expression matches."""

    regex: Regex
    to: Template

    def __call__(self, text: str) -> str:
        groups = self.regex.search(text)
        return text if groups is None else self.to.fill(groups)


@dataclass(frozen=True, slots=True)
class ByDomain:
    """Changes a name, and those below it, to another. name: in lower case."""

    name: str
    to: str

    def __call__(self, text: str) -> str:
        at = len(text) - len(self.name)
        if at < 0 or text[at:].lower() != self.name or (at and text[at - 1] != "."):
            return text
        return text[:at] + self.to


@dataclass(frozen=True, slots=True)
class BySuffix:
    """Changes the end of names. suffix: in lower case."""

    suffix: str
    to: str

    def __call__(self, text: str) -> str:
        at = len(text) - len(self.suffix)
        return text[:at] + self.to if at >= 0 and text[at:].lower() == self.suffix else text


@dataclass(frozen=True, slots=True)
class InTurn:
    """Changes texts several times; only the last one has to be a name."""

    texts: tuple[Text, ...]

    def __call__(self, text: str) -> str:
        for change in self.texts:
            text = change(text)
        return text


@dataclass(frozen=True, slots=True)
class Owners:
    """Other names for records."""

    text: Text

    def records(self, records: Records) -> Records:
        """A section as it is to be. Raises NoName."""
        return [(_changed(owner, self.text).lower(), rrset) for owner, rrset in records]


@dataclass(frozen=True, slots=True)
class Values:
    """Other names in the data of records."""

    text: Text

    def records(self, records: Records) -> Records:
        """A section as it is to be. Raises NoName."""
        return [(owner, self._rrset(rrset)) for owner, rrset in records]

    def _rrset(self, rrset: RRset) -> RRset:
        rdatas = tuple(dict.fromkeys([self._rdata(rrset.type, rdata) for rdata in rrset.rdatas]))
        return rrset if rdatas == rrset.rdatas else RRset(rrset.type, rrset.ttl, rdatas, rrset.klass)

    def _rdata(self, rtype: int, rdata: bytes) -> bytes:
        start = _naptr(rdata) if rtype == _NAPTR else _NAME_AT.get(rtype)
        if start is None:
            return rdata
        end = message.skip_name(rdata, start)
        return rdata[:start] + _changed(rdata[start:end], self.text) + rdata[end:]


@dataclass(frozen=True, slots=True)
class Lifetime:
    """TTLs, in seconds, no lower and no higher."""

    low: int
    high: int

    def records(self, records: Records) -> Records:
        """A section as it is to be."""
        return [
            (owner, rrset if self.low <= rrset.ttl <= self.high else self._rrset(rrset)) for owner, rrset in records
        ]

    def _rrset(self, rrset: RRset) -> RRset:
        return RRset(rrset.type, min(max(rrset.ttl, self.low), self.high), rrset.rdatas, rrset.klass)


@dataclass(frozen=True, slots=True)
class Code:
    """Another response code for one."""

    old: int
    new: int


@dataclass(frozen=True, slots=True)
class Target:
    """Another target for CNAME records, and what there is at that."""

    pattern: Pattern
    to: Template

    def target(self, name: bytes) -> bytes | None:
        """The new target for one, None if that is not to be changed. Raises NoName."""
        text = self.pattern.replaced(text_of(name.lower()), self.to)
        return None if text is None else name_of(text)


def _changed(name: bytes, change: Text) -> bytes:
    old = text_of(name)
    new = change(old)
    return name if new == old else name_of(new)


def _naptr(rdata: bytes) -> int | None:
    """Where the name begins in the data of a NAPTR record (RFC 3403 4.1); None if it has none in full."""
    at = 4
    for _ in range(3):
        if at >= len(rdata):
            return None
        at += 1 + rdata[at]
    step = at
    while step < len(rdata) and 0 < rdata[step] <= names.MAX_LABEL:
        step += 1 + rdata[step]
    return at if step == len(rdata) - 1 and not rdata[step] else None


# What is done to queries


@dataclass(slots=True)
class Draft:
    """A query on its way through the rules.

    name: in lower case; text: the same as rules see it. options: of EDNS, by code. changes: what is to be done to the
    response, in the order of the rules. before: codes that `revert` is about, and what they had (None for nothing).
    varies: the client, and not only what it has sent, has decided something.
    """

    query: Query
    name: bytes
    text: str
    type: int
    klass: int
    options: dict[int, bytes]
    changes: list[Owners | Values | Lifetime | Code | Target] = field(default_factory=list)
    before: list[tuple[int, bytes | None]] = field(default_factory=list)
    varies: bool = False

    @classmethod
    def of(cls, query: Query) -> Draft:
        """The query as it came."""
        options = {} if query.edns is None else dict(query.edns.options)
        return cls(query, query.lname, text_of(query.lname), query.type, query.klass, options)

    def rename(self, text: str) -> None:
        """Ask for another name. Raises NoName."""
        name = name_of(text).lower()
        if name != self.name:
            self.name, self.text = name, text_of(name)

    def asked(self, codes: frozenset[int]) -> Query:
        """The query that the rest of the chain gets. codes: of the options that other servers are to get."""
        query = self.query
        name = query.name if self.name == query.lname else self.name
        passed = tuple(sorted({*query.passed, *(code for code in codes if code in self.options)}))
        edns = query.edns
        if edns is None and passed:
            edns = Edns(message.DEFAULT_UDP, 0, False, self.options)
        elif edns is not None and edns.options != self.options:
            edns = replace(edns, options=self.options)
        same = (name, self.type, self.klass) == (query.name, query.type, query.klass)
        if same:
            return query if edns is query.edns and passed == query.passed else replace(query, edns=edns, passed=passed)
        question = name + _QUESTION.pack(self.type, self.klass)
        return replace(
            query,
            data=message.HEADER.pack(query.id, query.flags, 1, 0, 0, 0) + question,
            name=name,
            lname=self.name,
            type=self.type,
            klass=self.klass,
            question_end=message.QUESTION_AT + len(question),
            edns=edns,
            passed=passed,
        )


class Rule(Protocol):
    """One directive. stop: those behind it are not looked at if it has done something."""

    @property
    def stop(self) -> bool:
        """See there."""
        ...

    def apply(self, draft: Draft) -> bool:
        """Do it; False if the rule is not about this query. Raises NoName."""
        ...

    def spares(self, zone: str) -> bool:
        """True if it does nothing to plain queries (class IN, no options, a usual type) for names in a zone, and to
        their answers. zone: in lower case, with its last dot."""
        ...


@dataclass(frozen=True, slots=True)
class NameRule:
    """Another name. auto: names in the response are changed back. answers: what else is done to it."""

    stop: bool
    pattern: Pattern
    to: Template
    auto: bool = False
    answers: tuple[Owners | Values, ...] = ()

    def apply(self, draft: Draft) -> bool:
        """See Rule."""
        before = draft.text
        text = self.pattern.replaced(before, self.to)
        if text is None:
            return False
        draft.rename(text)
        if self.auto:
            back: Text
            if self.pattern.kind == SUFFIX:
                back = BySuffix(self.to.fill([]), self.pattern.text)
            else:
                back = ByDomain(draft.text, before)
            draft.changes += [Owners(back), Values(back)]
        draft.changes += self.answers
        return True

    def spares(self, zone: str) -> bool:
        """See Rule."""
        return self.pattern.spares(zone)


@dataclass(frozen=True, slots=True)
class ResponseRule:
    """Something that is done to responses about some names."""

    stop: bool
    pattern: Pattern
    change: Lifetime | Code

    def apply(self, draft: Draft) -> bool:
        """See Rule."""
        if not self.pattern.matches(draft.text):
            return False
        draft.changes.append(self.change)
        return True

    def spares(self, zone: str) -> bool:
        """See Rule."""
        return self.pattern.spares(zone)


@dataclass(frozen=True, slots=True)
class TargetRule:
    """Something that is done to the CNAME records of every response."""

    stop: bool
    target: Target

    def apply(self, draft: Draft) -> bool:
        """See Rule."""
        draft.changes.append(self.target)
        return True

    def spares(self, _zone: str) -> bool:
        """See Rule."""
        return False


@dataclass(frozen=True, slots=True)
class TypeRule:
    """Another type."""

    stop: bool
    old: int
    new: int

    def apply(self, draft: Draft) -> bool:
        """See Rule."""
        if draft.type != self.old:
            return False
        draft.type = self.new
        return True

    def spares(self, _zone: str) -> bool:
        """See Rule."""
        return self.old == rr.ANY


@dataclass(frozen=True, slots=True)
class ClassRule:
    """Another class."""

    stop: bool
    old: int
    new: int

    def apply(self, draft: Draft) -> bool:
        """See Rule."""
        if draft.klass != self.old:
            return False
        draft.klass = self.new
        return True

    def spares(self, _zone: str) -> bool:
        """See Rule."""
        return self.old != rr.IN


@dataclass(frozen=True, slots=True)
class Fixed:
    """An option's data as the Corefile has it."""

    data: bytes
    varies = False

    def __call__(self, _draft: Draft) -> bytes:
        return self.data


@dataclass(frozen=True, slots=True)
class Variable:
    """An option's data from the query: one of VARIABLES, or a label of `metadata`."""

    name: str

    @property
    def varies(self) -> bool:
        """Whether queries of the same bytes may give different data."""
        return self.name not in _OF_THE_QUERY

    def __call__(self, draft: Draft) -> bytes | None:
        """The data; None if there is none."""
        query = draft.query
        match self.name:
            case "qname":
                name = query.name if draft.name == query.lname else draft.name
                return text_of(name).encode()
            case "qtype":
                return draft.type.to_bytes(2, "big")
            case "client_ip":
                return _address(query.client[0]).packed
            case "client_port":
                return query.client[1].to_bytes(2, "big")
            case "protocol":
                return b"udp" if query.proto == "udp" else b"tcp"
            case "server_ip":
                return _address(query.local[0]).packed
            case "server_port":
                return query.local[1].to_bytes(2, "big")
        value = query.metadata.value(self.name) if query.metadata is not None else ""
        return value.encode(errors="replace") or None


@dataclass(frozen=True, slots=True)
class ClientSubnet:
    """The client's network (RFC 7871 6). v4, v6: bits of it that are told."""

    v4: int
    v6: int
    varies = True

    def __call__(self, draft: Draft) -> bytes:
        address = _address(draft.query.client[0])
        family, bits = (1, self.v4) if address.version == 4 else (2, self.v6)
        network = ipaddress.ip_network((address.packed, bits), strict=False)
        octets = network.network_address.packed[: (bits + 7) // 8]
        return family.to_bytes(2, "big") + bytes((bits, 0)) + octets


@dataclass(frozen=True, slots=True)
class OptionRule:
    """An EDNS option. local: it is in the response too, unless `revert` changes that back."""

    stop: bool
    action: str
    code: int
    source: Fixed | Variable | ClientSubnet
    local: bool
    revert: bool = False

    def apply(self, draft: Draft) -> bool:
        """See Rule."""
        options = draft.options
        if self.action == UNSET:
            options.pop(self.code, None)
            return True
        is_there = self.code in options
        if (self.action == REPLACE and not is_there) or (self.action == APPEND and is_there):
            return False
        draft.varies = draft.varies or self.source.varies
        data = self.source(draft)
        if data is None:
            return False
        if self.revert:
            draft.before.append((self.code, options.get(self.code)))
        options[self.code] = data
        return True

    def spares(self, _zone: str) -> bool:
        """See Rule."""
        return self.action in (REPLACE, UNSET)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address of a socket; one of IPv4 that is written as one of IPv6 is one of IPv4."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or address
    return address
