"""hosts: names and addresses from a file such as /etc/hosts.

## Name

*hosts* - answers from a hosts file, and from lines of the Corefile that are written like one.

## Description

Each line is an address and the names that have it. A and AAAA queries for those names are answered, and PTR queries
for the addresses. A name that begins with `*.` stands for all names with one more label than the rest of it, unless
they have a line of their own; it has no PTR record.

A name that has addresses, but none of the type that was asked for, and every other type of record for it, is answered
with an empty answer section. A name that is not there is SERVFAIL, unless `fallthrough` says otherwise: a hosts file
has no SOA record, which NXDOMAIN would need. PTR queries for what is not there go to the next plugin always.

The file is looked at every few seconds, and read again when its time or size has changed. While it is missing or cannot
be read, what was in it last is answered; a line that makes no sense is left out. Both are said in the log.

## Syntax

```
hosts [FILE [ZONES...]] {
    ADDRESS NAMES...
    ttl SECONDS
    no_reverse
    reload DURATION
    fallthrough [ZONES...]
    fallthrough_unsupported
}
```

* **FILE**: default `/etc/hosts`; a relative path starts at *root*'s directory. It need not exist.
* **ZONES**: only names in these zones are taken from the file; default: the zones of the server block.
* **ADDRESS** **NAMES**: a line as in the file, any number of them. What the file says of the same name does not count.
* `ttl`: of all records, 1 to 65535; default 3600.
* `no_reverse`: no PTR records.
* `reload`: how often to look at the file; default 5s, 0s for never.
* `fallthrough`: names that are not there go to the next plugin; with **ZONES** only those in these zones.
* `fallthrough_unsupported`: so do queries for other types than A, AAAA and PTR, whether the name is there or not; only
  together with `fallthrough`, and in its zones.

## Metrics

* `coredns_hosts_entries{hostsfile}`: addresses of names, and names of addresses, of the file and the Corefile.
* `coredns_hosts_reload_timestamp_seconds{}`: modification time of the file that was read last, in seconds since 1970.
* `kdns_hosts_unreadable{hostsfile}`: 1 while the file cannot be read, so that its names are missing or old. A file that
  has never been there does not count if there are lines in the Corefile: they are often all that is wanted.

## Examples

```corefile
.:53 {
    hosts {
        10.0.0.1 example.org www.example.org
        fallthrough
    }
    whoami
}
```

```corefile
.:53 {
    root /etc/kdns
    hosts blocked example.org example.net {
        0.0.0.0 *.ads.example.net
        ttl 60
        reload 1m
        no_reverse
        fallthrough example.org
        fallthrough_unsupported
    }
    whoami
}
```

## Differences from CoreDNS

A name of the Corefile has the addresses from there and no others, as CoreDNS's manual has it; CoreDNS adds them to
those of the file. A name with a line of its own is never taken from one with `*.`, for no type (RFC 4592 2.2.1). The
same address twice at one name is one record. A line of the Corefile that is no address with names, or whose names are
in none of the zones, is refused; such lines may follow `fallthrough`.

## See also

*root*, *local*, hosts(5).
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.options import Reader
from kdns.errors import ConfigValueError, DomainNameError, Mistake
from kdns.observe.text import printable
from kdns.plugins import root
from kdns.plugins.chain import Next
from kdns.plugins.site import Site
from kdns.wire import names, rr
from kdns.wire.message import Query, Response
from kdns.wire.rrset import RRset

NAME = "hosts"
SITED = True
FILE = "/etc/hosts"
TTL = 3600
RELOAD = 5.0

_MAPPED = bytes(10) + b"\xff\xff"  # RFC 4291 2.5.5.2
_ANY_LABEL = b"\x01*"
_USUAL = re.compile(r"[a-z0-9_*-]{1,63}(\.[a-z0-9_*-]{1,63})*\.?")
_INLINE = "ADDRESS NAME..., "
Found = dict[bytes, list[bytes]]
"""Addresses (4 or 16 bytes, without duplicates) by name (lower case)."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the directive says.

    path: the file. zones, fallthrough: lower case with their last dot. lines: of the Corefile. ttl, reload: seconds;
    reload 0 for never.
    """

    path: str = FILE
    zones: tuple[str, ...] = (".",)
    lines: tuple[str, ...] = ()
    ttl: int = TTL
    reverse: bool = True
    reload: float = RELOAD
    fallthrough: tuple[str, ...] = ()
    fallthrough_unsupported: bool = False


def parse(directive: Directive, block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    file, *args = directive.args or (None,)
    if file is not None and not file.text:
        reader.refuse(file, "hosts has an empty path", "hosts [FILE [ZONES...]]")
    zones = reader.zones(token for token in args if token) or tuple(dict.fromkeys(key.zone for key in block.keys))
    settings: dict[str, object] = {"zones": zones, "path": str(root.directory(block) / (file.text if file else FILE))}
    lines: list[str] = []
    known = _readers(reader, settings)
    seen = set()

    def inline(item: Directive) -> None:
        line = " ".join([item.name.text, *(token.text for token in item.args)])
        reader.value(item.name, lambda _: _check(line, zones, known))
        lines.append(line)

    for item in directive.block or ():
        word = item.name.text
        if item.block is not None:
            reader.refuse(item.name, f"hosts: {values.shown(word)} has a block", f"{word} without braces")
        if word not in known:
            inline(item)
        elif word in seen:
            reader.refuse(item.name, f'hosts: "{word}" is given twice', "one of them")
        else:
            seen.add(word)
            known[word](item)
    if "fallthrough_unsupported" in seen and "fallthrough" not in seen:
        reader.refuse(directive.name, "hosts has fallthrough_unsupported without fallthrough", "both of them")
    return Options(lines=tuple(lines), **settings) if reader.sound else None  # type: ignore[arg-type]


def _readers(reader: Reader, settings: dict[str, object]) -> dict[str, Callable[[Directive], None]]:
    """Each option's reader, which notes a setting by its name in Options."""

    def ttl(item: Directive) -> None:
        settings["ttl"] = reader.one(item, lambda text: values.integer(text, 1, 65535), "ttl SECONDS")

    def no_reverse(item: Directive) -> None:
        reader.arguments(item, 0, 0, "no_reverse")
        settings["reverse"] = False

    def reload(item: Directive) -> None:
        settings["reload"] = reader.one(item, values.duration, "reload DURATION")

    def fallthrough(item: Directive) -> None:
        settings["fallthrough"] = reader.zones(item.args) if item.args else (".",)

    def fallthrough_unsupported(item: Directive) -> None:
        reader.arguments(item, 0, 0, "fallthrough_unsupported")
        settings["fallthrough_unsupported"] = True

    readers = (ttl, no_reverse, reload, fallthrough, fallthrough_unsupported)
    return {read.__name__: read for read in readers}


def _check(line: str, zones: Iterable[str], known: Iterable[str]) -> None:
    """Raise ConfigValueError for a line of the Corefile that is not one of a hosts file."""
    address, *written = line.partition("#")[0].split() or [""]
    if _address(address) is None:
        raise ConfigValueError(
            f"{values.shown(address)} is neither an address nor an option", _INLINE + values.choices(address, known)
        )
    if not written:
        raise ConfigValueError(f"{address} has no name behind it", "ADDRESS NAME...")
    ours = names.zone_set(zones)
    for text in written:
        name = _name(text)
        if name is None:
            raise ConfigValueError(f"{values.shown(text)} is no name", "a name such as www.example.org")
        if ours.find(name) is None:
            raise ConfigValueError(f"{values.shown(text)} is in none of the zones", f"a name in {', '.join(zones)}")


def _address(text: str) -> bytes | None:
    """An address, with or without a zone (`fe80::1%eth0`), as rdata; IPv4 within IPv6 is IPv4."""
    try:
        rdata = rr.address(text.partition("%")[0])
    except (OSError, ValueError):
        return None
    return rdata.removeprefix(_MAPPED) if len(rdata) == 16 else rdata


def _name(text: str) -> bytes | None:
    """A name in lower case, None for what is none."""
    lower = text.lower()
    try:
        if _USUAL.fullmatch(lower):
            return names.join(lower.removesuffix(".").encode().split(b"."))
        return names.lower(names.from_text(text)) if text.isascii() and text.isprintable() else None
    except DomainNameError:
        return None


def read(lines: Iterable[str], zones: names.Zones[bool]) -> tuple[Found, list[int]]:
    """Read lines of a hosts file; names in none of the zones are left out.

    Returns the addresses by name, and the numbers of the lines that make no sense, from 1.
    """
    found: Found = {}
    strange = []
    known: dict[str, bytes | None] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        text = words[0]
        address = known[text] if text in known else known.setdefault(text, _address(text))
        named = [_name(word) for word in words[1:]]
        if address is None or not named or None in named:
            strange.append(number)
        if address is None:
            continue
        for name in named:
            if name is not None and zones.find(name):
                addresses = found.setdefault(name, [])
                if address not in addresses:
                    addresses.append(address)
    return found, strange


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """What is answered. hosts: RRsets of a name, `*` in front for any one label. pointers: PTR by reverse name."""

    hosts: Mapping[bytes, tuple[RRset, ...]] = field(default_factory=dict)
    pointers: Mapping[bytes, RRset] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Found, ttl: int, *, reverse: bool) -> Table:
        """Make the records. Names with the same addresses share them, as there may be very many."""
        shared: dict[tuple[bytes, ...], tuple[RRset, ...]] = {}
        hosts = {}
        named: dict[bytes, dict[bytes, None]] = {}
        for name, addresses in found.items():
            key = tuple(addresses)
            if key not in shared:
                shared[key] = _rrsets(key, ttl)
            hosts[name] = shared[key]
            if reverse and not name.startswith(_ANY_LABEL):
                for address in addresses:
                    named.setdefault(address, {})[name] = None
        pointers = {names.reverse(rr.address_text(a)): RRset(rr.PTR, ttl, tuple(by)) for a, by in named.items()}
        return cls(hosts, pointers)

    def find(self, name: bytes) -> tuple[RRset, ...]:
        """The RRsets of a name (lower case), none if it is not there."""
        found = self.hosts.get(name)
        if found is None and name != names.ROOT:
            found = self.hosts.get(_ANY_LABEL + names.parent(name))
        return found or ()

    def entries(self) -> int:
        """How many records there are."""
        count = sum(len(rrset.rdatas) for rrsets in self.hosts.values() for rrset in rrsets)
        return count + sum(len(rrset.rdatas) for rrset in self.pointers.values())


def _rrsets(addresses: Iterable[bytes], ttl: int) -> tuple[RRset, ...]:
    by_type: dict[int, list[bytes]] = {}
    for address in addresses:
        by_type.setdefault(rr.address_type(address), []).append(address)
    return tuple(RRset(rtype, ttl, tuple(rdatas)) for rtype, rdatas in by_type.items())


class Handler:
    """Answers from a table that is exchanged as a whole."""

    def __init__(self, options: Options, site: Site) -> None:
        self._options = options
        self._site = site
        self._log = site.log.plugin(NAME)
        self._zones = names.zone_set(options.zones)
        self._fall = names.zone_set(options.fallthrough)
        self._inline, _ = read(options.lines, self._zones)
        self._seen: tuple[int, int, int] | None = None
        self._trouble = ""
        self._take({})
        self.look()
        if options.reload:
            site.background(self._watch())

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._options.reload)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Read the file if it has changed. If that cannot be done, what was there stays, and it is said once."""
        path = Path(self._options.path)
        try:
            seen = _version(path.stat())
            if seen == self._seen:
                self._find("")
                return
            with path.open(encoding="utf-8", errors="replace") as file:
                status = os.fstat(file.fileno())
                found, strange = read(file, self._zones)
        except (OSError, ValueError) as error:
            trouble = getattr(error, "strerror", None) or str(error)
            if trouble != self._trouble:
                self._log.warning(f"{path} cannot be read: {trouble}")
            self._find(trouble)
            return
        self._find("")
        self._seen = _version(status)
        if strange:
            self._log.warning(f"{path}: {len(strange)} lines make no sense and are left out, the first is {strange[0]}")
        self._take(found)
        self._site.region.set(("shared", "coredns_hosts_reload_timestamp_seconds"), max(0, int(status.st_mtime)))

    def _find(self, trouble: str) -> None:
        """Keep in mind why the file cannot be read, "" if it can be."""
        self._trouble = trouble
        missed = bool(trouble) and (self._seen is not None or not self._options.lines)
        self._site.region.set(("shared", "kdns_hosts_unreadable", "hostsfile", printable(self._options.path)), missed)

    def _take(self, found: Found) -> None:
        """Answer what the file says from now on, and what the Corefile says."""
        self._table = Table.of(found | self._inline, self._options.ttl, reverse=self._options.reverse)
        key = ("shared", "coredns_hosts_entries", "hostsfile", printable(self._options.path))
        self._site.region.set(key, self._table.entries())

    async def __call__(self, query: Query, next: Next) -> Response:
        """What the table says, or what the rest of the chain answers."""
        name = query.lname
        table = self._table
        if query.type == rr.PTR:
            pointer = table.pointers.get(name)
            return await next(query) if pointer is None else _answer(name, pointer)
        if not self._zones.find(name):
            return await next(query)
        found = table.find(name)
        if query.type in (rr.A, rr.AAAA):
            for rrset in found:
                if rrset.type == query.type:
                    return _answer(name, rrset)
        elif self._options.fallthrough_unsupported and self._fall.find(name):
            return await next(query)
        if found:
            return Response(authoritative=True, plugin=NAME)
        if self._fall.find(name):
            return await next(query)
        return Response(rcode=rr.SERVFAIL, plugin=NAME)


def _version(status: os.stat_result) -> tuple[int, int, int]:
    """What is different when a file is. Raises ValueError for what is no file: it may never end, or never begin."""
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a file")
    return status.st_mtime_ns, status.st_size, status.st_ino


def _answer(name: bytes, rrset: RRset) -> Response:
    return Response(authoritative=True, answer=[(name, rrset)], plugin=NAME)
