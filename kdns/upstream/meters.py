"""What is counted of one upstream."""

from __future__ import annotations

import time
from collections.abc import Callable
from time import monotonic_ns

from kdns.observe.counters import PROXY_REQUESTS, Histogram, Region
from kdns.wire import rr

PROXY = "forward"
"""The label proxy_name."""
UPSTREAMS = "kdns_forward_upstreams"
LAST_FAILURE = "kdns_forward_last_failure_timestamp_seconds"
_KNOWN_RCODES = 24
"""Response codes from here on are counted together: an upstream shall not choose how many series there are."""


class Meter:
    """The metrics of one upstream. wrong: is shown each message that is dropped, and why; None if nobody looks."""

    __slots__ = ("_durations", "_region", "_to", "_wrong", "cells")

    def __init__(self, region: Region, to: str, wrong: Callable[[str, bytes], None] | None = None) -> None:
        self._region = region
        self.cells = region.cells
        self._to = to
        self._wrong = wrong
        self._durations: dict[int, Histogram] = {}

    def connections(self, proto: str) -> tuple[int, int]:
        """The cells for queries that find a connection, and that need a new one. proto: udp, tcp or tcp-tls."""
        hits, misses = (
            self._region.series(
                (
                    "count",
                    f"coredns_proxy_conn_cache_{what}_total",
                    "proxy_name",
                    PROXY,
                    "to",
                    self._to,
                    "proto",
                    proto,
                ),
                1,
            )
            for what in ("hits", "misses")
        )
        return hits, misses

    def count(self, cell: int) -> None:
        """Count one."""
        self.cells[cell] += 1

    def answered(self, rcode: int, started: int) -> None:
        """Count an answer. started: time.monotonic_ns() when the query was sent."""
        histogram = self._durations.get(rcode)
        if histogram is None:
            rcode = min(rcode, _KNOWN_RCODES)
            histogram = self._durations.get(rcode)
        if histogram is None:
            text = rr.rcode_text(rcode).removeprefix("RCODE") if rcode < _KNOWN_RCODES else "other"
            histogram = self._durations[rcode] = PROXY_REQUESTS.histogram(self._region, PROXY, self._to, text)
        histogram.observe(monotonic_ns() - started)

    def check_failed(self) -> None:
        """Count a health check without an answer."""
        name = "coredns_proxy_healthcheck_failures_total"
        self._region.count(("count", name, "proxy_name", PROXY, "to", self._to))

    def failed(self) -> None:
        """Note the time of a failure."""
        self._region.set(("shared", LAST_FAILURE, "to", self._to), int(time.time()))

    def discarded(self, reason: str, data: bytes) -> None:
        """Count a message that is no answer to anything that was asked."""
        self._region.count(("count", "kdns_forward_discarded_total", "to", self._to, "reason", reason))
        if self._wrong is not None:
            self._wrong(f"{self._to}: wrong reply ({reason})", data)

    def resent(self) -> None:
        """Count a query that is asked again because its connection ended."""
        self._region.count(("count", "kdns_forward_resent_total", "to", self._to))


class Standing:
    """One `forward` that uses an upstream, in the gauge that tells how many of them find it up, and how many down."""

    def __init__(self, region: Region, to: str) -> None:
        self._cells = region.cells
        self._up, self._down = (
            region.series(("gauge", UPSTREAMS, "to", to, "state", state), 1) for state in ("up", "down")
        )
        self._now: int | None = self._up
        self._add(self._up)

    def set(self, *, down: bool) -> None:
        """Find it up or down. Does nothing after `leave`."""
        if self._now is not None:
            self._take(self._now)
            self._now = self._down if down else self._up
            self._add(self._now)

    def leave(self) -> None:
        """Use it no more."""
        if self._now is not None:
            self._take(self._now)
            self._now = None

    def _add(self, cell: int) -> None:
        self._cells[cell] += 1

    def _take(self, cell: int) -> None:
        if self._cells[cell]:  # in a region that is full it is a cell of many, which may be 0
            self._cells[cell] -= 1
