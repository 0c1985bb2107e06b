"""Whether a goal is reached, and how it is shown."""

from __future__ import annotations

import math

import pytest

from bench.contenders import CONTENDERS
from bench.goals import GOALS, Goal
from bench.scenarios import SCENARIOS


def results(**figures: dict[str, float]) -> dict[str, dict[str, dict[str, float]]]:
    return {"here": figures}


RATE = Goal("rate", "here", "rate", 2, relative=True, digits=0)
CPU = Goal("CPU", "here", "proxy", 1 / 3, relative=True, at_least=False, unit=" ms")
SHARE = Goal("share", "here", "share", 0.8, digits=0, scale=100, unit=" %")
QUOTIENT = Goal("p99 / p50", "here", "p99/p50", 2, at_least=False)
OPEN = Goal("open", "here", "open", "tried", digits=0)


@pytest.mark.parametrize(("ours", "reached"), [(2000.0, True), (1999.0, False)])
def test_a_rate_is_reached_from_its_multiple_of_the_best_case_on(ours: float, *, reached: bool) -> None:
    assert RATE.reached(results(ours={"rate": ours}, best={"rate": 1000.0})) is reached


@pytest.mark.parametrize(("ours", "reached"), [(0.15, True), (0.16, False)])
def test_a_cost_is_reached_up_to_its_part_of_the_best_case(ours: float, *, reached: bool) -> None:
    assert CPU.reached(results(ours={"proxy": ours}, best={"proxy": 0.46})) is reached


@pytest.mark.parametrize(("ours", "reached"), [(0.8, True), (0.79, False)])
def test_a_share_needs_no_best_case(ours: float, *, reached: bool) -> None:
    assert SHARE.reached(results(ours={"share": ours})) is reached


@pytest.mark.parametrize(("p99", "reached"), [(4.0, True), (4.1, False)])
def test_a_quotient_is_taken_of_two_figures(p99: float, *, reached: bool) -> None:
    assert QUOTIENT.reached(results(ours={"p99": p99, "p50": 2.0})) is reached


@pytest.mark.parametrize(("opened", "reached"), [(9970.0, True), (9969.0, False)])
def test_a_bound_may_be_another_figure(opened: float, *, reached: bool) -> None:
    found = results(ours={"open": opened, "tried": 9970.0})
    assert OPEN.reached(found) is reached
    assert OPEN.shown_bound(found) == "at least 9,970"


@pytest.mark.parametrize("goal", [RATE, CPU, SHARE, QUOTIENT, OPEN])
def test_what_was_not_measured_is_neither_reached_nor_missed(goal: Goal) -> None:
    assert goal.reached({}) is None
    assert not goal.shown(goal.value({}, "ours"))


def test_without_the_best_case_a_relative_goal_is_neither_reached_nor_missed() -> None:
    assert RATE.reached(results(ours={"rate": 1000.0})) is None


def test_values_and_bounds_are_shown_with_their_units() -> None:
    assert SHARE.shown(0.731) == "73 %"
    assert SHARE.shown_bound({}) == "at least 80 %"
    assert CPU.shown(0.1549) == "0.15 ms"
    assert CPU.shown_bound({}) == "at most 0.33 of the best case"
    assert RATE.shown(3456.7) == "3,457"
    assert RATE.shown_bound({}) == "at least 2 times the best case"
    assert not RATE.shown(math.nan)


def test_every_goal_is_about_something_that_is_measured() -> None:
    assert {goal.scenario for goal in GOALS} <= {scenario.name for scenario in SCENARIOS} | {"open", "large"}
    assert {"ours", "best", "original"} <= {contender.name for contender in CONTENDERS}
