"""What links, addresses, rules and routes there should be, what of it is missing, and how that is put right.

The changes are made by a process of its own that ends when they are made: pyroute2 takes more memory than all else that
a node's supervisor has of its own, and is needed almost never.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from ipaddress import ip_address

from kdns.node.rtnetlink import Rule, View
from kdns.node.settings import MARK, METRIC, PRIORITY, ROUTES

LOOPBACK = "lo"
CHANGE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Note:
    """Something that was done, or could not be done. kind: what it is counted as where it is an error. never: whether
    this kernel, or who runs it, refuses rules and routes like ours, so that there is no use in trying again."""

    kind: str
    text: str
    never: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done, and what could not be done."""

    done: tuple[Note, ...] = ()
    failed: tuple[Note, ...] = ()

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(self.done + other.done, self.failed + other.failed)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What there should be.

    interface: the link for addresses, which is made if it is not there; None for none. on_link: addresses that it has
    to have. off_link: those that it must not have, nor the loopback link from us. routed: those whose marked packets go
    by our routing table.
    """

    interface: str | None
    on_link: tuple[str, ...]
    off_link: tuple[str, ...]
    routed: tuple[str, ...]

    def rules(self) -> set[Rule]:
        """The rules for `routed`."""
        return {Rule(address, MARK, MARK, ROUTES, PRIORITY) for address in self.routed}

    def families(self) -> set[int]:
        """Of `routed`: socket.AF_INET, socket.AF_INET6."""
        return {socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET for address in self.routed}


def differences(wanted: Wanted, view: View, *, loopback: bool) -> Iterator[str]:
    """What is not as it should be, in words. loopback: the kernel cannot make the link, `lo` has its addresses."""
    link = view.links.get(wanted.interface) if wanted.interface is not None else None
    if link is None and loopback:
        link = view.links.get(LOOPBACK)
        place = LOOPBACK
    else:
        place = wanted.interface or ""
    if wanted.on_link:
        if link is None:
            yield f"link {place}"
        elif not link[1]:
            yield f"link {place} is down"
        yield from (f"address {a} on {place}" for a in wanted.on_link if link and (link[0], a) not in view.addresses)
    for name in (wanted.interface, LOOPBACK):
        yield from (f"no address {a} on {name}" for a in wanted.off_link if name and may_go(view, name, a))
    yield from (f"rule for {rule.address}" for rule in sorted(wanted.rules() - view.rules, key=str))
    yield from (
        f"route of IPv{6 if f == socket.AF_INET6 else 4}" for f in sorted(wanted.families() - view.local_default)
    )


def may_go(view: View, link: str, address: str) -> bool:
    """Whether a link has an address that may be taken off: from `lo` only what kdns has put there."""
    if link not in view.links:
        return False
    metric = view.addresses.get((view.links[link][0], address))
    return metric == METRIC if link == LOOPBACK else metric is not None


def change(action: str, wanted: Wanted, seconds: float = CHANGE_SECONDS) -> Outcome:
    """Let another process make it so. action: "ensure" or "remove". seconds: it may take."""
    command = [sys.executable, "-m", "kdns.node.change", action]
    text = json.dumps(asdict(wanted))
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired) as error:
        return _refused(str(error))
    if done.returncode:
        return _refused((done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1])
    return Outcome(*(tuple(Note(**fields) for fields in notes) for notes in json.loads(done.stdout)))


def _refused(reason: str) -> Outcome:
    return Outcome(failed=(Note("interface_check", f"links and addresses cannot be changed: {reason}"),))
