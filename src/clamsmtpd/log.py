"""Where log lines go and how strangers' octets are shown in them."""

from __future__ import annotations

import logging
import logging.handlers
import os
import re
import socket
import sys
import time

from clamsmtpd.throttle import Throttle
from clamsmtpd.values import Clean, Envelope, Infected, Oversize, Verdict

__all__ = ["configure", "describe", "escape", "escape_field", "finish", "message_line", "wants_accounts"]

#: Levels of -d: 0 shows only why the program ends, 4 the whole dialogue (clamsmtpd(8)).
_LEVELS = (logging.CRITICAL, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)

#: Characters of a message line's recipients; syslogd cuts lines at 8 KB.
_RECIPIENTS_MAX = 7000

#: Characters of any other field: no path of RFC 5321 is as long, and the status must never be what is cut off.
_FIELD_MAX = 500

#: Octets of a datagram to syslogd.
_DATAGRAM_MAX = 8000

#: Seconds without a try to reach a syslogd that is not there: mail goes on as fast as with one.
_RETRY_INTERVAL = 1.0

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


class SyslogHandler(logging.Handler):
    """Sends to the local syslogd by RFC 3164, facility mail, and never waits for it.

    A syslogd that has stopped reading must not stop the mail. What could not be sent is counted, and
    told once the way is free again.
    """

    def __init__(self, path: str = "/dev/log") -> None:
        super().__init__()
        self._path = path
        self._socket: socket.socket | None = None
        self._lost = 0
        self._next_try = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record; count it as lost if it cannot be sent at once."""
        if self._lost:
            lost = f"{self._lost} log lines were lost, syslogd did not take them"
            if not self._send(logging.WARNING, lost):
                self._lost += 1
                return
            self._lost = 0
        if not self._send(record.levelno, self.format(record)):
            self._lost += 1

    def _send(self, level: int, text: str) -> bool:
        syslog = logging.handlers.SysLogHandler
        if level >= logging.ERROR:
            severity = syslog.LOG_ERR
        elif level >= logging.WARNING:
            severity = syslog.LOG_WARNING
        else:
            severity = syslog.LOG_INFO if level >= logging.INFO else syslog.LOG_DEBUG
        priority = syslog.LOG_MAIL << 3 | severity
        data = f"<{priority}>clamsmtpd[{os.getpid()}]: {text}".encode("utf-8", "backslashreplace")
        data = data[:_DATAGRAM_MAX]
        if self._socket is not None:
            try:
                self._socket.send(data)
            except BlockingIOError:
                return False
            except OSError:
                # It may have been started again, with a new socket.
                self.close_socket()
            else:
                return True
        return self._connect_and_send(data)

    def _connect_and_send(self, data: bytes) -> bool:
        now = time.monotonic()
        if now < self._next_try:
            return False
        try:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._socket.connect(self._path)
            self._socket.send(data)
        except BlockingIOError:
            return False
        except OSError:
            self.close_socket()
            self._next_try = now + _RETRY_INTERVAL
            return False
        return True

    def close_socket(self) -> None:
        """Close the socket; the next record opens a new one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        """Release the socket for good."""
        self.close_socket()
        super().close()


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


def configure(level: int | None) -> None:
    """Send the log to standard error, from ``level`` 0 (least) to 4; to syslog, facility mail, for None."""
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
    if level is None:
        handler = SyslogHandler()
        handler.setFormatter(_OneLine("%(message)s"))
        logger.setLevel(logging.INFO)
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_OneLine("clamsmtpd: %(message)s"))
        logger.setLevel(_LEVELS[level])
    logger.addHandler(handler)
    if logger.level > logging.DEBUG:
        # Whoever asks for the debug log wants all of it.
        logger.addFilter(Throttle())
    logger.propagate = False


def wants_accounts() -> bool:
    """Tell whether the log is to hold the whole account of each message; the text log of 1.x does not."""
    return False


def finish() -> None:
    """Say what was left out, before the log ends."""
    for bound in logging.getLogger("clamsmtpd").filters:
        if isinstance(bound, Throttle):
            bound.tell()
