"""any: a short answer to ANY.

## Name

*any* - answers queries of type ANY with one HINFO record (RFC 8482).

## Description

A query for every type of record is of use for amplification attacks more than for anything else. It is answered with
an HINFO record that says so, whether the name exists or not.

## Syntax

```
any
```

## Metrics

None of its own.

## Examples

```corefile
example.org {
    any
    whoami
}
```

## Differences from CoreDNS

None.

## See also

RFC 8482.
"""

from __future__ import annotations

from dataclasses import dataclass

from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.options import Reader
from kdns.errors import Mistake
from kdns.plugins.chain import Next
from kdns.wire import rr
from kdns.wire.message import Query, Response
from kdns.wire.rrset import RRset

NAME = "any"
_HINFO = RRset(rr.HINFO, 8482, (rr.hinfo(b"ANY obsoleted", b"See RFC 8482"),))


@dataclass(frozen=True, slots=True)
class Options:
    """There are none."""


def parse(directive: Directive, _block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    reader.bare()
    return Options() if reader.sound else None


class Handler:
    """Answers ANY, passes on everything else."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def passing(self, zone: bytes, server: str) -> tuple[int, ...]:
        """Other types pass."""
        return ()

    async def __call__(self, query: Query, next: Next) -> Response:
        """The HINFO record, or what the rest of the chain answers."""
        if query.type != rr.ANY:
            return await next(query)
        return Response(answer=[(query.lname, _HINFO)], cacheable=True, plugin=NAME)
