"""The figures as tables for a person and as JSON for the record."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.bench import api, copies, following, forwarding, peers, workloads
from tests.bench.cluster import Cluster
from tests.bench.load import PACE, Run
from tests.bench.workloads import Start, Verdict

_REFERENCES = (peers.FLOOR, peers.KNOT, peers.UNBOUND, peers.DNSDIST)


@dataclass(frozen=True, slots=True)
class Report:
    """All that was measured. machine: what it was measured on. versions: of each server. memory: PSS in bytes of each
    server after the workloads. api: with an API server. ttls: by server, then by name."""

    date: str
    machine: Mapping[str, str | int | float]
    versions: Mapping[str, str]
    cluster: Cluster
    starts: Mapping[str, Start]
    memory: Mapping[str, int]
    runs: Mapping[str, Mapping[str, Sequence[Run]]]
    api: api.Figures
    ttls: Mapping[str, Mapping[str, forwarding.Ttls]]
    followers: following.Figures
    copies: Sequence[copies.Copied]


def machine() -> dict[str, str | int | float]:
    """What the figures were taken on, and how busy it was in the minute before."""
    models = [line.split(":", 1)[1].strip() for line in _read("/proc/cpuinfo") if line.startswith("model name")]
    memory = next((line.split()[1] for line in _read("/proc/meminfo") if line.startswith("MemTotal")), "0")
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count() or 1,
        "memory_mib": int(memory) // 1024,
        "load": os.getloadavg()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def show(report: Report, console: Console) -> None:
    """Print the tables; what was aimed at comes last."""
    if report.starts:
        console.print(_start_table(report))
    for workload, servers in report.runs.items():
        console.print(_load_table(workload, servers))
    if report.ttls:
        console.print(_ttl_table(report.ttls))
    if report.api.changes:
        console.print(_changes_table(report.api.changes))
    for scale in report.api.scales:
        for table in (_followed_table(scale), _relist_table(scale), _traffic_table(scale)):
            console.print(table)
    for followed in report.followers.clusters:
        console.print(_following_table(followed))
        console.print(_storm_table(followed))
    if report.copies:
        console.print(_copies_table(report.copies))
    if verdicts := workloads.judge(report.runs, report.starts):
        console.print(_aims_table(verdicts))
    if report.versions:
        console.print(", ".join(f"{name} {version}" for name, version in report.versions.items()))


def _aims_table(verdicts: Sequence[Verdict]) -> Table:
    table = Table(title="What is aimed at", title_justify="left")
    for head in ("workload", "figure"):
        table.add_column(head)
    for head in ("medians", "found", "aim", ""):
        table.add_column(head, justify="right")
    for one in verdicts:
        pair = "" if one.own is None or one.other is None else f"{one.own:.2f}, {one.other:.2f} µs"
        found, bound = quantity(one.value, one.unit), f"≤ {quantity(one.bound, one.unit)}"
        table.add_row(one.workload, one.what, pair, found, bound, "met" if one.met else "[red]missed")
    return table


def quantity(value: float, unit: str) -> str:
    """A verdict's value with its unit; a ratio has none."""
    match unit:
        case "MB":
            return f"{value / 1e6:.0f} MB"
        case "s":
            return f"{value:.2f} s"
        case _:
            return f"{value:.2f}"


def _start_table(report: Report) -> Table:
    table = Table(title=f"Start with {_size(report.cluster)}", title_justify="left")
    table.add_column("from")
    for head in ("first right answer", "ready", "PSS after sync", "PSS after load"):
        table.add_column(head, justify="right")
    for kind, start in report.starts.items():
        ready = "" if start.ready is None else f"{start.ready:.2f} s"
        memory = (quantity(value, "MB") for value in (start.pss_synced, start.pss_loaded))
        table.add_row(kind, f"{start.answered:.2f} s", ready, *memory)
    return table


def _load_table(workload: str, servers: Mapping[str, Sequence[Run]]) -> Table:
    table = Table(title=f"CPU time of the server, {workload}", title_justify="left")
    table.add_column("server")
    references = [name for name in _REFERENCES if name in servers]
    heads = ("µs a query", "least, most", *(f"/ {name}" for name in references))
    for head in (*heads, "answers/s", "mean", "p50", "p99", "lost"):
        table.add_column(head, justify="right")
    for name, runs in servers.items():
        costs = [run.cpu for run in runs]
        ratios = (workloads.ratio(servers, name, reference) for reference in references)
        table.add_row(
            name,
            f"{median(costs):.2f}",
            f"{min(costs):.2f}, {max(costs):.2f}",
            *(f"{ratio:.2f}" for ratio in ratios),
            f"{median(run.rate for run in runs):,.0f}",
            *(_latency(runs, figure) for figure in ("latency", "p50", "p99")),
            str(sum(run.lost for run in runs)),
        )
    return table


def _latency(runs: Sequence[Run], figure: str) -> str:
    """The median over rounds; empty where the program that asked does not tell."""
    found = [getattr(run, figure) for run in runs]
    return "" if None in found else f"{median(found):,.0f} µs"


def _size(cluster: Cluster) -> str:
    return f"{cluster.services:,} Services with {cluster.endpoints} endpoints each"


def _changes_table(found: Sequence[api.Changes]) -> Table:
    title = f"{api.RATE} changes a second of {_size(found[0].cluster)}, at {PACE:,} q/s"
    costs = (
        f"CPU a change, {one.workers} workers: supervisor {one.supervisor:,.0f} µs, the rest {one.others:,.0f} µs"
        for one in found
    )
    table = Table(title=title, title_justify="left", caption="\n".join(costs), caption_justify="left")
    table.add_column("workers")
    table.add_column("from, to")
    for head in ("p50", "p99", "longest", "number", "lost"):
        table.add_column(head, justify="right")
    for one in found:
        rows = (
            ("event to answer", one.events, one.missed),
            ("query to answer", one.quiet, one.quiet_lost),
            ("the same with changes", one.busy, one.busy_lost),
        )
        for name, times, lost in rows:
            shown = (f"{value * 1e6:,.0f} µs" for value in (times.p50, times.p99, times.longest))
            table.add_row(str(one.workers), name, *shown, f"{times.count:,}", str(lost))
    return table


def _followed_table(scale: api.Scale) -> Table:
    title = f"Start with an API server, {_size(scale.cluster)}, {scale.workers} workers"
    table = Table(title=title, title_justify="left")
    table.add_column("from")
    for head in ("first right answer", "ready", "PSS after sync", "PSS after load"):
        table.add_column(head, justify="right")
    for kind, starts in scale.starts.items():
        ready = median(start.ready or math.inf for start in starts)
        synced = median(start.pss for start in starts) / 2**20
        loaded = f"{scale.pss_loaded / 2**20:.0f} MiB" if kind == api.NO_SNAPSHOT else ""
        answered = median(start.answered for start in starts)
        table.add_row(kind, f"{answered:.2f} s", f"{ready:.2f} s", f"{synced:.0f} MiB", loaded)
    return table


def _relist_table(scale: api.Scale) -> Table:
    table = Table(title=f"Relist of {_size(scale.cluster)}", title_justify="left")
    table.add_column("")
    for head in ("CPU of the supervisor", "until it is done"):
        table.add_column(head, justify="right")
    for kind, relist in scale.relists.items():
        table.add_row(kind, f"{relist.cpu:.2f} s", f"{relist.seconds:.2f} s")
    return table


def _traffic_table(scale: api.Scale) -> Table:
    table = Table(title=f"What the API server sees, {_size(scale.cluster)}", title_justify="left")
    table.add_column("")
    for head in ("requests", "bytes sent"):
        table.add_column(head, justify="right")
    titles = {"idle": f"{scale.idle_seconds} s of idleness", "hour": "an idle hour (calculated)"}
    for kind, traffic in scale.traffic.items():
        requests = ", ".join(f"{count} {name}" for name, count in sorted(traffic.requests.items())) or "none"
        table.add_row(titles.get(kind, kind), requests, f"{sum(traffic.sent.values()):,}")
    return table


def _ttl_table(ttls: Mapping[str, Mapping[str, forwarding.Ttls]]) -> Table:
    table = Table(title="TTLs as a client sees them", title_justify="left")
    for head in ("server", "TTL", "renewed", "shown less what is left, s", "at 0, 5, 10, 15... s"):
        table.add_column(head)
    for server, names in ttls.items():
        for found in names.values():
            table.add_row(
                server,
                str(found.ttl),
                str(found.renewals),
                f"{found.smallest:.2f} to {found.largest:.2f}",
                " ".join(map(str, found.shown[::5])),
            )
    return table


def _following_table(followed: following.Followed) -> Table:
    title = f"{followed.nodes:,} nodes follow {_size(followed.cluster)}, one worker"
    memory = ", ".join(f"{when} {quantity(size, 'MB')}" for when, size in followed.memory.items())
    table = Table(title=title, title_justify="left", caption=f"PSS: {memory}", caption_justify="left")
    table.add_column("changes a second")
    for head in ("CPU", "without nodes", "a change and node", "to each node: p50", "p99", "to the last: p50", "p99"):
        table.add_column(head, justify="right")
    for kind, one in followed.followed.items():
        spent = (f"{sum(stretch.cpu):.2f} s" for stretch in (one, followed.alone[kind]))
        table.add_row(str(one.rate), *spent, f"{followed.costs[kind]:.1f} µs", *_quantiles(one.reached, one.last))
    return table


def _quantiles(*found: api.Times | None) -> list[str]:
    """p50 and p99 of each."""
    shown = (("", "") if one is None else (one.p50, one.p99) for one in found)
    return [value if isinstance(value, str) else f"{value * 1e3:,.0f} ms" for pair in shown for value in pair]


def _storm_table(followed: following.Followed) -> Table:
    title = f"{followed.nodes:,} nodes connect at once, {_size(followed.cluster)}; others ask {PACE:,} q/s"
    table = Table(title=title, title_justify="left")
    table.add_column("they have")
    for head in ("until all have it", "CPU", "MB", "failed", "others' p50", "p99", "longest", "lost"):
        table.add_column(head, justify="right")
    quiet = followed.alone["busy"].others
    if quiet is not None:
        table.add_row(f"no nodes, {followed.alone['busy'].rate} changes a second", "", "", "", "", *_waits(quiet))
    busy = followed.followed["busy"].others
    if busy is not None:
        table.add_row(f"the same, followed by {followed.nodes:,}", "", "", "", "", *_waits(busy))
    for kind, storm in followed.storms.items():
        found = f"{storm.seconds:.2f} s", f"{sum(storm.cpu):.2f} s", f"{storm.received / 1e6:,.0f}", str(storm.failed)
        table.add_row(kind, *found, *_waits(storm.others))
    return table


def _copies_table(found: Sequence[copies.Copied]) -> Table:
    table = Table(title=f"From the event to the answer of a copy, {api.RATE} changes a second", title_justify="left")
    table.add_column("cluster")
    for head in ("p50", "p99", "longest", "changes", "looked for", "missed", "supervisor", "worker", "PSS"):
        table.add_column(head, justify="right")
    for one in found:
        times = (f"{value * 1e3:.1f} ms" for value in (one.events.p50, one.events.p99, one.events.longest))
        counts = (f"{count:,}" for count in (one.changes, one.events.count + one.missed, one.missed))
        costs = (f"{cost:,.0f} µs" for cost in (one.supervisor, one.worker))
        table.add_row(_size(one.cluster), *times, *counts, *costs, quantity(one.memory, "MB"))
    return table


def _waits(others: following.Others) -> list[str]:
    return [*(f"{value:,.0f} µs" for value in (others.p50, others.p99, others.longest)), str(others.lost)]


def as_json(report: Report) -> str:
    """The report, with what came of the aims, and each server's ratio to the others that it is measured beside."""
    ratios = {
        reference: {
            workload: {name: workloads.ratio(servers, name, reference) for name in servers}
            for workload, servers in report.runs.items()
            if reference in servers
        }
        for reference in _REFERENCES
    }
    aims = [asdict(verdict) for verdict in workloads.judge(report.runs, report.starts)]
    return json.dumps(asdict(report) | {"aims": aims, "cpu_ratio_to": ratios}, indent=1)


def _read(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
