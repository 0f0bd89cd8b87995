"""dns64: IPv6 addresses for names that have IPv4 addresses only.

## Name

*dns64* - makes AAAA records of A records, for clients behind a NAT64.

## Description

If a client asks for AAAA records over IPv6 and there are none, the name's A records are looked up by the rest of the
server block's plugins, and an AAAA record is made of each: the prefix with the IPv4 address in it (RFC 6052 2.2). Where
packets to this prefix go through a NAT64, a client that only has IPv6 reaches servers that only have IPv4.

The TTL of what is made is the A record's, but no longer than that of the SOA record in the answer without AAAA records,
or than 600 seconds if there was none. Other records of the answer, such as CNAMEs, come as they are. A name that does
not exist (NXDOMAIN) stays so; where there are no A records either, the client gets the first answer. If the look-up of
A records fails (SERVFAIL), so does the query: the client is to try again.

This goes for names of the cluster and for those that are forwarded. A client that validates signatures itself (DO and
CD, RFC 6147 5.5) gets nothing that is made: it makes such records for itself.

## Syntax

```
dns64 [PREFIX] {
    prefix PREFIX
    translate_all
    allow_ipv4
}
```

* **PREFIX**, here or as an option: the network in which the NAT64 has IPv4 addresses, with a prefix of 32, 40, 48, 56,
  64 or 96 bits. Default: `64:ff9b::/96`.
* `translate_all`: the A records are asked for, and take the place of AAAA records, even if there are some.
* `allow_ipv4`: do the same for clients that ask over IPv4.

## Metrics

* `coredns_dns64_requests_translated_total{server}`: queries that were answered with AAAA records that were made.

## Examples

```corefile
.:53 {
    dns64
    forward . 192.0.2.53
}
```

```corefile
.:53 {
    dns64 2001:db8:64::/96 {
        allow_ipv4
        translate_all
    }
    forward . 192.0.2.53
}
```

## Differences from CoreDNS

Clients with DO and CD get no AAAA records that are made. Where there are no A records, the answer is the first one, and
not counted; where they could not be looked up, it is SERVFAIL and not empty. Nothing is made if the answer for AAAA
records is truncated: the client is to ask over TCP. NXDOMAIN without an SOA record stays NXDOMAIN. Behind a prefix
options in a block count; CoreDNS passes over them. The lengths 72, 80 and 88, which are not in RFC 6052, are refused.

## See also

*forward*, *kubernetes*; RFC 6147.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, replace

from msgspec import structs

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.options import Reader
from kdns.errors import ConfigValueError, Mistake
from kdns.plugins.chain import Next
from kdns.plugins.networks import packed
from kdns.plugins.site import Site
from kdns.wire import message, rr
from kdns.wire.message import Query, Response
from kdns.wire.rrset import RRset

NAME = "dns64"
SITED = True
PREFIX = "64:ff9b::/96"
"""The well-known one (RFC 6052 2.1)."""
LENGTHS = (32, 40, 48, 56, 64, 96)
TTL = 600
"""The longest, in seconds, without an SOA record (RFC 6147 5.1.7)."""
_ZERO_AT = 8
"""The octet that is zero in an address with an IPv4 address in it (RFC 6052 2.2)."""
_TYPE = slice(-4, -2)  # of a question


@dataclass(frozen=True, slots=True)
class Options:
    """prefix: a network in CIDR notation."""

    prefix: str = PREFIX
    translate_all: bool = False
    allow_ipv4: bool = False


def parse(directive: Directive, _block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    prefix: str | None = PREFIX
    chosen = set()
    for token in reader.arguments(directive, 0, 1, "dns64 [PREFIX]"):
        prefix = reader.value(token, _prefix)

    def read_prefix(item: Directive) -> None:
        nonlocal prefix
        if directive.args:
            reader.refuse(item.name, "dns64 has two prefixes", "one of them")
        prefix = reader.one(item, _prefix, "prefix PREFIX")

    def choose(name: str) -> Callable[[Directive], None]:
        def read(item: Directive) -> None:
            reader.arguments(item, 0, 0, name)
            chosen.add(name)

        return read

    flags = ("translate_all", "allow_ipv4")
    reader.options({"prefix": read_prefix, **{name: choose(name) for name in flags}})
    if prefix is None or not reader.sound:
        return None
    return Options(prefix, *(name in chosen for name in flags))


def _prefix(text: str) -> str:
    accepted = f"a network such as {PREFIX}, of {', '.join(map(str, LENGTHS[:-1]))} or {LENGTHS[-1]} bits"
    network = ipaddress.ip_network(values.network(text))
    if network.version != 6 or network.prefixlen not in LENGTHS:
        raise ConfigValueError(f"{values.shown(text)} is no prefix for IPv4 addresses", accepted)
    return str(network)


class Prefix:
    """A network of IPv6 addresses that have an IPv4 address in them."""

    __slots__ = ("_first", "_size")

    def __init__(self, network: str) -> None:
        """network: in CIDR notation, of one of LENGTHS."""
        found = ipaddress.IPv6Network(network)
        self._size = found.prefixlen // 8
        self._first = found.network_address.packed[: self._size]

    def around(self, address: bytes) -> bytes:
        """The IPv6 address with an IPv4 address in it (RFC 6052 2.2)."""
        if self._size > _ZERO_AT:
            return self._first + address
        before = _ZERO_AT - self._size
        return (self._first + address[:before] + b"\0" + address[before:]).ljust(16, b"\0")


class Handler:
    """Makes AAAA records where the rest of the chain has none."""

    def __init__(self, options: Options, site: Site) -> None:
        self._options = options
        self._prefix = Prefix(options.prefix)
        self._site = site
        self._cells = site.region.cells
        self._counts: dict[str, int] = {}

    async def __call__(self, query: Query, next: Next) -> Response:
        """What the rest of the chain answers, to this question or, in other words, to that for A records."""
        original = await next(query)
        if query.type != rr.AAAA or query.klass != rr.IN or not self._is_for(query) or not self._lacks(original):
            return original
        found = message.opened(await next(_for_addresses(query)))
        if found.rcode == rr.SERVFAIL and not found.silent and not _has_addresses(original):
            return found
        is_empty = all(rrset.type != rr.A for _, rrset in found.answer) and not found.set_flags & message.TC
        if found.rcode != rr.NOERROR or is_empty:
            original.cacheable = _may_be_kept(original, found)
            original.depends += found.depends
            return original
        self._count(query.server)
        return self._made(original, found)

    def _is_for(self, query: Query) -> bool:
        """Whether the client is one of those that records are made for."""
        if query.flags & message.CD and query.edns is not None and query.edns.do:
            return False
        return self._options.allow_ipv4 or len(packed(query.client[0])) == 16

    def _lacks(self, original: Response) -> bool:
        """Whether there is something to be put in place of a response. Failures of our own are none of its business."""
        if original.rcode == rr.NXDOMAIN or (original.relay is None and original.rcode == rr.SERVFAIL):
            return False
        return self._options.translate_all or not (_is_truncated(original) or _has_addresses(original))

    def _made(self, original: Response, found: Response) -> Response:
        """The answer to the question for A records, with AAAA records in their place."""
        authority = message.opened(original).authority
        most = next((rrset.ttl for _, rrset in authority if rrset.type == rr.SOA), TTL)
        return replace(
            found,
            answer=[(owner, self._translated(rrset, most)) for owner, rrset in found.answer],
            authoritative=False,
            cacheable=_may_be_kept(original, found),
            depends=(*original.depends, *found.depends),
            plugin=NAME,
        )

    def _translated(self, rrset: RRset, most: int) -> RRset:
        """AAAA records for A records; others as they are. most: of the TTL."""
        if rrset.type != rr.A:
            return rrset
        rdatas = tuple(self._prefix.around(rdata) for rdata in rrset.rdatas)
        return structs.replace(rrset, type=rr.AAAA, ttl=min(rrset.ttl, most), rdatas=rdatas)

    def _count(self, server: str) -> None:
        cell = self._counts.get(server)
        if cell is None:
            key = "count", "coredns_dns64_requests_translated_total", "server", server
            cell = self._counts[server] = self._site.region.series(key, 1)
        self._cells[cell] += 1


def _has_addresses(original: Response) -> bool:
    """Whether it answers the question for AAAA records."""
    if original.relay is not None:
        return original.relay.answered
    return any(rrset.type == rr.AAAA for _, rrset in original.answer)


def _is_truncated(original: Response) -> bool:
    """Whether there may be AAAA records that had no room."""
    return bool(original.set_flags & message.TC) or (original.relay is not None and original.relay.truncated)


def _may_be_kept(original: Response, found: Response) -> bool:
    """Whether what was decided by two answers holds as long as the names that they were made of."""
    return original.cacheable and found.cacheable and original.aging is None and found.aging is None


def _for_addresses(query: Query) -> Query:
    """The same question for A records, asked by ourselves."""
    question = bytearray(message.question(query))
    question[_TYPE] = rr.A.to_bytes(2)
    data = message.HEADER.pack(query.id, query.flags, 1, 0, 0, 0) + bytes(question)
    return replace(query, data=data, type=rr.A, limit=message.MAX_MESSAGE)
