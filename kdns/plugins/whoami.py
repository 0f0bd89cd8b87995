"""whoami: who asked.

## Name

*whoami* - answers with the client's own address and port.

## Description

Every query is answered, with an empty answer section and two additional records: the address from which it came (A or
AAAA) at the name that was asked for, and an SRV record at `_udp` or `_tcp` in front of that name with the port. It is
of use for trying things out. No plugin behind it is asked.

## Syntax

```
whoami
```

## Metrics

None of its own.

## Examples

```corefile
example.org:1053 {
    whoami
}
```

## Differences from CoreDNS

A name that is too long for `_udp` in front of it has no SRV record.

## See also

*log*.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.options import Reader
from kdns.errors import DomainNameError, Mistake
from kdns.plugins.chain import Next
from kdns.wire import names, rr
from kdns.wire.message import Query, Response
from kdns.wire.rrset import RRset

NAME = "whoami"


@dataclass(frozen=True, slots=True)
class Options:
    """There are none."""


def parse(directive: Directive, _block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    reader.bare()
    return Options() if reader.sound else None


class Handler:
    """Answers everything."""

    def __init__(self, options: Options) -> None:
        self.options = options

    async def __call__(self, query: Query, next: Next) -> Response:
        """The client's address and port; the rest of the chain is not asked."""
        host, port = query.client
        rdata = _address(host)
        additional = [(query.lname, RRset(rr.address_type(rdata), 0, (rdata,), query.klass))]
        try:
            owner = names.join([b"_" + query.proto.encode(), *names.labels(query.lname)])
            additional.append((owner, RRset(rr.SRV, 0, (rr.srv(0, 0, port, names.ROOT),), query.klass)))
        except DomainNameError:
            pass
        return Response(authoritative=True, additional=additional, plugin=NAME)


def _address(host: str) -> bytes:
    """rdata for an address that may have a zone (`fe80::1%eth0`) or be IPv4 within IPv6."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).packed
