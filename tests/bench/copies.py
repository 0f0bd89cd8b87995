"""A copy of the cluster's zones, as a node has one, while Services change: from the event to the copy's answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import dns.exception
import dns.message
import dns.query

from tests.bench import api, targets
from tests.bench.api import Times
from tests.bench.cluster import ZONE, Cluster
from tests.bench.targets import Kdns
from tests.support import procs
from tests.support.apiserver import ApiServer
from tests.support.server import Server

PARTS = ("copies",)
_COREFILE = """\
cluster.local:$dns in-addr.arpa:$dns ip6.arpa:$dns {
    bind $addresses
    errors
    prometheus $host:$metrics
    health $host:$health
    ready $host:$ready
    secondary {
        transfer from 127.0.0.1:$centre
    }
}
"""
_COPIED_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure. services: of each cluster. seconds: of each round."""

    services: tuple[int, ...]
    rounds: int
    seconds: float


FULL = Plan(services=(1000, 10_000), rounds=5, seconds=5)
SHORT = Plan(services=(1000,), rounds=1, seconds=3)


@dataclass(frozen=True, slots=True)
class Copied:
    """changes, events, early, missed: see api.Changes. supervisor, worker: microseconds of CPU time of the copy's
    processes for each change. memory: PSS in bytes of all of them."""

    cluster: Cluster
    changes: int
    events: Times
    early: int
    missed: int
    supervisor: float
    worker: float
    memory: int


class _Copy(Kdns):
    """A kdns that has a copy of another one's zones."""

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__(folder)
        corefile = _COREFILE.replace("$centre", str(port))
        self.server = Server(folder, corefile=corefile, addresses=["127.0.0.1"])
        self.port = self.server.port

    def has_all(self) -> bool:
        """Whether it answers from its copies."""
        asked = [dns.message.make_query(zone, "SOA") for zone in (ZONE, "in-addr.arpa", "ip6.arpa")]
        try:
            return all(dns.query.udp(one, "127.0.0.1", port=self.port, timeout=0.2).answer for one in asked)
        except dns.exception.Timeout:
            return False


def measure(folder: Path, plan: Plan, parts: Sequence[str], say: Callable[[str], None]) -> list[Copied]:
    """Measure with each cluster. say: told what begins.

    Raises RuntimeError if kdns fails.
    """
    found = []
    for services in plan.services if parts else ():
        cluster = Cluster(services)
        here = folder / str(services)
        with api.serving(here / "api", cluster) as server:
            centre = api.Follower(here / "centre", server, 1, "transfer {\n        to *\n    }")
            copy = _Copy(here / "copy", centre.port)
            try:
                targets.start_with(centre, [], cluster)
                copy.start()
                procs.wait_until(copy.has_all, _COPIED_SECONDS, "the copy")
                found.append(_copied(copy, server, cluster, plan, say))
            finally:
                copy.stop()
                centre.stop()
    return found


def _copied(copy: _Copy, server: ApiServer, cluster: Cluster, plan: Plan, say: Callable[[str], None]) -> Copied:
    rounds, supervisor, worker = [], 0.0, 0.0
    for number in range(plan.rounds):
        say(f"copy of {cluster.services:,} Services: {api.RATE} changes a second, round {number + 1} of {plan.rounds}")
        before = copy.cpu()
        with api.hunting(copy.port, server, cluster, plan.seconds, number) as hunted:
            time.sleep(plan.seconds)
        after = copy.cpu()
        supervisor += after[0] - before[0]
        worker += after[1] - before[1]
        rounds.append(hunted)
    changes = sum(one.changes for one in rounds)
    return Copied(
        cluster=cluster,
        changes=changes,
        events=api.times([seconds for one in rounds for seconds in one.events]),
        early=sum(one.early for one in rounds),
        missed=sum(one.missed for one in rounds),
        supervisor=supervisor / changes * 1e6,
        worker=worker / changes * 1e6,
        memory=targets.memory(copy),
    )
