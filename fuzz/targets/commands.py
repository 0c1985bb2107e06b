"""Command lines: cut and refused as a plain reading has it, in every cutting, and understood without exception."""

from __future__ import annotations

import re

from clamsmtpd.smtp.syntax import CommandLines, Refused, has_parameter, parse_chunk, parse_command, parse_path
from fuzz.octets import cuttings
from tests.support import plain

__all__ = ["WORDS", "one_input"]

#: Small, so that lines come to it.
_LIMIT = 60

WORDS = (
    *(b"\r\n", b"\r", b"\n", b"\0", b"MAIL FROM:<a@b>\r\n", b"RCPT TO:<", b'<"a\\">"@c>', b"<@r,@s:a@b>", b"DATA\r\n"),
    *(b"BDAT 3 LAST\r\n", b"BDAT 99999999999999999999", b" BODY=BINARYMIME", b"\t", b"FROM :", b"x" * 30),
)


def one_input(data: bytes) -> None:
    """Read the octets as commands in all cuttings."""
    octets, ways = cuttings(data)
    expected = plain.command_lines(octets, _LIMIT)
    for way in ways:
        lines = _read(way)
        assert [None if isinstance(line, Refused) else line for line in lines] == expected
    for line in expected:
        if line is not None:
            _understand(line)


def _read(pieces: list[bytes]) -> list[bytes | Refused]:
    reader = CommandLines()
    found: list[bytes | Refused] = []
    for piece in pieces:
        reader.feed(piece)
        while (line := reader.next(_LIMIT)) is not None:
            found.append(line)
    return found


def _understand(line: bytes) -> None:
    verb, argument = parse_command(line)
    words = re.split(rb"[ \t]", line, maxsplit=1)
    assert verb == words[0].upper()
    assert argument == (words[1].strip(b" \t") if words[1:] else b"")
    for keyword in (b"FROM", b"TO"):
        path = parse_path(argument, keyword)
        # It is a part of what was said, whatever that was.
        assert path in argument
    assert has_parameter(argument, b"BODY=BINARYMIME") == (b"BODY=BINARYMIME" in argument.upper().split())
    chunk = parse_chunk(argument)
    length, *more = re.split(rb"[ \t]+", argument)
    if chunk is None:
        assert not (length.isdigit() and len(length) <= 20)
    else:
        assert chunk[0] == int(length)
        assert chunk[1] is (
            None if more and more != [b"LAST"] and [word.upper() for word in more] != [b"LAST"] else bool(more)
        )
