"""erratic: answers that are dropped, delayed or truncated, for tests of clients.

## Name

*erratic* - answers every query with a fixed address, but not always, not at once, or not in full.

## Description

The answer for type A is 192.0.2.53, for AAAA 2001:db8::53, with a TTL of 0; for other types it is SERVFAIL. Whatever is
asked for by AXFR over TCP or TLS is a small zone. Nothing is passed on, so that *erratic* has to be the last plugin
that answers.

Queries are counted from 0, in each worker for itself, and one is dropped (or delayed, or truncated) if its number can
be divided by **AMOUNT**: the first one always is. Answers are not kept in the packet cache.

## Syntax

```
erratic {
    drop [AMOUNT]
    truncate [AMOUNT]
    delay [AMOUNT [DURATION]]
    large
}
```

* `drop`: one of **AMOUNT** queries gets no answer. Default: 2; without this line too, unless there is `truncate` or
  `delay`. 0: none is.
* `truncate`: one of **AMOUNT** answers has the TC bit, or is a zone without its end. Default: 2.
* `delay`: one of **AMOUNT** answers comes **DURATION** later. Default: 2, and 100ms.
* `large`: an answer for type A has its record 30 times.

## Metrics

None of its own.

## Examples

```corefile
.:53 {
    erratic {
        drop 3
        delay 2 50ms
        truncate 4
    }
}
```

```corefile
.:53 {
    erratic
}
```

## Differences from CoreDNS

Each worker counts for itself. Answers are truncated as CoreDNS's manual has it; CoreDNS compares single bits of the
count. `drop` without **AMOUNT** stands for 2 beside `delay` and `truncate` too. AXFR is REFUSED over UDP, and in a
server block that has *forward*. It has no part in *ready*, and none in *autopath*.

## See also

*whoami*, *acl* (`drop`), *cancel*.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.lexer import Token
from kdns.corefile.options import Reader
from kdns.errors import Mistake
from kdns.plugins.chain import Next, in_task
from kdns.wire import message, names, rr
from kdns.wire.message import Query, Response, Transfer
from kdns.wire.rrset import RRset
from kdns.zone.journal import Row
from kdns.zone.transfer import Messages, Packer

NAME = "erratic"
AMOUNT = 2
DURATION = 0.1
LARGE = 30

_ADDRESSES = {address.type: address for address in (
    RRset(rr.A, 0, (rr.address("192.0.2.53"),)), RRset(rr.AAAA, 0, (rr.address("2001:db8::53"),)),
)}  # fmt: skip
_MOST = (1 << 31) - 1
_SERVERS = {b"\1b": "2001:500::54", b"\1a": "2001:bd8::53"}
_SOA = rr.soa(
    names.from_text("sns.dns.icann.org."), names.from_text("noc.dns.icann.org."), 2018050825, 7200, 3600, 1209600, 3600
)


@dataclass(frozen=True, slots=True)
class Options:
    """drop, truncate, delay: of how many queries one is, 0 for none. duration: of a delay, in seconds."""

    drop: int = AMOUNT
    truncate: int = 0
    delay: int = 0
    duration: float = DURATION
    large: bool = False


def parse(directive: Directive, _block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    reader.arguments(directive, 0, 0, "erratic { ... }")
    amounts: dict[str, int] = {}
    duration = DURATION
    large = False

    def amount(item: Directive, most: int = 1) -> tuple[Token, ...]:
        args = reader.arguments(item, 0, most, f"{item.name.text} [AMOUNT]")
        found = reader.value(args[0], lambda text: values.integer(text, 0, _MOST)) if args else AMOUNT
        amounts[item.name.text] = found or 0
        return args

    def delay(item: Directive) -> None:
        nonlocal duration
        for token in amount(item, 2)[1:]:
            duration = reader.value(token, values.duration) or 0.0

    def read_large(item: Directive) -> None:
        nonlocal large
        reader.arguments(item, 0, 0, "large")
        large = True

    reader.options({"drop": amount, "truncate": amount, "delay": delay, "large": read_large})
    if amounts.get("truncate") or amounts.get("delay"):
        amounts.setdefault("drop", 0)
    return Options(**amounts, duration=duration, large=large) if reader.sound else None


class Handler:
    """Answers what comes to it, as its options say."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._numbers = itertools.count()  # next() is one step, also for several threads

    async def __call__(self, query: Query, _next: Next) -> Response:
        """An answer, or none."""
        options = self._options
        number = next(self._numbers)
        if options.drop and number % options.drop == 0:
            return Response(rcode=rr.SERVFAIL, silent=True, plugin=NAME)
        if options.delay and number % options.delay == 0:
            await in_task()
            await asyncio.sleep(options.duration)
        truncated = bool(options.truncate and number % options.truncate == 0)
        if query.type == rr.AXFR:
            return _transfer(query, truncated)
        address = _ADDRESSES.get(query.type)
        if address is None:
            return Response(rcode=rr.SERVFAIL, plugin=NAME)
        count = LARGE if options.large and query.type == rr.A else 1
        return Response(
            authoritative=True,
            answer=[(query.lname, address)] * count,
            set_flags=message.TC if truncated else 0,
            plugin=NAME,
        )


def _transfer(query: Query, truncated: bool) -> Response:
    """A zone of the name that is asked for."""
    if query.proto == "udp":
        return Response(rcode=rr.REFUSED, plugin=NAME)
    if len(query.lname) + 2 > names.MAX_NAME:
        return Response(rcode=rr.SERVFAIL, plugin=NAME)
    transfer = Transfer(query.lname, _zone(query.lname, truncated), lambda: None)
    return Response(authoritative=True, transfer=transfer, plugin=NAME)


def _zone(origin: bytes, truncated: bool) -> Messages:
    """All of a zone, as a message; truncated: without the SOA record at the end."""
    packer = Packer(origin)
    soa = Row(origin, rr.SOA, 0, _SOA)
    packer.add(soa)
    for label in _SERVERS:
        packer.add(Row(origin, rr.NS, 0, label + origin))
    for label, address in sorted(_SERVERS.items()):
        packer.add(Row(label + origin, rr.AAAA, 0, rr.address(address)))
    if not truncated:
        packer.add(soa)
    return packer.done()
