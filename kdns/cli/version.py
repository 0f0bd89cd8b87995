"""`kdns version`."""

from __future__ import annotations

from typing import Annotated

import typer


def version(as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False) -> None:
    """Say which kdns this is, and what it runs on.

    These lines belong into every bug report.
    """
    import json
    import platform

    import lmdb

    import kdns
    from kdns import speed

    facts = {
        "kdns": kdns.__version__,
        "compiled": speed.is_compiled(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "lmdb": ".".join(map(str, lmdb.version())),
        "py-lmdb": lmdb.__version__,
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        typer.echo(f"{name:<9} {('yes' if value else 'no') if isinstance(value, bool) else value}")
