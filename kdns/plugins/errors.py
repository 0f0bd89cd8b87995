"""errors: a line for each query that failed.

## Name

*errors* - writes what went wrong to standard output.

## Description

If another plugin could not answer, its reason is written in one line: `[ERROR] plugin/errors: `, the response code's
number, the name and type that were asked for, and the reason.

## Syntax

```
errors [stdout] {
    stacktrace
}
```

* `stdout` is where the lines go with or without it.
* `stacktrace`: write the stack too if a query fails by a mistake in kdns itself.

## Metrics

None of its own.

## Examples

```corefile
.:53 {
    errors
    whoami
}
```

```corefile
.:53 {
    errors {
        stacktrace
    }
    whoami
}
```

## Differences from CoreDNS

`consolidate` is not supported.

## See also

*log*.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.options import Reader
from kdns.errors import Mistake
from kdns.plugins.chain import Next
from kdns.wire import names, rr
from kdns.wire.message import Query, Response

NAME = "errors"


@dataclass(frozen=True, slots=True)
class Options:
    """stacktrace: whether exceptions are written with their stack."""

    stacktrace: bool = False


def parse(directive: Directive, _block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    stacktrace = False
    for token in reader.arguments(directive, 0, 1, "errors [stdout]"):
        reader.value(token, lambda text: values.choice(text, ("stdout",)))

    def read_stacktrace(item: Directive) -> None:
        nonlocal stacktrace
        reader.arguments(item, 0, 0, "stacktrace")
        stacktrace = True

    reader.options({"stacktrace": read_stacktrace}, unsupported=("consolidate",))
    return Options(stacktrace) if reader.sound else None


class Handler:
    """Writes `Response.error`. With `stacktrace` also the stack of an exception, which goes on to the server."""

    def __init__(self, options: Options, write: Callable[[str], None] | None = None) -> None:
        """write: takes whole lines; standard output if None."""
        self._stacktrace = options.stacktrace
        self._write = write or _to_stdout

    async def __call__(self, query: Query, next: Next) -> Response:
        """What the rest of the chain answers."""
        try:
            response = await next(query)
        except Exception:
            if self._stacktrace:
                self._write(f"[ERROR] plugin/errors: {_question(query)}: {traceback.format_exc()}")
            raise
        if response.error:
            self._write(f"[ERROR] plugin/errors: {response.rcode} {_question(query)}: {response.error}\n")
        return response


def _question(query: Query) -> str:
    return f"{names.to_text(query.lname)} {rr.type_text(query.type)}"


def _to_stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
