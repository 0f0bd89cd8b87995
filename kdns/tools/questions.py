"""What servers are asked when they are compared: all names of a cluster, a list of questions, or a log of queries."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from kdns.errors import DomainNameError
from kdns.observe.text import printable
from kdns.tools.snapshot import View
from kdns.wire import names, rr
from kdns.wire.rrset import RRset

MAX_REMEMBERED = 1_000_000
"""Questions of a file that are known not to be new; the set begins anew when it is full."""
MAX_LINE = 65536
NOTHING = names.join([b"no-such-name"])[:-1]
"""The first label of names that do not exist."""
ELSEWHERE = names.join([b"no-such-name", b"example", b"com"])[:-1]
"""What a search list makes of a name out of the cluster, without the zone behind it."""

_ARPA = names.from_text("arpa.")
_TYPE_CLASS = struct.Struct("!HH")
_LOGGED = re.compile(
    r'\\?"(?P<type>[A-Za-z0-9]+) (?P<class>[A-Za-z0-9]+) (?P<name>\S+) (?:udp|tcp|tls|https3?|quic|grpc)'
    r" \d+ (?:true|false) \d+\\?\"",
    re.ASCII,
)
"""What the formats {common} and {combined} of *log* have of the question; quotes are escaped in a container's JSON."""
_NOT_ASKED = frozenset((rr.AXFR, rr.IXFR, rr.OPT))


class Question(NamedTuple):
    """A name as it is asked (wire format), and a type; the class is IN."""

    name: bytes
    type: int

    @property
    def wire(self) -> bytes:
        """As it stands in a message."""
        return self.name + _TYPE_CLASS.pack(self.type, rr.IN)


def of_view(view: View) -> Iterator[Question]:
    """Everything that a cluster's zones have, and what they must not have.

    For each name: its types, A and AAAA, once in another case. For each name that has names below it: one below it that
    does not exist, and for a namespace what a search list asks for; the name of a pod by its address. Each question
    comes once.
    """
    for origin in dict.fromkeys(zone.origin for zone in view.zones()):
        if names.is_subdomain(origin, _ARPA):
            yield from _of_reverse(view, origin)
        else:
            yield from _of_forward(view, origin)


def _of_reverse(view: View, origin: bytes) -> Iterator[Question]:
    for owner, rrsets, above in _with_above(view, origin):
        types = dict.fromkeys((*(rrset.type for rrset in rrsets), rr.TXT if owner == origin else rr.PTR))
        yield from (Question(owner, rtype) for rtype in types)
        for name, is_empty in above:
            if is_empty:
                yield Question(name, rr.PTR)
            yield from _below(NOTHING, name, rr.PTR)


def _of_forward(view: View, origin: bytes) -> Iterator[Question]:
    pods: set[bytes] = set()
    apex = len(names.labels(origin))
    for owner, rrsets, above in _with_above(view, origin):
        depth = len(names.labels(owner)) - apex
        for name, is_empty in above:
            if is_empty:
                yield from _of_name(name, (), len(names.labels(name)) - apex)
            yield from _below(NOTHING, name, rr.A)
        yield from _of_name(owner, rrsets, depth)
        if depth == 2:
            yield from _below(ELSEWHERE, owner, rr.A)
        if depth == 4 and (pod := _pod(owner, rrsets, origin)) is not None and names.parent(pod) not in pods:
            pods.add(names.parent(pod))
            yield Question(pod, rr.A)


def _with_above(view: View, origin: bytes) -> Iterator[tuple[bytes, tuple[RRset, ...], list[tuple[bytes, bool]]]]:
    """The entries of a zone, each with the names above it that come for the first time, from the apex on.

    Of those, whether they are empty non-terminals without an entry of their own. An entry without records is among its
    own: there may be nothing below it.
    """
    known: set[bytes] = set()
    path: list[bytes] = []
    for owner, rrsets in view.walk(origin):
        while path and not names.is_subdomain(owner, path[-1]):
            path.pop()
        above = []
        name = owner
        while name != origin and (name := names.parent(name)) not in known:
            known.add(name)
            above.append((name, name not in path))
        path.append(owner)
        if not rrsets and owner not in known:
            known.add(owner)
            above.insert(0, (owner, False))
        yield owner, rrsets, above[::-1]


def _below(first: bytes, name: bytes, rtype: int) -> Iterator[Question]:
    """A question for a name below another, unless that is too long."""
    if len(first) + len(name) <= names.MAX_NAME:
        yield Question(first + name, rtype)


def _of_name(owner: bytes, rrsets: Iterable[RRset], depth: int) -> Iterator[Question]:
    types = dict.fromkeys((*(rrset.type for rrset in rrsets), rr.A, rr.AAAA))
    if depth <= 3 and owner[1:2] != b"_":
        types[rr.TXT] = None
    yield from (Question(owner, rtype) for rtype in types)
    if rrsets and depth <= 3:
        yield Question(other_case(owner), next(iter(types)))


def _pod(owner: bytes, rrsets: Iterable[RRset], origin: bytes) -> bytes | None:
    """1-2-3-4.N.pod.Z for the first address of E.S.N.svc.Z."""
    address = next((rrset.rdatas[0] for rrset in rrsets if rrset.type == rr.A), None)
    if address is None:
        return None
    _, _, namespace, *_ = names.labels(owner)
    dashed = rr.address_text(address).replace(".", "-").encode()
    return names.join([dashed, namespace, b"pod", *names.labels(origin)])


def other_case(name: bytes) -> bytes:
    """The name with every second letter of a label in upper case."""
    return names.join(
        bytes(byte - 32 if index % 2 and 97 <= byte <= 122 else byte for index, byte in enumerate(label))
        for label in names.labels(name)
    )


@dataclass(slots=True)
class Lines:
    """The questions of a file, each once; reading goes on while they are asked.

    log: it is a log of queries, else it has lines of NAME TYPE. lines: read so far. read: bytes. repeated: questions
    that came before. unusable: lines that are none; first: the first of them, as LINE: text. other: questions that are
    not asked: zone transfers, and classes other than IN.
    """

    file: BinaryIO
    log: bool
    lines: int = 0
    read: int = 0
    repeated: int = 0
    unusable: int = 0
    first: str = ""
    other: int = 0
    _seen: set[Question] = field(default_factory=set)

    def __iter__(self) -> Iterator[Question]:
        while line := self.file.readline(MAX_LINE):
            self.lines += 1
            self.read += len(line)
            text = line.decode(errors="replace").strip()
            if not text or (not self.log and text[0] in ";#"):
                continue
            try:
                question = _logged(text) if self.log else _listed(text)
            except (DomainNameError, ValueError):
                self.unusable += 1
                self.first = self.first or f"{self.lines}: {printable(text[:100])}"
                continue
            if question is None:
                self.other += 1
            elif question in self._seen:
                self.repeated += 1
            else:
                if len(self._seen) >= MAX_REMEMBERED:
                    self._seen.clear()
                self._seen.add(question)
                yield question


def _listed(text: str) -> Question | None:
    """A line of NAME TYPE. Raises ValueError or DomainNameError for one that is none."""
    name, rtype = text.split()
    return _question(name, rtype)


def _logged(text: str) -> Question | None:
    match = _LOGGED.search(text)
    if match is None:
        raise ValueError
    name = match["name"]
    if match[0].startswith("\\"):  # in JSON, where a backslash is two
        name = name.replace("\\\\", "\\")
    return None if match["class"] != "IN" else _question(name, match["type"])


def _question(name: str, rtype: str) -> Question | None:
    """None for what is not asked."""
    question = Question(names.from_text(name), rr.type_number(rtype))
    return None if question.type in _NOT_ASKED else question
