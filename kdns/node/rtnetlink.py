"""What the kernel says about links, addresses, rules and routes, and that something about them has changed.

Only to look: it costs microseconds, so that it can be done often. What is to be changed is `kdns.node.change`'s.
Layouts are those of rtnetlink(7) and <linux/fib_rules.h>; numbers are of the host's byte order.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from types import TracebackType
from typing import Self

_HEADER = struct.Struct("=IHHII")  # nlmsghdr
_ATTRIBUTE = struct.Struct("=HH")  # rtattr
_LINK = struct.Struct("=BxHiII")  # ifinfomsg
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg, and fib_rule_hdr

_REQUEST_DUMP = 0x301
_DUMP_INTERRUPTED = 0x10
_ERROR, _DONE = 2, 3
_GET_LINK, _GET_ADDRESS, _GET_ROUTE, _GET_RULE = 18, 22, 26, 34
_SOL_NETLINK, _STRICT_CHECK = 270, 12
_UP = 1
_LOCAL_ROUTE = 2
_GROUPS = (1, 5, 7, 8, 9, 11, 19)  # link; address, route and rule of IPv4; the same of IPv6
_IFNAME = 3
_IFA_ADDRESS, _IFA_LOCAL, _IFA_RT_PRIORITY = 1, 2, 9
_FRA_DST, _FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FRA_FWMASK = 1, 6, 10, 15, 16
_RTA_TABLE = 15
_BUFFER = 1 << 17


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of policy routing: packets to `address` with `mark` under `mask` go by `table`."""

    address: str
    mark: int
    mask: int
    table: int
    priority: int


@dataclass(frozen=True, slots=True)
class View:
    """Links as name: (index, whether up), addresses as (index of the link, address): metric, the rules, and the
    families of the `local default` routes in one table."""

    links: dict[str, tuple[int, bool]]
    addresses: dict[tuple[int, str], int]
    rules: frozenset[Rule]
    local_default: frozenset[int]


def view(table: int) -> View:
    """What there is now. table: the one to look at for routes. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        with contextlib.suppress(OSError):  # Linux before 4.20 tells of the other routing tables too
            sock.setsockopt(_SOL_NETLINK, _STRICT_CHECK, 1)
        sock.bind((0, 0))
        sock.settimeout(5.0)
        return View(
            dict(_links(sock)), dict(_addresses(sock)), frozenset(_rules(sock)), frozenset(_routes(sock, table))
        )


def _links(sock: socket.socket) -> Iterator[tuple[str, tuple[int, bool]]]:
    for body in _dump(sock, _GET_LINK, _LINK.pack(0, 0, 0, 0, 0)):
        _, _, index, flags, _ = _LINK.unpack_from(body)
        name = _attributes(body, _LINK.size)[_IFNAME].rstrip(b"\0").decode(errors="replace")
        yield name, (index, bool(flags & _UP))


def _addresses(sock: socket.socket) -> Iterator[tuple[tuple[int, str], int]]:
    for body in _dump(sock, _GET_ADDRESS, _ADDRESS.pack(0, 0, 0, 0, 0)):
        index = _ADDRESS.unpack_from(body)[4]
        found = _attributes(body, _ADDRESS.size)
        packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
        if packed is not None:
            yield (index, str(ip_address(packed))), _number(found, _IFA_RT_PRIORITY)


def _rules(sock: socket.socket) -> Iterator[Rule]:
    for family in (socket.AF_INET, socket.AF_INET6):
        for body in _dump(sock, _GET_RULE, _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
            found = _attributes(body, _ROUTE.size)
            if _FRA_DST in found:
                address = str(ip_address(found[_FRA_DST]))
                numbers = (_number(found, key) for key in (_FRA_FWMARK, _FRA_FWMASK, _FRA_TABLE, _FRA_PRIORITY))
                yield Rule(address, *numbers)


def _routes(sock: socket.socket, table: int) -> Iterator[int]:
    """The families in which the table makes all addresses local."""
    wanted = _ATTRIBUTE.pack(8, _RTA_TABLE) + struct.pack("=I", table)
    for family in (socket.AF_INET, socket.AF_INET6):
        for body in _dump(sock, _GET_ROUTE, _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0) + wanted):
            _, length, _, _, _, _, _, kind, _ = _ROUTE.unpack_from(body)
            where = _number(_attributes(body, _ROUTE.size), _RTA_TABLE)
            if (length, kind, where) == (0, _LOCAL_ROUTE, table):
                yield family


def _dump(sock: socket.socket, kind: int, body: bytes) -> list[bytes]:
    """All objects of a kind. Raises OSError. One that changes meanwhile may be missing: a change is an event too."""
    sock.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST_DUMP, 1, 0) + body)
    found: list[bytes] = []
    while True:
        data = sock.recv(_BUFFER)
        offset = 0
        while offset < len(data):
            length, got, _, _, _ = _HEADER.unpack_from(data, offset)
            payload = data[offset + _HEADER.size : offset + length]
            offset += length + 3 & ~3
            if got == _DONE:
                return found
            if got == _ERROR:
                code = -struct.unpack_from("=i", payload)[0]
                if code in _UNKNOWN_FAMILY:
                    return found
                raise OSError(code, "netlink")
            found.append(payload)


_UNKNOWN_FAMILY = (95, 97)  # EOPNOTSUPP, EAFNOSUPPORT: a kernel without IPv6, or without policy routing


def _attributes(body: bytes, offset: int) -> dict[int, bytes]:
    found = {}
    while offset + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind] = body[offset + _ATTRIBUTE.size : offset + length]
        offset += length + 3 & ~3
    return found


def _number(found: dict[int, bytes], key: int) -> int:
    return int(struct.unpack("=I", found[key])[0]) if len(found.get(key, b"")) == 4 else 0


class Events:
    """Tells that something about some links, addresses or a routing table has changed."""

    def __init__(self, interface: str, addresses: Sequence[str], table: int) -> None:
        """Raises OSError."""
        self._signs = [
            interface.encode() + b"\0",
            *(ip_address(address).packed for address in addresses),
            struct.pack("=I", table),
        ]
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        try:
            self._sock.bind((0, sum(1 << group - 1 for group in _GROUPS)))
        except OSError:
            self._sock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._sock.close()

    def fileno(self) -> int:
        return self._sock.fileno()

    def concern_us(self) -> bool:
        """Whether one of the messages that wait may be about us; some that are not look so. Takes them all."""
        concerned = False
        while True:
            try:
                data = self._sock.recv(_BUFFER)
            except BlockingIOError:
                return concerned
            except OSError:  # ENOBUFS: there were too many
                return True
            concerned = concerned or any(sign in data for sign in self._signs)
