"""Mailboxes that real servers deliver into."""

from __future__ import annotations

from pathlib import Path

from tests.support.process import Program

__all__ = ["NOBODY", "Maildir"]

#: The user and group that deliver when the tests run as root.
NOBODY = 65534


class Maildir:
    """A folder in the maildir format; messages have bare line feeds there, as everywhere in a Unix system."""

    def __init__(self, folder: Path) -> None:
        self._new = folder / "new"

    def messages(self) -> list[bytes]:
        """Return the texts, oldest first."""
        if not self._new.is_dir():
            return []
        # The names begin with the time in seconds only; the files tell more exactly.
        return [path.read_bytes() for path in sorted(self._new.iterdir(), key=lambda path: path.stat().st_mtime_ns)]

    def wait_for_messages(self, number: int, server: Program, *, seconds: float = 30) -> list[bytes]:
        """Return the texts once there are as many as ``number``; give up when ``server`` ends."""
        server.wait_until(
            lambda: len(self.messages()) >= number, f"{number} message(s) in the mailbox", seconds=seconds
        )
        return self.messages()
