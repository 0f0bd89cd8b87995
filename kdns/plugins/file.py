"""file: zones from master files.

## Name

*file* - answers for zones whose records are in a master file (RFC 1035 5).

## Description

All types of records, `$ORIGIN`, `$TTL`, `$INCLUDE` and `$GENERATE` (of any type) are read. Paths of `$INCLUDE` start at
the folder of **DBFILE**. Records that are not in the zone are left out; the log says so. What is no file (a device, a
pipe) is a mistake, and so are more than ten million records.

Wildcards, delegations, aliases (CNAME and DNAME) and denials are answered as an authoritative server does. A name in
none of the zones goes to the next plugin, and is REFUSED if there is none. Where an alias leads out of the zones, the
rest is what this very server answers for its target, by *forward* for example; if that fails, the answer is SERVFAIL. A
zone that is signed with NSEC has its signatures and proofs for clients that ask for them; to sign it, and to sign it
again in time, is left to others.

A zone without wildcards, delegations, DNAMEs and signatures costs least: most questions for its names are answered from
the zone store at once, as those of *kubernetes* are, unless a directive in front of *file* has to see them.

The file is read again when it has changed and its SOA has another serial. Only names that differ are written, and only
answers that were made of them are forgotten. If a file has changed and its serial has not, the log says so, and the
zone stays as it is. The same goes for a file that is gone or has a mistake: file and line are in the log, the zone is
served as it was. That holds across a restart too, since records are kept in the state directory.

A file that has a mistake when its zone is new keeps the server from starting, or a new Corefile from being taken. One
that is not there does not: until it comes, names of its zones are SERVFAIL.

## Syntax

```
file DBFILE [ZONES...] {
    reload DURATION
    reload_by_mtime
    fallthrough [ZONES...]
    upstream
}
```

* **DBFILE**: the master file; a relative path starts at *root*'s directory.
* **ZONES**: what the file is read for; default: the zones of the server block. Of several, each is read from the whole
  file, with that zone as the origin at its beginning. *file* may be repeated in a server block.
* `reload` **DURATION**: how often to look whether the file has changed. Default: 1m; 0s for never.
* `fallthrough` **[ZONES...]**: a name that does not exist is passed to the next plugin; only in these zones if any are
  given.
* `reload_by_mtime`: a file that has changed is read again even if its serial has not. It is so without this option too.
* `upstream`: what an alias leads to is asked of this server. It is so without this option too, which older Corefiles
  have.

## Metrics

* `kdns_zone_files_unusable{}`: files of *file* and *auto* that cannot be used, or are not there; of each zone the
  records that were read last are served.

## Examples

The zone of a file, which other zones are beside:

```corefile
shop.example {
    file zones/example/shop.example
}
. {
    forward . 192.0.2.53
}
```

Two zones below `/etc/kdns/zones`, of which one lets go of what it does not have:

```corefile
.:53 {
    root /etc/kdns/zones
    file db.example.org example.org {
        reload 10s
    }
    file db.10 10.0.0.0/8 {
        fallthrough
    }
    forward . /etc/resolv.conf
}
```

## Differences from CoreDNS

An answer has no NS records in its authority section, unless it is a referral. The TTL of a denial's SOA record is at
most its minimum (RFC 2308). A wildcard is never used past a name that exists, be it without records (RFC 4592). A name
that only exists because of others below it does not fall through. An alias that leads below a cut is answered with the
referral. An alias whose target cannot be resolved is SERVFAIL, without the alias. A query for ANY over UDP gets a
minimal answer (RFC 8482). Records from before a restart are served where the file is missing or has a mistake; CoreDNS
does not start with a mistake, and has no data without the file. A file that is there and cannot be opened is a mistake.
Files with CNAME beside other records, several SOA records, or strings without an end are refused, and so are those
whose SOA record is not at the zone's apex; CoreDNS takes some of them. Referrals have DS records where the zone is
signed; CoreDNS gives them in others too. Records outside of the zone are left out. Paths of `$INCLUDE` in an included
file start at the folder of the zone's file, and not at that of the included one. `fallthrough` is for the zones of its
own directive; CoreDNS takes the last one for all directives of the server block. A file that has changed is read again
whatever its serial is: CoreDNS does so with `reload_by_mtime` alone. Two files for one zone in a server block are
refused. Addresses behind `upstream` are refused; CoreDNS does not use them.

## See also

*auto*, *root*, *hosts*, *forward*, *loadbalance*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock, ServerConfig
from kdns.corefile.options import Reader
from kdns.errors import ConfigValueError, Mistake
from kdns.plugins import root
from kdns.plugins.zones import Source, source_id

NAME = "file"
RELOAD = 60.0


@dataclass(frozen=True, slots=True)
class File:
    """One directive.

    path: resolved against `root`. zones, fallthrough: lower case with their last dot. reload: seconds; 0 for never.
    """

    path: str
    zones: tuple[str, ...]
    reload: float = RELOAD
    fallthrough: tuple[str, ...] = ()

    def source(self, block: ServerConfig) -> str:
        """What its zones are kept under."""
        return source_id(NAME, block, (*self.zones, self.path))


@dataclass(frozen=True, slots=True)
class Options:
    """All directives of a server block."""

    files: tuple[File, ...]

    def sources(self, block: ServerConfig) -> tuple[Source, ...]:
        """Where the zones are in the store."""
        return tuple(Source(each.source(block), fallthrough=each.fallthrough) for each in self.files)


def parse(directive: Directive, block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    args = reader.arguments(directive, 1, None, "file DBFILE [ZONES...]")
    if args and not args[0].text:
        reader.refuse(args[0], "file has an empty path", "file DBFILE [ZONES...]")
    zones = _zones(directive, block)
    for zone in reader.zones(args[1:]) or zones:
        if zone in _before(directive, block):
            reader.refuse(directive.name, f"file: the zone {zone} has another file in this server block", "one of them")
    settings = read_block(reader, {"reload_by_mtime": lambda item: reader.arguments(item, 0, 0, "reload_by_mtime")})
    if not reader.sound:
        return None
    path = str(root.directory(block) / args[0].text)
    return Options((File(path, zones, settings.reload, settings.fallthrough),))


def merge(found: Iterable[Options]) -> Options:
    """The directives of a server block together."""
    return Options(tuple(file for options in found for file in options.files))


@dataclass(slots=True)
class Settings:
    """What *file* and *auto* both have. The names are those of File."""

    reload: float = RELOAD
    fallthrough: tuple[str, ...] = ()


def read_block(reader: Reader, more: Mapping[str, Callable[[Directive], object]]) -> Settings:
    """Read the block. more: readers of further options."""
    settings = Settings()

    def reload(item: Directive) -> None:
        settings.reload = reader.one(item, values.duration, "reload DURATION") or 0.0

    def fallthrough(item: Directive) -> None:
        settings.fallthrough = reader.zones(item.args) if item.args else (".",)

    def upstream(item: Directive) -> None:
        reader.arguments(item, 0, 0, "upstream")

    reader.options({"reload": reload, "fallthrough": fallthrough, "upstream": upstream, **more})
    return settings


def _zones(directive: Directive, block: ServerBlock) -> tuple[str, ...]:
    """The zones of a directive, as far as they are zones."""
    found: dict[str, None] = {}
    for token in directive.args[1:]:
        try:
            found |= dict.fromkeys(values.zones(token.text))
        except ConfigValueError:
            continue
    return tuple(found) or tuple(dict.fromkeys(key.zone for key in block.keys))


def _before(directive: Directive, block: ServerBlock) -> set[str]:
    """The zones of the directives of this kind that are above it in the server block."""
    above = block.directives[: block.directives.index(directive)]
    return {zone for other in above if other.name.text == NAME for zone in _zones(other, block)}
