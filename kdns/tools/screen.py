"""What `kdns top` draws: a View as a screen of any size, or as text of any length."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from kdns.observe.text import NOTHING, age, percent, printable, rate, seconds, size
from kdns.tools.scrape import Name, Upstream, View

NARROW, WIDE = 90, 124
"""Columns below which some things are left out, and from which upstreams stand beside the types."""
_MOST_TYPES = 6
_MOST_TROUBLES = 4
_FEW_NAMES = 3
"""Lines that names get before the other tables are shown in full."""
_LEVELS = "▁▂▃▄▅▆▇█"
_HISTORY = 12
_BAR = 10
_GAP = 2
_COLOURS = {"NOERROR": "green", "NXDOMAIN": "yellow", "SERVFAIL": "red", "REFUSED": "red", "FORMERR": "red"}
_STATES = {
    "up": ("up", "green"),
    "down": ("down", "bold red"),
    "part": ("down for some", "bold red"),
    "failing": ("checks fail", "bold red"),
    "unknown": (NOTHING, "dim"),
}


@dataclass(frozen=True, slots=True)
class Instance:
    """One server. view: None until it was seen twice in a row. error: why it cannot be seen now, "" if it can."""

    title: str
    view: View | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """All that is shown. total: of the servers that can be seen. history: queries a second, the last ones last.

    corner: what stands in the upper right corner.
    """

    instances: tuple[Instance, ...]
    total: View
    history: tuple[float, ...]
    corner: str = ""


@dataclass(frozen=True, slots=True)
class _Block:
    """A table and its height."""

    table: RenderableType
    lines: int


def frame(picture: Picture, width: int, height: int | None = None) -> RenderableType:
    """The screen. height: lines that there are; None for as many as it takes."""
    lines: list[RenderableType] = [_head(picture, width), *_troubles(picture)]
    if not any(instance.view is not None for instance in picture.instances):
        return Group(*lines, Text("rates are there after two looks", "dim", no_wrap=True, overflow="ellipsis"))
    numbers = list(_numbers(picture, width))
    lines += [*numbers, Text()]
    if height is None:
        return Group(*lines, *(part.table for part in _blocks(picture, width, 1000)))
    return Group(*lines, *(part.table for part in _blocks(picture, width, height - len(lines))))


def _blocks(picture: Picture, width: int, room: int) -> Iterable[_Block]:
    """Tables that have room in so many lines together."""
    total = picture.total
    for_names = min(_FEW_NAMES, len(total.names)) + 2
    beside = width >= WIDE
    for make in (
        partial(_types, total, width, with_upstreams=beside),
        partial(_upstreams, () if beside else total.upstreams),
        partial(_instances, picture.instances, width),
    ):
        found = make(room - for_names)
        if found is not None:
            room -= found.lines
            yield found
    names = _names(total, room)
    if names is not None:
        yield names


# Lines


def _head(picture: Picture, width: int) -> Text:
    titles = ", ".join(printable(instance.title) for instance in picture.instances)
    text = Text.assemble(("kdns top", "bold"), f"  {titles}")
    if picture.total.software:
        text.append(f"  {printable(', '.join(picture.total.software))}", "dim")
    corner = picture.corner[: max(width - 10, 0)]
    text.truncate(max(width - len(corner) - 2, 1), overflow="ellipsis", pad=True)
    return text.append(f"  {corner}" if corner else "", "dim")


def _troubles(picture: Picture) -> list[Text]:
    errors = [instance.error for instance in picture.instances if instance.error]
    found = [*errors, *picture.total.attention][:_MOST_TROUBLES]
    return [Text(f"! {printable(line)}", "bold red", no_wrap=True, overflow="ellipsis") for line in found]


def _numbers(picture: Picture, width: int) -> Iterable[Text]:
    """Names of values and, below each, the value; as many beside each other as there is room for."""
    row: list[tuple[str, str]] = []
    used = 0
    for name, value in _values(picture):
        cell = max(len(name), len(value)) + _GAP
        if row and used + cell > width:
            yield from _two_lines(row)
            row, used = [], 0
        row.append((name, value))
        used += cell
    yield from _two_lines(row)


def _two_lines(row: Sequence[tuple[str, str]]) -> Iterable[Text]:
    widths = [max(map(len, cell)) + _GAP for cell in row]
    for index, style in ((0, "dim"), (1, "bold")):
        text = "".join(cell[index].ljust(wide) for cell, wide in zip(row, widths, strict=True))
        line = Text(text.rstrip(), style, no_wrap=True, overflow="ellipsis")
        line.highlight_regex(f"[{_LEVELS}]+", "not bold cyan")
        yield line


def _values(picture: Picture) -> Iterable[tuple[str, str]]:
    total = picture.total
    yield "queries/s", f"{rate(total.queries)} {sparkline(picture.history)}".rstrip()
    for percent_, value in total.percentiles.items():
        yield f"{percent_} % in", seconds(value)
    for name, share in (("packet cache", total.packet_cache), ("cache", total.cache)):
        if share is not None:
            yield name, percent(share)
    if total.data_age is not None:
        yield "data", age(total.data_age)
    if total.workers is not None:
        yield "workers", f"{total.workers}" + (f", {total.workers_replaced} replaced" if total.workers_replaced else "")
    if total.memory is not None:
        yield "memory", size(total.memory)
    if total.cpu is not None:
        yield "CPU", f"{total.cpu:.0%}"


def sparkline(history: Sequence[float]) -> str:
    """The last values as bars of one line."""
    last = history[-_HISTORY:]
    top = max(last, default=0.0)
    if len(last) < 2 or top <= 0:
        return ""
    return "".join(_LEVELS[min(int(value / top * len(_LEVELS)), len(_LEVELS) - 1)] for value in last)


# Tables


def _table(*columns: Column, expand: bool = False) -> Table:
    return Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", expand=expand)


def _plain(text: str, style: str = "") -> Text:
    """A text of somebody else, in which brackets are brackets: Rich would take them for markup."""
    return Text(printable(text), style)


def _left(title: str, *, ratio: int | None = None) -> Column:
    return Column(title, no_wrap=True, overflow="ellipsis", ratio=ratio)


def _right(title: str) -> Column:
    return Column(title, justify="right", no_wrap=True)


def _types(total: View, width: int, room: int, *, with_upstreams: bool) -> _Block | None:
    """Types and response codes beside each other, and the upstreams if there is room."""
    most = min(_MOST_TYPES, room - 2)
    if most < 1 or not (total.types or total.rcodes or (with_upstreams and total.upstreams)):
        return None
    bars = width >= NARROW
    parts: list[_Block] = [_shares("type", total.types, most, bars), _shares("response", total.rcodes, most, bars)]
    upstreams = _upstreams(total.upstreams, most + 1) if with_upstreams else None
    grid = Table.grid(padding=(0, 4, 0, 0))
    if upstreams is not None:
        parts.append(upstreams)
    grid.add_row(*(part.table for part in parts))
    return _Block(Group(grid, Text()), max(part.lines for part in parts) + 1)


def _shares(title: str, found: Mapping[str, float], most: int, bars: bool) -> _Block:
    table = _table(_left(title), _right("/s"), _right("share"), *([Column("", no_wrap=True)] if bars else []))
    total = sum(found.values())
    shown = [(name, value) for name, value in found.items() if value > 0][:most]
    for name, value in shown:
        share = value / total
        bar = [Text("█" * round(share * _BAR), "cyan")] if bars else []
        table.add_row(_plain(name, _COLOURS.get(name, "")), rate(value), percent(share), *bar)
    if not shown:
        table.add_row(Text("none", "dim"), "", "", *([""] if bars else []))
    return _Block(table, max(len(shown), 1) + 1)


def _upstreams(found: Sequence[Upstream], room: int) -> _Block | None:
    urgent_first = sorted(found, key=lambda each: (each.state in ("up", "unknown"), -each.answers))
    shown = urgent_first[: max(room - 1, 0)]
    if not shown:
        return None
    table = _table(_left("upstream"), _left("state"), _right("answers/s"), _right("mean"), _right("failing/s"))
    for upstream in shown:
        text, style = _STATES[upstream.state]
        checks = rate(upstream.failed_checks) if upstream.failed_checks else NOTHING
        mean = seconds(upstream.seconds)
        table.add_row(_plain(upstream.to), Text(text, style), rate(upstream.answers), mean, checks)
    return _Block(Group(table, Text()), len(shown) + 2)


def _instances(found: Sequence[Instance], width: int, room: int) -> _Block | None:
    shown = found[: max(room - 2, 0)]
    if len(found) < 2 or not shown:
        return None
    titles = ("queries/s", "99 % in", "packet cache", "cache", "data", "workers", "memory")
    fitting = len(titles) if width >= NARROW else 5
    table = _table(_left("server"), *map(_right, titles[:fitting]))
    for instance in shown:
        cells = _instance(instance.view) if instance.view is not None else [Text(NOTHING, "red"), *[""] * 6]
        table.add_row(_plain(instance.title), *cells[:fitting])
    return _Block(Group(table, Text()), len(shown) + 2)


def _instance(view: View) -> list[RenderableType]:
    return [
        rate(view.queries),
        seconds(view.percentiles.get("99")),
        percent(view.packet_cache),
        percent(view.cache),
        NOTHING if view.data_age is None else age(view.data_age),
        NOTHING if view.workers is None else str(view.workers),
        NOTHING if view.memory is None else size(view.memory),
    ]


def _names(total: View, room: int) -> _Block | None:
    notes = [Text(printable(line), "dim", no_wrap=True, overflow="ellipsis") for line in total.missing]
    shown: Sequence[Name] = total.names[: max(room - 1 - len(notes), 0)]
    if not shown:
        return _Block(Group(*notes[: max(room, 0)]), len(notes)) if notes and room > 0 else None
    table = _table(_left("name asked for", ratio=1), _left("type"), _left("response"), _right("/s"), expand=True)
    for name in shown:
        colour = _COLOURS.get(name.rcode, "")
        table.add_row(_plain(name.name), _plain(name.type), _plain(name.rcode, colour), rate(name.rate))
    return _Block(Group(table, *notes), len(shown) + 1 + len(notes))
