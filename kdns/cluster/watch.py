"""Lists and watches of the Kubernetes API: one thread for each kind of object, which goes on whatever happens.

After the Kubernetes documentation, "Kubernetes API Concepts". A list is delivered when it is whole, or not at all; a
watch goes on from the resourceVersion that it reached, over every interruption, until the API server says that this is
too long ago.
"""

from __future__ import annotations

import math
import random
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Protocol, TypeAlias
from urllib.parse import urlencode

from kdns.cluster.delivery import Delivery
from kdns.cluster.events import Intake, read_status
from kdns.cluster.objects import IMPORT_NAME
from kdns.errors import ApiError

PAGE_OBJECTS = 2000
LIST_LIMIT = 512 * 2**20
"""Bytes of the longest page of a list."""
_STATUS_LIMIT = 65536
_RUNNING = ",".join(f"status.phase!={phase}" for phase in ("Succeeded", "Failed", "Unknown"))
_PATIENCE = 3
"""How often in a row a way is tried that leads nowhere, before another one is."""
_DEAD_ENDS = ("malformed", "too_large", "error_event", "unsupported", "internal")
"""Reasons that a resourceVersion may have for ever: a list leads past them."""


class Answer(Protocol):
    """The response to a request. `close` may be called by any thread, and ends what reads it."""

    @property
    def status(self) -> int: ...
    @property
    def retry_after(self) -> float | None: ...
    def read(self, limit: int) -> bytes: ...
    def stream(self) -> Iterator[bytes]: ...
    def close(self) -> None: ...


class Api(Protocol):
    """The way to the API server: `kdns.cluster.connection.Connection`."""

    def get(self, path: str, query: Mapping[str, str], *, silence: float) -> Answer: ...
    def renew(self) -> None: ...


class Sink(Protocol):
    """Where objects go: `kdns.cluster.delivery.Inbox`."""

    def put(self, delivery: Delivery) -> None: ...


@dataclass(frozen=True, slots=True)
class Resource:
    """Objects of one kind that are wanted.

    path: of the API, such as "/api/v1/namespaces/X/services". query: selectors that the server applies. namespaces:
    only objects in these; empty for all that the server gives. optional: the API server may not know this kind, which
    means that there are none.
    """

    kind: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    namespaces: frozenset[str] = frozenset()
    optional: bool = False

    @property
    def scope(self) -> str:
        """What identifies the selection: a resourceVersion that was reached with another one is of no use."""
        return f"{self.path}?{urlencode((*self.query, *(('namespace', name) for name in sorted(self.namespaces))))}"

    def permission(self, verb: str) -> str:
        """What an RBAC rule has to allow for this."""
        parts = self.path.strip("/").split("/")
        group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
        where = f" in namespace {rest[1]}" if len(rest) == 3 else ""
        return f'{verb} of {rest[-1]} in API group "{group}"{where}'


def resources(
    *,
    namespaces: Iterable[str] = (),
    namespace_labels: str = "",
    labels: str = "",
    pods_verified: bool = False,
    endpoints: bool = True,
    multicluster: bool = False,
) -> tuple[Resource, ...]:
    """What a `kubernetes` directive wants of the API server.

    namespaces: empty for all. namespace_labels, labels: label selectors as text; labels are those of Services,
    EndpointSlices and Pods. endpoints: False for `noendpoints`, which leaves slices of other clusters to multicluster.
    """
    chosen = frozenset(namespaces)
    alone = next(iter(chosen)) if len(chosen) == 1 else None
    kept = chosen if alone is None else frozenset()
    imported = ",".join(filter(None, (labels, IMPORT_NAME)))

    def namespaced(kind: str, api: str, *, optional: bool = False, **query: str) -> Resource:
        where = f"/namespaces/{alone}" if alone is not None else ""
        return Resource(kind, f"{api}{where}/{kind.lower()}s", _given(query), kept, optional)

    names = f"metadata.name={alone}" if alone is not None else ""
    found = [
        Resource(
            "Namespace", "/api/v1/namespaces", _given({"labelSelector": namespace_labels, "fieldSelector": names}), kept
        ),
        namespaced("Service", "/api/v1", labelSelector=labels),
    ]
    if endpoints or multicluster:
        selector = labels if endpoints else imported
        found.append(namespaced("EndpointSlice", "/apis/discovery.k8s.io/v1", labelSelector=selector))
    if pods_verified:
        found.append(namespaced("Pod", "/api/v1", labelSelector=labels, fieldSelector=_RUNNING))
    if multicluster:
        found.append(namespaced("ServiceImport", "/apis/multicluster.x-k8s.io/v1alpha1", optional=True))
    return tuple(found)


def pods_of(node: str) -> Resource:
    """The running pods of one node."""
    return Resource("Pod", "/api/v1/pods", (("fieldSelector", f"spec.nodeName={node},{_RUNNING}"),))


def _given(query: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in query.items() if value)


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of waiting.

    silence: without a byte on a watch until it counts as dead; API servers send a bookmark every minute. list_silence:
    without another object until a streaming list that is not complete counts as one that never will be. first,
    longest: of the waits after faults in a row, which double. steady: how long a watch has to live until faults are
    forgotten. brief: a watch that brought nothing and ended sooner is a fault, and one that is resumed counts as open
    after it if it brought nothing. absent: between looks for a kind that the server does not know, and how long it has
    to say so until what there was is gone. retry_after: the longest that is waited because the server said so. watch:
    after which the server is asked to end a watch, from and to. streaming: until a streaming list is tried again where
    it was refused.
    """

    silence: float = 75.0
    list_silence: float = 6.0
    first: float = 0.2
    longest: float = 5.0
    steady: float = 5.0
    brief: float = 1.0
    absent: float = 15.0
    retry_after: float = 60.0
    watch: tuple[float, float] = (300.0, 600.0)
    streaming: float = 3600.0


Report: TypeAlias = Callable[[str, str, str], None]
"""Told the kind, the reason (of API_REASONS; "internal" is a mistake in kdns) and the text of every fault."""


class _RefusedError(ApiError):
    """A response with a status other than 200."""

    def __init__(self, message: str, reason: str, retry_after: float | None) -> None:
        super().__init__(message, reason)
        self.retry_after = retry_after


class Reflector:
    """A thread that lists and watches one kind of object, and delivers what it hears.

    version: the resourceVersion to go on from, without a list; None or "" if there is none. streaming: False to list in
    pages only, which is allowed to whoever may `list` and not `watch`. Whoever stops it closes the connection as well,
    if it may be waiting for that (for its turn, or for a response to begin).

    In its own thread it calls `report` for every fault; `listed`, for every list, with the kind and how it was made
    ("stream" or "pages"); and `recovered`, when the objects are current again, with the kind and the seconds since the
    first fault.

    Attributes: old: how many events were dropped that were older than what was known.
    """

    def __init__(
        self,
        resource: Resource,
        api: Api,
        inbox: Sink,
        version: str | None,
        report: Report,
        *,
        listed: Callable[[str, str], None] = lambda kind, how: None,
        recovered: Callable[[str, float], None] = lambda kind, seconds: None,
        streaming: bool = True,
        pace: Pace = Pace(),
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.resource = resource
        self.old = 0
        self._api = api
        self._inbox = inbox
        self._report = report
        self._listed = listed
        self._recovered = recovered
        self._pace = pace
        self._uniform = uniform
        self._version = version or None
        self._answer: Answer | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch {resource.kind}", daemon=True)
        self._current = False
        self._absent = False
        self._known = bool(version)  # there may be objects of an optional kind
        self._unknown_at: float | None = None  # since when the server says that it does not know the kind
        self._open_at: float | None = None  # when a resumed watch began, of which nothing has come yet
        self._heard: float | None = None
        self._fault_at: float | None = None
        self._watched: float | None = None  # when the last watch began
        self._doubtful = False  # whether the server has ever heard of our version
        self._pages_until = 0.0 if streaming else math.inf  # streaming lists are refused; when to try again
        self._failures = self._expiries = self._strikes = self._broken_lists = 0

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End soon. Does not wait for it."""
        self._stopping.set()
        answer = self._answer
        if answer is not None:
            answer.close()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the thread has ended, at most `timeout` seconds; whether it has."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def behind(self) -> float | None:
        """How old the objects may be, in seconds: 0 from a list on or while a watch is open, until that fails or ends;
        else since the server was last heard.

        None if it has not been heard at all.
        """
        open_at = self._open_at
        if self._current or (open_at is not None and time.monotonic() - open_at >= self._pace.brief):
            return 0.0
        heard = self._heard
        return None if heard is None else time.monotonic() - heard

    def _run(self) -> None:
        while not self._stopping.is_set():
            wait = 0.0
            try:
                self._step()
            except Exception as error:
                wait = self._recover(error)
            self._stopping.wait(wait)
        self._current = False

    def _step(self) -> None:
        """List if there is nothing to go on from; else watch until that ends."""
        if self._version is not None:
            self._watch(self._version)
        elif time.monotonic() < self._pages_until:
            self._list_pages()
        else:
            self._list_stream()

    # Lists and watches

    def _list_stream(self) -> None:
        """Make a streaming list, and follow the watch that it turns into."""
        query = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        try:
            answer = self._get("watch", self._watch_query(query))
        except _RefusedError as error:
            if error.reason != "unsupported":
                raise
            self._pages_until = time.monotonic() + self._pace.streaming
            return
        intake = self._intake(None)
        watchdog = _Watchdog(answer, self._pace.list_silence, lambda: intake.listed)
        with closing(answer), watchdog:
            try:
                self._follow(answer, intake)
                if intake.listing and not self._stopping.is_set():
                    raise ApiError("a streaming list ended before it was complete", "connection")
            except ApiError as error:
                if not intake.listing:
                    raise
                self._broken_lists += 1
                if watchdog.fired or self._broken_lists >= _PATIENCE:
                    self._pages_until = time.monotonic() + self._pace.streaming
                if watchdog.fired:
                    raise ApiError("a streaming list that does not end", "silent") from error
                raise

    def _list_pages(self) -> None:
        """Make a list in pages, or in one piece if the first of them are too old when the last is asked for."""
        first = {"limit": str(PAGE_OBJECTS)}
        try:
            intake = self._pages(first)
        except _ExpiredTokenError:
            intake = self._pages({})
        self._accept(intake, intake.take(), "pages")

    def _pages(self, first: Mapping[str, str]) -> Intake:
        intake, query = self._intake(None), dict(first)
        while True:
            try:
                with closing(self._get("list", query)) as answer:
                    token = intake.page(answer.read(LIST_LIMIT))
            except ApiError as error:
                if error.reason == "expired" and "continue" in query and first:
                    raise _ExpiredTokenError from error
                raise
            self._heard = time.monotonic()
            if not token:
                return intake
            if token == query.get("continue"):
                raise ApiError("a list whose pages do not go on", "malformed")
            query["continue"] = token

    def _watch(self, version: str) -> None:
        """Follow a watch from a resourceVersion until it ends."""
        if self._doubtful:
            self._check(version)
        answer = self._get("watch", self._watch_query({"resourceVersion": version}))
        with closing(answer):
            opened = self._open_at = self._watched = self._heard = time.monotonic()
            self._over()
            self._follow(answer, self._intake(version))
        brief = time.monotonic() - opened < self._pace.brief
        if brief and self._version == version and not self._stopping.is_set():
            raise ApiError("a watch ended as soon as it had begun", "connection")

    def _check(self, version: str) -> None:
        """See if the API server is past a version at all, after a watch from it brought nothing, not even a bookmark.

        One that was restored from a backup may be behind it, and tell nothing until it has come so far again. Raises
        ApiError (expired).
        """
        intake = Intake(self.resource.kind, frozenset(), None, lambda reason, text: None)
        with closing(self._get("list", {"limit": "1"})) as answer:
            intake.page(answer.read(LIST_LIMIT))
        self._doubtful = False
        reached = intake.version or ""
        if reached.isdecimal() and version.isdecimal() and int(reached) < int(version):
            raise ApiError(f"the API server is at version {reached}, before {version}, which it once told", "expired")

    def _watch_query(self, more: Mapping[str, str]) -> dict[str, str]:
        seconds = int(self._uniform(*self._pace.watch))
        return {"watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": str(seconds), **more}

    def _follow(self, answer: Answer, intake: Intake) -> None:
        """Deliver what a watch brings until it ends."""
        began = time.monotonic()
        try:
            for chunk in answer.stream():
                self._heard = time.monotonic()
                self._accept(intake, intake.feed(chunk), "stream")
                self._current |= not intake.listing
            self._accept(intake, intake.end(), "stream")
            self._heard = time.monotonic()
        finally:
            if self.behind() == 0.0 and time.monotonic() - began >= self._pace.steady:
                self._failures = self._expiries = 0
            self._current, self._open_at = False, None

    def _intake(self, version: str | None) -> Intake:
        return Intake(self.resource.kind, self.resource.namespaces, version, self._note)

    def _accept(self, intake: Intake, delivery: Delivery | None, how: str) -> None:
        """Hand on what came, and go on from there. Raises ApiError if nothing good can come after it."""
        self.old += intake.old
        intake.old = 0
        if not intake.listing and intake.version != self._version:
            self._version = intake.version
            self._strikes = 0
        if delivery is not None and delivery.complete:
            self._strikes = self._broken_lists = 0
            self._known = True
            if how == "stream":
                self._opened()
            self._current = True  # before anybody sees what was listed
            self._listed(self.resource.kind, how)
        if delivery is not None:
            self._inbox.put(delivery)
        if intake.error is not None:
            raise intake.error

    def _get(self, verb: str, query: Mapping[str, str]) -> Answer:
        """A response with status 200. Raises ApiError."""
        query = {**dict(self.resource.query), **query}
        answer = self._api.get(self.resource.path, query, silence=self._pace.silence)
        self._answer = answer
        if self._stopping.is_set():
            answer.close()
            raise ApiError("stopped", "closed")
        if answer.status == 200:
            return answer
        with closing(answer):
            raise _refused(answer, self.resource.permission(verb), "sendInitialEvents" in query)

    # Faults

    def _opened(self) -> None:
        """What was delivered is current."""
        self._heard = time.monotonic()
        self._current = True
        self._over()

    def _over(self) -> None:
        """The server does again what it is asked for."""
        self._absent, self._unknown_at = False, None
        if self._fault_at is not None:
            self._recovered(self.resource.kind, time.monotonic() - self._fault_at)
            self._fault_at = None

    def _note(self, reason: str, text: str) -> None:
        self._report(self.resource.kind, reason, text)

    def _fault(self, reason: str, text: str) -> None:
        self._current = False
        if self._fault_at is None:
            self._fault_at = time.monotonic()
        self._note(reason, text)

    def _recover(self, error: Exception) -> float:
        """React to any exception. Raises none, or the thread would end."""
        if not isinstance(error, ApiError):
            error = ApiError(traceback.format_exception_only(error)[-1].strip(), "internal")
        try:
            return self._react(error)
        except Exception:
            return self._pace.longest

    def _react(self, error: ApiError) -> float:
        """What follows from a fault. Returns the seconds to wait before going on."""
        if self._stopping.is_set():
            return 0.0
        if error.reason != "not_found":
            self._unknown_at = None
        elif self.resource.optional and self._is_unknown():
            return self._none_there()
        if error.reason == "closed":  # by one of us, which is no fault
            self._current = False
            return self._pause(1)
        self._fault(error.reason, str(error))
        self._doubtful = error.reason == "silent" and self._heard == self._watched
        if error.reason == "expired":
            self._version = None
            self._expiries += 1
            return 0.0 if self._expiries == 1 else self._pause(self._expiries - 1)
        if error.reason in _DEAD_ENDS:
            self._strikes += 1
            if self._strikes >= _PATIENCE:
                self._strikes, self._version = 0, None
        elif error.reason in ("unauthorized", "tls"):
            self._api.renew()
        self._failures += 1
        if isinstance(error, _RefusedError) and error.retry_after:
            return min(error.retry_after, self._pace.retry_after) * self._uniform(1.0, 1.25)
        return self._pause(self._failures)

    def _pause(self, failures: int) -> float:
        pace = self._pace
        return min(pace.first * 2.0 ** min(failures - 1, 30), pace.longest) * self._uniform(0.5, 1.5)

    def _is_unknown(self) -> bool:
        """True if the API server does not know this kind, and no objects are at stake or it has said so for some time.

        One that starts, or a proxy before it, may say so for a moment.
        """
        if self._unknown_at is None:
            self._unknown_at = time.monotonic()
        return not self._known or time.monotonic() - self._unknown_at >= self._pace.absent

    def _none_there(self) -> float:
        """The API server does not know this kind: there are none, until it does."""
        absent, self._known = self._absent, False
        self._version, self._failures = None, 0
        self._opened()
        self._absent = True
        if not absent:
            self._inbox.put(Delivery(self.resource.kind, complete=True))
        return self._pace.absent * self._uniform(0.8, 1.2)


class _ExpiredTokenError(Exception):
    """The pages of a list that are left are of a state that the API server has forgotten."""


class _Watchdog:
    """Closes the response of a streaming list that gets no longer, or does not get complete.

    An API server that does not know streaming lists may answer with an ordinary watch, whose events are then taken for
    the beginning of a list.

    seconds: between two looks. listed: the number of objects so far, None if the list is complete. fired: it closed
    the response.
    """

    _LOOKS = 20

    def __init__(self, answer: Answer, seconds: float, listed: Callable[[], int | None]) -> None:
        self.fired = False
        self._answer = answer
        self._seconds = seconds
        self._listed = listed
        self._done = threading.Event()

    def __enter__(self) -> None:
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def _watch(self) -> None:
        before = 0
        for _ in range(self._LOOKS):
            if self._done.wait(self._seconds) or (count := self._listed()) is None:
                return
            if count == before:
                break
            before = count
        self.fired = True
        self._answer.close()


def _refused(answer: Answer, permission: str, streaming_list: bool) -> _RefusedError:
    """What a status other than 200 means."""
    body = b""
    with suppress(ApiError):
        body = answer.read(_STATUS_LIMIT)
    status, code = read_status(body), answer.status
    message = (status.message or body[:200].decode(errors="replace") or "no message").strip()[:500]
    text = f"status {code}: {message}"
    if code == 410 or status.expired:
        reason = "expired"
    elif code in (400, 422) or (streaming_list and _names_streaming(message)):
        reason = "unsupported"
    elif code == 403:
        reason, text = "forbidden", f"{permission} is not allowed: {message}"
    else:
        reason = {401: "unauthorized", 404: "not_found", 429: "throttled"}.get(code, "server")
    return _RefusedError(text, reason, answer.retry_after)


def _names_streaming(message: str) -> bool:
    return any(word in message for word in ("sendInitialEvents", "resourceVersionMatch"))
