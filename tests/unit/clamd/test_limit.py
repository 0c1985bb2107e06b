"""How the size is found up to which a scanner looks."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamsmtpd.clamd.limit import SMALL, STEP, Limit

MIB = 1024 * 1024


def learn(limit: Limit, top: int, true: float) -> list[int]:
    """Probe a scanner that sees ``true`` octets until the limit is known; return the sizes."""
    probes = []
    while (size := limit.next_probe(top)) is not None:
        assert size not in probes, "the same is not asked twice"
        probes.append(size)
        limit.note(size, seen=size <= true)
    return probes


def test_where_all_is_seen_one_probe_tells() -> None:
    limit = Limit()
    assert learn(limit, 100 * MIB, math.inf) == [100 * MIB]
    assert (limit.seen, limit.blind) == (100 * MIB, math.inf)
    assert learn(limit, 50 * MIB, math.inf) == []
    assert learn(limit, 200 * MIB, math.inf) == [200 * MIB]


@given(true=st.integers(SMALL, 300 * MIB), top=st.integers(1, 300 * MIB))
def test_the_border_is_found_closely_with_few_probes(true: int, top: int) -> None:
    limit = Limit()
    assert len(learn(limit, top, true)) <= 16
    assert limit.learnable
    if top <= true:
        assert limit.seen >= top
    else:
        assert limit.seen <= true < limit.blind
        assert limit.blind - limit.seen <= max(STEP, limit.seen / 64) + STEP


def test_what_was_known_before_is_asked_first() -> None:
    limit = Limit()
    learn(limit, 100 * MIB, 25 * MIB)
    seen, blind = limit.seen, limit.blind
    limit.forget()
    assert (limit.seen, limit.blind, limit.epoch) == (0, math.inf, 1)
    limit.forget()
    assert learn(limit, 100 * MIB, 25 * MIB) == [100 * MIB, seen, blind]


def test_what_has_become_larger_or_smaller_since_is_found_too() -> None:
    for now in (1 * MIB, 90 * MIB):
        limit = Limit()
        learn(limit, 100 * MIB, 25 * MIB)
        limit.forget()
        learn(limit, 100 * MIB, now)
        assert limit.seen <= now < limit.blind


def test_a_message_needs_a_probe_where_nothing_is_known() -> None:
    limit = Limit()
    assert limit.probe_for(10) == STEP
    limit.note(STEP, seen=True)
    assert limit.probe_for(STEP) is None
    assert limit.probe_for(STEP + 1) == 2 * STEP
    limit.note(2 * STEP, seen=False)
    assert limit.probe_for(2 * STEP) is None
    assert limit.probe_for(STEP + 1) == STEP + 1, "at the border, to the octet"


def test_nothing_is_too_large_for_one_that_has_seen_nothing_yet() -> None:
    limit = Limit()
    limit.note(MIB, seen=False)
    assert limit.blind == math.inf
    assert limit.probe_for(2 * MIB) == SMALL
    limit.note(SMALL, seen=True)
    assert limit.blind == MIB


def test_the_test_file_that_is_not_found_with_anything_behind_it_tells_nothing() -> None:
    limit = Limit()
    learn(limit, 100 * MIB, 100)
    assert not limit.learnable
    assert (limit.seen, limit.blind) == (math.inf, math.inf)
    assert limit.probe_for(200 * MIB) is None
    limit.forget()
    assert limit.probe_for(1) == STEP


def test_where_probes_tell_nothing_what_it_has_refused_is_known_all_the_same() -> None:
    limit = Limit()
    learn(limit, 100 * MIB, 100)
    limit.note(25 * MIB, seen=False)
    assert (limit.seen, limit.blind) == (math.inf, 25 * MIB)
    assert limit.probe_for(24 * MIB) is limit.probe_for(26 * MIB) is limit.next_probe(100 * MIB) is None
    limit.forget()
    assert (limit.seen, limit.blind) == (0, math.inf)


@pytest.mark.parametrize("seen", [True, False])
def test_the_last_probe_counts(seen: bool) -> None:
    limit = Limit()
    limit.note(MIB, seen=not seen)
    limit.note(MIB, seen=seen)
    assert (limit.seen, limit.blind) == ((MIB, math.inf) if seen else (0, math.inf))
    assert limit.probe_for(MIB) == (None if seen else SMALL)


def test_nothing_is_held_against_one_of_whom_nothing_is_to_be_known() -> None:
    limit = Limit()
    limit.assume_none()
    assert limit.probe_for(1 << 40) is None
    assert limit.next_probe(1 << 40) is None
    assert limit.blind == math.inf
