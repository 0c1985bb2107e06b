"""The clock of a session: how long whoever is awaited may take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from clamsmtpd.smtp.events import Awaits

__all__ = ["FINAL_REPLY_LIMIT", "LEAST_RATE", "LINGER_LIMIT", "Deadline"]

#: Octets a second that a peer must move, on average over TimeOut, while a message goes through. A modem
#: of 1990 was faster; what is slower holds a place among MaxConnections for nothing.
LEAST_RATE = 100

#: Seconds for the next hop's reply to a whole message, if TimeOut is not longer (RFC 5321 section
#: 4.5.3.2.6). Who gives up earlier makes the client send again what was delivered already.
FINAL_REPLY_LIMIT = 600.0

#: Seconds for a client to take the last reply before the connection is cut.
LINGER_LIMIT = 5.0

_STREAMS = frozenset({Awaits.DATA, Awaits.TRANSMISSION})


class Deadline:
    """Watches over the steps of one dialogue, each of which may take ``time_out`` seconds.

    A step is a complete command, reply or decision: a peer that sends one octet a second makes none. In the
    text of a message, a step is as many octets as the least rate asks for. ``expired`` is called when a
    step did not come in time. The scanner has a limit of its own, and is not watched.
    """

    __slots__ = ("_awaits", "_deadline", "_expired", "_loop", "_mark", "_steps", "_time_out", "_timer")

    def __init__(self, time_out: float, expired: Callable[[], None]) -> None:
        self._time_out = time_out
        self._expired = expired
        self._loop = asyncio.get_running_loop()
        self._awaits = Awaits.NOTHING
        self._steps = -1
        self._mark = 0
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, awaits: Awaits, steps: int, octets: int) -> None:
        """Learn where the dialogue is: who is awaited, after how many steps and octets of text."""
        stepped = awaits is not self._awaits or steps != self._steps
        moving = awaits in _STREAMS and octets - self._mark >= LEAST_RATE * self._time_out
        if not stepped and not moving:
            return
        self._awaits, self._steps, self._mark = awaits, steps, octets
        limit = self._time_out
        if awaits is Awaits.FINAL_REPLY:
            limit = max(limit, FINAL_REPLY_LIMIT)
        elif awaits is Awaits.NOTHING:
            limit = min(limit, LINGER_LIMIT)
        self._deadline = self._loop.time() + limit
        # A timer that rings early looks at the deadline and goes back to sleep: to move it at every
        # command would cost more than that.
        if self._timer is None or self._timer.when() > self._deadline:
            self._set_timer()

    def cancel(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self) -> None:
        self.cancel()
        self._timer = self._loop.call_at(self._deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = self._loop.time()
        late = now >= self._deadline
        if late:
            # Whoever is told may come back with the same step still missing.
            self._deadline = now + self._time_out
        self._set_timer()
        if late and self._awaits is not Awaits.VERDICT:
            self._expired()
