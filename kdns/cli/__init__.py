"""The command line: one module for each command, and `objects` with the options that several have.

Importing this package brings in typer and the declarations of the commands, and nothing that one command alone needs:
those imports stand inside the commands, so that `kdns serve` starts without the libraries of `kdns query`.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from kdns.cli import check, compare, demo, doc, explain, migrate, node, query, records, serve, top, version
from kdns.errors import KdnsError


class Commands(TyperGroup):
    """The group of all commands: an error of ours is one line (or one for each mistake) on stderr, and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KdnsError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from None


class Application(typer.Typer):
    """All commands. A process that runs one of them makes that alone: to make all takes a tenth of a server's start."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        one = copy.copy(self)
        named = [each for each in self.registered_commands if getattr(each.callback, "__name__", "") in sys.argv[1:2]]
        one.registered_commands = named or self.registered_commands
        return super(Application, one).__call__(*arguments, **options)


app = Application(
    name="kdns",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Cluster DNS for Kubernetes: answers prepared before the question arrives.

    Start with: kdns demo. To serve: kdns serve --conf Corefile. Before you do: kdns check Corefile.

    Exit codes: 0 all went well; 1 it did not, and stderr says why; 2 the command line was wrong; 3 what was
    looked up or compared is not as one wants it. Each command's help says more.""",
)


@app.callback()
def _commands() -> None:
    """Makes a group also of one command."""


app.command()(serve.serve)
app.command(cls=node.GoFlags)(node.node)
app.command()(demo.demo)
app.command()(check.check)
app.command()(query.query)
app.command()(records.records)
app.command()(compare.compare)
app.command()(migrate.migrate)
app.command()(explain.explain)
app.command()(top.top)
app.command()(doc.doc)
app.command()(version.version)
