"""A log for programs: one JSON object for each event (``LogFormat: json``)."""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime
from typing import Any

from clamsmtpd.account import Account, Tag
from clamsmtpd.jsonline import json_line
from clamsmtpd.logevents import ENDED, OTHER, event_of

__all__ = ["JsonFormatter", "fields_of"]

#: Characters of a line: it must fit into a datagram to syslogd, with what stands in front there.
_LINE_MAX = 7900


def fields_of(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """Return the name of a record's event, and its fields by name.

    An argument with a method ``as_fields`` has more than one: names that stay, and values that JSON knows.
    """
    event = event_of(record.levelno, record.msg)
    if event is None:
        return OTHER, {}
    fields: dict[str, Any] = {}
    # Where a line does not say in its text what it is about.
    if (tag := getattr(record, "tag", None)) is not None:
        fields.update(_ids(tag))
    arguments = record.args if isinstance(record.args, tuple) else (record.args,) if record.args else ()
    for name, value in zip(event.fields, arguments, strict=False):
        if isinstance(value, Tag):
            fields.update(_ids(value))
        elif isinstance(value, Account):
            fields.update(value.as_dict())
        elif isinstance(value, str | int | float):
            fields[name] = value
        elif (parts := getattr(value, "as_fields", None)) is not None:
            fields.update(parts())
        else:
            fields[name] = str(value)
    return event.name, fields


def _ids(tag: Tag) -> dict[str, str]:
    return {"connection": tag.connection, **({"message": tag.message} if tag.message else {})}


class JsonFormatter(logging.Formatter):
    """A record as one JSON object on one line, in ASCII, that fits into a datagram to syslogd.

    Each has ``time`` (RFC 3339, UTC), ``level``, ``event`` and ``pid``, then the event's own fields, and last ``text``,
    the line as it is in the text log, except for the account of a message, which is in no text log.
    """

    def __init__(self, text: logging.Formatter) -> None:
        super().__init__()
        self._text = text

    def format(self, record: logging.LogRecord) -> str:
        """Return the object."""
        event, fields = fields_of(record)
        # The process is asked for: logging leaves it out of records, for speed.
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "event": event,
            "pid": os.getpid(),
            **fields,
        }
        if event != ENDED:
            told["text"] = self._text.format(record)
        return json_line(told, _LINE_MAX)
