"""The table of nftables that brings queries here.

    untracked-in, untracked-out   packets of DNS at our addresses leave no conntrack entry, so kube-proxy's NAT does not
                                  see them; nor does the health check
    taken                         queries get the mark that leads to the local route, and the socket that waits there
    own                           queries of the node itself get the mark, and are routed again

`taken` has two rules for each address. The first hands the packet to the socket. Where that is not transparent, as with
another server at the same address, the second still leads the packet to this machine.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from ipaddress import ip_address

from kdns.errors import NodeError
from kdns.node.nft import Library, Owned
from kdns.node.settings import MARK, Settings

_BOTH = "meta l4proto { tcp, udp } th"
_SET_MARK = f"meta mark set meta mark or {MARK:#x}"


class Interception:
    """The table of this process, there or not.

    Its name is made anew each time: several instances may have theirs at the same time.
    """

    def __init__(self, settings: Settings) -> None:
        """Raises NodeError if the kernel or the library cannot do it, which is tried with a table that does nothing."""
        self._settings = settings
        self._library = Library()
        self._tproxy = True
        self._table: Owned | None = None
        self._name = ""
        try:
            self._make(dormant=True)[1].close()
        except NodeError:
            self._tproxy = False
            self._make(dormant=True)[1].close()

    def ensure(self) -> bool:
        """Make the table unless it is there; whether it had to be made. Raises NodeError."""
        if self._table is not None and self._name in self._library.tables():
            return False
        old, (self._name, self._table) = self._table, self._make()
        if old is not None:
            old.close()
        return True

    def end(self) -> None:
        """Remove the table."""
        if self._table is not None:
            self._table.close()
            self._table = None

    def _make(self, *, dormant: bool = False) -> tuple[str, Owned]:
        """Its name, and the table. Raises NodeError."""
        name = f"kdns-node-{secrets.token_hex(4)}"
        intercept = self._settings.setup_interface
        text = commands(self._settings, name, intercept=intercept, tproxy=self._tproxy, dormant=dormant)
        return name, Owned(self._library, text)


def commands(settings: Settings, name: str, *, intercept: bool, tproxy: bool = True, dormant: bool = False) -> str:
    """What makes the table (nft(8)).

    name: of the table. intercept: False for the rules about conntrack alone. tproxy: False for kernels that have none.
    dormant: make it, but let it do nothing.
    """
    chains = {
        "untracked-in": ("filter hook prerouting priority raw", list(_untracked(settings))),
        "untracked-out": (
            "filter hook output priority raw",
            [*_untracked(settings), *_untracked_health(settings)],
        ),
    }
    if intercept:
        chains["taken"] = ("filter hook prerouting priority mangle", list(_taken(settings, tproxy)))
        chains["own"] = ("route hook output priority mangle", list(_own(settings)))
    lines = [f"table inet {name} {{", "flags owner", *(["flags dormant"] if dormant else [])]
    for chain, (kind, rules) in chains.items():
        lines += [f"chain {chain} {{", f"type {kind}; policy accept;", *rules, "}"]
    return "\n".join([*lines, "}", ""])


def _untracked(settings: Settings) -> Iterable[str]:
    for address in settings.own:
        yield f"{_ip(address)} daddr {address} {_BOTH} dport {settings.port} notrack"
        yield f"{_ip(address)} saddr {address} {_BOTH} sport {settings.port} notrack"


def _untracked_health(settings: Settings) -> Iterable[str]:
    for address in settings.own:
        yield f"{_ip(address)} daddr {address} tcp dport {settings.health_port} notrack"
        yield f"{_ip(address)} saddr {address} tcp sport {settings.health_port} notrack"


def _taken(settings: Settings, tproxy: bool) -> Iterable[str]:
    for address in settings.own:
        match = f"{_ip(address)} daddr {address} {_BOTH} dport {settings.port}"
        if tproxy:
            place = f"[{address}]" if ":" in address else address
            yield f"{match} tproxy {_ip(address)} to {place}:{settings.port} {_SET_MARK} accept"
        yield f"{match} {_SET_MARK} accept"


def _own(settings: Settings) -> Iterable[str]:
    for address in settings.own:
        yield f"{_ip(address)} daddr {address} {_BOTH} dport {settings.port} {_SET_MARK}"


def _ip(address: str) -> str:
    """The family's name in a rule."""
    return "ip" if ip_address(address).version == 4 else "ip6"
