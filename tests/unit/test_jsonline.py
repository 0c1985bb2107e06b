"""JSON objects on one line with a bound."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamsmtpd.jsonline import CUT, json_line


def test_what_fits_is_as_it_is() -> None:
    fields = {"a": "x" * 5000, "b": ["1", "2"], "c": None, "d": 1.5, "e": True}
    assert json.loads(json_line(fields, 6000)) == fields


def test_what_does_not_fit_is_cut_and_says_so() -> None:
    told = json.loads(json_line({"short": "abc", "long": "x" * 5000, "number": 7}, 4000))
    assert told == {"short": "abc", "long": "x" * 1494 + " ...", "number": 7, CUT: True}


def test_what_is_written_long_is_cut_shorter() -> None:
    told = json.loads(json_line({"plain": "x" * 1000, "octets": "\x00" * 1000, "list": ["\U0001f600" * 200] * 5}, 3000))
    assert told["plain"].startswith("x" * 250)
    assert told["octets"].startswith("\x00" * 30)
    assert all(item.startswith("\U0001f600" * 10) for item in told["list"])


@pytest.mark.parametrize("half", ["\udcff", "a\ude00b"])
def test_half_a_surrogate_pair_is_written_out(half: str) -> None:
    line = json_line({"a": half, "b": [half], "c": {"d": half}}, 1000)
    assert "\\u" not in line.replace("\\\\u", "")
    assert json.loads(line)["b"][0].encode()


def test_there_is_an_end_to_cutting() -> None:
    told = json.loads(json_line({str(number): "x" * 100 for number in range(100)}, 1000))
    assert told["0"] == "x" * 24 + " ..."


_VALUES = st.text(max_size=3000) | st.integers() | st.booleans() | st.none()


@given(st.fixed_dictionaries({f"field_{number}": _VALUES for number in range(25)}), st.lists(st.text(), max_size=10))
def test_any_record_of_ours_fits_into_what_a_datagram_and_the_board_have(
    fields: dict[str, Any], recipients: list[str]
) -> None:
    for most in (3056, 7900):
        line = json_line({**fields, "recipients": recipients}, most)
        assert len(line) <= most
        assert line.isascii()
        assert "\n" not in line
        told = json.loads(line)
        assert told.keys() - {CUT} == {*fields, "recipients"}
        assert len(told["recipients"]) == len(recipients)
