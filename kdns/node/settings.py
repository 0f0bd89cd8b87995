"""What the network of a node is to be like, and the numbers that mark what belongs to kdns."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address, ip_network

MARK = 0x2000
"""The bit of a packet's mark that means "for kdns". None that kube-proxy (0x4000, 0x8000), Calico and Cilium identities
(0xffff0000), Cilium (0x0f00) or AWS's CNI (0x80) use."""
ROUTES = 10053
"""The routing table that has all addresses local."""
PRIORITY = 53
"""Of the rules that lead there (ip-rule(8)): before `main`, and before what network plugins have for whole pods."""

METRIC = 10053
"""Of the addresses that kdns puts on a link, so that it knows them again (Linux 4.18; ip-address(8))."""

PROBLEMS = ("iptables", "iptables_lock", "interface_add", "interface_check", "configmap")
"""The kinds of `coredns_nodecache_setup_errors_total`: node-cache's."""

_LINK_LOCAL = ip_network("169.254.0.0/16")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line says.

    addresses: where queries come, in canonical form, of one family or both. port: that of DNS. interface: name of the
    link. setup_interface, setup_iptables, skip_teardown: node-cache's flags. sync_seconds: between two complete checks.
    health_port: that of the health check, whose connections are not tracked either.
    """

    addresses: tuple[str, ...]
    port: int
    interface: str = "nodelocaldns"
    setup_interface: bool = True
    setup_iptables: bool = True
    skip_teardown: bool = False
    sync_seconds: float = 60.0
    health_port: int = 8080

    @property
    def own(self) -> tuple[str, ...]:
        """The addresses that need setting up: all but loopback and unspecified ones."""
        parsed = map(ip_address, self.addresses)
        return tuple(str(a) for a in parsed if not a.is_loopback and not a.is_unspecified)

    @property
    def link_local(self) -> tuple[str, ...]:
        """Those of `own` that have no meaning outside of the node, so that nobody else could answer there.

        Of IPv4 those of RFC 3927's range. IPv6 has no range for it: the first of several, for the NodeLocal add-on's
        arguments have it before the ClusterIP.
        """
        six = [text for text in self.own if ip_address(text).version == 6]
        first = six[0] if len(six) > 1 else None
        return tuple(text for text in self.own if text == first or ip_address(text) in _LINK_LOCAL)
