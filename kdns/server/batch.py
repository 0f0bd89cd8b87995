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

try:
    import cython
except ImportError:
    from kdns import speed as cython

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


_HEADER = ctypes.sizeof(_Header)


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


if not cython.compiled:  # else they are in batch.pxd, with the same meaning
    from time import monotonic_ns

    _libc = ctypes.CDLL(None, use_errno=True)
    _libc.recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
    _libc.sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)

    def receive_many(fd: int, headers: int, count: int, flags: int) -> int:
        """recvmmsg(2) with the address of `count` headers: how many datagrams came, or the error's number, negative."""
        received: int = _libc.recvmmsg(fd, headers, count, flags, None)
        return received if received >= 0 else -ctypes.get_errno()

    def send_many(fd: int, headers: int, count: int, flags: int) -> int:
        """sendmmsg(2): how many datagrams were sent, or the error's number, negative."""
        sent: int = _libc.sendmmsg(fd, headers, count, flags)
        return sent if sent >= 0 else -ctypes.get_errno()

    def slots(memory: mmap.mmap, _: int) -> mmap.mmap:
        """All slots, to read slices from, in memory that begins at an address."""
        return memory

    def write(data: mmap.mmap, at: int, text: bytes) -> None:
        """Put bytes into the slots."""
        data[at : at + len(text)] = text


def ask_for_packet_info(sock: socket.socket) -> None:
    """Let the kernel tell to which address each datagram was sent."""
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)


class Batch:
    """The slots of one UDP socket, SLOT bytes each. lengths: bytes received, by slot."""

    __slots__ = (
        "_address", "_answer_lengths", "_control", "_controllens", "_data", "_fd", "_full", "_headers", "_indexes",
        "_memory", "_names", "_received", "_room", "_vectors", "_zeros", "family", "lengths", "packet_info",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, packet_info: bool) -> None:
        self._fd = sock.fileno()
        self.family = sock.family
        self.packet_info = packet_info
        self._received = SIZE
        self._memory = mmap.mmap(-1, SIZE * SLOT)
        names = ctypes.create_string_buffer(SIZE * _NAME)
        control = ctypes.create_string_buffer(SIZE * _CONTROL)
        self._names = memoryview(names).cast("B")
        self._control = memoryview(control).cast("B")
        self._vectors = (_Vector * SIZE)()
        self._headers = (_Header * SIZE)()
        capacity = (_IPV4_CONTROL if self.family == socket.AF_INET else _IPV6_CONTROL) if packet_info else 0
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._data = slots(self._memory, base)
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
        self._address = ctypes.addressof(self._headers)
        headers = memoryview(self._headers).cast("B")
        assert len(headers) == SIZE * 64
        self.lengths = headers.cast("I")[14::16]
        self._controllens = headers.cast("Q")[5::8]
        self._full = memoryview(bytearray(headers.cast("Q")[5::8].tobytes())).cast("Q")
        vectors = memoryview(self._vectors).cast("B").cast("Q")
        self._answer_lengths = vectors[1::2]
        self._room = memoryview(bytearray(vectors[1::2].tobytes())).cast("Q")
        # The interface by which a query came need not be the one by which the answer has to leave.
        index = 4 if self.family == socket.AF_INET else 8
        self._indexes = self._control.cast("I")[index :: _CONTROL // 4]
        self._zeros = memoryview(bytearray(4 * SIZE)).cast("I")

    def receive(self, flags: int) -> int:
        """Wait for a datagram and take as many as are there; returns their number.

        Raises InterruptedError on a signal, BlockingIOError with MSG_DONTWAIT when there is none, and OSError.
        """
        last = self._received
        self._answer_lengths[:last] = self._room[:last]
        if self.packet_info:
            self._controllens[:last] = self._full[:last]
        self._received = 0
        count = receive_many(self._fd, self._address, SIZE, flags)
        if count < 0:
            raise OSError(-count, os.strerror(-count))
        self._received = count
        if self.packet_info:
            self._indexes[:count] = self._zeros[:count]
        return count

    def now(self) -> int:
        """time.monotonic_ns()."""
        return monotonic_ns()

    def query(self, slot: int) -> bytes:
        """What came in a slot."""
        at = slot * SLOT
        return self._data[at : at + self.lengths[slot]]

    def key(self, slot: int) -> bytes:
        """What came in a slot, without the ID."""
        at = slot * SLOT
        size = self.lengths[slot]
        return self._data[at + 2 : at + size] if size > 2 else b""

    def answer(self, slot: int, response: bytes) -> int:
        """Put a response without its ID behind the query's own; returns its length with it. Raises ValueError."""
        length = len(response) + 2
        if length > SLOT:
            raise ValueError(f"a response of {length} bytes")
        write(self._data, slot * SLOT + 2, response)
        self._answer_lengths[slot] = length
        return length

    def answered(self, slot: int, most: int) -> bytes:
        """The first `most` bytes of the response in a slot; empty without one."""
        at = slot * SLOT
        length = self._answer_lengths[slot]
        return self._data[at : at + min(length, most)] if length < SLOT else b""

    def send(self, start: int, end: int, flags: int = 0) -> int:
        """Send the answers in the slots from `start` up to `end`; returns how many the kernel refused.

        A refused answer (no route, a source port of 0; with MSG_DONTWAIT: no room) does not keep the others from being
        sent.
        """
        refused = 0
        while start < end:
            sent = send_many(self._fd, self._address + start * _HEADER, end - start, flags)
            if sent > 0:
                start += sent
            elif sent != -errno.EINTR:
                start += 1
                refused += 1
        return refused

    def client(self, slot: int) -> tuple[str, int]:
        """Address and port from which the datagram in a slot came."""
        port = int.from_bytes(self._names[slot * _NAME + 2 : slot * _NAME + 4], "big")
        return socket.inet_ntop(self.family, self.address(slot)), port

    def address(self, slot: int) -> bytes:
        """The address from which the datagram in a slot came, packed."""
        at = slot * _NAME
        return bytes(self._names[at + 4 : at + 8] if self.family == socket.AF_INET else self._names[at + 8 : at + 24])

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
        write(self._data, slot * SLOT, response)
        self._answer_lengths[slot] = len(response)
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
