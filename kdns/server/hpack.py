"""HPACK (RFC 7541) by hpack, for the fields that come again: a field that is in the table is a byte, and nothing has to
be looked for until the table changes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hpack import Decoder, Encoder, HeaderTuple

HEADS = 16
"""How many of a client's heads are remembered."""
_LONGEST = 64
"""Bytes that they have at most, as they came."""


class FieldEncoder(Encoder):
    """Knows the bytes of fields that are in the table."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[Any, bytes] = {}

    def encode(self, headers: Iterable[Any], huffman: bool = True) -> bytes:
        """See Encoder."""
        fields = list(headers)
        if not self.header_table.resized:
            try:
                return b"".join([self._known[field] for field in fields])
            except KeyError:
                pass
        block = super().encode(fields, huffman)
        if len(block) == len(fields):  # what is not in the table takes two bytes or more
            self._known.update((field, block[at : at + 1]) for at, field in enumerate(fields))
        else:
            self._known.clear()
        return block


class HeadDecoder(Decoder):
    """Knows heads of which all fields are in the table."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[bytes, list[HeaderTuple]] = {}

    def decode(self, data: bytes, raw: bool = False) -> Iterable[HeaderTuple]:
        """See Decoder."""
        found = self._known.get(data) if raw else None
        if found is not None:
            return found
        headers = list(super().decode(data, raw))
        if len(headers) != len(data):  # a field that is not in the table takes two bytes or more, and may change it
            self._known.clear()
        elif raw and len(data) <= _LONGEST and len(self._known) < HEADS:
            self._known[data] = headers
        return headers
