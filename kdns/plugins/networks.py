"""IP networks, of which there may be many, to be asked whether they have an address."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

_MAPPED = bytes(10) + b"\xff\xff"  # RFC 4291 2.5.5.2
_IPV4_BITS = 32


def packed(host: str) -> bytes:
    """The 4 or 16 bytes of a client's address, which may name its link (`fe80::1%eth0`); of IPv4 within IPv6 the 4.

    Raises OSError for what is no address.
    """
    if ":" not in host:
        return socket.inet_pton(socket.AF_INET, host)
    return socket.inet_pton(socket.AF_INET6, host.partition("%")[0]).removeprefix(_MAPPED)


class Networks:
    """Some networks. Asking takes a look-up for each length that their prefixes have.

    One of IPv4 addresses within IPv6 (`::ffff:10.0.0.0/104`) is the one of IPv4, as its addresses are.
    """

    __slots__ = ("_by_size",)

    def __init__(self, networks: Iterable[str]) -> None:
        """networks: in CIDR notation."""
        found: dict[int, dict[int, set[int]]] = {4: {}, 16: {}}
        for network in map(ipaddress.ip_network, networks):
            first = network.network_address.packed
            shift = network.max_prefixlen - network.prefixlen
            if first.startswith(_MAPPED) and shift <= _IPV4_BITS:
                first = first[len(_MAPPED) :]
            found[len(first)].setdefault(shift, set()).add(int.from_bytes(first) >> shift)
        self._by_size = {size: tuple(by_shift.items()) for size, by_shift in found.items()}

    def has(self, address: bytes) -> bool:
        """Whether one of them has an address of 4 or 16 bytes."""
        number = int.from_bytes(address)
        return any(number >> shift in prefixes for shift, prefixes in self._by_size[len(address)])
