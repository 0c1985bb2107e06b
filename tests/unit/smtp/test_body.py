"""Where a message ends, where its header section ends, and what its text is without stuffed dots."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamsmtpd.smtp.body import EndOfData, HeaderSection, Stuffing, unstuff

#: Octets that can be part of an end, and some that cannot.
TRICKY = st.lists(
    st.sampled_from([b"\r\n", b"\r", b"\n", b".", b"\0", b"..", b"\r\n.", b"\r\n.\r", b"x", b"Subject: y", b" "]),
    max_size=30,
).map(b"".join)


def cuttings(data: bytes) -> st.SearchStrategy[list[bytes]]:
    """All the ways in which the network may deliver ``data``."""
    return st.lists(st.integers(0, len(data)), max_size=8).map(
        lambda cuts: [data[a:b] for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), len(data)], strict=True)]
    )


def feed(pieces: list[bytes]) -> tuple[bytes, bytes | None, bool, bool]:
    """Return text, rest, stuffed and deceptive of a body that comes in ``pieces``."""
    body = EndOfData()
    text = b""
    for number, piece in enumerate(pieces):
        part, rest = body.feed(piece)
        text += part
        if rest is not None:
            return text, rest + b"".join(pieces[number + 1 :]), body.stuffed, body.deceptive
    return text, None, body.stuffed, body.deceptive


def single_octets(data: bytes) -> list[bytes]:
    return [bytes((octet,)) for octet in data]


def reference(data: bytes) -> tuple[bytes, bytes] | None:
    """Split at the first CRLF . CRLF, where the DATA command's CRLF counts: the plain way."""
    before, end, rest = (b"\r\n" + data).partition(b"\r\n.\r\n")
    return ((before + b"\r\n")[2:], rest) if end else None


ENDS = [
    (b".\r\n", b"", b""),
    (b"x\r\n.\r\n", b"x\r\n", b""),
    (b"x\r\n.\r\nQUIT\r\n", b"x\r\n", b"QUIT\r\n"),
    (b"\r\n.\r\n", b"\r\n", b""),
    (b".\r\n.\r\n", b"", b".\r\n"),
    (b"..\r\n.\r\n", b"..\r\n", b""),
    (b"x.\r\n.\r\n", b"x.\r\n", b""),
    (b"x\r\n..\r\n...\r\n.x\r\n.\r\n", b"x\r\n..\r\n...\r\n.x\r\n", b""),
    (b"\xff\x80\r\n.\r\n", b"\xff\x80\r\n", b""),
    (b"a\0b\r\n.\r\n", b"a\0b\r\n", b""),
]


@pytest.mark.parametrize(("data", "text", "rest"), ENDS)
def test_the_end_is_found_whole_and_octet_by_octet(data: bytes, text: bytes, rest: bytes) -> None:
    assert feed([data])[:2] == (text, rest)
    assert feed(single_octets(data))[:2] == (text, rest)


@pytest.mark.parametrize("data", [b"", b".", b".\r", b"x\r\n.", b"x\r\n.\r", b"x\r\n", b"x.\r\n", b"x\n.\n", b".\n"])
def test_no_end_yet(data: bytes) -> None:
    assert feed([data])[1] is None
    assert feed(single_octets(data))[1] is None


def test_a_held_dot_is_given_out_when_it_was_not_the_end() -> None:
    body = EndOfData()
    assert body.feed(b"a\r\n.") == (b"a\r\n", None)
    assert body.feed(b"b\r\n.\r") == (b".b\r\n", None)
    assert body.feed(b"c") == (b".\rc", None)
    assert body.feed(b"\r\n.\r\n") == (b"\r\n", b"")
    assert body.stuffed
    assert body.deceptive


@given(st.data())
def test_every_cutting_gives_the_same(data: st.DataObject) -> None:
    octets = data.draw(TRICKY) + data.draw(st.sampled_from([b"", b"\r\n.\r\n", b"\r\n.\r\nMAIL\r\n"]))
    whole = feed([octets])
    expected = reference(octets)
    if expected is None:
        assert whole[1] is None
        held = octets[len(whole[0]) :]
        assert octets.startswith(whole[0])
        assert held in (b"", b".", b".\r")
    else:
        assert whole[:2] == expected
    assert feed(data.draw(cuttings(octets))) == whole
    assert feed(single_octets(octets)) == whole


@given(TRICKY)
def test_stuffed_says_whether_removing_dots_changes_the_text(octets: bytes) -> None:
    text, rest, stuffed, _ = feed([octets + b"\r\n.\r\n"])
    assert rest is not None
    assert stuffed == (b"\r\n." in b"\r\n" + text)
    assert stuffed == (b"".join(unstuff([text])) != text)


@given(TRICKY)
def test_deceptive_says_whether_a_lenient_server_sees_another_end(octets: bytes) -> None:
    text, _, _, deceptive = feed([octets + b"\r\n.\r\n"])
    wire = b"\r\n" + text + b".\r\n"
    # A server that drops NUL, and takes CR, LF and CRLF each for the end of a line.
    lenient = re.split(rb"\r\n|\r|\n", wire.replace(b"\0", b""))
    lone_dots = [line for line in lenient[1:-1] if line == b"."]
    assert deceptive == (len(lone_dots) > 1 or b"\r\n.\r\n" not in wire)


@pytest.mark.parametrize(
    ("text", "deceptive"),
    [
        (b"a\n.\nb\r\n", True),
        (b"a\n.\r\nb\r\n", True),
        (b"a\r\n.\nb\r\n", True),
        (b"a\r.\rb\r\n", True),
        (b"a\r\n.\r\r\nb\r\n", True),
        (b"a\r\n\0.\r\nb\r\n", True),
        (b"a\r\n.\0\0\r\nb\r\n", True),
        (b".\rb\r\n", True),
        (b"\0.\r\n", True),
        (b"a\0.\r\nb\r\n", False),
        (b"a.\r\nb.\n\r\n", False),
        (b"a\n..\r\n..\r\n", False),
        (b"a\rb\nc\0d\r\n", False),
        (b"\n.a\r\n", False),
    ],
)
def test_a_lone_dot_between_other_line_ends_is_deceptive(text: bytes, deceptive: bool) -> None:
    assert feed([text + b".\r\n"]) == (text, b"", b"\r\n." in b"\r\n" + text, deceptive)
    assert feed(single_octets(text + b".\r\n"))[3] is deceptive


def test_many_nul_octets_take_no_memory() -> None:
    body = EndOfData()
    assert body.feed(b"\r\n" + b"\0" * 100_000) == (b"\r\n" + b"\0" * 100_000, None)
    body.feed(b"\0" * 100_000)
    assert body.feed(b".\0\r\n.\r\n") == (b".\0\r\n", b"")
    assert body.deceptive


# ---- the header section ---------------------------------------------------------------------------


def reach(pieces: list[bytes]) -> int | None:
    header = HeaderSection()
    for piece in pieces:
        header.feed(piece)
    return header.reach


def section(pieces: list[bytes]) -> tuple[int, int, bool]:
    header = HeaderSection()
    for piece in pieces:
        header.feed(piece)
    return header.top, header.end, header.blank_first


SECTIONS = [
    ("a section and a text", b"A: b\r\nC: d\r\n\r\ntext\r\n", 0, 12),
    ("folded", b"A: b\r\n c\r\n\td\r\n\r\ntext\r\n", 0, 14),
    ("no empty line", b"A: b\r\nC: d\r\n", 0, 12),
    ("no empty line, but text", b"A: b\r\ntext here\r\nC: d\r\n", 0, 6),
    ("no section", b"text here\r\nA: b\r\n", 0, 0),
    ("an empty line first", b"\r\nA: b\r\n", 0, 0),
    ("no text at all", b"", 0, 0),
    ("a blank in front of the colon", b"A : b\r\n\r\n", 0, 7),
    ("bare line feeds", b"A: b\nC: d\n\ntext\r\n", 0, 10),
    ("an mbox line", b"From a@b Mon\r\nA: b\r\n\r\ntext\r\n", 14, 20),
    ("a quoted mbox line", b">From a@b Mon\r\nA: b\r\n\r\n", 15, 21),
    ("a From field with a blank", b"From : a@b\r\n\r\n", 0, 12),
    ("an mbox line alone", b"From a@b\r\n", 10, 10),
    ("a colon first", b": b\r\n\r\n", 0, 0),
    ("8-bit in a name", b"\xc3\x84: b\r\n\r\n", 0, 0),
    ("8-bit in a value", b"A: \xc3\x84\r\n\r\n", 0, 7),
    ("a blank line of blanks is folding", b"A: b\r\n \r\nC: d\r\n\r\n", 0, 15),
    ("a dot stuffed text", b"A: b\r\n\r\n..\r\n", 0, 6),
    ("a name of 998 octets", b"A" * 998 + b": b\r\n\r\n", 0, 1003),
    ("a name of 999 octets", b"A" * 999 + b": b\r\n\r\n", 0, 0),
    ("an endless name", b"A" * 5000 + b"\r\n\r\n", 0, 0),
    ("a name, then many blanks", b"A" + b" " * 2000 + b"x\r\n", 0, 0),
    ("a name, then as many blanks as may be", b"A" + b" " * 998 + b": x\r\n", 0, 1004),
    ("a name, then too many blanks", b"A" + b" " * 999 + b": x\r\n", 0, 0),
    ("a long field", b"A: " + b"x" * 100_000 + b"\r\nB: c\r\n\r\n", 0, 100_011),
]


@pytest.mark.parametrize(("_what", "text", "top", "end"), SECTIONS)
def test_the_header_section_ends_where_it_should(_what: str, text: bytes, top: int, end: int) -> None:
    assert section([text]) == (top, end, False)
    assert section(single_octets(text)) == (top, end, False)
    assert section([text[:3], text[3:7], text[7:]]) == (top, end, False)


@pytest.mark.parametrize("text", [b" folded into nothing\r\nA: b\r\n", b"\tx\r\n", b" "])
def test_a_text_that_starts_with_a_blank(text: bytes) -> None:
    assert section([text]) == (0, 0, True)
    assert section(single_octets(text)) == (0, 0, True)


REACHES = [
    ("an empty line", b"A: b\r\n\r\nC: d\r\n", 6),
    ("an empty line first", b"\r\nA: b\r\n", 0),
    ("a bare line feed first", b"\nA: b\r\n", 0),
    ("no empty line", b"A: b\r\nC: d\r\n", None),
    ("no text at all", b"", None),
    ("lines that are no field", b"A: b\r\nno field\r\nC: d\r\n\r\ntext\r\n\r\n", 22),
    ("no section at all", b"text here\r\nA: b\r\n", None),
    ("a blank first", b" text\r\nA: b\r\n\r\n", 13),
    ("a folded line with a stuffed dot", b"A: b\r\n. c\r\nD: e\r\n\r\n", 17),
    ("bare line feeds", b"A: b\ntext here\n\nC: d\r\n\r\n", 15),
    ("a bare carriage return is no line end", b"A: b\r\ntext\r\r\n\rC: d\r\n\r\n", 20),
    ("the line end of a line with a carriage return too many", b"A: b\r\r\nC: d\r\n\r\n", 13),
]


@pytest.mark.parametrize(("_what", "text", "reach"), REACHES)
def test_where_the_most_lenient_reader_sees_the_section_end(_what: str, text: bytes, reach: int | None) -> None:
    for size in (len(text) or 1, 1, 2, 3, 7):
        header = HeaderSection()
        for at in range(0, len(text), size):
            header.feed(text[at : at + size])
        assert header.reach == reach, size


def test_nothing_is_looked_at_behind_the_section() -> None:
    header = HeaderSection()
    header.feed(b"A: b\r\n\r\n")
    header.feed(b"B: c\r\n")
    header.feed(b"")
    assert header.end == 6


@given(st.data())
def test_the_section_is_the_same_in_every_cutting(data: st.DataObject) -> None:
    parts = st.sampled_from(
        [b"A: b\r\n", b" c\r\n", b"\r\n", b"text\r\n", b"From x\r\n", b">", b"D", b" ", b":", b"\n", b"x"]
    )
    text = b"".join(data.draw(st.lists(parts, max_size=20)))
    assert section(data.draw(cuttings(text))) == section([text])
    assert section(single_octets(text)) == section([text])
    assert reach(data.draw(cuttings(text))) == reach(single_octets(text)) == reach([text])
    empty_line = re.search(rb"(?:\A|(?<=\n))\r?\n", text)
    assert reach([text]) == (empty_line.start() if empty_line else None)
    assert section([text])[1] <= (empty_line.start() if empty_line else len(text))


# ---- dots -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wire", "plain"),
    [
        (b"", b""),
        (b"x\r\n", b"x\r\n"),
        (b"..\r\n", b".\r\n"),
        (b".x\r\n", b"x\r\n"),
        (b"a\r\n..\r\n...\r\n", b"a\r\n.\r\n..\r\n"),
        (b"a..b\r\n.\n..\r\n", b"a..b\r\n\n..\r\n"),
        (b"\r\n..\r\n", b"\r\n.\r\n"),
        (b"\r", b"\r"),
    ],
)
def test_one_dot_is_removed_from_each_line_that_starts_with_one(wire: bytes, plain: bytes) -> None:
    assert b"".join(unstuff([wire])) == plain
    assert b"".join(unstuff(single_octets(wire))) == plain
    assert b"".join(unstuff([b"", *single_octets(wire), b""])) == plain


@given(st.data())
def test_dots_are_removed_the_same_in_every_cutting(data: st.DataObject) -> None:
    wire = data.draw(TRICKY)
    assert b"".join(unstuff(data.draw(cuttings(wire)))) == (b"\r\n" + wire).replace(b"\r\n.", b"\r\n")[2:]


@pytest.mark.parametrize(
    ("text", "wire", "ended"),
    [
        (b"", b"", True),
        (b".", b"..", False),
        (b"a.\r\n.b\r\n", b"a.\r\n..b\r\n", True),
        (b"\r\n.\r\n..", b"\r\n..\r\n...", False),
        (b"a\n.\nb\r", b"a\n.\nb\r", False),
    ],
)
def test_dots_are_put_in(text: bytes, wire: bytes, ended: bool) -> None:
    for size in (len(text) or 1, 1):
        stuffing = Stuffing()
        assert b"".join(stuffing.feed(text[at : at + size]) for at in range(0, len(text), size)) == wire
        assert stuffing.feed(b"") == b""
        assert stuffing.ended is ended


@given(st.lists(st.text("a.\r\n").map(str.encode)))
def test_stuffed_dots_come_out_again(pieces: list[bytes]) -> None:
    stuffing = Stuffing()
    wire = [stuffing.feed(piece) for piece in pieces]
    assert b"".join(unstuff(wire)) == b"".join(pieces)


def test_dots_are_counted() -> None:
    for size in (100, 1):
        end = EndOfData()
        text = b".a\r\n..\r\nb.\r\n.c\r\n"
        for at in range(0, len(text), size):
            end.feed(text[at : at + size])
        assert end.dots == 3
