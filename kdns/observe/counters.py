"""Counters in shared memory: a worker counts, the supervisor reads, and neither waits for the other.

Each worker has one `Region`, an anonymous file (memfd) that only it writes and that the supervisor reads at any time.
An update is `cells[i] += n`: no call, no lock. When a worker dies, `Totals.retire` keeps what it had counted.

A series is a key (a tuple of texts) with one or more cells. The kinds, by the key's first text:

    ("query", server, zone, view, proto, family, type, rcode, plugin, "do" or "", request bucket, response bucket)
        3 cells: queries, sum of request bytes, sum of response bytes. family is "1" for IPv4 and "2" for IPv6; a bucket
        is an index into SIZE_BUCKETS as text, or "+" behind the last.
    ("duration", server, zone, view)
        18 cells: queries by TIME_BUCKETS, not cumulative, then those over the last bucket, then the sum in nanoseconds.
    ("hidden-query", ...), ("hidden-duration", ...)
        The same of server blocks without `prometheus`; they are in no metric.
    ("histogram", metric name, label, value, label, value, ...)
        Two cells more than the metric has bounds (HISTOGRAMS): as "duration".
    ("count", metric name, label, value, label, value, ...)
        1 cell: any other counter.
    ("gauge", metric name, label, value, label, value, ...)
        1 cell: a value of this process that may fall, 0 or more. It goes when its process goes.
    ("shared", metric name, label, value, label, value, ...)
        1 cell: a value that each process finds out for itself and that is the same in all of them, or will be. The
        largest of those of the living processes counts.

Layout of a region, in words of 64 bits, native byte order; an index into `cells` is a word's number:

    0      magic
    1      used: the first word behind the last complete entry
    2      refused: how often a series was asked for that had no room
    3      beats: raised once a second by a process that is well
    4..67  overflow: where updates of refused series go; nobody reads it
    68..   entries, one behind the other: (width << 32 | bytes of the key), CRC-32 of that and of the key, the key as a
           JSON list padded with zeros to full words, and `width` cells

Behind all words there is a board (`kdns.observe.board`) for what is not counted.

A word is written and read whole (aligned 64-bit loads and stores). `used` is raised after an entry is complete, and the
checksum tells a reader on a processor that reorders stores that it has come too early.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import struct
import threading
import weakref
import zlib
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Self

from kdns.errors import KdnsError
from kdns.observe import board
from kdns.observe.board import Board

Key = tuple[str, ...]

DEFAULT_SIZE = 1 << 20
MAX_WIDTH = 64
SIZE_BUCKETS = (0, 100, 200, 300, 400, 511, 1023, 2047, 4095, 8291, 16000, 32000, 48000, 64000)
"""Upper bounds in bytes, inclusive, as CoreDNS has them for requests and responses."""
TIME_BUCKETS = tuple(250_000 << n for n in range(16))
"""Upper bounds in nanoseconds, inclusive: 0.25 ms, doubling to 8.192 s."""
_RECORD_TYPES = "A AAAA CNAME DNSKEY DS HTTPS MX NS NSEC NSEC3 PTR RRSIG SOA SRV SVCB TXT"
TYPES = frozenset(f"{_RECORD_TYPES} ANY AXFR IXFR".split())
"""Query types that have a label value of their own; all else is "other"."""

_MAGIC = int.from_bytes(b"kdnscnt2", "big")
_WORD = 8
_USED, _REFUSED, _BEATS, _OVERFLOW = 1, 2, 3, 4
_FIRST = _OVERFLOW + MAX_WIDTH
_ENTRY = struct.Struct("=QQ")
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_OVER = len(SIZE_BUCKETS)
_FAST, _SLOW = TIME_BUCKETS[0], len(TIME_BUCKETS)
_BUCKET_TEXT = (*map(str, range(_OVER)), "+")
BUCKET_OF = b"".join(
    bytes([bucket]) * (high - low) for bucket, (low, high) in enumerate(pairwise((-1, *SIZE_BUCKETS, 0xFFFF)))
)
"""The index into SIZE_BUCKETS by size, from 0 to 65535: one look-up instead of a search."""


class _Series(NamedTuple):
    key: Key
    first: int
    width: int


class Region:
    """The counters of one process.

    One process writes (`series` and the cells), any number of its threads; others only `read`. An update must be a
    plain `cells[i] += n` with `n` already computed: CPython changes threads at calls and backward jumps, of which
    such a statement has none, so that threads that share a cell lose nothing. (`cells[i] += f()` would lose.)

    The file descriptor may go to another process by fork or SCM_RIGHTS; it is close-on-exec, so exec needs
    `subprocess`' pass_fds or `os.set_inheritable`. Its size is sealed: no process can truncate it under another.
    """

    def __init__(self, fd: int) -> None:
        """Use `create` or `attach`."""
        self.fd = fd
        self._closing: weakref.finalize[[int], Region] | None = None
        self._map = mmap.mmap(fd, 0)
        if len(self._map) < board.SIZE + mmap.PAGESIZE:
            self._map.close()
            raise ValueError("it is too small")
        whole = memoryview(self._map)
        self.cells = whole[: -board.SIZE].cast("Q")
        self.board = Board(whole[-board.SIZE :])
        self._lock = threading.Lock()
        self._seen: list[_Series] = []
        self._seen_to = _FIRST
        self._index: dict[Key, int] = {}

    @classmethod
    def create(cls, size: int = DEFAULT_SIZE) -> Region:
        """A new, empty region of `size` bytes, rounded up to whole pages. Memory is taken as series come.

        Its descriptor is closed when the object goes, if `close` was not called.
        """
        size = max(size, mmap.PAGESIZE) + board.SIZE
        fd = os.memfd_create("kdns-counters", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, (size + mmap.PAGESIZE - 1) // mmap.PAGESIZE * mmap.PAGESIZE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        region = cls(fd)
        region._closing = weakref.finalize(region, os.close, fd)
        region._closing.atexit = False
        region.cells[_USED] = _FIRST
        region.cells[0] = _MAGIC
        return region

    @classmethod
    def attach(cls, fd: int) -> Region:
        """The region behind a file descriptor, which belongs to the Region from now on.

        Raises KdnsError if it is no region.
        """
        try:
            region = cls(fd)
        except (OSError, ValueError) as error:
            raise KdnsError(f"file descriptor {fd} is not a region of counters: {error}") from error
        if len(region.cells) < _FIRST or region.cells[0] != _MAGIC:
            region._unmap()
            raise KdnsError(f"file descriptor {fd} is not a region of counters of this version")
        with region._lock:
            region._index = {series.key: series.first for series in region._scan()}
        return region

    def series(self, key: Key, width: int) -> int:
        """The index of the first of the key's `width` cells (1 to MAX_WIDTH); the same for the same key.

        A full region gives the index of cells that count for nothing, and counts that it did.
        """
        if not 1 <= width <= MAX_WIDTH:
            raise ValueError(f"a series has 1 to {MAX_WIDTH} cells, not {width}")
        with self._lock:
            first = self._index.get(key)
            if first is None:
                first = self._append(key, width)
            return first

    def _append(self, key: Key, width: int) -> int:
        text = json.dumps(key).encode()
        text_words = (len(text) + _WORD - 1) // _WORD
        start: int = self.cells[_USED]
        first = start + _ENTRY.size // _WORD + text_words
        if first + width > len(self.cells):
            self.cells[_REFUSED] += 1
            return _OVERFLOW
        head = width << 32 | len(text)
        entry = _ENTRY.pack(head, _checksum(head, text)) + text.ljust(text_words * _WORD, b"\0") + bytes(width * _WORD)
        self._map[start * _WORD : (first + width) * _WORD] = entry
        self.cells[_USED] = first + width
        self._index[key] = first
        return first

    def count(self, key: Key, n: int = 1) -> None:
        """Add n to a series of one cell; for what happens seldom."""
        first = self.series(key, 1)
        self.cells[first] += n

    def set(self, key: Key, value: int) -> None:
        """Set a gauge; for what happens seldom."""
        self.cells[self.series(key, 1)] = value

    @property
    def crowded(self) -> bool:
        """Whether three quarters of the room are taken: time for series with fewer different labels."""
        used: int = self.cells[_USED]
        return used > len(self.cells) // 4 * 3

    @property
    def refused(self) -> int:
        """How often a series was asked for that had no room."""
        refused: int = self.cells[_REFUSED]
        return refused

    def beat(self) -> None:
        """Show that the process is well; called once a second."""
        self.cells[_BEATS] += 1

    @property
    def beats(self) -> int:
        """How often it was shown that the process is well."""
        beats: int = self.cells[_BEATS]
        return beats

    def read(self) -> dict[Key, tuple[int, ...]]:
        """Every series with the values of its cells, while the writer writes."""
        with self._lock:
            return {s.key: tuple(self.cells[s.first : s.first + s.width]) for s in self._scan()}

    def _scan(self) -> list[_Series]:
        """All complete entries, of which only new ones are decoded. Stops at anything that is no entry."""
        used = min(self.cells[_USED], len(self.cells))
        while self._seen_to < used:
            series = self._decode(self._seen_to, used)
            if series is None:
                break
            self._seen.append(series)
            self._seen_to = series.first + series.width
        return self._seen

    def _decode(self, start: int, used: int) -> _Series | None:
        begin = start + _ENTRY.size // _WORD
        if begin > used:
            return None
        head, checksum = self.cells[start], self.cells[start + 1]
        width, length = head >> 32, head & 0xFFFFFFFF
        first = begin + (length + _WORD - 1) // _WORD
        if not 1 <= width <= MAX_WIDTH or first + width > used:
            return None
        text = self._map[begin * _WORD : begin * _WORD + length]
        if checksum != _checksum(head, text):
            return None
        return _Series(tuple(json.loads(text)), first, width)

    def close(self) -> None:
        """Give back the mapping and the file descriptor. `cells` cannot be used any more."""
        if self.fd >= 0:
            self._unmap()
            if self._closing is not None:
                self._closing.detach()
            os.close(self.fd)
            self.fd = -1

    def _unmap(self) -> None:
        self.board.close()
        with contextlib.suppress(BufferError):  # who counts here compiled holds the memory, and unmaps it at the end
            self.cells.release()
            self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _checksum(head: int, text: bytes) -> int:
    return zlib.crc32(text, head & 0xFFFFFFFF ^ head >> 32)


class Totals:
    """The sums over all regions, of living processes and of dead ones. Safe to use from several threads.

    A cell only grows and a dead process's cells are kept, so a sum never falls; gauges are summed over the living only,
    and of what is shared it is the largest value of the living.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._regions: list[Region] = []
        self._retired: dict[Key, tuple[int, ...]] = {}
        self._refused = 0

    def add_region(self, region: Region) -> None:
        """Include a region from now on."""
        with self._lock:
            self._regions.append(region)

    def retire(self, region: Region) -> None:
        """Keep what the region's process, which has ended, counted, and close the region."""
        with self._lock:
            self._regions.remove(region)
            cells = region.read()
            _add(self._retired, {key: values for key, values in cells.items() if key[0] not in ("gauge", "shared")})
            self._refused += region.refused
            region.close()

    def totals(self) -> dict[Key, tuple[int, ...]]:
        """Each series of any region with the sums of its cells."""
        with self._lock:
            sums = dict(self._retired)
            for region in self._regions:
                _add(sums, region.read())
            return sums

    def boards(self) -> list[bytes]:
        """What the living processes have posted last, of those that have posted anything."""
        with self._lock:
            return [posted for region in self._regions if (posted := region.board.read())]

    def refused(self) -> int:
        """How often a series had no room, over all regions."""
        with self._lock:
            return self._refused + sum(region.refused for region in self._regions)


def _add(sums: dict[Key, tuple[int, ...]], more: dict[Key, tuple[int, ...]]) -> None:
    for key, cells in more.items():
        have = sums.get(key)
        if have is None:
            sums[key] = cells
        elif key[0] == "shared":
            sums[key] = max(have, cells)
        else:
            sums[key] = tuple(a + b for a, b in zip(have, cells, strict=True))


class QueryCounters:
    """What a worker counts for the queries of one zone of one server.

    An answered query is

        i = counters.key(...)
        cells[i] += 1; cells[i + 1] += request_bytes; cells[i + 2] += response_bytes

    and `i` may be kept with a prepared answer, for as long as its arguments are the same.
    Clients choose types, sizes and flags, so the number of different keys is bounded: when three quarters of the region
    are taken, new ones are counted under the type "other" and above all size buckets. Counts and sums stay right.
    """

    def __init__(self, region: Region, server: str, zone: str, view: str = "", *, shown: bool = True) -> None:
        """server: as in "dns://:53"; zone, view: of the server block, the zone as in "cluster.local.".

        shown: False for a server block without `prometheus`, whose series are of kinds that are in no metric.
        """
        prefix = "" if shown else "hidden-"
        self.region = region
        self.cells = region.cells
        self._labels = (f"{prefix}query", server, zone, view)
        self._index: dict[tuple[str, str, str, str, str, bool, int, int], int] = {}
        self._duration = region.series((f"{prefix}duration", server, zone, view), _SLOW + 2)
        self._sum = self._duration + _SLOW + 1

    def key(
        self,
        proto: str,
        family: str,
        qtype_text: str,
        rcode_text: str,
        plugin: str,
        do: bool,
        request_bytes: int,
        response_bytes: int,
    ) -> int:
        """The index of the cells for a query like this.

        proto: "udp" or "tcp". family: "1" or "2" (IPv4, IPv6). plugin: who answered, "" if none. The sizes are at most
        65535, the longest DNS message.
        """
        if qtype_text not in TYPES:
            qtype_text = "other"
        wanted = (
            proto,
            family,
            qtype_text,
            rcode_text,
            plugin,
            do,
            BUCKET_OF[request_bytes],
            BUCKET_OF[response_bytes],
        )
        index = self._index.get(wanted)
        return self._new(wanted) if index is None else index

    def _new(self, wanted: tuple[str, str, str, str, str, bool, int, int]) -> int:
        proto, family, qtype, rcode, plugin, do, request, response = wanted
        flag = "do" if do else ""
        if self.region.crowded:
            coarse = (*self._labels, proto, family, "other", rcode, plugin, flag, "+", "+")
            return self.region.series(coarse, 3)
        sizes = (_BUCKET_TEXT[request], _BUCKET_TEXT[response])
        index = self.region.series((*self._labels, proto, family, qtype, rcode, plugin, flag, *sizes), 3)
        self._index[wanted] = index
        return index

    def duration(self, nanoseconds: int, count: int = 1) -> None:
        """Count `count` queries that took this long each."""
        cells = self.cells
        if nanoseconds < 1:
            nanoseconds = 1
        bucket = 0
        bound = _FAST
        while nanoseconds > bound and bucket < _SLOW:
            bucket += 1
            bound += bound
        i = self._duration + bucket
        j = self._sum
        total = nanoseconds * count
        cells[i] += count
        cells[j] += total


class Histogram:
    """Durations of one kind, in a region of the process that measures them, for what happens seldom."""

    def __init__(self, region: Region, bounds: Sequence[int], name: str, labels: Key = ()) -> None:
        """bounds: upper bounds of the buckets in nanoseconds, inclusive. labels: label, value, label, value, ..."""
        self._bounds = bounds
        self._cells = region.cells
        self._first = region.series(("histogram", name, *labels), len(bounds) + 2)

    def observe(self, nanoseconds: int) -> None:
        """Count one that took this long."""
        i = self._first + bisect_left(self._bounds, nanoseconds)
        j = self._first + len(self._bounds) + 1
        self._cells[i] += 1
        self._cells[j] += nanoseconds


class Durations(NamedTuple):
    """A histogram whose values are kept under ("histogram", name, ...). bounds: nanoseconds, inclusive."""

    name: str
    help: str
    labels: tuple[str, ...]
    bounds: tuple[int, ...]

    def histogram(self, region: Region, *values: str) -> Histogram:
        """Where a process notes durations that have these values of the labels."""
        pairs = [text for pair in zip(self.labels, values, strict=True) for text in pair]
        return Histogram(region, self.bounds, self.name, tuple(pairs))


_REQUEST_BOUNDS = tuple(ms * 1_000_000 for ms in (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000))
HEALTH_REQUESTS = Durations(
    "coredns_health_request_duration_seconds",
    "Time that a request to the own health endpoint took.",
    (),
    tuple(250_000 * 10**n for n in range(5)),
)
PROGRAMMING = Durations(
    "coredns_kubernetes_dns_programming_duration_seconds",
    "Time from the change of an endpoint in the cluster to the answer that shows it.",
    ("service_kind",),
    tuple(1_000_000 << n for n in range(20)),
)
REST_REQUESTS = Durations(
    "coredns_kubernetes_rest_client_request_duration_seconds",
    "Time until the Kubernetes API began to answer a request, by verb and host.",
    ("verb", "host"),
    _REQUEST_BOUNDS,
)
REST_LIMITER = Durations(
    "coredns_kubernetes_rest_client_rate_limiter_duration_seconds",
    "Time that requests to the Kubernetes API waited for apiserver_qps, by verb and host.",
    ("verb", "host"),
    _REQUEST_BOUNDS,
)
PROXY_REQUESTS = Durations(
    "coredns_proxy_request_duration_seconds",
    "Time from a query to an upstream to its answer, by upstream and response code.",
    ("proxy_name", "to", "rcode"),
    TIME_BUCKETS,
)
HISTOGRAMS = (HEALTH_REQUESTS, PROGRAMMING, REST_REQUESTS, REST_LIMITER, PROXY_REQUESTS)
"""Bounds as CoreDNS has them; those without labels are shown from the start."""
