"""What is found in a log of the daemon about one message."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamsmtpd.ctl import logfile
from clamsmtpd.ctl.logfile import Line, search


def ended(message: str = "100ABC-2", **changes: Any) -> str:
    account = {
        "message": message,
        "connection": message.partition("-")[0],
        "outcome": "delivered",
        "reply": "250 2.0.0 Ok: queued as 4X",
        "quarantine": "",
    }
    return json.dumps({"event": "message.ended", **account, **changes}) + "\n"


def messages(identity: str, *lines: str) -> list[str]:
    return [account["message"] for account in search(identity, lines).accounts]


def test_accounts_are_found_by_each_id_of_theirs() -> None:
    log = [
        "not json\n",
        '{"event": "message.ended"\n',
        '{"event": "connection.accepted", "connection": "100ABC"}\n',
        ended(),
        "clamsmtpd[12]: " + ended("100ABC-3"),
        ended("100ABD-1", reply="250 OK id=1w-2"),
        ended("100ABE-1", outcome="dropped", quarantine="/spool/virus.AbCdEf"),
    ]
    assert messages("100ABC", *log) == ["100ABC-2", "100ABC-3"]
    assert messages("100abc-3", *log) == ["100ABC-3"]
    assert messages("4X", *log) == ["100ABC-2", "100ABC-3"]
    assert messages("1w-2", *log) == ["100ABD-1"]
    assert messages("virus.AbCdEf", *log) == messages("AbCdEf", *log) == ["100ABE-1"]
    for nobody in ("queued2", "", "100AB", "250", "{"):
        assert messages(nobody, *log) == []


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("100ABC: told", ""),
        ("clamsmtpd: 100ABC: told", ""),
        ("Jan 15 08:00:01 mx clamsmtpd[12]: 100ABC: told", "Jan 15 08:00:01 mx"),
        ("2027-01-15T08:00:01+00:00 mx clamsmtpd[12]: 100ABC: told", "2027-01-15T08:00:01+00:00 mx"),
    ],
)
def test_a_line_of_a_text_log_is_known_by_what_it_begins_with(text: str, when: str) -> None:
    assert search("100ABC-1", [text + "\n"]).lines == [Line(when, "told")]


def test_what_a_stranger_says_is_no_line_of_another_connection() -> None:
    lines = [
        "clamsmtpd[12]: 100ABD: next hop refused the message: 554 clamsmtpd: 100ABC: forged",
        "mx smtpd[1]: 100ABC: of another program",
        "see 100ABC: told",
    ]
    assert search("100ABC", lines).lines == []


def test_lines_with_names_are_those_of_the_message_and_of_the_connection_between_messages() -> None:
    def line(text: str, **ids: str) -> str:
        return json.dumps({"event": "x.y", "connection": "100ABC", "text": f"100ABC: {text}", **ids})

    log = [line("accepted"), line("first", message="100ABC-1"), line("second", message="100ABC-2")]
    assert [found.text for found in search("100ABC-2", log).lines] == ["accepted", "second"]
    assert [found.text for found in search("100ABC", log).lines] == ["accepted", "first", "second"]


def journal(**fields: Any) -> str:
    return json.dumps({"__REALTIME_TIMESTAMP": "1800000000000001", **fields}) + "\n"


def test_the_journal_has_accounts_in_a_field_and_lines_with_names() -> None:
    line = journal(
        MESSAGE="100ABC: next hop refused DATA: 452 no",
        CLAMSMTPD_EVENT="next_hop.refused",
        CLAMSMTPD_MESSAGE="100ABC-2",
    )
    end = journal(
        MESSAGE="100ABC: message ended: x", CLAMSMTPD_EVENT="message.ended", CLAMSMTPD_ACCOUNT=ended().strip()
    )
    found = search("100ABC-2", [line, end])
    assert found.lines == [
        Line("2027-01-15T08:00:00.000001+00:00", "next hop refused DATA: 452 no", "next_hop.refused", "100ABC-2")
    ]
    assert [account["message"] for account in found.accounts] == ["100ABC-2"]


def test_the_journal_may_hold_json_and_octets() -> None:
    assert messages("4X", journal(MESSAGE=ended().strip())) == ["100ABC-2"]
    octets = list(b"100ABC: caf\xc3\xa9\x1b")
    assert [line.text for line in search("100ABC", [journal(MESSAGE=octets)]).lines] == []
    told = journal(MESSAGE=octets, CLAMSMTPD_CONNECTION="100ABC")
    assert [line.text for line in search("100ABC", [told]).lines] == ["caf\xe9\x1b"]


def test_lines_of_one_connection_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logfile, "LINES_MAX", 3)
    assert len(search("100ABC", ["100ABC: told\n"] * 10).lines) == 3


def test_a_line_that_is_too_deep_to_read_is_passed_over() -> None:
    deep = '{"event": "message.ended", "message": "100ABC-1", "a": ' + "[" * 100_000 + "]" * 100_000 + "}"
    assert messages("100ABC", deep, ended()) == ["100ABC-2"]


@given(st.lists(st.text(max_size=80), max_size=5), st.text(max_size=10))
def test_any_log_can_be_searched(lines: list[str], identity: str) -> None:
    wrapped = [f"{front} {identity} {line}" for line in lines for front in ('{"event": "message.ended", ', "100ABC:")]
    search(identity, [*lines, *wrapped])


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.sampled_from(
            [
                *("MESSAGE", "event", "connection", "message", "text", "time", "reply", "quarantine", "outcome"),
                *("CLAMSMTPD_EVENT", "CLAMSMTPD_ACCOUNT", "CLAMSMTPD_MESSAGE", "__REALTIME_TIMESTAMP"),
            ]
        ),
        _JSON | st.sampled_from(["message.ended", "100ABC", "100ABC: x", '{"a": 1}', "9" * 16]),
    )
)
def test_any_object_in_a_log_can_be_read(entry: dict[str, Any]) -> None:
    for identity in ("100ABC", "100ABC-1", "4X"):
        search(identity, [json.dumps({"x": identity, **entry})])
