"""The clock of a session: how long whoever is awaited may take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from clamsmtpd.smtp.events import Awaits

__all__ = ["FINAL_REPLY_LIMIT", "LEAST_RATE", "LINGER_LIMIT", "Deadline", "Progress"]

#: Octets a second that a peer must move, on average over TimeOut, while a message goes through. A modem
#: of 1990 was faster; what is slower holds a place among MaxConnections for nothing.
LEAST_RATE = 100

#: Seconds for the next hop's reply to a whole message, if TimeOut is not longer (RFC 5321 section
#: 4.5.3.2.6). Who gives up earlier makes the client send again what was delivered already.
FINAL_REPLY_LIMIT = 600.0

#: Seconds for a client to take the last reply before the connection is cut.
LINGER_LIMIT = 5.0

# How many looks at a dialogue fit into the time that a step may take.
_LOOKS = 8

# Seconds between two looks at most: they are also when the next hop is kept awake.
_LOOK_MAX = 30.0

#: Who is awaited, after how many steps, and after how many octets of text.
Progress = tuple[Awaits, int, int]


class Deadline:
    """Watches over the steps of one dialogue, each of which may take ``time_out`` seconds, and up to an eighth more.

    A step is a complete command, reply or decision: a peer that sends one octet a second makes none. In the
    text of a message, a step is as many octets as the least rate asks for. ``expired`` is called when a
    step did not come in time. The scanner has a limit of its own, and is not watched.

    Nobody has to tell of a step: a look now and then, by ``look``, costs less than to set a clock at each.
    """

    __slots__ = ("_deadline", "_expired", "_look", "_loop", "_seen", "_time_out", "_timer")

    def __init__(
        self,
        time_out: float,
        look: Callable[[], Progress],
        expired: Callable[[], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._time_out = time_out
        self._look = look
        self._expired = expired
        self._loop = loop
        self._seen: Progress = (Awaits.NOTHING, -1, 0)
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to watch, and give whoever is awaited now its full time; also when something new is awaited."""
        self._note(self._look())
        self._set_timer()

    def cancel(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _note(self, seen: Progress) -> None:
        self._seen = seen
        limit = self._time_out
        if seen[0] is Awaits.FINAL_REPLY:
            limit = max(limit, FINAL_REPLY_LIMIT)
        elif seen[0] is Awaits.NOTHING:
            limit = min(limit, LINGER_LIMIT)
        self._deadline = self._loop.time() + limit

    def _set_timer(self) -> None:
        self.cancel()
        next_look = self._loop.time() + min(self._time_out / _LOOKS, _LOOK_MAX)
        self._timer = self._loop.call_at(min(next_look, self._deadline), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        seen = self._look()
        late = False
        if self._has_moved(seen):
            self._note(seen)
        elif self._loop.time() >= self._deadline:
            late = seen[0] is not Awaits.VERDICT
            # Whoever is told may come back with the same step still missing.
            self._note(seen)
        self._set_timer()
        if late:
            self._expired()

    def _has_moved(self, seen: Progress) -> bool:
        awaits, steps, octets = seen
        if (awaits, steps) != self._seen[:2]:
            return True
        return awaits in (Awaits.DATA, Awaits.TRANSMISSION) and octets - self._seen[2] >= LEAST_RATE * self._time_out
