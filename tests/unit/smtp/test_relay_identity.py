"""Who the client is: XCLIENT and XFORWARD, taken and given."""

from __future__ import annotations

import pytest

from clamsmtpd.smtp.identity import Identity
from clamsmtpd.smtp.relay import Terms
from tests.support.transcript import GREETING, play

TRUSTED = Terms(trusted=True)
OFFER = "250 XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT"

XCLIENT = """
    >> XCLIENT ADDR=192.0.2.9 NAME=outside.example.org LOGIN=joe
    ** identify address=192.0.2.9 name=b'outside.example.org' login=b'joe'
    << 220 clamsmtpd.localdomain ESMTP
"""


def test_it_begins_anew() -> None:
    play(
        GREETING
        + f"""
        >> EHLO proxy
        -> EHLO proxy
        <- 250 hop.example
        << 250-clamsmtpd.localdomain
        << 250-PIPELINING
        << 250-CHUNKING
        << {OFFER}
    """
        + XCLIENT
        + f"""
        >> MAIL FROM:<a@example.org>
        << 503 5.5.1 Send HELO or EHLO first
        >> XCLIENT PORT=7
        ** identify address=192.0.2.9 port=7 name=b'outside.example.org' login=b'joe'
        << 220 clamsmtpd.localdomain ESMTP
        >> EHLO outside
        -> EHLO outside
        <- 250 hop.example
        << 250-clamsmtpd.localdomain
        << 250-PIPELINING
        << 250-CHUNKING
        << {OFFER}
        >> MAIL FROM:<a@example.org>
        -> MAIL FROM:<a@example.org>
        <- 250 ok
        << 250 ok
        >> XCLIENT PORT=8
        << 503 5.5.1 Not within a transaction, and not after AUTH
    """,
        TRUSTED,
    )


def test_others_are_refused() -> None:
    play(
        GREETING
        + """
        >> XCLIENT ADDR=192.0.2.9
        << 550 5.7.0 XCLIENT is not allowed from here
    """
    )


def test_what_cannot_be_understood_changes_nothing() -> None:
    play(
        GREETING
        + """
        >> XCLIENT ADDR=192.0.2.9 SHOE=42
        << 501 5.5.4 SHOE is no attribute
        >> XCLIENT ADDR=nowhere
        << 501 5.5.4 nowhere is no IP address
        >> MAIL FROM:<a@example.org>
        -> MAIL FROM:<a@example.org>
    """,
        TRUSTED,
    )


def test_what_was_learnt_is_announced_to_the_next_hop() -> None:
    play(
        GREETING
        + """
        >> EHLO proxy
        -> EHLO proxy
        <- 250-hop.example
        <- 250 XCLIENT ADDR LOGIN HELO
        -> XCLIENT ADDR=192.0.2.1 HELO=proxy LOGIN=[UNAVAILABLE]
        <- 220 again
        -> EHLO proxy
        <- 500 oh
        << 500 oh
    """
        + XCLIENT
        + f"""
        >> EHLO outside
        -> EHLO outside
        <- 250-hop.example
        <- 250 XCLIENT ADDR LOGIN HELO
        -> XCLIENT ADDR=192.0.2.9 HELO=outside LOGIN=joe
        <- 220 again
        -> EHLO outside
        <- 250 hop.example
        << 250-clamsmtpd.localdomain
        << 250-PIPELINING
        << 250-CHUNKING
        << {OFFER}
    """,
        Terms(trusted=True, announce=True),
        Identity(address="192.0.2.1"),
    )


def test_more_than_a_line_is_announced_in_two() -> None:
    name = "n" * 250
    play(
        GREETING
        + f"""
        >> EHLO {name}
        -> EHLO {name}
        <- 250-hop.example
        <- 250 XCLIENT NAME ADDR HELO LOGIN DESTADDR
        -> XCLIENT NAME={name} ADDR=192.0.2.1
        <- 220 once
        -> XCLIENT HELO={name} LOGIN=[UNAVAILABLE] DESTADDR=[UNAVAILABLE]
        <- 220 again
        -> EHLO {name}
    """,
        Terms(announce=True),
        Identity(address="192.0.2.1", name=name.encode()),
    )


LEARNT = Identity(address="192.0.2.9", port=4711, learnt=True)


def hello(offers: str) -> str:
    """An EHLO that the next hop answers with XFORWARD and ``offers``."""
    shown = (
        "<< 250-clamsmtpd.localdomain\n<< 250-PIPELINING\n<< 250-CHUNKING\n<< 250 XFORWARD NAME ADDR PROTO HELO IDENT"
    )
    return (
        GREETING
        + f"""
        >> EHLO outside
        -> EHLO outside
        <- 250-hop.example
        {offers}
        <- 250 XFORWARD NAME ADDR PROTO HELO IDENT
        {shown}
    """
    )


FORWARDED = "XFORWARD NAME=[UNAVAILABLE] ADDR=192.0.2.9 PROTO=ESMTP HELO=outside"


@pytest.mark.parametrize("answer", ["250 ok", "550 not you"])
def test_the_next_hops_log_hears_of_it_by_xforward(answer: str) -> None:
    play(
        hello("")
        + f"""
        >> MAIL FROM:<a@example.org>
        -> {FORWARDED}
        <- {answer}
        -> MAIL FROM:<a@example.org>
        <- 550 no
        << 550 no
        >> MAIL FROM:<c@example.org>
        -> MAIL FROM:<c@example.org>
        <- 250 ok
        << 250 ok
        >> RSET
        -> RSET
        <- 250 ok
        << 250 ok
        >> MAIL FROM:<c@example.org>
        -> {FORWARDED}
        <- 250 ok
        -> MAIL FROM:<c@example.org>
    """,
        Terms(),
        LEARNT,
    )


def test_it_costs_no_round_trip_with_pipelining() -> None:
    play(
        hello("<- 250-PIPELINING")
        + f"""
        >> MAIL FROM:<a@example.org>
        >> RCPT TO:<b@example.org>
        -> {FORWARDED}
        -> MAIL FROM:<a@example.org>
        -> RCPT TO:<b@example.org>
        <- 250 ok
        <- 250 sender
        << 250 sender
        <- 250 recipient
        << 250 recipient
    """,
        Terms(),
        LEARNT,
    )


def test_the_clients_own_xforward_comes_first() -> None:
    play(
        hello("")
        + """
        >> XFORWARD ADDR=192.0.2.77
        -> XFORWARD ADDR=192.0.2.77
        <- 250 ok
        << 250 ok
        >> MAIL FROM:<a@example.org>
        -> MAIL FROM:<a@example.org>
    """,
        Terms(),
        LEARNT,
    )


def test_who_is_not_learnt_is_not_forwarded() -> None:
    play(
        hello("")
        + """
        >> MAIL FROM:<a@example.org>
        -> MAIL FROM:<a@example.org>
    """,
        Terms(),
        Identity(address="192.0.2.9"),
    )


def test_a_proxy_that_nobody_trusts_is_told_so() -> None:
    play(
        GREETING
        + """
        >> PROXY TCP4 192.0.2.9 192.0.2.25 4711 25
        >> EHLO outside
        ** note PROXY protocol from a client that is not among TrustedClients, or without ProxyProtocol: on
        << 421 4.7.0 PROXY protocol is not allowed from here; closing
        ** close server
        ** close client
    """
    )
