"""The arithmetic of the benchmark."""

from __future__ import annotations

import math

import pytest

from bench.figures import ideal_rate, medians, percentile, steady_rate


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([3.0, 1.0, 2.0], 50, 2.0),
        ([4.0, 1.0, 2.0, 3.0], 50, 2.0),
        ([float(n) for n in range(1, 101)], 99, 99.0),
        ([float(n) for n in range(1, 102)], 99, 100.0),
        ([7.0], 99, 7.0),
        ([7.0, 8.0], 0, 7.0),
        ([7.0, 8.0], 100, 8.0),
    ],
)
def test_a_percentile_is_one_of_the_values(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == expected


def test_nothing_has_no_percentile() -> None:
    assert math.isnan(percentile([], 50))


def test_a_rate_counts_from_the_begin_to_the_last_message() -> None:
    assert steady_rate(10.0, [10.5, 11.0, 11.5, 12.0]) == 2.0


def test_two_messages_of_a_hundred_that_come_late_do_not_lower_the_rate() -> None:
    punctual = [0.01 * n for n in range(1, 99)]
    assert steady_rate(0.0, [*punctual, 60.0, 120.0]) == pytest.approx(100)
    assert steady_rate(0.0, [*punctual[:-1], 60.0, 61.0, 120.0]) < 2


def test_no_message_has_the_rate_0() -> None:
    assert steady_rate(10.0, []) == 0


def test_each_figure_has_a_median_of_its_own() -> None:
    samples = [{"rate": 1.0, "p50": 9.0}, {"rate": 3.0, "p50": 7.0}, {"rate": 2.0, "p50": 8.0}]
    assert medians(samples) == {"rate": 2.0, "p50": 8.0}


def test_a_round_without_a_figure_does_not_count_for_it() -> None:
    found = medians([{"a": 1.0, "b": math.nan}, {"a": math.nan, "b": math.nan}, {"a": 3.0, "b": math.nan}])
    assert found["a"] == 2.0
    assert math.isnan(found["b"])


def test_the_ideal_leaves_all_cores_to_everything_but_the_proxy() -> None:
    assert ideal_rate(2, 0.0005) == 4000
    assert math.isnan(ideal_rate(2, 0.0))
