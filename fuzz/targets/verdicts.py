"""Replies of clamd: clean is the one reply that says so, whole and alone, and nothing else."""

from __future__ import annotations

import re

from clamsmtpd.clamd.protocol import FILDES_SUBJECT, STREAM_SUBJECT, Replies, path_subject, understand
from clamsmtpd.values import Clean, Infected, Verdict
from fuzz.octets import cuttings

__all__ = ["WORDS", "one_input"]

_PATH = "/tmp/clamsmtpd.a(b"
_SUBJECTS = (
    (FILDES_SUBJECT, rb"fd\[[0-9]+\]"),
    (STREAM_SUBJECT, rb"stream"),
    (path_subject(_PATH), re.escape(_PATH.encode())),
)

WORDS = (
    *(b"stream: OK\0", b"fd[10]: OK\0", b"/tmp/clamsmtpd.a(b: OK\0", b"1: stream: OK\0", b"2: fd[7]: OK\0"),
    *(b" FOUND\0", b"stream: Eicar-Test FOUND\0", b"(null) FOUND\0", b" ERROR\0", b"COMMAND READ TIMED OUT\n"),
    *(b"INSTREAM size limit exceeded. ERROR\0", b"UNKNOWN COMMAND\0", b": ", b"OK", b"\0", b"\n", b"1: ", b"PONG\0"),
)


def one_input(data: bytes) -> None:
    """Read the octets as what clamd says on a connection for one scan, and in a session."""
    octets, ways = cuttings(data)
    for way in ways:
        _check_single(way, octets)
        _check_session(way, octets)


def _check_single(pieces: list[bytes], octets: bytes) -> None:
    replies = Replies(numbered=False)
    for piece in pieces:
        found = replies.feed(piece)
        if replies.fault:
            _check_line(replies.fault)
            return
        if found:
            ((number, reply),) = found
            assert number == 1
            assert octets.startswith(reply + b"\0")
            _check_reply(reply)
            return
    _check_line(replies.eof())
    # Whatever was whole, and alone, has come out.
    assert b"\0" not in octets


def _check_session(pieces: list[bytes], octets: bytes) -> None:
    expected = []
    for line in octets.split(b"\0")[:-1]:
        match = re.fullmatch(rb"([0-9]{1,10}): (.*)", line, re.DOTALL)
        if match is None:
            break
        expected.append((int(match[1]), match[2]))
    replies = Replies(numbered=True)
    found: list[tuple[int, bytes]] = []
    for piece in pieces:
        found += replies.feed(piece)
        if replies.fault:
            _check_line(replies.fault)
            break
    else:
        assert found == expected
    # A fault may come early, where octets without an end are none of clamd's; never a reply that is not there.
    assert found == expected[: len(found)]
    for _, reply in found:
        _check_reply(reply)


def _check_reply(reply: bytes) -> None:
    for subject, name in _SUBJECTS:
        verdict: Verdict = understand(reply, subject)
        assert isinstance(verdict, Clean) == (re.fullmatch(name + rb": OK", reply) is not None)
        if isinstance(verdict, Infected):
            assert re.fullmatch(name + rb": [^\r\n]+ FOUND", reply)
            assert re.fullmatch("[!-~]{1,256}", verdict.name)
        elif not isinstance(verdict, Clean):
            _check_line(verdict.reason)


def _check_line(text: str) -> None:
    """What goes to the log is one line, printable and not long."""
    assert text
    assert text.isascii()
    assert text.isprintable()
    assert len(text) < 500
