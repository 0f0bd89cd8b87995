"""Reading a Corefile's files and putting what is imported in its place.

The result is one list of tokens without snippets and imports. Snippets hold from their definition on, in all files.
"""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kdns.corefile.lexer import Token, tokenize
from kdns.corefile.values import choices, shown
from kdns.errors import Mistake

MAX_FILE = 4 << 20
MAX_TOKENS = 500_000
MAX_IMPORTS = 10_000
MAX_NESTING = 50
_ARGUMENT = re.compile(
    r"\{args(?:\[(?P<index>\d{1,6})\]|\.(?P<dotted>\d{1,6})|\[(?P<low>\d{0,6}):(?P<high>\d{0,6})\])\}", re.ASCII
)
_SNIPPET = re.compile(r"\((.*)\)", re.DOTALL)


@dataclass(slots=True)
class Sources:
    """The files that were read, and a hash over their content."""

    environ: Mapping[str, str]
    mistakes: list[Mistake]
    files: dict[str, None] = field(default_factory=dict)
    hash: hashlib._Hash = field(default_factory=hashlib.sha512)
    tokens_of: dict[str, list[Token]] = field(default_factory=dict)

    def read(self, path: Path, at: Token | None = None) -> list[Token]:
        """A file's tokens; none after a mistake. A file is read once. at: the word that names it, for messages."""
        known = self.tokens_of.get(str(path))
        if known is None:
            data = self._bytes(path, *((at.file, at.line) if at else (str(path), 1)))
            if at is not None:
                self.hash.update(b"\0%d\0" % len(data))
            known = self.tokens_of[str(path)] = self.tokens(data, str(path))
        return known

    def _bytes(self, path: Path, file: str, line: int) -> bytes:
        try:
            self.watch(path)
            with path.open("rb") as opened:
                data = opened.read(MAX_FILE + 1)
        except (OSError, ValueError) as error:
            problem = getattr(error, "strerror", None) or "it is no path"
            message = f"{shown(str(path))} cannot be read: {problem}"
            self.mistakes.append(Mistake(file, line, message, "a readable file"))
            return b""
        if len(data) > MAX_FILE:
            self.mistakes.append(Mistake(file, line, f"{shown(str(path))} is too large", f"at most {MAX_FILE} bytes"))
            return b""
        return data

    def tokens(self, data: bytes, file: str, first: int = 1) -> list[Token]:
        """The tokens of a file's content, or of a part that begins in line `first`."""
        self.hash.update(data)
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            line = first + data.count(b"\n", 0, error.start)
            self.mistakes.append(Mistake(file, line, f"byte 0x{data[error.start]:02x} is not UTF-8", "UTF-8"))
            text = data.decode(errors="replace")
        return tokenize(text, file, self.environ, self.mistakes, first)

    def watch(self, path: Path) -> None:
        """Note a file or directory whose change matters."""
        self.files[str(path.absolute())] = None


@dataclass(slots=True)
class Expander:
    """Replaces imports.

    out: the result. depth: how many blocks are open at its end. tokens and imports are counted, so that a small file
    cannot grow without bound.
    """

    sources: Sources
    out: list[Token] = field(default_factory=list)
    depth: int = 0
    imports: int = 0
    snippets: dict[str, list[Token]] = field(default_factory=dict)
    full: bool = False

    def expand(self, tokens: list[Token], chain: tuple[str, ...], args: Sequence[Token] | None = None) -> None:
        """Append tokens to `out`.

        chain: the files and snippets whose import is under way. args: those of the import, None for the main file.
        """
        tokens = list(tokens)
        at = 0
        while at < len(tokens) and not self.full:
            token = tokens[at]
            starts = token.starts_line or at == 0 or tokens[at - 1].opens or tokens[at - 1].closes
            if starts and token.text == "import" and not token.quoted:
                end = _line_end(tokens, at + 1)
                words = [word for raw in tokens[at + 1 : end] for word in self._substitute(raw, args)]
                self._import(token, words, chain)
                if end < len(tokens) and tokens[end].opens and not tokens[end].starts_line:
                    self._refuse(token, "import has a block", "import NAME [ARGUMENTS...] on a line of its own")
                at = end
            elif starts and self.depth == 0 and self._defines(tokens, at):
                at = self._define(tokens, at)
            else:
                at += 1
                words = list(self._substitute(token, args))
                for word in words:
                    self._append(word)
                if not words and token.starts_line and at < len(tokens):
                    tokens[at] = replace(tokens[at], starts_line=True)

    def _append(self, token: Token) -> None:
        if token.opens:
            self.depth += 1
        elif token.closes:
            self.depth = max(0, self.depth - 1)
        self.out.append(token)
        if len(self.out) >= MAX_TOKENS:
            self._stop(token)

    def _stop(self, token: Token) -> None:
        if not self.full:
            self._refuse(token, "the imports grow too large", f"{MAX_IMPORTS} imports and {MAX_TOKENS} words in all")
        self.full = True

    def _refuse(self, token: Token, message: str, accepted: str) -> None:
        self.sources.mistakes.append(Mistake(token.file, token.line, message, accepted))

    def _defines(self, tokens: list[Token], at: int) -> bool:
        """True at `(name) {`."""
        return bool(_SNIPPET.fullmatch(tokens[at].text)) and at + 1 < len(tokens) and tokens[at + 1].opens

    def _define(self, tokens: list[Token], at: int) -> int:
        """Note a snippet; returns the index behind it."""
        token = tokens[at]
        name = token.text[1:-1]
        depth = 1
        end = at + 2
        while end < len(tokens):
            depth += tokens[end].opens - tokens[end].closes
            if not depth:
                break
            end += 1
        else:
            self._refuse(token, f"snippet {shown(name)} is never closed", "a }")
        body = tokens[at + 2 : end]
        if not name:
            self._refuse(token, "a snippet has no name", "(name) {")
        elif name in self.snippets:
            self._refuse(token, f"snippet {shown(name)} is defined twice", "another name")
        else:
            self.snippets[name] = [replace(body[0], starts_line=True), *body[1:]] if body else []
        return end + 1

    def _substitute(self, token: Token, args: Sequence[Token] | None) -> Iterator[Token]:
        """A token with the import's arguments in the place of `{args[0]}`; `{args[0:2]}` becomes several tokens."""
        if args is None or "{args" not in token.text:
            yield token
            return
        whole = _ARGUMENT.fullmatch(token.text)
        if whole and whole["low"] is not None:
            low, high = int(whole["low"] or 0), int(whole["high"] or len(args))
            if not low <= high <= len(args):
                self._refuse(token, f"{shown(token.text)} with {len(args)} arguments", f"0 to {len(args)}")
            for index, arg in enumerate(args[low:high]):
                yield replace(token, text=arg.text, quoted=True, starts_line=token.starts_line and not index)
            return
        text = _ARGUMENT.sub(lambda match: self._argument(token, match, args), token.text)
        yield replace(token, text=text, quoted=True)

    def _argument(self, token: Token, match: re.Match[str], args: Sequence[Token]) -> str:
        if match["low"] is not None:
            self._refuse(token, f"{shown(match[0])} stands inside a word", "a word of its own")
            return ""
        index = int(match["index"] or match["dotted"] or 0)
        if index < len(args):
            return args[index].text
        self._refuse(token, f"{shown(match[0])}, but the import has {len(args)} arguments", f"at least {index + 1}")
        return ""

    def _import(self, token: Token, words: list[Token], chain: tuple[str, ...]) -> None:
        if not words or not words[0].text:
            self._refuse(token, "import has no name", "import SNIPPET|FILE|PATTERN [ARGUMENTS...]")
            return
        if len(chain) > MAX_NESTING:
            self._refuse(token, f"imports are nested more than {MAX_NESTING} deep", "fewer")
            return
        name, *args = words
        if name.text in self.snippets:
            self._enter(token, self.snippets[name.text], f"({name.text})", chain, args)
            return
        for path in self._paths(token, name.text):
            if self.full:
                return
            name_of = identity(path)
            if name_of in chain:
                self._enter(token, [], name_of, chain, args)
            elif self._regular(token, path):
                self._enter(token, self.sources.read(path, token), name_of, chain, args)

    def _enter(
        self, token: Token, tokens: list[Token], name: str, chain: tuple[str, ...], args: Sequence[Token]
    ) -> None:
        self.imports += 1
        if name in chain:
            shown_chain = " > ".join((*chain[chain.index(name) :], name))
            self._refuse(token, f"import of itself: {shown_chain}", "imports that end")
        elif self.imports > MAX_IMPORTS:
            self._stop(token)
        else:
            self.expand(tokens, (*chain, name), args)

    def _regular(self, token: Token, path: Path) -> bool:
        """True for a file that can be read; a named pipe would hold up the start for ever."""
        try:
            mode = path.stat().st_mode
        except OSError as error:
            known = choices(path.name, self.snippets)
            snippets = f" or a snippet: {known}" if known else ", or a snippet that is defined above"
            message = f"import: {shown(str(path))} cannot be read: {error.strerror}"
            self._refuse(token, message, f"a file{snippets}")
            return False
        if not stat.S_ISREG(mode):
            self._refuse(token, f"import: {shown(str(path))} is not a file", "a file")
        return stat.S_ISREG(mode)

    def _paths(self, token: Token, pattern: str) -> list[Path]:
        """The files that a path or pattern names, in order of their names."""
        if "\0" in pattern:
            self._refuse(token, "import: a path has a zero byte", "a file")
            return []
        path = Path(token.file).parent / pattern
        if not set("*?[") & set(pattern):
            return [path]
        if pattern.count("*") > 1 or pattern.count("?") > 1 or "[" in pattern:
            self._refuse(token, f"import: pattern {shown(pattern)}", "at most one * and one ?, and no [")
            return []
        return self._glob(path)

    def _glob(self, pattern: Path) -> list[Path]:
        """Files that match; directories do not. `*` and `?` match any character but a slash, a first dot too."""
        found = [Path(pattern.anchor)]
        parts = pattern.relative_to(pattern.anchor).parts
        for part in parts:
            if "*" in part or "?" in part:
                wanted = re.compile(re.escape(part).replace(r"\*", ".*").replace(r"\?", "."), re.DOTALL)
                entries = [path for directory in found for path in self._entries(directory)]
                found = [path for path in entries if wanted.fullmatch(path.name)]
            else:
                found = [path / part for path in found]
        return [path for path in found if _is_no_directory(path)]

    def _entries(self, directory: Path) -> list[Path]:
        self.sources.watch(directory)
        try:
            return sorted(directory.iterdir())
        except OSError:
            return []


def identity(path: Path) -> str:
    """What two paths to one file have in common."""
    try:
        return str(path.resolve())
    except (OSError, RuntimeError):
        return str(path.absolute())


def _is_no_directory(path: Path) -> bool:
    try:
        return not stat.S_ISDIR(path.stat().st_mode)
    except OSError:
        return False


def _line_end(tokens: list[Token], at: int) -> int:
    """The index behind the last argument of a line."""
    while at < len(tokens) and not (tokens[at].starts_line or tokens[at].opens or tokens[at].closes):
        at += 1
    return at
