"""rewrite: other questions, and answers that fit those that were asked, through sockets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from tests.conftest import Serve
from tests.support import procs
from tests.support.objects import service
from tests.support.server import Server
from tests.support.upstream import Asked, FakeUpstream, reply

CODE = 0xFFEE
RULES = {
    "exact": "rewrite name a.exact b.up.test",
    "prefix": "rewrite name prefix foo up answer auto",
    "suffix": "rewrite name suffix .in.suffix .up.test answer auto",
    "substring": "rewrite name substring .us. .up. answer auto",
    "regex": r"""rewrite stop {
        name regex (.*)-(west)\.regex {1}.{2}.up.test
        answer name (.*)\.(west)\.up\.test {1}-{2}.regex
        value (.*)\.up\.test\. {1}.else.test.
    }""",
    "plain": r"rewrite name regex ^(.*)\.plain\.$ {1}.up.test",
    "order": "\n".join(
        [
            "rewrite continue name a.order b.order",
            "rewrite continue name b.order c.up.test",
            "rewrite stop ttl c.up.test 7",
            "rewrite name c.up.test never.up.test",
            "rewrite name d.order e.order",
            "rewrite name e.order never.up.test",
        ]
    ),
    "type": "rewrite continue type ANY MX",
    "class": "rewrite ttl stopped.class 5\nrewrite continue class CH IN\nrewrite name a.class b.up.test",
    "ttl": "rewrite ttl suffix .ttl 100-\nrewrite ttl ttl -5",
    "rcode": "rewrite rcode prefix nx NXDOMAIN NOERROR\nrewrite rcode fail.rcode 2 badtime",
    "cname": r"rewrite continue cname regex ^old\.([a-z]*)\.test\.$ new.{1}.test"
    + "\nrewrite name suffix .cname .up.test",
    "fails": "rewrite cname old.up.test fail.test",
    "nowhere": "rewrite cname suffix .up.test. .nobody.",
    "endless": "rewrite cname old.up.test alias.endless",
    "fan": "\n".join(
        ["rewrite continue cname suffix .0.fan. .1.fan.", "rewrite continue cname suffix .1.fan. .0.fan."] * 2
    ),
    "bad": r"rewrite name regex ^(.*)\.bad\.$ {1}.{1}.{1}.{1}.{1}.test",
    "back": r"rewrite name suffix .back .up.test answer name ^(.*)\.up\.test\.$ {1}..test",
    "local": f"rewrite edns0 local set {CODE} {{qname}}",
    "cached": f"cache\nrewrite edns0 local set {CODE} {{client_ip}}",
    "kept": f"cache\nrewrite edns0 local append {CODE} 0x00ff",
}
ALIASES = {"alias.up.test", "alias.test", "alias.fails", "alias.nowhere", "alias.endless"}

COUNT: dict[str, int] = {}
"""How often other servers were asked, by zone."""


async def script(asked: Asked) -> None:
    """What the other server says: an alias, or records that have the name that it was asked for in them."""
    name, query = asked.name.lower(), asked.message
    if name.endswith(".fan"):
        COUNT["fan"] = COUNT.get("fan", 0) + 1
        asked.send(reply(asked, f"CNAME {COUNT['fan']}.{1 - int(name[-5])}.fan."))
    elif name.startswith("nx"):
        asked.send(reply(asked, rcode="NXDOMAIN"))
    elif name.startswith("fail"):
        asked.send(reply(asked, rcode="SERVFAIL"))
    elif name in ALIASES:
        response = dns.message.make_response(query)
        response.answer.append(dns.rrset.from_text(f"{name}.", 60, "IN", "CNAME", "Old.up.test."))
        response.answer.append(dns.rrset.from_text("Old.up.test.", 60, "IN", "A", "192.0.2.9"))
        asked.send(response.to_wire())
    else:
        options = " ".join(f"{int(option.otype)}={option.to_wire().hex()}" for option in query.options)
        records = {
            "A": ["A 192.0.2.1"],
            "MX": [f"MX 1 {name}.", f"MX 2 Sub.{name}.", "MX 3 mail.up.test."],
            "TXT": [f'TXT "{name} {options}"'],
        }
        asked.send(reply(asked, *records.get(asked.rdtype, [])))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with FakeUpstream(script) as upstream:
        forward = f"forward . {upstream.to}"
        blocks = [f"{zone}:$dns {{\nbind 127.0.0.1\n{rules}\n{forward}\n}}\n" for zone, rules in RULES.items()]
        blocks.append(f"test:$dns {{\nbind 127.0.0.1\n{forward}\n}}\n")
        blocks.append(f"own:$dns {{\nbind 127.0.0.1\nrewrite edns0 local set {CODE} abc\nwhoami\n}}\n")
        blocks.append(
            "hosts:$dns {\nbind 127.0.0.1\nhosts {\n192.0.2.3 b.hosts\n}\n"
            "rewrite name a.hosts b.hosts\nrewrite name c.hosts b.exact\n}\n"
        )
        with Server(tmp_path_factory.mktemp("rewrite"), corefile="".join(blocks)) as running:
            yield running


def lines(message: dns.message.Message) -> list[str]:
    """Response code unless NOERROR, and the records of the answer section."""
    rcode = [] if message.rcode() == dns.rcode.NOERROR else [dns.rcode.to_text(message.rcode())]
    records = [
        f"{rrset.name} {rrset.ttl} {dns.rdatatype.to_text(rrset.rdtype)} {rdata}"
        for rrset in message.answer
        for rdata in rrset
    ]
    return rcode + records


def test_targets_with_targets_that_each_have_as_many_end_soon(server: Server) -> None:
    assert server.query("a.0.fan").rcode() == dns.rcode.NOERROR
    assert 10 < COUNT["fan"] < 200


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("a.exact A", ["a.exact. 60 A 192.0.2.1"]),
        ("A.eXact MX", [f"A.eXact. 60 MX {rdata}" for rdata in ("1 a.exact.", "2 Sub.a.exact.", "3 mail.up.test.")]),
        ("b.a.exact TXT", ['b.a.exact. 60 TXT "b.a.exact "']),
        ("foo.prefix TXT", ['foo.prefix. 60 TXT "up.prefix "']),
        ("foo-1.prefix TXT", ['foo-1.prefix. 60 TXT "foo-1.prefix "']),
        ("a.in.suffix MX", [f"a.in.suffix. 60 MX {rdata}.in.suffix." for rdata in ("1 a", "2 Sub.a", "3 mail")]),
        ("in.suffix TXT", ['in.suffix. 60 TXT "in.suffix "']),
        ("a.us.b.us.substring TXT", ['a.us.b.us.substring. 60 TXT "a.up.b.up.substring "']),
        ("a-west.regex MX", [f"a-west.regex. 60 MX {to}.else.test." for to in ("1 a.west", "2 Sub.a.west", "3 mail")]),
        ("a.plain A", ["a.up.test. 60 A 192.0.2.1"]),
        ("a.order A", ["a.order. 7 A 192.0.2.1"]),
        ("d.order TXT", ['d.order. 60 TXT "e.order "']),
        ("a.type ANY", ["a.type. 60 MX 1 a.type.", "a.type. 60 MX 2 Sub.a.type.", "a.type. 60 MX 3 mail.up.test."]),
        ("a.class A CH", ["a.class. 60 A 192.0.2.1"]),
        ("a.class A HS", ["REFUSED"]),
        ("stopped.class A CH", ["REFUSED"]),
        ("a.class AXFR CH", ["REFUSED"]),
        ("stopped.class A", ["stopped.class. 5 A 192.0.2.1"]),
        ("a.ttl A", ["a.ttl. 100 A 192.0.2.1"]),
        ("ttl A", ["ttl. 5 A 192.0.2.1"]),
        ("nx.rcode A", []),
        ("y.nx.rcode A", ["y.nx.rcode. 60 A 192.0.2.1"]),
        ("alias.cname A", ["alias.up.test. 60 CNAME new.up.test.", "new.up.test. 60 A 192.0.2.1"]),
        ("alias.fails A", ["SERVFAIL"]),
        ("alias.nowhere A", ["alias.nowhere. 60 CNAME old.nobody."]),
        (f"{'a' * 60}.bad A", ["SERVFAIL"]),
        ("a.back A", ["SERVFAIL"]),
        ("a.hosts A", ["a.hosts. 3600 A 192.0.2.3"]),
        ("c.hosts A", ["SERVFAIL"]),
    ],
)  # fmt: skip
def test_what_is_answered(server: Server, asked: str, said: list[str]) -> None:
    name, rdtype, *rdclass = asked.split()
    for tcp in (False, True):
        response = server.query(name, rdtype, tcp=tcp, rdclass=rdclass[0] if rdclass else "IN")
        assert lines(response) == said
        (question,) = response.question
        assert question.to_text() == f"{name}. {rdclass[0] if rdclass else 'IN'} {rdtype}"


def test_an_alias_that_leads_to_itself_comes_to_an_end(server: Server) -> None:
    response = server.query("alias.endless")
    assert response.rcode() == dns.rcode.NOERROR
    assert 1 < len(response.answer) < 40


def test_a_code_above_15_needs_an_opt(server: Server) -> None:
    assert server.query("fail.rcode").rcode() == dns.rcode.SERVFAIL
    assert server.query("fail.rcode", use_edns=0).rcode() == dns.rcode.BADTIME


def option(code: int, data: bytes) -> dns.edns.Option:
    return dns.edns.GenericOption(dns.edns.OptionType.make(code), data)


def options(message: dns.message.Message) -> list[tuple[int, bytes]]:
    return [(int(option.otype), option.to_wire() or b"") for option in message.options]


def test_options_reach_other_servers_and_not_the_client(server: Server) -> None:
    sent = [option(CODE, b"mine"), option(CODE + 1, b"other")]
    queries: list[dict[str, Any]] = [{}, {"use_edns": 0}, {"use_edns": 0, "options": sent}]
    for made in queries:
        response = server.query("a.local", "TXT", **made)
        assert lines(response) == [f'a.local. 60 TXT "a.local {CODE}={b"a.local.".hex()}"']
        assert options(response) == []
    assert options(server.query("a.own", use_edns=0)) == [(CODE, b"abc")]
    assert options(server.query("a.own")) == []


def test_what_is_said_of_one_client_is_not_answered_to_another(server: Server) -> None:
    def told(name: str, source: str, **made: Any) -> str:
        query = dns.message.make_query(name, "TXT", id=7, **made)
        response = dns.query.udp(query, "127.0.0.1", port=server.port, source=source, timeout=3)
        (rrset,) = response.answer
        return str(rrset[0])

    for _ in range(4):
        for source, octets in (("127.0.0.1", "7f000001"), ("127.0.0.2", "7f000002")):
            assert told("a.cached", source) == f'"a.cached {CODE}={octets}"'
            for data in (b"\1", b"\2"):
                said = told("a.kept", source, use_edns=0, options=[option(CODE, data)])
                assert said == f'"a.kept {CODE}={data.hex()}"'
            assert told("a.kept", source) == f'"a.kept {CODE}=00ff"'


def test_each_of_them_is_asked_for_once(tmp_path: Path, serve: Serve) -> None:
    with FakeUpstream(script) as upstream:
        rules = f"bind 127.0.0.1\ncache\nforward . {upstream.to}\n"
        server = serve(corefile=f".:$dns {{\n{rules}rewrite name suffix .a.test .b.test answer auto\n"
                       f"rewrite edns0 local append {CODE} 0x00ff\n}}\n")  # fmt: skip
        for _ in range(3):
            for data in (b"\1", b"\2"):
                server.query("x.test", use_edns=0, options=[option(CODE, data)])
            server.query("x.test")
            server.query("x.b.test")
            assert server.texts("x.a.test") == ["192.0.2.1"]
        asked = [name for name in upstream.names() if name.endswith("test")]
        assert sorted(asked) == ["x.b.test", "x.b.test", "x.test", "x.test", "x.test"]


def test_an_answer_from_the_cluster_is_kept_until_its_own_names_change(serve: Serve) -> None:
    corefile = """.:$dns {
    bind 127.0.0.1
    prometheus 127.0.0.1:$metrics
    ready 127.0.0.1:$ready
    rewrite name suffix .shop.example. .default.svc.cluster.local. answer auto
    kubernetes cluster.local {
        manifests $manifests
        ttl 30
    }
}
"""
    server = serve([service("web", ips=("10.96.0.1",))], corefile=corefile)
    for _ in range(4):
        response = server.query("Web.shop.example")
        assert [str(rrset) for rrset in response.answer] == ["Web.shop.example. 30 IN A 10.96.0.1"]
    assert server.metrics().value("kdns_packet_cache_hits_total") >= 2
    server.write_objects([service("web", ips=("10.96.0.2",))])
    procs.wait_until(lambda: server.texts("Web.shop.example") == ["10.96.0.2"], 5, "the new address")
    assert server.query("gone.shop.example").rcode() == dns.rcode.NXDOMAIN
