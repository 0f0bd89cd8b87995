"""What comes most often is found in bounded memory, with rates that are right and fade."""

from __future__ import annotations

import random
import threading
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.observe.frequent import FADING_SECONDS, Frequent


def rates(found: Frequent[str], now: float, most: int = 100) -> dict[str, float]:
    return {each.key: each.rate for each in found.top(most, now)}


def test_steady_rates_are_told_from_the_first_seconds_on() -> None:
    found: Frequent[str] = Frequent(8, 1000.0)
    for tick in range(3000):
        now = 1000 + tick / 10
        found.add("often", 5, now)  # 50 a second
        if tick % 10 == 0:
            found.add("seldom", 1, now)
        if tick in (50, 300, 2999):
            assert rates(found, now) == {"often": pytest.approx(50, rel=0.05), "seldom": pytest.approx(1, rel=0.25)}


def test_what_came_is_forgotten_when_it_comes_no_more() -> None:
    found: Frequent[str] = Frequent(8, 0.0)
    for second in range(600):
        found.add("old", 100, second)
    assert rates(found, 600) == {"old": pytest.approx(100, rel=0.05)}
    assert rates(found, 600 + FADING_SECONDS) == {"old": pytest.approx(100 / 2.718, rel=0.05)}
    for second in range(600, 1200):
        found.add("new", 10, second)
    assert [each.key for each in found.top(2, 1200)] == ["new", "old"]
    assert rates(found, 1200)["old"] < 0.01


def test_years_do_not_overflow() -> None:
    found: Frequent[str] = Frequent(3, 0.0)
    day = 86400.0
    for number in range(2000):
        found.add(f"{number % 5}", 1, number * day)
        found.add("steady", 2, number * day)
    assert found.top(1, 1999 * day)[0].key == "steady"
    assert len(found.top(9, 1999 * day)) <= 3
    assert found.top(9, 9000 * day)[0].rate < 1e-9


def test_at_first_nothing_is_there() -> None:
    assert Frequent(8, 5.0).top(3, 5.0) == []


@given(
    st.lists(st.tuples(st.sampled_from("abcdefghijkl"), st.integers(1, 9)), max_size=200),
    st.integers(1, 6),
)
def test_the_bounds_of_space_saving_hold(seen: list[tuple[str, int]], size: int) -> None:
    found: Frequent[str] = Frequent(size, 0.0)
    true: Counter[str] = Counter()
    for key, weight in seen:
        found.add(key, weight, 0.0)
        true[key] += weight
    counts = {key: tuple(known) for key, known in found._counts.items()}
    total = sum(true.values())
    assert len(counts) <= size
    assert sum(count for count, _ in counts.values()) == pytest.approx(total)
    for key, (count, excess) in counts.items():
        assert count - excess <= true[key] + 1e-9
        assert true[key] <= count + 1e-9
    for key, number in true.items():
        assert key in counts or number <= total / size


def test_names_that_never_repeat_do_not_hide_those_that_do() -> None:
    chance = random.Random(7)
    found: Frequent[str] = Frequent(64, 0.0)
    for number in range(50_000):
        found.add(f"popular-{number % 5}" if chance.random() < 0.25 else f"random-{number}", 1, number / 1000)
    top = found.top(20, 50.0)
    assert {each.key for each in top} == {f"popular-{n}" for n in range(5)}
    for each in top:
        assert each.rate - each.excess <= 50 * 1.1
        assert each.rate >= 50 * 0.9


def test_threads_may_add_while_others_look() -> None:
    found: Frequent[int] = Frequent(16, 0.0)

    def add() -> None:
        for number in range(5000):
            found.add(number % 40, 1, 0.0)

    threads = [threading.Thread(target=add) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        found.top(5, 0.0)
    assert sum(count for count, _ in found._counts.values()) == pytest.approx(15_000)
    assert len(found._counts) == 16
