"""From the bytes of lists and watches to deliveries."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.cluster.delivery import Delivery
from kdns.cluster.events import Intake, Lines
from kdns.cluster.objects import Service, unpack
from kdns.errors import ApiError
from tests.support import objects

ALL: frozenset[str] = frozenset()


def service(name: str, version: int | str = "", namespace: str = "default", ip: str = "10.96.0.1") -> dict[str, Any]:
    made = objects.service(name, namespace, ips=[ip])
    made["metadata"]["resourceVersion"] = str(version)
    return made


def event(kind: str, item: Any) -> bytes:
    return json.dumps({"type": kind, "object": item}, ensure_ascii=False).encode() + b"\n"


def bookmark(version: int | str, *, ends: bool = False) -> bytes:
    metadata: dict[str, Any] = {"resourceVersion": str(version), "creationTimestamp": None}
    if ends:
        metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
    return event("BOOKMARK", {"kind": "Service", "apiVersion": "v1", "metadata": metadata})


def failure(code: int, reason: str, message: str = "") -> bytes:
    return event("ERROR", {"kind": "Status", "code": code, "reason": reason, "message": message})


def page(*items: Any, version: str = "7", more: str | None = None, kind: str = "ServiceList") -> bytes:
    metadata = {"resourceVersion": version} | ({"continue": more} if more else {})
    return json.dumps({"kind": kind, "apiVersion": "v1", "metadata": metadata, "items": list(items)}).encode()


def misshapen(name: str, version: int | str = "", namespace: str = "default") -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace, "resourceVersion": str(version)}, "spec": {"ports": 7}}


class Notes(list[tuple[str, str]]):
    def __call__(self, reason: str, text: str) -> None:
        self.append((reason, text))


def intake(version: str | None = "1", *namespaces: str, notes: Notes | None = None, limit: int = 2**20) -> Intake:
    return Intake("Service", frozenset(namespaces), version, notes if notes is not None else Notes(), limit=limit)


def ips(delivery: Delivery | None) -> dict[str, str | None]:
    """The addresses of the Services in a delivery."""
    found: dict[str, str | None] = {}
    assert delivery is not None
    for key, packed in delivery.rows.items():
        item = unpack(packed) if packed is not None else None
        assert item is None or isinstance(item, Service)
        found[key] = item.cluster_ips[0] if item is not None else None
    return found


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted({at % (len(data) + 1) for at in cuts} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@given(st.lists(st.binary(max_size=20)), st.lists(st.integers(0, 400)))
def test_lines_are_the_same_however_the_bytes_are_divided(parts: list[bytes], cuts: list[int]) -> None:
    data, lines = b"\n".join(parts), Lines()
    found = [line for chunk in cut(data, cuts) for line in lines.feed(chunk)]
    assert [*found, lines.end()] == data.split(b"\n")


@given(st.lists(st.integers(0, 9), max_size=12), st.lists(st.integers(0, 9)))
def test_a_line_over_the_limit_is_refused_however_it_is_divided(lengths: list[int], cuts: list[int]) -> None:
    data, lines = b"".join(b"x" * length + b"\n" for length in lengths), Lines(limit=6)
    with pytest.raises(ApiError) if max(lengths, default=0) > 6 else contextlib.nullcontext():
        for chunk in cut(data, cuts):
            lines.feed(chunk)


NAMES = st.sampled_from(["a", "b", "ü-é", "名前", "\U0001f600"])
EVENTS = st.one_of(
    st.tuples(st.sampled_from(["ADDED", "MODIFIED", "DELETED"]), NAMES, st.integers(1, 30)).map(
        lambda one: event(one[0], service(one[1], one[2], "näme"))
    ),
    st.tuples(NAMES, st.integers(1, 30)).map(lambda one: event("MODIFIED", misshapen(*one))),
    st.integers(1, 30).map(bookmark),
    st.integers(1, 30).map(lambda version: bookmark(version, ends=True)),
    st.sampled_from([b"\n", b" \r\n", b'{"type": "NOVEL", "object": {}}\n', b'{"type": "ADDED"\n', failure(500, "No")]),
)


def _outcome(version: str | None, chunks: list[bytes]) -> tuple[object, ...]:
    notes = Notes()
    made = intake(version, notes=notes)
    merged = Delivery("Service")
    for delivery in [*(made.feed(chunk) for chunk in chunks if made.error is None), made.end()]:
        if delivery is not None:
            merged.merge(delivery)
    return merged, made.version, str(made.error), made.old, notes


@given(st.sampled_from(["5", None]), st.lists(EVENTS, max_size=12), st.lists(st.integers(0, 4000)))
def test_deliveries_are_the_same_however_the_bytes_are_divided(
    version: str | None, events: list[bytes], cuts: list[int]
) -> None:
    data = b"".join(events)
    assert _outcome(version, cut(data, cuts)) == _outcome(version, [data])


@given(st.sampled_from(["5", None]), st.lists(EVENTS | st.binary(max_size=30), max_size=8))
def test_no_bytes_raise_anything(version: str | None, events: list[bytes]) -> None:
    _outcome(version, events)


def test_a_chunk_is_one_delivery_of_all_that_it_says() -> None:
    made = intake("1")
    delivery = made.feed(
        event("ADDED", service("a", 2))
        + event("MODIFIED", service("a", 3, ip="10.96.0.3"))
        + event("ADDED", service("b", 4))
        + event("DELETED", service("b", 5))
        + event("ADDED", service("c", 6))[:-9]
    )
    assert ips(delivery) == {"default/a": "10.96.0.3", "default/b": None}
    assert delivery is not None
    assert (delivery.version, delivery.complete, made.version) == ("5", False, "5")


def test_a_last_line_without_newline_counts_if_it_is_whole() -> None:
    made = intake("1")
    assert made.feed(event("ADDED", service("a", 2))[:-1]) is None
    assert ips(made.end()) == {"default/a": "10.96.0.1"}
    assert made.error is None


def test_a_last_line_that_is_cut_off_is_malformed() -> None:
    made = intake("1")
    made.feed(event("ADDED", service("a", 2))[:-5])
    assert made.end() is None
    assert made.error is not None
    assert made.error.reason == "malformed"


def test_what_came_before_a_line_that_is_no_json_is_delivered_and_nothing_after_it() -> None:
    made = intake("1")
    delivery = made.feed(event("ADDED", service("a", 2)) + b'{"type": \n' + event("ADDED", service("b", 3)))
    assert ips(delivery) == {"default/a": "10.96.0.1"}
    assert made.error is not None
    assert made.error.reason == "malformed"
    assert made.version == "2"


def test_an_event_that_is_too_long_is_refused() -> None:
    made = intake("1", limit=1000)
    made.feed(event("ADDED", service("a" * 2000, 2))[:1500])
    assert made.error is not None
    assert made.error.reason == "too_large"


def test_events_that_tell_nothing_new_are_dropped_and_counted() -> None:
    made = intake("10")
    delivery = made.feed(
        event("MODIFIED", service("a", 9)) + event("DELETED", service("b", 10)) + event("MODIFIED", service("c", 11))
    )
    assert ips(delivery) == {"default/c": "10.96.0.1"}
    assert made.old == 2


def test_versions_that_are_no_numbers_are_taken_as_they_come() -> None:
    made = intake("z")
    for version in ("b", "a", "5", "b"):
        delivery = made.feed(event("MODIFIED", service("a", version)))
        assert delivery is not None
        assert delivery.version == made.version == version
    assert made.old == 0


def test_a_bookmark_brings_its_version_and_no_rows() -> None:
    made = intake("10")
    assert made.feed(bookmark(20)) == Delivery("Service", "20")
    assert made.feed(bookmark(20)) is None
    assert made.feed(bookmark(15)) is None
    assert made.version == "20"


def test_a_bookmark_of_a_version_that_is_no_number_is_news_once() -> None:
    made = intake("x")
    assert made.feed(bookmark("y")) == Delivery("Service", "y")
    assert made.feed(bookmark("y")) is None


def test_a_streaming_list_is_delivered_whole_at_its_end() -> None:
    made = intake(None)
    assert made.feed(event("ADDED", service("b", 90)) + event("ADDED", service("a", 5))) is None
    assert made.feed(bookmark(50)) is None
    assert made.feed(event("MODIFIED", service("a", 91, ip="10.96.0.9")) + event("DELETED", service("b", 92))) is None
    assert made.listing
    delivery = made.feed(bookmark(95, ends=True) + event("ADDED", service("c", 96)) + event("ADDED", service("d", 94)))
    assert ips(delivery) == {"default/a": "10.96.0.9", "default/c": "10.96.0.1"}
    assert delivery is not None
    assert (delivery.complete, delivery.version, made.listing, made.old) == (True, "96", False, 1)
    delivery = made.feed(event("DELETED", service("a", 97)))
    assert ips(delivery) == {"default/a": None}


def test_a_streaming_list_without_objects_is_an_empty_list() -> None:
    assert intake(None).feed(bookmark(95, ends=True)) == Delivery("Service", "95", complete=True)


def test_an_object_of_wrong_shape_leaves_what_is_known_and_advances_the_version() -> None:
    notes = Notes()
    made = intake("1", notes=notes)
    delivery = made.feed(event("MODIFIED", misshapen("a", 2)) + event("MODIFIED", service("b", 3)))
    assert ips(delivery) == {"default/b": "10.96.0.1"}
    assert made.feed(event("MODIFIED", misshapen("a", 4))) == Delivery("Service", "4")
    assert [reason for reason, _ in notes] == ["malformed", "malformed"]
    assert "default/a" in notes[0][1]
    assert "$.spec.ports" in notes[0][1]


def test_an_object_of_wrong_shape_in_a_list_is_kept() -> None:
    notes = Notes()
    made = intake(None, notes=notes)
    delivery = made.feed(event("ADDED", misshapen("a", 2)) + event("ADDED", service("b", 3)) + bookmark(9, ends=True))
    assert delivery is not None
    assert (set(delivery.rows), delivery.kept) == ({"default/b"}, {"default/a"})
    assert len(notes) == 1


def test_an_object_of_wrong_shape_can_be_deleted() -> None:
    notes = Notes()
    assert ips(intake("1", notes=notes).feed(event("DELETED", misshapen("a", 2)))) == {"default/a": None}
    assert notes == []


@pytest.mark.parametrize("item", [7, None, {}, {"metadata": 5}, {"metadata": {"resourceVersion": 5}}])
def test_an_object_that_is_nothing_at_all_is_noted_and_left_out(item: Any) -> None:
    notes = Notes()
    made = intake("1", notes=notes)
    delivery = made.feed(event("ADDED", item) + event("ADDED", service("b", 3)))
    assert ips(delivery) == {"default/b": "10.96.0.1"}
    assert [reason for reason, _ in notes] == ["malformed"]


def test_objects_of_other_namespaces_are_left_out_and_advance_the_version() -> None:
    notes = Notes()
    made = intake("1", "one", "two", notes=notes)
    delivery = made.feed(event("ADDED", service("a", 2, "one")) + event("ADDED", service("a", 3, "three")))
    assert ips(delivery) == {"one/a": "10.96.0.1"}
    assert made.version == "3"
    assert made.feed(event("ADDED", service("b", 4, "three")) + event("ADDED", misshapen("b", 5, "three"))) is None
    assert made.version == "5"
    assert notes == []


def test_namespaces_themselves_are_left_out_by_their_names() -> None:
    made = Intake("Namespace", frozenset({"one"}), None, Notes())
    named = [{**objects.namespace(name), "kind": "Namespace"} for name in ("one", "two")]
    delivery = made.feed(b"".join(event("ADDED", item) for item in named) + bookmark(9, ends=True))
    assert delivery is not None
    assert set(delivery.rows) == {"one"}


def test_the_time_of_a_change_comes_with_watch_events_only() -> None:
    def slice_(version: int) -> dict[str, Any]:
        made = objects.endpoint_slice("a", [objects.endpoint("10.0.0.1")])
        made["metadata"]["resourceVersion"] = str(version)
        made["metadata"]["annotations"] = {"endpoints.kubernetes.io/last-change-trigger-time": "1970-01-01T00:01:40Z"}
        return made

    made = Intake("EndpointSlice", ALL, None, Notes())
    delivery = made.feed(event("ADDED", slice_(1)) + bookmark(2, ends=True))
    assert delivery is not None
    assert delivery.triggers == {}
    delivery = made.feed(event("MODIFIED", slice_(3)))
    assert delivery is not None
    assert list(delivery.triggers.values()) == [100.0]
    delivery = made.feed(event("MODIFIED", slice_(4)) + event("DELETED", slice_(5)))
    assert delivery is not None
    assert delivery.triggers == {}


def test_unknown_types_of_events_are_ignored_and_noted_once() -> None:
    notes = Notes()
    made = intake("1", notes=notes)
    for _ in range(3):
        made.feed(b'{"type": "NOVEL", "object": {}}\n')
    assert made.error is None
    assert [reason for reason, _ in notes] == ["unsupported"]


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (failure(410, "Gone"), "expired"),
        (failure(0, "Expired"), "expired"),
        (event("ERROR", {"code": None, "reason": "Gone"}), "expired"),
        (failure(504, "Timeout", "Too large resource version: 9, current: 5"), "expired"),
        (
            event("ERROR", {"code": 504, "details": {"causes": [{"reason": "ResourceVersionTooLarge"}]}}),
            "expired",
        ),
        (failure(500, "InternalError", "etcdserver: no leader"), "error_event"),
        (event("ERROR", "what?"), "error_event"),
    ],
)
def test_an_error_event_says_whether_a_new_list_is_needed(status: bytes, reason: str) -> None:
    made = intake("1")
    assert ips(made.feed(event("ADDED", service("a", 2)) + status)) == {"default/a": "10.96.0.1"}
    assert made.error is not None
    assert made.error.reason == reason


def test_pages_are_delivered_together() -> None:
    made = intake(None)
    assert made.page(page(service("a"), misshapen("b"), version="7", more="more")) == "more"
    assert made.take() is None
    assert made.page(page(service("c"), version="7")) == ""
    delivery = made.take()
    assert delivery is not None
    assert (set(delivery.rows), delivery.kept, delivery.version) == ({"default/a", "default/c"}, {"default/b"}, "7")
    assert delivery.complete


def test_the_version_of_a_list_is_that_of_its_first_page() -> None:
    made = intake(None)
    made.page(page(version="7", more="more"))
    made.page(page(version="8"))
    assert made.take() == Delivery("Service", "7", complete=True)


def test_items_that_are_null_are_none() -> None:
    made = intake(None)
    made.page(b'{"kind": "ServiceList", "metadata": {"resourceVersion": "7"}, "items": null}')
    assert made.take() == Delivery("Service", "7", complete=True)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"{}",
        b'{"kind": "ServiceList"}',
        b'{"kind": "ServiceList", "metadata": {"resourceVersion": "7"}}',
        b'{"kind": "ServiceList", "metadata": {}, "items": []}',
        page(version=""),
        page(kind="PodList"),
        page(service("a"))[:-9],
    ],
)
def test_a_body_that_is_no_list_is_not_taken_for_an_empty_one(body: bytes) -> None:
    made = intake(None)
    with pytest.raises(ApiError) as caught:
        made.page(body)
    assert caught.value.reason == "malformed"
    assert made.take() is None


def test_versions_of_objects_that_are_not_wanted_are_told_by_the_next_bookmark() -> None:
    intake = Intake("Service", frozenset({"mine"}), "7", print)
    assert intake.feed(event("ADDED", service("x/a", 9))) is None
    delivery = intake.feed(bookmark(9))
    assert delivery is not None
    assert (delivery.version, delivery.rows) == ("9", {})
    assert intake.feed(bookmark(9)) is None
