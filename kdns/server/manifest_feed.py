"""A `kubernetes` directive that follows manifests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Literal

from kdns.cluster.manifests import Change, ManifestSource
from kdns.cluster.objects import Packed
from kdns.errors import Mistake
from kdns.server.publication import Publication


class ManifestFeed:
    """One directive's manifests, published and followed. publication: where to."""

    startup_timeout = 0.0
    """Files are read at once: a start does not wait for them."""
    of_cluster: Literal[True] = True
    read_first = False
    may_lack = False

    def __init__(self, publication: Publication) -> None:
        self.publication = publication
        self._source = ManifestSource(publication.options.manifests)
        self._problems = 0
        self._complete = False  # everything that the source has now is in the store
        self._was_read = False  # the source could be read as a whole once, and is or will be in the store

    @property
    def problems(self) -> int:
        """Files that stand with their last good content."""
        return self._problems

    def age(self) -> float | None:
        """Seconds since the data were known to be current; None if there are none."""
        return 0.0 if self._current else self.publication.publisher.age()

    @property
    def _current(self) -> bool:
        return self._complete and not self._problems

    async def load(self) -> None:
        """Publish everything that the source has."""
        snapshot = await asyncio.to_thread(self._source.load)
        self._report(snapshot.problems)
        await self._replace(snapshot.objects)

    async def follow(self) -> None:
        """Publish everything, if that was not done, then what changes, for ever."""
        tasks = [
            asyncio.create_task(self.publication.expire(lambda: self._was_read)),
            asyncio.create_task(self.publication.stay_current(lambda: self._current)),
        ]
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

    async def loaded(self) -> None:
        """Nobody has to wait."""

    async def stop(self) -> None:
        """Nothing is left of it when nobody follows it."""

    async def _take(self, change: Change) -> None:
        self._report(change.problems)
        for problem in change.solved:
            self.publication.log.info(f"{problem.file}: can be used again, or is gone")
        if not self._complete:
            await self._replace(self._source.objects)
            return
        was_current = self._current
        self._problems = len(self._source.unusable)
        if was_current and not self._current:
            await self.publication.touch()
        publisher = self.publication.publisher
        await self.publication.write(lambda: publisher.apply(change.put, change.deleted, current=self._current))

    async def _replace(self, found: Packed) -> None:
        """Publish all that the source has. What it cannot read now, but could before a restart, is kept.

        Without such data from before, what cannot be read is unknown, and the zone is not synced until it can be.
        """
        unusable = self._source.unusable
        self._problems = len(unusable)
        self._was_read |= not unusable
        publisher = self.publication.publisher
        await self.publication.write(lambda: publisher.replace_packed(found, keep=bool(unusable)))
        self._complete = not unusable
        self.publication.synced = await asyncio.to_thread(lambda: publisher.synced)

    def _report(self, problems: Sequence[Mistake]) -> None:
        for problem in problems:
            self.publication.log.error(str(problem))
