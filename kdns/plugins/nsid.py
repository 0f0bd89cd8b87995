"""nsid: which of several servers answered.

## Name

*nsid* - adds the server's identifier to responses (RFC 5001).

## Description

A client that asks for it, with an empty NSID option in its query's OPT record, gets the identifier with the answer.
`dig +nsid` shows it. It tells apart the servers behind one address.

## Syntax

```
nsid [DATA...]
```

* **DATA**: the identifier, words joined by single spaces, at most 128 bytes; default: the machine's name.

## Metrics

None of its own.

## Examples

```corefile
.:53 {
    nsid zone a, second rack
    whoami
}
```

## Differences from CoreDNS

The length has a limit.

## See also

*chaos*, whose `id.server` serves the same purpose.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.options import Reader
from kdns.errors import Mistake
from kdns.plugins.chain import Next
from kdns.wire import message
from kdns.wire.message import Query, Response

NAME = "nsid"
MAX_DATA = 128


@dataclass(frozen=True, slots=True)
class Options:
    """data: the identifier; empty for the machine's name."""

    data: str = ""


def parse(directive: Directive, _block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    data = " ".join(token.text for token in directive.args)
    size = len(data.encode(errors="replace"))
    if size > MAX_DATA:
        reader.refuse(directive.args[0], f"nsid has {size} bytes", f"at most {MAX_DATA}")
    reader.no_block()
    return Options(data) if reader.sound else None


class Handler:
    """Adds the option to responses for queries that ask for it."""

    def __init__(self, options: Options) -> None:
        data = options.data or socket.gethostname() or "localhost"
        self._option = message.option(message.NSID, data.encode(errors="replace")[:MAX_DATA])

    def passing(self, zone: bytes, server: str) -> tuple[int, ...]:
        """It adds to answers of queries with its option, which are not usual."""
        return ()

    async def __call__(self, query: Query, next: Next) -> Response:
        """What the rest of the chain answers."""
        response = await next(query)
        if query.edns is not None and message.NSID in query.edns.options:
            response.edns_options += self._option
        return response
