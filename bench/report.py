"""Tables of what was measured, as they stand in the documentation."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.contenders import CONTENDERS, Python
from bench.goals import GOALS, Goal, Results
from bench.machine import cpu_model
from bench.scenarios import SCENARIOS

__all__ = ["between_markers", "goals_table", "machine_shape", "markdown", "notes", "scenario_table"]

_BEGIN = "<!-- measured by make bench: begin -->\n"
_END = "<!-- measured by make bench: end -->\n"

#: Heading, figure, digits, factor.
_COLUMNS = (
    ("messages/s", "rate", 0, 1),
    ("MB/s", "megabytes", 1, 1),
    ("p50 ms", "p50", 1, 1),
    ("p99 ms", "p99", 1, 1),
    ("proxy CPU ms", "proxy", 3, 1),
    ("clamd CPU ms", "clamd", 3, 1),
    ("load + next hop CPU ms", "around", 3, 1),
    ("memory MB", "memory", 1, 2**-20),
    ("share of ideal %", "share", 0, 100),
)


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, the first of which are headings, so that they can be read as they are, too."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def goals_table(results: Results) -> str:
    """Return what was to be reached, and what was."""
    rows = [["measure", "original as is", "its best case", "ours", "ours / best case", "to reach", "reached"]]
    rows += [_goal_row(goal, results) for goal in GOALS if goal.scenario in results]
    return _markdown_table(rows)


def _goal_row(goal: Goal, results: Results) -> list[str]:
    original, best, ours = (goal.value(results, contender) for contender in ("original", "best", "ours"))
    ratio = ours / best if best else math.nan
    verdict = {True: "yes", False: "NO", None: "not known"}[goal.reached(results)]
    shown_ratio = "" if math.isnan(ratio) else f"{ratio:.2f}"
    shown = [goal.shown(value) for value in (original, best, ours)]
    return [goal.measure, *shown, shown_ratio, goal.shown_bound(results), verdict]


def scenario_table(results: Results) -> str:
    """Return every figure of every contender in every scenario that was run."""
    rows = [["", *(heading for heading, *_ in _COLUMNS)]]
    for scenario in SCENARIOS:
        if scenario.name not in results:
            continue
        rows.append([f"**{scenario.title}**", *[""] * len(_COLUMNS)])
        for contender in CONTENDERS:
            figures = dict(results[scenario.name].get(contender.name, {}))
            if figures:
                figures["around"] = figures["load"] + figures["sink"]
                row = [contender.title]
                for _, name, digits, factor in _COLUMNS:
                    value = figures[name] * factor
                    row.append("" if math.isnan(value) else f"{value:,.{digits}f}")
                rows.append(row)
    return _markdown_table(rows) if len(rows) > 1 else ""


def notes(results: Results) -> str:
    """Return in sentences what fits no table."""
    titles = {contender.name: contender.title for contender in CONTENDERS}
    lines = [
        f"- {scenario.title}, {titles[name]}: {figures['stalls']:.0f} connections in a round got no greeting in time,"
        " and were tried again."
        for scenario in SCENARIOS
        for name, figures in results.get(scenario.name, {}).items()
        if figures["stalls"]
    ]
    lines += [
        f"- Open connections, {'one worker' if name == 'ours' else titles[name]}: {figures['open']:,.0f} of"
        f" {figures['tried']:,.0f} that were tried, {figures['each'] / 1024:.1f} KB each"
        + ("." if math.isnan(figures["p50"]) else f"; beside them a 4 KB message takes {figures['p50']:.1f} ms (p50).")
        for name, figures in results.get("open", {}).items()
    ]
    lines += [
        f"- {figures['sessions']:.0f} messages of {figures['size'] / 1e6:g} MB at once, one worker, a slow next hop:"
        f" {figures['peak'] / 2**20:.0f} MB of memory at the most (PSS and files in memory),"
        f" {figures['disk'] / 1e9:.1f} GB on disk, {figures['seconds']:.0f} s, none lost."
        for figures in results.get("large", {}).values()
    ]
    lines += [
        f"- clamd starts in {figures['seconds']:.1f} s with the production-size database of"
        f" {figures['signatures']:,.0f} made up signatures."
        for figures in results.get("loading", {}).values()
    ]
    return "\n".join(lines)


def machine_shape(python: Python) -> str:
    """Return the date and everything that figures depend on, but the figures."""
    clamd = subprocess.run(["clamd", "--version"], check=True, capture_output=True, text=True).stdout.strip()
    return (
        f"{datetime.now(UTC):%Y-%m-%d}: {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores ({cpu_model()}), "
        f"Linux {platform.release()}, Python {python.version} ({python.build}), {clamd.partition('/')[0]}."
    )


def markdown(results: Results, *, shape: str, how: str) -> str:
    """Return all of it for a page."""
    return "\n\n".join(
        part for part in (shape, how, goals_table(results), notes(results), scenario_table(results)) if part
    )


def between_markers(path: Path) -> tuple[str, str]:
    """Return what stands before and after the tables in a page; a page that does not exist gets nothing else.

    Raises ValueError if the page has no markers.
    """
    text = path.read_text() if path.exists() else _BEGIN + _END
    before, found, rest = text.partition(_BEGIN)
    _, closed, after = rest.partition(_END)
    if not found or not closed:
        raise ValueError(f"{path} lacks the lines {_BEGIN.strip()} and {_END.strip()}")
    return before + _BEGIN, _END + after
