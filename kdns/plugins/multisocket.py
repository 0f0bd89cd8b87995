"""multisocket: how many workers answer, each by sockets of its own.

## Name

*multisocket* - sets the number of workers, which is the number of sockets at each address.

## Description

Each worker is a process with sockets of its own at every address (SO_REUSEPORT), and the kernel hands each client's
queries to one of them. There is one for each CPU that may be used, up to 4, if nothing else is said.

The workers serve all server blocks together: of several directives the largest number holds. `--workers` of the command
line overrules it, which `kdns node` always has. When the configuration is read again the number may be another one;
what waits in the sockets of a worker that is too many is lost.

## Syntax

```
multisocket [NUM_SOCKETS]
```

* **NUM_SOCKETS**: 1 to 64. Default: one for each CPU that may be used, by the limits of the container too.

## Metrics

* `kdns_workers{}`: how many workers are running.

## Examples

```corefile
.:53 {
    multisocket 2
    whoami
}
```

## Differences from CoreDNS

The number is that of the whole server; CoreDNS has one for each address, that of the first server block there. More
than 64 are refused; CoreDNS takes up to 1024. Without the directive there are as many as CPUs, up to 4; CoreDNS has
one.

## See also

*bind*.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock, ServerConfig
from kdns.corefile.options import Reader
from kdns.errors import Mistake

NAME = "multisocket"
MOST = 64


@dataclass(frozen=True, slots=True)
class Options:
    """sockets: None for one for each CPU."""

    sockets: int | None = None


def parse(directive: Directive, _block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    sockets: int | None = None
    for token in reader.arguments(directive, 0, 1, "multisocket [NUM_SOCKETS]"):
        sockets = reader.value(token, lambda text: values.integer(text, 1, MOST))
    reader.no_block()
    return Options(sockets) if reader.sound else None


def workers(blocks: Iterable[ServerConfig], cpus: int) -> int | None:
    """How many workers these server blocks want together; None if none says so. cpus: that may be used."""
    wanted = [block.plugins[NAME] for block in blocks if NAME in block.plugins]
    return max((options.sockets or min(cpus, MOST) for options in wanted), default=None)
