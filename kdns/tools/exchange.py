"""One question to a DNS server over UDP or TCP, and its answer."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import Any

from dnslib import EDNS0, DNSError, DNSHeader, DNSRecord

from kdns.errors import KdnsError


@dataclass(frozen=True, slots=True)
class Server:
    """Where questions go: an address (or a name that the system resolves) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host} port {self.port}"


@dataclass(frozen=True, slots=True)
class Reply:
    """A response and how it came.

    proto: "udp" or "tcp". size: bytes. seconds: from the first byte sent to the last one received, in this protocol.
    retried: it was truncated over UDP, and this is the answer over TCP.
    """

    record: DNSRecord
    proto: str
    size: int
    seconds: float
    retried: bool = False


def exchange(question: Any, server: Server, *, tcp: bool, edns: int | None, dnssec: bool, timeout: float) -> Reply:
    """Ask over UDP, and again over TCP if the answer was truncated; or over TCP at once.

    question: a dnslib.DNSQuestion. edns: the UDP size in bytes for the OPT record, None for no OPT record.
    timeout: seconds for each of the two. Raises KdnsError if no usable answer came.
    """
    record = DNSRecord(DNSHeader(rd=1), q=question)
    if edns is not None:
        record.add_ar(EDNS0(flags="do" if dnssec else "", udp_len=edns))
    reply = _ask(record, server, "tcp" if tcp else "udp", timeout)
    if reply.record.header.tc and reply.proto == "udp":
        again = _ask(record, server, "tcp", timeout)
        return Reply(again.record, "tcp", again.size, again.seconds, retried=True)
    return reply


def _ask(record: DNSRecord, server: Server, proto: str, timeout: float) -> Reply:
    data = record.pack()
    kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
    try:
        family, _, _, _, address = socket.getaddrinfo(server.host, server.port, type=kind)[0]
        with socket.socket(family, kind) as sock:
            start = time.perf_counter()
            sock.settimeout(timeout)
            sock.connect(address)
            wire = (_over_tcp if proto == "tcp" else _over_udp)(sock, data, start + timeout)
            seconds = time.perf_counter() - start
    except TimeoutError:
        raise KdnsError(f"no answer from {server} over {proto.upper()} within {timeout:g} s") from None
    except ConnectionRefusedError:
        raise KdnsError(f"nothing listens at {server} over {proto.upper()}") from None
    except UnicodeError:
        raise KdnsError(f"{server.host!r} is no name of a host; accepted: labels of 1 to 63 bytes") from None
    except OSError as error:
        raise KdnsError(f"cannot ask {server} over {proto.upper()}: {error.strerror or error}") from None
    try:
        return Reply(DNSRecord.parse(wire), proto, len(wire), seconds)
    except DNSError as error:
        raise KdnsError(f"the answer of {server} cannot be read: {error}") from None


def _over_udp(sock: socket.socket, data: bytes, deadline: float) -> bytes:
    """Send, and wait for a response that has the query's ID. deadline: by time.perf_counter. Raises OSError."""
    sock.send(data)
    while True:
        wire = _receive(sock, 65535, deadline)
        if len(wire) >= 12 and wire[:2] == data[:2] and wire[2] & 0x80:
            return wire


def _over_tcp(sock: socket.socket, data: bytes, deadline: float) -> bytes:
    """Send with a length prefix (RFC 1035 4.2.2), and read one message. Raises OSError."""
    sock.sendall(len(data).to_bytes(2, "big") + data)
    stream = b""
    while len(stream) < 2 or len(stream) < 2 + int.from_bytes(stream[:2], "big"):
        more = _receive(sock, 65535, deadline)
        if not more:
            raise ConnectionError("the connection was closed before the answer was complete")
        stream += more
    return stream[2 : 2 + int.from_bytes(stream[:2], "big")]


def _receive(sock: socket.socket, size: int, deadline: float) -> bytes:
    left = deadline - time.perf_counter()
    if left <= 0:
        raise TimeoutError
    sock.settimeout(left)
    return sock.recv(size)
