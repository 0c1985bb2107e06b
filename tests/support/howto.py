"""The files that the how-tos show, as tests use them: with ports and paths of the test in place of those shown."""

from __future__ import annotations

import re
from pathlib import Path

from clamsmtpd.values import Address
from tests.support.clamd import EICAR

__all__ = ["CLEAN", "INFECTED", "RECIPIENT", "SENDER", "HowTo", "usual"]

_FILES = Path(__file__).resolve().parents[2] / "docs" / "howto" / "files"

SENDER, RECIPIENT = "a@example.org", "b@example.org"
_FIELDS = f"From: {SENDER}\r\nTo: {RECIPIENT}\r\n".encode()
CLEAN = _FIELDS + b"Subject: hello\r\n\r\nText.\r\n"
INFECTED = _FIELDS + b"Subject: invoice\r\n\r\n" + EICAR + b"\r\n"


class HowTo:
    """The files of one page.

    ``changes`` are what stands in them and what takes its place: ports above all, as tests run side by side. Each of
    them has to be in a file that is asked for, or the page is about something else than the test.
    """

    def __init__(self, name: str, changes: dict[str, str]) -> None:
        self._folder = _FILES / name
        self._changes = changes
        self._used: set[str] = set()

    def text(self, name: str) -> str:
        """Return a file."""
        text = (self._folder / name).read_text()
        for shown, ours in self._changes.items():
            if shown in text:
                self._used.add(shown)
                text = text.replace(shown, ours)
        return text

    def settings(self) -> list[str]:
        """Return the lines of clamsmtpd.conf."""
        return [line for line in self.text("clamsmtpd.conf").splitlines() if line and not line.startswith("#")]

    def check_seen(self, name: str, log: str) -> None:
        """Raise AssertionError unless each line of a file is in a log, in this order; an ellipsis is anything."""
        lines = iter(log.splitlines())
        for shown in self.text(name).splitlines():
            pattern = ".*".join(re.escape(part) for part in shown.split("…"))
            assert any(re.search(pattern, line) for line in lines), f"{shown!r} is not, or not there, in\n{log}"

    def check_used(self) -> None:
        """Raise AssertionError when a change had nothing to change."""
        assert set(self._changes) == self._used, f"not in any file: {set(self._changes) - self._used}"


def usual(clamd: str, **ports: Address) -> dict[str, str]:
    """Return the changes that most pages need: clamd, TempDirectory, User, and addresses by their port, as p10025.

    The user is nobody, and TempDirectory the one that a test's daemon gets.
    """
    changes = {
        "/run/clamav/clamd.ctl": clamd,
        "TempDirectory: /var/spool/clamsmtp": "",
        "User: clamsmtp": "User: nobody",
    }
    for name, address in ports.items():
        changes[f"127.0.0.1:{name.removeprefix('p')}"] = str(address)
    return changes
