"""One connection to clamd: requests go out, each gets its reply by its number, and silence has a limit."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from clamsmtpd.clamd.allowance import seconds
from clamsmtpd.clamd.protocol import IDSESSION, PING, Replies

__all__ = ["IDLE_LIMIT", "OWED_MAX", "PING_INTERVAL", "Answer", "ClamdSession", "Lost", "why"]

#: Seconds after which a session is ended in which nothing is asked any more. clamd ends it itself after
#: ReadTimeout (clamd.conf(5), 120 seconds by default), and might do so in the moment of the next request.
IDLE_LIMIT = 10.0

#: Seconds in which nothing was asked and replies are owed, after which clamd is asked to say something. It ends a
#: session in which it gets no command for ReadTimeout (so does version 1.4; the manual does not tell which limit it
#: takes for this), also in the midst of scans, and although it goes on giving replies; all other scans are then lost.
PING_INTERVAL = 2.0

#: Replies that may be owed at once. clamd takes MaxQueue requests (100 by default) and then reads no more, so that
#: further ones would only wait in the connection: with descriptors that count as ours (RLIMIT_NOFILE, unix(7)), and
#: scanned even if their messages are given up meanwhile.
OWED_MAX = 100

# Seconds after which a request is tried again that the system, and not the connection, did not take.
_RETRY = 0.05

# The connection is full, or as many descriptors are under way, on this connection or others, as a process may have.
_NOT_NOW = frozenset({errno.EAGAIN, errno.ETOOMANYREFS})

# Some hundred replies.
_RECEIVE = 8192

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


class _Request:
    """What clamd is asked, and what becomes its answer, which is given up by whoever cancels it."""

    __slots__ = ("answer", "command", "deadline", "descriptor", "limit")

    def __init__(
        self, command: bytes, descriptor: int, answer: asyncio.Future[Answer], deadline: float, limit: float
    ) -> None:
        self.command = command
        self.descriptor = descriptor
        self.answer = answer
        self.deadline = deadline
        # Seconds from when it was asked to the deadline.
        self.limit = limit


class ClamdSession:
    """A connection to clamd by ``sock``, which is connected, does not block, and belongs to this from now on.

    ``kept``: by IDSESSION it stays for any number of scans, also several at once. Otherwise it is good for one.
    Each request says how long its reply may take. ``ended`` is called once, when nothing more can be asked, and
    ``slow`` now and then when replies are owed for some seconds.
    """

    __slots__ = (
        "_asked",
        "_blocked",
        "_ended",
        "_kept",
        "_last_number",
        "_loop",
        "_lost",
        "_open",
        "_opening",
        "_owed",
        "_replies",
        "_slow",
        "_streaming",
        "_timer",
        "_waiting",
        "_wakes",
        "heard",
        "socket",
        "usable",
    )

    def __init__(
        self,
        sock: socket.socket,
        *,
        ended: Callable[[ClamdSession], None],
        slow: Callable[[], None] | None = None,
        kept: bool = True,
    ) -> None:
        self.socket = sock
        #: Whether another request may be made.
        self.usable = True
        #: Whether clamd has ever said something, and so has taken the connection.
        self.heard = False
        self._kept = kept
        self._ended = ended
        self._slow = slow
        self._loop = asyncio.get_running_loop()
        self._replies = Replies(numbered=kept)
        self._opening = IDSESSION if kept else b""
        self._last_number = 0
        # By number, which is also the order in which they were asked; None for a PING.
        self._owed: dict[int, _Request | None] = {}
        # Requests that are still to be sent.
        self._waiting: deque[_Request] = deque()
        # Whether the connection takes nothing now; somebody calls when that changes.
        self._blocked = False
        # The request whose text is going out: whatever else were sent would be taken for a part of it.
        self._streaming: _Request | None = None
        self._open = True
        # What is answered when it is not.
        self._lost = Lost("")
        # When clamd got the last command. Its clock counts from there, whatever it says itself.
        self._asked = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._wakes = math.inf
        self._loop.add_reader(sock, self._read)

    # ---- requests -----------------------------------------------------------------------------

    def ask(self, command: bytes, descriptor: int = -1, *, limit: float) -> asyncio.Future[Answer]:
        """Send a request, with an open file if one is given; return what becomes the text of its reply, or Lost.

        The reply may take ``limit`` seconds. Cancel it to give it up. The file must stay open until then.
        """
        now = self._loop.time()
        answer: asyncio.Future[Answer] = self._loop.create_future()
        request = _Request(command, descriptor, answer, now + limit, limit)
        if not self._open:
            answer.set_result(self._lost)
            return answer
        if not self._kept:
            self.usable = False
        # Nobody overtakes those that wait.
        if self._waiting or len(self._owed) >= OWED_MAX or not self._send(request):
            self._waiting.append(request)
        if self._open:
            self._wake_by(min(request.deadline, now + PING_INTERVAL))
        return answer

    def begin(self, command: bytes) -> tuple[bytes, asyncio.Future[Answer]]:
        """Prepare a request that the caller sends on :attr:`socket`, with the text that belongs to it.

        Returns the octets of the request, and what becomes its reply. Nothing else may be asked until
        :meth:`finish`.
        """
        request = self._streaming = _Request(command, -1, self._loop.create_future(), math.inf, math.inf)
        self.usable = False
        if self._open:
            self._number(request)
        else:
            request.answer.set_result(self._lost)
        octets, self._opening = self._opening + command, b""
        return octets, request.answer

    def finish(self, limit: float) -> None:
        """Learn that no more of the text is sent: from now on the reply may take ``limit`` seconds."""
        request, self._streaming = self._streaming, None
        if request is not None and self._open:
            self._asked = self._loop.time()
            request.deadline = self._asked + limit
            request.limit = limit
            self.usable = self._kept
            self._wake_by(min(request.deadline, self._asked + PING_INTERVAL))

    def hear_out(self) -> None:
        """Learn that clamd takes nothing more. What it said before is still to be read, and tells best why."""
        self.usable = False
        self._loop.call_soon(self._read_all)

    def give_up(self, reason: str) -> None:
        """Let nobody wait here any longer, as if it were late with all that it owes."""
        self.usable = False
        lost = Lost(reason, timed_out=True)
        for request in list(self._awaited()):
            request.answer.set_result(lost)
        if self._streaming is None:
            self.close()

    def close(self) -> None:
        """End it now."""
        self._end("the connection was closed")

    def _number(self, request: _Request | None) -> None:
        self._last_number += 1
        self._owed[self._last_number] = request

    def _send(self, request: _Request | None) -> bool:
        """Send a request, or a PING for None; false if it cannot be sent now."""
        if self._blocked:
            return False
        octets = request.command if request is not None else PING
        if self._opening:
            octets = self._opening + octets
        try:
            if request is not None and request.descriptor >= 0:
                # All in one: the descriptor belongs to the octets that it comes with.
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, _pack_descriptor(request.descriptor))
                sent = self.socket.sendmsg((octets,), (rights,))
            else:
                sent = self.socket.send(octets)
        except OSError as error:
            if error.errno in _NOT_NOW:
                if request is not None:
                    self._wait(error.errno)
                return False
            self._number(request)
            if isinstance(error, BrokenPipeError | ConnectionResetError):
                self.hear_out()
            else:
                self._end(why(error))
            return True
        self._opening = b""
        self._number(request)
        self._asked = self._loop.time()
        if sent < len(octets):
            # No kind of connection does so with so few octets. The rest could be sent later, with all others waiting.
            self._end("it took only a part of a request")
        return True

    def _wait(self, code: int) -> None:
        self._blocked = True
        if code == errno.ETOOMANYREFS:
            self._loop.call_later(_RETRY, self._on_unblocked)
        else:
            self._loop.add_writer(self.socket, self._on_unblocked)

    def _on_unblocked(self) -> None:
        if self._open:
            self._loop.remove_writer(self.socket)
            self._blocked = False
            self._send_waiting()

    def _send_waiting(self) -> None:
        waiting = self._waiting
        while waiting and len(self._owed) < OWED_MAX:
            # Its message may be gone, and the number of its descriptor be somebody else's.
            if not waiting[0].answer.done() and not self._send(waiting[0]):
                return
            # None are left when the session has ended by this.
            if waiting:
                waiting.popleft()

    # ---- replies ------------------------------------------------------------------------------

    def _read_all(self) -> None:
        while self._open and self._read():
            pass

    def _read(self) -> bool:
        """Take what has come; false if there is nothing, or the end."""
        try:
            data = self.socket.recv(_RECEIVE)
        except BlockingIOError:
            return False
        except OSError as error:
            self._end(why(error))
            return False
        if not data:
            self._end(self._replies.eof())
            return False
        self.heard = True
        replies = self._replies
        found = replies.feed(data)
        if replies.fault and not self._kept:
            self._end(replies.fault)
            return False
        self._hand_out(found)
        if replies.fault:
            self._end(replies.fault)
        elif not self.usable and self._streaming is None and not any(self._awaited()):
            self.close()
        elif self._waiting:
            self._send_waiting()
        return True

    def _hand_out(self, found: list[tuple[int, bytes]]) -> None:
        owed = self._owed
        if len(found) > 1:
            # Before any counts: who says one thing that nobody asked for may have mixed up all of them.
            numbers = {number for number, _ in found}
            if len(numbers) < len(found) or not numbers <= owed.keys():
                self._end("it gave a reply that nobody asked for")
                return
        for number, reply in found:
            if number not in owed:
                self._end("it gave a reply that nobody asked for")
                return
            request = owed.pop(number)
            if request is None:
                continue
            if request is self._streaming:
                # It has decided before it had all of the text, and would take whatever comes for the rest of it.
                self._streaming = None
            if not request.answer.done():
                request.answer.set_result(reply)

    def _awaited(self) -> Iterator[_Request]:
        """Yield the requests whose answers somebody waits for."""
        for request in (*self._owed.values(), *self._waiting):
            if request is not None and not request.answer.done():
                yield request

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
        self._lost = Lost(reason, strange=self._replies.strange)
        for request in self._awaited():
            request.answer.set_result(self._lost)
        self._owed.clear()
        self._waiting.clear()
        self._streaming = None
        self._ended(self)

    # ---- time ---------------------------------------------------------------------------------

    def _wake_by(self, when: float) -> None:
        # One that rings early looks who is awaited and goes back to sleep: to set it anew with each request would
        # cost more.
        if when < self._wakes:
            if self._timer is not None:
                self._timer.cancel()
            self._wakes = when
            self._timer = self._loop.call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        """Give up what has waited too long, and set the clock for what comes next."""
        self._timer, self._wakes = None, math.inf
        # libuv calls once for a connection with an error, such as a reset, and then never again: if there was a reply
        # to be read in front of the error, nobody has told us of that.
        self._read_all()
        if not self._open:
            return
        now = self._loop.time()
        late = [request for request in self._awaited() if request.deadline <= now]
        if late:
            # What is late may still come, but whoever asks next is better off elsewhere.
            self.usable = False
            for request in late:
                request.answer.set_result(Lost(f"no answer within {seconds(request.limit)}", timed_out=True))
        awaited = list(self._awaited())
        if not awaited and not self.usable:
            self.close()
        elif self._streaming is not None:
            # Whoever sends it has a clock of its own.
            pass
        elif awaited:
            if self._slow is not None:
                self._slow()
            if self._kept and now - self._asked >= PING_INTERVAL and not self._send(None):
                # It reads nothing, and so waits for no command either.
                self._asked = now
            if self._open:
                self._wake_by(min(*(request.deadline for request in awaited), self._asked + PING_INTERVAL))
        elif now - self._asked >= IDLE_LIMIT:
            self.close()
        else:
            self._wake_by(self._asked + IDLE_LIMIT)


def why(error: OSError) -> str:
    """Say what went wrong on the way to clamd."""
    # Event loops and socket put texts of their own into some errors, which do not say what is wrong.
    # A resolver's numbers are not those of errno.
    if error.errno is None or isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    return os.strerror(error.errno)
