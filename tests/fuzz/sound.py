"""A reader of messages that shares nothing with the one that is tested: it finds what no client could use."""

from __future__ import annotations

import struct

Record = tuple[bytes, int, int, int, bytes]
"""Owner, type, class, TTL and rdata, with their names in full."""
_NAMES_AT = {2: (0, 1), 5: (0, 1), 6: (0, 2), 12: (0, 1), 33: (6, 1)}
"""Types whose names are read: bytes before them, and how many there are."""


def name_at(data: bytes, at: int) -> tuple[bytes, int]:
    """A name in full, and the offset behind where it stands; pointers lead backwards only."""
    labels = b""
    behind = 0
    before = at
    while True:
        assert at < len(data), "a name leads out of the message"
        length = data[at]
        if length >= 0xC0:
            assert at + 1 < len(data), "a pointer is cut short"
            behind = behind or at + 2
            at = (length & 0x3F) << 8 | data[at + 1]
            assert 12 <= at < before, "a pointer does not lead backwards"
            before = at
            continue
        assert length <= 63, "a label of an unknown type"
        labels += data[at : at + 1 + length]
        assert len(labels) <= 255, "a name of more than 255 bytes"
        at += 1 + length
        if not length:
            return labels, behind or at


def records(data: bytes) -> list[Record]:
    """All records of a message with one question or none, which has nothing behind them."""
    questions, *counts = struct.unpack_from("!HHHH", data, 4)
    at = 12
    for _ in range(questions):
        at = name_at(data, at)[1] + 4
    found = []
    for _ in range(sum(counts)):
        owner, at = name_at(data, at)
        assert at + 10 <= len(data), "a record is cut short"
        rtype, klass, ttl, size = struct.unpack_from("!HHIH", data, at)
        at += 10
        assert at + size <= len(data), "rdata is cut short"
        found.append((owner, rtype, klass, ttl, _rdata(data, at, rtype, size)))
        at += size
    assert at == len(data), f"{len(data) - at} bytes behind the message"
    return found


def _rdata(data: bytes, at: int, rtype: int, size: int) -> bytes:
    end = at + size
    before, count = _NAMES_AT.get(rtype, (0, 0))
    if not count:
        return data[at:end]
    parts = [data[at : at + before]]
    at += before
    for _ in range(count):
        name, at = name_at(data, at)
        parts.append(name)
    assert at <= end, "a name leads out of its rdata"
    return b"".join(parts) + data[at:end]


def check_answer(query: bytes, answer: bytes) -> None:
    """An answer that a resolver would accept: the ID and opcode of the query, QR, its question or none, our sizes."""
    assert answer[:2] == query[:2], "another ID"
    assert answer[2] & 0xF8 == 0x80 | query[2] & 0x78, "QR is not set, or another opcode"
    found = records(answer)
    questions = int.from_bytes(answer[4:6], "big")
    assert questions <= 1
    if questions:
        end = name_at(answer, 12)[1] + 4
        assert answer[12:end] == query[12:end], "the question came back changed"
    opts = [record for record in found if record[1] == 41]
    assert len(opts) <= 1
    assert len(answer) <= 65535
