"""Which lines the soak takes for the daemon's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from soak.loglines import known_forms, unknown_lines

FORMS = known_forms()


@pytest.mark.parametrize(
    "line",
    [
        "clamsmtpd: 10000B: from=1@soak.invalid, to=2@soak.invalid, status=CLEAN",
        "clamsmtpd: 10000C: accepted connection from: 127.0.0.1",
        "clamsmtpd: worker 1 (process 4711) was killed by SIGKILL; sessions lost: 12; its place is taken in 0.5 s",
        "clamsmtpd: stopping: 4 connections to finish",
        "clamsmtpd: stopped",
        "clamsmtpd: 1,209 more like this in 10 s, the last one: 10000B: next hop: cannot connect to [::1]:25: refused",
    ],
)
def test_a_line_that_the_source_makes_is_known(line: str) -> None:
    assert unknown_lines([line], FORMS) == []


@pytest.mark.parametrize(
    "line",
    [
        "Traceback (most recent call last):",
        "clamsmtpd: 10000B: internal error: KeyError: 1",
        "clamsmtpd: internal error: KeyError: 1",
        "clamsmtpd: something that nobody has written",
        "clamsmtpd: stopped twice",
        "clamsmtpd: 9 more like this in 1 s, the last one: something that nobody has written",
        "clamsmtpd: 9 more like this in 1 s, the last one: 10000B: internal error: KeyError: 1",
        "sys:1: ResourceWarning: unclosed socket",
        "",
    ],
)
def test_any_other_line_is_a_fault_and_so_is_an_error_within(line: str) -> None:
    assert unknown_lines([line], FORMS) == [line]


def test_a_form_is_what_a_module_logs_with_places_for_values(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(
        '_log.info("%d of %s (100%%)", 1, name)\n'
        '_log.log(level, "chosen" if level else "other %g s", 2)\n'
        '_log.warning("%s", error)\n'
        'self._complain("too many: %s", error)\n'
        '_NAMED = "named: %s"\n'
        "_log.warning(_NAMED, 5)\n"
        'elsewhere("not logged at all")\n'
    )
    forms = known_forms(tmp_path)
    lines = ["1 of a.b (100%)", "chosen", "other 0.5 s", "too many: 7", "named: 5"]
    assert unknown_lines([f"clamsmtpd: {line}" for line in lines], forms) == []
    # A bare value would make every line a known one.
    others = ["clamsmtpd: anything", "clamsmtpd: not logged at all"]
    assert unknown_lines(others, forms) == others
