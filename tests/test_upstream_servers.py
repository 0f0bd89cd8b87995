"""Name servers of five makes as upstreams: a client gets through kdns what it would get from them."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import pytest

from tests.support import clients, digs, ports, procs, resolvers
from tests.support.resolvers import ADDRESS, ZONE, Certificate, Resolver
from tests.support.server import Server
from tests.support.upstream import Asked, FakeUpstream, Script, reply, usual

TRANSPORTS = ("udp", "tcp", "tls", "https")
"""How kdns asks."""
WAYS = [
    (make, transport)
    for make in resolvers.MAKES
    for transport in TRANSPORTS
    if transport in ("udp", "tcp") or (make, transport) in (("unbound", "tls"), ("nsd", "tls"), ("bind", "tls"))
    or (transport == "https" and make in ("unbound", "bind"))
]  # fmt: skip
FIRST = """\
.:$dns {
    bind 127.0.0.1
    errors
    ready 127.0.0.1:$ready
    whoami
}
"""
BLOCK = """\
.:{port} {{
    bind 127.0.0.1
    errors
    forward . {upstream} {{
        {options}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class House:
    """kdns, the servers that it asks, and its port for each of WAYS."""

    server: Server
    upstreams: dict[str, Resolver]
    ports: dict[tuple[str, str], int]

    def upstream(self, make: str) -> Resolver:
        if make not in self.upstreams:
            pytest.skip(f"not installed: {resolvers.PROGRAMS[make]}")
        return self.upstreams[make]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("makes")
    certificate = Certificate.make(folder)
    with contextlib.ExitStack() as stack:
        upstreams = {}
        for make in resolvers.installed():
            place = folder / make
            place.mkdir()
            upstreams[make] = stack.enter_context(resolvers.MAKES[make](place, certificate))
        listens = {way: ports.free_port([ADDRESS]) for way in WAYS if way[0] in upstreams}
        blocks = [block(upstreams[make], transport, port) for (make, transport), port in listens.items()]
        corefile = FIRST + "".join(blocks)
        server = stack.enter_context(Server(folder / "kdns", corefile=corefile, addresses=[ADDRESS]))
        yield House(server, upstreams, listens)


def block(upstream: Resolver, transport: str, port: int) -> str:
    """A server block that forwards everything to one server."""
    secure = f"tls {upstream.certificate.authority}\n        tls_servername {resolvers.SERVER_NAME}"
    where, options = {
        "udp": (f"dns://{ADDRESS}:{upstream.port}", "max_fails 2"),
        "tcp": (f"dns://{ADDRESS}:{upstream.port}", "force_tcp"),
        "tls": (f"tls://{ADDRESS}:{upstream.tls_port}", secure),
        "https": (f"https://{ADDRESS}:{upstream.https_port}", secure),
    }[transport]
    return BLOCK.format(port=port, upstream=where, options=options)


def question(name: str, rdtype: str, edns: str = "none") -> bytes:
    """A query with AD set, as kdns asks. edns: "none", "plain" or "do"."""
    flags = dns.flags.RD | dns.flags.AD
    options = {"none": {"use_edns": -1}, "plain": {"payload": 1232}, "do": {"payload": 1232, "ednsflags": dns.flags.DO}}
    owner = f"{name}.{ZONE}" if name else ZONE
    return dns.message.make_query(owner, rdtype, flags=flags, **options[edns]).to_wire()  # type: ignore[arg-type]


def through(house: House, way: tuple[str, str], query: bytes, client: str) -> bytes:
    """What kdns answers to a client over "udp" or "tcp", with another ID."""
    return resolvers.ask(house.ports[way], with_new_id(query), client)


def with_new_id(query: bytes) -> bytes:
    return secrets.token_bytes(2) + query[2:]


@pytest.mark.parametrize("edns", ["none", "plain", "do"])
@pytest.mark.parametrize(("make", "transport"), WAYS)
def test_answers_are_the_upstreams_byte_for_byte(house: House, make: str, transport: str, edns: str) -> None:
    upstream, way = house.upstream(make), (make, transport)
    direct = "tcp" if transport == "https" else transport
    queries = [question(name, rdtype, edns) for name, rdtype in resolvers.QUESTIONS]
    expected = upstream.ask_each(queries, direct)
    answers = resolvers.ask_each(house.ports[way], list(map(with_new_id, queries)), "tcp")
    for (name, rdtype), answer, direct_answer in zip(resolvers.QUESTIONS, answers, expected, strict=True):
        ours, theirs = resolvers.bare(answer), resolvers.bare(direct_answer)
        assert ours[0].hex() == theirs[0].hex(), f"{name} {rdtype}:\n{text(ours[0])}\n\nand not\n\n{text(theirs[0])}"
        assert (ours[1] is None) == (edns == "none"), f"{name} {rdtype}: OPT {ours[1]!r}"
        assert answer[3] & 0x80, "recursion is offered"


def text(message: bytes) -> str:
    """A message for a person."""
    return str(dns.message.from_wire(message))


@pytest.mark.parametrize(("make", "transport"), WAYS)
def test_over_udp_a_client_gets_the_same_or_a_part_that_says_so(house: House, make: str, transport: str) -> None:
    way = house.upstream(make).make, transport
    for edns, most in (("none", 512), ("plain", 1232)):
        for name, rdtype in resolvers.QUESTIONS:
            if rdtype == "ANY":
                continue
            query = question(name, rdtype, edns)
            whole, part = through(house, way, query, "tcp"), through(house, way, query, "udp")
            assert len(part) <= most
            if len(whole) <= most:
                assert resolvers.bare(part) == resolvers.bare(whole), f"{name} {rdtype}"
                continue
            seen, all_of_it = dns.message.from_wire(part), dns.message.from_wire(whole)
            assert seen.flags & dns.flags.TC, f"{name} {rdtype}"
            assert {str(rdata) for rrset in seen.answer for rdata in rrset} < {
                str(rdata) for rrset in all_of_it.answer for rdata in rrset
            }


@pytest.mark.parametrize(("make", "transport"), WAYS)
def test_the_makes_have_what_is_asked(house: House, make: str, transport: str) -> None:
    """So that two refusals are not taken for two equal answers."""
    upstream, way = house.upstream(make), (make, transport)
    for name, rdtype in resolvers.WITH_RECORDS:
        if {name, rdtype} & upstream.lacks:
            continue
        answer = dns.message.from_wire(through(house, way, question(name, rdtype, "plain"), "tcp"))
        assert answer.rcode() == dns.rcode.NOERROR, f"{name} {rdtype}"
        assert dns.rdatatype.from_text(rdtype) in {rrset.rdtype for rrset in answer.answer}, f"{name} {rdtype}"


@pytest.mark.parametrize("make", resolvers.MAKES)
def test_dig_sees_the_same(house: House, make: str, needs: Callable[..., None]) -> None:
    needs("dig", "unbound", "knotd", "nsd", "dnsmasq", "named")
    upstream = house.upstream(make)
    for name, rdtype in (("text", "TXT"), ("link", "AAAA"), ("unknown", "TYPE65280"), ("absent", "A"), ("big", "A")):
        direct, ours = (digs.dig(port, f"{name}.{ZONE}", rdtype) for port in (upstream.port, house.ports[make, "udp"]))
        assert ours.status == direct.status
        assert {name: without_ttl(lines) for name, lines in ours.sections.items() if name != "QUESTION"} == {
            name: without_ttl(lines) for name, lines in direct.sections.items() if name != "QUESTION"
        }


def without_ttl(lines: list[str]) -> list[str]:
    return sorted(" ".join(line.split(" ")[:1] + line.split(" ")[2:]) for line in lines)


@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
def test_an_upstream_that_is_killed_and_started_again_answers_again(
    transport: str, tmp_path: Path, needs: Callable[..., None]
) -> None:
    needs("nsd")
    upstream = resolvers.nsd(tmp_path, Certificate.make(tmp_path))
    port = ports.free_port([ADDRESS])
    with upstream, Server(tmp_path / "kdns", corefile=FIRST + block(upstream, transport, port), addresses=[ADDRESS]):
        query = question("host", "A")
        for _ in range(3):
            assert code(resolvers.ask(port, query, "tcp")) == dns.rcode.NOERROR
            upstream.kill()
            assert code(resolvers.ask(port, query, "tcp", timeout=7)) == dns.rcode.SERVFAIL
            upstream.start()
            assert code(resolvers.ask(port, query, "tcp", timeout=7)) == dns.rcode.NOERROR


def code(message: bytes) -> dns.rcode.Rcode:
    return dns.message.from_wire(message).rcode()


# Upstreams that misbehave, each before one that does not

BESIDE = """\
cluster.local:$dns {
    bind 127.0.0.1
    ready 127.0.0.1:$ready
    whoami
}
.:$dns {
    bind 127.0.0.1
    errors {
        consolidate 1m ".*" error
    }
    $plugins
}
"""
FORWARD = """\
forward {zone} {bad} {good} {{
    {option}
    policy sequential
    read_timeout 300ms
    health_check 50ms
}}
"""


async def slow(asked: Asked) -> None:
    await asyncio.sleep(1)
    await usual(asked)


async def drops(asked: Asked) -> None:
    pass


async def resets(asked: Asked) -> None:
    asked.reset()


async def closes(asked: Asked) -> None:
    asked.close()


async def closes_after_each_answer(asked: Asked) -> None:
    await usual(asked)
    asked.close()


async def has_another_id(asked: Asked) -> None:
    asked.send(bytes([asked.data[0] ^ 1]) + reply(asked, "A 203.0.113.66")[1:])


async def answers_another_question(asked: Asked) -> None:
    asked.send(asked.data[:2] + dns.message.make_response(dns.message.make_query("other.example", "A")).to_wire()[2:])


async def sends_half_a_message(asked: Asked) -> None:
    whole = reply(asked, "A 203.0.113.66")
    if asked.on is None:
        asked.send(whole[: -len(whole) // 4])
    else:
        asked.raw(len(whole).to_bytes(2, "big") + whole[: len(whole) // 2])


async def sends_half_a_message_and_closes(asked: Asked) -> None:
    await sends_half_a_message(asked)
    asked.close()


async def sends_no_dns(asked: Asked) -> None:
    asked.send(asked.data[:2] + b"\x81\x80 not DNS at all, whatever it is")


UDP_FAULTS = (slow, drops, has_another_id, answers_another_question, sends_half_a_message, sends_no_dns)
TCP_FAULTS = (*UDP_FAULTS, resets, closes, closes_after_each_answer, sends_half_a_message_and_closes)
FAULTS: dict[str, tuple[Script, ...]] = {"udp": UDP_FAULTS, "tcp": TCP_FAULTS}
UNNOTICED = {
    ("udp", sends_half_a_message),
    ("tcp", closes_after_each_answer),
}
"""What makes no health check fail: something comes back, or only a connection is lost."""
EACH = 20
FEW_SECONDS = 8.0


@pytest.mark.parametrize("transport", FAULTS)
def test_beside_an_upstream_that_misbehaves_every_query_is_answered_and_it_is_used_again_when_it_is_well(
    tmp_path: Path, transport: str
) -> None:
    with contextlib.ExitStack() as stack:
        good = stack.enter_context(FakeUpstream())
        bad = {f"{fault.__name__}.example": stack.enter_context(FakeUpstream(fault)) for fault in FAULTS[transport]}
        option = "force_tcp" if transport == "tcp" else "prefer_udp"
        forwards = [FORWARD.format(zone=zone, bad=it.to, good=good.to, option=option) for zone, it in bad.items()]
        server = Server(tmp_path, corefile=BESIDE, plugins="".join(forwards), addresses=[ADDRESS])
        stack.enter_context(server)
        noticed = {zone: it for zone, it in bad.items() if (transport, it.script) not in UNNOTICED}

        all_are_answered(server, "first", bad)
        assert all(it.names(transport) for it in bad.values())
        wait_until_asked(server, noticed, False)
        all_are_answered(server, "meanwhile", bad)
        for it in bad.values():
            it.script = usual
        wait_until_asked(server, bad, True)
        all_are_answered(server, "after", bad)


def all_are_answered(server: Server, kind: str, zones: Iterable[str]) -> None:
    """Ask for new names in each zone; each has to be answered, long before a client would ask again."""
    names = [f"{kind}-{number}.{zone}" for number in range(EACH) for zone in zones]
    asked = clients.ask_many(server.port, names, window=60)
    assert [query.name for query in asked if query.rcode != clients.NOERROR] == []
    assert max(query.longest for query in asked) < clients.RETRY_SECONDS / 2
    assert max(query.tries for query in asked) == 1


def wait_until_asked(server: Server, upstreams: Mapping[str, FakeUpstream], wanted: bool) -> None:
    """Wait until queries go, or do not go, to each of the upstreams, by its zone."""
    left = dict(upstreams)

    def none_left() -> bool:
        names = {zone: f"{secrets.token_hex(4)}.{zone}" for zone in left}
        clients.ask_many(server.port, names.values())
        for zone, name in names.items():
            if (name in left[zone].names()) == wanted:
                del left[zone]
        return not left

    with contextlib.suppress(AssertionError):
        procs.wait_until(none_left, FEW_SECONDS, "asked or not", 0.02)
    assert sorted(left) == [], f"{'not' if wanted else 'still'} asked after {FEW_SECONDS} s"
