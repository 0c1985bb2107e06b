"""Where log lines go and how strangers' octets are shown in them."""

from __future__ import annotations

import logging
import logging.handlers
import os
import re
import sys
from typing import Any

from clamsmtpd.account import readable, verdict_name
from clamsmtpd.datagrams import DatagramHandler
from clamsmtpd.journal import JournalHandler, goes_to_journal, takes_syslog
from clamsmtpd.logjson import JsonFormatter
from clamsmtpd.throttle import Throttle
from clamsmtpd.values import Clean, Envelope, Infected, LogFormat, Oversize, Verdict

__all__ = ["MessageLine", "configure", "describe", "escape", "escape_field", "finish", "message_line", "wants_accounts"]

#: Levels of -d: 0 shows only why the program ends, 4 the whole dialogue (clamsmtpd(8)).
_LEVELS = (logging.CRITICAL, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)

#: Characters of a message line's recipients; syslogd cuts lines at 8 KB.
_RECIPIENTS_MAX = 7000

#: Characters of any other field: no path of RFC 5321 is as long, and the status must never be what is cut off.
_FIELD_MAX = 500

#: Octets of a datagram to syslogd.
_DATAGRAM_MAX = 8000

#: Recipients of a message that its fields list.
_LISTED_MAX = 10

_UNSAFE = re.compile(r"[^ -\[\]-~]")
_UNSAFE_IN_FIELD = re.compile(r"[^!-+\--\[\]-~]")


def _hex(found: re.Match[str]) -> str:
    return "".join(f"\\x{octet:02X}" for octet in found.group().encode("utf-8", "surrogateescape"))


def _escape(data: str | bytes, unsafe: re.Pattern[str]) -> str:
    if isinstance(data, bytes):
        return unsafe.sub(lambda found: f"\\x{ord(found.group()):02X}", data.decode("latin-1"))
    return unsafe.sub(_hex, data)


def escape(data: str | bytes) -> str:
    r"""Return ``data`` on one line: all but printable ASCII, and the backslash, as ``\\xHH``."""
    return _escape(data, _UNSAFE)


def escape_field(data: str | bytes) -> str:
    """Like :func:`escape`, and blanks and commas too, so that no value can pretend to be the next field."""
    return _escape(data, _UNSAFE_IN_FIELD)


def describe(error: BaseException) -> str:
    """Say in a few words what went wrong, without Python's own."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def message_line(envelope: Envelope, verdict: Verdict, *, passed: bool = False) -> str:
    """Return the one line about a message, as programs that read the log of 1.x expect it.

    ``passed``: it is delivered without a verdict. That stands in front of the status, which is the last field
    for every program that reads these lines.
    """
    match verdict:
        case Clean():
            status = "CLEAN"
        case Infected(name):
            status = f"VIRUS:{_cut(escape_field(name))}"
        case Oversize():
            status = "OVERSIZE"
        case _:
            status = "CLAMAV-ERROR"
    shown = [f"from={_cut(escape_field(envelope.sender)) or '<>'}"]
    length = 0
    for number, recipient in enumerate(envelope.recipients):
        field = f"to={_cut(escape_field(recipient))}"
        length += len(field) + len(", ")
        if length > _RECIPIENTS_MAX:
            shown.append(f"to=(and {len(envelope.recipients) - number} more)")
            break
        shown.append(field)
    if passed:
        shown.append("passed=UNSCANNED")
    return ", ".join([*shown, f"status={status}"])


def _cut(field: str) -> str:
    # Three dots after a blank: no escaped value can end so.
    return field if len(field) <= _FIELD_MAX else f"{field[:_FIELD_MAX]} ..."


class MessageLine:
    """The one line about a message: its text, as programs that read the log of 1.x expect it, and its fields."""

    __slots__ = ("_envelope", "_passed", "_verdict")

    def __init__(self, envelope: Envelope, verdict: Verdict, *, passed: bool = False) -> None:
        self._envelope = envelope
        self._verdict = verdict
        self._passed = passed

    def __str__(self) -> str:
        return message_line(self._envelope, self._verdict, passed=self._passed)

    def as_fields(self) -> dict[str, Any]:
        """Return what it says by names that stay."""
        recipients = self._envelope.recipients
        return {
            "sender": readable(self._envelope.sender, _FIELD_MAX),
            "recipients": [readable(recipient, _FIELD_MAX) for recipient in recipients[:_LISTED_MAX]],
            "recipients_count": len(recipients),
            "status": verdict_name(self._verdict),
            "virus": self._verdict.name if isinstance(self._verdict, Infected) else "",
            "passed": self._passed,
        }


class SyslogHandler(DatagramHandler):
    """Sends to the local syslogd by RFC 3164, facility mail, and never waits for it."""

    daemon = "syslogd"

    def __init__(self, path: str = "/dev/log") -> None:
        super().__init__(path)

    def encode(self, text: str, record: logging.LogRecord) -> bytes:
        """Return the datagram for a record, which is ``text`` as a line."""
        level = record.levelno
        syslog = logging.handlers.SysLogHandler
        if level >= logging.ERROR:
            severity = syslog.LOG_ERR
        elif level >= logging.WARNING:
            severity = syslog.LOG_WARNING
        else:
            severity = syslog.LOG_INFO if level >= logging.INFO else syslog.LOG_DEBUG
        priority = syslog.LOG_MAIL << 3 | severity
        data = f"<{priority}>clamsmtpd[{os.getpid()}]: {text}".encode("utf-8", "backslashreplace")
        return data[:_DATAGRAM_MAX]


class _OneLine(logging.Formatter):
    """A record as one line; a traceback, which only the debug level has, as lines of its own.

    Whoever logs what a stranger said escapes it. Should that be forgotten once, or an error's own text hold it, nothing
    of it plays with a terminal all the same, or reads from right to left.
    """

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if text.isprintable():
            return text
        lines = "".join(char if char.isprintable() or char == "\n" else escape(char) for char in text)
        return lines if record.exc_info else lines.replace("\n", " ")


def configure(level: int | None, log_format: LogFormat = LogFormat.TEXT) -> None:
    """Send the log to standard error, from ``level`` 0 (least) to 4; to syslog, facility mail, for None.

    Where either leads to the journal of systemd, the log goes there with the fields of each event.
    """
    logger = logging.getLogger("clamsmtpd")
    finish()
    logger.filters.clear()
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    # Each of these would cost something for every line, and no format of ours shows them.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # Without it, no line looks for the place in the source that logs it: a quarter of its time.
    logging._srcfile = None  # noqa: SLF001
    # A log that cannot be written is no reason to write a traceback instead.
    logging.raiseExceptions = False
    handler: logging.Handler
    formatter: logging.Formatter = _OneLine("%(message)s")
    structured = log_format is LogFormat.JSON
    if takes_syslog() if level is None else goes_to_journal(os.environ):
        handler = JournalHandler()
    elif level is None:
        handler = SyslogHandler()
    else:
        handler = logging.StreamHandler(sys.stderr)
        formatter = formatter if structured else _OneLine("clamsmtpd: %(message)s")
    handler.setFormatter(JsonFormatter(formatter) if structured else formatter)
    logger.setLevel(logging.INFO if level is None else _LEVELS[level])
    logger.addHandler(handler)
    if logger.level > logging.DEBUG:
        # Whoever asks for the debug log wants all of it.
        logger.addFilter(Throttle())
    logger.propagate = False
    global _wants_accounts  # noqa: PLW0603 - as logging's own configuration, it is the process's
    _wants_accounts = structured or isinstance(handler, JournalHandler)


_wants_accounts = False


def wants_accounts() -> bool:
    """Tell whether the log is to hold the whole account of each message; the text log of 1.x does not."""
    return _wants_accounts


def finish() -> None:
    """Say what was left out, before the log ends."""
    for bound in logging.getLogger("clamsmtpd").filters:
        if isinstance(bound, Throttle):
            bound.tell()
