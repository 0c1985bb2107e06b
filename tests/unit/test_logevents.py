"""The table of all that is logged, held against the code that logs it."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import clamsmtpd
from clamsmtpd.logevents import EVENTS, event_of

SOURCE = Path(clamsmtpd.__file__).parent

LEVELS = ("debug", "info", "warning", "error", "critical")

# In Server._complain the format comes from whoever calls it.
COMPLAINT = "_complain"


def logged() -> Iterator[tuple[str, str, str, int]]:
    """Yield place, level (empty where it varies), format and number of arguments of each line that is logged."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            place = f"{path.relative_to(SOURCE)}:{node.lineno}"
            function, arguments = node.func.attr, node.args
            if function == COMPLAINT:
                level = "warning"
            elif not (isinstance(node.func.value, ast.Name) and node.func.value.id == "_log"):
                continue
            elif function == "log":
                level, arguments = "", arguments[1:]
            elif function in LEVELS:
                level = function
            else:
                continue
            text = arguments[0]
            if isinstance(text, ast.Name):
                assert path.name == "server.py", f"{place}: the format is not to be seen"
                continue
            assert isinstance(text, ast.Constant), f"{place}: the format is not to be seen"
            assert isinstance(text.value, str)
            yield place, level, text.value, len(arguments) - 1


def test_each_line_that_is_logged_is_in_the_table_with_a_name_for_each_argument() -> None:
    known = {(event.level, event.format): event for event in EVENTS}
    places = list(logged())
    assert len(places) > 70
    for place, level, text, arguments in places:
        event = known.get((level, text))
        assert event is not None, f"{place}: not in the table: {level} {text!r}"
        assert len(event.fields) == arguments, f"{place}: {event.fields}"


def test_nothing_else_is_in_the_table() -> None:
    said = {(level, text) for _, level, text, _ in logged()}
    assert {(event.level, event.format) for event in EVENTS} == said
    assert len({(event.level, event.format) for event in EVENTS}) == len(EVENTS)


def test_names_stay_in_one_form_and_each_line_is_explained() -> None:
    for event in EVENTS:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*\.[a-z]+(_[a-z]+)*", event.name)
        assert event.meaning.endswith(".") or event.meaning.endswith(")")
        assert len(set(event.fields)) == len(event.fields)
        assert (
            event.format.startswith("%s: ") == (event.fields[:1] == ("connection",)) or "connection" not in event.fields
        )


def test_a_record_is_known_by_its_level_and_format() -> None:
    judged = event_of(logging.INFO, "%s: %s")
    trouble = event_of(logging.WARNING, "%s: %s")
    assert judged is not None
    assert trouble is not None
    assert (judged.name, trouble.name) == ("message.judged", "connection.trouble")
    died = "%s; sessions lost: %d; its place is taken %s"
    assert event_of(logging.INFO, died) == event_of(logging.ERROR, died) is not None
    assert event_of(logging.INFO, "never said") is None
    assert event_of(logging.INFO, 5) is None
