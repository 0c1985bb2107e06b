"""Where accounts of messages go when they are closed: into the numbers, the log and the memory of the last ones."""

from __future__ import annotations

import logging
import time

from clamsmtpd import log
from clamsmtpd.account import Account, Outcome, verdict_name
from clamsmtpd.board import ENTRY_MAX, Board
from clamsmtpd.jsonline import json_line
from clamsmtpd.metrics import OUTCOMES, VERDICTS, Metrics, Span, count_message, observe

__all__ = ["Ledger"]

_log = logging.getLogger("clamsmtpd")

_VERDICTS = {name: number for number, name in enumerate(VERDICTS)}
_OUTCOMES = {outcome: OUTCOMES.index(outcome.value) for outcome in Outcome}


class Ledger:
    """Counts in ``row``, one of :class:`~clamsmtpd.metrics.Metrics`; the last accounts stay on ``board``, if any."""

    __slots__ = ("_board", "_row")

    def __init__(self, row: memoryview | None = None, board: Board | None = None) -> None:
        self._row = Metrics().row(0) if row is None else row
        self._board = board

    @staticmethod
    def open(account: Account, now: float) -> Account:
        """Let an account begin ``now``, by the clock of the event loop; return it."""
        account.began = now
        account.since = time.time()
        return account

    def close(self, account: Account) -> None:
        """Take an account that has ended."""
        outcome = account.outcome
        if outcome is None:
            return
        row = self._row
        count_message(row, _VERDICTS[verdict_name(account.verdict) or "none"], _OUTCOMES[outcome])
        for span, seconds in (
            (Span.QUEUE, account.queue_seconds),
            (Span.SCAN, account.scan_seconds),
            (Span.NEXT_HOP, account.next_hop_seconds),
        ):
            if seconds is not None:
                observe(row, span, seconds)
        if self._board is not None:
            self._board.note(json_line(account.as_dict(), ENTRY_MAX).encode())
        if log.wants_accounts():
            _log.info("%s: message ended: %s", account.tag, account)
