"""What the zone store has under a key.

Every value starts with the CRC-32 (4 bytes) of its key and what follows.

An RRset in a value (big endian): type (2 bytes), TTL (4), number of records (4), bytes that the records take (4), then
each record as the length of its rdata (2) and the rdata.
"""

from __future__ import annotations

import struct
import zlib

from kdns.wire import rr
from kdns.wire.rrset import RRset

_CRC = struct.Struct("!I")
_RRSET = struct.Struct("!HIII")
_LENGTH = struct.Struct("!H")
_ONE_RECORD = struct.Struct("!HIIIH")
_SPECIAL = frozenset((rr.DNAME, rr.RRSIG, rr.NSEC))

Records = tuple[RRset, ...]


def seal(key: bytes, data: bytes) -> bytes:
    """A value as it is stored under a key."""
    return _CRC.pack(zlib.crc32(data, zlib.crc32(key))) + data


def is_sealed(key: bytes, value: bytes) -> bool:
    """True if `seal` made the value for that key."""
    return len(value) >= 4 and zlib.crc32(value[4:], zlib.crc32(key)) == _CRC.unpack_from(value)[0]


def encode_rrsets(key: bytes, rrsets: Records) -> bytes:
    """The sealed value of a name with that key."""
    data = b""
    for rrset in rrsets:
        if len(rrset.rdatas) == 1:
            rdata = rrset.rdatas[0]
            size = len(rdata)
            data += _ONE_RECORD.pack(rrset.type, rrset.ttl, 1, size + 2, size) + rdata
            continue
        records = b"".join([_LENGTH.pack(len(rdata)) + rdata for rdata in rrset.rdatas])
        data += _RRSET.pack(rrset.type, rrset.ttl, len(rrset.rdatas), len(records)) + records
    return seal(key, data)


def decode_rrsets(value: bytes, wanted: int = rr.ANY) -> Records:
    """The RRsets of a sealed value, or those of one type (none or one). Raises struct.error for a damaged value."""
    found = []
    at = 4
    while at < len(value):
        rtype, ttl, count, size = _RRSET.unpack_from(value, at)
        at += _RRSET.size
        if wanted in (rr.ANY, rtype):
            rdatas = []
            step = at
            for _ in range(count):
                (length,) = _LENGTH.unpack_from(value, step)
                step += 2 + length
                rdatas.append(value[step - length : step])
            found.append(RRset(rtype, ttl, tuple(rdatas)))
        at += size
    return tuple(found)


def is_special(suffix: bytes, data: bytes) -> bool:
    """True if a name is part of the answers to others: a wildcard (or one is above it), a cut, a DNAME, a signature.

    suffix: of its key, behind the zone's prefix. data: its value, behind the checksum. Raises struct.error if that is
    damaged.
    """
    if b"*" in suffix and b"*" in suffix.split(b"\0"):
        return True
    at = 0
    while at < len(data):
        rtype, _, _, size = _RRSET.unpack_from(data, at)
        if rtype in _SPECIAL or (rtype == rr.NS and suffix):
            return True
        at += _RRSET.size + size
    return False
