"""prometheus: an HTTP endpoint with the server's metrics.

## Name

*prometheus* - answers `/metrics` over HTTP.

## Description

The metrics have CoreDNS's names and labels, so that its dashboards and alerts work; what only kdns has starts with
`kdns_`. The numbers are the sum over all workers and never go backwards when a worker is replaced. Queries are counted
for the server blocks that have this directive.

## Syntax

```
prometheus [ADDRESS]
```

* **ADDRESS** is `HOST:PORT` or `:PORT`; default `localhost:9153`.

## Metrics

* `coredns_build_info{version, revision, goversion}`
* `coredns_dns_requests_total{server, zone, view, proto, family, type}`
* `coredns_dns_responses_total{server, zone, view, rcode, plugin}`
* `coredns_dns_request_duration_seconds{server, zone, view}`
* `coredns_dns_request_size_bytes{server, zone, view, proto}`
* `coredns_dns_response_size_bytes{server, zone, view, proto}`
* `coredns_dns_do_requests_total{server, zone, view}`
* `coredns_panics_total{}`
* `coredns_plugin_enabled{server, zone, view, name}`

## Examples

```corefile
.:53 {
    prometheus localhost:9253
}
```

## Differences from CoreDNS

The options `tls` and `runtime_metrics` are not supported.

## See also

*health*, *ready*.
"""

from __future__ import annotations

from dataclasses import dataclass

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.options import Reader
from kdns.corefile.values import Address
from kdns.errors import Mistake

NAME = "prometheus"
DEFAULT = Address("localhost", 9153)


@dataclass(frozen=True, slots=True)
class Options:
    """address: where `/metrics` is served."""

    address: Address = DEFAULT


def parse(directive: Directive, _block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    address: Address | None = DEFAULT
    for token in reader.arguments(directive, 0, 1, "prometheus [ADDRESS]"):
        address = reader.value(token, values.host_port)
    reader.options({}, unsupported=("tls", "runtime_metrics"))
    return Options(address) if address and reader.sound else None
