"""How long a message that begins now would wait, by what came of those before it."""

from __future__ import annotations

__all__ = ["Load"]

# The mean is over so many completions at least, and over twice as many as there are scans under way: those of one burst
# end together, and the first of them alone says little of the others.
_RECENT = 16


class Load:
    """Counts the scans under way, and the time from one that ends to the next while there are any.

    That time, and not how long each takes, tells what clamd gets done: it scans several at once. All times are seconds
    of one clock.
    """

    __slots__ = ("_last", "_mean", "outstanding")

    def __init__(self) -> None:
        #: Scans that have begun and not ended.
        self.outstanding = 0
        self._mean = 0.0
        self._last = 0.0

    def begin(self, now: float) -> None:
        """Learn that a scan begins."""
        if not self.outstanding:
            # Before, there was nothing to be done, which says nothing about how fast it is.
            self._last = now
        self.outstanding += 1

    def end(self, now: float) -> None:
        """Learn that a scan has ended, whatever came of it."""
        self._mean += (now - self._last - self._mean) / max(_RECENT, 2 * self.outstanding)
        self.outstanding -= 1
        self._last = now

    @property
    def wait(self) -> float:
        """Seconds until all that are under way have ended, if it goes on like this.

        Where nobody is let in any more, they become fewer, and so does this.
        """
        return self.outstanding * self._mean
