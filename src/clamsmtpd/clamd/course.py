"""What the way of one message through the scanners was like, for whoever has to explain it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Course"]


@dataclass(slots=True)
class Course:
    """Filled in as the message goes along. ``given`` is in seconds by the clock of the event loop; 0 for not yet."""

    #: The scanner that has, or had, the message last.
    scanner: str = ""
    #: When the message was given to it.
    given: float = 0.0
    #: How many times it was given to any.
    tries: int = 0
    #: Whether that scanner had it already while it came in; then ``given`` is when the rest of it did.
    early: bool = False
    #: Whether the verdict came from the scan of another message with the same octets.
    spared: bool = False
