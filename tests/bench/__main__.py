"""`python -m tests.bench`: kdns beside Knot, dnsmasq and Unbound on this machine, and with an API server."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console

from tests.bench import api, forwarding, load, queries, report, targets
from tests.bench.cluster import Cluster
from tests.bench.load import Run
from tests.bench.report import Report, Start
from tests.bench.targets import Kdns, Other, Target

RESULTS = Path(__file__).parent / "results"
REPEATED, FRESH, PACED = "repeated names", "names that never repeat", f"repeated names at {load.PACE:,} q/s"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure. seconds: of each repeated run. fresh: queries of each run whose names never repeat."""

    rounds: int
    seconds: float
    fresh: int
    starts: int
    api: api.Plan
    forwarding: forwarding.Plan


FULL = Plan(rounds=5, seconds=4, fresh=400_000, starts=3, api=api.FULL, forwarding=forwarding.FULL)
SHORT = Plan(rounds=3, seconds=1, fresh=100_000, starts=1, api=api.SHORT, forwarding=forwarding.SHORT)
SERVERS = ("kdns", "knot", "dnsmasq")
GROUPS = {"api": api.PARTS, "forward": forwarding.PARTS}
"""Parts that stand for several."""
ACCEPTED = ", ".join([*SERVERS, *(f"{name} (all of {', '.join(parts)})" for name, parts in GROUPS.items())])


def main(
    short: Annotated[bool, typer.Option("--short", help="About a minute; figures scatter more.")] = False,
    record: Annotated[bool, typer.Option("--record", help=f"Write the figures to {RESULTS.name}/ as JSON.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    only: Annotated[list[str] | None, typer.Option(help=f"One of {ACCEPTED}; may be repeated.")] = None,
    services: Annotated[int, typer.Option(min=1, help="Services in the cluster.")] = 5000,
    endpoints: Annotated[int, typer.Option(min=1, help="Endpoints of each Service.")] = 10,
) -> None:
    """Measure CPU time per query, time to ready and memory; with an API server, how soon its changes are answered; what
    is forwarded and cached beside Unbound."""
    console = Console(stderr=True)
    missing = [program for program in ("dnsperf", "taskset") if shutil.which(program) is None]
    if missing:
        console.print(f"not installed: {', '.join(missing)}; Debian has them in: dnsperf util-linux")
        raise typer.Exit(2)
    if (os.cpu_count() or 1) < 2:
        console.print("needs two CPUs: one for the server, one for dnsperf")
        raise typer.Exit(2)
    wanted = only or ["kdns", "knot", *(() if short else ("dnsmasq",)), *GROUPS]
    with tempfile.TemporaryDirectory(prefix="kdns-bench-") as folder:
        found = _measure(Path(folder), Cluster(services, endpoints), SHORT if short else FULL, wanted, console)
    if json:
        print(report.as_json(found))
    else:
        report.show(found, Console())
    if record:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{datetime.now(UTC):%Y-%m-%d-%H%M}.json"
        path.write_text(report.as_json(found) + "\n")
        console.print(f"written: {path}")


def _measure(folder: Path, cluster: Cluster, plan: Plan, wanted: Sequence[str], console: Console) -> Report:
    machine = report.machine()
    repeated = queries.write_repeated(folder / "repeated", cluster)
    chosen = {name: [part for part in parts if part in wanted or name in wanted] for name, parts in GROUPS.items()}
    others = {*GROUPS, *(part for parts in GROUPS.values() for part in parts)}
    starts: dict[str, Start] = {}
    with contextlib.ExitStack() as stack:
        servers: list[Target] = []
        for name in (name for name in wanted if name not in others):
            if name == "kdns":
                console.print("kdns: starts from JSON, YAML and the snapshot")
                starts |= _kdns_starts(folder, cluster, plan, repeated)
            target = _target(name, folder / name, cluster)
            if target is None:
                console.print(f"{name} is not installed, so it is left out")
                continue
            stack.callback(target.stop)
            begun = _start(target, load.pinned(load.SERVER_CPU), cluster)
            servers.append(target)
            if name != "kdns":
                starts[name] = _after_load(target, begun, repeated, None)
        runs = _load(folder, cluster, plan, servers, repeated, console) if servers else {}
        versions = {target.name: target.version() for target in servers}
    forwarded = forwarding.measure(folder / "forwarding", plan.forwarding, chosen["forward"], console.print)
    followed = api.measure(folder / "api", cluster, plan.api, chosen["api"], console.print)
    return Report(cluster, machine, versions, starts, runs, followed, forwarded)


def _target(name: str, folder: Path, cluster: Cluster) -> Target | None:
    makers: dict[str, Callable[[Path, Cluster], Other | None]] = {"knot": targets.knot, "dnsmasq": targets.dnsmasq}
    if name == "kdns":
        target = Kdns(folder)
        cluster.write_json(folder / "manifests")
        return target
    if name not in makers:
        raise typer.BadParameter(f"{name!r} is nothing to measure; accepted: {ACCEPTED}")
    return makers[name](folder, cluster)


def _load(
    folder: Path, cluster: Cluster, plan: Plan, servers: Sequence[Target], repeated: Path, console: Console
) -> dict[str, dict[str, list[Run]]]:
    """All mixes on all servers in turns, so that what else happens on the machine meets all of them."""
    found: dict[str, dict[str, list[Run]]] = {
        mix: {server.name: [] for server in servers} for mix in (REPEATED, FRESH, PACED)
    }
    for number in range(plan.rounds):
        console.print(f"load: round {number + 1} of {plan.rounds}")
        fresh = queries.write_fresh(folder / "fresh", cluster, plan.fresh, seed=number + 1)
        for server in servers:
            load.measure(server, repeated, ["-n", "2"])  # the names that never repeat have driven these out of caches
        for server in servers:
            found[REPEATED][server.name].append(load.measure(server, repeated, ["-l", str(plan.seconds)]))
        for server in servers:
            options = ["-l", str(plan.seconds), "-Q", str(load.PACE)]
            found[PACED][server.name].append(load.measure(server, repeated, options))
        for server in servers:
            found[FRESH][server.name].append(load.measure(server, fresh, ["-n", "1"]))
    return found


def _kdns_starts(folder: Path, cluster: Cluster, plan: Plan, repeated: Path) -> dict[str, Start]:
    """Starts on all CPUs: with an empty state directory from JSON and YAML, then again on the one that JSON left."""
    fresh = queries.write_fresh(folder / "fresh", cluster, plan.fresh, seed=0)
    found: dict[str, list[Start]] = {"kdns, JSON": [], "kdns, YAML": [], "kdns, snapshot": []}
    for number in range(plan.starts):
        for form, write in (("JSON", cluster.write_json), ("YAML", cluster.write_yaml)):
            place = folder / f"start-{form}-{number}"
            target = Kdns(place)
            write(place / "manifests")
            with _running(target):
                found[f"kdns, {form}"].append(_after_load(target, _start(target, [], cluster), repeated, fresh))
            if form == "JSON":
                with _running(target):
                    found["kdns, snapshot"].append(_after_load(target, _start(target, [], cluster), repeated, fresh))
            shutil.rmtree(place)
    return {kind: _medians(starts) for kind, starts in found.items()}


@contextlib.contextmanager
def _running(target: Target) -> Iterator[None]:
    try:
        yield
    finally:
        target.stop()


def _start(target: Target, prefix: Sequence[str], cluster: Cluster) -> targets.Startup:
    last = cluster.services - 1
    return targets.start(target, prefix, cluster.service_names()[last], cluster.address(last))


def _after_load(target: Target, begun: targets.Startup, repeated: Path, fresh: Path | None) -> Start:
    """Memory after a second of repeated names and, if there is a file of them, names that never repeat."""
    load.measure(target, repeated, ["-l", "1"])
    if fresh is not None:
        load.measure(target, fresh, ["-n", "1"])
    return Start(begun.answered, begun.ready, begun.pss, targets.memory(target))


def _medians(starts: Sequence[Start]) -> Start:
    ready = [start.ready for start in starts if start.ready is not None]
    return Start(
        median(start.answered for start in starts),
        median(ready) if ready else None,
        int(median(start.pss_synced for start in starts)),
        int(median(start.pss_loaded for start in starts)),
    )


if __name__ == "__main__":
    typer.run(main)
