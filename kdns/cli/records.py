"""`kdns records`: the records of a zone, made from manifests or read from a state directory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from kdns.errors import DomainNameError, KdnsError

if TYPE_CHECKING:
    from kdns.cluster.objects import Object
    from kdns.cluster.publisher import Settings
    from kdns.wire.rrset import RRset
    from kdns.zone.store import Transaction

    Entries = list[tuple[bytes, tuple[RRset, ...]]]

CLUSTER_DNS = ("kube-system", "kube-dns")
LOOPBACK = "127.0.0.1"
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
    manifests: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="File or folder with Kubernetes objects; may be given several times."),
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="State directory of a kdns, which may be running.")
    ] = None,
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

    The records are made of manifests, without starting anything, or are those that a kdns has in its state directory.
    Names that are made when asked for (pods insecure, zonal) are not listed. ns.dns.ZONE has the cluster IPs of
    kube-system/kube-dns if the manifests have it, else 127.0.0.1. What could not be used, and why, is on stderr; if
    it is a file the exit code is 1. The records are those of the rest.

    \b
    kdns records --manifests zones/sample
    kdns records --manifests zones/sample db.data.svc.cluster.local --json
    kdns records --manifests zones/sample --zone 96.10.in-addr.arpa
    kdns records --state-dir /var/lib/kdns

    --cluster-zone, --ttl, --pods and --endpoint-pod-names go with --manifests: what a state directory has is made.
    """
    from kdns.wire import names

    if bool(manifests) == bool(state_dir):
        raise typer.BadParameter("give either --manifests PATH or --state-dir DIR")
    if state_dir and (cluster_zone or ttl is not None or pods or endpoint_pod_names):
        raise typer.BadParameter("--cluster-zone, --ttl, --pods and --endpoint-pod-names go with --manifests only")
    origin = _absolute(zone)
    if cluster_zone and not _is_reverse(origin):
        raise typer.BadParameter(f"--cluster-zone goes with a reverse zone, and --zone is {zone}")
    below = origin if name is None else _absolute(name)
    if not names.is_subdomain(below, origin):
        raise typer.BadParameter(f"{name} is not in the zone {names.to_text(origin)}; name another with --zone")
    if state_dir is not None:
        entries, problems = _stored(state_dir, origin, below), 0
    else:
        forward = _absolute(cluster_zone or "cluster.local") if _is_reverse(origin) else origin
        settings = _settings(origin, forward, 5 if ttl is None else ttl, pods or Pods.disabled, endpoint_pod_names)
        entries, problems = _made(manifests or [], settings, origin, below)
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


def _made(paths: list[Path], settings: Settings, origin: bytes, below: bytes) -> tuple[Entries, int]:
    """What manifests make, in a store of its own that is gone afterwards, and how many problems they have."""
    import dataclasses
    import tempfile

    from kdns.cluster.manifests import ManifestSource
    from kdns.cluster.publisher import Publisher
    from kdns.zone.changes import Changes
    from kdns.zone.store import Store

    snapshot = ManifestSource(paths).load()
    settings = dataclasses.replace(settings, listens=_nameservers(snapshot.objects.values()))
    with tempfile.TemporaryDirectory(prefix="kdns-records-") as folder:
        store = Store.open(Path(folder), Changes.create(), _warn)
        outcome = Publisher(store, "manifests", settings).replace(snapshot.objects.values())
        entries = store.read(lambda txn: _entries(txn, origin, below))
        store.close()
    for text in (*map(str, snapshot.problems), *outcome.warnings):
        _warn(text)
    return entries, len(snapshot.problems)


def _nameservers(items: Iterable[Object]) -> tuple[str, ...]:
    """The addresses to answer as: those of the cluster's DNS server if the manifests have it."""
    from kdns.cluster.objects import EndpointSlice

    found = [
        address
        for item in items
        if isinstance(item, EndpointSlice) and (item.namespace, item.service) == CLUSTER_DNS
        for subset in item.subsets
        for endpoint in subset.endpoints
        for address in endpoint.addresses
    ]
    return tuple(found) or (LOOPBACK,)


def _warn(text: str) -> None:
    typer.echo(text, err=True)


def _stored(directory: Path, origin: bytes, below: bytes) -> Entries:
    """What the store in a state directory has at and below a name. Raises KdnsError if it cannot be read."""
    import lmdb

    from kdns.zone import store

    path = directory / store.DATA_FILE
    if not path.is_file():
        raise KdnsError(f"{directory} has no zone store ({store.DATA_FILE})")
    try:
        with lmdb.open(str(directory), readonly=True, max_dbs=8) as env:
            databases = [env.open_db(each, create=False) for each in (b"names", b"zones", b"objects", b"meta")]
            with env.begin() as raw:
                return _entries(store.Transaction(raw, databases), origin, below)
    except lmdb.Error as error:
        raise KdnsError(f"zone store {path}: {error}") from None


def _entries(txn: Transaction, origin: bytes, below: bytes) -> Entries:
    """The entries at and below a name, without those that only the server's own look-up of topology zones uses."""
    from kdns.wire import names
    from kdns.zone.store import VERSION

    if txn.get_meta("version") != VERSION:
        raise KdnsError("the zone store was written by another version of kdns")
    zones = [zone for zone in txn.zones() if zone.origin == origin]
    if not zones:
        there = ", ".join(sorted(names.to_text(zone.origin) for zone in txn.zones())) or "none"
        raise KdnsError(f"the zone store has no zone {names.to_text(origin)}; it has: {there}")
    found = [entry for zone in zones for entry in txn.below(zone, below)]
    return [(owner, rrsets) for owner, rrsets in found if names.labels(owner)[1:2] != [b"_zone"]]


def _rows(owner: bytes, rrsets: tuple[RRset, ...]) -> Iterator[Row]:
    from dnslib import RDMAP, DNSBuffer

    from kdns.wire import names, rr

    name = names.to_text(owner)
    for rrset in rrsets:
        rtype = rr.type_text(rrset.type)
        for rdata in rrset.rdatas:
            data = RDMAP[rtype].parse(DNSBuffer(rdata), len(rdata)).toZone()
            yield {"name": name, "ttl": rrset.ttl, "type": rtype, "data": data}


def _line(row: Row) -> str:
    return f"{row['name']}\t{row['ttl']}\tIN\t{row['type']}\t{row['data']}"
