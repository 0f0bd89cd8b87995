"""What the status page tells of the supervisor: its configuration, sources, processes, and the counters of all."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from email.message import Message
from http import HTTPStatus
from ipaddress import ip_address
from typing import TYPE_CHECKING

import msgspec

import kdns
from kdns.corefile.config import Config
from kdns.observe import notes, page, status
from kdns.observe.counters import Totals
from kdns.observe.http import Reply
from kdns.observe.metrics import proportional_set_size
from kdns.observe.recent import Recent, merged
from kdns.observe.status import Status
from kdns.observe.text import printable
from kdns.plugins import prometheus
from kdns.server.cgroups import memory_limit
from kdns.server.plan import Plan
from kdns.server.workers import Worker
from kdns.wire import names
from kdns.zone import sources
from kdns.zone.store import EXPIRED, SYNCED, Store

if TYPE_CHECKING:
    from kdns.server.feeds import Feed

LATELY = 30.0
"""Seconds over which queries a second are told."""
_JSON = "application/json"
_STATES = {SYNCED: "synced", EXPIRED: "expired"}


@dataclass(frozen=True, slots=True, eq=False)
class Inside:
    """What the supervisor has at a moment. The names are those of Status and of the supervisor's own parts."""

    started: float
    config: Config
    plan: Plan
    feeds: Sequence[Feed]
    workers: Sequence[Worker]
    wanted: int
    nursery: int
    outdated: bool
    store: Store | None
    ways: Mapping[str, str]
    node: bool


class Pace:
    """How many queries a second came since somebody looked before, in about the last LATELY seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: deque[tuple[float, int]] = deque()

    def tell(self, total: int, now: float) -> float | None:
        """None if nobody has looked before. now: of time.monotonic()."""
        with self._lock:
            seen = self._seen
            while len(seen) > 1 and seen[1][0] <= now - LATELY:
                seen.popleft()
            if not seen or now - seen[-1][0] >= 1:
                seen.append((now, total))
            then, before = seen[0]
            return max(total - before, 0) / (now - then) if now - then >= 1 else None


class StatusPage:
    """The page at /: HTML, or JSON if that is asked for."""

    def __init__(self, totals: Totals, recent: Recent) -> None:
        """totals: of all processes. recent: messages of this one."""
        self._totals = totals
        self._recent = recent
        self._pace = Pace()

    def answer(self, inside: Inside, headers: Message, links: Iterable[str]) -> Reply:
        """The reply to a request with these headers. links: other paths at the same address. In any thread."""
        facts = self.status(inside)
        accepted = headers.get("Accept") or ""
        wanted = [part.partition(";")[0].strip().lower() for part in accepted.split(",")]
        if _JSON in wanted and "text/html" not in wanted:
            return Reply(HTTPStatus.OK, {**page.HEADERS, "Content-Type": _JSON, "Vary": "Accept"}, as_json(facts))
        return Reply(HTTPStatus.OK, {**page.HEADERS, "Vary": "Accept"}, page.render(facts, links))

    def status(self, inside: Inside) -> Status:
        """All facts at this moment."""
        cells = self._totals.totals()
        pace = self._pace.tell(status.answered(cells), time.monotonic())
        found = notes.read(self._totals.boards())
        most = prometheus.most_names(inside.config.blocks)
        processes = tuple(_processes(inside))
        zones, entries, size = _store(inside)
        facts = Status(
            version=kdns.__version__,
            host=socket.gethostname(),
            mode="node" if inside.node else "cluster",
            now=time.time(),
            started=inside.started,
            files=inside.config.files,
            digest=inside.config.digest,
            outdated=inside.outdated,
            servers=tuple(_servers(inside.plan)),
            sources=tuple(map(_source, inside.feeds)),
            zones=zones,
            store_entries=entries,
            store_bytes=size,
            processes=processes,
            wanted=inside.wanted,
            memory=sum(process.memory or 0 for process in processes),
            limit=memory_limit(),
            ways=inside.ways,
            counts=status.counts(cells, pace),
            top_names=tuple(notes.top_names(found, most)),
            names_wanted=bool(most),
            messages=merged([self._recent.messages(), *(each.messages for each in found)]),
        )
        return replace(facts, attention=status.attention(facts))


def as_json(facts: Status) -> bytes:
    """The status as JSON; what is not printable in a text (a path may be any bytes) is there as an escape."""
    return msgspec.json.format(msgspec.json.encode(_clean(msgspec.to_builtins(facts))), indent=2) + b"\n"


def _clean(value: object) -> object:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): _clean(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(member) for member in value]
    return value


# Parts


def _processes(inside: Inside) -> Iterable[status.Process]:
    own = os.getpid()
    yield status.Process("supervisor", own, inside.started, proportional_set_size(own))
    yield status.Process("nursery", inside.nursery, None, proportional_set_size(inside.nursery))
    for worker in inside.workers:
        memory = proportional_set_size(worker.pid)
        yield status.Process(f"worker {worker.index}", worker.pid, worker.since, memory, worker.well)


def _store(inside: Inside) -> tuple[tuple[status.ZoneState, ...], int, int]:
    store = inside.store
    if store is None:
        return (), 0, 0
    used = {feed.publication.source for feed in inside.feeds}
    used |= {sources.beside(source, sources.EXTERNAL) for source in used}
    zones = (zone for zone in store.zones if zone.source in used)
    found = [
        status.ZoneState(names.to_text(zone.origin), zone.serial, _STATES.get(zone.state, "not yet")) for zone in zones
    ]
    return tuple(found), store.entries, store.size


def _source(feed: Feed) -> status.Source:
    publication = feed.publication
    fetched = publication.directive == "secondary"
    return status.Source(
        zones=publication.names,
        origin=publication.origin,
        synced=publication.synced,
        age=feed.followed() if hasattr(feed, "followed") else feed.age(),
        objects=dict(publication.counts()),
        problems=0 if fetched else feed.problems,
        unreached=feed.problems if fetched else 0,
    )


def _servers(plan: Plan) -> Iterable[status.Server]:
    for server in plan.servers:
        blocks: dict[int, list[str]] = {}
        for key, index in server.routes:
            blocks.setdefault(index, []).append(key.zone)
        yield status.Server(
            server.label,
            tuple(f"{place.proto} {_host(place.host)}:{place.port}" for place in server.places),
            tuple(status.Block(tuple(zones), tuple(plan.blocks[index].plugins)) for index, zones in blocks.items()),
        )


def _host(host: str) -> str:
    return f"[{host}]" if ip_address(host.partition("%")[0]).version == 6 else host
