"""auto: zones from all master files of a folder.

## Name

*auto* - answers for the zones of a folder's master files, which may come and go.

## Description

Each file whose name fits has a zone, which is answered as *file* answers it. Folders in the folder are looked at too,
but neither hidden files and folders, which a mounted ConfigMap has, nor links to folders, nor folders that may not be
read, such as `lost+found`. Names in none of the zones go
to the next plugin.

The folder is looked at again and again. A file that comes brings its zone, one that goes takes it along, and one that
has changed is read again if its SOA has another serial. What cannot be read stays as it was, and so do all zones when
the folder is out of sight; a file that is new and has a mistake has no zone yet. The log says so, with file and line.
Zones are kept in the state directory: after a restart they are there at once.

## Syntax

```
auto [ZONES...] {
    directory DIR [REGEXP ORIGIN_TEMPLATE]
    reload DURATION
    fallthrough [ZONES...]
    upstream
}
```

* **ZONES**: only names in these zones are answered; default: the zones of the server block.
* `directory` **DIR**: the folder; a relative path starts at *root*'s directory. **REGEXP** is found in the names of
  files that have a zone, anywhere in them, and **ORIGIN_TEMPLATE** is the zone, in which `{1}` is what the first group
  of the expression has found, and `{name}` a group with a name. Default: `db\\.(.*)` and `{1}`: the file
  `db.example.org` has the zone `example.org`.
* `reload` **DURATION**: how often to look. Default: 1m; 0s for never.
* `fallthrough` **[ZONES...]**: a name that does not exist is passed to the next plugin; only in these zones if any are
  given.
* `upstream`: as for *file*.

## Metrics

* `kdns_zone_files_unusable{}`: files of *file* and *auto* that cannot be used, or are not there.

## Examples

All zones of a folder, and everything else by another server:

```corefile
. {
    auto {
        directory /etc/kdns/zones
    }
    forward . 192.0.2.53
}
```

Files named `www.example.org.zone`, looked at every ten seconds, of which only what is below `org` is answered:

```corefile
. {
    auto org {
        directory /etc/kdns/zones ^(.*)\\.zone$ {1}
        reload 10s
    }
}
```

## Differences from CoreDNS

`fallthrough` is new. Hidden files and folders are not looked at. Of several files with one zone the first one counts,
in the order of their names. A folder that cannot be read keeps its zones. A template with `$` is refused; CoreDNS may
take it for a group. A second *auto* in a server block is refused; CoreDNS uses the last one. What it answers differs as
*file* does.

## See also

*file*, *root*, *forward*.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock, ServerConfig
from kdns.corefile.options import Reader
from kdns.corefile.values import Regex
from kdns.errors import ConfigValueError, Mistake
from kdns.plugins import file, root
from kdns.plugins.zones import Source, source_id

NAME = "auto"
PATTERN, TEMPLATE = r"db\.(.*)", "{1}"

_PART = re.compile(r"\{(\w+)\}", re.ASCII)
_ACCEPTED = "directory DIR [REGEXP ORIGIN_TEMPLATE]"


@dataclass(frozen=True, slots=True)
class Options:
    """What the directive says.

    directory: resolved against `root`. pattern, template: which files have a zone, and its origin. zones, fallthrough:
    lower case with their last dot. reload: seconds; 0 for never.
    """

    directory: str
    zones: tuple[str, ...]
    pattern: str = PATTERN
    template: str = TEMPLATE
    reload: float = file.RELOAD
    fallthrough: tuple[str, ...] = ()

    def source(self, block: ServerConfig) -> str:
        """What its zones are kept under."""
        return source_id(NAME, block, (*self.zones, self.directory, self.pattern, self.template))

    def sources(self, block: ServerConfig) -> tuple[Source, ...]:
        """Where the zones are in the store."""
        return (Source(self.source(block), within=self.zones, fallthrough=self.fallthrough),)

    def origins(self) -> Callable[[str], str | None]:
        """What tells the zone of a file by its name, None if it has none.

        That raises ConfigValueError for what can be no zone.
        """
        pattern = Regex(self.pattern)
        numbers = pattern.names

        def origin(name: str) -> str | None:
            groups = pattern.search(name)
            if groups is None:
                return None
            return values.zone(_PART.sub(lambda part: groups[_number(part[1], numbers)], self.template))

        return origin


@dataclass(slots=True)
class _Found:
    directory: str = ""
    pattern: str = PATTERN
    template: str | None = TEMPLATE


def parse(directive: Directive, block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    zones = reader.zones(directive.args) or tuple(dict.fromkeys(key.zone for key in block.keys))
    found = _Found()

    def directory(item: Directive) -> None:
        args = reader.arguments(item, 1, 3, _ACCEPTED)
        if len(args) == 2:
            reader.refuse(item.name, "auto: directory has an expression and no template for the origin", _ACCEPTED)
        if args and not args[0].text:
            reader.refuse(args[0], "auto: directory has an empty path", _ACCEPTED)
        if args:
            found.directory = str(root.directory(block) / args[0].text)
        if len(args) == 3 and (pattern := reader.value(args[1], _pattern)) is not None:
            found.pattern = pattern.text
            found.template = reader.value(args[2], lambda text: _template(text, pattern))

    settings = file.read_block(reader, {"directory": directory})
    if reader.sound and not found.directory:
        reader.refuse(directive.name, "auto has no directory", _ACCEPTED)
    if not reader.sound or found.template is None:
        return None
    fall = settings.fallthrough
    return Options(found.directory, zones, found.pattern, found.template, settings.reload, fall)


def _pattern(text: str) -> Regex:
    pattern = values.regex(text)
    if not pattern.groups:
        raise ConfigValueError(f"{values.shown(text)} has no group", r"one in parentheses at least, such as db\.(.*)")
    return pattern


def _template(text: str, pattern: Regex) -> str:
    """A template whose groups are in an expression."""
    for part in _PART.finditer(text):
        if not (part[1] in pattern.names or (part[1].isdigit() and int(part[1]) <= pattern.groups)):
            known = [f"{{{number}}}" for number in range(pattern.groups + 1)] + [
                f"{{{name}}}" for name in pattern.names
            ]
            raise ConfigValueError(f"{values.shown(text)}: the expression has no group {part[0]}", ", ".join(known))
    rest = _PART.sub("", text)
    if "{" in rest or "}" in rest or "$" in rest:
        raise ConfigValueError(
            f"{values.shown(text)} is no template", "a zone with groups in it, such as {1}.example.org"
        )
    return text


def _number(text: str, known: Mapping[str, int]) -> int:
    return known[text] if text in known else int(text)
