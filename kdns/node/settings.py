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
    health_port: that of the health check, whose connections are not tracked either. services: ClusterIPs of which the
    environment tells.
    """

    addresses: tuple[str, ...]
    port: int
    interface: str = "nodelocaldns"
    setup_interface: bool = True
    setup_iptables: bool = True
    skip_teardown: bool = False
    sync_seconds: float = 60.0
    health_port: int = 8080
    services: frozenset[str] = frozenset()

    @property
    def own(self) -> tuple[str, ...]:
        """The addresses that need setting up: all but loopback and unspecified ones."""
        parsed = map(ip_address, self.addresses)
        return tuple(str(a) for a in parsed if not a.is_loopback and not a.is_unspecified)

    @property
    def local(self) -> tuple[str, ...]:
        """Those of `own` that have no meaning outside of the node, so that nobody else could answer there.

        Of each family: if the environment tells of Services, and one of them is among the addresses, or there is one
        address only, then all that are no Service's. Else of IPv4 those of RFC 3927's range; of IPv6, which has no
        range for it, the first of several, for the NodeLocal add-on's arguments have it before the ClusterIP.
        """
        return tuple(text for version in (4, 6) for text in self._local(version))

    def _local(self, version: int) -> list[str]:
        mine = [text for text in self.own if ip_address(text).version == version]
        services = {text for text in self.services if ip_address(text).version == version}
        if services and (services & set(mine) or len(mine) == 1):
            return [text for text in mine if text not in services]
        if version == 4:
            return [text for text in mine if ip_address(text) in _LINK_LOCAL]
        return mine[:1] if len(mine) > 1 else []


def wildcard(address: str) -> str:
    """The address that stands for all of the same family."""
    return "::" if ip_address(address).version == 6 else "0.0.0.0"  # noqa: S104
