"""The time that a scan may take."""

from __future__ import annotations

__all__ = ["LONGEST", "RATE", "scan_limit", "seconds"]

#: Octets a second that are added to the time for a scan: less than the slowest scanner looks at.
RATE = 1024 * 1024

#: Seconds that no scan may exceed. At the final dot a client waits ten minutes (RFC 5321 section 4.5.3.2.6), and the
#: minute that is left is for the next hop and the reply.
LONGEST = 540.0


def scan_limit(size: int, time_out: float) -> float:
    """Return the seconds from the final dot within which a message of ``size`` octets has its verdict, or has none.

    All connecting, sending, waiting and trying again is within it.
    """
    return min(time_out + size / RATE, LONGEST)


def seconds(limit: float) -> str:
    """Return a time as it is told in the log, in twentieths of a second: it is what was left of a round number."""
    return f"{max(round(limit * 20), 0) / 20:g} seconds"
