"""The figures as tables for a person and as JSON for the record."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.bench import api, forwarding
from tests.bench.cluster import Cluster
from tests.bench.load import PACE, Run

REFERENCE = "knot"


@dataclass(frozen=True, slots=True)
class Start:
    """Medians of starts of one kind. Seconds to the first right answer and to readiness; PSS in bytes after the first
    sync and after load."""

    answered: float
    ready: float | None
    pss_synced: int
    pss_loaded: int


@dataclass(frozen=True, slots=True)
class Report:
    """All that was measured. runs: by query mix, then by server, one for each round. api: with an API server.
    forwarding: names of others."""

    cluster: Cluster
    machine: Mapping[str, str | int | float]
    versions: Mapping[str, str]
    starts: Mapping[str, Start]
    runs: Mapping[str, Mapping[str, list[Run]]]
    api: api.Figures
    forwarding: forwarding.Figures


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
    """Print the tables."""
    if report.starts:
        console.print(_start_table(report))
    for mix, servers in report.runs.items():
        console.print(_load_table(mix, servers, REFERENCE))
    for mix, servers in report.forwarding.runs.items():
        console.print(_load_table(mix, servers, forwarding.REFERENCE))
    if report.forwarding.ttls:
        console.print(_ttl_table(report.forwarding.ttls))
    if report.api.changes:
        console.print(_changes_table(report.api.changes))
    for scale in report.api.scales:
        for table in (_followed_table(scale), _relist_table(scale), _traffic_table(scale)):
            console.print(table)


def _start_table(report: Report) -> Table:
    table = Table(title=f"Start with {_size(report.cluster)}", title_justify="left")
    table.add_column("from")
    for head in ("first right answer", "ready", "PSS after sync", "PSS after load"):
        table.add_column(head, justify="right")
    for kind, start in report.starts.items():
        ready = "" if start.ready is None else f"{start.ready:.2f} s"
        memory = (f"{value / 2**20:.0f} MiB" for value in (start.pss_synced, start.pss_loaded))
        table.add_row(kind, f"{start.answered:.2f} s", ready, *memory)
    return table


def _load_table(mix: str, servers: Mapping[str, list[Run]], reference: str) -> Table:
    table = Table(title=f"CPU time of the server, {mix}", title_justify="left")
    table.add_column("server")
    for head in ("µs a query", "least, most", f"/ {reference}", "answers/s", "latency µs", "lost"):
        table.add_column(head, justify="right")
    for name, runs in servers.items():
        costs = [run.cpu for run in runs]
        ratio = ratio_to_reference(servers, name, reference)
        table.add_row(
            name,
            f"{median(costs):.2f}",
            f"{min(costs):.2f}, {max(costs):.2f}",
            f"{ratio:.2f}" if ratio else "",
            f"{median(run.rate for run in runs):,.0f}",
            f"{median(run.latency for run in runs):,.0f}",
            str(sum(run.lost for run in runs)),
        )
    return table


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


def ratio_to_reference(servers: Mapping[str, list[Run]], name: str, reference: str = REFERENCE) -> float | None:
    """The median over rounds of a server's cost divided by the reference's in the same round."""
    if reference not in servers:
        return None
    return median(own.cpu / other.cpu for own, other in zip(servers[name], servers[reference], strict=True))


def _ratios(runs: Mapping[str, Mapping[str, list[Run]]], reference: str) -> dict[str, dict[str, float | None]]:
    return {
        mix: {name: ratio_to_reference(servers, name, reference) for name in servers} for mix, servers in runs.items()
    }


def as_json(report: Report) -> str:
    """The report with the date and the machine."""
    return json.dumps(
        {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": dict(report.machine),
            "versions": dict(report.versions),
            "cluster": asdict(report.cluster),
            "starts": {kind: asdict(start) for kind, start in report.starts.items()},
            f"cpu_ratio_to_{REFERENCE}": _ratios(report.runs, REFERENCE),
            f"cpu_ratio_to_{forwarding.REFERENCE}": _ratios(report.forwarding.runs, forwarding.REFERENCE),
            "runs": {
                mix: {name: [asdict(run) for run in runs] for name, runs in servers.items()}
                for mix, servers in report.runs.items()
            },
            "api": asdict(report.api),
            "forwarding": asdict(report.forwarding),
        },
        indent=1,
    )


def _read(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
