"""What a worker is told when it starts."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kdns.corefile.config import ServerConfig, ServerKey
from kdns.server.memory import UNLIMITED, Share
from kdns.server.presence import Identity

if TYPE_CHECKING:
    from kdns.plugins import tls
    from kdns.server.certificates import Material

WILDCARDS: dict[int, str] = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}  # noqa: S104
UDP_SCHEMES = frozenset(("dns",))
"""Those that are served over UDP beside TCP."""
BACKLOG = 1024
"""TCP connections that may wait to be accepted."""
PROTOCOLS = {"udp": socket.SOCK_DGRAM, "tcp": socket.SOCK_STREAM}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a socket listens. proto: "udp" or "tcp". host: an address, with its interface if it is link-local."""

    proto: str
    host: str
    port: int

    @property
    def family(self) -> int:
        """AF_INET or AF_INET6."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET


@dataclass(frozen=True, slots=True)
class Server:
    """One listening address with the server blocks behind it.

    label: as in metrics, `dns://:53`. places: its sockets; two addresses for "all". routes: the zones and, for each,
    the index of its server block. All keys have one scheme.
    """

    label: str
    places: tuple[Place, ...]
    routes: tuple[tuple[ServerKey, int], ...]

    @property
    def scheme(self) -> str:
        """What is spoken there: dns, tls or https."""
        return self.label.partition("://")[0]

    @property
    def blocks(self) -> frozenset[int]:
        """The indexes of its server blocks."""
        return frozenset(index for _, index in self.routes)


@dataclass(frozen=True, slots=True)
class Beside:
    """What a source of Kubernetes objects keeps in the store beside its zones.

    external: origin and number of the zones of `k8s_external`. clients: number of the index for `autopath` and
    `metadata`, or None.
    """

    external: tuple[tuple[bytes, int], ...] = ()
    clients: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A worker's task; it can be pickled.

    zones: for each server block, the zones of its `kubernetes` directive: origin and number in the store; beside, by
    the block's index: what else it has there. token: random text by which the workers of one configuration know each
    other. clients, by the block's index: the number of the index of clients that `autopath` has there of its own.
    state_dir: "" without a zone store; identity: then that of the supervisor among those that serve beside it. stuck:
    the store cannot be written. share: of memory. materials: what was good last of the files of `tls` directives. The
    worker gets the sockets in the order of `places`.
    """

    index: int
    blocks: tuple[ServerConfig, ...]
    servers: tuple[Server, ...]
    zones: tuple[tuple[tuple[bytes, int], ...], ...]
    state_dir: str
    token: str = ""
    identity: Identity | None = None
    share: Share = UNLIMITED
    beside: Mapping[int, Beside] = field(default_factory=dict)
    clients: Mapping[int, int] = field(default_factory=dict)
    materials: Mapping[tls.Options, Material] = field(default_factory=dict)
    stuck: bool = False

    @property
    def places(self) -> tuple[Place, ...]:
        """All sockets."""
        return tuple(place for server in self.servers for place in server.places)
