"""The protocol of clamd(8), section COMMANDS, without I/O: requests out, reply octets to a verdict.

Commands are sent in z form: the request and the reply end with NUL, so that no file name or virus
name can end one.
"""

from __future__ import annotations

import re
from datetime import datetime

from clamsmtpd.values import Clean, Infected, Oversize, Unscanned, Verdict

__all__ = [
    "FILDES",
    "FILDES_SUBJECT",
    "IDSESSION",
    "INSTREAM",
    "PING",
    "STREAM_END",
    "STREAM_SUBJECT",
    "VERSION",
    "Replies",
    "chunk_header",
    "explain",
    "is_unknown_command",
    "path_subject",
    "quote",
    "scan_request",
    "signatures_date",
    "understand",
]

#: Begin a session: the connection stays, and requests and replies are numbered from 1.
IDSESSION = b"zIDSESSION\0"

#: Scan the open file whose descriptor comes along. Behind the command stands the one octet that
#: carries the descriptor: without any octet of its own, the descriptor would be lost with the command's.
FILDES = b"zFILDES\0\0"

#: Scan the chunks that follow.
INSTREAM = b"zINSTREAM\0"

#: The empty chunk that ends a stream.
STREAM_END = b"\0\0\0\0"

#: Say something: a session in which nothing is asked for some time is ended, even in the midst of a scan.
PING = b"zPING\0"

#: Tell which program, signatures and date of them: ``ClamAV 1.4.3/27600/Fri Apr  4 08:36:16 2025``.
VERSION = b"zVERSION\0"

#: What clamd calls the thing that it scanned, in front of the colon.
FILDES_SUBJECT = re.compile(rb"fd\[[0-9]+\]: ")
STREAM_SUBJECT = re.compile(rb"stream: ")

# A line that names a virus is short; whatever goes on and on is not clamd.
_REPLY_MAX = 4096
_NAME_MAX = 256
_NUMBER_DIGITS_MAX = 10

# Who speaks first does not speak the protocol of clamd (RFC 5321 section 4.2).
_GREETING = re.compile(rb"(?:220|421|554)[ -]")

_FOUND = re.compile(rb"([^\r\n]+) FOUND\Z")
_NOT_GRAPHIC = re.compile(r"[^!-~]")
_NOT_PRINTABLE = re.compile(r"[^ -~]")

# What clamd answers when it was built without the passing of descriptors, or is older than a command.
_UNKNOWN = frozenset(
    {
        b"UNKNOWN COMMAND",
        b"FILDES support not compiled in. ERROR",
        b"Command invalid inside IDSESSION. ERROR",
    }
)

# The stream is longer than StreamMaxLength, which has nothing to do with its text.
_TOO_LONG = b"INSTREAM size limit exceeded. ERROR"

# Errors of clamd that do not say what is to be done about them.
_HINTS = {
    _TOO_LONG: "the message is larger than StreamMaxLength in clamd.conf",
    b"COMMAND READ TIMED OUT": "CommandReadTimeout or ReadTimeout in clamd.conf is too short, or it has too much to do",
}


def chunk_header(length: int) -> bytes:
    """Return what goes before a chunk of a stream: its length, 4 octets in network order."""
    return length.to_bytes(4, "big")


def scan_request(path: str) -> bytes:
    """Return the request to scan the file at ``path``, which clamd opens itself."""
    return b"zSCAN " + path.encode("utf-8", "surrogateescape") + b"\0"


def path_subject(*paths: str) -> re.Pattern[bytes]:
    """Return the pattern for a file that clamd may call by any of these names."""
    names = b"|".join(re.escape(path.encode("utf-8", "surrogateescape")) for path in paths)
    return re.compile(rb"(?:%b): " % names)


class Replies:
    """Cuts what clamd says on one connection into replies, in whatever pieces it comes.

    ``numbered``: the connection is a session (IDSESSION). On any other there is one reply, which gets the number 1,
    and nothing may stand behind it.
    """

    __slots__ = ("_data", "_numbered", "fault", "strange")

    def __init__(self, *, numbered: bool) -> None:
        self._numbered = numbered
        self._data = b""
        #: Why nothing that comes after the last reply can be relied on; empty as long as all is well.
        self.fault = ""
        #: What stood there in place of a reply with a number.
        self.strange = b""

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Take octets from clamd; return the numbers and texts of the replies that are complete with them.

        Look at :attr:`fault` afterwards. On a connection for one scan, what came along with a fault is no reply.
        """
        if self._data:
            data = self._data + data
        *lines, self._data = data.split(b"\0")
        found: list[tuple[int, bytes]] = []
        for line in lines:
            if not self._numbered:
                found.append((1, line))
                continue
            number, colon, reply = line.partition(b": ")
            if not colon or not number.isdigit() or len(number) > _NUMBER_DIGITS_MAX:
                self.strange = line
                self.fault = explain(line)
                return found
            found.append((int(number), reply))
        if found and not self._numbered and (len(found) > 1 or self._data):
            first = found[0][1]
            # Of two errors the first is the reason.
            verdict = first.endswith((b": OK", b" FOUND"))
            self.fault = "octets behind its reply" if verdict else explain(first)
        elif b"\n" in self._data:
            # Some errors come before clamd has looked at the command: without number, and with a line end for NUL.
            self.fault = explain(self._data.partition(b"\n")[0])
        elif len(self._data) > _REPLY_MAX:
            self.fault = "a reply without end"
        return found

    def eof(self) -> str:
        """Return what is to be said when clamd closes the connection and owes a reply."""
        if self._data:
            return f"it closed the connection in the middle of its reply {quote(self._data)}"
        return "it closed the connection without a reply"


# ``ClamAV 1.4.3/27600/Fri Apr  4 08:36:16 2025``; without official signatures there is nothing behind the version.
_SIGNATURES = re.compile(r"[^/]+/[0-9]+/[A-Z][a-z]{2} ([A-Z][a-z]{2}) +([0-9]{1,2}) ([0-9:]{8}) ([0-9]{4})")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def signatures_date(version: str) -> datetime | None:
    """Return the date of the signatures in an answer to VERSION, in clamd's local time; None if it names none."""
    found = _SIGNATURES.fullmatch(version.strip())
    if found is None or found[1] not in _MONTHS:
        return None
    hour, _, rest = found[3].partition(":")
    minute, _, second = rest.partition(":")
    try:
        return datetime(  # noqa: DTZ001 - clamd does not say which zone it means
            int(found[4]), _MONTHS.index(found[1]) + 1, int(found[2]), int(hour), int(minute), int(second)
        )
    except ValueError:
        return None


def is_unknown_command(reply: bytes) -> bool:
    """Tell whether this clamd does not have the command at all."""
    return reply in _UNKNOWN


def understand(reply: bytes, subject: re.Pattern[bytes]) -> Verdict:
    """Return the verdict in a whole reply, without number and NUL, about what clamd calls ``subject``.

    Only ``OK`` is clean.
    """
    match = subject.match(reply)
    if match is None:
        return Oversize(explain(reply)) if reply == _TOO_LONG else Unscanned(explain(reply))
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
    return Unscanned(explain(reply))


def explain(reply: bytes) -> str:
    """Say in one readable line what clamd answered, and what is to be done about it where that is known."""
    if not reply.strip():
        return "an empty reply"
    hint = "that is an SMTP server, not clamd" if _GREETING.match(reply) else _HINTS.get(reply.strip())
    return f"it answered {quote(reply)}" + (f": {hint}" if hint else "")


def quote(reply: bytes) -> str:
    """Return the beginning of a reply as printable ASCII in quotation marks."""
    return '"' + _NOT_PRINTABLE.sub("?", reply[:200].decode("latin-1").strip()) + '"'
