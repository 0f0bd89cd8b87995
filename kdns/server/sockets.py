"""Listening sockets. The supervisor makes and keeps them, so that what waits in them outlives a worker."""

from __future__ import annotations

import contextlib
import errno
import resource
import socket
import struct
import threading
from collections.abc import Sequence

from kdns.corefile.config import ServerConfig, ServerKey
from kdns.errors import KdnsError
from kdns.observe.counters import Region
from kdns.plugins import bind, health, prometheus, ready
from kdns.server.plan import BACKLOG, PROTOCOLS, UDP_SCHEMES, WILDCARDS, Place, Server

BUFFER = 8 << 20
"""Bytes that a UDP socket may hold (the kernel counts about 800 for a small query)."""
_SO_RCVBUFFORCE = 33
_IP_FREEBIND, _IP_TRANSPARENT = 15, 19
_IPV6_TRANSPARENT, _IPV6_FREEBIND = 75, 78
"""Of Linux (linux/in.h, linux/in6.h); the module socket of Python 3.11 has no names for them."""
_SO_MEMINFO = 55
_MEMINFO = struct.Struct("=9I")
"""The last of them is how many datagrams the socket has lost (linux/sock_diag.h, since Linux 4.12)."""


def allow_descriptors() -> None:
    """Let this process and those that it starts have as many file descriptors as the system allows them."""
    with contextlib.suppress(ValueError, OSError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def servers(blocks: Sequence[ServerConfig], interfaces: bind.Interfaces) -> tuple[Server, ...]:
    """The listening addresses of a configuration. Raises ConfigError for an interface that is not there."""
    routes: dict[tuple[str, str, int], list[tuple[ServerKey, int]]] = {}
    for index, block in enumerate(blocks):
        options = block.plugins.get(bind.NAME)
        hosts = options.addresses(interfaces) if isinstance(options, bind.Options) else ("",)
        for key in block.keys:
            for host in hosts:
                routes.setdefault((key.scheme, host, key.port), []).append((key, index))
    return tuple(_server(*where, tuple(found)) for where, found in routes.items())


def _server(scheme: str, host: str, port: int, routes: tuple[tuple[ServerKey, int], ...]) -> Server:
    shown = f"[{host}]" if ":" in host else host
    hosts = [host] if host else [WILDCARDS[family] for family in families()]
    protocols = PROTOCOLS if scheme in UDP_SCHEMES else ("tcp",)
    places = tuple(Place(proto, one, port) for one in hosts for proto in protocols)
    return Server(f"{scheme}://{shown}:{port}", places, routes)


def refuse_shared_ports(blocks: Sequence[ServerConfig], found: Sequence[Server]) -> None:
    """Raise KdnsError if HTTP is wanted where DNS is served, or at one port in ways that overlap.

    Addresses are shared (SO_REUSEPORT), so the kernel would hand out such a port's connections to either.
    """
    taken = [("DNS", _host(place.host), place.port) for server in found for place in server.places]
    for block in blocks:
        for name in (health.NAME, ready.NAME, prometheus.NAME):
            if name not in block.plugins:
                continue
            address = block.plugins[name].address
            host, port = _host(address.host), address.port
            for other, where, number in taken:
                if number != port or (where != host and "" not in (where, host)):
                    continue
                if other == "DNS" or where != host:
                    problem = f"{name} {host}:{port} and {other} {where}:{port} overlap"
                    raise KdnsError(f"{problem}; accepted: another port{'' if other == 'DNS' else ', or one address'}")
            taken.append((name, host, port))


def _host(host: str) -> str:
    return "" if host in WILDCARDS.values() else host


def families() -> list[int]:
    """The address families that this machine has."""
    found = [int(socket.AF_INET)]
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.bind(("::", 0))
        found.append(int(socket.AF_INET6))
    return found


def listen(place: Place, *, anywhere: bool = False) -> socket.socket:
    """A socket that listens there and shares its address with others (SO_REUSEPORT).

    anywhere: also at an address that the machine does not have, or not yet (ip(7) IP_TRANSPARENT; packets have to be
    brought to it). Without the right to it (NET_ADMIN), the socket is bound (IP_FREEBIND) and gets only what comes for
    an address of the machine. Raises KdnsError.
    """
    try:
        sock = socket.socket(place.family, PROTOCOLS[place.proto])
    except OSError as error:
        raise KdnsError(_explain(place, error)) from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if place.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if anywhere:
            _allow_any_address(sock)
        sock.bind(_address(place))
        if place.proto == "tcp":
            sock.setblocking(False)
            sock.listen(BACKLOG)
        else:
            _enlarge(sock)
    except OSError as error:
        sock.close()
        raise KdnsError(_explain(place, error)) from error
    return sock


def _allow_any_address(sock: socket.socket) -> None:
    level, transparent, freebind = (
        (socket.SOL_IP, _IP_TRANSPARENT, _IP_FREEBIND)
        if sock.family == socket.AF_INET
        else (socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, _IPV6_FREEBIND)
    )
    try:
        sock.setsockopt(level, transparent, 1)
    except PermissionError:
        sock.setsockopt(level, freebind, 1)


def _address(place: Place) -> tuple[str, int] | tuple[str, int, int, int]:
    host, _, zone = place.host.partition("%")
    if zone:
        return host, place.port, 0, socket.if_nametoindex(zone)
    return host, place.port


def _enlarge(sock: socket.socket) -> None:
    """Make room for the queries that come while a worker is replaced; beyond the system's limit if we may."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)


def _explain(place: Place, error: OSError) -> str:
    where = f"cannot listen on {place.proto} {place.host} port {place.port}: {error.strerror}"
    if error.errno == errno.EACCES:
        return (
            f"{where}; ports below 1024 need root, the capability NET_BIND_SERVICE in effect (a container has"
            " it as root only), or the sysctl net.ipv4.ip_unprivileged_port_start=0"
        )
    if error.errno == errno.EADDRINUSE:
        return f"{where}; another process has it (see it with: ss -lnp 'sport = :{place.port}')"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{where}; no interface of this machine has that address"
    return where


class Losses:
    """Counts datagrams that the kernel dropped at UDP sockets, mostly for want of room, under `kdns_dropped_total`."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self._cell = region.series(("count", "kdns_dropped_total", "reason", "queue"), 1)
        self._seen: dict[int, int] = {}
        self._lock = threading.Lock()

    def look(self, sock: socket.socket) -> None:
        """Count what a socket has lost since it was looked at last. In any thread."""
        with self._lock:
            self._look(sock)

    def _look(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closed, or a kernel that does not tell
            number = sock.fileno()
            lost = _MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))[-1]
            since = (lost - self._seen.get(number, 0)) & 0xFFFFFFFF
            self._seen[number] = lost
            self._region.cells[self._cell] += since

    def close(self, sock: socket.socket) -> None:
        """Look for the last time, and close the socket: nobody may look between the two, or take it for another one."""
        with self._lock:
            self._look(sock)
            self._seen.pop(sock.fileno(), None)
            sock.close()
