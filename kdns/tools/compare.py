"""What differs between two servers' answers to the same questions."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from kdns.errors import FormatError
from kdns.tools import asking, snapshot
from kdns.tools.asking import Fault, Limits, Peer, Reply, Target
from kdns.tools.questions import Question
from kdns.tools.rdata import rdata_text
from kdns.tools.snapshot import View
from kdns.wire import names, relay, rr
from kdns.wire.message import AA, RA, TC

SECTIONS = ("answer", "authority", "additional")
MAX_KEPT = 10_000
"""Differences that are held in full; of others there is the number of each kind."""
MAX_SHOWN = 20
"""Records of one side of a difference that are shown."""
AGAIN_SECONDS = 1.0
NO_ANSWER, MALFORMED = "no answer", "malformed"
_RFC8482 = rr.hinfo(b"RFC8482", b"")
_FLAGS = {"AA": AA, "TC": TC, "RA": RA}
_SERIAL = slice(-20, -16)

Ttl = Literal["exact", "less", "ignore"]
Key = tuple[bytes, int, int]
"""Owner in lower case, type, class."""


@dataclass(frozen=True, slots=True)
class Record:
    """A record of an answer. owner: as it was sent. rdata: its names in full."""

    owner: bytes
    type: int
    klass: int
    ttl: int
    rdata: bytes

    @property
    def key(self) -> Key:
        """What the records of an RRset have in common."""
        return self.owner.lower(), self.type, self.klass


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, taken apart. question: as the server has sent it back. edns: with an OPT record."""

    question: bytes
    rcode: int
    flags: int
    edns: bool
    sections: tuple[tuple[Record, ...], ...]

    @property
    def answer(self) -> tuple[Record, ...]:
        """The answer section."""
        return self.sections[0]


def read(data: bytes, question: Question) -> Answer:
    """Take a response to the question apart. Raises FormatError."""
    found = relay.read(data, question.wire)
    records = [Record(*record) for record in found.records()]
    sections = []
    for count in found.counts:
        sections.append(tuple(records[:count]))
        del records[:count]
    edns = int.from_bytes(data[10:12], "big") != found.counts[2]
    return Answer(found.body[12 : 12 + found.size], found.rcode, found.flags, edns, tuple(sections))


@dataclass(frozen=True, slots=True)
class Options:
    """What counts as a difference.

    ttl: "less" lets the second server's be less than the first's. serials: those of SOA records count. strict: what is
    expected counts too.
    """

    ttl: Ttl = "exact"
    sections: tuple[str, ...] = SECTIONS[:2]
    serials: bool = False
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Aspect:
    """One thing in which two answers differ. what: in a word or two. first, second: what either server has."""

    what: str
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class Difference:
    """A question that two servers answer differently. reasons: why, if all of it is on purpose; else none."""

    question: Question
    aspects: tuple[Aspect, ...]
    reasons: tuple[str, ...] = ()

    @property
    def kind(self) -> tuple[str, ...]:
        """What differs, without the records."""
        return tuple(
            f"{aspect.what} {aspect.first} / {aspect.second}" if aspect.what == "rcode" else aspect.what
            for aspect in self.aspects
        )


_LOWER = Options(serials=True)

# One question


def differences(question: Question, first: Answer, second: Answer, options: Options) -> tuple[Aspect, ...]:
    """All that differs between two answers, the most important first; empty if nothing does."""
    return tuple(_aspects(question, first, second, options))


def _aspects(question: Question, first: Answer, second: Answer, options: Options) -> Iterator[Aspect]:
    if first.rcode != second.rcode:
        yield Aspect("rcode", rr.rcode_text(first.rcode), rr.rcode_text(second.rcode))
    for name, mask in _FLAGS.items():
        if (first.flags ^ second.flags) & mask:
            yield Aspect(f"flag {name}", *(_yes(answer.flags & mask) for answer in (first, second)))
    if first.edns != second.edns:
        yield Aspect("EDNS", _yes(first.edns), _yes(second.edns))
    if first.question != second.question:
        yield Aspect("case of the question", *(names.to_text(each.question[:-4]) for each in (first, second)))
    comparable = first.rcode == second.rcode and bool(first.answer) == bool(second.answer)
    for section, one, other in zip(SECTIONS, first.sections, second.sections, strict=True):
        if section in options.sections and (section == "answer" or comparable):
            yield from _section(section, question, (one, other), first.flags & second.flags & AA != 0, options)
    if "answer" in options.sections:
        yield from _answer_alone(first.answer, second.answer)


def _section(
    name: str,
    question: Question,
    both: tuple[Sequence[Record], Sequence[Record]],
    authoritative: bool,
    options: Options,
) -> Iterator[Aspect]:
    ours, theirs = ({(record.key, _canonical(record, options)): record for record in side} for side in both)
    if ours.keys() != theirs.keys():
        only = [record for key, record in ours.items() if key not in theirs]
        others = [record for key, record in theirs.items() if key not in ours]
        yield Aspect(name, _texts(question, only), _texts(question, others))
    if name != "additional":
        yield from _repeated(name, question, both)
    if options.ttl == "ignore" or (options.ttl == "exact" and not authoritative):
        return
    pairs = [(record, theirs[key]) for key, record in ours.items() if key in theirs]
    wrong = [
        (one.ttl, other.ttl)
        for one, other in pairs
        if one.ttl != other.ttl and not (options.ttl == "less" and other.ttl < one.ttl)
    ]
    if wrong:
        what = "TTL" if name == "answer" else f"TTL in {name}"
        yield Aspect(what, *(_list(sorted({pair[side] for pair in wrong})) for side in (0, 1)))


def _repeated(name: str, question: Question, both: tuple[Sequence[Record], Sequence[Record]]) -> Iterator[Aspect]:
    """Records that one server sends several times, which an RRset cannot have (RFC 2181 5)."""
    found = [[record for record, count in Counter(side).items() if count > 1] for side in both]
    if any(found) and set(found[0]) != set(found[1]):
        yield Aspect(f"repeated in {name}", *(_texts(question, side) for side in found))


def _answer_alone(first: Sequence[Record], second: Sequence[Record]) -> Iterator[Aspect]:
    """What only the answer section has: its owners' case, and aliases in front of what they lead to."""
    owners = [{(record.owner.lower(), record.owner) for record in side} for side in (first, second)]
    both = {owner for owner, _ in owners[0]} & {owner for owner, _ in owners[1]}
    cases = [sorted(found for owner, found in side if owner in both) for side in owners]
    if cases[0] != cases[1]:
        shown = [[name for name in side if name not in other] for side, other in (cases, cases[::-1])]
        yield Aspect("case of owners", *(_list(map(names.to_text, side)) for side in shown))
    orders = [list(dict.fromkeys(record.key for record in side)) for side in (first, second)]
    if orders[0] != orders[1] and set(orders[0]) == set(orders[1]) and any(key[1] == rr.CNAME for key in orders[0]):
        yield Aspect("order", *(_list(map(_key_text, order)) for order in orders))


def _canonical(record: Record, options: Options) -> bytes:
    """rdata that is equal where only the case of names differs (RFC 4034 6.2), or the serial."""
    layout = relay.WITH_NAMES.get(record.type)
    if layout is None:
        return record.rdata
    before, _, behind = layout
    end = len(record.rdata) - behind
    rdata = record.rdata[:before] + record.rdata[before:end].lower() + record.rdata[end:]
    if record.type == rr.SOA and not options.serials:
        rdata = rdata[: _SERIAL.start] + bytes(4) + rdata[_SERIAL.stop :]
    return rdata


def _yes(value: object) -> str:
    return "yes" if value else "no"


def _list(items: Iterable[object]) -> str:
    return ", ".join(map(str, items)) or "nothing"


def _key_text(key: Key) -> str:
    return f"{names.to_text(key[0])} {rr.type_text(key[1])}"


def _texts(question: Question, records: Iterable[Record]) -> str:
    """Records, one a line, the owner only where it is not the question's name."""
    lines = []
    for record in records:
        what = "" if record.type == question.type else f"{rr.type_text(record.type)} "
        owner = "" if record.owner.lower() == question.name.lower() else f"{names.to_text(record.owner)} "
        klass = "" if record.klass == rr.IN else f"{rr.class_text(record.klass)} "
        lines.append(f"{owner}{klass}{what}{rdata_text(record.type, record.rdata)}")
    lines.sort()
    if len(lines) > MAX_SHOWN:
        lines[MAX_SHOWN:] = [f"and {len(lines) - MAX_SHOWN} more"]
    return "\n".join(lines) or "nothing"


# What is on purpose

_NEGATIVE = frozenset(("rcode", "flag AA", "authority", "TTL in authority"))
"""What differs between NODATA and NXDOMAIN."""
_DATA = frozenset(
    ("answer", "TTL", "order", "case of owners", "authority", "TTL in authority", "additional", "TTL in additional")
)
_RECORDS = _NEGATIVE | _DATA
_USABLE = (rr.NOERROR, rr.NXDOMAIN)
"""Codes of servers that know what they say; what goes with another one is never on purpose."""
_FOLLOWED = (rr.A, rr.AAAA)
_Reason = tuple[frozenset[str], str]
"""Aspects, and why they differ."""


@dataclass(frozen=True, slots=True)
class Knowledge:
    """Tells differences from CoreDNS that kdns has on purpose from others. view: the cluster, as far as it is known.

    Without a view little is known for sure. With it, one of two answers has to be what kdns makes of the cluster, and
    the other one what CoreDNS is known to say instead.
    """

    view: View | None = None

    def explain(
        self, question: Question, both: tuple[Answer, Answer], aspects: Iterable[Aspect]
    ) -> tuple[tuple[Aspect, ...], tuple[str, ...]]:
        """What of the aspects is not on purpose, and why the others are."""
        left, reasons = tuple(aspects), []
        for covered, reason in self._reasons(question, both):
            rest = tuple(aspect for aspect in left if aspect.what not in covered)
            if rest != left:
                reasons.append(reason)
            left = rest
            if not left:
                break
        return left, tuple(reasons)

    def _reasons(self, question: Question, both: tuple[Answer, Answer]) -> Iterator[_Reason]:
        if all(answer.flags & AA for answer in both):
            yield frozenset(("flag RA",)), "RA is set wherever kdns forwards, on the cluster's names too"
        if any(_has_case(answer, question) for answer in both):
            yield (
                frozenset(("case of owners",)),
                "owners are in the case of the question; a cache may have another one's",
            )
        are_usable = all(answer.rcode in _USABLE for answer in both)
        if question.type == rr.ANY and are_usable and sum(map(_is_minimal, both)) == 1:
            yield _RECORDS, "ANY is answered minimally (RFC 8482)"
        if self.view is None:
            return
        known = self.view.lookup(question.name, question.type)
        if known.zone is None:
            yield frozenset(("flag AA",)), "AA of what was forwarded is the upstream's; the cache of CoreDNS sets it"
            return
        if known.leaves is not None and _one_gives_up(both):
            yield _RECORDS, "SERVFAIL while the target of an ExternalName cannot be resolved"
        for one, other in (both, both[::-1]):
            if _is(one, known):
                is_empty = known.rcode == rr.NOERROR and not known.answer
                if is_empty and other.rcode == rr.NXDOMAIN and not self._has_address(question.name):
                    yield _NEGATIVE, "a name that exists without records of a type is no NXDOMAIN (RFC 8020)"
                yield from _of_the_other(question, known, other, known.zone.origin)

    def _has_address(self, name: bytes) -> bool:
        assert self.view is not None
        return any(self.view.lookup(name, rtype).answer for rtype in _FOLLOWED)


def _is(answer: Answer, known: snapshot.Answer) -> bool:
    """Whether it is what kdns makes of the cluster."""
    return answer.rcode == known.rcode and _records(answer) == _flat(known)


def _of_the_other(question: Question, known: snapshot.Answer, other: Answer, origin: bytes) -> Iterator[_Reason]:
    """Why another server than kdns may answer so. known: what kdns answers."""
    name = names.lower(question.name)
    types = {record.type for record in other.answer}
    server = names.join([b"ns", b"dns", *names.labels(origin)])
    is_apex = name == origin and question.type in (rr.NS, rr.ANY) and other.rcode == rr.NOERROR
    if is_apex or (name in (server, names.parent(server)) and other.rcode in _USABLE):
        yield _RECORDS, "a zone's name server is ns.dns and the zone, whatever the Service is called"
    is_empty = known.rcode == other.rcode == rr.NOERROR and not known.answer
    if is_empty and name[1:2] == b"_" and types and types <= {rr.A, rr.AAAA}:
        yield _DATA, "names of ports have SRV records only"
    if known.answer and _only_aliases(known) and not other.answer and other.rcode == rr.NOERROR:
        yield _RECORDS, "an alias is shown for every type, and without its target too (RFC 1034 3.6.2)"
    if known.answer and _only_aliases(known) and _flat(known) <= _records(other) and question.type not in _FOLLOWED:
        yield _RECORDS, "an alias is followed for A and AAAA only"
    if question.type == rr.PTR and types == {rr.PTR} and _records(other) < _flat(known):
        yield frozenset(("answer",)), "PTR lists every Service that has the address"
    if question.type == rr.SRV and _without_weights(_records(other)) == _without_weights(_flat(known)):
        yield frozenset(("answer",)), "the weights of SRV records share 100 by ports, not by addresses"


def _flat(known: snapshot.Answer) -> set[tuple[bytes, int, bytes]]:
    return {(owner, rrset.type, rdata) for owner, rrset in known.answer for rdata in rrset.rdatas}


def _records(answer: Answer) -> set[tuple[bytes, int, bytes]]:
    """The answer section; names in it are those of a cluster, in lower case."""
    return {(record.owner.lower(), record.type, _canonical(record, _LOWER)) for record in answer.answer}


def _without_weights(records: Iterable[tuple[bytes, int, bytes]]) -> set[tuple[bytes, int, bytes]]:
    return {(owner, rtype, rdata[:2] + rdata[4:]) for owner, rtype, rdata in records}


def _only_aliases(known: snapshot.Answer) -> bool:
    return all(rrset.type == rr.CNAME for _, rrset in known.answer)


def _has_case(answer: Answer, question: Question) -> bool:
    """Whether the records of the name that was asked for have its case."""
    return all(each.owner in (question.name, each.owner.lower()) for each in answer.answer) and any(
        each.owner == question.name for each in answer.answer
    )


def _is_minimal(answer: Answer) -> bool:
    return [record.rdata for record in answer.answer] == [_RFC8482]


def _one_gives_up(both: Sequence[Answer]) -> bool:
    """Whether one answer is SERVFAIL and the other has aliases and nothing else."""
    return any(
        one.rcode == rr.SERVFAIL
        and other.rcode == rr.NOERROR
        and {record.type for record in other.answer} == {rr.CNAME}
        for one, other in (both, both[::-1])
    )


# All questions


@dataclass(slots=True)
class Result:
    """What came of it.

    questions: that both servers were asked. same, different, expected: those that are answered so; expected ones are
    different on purpose, and are not among the different. passing: differed, and did not when they were asked again.
    kinds: how many differ in what; reasons: how many are expected, and why. found: the differences themselves, at most
    MAX_KEPT. seconds: it took.
    """

    questions: int = 0
    same: int = 0
    different: int = 0
    expected: int = 0
    passing: int = 0
    kinds: Counter[tuple[str, ...]] = field(default_factory=Counter)
    found: list[Difference] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def add(self, difference: Difference | None) -> None:
        """Count what came of one question; None: the answers are the same."""
        self.questions += 1
        if difference is None:
            self.same += 1
        elif difference.reasons:
            self.expected += 1
            self.reasons.update(difference.reasons)
        else:
            self.different += 1
            self.kinds[difference.kind] += 1
            if len(self.found) < MAX_KEPT:
                self.found.append(difference)


@dataclass(slots=True)
class Comparison:
    """Two servers, to be asked the same.

    again: how often what differs is asked once more, a second later: what agrees then is in passing. progress: is
    called now and then with the result so far.
    """

    servers: tuple[Target, Target]
    options: Options
    limits: Limits
    knowledge: Knowledge = field(default_factory=Knowledge)
    again: int = 0
    progress: Callable[[Result], None] = lambda _: None
    result: Result = field(default_factory=Result)

    def run(self, questions: Iterable[Question]) -> Result:
        """Ask everything. Raises GoneError for a server that answers nothing (any more); then, and after a
        KeyboardInterrupt, `result` has what was found until then."""
        start = time.monotonic()
        try:
            asyncio.run(self._run(iter(questions)))
        finally:
            self.result.seconds = time.monotonic() - start
        return self.result

    async def _run(self, questions: Iterator[Question]) -> None:
        peers = [Peer(server, self.limits) for server in self.servers]
        try:
            for peer in peers:
                await peer.open()
            await self._ask(questions, peers, self.result.add)
            for _ in range(self.again):
                if 0 < self.result.different <= len(self.result.found):
                    await asyncio.sleep(AGAIN_SECONDS)
                    await self._sift(peers)
        finally:
            for peer in peers:
                peer.close()

    async def _ask(
        self, questions: Iterator[Question], peers: Sequence[Peer], add: Callable[[Difference | None], None]
    ) -> None:
        def handle(question: Question, replies: Sequence[Reply]) -> None:
            add(self.judge(question, replies[0], replies[1]))

        await asking.ask(questions, peers, handle, self.limits, lambda: self.progress(self.result))

    async def _sift(self, peers: Sequence[Peer]) -> None:
        """Ask once more what differs, and keep what still does."""
        still = Result()
        await self._ask(iter([difference.question for difference in self.result.found]), peers, still.add)
        result = self.result
        result.passing += still.same
        result.expected += still.expected
        result.reasons += still.reasons
        result.different, result.kinds, result.found = still.different, still.kinds, still.found

    def judge(self, question: Question, first: Reply, second: Reply) -> Difference | None:
        """What differs between two replies to a question."""
        if not isinstance(first, Fault) and not isinstance(second, Fault):
            try:
                one = read(first, question)
                if first[2:] == second[2:]:
                    return None
                return self._answers(question, one, read(second, question))
            except FormatError:
                pass
        faults = [_fault(reply, question) for reply in (first, second)]
        what = NO_ANSWER if any(isinstance(reply, Fault) for reply in (first, second)) else MALFORMED
        return Difference(question, (Aspect(what, *faults),))

    def _answers(self, question: Question, first: Answer, second: Answer) -> Difference | None:
        aspects = differences(question, first, second, self.options)
        if not aspects:
            return None
        left, reasons = self.knowledge.explain(question, (first, second), aspects)
        if left or self.options.strict:
            return Difference(question, aspects if self.options.strict else left)
        return Difference(question, aspects, reasons)


def _fault(reply: Reply, question: Question) -> str:
    """What is wrong with a reply, or what it is."""
    if isinstance(reply, Fault):
        return reply.text
    try:
        return rr.rcode_text(read(reply, question).rcode)
    except FormatError as error:
        return f"is malformed: {error}"
