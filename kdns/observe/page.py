"""The status page: HTML without scripts, for any browser, on a phone too, and readable without colours."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from string import Template

from kdns.observe.status import Cache, Process, Source, Status, Upstream
from kdns.observe.text import NOTHING, age, ago, moment, percent, printable, rate, seconds, size, span, times

REFRESH_SECONDS = 10

STYLE = """
:root{color-scheme:light dark;--back:#ffffff;--text:#1b1f23;--dim:#57606a;--line:#d8dee4;--card:#f5f7f9;
--good:#116329;--bad:#a40e26;--mark:#fff1f0}
@media(prefers-color-scheme:dark){:root{--back:#14181c;--text:#e4e8ec;--dim:#9ba6b1;--line:#323a42;--card:#1c2228;
--good:#6fd58f;--bad:#ff9c94;--mark:#3a1d1d}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:1.2rem;background:var(--back);color:var(--text);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;overflow-wrap:break-word}
h1{font-size:1.6rem;margin:0;line-height:1.2}
h2{font-size:1.05rem;margin:2rem 0 .5rem}
h1 small,.dim,th,dt,footer{color:var(--dim);font-weight:400}
header p,.note{margin:.2rem 0;color:var(--dim)}
a{color:inherit}
.state{margin:1rem 0;padding:.6rem .9rem;border:1px solid var(--line);border-left:.35rem solid var(--good);
border-radius:.4rem;background:var(--card)}
.state.alarm{border-left-color:var(--bad);background:var(--mark)}
.state ul{margin:.3rem 0 0;padding-left:1.2rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.3rem,1fr));gap:.6rem;margin:1rem 0}
.cards div{border:1px solid var(--line);border-radius:.4rem;padding:.5rem .8rem;background:var(--card)}
dt{font-size:.85rem}
dd{margin:0;font-size:1.25rem;font-variant-numeric:tabular-nums}
dd small{display:block;font-size:.8rem;color:var(--dim)}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:.3rem .9rem .3rem 0;border-bottom:1px solid var(--line)}
th{font-size:.85rem;white-space:nowrap}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
td.k{white-space:nowrap}
td.w{min-width:8rem;overflow-wrap:anywhere}
.state,.note,dd,footer{overflow-wrap:anywhere}
code{font:.92em ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.good{color:var(--good)}
.bad{color:var(--bad);font-weight:600}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(16rem,1fr));gap:0 2.5rem}
footer{margin-top:2.5rem;padding-top:.6rem;border-top:1px solid var(--line);font-size:.85rem}
@media(max-width:40rem){body{padding:.8rem}
thead{position:absolute;clip-path:inset(50%);height:1px;width:1px;overflow:hidden}
table,tbody,tr{display:block}
tr{padding:.4rem 0;border-bottom:1px solid var(--line)}
td,td.n{display:inline-block;border:0;padding:0 .9rem 0 0;text-align:left}
td:first-child,td.w{display:block}
td.k{white-space:normal}
td+td::before{content:attr(data-label) " ";color:var(--dim);font-weight:400}}
"""
"""One inline style, which the Content-Security-Policy names by its hash."""

_PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="$refresh">
<title>$title</title>
<link rel="icon" href="data:,">
<style>$style</style>
</head>
<body>
<header>
<h1>kdns <small>$version</small></h1>
<p>$where</p>
</header>
<main>
$main
</main>
<footer>
<p>$footer</p>
</footer>
</body>
</html>
""")
_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_HASH}'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True, slots=True)
class _Cell:
    """A cell of a table, as HTML. kind: classes of the style: n for numbers, k for what is short, w for what is not."""

    html: str
    kind: str = ""


def render(status: Status, links: Iterable[str] = ()) -> bytes:
    """The page. links: paths that are served at the same address."""
    sections = [
        _state(status),
        _cards(status),
        _errors(status),
        _sources(status),
        _zones(status),
        _upstreams(status.counts.upstreams, status.now),
        _caches(status),
        _queries(status),
        _names(status),
        _processes(status),
        _node(status.ways),
        _servers(status),
    ]
    elsewhere = [f'<a href="{escape(path)}">{escape(path)}</a>' for path in links]
    text = _PAGE.substitute(
        refresh=REFRESH_SECONDS,
        title=_text(f"kdns on {status.host}: {'attention' if status.attention else 'all well'}"),
        style=STYLE,
        version=_text(status.version),
        where=_text(
            f"{status.host}, {'node' if status.mode == 'node' else 'cluster'} DNS, up for "
            f"{span(status.now - status.started)}"
        ),
        main="\n".join(filter(None, sections)),
        footer=" · ".join(
            [
                *elsewhere,
                f"as of {moment(status.now)}, again every {REFRESH_SECONDS} s; as JSON with Accept: application/json",
            ]
        ),
    )
    return text.encode()


# Parts


def _state(status: Status) -> str:
    if not status.attention:
        return '<p class="state"><strong class="good">✓ All well.</strong> Nothing needs attention now.</p>'
    items = "".join(f"<li>{_text(line)}</li>" for line in status.attention)
    return f'<div class="state alarm"><strong class="bad">! Needs attention</strong><ul>{items}</ul></div>'


def _cards(status: Status) -> str:
    queries, packets = status.counts.queries, status.counts.packet_cache
    ages = [source.age for source in status.sources if source.age is not None]
    limit = f"of {size(status.limit)}" if status.limit is not None else "no limit"
    workers = [process for process in status.processes if process.role.startswith("worker")]
    cards = [
        ("queries", f"{queries.total:,}", "since the start"),
        ("queries a second", NOTHING if queries.per_second is None else rate(queries.per_second), "lately"),
        (
            "median response",
            seconds(queries.percentiles.get("50")),
            f"99 % in {seconds(queries.percentiles.get('99'))}",
        ),
        ("packet cache", percent(packets.hit_rate), f"hits, {packets.entries:,} answers"),
        ("workers", f"{sum(worker.well for worker in workers)} of {status.wanted}", _restarts(status)),
        ("memory", size(status.memory), limit),
    ]
    if status.sources:
        cards.append(("data", age(max(ages, default=None)), f"{status.store_entries:,} names"))
    items = (f"<div><dt>{_text(t)}</dt><dd>{_text(d)}<small>{_text(s)}</small></dd></div>" for t, d, s in cards)
    return f'<dl class="cards">{"".join(items)}</dl>'


def _restarts(status: Status) -> str:
    number = status.counts.worker_restarts
    return "never replaced" if not number else f"replaced {times(number)}"


def _errors(status: Status) -> str:
    rows = [
        [
            _Cell(f"<code>{_text(message.text)}</code>", "w"),
            _Cell(_text(message.level.lower()), "bad k" if message.level == "ERROR" else "k"),
            _number(f"{message.count:,}"),
            _Cell(_text(ago(message.last, status.now)), "k"),
            _Cell(_text(ago(message.first, status.now)), "k"),
        ]
        for message in status.messages
    ]
    if not rows:
        return _section("Last warnings and errors", '<p class="note">None since the start.</p>')
    return _section("Last warnings and errors", _table(("message", "level", "times", "last", "first"), rows))


def _sources(status: Status) -> str:
    rows = [
        [
            _Cell(_text(" ".join(source.zones)), "w"),
            _Cell(_text(source.origin), "w"),
            _Cell("yes", "good k") if source.synced else _Cell("not yet", "bad k"),
            _Cell(_text(age(source.age)), "k"),
            _Cell(_text(_objects(source)), "w"),
        ]
        for source in status.sources
    ]
    return _section("Sources", _table(("zones", "read from", "complete", "data", "objects"), rows)) if rows else ""


def _objects(source: Source) -> str:
    parts = [f"{count:,} {kind}" for kind, count in sorted(source.objects.items()) if count]
    if source.problems:
        parts.append(f"{source.problems} files cannot be used")
    if source.unreached:
        parts.append(f"{source.unreached} zones cannot be fetched")
    return ", ".join(parts) or "none"


def _zones(status: Status) -> str:
    rows = [
        [
            _Cell(f"<code>{_text(zone.zone)}</code>", "w"),
            _Cell(_text(zone.state), "good k" if zone.state == "synced" else "bad k"),
            _number(str(zone.serial)),
        ]
        for zone in status.zones
    ]
    note = f'<p class="note">{status.store_entries:,} names, {size(status.store_bytes)} on the disk.</p>'
    return _section("Zones", _table(("zone", "state", "serial"), rows) + note) if rows else ""


def _upstreams(found: Sequence[Upstream], now: float) -> str:
    rows = []
    for upstream in found:
        users = upstream.up + upstream.down
        part = f" for {upstream.down} of {users}" if upstream.up else ""
        state = _Cell(f"down{part}", "bad k") if upstream.down else _Cell("up", "good k")
        last = "never" if not upstream.last_failure else ago(upstream.last_failure, now)
        rows.append(
            [
                _Cell(f"<code>{_text(upstream.to)}</code>"),
                state,
                _number(f"{upstream.answers:,}"),
                _number(seconds(upstream.seconds)),
                _number(f"{upstream.failed_checks:,}"),
                _Cell(_text(last), "k"),
            ]
        )
    heads = ("upstream", "state", "answers", "mean time", "failed checks", "last failure")
    note = '<p class="note">Each forward of each worker finds out for itself whether an upstream is up.</p>'
    return _section("Upstreams", _table(heads, rows) + note) if rows else ""


def _caches(status: Status) -> str:
    packets = status.counts.packet_cache
    rows = [
        [
            _Cell("packet cache", "w"),
            _number(percent(packets.hit_rate)),
            _number(f"{packets.entries:,}"),
            _number(NOTHING),
        ]
    ]
    rows += [_cache(cache) for cache in status.counts.caches]
    return _section("Caches", _table(("cache", "hits", "answers kept", "served stale"), rows))


def _cache(cache: Cache) -> list[_Cell]:
    kept = ", ".join(f"{number:,} {kind}" for kind, number in sorted(cache.entries.items(), reverse=True))
    title = f"cache for {cache.zones} at {cache.server}"
    return [
        _Cell(_text(title), "w"),
        _number(percent(cache.hit_rate)),
        _number(kept or "0"),
        _number(f"{cache.stale:,}"),
    ]


def _queries(status: Status) -> str:
    queries = status.counts.queries
    if not queries.total:
        return ""
    kinds = (("response code", queries.rcodes), ("type", queries.types), ("transport", queries.protocols))
    tables = [
        _table(
            (title, "queries", "share"),
            [
                [_Cell(_text(label)), _number(f"{number:,}"), _number(f"{number / queries.total:.1%}")]
                for label, number in found.items()
            ],
        )
        for title, found in kinds
    ]
    return _section("Queries", f'<div class="pair">{"".join(f"<div>{table}</div>" for table in tables)}</div>')


def _names(status: Status) -> str:
    if not status.names_wanted:
        return ""
    rows = [
        [
            _Cell(f"<code>{_text(top.name)}</code>", "w"),
            _Cell(_text(top.type), "k"),
            _Cell(_text(top.rcode), "k"),
            _number(rate(top.rate)),
        ]
        for top in status.top_names
    ]
    body = _table(("name", "type", "response", "a second"), rows) if rows else '<p class="note">None yet.</p>'
    return _section("Names asked for most", body)


def _processes(status: Status) -> str:
    rows = [
        [
            _Cell(_text(process.role)),
            _Cell("well", "good k") if process.well else _Cell("does not answer", "bad k"),
            _number(str(process.pid)),
            _Cell(_text(_since(process, status.now)), "k"),
            _number(NOTHING if process.memory is None else size(process.memory)),
        ]
        for process in status.processes
    ]
    return _section("Processes", _table(("process", "state", "pid", "for", "memory"), rows))


def _since(process: Process, now: float) -> str:
    return NOTHING if process.since is None else span(now - process.since)


def _node(ways: Mapping[str, str]) -> str:
    rows = [
        [_Cell(f"<code>{_text(address)}</code>"), _Cell(_text(by), "good") if by else _Cell("not brought here", "bad")]
        for address, by in ways.items()
    ]
    return _section("Addresses of this node", _table(("address", "queries are brought here by"), rows)) if rows else ""


def _servers(status: Status) -> str:
    rows = [
        [
            _Cell(f"<code>{_text(server.label)}</code>", "k"),
            _Cell(f"<code>{_text(' '.join(block.zones))}</code>", "w"),
            _Cell(_text(", ".join(server.sockets)), "w"),
            _Cell(_text(" ".join(block.plugins)), "w"),
        ]
        for server in status.servers
        for block in server.blocks
    ]
    config = _text(", ".join(status.files) or NOTHING)
    note = f'<p class="note">Configuration: {config}, SHA-512 {_text(status.digest[:12])}…</p>'
    return _section("Server blocks", _table(("server", "zones", "sockets", "plugins"), rows) + note)


# Elements


def _section(title: str, body: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{body}</section>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[_Cell]]) -> str:
    rows = list(rows)
    numeric = {index for index in range(len(heads)) if rows and all(row[index].kind == "n" for row in rows)}
    head = "".join(f"<th{_class('n' if i in numeric else '')}>{_text(text)}</th>" for i, text in enumerate(heads))
    body = "".join(
        "<tr>"
        + "".join(
            f'<td{_class(cell.kind)} data-label="{_text(title)}">{cell.html}</td>'
            for title, cell in zip(heads, row, strict=True)
        )
        + "</tr>\n"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _number(text: str) -> _Cell:
    return _Cell(_text(text), "n")


def _text(text: str) -> str:
    return escape(printable(text))
