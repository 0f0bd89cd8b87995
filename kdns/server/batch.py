"""recvmmsg(2) and sendmmsg(2): up to 64 datagrams a system call, in memory that is laid out once.

Each datagram has a slot, and is answered in the slot in which it came: the answer overwrites the query, and the
address and control data that came with the query go back with the answer. With `packet_info` these say which of our
addresses was asked, so that the answer leaves from it (ip(7) IP_PKTINFO, RFC 3542 6).

The layout of struct mmsghdr is that of 64-bit Linux.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import struct
from typing import NamedTuple

SIZE = 64
SLOT = 1 << 16
MSG_WAITFORONE = 0x10000
MSG_DONTWAIT = 0x40

_NAME = 28  # struct sockaddr_in6
_CONTROL = 48
_IP_PKTINFO = 8
_IPV6_RECVPKTINFO = 49
_IPV4_CONTROL = struct.calcsize("@QiiI4s4s4x")
_IPV6_CONTROL = struct.calcsize("@Qii16sI4x")


class _Message(ctypes.Structure):
    """struct msghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.c_void_p),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Header(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = (("message", _Message), ("length", ctypes.c_uint32))


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)
_recvmmsg = _libc.recvmmsg
_recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
_sendmmsg = _libc.sendmmsg
_sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)


def ask_for_packet_info(sock: socket.socket) -> None:
    """Let the kernel tell to which address each datagram was sent."""
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)


class Batch:
    """The slots of one UDP socket.

    data: all slots, SLOT bytes each. lengths: bytes received, by slot. reply_lengths: bytes to send, by slot.
    """

    __slots__ = (
        "_control", "_controllens", "_fd", "_full", "_headers", "_indexes", "_names", "_room", "_vectors",
        "_zeros", "data", "family", "lengths", "packet_info", "reply_lengths",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, packet_info: bool) -> None:
        self._fd = sock.fileno()
        self.family = sock.family
        self.packet_info = packet_info
        self.data = mmap.mmap(-1, SIZE * SLOT)
        names = ctypes.create_string_buffer(SIZE * _NAME)
        control = ctypes.create_string_buffer(SIZE * _CONTROL)
        self._names = memoryview(names).cast("B")
        self._control = memoryview(control).cast("B")
        self._vectors = (_Vector * SIZE)()
        self._headers = (_Header * SIZE)()
        capacity = (_IPV4_CONTROL if self.family == socket.AF_INET else _IPV6_CONTROL) if packet_info else 0
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.data))
        for i in range(SIZE):
            self._vectors[i] = _Vector(base + i * SLOT, SLOT)
            self._headers[i].message = _Message(
                ctypes.addressof(names) + i * _NAME,
                16 if self.family == socket.AF_INET else _NAME,
                ctypes.addressof(self._vectors) + i * ctypes.sizeof(_Vector),
                1,
                ctypes.addressof(control) + i * _CONTROL if packet_info else None,
                capacity,
            )
        headers = memoryview(self._headers).cast("B")
        assert len(headers) == SIZE * 64
        self.lengths = headers.cast("I")[14::16]
        self._controllens = headers.cast("Q")[5::8]
        self.reply_lengths = memoryview(self._vectors).cast("B").cast("Q")[1::2]
        self._room = memoryview(bytes(self.reply_lengths.tobytes())).cast("Q")
        self._full = memoryview(bytes(self._controllens.tobytes())).cast("Q")
        # The interface by which a query came need not be the one by which the answer has to leave.
        index = 4 if self.family == socket.AF_INET else 8
        self._indexes = self._control.cast("I")[index :: _CONTROL // 4]
        self._zeros = memoryview(bytes(4 * SIZE)).cast("I")

    def receive(self, flags: int) -> int:
        """Wait for a datagram and take as many as are there; returns their number.

        Raises InterruptedError on a signal, BlockingIOError with MSG_DONTWAIT when there is none, and OSError.
        """
        self.reply_lengths[:] = self._room
        if self.packet_info:
            self._controllens[:] = self._full
        count: int = _recvmmsg(self._fd, ctypes.addressof(self._headers), SIZE, flags, None)
        if count < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        if self.packet_info:
            self._indexes[:] = self._zeros
        return count

    def send(self, start: int, end: int, flags: int = 0) -> int:
        """Send the answers in the slots from `start` up to `end`; returns how many the kernel refused.

        A refused answer (no route, a source port of 0; with MSG_DONTWAIT: no room) does not keep the others from being
        sent.
        """
        refused = 0
        headers = ctypes.addressof(self._headers)
        while start < end:
            sent: int = _sendmmsg(self._fd, headers + start * ctypes.sizeof(_Header), end - start, flags)
            if sent > 0:
                start += sent
            elif ctypes.get_errno() != errno.EINTR:
                start += 1
                refused += 1
        return refused

    def client(self, slot: int) -> tuple[str, int]:
        """Address and port from which the datagram in a slot came."""
        raw = bytes(self._names[slot * _NAME : (slot + 1) * _NAME])
        port = int.from_bytes(raw[2:4], "big")
        if self.family == socket.AF_INET:
            return socket.inet_ntop(socket.AF_INET, raw[4:8]), port
        return socket.inet_ntop(socket.AF_INET6, raw[8:24]), port

    def destination(self, slot: int) -> str | None:
        """The address to which the datagram in a slot was sent, with `packet_info`."""
        if not self.packet_info:
            return None
        at = slot * _CONTROL + 16
        if self.family == socket.AF_INET:
            return socket.inet_ntop(socket.AF_INET, self._control[at + 4 : at + 8])
        return socket.inet_ntop(socket.AF_INET6, self._control[at : at + 16])

    def envelope(self, slot: int) -> Envelope:
        """What it takes to answer the datagram in a slot after the slot has been used again."""
        name = bytes(self._names[slot * _NAME : (slot + 1) * _NAME])
        if not self.packet_info:
            return Envelope(name, b"")
        at = slot * _CONTROL
        return Envelope(name, bytes(self._control[at : at + self._controllens[slot]]))

    def load(self, slot: int, response: bytes, envelope: Envelope) -> None:
        """Make a slot ready to be sent."""
        at = slot * SLOT
        self.data[at : at + len(response)] = response
        self.reply_lengths[slot] = len(response)
        self._names[slot * _NAME : (slot + 1) * _NAME] = envelope.name
        if self.packet_info:
            at = slot * _CONTROL
            self._control[at : at + len(envelope.control)] = envelope.control
            self._controllens[slot] = len(envelope.control)


class Envelope(NamedTuple):
    """Where an answer goes and where it comes from.

    name: struct sockaddr_in or sockaddr_in6. control: the control messages, of which there is one with `packet_info`.
    """

    name: bytes
    control: bytes
