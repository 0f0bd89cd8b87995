"""A worker: answers queries. It shares nothing with its siblings but the store, and knows nothing of Kubernetes.

It lives as long as its supervisor wants. If the supervisor itself is gone, it goes on answering until another one has
taken over: the state directory, or if there is none, the node. It waits for ORPHANED seconds at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from kdns import plugins
from kdns.corefile.config import ServerConfig, ServerKey
from kdns.observe import logs
from kdns.observe.counters import QueryCounters, Region
from kdns.observe.notes import Notes
from kdns.plugins import chaos, debug, forward, kubernetes, log, metadata, prometheus, timeouts, tls, view
from kdns.plugins.budget import Budget
from kdns.plugins.chain import Handler, Next, link
from kdns.plugins.site import Site
from kdns.server import cgroups, direct, memory
from kdns.server.direct import Direct, Served
from kdns.server.plan import Plan, Server
from kdns.server.respond import Block, Responder, Waiting, WriteDown
from kdns.server.sampling import Sampler, TopNames
from kdns.server.tcp import Connection, Connections, TcpServer
from kdns.server.udp import UdpServer
from kdns.wire import names, rr
from kdns.wire.message import Metadata, Query, Response
from kdns.zone import clients
from kdns.zone.changes import Changes
from kdns.zone.lookup import ZoneView
from kdns.zone.reader import Reader
from kdns.zone.store import is_held

if TYPE_CHECKING:  # what few servers have is imported where it is used
    from kdns.plugins import autopath, transfer, tsig
    from kdns.plugins.outgoing import Outgoing
    from kdns.plugins.secondary import Notified
    from kdns.plugins.views import Candidate, Views
    from kdns.server.certificates import Credential

T = TypeVar("T")
GO, READY, STOP, LEAVE = b"go", b"ready", b"stop", b"leave"
PATIENCE = 3.0
"""Seconds that clients get to take their last answers."""
ORPHANED = 600.0
_COLLECTIONS = 50_000, 20, 50
"""gc.set_threshold: seldom, as answering leaves no cycles, and what caches hold takes long to scan."""
_TAKEOVER = 1.0
_FOR_CHAOS = ("nsid", "bufsize", "errors", "chaos")


def run(plan: Plan, fds: list[int]) -> None:
    """Be a worker until told to stop; not at all, and without a touch to the sockets, if the supervisor never says GO:
    it does not know this process then, and has put another one in its place.

    fds: the control socket, the counters, the store's changes, and the sockets in the order of `plan.places`.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, lambda *_: None)  # ends a system call that blocks, see UdpServer.stop
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text("kdns-worker")
    _prefer_to_be_killed()
    gc.set_threshold(*_COLLECTIONS)
    if os.read(fds[0], 16) != GO:
        return
    try:
        asyncio.run(Worker(plan, fds).work())
    except BaseException:
        traceback.print_exc()
        raise


def _prefer_to_be_killed() -> None:
    """When memory runs out, a worker is to go and not the supervisor (proc(5) oom_score_adj)."""
    path = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):
        path.write_text(str(min(1000, int(path.read_text()) + memory.handicap(cgroups.memory_limit()))))


class Chains(NamedTuple):
    """The plugins of a server block, as a Block has them: usual is its chain. handlers: by directive, in order. known:
    what is known of a query for a name of a client (`metadata`)."""

    usual: Next
    chaos: Next | None
    log: WriteDown | None
    recursive: Callable[[bytes], bool] | None
    handlers: dict[str, Handler]
    classes: dict[int, Next]
    known: Callable[[bytes, str], Metadata] | None


class Worker:
    """The parts of a worker process."""

    def __init__(self, plan: Plan, fds: list[int]) -> None:
        control, region, changes, *sockets = fds
        self._plan = plan
        self._control = socket.socket(fileno=control)
        self._region = Region.attach(region)
        self._changes = Changes(changes)
        self._sockets = [socket.socket(fileno=fd) for fd in sockets]
        self._store = Reader(Path(plan.state_dir), self._changes) if plan.state_dir else None
        self._sink = logs.Sink(lost=self._lost_lines)
        self._log = logs.Log(self._sink)
        self._outgoing: Outgoing | None = None
        self._budget = Budget(plan.share.cached)
        self._waiting = Waiting(plan.share.waiting)
        self._connections = Connections(self._region, plan.share.held)
        self._udp: list[UdpServer] = []
        self._tcp: list[TcpServer] = []
        self._certificates: dict[tuple[str, tls.Options], Credential] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.get_ident()
        self._background: set[asyncio.Task[None]] = set()
        self._own: dict[int, Next] = {}
        self._reached: dict[int, Callable[[Query], Next | None]] = {}
        most = prometheus.most_names(plan.blocks)
        self._top = TopNames(most) if most else None
        self._sampler = Sampler(self._top) if self._top is not None else None

    async def work(self) -> None:
        """Serve until told to stop."""
        self._loop = loop = asyncio.get_running_loop()
        chains = [self._chains(index, config) for index, config in enumerate(self._plan.blocks)]
        self._own = {index: found.usual for index, found in enumerate(chains)}
        self._reached = self._reach(chains)
        sockets = iter(self._sockets)
        for server in self._plan.servers:
            responder = self._responder(server, chains)
            for place in server.places:
                sock = next(sockets)
                if place.proto == "udp":
                    self._udp.append(UdpServer(sock, responder, self._changes, self._region, loop, self._budget))
                else:
                    self._tcp.append(self._stream_server(server, sock, responder))
        for udp in self._udp:
            udp.start()
        for tcp in self._tcp:
            tcp.start()
        self._start(self._connections.sweep())
        self._start(self._report())
        if self._certificates:
            self._start(self._look_after_keys())
        self._control.setblocking(False)
        with contextlib.suppress(OSError):
            self._control.send(READY)
        await self._stop(leaving=await self._until_told() == LEAVE)
        ending = list(self._background)
        for task in ending:
            task.cancel()
        await asyncio.wait(ending, timeout=1)
        self._log.flush()

    def _start(self, steps: Coroutine[Any, Any, None]) -> None:
        """Run something for as long as the worker serves. May be called in any thread."""
        assert self._loop is not None
        if threading.get_ident() != self._thread:
            self._loop.call_soon_threadsafe(self._start, steps)
            return
        task = self._loop.create_task(steps)
        self._background.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._failed("".join(traceback.format_exception(error)).rstrip())

    async def _until_told(self) -> bytes:
        """Wait for the supervisor's word; LEAVE at the end of being an orphan, whose sockets nobody else has."""
        try:
            told = await asyncio.get_running_loop().sock_recv(self._control, 16)
        except OSError:
            told = b""
        if told:
            return told
        ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        self._log.warning(
            f"worker {self._plan.index}: the supervisor has ended; answering without it until another one starts"
        )
        held = 0.0
        waited = 0.0
        while held < _TAKEOVER and waited < ORPHANED and not ended.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), 0.2)
            waited += 0.2
            with contextlib.suppress(OSError):
                held = held + 0.2 if self._is_replaced() else 0.0
        return LEAVE

    def _is_replaced(self) -> bool:
        """Whether there is another supervisor in place of ours. Raises OSError."""
        identity = self._plan.identity
        return identity.has_others(serving=True) if identity is not None else is_held(Path(self._plan.state_dir))

    async def _stop(self, *, leaving: bool) -> None:
        """Answer what has been asked. leaving: nobody else will read the sockets."""
        if leaving:
            for udp in self._udp:
                udp.turn_away()
        for tcp in self._tcp:
            await tcp.stop(leaving=leaving)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*(udp.stop() for udp in self._udp))
        await self._connections.drain(PATIENCE)

    async def _report(self) -> None:
        """Show that the worker is well, keep the gauges of the packet caches, and post what is not counted."""
        recent = self._log.recent
        posted = 0
        while True:
            await asyncio.sleep(1)
            self._region.beat()
            if self._top is not None or recent.number != posted:
                posted = recent.number
                top = self._top.report() if self._top is not None else ()
                self._region.board.post(Notes(recent.messages(), top).encode())
            caches = [server.cache for server in self._udp] + [server.cache for server in self._tcp]
            caches += [server.personal for server in self._udp if server.personal is not None]
            reports = [cache.report() for cache in caches]
            self._region.set(("gauge", "kdns_packet_cache_entries"), sum(entries for entries, _ in reports))
            self._region.set(("gauge", "kdns_packet_cache_bytes"), sum(size for _, size in reports))

    async def _look_after_keys(self) -> None:
        """Read certificates again when they have changed; the supervisor says what there is to be said of it."""
        while True:
            await asyncio.sleep(1)
            for certificate in self._certificates.values():
                certificate.look()

    def _lost_lines(self, count: int) -> None:
        self._region.count(("count", "kdns_log_dropped_total"), count)

    # Server blocks

    def _stream_server(self, server: Server, sock: socket.socket, responder: Responder) -> TcpServer:
        """What serves connections."""
        kind = Connection
        if server.scheme == "https":
            from kdns.server.https import HttpConnection

            kind = HttpConnection
        return TcpServer(
            sock,
            responder,
            self._changes,
            self._connections,
            self._budget,
            self._limits(server),
            self._certificate(server),
            kind,
            server.label,
        )

    def _certificate(self, server: Server) -> Credential | None:
        """For TLS, that of the server blocks of an address, which is the same in all of them."""
        options = self._plan.blocks[server.routes[0][1]].plugins.get(tls.NAME)
        if server.scheme not in tls.SCHEMES or options is None:
            return None
        key = server.scheme, options
        if key not in self._certificates:
            from kdns.server.certificates import PROTOCOLS, Credential

            kept = self._plan.materials.get(options)
            self._certificates[key] = Credential(options, PROTOCOLS[server.scheme], kept)
        return self._certificates[key]

    def _responder(self, server: Server, chains: list[Chains]) -> Responder:
        blocks: dict[bytes, Block | Literal[False]] = {}
        served = {}
        viewed = self._viewed(server)
        candidates: dict[bytes, list[Candidate[Block]]] = {}
        for key, index in server.routes:
            zone = names.lower(names.from_text(key.zone))
            block = self._block(server, key, index, chains[index])
            blocks[zone] = zone not in viewed and block
            served[zone] = Served(server.label, block, chains[index].handlers if zone not in viewed else {})
            if viewed:
                candidates.setdefault(zone, []).append(self._candidate(index, chains[index], block, _apart(block)))
        debugging = any(debug.NAME in self._plan.blocks[index].plugins for index in server.blocks)
        dump = partial(debug.dump, logs.Log(self._sink, debug=True).plugin(debug.NAME)) if debugging else None
        return Responder(
            server.label,
            blocks,
            self._region,
            self._failed,
            self._waiting,
            dump,
            self._top,
            self._direct(served),
            self._views(candidates),
            self._notified(server),
        )

    def _notified(self, server: Server) -> Notified | None:
        """What takes NOTIFYs at an address (`secondary`)."""
        blocks = [self._plan.blocks[index] for index in sorted(server.blocks)]
        if not any("secondary" in block.plugins for block in blocks):
            return None
        from kdns.plugins.secondary import Notified

        return Notified(blocks, self._tell_notified)

    def _tell_notified(self, origin: bytes, host: str) -> None:
        with contextlib.suppress(OSError):  # it has enough to do, or is gone
            self._control.send(origin + host.encode(), socket.MSG_DONTWAIT)

    def _block(self, server: Server, key: ServerKey, index: int, found: Chains) -> Block:
        """A server block as one address answers with it for one zone."""
        config = self._plan.blocks[index]
        metrics = config.plugins.get(prometheus.NAME)
        sampler = self._sampler if metrics is not None and metrics.top_names else None
        return Block(
            QueryCounters(self._region, server.label, key.zone, view.name_of(config), shown=metrics is not None),
            found.usual,
            found.chaos,
            found.log,
            found.recursive,
            sampler.one if sampler is not None else None,
            found.classes,
            self._signatures(server, config),
            "transfer" in config.plugins or ("erratic" in config.plugins and forward.NAME not in config.plugins),
            self._is_personal(config),
        )

    def _is_personal(self, config: ServerConfig) -> bool:
        if "autopath" not in config.plugins:
            return False
        from kdns.plugins import autopath

        return autopath.is_personal(config)

    def _signatures(self, server: Server, config: ServerConfig) -> tsig.Checker | None:
        options = config.plugins.get("tsig")
        if options is None:
            return None
        from kdns.plugins import tsig

        plugins_there = (self._plan.blocks[index].plugins for index in sorted(server.blocks))
        return tsig.Checker(options, [found[tsig.NAME] for found in plugins_there if tsig.NAME in found])

    def _viewed(self, server: Server) -> frozenset[bytes]:
        """The zones (lower case) of an address for which views choose the server block."""
        found = (key.zone for key, index in server.routes if view.NAME in self._plan.blocks[index].plugins)
        return frozenset(names.lower(names.from_text(zone)) for zone in found)

    def _candidate(self, index: int, found: Chains, block: T, apart: T) -> Candidate[T]:
        from kdns.plugins.conditions import View
        from kdns.plugins.views import Candidate

        options = self._plan.blocks[index].plugins.get(view.NAME)
        return Candidate(block, apart, View(options) if options is not None else None, found.known)

    def _views(self, candidates: dict[bytes, list[Candidate[T]]]) -> Views[T] | None:
        if not candidates:
            return None
        from kdns.plugins.views import Views  # for those who need them

        return Views(candidates)

    def _direct(self, served: dict[bytes, Served]) -> Callable[[str, str], Direct | None]:
        """What answers without the plugins, by protocol and address family; None if they do not let it."""
        reader = self._store
        directory = direct.Directory(served)
        if reader is None or not directory:
            return lambda proto, family: None
        return lambda proto, family: Direct(directory, reader, self._region, proto, family)

    def _limits(self, server: Server) -> timeouts.Limits:
        configs = [self._plan.blocks[index] for index in sorted(server.blocks)]
        return timeouts.together(config.plugins[timeouts.NAME] for config in configs if timeouts.NAME in config.plugins)

    def _failed(self, text: str) -> None:
        """A plugin raised what it should not; the last line of the traceback says what."""
        self._log.error(text.replace("\n", " | "), key=text.rpartition("\n")[2])

    def _chains(self, index: int, config: ServerConfig) -> Chains:
        """A server block's plugins: for class IN, for class CH, and its query log."""
        handlers = {name: self._handler(index, name, options) for name, options in config.plugins.items()}
        knowing = handlers.get(metadata.NAME)
        if isinstance(knowing, metadata.Handler):
            named = {view.NAME: view.Named(view.name_of(config))} if view.NAME in config.plugins else {}
            knowing.gather({**handlers, **named})
        chain = link((handler for handler in handlers.values() if handler is not None), _nobody)
        chaotic = None
        if chaos.NAME in handlers:
            found = (handlers.get(name) for name in _FOR_CHAOS)
            chaotic = link((handler for handler in found if handler is not None), _refuse)
        options = config.plugins.get(log.NAME)
        known = knowing.known if isinstance(knowing, metadata.Handler) else None
        write_down = self._write_down(log.Logger(options, known)) if options is not None else None
        forwarding = handlers.get(forward.NAME)
        classes = getattr(handlers.get("rewrite"), "classes", ())
        return Chains(
            chain,
            chaotic,
            write_down,
            forwarding.covers if isinstance(forwarding, forward.Handler) else None,
            {name: handler for name, handler in handlers.items() if handler is not None},
            dict.fromkeys(classes, chain),
            known,
        )

    def _handler(self, index: int, name: str, options: Any) -> Handler | None:
        module: ModuleType = plugins.MODULES[name]
        match name:
            case kubernetes.NAME:
                assert self._store is not None, "Start.load refuses it otherwise"
                views = [ZoneView(number, origin) for origin, number in self._plan.zones[index]]
                return kubernetes.Handler(options, views, self._store, self._site(index).ask, self._namespaces(index))
            case "k8s_external":
                assert self._store is not None, "it needs `kubernetes`"
                views = [ZoneView(number, origin) for origin, number in self._plan.beside[index].external]
                external: Handler = module.Handler(options, views, self._store, self._site(index).ask)
                return external
            case "autopath":
                return self._autopath(index, options)
            case "transfer":
                return self._transfer(index, options)
            case "file" | "auto" | "secondary":
                return self._zones(index, name, options)
        if not hasattr(module, "Handler"):
            return None
        handler: Handler = (
            module.Handler(options, self._site(index)) if plugins.sited(name) else module.Handler(options)
        )
        return handler

    def _zones(self, index: int, name: str, options: Any) -> Handler:
        if self._store is None:
            from kdns.plugins import storeless

            return storeless.Zones(name, storeless.zones_of(name, options))
        from kdns.plugins import zones

        sources = options.sources(self._plan.blocks[index])
        if self._plan.stuck:
            from kdns.plugins import storeless

            sources = storeless.kept(sources)
        last = name == [*self._plan.blocks[index].plugins][-1]
        return zones.Handler(name, sources, self._store, self._site(index), last=last)

    def _transfer(self, index: int, options: transfer.Options) -> Handler:
        if self._store is None:
            from kdns.plugins import storeless

            return storeless.Transfers()
        from kdns.plugins import transfer
        from kdns.plugins.outgoing import Outgoing
        from kdns.server.following import Following

        if self._outgoing is None:
            self._outgoing = Outgoing(self._store)
            self._connections.following = Following(self._store, self._changes)
        config = self._plan.blocks[index]
        beside = self._plan.beside.get(index)
        numbers = [number for _, number in (beside.external if beside is not None else ())]
        numbers += [number for _, number in self._plan.zones[index]]
        there = {}
        for other in config.plugins.values():
            for source in other.sources(config) if hasattr(other, "sources") else ():
                there[source.id] = names.zone_set(source.within) if source.within is not None else None
        return transfer.Handler(options, transfer.Held(numbers, there), self._outgoing, self._site(index))

    def _namespaces(self, index: int) -> clients.Namespaces | None:
        """Those of clients, if the source of a server block keeps them."""
        return self._index(self._plan.beside[index].clients if index in self._plan.beside else None)

    def _index(self, number: int | None) -> clients.Namespaces | None:
        """An index of clients by its number."""
        if number is None:
            return None
        assert self._store is not None, "it is in there"
        return clients.StoredNamespaces(ZoneView(number, clients.ORIGIN), self._store)

    def _autopath(self, index: int, options: autopath.Options) -> autopath.Handler:
        from kdns.plugins import autopath

        if not options.pods:
            return autopath.Handler(options, self._site(index))
        if options.watch is None:
            known = self._namespaces(index)
        else:
            known = self._index(self._plan.clients.get(index)) or clients.Nobody()
        assert known is not None, "the source is told to keep it"
        cluster = options.cluster(self._plan.blocks[index])
        return autopath.Handler(options, self._site(index), cluster, known)

    def _site(self, index: int) -> Site:
        config = self._plan.blocks[index]
        label = next((server.label for server in self._plan.servers if index in server.blocks), "")

        async def ask(query: Query) -> Response:
            query.server = query.server or label
            return await (self._reached[index](query) or _refuse)(query)

        async def own(query: Query) -> Response:
            query.server = query.server or label
            return await self._own[index](query)

        return Site(
            self._region,
            logs.Log(self._sink, debug=debug.NAME in config.plugins),
            tuple(key.zone for key in config.keys),
            self._plan.token,
            ask,
            self._start,
            self._changes,
            self._budget,
            view.name_of(config),
            own,
        )

    def _reach(self, chains: list[Chains]) -> dict[int, Callable[[Query], Next | None]]:
        """For each server block, who answers what is asked at the first address that it listens to."""
        found: dict[int, Callable[[Query], Next | None]] = {}
        for server in self._plan.servers:
            reach = self._reached_at(server, chains)
            found |= dict.fromkeys(server.blocks - found.keys(), reach)
        return found

    def _reached_at(self, server: Server, chains: list[Chains]) -> Callable[[Query], Next | None]:
        candidates: dict[bytes, list[Candidate[Next]]] = {}
        zones: dict[bytes, Next] = {}
        viewed = self._viewed(server)
        for key, index in server.routes:
            zone = names.lower(names.from_text(key.zone))
            chain = zones[zone] = chains[index].usual
            if viewed:
                candidates.setdefault(zone, []).append(self._candidate(index, chains[index], chain, _unkept(chain)))
        views = self._views(candidates)
        if views is not None:
            return views.find
        every = names.Zones(zones)
        return lambda query: every.find(query.lname) or _unserved

    def _write_down(self, logger: log.Logger) -> WriteDown:
        def write(
            query: bytes,
            response: bytes,
            client: tuple[str, int],
            local: tuple[str, int],
            proto: str,
            seconds: float,
            known: Metadata | None = None,
        ) -> None:
            text = logger.line(query, response, client, local, proto, seconds, known)
            if text is not None:
                self._log.raw(text)

        return write


def _unkept(chain: Next) -> Next:
    """A chain whose answers are for who asked, and nobody else."""

    async def call(query: Query) -> Response:
        response = await chain(query)
        response.cacheable = False
        return response

    return call


def _apart(block: Block) -> Block:
    """A server block for queries that were chosen by more than their bytes."""
    return replace(
        block,
        chain=_unkept(block.chain),
        chaos=_unkept(block.chaos) if block.chaos is not None else None,
        classes={number: _unkept(chain) for number, chain in block.classes.items()},
        personal=False,
    )


async def _nobody(_: Query) -> Response:
    """Behind the last plugin, as CoreDNS has it."""
    return Response(rcode=rr.SERVFAIL, error="no plugin of the server block answers this")


async def _refuse(_: Query) -> Response:
    return Response(rcode=rr.REFUSED)


async def _unserved(_: Query) -> Response:
    """What `ask` gives where no server block is for a name, whoever asks."""
    return Response(rcode=rr.REFUSED, cacheable=True)
