"""Reloads that change where names come from."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import dns.rcode
import pytest

from kdns.wire import names
from kdns.zone.changes import Changes
from kdns.zone.store import Store
from tests.conftest import Serve
from tests.support import procs
from tests.support.objects import external_name, service, write_list

pytestmark = pytest.mark.one_speed

OTHER = """\
.:$dns {{
    bind $addresses
    prometheus 127.0.0.1:$metrics
    health 127.0.0.1:$health
    ready 127.0.0.1:$ready
    kubernetes {zones} {{
        manifests {path}
    }}
}}
"""
FAILED = "coredns_reload_failed_total"


def test_a_reload_to_another_zone_never_answers_for_it_before_it_is_read(serve: Serve) -> None:
    server = serve([service("web", ips=["10.96.0.1"])])
    other = server.folder / "other"
    other.mkdir()
    write_list(other / "cluster.json", [service("web", ips=["10.96.0.2"])])
    server.write_corefile(OTHER.format(zones="other.test", path=other))
    server.signal(signal.SIGHUP)
    seen = set()

    def moved() -> bool:
        response = server.query("web.default.svc.other.test")
        seen.add(response.rcode())
        return bool(response.answer)

    procs.wait_until(moved, 10, "the new zone")
    assert seen <= {dns.rcode.NOERROR, dns.rcode.SERVFAIL}
    procs.wait_until(lambda: "Running configuration" in server.log, 10, "the end of the reload")
    assert server.texts("web.default.svc.other.test") == ["10.96.0.2"]
    assert server.metrics().value(FAILED) == 0


def test_a_reload_to_a_source_that_cannot_be_read_is_refused(serve: Serve) -> None:
    server = serve([service("web", ips=["10.96.0.1"])])
    server.write_corefile(OTHER.format(zones="other.test", path=server.folder / "nowhere"))
    server.signal(signal.SIGHUP)
    procs.wait_until(lambda: server.metrics().value(FAILED) == 1, 10, "the failed reload")
    assert server.texts("web.default.svc.cluster.local") == ["10.96.0.1"]
    assert "could not be read" in server.log


def test_after_a_reload_the_store_forgets_zones_that_nobody_serves(serve: Serve) -> None:
    server = serve([service("web")])
    server.write_corefile(OTHER.format(zones="other.test", path=server.manifests))
    server.signal(signal.SIGHUP)
    procs.wait_until(lambda: "Running configuration" in server.log, 10, "the reload")
    server.terminate()
    store = Store.open(server.state_dir, Changes.create(), print)
    origins = store.read(lambda txn: {zone.origin for zone in txn.zones()})
    store.close()
    assert origins == {names.from_text("other.test.")}


def test_a_file_that_stays_wrong_is_one_failed_reload(serve: Serve) -> None:
    server = serve([service("web", ips=["10.96.0.1"])], plugins="reload 2s 0s")
    server.write_corefile(plugins="reload 2s 0s\nnonsense")
    procs.wait_until(lambda: server.metrics().value(FAILED) == 1, 10, "the failed reload")
    time.sleep(4.5)
    assert server.metrics().value(FAILED) == 1


def test_the_shortest_interval_of_reload_counts(serve: Serve) -> None:
    server = serve([service("web", ips=["10.96.0.1"])], plugins="reload 600s 0s")
    server.write_corefile(server.template + "\nsecond.test:$dns {\n bind $addresses\n reload 2s 0s\n whoami\n}\n")
    server.signal(signal.SIGHUP)
    procs.wait_until(lambda: "Running configuration" in server.log.split("reload: ", 2)[-1], 10, "the reload")
    server.write_corefile(kubernetes="ttl 77")
    procs.wait_until(
        lambda: server.query("web.default.svc.cluster.local").answer[0].ttl == 77, 8, "the reload by the second block"
    )


def test_workers_are_killed_before_the_supervisor_when_memory_runs_out(serve: Serve) -> None:
    server = serve([])
    assert server.process is not None

    def score(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    assert all(score(pid) > score(server.process.pid) for pid in server.worker_pids())


def test_an_alias_to_a_name_that_may_yet_come_is_not_denied(serve: Serve) -> None:
    server = serve([])
    server.terminate()
    write_list(server.manifests / "cluster.json", [external_name("alias", "web.default.svc.cluster.local")])
    (server.manifests / "more.yaml").write_text("kind: Service\nmetadata: [")
    server.state_dir = server.folder / "empty"
    server.start(wait=False)
    procs.wait_until(lambda: server.log.count(" workers") == 2, 10, "the second start")
    alias = "alias.default.svc.cluster.local"
    procs.wait_until(lambda: server.texts(alias, "CNAME") != [], 10, "the alias")
    assert server.query(alias).rcode() == dns.rcode.SERVFAIL
    write_list(server.manifests / "more.json", [service("web", ips=["10.96.0.1"])])
    (server.manifests / "more.yaml").unlink()
    procs.wait_until(lambda: server.texts(alias)[-1:] == ["10.96.0.1"], 10, "its target")
