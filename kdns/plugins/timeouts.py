"""timeouts: how long TCP connections are kept.

## Name

*timeouts* - sets how long clients may take on TCP connections, and how much they may ask on one.

## Description

A connection that is idle, or whose client stops in the middle of a message or takes no answers, is closed after a time,
so that there is room for others. Clients that keep one connection for very long always ask the same server behind a
load balancer; a limit to the queries on a connection makes them connect anew.

What holds for one address that is listened to is common to all server blocks that share it: of each option the last
one in the Corefile. UDP has no such times.

## Syntax

```
timeouts {
    read DURATION
    write DURATION
    idle DURATION
    maxtcpqueries COUNT
}
```

At least one of them:

* `read`: in which a message that has begun to come has to be complete; default 5s.
* `write`: in which answers have to be taken; default 5s.
* `idle`: how long nothing may come before a connection is closed; default 10s.
* `maxtcpqueries`: the last one of so many queries on a connection is answered, and then it is closed; default -1, for
  any number.

A **DURATION** is 1s to 24h; a number without a unit is seconds.

## Metrics

* `kdns_tcp_connections_closed_total{reason}`: "incomplete" (`read`), "slow" (`write`), "idle", "queries"
  (`maxtcpqueries`), and others.

## Examples

```corefile
.:53 {
    timeouts {
        read 10s
        write 20s
        idle 1m
        maxtcpqueries 128
    }
    whoami
}
```

## Differences from CoreDNS

A new connection on which nothing comes is closed after the time of `idle`, and not that of `read`. The default of
`read` is 3s there.

## See also

*cancel*, RFC 7766 6.2.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.options import Reader
from kdns.errors import ConfigValueError, Mistake

NAME = "timeouts"
_LEAST, _MOST = 1.0, 86400.0


@dataclass(frozen=True, slots=True)
class Options:
    """read, write, idle: seconds. maxtcpqueries: -1 for any number. None: the default."""

    read: float | None = None
    write: float | None = None
    idle: float | None = None
    maxtcpqueries: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may take on one connection.

    read: seconds until a message that has begun is complete. write: seconds without taking answers. idle: seconds
    without sending anything. queries: -1 for any number.
    """

    read: float = 5.0
    write: float = 5.0
    idle: float = 10.0
    queries: int = -1


def parse(directive: Directive, _block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    reader.arguments(directive, 0, 0, "timeouts { ... }")
    found: dict[str, Any] = {}

    def option(convert: Callable[[str], float]) -> Callable[[Directive], None]:
        def read(item: Directive) -> None:
            found[item.name.text] = reader.one(item, convert, f"{item.name.text} VALUE")

        return read

    known = {"read": _duration, "write": _duration, "idle": _duration, "maxtcpqueries": _count}
    reader.options({word: option(convert) for word, convert in known.items()})
    if not directive.block:
        reader.refuse(directive.name, "timeouts has none", "one of " + ", ".join(known))
    return Options(**found) if reader.sound else None


def together(all_options: Iterable[Options]) -> Limits:
    """What holds for server blocks that share an address, in the order of the Corefile."""
    limits = Limits()
    for options in all_options:
        limits = Limits(
            options.read or limits.read,
            options.write or limits.write,
            options.idle or limits.idle,
            options.maxtcpqueries or limits.queries,
        )
    return limits


def _duration(text: str) -> float:
    seconds = values.duration(f"{text}s" if text.isascii() and text.isdecimal() else text, _LEAST)
    if seconds > _MOST:
        raise ConfigValueError(f"{values.shown(text)} is too long", "1s to 24h")
    return seconds


def _count(text: str) -> int:
    count = values.integer(text, -1, 2**31 - 1)
    if not count:
        raise ConfigValueError("0 queries are none at all", "-1 for any number, or 1 and more")
    return count
