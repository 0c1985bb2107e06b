"""What happens when something is wrong with the client."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.clamd import Clamd
from tests.support.client import NO_REPLY, Client, attempt, text_of
from tests.support.daemon import Daemon
from tests.support.faults import Outcome, Section, in_turn, outcome
from tests.support.mortal import MortalHop
from tests.support.sink import Sink

SECTION = Section(
    "The client",
    "The server or program that sends the mail. Where it leaves, it closes or loses its connection and hears nothing. "
    "It has the message still, and as a rule it tries again.",
)

Start = Callable[..., Daemon]

LARGE = 6_000_000


@pytest.fixture
def stoppable() -> Iterator[Clamd]:
    """A clamd of our own: what is done to it does not matter to others."""
    with Clamd() as running:
        yield running
        running.send(signal.SIGCONT)


def start(start_daemon: Start, clamd: Clamd, address: object, *lines: str) -> Daemon:
    return start_daemon(f"OutAddress: {address}", f"ClamAddress: {clamd.unix}", *lines, level=3)


@SECTION.fault("It leaves after RCPT.", heard="nothing", delivered="nothing", log="", case="RCPT")
@SECTION.fault("It leaves in the midst of the text.", heard="nothing", delivered="nothing", log="", case="text")
def test_it_leaves_before_the_final_dot(clamd: Clamd, sink: Sink, start_daemon: Start, case: str) -> Outcome:
    daemon = start(start_daemon, clamd, sink.address)
    with Client(daemon) as client:
        assert client.greet() == "250"
        if case == "text":
            assert client.ask("DATA") == "354"
            client.send(text_of("message", 100_000))
    sink.wait_for_end()
    return outcome(daemon, sink, NO_REPLY, text_of("message", 100_000))


@SECTION.fault(
    "It leaves while the message is scanned, and comes again later.",
    heard="nothing, then 250",
    delivered="once",
    log="the verdict came after the client had left: clean",
)
def test_it_leaves_while_the_message_is_scanned(stoppable: Clamd, sink: Sink, start_daemon: Start) -> Outcome:
    text = text_of("message")
    daemon = start(start_daemon, stoppable, sink.address)
    stoppable.send(signal.SIGSTOP)
    with Client(daemon) as client:
        assert client.data() == "354"
        client.send(text + b".\r\n")
        sink.wait_until(lambda: "RCPT" in sink.talks[-1].verbs, "the envelope")
        # It is with us at once; what remains is to see that it is the scanner that is waited for.
        time.sleep(0.3)
    sink.wait_for_end()
    stoppable.send(signal.SIGCONT)
    daemon.wait_for_log("the client had left")
    return outcome(daemon, sink, in_turn([NO_REPLY, attempt(daemon, text)]), text)


@SECTION.fault(
    "It sends a message and closes its own direction of the connection, as one that gives up does.",
    heard="451 4.4.2",
    delivered="nothing",
    log="client left before the reply to its message; nothing delivered",
)
def test_it_closes_one_direction(stoppable: Clamd, sink: Sink, start_daemon: Start) -> Outcome:
    daemon = start(start_daemon, stoppable, sink.address)
    stoppable.send(signal.SIGSTOP)
    with Client(daemon) as client:
        assert client.data() == "354"
        client.send(text_of("message") + b".\r\n")
        client.say_no_more()
        heard = client.reply()
    stoppable.send(signal.SIGCONT)
    return outcome(daemon, sink, heard, text_of("message"))


@SECTION.fault(
    "It leaves while the text goes to the next hop, which has a part of it.",
    heard="nothing",
    delivered="nothing",
    log="status=CLEAN",
)
def test_it_leaves_while_the_text_goes_out(clamd: Clamd, start_daemon: Start) -> Outcome:
    text = text_of("message", LARGE)
    with MortalHop("text", signal.SIGSTOP) as hop:
        daemon = start(start_daemon, clamd, hop.address)
        with Client(daemon) as client:
            assert client.data() == "354"
            client.send(text + b".\r\n")
            hop.wait_until_asleep()
            client.reset()
        # That it has left is seen at once.
        time.sleep(0.3)
        hop.wake()
        return outcome(daemon, hop, NO_REPLY, text)


@SECTION.fault(
    "It leaves when the next hop has the message, before its reply. It will send it again.",
    heard="nothing",
    delivered="once",
    log="status=CLEAN",
)
def test_it_leaves_when_the_next_hop_has_the_message(clamd: Clamd, start_daemon: Start) -> Outcome:
    text = text_of("message")
    with MortalHop("stored", signal.SIGSTOP) as hop:
        daemon = start(start_daemon, clamd, hop.address)
        with Client(daemon) as client:
            assert client.data() == "354"
            client.send(text + b".\r\n")
            hop.wait_until_asleep()
        hop.wake()
        return outcome(daemon, hop, NO_REPLY, text)


@SECTION.fault(
    "It says nothing for as long as TimeOut.",
    heard="421 4.4.2",
    delivered="nothing",
    log="",
    case="",
)
@SECTION.fault(
    "It sends a command octet by octet, one now and then.",
    heard="421 4.4.2",
    delivered="nothing",
    log="",
    case="command",
)
@SECTION.fault(
    "It sends the text octet by octet, or at less than 100 octets a second.",
    heard="421 4.4.2",
    delivered="nothing",
    log="",
    case="text",
)
def test_it_is_slow(clamd: Clamd, sink: Sink, start_daemon: Start, case: str) -> Outcome:
    text = text_of("message")
    daemon = start(start_daemon, clamd, sink.address, "TimeOut: 1")
    with Client(daemon, seconds=0.2) as client:
        assert client.greet() == "250"
        if case == "text":
            assert client.ask("DATA") == "354"
        octets = iter(text if case == "text" else b"DATA" * 1000)
        heard = NO_REPLY
        end = time.monotonic() + 20
        while heard == NO_REPLY and time.monotonic() < end:
            if case:
                client.send(bytes([next(octets)]))
            heard = client.reply()
    return outcome(daemon, sink, heard, text)
