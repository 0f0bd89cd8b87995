"""Every option of every directive, as clients see it.

One server has a server block for each option, told apart by their zones; what needs a server of its own is at the end.
"""

from __future__ import annotations

import random
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import pytest

from tests.conftest import Serve
from tests.support import objects, ports, procs
from tests.support.ask import ask, records, seen, shows_within, told
from tests.support.netns import Netns
from tests.support.objects import Object, endpoint, endpoint_slice, external_name, namespace, service
from tests.support.server import Server

Z = "cluster.local"


def block(zones: str, option: str = "", *plugins: str) -> str:
    """A server block that has the same objects as the others, one option of `kubernetes`, and plugins."""
    keys = " ".join(f"{zone}:$dns" for zone in zones.split())
    kubernetes = f"kubernetes {{\n manifests $manifests\n {option}\n}}"
    return "\n".join([f"{keys} {{", "import common", kubernetes, *plugins, "}\n"])


COREFILE = """\
(common) {
    bind $addresses
    errors
}
.:$dns {
    import common
    health $host:$health
    ready $host:$ready
    prometheus $host:$metrics
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        manifests $manifests
    }
    loadbalance round_robin
    chaos kdns-test "B. Author" "A. Author"
    nsid rack 7,  second row
}
deep.cluster.local:$dns {
    import common
    prometheus $host:$metrics
    whoami
}
root.test:$dns {
    import common
    root $elsewhere
    kubernetes {
        manifests more
    }
}
.:$second {
    bind $addresses
    whoami
}
cluster.local:$second {
    import common
    kubernetes {
        manifests $manifests
        namespaces two
    }
}
bind:$second server:$second {
    import common
    chaos
    nsid
}
""" + "".join(
    [
        block("still.test"),
        block("insecure.test", "pods insecure"),
        block("verified.test", "pods verified"),
        block("podnames.test", "endpoint_pod_names"),
        block("ttl0.test", "ttl 0"),
        block("ttl3600.test", "ttl 3600"),
        block("noendpoints.test", "noendpoints"),
        block("ignore.test", "ignore empty_service"),
        block("namespaces.test 10.97.0.0/16", "namespaces one two"),
        block("nslabels.test", "namespace_labels env=prod,tier!=test"),
        block("labels.test", "labels tier in (front, back)"),
        block("fall.test", "fallthrough", "whoami"),
        block("fall-some.test", "fallthrough out.svc.fall-some.test", "whoami"),
        block("any.test", "", "any"),
        block("small.test", "", "bufsize 512"),
        block("large.test", "", "bufsize 4096"),
        block("log.test", "", "log"),
        block(
            "somelog.test",
            "",
            'log one.svc.somelog.test "{remote} {proto} {type} {name} {rcode} {>rflags} {/log/class}" {',
            "class denial",
            "}",
        ),
    ]
)


def cluster() -> list[Object]:
    many = [endpoint(f"10.1.{number // 200}.{number % 200}", hostname=f"host-{number}") for number in range(300)]
    long_pod = "p" * 64
    return [
        namespace("one", {"env": "prod"}),
        namespace("two", {"env": "prod", "tier": "test"}),
        namespace("three"),
        service("web", "one", ips=("10.97.0.1",), labels={"tier": "front"}),
        endpoint_slice("web", [endpoint("10.1.2.1"), endpoint("10.1.2.2", hostname="named")], "one"),
        service("web", "two", ips=("10.97.0.2",), labels={"tier": "back"}),
        service("web", "three", ips=("10.97.0.3",), labels={"tier": "side"}),
        service("bare", "one", ips=("10.97.0.4",)),
        endpoint_slice("bare", [endpoint("10.1.2.9", ready=False)], "one"),
        service("db", "one", ips=(), labels={"tier": "back"}),
        endpoint_slice(
            "db",
            [
                endpoint("10.1.3.1", pod="db-0"),
                endpoint("10.1.3.2", hostname="host", pod="db-1"),
                endpoint("10.1.3.3", pod=long_pod),
                endpoint("10.1.3.4", pod="not_a.label"),
                endpoint("10.1.3.5"),
            ],
            "one",
        ),
        external_name("alias", f"db.one.svc.{Z}", "one"),
        service("big", "one", ips=()),
        endpoint_slice("big", many, "one"),
        objects.pod("runs", "one", "10.1.4.1", "fd00::4:1"),
        objects.pod("done", "one", "10.1.4.2", phase="Succeeded"),
        objects.pod("broke", "two", "10.1.4.3", phase="Failed"),
    ]


@pytest.fixture(scope="module")
def second() -> int:
    """The port of the second server."""
    return ports.free_port()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, second: int) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("options")
    (folder / "elsewhere" / "more").mkdir(parents=True)
    objects.write_list(folder / "elsewhere" / "more" / "one.json", [service("rooted", "one", ips=["10.98.0.1"])])
    corefile = COREFILE.replace("$second", str(second)).replace("$elsewhere", str(folder / "elsewhere"))
    with Server(folder, cluster(), corefile=corefile) as started:
        yield started


def assert_nxdomain(server: Server, *names: str, rdtype: str = "A") -> None:
    for name in names:
        answer = ask(server, name, rdtype)
        assert (answer.rcode, answer.answer, len(answer.authority)) == ("NXDOMAIN", [], 1), name


# kubernetes


def test_pods_insecure_gives_any_well_formed_address_in_a_namespace_that_exists(server: Server) -> None:
    zone = "insecure.test"
    for label, rdtype, address in (
        ("1-2-3-4", "A", "1.2.3.4"),
        ("255-255-255-255", "A", "255.255.255.255"),
        ("2001-db8--1", "AAAA", "2001:db8::1"),
        ("--1", "AAAA", "::1"),
        ("1-2-3-4-5-6-7-8", "AAAA", "1:2:3:4:5:6:7:8"),
    ):
        name = f"{label}.one.pod.{zone}"
        answer = ask(server, name, rdtype)
        assert (answer.rcode, answer.answer, answer.ttls) == (
            "NOERROR",
            records(name, rdtype, [address]),
            frozenset((5,)),
        )
        other = ask(server, name, "AAAA" if rdtype == "A" else "A")
        assert (other.rcode, other.answer, len(other.authority)) == ("NOERROR", [], 1)
    assert_nxdomain(
        server, *(f"{label}.one.pod.{zone}" for label in ("1-2-3", "1-2-3-256", "1-2-3-4-5", "web", "g--1"))
    )
    assert_nxdomain(server, r"1\.2\.3\.4.one.pod." + zone, f"1-2-3-4.none.pod.{zone}", f"x.1-2-3-4.one.pod.{zone}")
    assert_nxdomain(server, f"1-2-3-4.pod.{zone}", f"1-2-3-4.one.svc.{zone}")
    for name in (f"one.pod.{zone}", f"pod.{zone}"):
        assert ask(server, name).rcode == "NOERROR"


def test_pods_verified_gives_the_addresses_of_running_pods_in_that_namespace(server: Server) -> None:
    zone = "verified.test"
    assert ask(server, f"10-1-4-1.one.pod.{zone}").rdata == ["10.1.4.1"]
    assert ask(server, f"fd00--4-1.one.pod.{zone}", "AAAA").rdata == ["fd00::4:1"]
    names = ["10-1-4-2.one", "10-1-4-3.two", "10-1-4-1.two", "1-2-3-4.one"]
    assert_nxdomain(server, *(f"{name}.pod.{zone}" for name in names))
    assert ask(server, f"three.pod.{zone}").rcode == "NOERROR"


def test_pods_are_disabled_unless_said_otherwise(server: Server) -> None:
    assert_nxdomain(server, f"10-1-4-1.one.pod.{Z}", f"one.pod.{Z}")


def test_endpoint_pod_names_names_endpoints_after_their_pods_where_that_is_a_label(server: Server) -> None:
    db = "db.one.svc.podnames.test"
    for label, address in (("db-0", 1), ("host", 2), ("10-1-3-3", 3), ("10-1-3-4", 4), ("10-1-3-5", 5)):
        assert ask(server, f"{label}.{db}").rdata == [f"10.1.3.{address}"]
    assert_nxdomain(server, f"db-1.{db}", f"10-1-3-1.{db}", f"10-1-3-2.{db}", f"{'p' * 63}.{db}")
    assert_nxdomain(server, f"db-0.db.one.svc.{Z}")
    assert ask(server, f"10-1-3-1.db.one.svc.{Z}").rdata == ["10.1.3.1"]


@pytest.mark.parametrize(("zone", "ttl"), [("ttl0.test", 0), ("ttl3600.test", 3600), ("still.test", 5)])
def test_ttl_is_that_of_every_record_but_the_schemas(server: Server, zone: str, ttl: int) -> None:
    for name, rdtype in (
        (f"web.one.svc.{zone}", "A"),
        (f"_http._tcp.web.one.svc.{zone}", "SRV"),
        (f"gone.one.svc.{zone}", "A"),
        (zone, "SOA"),
        (zone, "NS"),
        (f"ns.dns.{zone}", "A"),
    ):
        assert ask(server, name, rdtype).ttls == {ttl}
    assert ask(server, zone, "SOA").rdata[0].split()[-1] == str(ttl)
    assert ask(server, f"dns-version.{zone}", "TXT").ttls == {28800}


def test_noendpoints_leaves_services_with_a_cluster_ip(server: Server) -> None:
    zone = "noendpoints.test"
    assert ask(server, f"web.one.svc.{zone}").rdata == ["10.97.0.1"]
    assert ask(server, f"_http._tcp.web.one.svc.{zone}", "SRV").rdata == [f"0 100 80 web.one.svc.{zone}."]
    assert_nxdomain(server, *(f"{name}.one.svc.{zone}" for name in ("db", "host.db", "named.web", "10-1-2-1.web")))


def test_ignore_empty_service_hides_a_service_without_ready_endpoints(server: Server) -> None:
    zone = "ignore.test"
    assert_nxdomain(server, f"bare.one.svc.{zone}", f"_http._tcp.bare.one.svc.{zone}", f"web.two.svc.{zone}")
    assert ask(server, f"web.one.svc.{zone}").rdata == ["10.97.0.1"]
    assert ask(server, f"bare.one.svc.{Z}").rdata == ["10.97.0.4"]


def test_namespaces_hides_all_others(server: Server) -> None:
    zone = "namespaces.test"
    assert ask(server, f"web.one.svc.{zone}").rdata == ["10.97.0.1"]
    assert ask(server, f"web.two.svc.{zone}").rdata == ["10.97.0.2"]
    assert_nxdomain(server, f"web.three.svc.{zone}", f"three.svc.{zone}")


def test_hidden_services_have_no_ptr_records_and_a_network_stands_for_its_reverse_zone(server: Server) -> None:
    assert ask(server, "97.10.in-addr.arpa", "SOA").rcode == "NOERROR"
    assert ask(server, "1.0.97.10.in-addr.arpa", "PTR").rdata == ["web.one.svc.namespaces.test."]
    assert_nxdomain(server, "3.0.97.10.in-addr.arpa", rdtype="PTR")


def test_namespace_labels_hides_namespaces_that_do_not_match(server: Server) -> None:
    zone = "nslabels.test"
    assert ask(server, f"web.one.svc.{zone}").rdata == ["10.97.0.1"]
    assert_nxdomain(server, *(f"{name}.svc.{zone}" for name in ("web.two", "two", "web.three", "three")))


def test_a_namespace_whose_labels_change_comes_and_goes(server: Server) -> None:
    name = "web.changing.svc.nslabels.test"
    for labels, rcode in (({}, "NXDOMAIN"), ({"env": "prod"}, "NOERROR"), ({"env": "dev"}, "NXDOMAIN")):
        items = [namespace("changing", labels), service("web", "changing", ips=["10.97.9.9"])]
        server.write_objects(items, "changing.json")
        answer = records(name, "A", ["10.97.9.9"]) if rcode == "NOERROR" else []
        shows_within(server, 1, name, "A", (rcode, answer))
        shows_within(
            server, 1, f"web.changing.svc.{Z}", "A", ("NOERROR", records(f"web.changing.svc.{Z}", "A", ["10.97.9.9"]))
        )


def test_labels_hides_services_that_do_not_match(server: Server) -> None:
    zone = "labels.test"
    assert ask(server, f"web.one.svc.{zone}").rdata == ["10.97.0.1"]
    assert ask(server, f"web.two.svc.{zone}").rdata == ["10.97.0.2"]
    assert len(ask(server, f"db.one.svc.{zone}").rdata) == 5
    assert_nxdomain(server, f"web.three.svc.{zone}", f"bare.one.svc.{zone}")
    assert ask(server, f"three.svc.{zone}").rcode == "NOERROR"


def passed_on(server: Server, name: str) -> bool:
    """True if whoami answered."""
    answer = server.query(name)
    return answer.rcode() == 0 and any(rrset.rdtype == dns.rdatatype.SRV for rrset in answer.additional)


def test_fallthrough_hands_names_that_do_not_exist_to_the_next_plugin(server: Server) -> None:
    for _ in range(3):
        assert passed_on(server, "gone.one.svc.fall.test")
        assert not passed_on(server, "web.one.svc.fall.test")
        assert not passed_on(server, "one.svc.fall.test")  # NODATA
        assert passed_on(server, "a.out.svc.fall-some.test")
    assert_nxdomain(server, "gone.one.svc.fall-some.test")


def test_a_name_that_fell_through_is_ours_once_it_exists(server: Server) -> None:
    name = "late.late.svc.fall.test"
    assert passed_on(server, name)
    server.write_objects([service("late", "late", ips=["10.97.8.8"])], "late.json")
    shows_within(server, 1, name, "A", ("NOERROR", records(name, "A", ["10.97.8.8"])))


def test_root_is_where_relative_manifests_start(server: Server) -> None:
    assert ask(server, "rooted.one.svc.root.test").rdata == ["10.98.0.1"]
    assert_nxdomain(server, "web.one.svc.root.test")
    assert_nxdomain(server, f"rooted.one.svc.{Z}")


# Server blocks


def test_the_block_with_the_longest_zone_answers(server: Server) -> None:
    assert passed_on(server, "deep.cluster.local")
    assert passed_on(server, "a.b.DEEP.cluster.local")
    assert_nxdomain(server, "xdeep.cluster.local")
    assert ask(server, "example.com").rcode == "SERVFAIL"  # `.` has no plugin for it


def test_server_blocks_on_several_ports_answer_for_themselves(server: Server, second: int) -> None:
    def at_second(name: str, tcp: bool = False) -> dns.message.Message:
        query = dns.message.make_query(name, "A")
        send = dns.query.tcp if tcp else dns.query.udp
        return send(query, "127.0.0.1", port=second, timeout=3)

    for tcp in (False, True):
        assert told(at_second(f"web.two.svc.{Z}", tcp)).rdata == ["10.97.0.2"]
        assert told(at_second(f"web.one.svc.{Z}", tcp)).rcode == "NXDOMAIN"
        assert at_second("web.one.svc.verified.test", tcp).additional  # whoami
    assert ask(server, f"web.one.svc.{Z}").rdata == ["10.97.0.1"]


def test_every_address_of_bind_answers(server: Server) -> None:
    for address in server.addresses:
        for tcp in (False, True):
            assert server.texts(f"web.one.svc.{Z}", address=address, tcp=tcp) == ["10.97.0.1"]


# whoami, any


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_whoami_tells_the_clients_address_and_port(server: Server, tcp: bool) -> None:
    name = "x.deep.cluster.local"
    for address in server.addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as sock:
            sock.connect((address, server.port))
            own = sock.getsockname()
            for _ in range(3):
                query = dns.message.make_query(name, "TXT")
                if tcp:
                    dns.query.send_tcp(sock, query)
                    answer = dns.query.receive_tcp(sock)[0]
                else:
                    sock.send(query.to_wire())
                    answer = dns.message.from_wire(sock.recv(4096))
                found = told(answer)
                rtype, proto = ("AAAA" if ":" in address else "A"), ("tcp" if tcp else "udp")
                assert found.additional == sorted([f"{name}. {rtype} {own[0]}", f"_{proto}.{name}. SRV 0 0 {own[1]} ."])
                assert (found.rcode, found.answer) == ("NOERROR", [])
                assert "aa" in found.flags


def test_any_answers_any_with_hinfo_whether_the_name_exists_or_not(server: Server) -> None:
    for name in ("web.one.svc.any.test", "gone.one.svc.any.test"):
        answer = ask(server, name, "ANY")
        assert (answer.rcode, answer.ttls) == ("NOERROR", frozenset((8482,)))
        assert answer.answer == [f'{name}. HINFO "ANY obsoleted" "See RFC 8482"']
    assert ask(server, "web.one.svc.any.test").rdata == ["10.97.0.1"]


# chaos, nsid


def chaos(
    server: Server, name: str, port: int | None = None, tcp: bool = False, rdtype: str = "TXT"
) -> dns.message.Message:
    query = dns.message.make_query(name, rdtype, rdclass=dns.rdataclass.CH)
    send = dns.query.tcp if tcp else dns.query.udp
    return send(query, "127.0.0.1", port=port or server.port, timeout=3)


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_chaos_tells_version_name_and_authors(server: Server, second: int, tcp: bool) -> None:
    for name in ("version.bind", "VERSION.server"):
        assert told(chaos(server, name, tcp=tcp)).rdata == ['"kdns-test"']
        assert re.fullmatch(r'"kdns-\d+\.\d+\.\d+"', told(chaos(server, name, second, tcp)).rdata[0])
    for name in ("hostname.bind", "id.server"):
        assert told(chaos(server, name, tcp=tcp)).rdata == [f'"{socket.gethostname()}"']
    assert told(chaos(server, "authors.bind", tcp=tcp)).rdata == ['"A. Author"', '"B. Author"']
    assert told(chaos(server, "authors.bind", second, tcp)).rdata == ['"kdns authors"']
    answer = chaos(server, "version.bind", tcp=tcp).answer[0]
    assert (answer.ttl, answer.rdclass) == (0, dns.rdataclass.CH)


def test_chaos_leaves_what_it_does_not_know(server: Server) -> None:
    for name, rdtype in (("version.example", "TXT"), ("version.bind", "A"), (f"web.one.svc.{Z}", "A")):
        assert told(chaos(server, name, rdtype=rdtype)).rcode == "REFUSED"
    assert told(chaos(server, "web.one.svc.still.test")).rcode == "REFUSED"  # a block without it
    assert ask(server, "version.bind", "TXT").rcode == "SERVFAIL"  # class IN


def test_the_order_of_authors_changes(server: Server) -> None:
    firsts = Counter(str(chaos(server, "authors.bind").answer[0][0]) for _ in range(40))
    assert set(firsts) == {'"A. Author"', '"B. Author"'}


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_nsid_is_sent_to_those_who_ask_for_it(server: Server, second: int, tcp: bool) -> None:
    def options(query: dns.message.Message, port: int) -> list[dns.edns.Option]:
        send = dns.query.tcp if tcp else dns.query.udp
        return list(send(query, "127.0.0.1", port=port, timeout=3).options)

    asking: list[dns.edns.Option] = [dns.edns.GenericOption(dns.edns.OptionType.NSID, b"")]
    for name in (f"web.one.svc.{Z}", f"gone.one.svc.{Z}", "example.com"):
        for _ in range(3):
            query = dns.message.make_query(name, "A", use_edns=0, options=asking)
            assert [option.to_wire() for option in options(query, server.port)] == [b"rack 7, second row"]
            assert options(dns.message.make_query(name, "A", use_edns=0), server.port) == []
    query = dns.message.make_query("version.bind", "TXT", rdclass=dns.rdataclass.CH, use_edns=0, options=asking)
    assert [option.to_wire() for option in options(query, second)] == [socket.gethostname().encode()]
    query = dns.message.make_query("web.one.svc.still.test", "A", use_edns=0, options=asking)
    assert options(query, server.port) == []


# bufsize


@pytest.mark.parametrize(
    ("zone", "offered", "limit", "ours"),
    [
        ("small.test", 4096, 512, 512),
        ("small.test", 512, 512, 512),
        ("large.test", 4096, 4096, 4096),
        ("large.test", 65535, 4096, 4096),
        ("large.test", 2000, 2000, 4096),
        ("large.test", None, 512, None),
        ("still.test", 4096, 1232, 1232),
    ],
)
def test_bufsize_is_the_largest_udp_answer_and_what_our_opt_offers(
    server: Server, zone: str, offered: int | None, limit: int, ours: int | None
) -> None:
    name = f"big.one.svc.{zone}"
    query = dns.message.make_query(name, "A", use_edns=False if offered is None else 0, payload=offered or 0)
    for _ in range(3):
        wire = server.raw_udp(query.to_wire()) or b""
        answer = dns.message.from_wire(wire)
        assert limit - 16 < len(wire) <= limit
        assert answer.flags & dns.flags.TC
        if ours is not None:
            assert answer.payload == ours
    assert len(server.texts(name, tcp=True)) == 300


# loadbalance


def keep(server: Server, name: str, tcp: bool = False, **options: Any) -> None:
    """Ask so often that the packet cache keeps the answer."""
    for _ in range(3):
        server.query(name, tcp=tcp, **options)


def firsts(server: Server, name: str, count: int, tcp: bool = False) -> list[str]:
    """The address in front of each of some answers, all of them from the packet cache."""
    keep(server, name, tcp)
    before = server.metrics().value("kdns_packet_cache_hits_total")
    found = [str(server.query(name, tcp=tcp).answer[-1][0]) for _ in range(count)]
    assert server.metrics().value("kdns_packet_cache_hits_total") == before + count
    return found


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_with_loadbalance_every_address_comes_first_in_turn_from_the_packet_cache_too(
    server: Server, tcp: bool
) -> None:
    found = firsts(server, f"db.one.svc.{Z}", 20, tcp)
    assert Counter(found) == {f"10.1.3.{number}": 4 for number in range(1, 6)}


def test_addresses_behind_a_cname_take_turns_and_it_stays_in_front(server: Server) -> None:
    name = f"alias.one.svc.{Z}"
    assert Counter(firsts(server, name, 20)) == {f"10.1.3.{number}": 4 for number in range(1, 6)}
    assert {dns.rdatatype.to_text(server.query(name).answer[0].rdtype) for _ in range(5)} == {"CNAME"}


def test_with_loadbalance_the_first_address_of_answers_that_are_not_cached_varies(server: Server) -> None:
    """Each spelling is a query that did not come before."""
    name = f"db.one.svc.{Z}"
    choice = random.Random(7)
    spellings = {"".join(choice.choice((char.lower(), char.upper())) for char in name) for _ in range(60)}
    found = {str(server.query(spelling).answer[0][0]) for spelling in spellings}
    assert found == {f"10.1.3.{number}" for number in range(1, 6)}


def test_truncated_answers_start_with_every_address_in_turn_and_are_whole_records(server: Server) -> None:
    name = f"big.one.svc.{Z}"
    keep(server, name, use_edns=0, payload=512)
    found = set()
    shown: Counter[str] = Counter()
    for _ in range(300):
        answer = server.query(name, use_edns=0, payload=512)
        assert answer.flags & dns.flags.TC
        found.add(str(answer.answer[0][0]))
        shown.update(str(rdata) for rdata in answer.answer[0])
    assert len(found) == 300
    assert len(shown) == 300
    assert len(set(shown.values())) == 1


def test_without_loadbalance_the_order_stays(server: Server) -> None:
    assert set(firsts(server, "db.one.svc.still.test", 20)) == {"10.1.3.1"}


# log, errors


def wait_for_line(server: Server, pattern: str, count: int = 1) -> list[str]:
    """The lines of the log that match; there have to be `count` of them soon."""

    def found() -> list[str]:
        return [line for line in server.log.splitlines() if re.fullmatch(pattern, line)]

    procs.wait_until(lambda: len(found()) >= count, 2, f"{count} of {pattern}")
    return found()


def test_log_has_a_line_for_a_query_over_udp_from_the_cache_or_not_and_over_tcp(server: Server) -> None:
    name = "WeB.one.svc.log.test"
    ident = 4711
    query = dns.message.make_query(name, "A", id=ident, use_edns=0, payload=1400, want_dnssec=True).to_wire()
    duration = r"\d\.\d+s"
    for proto in ("udp", "udp", "udp", "tcp", "tcp", "tcp"):
        reply = server.raw_udp(query) if proto == "udp" else server.raw_tcp(query)[0]
        assert reply is not None
        size = 1400 if proto == "udp" else 65535
        asked = rf'"A IN web\.one\.svc\.log\.test\. {proto} {len(query)} true {size}"'
        line = rf"\[INFO\] 127\.0\.0\.1:\d+ - {ident} {asked} NOERROR qr,aa,rd {len(reply)} {duration}"
        wait_for_line(server, line)
    procs.wait_until(lambda: len(re.findall(rf"- {ident} ", server.log)) >= 6, 5, "the other lines")
    assert len(re.findall(rf"- {ident} ", server.log)) == 6
    denied = server.query("gone.one.svc.log.test", "AAAA")
    wait_for_line(
        server, rf'\[INFO\] .* {denied.id} "AAAA IN gone\.one\.svc\.log\.test\. udp \d+ false 512" NXDOMAIN .*'
    )
    if ports.has_ipv6():
        asked6 = server.query(name, address="::1")
        wait_for_line(server, rf'\[INFO\] \[::1\]:\d+ - {asked6.id} "A IN .*')


def test_log_writes_only_the_names_and_classes_that_it_is_told_in_the_format_that_it_is_told(server: Server) -> None:
    for tcp in (False, False, False, True):
        for name in ("web.one", "gone.one", "gone.two"):
            server.query(f"{name}.svc.somelog.test", "TXT" if name == "web.one" else "A", tcp=tcp)
            server.query("db.one.svc.somelog.test", tcp=tcp)
    lines = wait_for_line(server, r"\[INFO\] .*somelog\.test.*", 8)
    assert Counter(lines) == {
        "[INFO] 127.0.0.1 udp TXT web.one.svc.somelog.test. NOERROR qr,aa,rd denial": 3,
        "[INFO] 127.0.0.1 udp A gone.one.svc.somelog.test. NXDOMAIN qr,aa,rd denial": 3,
        "[INFO] 127.0.0.1 tcp TXT web.one.svc.somelog.test. NOERROR qr,aa,rd denial": 1,
        "[INFO] 127.0.0.1 tcp A gone.one.svc.somelog.test. NXDOMAIN qr,aa,rd denial": 1,
    }


def test_without_log_there_are_no_lines(server: Server) -> None:
    server.query("web.three.svc.still.test")
    server.query("marker.one.svc.log.test")
    wait_for_line(server, r".*marker\.one.*")
    assert "still.test" not in "".join(line for line in server.log.splitlines() if "[INFO]" in line)


def test_errors_has_a_line_for_a_query_that_failed(server: Server) -> None:
    assert server.query("fails.example", "MX").rcode() == dns.rcode.SERVFAIL
    wait_for_line(server, r"\[ERROR\] plugin/errors: 2 fails\.example\. MX: no plugin of the server block answers this")


# health, ready, prometheus


def test_health_and_ready_say_ok_and_other_paths_are_not_found(server: Server) -> None:
    for path, port in (("/health", server.health_port), ("/ready", server.ready_port)):
        reply = server.get(path, port)
        assert (reply.status, reply.body) == (200, "OK")
        assert server.get("/", port).status == 404
    assert server.get("/metrics", server.metrics_port).status == 200


def test_prometheus_counts_each_query_under_coredns_names_and_labels(server: Server) -> None:
    queries = [
        (f"web.one.svc.{Z}", "A", False, "127.0.0.1", 3),
        (f"web.one.svc.{Z}", "A", True, "127.0.0.1", 2),
        (f"gone.one.svc.{Z}", "AAAA", False, server.addresses[-1], 4),
    ]
    before = server.metrics()
    for name, rdtype, tcp, address, count in queries:
        for _ in range(count):
            server.query(name, rdtype, tcp=tcp, address=address)
    server.query("deep.cluster.local", "MX")
    after = server.metrics()

    def rise(metric: str, **labels: str) -> float:
        return after.value(metric, **labels) - before.value(metric, **labels)

    v4, last = f"dns://127.0.0.1:{server.port}", server.addresses[-1]
    v6 = f"dns://[{last}]:{server.port}" if ":" in last else v4
    at = {"server": v4, "zone": ".", "view": ""}
    family = "2" if ":" in last else "1"
    assert rise("coredns_dns_requests_total", **at, proto="udp", family="1", type="A") == 3
    assert rise("coredns_dns_requests_total", **at, proto="tcp", family="1", type="A") == 2
    assert rise("coredns_dns_requests_total", server=v6, proto="udp", family=family, type="AAAA") == 4
    assert rise("coredns_dns_requests_total", zone="deep.cluster.local.") == 1
    assert rise("coredns_dns_responses_total", **at, rcode="NOERROR", plugin="kubernetes") == 5
    assert rise("coredns_dns_responses_total", server=v6, rcode="NXDOMAIN", plugin="kubernetes") == 4
    assert rise("coredns_dns_responses_total", plugin="whoami") == 1
    assert rise("coredns_dns_request_duration_seconds_count", zone=".") == 9
    assert rise("coredns_dns_request_size_bytes_count", zone=".", proto="tcp") == 2
    assert rise("coredns_dns_response_size_bytes_count", zone=".", proto="udp") == 7
    enabled = frozenset((at | {"name": "kubernetes"}).items())
    assert after.samples["coredns_plugin_enabled", enabled] == 1
    assert after.value("coredns_build_info") == 1


def test_server_blocks_without_prometheus_are_not_counted(server: Server) -> None:
    before = server.metrics()
    server.query("web.one.svc.still.test")
    after = server.metrics()
    for name in ("coredns_dns_requests_total", "coredns_dns_responses_total"):
        assert after.value(name) == before.value(name)
        assert after.value(name, zone="still.test.") == 0


# What needs a server of its own

PLAIN = """\
.:$dns {
    bind $addresses
    errors
    ready $host:$ready
    prometheus $host:$metrics
    reload 2s 0s
    kubernetes cluster.local {
        manifests $manifests
        $kubernetes
    }
}
"""


def test_reload_takes_a_new_corefile_after_its_interval_and_keeps_the_old_one_if_it_is_wrong(serve: Serve) -> None:
    server = serve(cluster(), corefile=PLAIN)
    name = f"web.one.svc.{Z}"

    def ttl() -> int:
        return server.query(name).answer[0].ttl

    assert ask(server, name).ttls == {5}
    server.write_corefile(kubernetes="ttl 77")
    procs.wait_until(lambda: ttl() == 77, 4, "the new TTL", 0.05)
    assert ask(server, name).ttls == {77}
    server.write_corefile(kubernetes="tttl 78")
    procs.wait_until(lambda: server.metrics().value("coredns_reload_failed_total") == 1, 4, "a failure", 0.05)
    assert ask(server, name).ttls == {77}
    assert server.metrics().value("kdns_configuration_outdated") == 1
    line = 1 + PLAIN[: PLAIN.index("$kubernetes")].count("\n")
    assert f"{server.conf}:{line}: " in server.log
    server.write_corefile(kubernetes="ttl 79")
    server.signal(signal.SIGHUP)
    procs.wait_until(lambda: ttl() == 79, 1.5, "the TTL after SIGHUP", 0.02)  # less than the interval
    procs.wait_until(lambda: server.metrics().value("kdns_configuration_outdated") == 0, 2, "its end", 0.05)


def test_an_unknown_option_stops_the_start_with_file_line_and_what_is_accepted(tmp_path: Path) -> None:
    server = Server(tmp_path, cluster(), corefile=PLAIN, kubernetes="tttl 5")
    code, said = server.run()
    line = 1 + PLAIN[: PLAIN.index("$kubernetes")].count("\n")
    assert code != 0
    assert f"{server.conf}:{line}: " in said
    assert "tttl" in said
    assert "accepted: " in said
    assert "ttl" in said.split("accepted: ")[1]


AGED = """\
cluster.local:$dns {
    bind $addresses
    errors
    ready $host:$ready {
        monitor continuously
    }
    kubernetes {
        manifests $manifests
        snapshot_max_age 2s
    }
}
forever.test:$dns {
    bind $addresses
    kubernetes {
        manifests $manifests
    }
}
"""


def test_after_snapshot_max_age_data_from_before_a_restart_is_not_served_any_more(serve: Serve, tmp_path: Path) -> None:
    folder = tmp_path / "aged"
    server = serve([service("web", "one", ips=["10.97.0.1"])], folder=folder, corefile=AGED)
    name, forever = f"web.one.svc.{Z}", "web.one.svc.forever.test"
    assert ask(server, name).rdata == ["10.97.0.1"]
    server.terminate()
    stopped = time.monotonic()
    (server.manifests / "cluster.json").write_text("{ broken")
    server.start(wait=False)
    procs.wait_until(server.answers, 2, "an answer")
    assert seen(server, name, "A") == ("NOERROR", records(name, "A", ["10.97.0.1"]))
    assert {seen(server, name, "A", tcp=tcp)[0] for tcp in (False, True) * 3} == {"NOERROR"}
    assert time.monotonic() - stopped < 2, "too slow to see anything"
    for tcp in (False, True):
        procs.wait_until(lambda: seen(server, name, "A", tcp=tcp)[0] == "SERVFAIL", 4, "SERVFAIL")  # noqa: B023
    for gone in (f"gone.one.svc.{Z}", f"one.svc.{Z}", Z):
        assert ask(server, gone).rcode == "SERVFAIL"
    assert time.monotonic() - stopped > 1
    assert server.ready().status == 503
    assert ask(server, forever).rdata == ["10.97.0.1"]
    server.write_objects([service("web", "one", ips=["10.97.0.2"])])
    shows_within(server, 1, name, "A", ("NOERROR", records(name, "A", ["10.97.0.2"])))
    procs.wait_until(lambda: server.ready().status == 200, 1, "ready")


BOUND = """\
.:53 {
    bind $one $two {
        except 10.8.0.2 fd08::2
    }
    kubernetes cluster.local {
        manifests $manifests
    }
}
.:53 {
    bind 10.8.0.2
    whoami
}
"""


def test_bind_takes_interfaces_and_leaves_out_what_except_names(
    make_netns: Callable[..., Netns], tmp_path: Path
) -> None:
    host, other = make_netns("host"), make_netns("other")
    one, _ = host.connect(other, ["10.8.0.1/24", "10.8.0.2/24", "fd08::1/64"], [])
    two, _ = host.connect(other, ["10.8.1.1/24", "fd08::2/64"], [])
    host.connect(other, ["10.8.2.1/24"], [])
    corefile = BOUND.replace("$one", one).replace("$two", two)

    def answer(address: str, kind: socket.SocketKind) -> str:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with host.socket(family, kind) as sock:
            sock.settimeout(2)
            try:
                sock.connect((address, 53))
                query = dns.message.make_query(f"web.one.svc.{Z}", "A")
                if kind is socket.SOCK_STREAM:
                    dns.query.send_tcp(sock, query)
                    message = dns.query.receive_tcp(sock)[0]
                else:
                    sock.send(query.to_wire())
                    message = dns.message.from_wire(sock.recv(4096))
            except ConnectionRefusedError:
                return "nobody"
            return "kubernetes" if message.answer else "whoami"

    for link in (one, two):
        procs.wait_until(lambda: not host.ip("-6", "address", "show", link, "tentative"), 5, "addresses")  # noqa: B023
    with Server(tmp_path, cluster(), corefile=corefile, prefix=host.prefix, connect=None):
        procs.wait_until(lambda: answer("10.8.0.1", socket.SOCK_DGRAM) == "kubernetes", 20, "an answer", 0.02)
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            asked = ("10.8.0.1", "10.8.0.2", "10.8.1.1", "10.8.2.1", "127.0.0.1", "fd08::1", "fd08::2", "::1")
            assert {address: answer(address, kind) for address in asked} == {
                "10.8.0.1": "kubernetes",
                "10.8.0.2": "whoami",
                "10.8.1.1": "kubernetes",
                "10.8.2.1": "nobody",
                "127.0.0.1": "nobody",
                "fd08::1": "kubernetes",
                "fd08::2": "nobody",
                "::1": "nobody",
            }
