"""The text of a message on its way through DATA: where it ends, and where its header section ends.

All searches run at the speed of the C library over whole chunks; nothing here looks at single lines
or octets, except at the border between two chunks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

__all__ = ["EndOfData", "HeaderSection", "Stuffing", "Unstuffing", "unstuff"]

# Octets that can be part of an end of data, whatever a server takes for one.
_EDGE = b"\0.\r\n"
_NULS = re.compile(rb"\0+")

# A dot alone on a line, for a server that takes a bare CR or LF for the end of a line or drops NUL
# octets. The real end, CRLF . CRLF, matches too and is told apart afterwards.
_LONE_DOT = re.compile(rb"[\r\n]\0*\.\0*[\r\n]")

# With runs of NUL cut to one, the longest unfinished lone dot is CR LF NUL . NUL CR.
_LONGEST_EDGE = 6


class EndOfData:
    """Finds the end of a message in DATA (RFC 5321 section 4.1.1.4): CRLF . CRLF and nothing else.

    ``dots`` counts the lines that start with a dot, which is one that is not the author's (RFC 5321
    section 4.5.2). ``deceptive`` turns true
    when there is a lone dot between line ends of which one is not CRLF: a server that is lenient there
    would end the message early and read the rest as commands (SMTP smuggling).
    """

    __slots__ = ("_edge", "_held", "deceptive", "dots")

    def __init__(self) -> None:
        # The CRLF that ended the DATA command begins the first line of the text
        # (RFC 5321 section 4.1.1.4: it is part of the end of an empty message).
        self._edge = b"\r\n"
        self._held = b""
        self.dots = 0
        self.deceptive = False

    @property
    def stuffed(self) -> bool:
        """Whether removing the dots changes the text."""
        return self.dots > 0

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """Take the next octets; return the text in them and what stands behind the end, if it came.

        The text goes up to and includes the CRLF in front of the final dot. A dot that may yet turn
        out to be the final one is held back until the next call. The second item is None as long as
        the end has not come.
        """
        if not data:
            return b"", None
        held = self._held
        if self._edge and data[0] in _EDGE:
            window = self._edge + data
            begin = len(self._edge) - len(held)
        else:
            # No end can lie across the border, so a chunk of many octets need not be copied.
            if held:
                self.dots += 1
                self.deceptive = self.deceptive or held == b".\r"
            window = held + data if held else data
            begin = 0
        end = self._find_end(window)
        if end >= 0:
            self.dots += window.count(b"\r\n.", max(begin - 2, 0), end)
            return window[begin:end], window[end + 3 :]
        held = self._hold(window)
        stop = len(window) - len(held)
        if b"." in window:
            # Those in front of ``begin`` have been counted.
            self.dots += window.count(b"\r\n.", max(begin - 2, 0), stop)
        if begin == 0 and not held:
            return window, None
        return window[begin:stop], None

    def _find_end(self, window: bytes) -> int:
        """Return the index of the final dot, or -1."""
        # Base64 has no dots, and looking for one octet is some thirty times as fast as for two.
        if b"." not in window:
            return -1
        first = window.find(b"\n.")
        bare = window.find(b"\r.")
        if b"\0" in window and b"\0." in window:
            first = 0
        elif bare >= 0:
            first = min(first, bare) if first >= 0 else bare
        elif first < 0:
            return -1
        elif window[first - 1 : first + 4] == b"\r\n.\r\n":
            # In most messages, the first line with a dot in front is the end.
            return first + 1
        for match in _LONE_DOT.finditer(window, first):
            at = match.start()
            if at and window[at - 1 : at + 4] == b"\r\n.\r\n":
                return at + 1
            if match.end() == len(window) and window[at - 1 : at + 3] == b"\r\n.\r":
                # Whether that is the end, the next octet tells.
                continue
            self.deceptive = True
        return -1

    def _hold(self, window: bytes) -> bytes:
        """Remember how the window ends; return the part of it that may belong to the final dot."""
        if window[-1] not in _EDGE:
            self._edge = self._held = b""
            return b""
        tail = window[-64:]
        kept = tail.rstrip(_EDGE)
        if not kept:
            tail = window
            kept = tail.rstrip(_EDGE)
        self._edge = _NULS.sub(b"\0", tail[len(kept) :])[-_LONGEST_EDGE:]
        if self._edge.endswith(b"\r\n."):
            self._held = b"."
        elif self._edge.endswith(b"\r\n.\r"):
            self._held = b".\r"
        else:
            self._held = b""
        return self._held


# RFC 5322 section 2.2: a field name is printable ASCII without a colon, on a line of 998 octets at most;
# section 4.5.8 lets old mail have blanks in front of the colon; without a limit to them, what a line is would
# depend on how it is cut into segments. Lines end at LF here, with a CR before it or not: a next hop that takes a
# bare LF for the end of a line then finds our field where it looks for one, and for any other next hop it stands as
# well there as elsewhere.
_START = rb"[!-9;-~]{1,998}+[ \t]{0,998}+:|[ \t]"
_LINES = re.compile(rb"(?:(?:%b)[^\n]*+\n)*+" % _START)
_LINE_START = re.compile(_START)
_UNDECIDED = re.compile(rb"[!-9;-~]{0,998}+[ \t]{0,998}+\Z")

# One of lines that end at LF, with the line end in front of it.
_EMPTY_LINE = re.compile(rb"\n\r?\n")

# Programs that feed an mbox file to SMTP may leave its "From " line on top. MTAs step over it, and so
# must we: a field in front of it would make it, and with it the whole header section, body text.
_MBOX_START = re.compile(rb">?From [ \t]*+[^: \t]")


class HeaderSection:
    """Finds the end of the header section (RFC 5322 section 2.1) while the text arrives.

    ``top`` is where a trace field goes, ``end`` where any other field goes; both are octets from the
    start of the text, dots as on the wire. Both are 0 for a message without a header section and
    for one without any text. ``blank_first`` says that the text starts with a blank: a field in
    front of it must be followed by an empty line, or it would swallow the first line of the text.

    ``reach`` is where the section ends for the most lenient reader: in front of the first empty line, where lines
    end at LF; None as long as there is none. Such a reader steps over lines that are no fields, and finds more of them
    behind our ``end``; Dovecot is one. Nor can a line that is folded be told from one that is not before its stuffed
    dot is gone.
    """

    __slots__ = ("_done", "_mbox", "_open", "_partial", "_position", "_started", "blank_first", "end", "reach", "top")

    def __init__(self) -> None:
        self.top = 0
        self.end = 0
        self.reach: int | None = None
        self.blank_first = False
        # Only the empty line is looked for any more.
        self._done = False
        self._started = False
        # The line at hand belongs to the section; only its end is missing.
        self._open = False
        self._mbox = False
        # The start of a line that may or may not become a field; in the end, what may belong to the empty line.
        self._partial = b""
        # How many octets of the text came before those in hand.
        self._position = 0

    def feed(self, text: bytes) -> None:
        """Take the next octets of the text; costs nothing once an empty line has come."""
        if self.reach is not None or not text:
            return
        if self._done:
            self._find_empty_line(text)
            return
        window = self._partial + text if self._partial else text
        self._partial = b""
        if not self._started and window[0] in b" \t":
            self.blank_first = True
            self._finish(window, 0)
            return
        if self._undecided(window, 0) and not self._open:
            self._partial = window
            return
        if not self._started:
            self._started = True
            self._open = self._mbox = _MBOX_START.match(window) is not None
        at = 0
        if self._open:
            at = window.find(b"\n") + 1
            if not at:
                self._position += len(window)
                return
            self._open = False
            if self._mbox:
                self._mbox = False
                self.top = self._position + at
        # Of zero lines and more, so that there always is a match.
        at = _LINES.match(window, at).end()  # type: ignore[union-attr]
        self.end = self._position + at
        if at == len(window):
            self._position += at
        elif _LINE_START.match(window, at):
            self._open = True
            self._position += len(window)
        elif self._undecided(window, at):
            self._partial = window[at:]
            self._position += at
        else:
            self._finish(window, at)

    def _finish(self, window: bytes, at: int) -> None:
        """Take the line at ``at`` as the first that is no part of the section."""
        self._position += at
        if window.startswith((b"\r\n", b"\n"), at):
            self.reach = self._position
        else:
            self._done = True
            # The line end in front of it, or that of the command in front of the text.
            self._partial = b"\n"
            self._find_empty_line(window[at:])

    def _find_empty_line(self, text: bytes) -> None:
        window = self._partial + text
        found = _EMPTY_LINE.search(window)
        if found is not None:
            self.reach = self._position - len(self._partial) + found.start() + 1
        else:
            self._position += len(text)
            self._partial = window[-2:]

    @staticmethod
    def _undecided(window: bytes, at: int) -> bool:
        return _UNDECIDED.match(window, at) is not None


class Stuffing:
    """Puts a dot in front of each line that starts with one (RFC 5321 section 4.5.2), piece by piece."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        # A line starts where the text does.
        self._tail = b"\r\n"

    @property
    def ended(self) -> bool:
        """Whether the text so far ends with a whole line, or is empty."""
        return self._tail == b"\r\n"

    def feed(self, text: bytes) -> bytes:
        """Return the next octets as they go over the wire."""
        if not text:
            return b""
        window = self._tail + text
        known = len(self._tail)
        self._tail = window[-2:]
        return window.replace(b"\r\n.", b"\r\n..")[known:] if b"." in text else text


class Unstuffing:
    """Removes the first dot of each line that starts with one (RFC 5321 section 4.5.2), piece by piece.

    A line starts where the text does, and behind each CRLF.
    """

    __slots__ = ("_tail", "_virtual")

    def __init__(self) -> None:
        # What may belong to a CRLF with a dot behind it. At first it is the CRLF of the DATA command, in front of the
        # text and no part of it.
        self._tail = b"\r\n"
        self._virtual = len(self._tail)

    def feed(self, data: bytes) -> bytes:
        """Take the next octets as on the wire; return octets of the text, without those that are held back."""
        window = self._tail + data
        kept = 2 if window.endswith(b"\r\n") else window.endswith(b"\r")
        body = window[: len(window) - kept]
        self._tail = window[len(body) :]
        text = body.replace(b"\r\n.", b"\r\n")
        if body:
            text, self._virtual = text[self._virtual :], 0
        return text

    def finish(self) -> bytes:
        """Return what has been held back, once: no more comes."""
        tail, self._tail = self._tail, b""
        return b"" if self._virtual else tail


def unstuff(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Remove the first dot of each line that starts with one from a text in ``pieces``, as on the wire."""
    unstuffing = Unstuffing()
    yield from filter(None, map(unstuffing.feed, pieces))
    if tail := unstuffing.finish():
        yield tail
