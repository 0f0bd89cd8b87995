"""Fields of HTTP/2 that come again: what hpack makes of them, and makes once."""

from __future__ import annotations

from collections.abc import Sequence
from unittest.mock import Mock

import hypothesis.strategies as st
import pytest
from hpack import Decoder, Encoder
from hypothesis import given, settings

from kdns.server.hpack import HEADS, FieldEncoder, HeadDecoder

pytestmark = pytest.mark.one_speed
Fields = list[tuple[bytes, bytes]]
FIELD = st.tuples(st.sampled_from((b":status", b"date", b"x")), st.sampled_from((b"200", b"a", b"b" * 40, b"c" * 90)))
HEADS_AND_SIZES = st.tuples(st.lists(FIELD, min_size=1, max_size=4), st.none() | st.sampled_from((0, 150, 4096)))
USUAL = [(b":status", b"200"), (b"content-type", b"application/dns-message"), (b"content-length", b"70")]


@settings(max_examples=150, deadline=None)
@given(st.lists(HEADS_AND_SIZES, max_size=6))
def test_hpack_reads_what_is_written_and_writes_what_is_read_whatever_happens_to_the_table(
    heads: Sequence[tuple[Fields, int | None]],
) -> None:
    pairs: Sequence[tuple[Encoder, Decoder]] = ((FieldEncoder(), Decoder()), (Encoder(), HeadDecoder()))
    for fields, size in [*heads, *heads[::-1]]:
        for encoder, decoder in pairs:
            if size is not None:
                encoder.header_table_size = size
            for _ in range(3):
                assert list(decoder.decode(encoder.encode(fields), raw=True)) == fields


def test_what_comes_again_is_not_worked_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, decoder = FieldEncoder(), HeadDecoder()
    for _ in range(2):  # the first puts the fields into the table, the second finds them there
        block = encoder.encode(USUAL)
        decoder.decode(block, raw=True)
    for kind, method in ((Encoder, "encode"), (Decoder, "decode")):
        monkeypatch.setattr(kind, method, Mock(side_effect=AssertionError(method)))
    assert encoder.encode(USUAL) == block
    assert encoder.encode(USUAL[::-1]) == block[::-1]
    assert decoder.decode(block, raw=True) == USUAL


def test_few_heads_are_remembered_and_none_that_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, decoder = Encoder(), HeadDecoder()
    encoder.encode(USUAL)
    decode = Mock(side_effect=Decoder.decode, autospec=True)
    monkeypatch.setattr(Decoder, "decode", lambda *arguments: decode(*arguments))
    decoder.decode(Encoder().encode(USUAL), raw=True)
    blocks = [encoder.encode(USUAL * number) for number in range(1, HEADS + 5)]
    for block in blocks * 2:
        decoder.decode(block, raw=True)
    assert decode.call_count == 1 + 2 * len(blocks) - HEADS
    decode.reset_mock()
    decoder = HeadDecoder()
    for _ in range(2):
        decoder.decode(b"\x82" * 100, raw=True)
    assert decode.call_count == 2
