"""Lines, paths, attributes and replies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamsmtpd.smtp.syntax import (
    REPLY_MAX,
    CommandLines,
    Malformed,
    Refused,
    Reply,
    ReplyReader,
    has_parameter,
    parse_chunk,
    parse_command,
    parse_path,
    parse_xforward,
    xtext,
)

OCTETS = st.lists(st.sampled_from([b"\r\n", b"\r", b"\n", b"\0", b"NOOP", b"x", b" "]), max_size=25).map(b"".join)


def lines(pieces: list[bytes], limit: int = 8) -> list[bytes | Refused]:
    """Return all lines of what comes in ``pieces``, asked for after each."""
    reader = CommandLines()
    found: list[bytes | Refused] = []
    for piece in pieces:
        reader.feed(piece)
        while (line := reader.next(limit)) is not None:
            found.append(line)
    return found


def single_octets(data: bytes) -> list[bytes]:
    return [bytes((octet,)) for octet in data]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"NOOP\r\n", [b"NOOP"]),
        (b"\r\n", [b""]),
        (b"A\r\nB\r\nC", [b"A", b"B"]),
        (b"12345678\r\n", [b"12345678"]),
        (b"123456789\r\nA\r\n", [Refused(too_long=True), b"A"]),
        (b"123456789", [Refused(too_long=True)]),
        (b"DA\0\r\nTA\r\n", [Refused(too_long=False), b"TA"]),
        (b"DA\0", [Refused(too_long=False)]),
        (b"A\nB\r\nC\r\n", [Refused(too_long=False), b"C"]),
        (b"A\rB\r\nC\r\n", [Refused(too_long=False), b"C"]),
        (b"A\r\r\nC\r\n", [Refused(too_long=False), b"C"]),
        (b"1234567\0aaaaaaa\r\n", [Refused(too_long=False)]),
        (b"12345678\0\r\n", [Refused(too_long=True)]),
        (b"12345678\r\r\n", [Refused(too_long=True)]),
        (b"\n\n\n\r\nA\r\n", [Refused(too_long=False), b"A"]),
    ],
)
def test_lines_are_cut_at_crlf_and_bad_ones_refused_once(data: bytes, expected: list[bytes | Refused]) -> None:
    assert lines([data]) == expected
    assert lines(single_octets(data)) == expected


@given(OCTETS, st.lists(st.integers(0, 60), max_size=6))
def test_every_cutting_gives_the_same_lines(data: bytes, cuts: list[int]) -> None:
    ends = sorted(min(cut, len(data)) for cut in cuts)
    pieces = [data[a:b] for a, b in zip([0, *ends], [*ends, len(data)], strict=True)]
    assert lines(pieces) == lines([data]) == lines(single_octets(data))


@given(OCTETS)
def test_nothing_forbidden_is_ever_a_line(data: bytes) -> None:
    for line in lines([data]):
        assert isinstance(line, Refused) or not {0, 10, 13} & set(line)


def test_octets_that_are_no_commands_are_taken_out() -> None:
    reader = CommandLines()
    reader.feed(b"DATA\r\ntext")
    assert reader.next(100) == b"DATA"
    assert len(reader) == 4
    assert reader.take_all() == b"text"
    assert len(reader) == 0


@pytest.mark.parametrize(
    ("line", "verb", "argument"),
    [
        (b"noop", b"NOOP", b""),
        (b"MAIL FROM:<a@b> SIZE=1 ", b"MAIL", b"FROM:<a@b> SIZE=1"),
        (b"RCPT \t TO:<a@b>", b"RCPT", b"TO:<a@b>"),
        (b"DATA ", b"DATA", b""),
        (b"", b"", b""),
        (b" NOOP", b"", b"NOOP"),
        (b"RCPT\tTO:<a@b> X=1\t", b"RCPT", b"TO:<a@b> X=1"),
        (b"RCPT\t", b"RCPT", b""),
        (b"\tNOOP x", b"", b"NOOP x"),
    ],
)
def test_a_command_is_a_verb_and_an_argument(line: bytes, verb: bytes, argument: bytes) -> None:
    assert parse_command(line) == (verb, argument)


@pytest.mark.parametrize(
    ("argument", "mailbox"),
    [
        (b"FROM:<a@b>", b"a@b"),
        (b"from: <a@b> SIZE=5 BODY=8BITMIME", b"a@b"),
        (b"FROM :<a@b>", b"a@b"),
        (b"FROM:<>", b""),
        (b"FROM:<> AUTH=<>", b""),
        (b"FROM:a@b SIZE=5", b"a@b"),
        (b"FROM:<@relay,@other:a@b>", b"a@b"),
        (b"FROM:<@odd>", b"@odd"),
        (b'FROM:<"a> b"@c> SIZE=1', b'"a> b"@c'),
        (b'FROM:<"a\\">"@c>', b'"a\\">"@c'),
        (b"FROM:<a\\>b@c>", b"a\\>b@c"),
        (b"FROM:<a@b", b"<a@b"),
        ("FROM:<dö@ü>".encode(), "dö@ü".encode()),
        (b"TO:<a@b>", b"TO:<a@b>"),
        (b"<a@b>", b"<a@b>"),
        (b"", b""),
    ],
)
def test_the_mailbox_is_taken_out_of_its_path(argument: bytes, mailbox: bytes) -> None:
    assert parse_path(argument, b"FROM") == mailbox


@given(st.binary(max_size=200))
def test_no_path_raises(argument: bytes) -> None:
    assert isinstance(parse_path(argument, b"TO"), bytes)


def test_a_hostile_path_takes_no_time() -> None:
    assert parse_path(b"FROM:<" + b'"\\' * 1000, b"FROM").startswith(b"<")


@pytest.mark.parametrize(
    ("argument", "attributes"),
    [
        (b"ADDR=192.0.2.1 NAME=x.example", {b"ADDR": b"192.0.2.1", b"NAME": b"x.example"}),
        (b"addr=IPv6:2001:db8::1", {b"ADDR": b"2001:db8::1"}),
        (b"HELO=a+20b+2Bc+3Dd", {b"HELO": b"a b+c=d"}),
        (b"HELO=ADDR=192.0.2.1", {b"HELO": b"ADDR=192.0.2.1"}),
        (b"XADDR=1 NAME=ADDR", {b"XADDR": b"1", b"NAME": b"ADDR"}),
        (b"NAME=[UNAVAILABLE] HELO=[tempunavail] PROTO=", {b"NAME": None, b"HELO": None, b"PROTO": None}),
        (b"nothing here", {}),
        (b"HELO=a+zz+4", {b"HELO": b"a+zz+4"}),
    ],
)
def test_xforward_attributes_are_attributes(argument: bytes, attributes: dict[bytes, bytes | None]) -> None:
    assert parse_xforward(argument) == attributes


@given(st.binary(min_size=1, max_size=60))
def test_what_xtext_quotes_xforward_reads(value: bytes) -> None:
    quoted = xtext(value)
    assert quoted.isascii()
    assert not set(quoted) & set(b" \r\n\0=")
    if quoted.upper() not in (b"[UNAVAILABLE]", b"[TEMPUNAVAIL]"):
        assert parse_xforward(b"HELO=" + quoted) == {b"HELO": value}


# ---- replies --------------------------------------------------------------------------------------


def replies(pieces: list[bytes]) -> list[Reply | Malformed]:
    reader = ReplyReader()
    found: list[Reply | Malformed] = []
    for piece in pieces:
        reader.feed(piece)
        while (reply := reader.next()) is not None:
            found.append(reply)
            if isinstance(reply, Malformed):
                return found
    return found


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"250 ok\r\n", [Reply(250, (b"ok",))]),
        (b"250\r\n", [Reply(250, (b"",))]),
        (b"250 \r\n", [Reply(250, (b"",))]),
        (b"250-a\r\n250-\r\n250 c\r\n354 go\r\n", [Reply(250, (b"a", b"", b"c")), Reply(354, (b"go",))]),
        (b"250 ok\n", [Reply(250, (b"ok",))]),
        (b"250 ok\r", []),
        (b"250-ok\r\n", []),
        (b"250-ok\r\n250", []),
        (b"250 caf\xc3\xa9\r\n", [Reply(250, (b"caf\xc3\xa9",))]),
        (b"250-a\r\n251 b\r\n", [Malformed(b"251 b")]),
        (b"hello\r\n", [Malformed(b"hello")]),
        (b"2500 ok\r\n", [Malformed(b"2500 ok")]),
        (b"150 ok\r\n", [Malformed(b"150 ok")]),
        (b"\r\n", [Malformed(b"")]),
        (b"250 a\rb\r\n", [Malformed(b"250 a\rb")]),
        (b"250 a\0b\r\n", [Malformed(b"250 a\0b")]),
    ],
)
def test_a_reply_is_complete_with_its_last_line(data: bytes, expected: list[Reply | Malformed]) -> None:
    assert replies([data]) == expected
    assert replies(single_octets(data)) == expected


@pytest.mark.parametrize(
    "data", [b"250-" + b"x" * REPLY_MAX, b"250-x\r\n" * (REPLY_MAX // 5 + 1), b"x" * (REPLY_MAX + 1)]
)
def test_a_reply_without_end_is_none(data: bytes) -> None:
    found = replies([data])
    assert len(found) == 1
    assert isinstance(found[0], Malformed)
    assert len(found[0].text) <= 200


@pytest.mark.parametrize(
    ("reply", "positive", "negative", "encoded"),
    [
        (Reply(250, (b"ok",)), True, False, b"250 ok\r\n"),
        (Reply(299, (b"a", b"b")), True, False, b"299-a\r\n299 b\r\n"),
        (Reply(354, (b"",)), False, False, b"354 \r\n"),
        (Reply(450, (b"x",)), False, True, b"450 x\r\n"),
        (Reply(599, (b"x",)), False, True, b"599 x\r\n"),
    ],
)
def test_what_a_reply_means_and_how_it_is_passed_on(
    reply: Reply, positive: bool, negative: bool, encoded: bytes
) -> None:
    assert (reply.positive, reply.negative, reply.encode()) == (positive, negative, encoded)
    assert reply.intermediate is not (positive or negative)
    (read,) = replies([encoded])
    assert read == reply
    assert isinstance(read, Reply)
    assert read.encode() == encoded


@given(st.binary(max_size=300), st.integers(1, 9))
def test_garbage_never_raises(data: bytes, size: int) -> None:
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    assert replies(pieces) == replies([data])


# ---- chunks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "chunk"),
    [
        (b"0", (0, False)),
        (b"12", (12, False)),
        (b"0012 LAST", (12, True)),
        (b"12 \t last", (12, True)),
        (b"12 FIRST", (12, None)),
        (b"12 LAST LAST", (12, None)),
        (b"9" * 20, (10**20 - 1, False)),
        (b"9" * 21, None),
        (b"", None),
        (b"LAST", None),
        (b"-1", None),
        (b"+1", None),
        (b"1_0", None),
        (b"\xb2", None),
    ],
)
def test_the_argument_of_bdat(argument: bytes, chunk: tuple[int, bool | None] | None) -> None:
    assert parse_chunk(argument) == chunk


def test_octets_are_taken_out_by_number() -> None:
    lines = CommandLines()
    lines.feed(b"BDAT 4\r\na\r")
    assert lines.next(100) == b"BDAT 4"
    assert lines.take(4) == b"a\r"
    assert lines.take(2) == b""
    lines.feed(b"\nb\nNOOP\r\n")
    assert lines.take(3) == b"\nb\n"
    assert lines.next(100) == b"NOOP"


@pytest.mark.parametrize(
    ("argument", "found"),
    [
        (b"FROM:<a@b> body=BinaryMIME", True),
        (b"FROM:<a@b> SIZE=3 BODY=BINARYMIME X=y", True),
        (b"FROM:<a@b> BODY=BINARYMIMES", False),
        (b"FROM:<BODY=BINARYMIME>", False),
    ],
)
def test_a_parameter_of_mail(argument: bytes, found: bool) -> None:
    assert has_parameter(argument, b"BODY=BINARYMIME") is found


def test_a_reader_of_replies_knows_whether_something_is_left() -> None:
    reader = ReplyReader()
    assert not reader
    reader.feed(b"220 go\r\n2")
    assert reader.next() is not None
    assert reader
    reader = ReplyReader()
    reader.feed(b"220-go\r\n")
    assert reader.next() is None
    assert reader
