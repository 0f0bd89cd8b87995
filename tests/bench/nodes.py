"""Nodes that follow a zone (`kdns.wire.following`), as a server sees them: one process with a connection for each.

They keep no records. What a message says is worked out once for all that get the same.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from kdns.wire import following, message, names, rr

_PATIENCE = 0.25
"""Seconds after which a node that was not served tries again."""
_READ = 256 << 10
_REMEMBERED = 64 << 20
"""Bytes of messages."""
_NOTIFY = message.NOTIFY >> 8


@dataclass(slots=True)
class Part:
    """A message of an answer. serials: of its SOA records. difference: whether the second record is one. ended: whether
    the last one is. added: addresses that a difference brings. lineage: b"" without one. times: when nodes got it."""

    failed: bool
    records: int
    serials: list[int]
    difference: bool
    ended: bool
    added: list[str]
    lineage: bytes
    times: list[float] = field(default_factory=list)


class _Node:
    __slots__ = ("again", "asked", "data", "lineage", "needed", "serial", "sock", "target", "wanted")

    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.again = 0.0  # when it connects
        self.asked = False
        self.wanted = False  # whether it was told of a change since it has asked
        self.data = b""
        self.lineage = b""
        self.serial: int | None = None
        self.target: int | None = None  # of the answer that is coming
        self.needed = 0  # SOA records of that serial until its end


class Nodes:
    """parts: what came, in order. transfers: whole zones, differences, and answers that there is nothing new.
    failed: answers that were none, and connections that the server has ended. received: bytes."""

    def __init__(self, port: int, zone: str, count: int) -> None:
        self._port = port
        self._zone = names.from_text(zone)
        self._nodes = [_Node() for _ in range(count)]
        self._by_fd: dict[int, _Node] = {}
        self._epoll = select.epoll()
        self._known: dict[bytes, Part] = {}
        self._size = 0
        self.parts: list[Part] = []
        self.clear()

    def clear(self) -> None:
        """Count anew."""
        self.parts.clear()
        self._known.clear()
        self._size = self.failed = self.received = 0
        self.transfers = {"axfr": 0, "ixfr": 0, "current": 0}

    def connect(self, lineage: bytes | None = None) -> None:
        """All at once. lineage: what they have is of this one, in place of what they know."""
        for node in self._nodes:
            node.lineage = node.lineage if lineage is None else lineage
            self._connect(node)

    def close(self) -> None:
        """End all connections."""
        for node in self._nodes:
            self._end(node)

    def settled(self) -> bool:
        """Whether all are connected and have what they have asked for."""
        return all(node.sock is not None and not node.asked and node.serial is not None for node in self._nodes)

    def serials(self) -> set[int | None]:
        """What they have."""
        return {node.serial for node in self._nodes}

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> float:
        """Do what nodes do, so long or until something is so; the seconds that it took."""
        begun = time.monotonic()
        checked = begun
        while (now := time.monotonic()) < begun + seconds:
            for fd, _ in self._epoll.poll(0.005, 1024):
                if fd in self._by_fd:
                    self._read(self._by_fd[fd])
            if now - checked > 0.02:
                checked = now
                for node in self._nodes:
                    if node.sock is None and 0 < node.again < now:
                        self._connect(node)
                if until():
                    break
        return time.monotonic() - begun

    def _connect(self, node: _Node) -> None:
        node.sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        node.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as asyncio's are
        node.again = 0.0
        node.data, node.target = b"", None
        try:
            node.sock.connect(("127.0.0.1", self._port))
        except OSError:
            self._fail(node)
            return
        node.sock.setblocking(False)
        self._by_fd[node.sock.fileno()] = node
        self._epoll.register(node.sock.fileno(), select.EPOLLIN)
        self._ask(node)

    def _end(self, node: _Node) -> None:
        if node.sock is not None:
            self._by_fd.pop(node.sock.fileno(), None)
            node.sock.close()
        node.sock, node.again, node.asked = None, 0.0, False

    def _fail(self, node: _Node) -> None:
        self.failed += 1
        self._end(node)
        node.again = time.monotonic() + _PATIENCE

    def _ask(self, node: _Node) -> None:
        """For what is new, or for all of it."""
        option = struct.pack("!HH", following.OPTION, len(node.lineage)) + node.lineage
        opt = struct.pack("!BHHIH", 0, rr.OPT, 1232, 0, len(option)) + option
        old = b""
        if node.serial is not None and node.lineage:
            old = struct.pack("!HHHIHBB5I", 0xC00C, rr.SOA, rr.IN, 0, 22, 0, 0, node.serial, 0, 0, 0, 0)
        kind = rr.IXFR if old else rr.AXFR
        question = self._zone + struct.pack("!HH", kind, rr.IN)
        data = message.HEADER.pack(1, 0, 1, 0, bool(old), 1) + question + old + opt
        node.asked, node.wanted = True, False
        self._send(node, data)

    def _send(self, node: _Node, data: bytes) -> None:
        assert node.sock is not None
        with contextlib.suppress(OSError):  # the next read tells
            node.sock.send(len(data).to_bytes(2, "big") + data)

    def _read(self, node: _Node) -> None:
        assert node.sock is not None
        try:
            came = node.sock.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            came = b""
        if not came:
            self._fail(node)
            return
        self.received += len(came)
        data = node.data + came if node.data else came
        at, size, now = 0, len(data), time.monotonic()
        while size - at >= 2 and node.sock is not None:
            end = at + 2 + (data[at] << 8 | data[at + 1])
            if end > size:
                break
            self._take(node, data[at + 2 : end], now)
            at = end
        node.data = data[at:]

    def _take(self, node: _Node, data: bytes, now: float) -> None:
        if data[2] & 0x78 == _NOTIFY:
            self._send(node, data[:2] + bytes((data[2] | 0x80,)) + data[3:])
            node.wanted = True
        else:
            part = self._part(data)
            part.times.append(now)
            self._came(node, part)
        if node.wanted and not node.asked and node.sock is not None:
            self._ask(node)

    def _part(self, data: bytes) -> Part:
        key = data[2:]
        part = self._known.get(key)
        if part is None:
            part = _parsed(data)
            self._size += len(key)
            if self._size > _REMEMBERED:
                self._known.clear()
                self._size = len(key)
            self._known[key] = part
            self.parts.append(part)
        return part

    def _came(self, node: _Node, part: Part) -> None:
        if part.failed:
            self._fail(node)
            return
        if node.target is None:
            node.target = part.serials[0]
            node.lineage = part.lineage
            node.needed = 1 if part.records == 1 else 3 if part.difference else 2
            self.transfers[("current", "axfr", "ixfr")[node.needed - 1]] += 1
        node.needed -= part.serials.count(node.target)
        if part.ended and node.needed <= 0:
            node.serial, node.target, node.asked = node.target, None, False


def _parsed(data: bytes) -> Part:
    _, flags, questions, answers, authorities, additional = message.HEADER.unpack_from(data)
    part = Part(bool(flags & 15) or not answers, answers, [], False, False, [], b"")
    at = message.QUESTION_AT
    for _ in range(questions):
        at = message.skip_name(data, at) + 4
    for number in range(answers + authorities + additional):
        at = message.skip_name(data, at)
        kind, _, _, size = struct.unpack_from("!HHIH", data, at)
        at += 10
        if kind == rr.SOA and number < answers:
            part.serials.append(int.from_bytes(data[at + size - 20 : at + size - 16], "big"))
            part.difference = part.difference or number == 1
            part.ended = number == answers - 1
        elif kind == rr.A and part.difference and len(part.serials) % 2:
            part.added.append(str(IPv4Address(data[at : at + 4])))
        elif kind == rr.OPT and size >= 4 + following.LINEAGE:
            part.lineage = data[at + 4 : at + size]  # and a revision, if there is one
        at += size
    return part
