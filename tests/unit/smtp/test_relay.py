"""The relay, dialogue by dialogue."""

from __future__ import annotations

import pytest

from clamsmtpd.smtp.events import Answered, Awaits, Inspect, Note, ToClient, ToServer
from clamsmtpd.smtp.identity import Identity
from clamsmtpd.smtp.relay import ERRORS_MAX, INPUT_MAX, Relay, Terms
from clamsmtpd.values import Bounce, Decision, Defer, Deliver, Drop, Envelope
from tests.support.transcript import GREETING, MESSAGE, play

ANNOUNCE = Terms(announce=True)
CLIENT = Identity(address="192.0.2.7", port=4711)


# ---- greeting -------------------------------------------------------------------------------------


def test_greets_with_a_name_of_its_own_once_the_next_hop_has() -> None:
    relay = play(GREETING)
    assert relay.awaits is Awaits.COMMAND


def test_waits_for_the_last_line_of_a_greeting() -> None:
    play("""
        <- 220-hop.example
        <- 220-is slow
        <- 220 today
        << 220 clamsmtpd.localdomain ESMTP
    """)


def test_a_client_that_talks_too_early_is_answered_in_turn() -> None:
    play("""
        >> NOOP
        <- 220 hop.example
        << 220 clamsmtpd.localdomain ESMTP
        -> NOOP
        <- 250 ok
        << 250 ok
    """)


def test_the_next_hops_refusal_to_talk_is_the_clients_answer() -> None:
    play("""
        <- 554-no
        <- 554 service for you
        << 554-no
        << 554 service for you
        ** close server
        ** close client
    """)


def test_a_greeting_that_is_none_ends_in_421() -> None:
    play("""
        <- 250 what?
        ** note next hop greeted with 250 what?
        ** close server
        << 421 4.3.0 Next hop gave an answer out of order; try again later
        ** close client
    """)


def test_a_next_hop_that_cannot_be_reached_is_421() -> None:
    relay = play("""
        .. server-lost connection refused
        ** note next hop: connection refused
        ** close server
        << 421 4.4.1 Next hop cannot be reached; try again later
        ** close client
        .. server-lost again
        .. client-eof
        .. client-lost
        .. timed-out
        .. drain
        .. transmitted
        .. decide drop
        .. keep-alive
        >> NOOP
        <- 250 ok
    """)
    assert relay.awaits is Awaits.NOTHING


def test_a_next_hop_that_never_greets_is_421() -> None:
    play("""
        .. timed-out
        ** note timed out waiting for the next hop to be ready
        ** close server
        << 421 4.4.1 Next hop cannot be reached; try again later
        ** close client
    """)


# ---- hello ----------------------------------------------------------------------------------------


def test_ehlo_shows_what_works_end_to_end() -> None:
    play(
        GREETING
        + """
        >> EHLO client.example
        -> EHLO client.example
        <- 250-hop.example hello
        <- 250-PIPELINING
        <- 250-SIZE 10240000
        <- 250-STARTTLS
        <- 250-CHUNKING
        <- 250-BINARYMIME
        <- 250-XCLIENT ADDR
        <- 250-XEXCH50
        <- 250-BURL imap
        <- 250-auth PLAIN LOGIN
        <- 250-AUTH=PLAIN LOGIN
        <- 250-XFORWARD NAME ADDR
        <- 250-8BITMIME
        <- 250 X-NEW-THING
        << 250-clamsmtpd.localdomain
        << 250-PIPELINING
        << 250-CHUNKING
        << 250-SIZE 10240000
        << 250-BINARYMIME
        << 250-auth PLAIN LOGIN
        << 250-AUTH=PLAIN LOGIN
        << 250-XFORWARD NAME ADDR
        << 250 8BITMIME
    """
    )


def test_a_refused_ehlo_and_then_helo() -> None:
    play(
        GREETING
        + """
        >> EHLO client.example
        -> EHLO client.example
        <- 502 what is that
        << 502 what is that
        >> HELO client.example
        -> HELO client.example
        <- 250 hop.example hello
        << 250 clamsmtpd.localdomain
        >> HELO
        -> HELO
        <- 501 who?
        << 501 who?
    """
    )


# ---- the message ----------------------------------------------------------------------------------


def test_a_clean_message_is_delivered_with_the_field_at_the_end_of_its_header() -> None:
    relay = play(
        MESSAGE
        + r"""
        .. decide deliver
        -> DATA
        <- 354 go ahead
        ** transmit 16 X-Scanned: yes\r\n
        .. transmitted
        <- 250 2.0.0 queued as 4711
        << 250 2.0.0 queued as 4711
        ** discard
        >> QUIT
        -> QUIT
        <- 221 bye
        << 221 bye
        ** close server
        ** close client
    """
    )
    assert relay.awaits is Awaits.NOTHING


def test_a_trace_field_goes_on_top() -> None:
    play(
        MESSAGE
        + r"""
        .. decide deliver-on-top
        -> DATA
        <- 354 go ahead
        ** transmit 0 Received: here\r\n
    """
    )


def test_no_field_at_all() -> None:
    play(
        MESSAGE
        + """
        .. decide deliver-plain
        -> DATA
        <- 354 go ahead
        ** transmit 16
    """
    )


def test_a_field_in_front_of_a_blank_gets_an_empty_line_behind_it() -> None:
    play(
        GREETING
        + r"""
        >> MAIL FROM:<>
        -> MAIL FROM:<>
        <- 250 ok
        << 250 ok
        >> RCPT TO:<b@example.org>
        -> RCPT TO:<b@example.org>
        <- 250 ok
        << 250 ok
        >> DATA
        ** begin
        << 354 End data with <CR><LF>.<CR><LF>
        >> \x20 indented text
        >> .
        ** store   indented text\r\n
        ** inspect <> b@example.org
        .. decide deliver
        -> DATA
        <- 354 go
        ** transmit 0 X-Scanned: yes\r\n\r\n
    """
    )


@pytest.mark.parametrize(
    ("decision", "insertions"),
    [
        ("deliver-renamed", r"0 X-Old- 8 X-Old- 16 X-Scanned: yes\r\n"),
        ("deliver-on-top-renamed", r"0 Received: here\r\n 0 X-Old-"),
        ("deliver-plain-renamed", "0 X-Old- 8 X-Old- 16"),
    ],
)
def test_other_insertions_are_in_order_with_our_field(decision: str, insertions: str) -> None:
    play(
        MESSAGE
        + f"""
        .. decide {decision}
        -> DATA
        <- 354 go ahead
        ** transmit {insertions}
    """
    )


@pytest.mark.parametrize(
    ("decision", "insertions"),
    [("deliver-renamed", r"0 X-Scanned: yes\r\n\r\n"), ("deliver-plain-renamed", "0 0 X-Old- 8 X-Old-")],
)
def test_what_our_field_makes_body_text_stays_as_it_is(decision: str, insertions: str) -> None:
    play(
        GREETING
        + r"""
        >> MAIL FROM:<>
        -> MAIL FROM:<>
        <- 250 ok
        << 250 ok
        >> RCPT TO:<b@example.org>
        -> RCPT TO:<b@example.org>
        <- 250 ok
        << 250 ok
        >> DATA
        ** begin
        << 354 End data with <CR><LF>.<CR><LF>
        >> \x20 indented text
        >> .
        ** store   indented text\r\n
        ** inspect <> b@example.org
    """
        + f"""
        .. decide {decision}
        -> DATA
        <- 354 go
        ** transmit {insertions}
    """
    )


@pytest.mark.parametrize(
    ("text", "header"),
    [
        (b"A: b\r\n\r\ntext\r\n", 6),
        (b"A: b\r\nno field\r\nC: d\r\n\r\ntext\r\n", 22),
        (b"no field\r\n", 10),
        (b"\r\nA: b\r\n", 0),
        (b"", 0),
    ],
)
def test_the_inspection_learns_how_far_the_header_section_may_go(text: bytes, header: int) -> None:
    relay = play(GREETING)
    for line in (b"MAIL FROM:<a>\r\n", b"RCPT TO:<b>\r\n"):
        relay.client_data(line)
        relay.server_data(b"250 ok\r\n")
    effects = relay.client_data(b"DATA\r\n" + text + b".\r\n")
    assert effects[-1] == Inspect(Envelope(b"a", (b"b",)), stuffed=False, header=header)


def test_a_dropped_message_is_250_and_the_next_hop_hears_rset() -> None:
    play(
        MESSAGE
        + """
        .. decide drop
        << 250 2.0.0 Virus found; message discarded
        ** discard
        -> RSET
        <- 250-flushed
        <- 250 ok
        >> NOOP
        -> NOOP
        <- 250 still here
        << 250 still here
    """
    )


def test_a_bounced_message_is_550() -> None:
    play(
        MESSAGE
        + """
        .. decide bounce
        << 550 5.7.1 Virus found; message refused
        ** discard
        -> RSET
    """
    )


@pytest.mark.parametrize(
    ("decision", "reply"),
    [
        ("bounce-oversize", "552 5.3.4 Message is larger than the virus scanner takes"),
        ("bounce-forgery", "550 5.6.0 Message holds too many header fields that only this filter may add"),
        ("defer-oversize", "451 4.3.5 Message is larger than the virus scanner takes now; try again later"),
    ],
)
def test_what_is_not_the_fault_of_a_virus_has_a_reply_of_its_own(decision: str, reply: str) -> None:
    play(
        MESSAGE
        + f"""
        .. decide {decision}
        << {reply}
        ** discard
        -> RSET
    """
    )


def test_a_message_without_verdict_is_451() -> None:
    play(
        MESSAGE
        + """
        .. decide defer
        << 451 4.3.0 Virus scan not possible now; try again later
        ** discard
        -> RSET
    """
    )


def test_a_next_hop_that_does_not_reset_gets_no_more_mail() -> None:
    # Its envelope would be the next message's.
    play(
        MESSAGE
        + """
        .. decide drop
        << 250 2.0.0 Virus found; message discarded
        ** discard
        -> RSET
        <- 500 no such command
        ** note next hop answered RSET with 500 no such command
        ** close server
        << 421 4.3.0 Next hop gave an answer out of order; try again later
        ** close client
    """
    )


def test_two_messages_in_a_session_each_with_its_own_envelope() -> None:
    play(
        MESSAGE
        + """
        .. decide drop
        << 250 2.0.0 Virus found; message discarded
        ** discard
        -> RSET
        <- 250 ok
        >> MAIL FROM:<second@example.org>
        -> MAIL FROM:<second@example.org>
        <- 250 ok
        << 250 ok
        >> RCPT TO:<no@example.org>
        -> RCPT TO:<no@example.org>
        <- 550-not
        <- 550 here
        << 550-not
        << 550 here
        >> RCPT TO:<c@example.org>
        -> RCPT TO:<c@example.org>
        <- 251 elsewhere
        << 251 elsewhere
        >> DATA
        ** begin
        << 354 End data with <CR><LF>.<CR><LF>
        >> .
        ** inspect second@example.org c@example.org
    """
    )


@pytest.mark.parametrize("verb", ["RSET", "EHLO x", "HELO x"])
def test_the_envelope_is_forgotten(verb: str) -> None:
    ours = {"HELO x": "<< 250 clamsmtpd.localdomain", "RSET": "<< 250 ok"}
    ehlo = "<< 250-clamsmtpd.localdomain\n<< 250-PIPELINING\n<< 250 CHUNKING"
    play(
        GREETING
        + f"""
        >> XFORWARD ADDR=192.0.2.9 HELO=outside
        -> XFORWARD ADDR=192.0.2.9 HELO=outside
        <- 250 ok
        << 250 ok
        >> MAIL FROM:<a@example.org>
        -> MAIL FROM:<a@example.org>
        <- 250 ok
        << 250 ok
        >> RCPT TO:<b@example.org>
        -> RCPT TO:<b@example.org>
        <- 250 ok
        << 250 ok
        >> {verb}
        -> {verb}
        <- 250 ok
        {ours.get(verb, ehlo)}
        >> DATA
        << 503 5.5.1 Send MAIL first
        >> MAIL FROM:<c@example.org>
        -> MAIL FROM:<c@example.org>
        <- 250 ok
        << 250 ok
        >> RCPT TO:<d@example.org>
        -> RCPT TO:<d@example.org>
        <- 250 ok
        << 250 ok
        >> DATA
        ** begin
        << 354 End data with <CR><LF>.<CR><LF>
        >> .
        ** inspect c@example.org d@example.org
    """
    )


def test_an_rset_that_the_next_hop_refuses_forgets_nothing() -> None:
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
        >> RSET
        -> RSET
        <- 502 never
        << 502 never
        >> DATA
        ** begin
        << 354 End data with <CR><LF>.<CR><LF>
    """
    )


def test_a_refused_mail_leaves_no_envelope() -> None:
    play(
        GREETING
        + """
        >> MAIL FROM:<a@example.org>
        -> MAIL FROM:<a@example.org>
        <- 450 not now
        << 450 not now
        >> DATA
        << 503 5.5.1 Send MAIL first
    """
    )


def test_data_with_an_argument_is_refused_here() -> None:
    play(
        GREETING
        + """
        >> DATA now
        << 501 5.5.4 This command takes no argument
    """
    )


# ---- what the next hop may answer to a message ----------------------------------------------------


def test_data_refused_by_the_next_hop_is_its_refusal() -> None:
    play(
        MESSAGE
        + """
        .. decide deliver
        -> DATA
        <- 452-4.3.1 no
        <- 452 4.3.1 space
        ** note next hop refused DATA: 452 4.3.1 space
        << 452-4.3.1 no
        << 452 4.3.1 space
        ** discard
        -> RSET
        <- 250 ok
        >> NOOP
        -> NOOP
    """
    )


@pytest.mark.parametrize("code", [200, 250, 334, 355])
def test_data_answered_with_anything_else_is_no_acceptance(code: int) -> None:
    play(
        MESSAGE
        + f"""
        .. decide deliver
        -> DATA
        <- {code} fine
        ** note next hop answered DATA with {code} fine
        ** close server
        << 451 4.4.2 Connection to the next hop was lost; try again later
        ** discard
        << 421 4.4.2 Connection to the next hop was lost; try again later
        ** close client
    """
    )


def test_the_message_refused_is_the_next_hops_refusal() -> None:
    play(
        MESSAGE
        + r"""
        .. decide deliver
        -> DATA
        <- 354 go
        ** transmit 16 X-Scanned: yes\r\n
        .. transmitted
        <- 554 5.6.0 not this
        ** note next hop refused the message: 554 5.6.0 not this
        << 554 5.6.0 not this
        ** discard
        >> NOOP
        -> NOOP
    """
    )


def test_a_2xx_before_the_final_dot_is_no_acceptance() -> None:
    play(
        MESSAGE
        + r"""
        .. decide deliver
        -> DATA
        <- 354 go
        ** transmit 16 X-Scanned: yes\r\n
        <- 250 queued already
        ** note next hop answered 250 queued already before the end of a message
        ** abort server
        << 451 4.4.2 Connection to the next hop was lost; try again later
        << 421 4.3.0 Next hop gave an answer out of order; try again later
        ** discard
        ** close client
    """
    )


def test_354_and_250_in_one_segment_is_no_acceptance_either() -> None:
    relay = Relay()
    relay.server_data(b"220 hop\r\n")
    for command in (b"MAIL FROM:<a@b>\r\n", b"RCPT TO:<c@d>\r\n"):
        relay.client_data(command)
        relay.server_data(b"250 ok\r\n")
    relay.client_data(b"DATA\r\ntext\r\n.\r\n")
    relay.decide(Deliver())
    effects = relay.server_data(b"354 go\r\n250 done\r\n")
    said = b"".join(effect.data for effect in effects if isinstance(effect, ToClient))
    assert said.startswith(b"451 ")
    assert b"250" not in said


def test_a_message_refused_while_it_is_still_going_out() -> None:
    play(
        MESSAGE
        + r"""
        .. decide deliver
        -> DATA
        <- 354 go
        ** transmit 16 X-Scanned: yes\r\n
        <- 552 too large
        ** note next hop refused the message: 552 too large
        << 552 too large
        << 421 4.4.2 Connection to the next hop was lost; try again later
        ** discard
        ** abort server
        ** close client
    """
    )


def test_421_while_the_message_is_still_going_out_is_said_once() -> None:
    play(
        MESSAGE
        + r"""
        .. decide deliver
        -> DATA
        <- 354 go
        ** transmit 16 X-Scanned: yes\r\n
        <- 421 4.3.2 going down
        ** note next hop refused the message: 421 4.3.2 going down
        << 421 4.3.2 going down
        ** discard
        ** abort server
        ** close client
    """
    )


@pytest.mark.parametrize("reply", ["354 more", "334 more"])
def test_a_3xx_to_the_whole_message_is_no_acceptance(reply: str) -> None:
    play(
        MESSAGE
        + rf"""
        .. decide deliver
        -> DATA
        <- 354 go
        ** transmit 16 X-Scanned: yes\r\n
        .. transmitted
        <- {reply}
        ** note next hop answered {reply} to the end of a message
        ** close server
        << 451 4.4.2 Connection to the next hop was lost; try again later
        << 421 4.3.0 Next hop gave an answer out of order; try again later
        ** discard
        ** close client
    """
    )


def test_a_partial_250_at_the_end_of_the_connection_is_no_250() -> None:
    play(
        MESSAGE
        + r"""
        .. decide deliver
        -> DATA
        <- 354 go
        ** transmit 16 X-Scanned: yes\r\n
        .. transmitted
        <- 250 queu\c
        .. server-lost closed
        ** note next hop: closed
        ** close server
        << 451 4.4.2 Connection to the next hop was lost; try again later
        << 421 4.4.2 Connection to the next hop was lost; try again later
        ** discard
        ** close client
    """
    )


def test_a_continuation_line_at_the_end_of_the_connection_is_no_250() -> None:
    play(
        MESSAGE
        + r"""
        .. decide deliver
        -> DATA
        <- 354 go
        ** transmit 16 X-Scanned: yes\r\n
        .. transmitted
        <- 250-queued
        .. server-lost closed
        ** note next hop: closed
        ** close server
        << 451 4.4.2 Connection to the next hop was lost; try again later
        << 421 4.4.2 Connection to the next hop was lost; try again later
        ** discard
        ** close client
    """
    )


def test_421_to_the_message_closes_behind_it() -> None:
    play(
        MESSAGE
        + r"""
        .. decide deliver
        -> DATA
        <- 354 go
        ** transmit 16 X-Scanned: yes\r\n
        .. transmitted
        <- 421 4.3.2 going down
        ** note next hop refused the message: 421 4.3.2 going down
        << 421 4.3.2 going down
        ** discard
        ** close server
        ** close client
    """
    )


def test_421_to_our_own_rset_is_told_to_the_client() -> None:
    play(
        MESSAGE
        + """
        .. decide bounce
        << 550 5.7.1 Virus found; message refused
        ** discard
        -> RSET
        <- 421 going down
        ** note next hop answered RSET with 421 going down
        ** close server
        << 421 4.3.0 Next hop gave an answer out of order; try again later
        ** close client
    """
    )


def test_the_final_reply_does_not_come_in_time() -> None:
    play(
        MESSAGE
        + r"""
        .. decide deliver
        -> DATA
        <- 354 go
        ** transmit 16 X-Scanned: yes\r\n
        .. transmitted
        .. timed-out
        ** note timed out waiting for the next hop's reply to the end of a message
        ** close server
        << 451 4.4.2 Connection to the next hop was lost; try again later
        << 421 4.4.2 Connection to the next hop was lost; try again later
        ** discard
        ** close client
    """
    )


def test_a_next_hop_that_does_not_take_the_text_is_cut_off_before_the_final_dot() -> None:
    play(
        MESSAGE
        + r"""
        .. decide deliver
        -> DATA
        <- 354 go
        ** transmit 16 X-Scanned: yes\r\n
        .. timed-out
        ** note timed out waiting for the next hop to take the text of a message
        ** abort server
        << 451 4.4.2 Connection to the next hop was lost; try again later
        << 421 4.4.2 Connection to the next hop was lost; try again later
        ** discard
        ** close client
    """
    )


# ---- no recipient ---------------------------------------------------------------------------------


def test_data_without_a_recipient_is_refused_here() -> None:
    play(
        GREETING
        + """
        >> DATA
        << 503 5.5.1 Send MAIL first
        >> MAIL FROM:<a@example.org>
        -> MAIL FROM:<a@example.org>
        <- 250 ok
        << 250 ok
        >> DATA
        << 554 5.5.1 No valid recipients
    """
    )


# ---- faults of our own ----------------------------------------------------------------------------


def test_a_full_disk_is_451_and_the_rest_of_the_message_is_no_command() -> None:
    relay = Relay()
    relay.server_data(b"220 hop\r\n")
    for command in (b"MAIL FROM:<a@b>\r\n", b"RCPT TO:<c@d>\r\n"):
        relay.client_data(command)
        relay.server_data(b"250 ok\r\n")
    relay.client_data(b"DATA\r\nfirst\r\n")
    assert [type(effect).__name__ for effect in relay.storage_failed()] == ["Discard"]
    assert relay.storage_failed() == []
    assert relay.client_data(b"MAIL FROM:<evil@b>\r\nQUIT\r\n") == []
    effects = relay.client_data(b".\r\n")
    refusal = b"451 4.3.1 Message cannot be stored now; try again later\r\n"
    assert effects == [ToClient(refusal), Answered(refusal), ToServer(b"RSET\r\n")]


def test_a_disk_that_is_full_at_the_very_end_of_a_message() -> None:
    play(
        MESSAGE
        + """
        .. storage-failed
        ** discard
        << 451 4.3.1 Message cannot be stored now; try again later
        -> RSET
        <- 250 ok
        >> NOOP
        -> NOOP
    """
    )


def test_the_next_hop_lost_while_the_message_comes_in() -> None:
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
        >> DATA
        ** begin
        << 354 End data with <CR><LF>.<CR><LF>
        .. server-lost closed
        ** note next hop: closed
        ** close server
        ** discard
        >> QUIT
        >> MAIL FROM:<c@example.org>
        >> .
        << 451 4.4.2 Connection to the next hop was lost; try again later
        << 421 4.4.2 Connection to the next hop was lost; try again later
        ** close client
    """
    )


def test_the_next_hop_lost_while_the_message_is_judged() -> None:
    play(
        MESSAGE
        + """
        .. server-lost closed
        ** note next hop: closed
        ** close server
        .. decide deliver
        << 451 4.4.2 Connection to the next hop was lost; try again later
        ** discard
        << 421 4.4.2 Connection to the next hop was lost; try again later
        ** close client
    """
    )


def test_a_virus_is_dropped_even_if_the_next_hop_has_left() -> None:
    play(
        MESSAGE
        + """
        .. server-lost closed
        ** note next hop: closed
        ** close server
        .. decide drop
        << 250 2.0.0 Virus found; message discarded
        ** discard
        << 421 4.4.2 Connection to the next hop was lost; try again later
        ** close client
    """
    )


def test_the_next_hop_lost_before_it_answered_data() -> None:
    play(
        MESSAGE
        + """
        .. decide deliver
        -> DATA
        .. server-lost closed
        ** note next hop: closed
        ** close server
        << 451 4.4.2 Connection to the next hop was lost; try again later
        ** discard
        << 421 4.4.2 Connection to the next hop was lost; try again later
        ** close client
    """
    )


def test_the_next_hop_lost_between_commands_is_421() -> None:
    play(
        GREETING
        + """
        .. server-lost closed
        ** note next hop: closed
        ** close server
        << 421 4.4.2 Connection to the next hop was lost; try again later
        ** close client
    """
    )


def test_a_command_that_the_next_hop_never_answers() -> None:
    play(
        GREETING
        + """
        >> NOOP
        -> NOOP
        .. timed-out
        ** note timed out waiting for a reply of the next hop
        ** close server
        << 421 4.4.2 Connection to the next hop was lost; try again later
        ** close client
    """
    )


def test_the_session_ends_for_a_reason_from_outside() -> None:
    relay = Relay()
    effects = relay.refuse(b"421 4.4.6 loop\r\n")
    assert [type(effect).__name__ for effect in effects] == ["ToClient", "CloseServer", "CloseClient"]


# ---- replies out of order -------------------------------------------------------------------------


def test_a_reply_that_nobody_asked_for_ends_the_dialogue() -> None:
    play(
        GREETING
        + """
        >> NOOP
        -> NOOP
        <- 250 ok
        <- 250 one too many
        << 250 ok
        ** note next hop sent a reply that nobody asked for: 250 one too many
        ** close server
        << 421 4.3.0 Next hop gave an answer out of order; try again later
        ** close client
    """
    )


def test_a_next_hop_may_close_unasked() -> None:
    play(
        GREETING
        + """
        <- 421-4.3.2 closing
        <- 421 4.3.2 for the night
        ** note next hop closed the dialogue: 421 4.3.2 for the night
        ** close server
        << 421-4.3.2 closing
        << 421 4.3.2 for the night
        ** close client
    """
    )


def test_421_to_a_command_closes_behind_it() -> None:
    play(
        GREETING
        + """
        >> NOOP
        -> NOOP
        <- 421 4.3.2 closing
        << 421 4.3.2 closing
        ** close server
        ** close client
    """
    )


@pytest.mark.parametrize(
    "junk", ["hello", "25 ok", "150 no", "650 no", "250?ok", "2\\xb20 ok", "250 a\\0b", "250 a\\rb"]
)
def test_what_is_no_reply_ends_the_dialogue(junk: str) -> None:
    relay = Relay()
    relay.server_data(b"220 hop\r\n")
    relay.client_data(b"NOOP\r\n")
    line = junk.encode("latin-1").decode("unicode_escape").encode("latin-1")
    effects = relay.server_data(line + b"\r\n")
    assert relay.awaits is Awaits.NOTHING
    assert [getattr(effect, "data", b"")[:3] for effect in effects if hasattr(effect, "data")] == [b"421"]


def test_lines_of_one_reply_with_two_codes_are_no_reply() -> None:
    play(
        GREETING
        + """
        >> NOOP
        -> NOOP
        <- 250-ok
        <- 550 or not
        ** note next hop sent what is no SMTP reply: 550 or not
        ** close server
        << 421 4.3.0 Next hop gave an answer out of order; try again later
        ** close client
    """
    )


def test_a_clamd_in_place_of_the_next_hop_is_named() -> None:
    # It ends its line with a line feed alone.
    relay = Relay()
    (note, *_) = relay.server_data(b"COMMAND READ TIMED OUT\n")
    expected = "next hop sent what is no SMTP reply: COMMAND READ TIMED OUT; that is clamd, not an SMTP server"
    assert isinstance(note, Note)
    assert note.text == expected
    assert relay.awaits is Awaits.NOTHING


def test_a_command_that_asks_for_more_without_reason() -> None:
    play(
        GREETING
        + """
        >> VRFY x
        -> VRFY x
        <- 354 and then?
        ** note next hop asked for more with 354 and then?
        ** close server
        << 421 4.3.0 Next hop gave an answer out of order; try again later
        ** close client
    """
    )


# ---- pipelining -----------------------------------------------------------------------------------


def test_a_client_that_pipelines_is_served_strictly_in_order() -> None:
    play(
        GREETING
        + """
        >> MAIL FROM:<a@example.org>
        >> RCPT TO:<b@example.org>
        >> STARTTLS
        >> DATA
        -> MAIL FROM:<a@example.org>
        <- 250 sender
        << 250 sender
        -> RCPT TO:<b@example.org>
        <- 550 no
        << 550 no
        << 502 5.5.1 Command not available through this filter
        << 554 5.5.1 No valid recipients
    """
    )


def test_a_second_transaction_behind_the_final_dot_waits_for_the_first() -> None:
    play(
        MESSAGE
        + r"""
        >> MAIL FROM:<second@example.org>
        >> QUIT
        .. decide deliver
        -> DATA
        <- 354 go
        ** transmit 16 X-Scanned: yes\r\n
        .. transmitted
        <- 250 queued
        << 250 queued
        ** discard
        -> MAIL FROM:<second@example.org>
        <- 250 ok
        << 250 ok
        -> QUIT
        <- 221 bye
        << 221 bye
        ** close server
        ** close client
    """
    )


def test_input_that_cannot_be_used_yet_stops_being_read() -> None:
    relay = Relay()
    assert relay.wants_input
    relay.client_data(b"NOOP\r\n" * (INPUT_MAX // 6 + 1))
    assert not relay.wants_input


# ---- refused lines --------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["DA\\0", "NO\\nOP", "NO\\rOP", "NOOP\\r", "\\0"])
def test_a_line_with_nul_or_a_bare_cr_or_lf_never_reaches_the_next_hop(line: str) -> None:
    play(
        GREETING
        + f"""
        >> {line}
        << 500 5.5.2 Commands end with CRLF and hold no NUL, CR or LF
        >> NOOP
        -> NOOP
    """
    )


def test_a_nul_cannot_be_completed_by_the_next_line() -> None:
    play(
        GREETING
        + r"""
        >> DA\0
        >> TA
        << 500 5.5.2 Commands end with CRLF and hold no NUL, CR or LF
        << 500 5.5.1 Command not recognized
    """
    )


def test_a_line_that_is_too_long_is_refused_once() -> None:
    play(
        GREETING
        + f"""
        >> NOOP {"x" * 2043}
        -> NOOP {"x" * 2043}
        <- 250 ok
        << 250 ok
        >> NOOP {"x" * 2044}
        << 500 5.5.2 Line too long
        >> NOOP {"x" * 9000}
        << 500 5.5.2 Line too long
        >> NOOP
        -> NOOP
    """
    )


@pytest.mark.parametrize("line", ["FOO", "", " NOOP", "XEXPS GSSAPI", "DATA\\xa0", "B DAT 5"])
def test_an_unknown_command_never_reaches_the_next_hop(line: str) -> None:
    play(
        GREETING
        + f"""
        >> {line}
        << 500 5.5.1 Command not recognized
    """
    )


@pytest.mark.parametrize("line", ["STARTTLS", "XEXCH50 2 2", "BURL imap://x LAST", "SOML FROM:<a@b>", "turn"])
def test_no_other_way_for_a_message_is_open(line: str) -> None:
    play(
        GREETING
        + f"""
        >> {line}
        << 502 5.5.1 Command not available through this filter
    """
    )


def test_a_client_may_not_use_xclient() -> None:
    play(
        GREETING
        + """
        >> XCLIENT ADDR=192.0.2.1
        << 550 5.7.0 XCLIENT is not allowed from here
    """
    )


# ---- BDAT -----------------------------------------------------------------------------------------


def test_a_client_that_only_sends_what_we_refuse_is_told_421() -> None:
    play(
        GREETING
        + ">> BDAT 2\n>> \n" * ERRORS_MAX
        + "<< 503 5.5.1 Send MAIL first\n" * ERRORS_MAX
        + """
        >> BDAT 0
        << 421 4.7.0 Too many errors; closing
        ** close server
        ** close client
    """
    )


def test_the_octets_of_a_refused_chunk_are_no_commands() -> None:
    play(
        GREETING
        + r"""
        >> BDAT 12 LAST
        >> QUIT
        >> RSET
        >> NOOP
        << 503 5.5.1 Send MAIL first
        -> NOOP
        <- 250 ok
        << 250 ok
        >> BDAT 0
        << 503 5.5.1 Send MAIL first
        >> bdat 4
        >> AB
        >> NOOP
        << 503 5.5.1 Send MAIL first
        -> NOOP
    """
    )


def test_a_chunk_of_twenty_digits_is_swallowed_for_ever() -> None:
    relay = play(
        GREETING
        + """
        >> BDAT 99999999999999999999 LAST
        >> MAIL FROM:<a@example.org>
        >> QUIT
        .. timed-out
        << 421 4.4.2 Timed out waiting for you; closing
        ** close server
        ** close client
    """
    )
    assert relay.awaits is Awaits.NOTHING


@pytest.mark.parametrize("length", ["", "LAST", "-5 LAST", "+5", "5x", "100000000000000000000"])
def test_a_chunk_whose_length_cannot_be_read_ends_the_session(length: str) -> None:
    play(
        GREETING
        + f"""
        >> BDAT {length}
        << 421 4.5.4 BDAT without a length that can be read; closing
        ** close server
        ** close client
    """
    )


# ---- AUTH -----------------------------------------------------------------------------------------


def test_an_auth_dialogue_is_opaque() -> None:
    play(
        GREETING
        + """
        >> AUTH LOGIN
        -> AUTH LOGIN
        <- 334 VXNlcm5hbWU6
        << 334 VXNlcm5hbWU6
        >> DATA
        -> DATA
        <- 334 UGFzc3dvcmQ6
        << 334 UGFzc3dvcmQ6
        >> QUIT
        -> QUIT
        <- 235 2.7.0 welcome
        << 235 2.7.0 welcome
        >> QUIT
        -> QUIT
        <- 221 bye
        << 221 bye
        ** close server
        ** close client
    """
    )


def test_auth_in_one_step_and_refused() -> None:
    play(
        GREETING
        + """
        >> AUTH PLAIN AGEAYg==
        -> AUTH PLAIN AGEAYg==
        <- 535 5.7.8 no
        << 535 5.7.8 no
        >> NOOP
        -> NOOP
    """
    )


def test_a_line_of_an_auth_dialogue_may_be_long() -> None:
    relay = Relay()
    relay.server_data(b"220 hop\r\n")
    relay.client_data(b"AUTH GSSAPI\r\n")
    relay.server_data(b"334 \r\n")
    assert relay.in_auth
    effects = relay.client_data(b"A" * 12286 + b"\r\n")
    assert [getattr(effect, "data", b"")[:3] for effect in effects] == [b"AAA"]


def test_a_line_that_must_not_pass_cancels_the_auth_dialogue() -> None:
    play(
        GREETING
        + r"""
        >> AUTH LOGIN
        -> AUTH LOGIN
        <- 334 name?
        << 334 name?
        >> Zm\0vbw==
        -> *
        <- 501 cancelled
        << 501 cancelled
        >> NOOP
        -> NOOP
    """
    )


# ---- XFORWARD and XCLIENT -------------------------------------------------------------------------


def test_xforward_is_noted_when_the_next_hop_accepts_it() -> None:
    play(
        GREETING
        + """
        >> XFORWARD NAME=spike.example ADDR=IPv6:2001:db8::1 HELO=say+2Dhello
        -> XFORWARD NAME=spike.example ADDR=IPv6:2001:db8::1 HELO=say+2Dhello
        <- 250 ok
        << 250 ok
        >> XFORWARD HELO=not+taken
        -> XFORWARD HELO=not+taken
        <- 501 no
        << 501 no
        >> MAIL FROM:<a@example.org>
        -> MAIL FROM:<a@example.org>
        <- 250 ok
        << 250 ok
        >> RCPT TO:<b@example.org>
        -> RCPT TO:<b@example.org>
        <- 250 ok
        << 250 ok
        >> DATA
        ** begin
        << 354 End data with <CR><LF>.<CR><LF>
        >> .
        ** inspect a@example.org b@example.org remote=2001:db8::1 helo=say-hello
    """
    )


def test_xclient_tells_what_the_next_hop_wants_and_says_hello_again() -> None:
    play(
        GREETING
        + """
        >> EHLO client.example
        -> EHLO client.example
        <- 250-hop.example
        <- 250 XCLIENT NAME ADDR PROTO
        -> XCLIENT NAME=[UNAVAILABLE] ADDR=192.0.2.7 PROTO=ESMTP
        <- 220-hop.example
        <- 220 again
        -> EHLO client.example
        <- 250-hop.example
        <- 250 SIZE
        << 250-clamsmtpd.localdomain
        << 250-PIPELINING
        << 250-CHUNKING
        << 250 SIZE
        >> EHLO client.example
        -> EHLO client.example
        <- 250 hop.example
        << 250-clamsmtpd.localdomain
        << 250-PIPELINING
        << 250 CHUNKING
    """,
        ANNOUNCE,
        CLIENT,
    )


def test_xclient_for_a_client_that_says_helo() -> None:
    play(
        GREETING
        + """
        >> HELO client.example
        -> EHLO client.example
        <- 250-hop.example
        <- 250 XCLIENT ADDR PORT
        -> XCLIENT ADDR=192.0.2.7 PORT=4711
        <- 220 again
        -> HELO client.example
        <- 250 hop.example
        << 250 clamsmtpd.localdomain
    """,
        ANNOUNCE,
        CLIENT,
    )


@pytest.mark.parametrize("offer", ["250 SIZE", "250 XCLIENT NEW"])
def test_xclient_is_not_sent_where_it_is_not_offered(offer: str) -> None:
    ours = "<< 250-clamsmtpd.localdomain\n<< 250-PIPELINING\n<< 250"
    shown = f"{ours}-CHUNKING\n<< 250 SIZE" if "SIZE" in offer else f"{ours} CHUNKING"
    play(
        GREETING
        + f"""
        >> EHLO client.example
        -> EHLO client.example
        <- 250-hop.example
        <- {offer}
        ** note next hop does not offer XCLIENT; it takes the filter's address for the client's
        {shown}
        >> MAIL FROM:<a@example.org>
        -> MAIL FROM:<a@example.org>
    """,
        ANNOUNCE,
        CLIENT,
    )


def test_helo_where_the_next_hop_knows_no_ehlo() -> None:
    play(
        GREETING
        + """
        >> helo client.example
        -> EHLO client.example
        <- 500 what
        ** note next hop does not offer XCLIENT; it takes the filter's address for the client's
        -> HELO client.example
        <- 250 hop.example
        << 250 clamsmtpd.localdomain
    """,
        ANNOUNCE,
        CLIENT,
    )


def test_helo_where_xclient_is_not_offered() -> None:
    play(
        GREETING
        + """
        >> HELO client.example
        -> EHLO client.example
        <- 250 hop.example
        ** note next hop does not offer XCLIENT; it takes the filter's address for the client's
        -> HELO client.example
        <- 250 hop.example
        << 250 clamsmtpd.localdomain
    """,
        ANNOUNCE,
        CLIENT,
    )


def test_no_command_gets_past_a_refused_xclient() -> None:
    play(
        GREETING
        + """
        >> MAIL FROM:<a@example.org>
        << 503 5.5.1 Send HELO or EHLO first
        >> EHLO client.example
        -> EHLO client.example
        <- 250-hop.example
        <- 250 XCLIENT ADDR
        -> XCLIENT ADDR=192.0.2.7
        <- 550 5.7.1 go away
        << 550 5.7.1 go away
        >> MAIL FROM:<a@example.org>
        << 503 5.5.1 Send HELO or EHLO first
        >> QUIT
        -> QUIT
    """,
        ANNOUNCE,
        CLIENT,
    )


# ---- keeping the next hop awake -------------------------------------------------------------------


def test_noops_while_the_message_comes_in_and_is_judged() -> None:
    play(
        GREETING
        + r"""
        .. keep-alive
        >> MAIL FROM:<a@example.org>
        -> MAIL FROM:<a@example.org>
        <- 250 ok
        << 250 ok
        >> RCPT TO:<b@example.org>
        -> RCPT TO:<b@example.org>
        <- 250 ok
        << 250 ok
        >> DATA
        ** begin
        << 354 End data with <CR><LF>.<CR><LF>
        .. keep-alive
        -> NOOP
        .. keep-alive
        >> text
        ** store text\r\n
        <- 250-still
        <- 250 awake
        >> .
        ** inspect a@example.org b@example.org
        .. keep-alive
        -> NOOP
        .. decide deliver
        <- 250 awake
        -> DATA
        .. keep-alive
        <- 354 go
        ** transmit 0 X-Scanned: yes\r\n
        .. keep-alive
    """
    )


def test_the_next_hop_closes_in_answer_to_a_noop() -> None:
    play(
        MESSAGE
        + """
        .. keep-alive
        -> NOOP
        <- 421 enough
        ** note next hop answered NOOP with 421 enough
        ** close server
        .. keep-alive
        .. decide deliver
        << 451 4.4.2 Connection to the next hop was lost; try again later
        ** discard
        << 421 4.4.2 Connection to the next hop was lost; try again later
        ** close client
    """
    )


def test_a_noop_that_is_refused_changes_nothing() -> None:
    play(
        MESSAGE
        + """
        .. keep-alive
        -> NOOP
        <- 500 what
        .. decide deliver
        -> DATA
    """
    )


def test_a_noop_still_unanswered_when_the_message_ends_is_waited_for() -> None:
    relay = play(
        MESSAGE
        + """
        .. keep-alive
        -> NOOP
        .. decide drop
        <- 250 awake
        << 250 2.0.0 Virus found; message discarded
        ** discard
        -> RSET
    """
    )
    assert relay.awaits is Awaits.REPLY


# ---- the client leaves ----------------------------------------------------------------------------


def test_a_client_that_says_quit_and_hangs_up_gets_its_answers() -> None:
    play(
        MESSAGE
        + r"""
        >> QUIT
        .. client-eof
        .. decide deliver
        -> DATA
        <- 354 go
        ** transmit 16 X-Scanned: yes\r\n
        .. transmitted
        <- 250 queued
        << 250 queued
        ** discard
        -> QUIT
        <- 221 bye
        << 221 bye
        ** close server
        ** close client
    """
    )


def test_a_client_that_hangs_up_before_the_verdict_gets_nothing_delivered() -> None:
    play(
        MESSAGE
        + """
        .. client-eof
        ** note client left before the reply to its message; nothing delivered
        << 451 4.4.2 Connection closed before the reply to the message; nothing delivered
        ** discard
        ** close server
        ** close client
    """
    )


def test_a_client_that_hangs_up_in_the_middle_of_a_message() -> None:
    play(
        GREETING
        + r"""
        >> MAIL FROM:<a@example.org>
        -> MAIL FROM:<a@example.org>
        <- 250 ok
        << 250 ok
        >> RCPT TO:<b@example.org>
        -> RCPT TO:<b@example.org>
        <- 250 ok
        << 250 ok
        >> DATA
        ** begin
        << 354 End data with <CR><LF>.<CR><LF>
        >> half a mess\c
        ** store half a mess
        .. client-eof
        ** discard
        ** close server
        ** close client
    """
    )


def test_a_client_that_has_hung_up_before_its_message_begins() -> None:
    play(
        GREETING
        + r"""
        >> MAIL FROM:<a@example.org>
        >> RCPT TO:<b@example.org>
        >> DATA
        >> half a mess\c
        -> MAIL FROM:<a@example.org>
        .. client-eof
        <- 250 ok
        << 250 ok
        -> RCPT TO:<b@example.org>
        <- 250 ok
        << 250 ok
        ** begin
        << 354 End data with <CR><LF>.<CR><LF>
        ** store half a mess
        ** discard
        ** close server
        ** close client
    """
    )


def test_a_client_that_hangs_up_between_commands() -> None:
    play(
        GREETING
        + r"""
        >> NOOP
        >> NOO\c
        -> NOOP
        .. client-eof
        <- 250 ok
        << 250 ok
        ** close server
        ** close client
    """
    )


def test_a_client_lost_while_the_text_goes_out_takes_it_back() -> None:
    play(
        MESSAGE
        + r"""
        .. decide deliver
        -> DATA
        <- 354 go
        ** transmit 16 X-Scanned: yes\r\n
        .. client-lost
        ** discard
        ** abort server
        ** close client
    """
    )


def test_a_client_lost_after_the_final_dot_cannot_take_it_back() -> None:
    play(
        MESSAGE
        + r"""
        .. decide deliver
        -> DATA
        <- 354 go
        ** transmit 16 X-Scanned: yes\r\n
        .. transmitted
        .. client-lost
        <- 250 queued
        << 250 queued
        ** discard
        ** close server
        ** close client
    """
    )


def test_a_client_that_says_nothing_more_is_told_421() -> None:
    play(
        GREETING
        + """
        .. timed-out
        << 421 4.4.2 Timed out waiting for you; closing
        ** close server
        ** close client
    """
    )


def test_a_client_that_stops_in_the_middle_of_a_message_is_told_421() -> None:
    play(
        GREETING
        + r"""
        >> MAIL FROM:<a@example.org>
        -> MAIL FROM:<a@example.org>
        <- 250 ok
        << 250 ok
        >> RCPT TO:<b@example.org>
        -> RCPT TO:<b@example.org>
        <- 250 ok
        << 250 ok
        >> DATA
        ** begin
        << 354 End data with <CR><LF>.<CR><LF>
        .. timed-out
        << 421 4.4.2 Timed out waiting for you; closing
        ** discard
        ** close server
        ** close client
    """
    )


def test_the_verdict_has_a_clock_of_its_own() -> None:
    relay = play(
        MESSAGE
        + """
        .. timed-out
    """
    )
    assert relay.awaits is Awaits.VERDICT


# ---- smuggling ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end",
    [
        r"\n.\n",
        r"\n.\r\n",
        r"\r\n.\n",
        r"\r.\r",
        r"\r\n.\r",
        r"\r.\r\n",
        r"\r\n.\r\r\n",
        r"\r\n\0.\r\n",
        r"\r\n.\0\r\n",
    ],
)
def test_a_dot_between_line_ends_that_are_not_crlf_lets_nothing_through(end: str) -> None:
    text = rf"text{end}MAIL FROM:<evil@example.org>"
    stored = rf"text{end}MAIL FROM:<evil@example.org>\r\n".replace(r"\0", r"\x00")
    play(
        GREETING
        + rf"""
        >> MAIL FROM:<a@example.org>
        -> MAIL FROM:<a@example.org>
        <- 250 ok
        << 250 ok
        >> RCPT TO:<b@example.org>
        -> RCPT TO:<b@example.org>
        <- 250 ok
        << 250 ok
        >> DATA
        ** begin
        << 354 End data with <CR><LF>.<CR><LF>
        >> {text}
        >> .
        ** store {stored}
        ** note message refused: a dot stands between line ends that are not CRLF
        << 550 5.6.0 Message holds a dot between line ends that are not CRLF
        ** discard
        -> RSET
    """
    )


# ---- the end of the daemon ------------------------------------------------------------------------


def test_an_idle_client_is_told_421_when_we_stop() -> None:
    play(
        GREETING
        + """
        .. drain
        << 421 4.3.2 Service shutting down; try again later
        ** close server
        ** close client
    """
    )


def test_a_transaction_in_flight_ends_before_we_stop() -> None:
    play(
        GREETING
        + r"""
        >> MAIL FROM:<a@example.org>
        -> MAIL FROM:<a@example.org>
        .. drain
        <- 250 ok
        << 250 ok
        >> RCPT TO:<b@example.org>
        -> RCPT TO:<b@example.org>
        <- 250 ok
        << 250 ok
        >> DATA
        ** begin
        << 354 End data with <CR><LF>.<CR><LF>
        >> .
        ** inspect a@example.org b@example.org
        .. decide deliver-plain
        -> DATA
        <- 354 go
        ** transmit 0
        .. transmitted
        <- 250 queued
        << 250 queued
        ** discard
        << 421 4.3.2 Service shutting down; try again later
        ** close server
        ** close client
    """
    )


def test_we_stop_while_the_next_hop_has_not_greeted() -> None:
    play("""
        .. drain
        <- 220 hop
        << 220 clamsmtpd.localdomain ESMTP
        << 421 4.3.2 Service shutting down; try again later
        ** close server
        ** close client
    """)


def test_a_refused_ehlo_is_no_reason_to_give_xclient_up() -> None:
    play(
        GREETING
        + """
        >> EHLO client.example
        -> EHLO client.example
        <- 550 bad name
        << 550 bad name
        >> MAIL FROM:<a@example.org>
        << 503 5.5.1 Send HELO or EHLO first
    """,
        ANNOUNCE,
        CLIENT,
    )


def test_storage_that_fails_when_nothing_is_stored_any_more() -> None:
    play(GREETING + ".. storage-failed")


def test_when_each_verb_may_come() -> None:
    commands = Relay._COMMANDS

    def verbs(attribute: str, *, value: bool = True) -> set[bytes]:
        return {verb for verb, command in commands.items() if getattr(command, attribute) is value}

    assert set(commands) == {
        *(b"HELO", b"EHLO", b"LHLO", b"MAIL", b"RCPT", b"DATA", b"BDAT", b"RSET", b"QUIT", b"AUTH"),
        *(b"STARTTLS", b"XFORWARD", b"XCLIENT", b"PROXY", b"NOOP", b"VRFY", b"EXPN", b"HELP", b"ETRN"),
    }
    assert verbs("before_hello") == {
        *(b"HELO", b"EHLO", b"LHLO", b"NOOP", b"RSET", b"HELP", b"QUIT", b"XCLIENT", b"PROXY"),
        # Refused by itself, behind its octets.
        b"BDAT",
    }
    assert verbs("grouped") == {b"MAIL", b"RCPT", b"RSET", b"XFORWARD"}
    assert verbs("between_chunks", value=False) == {b"MAIL", b"RCPT", b"DATA", b"AUTH", b"XFORWARD", b"ETRN"}


def test_data_is_refused_when_no_verdict_could_come_in_time() -> None:
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
        >> DATA
        << 451 4.3.2 Virus scan not possible in time now; try again later
        >> RSET
        -> RSET
        <- 250 ok
        << 250 ok
    """,
        Terms(admits=lambda: False),
    )


@pytest.mark.parametrize(("keyword", "limit"), [("SIZE 1000", 1000), ("SIZE", None), ("SIZE 0", None), ("HELP", None)])
def test_it_is_known_how_large_a_message_the_next_hop_takes(keyword: str, limit: int | None) -> None:
    relay = Relay()
    assert relay.size_limit is None
    relay.server_data(b"220 hop.example ESMTP\r\n")
    relay.client_data(b"EHLO client.example\r\n")
    relay.server_data(b"250-hop.example\r\n250 %b\r\n" % keyword.encode())
    assert relay.size_limit == limit


def answers(decision: Decision, *hop: bytes, terms: Terms | None = None, recipients: int = 1) -> list[Answered]:
    """Play one message with that decision, and what the next hop says to it; return what is said of its end."""
    relay = Relay(terms)
    relay.server_data(b"220 hop\r\n")
    if terms is not None:
        relay.client_data(b"LHLO client\r\n")
        relay.server_data(b"250 hop\r\n")
    for command in (b"MAIL FROM:<a@b>\r\n", *[b"RCPT TO:<c%d@d>\r\n" % number for number in range(recipients)]):
        relay.client_data(command)
        relay.server_data(b"250 ok\r\n")
    relay.client_data(b"DATA\r\n")
    relay.client_data(b"text\r\n.\r\n")
    effects = relay.decide(decision)
    for reply in hop:
        effects += relay.server_data(reply) if reply else relay.server_lost("gone")
        if reply.startswith(b"354"):
            effects += relay.transmitted()
    return [effect for effect in effects if isinstance(effect, Answered)]


BOTH_LMTP = Terms(lmtp_client=True, lmtp_server=True)


@pytest.mark.parametrize(
    ("decision", "hop", "taken", "code"),
    [
        (Deliver(), (b"354 go\r\n", b"250 queued as 4X\r\n"), 1, b"250 queued as 4X"),
        (Deliver(), (b"354 go\r\n", b"550 no\r\n"), 0, b"550 no"),
        (Deliver(), (b"452 full\r\n",), 0, b"452 full"),
        (Deliver(), (b"354 go\r\n", b""), None, b"451"),
        (Drop(), (), None, b"250"),
        (Bounce(), (), None, b"550"),
        (Defer(), (), None, b"451"),
    ],
)
def test_the_end_of_a_message_is_told_once_with_the_reply_and_whose_it_is(
    decision: Decision, hop: tuple[bytes, ...], taken: int | None, code: bytes
) -> None:
    (answered,) = answers(decision, *hop)
    assert answered.reply.startswith(code)
    assert answered.reply.endswith(b"\r\n")
    assert answered.taken == taken


@pytest.mark.parametrize(
    ("replies", "taken"),
    [
        ((b"250 one\r\n", b"550 no\r\n"), 1),
        ((b"550 no\r\n", b"250 two\r\n"), 1),
        ((b"250 one\r\n", b"250 two\r\n"), 2),
        ((b"550 no\r\n", b"452 no\r\n"), 0),
        ((b"250 one\r\n", b""), 1),
        ((b"550 no\r\n", b""), None),
    ],
)
def test_by_lmtp_it_is_told_for_how_many_recipients_it_was_taken(replies: tuple[bytes, ...], taken: int | None) -> None:
    (answered,) = answers(Deliver(), b"354 go\r\n", *replies, terms=BOTH_LMTP, recipients=2)
    assert answered.taken == taken
