"""rewrite: what rules are understood as, and what each does to a query and a response."""

from __future__ import annotations

import asyncio
import pickle
import time
from dataclasses import replace

import dns.edns
import dns.message
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns.errors import ConfigError
from kdns.plugins import rewrite
from kdns.plugins.cache import key_of
from kdns.plugins.rewriting import NoName, dotted, name_of, text_of
from kdns.wire import message, names, relay, rr
from kdns.wire.message import Aging, Query, Response
from kdns.wire.rrset import RRset
from tests.support.configs import options, refused
from tests.support.plugins import Behind, Ground, query, read

CODE = 0xFFEE


def understood(rules: str) -> rewrite.Options:
    """The rules of a server block, one on each line."""
    found: rewrite.Options = options("\n".join(f"rewrite {line}" for line in rules.splitlines()))
    return found


def handler(rules: str, ground: Ground | None = None) -> rewrite.Handler:
    return rewrite.Handler(understood(rules), (ground or Ground()).site)


def asked(rules: str, query: Query, behind: Behind | None = None) -> tuple[Query, Response]:
    """The query that gets through the rules, and the response."""
    behind = behind or Behind()
    response = asyncio.run(handler(rules)(query, behind))
    assert behind.query is not None
    return behind.query, response


def answer(*records: tuple[str, int, bytes]) -> list[tuple[bytes, RRset]]:
    return [(names.from_text(owner), RRset(rtype, 60, (rdata,))) for owner, rtype, rdata in records]


# Words


@pytest.mark.parametrize(
    ("directive", "mistakes"),
    [
        ("rewrite", ["1: rewrite has no rule"]),
        ("rewrite continue", ["1: rewrite has no rule"]),
        ("rewrite {\n}", ["1: rewrite has no rule"]),
        ("rewrite nmae a b", ['1: rewrite: "nmae" is not known']),
        ("rewrite answer name a b", ['1: rewrite: "answer" is not known']),
        ("rewrite stop name a b {\nanswer auto\n}", ["1: rewrite has both a rule and a block"]),
        ("rewrite {\nname a b {\nx\n}\n}", ['2: rewrite: "name" has a block']),
        ("rewrite name a", ["1: rewrite: name has 1 argument"]),
        ("rewrite name regex a", []),
        ("rewrite name a b answer auto", ['1: rewrite: "a" is not known']),
        ("rewrite name exact a..b c", ['1: rewrite: "a..b" is no name']),
        ("rewrite name exact a .", []),
        ("rewrite name suffix é a", ['1: rewrite: "é" has letters beyond ASCII']),
        ("rewrite name regex ( a", ['1: rewrite: "(" is no expression: missing ): (']),
        ("rewrite name regex (a) {2}", ['1: rewrite: "{2}" has {2}, and the expression fewer groups']),
        ("rewrite name exact a b c", ['1: rewrite: "c" follows a rule']),
        ("rewrite name exact a b answer", ["1: rewrite: answer has 0 arguments"]),
        ("rewrite name exact a b answer nmae c d", ['1: rewrite: "nmae" is not known']),
        ("rewrite name exact a b answer name c", ["1: rewrite: answer name has 1 argument"]),
        ("rewrite name exact a b answer name ( d", ['1: rewrite: "(" is no expression: missing ): (']),
        ("rewrite name suffix a b answer auto name c d", ["1: rewrite: has both answer auto and answer name"]),
        ("rewrite type A", ["1: rewrite: type has 1 argument"]),
        ("rewrite type X A", ['1: rewrite: "X" is no record type']),
        ("rewrite type AXFR A", ["1: rewrite: AXFR is no type that can be changed"]),
        ("rewrite class IN X", ['1: rewrite: "X" is no class']),
        ("rewrite ttl a", ["1: rewrite: ttl has 1 argument"]),
        ("rewrite ttl a b c d", ["1: rewrite: ttl has 4 arguments"]),
        *((f"rewrite ttl a {text}", [f'1: rewrite: "{text}" is no TTL']) for text in ("-", "x", "2147483648", "1-2-3")),
        ("rewrite ttl a 5-4", ['1: rewrite: "5-4" ends before it begins']),
        ("rewrite rcode a 1", ["1: rewrite: rcode has 2 arguments"]),
        ("rewrite rcode a 1 24", ['1: rewrite: "24" is out of range']),
        ("rewrite rcode a b 1", ['1: rewrite: "b" is no response code']),
        ("rewrite cname a", ["1: rewrite: cname has 1 argument"]),
        ("rewrite cname suffix a \"\"", ["1: rewrite: cname has an empty argument"]),
        ("rewrite edns0 local", ["1: rewrite: edns0 has 1 argument"]),
        ("rewrite edns0 cookie set", ['1: rewrite: "cookie" is not known']),
        ("rewrite edns0 local add 1 a", ['1: rewrite: "add" is not known']),
        ("rewrite edns0 local set 1", ["1: rewrite: edns0 has 3 arguments"]),
        ("rewrite edns0 local set 65536 a", ['1: rewrite: "65536" is out of range']),
        ("rewrite edns0 local set 1x a", ['1: rewrite: "1x" is not a whole number']),
        ("rewrite edns0 local set 1 0xabc", ['1: rewrite: "0xabc" is not hexadecimal']),
        ("rewrite edns0 local set 1 {client}", ['1: rewrite: "{client}" is no variable']),
        (f"rewrite edns0 local set 1 {'a' * 1025}", ["1: rewrite: the data has 1025 bytes"]),
        ("rewrite edns0 local unset 1 revert", ["1: rewrite: edns0 has 4 arguments"]),
        ("rewrite edns0 nsid set x", ["1: rewrite: edns0 has 3 arguments"]),
        ("rewrite edns0 subnet set 24", ["1: rewrite: edns0 has 3 arguments"]),
        ("rewrite edns0 subnet set 33 56", ['1: rewrite: "33" is out of range']),
        ("rewrite edns0 subnet set 24 129", ['1: rewrite: "129" is out of range']),
    ],
)  # fmt: skip
def test_mistakes(directive: str, mistakes: list[str]) -> None:
    if mistakes:
        assert refused(directive) == mistakes
    else:
        assert options(directive).rules


WORDS = (
    "continue stop name exact prefix suffix regex answer auto value type A class IN edns0 local nsid subnet set append"
    " unset revert 0xffee 24 {qname} ttl 1-2 rcode 2 cname (.) {1} a.b .. é {x/y}"
)


@given(st.lists(st.sampled_from(WORDS.split()), max_size=9))
def test_any_words_are_rules_or_mistakes(words: list[str]) -> None:
    try:
        found = options(" ".join(["rewrite", *(f'"{word}"' for word in words)]))
    except ConfigError:
        return
    assert pickle.loads(pickle.dumps(found)) == found  # noqa: S301
    assert len(found.rules) == 1


def test_rules_of_several_directives_are_one_list_in_their_order() -> None:
    found = understood("type A AAAA\ncontinue class CH IN\nstop type MX A")
    assert [rule.stop for rule in found.rules] == [True, False, True]
    assert len({*map(repr, found.rules)}) == 3
    assert options("rewrite stop {\ntype\nA AAAA\n}") == understood("TYPE a aaaa")


# Names


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"\0", "."),
        (b"\1a\0", "a."),
        (b"\4a.b \0", "a\\.b\\ ."),
        (b"\3'@;\0", "\\'\\@\\;."),
        (b'\4"()\\\0', '\\"\\(\\)\\\\.'),
        (b"\4$#\xff\x01\0", "$#\\255\\001."),
    ],
)
def test_names_are_written_as_coredns_does(name: bytes, text: str) -> None:
    assert text_of(name) == text
    assert name_of(text) == name


wire_names = st.lists(st.binary(min_size=1, max_size=63), max_size=4).map(names.join)


@given(wire_names)
def test_a_name_and_its_text_are_one(name: bytes) -> None:
    text = text_of(name)
    assert name_of(text) == name
    assert dotted(text) == text
    assert text.isascii()
    assert text.isprintable()


@pytest.mark.parametrize("text", ["", "..", ".a", "a..b", "a" * 64, "a." * 128, "a\\", "a" * 5000, "\udc80"])
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(NoName):
        name_of(text)


@pytest.mark.parametrize(
    ("text", "made"), [("", "."), ("a", "a."), ("a.", "a."), ("a\\.", "a\\.."), ("a\\\\.", "a\\\\.")]
)
def test_a_dot_at_the_end(text: str, made: str) -> None:
    assert dotted(text) == made


def test_groups_are_put_in_once() -> None:
    got, _ = asked(r"name regex ^(.*)\.(b)\.$ {1}.{2}.c", query("{2}{0}.b"))
    assert text_of(got.lname) == "{2}{0}.b.c."


def test_what_no_rule_changes_stays_as_it_was_asked() -> None:
    client = query("A.Test", flags=message.RD | message.CD)
    got, _ = asked("continue type A MX\ncontinue class IN CH\nname b.test c.test", client)
    assert (got.name, got.lname, got.type, got.klass) == (client.name, client.lname, rr.MX, rr.CH)
    assert message.question(got) == client.name + b"\0\x0f\0\3"
    assert (got.flags, got.id, got.client, got.proto, got.limit) == (
        client.flags, client.id, client.client, client.proto, client.limit,
    )  # fmt: skip
    assert asked("name b.test c.test", client)[0] is client


def test_flags_that_are_changed_behind_it_are_the_responses() -> None:
    async def header(query: Query) -> Response:
        query.flags |= message.RD
        return Response()

    client = query("a.test", flags=0)
    response = asyncio.run(handler("name a.test b.test")(client, header))
    assert read(client, response).flags & message.RD


# Options of EDNS


def sent(*data: tuple[int, bytes]) -> Query:
    given = [dns.edns.GenericOption(dns.edns.OptionType.make(code), octets) for code, octets in data]
    return query("A.test", use_edns=0, options=given)


@pytest.mark.parametrize(
    ("rules", "there", "passed", "shown"),
    [
        (f"edns0 local set {CODE} abc", b"old", b"abc", b"abc"),
        (f"edns0 local set {CODE} abc", None, b"abc", b"abc"),
        (f"edns0 local set {CODE} 0x00fF", None, b"\0\xff", b"\0\xff"),
        (f"edns0 local set {CODE} 0x", None, b"", b""),
        (f"edns0 local append {CODE} abc", b"old", b"old", b"old"),
        (f"edns0 local append {CODE} abc", None, b"abc", b"abc"),
        (f"edns0 local replace {CODE} abc", b"old", b"abc", b"abc"),
        (f"edns0 local replace {CODE} abc", None, None, None),
        ("edns0 local unset 0xffee", b"old", None, None),
        ("edns0 local unset 0o177756", None, None, None),
        (f"edns0 local set {CODE} abc revert", b"old", b"abc", b"old"),
        (f"edns0 local set {CODE} abc revert", None, b"abc", None),
        (f"edns0 local append {CODE} abc revert", None, b"abc", None),
        (f"edns0 local replace {CODE} abc revert", b"old", b"abc", b"old"),
        (f"continue edns0 local set {CODE} abc\nedns0 local replace {CODE} bcd revert", b"old", b"bcd", b"abc"),
        (f"continue edns0 local set {CODE} abc revert\nedns0 local replace {CODE} bcd", None, b"bcd", None),
        (f"continue edns0 local set {CODE} abc revert\nedns0 local set {CODE} bcd revert", b"old", b"bcd", b"old"),
        (f"edns0 local replace {CODE} abc\nedns0 local set {CODE} second", None, b"second", b"second"),
        (f"edns0 local set {CODE} abc\nedns0 local set {CODE} second", None, b"abc", b"abc"),
        (f"edns0 local set {CODE} {{qname}}", None, b"A.test.", b"A.test."),
        (f"continue name a.test b.test\nedns0 local set {CODE} {{qname}}", None, b"b.test.", b"b.test."),
        (f"continue type A MX\nedns0 local set {CODE} {{qtype}}", None, b"\0\x0f", b"\0\x0f"),
        (f"edns0 local set {CODE} {{client_ip}}", None, b"\xc0\0\2\7", b"\xc0\0\2\7"),
        (f"edns0 local set {CODE} {{client_port}}", None, b"\x9c\x40", b"\x9c\x40"),
        (f"edns0 local set {CODE} {{server_ip}}", None, b"\xc0\0\2\1", b"\xc0\0\2\1"),
        (f"edns0 local set {CODE} {{server_port}}", None, b"\0\x35", b"\0\x35"),
        (f"edns0 local set {CODE} {{protocol}}", None, b"udp", b"udp"),
        (f"edns0 local set {CODE} {{some/label}}", b"old", b"old", b"old"),
    ],
)
def test_a_local_option(rules: str, there: bytes | None, passed: bytes | None, shown: bytes | None) -> None:
    client = sent(*([] if there is None else [(CODE, there)]), (CODE + 1, b"other"))
    got, response = asked(rules, client)
    assert message.passed_options(got) == (b"" if passed is None else message.option(CODE, passed))
    upstream = dns.message.from_wire(message.upstream_query(got, 1))
    assert [option.to_wire() for option in upstream.options] == ([] if passed is None else [passed])
    assert response.edns_options == (b"" if shown is None else message.option(CODE, shown))
    assert (client.edns or got.edns) is not None
    assert client.passed == ()


@pytest.mark.parametrize(
    ("rules", "there", "passed"),
    [
        ("edns0 nsid set", b"old", b""),
        ("edns0 nsid set revert", None, b""),
        ("edns0 nsid append", b"old", b"old"),
        ("edns0 nsid replace", None, None),
        ("edns0 nsid unset", b"old", None),
    ],
)
def test_an_option_for_identifiers(rules: str, there: bytes | None, passed: bytes | None) -> None:
    got, response = asked(rules, sent(*([] if there is None else [(message.NSID, there)])))
    assert message.passed_options(got) == (b"" if passed is None else message.option(message.NSID, passed))
    assert response.edns_options == b""


@pytest.mark.parametrize(
    ("rules", "client", "there", "passed"),
    [
        ("edns0 subnet set 24 56", "192.0.2.7", None, "00011800c00002"),
        ("edns0 subnet set 23 56", "192.0.3.7", b"old", "00011700c00002"),
        ("edns0 subnet set 0 0", "192.0.2.7", None, "00010000"),
        ("edns0 subnet set 32 56", "::ffff:192.0.2.7", None, "00012000c0000207"),
        ("edns0 subnet set 24 56", "2001:db8:1:2:3::", None, "0002380020010db8000100"),
        ("edns0 subnet set 24 128", "fe80::1%eth0", None, "00028000fe800000000000000000000000000001"),
        ("edns0 subnet append 24 56", "192.0.2.7", b"\1", "01"),
        ("edns0 subnet replace 24 56", "192.0.2.7", None, None),
        ("edns0 subnet unset", "192.0.2.7", b"\1", None),
    ],
)
def test_the_clients_network(rules: str, client: str, there: bytes | None, passed: str | None) -> None:
    got, response = asked(rules, replace(sent(*([] if there is None else [(8, there)])), client=(client, 9)))
    assert message.passed_options(got) == (b"" if passed is None else message.option(8, bytes.fromhex(passed)))
    assert response.edns_options == b""


def test_a_client_without_an_opt_gets_none_and_other_servers_do() -> None:
    client = query("a.test")
    got, response = asked(f"edns0 local set {CODE} abc", client)
    assert client.edns is None
    assert read(client, response).edns == -1
    assert dns.message.from_wire(message.upstream_query(got, 1)).edns == 0
    got, _ = asked("edns0 local unset 1", client)
    assert got is client


def test_metadata_is_an_options_data() -> None:
    class Known:
        def value(self, label: str) -> str:
            return {"kubernetes/namespace": "ö"}.get(label, "")

        def note(self, label: str, value: str) -> None:
            raise AssertionError

    client = replace(query("a.test"), metadata=Known())
    got, _ = asked(f"edns0 local set {CODE} {{kubernetes/namespace}}", client)
    assert message.passed_options(got) == message.option(CODE, "ö".encode())
    got, _ = asked(f"edns0 local set {CODE} {{kubernetes/service}}", client)
    assert message.passed_options(got) == b""


def test_too_many_bytes_of_options_are_not_sent() -> None:
    behind = Behind()
    client = sent((CODE, bytes(1000)), (CODE + 1, bytes(100)))
    rules = "\n".join(f"continue edns0 local append {CODE + number} {'x' * 1024}" for number in range(5))
    response = asyncio.run(handler(rules)(client, behind))
    assert (response.rcode, behind.query) == (rr.SERVFAIL, None)
    assert "4096 bytes" in response.error


def test_options_that_leave_no_room_are_left_out() -> None:
    client = sent((CODE, bytes(500)))
    client.limit = 512
    assert asked(f"edns0 local append {CODE} abc", client)[1].edns_options == b""
    client.limit = 1232
    assert len(asked(f"edns0 local append {CODE} abc", client)[1].edns_options) == 504


def test_what_other_servers_are_told_keeps_answers_apart() -> None:
    rules = f"edns0 local append {CODE} abc"
    keys = {key_of(asked(rules, client)[0]) for client in (query("a.test"), sent((CODE, b"abc")), sent((CODE, b"x")))}
    assert len(keys) == 2
    assert key_of(query("a.test")) not in keys


# Responses


PART = "suffix .old.test .new.test answer value ^(.*)\\.new\\.test\\.$ {1}.old.test"
SOA = bytes(20)


@pytest.mark.parametrize(
    ("rtype", "before", "behind"),
    [
        (rr.CNAME, b"", b""),
        (rr.NS, b"", b""),
        (rr.PTR, b"", b""),
        (39, b"", b""),
        (rr.MX, b"\0\1", b""),
        (rr.SRV, b"\0\1\0\2\0\3", b""),
        (rr.SOA, b"", b"\1r\3new\4test\0" + SOA),
        (35, b"\0\1\0\2\1s\1t\3!x!", b""),
    ],
)
def test_names_in_data(rtype: int, before: bytes, behind: bytes) -> None:
    old, new = names.from_text("Ab.old.test"), names.from_text("Ab.new.test")
    records = [(names.from_text("x.new.test"), RRset(rtype, 60, (before + new + behind, before + old + behind)))]
    response = Response(answer=records, authority=records, additional=records)
    _, changed = asked(f"name {PART}", query("a.old.test"), Behind(response))
    wanted = [(names.from_text("x.new.test"), RRset(rtype, 60, (before + old + behind,)))]
    assert changed.answer == changed.authority == changed.additional == wanted
    assert response.answer is records, "others may have it too"
    _, changed = asked("name suffix .old.test .new.test answer auto", query("a.old.test"), Behind(response))
    assert changed.answer == [(names.from_text("x.old.test"), wanted[0][1])]


@pytest.mark.parametrize(
    ("rules", "target", "changed"),
    [
        ("name a.old.test new.test", "NEW.test", "a.old.test."),
        ("name a.old.test new.test", "X.New.test", "X.a.old.test."),
        ("name a.old.test new.test", "xnew.test", "xnew.test."),
        ("name suffix .old.test .new.test answer auto", "X.NEW.test", "X.old.test."),
        ("name suffix old.test new.test answer auto", "xnew.test", "xold.test."),
        ("name suffix .old.test .new.test", "x.new.test", "x.new.test."),
        (r"name suffix old.test new.test answer value ^\. a. answer value ^([^.]*)\.(.*)$ .{2}", "x.new.test", "a."),
        (
            r"continue name suffix old.test mid.test answer value ^\.(.*)\.$ a.{1}"
            + "\n"
            + r"name suffix mid.test new.test answer value ^[^.]*\.(.*)\.$ .{1}",
            "x.new.test",
            "a.new.test.",
        ),
    ],
)
def test_names_are_changed_back(rules: str, target: str, changed: str) -> None:
    behind = Behind(Response(answer=answer(("other.test", rr.CNAME, names.from_text(target)))))
    _, response = asked(rules, query("a.old.test"), behind)
    assert response.answer == answer(("other.test", rr.CNAME, names.from_text(changed)))


@pytest.mark.parametrize(
    "rdata", [b"", b"\0\1\0\2", b"\0\1\0\2\xff\0\0\1a\0", b"\0\1\0\2\0\0\0\xc0\x0c", b"\0\1\0\2\0\0\0\1a\0x"]
)
def test_malformed_data_stays(rdata: bytes) -> None:
    response = Response(answer=[(names.from_text("a.new.test"), RRset(35, 60, (rdata,)))])
    _, changed = asked("name suffix .old.test .new.test answer auto", query("a.old.test"), Behind(response))
    assert changed.answer == [(names.from_text("a.old.test"), RRset(35, 60, (rdata,)))]


def test_answers_are_changed_back_in_reverse_order() -> None:
    rules = "continue name suffix .a .b answer auto\nname suffix .b .c answer auto"
    got, changed = asked(rules, query("x.a"), Behind(Response(answer=answer(("x.c", rr.CNAME, b"\1y\1b\0")))))
    assert text_of(got.lname) == "x.c."
    assert changed.answer == answer(("x.a", rr.CNAME, b"\1y\1a\0"))


def relayed(*records: str, ttl: int = 60, question: str = "a.test", tc: bool = False) -> relay.Relay:
    """Another server's response to a question for type A."""
    made = query(question)
    response = dns.message.make_response(dns.message.from_wire(made.data))
    response.flags |= message.TC if tc else 0
    for text in records:
        rdtype, rdata = text.split(" ", 1)
        response.answer.append(dns.rrset.from_text(f"{question}.", ttl, "IN", rdtype, rdata))
    return relay.read(response.to_wire(), message.question(made))


AGING = Aging(100.0, 90.0, True, memoryview(b""), (0, 0))


@pytest.mark.parametrize(
    ("rules", "is_relay", "cacheable"),
    [
        ("type MX AAAA", True, True),
        ("edns0 local set 1 abc", True, True),
        ("edns0 local set 1 {qname}", True, True),
        ("edns0 local set 1 {protocol}", True, True),
        ("edns0 local set 1 {client_ip}", True, False),
        ("edns0 local set 1 {server_ip}", True, False),
        ("edns0 local set 1 {some/label}", True, False),
        ("edns0 local replace 1 {client_ip}", True, True),
        ("edns0 subnet set 24 56", True, False),
        ("edns0 subnet unset", True, True),
        ("rcode a.test 3 0", True, True),
        ("cname b.test c.test", True, True),
        ("ttl a.test 10-100", True, False),
        ("ttl b.test 10-20", True, True),
        ("ttl a.test 10-20", False, False),
        ("rcode a.test 0 5", False, False),
        ("name a.test b.test", False, False),
    ],
)
def test_what_the_packet_cache_may_keep(rules: str, is_relay: bool, cacheable: bool) -> None:
    question = "b.test" if rules.startswith("name") else "a.test"
    found = Response(relay=relayed("A 192.0.2.1", question=question), cacheable=True, aging=AGING)
    _, response = asked(rules, query("a.test"), Behind(found))
    assert (response.relay is found.relay, response.cacheable) == (is_relay, cacheable)
    assert not response.cacheable or response.aging is AGING
    own = Response(answer=answer(("a.test", rr.A, bytes(4))), cacheable=True, depends=(b"\1x\0",))
    _, response = asked(rules, query("a.test"), Behind(own))
    assert response.cacheable is (cacheable or rules.startswith(("ttl", "rcode", "name")))
    assert response.depends == (b"\1x\0",)
    made = Response(answer=answer(("a.test", rr.A, bytes(4))), cacheable=True, aging=AGING)  # `autopath`, of a relay
    _, response = asked(rules, query("a.test"), Behind(made))
    assert response.cacheable is (cacheable or rules.startswith(("rcode", "name")))


def test_ttls_and_codes_of_other_servers() -> None:
    found = Response(relay=relayed("A 192.0.2.1", "TXT x"), ttl=3)
    client = query("a.test")
    _, response = asked("continue ttl a.test 20-\nrcode a.test NOERROR NXDOMAIN", client, Behind(found))
    said = read(client, response)
    assert [rrset.ttl for rrset in said.answer] == [20, 20]
    assert said.rcode() == rr.NXDOMAIN
    assert found.rcode == rr.NOERROR


def test_a_response_that_is_not_sent_stays_so() -> None:
    silent = Response(silent=True)
    assert asked("name a.test b.test", query("a.test"), Behind(silent))[1] is silent


def test_a_new_target_that_nobody_can_tell_about_is_a_failure() -> None:
    records = answer(("a.test", rr.CNAME, b"\1b\4test\0"))
    for found in (Response(rcode=rr.SERVFAIL, plugin="x"), Response(plugin="x", silent=True)):
        made = handler("cname b.test c.test", Ground(ask=Behind(found)))
        response = asyncio.run(made(query("a.test"), Behind(Response(answer=records))))
        assert (response.rcode, response.answer) == (rr.SERVFAIL, [])
        assert "c.test., a new target of an alias, is " in response.error


def test_a_new_target_is_asked_for_with_what_was_said_of_the_client() -> None:
    followed: list[Query] = []

    async def ask(query: Query) -> Response:
        followed.append(query)
        return Response(answer=answer(("c.test", rr.A, bytes(4))), plugin="x", cacheable=True, recursion=True)

    records = answer(("a.test", rr.TXT, b"\1x"), ("a.test", rr.CNAME, b"\1B\4test\0"), ("b.test", rr.A, bytes(4)))
    made = handler(f"continue edns0 local set {CODE} abc\ncname b.test c.test", Ground(ask=ask))
    behind = Behind(Response(answer=records, authority=records, cacheable=True))
    response = asyncio.run(made(replace(query("a.test"), links=5), behind))
    assert response.answer == answer(("a.test", rr.CNAME, b"\1c\4test\0"), ("c.test", rr.A, bytes(4)))
    assert (response.authority, response.cacheable, response.recursion) == ([], False, True)
    assert message.passed_options(followed[0]) == message.option(CODE, b"abc")
    assert followed[0].links == 6


@pytest.mark.parametrize("is_cut", [(False, True), (True, False), (True, True), (False, False)])
def test_an_answer_is_cut_as_that_about_its_new_target_is(is_cut: tuple[bool, bool]) -> None:
    old, new = (relayed(record, question=name, tc=tc) for record, name, tc in zip(
        ("CNAME b.test.", "A 192.0.2.1"), ("a.test", "c.test"), is_cut, strict=True))  # fmt: skip
    made = handler("cname b.test c.test", Ground(ask=Behind(Response(relay=new, plugin="x"))))
    client = query("a.test")
    response = asyncio.run(made(client, Behind(Response(relay=old, plugin="x"))))
    assert [str(rrset) for rrset in read(client, response).answer] == [
        "a.test. 60 IN CNAME c.test.",
        "c.test. 60 IN A 192.0.2.1",
    ]
    assert bool(read(client, response).flags & message.TC) is is_cut[1]


# What has nothing to do with a zone


@pytest.mark.parametrize(
    ("rule", "zone", "passes"),
    [
        ("name a.example b", "cluster.local", True),
        ("name a.cluster.local b", "cluster.local", False),
        ("name cluster.local b", "cluster.local", False),
        ("name acluster.local b", "cluster.local", True),
        ("name local b", "cluster.local", True),
        ("name a.example b", ".", False),
        ("name suffix .example. .x", "cluster.local", True),
        ("name suffix .svc.cluster.local .x", "cluster.local", False),
        ("name suffix local .x", "cluster.local", False),
        ("name suffix xcluster.local .x", "cluster.local", False),
        ("name suffix .example .x", ".", False),
        ("name prefix a b", "cluster.local", False),
        ("name substring a b", "cluster.local", False),
        ("name regex ^a$ b", "cluster.local", False),
        ("ttl a.example 5", "cluster.local", True),
        ("rcode suffix example 2 3", "cluster.local", True),
        ("ttl regex x 5", "cluster.local", False),
        ("cname a.example b", "cluster.local", False),
        ("type ANY HINFO", "cluster.local", True),
        ("type A AAAA", "cluster.local", False),
        ("class CH IN", "cluster.local", True),
        ("class IN CH", "cluster.local", False),
        ("edns0 local unset 1", "cluster.local", True),
        ("edns0 local replace 1 x", "cluster.local", True),
        ("edns0 local set 1 x", "cluster.local", False),
        ("edns0 nsid append", "cluster.local", False),
        ("name a.example b\nrewrite name regex x y", "cluster.local", False),
    ],
)
def test_answers_that_pass(rule: str, zone: str, passes: bool) -> None:
    made = rewrite.Handler(options(f"rewrite {rule}"), Ground().site)
    assert made.passing(names.from_text(zone), "dns://:53") == (() if passes else None)


# Hostile input


HOSTILE = (
    r"name regex ^(.*)\.([^.]*)\.$ {2}.{1}.{0} answer name (.*) {1}x answer value (.*)\.$ {1}{1}",
    r"name regex (.) {1}{1}{1}",
    "name substring a. bb. answer auto",
    "name substring . .x. answer auto",
    "name prefix a. b answer value (.)(.) {2}{1}",
    "name suffix . .example. answer auto",
    "name suffix example. . answer auto",
    f"continue edns0 local set {CODE} {{qname}}\nname regex ^(.*)$ {{1}}",
    f"continue edns0 local append {CODE} abc\ncontinue edns0 subnet set 24 56\ncontinue edns0 nsid set\nttl regex . 5",
    "continue rcode regex .* 0 23\ncontinue type A ANY\ncname regex (.*) {1}",
    "class CH IN",
)
octets = st.sampled_from([b"a", b"b", b"A", b".", b"\\", b"{1}", b"{0}", b"\0", b"\xff", b" ", b"'", b"$", b"a" * 20])
hostile_labels = st.lists(octets, min_size=1, max_size=6).map(b"".join).filter(lambda label: len(label) <= 63)
hostile_names = st.lists(hostile_labels | st.binary(min_size=1, max_size=63), max_size=5).filter(
    lambda labels: sum(map(len, labels)) + len(labels) < 255
).map(names.join)  # fmt: skip
NAMED = {rr.CNAME: b"", rr.MX: b"\0\1", rr.SRV: bytes(6), rr.PTR: b"", 35: b"\0\1\0\1\1a\0\0"}


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(HOSTILE),
    hostile_names,
    st.lists(st.tuples(hostile_names, st.sampled_from(sorted(NAMED)), hostile_names), max_size=3),
    st.sampled_from([rr.IN, rr.CH, 0, 65535]),
    st.none() | st.dictionaries(st.sampled_from([CODE, 3, 8, 9]), st.binary(max_size=40), max_size=3),
)
def test_whatever_is_asked_there_is_an_answer_to_that_question(
    rules: str, name: bytes, records: list[tuple[bytes, int, bytes]], klass: int, sent: dict[int, bytes] | None
) -> None:
    opt = (
        b""
        if sent is None
        else message.opt_record(False, options=b"".join(message.option(*one) for one in sent.items()))
    )
    question = name + rr.A.to_bytes(2, "big") + klass.to_bytes(2, "big")
    data = message.HEADER.pack(7, message.RD, 1, 0, 0, bool(opt)) + question + opt
    client = message.parse(data, "udp", ("192.0.2.1", 1), ("192.0.2.2", 53), message.DEFAULT_UDP)
    section = [(owner.lower(), RRset(rtype, 60, (NAMED[rtype] + target,))) for owner, rtype, target in records]

    async def ask(query: Query) -> Response:
        return Response(answer=section, plugin="x")

    made = handler(rules, Ground(ask=ask))
    response = asyncio.run(made(client, Behind(Response(answer=section, additional=section))))
    wire = message.encode(client, response).wire
    assert len(wire) <= client.limit
    assert wire[12 : 12 + len(question)] == question
    assert dns.message.from_wire(wire).id == 7
    assert response.plugin != "rewrite" or response.rcode == rr.SERVFAIL


def test_a_long_name_takes_no_time() -> None:
    long = ".".join(["a" * 63] * 3)
    begun = time.process_time()
    with pytest.raises(NoName):
        name_of("a" * 10**8)
    response = asyncio.run(handler("name regex (.*) " + "{1}" * 300)(query(long), Behind()))
    assert response.rcode == rr.SERVFAIL
    assert time.process_time() - begun < 1
