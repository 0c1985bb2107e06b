"""The table of all that is logged, held against the code that logs it."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import clamsmtpd
from clamsmtpd.logevents import EVENTS, event_of

SOURCE = Path(clamsmtpd.__file__).parent

LEVELS = ("debug", "info", "warning", "error", "critical", "exception")

# Whoever logs what others have said, and how it calls the format.
PASSED_ON = {("server.py", "message"), ("session.py", "line")}

# What makes a note, which the log has as a warning about a connection.
NOTES = {"Note", "_break_off", "_go_without_tls"}


def argument(node: ast.expr) -> str | None:
    """Return the text that stands there, None for anything else."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def name_of(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


class Line(NamedTuple):
    """What a place in the source logs. ``level`` is empty where it varies."""

    level: str
    format: str
    arguments: int


def of_log(call: ast.Call, place: str) -> Line | None:
    """Return what a call of a logger says."""
    if not isinstance(call.func, ast.Attribute) or name_of(call.func.value) != "_log":
        return None
    function, arguments = call.func.attr, call.args
    if function == "log":
        function, arguments = "", arguments[1:]
    elif function not in LEVELS:
        assert function == "isEnabledFor", place
        return None
    text = argument(arguments[0])
    if text is None:
        assert (place.partition(":")[0], name_of(arguments[0])) in PASSED_ON, f"{place}: the format is not to be seen"
        return None
    return Line(function, text, len(arguments) - 1)


def of_complaint(call: ast.Call, place: str) -> Line | None:
    """Return what a server complains of."""
    if name_of(call.func) != "_complain":
        return None
    text = argument(call.args[0])
    assert text is not None, place
    return Line("warning", text, len(call.args) - 1)


def of_note(call: ast.Call, place: str) -> Line | None:
    """Return what a relay notes, as the session logs it."""
    front, arguments = "%s: ", call.args
    if name_of(call.func) == "run" and arguments and name_of(arguments[0]) == "server_lost":
        front, arguments = "%s: next hop: ", arguments[1:]
    elif name_of(call.func) not in NOTES:
        return None
    text = argument(arguments[0])
    if text is None:
        # Its caller's, who is here too.
        known = isinstance(arguments[0], ast.JoinedStr) or name_of(arguments[0]) == "what_it_did"
        assert place.startswith("smtp/relay.py"), f"{place}: the format is not to be seen"
        assert known, f"{place}: the format is not to be seen"
        return None
    number = len(arguments) - 1
    if number == 1 and isinstance(arguments[1], ast.Tuple):
        number = len(arguments[1].elts)
    return Line("warning", front + text, number + 1)


def of_record(call: ast.Call, place: str) -> Line | None:
    """Return what the log itself has to say, past the loggers."""
    if name_of(call.func) != "makeLogRecord":
        return None
    assert isinstance(call.args[0], ast.Dict), place
    made = {argument(key): value for key, value in zip(call.args[0].keys, call.args[0].values, strict=True) if key}
    text, arguments = argument(made["msg"]), made["args"]
    assert text is not None, place
    assert isinstance(arguments, ast.Tuple), place
    level = name_of(made["levelno"])
    return Line(level.lower() if level.isupper() else "", text, len(arguments.elts))


def logged() -> Iterator[tuple[str, Line]]:
    """Yield the place and the format of each line that is logged."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                place = f"{path.relative_to(SOURCE)}:{node.lineno}"
                for look in (of_log, of_complaint, of_note, of_record):
                    if (line := look(node, place)) is not None:
                        yield place, line


def test_each_line_that_is_logged_is_in_the_table_with_a_name_for_each_argument() -> None:
    known = {(event.level, event.format): event for event in EVENTS}
    places = list(logged())
    assert len(places) > 95
    for place, (level, text, arguments) in places:
        event = known.get((level, text))
        assert event is not None, f"{place}: not in the table: {level} {text!r}"
        assert len(event.fields) == arguments, f"{place}: {event.fields}"


def test_nothing_else_is_in_the_table() -> None:
    said = {(level, text) for _, (level, text, _) in logged()}
    assert {(event.level, event.format) for event in EVENTS} == said
    assert len({(event.level, event.format) for event in EVENTS}) == len(EVENTS)


def test_a_format_takes_as_many_arguments_as_have_names() -> None:
    for event in EVENTS:
        assert len(re.findall(r"%(?:\.0)?[sdgf]", event.format)) == event.format.count("%") == len(event.fields)


def test_names_stay_in_one_form_and_each_line_is_explained() -> None:
    for event in EVENTS:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*\.[a-z]+(_[a-z]+)*", event.name)
        assert event.meaning.endswith(".") or event.meaning.endswith(")")
        assert len(set(event.fields)) == len(event.fields)
        assert (
            event.format.startswith("%s: ") == (event.fields[:1] == ("connection",)) or "connection" not in event.fields
        )


def test_no_field_has_the_name_of_what_each_event_has() -> None:
    for event in EVENTS:
        assert not {"time", "level", "event", "pid", "text", "cut", "message"} & set(event.fields), event


def test_a_record_is_known_by_its_level_and_format() -> None:
    judged = event_of(logging.INFO, "%s: %s")
    refused = event_of(logging.WARNING, "%s: next hop refused the message: %s")
    assert judged is not None
    assert refused is not None
    assert (judged.name, refused.name) == ("message.judged", "next_hop.refused")
    died = "%s; sessions lost: %d; its place is taken %s"
    assert event_of(logging.INFO, died) == event_of(logging.ERROR, died) is not None
    assert event_of(logging.INFO, "never said") is None
    assert event_of(logging.INFO, 5) is None
