"""`kdns migrate`: what CoreDNS has, and the manifests of kdns that take over from it."""

from __future__ import annotations

import contextlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdns.errors import KdnsError

if TYPE_CHECKING:
    from kdns.tools.carry import Plan
    from kdns.tools.coredns import KubeObject
    from kdns.tools.corefiles import Source

_DIFFERENT = 3
_STDIN = Path("-")


def migrate(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE...]", help="Objects as YAML or JSON, or a Corefile; - is stdin."),
    ] = None,
    *,
    kubeconfig: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Read the objects of a cluster in the place of files.")
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Its context; without --kubeconfig of KUBECONFIG or ~/.kube/config."),
    ] = None,
    namespace: Annotated[str, typer.Option(help="Where CoreDNS is, with --kubeconfig.")] = "kube-system",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Write the manifests here.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
    without_unsupported: Annotated[
        bool, typer.Option("--without-unsupported", help="Comment out what kdns does not have, and go on.")
    ] = False,
    image: Annotated[str, typer.Option(metavar="NAME", help="Image of kdns.")] = "kdns:0.1.0",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array with an object for each part.")] = False,
) -> None:
    """Report what works unchanged of a CoreDNS, what differs and what is not supported; write kdns's manifests.

    Reads the ConfigMap and the Deployment of CoreDNS, and of NodeLocal DNSCache its DaemonSet; with them the Services,
    autoscalers, disruption budgets and further ConfigMaps that are given too. A Corefile alone will do for the report.
    Each of its lines is told as FILE:LINE, with the sentences of the manual where kdns does otherwise.

    DIR/cluster gets a Deployment of kdns that can run beside CoreDNS, behind the same Service, and DIR/node the
    DaemonSet of the nodes with kdns in it, to be put in its place; both with the Corefile as it was, byte for byte, and
    a kustomization.yaml. The cluster is not changed. As long as something is not supported nothing is written.

    \b
    kdns migrate --kubeconfig ~/.kube/config
    kubectl -n kube-system get cm/coredns deploy/coredns svc/kube-dns -o yaml | kdns migrate - --output kdns
    kdns migrate Corefile
    kubectl apply -k kdns/cluster
    kubectl apply -k kdns/node && kubectl replace -f kdns/node/daemonset.yaml

    Exit codes: 0 all of it works unchanged; 1 something is not supported, or cannot be read or written; 2 the command
    line was wrong; 3 it works, and something differs.
    """
    from kdns.tools.corefiles import Verdict
    from kdns.tools.migrate import plans
    from kdns.tools.takeover import Options

    live = kubeconfig is not None or context is not None
    if live == bool(files):
        raise typer.BadParameter("give either files, or --kubeconfig FILE (or --context NAME)")
    objects, bare = _live(kubeconfig, context, namespace) if live else _read(files or [])
    found = plans(objects, bare, Options(image, without_unsupported))
    typer.echo(json.dumps([_facts(plan) for plan in found], indent=2) if as_json else "\n\n".join(map(_text, found)))
    if output is not None:
        _write(found, output, force)
    verdicts = {plan.verdict for plan in found}
    if Verdict.UNSUPPORTED in verdicts and not (without_unsupported and all(plan.files for plan in found)):
        raise typer.Exit(1)
    if verdicts != {Verdict.UNCHANGED}:
        raise typer.Exit(_DIFFERENT)


def _read(files: Sequence[Path]) -> tuple[list[KubeObject], list[Source]]:
    """The objects of files, and what is a Corefile. Raises KdnsError."""
    from kdns.tools import coredns
    from kdns.tools.corefiles import Source

    objects: list[KubeObject] = []
    bare: list[Source] = []
    for path in files:
        name = "stdin" if path == _STDIN else str(path)
        try:
            data = sys.stdin.buffer.read() if path == _STDIN else path.read_bytes()
            text = data.decode()
        except OSError as error:
            raise KdnsError(f"{path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise KdnsError(f"{name} is not UTF-8; accepted: YAML or JSON objects, or a Corefile") from None
        found = coredns.read(text, name)
        if found is None:
            bare.append(Source("/etc/coredns/Corefile", text, name))
        else:
            objects += found
    return objects, bare


def _live(kubeconfig: Path | None, context: str | None, namespace: str) -> tuple[list[KubeObject], list[Source]]:
    """What a namespace of a cluster has. Raises ApiError."""
    from kdns.tools import coredns, snapshot

    objects, left_out = coredns.of_kubeconfig(snapshot.access(kubeconfig, context), namespace)
    for text in left_out:
        typer.echo(text, err=True)
    return objects, []


def _text(plan: Plan) -> str:
    """A plan for people: a line for each thing, its reasons below."""
    lines = [f"{plan.part}: {plan.origin}", ""]
    for finding in plan.findings:
        lines.append(f"{finding.where}: {finding.verdict}: {finding.what}")
        lines += [f"    {why}" for why in finding.why]
    counts = Counter(finding.verdict for finding in plan.findings)
    lines += ["", ", ".join(f"{counts[verdict]} {verdict}" for verdict in counts)]
    return "\n".join(lines)


def _facts(plan: Plan) -> dict[str, Any]:
    return {
        "part": plan.part,
        "of": plan.origin,
        "verdict": plan.verdict,
        "findings": [
            {"where": each.where, "verdict": each.verdict, "what": each.what, "why": list(each.why)}
            for each in plan.findings
        ],
        "files": sorted(plan.files),
    }


def _write(found: Sequence[Plan], output: Path, force: bool) -> None:
    """Write all manifests, or nothing. Raises KdnsError."""
    refused = [plan.part for plan in found if not plan.files]
    if refused:
        raise KdnsError(
            f"nothing is written: {' and '.join(refused)} has what is not supported; accepted: without it, or"
            " --without-unsupported, which comments it out"
        )
    for part, count in Counter(plan.part for plan in found).items():
        if count > 1:
            origins = ", ".join(plan.origin for plan in found if plan.part == part)
            raise KdnsError(f"nothing is written: there are several for {output / part}: {origins}; accepted: one")
    texts = {output / plan.part / name: text for plan in found for name, text in plan.files.items()}
    if not force and (there := [str(path) for path in texts if path.exists()]):
        raise KdnsError(f"nothing is written: {', '.join(there)} exists; accepted: another folder, or --force")
    staged = {path: path.with_name(f".{path.name}.new") for path in texts}
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            staged[path].write_text(text, encoding="utf-8")
        for path, new in staged.items():
            new.replace(path)
    except OSError as error:
        for new in staged.values():
            with contextlib.suppress(OSError):
                new.unlink()
        raise KdnsError(f"{error.filename or output} cannot be written: {error.strerror}") from None
    typer.echo("\n".join(["", *(f"written: {path}" for path in sorted(texts))]), err=True)
