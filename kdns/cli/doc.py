"""`kdns doc`."""

from __future__ import annotations

from typing import Annotated

import typer


def doc(
    name: Annotated[str, typer.Argument(metavar="[DIRECTIVE]", help="A directive of the Corefile.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Show the manual page of a directive, or the list of all directives.

    A page has the syntax with every option, the metrics, examples, and how the directive differs from CoreDNS's. On a
    terminal it is laid out; elsewhere it is Markdown.

    \b
    kdns doc
    kdns doc forward
    kdns doc cache --json
    """
    import json

    found = _page(name) if name else _titles()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    elif not name:
        width = max(map(len, found))
        for directive, title in found.items():
            typer.echo(f"{directive:<{width}}  {title}")
    else:
        _show("\n\n".join(f"## {heading}\n\n{text}" for heading, text in found.items()))


def _titles() -> dict[str, str]:
    """The directives, each with the line that says what it does."""
    from kdns.plugins import MANUALS

    return {name: (MANUALS[name].__doc__ or "").partition("\n")[0].partition(": ")[2] for name in sorted(MANUALS)}


def _page(name: str) -> dict[str, str]:
    """The sections of a manual page, by their headings. Raises ConfigValueError if there is none."""
    import re

    from kdns.corefile import values
    from kdns.errors import ConfigValueError
    from kdns.plugins import MANUALS, absent

    if name in absent.INSTEAD:
        raise ConfigValueError(f"{name} is not supported by this version of kdns", absent.INSTEAD[name])
    if name not in MANUALS:
        raise ConfigValueError(f"{values.shown(name)} is no directive", values.choices(name, MANUALS))
    _, *parts = re.split(r"^## (.+)\n+", MANUALS[name].__doc__ or "", flags=re.MULTILINE)
    return {heading: text.strip() for heading, text in zip(parts[::2], parts[1::2], strict=True)}


def _show(page: str) -> None:
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    if console.is_terminal:
        console.print(Markdown(page, code_theme="ansi_light"))
    else:
        typer.echo(page)
