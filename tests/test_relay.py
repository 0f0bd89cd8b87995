"""Other servers' responses pass as bytes: dnspython writes them and reads what becomes of them."""

from __future__ import annotations

import struct
import time
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.errors import FormatError
from kdns.wire import message, names, relay, rr
from kdns.wire.message import Query, Response
from kdns.wire.relay import Relay

SOA = ("example.com.", 300, "SOA", "ns.example.com. host.example.com. 1 2 3 4 60")
EVERY_TYPE = [
    ("web.example.com.", 60, "A", "192.0.2.1"),
    ("web.example.com.", 61, "AAAA", "2001:db8::1"),
    ("example.com.", 62, "NS", "ns.example.com."),
    ("example.com.", 63, "MX", "10 mail.example.com."),
    ("_http._tcp.example.com.", 64, "SRV", "1 2 80 web.example.com."),
    ("example.com.", 65, "NAPTR", '10 20 "u" "sip" "" web.example.com.'),
    ("example.com.", 66, "CAA", '0 issue "ca.example.net"'),
    ("example.com.", 67, "TXT", '"one" "two"'),
    ("example.com.", 68, "RP", "host.example.com. text.example.com."),
    ("example.com.", 69, "HTTPS", "1 . alpn=h2"),
    ("example.com.", 70, "TYPE65280", r"\# 3 c00cff"),
    ("old.example.com.", 71, "DNAME", "example.net."),
    SOA,
]

Record = tuple[str, int, str, str]


def query(name: str = "web.example.com.", rdtype: str = "A", **options: Any) -> Query:
    data = dns.message.make_query(name, rdtype, **options).to_wire()
    return message.parse(data, "udp", ("192.0.2.1", 4242), ("192.0.2.53", 53), 1232)


def response(
    asked: Query,
    answer: list[Record] | None = None,
    authority: list[Record] | None = None,
    additional: list[Record] | None = None,
    rcode: int = 0,
) -> dns.message.Message:
    """What an upstream would say, with an OPT if it was asked with one."""
    made = dns.message.make_response(dns.message.from_wire(asked.data), recursion_available=True, our_payload=1400)
    made.set_rcode(dns.rcode.Rcode(rcode))
    for section, found in ((made.answer, answer), (made.authority, authority), (made.additional, additional)):
        for owner, ttl, rdtype, text in found or ():
            section.append(dns.rrset.from_text(owner, ttl, "IN", rdtype, text))
    return made


def read(
    asked: Query,
    answer: list[Record] | None = None,
    authority: list[Record] | None = None,
    additional: list[Record] | None = None,
    rcode: int = 0,
) -> Relay:
    wire = response(asked, answer, authority, additional, rcode).to_wire(max_size=65535)
    return relay.read(wire, message.question(asked))


def passed(asked: Query, found: Relay, **fields: Any) -> dns.message.Message:
    return dns.message.from_wire(message.encode(asked, Response(relay=found, **fields)).wire, one_rr_per_rrset=True)


def texts(section: list[dns.rrset.RRset]) -> list[str]:
    return [rrset.to_text() for rrset in section]


@pytest.mark.parametrize("edns", [{}, {"use_edns": 0, "want_dnssec": True}])
def test_records_of_every_type_come_back_as_they_were(edns: dict[str, Any]) -> None:
    asked = query("WEB.Example.com.", **edns)
    sent = response(asked, EVERY_TYPE, [SOA], EVERY_TYPE)
    asked.limit = 65535
    got = passed(asked, relay.read(sent.to_wire(), message.question(asked)), recursion=True)
    for one, other in ((sent.answer, got.answer), (sent.authority, got.authority), (sent.additional, got.additional)):
        assert [text.lower() for text in texts(one)] == [text.lower() for text in texts(other)]
    assert got.question[0].name.to_text() == "WEB.Example.com."
    assert (got.edns, got.id) == (0 if edns else -1, asked.id)
    assert got.flags & dns.flags.RA
    assert got.payload == (1232 if edns else 0)


def test_an_opt_before_other_records_is_taken_out_and_pointers_behind_it_still_hold() -> None:
    asked = query(use_edns=0)
    opt = b"\0" + struct.pack("!HHIH", rr.OPT, 1232, 0, 4) + b"\0\3\0\0"
    wire = bytearray(response(query("web.example.com."), [("web.example.com.", 9, "A", "192.0.2.1")]).to_wire())
    wire += opt
    first = len(wire)
    wire += b"\2ns\7example\3net\0" + struct.pack("!HHIH", rr.A, 1, 5, 4) + bytes(4)
    wire += struct.pack("!H", 0xC000 | first) + struct.pack("!HHIH", rr.AAAA, 1, 5, 16) + bytes(16)
    wire += b"\4mail" + struct.pack("!H", 0xC000 | first + 3) + struct.pack("!HHIH", rr.MX, 1, 5, 4)
    wire += b"\0\1" + struct.pack("!H", 0xC000 | first)
    wire[10:12] = struct.pack("!H", 4)
    got = passed(asked, relay.read(bytes(wire), message.question(asked)), ttl=7)
    assert texts(got.additional) == [
        "ns.example.net. 7 IN A 0.0.0.0",
        "ns.example.net. 7 IN AAAA ::",
        "mail.example.net. 7 IN MX 1 ns.example.net.",
    ]
    assert got.edns == 0
    assert not got.options


def leading(start: bytes, target: int, *, opt: bytes = b"", behind: bytes = b"") -> bytes:
    """A response to `query()`: an answer, an OPT, a record, and one whose owner is `start` and a pointer.

    target: where that leads to, from the beginning of the answer.
    """
    asked = query()
    answer = b"\xc0\x0c" + struct.pack("!HHIH", rr.A, 1, 0x00036161, 4) + b"\x01a\0\0"
    records = answer + opt + behind
    pointer = struct.pack("!H", 0xC000 | asked.question_end + target)
    last = start + pointer + struct.pack("!HHIH", rr.TXT, 1, 5, 2) + b"\1x"
    counts = struct.pack("!HHHH", 1, 1, 0, bool(opt) + bool(behind) + 1)
    return b"\0\0\x81\x80" + counts + asked.data[12 : asked.question_end] + records + last


PLAIN_OPT = b"\0" + struct.pack("!HHIH", rr.OPT, 1232, 0, 0)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(leading(b"\3web", 6), id="a TTL, which counts down"),
        pytest.param(leading(b"", 6), id="a TTL, by nothing but the pointer"),
        pytest.param(leading(b"\3web", 12), id="an address, which takes turns with others"),
        pytest.param(leading(b"", 16, opt=PLAIN_OPT), id="the OPT, which is taken out"),
        pytest.param(
            leading(b"", 38, opt=PLAIN_OPT, behind=b"\0" + struct.pack("!HHIH", rr.TXT, 1, 5, 2) + b"\xc0\x0c"),
            id="data behind the OPT, whose pointer does not move",
        ),
    ],
)
def test_a_name_does_not_lead_through_what_changes_later(data: bytes) -> None:
    with pytest.raises(FormatError, match="points into"):
        relay.read(data, message.question(query()))


def test_a_name_may_lead_into_other_data() -> None:
    txt = b"\0" + struct.pack("!HHIH", rr.TXT, 1, 5, 3) + b"\1a\0"
    found = relay.read(leading(b"\3web", 27, behind=txt), message.question(query()))
    assert [owner for owner, *_ in found.records()][-1] == b"\3web\1a\0"


def test_a_response_taken_apart_says_the_same_but_for_ad() -> None:
    asked = query()
    chain = [("web.example.com.", 9, "CNAME", "x.example.com."), ("x.example.com.", 5, "A", "192.0.2.1")]
    sent = response(asked, chain)
    sent.flags |= dns.flags.AA | dns.flags.AD
    found = relay.read(sent.to_wire(), message.question(asked))
    whole = Response(relay=found, ttl=7, plugin="forward")
    apart = message.opened(whole)
    assert (whole.relay, apart.relay, apart.rcode, apart.authoritative) == (found, None, rr.NOERROR, True)
    got = dns.message.from_wire(message.encode(asked, apart).wire)
    assert texts(got.answer) == texts(passed(asked, found, ttl=7).answer)
    assert not got.flags & dns.flags.AD
    cut = relay.read(wire_with_tc(sent), message.question(asked))
    assert dns.message.from_wire(message.encode(asked, message.opened(Response(relay=cut))).wire).flags & dns.flags.TC


def wire_with_tc(sent: dns.message.Message) -> bytes:
    sent.flags |= dns.flags.TC
    return sent.to_wire()


def test_the_header_is_the_clients_and_aa_and_ad_the_upstreams() -> None:
    asked = query()
    sent = response(asked, [("web.example.com.", 9, "A", "192.0.2.1")])
    sent.flags |= dns.flags.AA | dns.flags.AD | dns.flags.RA
    found = relay.read(sent.to_wire(), message.question(asked))
    got = passed(asked, found)
    assert got.flags == dns.flags.QR | dns.flags.RD | dns.flags.AA
    wants = query(use_edns=0, want_dnssec=True)
    assert passed(wants, found).flags & dns.flags.AD
    assert passed(asked, found, set_flags=message.RA, clear_flags=message.AA).flags == dns.flags.QR | dns.flags.RD | (
        dns.flags.RA
    )


def test_extended_rcodes_need_an_opt() -> None:
    asked = query(use_edns=0)
    sent = response(asked)
    sent.set_rcode(dns.rcode.BADCOOKIE)
    found = relay.read(sent.to_wire(), message.question(asked))
    assert found.rcode == dns.rcode.BADCOOKIE
    assert passed(asked, found).rcode() == dns.rcode.BADCOOKIE
    assert passed(query(), found).rcode() == dns.rcode.SERVFAIL


@given(st.integers(512, 4096), st.integers(0, 60), st.integers(0, 30), st.booleans())
def test_what_is_too_large_is_cut_at_whole_records(limit: int, answers: int, others: int, edns: bool) -> None:
    asked = query(use_edns=0 if edns else -1)
    asked.limit = limit
    addresses: list[Record] = [("web.example.com.", 9, "A", f"192.0.2.{number}") for number in range(answers)]
    more: list[Record] = [(f"n{number}.example.com.", 9, "AAAA", "2001:db8::1") for number in range(others)]
    found = read(asked, addresses, [SOA], more)
    wire, _, ttls = message.encode(asked, Response(relay=found, ttl=3))
    assert len(wire) <= limit
    got = dns.message.from_wire(wire, one_rr_per_rrset=True)
    all_records = texts(dns.message.from_wire(found.body, one_rr_per_rrset=True).answer)
    kept = [rrset for section in (got.answer, got.authority, got.additional) for rrset in section]
    assert len(kept) == len(ttls)
    assert bool(got.flags & dns.flags.TC) is (len(kept) < answers + 1 + others)
    assert len(wire) + 80 > limit or not got.flags & dns.flags.TC
    assert {rrset.ttl for rrset in kept} <= {3}
    assert len(got.answer) in (len(all_records), len(kept))


def test_addresses_of_an_answer_may_take_turns() -> None:
    asked = query()
    chain: list[Record] = [("web.example.com.", 9, "CNAME", "x.example.com.")]
    found = read(asked, chain + [("x.example.com.", 9, "A", f"192.0.2.{number}") for number in range(3)])
    wire, rotation, _ = message.encode(asked, Response(relay=found, ttl=3, rotate=True))
    assert rotation is not None
    records = rotation.records
    turned = wire[: rotation.start] + records[rotation.step :] + records[: rotation.step] + wire[rotation.end :]
    before, after = (texts(dns.message.from_wire(data, one_rr_per_rrset=True).answer) for data in (wire, turned))
    assert after == [before[0], *before[2:], before[1]]
    alone = read(asked, [("web.example.com.", 9, "A", "192.0.2.1")])
    assert message.encode(asked, Response(relay=alone, rotate=True)).rotation is None


# What a response says


@pytest.mark.parametrize(
    ("rdtype", "answer", "authority", "rcode", "answered", "denial"),
    [
        ("A", [("web.example.com.", 9, "A", "192.0.2.1")], [], 0, True, False),
        ("A", [("Web.EXAMPLE.com.", 9, "A", "192.0.2.1")], [], 0, True, False),
        ("A", [("other.example.com.", 9, "A", "192.0.2.1")], [], 0, False, False),
        ("A", [], [SOA], 0, False, True),
        ("A", [], [SOA], 3, False, True),
        ("A", [], [], 3, False, False),
        ("A", [], [("example.com.", 9, "NS", "ns.example.com.")], 0, False, False),
        ("A", [("web.example.com.", 9, "CNAME", "b.")], [], 0, False, False),
        ("A", [("web.example.com.", 9, "CNAME", "b.")], [SOA], 0, False, True),
        ("A", [("web.example.com.", 9, "CNAME", "b."), ("b.", 9, "A", "192.0.2.1")], [], 0, True, False),
        ("A", [("b.", 9, "A", "192.0.2.1"), ("web.example.com.", 9, "CNAME", "b.")], [], 0, True, False),
        ("A", [("web.example.com.", 9, "CNAME", "b."), ("b.", 9, "CNAME", "web.example.com.")], [], 0, False, False),
        ("CNAME", [("web.example.com.", 9, "CNAME", "b.")], [], 0, True, False),
        ("ANY", [("web.example.com.", 9, "MX", "1 b.")], [], 0, True, False),
        ("A", [], [SOA], 2, False, False),
    ],
)
def test_answers_and_denials(
    rdtype: str, answer: list[Record], authority: list[Record], rcode: int, answered: bool, denial: bool
) -> None:
    found = read(query(rdtype=rdtype), answer, authority, rcode=rcode)
    assert (found.answered, found.denial, found.rcode) == (answered, denial, rcode)


@pytest.mark.parametrize(
    ("ttl", "minimum", "negative"), [(300, 60, 60), (30, 60, 30), (2**31, 60, 0), (60, 2**31 + 5, 0)]
)
def test_denials_hold_for_the_lesser_of_ttl_and_minimum(ttl: int, minimum: int, negative: int) -> None:
    asked = query()
    soa = rr.soa(names.from_text("ns."), names.from_text("h."), 1, 2, 3, 4, minimum)
    wire = response(asked, rcode=3).to_wire() + b"\3com\0" + struct.pack("!HHIH", rr.SOA, 1, ttl, len(soa)) + soa
    found = relay.read(wire[:8] + b"\0\1" + wire[10:], message.question(asked))
    assert found.negative_ttl == negative


def test_the_least_ttl_is_that_of_all_records() -> None:
    found = read(query(use_edns=0), [("web.example.com.", 9, "A", "192.0.2.1")], [SOA], [("b.", 4, "A", "192.0.2.9")])
    assert found.ttl == 4
    assert found.answers_only().ttls == found.ttls[:1]


def test_minimal_answers_keep_the_answer_section() -> None:
    asked = query()
    found = read(asked, [("web.example.com.", 9, "A", "192.0.2.1")], [SOA], [("b.", 4, "A", "192.0.2.9")])
    got = passed(asked, found.answers_only())
    assert (len(got.answer), got.authority, got.additional) == (1, [], [])


def test_the_answer_section_can_be_had_with_its_names_in_full() -> None:
    answer: list[Record] = [
        ("web.example.com.", 9, "CNAME", "B.example.com."),
        ("b.example.com.", 7, "A", "192.0.2.1"),
        ("b.example.com.", 7, "A", "192.0.2.2"),
    ]
    found = read(query(), answer).answer()
    owners = [names.to_text(owner) for owner, _ in found]
    assert owners == ["web.example.com.", "b.example.com."]
    assert found[0][1].rdatas == (names.from_text("B.example.com."),)
    assert (sorted(found[1][1].rdatas), found[1][1].ttl) == ([bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2))], 7)


# What is none


def test_taking_apart_thousands_of_records_takes_as_many_steps() -> None:
    """A server of somebody else can send them, and each client's query may take them apart again."""
    asked = query()
    count = 4000
    record = b"\xc0\x0c\0\1\0\1\0\0\0\x05\0\4"
    data = message.HEADER.pack(1, 0x8000, 1, count, 0, 0) + message.question(asked)
    data += b"".join([record + number.to_bytes(4, "big") for number in range(count - 1)]) + record + bytes(4)
    found = relay.read(data, message.question(asked))

    started = time.process_time()
    walked = list(found.records())
    walk = time.process_time() - started
    started = time.process_time()
    answer, _, _ = found.sections()
    took = time.process_time() - started

    assert len(walked) == count
    assert [len(rrset.rdatas) for _, rrset in answer] == [count - 1]
    assert took < 5 * walk + 0.01


def test_a_refusal_without_the_question_gets_it_back() -> None:
    asked = query()
    header = struct.pack("!HHHHHH", 7, 0x8001, 0, 0, 0, 0)
    got = passed(asked, relay.read(header, message.question(asked)))
    assert (got.rcode(), texts(got.question)) == (dns.rcode.FORMERR, ["web.example.com. IN A"])
    with pytest.raises(FormatError, match="0 questions"):
        relay.read(struct.pack("!HHHHHH", 7, 0x8000, 0, 0, 0, 0), message.question(asked))


def test_what_is_no_response_to_the_question_is_refused() -> None:
    asked = query()
    good = response(asked, [("web.example.com.", 9, "A", "192.0.2.1")]).to_wire()
    bad = {
        "a query": asked.data,
        "an update": bytes((*good[:2], good[2] | 0x28, *good[3:])),
        "no header": good[:11],
        "another name": good.replace(b"\3web", b"\3wob", 1),
        "another type": good[: asked.question_end - 3] + b"\2" + good[asked.question_end - 2 :],
        "a record too few": good[:6] + b"\0\2" + good[8:],
        "something behind": good + b"\0",
        "a short address": good[:-5] + b"\3" + good[-3:],
        "a pointer to itself": good[: asked.question_end]
        + struct.pack("!H", 0xC000 | asked.question_end)
        + good[asked.question_end + 2 :],
        "a pointer into the header": good[: asked.question_end] + b"\xc0\4" + good[asked.question_end + 2 :],
    }
    for what, data in bad.items():
        with pytest.raises(FormatError):
            pytest.fail(f"{what}: {relay.read(data, message.question(asked))}")


def pointing(asked: Query, pointers: int) -> bytes:
    """A response whose second record is owned by a name that takes so many pointers to read."""
    start = asked.question_end + 12
    chain = b"\xc0\x0c" + b"".join(struct.pack("!H", 0xC000 | start + 2 * at) for at in range(pointers - 2))
    fixed = struct.pack("!HHIH", 65280, 1, 60, len(chain)), struct.pack("!HHIH", 65280, 1, 60, 0)
    owner = struct.pack("!H", 0xC000 | start + len(chain) - 2)
    header = struct.pack("!HHHHHH", 7, 0x8000, 1, 2, 0, 0)
    return header + message.question(asked) + b"\xc0\x0c" + fixed[0] + chain + owner + fixed[1]


def test_a_name_has_no_more_pointers_than_it_can_have_labels() -> None:
    asked = query()
    found = relay.read(pointing(asked, 127), message.question(asked))
    assert {owner for owner, _ in found.answer()} == {asked.lname}
    with pytest.raises(FormatError, match="name is malformed"):
        relay.read(pointing(asked, 128), message.question(asked))


def test_an_opt_belongs_into_the_additional_section_once_and_to_the_root() -> None:
    asked = query(use_edns=0)
    opt = b"\0" + struct.pack("!HHIH", rr.OPT, 1232, 0, 0)
    head = struct.pack("!HH", asked.id, 0x8000)
    for counts, records in (
        ((1, 1, 0, 0), opt),
        ((1, 0, 1, 0), opt),
        ((1, 0, 0, 2), opt * 2),
        ((1, 0, 0, 1), b"\3com" + opt),
    ):
        wire = head + struct.pack("!HHHH", *counts) + message.question(asked) + records
        with pytest.raises(FormatError, match="OPT"):
            relay.read(wire, message.question(asked))


@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    asked = query()
    for start in (b"", asked.data[:2] + b"\x80\0" + asked.data[4:6] + b"\0\3\0\2\0\2" + message.question(asked)):
        try:
            found = relay.read(start + data, message.question(asked))
        except FormatError:
            continue
        message.encode(asked, Response(relay=found, ttl=1, rotate=True))
        found.answer()


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_response_with_one_byte_changed_is_read_or_refused(at: int, value: int) -> None:
    asked = query(use_edns=0)
    wire = bytearray(response(asked, EVERY_TYPE[:9], [SOA], EVERY_TYPE[9:]).to_wire())
    wire[at % len(wire)] = value
    try:
        found = relay.read(bytes(wire), message.question(asked))
    except FormatError:
        return
    out = message.encode(asked, Response(relay=found, ttl=1)).wire
    again = relay.read(out, message.question(asked))  # dnspython minds what is in data of types that pass as they are
    assert (again.rcode, len(again.ttls)) == (found.rcode, len(found.ttls))
