"""bind: the addresses to listen on.

## Name

*bind* - sets the addresses that a server block listens on.

## Description

Without it, a server block listens on every address of the machine. The addresses of an interface are read when the
server starts and when the configuration is read again. Several directives in one server block add up.

Two server blocks on one port should both have *bind*, or neither: a socket on one address and one on all of them
share the queries to that address in no order that can be foreseen.

## Syntax

```
bind ADDRESS|INTERFACE... {
    except ADDRESS|INTERFACE...
}
```

* **ADDRESS** is an IPv4 or IPv6 address, **INTERFACE** the name of a network interface, which stands for all of its
  addresses.
* `except`: leave out these addresses, or those of these interfaces. It holds for this directive only.

## Metrics

None of its own.

## Examples

```corefile
.:53 {
    bind 127.0.0.1 ::1
}
```

All addresses of an interface but one:

```corefile
.:53 {
    bind lo {
        except 127.0.0.1
    }
}
```

## Differences from CoreDNS

Addresses are compared as addresses: `::1` and `0:0:0:0:0:0:0:1` are the same. That no address is left is a mistake;
CoreDNS then has no listener.

## See also

The addresses decide which server blocks belong to one server.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock, ServerConfig, ServerKey
from kdns.corefile.lexer import Token
from kdns.corefile.options import Reader
from kdns.errors import ConfigError, ConfigValueError, Mistake
from kdns.plugins import view

NAME = "bind"
Interfaces = Mapping[str, Sequence[str]]
_INTERFACE = re.compile(r"[^\s/:\x00-\x20\x7f]{1,15}")


@dataclass(frozen=True, slots=True)
class Bind:
    """One directive. wanted, unwanted: addresses in their shortest form, and names of interfaces."""

    wanted: tuple[Token, ...]
    unwanted: tuple[Token, ...] = ()

    def addresses(self, interfaces: Interfaces) -> list[str]:
        """The addresses, in the order written. interfaces: each one's addresses. Raises ConfigError."""
        mistakes: list[Mistake] = []
        unwanted = set(_resolve(self.unwanted, interfaces, mistakes))
        found = [address for address in _resolve(self.wanted, interfaces, mistakes) if address not in unwanted]
        if not found and not mistakes:
            first = self.wanted[0]
            mistakes.append(Mistake(first.file, first.line, "bind leaves no address", "at least one"))
        if mistakes:
            raise ConfigError(mistakes)
        return found


@dataclass(frozen=True, slots=True)
class Options:
    """All `bind` directives of a server block."""

    binds: tuple[Bind, ...]

    @property
    def names_interfaces(self) -> bool:
        """Whether it takes the machine's interfaces to know the addresses."""
        targets = (target for bind in self.binds for target in (*bind.wanted, *bind.unwanted))
        return any(values.ip_address(target.text) is None for target in targets)

    def addresses(self, interfaces: Interfaces) -> tuple[str, ...]:
        """The addresses to listen on, without duplicates. Raises ConfigError, for an unknown interface for example.

        interfaces: each one's addresses, as `interface_addresses` gives them. Link-local IPv6 addresses have their
        zone (`fe80::1%eth0`).
        """
        return tuple(dict.fromkeys(address for bind in self.binds for address in bind.addresses(interfaces)))


def parse(directive: Directive, _block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    wanted = _targets(reader, directive, "bind ADDRESS|INTERFACE...")
    unwanted: list[Token] = []

    def read_except(item: Directive) -> None:
        unwanted.extend(_targets(reader, item, "except ADDRESS|INTERFACE..."))

    reader.options({"except": read_except})
    return Options((Bind(tuple(wanted), tuple(unwanted)),)) if reader.sound else None


def merge(found: Sequence[Options]) -> Options:
    """Several directives of one server block as one."""
    return Options(tuple(bind for options in found for bind in options.binds))


def _targets(reader: Reader, item: Directive, usage: str) -> list[Token]:
    found = []
    for token in reader.arguments(item, 1, None, usage):
        text = reader.value(token, _target)
        if text is not None:
            found.append(Token(text, token.file, token.line))
    return found


def _target(text: str) -> str:
    address = values.ip_address(text)
    if address is None and not _INTERFACE.fullmatch(text):
        problem = f"{values.shown(text)} is neither an address nor an interface"
        raise ConfigValueError(problem, "an IPv4 or IPv6 address without port, or an interface's name")
    return address or text


def _resolve(targets: Iterable[Token], interfaces: Interfaces, mistakes: list[Mistake]) -> Iterator[str]:
    for target in targets:
        if target.text in interfaces:
            yield from interfaces[target.text]
        elif values.ip_address(target.text) is not None:
            yield target.text
        else:
            message = f"bind: this machine has no interface {values.shown(target.text)}"
            accepted = values.choices(target.text, interfaces) or "an address"
            mistakes.append(Mistake(target.file, target.line, message, accepted))


def conflicts(blocks: Iterable[ServerConfig], interfaces: Interfaces | None = None) -> list[Mistake]:
    """Zones that two server blocks, or one twice, would serve at one port and address, unless `view` tells them apart.

    interfaces: None to compare interfaces by their names. A server block without `bind` is at every address; one whose
    `bind` or `view` has a mistake is left out.
    """
    mistakes = []
    taken: dict[tuple[str, str, int], dict[str, list[_Taken]]] = {}
    for block in blocks:
        if any(name in block.plugins and block.plugins[name] is None for name in (NAME, view.NAME)):
            continue
        where = hosts(block, interfaces)
        for key in block.keys:
            known = taken.setdefault((key.scheme, key.zone, key.port), {})
            own = _Taken(key.token, block.plugins.get(view.NAME))
            other = _other(where, known, own)
            if other is None:
                for host in where:
                    known.setdefault(host, []).append(own)
            else:
                mistakes.append(_conflict(key, own, other))
    return mistakes


class _Taken(NamedTuple):
    """A server block at an address. view: None if it takes every query."""

    token: Token
    view: view.Options | None


def hosts(block: ServerConfig, interfaces: Interfaces | None) -> tuple[str, ...]:
    """Where a server block listens, "" for everywhere. interfaces: as for `conflicts`."""
    options = block.plugins.get(NAME)
    if not isinstance(options, Options):
        return ("",)
    if interfaces is not None:
        return options.addresses(interfaces)
    return tuple(token.text for bind in options.binds for token in bind.wanted)


def _other(hosts: tuple[str, ...], known: Mapping[str, list[_Taken]], own: _Taken) -> _Taken | None:
    """Who is already at one of these hosts and leaves nothing to take; the host "" is everywhere."""
    for host, before in known.items():
        if host not in hosts and "" in (host, *hosts):
            return before[0]
        for other in before if host in hosts else ():
            if other.view is None or (own.view is not None and own.view.name == other.view.name):
                return other
    return None


def _conflict(key: ServerKey, own: _Taken, other: _Taken) -> Mistake:
    where = f"{other.token.file}:{other.token.line}"
    message = f"{key.scheme}://{key.zone}:{key.port} is served already, by {where}"
    accepted = "another zone or port, or bind with different addresses"
    if own.view is not None and other.view is not None:
        message += f", with view {values.shown(other.view.name)}"
        accepted = "views of different names, in server blocks with the same addresses"
    elif own.view is not None:
        message += ", which takes every query"
        accepted = "this server block in front of that one"
    return Mistake(key.token.file, key.token.line, message, accepted)


def interface_addresses() -> dict[str, tuple[str, ...]]:
    """Every interface of the machine with its IPv4 and IPv6 addresses. Link-local IPv6 addresses have their zone."""
    import psutil

    families = (socket.AF_INET, socket.AF_INET6)
    return {
        name: tuple(item.address for item in items if item.family in families)
        for name, items in psutil.net_if_addrs().items()
    }
