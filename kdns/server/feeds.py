"""The control plane: each `kubernetes` directive's source, followed into the zone store.

A feed is loaded only where it is used: the libraries of manifests and those of the API take some megabytes each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from kdns.observe.counters import Region
from kdns.server.publication import Publication

if TYPE_CHECKING:
    from kdns.server.cluster_feed import ClusterFeed
    from kdns.server.manifest_feed import ManifestFeed

Feed: TypeAlias = "ManifestFeed | ClusterFeed"


def make_feed(publication: Publication, own: Region, before: Sequence[Feed] | None) -> Feed:
    """The feed of a directive. own: the supervisor's counters. before: those that are followed now, None at the start.

    Raises ConfigError for access to the API that cannot work.
    """
    if publication.options.manifests:
        from kdns.server.manifest_feed import ManifestFeed

        return ManifestFeed(publication)
    from kdns.server.cluster_feed import ClusterFeed

    was_current = any(
        feed.was_current
        for feed in before or ()
        if isinstance(feed, ClusterFeed) and feed.publication.publisher.source == publication.publisher.source
    )
    return ClusterFeed(publication, own, first=before is None, was_current=was_current)
