"""The options of forward, each by its effect on real queries and connections, and what the directive refuses."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest
import trustme
from hypothesis import assume, given
from hypothesis import strategies as st

from kdns.corefile import values
from kdns.errors import ConfigError, ConfigValueError
from kdns.plugins import forward, loads
from kdns.upstream.settings import Settings, Target
from tests.conftest import Serve
from tests.support import procs
from tests.support.server import Server
from tests.support.upstream import ADDRESS, Asked, FakeUpstream, reply, usual

COREFILE = """\
test:$dns {
    bind $addresses
    errors
    ready $host:$ready
    prometheus $host:$metrics
    %s
    whoami
}
"""


async def silent(_: Asked) -> None:
    return


async def by_name(asked: Asked) -> None:
    """Does what the first label says: a response code, `nodata`, `silent`, or anything for an address."""
    word = asked.name.split(".", maxsplit=1)[0].upper()
    if word == "SILENT":
        return
    if word in ("SERVFAIL", "REFUSED", "NXDOMAIN", "NOTIMP"):
        asked.send(reply(asked, rcode=word))
    elif word == "ODD":  # QR and nothing else
        asked.send(asked.data[:2] + b"\x80\0" + reply(asked, f"A {ADDRESS}")[4:])
    else:
        asked.send(reply(asked, *([] if word == "NODATA" else [f"A {ADDRESS}"])))


async def second(asked: Asked) -> None:
    """Another address for every name."""
    asked.send(reply(asked, "A 192.0.2.2"))


class Place:
    """One server with a forward for each option, and the upstreams behind them."""

    def __init__(self, server: Server, one: FakeUpstream, two: FakeUpstream) -> None:
        self.server, self.one, self.two = server, one, two

    def ask(self, name: str, *, tcp: bool = False) -> list[str]:
        """The addresses of a name, or the response code if there are none."""
        answer = self.server.query(name, tcp=tcp, timeout=6)
        found = [str(rdata) for rrset in answer.answer for rdata in rrset]
        return found or [dns.rcode.to_text(answer.rcode())]

    def asked(self, name: str) -> list[Asked]:
        """The queries for a name that came to the first upstream."""
        return [asked for asked in list(self.one.asked) if asked.name == name]

    def protos(self, name: str) -> list[str]:
        """Over what they came."""
        return [asked.proto for asked in self.asked(name)]


LINES = """\
forward plain.test ONE
forward tcp.test ONE {
    force_tcp
    prefer_udp
}
forward udp.test ONE {
    prefer_udp
}
forward except.test ONE {
    except not.except.test neither.except.test
    except nor.except.test
}
forward next.test ONE {
    next NXDOMAIN
    next SERVFAIL
    next_on_nodata
}
forward next.test TWO
forward alone.test ONE {
    next NXDOMAIN
    next_on_nodata
}
forward failover.test ONE TWO {
    policy sequential
    failover SERVFAIL
    failover REFUSED
}
forward quick.test ONE {
    read_timeout 100ms
    max_connect_attempts 1
    max_fails 0
}
forward few.test ONE {
    max_concurrent 2
    read_timeout 600ms
    max_connect_attempts 1
    max_fails 0
}
forward source.test ONE {
    source_address 127.0.0.3
}
forward 10.0.0.0/15 ONE
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with FakeUpstream(by_name) as one, FakeUpstream(second) as two:
        lines = LINES.replace("ONE", one.to).replace("TWO", two.to)
        corefile = COREFILE.replace("test:$dns {", "test:$dns in-addr.arpa:$dns {") % lines
        with Server(tmp_path_factory.mktemp("place"), corefile=corefile) as server:
            yield Place(server, one, two)


def test_an_upstream_is_asked_as_the_client_asked(place: Place) -> None:
    assert place.ask("a.plain.test") == [ADDRESS]
    assert place.ask("a.plain.test", tcp=True) == [ADDRESS]
    assert place.protos("a.plain.test") == ["udp", "tcp"]


def test_answers_have_the_clients_id_and_question_and_our_opt(place: Place) -> None:
    query = dns.message.make_query("A.pLain.test", "A", use_edns=0, payload=4000, want_dnssec=True)
    query.use_edns(0, dns.flags.DO, 4000, options=[dns.edns.GenericOption(dns.edns.OptionType.make(65001), b"private")])
    wire = query.to_wire()
    answer = place.server.raw_udp(wire)
    assert answer is not None
    assert answer[:2] == wire[:2]
    assert b"\x01A\x05pLain\x04test" in answer
    message = dns.message.from_wire(answer)
    assert (message.payload, message.options) == (1232, ())
    assert message.flags & dns.flags.RA
    asked = place.asked("A.pLain.test")[0].message
    assert (asked.payload, asked.options) == (1232, ())
    assert asked.ednsflags & dns.flags.DO
    place.server.query("b.plain.test")
    assert place.asked("b.plain.test")[0].message.edns == -1


def test_rd_and_cd_are_the_clients_and_ra_is_ours_whatever_the_upstream_sets(place: Place) -> None:
    for flags in (0, dns.flags.RD, dns.flags.CD | dns.flags.RD):
        answer = place.server.query("odd.plain.test", flags=flags)
        assert answer.flags == dns.flags.QR | dns.flags.RA | flags
        assert answer.answer


@pytest.mark.parametrize(("rdtype", "klass"), [("AXFR", "IN"), ("A", "CH"), ("A", "ANY")])
def test_zone_transfers_and_other_classes_are_refused_and_not_passed_on(place: Place, rdtype: str, klass: str) -> None:
    name = f"{rdtype}-{klass}.plain.test".lower()
    assert place.server.query(name, rdtype, tcp=True, rdclass=klass).rcode() == dns.rcode.REFUSED
    assert place.asked(name) == []


def test_force_tcp_asks_over_tcp_even_beside_prefer_udp(place: Place) -> None:
    assert place.ask("a.tcp.test") == [ADDRESS]
    assert place.ask("a.tcp.test", tcp=True) == [ADDRESS]
    assert place.protos("a.tcp.test") == ["tcp", "tcp"]


def test_prefer_udp_asks_over_udp(place: Place) -> None:
    assert place.ask("a.udp.test", tcp=True) == [ADDRESS]
    assert place.protos("a.udp.test") == ["udp"]


def test_except_leaves_names_to_the_next_plugin(place: Place) -> None:
    for zone in ("not", "neither", "nor"):
        place.ask(f"x.{zone}.except.test")
        assert place.asked(f"x.{zone}.except.test") == []
    assert place.ask("x.yes.except.test") == [ADDRESS]
    assert place.ask("notnot.except.test") == [ADDRESS]


def test_names_that_no_forward_covers_go_to_the_next_plugin(place: Place) -> None:
    answer = place.server.query("elsewhere.test")
    assert answer.additional  # whoami's


@pytest.mark.parametrize("word", ["nxdomain", "servfail", "nodata"])
def test_next_and_next_on_nodata_use_the_next_forward_that_covers_the_name(place: Place, word: str) -> None:
    assert place.ask(f"{word}.next.test") == ["192.0.2.2"]
    assert len(place.asked(f"{word}.next.test")) == 1


@pytest.mark.parametrize(("word", "expected"), [("refused", "REFUSED"), ("a", ADDRESS)])
def test_other_answers_stay_with_the_first_forward(place: Place, word: str, expected: str) -> None:
    assert place.ask(f"{word}.next.test") == [expected]


@pytest.mark.parametrize(("word", "expected"), [("nxdomain", "NXDOMAIN"), ("nodata", "NOERROR")])
def test_without_a_next_forward_the_answer_is_passed_on(place: Place, word: str, expected: str) -> None:
    assert place.ask(f"{word}.alone.test") == [expected]


def test_failover_asks_the_next_upstream(place: Place) -> None:
    assert place.ask("servfail.failover.test") == ["192.0.2.2"]
    assert place.ask("refused.failover.test") == ["192.0.2.2"]
    assert place.ask("nxdomain.failover.test") == ["NXDOMAIN"]


def test_read_timeout_ends_the_wait_and_the_error_names_the_upstream(place: Place) -> None:
    start = time.monotonic()
    assert place.ask("silent.quick.test") == ["SERVFAIL"]
    assert 0.09 < time.monotonic() - start < 0.6
    error = rf"2 silent\.quick\.test\. A: {place.one.to}: no answer within 0\.\d s: i/o timeout\n"
    procs.wait_until(lambda: re.search(error, place.server.log) is not None, 5, "the error")


def test_max_concurrent_refuses_more_and_counts(place: Place) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = sorted(pool.map(lambda n: place.ask(f"silent.{n}.few.test")[0], range(8)))
    assert found == ["REFUSED"] * 6 + ["SERVFAIL"] * 2
    assert place.server.metrics().value("coredns_forward_max_concurrent_rejects_total") == 6
    assert place.ask("a.few.test") == [ADDRESS]


def test_an_upstream_that_does_not_answer_leaves_room_for_others(serve: Serve) -> None:
    with FakeUpstream(silent) as mute, FakeUpstream() as good:
        lines = f"forward mute.test {mute.to} {{\nforce_tcp\n}}\nforward good.test {good.to}"
        server = serve(corefile=COREFILE % lines)
        query = bytearray(dns.message.make_query("00000.mute.test", "A").to_wire())
        with server.udp_socket() as sock:
            for number in range(forward.MOST_WAITING + 500):
                query[13:18] = f"{number:05}".encode()
                sock.send(query)
                if number % 50 == 0:
                    time.sleep(0.005)
            procs.wait_until(
                lambda: server.metrics().value("kdns_pending_rejects_total") > 100, 5, "queries that are turned away"
            )
            assert server.texts("a.good.test") == [ADDRESS]


def test_several_forwards_together_take_no_longer_than_one(serve: Serve) -> None:
    with FakeUpstream(silent) as mute, FakeUpstream(by_name) as other:
        options = "policy sequential\nmax_fails 0"
        lines = f"""
        forward . {mute.to} {other.to} {{\n{options}\nnext NXDOMAIN\n}}
        forward . {mute.to} {{\n{options}\n}}
        """
        server = serve(corefile=COREFILE % lines)
        begun = time.monotonic()
        assert server.query("nxdomain.a.test", timeout=10).rcode() == dns.rcode.SERVFAIL
        assert 4 < time.monotonic() - begun < 5.8


def test_source_address_is_where_upstreams_are_asked_from(place: Place) -> None:
    place.ask("a.source.test")
    place.ask("a.source.test", tcp=True)
    assert [(asked.proto, asked.peer[0]) for asked in place.asked("a.source.test")] == [
        ("udp", "127.0.0.3"),
        ("tcp", "127.0.0.3"),
    ]


def test_a_network_stands_for_all_its_reverse_zones(place: Place) -> None:
    for name in ("1.0.0.10.in-addr.arpa", "1.0.1.10.in-addr.arpa"):
        place.server.query(name)
        assert len(place.asked(name)) == 1
    place.server.query("1.0.2.10.in-addr.arpa")
    assert place.asked("1.0.2.10.in-addr.arpa") == []


def test_the_metrics_have_the_names_and_labels_of_coredns(place: Place) -> None:
    place.ask("m.tcp.test")
    place.ask("nxdomain.tcp.test")
    metrics = place.server.metrics()
    labels = {"proxy_name": "forward", "to": place.one.to}
    assert metrics.value("coredns_proxy_request_duration_seconds_count", rcode="NXDOMAIN", **labels) >= 1
    assert metrics.value("coredns_proxy_conn_cache_hits_total", proto="tcp", **labels) >= 1
    assert metrics.value("coredns_proxy_conn_cache_misses_total", proto="tcp", **labels) >= 1
    assert metrics.value("coredns_proxy_conn_cache_misses_total", proto="udp", **labels) >= 1


def test_health_check_asks_as_it_is_told(tmp_path: Path) -> None:
    options = "health_check 20ms no_rec domain Check.Example\nread_timeout 50ms\nmax_connect_attempts 1"
    with FakeUpstream(silent) as udp, FakeUpstream(silent) as tcp:
        lines = f"forward udp.test {udp.to} {{\n{options}\n}}\nforward tcp.test {tcp.to} {{\n{options}\nforce_tcp\n"
        lines += "source_address 127.0.0.4\nfailfast_all_unhealthy_upstreams\nmax_fails 1\n}"
        with Server(tmp_path, corefile=COREFILE % lines) as server:
            for upstream, zone, proto, source in ((udp, "udp", "udp", "127.0.0.1"), (tcp, "tcp", "tcp", "127.0.0.4")):
                server.query(f"a.{zone}.test")
                procs.wait_until(lambda upstream=upstream: len(upstream.asked) > 1, 5, "a check")  # type: ignore[misc]
                check = upstream.asked[1]
                question = check.message.question[0].to_text()
                assert (check.proto, question, check.peer[0]) == (proto, "check.example. IN NS", source)
                assert not check.message.flags & dns.flags.RD
            failures = "coredns_proxy_healthcheck_failures_total"
            procs.wait_until(lambda: server.metrics().value(failures, to=tcp.to) >= 2, 8, "failed checks")
            asked = [one.name for one in tcp.asked].count("b.tcp.test")
            assert server.query("b.tcp.test").rcode() == dns.rcode.SERVFAIL
            assert [one.name for one in tcp.asked].count("b.tcp.test") == asked == 0
            assert server.metrics().value("coredns_forward_healthcheck_broken_total") >= 1
            tcp.script = usual
            procs.wait_until(lambda: server.query("c.tcp.test").rcode() == dns.rcode.NOERROR, 8, "recovery")


def test_the_transports_of_a_corefile(tmp_path: Path) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")

    async def resolver(asked: Asked) -> None:
        asked.send(reply(asked, *(["A 127.0.0.1"] if asked.rdtype == "A" else [])))

    with (
        FakeUpstream(tls=secure(ca)) as tls,
        FakeUpstream(https=secure(ca, "h2")) as https,
        FakeUpstream() as plain,
        FakeUpstream(resolver) as names,
    ):
        lines = f"""
    root {tmp_path}
    forward one.test tls://127.0.0.1%dns.example:{tls.port} {{
        tls ca.pem
    }}
    forward two.test tls://{tls.to} {{
        tls ca.pem
        tls_servername dns.example
    }}
    forward three.test https://{https.to} {{
        tls ca.pem
        tls_servername dns.example
        doh_method GET
    }}
    forward four.test dns://{plain.to}
    forward five.test dns.example:{plain.port} {{
        resolver {names.to}
    }}
    forward six.test tls://{tls.to} {{
        tls ca.pem
        max_fails 0
        max_connect_attempts 1
    }}
"""
        with Server(tmp_path / "server", corefile=COREFILE % lines) as server:
            for zone in ("one", "two", "three", "four", "five"):
                assert server.texts(f"a.{zone}.test") == [ADDRESS], zone
            assert server.query("a.six.test").rcode() == dns.rcode.SERVFAIL
            procs.wait_until(lambda: f"{tls.to}: no tcp-tls connection: certificate" in server.log, 5, "the error")
        assert [asked.name for asked in tls.asked] == ["a.one.test", "a.two.test"]
        assert [asked.headers[":method"] for asked in https.asked] == ["GET"]


def secure(ca: trustme.CA, *alpn: str) -> ssl.SSLContext:
    """What a server for dns.example uses."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("dns.example").configure_cert(context)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def test_debug_shows_wrong_replies_in_hexadecimal(tmp_path: Path) -> None:
    async def script(asked: Asked) -> None:
        good = reply(asked, f"A {ADDRESS}")
        asked.send(bytes((good[0] ^ 1,)) + good[1:])
        asked.send(good)

    with FakeUpstream(script) as upstream:
        lines = f"debug\nforward . {upstream.to}"
        with Server(tmp_path, corefile=COREFILE % lines) as server:
            assert server.texts("a.test") == [ADDRESS]
            procs.wait_until(lambda: "debug: 000000 " in server.log, 5, "a hexdump")
            assert f"[DEBUG] plugin/forward: {upstream.to}: wrong reply (id)" in server.log


# What the directive says, and what it refuses


def read(line: str, *options: str) -> forward.Forward:
    """One directive, understood."""
    text = f".:53 {{\n forward {line} {{\n" + "\n".join(options) + "\n}\n}\n"
    options_found = loads(text).blocks[0].plugins["forward"]
    assert isinstance(options_found, forward.Options)
    return options_found.forwards[0]


def refused(line: str, *options: str) -> str:
    """The one mistake in a directive; without the file's name, `LINE: text`."""
    with pytest.raises(ConfigError) as raised:
        read(line, *(option for option in options if option))
    assert len(raised.value.mistakes) == 1, raised.value
    return str(raised.value).removeprefix("Corefile:")


def test_defaults_are_those_of_coredns() -> None:
    found = read(". 10.0.0.1")
    assert found == forward.Forward((".",), (Target("dns", "10.0.0.1", 53),))
    assert found.settings == Settings(
        expire=10.0, read_timeout=2.0, max_fails=2, max_attempts=None, policy="random", health_interval=0.5
    )


@pytest.mark.parametrize(
    ("to", "target"),
    [
        ("10.0.0.1", Target("dns", "10.0.0.1", 53)),
        ("10.0.0.1:5353", Target("dns", "10.0.0.1", 5353)),
        ("dns://10.0.0.1", Target("dns", "10.0.0.1", 53)),
        ("2001:DB8::1", Target("dns", "2001:db8::1", 53)),
        ("[2001:db8::1]", Target("dns", "2001:db8::1", 53)),
        ("[2001:db8::1]:5353", Target("dns", "2001:db8::1", 5353)),
        ("fe80::1%eth0", Target("dns", "fe80::1%eth0", 53)),
        ("[fe80::1%eth0]:5353", Target("dns", "fe80::1%eth0", 5353)),
        ("tls://9.9.9.9", Target("tls", "9.9.9.9", 853)),
        ("tls://9.9.9.9:10853", Target("tls", "9.9.9.9", 10853)),
        ("tls://9.9.9.9%dns.quad9.net", Target("tls", "9.9.9.9", 853, "dns.quad9.net")),
        ("tls://9.9.9.9%dns.quad9.net:10853", Target("tls", "9.9.9.9", 10853, "dns.quad9.net")),
        ("tls://[2620:fe::fe]", Target("tls", "2620:fe::fe", 853)),
        ("tls://[2620:fe::fe%dns.quad9.net]:10853", Target("tls", "2620:fe::fe", 10853, "dns.quad9.net")),
        ("tls://2620:fe::fe%dns.quad9.net", Target("tls", "2620:fe::fe", 853, "dns.quad9.net")),
        ("https://9.9.9.9", Target("https", "9.9.9.9", 443)),
        ("dns.example", Target("dns", "dns.example", 53)),
        ("DNS.example.:5353", Target("dns", "dns.example", 5353)),
        ("tls://dns.example", Target("tls", "dns.example", 853)),
    ],
)
def test_upstreams_are_written_in_many_ways(to: str, target: Target) -> None:
    assert read(f". {to}").targets == (target,)


def test_files_stand_for_their_nameservers_and_each_address_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 10.0.0.1\nnameserver 10.0.0.2\nsearch example\n")
    assert [str(target) for target in read(f". 10.0.0.2 {path} 10.0.0.1:53").targets] == ["10.0.0.2:53", "10.0.0.1:53"]


def test_tls_servername_is_for_all_upstreams() -> None:
    found = read(". tls://9.9.9.9 https://9.9.9.10 10.0.0.1", "tls_servername dns.quad9.net")
    assert [target.server_name for target in found.targets] == ["dns.quad9.net", "dns.quad9.net", ""]


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("force_tcp", {"force_tcp": True}),
        ("prefer_udp", {"prefer_udp": True}),
        ("expire 20s", {"expire": 20.0}),
        ("max_age 1m", {"max_age": 60.0}),
        ("max_idle_conns 3", {"max_idle": 3}),
        ("read_timeout 500ms", {"read_timeout": 0.5}),
        ("max_fails 0", {"max_fails": 0}),
        ("max_connect_attempts 0", {"max_attempts": 0}),
        ("doh_method GET", {"doh_method": "GET"}),
        ("policy round_robin", {"policy": "round_robin"}),
        ("policy sequential", {"policy": "sequential"}),
        ("health_check 5s", {"health_interval": 5.0}),
        ("health_check 1s no_rec", {"health_interval": 1.0, "health_recursion": False}),
        ("health_check 1s domain a.B", {"health_interval": 1.0, "health_domain": b"\x01a\x01b\0"}),
        (
            "health_check 1s domain . no_rec",
            {"health_interval": 1.0, "health_domain": b"\0", "health_recursion": False},
        ),
        ("failover SERVFAIL refused", {"failover": frozenset((2, 5))}),
        ("failfast_all_unhealthy_upstreams", {"failfast": True}),
        ("source_address 2001:DB8::1", {"source": "2001:db8::1"}),
        (
            "resolver 10.0.0.1 [2001:db8::1]:5353",
            {"resolvers": (Target("dns", "10.0.0.1", 53), Target("dns", "2001:db8::1", 5353))},
        ),
    ],
)
def test_each_option_has_its_setting(option: str, expected: dict[str, object]) -> None:
    assert read(". 10.0.0.1", option).settings == replace(Settings(), **expected)  # type: ignore[arg-type]


def test_options_of_the_directive_itself() -> None:
    found = read("Example.ORG 10.0.0.1", "except a.example.org 10.0.0.0/8", "max_concurrent 7", "next nxdomain NOTIMPL")
    assert found.zones == ("example.org.",)
    assert found.excepted == ("a.example.org.", "10.in-addr.arpa.")
    assert (found.max_concurrent, found.next_rcodes) == (7, frozenset((3, 4)))


@pytest.mark.parametrize(
    ("line", "option", "message"),
    [
        (".", "", "2: forward has 1 argument"),
        (". 10.0.0.300", "", '2: forward: "10.0.0.300" is neither an address, a file, nor a name'),
        (". 10.0.0.1:0", "", '2: forward: "0" is out of range'),
        (". 10.0.0.1:65536", "", '2: forward: "65536" is out of range'),
        (". /no/such/file", "", '2: forward: "/no/such/file" cannot be read: No such file'),
        (". /dev/null", "", '2: forward: "/dev/null" has no nameserver'),
        (". quic://10.0.0.1", "", "2: forward: quic:// is not supported for upstreams"),
        (". https://10.0.0.1/other", "", '2: forward: "https://10.0.0.1/other" has a path'),
        ("a..b 10.0.0.1", "", "2: forward: zone"),
        (". tls://9.9.9.9%a..b", "", "2: forward: zone"),
        (". tls://9.9.9.9%*.example", "", '2: forward: "*.example" is not a server'),
        (". tls://9.9.9.9", "tls_servername .", '3: forward: "." is not a server'),
        (". tls://9.9.9.9%a.example", "tls_servername b.example", "2: forward has both tls_servername b.example and"),
        (". " + " ".join(f"10.0.0.{n}" for n in range(16)), "", "2: forward has 16 upstreams; accepted: at most 15"),
        (". 10.0.0.1", "tls /no/such/ca", '3: forward: tls: "/no/such/ca" cannot be read: No such file'),
        (". 10.0.0.1", "tls /dev/null", "3: forward: tls cannot use these files"),
        (". 10.0.0.1", "tls a b c d", '3: forward: "tls" has 4 arguments'),
        (". 10.0.0.1", "read_timeout 0", "3: forward: "),
        (". 10.0.0.1", "expire -1s", "3: forward: "),
        (". 10.0.0.1", "max_fails -1", "3: forward: "),
        (". 10.0.0.1", "policy fastest", '3: forward: "fastest" is not known'),
        (". 10.0.0.1", "health_check", '3: forward: "health_check" has 0 arguments'),
        (". 10.0.0.1", "health_check 1s rec", '3: forward: health_check has "rec"'),
        (". 10.0.0.1", "health_check 1s domain", '3: forward: health_check has "domain"'),
        (". 10.0.0.1", "failover NOERROR", "3: forward: failover has NOERROR"),
        (". 10.0.0.1", "failover MAYBE", '3: forward: "MAYBE" is no response code'),
        (". 10.0.0.1", "next", '3: forward: "next" has 0 arguments'),
        (". 10.0.0.1", "next_on_nodata yes", '3: forward: "next_on_nodata" has 1 argument'),
        (". 10.0.0.1", "source_address here", '3: forward: "here" is not an IP address'),
        (". 10.0.0.1", "resolver dns.example", '3: forward: "dns.example" is not an address'),
        (". 10.0.0.1", "doh_method PUT", '3: forward: "PUT" is not known'),
        (". 10.0.0.1", "force_tcp yes", '3: forward: "force_tcp" has 1 argument'),
        (". 10.0.0.1", "max_concurrency 1", '3: forward has no option "max_concurrency"'),
    ],
)
def test_mistakes_are_named_with_their_line(line: str, option: str, message: str) -> None:
    assert refused(line, option).startswith(message)


@given(st.text(st.characters(codec="ascii", exclude_characters='{}"\\#\n\r\t \x0b\x0c'), min_size=1, max_size=40))
def test_any_word_as_an_upstream_is_understood_or_refused(word: str) -> None:
    assume(not Path("/nonexistent", word).exists())
    try:
        target = forward._upstreams(word, Path("/nonexistent"))[0]
    except ConfigValueError:
        return
    assert 0 < target.port < 65536
    assert target.transport in ("dns", "tls", "https")
    assert target.is_name or values.ip_address(target.host) == target.host
