"""k8s_external: names of Services for clients outside of the cluster.

## Name

*k8s_external* - answers with the addresses by which Services are reached from outside.

## Description

`SERVICE.NAMESPACE.ZONE` has the addresses of the Service's load balancer (`status.loadBalancer.ingress`) and its
`externalIPs`. A load balancer that goes by a host name makes it an alias of that name, whose addresses are what this
very server answers for it, by *forward* for example; if that fails, the answer is SERVFAIL. Ports with a name have SRV
records at `_PORT._PROTOCOL.SERVICE.NAMESPACE.ZONE`, and all of them at the name of the Service. In a reverse zone,
addresses have PTR records to every Service that has them.

The Services are those of *kubernetes* in the same server block, whose options say which of them are shown and how
endpoints are called. The records are made when the cluster changes, as those of *kubernetes* are, and are kept with
them; nothing more is asked of the API server.

The zone's own names are below one label, `dns` unless `apex` gives another: its SOA and NS records say
`ns1.dns.ZONE`, which has the addresses outside of the cluster of the Services that select this server, or those that it
listens on if there is no such Service. A namespace with the name of that label is not published.

If the directive is new to a server with data from before, the Services are read again; until then, names of these zones
that are not known yet are SERVFAIL, and everything else is answered as before.

## Syntax

```
k8s_external [ZONES...] {
    apex LABEL
    ttl TTL
    headless
    fallthrough [ZONES...]
}
```

* **ZONES**: names such as `example.org`, and networks such as `198.51.100.0/24` or zones below `in-addr.arpa` and
  `ip6.arpa` for PTR records, which point into the first zone that is none of these. Without any, the zones of the
  server block.
* `apex` **LABEL**: the label of the zone's own names. Default: `dns`.
* `ttl` **TTL**: seconds, 0 to 3600; default 5.
* `headless`: where a Service has no addresses outside of the cluster, those of its endpoints: a headless one has
  them at its name, with SRV records for their ports, and each endpoint at `ENDPOINT.SERVICE.NAMESPACE.ZONE`. Endpoints
  of other Services have such names too.
* `fallthrough` **[ZONES...]**: a name that does not exist is passed to the next plugin; only in these zones if any are
  given.

## Metrics

None.

## Examples

`test.default.example.org` is where the Service `test` is reached from outside:

```corefile
.:53 {
    kubernetes cluster.local {
        manifests /etc/kdns/cluster
    }
    k8s_external example.org
}
```

With PTR records, endpoints, and other names of the zone from somewhere else:

```corefile
example.org 198.51.100.0/24 {
    k8s_external {
        apex dns-of-the-cluster
        ttl 30
        headless
        fallthrough
    }
    kubernetes cluster.local {
        manifests /etc/kdns/cluster
    }
    forward . 192.0.2.53
}
```

## Differences from CoreDNS

A name that leads to a host name is an alias and nothing else, and the alias is shown for every type; CoreDNS answers
SRV queries there with SRV records, and others as if it had no record. Of addresses and host names of one Service, its
name has the addresses, and of several host names the first; CoreDNS answers with all of them. If the host name cannot
be resolved the answer is SERVFAIL; CoreDNS leaves its addresses out. SRV answers have no addresses of names in other
zones; CoreDNS looks them up. `ttl` is that of all records; CoreDNS gives aliases and SRV records the one of
*kubernetes*. Below a Service that is reached from outside there are its ports and nothing else; CoreDNS answers for any
label as for the Service. Names of ports have SRV records only; CoreDNS has the addresses of the Service there too. A
name that exists without records of the type is NODATA; CoreDNS says NXDOMAIN for some, such as `_tcp` below a Service,
and addresses in a reverse zone asked for A. Reverse zones have PTR records and no names of Services; CoreDNS answers
for those too. `fallthrough` holds below the label of `apex` too; CoreDNS answers there by itself. The weights of SRV
records share 100 by ports; CoreDNS counts each address. Without a zone of names, with `headless` beside `noendpoints`,
or with more than one label as `apex`, it is refused; CoreDNS has no such names then.

## See also

*kubernetes*, *forward*.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.options import Reader
from kdns.errors import ConfigValueError, Mistake
from kdns.plugins import kubernetes
from kdns.plugins.chain import Next
from kdns.wire import names
from kdns.zone.lookup import ZoneView
from kdns.zone.reader import Reader as StoreReader

NAME = "k8s_external"


@dataclass(frozen=True, slots=True)
class Options:
    """zones, fallthrough: lower case with their last dot; fallthrough: the zones in which it holds. ttl: seconds."""

    zones: tuple[str, ...]
    apex: str = "dns"
    ttl: int = 5
    headless: bool = False
    fallthrough: tuple[str, ...] = ()


def parse(directive: Directive, block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    name = directive.name
    zones = reader.zones(directive.args) if directive.args else tuple(dict.fromkeys(key.zone for key in block.keys))
    if reader.sound and all(map(values.is_reverse, zones)):
        reader.refuse(name, f"{NAME} has reverse zones only", "a zone such as example.org beside them")
    beside = [each for each in block.directives if each.name.text == kubernetes.NAME]
    if not beside:
        reader.refuse(name, f"{NAME} is in a server block without kubernetes", "kubernetes in the same server block")
    no_endpoints = any(item.name.text == "noendpoints" for each in beside for item in each.block or ())
    found: dict[str, object] = {}

    def apex(item: Directive) -> None:
        found["apex"] = reader.one(item, _label, "apex LABEL")

    def ttl(item: Directive) -> None:
        found["ttl"] = reader.one(item, lambda text: values.integer(text, 0, 3600), "ttl TTL")

    def headless(item: Directive) -> None:
        reader.arguments(item, 0, 0, "headless")
        if no_endpoints:
            reader.refuse(item.name, f"{NAME} has headless, and kubernetes noendpoints", "one of them")
        found["headless"] = True

    def fallthrough(item: Directive) -> None:
        found["fallthrough"] = reader.zones(item.args) if item.args else (".",)

    reader.options({"apex": apex, "ttl": ttl, "headless": headless, "fallthrough": fallthrough})
    return Options(zones, **found) if reader.sound else None  # type: ignore[arg-type]


def _label(text: str) -> str:
    if not names.is_label(text):
        raise ConfigValueError(f"{values.shown(text)} is no label", "1 to 63 letters, digits and inner hyphens")
    return text.lower()


class Handler(kubernetes.Handler):
    """Answers from the zone store, as `kubernetes` does, from zones of its own.

    views: the zones, as they are numbered in the store. ask: what this server answers to another query.
    """

    name = NAME

    def __init__(self, options: Options, views: Iterable[ZoneView], store: StoreReader, ask: Next) -> None:
        shared = kubernetes.Options(options.zones, ttl=options.ttl, fallthrough=options.fallthrough)
        super().__init__(shared, views, store, ask)
