"""Percentiles of what was only counted in buckets."""

from __future__ import annotations

import math
from collections.abc import Sequence


def quantile(q: float, bounds: Sequence[float], counts: Sequence[float]) -> float | None:
    """The value below which a share q of all lies, as Prometheus' histogram_quantile() estimates it; None of nothing.

    bounds: upper bounds of the buckets, rising; of the last one it may be infinite. counts: how many are in each, not
    cumulative. Within a bucket the values are taken to lie evenly, in the first one from 0. What lies beyond the last
    finite bound is told as that bound.
    """
    total = sum(counts)
    if not bounds or not total > 0 or not math.isfinite(total):
        return None
    rank = q * total
    below, low = 0.0, 0.0
    for bound, count in zip(bounds, counts, strict=True):
        if math.isinf(bound):
            return low
        if count > 0 and below + count >= rank:
            return low + (bound - low) * max(rank - below, 0.0) / count
        below += count
        low = bound
    return low
