"""Replies of the next hop: complete or malformed as a plain reading has it, and only what is allowed of EHLO passes."""

from __future__ import annotations

from clamsmtpd.smtp.capabilities import OURS, PASSED, Offers, filter_ehlo
from clamsmtpd.smtp.syntax import Malformed, Reply, ReplyReader
from fuzz.octets import cuttings
from tests.support import plain

__all__ = ["WORDS", "one_input"]

WORDS = (
    *(
        b"250 ok\r\n",
        b"250-",
        b"250\r\n",
        b"354 go\n",
        b"421 4.3.2 x\r\n",
        b"599 \r\n",
        b"\r\n",
        b"\n",
        b"\0",
        b"2",
        b"\r",
    ),
    *(b"250-%b\r\n" % keyword for keyword in (*PASSED, *OURS)),
    *(b"250-AUTH=PLAIN\r\n", b"250 SIZE 1000\r\n", b"250-BURL\r\n", b"250-XEXCH50\r\n", b"250-LIMITS RCPTMAX=9\r\n"),
)


def one_input(data: bytes) -> None:
    """Read the octets as replies in all cuttings."""
    octets, ways = cuttings(data)
    expected = plain.read_replies(octets)
    replies: list[Reply] = []
    for way in ways:
        replies, malformed, left = _read(way)
        assert [(reply.code, reply.lines) for reply in replies] == expected.replies
        assert malformed == expected.malformed
        if not malformed:
            assert left == bool(expected.rest)
    for reply in replies:
        _check(reply)


def _read(pieces: list[bytes]) -> tuple[list[Reply], bool, bool]:
    reader = ReplyReader()
    found: list[Reply] = []
    for piece in pieces:
        reader.feed(piece)
        while (reply := reader.next()) is not None:
            if isinstance(reply, Malformed):
                return found, True, True
            found.append(reply)
    return found, False, bool(reader)


def _check(reply: Reply) -> None:
    # As the client will read it.
    assert plain.read_replies(reply.encode()).replies == [(reply.code, reply.lines)]
    assert [reply.positive, reply.intermediate, reply.negative].count(True) == 1
    offers = Offers.read(reply.lines)
    assert offers.size is None or offers.size > 0
    for one_recipient in (False, True):
        ours = filter_ehlo(reply.lines, starttls=one_recipient, xclient=one_recipient, one_recipient=one_recipient)
        ((code, lines),) = plain.read_replies(ours).replies
        assert code == 250
        keywords = [line.replace(b"=", b" ", 1).split(b" ")[0].upper() for line in lines[1:]]
        assert not set(keywords) - PASSED.keys() - OURS.keys()
        assert [b"STARTTLS" in keywords, b"XCLIENT" in keywords] == [one_recipient, one_recipient]
        assert offers.binarymime or b"BINARYMIME" not in keywords
