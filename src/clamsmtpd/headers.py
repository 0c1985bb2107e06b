"""The header field that marks scanned mail (setting Header), from its template."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime

from clamsmtpd.templates import header_lines

__all__ = ["HeaderTemplate", "rfc5322_date"]

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

# Not the line end behind a percent sign that is the last of its line.
_SYMBOL = re.compile(r"%([^\r\n])")


def rfc5322_date(now: datetime) -> str:
    """Format an aware date and time by RFC 5322 section 3.3, in the time zone that it carries.

    strftime will not do: it would name days and months in the language of the locale.
    """
    offset = now.utcoffset()
    minutes = int(offset.total_seconds() // 60) if offset else 0
    zone = f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}{abs(minutes) % 60:02d}"
    date = f"{_DAYS[now.weekday()]}, {now.day} {_MONTHS[now.month - 1]} {now.year}"
    name = now.tzname()
    # The name is a comment, and may hold nothing that ends one.
    comment = f" ({name})" if name and name.isalnum() and name.isascii() else ""
    return f"{date} {now:%H:%M:%S} {zone}{comment}"


class HeaderTemplate:
    """A template of a header field, ready to be filled in. It has passed the check of the settings.

    ``%i`` is the client's address, ``%l`` the local address, ``%d`` the date, ``%%`` a percent sign; an
    unknown symbol stands for nothing, as it always has. Whatever way the template writes its line
    ends, the field has CRLF; a further line is folded (RFC 5322 section 2.2.3) or a field of its own.
    """

    __slots__ = ("_constant", "_text", "on_top")

    def __init__(self, template: str) -> None:
        self._text = "".join(line + "\r\n" for line in header_lines(template))
        #: A trace field goes on top of the message (RFC 5321 section 4.4).
        self.on_top = self._text.lower().startswith("received:")
        # Most templates, such as the default, are the same for every message.
        self._constant = _encode(self._text) if "%" not in self._text else None

    def render(self, *, client: str, local: str, clock: Callable[[], datetime]) -> bytes:
        """Return the field with its final CRLF; nothing for an empty template.

        ``clock`` gives the time, in a time zone, if the template wants it.
        """
        if self._constant is not None:
            return self._constant
        values = {"i": client, "l": local, "%": "%"}
        if "%d" in self._text:
            values["d"] = rfc5322_date(clock())
        return _encode(_SYMBOL.sub(lambda found: values.get(found.group(1), ""), self._text))


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
