"""Where upstreams are and how they are to be asked, as values that can be pickled."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass

PORTS = {"dns": 53, "tls": 853, "https": 443}
"""The transports, and the port of each unless another one is given."""
POLICIES = ("random", "round_robin", "sequential")


@dataclass(frozen=True, slots=True)
class Target:
    """One upstream.

    transport: one of PORTS. host: an IP address, or a name whose addresses are upstreams. server_name: what its
    certificate has to be for, "" for the address.
    """

    transport: str
    host: str
    port: int
    server_name: str = ""

    def __str__(self) -> str:
        """Address and port, as metrics and messages have it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_name(self) -> bool:
        """Whether addresses have to be looked up first."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return True
        return False


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths in PEM format. authority: "" for those of the system. certificate, key: the client's own, "" for none."""

    authority: str = ""
    certificate: str = ""
    key: str = ""

    def context(self) -> ssl.SSLContext:
        """What clients use: TLS 1.2 or later, the server's certificate is verified. Raises OSError (ssl.SSLError)."""
        context = ssl.create_default_context(cafile=self.authority or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.certificate:
            context.load_cert_chain(self.certificate, self.key)
        return context


@dataclass(frozen=True, slots=True)
class Settings:
    """How the upstreams of one group are asked.

    Times in seconds. expire: how long a connection may be idle; max_age: how old one may be for new queries (0: any
    age). max_idle: idle connections kept for each upstream (0: all). read_timeout: how long one upstream may take.
    max_fails: health checks that may fail in a row before it counts as down (0: it never does). max_attempts: failures
    after which a query is given up (0: any number, None: two for each upstream). failover: response codes for which the
    next upstream is asked. source: our address, "" for the kernel's choice. resolvers: where names of upstreams are
    looked up; empty for those of `resolv_conf`. health_domain: in wire format.
    """

    force_tcp: bool = False
    prefer_udp: bool = False
    expire: float = 10.0
    max_age: float = 0.0
    max_idle: int = 0
    read_timeout: float = 2.0
    max_fails: int = 2
    max_attempts: int | None = None
    policy: str = "random"
    health_interval: float = 0.5
    health_recursion: bool = True
    health_domain: bytes = b"\0"
    failover: frozenset[int] = frozenset()
    failfast: bool = False
    source: str = ""
    tls: TlsFiles = TlsFiles()
    doh_method: str = "POST"
    resolvers: tuple[Target, ...] = ()
    resolv_conf: str = "/etc/resolv.conf"
