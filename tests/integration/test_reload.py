"""SIGHUP: other settings for those who come next, the same for those who are here, and nobody is turned away."""

from __future__ import annotations

import os
import signal
import smtplib
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

from tests.integration.test_workers import TEXT, children, finish, gone, in_data
from tests.support.certificates import make_certificate
from tests.support.clamd import EICAR, Clamd
from tests.support.daemon import Daemon
from tests.support.process import wait_until
from tests.support.sink import Sink

Start = Callable[..., Daemon]

#: One process alone, and several under another.
WORKERS = pytest.mark.parametrize("workers", [1, 2])


@pytest.fixture
def start(clamd: Clamd, sink: Sink, start_daemon: Start) -> Callable[..., Daemon]:
    def start(*lines: str, workers: int, **options: object) -> Daemon:
        common = (f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}", f"Workers: {workers}")
        return start_daemon(*common, *lines, **{"level": 3, **options})

    return start


def change(daemon: Daemon, old: str, new: str) -> None:
    text = daemon.configuration.read_text()
    assert old in text
    # As an editor does it, and in no half-written state.
    other = daemon.folder / "new.conf"
    other.write_text(text.replace(old, new))
    other.rename(daemon.configuration)


def reload(daemon: Daemon, text: str = "settings read again: ") -> str:
    """Have the settings read, wait until the log says so, and return what it says."""
    before = daemon.log().count(text)
    daemon.send(signal.SIGHUP)
    wait_until(lambda: daemon.log().count(text) > before, f"{text!r} in the log")
    # Workers hear of it a moment later.
    time.sleep(0.3)
    return [line for line in daemon.log_lines() if text in line][-1]


def send(daemon: Daemon, text: bytes = b"Subject: x\r\n\r\n") -> None:
    with smtplib.SMTP(daemon.host, daemon.port, timeout=20) as client:
        client.sendmail("a@example.org", ["b@example.org"], text)


class Load:
    """Clients that come all the time, each with a message. ``trouble`` is what happened to any but the expected."""

    def __init__(self, daemon: Daemon, clients: int = 4) -> None:
        self._daemon = daemon
        self._stop = threading.Event()
        self.trouble: list[str] = []
        self.sent = 0
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                send(self._daemon)
            except (OSError, smtplib.SMTPException) as error:
                self.trouble.append(repr(error))
                return
            self.sent += 1

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@WORKERS
def test_who_comes_next_has_the_new_settings_and_who_is_here_the_old(
    start: Callable[..., Daemon], sink: Sink, workers: int
) -> None:
    daemon = start("Header: X-Old: yes", "Action: drop", workers=workers)
    client = in_data(daemon)
    change(daemon, "X-Old: yes", "X-New: yes")
    change(daemon, "Action: drop", "Action: bounce")
    assert reload(daemon) == "settings read again: changed: Action, Header"
    # Every worker has heard of it.
    for _ in range(2 * workers):
        send(daemon)
        with pytest.raises(smtplib.SMTPDataError) as refused:
            send(daemon, EICAR)
        assert refused.value.smtp_code == 550
    assert all(b"X-New: yes" in message for message in sink.messages)
    new = len(sink.messages)
    client.send(TEXT)
    assert client.getreply()[0] == 250
    # And for its next message as well.
    client.sendmail("a@example.org", ["b@example.org"], EICAR)
    client.sendmail("a@example.org", ["b@example.org"], b"Subject: y\r\n\r\n")
    client.quit()
    assert len(sink.messages) == new + 2
    assert all(b"X-Old: yes" in message for message in sink.messages[new:])


@WORKERS
def test_under_load_no_connection_is_refused_or_lost(
    start: Callable[..., Daemon], sink: Sink, clamd: Clamd, workers: int
) -> None:
    daemon = start("Header: X-Turn: 0", workers=workers)
    pids = children(daemon.pid)
    with Load(daemon) as load:
        for turn in range(8):
            change(daemon, f"X-Turn: {turn}\n", f"X-Turn: {turn + 1}\n")
            # Another address of the same clamd every other time: its scanners are others then.
            if turn == 2:
                change(daemon, f"ClamAddress: {clamd.unix}", f"ClamAddress: {clamd.tcp}")
            reload(daemon)
        for _ in range(50):
            daemon.send(signal.SIGHUP)
    assert load.trouble == []
    assert load.sent > 20
    assert len(sink.messages) == load.sent
    assert children(daemon.pid) == pids
    send(daemon)
    assert b"X-Turn: 8" in sink.messages[-1]
    assert b"CLAMAV-ERROR" not in daemon.log().encode()


def own_lines(daemon: Daemon) -> list[str]:
    """Return the lines of the log that are not about a scanner, which workers look at when they come to it."""
    return [line for line in daemon.log_lines() if not line.startswith("clamd at ")]


@WORKERS
@pytest.mark.parametrize(
    ("bad", "line"),
    [
        ("Action: perhaps", 'Action: "perhaps" is not known; give drop, bounce or pass'),
        ("Nonsense", '"Nonsense" is no setting; write Name: value'),
        ("TempDirectory: /nowhere", "TempDirectory: /nowhere: No such file or directory; give a directory that exists"),
        ("TLSCertificate: /nowhere", "TLSCertificate: /nowhere: No such file or directory; give a file in PEM format"),
    ],
)
def test_bad_settings_are_one_line_and_the_old_stay(
    start: Callable[..., Daemon], sink: Sink, workers: int, bad: str, line: str
) -> None:
    daemon = start("Header: X-Old: yes", workers=workers)
    before = own_lines(daemon)
    change(daemon, "Header: X-Old: yes", "Header: X-New: yes")
    # Behind all others: of two for the same, the last one counts.
    with daemon.configuration.open("a") as file:
        file.write(bad)
    assert reload(daemon, "the settings from before are still used").endswith(
        f"{line}; the settings from before are still used"
    )
    assert len(own_lines(daemon)) == len(before) + 1
    send(daemon)
    assert b"X-Old: yes" in sink.messages[-1]
    change(daemon, bad, "")
    reload(daemon)
    send(daemon)
    assert b"X-New: yes" in sink.messages[-1]


@WORKERS
def test_a_settings_file_that_is_gone_is_bad_settings(start: Callable[..., Daemon], workers: int) -> None:
    daemon = start(workers=workers)
    daemon.configuration.unlink()
    assert "cannot be read: No such file or directory" in reload(daemon, "the settings from before are still used")
    send(daemon)


@WORKERS
def test_a_working_directory_that_is_gone_is_no_matter(
    start: Callable[..., Daemon], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    daemon = start(workers=workers)
    (tmp_path / "gone").rmdir()
    assert reload(daemon) == "settings read again: nothing has changed"
    send(daemon)


@WORKERS
def test_what_only_a_restart_can_change_is_told_and_the_rest_is_taken(
    start: Callable[..., Daemon], sink: Sink, workers: int
) -> None:
    daemon = start("Header: X-Old: yes", "MaxConnections: 20", workers=workers)
    change(daemon, "MaxConnections: 20", "MaxConnections: 21\nListen: 127.0.0.1:1")
    change(daemon, "X-Old", "X-New")
    assert reload(daemon) == "settings read again: changed: Header"
    # A second Listen line is one more place.
    line = "changed, but only a restart can bring it into force: Listen, MaxConnections"
    assert daemon.log_lines().count(line) == 1
    send(daemon)
    assert b"X-New: yes" in sink.messages[-1]


@WORKERS
def test_nothing_new_is_no_news(start: Callable[..., Daemon], workers: int) -> None:
    daemon = start(workers=workers)
    assert reload(daemon) == "settings read again: nothing has changed"


def test_a_worker_that_comes_later_has_the_new_settings(start: Callable[..., Daemon], sink: Sink) -> None:
    daemon = start("Header: X-Old: yes", workers=2)
    change(daemon, "X-Old", "X-New")
    reload(daemon)
    old = children(daemon.pid)
    # What has happened to the file since is no matter before the next SIGHUP.
    daemon.configuration.unlink()
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not set(children(daemon.pid)) & set(old) and len(children(daemon.pid)) == 2, "others")
    for _ in range(4):
        send(daemon)
        assert b"X-New: yes" in sink.messages[-1]


def test_a_worker_that_is_told_itself_hears_nothing(start: Callable[..., Daemon]) -> None:
    # A terminal that goes away tells all processes at once.
    daemon = start(workers=2)
    workers = children(daemon.pid)
    for pid in workers:
        os.kill(pid, signal.SIGHUP)
    reload(daemon)
    assert daemon.log().count("settings read again") == 1
    assert children(daemon.pid) == workers


@WORKERS
def test_during_the_stop_nothing_is_read(start: Callable[..., Daemon], sink: Sink, workers: int) -> None:
    daemon = start("Header: X-Old: yes", workers=workers)
    client = in_data(daemon)
    daemon.send(signal.SIGTERM)
    daemon.wait_for_log("stopping: 1 connections to finish")
    change(daemon, "X-Old", "X-New")
    daemon.send(signal.SIGHUP)
    time.sleep(0.3)
    assert finish(client) == 250
    assert daemon.wait() == 0
    assert "settings read again" not in daemon.log()
    assert b"X-Old: yes" in sink.messages[-1]


@pytest.mark.root
@WORKERS
def test_a_key_that_only_root_can_read_stays_in_use_and_no_other_such_comes_into_it(
    start: Callable[..., Daemon], tmp_path: Path, workers: int
) -> None:
    daemon = start(workers=workers)
    folder = daemon.folder
    made = make_certificate(folder)
    made.key.chmod(0o600)
    other = folder / "other.key"
    other.write_bytes(made.key.read_bytes())
    other.chmod(0o600)
    change(daemon, "Workers", f"User: nobody\nTLSCertificate: {made.certificate}\nTLSKey: {made.key}\nWorkers")
    # Until now it is root's and could read anything.
    daemon.send(signal.SIGTERM)
    assert daemon.wait() == 0
    with Daemon(*daemon.configuration.read_text().splitlines(), level=3) as daemon:
        change(daemon, "Workers", "Header: X-New: yes\nWorkers")
        assert reload(daemon) == "settings read again: changed: Header"
        assert offers_tls(daemon)
        change(daemon, f"TLSKey: {made.key}", f"TLSKey: {other}")
        line = reload(daemon, "the settings from before are still used")
        assert line.startswith(f"TLSCertificate: {other}: Permission denied; ")
        assert offers_tls(daemon)
        other.chmod(0o644)
        assert reload(daemon) == "settings read again: changed: TLSKey"
        assert offers_tls(daemon)
        change(daemon, f"TLSKey: {other}\n", "")
        change(daemon, f"TLSCertificate: {made.certificate}\n", "")
        assert reload(daemon) == "settings read again: changed: TLSCertificate, TLSKey"
        assert not offers_tls(daemon)


def offers_tls(daemon: Daemon) -> bool:
    with smtplib.SMTP(daemon.host, daemon.port, timeout=20) as client:
        client.ehlo()
        if not client.has_extn("starttls"):
            return False
        assert client.starttls(context=ssl._create_unverified_context())[0] == 220
        return True


# The stop has a limit


@WORKERS
def test_what_has_not_ended_when_the_limit_comes_is_cut_and_counted(
    start: Callable[..., Daemon], sink: Sink, workers: int
) -> None:
    limits = {"supervisor.DRAIN_LIMIT": 1.0, "worker.DRAIN_LIMIT": 1.0}
    daemon = start(workers=workers, constants=limits)
    processes = children(daemon.pid)
    clients = [in_data(daemon) for _ in range(3)]
    done = in_data(daemon)
    begin = time.monotonic()
    daemon.send(signal.SIGTERM)
    daemon.wait_for_log("connections to finish")
    assert finish(done) == 250
    assert daemon.wait() == 1
    assert 0.9 < time.monotonic() - begin < 10
    assert daemon.log_lines()[-2:] == [
        "1 s after the stop not all had ended; connections cut: 3",
        "stopped before all transactions had ended",
    ]
    assert [finish(client) for client in clients] == [0, 0, 0]
    assert len(sink.messages) == 1
    assert all(gone(pid) for pid in processes)


def test_a_worker_that_hangs_when_the_limit_comes_is_killed(start: Callable[..., Daemon]) -> None:
    limits = {"supervisor.DRAIN_LIMIT": 0.5, "supervisor.KILL_PAUSE": 0.5}
    daemon = start(workers=2, constants=limits)
    victim = children(daemon.pid)[0]
    os.kill(victim, signal.SIGSTOP)
    daemon.send(signal.SIGTERM)
    assert daemon.wait() == 1
    assert gone(victim)


# Workers that do not move


def test_a_worker_that_stands_still_is_killed_and_replaced(start: Callable[..., Daemon], sink: Sink) -> None:
    limits = {"worker.BEAT_INTERVAL": 0.1, "supervisor.LOOK_INTERVAL": 0.4, "supervisor.LOOKS": 3}
    daemon = start(workers=2, constants=limits)
    victim, other = children(daemon.pid)
    with Load(daemon, clients=1) as load:
        time.sleep(3)
        # Whoever only has nothing to do is left alone.
        assert children(daemon.pid) == [victim, other]
        os.kill(victim, signal.SIGSTOP)
        line = daemon.wait_for_log("has not moved")
        assert line == f"worker 1 (process {victim}) has not moved for 1.2 s"
        daemon.wait_for_log(f"worker 1 (process {victim}) was killed by SIGKILL")
        wait_until(lambda: len(children(daemon.pid)) == 2 and victim not in children(daemon.pid), "another worker")
    # The one connection that it may have had is lost with it.
    assert len(load.trouble) <= 1
    send(daemon)
    assert other in children(daemon.pid)


def test_a_daemon_that_was_stopped_as_a_whole_kills_nobody(start: Callable[..., Daemon]) -> None:
    limits = {"worker.BEAT_INTERVAL": 0.1, "supervisor.LOOK_INTERVAL": 0.4, "supervisor.LOOKS": 3}
    daemon = start(workers=2, constants=limits)
    workers = children(daemon.pid)
    for pid in (*workers, daemon.pid):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(3)
    # The supervisor is the first to go on.
    for pid in (daemon.pid, *workers):
        os.kill(pid, signal.SIGCONT)
    time.sleep(1)
    assert children(daemon.pid) == workers
    assert "has not moved" not in daemon.log()
