"""kdns and the API server that it follows: from an event to the answer, starts, relists, and what the API server is
asked for. Both, and all clients, share the machine's CPUs.

`python -m tests.bench.api` is a client, in a process of its own: it reads its Hunt as JSON from standard input, finds
when each of the answers that it is told of appears, and prints a list of Sighting as JSON.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

import dns.message

from tests.bench import load, queries, targets
from tests.bench.cluster import ZONE, Cluster
from tests.bench.targets import Kdns, Startup
from tests.support import objects, procs
from tests.support.apiserver import ApiServer
from tests.support.server import API_COREFILE, ROOT, Server

RATE = 200
"""Changes a second."""
SAMPLED = 10
"""Every so many changes, one is looked for."""
KINDS = 3
"""Services, EndpointSlices, Namespaces: each is listed and watched by one connection."""
WATCH_SECONDS = 450
"""Mean of the times after which kdns asks the API server to end a watch."""
BOOKMARK_SECONDS = 60
PARTS = ("api-changes", "api-scale", "api-large")
"""What can be measured alone."""
NO_SNAPSHOT, SNAPSHOT, API_DOWN = "API server", "API server, snapshot", "snapshot, API server down"
_CHANGED_FROM = IPv4Address("172.16.0.0")
_SETTLED_SECONDS = 1.0
_RELIST_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure.

    rounds: of a stretch without and one with changes, of `seconds` each. starts: of each kind. loaded: seconds of
    load before memory is read again. idle: seconds, 0 to leave it out. large: Services of the cluster that is measured
    once, 0 to leave it out.
    """

    workers: tuple[int, ...]
    rounds: int
    seconds: float
    starts: int
    loaded: float
    idle: int
    services: int
    large: int


FULL = Plan(
    workers=(2, 1), rounds=5, seconds=5, starts=3, loaded=30, idle=3 * BOOKMARK_SECONDS, services=10_000, large=100_000
)
SHORT = Plan(workers=(2,), rounds=1, seconds=4, starts=1, loaded=2, idle=0, services=5_000, large=0)


@dataclass(frozen=True, slots=True)
class Times:
    """Quantiles in seconds of so many times."""

    count: int
    p50: float
    p99: float
    longest: float


@dataclass(frozen=True, slots=True)
class Changes:
    """What 200 changes a second cost, with a number of workers, while 10,000 queries a second are answered.

    events: from the moment when the API server hands an event to the socket to the arrival of an answer that shows it.
    early: changes that were looked for too late, so that their time is an upper bound. missed: not seen in a second.
    quiet, busy: the time of an answer to a name that does not change, without and with changes; quiet_lost, busy_lost:
    queries without an answer. supervisor, others: microseconds of CPU time of that process and of kdns's others for
    each change, beyond what they take without changes.
    """

    cluster: Cluster
    workers: int
    changes: int
    events: Times
    early: int
    missed: int
    quiet: Times
    busy: Times
    quiet_lost: int
    busy_lost: int
    supervisor: float
    others: float


@dataclass(frozen=True, slots=True)
class Relist:
    """cpu: seconds of the supervisor. seconds: from when the API server is back to the last work that came of it, with
    the wait before kdns tries again."""

    cpu: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the API server sees, by kind of request; bytes of responses with their heads, before TLS."""

    requests: dict[str, int]
    sent: dict[str, int]


@dataclass(frozen=True, slots=True)
class Scale:
    """A cluster of a size. starts: by what there was to start from. pss_loaded: bytes after load. traffic: "start",
    "resume", "idle" for `idle_seconds`, and "hour", which is calculated from the two before."""

    cluster: Cluster
    workers: int
    starts: dict[str, list[Startup]]
    pss_loaded: int
    relists: dict[str, Relist]
    traffic: dict[str, Traffic]
    idle_seconds: int


@dataclass(frozen=True, slots=True)
class Figures:
    """All that was measured here."""

    changes: list[Changes] = field(default_factory=list)
    scales: list[Scale] = field(default_factory=list)


def measure(folder: Path, cluster: Cluster, plan: Plan, parts: Sequence[str], say: Callable[[str], None]) -> Figures:
    """Measure on `cluster` what changes cost, and starts and relists on the plan's. say: told what begins.

    Raises RuntimeError if kdns or dnsperf fails.
    """
    found = Figures()
    if "api-changes" in parts:
        with serving(folder / "changes", cluster) as api:
            for workers in plan.workers:
                say(f"API: {RATE} changes a second, {workers} workers")
                found.changes.append(_changes(folder / f"changes-{workers}", api, cluster, plan, workers))
    sizes = [("api-scale", plan.services, plan.starts, plan.idle), ("api-large", plan.large, 1, 0)]
    for part, services, starts, idle in sizes:
        if part in parts and services:
            say(f"API: starts and relists with {services:,} Services{f', then {idle} idle seconds' if idle else ''}")
            size = Cluster(services, cluster.endpoints)
            with serving(folder / part, size) as api:
                found.scales.append(_Scale(folder / f"{part}-kdns", api, size, plan).run(starts, idle))
    return found


@contextmanager
def serving(folder: Path, cluster: Cluster) -> Iterator[ApiServer]:
    """An API server that has a cluster."""
    with ApiServer(folder) as api:
        api.load_cluster(cluster.services, cluster.endpoints)
        yield api


class Follower(Kdns):
    """A kdns that follows an API server. plugins: more lines of its server block."""

    def __init__(self, folder: Path, api: ApiServer, workers: int, plugins: str = "") -> None:
        super().__init__(folder)
        lines = f"kubeconfig {api.kubeconfig(folder / 'kubeconfig')}"
        addresses = ["127.0.0.1"]
        self.server = Server(
            folder, corefile=API_COREFILE, kubernetes=lines, plugins=plugins, addresses=addresses, workers=workers
        )
        self.port = self.server.port

    def forget(self) -> None:
        """Leave no data to start from."""
        shutil.rmtree(self.server.state_dir, ignore_errors=True)


# From the event to the answer


@dataclass(frozen=True, slots=True)
class Hunt:
    """Answers that will appear, one after the other, at a known pace and an unknown time.

    wanted: number of the change, name and address. rate: changes a second.
    """

    port: int
    wanted: list[tuple[int, str, str]]
    rate: float


@dataclass(frozen=True, slots=True)
class Sighting:
    """An answer appeared. number: of the change. time: when it came (CLOCK_MONOTONIC), None if it was given up.
    polls: how many queries it took; with one, it was there before the first."""

    number: int
    time: float | None
    polls: int


class _Hunter:
    """The client. It asks for one name at a time, from shortly before the answer is due until it is there."""

    PAUSE = 0.0002
    LEAD = 0.006
    PATIENCE = 1.0
    SOCKETS = 16

    def __init__(self, hunt: Hunt) -> None:
        self._hunt = hunt
        self._sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(self.SOCKETS)]
        for sock in self._sockets:
            sock.settimeout(0.05)
            sock.connect(("127.0.0.1", hunt.port))

    def run(self) -> list[Sighting]:
        found: list[Sighting] = []
        start = math.inf  # of the changes, not later than that
        for number, name, address in self._hunt.wanted:
            if start < math.inf:
                time.sleep(max(0.0, start + number / self._hunt.rate - self.LEAD - time.monotonic()))
            sighting = self._find(number, name, address, 1 if start < math.inf else 10)
            found.append(sighting)
            if sighting.time is not None:
                start = min(start, sighting.time - number / self._hunt.rate)
        return found

    def _find(self, number: int, name: str, address: str, patience: float) -> Sighting:
        sock = self._sockets[number // SAMPLED % self.SOCKETS]
        query, packed = dns.message.make_query(name, "A").to_wire(), IPv4Address(address).packed
        polls, until = 0, time.monotonic() + patience * self.PATIENCE
        while (sent := time.monotonic()) < until:
            polls += 1
            query = polls.to_bytes(2, "big") + query[2:]
            sock.send(query)
            if _shows(sock, query, packed):
                return Sighting(number, time.monotonic(), polls)
            time.sleep(max(0.0, sent + self.PAUSE - time.monotonic()))
        return Sighting(number, None, polls)


def _shows(sock: socket.socket, query: bytes, packed: bytes) -> bool:
    try:
        data = sock.recv(4096)
        while data[:2] != query[:2]:
            data = sock.recv(4096)
    except TimeoutError:
        return False
    return data[3] & 15 == 0 and packed in data[len(query) :]


def _wanted(cluster: Cluster, under: str, count: int) -> list[tuple[int, str, str]]:
    """The changes to look for, as `ApiServer.churn` makes them: of the slices in order of their keys, the first
    endpoint of each gets the next address, and with it another name."""
    names = {}
    for number in range(cluster.services):
        service, namespace = cluster.service(number)
        names[f"{namespace}/{service}-{number:05x}"] = f"{service}.{namespace}.svc.{ZONE}"
    keys = sorted(key for key in names if key.startswith(under))
    found = []
    for number in range(SAMPLED // 2, count, SAMPLED):
        address = str(_CHANGED_FROM + number)
        found.append((number, f"{address.replace('.', '-')}.{names[keys[number % len(keys)]]}", address))
    return found


def _changes(folder: Path, api: ApiServer, cluster: Cluster, plan: Plan, workers: int) -> Changes:
    follower = Follower(folder, api, workers)
    try:
        follower.start()
        follower.server.wait_ready(60)
        asked = queries.write_repeated(folder / "queries", cluster)
        _dnsperf(follower.port, asked, plan.seconds)
        rounds = [_round(follower, api, cluster, asked, plan.seconds, number) for number in range(plan.rounds)]
    finally:
        follower.stop()
        api.load_cluster(cluster.services, cluster.endpoints)
    events = [seconds for found in rounds for seconds in found.hunted.events]
    changes = sum(found.hunted.changes for found in rounds)
    return Changes(
        cluster=cluster,
        workers=workers,
        changes=changes,
        events=times(events),
        early=sum(found.hunted.early for found in rounds),
        missed=sum(found.hunted.missed for found in rounds),
        quiet=times([seconds for found in rounds for seconds in found.quiet.answers]),
        busy=times([seconds for found in rounds for seconds in found.busy.answers]),
        quiet_lost=sum(found.quiet.lost for found in rounds),
        busy_lost=sum(found.busy.lost for found in rounds),
        supervisor=sum(found.busy.cpu[0] - found.quiet.cpu[0] for found in rounds) / changes * 1e6,
        others=sum(found.busy.cpu[1] - found.quiet.cpu[1] for found in rounds) / changes * 1e6,
    )


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Seconds of each answer, and CPU seconds of the supervisor and the others."""

    answers: list[float]
    lost: int
    cpu: tuple[float, float]


@dataclass(frozen=True, slots=True)
class _Round:
    quiet: _Stretch
    busy: _Stretch
    hunted: Hunted


def _round(follower: Follower, api: ApiServer, cluster: Cluster, asked: Path, seconds: float, number: int) -> _Round:
    """A stretch without changes and one with."""
    quiet = _stretch(follower, asked, seconds)
    with hunting(follower.port, api, cluster, seconds, number) as hunted:
        busy = _stretch(follower, asked, seconds)
    return _Round(quiet, busy, hunted)


@dataclass(slots=True)
class Hunted:
    """Changes whose answers were looked for, once all is over. events, early, missed: see Changes, in seconds."""

    changes: int = 0
    events: list[float] = field(default_factory=list)
    early: int = 0
    missed: int = 0


@contextmanager
def hunting(port: int, api: ApiServer, cluster: Cluster, seconds: float, number: int) -> Iterator[Hunted]:
    """Let there be changes for so long, and look for their answers at a port; what is inside is done meanwhile.

    number: of the round, as each changes other slices: an address is new only once.
    """
    found = Hunted()
    under = f"team-{number % 5}"
    hunt = Hunt(port, _wanted(cluster, under, round(RATE * seconds)), RATE)
    command = [sys.executable, "-m", "tests.bench.api"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as hunter:
        try:
            assert hunter.stdin is not None
            assert hunter.stdout is not None
            hunter.stdin.write(json.dumps(asdict(hunt)) + "\n")
            hunter.stdin.flush()
            assert hunter.stdout.readline() == "started\n"
            api.churn(RATE, seconds, under=under)
            yield found
            made = api.wait_churn(seconds + 10)
            output, _ = hunter.communicate(timeout=60)
        finally:
            hunter.kill()
    sightings = [Sighting(**one) for one in json.loads(output)]
    found.changes = len(made)
    found.events = [one.time - made[one.number].time for one in sightings if one.time is not None]
    found.early = sum(one.polls == 1 for one in sightings)
    found.missed = sum(one.time is None for one in sightings)


def _stretch(follower: Follower, asked: Path, seconds: float) -> _Stretch:
    before = follower.cpu()
    answers, lost = _dnsperf(follower.port, asked, seconds)
    after = follower.cpu()
    return _Stretch(answers, lost, (after[0] - before[0], after[1] - before[1]))


def _dnsperf(port: int, asked: Path, seconds: float) -> tuple[list[float], int]:
    """10,000 queries a second from 16 sockets, which the kernel spreads over all workers: the time of each answer."""
    command = ["dnsperf", "-s", "127.0.0.1", "-p", str(port), "-d", str(asked), "-c", "16", "-T", "1", "-v", "-t", "1"]
    command += ["-q", "1000", "-Q", str(load.PACE), "-l", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
    if done.returncode:
        raise RuntimeError(f"dnsperf: {done.stderr or done.stdout}")
    lost = re.search(r"Queries lost:\s+(\d+)", done.stdout)
    assert lost is not None
    times = re.findall(r"^> (?:NOERROR|NXDOMAIN) .* ([\d.]+)$", done.stdout, re.MULTILINE)
    return [float(seconds) for seconds in times], int(lost[1])


def times(seconds: Sequence[float]) -> Times:
    """Their quantiles."""
    ordered = sorted(seconds)

    def quantile(share: float) -> float:
        return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan

    return Times(len(ordered), quantile(0.5), quantile(0.99), quantile(1.0))


# Starts, relists and what the API server sees


class _Scale:
    """Measures on a cluster of a size, with as many workers as CPUs of the smallest machine that this is for."""

    WORKERS = 2

    def __init__(self, folder: Path, api: ApiServer, cluster: Cluster, plan: Plan) -> None:
        self._api = api
        self._cluster = cluster
        self._plan = plan
        self._follower = Follower(folder, api, self.WORKERS)
        self._traffic: dict[str, Traffic] = {}

    def run(self, starts: int, idle: int) -> Scale:
        """starts: of each kind. idle: seconds."""
        found: dict[str, list[Startup]] = {kind: [] for kind in (NO_SNAPSHOT, SNAPSHOT, API_DOWN)}
        follower, api = self._follower, self._api
        try:
            for _ in range(starts):
                follower.forget()
                found[NO_SNAPSHOT].append(self._start("start"))
                follower.stop()
                found[SNAPSHOT].append(self._start("resume"))
                follower.stop()
                api.down()
                found[API_DOWN].append(self._start(""))
                follower.stop()
                api.up()
            follower.forget()
            self._start("start")
            asked = queries.write_repeated(follower.server.folder / "queries", self._cluster)
            _dnsperf(follower.port, asked, self._plan.loaded)
            loaded = targets.memory(follower)
            if idle:
                self._idle(idle)
            relists = {"nothing changed": self._relist(0), "1 % changed": self._relist(self._cluster.services // 100)}
        finally:
            follower.stop()
        return Scale(self._cluster, self.WORKERS, found, loaded, relists, self._traffic, idle)

    def _start(self, kind: str) -> Startup:
        """kind: what the traffic is noted under; empty while the API server is down."""
        last = self._cluster.services - 1
        self._api.forget_requests()
        found = targets.start(self._follower, [], self._cluster.service_names()[last], self._cluster.address(last))
        if kind:
            self._api.wait_watches(KINDS, 30)
            counters = self._api.counters()
            self._traffic[kind] = Traffic(counters.requests, counters.sent)
        return found

    def _idle(self, seconds: int) -> None:
        """Nothing happens but bookmarks. In an hour, the watches end now and then as well, and are resumed."""
        self._api.settings(bookmark_seconds=float(BOOKMARK_SECONDS))  # the next one comes after that time
        before = self._api.counters()
        time.sleep(seconds + 5)
        after = self._api.counters()
        requests, sent = (
            {kind: count - had.get(kind, 0) for kind, count in has.items() if count != had.get(kind, 0)}
            for has, had in ((after.requests, before.requests), (after.sent, before.sent))
        )
        self._traffic["idle"] = Traffic(requests, sent)
        resumes, resume = 3600 / WATCH_SECONDS, self._traffic["resume"]
        self._traffic["hour"] = Traffic(
            {kind: round(count * resumes) for kind, count in resume.requests.items()},
            {
                kind: round(sent.get(kind, 0) * 3600 / seconds + resume.sent.get(kind, 0) * resumes)
                for kind in sent.keys() | resume.sent.keys()
            },
        )

    def _relist(self, changed: int) -> Relist:
        """The API server forgets its history while a client is away. changed: slices that are not as they were."""
        api = self._api
        api.down()
        if changed:
            api.update(*self._changed(self._cluster.services // changed))
        api.apply(objects.pod(f"unwatched-{changed}", "default", "192.0.2.1"))  # there is something to forget
        api.compact()
        api.forget_requests()
        before, begun = self._follower.cpu()[0], time.monotonic()
        api.up()
        procs.wait_until(lambda: api.counters().requests.get("stream", 0) >= KINDS, _RELIST_SECONDS, "a list", 0.05)
        api.wait_watches(KINDS, _RELIST_SECONDS)
        last = self._settle()
        return Relist(self._follower.cpu()[0] - before, last - begun)

    def _changed(self, step: int) -> Iterator[objects.Object]:
        """Every so many slices, with another address."""
        slices = (item for item in self._cluster.objects() if item["kind"] == "EndpointSlice")
        for number, item in enumerate(slices):
            if number % step == 0:
                item["endpoints"][0]["addresses"] = [str(_CHANGED_FROM + number)]
                yield item

    def _settle(self) -> float:
        """Wait until the supervisor has done nothing to speak of for a while; when it began to do nothing."""
        last, spent = time.monotonic(), self._follower.cpu()[0]
        while time.monotonic() - last < _SETTLED_SECONDS:
            time.sleep(0.05)
            now = self._follower.cpu()[0]
            if now - spent > 0.005:
                last, spent = time.monotonic(), now
        return last


def main() -> None:
    """Be the client that finds answers."""
    found = json.loads(sys.stdin.readline())
    hunter = _Hunter(Hunt(found["port"], found["wanted"], found["rate"]))
    print("started", flush=True)
    print(json.dumps([asdict(sighting) for sighting in hunter.run()]))


if __name__ == "__main__":
    main()
