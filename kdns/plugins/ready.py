"""ready: an HTTP endpoint that says whether queries can be answered.

## Name

*ready* - answers `/ready` over HTTP.

## Description

`GET /ready` is answered with status 200 and the text OK once every plugin that has to wait for something (*kubernetes*
for its data) is ready, and with 503 and the names of those that are not before that. Kubernetes asks it as readiness
probe. The endpoint belongs to the process, not to one server block.

## Syntax

```
ready [ADDRESS] {
    monitor until-ready|continuously
}
```

* **ADDRESS** is `HOST:PORT` or `:PORT`; default `:8181`.
* `monitor until-ready` (the default): a plugin that was ready once is not asked again. `monitor continuously`: every
  request asks every plugin.

## Metrics

None of its own.

## Examples

```corefile
.:53 {
    ready localhost:8091
}
```

Fail the probe again when a plugin stops being ready:

```corefile
.:53 {
    ready {
        monitor continuously
    }
}
```

## Differences from CoreDNS

None.

## See also

*health*, *kubernetes*.
"""

from __future__ import annotations

from dataclasses import dataclass

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.options import Reader
from kdns.corefile.values import Address
from kdns.errors import Mistake

NAME = "ready"
DEFAULT = Address("", 8181)
MONITORS = ("until-ready", "continuously")


@dataclass(frozen=True, slots=True)
class Options:
    """monitor: one of MONITORS."""

    address: Address = DEFAULT
    monitor: str = "until-ready"


def parse(directive: Directive, _block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    address: Address | None = DEFAULT
    monitor: str | None = "until-ready"
    for token in reader.arguments(directive, 0, 1, "ready [ADDRESS]"):
        address = reader.value(token, values.host_port)

    def read_monitor(item: Directive) -> None:
        nonlocal monitor
        monitor = reader.one(item, lambda text: values.choice(text, MONITORS), f"monitor {'|'.join(MONITORS)}")

    reader.options({"monitor": read_monitor})
    return Options(address, monitor) if address and monitor and reader.sound else None
