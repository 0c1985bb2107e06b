"""What is counted: one table of names, a row of numbers for each worker, and their sums."""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "BEAT",
    "CLEAN",
    "CONNECTIONS",
    "INFECTED",
    "METRICS",
    "OCTETS",
    "OVERSIZE",
    "PASSED",
    "READINESS",
    "REFUSED",
    "ROW_SIZE",
    "SCANNERS",
    "SERVING",
    "SESSIONS",
    "SPARED",
    "TURNED_AWAY",
    "UNSCANNED",
    "Metric",
    "Metrics",
]


class Metric(NamedTuple):
    """A number that is kept. A ``gauge`` tells what is now; all others only grow as long as the daemon runs."""

    name: str
    help: str
    gauge: bool = False


METRICS: tuple[Metric, ...] = (
    Metric("connections", "connections that were given a session"),
    Metric("refused", "connections that were told 421, as MaxConnections was reached"),
    Metric("clean", "messages in which clamd found nothing"),
    Metric("infected", "messages with a virus"),
    Metric("unscanned", "messages without a verdict, as the scanners failed"),
    Metric("oversize", "messages without a verdict, as they are larger than what clamd looks at"),
    Metric("passed", "messages without a verdict that were delivered, as the settings say"),
    Metric("spared", "messages that had their verdict from the scan of another with the same octets"),
    Metric("turned_away", "messages that were refused before their text, as there was no hope of a verdict in time"),
    Metric("octets", "octets of all messages that came in whole"),
    Metric("sessions", "connections that are open now", gauge=True),
    Metric("workers", "processes that accept connections now", gauge=True),
    Metric("scanners", "scanners that can be used now, as each worker sees it", gauge=True),
)

# Indices into a row: to count costs one addition at a known place, and no name is looked up for it.
(
    CONNECTIONS,
    REFUSED,
    CLEAN,
    INFECTED,
    UNSCANNED,
    OVERSIZE,
    PASSED,
    SPARED,
    TURNED_AWAY,
    OCTETS,
    SESSIONS,
    SERVING,
    SCANNERS,
) = range(len(METRICS))

#: Two more cells of a row, which only the supervisor reads: one that changes as long as the worker's event loop turns,
#: and how far the worker is with finding out whether all that mail needs can be used.
BEAT, READINESS = range(len(METRICS), len(METRICS) + 2)

_CELLS = len(METRICS) + 2

# Octets that a processor takes at once. What two workers write is never in the same of them.
_CACHE_LINE = 64

#: Octets of a row: eight for each cell, and what is left of the last cache line.
ROW_SIZE = -(-8 * _CELLS // _CACHE_LINE) * _CACHE_LINE


class Metrics:
    """The numbers of all workers, in ``memory`` of ``ROW_SIZE`` octets for each; its own, for one worker, without.

    Only the worker that a row is for writes to it, so that nothing needs a lock. Whoever has the memory may read.
    (Where an addition of 64 bits is no single store, what can be read in between is a number too low or too high for
    a moment; sessions, which a decision depends on, never need the upper half.)
    """

    __slots__ = ("_rows",)

    def __init__(self, memory: memoryview | None = None) -> None:
        cells = (memoryview(bytearray(ROW_SIZE)) if memory is None else memory).cast("q")
        length = ROW_SIZE // 8
        self._rows = [cells[start : start + _CELLS] for start in range(0, len(cells), length)]

    def row(self, worker: int) -> memoryview:
        """Return the row of one worker: numbers, to be counted up in place, and the two cells behind."""
        return self._rows[worker]

    def total(self, metric: int) -> int:
        """Return the sum of one number over all workers."""
        return sum(row[metric] for row in self._rows)

    def fewest_sessions(self) -> int:
        """Return how many sessions the worker has that has the fewest, of those that accept connections."""
        return min((row[SESSIONS] for row in self._rows if row[SERVING]), default=0)

    def forget_now(self, worker: int) -> None:
        """Set what a worker that has died said of the present to zero; what it has counted stays."""
        row = self._rows[worker]
        for index, metric in enumerate(METRICS):
            if metric.gauge:
                row[index] = 0
        row[BEAT] = row[READINESS] = 0

    def __str__(self) -> str:
        return ", ".join(f"{metric.name}={self.total(index)}" for index, metric in enumerate(METRICS))
