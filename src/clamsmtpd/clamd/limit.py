"""What is known of how large a file one scanner looks at."""

from __future__ import annotations

import math

__all__ = ["SMALL", "STEP", "Limit"]

#: Octets to a multiple of which sizes are rounded up, so that many messages need one probe. More precision than that
#: is for the message at the very border.
STEP = 65536

#: Octets at which a scanner that knows the test file must see it with padding behind it. If it does not, that is not
#: for the size.
SMALL = 1024

# The border is known when what is left between is such a part of it.
_FINE = 64


class Limit:
    """The sizes at which the scanner has seen a virus, and not.

    clamd fails open: it calls ``OK``, without a look, what is larger than the smaller of MaxFileSize and MaxScanSize
    (clamd.conf(5); 0 is 2 GiB less one octet), to the octet, by descriptor, path and stream alike. Measured with
    version 1.4. A stream longer than StreamMaxLength is an error; with ``AlertExceedsMax yes`` a file above MaxFileSize
    is reported as if it were a virus, and so nothing passes unseen. Nothing that clamd says tells its settings, so
    they are found by a test file with padding.
    """

    __slots__ = ("_dark", "_was", "blind", "epoch", "learnable", "seen")

    def __init__(self) -> None:
        #: The largest size, in octets, at which it has seen a virus.
        self.seen: float = 0
        #: The smallest at which it has not; none as long as it has not seen any, which may be for other reasons.
        self.blind: float = math.inf
        self._dark: float = math.inf
        #: Whether probes tell anything.
        self.learnable = True
        #: Changes whenever what was known has been forgotten.
        self.epoch = 0
        # What it knew before that, which is often still so.
        self._was: tuple[float, float] = (0, math.inf)

    def note(self, size: int, *, seen: bool) -> None:
        """Learn what came of a probe of ``size`` octets. The last one counts if two contradict each other."""
        if seen:
            self.seen = max(self.seen, size)
            if self._dark <= size:
                self._dark = math.inf
        elif size <= SMALL:
            self.learnable = False
            self.assume_none()
        else:
            self._dark = min(self._dark, size)
            # Where probes tell nothing it was the scanner who refused so much, and no probe confirms that.
            if self.seen >= size and self.learnable:
                self.seen = 0
        self.blind = self._dark if self.seen else math.inf

    def forget(self) -> None:
        """Know nothing any more: it may be another process, with other settings."""
        if self.learnable and self.seen:
            self._was = self.seen, self.blind
        self.epoch += 1
        self.learnable = True
        self.seen, self.blind, self._dark = 0, math.inf, math.inf

    def assume_none(self) -> None:
        """Hold nothing against it from now on."""
        self.seen = self.blind = self._dark = math.inf

    def probe_for(self, size: int) -> int | None:
        """Return the size to probe before a message of ``size`` octets is believed to be clean; None if it is known."""
        if size <= self.seen or size >= self.blind:
            return None
        if size >= self._dark:
            return SMALL
        rounded = -(-size // STEP) * STEP
        return rounded if rounded < self._dark else size

    def next_probe(self, top: int) -> int | None:
        """Return the size to probe next in order to know how it is up to ``top`` octets; None when that is known.

        Up to there it is mostly all seen, and one probe tells.
        """
        if top <= self.seen:
            return None
        if top < self._dark:
            return top
        for before in self._was:
            if self.seen < before < self._dark:
                return int(before)
        if self._dark - self.seen > max(STEP, self.seen / _FINE):
            middle = int(self.seen + self._dark) // 2
            return middle // STEP * STEP if middle - self.seen > STEP else middle
        return None if self.seen else SMALL
