"""Verdicts that workers remember for each other, in memory that any of them may be writing to."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamsmtpd.values import Clean, Infected, Unscanned, Verdict
from clamsmtpd.verdicts import CELL_SIZE, KEPT_FOR, LATEST_SIZE, REGION_SIZE, Mark, Verdicts


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def mark(text: bytes, version: str = "ClamAV 1.4.3/27000") -> Mark:
    return len(text), hashlib.sha256(text).digest(), version


def workers(number: int, clock: Clock | None = None) -> list[Verdicts]:
    memory = bytearray(64 + LATEST_SIZE + number * REGION_SIZE)
    return [Verdicts(memory, 64, number, worker, clock or Clock()) for worker in range(number)]


@pytest.mark.parametrize("verdict", [Clean(), Infected("Eicar-Test-Signature"), Infected("x" * 190)])
def test_what_one_worker_keeps_all_find(verdict: Verdict) -> None:
    first, second = workers(2)
    first.keep(mark(b"text"), verdict)
    for each in (first, second):
        assert each.may_know(4)
        assert each.find(mark(b"text")) == (verdict, False)
        assert each.find(mark(b"other")) == (None, False)


def test_nobody_need_take_a_digest_of_a_text_that_is_as_long_as_no_other() -> None:
    first, second = workers(2)
    assert not second.may_know(4)
    first.keep(mark(b"text"), Clean())
    assert second.may_know(4)
    assert not second.may_know(5)
    assert not second.may_know(0)


def test_octets_of_a_name_are_no_entry() -> None:
    (verdicts,) = workers(1)
    verdicts.keep(mark(b"text"), Infected("a" * 60))
    size = int.from_bytes(b"a" * 8, "little")
    assert not verdicts.may_know(size)
    assert verdicts.find((size, b"a" * 32, "ClamAV 1.4.3/27000")) == (None, False)


def test_a_verdict_of_other_signatures_is_none() -> None:
    (verdicts,) = workers(1)
    verdicts.keep(mark(b"text", "ClamAV 1.4.3/27000"), Clean())
    assert verdicts.find(mark(b"text", "ClamAV 1.4.3/27001")) == (None, False)


def test_a_verdict_is_forgotten_in_time() -> None:
    clock = Clock()
    (verdicts,) = workers(1, clock)
    verdicts.keep(mark(b"text"), Clean())
    clock.now += KEPT_FOR
    assert verdicts.find(mark(b"text")) == (Clean(), False)
    clock.now += 0.1
    assert verdicts.find(mark(b"text")) == (None, False)
    assert not verdicts.may_know(4)


def test_a_scan_under_way_does_not_shorten_the_memory_of_others() -> None:
    clock = Clock()
    (verdicts,) = workers(1, clock)
    verdicts.keep(mark(b"text"), Clean())
    verdicts.announce(mark(b"other"))
    clock.now += KEPT_FOR
    assert verdicts.may_know(4)
    assert verdicts.find(mark(b"other")) == (None, False)


def test_what_is_no_verdict_is_not_kept() -> None:
    (verdicts,) = workers(1)
    verdicts.keep(mark(b"text"), Unscanned("no scanner"))
    verdicts.keep(mark(b"text"), None)
    # A name that does not fit is no reason to keep another.
    verdicts.keep(mark(b"text"), Infected("x" * 250))
    assert verdicts.find(mark(b"text")) == (None, False)


def test_a_scan_under_way_is_known_until_it_has_ended() -> None:
    first, second = workers(2)
    entry = first.announce(mark(b"text"))
    assert second.find(mark(b"text")) == (None, True)
    first.keep(mark(b"text"), Infected("Eicar"), entry)
    assert second.find(mark(b"text")) == (Infected("Eicar"), False)


@pytest.mark.parametrize("verdict", [None, Unscanned("no scanner")])
def test_a_scan_that_came_to_nothing_is_forgotten(verdict: Verdict | None) -> None:
    first, second = workers(2)
    entry = first.announce(mark(b"text"))
    first.keep(mark(b"text"), verdict, entry)
    assert second.find(mark(b"text")) == (None, False)


def test_a_verdict_counts_more_than_a_scan_under_way() -> None:
    first, second = workers(2)
    first.announce(mark(b"text"))
    second.keep(mark(b"text"), Clean())
    assert first.find(mark(b"text")) == (Clean(), False)


def test_the_oldest_make_room_for_others() -> None:
    (verdicts,) = workers(1)
    entries = REGION_SIZE // CELL_SIZE
    for number in range(entries + 1):
        verdicts.keep(mark(b"%6d" % number), Clean())
    assert verdicts.find(mark(b"%6d" % 0)) == (None, False)
    assert verdicts.find(mark(b"%6d" % 1)) == (Clean(), False)
    assert verdicts.find(mark(b"%6d" % entries)) == (Clean(), False)


@given(st.integers(0, CELL_SIZE - 1), st.integers(1, 255))
def test_an_entry_that_is_half_written_is_none_or_the_old_one(place: int, change: int) -> None:
    memory = bytearray(LATEST_SIZE + REGION_SIZE)
    verdicts = Verdicts(memory, clock=Clock())
    verdicts.keep(mark(b"text"), Infected("Eicar-Test-Signature"))
    memory[LATEST_SIZE + place] ^= change
    assert verdicts.find(mark(b"text")) in ((None, False), (Infected("Eicar-Test-Signature"), False))


def test_an_entry_whose_place_another_text_takes_meanwhile_is_none() -> None:
    class Memory(bytearray):
        """Memory in which another worker writes as soon as something has been found in it."""

        others = b""

        def find(self, octets: Any, start: Any = None, end: Any = None, /) -> int:
            place = super().find(octets, start, end)
            if place >= 0:
                self[place : place + CELL_SIZE] = self.others
            return place

    memory = Memory(LATEST_SIZE + REGION_SIZE)
    verdicts = Verdicts(memory, clock=Clock())
    verdicts.keep(mark(b"other"), Clean())
    memory.others = bytes(memory[LATEST_SIZE : LATEST_SIZE + CELL_SIZE])
    verdicts.keep(mark(b"text"), Infected("Eicar"))
    assert verdicts.find(mark(b"text")) == (None, False)


@given(st.binary(max_size=200))
def test_memory_with_anything_in_it_gives_no_verdict(octets: bytes) -> None:
    memory = bytearray(LATEST_SIZE + REGION_SIZE)
    wanted = mark(b"text")
    start = LATEST_SIZE
    memory[start : start + 40] = wanted[0].to_bytes(8, "little") + wanted[1]
    memory[start + 40 : start + 40 + len(octets)] = octets
    assert Verdicts(memory, clock=Clock()).find(wanted) == (None, False)
