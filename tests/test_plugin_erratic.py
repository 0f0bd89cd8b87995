"""erratic: which answers are dropped, delayed, truncated and large."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator

import dns.flags
import dns.message
import dns.rcode
import pytest

from kdns.plugins import erratic
from tests.conftest import Serve
from tests.support.configs import options, refused
from tests.support.server import Server, read_message

pytestmark = pytest.mark.one_speed

COREFILE = """
.:$dns {
    bind 127.0.0.1
    ready $host:$ready
    prometheus $host:$metrics
    whoami
}
usual.test:$dns {
    bind 127.0.0.1
    erratic
}
drop.test:$dns {
    bind 127.0.0.1
    prometheus $host:$metrics
    errors
    cache
    cancel 5s
    erratic {
        drop 3
    }
}
never.test:$dns {
    bind 127.0.0.1
    cancel 5s
    erratic {
        drop 1
    }
}
delay.test:$dns {
    bind 127.0.0.1
    erratic {
        delay 3 80ms
    }
}
cut.test:$dns {
    bind 127.0.0.1
    erratic {
        truncate 3
    }
}
large.test:$dns {
    bind 127.0.0.1
    erratic {
        drop 0
        large
    }
}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("erratic"), corefile=COREFILE) as running:
        yield running


def together(server: Server, name: str, rdtypes: list[str], seconds: float = 0.15) -> dict[int, dns.message.Message]:
    """The answers to queries that are sent at once, in their order, by their numbers."""
    found: dict[int, dns.message.Message] = {}
    with server.udp_socket() as sock:
        for number, rdtype in enumerate(rdtypes):
            sock.send(dns.message.make_query(name, rdtype, id=number).to_wire())
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            sock.settimeout(left)
            try:
                answer = dns.message.from_wire(sock.recv(65535), raise_on_truncation=False)
            except TimeoutError:
                break
            found[answer.id] = answer
    return found


def test_every_second_query_is_dropped_if_nothing_else_is_said(server: Server) -> None:
    found = together(server, "a.usual.test", ["A", "A", "AAAA", "AAAA", "TXT", "TXT"])
    assert sorted(found) == [1, 3, 5]
    assert str(found[1].answer[0]) == "a.usual.test. 0 IN A 192.0.2.53"
    assert str(found[3].answer[0]) == "a.usual.test. 0 IN AAAA 2001:db8::53"
    assert found[1].flags & dns.flags.AA
    assert found[5].rcode() == dns.rcode.SERVFAIL


def test_one_in_some_is_dropped_whatever_stands_in_front(server: Server) -> None:
    before = server.metrics()
    assert sorted(together(server, "a.drop.test", ["A"] * 7)) == [1, 2, 4, 5]
    after = server.metrics()
    name = "coredns_dns_requests_total"
    assert after.value(name, zone="drop.test.") - before.value(name, zone="drop.test.") == 7


def test_nobody_waits_for_an_answer_that_is_dropped_when_the_server_ends(serve: Serve) -> None:
    """With `cache` those who wait for the first answer ask for themselves, and every second one is dropped then."""
    block = "cache\nerratic {\ndrop 2\ndelay 1 30ms\n}"
    server = serve(corefile=f"a.test:$dns {{\nbind 127.0.0.1\n{block}\n}}\n")
    assert 0 < len(together(server, "a.test", ["A"] * 20)) < 10
    assert server.terminate() < 2


def test_a_connection_goes_on_without_the_answers_that_are_dropped(server: Server) -> None:
    """`cancel` makes the server wait for what will not come: the silence is told later."""
    with server.tcp_socket() as sock:
        for ident, name in enumerate(["a.never.test", "a.large.test", "b.never.test", "a.large.test", "c.never.test"]):
            wire = dns.message.make_query(name, "AAAA", id=ident).to_wire()
            sock.sendall(struct.pack("!H", len(wire)) + wire)
        assert [dns.message.from_wire(read_message(sock) or b"").id for _ in range(2)] == [1, 3]
        sock.shutdown(socket.SHUT_WR)
        assert read_message(sock) is None  # nothing is pending, so it closes at once


def test_a_client_that_has_no_more_questions_is_let_go_when_the_last_one_gets_no_answer(server: Server) -> None:
    with server.tcp_socket() as sock:
        wire = dns.message.make_query("a.never.test", "A").to_wire()
        sock.sendall(struct.pack("!H", len(wire)) + wire)
        sock.shutdown(socket.SHUT_WR)
        assert read_message(sock) is None
    assert "[ERROR]" not in server.log


def test_one_in_some_comes_later(server: Server) -> None:
    begun = time.monotonic()
    with server.udp_socket() as sock:
        sock.settimeout(3)
        for number in range(4):
            sock.send(dns.message.make_query("a.delay.test", "A", id=number).to_wire())
        ids = [int.from_bytes(sock.recv(512)[:2]) for _ in range(4)]
    assert ids == [1, 2, 0, 3]
    assert time.monotonic() - begun >= 0.08


def test_one_in_some_is_truncated(server: Server) -> None:
    found = together(server, "a.cut.test", ["A"] * 7)
    assert [number for number, answer in sorted(found.items()) if answer.flags & dns.flags.TC] == [0, 3, 6]
    assert len(found) == 7


def test_large_answers_for_addresses_of_ipv4(server: Server) -> None:
    def count(rdtype: str, **make: int) -> tuple[int, bool]:
        wire = server.raw_udp(dns.message.make_query("a.large.test", rdtype, **make).to_wire()) or b""  # type: ignore[arg-type]
        return int.from_bytes(wire[6:8]), bool(wire[2] & 2)

    assert count("A", use_edns=0, payload=1232) == (30, False)
    assert count("A") == (30, False)
    assert count("AAAA") == (1, False)
    long = dns.message.make_query(f"{'x' * 40}.large.test", "A").to_wire()
    wire = server.raw_udp(long) or b""
    assert (int.from_bytes(wire[6:8]), wire[2] & 2) == (27, 2)


def axfr(server: Server, name: str, rdtype: str = "AXFR", ident: int = 1) -> dns.message.Message:
    with server.tcp_socket() as sock:
        sock.settimeout(5)
        wire = dns.message.make_query(name, rdtype, id=ident).to_wire()
        sock.sendall(struct.pack("!H", len(wire)) + wire)
        return dns.message.from_wire(read_message(sock) or b"", xfr=True, one_rr_per_rrset=True)


def test_a_small_zone_is_transferred_not_always_to_its_end(serve: Serve) -> None:
    block = "erratic {\ntruncate 3\n}"
    server = serve(corefile=f"zone.test:$dns {{\nbind 127.0.0.1\n{block}\n}}\n")
    soa = "zone.test. 0 IN SOA sns.dns.icann.org. noc.dns.icann.org. 2018050825 7200 3600 1209600 3600"
    wanted = [
        soa,
        "zone.test. 0 IN NS b.zone.test.",
        "zone.test. 0 IN NS a.zone.test.",
        "a.zone.test. 0 IN AAAA 2001:bd8::53",
        "b.zone.test. 0 IN AAAA 2001:500::54",
        soa,
    ]
    found = [[str(one) for one in axfr(server, "zone.test").answer] for _ in range(4)]
    assert found == [wanted[:-1], wanted, wanted, wanted[:-1]]
    long = ".".join([*["x" * 63] * 3, "y" * 51, "zone.test"])
    assert axfr(server, long).rcode() == dns.rcode.SERVFAIL
    assert str(axfr(server, long[2:]).answer[1]) == f"{long[2:]}. 0 IN NS b.{long[2:]}."
    assert axfr(server, "zone.test", "IXFR").rcode() == dns.rcode.SERVFAIL
    assert together(server, "zone.test", ["AXFR"])[0].rcode() == dns.rcode.REFUSED


def test_zones_are_dropped_and_delayed_too(server: Server) -> None:
    with server.tcp_socket() as sock:
        for ident, name in enumerate(["never.test", "large.test"]):
            wire = dns.message.make_query(name, "AXFR", id=ident).to_wire()
            sock.sendall(struct.pack("!H", len(wire)) + wire)
        assert dns.message.from_wire(read_message(sock) or b"", xfr=True).id == 1
    begun = time.monotonic()
    late = [len(axfr(server, "delay.test").answer) for _ in range(3)]
    assert late == [6] * 3
    assert time.monotonic() - begun >= 0.08


def test_options() -> None:
    assert options("erratic") == erratic.Options(drop=2)
    assert options("erratic {\ndrop\n}") == erratic.Options(drop=2)
    assert options("erratic {\nlarge\n}") == erratic.Options(drop=2, large=True)
    assert options("erratic {\ndrop 5\n}") == erratic.Options(drop=5)
    assert options("erratic {\ntruncate\n}") == erratic.Options(drop=0, truncate=2)
    assert options("erratic {\ndelay\n}") == erratic.Options(drop=0, delay=2, duration=0.1)
    assert options("erratic {\ndelay 3 5ms\ndrop\n}") == erratic.Options(drop=2, delay=3, duration=0.005)
    assert options("erratic {\ndelay 3\ntruncate 0\n}") == erratic.Options(drop=0, delay=3)
    assert options("erratic {\ntruncate 0\n}") == erratic.Options(drop=2)


@pytest.mark.parametrize(
    ("directive", "messages"),
    [
        ("erratic x", ["1: erratic has 1 argument"]),
        ("erratic {\ndrop -1\n}", ['2: erratic: "-1" is out of range']),
        ("erratic {\ndrop 1 2\n}", ['2: erratic: "drop" has 2 arguments']),
        ("erratic {\ntruncate x\n}", ['2: erratic: "x" is not a whole number']),
        ("erratic {\ndelay 1 2 3\n}", ['2: erratic: "delay" has 3 arguments']),
        ("erratic {\ndelay 1 soon\n}", ['2: erratic: "soon" is not a duration']),
        ("erratic {\nlarge 2\n}", ['2: erratic: "large" has 1 argument']),
        ("erratic {\nlose 2\n}", ['2: erratic has no option "lose"']),
    ],
)
def test_mistakes(directive: str, messages: list[str]) -> None:
    assert refused(directive) == messages
