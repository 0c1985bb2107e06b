"""The short way of a command and of a reply comes to the same as the long one."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clamsmtpd.smtp.events import ToClient, ToServer
from clamsmtpd.smtp.identity import Identity
from clamsmtpd.smtp.relay import Relay, Terms
from clamsmtpd.smtp.syntax import COMMAND_LINE_MAX
from clamsmtpd.values import Deliver
from tests.support.watcher import Watcher
from tests.unit.smtp.test_invariants import CLIENT, EVENTS, OFFERS, SERVER, START, TERMS

MAIL = b"MAIL FROM:<a@example.org>\r\n"
RCPT = b"RCPT TO:<b@example.org>\r\n"
OK = b"250 2.1.0 ok\r\n"


def state(value: object) -> object:
    """Return all that an object holds, in a form that can be compared."""
    if isinstance(value, tuple | list | deque):
        return [state(item) for item in value]
    if callable(value):
        return getattr(value, "__name__", value)
    slots = getattr(type(value), "__slots__", None)
    if slots and type(value).__module__.startswith("clamsmtpd."):
        return {name: state(getattr(value, name)) for name in slots}
    return value


class Twins(Watcher):
    """Two relays in the same dialogue, of which one takes the short way wherever there is one."""

    def __init__(self, terms: Terms, identity: Identity) -> None:
        super().__init__(terms, identity)
        self.hasty = Watcher(terms, identity, shortcuts=True)

    def happen(self, name: str, argument: object = None) -> None:
        super().happen(name, argument)
        self.hasty.happen(name, argument)
        assert (self.said, self.asked) == (self.hasty.said, self.hasty.asked)
        assert state(self.relay) == state(self.hasty.relay)


@settings(max_examples=1500)
@given(TERMS, st.integers(1, len(START)), st.lists(EVENTS, max_size=50))
def test_whatever_happens_both_ways_come_to_the_same(
    terms: Terms, start: int, events: list[tuple[str, object]]
) -> None:
    twins = Twins(terms, Identity(address="192.0.2.1", learnt=terms.trusted))
    for name, argument in [*START[:start], *events]:
        twins.happen(name, argument)


LINES = st.one_of(
    CLIENT,
    st.sampled_from(
        [MAIL, RCPT, MAIL + RCPT, RCPT[:-2], b"\r\n", b"RCPT  TO:<x>\r\n", b"RCPT\tTO:<x>\r\n", b"rcpt TO:<x>\r\n"]
    ),
    st.binary(max_size=8).map(lambda octets: b"RCPT " + octets + b"\r\n"),
)
REPLIES = st.one_of(
    SERVER,
    st.sampled_from(
        [OK, b"250\r\n", b"250 \r\n", b"299 x\r\n", b"199 x\r\n", b"2a0 x\r\n", b"250 x\n", b"250 a\r\n250 b\r\n"]
    ),
    st.binary(max_size=8).map(lambda octets: b"250 " + octets + b"\r\n"),
)


@settings(max_examples=1000)
@given(st.lists(st.tuples(LINES, REPLIES), max_size=12))
def test_whatever_a_command_and_its_reply_look_like_both_ways_come_to_the_same(
    turns: list[tuple[bytes, bytes]],
) -> None:
    twins = Twins(Terms(), Identity(address="192.0.2.1"))
    for name, argument in START[:3]:
        twins.happen(name, argument)
    for command, reply in turns:
        if not twins.client_closed:
            twins.happen("client_data", command)
        twins.happen("server_data", reply)


def greeted(terms: Terms | None = None, identity: Identity | None = None, offers: bytes = OFFERS) -> Relay:
    relay = Relay(terms, identity)
    relay.server_data(b"220 hop\r\n")
    relay.client_data(b"LHLO x\r\n" if terms and terms.lmtp_client else b"EHLO x\r\n")
    relay.server_data(offers + b"250 8BITMIME\r\n")
    return relay


def test_an_envelope_goes_the_short_way_both_ways() -> None:
    relay = greeted()
    for command in (MAIL, RCPT, RCPT):
        assert relay.passes_on(command)
        assert relay.passes_back(OK)
    assert relay.client_data(b"DATA\r\n")[-1] == ToClient(b"354 End data with <CR><LF>.<CR><LF>\r\n")
    relay.client_data(b"x\r\n.\r\n")
    assert relay.decide(Deliver()) == [ToServer(b"DATA\r\n")]


@pytest.mark.parametrize(
    "line",
    [
        MAIL[:-2],
        MAIL[:-2] + b"\n",
        MAIL + b"N",
        MAIL + RCPT,
        b"MAIL FROM:<a\0b>\r\n",
        b"MAIL FROM:<a\rb>\r\n",
        b"MAIL FROM:<a\nb>\r\n",
        b"MAIL FROM:<" + b"a" * COMMAND_LINE_MAX + b">\r\n",
        b"mail FROM:<a>\r\n",
        b"MAIL\tFROM:<a>\r\n",
        b"MAIL FROM:<a> BODY=BINARYMIME\r\n",
        b"NOOP\r\n",
        b"",
    ],
)
def test_any_other_line_goes_the_long_way(line: bytes) -> None:
    assert not greeted().passes_on(line)


@pytest.mark.parametrize("begin", [b"\0", b"NOOP\rx", b"x" * (COMMAND_LINE_MAX + 1)])
def test_the_rest_of_a_line_that_was_refused_is_no_command(begin: bytes) -> None:
    relay = greeted()
    assert len(relay.client_data(begin)) == 1
    assert not relay.passes_on(MAIL)
    assert relay.client_data(MAIL) == []
    assert relay.passes_on(MAIL)


def test_the_longest_line_goes_the_short_way() -> None:
    line = b"MAIL FROM:<" + b"a" * (COMMAND_LINE_MAX - 12) + b">\r\n"
    assert len(line) == COMMAND_LINE_MAX + 2
    assert greeted().passes_on(line)


@pytest.mark.parametrize(
    "before", ["half a line", "a reply is owed", "full", "draining", "eof", "lost", "chunks", "held", "text"]
)
def test_with_anything_else_to_do_a_command_goes_the_long_way(before: str) -> None:
    relay = greeted()
    if before == "half a line":
        relay.client_data(b"NO")
    elif before == "a reply is owed":
        relay.client_data(b"NOOP\r\n")
    elif before == "full":
        relay.client_full(full=True)
    elif before == "draining":
        relay.passes_on(MAIL)
        relay.passes_back(OK)
        relay.drain()
    elif before == "eof":
        relay.client_eof()
    elif before == "lost":
        relay.server_lost("gone")
    else:
        for command in (MAIL, RCPT):
            relay.client_data(command)
            relay.server_data(OK)
        relay.client_data({"chunks": b"BDAT 1\r\nx", "held": b"RSET\r\nNOOP\r\n", "text": b"DATA\r\n"}[before])
    assert not relay.passes_on(RCPT)


def test_before_hello_a_command_goes_the_long_way() -> None:
    relay = Relay(Terms(announce=True))
    relay.server_data(b"220 hop\r\n")
    assert not relay.passes_on(MAIL)


def test_who_is_told_of_by_xforward_goes_the_long_way() -> None:
    relay = greeted(identity=Identity(address="192.0.2.1", learnt=True))
    assert not relay.passes_on(MAIL)


def test_where_one_recipient_is_allowed_they_are_counted_on_the_long_way() -> None:
    relay = greeted(Terms(lmtp_server=True))
    assert relay.passes_on(MAIL)
    assert relay.passes_back(OK)
    assert not relay.passes_on(RCPT)


@pytest.mark.parametrize(
    "reply",
    [
        b"250-ok\r\n",
        b"250 ok\r\n250 ok\r\n",
        b"250 ok\n",
        b"250 o\0k\r\n",
        b"250 o\rk\r\n",
        b"250 ok\r",
        b"250\r\n",
        b"354 go\r\n",
        b"450 later\r\n",
        b"550 no\r\n",
        b"421 away\r\n",
        b"2x0 ok\r\n",
        b"250 " + b"x" * COMMAND_LINE_MAX + b"\r\n",
        b"",
    ],
)
def test_any_other_reply_goes_the_long_way(reply: bytes) -> None:
    relay = greeted()
    assert relay.passes_on(MAIL)
    assert not relay.passes_back(reply)


def test_a_reply_to_any_other_command_goes_the_long_way() -> None:
    relay = greeted()
    assert not relay.passes_back(OK)
    relay.client_data(b"NOOP\r\n")
    assert not relay.passes_back(OK)
    relay.server_data(OK)
    relay.client_data(MAIL + RCPT)
    assert not relay.passes_back(OK)


def test_half_a_reply_before_it_makes_a_reply_go_the_long_way() -> None:
    relay = greeted()
    assert relay.passes_on(MAIL)
    relay.server_data(b"250-o")
    assert not relay.passes_back(OK)
