"""chaos: the server's version, name and authors.

## Name

*chaos* - answers TXT queries of class CH about the server itself.

## Description

The names are `version.bind` and `version.server` (the version), `hostname.bind` and `id.server` (the machine's name)
and `authors.bind` (one record for each author, in random order). Others are passed on. As class CH has no zones of its
own, the server block has to cover the names: `.` or `bind` and `server`.

## Syntax

```
chaos [VERSION] [AUTHORS...]
```

* **VERSION**: default `kdns-` and the version.
* **AUTHORS**: default `kdns authors`.

Each is cut after 255 bytes.

## Metrics

None of its own.

## Examples

```corefile
bind server {
    chaos kdns-internal "A. Author" "B. Author"
}
```

## Differences from CoreDNS

The default authors.

## See also

*nsid*. RFC 4892 describes `id.server`.
"""

from __future__ import annotations

import random
import socket
from dataclasses import dataclass

import kdns
from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.options import Reader
from kdns.errors import Mistake
from kdns.plugins.chain import Next
from kdns.wire import names, rr
from kdns.wire.message import Query, Response
from kdns.wire.rrset import RRset

NAME = "chaos"
_AUTHORS = names.from_text("authors.bind")
_VERSION = frozenset((names.from_text("version.bind"), names.from_text("version.server")))
_HOSTNAME = frozenset((names.from_text("hostname.bind"), names.from_text("id.server")))


@dataclass(frozen=True, slots=True)
class Options:
    """authors: sorted, without duplicates."""

    version: str = f"kdns-{kdns.__version__}"
    authors: tuple[str, ...] = ("kdns authors",)


def parse(directive: Directive, _block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    reader.no_block()
    version, *authors = [token.text for token in directive.args] or [Options().version]
    return Options(version, tuple(sorted(set(authors))) or Options().authors) if reader.sound else None


class Handler:
    """Answers the names that it knows, passes on everything else."""

    def __init__(self, options: Options) -> None:
        self._version = _rdata(options.version)
        self._hostname = _rdata(socket.gethostname() or "localhost")
        self._authors = tuple(map(_rdata, options.authors))

    async def __call__(self, query: Query, next: Next) -> Response:
        """The TXT records, or what the rest of the chain answers."""
        if query.klass != rr.CH or query.type != rr.TXT:
            return await next(query)
        if query.lname in _VERSION:
            return _answer(query, (self._version,), cacheable=True)
        if query.lname in _HOSTNAME:
            return _answer(query, (self._hostname,), cacheable=True)
        if query.lname == _AUTHORS:
            return _answer(query, tuple(random.sample(self._authors, len(self._authors))), cacheable=False)
        return await next(query)


def _answer(query: Query, rdatas: tuple[bytes, ...], *, cacheable: bool) -> Response:
    answer = [(query.lname, RRset(rr.TXT, 0, rdatas, rr.CH))]
    return Response(answer=answer, cacheable=cacheable, plugin=NAME)


def _rdata(text: str) -> bytes:
    return rr.txt(text.encode(errors="replace")[:255])
