"""The control plane: each `kubernetes` directive's source, followed into the zone store."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Iterable, Sequence

from kdns.cluster.manifests import Change, ManifestSource
from kdns.cluster.objects import Object
from kdns.cluster.publisher import Outcome, Publisher, Settings
from kdns.cluster.records import RecordOptions
from kdns.corefile import values
from kdns.corefile.config import ServerConfig
from kdns.errors import Mistake, StoreError
from kdns.observe.logs import Log
from kdns.plugins import bind, kubernetes
from kdns.wire import names
from kdns.zone.store import Store

RETRY_SECONDS = 1.0
CURRENT_SECONDS = 30.0
"""How often a source that has no news is noted to be current."""


def source_id(block: ServerConfig) -> str:
    """What a directive's data is kept under: the same for the same zones of the same server block after a restart."""
    bound = block.plugins.get(bind.NAME)
    binds = [token.text for one in bound.binds for token in one.wanted] if isinstance(bound, bind.Options) else []
    keys = [f"{key.scheme}://{key.zone}:{key.port}" for key in block.keys]
    text = " ".join((*sorted(keys), *sorted(binds), *block.plugins[kubernetes.NAME].zones))
    return f"kubernetes-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def settings(options: kubernetes.Options, listens: Iterable[str]) -> Settings:
    """A directive's options in the terms of the publisher."""
    zones = [(zone, names.lower(names.from_text(zone))) for zone in options.zones]
    return Settings(
        forward=tuple(name for zone, name in zones if not values.is_reverse(zone)),
        reverse=tuple(name for zone, name in zones if values.is_reverse(zone)),
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
    )


class Feed:
    """One directive's source and publisher.

    The store's refusals (a full disk) stop nothing: what could not be written is written when it can be.
    block: the server block. synced: its data is complete, be it from before a restart, and may be served.
    """

    def __init__(
        self, block: ServerConfig, listens: Iterable[str], store: Store, log: Log, committed: Callable[[], None]
    ) -> None:
        self.block = block
        self._options: kubernetes.Options = block.plugins[kubernetes.NAME]
        self._log = log
        self._committed = committed
        self._source = ManifestSource(self._options.manifests)
        self._problems = 0
        self._complete = False  # everything that the source has now is in the store
        self.publisher = Publisher(store, source_id(block), settings(self._options, listens))
        self.synced = self.publisher.synced

    @property
    def title(self) -> str:
        """What it is called in messages."""
        return f"kubernetes {' '.join(self._options.zones)}"

    @property
    def zones(self) -> tuple[tuple[bytes, int], ...]:
        """Origin and number of each zone."""
        return tuple((origin, zone.number) for origin, zone in self.publisher.zones.items())

    @property
    def problems(self) -> int:
        """Files that stand with their last good content."""
        return self._problems

    def age(self) -> float | None:
        """Seconds since the data were known to be current; None if there are none."""
        return 0.0 if self._current else self.publisher.age()

    @property
    def _current(self) -> bool:
        return self._complete and not self._problems

    async def load(self) -> None:
        """Publish everything that the source has."""
        snapshot = await asyncio.to_thread(self._source.load)
        self._report(snapshot.problems)
        await self._replace(snapshot.objects.values())

    async def follow(self) -> None:
        """Publish everything, if that was not done, then what changes, for ever."""
        tasks = [asyncio.create_task(self._expire()), asyncio.create_task(self._stay_current())]
        try:
            if not self._complete:
                await self.load()
            async with contextlib.aclosing(self._source.changes()) as changes:
                async for change in changes:
                    await self._take(change)
        except Exception:
            self._complete = False  # of what a change brought, some may be missing
            raise
        finally:
            for task in tasks:
                task.cancel()

    async def _take(self, change: Change) -> None:
        self._report(change.problems)
        for problem in change.solved:
            self._log.info(f"{problem.file}: can be used again, or is gone")
        if not self._complete:
            await self._replace(self._source.objects)
            return
        was_current = self._current
        self._problems = len(self._source.unusable)
        if was_current and not self._current:
            await self._touch()
        await self._write(lambda: self.publisher.apply(change.put, change.deleted, current=self._current))

    async def _replace(self, items: Iterable[Object]) -> None:
        """Publish all that the source has. What it cannot read now, but could before a restart, is kept.

        Without such data from before, what cannot be read is unknown, and the zone is not synced until it can be.
        """
        unusable = self._source.unusable
        self._problems = len(unusable)
        found = list(items)
        await self._write(lambda: self.publisher.replace(found, keep=bool(unusable)))
        self._complete = not unusable
        self.synced = await asyncio.to_thread(lambda: self.publisher.synced)

    async def _write(self, action: Callable[[], Outcome]) -> None:
        """Publish in a thread, again and again until the store takes it. Does not end before the thread has."""
        while True:
            writing = asyncio.ensure_future(asyncio.to_thread(action))
            try:
                outcome = await asyncio.shield(writing)
            except asyncio.CancelledError:
                await asyncio.wait((writing,))
                raise
            except StoreError as error:
                self._log.error(f"{error}; answers stay as they are until it can be written", key="store")
                await asyncio.sleep(RETRY_SECONDS)
                continue
            for warning in outcome.warnings:
                self._log.warning(warning, key=warning)
            if outcome.changed:
                self._committed()
            return

    async def _stay_current(self) -> None:
        while True:
            await asyncio.sleep(CURRENT_SECONDS)
            if self._current:
                await self._touch()

    async def _touch(self) -> None:
        with contextlib.suppress(StoreError):
            await asyncio.to_thread(self.publisher.touch)

    async def _expire(self) -> None:
        """Stop serving data from before the restart once it is older than `snapshot_max_age`."""
        limit, age = self._options.snapshot_max_age, self.publisher.age()
        if limit is None or age is None or not self.synced:
            return
        await asyncio.sleep(max(0.0, limit - age))
        if self._complete:
            return
        self._log.warning(f"its data is older than snapshot_max_age ({limit:g} s) and is not served any more")
        self.synced = False
        while True:
            try:
                await asyncio.to_thread(self.publisher.expire)
                return
            except StoreError as error:
                self._log.error(str(error), key="store")
                await asyncio.sleep(RETRY_SECONDS)

    def _report(self, problems: Sequence[Mistake]) -> None:
        for problem in problems:
            self._log.error(str(problem))
