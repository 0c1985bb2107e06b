"""What comes of giving a message to one scanner: a verdict, or a fault that tells whether another may do better."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from clamsmtpd.values import Clean, Infected, Oversize

__all__ = ["Failed", "Fault", "Outcome"]


class Fault(enum.Enum):
    """Where it went wrong."""

    #: There was no connection, and so clamd never had the message.
    UNREACHABLE = "unreachable"
    #: The connection broke while clamd had the message.
    LOST = "lost"
    #: It did not answer in its time.
    SILENT = "silent"
    #: There was no descriptor for a connection, or a file.
    OURS = "ours"
    #: It answered, but nothing that is a verdict.
    STRANGE = "strange"


@dataclass(frozen=True, slots=True)
class Failed:
    """The scanner gave no verdict. ``reason`` is one line, without the scanner's name.

    ``lost``: whether a connection broke while clamd had the message, which may have been what killed it.
    """

    reason: str
    fault: Fault
    lost: bool = False


Outcome = Clean | Infected | Oversize | Failed
