"""PIPELINING (RFC 2920): offered to every client, used with a next hop that offers it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from clamsmtpd.smtp.events import Awaits, ToClient, ToServer
from clamsmtpd.smtp.relay import OUTSTANDING_MAX, Relay
from tests.support.transcript import GREETING, play

EHLO = (
    GREETING
    + """
    >> EHLO client.example
    -> EHLO client.example
    <- 250-hop.example
    <- 250-SIZE 1000
    <- 250 PIPELINING
    << 250-clamsmtpd.localdomain
    << 250-PIPELINING
    << 250-CHUNKING
    << 250 SIZE 1000
"""
)


def test_a_batch_costs_one_round_trip() -> None:
    play(
        EHLO
        + r"""
        >> MAIL FROM:<a@example.org>
        >> RCPT TO:<b@example.org>
        >> RCPT TO:<c@example.org>
        >> DATA
        -> MAIL FROM:<a@example.org>
        -> RCPT TO:<b@example.org>
        -> RCPT TO:<c@example.org>
        <- 250 2.1.0 sender
        <- 550 5.1.1 unknown
        <- 250 2.1.5 recipient
        << 250 2.1.0 sender
        << 550 5.1.1 unknown
        << 250 2.1.5 recipient
        ** begin
        << 354 End data with <CR><LF>.<CR><LF>
        >> text
        >> .
        ** store text\r\n
        ** inspect a@example.org c@example.org
    """
    )


def test_replies_that_come_one_by_one_go_one_by_one() -> None:
    play(
        EHLO
        + """
        >> MAIL FROM:<a@example.org>
        >> RCPT TO:<b@example.org>
        -> MAIL FROM:<a@example.org>
        -> RCPT TO:<b@example.org>
        <- 250-sender
        <- 250 is good
        << 250-sender
        << 250 is good
        <- 250 recipient
        << 250 recipient
        >> QUIT
        -> QUIT
    """
    )


def test_without_an_offer_commands_go_one_by_one() -> None:
    play(
        GREETING
        + """
        >> MAIL FROM:<a@example.org>
        >> RCPT TO:<b@example.org>
        >> NOOP
        -> MAIL FROM:<a@example.org>
        <- 250 sender
        << 250 sender
        -> RCPT TO:<b@example.org>
        <- 250 recipient
        << 250 recipient
        -> NOOP
    """
    )


def test_after_helo_the_offer_does_not_hold() -> None:
    play(
        EHLO
        + """
        >> HELO client.example
        -> HELO client.example
        <- 250 hop.example
        << 250 clamsmtpd.localdomain
        >> MAIL FROM:<a@example.org>
        >> RCPT TO:<b@example.org>
        -> MAIL FROM:<a@example.org>
        <- 250 sender
        << 250 sender
        -> RCPT TO:<b@example.org>
    """
    )


def test_a_command_that_ends_a_group_waits_for_its_replies() -> None:
    for command in ("NOOP", "VRFY x", "EHLO again", "QUIT", "AUTH PLAIN"):
        play(
            EHLO
            + f"""
            >> RSET
            >> MAIL FROM:<a@example.org>
            >> {command}
            >> NOOP
            -> RSET
            -> MAIL FROM:<a@example.org>
            <- 250 ok
            << 250 ok
            <- 250 ok
            << 250 ok
            -> {command}
        """
        )


def test_our_own_refusals_keep_their_place() -> None:
    play(
        EHLO
        + """
        >> MAIL FROM:<a@example.org>
        >> RCPT TO:<x\\ny@example.org>
        >> NONSENSE
        >> RCPT TO:<b\\0@example.org>
        >> MAIL FROM:<a@example.org> BODY=BINARYMIME
        >> RCPT TO:<c@example.org>
        -> MAIL FROM:<a@example.org>
        <- 250 sender
        << 250 sender
        << 500 5.5.2 Commands end with CRLF and hold no NUL, CR or LF
        << 500 5.5.1 Command not recognized
        << 500 5.5.2 Commands end with CRLF and hold no NUL, CR or LF
        << 555 5.5.4 BODY=BINARYMIME is not offered here
        -> RCPT TO:<c@example.org>
    """
    )


def test_a_second_transaction_behind_the_final_dot_is_served_in_turn() -> None:
    play(
        EHLO
        + r"""
        >> MAIL FROM:<a@example.org>
        >> RCPT TO:<b@example.org>
        >> DATA
        -> MAIL FROM:<a@example.org>
        -> RCPT TO:<b@example.org>
        <- 250 ok
        <- 250 ok
        << 250 ok
        << 250 ok
        ** begin
        << 354 End data with <CR><LF>.<CR><LF>
        >> one
        >> .
        >> MAIL FROM:<c@example.org>
        >> RCPT TO:<d@example.org>
        >> DATA
        ** store one\r\n
        ** inspect a@example.org b@example.org
        .. decide deliver-plain
        -> DATA
        <- 354 go
        ** transmit 0
        .. transmitted
        <- 250 queued
        << 250 queued
        ** discard
        -> MAIL FROM:<c@example.org>
        -> RCPT TO:<d@example.org>
        <- 250 ok
        << 250 ok
        <- 550 no
        << 550 no
        << 554 5.5.1 No valid recipients
    """
    )


def test_a_reply_of_421_ends_the_batch() -> None:
    play(
        EHLO
        + """
        >> MAIL FROM:<a@example.org>
        >> RCPT TO:<b@example.org>
        -> MAIL FROM:<a@example.org>
        -> RCPT TO:<b@example.org>
        <- 421 going away
        << 421 going away
        ** close server
        ** close client
    """
    )


def test_a_reply_too_many_is_out_of_order() -> None:
    play(
        EHLO
        + """
        >> MAIL FROM:<a@example.org>
        -> MAIL FROM:<a@example.org>
        <- 250 one
        << 250 one
        <- 250 two
        ** note next hop sent a reply that nobody asked for: 250 two
        ** close server
        << 421 4.3.0 Next hop gave an answer out of order; try again later
        ** close client
    """
    )


def test_draining_lets_a_batch_end() -> None:
    play(
        EHLO
        + """
        >> MAIL FROM:<a@example.org>
        -> MAIL FROM:<a@example.org>
        .. drain
        >> RCPT TO:<b@example.org>
        -> RCPT TO:<b@example.org>
        <- 250 ok
        << 250 ok
        <- 550 no
        << 550 no
        >> RSET
        -> RSET
        <- 250 ok
        << 250 ok
        << 421 4.3.2 Service shutting down; try again later
        ** close server
        ** close client
    """
    )


def test_xforward_joins_the_batch() -> None:
    play(
        EHLO
        + r"""
        >> XFORWARD ADDR=192.0.2.9
        >> MAIL FROM:<a@example.org>
        >> RCPT TO:<b@example.org>
        -> XFORWARD ADDR=192.0.2.9
        -> MAIL FROM:<a@example.org>
        -> RCPT TO:<b@example.org>
        <- 250 one
        << 250 one
        <- 250 two
        << 250 two
        <- 250 three
        << 250 three
        >> DATA
        ** begin
        << 354 End data with <CR><LF>.<CR><LF>
        >> .
        ** inspect a@example.org b@example.org remote=192.0.2.9
    """
    )


def test_what_is_outstanding_has_a_bound() -> None:
    relay = play(EHLO)
    effects = relay.client_data(b"RCPT TO:<b@example.org>\r\n" * (OUTSTANDING_MAX + 5))
    assert len(effects) == OUTSTANDING_MAX
    assert relay.awaits is Awaits.REPLY
    effects = relay.server_data(b"550 no\r\n" * 3)
    assert [type(effect) for effect in effects] == [ToClient] * 3 + [ToServer] * 3


def test_no_command_is_begun_for_a_client_that_does_not_read() -> None:
    relay = play(EHLO)
    assert relay.client_full(full=True) == []
    assert relay.client_data(b"NOOP\r\nWHAT\r\n") == []
    assert relay.client_eof() == []
    assert relay.client_full(full=False) == [ToServer(b"NOOP\r\n")]
    assert relay.client_full(full=True) == []
    assert relay.server_data(b"250 ok\r\n") == [ToClient(b"250 ok\r\n")]
    assert relay.awaits is Awaits.COMMAND
    effects = relay.client_full(full=False)
    assert effects[0] == ToClient(b"500 5.5.1 Command not recognized\r\n")
    assert [type(effect).__name__ for effect in effects[1:]] == ["CloseServer", "CloseClient"]


def test_a_client_that_leaves_in_a_batch_gets_its_replies_first() -> None:
    relay = play(EHLO)
    relay.client_data(b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\n")
    assert relay.client_eof() == []
    assert relay.server_data(b"250 ok\r\n") == [ToClient(b"250 ok\r\n")]
    closing = relay.server_data(b"250 ok\r\n")
    assert closing[0] == ToClient(b"250 ok\r\n")
    assert relay.awaits is Awaits.NOTHING


#: Commands, and whether the next hop's reply to them tells which command it saw.
_COMMANDS = st.sampled_from(
    [b"MAIL FROM:<%d>", b"RCPT TO:<%d>", b"RSET %d", b"NOOP %d", b"VRFY %d", b"XFORWARD NAME=%d", b"EXPN %d"]
)


@given(
    st.lists(st.one_of(_COMMANDS, st.just(b"NONSENSE")), max_size=40),
    st.lists(st.integers(1, 30)),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_each_command_gets_its_own_reply_however_it_is_cut(
    commands: list[bytes], cuts: list[int], pipelining: bool, random: st.DataObject
) -> None:
    """Every reply says which command it answers; they come in order whatever the timing."""
    relay = Relay()
    relay.server_data(b"220 hop\r\n")
    relay.client_data(b"EHLO x\r\n")
    relay.server_data(b"250-hop\r\n250 PIPELINING\r\n" if pipelining else b"250 hop\r\n")
    lines = [command % number if b"%d" in command else command for number, command in enumerate(commands)]
    data = b"".join(line + b"\r\n" for line in lines)
    pieces = []
    for cut in cuts:
        pieces.append(data[:cut])
        data = data[cut:]
    pieces.append(data)
    to_client, unanswered = b"", b""

    def take(effects: list[object]) -> None:
        nonlocal to_client, unanswered
        for effect in effects:
            if isinstance(effect, ToClient):
                to_client += effect.data
            elif isinstance(effect, ToServer):
                assert pipelining or not unanswered
                unanswered += effect.data

    def answer() -> None:
        nonlocal unanswered
        line, _, unanswered = unanswered.partition(b"\r\n")
        take(list(relay.server_data(b"250 " + line + b"\r\n")))

    for piece in pieces:
        take(list(relay.client_data(piece)))
        while unanswered and random.random() < 0.5:  # type: ignore[attr-defined]
            answer()
    while unanswered:
        answer()
    expected = [b"500 5.5.1 Command not recognized" if line == b"NONSENSE" else b"250 " + line for line in lines]
    assert to_client.split(b"\r\n")[:-1] == expected
