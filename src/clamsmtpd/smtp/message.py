"""A message while it comes in: by DATA or in chunks, into the form in which the next hop will take it."""

from __future__ import annotations

from clamsmtpd.smtp.body import EndOfData, HeaderSection, Stuffing

__all__ = ["Message"]


class Message:
    """What is known of the message that a client is sending.

    ``chunked``: it comes by BDAT, as it is (RFC 3030). ``raw``: it goes on by BDAT as well; otherwise it goes on by
    DATA, and the text is kept as that wants it: dots stuffed, ending in CRLF. ``limit`` is the most octets that it
    may have, None for any number.
    """

    __slots__ = ("_end", "_limit", "_stuffing", "chunked", "failure", "header", "length", "raw", "size")

    def __init__(self, *, chunked: bool = False, raw: bool = False, limit: int | None = None) -> None:
        self.chunked = chunked
        self.raw = raw
        self.header = HeaderSection()
        #: The reply to a message that cannot be taken; what still comes of it is read and thrown away.
        self.failure = b""
        #: Octets of the text in the form in which it goes on.
        self.length = 0
        #: Octets of the message as RFC 1870 section 5 counts them: without stuffed dots.
        self.size = 0
        self._limit = limit
        self._end = EndOfData()
        self._stuffing = Stuffing()

    @property
    def stuffed(self) -> bool:
        """Whether some line of the text, in the form in which it goes on, starts with a dot that is not its own."""
        return self._end.stuffed

    @property
    def header_reach(self) -> int:
        """How many octets of the text may be header section, for the most lenient reader."""
        reach = self.header.reach
        return self.length if reach is None else reach

    @property
    def deceptive(self) -> bool:
        """Whether a lenient next hop could see the end of the message in the midst of it."""
        return self._end.deceptive

    @property
    def too_large(self) -> bool:
        """Whether there is more of it than the next hop takes."""
        return self._limit is not None and self.size > self._limit

    def would_be_too_large(self, octets: int) -> bool:
        """Tell whether a chunk of ``octets`` would make it more than the next hop takes."""
        return self._limit is not None and self.size + octets > self._limit

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """Take the next octets behind DATA; return the text in them and what stands behind the final dot.

        The second item is None as long as the final dot has not come.
        """
        text, rest = self._end.feed(data)
        self._add(text)
        self.size = self.length - self._end.dots
        return text, rest

    def feed_chunk(self, data: bytes) -> bytes:
        """Take the next octets of a chunk; return them in the form in which they go on."""
        self.size += len(data)
        text = data if self.raw else self._stuffed(data)
        self._add(text)
        return text

    def finish_chunks(self) -> bytes:
        """Return what has to stand behind the last chunk: DATA ends a message at the end of a line only."""
        if self.raw or self._stuffing.ended:
            return b""
        text = self._stuffed(b"\r\n")
        self._add(text)
        return text

    def _stuffed(self, data: bytes) -> bytes:
        text = self._stuffing.feed(data)
        # It is not the end that is looked for: behind a CRLF there are two dots now, or none. What is left is what
        # only a lenient server takes for an end.
        self._end.feed(text)
        return text

    def _add(self, text: bytes) -> None:
        self.length += len(text)
        if not self.failure:
            self.header.feed(text)
