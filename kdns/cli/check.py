"""`kdns check`: the Corefile's spelling, options and values, without starting anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdns.errors import ConfigError

if TYPE_CHECKING:
    from kdns.corefile.config import Config, ServerConfig


def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Corefiles.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array with an object for each file.")] = False,
    node: Annotated[bool, typer.Option("--node", help="They are base files of `kdns node`, with variables.")] = False,
) -> None:
    """Read Corefiles as `kdns serve` would, and print every mistake as FILE:LINE: what is wrong; what is accepted.

    Master files of `file` are read too, as far as they are there. For a file without mistakes: the zones, ports and
    plugins that it would serve. Variables like {$NAME} are taken from this command's environment. The files of
    `tls` are tried as well. The interfaces that `bind` may name are looked up by `kdns serve` alone. With --node,
    __PILLAR__ variables have the values of some node.

    \b
    kdns check Corefile
    kdns check --node Corefile.base
    kdns check --json zones/sample/Corefile | jq '.[].servers'

    Exit codes: 0 no mistake; 1 mistakes in at least one file.
    """
    reports = [report(file, node=node) for file in files]
    if as_json:
        typer.echo(json.dumps(reports, indent=2))
    else:
        for each in reports:
            for mistake in each["mistakes"]:
                typer.echo(mistake["text"], err=True)
            if each["ok"]:
                typer.echo("\n".join([f"{each['file']}: no mistakes", *map(_line, each["servers"])]))
    if not all(each["ok"] for each in reports):
        raise typer.Exit(1)


def report(file: Path, *, node: bool = False) -> dict[str, Any]:
    """What one file would serve, or what is wrong with it. node: it is a base file of `kdns node`."""
    import os

    from kdns.cli.node import example
    from kdns.plugins import load

    try:
        config = example(file) if node else load(file, environ=os.environ)
        if any("file" in block.plugins for block in config.blocks):
            from kdns.server import zone_feed

            if wrong := zone_feed.unusable(config.blocks):
                raise ConfigError(wrong)
        _try_certificates(config)
    except ConfigError as error:
        mistakes = [
            {
                "file": each.file,
                "line": each.line,
                "message": each.message,
                "accepted": each.accepted,
                "text": str(each),
            }
            for each in error.mistakes
        ]
        return {"file": str(file), "ok": False, "servers": [], "mistakes": mistakes}
    return {"file": str(file), "ok": True, "servers": [_server(block) for block in config.blocks], "mistakes": []}


def _try_certificates(config: Config) -> None:
    """Raise ConfigError with the files of `tls` that cannot be used."""
    if any("tls" in block.plugins for block in config.blocks):
        from kdns.server import certificates

        if mistakes := certificates.check(config.blocks):
            raise ConfigError(mistakes)


def _server(block: ServerConfig) -> dict[str, Any]:
    return {
        "zones": [{"scheme": key.scheme, "zone": key.zone, "port": key.port} for key in block.keys],
        "plugins": list(block.plugins),
    }


def _line(server: dict[str, Any]) -> str:
    zones = ", ".join(f"{key['zone']} on {key['scheme']} port {key['port']}" for key in server["zones"])
    return f"  {zones}: {' '.join(server['plugins']) or 'no plugins'}"
