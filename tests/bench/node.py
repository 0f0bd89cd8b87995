"""`python -m tests.bench.node`: what pods lose when a node-local DNS server is killed, upgraded or disturbed, or its
upstream is gone; kdns and, where its program is given, NodeLocal DNSCache.

Root and network namespaces are needed, and Unbound, Knot DNS, iptables and nft. Of every event all questions are
accounted for, by address: those asked once over UDP, those of a client that asks again as glibc does, those over TCP,
and runs of getent and dig.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tests.bench import report
from tests.support import faults, lookups, netns, procs
from tests.support.faults import Event, Outcome
from tests.support.lookups import Asked, Client, Plan, Question
from tests.support.node import FAMILIES, IPV4, Family, Instance, Topology
from tests.support.server import ROOT

RESULTS = Path(__file__).parent / "results"
KDNS, OTHER = "kdns", "NodeLocal DNSCache"
EVENTS: dict[str, Event] = {
    "kill -9 of a worker": faults.kill_worker,
    "kill -9 of the nursery": faults.kill_nursery,
    "kill -9 of the supervisor": faults.kill_supervisor,
    "kill -9 of all": faults.kill_all,
    "OOM kill": faults.kill_by_oom,
    "SIGTERM, start again": faults.terminate,
    "first start": faults.start,
    "upgrade with overlap": faults.upgrade,
    "nft flush ruleset": faults.flush_ruleset,
    "link deleted": faults.delete_link,
    "rules and routes deleted": faults.delete_rules,
}
OUTAGE, MEMORY = "upstream gone", "memory"
OF_SEVERAL_PROCESSES = ("kill -9 of a worker", "kill -9 of the nursery", "kill -9 of the supervisor")
SETTLE = 1.5
KNOWN = [Question(f"www{number}.example") for number in range(100)]
NEW = [Question("new-*.example")]
KNOWN_RATE, NEW_RATE = 100.0, 20.0
STALE = "cache 30 {\n        serve_stale 1h\n    }"
ENTRIES = 10_000
OUTAGES = {"killed": False, "silent": True}
"""How an upstream goes away, and whether packets to it are dropped then (else its host refuses them)."""


@dataclass(frozen=True, slots=True)
class Server:
    """What is measured. program: None for kdns."""

    name: str
    program: list[str] | None
    makes_dummy: bool

    def instance(self, topology: Topology, folder: Path, number: int, **options: object) -> Instance:
        """An instance in a folder of its own."""
        place = folder / f"{number}-{time.monotonic_ns()}"
        return Instance(topology, place, number, program=self.program, makes_dummy=self.makes_dummy, **options)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Row:
    """One address in one event. Of questions asked once: sent, those without an answer, with an ICMP error, and with a
    wrong response code; seconds of the longest time without any answer, and when it began after the first mark. Of
    lookups as glibc does them: sent, those over a second, failed. TCP: sent, failed. marks: seconds after the first."""

    server: str
    event: str
    address: str
    round: int
    sent: int
    lost: int
    refused: int
    failed: int
    gap: float
    gap_at: float
    missing_from: float | None
    missing_to: float | None
    lookups: int
    lookups_slow: int
    lookups_failed: int
    tcp: int
    tcp_failed: int
    tracked: int
    programs: int
    programs_slow: int
    programs_failed: int
    marks: dict[str, float]


@dataclass(frozen=True, slots=True)
class Outage:
    """An upstream that is gone for some minutes. known: of names that were asked before; new: of others. Seconds of the
    slowest answer; stale: as the server counts; recovery: seconds from the upstream's return to the first new name.
    missing_each_half_minute: of known names, since the upstream went."""

    server: str
    how: str
    minutes: float
    known: int
    known_missing: int
    known_slowest: float
    stale: float
    new: dict[str, int]
    recovery: float | None
    missing_each_half_minute: list[int]


@dataclass(frozen=True, slots=True)
class Memory:
    """PSS in bytes of all processes of an instance, as it is when nobody else uses its libraries: idle, and when
    `entries` names were asked once."""

    server: str
    version: str
    idle: int
    entries: int
    filled: int


@dataclass
class Found:
    rows: list[Row] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)


def main(
    nodelocaldns: Annotated[Path | None, typer.Option(help="NodeLocal DNSCache's program, `node-cache`.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each event happens; tables show the worst.")] = 3,
    down: Annotated[float, typer.Option(help="Seconds until what died is started again.")] = 2.0,
    outage: Annotated[float, typer.Option(help="Minutes for which the upstream is gone.")] = 10.0,
    only: Annotated[list[str] | None, typer.Option(help="What has this in its name; may be repeated.")] = None,
    ipv6: Annotated[bool, typer.Option("--ipv6", help="Addresses of IPv6.")] = False,
    record: Annotated[bool, typer.Option("--record", help=f"Write the figures to {RESULTS.name}/ as JSON.")] = False,
) -> None:
    """Count what pods lose."""
    console = Console(stderr=True)
    netns.require()
    servers = [Server(KDNS, None, makes_dummy=False)]
    if nodelocaldns is not None:
        servers.append(Server(OTHER, [str(nodelocaldns.resolve())], makes_dummy=True))
    chosen = [name for name in (*EVENTS, MEMORY, OUTAGE) if not only or any(part in name for part in only)]
    found = Found()
    machine = report.machine()
    with tempfile.TemporaryDirectory(prefix="kdns-bench-") as name:
        folder = Path(name)
        for server in servers:
            with _topology(folder, FAMILIES[ipv6]) as topology:
                events = {name: event for name, event in EVENTS.items() if name in chosen}
                found.rows.extend(_events(server, topology, folder, events, rounds, down, console))
                if MEMORY in chosen:
                    found.memory.append(_memory(server, topology, folder))
        if OUTAGE in chosen:
            console.print(f"upstream gone for {outage:g} minutes")
            found.outages.extend(_outages(servers, folder, outage))
    _show(found, Console(width=160))
    if record:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{datetime.now(UTC):%Y-%m-%d-%H%M}-node.json"
        path.write_text(json.dumps({"machine": machine, "down": down, **asdict(found)}, indent=1) + "\n")
        console.print(f"written: {path}")


@contextlib.contextmanager
def _topology(folder: Path, family: Family = IPV4) -> Iterator[Topology]:
    with Topology(Path(tempfile.mkdtemp(dir=folder)), family) as topology:
        yield topology


def _events(
    server: Server,
    topology: Topology,
    folder: Path,
    events: dict[str, Event],
    rounds: int,
    down: float,
    console: Console,
) -> Iterator[Row]:
    for name, event in events.items():
        if server.program is not None and name in OF_SEVERAL_PROCESSES:
            continue
        for number in range(1 if event is faults.delete_link and server.makes_dummy else rounds):
            console.print(f"{server.name}: {name}, round {number + 1}")
            with faults.scene(
                topology,
                lambda which, group: server.instance(topology, folder, which, cgroup=group),
                down,
                cgroup=event is faults.kill_by_oom,
            ) as scene:
                time.sleep(SETTLE)
                if event is faults.start:
                    scene.instance.terminate()
                try:
                    outcome = faults.watch(scene, event)
                except AssertionError as error:
                    console.print(f"[red]{server.name}: {name}: {str(error)[:2000]}")
                    continue
                for address in topology.family.served:
                    yield _row(server, name, number + 1, address, outcome, len(topology.tracked(address)), topology)
            topology.remove_link()


def _row(
    server: Server, event: str, number: int, address: str, outcome: Outcome, tracked: int, topology: Topology
) -> Row:
    begun = outcome.marks[0][1]
    once, glibc, tcp = (outcome.figures(kind, address) for kind in (lookups.ONCE, lookups.GLIBC, lookups.TCP))
    programs = outcome.figures(lookups.PROGRAM, address)
    missing = once.missing
    return Row(
        server=server.name,
        event=event,
        address=address,
        round=number,
        sent=once.sent,
        lost=len(once.lost),
        refused=len(once.refused),
        failed=len(once.failed),
        gap=once.gap,
        gap_at=once.since - begun,
        missing_from=missing[0] - begun if missing else None,
        missing_to=missing[-1] - begun if missing else None,
        lookups=glibc.sent,
        lookups_slow=glibc.slow,
        lookups_failed=len(glibc.missing),
        tcp=tcp.sent,
        tcp_failed=len(tcp.missing),
        tracked=tracked,
        programs=programs.sent,
        programs_slow=programs.slow,
        programs_failed=len(programs.missing),
        marks={what: at - begun for what, at in outcome.marks},
    )


# Upstream gone


def _outages(servers: Sequence[Server], folder: Path, minutes: float) -> list[Outage]:
    """All at the same time, each in a topology of its own."""
    with ThreadPoolExecutor() as pool:
        runs = [
            pool.submit(_outage, server, folder, how, silent, minutes)
            for server in servers
            for how, silent in OUTAGES.items()
        ]
        return [run.result() for run in runs]


def _outage(server: Server, folder: Path, how: str, silent: bool, minutes: float) -> Outage:
    place = Path(tempfile.mkdtemp(dir=folder))
    with _topology(folder) as topology, server.instance(topology, place, 2, cache=STALE) as instance:
        pod = topology.pods[0]
        plan = Plan([IPV4.cluster_ip], KNOWN, once=KNOWN_RATE, seconds=minutes * 60 + 120)
        with Client(pod, plan) as known:
            time.sleep(5)
            cut = time.monotonic()
            topology.silence_upstream(True) if silent else topology.kill_server("upstream")
            with Client(pod, Plan([IPV4.cluster_ip], NEW, once=NEW_RATE, seconds=minutes * 60 + 120)) as new:
                time.sleep(minutes * 60)
                topology.silence_upstream(False) if silent else topology.start_server("upstream")
                back = time.monotonic()
                time.sleep(5)
                found = known.finish(), new.finish()
        stale = instance.metrics().value("coredns_cache_served_stale_total")
        return _judge(server, how, found, cut, back, stale)


def _judge(
    server: Server, how: str, found: tuple[list[Asked], list[Asked]], cut: float, back: float, stale: float
) -> Outage:
    known = lookups.figures((one for one in found[0] if one.sent > cut), lookups.ONCE)
    new = found[1]
    halves = Counter(int((at - cut) // 30) for at in known.missing)
    answers = sorted(one.ended for one in new if one.outcome == "ok" and one.ended > back - 2)
    return Outage(
        server=server.name,
        how=how,
        minutes=(back - cut) / 60,
        known=known.sent,
        known_missing=len(known.missing),
        known_slowest=known.slowest,
        stale=stale,
        new=dict(Counter(one.outcome for one in new if one.sent < back)),
        recovery=max(0.0, answers[0] - back) if answers else None,
        missing_each_half_minute=[halves[half] for half in range(int((back - cut) // 30) + 1)],
    )


# Memory


def _memory(server: Server, topology: Topology, folder: Path) -> Memory:
    with server.instance(topology, folder, 2) as instance:
        time.sleep(SETTLE)
        idle = procs.alone(instance.pids())
        seconds = ENTRIES / 2000
        plan = Plan([topology.family.cluster_ip], [Question("entry-*.long.example")], once=2000, seconds=seconds)
        with Client(topology.pods[0], plan) as client:
            time.sleep(seconds + 1)
            asked = client.finish()
        time.sleep(SETTLE)
        return Memory(server.name, _version(instance), idle, len(asked), procs.alone(instance.pids()))


# What is shown


def _version(instance: Instance) -> str:
    if instance.program[-1] == "node":
        command = [sys.executable, "-m", "kdns", "version"]
        return " ".join(
            subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.splitlines()[0].split()
        )
    return next((line for line in instance.log.splitlines() if line.startswith("CoreDNS-")), "unknown")


def _show(found: Found, console: Console) -> None:
    for address in dict.fromkeys(row.address for row in found.rows):
        console.print(_table(address, [row for row in found.rows if row.address == address]))
    if found.outages:
        console.print(_outage_table(found.outages))
    for memory in found.memory:
        sizes = f"{memory.idle / 1e6:.1f} MB idle, {memory.filled / 1e6:.1f} MB with {memory.entries:,} entries"
        console.print(f"{memory.server}, {memory.version}: PSS {sizes}")


def _table(address: str, rows: Sequence[Row]) -> Table:
    """The worst round of each event."""
    rounds = max(row.round for row in rows)
    table = Table(title=f"{address}, worst of {rounds}", title_justify="left")
    for head in ("event", "server"):
        table.add_column(head)
    heads = ("asked once", "lost", "refused", "failed", "longest gap", "glibc", "over 1 s", "failed", "TCP", "failed")
    for head in (*heads, "tracked"):
        table.add_column(head, justify="right")
    by_event: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_event.setdefault((row.event, row.server), []).append(row)
    for event in EVENTS:
        for server in (KDNS, OTHER):
            if several := by_event.get((event, server)):
                table.add_row(event, server, *_cells(several))
    return table


def _outage_table(outages: Sequence[Outage]) -> Table:
    title = (
        f"upstream gone for {outages[0].minutes:.1f} minutes; {KNOWN_RATE:g} known and {NEW_RATE:g} new names a second"
    )
    table = Table(title=title, title_justify="left")
    for head in ("upstream", "server"):
        table.add_column(head)
    for head in ("known names", "not answered", "slowest", "stale", "new names", "back after"):
        table.add_column(head, justify="right")
    for one in outages:
        new = ", ".join(f"{outcome} {count:,}" for outcome, count in sorted(one.new.items()))
        back = "never" if one.recovery is None else f"{one.recovery * 1000:,.0f} ms"
        known = f"{one.known:,}", f"{one.known_missing:,}", f"{one.known_slowest * 1000:,.0f} ms", f"{one.stale:,.0f}"
        table.add_row(one.how, one.server, *known, new, back)
    return table


def _cells(rows: Sequence[Row]) -> list[str]:
    def worst(value: Callable[[Row], float]) -> str:
        return f"{max(map(value, rows)):,.0f}"

    return [
        worst(lambda row: row.sent),
        worst(lambda row: row.lost),
        worst(lambda row: row.refused),
        worst(lambda row: row.failed),
        worst(lambda row: row.gap * 1000) + " ms",
        worst(lambda row: row.lookups),
        worst(lambda row: row.lookups_slow),
        worst(lambda row: row.lookups_failed),
        worst(lambda row: row.tcp),
        worst(lambda row: row.tcp_failed),
        worst(lambda row: row.tracked),
    ]


if __name__ == "__main__":
    typer.run(main)
