"""The README, as tests run it: its sections, what they show of a terminal, and what they say can be typed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from tests.support.server import ROOT

TEXT = (ROOT / "README.md").read_text()


@dataclass(frozen=True, slots=True)
class Shown:
    """A command behind a `$`, and what stands below it."""

    command: str
    output: str


def sections() -> dict[str, str]:
    """The text of each section by its title."""
    parts = re.split(r"^## (.+)\n", TEXT, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def blocks(kind: str, text: str) -> list[str]:
    """The fenced blocks of a kind, such as sh."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def sessions(title: str) -> list[Shown]:
    """What a section shows of a terminal. tests/test_readme.py finds those that no test asks for."""
    text = "".join(blocks("console", sections()[title]))
    parts = [part.partition("\n") for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]]
    return [Shown(command, output) for command, _, output in parts]


def invocations(text: str) -> Iterator[list[str]]:
    """The arguments of each kdns in lines of a shell, at their start, behind a pipe, or run by `kubectl exec`."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if not set(word) <= set("();<>|&"):
                command.append(word)
                continue
            if "kdns" in command and (command[0] == "kdns" or command[command.index("kdns") - 1] == "--"):
                yield command[command.index("kdns") + 1 :]
            command = []
