"""health: an HTTP endpoint that says whether the process lives.

## Name

*health* - answers `/health` over HTTP.

## Description

While the server runs, `GET /health` is answered with status 200 and the text OK. Kubernetes asks it as liveness probe.
The endpoint belongs to the process, not to one server block: write it in one of them.

## Syntax

```
health [ADDRESS] {
    lameduck DURATION
}
```

* **ADDRESS** is `HOST:PORT` or `:PORT`; default `:8080`.
* `lameduck` **DURATION**: after the signal to stop, go on answering queries for that long, while `/health` still says
  OK and `/ready` does not. Default 0s. In Kubernetes, kube-proxy goes on sending the UDP flows that it knows to a pod
  that ends until its readiness probe has failed: `periodSeconds` times `failureThreshold`, and 2 s to spread.

## Metrics

* `coredns_health_request_duration_seconds{}`: how long the server's own request to `/health`, once a second, took.
* `coredns_health_request_failures_total{}`: those of them that failed.

## Examples

```corefile
.:53 {
    health localhost:8091 {
        lameduck 5s
    }
}
```

## Differences from CoreDNS

Written twice in one server block it is refused; CoreDNS takes the last one.

## See also

*ready*, which says whether queries can be answered yet.
"""

from __future__ import annotations

from dataclasses import dataclass

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.options import Reader
from kdns.corefile.values import Address
from kdns.errors import Mistake

NAME = "health"
DEFAULT = Address("", 8080)


@dataclass(frozen=True, slots=True)
class Options:
    """lameduck: seconds."""

    address: Address = DEFAULT
    lameduck: float = 0.0


def parse(directive: Directive, _block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    address: Address | None = DEFAULT
    lameduck: float | None = 0.0
    for token in reader.arguments(directive, 0, 1, "health [ADDRESS]"):
        address = reader.value(token, values.host_port)

    def read_lameduck(item: Directive) -> None:
        nonlocal lameduck
        lameduck = reader.one(item, values.duration, "lameduck DURATION")

    reader.options({"lameduck": read_lameduck})
    return Options(address, lameduck) if address and lameduck is not None and reader.sound else None
