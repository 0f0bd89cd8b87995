"""header: flags of queries and responses.

## Name

*header* - sets and clears flags in the header of queries and responses.

## Description

What is said of a `query` holds for the plugins behind this one, and for what they ask other servers; what is said of a
`response` for what they answer. The lines are taken in their order: the last one that names a flag decides.

## Syntax

```
header {
    query|response set|clear FLAGS...
}
```

* **FLAGS**: `aa` (authoritative answer), `ra` (recursion available), `rd` (recursion desired).

There may be any number of such lines, at least one.

## Metrics

None of its own.

## Examples

```corefile
.:53 {
    header {
        response set ra aa
        response clear rd
    }
    whoami
}
```

Other servers are asked for recursion, whether the client wants it or not:

```corefile
.:53 {
    header {
        query set rd
    }
    whoami
}
```

## Differences from CoreDNS

In a query, `aa` and `ra` have no meaning (RFC 1035 4.1.1), and are not sent to other servers.

## See also

*log* (`{>rflags}`).
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

NAME = "header"
FLAGS = {"aa": message.AA, "ra": message.RA, "rd": message.RD}
_LINE = "query|response set|clear FLAGS..."


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to a header. set, clear: masks of flags, of which none is in both."""

    set: int = 0
    clear: int = 0

    def then(self, mask: int, *, on: bool) -> Change:
        """This change, and these flags set or cleared after it."""
        if on:
            return Change(self.set | mask, self.clear & ~mask)
        return Change(self.set & ~mask, self.clear | mask)


@dataclass(frozen=True, slots=True)
class Options:
    """query, response: what happens to each."""

    query: Change = Change()
    response: Change = Change()


def parse(directive: Directive, _block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    reader.arguments(directive, 0, 0, "header { ... }")
    changes = {"query": Change(), "response": Change()}
    for item in directive.block or ():
        selector = reader.value(item.name, lambda text: values.choice(text.lower(), tuple(changes)))
        args = reader.arguments(item, 2, None, _LINE)
        if item.block is not None:
            reader.refuse(item.name, f"header: {values.shown(item.name.text)} has a block", _LINE)
        action = reader.value(args[0], lambda text: values.choice(text.lower(), ("set", "clear"))) if args else None
        for token in args[1:]:
            flag = reader.value(token, lambda text: values.choice(text.lower(), FLAGS))
            if selector and action and flag:
                changes[selector] = changes[selector].then(FLAGS[flag], on=action == "set")
    if not directive.block:
        reader.refuse(directive.name, "header has nothing to do", _LINE)
    return Options(**changes) if reader.sound else None


class Handler:
    """Changes queries on their way to the rest of the chain, and its responses."""

    def __init__(self, options: Options) -> None:
        self._query = options.query
        self._response = options.response

    async def __call__(self, query: Query, next: Next) -> Response:
        """What the rest of the chain answers."""
        query.flags = query.flags & ~self._query.clear | self._query.set
        response = await next(query)
        change = self._response
        response.set_flags = response.set_flags & ~change.clear | change.set
        response.clear_flags = response.clear_flags & ~change.set | change.clear
        return response
