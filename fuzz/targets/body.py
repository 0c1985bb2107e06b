"""The text of a message: its end, its header section and its dots are those of a plain reading, in every cutting."""

from __future__ import annotations

from clamsmtpd.smtp.body import EndOfData, HeaderSection, Stuffing, Unstuffing
from fuzz.octets import cuttings
from tests.support import plain

__all__ = ["WORDS", "one_input"]

WORDS = (
    *(b"\r\n.\r\n", b"\r\n..", b"\n.\n", b"\r.\r", b"\r\n.\n", b"\n.\r\n", b"\0.\0", b".\r", b"\r\n\r\n", b"\r\n \r\n"),
    *(
        b"Subject: x\r\n",
        b"A :b\n",
        b" folded\r\n",
        b"\tfolded\r\n",
        b"From a@b Mon\r\n",
        b">From a\r\n",
        b"From :",
        b": ",
    ),
    # Long enough for a name that is too long, and for blanks behind it.
    *(b"x" * 500, b" " * 500),
)


def one_input(data: bytes) -> None:
    """Read the octets as the text of a message in all cuttings."""
    octets, ways = cuttings(data)
    expected = plain.end_of_data(octets)
    text = expected[0] if expected else octets
    header = plain.header_section(text)
    for way in ways:
        got, rest, end = _read(way)
        if expected is None:
            # What may yet be the final dot is not given out.
            assert rest is None
            assert octets.startswith(got)
            assert octets[len(got) :] in (b"", b".", b".\r")
        else:
            assert (got, rest) == expected
            assert end.dots == (b"\r\n" + text).count(b"\r\n.")
            assert end.stuffed == (plain.unstuff(text) != text)
            assert end.deceptive == plain.is_deceptive(text)
        _check_dots(way, octets)
    for way in ways:
        section = HeaderSection()
        left = len(text)
        for piece in way:
            section.feed(piece[:left])
            left -= min(left, len(piece))
        assert (section.top, section.end, section.blank_first) == header


def _read(pieces: list[bytes]) -> tuple[bytes, bytes | None, EndOfData]:
    """Feed the pieces; return the text, what stands behind the end if it came, and what has found it."""
    end = EndOfData()
    text: list[bytes] = []
    for number, piece in enumerate(pieces):
        part, rest = end.feed(piece)
        text.append(part)
        if rest is not None:
            return b"".join(text), rest + b"".join(pieces[number + 1 :]), end
    return b"".join(text), None, end


def _check_dots(pieces: list[bytes], octets: bytes) -> None:
    stuffing, unstuffing, unstuffing_wire = Stuffing(), Unstuffing(), Unstuffing()
    wire = [stuffing.feed(piece) for piece in pieces]
    assert b"".join(wire) == plain.stuff(octets)
    assert stuffing.ended == (not octets or octets.endswith(b"\r\n"))
    assert b"".join([*map(unstuffing_wire.feed, wire), unstuffing_wire.finish()]) == octets
    assert b"".join([*map(unstuffing.feed, pieces), unstuffing.finish()]) == plain.unstuff(octets)
