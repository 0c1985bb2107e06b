"""The grammar of a header template."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamsmtpd.headers import HeaderTemplate
from clamsmtpd.templates import check_header, header_lines


@pytest.mark.parametrize(
    ("template", "lines"),
    [
        ("X: a", ["X: a"]),
        ("X: a\\r\\n\\tb", ["X: a", "\tb"]),
        ("X: a\\n\\n b\\r", ["X: a", " b"]),
        ("X: a\\\\b\\q\\", ["X: a\\bq\\"]),
        ("", []),
        ("\\r\\n", []),
    ],
)
def test_lines_and_escapes(template: str, lines: list[str]) -> None:
    assert header_lines(template) == lines


@pytest.mark.parametrize(
    "template",
    [
        "",
        "X: a",
        "X-A : b",
        "X: a\\r\\n\\tb",
        "X: a\\r\\n b",
        "X: a\\r\\nY: b",
        "X: " + "a" * 995,
        "Received: from %i; %d",
        "X: \tb",
    ],
)
def test_what_gives_header_fields_passes(template: str) -> None:
    assert check_header(template) == template


@pytest.mark.parametrize(
    ("template", "wrong"),
    [
        ("no field", "no header field"),
        (": a", "no header field"),
        ("X-%d: a", "no header field"),
        ("\\r\\n", "no header field"),
        ("X\\r\\n\\t: a", "no header field"),
        ("X: a\\r\\nb", "must start with a blank"),
        ("X: a\x01", "control character"),
        ("X: a\nb", "control character"),
        ("X: " + "a" * 996, "more than 998 octets"),
    ],
)
def test_what_would_spoil_the_header_section_does_not(template: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        check_header(template)


@given(st.text(max_size=60))
def test_a_template_that_passes_gives_fields_and_nothing_else(value: str) -> None:
    try:
        template = check_header("X: " + value)
    except ValueError:
        return
    now = datetime(2026, 11, 3, tzinfo=UTC)
    lines = HeaderTemplate(template).render(client="c", local="l", clock=lambda: now).split(b"\r\n")
    assert lines.pop() == b""
    assert lines[0].startswith(b"X:")
    assert all(line[:1] in b" \t" or b":" in line for line in lines[1:])
