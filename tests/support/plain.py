"""The grammar of SMTP and of mail read in the plainest way: what the readers of the product are held against.

Everything here has all octets at hand and takes them line by line. It is slow, and short enough to be seen right.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

__all__ = [
    "Answers",
    "command_lines",
    "end_of_data",
    "header_section",
    "is_deceptive",
    "read_replies",
    "stuff",
    "unstuff",
]

_NAME_MAX = 998
_BLANKS_MAX = 998


def end_of_data(octets: bytes) -> tuple[bytes, bytes] | None:
    """Split what comes behind DATA into the text and what stands behind the final dot; None without one."""
    # The CRLF of the DATA command counts (RFC 5321 section 4.1.1.4).
    before, end, rest = (b"\r\n" + octets).partition(b"\r\n.\r\n")
    return ((before + b"\r\n")[2:], rest) if end else None


def is_deceptive(text: bytes) -> bool:
    """Tell whether a server that drops NUL, and ends lines at CR, at LF and at CRLF, sees a lone dot in the text."""
    lines = re.split(rb"\r\n|\r|\n", (b"\r\n" + text).replace(b"\0", b""))
    return b"." in lines[1:-1]


def stuff(text: bytes) -> bytes:
    """Put a dot in front of each line that starts with one."""
    return b"\r\n".join(b"." + line if line[:1] == b"." else line for line in text.split(b"\r\n"))


def unstuff(text: bytes) -> bytes:
    """Take the first dot of each line away."""
    return b"\r\n".join(line.removeprefix(b".") for line in text.split(b"\r\n"))


def header_section(text: bytes) -> tuple[int, int, bool]:
    """Return where a trace field goes, where any other goes, and whether the text starts with a blank."""
    if text[:1] in (b" ", b"\t"):
        return 0, 0, True
    top = at = 0
    for line in text.split(b"\n")[:-1]:
        mbox = re.match(rb">?From [ \t]*[^: \t]", line + b"\n") if at == 0 else None
        start, colon, _ = line.partition(b":")
        name = start.rstrip(b" \t")
        short = 0 < len(name) <= _NAME_MAX and len(start) - len(name) <= _BLANKS_MAX
        is_field = colon and short and all(0x21 <= octet <= 0x7E for octet in name)
        if not (mbox or is_field or line[:1] in (b" ", b"\t")):
            break
        at += len(line) + 1
        if mbox:
            top = at
    return top, at, False


def command_lines(octets: bytes, limit: int) -> list[bytes | None]:
    """Cut octets into command lines without CRLF; None is one that must be refused.

    The last may be a line that has no end yet, if it must be refused already.
    """
    *lines, rest = octets.split(b"\r\n")
    found = [None if is_bad_line(line, limit) else line for line in lines]
    return found + ([None] if is_bad_line(rest.removesuffix(b"\r"), limit) else [])


def is_bad_line(line: bytes, limit: int) -> bool:
    """Tell whether a command line, without its CRLF, is too long or holds what no line may hold."""
    return len(line) > limit or any(octet in line for octet in (b"\0", b"\r", b"\n"))


@dataclass
class Answers:
    """What a server has said: codes and lines of its complete replies, what is left, and whether it made sense."""

    replies: list[tuple[int, tuple[bytes, ...]]] = field(default_factory=list)
    rest: bytes = b""
    malformed: bool = False


def read_replies(octets: bytes) -> Answers:
    """Read the replies at the start of ``octets``, up to the first line that cannot belong to one."""
    found = Answers()
    open_lines: list[bytes] = []
    begin = at = 0
    code = b""
    while (end := octets.find(b"\n", at)) >= 0:
        line = octets[at:end].removesuffix(b"\r")
        digits, separator, text = line[:3], line[3:4], line[4:]
        good = (
            len(digits) == 3
            and digits.isdigit()
            and b"2" <= digits[:1] <= b"5"
            and separator in (b"", b" ", b"-")
            and b"\r" not in text
            and b"\0" not in text
            and (not open_lines or digits == code)
        )
        if not good:
            found.malformed = True
            break
        code = digits
        open_lines.append(text)
        at = end + 1
        if separator != b"-":
            found.replies.append((int(code), tuple(open_lines)))
            open_lines = []
            begin = at
    found.rest = octets[begin:]
    return found
