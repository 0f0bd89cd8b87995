"""The table of nftables that brings queries here.

    untracked-in, untracked-out   packets of DNS at our addresses leave no conntrack entry, so kube-proxy's NAT does not
                                  see them; nor does the health check
    taken                         queries get the mark that leads to the local route, and the socket that waits there
    own                           queries of the node itself get the mark, and are routed again

The kernel adds and removes chains one after the other, while packets are on their way through them: `taken` and `own`
leave alone what conntrack knows, for kube-proxy's NAT will have it. (The first chains are removed first.)

Another table, which belongs to nobody, stays until the last instance has ended in order. It keeps answers untracked
when the first one is gone and a worker still sends some: conntrack would take the next query from the same port for
the answer to that answer, and kube-proxy would not see it.

`taken` has two rules for each address. The first hands the packet to the socket. Where that is not transparent, as with
another server at the same address, the second still leads the packet to this machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import ip_address

from kdns.errors import NodeError
from kdns.node.nft import Library, Owned, let_go
from kdns.node.settings import MARK, Settings

_BOTH = "meta l4proto { tcp, udp } th"
_OURS = "ct state untracked"
_SHARED = "kdns-answers-"
_SET_MARK = f"meta mark set meta mark or {MARK:#x}"

_HOOKS = {
    "untracked-in": "filter hook prerouting priority raw",
    "untracked-out": "filter hook output priority raw",
    "taken": "filter hook prerouting priority mangle",
    "own": "route hook output priority mangle",
}


class Interception:
    """The table of this process, there or not. May be used by several threads.

    Its name is made anew each time: several instances may have theirs at the same time.
    """

    def __init__(self, settings: Settings) -> None:
        """Raises NodeError if the kernel or the library cannot do it, which is tried with a table that does nothing."""
        self._settings = settings
        self._library = Library()
        self._lock = threading.Lock()
        self._tproxy = True
        self._wanted: Settings | None = None
        self._made: Settings | None = None
        self._table: Owned | None = None
        self._name = ""
        self._shared = _shared_name(settings)
        os.register_at_fork(after_in_child=self._let_go)
        try:
            self._make(settings, dormant=True)[1].close()
        except NodeError:
            self._tproxy = False
            self._make(settings, dormant=True)[1].close()

    def begin(self, addresses: Sequence[str]) -> None:
        """From now on `check` makes the table, for these of the addresses: when they change, without a gap.

        Waits for nothing.
        """
        self._wanted = replace(self._settings, addresses=tuple(addresses))

    @property
    def missing(self) -> bool:
        """Whether the table is to be there, and is not."""
        wanted = self._wanted
        return wanted is not None and bool(wanted.addresses) and self._table is None

    @property
    def taken(self) -> tuple[str, ...]:
        """The addresses whose queries it takes now, as far as this process knows."""
        made = self._made
        return made.addresses if made is not None and self._wanted is not None and self._table is not None else ()

    def check(self) -> bool:
        """Make the table if it is to be there, and is not as it should be; whether it was made. Raises NodeError."""
        with self._lock:
            wanted = self._wanted
            if wanted is None:
                return False
            if not wanted.addresses:
                self._close()
                return False
            there = self._library.tables()
            changed = self._table is None or self._name not in there or self._made != wanted
            if changed:
                self._go_over(*self._make(wanted))
                self._made = wanted
            if self._shared not in there:
                self._library.do(answers(self._settings, self._shared))
            return changed or self._shared not in there

    def suspend(self) -> None:
        """Remove the table until `check` is called again."""
        with self._lock:
            self._close()

    def drain(self) -> None:
        """Intercept no more queries; what is answered yet leaves as before, and TCP connections go on."""
        with self._lock:
            self._wanted = None
            if self._table is None:
                return
            name = _new_name()
            with contextlib.suppress(NodeError):  # the answers may leave another way then
                text = last_answers(self._settings, name, connections=self._tproxy and self._settings.setup_interface)
                self._go_over(name, Owned(self._library, text))
                return
            self._table.close()

    def end(self) -> None:
        """Remove the table."""
        with self._lock:
            self._wanted = None
            self._close()

    def remove_shared(self) -> None:
        """Remove what instances share: those of other addresses too, for who had them is gone."""
        with contextlib.suppress(NodeError):  # somebody else does it
            for name in self._library.tables():
                if name.startswith(_SHARED):
                    self._library.do(f"delete table inet {name}")

    def _close(self) -> None:
        if self._table is not None:
            self._table.close()
            self._table = None

    def _go_over(self, name: str, table: Owned) -> None:
        old, self._name, self._table = self._table, name, table
        if old is not None:
            old.close()

    def _make(self, settings: Settings, *, dormant: bool = False) -> tuple[str, Owned]:
        """Its name, and the table. Raises NodeError."""
        name = _new_name()
        text = commands(settings, name, intercept=settings.setup_interface, tproxy=self._tproxy, dormant=dormant)
        return name, Owned(self._library, text)

    def _let_go(self) -> None:
        self._wanted = self._table = None
        let_go()


def _new_name() -> str:
    return f"kdns-node-{secrets.token_hex(4)}"


def _shared_name(settings: Settings) -> str:
    """The same for instances with the same addresses and port."""
    own = " ".join([*sorted(settings.own), str(settings.port)])
    return f"{_SHARED}{hashlib.sha256(own.encode()).hexdigest()[:8]}"


def commands(settings: Settings, name: str, *, intercept: bool, tproxy: bool = True, dormant: bool = False) -> str:
    """What makes the table (nft(8)).

    name: of the table. intercept: False for the rules about conntrack alone. tproxy: False for kernels that have none.
    dormant: make it, but let it do nothing.
    """
    untracked = [*_queries(settings), *_answers(settings)]
    chains = {
        "untracked-in": (_HOOKS["untracked-in"], [f"{match} notrack" for match in untracked]),
        "untracked-out": (
            _HOOKS["untracked-out"],
            [f"{match} notrack" for match in (*untracked, *_health(settings))],
        ),
    }
    if intercept:
        chains["taken"] = (_HOOKS["taken"], list(_taken(settings, tproxy)))
        chains["own"] = (_HOOKS["own"], [f"{match} {_OURS} {_SET_MARK}" for match in _queries(settings)])
    return _table(name, chains, dormant=dormant)


def last_answers(settings: Settings, name: str, *, connections: bool = True) -> str:
    """What makes a table for the answers to queries that came before the interception ended.

    connections: those of pods over TCP stay with the sockets that they have here (but not those of the node itself,
    whose packets show no socket but their own).
    """
    answers = [f"{match} notrack" for match in _answers(settings)]
    open_ones = (
        [f"{match} meta l4proto tcp socket transparent 1" for match in _queries(settings)] if connections else []
    )
    chains = {
        "untracked-in": [*answers, *(f"{match} notrack" for match in open_ones)],
        "untracked-out": answers,
        "taken": [f"{match} {_OURS} {_SET_MARK} accept" for match in open_ones],
    }
    return _table(name, {chain: (_HOOKS[chain], rules) for chain, rules in chains.items() if rules})


def answers(settings: Settings, name: str) -> str:
    """What makes the table for answers that belongs to nobody. Made twice, it is as if made once."""
    rules = [f"{match} notrack" for match in _answers(settings)]
    table = _table(name, {"untracked-out": (_HOOKS["untracked-out"], rules)}, owned=False)
    return f"table inet {name}\nflush table inet {name}\n{table}"


def _table(name: str, chains: dict[str, tuple[str, list[str]]], *, owned: bool = True, dormant: bool = False) -> str:
    flags = [*(["flags owner"] if owned else []), *(["flags dormant"] if dormant else [])]
    lines = [f"table inet {name} {{", *flags]
    for chain, (hook, rules) in chains.items():
        lines += [f"chain {chain} {{", f"type {hook}; policy accept;", *rules, "}"]
    return "\n".join([*lines, "}", ""])


def _queries(settings: Settings) -> Iterable[str]:
    for address in settings.own:
        yield f"{_ip(address)} daddr {address} {_BOTH} dport {settings.port}"


def _answers(settings: Settings) -> Iterable[str]:
    for address in settings.own:
        yield f"{_ip(address)} saddr {address} {_BOTH} sport {settings.port}"


def _health(settings: Settings) -> Iterable[str]:
    for address in settings.own:
        yield f"{_ip(address)} daddr {address} tcp dport {settings.health_port}"
        yield f"{_ip(address)} saddr {address} tcp sport {settings.health_port}"


def _taken(settings: Settings, tproxy: bool) -> Iterable[str]:
    for address, match in zip(settings.own, _queries(settings), strict=True):
        if tproxy:
            place = f"[{address}]" if ":" in address else address
            yield f"{match} {_OURS} tproxy {_ip(address)} to {place}:{settings.port} {_SET_MARK} accept"
        yield f"{match} {_OURS} {_SET_MARK} accept"


def _ip(address: str) -> str:
    """The family's name in a rule."""
    return "ip" if ip_address(address).version == 4 else "ip6"
