"""What one `kubernetes` directive publishes: its zones in the store, and the state that others see of them.

`autopath` publishes no zones, but the index of the clients on a node.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from kdns.cluster.publisher import External, Outcome, Publisher, Settings
from kdns.cluster.records import ExternalOptions, RecordOptions
from kdns.corefile import values
from kdns.corefile.config import ServerConfig
from kdns.errors import StoreError
from kdns.observe.logs import Log
from kdns.plugins import kubernetes, zones
from kdns.server.plan import Beside
from kdns.wire import names
from kdns.zone.store import Store

if TYPE_CHECKING:
    from kdns.plugins import k8s_external

RETRY_SECONDS = 1.0
CURRENT_SECONDS = 30.0
"""How often a source that has no news is noted to be current."""


def source_id(block: ServerConfig, directive: str = kubernetes.NAME) -> str:
    """What a directive's data is kept under: the same for the same zones of the same server block after a restart.

    The pods of one node are nothing to another: an address may be that of a pod in another namespace there.
    """
    options = block.plugins[directive]
    node = () if directive == kubernetes.NAME else (f"node {options.watch.node}",)
    return zones.source_id(directive, block, (*options.zones, *node))


def settings(
    options: kubernetes.Options,
    listens: Iterable[str],
    outside: k8s_external.Options | None = None,
    *,
    clients: bool = False,
) -> Settings:
    """A directive's options in the terms of the publisher.

    outside, clients: what `k8s_external`, and `autopath` or `metadata`, want of it, in the same server block.
    """
    origins = [(zone, names.lower(names.from_text(zone))) for zone in options.zones]
    return Settings(
        forward=tuple(name for zone, name in origins if not values.is_reverse(zone)),
        reverse=tuple(name for zone, name in origins if values.is_reverse(zone)),
        multicluster=tuple(name for zone, name in origins if zone in options.multicluster),
        namespaces=frozenset(options.namespaces),
        namespace_labels=options.namespace_labels.matches if options.namespace_labels is not None else None,
        labels=options.labels.matches if options.labels is not None else None,
        listens=tuple(listens),
        records=RecordOptions(
            names.ROOT,
            ttl=options.ttl,
            endpoint_pod_names=options.endpoint_pod_names,
            ignore_empty_service=options.ignore_empty_service,
            zonal=options.zonal,
            endpoints=not options.noendpoints,
            pods=options.pods,  # type: ignore[arg-type]
        ),
        external=_external(outside) if outside is not None else None,
        clients=clients,
    )


def _needs_clients(block: ServerConfig) -> bool:
    """Whether a directive of the server block looks up the namespaces of clients. Each is loaded where it is used."""
    if "autopath" in block.plugins:
        from kdns.plugins import autopath

        if autopath.needs_clients(block):
            return True
    if "metadata" in block.plugins:
        from kdns.plugins import metadata

        return metadata.needs_clients(block)
    return False


def _external(options: k8s_external.Options) -> External:
    origins = [(zone, names.lower(names.from_text(zone))) for zone in options.zones]
    return External(
        forward=tuple(name for zone, name in origins if not values.is_reverse(zone)),
        reverse=tuple(name for zone, name in origins if values.is_reverse(zone)),
        records=ExternalOptions(options.ttl, options.apex, options.headless),
    )


class Publication:
    """One directive's publisher, for whatever source it has.

    The store's refusals (a full disk) stop nothing: what could not be written is written when it can be.
    directive, block: its name, and the server block. names: the zones that the directive names. synced: its data is
    complete, be it from before a restart, and may be served.
    """

    def __init__(
        self,
        block: ServerConfig,
        listens: Iterable[str],
        store: Store,
        log: Log,
        committed: Callable[[], None],
        refused: Callable[[], None] = lambda: None,
        directive: str = kubernetes.NAME,
    ) -> None:
        """committed: called after each transaction that changed something; refused: when one could not be written.
        Both in any thread. directive: `kubernetes`, or `autopath` where it follows the pods of a node."""
        self.directive = directive
        self.block = block
        options = block.plugins[directive]
        self.options: kubernetes.Options = options if directive == kubernetes.NAME else options.watch
        self.names: tuple[str, ...] = options.zones
        self.log = log
        self._committed = committed
        self._refused = refused
        if directive == kubernetes.NAME:
            wanted = settings(self.options, listens, block.plugins.get("k8s_external"), clients=_needs_clients(block))
        else:
            wanted = settings(self.options, (), clients=True)
        self.publisher = Publisher(store, source_id(block, directive), wanted)
        if self._servable() != 0:
            self.publisher.revive()
        self.synced = self.publisher.synced

    @property
    def title(self) -> str:
        """What it is called in messages."""
        return f"{self.directive} {' '.join(self.names)}"

    @property
    def source(self) -> str:
        """What its data is kept under."""
        return self.publisher.source

    @property
    def origin(self) -> str:
        """Where the data comes from, in words."""
        options = self.options
        if options.manifests:
            return f"manifests {', '.join(options.manifests)}"
        if options.kubeconfig:
            context = f", context {options.context}" if options.context else ""
            return f"Kubernetes API of {options.kubeconfig}{context}"
        if options.endpoints:
            return f"Kubernetes API at {options.endpoints[0]}"
        return "Kubernetes API of this cluster"

    def counts(self) -> dict[str, int]:
        """How many objects of each kind there are."""
        return self.publisher.counts()

    @property
    def zones(self) -> tuple[tuple[bytes, int], ...]:
        """Origin and number of each zone."""
        return tuple((origin, zone.number) for origin, zone in self.publisher.zones.items())

    @property
    def beside(self) -> Beside:
        """What it has in the store beside them."""
        external = tuple((origin, zone.number) for origin, zone in self.publisher.external.items())
        return Beside(external, self.publisher.clients)

    def tell(self, outcome: Outcome) -> None:
        """Make known what a transaction has done."""
        for warning in outcome.warnings:
            self.log.warning(warning, key=warning)
        if outcome.changed:
            self._committed()

    def tell_refused(self, error: StoreError) -> None:
        """Make known that the store could not be written."""
        self._refused()
        self.log.error(f"{error}; answers stay as they are until it can be written", key="store")

    async def write(self, action: Callable[[], Outcome]) -> None:
        """Publish in a thread, again and again until the store takes it. Does not end before the thread has."""
        while True:
            writing = asyncio.ensure_future(asyncio.to_thread(action))
            try:
                self.tell(await asyncio.shield(writing))
                return
            except asyncio.CancelledError:
                await asyncio.wait((writing,))
                raise
            except StoreError as error:
                self.tell_refused(error)
                await asyncio.sleep(RETRY_SECONDS)

    async def touch(self) -> None:
        """Note that the data is current now."""
        with contextlib.suppress(StoreError):
            await asyncio.to_thread(self.publisher.touch)

    async def stay_current(self, is_current: Callable[[], bool]) -> None:
        """Note again and again that the data is current, for as long as it is."""
        while True:
            await asyncio.sleep(CURRENT_SECONDS)
            if is_current():
                await self.touch()

    def refuse_old(self) -> None:
        """Do not begin to serve data from before the restart that is older than `snapshot_max_age`.

        Raises StoreError.
        """
        if self.synced and self._servable() == 0:
            self.publisher.expire()
            self._tell_expired()

    async def expire(self, was_read: Callable[[], bool]) -> None:
        """Stop serving data from before the restart once it is older than `snapshot_max_age`.

        was_read: the source has been read since, or is being written with what was read; asked in any thread.
        """
        seconds = self._servable()
        if seconds is None or not self.synced:
            return
        await asyncio.sleep(seconds)
        while True:
            try:
                if await asyncio.to_thread(self.publisher.expire, was_read):
                    self._tell_expired()
                return
            except StoreError as error:
                self.log.error(str(error), key="store")
                await asyncio.sleep(RETRY_SECONDS)

    def _servable(self) -> float | None:
        """For how many seconds the data in the store may be served; None for ever."""
        limit, age = self.options.snapshot_max_age, self.publisher.age()
        return None if limit is None or age is None else max(0.0, limit - age)

    def _tell_expired(self) -> None:
        limit = self.options.snapshot_max_age
        self.log.warning(f"its data is older than snapshot_max_age ({limit:g} s) and is not served any more")
        self.synced = False
