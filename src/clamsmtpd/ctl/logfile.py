"""What a log of the daemon says of one message: in JSON, as text, or as ``journalctl -o json`` prints."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from clamsmtpd.account import is_about
from clamsmtpd.logevents import ENDED

__all__ = ["LINES_MAX", "Line", "Told", "search"]

#: Lines that are kept of one connection; a client may have as many messages in one as it likes.
LINES_MAX = 1000

# The id of a connection stands in front of each of its lines, behind what syslogd puts there. What a stranger has said
# never comes before it.
_TEXT = re.compile(r"(?:(?P<when>.*?) ?\bclamsmtpd(?:\[\d+\])?: )?(?P<connection>[0-9A-F]{6,8}): (?P<text>.*)")

_IDENTITY = re.compile(r"(?P<connection>[0-9A-F]{6,8})(?:-[0-9]+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Line:
    """A line about a connection. ``when`` is the time as that log has it; ``event`` and ``message`` may be empty."""

    when: str
    text: str
    event: str = ""
    message: str = ""


@dataclass
class Told:
    """What was found: accounts of messages that have ended, and lines about the connection."""

    accounts: list[dict[str, Any]] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)


def search(identity: str, lines: Iterable[str]) -> Told:
    """Return what a log tells about a message, a connection, a file in quarantine or an id of the next hop's.

    What is no line of ours is passed over. By the last two only whole accounts are found, as no other line has them.
    """
    told = Told()
    named = _IDENTITY.fullmatch(identity)
    connection = named["connection"].upper() if named else ""
    message = identity.upper() if named and "-" in identity else ""
    for text in lines:
        # Most lines are about others, and to look at each of them closely would take its time.
        if identity not in text and (not connection or connection not in text):
            continue
        account, line = _read(text.strip())
        if account is not None and is_about(account, identity):
            told.accounts.append(account)
        if line is None or line[0] != connection or len(told.lines) >= LINES_MAX:
            continue
        if not message or line[1].message in ("", message):
            told.lines.append(line[1])
    return told


def _read(text: str) -> tuple[dict[str, Any] | None, tuple[str, Line] | None]:
    """Return the account that a line holds, and its text with the connection that it is about."""
    start = text.find("{")
    entry = _object(text[start:]) if start >= 0 and text.endswith("}") else None
    if entry is None:
        return None, _text_line("", text)
    if "MESSAGE" in entry and "event" not in entry:
        return _read_journal(entry)
    event, connection = str(entry.get("event", "")), str(entry.get("connection", ""))
    if event == ENDED:
        return entry, None
    shown = str(entry.get("text", "")).removeprefix("clamsmtpd: ").removeprefix(f"{connection}: ")
    line = Line(str(entry.get("time", "")), shown, event, str(entry.get("message", "")))
    return None, (connection, line) if connection else None


def _read_journal(entry: dict[str, Any]) -> tuple[dict[str, Any] | None, tuple[str, Line] | None]:
    text = _journal_text(entry["MESSAGE"])
    if text.startswith("{"):
        return _read(text) if _object(text) is not None else (None, None)
    if entry.get("CLAMSMTPD_EVENT") == ENDED:
        return _object(_journal_text(entry.get("CLAMSMTPD_ACCOUNT"))), None
    when = ""
    stamp = str(entry.get("__REALTIME_TIMESTAMP", ""))
    if stamp.isdecimal() and len(stamp) < len("9" * 17):
        when = datetime.fromtimestamp(int(stamp) / 1e6, UTC).isoformat(timespec="microseconds")
    found = _text_line(when, text)
    if found is None:
        return None, None
    connection, line = found
    event, message = (_journal_text(entry.get(f"CLAMSMTPD_{name}")) for name in ("EVENT", "MESSAGE"))
    return None, (connection, Line(line.when, line.text, event, message))


def _journal_text(value: object) -> str:
    """Return the value of a field: a text, or numbers of octets where it is not printable (journalctl(1), -o json)."""
    if isinstance(value, list):
        octets = bytes(octet for octet in value if isinstance(octet, int) and octet in range(256))
        return octets.decode("utf-8", "replace")
    return value if isinstance(value, str) else ""


def _text_line(when: str, text: str) -> tuple[str, Line] | None:
    found = _TEXT.match(text)
    return (found["connection"], Line(when or found["when"] or "", found["text"])) if found else None


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
