"""Domain names (RFC 1035 3.1) as bytes.

A name is its uncompressed wire format: each label as one length byte and its content, closed by the zero byte of the
root. Names that serve as keys are lower case (ASCII only, RFC 4343).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

from kdns.errors import DomainNameError

T = TypeVar("T")

ROOT = b"\0"
MAX_NAME = 255
MAX_LABEL = 63

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.IGNORECASE | re.ASCII)
_ESCAPED = frozenset(b'.\\"();@$')


def join(labels: Iterable[bytes]) -> bytes:
    """Make a name of its labels, the one nearest the root last.

    Raises DomainNameError for an empty label, one of more than 63 bytes, or a name of more than 255.
    """
    parts = []
    for label in labels:
        if not 0 < len(label) <= MAX_LABEL:
            raise DomainNameError(f"label {label!r} has {len(label)} bytes; accepted: 1 to {MAX_LABEL}")
        parts.append(bytes((len(label),)) + label)
    name = b"".join(parts) + ROOT
    if len(name) > MAX_NAME:
        raise DomainNameError(f"name of {len(name)} bytes; accepted: at most {MAX_NAME}")
    return name


def labels(name: bytes) -> list[bytes]:
    """The labels of a name, without the root's empty one."""
    found = []
    at = 0
    while length := name[at]:
        found.append(name[at + 1 : at + 1 + length])
        at += 1 + length
    return found


def from_text(text: str) -> bytes:
    r"""Read a name as a master file writes it (RFC 1035 5.1: `\.` and `\DDD`); a missing last dot is taken as given.

    Case is kept. Raises DomainNameError.
    """
    if text in (".", ""):
        return ROOT
    if "\\" not in text:
        return join(text.removesuffix(".").encode().split(b"."))
    found: list[bytes] = []
    label = bytearray()
    at = 0
    while at < len(text):
        char = text[at]
        if char == "\\":
            digits = text[at + 1 : at + 4]
            if len(digits) == 3 and digits.isascii() and digits.isdigit() and int(digits) < 256:
                label.append(int(digits))
                at += 4
                continue
            at += 1
            if at == len(text):
                raise DomainNameError(f"name {text!r} ends in the middle of an escape")
            label += text[at].encode()
        elif char == ".":
            found.append(bytes(label))
            label.clear()
        else:
            label += char.encode()
        at += 1
    if label:
        found.append(bytes(label))
    return join(found)


def to_text(name: bytes) -> str:
    r"""A name in master file format, absolute (with its last dot); unprintable bytes as `\DDD`."""
    if name == ROOT:
        return "."
    parts = []
    for label in labels(name):
        for byte in label:
            if byte in _ESCAPED:
                parts.append("\\" + chr(byte))
            elif 0x21 <= byte <= 0x7E:
                parts.append(chr(byte))
            else:
                parts.append(f"\\{byte:03d}")
        parts.append(".")
    return "".join(parts)


def lower(name: bytes) -> bytes:
    """The name in lower case. Length bytes are at most 63 and so below every letter."""
    return name.lower()


def is_subdomain(name: bytes, zone: bytes) -> bool:
    """True if the name is the zone or lies below it. Both in the same case."""
    at = len(name) - len(zone)
    return at >= 0 and name.endswith(zone) and is_between_labels(name, at)


def is_between_labels(name: bytes, at: int) -> bool:
    """True if a label of the name, or its root, begins at an offset."""
    step = 0
    while step < at:
        step += 1 + name[step]
    return step == at


def longest(by_zone: dict[bytes, T], sizes: list[int], name: bytes) -> T | None:
    """The value of the longest zone at or above a name; None if there is none. sizes: of the zones, falling."""
    octets = name
    end = len(name)
    for size in sizes:
        at = end - size
        if at >= 0:
            value = by_zone.get(octets[at:end])
            if value is not None and is_between_labels(name, at):
                return value
    return None


class Zones(Generic[T]):
    """Values by zone, to be found by any name at or below it; the longest zone wins (RFC 1034 4.3.2 2).

    zones, by_zone: lower case names with their values. sizes: their lengths, falling.
    """

    __slots__ = ("by_zone", "sizes")

    def __init__(self, zones: Mapping[bytes, T]) -> None:
        self.by_zone = dict(zones)
        self.sizes = sorted({len(zone) for zone in zones}, reverse=True)

    def find(self, name: bytes) -> T | None:
        """The value of the longest zone at or above a name (lower case), None if there is none."""
        return longest(self.by_zone, self.sizes, name)


def zone_set(zones: Iterable[str]) -> Zones[bool]:
    """True for every name in one of these zones. Raises DomainNameError."""
    return Zones({lower(from_text(zone)): True for zone in zones})


def parent(name: bytes) -> bytes:
    """The name without its first label. The root has no parent: it is returned as it is."""
    return name[1 + name[0] :] if name != ROOT else ROOT


def at(data: bytes, start: int) -> bytes:
    """The uncompressed name that begins at an offset. Raises IndexError if it is cut short."""
    end = start
    while data[end]:
        end += 1 + data[end]
    return data[start : end + 1]


def reverse(address: str) -> bytes:
    """The name under in-addr.arpa or ip6.arpa for an address (RFC 1035 3.5, RFC 3596 2.5).

    Raises ValueError for text that is no address.
    """
    return from_text(ipaddress.ip_address(address).reverse_pointer)


def is_label(text: str) -> bool:
    """True for 1 to 63 letters, digits, hyphens and underscores that neither start nor end with a hyphen.

    The DNS label of Kubernetes (RFC 1123), and the underscore that port names in SRV owners have.
    """
    return _LABEL.fullmatch(text) is not None
