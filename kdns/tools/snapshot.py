"""One consistent view of a cluster's zones and objects: of manifests, a state directory, or a Kubernetes API.

    with snapshot.of_manifests(paths, settings) as view:
        view.zones()
        view.entries(origin)
        view.lookup(name, rr.A)

Manifests and what an API lists are published as a server would publish them, into a store of its own that goes with the
view. A state directory is read where it is, be its kdns running or not; what it writes meanwhile is not seen. A running
kdns cannot use the space anew that a view holds, so a view is not for long. What `entries` and `lookup` return stays.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import lmdb

from kdns.cluster import objects
from kdns.cluster.connection import IN_CLUSTER, Access, Connection
from kdns.cluster.delivery import Delivery
from kdns.cluster.inventory import Inventory
from kdns.cluster.manifests import ManifestSource
from kdns.cluster.objects import EndpointSlice, Object
from kdns.cluster.publisher import Outcome, Publisher, Settings
from kdns.cluster.records import RecordOptions
from kdns.cluster.watch import Pace, Reflector, Resource, resources
from kdns.errors import ApiError, KdnsError
from kdns.plugins import k8s_external, kubernetes
from kdns.plugins.chain import Next
from kdns.wire import message, names, rr
from kdns.wire.message import Query, Response
from kdns.wire.rrset import RRset
from kdns.zone import sources, store
from kdns.zone.changes import Changes
from kdns.zone.lookup import ZoneView
from kdns.zone.reader import Reader
from kdns.zone.store import Store, Zone

Entries: TypeAlias = list[tuple[bytes, tuple[RRset, ...]]]
"""RRsets by owner, in the order of the tree."""

CLUSTER_DNS = ("kube-system", "kube-dns")
LOOPBACK = "127.0.0.1"
LIST_SECONDS = 30.0
"""How long an API server may take to list everything."""
_FINAL = frozenset(("configuration", "tls", "unauthorized", "forbidden", "not_found", "internal"))
"""Faults that another attempt would meet again."""
_KEPT = "; what is known of it stays"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a view's zones answer to a question.

    zone: the one that the name is in, None if it is in none: nothing is said about it here. answer: owners in lower
    case and their RRsets, a CNAME chain in its order. leaves: the name out of all zones at which that chain ends, None
    if it does not. error: why the rcode is SERVFAIL.
    """

    zone: Zone | None
    rcode: int = rr.NOERROR
    answer: tuple[tuple[bytes, RRset], ...] = ()
    additional: tuple[tuple[bytes, RRset], ...] = ()
    leaves: bytes | None = None
    error: str = ""


class View:
    """A cluster as it was at one moment.

    problems: what could not be read, one sentence each; the view is of the rest. warnings: what was read and makes no
    records, and why. made: what is answered without being in a zone (`pods`, `ttl`).
    """

    def __init__(self, reader: Reader, problems: Iterable[str], warnings: Iterable[str], made: RecordOptions) -> None:
        """reader: entered, for as long as the view is used."""
        self.problems = tuple(problems)
        self.warnings = tuple(warnings)
        self.made = made
        self._reader = reader
        self._txn = reader.transaction()
        self._all = [zone for zone in self._txn.zones() if sources.what(zone.source) != sources.CLIENTS]
        self._zones = [zone for zone in self._all if not sources.what(zone.source)]
        self._origins = names.Zones({zone.origin: zone for zone in reversed(self._zones)})
        self._handler = self.handler(kubernetes.Options((), pods=made.pods, ttl=made.ttl, zonal=True), _leave)

    def zones(self) -> list[Zone]:
        """All zones of the cluster. A state directory may have several of one origin, from several directives."""
        return list(self._zones)

    def entries(self, origin: bytes, below: bytes | None = None) -> Entries:
        """The entries of a zone at and below a name (lower case wire format); all of them unless one is given.

        It may be one for clients outside of the cluster (`k8s_external`).

        A name without RRsets exists all the same. Names that are made when they are asked for (`pods insecure`, those
        of topology zones) are not among them. Raises KdnsError if there is no such zone.
        """
        return list(self.walk(origin, below))

    def walk(self, origin: bytes, below: bytes | None = None) -> Iterator[tuple[bytes, tuple[RRset, ...]]]:
        """The same one by one, for clusters whose names would fill the memory. Raises KdnsError at the first."""
        zones = [zone for zone in self._all if zone.origin == origin]
        if not zones:
            there = ", ".join(sorted({names.to_text(zone.origin) for zone in self._all})) or "none"
            raise KdnsError(f"the zone store has no zone {names.to_text(origin)}; it has: {there}")
        for zone in zones:
            for owner, rrsets in self._txn.below(zone, below or origin):
                if names.labels(owner)[1:2] != [b"_zone"]:
                    yield owner, rrsets

    def lookup(self, name: bytes, rtype: int) -> Answer:
        """What kdns answers to a question for a name (any case), as far as that does not need an upstream."""
        lname = names.lower(name)
        query = Query(b"", 0, 0, name, lname, rtype, rr.IN, 0, None, "tcp", ("", 0), ("", 0), message.MAX_MESSAGE)
        zone = self._origins.find(lname)
        if zone is None:
            return Answer(None)
        response = finish(self._handler(query, _leave))
        last = response.answer[-1][1] if response.answer else None
        leaves = None
        if last is not None and last.type == rr.CNAME and rtype in (rr.A, rr.AAAA):
            target = names.lower(last.rdatas[0])
            leaves = target if self._origins.find(target) is None else None
        return Answer(zone, response.rcode, tuple(response.answer), tuple(response.additional), leaves, response.error)

    def handler(self, options: kubernetes.Options, ask: Next) -> kubernetes.Handler:
        """The `kubernetes` plugin at work on this view. options: whose zones it has, or all where there are none.

        ask: what the server answers to another question.
        """
        origins = {names.lower(names.from_text(zone)) for zone in options.zones}
        views = {
            zone.origin: ZoneView(zone.number, zone.origin)
            for zone in reversed(self._zones)
            if not origins or zone.origin in origins
        }
        return kubernetes.Handler(options, views.values(), self._reader, ask)

    def external(self, options: k8s_external.Options, ask: Next) -> k8s_external.Handler:
        """The same of `k8s_external`; only of its zones that are there."""
        origins = {names.lower(names.from_text(zone)) for zone in options.zones}
        views = {
            zone.origin: ZoneView(zone.number, zone.origin)
            for zone in reversed(self._all)
            if zone.origin in origins and sources.what(zone.source) == sources.EXTERNAL
        }
        return k8s_external.Handler(options, views.values(), self._reader, ask)

    def zone_of(self, name: bytes) -> Zone | None:
        """The zone that a name (lower case) is in."""
        return self._origins.find(name)

    def sources(self) -> list[str]:
        """What objects are kept under: one name for each directive."""
        return list(dict.fromkeys(zone.source for zone in self._zones))

    def inventory(self, source: str) -> Inventory:
        """The objects of a source, to be read."""
        return Inventory(self._txn, source)

    def objects(self, kind: str) -> Iterator[Object]:
        """The objects of a kind ("Service", "EndpointSlice" and so on), of all sources, each once."""
        seen: set[str] = set()
        for source in self.sources():
            for key, data in self._txn.objects(source, kind):
                if key not in seen:
                    seen.add(key)
                    yield objects.unpack(data)


@contextlib.contextmanager
def of_manifests(paths: Iterable[str | Path], settings: Settings) -> Iterator[View]:
    """What files and folders with Kubernetes objects make.

    Without `settings.listens` the server's addresses are those of kube-system/kube-dns, else 127.0.0.1. Raises
    KdnsError if there is no room for it.
    """
    found = ManifestSource(paths).load()
    items = list(found.objects.values())
    settings = _listening(settings, items)
    with _published(settings, lambda publisher: publisher.replace(items), map(str, found.problems)) as view:
        yield view


@contextlib.contextmanager
def of_kubeconfig(
    path: str | Path | None, context: str | None, settings: Settings, *, seconds: float = LIST_SECONDS
) -> Iterator[View]:
    """What the API of a kubeconfig has now: see `of_api`.

    path: None for what kubectl takes: KUBECONFIG, ~/.kube/config, or the cluster that this process runs in. context:
    None for the current one. Raises ApiError if there is no telling which.
    """
    with of_api(access(path, context), settings, seconds=seconds) as view:
        yield view


@contextlib.contextmanager
def of_api(
    access: Access, settings: Settings, *, pod_labels: str = "", seconds: float = LIST_SECONDS
) -> Iterator[View]:
    """What a Kubernetes API has now: its objects are listed once, and nothing is left out of a list that is refused.

    settings: as for `of_manifests`; what they hide is read too, and is among the objects. pod_labels: label selector
    of Pods, which are read with `pods verified`. seconds: for all of it. Raises ApiError, with a line for each thing
    that was refused.
    """
    wanted = resources(pods_verified=settings.records.pods == "verified", multicluster=bool(settings.multicluster))
    if pod_labels:
        wanted = tuple(
            replace(each, query=(("labelSelector", pod_labels), *each.query)) if each.kind == "Pod" else each
            for each in wanted
        )
    deliveries, problems = _Listing(access, wanted, seconds).run()
    own = [
        objects.unpack(row)
        for delivery in deliveries
        for key, row in delivery.rows.items()
        if delivery.kind == "EndpointSlice" and row is not None and key.startswith(f"{CLUSTER_DNS[0]}/")
    ]
    settings = _listening(settings, own)

    def publish(publisher: Publisher) -> Outcome:
        return publisher.deliver(deliveries, complete=True, current=True)

    with _published(settings, publish, problems) as view:
        yield view


@contextlib.contextmanager
def of_state_dir(directory: Path, made: RecordOptions | None = None) -> Iterator[View]:
    """What a kdns has in its state directory, or had when it ended.

    made: what it answers without having it there, which a state directory does not tell; nothing unless given. Raises
    KdnsError if it cannot be read.
    """
    path = directory / store.DATA_FILE
    if not path.is_file():
        raise KdnsError(f"{directory} has no zone store ({store.DATA_FILE})")
    with contextlib.ExitStack() as stack:
        try:
            if not _is_held(directory) and (reason := store.damage(directory)):
                raise KdnsError(f"zone store {path} {reason}")
            reader = stack.enter_context(_reading(directory, Changes.create()))
            if reader.transaction().get_meta("version") != store.VERSION:
                raise KdnsError("the zone store was written by another version of kdns")
            view = View(reader, (), (), made or RecordOptions(names.ROOT))
        except (lmdb.Error, OSError) as error:
            raise KdnsError(f"zone store {path}: {error}") from None
        yield view


@contextlib.contextmanager
def _published(settings: Settings, publish: Callable[[Publisher], Outcome], problems: Iterable[str]) -> Iterator[View]:
    """A view of a store that is made for it and removed after it."""
    with contextlib.ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kdns-snapshot-")))
        except OSError as error:
            raise KdnsError(f"no folder for temporary files: {error.strerror}; name one with TMPDIR") from None
        changes, warnings = Changes.create(), list[str]()
        written = Store.open(folder, changes, warnings.append)
        try:
            warnings += publish(Publisher(written, "snapshot", settings)).warnings
        finally:
            written.close()
        reader = stack.enter_context(_reading(folder, changes))
        yield View(reader, problems, warnings, settings.records)


@contextlib.contextmanager
def _reading(directory: Path, changes: Changes) -> Iterator[Reader]:
    """A reader inside of its context."""
    reader = Reader(directory, changes)
    try:
        with reader:
            yield reader
    finally:
        reader.close()


def _is_held(directory: Path) -> bool:
    try:
        return store.is_held(directory)
    except OSError:
        return False


def _listening(settings: Settings, items: Iterable[Object]) -> Settings:
    """The settings with the addresses to answer as: those of the cluster's DNS server if the objects tell them."""
    found = [
        address
        for item in items
        if isinstance(item, EndpointSlice) and (item.namespace, item.service) == CLUSTER_DNS
        for subset in item.subsets
        for endpoint in subset.endpoints
        for address in endpoint.addresses
    ]
    return replace(settings, listens=settings.listens or tuple(found) or (LOOPBACK,))


async def _leave(_: Query) -> Response:
    """What follows a question that our zones do not answer: nobody."""
    return Response(rcode=rr.REFUSED)


def finish(steps: Coroutine[Any, Any, Response]) -> Response:
    """What plugins answer that wait for nothing but the event loop, which is not needed for that."""
    while True:
        try:
            steps.send(None)
        except StopIteration as end:
            response: Response = end.value
            return response


# The Kubernetes API


def access(path: str | Path | None, context: str | None) -> Access:
    """Where the API is, by the rules of kubectl. Raises ApiError."""
    if path is None:
        given = os.environ.get("KUBECONFIG", "")
        files = [name for name in given.split(os.pathsep) if name]
        if len(files) > 1:
            raise ApiError(
                f"KUBECONFIG names several files: {given}; accepted: one, or --kubeconfig FILE", "configuration"
            )
        usual = Path("~/.kube/config").expanduser()
        if files:
            path = files[0]
        elif usual.exists() or not all(map(os.environ.get, IN_CLUSTER)):
            path = usual
    return Access(kubeconfig="" if path is None else str(path), context=context or "")


class _Listing:
    """Lists of all kinds, made once. It is the observer of the connection, and takes what the reflectors hear."""

    def __init__(self, access: Access, wanted: Iterable[Resource], seconds: float) -> None:
        place = access.kubeconfig and f"kubeconfig {access.kubeconfig}"
        self._title = place or (access.endpoint and f"endpoint {access.endpoint}") or "the cluster's API server"
        self._seconds = seconds
        self._connection = Connection(access, self, login_seconds=seconds)
        self._changed = threading.Condition()
        self._listed: dict[str, Delivery] = {}
        self._refused: dict[str, ApiError] = {}
        self._last: dict[str, str] = {}
        self._unreadable: list[str] = []
        self._answered = False
        self._reflectors = {
            each.kind: Reflector(
                each, self._connection, self, None, self._report, streaming=False, pace=Pace(silence=seconds)
            )
            for each in wanted
        }

    def run(self) -> tuple[list[Delivery], list[str]]:
        """All objects, and what is wrong with some that are left out. Raises ApiError."""
        try:
            for reflector in self._reflectors.values():
                reflector.start()
            with self._changed:
                self._changed.wait_for(self._done, self._seconds)
                self._check()
                return list(self._listed.values()), list(dict.fromkeys(self._unreadable))
        finally:
            self._connection.close()
            for reflector in self._reflectors.values():
                reflector.stop()

    def _done(self) -> bool:
        return self._listed.keys() | self._refused.keys() >= self._reflectors.keys()

    def _check(self) -> None:
        """Raise ApiError unless all is listed."""
        late = f"not listed within {self._seconds:g} s"
        errors = [
            self._refused.get(kind) or ApiError(f"{kind}: {self._last.get(kind, late)}", "silent")
            for kind in self._reflectors
            if kind not in self._listed
        ]
        if errors:
            texts = (str(error) if error.reason == "configuration" else f"{self._title}: {error}" for error in errors)
            raise ApiError("\n".join(dict.fromkeys(texts)), errors[0].reason)

    # In the threads of the reflectors

    def request(self, verb: str, host: str, code: str, seconds: float) -> None:
        """A request has its answer's headers."""
        self._answered |= code.isdigit()

    def throttled(self, verb: str, host: str, seconds: float) -> None:
        """A request has waited, which these few do not."""

    def put(self, delivery: Delivery) -> None:
        """A list is complete."""
        self._reflectors[delivery.kind].stop()  # before it begins to watch
        with self._changed:
            self._listed[delivery.kind] = delivery
            self._changed.notify_all()

    def _report(self, kind: str, reason: str, text: str) -> None:
        with self._changed:
            self._last[kind] = text
            if text.endswith(_KEPT):
                self._unreadable.append(f"{text.removesuffix(_KEPT)}; left out")
            elif reason in _FINAL or (reason == "connection" and not self._answered):
                self._refused[kind] = ApiError(text, reason)
                self._changed.notify_all()
