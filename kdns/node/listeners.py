"""Whether somebody else serves DNS at an address of this node."""

from __future__ import annotations

import re
import struct
from ipaddress import ip_address
from pathlib import Path

_LISTEN = "0A"


def others_listen(address: str, port: int) -> bool:
    """Whether a socket is bound to exactly this address and port, UDP or listening TCP, that this process has not.

    From /proc/net (proc(5)), where addresses are 32-bit words of the host's byte order. Raises OSError.
    """
    parsed = ip_address(address)
    words = struct.unpack(f"={len(parsed.packed) // 4}I", parsed.packed)
    place = f"{''.join(f'{word:08X}' for word in words)}:{port:04X}"
    suffix = "6" if parsed.version == 6 else ""
    bound = _inodes(f"udp{suffix}", place) | _inodes(f"tcp{suffix}", place)
    return bool(bound) and not bound <= _own_sockets()


def _inodes(protocol: str, place: str) -> set[str]:
    rows = (line.split() for line in Path(f"/proc/net/{protocol}").read_text().splitlines())
    return {row[9] for row in rows if row[1] == place and (row[3] == _LISTEN or protocol.startswith("udp"))}


def _own_sockets() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            match = re.fullmatch(r"socket:\[(\d+)\]", str(entry.readlink()))
        except FileNotFoundError:
            continue
        if match:
            found.add(match[1])
    return found
