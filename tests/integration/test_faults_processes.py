"""What happens when processes of the daemon are killed or sent a signal, at each phase of a message."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.clamd import Clamd
from tests.support.client import Client, attempt, text_of
from tests.support.daemon import Daemon
from tests.support.faults import Outcome, Section, in_turn, outcome
from tests.support.mortal import MortalHop
from tests.support.process import wait_until

SECTION = Section(
    "The processes of clamsmtpd",
    "With several workers there is a supervisor, which starts another worker where one has ended, and hands signals "
    "on. To stop is to end the messages that have begun; the exit status is 0 then.",
)

Start = Callable[..., Daemon]


@pytest.fixture
def stoppable() -> Iterator[Clamd]:
    """A clamd of our own: what is done to it does not matter to others."""
    with Clamd() as running:
        yield running
        running.send(signal.SIGCONT)


@dataclass
class Scene:
    """A client with a message at some phase of its way."""

    daemon: Daemon
    client: Client
    hop: MortalHop
    text: bytes
    #: What is still to be sent of the text; None when the final dot has been sent too.
    rest: bytes | None
    #: Wakes whoever the message waits for.
    go_on: Callable[[], None]

    def finish(self) -> str:
        """Have the message go on; return the reply to it."""
        self.go_on()
        return self.client.reply() if self.rest is None else self.client.finish(self.rest)

    def outcome(self, heard: str, *, status: int | None = 0) -> Outcome:
        """Have the client leave, and the daemon stop if it has not; return what came of it all."""
        self.client.close()
        return outcome(self.daemon, self.hop, heard, self.text, status=status)


@contextlib.contextmanager
def at(phase: str, clamd: Clamd, start_daemon: Start, *lines: str, **options: object) -> Iterator[Scene]:
    """Bring a message to the phase in which we wait for its text, its verdict, its transmission or its final reply."""
    moment = {"transmission": "text", "final reply": "stored"}.get(phase, "")
    with MortalHop(moment, signal.SIGSTOP) as hop:
        daemon = start_daemon(f"OutAddress: {hop.address}", f"ClamAddress: {clamd.unix}", *lines, level=3, **options)
        # Nothing waits for a scanner that is not known yet: one clean sample, one infected, and a large one.
        daemon.wait_for_log(f"clamd at {clamd.unix}: ClamAV ")
        wait_until(lambda: clamd.log.read_text().count("clamsmtpd-canary") >= 3, "samples")
        text = text_of("message", 6_000_000 if phase == "transmission" else 100_000)
        with Client(daemon) as client:
            assert client.greet() == "250"
            if phase == "envelope":
                yield Scene(daemon, client, hop, text, None, lambda: client.send(b"DATA\r\n"))
                return
            assert client.ask("DATA") == "354"
            if phase == "text":
                client.send(text[:1000])
                yield Scene(daemon, client, hop, text, text[1000:], lambda: None)
            elif phase == "verdict":
                clamd.send(signal.SIGSTOP)
                client.send(text + b".\r\n")
                time.sleep(0.3)
                yield Scene(daemon, client, hop, text, None, lambda: clamd.send(signal.SIGCONT))
            else:
                client.send(text + b".\r\n")
                hop.wait_until_asleep()
                yield Scene(daemon, client, hop, text, None, hop.wake)


LOST = "connection lost, then 250"
KILLED = "worker … was killed by SIGKILL; sessions lost: 1; its place is taken at once"


@SECTION.fault(
    "A worker is killed (SIGKILL) while it receives the text of a message; the client tries again.",
    heard=LOST,
    delivered="once",
    log=KILLED,
    case="text",
)
@SECTION.fault(
    "A worker is killed while the message is scanned.", heard=LOST, delivered="once", log=KILLED, case="verdict"
)
@SECTION.fault(
    "A worker is killed while the text goes to the next hop.",
    heard=LOST,
    delivered="once",
    log=KILLED,
    case="transmission",
)
@SECTION.fault(
    "A worker is killed when the next hop has the message, before its reply.",
    heard=LOST,
    delivered="twice",
    log=KILLED,
    case="final reply",
)
def test_a_worker_is_killed(stoppable: Clamd, start_daemon: Start, case: str) -> Outcome:
    with at(case, stoppable, start_daemon, "Workers: 2") as scene:
        busy = accepted_by(scene.daemon)
        os.kill(busy, signal.SIGKILL)
        scene.daemon.wait_for_log("was killed by SIGKILL")
        heard = [scene.finish(), attempt(scene.daemon, scene.text)]
        return scene.outcome(in_turn(heard))


def accepted_by(daemon: Daemon) -> int:
    """Return the worker that has accepted the only connection there is: its number is in the connection's id."""
    line = daemon.wait_for_log("accepted connection")
    return daemon.workers()[int(line.partition(":")[0], 16) % 2]


@SECTION.fault(
    "The supervisor is killed (SIGKILL) while a worker receives a message. No client is accepted any more; the workers "
    "end what they have begun.",
    heard="250",
    delivered="once",
    log="the supervisor is gone; stopping",
    case="text",
)
@SECTION.fault(
    "The supervisor is killed while the message is scanned.",
    heard="250",
    delivered="once",
    log="the supervisor is gone; stopping",
    case="verdict",
)
@SECTION.fault(
    "The supervisor is killed when the next hop has the message, before its reply.",
    heard="250",
    delivered="once",
    log="the supervisor is gone; stopping",
    case="final reply",
)
def test_the_supervisor_is_killed(stoppable: Clamd, start_daemon: Start, case: str) -> Outcome:
    with at(case, stoppable, start_daemon, "Workers: 2") as scene:
        workers = scene.daemon.workers()
        scene.daemon.send(signal.SIGKILL)
        assert scene.daemon.wait() == -signal.SIGKILL
        wait_until(lambda: scene.daemon.log().count("the supervisor is gone") == 2, "both to notice")
        with pytest.raises(ConnectionRefusedError):
            Client(scene.daemon)
        heard = scene.finish()
        scene.client.close()
        wait_until(lambda: not any(alive(pid) for pid in workers), "the workers to end")
        return scene.outcome(heard, status=None)


def alive(pid: int) -> bool:
    # In a container nobody may be there to bury an orphan.
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


STOPPING = "stopping: 1 connections to finish"


@SECTION.fault(
    "The daemon is told to stop (SIGTERM) while a client is between two messages.",
    heard="421 4.3.2",
    delivered="nothing",
    log="stopped",
)
def test_it_is_to_stop_while_a_client_is_idle(stoppable: Clamd, start_daemon: Start) -> Outcome:
    with MortalHop() as hop:
        daemon = start_daemon(f"OutAddress: {hop.address}", f"ClamAddress: {stoppable.unix}", level=3)
        with Client(daemon) as client:
            assert client.reply() == "220"
            assert client.ask("EHLO client.example.org") == "250"
            daemon.send(signal.SIGTERM)
            heard = client.reply()
        assert daemon.wait() == 0
        return outcome(daemon, hop, heard, text_of("message"), status=None)


@SECTION.fault(
    "The daemon is told to stop after RCPT; the client goes on to send its message.",
    heard="250, then 421 4.3.2",
    delivered="once",
    log=STOPPING,
    case="envelope",
)
@SECTION.fault(
    "The daemon is told to stop while it receives the text.",
    heard="250, then 421 4.3.2",
    delivered="once",
    log=STOPPING,
    case="text",
)
@SECTION.fault(
    "The daemon is told to stop while the message is scanned.",
    heard="250, then 421 4.3.2",
    delivered="once",
    log=STOPPING,
    case="verdict",
)
@SECTION.fault(
    "The daemon is told to stop while the text goes to the next hop.",
    heard="250, then 421 4.3.2",
    delivered="once",
    log=STOPPING,
    case="transmission",
)
@SECTION.fault(
    "The daemon is told to stop when the next hop has the message, before its reply.",
    heard="250, then 421 4.3.2",
    delivered="once",
    log=STOPPING,
    case="final reply",
)
def test_it_is_to_stop(stoppable: Clamd, start_daemon: Start, case: str) -> Outcome:
    with at(case, stoppable, start_daemon) as scene:
        scene.daemon.send(signal.SIGTERM)
        scene.daemon.wait_for_log("stopping")
        heard = scene.finish()
        if heard == "354":
            heard = scene.client.finish(scene.text)
        heard = in_turn([heard, scene.client.reply()])
        scene.client.close()
        assert scene.daemon.wait() == 0
        return scene.outcome(heard, status=None)


@SECTION.fault(
    "The daemon is told to stop while a message waits for a scanner, of which there is none.",
    heard="451 4.3.0, then 421 4.3.2",
    delivered="nothing",
    log="no verdict: clamd at …",
)
def test_it_is_to_stop_without_a_scanner(stoppable: Clamd, start_daemon: Start) -> Outcome:
    with at("text", stoppable, start_daemon) as scene:
        stoppable.send(signal.SIGKILL)
        scene.daemon.wait_for_log("is set aside")
        scene.client.send((scene.rest or b"") + b".\r\n")
        time.sleep(0.3)
        scene.daemon.send(signal.SIGTERM)
        heard = in_turn([scene.client.reply(), scene.client.reply()])
        scene.client.close()
        assert scene.daemon.wait() == 0
        return scene.outcome(heard, status=None)


@SECTION.fault(
    "The daemon is told to stop twice, while a message is scanned: it stops at once, with exit status 1.",
    heard="connection lost",
    delivered="nothing",
    log="stopped before all transactions had ended",
    case="verdict",
)
@SECTION.fault(
    "The daemon is told to stop twice, when the next hop has the message. The client will send it again.",
    heard="connection lost",
    delivered="once",
    log="stopped before all transactions had ended",
    case="final reply",
)
def test_it_is_to_stop_twice(stoppable: Clamd, start_daemon: Start, case: str) -> Outcome:
    with at(case, stoppable, start_daemon) as scene:
        scene.daemon.send(signal.SIGTERM)
        scene.daemon.wait_for_log("stopping")
        scene.daemon.send(signal.SIGTERM)
        assert scene.daemon.wait() == 1
        heard = scene.finish()
        return scene.outcome(heard, status=None)


@SECTION.fault(
    "The daemon is told to stop, and a message is still scanned 75 seconds later (one, in the test): exit status 1.",
    heard="connection lost",
    delivered="nothing",
    log="after the stop not all had ended; connections cut: 1",
    case="verdict",
)
@SECTION.fault(
    "The daemon is told to stop, and the next hop has not said 75 seconds later what became of a message.",
    heard="connection lost",
    delivered="once",
    log="after the stop not all had ended; connections cut: 1",
    case="final reply",
)
def test_it_cannot_stop(stoppable: Clamd, start_daemon: Start, case: str) -> Outcome:
    limits = {"supervisor.DRAIN_LIMIT": 1.0, "worker.DRAIN_LIMIT": 1.0}
    with at(case, stoppable, start_daemon, constants=limits) as scene:
        scene.daemon.send(signal.SIGTERM)
        assert scene.daemon.wait() == 1
        return scene.outcome(scene.finish(), status=None)


@SECTION.fault(
    "Another Header is set, and the daemon reads its settings again (SIGHUP), while it receives a message: that still "
    "gets the old one.",
    heard="250",
    delivered="once",
    log="settings read again: changed: Header",
    case="text",
)
@SECTION.fault(
    "The daemon reads its settings again while the message is scanned.",
    heard="250",
    delivered="once",
    log="settings read again: changed: Header",
    case="verdict",
)
@SECTION.fault(
    "The daemon reads its settings again while the text goes to the next hop.",
    heard="250",
    delivered="once",
    log="settings read again: changed: Header",
    case="transmission",
)
@SECTION.fault(
    "The daemon reads its settings again when the next hop has the message, before its reply.",
    heard="250",
    delivered="once",
    log="settings read again: changed: Header",
    case="final reply",
)
def test_it_reads_its_settings_again(stoppable: Clamd, start_daemon: Start, case: str) -> Outcome:
    with at(case, stoppable, start_daemon, "Header: X-Scanned: before") as scene:
        configuration = scene.daemon.configuration
        configuration.write_text(configuration.read_text().replace("X-Scanned: before", "X-Scanned: after"))
        scene.daemon.send(signal.SIGHUP)
        scene.daemon.wait_for_log("settings read again")
        heard = scene.finish()
        assert b"\r\nX-Scanned: before\r\n" in scene.hop.messages[0]
        return scene.outcome(heard)


@SECTION.fault(
    "There is a mistake in the settings when the daemon reads them again: the old ones stay.",
    heard="250",
    delivered="once",
    log="Acton: is no setting; did you mean Action?; the settings from before are still used",
)
def test_there_is_a_mistake_in_its_settings(stoppable: Clamd, start_daemon: Start) -> Outcome:
    with at("text", stoppable, start_daemon) as scene:
        with scene.daemon.configuration.open("a") as file:
            file.write("Acton: bounce\n")
        scene.daemon.send(signal.SIGHUP)
        scene.daemon.wait_for_log("the settings from before are still used")
        return scene.outcome(scene.finish())


@SECTION.fault(
    "A worker stands still (SIGSTOP) while it receives a message; the client tries again.",
    heard=LOST,
    delivered="once",
    log="worker … has not moved for …",
)
def test_a_worker_stands_still(stoppable: Clamd, start_daemon: Start) -> Outcome:
    limits = {"worker.BEAT_INTERVAL": 0.1, "supervisor.LOOK_INTERVAL": 0.4, "supervisor.LOOKS": 3}
    with at("text", stoppable, start_daemon, "Workers: 2", constants=limits) as scene:
        os.kill(accepted_by(scene.daemon), signal.SIGSTOP)
        scene.daemon.wait_for_log("was killed by SIGKILL")
        heard = [scene.finish(), attempt(scene.daemon, scene.text)]
        return scene.outcome(in_turn(heard))
