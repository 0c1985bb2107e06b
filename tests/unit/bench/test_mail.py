"""What the benchmark sends, and the signatures that it is scanned with."""

from __future__ import annotations

import re

import pytest

from bench.database import made_up
from bench.mail import Letters


def whole(letters: Letters) -> bytes:
    return letters.head() + bytes(letters.body)


def test_no_two_messages_are_the_same_not_even_of_two_runs() -> None:
    first, second = Letters(4000), Letters(4000)
    assert len({whole(first), whole(first), whole(second), whole(second)}) == 4


@pytest.mark.parametrize("size", [400, 4000, 4001, 1_000_000])
def test_a_message_has_its_size_and_ends_with_a_line_end(size: int) -> None:
    letters = Letters(size)
    text = whole(letters)
    assert len(text) == letters.size == size
    assert text.endswith(b"\r\n")


def test_a_message_is_never_shorter_than_its_head() -> None:
    letters = Letters(1)
    assert letters.size == len(whole(letters)) == len(letters.head())


def test_no_line_begins_with_a_dot_but_the_end() -> None:
    text = whole(Letters(4000, end=b".\r\n"))
    assert [line for line in text.split(b"\r\n") if line.startswith(b".")] == [b"."]
    assert text.endswith(b"\r\n.\r\n")


def test_signatures_are_as_many_as_wanted_and_always_the_same() -> None:
    files = made_up(1000)
    assert sum(len(text.splitlines()) for text in files.values()) == 1000
    assert files == made_up(1000)


def test_signatures_are_written_as_clamd_reads_them() -> None:
    files = made_up(1000)
    pattern = re.compile(r"Bench\.Pattern-\d+:0:\*:([0-9a-f]{2})+((\?\?|\*|\{\d*-\d+\})([0-9a-f]{2})+)?")
    digest = re.compile(r"[0-9a-f]{64}:\d+:Bench\.Hash-\d+:73")
    assert all(pattern.fullmatch(line) for line in files["bench.ndb"].splitlines())
    assert all(digest.fullmatch(line) for line in files["bench.hsb"].splitlines())
