"""The fault matrix: a row that does not tell the truth fails."""

from __future__ import annotations

import inspect

import pytest

from tests.support.faults import Outcome, Row, Section, delivered, in_turn, page, sections

FOUND = Outcome("451 4.3.0", "nothing", ["100000: no verdict: clamd at /run/clamd: timed out", "stopped"])
TEXT = b"Subject: x\r\n\r\nThis is x\r\n"


def test_a_row_that_tells_the_truth_passes() -> None:
    Row("It is away.", "451 4.3.0", "nothing", "no verdict: clamd at …: timed out").check(FOUND)


@pytest.mark.parametrize(
    ("heard", "deliveries", "log"),
    [
        ("250", "nothing", "no verdict"),
        ("451", "nothing", "no verdict"),
        ("451 4.3.0", "once", "no verdict"),
        ("451 4.3.0", "nothing", "no verdict: clamd at …: connection refused"),
        # Two lines are not one.
        ("451 4.3.0", "nothing", "no verdict…stopped"),
        # What looks like a pattern is none.
        ("451 4.3.0", "nothing", "no verdict: .* timed out"),
    ],
)
def test_a_wrong_row_fails(heard: str, deliveries: str, log: str) -> None:
    with pytest.raises(AssertionError):
        Row("It is away.", heard, deliveries, log).check(FOUND)


def test_a_test_is_checked_by_its_own_row() -> None:
    section = Section("The scanner", "")

    @section.fault("First.", heard="451 4.3.0", delivered="nothing", log="no verdict", case=1)
    @section.fault("Second.", heard="250", delivered="nothing", log="no verdict", case=2)
    def test(case: int, clamd: str) -> Outcome:
        assert clamd == "clamd"
        return FOUND if case == 1 else Outcome("421 4.4.2", "nothing", FOUND.log)

    @section.fault("Third.", heard="451 4.3.0", delivered="nothing", log="no verdict")
    def another() -> None:
        """Return nothing, as no test should."""

    first, second, third = section.rows
    assert [first.what, second.what, third.what] == ["First.", "Second.", "Third."]
    # What pytest sees.
    assert list(inspect.signature(test).parameters) == ["row", "clamd"]
    test(row=first, clamd="clamd")
    with pytest.raises(AssertionError, match=r"the client heard 421 4\.4\.2, not 250"):
        test(row=second, clamd="clamd")
    with pytest.raises(AssertionError, match="has to return"):
        another(row=third)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([], "nothing"),
        ([TEXT], "once"),
        ([b"X-Scanned: y\r\n" + TEXT, TEXT], "twice"),
        ([TEXT] * 3, "3 times"),
        ([TEXT[:-4]], "damaged"),
    ],
)
def test_how_often_a_message_was_delivered(found: list[bytes], said: str) -> None:
    assert delivered(found, TEXT) == said


def test_how_often_several_messages_were_delivered() -> None:
    other = TEXT + b"And more.\r\n"
    assert delivered([], TEXT, other) == "nothing"
    assert delivered([TEXT, other], TEXT, other) == "once each"
    assert delivered([TEXT], TEXT, other) == "some nothing, some once"


def test_replies_are_told_in_turn() -> None:
    assert in_turn(["451", "451", "250"]) == "451, then 250"
    assert in_turn(["250"]) == "250"


def test_every_row_is_on_the_page_once() -> None:
    text = page()
    rows = [row for section in sections() for row in section.rows]
    assert len(rows) > 50
    assert len({row.what for row in rows}) == len(rows), "rows that nobody can tell apart"
    for row in rows:
        assert text.count(f"| {row.what} |") == 1
    assert text.count("\n|") == len(rows) + 2 * len(sections())
