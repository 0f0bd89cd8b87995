"""The typed result of reading a Corefile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdns.corefile.lexer import Token


@dataclass(frozen=True, slots=True)
class ServerKey:
    """A zone that a server block answers for.

    scheme: dns, tls, https, and so on. zone: lower case with its last dot. token: the word that it was read from (a
    network in CIDR notation gives several keys).
    """

    scheme: str
    zone: str
    port: int
    token: Token


@dataclass(frozen=True, slots=True)
class Directive:
    """A line of a server block, or of a directive's own block. block: None if there are no braces."""

    name: Token
    args: tuple[Token, ...] = ()
    block: tuple[Directive, ...] | None = None


@dataclass(frozen=True, slots=True)
class ServerBlock:
    """A server block as written."""

    keys: tuple[ServerKey, ...]
    directives: tuple[Directive, ...]


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """A server block that is understood. plugins: name to that plugin's Options, in the order in which they run."""

    keys: tuple[ServerKey, ...]
    plugins: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration; it can be pickled.

    files: absolute paths of all that was read, and of the directories in which `import` looked for names.
    digest: SHA-512 in hexadecimal; changes with the content of any file.
    """

    blocks: tuple[ServerConfig, ...]
    files: tuple[str, ...]
    digest: str
