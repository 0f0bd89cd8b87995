"""debug: more in the log, for finding faults.

## Name

*debug* - logs messages that are malformed, where exceptions come from, and what other plugins have to say.

## Description

In the log of a server block with this directive are, beside what is there anyway:

* lines that begin with `[DEBUG]`, of plugins that write such lines;
* messages that are no well-formed queries, to any of the addresses that the server block listens to, and answers of
  other servers that are malformed or answer something else, as hexadecimal bytes;
* the whole stack, a line for each of its lines, of an exception that a plugin raises and should not.

The bytes of a message stand in lines such as

```
debug: 000000 00 0a 01 00 00 01 00 00 00 00 00 01 07 65 78 61
debug: 000010 6d 70 6c 65 05 6c 6f 63 61 6c 00 00 01 00 01 00
debug: 000020
```

with the offset of the first byte in front, and at last the size of the message. `text2pcap -i 17 -u 53,53` makes a
file for Wireshark of them.

It is not meant for a server that is open to everybody: each malformed message makes several lines.

## Syntax

```
debug
```

## Metrics

None of its own.

## Examples

```corefile
.:53 {
    debug
    errors
    whoami
}
```

## Differences from CoreDNS

Lines are written for the server blocks that have the directive; with CoreDNS one is enough for all. An exception does
not end the process: the query is answered with SERVFAIL, as without this directive.

## See also

*errors*, *log*, text2pcap(1).
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.options import Reader
from kdns.errors import Mistake
from kdns.observe.logs import Log
from kdns.plugins.chain import Next
from kdns.plugins.site import Site
from kdns.wire import names, rr
from kdns.wire.message import Query, Response

NAME = "debug"
SITED = True
_WIDTH = 16
_PREFIX = "debug: "


@dataclass(frozen=True, slots=True)
class Options:
    """There are none."""


def parse(directive: Directive, _block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    reader.bare()
    return Options() if reader.sound else None


def hexdump(data: bytes) -> list[str]:
    """Lines with the bytes of a message, as text2pcap reads them: offset and 16 bytes; the last one has the size."""
    lines = [f"{_PREFIX}{at:06x} {data[at : at + _WIDTH].hex(' ')}" for at in range(0, len(data), _WIDTH)]
    return [*lines, f"{_PREFIX}{len(data):06x}"]


def dump(log: Log, text: str, data: bytes) -> None:
    """Write what is to be said of a message, and its bytes, if this log is one for debugging."""
    if log.debugging:
        log.debug(text)
        for line in hexdump(data):
            log.raw(line)


class Handler:
    """Writes where an exception comes from, and lets it go on."""

    def __init__(self, _options: Options, site: Site) -> None:
        self._log = site.log.plugin(NAME)

    async def __call__(self, query: Query, next: Next) -> Response:
        """What the rest of the chain answers."""
        try:
            return await next(query)
        except Exception as error:
            asked = f"{names.to_text(query.lname)} {rr.type_text(query.type)}"
            self._log.debug(f"{asked} of {query.client[0]} ended in an exception")
            for line in "".join(traceback.format_exception(error)).splitlines():
                self._log.raw(_PREFIX + line)
            raise
