"""What a server with some Corefile and some cluster would answer, without a server: its own plugins, run here.

Those that would ask somebody else do not: where a question leaves, the answer says to whom.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdns.corefile.config import ServerConfig
from kdns.observe.counters import Region
from kdns.observe.logs import Log, Sink
from kdns.plugins import MODULES, auto, autopath, file, forward, k8s_external, kubernetes, sited
from kdns.plugins import view as view_
from kdns.plugins.budget import Budget
from kdns.plugins.chain import Handler, Next, link
from kdns.plugins.conditions import View as Conditions
from kdns.plugins.site import Site
from kdns.plugins.views import Candidate, Views
from kdns.tools.snapshot import View, finish
from kdns.wire import message, names, rr
from kdns.wire.message import Query, Response
from kdns.wire.rrset import RRset
from kdns.zone.changes import Changes

_ANSWERING = ("any", "header", "hosts", "local", "minimal", "rewrite", "template", "whoami")
"""Plugins whose answers need nobody else."""
_CLIENT = ("192.0.2.1", 1024)


@dataclass(frozen=True, slots=True)
class Way:
    """Where a question leaves to. upstreams: as `forward` has them; none if they are not known. what: in words."""

    name: bytes
    what: str
    upstreams: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer. plugin: who gave it, "" for nobody. answer: owners in lower case, and their RRsets. zone: of the SOA
    in a negative answer.

    size: bytes of the whole message without an OPT record. way: where the question left to, or the target of the alias
    that the answer has; nothing is known of what comes from there, and the rcode means nothing where the answer is
    empty.
    """

    rcode: int
    plugin: str
    answer: tuple[tuple[bytes, RRset], ...] = ()
    additional: tuple[tuple[bytes, RRset], ...] = ()
    zone: bytes | None = None
    size: int = 0
    error: str = ""
    way: Way | None = None


class _Left(Exception):  # noqa: N818 - it is no error
    """A question that somebody else would be asked."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.way = way


class Offline:
    """The server blocks of one port. warnings: what a server would log at its start, such as files that are missing;
    and for whom views are tried."""

    def __init__(
        self, view: View, blocks: Sequence[ServerConfig], port: int, upstream: str = "", namespace: str = ""
    ) -> None:
        """port: whose blocks answer. upstream: in words, who is asked where no plugin answers; "" for nobody.

        namespace: of the pod that asks, "" for no pod.
        """
        self._view = view
        self._namespace = namespace
        self._upstream = upstream
        self._left: Way | None = None
        self.warnings: list[str] = []
        chains: dict[bytes, list[Candidate[Next]]] = {}
        viewed = False
        for block in blocks:
            chain = link(self._handlers(block), self._nobody)
            options = block.plugins.get(view_.NAME)
            for key in block.keys:
                if key.port == port and key.scheme == "dns":
                    viewed = viewed or options is not None
                    found = Candidate(chain, chain, Conditions(options) if options is not None else None)
                    chains.setdefault(names.lower(names.from_text(key.zone)), []).append(found)
        if viewed:
            self.warnings.append(f"views are tried for a client at {_CLIENT[0]}, and without metadata")
        self._chains = Views(chains)

    def ask(self, name: bytes, rtype: int) -> Answered:
        """What is answered to a question for a name and type over UDP."""
        query = _query(name, rtype)
        self._left = None
        chain = self._chains.find(query)
        if chain is None:
            return Answered(rr.REFUSED, "", error="no server block has this name")
        try:
            response = finish(chain(query))
        except _Left as left:
            return Answered(rr.NOERROR, "forward" if left.way.upstreams else "", way=left.way)
        wire = message.encode(replace(query, limit=message.MAX_MESSAGE), response).wire
        return Answered(
            response.rcode,
            response.plugin,
            tuple(response.answer),
            tuple(response.additional),
            next((owner for owner, rrset in response.authority if rrset.type == rr.SOA), None),
            len(wire),
            response.error,
            self._left,
        )

    def _handlers(self, block: ServerConfig) -> list[Handler]:
        site = Site(
            Region.create(1),
            _Lines(self.warnings),
            tuple(key.zone for key in block.keys),
            "",
            self._follow,
            _drop,
            Changes.create(),
            Budget(),
        )
        found: list[Handler] = []
        for name, options in block.plugins.items():
            if name == kubernetes.NAME:
                found += self._kubernetes(options)
            elif name == file.NAME:
                found.append(_Unread(names.zone_set(zone for each in options.files for zone in each.zones)))
            elif name == auto.NAME:
                found.append(_Unread(names.zone_set(options.zones)))
            elif name == "secondary":
                found.append(_Unread(names.zone_set(zone for copy in options.copies for zone in copy.zones)))
            elif name == autopath.NAME:
                cluster = options.cluster(block) if options.pods else ()
                pods = _Pods(self._namespace) if options.pods else None
                found.append(autopath.Handler(options, site, cluster, pods))
            elif name == k8s_external.NAME:
                found.append(self._view.external(options, self._follow))
            elif name == forward.NAME:
                found.append(_Forward(options))
            elif name in _ANSWERING:
                make: Callable[..., Handler] = MODULES[name].Handler
                found.append(make(options, site) if sited(name) else make(options))
        return found

    def _kubernetes(self, options: kubernetes.Options) -> list[Handler]:
        """The directive at work, as far as its zones are there; those of another cluster are not known."""
        there = {zone.origin for zone in self._view.zones()}
        origins = {names.lower(names.from_text(zone)): zone for zone in options.zones}
        known = tuple(zone for origin, zone in origins.items() if origin in there)
        found: list[Handler] = [_Unread(names.zone_set(set(options.zones) - set(known)))]
        if known:
            found.append(self._view.handler(replace(options, zones=known), self._follow))
        return found

    async def _follow(self, query: Query) -> Response:
        """What this server answers for the target of an alias, as far as it is known here."""
        chain = self._chains.find(query)
        try:
            response = await chain(query) if chain is not None else Response(rcode=rr.REFUSED)
        except _Left as left:
            self._left = left.way
            return Response()
        if not response.plugin:
            self._left = Way(query.lname, "nobody")
        return response

    async def _nobody(self, query: Query) -> Response:
        if self._upstream:
            raise _Left(Way(query.lname, self._upstream))
        return Response(rcode=rr.REFUSED, error="no plugin of the server block answers for it")


class _Pods:
    """Takes whoever asks for a pod of one namespace."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace

    def of(self, address: str) -> str | None:
        """See `kdns.zone.clients`."""
        return self._namespace or None


class _Unread:
    """Says that a zone is not known here."""

    def __init__(self, zones: names.Zones[bool]) -> None:
        self._zones = zones

    async def __call__(self, query: Query, next: Next) -> Response:
        if self._zones.find(query.lname):
            raise _Left(Way(query.lname, "answered from a zone of the Corefile that is not in this data"))
        return await next(query)


class _Forward:
    """Says who would be asked."""

    def __init__(self, options: forward.Options) -> None:
        self._forwards = options.forwards

    async def __call__(self, query: Query, next: Next) -> Response:
        for each in self._forwards:
            if _covers(each, query.lname):
                targets = tuple(map(str, each.targets))
                raise _Left(Way(query.lname, f"forwarded to {_either(targets)}", targets))
        return await next(query)


def _covers(each: forward.Forward, name: bytes) -> bool:
    zones = [names.lower(names.from_text(zone)) for zone in each.zones]
    return name in zones or (
        any(names.is_subdomain(name, zone) for zone in zones) and names.zone_set(each.excepted).find(name) is None
    )


def _either(targets: Sequence[str]) -> str:
    return targets[0] if len(targets) == 1 else f"{', '.join(targets[:-1])} or {targets[-1]}"


class _Lines(Log):
    """Keeps warnings in a list."""

    def __init__(self, lines: list[str], prefix: str = "") -> None:
        super().__init__(Sink(), prefix=prefix)
        self._lines = lines

    def plugin(self, name: str) -> Log:
        return _Lines(self._lines, f"{name}: ")

    def _say(self, level: str, text: str, key: str, kind: str = "") -> None:
        if level in ("WARNING", "ERROR"):
            self._lines.append(self._prefix + text)


def _drop(steps: Coroutine[Any, Any, None]) -> None:
    """Nothing runs in the background here."""
    with contextlib.suppress(RuntimeError):
        steps.close()


def _query(name: bytes, rtype: int) -> Query:
    data = message.HEADER.pack(0, message.RD, 1, 0, 0, 0) + name + rtype.to_bytes(2, "big") + rr.IN.to_bytes(2, "big")
    return message.parse(data, "udp", _CLIENT, _CLIENT, message.DEFAULT_UDP)
