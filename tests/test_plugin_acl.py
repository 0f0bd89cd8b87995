"""acl: the client's address and the type decide who gets which answer, or none."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import dns.edns
import dns.message
import dns.query
import dns.rcode
import pytest

from kdns.corefile.values import network
from kdns.errors import ConfigValueError
from kdns.plugins import acl
from kdns.plugins.networks import Networks, packed
from kdns.wire import names
from kdns.wire.message import Response
from tests.support import objects
from tests.support.configs import options, refused
from tests.support.plugins import Behind, Ground, answered, query
from tests.support.server import Server, read_message

pytestmark = pytest.mark.one_speed

COREFILE = """
.:$dns {
    bind $addresses
    ready $host:$ready
    prometheus $host:$metrics
    whoami
}
rules.test:$dns {
    bind $addresses
    prometheus $host:$metrics
    log rules.test "{name} {type} {rcode} {>rflags} {rsize} {/log/class}"
    acl rules.test {
        drop type TXT
        BLOCK TYPE AAAA net 127.0.0.3
        filter type MX TYPE65 NET 127.0.0.2 127.0.0.3
        allow type A net 127.0.0.0/30 ::1
        block type A
    }
    acl sub.rules.test {
        filter
    }
    whoami
}
cluster.local:$dns {
    bind $addresses
    prometheus $host:$metrics
    acl {
        filter type TXT
        block type SRV MX net 127.0.0.2
    }
    kubernetes cluster.local {
        manifests $manifests
    }
}
"""
SERVICE = "web.default.svc.cluster.local"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    service = objects.service("web", ips=["10.96.0.1"], ports=[("http", 80, "TCP")])
    with Server(tmp_path_factory.mktemp("acl"), [service], corefile=COREFILE) as running:
        yield running


def ask(
    server: Server, name: str, rdtype: str, client: str, *, tcp: bool = False, edns: int = 0
) -> tuple[str, list[str]]:
    """Response code and extended errors that a client gets; "none" for no answer."""
    asked = dns.message.make_query(name, rdtype, use_edns=edns)
    where = "::1" if ":" in client else "127.0.0.1"
    try:
        send = dns.query.tcp if tcp else dns.query.udp
        found = send(asked, where, timeout=0.15, port=server.port, source=client)
    except dns.exception.Timeout:
        return "none", []
    assert not found.answer
    errors = [f"{int(o.code)} {o.text or ''}".strip() for o in found.options if isinstance(o, dns.edns.EDEOption)]
    return dns.rcode.to_text(found.rcode()), errors


@pytest.mark.parametrize("tcp", [False, True])
def test_the_first_rule_that_has_type_and_client_decides(server: Server, tcp: bool) -> None:
    blocked, filtered = ("REFUSED", ["15"]), ("NOERROR", ["17"])
    passed: tuple[str, list[str]] = ("NOERROR", [])
    assert ask(server, "a.rules.test", "A", "127.0.0.1", tcp=tcp) == passed
    assert ask(server, "a.rules.test", "A", "127.0.0.4", tcp=tcp) == blocked
    assert ask(server, "a.rules.test", "AAAA", "127.0.0.3", tcp=tcp) == blocked
    assert ask(server, "a.rules.test", "AAAA", "127.0.0.2", tcp=tcp) == passed
    for rdtype in ("MX", "HTTPS"):
        assert ask(server, "a.rules.test", rdtype, "127.0.0.2", tcp=tcp) == filtered
        assert ask(server, "a.rules.test", rdtype, "127.0.0.4", tcp=tcp) == passed
    # A rule that allows ends the search, and one of the next directive counts where no rule has decided.
    assert ask(server, "sub.rules.test", "A", "127.0.0.1", tcp=tcp) == passed
    assert ask(server, "x.sub.rules.test", "SRV", "127.0.0.1", tcp=tcp) == filtered


@pytest.mark.parametrize("tcp", [False, True])
def test_clients_over_ipv6(server: Server, tcp: bool) -> None:
    if "::1" not in server.addresses:
        pytest.skip("no IPv6")
    assert ask(server, "a.rules.test", "A", "::1", tcp=tcp) == ("NOERROR", [])
    assert ask(server, "a.rules.test", "MX", "::1", tcp=tcp) == ("NOERROR", [])


def test_who_does_not_speak_edns_gets_no_extended_error(server: Server) -> None:
    found = server.query("a.rules.test", "SRV", use_edns=False)
    assert (found.rcode(), found.edns) == (dns.rcode.NOERROR, -1)
    assert ask(server, "a.rules.test", "A", "127.0.0.4", edns=-1) == ("REFUSED", [])


def test_what_is_dropped_gets_no_answer_and_what_else_is_asked_does(server: Server) -> None:
    before = server.metrics()
    assert ask(server, "a.rules.test", "TXT", "127.0.0.1") == ("none", [])
    with server.tcp_socket() as sock:
        for rdtype in ("TXT", "A", "TXT", "SRV"):
            wire = dns.message.make_query("a.rules.test", rdtype, id=len(rdtype)).to_wire()
            sock.sendall(struct.pack("!H", len(wire)) + wire)
        ids = [dns.message.from_wire(read_message(sock) or b"").id for _ in range(2)]
    assert ids == [1, 3]
    after = server.metrics()

    def more(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    assert more("coredns_acl_dropped_requests_total", zone="rules.test.") == 3
    assert more("coredns_acl_allowed_requests_total") == 2
    assert more("coredns_dns_requests_total", zone="rules.test.", type="TXT", proto="tcp") == 2
    assert more("coredns_dns_responses_total", zone="rules.test.", plugin="", rcode="NOERROR") == 3
    assert more("coredns_dns_response_size_bytes_count", zone="rules.test.", proto="udp") == 1
    assert more("coredns_dns_response_size_bytes_sum", zone="rules.test.", proto="udp") == 0
    assert server.log.count("[INFO] a.rules.test. TXT - - 0 error") >= 3


def test_queries_are_counted_by_what_became_of_them(server: Server) -> None:
    before = server.metrics()
    for name, rdtype, client in (
        ("b.rules.test", "A", "127.0.0.1"),
        ("b.rules.test", "A", "127.0.0.4"),
        ("b.rules.test", "MX", "127.0.0.3"),
        ("b.sub.rules.test", "SRV", "127.0.0.3"),
    ):
        ask(server, name, rdtype, client)
    after = server.metrics()
    label = f"dns://127.0.0.1:{server.port}"
    for name, zone, count in (
        ("blocked", "rules.test.", 1), ("filtered", "rules.test.", 1), ("filtered", "sub.rules.test.", 1),
    ):  # fmt: skip
        labels = {"server": label, "zone": zone, "view": ""}
        metric = f"coredns_acl_{name}_requests_total"
        assert after.value(metric, **labels) - before.value(metric, **labels) == count
    labels = {"server": label, "view": ""}
    metric = "coredns_acl_allowed_requests_total"
    assert after.value(metric, **labels) - before.value(metric, **labels) == 1


def test_the_packet_cache_has_no_answers_that_are_only_for_some(server: Server) -> None:
    """Equal queries, from two clients in turns: ports and IDs differ, the rest does not."""
    srv = f"_http._tcp.{SERVICE}"
    asked = dns.message.make_query(srv, "SRV")
    codes = [
        dns.query.udp(asked, "127.0.0.1", timeout=3, port=server.port, source=client).rcode()
        for client in ("127.0.0.1", "127.0.0.2") * 4
    ]
    assert codes == [dns.rcode.NOERROR, dns.rcode.REFUSED] * 4
    before = server.metrics().value("kdns_packet_cache_hits_total")
    for _ in range(6):
        assert server.query(SERVICE).answer
        assert server.query(SERVICE, "SRV").answer
    hits = server.metrics().value("kdns_packet_cache_hits_total") - before
    assert hits == 4  # no rule looks at who asks for an address: all but the first two answers came from there


@pytest.mark.parametrize(
    ("rules", "passes"),
    [
        (["acl {\nblock net 127.0.0.1\n}"], False),
        (["acl {\nallow net 127.0.0.1\n}"], True),
        (["acl {\nallow\nblock\n}"], False),
        (["acl {\ndrop type ANY AXFR\n}"], True),
        (["acl {\nfilter type AAAA ANY\n}"], False),
        (["acl {\nfilter type *\n}"], False),
        (["acl other.test {\nblock\n}"], True),
        (["acl cluster.local {\nallow\n}", "acl local {\nblock\n}"], False),
        (["acl a.svc.cluster.local {\nblock\n}"], False),
        (["acl acluster.local {\nblock\n}"], True),
    ],
)
def test_direct_answers_go_past_it_only_where_it_lets_everything_pass(rules: list[str], passes: bool) -> None:
    ground = Ground()
    handler = acl.Handler(acl.merge([options(each, "cluster.local") for each in rules]), ground.site)
    cells = handler.passing(names.from_text("cluster.local"), "dns://:53")
    assert (cells is not None) == passes
    for cell in cells or ():
        ground.region.cells[cell] += 1
    counted = ground.value("count", "coredns_acl_allowed_requests_total", "server", "dns://:53")
    assert counted == (1 if passes else None)


@pytest.mark.parametrize(
    ("host", "among", "found"),
    [
        ("10.1.2.3", ["10.0.0.0/8"], True),
        ("11.1.2.3", ["10.0.0.0/8", "12.0.0.0/6"], False),
        ("::ffff:10.1.2.3", ["10.1.2.3/32"], True),
        ("fe80::1%eth0", ["fe80::/10"], True),
        ("2001:db8::1", ["0.0.0.0/0"], False),
        ("10.1.2.3", ["::/0"], False),
        ("2001:db8::1", ["::/0"], True),
        ("2001:db8::1", [], False),
        ("10.1.2.3", ["::ffff:10.0.0.0/104"], True),
        ("::ffff:11.1.2.3", ["::ffff:10.0.0.0/104"], False),
        ("10.1.2.3", ["::ffff:0:0/96"], True),
        ("10.1.2.3", ["::/95"], False),
    ],
)
def test_networks(host: str, among: list[str], found: bool) -> None:
    assert Networks(among).has(packed(host)) == found


def test_networks_in_the_corefile() -> None:
    assert network("10.1.2.3/8") == "10.0.0.0/8"
    assert network("10.1.2.3") == "10.1.2.3/32"
    assert network("2001:db8::1") == "2001:db8::1/128"
    for text in ("10.0.0.0/255.0.0.0", "10.0.0/8", "example.org", "10.0.0.0/33", "", "/8"):
        with pytest.raises(ConfigValueError):
            network(text)


def test_the_response_of_who_is_let_pass_by_address_is_not_cacheable() -> None:
    handler = acl.Handler(options("acl {\nblock net 10.0.0.0/8\n}", "."), Ground().site)
    assert not answered(handler, query("a.test"), Behind(Response(cacheable=True))).cacheable
    handler = acl.Handler(options("acl {\nallow net 10.0.0.0/8\nblock type TXT\n}", "."), Ground().site)
    assert answered(handler, query("a.test"), Behind(Response(cacheable=True))).cacheable
    handler = acl.Handler(options("acl {\nblock type TXT net 10.0.0.0/8\n}", "."), Ground().site)
    assert answered(handler, query("a.test"), Behind(Response(cacheable=True))).cacheable


@pytest.mark.parametrize(
    ("directive", "messages"),
    [
        ("acl {\nrefuse\n}", ['2: acl: "refuse" is not known']),
        ("acl {\nblock A\n}", ['2: acl: "A" is neither type nor net']),
        ("acl {\nblock type\n}", ['2: acl: nothing follows "type"']),
        ("acl {\nblock type net 10.0.0.0/8\n}", ['2: acl: nothing follows "type"']),
        ("acl {\nblock type A net\n}", ['2: acl: nothing follows "net"']),
        ("acl {\nblock type WHAT\n}", ['2: acl: "WHAT" is no record type']),
        ("acl {\nblock net 10.0.0.0/40\n}", ['2: acl: "10.0.0.0/40" is neither a network nor an address']),
        ("acl {\nblock net 10.0.0.0/40 *\n}", ['2: acl: "10.0.0.0/40" is neither a network nor an address']),
        ("acl {\nblock {\nx\n}\n}", ['2: acl: "block" has a block']),
        ("acl a..b {\nblock\n}", ['1: acl: zone "a..b" has an empty label, or is too long']),
    ],
)
def test_mistakes(directive: str, messages: list[str]) -> None:
    assert refused(directive) == messages
