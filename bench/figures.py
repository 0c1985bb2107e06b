"""Arithmetic of measurements."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

__all__ = ["ideal_rate", "medians", "percentile", "steady_rate"]

#: The part of all messages that a rate is taken from.
_STEADY = 0.98


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that ``percent`` of all do not exceed; NaN if there is none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def steady_rate(begin: float, finished: Sequence[float]) -> float:
    """Return messages a second, from when each was done, in order.

    The last few do not count: one of them that has to wait, for a SYN that is sent again after seconds, say,
    would let a short run look idle.
    """
    counted = math.ceil(len(finished) * _STEADY)
    return counted / (finished[counted - 1] - begin) if counted else 0.0


def medians(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each figure over all rounds, each figure by itself.

    All samples must have the same figures; one that is NaN in a round is not counted in that round.
    """
    found = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples if not math.isnan(sample[name])]
        found[name] = statistics.median(values) if values else math.nan
    return found


def ideal_rate(cores: int, seconds: float) -> float:
    """Return messages a second if the proxy cost nothing, and no core ever waited.

    ``seconds`` are the CPU seconds that a message costs everything but the proxy.
    """
    return cores / seconds if seconds > 0 else math.nan
