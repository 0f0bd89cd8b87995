"""How zones have changed, kept in the store for those who follow them (RFC 1995).

Each transaction that changes a zone that is transferred to others leaves its difference: which records were removed and
added between two serials. They lie among the objects of the zone's source, the latest last:

    "journal", "NUMBER SEQUENCE" -> serial before (4 bytes, big endian), serial after (4), Difference as msgpack
    "journals", "NUMBER" -> Extent as msgpack

The oldest go first when there are too many. What is no difference (a zone that is written anew) ends a journal, and so
does a serial that does not rise: there is no way from what others have to what came then.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from kdns.wire import rr
from kdns.wire.rrset import RRset
from kdns.zone import sources
from kdns.zone.keys import key_name
from kdns.zone.values import decode_rrsets

if TYPE_CHECKING:
    from kdns.zone.store import Transaction, Zone

MOST_BYTES = 4 << 20
"""What the differences of a zone take together."""
_ENTRIES, _EXTENTS = "journal", "journals"
_SERIALS = struct.Struct("!II")


class Row(NamedTuple):
    """A record with its owner (lower case wire format)."""

    owner: bytes
    type: int
    ttl: int
    rdata: bytes


class Difference(msgspec.Struct, frozen=True, array_like=True):
    """What leads from one serial to another. before, after: the SOA records; removed, added: all others."""

    before: Row
    after: Row
    removed: list[Row]
    added: list[Row]


class Extent(msgspec.Struct, frozen=True, array_like=True):
    """Which differences there are: from `first` on, in front of `next`; and their bytes."""

    first: int = 0
    next: int = 0
    size: int = 0


def rises(before: int, after: int) -> bool:
    """True if a serial is behind another one on their ring (RFC 1982 3.2)."""
    return 0 < _distance(before, after) < 1 << 31


def end(txn: Transaction, zone: Zone) -> None:
    """Forget how a zone has changed."""
    key = _zone_key(zone)
    data = txn.get_object(zone.source, _EXTENTS, key)
    if data is not None:
        extent = msgspec.msgpack.decode(data, type=Extent)
        for sequence in range(extent.first, extent.next):
            txn.delete_object(zone.source, _ENTRIES, _entry_key(zone, sequence))
        txn.delete_object(zone.source, _EXTENTS, key)


def append(txn: Transaction, zone: Zone, before: Mapping[bytes, bytes | None], after: Mapping[bytes, bytes]) -> None:
    """Note what has changed: the values of keys as they were and, where there is one, as they are."""
    old = _soa(zone, before.get(zone.prefix) or b"")
    new = _soa(zone, after.get(zone.prefix) or b"")
    if old is None or new is None or not rises(serial_of(old), serial_of(new)):
        end(txn, zone)
        return
    removed, added = _differing(zone, before, after)
    difference = Difference(old, new, removed, added)
    data = _SERIALS.pack(serial_of(old), serial_of(new)) + msgspec.msgpack.encode(difference)
    if len(data) > MOST_BYTES:
        end(txn, zone)
        return
    _put(txn, zone, data)


def _put(txn: Transaction, zone: Zone, data: bytes) -> None:
    found = txn.get_object(zone.source, _EXTENTS, _zone_key(zone))
    extent = msgspec.msgpack.decode(found, type=Extent) if found is not None else Extent()
    first, size = extent.first, extent.size + len(data)
    while size > MOST_BYTES:
        key = _entry_key(zone, first)
        size -= len(txn.get_object(zone.source, _ENTRIES, key) or b"")
        txn.delete_object(zone.source, _ENTRIES, key)
        first += 1
    txn.put_object(zone.source, _ENTRIES, _entry_key(zone, extent.next), data)
    found = msgspec.msgpack.encode(Extent(first, extent.next + 1, size))
    txn.put_object(zone.source, _EXTENTS, _zone_key(zone), found)


def since(txn: Transaction, zone: Zone, serial: int) -> list[bytes] | None:
    """The differences, as they are kept, that lead from a serial to the zone's; None if there is no such way."""
    sequences = way(txn, zone, serial)
    return None if sequences is None else entries(txn, zone, sequences, zone.serial)


def way(txn: Transaction, zone: Zone, serial: int) -> range | None:
    """Which differences lead from a serial to the zone's; None if there are none.

    Serials rise, so that one is found, or not, in a few steps: as long as all of them are within one turn of the ring.
    """
    found = txn.get_object(zone.source, _EXTENTS, _zone_key(zone))
    if found is None:
        return None
    extent = msgspec.msgpack.decode(found, type=Extent)
    if not 0 <= extent.first < extent.next:
        return None

    def nearness(sequence: int) -> int:
        data = txn.get_object(zone.source, _ENTRIES, _entry_key(zone, sequence))
        return -_distance(_SERIALS.unpack_from(data)[0], zone.serial) if data is not None else 1

    sequences = range(extent.first, extent.next)
    wanted = -_distance(serial, zone.serial)
    index = bisect_left(sequences, wanted, key=nearness)
    if index == len(sequences) or nearness(sequences[index]) != wanted:
        return None
    return sequences[index:]


def entries(txn: Transaction, zone: Zone, sequences: range, serial: int, most: int = MOST_BYTES) -> list[bytes] | None:
    """Differences, as they are kept; None if they are not one way to a serial, or have too many bytes."""
    found: list[bytes] = []
    wanted = serial
    size = 0
    for sequence in reversed(sequences):
        data = txn.get_object(zone.source, _ENTRIES, _entry_key(zone, sequence))
        if data is None or size + len(data) > most:
            return None
        before, after = _SERIALS.unpack_from(data)
        if after != wanted:
            return None
        found.append(data)
        size += len(data)
        wanted = before
    return found[::-1]


def _distance(before: int, after: int) -> int:
    return (after - before) & 0xFFFFFFFF


def condensed(entries: Iterable[bytes]) -> Difference:
    """Several differences, at least one, as one (RFC 1995 5)."""
    removed: dict[Row, None] = {}
    added: dict[Row, None] = {}
    first = last = None
    for data in entries:
        one = msgspec.msgpack.decode(data[_SERIALS.size :], type=Difference)
        first = first or one.before
        last = one.after
        for row in one.removed:
            if row in added:
                del added[row]
            else:
                removed[row] = None
        for row in one.added:
            if row in removed:
                del removed[row]
            else:
                added[row] = None
    assert first is not None
    assert last is not None
    return Difference(first, last, list(removed), list(added))


def begins(data: bytes) -> int:
    """The serial in front of a difference, as it is kept."""
    return int(_SERIALS.unpack_from(data)[0])


def serial_of(soa: Row) -> int:
    """The serial of an SOA record."""
    return int.from_bytes(soa.rdata[-20:-16], "big")


def _differing(
    zone: Zone, before: Mapping[bytes, bytes | None], after: Mapping[bytes, bytes]
) -> tuple[list[Row], list[Row]]:
    removed: list[Row] = []
    added: list[Row] = []
    for key, value in before.items():
        name = key_name(key, zone.origin)
        if sources.is_inner(zone.source, name):
            continue
        old = dict.fromkeys(_rows(name, decode_rrsets(value or b"")))
        new = dict.fromkeys(_rows(name, decode_rrsets(after.get(key, b""))))
        removed += [row for row in old if row not in new]
        added += [row for row in new if row not in old]
    return removed, added


def _rows(name: bytes, rrsets: Iterable[RRset]) -> Iterator[Row]:
    return (
        Row(name, rrset.type, rrset.ttl, rdata) for rrset in rrsets if rrset.type != rr.SOA for rdata in rrset.rdatas
    )


def _soa(zone: Zone, value: bytes) -> Row | None:
    for rrset in decode_rrsets(value, rr.SOA):
        return Row(zone.origin, rr.SOA, rrset.ttl, rrset.rdatas[0])
    return None


def _zone_key(zone: Zone) -> str:
    return f"{zone.number:05d}"


def _entry_key(zone: Zone, sequence: int) -> str:
    return f"{zone.number:05d} {sequence:015d}"
