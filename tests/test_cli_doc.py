"""`kdns doc`: the manual pages of directives."""

from __future__ import annotations

import json

import pytest
from rich import console
from typer.testing import CliRunner

from kdns.cli import app
from kdns.plugins import MANUALS
from kdns.plugins.absent import INSTEAD


def doc(*arguments: str, code: int = 0) -> str:
    """What is printed: stdout, or stderr where it fails."""
    done = CliRunner().invoke(app, ["doc", *arguments])
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.stderr


def test_all_directives_have_a_line() -> None:
    lines = doc().splitlines()
    assert [line.split()[0] for line in lines] == sorted(MANUALS)
    assert "forward       queries that are answered by other DNS servers." in lines
    assert json.loads(doc("--json"))["nsid"] == "which of several servers answered."


@pytest.mark.parametrize("name", sorted(MANUALS))
def test_a_page_is_the_text_that_its_module_has(name: str) -> None:
    page = doc(name)
    text = MANUALS[name].__doc__ or ""
    assert page.split() == text.partition("\n")[2].split()
    found = json.loads(doc(name, "--json"))
    assert next(iter(found)) == "Name"
    assert found["See also"] in page
    assert all(found.values())


def test_on_a_terminal_it_is_laid_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.Console, "is_terminal", True)
    page = doc("nsid")
    assert "## " not in page
    assert "nsid [DATA...]" in page


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("trace", f"trace is not supported by this version of kdns; accepted: {INSTEAD['trace']}"),
        ("forwrd", '"forwrd" is no directive; accepted: "forward" is near; acl, any, '),
    ],
)
def test_what_has_no_page_is_said(name: str, told: str) -> None:
    assert doc(name, code=1).startswith(told)
