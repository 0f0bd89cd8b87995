"""cancel: an end for queries that wait too long.

## Name

*cancel* - gives up a query that the plugins behind it have not answered in time.

## Description

Clients give up after five seconds, most of them; what is done for a query from then on is done for nobody. When the
time is over the client gets SERVFAIL, with a reason for *errors*, and the work on the query ends: no other server is
asked any more on its behalf. Answers that need no waiting are not touched.

## Syntax

```
cancel [TIMEOUT]
```

* **TIMEOUT**: a duration longer than 0; default 5001ms.

## Metrics

None of its own.

## Examples

```corefile
example.org {
    cancel 1s
    whoami
}
```

## Differences from CoreDNS

The client gets SERVFAIL; CoreDNS tells the other plugins that time is over, and leaves it to them what to do.

## See also

*errors*, *timeouts*.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.options import Reader
from kdns.errors import ConfigValueError, Mistake
from kdns.plugins.chain import Next, attempt, in_task
from kdns.wire import rr
from kdns.wire.message import Query, Response

NAME = "cancel"


@dataclass(frozen=True, slots=True)
class Options:
    """timeout: seconds."""

    timeout: float = 5.001


def parse(directive: Directive, _block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    timeout: float | None = Options().timeout
    for token in reader.arguments(directive, 0, 1, "cancel [TIMEOUT]"):
        timeout = reader.value(token, _timeout)
    reader.no_block()
    return Options(timeout) if timeout is not None and reader.sound else None


def _timeout(text: str) -> float:
    seconds = values.duration(text)
    if not seconds:
        raise ConfigValueError(f"{values.shown(text)} is no time at all", "a duration such as 500ms or 5001ms")
    return seconds


class Handler:
    """Lets the rest of the chain work for so long and no longer."""

    def __init__(self, options: Options) -> None:
        self._timeout = options.timeout

    def passing(self, zone: bytes, server: str) -> tuple[int, ...]:
        """It has nothing to do with what need not wait."""
        return ()

    async def __call__(self, query: Query, next: Next) -> Response:
        """What the rest of the chain answers, or SERVFAIL."""
        steps = next(query)
        response = attempt(steps)
        if response is not None:
            return response
        await in_task()
        work = asyncio.create_task(steps)
        reason = f"no answer within {self._timeout * 1000:g} ms"
        try:
            done, _ = await asyncio.wait((work,), timeout=self._timeout)
        finally:
            work.cancel(reason)  # which `errors` sees, as it stands behind this plugin
        if done:
            return work.result()
        return Response(rcode=rr.SERVFAIL, plugin=NAME, error=reason)
