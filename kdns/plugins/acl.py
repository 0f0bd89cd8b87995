"""acl: who may ask for what.

## Name

*acl* - refuses, empties or drops queries by the client's address and the type that is asked for.

## Description

The rules of a directive are tried in their order, and the first one that has both the type and the client decides. If
none does, the next *acl* of the server block is tried; what no rule decides is allowed. A directive is passed over for
names that are not in its zones.

The client is the one that sent the query to this server: behind a forwarder or a NAT that is the forwarder, or the NAT.

## Syntax

```
acl [ZONES...] {
    ACTION [type QTYPE...] [net SOURCE...]
}
```

* **ZONES**: names in these zones; default: those of the server block.
* **ACTION**: `allow` lets the query pass, and no further *acl* is tried. `block` answers REFUSED, with the extended
  error 15 (Blocked). `filter` answers NOERROR without records, with the extended error 17 (Filtered). `drop` answers
  nothing.
* **QTYPE**: such as `A` or `TYPE65`; `*`, or no `type`, stands for all types.
* **SOURCE**: a network such as `10.0.0.0/8` or `2001:db8::/32`, or an address; `*`, or no `net`, stands for all
  clients. IPv4 clients of an IPv6 socket count as what they are.

What clients of a server block are answered is kept in the packet cache if it is the same for all of them: if none of
the rules up to the one that decides, for that type, has a `net`, or all rules for that type allow.

## Metrics

* `coredns_acl_blocked_requests_total{server, zone, view}`: queries that were blocked.
* `coredns_acl_filtered_requests_total{server, zone, view}`: those that were filtered.
* `coredns_acl_dropped_requests_total{server, zone, view}`: those that were dropped.
* `coredns_acl_allowed_requests_total{server, view}`: those that were let pass.

`zone` is the one of the directive that has the name.

## Examples

Only two networks may ask, but for one address in them:

```corefile
.:53 {
    acl {
        drop net 10.1.2.3
        allow net 10.0.0.0/8 2001:db8::/32
        block
    }
    whoami
}
```

No IPv6 addresses for names in example.org:

```corefile
.:53 {
    acl example.org {
        filter type AAAA
    }
    whoami
}
```

## Differences from CoreDNS

The extended error is sent to clients that speak EDNS, and to no others (RFC 6891 7). Queries that are let pass and then
answered from the packet cache are not counted as allowed.

## See also

*view*, *erratic*; RFC 8914 for the extended errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.lexer import Token
from kdns.corefile.options import Reader
from kdns.errors import ConfigValueError, Mistake
from kdns.plugins.chain import Next
from kdns.plugins.networks import Networks, packed
from kdns.plugins.site import Site
from kdns.wire import message, names, rr
from kdns.wire.message import Query, Response

NAME = "acl"
SITED = True
ALLOW, BLOCK, FILTER, DROP = "allow", "block", "filter", "drop"
ACTIONS = (ALLOW, BLOCK, FILTER, DROP)

_BLOCKED, _FILTERED = (message.option(message.EDE, code.to_bytes(2)) for code in (15, 17))
_COUNTERS = {
    ALLOW: "coredns_acl_allowed_requests_total",
    BLOCK: "coredns_acl_blocked_requests_total",
    FILTER: "coredns_acl_filtered_requests_total",
    DROP: "coredns_acl_dropped_requests_total",
}
_LINE = "allow|block|filter|drop [type QTYPE...] [net SOURCE...]"
_UNUSUAL = frozenset((rr.ANY, rr.AXFR, rr.IXFR))
_ANY = "*"


@dataclass(frozen=True, slots=True)
class Rule:
    """A line. types: None for all. networks: in CIDR notation, None for all clients."""

    action: str
    types: frozenset[int] | None = None
    networks: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class List:
    """A directive. zones: lower case with their last dot."""

    zones: tuple[str, ...]
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Options:
    """The directives of a server block, in their order."""

    lists: tuple[List, ...]


def parse(directive: Directive, block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    zones = reader.zones(directive.args) or tuple(dict.fromkeys(key.zone for key in block.keys))
    rules = []
    for item in directive.block or ():
        if item.block is not None:
            reader.refuse(item.name, f"acl: {values.shown(item.name.text)} has a block", _LINE)
        action = reader.value(item.name, lambda text: values.choice(text.lower(), ACTIONS))
        parts = _parts(reader, item)
        types = _types(reader, parts.get("type"))
        networks = _networks(reader, parts.get("net"))
        rules.append(Rule(action or ALLOW, types, networks))
    return Options((List(zones, tuple(rules)),)) if reader.sound else None


def merge(found: Sequence[Options]) -> Options:
    """Several directives of one server block as one."""
    return Options(tuple(each for options in found for each in options.lists))


def _parts(reader: Reader, item: Directive) -> dict[str, list[Token]]:
    """The words behind `type` and `net`. Each may come several times."""
    parts: dict[str, list[Token]] = {}
    words: list[Token] | None = None
    last = item.name
    for token in (*item.args, None):
        keyword = token.text.lower() if token is not None else ""
        if token is None or keyword in ("type", "net"):
            if words is not None and (last.text.lower() in ("type", "net")):
                reader.refuse(last, f"acl: nothing follows {values.shown(last.text)}", _LINE)
            words = parts.setdefault(keyword, [])
        elif words is None:
            reader.refuse(token, f"acl: {values.shown(token.text)} is neither type nor net", _LINE)
            return parts
        else:
            words.append(token)
        last = token or last
    return parts


def _types(reader: Reader, words: Sequence[Token] | None) -> frozenset[int] | None:
    found = {reader.value(token, _type) for token in words or ()}
    return None if words is None or None in found else frozenset(number for number in found if number is not None)


def _type(text: str) -> int | None:
    """A type's number, None for all types."""
    if text == _ANY:
        return None
    try:
        return rr.type_number(text)
    except ValueError:
        raise ConfigValueError(f"{values.shown(text)} is no record type", "such as A, AAAA, TYPE65 or *") from None


def _networks(reader: Reader, words: Sequence[Token] | None) -> tuple[str, ...] | None:
    if words is None:
        return None
    found = [reader.value(token, values.network) for token in words if token.text != _ANY]
    return tuple(network for network in found if network is not None) if len(found) == len(words) else None


class _Rule:
    """A rule at work."""

    __slots__ = ("action", "networks", "types")

    def __init__(self, rule: Rule) -> None:
        self.action = rule.action
        self.types = rule.types
        self.networks = Networks(rule.networks) if rule.networks is not None else None

    @property
    def is_transparent(self) -> bool:
        """Whether it lets everything of a usual type pass."""
        return self.action == ALLOW or (self.types is not None and self.types <= _UNUSUAL)


class Handler:
    """Lets queries pass or answers them."""

    def __init__(self, options: Options, site: Site) -> None:
        self._site = site
        self._cells = site.region.cells
        self._counts: dict[tuple[str, str, str], int] = {}
        self._lists: list[tuple[names.Zones[str], list[_Rule]]] = []
        for each in options.lists:
            zones = names.Zones({names.lower(names.from_text(zone)): zone for zone in each.zones})
            self._lists.append((zones, [_Rule(rule) for rule in each.rules]))

    def passing(self, zone: bytes, server: str) -> tuple[int, ...] | None:
        """They are allowed if no rule for names in the zone says otherwise."""
        for zones, rules in self._lists:
            if all(rule.is_transparent for rule in rules):
                continue
            if zones.find(zone) is not None or any(names.is_subdomain(below, zone) for below in zones.by_zone):
                return None
        return (self._count(ALLOW, server, ""),)

    async def __call__(self, query: Query, next: Next) -> Response:
        """What the rest of the chain answers, or what the rules say."""
        action, zone, by_client = self._decide(query)
        cell = self._count(action, query.server, zone)
        self._cells[cell] += 1
        if action == BLOCK:
            return Response(rcode=rr.REFUSED, edns_options=_BLOCKED, plugin=NAME)
        if action == FILTER:
            return Response(edns_options=_FILTERED, plugin=NAME)
        if action == DROP:  # SERVFAIL is for who asks from within the server
            return Response(rcode=rr.SERVFAIL, silent=True, plugin=NAME)
        response = await next(query)
        if by_client:
            response.cacheable = False
        return response

    def _decide(self, query: Query) -> tuple[str, str, bool]:
        """The action, the zone of the directive that wants it, and whether the client made a difference."""
        by_client = False
        applying = list(self._applying(query))
        if all(rule.action == ALLOW for _, rule in applying):
            return ALLOW, "", False
        for zone, rule in applying:
            if rule.networks is None:
                return rule.action, zone, by_client
            by_client = True
            if rule.networks.has(packed(query.client[0])):
                return rule.action, zone, True
        return ALLOW, "", by_client

    def _applying(self, query: Query) -> Iterator[tuple[str, _Rule]]:
        """The rules for a query's name and type, each with the zone of its directive."""
        for zones, rules in self._lists:
            zone = zones.find(query.lname)
            if zone is None:
                continue
            for rule in rules:
                if rule.types is None or query.type in rule.types:
                    yield zone, rule

    def _count(self, action: str, server: str, zone: str) -> int:
        """The cell that counts."""
        wanted = action, server, "" if action == ALLOW else zone
        cell = self._counts.get(wanted)
        if cell is None:
            key = (
                "count",
                _COUNTERS[action],
                "server",
                server,
                *(("view", self._site.view) if self._site.view else ()),
            )
            cell = self._site.region.series(key if action == ALLOW else (*key, "zone", zone), 1)
            self._counts[wanted] = cell
        return cell
