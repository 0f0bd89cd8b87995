"""Which instances serve in this network namespace, when no state directory says so.

Each holds abstract unix sockets whose names tell of an address, and of the instance (unix(7)). Such names belong to the
network namespace, which the pods of a node with `hostNetwork` share, and the kernel takes a name away with the process,
however that ends.
"""

from __future__ import annotations

import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

_THERE, _SERVING = "kdns-node", "kdns-node-serving"


@dataclass(frozen=True, slots=True)
class Identity:
    """An instance. name: its own. places: addresses with their port, at which instances relieve each other."""

    name: str
    places: tuple[str, ...]

    def has_others(self, *, serving: bool = False) -> bool:
        """Whether another instance is there for one of the places. serving: and answers. Raises OSError."""
        kind = _SERVING if serving else _THERE
        # proc(5): eight columns, the last one the path, with "@" in the place of the zero byte.
        for line in Path("/proc/self/net/unix").read_text().splitlines():
            parts = line.rpartition(" @")[2].split("/")
            if len(parts) == 3 and parts[0] == kind and parts[1] in self.places and parts[2] != self.name:
                return True
        return False


class Presence:
    """Says that this process is there, until it is closed."""

    def __init__(self, places: tuple[str, ...]) -> None:
        self.identity = Identity(secrets.token_hex(8), places)
        self._sockets: list[socket.socket] = []
        self._say(_THERE)

    def serve(self) -> None:
        """Say that queries are answered."""
        self._say(_SERVING)

    def _say(self, kind: str) -> None:
        for place in self.identity.places:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._sockets.append(sock)
            sock.bind(f"\0{kind}/{place}/{self.identity.name}")

    def close(self) -> None:
        """Be gone."""
        for sock in self._sockets:
            sock.close()
