"""A scanner asked alone, without a pool that would ask another."""

from __future__ import annotations

import asyncio

from clamsmtpd.clamd.allowance import scan_limit
from clamsmtpd.clamd.client import EarlyScan, Scannable, Scanner
from clamsmtpd.clamd.outcome import Failed
from clamsmtpd.values import Unscanned, Verdict

__all__ = ["judge"]


async def judge(
    scanner: Scanner, message: Scannable, early: EarlyScan | None = None, *, limit: float | None = None
) -> Verdict:
    """Return what ``scanner`` says within ``limit`` seconds, or what its time-out and the size of the message give.

    Unscanned, with its address, where it fails.
    """
    if limit is None:
        limit = scan_limit(message.size, scanner._time_out)
    outcome = await scanner.scan(message, early, deadline=asyncio.get_running_loop().time() + limit)
    if isinstance(outcome, Failed):
        return Unscanned(f"clamd at {scanner.address}: {outcome.reason}")
    return outcome
