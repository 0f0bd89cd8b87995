"""bufsize: the largest UDP response.

## Name

*bufsize* - sets the UDP size that the server offers and keeps to.

## Description

UDP datagrams that the network has to cut into fragments get lost easily. A response larger than this size is sent
without the records that do not fit and with TC set, so that the client asks again over TCP. A client that takes less
gets less; one that sends no OPT record gets 512 bytes.

## Syntax

```
bufsize [SIZE]
```

* **SIZE**: 512 to 4096 bytes; default 1232, which is also what holds without this directive.

## Metrics

None of its own.

## Examples

```corefile
.:53 {
    bufsize 1400
    whoami
}
```

## Differences from CoreDNS

The OPT record in the response has this size; CoreDNS sends the client's back.

## See also

RFC 6891 6.2.3.
"""

from __future__ import annotations

from dataclasses import dataclass

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.options import Reader
from kdns.errors import Mistake
from kdns.plugins.chain import Next
from kdns.wire import message
from kdns.wire.message import Query, Response

NAME = "bufsize"


@dataclass(frozen=True, slots=True)
class Options:
    """size: bytes."""

    size: int = message.DEFAULT_UDP


def parse(directive: Directive, _block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    size: int | None = Options().size
    for token in reader.arguments(directive, 0, 1, "bufsize [SIZE]"):
        size = reader.value(token, lambda text: values.integer(text, 512, 4096))
    reader.no_block()
    return Options(size) if size is not None and reader.sound else None


class Handler:
    """Sets the query's sizes before the rest of the chain sees it."""

    def __init__(self, options: Options) -> None:
        self._size = options.size

    async def __call__(self, query: Query, next: Next) -> Response:
        """What the rest of the chain answers."""
        query.udp_size = self._size
        if query.proto == "udp" and query.edns is not None:
            query.limit = max(message.MIN_UDP, min(query.edns.payload, self._size))
        return await next(query)
