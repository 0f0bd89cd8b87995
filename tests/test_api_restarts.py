"""Restarts cost the API server next to nothing, and clients no more than the start of a process."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import dns.message
import pytest

from tests.bench.cluster import Cluster
from tests.conftest import Record
from tests.support import procs
from tests.support.apiserver import ApiServer
from tests.support.objects import service
from tests.support.server import API_COREFILE, Server

CLUSTER = Cluster(services=1000, endpoints=2)
KINDS = ("services", "endpointslices", "namespaces")
MOVING = "moving.default.svc.cluster.local"
ANSWERED, SLOWEST = 0.5, 1.5
"""Seconds from the start of the process to an answer: usually, and when the machine has other things to do."""
CURRENT = 3.0
"""Seconds from the start of the process, or of the API server, until what changed meanwhile is answered."""
AGE = "kdns_kubernetes_data_age_seconds"


@dataclass(slots=True)
class Rig:
    """An API server and a kdns that can be stopped and started. changes: how often `moving` got another address."""

    api: ApiServer
    server: Server
    changes: int = 0

    def change(self) -> None:
        self.changes += 1
        self.api.apply(service("moving", ips=[self.address]))

    @property
    def address(self) -> str:
        return f"10.97.0.{self.changes}"

    def wait_current(self) -> float:
        """Wait until the last change is answered; returns the seconds it took."""
        return procs.wait_until(lambda: answer(self.server, MOVING) == [self.address], CURRENT, "the last change")

    def settle(self) -> int:
        """Wait until kdns has followed everything and written how far; the version that it is at now."""
        self.wait_current()
        self.api.wait_watches(len(KINDS))
        self.api.bookmark()
        time.sleep(0.3)
        self.api.forget_requests()
        return self.api.revision

    def stop(self, number: int) -> None:
        """By SIGTERM or, every other time, by kill -9."""
        if number % 2:
            self.server.kill()
        else:
            self.server.terminate()

    def start(self) -> float:
        """Start it; seconds until names that did not change are answered."""
        begin = time.monotonic()
        self.server.start(wait=False)
        for number in (0, 499, 999):
            name, namespace = CLUSTER.service(number)
            expected = [CLUSTER.address(number)]
            asked = f"{name}.{namespace}.svc.cluster.local"
            procs.wait_until(lambda: answer(self.server, asked) == expected, 5, f"an answer for {asked}")  # noqa: B023
        return time.monotonic() - begin


def answer(server: Server, name: str) -> list[str] | None:
    """Addresses; None if there is no answer. An answer that denies the name is none that a restart may give."""
    data = server.raw_udp(dns.message.make_query(name, "A").to_wire(), timeout=0.1)
    if data is None:
        return None
    message = dns.message.from_wire(data)
    assert message.rcode() == 0, message
    return [str(rdata) for rrset in message.answer for rdata in rrset]


def data_age(rig: Rig) -> tuple[float, float]:
    """As /ready and as /metrics tell it, once both are served."""
    procs.wait_until(lambda: rig.server.ready().status == 200, 5, "/ready")
    told = re.search(r"kubernetes cluster\.local\. .*: data of (\d+) s ago", rig.server.ready().body)
    assert told, rig.server.ready().body
    return float(told[1]), rig.server.metrics().value(AGE)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with ApiServer(tmp_path / "api") as api:
        api.load_cluster(CLUSTER.services, CLUSTER.endpoints)
        options = f"kubeconfig {api.kubeconfig(tmp_path / 'kubeconfig')}"
        rig = Rig(api, Server(tmp_path / "kdns", corefile=API_COREFILE, kubernetes=options, workers=2))
        rig.change()
        with rig.server:
            yield rig


def lists(api: ApiServer, kind: str) -> int:
    return sum(request.is_list for request in api.requests(path=kind))


def test_ten_restarts_the_last_five_without_the_api_server(rig: Rig, record: Record) -> None:
    assert [lists(rig.api, kind) for kind in KINDS] == [1, 1, 1]
    starts: list[float] = []
    for number in range(1, 6):
        version = rig.settle()
        rig.stop(number)
        rig.change()
        begin = time.monotonic()
        starts.append(rig.start())
        rig.wait_current()
        record(f"restart_{number}", f"answered_ms={starts[-1] * 1000:.0f} current_ms={since(begin)}")
        rig.api.wait_watches(len(KINDS))
        requests = rig.api.requests()
        assert sorted(request.path.rpartition("/")[2] for request in requests) == sorted(KINDS)
        assert {request.kind for request in requests} == {"watch"}
        assert {request.query["resourceVersion"] for request in requests} == {str(version)}
        procs.wait_until(lambda: rig.server.metrics().value(AGE) == 0, 3, "current data")
    rig.settle()
    before = [rig.address]
    rig.api.down()
    rig.change()
    down, ages = time.monotonic(), [0.0]
    for number in range(6, 11):
        rig.stop(number)
        logged = len(rig.server.log)
        starts.append(rig.start())
        assert answer(rig.server, MOVING) == before
        told, age = data_age(rig)
        record(f"restart_{number}", f"answered_ms={starts[-1] * 1000:.0f} age_s={age:.1f}")
        assert age > ages[-1]
        assert age > time.monotonic() - down - 1
        assert told == pytest.approx(age, abs=1)
        said = re.compile(r"data of \d+ s ago is served until the API server is heard")
        procs.wait_until(lambda: said.search(rig.server.log, logged) is not None, 3, "the line that says so")  # noqa: B023
        assert rig.server.health().status == 200
        ages.append(age)
    assert median(starts) < ANSWERED
    assert max(starts) < SLOWEST
    begin = time.monotonic()
    rig.api.up()
    rig.api.wait_watches(len(KINDS))
    rig.wait_current()
    record("current_again_ms", since(begin))
    assert {request.kind for request in rig.api.requests()} == {"watch"}
    procs.wait_until(lambda: rig.server.metrics().value(AGE) == 0, 3, "current data")
    assert rig.server.ready().body.strip() == "OK"
    rig.server.terminate()


def since(begin: float) -> int:
    """Milliseconds."""
    return round((time.monotonic() - begin) * 1000)


def test_after_a_restart_each_kind_is_listed_once_if_the_history_is_gone(rig: Rig, record: Record) -> None:
    rig.settle()
    rig.api.down()
    rig.stop(1)
    rig.change()
    rig.api.up("lost")
    begin = time.monotonic()
    record("answered_ms", round(rig.start() * 1000))
    rig.wait_current()
    record("current_ms", since(begin))
    rig.api.wait_watches(len(KINDS))
    assert [lists(rig.api, kind) for kind in KINDS] == [1, 1, 1]
    rig.server.terminate()
