"""From Kubernetes objects to records: the rows of the schema, one by one, judged by dnspython."""

from __future__ import annotations

import ipaddress
from typing import Any

import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import msgspec.structs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.cluster import records
from kdns.cluster.objects import Endpoint, EndpointSlice, Pod, Port, Service, Subset
from kdns.cluster.records import RecordOptions, Records
from kdns.plugins import kubernetes
from kdns.wire import names, rr
from kdns.wire.rrset import RRset

ZONE = names.from_text("cluster.local.")
OPTIONS = RecordOptions(ZONE)
HTTP = Port("http", "TCP", 80)
DNS = (Port("dns", "UDP", 53), Port("dns-tcp", "TCP", 53), Port("metrics", "TCP", 9153))


def service(**fields: Any) -> Service:
    return Service(**{"namespace": "default", "name": "web", "cluster_ips": ("10.96.0.1",), "ports": (HTTP,)} | fields)


def headless(**fields: Any) -> Service:
    return service(**{"headless": True, "cluster_ips": ()} | fields)


def piece(*endpoints: Endpoint, ports: tuple[Port, ...] = (HTTP,), **fields: Any) -> EndpointSlice:
    given = {"namespace": "default", "name": "web-1", "service": "web", "subsets": (Subset(ports, endpoints),)}
    return EndpointSlice(**given | fields)


def at(*addresses: str, **fields: Any) -> Endpoint:
    return Endpoint(addresses, **fields)


def lines(rrsets: tuple[RRset, ...]) -> list[str]:
    found = []
    for rrset in rrsets:
        for rdata in rrset.rdatas:
            kind, klass = dns.rdatatype.RdataType(rrset.type), dns.rdataclass.RdataClass(rrset.klass)
            text = dns.rdata.from_wire(klass, kind, rdata, 0, len(rdata)).to_text()
            found.append(f"{rr.type_text(rrset.type)} {text}")
    return found


def table(found: Records) -> dict[str, list[str]]:
    """Records as text, owners relative to svc.cluster.local where they are below it."""
    return {names.to_text(owner).removesuffix(".svc.cluster.local."): lines(rrsets) for owner, rrsets in found.items()}


def published(what: Service, *slices: EndpointSlice, options: RecordOptions = OPTIONS) -> dict[str, list[str]]:
    return table(records.derive(what, slices, options).names)


def test_cluster_ip_service() -> None:
    assert published(service()) == {
        "web.default": ["A 10.96.0.1", "SRV 0 100 80 web.default.svc.cluster.local."],
        "_http._tcp.web.default": ["SRV 0 100 80 web.default.svc.cluster.local."],
    }


def test_dual_stack_service_has_both_address_types_and_one_srv_record() -> None:
    found = published(service(cluster_ips=("10.96.0.1", "fd00::1")))
    assert found["web.default"] == ["A 10.96.0.1", "AAAA fd00::1", "SRV 0 100 80 web.default.svc.cluster.local."]


def test_ports_of_all_protocols_and_weights_that_share_100() -> None:
    found = published(service(ports=(*DNS, Port("call", "SCTP", 7))))
    target = "web.default.svc.cluster.local."
    assert found["web.default"][1:] == [f"SRV 0 33 {port} {target}" for port in (7, 53, 9153)]
    assert found["_dns._udp.web.default"] == [f"SRV 0 100 53 {target}"]
    assert found["_dns-tcp._tcp.web.default"] == [f"SRV 0 100 53 {target}"]
    assert found["_call._sctp.web.default"] == [f"SRV 0 100 7 {target}"]


def test_port_without_name_shows_only_at_the_service() -> None:
    assert published(service(ports=(Port("", "TCP", 80),))) == {
        "web.default": ["A 10.96.0.1", "SRV 0 100 80 web.default.svc.cluster.local."]
    }


def test_service_without_ports_has_addresses_only() -> None:
    assert published(service(ports=())) == {"web.default": ["A 10.96.0.1"]}


def test_service_without_cluster_ip_yet_does_not_exist() -> None:
    warnings: list[str] = []
    assert records.derive(service(cluster_ips=()), (), OPTIONS, warnings.append).names == {}
    assert warnings == ["Service default/web: it has no clusterIP, not published; accepted: None, addresses"]


def test_owners_are_lower_case_and_ttl_is_the_option() -> None:
    found = records.derive(
        service(namespace="Prod", name="Web", ports=(Port("HTTP", "TCP", 80),)), (), RecordOptions(ZONE, ttl=30)
    ).names
    assert set(table(found)) == {"web.prod", "_http._tcp.web.prod"}
    assert {rrset.ttl for rrsets in found.values() for rrset in rrsets} == {30}


def test_endpoints_of_a_cluster_ip_service_have_names() -> None:
    found = published(service(), piece(at("10.1.0.5"), at("10.1.0.6", ready=False)))
    assert found["10-1-0-5.web.default"] == ["A 10.1.0.5"]
    assert found["web.default"][0] == "A 10.96.0.1"
    assert "10-1-0-6.web.default" not in found


def test_headless_service() -> None:
    assert published(headless(), piece(at("10.1.0.6"), at("10.1.0.5"), at("2001:db8::1", hostname="Db-0"))) == {
        "web.default": [
            "A 10.1.0.5",
            "A 10.1.0.6",
            "AAAA 2001:db8::1",
            "SRV 0 33 80 db-0.web.default.svc.cluster.local.",
            "SRV 0 33 80 10-1-0-5.web.default.svc.cluster.local.",
            "SRV 0 33 80 10-1-0-6.web.default.svc.cluster.local.",
        ],
        "_http._tcp.web.default": [
            "SRV 0 33 80 db-0.web.default.svc.cluster.local.",
            "SRV 0 33 80 10-1-0-5.web.default.svc.cluster.local.",
            "SRV 0 33 80 10-1-0-6.web.default.svc.cluster.local.",
        ],
        "10-1-0-5.web.default": ["A 10.1.0.5"],
        "10-1-0-6.web.default": ["A 10.1.0.6"],
        "db-0.web.default": ["AAAA 2001:db8::1"],
    }


def test_headless_srv_records_take_the_ports_of_the_slice() -> None:
    found = published(headless(ports=()), piece(at("10.1.0.5"), ports=(Port("admin", "TCP", 8443),)))
    assert found["_admin._tcp.web.default"] == ["SRV 0 100 8443 10-1-0-5.web.default.svc.cluster.local."]
    assert published(headless(), piece(at("10.1.0.5"), ports=()))["web.default"] == ["A 10.1.0.5"]


def test_weights_are_at_least_1() -> None:
    found = published(headless(), piece(*(at(f"10.1.{n // 250}.{n % 250}") for n in range(300))))
    srv = [line for line in found["web.default"] if line.startswith("SRV")]
    assert len(srv) == 300
    assert {line.split()[2] for line in srv} == {"1"}


def test_several_addresses_may_share_one_endpoint_name() -> None:
    found = published(headless(), piece(at("10.1.0.5", hostname="db"), at("10.1.0.6", hostname="db"), at("10.1.0.7")))
    assert found["db.web.default"] == ["A 10.1.0.5", "A 10.1.0.6"]
    assert found["_http._tcp.web.default"] == [
        "SRV 0 50 80 db.web.default.svc.cluster.local.",
        "SRV 0 50 80 10-1-0-7.web.default.svc.cluster.local.",
    ]


def test_slices_count_together_without_duplicates() -> None:
    slices = (piece(at("10.1.0.5"), at("10.1.0.6")), piece(at("10.1.0.6"), at("10.1.0.7"), name="web-2"))
    found = published(headless(), *slices)
    assert found["web.default"][:3] == ["A 10.1.0.5", "A 10.1.0.6", "A 10.1.0.7"]
    assert len(found["_http._tcp.web.default"]) == 3
    assert published(headless(), *reversed(slices)) == found


@pytest.mark.parametrize(
    "other",
    [
        piece(at("10.1.0.9"), service="api"),
        piece(at("10.1.0.9"), namespace="prod"),
        piece(at("10.1.0.9"), service=""),
        piece(at("example.com"), address_type="FQDN"),
    ],
)
def test_slices_that_do_not_count(other: EndpointSlice) -> None:
    assert published(headless(), other) == {}


def test_endpoints_objects_count_only_without_slices() -> None:
    legacy = piece(at("10.1.0.9"), legacy=True, address_type="")
    assert published(headless(), legacy)["web.default"][0] == "A 10.1.0.9"
    assert "10-1-0-9.web.default" not in published(headless(), legacy, piece(at("10.1.0.5")))
    assert published(headless(), legacy, piece()) == {}


def test_endpoint_pod_names() -> None:
    options = RecordOptions(ZONE, endpoint_pod_names=True)
    slices = piece(
        at("10.1.0.5", pod="web-abc"),
        at("10.1.0.6", pod="web-abd", hostname="db"),
        at("10.1.0.7", pod="web.with.dots"),
        at("10.1.0.8", pod="x" * 64),
        at("10.1.0.9"),
    )
    found = published(headless(), slices, options=options)
    expected = {"web-abc", "db", "10-1-0-7", "10-1-0-8", "10-1-0-9"}
    assert {name.split(".")[0] for name in found} == {*expected, "web", "_http"}
    assert "10-1-0-5.web.default" in published(headless(), slices)


@pytest.mark.parametrize(
    ("address", "label"),
    [
        ("10.1.0.5", "10-1-0-5"),
        ("2001:db8::1", "2001-db8--1"),
        ("2001:DB8::1", "2001-db8--1"),
        ("2001:db8::", "2001-db8--0"),
        ("2001:0db8:0:0::1", "2001-0db8-0-0--1"),
        ("::1", "--1"),
    ],
)
def test_endpoint_names_from_addresses(address: str, label: str) -> None:
    assert f"{label}.web.default" in published(headless(), piece(at(address)))


def test_unready_endpoints_count_if_the_service_publishes_them() -> None:
    slices = piece(at("10.1.0.5", ready=False))
    assert published(headless(), slices) == {}
    assert published(headless(publish_not_ready=True), slices)["web.default"][0] == "A 10.1.0.5"


def test_empty_service_can_be_ignored() -> None:
    options = RecordOptions(ZONE, ignore_empty_service=True)
    unready = piece(at("10.1.0.5", ready=False))
    external = service(type="ExternalName", external_name="example.com", cluster_ips=())
    assert published(service(), unready)
    assert published(service(), unready, options=options) == {}
    assert "web.default" in published(service(), piece(at("10.1.0.5")), options=options)
    assert "web.default" in published(service(publish_not_ready=True), unready, options=options)
    assert published(external, options=options) == {"web.default": ["CNAME example.com."]}


def test_noendpoints() -> None:
    options = RecordOptions(ZONE, endpoints=False, ignore_empty_service=True)
    slices = piece(at("10.1.0.5"))
    assert published(headless(), slices, options=options) == {}
    assert set(published(service(), slices, options=options)) == {"web.default", "_http._tcp.web.default"}
    assert list(records.derive(service(), [slices], options).pointers) == [rr.address("10.96.0.1")]


@pytest.mark.parametrize("text", ["example.com", "example.com.", "EXAMPLE.com"])
def test_external_name(text: str) -> None:
    what = service(type="ExternalName", external_name=text, cluster_ips=())
    assert published(what, piece(at("10.1.0.5"))) == {"web.default": ["CNAME example.com."]}
    assert records.derive(what, [piece(at("10.1.0.5"))], OPTIONS).pointers == {}


@pytest.mark.parametrize("text", ["", "1.2.3.4", "2001:db8::1", "a..b", "exa mple.com", ".", "x" * 64, "ab." * 90])
def test_external_name_that_is_no_domain_name_is_reported_and_not_published(text: str) -> None:
    warnings: list[str] = []
    what = service(type="ExternalName", external_name=text, cluster_ips=())
    assert records.derive(what, (), OPTIONS, warnings.append).names == {}
    assert len(warnings) == 1
    assert "default/web" in warnings[0]


@pytest.mark.parametrize(
    ("fields", "names_left"),
    [
        ({"name": "we.b"}, 0),
        ({"name": "web\N{KELVIN SIGN}"}, 0),
        ({"namespace": "-x"}, 0),
        ({"name": "x" * 64}, 0),
        ({"ports": (Port("ht tp", "TCP", 80),)}, 1),
        ({"ports": (Port("p" * 63, "TCP", 80),)}, 1),
        ({"ports": (Port("http", "T.P", 80),)}, 1),
        ({"ports": (Port("http", "TCP", 65536),)}, 1),
        ({"ports": (Port("http", "TCP", 0),)}, 1),
        ({"cluster_ips": ("10.96.0.300",)}, 0),
        ({"cluster_ips": ("10.96.0.1\0",)}, 0),
    ],
)
def test_what_is_no_label_is_reported_and_not_published(fields: dict[str, Any], names_left: int) -> None:
    warnings: list[str] = []
    assert len(records.derive(service(**fields), (), OPTIONS, warnings.append).names) == names_left
    assert len(warnings) == 1


def test_endpoint_whose_hostname_is_no_label_goes_by_its_address() -> None:
    warnings: list[str] = []
    found = records.derive(headless(), [piece(at("10.1.0.5", hostname="a.b"))], OPTIONS, warnings.append)
    assert "10-1-0-5.web.default" in table(found.names)
    assert "'a.b'" in warnings[0]


def test_endpoint_with_a_bad_address_is_reported_and_the_others_published() -> None:
    warnings: list[str] = []
    found = records.derive(headless(), [piece(at("10.1.0.5"), at("example"))], OPTIONS, warnings.append)
    assert table(found.names)["web.default"][0] == "A 10.1.0.5"
    assert len(warnings) == 1


def test_names_of_over_255_bytes_are_reported_and_not_published() -> None:
    zone = names.from_text(".".join(["z" * 60] * 3))
    warnings: list[str] = []
    found = records.derive(
        service(name="w" * 30, ports=(Port("p" * 40, "TCP", 1),)),
        [piece(at("10.1.0.5", hostname="h" * 60), service="w" * 30)],
        RecordOptions(zone),
        warnings.append,
    )
    assert [len(owner) <= 255 for owner in found.names] == [True]
    assert len(warnings) == 2
    assert records.derive(service(name="w" * 63), (), RecordOptions(zone), warnings.append).names == {}


def test_pointers() -> None:
    slices = [piece(at("10.1.0.5"), at("10.1.0.6", hostname="db"), at("10.1.0.6", hostname="db2"))]
    found = records.derive(service(cluster_ips=("10.96.0.1", "fd00::1")), slices, OPTIONS).pointers
    suffix = "web.default.svc.cluster.local."
    assert {rr.address_text(key): [names.to_text(target) for target in value] for key, value in found.items()} == {
        "10.96.0.1": [suffix],
        "fd00::1": [suffix],
        "10.1.0.5": [f"10-1-0-5.{suffix}"],
        "10.1.0.6": [f"db.{suffix}", f"db2.{suffix}"],
    }


@given(st.ip_addresses())
def test_reverse_owner(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert records.reverse_owner(address.packed) == dns.name.from_text(address.reverse_pointer).to_wire()


def test_zonal_records() -> None:
    options = RecordOptions(ZONE, zonal=True)
    slices = piece(at("172.0.0.1", zone="us-West-2a"), at("172.0.0.2", zone="us-west-2b"), at("fd00::3"))
    found = records.derive(headless(), [slices], options)
    assert {zone: lines(rrsets) for zone, rrsets in found.zonal.items()} == {
        "": [
            "A 172.0.0.1",
            "A 172.0.0.2",
            "AAAA fd00::3",
            "SRV 0 33 80 fd00--3.web.default.svc.cluster.local.",
            "SRV 0 33 80 172-0-0-1.web.default.svc.cluster.local.",
            "SRV 0 33 80 172-0-0-2.web.default.svc.cluster.local.",
        ],
        "us-west-2a": ["A 172.0.0.1", "SRV 0 100 80 172-0-0-1.web.default.svc.cluster.local."],
        "us-west-2b": ["A 172.0.0.2", "SRV 0 100 80 172-0-0-2.web.default.svc.cluster.local."],
    }
    assert found.zonal[""] == found.names[b"\x03web\x07default\x03svc" + ZONE]


def test_zonal_names_exist_only_for_headless_services_and_with_the_option() -> None:
    slices = [piece(at("172.0.0.1", zone="a"))]
    assert records.derive(headless(), [], RecordOptions(ZONE, zonal=True)).zonal == {"": ()}
    assert records.derive(service(), slices, RecordOptions(ZONE, zonal=True)).zonal == {}
    assert records.derive(headless(), slices, OPTIONS).zonal == {}


def test_pod_records_are_for_verified_and_running_pods() -> None:
    verified = RecordOptions(ZONE, pods="verified")
    pod = Pod("default", "web-1", ("1.2.3.4", "2001:DB8::5"))
    assert table(records.pod_records(pod, verified)) == {
        "1-2-3-4.default.pod.cluster.local.": ["A 1.2.3.4"],
        "2001-db8--5.default.pod.cluster.local.": ["AAAA 2001:db8::5"],
    }
    assert records.pod_records(pod, RecordOptions(ZONE, pods="insecure")) == {}
    assert records.pod_records(Pod("default", "web-1", ("1.2.3.4",), False), verified) == {}


def test_pod_with_a_bad_address_or_namespace_is_reported() -> None:
    warnings: list[str] = []
    verified = RecordOptions(ZONE, pods="verified")
    assert records.pod_records(Pod("default", "web-1", ("1.2.3",)), verified, warnings.append) == {}
    assert records.pod_records(Pod("de.fault", "web-1", ("1.2.3.4",)), verified, warnings.append) == {}
    assert len(warnings) == 2


@pytest.mark.parametrize(
    ("label", "address"),
    [
        (b"1-2-3-4", "1.2.3.4"),
        (b"2001-db8--1", "2001:db8::1"),
        (b"2001-DB8--1", "2001:db8::1"),
        (b"1--2-3", "1::2:3"),
        (b"--1", "::1"),
        (b"2001-db8--", "2001:db8::"),
        (b"1-2-3-4-5-6-7-8", "1:2:3:4:5:6:7:8"),
    ],
)
def test_pod_labels(label: bytes, address: str) -> None:
    assert kubernetes.pod_address(label) == rr.address(address)


@pytest.mark.parametrize("label", [b"", b"web", b"1-2-3", b"1-2-3-256", b"1.2.3.4", b"1-2-3-4\0", b"\xff", b"g--1"])
def test_what_is_no_pod_label(label: bytes) -> None:
    assert kubernetes.pod_address(label) is None


@given(st.binary(max_size=63))
def test_any_label_is_an_address_or_none(label: bytes) -> None:
    assert len(kubernetes.pod_address(label) or b"1234") in (4, 16)


def test_apex() -> None:
    found = records.apex(ZONE, 7, 30, ["10.96.0.10", "fd00::a"])
    assert table(found) == {
        "cluster.local.": [
            "SOA ns.dns.cluster.local. hostmaster.cluster.local. 7 7200 1800 86400 30",
            "NS ns.dns.cluster.local.",
        ],
        "ns.dns.cluster.local.": ["A 10.96.0.10", "AAAA fd00::a"],
        "dns-version.cluster.local.": ['TXT "1.1.0"'],
    }
    assert found[b"\x0bdns-version" + ZONE][0].ttl == 28800


@pytest.mark.parametrize("zone", ["10.in-addr.arpa.", "8.b.d.0.1.0.0.2.ip6.arpa."])
def test_reverse_zone_has_the_apex_without_the_schema(zone: str) -> None:
    found = table(records.apex(names.from_text(zone), 7, 5, ["10.96.0.10"]))
    assert set(found) == {zone, f"ns.dns.{zone}"}
    assert found[zone][1] == f"NS ns.dns.{zone}"


def test_names_without_records() -> None:
    disabled, verified = OPTIONS, RecordOptions(ZONE, pods="verified")
    warnings: list[str] = []
    assert [names.to_text(name) for name in records.structural_names(disabled)] == [
        "svc.cluster.local.",
        "pod.cluster.local.",
    ]
    assert [names.to_text(name) for name in records.namespace_names("Prod", disabled)] == ["prod.svc.cluster.local."]
    assert [names.to_text(name) for name in records.namespace_names("prod", verified)] == [
        "prod.svc.cluster.local.",
        "prod.pod.cluster.local.",
    ]
    assert records.namespace_names("a.b", verified, warnings.append) == ()
    assert len(warnings) == 1


labels = st.text("ab-._\u212a\0", max_size=5)
addresses = st.one_of(st.ip_addresses().map(str), labels)
ports = st.builds(Port, labels, st.sampled_from(["TCP", "UDP", ".", ""]), st.integers(-1, 65537))
endpoints = st.builds(
    Endpoint, st.lists(addresses, max_size=2).map(tuple), st.booleans(), labels, labels, labels, labels
)
subsets = st.builds(Subset, st.lists(ports, max_size=2).map(tuple), st.lists(endpoints, max_size=3).map(tuple))


@given(
    st.builds(
        Service,
        namespace=st.just("default"),
        name=st.one_of(st.just("web"), labels),
        type=st.sampled_from(["ClusterIP", "ExternalName"]),
        cluster_ips=st.lists(addresses, max_size=2).map(tuple),
        external_name=labels,
        ports=st.lists(ports, max_size=3).map(tuple),
        publish_not_ready=st.booleans(),
    ),
    st.booleans(),
    st.lists(
        st.builds(
            EndpointSlice, st.just("default"), labels, st.just("web"), subsets=st.lists(subsets, max_size=2).map(tuple)
        ),
        max_size=2,
    ),
)
def test_whatever_the_cluster_holds_the_records_are_sound(
    what: Service, no_ip: bool, slices: list[EndpointSlice]
) -> None:
    what = msgspec.structs.replace(what, headless=True, cluster_ips=()) if no_ip else what
    options = RecordOptions(ZONE, zonal=True, endpoint_pod_names=True)
    found = records.derive(what, slices, options)
    assert found == records.derive(what, slices[::-1], options)
    for owner, rrsets in found.names.items():
        assert dns.name.from_wire(owner, 0)[0].to_wire() == owner == owner.lower()
        assert len({rrset.type for rrset in rrsets}) == len(rrsets) > 0
        for rrset in rrsets:
            assert list(rrset.rdatas) == sorted(set(rrset.rdatas))
            assert lines((rrset,))
    for targets in found.pointers.values():
        assert all(target in found.names for target in targets)
