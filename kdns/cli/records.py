"""`kdns records`: the records of a zone, made from manifests or an API, or read from a state directory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from kdns.cli.objects import Context, Kubeconfig, Manifests, StateDir
from kdns.errors import DomainNameError

if TYPE_CHECKING:
    from kdns.cluster.publisher import Settings
    from kdns.wire.rrset import RRset

_REVERSE = (".in-addr.arpa.", ".ip6.arpa.")


class Pods(StrEnum):
    """Which names of pods are listed. Those of `pods insecure` are made when asked for: there is no list of them."""

    disabled = "disabled"
    verified = "verified"


class Row(TypedDict):
    """One record. name: absolute, lower case. ttl: seconds. data: as in a master file."""

    name: str
    ttl: int
    type: str
    data: str


def records(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Only records at and below this name, given in full.")
    ] = None,
    *,
    manifests: Manifests = None,
    state_dir: StateDir = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    zone: Annotated[
        str, typer.Option(help="The zone to list; one under in-addr.arpa or ip6.arpa has the PTR records.")
    ] = "cluster.local",
    cluster_zone: Annotated[
        str | None,
        typer.Option(help="For a reverse zone: where the names lie that it points to; cluster.local unless given."),
    ] = None,
    ttl: Annotated[int | None, typer.Option(min=0, max=3600, help="Seconds; 5 unless given.")] = None,
    pods: Annotated[Pods | None, typer.Option(help="Names of pods by their address; disabled unless given.")] = None,
    endpoint_pod_names: Annotated[
        bool, typer.Option("--endpoint-pod-names", help="Name endpoints without hostname after their pod.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array with an object for each record.")] = False,
) -> None:
    """Print a zone as kdns would serve it, as a master file (RFC 1035 5) that other DNS servers and tools can read.

    The records are made of manifests or of what a Kubernetes API has, without starting anything, or are those that a
    kdns has in its state directory. Names that are made when asked for (pods insecure, zonal) are not listed.
    ns.dns.ZONE has the cluster IPs of kube-system/kube-dns if there is such a Service, else 127.0.0.1.

    What could not be used, and why, is on stderr; if it is a file, or an object that cannot be read, the exit code is
    1, and the records are those of the rest. An API has to allow `list` of Services, EndpointSlices and Namespaces (of
    Pods with --pods verified); what it refuses is told, and nothing is printed then.

    \b
    kdns records --manifests zones/sample
    kdns records --manifests zones/sample db.data.svc.cluster.local --json
    kdns records --manifests zones/sample --zone 96.10.in-addr.arpa
    kdns records --state-dir /var/lib/kdns
    kdns records --kubeconfig ~/.kube/config --context prod

    --cluster-zone, --ttl, --pods and --endpoint-pod-names do not go with --state-dir: what is there is made already.
    """
    from kdns.tools import snapshot
    from kdns.wire import names

    api = kubeconfig is not None or context is not None
    if sum((bool(manifests), state_dir is not None, api)) != 1:
        raise typer.BadParameter(
            "give one of --manifests PATH, --state-dir DIR and --kubeconfig FILE (or --context NAME)"
        )
    if state_dir and (cluster_zone or ttl is not None or pods or endpoint_pod_names):
        raise typer.BadParameter("--cluster-zone, --ttl, --pods and --endpoint-pod-names do not go with --state-dir")
    origin = _absolute(zone)
    if cluster_zone and not _is_reverse(origin):
        raise typer.BadParameter(f"--cluster-zone goes with a reverse zone, and --zone is {zone}")
    below = origin if name is None else _absolute(name)
    if not names.is_subdomain(below, origin):
        raise typer.BadParameter(f"{name} is not in the zone {names.to_text(origin)}; name another with --zone")
    forward = _absolute(cluster_zone or "cluster.local") if _is_reverse(origin) else origin
    settings = _settings(origin, forward, 5 if ttl is None else ttl, pods or Pods.disabled, endpoint_pod_names)
    if state_dir is not None:
        opened = snapshot.of_state_dir(state_dir)
    elif api:
        opened = snapshot.of_kubeconfig(kubeconfig, context, settings)
    else:
        opened = snapshot.of_manifests(manifests or [], settings)
    with opened as view:
        entries, problems = view.entries(origin, below), view.problems
        for text in (*problems, *view.warnings):
            typer.echo(text, err=True)
    rows = [row for owner, rrsets in entries for row in _rows(owner, rrsets)]
    typer.echo(json.dumps(rows, indent=2) if as_json else "\n".join(map(_line, rows)))
    if problems:
        raise typer.Exit(1)


def _absolute(text: str) -> bytes:
    from kdns.wire import names

    try:
        return names.lower(names.from_text(text))
    except DomainNameError as error:
        raise typer.BadParameter(str(error)) from None


def _is_reverse(origin: bytes) -> bool:
    from kdns.wire import names

    return ("." + names.to_text(origin)).endswith(_REVERSE)


def _settings(origin: bytes, forward: bytes, ttl: int, pods: Pods, endpoint_pod_names: bool) -> Settings:
    from kdns.cluster.publisher import Settings
    from kdns.cluster.records import RecordOptions

    reverse = () if origin == forward else (origin,)
    options = RecordOptions(forward, ttl=ttl, pods=pods.value, endpoint_pod_names=endpoint_pod_names)
    return Settings((forward,), reverse, records=options)


def _rows(owner: bytes, rrsets: tuple[RRset, ...]) -> Iterator[Row]:
    from kdns.tools.rdata import rdata_text
    from kdns.wire import names, rr

    name = names.to_text(owner)
    for rrset in rrsets:
        rtype = rr.type_text(rrset.type)
        for rdata in rrset.rdatas:
            yield {"name": name, "ttl": rrset.ttl, "type": rtype, "data": rdata_text(rrset.type, rdata)}


def _line(row: Row) -> str:
    return f"{row['name']}\t{row['ttl']}\tIN\t{row['type']}\t{row['data']}"
