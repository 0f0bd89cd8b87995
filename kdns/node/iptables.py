"""The rules of iptables that NodeLocal DNSCache has, of the same text: what one of the two left, the other knows.

Those of the filter table accept DNS where a firewall drops what conntrack does not know; they do no harm when nobody
serves. Those of the raw table keep kube-proxy from the queries, and so strand the node when nobody serves: they are
used only where nftables cannot do it.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

from kdns.node import rights
from kdns.node.links import Note, Outcome
from kdns.node.settings import Settings

LOCK_SECONDS = "5"
"""How long to wait for those who change rules at the same time."""
SECONDS = 10.0
"""How long one piece of work may take, however many rules it is about."""
_NOT_THERE = 1
_LOCKED = 4
_NOT_RUN = -1
_TOO_LATE = -2
_HOPELESS = (_LOCKED, _TOO_LATE)
"""The next rule would wait as long."""

_LEGACY_TABLES = {"iptables": "/proc/net/ip_tables_names", "ip6tables": "/proc/net/ip6_tables_names"}
_SKIP = ("-m", "comment", "--comment", "NodeLocal DNS Cache: skip conntrack")
_ALLOW = ("-m", "comment", "--comment", "NodeLocal DNS Cache: allow DNS traffic")


@dataclass(frozen=True, slots=True)
class Rule:
    """program: `iptables` or `ip6tables`. words: what follows the chain (iptables(8))."""

    program: str
    table: str
    chain: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.program} rule in {self.table} {self.chain}: {' '.join(self.words[:8])}"


def accepting(settings: Settings) -> Iterator[Rule]:
    """Let queries in and answers out, in each set of rules that is in use."""
    for address in settings.own:
        for protocol in ("tcp", "udp"):
            to, of = _dns(settings, address, protocol)
            for program in _in_use(_program(address)):
                yield Rule(program, "filter", "INPUT", (*to, "-j", "ACCEPT", *_ALLOW))
                yield Rule(program, "filter", "OUTPUT", (*of, "-j", "ACCEPT", *_ALLOW))


def untracking(settings: Settings) -> Iterator[Rule]:
    """Leave no conntrack entries."""
    yield from bringing(settings)
    for address in settings.own:
        for protocol in ("tcp", "udp"):
            _, of = _dns(settings, address, protocol)
            yield Rule(_program(address), "raw", "OUTPUT", (*of, "-j", "NOTRACK", *_SKIP))
        health = str(settings.health_port)
        for end in (("-d", address, "--dport", health), ("-s", address, "--sport", health)):
            yield Rule(_program(address), "raw", "OUTPUT", ("-p", "tcp", *end, "-j", "NOTRACK", *_SKIP))


def bringing(settings: Settings) -> Iterator[Rule]:
    """Those of `untracking` that are about queries: kube-proxy does not see these."""
    for address in settings.own:
        for protocol in ("tcp", "udp"):
            to, _ = _dns(settings, address, protocol)
            for chain in ("PREROUTING", "OUTPUT"):
                yield Rule(_program(address), "raw", chain, (*to, "-j", "NOTRACK", *_SKIP))


def _dns(settings: Settings, address: str, protocol: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What matches queries, and what matches answers."""
    port = str(settings.port)
    return ("-p", protocol, "-d", address, "--dport", port), ("-p", protocol, "-s", address, "--sport", port)


def _program(address: str) -> str:
    return "iptables" if ip_address(address).version == 4 else "ip6tables"


def absent(settings: Settings) -> list[str]:
    """The programs that would be needed, and are not in PATH."""
    return [program for program in _programs(settings) if shutil.which(program) is None]


def stranding(settings: Settings, until: float) -> list[Rule]:
    """Those of `untracking` that may be there, left by a NodeLocal DNSCache or by us."""
    found = []
    for usual in _programs(settings):
        rules = [rule for rule in untracking(settings) if rule.program == usual]
        for program in _in_use(usual):
            if _SKIP[-1] in _listing(program, until):
                found += [replace(rule, program=program) for rule in rules]
    return found


def out_of_reach(settings: Settings) -> list[str]:
    """The programs of legacy tables that are there, and that this process may not change."""
    legacy = [program for usual in _programs(settings) if (program := _legacy(usual))]
    return [] if rights.has(rights.NET_RAW) else legacy


def _in_use(program: str) -> list[str]:
    """The program, and that of the legacy tables, if they are there and in reach.

    What others have made, NodeLocal DNSCache or the host's firewall, may be in either.
    """
    legacy = _legacy(program)
    return [program, legacy] if legacy and rights.has(rights.NET_RAW) else [program]


def _legacy(program: str) -> str | None:
    """The program of the legacy tables, if it is another one and these tables are there.

    To list legacy tables that are not there would make them.
    """
    usual, legacy = shutil.which(program), shutil.which(f"{program}-legacy")
    with contextlib.suppress(OSError):
        tables = Path(_LEGACY_TABLES[program]).read_text().split()
        if tables and usual and legacy and not Path(usual).samefile(legacy):
            return f"{program}-legacy"
    return None


def _programs(settings: Settings) -> list[str]:
    return sorted({_program(address) for address in settings.own})


def ensure(rules: Iterable[Rule], until: float) -> Outcome:
    """Put each rule first in its chain, unless it is there. Programs that are not in PATH are left out.

    until: when to give up, of time.monotonic.
    """
    outcome = Outcome()
    for rule in _possible(rules):
        status, error = _run(rule, "-C", until)
        if status == _NOT_THERE:
            status, error = _run(rule, "-I", until)
            if not status:
                outcome += Outcome(done=(Note("iptables", f"added {rule}"),))
        if status:
            outcome += _failed("add", rule, status, error)
        if status in _HOPELESS:
            break
    return outcome


def remove(rules: Iterable[Rule], until: float) -> Outcome:
    """Take each rule away, as often as it is there. Programs that are not in PATH are left out.

    until: when to give up, of time.monotonic.
    """
    outcome = Outcome()
    for rule in _possible(rules):
        status, error = _run(rule, "-D", until)
        while not status:
            outcome += Outcome(done=(Note("iptables", f"removed {rule}"),))
            status, error = _run(rule, "-D", until)
        if status != _NOT_THERE:
            outcome += _failed("remove", rule, status, error)
        if status in _HOPELESS:
            break
    return outcome


def _possible(rules: Iterable[Rule]) -> list[Rule]:
    every = list(rules)
    there = {program for program in {rule.program for rule in every} if shutil.which(program)}
    return [rule for rule in every if rule.program in there]


def _failed(verb: str, rule: Rule, status: int, error: str) -> Outcome:
    kind = "iptables_lock" if status == _LOCKED or "xtables lock" in error else "iptables"
    return Outcome(failed=(Note(kind, f"cannot {verb} {rule}: {error}"),))


def _run(rule: Rule, action: str, until: float) -> tuple[int, str]:
    """The program's status, and the first line of what it complains about."""
    status, _, error = _call(until, rule.program, "-t", rule.table, action, rule.chain, *rule.words)
    return status, (error.strip().splitlines() or [f"status {status}"])[0]


def _listing(program: str, until: float) -> str:
    """All rules of the raw table, none if there is no such table or program."""
    return _call(until, program, "-t", "raw", "-S")[1]


def _call(until: float, program: str, *words: str) -> tuple[int, str, str]:
    """Status, output and error output."""
    command = [program, "-w", LOCK_SECONDS, *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(until - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        return _TOO_LATE, "", f"{program} takes too long"
    except OSError as error:
        return _NOT_RUN, "", str(error)
    return done.returncode, done.stdout, done.stderr
