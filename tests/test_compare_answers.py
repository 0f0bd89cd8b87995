"""What counts as a difference between two answers, and which questions are asked."""

from __future__ import annotations

import io
import itertools
import json
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns.cluster.publisher import Settings
from kdns.cluster.records import RecordOptions
from kdns.errors import KdnsError
from kdns.tools import snapshot
from kdns.tools.asking import Target, target
from kdns.tools.compare import (
    Answer,
    Aspect,
    Comparison,
    Knowledge,
    Options,
    differences,
    read,
)
from kdns.tools.questions import Lines, Question, of_view, other_case
from kdns.tools.rdata import rdata_text
from kdns.wire import names, rr
from kdns.wire.message import question_end

SAMPLE = Path(__file__).resolve().parent.parent / "zones" / "sample"
EVERYTHING = Options(sections=("answer", "authority", "additional"))
QUESTION = Question(names.from_text("WeB.example"), rr.A)


@dataclass(frozen=True, slots=True)
class Rr:
    """A record of a response that a test writes."""

    type: str
    data: str
    owner: str = "WeB.example."
    ttl: int = 30


def response(
    answer: Iterable[Rr] = (),
    authority: Iterable[Rr] = (),
    additional: Iterable[Rr] = (),
    *,
    rcode: str = "NOERROR",
    flags: int = dns.flags.AA,
    edns: bool = True,
    asked: str = "WeB.example.",
    compress: bool = True,
) -> bytes:
    """A response, with its records in this order. compress: else owners keep their own case."""
    message = dns.message.make_response(dns.message.make_query(asked, "A", use_edns=edns))
    message.set_rcode(dns.rcode.from_text(rcode))
    message.flags |= flags
    rrsets = [
        [dns.rrset.from_text(each.owner, each.ttl, "IN", each.type, each.data) for each in section]
        for section in (answer, authority, additional)
    ]
    if compress:
        message.answer, message.authority, message.additional = rrsets
        return message.to_wire()
    records = io.BytesIO()
    for rrset in itertools.chain(*rrsets):
        rrset.to_wire(records)
    wire = message.to_wire()
    counts = struct.pack("!HHH", len(rrsets[0]), len(rrsets[1]), len(rrsets[2]) + edns)
    end = question_end(wire)
    return wire[:6] + counts + wire[12:end] + records.getvalue() + wire[end:]


def told(first: bytes, second: bytes, options: Options = EVERYTHING) -> list[tuple[str, str, str]]:
    """What differs, and both sides."""
    found = differences(QUESTION, read(first, QUESTION), read(second, QUESTION), options)
    return [(aspect.what, aspect.first, aspect.second) for aspect in found]


A1, A2 = Rr("A", "192.0.2.1"), Rr("A", "192.0.2.2")
SOA = "ns.example. host.example. {} 7200 1800 86400 5"
ALIAS = [Rr("CNAME", "b.example."), Rr("CNAME", "c.example.", "b.example."), Rr("A", "192.0.2.1", "c.example.")]
LINKS = "web.example. CNAME, b.example. CNAME"


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [
        pytest.param(response([A1, A2]), response([A2, A1]), [], id="the order of records"),
        pytest.param(response([A1]), response([A2]), [("answer", "192.0.2.1", "192.0.2.2")], id="another record"),
        pytest.param(response([A1, A2]), response([A1]), [("answer", "192.0.2.2", "nothing")], id="a record less"),
        pytest.param(response([A1]), response([replace(A1, ttl=5)]), [("TTL", "30", "5")], id="the TTL"),
        pytest.param(
            response([A1], flags=0), response([replace(A1, ttl=5)], flags=0), [], id="the TTL without authority"
        ),
        pytest.param(response([A1]), response([A1], flags=0), [("flag AA", "yes", "no")], id="AA"),
        pytest.param(
            response([A1]), response([A1], flags=dns.flags.AA | dns.flags.RA), [("flag RA", "no", "yes")], id="RA"
        ),
        pytest.param(
            response([A1]), response([A1], flags=dns.flags.AA | dns.flags.TC), [("flag TC", "no", "yes")], id="TC"
        ),
        pytest.param(response([A1]), response([A1], edns=False), [("EDNS", "yes", "no")], id="no OPT"),
        pytest.param(
            response([], [Rr("SOA", SOA.format(1), "example.")]),
            response([], [Rr("SOA", SOA.format(2), "Example.")]),
            [],
            id="the serial, and the case of an owner out of the answer",
        ),
        pytest.param(
            response([], [Rr("SOA", SOA.format(1), "example.")]),
            response([], [Rr("SOA", SOA.format(1), "example.", ttl=7)]),
            [("TTL in authority", "30", "7")],
            id="the TTL of a denial",
        ),
        pytest.param(
            response(rcode="NXDOMAIN"),
            response([A1]),
            [("rcode", "NXDOMAIN", "NOERROR"), ("answer", "nothing", "192.0.2.1")],
            id="the response code",
        ),
        pytest.param(
            response([], [Rr("SOA", SOA.format(1), "example.")], rcode="NXDOMAIN"),
            response(),
            [("rcode", "NXDOMAIN", "NOERROR")],
            id="with another response code no SOA",
        ),
        pytest.param(response(ALIAS), response(ALIAS), [], id="an alias"),
        pytest.param(
            response(ALIAS),
            response([ALIAS[2], ALIAS[0], ALIAS[1]]),
            [("order", f"{LINKS}, c.example. A", f"c.example. A, {LINKS}")],
            id="an alias behind what it leads to",
        ),
        pytest.param(
            response([Rr("CNAME", "b.example.")]), response([Rr("CNAME", "B.Example.")]), [], id="the case of a target"
        ),
        pytest.param(
            response([A1]),
            response([replace(A1, owner="web.example.")], compress=False),
            [("case of owners", "WeB.example.", "web.example.")],
            id="the case of an owner",
        ),
        pytest.param(
            response([A1]),
            response([A1], asked="web.example."),
            [(f"case of {what}", "WeB.example.", "web.example.") for what in ("the question", "owners")],
            id="the case of the question",
        ),
        pytest.param(
            response([A1], [], [Rr("AAAA", "2001:db8::1", "x.example.")]),
            response([A1]),
            [("additional", "x.example. AAAA 2001:db8::1", "nothing")],
            id="the additional section",
        ),
        pytest.param(
            response([A1, A2]),
            response([A1, A2, A1]),
            [("repeated in answer", "nothing", "192.0.2.1")],
            id="a record twice",
        ),
    ],
)  # fmt: skip
def test_what_differs(first: bytes, second: bytes, wanted: list[tuple[str, str, str]]) -> None:
    assert told(first, second) == wanted
    assert told(second, first) == [(what, other, one) for what, one, other in wanted]


def test_options_say_what_counts() -> None:
    thirty, five = response([A1]), response([replace(A1, ttl=5)])
    assert told(thirty, five, Options(ttl="less")) == []
    assert told(five, thirty, Options(ttl="less")) == [("TTL", "5", "30")]
    assert told(five, thirty, Options(ttl="ignore")) == []
    aged, old = response([A1], flags=0), response([replace(A1, ttl=31)], flags=0)
    assert told(aged, old, Options(ttl="less")) == [("TTL", "30", "31")], "without authority too"
    serials = [response([], [Rr("SOA", SOA.format(n), "example.")]) for n in (1, 2)]
    assert [what for what, *_ in told(serials[0], serials[1], Options(serials=True))] == ["authority"]
    assert told(serials[0], response(), Options(sections=("answer",))) == []
    assert told(thirty, five, Options(sections=("authority",))) == []


def test_a_long_list_of_records_is_cut() -> None:
    many = [Rr("A", f"192.0.2.{number}") for number in range(50)]
    ((_, text, _),) = told(response(many), response())
    assert text.splitlines()[-1] == "and 30 more"
    assert len(text.splitlines()) == 21


def test_data_that_has_no_text_form_is_shown_as_bytes() -> None:
    odd = Rr("TYPE65280", r"\# 3 010203")
    assert told(response([odd]), response()) == [("answer", "TYPE65280 \\# 3 010203", "nothing")]


OWNERS = st.sampled_from(["WeB.example.", "a.example.", "b.a.example."])
DATA = st.one_of(
    st.tuples(st.just("A"), st.integers(1, 250).map("192.0.2.{}".format)),
    st.tuples(st.just("AAAA"), st.integers(1, 250).map("2001:db8::{}".format)),
    st.tuples(st.just("TXT"), st.from_regex(r"[a-z]{1,8}", fullmatch=True)),
    st.tuples(st.just("PTR"), st.sampled_from(["x.example.", "y.example.", "z.web.example."])),
    st.tuples(st.just("SRV"), st.integers(0, 70).map("0 {0} 16{0} x.example.".format)),
    st.tuples(st.just("MX"), st.integers(0, 100).map("{} x.example.".format)),
    st.tuples(st.just("CNAME"), st.sampled_from(["x.example.", "y.example."])),
    st.tuples(st.just("SOA"), st.integers(1, 99).map("ns.example. host.example. 1 7200 1800 86400 {}".format)),
)
RRS = st.builds(lambda data, owner, ttl: Rr(data[0], data[1], owner, ttl), DATA, OWNERS, st.integers(0, 3600))
SECTION = st.lists(RRS, max_size=5, unique_by=lambda each: (each.owner, each.type, each.data))
MESSAGE = st.tuples(SECTION, SECTION, SECTION)


@settings(max_examples=60)
@given(MESSAGE, st.randoms(use_true_random=False))
def test_an_answer_is_as_itself_in_any_order(sections: tuple[list[Rr], list[Rr], list[Rr]], random: object) -> None:
    shuffled = [list(section) for section in sections]
    for section in shuffled[1:] if any(each.type == "CNAME" for each in sections[0]) else shuffled:
        random.shuffle(section)  # type: ignore[attr-defined]
    assert told(response(*sections), response(*shuffled)) == []


@settings(max_examples=60)
@given(MESSAGE, MESSAGE)
def test_what_differs_does_not_depend_on_who_is_first(
    one: tuple[list[Rr], list[Rr], list[Rr]], other: tuple[list[Rr], list[Rr], list[Rr]]
) -> None:
    first, second = response(*one), response(*other)
    assert told(second, first) == [(what, theirs, ours) for what, ours, theirs in told(first, second)]


@settings(max_examples=100)
@given(MESSAGE, RRS, st.data())
def test_any_change_of_a_record_is_found(
    sections: tuple[list[Rr], list[Rr], list[Rr]], other: Rr, data: st.DataObject
) -> None:
    """One record is taken out, put in, put in the place of another, or has another TTL."""
    where = data.draw(st.integers(0, 2))
    section = list(sections[where])
    present = {(each.owner.lower(), each.type, each.data) for each in section}
    at = data.draw(st.integers(0, len(section)))
    if at == len(section):
        if (other.owner.lower(), other.type, other.data) in present:
            return
        section.append(other)
    elif data.draw(st.booleans()):
        section[at] = replace(section[at], ttl=section[at].ttl + 1)
    elif (other.owner.lower(), other.type, other.data) in present:
        del section[at]
    else:
        section[at] = other
    changed = [*sections[:where], section, *sections[where + 1 :]]
    if bool(changed[0]) != bool(sections[0]):
        changed[1:] = sections[1:]
    assert told(response(*sections), response(*changed)) != []


# What is on purpose, without a cluster


def explained(question: Question, first: Answer, second: Answer) -> tuple[tuple[str, ...], tuple[str, ...]]:
    aspects: Sequence[Aspect] = differences(question, first, second, EVERYTHING)
    left, reasons = Knowledge().explain(question, (first, second), aspects)
    return tuple(aspect.what for aspect in left), reasons


def test_ra_is_expected_only_where_both_servers_have_authority() -> None:
    flags = dns.flags.AA | dns.flags.RA
    ours, theirs = (read(response([A1], flags=each), QUESTION) for each in (flags, dns.flags.AA))
    assert explained(QUESTION, ours, theirs) == ((), ("RA is set wherever kdns forwards, on the cluster's names too",))
    without = read(response([A1], flags=0), QUESTION)
    assert explained(QUESTION, ours, without) == (("flag AA", "flag RA"), ())


def test_any_is_expected_to_be_minimal() -> None:
    question = QUESTION._replace(type=rr.ANY)

    def answer(*records: Rr) -> Answer:
        message = dns.message.make_response(dns.message.make_query("WeB.example.", "ANY", use_edns=True))
        message.answer = [dns.rrset.from_text(each.owner, each.ttl, "IN", each.type, each.data) for each in records]
        return read(message.to_wire(), question)

    minimal, whole = answer(Rr("HINFO", '"RFC8482" ""')), answer(A1, A2)
    assert explained(question, minimal, whole) == ((), ("ANY is answered minimally (RFC 8482)",))
    assert explained(question, whole, answer(A1)) == (("answer",), ())
    failed = replace(answer(), rcode=rr.SERVFAIL)
    assert explained(question, minimal, failed) == (("rcode", "answer"), ())


def test_owners_of_another_case_are_expected_of_a_cache() -> None:
    ours, theirs = (
        read(response([replace(A1, owner=owner)], compress=False), QUESTION)
        for owner in ("WeB.example.", "web.example.")
    )
    assert explained(QUESTION, ours, theirs)[0] == ()
    other = read(response([replace(A1, owner="wEb.example.")], compress=False), QUESTION)
    assert explained(QUESTION, other, theirs)[0] == ("case of owners",), "neither is as it was asked"


# What is on purpose, with a cluster

PORT, LINK, APEX = "_http._tcp.web.shop.svc.cluster.local.", "_tcp.web.shop.svc.cluster.local.", "cluster.local."
ZONE_SOA = Rr("SOA", "ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5", APEX)
PORT_A = Rr("A", "10.96.20.1", PORT)


@pytest.fixture(scope="module")
def sample() -> Iterator[Knowledge]:
    zone = names.from_text("cluster.local")
    with snapshot.of_manifests([SAMPLE], Settings((zone,), (), records=RecordOptions(zone))) as view:
        yield Knowledge(view)


@pytest.mark.parametrize(
    ("name", "rtype", "rcode", "flags", "records", "left"),
    [
        pytest.param(PORT, "A", "NOERROR", dns.flags.AA, [PORT_A], (), id="as CoreDNS: addresses of a port"),
        pytest.param(PORT, "A", "NOERROR", 0, [PORT_A], ("flag AA",), id="the same without authority"),
        pytest.param(PORT, "A", "SERVFAIL", dns.flags.AA, [], ("rcode",), id="a port fails"),
        pytest.param(PORT, "A", "NOERROR", dns.flags.AA, [], ("authority",), id="no SOA in a denial"),
        pytest.param(LINK, "A", "NXDOMAIN", dns.flags.AA, [], (), id="as CoreDNS: an empty non-terminal"),
        pytest.param(LINK, "A", "REFUSED", 0, [], ("rcode", "flag AA"), id="an empty non-terminal is refused"),
        pytest.param(PORT, "SRV", "NXDOMAIN", dns.flags.AA, [], ("rcode", "answer"), id="a port that is not there"),
        pytest.param(APEX, "NS", "SERVFAIL", dns.flags.AA, [], ("rcode", "answer"), id="the apex fails"),
        pytest.param("ns.dns." + APEX, "A", "NXDOMAIN", dns.flags.AA, [], (), id="as CoreDNS: no ns.dns"),
        pytest.param("ns.dns." + APEX, "A", "SERVFAIL", dns.flags.AA, [], ("rcode", "answer"), id="ns.dns fails"),
    ],
)
def test_what_no_reason_explains_is_a_difference(
    sample: Knowledge, name: str, rtype: str, rcode: str, flags: int, records: list[Rr], left: tuple[str, ...]
) -> None:
    question = Question(names.from_text(name), rr.type_number(rtype))
    assert sample.view is not None
    known = sample.view.lookup(question.name, question.type)
    data = [
        Rr(
            rr.type_text(rrset.type),
            rdata_text(rrset.type, rdata),
            names.to_text(owner),
        )
        for owner, rrset in known.answer
        for rdata in rrset.rdatas
    ]

    def answer(records: Iterable[Rr], rcode: str, flags: int, soa: Iterable[Rr] = ()) -> Answer:
        message = dns.message.make_response(dns.message.make_query(name, rtype, use_edns=True))
        message.set_rcode(dns.rcode.from_text(rcode))
        message.flags |= flags
        for section, found in ((message.answer, records), (message.authority, soa)):
            section += [dns.rrset.from_text(each.owner, each.ttl, "IN", each.type, each.data) for each in found]
        return read(message.to_wire(), question)

    ours = answer(data, "NOERROR", dns.flags.AA, [] if data else [ZONE_SOA])
    theirs = answer(records, rcode, flags)
    for both in ((ours, theirs), (theirs, ours)):
        found, _ = sample.explain(question, both, differences(question, *both, Options()))
        assert tuple(aspect.what for aspect in found) == left


# Questions


def of_sample() -> list[Question]:
    zone = names.from_text("cluster.local")
    reverse = names.from_text("in-addr.arpa"), names.from_text("ip6.arpa")
    with snapshot.of_manifests([SAMPLE], Settings((zone,), reverse, records=RecordOptions(zone))) as view:
        return list(of_view(view))


def test_every_name_of_a_cluster_is_asked_and_what_must_not_be() -> None:
    questions = of_sample()
    asked = {(names.to_text(question.name), rr.type_text(question.type)) for question in questions}
    assert len(asked) == len(questions), "each once"
    assert {
        ("cluster.local.", "SOA"),
        ("cluster.local.", "NS"),
        ("dns-version.cluster.local.", "TXT"),
        ("svc.cluster.local.", "A"),
        ("web.shop.svc.cluster.local.", "A"),
        ("web.shop.svc.cluster.local.", "AAAA"),
        ("web.shop.svc.cluster.local.", "SRV"),
        ("web.shop.svc.cluster.local.", "TXT"),
        ("wEb.sHoP.sVc.cLuStEr.lOcAl.", "A"),
        ("_https._tcp.web.shop.svc.cluster.local.", "SRV"),
        ("_tcp.web.shop.svc.cluster.local.", "A"),
        ("db-0.db.data.svc.cluster.local.", "A"),
        ("database.shop.svc.cluster.local.", "CNAME"),
        ("database.shop.svc.cluster.local.", "AAAA"),
        ("no-such-name.shop.svc.cluster.local.", "A"),
        ("no-such-name.example.com.shop.svc.cluster.local.", "A"),
        ("no-such-name.web.shop.svc.cluster.local.", "A"),
        ("no-such-name.pod.cluster.local.", "A"),
        ("no-such-name.cluster.local.", "A"),
        ("10.0.96.10.in-addr.arpa.", "PTR"),
        ("0.96.10.in-addr.arpa.", "PTR"),
        ("no-such-name.0.96.10.in-addr.arpa.", "PTR"),
        ("in-addr.arpa.", "SOA"),
        ("ip6.arpa.", "NS"),
    } <= asked
    assert not {name for name, _ in asked if "_zone" in name}
    assert {name.split(".", 1)[1] for name, rtype in asked if re.match(r"10-[\d-]+\.[\w-]+\.pod\.", name)} == {
        f"{namespace}.pod.cluster.local." for namespace in ("data", "kube-system", "monitoring", "shop")
    }, "one of each namespace with endpoints"


def test_another_case_changes_letters_only() -> None:
    name = names.from_text(r"ab-c1.\065\200.x")
    assert names.to_text(other_case(name)) == r"aB-C1.A\200.x."
    assert names.lower(other_case(name)) == names.lower(name)


LOG = r"""[INFO] plugin/reload: Running configuration SHA512 = 591cf328cccc12bc490481273e738df59329c62c0b729d94e8b61db9961c2fa5f
[INFO] 10.244.0.5:53412 - 4711 "A IN web.shop.svc.cluster.local. udp 45 false 512" NOERROR qr,aa,rd 88 0.000123s
[INFO] [fd00::5]:53412 - 4712 "AAAA IN web.shop.svc.cluster.local. udp 45 true 1232" NOERROR qr,aa,rd 88 0.000123s "0"
[pod/coredns-1/coredns] [INFO] 10.244.0.5:1 - 1 "PTR IN 10.0.96.10.in-addr.arpa. tcp 45 false 65535" - - 0 5.01s
{"log":"[INFO] 10.244.0.5:1 - 2 \"SRV IN _http._tcp.web.shop.svc.cluster.local. udp 45 false 512\" NOERROR qr 1 1s\n"}
[INFO] 10.244.0.5:1 - 3 "TYPE65 IN web.shop.svc.cluster.local. udp 45 false 512" NOERROR qr,aa,rd 88 0.1s
[INFO] 10.244.0.5:1 - 4 "A IN web.shop.svc.cluster.local. udp 45 false 512" NOERROR qr,aa,rd 88 0.1s
[INFO] 10.244.0.5:1 - 5 "TXT CH version.bind. udp 45 false 512" REFUSED qr 12 0.1s
[INFO] 10.244.0.5:1 - 6 "AXFR IN cluster.local. tcp 45 false 512" REFUSED qr 12 0.1s
[INFO] 10.244.0.5:1 - 7 "A IN w\195\164b\.x.cluster.local. udp 45 false 512" NXDOMAIN qr 12 0.1s
[INFO] 10.244.0.5:1 - 8 "NONSENSE IN web.cluster.local. udp 45 false 512" NXDOMAIN qr 12 0.1s

[ERROR] plugin/errors: 2 api.example. A: read udp 10.0.0.1:53: i/o timeout
"""  # noqa: E501


def test_a_log_is_read_for_its_questions() -> None:
    lines = Lines(io.BytesIO(LOG.encode()), log=True)
    assert [(names.to_text(name), rr.type_text(rtype)) for name, rtype in lines] == [
        ("web.shop.svc.cluster.local.", "A"),
        ("web.shop.svc.cluster.local.", "AAAA"),
        ("10.0.96.10.in-addr.arpa.", "PTR"),
        ("_http._tcp.web.shop.svc.cluster.local.", "SRV"),
        ("web.shop.svc.cluster.local.", "HTTPS"),
        (r"w\195\164b\.x.cluster.local.", "A"),
    ]
    assert (lines.lines, lines.repeated, lines.other, lines.unusable) == (13, 1, 2, 3)
    assert lines.first.startswith("1: [INFO] plugin/reload: Running")


def test_escapes_of_names_are_read_out_of_json_too() -> None:
    text = r'[INFO] 10.0.0.1:5 - 1 "A IN a\032b.x. udp 40 false 512" NOERROR'
    for line in (text, json.dumps({"log": text})):
        ((name, _),) = Lines(io.BytesIO(line.encode()), log=True)
        assert names.labels(name)[0] == b"a b"


def test_a_line_that_cannot_be_used_steers_no_terminal() -> None:
    lines = Lines(io.BytesIO(b"\x1b]0;title\x07 A x\n"), log=False)
    assert list(lines) == []
    assert lines.first == r"1: \x1b]0;title\x07 A x"


def test_a_list_of_questions_is_read() -> None:
    text = b"; a comment\n# another\nweb.example A\nweb.example. a\nWEB.example AAAA\n"
    text += b"only\na..b A\nx A B\n\n10.in-addr.arpa PTR"
    lines = Lines(io.BytesIO(text), log=False)
    assert [(names.to_text(name), rr.type_text(rtype)) for name, rtype in lines] == [
        ("web.example.", "A"), ("WEB.example.", "AAAA"), ("10.in-addr.arpa.", "PTR"),
    ]  # fmt: skip
    assert (lines.repeated, lines.unusable, lines.first) == (1, 3, "6: only")


def test_a_file_that_has_no_lines_does_not_fill_the_memory() -> None:
    lines = Lines(io.BytesIO(b"x" * 300_000), log=True)
    assert list(lines) == []
    assert lines.unusable == 5


# Servers


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("10.96.0.10", Target("10.96.0.10")),
        ("10.96.0.10:5353", Target("10.96.0.10", 5353)),
        ("tcp://dns.example:53", Target("dns.example", 53, True)),
        ("udp://dns.example", Target("dns.example")),
        ("fd00:96::a", Target("fd00:96::a")),
        ("::1", Target("::1")),
        ("fe80::1%eth0", Target("fe80::1%eth0")),
        ("[::1]:5353", Target("::1", 5353)),
        ("tcp://[::1]", Target("::1", 53, True)),
    ],
)
def test_a_server_may_be_written_so(text: str, wanted: Target) -> None:
    assert target(text) == wanted


@pytest.mark.parametrize(
    "text",
    ["", ":53", "a:b", "127.0.0.1:0", "127.0.0.1:65536", "[::1", "tls://a", "a b", "::1]:5", "a..b", f"{'a' * 64}.b"],
)
def test_a_server_may_not_be_written_so(text: str) -> None:
    with pytest.raises(KdnsError, match="is no server; accepted: HOST"):
        target(text)


def test_a_response_with_a_fault_on_both_sides_is_no_agreement() -> None:
    broken = response([A1])[:-20]
    comparison = Comparison((Target("a"), Target("b")), EVERYTHING, limits=None)  # type: ignore[arg-type]
    found = comparison.judge(QUESTION, broken, broken)
    assert found is not None
    assert found.kind == ("malformed",)
