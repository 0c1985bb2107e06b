"""The daemon's hand in the index: a thread of its own, so that no mail waits for a database."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from clamsmtpd.quarantine.expiry import expire
from clamsmtpd.quarantine.index import PREFIX, Culprit, Entry, Index, digest
from clamsmtpd.values import Keep

__all__ = ["Keeper"]

#: What may wait for the thread; beyond that an entry is left to healing.
QUEUE_MAX = 1000

#: Seconds between two looks at what has been kept long enough.
EXPIRY_INTERVAL = 3600.0

#: Seconds after which a file without an entry has been left without one.
SETTLED = 60.0

#: Seconds that entries may still take at the end.
CLOSE_LIMIT = 5.0

_log = logging.getLogger("clamsmtpd")

_Job = Callable[[Index], None]


class Keeper:
    """Writes down what the daemon puts into quarantine in ``temp_directory``.

    With ``keep``, what has been there long enough is removed, at once and each hour: let one worker do that.
    Nothing here waits or raises; what fails is told once, and costs entries, not mail.
    """

    def __init__(self, temp_directory: str, keep: Keep | None = None, *, tends: bool = False) -> None:
        self._temp = temp_directory
        self._keep = keep
        self._tends = tends
        self._jobs: queue.Queue[_Job | None] = queue.Queue(QUEUE_MAX)
        self._told = False
        # It begins with the first entry, or with the first look: a worker that finds no virus has no thread.
        self._thread: threading.Thread | None = None

    def suits(self, other: Keeper) -> bool:
        """Whether the other one would do the same."""
        return (self._temp, self._keep, self._tends) == (other._temp, other._keep, other._tends)

    def start(self) -> None:
        """Begin to remove what has been kept long enough, where that is for this one to do."""
        if self._tends:
            self._begin()

    def record(self, path: str, entry: Entry) -> None:
        """Write down the file at ``path``, of which ``entry`` says all but id, size and SHA-256."""
        name = os.path.basename(path)

        def job(index: Index) -> None:
            size, sha256 = digest(self._temp, name)
            index.add(replace(entry, id=name.removeprefix(PREFIX), size=size, sha256=sha256))

        self._put(job)

    def note_culprit(self, path: str, name: str, sha256: str) -> None:
        """Write down in which part of the message at ``path`` the virus is; after :meth:`record`."""
        identifier = os.path.basename(path).removeprefix(PREFIX)
        self._put(lambda index: index.note_culprit(identifier, Culprit(name, sha256)))

    def retire(self) -> None:
        """Take no more; what waits is still written."""
        if self._thread is not None:
            with contextlib.suppress(queue.Full):
                self._jobs.put_nowait(None)

    def join(self) -> None:
        """Wait, for some seconds at most, until all is written. After :meth:`retire`."""
        if self._thread is not None:
            self._thread.join(CLOSE_LIMIT)

    def _put(self, job: _Job) -> None:
        self._begin()
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            self._tell("it does not keep up; entries are left out")

    def _begin(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="quarantine", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                # The system has no room for another one (ulimit -u, TasksMax). The next entry tries again.
                self._tell(str(error))
                return
            self._thread = thread

    def _run(self) -> None:
        index: Index | None = None
        due = time.monotonic() if self._tends else float("inf")
        while True:
            try:
                job = self._jobs.get(timeout=max(0.0, due - time.monotonic()) if self._tends else None)
            except queue.Empty:
                job = self._tend
                due = time.monotonic() + EXPIRY_INTERVAL
            if job is None:
                break
            try:
                index = index or Index(self._temp)
                job(index)
            except Exception as error:  # noqa: BLE001 - whatever it is, the next entry is another one
                self._tell(str(error))
                if index is not None:
                    index.close()
                    index = None
        if index is not None:
            index.close()

    def _tend(self, index: Index) -> None:
        now = time.time()
        index.heal(now, settled=SETTLED)
        if self._keep is not None:
            for entry in expire(index, self._temp, self._keep, now):
                _log.info("removed from quarantine, as QuarantineKeep says: %s", entry.name)

    def _tell(self, trouble: str) -> None:
        if not self._told:
            self._told = True
            _log.warning("the quarantine's files are kept, but not all of them are written down: %s", trouble)
