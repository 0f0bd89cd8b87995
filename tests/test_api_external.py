"""k8s_external with an API server: what changes there, and a store that an older kdns has left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dns.rcode
import pytest
from msgspec import structs

from kdns.cluster import objects
from kdns.cluster.objects import Service
from kdns.zone.changes import Changes
from kdns.zone.store import Store, Transaction
from tests.support import procs
from tests.support.apiserver import ApiServer
from tests.support.objects import Object, namespace, service
from tests.support.server import Server

PLAIN = """
.:$dns {
    bind 127.0.0.1
    ready $host:$ready
    kubernetes cluster.local {
        kubeconfig KUBECONFIG
    }
}
"""
OUTSIDE = PLAIN.removesuffix("}\n") + "    k8s_external example.org\n}\n"
WEB, INSIDE = "web.shop.example.org", "web.shop.svc.cluster.local"


def balanced(*ips: str) -> Object:
    return service("web", "shop") | {"status": {"loadBalancer": {"ingress": [{"ip": ip} for ip in ips]}}}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    with ApiServer(tmp_path / "api") as started:
        started.create(namespace("shop"), balanced("198.51.100.1"))
        yield started


def server(api: ApiServer, folder: Path, corefile: str) -> Server:
    kubeconfig = api.kubeconfig(folder / "kubeconfig")
    return Server(folder / "kdns", corefile=corefile.replace("KUBECONFIG", str(kubeconfig)))


def make_old(directory: Path) -> None:
    """What is kept becomes what a kdns kept that knew nothing of addresses outside of the cluster."""
    store = Store.open(directory, Changes.create(), pytest.fail)

    def action(txn: Transaction) -> None:
        (source,) = {zone.source for zone in txn.zones()}
        for key, data in list(txn.objects(source, "Service")):
            found = objects.unpack(data)
            assert isinstance(found, Service)
            txn.put_object(source, "Service", key, objects.pack(structs.replace(found, external=())))
        assert txn.get_meta(f"externals {source}")
        txn.delete_meta(f"externals {source}")

    store.write(action)
    store.close()


def test_what_a_load_balancer_gets_and_loses_is_answered(api: ApiServer, tmp_path: Path) -> None:
    with server(api, tmp_path, OUTSIDE) as kdns:
        assert kdns.texts(WEB) == ["198.51.100.1"]
        for ips in (["198.51.100.1", "198.51.100.2"], []):
            api.apply(balanced(*ips))
            procs.wait_until(lambda: kdns.texts(WEB) == ips, 5, f"{ips}", 0.01)  # noqa: B023
        assert kdns.query(WEB).rcode() == dns.rcode.NXDOMAIN


def test_a_store_from_before_is_completed_while_all_else_is_answered(api: ApiServer, tmp_path: Path) -> None:
    with server(api, tmp_path, PLAIN) as kdns:
        api.wait_watches(3)
        kdns.terminate()
        make_old(kdns.state_dir)
        api.down()
        kdns.write_corefile(OUTSIDE.replace("KUBECONFIG", str(tmp_path / "kubeconfig")))
        kdns.start()
        assert kdns.texts(INSIDE) == ["10.96.0.10"]
        assert kdns.query(f"gone.{INSIDE}").rcode() == dns.rcode.NXDOMAIN
        assert kdns.query(WEB).rcode() == dns.rcode.SERVFAIL
        api.forget_requests()
        api.up()
        procs.wait_until(lambda: kdns.texts(WEB) == ["198.51.100.1"], 15, "the addresses outside", 0.02)
        assert kdns.query(f"gone.{WEB}").rcode() == dns.rcode.NXDOMAIN
        assert {request.path.split("?")[0] for request in api.requests() if request.is_list} == {"/api/v1/services"}
