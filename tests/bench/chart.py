"""The figures as a picture (SVG): panels of bars, on a card of its own that is light or dark as the reader has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from tests.bench import peers, targets
from tests.bench.load import PACE, Run
from tests.bench.workloads import FRESH, LIMIT, PACED, RANDOM, REPEATED, SUFFIXED

_T = TypeVar("_T")
NAMES = {
    targets.KDNS: "kdns",
    targets.PYTHON: "kdns (Python)",
    peers.FLOOR: "floor (kernel)",
    peers.KNOT: "Knot DNS",
    peers.NSD: "NSD",
    peers.UNBOUND: "Unbound",
    peers.DNSMASQ: "dnsmasq",
    peers.POWERDNS: "PowerDNS",
}
"""How servers are called, in their order."""
_STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328; }
.title { font-weight: 600; } .small { font-size: 11px; fill: #59636e; } .end { text-anchor: end; }
.card { fill: #ffffff; stroke: #d1d9e0; }
.kdns { fill: #0969da; } .floor { fill: #9aa4af; } .other { fill: #57606a; } .far { opacity: 0.35; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; } .small { fill: #9198a1; } .card { fill: #0d1117; stroke: #3d444d; }
  .kdns { fill: #4493f8; } .floor { fill: #656c76; } .other { fill: #9198a1; }
}
"""
_COLUMNS, _WIDTH, _MARGIN, _LINE, _BAR = 2, 470, 20, 22, 14
_LABEL, _VALUE = 106, 108
"""Room for a server's name, and for what its bar stands for."""


@dataclass(frozen=True, slots=True)
class Bar:
    """far: of a second bar behind it, or the same."""

    name: str
    near: float
    far: float
    text: str


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars of one scale."""

    title: str
    note: str
    bars: Sequence[Bar]


def draw(
    runs: Mapping[str, Mapping[str, Sequence[Run]]],
    memory: Mapping[str, int],
    caption: str,
    versions: Mapping[str, str],
) -> str:
    """The picture of what there is. caption: when and where it was measured."""
    panels = [panel for panel in _panels(runs, memory) if panel.bars]
    rows = [panels[start : start + _COLUMNS] for start in range(0, len(panels), _COLUMNS)]
    heights = [max(_height(panel) for panel in row) for row in rows]
    size = (_COLUMNS * _WIDTH + (_COLUMNS + 1) * _MARGIN, sum(heights) + (len(rows) + 1) * _MARGIN + 2 * _LINE)
    root = Element("svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {size[0]} {size[1]}", role="img")
    SubElement(root, "title").text = "CPU per query, queries a second, latency and memory of kdns and other DNS servers"
    SubElement(root, "style").text = _STYLE
    SubElement(
        root, "rect", {"class": "card"}, x="0.5", y="0.5", width=str(size[0] - 1), height=str(size[1] - 1), rx="8"
    )
    top = _MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, panel in enumerate(row):
            _draw_panel(root, panel, _MARGIN + column * (_WIDTH + _MARGIN), top)
        top += height + _MARGIN
    apart = (targets.PYTHON, peers.FLOOR)
    shown = ", ".join(f"{NAMES[name]} {versions[name]}" for name in NAMES if name in versions and name not in apart)
    for number, line in enumerate((shown, caption)):
        _text(root, line, _MARGIN, top + number * _LINE, "small")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _panels(runs: Mapping[str, Mapping[str, Sequence[Run]]], memory: Mapping[str, int]) -> list[Panel]:
    cpu = "CPU of the server's processes for each query, µs"
    return [
        _cost("Repeated names", cpu, runs.get(REPEATED, {})),
        _cost(f"Repeated names at an even {PACE:,} a second", cpu, runs.get(PACED, {})),
        _cost("NXDOMAIN under search suffixes, each name new", cpu, runs.get(SUFFIXED, {})),
        _cost("NXDOMAIN of random labels, each name new", cpu, runs.get(RANDOM, {})),
        _cost("Services, endpoints and NXDOMAIN, hardly a name twice", cpu, runs.get(FRESH, {})),
        _rates(runs.get(LIMIT, {})),
        _latencies(runs.get(PACED, {})),
        Panel(
            "Memory after all of it",
            "PSS of all processes, MB",
            [
                Bar(name, size / 1e6, size / 1e6, f"{size / 1e6:.0f}")
                for name, size in _in_order(memory)
                if name != peers.FLOOR
            ],
        ),
    ]


def _cost(title: str, note: str, servers: Mapping[str, Sequence[Run]]) -> Panel:
    costs = ((name, median(run.cpu for run in runs)) for name, runs in _in_order(servers))
    return Panel(title, note, [Bar(name, cost, cost, f"{cost:.1f}") for name, cost in costs])


def _rates(servers: Mapping[str, Sequence[Run]]) -> Panel:
    rates = ((name, median(run.rate for run in runs)) for name, runs in _in_order(servers))
    bars = [Bar(name, rate, rate, f"{rate / 1000:,.0f},000") for name, rate in rates]
    return Panel("Repeated names, as many as one core takes", "answers a second", bars)


def _latencies(servers: Mapping[str, Sequence[Run]]) -> Panel:
    bars = []
    for name, runs in _in_order(servers):
        near, far = (median(getattr(run, figure) or 0 for run in runs) for figure in ("p50", "p99"))
        bars.append(Bar(name, near, far, f"{near:,.0f} · {far:,.0f}"))
    return Panel(f"Latency at an even {PACE:,} a second", "median · 99 %, µs", bars)


def _in_order(servers: Mapping[str, _T]) -> list[tuple[str, _T]]:
    return [(name, servers[name]) for name in NAMES if name in servers]


def _height(panel: Panel) -> int:
    return (len(panel.bars) + 2) * _LINE


def _draw_panel(root: Element, panel: Panel, left: int, top: int) -> None:
    _text(root, panel.title, left, top, "title")
    _text(root, panel.note, left, top + _LINE - 4, "small")
    longest = max(bar.far for bar in panel.bars)
    scale = (_WIDTH - _LABEL - _VALUE) / longest if longest else 0
    for number, bar in enumerate(panel.bars, 2):
        line = top + number * _LINE
        kind = (
            "kdns" if bar.name in (targets.KDNS, targets.PYTHON) else bar.name if bar.name == peers.FLOOR else "other"
        )
        _text(root, NAMES[bar.name], left + _LABEL - 8, line, "end")
        if bar.far > bar.near:
            _bar(root, f"{kind} far", left + _LABEL, line, bar.far * scale)
        _bar(root, kind, left + _LABEL, line, bar.near * scale)
        _text(root, bar.text, left + _LABEL + round(bar.far * scale) + 6, line, "")


def _text(root: Element, text: str, left: int, top: int, kind: str) -> None:
    """top: of the line."""
    attributes = {"x": str(left), "y": str(top + _BAR - 2)} | ({"class": kind} if kind else {})
    SubElement(root, "text", attributes).text = text


def _bar(root: Element, kind: str, left: int, top: int, width: float) -> None:
    size = {"x": str(left), "y": str(top), "width": f"{max(width, 1):.1f}", "height": str(_BAR)}
    SubElement(root, "rect", {"class": kind, **size, "rx": "2"})
