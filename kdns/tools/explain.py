"""What becomes of a pod's look-up: every name that is tried, the answers, where they came from, and what it costs.

`explain` puts together what the libraries do (`search`), what is answered (a source), and where that came from
(`origins`). A source is a cluster's data, of which no upstream is known, or a server that is asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from dnslib import DNSQuestion

from kdns.errors import KdnsError
from kdns.tools import search
from kdns.tools.exchange import Reply, Server, exchange
from kdns.tools.offline import Answered, Offline, Way
from kdns.tools.origins import Missing, Origin, Origins, bare
from kdns.tools.rdata import rdata_text
from kdns.tools.search import ADDRESSES, Conf, Outcome, Step, Trace, Verdict, Why
from kdns.wire import names, rr

_TRIES = 2
"""How often a server is asked a question."""


@dataclass(frozen=True, slots=True)
class Record:
    """A record of an answer. data: as in a master file."""

    name: str
    ttl: int
    type: str
    data: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a question. type, rcode: as text.

    origins: what it came from. missing: why it has no record of the type. assumed: it is not known, and what it is
    taken for is in `outcome`; `upstream` says who knows. seconds: that a server took, None for data.
    """

    type: str
    rcode: str
    records: tuple[Record, ...]
    outcome: Outcome
    origins: tuple[Origin, ...] = ()
    missing: Missing | None = None
    upstream: str = ""
    assumed: bool = False
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What is looked up.

    name: as an application gives it. types: see `search`. namespace: of the pod. zone: of the cluster, without a dot at
    its end. address: that the name is the reverse name of, "" for none.
    """

    name: str
    conf: Conf
    types: tuple[int, ...] = ADDRESSES
    namespace: str = "default"
    zone: str = "cluster.local"
    address: str = ""


@dataclass(frozen=True, slots=True)
class Tried:
    """A name that is tried. why, domain: see `search.Step`. glibc, musl: the queries of each, None if it is not tried
    there. sent: False if it is no name, so that nothing is sent."""

    name: str
    why: Why
    domain: str
    answers: tuple[Answer, ...]
    glibc: int | None
    musl: int | None
    sent: bool


@dataclass(frozen=True, slots=True)
class Advice:
    """A cheaper way. change: what to do. glibc, musl: what it costs then. note: what else changes."""

    change: str
    glibc: int
    musl: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """All there is to say.

    resolves: None if that depends on an answer that is not known. hints: what may be wrong. notes: where the libraries
    differ, and what makes them send more.
    """

    request: Request
    source: str
    tried: tuple[Tried, ...]
    glibc: Trace
    musl: Trace
    resolves: bool | None
    hints: tuple[str, ...]
    notes: tuple[str, ...]
    advice: tuple[Advice, ...]


class Source(Protocol):
    """Who answers. title: in words. guesses: what an upstream answers is not known."""

    title: str
    guesses: bool

    def ask(self, name: bytes, rtype: int, exists: bool) -> Answer:
        """The answer to a question. exists: what an upstream's answer is taken for where it is not known."""


# Sources


class Data:
    """A cluster's data, and the plugins that would answer from it."""

    guesses = True

    def __init__(self, title: str, offline: Offline, origins: Origins) -> None:
        self.title = title
        self._offline = offline
        self._origins = origins

    def ask(self, name: bytes, rtype: int, exists: bool) -> Answer:
        """What a server with this data and Corefile would answer."""
        answered = self._offline.ask(name, rtype)
        if answered.way is not None and not answered.answer:
            return self._unknown(name, rtype, answered.way, exists or _is_completed(name, answered.way.name))
        records = _records(answered)
        found = _count(records, rtype)
        outcome = Outcome(answered.rcode, len(records), found, answered.size)
        upstream, assumed = "", False
        if answered.way is not None:
            upstream = f"{bare(answered.way.name)} is {answered.way.what}"
            assumed = answered.way.what != "nobody" and rtype in ADDRESSES
            outcome = replace(outcome, records=outcome.records + 1, found=1) if assumed else outcome
        missing = None if outcome.found else self._origins.missing(names.lower(name), rtype, answered)
        return Answer(
            rr.type_text(rtype),
            rr.rcode_text(answered.rcode),
            records,
            outcome,
            self._where(answered),
            missing,
            upstream,
            assumed,
        )

    def _unknown(self, name: bytes, rtype: int, way: Way, exists: bool) -> Answer:
        """What somebody else would answer; the cluster may have had a say before."""
        missing = None
        if self._origins.covers(names.lower(name)):
            missing = self._origins.missing(names.lower(name), rtype, Answered(rr.NXDOMAIN, ""))
        outcome = Outcome(records=1, found=1) if exists else Outcome(rr.NXDOMAIN)
        return Answer(rr.type_text(rtype), "not known", (), outcome, (), missing, way.what, True)

    def _where(self, answered: Answered) -> tuple[Origin, ...]:
        if answered.plugin != "kubernetes":
            return (Origin(f"the plugin {answered.plugin}"),) if answered.answer else ()
        return self._origins.found(answered)


def _is_completed(name: bytes, left: bytes) -> bool:
    """Whether the server went through the search list (`autopath`): what leaves is the name without its search domain.

    That is the name as it is, then, which an upstream's answer is not known for.
    """
    return len(left) < len(name) and names.lower(name).startswith(left[:-1])


class Live:
    """A server that is asked. data: of the cluster, to tell where its answers come from, if there are any."""

    guesses = False

    def __init__(self, server: Server, zone: bytes, timeout: float, data: Data | None = None) -> None:
        """zone: of the cluster, lower case. timeout: seconds for each try."""
        self.title = f"server {server}"
        self._server = server
        self._zone = zone
        self._timeout = timeout
        self._data = data

    def ask(self, name: bytes, rtype: int, exists: bool) -> Answer:
        """What it answers. Raises KdnsError if it does not, or nonsense."""
        reply = self._exchange(name, rtype)
        try:
            answer = self._read(reply, name, rtype)
        except Exception as error:  # dnslib raises whatever malformed data leads to
            raise KdnsError(f"the answer of {self._server} cannot be read: {error}") from None
        if answer is None:
            raise KdnsError(f"{self._server} answers another question than {names.to_text(name)} {rr.type_text(rtype)}")
        return answer if self._data is None else _beside(answer, self._data.ask(name, rtype, exists))

    def _read(self, reply: Reply, name: bytes, rtype: int) -> Answer | None:
        """What a reply says; None if it is one to another question."""
        (question,) = reply.record.questions
        if (names.lower(_wire(question.qname)), question.qtype) != (names.lower(name), rtype):
            return None
        header = reply.record.header
        records = tuple(_from_dnslib(record) for record in reply.record.rr)
        found = _count(records, rtype)
        lame = header.rcode == rr.NOERROR and not (records or header.aa or header.ra or reply.record.ar)
        return Answer(
            rr.type_text(rtype),
            rr.rcode_text(header.rcode),
            records,
            Outcome(header.rcode, len(records), found, reply.size, lame),
            (),
            None if found else Missing(self._nothing(reply)),
            self._who(reply, name),
            seconds=reply.seconds,
        )

    def _exchange(self, name: bytes, rtype: int) -> Reply:
        question = DNSQuestion(names.labels(name), rtype)
        for _ in range(_TRIES - 1):
            with contextlib.suppress(KdnsError):
                return exchange(question, self._server, tcp=False, edns=None, dnssec=False, timeout=self._timeout)
        try:
            return exchange(question, self._server, tcp=False, edns=None, dnssec=False, timeout=self._timeout)
        except KdnsError as error:
            asked = f"{names.to_text(name)} {rr.type_text(rtype)}"
            raise KdnsError(f"{error}; it was asked {_TRIES} times for {asked}") from None

    def _nothing(self, reply: Reply) -> str:
        soa = next((record for record in reply.record.auth if record.rtype == rr.SOA), None)
        if reply.record.header.rcode not in (rr.NOERROR, rr.NXDOMAIN):
            return f"the server answers {rr.rcode_text(reply.record.header.rcode)}"
        what = "does not exist" if reply.record.header.rcode == rr.NXDOMAIN else "has no such records"
        return f"it {what}" + (
            ", says the server" if soa is None else f" in the zone {names.to_text(_wire(soa.rname))}"
        )

    def _who(self, reply: Reply, name: bytes) -> str:
        """Who knew it, as far as the flags tell."""
        own = names.is_subdomain(names.lower(name), self._zone)
        if reply.record.header.aa:
            return "the server's own data (AA)" if own else "AA: the server's own data, or handed on with the flag"
        if reply.record.header.ra:
            return "forwarded, or from its cache (RA, not AA)"
        return "neither authoritative nor recursive (no AA, no RA)"


def _beside(answer: Answer, known: Answer) -> Answer:
    """A server's answer with what the cluster's data says of it."""
    if known.assumed:
        return answer
    there, here = bool(answer.outcome.found), bool(known.outcome.found)
    if there == here:
        return replace(answer, origins=known.origins if here else (), missing=known.missing, upstream="")
    if there:
        return replace(answer, upstream=f"{answer.upstream}; the data does not have it")
    held = "; ".join(origin.text for origin in known.origins)
    text = f"the server does not have it, but the data does: {held}"
    return replace(answer, missing=Missing(text, (text,), True))


def _records(answered: Answered) -> tuple[Record, ...]:
    return tuple(
        Record(names.to_text(owner), rrset.ttl, rr.type_text(rrset.type), rdata_text(rrset.type, rdata))
        for owner, rrset in answered.answer
        for rdata in rrset.rdatas
    )


def _count(records: Sequence[Record], rtype: int) -> int:
    """How many answer a question for a type."""
    return len(records) if rtype == rr.ANY else sum(record.type == rr.type_text(rtype) for record in records)


def _from_dnslib(record: Any) -> Record:
    return Record(
        names.to_text(_wire(record.rname)), record.ttl, rr.type_text(record.rtype), str(record.rdata.toZone())
    )


def _wire(label: Any) -> bytes:
    """Raises DomainNameError."""
    return names.join(label.label)


# The explanation


class _Asking:
    """A source whose answers are remembered, as the models need them again."""

    def __init__(self, source: Source, as_it_is: bytes | None) -> None:
        self._source = source
        self._known: dict[tuple[bytes, int], Answer] = {}
        self.guesses = source.guesses
        self.as_it_is = as_it_is

    def answer(self, name: bytes, rtype: int) -> Answer:
        key = name, rtype
        if key not in self._known:
            self._known[key] = self._source.ask(name, rtype, name == self.as_it_is)
        return self._known[key]

    def outcome(self, name: bytes, rtype: int) -> Outcome:
        return self.answer(name, rtype).outcome


def explain(request: Request, source: Source) -> Explanation:
    """Look a name up as glibc and musl do.

    What an upstream would answer is not known to data. Then the name itself is taken to exist if it has a dot and
    nothing in the cluster is near to it, and a name with a search domain not to. Raises KdnsError if a server does not
    answer.
    """
    wire = search.wire_name(request.name)
    asking = _Asking(source, wire if wire is not None and len(names.labels(wire)) > 1 else None)
    meant = _meant(request, asking)
    if meant or _is_near(request, asking):
        asking.as_it_is = None
    glibc = search.glibc(request.name, request.conf, asking.outcome, request.types)
    musl = search.musl(request.name, request.conf, asking.outcome, request.types)
    tried = _merged(request, asking, glibc, musl)
    resolves = _resolves(request, asking, glibc, musl)
    return Explanation(
        request,
        source.title,
        tried,
        glibc,
        musl,
        resolves,
        () if resolves is not False else (*meant, *_hints(request, tried)),
        (*_differences(request, glibc, musl), *_costs(request, glibc, musl)),
        _advice(request, asking, glibc, musl),
    )


def _meant(request: Request, asking: _Asking) -> tuple[str, ...]:
    """What is wrong with the full name of a Service whose zone is another one than the cluster's."""
    labels = request.name.removesuffix(".").split(".")
    own = f".{request.name.removesuffix('.')}".lower().endswith(f".{request.zone}")
    if own or "svc" not in labels[2:] or not asking.guesses:
        return ()
    at = labels.index("svc", 2)
    text = f"{'.'.join(labels[: at + 1])}.{request.zone}"
    wire = search.wire_name(text)
    if at == len(labels) - 1 or wire is None or not asking.outcome(wire, request.types[0]).found:
        return ()
    return (f"the cluster's zone is {request.zone}, not {'.'.join(labels[at + 1 :])}: {text}",)


def _is_near(request: Request, asking: _Asking) -> bool:
    """True if something in the cluster has the name with a search domain, or explains why nothing has."""
    for domain in () if request.name.endswith(".") else request.conf.search:
        wire = search.wire_name(f"{request.name}.{domain}")
        if wire is None or not asking.guesses:
            continue
        answer = asking.answer(wire, request.types[0])
        if answer.missing is not None and answer.missing.strong:
            return True
        if answer.rcode == rr.rcode_text(rr.NOERROR) and not answer.assumed:
            return True
    return False


def _merged(request: Request, asking: _Asking, glibc: Trace, musl: Trace) -> tuple[Tried, ...]:
    """The steps of both libraries, each once, in their order."""
    places: dict[str, tuple[Step | None, Step | None]] = {}
    for step in glibc.steps:
        places.setdefault(step.name, (step, None))
    for step in musl.steps:
        places[step.name] = (places.get(step.name, (None, None))[0], step)
    found = []
    for name, (one, other) in places.items():
        first = one or other
        assert first is not None
        wire = first.wire
        answers = () if wire is None else tuple(asking.answer(wire, rtype) for rtype in request.types)
        counts = [None if each is None else each.queries for each in (one, other)]
        found.append(Tried(name, first.why, first.domain, answers, counts[0], counts[1], wire is not None))
    return tuple(found)


def _resolves(request: Request, asking: _Asking, *traces: Trace) -> bool | None:
    if not all(trace.verdict is Verdict.FOUND for trace in traces):
        return False
    for trace in traces:
        assert trace.found is not None
        if any(asking.answer(trace.found, rtype).assumed for rtype in request.types):
            return None
    return True


def _hints(request: Request, tried: Sequence[Tried]) -> tuple[str, ...]:
    """What may be wrong with a name that does not resolve."""
    found: dict[str, None] = {}
    for one in tried:
        given = (answer.missing.hints for answer in one.answers if answer.missing is not None and answer.missing.hints)
        found |= dict.fromkeys(next(given, ()))  # for A and AAAA it is the same, or the first says more
    if not request.name.isascii():
        with contextlib.suppress(UnicodeError):
            found[f"DNS has this name as {request.name.encode('idna').decode()}"] = None
    return tuple(found)


def _differences(request: Request, glibc: Trace, musl: Trace) -> list[str]:
    """Why one library finds what the other does not, or goes another way."""
    conf, found = request.conf, []
    here, there = glibc.verdict is Verdict.FOUND, musl.verdict is Verdict.FOUND
    last = musl.steps[-1] if musl.steps else None
    addresses = set(request.types) <= set(ADDRESSES)
    if not glibc.steps and not musl.queries:
        return []
    if not glibc.steps:
        found.append("glibc looks up names of letters, digits, hyphens, underscores and dots only")
    elif not addresses and glibc.steps[0].why is Why.SEARCH:
        found.append("musl has no search list for other types than addresses")
    elif here and not there and last is not None and last.verdict is Verdict.EMPTY:
        found.append(f"musl stops at {last.name}, which exists without addresses; glibc goes on")
    elif here and not there and last is not None and last.verdict is Verdict.AGAIN:
        found.append(f"musl fails if a server does (after {musl.wait:g} s); glibc goes on")
    elif here and not there and last is not None and last.why is Why.FIRST:
        found.append(f"musl tries a name with {_dots(request.name)} only as it is, as ndots is {conf.ndots}")
    elif addresses and len(" ".join(("search", *conf.search))) > search.MUSL_LINE:
        found.append(f"musl passes over a search line of more than {search.MUSL_LINE} characters")
    return found + _limits(conf)


def _limits(conf: Conf) -> list[str]:
    """What of a resolv.conf does not work everywhere."""
    found = []
    size = len(conf.search), len(" ".join(conf.search))
    if any(map(int.__gt__, size, search.KUBELET_LIMITS)):
        found.append(
            "a kubelet takes no more than {} search domains, or {} characters of them".format(*search.KUBELET_LIMITS)
        )
    elif any(map(int.__gt__, size, search.OLD_LIMITS)):
        text = (
            "glibc before 2.26 and kubelets before 1.26 take no more than {} search domains, or {} characters of them"
        )
        found.append(text.format(*search.OLD_LIMITS))
    if "." in conf.search:
        found.append('musl before 1.2.4 finds nothing with "." in the search list')
    if "strict-error" in conf.options:
        found.append("the option strict-error is not taken into account: with it glibc asks again if one answer fails")
    return found


def _dots(name: str) -> str:
    count = name.count(".")
    return f"{count} dot" if count == 1 else f"{count} dots"


def _costs(request: Request, glibc: Trace, musl: Trace) -> list[str]:
    """What makes the libraries send more than one query for each name and type."""
    found = []
    if glibc.rounds > 1:
        found.append(
            f"glibc asks everything {glibc.rounds} times: it has room for some 24 addresses at first, and begins anew"
            " with twice the room until they fit"
        )
    if any(step.tcp for trace in (glibc, musl) for step in trace.steps) and "use-vc" not in request.conf.options:
        found.append(
            "an answer of more than 512 bytes is asked for again over TCP; musl before 1.2.4 takes a part of it"
        )
    if musl.wait:
        found.append(f"musl asks again and again for {musl.wait:g} s where a server fails")
    if any(step.queries > 2 * len(request.types) for step in glibc.steps):
        found.append("glibc asks again where a server fails, as often as `attempts` says")
    if request.conf.servers > 1:
        found.append(f"musl asks all {request.conf.servers} nameservers at once, glibc the first")
    return found


# Advice


def _advice(request: Request, asking: _Asking, glibc: Trace, musl: Trace) -> tuple[Advice, ...]:
    """Ways to the same name that cost less in one library, and not more in the other; cheapest first."""
    target = glibc.found or musl.found
    if target is None:
        return ()
    name, conf = request.name, request.conf
    found = []

    def consider(change: str, name: str, conf: Conf, note: str = "") -> None:
        one = search.glibc(name, conf, asking.outcome, request.types)
        other = search.musl(name, conf, asking.outcome, request.types)
        if not all(
            trace.found is not None and names.lower(trace.found) == names.lower(target) for trace in (one, other)
        ):
            return
        before, after = _cost(glibc, musl), _cost(one, other)
        if after != before and all(now <= then for now, then in zip(after, before, strict=True)):
            found.append(Advice(change, one.queries, other.queries, note))

    full = names.to_text(target)
    for short in _shorter(target, conf):
        if short != name:
            consider(f"the shorter name {short}", short, conf)
            break
    consider(f"the full name, with a dot at its end: {full}", full, conf)
    dots = name.count(".")
    if 0 < dots < conf.ndots and not name.endswith("."):
        lost = next((f", such as {example}," for example in _EXAMPLES if example.count(".") == dots), "")
        note = f"musl then looks up names with {_dots(name)} or more{lost} only as they are"
        consider(f"ndots:{dots} in the pod's dnsConfig", name, replace(conf, ndots=dots), note)
    if any(step.tcp for step in glibc.steps):
        options = conf.options | {"edns0"}
        consider("edns0 in the pod's dnsConfig (glibc)", name, replace(conf, options=options))
    found += _autopath(request, glibc, musl)
    return tuple(sorted(found, key=lambda each: (each.glibc, each.musl)))


_EXAMPLES = ("web.shop", "web.shop.svc", "db-0.db.shop.svc")
"""Names of Services that pods use, by their dots."""


def _cost(glibc: Trace, musl: Trace) -> tuple[float, float]:
    """For comparing; what does not find it costs more than what does."""
    return tuple(trace.queries if trace.found else float("inf") for trace in (glibc, musl))  # type: ignore[return-value]


def _shorter(target: bytes, conf: Conf) -> list[str]:
    """What is left of a name before each search domain that it ends in, the shortest first."""
    found = []
    for domain in conf.search:
        wire = search.wire_name(domain)
        if wire is not None and len(wire) < len(target) and names.is_subdomain(names.lower(target), names.lower(wire)):
            found.append(bare(target[: len(target) - len(wire)] + names.ROOT))
    return sorted(found, key=len)


def _autopath(request: Request, glibc: Trace, musl: Trace) -> list[Advice]:
    """A server that walks the search list itself answers at the first name."""
    steps = glibc.steps
    if len(steps) < 2 or steps[0].why is not Why.SEARCH or not set(request.types) <= set(ADDRESSES):
        return []
    queries = len(request.types)
    note = "`autopath @kubernetes`, with `pods verified` of kubernetes, or with `node` on each node"
    return [Advice("autopath in the server", queries, queries * request.conf.servers, note)]
