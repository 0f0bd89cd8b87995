"""minimal: answers without what nobody asked for.

## Name

*minimal* - leaves out the authority and additional sections of positive answers.

## Description

A response that has what was asked for is sent with its answer section only. Those that say that something does not
exist keep their SOA record, which says how long that holds; delegations and errors stay as they are too.

## Syntax

```
minimal
```

## Metrics

None of its own.

## Examples

```corefile
example.org:53 {
    minimal
    whoami
}
```

## Differences from CoreDNS

An alias whose target does not exist, or has no record of the type, keeps the SOA record that says so. The dates of
signatures are not looked at.

## See also

*bufsize*.
"""

from __future__ import annotations

from dataclasses import dataclass

from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.options import Reader
from kdns.errors import Mistake
from kdns.plugins.chain import Next
from kdns.wire import rr
from kdns.wire.message import Query, Response

NAME = "minimal"


@dataclass(frozen=True, slots=True)
class Options:
    """There are none."""


def parse(directive: Directive, _block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    reader.bare()
    return Options() if reader.sound else None


class Handler:
    """Makes what the rest of the chain answers shorter."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def passing(self, zone: bytes, server: str) -> tuple[int, ...]:
        """They have nothing to leave out."""
        return ()

    async def __call__(self, query: Query, next: Next) -> Response:
        """What the rest of the chain answers, without the sections that were not asked for."""
        response = await next(query)
        if response.rcode == rr.NOERROR and _positive(response):
            response.authority = []
            response.additional = []
            if response.relay is not None:
                response.relay = response.relay.answers_only()
        return response


def _positive(response: Response) -> bool:
    """Whether a NOERROR response neither denies anything nor delegates."""
    if response.relay is not None:
        answers, authorities, _ = response.relay.counts
        return not response.relay.denial if answers else not authorities
    if response.answer:
        return all(rrset.type != rr.SOA for _, rrset in response.authority)
    return not response.authority
