"""What happens when there are more clients than places, or no more descriptors."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import time
from collections.abc import Callable

from tests.support.clamd import Clamd
from tests.support.client import Client, attempt, text_of
from tests.support.daemon import Daemon
from tests.support.faults import Outcome, Section, in_turn, outcome
from tests.support.process import wait_until
from tests.support.sink import Sink

SECTION = Section(
    "Places and descriptors",
    "MaxConnections, and the limit of the process (LimitNOFILE, ulimit -n).",
)

Start = Callable[..., Daemon]


def start(start_daemon: Start, clamd: Clamd, sink: Sink, *lines: str) -> Daemon:
    return start_daemon(f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}", *lines, level=3)


def leave_no_descriptor(daemon: Daemon) -> None:
    """Let the process open no more than it has."""
    before, now = set[int](), descriptors(daemon)
    # What comes and goes, as samples for the scanner do, would leave a place.
    while before != now:
        time.sleep(0.2)
        before, now = now, descriptors(daemon)
    first_free = next(number for number in itertools.count() if number not in now)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (first_free, 4096))


def descriptors(daemon: Daemon) -> set[int]:
    return {int(name) for name in os.listdir(f"/proc/{daemon.pid}/fd")}


def give_descriptors(daemon: Daemon) -> None:
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (4096, 4096))


@SECTION.fault(
    "There are as many clients as MaxConnections allows, and one more comes; when another has left it tries again.",
    heard="421 4.3.2, then 250",
    delivered="once",
    log="MaxConnections is reached: 2",
)
def test_one_client_too_many(clamd: Clamd, sink: Sink, start_daemon: Start) -> Outcome:
    daemon = start(start_daemon, clamd, sink, "MaxConnections: 2")
    with Client(daemon) as first, Client(daemon) as second:
        assert (first.greet(), second.greet()) == ("250", "250")
        heard = [attempt(daemon, text_of("message"))]
    sink.wait_for_end()
    heard.append(attempt(daemon, text_of("message")))
    return outcome(daemon, sink, in_turn(heard), text_of("message"))


@SECTION.fault(
    "No descriptor is left to accept a client with; later there are some.",
    heard="421 4.3.2, then 250",
    delivered="once",
    log="cannot accept a connection: Too many open files",
)
def test_no_descriptor_for_a_client(clamd: Clamd, sink: Sink, start_daemon: Start) -> Outcome:
    daemon = start(start_daemon, clamd, sink)
    with contextlib.ExitStack() as stack:
        assert stack.enter_context(Client(daemon)).greet() == "250"
        leave_no_descriptor(daemon)
        heard = [attempt(daemon, text_of("message"))]
        give_descriptors(daemon)
    heard.append(attempt(daemon, text_of("message")))
    return outcome(daemon, sink, in_turn(heard), text_of("message"))


@SECTION.fault(
    "None is left for the file that a large message needs; later there are some.",
    heard="451 4.3.1, then 250",
    delivered="once",
    log="cannot store the message in …: Too many open files",
)
def test_no_descriptor_for_a_large_message(clamd: Clamd, sink: Sink, start_daemon: Start) -> Outcome:
    text = text_of("message", 200_000)
    daemon = start(start_daemon, clamd, sink)
    with Client(daemon) as client:
        assert client.data() == "354"
        leave_no_descriptor(daemon)
        heard = [client.finish(text)]
        give_descriptors(daemon)
        assert client.envelope() == "250"
        assert client.ask("DATA") == "354"
        heard.append(client.finish(text))
    return outcome(daemon, sink, in_turn(heard), text)


@SECTION.fault(
    "None is left to hand a small message to the scanner; half a second later there are some.",
    heard="250",
    delivered="once",
    log="status=CLEAN",
)
def test_no_descriptor_for_a_small_message(sink: Sink, start_daemon: Start) -> Outcome:
    text = text_of("message")
    with Clamd() as clamd:
        daemon = start(start_daemon, clamd, sink)
        # Then it is known how much it looks at.
        wait_until(lambda: clamd.log.read_text().count("clamsmtpd-canary") >= 3, "samples")
        with Client(daemon) as client:
            assert client.data() == "354"
            leave_no_descriptor(daemon)
            client.send(text + b".\r\n")
            time.sleep(0.5)
            give_descriptors(daemon)
            heard = client.reply()
        return outcome(daemon, sink, heard, text)
