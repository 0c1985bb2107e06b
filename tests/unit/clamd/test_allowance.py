"""The time for a scan."""

from __future__ import annotations

import pytest

from clamsmtpd.clamd.allowance import LONGEST, scan_limit, seconds


@pytest.mark.parametrize(
    ("size", "time_out", "limit"),
    [(0, 180, 180), (1024 * 1024, 180, 181), (100 * 1024 * 1024, 2, 102), (1 << 40, 180, LONGEST), (0, 3600, LONGEST)],
)
def test_a_large_message_has_more_time_but_never_more_than_the_client_waits(
    size: int, time_out: float, limit: float
) -> None:
    assert scan_limit(size, time_out) == limit
    assert LONGEST < 600, "RFC 5321 section 4.5.3.2.6"


@pytest.mark.parametrize(
    ("limit", "said"), [(0.249, "0.25 seconds"), (179.999, "180 seconds"), (-0.1, "0 seconds"), (2.5, "2.5 seconds")]
)
def test_what_is_left_is_told_as_the_round_number_that_it_was(limit: float, said: str) -> None:
    assert seconds(limit) == said
