"""What changes of the code got past all other tests."""

from __future__ import annotations

import pytest

from kdns.cluster import records
from kdns.cluster.objects import Endpoint, EndpointSlice, Port, Service, Subset
from kdns.cluster.records import RecordOptions
from kdns.wire import names, rr
from kdns.wire.names import Zones
from tests.conftest import Serve
from tests.support import procs
from tests.support.objects import endpoint, endpoint_slice, namespace, service

CLUSTER = names.from_text("cluster.local")


def test_a_label_that_holds_the_bytes_of_a_zone_is_not_below_it() -> None:
    inside = b"a" + CLUSTER[:-1]
    name = bytes((len(inside),)) + inside + names.ROOT
    assert name.endswith(CLUSTER)
    assert not names.is_subdomain(name, CLUSTER)
    assert Zones({CLUSTER: "cluster"}).find(name) is None
    assert Zones({CLUSTER: "cluster", names.ROOT: "root"}).find(name) == "root"


@pytest.mark.parametrize("port", [0, 0x10000])
def test_a_port_out_of_range_is_not_in_the_srv_records_of_a_topology_zone(port: int) -> None:
    web = Service("default", "web", headless=True)
    ports = (Port("http", "TCP", 80), Port("bad", "TCP", port))
    piece = EndpointSlice("default", "web-1", "web", subsets=(Subset(ports, (Endpoint(("10.0.0.1",), zone="a"),)),))
    found = records.derive(web, [piece], RecordOptions(CLUSTER, zonal=True)).zonal
    for zone in ("", "a"):
        (srv,) = [rrset for rrset in found[zone] if rrset.type == rr.SRV]
        assert [rdata[4:6] for rdata in srv.rdatas] == [b"\0\x50"]


def test_cached_answers_of_topology_zones_follow_their_endpoints(serve: Serve) -> None:
    def cluster(*zones: str) -> list[dict[str, object]]:
        endpoints = [endpoint(f"10.1.0.{number}", zone=zone) for number, zone in enumerate(zones, 1)]
        return [service("db", ips=()), endpoint_slice("db", endpoints)] if zones else [namespace("default")]

    server = serve(cluster("a", "b"), kubernetes="zonal", workers=1)
    below = "_zone.db.default.svc.cluster.local"

    def told() -> dict[str, list[str]]:
        return {name: sorted(server.texts(f"{name}.{below}")) for name in ("a.pin", "c.pin", "a.prefer", "c.prefer")}

    first = {"a.pin": ["10.1.0.1"], "c.pin": [], "a.prefer": ["10.1.0.1"], "c.prefer": ["10.1.0.1", "10.1.0.2"]}
    moved = {"a.pin": [], "c.pin": ["10.1.0.1"], "a.prefer": ["10.1.0.1", "10.1.0.2"], "c.prefer": ["10.1.0.1"]}
    for _ in range(3):
        assert told() == first
    server.write_objects(cluster("c", "b"))
    procs.wait_until(lambda: told() == moved, 3, "the endpoint in its new zone")
    for _ in range(3):
        assert told() == moved
    server.write_objects(cluster())
    procs.wait_until(lambda: not any(told().values()), 3, "no endpoints")


def test_a_cached_soa_shows_the_serial_of_every_change(serve: Serve) -> None:
    server = serve([service("web", ips=["10.96.0.1"])], workers=1)

    def serial() -> int:
        (text,) = server.texts("cluster.local", "SOA")
        return int(text.split()[2])

    before = [serial() for _ in range(3)]
    assert len(set(before)) == 1
    server.write_objects([service("web", ips=["10.96.0.2"])])
    procs.wait_until(lambda: server.texts("web.default.svc.cluster.local") == ["10.96.0.2"], 3, "the change")
    assert serial() > before[0]
