"""Change links, addresses, rules and routes: `python -m kdns.node.change ensure|remove`.

Reads a `Wanted` as JSON from standard input; writes what was done and what was not to standard output.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict
from ipaddress import ip_address

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from kdns.node import rtnetlink
from kdns.node.links import LOOPBACK, Note, Wanted, may_go
from kdns.node.rtnetlink import Rule
from kdns.node.settings import METRIC, PRIORITY, ROUTES

KIND = "dummy"
"""Of the link that is made."""

_NO_SUCH_KIND = (errno.EOPNOTSUPP, errno.ENODEV)
_NEVER = (errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EACCES)
_AS_IT_SHOULD_BE = (errno.EEXIST, errno.ENOENT, errno.ESRCH)
_PAST = {"add": "added", "remove": "removed", "set": "set"}
_PROTOCOL_KERNEL = 2
"""Who made rules and routes: systemd-networkd removes those of all others when it starts (networkd.conf(5))."""
_NODAD = 0x02
_SCOPE_HOST = 254


class Changes:
    """Makes changes, and keeps account of them."""

    def __init__(self, ip: IPRoute, wanted: Wanted) -> None:
        """Raises OSError."""
        self.done: list[Note] = []
        self.failed: list[Note] = []
        self._ip = ip
        self._wanted = wanted
        self._view = rtnetlink.view(ROUTES)

    def ensure(self) -> None:
        """Add what is missing, and take away what must not be."""
        wanted = self._wanted
        if wanted.interface is not None and (wanted.on_link or wanted.off_link):
            self._ensure_addresses(wanted.interface)
        for rule in wanted.rules() - self._view.rules:
            with self._attempt("add", f"rule for {rule.address}", vital=True):
                self._ip.rule("add", **_rule(rule))
        for family in wanted.families() - self._view.local_default:
            with self._attempt("add", f"local route to table {ROUTES}", vital=True):
                self._ip.route("add", **_route(family, self._view.links[LOOPBACK][0]))

    def _ensure_addresses(self, interface: str) -> None:
        for address in self._wanted.off_link:
            self._take_off(interface, address)
            self._take_off(LOOPBACK, address)
        place = interface
        if interface not in self._view.links and self._wanted.on_link:
            place = self._add_link(interface)
        if place not in self._view.links:
            return
        index, up = self._view.links[place]
        for address in self._wanted.on_link:
            if (index, address) not in self._view.addresses:
                with self._attempt("add", f"address {address} to {place}"):
                    self._ip.addr("add", index=index, **_address(address))
        if not up and self._wanted.on_link:
            with self._attempt("set", f"link {place} up"):
                self._ip.link("set", index=index, state="up")

    def _add_link(self, interface: str) -> str:
        """Make the link; returns its name, or that of the one to use instead."""
        try:
            self._ip.link("add", ifname=interface, kind=KIND)
        except NetlinkError as error:
            if error.code in _NO_SUCH_KIND:
                return LOOPBACK
            if error.code != errno.EEXIST:
                self.failed.append(Note("interface_add", f"cannot add link {interface}: {os.strerror(error.code)}"))
                return interface
        self.done.append(Note("interface_check", f"added link {interface}"))
        self._view = rtnetlink.view(ROUTES)
        return interface

    def remove(self) -> None:
        """Take away what `ensure` adds: addresses, rules, routes, and the link if it is for nothing else."""
        interface = self._wanted.interface
        if interface is not None:
            for address in self._wanted.on_link:
                self._take_off(interface, address)
                self._take_off(LOOPBACK, address)
            if interface in self._view.links:
                self._remove_link(interface)
        for rule in self._view.rules:
            if (rule.table, rule.priority) == (ROUTES, PRIORITY):
                with self._attempt("remove", f"rule for {rule.address}"):
                    self._ip.rule("del", **_rule(rule))
        for family in self._view.local_default:
            with self._attempt("remove", f"local route from table {ROUTES}"):
                self._ip.route("del", **_route(family, self._view.links[LOOPBACK][0]))

    def _remove_link(self, interface: str) -> None:
        """Remove a dummy link that has no address any more."""
        self._view = rtnetlink.view(ROUTES)
        index = self._view.links[interface][0]
        (link,) = self._ip.get_links(index)
        others = [a for i, a in self._view.addresses if i == index and not a.startswith("fe80:")]
        if not others and link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") == KIND:
            with self._attempt("remove", f"link {interface}"):
                self._ip.link("del", index=index)

    def _take_off(self, place: str, address: str) -> None:
        if may_go(self._view, place, address):
            with self._attempt("remove", f"address {address} from {place}"):
                self._ip.addr("del", index=self._view.links[place][0], **_address(address))

    @contextlib.contextmanager
    def _attempt(self, verb: str, what: str, *, vital: bool = False) -> Iterator[None]:
        """vital: without it there is no interception."""
        try:
            yield
        except NetlinkError as error:
            if error.code not in _AS_IT_SHOULD_BE:
                text = f"cannot {verb} {what}: {os.strerror(error.code)}"
                self.failed.append(Note("interface_check", text, never=vital and error.code in _NEVER))
        else:
            self.done.append(Note("interface_check", f"{_PAST[verb]} {what}"))


def _address(address: str) -> dict[str, object]:
    parsed = ip_address(address)
    options: dict[str, object] = {"address": address, "prefixlen": parsed.max_prefixlen, "rt_priority": METRIC}
    return options | {"flags": _NODAD} if parsed.version == 6 else options


def _rule(rule: Rule) -> dict[str, object]:
    parsed = ip_address(rule.address)
    return {
        "family": socket.AF_INET6 if parsed.version == 6 else socket.AF_INET,
        "dst": rule.address,
        "dst_len": parsed.max_prefixlen,
        "fwmark": rule.mark,
        "fwmask": rule.mask,
        "table": rule.table,
        "priority": rule.priority,
        "protocol": _PROTOCOL_KERNEL,
    }


def _route(family: int, loopback: int) -> dict[str, object]:
    everything = "::/0" if family == socket.AF_INET6 else "0.0.0.0/0"
    scope = _SCOPE_HOST if family == socket.AF_INET else 0  # IPv6 has no scopes
    return {
        "family": family,
        "dst": everything,
        "type": "local",
        "scope": scope,
        "oif": loopback,
        "table": ROUTES,
        "proto": _PROTOCOL_KERNEL,
    }


def main() -> None:
    action = sys.argv[1]
    fields = json.loads(sys.stdin.read())
    wanted = Wanted(fields["interface"], *(tuple(fields[name]) for name in ("on_link", "off_link", "routed")))
    with IPRoute() as ip:
        changes = Changes(ip, wanted)
        if action == "ensure":
            changes.ensure()
        else:
            changes.remove()
    sys.stdout.write(json.dumps([[asdict(note) for note in notes] for notes in (changes.done, changes.failed)]))


if __name__ == "__main__":
    main()
