"""loadbalance: which address comes first in an answer.

## Name

*loadbalance* - lets address records take turns at the first place, by weights, or those of some networks first.

## Description

Clients mostly connect to the first address of an answer. With `round_robin`, of several A or AAAA records of a name
each one comes first in turn, also in answers from the packet cache.

With `weighted`, chance decides anew for each query which address comes first, by the weights that a file gives to the
addresses of a name; an address that it does not mention has the weight 1. Names that are not in the file take turns.

With `prefer`, addresses in the first network come before those in the second one, and so on, and all others behind; the
order of those in the same network is random, or by weights.

The answer and the additional section are arranged so, the latter for SRV queries.

## Syntax

```
loadbalance [round_robin|weighted WEIGHTFILE] {
    reload DURATION
    prefer CIDR...
}
```

* `round_robin` is the default.
* `weighted` **WEIGHTFILE**: a relative path starts at the directory that *root* names. The file has a name in a line of
  its own, and behind it lines with an address of that name and its weight, from 1 to 255. Empty lines, and those that
  begin with `#`, mean nothing. If it is not there, all names take turns until it is.
* `reload` **DURATION**: how often the file is looked at; a file with a mistake leaves the weights as they were.
  Default: 30s. 0: never. Only with `weighted`.
* `prefer` **CIDR...**: networks, or addresses. It may be repeated.

Answers in whose order chance has a part are not kept in the packet cache; nor are, with `weighted`, those with more
than one address.

## Metrics

None of its own.

## Examples

```corefile
.:53 {
    loadbalance
    whoami
}
```

```corefile
.:53 {
    loadbalance round_robin {
        prefer 10.9.20.0/24 2001:db8:20::/64
    }
    forward . 192.0.2.53
}
```

```corefile
.:53 {
    root /etc/kdns
    loadbalance weighted weights {
        reload 10s
    }
    forward . 192.0.2.53
}
```

with /etc/kdns/weights, which gives the first address three queries of four:

```
www.example.org
192.0.2.1 3
192.0.2.2 1
```

## Differences from CoreDNS

CoreDNS shuffles, also MX records; kdns rotates, and addresses only. Records that are no addresses keep their places.
With `weighted`, names in the file are compared without case. `prefer` may be given with `weighted` too.

## See also

*kubernetes*, *forward*, *root*.
"""

from __future__ import annotations

import asyncio
import errno
import random
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.options import Reader
from kdns.errors import ConfigError, ConfigValueError, DomainNameError, Mistake
from kdns.plugins import root
from kdns.plugins.chain import Next
from kdns.plugins.networks import Networks, packed
from kdns.plugins.site import Site
from kdns.wire import message, names, rr
from kdns.wire.message import Query, Response
from kdns.wire.rrset import RRset, apart, together

NAME = "loadbalance"
SITED = True
ROUND_ROBIN, WEIGHTED = "round_robin", "weighted"
RELOAD = 30.0
HEAVIEST = 255

_ADDRESSES = (rr.A, rr.AAAA)
_USAGE = "loadbalance [round_robin|weighted WEIGHTFILE]"
Weights: TypeAlias = Mapping[bytes, Mapping[bytes, int]]
"""By name (lower case) and address (4 or 16 bytes)."""
Records: TypeAlias = list[tuple[bytes, RRset]]


@dataclass(frozen=True, slots=True)
class Options:
    """weights: the file's path, "" with round_robin. reload: seconds, 0 for never. prefer: in CIDR notation."""

    weights: str = ""
    reload: float = RELOAD
    prefer: tuple[str, ...] = ()


def parse(directive: Directive, block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake. A file of weights is read too, if it is there."""
    reader = Reader(directive, mistakes)
    path = _weights(reader, block)
    seconds: float | None = RELOAD
    prefer: list[str | None] = []

    def reload(item: Directive) -> None:
        nonlocal seconds
        if not path and reader.sound:
            reader.refuse(item.name, 'loadbalance: "reload" is only for weighted', _USAGE)
        seconds = reader.one(item, values.duration, "reload DURATION")

    def read_prefer(item: Directive) -> None:
        args = reader.arguments(item, 1, None, "prefer CIDR...")
        prefer.extend(reader.value(token, values.network) for token in args)

    reader.options({"reload": reload, "prefer": read_prefer}, repeatable=("prefer",))
    if path and reader.sound:
        _check(Path(path), seconds, reader)
    if seconds is None or not reader.sound:
        return None
    return Options(path, seconds, tuple(network for network in prefer if network is not None))


def _weights(reader: Reader, block: ServerBlock) -> str:
    """The path of the file with weights, "" for round_robin."""
    directive = reader.directive
    args = reader.arguments(directive, 0, 2, _USAGE)
    policy = reader.value(args[0], lambda text: values.choice(text, (ROUND_ROBIN, WEIGHTED))) if args else ROUND_ROBIN
    if policy == WEIGHTED and (len(args) < 2 or not args[1].text):
        reader.refuse(directive.name, "loadbalance weighted has no file", _USAGE)
    elif policy == ROUND_ROBIN and len(args) > 1:
        reader.refuse(directive.name, "loadbalance round_robin has 1 argument", _USAGE)
    elif policy == WEIGHTED:
        return str(root.directory(block) / args[1].text)
    return ""


def _check(path: Path, reload: float | None, reader: Reader) -> None:
    """Note the mistakes in a file of weights; that it is not there is one only if it is never looked at again."""
    try:
        read(path)
    except ConfigError as error:
        reader.mistakes.extend(error.mistakes)
    except OSError as error:
        if not reload:
            problem = f"loadbalance: {values.shown(str(path))} cannot be read: {error.strerror}"
            reader.refuse(reader.directive.name, problem, "a file, or reload")


def read(path: Path) -> Weights:
    """The weights in a file. Raises OSError, and ConfigError with every mistake."""
    found: dict[bytes, dict[bytes, int]] = {}
    mistakes: list[Mistake] = []
    name: bytes | None = None
    if "\0" in str(path) or not stat.S_ISREG(path.stat().st_mode):  # it may never end
        raise OSError(errno.EINVAL, "not a file")
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            if len(words) == 1:
                name = _name(words[0])
                found.setdefault(name, {})
            elif len(words) > 2:
                raise ConfigValueError(f"{len(words)} words in a line", "a name, or an address and its weight")
            elif name is None:
                raise ConfigValueError(f"{values.shown(words[0])} has no name in front of it", "a name, then addresses")
            else:
                found[name].setdefault(_address(words[0]), values.integer(words[1], 1, HEAVIEST))
        except ConfigValueError as error:
            mistakes.append(Mistake(str(path), number, error.message, error.accepted))
    if mistakes:
        raise ConfigError(mistakes)
    return found


def _name(text: str) -> bytes:
    accepted = "a name such as www.example.org, and its addresses with their weights behind it"
    if values.ip_address(text) is not None:
        raise ConfigValueError(f"the address {text} has no weight", accepted)
    try:
        return names.lower(names.from_text(text))
    except DomainNameError as error:
        raise ConfigValueError(str(error), accepted) from None


def _address(text: str) -> bytes:
    if values.ip_address(text) is None:
        raise ConfigValueError(f"{values.shown(text)} is no address", "an IPv4 or IPv6 address and its weight")
    return packed(text)


class Handler:
    """Arranges the address records of every response."""

    def __init__(self, options: Options, site: Site) -> None:
        self.options = options
        self._path = Path(options.weights) if options.weights else None
        self._log = site.log.plugin(NAME)
        self._prefer = [Networks([network]) for network in options.prefer]
        self._weights: Weights = {}
        self._trouble = ""
        self.look()
        if self._path is not None and options.reload:
            site.background(self._watch())

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.options.reload)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Read the file of weights. If that cannot be done, what was there stays, and it is said once."""
        if self._path is None:
            return
        trouble = ""
        try:
            self._weights = read(self._path)
        except OSError as error:
            trouble = f"{self._path} cannot be read: {error.strerror}"
        except ConfigError as error:
            trouble = str(error.mistakes[0])
        if trouble and trouble != self._trouble:
            self._log.warning(trouble)
        self._trouble = trouble

    def passing(self, zone: bytes, server: str) -> tuple[int, ...]:
        """One record has no order."""
        return ()

    async def __call__(self, query: Query, next: Next) -> Response:
        """What the rest of the chain answers."""
        response = await next(query)
        if response.rcode == rr.NOERROR and (self._path is not None or self._prefer):
            arranged = self._arranged(query, response)
            if arranged is not None:
                return arranged
        response.rotate = True
        return response

    def _arranged(self, query: Query, response: Response) -> Response | None:
        """The response in the order that weights and networks want; None if they want none."""
        records = message.opened(response)
        sections = [records.answer, records.additional]
        weights = self._weights if query.type in (*_ADDRESSES, rr.SRV) else {}
        places = [_places(section) for section in sections]
        if self._path is not None and any(len(found) > 1 for found in places):
            response.cacheable = response.personal = False  # there may be other weights soon
        matters = any(
            any(owner in weights for owner, _ in found) or len({self._rank(rdata) for _, rdata in found}) > 1
            for found in places
            if len(found) > 1
        )
        if not matters:
            return None
        ranks = [[self._rank(rdata) for _, rdata in found] for found in places]
        is_fixed = self._path is None and all(len(set(found)) == len(found) for found in ranks)
        answer, additional = (self._order(section, weights) for section in sections)
        ordered = replace(records, answer=answer, additional=additional, rotate=False)
        ordered.cacheable &= is_fixed
        ordered.personal &= is_fixed
        return ordered

    def _order(self, section: Records, weights: Weights) -> Records:
        """A section with its addresses in an order of today; all else keeps its place."""
        single = list(apart(section))
        at = [index for index, (_, rrset) in enumerate(single) if rrset.type in _ADDRESSES]
        addresses = [single[index] for index in at]
        if any(owner in weights for owner, _ in addresses):
            top = random.choices(range(len(addresses)), [_weight(weights, *each) for each in addresses])[0]
            addresses[0], addresses[top] = addresses[top], addresses[0]
        else:
            random.shuffle(addresses)
        addresses.sort(key=lambda each: self._rank(each[1].rdatas[0]))
        for index, each in zip(at, addresses, strict=True):
            single[index] = each
        return together(single)

    def _rank(self, address: bytes) -> int:
        """The number of the first network that an address is in."""
        for number, network in enumerate(self._prefer):
            if network.has(address):
                return number
        return len(self._prefer)


def _places(section: Iterable[tuple[bytes, RRset]]) -> list[tuple[bytes, bytes]]:
    """The addresses of a section, with their owners."""
    return [(owner, rdata) for owner, rrset in section if rrset.type in _ADDRESSES for rdata in rrset.rdatas]


def _weight(weights: Weights, owner: bytes, rrset: RRset) -> int:
    return weights.get(owner, {}).get(rrset.rdatas[0], 1)
