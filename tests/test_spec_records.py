"""What a cluster's names answer, row by row, asked of a running server over UDP and TCP.

`Z` is cluster.local. Each test asks through `ask`, which wants the same answer from both transports and, when
it is asked again, from the packet cache.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Iterator
from pathlib import Path

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import pytest

from tests.conftest import Serve
from tests.support import objects, procs
from tests.support.ask import Expected, Told, ask, records, shows_within, told
from tests.support.objects import Object, endpoint, endpoint_slice, external_name, namespace, service
from tests.support.server import COREFILE, Server

Z = "cluster.local"
SHOP = f"shop.svc.{Z}"
SOON = 1.0
"""Seconds within which a change on disk has to show."""


def reverse(address: str) -> str:
    return ipaddress.ip_address(address).reverse_pointer


def chain(length: int) -> list[Object]:
    """chain-1 to chain-LENGTH, each an alias of the next; the last one of web."""
    targets = [f"chain-{number}.{SHOP}" for number in range(2, length + 1)] + [f"web.{SHOP}"]
    return [external_name(f"chain-{number}", target, "shop") for number, target in enumerate(targets, 1)]


def cluster() -> list[Object]:
    web = service("web", "shop", ips=("10.96.0.10", "fd00:96::10"), ports=(("http", 80), ("dns", 53, "UDP")))
    ports = (("http", 8080), ("dns", 5353, "UDP"))
    db_ports = (("pg", 5432), ("", 9187))
    fqdn = endpoint_slice("db", [endpoint("db.example.com")], "shop", suffix="fqdn", address_type="FQDN")
    return [
        web,
        endpoint_slice("web", [endpoint("10.1.0.1"), endpoint("10.1.0.2", hostname="one")], "shop", ports=ports),
        endpoint_slice("web", [endpoint("2001:db8::1")], "shop", suffix="6", ports=ports, address_type="IPv6"),
        service("single", "shop", ips=("10.96.0.11",), ports=(("", 9000),)),
        service("idle", "shop", ips=("10.96.0.12",)),
        endpoint_slice("idle", [endpoint("10.1.0.9", ready=False)], "shop"),
        # Headless
        service("db", "shop", ips=(), ports=db_ports),
        endpoint_slice(
            "db",
            [
                endpoint("10.1.1.1", hostname="db-0", pod="db-pod-0", zone="west-1a"),
                endpoint("10.1.1.2", hostname="db-1", pod="db-pod-1", zone="eu.west-1b"),
                endpoint("10.1.1.3", pod="db-pod-2", ready=None, zone="west-1a"),
                endpoint("10.1.1.4", hostname="db-3", ready=False, zone="west-1c"),
            ],
            "shop",
            ports=db_ports,
        ),
        endpoint_slice("db", [endpoint("10.1.1.1", hostname="db-0")], "shop", suffix="again", ports=db_ports),
        endpoint_slice(
            "db",
            [endpoint("fd00:1::1:1", hostname="db-0"), endpoint("2001:db8::7"), endpoint("2001:db8:0:7::")],
            "shop",
            suffix="6",
            ports=db_ports,
            address_type="IPv6",
        ),
        fqdn,
        service("db-metrics", "shop", ips=(), ports=(("metrics", 9187),)),
        endpoint_slice("db-metrics", [endpoint("10.1.1.1", hostname="m")], "shop", ports=(("metrics", 9187),)),
        service("starting", "shop", ips=(), publish_not_ready=True),
        endpoint_slice("starting", [endpoint("10.1.2.1", hostname="s-0", ready=False)], "shop"),
        service("drained", "shop", ips=()),
        endpoint_slice("drained", [endpoint("10.1.2.2", ready=False, zone="west-1a")], "shop"),
        service("crowd", "shop", ips=()),
        endpoint_slice("crowd", [endpoint(f"10.1.9.{number}") for number in range(150)], "shop"),
        # Aliases
        external_name("outside", "Api.Example.COM.", "shop"),
        external_name("inside", f"web.{SHOP}", "shop"),
        external_name("to-db", f"db.{SHOP}", "shop"),
        external_name("to-single", f"single.{SHOP}", "shop"),
        external_name("dangling", f"gone.{SHOP}", "shop"),
        external_name("ping", f"pong.{SHOP}", "shop"),
        external_name("pong", f"ping.{SHOP}", "shop"),
        *chain(11),
        # The service that selects this server
        service("kube-dns", "kube-system", ips=("10.96.0.53", "fd00:96::53"), ports=(("dns", 53, "UDP"),)),
        endpoint_slice("kube-dns", [endpoint("127.0.0.1")], "kube-system", ports=(("dns", 53, "UDP"),)),
        namespace("quiet"),
        objects.pod("lonely", "pods-only", "10.1.4.1"),
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("records")
    with Server(folder, cluster(), kubernetes="zonal") as started:
        yield started


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose manifests each test changes, in a namespace and a file of its own."""
    folder = tmp_path_factory.mktemp("live")
    unready = endpoint_slice("none", [endpoint("10.1.3.1", ready=False)], "base")
    with Server(folder, [service("none", "base", ips=()), unready], kubernetes="pods insecure") as started:
        yield started


def assert_negative(answer: Told, rcode: str, zone: str = Z, ttl: int = 5) -> None:
    """NXDOMAIN, or NODATA (NOERROR): AA, nothing but the zone's SOA with the TTL as its minimum."""
    assert (answer.rcode, answer.answer, answer.additional) == (rcode, [], [])
    assert "aa" in answer.flags
    [soa] = answer.authority
    owner, rtype, *data = soa.split()
    assert (owner, rtype) == (f"{zone}.", "SOA")
    assert data[:2] == [f"ns.dns.{zone}.", f"hostmaster.{zone}."]
    assert data[3:] == ["7200", "1800", "86400", str(ttl)]
    assert answer.ttls == {ttl}


def assert_answer(answer: Told, rdtype: str, owner: str, rdatas: list[str], ttl: int = 5) -> None:
    assert (answer.rcode, answer.answer) == ("NOERROR", records(owner, rdtype, rdatas))
    assert {"qr", "aa", "rd"} == answer.flags
    assert answer.authority == []
    assert answer.ttls == {ttl}


# schema, apex


def test_dns_version(server: Server) -> None:
    assert_answer(ask(server, f"dns-version.{Z}", "TXT"), "TXT", f"dns-version.{Z}", ['"1.1.0"'], ttl=28800)


@pytest.mark.parametrize("zone", [Z, "in-addr.arpa", "ip6.arpa"])
def test_the_soa_of_each_zone(server: Server, zone: str) -> None:
    answer = ask(server, zone, "SOA")
    assert answer.rcode == "NOERROR"
    [soa] = answer.answer
    owner, rtype, mname, rname, serial, *timers = soa.split()
    assert [owner, rtype, mname, rname] == [f"{zone}.", "SOA", f"ns.dns.{zone}.", f"hostmaster.{zone}."]
    assert int(serial) > 0
    assert timers == ["7200", "1800", "86400", "5"]
    assert answer.ttls == {5}
    assert "aa" in answer.flags


@pytest.mark.parametrize("zone", [Z, "in-addr.arpa", "ip6.arpa"])
def test_the_name_server_of_each_zone_has_the_addresses_of_the_service_that_selects_this_server(
    server: Server, zone: str
) -> None:
    ns = ask(server, zone, "NS")
    assert ns.answer == [f"{zone}. NS ns.dns.{zone}."]
    addresses = [f"ns.dns.{zone}. A 10.96.0.53", f"ns.dns.{zone}. AAAA fd00:96::53"]
    assert ns.additional == addresses
    assert ask(server, f"ns.dns.{zone}", "A").answer == addresses[:1]
    assert ask(server, f"ns.dns.{zone}", "AAAA").answer == addresses[1:]


def test_without_such_a_service_the_name_server_has_the_addresses_that_are_listened_on(live: Server) -> None:
    found = ask(live, f"ns.dns.{Z}", "A").rdata + ask(live, f"ns.dns.{Z}", "AAAA").rdata
    assert found == live.addresses


# ClusterIP Services


def test_a_cluster_ip_service_has_its_addresses_of_both_families(server: Server) -> None:
    assert_answer(ask(server, f"web.{SHOP}", "A"), "A", f"web.{SHOP}", ["10.96.0.10"])
    assert_answer(ask(server, f"web.{SHOP}", "AAAA"), "AAAA", f"web.{SHOP}", ["fd00:96::10"])


def test_a_named_port_has_an_srv_record_with_the_addresses_beside_it(server: Server) -> None:
    answer = ask(server, f"_http._tcp.web.{SHOP}", "SRV")
    assert_answer(answer, "SRV", f"_http._tcp.web.{SHOP}", [f"0 100 80 web.{SHOP}."])
    assert answer.additional == [f"web.{SHOP}. A 10.96.0.10", f"web.{SHOP}. AAAA fd00:96::10"]
    assert ask(server, f"_dns._udp.web.{SHOP}", "SRV").rdata == [f"0 100 53 web.{SHOP}."]


def test_a_port_exists_by_its_own_protocol_only(server: Server) -> None:
    assert_negative(ask(server, f"_http._udp.web.{SHOP}", "SRV"), "NXDOMAIN")
    assert_negative(ask(server, f"_https._tcp.web.{SHOP}", "SRV"), "NXDOMAIN")


def test_srv_of_the_service_itself_has_every_port_and_shares_the_weight(server: Server) -> None:
    answer = ask(server, f"web.{SHOP}", "SRV")
    assert_answer(answer, "SRV", f"web.{SHOP}", [f"0 50 53 web.{SHOP}.", f"0 50 80 web.{SHOP}."])
    assert answer.additional == [f"web.{SHOP}. A 10.96.0.10", f"web.{SHOP}. AAAA fd00:96::10"]
    assert ask(server, f"single.{SHOP}", "SRV").rdata == [f"0 100 9000 single.{SHOP}."]


def test_each_cluster_ip_has_a_ptr_record(server: Server) -> None:
    for address in ("10.96.0.10", "fd00:96::10"):
        assert_answer(ask(server, reverse(address), "PTR"), "PTR", reverse(address), [f"web.{SHOP}."])


def test_endpoints_of_a_cluster_ip_service_have_names_and_ptr_records_too(server: Server) -> None:
    assert ask(server, f"10-1-0-1.web.{SHOP}").rdata == ["10.1.0.1"]
    assert ask(server, f"one.web.{SHOP}").rdata == ["10.1.0.2"]
    assert ask(server, f"2001-db8--1.web.{SHOP}", "AAAA").rdata == ["2001:db8::1"]
    assert ask(server, reverse("10.1.0.1"), "PTR").rdata == [f"10-1-0-1.web.{SHOP}."]
    assert ask(server, reverse("10.1.0.2"), "PTR").rdata == [f"one.web.{SHOP}."]
    assert ask(server, reverse("2001:db8::1"), "PTR").rdata == [f"2001-db8--1.web.{SHOP}."]


def test_a_cluster_ip_service_without_ready_endpoints_stays(server: Server) -> None:
    assert ask(server, f"idle.{SHOP}").rdata == ["10.96.0.12"]
    assert_negative(ask(server, f"10-1-0-9.idle.{SHOP}"), "NXDOMAIN")


# Headless Services

DB_TARGETS = [f"{name}.db.{SHOP}." for name in ("db-0", "db-1", "10-1-1-3", "2001-db8--7", "2001-db8-0-7--0")]
DB_ADDRESSES = [
    f"10-1-1-3.db.{SHOP}. A 10.1.1.3",
    f"2001-db8--7.db.{SHOP}. AAAA 2001:db8::7",
    f"2001-db8-0-7--0.db.{SHOP}. AAAA 2001:db8:0:7::",
    f"db-0.db.{SHOP}. A 10.1.1.1",
    f"db-0.db.{SHOP}. AAAA fd00:1::1:1",
    f"db-1.db.{SHOP}. A 10.1.1.2",
]


def test_a_headless_service_has_the_addresses_of_its_ready_endpoints_once_each(server: Server) -> None:
    assert_answer(ask(server, f"db.{SHOP}"), "A", f"db.{SHOP}", ["10.1.1.1", "10.1.1.2", "10.1.1.3"])
    addresses = ["2001:db8:0:7::", "2001:db8::7", "fd00:1::1:1"]
    assert_answer(ask(server, f"db.{SHOP}", "AAAA"), "AAAA", f"db.{SHOP}", addresses)


def test_slices_of_the_type_fqdn_are_passed_over_without_a_word(server: Server) -> None:
    assert "db.example.com" not in server.log
    assert_negative(ask(server, f"db-example-com.db.{SHOP}"), "NXDOMAIN")


def test_an_endpoint_goes_by_its_hostname_which_several_addresses_may_share(server: Server) -> None:
    assert_answer(ask(server, f"db-0.db.{SHOP}"), "A", f"db-0.db.{SHOP}", ["10.1.1.1"])
    assert_answer(ask(server, f"db-0.db.{SHOP}", "AAAA"), "AAAA", f"db-0.db.{SHOP}", ["fd00:1::1:1"])


@pytest.mark.parametrize(
    ("label", "rdtype", "address"),
    [
        ("10-1-1-3", "A", "10.1.1.3"),
        ("2001-db8--7", "AAAA", "2001:db8::7"),
        ("2001-db8-0-7--0", "AAAA", "2001:db8:0:7::"),
    ],
)
def test_an_endpoint_without_hostname_goes_by_its_address(
    server: Server, label: str, rdtype: str, address: str
) -> None:
    name = f"{label}.db.{SHOP}"
    assert_answer(ask(server, name, rdtype), rdtype, name, [address])


def test_an_endpoint_with_a_hostname_does_not_go_by_address_or_pod(server: Server) -> None:
    for label in ("10-1-1-1", "db-pod-0", "db-pod-2"):
        assert_negative(ask(server, f"{label}.db.{SHOP}"), "NXDOMAIN")


def test_an_endpoint_that_is_not_ready_has_no_records(server: Server) -> None:
    assert_negative(ask(server, f"db-3.db.{SHOP}"), "NXDOMAIN")
    assert_negative(ask(server, reverse("10.1.1.4"), "PTR"), "NXDOMAIN", "in-addr.arpa")


def test_publish_not_ready_addresses_counts_every_endpoint_as_ready(server: Server) -> None:
    assert ask(server, f"starting.{SHOP}").rdata == ["10.1.2.1"]
    assert ask(server, f"s-0.starting.{SHOP}").rdata == ["10.1.2.1"]


def test_srv_of_a_headless_service_has_each_endpoint_name_for_each_port(server: Server) -> None:
    named = ask(server, f"_pg._tcp.db.{SHOP}", "SRV")
    assert_answer(named, "SRV", f"_pg._tcp.db.{SHOP}", [f"0 20 5432 {target}" for target in DB_TARGETS])
    assert named.additional == DB_ADDRESSES
    every = ask(server, f"db.{SHOP}", "SRV")
    ports = itertools.product((5432, 9187), DB_TARGETS)
    assert_answer(every, "SRV", f"db.{SHOP}", [f"0 10 {port} {target}" for port, target in ports])
    assert every.additional == DB_ADDRESSES


def test_a_weight_is_at_least_one(server: Server) -> None:
    answer = told(server.query(f"_http._tcp.crowd.{SHOP}", "SRV", tcp=True))
    assert len(answer.answer) == 150
    assert {line.split()[3] for line in answer.answer} == {"1"}
    assert len(answer.additional) == 150


def test_ptr_of_an_endpoint_points_to_its_name(server: Server) -> None:
    assert ask(server, reverse("10.1.1.2"), "PTR").rdata == [f"db-1.db.{SHOP}."]
    assert ask(server, reverse("fd00:1::1:1"), "PTR").rdata == [f"db-0.db.{SHOP}."]
    assert ask(server, reverse("2001:db8::7"), "PTR").rdata == [f"2001-db8--7.db.{SHOP}."]


def test_ptr_lists_every_service_that_has_the_address(server: Server) -> None:
    answer = ask(server, reverse("10.1.1.1"), "PTR")
    assert_answer(answer, "PTR", reverse("10.1.1.1"), [f"db-0.db.{SHOP}.", f"m.db-metrics.{SHOP}."])


def test_a_headless_service_without_ready_endpoints_does_not_exist(live: Server) -> None:
    for rdtype in ("A", "AAAA", "SRV", "TXT"):
        assert_negative(ask(live, f"none.base.svc.{Z}", rdtype), "NXDOMAIN")


# ExternalName


def test_an_external_name_outside_our_zones_is_a_cname_alone(server: Server) -> None:
    for rdtype in ("A", "AAAA", "CNAME"):
        answer = ask(server, f"outside.{SHOP}", rdtype)  # an SOA would say that there is no address
        assert_answer(answer, "CNAME", f"outside.{SHOP}", ["api.example.com."])


def test_an_external_name_inside_is_followed_and_the_cname_comes_first(server: Server) -> None:
    for rdtype, address in (("A", "10.96.0.10"), ("AAAA", "fd00:96::10")):
        answer = server.query(f"inside.{SHOP}", rdtype)
        assert [dns.rdatatype.to_text(rrset.rdtype) for rrset in answer.answer] == ["CNAME", rdtype]
        wanted = [f"inside.{SHOP}. CNAME web.{SHOP}.", f"web.{SHOP}. {rdtype} {address}"]
        assert ask(server, f"inside.{SHOP}", rdtype).answer == wanted


def test_an_external_name_may_lead_to_several_addresses(server: Server) -> None:
    for _ in range(4):
        answer = server.query(f"to-db.{SHOP}")
        assert [dns.rdatatype.to_text(rrset.rdtype) for rrset in answer.answer] == ["CNAME", "A"]
    addresses = [f"db.{SHOP}. A 10.1.1.{number}" for number in (1, 2, 3)]
    assert ask(server, f"to-db.{SHOP}").answer == [*addresses, f"to-db.{SHOP}. CNAME db.{SHOP}."]


def test_other_types_of_an_external_name_are_not_followed(server: Server) -> None:
    for rdtype in ("CNAME", "SRV", "TXT"):
        assert ask(server, f"inside.{SHOP}", rdtype).answer == [f"inside.{SHOP}. CNAME web.{SHOP}."]


def test_a_loop_ends_with_what_was_found(server: Server) -> None:
    answer = ask(server, f"ping.{SHOP}")
    assert answer.rcode == "NOERROR"
    assert answer.answer == [f"ping.{SHOP}. CNAME pong.{SHOP}.", f"pong.{SHOP}. CNAME ping.{SHOP}."]
    assert answer.authority == []
    wire = server.raw_udp(dns.message.make_query(f"ping.{SHOP}", "A").to_wire()) or b""
    assert int.from_bytes(wire[6:8], "big") == 2


def test_a_chain_of_ten_links_is_followed_and_one_of_eleven_is_not(server: Server) -> None:
    ten = ask(server, f"chain-2.{SHOP}")
    assert f"web.{SHOP}. A 10.96.0.10" in ten.answer
    assert len(ten.answer) == 11
    eleven = ask(server, f"chain-1.{SHOP}")
    assert eleven.rcode == "NOERROR"
    assert sorted(eleven.answer) == sorted(f"chain-{n}.{SHOP}. CNAME chain-{n + 1}.{SHOP}." for n in range(1, 11))


def test_an_external_name_whose_target_is_not_there_is_the_cname_alone(server: Server) -> None:
    answer = ask(server, f"dangling.{SHOP}")
    assert (answer.rcode, answer.answer) == ("NOERROR", [f"dangling.{SHOP}. CNAME gone.{SHOP}."])
    assert answer.authority[0].startswith(f"{Z}. SOA ")


def test_an_external_name_whose_target_lacks_the_type_is_the_cname_and_the_soa(server: Server) -> None:
    answer = ask(server, f"to-single.{SHOP}", "AAAA")
    assert (answer.rcode, answer.answer) == ("NOERROR", [f"to-single.{SHOP}. CNAME single.{SHOP}."])
    assert answer.authority[0].startswith(f"{Z}. SOA ")


def test_a_name_below_an_external_name_does_not_exist(server: Server) -> None:
    for name in ("outside", "inside", "to-db"):
        assert_negative(ask(server, f"db-0.{name}.{SHOP}"), "NXDOMAIN")
        assert_negative(ask(server, f"_http._tcp.{name}.{SHOP}", "SRV"), "NXDOMAIN")


# Pods


def test_pods_are_disabled_by_default(server: Server) -> None:
    for name in (f"10-1-0-1.shop.pod.{Z}", f"shop.pod.{Z}", f"10-1-4-1.pods-only.pod.{Z}"):
        assert_negative(ask(server, name), "NXDOMAIN")
    assert_negative(ask(server, f"pod.{Z}"), "NOERROR")


# Zonal names


@pytest.mark.parametrize(
    ("zone", "v4", "v6", "targets"),
    [
        ("west-1a", ["10.1.1.1", "10.1.1.3"], [], ["db-0", "10-1-1-3"]),
        ("eu.west-1b", ["10.1.1.2"], [], ["db-1"]),
        ("EU.West-1B", ["10.1.1.2"], [], ["db-1"]),
    ],
)
@pytest.mark.parametrize("directive", ["pin", "prefer"])
def test_zonal_names_have_the_endpoints_of_a_topology_zone(
    server: Server, zone: str, directive: str, v4: list[str], v6: list[str], targets: list[str]
) -> None:
    name = f"{zone}.{directive}._zone.db.{SHOP}"
    assert_answer(ask(server, name), "A", name, v4)
    assert ask(server, name, "AAAA").rdata == v6
    srv = ask(server, name, "SRV")
    weight = 100 // (2 * len(targets))
    wanted = [f"0 {weight} {port} {t}.db.{SHOP}." for port in (5432, 9187) for t in targets]
    assert srv.rdata == sorted(wanted)
    assert f"{targets[0]}.db.{SHOP}. A {v4[0]}" in srv.additional
    assert_negative(ask(server, name, "TXT"), "NOERROR")


@pytest.mark.parametrize("zone", ["nowhere", "west-1c", "*", "west-1", "eu", "x.eu.west-1b", "a" * 63 + ".b"])
def test_in_a_zone_without_endpoints_pin_is_nodata_and_prefer_gives_all(server: Server, zone: str) -> None:
    assert_negative(ask(server, f"{zone}.pin._zone.db.{SHOP}"), "NOERROR")
    answer = ask(server, f"{zone}.prefer._zone.db.{SHOP}")
    assert answer.rdata == ["10.1.1.1", "10.1.1.2", "10.1.1.3"]
    assert len(ask(server, f"{zone}.prefer._zone.db.{SHOP}", "AAAA").rdata) == 3


@pytest.mark.parametrize(
    "name",
    [
        f"west-1a.near._zone.db.{SHOP}",
        f"near._zone.db.{SHOP}",
        f"*._zone.db.{SHOP}",
        f"west-1a._zone.db.{SHOP}",
        f"west-1a.pin._zone.web.{SHOP}",
        f"west-1a.pin._zone.inside.{SHOP}",
        f"west-1a.pin._zone.gone.{SHOP}",
        f"west-1a.prefer._zone.db.other.svc.{Z}",
        f"west-1a.pin._zone.db.shop.pod.{Z}",
    ],
)
def test_other_zonal_names_do_not_exist(server: Server, name: str) -> None:
    assert_negative(ask(server, name), "NXDOMAIN")


@pytest.mark.parametrize("name", ["_zone", "pin._zone", "prefer._zone"])
def test_the_names_above_zonal_names_exist(server: Server, name: str) -> None:
    assert_negative(ask(server, f"{name}.db.{SHOP}"), "NOERROR")


def test_a_headless_service_without_ready_endpoints_has_zonal_names_and_no_name_of_its_own(server: Server) -> None:
    assert_negative(ask(server, f"west-1a.pin._zone.drained.{SHOP}"), "NOERROR")
    assert_negative(ask(server, f"west-1a.prefer._zone.drained.{SHOP}"), "NOERROR")
    assert_negative(ask(server, f"drained.{SHOP}"), "NXDOMAIN")


# NODATA and NXDOMAIN


@pytest.mark.parametrize(
    ("name", "rdtype", "zone"),
    [
        (f"web.{SHOP}", "TXT", Z),
        (f"single.{SHOP}", "AAAA", Z),
        (f"_http._tcp.web.{SHOP}", "A", Z),
        (f"_tcp.web.{SHOP}", "SRV", Z),
        (f"db-1.db.{SHOP}", "AAAA", Z),
        (SHOP, "A", Z),
        (f"quiet.svc.{Z}", "A", Z),
        (f"pods-only.svc.{Z}", "A", Z),
        (f"svc.{Z}", "A", Z),
        (f"pod.{Z}", "SRV", Z),
        (f"dns.{Z}", "A", Z),
        (f"ns.dns.{Z}", "TXT", Z),
        (f"dns-version.{Z}", "A", Z),
        (Z, "A", Z),
        ("96.10.in-addr.arpa", "PTR", "in-addr.arpa"),
        ("10.in-addr.arpa", "NS", "in-addr.arpa"),
        (reverse("10.1.1.1"), "A", "in-addr.arpa"),
        ("d.f.ip6.arpa", "PTR", "ip6.arpa"),
    ],
)
def test_a_name_that_exists_without_that_type_is_nodata(server: Server, name: str, rdtype: str, zone: str) -> None:
    assert_negative(ask(server, name, rdtype), "NOERROR", zone)


@pytest.mark.parametrize(
    ("name", "rdtype", "zone"),
    [
        (f"gone.{SHOP}", "A", Z),
        (f"web.nobody.svc.{Z}", "A", Z),
        (f"nobody.svc.{Z}", "A", Z),
        (f"a.web.{SHOP}", "A", Z),
        (f"a.single.{SHOP}", "A", Z),
        (f"a.db-0.db.{SHOP}", "A", Z),
        (f"*.{SHOP}", "A", Z),
        (f"api.example.com.{SHOP}", "A", Z),
        (f"api.example.com.svc.{Z}", "AAAA", Z),
        (f"api.example.com.{Z}", "A", Z),
        (f"hostmaster.{Z}", "A", Z),
        ("dns-version.in-addr.arpa", "TXT", "in-addr.arpa"),
        (reverse("10.96.0.200"), "PTR", "in-addr.arpa"),
        (reverse("fd00:96::200"), "PTR", "ip6.arpa"),
    ],
)
def test_a_name_that_does_not_exist_is_nxdomain(server: Server, name: str, rdtype: str, zone: str) -> None:
    assert_negative(ask(server, name, rdtype), "NXDOMAIN", zone)


def test_a_label_with_a_dot_in_it_is_not_two_labels(server: Server) -> None:
    for name in (rf"web\.shop.svc.{Z}", rf"db-0\.db.{SHOP}", rf"web\000.{SHOP}", rf"web.shop\.svc.{Z}"):
        assert_negative(ask(server, name), "NXDOMAIN")
    outside = ask(server, rf"web.shop.svc\.{Z}")
    assert (outside.rcode, outside.answer) == ("SERVFAIL", [])


# Case


def spelled(server: Server, name: str, rdtype: str, *, tcp: bool) -> tuple[bytes, bytes, dns.message.Message]:
    """The question section as it was sent and as it came back, and the response with each record on its own."""
    query = dns.message.make_query(dns.name.from_text(name), rdtype).to_wire()
    wire = server.raw_tcp(query)[0] if tcp else server.raw_udp(query)
    assert wire is not None
    return query[12:], wire[12 : len(query)], dns.message.from_wire(wire, one_rr_per_rrset=True)


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
@pytest.mark.parametrize(
    "name",
    [
        f"db.{SHOP}",
        "DB.SHOP.SVC.CLUSTER.LOCAL",
        "Db.sHoP.SvC.cLuStEr.LoCaL",
        "dB.ShOp.sVc.ClUsTeR.lOcAl",
    ],
)
def test_names_compare_without_case_and_owners_follow_that_of_the_question(
    server: Server, name: str, tcp: bool
) -> None:
    asked, back, message = spelled(server, name, "A", tcp=tcp)
    assert back == asked
    assert sorted(str(rrset[0]) for rrset in message.answer) == ["10.1.1.1", "10.1.1.2", "10.1.1.3"]
    assert {rrset.name.labels for rrset in message.answer} == {dns.name.from_text(name).labels}


def test_soa_and_additional_owners_follow_the_case_of_the_question(server: Server) -> None:
    asked, back, message = spelled(server, "GonE.shoP.svC.clusteR.locaL", "A", tcp=False)
    assert back == asked
    assert message.authority[0].name.labels == dns.name.from_text("clusteR.locaL").labels
    asked, back, message = spelled(server, "_HTTP._tcP.weB.shoP.svC.clusteR.locaL", "SRV", tcp=False)
    assert back == asked
    wanted = dns.name.from_text("weB.shoP.svC.clusteR.locaL").labels
    assert {rrset.name.labels for rrset in message.additional if rrset.rdtype != dns.rdatatype.OPT} == {wanted}
    assert message.answer[0].name.labels == dns.name.from_text("_HTTP._tcP.weB.shoP.svC.clusteR.locaL").labels


def test_each_spelling_gets_its_own_back_from_the_cache(server: Server) -> None:
    for _ in range(3):
        for name in ("weB.shop.svc.cluster.local", "WEb.shop.svc.cluster.local"):
            asked, back, message = spelled(server, name, "A", tcp=False)
            assert back == asked
            assert message.answer[0].name.labels == dns.name.from_text(name).labels


# Changes on disk, while the old answers are in the packet cache


def put(live: Server, file: str, *items: Object) -> None:
    live.write_objects(items, f"{file}.json")


def soon(live: Server, name: str, rdtype: str, rcode: str, *rdatas: str) -> None:
    """The answer has to be this within SOON seconds, over UDP and TCP."""
    expected: Expected = rcode, records(name, rdtype, rdatas)
    shows_within(live, SOON, name, rdtype, expected)


def cached(live: Server, name: str, rdtype: str, rcode: str, *rdatas: str) -> None:
    """The answer is this now, and from now on it comes from the packet cache."""
    answer = ask(live, name, rdtype)
    assert (answer.rcode, answer.answer) == (rcode, records(name, rdtype, rdatas))
    before = live.metrics().value("kdns_packet_cache_hits_total")
    assert ask(live, name, rdtype) == answer
    assert live.metrics().value("kdns_packet_cache_hits_total") == before + 6


def test_an_edited_address_shows(live: Server) -> None:
    name = f"web.edit.svc.{Z}"
    put(live, "edit", service("web", "edit", ips=["10.96.1.1"]))
    soon(live, name, "A", "NOERROR", "10.96.1.1")
    cached(live, name, "A", "NOERROR", "10.96.1.1")
    cached(live, reverse("10.96.1.1"), "PTR", "NOERROR", f"{name}.")
    cached(live, reverse("10.96.1.2"), "PTR", "NXDOMAIN")
    put(live, "edit", service("web", "edit", ips=["10.96.1.2"]))
    soon(live, name, "A", "NOERROR", "10.96.1.2")
    soon(live, reverse("10.96.1.1"), "PTR", "NXDOMAIN")
    soon(live, reverse("10.96.1.2"), "PTR", "NOERROR", f"{name}.")


def test_an_nxdomain_becomes_a_name_and_the_names_above_it_come_to_be(live: Server) -> None:
    names = [(f"web.born.svc.{Z}", "A"), (f"born.svc.{Z}", "A"), (f"_http._tcp.web.born.svc.{Z}", "SRV")]
    for name, rdtype in (*names, (f"_tcp.web.born.svc.{Z}", "A")):
        cached(live, name, rdtype, "NXDOMAIN")
    put(live, "born", service("web", "born", ips=["10.96.2.1"]))
    soon(live, f"web.born.svc.{Z}", "A", "NOERROR", "10.96.2.1")
    soon(live, f"born.svc.{Z}", "A", "NOERROR")
    soon(live, f"_tcp.web.born.svc.{Z}", "A", "NOERROR")
    soon(live, f"_http._tcp.web.born.svc.{Z}", "SRV", "NOERROR", f"0 100 80 web.born.svc.{Z}.")


def test_a_name_that_goes_away_takes_the_names_above_it_along(live: Server) -> None:
    put(live, "die", service("web", "die", ips=["10.96.3.1"]), service("stay", "stays", ips=["10.96.3.2"]))
    put(live, "die-too", service("db", "die", ips=["10.96.3.3"]))
    soon(live, f"db.die.svc.{Z}", "A", "NOERROR", "10.96.3.3")
    cached(live, f"web.die.svc.{Z}", "A", "NOERROR", "10.96.3.1")
    cached(live, f"_tcp.web.die.svc.{Z}", "A", "NOERROR")
    cached(live, f"die.svc.{Z}", "A", "NOERROR")
    cached(live, "3.96.10.in-addr.arpa", "PTR", "NOERROR")
    put(live, "die", service("stay", "stays", ips=["10.96.4.2"]))
    soon(live, f"web.die.svc.{Z}", "A", "NXDOMAIN")
    soon(live, f"_tcp.web.die.svc.{Z}", "A", "NXDOMAIN")
    cached(live, f"die.svc.{Z}", "A", "NOERROR")
    (live.manifests / "die-too.json").unlink()
    soon(live, f"db.die.svc.{Z}", "A", "NXDOMAIN")
    soon(live, f"die.svc.{Z}", "A", "NXDOMAIN")
    soon(live, "3.96.10.in-addr.arpa", "PTR", "NXDOMAIN")
    soon(live, f"stay.stays.svc.{Z}", "A", "NOERROR", "10.96.4.2")


def test_a_change_of_the_addresses_shows_beside_an_srv_record_that_stays(live: Server) -> None:
    def headless(address: str) -> list[Object]:
        piece = endpoint_slice("db", [endpoint(address, hostname="db-0")], "beside", ports=(("pg", 5432),))
        return [service("db", "beside", ips=(), ports=(("pg", 5432),)), piece]

    name, target = f"_pg._tcp.db.beside.svc.{Z}", f"db-0.db.beside.svc.{Z}."
    put(live, "beside", *headless("10.1.5.1"))
    soon(live, name, "SRV", "NOERROR", f"0 100 5432 {target}")
    cached(live, name, "SRV", "NOERROR", f"0 100 5432 {target}")
    assert ask(live, name, "SRV").additional == [f"{target} A 10.1.5.1"]
    put(live, "beside", *headless("10.1.5.2"))
    soon(live, target[:-1], "A", "NOERROR", "10.1.5.2")
    assert ask(live, name, "SRV").additional == [f"{target} A 10.1.5.2"]


def test_a_change_at_the_end_of_a_chain_shows_at_its_beginning(live: Server) -> None:
    alias = external_name("alias", f"web.links.svc.{Z}", "links")
    name = f"alias.links.svc.{Z}"
    put(live, "links", alias)
    cname = f"{name}. CNAME web.links.svc.{Z}."
    shows_within(live, SOON, name, "A", ("NOERROR", [cname]))
    ask(live, name)
    for address in ("10.96.6.1", "10.96.6.2"):
        put(live, "links", alias, service("web", "links", ips=[address]))
        shows_within(live, SOON, name, "A", ("NOERROR", [cname, f"web.links.svc.{Z}. A {address}"]))
        ask(live, name)


def test_a_namespace_that_appears_brings_the_names_of_its_pods(live: Server) -> None:
    name = f"10-1-7-1.late.pod.{Z}"
    cached(live, name, "A", "NXDOMAIN")
    cached(live, f"late.pod.{Z}", "A", "NXDOMAIN")
    put(live, "late", namespace("late"))
    soon(live, name, "A", "NOERROR", "10.1.7.1")
    soon(live, f"late.pod.{Z}", "A", "NOERROR")
    cached(live, name, "A", "NOERROR", "10.1.7.1")
    (live.manifests / "late.json").unlink()
    soon(live, name, "A", "NXDOMAIN")


def test_endpoints_that_come_and_go_show(live: Server) -> None:
    def scaled(*addresses: str) -> list[Object]:
        endpoints = [endpoint(address) for address in addresses]
        return [service("db", "scale", ips=()), endpoint_slice("db", endpoints, "scale")]

    name = f"db.scale.svc.{Z}"
    put(live, "scale", *scaled("10.1.8.1"))
    soon(live, name, "A", "NOERROR", "10.1.8.1")
    for addresses in (["10.1.8.1", "10.1.8.2"], ["10.1.8.2"], [], ["10.1.8.3"]):
        put(live, "scale", *scaled(*addresses))
        soon(live, name, "A", "NOERROR" if addresses else "NXDOMAIN", *addresses)
        ask(live, name)


def test_when_one_of_two_services_with_an_address_goes_the_ptr_record_to_the_other_stays(live: Server) -> None:
    def selecting(name: str) -> list[Object]:
        return [service(name, "two", ips=()), endpoint_slice(name, [endpoint("10.1.10.1", hostname="e")], "two")]

    one, other = f"e.one.two.svc.{Z}.", f"e.other.two.svc.{Z}."
    put(live, "two-one", *selecting("one"))
    soon(live, reverse("10.1.10.1"), "PTR", "NOERROR", one)
    put(live, "two-other", *selecting("other"))
    soon(live, reverse("10.1.10.1"), "PTR", "NOERROR", one, other)
    cached(live, reverse("10.1.10.1"), "PTR", "NOERROR", one, other)
    (live.manifests / "two-one.json").unlink()
    soon(live, reverse("10.1.10.1"), "PTR", "NOERROR", other)


def test_endpoints_of_the_old_kind_count_until_there_is_a_slice(live: Server) -> None:
    old = {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {"name": "db", "namespace": "legacy"},
        "subsets": [{"addresses": [{"ip": "10.1.11.1"}], "ports": [{"name": "http", "port": 8080}]}],
    }
    name = f"db.legacy.svc.{Z}"
    put(live, "legacy", service("db", "legacy", ips=()), old)
    soon(live, name, "A", "NOERROR", "10.1.11.1")
    cached(live, name, "A", "NOERROR", "10.1.11.1")
    put(live, "legacy-slice", endpoint_slice("db", [endpoint("10.1.11.2")], "legacy"))
    soon(live, name, "A", "NOERROR", "10.1.11.2")


def test_the_name_server_follows_the_service_that_selects_this_server(serve: Serve) -> None:
    def dns(ip: str) -> list[Object]:
        piece = endpoint_slice("kube-dns", [endpoint("127.0.0.1")], "kube-system")
        return [service("kube-dns", "kube-system", ips=[ip]), piece]

    server = serve(dns("10.96.0.53"), addresses=["127.0.0.1"])
    assert ask(server, f"ns.dns.{Z}").rdata == ["10.96.0.53"]
    assert ask(server, Z, "NS").additional == [f"ns.dns.{Z}. A 10.96.0.53"]
    server.write_objects(dns("10.96.0.54"))
    soon(server, f"ns.dns.{Z}", "A", "NOERROR", "10.96.0.54")
    assert ask(server, Z, "NS").additional == [f"ns.dns.{Z}. A 10.96.0.54"]
    server.write_objects([])
    soon(server, f"ns.dns.{Z}", "A", "NOERROR", "127.0.0.1")


def serial(live: Server, zone: str) -> int:
    return int(ask(live, zone, "SOA").rdata[0].split()[2])


def test_the_serial_rises_with_a_change_that_can_be_seen_and_only_in_its_zone(live: Server) -> None:
    put(live, "serial", service("web", "serial", ips=["10.96.9.1"]))
    soon(live, f"web.serial.svc.{Z}", "A", "NOERROR", "10.96.9.1")
    zones = (Z, "in-addr.arpa", "ip6.arpa")
    before = {zone: serial(live, zone) for zone in zones}
    put(live, "serial", service("web", "serial", ips=["10.96.9.2"]))
    soon(live, f"web.serial.svc.{Z}", "A", "NOERROR", "10.96.9.2")
    after = {zone: serial(live, zone) for zone in zones}
    assert [after[zone] > before[zone] for zone in zones] == [True, True, False]
    # What has no part in any answer leaves the serial as it is.
    put(live, "serial", service("web", "serial", ips=["10.96.9.2"], labels={"colour": "red"}))
    put(live, "serial-mark", service("mark", "mark", ips=["fd00:96::9"]))
    soon(live, reverse("fd00:96::9"), "PTR", "NOERROR", f"mark.mark.svc.{Z}.")
    assert serial(live, "in-addr.arpa") == after["in-addr.arpa"]
    assert serial(live, "ip6.arpa") > after["ip6.arpa"]


# Before the first sync


def test_before_the_first_sync_a_name_that_we_do_not_have_is_servfail_never_nxdomain(serve: Serve) -> None:
    server = serve(corefile=COREFILE.replace("ready $host:$ready", "").replace("manifests $manifests", UNREADABLE))
    for name, rdtype in ((f"web.{SHOP}", "A"), (reverse("10.96.0.10"), "PTR"), (f"web.{SHOP}", "AAAA")):
        answer = ask(server, name, rdtype)
        assert (answer.rcode, answer.answer, answer.authority) == ("SERVFAIL", [], [])
        assert "aa" not in answer.flags
    procs.wait_until(lambda: bool(server.query(Z, "SOA").answer), 5, "the zone's own records")
    assert server.query(Z, "SOA").rcode() == 0  # (its serial may rise meanwhile)
    assert f"[ERROR] plugin/errors: 2 web.{SHOP}. A: zone {Z}.: its source has not been read yet" in server.log
    (server.folder / "broken.json").write_text('{"apiVersion": "v1", "kind": "List", "items": []}')
    soon(server, f"web.{SHOP}", "A", "NXDOMAIN")
    soon(server, reverse("10.96.0.10"), "PTR", "NXDOMAIN")


UNREADABLE = "manifests broken.json"


def test_ready_waits_for_the_first_sync(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    server = Server(tmp_path, corefile=COREFILE.replace("manifests $manifests", UNREADABLE))
    try:
        server.start(wait=False)
        server._wait(server.answers, 20, "an answer")
        server._wait(lambda: server.ready().status == 503, 5, "/ready says no")
        assert "kubernetes" in server.ready().body
        objects.write_list(tmp_path / "broken.json", [service("web", "shop")])
        server._wait(lambda: server.ready().status == 200, 5, "/ready says yes")
        assert ask(server, f"web.{SHOP}").rdata == ["10.96.0.10"]
    finally:
        server.kill()
