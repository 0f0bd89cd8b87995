"""What the C library of a pod does with a name: what it asks for, in which order, when it stops, and what that costs.

No I/O: the answers come from a function. Modelled after the sources of

* glibc 2.42: resolv/res_query.c (`__res_context_search`), resolv/res_send.c, resolv/nss_dns/dns-host.c and
  nss/getaddrinfo.c. What is modelled is the same from 2.26 on; before that, the first 6 search domains counted, and of
  their line 256 characters.
* musl 1.2.5: src/network/lookup_name.c (`name_from_dns_search`), res_msend.c, res_query.c and resolvconf.c. From 1.1.13
  on there is a search list. Before 1.2.4 truncated answers are taken as they are; a search domain that makes a name too
  long ends the look-up, and with the domain "." it asks for something that no server understands, and fails.

Both look into the pod's /etc/hosts first, and ask nothing for what is there: localhost, and the pod's own name.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from kdns.errors import DomainNameError
from kdns.wire import names, rr

ADDRESSES = (rr.A, rr.AAAA)
"""What getaddrinfo asks for unless an application wants one family; each of them alone for one that does."""
MAX_NDOTS = 15
KUBELET_LIMITS, OLD_LIMITS = (32, 2048), (6, 256)
"""Domains, and characters of all of them, that a kubelet writes into a search list (from Kubernetes 1.26 on), and those
of older kubelets and of glibc before 2.26."""
MUSL_LINE = 254
"""Characters of a line of resolv.conf beyond which musl passes it over."""

_ONE_BY_ONE = frozenset(("single-request", "single-request-reopen"))
"""With these options glibc asks for AAAA when it has the answer for A."""
_UDP, _EDNS0, _OPT = 512, 1200, 11
"""Bytes that an answer may have over UDP; with glibc's `edns0`; and what the OPT record takes of them."""
_MAXDNAME = 1025
_ROOM, _TUPLE = 1024, 40
"""Bytes that glibc's getaddrinfo begins with for the result, and those that an address takes."""
_ATTEMPTS, _MUSL_ATTEMPTS, _MUSL_TIMEOUT = 5, 10, 60
_HOST = re.compile(rb"[0-9A-Za-z_-]+")
_LOOKS_NO_FURTHER = frozenset((rr.SERVFAIL, rr.NOTIMP, rr.REFUSED))
"""With these rcodes glibc goes on to the next nameserver, and asks all of them again."""


@dataclass(frozen=True, slots=True)
class Conf:
    """What of a resolv.conf(5) counts.

    search: domains, as they are written. nameservers: addresses; none is one. timeout: seconds. options: flags that
    only glibc has. Modelled are edns0, use-vc, no-aaaa, no-tld-query, single-request and single-request-reopen, not
    strict-error; others change nothing here.
    """

    search: tuple[str, ...] = ()
    ndots: int = 1
    nameservers: tuple[str, ...] = ()
    attempts: int = 2
    timeout: int = 5
    options: frozenset[str] = frozenset()

    @property
    def servers(self) -> int:
        """How many are asked: of more than three, the first three."""
        return min(max(1, len(self.nameservers)), 3)


def read_conf(text: str) -> Conf:
    """Read a resolv.conf. What is unknown in it is passed over, as the libraries do; the last `search` counts."""
    conf = Conf()
    for line in text.splitlines():
        word, *values = line.split() or [""]
        if word in ("search", "domain") and values:
            conf = replace(conf, search=tuple(values if word == "search" else values[:1]))
        elif word == "nameserver" and values:
            conf = replace(conf, nameservers=(*conf.nameservers, values[0]))
        elif word == "options":
            conf = _with_options(conf, values)
    return conf


def _with_options(conf: Conf, values: Iterable[str]) -> Conf:
    flags = set(conf.options)
    for value in values:
        name, colon, number = value.partition(":")
        if colon and name in ("ndots", "attempts", "timeout") and number.isascii() and number.isdigit():
            conf = replace(conf, **{name: int(number[:9])})  # type: ignore[arg-type]
        elif value.startswith("-"):
            flags.discard(value[1:])
        else:
            flags.add(value)
    flags |= {"no-tld-query"} if "no_tld_query" in flags else set()
    return replace(conf, options=frozenset(flags))


def pod_conf(namespace: str, zone: str, more: Iterable[str] = (), ndots: int = 5) -> Conf:
    """What a kubelet writes for a pod of `dnsPolicy: ClusterFirst`.

    zone: of the cluster, without a dot at its end. more: the node's own search domains and those of the pod's
    `dnsConfig`; each counts once.
    """
    own = (f"{namespace}.svc.{zone}", f"svc.{zone}", zone)
    return Conf(tuple(dict.fromkeys((*own, *more))), ndots)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to one question, as far as a resolver minds.

    records: in the answer section, aliases among them. found: of the type that was asked for. size: bytes of the whole
    message without an OPT record. lame: nothing in it, not authoritative, and no recursion offered.
    """

    rcode: int = rr.NOERROR
    records: int = 0
    found: int = 0
    size: int = 0
    lame: bool = False


Ask = Callable[[bytes, int], Outcome]
"""The answer to a question for a name (in the case in which it is asked) and a type."""


class Why(Enum):
    """Why a name is asked for. dots: of the name as it is given."""

    FULL = "a dot at its end: it is the whole name"
    FIRST = "as it is, first: it has as many dots as ndots"
    SEARCH = "with a search domain"
    LAST = "as it is, after the search list"
    ALONE = "as it is: there is no search list"


class Verdict(Enum):
    """What a step, or the whole look-up, comes to."""

    FOUND = "found"
    EMPTY = "exists without such records"
    ABSENT = "does not exist"
    AGAIN = "temporary failure"
    FAILED = "refused"
    UNASKED = "cannot be asked for"


@dataclass(frozen=True, slots=True)
class Step:
    """A name that is tried.

    name: as text, with its last dot. wire: None if it is no name, so that nothing is sent. why, domain: for SEARCH the
    domain as it is written. queries: that are sent for it, and tcp: those of them over TCP. useful: of the queries,
    those whose answer brought records.
    """

    name: str
    wire: bytes | None
    why: Why
    domain: str
    queries: int
    tcp: int
    useful: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Trace:
    """A look-up.

    rounds: how often all steps are gone through: glibc begins anew, with twice the room, when an answer has more
    addresses than it has room for. wait: seconds that pass although every answer comes at once.
    """

    steps: tuple[Step, ...]
    verdict: Verdict
    rounds: int = 1
    wait: float = 0.0

    @property
    def queries(self) -> int:
        """That are sent in all."""
        return self.rounds * sum(step.queries for step in self.steps)

    @property
    def wasted(self) -> int:
        """Those whose answers brought nothing that was used."""
        return self.queries - sum(step.useful for step in self.steps)

    @property
    def found(self) -> bytes | None:
        """The name whose records the look-up gives; None if it gives none."""
        return self.steps[-1].wire if self.verdict is Verdict.FOUND else None


def is_address(name: str) -> bool:
    """True for what is an address to getaddrinfo, for which nothing is asked; old forms such as `127.1` are, too."""
    for family, text in ((socket.AF_INET6, name.partition("%")[0]), (socket.AF_INET, name)):
        try:
            socket.inet_pton(family, text)
            return True
        except (OSError, ValueError):
            continue
    try:
        socket.inet_aton(name)
    except (OSError, ValueError):
        return False
    return not any(map(str.isspace, name))


def wire_name(text: str) -> bytes | None:
    """A name as it is sent; None for what is no name (RFC 1035 2.3.4): then nothing is."""
    try:
        return names.from_text(text) if text else None
    except (DomainNameError, UnicodeEncodeError):
        return None


# glibc


def glibc(name: str, conf: Conf, ask: Ask, types: Sequence[int] = ADDRESSES) -> Trace:
    """getaddrinfo for A and AAAA (or one of them, for one address family), res_search for another type."""
    room = _ROOM if tuple(types) == ADDRESSES else 0
    types = (rr.A,) if "no-aaaa" in conf.options and rr.A in types else tuple(types)
    if set(types) <= set(ADDRESSES) and not _is_host(name):
        return Trace((), Verdict.UNASKED)
    steps: list[Step] = []
    dots, full = name.count("."), name.endswith(".")
    empty = failed = False
    verdict = Verdict.ABSENT

    def attempt(text: str, why: Why, domain: str = "") -> bool:
        nonlocal verdict
        step = _glibc_step(text, why, domain, conf, ask, types)
        steps.append(step)
        verdict = step.verdict
        return verdict is Verdict.FOUND

    as_it_is = full or dots >= min(conf.ndots, MAX_NDOTS)
    if as_it_is and (attempt(name, Why.FULL if full else Why.FIRST) or full):
        return _glibc_trace(steps, verdict, ask, types, room)
    first = verdict if steps else None
    root = False
    for domain in () if full else conf.search:
        root |= domain == "."
        if attempt(_joined(name, domain), Why.SEARCH, domain):
            return _glibc_trace(steps, verdict, ask, types, room)
        empty |= verdict is Verdict.EMPTY
        failed |= verdict is Verdict.AGAIN
        if verdict in (Verdict.FAILED, Verdict.UNASKED):
            break
    unwanted = "no-tld-query" in conf.options and not dots and bool(conf.search)
    at_last = first is None and not root and not unwanted
    if at_last and attempt(name, Why.LAST if conf.search else Why.ALONE):
        return _glibc_trace(steps, verdict, ask, types, room)
    if first is not None:
        verdict = first
    elif empty:
        verdict = Verdict.EMPTY
    elif failed:
        verdict = Verdict.AGAIN
    return _glibc_trace(steps, verdict, ask, types, room)


def _is_host(name: str) -> bool:
    """`res_hnok`: nothing is asked for names with other characters, or that begin with a hyphen."""
    wire = wire_name(name)
    return (
        wire is not None
        and name.isascii()
        and name.isprintable()
        and not name.startswith("-")
        and all(_HOST.fullmatch(label) for label in names.labels(wire))
    )


def _joined(name: str, domain: str) -> str:
    """A name with a search domain behind it; "." is the root."""
    return f"{name}.{domain.removeprefix('.')}"


def _glibc_step(text: str, why: Why, domain: str, conf: Conf, ask: Ask, types: Sequence[int]) -> Step:
    wire = wire_name(text) if len(text) < _MAXDNAME else None
    if wire is None:
        return Step(_shown(text), None, why, domain, 0, 0, 0, Verdict.UNASKED)
    outcomes = [ask(wire, rtype) for rtype in types]
    bad = [_is_bad(outcome) for outcome in outcomes]
    truncated = [_is_truncated(outcome, conf) for outcome in outcomes]
    if "use-vc" in conf.options:
        sent = tcp = len(types)
        bad = [False] * len(types)
    else:
        sent, tcp = len(types), len(types) if any(truncated) else 0
        if conf.options & _ONE_BY_ONE and (bad[0] or truncated[0]):
            sent, bad = 1, [bad[0]] * len(types)
        if all(bad):
            sent, tcp = sent * min(conf.attempts, _ATTEMPTS) * conf.servers, 0
        sent += tcp
    good = [outcome for outcome, is_bad in zip(outcomes, bad, strict=True) if not is_bad]
    verdict = _glibc_verdict(good) if good else _AT_LAST.get(outcomes[0].rcode, Verdict.FAILED)
    useful = sum(outcome.found > 0 for outcome in good) if verdict is Verdict.FOUND else 0
    return Step(_shown(text), wire, why, domain, sent, tcp, useful, verdict)


_AT_LAST = {rr.SERVFAIL: Verdict.AGAIN}
"""What no nameserver answers otherwise: after SERVFAIL the search goes on."""


def _is_bad(outcome: Outcome) -> bool:
    return outcome.rcode in _LOOKS_NO_FURTHER or outcome.lame


def _is_truncated(outcome: Outcome, conf: Conf) -> bool:
    if "edns0" in conf.options:
        return outcome.size + _OPT > _EDNS0
    return outcome.size > _UDP


def _glibc_verdict(outcomes: Sequence[Outcome]) -> Verdict:
    """`__res_context_query`: any records count, aliases that lead nowhere too."""
    if any(outcome.rcode == rr.NOERROR and outcome.records for outcome in outcomes):
        return Verdict.FOUND
    rcode = next((outcome.rcode for outcome in outcomes if outcome.rcode != rr.NOERROR), rr.NOERROR)
    return {rr.NXDOMAIN: Verdict.ABSENT, rr.NOERROR: Verdict.EMPTY, rr.SERVFAIL: Verdict.AGAIN}.get(
        rcode, Verdict.FAILED
    )


def _glibc_trace(steps: Sequence[Step], verdict: Verdict, ask: Ask, types: Sequence[int], room: int) -> Trace:
    """The whole look-up: an answer without an address ends it too, and one with many makes it begin anew.

    room: bytes for the result at the beginning, 0 where that does not matter.
    """
    if verdict is not Verdict.FOUND:
        return Trace(tuple(steps), verdict)
    wire = steps[-1].wire
    assert wire is not None
    outcomes = [outcome for outcome in (ask(wire, rtype) for rtype in types) if outcome.rcode == rr.NOERROR]
    if not any(outcome.found for outcome in outcomes):
        last = replace(steps[-1], verdict=Verdict.EMPTY, useful=0)
        return Trace((*steps[:-1], last), Verdict.EMPTY)
    rounds = 1
    needed = sum(len(wire) + _TUPLE * outcome.found for outcome in outcomes if outcome.found)
    while 0 < room < needed:
        rounds, room = rounds + 1, room * 2
    return Trace(tuple(steps), verdict, rounds)


# musl


def musl(
    name: str,
    conf: Conf,
    ask: Ask,
    types: Sequence[int] = ADDRESSES,
    *,
    tcp: bool = True,
) -> Trace:
    """getaddrinfo for A and AAAA (or one of them, for one address family), res_query for another type.

    res_search is the same as res_query in musl: there is no search list for other types. tcp: it asks again over TCP
    for truncated answers (1.2.4 and later).
    """
    bare = name.removesuffix(".")
    if not set(types) <= set(ADDRESSES):
        step, wait = _musl_step(bare, Why.FULL if bare != name else Why.ALONE, "", conf, ask, types, with_tcp=tcp)
        return Trace((step,), _asked(step.verdict), wait=wait)
    steps: list[Step] = []
    if not bare or bare.endswith(".") or len(name.encode(errors="replace")) > 254:
        return Trace((), Verdict.UNASKED)
    few = name.count(".") < min(conf.ndots, MAX_NDOTS)
    search = _musl_search(conf) if few and bare == name else ()
    wait = 0.0
    for domain in search:
        text = f"{bare}.{domain}"
        if len(text) > 254:
            continue
        step, pause = _musl_step(text, Why.SEARCH, domain, conf, ask, types, with_tcp=tcp)
        steps.append(step)
        wait += pause
        if step.verdict not in (Verdict.ABSENT, Verdict.UNASKED):
            return Trace(tuple(steps), step.verdict, wait=wait)
    why = Why.FULL if bare != name else Why.FIRST if not few else Why.LAST if search else Why.ALONE
    step, pause = _musl_step(bare, why, "", conf, ask, types, with_tcp=tcp)
    return Trace((*steps, step), _asked(step.verdict), wait=wait + pause)


def _asked(verdict: Verdict) -> Verdict:
    return Verdict.ABSENT if verdict is Verdict.UNASKED else verdict


def _musl_search(conf: Conf) -> tuple[str, ...]:
    """The search list, unless its line is too long for musl."""
    return conf.search if len("search " + " ".join(conf.search)) <= MUSL_LINE else ()


def _musl_step(
    text: str, why: Why, domain: str, conf: Conf, ask: Ask, types: Sequence[int], *, with_tcp: bool
) -> tuple[Step, float]:
    """A step, and the seconds that pass in it."""
    wire = _musl_name(text)
    if wire is None:
        return Step(_shown(text), None, why, domain, 0, 0, 0, Verdict.UNASKED), 0.0
    outcomes = [ask(wire, rtype) for rtype in types]
    failing = sum(outcome.rcode == rr.SERVFAIL for outcome in outcomes)
    silent = sum(outcome.rcode not in (rr.NOERROR, rr.NXDOMAIN) for outcome in outcomes)
    queries, wait = len(types) * conf.servers, 0.0
    if silent:
        timeout = min(conf.timeout, _MUSL_TIMEOUT) * 1000
        interval = max(1, timeout // max(1, min(conf.attempts, _MUSL_ATTEMPTS)))
        turns = max(1, timeout // interval)
        retries = 2 * len(types) if failing else 0
        queries += retries + (turns - 1) * (silent * conf.servers + retries)
        wait = timeout / 1000
    tcp = sum(outcome.size > _UDP for outcome in outcomes) if with_tcp else 0
    verdict = _musl_verdict(outcomes)
    useful = sum(outcome.found > 0 for outcome in outcomes) if verdict is Verdict.FOUND else 0
    return Step(_shown(text), wire, why, domain, queries + tcp, tcp, useful, verdict), wait


def _musl_name(text: str) -> bytes | None:
    r"""A name as musl's res_mkquery makes it: `\` is a character like any other, and 253 of them are the most."""
    bare = text.removesuffix(".")
    try:
        data = bare.encode()
        return names.join(data.split(b".") if data else ()) if len(data) <= 253 else None
    except (DomainNameError, UnicodeEncodeError):
        return None


def _musl_verdict(outcomes: Sequence[Outcome]) -> Verdict:
    """`name_from_dns`: one NXDOMAIN denies the name, one failure fails it, whatever the other answer is."""
    for outcome in outcomes:
        if outcome.rcode == rr.NXDOMAIN:
            return Verdict.ABSENT
        if outcome.rcode != rr.NOERROR:
            return Verdict.AGAIN
    return Verdict.FOUND if any(outcome.found for outcome in outcomes) else Verdict.EMPTY


def _shown(text: str) -> str:
    return text if text.endswith(".") else f"{text}."
