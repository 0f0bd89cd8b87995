"""The directives of the Corefile, one module each, and how a Corefile becomes a typed configuration.

A module has NAME, Options (immutable, can be pickled) and `parse`, which reads one directive; `merge` if the directive
may be repeated in a server block; and Handler if it takes part in answering:

    Handler(options); await handler(query, next) -> Response

or Handler(options, site), with a Site, if it says SITED = True.

Its docstring is its manual page.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from keyword import iskeyword
from pathlib import Path
from types import ModuleType
from typing import Any

from kdns.corefile.config import Config, Directive, ServerBlock, ServerConfig
from kdns.corefile.parser import Parsed, Part, parse_file, parse_parts, parse_text
from kdns.corefile.values import choices, shown
from kdns.errors import ConfigError, Mistake
from kdns.plugins import bind, tls
from kdns.plugins.absent import INSTEAD

ORDER = (
    "root", "metadata", "geoip", "cancel", "timeouts", "multisocket", "reload", "nsid", "bufsize", "bind", "debug",
    "trace", "ready", "health", "pprof", "prometheus", "errors", "log", "dnstap", "local", "dns64", "any", "chaos",
    "loadbalance", "tsig", "rewrite", "autopath", "acl", "cache", "header", "dnssec", "tls", "minimal", "template",
    "transfer", "hosts", "k8s_external", "kubernetes", "file", "auto", "secondary", "loop", "forward", "erratic",
    "whoami", "sign", "view",
)  # fmt: skip
"""The order in which the plugins of a server block run, whatever order they are written in."""


class _Modules(Mapping[str, ModuleType]):
    """Modules of this package by the directives' names, each imported when it is first wanted."""

    def __init__(self, *directives: str) -> None:
        self._directives = directives

    def __getitem__(self, name: str) -> ModuleType:
        if name not in self._directives:
            raise KeyError(name)
        return importlib.import_module(f"{__name__}.{name}{'_' if iskeyword(name) else ''}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._directives)

    def __len__(self) -> int:
        return len(self._directives)


MODULES: Mapping[str, ModuleType] = _Modules(
    "acl", "any", "auto", "autopath", "bind", "bufsize", "cache", "cancel", "chaos", "debug", "dns64", "erratic",
    "errors", "file", "forward", "header", "health", "hosts", "k8s_external", "kubernetes", "loadbalance", "local",
    "log", "loop", "metadata", "minimal", "multisocket", "nsid", "prometheus", "ready", "reload", "rewrite", "root",
    "secondary", "template", "timeouts", "tls", "transfer", "tsig", "view", "whoami",
)  # fmt: skip
"""The plugins that this version has, by name."""

MANUALS: Mapping[str, ModuleType] = _Modules(*MODULES, "import")
"""Every module whose docstring is a manual page, by directive."""

SCHEMES = ("dns", "tls", "https")
"""What servers of this version can speak."""


def load(path: str | Path, *, environ: Mapping[str, str], default_port: int = 53) -> Config:
    """Read a Corefile and all that it imports.

    environ: for `{$NAME}`. default_port: where keys without scheme and port listen. Raises ConfigError with every
    mistake.
    """
    return _understand(parse_file(Path(path), environ, default_port))


def loads(
    text: str | bytes, *, file: str = "Corefile", environ: Mapping[str, str] | None = None, default_port: int = 53
) -> Config:
    """The same for a Corefile that is not in a file. file: the name for messages, and where imports are looked for."""
    return _understand(parse_text(text, file, environ or {}, default_port))


def load_parts(
    parts: Iterable[Part],
    *,
    environ: Mapping[str, str],
    default_port: int = 53,
    refused: Mapping[str, tuple[str, str]] | None = None,
) -> Config:
    """The same for a Corefile of several texts.

    refused: directives that this server cannot have; why, and what is accepted instead.
    """
    return _understand(parse_parts(parts, environ, default_port), refused)


def sited(name: str) -> bool:
    """Whether a plugin's Handler takes a Site."""
    return getattr(MODULES[name], "SITED", False)


def _understand(parsed: Parsed, refused: Mapping[str, tuple[str, str]] | None = None) -> Config:
    mistakes = list(parsed.mistakes)
    for name in (directive.name for block in parsed.blocks for directive in block.directives):
        if refused and name.text in refused:
            mistakes.append(Mistake(name.file, name.line, *refused[name.text]))
    blocks = tuple(_server(block, mistakes) for block in parsed.blocks)
    mistakes += bind.conflicts(blocks) + tls.conflicts(blocks)
    if [block for block in blocks if "secondary" in block.plugins]:  # (`any` is a module of this package)
        mistakes += MODULES["secondary"].conflicts(blocks)
    if mistakes:
        files = list(dict.fromkeys(mistake.file for mistake in mistakes))
        raise ConfigError(sorted(mistakes, key=lambda mistake: (files.index(mistake.file), mistake.line)))
    return _with_files(Config(blocks, parsed.files, parsed.digest))


def _with_files(config: Config) -> Config:
    """A configuration with the files whose content is part of it, though they are not of the Corefile's language."""
    options = (one for block in config.blocks for one in block.plugins.values())
    sums = [found for one in options for found in getattr(one, "sums", ())]
    if not sums:
        return config
    digest = hashlib.sha512(b"".join((bytes.fromhex(config.digest), *(found for _, found in sums)))).hexdigest()
    return Config(config.blocks, tuple(dict.fromkeys((*config.files, *(path for path, _ in sums)))), digest)


def _server(block: ServerBlock, mistakes: list[Mistake]) -> ServerConfig:
    for token, scheme in dict.fromkeys((key.token, key.scheme) for key in block.keys if key.scheme not in SCHEMES):
        message = f"{scheme}:// is not supported by this version of kdns"
        mistakes.append(Mistake(token.file, token.line, message, "dns://, tls://, https://, or no scheme"))
    found: dict[str, list[Any]] = {}
    for directive in block.directives:
        module = _module(directive, mistakes)
        if module is None:
            continue
        if module.NAME in found and not hasattr(module, "merge"):
            name = directive.name
            mistakes.append(
                Mistake(name.file, name.line, f"{name.text} is given twice in a server block", "one of them")
            )
        found.setdefault(module.NAME, []).append(module.parse(directive, block, mistakes))
    return ServerConfig(block.keys, {name: _merged(name, found[name]) for name in ORDER if name in found})


def _module(directive: Directive, mistakes: list[Mistake]) -> ModuleType | None:
    """The directive's module; None, and a mistake, if there is none."""
    name = directive.name
    module = MODULES.get(name.text)
    if module is None:
        if name.text in INSTEAD:
            message, accepted = f"{name.text} is not supported by this version of kdns", INSTEAD[name.text]
        else:
            message, accepted = f"unknown directive {shown(name.text)}", choices(name.text, MANUALS)
        mistakes.append(Mistake(name.file, name.line, message, accepted))
    return module


def _merged(name: str, found: Sequence[Any]) -> Any:
    """One Options of a plugin's directives; None where one of them has a mistake."""
    if len(found) == 1 or None in found or not hasattr(MODULES[name], "merge"):
        return found[0]
    return MODULES[name].merge(found)
