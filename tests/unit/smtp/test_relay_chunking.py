"""CHUNKING and BINARYMIME (RFC 3030)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamsmtpd.smtp.events import Awaits, BeginMessage, Inspect, Store, ToClient, Transmit
from clamsmtpd.smtp.relay import Relay, Terms
from clamsmtpd.values import Deliver
from tests.support.transcript import GREETING, play


def hello(*offers: str) -> str:
    """A greeting, and an EHLO to which the next hop answers with ``offers``."""
    lines = ["hop.example", *offers]
    passed = [offer for offer in offers if offer.split()[0] in ("SIZE", "BINARYMIME")]
    ours = ["clamsmtpd.localdomain", "PIPELINING", "CHUNKING", *passed]
    said = [f"<- 250-{line}" for line in lines[:-1]] + [f"<- 250 {lines[-1]}"]
    heard = [f"<< 250-{line}" for line in ours[:-1]] + [f"<< 250 {ours[-1]}"]
    return GREETING + "\n".join([">> EHLO client.example", "-> EHLO client.example", *said, *heard, ""])


ENVELOPE = """
    >> MAIL FROM:<a@example.org>
    -> MAIL FROM:<a@example.org>
    <- 250 ok
    << 250 ok
    >> RCPT TO:<b@example.org>
    -> RCPT TO:<b@example.org>
    <- 250 ok
    << 250 ok
"""

CHUNKING = hello("CHUNKING") + ENVELOPE
PLAIN = hello() + ENVELOPE


def test_to_a_next_hop_with_bdat_in_one_chunk() -> None:
    play(
        CHUNKING
        + r"""
        >> BDAT 12
        >> Subject: x
        ** begin
        ** store Subject: x\r\n
        << 250 2.0.0 12 octets received
        >> BDAT 8 LAST
        >> \r\n.\r\nend\c
        ** store \r\n.\r\nend
        ** inspect a@example.org b@example.org
        .. decide deliver
        -> BDAT 36 LAST
        ** transmit 12 X-Scanned: yes\r\n
        .. transmitted
        <- 250 queued
        << 250 queued
        ** discard
        >> NOOP
        -> NOOP
    """
    )


def test_the_length_of_the_chunk_counts_every_insertion() -> None:
    play(
        CHUNKING
        + r"""
        >> BDAT 17 LAST
        >> Subject: x\r\n\r\nend\c
        ** begin
        ** store Subject: x\r\n\r\nend
        ** inspect a@example.org b@example.org
        .. decide deliver-renamed
        -> BDAT 45 LAST
        ** transmit 0 X-Old- 8 X-Old- 12 X-Scanned: yes\r\n
    """
    )


def test_to_a_next_hop_without_it_by_data_with_dots_stuffed() -> None:
    play(
        PLAIN
        + r"""
        >> BDAT 3
        >> \r\n.\c
        ** begin
        ** store \r\n..
        << 250 2.0.0 3 octets received
        >> BDAT 5 LAST
        >> \r\n.ab\c
        ** store \r\n..ab\r\n
        ** inspect a@example.org b@example.org stuffed
        .. decide deliver-plain
        -> DATA
        <- 354 go
        ** transmit 0
        .. transmitted
        <- 250 queued
        << 250 queued
        ** discard
    """
    )


def test_after_helo_it_is_data() -> None:
    play(
        GREETING
        + """
        >> HELO client.example
        -> HELO client.example
        <- 250 hop.example
        << 250 clamsmtpd.localdomain
    """
        + ENVELOPE
        + r"""
        >> BDAT 3 LAST
        >> x
        ** begin
        ** store x\r\n
        ** inspect a@example.org b@example.org
        .. decide deliver-plain
        -> DATA
    """
    )


def test_a_chunk_of_nothing_may_be_the_last_or_the_only_one() -> None:
    play(
        CHUNKING
        + r"""
        >> BDAT 1
        >> x\c
        ** begin
        ** store x
        << 250 2.0.0 1 octets received
        >> BDAT 0
        << 250 2.0.0 0 octets received
        >> bdat 0   last
        ** inspect a@example.org b@example.org
        .. decide drop
        << 250 2.0.0 Virus found; message discarded
        ** discard
        -> RSET
        <- 250 ok
    """
        + ENVELOPE
        + r"""
        >> BDAT 0 LAST
        ** begin
        ** inspect a@example.org b@example.org
        .. decide deliver-plain
        -> BDAT 0 LAST
        ** transmit 0
        .. transmitted
        <- 250 queued
        << 250 queued
        ** discard
    """
    )


def test_chunks_are_never_commands() -> None:
    play(
        CHUNKING
        + r"""
        >> BDAT 12
        >> QUIT
        >> RSET
        >> BDAT 12 LAST
        >> DATA
        >> .
        >> NO\r\c
        ** begin
        ** store QUIT\r\nRSET\r\n
        << 250 2.0.0 12 octets received
        ** store DATA\r\n.\r\nNO\r
        ** inspect a@example.org b@example.org
    """
    )


def test_rset_between_chunks_throws_them_away() -> None:
    play(
        CHUNKING
        + r"""
        >> BDAT 3
        >> a
        ** begin
        ** store a\r\n
        << 250 2.0.0 3 octets received
        >> RSET
        ** discard
        -> RSET
        <- 250 ok
        << 250 ok
        >> BDAT 3 LAST
        >> b
        << 503 5.5.1 Send MAIL first
    """
        + ENVELOPE
        + r"""
        >> BDAT 3 LAST
        >> c
        ** begin
        ** store c\r\n
        ** inspect a@example.org b@example.org
    """
    )


@pytest.mark.parametrize("verb", ["EHLO", "HELO"])
def test_a_new_hello_between_chunks_throws_them_away(verb: str) -> None:
    play(
        CHUNKING
        + rf"""
        >> BDAT 3
        >> a
        ** begin
        ** store a\r\n
        << 250 2.0.0 3 octets received
        >> {verb} again
        ** discard
        -> {verb} again
        <- 500 no
        << 500 no
        >> BDAT 0 LAST
        ** begin
        ** inspect a@example.org b@example.org
    """
    )


def test_a_next_hop_that_refuses_rset_must_not_get_the_rest_of_the_message() -> None:
    play(
        CHUNKING
        + r"""
        >> BDAT 3
        >> a
        ** begin
        ** store a\r\n
        << 250 2.0.0 3 octets received
        >> RSET
        ** discard
        -> RSET
        <- 450 not now
        ** note next hop answered RSET with 450 not now
        ** close server
        << 421 4.3.0 Next hop gave an answer out of order; try again later
        ** close client
    """
    )


def test_what_has_no_place_between_chunks() -> None:
    commands = ["MAIL FROM:<x>", "RCPT TO:<x>", "DATA", "XFORWARD ADDR=192.0.2.1", "AUTH PLAIN", "ETRN x"]
    refused = "".join(f">> {command}\n<< 503 5.5.1 Not between the chunks of a message\n" for command in commands)
    play(
        CHUNKING
        + r"""
        >> BDAT 3
        >> a
        ** begin
        ** store a\r\n
        << 250 2.0.0 3 octets received
    """
        + refused
        + r"""
        >> NOOP
        -> NOOP
        <- 250 ok
        << 250 ok
        >> BDAT 3 LAST
        >> b
        ** store b\r\n
        ** inspect a@example.org b@example.org
    """
    )


def test_bdat_out_of_order_is_read_and_refused() -> None:
    play(
        hello("CHUNKING")
        + """
        >> BDAT 6 LAST
        >> QUIT
        << 503 5.5.1 Send MAIL first
        >> MAIL FROM:<a@example.org>
        -> MAIL FROM:<a@example.org>
        <- 250 ok
        << 250 ok
        >> BDAT 6
        >> QUIT
        ** begin
        ** discard
        << 554 5.5.1 No valid recipients
        >> RCPT TO:<b@example.org>
        << 503 5.5.1 Not between the chunks of a message
        >> BDAT 6 LAST
        >> QUIT
        << 503 5.5.1 A chunk of this message was refused; send RSET
        -> RSET
        <- 250 ok
    """
        + ENVELOPE
    )


def test_a_message_without_one_of_its_chunks_goes_nowhere() -> None:
    play(
        CHUNKING
        + r"""
        >> BDAT 3 FIRST
        >> a
        >> BDAT 3
        >> b
        >> BDAT 3 LAST
        >> c
        ** begin
        ** discard
        << 501 5.5.4 BDAT takes a length and LAST, and nothing else
        << 503 5.5.1 A chunk of this message was refused; send RSET
        << 503 5.5.1 A chunk of this message was refused; send RSET
        -> RSET
        <- 250 ok
        >> NOOP
        -> NOOP
    """
    )


def test_after_a_refused_chunk_rset_makes_good() -> None:
    play(
        CHUNKING
        + r"""
        >> BDAT 3 X
        >> a
        ** begin
        ** discard
        << 501 5.5.4 BDAT takes a length and LAST, and nothing else
        >> RSET
        -> RSET
        <- 250 ok
        << 250 ok
    """
        + ENVELOPE
        + r"""
        >> BDAT 3 LAST
        >> c
        ** begin
        ** store c\r\n
        ** inspect a@example.org b@example.org
    """
    )


@pytest.mark.parametrize("length", ["", "LAST", "-1", "1e3", "123456789012345678901", "0x10", "\\xb2"])
def test_a_length_that_nobody_can_read_ends_the_dialogue(length: str) -> None:
    play(
        CHUNKING
        + rf"""
        >> BDAT {length}
        << 421 4.5.4 BDAT without a length that can be read; closing
        ** close server
        ** close client
        >> QUIT
    """
    )


def test_whoever_stores_the_text_hears_whether_dots_are_stuffed_in_it() -> None:
    for dialogue, raw in (CHUNKING, True), (PLAIN, False):
        assert play(dialogue).client_data(b"BDAT 5\r\n") == [BeginMessage(raw=raw)]


def test_a_length_of_twenty_digits_is_read_to_its_end() -> None:
    relay = play(hello("CHUNKING", "SIZE 1000") + ENVELOPE)
    assert [type(effect).__name__ for effect in relay.client_data(b"BDAT 99999999999999999999 LAST\r\n")] == [
        "BeginMessage",
        "Discard",
    ]
    for _ in range(3):
        assert relay.client_data(b"QUIT\r\n" * 10000) == []
    assert relay.awaits is Awaits.DATA
    assert [type(effect).__name__ for effect in relay.client_eof()] == ["CloseServer", "CloseClient"]


def test_a_chunk_past_the_announced_size_is_read_and_refused() -> None:
    play(
        hello("CHUNKING", "SIZE 4")
        + ENVELOPE
        + r"""
        >> BDAT 3
        >> a
        ** begin
        ** store a\r\n
        << 250 2.0.0 3 octets received
        >> BDAT 2
        ** discard
        >> bc\c
        << 552 5.3.4 Message is larger than the next hop takes
        >> BDAT 1 LAST
        >> d\c
        << 503 5.5.1 A chunk of this message was refused; send RSET
        -> RSET
        <- 250 ok
        >> NOOP
        -> NOOP
    """
    )


def test_a_last_chunk_past_the_announced_size() -> None:
    play(
        hello("CHUNKING", "SIZE 4")
        + ENVELOPE
        + r"""
        >> BDAT 5 LAST
        ** begin
        ** discard
        >> abcde\c
        << 552 5.3.4 Message is larger than the next hop takes
        -> RSET
    """
    )


def test_exactly_the_announced_size_passes() -> None:
    play(
        hello("SIZE 4")
        + ENVELOPE
        + r"""
        >> BDAT 4 LAST
        >> .a
        ** begin
        ** store ..a\r\n
        ** inspect a@example.org b@example.org stuffed
    """
    )


def test_data_past_the_announced_size_is_read_and_refused() -> None:
    play(
        hello("SIZE 4")
        + ENVELOPE
        + r"""
        >> DATA
        ** begin
        << 354 End data with <CR><LF>.<CR><LF>
        >> ..a
        ** store ..a\r\n
        >> b\c
        ** discard
        >> QUIT
        >> .
        << 552 5.3.4 Message is larger than the next hop takes
        -> RSET
        <- 250 ok
        >> NOOP
        -> NOOP
    """
    )


def test_bare_line_ends_around_a_dot_pass_by_bdat_and_not_by_data() -> None:
    chunk = r"""
        >> BDAT 10 LAST
        >> a\n.\nMAIL x\c
    """
    play(
        CHUNKING
        + chunk
        + r"""
        ** begin
        ** store a\n.\nMAIL x
        ** inspect a@example.org b@example.org
    """
    )
    play(
        PLAIN
        + chunk
        + r"""
        ** begin
        ** store a\n.\nMAIL x\r\n
        ** note message refused: a dot stands between line ends that are not CRLF
        << 550 5.6.0 Message holds a dot between line ends that are not CRLF
        ** discard
        -> RSET
    """
    )


BINARY = (
    hello("CHUNKING", "BINARYMIME")
    + """
    >> MAIL FROM:<a@example.org> body=BinaryMIME
    -> MAIL FROM:<a@example.org> body=BinaryMIME
    <- 250 ok
    << 250 ok
    >> RCPT TO:<b@example.org>
    -> RCPT TO:<b@example.org>
    <- 250 ok
    << 250 ok
"""
)


def test_binarymime_goes_by_bdat_and_not_by_data() -> None:
    play(
        BINARY
        + r"""
        >> DATA
        << 503 5.5.1 BODY=BINARYMIME goes with BDAT only
        >> BDAT 6 LAST
        >> \0\r\r\n.\n\c
        ** begin
        ** store \x00\r\r\n.\n
        ** inspect a@example.org b@example.org
        .. decide deliver-plain
        -> BDAT 6 LAST
        ** transmit 0
    """
    )


def test_binarymime_needs_the_whole_way() -> None:
    play(
        hello("BINARYMIME").replace("CHUNKING\n<< 250 BINARYMIME", "CHUNKING").replace("250-CHUNKING", "250 CHUNKING")
        + """
        >> MAIL FROM:<a@example.org> BODY=BINARYMIME
        << 555 5.5.4 BODY=BINARYMIME is not offered here
        >> MAIL FROM:<BODY=BINARYMIME@example.org>
        -> MAIL FROM:<BODY=BINARYMIME@example.org>
    """
    )


def test_the_next_hop_refuses_the_chunk() -> None:
    play(
        CHUNKING
        + r"""
        >> BDAT 3 LAST
        >> x
        ** begin
        ** store x\r\n
        ** inspect a@example.org b@example.org
        .. decide deliver-plain
        -> BDAT 3 LAST
        ** transmit 0
        .. transmitted
        <- 554 5.6.0 do not like it
        ** note next hop refused the message: 554 5.6.0 do not like it
        << 554 5.6.0 do not like it
        ** discard
        >> NOOP
        -> NOOP
    """
    )


def test_the_next_hop_is_lost_inside_a_chunk_that_comes_in() -> None:
    play(
        CHUNKING
        + r"""
        >> BDAT 5 LAST
        >> x
        ** begin
        ** store x\r\n
        .. server-lost gone
        ** note next hop: gone
        ** close server
        ** discard
        >> yz\c
        << 451 4.4.2 Connection to the next hop was lost; try again later
        << 421 4.4.2 Connection to the next hop was lost; try again later
        ** close client
    """
    )


def test_the_next_hop_is_lost_inside_a_chunk_that_is_not_the_last() -> None:
    play(
        CHUNKING
        + r"""
        >> BDAT 5
        >> x
        ** begin
        ** store x\r\n
        .. server-lost gone
        ** note next hop: gone
        ** close server
        ** discard
        >> yz\c
        << 451 4.4.2 Connection to the next hop was lost; try again later
        << 421 4.4.2 Connection to the next hop was lost; try again later
        ** close client
    """
    )


def test_the_next_hop_is_lost_between_chunks() -> None:
    play(
        CHUNKING
        + r"""
        >> BDAT 3
        >> x
        ** begin
        ** store x\r\n
        << 250 2.0.0 3 octets received
        .. server-lost gone
        ** note next hop: gone
        ** close server
        << 421 4.4.2 Connection to the next hop was lost; try again later
        ** discard
        ** close client
    """
    )


def test_the_client_is_lost_inside_a_chunk() -> None:
    for event in ("client-eof", "client-lost"):
        play(
            CHUNKING
            + rf"""
            >> BDAT 5 LAST
            >> x
            ** begin
            ** store x\r\n
            .. {event}
            ** discard
            ** close server
            ** close client
        """
        )


def test_storage_fails_in_the_midst_of_chunks() -> None:
    play(
        CHUNKING
        + r"""
        >> BDAT 5
        >> x
        ** begin
        ** store x\r\n
        .. storage-failed
        ** discard
        >> yz\c
        << 451 4.3.1 Message cannot be stored now; try again later
        >> BDAT 3 LAST
        >> z
        << 503 5.5.1 A chunk of this message was refused; send RSET
        -> RSET
    """
    )


def test_the_next_hop_is_kept_awake_between_chunks() -> None:
    play(
        CHUNKING
        + r"""
        >> BDAT 3
        >> x
        ** begin
        ** store x\r\n
        << 250 2.0.0 3 octets received
        .. keep-alive
        -> NOOP
        >> BDAT 0 LAST
        <- 250 ok
        ** inspect a@example.org b@example.org
    """
    )


def test_a_client_that_pipelines_it_all() -> None:
    play(
        hello("CHUNKING", "PIPELINING")
        + r"""
        >> MAIL FROM:<a@example.org>
        >> RCPT TO:<b@example.org>
        >> BDAT 3
        >> x
        >> BDAT 3 LAST
        >> y
        >> QUIT
        -> MAIL FROM:<a@example.org>
        -> RCPT TO:<b@example.org>
        <- 250 ok
        << 250 ok
        <- 250 ok
        << 250 ok
        ** begin
        ** store x\r\n
        << 250 2.0.0 3 octets received
        ** store y\r\n
        ** inspect a@example.org b@example.org
        .. decide deliver-plain
        -> BDAT 6 LAST
        ** transmit 0
        .. transmitted
        <- 250 queued
        << 250 queued
        ** discard
        -> QUIT
    """
    )


@given(
    st.lists(st.text("a.\r\n\0").map(str.encode), min_size=1, max_size=6),
    st.lists(st.integers(1, 9)),
    st.booleans(),
)
def test_every_message_in_every_cutting(chunks: list[bytes], cuts: list[int], raw: bool) -> None:
    """What is in the chunks is what is judged and sent; what stands behind them is the next command."""
    relay = Relay()
    relay.server_data(b"220 hop\r\n")
    relay.client_data(b"EHLO x\r\n")
    relay.server_data(b"250-hop\r\n250 CHUNKING\r\n" if raw else b"250 hop\r\n")
    for line in (b"MAIL FROM:<a>\r\n", b"RCPT TO:<b>\r\n"):
        relay.client_data(line)
        relay.server_data(b"250 ok\r\n")
    *first, last = chunks
    data = b"".join(b"BDAT %d\r\n%b" % (len(chunk), chunk) for chunk in first)
    data += b"BDAT %d LAST\r\n%bNOOP\r\n" % (len(last), last)
    effects = []
    for cut in cuts:
        effects += relay.client_data(data[:cut])
        data = data[cut:]
    effects += relay.client_data(data)
    text = b"".join(chunks)
    replies = [effect.data for effect in effects if isinstance(effect, ToClient)]
    taken = [b"250 2.0.0 %d octets received\r\n" % len(chunk) for chunk in first]
    stored = b"".join(effect.text for effect in effects if isinstance(effect, Store))
    if raw:
        assert stored == text
    if replies == taken:
        assert isinstance(effects[-1], Inspect)
        effects = relay.decide(Deliver())
        if not raw:
            effects = relay.server_data(b"354 go\r\n")
        (sending,) = effects
        assert isinstance(sending, Transmit)
        assert sending.before == (b"BDAT %d LAST\r\n" % len(text) if raw else b"")
        relay.transmitted()
        assert b"".join(e.data for e in relay.server_data(b"250 queued\r\n") if isinstance(e, ToClient)) == (
            b"250 queued\r\n"
        )
    else:
        # Nothing but a dot between line ends of which one is not CRLF, on the way to DATA.
        assert not raw
        assert replies == [*taken, b"550 5.6.0 Message holds a dot between line ends that are not CRLF\r\n"]


def test_a_message_that_could_not_be_judged_in_time_is_refused_at_its_first_chunk() -> None:
    play(
        CHUNKING
        + r"""
        >> BDAT 6
        >> QUIT
        ** begin
        ** discard
        << 451 4.3.2 Virus scan not possible in time now; try again later
        >> RSET
        -> RSET
        <- 250 ok
        << 250 ok
    """,
        Terms(admits=lambda: False),
    )


def test_a_message_that_has_begun_is_not_turned_away_any_more() -> None:
    asked: list[bool] = []

    def admits() -> bool:
        asked.append(True)
        return True

    play(
        CHUNKING
        + r"""
        >> BDAT 3
        >> a
        ** begin
        ** store a\r\n
        << 250 2.0.0 3 octets received
        >> BDAT 3 LAST
        >> b
        ** store b\r\n
        ** inspect a@example.org b@example.org
    """,
        Terms(admits=admits),
    )
    performances = 3
    assert len(asked) == performances
