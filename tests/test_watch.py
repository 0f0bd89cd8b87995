"""What a Reflector asks the API server for, and what it makes of every answer and fault."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from kdns.cluster.connection import Access, Connection
from kdns.cluster.delivery import Delivery, Inbox
from kdns.cluster.watch import Pace, Reflector, Resource, resources
from kdns.errors import ApiError
from tests.support import objects, procs
from tests.support.apiserver import ApiServer
from tests.test_events import bookmark, event, failure, misshapen, page, service

SERVICES = Resource("Service", "/api/v1/services", (("labelSelector", "a=b"),))
IMPORTS = Resource("ServiceImport", "/apis/multicluster.x-k8s.io/v1alpha1/serviceimports", optional=True)
FAST = Pace(
    silence=30, list_silence=30, first=0.01, longest=0.04, steady=30, brief=0.02, absent=0.02, retry_after=0.2
)  # fmt: skip
LISTED = event("ADDED", service("a", 3)) + bookmark(9, ends=True)
"""A streaming list."""
WAIT = 10.0
"""Seconds within which everything happens."""


class Reply:
    """A scripted response, of these chunks; an exception is raised at its place. It stays open unless it `ends`."""

    def __init__(
        self, *chunks: bytes | Exception, status: int = 200, retry_after: float | None = None, ends: bool = False
    ) -> None:
        self.status = status
        self.retry_after = retry_after
        self.silence = 0.0
        self.closed = threading.Event()
        self._chunks = chunks
        self._ends = ends

    def read(self, limit: int) -> bytes:
        return b"".join(self._next())

    def stream(self) -> Iterator[bytes]:
        yield from self._next()
        if not self._ends:
            reason = "closed" if self.closed.wait(self.silence) else "silent"
            raise ApiError(f"the response is {reason}", reason)

    def close(self) -> None:
        self.closed.set()

    def _next(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk


class Busy(Reply):
    """A watch that brings the same event again and again."""

    def stream(self) -> Iterator[bytes]:
        while not self.closed.wait(0.005):
            yield from self._next()
        raise ApiError("closed", "closed")


class Late(Reply):
    """A watch on which nothing happens for some seconds."""

    def __init__(self, seconds: float, *chunks: bytes) -> None:
        super().__init__(*chunks)
        self._seconds = seconds

    def stream(self) -> Iterator[bytes]:
        self.closed.wait(self._seconds)
        return super().stream()


def closing(*chunks: bytes | Exception) -> Reply:
    """A response that ends, as a watch does in the end."""
    return Reply(*chunks, ends=True)


def refusal(status: int, message: str = "no", retry_after: float | None = None, **more: Any) -> Reply:
    body = failure(status, more.get("reason", "No"), message)
    return Reply(body[body.index(b'{"kind"') : -2], status=status, retry_after=retry_after, ends=True)


@dataclass(frozen=True)
class Request:
    path: str
    query: dict[str, str]
    time: float

    @property
    def how(self) -> str:
        """What it is: `stream`, `watch 7` (from that version), `list`, `list 2000` (a page) or `list 2000 TOKEN`."""
        if "sendInitialEvents" in self.query:
            return "stream"
        if "watch" in self.query:
            return f"watch {self.query['resourceVersion']}"
        return " ".join(("list", *(self.query[name] for name in ("limit", "continue") if name in self.query)))


class Api:
    """An API server that answers by a script; after its end with watches on which nothing happens."""

    def __init__(self, *steps: Reply | Exception) -> None:
        self.requests: list[Request] = []
        self.replies: list[Reply] = []
        self.renewals = 0
        self._steps = list(steps)

    def get(self, path: str, query: Mapping[str, str], *, silence: float) -> Reply:
        self.requests.append(Request(path, dict(query), time.monotonic()))
        step = self._steps.pop(0) if self._steps else Reply()
        if isinstance(step, Exception):
            raise step
        step.silence = silence
        self.replies.append(step)
        return step

    def renew(self) -> None:
        self.renewals += 1

    def how(self) -> list[str]:
        return [request.how for request in self.requests]

    def gaps(self) -> list[float]:
        """Seconds between requests."""
        times = [request.time for request in self.requests]
        return [later - sooner for sooner, later in itertools.pairwise(times)]


class Heard(Inbox):
    """An inbox that remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[Delivery] = []
        self.behind: list[float | None] = []
        self.look: Callable[[], float | None] = lambda: None

    def put(self, delivery: Delivery) -> None:
        self.behind.append(self.look())
        self.all.append(replace(delivery, rows=dict(delivery.rows), kept=set(delivery.kept)))
        super().put(delivery)


class Case:
    """A Reflector that runs, and all that it told."""

    def __init__(
        self, *steps: Reply | Exception, version: str | None = None, resource: Resource = SERVICES, pace: Pace = FAST
    ) -> None:
        self.api = Api(*steps)
        self.inbox = Heard()
        self.reports: list[tuple[str, str]] = []
        self.lists: list[str] = []
        self.recoveries: list[float] = []
        self.reflector = Reflector(
            resource,
            self.api,
            self.inbox,
            version,
            lambda kind, reason, text: self.reports.append((reason, text)),
            listed=lambda kind, how: self.lists.append(how),
            recovered=lambda kind, seconds: self.recoveries.append(seconds),
            pace=pace,
            uniform=lambda low, high: (low + high) / 2,
        )
        self.inbox.look = self.reflector.behind

    def __enter__(self) -> Self:
        self.reflector.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.reflector.stop()
        assert self.reflector.join(WAIT)

    @property
    def faults(self) -> list[str]:
        return [reason for reason, _ in self.reports]

    @property
    def deliveries(self) -> list[tuple[str, bool, set[str]]]:
        """Version, whether complete, and keys of what was delivered."""
        return [(one.version, one.complete, set(one.rows)) for one in self.inbox.all]

    def wait(self, what: Callable[[], bool]) -> None:
        procs.wait_until(what, WAIT, f"it; there are {self.api.how()}, {self.reports}, {self.deliveries}", 0.002)

    def wait_requests(self, *how: str) -> None:
        """Wait until these, and only these, were asked for, and answered."""
        self.wait(lambda: len(self.api.requests) >= len(how))
        assert tuple(self.api.how()) == how

    def wait_deliveries(self, count: int) -> None:
        self.wait(lambda: len(self.inbox.all) >= count)


def by_kind(**options: Any) -> dict[str, tuple[str, dict[str, str]]]:
    return {one.kind: (one.path, dict(one.query)) for one in resources(**options)}


# What is asked for


def test_namespaces_services_and_endpoint_slices_are_watched() -> None:
    assert by_kind() == {
        "Namespace": ("/api/v1/namespaces", {}),
        "Service": ("/api/v1/services", {}),
        "EndpointSlice": ("/apis/discovery.k8s.io/v1/endpointslices", {}),
    }


def test_pods_that_run_are_watched_where_they_are_verified() -> None:
    selector = "status.phase!=Succeeded,status.phase!=Failed,status.phase!=Unknown"
    assert by_kind(pods_verified=True)["Pod"] == ("/api/v1/pods", {"fieldSelector": selector})


def test_service_imports_are_watched_for_multicluster_and_may_be_unknown_to_the_server() -> None:
    found = {one.kind: one for one in resources(multicluster=True)}
    assert found["ServiceImport"].path == "/apis/multicluster.x-k8s.io/v1alpha1/serviceimports"
    assert [kind for kind, one in found.items() if one.optional] == ["ServiceImport"]


def test_noendpoints_leaves_only_slices_of_other_clusters() -> None:
    assert "EndpointSlice" not in by_kind(endpoints=False)
    imported = {"labelSelector": "a=b,multicluster.kubernetes.io/service-name"}
    assert by_kind(endpoints=False, multicluster=True, labels="a=b")["EndpointSlice"][1] == imported


def test_labels_select_services_slices_and_pods_and_namespace_labels_namespaces() -> None:
    found = by_kind(labels="a in (b, c)", namespace_labels="d", pods_verified=True, multicluster=True)
    selectors = {kind: query.get("labelSelector") for kind, (_, query) in found.items()}
    same = "a in (b, c)"
    expected = {"Namespace": "d", "Service": same, "EndpointSlice": same, "Pod": same, "ServiceImport": None}
    assert selectors == expected


def test_one_namespace_is_asked_for_alone() -> None:
    found = by_kind(namespaces=["one"], pods_verified=True, multicluster=True)
    assert found.pop("Namespace") == ("/api/v1/namespaces", {"fieldSelector": "metadata.name=one"})
    assert {kind: path for kind, (path, _) in found.items()} == {
        "Service": "/api/v1/namespaces/one/services",
        "EndpointSlice": "/apis/discovery.k8s.io/v1/namespaces/one/endpointslices",
        "Pod": "/api/v1/namespaces/one/pods",
        "ServiceImport": "/apis/multicluster.x-k8s.io/v1alpha1/namespaces/one/serviceimports",
    }
    assert all(not one.namespaces for one in resources(namespaces=["one"]))


def test_of_several_namespaces_others_are_left_out_on_arrival() -> None:
    found = resources(namespaces=["one", "two"])
    assert {one.namespaces for one in found} == {frozenset({"one", "two"})}
    assert by_kind(namespaces=["one", "two"]) == by_kind()


def test_a_scope_tells_selections_apart() -> None:
    options: list[dict[str, Any]] = [
        {}, {"labels": "a"}, {"namespaces": ["x"]}, {"namespaces": ["x", "y"]}, {"namespaces": ["x", "z"]}
    ]  # fmt: skip
    scopes = [{one.kind: one.scope for one in resources(**each)}["Service"] for each in options]
    assert len(set(scopes)) == len(options)
    again = resources(namespaces=["y", "x"])
    assert scopes[3] == next(one.scope for one in again if one.kind == "Service")


# Starts


def test_a_start_with_a_version_watches_from_there_and_lists_nothing() -> None:
    with Case(version="7") as case:
        case.wait(lambda: case.reflector.behind() == 0.0)
        request = case.api.requests[0]
        assert request.path == "/api/v1/services"
        assert request.query == {
            "labelSelector": "a=b",
            "watch": "1",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": "450",
            "resourceVersion": "7",
        }
        assert case.deliveries == []
        assert case.lists == []


def test_a_start_without_a_version_is_a_streaming_list_that_goes_on_as_the_watch() -> None:
    with Case(Reply(LISTED, event("ADDED", service("b", 12)))) as case:
        case.wait_deliveries(2)
        assert case.deliveries == [("9", True, {"default/a"}), ("12", False, {"default/b"})]
        assert case.lists == ["stream"]
        assert len(case.api.requests) == 1
        assert case.api.requests[0].query == {
            "labelSelector": "a=b",
            "watch": "1",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": "450",
            "sendInitialEvents": "true",
            "resourceVersionMatch": "NotOlderThan",
        }


@pytest.mark.parametrize(
    "refused",
    [
        refusal(422, "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"),
        refusal(400, "what is that?"),
        refusal(403, "resourceVersionMatch is forbidden for watch"),
    ],
    ids=["422", "400", "403"],
)
def test_where_streaming_lists_are_refused_pages_are_read_then_and_later(refused: Reply) -> None:
    pages = closing(page(service("a"), more="t")), closing(page(service("b")))
    gone = closing(failure(410, "Expired"))
    with Case(refused, *pages, gone, closing(page(service("c"), version="8"))) as case:
        case.wait_requests("stream", "list 2000", "list 2000 t", "watch 7", "list 2000", "watch 8")
        assert case.deliveries == [("7", True, {"default/a", "default/b"}), ("8", True, {"default/c"})]
        assert case.lists == ["pages", "pages"]
        assert case.faults == ["expired"]


def test_a_streaming_list_is_tried_again_after_some_time() -> None:
    pace, late = replace(FAST, streaming=0.05), Late(0.06, failure(410, "Expired"))
    with Case(refusal(422), closing(page()), late, Reply(LISTED), pace=pace) as case:
        case.wait_requests("stream", "list 2000", "watch 7", "stream")
        case.wait(lambda: case.lists == ["pages", "stream"])


def test_a_streaming_list_without_end_is_given_up_for_pages() -> None:
    pace = replace(FAST, list_silence=0.03)
    with Case(Reply(event("ADDED", service("a", 3))), closing(page(service("b"))), pace=pace) as case:
        case.wait_requests("stream", "list 2000", "watch 7")
        assert case.deliveries == [("7", True, {"default/b"})]
        assert case.faults == ["silent"]
        assert case.api.replies[0].closed.is_set()
        assert case.api.gaps()[0] < 0.4


def test_changes_do_not_keep_a_streaming_list_without_end_alive() -> None:
    pace = replace(FAST, list_silence=0.03)
    with Case(Busy(event("MODIFIED", service("a", 3))), closing(page(service("b"))), pace=pace) as case:
        case.wait_requests("stream", "list 2000", "watch 7")
        assert case.faults == ["silent"]


def test_a_streaming_list_that_breaks_off_delivers_nothing_and_starts_over() -> None:
    half = event("ADDED", service("x", 3))
    steps = closing(half), Reply(half, ApiError("reset", "connection")), Reply(LISTED)
    with Case(*steps) as case:
        case.wait_deliveries(1)
        assert case.api.how() == ["stream"] * 3
        assert case.deliveries == [("9", True, {"default/a"})]
        assert case.faults == ["connection", "connection"]


def test_streaming_lists_that_always_break_off_are_given_up_for_pages() -> None:
    with Case(*(closing(event("ADDED", service("x", 3))) for _ in range(3)), closing(page())) as case:
        case.wait_requests("stream", "stream", "stream", "list 2000", "watch 7")


def test_an_api_server_that_is_down_does_not_lose_its_streaming_lists() -> None:
    with Case(*[ApiError("refused", "connection")] * 6, Reply(LISTED)) as case:
        case.wait_deliveries(1)
        assert set(case.api.how()) == {"stream"}


# Pages


def paged(*steps: Reply | Exception) -> Case:
    """A case whose API server has no streaming lists."""
    return Case(refusal(422), *steps)


def test_pages_that_break_off_deliver_nothing() -> None:
    steps = closing(page(service("x"), more="t")), closing(ApiError("reset", "connection")), closing(page(service("a")))
    with paged(*steps) as case:
        case.wait_requests("stream", "list 2000", "list 2000 t", "list 2000", "watch 7")
        assert case.deliveries == [("7", True, {"default/a"})]


def test_pages_that_expire_are_replaced_by_the_list_in_one_piece() -> None:
    steps = closing(page(service("x"), more="t")), refusal(410, reason="Expired"), closing(page(service("a")))
    with paged(*steps) as case:
        case.wait_requests("stream", "list 2000", "list 2000 t", "list", "watch 7")
        assert case.deliveries == [("7", True, {"default/a"})]
        assert case.faults == []


def test_pages_that_lead_to_themselves_are_malformed() -> None:
    steps = closing(page(more="t")), closing(page(more="t")), closing(page())
    with paged(*steps) as case:
        case.wait_deliveries(1)
        assert case.faults == ["malformed"]


def test_a_body_that_is_no_list_delivers_nothing() -> None:
    with paged(closing(b"<html>"), closing(b"{}"), closing(page(service("a")))) as case:
        case.wait_deliveries(1)
        assert case.deliveries == [("7", True, {"default/a"})]
        assert case.faults == ["malformed", "malformed"]


# Watches


def test_a_watch_that_ends_is_followed_by_one_from_where_it_ended_at_once() -> None:
    steps = closing(event("ADDED", service("a", 8))), closing(bookmark(9))
    with Case(*steps, version="7", pace=replace(FAST, first=5, longest=5)) as case:
        case.wait_requests("watch 7", "watch 8", "watch 9")
        assert max(case.api.gaps()) < 2
        assert case.faults == []


def test_watches_that_end_as_soon_as_they_begin_back_off() -> None:
    with Case(*(closing() for _ in range(4)), version="7") as case:
        case.wait(lambda: len(case.api.requests) == 5)
        assert case.faults == ["connection"] * 4
        assert all(gap >= at for gap, at in zip(case.api.gaps(), (0.01, 0.02, 0.04, 0.04), strict=True))


def test_events_that_repeat_do_not_count_as_news_of_a_brief_watch() -> None:
    with Case(*(closing(event("MODIFIED", service("a", 5))) for _ in range(3)), version="7") as case:
        case.wait(lambda: len(case.api.requests) == 4)
        assert case.faults == ["connection"] * 3
        assert case.reflector.old == 3


def test_each_chunk_is_delivered_at_once_and_in_one_piece() -> None:
    chunk = event("ADDED", service("a", 8)) + event("ADDED", service("b", 9))
    with Case(Reply(chunk, event("DELETED", service("a", 10))), version="7") as case:
        case.wait_deliveries(2)
        assert case.deliveries == [("9", False, {"default/a", "default/b"}), ("10", False, {"default/a"})]


def test_events_of_other_namespaces_advance_the_version_all_the_same() -> None:
    resource = replace(SERVICES, namespaces=frozenset({"x", "y"}))
    with Case(closing(event("ADDED", service("a", 8, "z"))), version="7", resource=resource) as case:
        case.wait_requests("watch 7", "watch 8")
        assert case.deliveries == []


def test_an_object_of_wrong_shape_is_reported_and_the_watch_goes_on() -> None:
    with Case(Reply(event("MODIFIED", misshapen("a", 8)), event("ADDED", service("b", 9))), version="7") as case:
        case.wait_deliveries(2)
        assert case.deliveries == [("8", False, set()), ("9", False, {"default/b"})]
        assert case.faults == ["malformed"]
        assert "default/a" in case.reports[0][1]
        assert case.reflector.behind() == 0.0


# Faults


def test_a_line_that_is_no_json_is_skipped_by_a_new_watch() -> None:
    with Case(Reply(event("ADDED", service("a", 8)) + b"{]\n"), version="7") as case:
        case.wait_requests("watch 7", "watch 8")
        assert case.faults == ["malformed"]


def test_a_watch_that_is_cut_off_in_a_line_goes_on_from_before_it() -> None:
    with Case(closing(event("ADDED", service("a", 8)) + event("ADDED", service("b", 9))[:-4]), version="7") as case:
        case.wait_requests("watch 7", "watch 8")
        assert case.faults == ["malformed"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"{]\n", "malformed"),
        (failure(500, "InternalError"), "error_event"),
        (b"x" * (17 << 20), "too_large"),
    ],
    ids=["malformed", "error_event", "too_large"],
)
def test_what_fails_three_times_at_one_version_leads_to_a_new_list(bad: bytes, reason: str) -> None:
    with Case(*(closing(bad) for _ in range(3)), Reply(LISTED), version="7") as case:
        case.wait_requests("watch 7", "watch 7", "watch 7", "stream")
        assert case.faults == [reason] * 3


def test_what_fails_with_progress_between_is_no_reason_for_a_list() -> None:
    bad = (closing(event("ADDED", service("a", version)) + b"{]\n") for version in range(8, 13))
    with Case(*bad, version="7") as case:
        case.wait_requests(*(f"watch {version}" for version in range(7, 13)))


def test_a_version_that_the_server_does_not_accept_leads_to_a_new_list() -> None:
    with Case(*(refusal(400, "invalid resource version") for _ in range(3)), Reply(LISTED), version="x") as case:
        case.wait_requests("watch x", "watch x", "watch x", "stream")


@pytest.mark.parametrize(
    "expired",
    [
        closing(failure(410, "Expired")),
        refusal(410, reason="Gone"),
        refusal(504, "Too large resource version: 9, current: 5", retry_after=1),
    ],
    ids=["event", "status", "too large"],
)
def test_an_expired_version_leads_to_a_new_list_at_once(expired: Reply) -> None:
    with Case(expired, Reply(LISTED), version="7", pace=replace(FAST, first=60, longest=60)) as case:
        case.wait_requests("watch 7", "stream")
        case.wait_deliveries(1)
        assert case.faults == ["expired"]


def test_versions_that_keep_expiring_back_off() -> None:
    steps: list[Reply | Exception] = []
    for _ in range(4):
        steps += [closing(LISTED), closing(failure(410, "Expired"))]
    with Case(*steps, pace=replace(FAST, first=0.05, longest=0.1)) as case:
        case.wait(lambda: len(case.api.requests) == 9)
        before_lists = case.api.gaps()[1::2]
        assert before_lists[0] < 0.05
        assert all(gap >= at for gap, at in zip(before_lists[1:], (0.05, 0.1, 0.1), strict=True))


def test_an_expired_version_after_an_outage_leads_to_a_list_at_once() -> None:
    pace = replace(FAST, first=0.001, longest=0.1)
    refused = [ApiError("refused", "connection")] * 9
    with Case(*refused, closing(failure(410, "Expired")), Reply(LISTED), version="7", pace=pace) as case:
        case.wait_deliveries(1)
        assert case.api.gaps()[-1] < 0.1


@pytest.mark.parametrize("fault", [refusal(401), ApiError("certificate", "tls")], ids=["401", "tls"])
def test_refused_credentials_are_read_again(fault: Reply | Exception) -> None:
    with Case(fault, version="7") as case:
        case.wait_requests("watch 7", "watch 7")
        assert case.api.renewals == 1
        assert case.api.gaps()[0] >= FAST.first


def test_a_missing_permission_is_named() -> None:
    resource = next(one for one in resources(namespaces=["one"]) if one.kind == "EndpointSlice")
    with Case(refusal(403), refusal(422), refusal(403), resource=resource) as case:
        case.wait(lambda: len(case.reports) == 2)
        assert case.faults == ["forbidden", "forbidden"]
        where = 'of endpointslices in API group "discovery.k8s.io" in namespace one is not allowed'
        assert f"watch {where}" in case.reports[0][1]
        assert f"list {where}" in case.reports[1][1]


def test_a_permission_of_the_core_group_is_named() -> None:
    with Case(refusal(403)) as case:
        case.wait(lambda: bool(case.reports))
        assert 'watch of services in API group "" is not allowed: no' in case.reports[0][1]


@pytest.mark.parametrize("status", [429, 503])
def test_the_server_says_how_long_to_wait_within_bounds(status: int) -> None:
    with Case(refusal(status, retry_after=0.1), refusal(status, retry_after=3600), version="7") as case:
        case.wait(lambda: len(case.api.requests) == 3)
        assert 0.1 <= case.api.gaps()[0] < 1.0
        assert 0.2 <= case.api.gaps()[1] < 1.0
        assert case.faults == [{429: "throttled", 503: "server"}[status]] * 2


def test_faults_back_off_doubling_up_to_a_limit() -> None:
    refused = ApiError("refused", "connection")
    faults: list[Reply | Exception] = [refusal(429, retry_after=0.0), refusal(500), refusal(404), refused]
    with Case(*faults, refusal(302), version="7") as case:
        case.wait(lambda: len(case.api.requests) == 6)
        assert all(gap >= at for gap, at in zip(case.api.gaps(), (0.01, 0.02, 0.04, 0.04, 0.04), strict=True))
        assert case.faults == ["throttled", "server", "not_found", "connection", "server"]


def test_waits_are_spread_from_half_to_one_and_a_half() -> None:
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return low

    reflector = Reflector(SERVICES, Api(*[ApiError("x", "connection")] * 2), Heard(), "7", print, uniform=uniform)
    reflector.start()
    procs.wait_until(lambda: (0.5, 1.5) in asked, WAIT, "a wait", 0.002)
    reflector.stop()
    assert reflector.join(WAIT)
    assert (300.0, 600.0) in asked


def test_a_watch_that_lived_for_some_time_makes_earlier_faults_forgotten() -> None:
    pace = replace(FAST, first=0.01, longest=10, steady=0.05, silence=0.06)
    faults = [ApiError("refused", "connection")] * 4
    with Case(*faults, Reply(bookmark(8)), version="7", pace=pace) as case:
        case.wait(lambda: len(case.api.requests) == 6)
        assert case.faults == ["connection"] * 4 + ["silent"]
        assert case.api.gaps()[-1] < 0.06 + 0.16


def test_error_events_of_other_kinds_resume_the_watch() -> None:
    with Case(closing(failure(500, "InternalError")), version="7") as case:
        case.wait_requests("watch 7", "watch 7")
        assert case.faults == ["error_event"]


def test_a_watch_without_a_byte_is_replaced_by_one_from_where_it_was() -> None:
    pace = replace(FAST, silence=0.05)
    with Case(Reply(event("ADDED", service("a", 8))), version="7", pace=pace) as case:
        case.wait(lambda: len(case.api.requests) >= 2)
        assert case.api.how()[:2] == ["watch 7", "watch 8"]
        assert case.faults[0] == "silent"


@pytest.mark.parametrize(("reached", "then"), [("6", "stream"), ("7", "watch 7"), ("9", "watch 7"), ("x", "watch 7")])
def test_a_version_that_the_server_has_not_reached_after_a_watch_that_brought_nothing_is_forgotten(
    reached: str, then: str
) -> None:
    pace = replace(FAST, silence=0.05)
    with Case(Reply(), closing(page(service("a"), version=reached, more="t")), version="7", pace=pace) as case:
        case.wait(lambda: len(case.api.requests) >= 3)
        assert case.api.how()[:3] == ["watch 7", "list 1", then]
        assert case.faults[:2] == (["silent", "expired"] if then == "stream" else ["silent"])


def test_unknown_events_are_ignored() -> None:
    novel = b'{"type": "NOVEL", "object": {}}\n'
    with Case(Reply(novel, novel, event("ADDED", service("a", 8))), version="7") as case:
        case.wait_deliveries(1)
        assert case.faults == ["unsupported"]
        assert case.reflector.behind() == 0.0


def test_a_mistake_of_ours_ends_nothing() -> None:
    with Case(RuntimeError("surprise"), closing(RuntimeError("another")), version="7") as case:
        case.wait_requests("watch 7", "watch 7", "watch 7")
        assert case.reports == [("internal", "RuntimeError: surprise"), ("internal", "RuntimeError: another")]


def test_a_report_that_fails_ends_nothing() -> None:
    def report(kind: str, reason: str, text: str) -> None:
        raise RuntimeError

    api = Api(ApiError("refused", "connection"))
    reflector = Reflector(SERVICES, api, Heard(), "7", report, pace=FAST)
    reflector.start()
    procs.wait_until(lambda: len(api.requests) == 2, WAIT, "another request", 0.002)
    reflector.stop()
    assert reflector.join(WAIT)


# A kind that the server may not know


def imports(*steps: Reply | Exception, version: str | None = None) -> Case:
    return Case(*steps, version=version, resource=IMPORTS)


IMPORTED = event("ADDED", {"metadata": {"name": "a", "namespace": "x", "resourceVersion": "3"}, "spec": {}})


def test_an_unknown_kind_has_no_objects_and_is_looked_for_until_it_is_known() -> None:
    with imports(refusal(404), refusal(404), Reply(IMPORTED + bookmark(9, ends=True))) as case:
        case.wait_deliveries(2)
        assert case.api.how() == ["stream"] * 3
        assert min(case.api.gaps()) >= FAST.absent
        assert case.deliveries == [("", True, set()), ("9", True, {"x/a"})]
        assert case.faults == []


def test_nothing_is_behind_while_a_kind_is_unknown() -> None:
    with imports(*(refusal(404) for _ in range(100))) as case:
        case.wait_deliveries(1)
        assert case.reflector.behind() == 0.0


def test_a_kind_that_becomes_unknown_and_stays_so_has_no_objects_any_more() -> None:
    unknown = (refusal(404) for _ in range(100))
    with imports(closing(IMPORTED + bookmark(9, ends=True)), *unknown) as case:
        case.wait_deliveries(2)
        assert case.api.how()[:4] == ["stream", "watch 9", "watch 9", "watch 9"]
        first, last = case.api.requests[1].time, [one for one in case.api.requests if one.how == "watch 9"][-1].time
        assert last - first >= FAST.absent * 0.9
        assert case.deliveries == [("9", True, {"x/a"}), ("", True, set())]
        assert set(case.faults) == {"not_found"}


def test_a_kind_that_is_unknown_after_a_restart_and_stays_so_has_no_objects_any_more() -> None:
    with imports(*(refusal(404) for _ in range(100)), version="7") as case:
        case.wait_deliveries(1)
        assert case.deliveries == [("", True, set())]
        assert case.api.how()[:2] == ["watch 7", "watch 7"]


@pytest.mark.parametrize("between", [(), (refusal(500),)])
def test_a_server_that_does_not_know_a_kind_for_a_moment_takes_nothing_away(between: tuple[Reply, ...]) -> None:
    pace = replace(FAST, absent=0.5)
    steps = refusal(404), *between, refusal(404), Reply(event("ADDED", service("a", 8)))
    with Case(*steps, version="7", resource=IMPORTS, pace=pace) as case:
        case.wait_deliveries(1)
        assert not any(delivery.complete for delivery in case.inbox.all)
        assert case.faults.count("not_found") == 2
        assert case.lists == []


def test_each_moment_of_not_knowing_counts_for_itself() -> None:
    pace = replace(FAST, absent=0.05, first=0.03, longest=0.03)
    steps = [step for _ in range(6) for step in (refusal(404), refusal(500))]
    with Case(*steps, version="7", resource=IMPORTS, pace=pace) as case:
        case.wait(lambda: len(case.api.requests) > len(steps))
        assert case.deliveries == []


def test_a_resumed_watch_is_no_proof_before_something_came_or_it_has_lasted() -> None:
    pace = replace(FAST, brief=0.2)
    with Case(Reply(), version="7", pace=pace) as case:
        case.wait_requests("watch 7")
        assert case.reflector.behind() != 0.0
        case.wait(lambda: case.reflector.behind() == 0.0)
        assert time.monotonic() - case.api.requests[0].time >= 0.19
    with Case(Reply(bookmark(8)), version="7", pace=replace(FAST, brief=30)) as case:
        case.wait(lambda: case.reflector.behind() == 0.0)


def test_a_version_of_an_unknown_kind_is_none() -> None:
    with imports(refusal(404), version="") as case:
        case.wait_deliveries(1)
        assert case.api.how()[0] == "stream"


# State and end


def test_how_far_it_is_behind() -> None:
    pace = replace(FAST, first=0.2, longest=0.2)
    with Case(ApiError("refused", "connection"), Reply(LISTED, ApiError("reset", "connection")), pace=pace) as case:
        case.wait(lambda: len(case.reports) == 1)
        assert case.reflector.behind() is None
        case.wait(lambda: len(case.reports) == 2)
        time.sleep(0.02)
        behind = case.reflector.behind()
        assert behind is not None
        assert 0.02 <= behind < 0.2
        case.wait(lambda: len(case.api.requests) == 3)
        case.wait(lambda: case.reflector.behind() == 0.0)


def test_what_was_listed_is_current_when_it_is_delivered() -> None:
    with paged(closing(page())) as case:
        case.wait_deliveries(1)
        assert case.inbox.behind == [0.0]
    with Case(Reply(LISTED)) as case:
        case.wait_deliveries(1)
        assert case.inbox.behind == [0.0]


def test_a_watch_that_ended_was_heard_to_its_end() -> None:
    pace = replace(FAST, first=60, longest=60)
    quiet = Late(0.2)
    quiet._ends = True
    with Case(quiet, ApiError("refused", "connection"), version="7", pace=pace) as case:
        case.wait(lambda: bool(case.reports))
        behind = case.reflector.behind()
        assert behind is not None
        assert behind < 0.2


def test_a_recovery_is_told_once_with_how_long_the_fault_lasted() -> None:
    with Case(*[ApiError("refused", "connection")] * 3, closing(bookmark(8)), version="7") as case:
        case.wait(lambda: len(case.api.replies) == 2 and case.reflector.behind() == 0.0)
        assert len(case.recoveries) == 1
        assert 0.07 <= case.recoveries[0] < 1.0


@pytest.mark.parametrize(
    "steps",
    [
        [Reply()],
        [Reply(LISTED)],
        [ApiError("refused", "connection")],
        [refusal(503, retry_after=60)],
        [refusal(422), closing(page(more="t")), refusal(503, retry_after=60)],
    ],
    ids=["streaming", "watching", "backing off", "told to wait", "between pages"],
)
def test_it_stops_soon_whatever_it_does(steps: list[Reply | Exception]) -> None:
    pace = replace(FAST, first=60, longest=60, retry_after=60)
    case = Case(*steps, pace=pace)
    with case:
        case.wait(lambda: len(case.api.requests) == len(steps))
        time.sleep(0.02)
        started = time.monotonic()
    assert time.monotonic() - started < 1.0
    assert case.reflector.behind() != 0.0


class Torn(Reply):
    """A response that breaks when it is closed."""

    def stream(self) -> Iterator[bytes]:
        self.closed.wait(WAIT)
        raise ApiError("reset", "connection")
        yield b""


@pytest.mark.parametrize("open_", [Reply(), Torn()], ids=["closed", "broken"])
def test_an_end_is_no_fault(open_: Reply) -> None:
    with Case(open_, version="7") as case:
        case.wait(lambda: case.reflector.behind() == 0.0)
    assert case.reports == []


def test_a_response_that_comes_after_the_end_is_closed() -> None:
    class Slow(Api):
        def get(self, path: str, query: Mapping[str, str], *, silence: float) -> Reply:
            reflector.stop()
            return super().get(path, query, silence=silence)

    api = Slow()
    reflector = Reflector(SERVICES, api, Heard(), "7", print, pace=FAST)
    reflector.start()
    assert reflector.join(WAIT)
    assert [one.closed.is_set() for one in api.replies] == [True]


# With the real connection and an API server


class Quiet:
    def request(self, verb: str, host: str, code: str, seconds: float) -> None: ...

    def throttled(self, verb: str, host: str, seconds: float) -> None: ...


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with ApiServer(tmp_path_factory.mktemp("api"), authenticate=True) as running:
        yield running


@pytest.fixture
def connection(server: ApiServer, tmp_path: Path) -> Iterator[Connection]:
    server.clear_faults()
    server.settings(streaming="on")
    server.up("empty")
    server.forget_requests()
    config = server.kubeconfig(tmp_path / "config")
    made = Connection(Access(kubeconfig=str(config), qps=1000, burst=1000), Quiet())
    yield made
    made.close()


def names(inbox: Heard) -> set[str]:
    """The objects that are known by all that was delivered."""
    known = Delivery("Service", complete=True)
    for delivery in inbox.all:
        known.merge(replace(delivery, rows=dict(delivery.rows)))
    return set(known.rows)


@pytest.mark.parametrize("streaming", ["on", "invalid", "bad_request", "ignored"])
def test_an_api_server_is_followed_over_everything(server: ApiServer, connection: Connection, streaming: str) -> None:
    server.settings(streaming=streaming)
    server.load([objects.service(f"s{number}") for number in range(1200)])
    inbox, reports = Heard(), list[str]()
    pace = replace(Pace(), list_silence=0.1, first=0.02, longest=0.1, brief=0.1)
    resource = resources()[1]
    reflector = Reflector(resource, connection, inbox, None, lambda *told: reports.append(told[1]), pace=pace)
    reflector.start()
    expected = {f"default/s{number}" for number in range(1200)}

    def known(name: str, change: Callable[[], object]) -> None:
        expected.add(f"default/{name}")
        change()
        server.create(objects.service(name))
        procs.wait_until(lambda: names(inbox) == expected, WAIT, f"{name} arrives; {reports}", 0.01)

    def history_lost() -> None:
        server.down()
        server.create(objects.service("meanwhile"))
        expected.add("default/meanwhile")
        server.up("lost")

    known("first", lambda: None)
    known("reset", lambda: server.break_watches("rst"))
    known("ended", lambda: server.break_watches("end"))
    known("error", lambda: server.error_event(500))
    known("down", server.restart)
    known("gone", history_lost)
    expected.remove("default/first")
    known("deleted", lambda: server.delete(objects.service("first")))
    reflector.stop()
    assert reflector.join(WAIT)
    assert sum(delivery.complete for delivery in inbox.all) == 2, "one list at the start, one after history was lost"


def test_a_restart_resumes_without_a_list(server: ApiServer, connection: Connection) -> None:
    server.create(objects.service("a"))
    version: str | None = None
    for name in ("b", "c"):
        inbox = Heard()
        reflector = Reflector(resources()[1], connection, inbox, version, print)
        reflector.start()
        server.create(objects.service(name))
        procs.wait_until(lambda name=name, inbox=inbox: f"default/{name}" in names(inbox), WAIT, name, 0.01)  # type: ignore[misc]
        version = inbox.all[-1].version
        reflector.stop()
        assert reflector.join(WAIT)
    assert [record.kind for record in server.requests()] == ["stream", "watch"]


def test_it_stops_soon_when_the_connection_is_closed_as_well(server: ApiServer, connection: Connection) -> None:
    server.fault(kind="stream", delay=30)
    reflector = Reflector(resources()[1], connection, Heard(), None, print)
    reflector.start()
    server.wait_requests(1, "stream")
    started = time.monotonic()
    reflector.stop()
    connection.close()
    assert reflector.join(WAIT)
    assert time.monotonic() - started < 2.0
