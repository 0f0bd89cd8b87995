"""prometheus: an HTTP endpoint with the server's metrics.

## Name

*prometheus* - answers `/metrics` over HTTP, and shows the server's state on a page at `/`.

## Description

The metrics have CoreDNS's names and labels, so that its dashboards and alerts work; what only kdns has starts with
`kdns_`. The numbers are the sum over all workers and never go backwards when a worker is replaced. Queries are counted
for the server blocks that have this directive.

At `/` there is a page for people: what is served and from where, how old the data is, the processes, upstreams, caches,
and the last warnings and errors of all of them. With `Accept: application/json` it is the same as JSON.

Whoever reaches the address reads all of this, without a password: names of zones, upstreams and files, names that were
asked for where that failed, and with `top_names` those that are asked for most. No keys and no tokens are in it, and
nothing can be changed.

## Syntax

```
prometheus [ADDRESS] {
    top_names [N]
}
```

* **ADDRESS** is `HOST:PORT` or `:PORT`; default `localhost:9153`.
* `top_names` shows which names are asked for most, at most **N** of them (1 to 100, default 20), in the metric
  `kdns_top_names`, on the page and in `kdns top`. Some of the answers are looked at for this, 500 a second in each
  thread at most, so the numbers are estimates, and a name that was asked for a few times only may be missing. Of
  several server blocks with the option, each of which counts its own names, the largest **N** holds for all together.

## Metrics

* `coredns_build_info{version, revision, goversion}`
* `kdns_compiled{}`: 1 if what is on the way of a query runs compiled, 0 if it runs as Python
* `coredns_dns_requests_total{server, zone, view, proto, family, type}`
* `coredns_dns_responses_total{server, zone, view, rcode, plugin}`
* `coredns_dns_request_duration_seconds{server, zone, view}`
* `coredns_dns_request_size_bytes{server, zone, view, proto}`
* `coredns_dns_response_size_bytes{server, zone, view, proto}`
* `coredns_dns_do_requests_total{server, zone, view}`
* `coredns_panics_total{}`
* `coredns_plugin_enabled{server, zone, view, name}`
* `kdns_top_names{name, type, rcode}`: queries a second, estimated over about the last minute. Names are in lower case
  and in master file format.

## Examples

```corefile
.:53 {
    prometheus localhost:9253
}
```

The 50 names that are asked for most:

```corefile
.:53 {
    prometheus :9153 {
        top_names 50
    }
}
```

## Differences from CoreDNS

The options `tls` and `runtime_metrics` are not supported. `top_names` and the page at `/` are additions.

## See also

*health*, *ready*.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock, ServerConfig
from kdns.corefile.options import Reader
from kdns.corefile.values import Address
from kdns.errors import Mistake

NAME = "prometheus"
DEFAULT = Address("localhost", 9153)
USUAL_NAMES, MOST_NAMES = 20, 100


@dataclass(frozen=True, slots=True)
class Options:
    """address: where `/metrics` is served. top_names: how many names are shown, 0 for none."""

    address: Address = DEFAULT
    top_names: int = 0


def parse(directive: Directive, _block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    address: Address | None = DEFAULT
    for token in reader.arguments(directive, 0, 1, "prometheus [ADDRESS]"):
        address = reader.value(token, values.host_port)
    most: int | None = 0

    def read_top_names(item: Directive) -> None:
        nonlocal most
        most = USUAL_NAMES
        for token in reader.arguments(item, 0, 1, "top_names [N]"):
            most = reader.value(token, lambda text: values.integer(text, 1, MOST_NAMES))

    reader.options({"top_names": read_top_names}, unsupported=("tls", "runtime_metrics"))
    return Options(address, most) if address and most is not None and reader.sound else None


def most_names(blocks: Iterable[ServerConfig]) -> int:
    """How many names are shown for these server blocks together; 0 if none has `top_names`."""
    return max((block.plugins[NAME].top_names for block in blocks if NAME in block.plugins), default=0)
