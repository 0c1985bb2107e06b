"""What happens when something is wrong with the next hop."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from tests.support.clamd import Clamd
from tests.support.client import Client, attempt, text_of
from tests.support.daemon import Daemon
from tests.support.faults import Outcome, Section, in_turn, outcome
from tests.support.mortal import MortalHop
from tests.support.postfix import Postfix
from tests.support.process import free_port
from tests.support.sink import GREETING, TEXT, Cut, Sink

SECTION = Section(
    "The next hop",
    "The server that clamsmtpd hands the mail on to (OutAddress). It is asked at each command, and its refusals are "
    "passed on. It gets the text of a message once that has been judged, and is connected to as soon as the client "
    "has connected. Where it dies, a process was killed with SIGKILL at that moment; where it falls silent, one was "
    "stopped with SIGSTOP, and TimeOut was short.",
)

Start = Callable[..., Daemon]

#: More than the buffers between two processes hold: some of it is still with us when the other one dies.
LARGE = 6_000_000


def start(start_daemon: Start, clamd: Clamd, address: object, *, time_out: int = 1, **options: object) -> Daemon:
    return start_daemon(
        f"OutAddress: {address}", f"ClamAddress: {clamd.unix}", f"TimeOut: {time_out}", level=3, **options
    )


def text_for(moment: str) -> bytes:
    return text_of("message", LARGE if moment == "text" else 0)


@SECTION.fault(
    "Nobody listens there.",
    heard="421 4.4.1",
    delivered="nothing",
    log="next hop: cannot connect to 127.0.0.1:…: Connection refused",
)
def test_nobody_listens(clamd: Clamd, start_daemon: Start) -> Outcome:
    daemon = start(start_daemon, clamd, f"127.0.0.1:{free_port()}")
    with Sink() as nobody:
        return outcome(daemon, nobody, attempt(daemon, text_of("message")), text_of("message"))


GONE = "next hop: connection lost: closed by the other side"


@SECTION.fault("It dies before its greeting.", heard="421 4.4.1", delivered="nothing", log=GONE, case="greeting")
@SECTION.fault("It dies at EHLO.", heard="421 4.4.2", delivered="nothing", log=GONE, case="EHLO")
@SECTION.fault("It dies at MAIL.", heard="421 4.4.2", delivered="nothing", log=GONE, case="MAIL")
@SECTION.fault("It dies at RCPT.", heard="421 4.4.2", delivered="nothing", log=GONE, case="RCPT")
@SECTION.fault(
    "It dies at DATA, before its 354. The client has had ours by then, and sent the text.",
    heard="451 4.4.2",
    delivered="nothing",
    log=GONE,
    case="DATA",
)
@SECTION.fault(
    "It dies in the midst of the text.",
    heard="451 4.4.2",
    delivered="nothing",
    log="next hop: connection lost: …",
    case="text",
)
@SECTION.fault(
    "It dies after the final dot, before it has stored the message.",
    heard="451 4.4.2",
    delivered="nothing",
    log=GONE,
    case="final dot",
)
@SECTION.fault(
    "It dies when it has stored the message, before its reply. The client will send it again.",
    heard="451 4.4.2",
    delivered="once",
    log=GONE,
    case="stored",
)
@SECTION.fault("It dies right after its 250.", heard="250", delivered="once", log="status=CLEAN", case="answered")
def test_it_dies(clamd: Clamd, start_daemon: Start, case: str) -> Outcome:
    with MortalHop(case) as hop:
        daemon = start(start_daemon, clamd, hop.address)
        return outcome(daemon, hop, attempt(daemon, text_for(case)), text_for(case))


SILENT = "timed out waiting for a reply of the next hop"


@SECTION.fault(
    "It falls silent before its greeting.",
    heard="421 4.4.1",
    delivered="nothing",
    log="timed out waiting for the next hop to be ready",
    case="greeting",
)
@SECTION.fault("It falls silent at EHLO.", heard="421 4.4.2", delivered="nothing", log=SILENT, case="EHLO")
@SECTION.fault("It falls silent at MAIL.", heard="421 4.4.2", delivered="nothing", log=SILENT, case="MAIL")
@SECTION.fault("It falls silent at RCPT.", heard="421 4.4.2", delivered="nothing", log=SILENT, case="RCPT")
@SECTION.fault(
    "It falls silent at DATA, before its 354.", heard="451 4.4.2", delivered="nothing", log=SILENT, case="DATA"
)
@SECTION.fault(
    "It falls silent in the midst of the text.",
    heard="451 4.4.2",
    delivered="nothing",
    log="timed out waiting for the next hop to take the text of a message",
    case="text",
)
def test_it_falls_silent(clamd: Clamd, start_daemon: Start, case: str) -> Outcome:
    with MortalHop(case, signal.SIGSTOP) as hop:
        daemon = start(start_daemon, clamd, hop.address)
        return outcome(daemon, hop, attempt(daemon, text_for(case)), text_for(case))


@SECTION.fault(
    "It has the message, and does not say so within ten minutes (or TimeOut, if that is longer; the test shortens "
    "both). The client will send it again.",
    heard="451 4.4.2",
    delivered="once",
    log="timed out waiting for the next hop's reply to the end of a message",
)
def test_it_does_not_say_what_became_of_the_message(clamd: Clamd, start_daemon: Start) -> Outcome:
    with MortalHop("stored", signal.SIGSTOP) as hop:
        daemon = start(start_daemon, clamd, hop.address, constants={"deadlines.FINAL_REPLY_LIMIT": 1.0})
        return outcome(daemon, hop, attempt(daemon, text_of("message")), text_of("message"))


@SECTION.fault("It answers EHLO with 4xx.", heard="450 4.2.0", delivered="nothing", log="", case="EHLO")
@SECTION.fault("It answers MAIL with 4xx.", heard="450 4.2.0", delivered="nothing", log="", case="MAIL")
@SECTION.fault("It answers RCPT with 4xx.", heard="450 4.2.0", delivered="nothing", log="", case="RCPT")
@SECTION.fault("It answers DATA with 4xx.", heard="450 4.2.0", delivered="nothing", log="status=CLEAN", case="DATA")
@SECTION.fault(
    "It answers the final dot with 4xx.", heard="450 4.2.0", delivered="nothing", log="status=CLEAN", case=TEXT
)
def test_it_refuses_for_now(clamd: Clamd, start_daemon: Start, case: str) -> Outcome:
    return refused(clamd, start_daemon, case, b"450 4.2.0 Busy\r\n")


@SECTION.fault("It greets with 421, and not with 220.", heard="421 4.3.2", delivered="nothing", log="", case=GREETING)
def test_it_refuses_the_connection(clamd: Clamd, start_daemon: Start, case: str) -> Outcome:
    return refused(clamd, start_daemon, case, b"421 4.3.2 Not now\r\n")


@SECTION.fault("It answers MAIL with 5xx.", heard="550 5.7.1", delivered="nothing", log="", case="MAIL")
@SECTION.fault("It answers RCPT with 5xx.", heard="550 5.7.1", delivered="nothing", log="", case="RCPT")
@SECTION.fault("It answers DATA with 5xx.", heard="550 5.7.1", delivered="nothing", log="status=CLEAN", case="DATA")
@SECTION.fault(
    "It answers the final dot with 5xx.", heard="550 5.7.1", delivered="nothing", log="status=CLEAN", case=TEXT
)
def test_it_refuses_for_good(clamd: Clamd, start_daemon: Start, case: str) -> Outcome:
    return refused(clamd, start_daemon, case, b"550 5.7.1 Not here\r\n")


@SECTION.fault(
    "It answers MAIL with what is no reply.",
    heard="421 4.3.0",
    delivered="nothing",
    log="next hop sent what is no SMTP reply",
    case="MAIL",
)
@SECTION.fault(
    "It answers DATA with what is no reply.",
    heard="451 4.4.2",
    delivered="nothing",
    log="next hop sent what is no SMTP reply",
    case="DATA",
)
@SECTION.fault(
    "It answers the final dot with what is no reply.",
    heard="451 4.4.2",
    delivered="nothing",
    log="next hop sent what is no SMTP reply",
    case=TEXT,
)
def test_it_answers_with_what_is_no_reply(clamd: Clamd, start_daemon: Start, case: str) -> Outcome:
    return refused(clamd, start_daemon, case, b"Segmentation fault\r\n")


def refused(clamd: Clamd, start_daemon: Start, verb: str, reply: bytes) -> Outcome:
    with Sink({verb: reply}) as sink:
        daemon = start(start_daemon, clamd, sink.address)
        heard = attempt(daemon, text_of("message"))
        if verb == TEXT:
            # It records what it refuses too.
            sink.recorded.clear()
        return outcome(daemon, sink, heard, text_of("message"))


@SECTION.fault(
    "There is a clamd at OutAddress, and no SMTP server.",
    heard="421 4.3.0",
    delivered="nothing",
    log="next hop sent what is no SMTP reply: COMMAND READ TIMED OUT; that is clamd, not an SMTP server",
)
def test_it_is_clamd(clamd: Clamd, start_daemon: Start) -> Outcome:
    with Clamd("CommandReadTimeout 1") as wrong, Sink() as nobody:
        daemon = start(start_daemon, clamd, wrong.tcp, time_out=10)
        return outcome(daemon, nobody, attempt(daemon, text_of("message")), text_of("message"))


@SECTION.fault(
    "It ends the connection between two messages of one client; the client connects again.",
    heard="250, then 421 4.4.2, then 250",
    delivered="once each",
    log=GONE,
)
def test_it_ends_the_connection_between_two_messages(clamd: Clamd, start_daemon: Start) -> Outcome:
    texts = text_of("first"), text_of("second")
    with Sink({"MAIL": [b"250 2.1.0 Ok\r\n", Cut(), b"250 2.1.0 Ok\r\n"]}) as sink:
        daemon = start(start_daemon, clamd, sink.address)
        with Client(daemon) as client:
            heard = [client.message(texts[0]), client.envelope()]
        heard.append(attempt(daemon, texts[1]))
        return outcome(daemon, sink, in_turn(heard), *texts)


@pytest.mark.root
@SECTION.fault(
    "It is a Postfix, and its smtpd is killed (kill -9) while the message comes in; the client tries again.",
    heard="451 4.4.2, then 250",
    delivered="once",
    log=GONE,
)
def test_the_smtpd_of_a_postfix_is_killed(clamd: Clamd, start_daemon: Start) -> Outcome:
    with Postfix() as postfix:
        daemon = start(start_daemon, clamd, postfix.reinjection)
        with Client(daemon) as client:
            assert client.data() == "354"
            for pid in postfix.children("smtpd"):
                os.kill(pid, signal.SIGKILL)
            daemon.wait_for_log("next hop:")
            heard = [client.finish(text_of("message"))]
        heard.append(attempt(daemon, text_of("message")))
        found = [text.replace(b"\n", b"\r\n") for text in postfix.wait_for_messages(1)]
        return outcome(daemon, found, in_turn(heard), text_of("message"))
