"""The scanner: a message in, its verdict out, by the connections to one clamd that are kept for it."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Protocol

from clamsmtpd.clamd.allowance import seconds
from clamsmtpd.clamd.connecting import ClamdError, connect
from clamsmtpd.clamd.early import EarlyScan, Followed
from clamsmtpd.clamd.outcome import Failed, Fault, Outcome
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
from clamsmtpd.values import Address, Clean, UnixAddress, Unscanned

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

    @property
    def size(self) -> int:
        """Octets of the text; with stuffed dots there may be some less."""

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
    (IDSESSION). ``time_out``: seconds for which clamd may take nothing of a message that still comes in. ``slow`` is
    called now and then while a scan takes longer than some seconds.
    """

    def __init__(self, address: Address, *, time_out: float, slow: Callable[[], None] | None = None) -> None:
        self.address = address
        #: Whether the text is streamed.
        self.streams = not isinstance(address, UnixAddress)
        self._time_out = time_out
        self._slow = slow
        # What this clamd has been found not to know.
        self._has_sessions = True
        self._passes_descriptors = True
        # The session that all scans by descriptor or path share, and the making of it.
        self._shared: ClamdSession | None = None
        self._connecting: asyncio.Task[ClamdSession | ClamdError] | None = None
        self._connecting_until = 0.0
        # Sockets that are being connected, and why that was given up.
        self._dialled: set[asyncio.Task[socket.socket]] = set()
        self._given_up = ""
        # Sessions in which nothing is streamed now.
        self._free: list[ClamdSession] = []
        self._early: set[asyncio.Task[Outcome | None]] = set()
        self._sessions: set[ClamdSession] = set()

    async def scan(
        self, message: Scannable, early: EarlyScan | None = None, *, deadline: float, again: bool = True
    ) -> Outcome:
        """Return clamd's verdict, or :class:`Failed` for whatever goes wrong on clamd's side or on the way.

        It has until ``deadline``, by the clock of the loop. ``early`` is what :meth:`begin` has returned for this
        message. Where a session is lost that had been kept, which may only have been too old, there is a second try by
        a connection of its own, unless ``again`` is false. Raises OSError only for a fault of the message's own
        storage.
        """
        try:
            if self.streams:
                return await self._scan_remotely(message, early, deadline, again=again)
            return await self._scan_locally(message, deadline, again=again)
        except ClamdError as error:
            return _unreachable(error)

    async def probe(self, sample: Scannable, *, deadline: float) -> Outcome:
        """Scan as messages are scanned, but by a new connection, which shows that there still can be one."""
        try:
            if self.streams:
                session = await self._open(deadline, kept=False)
                answer, whole = await self._stream(session, lambda stream: stream.scan(sample.pieces()), deadline)
                return _judge_stream(answer, whole=whole)
            return await self._scan_locally(sample, deadline, kept=False)
        except ClamdError as error:
            return _unreachable(error)

    async def open(self, limit: float, ended: Callable[[ClamdSession], None]) -> ClamdSession:
        """Return a session in which other things can be asked than scans. Raises ClamdError."""
        return ClamdSession(await self._dial(limit), ended=ended)

    def begin(self, message: Scannable) -> EarlyScan | None:
        """Have a message scanned that still comes in, if it becomes large, and if that saves time in the end."""
        if not self.streams:
            return None
        early = EarlyScan(message, self._start_early)
        early.scanner = self
        return early

    def give_up(self, reason: str) -> None:
        """Let all that wait here fail now, as if their time were over."""
        self._given_up = reason
        for task in tuple(self._dialled):
            task.cancel()
        for session in tuple(self._sessions):
            session.give_up(reason)

    def close(self) -> None:
        """Close the connections that are kept between scans; none may be under way any more."""
        if self._connecting is not None:
            self._connecting.cancel()
        for session in tuple(self._sessions):
            session.close()

    # ---- by descriptor or path ----------------------------------------------------------------

    async def _scan_locally(
        self, message: Scannable, deadline: float, *, again: bool = True, kept: bool = True
    ) -> Outcome:
        if self._passes_descriptors:
            answer, lost = await self._ask(FILDES, message.descriptor, deadline, again=again, kept=kept)
            if isinstance(answer, Lost) or not is_unknown_command(answer):
                return _judge(answer, FILDES_SUBJECT, lost=lost)
            if self._passes_descriptors:
                self._passes_descriptors = False
                _log.warning("clamd at %s takes no descriptors; it must be able to read TempDirectory", self.address)
        path = message.path()
        answer, lost = await self._ask(scan_request(path), None, deadline, again=again, kept=kept)
        return _judge(answer, path_subject(*_names(path)), lost=lost)

    async def _ask(
        self, command: bytes, descriptor: Callable[[], int] | None, deadline: float, *, again: bool, kept: bool
    ) -> tuple[Answer, bool]:
        """Return the answer to a request, by the session that is there or else by a connection of its own.

        With it comes whether a session was lost in which it had been asked. Raises ClamdError.
        """
        now = asyncio.get_running_loop().time
        lost = False
        if kept and self._has_sessions:
            session = self._shared
            if session is None or not session.usable:
                # If it is late with an answer, those that wait for one go on waiting.
                session = await self._share(deadline)
            answer = await session.ask(command, descriptor() if descriptor else -1, limit=deadline - now())
            if not self._try_again(answer):
                return answer, False
            lost = isinstance(answer, Lost) and not is_unknown_command(answer.strange)
            if lost and not again:
                return answer, lost
        # Without a session, clamd ends nothing for being idle and tells best what is the matter.
        try:
            session = await self._open(deadline, kept=False)
        except ClamdError as error:
            if not lost:
                raise
            return Lost(str(error), timed_out=error.timed_out), lost
        try:
            answer = await session.ask(command, descriptor() if descriptor else -1, limit=deadline - now())
        finally:
            session.close()
        return answer, lost

    async def _share(self, deadline: float) -> ClamdSession:
        """Return a session that takes requests, the same for all that wait for one. Raises ClamdError."""
        if self._connecting is None:
            self._connecting = asyncio.get_running_loop().create_task(self._open_shared(deadline))
            self._connecting_until = deadline
        try:
            # Each waits for no longer than its own time; whoever is cancelled leaves it to the others.
            async with asyncio.timeout_at(deadline if deadline < self._connecting_until else None):
                session = await asyncio.shield(self._connecting)
        except TimeoutError:
            raise ClamdError("it has taken no connection in time", timed_out=True) from None
        if isinstance(session, ClamdError):
            raise session
        return session

    async def _open_shared(self, deadline: float) -> ClamdSession | ClamdError:
        # An exception would be complained of if nobody waits any more.
        try:
            self._shared = await self._open(deadline, kept=True)
        except ClamdError as error:
            return error
        finally:
            self._connecting = None
        return self._shared

    # ---- by stream ----------------------------------------------------------------------------

    async def _scan_remotely(
        self, message: Scannable, early: EarlyScan | None, deadline: float, *, again: bool
    ) -> Outcome:
        if early is not None and (task := early.take()) is not None:
            left = deadline - asyncio.get_running_loop().time()
            await asyncio.wait((task,), timeout=left)
            if not task.done():
                task.cancel()
                return Failed(f"no answer within {seconds(left)}", Fault.SILENT)
            if (outcome := task.result()) is not None:
                return outcome
        lost = False
        if self._has_sessions:
            answer, whole = await self._stream_whole(message, deadline, kept=True)
            if not self._try_again(answer):
                return _judge_stream(answer, whole=whole)
            lost = isinstance(answer, Lost) and not is_unknown_command(answer.strange)
            if lost and not again:
                return _judge_stream(answer, lost=lost, whole=whole)
        try:
            answer, whole = await self._stream_whole(message, deadline, kept=False)
        except ClamdError as error:
            if not lost:
                raise
            answer, whole = Lost(str(error), timed_out=error.timed_out), False
        return _judge_stream(answer, lost=lost, whole=whole)

    async def _stream_whole(self, message: Scannable, deadline: float, *, kept: bool) -> tuple[Answer, bool]:
        session = await self._open_or_take(deadline, kept=kept)
        return await self._stream(session, lambda stream: stream.scan(message.pieces()), deadline)

    def _start_early(self, pieces: AsyncIterator[bytes]) -> asyncio.Task[Outcome | None] | None:
        if len(self._early) >= EARLY_MAX:
            return None
        task = asyncio.get_running_loop().create_task(self._stream_early(pieces))
        self._early.add(task)
        task.add_done_callback(self._early.discard)
        return task

    async def _stream_early(self, pieces: AsyncIterator[bytes]) -> Outcome | None:
        """Return the verdict on a text that is sent as it comes; None if that came to nothing."""
        try:
            now = asyncio.get_running_loop().time()
            session = await self._open_or_take(now + self._time_out, kept=self._has_sessions)
            answer, whole = await self._stream(session, lambda stream: stream.scan_growing(pieces))
        except (ClamdError, OSError):
            # Whatever it was, whoever tries again with the whole message will be told.
            return None
        if isinstance(answer, Lost) and not (whole and answer.timed_out):
            return None
        outcome = _judge(answer, STREAM_SUBJECT)
        return outcome if whole or not isinstance(outcome, Clean) else None

    async def _stream(
        self,
        session: ClamdSession,
        scan: Callable[[Stream], Coroutine[object, object, Answer]],
        deadline: float | None = None,
    ) -> tuple[Answer, bool]:
        """Return the answer to a stream, and whether all of it had been sent.

        Without a ``deadline``, each step has its time.
        """
        left = self._time_out if deadline is None else deadline - asyncio.get_running_loop().time()
        stream = Stream(session, left)
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

    async def _open_or_take(self, deadline: float, *, kept: bool) -> ClamdSession:
        """Return a session in which nothing is streamed; a new one if it is not to be ``kept``. Raises ClamdError."""
        if not kept:
            # One was lost, and so the others may be. If not, clamd may have no place for another beside them.
            for session in tuple(self._free):
                session.close()
            return await self._open(deadline, kept=False)
        if not self._free:
            session = await self._open(deadline, kept=len(self._sessions) < KEPT_MAX)
            if not self._free:
                return session
            # Meanwhile somebody has done with one. clamd may not take this as long as that is there.
            session.close()
        return self._free.pop()

    # ---- connections --------------------------------------------------------------------------

    async def _open(self, deadline: float, *, kept: bool) -> ClamdSession:
        sock = await self._dial(deadline - asyncio.get_running_loop().time())
        session = ClamdSession(sock, ended=self._on_ended, slow=self._slow, kept=kept)
        self._sessions.add(session)
        return session

    async def _dial(self, limit: float) -> socket.socket:
        """Return a new connection, unless that is given up meanwhile. Raises ClamdError."""
        task = asyncio.get_running_loop().create_task(connect(self.address, limit))
        self._dialled.add(task)
        task.add_done_callback(self._dialled.discard)
        try:
            return await task
        except asyncio.CancelledError:
            if task.done() and not task.cancelled() and task.exception() is None:
                # Too late for whoever is cancelled in this moment.
                task.result().close()
            elif (waiting := asyncio.current_task()) is not None and not waiting.cancelling():
                raise ClamdError(self._given_up, timed_out=True) from None
            raise

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


def _unreachable(error: ClamdError) -> Failed:
    if error.ours:
        return Failed(str(error), Fault.OURS)
    return Failed(str(error), Fault.SILENT if error.timed_out else Fault.UNREACHABLE)


def _judge(answer: Answer, subject: re.Pattern[bytes], *, lost: bool = False) -> Outcome:
    if isinstance(answer, Lost):
        if answer.timed_out:
            return Failed(answer.reason, Fault.SILENT, lost=lost)
        return Failed(answer.reason, Fault.LOST, lost=True)
    verdict = understand(answer, subject)
    return Failed(verdict.reason, Fault.STRANGE) if isinstance(verdict, Unscanned) else verdict


def _judge_stream(answer: Answer, *, lost: bool = False, whole: bool) -> Outcome:
    outcome = _judge(answer, STREAM_SUBJECT, lost=lost)
    if not whole and isinstance(outcome, Clean):
        return Failed("it called the message clean before it had all of it", Fault.STRANGE)
    return outcome
