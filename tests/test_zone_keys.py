"""Keys of the zone store, and the notes of what changed."""

from __future__ import annotations

import dns.name
from hypothesis import given
from hypothesis import strategies as st

from kdns.wire import names
from kdns.zone.changes import SLOTS, Changes, name_hash
from kdns.zone.keys import key_name, name_key, zone_prefix

ORIGIN = names.from_text("cluster.local.")
PREFIX = zone_prefix(7)
labels = st.lists(
    st.binary(min_size=1, max_size=40) | st.sampled_from([b"\0", b"\1", b"\0\1", b"\1\2", b"a\0b"]), max_size=4
)
zone_names = labels.map(lambda found: names.lower(names.join(found)[:-1] + ORIGIN))


@given(zone_names)
def test_a_key_gives_its_name_back(name: bytes) -> None:
    assert key_name(name_key(PREFIX, name, ORIGIN), ORIGIN) == name


@given(zone_names, zone_names)
def test_a_subtree_is_what_starts_with_its_key(name: bytes, above: bytes) -> None:
    inside = name_key(PREFIX, name, ORIGIN).startswith(name_key(PREFIX, above, ORIGIN))
    assert inside is names.is_subdomain(name, above)


@given(zone_names, zone_names)
def test_keys_are_in_canonical_order(left: bytes, right: bytes) -> None:
    expected = dns.name.from_wire(left, 0)[0] < dns.name.from_wire(right, 0)[0]
    assert (name_key(PREFIX, left, ORIGIN) < name_key(PREFIX, right, ORIGIN)) is expected


def test_the_longest_name_fits_an_lmdb_key() -> None:
    name = names.join([b"\1" * 63, b"\1" * 63, b"\1" * 63, b"\1" * 61])
    assert len(name) == 255
    assert len(name_key(PREFIX, name, names.ROOT)) <= 511


def test_readers_see_the_notes_since_they_looked_last() -> None:
    writer = Changes.create()
    reader = Changes(writer.fd)
    seen, hashes = reader.since(0)
    assert (seen, hashes) == (0, [])
    writer.note([name_hash(b"\1a\0"), 5])
    assert reader.since(seen) == (2, [name_hash(b"\1a\0"), 5])
    assert reader.since(1) == (2, [5])


def test_notes_go_on_round_the_end_of_the_ring() -> None:
    changes = Changes.create()
    changes.note(range(SLOTS - 2))
    seen = changes.generation
    changes.note([1, 2, 3, 4])
    assert changes.since(seen) == (SLOTS + 2, [1, 2, 3, 4])


def test_a_reader_that_was_overtaken_takes_everything_as_changed() -> None:
    changes = Changes.create()
    changes.note(range(SLOTS))
    assert changes.since(0)[1] == list(range(SLOTS))
    changes.note([1])
    assert changes.since(0) == (SLOTS + 1, None)


def test_everything_can_be_noted_at_once() -> None:
    changes = Changes.create()
    changes.note([1])
    changes.note_everything()
    assert changes.since(1) == (2, None)
    assert changes.since(2) == (2, [])
