"""Which instances serve in this network namespace, when no state directory says so.

Each holds an abstract unix socket with a name of its own (unix(7)). Such names belong to the network namespace, which
the pods of a node with `hostNetwork` share, and the kernel takes a name away with the process, however that ends.
"""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

_PREFIX = "kdns-node/"


class Presence:
    """Says that this process serves, until it is closed. name: tells instances apart."""

    def __init__(self) -> None:
        self.name = _PREFIX + secrets.token_hex(8)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + self.name)

    def close(self) -> None:
        """Be gone."""
        self._socket.close()


def others(name: str) -> bool:
    """Whether an instance serves that has not this name. Raises OSError if /proc cannot be read."""
    # proc(5): eight columns, the last one the path, with "@" in the place of the zero byte.
    for line in Path("/proc/self/net/unix").read_text().splitlines():
        path = line.rpartition(" ")[2]
        if path.startswith("@" + _PREFIX) and path != "@" + name:
            return True
    return False
