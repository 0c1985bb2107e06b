"""The header field from its template, and those that pretend to be it."""

from __future__ import annotations

import itertools
import re
import timeit
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from email.parser import BytesHeaderParser
from email.utils import parsedate_to_datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamsmtpd.headers import UNTRUSTED, ForgedFields, HeaderTemplate, OwnFields, rfc5322_date
from clamsmtpd.smtp.body import HeaderSection, unstuff

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


# ---- fields that pretend to be ours ---------------------------------------------------------------


def forged(*pieces: bytes, template: str = "X-Virus-Scanned: yes") -> list[int]:
    fields = ForgedFields(OwnFields(template))
    for piece in pieces:
        fields.feed(piece)
    return fields.offsets


def in_many_cuttings(text: bytes, template: str = "X-Virus-Scanned: yes") -> list[int]:
    """Look for forged fields in the text as a whole, octet by octet, and in pieces of seven."""
    whole = forged(text, template=template)
    for size in (1, 7):
        assert forged(*(text[at : at + size] for at in range(0, len(text), size)), template=template) == whole
    return whole


@pytest.mark.parametrize(
    ("template", "names"),
    [
        ("", {b"x-virus-infected", b"x-virus-unscanned"}),
        ("X-Virus-Scanned: x", {b"x-virus-infected", b"x-virus-unscanned", b"x-virus-scanned"}),
        ("x-virus-INFECTED: x", {b"x-virus-infected", b"x-virus-unscanned"}),
        ("X-A \t: x\\r\\n\\tX-B: y\\r\\nX-C: z", {b"x-virus-infected", b"x-virus-unscanned", b"x-a", b"x-c"}),
        ("Received: x", {b"x-virus-infected", b"x-virus-unscanned"}),
        ("Comments: x\\r\\nX-A: y\\r\\nCONTENT-TYPE: z", {b"x-virus-infected", b"x-virus-unscanned", b"x-a"}),
    ],
)
def test_what_is_ours_to_add(template: str, names: set[bytes]) -> None:
    assert set(OwnFields(template).names) == names


@pytest.mark.parametrize(
    ("what", "text", "offsets"),
    [
        ("none", b"From: a\r\nSubject: b\r\n", []),
        ("no text", b"", []),
        ("first", b"X-Virus-Scanned: x\r\nA: b\r\n", [0]),
        ("each of them", b"A: b\r\nX-Virus-Infected: x\r\nX-Virus-Unscanned:\r\nX-Virus-Scanned:x", [6, 27, 47]),
        ("any case", b"x-vIRUS-sCANNED: x\r\n", [0]),
        ("blanks in front of the colon", b"A: b\r\nX-Virus-Scanned \t : x\r\n", [6]),
        ("many of them", b"A: b\r\nX-Virus-Scanned" + b" " * 1000 + b": x\r\nX-Virus-Scanned:", [6, 1026]),
        ("blanks and no colon", b"X-Virus-Scanned   x:\r\nX-Virus-Scanned" + b" " * 50, []),
        ("no colon", b"X-Virus-Scanned\r\n: x\r\n", []),
        ("twice in a row", b"X-Virus-Scanned:\nX-Virus-Scanned:\n", [0, 17]),
        ("a longer name", b"X-Virus-Scanned-By: x\r\nXX-Virus-Scanned: x\r\n", []),
        ("renamed before", b"X-Untrusted-X-Virus-Scanned: x\r\n", []),
        ("in a folded line", b"A: b\r\n X-Virus-Scanned: x\r\n\tX-Virus-Infected: x\r\n", []),
        ("within a line", b"A: X-Virus-Scanned: x\r\n", []),
        ("behind a bare CR", b"A: b\rX-Virus-Scanned: x\r\n", [5]),
        ("behind a bare LF", b"A: b\nX-Virus-Scanned: x\r\n", [5]),
        ("behind a CR too many", b"A: b\r\r\nX-Virus-Scanned: x\r\n", [7]),
        ("behind a dot that SMTP takes away", b".X-Virus-Scanned: x\r\n.X-Virus-Infected: x\r\n", [1, 22]),
        ("behind a dot that stays", b"..X-Virus-Scanned: x\r\n", []),
        ("behind a dot within a line", b"A: .X-Virus-Scanned: x\r\n", []),
    ],
)
def test_a_field_that_pretends_to_be_ours_is_found(what: str, text: bytes, offsets: list[int]) -> None:
    assert in_many_cuttings(text) == offsets, what


def test_one_name_may_be_the_start_of_another() -> None:
    text = b"X-A: 1\r\nX-A-B: 2\r\nX-A-B-C: 3\r\nX-A -B: 4\r\n"
    assert in_many_cuttings(text, "X-A: x\\r\\nX-A-B: y") == [0, 8]


def test_a_name_is_no_pattern() -> None:
    assert in_many_cuttings(b"XyA: 1\r\nX.A: 2\r\nX.A|B*: 3\r\n", "X.A: x\\r\\nX.A|B*: y") == [8, 16]


LINES = st.lists(
    st.sampled_from(
        [
            *(b"X-Virus-Scanned", b"x-virus-INFECTED", b"X-Virus-Unscanned", b"X-Virus", b"Subject", b"X-Untrusted-"),
            *(b":", b": ", b" ", b"\t", b" :", b"\r\n", b"\r\n", b"\n", b"\r", b".", b"..", b"text", b"\r\n\r\n", b"-"),
        ]
    ),
    max_size=25,
).map(b"".join)


@given(LINES)
def test_forged_fields_are_the_same_in_every_cutting(text: bytes) -> None:
    in_many_cuttings(text)


def reach(wire: bytes) -> int:
    header = HeaderSection()
    header.feed(wire)
    return len(wire) if header.reach is None else header.reach


def names_that_a_reader_sees(text: bytes, line_end: bytes) -> list[bytes]:
    """Read a header section as leniently as can be: to the first empty line, over all that is no field."""
    lines = itertools.takewhile(lambda line: line, re.split(line_end, text))
    return [line.partition(b":")[0].rstrip(b" \t").lower() for line in lines if b":" in line]


@given(LINES, st.booleans())
def test_no_reader_sees_a_forged_field_any_more(wire: bytes, stuffed: bool) -> None:
    own = OwnFields("X-Virus-Scanned: yes")
    marked = b""
    at = 0
    for offset in forged(wire[: reach(wire)]):
        marked += wire[at:offset] + UNTRUSTED
        at = offset
    marked += wire[at:]
    assert len(marked) - len(wire) == len(UNTRUSTED) * len(forged(wire[: reach(wire)]))
    text = b"".join(unstuff([marked])) if stuffed else marked
    for line_end in (b"\r\n|\n|\r", b"\r?\n"):
        assert not set(names_that_a_reader_sees(text, line_end)) & set(own.names)
    seen = [name.lower().encode() for name in BytesHeaderParser().parsebytes(text).keys()]  # noqa: SIM118 - no dict
    assert not set(seen) & set(own.names)


def test_an_ordinary_header_section_costs_next_to_nothing() -> None:
    section = b"".join(b"X-Header-%02d: %b\r\n" % (number, b"v" * 40) for number in range(20))
    own = OwnFields("X-Virus-Scanned: yes")
    # A bound that a slow machine keeps too: it would take a hundred times as long to look at single lines.
    assert min(timeit.repeat(lambda: ForgedFields(own).feed(section), number=100, repeat=5)) / 100 < 50e-6


def test_a_header_section_of_megabytes_takes_no_memory() -> None:
    fields = ForgedFields(OwnFields("X-Virus-Scanned: yes"))
    for piece in (b"X-Virus-Scanned", b" " * 1000, b"x" * 100_000, b"\r", b" " * 100_000):
        for _ in range(20):
            fields.feed(piece)
    assert fields.offsets == []
    assert len(fields._tail) <= 19
