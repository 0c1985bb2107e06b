"""A message while it comes in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamsmtpd.smtp.body import unstuff
from clamsmtpd.smtp.message import Message


def test_data_counts_without_stuffed_dots() -> None:
    message = Message(limit=9)
    assert message.feed(b"..a\r\n..b\r\n.\r\nQUIT\r\n") == (b"..a\r\n..b\r\n", b"QUIT\r\n")
    assert (message.length, message.size, message.stuffed) == (10, 8, True)
    assert not message.too_large


@pytest.mark.parametrize(("limit", "too_large"), [(2, True), (3, False), (None, False)])
def test_the_limit(limit: int | None, too_large: bool) -> None:
    message = Message(limit=limit)
    message.feed(b"x\r\n.\r\n")
    assert message.too_large is too_large
    assert message.would_be_too_large(1) is (limit is not None)


def test_chunks_for_bdat_stay_as_they_are() -> None:
    message = Message(chunked=True, raw=True)
    assert message.feed_chunk(b"S: x\r\n\r\n.\r\n") == b"S: x\r\n\r\n.\r\n"
    assert message.feed_chunk(b"\n.\nend") == b"\n.\nend"
    assert message.finish_chunks() == b""
    assert (message.length, message.size) == (17, 17)
    assert not message.stuffed
    assert not message.deceptive
    assert message.header.end == 6


def test_chunks_for_data_are_stuffed_and_end_in_crlf() -> None:
    message = Message(chunked=True)
    assert message.feed_chunk(b".x\r") == b"..x\r"
    assert message.feed_chunk(b"\n.") == b"\n.."
    assert message.feed_chunk(b"") == b""
    assert message.finish_chunks() == b"\r\n"
    assert (message.length, message.size) == (9, 5)
    assert message.stuffed
    assert not message.deceptive


@pytest.mark.parametrize("text", [b"a\n.\nb\r\n", b"a\r.\r\n", b"\0.\r\n", b"a\r\0\n.\r\n", b"a\r\r.\r\r\n"])
def test_chunks_for_data_may_be_deceptive(text: bytes) -> None:
    for size in (len(text), 1):
        message = Message(chunked=True)
        for at in range(0, len(text), size):
            message.feed_chunk(text[at : at + size])
        message.finish_chunks()
        assert message.deceptive


def test_an_empty_message_needs_no_line_end() -> None:
    assert Message(chunked=True).finish_chunks() == b""


def test_without_an_empty_line_all_of_it_may_be_header_section() -> None:
    message = Message(chunked=True)
    message.feed_chunk(b"A: b\r\ntext")
    message.finish_chunks()
    assert message.header_reach == message.length == 12
    message = Message()
    message.feed(b"A: b\r\n\r\ntext\r\n.\r\n")
    assert message.header_reach == 6


def test_a_failed_message_has_no_header_to_look_for() -> None:
    message = Message()
    message.failure = b"451 no\r\n"
    message.feed(b"S: x\r\n")
    assert message.header.end == 0


@given(st.lists(st.text("a.\r\n\0").map(str.encode)))
def test_chunks_come_back_as_they_were_however_they_are_cut(chunks: list[bytes]) -> None:
    message = Message(chunked=True)
    wire = b"".join([*map(message.feed_chunk, chunks), message.finish_chunks()])
    text = b"".join(chunks)
    whole = text if text.endswith(b"\r\n") or not text else text + b"\r\n"
    assert b"".join(unstuff([wire])) == whole
    assert b"\r\n.\r\n" not in b"\r\n" + wire
    assert message.length == len(wire)
    # As DATA would see it.
    through = Message()
    through.feed(wire + b".\r\n")
    assert through.deceptive == message.deceptive
