"""The RRset: records of one name that share type and class (RFC 2181 5)."""

from __future__ import annotations

from msgspec import Struct

from kdns.wire import rr


class RRset(Struct, frozen=True, gc=False):
    """Records without their owner.

    type, klass: 16-bit numbers. ttl: seconds. rdatas: each record's rdata in wire format, names in it uncompressed,
    without duplicates.
    """

    type: int
    ttl: int
    rdatas: tuple[bytes, ...]
    klass: int = rr.IN
