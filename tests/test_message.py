"""Queries are read in place and responses assembled: dnspython is the judge of both."""

from __future__ import annotations

import re
from collections import Counter

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.errors import FormatError
from kdns.wire import message, names, rr
from kdns.wire.message import Query, Response
from kdns.wire.rrset import RRset

ZONE = names.from_text("cluster.local.")
CLIENT, LOCAL = ("192.0.2.1", 4242), ("192.0.2.53", 53)

labels = st.binary(min_size=1, max_size=20)
below_zone = st.lists(labels, max_size=5).map(lambda found: names.join(found)[:-1] + ZONE)
ttls = st.integers(0, 2**31 - 1)


def addresses(size: int, rtype: int) -> st.SearchStrategy[RRset]:
    return st.builds(
        lambda ttl, rdatas: RRset(rtype, ttl, tuple(sorted(rdatas))),
        ttls,
        st.sets(st.binary(min_size=size, max_size=size), min_size=1, max_size=40),
    )


def named(rtype: int, rdata: st.SearchStrategy[bytes]) -> st.SearchStrategy[RRset]:
    return st.builds(
        lambda ttl, rdatas: RRset(rtype, ttl, tuple(sorted(rdatas))), ttls, st.sets(rdata, min_size=1, max_size=9)
    )


rrsets = st.one_of(
    addresses(4, rr.A),
    addresses(16, rr.AAAA),
    named(rr.SRV, below_zone.map(lambda name: rr.srv(0, 1, 80, name))),
    named(rr.NS, below_zone),
    named(rr.PTR, below_zone),
    st.builds(lambda ttl, name: RRset(rr.CNAME, ttl, (name,)), ttls, below_zone),
    st.builds(
        lambda ttl, mname, rname: RRset(rr.SOA, ttl, (rr.soa(mname, rname, 1, 2, 3, 4, 5),)),
        ttls,
        below_zone,
        below_zone,
    ),
    st.builds(lambda ttl, text: RRset(rr.TXT, ttl, (rr.txt(text),)), ttls, st.binary(max_size=255)),
)
sections = st.lists(st.tuples(below_zone.map(names.lower), rrsets), max_size=4)


def read(data: bytes, proto: str = "udp", udp_size: int = 1232) -> Query:
    return message.parse(data, proto, CLIENT, LOCAL, udp_size)


def ask(name: bytes = b"\x03WeB" + ZONE, **options: int) -> Query:
    text = dns.name.from_wire(name, 0)[0]
    return read(dns.message.make_query(text, "A", **options).to_wire())  # type: ignore[arg-type]


Records = Counter[tuple[dns.name.Name, int, bytes]]


def records(found: list[tuple[bytes, RRset]]) -> Records:
    return Counter(
        (dns.name.from_wire(owner, 0)[0], rrset.type, rdata.lower()) for owner, rrset in found for rdata in rrset.rdatas
    )


def as_records(found: list[dns.rrset.RRset]) -> Records:
    return Counter(
        (rrset.name, int(rrset.rdtype), (item.to_wire() or b"").lower()) for rrset in found for item in rrset
    )


@given(below_zone, sections, sections, sections, st.booleans(), st.integers(512, 4096))
def test_every_response_is_what_dnspython_reads(
    name: bytes,
    answer: list[tuple[bytes, RRset]],
    authority: list[tuple[bytes, RRset]],
    additional: list[tuple[bytes, RRset]],
    edns: bool,
    limit: int,
) -> None:
    options = {"use_edns": 0, "payload": limit} if edns else {}
    query = ask(name, **options)
    query.limit = limit
    response = Response(answer=answer, authority=authority, additional=additional, rotate=True)
    wire, rotation, _ = message.encode(query, response)
    assert len(wire) <= limit
    got = dns.message.from_wire(wire, one_rr_per_rrset=True)
    assert got.id == query.id
    assert wire[message.QUESTION_AT : query.question_end] == query.data[message.QUESTION_AT : query.question_end]
    assert (got.edns == 0) is edns
    expected = [records(section) for section in (answer, authority, additional)]
    sent = [as_records(section) for section in (got.answer, got.authority, got.additional)]
    if got.flags & dns.flags.TC:
        assert all(part <= whole for part, whole in zip(sent, expected, strict=True))
        assert sent != expected
    else:
        assert sent == expected
    if rotation is not None:
        assert wire[rotation.start : rotation.end] == rotation.records[: rotation.end - rotation.start]


ENDS = ("", ".local", ".cluster.local", ".provider.example", ".dns.provider.example", ".Cluster.local", ".uster.local")
servers = st.tuples(st.sampled_from(("", "ns", "ns.dns", "a.b.c.ns", "dns", "provider")), st.sampled_from(ENDS)).map(
    lambda found: names.from_text("".join(found).removeprefix("."))
)


@given(below_zone, servers, servers, st.sampled_from((ZONE, names.ROOT)))
def test_a_negative_answer_has_the_soa_that_was_given(name: bytes, mname: bytes, rname: bytes, zone: bytes) -> None:
    soa = RRset(rr.SOA, 5, (rr.soa(mname, rname, 7, 7200, 1800, 86400, 5),))
    wire = message.encode(ask(name), Response(rcode=rr.NXDOMAIN, authority=[(zone, soa)])).wire
    got = dns.message.from_wire(wire)
    assert got.rcode() == dns.rcode.NXDOMAIN
    assert as_records(got.authority) == records([(zone, soa)])
    (rdata,) = (rrset[0] for rrset in got.authority)
    assert (rdata.mname.to_wire(), rdata.rname.to_wire()) == (mname, rname)


@pytest.mark.parametrize(
    ("mname", "rname", "size"),
    [
        pytest.param("ns.dns.cluster.local", "hostmaster.cluster.local", 7 + 2 + 11 + 2, id="in the zone"),
        pytest.param("ns.elsewhere.local", "cluster.local", 13 + 2 + 2, id="above it"),
        pytest.param("ns.provider.example", "host.provider.example", 21 + 5 + 2, id="elsewhere"),
        pytest.param("ns.provider.example", "provider.example", 21 + 2, id="one above the other"),
        pytest.param(
            "ns.dns.cluster.local", "host.dns.cluster.local", 7 + 2 + 5 + 2, id="both below a name of the zone"
        ),
        pytest.param("ns.example", ".", 12 + 1, id="nobody"),
    ],
)
def test_the_names_of_an_soa_are_written_once(mname: str, rname: str, size: int) -> None:
    query = ask(names.from_text("gone.cluster.local"))
    soa = RRset(rr.SOA, 5, (rr.soa(names.from_text(mname), names.from_text(rname), 7, 7200, 1800, 86400, 5),))
    wire = message.encode(query, Response(rcode=rr.NXDOMAIN, authority=[(ZONE, soa)])).wire
    assert len(wire) == query.question_end + 12 + size + 20


def test_as_many_whole_addresses_are_sent_as_fit() -> None:
    query = ask(use_edns=0, payload=512)
    many = RRset(rr.A, 5, tuple(bytes((10, 0, number >> 8, number & 255)) for number in range(300)))
    wire = message.encode(query, Response(answer=[(query.lname, many)])).wire
    got = dns.message.from_wire(wire)
    assert got.flags & dns.flags.TC
    assert len(wire) <= 512 < len(wire) + 16


TYPES = """
    MD 3 MF 4 MB 7 MG 8 MR 9 NULL 10 MINFO 14 RP 17 AFSDB 18 X25 19 ISDN 20 RT 21 NSAP-PTR 23 PX 26 GPOS 27 NXT 30
    EID 31 NIMLOC 32 ATMA 34 APL 42 HIP 55 NINFO 56 RKEY 57 TALINK 58 ZONEMD 63 UINFO 100 UID 101 GID 102 UNSPEC 103
    NID 104 L32 105 L64 106 LP 107 EUI48 108 EUI64 109 NXNAME 128 MAILB 253 MAILA 254 AVC 258 AMTRELAY 260
    RESINFO 261 TA 32768 DLV 32769
"""


@pytest.mark.parametrize(("text", "number"), re.findall(r"(\S+) (\d+)", TYPES))
def test_types_that_are_seldom_have_names_too(text: str, number: str) -> None:
    """A Corefile may have them, as in `acl`, and expressions of `view` compare them."""
    assert (rr.type_number(text), rr.type_text(int(number))) == (int(number), text)


def test_options_that_have_no_room_are_left_out() -> None:
    """The client gets no more bytes than it can take, whatever plugins have to say."""
    query = ask(use_edns=0, payload=512)
    for size, there in ((512 - query.question_end - 11 - 4, True), (512 - query.question_end - 11 - 3, False)):
        wire = message.encode(query, Response(edns_options=message.option(65001, bytes(size)))).wire
        got = dns.message.from_wire(wire)
        assert (len(wire) <= 512, got.edns, bool(got.options)) == (True, 0, there)


def test_owners_follow_the_case_of_the_question() -> None:
    query = ask(b"\x03WeB\x07ClUsTeR\x05local\0")
    wire = message.encode(query, Response(answer=[(query.lname, RRset(rr.A, 5, (b"\x0a\0\0\1",)))])).wire
    assert dns.message.from_wire(wire).answer[0].name.to_text() == "WeB.ClUsTeR.local."


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({}, 512),
        ({"use_edns": 0, "payload": 100}, 512),
        ({"use_edns": 0, "payload": 900}, 900),
        ({"payload": 4096}, 1232),
    ],
)
def test_the_size_of_a_udp_answer_is_the_smaller_of_both_sides(options: dict[str, int], limit: int) -> None:
    asked = dns.message.make_query("web.cluster.local", "A", **options)  # type: ignore[arg-type]
    assert read(asked.to_wire()).limit == limit


def test_over_tcp_a_message_may_have_65535_bytes() -> None:
    data = dns.message.make_query("web.cluster.local", "A").to_wire()
    assert read(data, proto="tcp").limit == 65535


@given(st.binary(max_size=300))
def test_bytes_behind_a_header_are_a_query_or_a_format_error(data: bytes) -> None:
    try:
        query = read(b"\0\1\1\0\0\1\0\0\0\0\0\1" + data)
    except FormatError:
        return
    assert query.question_end <= 12 + len(data)


@given(below_zone, st.integers(0, 65535), st.integers(0, 65535), st.booleans())
def test_what_dnspython_asks_is_understood(name: bytes, rtype: int, payload: int, do: bool) -> None:
    asked = dns.message.make_query(
        dns.name.from_wire(name, 0)[0], dns.rdatatype.RdataType.make(rtype), use_edns=0, payload=payload, want_dnssec=do
    )
    query = read(asked.to_wire())
    assert (query.name, query.type, query.klass) == (name, rtype, rr.IN)
    assert query.edns is not None
    assert (query.edns.payload, query.edns.do, query.edns.version) == (payload, do, 0)


def test_the_answer_to_a_broken_question_has_no_question() -> None:
    wire = message.error(b"\x12\x34\x01\0\0\1\0\0\0\0\0\0\xc0\x0c\0\1\0\1", rr.FORMERR)
    assert wire == b"\x12\x34\x81\x01\0\0\0\0\0\0\0\0"


def test_names_beyond_the_reach_of_a_pointer_are_written_out() -> None:
    data = dns.message.make_query("db.cluster.local", "SRV").to_wire()
    query = read(data, proto="tcp")
    owners = [b"\x04e%03d\x02db" % number + ZONE for number in range(600)]
    srv = RRset(rr.SRV, 5, tuple(rr.srv(0, 1, 80, owner) for owner in owners))
    additional = [(owner, RRset(rr.A, 5, (b"\x0a\0\0\1", b"\x0a\0\0\2"))) for owner in owners]
    response = Response(answer=[(query.lname, srv)], additional=additional)
    wire = message.encode(query, response).wire
    assert len(wire) > 0x4000
    assert as_records(dns.message.from_wire(wire, one_rr_per_rrset=True).additional) == records(additional)


def test_the_query_to_an_upstream_has_the_clients_rd_and_cd_and_an_opt_of_ours() -> None:
    flags = dns.flags.RD | dns.flags.CD
    for sent, edns, do in ((flags, 0, True), (0, 0, False), (flags, -1, False)):
        asked = dns.message.make_query("WeB.example.org", "A", use_edns=edns, want_dnssec=do, payload=4000, flags=sent)
        asked.use_edns(edns, dns.flags.DO if do else 0, 4000, options=[dns.edns.ECSOption("192.0.2.0")])
        query = message.parse(asked.to_wire(), "udp", CLIENT, LOCAL, 1232)
        got = dns.message.from_wire(message.upstream_query(query, 7))
        assert got.id == 7
        assert got.flags == sent | dns.flags.AD
        assert got.question[0].name.to_text() == "WeB.example.org."
        assert (got.edns, got.payload, bool(got.ednsflags & dns.flags.DO), got.options) == (
            edns,
            1232 if edns == 0 else 0,
            do,
            (),
        )
        assert dns.message.from_wire(message.upstream_query(query, 7, edns=False)).edns == -1


def test_a_question_that_follows_a_cname_is_the_same_about_another_name() -> None:
    query = ask(use_edns=0, payload=1400)
    found = message.follow(query, names.from_text("Api.example.com."), 3)
    assert (found.name, found.lname) == (names.from_text("Api.example.com."), names.from_text("api.example.com."))
    assert (found.links, found.limit, found.type, found.edns) == (3, message.MAX_MESSAGE, query.type, query.edns)
    assert message.question(found) == names.from_text("Api.example.com.") + b"\0\1\0\1"
    assert query.lname == names.lower(b"\x03WeB" + ZONE)
