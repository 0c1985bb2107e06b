"""What is to be reached, and whether it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["GOALS", "Goal", "Results"]

#: Figures by scenario, contender and name.
Results = Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclass(frozen=True)
class Goal:
    """A bound for one figure: ``bound`` itself, or that many times the best case, or another figure of ours.

    ``figure`` may be a quotient of two, "p99/p50". ``scale`` and ``unit`` are for showing it.
    """

    measure: str
    scenario: str
    figure: str
    bound: float | str
    relative: bool = False
    at_least: bool = True
    digits: int = 2
    scale: float = 1
    unit: str = ""

    def value(self, results: Results, contender: str) -> float:
        """Return the figure of a contender; NaN if there is none."""
        return _figure(results, self.scenario, contender, self.figure)

    def reached(self, results: Results) -> bool | None:
        """Whether ours keeps the bound; None if that cannot be told for want of a figure."""
        ours, bound = self.value(results, "ours"), self._bound(results)
        if math.isnan(ours) or math.isnan(bound):
            return None
        return ours >= bound if self.at_least else ours <= bound

    def _bound(self, results: Results) -> float:
        if isinstance(self.bound, str):
            return _figure(results, self.scenario, "ours", self.bound)
        return self.bound * self.value(results, "best") if self.relative else self.bound

    def shown(self, value: float) -> str:
        """Return a value of the figure with its unit; empty if there is none."""
        return "" if math.isnan(value) else f"{value * self.scale:,.{self.digits}f}{self.unit}"

    def shown_bound(self, results: Results) -> str:
        """Return the bound in words."""
        words = "at least" if self.at_least else "at most"
        if self.relative:
            return f"{words} {self.bound:.2g} {'times' if self.at_least else 'of'} the best case"
        return f"{words} {self.shown(self._bound(results))}"


GOALS = (
    Goal("proxy CPU, connection kept", "kept-10", "proxy", 1 / 3, relative=True, at_least=False, unit=" ms"),
    Goal("proxy CPU, a connection each", "each-10", "proxy", 1 / 2, relative=True, at_least=False, unit=" ms"),
    Goal("messages a second, 10 sessions, kept", "kept-10", "rate", 2, relative=True, digits=0),
    Goal("messages a second, 50 sessions, a connection each", "each-50", "rate", 2, relative=True, digits=0),
    Goal("1 MB messages a second, 4 sessions", "1mb", "rate", 3, relative=True, digits=0),
    Goal("proxy CPU for 1 MB", "1mb", "proxy", 2.0, at_least=False, digits=1, unit=" ms"),
    Goal("proxy CPU for 10 MB", "10mb", "proxy", 17, at_least=False, digits=1, unit=" ms"),
    Goal("share of the ideal, 50 sessions, kept", "kept-50", "share", 0.8, digits=0, scale=100, unit=" %"),
    Goal("p99 / p50, 50 sessions, kept", "kept-50", "p99/p50", 2, at_least=False, digits=1),
    Goal("open connections, one worker", "open", "open", "tried", digits=0),
    Goal(
        "memory of an open connection", "open", "each", 8 * 1024, at_least=False, digits=1, scale=1 / 1024, unit=" KB"
    ),
    Goal("share of the ideal, production-size database", "database", "share", 0.9, digits=0, scale=100, unit=" %"),
    Goal("memory a session, large messages at once", "large", "each", 2**20, at_least=False, scale=2**-20, unit=" MB"),
)


def _figure(results: Results, scenario: str, contender: str, figure: str) -> float:
    """Return a figure, or the quotient of two that are joined by a slash; NaN for what was not measured."""
    figures = results.get(scenario, {}).get(contender, {})
    dividend, slash, divisor = figure.partition("/")
    value = figures.get(dividend, math.nan)
    return value / (figures.get(divisor, math.nan) or math.nan) if slash else value
