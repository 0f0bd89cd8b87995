"""`kdns.tools.search` against the real things: glibc and musl in a network namespace, and a server that counts.

The server is played: it answers as a table says, and writes down every query. What the model says a look-up asks, in
which order, over which protocol, and what comes of it, has to be what the libraries do.
"""

from __future__ import annotations

import bisect
import contextlib
import selectors
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kdns.tools import search
from kdns.tools.search import ADDRESSES, Conf, Outcome, Trace, Verdict
from kdns.wire import names, rr
from tests.conftest import require
from tests.support import procs, stubs
from tests.support.netns import Netns

ZONE = "cluster.local"
POD = search.pod_conf("shop", ZONE)
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)
SERVER = "127.0.0.1"


@dataclass(frozen=True)
class Reply:
    """What the server answers to a question. count: records of the type. alias: a CNAME before them, or alone."""

    rcode: int = NOERROR
    count: int = 0
    alias: bool = False
    authoritative: bool = True


GONE = Reply(NXDOMAIN)
Answers = dict[str, dict[str, Reply]]
"""Replies by name (with its last dot) and type; what is not in there does not exist."""


def message(query: dns.message.Message, reply: Reply) -> dns.message.Message:
    """The reply as a message."""
    question = query.question[0]
    response = dns.message.make_response(query)
    response.set_rcode(dns.rcode.Rcode(reply.rcode))
    if reply.authoritative:
        response.flags |= dns.flags.AA
    owner = question.name
    if reply.alias:
        alias = dns.rrset.from_text(owner, 5, "IN", "CNAME", "target.example.")
        response.answer.append(alias)
        owner = alias[0].target
    if reply.count:
        rdtype = dns.rdatatype.to_text(question.rdtype)
        data = {
            "A": [f"10.{n >> 8}.{n & 255}.1" for n in range(reply.count)],
            "AAAA": [f"fd00::{n + 1:x}" for n in range(reply.count)],
            "SRV": [f"0 1 {n + 1} target.example." for n in range(reply.count)],
            "PTR": [f"n{n}.example." for n in range(reply.count)],
        }[rdtype]
        response.answer.append(dns.rrset.from_text(owner, 5, "IN", rdtype, *data))
    return response


@dataclass
class Played:
    """The server. asked: (name, type, protocol) of every query since it was emptied."""

    answers: Answers = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    def reply(self, name: str, rdtype: str) -> Reply:
        return self.answers.get(name.lower(), {}).get(rdtype, GONE if name.lower() not in self.answers else Reply())

    def answer(self, data: bytes, proto: str) -> bytes:
        query = dns.message.from_wire(data)
        name, rdtype = query.question[0].name.to_text(), dns.rdatatype.to_text(query.question[0].rdtype)
        self.asked.append((name, rdtype, proto))
        response = message(query, self.reply(name, rdtype))
        wire = response.to_wire()
        limit = query.payload if query.edns >= 0 else 512
        if proto == "udp" and len(wire) > limit:
            response.flags |= dns.flags.TC
            records = [dns.rrset.from_rdata(rrset.name, 5, rdata) for rrset in response.answer for rdata in rrset]

            def cut(count: int) -> bytes:
                response.answer = records[:count]
                return response.to_wire()

            most = bisect.bisect_right(range(len(records)), limit, key=lambda count: len(cut(count))) - 1
            wire = cut(most)
        return wire

    def outcome(self, wire: bytes, rtype: int) -> Outcome:
        """The same answer, for the model."""
        query = dns.message.make_query(names.to_text(wire), dns.rdatatype.RdataType(rtype))
        reply = self.reply(query.question[0].name.to_text(), rr.type_text(rtype))
        response = message(query, reply)
        return Outcome(
            reply.rcode,
            sum(len(rrset) for rrset in response.answer),
            reply.count,
            len(response.to_wire()),
            reply == Reply(authoritative=False),
        )

    def serve(self, udp: socket.socket, tcp: socket.socket, end: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            for sock in (udp, tcp, end):
                selector.register(sock, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is end:
                        return
                    if key.fileobj is udp:
                        data, client = udp.recvfrom(4096)
                        udp.sendto(self.answer(data, "udp"), client)
                    elif key.fileobj is tcp:
                        with tcp.accept()[0] as sock, sock.makefile("rb") as stream:
                            sock.settimeout(5)
                            while size := stream.read(2):
                                wire = self.answer(stream.read(int.from_bytes(size, "big")), "tcp")
                                sock.sendall(len(wire).to_bytes(2, "big") + wire)


@dataclass(frozen=True)
class Place:
    """A pod, its server and both libraries in it."""

    pod: Netns
    server: Played
    glibc: stubs.Program
    musl: stubs.Program
    tcp: bool

    def configure(self, conf: Conf, options: str = "") -> Conf:
        """Write a resolv.conf; what the model reads in it."""
        lines = [f"nameserver {address}" for address in conf.nameservers or (SERVER,)]
        if conf.search:
            lines.append(f"search {' '.join(conf.search)}")
        lines.append(f"options ndots:{conf.ndots} attempts:{conf.attempts} timeout:{conf.timeout} {options}")
        lines.append(f"# {next(_numbers)}")  # so that glibc sees another file
        text = "\n".join(lines) + "\n"
        self.pod.write_resolv_conf(text)
        return search.read_conf(text)

    def ask(self, program: stubs.Program, name: str, verb: str = "addresses") -> tuple[str, list[tuple[str, str, str]]]:
        self.server.asked.clear()
        line = program.ask(verb, name)
        return line, sorted(self.server.asked)


_numbers = iter(range(1 << 30))


def musl_version() -> tuple[int, int, int]:
    """Of the musl that is installed, by what its dynamic loader says of itself."""
    (loader,) = Path("/lib").glob("ld-musl-*.so.1")
    text = subprocess.run([loader], capture_output=True, text=True).stderr
    major, minor, patch = text.split("Version ")[1].split()[0].split(".")
    return int(major), int(minor), int(patch)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    require("ip", "cc", "musl-gcc")
    folder = tmp_path_factory.mktemp("search")
    source = stubs.SOURCES / "search.c"
    for compiler, options in (("cc", ["-lresolv"]), ("musl-gcc", ["-static"])):
        subprocess.run([compiler, "-Wall", "-Werror", "-o", folder / compiler, source, *options], check=True)
    with contextlib.ExitStack() as stack:
        pod = stack.enter_context(Netns("search", "nameserver 127.0.0.1\n"))
        played = Played()
        udp, tcp = (pod.socket(socket.AF_INET, kind) for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM))
        end, ended = socket.socketpair()
        for sock in (udp, tcp, end, ended):
            stack.enter_context(sock)
        udp.bind(("", 53))
        tcp.bind(("", 53))
        tcp.listen(16)
        thread = threading.Thread(target=played.serve, args=(udp, tcp, ended))
        thread.start()
        stack.callback(thread.join)
        stack.callback(end.send, b".")
        glibc, musl = (stack.enter_context(stubs.Program(pod, [str(folder / name)])) for name in ("cc", "musl-gcc"))
        yield Place(pod, played, glibc, musl, musl_version() >= (1, 2, 4))


def asked(trace: Trace, types: tuple[int, ...] = ADDRESSES) -> set[tuple[str, str]]:
    """Name and type of what a trace asks for, each once."""
    return {(names.to_text(step.wire), rr.type_text(rtype)) for step in trace.steps if step.wire for rtype in types}


def check(place: Place, name: str, conf: Conf, *, options: str = "", verb: str = "addresses") -> tuple[Trace, Trace]:
    """Both models say what both libraries do."""
    conf = place.configure(conf, options)
    types = {"addresses": ADDRESSES, "A": (rr.A,), "AAAA": (rr.AAAA,), "SRV": (rr.SRV,), "PTR": (rr.PTR,)}[verb]
    traces = (
        search.glibc(name, conf, place.server.outcome, types),
        search.musl(name, conf, place.server.outcome, types, tcp=place.tcp),
    )
    for program, trace in zip((place.glibc, place.musl), traces, strict=True):
        line, queries = place.ask(program, name, verb)
        where = (program.command, name, verb, conf, trace, queries)
        assert len(queries) == trace.queries, where
        assert sum(proto == "tcp" for _, _, proto in queries) == trace.rounds * sum(step.tcp for step in trace.steps), (
            where
        )
        assert {query[:2] for query in queries} == asked(trace, types), where
        assert line.startswith("!") == (trace.verdict is not Verdict.FOUND), (line, *where)
    return traces


def v4(count: int = 1) -> dict[str, Reply]:
    return {"A": Reply(count=count)}


def both(count: int = 1) -> dict[str, Reply]:
    return {"A": Reply(count=count), "AAAA": Reply(count=count)}


CLUSTER: Answers = {
    f"web.shop.svc.{ZONE}.": both(),
    f"web.other.svc.{ZONE}.": v4(),
    f"six.shop.svc.{ZONE}.": {"AAAA": Reply(count=1)},
    f"db-0.db.shop.svc.{ZONE}.": v4(),
    f"alias.shop.svc.{ZONE}.": {"A": Reply(count=2, alias=True), "AAAA": Reply(alias=True)},
    f"nowhere.shop.svc.{ZONE}.": {"A": Reply(alias=True), "AAAA": Reply(alias=True)},
    f"shop.svc.{ZONE}.": {},
    f"_http._tcp.web.shop.svc.{ZONE}.": {"SRV": Reply(count=2)},
    "10.0.0.10.in-addr.arpa.": {"PTR": Reply(count=1)},
    "www.example.com.": both(),
    "shop.": both(),
    "a.b.c.d.e.example.": both(),
    ".": {},
}


@pytest.mark.parametrize(
    ("name", "ndots", "queries", "verdicts"),
    [
        ("web", 5, (2, 2), (Verdict.FOUND, Verdict.FOUND)),
        ("web.other", 5, (4, 4), (Verdict.FOUND, Verdict.FOUND)),
        ("web.other.svc", 5, (6, 6), (Verdict.FOUND, Verdict.FOUND)),
        (f"web.shop.svc.{ZONE}", 5, (8, 8), (Verdict.FOUND, Verdict.FOUND)),
        (f"web.shop.svc.{ZONE}.", 5, (2, 2), (Verdict.FOUND, Verdict.FOUND)),
        (f"web.shop.svc.{ZONE}", 4, (2, 2), (Verdict.FOUND, Verdict.FOUND)),
        ("six", 5, (2, 2), (Verdict.FOUND, Verdict.FOUND)),
        ("WEB", 5, (2, 2), (Verdict.FOUND, Verdict.FOUND)),
        ("alias", 5, (2, 2), (Verdict.FOUND, Verdict.FOUND)),
        ("nowhere", 5, (2, 2), (Verdict.EMPTY, Verdict.EMPTY)),
        ("www.example.com", 5, (8, 8), (Verdict.FOUND, Verdict.FOUND)),
        ("www.example.com.", 5, (2, 2), (Verdict.FOUND, Verdict.FOUND)),
        ("www.example.com", 2, (2, 2), (Verdict.FOUND, Verdict.FOUND)),
        ("www.example.com", 3, (8, 8), (Verdict.FOUND, Verdict.FOUND)),
        ("a.b.c.d.e.example", 5, (2, 2), (Verdict.FOUND, Verdict.FOUND)),
        ("gone", 5, (8, 8), (Verdict.ABSENT, Verdict.ABSENT)),
        ("gone.", 5, (2, 2), (Verdict.ABSENT, Verdict.ABSENT)),
        ("gone.example", 1, (8, 2), (Verdict.ABSENT, Verdict.ABSENT)),
        ("web.other", 1, (6, 2), (Verdict.FOUND, Verdict.ABSENT)),  # musl does not search after it
        ("shop", 5, (8, 4), (Verdict.FOUND, Verdict.EMPTY)),  # N.svc.Z exists, which ends the search of musl
        ("web..shop", 5, (0, 0), (Verdict.UNASKED, Verdict.ABSENT)),
        ("x" * 64, 5, (0, 0), (Verdict.UNASKED, Verdict.ABSENT)),
        (".", 5, (2, 0), (Verdict.EMPTY, Verdict.UNASKED)),
        ("web..", 5, (0, 0), (Verdict.UNASKED, Verdict.UNASKED)),
        ("b\u00fccher", 5, (0, 8), (Verdict.UNASKED, Verdict.ABSENT)),  # glibc asks for names of hosts only
        ("a*b", 5, (0, 8), (Verdict.UNASKED, Verdict.ABSENT)),
        ("-web", 5, (0, 8), (Verdict.UNASKED, Verdict.ABSENT)),
        ("_web", 5, (8, 8), (Verdict.ABSENT, Verdict.ABSENT)),
        ("w\\101b", 5, (2, 8), (Verdict.FOUND, Verdict.ABSENT)),  # an escape, for glibc
    ],
)
def test_a_name_costs_what_the_model_says(
    place: Place, name: str, ndots: int, queries: tuple[int, int], verdicts: tuple[Verdict, Verdict]
) -> None:
    place.server.answers = CLUSTER
    traces = check(place, name, search.pod_conf("shop", ZONE, ndots=ndots))
    assert tuple(trace.queries for trace in traces) == queries
    assert tuple(trace.verdict for trace in traces) == verdicts


@pytest.mark.parametrize(
    ("name", "verb", "queries"),
    [
        ("web", "A", (1, 1)),
        ("web", "AAAA", (1, 1)),
        ("web.other", "AAAA", (4, 2)),  # glibc goes on where there is no address of the family, musl does not
        ("www.example.com", "A", (4, 4)),
        ("_http._tcp.web", "SRV", (1, 1)),  # musl has no search list for it, and does not find it
        (f"_http._tcp.web.shop.svc.{ZONE}", "SRV", (1, 1)),
        ("_http._tcp.web.shop", "SRV", (2, 1)),
        ("10.0.0.10.in-addr.arpa", "PTR", (1, 1)),
    ],
)
def test_other_types_cost_what_the_model_says(place: Place, name: str, verb: str, queries: tuple[int, int]) -> None:
    place.server.answers = CLUSTER
    traces = check(place, name, POD, verb=verb)
    assert tuple(trace.queries for trace in traces) == queries


@pytest.mark.parametrize("options", ["use-vc", "edns0", "single-request", "single-request-reopen", "no-aaaa"])
def test_options_of_glibc(place: Place, options: str) -> None:
    place.server.answers = CLUSTER | {f"many.shop.svc.{ZONE}.": {"A": Reply(count=40)}}
    for name in ("web.other", "many"):
        conf = place.configure(POD, options)
        trace = search.glibc(name, conf, place.server.outcome)
        _, queries = place.ask(place.glibc, name)
        assert len(queries) == trace.queries, (name, trace, queries)
        assert sum(proto == "tcp" for *_, proto in queries) == sum(step.tcp for step in trace.steps) * trace.rounds


@pytest.mark.parametrize("count", [1, 20, 24, 25, 26, 40, 52, 90, 103, 110, 400])
def test_many_addresses_cost_more_in_glibc(place: Place, count: int) -> None:
    """Beyond 512 bytes both libraries ask over TCP (musl from 1.2.4 on), and glibc begins anew until it has room."""
    place.server.answers = {f"big.other.svc.{ZONE}.": v4(count)}
    check(place, "big.other", POD)


@pytest.mark.parametrize("rcode", [FORMERR, SERVFAIL, NOTIMP, REFUSED])
@pytest.mark.parametrize("at", [1, 3])
def test_what_failures_cost(place: Place, rcode: int, at: int) -> None:
    """At each place of the search, for both types."""
    failing = [f"www.example.com.{domain}." for domain in POD.search] + ["www.example.com."]
    place.server.answers = CLUSTER | {failing[at]: {"A": Reply(rcode), "AAAA": Reply(rcode)}}
    check(place, "www.example.com", Conf(POD.search, 5, attempts=2, timeout=1))


@pytest.mark.parametrize("first", [Reply(count=1), Reply(), GONE])
@pytest.mark.parametrize("second", [Reply(SERVFAIL), Reply(REFUSED), Reply(authoritative=False)])
def test_what_half_a_failure_costs(place: Place, first: Reply, second: Reply) -> None:
    for types in ({"A": first, "AAAA": second}, {"A": second, "AAAA": first}):
        place.server.answers = {f"web.shop.svc.{ZONE}.": types}
        place.configure(POD)
        trace = search.glibc("web", Conf(POD.search, 5), place.server.outcome)
        line, queries = place.ask(place.glibc, "web")
        assert (len(queries), line.startswith("!")) == (trace.queries, trace.verdict is not Verdict.FOUND), (
            trace,
            queries,
        )


@pytest.mark.parametrize(("attempts", "timeout"), [(1, 1), (4, 1)])
def test_attempts_and_their_time(place: Place, attempts: int, timeout: int) -> None:
    place.server.answers = {f"web.shop.svc.{ZONE}.": {"A": Reply(SERVFAIL), "AAAA": Reply(count=1)}}
    traces = check(place, "web", Conf(POD.search, 5, attempts=attempts, timeout=timeout))
    assert (traces[1].verdict, traces[1].wait) == (Verdict.AGAIN, timeout)


def test_musl_asks_all_nameservers_at_once(place: Place) -> None:
    place.server.answers = CLUSTER
    conf = Conf(POD.search, 5, ("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"))
    place.configure(conf)
    trace = search.musl("web.other", conf, place.server.outcome)
    place.ask(place.musl, "web.other")
    procs.wait_until(lambda: len(place.server.asked) >= 12, 2, "the queries to those that were not waited for")
    time.sleep(0.05)
    assert len(place.server.asked) == trace.queries == 12
    assert search.glibc("web.other", conf, place.server.outcome).queries == 4


@pytest.mark.parametrize("length", [253, 254, 255, 300])
def test_a_long_search_line_is_no_search_list_for_musl(place: Place, length: int) -> None:
    place.server.answers = CLUSTER
    words = ["shop.svc.cluster.local"]
    while (left := length - len(" ".join(["search", *words])) - 1) > 0:
        words.append("d" * min(left, 40) if left - min(left, 40) != 1 else "d" * (left - 3))
    assert len(" ".join(["search", *words])) == length
    traces = check(place, "web", Conf(tuple(words), 5))
    assert (traces[1].verdict is Verdict.FOUND) == (length <= 254)


def test_a_root_domain_in_the_search_list(place: Place) -> None:
    place.server.answers = CLUSTER
    conf = Conf((f"shop.svc.{ZONE}", "."), 5)
    check(place, "web", conf)
    place.configure(conf)
    for name, queries in (("www.example.com", 4), ("gone.example.com", 4)):
        trace = search.glibc(name, conf, place.server.outcome)
        assert len(place.ask(place.glibc, name)[1]) == trace.queries == queries
        assert len(trace.steps) == 2  # the root is the name as it is, which is not asked for again
    assert [step.queries for step in search.musl("www.example.com", conf, place.server.outcome).steps] == [2, 0, 2]


LABELS = st.sampled_from(["web", "x", "db", "a-b"])
REPLIES = st.sampled_from(
    [
        GONE,
        GONE,
        Reply(),
        Reply(count=1),
        Reply(count=3, alias=True),
        Reply(alias=True),
        Reply(FORMERR),
        Reply(count=60),
    ]
)


@settings(
    max_examples=150,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_name_and_any_answers_cost_what_the_model_says(place: Place, data: st.DataObject) -> None:
    """All but what makes musl wait."""
    name = ".".join(data.draw(st.lists(LABELS, min_size=1, max_size=4)))
    domains = data.draw(st.lists(st.sampled_from([*POD.search, "corp.example", "x"]), max_size=4, unique=True))
    ndots = data.draw(st.integers(0, 6))
    full = data.draw(st.booleans()) and data.draw(st.booleans())
    reply = data.draw(st.lists(REPLIES, min_size=10, max_size=10))
    tried = [f"{name}.{domain}." for domain in domains] + [f"{name}."]
    place.server.answers = {
        each: {"A": reply[2 * n], "AAAA": reply[2 * n + 1] if reply[2 * n].rcode == NOERROR else reply[2 * n]}
        for n, each in enumerate(tried)
    }
    if any(one.rcode == FORMERR for types in place.server.answers.values() for one in types.values()):
        conf = place.configure(Conf(tuple(domains), ndots))
        trace = search.glibc(name + "." * full, conf, place.server.outcome)
        line, queries = place.ask(place.glibc, name + "." * full)
        assert (len(queries), line.startswith("!")) == (trace.queries, trace.verdict is not Verdict.FOUND), trace
    else:
        check(place, name + "." * full, Conf(tuple(domains), ndots))
