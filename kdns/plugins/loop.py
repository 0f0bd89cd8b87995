"""loop: what is forwarded must not come back.

## Name

*loop* - finds out whether queries that are forwarded come back to this server, and ends that.

## Description

If the server that is asked asks this one in turn, each query goes round until somebody gives up, and takes ports,
memory and time of all that take part. When a worker starts it asks itself for a random name in the zone, with type
HINFO, which is forwarded like any other. If that query comes in from the network, there is a loop.

From then on queries that would be forwarded are answered with SERVFAIL, with a reason for *errors*; the loop is logged
once. What does not come to this plugin, names of the cluster for example, is answered as before. Every 30s the random
name is asked for again; when that is answered by somebody else, forwarding goes on.

The first zone of the server block is tried. While nobody answers the query is repeated, with growing pauses, for half a
minute.

The usual reason is an /etc/resolv.conf with the address of the node's own cache, 127.0.0.53, that *forward* is given:
let it use the file that has the real servers (/run/systemd/resolve/resolv.conf), or their addresses.

## Syntax

```
loop
```

## Metrics

* `kdns_loop_detected{zone}`: 1 while there is a loop, else 0.

## Examples

```corefile
.:53 {
    loop
    forward . 192.0.2.53
}
```

## Differences from CoreDNS

CoreDNS ends its process when it finds a loop, and with it the answers for the cluster's own names. It looks for one
only when it starts.

## See also

*forward*, *errors*.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass

from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.options import Reader
from kdns.errors import Mistake
from kdns.plugins.chain import Next
from kdns.plugins.site import Site
from kdns.wire import message, names, rr
from kdns.wire.message import Query, Response
from kdns.wire.rrset import RRset

NAME = "loop"
SITED = True
PAUSES = (0.0, 1.0, 1.0, 2.0, 4.0, 8.0, 14.0)
"""Seconds before each try at the start."""
AGAIN = 30.0
"""Seconds until a loop is looked for again."""
PATIENCE = 6.0
"""Seconds that an answer may take."""

_LONGEST = 150
_MARK = b"kdns: loop"
_OURSELVES = ("127.0.0.1", 0)


@dataclass(frozen=True, slots=True)
class Options:
    """There are none."""


def parse(directive: Directive, block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    reader.bare()
    if block.keys and len(block.keys[0].zone) > _LONGEST:
        accepted = f"a first zone of at most {_LONGEST} characters"
        reader.refuse(directive.name, "loop: the zone is too long for a random name in it", accepted)
    return Options() if reader.sound else None


class Handler:
    """Stands in front of `forward`, and lets nothing through while there is a loop."""

    def __init__(self, _options: Options, site: Site) -> None:
        self._site = site
        self._log = site.log.plugin(NAME)
        self._zone = site.zones[0]
        self._suffix = names.join([site.token.encode(), *names.labels(names.from_text(self._zone))]).lower()
        self._leaving = b""  # the random name that is on its way out
        self._loop = ""
        self._tell("")
        site.background(self._watch())

    async def __call__(self, query: Query, next: Next) -> Response:
        """What the rest of the chain answers, SERVFAIL in a loop, and a mark for what has come round."""
        if query.type == rr.HINFO and names.is_subdomain(query.lname, self._suffix):
            if query.lname == self._leaving:
                self._leaving = b""
                return await next(query)
            way = f"{_shown(query.client)} -> {_shown(query.local)}"
            mark = RRset(rr.HINFO, 0, (rr.hinfo(_MARK, way.encode()),))
            return Response(answer=[(query.lname, mark)], plugin=NAME)
        if self._loop:
            return Response(rcode=rr.SERVFAIL, plugin=NAME, error=self._loop)
        return await next(query)

    async def _watch(self) -> None:
        """Look for a loop until it is known whether there is one, and for its end while there is."""
        for pause in PAUSES:
            await asyncio.sleep(pause)
            if await self._look():
                break
        while self._loop:
            await asyncio.sleep(AGAIN)
            await self._look()

    async def _look(self) -> bool:
        """Send a random name out; False if nobody answers, so that nothing is known."""
        query = self._probe()
        self._leaving = query.lname
        try:
            async with asyncio.timeout(PATIENCE):
                response = await (self._site.own or self._site.ask)(query)
        except TimeoutError:
            return False
        if response.rcode == rr.SERVFAIL:
            return False
        way = _way(response)
        if way is not None and not self._loop:
            self._tell(f"Loop ({way}) detected for zone {self._zone}")
            self._log.error(f"{self._loop}: queries that are forwarded come back, and are answered with SERVFAIL")
        elif way is None and self._loop:
            self._log.info(f"the loop for zone {self._zone} has ended")
            self._tell("")
        return True

    def _probe(self) -> Query:
        name = bytes((16,)) + secrets.token_hex(8).encode() + self._suffix
        header = message.HEADER.pack(secrets.randbits(16), message.RD, 1, 0, 0, 0)
        data = header + name + rr.HINFO.to_bytes(2, "big") + rr.IN.to_bytes(2, "big")
        return message.parse(data, "udp", _OURSELVES, _OURSELVES, message.DEFAULT_UDP)

    def _tell(self, loop: str) -> None:
        self._loop = loop
        self._site.region.set(("shared", "kdns_loop_detected", "zone", self._zone), bool(loop))


def _way(response: Response) -> str | None:
    """How a query came back, as its mark says; None if there is no mark."""
    answer = response.answer if response.relay is None else response.relay.answer()
    for _, rrset in answer:
        for rdata in rrset.rdatas:
            if rrset.type == rr.HINFO and rdata[1:].startswith(_MARK):
                return rdata[len(_MARK) + 2 :].decode("ascii", "replace")
    return None


def _shown(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
