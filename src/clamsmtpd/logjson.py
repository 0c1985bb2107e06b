"""A log for programs: one JSON object for each event (``LogFormat: json``)."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol, runtime_checkable

from clamsmtpd.account import Account, Tag
from clamsmtpd.logevents import OTHER, event_of

__all__ = ["JsonFormatter", "Structured", "fields_of", "fitting"]

#: Characters of a line: it must fit into a datagram to syslogd, with what stands in front of it there.
_LINE_MAX = 7900

#: Characters of a value.
_VALUE_MAX = 2000


@runtime_checkable
class Structured(Protocol):
    """An argument of a log line that has fields of its own."""

    def as_fields(self) -> Mapping[str, Any]:
        """Return them: names that stay, and values that JSON knows."""
        ...


def fields_of(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """Return the name of a record's event, and its fields by name."""
    event = event_of(record.levelno, record.msg)
    if event is None:
        return OTHER, {}
    fields: dict[str, Any] = {}
    arguments = record.args if isinstance(record.args, tuple) else (record.args,) if record.args else ()
    for name, value in zip(event.fields, arguments, strict=False):
        if isinstance(value, Tag):
            fields["connection"] = value.connection
            if value.message:
                fields["message"] = value.message
        elif isinstance(value, Account):
            fields.update(value.as_dict())
        elif isinstance(value, Structured):
            fields.update(value.as_fields())
        else:
            fields[name] = value if isinstance(value, int | float) else _cut(str(value))
    return event.name, fields


def fitting(told: Mapping[str, Any], most: int) -> str:
    """Return values as a JSON object of at most ``most`` characters; texts in it are cut if that has to be.

    Strangers may have filled them, and in JSON one of their octets can become six. What was cut off behind would leave
    nothing that can be read.
    """
    text = json.dumps(told)
    length = _VALUE_MAX
    while len(text) > most and length:
        length //= 2
        text = json.dumps({name: _cut_all(value, length) for name, value in told.items()})
    return text


def _cut_all(value: object, length: int) -> object:
    if isinstance(value, str):
        return value[:length]
    return [_cut_all(one, length) for one in value] if isinstance(value, list) else value


def _cut(text: str) -> str:
    return text if len(text) <= _VALUE_MAX else f"{text[:_VALUE_MAX]} ..."


class JsonFormatter(logging.Formatter):
    """A record as one JSON object on one line, in ASCII.

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
        if event != "message.ended":
            told["text"] = _cut(self._text.format(record))
        return fitting(told, _LINE_MAX)
