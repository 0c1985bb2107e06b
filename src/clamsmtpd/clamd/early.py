"""The scan of a message that still comes in: of its text, clamd has all but the end when the final dot comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from clamsmtpd.clamd.outcome import Outcome

__all__ = ["EARLY_MIN", "EarlyScan", "Followed", "Follower"]

#: Octets of a message after which clamd gets it while it still comes in, where it is streamed. A small one
#: is sent in one go when it is whole, which costs less.
EARLY_MIN = 65536

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


class Followed(Protocol):
    """A message that comes in."""

    def follow(self, on_growth: Callable[[], None]) -> Follower:
        """Return a reader of a text that still grows, from its start; ``on_growth`` is called whenever it has."""


class EarlyScan:
    """The scan of ``message`` from when there is enough of it.

    ``start`` is called then with the text as it comes, and returns the scan; None for not now, and it is asked again
    when there is more. Without a scan, or if its result is None, the message is to be scanned when it is whole.
    """

    __slots__ = ("_follower", "_growth", "_start", "_taken", "_task", "scanner")

    def __init__(
        self,
        message: Followed,
        start: Callable[[AsyncIterator[bytes]], asyncio.Task[Outcome | None] | None],
    ) -> None:
        #: Whose it is, for whoever has several.
        self.scanner: object = None
        self._start = start
        self._task: asyncio.Task[Outcome | None] | None = None
        self._growth: asyncio.Future[None] | None = None
        self._taken = False
        self._follower = message.follow(self._on_growth)

    @property
    def begun(self) -> bool:
        """Whether there is a scan of it."""
        return self._task is not None

    def take(self) -> asyncio.Task[Outcome | None] | None:
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
            self._task = self._start(self._pieces())

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
