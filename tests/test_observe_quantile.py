"""Percentiles from buckets, as Prometheus estimates them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.observe.quantile import quantile

BOUNDS = (1.0, 2.0, 4.0, math.inf)


@pytest.mark.parametrize(
    ("q", "counts", "value"),
    [
        (0.5, (10, 0, 0, 0), 0.5),
        (0.5, (0, 10, 0, 0), 1.5),
        (0.9, (0, 10, 0, 0), 1.9),
        (0.5, (5, 5, 0, 0), 1.0),
        (0.75, (5, 5, 0, 0), 1.5),
        (1.0, (5, 5, 0, 0), 2.0),
        (0.99, (1, 0, 0, 99), 4.0),
        (0.5, (0, 0, 0, 7), 4.0),
        (0.0, (0, 0, 3, 0), 2.0),
        (0.5, (0, 0, 0, 0), None),
        (0.5, (math.nan, 1, 1, 1), None),
        (0.5, (math.inf, 1, 1, 1), None),
        (0.5, (-5, 1, 1, 1), None),
    ],
)
def test_values_lie_evenly_in_their_bucket(q: float, counts: tuple[float, ...], value: float | None) -> None:
    found = quantile(q, BOUNDS, counts)
    assert found == (None if value is None else pytest.approx(value))


def test_without_buckets_there_is_nothing() -> None:
    assert quantile(0.5, (), ()) is None


@given(st.lists(st.integers(0, 1000), min_size=4, max_size=4), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_lies_below_no_smaller_value(counts: list[int], one: float, other: float) -> None:
    low, high = (quantile(q, BOUNDS, counts) for q in sorted((one, other)))
    if low is None or high is None:
        assert not any(counts)
    else:
        assert 0 <= low <= high + 1e-9 <= 4.000001
