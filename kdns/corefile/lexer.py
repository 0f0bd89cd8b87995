"""A Corefile's text as tokens (the lexical rules of Caddy 1, which CoreDNS uses).

Words are parted by white space. A word that starts with a quote goes up to the next quote, over line ends too; in it
only the quote itself can be escaped, with a backslash. `#` starts a comment, also in the middle of a word. A backslash
that ends a line joins it with the next. `{$NAME}` and `{%NAME%}` stand for environment variables, empty if unset.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from kdns.errors import Mistake

_LEX = re.compile(
    r"""
    (?P<newline>\n)
    | (?P<blank>[^\S\n]+ | \\\n | \#[^\n]*)
    | "(?P<quoted>(?:[^"\\]++ | \\.)*+)(?P<close>"?)
    | (?P<word>(?:[^\s\#\\]++ | \\(?!\n))++)
    """,
    re.VERBOSE | re.DOTALL,
)
_VARIABLE = re.compile(r"\{%([^{}%]+)%\}|\{\$([^{}]+)\}")


@dataclass(frozen=True, slots=True)
class Token:
    """One word of a Corefile.

    line: counted from 1. quoted: it stood in quotes or came from a variable or argument, and so is never a brace.
    starts_line: it is the first of its line.
    """

    text: str
    file: str
    line: int
    quoted: bool = False
    starts_line: bool = False

    @property
    def opens(self) -> bool:
        """True for the `{` of a block."""
        return self.text == "{" and not self.quoted

    @property
    def closes(self) -> bool:
        """True for the `}` of a block."""
        return self.text == "}" and not self.quoted


def tokenize(text: str, file: str, environ: Mapping[str, str], mistakes: list[Mistake], line: int = 1) -> list[Token]:
    """Split a file's text; what is wrong with it is added to `mistakes`.

    file: the name for messages. line: the number of the first line.
    """
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    found = []
    starts_line = True
    for match in _LEX.finditer(text):
        if match.lastgroup == "newline":
            starts_line = True
        elif match.lastgroup != "blank":
            token = _token(match, file, line, starts_line, environ)
            found.append(token)
            starts_line = False
            if match.lastgroup == "close" and not match["close"]:
                mistakes.append(Mistake(file, line, "a quote that is opened here is never closed", 'a closing "'))
                break
        line += match[0].count("\n")
    return found


def _token(match: re.Match[str], file: str, line: int, starts_line: bool, environ: Mapping[str, str]) -> Token:
    quoted = match["quoted"] is not None
    raw = match["quoted"].replace('\\"', '"') if quoted else match["word"]
    text = _VARIABLE.sub(lambda variable: environ.get(variable[1] or variable[2], ""), raw)
    return Token(text, file, line, quoted or text != raw, starts_line)
