"""Clients and an upstream that together fill all memory that a server has for them.

`python -m tests.support.flood upstream PORT` answers TXT queries on 127.0.0.1 over UDP and TCP: names that begin with
`big` with 60 KB, those that begin with `slow` not at all, all others with 800 bytes.

`python -m tests.support.flood clients PORT SECONDS` asks a server on 127.0.0.1: for ever new names, each three times;
for names that are not answered; and over hundreds of TCP connections, on which it takes no answer or sends half of a
long message. Prints how many answers came over UDP.
"""

from __future__ import annotations

import contextlib
import itertools
import resource
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import dns.message

ROOT = Path(__file__).resolve().parents[2]
CONNECTIONS = 600
WINDOW = 64
SLOW_RATE = 3000
TXT = b"\xc0\x0c\0\x10\0\1\0\0\x0e\x10\1\0\xff" + b"x" * 255


def answer(query: bytes) -> bytes | None:
    """The answer to a query; None for names that get none."""
    label = query[13 : 13 + query[12]]
    if label.startswith(b"slow"):
        return None
    count = 230 if label.startswith(b"big") else 3
    end = query.index(b"\0", 12) + 5
    return query[:2] + b"\x81\x80\0\1" + count.to_bytes(2, "big") + bytes(4) + query[12:end] + TXT * count


class _Datagrams(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        data, sock = self.request
        reply = answer(data)
        if reply is not None:
            sock.sendto(reply, self.client_address)


class _Stream(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while len(prefix := self.rfile.read(2)) == 2:
            reply = answer(self.rfile.read(int.from_bytes(prefix, "big")))
            if reply is not None:
                self.wfile.write(len(reply).to_bytes(2, "big") + reply)


def serve(port: int) -> None:
    """Be the upstream, for ever."""
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    streams = socketserver.ThreadingTCPServer(("127.0.0.1", port), _Stream)
    threading.Thread(target=streams.serve_forever, daemon=True).start()
    socketserver.UDPServer(("127.0.0.1", port), _Datagrams).serve_forever()


def query(name: str) -> bytes:
    """A query for TXT."""
    return dns.message.make_query(name, "TXT").to_wire()


def _names(prefix: str) -> Iterator[bytes]:
    """Queries for ever new names, quickly made."""
    template = query(f"{prefix}-00000000.flood.test")
    for number in itertools.count():
        yield template.replace(b"00000000", b"%08d" % (number % 10**8))


def ask_for_many(port: int, until: float) -> int:
    """Ask for ever new names, as fast as they are answered; the number of answers."""
    answers = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", port))
        sock.settimeout(0.2)
        names = _names("name")
        while time.monotonic() < until:
            batch = list(itertools.islice(names, WINDOW))
            for _ in range(3):
                with contextlib.suppress(OSError):
                    for one in batch:
                        sock.send(one)
                with contextlib.suppress(OSError):
                    for _ in batch:
                        sock.recv(65535)
                        answers += 1
    return answers


def ask_what_is_slow(port: int, until: float) -> None:
    """Ask for names that nobody answers, without waiting."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", port))
        sock.setblocking(False)
        for one in _names("slow"):
            with contextlib.suppress(OSError):
                sock.send(one)
            time.sleep(1 / SLOW_RATE)
            if time.monotonic() > until:
                return


def hold_connections(port: int, until: float) -> None:
    """Keep connections open that take no answers, or whose messages do not end; open others for those that close."""
    big = [query(f"big-{number:08d}.flood.test") for number in range(40)]
    asking = b"".join(len(one).to_bytes(2, "big") + one for one in big)
    half = b"\xff\xff" + bytes(60_000)
    held: list[socket.socket] = []
    for number in itertools.count():
        if time.monotonic() > until:
            break
        if len(held) >= CONNECTIONS:
            time.sleep(0.02)
            closed = [sock for sock in held if _is_closed(sock)]
            held = [sock for sock in held if sock not in closed]
            for sock in closed:
                sock.close()
            continue
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(0.5)
        held.append(sock)
        with contextlib.suppress(OSError):
            sock.connect(("127.0.0.1", port))
            sock.sendall(asking if number % 3 else half)
    for sock in held:
        sock.close()


def _is_closed(sock: socket.socket) -> bool:
    """Whether the other end has closed it (struct tcp_info begins with the state; 1 is ESTABLISHED)."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) != b"\1"


def attack(port: int, seconds: float) -> int:
    """All of it: for the first half of the time without names that are slow, whose queries keep others from waiting.

    Returns the number of answers over UDP.
    """
    half, until = time.monotonic() + seconds / 2, time.monotonic() + seconds
    threading.Thread(target=hold_connections, args=(port, until)).start()
    answers = ask_for_many(port, half)
    threading.Thread(target=ask_what_is_slow, args=(port, until)).start()
    return answers + ask_for_many(port, until)


def start(*args: object) -> subprocess.Popen[str]:
    """One of the two as a process."""
    command = [sys.executable, "-m", "tests.support.flood", *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if sys.argv[1] == "upstream":
        serve(int(sys.argv[2]))
    else:
        print(attack(int(sys.argv[2]), float(sys.argv[3])))
