"""What a message that begins now would wait."""

from __future__ import annotations

import pytest

from clamsmtpd.clamd.load import Load


def work(load: Load, count: int, *, at_once: int, every: float, now: float = 0.0) -> float:
    """Let so many scans end, one after the other, with others always waiting; return the time."""
    for _ in range(at_once):
        load.begin(now)
    for _ in range(count):
        now += every
        load.end(now)
        load.begin(now)
    return now


def test_nothing_is_waited_for_where_nothing_is_done() -> None:
    assert Load().wait == 0


def test_the_wait_is_for_all_that_are_there_at_the_pace_of_late() -> None:
    load = Load()
    work(load, 200, at_once=10, every=0.5)
    assert load.outstanding == 10
    assert load.wait == pytest.approx(5, rel=0.01)


def test_the_pace_follows_what_happens() -> None:
    load = Load()
    now = work(load, 200, at_once=10, every=0.01)
    for _ in range(100):
        now += 2
        load.end(now)
        load.begin(now)
    assert load.wait == pytest.approx(20, rel=0.01)


def test_one_slow_scan_says_little() -> None:
    load = Load()
    now = work(load, 200, at_once=10, every=0.01)
    load.end(now + 10)
    load.begin(now + 10)
    assert load.wait < 10


def test_the_first_of_a_burst_says_little_of_the_others() -> None:
    load = Load()
    for _ in range(64):
        load.begin(0)
    load.end(60)
    assert load.wait < 60


def test_a_pause_in_which_nothing_was_asked_says_nothing() -> None:
    load = Load()
    for hour in range(100):
        load.begin(hour * 3600)
        load.end(hour * 3600 + 0.1)
    load.begin(400_000)
    assert load.wait == pytest.approx(0.1, rel=0.01)


def test_when_nobody_is_let_in_it_ends() -> None:
    load = Load()
    now = work(load, 100, at_once=50, every=10)
    waits = []
    while load.outstanding:
        waits.append(load.wait)
        now += 10
        load.end(now)
    assert waits == sorted(waits, reverse=True)
    assert load.wait == 0
