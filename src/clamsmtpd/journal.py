"""The journal of systemd as the place of the log: each line with the fields of its event.

The protocol is that of https://systemd.io/JOURNAL_NATIVE_PROTOCOL/: a datagram of fields, NAME=value, or, for a value
with line ends, the name, a line end, its length in 8 octets and the value.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping
from typing import Any

from clamsmtpd.datagrams import DatagramHandler
from clamsmtpd.jsonline import json_line
from clamsmtpd.logevents import ENDED
from clamsmtpd.logjson import fields_of

__all__ = ["SOCKET", "JournalHandler", "goes_to_journal", "takes_syslog"]

SOCKET = "/run/systemd/journal/socket"

#: Where syslog(3) sends to, and what that is a link to where journald takes it (systemd-journald.service(8)).
_SYSLOG, _SYSLOG_OF_JOURNAL = "/dev/log", "/run/systemd/journal/dev-log"

#: Octets of a value; with these, no datagram comes near what a socket takes.
_VALUE_MAX = 8000

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG = 7

#: Octets of an account: of a longer field, journalctl -o json says null.
_ACCOUNT_MAX = 4000

# "mail", syslog(3).
_FACILITY = 2

#: Fields of an event that have a field of the journal of their own; the others are in the line.
_OWN = ("connection", "message", "client", "next_hop", "scanner", "sender", "status", "virus", "verdict", "outcome")


class JournalHandler(DatagramHandler):
    """Sends to journald, with the fields CLAMSMTPD_EVENT, CLAMSMTPD_CONNECTION, CLAMSMTPD_MESSAGE and more.

    With the end of a message comes CLAMSMTPD_ACCOUNT: all that is known of it, in JSON.
    """

    daemon = "journald"

    def __init__(self, path: str | None = None) -> None:
        super().__init__(SOCKET if path is None else path)

    def encode(self, text: str, record: logging.LogRecord) -> bytes:
        """Return the datagram for a record, which is ``text`` as a line."""
        level = record.levelno
        event, own = fields_of(record)
        fields: dict[str, Any] = {
            "MESSAGE": text,
            "PRIORITY": next((number for least, number in _PRIORITIES if level >= least), _DEBUG),
            "SYSLOG_FACILITY": _FACILITY,
            "SYSLOG_IDENTIFIER": "clamsmtpd",
            "SYSLOG_PID": os.getpid(),
            "CLAMSMTPD_EVENT": event,
        }
        fields.update({f"CLAMSMTPD_{name.upper()}": own[name] for name in _OWN if own.get(name)})
        if event == ENDED:
            fields["CLAMSMTPD_ACCOUNT"] = json_line(own, _ACCOUNT_MAX)
        return b"".join(_field(name, value) for name, value in fields.items())


def _field(name: str, value: object) -> bytes:
    octets = str(value).encode("utf-8", "backslashreplace")[:_VALUE_MAX]
    if b"\n" in octets:
        return b"%b\n%b%b\n" % (name.encode(), len(octets).to_bytes(8, "little"), octets)
    return b"%b=%b\n" % (name.encode(), octets)


def goes_to_journal(environment: Mapping[str, str], descriptor: int = 2) -> bool:
    """Tell whether standard error leads to the journal: JOURNAL_STREAM is device and inode of it (systemd.exec(5))."""
    device, _, inode = environment.get("JOURNAL_STREAM", "").partition(":")
    with contextlib.suppress(OSError, ValueError):
        status = os.fstat(descriptor)
        return (status.st_dev, status.st_ino) == (int(device), int(inode))
    return False


def takes_syslog(link: str = _SYSLOG, target: str = _SYSLOG_OF_JOURNAL, sink: str = SOCKET) -> bool:
    """Tell whether what goes to syslog goes to the journal, so that it can as well go there with its fields.

    Where another program has ``/dev/log``, that one it is for whom the administrator wants the log. Whoever reads
    what journald passes on to a syslogd sees the same text as before.
    """
    return os.path.realpath(link) == target and os.path.exists(sink)
