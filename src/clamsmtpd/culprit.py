"""The search for the part of an infected message that has the virus, when the client has long had its reply.

clamd says of a message what it found, not where. So the parts are scanned singly, beside the mail and after it: few
searches at once, none while the scanners have enough to do, and each with an end. Without one the virus is as dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from time import thread_time

from clamsmtpd.account import Tag
from clamsmtpd.clamd.pool import Pool
from clamsmtpd.log import describe, escape
from clamsmtpd.parts import Part, Parts, Piece
from clamsmtpd.spool import Share, Spool
from clamsmtpd.values import Infected, Unscanned

__all__ = ["LIMIT", "Culprit", "Culprits", "Room"]

_log = logging.getLogger("clamsmtpd")

#: Seconds from the verdict to the end of a search, whatever it has come to: a hook may wait for it.
LIMIT = 20.0

#: Seconds of a processor that a search may take to take a message apart: more than an honest message ever takes.
WORK_MAX = 2.0

#: Searches of a worker at once. Each has at most one scan under way.
AT_ONCE = 2

#: Messages that are held for searches, those that wait among them, and the octets of these. An outbreak brings more;
#: of those, nobody learns where the virus is.
HELD_MAX = 16
HELD_OCTETS_MAX = 128 * 1024 * 1024

#: Seconds until the scanners would have done with what they have, beyond which a search waits: mail goes first.
BUSY = 1.0

# Seconds between two looks at that.
_LOOK = 0.25

# Octets of a message that are taken apart in one go, while all sessions wait.
_PIECE = 4096

# After so many seconds of that a search pauses, for some times as long: an outbreak must leave most to the mail.
_STINT = 0.005
_REST = 4


@dataclass(frozen=True, slots=True)
class Culprit:
    """The part that has the virus; ``virus`` is what was found in it, ``size`` and SHA-256 are those of its file."""

    part: Part
    virus: str
    size: int
    sha256: str


class _GivenUpError(Exception):
    """The search ends without a result; ``str()`` says why."""


class Room:
    """What the searches of all scanners may take together."""

    __slots__ = ("_held", "_octets", "turns")

    def __init__(self) -> None:
        self.turns = asyncio.Semaphore(AT_ONCE)
        self._held = 0
        self._octets = 0

    def take(self, octets: int) -> bool:
        """Take the room that a message needs, to be given back with :meth:`give_back`; tell whether there is some."""
        if self._held >= HELD_MAX or self._octets + octets > HELD_OCTETS_MAX:
            return False
        self._held += 1
        self._octets += octets
        return True

    def give_back(self, octets: int) -> None:
        """Give back what was taken."""
        self._held -= 1
        self._octets -= octets


class Culprits:
    """Searches with the scanners of ``pool``; parts that are large are written to ``temp_directory``."""

    def __init__(self, pool: Pool, temp_directory: str, room: Room) -> None:
        self._pool = pool
        self._directory = temp_directory
        self._room = room
        self._searches: set[asyncio.Task[Culprit | None]] = set()

    def search(self, message: Spool, virus: str, tag: Tag, then: Callable[[Culprit | None], None]) -> None:
        """Begin to look for the part of a whole message that has ``virus``; log what comes of it, with ``tag``.

        Returns at once, and the message may be closed. In any case ``then`` is called once: with None if there is no
        room, no time, no answer, or no part that is infected by itself.
        """
        size = message.size
        if not self._room.take(size):
            _not_found(tag, virus, "too many messages wait for that")
            then(None)
            return
        try:
            share = message.share()
        except OSError as error:
            self._room.give_back(size)
            _not_found(tag, virus, describe(error))
            then(None)
            return
        task = asyncio.get_running_loop().create_task(self._search(share, virus, tag))
        self._searches.add(task)

        # Not at the end of the task: one that is cancelled at once never begins.
        def on_done(task: asyncio.Task[Culprit | None]) -> None:
            self._searches.discard(task)
            share.close()
            self._room.give_back(size)
            if task.cancelled():
                _not_found(tag, virus, "the daemon stops, or has other scanners")
                then(None)
                return
            error = task.exception()
            if error is not None:
                # It is ours, or the standard library's, and must not cost the hook.
                task.get_loop().call_exception_handler({"message": "search in a message", "exception": error})
            then(None if error is not None else task.result())

        task.add_done_callback(on_done)

    async def end(self, limit: float) -> None:
        """Wait up to ``limit`` seconds for the searches; then give up those that are left."""
        if self._searches:
            await asyncio.wait(tuple(self._searches), timeout=limit)
        left = tuple(self._searches)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _search(self, share: Share, virus: str, tag: Tag) -> Culprit | None:
        try:
            async with asyncio.timeout(LIMIT), self._room.turns:
                culprit = await self._find(share, virus, tag)
        except TimeoutError:
            _not_found(tag, virus, f"it took more than {LIMIT:g} s")
        except OSError as error:
            _not_found(tag, virus, describe(error))
        except _GivenUpError as error:
            _not_found(tag, virus, str(error))
        else:
            _tell(tag, virus, culprit)
            return culprit
        return None

    async def _find(self, share: Share, virus: str, tag: Tag) -> Culprit | None:
        """Return the first part in which that virus is found, or else the first in which any is. Raises OSError."""
        suspect: Culprit | None = None
        file: Spool | None = None
        digest = hashlib.sha256()
        try:
            async with contextlib.aclosing(_pieces(share)) as pieces:
                async for piece in pieces:
                    if file is None:
                        file = Spool(self._directory, f"clamsmtpd-{tag}")
                        digest = hashlib.sha256()
                    file.append(piece.octets)
                    digest.update(piece.octets)
                    if not piece.last:
                        continue
                    file.seal(stuffed=False)
                    if found := await self._scan(file):
                        culprit = Culprit(piece.part, found, file.size, digest.hexdigest())
                        if found == virus:
                            return culprit
                        suspect = suspect or culprit
                    file.close()
                    file = None
        finally:
            if file is not None:
                file.close()
        return suspect

    async def _scan(self, file: Spool) -> str:
        """Return the name of the virus in a part, empty if there is none that a scanner sees."""
        if not file.size:
            return ""
        await self._mail_first()
        verdict = await self._pool.scan(file)
        if isinstance(verdict, Unscanned):
            raise _GivenUpError(verdict.reason)
        # One that is too large for the scanner is none in which it has found something.
        return verdict.name if isinstance(verdict, Infected) else ""

    async def _mail_first(self) -> None:
        while self._pool.wait > BUSY:  # noqa: ASYNC110 - nobody tells when the scanners have less to do
            await asyncio.sleep(_LOOK)


async def _pieces(share: Share) -> AsyncGenerator[Piece, None]:
    """Yield the pieces of all parts. Others get their turn, and there is an end to what they have to put up with."""
    parts = Parts()
    worked = rested = 0.0
    for data in share.pieces():
        for start in range(0, len(data), _PIECE):
            # The clock of the loop stands still as long as one turn lasts.
            begin = thread_time()
            found = list(parts.feed(data[start : start + _PIECE]))
            worked += thread_time() - begin
            for piece in found:
                yield piece
            if worked > WORK_MAX:
                raise _GivenUpError("the message is made to be hard to take apart")
            if parts.exhausted:
                raise _GivenUpError("the message is too large, or has too many parts")
            stint = worked - rested
            if stint < _STINT:
                await asyncio.sleep(0)
            else:
                rested = worked
                await asyncio.sleep(_REST * stint)
    for piece in list(parts.finish()):
        yield piece


def _tell(tag: Tag, virus: str, culprit: Culprit | None) -> None:
    if culprit is None:
        _log.info("%s: virus %s is in no part by itself, but in the message as a whole", tag, escape(virus))
        return
    part = culprit.part
    found, kind, size, sha256 = escape(culprit.virus), part.media_type, culprit.size, culprit.sha256
    if part.name:
        # No name can pretend to end before it does.
        name = escape(part.name).replace('"', "\\x22")
        _log.info(
            '%s: virus %s is in attachment "%s" (%s, %d octets, SHA-256 %s)', tag, found, name, kind, size, sha256
        )
    else:
        _log.info("%s: virus %s is in part %d (%s, %d octets, SHA-256 %s)", tag, found, part.number, kind, size, sha256)


def _not_found(tag: Tag, virus: str, reason: str) -> None:
    _log.info("%s: where virus %s is was not found out: %s", tag, escape(virus), escape(reason))
