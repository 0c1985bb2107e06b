"""The fault matrix: tests whose expectations are the rows of the page "what happens when".

A test brings a fault about among real parts and returns what came of it. What should come of it is said once, in the
row; the page is made of the rows, and the test fails where the row does not tell the truth.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import signal
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from tests.support.daemon import Daemon

__all__ = ["Outcome", "Row", "Section", "delivered", "in_turn", "outcome", "page", "sections"]

#: What the files of tests are about, in the order of the page.
_FILES = ("scanner", "next_hop", "client", "disk", "places", "processes", "clock")

_FOLDER = Path(__file__).parent.parent / "integration"


#: Lines of the log that are there without any fault.
_USUAL = re.compile(
    r"running as root|clamd at \S+: ClamAV |clamsmtpd \S+ accepting connections"
    r"|[0-9A-F]{6}: accepted connection from: |stopping: \d+ connections|totals: |stopped$"
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a fault came to: all that the client heard, how often the mail was delivered, and the daemon's log."""

    heard: str
    delivered: str
    log: Sequence[str]


@dataclass(frozen=True, slots=True)
class Row:
    """What should come of a fault.

    ``what`` tells of it in a sentence. ``log`` is a part of one line of the log, with an ellipsis for what differs from
    time to time; if it is empty, nothing is logged but what always is. ``case`` is what a test gets that brings
    several faults about.
    """

    what: str
    heard: str
    delivered: str
    log: str
    case: object = None

    def check(self, found: Outcome) -> None:
        """Raise AssertionError unless this is what came of it."""
        log = "\n".join(found.log)
        assert found.heard == self.heard, f"the client heard {found.heard}, not {self.heard}; the log:\n{log}"
        assert found.delivered == self.delivered, f"delivered: {found.delivered}, not {self.delivered}; the log:\n{log}"
        if not self.log:
            more = [line for line in found.log if not _USUAL.match(line)]
            assert not more, f"more in the log than usual: {more}"
            return
        pattern = ".*".join(re.escape(part) for part in self.log.split("…"))
        assert any(re.search(pattern, line) for line in found.log), f"nothing of {self.log!r} in the log:\n{log}"


class Section:
    """A part of the page, with some words in front of its rows."""

    def __init__(self, title: str, text: str) -> None:
        self.title = title
        self.text = text
        self._rows: dict[Callable[..., None], list[Row]] = {}

    @property
    def rows(self) -> list[Row]:
        """All rows, in the order of the tests."""
        return [row for rows in self._rows.values() for row in rows]

    def fault(
        self, what: str, *, heard: str, delivered: str, log: str, case: object = None
    ) -> Callable[[Callable[..., Outcome | None]], Callable[..., None]]:
        """Make a row of a test: it has to return what the row says.

        Put in front of a test several times, it makes a row of each; the test has an argument ``case`` then.
        """

        def decorate(test: Callable[..., Outcome | None]) -> Callable[..., None]:
            checked = test if test in self._rows else self._check(test)
            # Decorators work from the last to the first.
            self._rows[checked].insert(0, Row(what, heard, delivered, log, case))
            return checked

        return decorate

    def _check(self, test: Callable[..., Outcome | None]) -> Callable[..., None]:
        signature = inspect.signature(test)
        with_case = "case" in signature.parameters

        @functools.wraps(test)
        def checked(row: Row, **fixtures: object) -> None:
            if with_case:
                fixtures["case"] = row.case
            found = test(**fixtures)
            assert found is not None, "the test has to return what came of it"
            row.check(found)

        parameters = [parameter for name, parameter in signature.parameters.items() if name != "case"]
        first = inspect.Parameter("row", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        checked.__signature__ = signature.replace(parameters=[first, *parameters])  # type: ignore[attr-defined]
        rows: list[Row] = []
        # The list is read when all rows are there.
        checked = pytest.mark.parametrize("row", rows, ids=lambda row: row.what)(checked)
        self._rows[checked] = rows
        return checked


# ---- what came of it ----------------------------------------------------------------------------


class _NextHop(Protocol):
    """Where mail is recorded."""

    @property
    def messages(self) -> list[bytes]:
        """The texts of all messages."""


def in_turn(replies: Iterable[str]) -> str:
    """Say what was heard one after the other; what is heard again and again is said once."""
    said: list[str] = []
    for reply in replies:
        if said[-1:] != [reply]:
            said.append(reply)
    return ", then ".join(said)


def delivered(found: Iterable[bytes], *sent: bytes) -> str:
    """Say how often the messages of ``sent`` are among those ``found``; what is not of them is said to be damaged."""
    bodies = [text.partition(b"\r\n\r\n")[2] for text in sent]
    counts = dict.fromkeys(bodies, 0)
    for text in found:
        # With the scanner's mark the header is another.
        body = text.partition(b"\r\n\r\n")[2]
        if body not in counts:
            return "damaged"
        counts[body] += 1
    numbers = sorted(set(counts.values()))
    words = [{0: "nothing", 1: "once", 2: "twice"}.get(number, f"{number} times") for number in numbers]
    if len(numbers) > 1:
        return "some " + ", some ".join(words)
    return words[0] if len(sent) == 1 or numbers == [0] else f"{words[0]} each"


def outcome(
    daemon: Daemon, hop: _NextHop | Sequence[bytes], heard: str, *sent: bytes, status: int | None = 0
) -> Outcome:
    """Let the daemon end what it has begun, and stop; return what came of all this.

    What must hold after any fault is asserted: nothing is left in the spool, the daemon has done nothing that surprised
    itself, and its exit ``status`` is that of a clean stop; None for a daemon that has ended before.
    """
    if status is not None:
        assert daemon.running, daemon.log()
        daemon.send(signal.SIGTERM)
        assert daemon.wait() == status, daemon.log()
    log = daemon.log_lines()
    assert not [line for line in log if "internal error" in line or "Traceback" in line], daemon.log()
    if daemon.temp_directory.exists():
        left = [name for name in daemon.spooled() if not name.startswith("virus.")]
        assert left == [], left
    found = hop if isinstance(hop, Sequence) else hop.messages
    return Outcome(heard, delivered(found, *sent), log)


# ---- the page -----------------------------------------------------------------------------------

_INTRODUCTION = """\
# What happens when

What goes wrong with mail that goes through clamsmtpd, and what comes of it: what the client hears, which is the server
or program that sends the mail; what is delivered to the next hop; and what the log says. Each row is a test that brings
the fault about, with a real clamd and the daemon as a process, and fails if the row is wrong (tests/integration,
test_faults_*.py); this page is made from them by `make docs`.

The rules behind the rows:

- 250 is heard when the next hop has taken the message, or when it was dropped on purpose, and never else.
- With 421 and 451 the client keeps the message, and sends it again later. So it does when it loses the connection.
- A message is delivered twice only where the connection broke after its final dot, and nobody could tell the client
  that it had been delivered. SMTP has no remedy for that (RFC 1047).
- Nothing is delivered without a verdict, unless the settings say so.

In the replies the second number is the enhanced status code (RFC 3463). In the log an ellipsis stands for what differs.
"""


def sections() -> list[Section]:
    """Return all sections, in the order of the page."""
    names = {path.stem.removeprefix("test_faults_") for path in _FOLDER.glob("test_faults_*.py")}
    assert names == set(_FILES), f"files without a place on the page, or the reverse: {names ^ set(_FILES)}"
    modules = [importlib.import_module(f"tests.integration.test_faults_{name}") for name in _FILES]
    return [value for module in modules for value in vars(module).values() if isinstance(value, Section)]


def page() -> str:
    """Return the page, in Markdown."""
    parts = [_INTRODUCTION]
    for section in sections():
        lines = [f"## {section.title}", "", *textwrap.wrap(section.text, 120), ""]
        lines += ["| What happens | The client hears | Delivered | The log says |", "|---|---|---|---|"]
        lines += [_line(row) for row in section.rows]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _line(row: Row) -> str:
    log = f"`{row.log}`" if row.log else "nothing"
    cells = [cell.replace("|", "\\|") for cell in (row.what, row.heard, row.delivered, log)]
    return f"| {' | '.join(cells)} |"
