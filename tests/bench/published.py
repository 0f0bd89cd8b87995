"""What is kept of a run: the figures as JSON, and of those the chart and a part of the README.

`python -m tests.bench.published FILE` makes chart and README anew from the JSON of a run before.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from tests.bench import chart, peers, report
from tests.bench.load import Run
from tests.bench.targets import KDNS
from tests.bench.workloads import Verdict
from tests.support.server import ROOT

RESULTS = Path(__file__).parent / "results"
CHART = RESULTS / "newest.svg"
README = ROOT / "README.md"
BEGIN, END = "<!-- from here on as `python -m tests.bench --record` writes it -->\n", "<!-- to here -->\n"


@dataclass(frozen=True, slots=True)
class Record:
    """What is shown of the JSON."""

    date: str
    machine: Mapping[str, str | int | float]
    versions: Mapping[str, str]
    memory: Mapping[str, int]
    runs: Mapping[str, Mapping[str, Sequence[Run]]]
    aims: Sequence[Verdict]

    @property
    def place(self) -> str:
        """The machine, in words."""
        machine = self.machine
        return f"{machine['cpu']}, {machine['cores']} CPUs, Linux {str(machine['kernel']).split('-')[0]}"


def read(text: str) -> Record:
    """The record of a report's JSON."""
    return msgspec.json.decode(text, type=Record)


def write(text: str) -> list[Path]:
    """Keep a report's JSON, and renew the chart and the README; the files that were written."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{datetime.fromisoformat(read(text).date):%Y-%m-%d-%H%M}.json"
    path.write_text(text + "\n")
    return [path, *show(path)]


def show(path: Path) -> list[Path]:
    """Renew the chart and the README from JSON that was kept; the files that were written."""
    record = read(path.read_text())
    CHART.write_text(draw(record))
    README.write_text(placed(README.read_text(), section(record, path)))
    return [CHART, README]


def draw(record: Record) -> str:
    """The chart."""
    return chart.draw(record.runs, record.memory, f"{record.place}, {record.date[:10]}", record.versions)


def placed(readme: str, text: str) -> str:
    """The README with another text between its marks. Raises ValueError without them."""
    before, found, rest = readme.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        raise ValueError(f"the README has no {(END if found else BEGIN).strip()!r}")
    return before + BEGIN + text + END + after


def section(record: Record, path: Path) -> str:
    """The part of the README. path: of the JSON."""
    folder = RESULTS.relative_to(ROOT).as_posix()
    others = [name for name in peers.MAKERS if name in record.versions and name != peers.FLOOR]
    servers = ", ".join(f"{chart.NAMES[name]} {record.versions[name]}" for name in others)
    turns = max((len(runs) for servers in record.runs.values() for runs in servers.values()), default=0)
    lines = [
        f"![CPU per query, queries a second, latency and memory of kdns and others]({folder}/{CHART.name})",
        "",
        *textwrap.wrap(
            f"kdns {record.versions[KDNS]} beside {servers}; {record.place}, {record.date[:10]}; medians of {turns} "
            f"turns ([all of it]({folder}/{path.name})).",
            120,
            break_on_hyphens=False,
            break_long_words=False,
        ),
        "",
        "| what is asked | figure | kdns | beside it | ratio | aim |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*lines, *map(_row, record.aims)]) + "\n"


def _row(one: Verdict) -> str:
    """A line of the table. A bound that is no ratio has the figure itself in the place of kdns's."""
    aim = f"{'at most' if one.met else 'missed:'} {report.quantity(one.bound, one.unit)}"
    if one.own is None or one.other is None:
        return f"| {one.workload} | {one.what} | {report.quantity(one.value, one.unit)} | | | {aim} |"
    return f"| {one.workload} | {one.what} | {_time(one.own)} | {_time(one.other)} | {one.value:.2f} | {aim} |"


def _time(value: float) -> str:
    return f"{value:.1f} µs" if value < 100 else f"{value:,.0f} µs"


if __name__ == "__main__":
    show(Path(sys.argv[1]))
