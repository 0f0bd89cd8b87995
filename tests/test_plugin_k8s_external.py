"""k8s_external: names of Services for clients outside of the cluster, as they come through a server's sockets."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import dns.flags
import dns.rcode
import pytest
from typer.testing import CliRunner

from kdns.cli import app
from kdns.plugins import k8s_external
from tests.conftest import Serve
from tests.support import objects, procs
from tests.support.configs import options, refused
from tests.support.objects import Object
from tests.support.server import Server
from tests.test_status_page import facts

pytestmark = pytest.mark.one_speed

COREFILE = """
.:$dns {
    bind 127.0.0.1
    ready $host:$ready
    prometheus $host:$metrics
    kubernetes cluster.local 198.51.100.0/24 {
        manifests $manifests
    }
    k8s_external example.org 198.51.100.0/24 {
        ttl 30
        fallthrough 198.51.100.0/24
    }
    hosts /nowhere example.net {
        192.0.2.80 lb.example.net
    }
}
headless.example:$dns {
    bind 127.0.0.1
    kubernetes cluster.local {
        manifests $manifests
    }
    k8s_external {
        apex own
        headless
        fallthrough
    }
    whoami
}
"""


def outside(item: Object, *ips: str, hostname: str = "") -> Object:
    if ips:
        item["spec"]["externalIPs"] = list(ips)
    if hostname:
        item["status"] = {"loadBalancer": {"ingress": [{"hostname": hostname}]}}
    return item


def cluster() -> list[Object]:
    return [
        objects.namespace("shop"),
        outside(objects.service("web", "shop"), "198.51.100.1", "198.51.100.2", "2001:db8::1"),
        outside(objects.service("lb", "shop", ips=["10.96.0.11"]), hostname="lb.example.net"),
        outside(objects.service("lost", "shop", ips=["10.96.0.12"]), hostname="lost.example.net"),
        outside(objects.service("inner", "shop", ips=["198.51.100.9"])),
        objects.service("db", "shop", ips=()),
        objects.endpoint_slice("db", [objects.endpoint("10.1.0.1", hostname="db-0")], "shop"),
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server"), cluster(), corefile=COREFILE) as started:
        yield started


def records(server: Server, name: str, rdtype: str = "A") -> list[str]:
    """The rcode if it is not NOERROR, and the records of the answer section, sorted."""
    response = server.query(name, rdtype)
    rcode = [] if response.rcode() == dns.rcode.NOERROR else [dns.rcode.to_text(response.rcode())]
    return rcode + sorted(line for rrset in response.answer for line in rrset.to_text().splitlines())


WEB = "web.shop.example.org."
SHOWN = [
    (WEB, "A", [f"{WEB} 30 IN A 198.51.100.{n}" for n in (1, 2)]),
    (WEB, "AAAA", [f"{WEB} 30 IN AAAA 2001:db8::1"]),
    (WEB, "SRV", [f"{WEB} 30 IN SRV 0 100 80 {WEB}"]),
    (WEB, "TXT", []),
    (f"_http._tcp.{WEB}", "SRV", [f"_http._tcp.{WEB} 30 IN SRV 0 100 80 {WEB}"]),
    (f"_tcp.{WEB}", "A", []),
    (f"any.{WEB}", "A", ["NXDOMAIN"]),
    ("shop.example.org.", "A", []),
    ("elsewhere.example.org.", "A", ["NXDOMAIN"]),
    ("db.shop.example.org.", "A", ["NXDOMAIN"]),
    ("example.org.", "NS", ["example.org. 30 IN NS ns1.dns.example.org."]),
    ("dns.example.org.", "A", []),
    ("ns1.dns.example.org.", "A", ["ns1.dns.example.org. 30 IN A 127.0.0.1"]),
    ("ns2.dns.example.org.", "A", ["NXDOMAIN"]),
    ("1.100.51.198.in-addr.arpa.", "PTR", [f"1.100.51.198.in-addr.arpa. 30 IN PTR {WEB}"]),
    ("1.100.51.198.in-addr.arpa.", "A", []),
    (
        "lb.shop.example.org.",
        "A",
        ["lb.example.net. 3600 IN A 192.0.2.80", "lb.shop.example.org. 30 IN CNAME lb.example.net."],
    ),
    ("lb.shop.example.org.", "SRV", ["lb.shop.example.org. 30 IN CNAME lb.example.net."]),
    ("_http._tcp.lb.shop.example.org.", "SRV", ["_http._tcp.lb.shop.example.org. 30 IN SRV 0 100 80 lb.example.net."]),
    ("lost.shop.example.org.", "A", ["SERVFAIL"]),
]


@pytest.mark.parametrize(("name", "rdtype", "expected"), SHOWN, ids=[f"{name} {rdtype}" for name, rdtype, _ in SHOWN])
def test_what_is_answered(server: Server, name: str, rdtype: str, expected: list[str]) -> None:
    assert records(server, name, rdtype) == expected


def test_answers_are_authoritative_and_denials_have_the_zones_soa(server: Server) -> None:
    assert server.query(WEB).flags & dns.flags.AA
    (soa,) = server.query(f"any.{WEB}").authority
    assert soa.to_text().startswith("example.org. 30 IN SOA ns1.dns.example.org. hostmaster.dns.example.org. ")
    assert soa.to_text().endswith(" 7200 1800 86400 30")


def test_addresses_of_targets_come_along(server: Server) -> None:
    found = server.query(WEB, "SRV").additional
    assert [rrset.name.to_text() for rrset in found] == [WEB, WEB]


def test_what_does_not_exist_goes_on_where_fallthrough_says_so(server: Server) -> None:
    """To `kubernetes`, which has the same reverse zone."""
    found = "9.100.51.198.in-addr.arpa. 5 IN PTR inner.shop.svc.cluster.local."
    assert records(server, "9.100.51.198.in-addr.arpa.", "PTR") == [found]
    assert server.query("nowhere.headless.example.").authority == []  # whoami's


def test_endpoints_with_headless(server: Server) -> None:
    assert records(server, "db.shop.headless.example.") == ["db.shop.headless.example. 5 IN A 10.1.0.1"]
    assert records(server, "db-0.db.shop.headless.example.") == ["db-0.db.shop.headless.example. 5 IN A 10.1.0.1"]


def test_the_zones_own_names_are_below_the_apex_option(server: Server) -> None:
    assert records(server, "headless.example.", "NS") == ["headless.example. 5 IN NS ns1.own.headless.example."]


def test_metrics_name_the_plugin_on_both_ways(server: Server) -> None:
    """What is answered from the store directly, and what goes through the plugins."""

    def responses() -> float:
        return server.metrics().value("coredns_dns_responses_total", plugin="k8s_external", rcode="NOERROR")

    before = responses()
    server.query("web.shop.example.org", "AAAA")
    server.query("wEb.shop.example.org", "SRV")
    assert responses() == before + 2


def test_changes_are_answered(server: Server) -> None:
    try:
        server.write_objects([*cluster(), outside(objects.service("new", "shop", ips=["10.96.0.99"]), "198.51.100.77")])
        wanted = ["new.shop.example.org. 30 IN A 198.51.100.77"]
        procs.wait_until(lambda: records(server, "new.shop.example.org.") == wanted, 10, "the new address", 0.02)
        pointer = "77.100.51.198.in-addr.arpa. 30 IN PTR new.shop.example.org."
        assert records(server, "77.100.51.198.in-addr.arpa.", "PTR") == [pointer]
    finally:
        server.write_objects(cluster())


def test_the_status_page_shows_the_zone(server: Server) -> None:
    told = facts(server.metrics_port)["zones"]
    assert ("example.org.", "synced") in [(zone["zone"], zone["state"]) for zone in told]


def test_kdns_explain_knows_the_names(server: Server) -> None:
    done = CliRunner().invoke(app, ["explain", WEB, "--conf", str(server.conf)])
    assert (done.exit_code, f"{WEB}  A 198.51.100.1 198.51.100.2" in done.output) == (0, True), done.output


def test_kdns_records_lists_such_a_zone(server: Server) -> None:
    done = CliRunner().invoke(app, ["records", WEB, "--state-dir", str(server.state_dir), "--zone", "example.org"])
    assert f"{WEB}\t30\tIN\tA\t198.51.100.1" in done.output.splitlines()


def test_options() -> None:
    block = "{\napex NS\nttl 0\nheadless\nfallthrough b.example\n}"
    assert options(f"k8s_external a.example 10.0.0.0/8 {block}\nkubernetes c.example") == k8s_external.Options(
        ("a.example.", "10.in-addr.arpa."), "ns", 0, headless=True, fallthrough=("b.example.",)
    )
    found = options("k8s_external {\nfallthrough\n}\nkubernetes c.example", "b.example d.example")
    assert found == k8s_external.Options(("b.example.", "d.example."), fallthrough=(".",))


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        ("k8s_external a.example", ["1: k8s_external is in a server block without kubernetes"]),
        ("k8s_external 10.0.0.0/8\nkubernetes c.example", ["1: k8s_external has reverse zones only"]),
        (
            "k8s_external a.example {\napex a.b\nttl 3601\nheadless x\nnothing\n}\nkubernetes c.example",
            [
                '2: k8s_external: "a.b" is no label',
                '3: k8s_external: "3601" is out of range',
                '4: k8s_external: "headless" has 1 argument',
                '5: k8s_external has no option "nothing"',
            ],
        ),
        (
            "k8s_external a.example {\nheadless\n}\nkubernetes c.example {\nnoendpoints\n}",
            ["2: k8s_external has headless, and kubernetes noendpoints"],
        ),
        (
            "k8s_external a.example\nk8s_external b.example\nkubernetes c.example",
            ["2: k8s_external is given twice in a server block"],
        ),
    ],
)
def test_mistakes(text: str, mistakes: list[str]) -> None:
    assert refused(text) == mistakes


def test_the_directive_may_come_later_and_go(serve: Serve) -> None:
    """With data in the store that knows nothing of it, by a reload and by a restart."""
    without = """
.:$dns {
    bind 127.0.0.1
    ready $host:$ready
    kubernetes cluster.local {
        manifests $manifests
    }
}
"""
    line = "    k8s_external example.org\n}\n"
    server = serve(cluster(), corefile=without)
    assert records(server, WEB) == ["SERVFAIL"]
    server.write_corefile(without.removesuffix("}\n") + line)
    server.signal(signal.SIGUSR1)
    wanted = [f"{WEB} 5 IN A 198.51.100.{n}" for n in (1, 2)]
    procs.wait_until(lambda: records(server, WEB) == wanted, 10, "the new zone", 0.02)
    server.write_corefile(without)
    server.signal(signal.SIGUSR1)
    procs.wait_until(lambda: records(server, WEB) == ["SERVFAIL"], 10, "the zone to go", 0.02)
    server.terminate()
    server.write_corefile(without.removesuffix("}\n") + line)
    server.start()
    procs.wait_until(lambda: records(server, WEB) == wanted, 10, "the new zone", 0.02)
