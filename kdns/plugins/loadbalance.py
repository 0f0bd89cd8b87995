"""loadbalance: address records in turns.

## Name

*loadbalance* - changes the order of the A and AAAA records in answers.

## Description

Most clients take the first address. With this directive, each answer with several addresses starts with another one,
also when it comes from the packet cache.

## Syntax

```
loadbalance [round_robin]
```

`round_robin` is the only policy and the default.

## Metrics

None of its own.

## Examples

```corefile
.:53 {
    loadbalance
    whoami
}
```

## Differences from CoreDNS

CoreDNS shuffles, also MX records; kdns rotates, and addresses only. The policy `weighted` and the option `prefer` are
not supported.

## See also

*kubernetes*.
"""

from __future__ import annotations

from dataclasses import dataclass

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.options import Reader
from kdns.errors import Mistake
from kdns.plugins.chain import Next
from kdns.wire.message import Query, Response

NAME = "loadbalance"


@dataclass(frozen=True, slots=True)
class Options:
    """policy: round_robin."""

    policy: str = "round_robin"


def parse(directive: Directive, _block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    if directive.args and directive.args[0].text == "weighted":
        message = 'loadbalance: "weighted" is not supported by this version of kdns'
        reader.refuse(directive.args[0], message, "round_robin")
        return None
    for token in reader.arguments(directive, 0, 1, "loadbalance [round_robin]"):
        reader.value(token, lambda text: values.choice(text, ("round_robin",)))
    reader.options({}, unsupported=("prefer",))
    return Options() if reader.sound else None


class Handler:
    """Lets the address records of every response rotate."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def passing(self, zone: bytes, server: str) -> tuple[int, ...]:
        """One record has no order."""
        return ()

    async def __call__(self, query: Query, next: Next) -> Response:
        """What the rest of the chain answers."""
        response = await next(query)
        response.rotate = True
        return response
