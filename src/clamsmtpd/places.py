"""MaxConnections: one exact limit, however many workers there are."""

from __future__ import annotations

import fcntl

from clamsmtpd.metrics import SERVING, SESSIONS, Metrics

__all__ = ["Places"]

#: A worker may have so many sessions more than another, and one more for each eight that the other has. To even out
#: less would cost more than it gains: where ten clients come and go with a message each, each would wait for a worker
#: that is about to be as busy as this one.
_ENOUGH = 4
_SLACK = 8


class Places:
    """The places for sessions, ``limit`` of them for all workers together, as ``worker`` sees and takes them.

    ``lock`` is a descriptor that all workers have inherited; None for one worker, who needs none. To take a place is to
    count it in one's own row while nobody else can take one. To give it back needs no lock: whoever reads the old
    number at that moment refuses a client too many, never takes one.

    The lock is a record lock of fcntl(2), which belongs to a process: a worker that dies with it gives it back, and one
    that dies with places has its row cleared by the supervisor before another gets that row.
    """

    __slots__ = ("_limit", "_lock", "_metrics", "_row")

    def __init__(self, limit: int, metrics: Metrics, worker: int, lock: int | None) -> None:
        self._limit = limit
        self._metrics = metrics
        self._row = metrics.row(worker)
        self._lock = lock

    def take(self) -> bool:
        """Take a place if there is one left; tell whether there was."""
        if self._lock is None:
            return self._take()
        # For some microseconds: nobody waits for anything while holding it.
        fcntl.lockf(self._lock, fcntl.LOCK_EX)
        try:
            return self._take()
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)

    def _take(self) -> bool:
        if self._metrics.total(SESSIONS) >= self._limit:
            return False
        self._row[SESSIONS] += 1
        return True

    def give_back(self) -> None:
        """Give back a place that was taken."""
        self._row[SESSIONS] -= 1

    def open(self) -> None:
        """Say that this worker accepts clients."""
        self._row[SERVING] = 1

    def close(self) -> None:
        """Say that this worker accepts no more clients."""
        self._row[SERVING] = 0

    def another_has_fewer(self) -> bool:
        """Whether another worker that accepts clients has clearly fewer sessions than this one."""
        fewest = self._metrics.fewest_sessions()
        return self._row[SESSIONS] > fewest + max(_ENOUGH, fewest // _SLACK)
