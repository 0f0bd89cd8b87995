"""Domain names between text and wire format."""

from __future__ import annotations

import dns.name
import dns.reversename
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.errors import DomainNameError
from kdns.wire import names

wire_names = st.lists(st.binary(min_size=1, max_size=63), max_size=4).map(names.join)


def test_text_and_wire_agree_with_dnspython() -> None:
    for text in ["cluster.local.", ".", r"a\.b.c.", r"\000\255.x.", "_http._tcp.web.default.svc.cluster.local."]:
        assert names.from_text(text) == dns.name.from_text(text).to_wire()


@given(wire_names)
def test_every_name_survives_its_text(name: bytes) -> None:
    assert names.from_text(names.to_text(name)) == name
    assert dns.name.from_text(names.to_text(name)).to_wire() == name


@given(wire_names, wire_names)
def test_subdomain_is_decided_on_label_boundaries(left: bytes, right: bytes) -> None:
    expected = dns.name.from_wire(left, 0)[0].is_subdomain(dns.name.from_wire(right, 0)[0])
    assert names.is_subdomain(names.lower(left), names.lower(right)) is expected


def test_a_zone_inside_a_label_is_no_parent() -> None:
    assert not names.is_subdomain(b"\x09x\x05local\x00aa\x00", b"\x05local\x00")


@pytest.mark.parametrize("text", ["a..b", "." * 3, "a" * 64 + ".b", ".".join(["a" * 60] * 5), "x\\"])
def test_text_that_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(DomainNameError):
        names.from_text(text)


def test_reverse_names() -> None:
    assert names.reverse("10.1.2.3") == names.from_text("3.2.1.10.in-addr.arpa")
    assert names.reverse("2001:db8::1") == dns.reversename.from_address("2001:db8::1").to_wire()


@pytest.mark.parametrize("text", ["a", "a-b", "_http", "0", "x" * 63])
def test_labels_of_kubernetes(text: str) -> None:
    assert names.is_label(text)


@pytest.mark.parametrize("text", ["", "-a", "a-", "a.b", "x" * 64, "ä", "a\n", "a b", "\u212a", "\u017f"])
def test_what_is_no_label(text: str) -> None:
    assert not names.is_label(text)
