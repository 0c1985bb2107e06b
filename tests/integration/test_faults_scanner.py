"""What happens when something is wrong with the scanners."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clamsmtpd.values import Address
from tests.support.clamd import EICAR, Clamd
from tests.support.client import NO_REPLY, Client, attempt, text_of
from tests.support.daemon import Daemon
from tests.support.faults import Outcome, Section, in_turn, outcome
from tests.support.process import wait_until
from tests.support.signatures import daily
from tests.support.sink import Sink

SECTION = Section(
    "The scanners",
    "clamd, at each ClamAddress. A message waits for a scanner as long as TimeOut and its size allow; TimeOut was "
    "short where that is waited for. One that is killed while it scans was stopped first, to be in the midst of that.",
)

Start = Callable[..., Daemon]


#: A clean one, an infected one, and a large one.
SAMPLES = 3


@pytest.fixture
def one() -> Iterator[Clamd]:
    """A clamd of our own: what is done to it does not matter to others."""
    with Clamd() as running:
        yield running
        running.send(signal.SIGCONT)


@pytest.fixture
def two() -> Iterator[Clamd]:
    """Another one."""
    with Clamd() as running:
        yield running
        running.send(signal.SIGCONT)


def start(
    start_daemon: Start, sink: Sink, scanners: Sequence[Clamd], *lines: str, time_out: int = 20, **options: object
) -> Daemon:
    """Start a daemon, and wait until it knows its scanners, and how much they look at."""
    addresses = [scanner.unix for scanner in scanners]
    daemon = start_with(start_daemon, sink, addresses, *lines, time_out=time_out, **options)
    for scanner in scanners:
        daemon.wait_for_log(f"clamd at {scanner.unix}: ClamAV ")
        log = scanner.log
        wait_until(lambda log=log: log.read_text().count("clamsmtpd-canary") >= SAMPLES, "samples")  # type: ignore[misc]
    return daemon


def start_with(
    start_daemon: Start, sink: Sink, addresses: Sequence[Address], *lines: str, time_out: int, **options: object
) -> Daemon:
    places = [f"ClamAddress: {address}" for address in addresses]
    return start_daemon(f"OutAddress: {sink.address}", *places, f"TimeOut: {time_out}", *lines, level=3, **options)


class Sending:
    """A message on its way, its text sent and its reply awaited."""

    def __init__(self, daemon: Daemon, text: bytes) -> None:
        self._client = Client(daemon)
        assert self._client.data() == "354"
        self._client.send(text + b".\r\n")
        # What comes next is the scanner's turn.
        time.sleep(0.3)

    def reply(self) -> str:
        with self._client:
            return self._client.reply()

    def leave(self) -> None:
        self._client.close()


def load(daemon: Daemon, count: int, fault: Callable[[], object]) -> tuple[str, list[bytes]]:
    """Have so many messages sent, ten at once, with the fault in their midst; return all replies, and the texts."""
    texts = [text_of(f"message {number}", 1000 * (number % 90)) for number in range(count)]
    begun = threading.Semaphore(0)

    def send(text: bytes) -> str:
        begun.release()
        return attempt(daemon, text)

    with ThreadPoolExecutor(10) as pool:
        replies = pool.map(send, texts)
        for _ in range(count // 4):
            assert begun.acquire(timeout=20)
        fault()
        return in_turn(sorted(replies)), texts


TEXT = text_of("message")


# ---- one of several -------------------------------------------------------------------------------


@SECTION.fault(
    "One of two is killed (SIGKILL) while it scans a message: the other one gets it.",
    heard="250",
    delivered="once",
    log="clamd at … is set aside: …",
    case=signal.SIGKILL,
)
@SECTION.fault(
    "One of two falls silent (SIGSTOP) while it scans a message: the other one gets it.",
    heard="250",
    delivered="once",
    log="clamd at … is set aside: it is silent: …",
    case=signal.SIGSTOP,
)
def test_one_of_two(one: Clamd, two: Clamd, sink: Sink, start_daemon: Start, case: signal.Signals) -> Outcome:
    # Five seconds otherwise.
    daemon = start(start_daemon, sink, [one, two], constants={"clamd.watch.SILENCE": 1.0})
    one.send(signal.SIGSTOP)
    message = Sending(daemon, TEXT)
    one.send(case)
    return outcome(daemon, sink, message.reply(), TEXT)


@SECTION.fault(
    "A message crashes one scanner after the other.",
    heard="451 4.3.0",
    delivered="nothing",
    log="no verdict: clamd at …; clamd at …",
)
def test_a_message_crashes_scanners(one: Clamd, two: Clamd, sink: Sink, start_daemon: Start) -> Outcome:
    daemon = start(start_daemon, sink, [one, two])
    for clamd in (one, two):
        clamd.send(signal.SIGSTOP)
    message = Sending(daemon, TEXT)
    for clamd in (one, two):
        clamd.send(signal.SIGKILL)
        time.sleep(0.3)
    return outcome(daemon, sink, message.reply(), TEXT)


@SECTION.fault(
    "One of two is started again while messages come, ten at a time.",
    heard="250",
    delivered="once each",
    log="clamd at … is back: ClamAV …",
)
def test_one_of_two_is_started_again(one: Clamd, two: Clamd, sink: Sink, start_daemon: Start) -> Outcome:
    daemon = start(start_daemon, sink, [one, two])
    heard, texts = load(daemon, 100, one.restart)
    daemon.wait_for_log(f"clamd at {one.unix} is back")
    return outcome(daemon, sink, heard, *texts)


# ---- the only one ---------------------------------------------------------------------------------


@SECTION.fault(
    "The only one is killed while it scans a message, and started again two seconds later.",
    heard="250",
    delivered="once",
    log="clamd at … is back: ClamAV …",
)
def test_the_only_one_is_killed_and_comes_back(one: Clamd, sink: Sink, start_daemon: Start) -> Outcome:
    daemon = start(start_daemon, sink, [one])
    one.send(signal.SIGSTOP)
    message = Sending(daemon, TEXT)
    one.send(signal.SIGKILL)
    time.sleep(2)
    one.restart()
    return outcome(daemon, sink, message.reply(), TEXT)


@SECTION.fault(
    "The only one is killed while it scans a message, and stays away for longer than that can wait.",
    heard="451 4.3.0, then 250",
    delivered="once",
    log="no verdict: clamd at …",
    case=signal.SIGKILL,
)
@SECTION.fault(
    "The only one falls silent (SIGSTOP) for longer than a message can wait.",
    heard="451 4.3.0, then 250",
    delivered="once",
    log="no verdict: clamd at …",
    case=signal.SIGSTOP,
)
def test_the_only_one_stays_away(one: Clamd, sink: Sink, start_daemon: Start, case: signal.Signals) -> Outcome:
    daemon = start(start_daemon, sink, [one], time_out=2)
    one.send(signal.SIGSTOP)
    message = Sending(daemon, TEXT)
    one.send(case)
    heard = [message.reply()]
    if case is signal.SIGKILL:
        one.restart()
    else:
        one.send(signal.SIGCONT)
    # The longer it is away, the more seldom it is looked for.
    while heard[-1] != "250" and len(heard) < 5:
        heard.append(attempt(daemon, TEXT))
    return outcome(daemon, sink, in_turn(heard), TEXT)


@SECTION.fault(
    "The only one falls silent (SIGSTOP), and goes on after a second.",
    heard="250",
    delivered="once",
    log="status=CLEAN",
)
def test_the_only_one_pauses(one: Clamd, sink: Sink, start_daemon: Start) -> Outcome:
    daemon = start(start_daemon, sink, [one])
    one.send(signal.SIGSTOP)
    message = Sending(daemon, TEXT)
    time.sleep(1)
    one.send(signal.SIGCONT)
    return outcome(daemon, sink, message.reply(), TEXT)


@SECTION.fault(
    "The only one is started again while messages come, ten at a time.",
    heard="250",
    delivered="once each",
    log="clamd at … is back: ClamAV …",
)
def test_the_only_one_is_started_again(one: Clamd, sink: Sink, start_daemon: Start) -> Outcome:
    daemon = start(start_daemon, sink, [one])
    heard, texts = load(daemon, 100, one.restart)
    return outcome(daemon, sink, heard, *texts)


@SECTION.fault(
    "The only one loads new signatures (RELOAD) while messages come, ten at a time.",
    heard="250",
    delivered="once each",
    log="status=CLEAN",
)
def test_it_reloads(one: Clamd, sink: Sink, start_daemon: Start) -> Outcome:
    daemon = start(start_daemon, sink, [one])
    heard, texts = load(daemon, 100, lambda: one.ask(b"RELOAD"))
    assert "Reading databases" in one.log.read_text()
    return outcome(daemon, sink, heard, *texts)


@SECTION.fault(
    "The only one has one thread and a queue of three (MaxThreads, MaxQueue), and ten messages come at a time.",
    heard="250",
    delivered="once each",
    log="status=CLEAN",
)
def test_it_is_out_of_room(sink: Sink, start_daemon: Start) -> Outcome:
    with Clamd("MaxThreads 1", "MaxQueue 3") as clamd:
        daemon = start(start_daemon, sink, [clamd])
        heard, texts = load(daemon, 100, lambda: None)
        return outcome(daemon, sink, heard, *texts)


# ---- none at all ----------------------------------------------------------------------------------


@SECTION.fault(
    "There is none, and ScanFailure is pass: the message is delivered with X-Virus-Unscanned.",
    heard="250",
    delivered="once",
    log="no verdict, delivered unscanned: clamd at …: No such file or directory",
)
def test_mail_passes_without_a_scanner(sink: Sink, start_daemon: Start, tmp_path: Path) -> Outcome:
    daemon = start_daemon(
        f"OutAddress: {sink.address}", f"ClamAddress: {tmp_path}/none", "TimeOut: 1", "ScanFailure: pass", level=3
    )
    heard = attempt(daemon, TEXT)
    assert b"X-Virus-Unscanned: scan failed\r\n" in sink.messages[0]
    return outcome(daemon, sink, heard, TEXT)


@SECTION.fault(
    "There has been none for half a minute (a second, in the test): messages are turned away before their text.",
    heard="451 4.3.2",
    delivered="nothing",
    log="message refused before its text: no scanner could judge it in time",
)
def test_there_has_been_none_for_long(sink: Sink, start_daemon: Start, tmp_path: Path) -> Outcome:
    daemon = start_daemon(
        f"OutAddress: {sink.address}",
        f"ClamAddress: {tmp_path}/none",
        level=3,
        constants={"clamd.pool.PATIENCE": 1.0},
    )
    time.sleep(1.2)
    return outcome(daemon, sink, attempt(daemon, TEXT), TEXT)


# ---- of no use ------------------------------------------------------------------------------------

#: A signature that finds nothing in our mail: without any, clamd does not start.
OTHER = {"other.ndb": "Other:0:*:6162636465666768696a6b6c6d6e6f\n"}


@SECTION.fault(
    "The only one is up but blind: it does not find the EICAR test file.",
    heard="451 4.3.0",
    delivered="nothing",
    log="clamd at … is set aside: it is blind: it calls the EICAR test file clean",
)
def test_it_is_blind(sink: Sink, start_daemon: Start) -> Outcome:
    with Clamd(blind=True, database=OTHER) as blind:
        daemon = start_with(start_daemon, sink, [blind.unix], time_out=1)
        return outcome(daemon, sink, attempt(daemon, TEXT), TEXT)


@SECTION.fault(
    "One of two is blind, and an infected message comes (Action: bounce).",
    heard="550 5.7.1",
    delivered="nothing",
    log="status=VIRUS:Eicar-Test-Signature.UNOFFICIAL",
)
def test_one_of_two_is_blind(one: Clamd, sink: Sink, start_daemon: Start) -> Outcome:
    infected = TEXT + EICAR + b"\r\n"
    with Clamd(blind=True, database=OTHER) as blind:
        daemon = start_with(start_daemon, sink, [blind.unix, one.unix], "Action: bounce", time_out=20)
        return outcome(daemon, sink, attempt(daemon, infected), infected)


@SECTION.fault(
    "There is an SMTP server at ClamAddress.",
    heard="451 4.3.0",
    delivered="nothing",
    log="clamd at … is set aside: …that is an SMTP server, not clamd",
)
def test_it_is_an_smtp_server(sink: Sink, start_daemon: Start) -> Outcome:
    with Sink() as wrong:
        daemon = start_with(start_daemon, sink, [wrong.address], time_out=1)
        return outcome(daemon, sink, attempt(daemon, TEXT), TEXT)


@SECTION.fault(
    "A message is larger than it looks at (MaxFileSize of clamd.conf), and Oversize is defer.",
    heard="451 4.3.5",
    delivered="nothing",
    log="no verdict: …clamd at … looks at nothing of …",
    case="defer",
)
@SECTION.fault(
    "A message is larger than it looks at, and Oversize is bounce.",
    heard="552 5.3.4",
    delivered="nothing",
    log="no verdict: …clamd at … looks at nothing of …",
    case="bounce",
)
@SECTION.fault(
    "A message is larger than it looks at, and Oversize is pass: it is delivered with X-Virus-Unscanned.",
    heard="250",
    delivered="once",
    log="no verdict, delivered unscanned: …clamd at … looks at nothing of …",
    case="pass",
)
def test_it_does_not_look_at_so_much(sink: Sink, start_daemon: Start, case: str) -> Outcome:
    text = text_of("message", 1_500_000)
    with Clamd("MaxFileSize 1M") as clamd:
        daemon = start(start_daemon, sink, [clamd], f"Oversize: {case}")
        heard = attempt(daemon, text)
        assert all(b"X-Virus-Unscanned: message too large\r\n" in found for found in sink.messages)
        return outcome(daemon, sink, heard, text)


# ---- retries --------------------------------------------------------------------------------------


@SECTION.fault(
    "It is slow; the client gives up, and comes again while the message is still scanned. That is scanned once.",
    heard="nothing, then 250",
    delivered="once",
    log="the verdict came after the client had left: clean",
    case=False,
)
@SECTION.fault(
    "It is slow; the client gives up, and comes again later. The message is not scanned again.",
    heard="nothing, then 250",
    delivered="once",
    log="the verdict came after the client had left: clean",
    case=True,
)
def test_it_is_slow_and_the_client_comes_again(sink: Sink, start_daemon: Start, case: bool) -> Outcome:
    # The verdict is kept for as long as the signatures are the same, and so these have a version.
    with Clamd(database={"daily.cud": daily(27600)}) as clamd:
        daemon = start(start_daemon, sink, [clamd])
        clamd.send(signal.SIGSTOP)
        Sending(daemon, TEXT).leave()
        again = None if case else Sending(daemon, TEXT)
        clamd.send(signal.SIGCONT)
        daemon.wait_for_log("the client had left")
        heard = again.reply() if again is not None else attempt(daemon, TEXT)
        scans = [line for line in clamd.log.read_text().splitlines() if "memfd:clamsmtpd-1" in line]
        assert len(scans) == 1, scans
        return outcome(daemon, sink, in_turn([NO_REPLY, heard]), TEXT)
