"""From tokens to server blocks (the grammar of Caddy 1 as CoreDNS uses it).

A server block has keys, parted by spaces or commas (behind a comma they may go on in the next line), and directives in
braces. If there is only one server block, it may go without the braces. A directive is a line; a `{` at its end opens
its own block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kdns.corefile.config import Directive, ServerBlock, ServerKey
from kdns.corefile.imports import Expander, Sources, identity
from kdns.corefile.lexer import Token
from kdns.corefile.values import choices, integer, shown, zones
from kdns.errors import ConfigValueError, Mistake

SCHEMES = {"dns": 53, "tls": 853, "quic": 853, "grpc": 443, "https": 443, "https3": 443}
MAX_BLOCKS = 8


class Part(NamedTuple):
    """A text of a Corefile. file: the name for messages and imports. line: where it begins there."""

    data: bytes
    file: str
    line: int = 1


@dataclass(frozen=True, slots=True)
class Parsed:
    """A Corefile as written, with what it imports. files, digest: as in Config. mistakes: those of the syntax."""

    blocks: tuple[ServerBlock, ...]
    files: tuple[str, ...]
    digest: str
    mistakes: tuple[Mistake, ...]


def parse_file(path: Path, environ: Mapping[str, str], default_port: int) -> Parsed:
    """Read a Corefile and what it imports. default_port: for keys without scheme and port."""
    sources = Sources(environ, [])
    expander = Expander(sources)
    expander.expand(sources.read(path), (identity(path),))
    return _parse(expander, str(path), default_port)


def parse_text(text: str | bytes, file: str, environ: Mapping[str, str], default_port: int) -> Parsed:
    """Read a Corefile that is not in a file. file: the name for messages, and where imports are looked for."""
    data = text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
    return parse_parts([Part(data, file)], environ, default_port)


def parse_parts(parts: Iterable[Part], environ: Mapping[str, str], default_port: int) -> Parsed:
    """Read a Corefile made of one or more texts."""
    sources = Sources(environ, [])
    expander = Expander(sources)
    names: list[str] = []
    for data, file, line in parts:
        if names:
            sources.hash.update(b"\0%d\0" % len(data))
        names.append(file)
        expander.expand(sources.tokens(data, file, line), (identity(Path(file)),))
    return _parse(expander, names[0], default_port)


def _parse(expander: Expander, file: str, default_port: int) -> Parsed:
    """file: the first one's name."""
    sources = expander.sources
    blocks = _Parser(expander.out, default_port, sources.mistakes).blocks()
    if not blocks and not sources.mistakes:
        sources.mistakes.append(Mistake(file, 1, "there is no server block", "at least one, such as . { whoami }"))
    return Parsed(tuple(blocks), tuple(sources.files), sources.hash.hexdigest(), tuple(sources.mistakes))


class _Parser:
    """Walks over the tokens; `at` is the index of the next one."""

    def __init__(self, tokens: list[Token], default_port: int, mistakes: list[Mistake]) -> None:
        self.tokens = tokens
        self.default_port = default_port
        self.mistakes = mistakes
        self.at = 0

    def blocks(self) -> list[ServerBlock]:
        """All server blocks. Notes every mistake and goes on behind it; a block without a usable key is kept."""
        found = []
        while (token := self._peek()) is not None:
            if token.closes:
                self._refuse(token, "a } closes nothing", "as many } as {")
                self.at += 1
                continue
            words = self._key_words()
            keys = tuple(key for word in words for key in self._keys(word))
            after = self._peek()
            if after is not None and after.opens:
                self.at += 1
                directives = self._directives(after, 1)
            else:
                directives = self._directives(None, 1)
            if not words:
                self._refuse(token, "a server block has no zone", "ZONE[:PORT]... {")
            found.append(ServerBlock(keys, directives))
        return found

    def _key_words(self) -> list[Token]:
        """The words before the block, without commas."""
        found = []
        comma: Token | None = None
        while (token := self._peek()) is not None and not token.closes:
            if token.opens:
                break
            self.at += 1
            text = token.text.removesuffix(",")
            comma = token if text != token.text else None
            if text:
                found.append(Token(text, token.file, token.line, token.quoted, token.starts_line))
            following = self._peek()
            if following is not None and following.starts_line and comma is None:
                break
        if comma is not None:
            self._refuse(comma, "another zone should follow the comma", "ZONE[:PORT], ZONE[:PORT] {")
        return found

    def _directives(self, opening: Token | None, depth: int) -> tuple[Directive, ...]:
        """Lines up to the closing brace, which is taken. opening: its brace, or None: up to the end of the file."""
        found: list[Directive] = []
        while (token := self._peek()) is not None:
            if token.closes:
                self.at += 1
                if opening is not None:
                    return tuple(found)
                self._refuse(token, "a } closes nothing", "as many } as {")
            elif token.opens:
                self._refuse(token, "a { stands alone", "{ at the end of the line that it belongs to")
                self._skip_block()
            else:
                found.append(self._directive(depth))
        if opening is not None:
            self._refuse(opening, "the block that opens here is never closed", "a }")
        return tuple(found)

    def _directive(self, depth: int) -> Directive:
        name = self.tokens[self.at]
        self.at += 1
        args = []
        while (token := self._peek()) is not None and not (token.starts_line or token.opens or token.closes):
            args.append(token)
            self.at += 1
        if token is None or not token.opens or token.starts_line:
            return Directive(name, tuple(args))
        if depth >= MAX_BLOCKS:
            self._refuse(token, f"blocks are nested more than {MAX_BLOCKS} deep", "fewer")
            self._skip_block()
            return Directive(name, tuple(args))
        self.at += 1
        block = self._directives(token, depth + 1)
        self._rest_of_line()
        return Directive(name, tuple(args), block)

    def _rest_of_line(self) -> None:
        """Nothing but another brace may follow a block in its line."""
        token = self._peek()
        if token is None or token.starts_line or token.opens or token.closes:
            return
        self._refuse(token, f"{shown(token.text)} follows a }} in its line", "a line of its own")
        while (token := self._peek()) is not None and not (token.starts_line or token.opens or token.closes):
            self.at += 1

    def _skip_block(self) -> None:
        """Go behind the block whose `{` is next."""
        depth = 0
        while (token := self._peek()) is not None:
            self.at += 1
            depth += token.opens - token.closes
            if not depth:
                return

    def _keys(self, word: Token) -> list[ServerKey]:
        """The keys of one word: several for a network in CIDR notation, none after a mistake."""
        scheme, separator, rest = word.text.partition("://")
        if not separator:
            scheme, rest = "dns", word.text
        try:
            if scheme not in SCHEMES:
                raise ConfigValueError(f"{shown(word.text)} has an unknown scheme", choices(scheme, SCHEMES))
            host, port = _split_port(rest)
            default = self.default_port if scheme == "dns" else SCHEMES[scheme]
            return [ServerKey(scheme, zone, default if port is None else port, word) for zone in zones(host)]
        except ConfigValueError as error:
            self._refuse(word, error.message, error.accepted)
            return []

    def _peek(self) -> Token | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def _refuse(self, token: Token, message: str, accepted: str) -> None:
        self.mistakes.append(Mistake(token.file, token.line, message, accepted))


def _split_port(text: str) -> tuple[str, int | None]:
    """`zone:port` in its parts. The colons of an IPv6 network are followed by its prefix length, never by a port."""
    host, colon, port = text.rpartition(":")
    if not colon or "/" in port:
        return text, None
    if not host:
        raise ConfigValueError(f"{shown(text)} has no zone", f"a zone before the port, such as .:{port or 53}")
    return host, integer(port, 1, 65535)
