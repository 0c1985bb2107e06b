"""TLS (RFC 3207) with the client, and with the next hop."""

from __future__ import annotations

import pytest

from clamsmtpd.smtp.events import Awaits
from clamsmtpd.smtp.relay import Terms
from clamsmtpd.values import OutTls
from tests.support.transcript import GREETING, play

OFFERED = Terms(starttls=True)

EHLO = """
    >> EHLO client.example
    -> EHLO client.example
    <- 250-hop.example
    <- 250 STARTTLS
    << 250-clamsmtpd.localdomain
    << 250-PIPELINING
    << 250-CHUNKING
    << 250 STARTTLS
"""

STARTED = (
    GREETING
    + EHLO
    + """
    >> STARTTLS
    << 220 2.0.0 Ready to start TLS
    ** secure client
"""
)


def test_what_was_said_before_counts_no_more() -> None:
    play(
        STARTED
        + """
        .. client-secured
        >> MAIL FROM:<a@example.org>
        << 503 5.5.1 Send HELO or EHLO first
        >> STARTTLS
        << 503 5.5.1 Send HELO or EHLO first
        >> EHLO client.example
        -> EHLO client.example
        <- 250 hop.example
        << 250-clamsmtpd.localdomain
        << 250-PIPELINING
        << 250 CHUNKING
        >> STARTTLS
        << 503 5.5.1 TLS is in use already
        >> MAIL FROM:<a@example.org>
        -> MAIL FROM:<a@example.org>
    """,
        OFFERED,
    )


def test_plain_text_behind_the_command_is_thrown_away() -> None:
    relay = play(GREETING + EHLO, OFFERED)
    relay.client_data(b"STARTTLS\r\nMAIL FROM:<evil@example.org>\r\nRCPT TO:<b@exam")
    assert relay.awaits is Awaits.HANDSHAKE
    assert not relay.wants_input
    assert relay.client_secured() == []
    assert [type(effect).__name__ for effect in relay.client_data(b"NOOP\r\n")] == ["ToServer"]


def test_what_comes_with_the_end_of_the_handshake_waits_for_it() -> None:
    play(
        STARTED
        + """
        >> NOOP
        .. client-secured
        -> NOOP
    """,
        OFFERED,
    )


def test_a_command_behind_others_waits_for_its_turn() -> None:
    play(
        GREETING
        + EHLO.replace("250 STARTTLS\n    <<", "250-STARTTLS\n    <- 250 PIPELINING\n    <<", 1)
        + """
        >> RSET
        >> STARTTLS
        >> MAIL FROM:<evil@example.org>
        -> RSET
        <- 250 ok
        << 250 ok
        << 220 2.0.0 Ready to start TLS
        ** secure client
        .. client-secured
    """,
        OFFERED,
    )


@pytest.mark.parametrize(
    ("command", "reply"),
    [("STARTTLS now", "501 5.5.4 This command takes no argument"), ("starttls", "220 2.0.0 Ready to start TLS")],
)
def test_its_grammar(command: str, reply: str) -> None:
    secure = "** secure client" if reply.startswith("220") else ""
    play(GREETING + f"\n>> {command}\n<< {reply}\n{secure}", OFFERED)


def test_without_a_certificate_there_is_none() -> None:
    play(
        GREETING
        + """
        >> STARTTLS
        << 502 5.5.1 Command not available through this filter
    """
    )


def test_not_within_a_transaction_and_not_after_auth() -> None:
    play(
        GREETING
        + EHLO
        + """
        >> MAIL FROM:<a@example.org>
        -> MAIL FROM:<a@example.org>
        <- 250 ok
        << 250 ok
        >> STARTTLS
        << 503 5.5.1 Not within a transaction, and not after AUTH
        >> RSET
        -> RSET
        <- 250 ok
        << 250 ok
        >> AUTH PLAIN abc
        -> AUTH PLAIN abc
        <- 235 welcome
        << 235 welcome
        >> STARTTLS
        << 503 5.5.1 Not within a transaction, and not after AUTH
    """,
        OFFERED,
    )


def test_a_handshake_that_never_ends() -> None:
    play(
        STARTED
        + """
        .. timed-out
        ** close server
        ** close client
        .. client-secured
    """,
        OFFERED,
    )


def test_the_client_leaves_in_its_handshake() -> None:
    play(
        STARTED
        + """
        .. client-lost
        ** close server
        ** close client
    """,
        OFFERED,
    )


def test_draining_in_a_handshake_ends_behind_it() -> None:
    play(
        STARTED
        + """
        .. drain
        .. client-secured
        << 421 4.3.2 Service shutting down; try again later
        ** close server
        ** close client
    """,
        OFFERED,
    )


def test_the_next_hop_is_lost_in_the_clients_handshake() -> None:
    play(
        STARTED
        + """
        .. server-lost gone
        ** note next hop: gone
        ** close server
        ** close client
    """,
        OFFERED,
    )


# ---- the next hop ---------------------------------------------------------------------------------

MAY, ENCRYPT, VERIFY = (Terms(out_tls=level) for level in (OutTls.MAY, OutTls.ENCRYPT, OutTls.VERIFY))

ASKED = """
    <- 220 hop.example
    -> EHLO clamsmtpd.localdomain
    <- 250-hop.example
    <- 250 STARTTLS
    -> STARTTLS
"""


@pytest.mark.parametrize("terms", [MAY, ENCRYPT, VERIFY])
def test_tls_comes_before_the_clients_first_word(terms: Terms) -> None:
    relay = play(
        ASKED
        + """
        >> NOOP
        <- 220 go
        ** secure server
        .. server-secured
        << 220 clamsmtpd.localdomain ESMTP
        -> NOOP
        <- 250 ok
        << 250 ok
    """,
        terms,
    )
    assert relay.awaits is Awaits.COMMAND


def test_lmtp_too() -> None:
    play(
        """
        <- 220 hop.example
        -> LHLO clamsmtpd.localdomain
        <- 250-hop.example
        <- 250 STARTTLS
        -> STARTTLS
        <- 220 go
        ** secure server
        .. server-secured
        << 220 clamsmtpd.localdomain LMTP
    """,
        Terms(lmtp_client=True, lmtp_server=True, out_tls=OutTls.ENCRYPT),
    )


@pytest.mark.parametrize(
    ("said", "note"),
    [
        ("<- 250 hop.example", "does not offer STARTTLS"),
        ("<- 502 what", "does not offer STARTTLS"),
        (
            "<- 250-hop.example\n<- 250 STARTTLS\n-> STARTTLS\n<- 454 not now",
            "refused STARTTLS: 454 not now",
        ),
    ],
)
def test_without_tls(said: str, note: str) -> None:
    start = f"<- 220 hop.example\n-> EHLO clamsmtpd.localdomain\n{said}\n"
    play(start + "<< 220 clamsmtpd.localdomain ESMTP", MAY)
    for terms in (ENCRYPT, VERIFY):
        play(
            start
            + f"""
            ** note next hop {note}
            << 421 4.7.4 Next hop offers no TLS that is good enough; try again later
            ** close server
            ** close client
        """,
            terms,
        )


def test_a_failed_handshake_where_tls_is_a_must() -> None:
    play(
        ASKED
        + """
        <- 220 go
        ** secure server
        .. server-insecure no name
        ** note next hop: TLS handshake failed: no name
        << 421 4.7.4 Next hop offers no TLS that is good enough; try again later
        ** close server
        ** close client
        .. server-secured
        .. server-insecure again
    """,
        VERIFY,
    )


def test_a_failed_handshake_where_tls_is_welcome() -> None:
    play(
        ASKED
        + """
        <- 220 go
        ** secure server
        .. server-insecure no cipher
        ** note next hop: TLS handshake failed: no cipher
        ** reconnect
        <- 220 hop.example
        << 220 clamsmtpd.localdomain ESMTP
    """,
        MAY,
    )


def test_a_reply_behind_the_one_to_starttls_is_not_believed() -> None:
    relay = play(ASKED, MAY)
    names = [type(effect).__name__ for effect in relay.server_data(b"220 go\r\n250 inject")]
    assert names == ["Note", "CloseServer", "ToClient", "CloseClient"]


def test_a_next_hop_that_does_not_answer_to_starttls() -> None:
    play(
        ASKED
        + """
        .. timed-out
        ** note timed out waiting for the next hop to be ready
        ** close server
        << 421 4.4.1 Next hop cannot be reached; try again later
        ** close client
    """,
        MAY,
    )


def test_a_client_that_leaves_before_it_was_greeted() -> None:
    play(
        ASKED
        + """
        .. client-eof
        ** close server
        ** close client
    """,
        MAY,
    )
    play(
        ASKED
        + """
        >> QUIT
        .. client-eof
        <- 220 go
        ** secure server
        .. server-secured
        << 220 clamsmtpd.localdomain ESMTP
        -> QUIT
    """,
        MAY,
    )


def test_a_next_hop_that_hears_no_second_ehlo() -> None:
    again = """
        >> EHLO client.example
        -> EHLO client.example
        <- 503 5.5.1 Already identified
        -> RSET
    """
    play(
        STARTED
        + """
        .. client-secured
    """
        + again
        + """
        <- 250 ok
        << 250-clamsmtpd.localdomain
        << 250-PIPELINING
        << 250 CHUNKING
        >> MAIL FROM:<a@example.org>
        -> MAIL FROM:<a@example.org>
    """,
        OFFERED,
    )
    play(
        STARTED
        + """
        .. client-secured
    """
        + again
        + """
        <- 451 no
        ** note next hop answered RSET with 451 no
        ** close server
        << 421 4.3.0 Next hop gave an answer out of order; try again later
        ** close client
    """,
        OFFERED,
    )
    play(
        GREETING
        + """
        >> EHLO client.example
        -> EHLO client.example
        <- 503 5.5.1 What?
        << 503 5.5.1 What?
    """
    )
