"""secondary: zones that other servers give us copies of.

## Name

*secondary* - answers from copies of zones, which it keeps up to date.

## Description

A copy is fetched from the first primary that gives it (AXFR over TCP), and is kept in the zone store: after a restart
it is served at once. From then on the primaries are asked every so often whether there is a newer one, as the zone's
SOA record says: after *refresh* seconds, and after *retry* seconds when none has answered. What has changed is fetched
as a difference (IXFR), or as the whole zone where that is not to be had. A NOTIFY from the address of a primary makes
us ask that one at once.

Where the primary is a kdns, zones are followed: one TCP connection is kept for all zones of the directive, on which the
primary says that a zone has changed, and the difference is asked for at once, up to 50 times a second. Nothing has to
be sent to us, so that a primary may be behind a Service and need not know who has copies. After 5 seconds of silence we
ask whether there is anything new. When the connection has ended, copies stay as they are, and there is another one
within a second, or while that fails, every 10 seconds or so. A zone that the primary gives no more is asked for as
seldom, and when the connection has ended: so a kdns begins with another configuration. Zones of one kdns have other
serials than those of another, as they come from another zone store: it says which one it is, and a copy of another one
is fetched as a whole.

A kdns that is behind the one that was followed before, such as one that has lost the API server, knows that from the
resourceVersion of our copy, and refuses: an old answer after a new one is worse than a copy that stays as it is. It is
asked again on other connections, which a Service may lead elsewhere. After ten minutes without an answer what there is
is taken, as resourceVersions may have begun anew. One that loses the API server while zones are followed there is not
left: its own metrics tell of that.

A transfer is written in one transaction: whoever asks gets the old zone or the new one. Records that are not in the
zone are left out. A zone of more than 64 MiB (256 MiB where names are in full, or a tenth of the memory limit), one
that no master file could have, or one whose transfer takes more than ten minutes is not taken, and the log says so.

When no primary has answered for *expire* seconds, but two at least, the zone is SERVFAIL until one does. The time
counts on while the server does not run, and for a zone that a primary gives no more while others are followed there.

It answers as *file* does. With *transfer* in the same server block others can have copies of the copy.

## Syntax

```
secondary [ZONES...] {
    transfer from ADDRESS...
    key NAME
    fallback
    fallthrough [ZONES...]
}
```

* **ZONES**: the zones; default: those of the server block.
* `transfer from`: the primaries, such as `192.0.2.1`, `192.0.2.1:5300`, `2001:db8::1` or `[2001:db8::1]:5300`; default
  port: 53. They are asked in this order. It may be given several times.
* `key`: a key of *tsig* in the same server block, with which what we ask is signed, and the answers have to be; by
  hmac-sha256, unless *tsig* says that the key is for another algorithm.
* `fallback`: as long as there is no copy of a zone, or it is too old, its names are passed on to the next plugin, in
  place of SERVFAIL. What *cache* keeps of such answers is forgotten when the copy is there.
* `fallthrough`: what does not exist in a zone is passed on to the next plugin; with **ZONES** only for names in these.

## Metrics

* `kdns_secondary_transfers_total{zone, result}`: "axfr", "ixfr", "current" (there was nothing newer), "failed".
* `kdns_secondary_expired{zone}`: 1 while a zone is too old to be served.
* `kdns_secondary_age_seconds{zone}`: since a copy was last known to be what a primary has: it has answered, or for a
  zone that is followed, has been heard on the connection.

## Examples

```corefile
example.org:53 {
    secondary {
        transfer from 10.0.1.1 10.1.2.1
    }
}
```

The zones of a cluster, followed by a server that asks the cluster DNS itself as long as it has no copy:

```corefile
cluster.local:53 {
    errors
    cache 30
    secondary {
        transfer from 10.96.0.10
        fallback
    }
    forward . 10.96.0.10 {
        force_tcp
    }
}
```

With signatures, and given on to others:

```corefile
example.net:53 {
    tsig {
        secret transfer.example.net. NoTCJU+DMqFWywaPyxSijrDEA/eC3nK0xi3AMEZuPVk=
    }
    secondary {
        transfer from 10.1.2.1
        key transfer.example.net.
    }
    transfer {
        to *
    }
}
```

## Differences from CoreDNS

Copies are kept over a restart, and changes are fetched as differences: CoreDNS fetches the whole zone each time, and
at each start. Zones of a kdns are followed on a connection. `key` and `fallback` are new. The time until a copy expires
begins with the last answer of a primary. A NOTIFY from others than the primaries is REFUSED. `catalog` is not
supported: each zone is written in the Corefile.

## See also

*transfer*, *tsig*, *file*; RFC 1995, RFC 1996, RFC 5936.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock, ServerConfig
from kdns.corefile.lexer import Token
from kdns.corefile.options import Reader
from kdns.errors import ConfigValueError, DomainNameError, Mistake
from kdns.plugins import tsig
from kdns.plugins.networks import packed
from kdns.plugins.transfer import address_port
from kdns.plugins.zones import Source, source_id
from kdns.wire import names, rr
from kdns.wire.message import Query
from kdns.wire.tsig import NOTAUTH, Key

NAME = "secondary"


@dataclass(frozen=True, slots=True)
class Copy:
    """A directive. zones, fallthrough: lower case with their last dot. primaries: addresses and ports. key: a name in
    wire format, at: where it stands."""

    zones: tuple[str, ...]
    primaries: tuple[tuple[str, int], ...]
    key: bytes | None = None
    fallback: bool = False
    fallthrough: tuple[str, ...] = ()
    at: Token = field(default=Token("key", "", 0), compare=False)

    def source(self, block: ServerConfig) -> str:
        """What its zones are kept under."""
        return source_id(NAME, block, self.zones)

    def origins(self) -> list[bytes]:
        """The zones in wire format."""
        return [names.lower(names.from_text(zone)) for zone in self.zones]


@dataclass(frozen=True, slots=True)
class Options:
    """The directives of a server block."""

    copies: tuple[Copy, ...]

    def sources(self, block: ServerConfig) -> tuple[Source, ...]:
        """Where the zones are in the store."""
        return tuple(
            Source(copy.source(block), fallthrough=copy.fallthrough, fallback=copy.fallback) for copy in self.copies
        )


def parse(directive: Directive, block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    zones = reader.zones(directive.args) or tuple(dict.fromkeys(key.zone for key in block.keys))
    primaries: dict[tuple[str, int], None] = {}
    copy = Copy(zones, ())

    def transfer(item: Directive) -> None:
        args = reader.arguments(item, 2, None, "transfer from ADDRESS...")
        if args and args[0].text != "from":
            reader.refuse(args[0], f"secondary: {values.shown(args[0].text)} is not from", "transfer from ADDRESS...")
            return
        for token in args[1:]:
            address = reader.value(token, address_port)
            if address is not None:
                primaries[address] = None

    def key(item: Directive) -> None:
        nonlocal copy
        name = reader.one(item, _name, "key NAME")
        copy = replace(copy, key=name, at=item.name)

    def fallback(item: Directive) -> None:
        nonlocal copy
        reader.arguments(item, 0, 0, "fallback")
        copy = replace(copy, fallback=True)

    def fallthrough(item: Directive) -> None:
        nonlocal copy
        copy = replace(copy, fallthrough=reader.zones(item.args) if item.args else (".",))

    known = {"transfer": transfer, "key": key, "fallback": fallback, "fallthrough": fallthrough}
    reader.options(known, ("catalog",), ("transfer",))
    if reader.sound and not primaries:
        reader.refuse(directive.name, "secondary has no `transfer from`", "transfer from ADDRESS...")
    for zone in zones:
        if zone in _before(directive, block):
            reader.refuse(directive.name, f"secondary: the zone {zone} is given twice", "one directive for it")
    if not reader.sound:
        return None
    return Options((replace(copy, primaries=tuple(primaries)),))


def merge(found: Sequence[Options]) -> Options:
    """Several directives of one server block as one."""
    return Options(tuple(copy for options in found for copy in options.copies))


def _before(directive: Directive, block: ServerBlock) -> set[str]:
    """The zones of the directives of a server block in front of this one."""
    found: set[str] = set()
    for other in block.directives:
        if other is directive:
            break
        if other.name.text == NAME:
            found |= set(Reader(other, []).zones(other.args)) or {key.zone for key in block.keys}
    return found


def _name(text: str) -> bytes:
    try:
        return names.lower(names.from_text(text))
    except (DomainNameError, UnicodeEncodeError):
        raise ConfigValueError(f"{values.shown(text)} is no name of a key", "a key of tsig") from None


def conflicts(blocks: Iterable[ServerConfig]) -> list[Mistake]:
    """Keys that no `tsig` of their server block has."""
    return [mistake for block in blocks for mistake in _lacking(block)]


def _lacking(block: ServerConfig) -> Iterator[Mistake]:
    options, keys = block.plugins.get(NAME), block.plugins.get(tsig.NAME)
    if options is None or (keys is None and tsig.NAME in block.plugins):
        return
    for copy in options.copies:
        if copy.key is not None and key_of(copy, block) is None:
            text = f"secondary: this server block has no key {values.shown(names.to_text(copy.key))}"
            yield Mistake(copy.at.file, copy.at.line, text, "a key of tsig in the same server block")


def key_of(copy: Copy, block: ServerConfig) -> Key | None:
    """The key that a directive names."""
    options = block.plugins.get(tsig.NAME)
    return next((key for key in options.keys if key.name == copy.key), None) if options is not None else None


class Notified:
    """Takes NOTIFYs for the zones of some server blocks (RFC 1996), and tells of those that are of a primary."""

    def __init__(self, blocks: Iterable[ServerConfig], tell: Callable[[bytes, str], None]) -> None:
        """tell: called in any thread, with the zone and the primary's address."""
        self._tell = tell
        self._primaries: dict[bytes, set[bytes]] = {}
        for block in blocks:
            for copy in block.plugins[NAME].copies if NAME in block.plugins else ():
                for origin in copy.origins():
                    hosts = {packed(host) for host, _ in copy.primaries}
                    self._primaries.setdefault(origin, set()).update(hosts)

    def __bool__(self) -> bool:
        return bool(self._primaries)

    def take(self, query: Query) -> int:
        """The response code for a NOTIFY; somebody is told if it is a good one."""
        primaries = self._primaries.get(query.lname)
        if primaries is None or query.klass != rr.IN or query.type != rr.SOA:
            return NOTAUTH
        if query.signed is not None and query.signed.error:
            return NOTAUTH
        if packed(query.client[0]) not in primaries:
            return rr.REFUSED
        self._tell(query.lname, query.client[0])
        return rr.NOERROR
