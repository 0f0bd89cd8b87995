"""The control plane: what follows the sources of a configuration's zones into the zone store.

A feed is loaded only where it is used: the libraries of manifests and those of the API take some megabytes each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from kdns.corefile.config import ServerConfig
from kdns.observe.counters import Region
from kdns.observe.logs import Log
from kdns.plugins import kubernetes
from kdns.zone.store import Store

if TYPE_CHECKING:
    from kdns.plugins import auto, file
    from kdns.server.cluster_feed import ClusterFeed
    from kdns.server.manifest_feed import ManifestFeed
    from kdns.server.publication import Publication
    from kdns.server.secondary_feed import SecondaryFeed
    from kdns.server.zone_feed import ZoneFeed

Feed: TypeAlias = "ManifestFeed | ClusterFeed | ZoneFeed | SecondaryFeed"
"""read_first: a start waits until it is loaded, as there is nothing to answer from. may_lack: what it cannot read keeps
no configuration from being taken, unless `load` says so. problems: files that cannot be used now."""


READING = 2
"""Directives whose master files are read at once: each takes a process of 25 MB, and a thread from all that write."""


@dataclass(frozen=True, slots=True)
class Into:
    """Where feeds write. committed, refused: called after each transaction that changed something, and when one could
    not be written; in any thread."""

    store: Store
    log: Log
    committed: Callable[[], None]
    refused: Callable[[], None]


def make_feeds(
    blocks: Sequence[ServerConfig],
    listens: Sequence[list[str]],
    into: Into,
    own: Region,
    before: Sequence[Feed] | None,
) -> list[Feed]:
    """The feeds of server blocks. listens: the addresses of each. own: the supervisor's counters. before: those that
    are followed now, None at the start.

    Raises ConfigError for access to the API that cannot work, StoreError.
    """
    found: list[Feed] = []
    turns = asyncio.Semaphore(READING)
    for block, addresses in zip(blocks, listens, strict=True):
        if kubernetes.NAME in block.plugins:
            from kdns.server.publication import Publication

            log = into.log.plugin(kubernetes.NAME)
            found.append(
                make_feed(Publication(block, addresses, into.store, log, into.committed, into.refused), own, before)
            )
        if "autopath" in block.plugins:
            found += _of_autopath(block, into, own, before)
        if "file" in block.plugins:
            found += [_of_file(block, each, into, turns) for each in block.plugins["file"].files]
        if "auto" in block.plugins:
            found.append(_of_auto(block, block.plugins["auto"], into, turns))
        if "secondary" in block.plugins:
            found += _of_secondary(block, into, own)
    return found


def make_feed(publication: Publication, own: Region, before: Sequence[Feed] | None) -> Feed:
    """The feed of a directive that has objects of a cluster; the parameters are those of `make_feeds`."""
    if publication.options.manifests:
        from kdns.server.manifest_feed import ManifestFeed

        return ManifestFeed(publication)
    from kdns.server.cluster_feed import ClusterFeed

    was_current = any(
        feed.was_current
        for feed in before or ()
        if isinstance(feed, ClusterFeed) and feed.publication.source == publication.source
    )
    return ClusterFeed(publication, own, first=before is None, was_current=was_current)


def _of_autopath(block: ServerConfig, into: Into, own: Region, before: Sequence[Feed] | None) -> list[Feed]:
    from kdns.plugins import autopath

    if not autopath.watches(block):
        return []
    from kdns.server.publication import Publication

    log = into.log.plugin(autopath.NAME)
    publication = Publication(block, (), into.store, log, into.committed, into.refused, autopath.NAME)
    return [make_feed(publication, own, before)]


def _of_file(block: ServerConfig, each: file.File, into: Into, turns: asyncio.Semaphore) -> ZoneFeed:
    from kdns.plugins import file
    from kdns.server import zone_feed

    title = f"file {each.path}"
    publication = zone_feed.ZonePublication(
        file.NAME,
        block,
        each.source(block),
        each.zones,
        title,
        into.store,
        into.log.plugin(file.NAME),
        into.committed,
        into.refused,
    )
    files = zone_feed.of_file(each)
    return zone_feed.ZoneFeed(publication, lambda: files, each.reload, files, turns)


def _of_auto(block: ServerConfig, options: auto.Options, into: Into, turns: asyncio.Semaphore) -> ZoneFeed:
    from kdns.plugins import auto
    from kdns.server import zone_feed

    log = into.log.plugin(auto.NAME)
    publication = zone_feed.ZonePublication(
        auto.NAME,
        block,
        options.source(block),
        options.zones,
        f"auto {options.directory}",
        into.store,
        log,
        into.committed,
        into.refused,
    )
    look = partial(zone_feed.of_auto, options, lambda text: log.warning(text, key=text))
    return zone_feed.ZoneFeed(publication, look, options.reload, {}, turns)


def _of_secondary(block: ServerConfig, into: Into, own: Region) -> list[Feed]:
    from kdns.plugins import secondary
    from kdns.server.secondary_feed import SecondaryFeed, SecondaryPublication

    log = into.log.plugin(secondary.NAME)
    found: list[Feed] = []
    for copy in block.plugins[secondary.NAME].copies:
        publication = SecondaryPublication(block, copy, into.store, log, into.committed, into.refused)
        found.append(SecondaryFeed(publication, copy, secondary.key_of(copy, block), own))
    return found
