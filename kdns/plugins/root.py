"""root: the directory where relative paths start.

## Name

*root* - sets where the files that a server block names are looked for.

## Description

Relative paths in the same server block (those of *kubernetes*' `manifests`) start there. Without it they start at the
working directory. The files that *import* names are not affected: they are relative to the importing file.

## Syntax

```
root PATH
```

* **PATH**: a directory; a relative one starts at the working directory. It need not exist yet.

## Metrics

None of its own.

## Examples

```corefile
cluster.local {
    root /etc/kdns
    kubernetes {
        manifests cluster services.yaml
    }
}
```

## Differences from CoreDNS

More than one argument is refused; CoreDNS takes the last one.

## See also

*kubernetes*.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.options import Reader
from kdns.errors import Mistake

NAME = "root"


@dataclass(frozen=True, slots=True)
class Options:
    """path: the directory as written."""

    path: str


def parse(directive: Directive, _block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    args = reader.arguments(directive, 1, 1, "root PATH")
    if args and not args[0].text:
        reader.refuse(args[0], "root has an empty path", "root PATH")
    reader.no_block()
    return Options(args[0].text) if args and reader.sound else None


def directory(block: ServerBlock) -> Path:
    """Where the relative paths of a server block start; the working directory (as an empty path) without `root`."""
    for directive in block.directives:
        if directive.name.text == NAME and directive.args:
            return Path(directive.args[0].text)
    return Path()
