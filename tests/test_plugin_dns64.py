"""dns64: AAAA records are made of A records where there are none."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.plugins import dns64
from kdns.plugins.chain import Next
from kdns.wire import message, names, relay, rr
from kdns.wire.message import Aging, Query, Response
from kdns.wire.rrset import RRset
from tests.support import objects
from tests.support.configs import options, refused
from tests.support.plugins import Ground, answered, query, read
from tests.support.server import Server
from tests.support.upstream import Asked, FakeUpstream

COREFILE = """
.:$dns {
    bind $addresses
    ready $host:$ready
    prometheus $host:$metrics
    dns64
    forward . $upstream
}
kept.test:$dns {
    bind $addresses
    dns64
    cache
    forward . $upstream
}
short.test:$dns {
    bind $addresses
    dns64 2001:db8::/32 {
        allow_ipv4
    }
    acl short.test {
        drop type A
    }
    forward . $upstream
}
all.test:$dns {
    bind $addresses
    dns64 {
        translate_all
        prefix 2001:db8:1:2::/64
        allow_ipv4
    }
    forward . $upstream
}
cluster.local:$dns {
    bind $addresses
    prometheus $host:$metrics
    dns64
    kubernetes cluster.local {
        manifests $manifests
    }
}
"""
SOA = "300 SOA ns.test. root.test. 1 2 3 4 60"
ZONE = {
    "v4": {"A": ["1000 A 192.0.2.1", "1000 A 192.0.2.2"]},
    "quick": {"A": ["20 A 192.0.2.1"]},
    "nosoa": {"A": ["1000 A 192.0.2.1"]},
    "both": {"A": ["1000 A 192.0.2.1"], "AAAA": ["1000 AAAA 2001:db8::1"]},
    "v6": {"AAAA": ["1000 AAAA 2001:db8::1"]},
    "txt": {"TXT": ["1000 TXT x"]},
}


async def script(asked: Asked) -> None:
    """The last labels of a name are its zone. `al.` is an alias, `fails.` fails for AAAA."""
    first, _, zone = asked.name.partition(".")
    question = asked.message
    response = dns.message.make_response(question, recursion_available=True)
    owner = question.question[0].name
    if first == "al":
        target = f"v4.{zone}."
        response.answer.append(dns.rrset.from_text(owner, 50, "IN", "CNAME", target))
        owner, first = dns.name.from_text(target), "v4"
    if first == "fails" and asked.rdtype == "AAAA":
        response.set_rcode(dns.rcode.SERVFAIL)
    elif first == "gone":
        response.set_rcode(dns.rcode.NXDOMAIN)
    found = ZONE.get("v4" if first == "fails" else first, {}).get(asked.rdtype, [])
    for record in found:
        ttl, rdtype, rdata = record.split(maxsplit=2)
        response.answer.append(dns.rrset.from_text(owner, int(ttl), "IN", rdtype, rdata))
    if not found and first not in ("nosoa", "fails"):
        ttl, rdtype, rdata = SOA.split(maxsplit=2)
        response.authority.append(dns.rrset.from_text("test.", int(ttl), "IN", rdtype, rdata))
    asked.send(response.to_wire())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    service = objects.service("web", ips=["10.96.0.1"], ports=[("http", 80, "TCP")])
    with (
        FakeUpstream(script) as upstream,
        Server(
            tmp_path_factory.mktemp("dns64"), [service], corefile=COREFILE.replace("$upstream", upstream.to)
        ) as running,
    ):
        if "::1" not in running.addresses:
            pytest.skip("no IPv6")
        yield running


def ask(server: Server, name: str, rdtype: str = "AAAA", where: str = "::1", **make: object) -> dns.message.Message:
    asked = dns.message.make_query(name, rdtype, **make)  # type: ignore[arg-type]
    return dns.query.udp(asked, where, timeout=3, port=server.port)


def records(found: dns.message.Message) -> list[str]:
    return [f"{rrset.name} {rrset.ttl} {rdata}" for rrset in found.answer for rdata in rrset]


def test_addresses_are_made_where_there_are_none(server: Server) -> None:
    found = ask(server, "v4.a.test")
    made = ["v4.a.test. 300 64:ff9b::c000:201", "v4.a.test. 300 64:ff9b::c000:202"]
    assert (found.rcode(), records(found)) == (dns.rcode.NOERROR, made)
    assert found.flags & dns.flags.RA


def test_the_ttl_is_that_of_the_record_the_soa_or_600(server: Server) -> None:
    assert records(ask(server, "quick.a.test")) == ["quick.a.test. 20 64:ff9b::c000:201"]
    assert records(ask(server, "nosoa.a.test")) == ["nosoa.a.test. 600 64:ff9b::c000:201"]


def test_both_answers_may_come_from_the_cache(server: Server) -> None:
    """It has them for as long as the SOA says, which then rules."""
    for _ in range(3):
        found = ask(server, "v4.kept.test")
        assert [str(rdata) for rdata in found.answer[0]] == ["64:ff9b::c000:201", "64:ff9b::c000:202"]
        assert 57 <= found.answer[0].ttl <= 60


def test_an_alias_stays(server: Server) -> None:
    assert records(ask(server, "al.a.test")) == [
        "al.a.test. 50 v4.a.test.",
        "v4.a.test. 300 64:ff9b::c000:201",
        "v4.a.test. 300 64:ff9b::c000:202",
    ]


def test_a_failure_counts_as_no_addresses_and_a_name_that_is_not_there_does_not(server: Server) -> None:
    assert len(ask(server, "fails.a.test").answer[0]) == 2
    gone = ask(server, "gone.a.test")
    assert (gone.rcode(), gone.answer, len(gone.authority)) == (dns.rcode.NXDOMAIN, [], 1)


def test_what_has_addresses_or_none_at_all_stays_as_it_is(server: Server) -> None:
    assert records(ask(server, "both.a.test")) == ["both.a.test. 1000 2001:db8::1"]
    empty = ask(server, "txt.a.test")
    assert (empty.rcode(), empty.answer, len(empty.authority)) == (dns.rcode.NOERROR, [], 1)


def test_other_questions_and_clients_get_what_there_is(server: Server) -> None:
    assert records(ask(server, "v4.b.test", "A"))[0] == "v4.b.test. 1000 192.0.2.1"
    assert not ask(server, "v4.b.test", "HTTPS").answer
    assert not ask(server, "v4.b.test", where="127.0.0.1").answer
    assert not ask(server, "v4.b.test", want_dnssec=True, flags=dns.flags.RD | dns.flags.CD).answer
    assert ask(server, "v4.b.test", flags=dns.flags.RD | dns.flags.CD).answer
    assert ask(server, "v4.b.test", want_dnssec=True).answer


def test_translate_all_takes_the_place_of_addresses_that_there_are(server: Server) -> None:
    made = ["both.all.test. 600 2001:db8:1:2:c0:2:100:0"]
    assert records(ask(server, "both.all.test")) == made
    assert records(ask(server, "both.all.test", where="127.0.0.1")) == made
    assert records(ask(server, "v6.all.test")) == ["v6.all.test. 1000 2001:db8::1"]


def test_addresses_that_nobody_tells_leave_the_first_answer(server: Server) -> None:
    """The question for A records is dropped; the client has its answer."""
    found = ask(server, "v4.short.test", where="127.0.0.1")
    assert (found.rcode(), found.answer, len(found.authority)) == (dns.rcode.NOERROR, [], 1)


def test_names_of_the_cluster_over_every_socket_and_when_they_change(server: Server) -> None:
    name = "web.default.svc.cluster.local"
    for _ in range(3):
        assert records(ask(server, name)) == [f"{name}. 5 64:ff9b::a60:1"]
        assert not ask(server, name, where="127.0.0.1").answer
    missing = ask(server, "nobody.default.svc.cluster.local")
    assert missing.rcode() == dns.rcode.NXDOMAIN


def test_queries_that_were_answered_so_are_counted(server: Server) -> None:
    metric, label = "coredns_dns64_requests_translated_total", f"dns://[::1]:{server.port}"
    before = server.metrics().value(metric, server=label)
    ask(server, "v4.c.test")
    ask(server, "both.c.test")
    ask(server, "txt.c.test")
    assert server.metrics().value(metric, server=label) - before == 1


class Chain:
    """The rest of the chain, by type."""

    def __init__(self, responses: dict[int, Response]) -> None:
        self.responses = responses
        self.asked: list[int] = []

    async def __call__(self, query: Query) -> Response:
        self.asked.append(query.type)
        return self.responses[query.type]


def test_what_is_made_of_our_own_names_may_be_kept_as_long_as_both_answers_hold() -> None:
    asked = query("a.test", "AAAA", client=("2001:db8::7", 4711))
    handler = dns64.Handler(dns64.Options(), Ground().site)
    address = [(asked.lname, RRset(rr.A, 5, (rr.address("10.0.0.1"),)))]

    def kept(first: bool, second: bool) -> tuple[bool, tuple[bytes, ...]]:
        behind: Next = Chain({
            rr.AAAA: Response(authoritative=True, cacheable=first, depends=(b"\1a\0",)),
            rr.A: Response(authoritative=True, answer=address, cacheable=second, depends=(b"\1b\0",), rotate=True),
        })  # fmt: skip
        response = answered(handler, asked, behind)
        assert (response.plugin, response.rotate, response.authoritative) == ("dns64", True, False)
        assert read(asked, response).answer
        return response.cacheable, response.depends

    assert kept(True, True) == (True, (b"\1a\0", b"\1b\0"))
    assert not kept(True, False)[0]
    assert not kept(False, True)[0]


@pytest.mark.parametrize(("first", "second", "kept"), [(True, True, True), (True, False, False), (False, True, False)])
def test_that_there_is_nothing_may_be_kept_as_long_as_both_answers_hold(first: bool, second: bool, kept: bool) -> None:
    asked = query("a.test", "AAAA", client=("2001:db8::7", 4711))
    handler = dns64.Handler(dns64.Options(), Ground().site)
    behind = Chain({
        rr.AAAA: Response(cacheable=first, depends=(b"\1a\0",)),
        rr.A: Response(rcode=rr.REFUSED, cacheable=second, depends=(b"\1b\0",)),
    })  # fmt: skip
    response = answered(handler, asked, behind)
    assert (response.rcode, response.cacheable) == (rr.NOERROR, kept)
    assert response.depends == (b"\1a\0", b"\1b\0")


def from_elsewhere(
    asked: Query,
    *records: dns.rrset.RRset,
    flags: int = 0,
    rcode: dns.rcode.Rcode = dns.rcode.NOERROR,
    rdtype: str = "AAAA",
) -> Response:
    """Another server's answer, which `cache` has."""
    made = dns.message.make_response(dns.message.make_query(names.to_text(asked.name), rdtype))
    made.flags |= flags
    made.set_rcode(rcode)
    made.answer.extend(records)
    made.authority.append(dns.rrset.from_text("test.", 300, "IN", "SOA", "ns.test. root.test. 1 2 3 4 60"))
    wire = made.to_wire()
    found = relay.read(wire, wire[12 : asked.question_end])
    aging = Aging(9.0, 9.0, True, memoryview(b""), (0, 0))
    return Response(relay=found, cacheable=True, aging=aging, plugin="cache")


A_RECORD = dns.rrset.from_text("a.test.", 60, "IN", "A", "192.0.2.1")


def test_that_there_is_nothing_is_not_kept_for_as_long_as_the_first_answer_holds() -> None:
    """Whoever asks next may get addresses, as `cache` keeps the other answer for a shorter time."""
    asked = query("a.test", "AAAA", client=("2001:db8::7", 4711))
    handler = dns64.Handler(dns64.Options(), Ground().site)
    behind = Chain({rr.AAAA: from_elsewhere(asked), rr.A: from_elsewhere(asked, rdtype="A")})
    response = answered(handler, asked, behind)
    assert response is behind.responses[rr.AAAA]
    assert not response.cacheable


def test_a_look_up_that_fails_is_no_answer() -> None:
    asked = query("a.test", "AAAA", client=("2001:db8::7", 4711))
    six = [(asked.lname, RRset(rr.AAAA, 5, (rr.address("2001:db8::1"),)))]
    failed = (
        Response(rcode=rr.SERVFAIL, plugin="forward", error="why"),
        from_elsewhere(asked, rcode=dns.rcode.SERVFAIL, rdtype="A"),
    )
    for each in failed:
        handler = dns64.Handler(dns64.Options(), Ground().site)
        response = answered(handler, asked, Chain({rr.AAAA: from_elsewhere(asked), rr.A: each}))
        assert (response.rcode, response.cacheable, response.error) == (rr.SERVFAIL, False, each.error)
        assert read(asked, response).rcode() == dns.rcode.SERVFAIL
        every = dns64.Handler(dns64.Options(translate_all=True), Ground().site)
        assert answered(every, asked, Chain({rr.AAAA: Response(answer=six), rr.A: each})).answer == six


def test_what_is_truncated_is_to_be_asked_for_over_tcp() -> None:
    asked = query("a.test", "AAAA", client=("2001:db8::7", 4711))
    handler = dns64.Handler(dns64.Options(), Ground().site)
    for original in (from_elsewhere(asked, flags=dns.flags.TC), Response(set_flags=message.TC, plugin="template")):
        behind = Chain({rr.AAAA: original, rr.A: from_elsewhere(asked, A_RECORD, rdtype="A")})
        assert answered(handler, asked, behind) is original
        assert behind.asked == [rr.AAAA]
    behind = Chain({rr.AAAA: from_elsewhere(asked), rr.A: from_elsewhere(asked, flags=dns.flags.TC, rdtype="A")})
    assert read(asked, answered(handler, asked, behind)).flags & dns.flags.TC


def test_failures_of_our_own_and_silence_stay_what_they_are() -> None:
    asked = query("a.test", "AAAA", client=("2001:db8::7", 4711))
    handler = dns64.Handler(dns64.Options(translate_all=True), Ground().site)
    for response in (Response(rcode=rr.SERVFAIL), Response(rcode=rr.SERVFAIL, silent=True)):
        behind = Chain({rr.AAAA: response})
        assert answered(handler, asked, behind) is response
        assert behind.asked == [rr.AAAA]


@given(st.sampled_from(dns64.LENGTHS), st.binary(min_size=16, max_size=16), st.binary(min_size=4, max_size=4))
def test_an_address_has_the_prefix_in_front_the_ipv4_address_behind_and_a_zero_octet(
    length: int, bits: bytes, address: bytes
) -> None:
    network = ipaddress.IPv6Network((bits, length), strict=False)
    made = dns64.Prefix(str(network)).around(address)
    assert len(made) == 16
    assert ipaddress.IPv6Address(made) in network
    size = length // 8
    rest = made[size:]
    if length < 96:
        assert made[8] == 0
        rest = made[size:8] + made[9:]
    assert rest.startswith(address)
    assert not rest[4:].strip(b"\0")


def test_the_examples_of_rfc_6052() -> None:
    """2.4, table 2."""
    for prefix, text in (
        ("2001:db8::/32", "2001:db8:c000:221::"),
        ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
        ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
        ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
        ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
        ("2001:db8:122:344::/96", "2001:db8:122:344::c000:221"),
    ):
        assert dns64.Prefix(prefix).around(rr.address("192.0.2.33")) == rr.address(text)


def test_options() -> None:
    assert options("dns64") == dns64.Options()
    assert options("dns64 64:1337::1/96") == dns64.Options("64:1337::/96")
    assert options("dns64 {\nprefix 2001:db8::/40\n}") == dns64.Options("2001:db8::/40")
    assert options("dns64 {\ntranslate_all\n}") == dns64.Options(translate_all=True)
    assert options("dns64 {\nallow_ipv4\n}") == dns64.Options(allow_ipv4=True)


@pytest.mark.parametrize(
    ("directive", "messages"),
    [
        ("dns64 10.0.0.0/8", ['1: dns64: "10.0.0.0/8" is no prefix for IPv4 addresses']),
        ("dns64 2001:db8::/72", ['1: dns64: "2001:db8::/72" is no prefix for IPv4 addresses']),
        ("dns64 2001:db8::", ['1: dns64: "2001:db8::" is no prefix for IPv4 addresses']),
        ("dns64 x", ['1: dns64: "x" is neither a network nor an address']),
        ("dns64 64:ff9b::/96 x", ["1: dns64 has 2 arguments"]),
        ("dns64 64:ff9b::/96 {\nprefix 64:ff9b::/96\n}", ["2: dns64 has two prefixes"]),
        ("dns64 {\nprefix\n}", ['2: dns64: "prefix" has 0 arguments']),
        ("dns64 {\ntranslate_all 1\n}", ['2: dns64: "translate_all" has 1 argument']),
        ("dns64 {\ntranslate\n}", ['2: dns64 has no option "translate"']),
    ],
)
def test_mistakes(directive: str, messages: list[str]) -> None:
    assert refused(directive) == messages
