"""The protocol of clamd(8), section COMMANDS, without I/O: requests out, reply octets to a verdict.

Commands are sent in z form: the request and the reply end with NUL, so that no file name or virus
name can end one.
"""

from __future__ import annotations

import re

from clamsmtpd.values import Clean, Infected, Unscanned, Verdict

__all__ = ["FILDES", "INSTREAM", "STREAM_END", "ReplyReader", "chunk_header", "path_subject", "scan_request"]

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

# Some errors come before clamd has looked at the command, with a line end in place of NUL.
_END = re.compile(rb"[\0\n]")
_FOUND = re.compile(rb"([^\r]+) FOUND\Z")
_NOT_GRAPHIC = re.compile(r"[^!-~]")
_NOT_PRINTABLE = re.compile(r"[^ -~]")

# What clamd answers when it was built without the passing of descriptors, or is older than it.
_UNKNOWN = frozenset({b"UNKNOWN COMMAND", b"FILDES support not compiled in. ERROR"})

# Errors of clamd that do not say what is to be done about them.
_HINTS = {
    b"INSTREAM size limit exceeded. ERROR": "the message is larger than StreamMaxLength in clamd.conf",
    b"COMMAND READ TIMED OUT": "CommandReadTimeout in clamd.conf is too short, or it has too much to do",
}


def chunk_header(length: int) -> bytes:
    """Return what goes before a chunk of a stream: its length, 4 octets in network order."""
    return length.to_bytes(4, "big")


def scan_request(path: str) -> bytes:
    """Return the request to scan the file at ``path``, which clamd opens itself."""
    return b"zSCAN " + path.encode("utf-8", "surrogateescape") + b"\0"


def path_subject(*paths: str) -> bytes:
    """Return the pattern for a file that clamd may call by any of these names."""
    return b"|".join(re.escape(path.encode("utf-8", "surrogateescape")) for path in paths)


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
        """Take octets from clamd; return the verdict once the reply has ended, None until then.

        Nothing may stand behind the reply. What comes after this has returned a verdict is not looked
        at: waiting for clamd to close would cost every scan another turn of the event loop.
        """
        self._data += data
        end = _END.search(self._data)
        if end is None:
            return Unscanned("a reply without end") if len(self._data) > _REPLY_MAX else None
        reply = self._data[: end.start()]
        verdict = self._understand(reply) if end.group() == b"\0" else _fault(reply)
        if end.end() < len(self._data) and not isinstance(verdict, Unscanned):
            return Unscanned("octets behind its reply")
        return verdict

    def eof(self) -> Verdict:
        """Return the verdict when clamd closes the connection without ending its reply."""
        if self._data:
            return Unscanned(f"it closed the connection in the middle of its reply {_quote(self._data)}")
        return Unscanned("it closed the connection without a reply")

    def _understand(self, reply: bytes) -> Verdict:
        if reply in _UNKNOWN:
            self.unknown_command = True
        match = re.match(rb"(?:%b): " % self._subject, reply)
        if match is None:
            return _fault(reply)
        result = reply[match.end() :]
        if result == b"OK":
            return Clean()
        found = _FOUND.match(result)
        if found and found.group(1).strip():
            # Names come from the authors of signatures, and go to the log and to commands of the shell.
            name = _NOT_GRAPHIC.sub("_", found.group(1).decode("latin-1"))
            # "(null)" is what C prints for no name at all: clamd itself does not know what it found.
            if len(name) <= _NAME_MAX and "(null)" not in name:
                return Infected(name)
        return _fault(reply)


def _fault(reply: bytes) -> Unscanned:
    if not reply.strip():
        return Unscanned("an empty reply")
    hint = _HINTS.get(reply.strip())
    return Unscanned(f"it answered {_quote(reply)}" + (f": {hint}" if hint else ""))


def _quote(reply: bytes) -> str:
    return '"' + _NOT_PRINTABLE.sub("?", reply[:200].decode("latin-1").strip()) + '"'
