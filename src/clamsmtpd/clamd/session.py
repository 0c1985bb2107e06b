"""One connection to clamd: requests go out, each gets its reply by its number, and silence has a limit."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from clamsmtpd.clamd.protocol import IDSESSION, PING, Replies

__all__ = ["IDLE_LIMIT", "PING_INTERVAL", "ClamdSession", "Lost", "why"]

#: Seconds after which a session is ended in which nothing is asked any more. clamd ends it itself after
#: IdleTimeout (clamd.conf(5), 30 seconds by default), and might do so in the moment of the next request.
IDLE_LIMIT = 10.0

#: Seconds of silence in which replies are owed, after which clamd is asked to say something. Without that, IdleTimeout
#: ends a session in the midst of a long scan, and all its scans are lost.
PING_INTERVAL = 5.0

_RECEIVE = 65536

_pack_descriptor = struct.Struct("i").pack


@dataclass(frozen=True, slots=True)
class Lost:
    """There will be no reply.

    ``timed_out``: because clamd let its time pass; otherwise asking again may help. ``strange`` is what came in
    place of a reply with a number, where that was the reason.
    """

    reason: str
    timed_out: bool = False
    strange: bytes = b""


Answer = bytes | Lost


@dataclass(slots=True)
class _Request:
    command: bytes
    descriptor: int
    answer: asyncio.Future[Answer]
    deadline: float


class ClamdSession:
    """A connection to clamd by ``sock``, which is connected, does not block, and belongs to this from now on.

    ``kept``: by IDSESSION it stays for any number of scans, also several at once. Otherwise it is good for one.
    A reply may take ``time_out`` seconds. ``ended`` is called once, when nothing more can be asked.
    """

    __slots__ = (
        "_active",
        "_ended",
        "_kept",
        "_last_number",
        "_loop",
        "_open",
        "_opening",
        "_owed",
        "_replies",
        "_streaming",
        "_time_out",
        "_timer",
        "_waiting",
        "socket",
        "usable",
    )

    def __init__(
        self, sock: socket.socket, *, time_out: float, ended: Callable[[ClamdSession], None], kept: bool = True
    ) -> None:
        self.socket = sock
        #: Whether another request may be made.
        self.usable = True
        self._kept = kept
        self._time_out = time_out
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._replies = Replies(numbered=kept)
        self._opening = IDSESSION if kept else b""
        self._last_number = 0
        # By number; None for a PING.
        self._owed: dict[int, _Request | None] = {}
        # Requests that the connection does not take yet.
        self._waiting: deque[_Request] = deque()
        # The request whose text is going out: whatever else were sent would be taken for a part of it.
        self._streaming: _Request | None = None
        self._open = True
        self._active = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(sock, self._on_readable)

    def ask(self, command: bytes, descriptor: int = -1) -> asyncio.Future[Answer]:
        """Send a request, with an open file if one is given; return what becomes the text of its reply, or Lost."""
        now = self._active = self._loop.time()
        request = _Request(command, descriptor, self._loop.create_future(), now + self._time_out)
        self.usable = self._kept
        self._watch(request)
        if self._waiting:
            self._waiting.append(request)
        elif not self._send(request):
            self._waiting.append(request)
            self._loop.add_writer(self.socket, self._on_writable)
        return request.answer

    def begin(self, command: bytes) -> tuple[bytes, asyncio.Future[Answer]]:
        """Prepare a request that the caller sends on :attr:`socket`, with the text that belongs to it.

        Returns the octets of the request, and what becomes its reply. Nothing else may be asked until
        :meth:`finish`.
        """
        request = self._streaming = _Request(command, -1, self._loop.create_future(), math.inf)
        self.usable = False
        self._number(request)
        octets, self._opening = self._opening + command, b""
        return octets, request.answer

    def finish(self) -> None:
        """Learn that all of the text has been sent: from now on the time runs."""
        request, self._streaming = self._streaming, None
        if request is not None and self._open:
            self._active = self._loop.time()
            request.deadline = self._active + self._time_out
            self.usable = self._kept
            self._watch(request)

    def close(self) -> None:
        """End it now."""
        self._end("the connection was closed")

    def _number(self, request: _Request | None) -> None:
        self._last_number += 1
        self._owed[self._last_number] = request

    def _send(self, request: _Request | None) -> bool:
        """Send a request, or a PING for None; false if the connection does not take it now."""
        octets = self._opening + (request.command if request is not None else PING)
        try:
            if request is not None and request.descriptor >= 0:
                # All in one: the descriptor belongs to the octets that it comes with. A connection of this kind takes
                # so few octets whole or not at all.
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, _pack_descriptor(request.descriptor))
                self.socket.sendmsg((octets,), (rights,))
            else:
                self.socket.send(octets)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError):
            # What clamd said before it closed is still there to be read.
            self.usable = False
        except OSError as error:
            self._number(request)
            self._end(why(error))
            return True
        self._opening = b""
        self._number(request)
        return True

    def _on_writable(self) -> None:
        while self._waiting:
            # Its message may be gone, and the descriptor with it.
            if not self._waiting[0].answer.done() and not self._send(self._waiting[0]):
                return
            if self._waiting:
                self._waiting.popleft()
        if self._open:
            self._loop.remove_writer(self.socket)

    def _on_readable(self) -> None:
        try:
            data = self.socket.recv(_RECEIVE)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(why(error))
            return
        if not data:
            self._end(self._replies.eof())
            return
        self._active = self._loop.time()
        replies = self._replies
        found = replies.feed(data)
        if replies.fault and not self._kept:
            self._end(replies.fault)
            return
        owed = self._owed
        for number, reply in found:
            if number not in owed:
                self._end(f"it gave a reply with the number {number}, which nobody asked for")
                return
            request = owed.pop(number)
            if request is None:
                continue
            if request is self._streaming:
                # It has decided before it had all of the text, and would take whatever comes for the rest of it.
                self._streaming = None
            if not request.answer.done():
                request.answer.set_result(reply)
        if replies.fault:
            self._end(replies.fault)
        elif not self.usable and not self._streaming and not self._is_awaited():
            self.close()

    def _is_awaited(self) -> bool:
        requests = (*self._owed.values(), *self._waiting)
        return any(request is not None and not request.answer.done() for request in requests)

    def _end(self, reason: str) -> None:
        if not self._open:
            return
        self._open = self.usable = False
        self._loop.remove_reader(self.socket)
        # Ours, or that of a stream.
        self._loop.remove_writer(self.socket)
        self.socket.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lost = Lost(reason, strange=self._replies.strange)
        for request in (*self._owed.values(), *self._waiting):
            if request is not None and not request.answer.done():
                request.answer.set_result(lost)
        self._owed.clear()
        self._waiting.clear()
        self._streaming = None
        self._ended(self)

    # ---- time ---------------------------------------------------------------------------------

    def _watch(self, request: _Request) -> None:
        # One that rings early looks who is awaited and goes back to sleep: to set it anew with each request would
        # cost more.
        when = min(request.deadline, self._active + PING_INTERVAL)
        if self._timer is None or self._timer.when() > when:
            self._set_timer(when)

    def _set_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        """Give up what has waited too long, and set the clock for what comes next."""
        self._timer = None
        now = self._loop.time()
        awaited = [request for request in (*self._owed.values(), *self._waiting) if request is not None]
        late = [request for request in awaited if request.deadline <= now]
        if late:
            # What is late may still come, but whoever asks next is better off elsewhere.
            self.usable = False
            lost = Lost(f"no answer within {self._time_out:g} seconds", timed_out=True)
            for request in late:
                if not request.answer.done():
                    request.answer.set_result(lost)
            if not self._is_awaited():
                self.close()
                return
        if self._streaming is not None:
            return
        if awaited:
            left = [request.deadline for request in awaited if request.deadline > now]
            if self._kept and now - self._active >= PING_INTERVAL and not self._waiting and self._send(None):
                self._active = now
            if self._open:
                self._set_timer(min((*left, max(self._active, now - PING_INTERVAL / 2) + PING_INTERVAL)))
        elif now - self._active >= IDLE_LIMIT:
            self.close()
        else:
            self._set_timer(self._active + IDLE_LIMIT)


def why(error: OSError) -> str:
    """Say what went wrong on the way to clamd."""
    # Event loops and socket put texts of their own into some errors, which do not say what is wrong.
    # A resolver's numbers are not those of errno.
    if error.errno is None or isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    return os.strerror(error.errno)
