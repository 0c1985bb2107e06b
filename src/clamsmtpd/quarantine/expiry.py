"""What has been in quarantine long enough (QuarantineKeep)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator

from clamsmtpd.quarantine.index import Entry, Index
from clamsmtpd.values import Keep

__all__ = ["choose", "expire", "remove"]


def choose(entries: Iterable[Entry], keep: Keep, now: float) -> list[Entry]:
    """Return those that are to go, the oldest first: by age, and then until what stays is no larger than allowed."""
    ordered = sorted(entries, key=lambda entry: (entry.at, entry.id))
    left = sum(entry.size or 0 for entry in ordered)
    chosen = []
    for entry in ordered:
        old = keep.seconds is not None and now - entry.at > keep.seconds
        if not old and (keep.octets is None or left <= keep.octets):
            break
        left -= entry.size or 0
        chosen.append(entry)
    return chosen


def remove(index: Index, temp_directory: str, entry: Entry, fate: str, now: float) -> None:
    """Remove a file, and write down what became of it. Raises OSError, IndexFaultError."""
    # The file first: should we end in between, healing finds it gone, and no file stays that is said to have gone.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(temp_directory, entry.name))
    index.end(entry.id, fate, now)


def expire(index: Index, temp_directory: str, keep: Keep, now: float) -> Iterator[Entry]:
    """Remove what is to go, and yield each when it has gone. Raises IndexFaultError, and at the end OSError."""
    trouble: OSError | None = None
    for entry in choose(index.entries(), keep, now):
        try:
            remove(index, temp_directory, entry, "expired", now)
        except OSError as error:
            # One that we may not remove, as when root put it there, must not keep all others.
            trouble = error
        else:
            yield entry
    if trouble is not None:
        raise trouble
