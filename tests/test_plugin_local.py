"""local: names that mean the machine itself never leave it."""

from __future__ import annotations

import dns.rcode
import pytest

from tests.conftest import Serve
from tests.support.configs import options, refused
from tests.support.server import Server

COREFILE = """
.:$dns {
    bind 127.0.0.1
    ready $host:$ready
    prometheus $host:$metrics
    local
    whoami
}
strict:$dns {
    bind 127.0.0.1
    local {
        localhost_prefix off
    }
    whoami
}
"""
SOA = "604800 IN SOA localhost. root.localhost. 1 0 0 0 604800"


@pytest.fixture
def server(serve: Serve) -> Server:
    return serve(corefile=COREFILE)


def answer(server: Server, name: str, rdtype: str) -> tuple[str, list[str]]:
    """Response code, and the records of answer and authority."""
    found = server.query(name, rdtype)
    return dns.rcode.to_text(found.rcode()), [str(rrset) for rrset in found.answer + found.authority]


def test_what_is_local_is_answered_as_coredns_does(server: Server) -> None:
    localhost = "127.0.0.1", "::1"
    for name in ("localhost.", "LocalHost.", "x.y.localhost.", "localhost.example.org."):
        for rdtype, address in zip(("A", "AAAA"), localhost, strict=True):
            assert answer(server, name, rdtype) == ("NOERROR", [f"{name} 604800 IN {rdtype} {address}"])
    for name in ("x.localhost.", "localhost.example.org.", "localhost."):
        assert answer(server, name, "TXT") == ("NOERROR", [f"{name.lower()} {SOA}"])
    assert answer(server, "localhost.", "SOA") == ("NOERROR", [f"localhost. {SOA}"])
    assert answer(server, "x.localhost.", "SOA") == ("NOERROR", [f"x.localhost. {SOA}"])
    for octet in (0, 127, 255):
        zone = f"{octet}.in-addr.arpa."
        assert answer(server, zone, "NS") == ("NOERROR", [f"{zone} 604800 IN NS localhost."])
        assert answer(server, zone, "A") == ("NOERROR", [f"{zone} {SOA}"])
        assert answer(server, f"2.0.0.{zone}", "PTR") == ("NXDOMAIN", [f"{zone} {SOA}"])
    one = "1.0.0.127.in-addr.arpa."
    assert answer(server, one, "PTR") == ("NOERROR", [f"{one} 604800 IN PTR localhost."])
    assert answer(server, one, "A") == ("NOERROR", [f"127.in-addr.arpa. {SOA}"])


def test_everything_else_goes_on(server: Server) -> None:
    for name in ("example.org", "notlocalhost", "localhosts.example.org", "1.in-addr.arpa", "x.notlocalhost"):
        assert server.query(name).additional, name


def test_names_below_localhost_and_those_that_begin_with_it_are_counted(server: Server) -> None:
    for name in ("localhost", "x.localhost", "localhost.example.org", "127.in-addr.arpa", "x.localhost", "x.localhost"):
        server.query(name)
    assert server.metrics().value("coredns_local_localhost_requests_total") == 4


def test_without_localhost_prefix_only_localhost_and_what_is_below_it_is_local(server: Server) -> None:
    assert server.query("localhost.strict").additional
    assert server.texts("x.localhost") == ["127.0.0.1"]


def test_options() -> None:
    assert options("local").localhost_prefix
    assert options("local {\nlocalhost_prefix on\n}").localhost_prefix
    assert not options("local {\nlocalhost_prefix off\n}").localhost_prefix


@pytest.mark.parametrize(
    ("directive", "message"),
    [
        ("local x", "1: local has 1 argument"),
        ("local {\nlocalhost_prefix\n}", '2: local: "localhost_prefix" has 0 arguments'),
        ("local {\nlocalhost_prefix no\n}", '2: local: "no" is not known'),
        ("local {\nprefix on\n}", '2: local has no option "prefix"'),
    ],
)
def test_mistakes(directive: str, message: str) -> None:
    assert refused(directive) == [message]
