"""reload: read the configuration again when it changes.

## Name

*reload* - watches the Corefile, what it imports, and the keys of *tsig*.

## Description

At each interval the files are compared with what was read. If they changed, the new configuration replaces the old
one without losing a query. If the new one has a mistake, the old one goes on, the mistakes are logged, and
`coredns_reload_failed_total` rises. The signals SIGHUP and SIGUSR1 reload at once, with or without this directive.

It acts on the whole process: one server block that has it is enough. Where several have it, the shortest interval
counts.

## Syntax

```
reload [INTERVAL] [JITTER]
```

* **INTERVAL**: the time between two looks; default 30s, at least 2s.
* **JITTER**: the interval is varied at random by up to half of this, either way, so that many servers do not reload at
  once; default 15s, 0s for none, else at least 1s. More than half of the interval counts as half of it.

## Metrics

* `coredns_reload_failed_total{}`: reloads that a mistake prevented.
* `kdns_configuration_outdated{}`: 1 while a mistake keeps what the files say from being used, else 0.
* `coredns_reload_version_info{hash, value}`: always 1; `value` is the SHA-512 of the configuration that is in use.

## Examples

```corefile
.:53 {
    reload 10s 5s
}
```

## Differences from CoreDNS

The hash is over the files as they are, imported ones and those of `secrets` (*tsig*) too, not over a parsed form of
them.

## See also

*import*, *tsig*.
"""

from __future__ import annotations

from dataclasses import dataclass

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.options import Reader
from kdns.errors import Mistake

NAME = "reload"
MIN_INTERVAL = 2.0
MIN_JITTER = 1.0


@dataclass(frozen=True, slots=True)
class Options:
    """interval, jitter: seconds; the jitter is at most half of the interval."""

    interval: float = 30.0
    jitter: float = 15.0

    def delay(self, chance: float) -> float:
        """Seconds to wait. chance: a random number from 0 to 1."""
        return self.interval + (chance - 0.5) * self.jitter


def parse(directive: Directive, _block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    args = reader.arguments(directive, 0, 2, "reload [INTERVAL] [JITTER]")
    interval: float | None = Options().interval
    jitter: float | None = Options().jitter
    if args:
        interval = reader.value(args[0], lambda text: values.duration(text, MIN_INTERVAL))
    if len(args) > 1:
        jitter = reader.value(args[1], _jitter)
    reader.no_block()
    if interval is None or jitter is None or not reader.sound:
        return None
    return Options(interval, min(jitter, interval / 2))


def _jitter(text: str) -> float:
    seconds = values.duration(text)
    return seconds and values.duration(text, MIN_JITTER)
