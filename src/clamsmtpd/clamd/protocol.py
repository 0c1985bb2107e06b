"""The protocol of clamd(8), section COMMANDS, without I/O: requests out, reply octets to a verdict.

Commands are sent in z form: the request and the reply end with NUL, so that no file name or virus
name can end one.
"""

from __future__ import annotations

import re

from clamsmtpd.values import Clean, Infected, Unscanned, Verdict

__all__ = ["FILDES", "INSTREAM", "STREAM_END", "ReplyReader", "chunk_header", "scan_request"]

#: Scan the open file whose descriptor comes along. Behind the command stands the one octet that
#: carries the descriptor: without any octet of its own, the descriptor would be lost with the command's.
FILDES = b"zFILDES\0\0"

#: Scan the chunks that follow.
INSTREAM = b"zINSTREAM\0"

#: The empty chunk that ends a stream.
STREAM_END = b"\0\0\0\0"

# A line that names a virus is short; whatever goes on and on is not clamd.
_REPLY_MAX = 4096
_NAME_MAX = 256

_FOUND = re.compile(rb"([^\0\r\n]+) FOUND\Z")
_NOT_GRAPHIC = re.compile(r"[^!-~]")


def chunk_header(length: int) -> bytes:
    """Return what goes before a chunk of a stream: its length, 4 octets in network order."""
    return length.to_bytes(4, "big")


def scan_request(path: str) -> bytes:
    """Return the request to scan the file at ``path``, which clamd opens itself."""
    return b"zSCAN " + path.encode("utf-8", "surrogateescape") + b"\0"


class ReplyReader:
    """Turns the reply to one scan request into a verdict, in whatever pieces it comes.

    ``subject`` is a pattern for what clamd calls the thing it scanned, in front of the colon.
    ``unknown_command`` turns true when this clamd does not have the command at all.
    """

    __slots__ = ("_data", "_subject", "unknown_command")

    FILDES_SUBJECT = rb"fd\[[0-9]+\]"
    STREAM_SUBJECT = rb"stream"

    def __init__(self, subject: bytes) -> None:
        self._subject = subject
        self._data = b""
        self.unknown_command = False

    def feed(self, data: bytes) -> Verdict | None:
        """Take octets from clamd; return the verdict once the reply has ended, None until then."""
        self._data += data
        reply, end, rest = self._data.partition(b"\0")
        if end:
            return Unscanned("octets behind its reply") if rest else self._understand(reply)
        if len(self._data) > _REPLY_MAX:
            return Unscanned("a reply without end")
        if self._data.endswith(b"\n"):
            # Some errors come before clamd has looked at the command, with a line end in place of NUL.
            return Unscanned(_readable(self._data) if self._data.strip() else "an empty reply")
        return None

    def eof(self) -> Verdict:
        """Return the verdict when clamd closes the connection without ending its reply."""
        if self._data:
            return Unscanned(f"it closed the connection in the middle of its reply: {_readable(self._data)}")
        return Unscanned("it closed the connection without a reply")

    def _understand(self, reply: bytes) -> Verdict:
        if reply == b"UNKNOWN COMMAND":
            self.unknown_command = True
        match = re.match(self._subject + rb": ", reply)
        result = reply[match.end() :] if match else b""
        if result == b"OK":
            return Clean()
        found = _FOUND.match(result)
        if found:
            name = _NOT_GRAPHIC.sub("_", found.group(1).decode("latin-1"))
            # "(null)" is what C prints for no name at all: clamd itself does not know what it found.
            if len(name) <= _NAME_MAX and "(null)" not in name:
                return Infected(name)
        return Unscanned(_readable(reply) if reply else "an empty reply")


def _readable(reply: bytes) -> str:
    text = reply[:200].decode("ascii", "replace").strip()
    return f'it answered "{"".join(char if char.isprintable() else "?" for char in text)}"'
