"""local: names that mean the machine itself.

## Name

*local* - answers for localhost and for the networks 0/8, 127/8 and 255/8.

## Description

Queries for these names are of no use to anybody else, and are answered here instead of being sent to other servers:
the zones `localhost`, `0.in-addr.arpa`, `127.in-addr.arpa` and `255.in-addr.arpa`, and every name that begins with the
label `localhost`, which is what a search suffix makes of it.

`localhost`, the names below it and those that begin with it have the addresses 127.0.0.1 and ::1;
`1.0.0.127.in-addr.arpa` has a PTR record to `localhost`. What else is in these zones does not exist. The TTL is 604800
seconds, a week.

## Syntax

```
local {
    localhost_prefix on|off
}
```

* `localhost_prefix`: whether names such as `localhost.example.org` are answered too; default on. RFC 6761 knows
  `localhost` and the names below it only.

## Metrics

* `coredns_local_localhost_requests_total{}`: queries for names below `localhost`, or that begin with it.

## Examples

```corefile
.:53 {
    local
    whoami
}
```

```corefile
.:53 {
    local {
        localhost_prefix off
    }
    whoami
}
```

## Differences from CoreDNS

None.

## See also

*hosts*, *debug* (which client asks for such names), RFC 6761 6.3.
"""

from __future__ import annotations

from dataclasses import dataclass

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.options import Reader
from kdns.errors import Mistake
from kdns.plugins.chain import Next
from kdns.plugins.site import Site
from kdns.wire import names, rr
from kdns.wire.message import Query, Response
from kdns.wire.rrset import RRset

NAME = "local"
SITED = True
TTL = 604800

_LOCALHOST = names.from_text("localhost")
_LABEL = _LOCALHOST[:-1]
_SOA = RRset(rr.SOA, TTL, (rr.soa(_LOCALHOST, names.from_text("root.localhost"), 1, 0, 0, 0, TTL),))
_NS = RRset(rr.NS, TTL, (_LOCALHOST,))
_APEX = {rr.SOA: _SOA, rr.NS: _NS}
_ADDRESSES = {address.type: address for address in (
    RRset(rr.A, TTL, (rr.address("127.0.0.1"),)), RRset(rr.AAAA, TTL, (rr.address("::1"),)),
)}  # fmt: skip
_ZONES = names.Zones({zone: zone for zone in (
    _LOCALHOST, *(names.from_text(f"{octet}.in-addr.arpa") for octet in (0, 127, 255)),
)})  # fmt: skip
_POINTERS = {names.reverse("127.0.0.1"): {rr.PTR: RRset(rr.PTR, TTL, (_LOCALHOST,))}}
_REQUESTS = ("count", "coredns_local_localhost_requests_total")


@dataclass(frozen=True, slots=True)
class Options:
    """localhost_prefix: whether names that begin with localhost are answered."""

    localhost_prefix: bool = True


def parse(directive: Directive, _block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    reader.arguments(directive, 0, 0, "local")
    prefix: str | None = "on"

    def localhost_prefix(item: Directive) -> None:
        nonlocal prefix
        prefix = reader.one(item, lambda text: values.choice(text, ("on", "off")), "localhost_prefix on|off")

    reader.options({"localhost_prefix": localhost_prefix})
    return Options(prefix == "on") if reader.sound else None


class Handler:
    """Answers what is local, passes on everything else."""

    def __init__(self, options: Options, site: Site) -> None:
        self._prefix = options.localhost_prefix
        self._cells = site.region.cells
        self._requests = site.region.series(_REQUESTS, 1)
        self._log = site.log.plugin(NAME)

    async def __call__(self, query: Query, next: Next) -> Response:
        """An answer of our own, or what the rest of the chain says."""
        name = query.lname
        zone = _ZONES.find(name)
        if name != _LOCALHOST and (zone == _LOCALHOST or (self._prefix and name.startswith(_LABEL))):
            self._cells[self._requests] += 1
            self._log.debug(f"{names.to_text(name)} {rr.type_text(query.type)} asked for by {query.client[0]}")
            return _answered(name, _ADDRESSES.get(query.type), name)
        if zone is None:
            return await next(query)
        if name == zone:
            addresses = _ADDRESSES if name == _LOCALHOST else {}
            response = _answered(name, _APEX.get(query.type) or addresses.get(query.type), zone)
        elif name in _POINTERS:
            response = _answered(name, _POINTERS[name].get(query.type), zone)
        else:
            response = _answered(name, None, zone)
            response.rcode = rr.NXDOMAIN
        response.cacheable = True
        return response


def _answered(name: bytes, rrset: RRset | None, zone: bytes) -> Response:
    """The RRset, or that there is none."""
    if rrset is None:
        return Response(authority=[(zone, _SOA)], plugin=NAME)
    return Response(answer=[(name, rrset)], plugin=NAME)
