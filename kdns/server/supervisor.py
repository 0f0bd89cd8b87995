"""The supervisor: owns the sockets, the store and the worker processes, and answers no query itself.

It reads the Corefile, opens the store, lets workers answer from what the store has, and then follows the sources. A
reload builds the new configuration beside the old one, and goes over to it when its workers answer; if anything about
it is wrong, the old one simply stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import signal
import socket
import time
import traceback
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kdns
from kdns import speed
from kdns.corefile.config import Config
from kdns.errors import ConfigError, KdnsError, StoreError
from kdns.observe import logs, notes
from kdns.observe.counters import Region, Totals
from kdns.plugins import bind, health, kubernetes, multisocket, prometheus, reload, tls, view
from kdns.server import memory
from kdns.server import sockets as listening
from kdns.server.cgroups import memory_limit, usable_cpus
from kdns.server.nursery import Nursery
from kdns.server.plan import WILDCARDS, Place, Plan, Server
from kdns.server.presence import Presence
from kdns.server.setup import Setup
from kdns.server.storage import Storage, needed_by
from kdns.server.workers import Crew, Staff
from kdns.wire import names
from kdns.zone import journal, sources
from kdns.zone.changes import Changes
from kdns.zone.store import Store, Transaction

if TYPE_CHECKING:
    from email.message import Message

    from kdns.observe.http import Reply
    from kdns.observe.metrics import Exposition, SupervisorState
    from kdns.server.certificates import Keyring
    from kdns.server.cluster_feed import ClusterFeed
    from kdns.server.feeds import Feed
    from kdns.server.followers import Followed, Notifier
    from kdns.server.manifest_feed import ManifestFeed
    from kdns.server.pages import Pages
    from kdns.server.status import StatusPage

SYNC_SECONDS = 1.0
LOAD_SECONDS = 30.0
MOST_WORKERS = 4
_TRANSFER, _AUTOPATH = "transfer", "autopath"
_OF_FILES = ("file", "auto")
_PATIENCE = 0.03
"""Seconds without a worker that answers after which queries are brought here no more; mostly it is replaced in less."""


@dataclass(frozen=True, slots=True)
class Start:
    """How to serve: what the command line says.

    load: reads the configuration; raises KdnsError. state_dir: where the zone store is. on_demand: it is opened when a
    configuration has data to keep, and as long as it cannot be used, that is served without; `load` then refuses
    `kubernetes`. workers: None for what `multisocket` says, else one for each CPU that may be used, at most
    MOST_WORKERS. setup: makes what brings queries to the sockets, from the log and the supervisor's counters; called
    before `load`. The sockets are then bound whether the machine has their addresses or not. metrics: a host and port
    for /metrics beside those of the configuration. places: the addresses at which instances relieve each other; without
    any, those with the same state directory do. look_every: seconds after which `load` is called again, `reload` or
    not. ready: called when queries are answered. incomplete: whether `load` has left out something that cannot be used;
    called in any thread.
    """

    load: Callable[[], Config]
    state_dir: Path
    on_demand: bool = False
    workers: int | None = None
    setup: Callable[[logs.Log, Region], Setup] | None = None
    metrics: tuple[str, int] | None = None
    places: tuple[str, ...] = ()
    look_every: float | None = None
    ready: Callable[[], None] | None = None
    incomplete: Callable[[], bool] = lambda: False


@dataclass(eq=False, slots=True)
class Running:
    """A configuration at work. store: what its workers and feeds have."""

    config: Config
    plan: Plan
    store: Store | None
    feeds: list[Feed]
    crew: Crew
    followers: list[asyncio.Task[None]]
    keyring: Keyring | None


def run(start: Start) -> None:
    """Serve until SIGTERM or SIGINT. Raises KdnsError if it cannot be started."""
    listening.allow_descriptors()
    nursery = Nursery()
    memory.return_early()
    log = logs.Log(logs.Sink())
    supervisor = Supervisor(start, nursery, log)
    try:
        asyncio.run(supervisor.serve())
    finally:
        supervisor.close()
        log.flush()


class Supervisor:
    """The parts of the supervising process."""

    def __init__(self, start: Start, nursery: Nursery, log: logs.Log) -> None:
        """Raises KdnsError for a wrong Corefile and a state directory that cannot be used."""
        self._start = start
        self._log = log
        self._own = Region.create()
        self._setup = start.setup(log, self._own) if start.setup is not None else None
        self._config = self._load()
        self._changes = Changes.create()
        self._totals = Totals()
        self._totals.add_region(self._own)
        self._staff = Staff(nursery, self._totals, self._own, self._changes, log)
        self._storage = Storage(start.state_dir, self._changes, log, self._count_refusal, on_demand=start.on_demand)
        self._presence = Presence(start.places) if start.places else None
        try:
            self._storage.provide(self._config)
        except StoreError:
            self._staff.close()
            raise
        self._notifier: Notifier | None = None
        self._notifying: asyncio.Task[None] | None = None
        self._sockets: dict[tuple[Place, int], socket.socket] = {}
        self._losses = listening.Losses(self._own)
        self._pages: Pages
        self._running: Running | None = None
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self._absence: asyncio.TimerHandle | None = None
        self._turning: asyncio.Task[None] | None = None
        self._exchanging = asyncio.Lock()
        self._outdated = False
        self._started = time.time()
        self._status_page: StatusPage | None = None

    def _load(self) -> Config:
        return self._start.load()

    @property
    def _store(self) -> Store | None:
        return self._storage.store

    async def serve(self) -> None:
        """Serve until told to stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        for number in (signal.SIGHUP, signal.SIGUSR1):
            loop.add_signal_handler(number, self._reload.set)
        try:
            if self._setup is not None:
                await self._setup.prepare()
            self._running = await self._build_first()
            try:
                await self._work(self._running)
            except BaseException:
                await self._current.crew.stop()
                raise
        finally:
            if self._setup is not None:
                await self._setup.remove(alone=self._alone())
            self._staff.close()

    async def _build_first(self) -> Running:
        """The configuration of the start, on a node whatever becomes of the store."""
        try:
            return await self._build(self._config)
        except StoreError as error:
            if not self._storage.on_demand:
                raise
            await asyncio.to_thread(self._storage.give_up, str(error))
            return await self._build(self._config)

    def _alone(self) -> bool:
        """Whether no other instance serves beside this one, which has announced its own end before it asks.

        Of two that end together, at least the second one finds that it is alone.
        """
        if self._presence is None:
            return True
        self._presence.close()
        try:
            return not self._presence.identity.has_others()
        except OSError:  # what another one may need is rather left than taken away
            return False

    async def _work(self, first: Running) -> None:
        """Let it answer, and do everything beside, until told to stop."""
        waiting = max((feed.startup_timeout for feed in first.feeds), default=0.0)
        if not waiting:
            await first.crew.start()
        self._follow(first)
        # Loaded only now, when queries are answered already: it takes its time.
        from kdns.server.pages import Pages

        self._pages = Pages(
            self._exposition,
            self._show,
            self._own,
            self._log,
            anywhere=self._setup is not None,
        )
        self._pages.prepare(self._config, self._checks(first.feeds), self._notes)()
        if self._start.metrics is not None:
            self._pages.serve_metrics(*self._start.metrics)
        if waiting:
            await self._wait_for_sources(first, waiting)
            await first.crew.start()
        await self._open(first)
        await self._forget_others(first)
        background = [
            asyncio.create_task(steps)
            for steps in (self._sync(), self._watch(), self._look_after_keys(), self._look_after_store())
        ]
        await self._stop.wait()
        self._pages.not_ready()
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await self._end()

    async def _open(self, first: Running) -> None:
        """Let queries come. Whatever takes long about it, it does not keep us from being told to stop."""
        if self._setup is not None:
            opening = asyncio.create_task(self._setup.open(_bound(first.plan)))
            stopped = asyncio.create_task(self._stop.wait())
            await asyncio.wait((opening, stopped), return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
        if not self._stop.is_set():
            if self._presence is not None:
                self._presence.serve()
            self._announce()
            self._keeping = asyncio.create_task(self._keep_set_up())

    async def _wait_for_sources(self, first: Running, seconds: float) -> None:
        """Wait until there is something to answer from, but not for ever: other zones need no Kubernetes.

        Meanwhile queries wait in the sockets, as far as the kernel has room for them.
        """
        log = self._log.plugin(kubernetes.NAME)
        log.info(f"waiting for the Kubernetes API before starting to answer, for up to {seconds:g} s")

        async def load_all() -> None:
            for feed in first.feeds:
                await feed.loaded()

        loaded, stopped = asyncio.create_task(load_all()), asyncio.create_task(self._stop.wait())
        await asyncio.wait((loaded, stopped), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not loaded.done() and not stopped.done():
            log.warning(
                "starting to answer without the Kubernetes API: names of its zones are SERVFAIL until it is read"
            )
        for waiting in (loaded, stopped):
            waiting.cancel()

    def close(self) -> None:
        """Let go of everything."""
        self._release(set(self._sockets))
        self._storage.close()
        if self._presence is not None:
            self._presence.close()

    # Configurations

    async def _build(self, config: Config) -> Running:
        """Open what is missing for a configuration; its workers are not started. Raises KdnsError, leaving nothing."""
        servers = self._plan_servers(config)
        count = self._wanted(config)
        keyring = await asyncio.to_thread(self._open_keyring, config)
        before = set(self._sockets)
        store = await asyncio.to_thread(self._storage.provide, config)
        self._keep_journals(config)
        feeds: list[Feed] = []
        try:
            feeds = await asyncio.to_thread(self._feeds, config, servers)
            await self._load_new(feeds)
            clusters = [feed.publication for feed in _clusters(feeds)]
            clients = _clients(config, feeds)
            zones = {id(publication.block): publication.zones for publication in clusters}
            beside = {id(publication.block): publication.beside for publication in clusters}
            plan = Plan(
                0,
                config.blocks,
                servers,
                tuple(zones.get(id(block), ()) for block in config.blocks),
                str(self._start.state_dir) if store is not None else "",
                secrets.token_hex(8),
                self._presence.identity if self._presence is not None else None,
                self._share(count, cluster=bool(feeds)),
                {index: beside[id(block)] for index, block in enumerate(config.blocks) if id(block) in beside},
                clients,
                stuck=self._storage.is_stuck(config),
            )
            for place in plan.places:
                for index in range(count):
                    if (place, index) not in self._sockets:
                        self._sockets[place, index] = listening.listen(place, anywhere=self._setup is not None)
        except BaseException:
            self._release(set(self._sockets) - before)
            await self._stop_feeds(feeds)
            self._keep_journals()
            raise
        crew = Crew(plan, count, self._sockets, self._staff, self._attend, keyring, self._hear)
        return Running(config, plan, store, feeds, crew, [], keyring)

    async def _stop_feeds(self, feeds: list[Feed]) -> None:
        await asyncio.gather(*(feed.stop() for feed in feeds))

    async def _load_new(self, feeds: list[Feed]) -> None:
        """Read the sources that the old configuration does not have, before anybody can ask for them.

        At a start, those that it is to wait for.
        """
        if self._running is not None:
            there = self._running.feeds if self._running.store is self._store else []
            served = {feed.publication.source for feed in there}
        else:
            served = {feed.publication.source for feed in feeds if not feed.read_first}
        for feed in feeds:
            title = feed.publication.title
            if feed.publication.source in served:
                continue
            try:
                async with asyncio.timeout(None if feed.may_lack else LOAD_SECONDS):
                    await feed.load()
            except TimeoutError:
                raise KdnsError(f"the source of {title} could not be read in {LOAD_SECONDS:g} s") from None
            if not (feed.publication.synced or feed.may_lack):
                raise KdnsError(f"the source of {title} could not be read")

    def _wanted(self, config: Config) -> int:
        """How many workers a configuration gets."""
        cpus = usable_cpus()
        return self._start.workers or multisocket.workers(config.blocks, cpus) or min(cpus, MOST_WORKERS)

    def _share(self, count: int, *, cluster: bool) -> memory.Share:
        """What each worker may take of the memory that a limit leaves."""
        limit = memory_limit()
        if limit is not None and memory.room(limit, count, cluster=cluster) < memory.LEAST:
            text = f"a memory limit of {limit >> 20} MiB is little for {count} workers: it may come to kills"
            self._log.warning(text, key="memory")
        return memory.share(limit, count, cluster=cluster)

    def _plan_servers(self, config: Config) -> tuple[Server, ...]:
        named = any(options.names_interfaces for options in _options(config, bind.NAME))
        interfaces = bind.interface_addresses() if named else {}
        if mistakes := bind.conflicts(config.blocks, interfaces) + tls.conflicts(config.blocks, interfaces):
            raise ConfigError(mistakes)
        servers = listening.servers(config.blocks, interfaces)
        listening.refuse_shared_ports(config.blocks, servers)
        return servers

    def _open_keyring(self, config: Config) -> Keyring | None:
        """The certificates; None without `tls`. Raises ConfigError."""
        if not _options(config, tls.NAME):
            return None
        from kdns.server.certificates import Keyring

        keyring = Keyring(config.blocks, self._log.plugin(tls.NAME))
        keyring.warn()
        return keyring

    def _feeds(self, config: Config, servers: tuple[Server, ...]) -> list[Feed]:
        if self._store is None or not needed_by(config):
            return []
        from kdns.server import feeds  # loaded only where it is needed

        into = feeds.Into(self._store, self._log, self._committed, self._refused)
        before = self._running.feeds if self._running is not None else None
        listens = [_listens(index, servers) for index, _ in enumerate(config.blocks)]
        return feeds.make_feeds(config.blocks, listens, into, self._own, before)

    def _follow(self, running: Running) -> None:
        running.followers = [asyncio.create_task(self._follow_always(feed)) for feed in running.feeds]

    async def _stop_following(self, running: Running) -> None:
        for task in running.followers:
            task.cancel()
        await asyncio.gather(*running.followers, return_exceptions=True)

    async def _follow_always(self, feed: Feed) -> None:
        """Follow a source; after an error that nobody foresaw, from the start again."""
        while True:
            await self._survive(feed.follow(), feed.publication.title)
            await asyncio.sleep(SYNC_SECONDS)

    def _hear(self, said: bytes) -> None:
        """A worker has had a NOTIFY: the zone, and the address of the primary."""
        origin = names.at(said, 0)
        for feed in self._running.feeds if self._running is not None else ():
            if hasattr(feed, "notified"):
                feed.notified(origin, said[len(origin) :].decode())

    async def _keep_set_up(self) -> None:
        while self._setup is not None:
            await self._survive(self._setup.follow(), "node")
            await asyncio.sleep(SYNC_SECONDS)

    def _attend(self, answering: bool) -> None:
        """Workers have begun to answer, or none does any more: then queries are better not brought here."""
        loop = asyncio.get_running_loop()
        absence, self._absence = self._absence, None
        if absence is not None:
            absence.cancel()
        if self._setup is None or self._keeping is None:
            return
        if not answering:
            self._absence = loop.call_later(_PATIENCE, self._turn, self._setup.suspend)
        elif absence is not None and absence.when() <= loop.time():
            self._turn(self._reopen)

    def _turn(self, steps: Callable[[], Coroutine[Any, Any, None]]) -> None:
        before = self._turning

        async def turn() -> None:
            if before is not None:
                await asyncio.gather(before, return_exceptions=True)
            await self._survive(steps(), "node")

        self._turning = asyncio.create_task(turn())

    async def _reopen(self) -> None:
        if self._setup is not None and not self._stop.is_set():
            await self._setup.open(_bound(self._current.plan))

    async def _survive(self, steps: Coroutine[Any, Any, None], title: str) -> None:
        """Let an error that nobody foresaw end these steps, and nothing else."""
        try:
            await steps
        except Exception as error:
            text = "".join(traceback.format_exception(error)).rstrip().replace("\n", " | ")
            self._log.error(f"{title}: {text}", key=f"{title} {error!r}")

    def _release(self, places: set[tuple[Place, int]]) -> None:
        for key in places:
            sock = self._sockets.pop(key)
            if key[0].proto == "udp":
                self._losses.close(sock)
            else:
                sock.close()

    async def _exchange(self, config: Config) -> None:
        """Go over to another configuration. Raises KdnsError; then nothing has changed."""
        async with self._exchanging:
            await self._exchange_alone(config)

    async def _exchange_alone(self, config: Config) -> None:
        old = self._current
        try:
            new = await self._build(config)
        except BaseException:
            await self._drop_store(old)
            raise
        try:
            await new.crew.start()
            serve_pages = self._pages.prepare(config, self._checks(new.feeds), self._notes)
        except BaseException:
            await new.crew.stop()
            await self._stop_feeds(new.feeds)
            self._release_all_but(old)
            await self._drop_store(old)
            raise
        going_over = asyncio.create_task(self._go_over(old, new, serve_pages))
        try:
            await asyncio.shield(going_over)
        except asyncio.CancelledError:
            await going_over
            raise

    async def _go_over(self, old: Running, new: Running, serve_pages: Callable[[], None]) -> None:
        """Let the new configuration's parts take over. Not to be cancelled: there is no way back."""
        await self._stop_following(old)
        self._running = new
        try:
            serve_pages()
        finally:
            self._follow(new)
            if self._setup is not None:
                await self._setup.open(_bound(new.plan))
            await old.crew.stop()
            self._release_all_but(new)
            await self._forget_others(new)
            await self._drop_store(new)

    async def _drop_store(self, running: Running) -> None:
        """Keep no store open for a configuration that needs none."""
        if self._storage.on_demand and not needed_by(running.config):
            await asyncio.to_thread(self._storage.drop)

    def _release_all_but(self, running: Running) -> None:
        used = {(place, index) for place in running.plan.places for index in range(running.crew.count)}
        self._release(self._sockets.keys() - used)

    async def _forget_others(self, running: Running) -> None:
        """Drop what the store has of sources that the configuration does not have."""
        store = self._store
        if store is None:
            return
        used = {feed.publication.source for feed in running.feeds}
        self._keep_journals()

        def action(txn: Transaction) -> None:
            kept = {source for zone in txn.zones() for source in (zone.source, sources.whose(zone.source))}
            for source in kept:
                if sources.whose(source) not in used:
                    txn.drop_source(source)
            for zone in txn.zones():
                if store.journaled is None or not store.journaled(zone):
                    journal.end(txn, zone)

        with contextlib.suppress(StoreError):
            await asyncio.to_thread(store.write, action)
        if self._notifier is not None:
            self._notifier.follow(self._followed(running.config))
            if self._notifying is None:
                self._notifying = asyncio.create_task(self._notifier.run())

    def _followed(self, *configs: Config) -> Followed:
        from kdns.server.followers import Followed

        return Followed(block for config in configs for block in config.blocks)

    def _keep_journals(self, *more: Config) -> None:
        """Keep journals of the zones that others may have, in the configuration at work and in another one."""
        configs = [*more, *([self._running.config] if self._running is not None else [])]
        if self._store is None or (self._notifier is None and not any(_options(one, _TRANSFER) for one in configs)):
            return
        if self._notifier is None:
            from kdns.server.followers import Notifier  # loaded only where it is used

            self._notifier = Notifier(lambda: self._store.zones if self._store is not None else (), self._own)
        followed = self._followed(*configs)
        self._store.journaled = followed.has if followed else None

    # While it runs

    async def _watch(self) -> None:
        """Reload on a signal, and when a file of the configuration has changed (`reload`)."""
        seen, failure = self._config.digest, ""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._reload.wait(), self._pause())
            asked = self._reload.is_set()
            self._reload.clear()
            try:
                config = await asyncio.to_thread(self._load)
                if asked or config.digest != seen:
                    await self._exchange(config)
                    seen = config.digest
                    self._tell_configuration(config)
                failure, self._outdated = "", False
            except KdnsError as error:
                # What is wrong mostly stays so: it is complained about once, and tried again.
                if asked or str(error) != failure:
                    self._tell_failure(str(error))
                failure = str(error)
            except Exception as error:
                self._tell_failure("".join(traceback.format_exception(error)))

    def _pause(self) -> float | None:
        """Seconds until the configuration's files are looked at again; None without `reload`."""
        delays = [options.delay(random.random()) for options in _options(self._current.config, reload.NAME)]
        if self._start.look_every is not None:
            delays.append(self._start.look_every)
        return min(delays, default=None)

    def _tell_failure(self, text: str) -> None:
        self._outdated = True
        self._own.count(("count", "coredns_reload_failed_total"))
        log = self._log.plugin(reload.NAME)
        for line in text.splitlines():
            log.error(line)
        log.error("the new configuration was not taken, the old one goes on")

    def _tell_configuration(self, config: Config) -> None:
        self._log.plugin(reload.NAME).info(f"Running configuration SHA512 = {config.digest}")

    async def _sync(self) -> None:
        """Bring the store to the disk, and clear up after readers that have died."""
        while True:
            await asyncio.sleep(SYNC_SECONDS)
            store = self._store
            if store is None:
                continue
            try:
                await asyncio.to_thread(store.sync)
                await asyncio.to_thread(store.clear_dead_readers)
            except StoreError as error:
                if store is self._store:
                    self._refused()
                    self._log.error(str(error), key="sync")

    async def _look_after_store(self) -> None:
        """Let workers know whether the store can be used, and written."""
        while self._storage.on_demand:
            await asyncio.sleep(SYNC_SECONDS)
            await self._survive(self._use_store(), "zone store")

    async def _use_store(self) -> None:
        async with self._exchanging:
            running = self._current
            if not needed_by(running.config):
                return
            await self._open_again(running)
            stuck = self._storage.is_stuck(running.config)
            if stuck == running.plan.stuck and self._store is running.store:
                return
            if stuck and not running.plan.stuck:
                self._log.warning("zone store: nothing can be written; copies that have fallback are passed over")
            try:
                await self._exchange_alone(running.config)
            except StoreError as error:
                await asyncio.to_thread(self._storage.give_up, str(error))

    async def _open_again(self, running: Running) -> None:
        """Open the store if there is none, or if it is another one by now."""
        if await asyncio.to_thread(self._storage.is_gone):
            self._log.warning(f"zone store: somebody has taken it out of {self._start.state_dir}; it is made anew")
            await self._stop_following(running)
            await asyncio.to_thread(self._storage.drop)
        if self._store is None:
            await asyncio.to_thread(self._storage.provide, running.config)

    async def _look_after_keys(self) -> None:
        """Read certificates again when they have changed."""
        while True:
            await asyncio.sleep(SYNC_SECONDS)
            if (keyring := self._current.keyring) is not None:
                await self._survive(asyncio.to_thread(keyring.look), tls.NAME)

    async def _end(self) -> None:
        """Not ready, then lame duck, then let the workers finish what was asked before.

        What is asked from then on goes to others: to an instance that shares the addresses, or where the packets go
        without us.
        """
        self._pages.not_ready()
        lameduck = max((o.lameduck for o in _options(self._current.config, health.NAME)), default=0.0)
        if lameduck:
            self._log.plugin(health.NAME).info(f"Going into lameduck mode for {lameduck:g}s")
            await asyncio.sleep(lameduck)
        await self._stop_following(self._current)
        if self._absence is not None:
            self._absence.cancel()
        for task in filter(None, (self._keeping, self._notifying)):
            task.cancel()
        await asyncio.gather(*filter(None, (self._keeping, self._turning, self._notifying)), return_exceptions=True)
        if self._setup is not None:
            await self._setup.withdraw()
        self._release(set(self._sockets))  # a worker cannot give up a socket that is open here
        await self._current.crew.stop(leaving=True)
        await asyncio.to_thread(self._pages.close)

    @property
    def _current(self) -> Running:
        assert self._running is not None
        return self._running

    def _committed(self) -> None:
        self._own.count(("count", "kdns_store_commits_total"))
        if self._notifier is not None:
            self._notifier.committed()

    def _refused(self) -> None:
        self._count_refusal()
        self._storage.refused()

    def _count_refusal(self) -> None:
        self._own.count(("count", "kdns_store_errors_total"))

    def _checks(self, feeds: list[Feed]) -> dict[str, Callable[[], bool]]:
        """For /ready: which directives have to be ready."""
        clusters = _clusters(feeds)
        return {kubernetes.NAME: lambda: all(feed.publication.synced for feed in clusters)} if clusters else {}

    def _notes(self) -> list[str]:
        """For /ready: whose data is not current."""
        ages = [(feed.publication.title, feed.age()) for feed in self._current.feeds]
        return [f"{title}: data of {age:.0f} s ago" for title, age in ages if age]

    def _announce(self) -> None:
        """Say what is served, as CoreDNS does."""
        for server in self._current.plan.servers:
            for where in dict.fromkeys(f"{key.zone}:{key.port}" for key, _ in server.routes):
                self._log.raw(f"{where} on {server.label}")
        self._log.raw(f"kdns-{kdns.__version__}, {self._current.crew.count} workers")
        if _option(self._config, reload.NAME) is not None:
            self._tell_configuration(self._config)
        if self._start.ready is not None:
            self._start.ready()

    def _show(self, paths: tuple[str, ...], headers: Message) -> Reply:
        """The status page, in the thread of a request."""
        # Loaded only when somebody looks.
        from kdns.server.status import Inside, StatusPage

        if self._status_page is None:
            self._status_page = StatusPage(self._totals, self._log.recent)
        running = self._current
        inside = Inside(
            started=self._started,
            config=running.config,
            plan=running.plan,
            feeds=running.feeds,
            workers=running.crew.workers,
            wanted=running.crew.count,
            nursery=self._staff.nursery_pid,
            outdated=self._outdated or self._start.incomplete(),
            store=self._store,
            ways=self._setup.ways() if self._setup is not None else {},
            node=self._setup is not None,
        )
        return self._status_page.answer(inside, headers, paths)

    def _exposition(self) -> Exposition:
        from kdns.observe.metrics import Exposition  # takes a tenth of the time of a start

        return Exposition(self._totals, self._state)

    def _state(self) -> SupervisorState:
        """For /metrics, in the thread of a scrape."""
        from kdns.observe.metrics import SupervisorState

        running = self._current
        most = prometheus.most_names(running.config.blocks)
        for (place, _), sock in list(self._sockets.items()):
            if place.proto == "udp":
                self._losses.look(sock)
        ages = [age for feed in running.feeds if (age := feed.age()) is not None]
        clusters = _clusters(running.feeds)
        objects: dict[str, int] = {}
        for feed in (feed for feed in running.feeds if feed.of_cluster):
            for kind, count in feed.publication.counts().items():
                objects[kind] = objects.get(kind, 0) + count
        return SupervisorState(
            version=kdns.__version__,
            compiled=speed.is_compiled(),
            plugins=tuple(
                (server.label, key.zone, view.name_of(running.config.blocks[index]), name)
                for server in running.plan.servers
                for key, index in server.routes
                for name in running.config.blocks[index].plugins
            ),
            config_sha512=running.config.digest if _option(running.config, reload.NAME) is not None else "",
            workers=len(running.crew.pids),
            pids=(os.getpid(), self._staff.nursery_pid, *running.crew.pids),
            store_generation=self._changes.generation,
            store_bytes=self._store.size if self._store is not None else 0,
            data_age_seconds=max(ages, default=None),
            synced=all(feed.publication.synced for feed in clusters) if clusters else None,
            objects=objects,
            manifest_errors=sum(feed.problems for feed in clusters),
            zone_file_errors=sum(feed.problems for feed in running.feeds if feed.publication.directive in _OF_FILES),
            memory_limit=memory_limit(),
            ways=self._setup.ways() if self._setup is not None else {},
            outdated=self._outdated or self._start.incomplete(),
            certificates=tuple(running.keyring.states()) if running.keyring is not None else (),
            copies=_copies(running.feeds),
            top_names=tuple(notes.top_names(notes.read(self._totals.boards()), most)) if most else (),
        )


def _options(config: Config, name: str) -> list[Any]:
    return [block.plugins[name] for block in config.blocks if name in block.plugins]


def _clusters(feeds: Iterable[Feed]) -> list[ManifestFeed | ClusterFeed]:
    """Those of `kubernetes`."""
    return [feed for feed in feeds if feed.of_cluster and feed.publication.directive == kubernetes.NAME]


def _clients(config: Config, feeds: Iterable[Feed]) -> dict[int, int]:
    """The number of the index of clients that a server block has of its own, by the block's index (`autopath`)."""
    own = [feed.publication for feed in feeds if feed.of_cluster and feed.publication.directive == _AUTOPATH]
    numbers = {id(each.block): each.publisher.clients for each in own}
    found = ((index, numbers.get(id(block))) for index, block in enumerate(config.blocks))
    return {index: number for index, number in found if number is not None}


def _copies(feeds: Iterable[Feed]) -> dict[str, float]:
    """The age of each copy of `secondary`; where there are several of a zone, of the oldest one."""
    found: dict[str, float] = {}
    for feed in feeds:
        for zone, age in feed.copies().items() if hasattr(feed, "copies") else ():
            found[zone] = max(age, found.get(zone, 0.0))
    return found


def _bound(plan: Plan) -> frozenset[tuple[str, int]]:
    """The addresses and ports at which DNS is served over both UDP and TCP."""
    udp, tcp = ({(p.host, p.port) for p in plan.places if p.proto == proto} for proto in ("udp", "tcp"))
    return frozenset(udp & tcp)


def _option(config: Config, name: str) -> Any:
    """The options of the first server block that has the directive; None if none has."""
    return next(iter(_options(config, name)), None)


def _listens(index: int, servers: tuple[Server, ...]) -> list[str]:
    """The addresses at which a server block is asked; all of this machine's, without loopback, if it listens to all."""
    hosts = {place.host.partition("%")[0] for server in servers for place in server.places if index in server.blocks}
    if not hosts & set(WILDCARDS.values()):
        return sorted(hosts)
    found = [address.partition("%")[0] for addresses in bind.interface_addresses().values() for address in addresses]
    outside = [text for text in found if not (ip_address(text).is_loopback or ip_address(text).is_link_local)]
    return sorted(outside or found)
