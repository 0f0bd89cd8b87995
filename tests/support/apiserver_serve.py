"""The part of the test API server that answers: authentication, lists, watches.

Semantics are those of kube-apiserver as its documentation has them (Kubernetes API Concepts), with one shortening:
where it waits up to three seconds for a resourceVersion of the future, a list is refused at once.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import bisect
import contextlib
import json
import ssl
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from tests.support.apiserver_http import (
    EndedError,
    Fault,
    Record,
    RefusedError,
    Request,
    Response,
    dumps,
    read_request,
    reset,
    status,
)
from tests.support.apiserver_rbac import Deed, allows
from tests.support.apiserver_store import (
    ADDED,
    RESOURCES,
    Event,
    ExpiredError,
    Resource,
    Scope,
    SelectorError,
    Snapshot,
    Store,
    Target,
    field_selector,
    label_selector,
)
from tests.support.apiserver_write import VERBS, Writer

INITIAL_EVENTS_END = "k8s.io/initial-events-end"
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_OPEN = {"/livez": b"ok", "/readyz": b"ok", "/healthz": b"ok"}
_VERSION = {"major": "1", "minor": "34", "gitVersion": "v1.34.0", "platform": "linux/amd64"}


@dataclass(slots=True)
class Settings:
    """How the server behaves."""

    bookmark_seconds: float = 60.0
    """Time between bookmarks on a watch that asked for them."""
    watch_seconds: float = 3600.0
    """A watch ends after this, or sooner if it asked so."""
    streaming: str = "on"
    """Streaming lists: `on`; `invalid` (422, the feature gate is off); `bad_request` (400); `ignored` (a server that
    does not know the parameter: an ordinary watch)."""
    gone: str = "event"
    """How a watch from a compacted version is refused: `event` (as kube-apiserver does) or `status`."""
    authenticate: bool = False
    """Whether a request needs a token or a client certificate."""
    writable: bool = False
    """Whether objects can be written over HTTP."""
    rbac: bool = False
    """Whether users may do what their roles say, and nothing else."""
    split: list[int] = field(default_factory=list)
    """Offsets at which every live watch event is divided into chunks; below 0: from its end."""
    split_pause: float = 0.0
    """Seconds between such chunks. The whole server waits."""


def target(path: str) -> Target | None:
    """The collection or object at a path; None if it is none of ours."""
    for resource in RESOURCES:
        root = resource.root
        if not path.startswith(f"{root}/"):
            continue
        match path[len(root) + 1 :].split("/"):
            case [plural] if plural == resource.plural:
                return Target(resource, "", "")
            case ["namespaces", namespace, plural] if plural == resource.plural and resource.namespaced:
                return Target(resource, namespace, "")
            case ["namespaces", namespace, plural, name] if plural == resource.plural and resource.namespaced:
                return Target(resource, namespace, name)
            case [plural, name] if plural == resource.plural and not resource.namespaced:
                return Target(resource, "", name)
    return None


def discovery(path: str, kinds: Collection[str]) -> Any:
    """What a client asks first to learn which resources there are; None for another path."""
    there = [resource for resource in RESOURCES if resource.kind in kinds]
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
    if path == "/apis":
        versions = sorted({resource.version for resource in there if resource.group})
        groups = [{"name": version.partition("/")[0], "versions": [_version(version)]} for version in versions]
        found = [group | {"preferredVersion": group["versions"][0]} for group in groups]  # each has one
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": found}
    resources = [
        {
            "name": resource.plural,
            "singularName": resource.kind.lower(),
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
        }
        for resource in there
        if resource.root == path
    ]
    if not resources:
        return None
    version = path.removeprefix("/apis/").removeprefix("/api/")
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}


def _version(text: str) -> dict[str, str]:
    return {"groupVersion": text, "version": text.partition("/")[2]}


def kind_of(found: Target | None, query: dict[str, str], method: str = "GET") -> str:
    """A Record's kind."""
    if found is None:
        return "other"
    if method != "GET":
        return "write"
    if found.name:
        return "get"
    if query.get("watch") not in _TRUE:
        return "list"
    return "stream" if query.get("sendInitialEvents") in _TRUE else "watch"


@dataclass(frozen=True, slots=True)
class Connection:
    """An open connection and its number."""

    number: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def subject(self) -> str:
        """The common name of the client's certificate; empty for none."""
        found = self.writer.get_extra_info("peercert") or {}
        return next((value for part in found.get("subject", ()) for name, value in part if name == "commonName"), "")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and what becomes of it."""

    request: Request
    target: Target | None
    record: Record
    response: Response
    connection: Connection
    fault: Fault


class Watch:
    """An open watch: it is sent the events of its scope above a revision."""

    def __init__(self, response: Response, record: Record, scope: Scope, floor: int, bookmarks: bool) -> None:
        self.response = response
        self.record = record
        self.scope = scope
        self.floor = floor
        self.bookmarks = bookmarks
        self.muted = False
        self.over: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def send(self, line: bytes, split: Iterable[int] = (), pause: float = 0.0) -> None:
        """Send a line, unless it went silent or is over."""
        if self.muted or self.over.done():
            return
        try:
            self.response.pieces(line, split, pause)
        except EndedError as ended:
            self.finish(ended.then)

    def finish(self, then: str) -> None:
        """End it as a Fault's `then` says; one that went silent only ends by `fin` or `rst`."""
        if then == "silent":
            self.muted = True
        elif not self.over.done() and (not self.muted or then in ("fin", "rst")):
            self.over.set_result(then)


def line(kind: str, item: bytes) -> bytes:
    """A watch event."""
    return b'{"type":"%b","object":%b}\n' % (kind.encode(), item)


def error_line(found: dict[str, Any]) -> bytes:
    """An ERROR event with a Status."""
    return line("ERROR", dumps(found))


def bookmark_line(resource: Resource, revision: int, *, initial: bool = False) -> bytes:
    """A BOOKMARK event; `initial`: the one behind the initial events of a streaming list."""
    metadata: dict[str, Any] = {"resourceVersion": str(revision), "creationTimestamp": None}
    if initial:
        metadata["annotations"] = {INITIAL_EVENTS_END: "true"}
    return line("BOOKMARK", dumps({"kind": resource.kind, "apiVersion": resource.version, "metadata": metadata}))


def expired(message: str, **more: Any) -> RefusedError:
    """410 Gone, as kube-apiserver words it."""
    return RefusedError(410, message, "Expired", **more)


def too_large(wanted: int, revision: int) -> RefusedError:
    """A resourceVersion of the future."""
    text = "Too large resource version"
    details = {"causes": [{"reason": "ResourceVersionTooLarge", "message": text}], "retryAfterSeconds": 1}
    return RefusedError(504, f"{text}: {wanted}, current: {revision}", "Timeout", details=details)


class ApiService:
    """Serves a Store over HTTP. All of it runs in one event loop; what is not `async` happens at once."""

    def __init__(self, context: ssl.SSLContext | None, host: str, port: int) -> None:
        self.store = Store()
        self.writer = Writer()
        self.settings = Settings()
        self.context = context
        self.tokens: dict[str, str] = {}
        self.forbidden: list[str] = []
        self.installed = {resource.kind for resource in RESOURCES if not resource.custom}
        self.faults: list[Fault] = []
        self.records: list[Record] = []
        self.watches: list[Watch] = []
        self.connections: set[asyncio.StreamWriter] = set()
        self.accepted = 0
        self._at = (host, port)
        self._server: asyncio.Server | None = None

    # Listening

    async def listen(self) -> None:
        """Accept connections; does nothing while it does."""
        if self._server is None:
            host, port = self._at
            self._server = await asyncio.start_server(
                self._serve, host, port, ssl=self.context, limit=1 << 20, backlog=256
            )

    def refuse(self) -> None:
        """Stop listening; open connections stay."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def break_connections(self, then: str, *, idle: bool) -> int:
        """End watches, or with `idle` all connections, by `fin` or `rst`; returns how many there were."""
        if not idle:
            for watch in list(self.watches):
                watch.finish(then)
            return len(self.watches)
        for writer in self.connections:
            reset(writer.transport) if then == "rst" else writer.transport.abort()
        return len(self.connections)

    # Changes

    def write(self, operations: Iterable[tuple[str, dict[str, Any]]]) -> list[tuple[float, int]]:
        """Write objects and hand the events to the watches; for each its time (CLOCK_MONOTONIC) and revision.

        No request is answered between them. Raises StoreError at the first that cannot be done.
        """
        return [self.send(self.store.write(operation, item)) for operation, item in operations]

    def send(self, event: Event) -> tuple[float, int]:
        """Hand an event to the open watches; its time, taken before the first got it, and its revision."""
        now = time.monotonic()
        for watch in self.watches:
            if watch.scope.resource is event.resource and event.revision > watch.floor:
                self._send_to(watch, event)
        return now, event.revision

    def _send_to(self, watch: Watch, event: Event) -> None:
        found = watch.scope.event(event)
        if found is not None:
            watch.send(line(*found), self.settings.split, self.settings.split_pause)

    def resend(self, event: Event) -> int:
        """Hand an event to the open watches of its resource whatever they have seen; returns to how many."""
        found = [watch for watch in self.watches if watch.scope.resource is event.resource]
        for watch in found:
            self._send_to(watch, event)
        return len(found)

    def bookmark(self) -> int:
        """Send a bookmark to each watch that asked for them and is not ahead of the server; returns to how many."""
        found = [watch for watch in self.watches if watch.bookmarks and watch.floor <= self.store.revision]
        for watch in found:
            watch.send(bookmark_line(watch.scope.resource, self.store.revision))
        return len(found)

    # Connections

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(writer)
        self.accepted += 1
        connection = Connection(self.accepted, reader, writer)
        try:
            while (request := await read_request(reader)) is not None:
                if not await self._exchange(request, connection):
                    break
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            self.connections.discard(writer)
            writer.close()

    async def _exchange(self, request: Request, connection: Connection) -> bool:
        """Answer a request; returns whether the connection goes on."""
        found = target(request.path)
        agent = request.headers.get("user-agent", "")
        kind = kind_of(found, request.query, request.method)
        record = Record(time.monotonic(), kind, request.method, request.path, request.query, agent, connection.number)
        self.records.append(record)
        fault = next((fault for fault in self.faults if fault.matches(record)), Fault())
        response = Response(connection.writer, record, fault.cut, fault.then)
        try:
            await self._answer(Exchange(request, found, record, response, connection, fault))
            await connection.writer.drain()
        except EndedError as ended:
            return await response.conclude(ended.then, connection.reader)
        finally:
            record.ended = time.monotonic()
        return request.headers.get("connection", "").lower() != "close"

    async def _answer(self, exchange: Exchange) -> None:
        """Raises EndedError where the answer does not end by itself."""
        try:
            await self._fail(exchange.fault, exchange.response)
            await self._respond(exchange)
        except RefusedError as refused:
            await exchange.response.whole(refused.code, dumps(refused.status))

    async def _fail(self, fault: Fault, response: Response) -> None:
        """The part of a fault that comes before the answer, or in its place. Raises EndedError."""
        fault.times -= 1
        await asyncio.sleep(fault.delay)
        if fault.status:
            body = fault.body.encode() if fault.body is not None else dumps(status(fault.status, "fault on command"))
            headers = {"Retry-After": fault.retry_after} if fault.retry_after else {}
            await response.whole(fault.status, body, headers=headers)
            raise EndedError(fault.then)
        if fault.then and fault.cut is None and not fault.data:
            raise EndedError(fault.then)

    async def _respond(self, exchange: Exchange) -> None:
        path, record, found, response = exchange.request.path, exchange.record, exchange.target, exchange.response
        if path in _OPEN:
            return await response.whole(200, _OPEN[path], "text/plain; charset=utf-8")
        if path == "/version":
            return await response.whole(200, dumps(_VERSION))
        record.user = self._user(exchange)
        if (document := discovery(path, self.installed)) is not None:
            return await response.whole(200, dumps(document))
        if found is None or found.resource.kind not in self.installed:
            return await response.whole(404, b"404 page not found\n", "text/plain; charset=utf-8")
        if record.method != "GET":
            return await self._write(exchange, found)
        self._authorize(record, found)
        if found.name:
            return await response.whole(200, self._get(found))
        scope = _scope(found, record.query)
        return await (self._list if record.kind == "list" else self._watch)(scope, exchange)

    async def _write(self, exchange: Exchange, found: Target) -> None:
        """POST is for collections, the other methods are for objects."""
        request = exchange.request
        if not self.settings.writable or request.method not in VERBS or (request.method == "POST") == bool(found.name):
            raise RefusedError(405, "the server does not allow this method on the requested resource")
        self._authorize(exchange.record, found)
        operation, item = self.writer.take(self.store, found, request)
        self.write([(operation, item)])
        if operation == "delete":
            done = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
            return await exchange.response.whole(200, dumps(done))
        made = self._get(replace(found, name=item["metadata"]["name"]))
        await exchange.response.whole(201 if operation == "create" else 200, made)

    def _user(self, exchange: Exchange) -> str:
        """Who asks: the token counts before the certificate. Raises RefusedError."""
        scheme, _, token = exchange.request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            if token.strip() in self.tokens:
                return self.tokens[token.strip()]
            raise RefusedError(401, "Unauthorized")
        subject = exchange.connection.subject
        if self.settings.authenticate and not subject:
            raise RefusedError(401, "Unauthorized")
        return subject or "system:anonymous"

    def _authorize(self, record: Record, found: Target) -> None:
        resource = found.resource
        verb = VERBS.get(record.method) or (record.kind if record.kind in ("list", "get") else "watch")
        deed = Deed(record.user, verb, resource.group, resource.plural, found.namespace, found.name)
        if any(part in record.path for part in self.forbidden) or (self.settings.rbac and not allows(self.store, deed)):
            where = f'in the namespace "{found.namespace}"' if found.namespace else "at the cluster scope"
            raise RefusedError(
                403,
                f'{resource.plural} is forbidden: User "{record.user}" cannot {verb} resource "{resource.plural}" '
                f'in API group "{resource.group}" {where}',
                details={"group": resource.group, "kind": resource.plural},
            )

    def _get(self, found: Target) -> bytes:
        entry = self.store.get(found.resource, found.key)
        if entry is None:
            raise RefusedError(404, f'{found.resource.plural} "{found.name}" not found')
        return found.resource.prefix + entry.data[1:]

    # Lists

    async def _list(self, scope: Scope, exchange: Exchange) -> None:
        query = exchange.request.query
        if "sendInitialEvents" in query:
            raise _invalid("sendInitialEvents is forbidden for list")
        limit = _number(query.get("limit", "") or "0", "limit")
        snapshot, start = self._listed(query, scope.resource, limit)
        if query.get("resourceVersion") == "0" and "continue" not in query:
            limit = 0  # served from the watch cache, which does not page
        items, more = _page(snapshot, scope, start, limit)
        metadata: dict[str, Any] = {"resourceVersion": str(snapshot.revision)}
        if more:
            metadata["continue"] = _token(snapshot.revision, more[0])
            if not scope.selects:
                metadata["remainingItemCount"] = len(more)
        resource = scope.resource
        head = dumps({"kind": f"{resource.kind}List", "apiVersion": resource.version, "metadata": metadata})
        if resource.custom:
            items = [resource.prefix + item[1:] for item in items]
        await exchange.response.whole(200, b'%b,"items":[%b]}\n' % (head[:-1], b",".join(items)))

    def _listed(self, query: dict[str, str], resource: Resource, limit: int) -> tuple[Snapshot, str]:
        """What a list shows, and the key that it begins with."""
        wanted, match = query.get("resourceVersion", ""), query.get("resourceVersionMatch", "")
        if query.get("continue"):
            return self._continued(resource, query["continue"], wanted, match)
        if match and not wanted:
            raise _invalid("resourceVersionMatch is forbidden unless resourceVersion is provided")
        if match not in ("", "Exact", "NotOlderThan"):
            raise _invalid(f'resourceVersionMatch: Unsupported value: "{match}"')
        if match == "Exact" and wanted == "0":
            raise _invalid('resourceVersionMatch "exact" is forbidden for resourceVersion "0"')
        revision = _number(wanted or "0", "resourceVersion")
        if revision > self.store.revision:
            raise too_large(revision, self.store.revision)
        exact = match == "Exact" or (not match and limit > 0 and revision > 0)
        try:
            return self.store.snapshot(resource, revision if exact else None), ""
        except ExpiredError:
            message = f"The resourceVersion for the provided list is too old: {revision} ({self.store.compacted})"
            raise expired(message) from None

    def _continued(self, resource: Resource, token: str, wanted: str, match: str) -> tuple[Snapshot, str]:
        if wanted not in ("", "0") or match:
            raise RefusedError(400, "specifying resource version is not allowed when using continue")
        try:
            found = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
            revision, start = int(found["rv"]), str(found["start"])
        except (ValueError, KeyError, TypeError, binascii.Error):
            raise RefusedError(400, "continue key is not valid") from None
        try:
            return self.store.snapshot(resource, None if revision < 0 else revision), start
        except ExpiredError:
            raise expired(
                "The provided continue parameter is too old to display a consistent list result. You can start a new "
                "list without the continue parameter, or use the continue token in this response to retrieve the "
                "remainder of the results.",
                metadata={"continue": _token(-1, start)},
            ) from None

    # Watches

    async def _watch(self, scope: Scope, exchange: Exchange) -> None:
        query, record, response, fault = exchange.request.query, exchange.record, exchange.response, exchange.fault
        bookmarks = query.get("allowWatchBookmarks") in _TRUE
        stream = self._streams(query)
        seconds = _number(query.get("timeoutSeconds") or "0", "timeoutSeconds") or self.settings.watch_seconds
        ends = record.time + min(seconds, self.settings.watch_seconds)
        revision = _number(query.get("resourceVersion") or "0", "resourceVersion")
        try:
            floor = await self._initial(scope, revision, response, stream=stream, bookmark=bookmarks)
        except RefusedError as refused:
            if refused.code == 410 and self.settings.gone == "status" and not response.begun:
                raise
            if not response.begun:
                response.begin(200)
            response.chunk(error_line(refused.status))
            raise EndedError("end") from None
        watch = Watch(response, record, scope, floor, bookmarks)
        self.watches.append(watch)
        try:
            if fault.data:
                watch.send(base64.b64decode(fault.data), fault.split, self.settings.split_pause)
                if fault.then:
                    watch.finish(fault.then)
            then = await _over(watch, exchange.connection.reader, max(0.0, ends - time.monotonic()))
        finally:
            self.watches.remove(watch)
        raise EndedError(then)

    def _streams(self, query: dict[str, str]) -> bool:
        """Whether a watch is a streaming list."""
        mode = self.settings.streaming
        match = query.get("resourceVersionMatch", "")
        if mode == "ignored":
            return False
        if "sendInitialEvents" not in query:
            if match:
                raise _invalid("resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided")
            return False
        if mode == "bad_request":
            raise RefusedError(400, "the server does not know the parameter sendInitialEvents")
        if mode == "invalid":
            raise _invalid("sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled")
        if match != "NotOlderThan":
            raise _invalid("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan")
        return query["sendInitialEvents"] in _TRUE

    async def _initial(self, scope: Scope, revision: int, response: Response, *, stream: bool, bookmark: bool) -> int:
        """Send all that a watch begins with; returns the revision above which it wants events."""
        resource = scope.resource
        if stream and revision > self.store.revision:
            raise too_large(revision, self.store.revision)
        if stream or revision == 0:
            snapshot = self.store.snapshot(resource)
            revision = snapshot.revision
            response.begin(200)
            entries = [snapshot.entries[key] for key in snapshot.keys]
            found = [entry.data for entry in entries if scope.has(entry)]
            prefix = resource.prefix
            await response.chunks(line(ADDED, prefix + data[1:]) for data in found)
            if stream and bookmark:
                response.chunk(bookmark_line(resource, revision, initial=True))
        while True:
            try:
                events = self.store.after(resource, revision)
            except ExpiredError:
                message = f"too old resource version: {revision} ({self.store.compacted})"
                raise expired(message) from None
            if not response.begun:
                response.begin(200)
            if not events:
                return revision
            revision = events[-1].revision
            await response.chunks(line(*found) for found in map(scope.event, events) if found is not None)


def _scope(found: Target, query: dict[str, str]) -> Scope:
    """What a request selects. Raises RefusedError."""
    try:
        labels = label_selector(query.get("labelSelector", ""))
        fields = field_selector(query.get("fieldSelector", ""), found.resource)
    except SelectorError as error:
        raise RefusedError(400, str(error)) from None
    return Scope(found.resource, found.namespace, labels, fields)


def _page(snapshot: Snapshot, scope: Scope, start: str, limit: int) -> tuple[list[bytes], list[str]]:
    """The selected objects from a key on, at most `limit` (0: all), and the keys that are left."""
    found: list[bytes] = []
    at = bisect.bisect_left(snapshot.keys, start)
    while at < len(snapshot.keys) and not (limit and len(found) == limit):
        entry = snapshot.entries[snapshot.keys[at]]
        if scope.has(entry):
            found.append(entry.data)
        at += 1
    return found, snapshot.keys[at:]


def _token(revision: int, start: str) -> str:
    """A continue token: the list's revision (-1: the newest there is then) and the key that follows."""
    return base64.urlsafe_b64encode(dumps({"v": "meta.k8s.io/v1", "rv": revision, "start": start})).decode().rstrip("=")


def _number(text: str, name: str) -> int:
    if not text.isdecimal():
        raise RefusedError(400, f'Invalid value: "{text}": {name} must be a number')
    return int(text)


def _invalid(message: str) -> RefusedError:
    return RefusedError(422, f"ListOptions.meta.k8s.io is invalid: {message}")


async def _over(watch: Watch, reader: asyncio.StreamReader, seconds: float) -> str:
    """Wait until a watch ends, its client leaves (`gone`), or time is up; how it ends."""
    timer = asyncio.get_running_loop().call_later(seconds, watch.finish, "end")
    left = asyncio.ensure_future(reader.read(1))
    try:
        await asyncio.wait((left, watch.over), return_when=asyncio.FIRST_COMPLETED)
    finally:
        timer.cancel()
        left.cancel()
        with contextlib.suppress(asyncio.CancelledError, ConnectionError, ssl.SSLError):
            await left
    return watch.over.result() if watch.over.done() else "gone"
