"""The addresses of upstreams that are given by name, and the nameservers of a file like /etc/resolv.conf."""

from __future__ import annotations

import asyncio
import ipaddress
import re
from pathlib import Path

from kdns.errors import UpstreamError
from kdns.upstream.ask import plain_ask
from kdns.upstream.settings import PORTS, Target
from kdns.upstream.upstream import Upstream
from kdns.wire import names, rr

FIRST_PAUSE = 0.25
"""Seconds until a failed look-up is tried again, at first."""
SHORTEST, LONGEST = 5.0, 300.0
"""Bounds in seconds for the TTL after which a name is looked up again."""
_ATTEMPT_SECONDS = 2.0
_LONGEST_FILE = 1 << 16


async def resolve(host: str, resolvers: list[Upstream]) -> tuple[tuple[str, ...], float]:
    """A name's IPv4 and IPv6 addresses, from the first resolver that has any, and seconds until the next look-up.

    Raises UpstreamError.
    """
    why = "no nameserver is known"
    for resolver in resolvers:
        found: list[str] = []
        ttls: list[int] = []
        for rtype in (rr.A, rr.AAAA):
            try:
                give_up = asyncio.get_running_loop().time() + _ATTEMPT_SECONDS
                answer = await resolver.exchange(plain_ask(names.from_text(host), rtype), False, give_up)
            except UpstreamError as error:
                why = f"{resolver.name}: {error}"
                break
            why = f"{resolver.name}: {rr.rcode_text(answer.rcode)}, no address"
            for _, rrset in answer.answer() if answer.answered else ():
                if rrset.type == rtype:
                    found += map(rr.address_text, rrset.rdatas)
                    ttls.append(answer.ttl)
        if found:
            return tuple(dict.fromkeys(found)), min(max(min(ttls), SHORTEST), LONGEST)
    raise UpstreamError(why)


def nameservers(path: str) -> tuple[Target, ...]:
    """What the lines `nameserver ADDRESS` of a file say (resolv.conf(5)); others are passed over. Raises OSError."""
    found = []
    with Path(path).open(errors="replace") as file:
        text = file.read(_LONGEST_FILE)
    for line in text.splitlines():
        words = re.split(r"[#;]", line, maxsplit=1)[0].split()
        if len(words) > 1 and words[0] == "nameserver":
            try:
                address = str(ipaddress.ip_address(words[1]))
            except ValueError:
                continue
            found.append(Target("dns", address, PORTS["dns"]))
    return tuple(dict.fromkeys(found))


def system_resolvers(path: str) -> tuple[Target, ...]:
    """The same; none if the file cannot be read."""
    try:
        return nameservers(path)
    except OSError:
        return ()
