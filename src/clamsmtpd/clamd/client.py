"""The scanner: a message in, its verdict out, by the connections to clamd that are kept for it."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Protocol

from clamsmtpd.clamd.connecting import ClamdError, connect
from clamsmtpd.clamd.protocol import (
    FILDES,
    FILDES_SUBJECT,
    STREAM_SUBJECT,
    is_unknown_command,
    path_subject,
    scan_request,
    understand,
)
from clamsmtpd.clamd.session import Answer, ClamdSession, Lost
from clamsmtpd.clamd.stream import Stream
from clamsmtpd.values import Address, Clean, UnixAddress, Unscanned, Verdict

__all__ = ["EARLY_MIN", "KEPT_MAX", "EarlyScan", "Follower", "Scannable", "Scanner"]

_log = logging.getLogger("clamsmtpd")

#: Octets of a message after which clamd gets it while it still comes in, where it is streamed. A small one
#: is sent in one go when it is whole, which costs less.
EARLY_MIN = 65536

#: Connections for streams that are kept. clamd takes no more connections at once than MaxQueue (clamd.conf(5), 100 by
#: default), whether something is asked in them or not, and leaves the others waiting.
KEPT_MAX = 8

# Octets worth waking up for, while more are to come.
_WORTHWHILE = 32768


class Follower(Protocol):
    """Reads a text while it grows, without the dots that SMTP stuffs in."""

    @property
    def left(self) -> int:
        """Octets that are there and have not been read; with stuffed dots there may be some less."""

    @property
    def complete(self) -> bool:
        """Whether no more will come."""

    def read(self) -> bytes:
        """Return the next octets, not too many at once; none if there are none. Raises OSError."""


class Scannable(Protocol):
    """A message that can be scanned: its text without the dots that SMTP stuffs in."""

    def descriptor(self) -> int:
        """Return an open file with the text, at its start; it stays the message's."""

    def pieces(self) -> Iterator[bytes]:
        """Return the text in pieces."""

    def path(self) -> str:
        """Return the name of a file with the text, which clamd may be able to open."""

    def follow(self, on_growth: Callable[[], None]) -> Follower:
        """Return a reader of a text that still grows, from its start; ``on_growth`` is called whenever it has."""


class Scanner:
    """Has messages scanned by the clamd at ``address``.

    Through a unix socket the descriptor is handed over (FILDES), any number of scans at once through one connection;
    over TCP the text is streamed (INSTREAM), through a connection for each scan at a time. Connections are kept
    (IDSESSION). ``time_out``: seconds without progress after which a scan has failed. Waiting for the verdict is one
    step: clamd says nothing while it scans.
    """

    def __init__(self, address: Address, *, time_out: float) -> None:
        self._address = address
        self._time_out = time_out
        self._streams = not isinstance(address, UnixAddress)
        # What this clamd has been found not to know.
        self._has_sessions = True
        self._passes_descriptors = True
        # Sessions in which a request can be made now: for descriptors one at most, which serves all.
        self._free: list[ClamdSession] = []
        self._sessions: set[ClamdSession] = set()

    async def scan(self, message: Scannable, early: EarlyScan | None = None) -> Verdict:
        """Return clamd's verdict; :class:`Unscanned` for whatever goes wrong on clamd's side or on the way.

        ``early`` is what :meth:`begin` has returned for this message. Raises OSError only for a fault of the message's
        own storage.
        """
        try:
            if not self._streams:
                verdict = await self._scan_locally(message)
            else:
                verdict = await self._scan_remotely(message, early)
        except ClamdError as error:
            verdict = Unscanned(str(error))
        if isinstance(verdict, Unscanned):
            return Unscanned(f"clamd at {self._address}: {verdict.reason}")
        return verdict

    def begin(self, message: Scannable) -> EarlyScan | None:
        """Have a message scanned that still comes in, if it becomes large, and if that saves time in the end."""
        return EarlyScan(message, self._stream_early) if self._streams else None

    def close(self) -> None:
        """Close the connections that are kept between scans."""
        for session in list(self._sessions):
            session.close()

    # ---- by descriptor or path ----------------------------------------------------------------

    async def _scan_locally(self, message: Scannable) -> Verdict:
        if self._passes_descriptors:
            answer = await self._ask(FILDES, message.descriptor)
            if isinstance(answer, Lost):
                return Unscanned(answer.reason)
            if not is_unknown_command(answer):
                return understand(answer, FILDES_SUBJECT)
            if self._passes_descriptors:
                self._passes_descriptors = False
                _log.warning("clamd at %s takes no descriptors; it must be able to read TempDirectory", self._address)
        path = message.path()
        return _judge(await self._ask(scan_request(path)), path_subject(*_names(path)))

    async def _ask(self, command: bytes, descriptor: Callable[[], int] | None = None) -> Answer:
        """Return the answer to a request, by the session that is there or else by a connection of its own.

        Raises ClamdError.
        """
        if self._has_sessions:
            if self._free and not self._free[0].usable:
                # It is late with an answer. Those that wait for one go on waiting.
                self._free.clear()
            session = self._free[0] if self._free else await self._open_shared()
            answer = await session.ask(command, descriptor() if descriptor else -1)
            if not self._try_again(answer):
                return answer
        # Without a session, clamd ends nothing for being idle and tells best what is the matter.
        session = await self._open(kept=False)
        try:
            return await session.ask(command, descriptor() if descriptor else -1)
        finally:
            session.close()

    async def _open_shared(self) -> ClamdSession:
        session = await self._open(kept=True)
        if self._free:
            # Somebody else was faster while clamd's queue was full.
            session.close()
        else:
            self._free.append(session)
        return self._free[0]

    # ---- by stream ----------------------------------------------------------------------------

    async def _scan_remotely(self, message: Scannable, early: EarlyScan | None) -> Verdict:
        if early is not None and (task := early.take()) is not None:
            verdict = await task
            if verdict is not None:
                return verdict
        if self._has_sessions:
            answer, whole = await self._stream(lambda stream: stream.scan(message.pieces()), kept=True)
            if not self._try_again(answer):
                return _judge_stream(answer, whole=whole)
        answer, whole = await self._stream(lambda stream: stream.scan(message.pieces()), kept=False)
        return _judge_stream(answer, whole=whole)

    async def _stream_early(self, pieces: AsyncIterator[bytes]) -> Verdict | None:
        """Return the verdict on a text that is sent as it comes; None if that came to nothing."""
        try:
            answer, whole = await self._stream(lambda stream: stream.scan_growing(pieces), kept=self._has_sessions)
        except (ClamdError, OSError):
            # Whatever it was, whoever tries again with the whole message will be told.
            return None
        return None if isinstance(answer, Lost) else _judge_stream(answer, whole=whole)

    async def _stream(
        self, scan: Callable[[Stream], Coroutine[object, object, Answer]], *, kept: bool
    ) -> tuple[Answer, bool]:
        """Return the answer to a stream, and whether all of it had been sent. Raises ClamdError."""
        session = self._free.pop() if self._free and kept else await self._open(kept=kept and self._may_keep())
        stream = Stream(session, self._time_out)
        answered = False
        try:
            answer = await scan(stream)
            answered = True
        finally:
            if answered and stream.whole and session.usable and self._may_keep():
                self._free.append(session)
            else:
                session.close()
        return answer, stream.whole

    # ---- connections --------------------------------------------------------------------------

    async def _open(self, *, kept: bool) -> ClamdSession:
        sock = await connect(self._address, self._time_out)
        session = ClamdSession(sock, time_out=self._time_out, ended=self._on_ended, kept=kept)
        self._sessions.add(session)
        return session

    def _may_keep(self) -> bool:
        """Tell whether a connection may be kept for streams.

        Not as long as there are many: those that clamd has not taken yet would wait for it to be given up.
        """
        return len(self._sessions) <= KEPT_MAX

    def _on_ended(self, session: ClamdSession) -> None:
        self._sessions.discard(session)
        if session in self._free:
            self._free.remove(session)

    def _try_again(self, answer: Answer) -> bool:
        """Tell whether a session was at fault and not the scan: clamd had ended it, or has no sessions."""
        if not isinstance(answer, Lost) or answer.timed_out:
            return False
        if is_unknown_command(answer.strange):
            self._has_sessions = False
        return True


class EarlyScan:
    """The scan of a message that still comes in. It begins when there is enough of it; ``stream`` is who does it."""

    __slots__ = ("_follower", "_growth", "_stream", "_taken", "_task")

    def __init__(
        self, message: Scannable, stream: Callable[[AsyncIterator[bytes]], Coroutine[object, object, Verdict | None]]
    ) -> None:
        self._stream = stream
        self._task: asyncio.Task[Verdict | None] | None = None
        self._growth: asyncio.Future[None] | None = None
        self._taken = False
        self._follower = message.follow(self._on_growth)

    def take(self) -> asyncio.Task[Verdict | None] | None:
        """Return what becomes the verdict on the message, which is complete; None if nothing has begun."""
        self._taken = True
        self._on_growth()
        return self._task

    def cancel(self) -> None:
        """Give it up: there is no message any more."""
        self._taken = True
        if self._task is not None:
            self._task.cancel()

    def _on_growth(self) -> None:
        if self._growth is not None:
            if not self._growth.done() and (self._follower.complete or self._follower.left >= _WORTHWHILE):
                self._growth.set_result(None)
        elif self._task is None and not self._taken and self._follower.left >= EARLY_MIN:
            self._task = asyncio.get_running_loop().create_task(self._stream(self._pieces()))

    async def _pieces(self) -> AsyncIterator[bytes]:
        follower = self._follower
        while True:
            complete = follower.complete
            if piece := follower.read():
                yield piece
                # Others wait too.
                await asyncio.sleep(0)
            elif complete:
                return
            else:
                self._growth = asyncio.get_running_loop().create_future()
                await self._growth
                self._growth = None


def _names(path: str) -> tuple[str, str]:
    # Where a directory is a symbolic link, some versions name the file by where the link leads.
    return path, os.path.realpath(path)


def _judge(answer: Answer, subject: re.Pattern[bytes]) -> Verdict:
    return Unscanned(answer.reason) if isinstance(answer, Lost) else understand(answer, subject)


def _judge_stream(answer: Answer, *, whole: bool) -> Verdict:
    verdict = _judge(answer, STREAM_SUBJECT)
    if not whole and isinstance(verdict, Clean):
        return Unscanned("it called the message clean before it had all of it")
    return verdict
