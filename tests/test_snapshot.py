"""`kdns.tools.snapshot`: the same cluster from manifests, a Kubernetes API and a state directory is the same view."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdns.cluster.connection import Access
from kdns.cluster.publisher import Settings
from kdns.cluster.records import RecordOptions
from kdns.errors import ApiError, KdnsError
from kdns.tools import snapshot
from kdns.tools.snapshot import View
from kdns.wire import names, rr
from kdns.zone.changes import Changes
from kdns.zone.store import DATA_FILE, Store
from tests.support import procs
from tests.support.apiserver import ApiServer
from tests.support.objects import (
    Object,
    endpoint,
    endpoint_slice,
    external_name,
    namespace,
    pod,
    service,
    service_import,
    write_list,
)
from tests.support.server import Server

ZONE = names.from_text("cluster.local.")
REVERSE = names.from_text("10.in-addr.arpa.")
SETTINGS = Settings((ZONE,), (REVERSE,), records=RecordOptions(names.ROOT, ttl=7, pods="verified"))
OBJECTS: list[Object] = [
    namespace("shop", {"team": "storefront"}),
    namespace("empty"),
    service("web", "shop", ips=("10.96.20.1", "fd00:96::1"), labels={"tier": "front"}),
    service("db", "shop", ips=()),
    endpoint_slice("db", [endpoint("10.1.0.1", hostname="db-0"), endpoint("10.1.0.2", ready=False)], "shop"),
    external_name("outside", "www.example.com", "shop"),
    external_name("alias", "db.shop.svc.cluster.local", "shop"),
    service("kube-dns", "kube-system", ips=("10.96.0.10",)),
    endpoint_slice("kube-dns", [endpoint("10.244.0.2")], "kube-system"),
    pod("web-1", "shop", "10.1.0.9"),
]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with ApiServer(tmp_path_factory.mktemp("api"), authenticate=True) as server:
        server.create(*OBJECTS)
        yield server


@pytest.fixture
def kubeconfig(api: ApiServer, tmp_path: Path) -> Iterator[Path]:
    yield api.kubeconfig(tmp_path / "kubeconfig")
    api.clear_faults()
    api.forbid()


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    return write_list(tmp_path / "cluster.json", OBJECTS)


def name(text: str) -> bytes:
    return names.from_text(f"{text}.cluster.local.")


def records(view: View, origin: bytes = ZONE) -> dict[str, list[str]]:
    """Owners and rdata in hexadecimal, without the SOA, whose serial is the time."""
    return {
        names.to_text(owner): [
            f"{rrset.ttl} {rrset.type} {rdata.hex()}"
            for rrset in rrsets
            if rrset.type != rr.SOA
            for rdata in rrset.rdatas
        ]
        for owner, rrsets in view.entries(origin)
    }


def answered(view: View, text: str, rtype: int = rr.A) -> tuple[int, list[str]]:
    """The rcode, and owners with types."""
    found = view.lookup(names.from_text(text), rtype)
    return found.rcode, [f"{names.to_text(owner)} {rr.type_text(rrset.type)}" for owner, rrset in found.answer]


def test_an_api_and_manifests_make_the_same_view(kubeconfig: Path, manifests: Path) -> None:
    with (
        snapshot.of_kubeconfig(kubeconfig, None, SETTINGS) as listed,
        snapshot.of_manifests([manifests], SETTINGS) as read,
    ):
        for origin in (ZONE, REVERSE):
            assert records(listed, origin) == records(read, origin)
        for kind in ("Service", "EndpointSlice", "Pod"):
            assert list(listed.objects(kind)) == list(read.objects(kind)) != []
        assert [item.name for item in listed.objects("Namespace")] == ["empty", "shop"]
        assert (listed.problems, listed.warnings) == ((), ()) == (read.problems, read.warnings)


def test_a_state_directory_is_the_same_view_while_kdns_runs_and_after_it(tmp_path: Path, manifests: Path) -> None:
    options = "pods verified\nttl 7\n"
    with Server(tmp_path / "kdns", OBJECTS, kubernetes=options) as server:
        with snapshot.of_state_dir(server.state_dir) as running:
            while_running = records(running)
            assert [names.to_text(zone.origin) for zone in running.zones()] == [
                "cluster.local.",
                "in-addr.arpa.",
                "ip6.arpa.",
            ]
            assert answered(running, "outside.shop.svc.cluster.local") == (
                rr.NOERROR,
                ["outside.shop.svc.cluster.local. CNAME"],
            )
            server.write_objects([])
            procs.wait_until(lambda: not server.texts("web.shop.svc.cluster.local"), 5, "the change")
            assert records(running) == while_running  # a view stays as it is
        server.write_objects(OBJECTS)
        procs.wait_until(lambda: bool(server.texts("web.shop.svc.cluster.local")), 5, "the change back")
        server.terminate()
    with snapshot.of_state_dir(server.state_dir) as stopped, snapshot.of_manifests([manifests], SETTINGS) as read:
        assert records(stopped) == while_running
        del while_running["ns.dns.cluster.local."]  # the server's own addresses
        assert while_running == {key: value for key, value in records(read).items() if not key.startswith("ns.dns")}
        assert list(stopped.objects("Service")) == list(read.objects("Service"))


def test_a_lookup_answers_as_the_server_does(manifests: Path) -> None:
    with snapshot.of_manifests([manifests], SETTINGS) as view:
        assert answered(view, "web.shop.svc.cluster.local", rr.AAAA)[1] == ["web.shop.svc.cluster.local. AAAA"]
        assert answered(view, "WEB.shop.SVC.cluster.local")[1] == ["web.shop.svc.cluster.local. A"]
        assert answered(view, "alias.shop.svc.cluster.local")[1] == [
            "alias.shop.svc.cluster.local. CNAME",
            "db.shop.svc.cluster.local. A",
        ]
        assert answered(view, "gone.shop.svc.cluster.local") == (rr.NXDOMAIN, [])
        assert answered(view, "shop.svc.cluster.local") == (rr.NOERROR, [])
        assert answered(view, "10-1-0-9.shop.pod.cluster.local")[1] != []
        assert answered(view, "1.0.1.10.in-addr.arpa", rr.PTR)[1] == ["1.0.1.10.in-addr.arpa. PTR"]
        found = view.lookup(name("outside.shop.svc"), rr.A)
        assert found.leaves == names.from_text("www.example.com.")
        assert view.lookup(names.from_text("www.example.com."), rr.A).zone is None


def test_pods_that_nobody_listed_have_their_names_where_they_are_insecure(manifests: Path) -> None:
    settings = Settings((ZONE,), records=RecordOptions(names.ROOT, ttl=9, pods="insecure"))
    with snapshot.of_manifests([manifests], settings) as view:
        ((_, rrset),) = view.lookup(name("10-9-9-9.shop.pod"), rr.A).answer
        assert (rrset.ttl, rrset.rdatas) == (9, (bytes((10, 9, 9, 9)),))
        assert answered(view, "10-9-9-9.nowhere.pod.cluster.local") == (rr.NXDOMAIN, [])


def test_a_zone_that_is_not_complete_denies_nothing(tmp_path: Path) -> None:
    store = Store.open(tmp_path, Changes.create(), pytest.fail)
    store.write(lambda txn: txn.put(txn.add_zone("test", ZONE), name("one"), ()))
    store.close()
    with snapshot.of_state_dir(tmp_path) as view:
        found = view.lookup(name("two"), rr.A)
    assert found.rcode == rr.SERVFAIL
    assert "not been read yet" in found.error


def test_imports_are_listed_where_a_zone_has_them(tmp_path: Path) -> None:
    settings = Settings(
        (ZONE, names.from_text("clusterset.local.")), multicluster=(names.from_text("clusterset.local."),)
    )
    with ApiServer(tmp_path / "api", tls=False) as api:
        config = api.kubeconfig(tmp_path / "config", "none")
        with snapshot.of_kubeconfig(config, None, settings) as view:
            assert list(view.objects("ServiceImport")) == []
        api.install()
        api.create(service_import("shared", "shop", ips=("10.112.0.1",)))
        with snapshot.of_kubeconfig(config, None, settings) as view:
            assert answered(view, "shared.shop.svc.clusterset.local") == (
                rr.NOERROR,
                ["shared.shop.svc.clusterset.local. A"],
            )


# What an API refuses


def refused(path: Path, *, seconds: float = 10.0, settings: Settings = SETTINGS) -> ApiError:
    """What `of_kubeconfig` raises."""
    with (
        pytest.raises(ApiError) as caught,
        snapshot.of_kubeconfig(path, None, settings, seconds=seconds),
    ):
        pytest.fail("there is no view")
    return caught.value


def test_everything_that_is_forbidden_is_told(api: ApiServer, kubeconfig: Path) -> None:
    api.forbid("/services", "/pods")
    error = refused(kubeconfig)
    assert error.reason == "forbidden"
    services, pods = str(error).splitlines()
    assert services.startswith(f'kubeconfig {kubeconfig}: list of services in API group "" is not allowed: ')
    assert pods.startswith(f'kubeconfig {kubeconfig}: list of pods in API group "" is not allowed: ')


def test_a_kind_that_is_not_used_needs_no_permission(api: ApiServer, kubeconfig: Path) -> None:
    api.forbid("/pods")
    with snapshot.of_kubeconfig(kubeconfig, None, Settings((ZONE,))) as view:
        assert len(list(view.objects("Service"))) == 5


def test_nothing_is_watched(api: ApiServer, kubeconfig: Path) -> None:
    api.forget_requests()
    with snapshot.of_kubeconfig(kubeconfig, None, SETTINGS):
        pass
    assert {record.kind for record in api.requests()} == {"list"}
    assert len(api.requests()) == 4


def test_credentials_that_are_not_accepted_are_told_once(api: ApiServer, tmp_path: Path) -> None:
    error = refused(api.kubeconfig(tmp_path / "config", "none"))
    assert (error.reason, str(error)) == (
        "unauthorized",
        f"kubeconfig {tmp_path / 'config'}: status 401: Unauthorized",
    )


def test_a_server_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with ApiServer(tmp_path / "api") as api:
        config = api.kubeconfig(tmp_path / "config")
        host = api.url.removeprefix("https://")
    start = time.monotonic()
    error = refused(config)
    assert str(error) == f"kubeconfig {config}: {host}: Connection refused"
    assert time.monotonic() - start < 5


def test_a_server_that_fails_for_a_moment_is_asked_again(api: ApiServer, kubeconfig: Path) -> None:
    api.fault(path="/services", status=503)
    api.fault(path="/endpointslices", cut=200, then="rst")
    with snapshot.of_kubeconfig(kubeconfig, None, SETTINGS) as view:
        assert len(list(view.objects("Service"))) == 5
        assert len(list(view.objects("EndpointSlice"))) == 2


@pytest.mark.parametrize("fault", [{"then": "silent"}, {"status": 500, "body": "not today"}])
def test_a_server_that_does_not_answer_has_so_much_time_and_no_more(
    api: ApiServer, kubeconfig: Path, fault: dict[str, object]
) -> None:
    api.fault(path="/services", times=100, **fault)  # type: ignore[arg-type]
    start = time.monotonic()
    error = refused(kubeconfig, seconds=0.7)
    assert 0.6 < time.monotonic() - start < 3
    assert str(error).startswith(f"kubeconfig {kubeconfig}: Service: ")
    assert ("not today" if "body" in fault else " within 0.7") in str(error)


def test_no_thread_is_left_behind(api: ApiServer, kubeconfig: Path) -> None:
    api.fault(path="/services", times=100, then="silent")
    refused(kubeconfig, seconds=0.3)
    for thread in threading.enumerate():
        if thread.name.startswith("watch "):
            thread.join(5)
            assert not thread.is_alive()


def test_an_object_that_cannot_be_read_is_a_problem_and_the_rest_is_there(tmp_path: Path) -> None:
    with ApiServer(tmp_path / "api", tls=False) as api:
        api.create(service("web", "shop"))
        broken = service("bad", "shop")
        broken["spec"]["ports"] = [{"port": "eighty"}]
        api.create(broken)
        with snapshot.of_kubeconfig(api.kubeconfig(tmp_path / "config", "none"), None, Settings((ZONE,))) as view:
            (problem,) = view.problems
            assert problem.startswith("Service shop/bad: $.spec.ports[0].port: ")
            assert problem.endswith("; left out")
            assert answered(view, "web.shop.svc.cluster.local")[1] == ["web.shop.svc.cluster.local. A"]


def test_without_a_path_the_kubeconfig_is_the_one_that_kubectl_takes(
    api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    error = refused_by_default()
    assert str(error).startswith(f"kubeconfig {tmp_path}/.kube/config: No such file")
    (tmp_path / ".kube").mkdir()
    api.kubeconfig(tmp_path / ".kube" / "config")
    with snapshot.of_kubeconfig(None, None, SETTINGS) as view:
        assert len(list(view.objects("Service"))) == 5
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "one"))
    assert str(refused_by_default()).startswith(f"kubeconfig {tmp_path}/one: No such file")
    monkeypatch.setenv("KUBECONFIG", "one:two")
    assert "names several files: one:two" in str(refused_by_default())


def test_in_a_pod_it_is_the_cluster_that_it_runs_in(
    api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in api.service_account(tmp_path / "account").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    assert str(refused_by_default()).startswith("token of the service account /var/run/secrets/kubernetes.io/")
    token, authority = (str(tmp_path / "account" / name) for name in ("token", "ca.crt"))
    with snapshot.of_api(Access(token_file=token, ca_file=authority), SETTINGS) as view:
        assert len(list(view.objects("Service"))) == 5


def test_pods_are_selected_as_the_server_selects_them(api: ApiServer, tmp_path: Path) -> None:
    config = str(api.kubeconfig(tmp_path / "config"))
    with snapshot.of_api(Access(kubeconfig=config), SETTINGS, pod_labels="app=none") as view:
        assert list(view.objects("Pod")) == []
        assert len(list(view.objects("Service"))) == 5


def refused_by_default() -> ApiError:
    with pytest.raises(ApiError) as caught, snapshot.of_kubeconfig(None, None, SETTINGS):
        pytest.fail("there is no view")
    return caught.value


# State directories that cannot be read


def test_a_damaged_store_is_told_and_not_read(tmp_path: Path) -> None:
    store = Store.open(tmp_path, Changes.create(), pytest.fail)
    for number in range(200):
        store.write(lambda txn, number=number: txn.put(txn.add_zone("test", ZONE), name(f"n{number}"), ()))  # type: ignore[misc]
    store.close()
    data = (tmp_path / DATA_FILE).read_bytes()
    (tmp_path / DATA_FILE).write_bytes(data[:8192] + b"\xff" * (len(data) - 8192))
    with pytest.raises(KdnsError, match="is damaged"), snapshot.of_state_dir(tmp_path):
        pytest.fail("there is no view")


def test_a_file_that_is_no_store_is_an_error(tmp_path: Path) -> None:
    (tmp_path / DATA_FILE).write_text("x" * 10000)
    with pytest.raises(KdnsError, match=str(tmp_path / DATA_FILE)), snapshot.of_state_dir(tmp_path):
        pytest.fail("there is no view")


def test_errors_of_whoever_looks_are_their_own(manifests: Path) -> None:
    with contextlib.suppress(BrokenPipeError), snapshot.of_manifests([manifests], SETTINGS):
        raise BrokenPipeError


# kdns records


def kdns(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kdns", "records", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_records_of_an_api_are_those_of_the_same_objects_in_files(kubeconfig: Path, manifests: Path) -> None:
    listed = kdns("--kubeconfig", kubeconfig, "--pods", "verified", "--ttl", "7", "svc.cluster.local")
    read = kdns("--manifests", manifests, "--pods", "verified", "--ttl", "7", "svc.cluster.local")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert listed.stdout == read.stdout
    assert "10.96.20.1" in listed.stdout
    rows = json.loads(
        kdns("--kubeconfig", kubeconfig, "--context", "test", "--json", "web.shop.svc.cluster.local").stdout
    )
    assert {row["data"] for row in rows if row["type"] in ("A", "AAAA")} == {"10.96.20.1", "fd00:96::1"}


def test_records_of_an_api_that_refuses_are_none(api: ApiServer, kubeconfig: Path) -> None:
    api.forbid("/endpointslices")
    done = kdns("--kubeconfig", kubeconfig)
    assert (done.returncode, done.stdout) == (1, "")
    assert 'list of endpointslices in API group "discovery.k8s.io" is not allowed' in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--kubeconfig", "x", "--manifests", "y"],
        ["--context", "x", "--state-dir", "y"],
    ],
)
def test_one_source_is_accepted(arguments: list[str]) -> None:
    done = kdns(*arguments)
    assert done.returncode == 2
    assert "give one of" in done.stderr
