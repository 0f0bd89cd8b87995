"""What the README and the help texts show is what there is: tests run each session, and each line can be typed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from kdns.cli import app
from kdns.plugins import MANUALS, ORDER
from kdns.plugins.absent import INSTEAD
from kdns.tools.differences import sentences
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


PLUGINS = dict(
    re.findall(r"^\| `(\w+)` \| ((?:works|differs|not here).*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
)


def test_the_table_of_plugins_has_each_of_them_once_and_in_order() -> None:
    assert list(PLUGINS) == sorted({*ORDER, *INSTEAD, *MANUALS}), "one line for each plugin, and none for others"


@pytest.mark.parametrize("name", sorted({*ORDER, *INSTEAD, *MANUALS}))
def test_the_table_of_plugins_says_what_is_true(name: str) -> None:
    """Who adds a plugin, or a difference, changes its line in README.md, and takes it out of kdns/plugins/absent.py."""
    told = PLUGINS.get(name, "nothing")
    if name not in MANUALS:
        assert name in INSTEAD, f"{name} is not in kdns/plugins/absent.py: what is to be done instead?"
        wanted = f"not here: {INSTEAD[name].removeprefix('nothing: ')}"
        assert told == wanted, (
            f"README.md has to say of {name}, as kdns/plugins/absent.py does: | `{name}` | {wanted} |"
        )
    elif sentences(name):
        assert re.fullmatch(r"differs: .{5,100}", told), (
            f"{name} is here and differs from CoreDNS (its manual says how): README.md has to say in a few words"
            f" | `{name}` | differs: ... |, and says {told}"
        )
    else:
        assert told == "works", f"{name} is here as CoreDNS has it: README.md has to say | `{name}` | works |"


def test_no_plugin_is_both_here_and_absent() -> None:
    assert not {*INSTEAD} & {*MANUALS}, "take it out of kdns/plugins/absent.py"
