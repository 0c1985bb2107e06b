"""The header field that marks scanned mail (setting Header), and fields of strangers that look like ours."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime

from clamsmtpd.templates import header_lines

__all__ = ["UNTRUSTED", "ForgedFields", "HeaderTemplate", "OwnFields", "rfc5322_date"]

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


#: What is put in front of the name of a field that only we may add, and did not.
UNTRUSTED = b"X-Untrusted-"

# The names of fields that we add whatever the setting Header says.
_ALWAYS_OURS = (b"x-virus-infected", b"x-virus-unscanned")
_START = b"x-virus-"

# The fields of RFC 5322 section 3.6, and those of MIME (RFC 2045 section 3). They are everybody's, even where a
# template adds one of them: without a From or a Content-Type of its own, a message is not what it was.
_EVERYBODYS = frozenset(
    b"bcc cc comments date from in-reply-to keywords message-id received references reply-to resent-bcc resent-cc "
    b"resent-date resent-from resent-message-id resent-reply-to resent-sender resent-to return-path sender subject to "
    b"mime-version content-type content-transfer-encoding content-id content-description content-disposition".split()
)


class OwnFields:
    """The header fields that nobody but us is to add: X-Virus-Infected, X-Virus-Unscanned and those of a template."""

    __slots__ = ("longest", "names", "needles", "pattern")

    def __init__(self, template: str) -> None:
        names = [
            line.partition(":")[0].rstrip(" \t").lower() for line in header_lines(template) if line[0] not in " \t"
        ]
        ours = {*_ALWAYS_OURS, *(name.encode("ascii") for name in names)} - _EVERYBODYS
        #: Their names, in lower case.
        self.names = tuple(sorted(ours))
        #: Octets of which some are in every such field. To search for a few octets costs less than a pattern, and to
        #: search once less than three times.
        self.needles = tuple({_START if name.startswith(_START) else name for name in ours})
        self.longest = max(map(len, ours))
        # A line may start behind a bare CR or LF too: there are readers for whom it does. It may have a dot in front,
        # which the next hop will take away. Obsolete syntax lets blanks stand in front of the colon (RFC 5322 section
        # 4.5). A NUL within a name is not looked for: the readers that drop them are gone.
        self.pattern = re.compile(rb"[\r\n]\.?(%b)[ \t]*+(?::|(\Z))" % b"|".join(map(re.escape, self.names)))


class ForgedFields:
    """Finds the fields in a header section that pretend to be ``own``, piece by piece.

    ``offsets`` are where their names start, in octets from the start of the text as on the wire.
    """

    __slots__ = ("_own", "_pending", "_position", "_tail", "offsets")

    def __init__(self, own: OwnFields) -> None:
        self.offsets: list[int] = []
        self._own = own
        # A line starts where the text does. Later, as much as a name that goes on in the next piece needs.
        self._tail = b"\n"
        self._position = 0
        # Where a name starts of which only the colon is missing, or -1.
        self._pending = -1

    def feed(self, text: bytes) -> None:
        """Take the next octets of the section."""
        if self._pending >= 0:
            rest = text.lstrip(b" \t")
            if not rest:
                self._position += len(text)
                self._tail = b" "
                return
            if rest[0] == ord(":"):
                self.offsets.append(self._pending)
            self._pending = -1
        window = self._tail + text.lower()
        start = self._position - len(self._tail)
        self._position += len(text)
        self._tail = window[-self._own.longest - 2 :]
        for needle in self._own.needles:
            if needle in window:
                break
        else:
            return
        for found in self._own.pattern.finditer(window):
            offset = start + found.start(1)
            if found.start(2) >= 0:
                self._pending = offset
            elif not self.offsets or offset > self.offsets[-1]:
                self.offsets.append(offset)
