"""The tables, and their place in a page."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from bench.report import between_markers, goals_table, notes, scenario_table

ROUND = {
    "rate": 3500.0,
    "megabytes": 14.0,
    "p50": 2.5,
    "p99": 4.0,
    "proxy": 0.15,
    "clamd": 0.3,
    "load": 0.04,
    "sink": 0.03,
    "memory": 20 * 2**20,
    "share": 0.8125,
    "stalls": 0,
}


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_a_goal_stands_beside_what_was_reached() -> None:
    table = goals_table({"kept-10": {"ours": ROUND, "best": {**ROUND, "rate": 1750.0}, "original": {"rate": 112.0}}})
    rows = [cells(row) for row in table.splitlines()]
    assert ["messages a second, 10 sessions, kept", "112", "1,750", "3,500", "2.00"] in [row[:5] for row in rows]
    assert {row[0]: row[-1] for row in rows[2:]} == {
        "messages a second, 10 sessions, kept": "yes",
        "proxy CPU, connection kept": "NO",
    }


def test_only_goals_of_what_was_measured_are_shown() -> None:
    assert len(goals_table({}).splitlines()) == 2


def test_every_contender_has_a_row_in_each_scenario() -> None:
    alone = {**ROUND, "proxy": math.nan, "memory": math.nan, "share": math.nan}
    rows = [cells(row) for row in scenario_table({"kept-10": {"ours": ROUND, "clamd": alone}}).splitlines()]
    assert " ".join(rows[3]) == "clamsmtpd, as configured by default 3,500 14.0 2.5 4.0 0.150 0.300 0.070 20.0 81"
    assert rows[4] == ["clamd alone", "3,500", "14.0", "2.5", "4.0", "", "0.300", "0.070", "", ""]


def test_connections_that_stalled_are_told_of() -> None:
    assert not notes({"each-50": {"original": ROUND}})
    assert "67 connections in a round got no greeting" in notes({"each-50": {"original": {**ROUND, "stalls": 67}}})


def test_a_page_keeps_what_stands_around_the_tables(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    before, after = between_markers(page)
    page.write_text("# Speed\n" + before + "old\n" + after + "The end.\n")
    before, after = between_markers(page)
    assert before.startswith("# Speed\n<!--")
    assert before.endswith("begin -->\n")
    assert after.startswith("<!--")
    assert after.endswith("end -->\nThe end.\n")
    assert "old" not in before + after


def test_a_page_without_markers_is_not_touched(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Speed\n")
    with pytest.raises(ValueError, match="lacks the lines"):
        between_markers(page)
