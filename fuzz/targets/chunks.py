"""Messages by BDAT and by DATA: what the client hears, and what is delivered, is what a slow relay makes of them.

The first octet says whether the next hop has CHUNKING, the next four how the network cuts. Each record behind them, up
to an octet FE, is a part of the dialogue: its kind, then the text in it. The slow relay reads it line by line.
"""

from __future__ import annotations

from clamsmtpd.smtp.message import Message
from fuzz.octets import pieces, split_off
from tests.support import plain
from tests.support.slow_relay import Hop, Network, SlowRelay

__all__ = ["WORDS", "one_input"]

_SEPARATOR = b"\xfe"

_COMMANDS = {
    b"e": b"EHLO me\r\n",
    b"m": b"MAIL FROM:<a@b>\r\n",
    b"r": b"RCPT TO:<c@d>\r\n",
    b"n": b"MAIL FROM:<bad>\r\n",
    b"s": b"RCPT TO:<bad>\r\n",
    b"t": b"MAIL FROM:<s@t>\r\nRCPT TO:<r@t>\r\n",
    b"x": b"RSET\r\n",
    b"p": b"NOOP\r\n",
    b"?": b"WHAT\r\n",
    b"q": b"QUIT\r\n",
}
_RECORDS_MAX = 40

WORDS = (
    _SEPARATOR,
    *(_SEPARATOR + kind for kind in _COMMANDS),
    *(_SEPARATOR + kind for kind in (b"D", b"B", b"L", b"t\xfeB", b"t\xfeL", b"t\xfeD")),
    *(b"virus", b"broken", b"\r\n", b"\r\n.\r\n", b"\r\n..", b"\n.\n", b".", b"\0", b"\r"),
    *(b"A: b\r\n", b" c\r\n", b"From x\r\n"),
)


def one_input(data: bytes) -> None:
    """Hold a dialogue against the slow relay, and its chunks against a plain reading."""
    (chunking, *sizes), rest = split_off(data, 5)
    octets, chunks = _dialogue(rest)
    slow_hop, hop = Hop(bool(chunking & 1)), Hop(bool(chunking & 1))
    expected = SlowRelay(octets, slow_hop).said
    assert Network(hop, [size % 64 + 1 for size in sizes]).run(octets) == expected
    assert hop.delivered == slow_hop.delivered
    _check_message(chunks, bytes(sizes))


def _dialogue(octets: bytes) -> tuple[bytes, bytes]:
    """Return what a client says, and all its chunks in one."""
    said = b"EHLO me\r\n"
    chunks = b""
    for record in octets.split(_SEPARATOR)[:_RECORDS_MAX]:
        kind, text = record[:1], record[1:]
        if kind in _COMMANDS:
            said += _COMMANDS[kind]
        elif kind == b"D":
            lines = text if text.endswith(b"\r\n") or not text else text + b"\r\n"
            # Without an envelope, the lines would be commands, and the slow relay knows few.
            said += _COMMANDS[b"x"] + _COMMANDS[b"t"] + b"DATA\r\n" + plain.stuff(lines) + b".\r\n"
        else:
            said += b"BDAT %d%b\r\n%b" % (len(text), b" LAST" if kind == b"L" else b"", text)
            chunks += text
    return said, chunks


def _check_message(text: bytes, sizes: bytes) -> None:
    for raw in (False, True):
        message = Message(chunked=True, raw=raw)
        wire = b"".join(map(message.feed_chunk, pieces(text, sizes)))
        wire += message.finish_chunks()
        whole = text if raw or text.endswith(b"\r\n") or not text else text + b"\r\n"
        assert wire == (whole if raw else plain.stuff(whole))
        assert message.length == len(wire)
        top, end, blank_first = plain.header_section(wire)
        assert (message.header.top, message.header.end, message.header.blank_first) == (top, end, blank_first)
        if not raw:
            # Without the line end that DATA wants.
            assert message.size == len(text)
            assert message.stuffed == (wire != whole)
            assert message.deceptive == plain.is_deceptive(wire)
