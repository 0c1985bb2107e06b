"""What the next hop would get of a spool."""

from __future__ import annotations

from collections.abc import Iterator

from clamsmtpd.spool import FileRange, Spool
from clamsmtpd.values import Insertion

__all__ = ["wire"]


def wire(spool: Spool, *insertions: Insertion) -> Iterator[bytes]:
    """Yield the text with insertions, that which is in a file in the pieces in which it can be read."""
    for part in spool.parts(insertions):
        if isinstance(part, FileRange):
            yield from part.pieces()
        else:
            yield part
