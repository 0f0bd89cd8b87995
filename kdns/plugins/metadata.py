"""metadata: what plugins know of a query beside its question.

## Name

*metadata* - lets plugins of a server block use what others know of a query.

## Description

Plugins know more of a query than its question: *kubernetes* which Service and namespace its name is about, *forward*
which upstream answered. With this directive they tell it to the others under labels of the form `PLUGIN/NAME`. Nothing
is worked out before somebody asks for it.

*log* shows it in formats (`{/kubernetes/namespace}`), *view* decides by it (`metadata('kubernetes/namespace')`).

The labels are `view/name`, `forward/upstream` and those of *kubernetes*, see there. *log* knows its own, `log/class`
and `log/type`, without *metadata*. A label that nobody has, or has no value of, is empty.

## Syntax

```
metadata [ZONES...]
```

* **ZONES**: only for names in these; default the zones of the server block.

## Metrics

None of its own.

## Examples

```corefile
cluster.local:53 {
    metadata
    log . "{remote} {name} {rcode} namespace={/kubernetes/namespace}"
    kubernetes {
        manifests /etc/kdns/cluster
    }
}
```

## Differences from CoreDNS

A value that depends on more than the question is not kept: an answer that was made with it goes to that client only.
`kubernetes/client-pod-name` and `kubernetes/client-label/` are refused. Where pods of different namespaces have one
address, those of its node, `kubernetes/client-namespace` is empty; CoreDNS takes any of them.

## See also

*view*, *log*, *kubernetes*, *forward*.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from kdns.corefile.config import Directive, ServerBlock, ServerConfig
from kdns.corefile.lexer import Token
from kdns.corefile.options import Reader
from kdns.errors import Mistake
from kdns.plugins import kubernetes
from kdns.plugins.chain import Next, Provider
from kdns.wire import names
from kdns.wire.message import Query, Response

NAME = "metadata"
CLIENT_NAMESPACE = "kubernetes/client-namespace"
_MISSING = ("kubernetes/client-pod-name", "kubernetes/client-label/")


@dataclass(frozen=True, slots=True)
class Options:
    """zones: lower case with their last dot. clients: the server block asks for the namespaces of clients."""

    zones: tuple[str, ...] = (".",)
    clients: bool = False


def parse(directive: Directive, block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    zones = reader.zones(directive.args) or tuple(dict.fromkeys(key.zone for key in block.keys))
    reader.no_block()
    clients = False
    for token in _words(block.directives):
        clients = clients or CLIENT_NAMESPACE in token.text
        for label in _MISSING:
            if label in token.text:
                message = f"metadata {label} is not supported by this version of kdns"
                reader.refuse(token, message, CLIENT_NAMESPACE)
    return Options(zones, clients) if reader.sound else None


def _words(directives: Iterable[Directive]) -> Iterator[Token]:
    """All arguments of directives and of their blocks."""
    for directive in directives:
        yield from directive.args
        yield from _words(directive.block or ())


def needs_clients(block: ServerConfig) -> bool:
    """Whether the namespaces of clients have to be known for a server block with `kubernetes`."""
    options = block.plugins.get(NAME)
    pods: str = block.plugins[kubernetes.NAME].pods
    return isinstance(options, Options) and options.clients and pods == "verified"


@dataclass(slots=True, eq=False)
class Known:
    """What is known of one query: see `kdns.wire.message.Metadata`.

    providers: by the first part of their labels. name: as it was asked (lower case), whatever the query becomes.
    client: an address. noted: what came to light. personal: a value was asked for that depends on more than the name.
    """

    providers: Mapping[str, Provider]
    name: bytes
    client: str
    noted: dict[str, str] = field(default_factory=dict)
    personal: bool = False

    def value(self, label: str) -> str:
        """The value of a label; empty if there is none."""
        noted = self.noted.get(label)
        if noted is not None:
            self.personal = True
            return noted
        plugin, _, word = label.partition("/")
        provider = self.providers.get(plugin)
        if provider is None:
            return ""
        self.personal = self.personal or not provider.is_of_the_name(word)
        return provider.fact(word, self.name, self.client)

    def note(self, label: str, value: str) -> None:
        """Set the value of a label."""
        self.noted[label] = value


class Handler:
    """Gives queries their metadata."""

    def __init__(self, options: Options) -> None:
        self._zones = names.zone_set(options.zones)
        self._providers: Mapping[str, Provider] = {}

    def gather(self, handlers: Mapping[str, object]) -> None:
        """Take note of the handlers of the server block, by directive."""
        self._providers = {name: handler for name, handler in handlers.items() if isinstance(handler, Provider)}

    def passing(self, zone: bytes, server: str) -> tuple[int, ...]:
        """It changes nothing by itself."""
        return ()

    def known(self, name: bytes, client: str) -> Known:
        """What is known of a query for a name (lower case)."""
        return Known(self._providers if self._zones.find(name) else {}, name, client)

    async def __call__(self, query: Query, next: Next) -> Response:
        """What the rest of the chain answers."""
        query.metadata = known = self.known(query.lname, query.client[0])
        response = await next(query)
        if known.personal:
            response.cacheable = False
        return response
