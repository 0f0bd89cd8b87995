"""What targets stand on: stores that are made once, and streams of messages."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import socket
from collections.abc import Callable
from pathlib import Path

from kdns.server.tcp import Connections
from kdns.zone.changes import Changes
from kdns.zone.reader import Reader
from tests.support import worlds
from tests.support.answering import Ground
from tests.support.tls import Issued
from tests.support.worlds import WORLDS

USED = (
    "kubeadm", "alone", "many plugins", "server blocks", "zones in zones", "every name", "unsynced", "zonal",
    "files in files", "secondary",
)  # fmt: skip
"""The worlds that are asked; the first byte of a query's ID says which."""
TURNS = 1000
"""Turns of the event loop in which a connection has to end."""


def prepare(folder: Path) -> None:
    """Make the stores, once and for all processes: then answers are the same in all of them."""
    for title in USED:
        path = folder / title.replace(" ", "-")
        ground = worlds.build(path, WORLDS[title])
        (path / "ground").write_bytes(pickle.dumps((ground.path, ground.config, ground.zones, ground.beside)))
    Issued(folder)


class Stores:
    """The stores that `prepare` has made; each can be opened once in a process. folder: has a certificate, too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, tuple[Ground, Reader]] = {}

    def open(self, title: str) -> tuple[Ground, Reader]:
        """A world with the reader of its store."""
        if title not in self._open:
            data = (self.folder / title.replace(" ", "-") / "ground").read_bytes()
            path, config, zones, beside = pickle.loads(data)  # noqa: S301 - it is ours
            ground = Ground(path, config, zones, beside, Changes.create())
            self._open[title] = ground, Reader(ground.path, ground.changes)
        return self._open[title]

    def close(self) -> None:
        """Close all readers."""
        for _, reader in self._open.values():
            reader.close()


def taken(sock: socket.socket) -> bytes:
    """What has come on a socket."""
    parts = []
    try:
        while part := sock.recv(1 << 16):
            parts.append(part)
    except (BlockingIOError, ConnectionResetError):
        pass
    return b"".join(parts)


async def exchanged(
    listening: socket.socket,
    connections: Connections,
    pieces: list[bytes],
    *,
    unsent: tuple[type[OSError], ...] = (ConnectionError,),
    look: Callable[[], None] = lambda: None,
) -> bytes:
    """What a server has sent to a client that sends pieces and closes.

    unsent: what a piece may fail with. look: is called behind each piece.
    """
    received = b""
    with socket.create_connection(listening.getsockname()) as client:
        client.setblocking(False)
        for piece in pieces:
            with contextlib.suppress(*unsent):
                client.send(piece)
            await asyncio.sleep(0)
            received += taken(client)
            look()
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_WR)
        for _ in range(TURNS):
            await asyncio.sleep(0)
            received += taken(client)
            if not connections.open:
                break
        received += taken(client)
    assert not connections.open, "a connection that its client has closed stays"
    return received


def stream_of(messages: list[bytes]) -> bytes:
    """Messages behind their lengths."""
    return b"".join(len(data).to_bytes(2, "big") + data for data in messages)


def framed(data: bytes) -> list[bytes]:
    """The complete messages of a stream."""
    found = []
    at = 0
    while at + 2 <= len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if end > len(data):
            break
        found.append(data[at + 2 : end])
        at = end
    return found
