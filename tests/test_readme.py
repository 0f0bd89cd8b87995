"""What the README and the help texts show is what there is: tests run each session, and each line can be typed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from kdns.cli import app
from tests.support import readme
from tests.support.server import ROOT

GROUP: Any = typer.main.get_command(app)
"""The whole command line. (typer has click in itself, or beside it, which is its own affair: no types.)"""


def test_every_session_in_the_readme_is_run_by_a_test() -> None:
    asked = {
        title
        for path in (ROOT / "tests").glob("test_*.py")
        for title in re.findall(r"\breadme\.sessions\(\"([^\"]+)\"\)", path.read_text())
    }
    assert asked == {title for title, text in readme.sections().items() if readme.blocks("console", text)}


def lines() -> Iterator[tuple[str, list[str]]]:
    """Where a line to type stands, and the arguments of the kdns in it."""
    for title, text in readme.sections().items():
        for block in readme.blocks("sh", text):
            yield from ((title, arguments) for arguments in readme.invocations(block))
    for path in sorted((ROOT / "deploy").rglob("*.md")):
        for block in readme.blocks("sh", path.read_text()):
            yield from ((str(path.relative_to(ROOT)), arguments) for arguments in readme.invocations(block))
    for name, command in GROUP.commands.items():
        yield from ((f"{name} --help", arguments) for arguments in readme.invocations(examples(command.help)))


def examples(text: str) -> str:
    """The paragraphs of a help text that are printed as they are."""
    return "\n".join(re.findall(r"\x08\n(.*?)(?:\n\n|\Z)", text, re.DOTALL))


@pytest.mark.parametrize(
    ("where", "arguments"), [pytest.param(*pair, id=f"{pair[0]}: {' '.join(pair[1])}") for pair in lines()]
)
def test_a_line_to_type_is_accepted(
    where: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its options and values are: nothing is done. Files are there."""
    monkeypatch.chdir(tmp_path)
    for word in arguments:
        if re.fullmatch(r"[\w./-]*(Corefile|\.yaml)[\w.]*", word) and not word.startswith(("/", "-")):
            (tmp_path / word).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / word).touch()
    verb, *rest = arguments
    assert GROUP.commands[verb].make_context(verb, rest)


@pytest.mark.parametrize("name", sorted(set(GROUP.commands) - {"version"}))
def test_a_help_text_has_examples(name: str) -> None:
    assert any(arguments[0] == name for arguments in readme.invocations(examples(GROUP.commands[name].help)))
