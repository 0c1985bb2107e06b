"""LMTP (RFC 2033), on either side."""

from __future__ import annotations

import pytest

from clamsmtpd.smtp.relay import Terms
from tests.support.transcript import GREETING, play

IN = Terms(lmtp_client=True)
OUT = Terms(lmtp_server=True)
BOTH = Terms(lmtp_client=True, lmtp_server=True)

HELLO_IN = """
    <- 220 hop.example
    << 220 clamsmtpd.localdomain LMTP
    >> LHLO client.example
    -> EHLO client.example
    <- 250 hop.example
    << 250-clamsmtpd.localdomain
    << 250-PIPELINING
    << 250 CHUNKING
"""

TWO = """
    >> MAIL FROM:<a@example.org>
    -> MAIL FROM:<a@example.org>
    <- 250 ok
    << 250 ok
    >> RCPT TO:<b@example.org>
    -> RCPT TO:<b@example.org>
    <- 250 ok
    << 250 ok
    >> RCPT TO:<x@example.org>
    -> RCPT TO:<x@example.org>
    <- 550 unknown
    << 550 unknown
    >> RCPT TO:<c@example.org>
    -> RCPT TO:<c@example.org>
    <- 250 ok
    << 250 ok
"""

TEXT = r"""
    >> DATA
    ** begin
    << 354 End data with <CR><LF>.<CR><LF>
    >> text
    >> .
    ** store text\r\n
    ** inspect a@example.org b@example.org c@example.org
"""

HELLO_BOTH = HELLO_IN.replace("-> EHLO", "-> LHLO")


def test_one_answer_of_smtp_is_the_answer_for_each_recipient() -> None:
    play(
        HELLO_IN
        + TWO
        + TEXT
        + """
        .. decide deliver-plain
        -> DATA
        <- 354 go
        ** transmit 0
        .. transmitted
        <- 250-queued
        <- 250 as one
        << 250-queued
        << 250 as one
        << 250-queued
        << 250 as one
        ** discard
        >> NOOP
        -> NOOP
    """,
        IN,
    )


@pytest.mark.parametrize(
    ("decision", "reply"),
    [
        ("drop", "250 2.0.0 Virus found; message discarded"),
        ("bounce", "550 5.7.1 Virus found; message refused"),
        ("defer", "451 4.3.0 Virus scan not possible now; try again later"),
    ],
)
def test_our_own_answer_is_given_for_each_recipient(decision: str, reply: str) -> None:
    for terms, hello in ((IN, HELLO_IN), (BOTH, HELLO_BOTH)):
        play(
            hello
            + TWO
            + TEXT
            + f"""
            .. decide {decision}
            << {reply}
            << {reply}
            ** discard
            -> RSET
            <- 250 ok
            >> NOOP
            -> NOOP
        """,
            terms,
        )


def test_a_refused_data_is_refused_for_each_recipient() -> None:
    play(
        HELLO_IN
        + TWO
        + TEXT
        + """
        .. decide deliver-plain
        -> DATA
        <- 452 full
        ** note next hop refused DATA: 452 full
        << 452 full
        << 452 full
        ** discard
        -> RSET
    """,
        IN,
    )


def test_each_answer_of_lmtp_is_passed_on() -> None:
    play(
        HELLO_BOTH
        + TWO
        + TEXT
        + """
        .. decide deliver-plain
        -> DATA
        <- 354 go
        ** transmit 0
        .. transmitted
        <- 250 b has it
        << 250 b has it
        <- 452-c
        <- 452 is full
        ** note next hop refused the message: 452 is full
        << 452-c
        << 452 is full
        ** discard
        >> NOOP
        -> NOOP
    """,
        BOTH,
    )


def test_an_lmtp_next_hop_lost_between_its_answers() -> None:
    play(
        HELLO_BOTH
        + TWO
        + TEXT
        + """
        .. decide deliver-plain
        -> DATA
        <- 354 go
        ** transmit 0
        .. transmitted
        <- 250 b has it
        << 250 b has it
        .. server-lost gone
        ** note next hop: gone
        ** close server
        << 451 4.4.2 Connection to the next hop was lost; try again later
        << 421 4.4.2 Connection to the next hop was lost; try again later
        ** discard
        ** close client
    """,
        BOTH,
    )


def test_the_client_leaves_between_the_answers() -> None:
    play(
        HELLO_BOTH
        + TWO
        + TEXT
        + """
        .. decide deliver-plain
        -> DATA
        <- 354 go
        ** transmit 0
        .. transmitted
        <- 250 b has it
        << 250 b has it
        .. client-lost
        <- 250 c has it
        << 250 c has it
        ** discard
        ** close server
        ** close client
    """,
        BOTH,
    )


def test_an_lmtp_next_hop_refuses_while_the_text_goes_out() -> None:
    play(
        HELLO_BOTH
        + TWO
        + TEXT
        + """
        .. decide deliver-plain
        -> DATA
        <- 354 go
        ** transmit 0
        <- 552 too much
        ** note next hop refused the message: 552 too much
        << 552 too much
        << 552 too much
        << 421 4.4.2 Connection to the next hop was lost; try again later
        ** discard
        ** abort server
        ** close client
    """,
        BOTH,
    )


def test_the_last_chunk_has_an_answer_for_each_recipient_too() -> None:
    play(
        HELLO_BOTH.replace("<- 250 hop.example", "<- 250-hop.example\n<- 250 CHUNKING")
        + TWO
        + r"""
        >> BDAT 3
        >> x
        ** begin
        ** store x\r\n
        << 250 2.0.0 3 octets received
        >> BDAT 0 LAST
        ** inspect a@example.org b@example.org c@example.org
        .. decide deliver-plain
        -> BDAT 3 LAST
        ** transmit 0
        .. transmitted
        <- 250 one
        << 250 one
        <- 250 two
        << 250 two
        ** discard
    """,
        BOTH,
    )


def test_a_refused_last_chunk_has_an_answer_for_each_recipient() -> None:
    play(
        HELLO_IN
        + TWO
        + """
        >> BDAT 3 WRONG
        >> x
        ** begin
        ** discard
        << 501 5.5.4 BDAT takes a length and LAST, and nothing else
        >> BDAT 0 LAST
        << 503 5.5.1 A chunk of this message was refused; send RSET
        << 503 5.5.1 A chunk of this message was refused; send RSET
        -> RSET
    """,
        IN,
    )


def test_nobody_to_deliver_to() -> None:
    play(
        HELLO_IN
        + """
        >> MAIL FROM:<a@example.org>
        -> MAIL FROM:<a@example.org>
        <- 250 ok
        << 250 ok
        >> DATA
        << 503 5.5.1 No valid recipients
        >> BDAT 0 LAST
        ** begin
        ** discard
        << 503 5.5.1 No valid recipients
        -> RSET
    """,
        IN,
    )


@pytest.mark.parametrize("verb", ["EHLO", "HELO"])
def test_lmtp_is_greeted_with_lhlo_only(verb: str) -> None:
    play(
        f"""
        <- 220 hop.example
        << 220 clamsmtpd.localdomain LMTP
        >> {verb} client.example
        << 500 5.5.1 LHLO is for LMTP, HELO and EHLO are for SMTP
    """,
        IN,
    )


def test_smtp_is_not_greeted_with_lhlo() -> None:
    play(
        GREETING
        + """
        >> LHLO client.example
        << 500 5.5.1 LHLO is for LMTP, HELO and EHLO are for SMTP
    """
    )


@pytest.mark.parametrize(
    ("hello", "ours"),
    [
        ("EHLO", "<< 250-clamsmtpd.localdomain\n<< 250-PIPELINING\n<< 250-CHUNKING\n<< 250 LIMITS RCPTMAX=1"),
        ("HELO", "<< 250 clamsmtpd.localdomain"),
    ],
)
def test_smtp_in_front_of_lmtp_has_one_recipient_a_message(hello: str, ours: str) -> None:
    play(
        GREETING
        + f"""
        >> {hello} client.example
        -> LHLO client.example
        <- 250-hop.example
        <- 250-LIMITS RCPTMAX=100
        <- 250 PIPELINING
        {ours}
        >> MAIL FROM:<a@example.org>
        >> RCPT TO:<x@example.org>
        >> RCPT TO:<b@example.org>
        >> RCPT TO:<c@example.org>
        >> DATA
        -> MAIL FROM:<a@example.org>
        <- 250 ok
        << 250 ok
        -> RCPT TO:<x@example.org>
        <- 550 unknown
        << 550 unknown
        -> RCPT TO:<b@example.org>
        <- 250 ok
        << 250 ok
        << 452 4.5.3 One recipient a message; send the message again for the others
        ** begin
        << 354 End data with <CR><LF>.<CR><LF>
        >> .
        ** inspect a@example.org b@example.org
        .. decide deliver-plain
        -> DATA
        <- 354 go
        ** transmit 0
        .. transmitted
        <- 250 b has it
        << 250 b has it
        ** discard
    """,
        OUT,
    )


def test_many_recipients_too_many_are_no_error() -> None:
    more = ">> RCPT TO:<c@example.org>\n" * 300
    said = "<< 452 4.5.3 One recipient a message; send the message again for the others\n" * 300
    play(
        GREETING
        + """
        >> MAIL FROM:<a@example.org>
        -> MAIL FROM:<a@example.org>
        <- 250 ok
        << 250 ok
        >> RCPT TO:<b@example.org>
        -> RCPT TO:<b@example.org>
        <- 250 ok
        << 250 ok
    """
        + more
        + said
        + """
        >> NOOP
        -> NOOP
    """,
        OUT,
    )
