"""`python -m tests.bench`: kdns beside other DNS servers on this machine, by itself, and with an API server."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tests.bench import (
    api,
    beside,
    changing,
    copies,
    following,
    forwarding,
    native,
    published,
    report,
    sizes,
    starts,
    targets,
    tls,
    workers,
)
from tests.bench.cluster import Cluster
from tests.bench.load import Run
from tests.bench.report import Report
from tests.bench.targets import KDNS, PYTHON


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure. parts: what is measured if nothing is asked for."""

    parts: tuple[str, ...]
    beside: beside.Plan
    tls: tls.Plan
    starts: starts.Plan
    sizes: sizes.Plan
    workers: workers.Plan
    changing: changing.Plan
    forwarding: forwarding.Plan
    following: following.Plan
    copies: copies.Plan
    api: api.Plan

    def with_rounds(self, rounds: int) -> Plan:
        """With so many turns of all that has turns."""
        return replace(
            self,
            beside=replace(self.beside, rounds=rounds),
            tls=replace(self.tls, rounds=rounds),
            starts=replace(self.starts, rounds=rounds),
            sizes=replace(self.sizes, rounds=rounds),
            workers=replace(self.workers, rounds=rounds),
            changing=replace(self.changing, rounds=rounds),
            forwarding=replace(self.forwarding, rounds=rounds),
            api=replace(self.api, rounds=rounds),
            copies=replace(self.copies, rounds=rounds),
        )


WIDTH = 120
"""Of tables that are printed into a file."""
GROUPS = {"forward": forwarding.PARTS, "api": api.PARTS}
"""Parts that stand for several."""
SINGLE = (
    *beside.PARTS,
    *tls.PARTS,
    *starts.PARTS,
    *sizes.PARTS,
    *workers.PARTS,
    *changing.PARTS,
    *following.PARTS,
    *copies.PARTS,
)
FULL = Plan(
    parts=(*SINGLE, *GROUPS),
    beside=beside.FULL,
    tls=tls.FULL,
    starts=starts.FULL,
    sizes=sizes.FULL,
    workers=workers.FULL,
    changing=changing.FULL,
    forwarding=forwarding.FULL,
    following=following.FULL,
    copies=copies.FULL,
    api=api.FULL,
)
SHORT = Plan(
    parts=(*beside.PARTS, *starts.PARTS, "cache", "misses"),
    beside=beside.SHORT,
    tls=tls.SHORT,
    starts=starts.SHORT,
    sizes=sizes.SHORT,
    workers=workers.SHORT,
    changing=changing.SHORT,
    forwarding=forwarding.SHORT,
    following=following.SHORT,
    copies=copies.SHORT,
    api=api.SHORT,
)
ACCEPTED = ", ".join([*SINGLE, *(f"{name} (all of {', '.join(parts)})" for name, parts in GROUPS.items())])


def main(
    short: Annotated[bool, typer.Option("--short", help="About a minute; figures scatter more.")] = False,
    record: Annotated[
        bool,
        typer.Option("--record", help="Keep the figures in tests/bench/results, and renew the chart and the README."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    picture: Annotated[Path | None, typer.Option("--chart", help="Write the chart to this file (SVG).")] = None,
    only: Annotated[list[str] | None, typer.Option(help=f"One of {ACCEPTED}; may be repeated.")] = None,
    server: Annotated[
        list[str] | None, typer.Option(help=f"For udp and tcp: one of {', '.join(beside.SERVERS)}; may be repeated.")
    ] = None,
    speeds: Annotated[
        bool | None,
        typer.Option(
            "--speeds/--one-speed",
            help="For udp and tcp: whether a compiled kdns is measured as Python as well. Default: unless --short.",
        ),
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Turns, where 5 are too many or too few.")] = None,
    services: Annotated[int, typer.Option(min=1, help="Services in the cluster.")] = 5000,
    endpoints: Annotated[int, typer.Option(min=1, help="Endpoints of each Service.")] = 10,
) -> None:
    """Measure CPU time per query, queries a second, latency, memory and starts, in turns with other servers."""
    console = Console(stderr=True)
    _require(console)
    os.environ.pop(
        "PYTHONDONTWRITEBYTECODE", None
    )  # each start would compile all modules anew, as no installed one does
    plan = SHORT if short else FULL
    parts = _parts(only or plan.parts)
    plan = plan if rounds is None else plan.with_rounds(rounds)
    plan = replace(plan, beside=replace(plan.beside, servers=_servers(server or plan.beside.servers, speeds, console)))
    begun = time.monotonic()

    def say(text: str) -> None:
        console.print(f"{time.monotonic() - begun:5.0f} s  {text}", highlight=False)

    try:
        with tempfile.TemporaryDirectory(prefix="kdns-bench-") as folder:
            found = _measure(Path(folder), Cluster(services, endpoints), plan, parts, say)
    except RuntimeError as error:
        console.print(str(error), markup=False)
        raise typer.Exit(1) from error
    text = report.as_json(found)
    if json:
        print(text)
    else:
        report.show(found, Console(width=None if sys.stdout.isatty() else WIDTH))
    if picture is not None:
        picture.write_text(published.draw(published.read(text)))
    if record:
        for path in published.write(text):
            console.print(f"written: {path}")


def _require(console: Console) -> None:
    """End with 2 where nothing could be measured."""
    missing = [program for program in ("dnsperf", "h2load", "taskset") if shutil.which(program) is None]
    if not native.has_compiler():
        missing.append("cc")
    if missing:
        console.print(
            f"not installed: {', '.join(missing)}; Debian has them in: dnsperf nghttp2-client util-linux gcc libc6-dev"
        )
        raise typer.Exit(2)
    if (os.cpu_count() or 1) < 2:
        console.print("needs two CPUs: one for the server, one for who asks it")
        raise typer.Exit(2)


def _parts(wanted: Sequence[str]) -> set[str]:
    """The parts, groups resolved. Raises typer.BadParameter."""
    known = {*SINGLE, *GROUPS, *(part for parts in GROUPS.values() for part in parts)}
    for part in wanted:
        if part not in known:
            raise typer.BadParameter(f"{part!r} is nothing to measure; accepted: {ACCEPTED}")
    return {part for name in wanted for part in GROUPS.get(name, (name,))}


def _servers(wanted: Sequence[str], speeds: bool | None, console: Console) -> list[str]:
    """The servers; kdns as Python only beside one that is compiled. Raises typer.BadParameter."""
    for name in wanted:
        if name not in beside.SERVERS:
            raise typer.BadParameter(f"{name!r} is no server; accepted: {', '.join(beside.SERVERS)}")
    both = PYTHON in wanted if speeds is None else speeds
    if both and not targets.facts()["compiled"]:
        console.print("kdns is not compiled, so it is measured as Python only")
        both = False
    own = [KDNS, *([PYTHON] if both else [])] if {KDNS, PYTHON} & set(wanted) else []
    return [*own, *(name for name in wanted if name not in (KDNS, PYTHON))]


def _measure(folder: Path, cluster: Cluster, plan: Plan, parts: set[str], say: Callable[[str], None]) -> Report:
    def chosen(of: Sequence[str]) -> list[str]:
        return [part for part in of if part in parts]

    date, machine = datetime.now(UTC).isoformat(timespec="seconds"), report.machine()
    answered = beside.measure(folder / "beside", cluster, plan.beside, chosen(beside.PARTS), say)
    runs: dict[str, dict[str, list[Run]]] = dict(answered.runs)
    secured = tls.measure(folder / "tls", cluster, plan.tls, chosen(tls.PARTS), say)
    runs |= secured.runs
    begun = dict(answered.starts)
    if chosen(starts.PARTS):
        begun = starts.measure(folder / "starts", cluster, plan.starts, say) | begun
    if chosen(sizes.PARTS):
        runs |= sizes.measure(folder / "sizes", plan.sizes, say)
    if chosen(workers.PARTS):
        runs |= workers.measure(folder / "workers", cluster, plan.workers, say)
    if chosen(changing.PARTS):
        runs |= changing.measure(folder / "changing", cluster, plan.changing, say)
    forwarded = forwarding.measure(folder / "forwarding", plan.forwarding, chosen(forwarding.PARTS), say)
    return Report(
        date=date,
        machine=machine,
        versions={KDNS: targets.version()} | forwarded.versions | secured.versions | answered.versions,
        cluster=cluster,
        starts=begun,
        memory=answered.memory,
        runs=runs | forwarded.runs,
        api=api.measure(folder / "api", cluster, plan.api, chosen(api.PARTS), say),
        ttls=forwarded.ttls,
        followers=following.measure(folder / "following", plan.following, chosen(following.PARTS), say),
        copies=copies.measure(folder / "copies", plan.copies, chosen(copies.PARTS), say),
    )


if __name__ == "__main__":
    typer.run(main)
