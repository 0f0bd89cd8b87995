"""Free ports, below the range from which the kernel takes ports for clients."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterable

FIRST, LAST = 20000, 32000
LOOPBACKS = ("127.0.0.1", "::1")

_choice = random.Random(os.getpid())
_given: dict[int, None] = {}
_PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_OWN = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
"""How many processes run the tests, and which of them this is: each has ports of its own."""
_REMEMBERED = (LAST - FIRST) // _PROCESSES // 2


def has_ipv6() -> bool:
    """True if the loopback has ::1."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def free_port(addresses: Iterable[str] = LOOPBACKS) -> int:
    """A port that is free for UDP and TCP on every address (those of a family that is not there are left out).

    None is given again soon: who got it may not have bound it yet.
    """
    usable = [a for a in addresses if ":" not in a or has_ipv6()]
    for _ in range(200):
        port = _choice.randrange(FIRST + _OWN, LAST, _PROCESSES)
        if port in _given:
            continue
        if all(_is_free(address, port, kind) for address in usable for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)):
            _given[port] = None
            if len(_given) > _REMEMBERED:
                del _given[next(iter(_given))]
            return port
    raise RuntimeError(f"no free port between {FIRST} and {LAST}")


def _is_free(address: str, port: int, kind: socket.SocketKind) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, kind) as sock:
        if kind is socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((address, port))
        except OSError:
            return False
    return True
