"""Starts, reloads and outages: what is known is answered, what is not known is never denied."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.message
import dns.rcode
import pytest

from kdns.server import batch
from tests.conftest import Record
from tests.support import procs
from tests.support.apiserver import ApiServer
from tests.support.objects import Object, endpoint, endpoint_slice, namespace, service
from tests.support.pacer import Pacer
from tests.support.server import API_COREFILE, Reply, Server, read_message

WHOAMI = "example.org:$dns {\n    bind $addresses\n    whoami\n}\n"
COREFILE = API_COREFILE + WHOAMI
IMPATIENT = """
from kdns.cli import app
from kdns.server import cluster_feed, supervisor
cluster_feed.IDENTITY_SECONDS = 0.3
supervisor.LOAD_SECONDS = 1.5
app(prog_name="kdns")
"""
"""`kdns` that tries a configuration that cannot be used again after 0.3 s (for users 5 s), and gives up a reload whose
API server cannot be read after 1.5 s (30 s)."""
WEB, DATABASE, ABSENT = (f"{name}.svc.cluster.local" for name in ("web.a", "database.b", "absent.a"))
PROGRAMMING = "coredns_kubernetes_dns_programming_duration_seconds"
REST = "coredns_kubernetes_rest_client"
AT_ONCE = 3.0
"""Seconds for what happens without waiting for anything, on a busy machine."""


def cluster() -> list[Object]:
    return [
        namespace("a"),
        namespace("b"),
        service("web", "a", ips=["10.96.0.1"]),
        service("old", "a", ips=["10.96.0.3"]),
        service("database", "b", ips=["10.96.0.2"]),
    ]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    with ApiServer(tmp_path / "api") as started:
        started.load(cluster())
        yield started


@pytest.fixture
def kubeconfig(api: ApiServer, tmp_path: Path) -> str:
    """The line that says where the API server is."""
    return f"kubeconfig {api.kubeconfig(tmp_path / 'kubeconfig')}"


@contextlib.contextmanager
def started(server: Server) -> Iterator[Server]:
    """A server that is not waited for."""
    try:
        yield server.start(wait=False)
    finally:
        server.kill()


def answer(server: Server, name: str, timeout: float = 0.3) -> str | list[str] | None:
    """Addresses, the response code if it is not NOERROR, or None for no answer."""
    data = server.raw_udp(dns.message.make_query(name, "A").to_wire(), timeout)
    if data is None:
        return None
    message = dns.message.from_wire(data)
    if message.rcode():
        return dns.rcode.to_text(message.rcode())
    return sorted(str(rdata) for rrset in message.answer for rdata in rrset)


def wait_answer(server: Server, name: str, expected: str | list[str], seconds: float = 3 * AT_ONCE) -> float:
    return procs.wait_until(lambda: answer(server, name) == expected, seconds, f"{name}: {expected}")


def wait_status(ask: Callable[[], Reply], status: int) -> float:
    return procs.wait_until(lambda: ask().status == status, 3 * AT_ONCE, f"status {status}")


def ttls(server: Server) -> set[int]:
    return {rrset.ttl for rrset in server.query(WEB).answer}


def lists(api: ApiServer) -> list[str]:
    return [request.path.rpartition("/")[2] for request in api.requests() if request.is_list]


# Starts without a snapshot


def test_a_start_waits_for_the_api_server_but_not_for_ever(api: ApiServer, kubeconfig: str, tmp_path: Path) -> None:
    api.down()
    lines = f"{kubeconfig}\n        startup_timeout 1500ms"
    begin = time.monotonic()
    with started(Server(tmp_path / "kdns", corefile=COREFILE, kubernetes=lines, workers=2)) as server:
        wait_status(server.health, 200)
        assert server.ready().status == 503
        assert answer(server, WEB, 0.1) is None
        assert answer(server, "example.org", 0.1) is None
        assert time.monotonic() - begin < 1.5, "too slow to tell"
        wait_answer(server, "example.org", [])
        assert time.monotonic() - begin > 1.5
        for _ in range(10):
            assert answer(server, WEB) == answer(server, ABSENT) == "SERVFAIL"
        assert server.ready().status == 503
        assert server.health().status == 200
        assert "waiting for the Kubernetes API" in server.log
        assert "SERVFAIL until it is read" in server.log
        api.up()
        wait_answer(server, WEB, ["10.96.0.1"])
        assert answer(server, ABSENT) == "NXDOMAIN"
        wait_status(server.ready, 200)
        server.terminate()


def test_a_start_with_an_api_server_waits_no_longer_than_it_has_to(
    api: ApiServer, kubeconfig: str, tmp_path: Path, record: Record
) -> None:
    lines = f"{kubeconfig}\n        startup_timeout 30s"
    begin = time.monotonic()
    with Server(tmp_path / "kdns", corefile=COREFILE, kubernetes=lines) as server:
        record("ready_ms", round((time.monotonic() - begin) * 1000))
        assert time.monotonic() - begin < 3 * AT_ONCE
        assert answer(server, WEB) == ["10.96.0.1"]
        assert answer(server, ABSENT) == "NXDOMAIN"
        assert sorted(lists(api)) == ["endpointslices", "namespaces", "services"]


def test_queries_that_come_while_the_start_waits_are_answered_when_it_is_over(
    api: ApiServer, kubeconfig: str, tmp_path: Path
) -> None:
    api.down()
    query = dns.message.make_query(WEB, "A").to_wire()
    lines = f"{kubeconfig}\n        startup_timeout 30s"
    with (
        started(Server(tmp_path / "kdns", corefile=COREFILE, kubernetes=lines, workers=2)) as server,
        contextlib.ExitStack() as stack,
    ):
        wait_status(server.health, 200)
        datagrams = [stack.enter_context(server.udp_socket()) for _ in range(50)]
        for sock in datagrams:
            sock.settimeout(5)
            sock.send(query)
        stream = stack.enter_context(server.tcp_socket(timeout=5))
        stream.sendall(struct.pack("!H", len(query)) + query)
        time.sleep(0.3)
        api.up()
        answers = [read_message(stream), *(sock.recv(4096) for sock in datagrams)]
        for data in answers:
            assert data is not None
            message = dns.message.from_wire(data)
            assert [str(rdata) for rrset in message.answer for rdata in rrset] == ["10.96.0.1"]


def test_sigterm_ends_a_start_that_waits(api: ApiServer, kubeconfig: str, tmp_path: Path, record: Record) -> None:
    api.down()
    lines = f"{kubeconfig}\n        startup_timeout 60s"
    with started(Server(tmp_path / "kdns", corefile=COREFILE, kubernetes=lines)) as server:
        wait_status(server.health, 200)
        took = server.terminate()
        record("seconds", round(took, 2))
        assert took < 3 * AT_ONCE


def test_outside_of_a_cluster_the_directive_has_to_say_where_the_api_server_is(tmp_path: Path) -> None:
    environ = {"KUBERNETES_SERVICE_HOST": "", "KUBERNETES_SERVICE_PORT": ""}
    server = Server(tmp_path, corefile=COREFILE, environ=environ)
    try:
        code, said = server.run()
    finally:
        server.kill()
    assert code == 1
    assert re.search(r"Corefile:\d+: kubernetes: .*KUBERNETES_SERVICE_HOST.*accepted: kubeconfig FILE", said), said
    assert "Traceback" not in said


@pytest.mark.parametrize("content", [None, "this: [is no", "apiVersion: v1\nkind: Config\n"])
def test_a_kubeconfig_that_cannot_be_used_is_told_and_tried_again(
    api: ApiServer, tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "kubeconfig"
    if content is not None:
        path.write_text(content)
    lines = f"kubeconfig {path}\n        startup_timeout 300ms"
    with started(Server(tmp_path / "kdns", corefile=COREFILE, kubernetes=lines, program=IMPATIENT)) as server:
        wait_answer(server, WEB, "SERVFAIL")
        assert answer(server, "example.org") == []
        line = rf"\[ERROR\] plugin/kubernetes: kubernetes cluster.local. .*: kubeconfig {path}.*; accepted: "
        procs.wait_until(lambda: re.search(line, server.log) is not None, AT_ONCE, "the error's line")
        assert server.metrics().value("kdns_kubernetes_watch_errors_total", reason="configuration") >= 1
        api.kubeconfig(path)
        wait_answer(server, WEB, ["10.96.0.1"])
        wait_status(server.ready, 200)
        assert server.log.count("[ERROR] plugin/kubernetes") == 1


# Starts with a snapshot, and no API server


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ApiServer, Server]]:
    """An API server, and a kdns that followed it for namespace `a` only, with what it left behind in `state.saved`."""
    folder = tmp_path_factory.mktemp("snapshot")
    with ApiServer(folder / "api") as api:
        api.load(cluster())
        server = Server(folder / "kdns", corefile=COREFILE, environ={"CONFIG": str(api.kubeconfig(folder / "config"))})
        server.write_corefile(kubernetes="kubeconfig {$CONFIG}\n        namespaces a")
        with server:
            server.terminate()
            shutil.copytree(server.state_dir, folder / "kdns/state.saved")
            yield api, server


@pytest.fixture
def outage(snapshot: tuple[ApiServer, Server]) -> Iterator[tuple[ApiServer, Callable[..., Server]]]:
    """An API server that is down, and what starts the kdns with further lines in its directive."""
    api, server = snapshot
    api.up()
    api.down()
    api.forget_requests()
    shutil.rmtree(server.state_dir)
    shutil.copytree(server.folder / "state.saved", server.state_dir)

    def start(*lines: str) -> Server:
        text = "\n        ".join(("kubeconfig {$CONFIG}", "startup_timeout 300ms", *lines))
        server.write_corefile(kubernetes=text)
        return server.start(wait=False)

    yield api, start
    server.kill()


Outage = tuple[ApiServer, Callable[..., Server]]


def test_a_snapshot_that_is_young_enough_is_served(outage: Outage) -> None:
    _, start = outage
    server = start("namespaces a", "snapshot_max_age 1h")
    wait_answer(server, WEB, ["10.96.0.1"])
    assert answer(server, ABSENT) == "NXDOMAIN"
    wait_status(server.ready, 200)
    assert "data of " in server.ready().body
    time.sleep(0.5)
    assert answer(server, WEB) == ["10.96.0.1"]


def test_a_snapshot_that_is_too_old_is_not_served_until_the_api_server_is_back(outage: Outage) -> None:
    api, start = outage
    time.sleep(0.2)
    server = start("namespaces a", "snapshot_max_age 100ms")
    statuses, answers = set(), list[object]()

    def expired() -> bool:
        answers.append(answer(server, WEB))
        statuses.add(server.ready().status)
        return answers[-1] == "SERVFAIL" and 503 in statuses

    procs.wait_until(expired, 3 * AT_ONCE, "the end of the old data")
    assert 200 not in statuses
    assert ["10.96.0.1"] not in answers
    assert answer(server, ABSENT) == "SERVFAIL"
    assert answer(server, "example.org") == []
    assert server.log.count("[WARNING] plugin/kubernetes: its data is older than snapshot_max_age") == 1
    api.up()
    wait_answer(server, WEB, ["10.96.0.1"])
    assert answer(server, ABSENT) == "NXDOMAIN"
    wait_status(server.ready, 200)


def test_a_reload_is_no_restart_and_nothing_expires_by_it(outage: Outage) -> None:
    api, start = outage
    api.up()
    server = start("namespaces a", "snapshot_max_age 100ms")
    wait_answer(server, WEB, ["10.96.0.1"], AT_ONCE)
    wait_status(server.ready, 200)
    api.down()
    time.sleep(0.3)
    lines = ("kubeconfig {$CONFIG}", "namespaces a", "snapshot_max_age 100ms", "ttl 77")
    server.write_corefile(kubernetes="\n        ".join(lines))
    with Pacer(server.port, [(WEB, "A")], rate=2000) as pacer:
        server.signal(signal.SIGHUP)
        procs.wait_until(lambda: ttls(server) == {77}, AT_ONCE, "the new configuration")
        time.sleep(0.5)
        summary = pacer.finish()
    assert not summary.lost
    assert set(summary.rcodes) == {"0"}
    assert ttls(server) == {77}


def test_a_snapshot_expires_while_it_is_served(outage: Outage) -> None:
    api, start = outage
    api.up()
    begin = time.monotonic()  # the data cannot be older
    server = start("namespaces a")
    api.wait_watches(3)
    api.update(service("web", "a", ips=["10.96.0.5"]))
    wait_answer(server, WEB, ["10.96.0.5"])
    procs.wait_until(lambda: server.metrics().value("kdns_kubernetes_data_age_seconds") == 0, 3, "current data")
    time.sleep(1.2)  # the store is told so at the next look, a second later at most
    server.kill()
    api.down()
    api.update(service("web", "a", ips=["10.96.0.1"]))
    server = start("namespaces a", "snapshot_max_age 5s")
    wait_answer(server, WEB, ["10.96.0.5"])
    wait_answer(server, WEB, "SERVFAIL", 5 + AT_ONCE)
    assert time.monotonic() - begin > 5
    api.up()
    wait_answer(server, WEB, ["10.96.0.1"])


def test_a_snapshot_that_was_too_old_is_served_again_when_the_limit_is_lifted(outage: Outage) -> None:
    _, start = outage
    time.sleep(0.2)
    server = start("namespaces a", "snapshot_max_age 100ms")
    wait_answer(server, WEB, "SERVFAIL")
    server.kill()
    server = start("namespaces a")
    wait_answer(server, WEB, ["10.96.0.1"])
    assert answer(server, ABSENT) == "NXDOMAIN"


def test_a_changed_option_holds_for_the_snapshot(outage: Outage) -> None:
    _, start = outage
    server = start("namespaces a", "ttl 77")
    wait_answer(server, WEB, ["10.96.0.1"])
    assert ttls(server) == {77}


def test_of_a_namespace_that_the_snapshot_does_not_have_nothing_is_denied(outage: Outage) -> None:
    api, start = outage
    server = start("namespaces a b")
    wait_answer(server, WEB, ["10.96.0.1"])
    for name in (DATABASE, ABSENT, "absent.b.svc.cluster.local", "b.svc.cluster.local"):
        assert answer(server, name) == "SERVFAIL"
    assert server.ready().status == 503
    api.up()
    wait_answer(server, DATABASE, ["10.96.0.2"], 2 + AT_ONCE)
    assert answer(server, WEB) == ["10.96.0.1"]
    assert answer(server, ABSENT) == "NXDOMAIN"
    wait_status(server.ready, 200)


def test_without_an_option_that_hid_names_nothing_is_denied(outage: Outage) -> None:
    _, start = outage
    server = start()
    wait_answer(server, WEB, ["10.96.0.1"])
    assert answer(server, DATABASE) == answer(server, ABSENT) == "SERVFAIL"


def test_another_cluster_behind_the_kubeconfig_takes_over_without_a_blink(
    outage: Outage, snapshot: tuple[ApiServer, Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, start = outage
    _, server = snapshot
    with ApiServer(tmp_path / "other") as other:
        other.load([namespace("a"), service("web", "a", ips=["10.96.0.1"]), service("new", "a", ips=["10.96.0.9"])])
        other.down()
        monkeypatch.setitem(server.environ, "CONFIG", str(other.kubeconfig(tmp_path / "config")))
        start("namespaces a")
        wait_answer(server, WEB, ["10.96.0.1"])
        assert answer(server, "old.a.svc.cluster.local") == ["10.96.0.3"]
        with Pacer(server.port, [(WEB, "A"), ("a.svc.cluster.local", "A")], rate=2000) as pacer:
            time.sleep(0.3)
            other.up()
            wait_answer(server, "new.a.svc.cluster.local", ["10.96.0.9"], 2 + AT_ONCE)
            assert answer(server, "old.a.svc.cluster.local") == "NXDOMAIN"
            other.wait_watches(3)
            time.sleep(0.2)
            summary = pacer.finish()
        assert not summary.lost
        assert set(summary.rcodes) == {"0"}
        assert summary.variants[0] == 1
        assert sorted(lists(other)) == ["endpointslices", "namespaces", "services"]


def test_another_cluster_behind_the_kubeconfig_takes_over_while_kdns_runs(tmp_path: Path) -> None:
    config = tmp_path / "config"
    with ApiServer(tmp_path / "first") as first, ApiServer(tmp_path / "other") as other:
        first.load(cluster())
        first.kubeconfig(config)
        other.load([namespace("a"), service("web", "a", ips=["10.96.0.1"]), service("new", "a", ips=["10.96.0.9"])])
        with Server(
            tmp_path / "kdns", corefile=COREFILE, kubernetes=f"kubeconfig {config}", program=IMPATIENT
        ) as server:
            first.wait_watches(3)
            with Pacer(server.port, [(WEB, "A"), ("a.svc.cluster.local", "A")], rate=2000) as pacer:
                other.kubeconfig(config)
                first.set_tokens({})
                first.break_connections()
                wait_answer(server, "new.a.svc.cluster.local", ["10.96.0.9"], 15 + AT_ONCE)
                wait_answer(server, "old.a.svc.cluster.local", "NXDOMAIN")
                summary = pacer.finish()
        assert not summary.lost
        assert set(summary.rcodes) == {"0"}
        assert summary.variants[0] == 1
        assert sorted(lists(other)) == ["endpointslices", "namespaces", "services"]


# Reloads


TWO_ZONES = (
    COREFILE
    + """other.test:$dns {
    bind $addresses
    kubernetes {
        kubeconfig $other
    }
}
"""
)


def test_a_reload_to_an_api_server_that_cannot_be_read_leaves_all_as_it_was(
    api: ApiServer, kubeconfig: str, tmp_path: Path
) -> None:
    with (
        ApiServer(tmp_path / "other") as other,
        Server(tmp_path / "kdns", corefile=COREFILE, kubernetes=kubeconfig, program=IMPATIENT) as server,
        Pacer(server.port, [(WEB, "A"), (DATABASE, "A"), ("example.org", "A")], rate=2000) as pacer,
    ):
        other.load([namespace("a"), service("new", "a", ips=["10.98.0.9"])])
        other.down()
        text = TWO_ZONES.replace("$other", str(other.kubeconfig(tmp_path / "config")))
        server.write_corefile(text)
        server.signal(signal.SIGHUP)
        refused = "the source of kubernetes other.test. could not be read in 1.5 s"
        procs.wait_until(lambda: refused in server.log, 1.5 + AT_ONCE, "a word about it")
        assert server.metrics().value("coredns_reload_failed_total") == 1
        assert answer(server, "new.a.svc.other.test") != ["10.98.0.9"]
        api.create(service("later", "a", ips=["10.96.0.4"]))
        wait_answer(server, "later.a.svc.cluster.local", ["10.96.0.4"])
        other.up()
        server.signal(signal.SIGHUP)
        wait_answer(server, "new.a.svc.other.test", ["10.98.0.9"], 1.5 + AT_ONCE)
        assert answer(server, WEB) == ["10.96.0.1"]
        assert len(lists(api)) == 3
        summary = pacer.finish()
        server.terminate()
    assert not summary.lost
    assert set(summary.rcodes) == {"0"}
    assert summary.variants[:2] == [1, 1]


# While things change


def headless(count: int) -> list[Object]:
    """Each of one endpoint."""
    found = [namespace("churn")]
    for number in range(count):
        found.append(service(f"headless-{number}", "churn", ips=()))
        found.append(endpoint_slice(f"headless-{number}", [endpoint(f"10.1.0.{number + 1}")], "churn"))
    return found


def assert_last_changes_are_answered(api: ApiServer, server: Server) -> None:
    last = {f"{change.service}.{change.namespace}.svc.cluster.local": change.address for change in api.wait_churn(10)}
    for name, address in last.items():
        wait_answer(server, name, [address], 2 + AT_ONCE)
        assert all(answer(server, name) == [address] for _ in range(5))


def test_killed_workers_and_a_killed_nursery_miss_no_change(
    api: ApiServer, kubeconfig: str, tmp_path: Path, record: Record
) -> None:
    api.load(headless(20))
    with Server(tmp_path / "kdns", corefile=COREFILE, kubernetes=kubeconfig, workers=2) as server:
        api.forget_requests()
        with Pacer(server.port, [(WEB, "A"), (DATABASE, "A")], rate=2000) as pacer:
            api.churn(200, 2.0)
            time.sleep(0.4)
            os.kill(server.worker_pids()[0], signal.SIGKILL)
            time.sleep(0.6)
            nursery = server.nursery()
            assert nursery is not None
            os.kill(nursery, signal.SIGKILL)
            time.sleep(0.4)
            os.kill(server.worker_pids()[-1], signal.SIGKILL)
            assert_last_changes_are_answered(api, server)
            summary = pacer.finish()
        record("lost", len(summary.lost))
        assert len(summary.lost) <= 2 * batch.SIZE
        assert set(summary.rcodes) == {"0"}
        assert summary.variants == [1, 1]
        assert server.metrics().value("kdns_worker_restarts_total") >= 2
        assert not api.requests()
        server.terminate()


def test_what_came_while_the_disk_was_full_is_written_when_it_no_longer_is(
    api: ApiServer, kubeconfig: str, small_disk: Path, tmp_path: Path
) -> None:
    api.load(headless(20))
    state = small_disk / "state"
    with Server(tmp_path / "kdns", corefile=COREFILE, kubernetes=kubeconfig, state_dir=state) as server:
        api.forget_requests()
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        with Pacer(server.port, [(WEB, "A"), (DATABASE, "A")], rate=2000) as pacer:
            api.churn(200, 1.5)
            api.load(
                [
                    service(f"many-{number}", "a", ips=[f"10.100.{number // 250}.{number % 250}"])
                    for number in range(2000)
                ]
            )
            procs.wait_until(lambda: "space" in server.log.lower(), 5, "a word about the disk in the log")
            assert server.metrics().value("kdns_store_errors_total") > 0
            api.delete(service("many-7", "a"))
            time.sleep(0.5)
            assert answer(server, "many-1999.a.svc.cluster.local") == "NXDOMAIN"
            filler.unlink()
            wait_answer(server, "many-1999.a.svc.cluster.local", ["10.100.7.249"], 2 + AT_ONCE)
            assert_last_changes_are_answered(api, server)
            summary = pacer.finish()
        assert answer(server, "many-7.a.svc.cluster.local") == "NXDOMAIN"
        assert answer(server, "many-8.a.svc.cluster.local") == ["10.100.0.8"]
        assert not summary.lost
        assert set(summary.rcodes) == {"0"}
        assert summary.variants == [1, 1]
        assert not api.requests()
        server.terminate()


# Metrics


def test_metrics_tell_of_changes_and_of_requests_to_the_api_server(
    api: ApiServer, kubeconfig: str, tmp_path: Path
) -> None:
    api.load([*headless(10), endpoint_slice("web", [endpoint("10.1.1.1")], "a")])
    api.churn(100, 0.1)
    api.wait_churn(5)  # the annotations that a list shows are of long ago
    with Server(tmp_path / "kdns", corefile=COREFILE, kubernetes=kubeconfig) as server:
        assert server.metrics().value(f"{PROGRAMMING}_count") == 0
        api.churn(50, 0.02, under="a/")
        [change] = api.wait_churn(5)
        assert wait_answer(server, f"{change.address.replace('.', '-')}.{WEB}", [change.address]) < AT_ONCE
        api.churn(50, 0.2, under="churn/headless", limit=10)
        assert_last_changes_are_answered(api, server)
        api.update(endpoint_slice("headless-0", [endpoint("10.2.0.1")], "churn"))  # without the annotation
        wait_answer(server, "headless-0.churn.svc.cluster.local", ["10.2.0.1"])
        metrics = server.metrics()
        assert metrics.value(f"{PROGRAMMING}_count", service_kind="headless_with_selector") == 10
        assert metrics.value(f"{PROGRAMMING}_count", service_kind="cluster_ip") == 1
        assert 0 < metrics.value(f"{PROGRAMMING}_sum") < 11 * 0.5
        host = api.url.removeprefix("https://")
        assert len(api.requests()) == 3
        assert metrics.value(f"{REST}_requests_total", code="200", method="GET", host=host) == 3
        assert metrics.value(f"{REST}_request_duration_seconds_count", verb="GET", host=host) == 3
        assert 0 < metrics.value(f"{REST}_request_duration_seconds_sum", verb="GET", host=host) < 3
        assert metrics.value(f"{REST}_rate_limiter_duration_seconds_count", verb="GET", host=host) == 3
        assert metrics.value("kdns_kubernetes_lists_total", how="stream") == 3
        assert metrics.value("kdns_kubernetes_objects", kind="EndpointSlice") == 11
        api.down()
        failed = "kdns_kubernetes_watch_errors_total"
        procs.wait_until(lambda: server.metrics().value(failed, reason="connection") >= 6, AT_ONCE, "errors")
        assert server.metrics().value(f"{REST}_requests_total", code="<error>", host=host) >= 3
