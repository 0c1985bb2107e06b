"""The header field from its template."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone, tzinfo
from email.utils import parsedate_to_datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamsmtpd.headers import HeaderTemplate, rfc5322_date

NOON = datetime(2026, 11, 3, 12, 5, 9, tzinfo=UTC)


def render(template: str, now: datetime = NOON) -> bytes:
    return HeaderTemplate(template).render(client="192.0.2.1", local="198.51.100.2", clock=lambda: now)


@pytest.mark.parametrize(
    ("template", "field"),
    [
        ("X-Virus-Scanned: ClamAV using ClamSMTP", b"X-Virus-Scanned: ClamAV using ClamSMTP\r\n"),
        ("", b""),
        ("   ", b""),
        ("X: %i %l", b"X: 192.0.2.1 198.51.100.2\r\n"),
        ("X: %d", b"X: Tue, 3 Nov 2026 12:05:09 +0000 (UTC)\r\n"),
        ("X: 100%%", b"X: 100%\r\n"),
        ("X: %%i", b"X: %i\r\n"),
        ("X: [%q]", b"X: []\r\n"),
        ("X: 5%", b"X: 5%\r\n"),
        ("X: a\\tb", b"X: a\tb\r\n"),
        ("X: a\\r\\n\\tb", b"X: a\r\n\tb\r\n"),
        ("X: a\\n b", b"X: a\r\n b\r\n"),
        ("X: a\\r b", b"X: a\r\n b\r\n"),
        ("X: a\\r\\nY: b", b"X: a\r\nY: b\r\n"),
        ("X: a\\r\\n", b"X: a\r\n"),
        ("X: a\\r\\n\\r\\n\\tb", b"X: a\r\n\tb\r\n"),
        ("X: a\\\\n", b"X: a\\n\r\n"),
        ("X: a\\xb\\", b"X: axb\\\r\n"),
        ("X: é", "X: é\r\n".encode()),
        ("X: \udcff", b"X: \xff\r\n"),
        (
            "Received: from %i\\r\\n\\tby %l; %d",
            b"Received: from 192.0.2.1\r\n\tby 198.51.100.2; Tue, 3 Nov 2026 12:05:09 +0000 (UTC)\r\n",
        ),
    ],
)
def test_the_template_is_filled_in(template: str, field: bytes) -> None:
    assert render(template) == field


@pytest.mark.parametrize(
    ("template", "on_top"), [("Received: x", True), ("RECEIVED: x", True), ("X-Received: x", False), ("", False)]
)
def test_a_trace_field_goes_on_top(template: str, on_top: bool) -> None:
    assert HeaderTemplate(template).on_top is on_top


@pytest.mark.parametrize(
    ("zone", "shown"),
    [
        (UTC, "+0000 (UTC)"),
        (ZoneInfo("Asia/Kolkata"), "+0530 (IST)"),
        (ZoneInfo("America/St_Johns"), "-0330 (NST)"),
        (ZoneInfo("Asia/Kathmandu"), "+0545"),
        (ZoneInfo("America/New_York"), "-0500 (EST)"),
        (ZoneInfo("Pacific/Marquesas"), "-0930"),
        (timezone(-timedelta(minutes=30)), "-0030"),
        (timezone(timedelta(hours=1), "A) evil ("), "+0100"),
    ],
)
def test_the_date_is_right_in_every_time_zone(zone: tzinfo, shown: str) -> None:
    moment = NOON.astimezone(zone)
    text = rfc5322_date(moment)
    assert text.endswith(f"{moment:%H:%M:%S} {shown}")
    assert parsedate_to_datetime(text) == NOON


@given(st.datetimes(min_value=datetime(1971, 1, 1), max_value=datetime(2200, 1, 1)), st.integers(-840, 840))  # noqa: DTZ001
def test_every_date_can_be_read_back(moment: datetime, minutes: int) -> None:
    aware = moment.replace(microsecond=0, tzinfo=timezone(timedelta(minutes=minutes)))
    assert parsedate_to_datetime(rfc5322_date(aware)) == aware
