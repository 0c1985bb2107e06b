"""What the workers of one daemon have in common: numbers, places, and the register of connections."""

from __future__ import annotations

import mmap
import os
import time
from dataclasses import dataclass

from clamsmtpd.board import BOARD_SIZE, Board
from clamsmtpd.circles import Register, SharedRegister, region_size
from clamsmtpd.metrics import ROW_SIZE, Metrics
from clamsmtpd.places import Places
from clamsmtpd.verdicts import LATEST_SIZE, REGION_SIZE, Verdicts

__all__ = ["Commons", "Share"]


@dataclass(frozen=True, slots=True)
class Share:
    """What one worker has of it: the one of number ``worker`` among ``workers``.

    ``row`` is its own of ``metrics``, the numbers of all; ``outgoing`` knows the connections of all to next hops,
    ``verdicts`` what any of them has to remember of messages. ``board`` is what they tell each other for others to
    see, None if nobody can. ``since`` is when the daemon started, in seconds since 1970.
    """

    worker: int
    workers: int
    metrics: Metrics
    row: memoryview
    places: Places
    outgoing: Register
    verdicts: Verdicts
    board: Board | None = None
    since: float = 0.0


class Commons:
    """Made before the ``workers`` are forked: they inherit it. One alone has everything for itself, without a lock.

    ``seen``: somebody may look at them from outside. Nothing in it has a name in the file system, and all of it is gone
    with the last process.
    """

    def __init__(self, workers: int, max_connections: int, *, seen: bool = False) -> None:
        self.workers = workers
        self._since = time.time()
        self._board_memory: mmap.mmap | None = mmap.mmap(-1, BOARD_SIZE * workers) if seen else None
        self._max_connections = max_connections
        self._lock: int | None = None
        self._memory: mmap.mmap | None = None
        if workers == 1:
            self.metrics = Metrics()
            self._verdicts_memory: mmap.mmap | bytearray = bytearray(LATEST_SIZE + REGION_SIZE)
            self._verdicts_start = 0
            return
        # Any of them may come to have all connections.
        self._region_size = region_size(max_connections)
        self._start = ROW_SIZE * workers
        self._verdicts_start = self._start + self._region_size * workers
        self._memory = mmap.mmap(-1, self._verdicts_start + LATEST_SIZE + REGION_SIZE * workers)
        self._verdicts_memory = self._memory
        self.metrics = Metrics(memoryview(self._memory)[: self._start])
        # A pipe that nothing goes through: record locks work on any file, and this one is to be had everywhere. A file
        # would need a directory, and a memfd a system that allows one.
        receive, self._lock = os.pipe()
        os.close(receive)

    def share(self, worker: int) -> Share:
        """Return what one worker has."""
        outgoing: Register = set()
        if self._memory is not None:
            outgoing = SharedRegister(self._memory, self._start, self._max_connections, self.workers, worker)
        places = Places(self._max_connections, self.metrics, worker, self._lock)
        verdicts = Verdicts(self._verdicts_memory, self._verdicts_start, self.workers, worker)
        return Share(
            worker,
            self.workers,
            self.metrics,
            self.metrics.row(worker),
            places,
            outgoing,
            verdicts,
            self._board(worker),
            self._since,
        )

    def _board(self, worker: int) -> Board | None:
        memory = self._board_memory
        return None if memory is None else Board(memoryview(memory), self.workers, worker)

    def forget(self, worker: int) -> None:
        """Give back what a worker had that has died: its places, and its connections. Its counters stay."""
        self.metrics.forget_now(worker)
        if (board := self._board(worker)) is not None:
            board.forget(worker)
        if self._memory is not None:
            start = self._start + worker * self._region_size
            self._memory[start : start + self._region_size] = bytes(self._region_size)
            # Its verdicts as well: of its scans, nobody would tell the end.
            start = self._verdicts_start + LATEST_SIZE + worker * REGION_SIZE
            self._memory[start : start + REGION_SIZE] = bytes(REGION_SIZE)
