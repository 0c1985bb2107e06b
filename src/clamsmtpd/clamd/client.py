"""The scanner: a message in, its verdict out, by the connections to clamd that are kept for it."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Protocol

from clamsmtpd.clamd.connecting import ClamdError, connect
from clamsmtpd.clamd.early import EarlyScan, Followed
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

__all__ = ["EARLY_MAX", "KEPT_MAX", "EarlyScan", "Scannable", "Scanner"]

_log = logging.getLogger("clamsmtpd")

#: Connections for streams that are kept. clamd takes no more connections at once than MaxQueue (clamd.conf(5), 100 by
#: default), whether something is asked in them or not, and leaves the others waiting.
KEPT_MAX = 8

#: Messages that are streamed at once while they come in. Each holds a connection for as long as its client pleases:
#: with one for each, some slow clients would keep those messages from being scanned that are whole.
EARLY_MAX = 8


class Scannable(Followed, Protocol):
    """A message that can be scanned: its text without the dots that SMTP stuffs in."""

    def descriptor(self) -> int:
        """Return an open file with the text, at its start; it stays the message's."""

    def pieces(self) -> Iterator[bytes]:
        """Return the text in pieces."""

    def path(self) -> str:
        """Return the name of a file with the text, which clamd may be able to open."""


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
        # The session that all scans by descriptor or path share, and the making of it.
        self._shared: ClamdSession | None = None
        self._connecting: asyncio.Task[ClamdSession | ClamdError] | None = None
        # Sessions in which nothing is streamed now.
        self._free: list[ClamdSession] = []
        self._early: set[asyncio.Task[Verdict | None]] = set()
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
        return EarlyScan(message, self._start_early) if self._streams else None

    def close(self) -> None:
        """Close the connections that are kept between scans; none may be under way any more."""
        if self._connecting is not None:
            self._connecting.cancel()
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
            session = self._shared
            if session is None or not session.usable:
                # If it is late with an answer, those that wait for one go on waiting.
                session = await self._share()
            answer = await session.ask(command, descriptor() if descriptor else -1)
            if not self._try_again(answer):
                return answer
        # Without a session, clamd ends nothing for being idle and tells best what is the matter.
        session = await self._open(kept=False)
        try:
            return await session.ask(command, descriptor() if descriptor else -1)
        finally:
            session.close()

    async def _share(self) -> ClamdSession:
        """Return a session that takes requests, the same for all that wait for one. Raises ClamdError."""
        if self._connecting is None:
            self._connecting = asyncio.get_running_loop().create_task(self._open_shared())
        # Whoever is cancelled leaves it to the others.
        session = await asyncio.shield(self._connecting)
        if isinstance(session, ClamdError):
            raise session
        return session

    async def _open_shared(self) -> ClamdSession | ClamdError:
        # An exception would be complained of if nobody waits any more.
        try:
            self._shared = await self._open(kept=True)
        except ClamdError as error:
            return error
        finally:
            self._connecting = None
        return self._shared

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

    def _start_early(self, pieces: AsyncIterator[bytes]) -> asyncio.Task[Verdict | None] | None:
        if len(self._early) >= EARLY_MAX:
            return None
        task = asyncio.get_running_loop().create_task(self._stream_early(pieces))
        self._early.add(task)
        task.add_done_callback(self._early.discard)
        return task

    async def _stream_early(self, pieces: AsyncIterator[bytes]) -> Verdict | None:
        """Return the verdict on a text that is sent as it comes; None if that came to nothing."""
        try:
            answer, whole = await self._stream(lambda stream: stream.scan_growing(pieces), kept=self._has_sessions)
        except (ClamdError, OSError):
            # Whatever it was, whoever tries again with the whole message will be told.
            return None
        if isinstance(answer, Lost) and not (whole and answer.timed_out):
            return None
        verdict = _judge(answer, STREAM_SUBJECT)
        return verdict if whole or not isinstance(verdict, Clean) else None

    async def _stream(
        self, scan: Callable[[Stream], Coroutine[object, object, Answer]], *, kept: bool
    ) -> tuple[Answer, bool]:
        """Return the answer to a stream, and whether all of it had been sent. Raises ClamdError."""
        session = await self._open_or_take(kept=kept)
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

    async def _open_or_take(self, *, kept: bool) -> ClamdSession:
        """Return a session in which nothing is streamed; a new one if it is not to be ``kept``. Raises ClamdError."""
        if not kept:
            # One was lost, and so the others may be. If not, clamd may have no place for another beside them.
            for session in tuple(self._free):
                session.close()
            return await self._open(kept=False)
        if not self._free:
            session = await self._open(kept=len(self._sessions) < KEPT_MAX)
            if not self._free:
                return session
            # Meanwhile somebody has done with one. clamd may not take this as long as that is there.
            session.close()
        return self._free.pop()

    # ---- connections --------------------------------------------------------------------------

    async def _open(self, *, kept: bool) -> ClamdSession:
        sock = await connect(self._address, self._time_out)
        session = ClamdSession(sock, time_out=self._time_out, ended=self._on_ended, kept=kept)
        self._sessions.add(session)
        return session

    def _may_keep(self) -> bool:
        """Tell whether a connection may be kept for streams.

        Not as long as there are many, or one from which nothing has been heard: if clamd has not taken it yet, it waits
        for another to be given up.
        """
        return len(self._sessions) <= KEPT_MAX and all(session.heard for session in self._sessions)

    def _on_ended(self, session: ClamdSession) -> None:
        self._sessions.discard(session)
        if session is self._shared:
            self._shared = None
        elif session in self._free:
            self._free.remove(session)

    def _try_again(self, answer: Answer) -> bool:
        """Tell whether a session was at fault and not the scan: clamd had ended it, or has no sessions."""
        if not isinstance(answer, Lost) or answer.timed_out:
            return False
        if is_unknown_command(answer.strange):
            self._has_sessions = False
        return True


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
