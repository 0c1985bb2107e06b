"""What is counted: one table of names, a row of numbers for each worker, and their sums."""

from __future__ import annotations

import enum
from bisect import bisect_left
from typing import NamedTuple

__all__ = [
    "BEAT",
    "BOUNDS",
    "CLEAN",
    "CONNECTIONS",
    "FAILURES",
    "HISTOGRAMS",
    "INFECTED",
    "METRICS",
    "OCTETS",
    "OUTCOMES",
    "OVERSIZE",
    "PASSED",
    "READINESS",
    "REFUSED",
    "ROW_SIZE",
    "SCANNERS",
    "SCANNER_FAULTS",
    "SERVING",
    "SESSIONS",
    "SPARED",
    "TURNED_AWAY",
    "UNSCANNED",
    "VERDICTS",
    "Failure",
    "Histogram",
    "Metric",
    "Metrics",
    "Span",
    "count_failure",
    "count_message",
    "observe",
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

#: The two names that a message is counted by at its end: its verdict (``none``: it was refused unread), and what its
#: client was told (:class:`clamsmtpd.account.Outcome`).
VERDICTS = ("clean", "infected", "unscanned", "oversize", "none")
OUTCOMES = ("delivered", "refused", "dropped", "bounced", "deferred", "abandoned")

#: Upper bounds, in seconds, of the classes into which times are sorted; one more class has no bound.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0)


class Span(enum.IntEnum):
    """A time of a message that is sorted into classes."""

    QUEUE = 0
    SCAN = 1
    NEXT_HOP = 2


#: What each of them is.
HISTOGRAMS: tuple[tuple[Span, str], ...] = (
    (Span.QUEUE, "how long a whole message waited for a scanner"),
    (Span.SCAN, "how long the scanner had a message that gave the verdict"),
    (Span.NEXT_HOP, "how long the next hop took, from the decision to its answer to the whole message"),
)


class Failure(enum.IntEnum):
    """Something that went wrong."""

    SCANNER_UNREACHABLE = 0
    SCANNER_LOST = 1
    SCANNER_SILENT = 2
    SCANNER_STRANGE = 3
    SCANNER_OURS = 4
    NEXT_HOP_UNREACHABLE = 5
    NEXT_HOP_LOST = 6
    STORAGE = 7
    QUARANTINE = 8
    TIME_OUT = 9
    INTERNAL = 10


#: What each kind of failure is. The name that is shown is that of the member, in lower case.
FAILURES: tuple[tuple[Failure, str], ...] = (
    (Failure.SCANNER_UNREACHABLE, "there was no connection to a scanner"),
    (Failure.SCANNER_LOST, "the connection broke while a scanner had a message"),
    (Failure.SCANNER_SILENT, "a scanner did not answer in its time"),
    (Failure.SCANNER_STRANGE, "a scanner answered, but nothing that is a verdict"),
    (Failure.SCANNER_OURS, "there was no descriptor or memory to give a message to a scanner"),
    (Failure.NEXT_HOP_UNREACHABLE, "there was no connection to the next hop"),
    (Failure.NEXT_HOP_LOST, "the next hop ended a connection before its end"),
    (Failure.STORAGE, "a message could not be stored or read again"),
    (Failure.QUARANTINE, "an infected message could not be kept"),
    (Failure.TIME_OUT, "a client or the next hop did not go on in its time"),
    (Failure.INTERNAL, "an error of the program itself"),
)

_MESSAGES_START = len(METRICS)
_HISTOGRAM_CELLS = len(BOUNDS) + 2
_HISTOGRAMS_START = _MESSAGES_START + len(VERDICTS) * len(OUTCOMES)
_FAILURES_START = _HISTOGRAMS_START + len(Span) * _HISTOGRAM_CELLS
_COUNTED = _FAILURES_START + len(Failure)

#: Faults of a scanner (:class:`clamsmtpd.clamd.outcome.Fault`), by their names, as cells of a row.
SCANNER_FAULTS = {
    "unreachable": _FAILURES_START + Failure.SCANNER_UNREACHABLE,
    "lost": _FAILURES_START + Failure.SCANNER_LOST,
    "silent": _FAILURES_START + Failure.SCANNER_SILENT,
    "strange": _FAILURES_START + Failure.SCANNER_STRANGE,
    "ours": _FAILURES_START + Failure.SCANNER_OURS,
}

#: Two more cells of a row, which only the supervisor reads: one that changes as long as the worker's event loop turns,
#: and how far the worker is with finding out whether all that mail needs can be used.
BEAT, READINESS = range(_COUNTED, _COUNTED + 2)

_CELLS = _COUNTED + 2

_MICROSECONDS = 1_000_000

# Octets that a processor takes at once. What two workers write is never in the same of them.
_CACHE_LINE = 64

#: Octets of a row: eight for each cell, and what is left of the last cache line.
ROW_SIZE = -(-8 * _CELLS // _CACHE_LINE) * _CACHE_LINE


def count_message(row: memoryview, verdict: int, outcome: int) -> None:
    """Count a message that has ended, by the places of its two names in ``VERDICTS`` and ``OUTCOMES``."""
    row[_MESSAGES_START + verdict * len(OUTCOMES) + outcome] += 1


def count_failure(row: memoryview, failure: Failure) -> None:
    """Count something that went wrong."""
    row[_FAILURES_START + failure] += 1


def observe(row: memoryview, span: Span, seconds: float) -> None:
    """Sort a time into its class."""
    start = _HISTOGRAMS_START + span * _HISTOGRAM_CELLS
    row[start + bisect_left(BOUNDS, seconds)] += 1
    row[start + _HISTOGRAM_CELLS - 1] += int(seconds * _MICROSECONDS)


class Histogram(NamedTuple):
    """Times, sorted: how many are in each class of ``BOUNDS`` and above the last, and their sum in seconds."""

    counts: tuple[int, ...]
    sum: float


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

    def messages(self, verdict: int, outcome: int) -> int:
        """Return how many messages have ended so, by places in ``VERDICTS`` and ``OUTCOMES``."""
        return self.total(_MESSAGES_START + verdict * len(OUTCOMES) + outcome)

    def failures(self, failure: Failure) -> int:
        """Return how often that went wrong."""
        return self.total(_FAILURES_START + failure)

    def histogram(self, span: Span) -> Histogram:
        """Return the times of one kind."""
        start = _HISTOGRAMS_START + span * _HISTOGRAM_CELLS
        *counts, microseconds = (self.total(start + cell) for cell in range(_HISTOGRAM_CELLS))
        return Histogram(tuple(counts), microseconds / _MICROSECONDS)

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
        return ", ".join(f"{name}={total}" for name, total in self.as_fields().items())

    def as_fields(self) -> dict[str, int]:
        """Return the sums by their names."""
        return {metric.name: self.total(index) for index, metric in enumerate(METRICS)}
