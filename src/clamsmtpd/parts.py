"""The leaf parts of a MIME message (RFC 2045, 2046), piece by piece, whatever the octets are.

The structure is found here, line by line; what a header field means is left to the standard library. That has a parser
for whole messages as well (email.feedparser), but it keeps each line as an object, twenty times the octets of short
ones, and compares each with every boundary that is open: with 300 of them, 64 KB take more than a second.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from email.errors import MessageError
from email.header import decode_header, make_header
from email.message import Message
from typing import NamedTuple

__all__ = ["DEPTH_MAX", "NAME_MAX", "OCTETS_MAX", "SECTIONS_MAX", "Part", "Parts", "Piece", "clean_name"]

#: Octets of a message that are looked at.
OCTETS_MAX = 64 * 1024 * 1024

#: Header sections that are looked at: those of the parts, of messages in messages, and of what holds them.
SECTIONS_MAX = 1000

#: Multiparts within each other; what is deeper is one part.
DEPTH_MAX = 50

#: Characters of a file name. Of a longer one the end stays, which says what it would be opened with.
NAME_MAX = 200

_NAME_END = 40

# Octets of a header field: the standard library takes time by the square of them, 8 ms for so many. A file name of 255
# octets, each written as three, has room.
_FIELD_MAX = 2048

# Octets of a file name before it is decoded.
_RAW_NAME_MAX = 2000

# RFC 6838 section 4.2 allows a type 127 characters on each side.
_TYPE_MAX = 255

# RFC 2046 section 5.1.1 allows 70; a line of them must fit into _LINE_MAX.
_BOUNDARY_MAX = 500

# Octets of a line that may be a boundary's, of which RFC 2046 allows 70 and white space. A longer one is none.
_LINE_MAX = 1000

_FIELD = re.compile(rb"[!-9;-~]+[ \t]*:")
_WANTED = re.compile(rb"content-(type|disposition|transfer-encoding)[ \t]*:", re.IGNORECASE)
_TYPE = re.compile(r"[\w!#$&^.+-]+/[\w!#$&^.+-]+", re.ASCII)
_BLANK = b" \t\r\n"
_FOLD = (b" ", b"\t")
_NO_LINE = (b"\r\n", b"\n")

_TEXT, _MESSAGE = "text/plain", "message/rfc822"

#: Types of messages within a message, which have parts of their own.
_MESSAGES = frozenset({_MESSAGE, "message/global", "message/news"})

# What may yet become a line end and the two hyphens of a boundary.
_TAILS = (b"\r\n-", b"\r\n", b"\n-", b"\r", b"\n")

_NOT_BASE64 = bytes(set(range(256)) - set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="))

# What the standard library makes of fields that nobody would write: it raises no error of its own for most.
_UNREADABLE = (LookupError, TypeError, ValueError, OSError, ImportError, MessageError)


class Part(NamedTuple):
    """A leaf of a message. ``number`` counts them from 1; ``name`` is the file's, cleaned, empty if it has none."""

    number: int
    name: str
    media_type: str

    @property
    def label(self) -> str:
        """What a person would call it."""
        return self.name or f"part {self.number} ({self.media_type})"


class Piece(NamedTuple):
    """The next octets of a part, decoded. Those of a part come in their order, and nothing of another in between."""

    part: Part
    octets: bytes
    last: bool


class _Plain:
    """Decodes nothing."""

    def feed(self, octets: bytes) -> bytes:
        return octets

    def finish(self) -> bytes:
        return b""


class _Base64:
    """Decodes base64 (RFC 2045 section 6.8), as far as the padding; octets of no meaning are passed over."""

    def __init__(self) -> None:
        self._left = b""
        self._over = False

    def feed(self, octets: bytes) -> bytes:
        if self._over:
            return b""
        text, padding, _ = (self._left + octets.translate(None, _NOT_BASE64)).partition(b"=")
        self._over = bool(padding)
        whole = len(text) - len(text) % 4
        self._left = text[whole:]
        decoded = binascii.a2b_base64(text[:whole])
        return decoded + self.finish() if padding else decoded

    def finish(self) -> bytes:
        # One digit alone is no octet.
        left, self._left = self._left, b""
        return binascii.a2b_base64(left + b"==") if len(left) > 1 else b""


class _QuotedPrintable:
    """Decodes quoted-printable (RFC 2045 section 6.7)."""

    def __init__(self) -> None:
        self._left = b""

    def feed(self, octets: bytes) -> bytes:
        text = self._left + octets
        # No escape, and no line end behind a soft one, may be cut: they are three octets at most.
        cut = text.rfind(b"=", max(len(text) - 2, 0))
        cut = len(text) if cut < 0 else cut
        self._left = text[cut:]
        return binascii.a2b_qp(text[:cut])

    def finish(self) -> bytes:
        return binascii.a2b_qp(self._left)


_DECODERS: dict[str, type[_Plain | _Base64 | _QuotedPrintable]] = {
    "base64": _Base64,
    "quoted-printable": _QuotedPrintable,
}


class Parts:
    """Finds the parts of one message. Without any header field of MIME, its text is the one part that there is."""

    def __init__(self) -> None:
        self._left = OCTETS_MAX
        self._sections = 0
        self._count = 0
        # Octets that cannot be understood yet: an unfinished line, and the line end in front of it.
        self._held = b""
        # The boundaries of the multiparts that are open, from the outermost, and what a part is that does not say it.
        self._open: list[tuple[bytes, str]] = []
        # What the line of a boundary means: which one, and whether it is the last.
        self._lines: dict[bytes, tuple[int, bool]] = {}
        # What follows is a part's, nobody's, or a header section.
        self._part: Part | None = None
        self._decoder: _Plain | _Base64 | _QuotedPrintable = _Plain()
        self._in_header = True
        # Of the header section: whether a line has come, what it is without a type, and its fields that matter.
        self._begun = False
        self._default = _TEXT
        self._fields: dict[bytes, bytearray] = {}
        self._field: bytearray | None = None
        # Whether a header line goes on that was too long to be held.
        self._long = False
        # Whether what comes next in a body stands at the start of a line, without the line end in front of it.
        self._fresh = True

    @property
    def exhausted(self) -> bool:
        """Whether there is more than is looked at. A part that is cut by this gets no last piece."""
        return self._left < 0 or self._sections > SECTIONS_MAX

    def feed(self, data: bytes) -> Iterator[Piece]:
        """Take the next octets of the message, without the dots that SMTP stuffs in; yield what has become known.

        They are taken as far as what is yielded is: to the end only with the end of the iterator.
        """
        self._left -= len(data)
        return self._go_on(data, last=False)

    def finish(self) -> Iterator[Piece]:
        """Take the message as complete; yield the rest."""
        yield from self._go_on(b"", last=True)
        if self._in_header and (self._begun or not self._sections):
            self._end_header()
        if not self.exhausted:
            yield from self._end_part()

    def _go_on(self, data: bytes, *, last: bool) -> Iterator[Piece]:
        window, self._held = self._held + data, b""
        at = 0
        while at < len(window) and not self.exhausted:
            if self._in_header:
                at, mark = self._read_header(window, at, last=last)
            else:
                stop, end, mark = self._find_boundary(window, at, last=last)
                if stop > at:
                    self._fresh = False
                    if self._part is not None:
                        yield Piece(self._part, self._decoder.feed(window[at:stop]), last=False)
                if mark is None:
                    self._held = window[stop:]
                    return
                at = end
            if mark is not None:
                yield from self._end_part()
                self._cross(*mark)

    def _end_part(self) -> Iterator[Piece]:
        if self._part is not None:
            yield Piece(self._part, self._decoder.finish(), last=True)
            self._part = None

    # ---- bodies -------------------------------------------------------------------------------

    def _find_boundary(self, window: bytes, at: int, *, last: bool) -> tuple[int, int, tuple[int, bool] | None]:
        """Return where the text from ``at`` on ends, where the line of the boundary ends, and what that means.

        Without a boundary, what stands behind the end of the text is to be held.
        """
        whole = len(window)
        if not self._open:
            return whole, whole, None
        start = at
        if self._fresh and window.startswith(b"--", at):
            stop = line = at
        elif self._fresh and not last and window[at:] == b"-":
            return at, at, None
        else:
            stop, line = self._find_hyphens(window, at, start)
        while line >= 0:
            end = window.find(b"\n", line, line + _LINE_MAX)
            if end < 0 and whole - line < _LINE_MAX:
                if not last:
                    return stop, stop, None
                end = whole - 1
            mark = self._lines.get(window[line : end + 1].rstrip(_BLANK)) if end >= 0 else None
            if mark is not None:
                return stop, end + 1, mark
            stop, line = self._find_hyphens(window, at, line)
        if not last:
            for tail in _TAILS:
                if window.endswith(tail, at):
                    return whole - len(tail), whole, None
        return whole, whole, None

    @staticmethod
    def _find_hyphens(window: bytes, at: int, start: int) -> tuple[int, int]:
        """Return where the next line that starts like a boundary's has its line end in front, and where it starts."""
        found = window.find(b"\n--", start)
        stop = found - 1 if found > at and window[found - 1 : found] == b"\r" else found
        return stop, found + 1 if found >= 0 else -1

    def _cross(self, index: int, last: bool) -> None:  # noqa: FBT001 - as it stands in the table
        """Go past a boundary: the next part's header section begins, or the multipart has ended."""
        del self._open[index if last else index + 1 :]
        self._note_boundaries()
        if last:
            self._in_header, self._fresh = False, True
        else:
            self._begin_header(self._open[-1][1])

    def _note_boundaries(self) -> None:
        # Where an inner one is the same as an outer one, it is the inner one's.
        self._lines = {}
        for index, (boundary, _) in enumerate(self._open):
            self._lines[b"--" + boundary + b"--"] = index, True
            self._lines[b"--" + boundary] = index, False

    # ---- header sections ----------------------------------------------------------------------

    def _begin_header(self, default: str) -> None:
        self._in_header = True
        self._begun = self._long = False
        self._default = default
        self._fields = {}
        self._field = None

    def _read_header(self, window: bytes, at: int, *, last: bool) -> tuple[int, tuple[int, bool] | None]:
        """Read lines from ``at`` on; return where to go on, and what the boundary means that was come upon."""
        while at < len(window):
            end = window.find(b"\n", at) + 1
            if not end:
                if not last and not self._long and len(window) - at < _LINE_MAX:
                    self._held = window[at:]
                    return len(window), None
                end = len(window)
            line = window[at:end]
            if self._long:
                self._append(line)
            else:
                mark = self._lines.get(line.rstrip(_BLANK))
                if mark is not None:
                    if self._begun:
                        self._end_header()
                    return end, mark
                self._begun = True
                if line in _NO_LINE:
                    self._end_header()
                    return end, None
                if not self._take(line):
                    self._end_header()
                    return at, None
            self._long = not line.endswith(b"\n")
            at = end
        return at, None

    def _take(self, line: bytes) -> bool:
        """Take a line of a header section; tell whether it can be one."""
        if line[:1] in _FOLD:
            self._append(line)
        elif _FIELD.match(line):
            self._field = None
            wanted = _WANTED.match(line)
            if wanted and (name := wanted[1].lower()) not in self._fields:
                self._field = self._fields[name] = bytearray()
                self._append(line[wanted.end() :])
        elif line.startswith(b"From "):
            self._field = None
        else:
            return False
        return True

    def _append(self, line: bytes) -> None:
        if self._field is not None:
            self._field += line.rstrip(b"\r\n")[: _FIELD_MAX - len(self._field)]

    def _end_header(self) -> None:
        """Understand a header section: what follows is parts, another header section, or a part."""
        self._sections += 1
        message = Message()
        message.set_default_type(self._default)
        for name, value in self._fields.items():
            message[f"Content-{name.decode()}"] = value.decode("utf-8", "replace")
        media_type = _media_type(message, self._default)
        encoding = str(message.get("Content-Transfer-Encoding", "")).strip().lower()
        self._in_header, self._fresh = False, True
        boundary = _boundary(message) if media_type.startswith("multipart/") else b""
        if boundary and len(self._open) < DEPTH_MAX:
            self._open.append((boundary, _MESSAGE if media_type == "multipart/digest" else _TEXT))
            self._note_boundaries()
        elif media_type in _MESSAGES and encoding not in _DECODERS:
            self._begin_header(_TEXT)
        else:
            self._count += 1
            self._part = Part(self._count, _file_name(message), media_type)
            self._decoder = _DECODERS.get(encoding, _Plain)()


def _media_type(message: Message, default: str) -> str:
    found = message.get_content_type()
    return found if len(found) <= _TYPE_MAX and _TYPE.fullmatch(found) else default


def _boundary(message: Message) -> bytes:
    try:
        boundary = (message.get_boundary() or "").encode("utf-8", "surrogateescape")
    except _UNREADABLE:
        return b""
    return boundary if len(boundary) <= _BOUNDARY_MAX else b""


def _file_name(message: Message) -> str:
    """Return the name in Content-Disposition (RFC 2183, 2231), or else in Content-Type."""
    try:
        name = str(message.get_filename(""))[:_RAW_NAME_MAX]
        # Not there by the standard (RFC 2047 section 5), but in half of all mail.
        if "=?" in name:
            name = str(make_header(decode_header(name)))
    except _UNREADABLE:
        return ""
    return clean_name(name)


def clean_name(name: str) -> str:
    """Return a file name that a stranger gave as it can be shown to anybody, empty if nothing is left of it.

    Without a path, on one line, at most ``NAME_MAX`` characters; what is no letter, digit, sign or blank, such as
    what changes the direction of writing, becomes ``?``.
    """
    name = re.split(r"[/\\]", name)[-1]
    name = "".join(char if char.isprintable() else "?" for char in name).strip()
    if len(name) > NAME_MAX:
        name = f"{name[: NAME_MAX - _NAME_END - 3]}...{name[-_NAME_END:]}"
    return "" if name in (".", "..") else name
