"""The scans under way: the same octets are never scanned twice at once, and no verdict comes in vain.

A scanner that is slower than clients are patient gets each message again and again, from each client anew, and becomes
slower still. Here the second asks for the verdict of the first, and whoever comes back finds the one that was made
after it had left.
"""

from __future__ import annotations

import asyncio
import hashlib

from clamsmtpd.clamd.client import EarlyScan
from clamsmtpd.clamd.course import Course
from clamsmtpd.clamd.pool import Pool
from clamsmtpd.metrics import SPARED
from clamsmtpd.spool import Spool
from clamsmtpd.values import Clean, Infected, Verdict
from clamsmtpd.verdicts import Mark, Verdicts

__all__ = ["PUBLIC_AFTER", "Scans"]

#: Seconds after which other workers hear of a scan. Most have long ended by then: to tell of each would cost a digest.
PUBLIC_AFTER = 1.0

# Seconds between two looks at whether another worker has its verdict.
_LOOK = 0.25


class _Running:
    """A scan of ``message`` under way in this worker."""

    __slots__ = ("entry", "mark", "message", "over", "since", "telling", "version", "waiting")

    def __init__(self, message: Spool, since: float, version: str) -> None:
        self.message = message
        self.since = since
        #: The signatures that the verdict will rest on.
        self.version = version
        #: Those who wait for its verdict; None comes if there will be none.
        self.waiting: list[asyncio.Future[Verdict | None]] = []
        #: Whether other workers are being told; then, what it is known by, and its entry among the verdicts of all.
        self.telling = False
        self.mark: Mark | None = None
        self.entry: int | None = None
        #: Then the message is no longer there to be read.
        self.over = False


class Scans:
    """Has messages scanned by the ``pool``. What others may want to know goes to ``verdicts``; ``row`` counts."""

    def __init__(self, pool: Pool, verdicts: Verdicts, row: memoryview) -> None:
        self._pool = pool
        self._verdicts = verdicts
        self._row = row
        # By the length of the text: most are alone with theirs, and need not be compared with anything.
        self._running: dict[int, list[_Running]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._telling: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    def begin(self, message: Spool) -> EarlyScan | None:
        """Have a message scanned that still comes in, where that saves time, for all that may be like it."""
        return self._pool.begin(message)

    def expect(self, octets: int | None) -> None:
        """Learn how large a message the next hop takes."""
        self._pool.expect(octets)

    def admits(self) -> bool:
        """Tell whether a message that comes now can be judged in time."""
        return self._pool.admits()

    async def scan(self, message: Spool, early: EarlyScan | None = None, course: Course | None = None) -> Verdict:
        """Return the verdict on a whole message; ``early`` is what :meth:`begin` has returned for it.

        What its way was like goes into ``course``.

        If the message has been abandoned meanwhile, the verdict is kept for when it comes again. Raises OSError only
        for a fault of the message's own storage.
        """
        verdict, version = await self._judge(message, early, Course() if course is None else course)
        if message.abandoned and version and version == self._pool.version and isinstance(verdict, Clean | Infected):
            self._verdicts.keep((message.size, await _digest(message), version), verdict)
        return verdict

    async def _judge(self, message: Spool, early: EarlyScan | None, course: Course) -> tuple[Verdict, str]:
        """Return the verdict, and the signatures that it rests on; none where it need not be kept."""
        began = self._loop.time()
        size = message.size
        if self._verdicts.may_know(size):
            known = await self._recall(message)
            if known is not None:
                return self._spare(known, early, course), ""
        while (others := self._running.get(size)) is not None:
            same = next((running for running in others if running.message.same_text(message)), None)
            if same is None:
                break
            waiter: asyncio.Future[Verdict | None] = self._loop.create_future()
            same.waiting.append(waiter)
            verdict = await waiter
            if verdict is not None:
                return self._spare(verdict, early, course), same.version
        return await self._scan(message, early, began, course)

    def _spare(self, verdict: Verdict, early: EarlyScan | None, course: Course) -> Verdict:
        self._row[SPARED] += 1
        course.spared = True
        if early is not None:
            early.cancel()
        return verdict

    async def _scan(self, message: Spool, early: EarlyScan | None, began: float, course: Course) -> tuple[Verdict, str]:
        running = _Running(message, self._loop.time(), self._pool.version)
        size = message.size
        self._running.setdefault(size, []).append(running)
        if self._timer is None:
            self._timer = self._loop.call_later(PUBLIC_AFTER, self._on_timer)
        verdict: Verdict | None = None
        try:
            # Its client does not wait longer because we have waited for another scan.
            verdict = await self._pool.scan(message, early, since=began, course=course)
        finally:
            running.over = True
            same_size = self._running[size]
            same_size.remove(running)
            if not same_size:
                del self._running[size]
            for waiter in running.waiting:
                if not waiter.done():
                    waiter.set_result(verdict)
            if running.entry is not None and running.mark is not None:
                current = running.version == self._pool.version
                self._verdicts.keep(running.mark, verdict if current else None, running.entry)
        return verdict, running.version

    # ---- other workers, and other times -------------------------------------------------------

    async def _recall(self, message: Spool) -> Verdict | None:
        """Return the verdict on the same text, from whoever has it, or as soon as another worker has."""
        version = self._pool.version
        if not version:
            return None
        mark = message.size, await _digest(message), version
        while True:
            verdict, under_way = self._verdicts.find(mark)
            if verdict is not None or not under_way or self._is_ours(mark):
                return verdict
            await asyncio.sleep(_LOOK)

    def _is_ours(self, mark: Mark) -> bool:
        return any(running.mark == mark for running in self._running.get(mark[0], ()))

    def _on_timer(self) -> None:
        """Tell the other workers of scans that take long."""
        self._timer = None
        version = self._pool.version
        since = self._loop.time() - PUBLIC_AFTER
        for same_size in self._running.values():
            for running in same_size:
                if version and running.version == version and not running.telling and running.since <= since:
                    running.telling = True
                    telling = self._loop.create_task(self._tell(running))
                    self._telling.add(telling)
                    telling.add_done_callback(self._telling.discard)
        if self._running:
            self._timer = self._loop.call_later(PUBLIC_AFTER, self._on_timer)

    async def _tell(self, running: _Running) -> None:
        try:
            digest = await _digest(running.message, running)
        except OSError:
            # Whoever delivers it will hear of that.
            return
        if not running.over:
            running.mark = running.message.size, digest, running.version
            running.entry = self._verdicts.announce(running.mark)


async def _digest(message: Spool, running: _Running | None = None) -> bytes:
    """Return the SHA-256 of a text; of a part of it, if the scan that is ``running`` is over meanwhile."""
    digest = hashlib.sha256()
    for piece in message.stored_pieces():
        digest.update(piece)
        # Others wait too.
        await asyncio.sleep(0)
        if running is not None and running.over:
            break
    return digest.digest()
