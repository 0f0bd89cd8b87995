"""The RRset: records of one name that share type and class (RFC 2181 5)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec import Struct, structs

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


def apart(records: Iterable[tuple[bytes, RRset]]) -> Iterator[tuple[bytes, RRset]]:
    """RRsets with their owners as RRsets of one record each."""
    for owner, rrset in records:
        for rdata in rrset.rdatas:
            yield owner, structs.replace(rrset, rdatas=(rdata,))


def together(records: Iterable[tuple[bytes, RRset]]) -> list[tuple[bytes, RRset]]:
    """RRsets that follow each other, and differ in nothing but their data, as one."""
    found: list[tuple[bytes, RRset]] = []
    for owner, rrset in records:
        last = found[-1] if found else None
        if last is not None and last[0] == owner and structs.replace(rrset, rdatas=last[1].rdatas) == last[1]:
            rdatas = tuple(dict.fromkeys((*last[1].rdatas, *rrset.rdatas)))
            found[-1] = owner, structs.replace(rrset, rdatas=rdatas)
        else:
            found.append((owner, rrset))
    return found
