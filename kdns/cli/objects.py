"""Options of several commands: where a cluster's objects are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Manifests = Annotated[
    list[Path] | None,
    typer.Option(metavar="PATH", help="File or folder with Kubernetes objects; may be given several times."),
]
StateDir = Annotated[Path | None, typer.Option(metavar="DIR", help="State directory of a kdns, which may be running.")]
Kubeconfig = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="How to reach a Kubernetes API, whose objects are listed once."),
]
Context = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Context of the kubeconfig; without --kubeconfig of KUBECONFIG or ~/.kube/config."
    ),
]
