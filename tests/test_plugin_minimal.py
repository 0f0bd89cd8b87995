"""minimal: positive answers come without what nobody asked for."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from kdns.plugins import minimal
from kdns.wire import message, relay
from kdns.wire.message import Response
from tests.conftest import Serve
from tests.support import objects, ports
from tests.support.configs import options, refused
from tests.support.plugins import Behind, answered, query, read

COREFILE = """
.:$dns {
    bind 127.0.0.1
    ready $host:$ready
    minimal
    kubernetes cluster.local {
        manifests $manifests
    }
    whoami
}
upstream.test:$dns {
    bind 127.0.0.1
    minimal
    forward . 127.0.0.1:$other
}
.:$other {
    bind 127.0.0.1
    whoami
}
"""
A = "www.example.org. 60 IN A 192.0.2.1"
CNAME = "www.example.org. 60 IN CNAME gone.example.org."
SOA = "example.org. 60 IN SOA ns.example.org. root.example.org. 1 2 3 4 5"
NS = "example.org. 60 IN NS ns.example.org."
GLUE = "ns.example.org. 60 IN A 192.0.2.53"


def relayed(rcode: str, answer: list[str], authority: list[str], additional: list[str]) -> list[list[str]]:
    """The sections that are left of another server's response to www.example.org A."""
    asked = query("www.example.org", use_edns=0, want_dnssec=True)
    other = dns.message.make_response(dns.message.from_wire(asked.data))
    other.set_rcode(dns.rcode.from_text(rcode))
    sections = answer, authority, additional
    for section, texts in zip((other.answer, other.authority, other.additional), sections, strict=True):
        for name, ttl, rdclass, rdtype, rdata in (text.split(maxsplit=4) for text in texts):
            section.append(dns.rrset.from_text(name, int(ttl), rdclass, rdtype, rdata))
    passed = Response(relay=relay.read(other.to_wire(), message.question(asked)))
    found = read(asked, answered(minimal.Handler(minimal.Options()), asked, Behind(passed)))
    assert (found.rcode(), found.edns, found.question) == (other.rcode(), 0, other.question)
    return [[str(rrset) for rrset in section] for section in (found.answer, found.authority, found.additional)]


def test_a_positive_answer_of_another_server_loses_authority_and_additional() -> None:
    assert relayed("NOERROR", [A], [NS], [GLUE]) == [[A], [], []]
    assert relayed("NOERROR", [CNAME], [NS], [GLUE]) == [[CNAME], [], []]
    assert relayed("NOERROR", [], [], [GLUE]) == [[], [], []]


@pytest.mark.parametrize(
    ("rcode", "answer", "authority"),
    [
        ("NXDOMAIN", [], [SOA]),
        ("NOERROR", [], [SOA]),
        ("NOERROR", [CNAME], [SOA]),
        ("NXDOMAIN", [CNAME], [SOA]),
        ("NOERROR", [], [NS]),
        ("SERVFAIL", [], [NS]),
        ("REFUSED", [A], [NS]),
    ],
)
def test_denials_delegations_and_errors_stay_as_they_are(rcode: str, answer: list[str], authority: list[str]) -> None:
    assert relayed(rcode, answer, authority, [GLUE]) == [answer, authority, [GLUE]]


def test_answers_of_our_own_are_treated_alike(serve: Serve) -> None:
    corefile = COREFILE.replace("$other", str(ports.free_port()))
    server = serve([objects.service("web", ips=["10.96.0.1"], ports=[("http", 80, "TCP")])], corefile=corefile)
    srv = server.query("_http._tcp.web.default.svc.cluster.local", "SRV", use_edns=0)
    assert srv.answer
    assert not srv.additional
    assert srv.edns == 0
    missing = server.query("nowhere.default.svc.cluster.local")
    assert (missing.rcode(), len(missing.authority)) == (dns.rcode.NXDOMAIN, 1)
    nodata = server.query("web.default.svc.cluster.local", "TXT")
    assert (nodata.rcode(), len(nodata.authority)) == (dns.rcode.NOERROR, 1)
    assert not server.query("example.org").additional
    forwarded = server.query("upstream.test", use_edns=0)
    assert (forwarded.rcode(), forwarded.additional, forwarded.edns) == (dns.rcode.NOERROR, [], 0)


def test_it_takes_no_options() -> None:
    assert options("minimal") == minimal.Options()
    assert refused("minimal x") == ["1: minimal has 1 argument"]
    assert refused("minimal {\nx\n}") == ['2: minimal has no option "x"']
