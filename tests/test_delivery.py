"""What waits for the writer: merged by object, complete before it is taken, returned when it could not be written."""

from __future__ import annotations

import threading
import time

from hypothesis import given
from hypothesis import strategies as st

from kdns.cluster.delivery import Delivery, Inbox

ANY: frozenset[str] = frozenset()

Known = dict[str, bytes]
KEYS = st.sampled_from(["a/a", "a/b", "b/a", "b/b"])
PACKED = st.sampled_from([b"1", b"2", b"3"])


def changes(rows: dict[str, bytes | None], version: str = "1", *, kind: str = "Service") -> Delivery:
    return Delivery(kind, version, rows=dict(rows))


def whole(rows: dict[str, bytes], version: str = "1", *, kind: str = "Service", kept: tuple[str, ...] = ()) -> Delivery:
    return Delivery(kind, version, True, dict(rows), set(kept))


def written(known: Known, delivery: Delivery) -> Known:
    """What the store has after a delivery, said without Delivery's own methods."""
    if delivery.complete:
        kept = {key: known[key] for key in delivery.kept if key in known}
        return kept | {key: packed for key, packed in delivery.rows.items() if packed is not None}
    return {key: packed for key, packed in (known | delivery.rows).items() if packed is not None}


@st.composite
def deliveries(draw: st.DrawFn) -> Delivery:
    if draw(st.booleans()):
        rows: dict[str, bytes | None] = draw(st.dictionaries(KEYS, PACKED))
        return Delivery("Service", "1", True, rows, draw(st.sets(KEYS)) - set(rows))
    return Delivery("Service", "1", rows=draw(st.dictionaries(KEYS, PACKED | st.none())))


def copied(delivery: Delivery) -> Delivery:
    return Delivery(delivery.kind, delivery.version, delivery.complete, dict(delivery.rows), set(delivery.kept))


@given(st.dictionaries(KEYS, PACKED), st.lists(st.tuples(deliveries(), st.sampled_from(["", "take", "fail"]))))
def test_the_store_ends_up_the_same_however_late_the_writer_takes(
    known: Known, steps: list[tuple[Delivery, str]]
) -> None:
    at_once, late, inbox = dict(known), dict(known), Inbox()
    for delivery, then in [*steps, (changes({}), "take")]:
        at_once = written(at_once, delivery)
        inbox.put(copied(delivery))
        taken = inbox.take(ANY, 0) if then else []
        if then == "fail":
            inbox.put_back(taken)
        elif then == "take":
            late = written(late, taken[0])
    assert late == at_once


def test_a_change_after_a_list_is_made_in_the_list() -> None:
    inbox = Inbox()
    inbox.put(whole({"a/a": b"1", "a/b": b"1"}, "5", kept=("a/c", "a/d", "a/e")))
    inbox.put(changes({"a/a": b"2", "a/b": None, "a/c": b"2", "a/d": None}, "9"))
    assert inbox.take(ANY, 0) == [whole({"a/a": b"2", "a/c": b"2"}, "9", kept=("a/e",))]


def test_a_list_replaces_all_of_its_kind_that_waits_and_nothing_else() -> None:
    inbox = Inbox()
    inbox.put(Delivery("Service", "1", rows={"a/a": None}, triggers={"a/b": 1.0}))
    inbox.put(changes({"a/a": b"1"}, kind="Pod"))
    inbox.put(whole({"b/b": b"1"}, "2"))
    assert inbox.take(ANY, 0) == [whole({"b/b": b"1"}, "2"), changes({"a/a": b"1"}, kind="Pod")]


def test_what_a_list_keeps_is_what_is_known_by_then() -> None:
    inbox = Inbox()
    inbox.put(changes({"a/a": b"1", "a/b": None, "a/c": b"1"}))
    inbox.put(whole({"b/b": b"1"}, "2", kept=("a/a", "a/b", "a/d")))
    assert inbox.take(ANY, 0) == [whole({"a/a": b"1", "b/b": b"1"}, "2", kept=("a/d",))]
    inbox.put(whole({"a/a": b"1"}, "3", kept=("a/b",)))
    inbox.put(whole({}, "4", kept=("a/a", "a/b", "a/c")))
    assert inbox.take(ANY, 0) == [whole({"a/a": b"1"}, "4", kept=("a/b",))]


def test_kinds_come_in_the_order_in_which_their_first_news_came() -> None:
    inbox = Inbox()
    for kind in ("Namespace", "Service", "Namespace", "EndpointSlice"):
        inbox.put(changes({}, kind=kind))
    assert [delivery.kind for delivery in inbox.take(ANY, 0)] == ["Namespace", "Service", "EndpointSlice"]


def test_only_the_change_that_still_waits_has_its_trigger() -> None:
    inbox = Inbox()
    inbox.put(Delivery("EndpointSlice", "1", rows={"a/a": b"1", "a/b": b"1", "a/c": b"1"}))
    waits = Delivery("EndpointSlice", "2", triggers={})
    for key in ("a/a", "a/b", "a/c"):
        waits.put(key, b"2", 100.0)
    inbox.put(waits)
    later = Delivery("EndpointSlice", "3")
    later.put("a/a", b"3", 101.0)
    later.put("a/b", b"3")
    inbox.put(later)
    gone = Delivery("EndpointSlice", "4")
    gone.delete("a/c")
    inbox.put(gone)
    assert inbox.take(ANY, 0)[0].triggers == {"a/a": 101.0}


def test_what_is_returned_goes_in_front_of_what_came_since() -> None:
    inbox = Inbox()
    inbox.put(changes({"a/a": b"1", "a/b": b"1"}, "1"))
    inbox.put(changes({"n": b"1"}, "1", kind="Namespace"))
    taken = inbox.take(ANY, 0)
    inbox.put(changes({"p": b"1"}, "1", kind="Pod"))
    inbox.put(changes({"a/b": b"2"}, "2"))
    inbox.put_back(taken)
    assert inbox.take(ANY, 0) == [
        changes({"a/a": b"1", "a/b": b"2"}, "2"),
        changes({"n": b"1"}, "1", kind="Namespace"),
        changes({"p": b"1"}, "1", kind="Pod"),
    ]


def test_nothing_is_taken_before_all_wanted_kinds_have_a_list() -> None:
    inbox, wanted = Inbox(), frozenset({"Service", "Namespace"})
    inbox.put(whole({}))
    assert inbox.take(wanted, 0) == []
    inbox.put(changes({}, kind="Namespace"))
    assert inbox.take(wanted, 0) == []
    inbox.put(whole({}, kind="Namespace"))
    assert {delivery.kind for delivery in inbox.take(wanted, 0)} == wanted


def test_taking_waits_for_the_first_delivery_and_no_longer() -> None:
    inbox = Inbox()
    threading.Timer(0.05, inbox.put, (changes({"a/a": b"1"}),)).start()
    started = time.monotonic()
    assert inbox.take(ANY, 10) == [changes({"a/a": b"1"})]
    assert time.monotonic() - started < 5


def test_taking_ends_with_nothing_after_its_time() -> None:
    assert Inbox().take(ANY, 0.01) == []


def test_closing_wakes_who_waits_and_lets_nothing_in_or_out() -> None:
    inbox = Inbox()
    threading.Timer(0.05, inbox.close).start()
    started = time.monotonic()
    assert inbox.take(ANY, 10) == []
    assert time.monotonic() - started < 5
    inbox.put(changes({"a/a": b"1"}))
    inbox.put_back([changes({"a/a": b"1"})])
    assert inbox.closed
    assert inbox.take(ANY, 0) == []
