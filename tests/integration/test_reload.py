"""SIGHUP: other settings for those who come next, the same for those who are here, and nobody is turned away."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import smtplib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.test_workers import TEXT, children, finish, gone, in_data
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

    def __enter__(self) -> Load:
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
    assert all(b"X-New: yes" in message.data for message in sink.messages)
    new = len(sink.messages)
    client.send(TEXT)
    assert client.getreply()[0] == 250
    # And for its next message as well.
    client.sendmail("a@example.org", ["b@example.org"], EICAR)
    client.sendmail("a@example.org", ["b@example.org"], b"Subject: y\r\n\r\n")
    client.quit()
    assert len(sink.messages) == new + 2
    assert all(b"X-Old: yes" in message.data for message in sink.messages[new:])


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
    assert b"X-Turn: 8" in sink.messages[-1].data
    assert b"CLAMAV-ERROR" not in daemon.log().encode()


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
    before = daemon.log_lines()
    change(daemon, "Header: X-Old: yes", f"Header: X-New: yes\n{bad}")
    assert reload(daemon, "the settings from before are still used").endswith(
        f"{line}; the settings from before are still used"
    )
    assert len(daemon.log_lines()) == len(before) + 1
    send(daemon)
    assert b"X-Old: yes" in sink.messages[-1].data
    change(daemon, bad, "")
    reload(daemon)
    send(daemon)
    assert b"X-New: yes" in sink.messages[-1].data


@WORKERS
def test_a_settings_file_that_is_gone_is_bad_settings(start: Callable[..., Daemon], workers: int) -> None:
    daemon = start(workers=workers)
    daemon.configuration.unlink()
    assert "cannot be read: No such file or directory" in reload(daemon, "the settings from before are still used")
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
    assert b"X-New: yes" in sink.messages[-1].data


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
        assert b"X-New: yes" in sink.messages[-1].data


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
    assert b"X-Old: yes" in sink.messages[-1].data


@WORKERS
def test_before_it_serves_it_is_kept_until_then(clamd: Clamd, sink: Sink, workers: int, tmp_path: Path) -> None:
    # While the first one starts, each moment may be the one.
    for delay in (0.05, 0.15, 0.3, 0.5):
        killer = threading.Timer(0, lambda: None)
        with contextlib.ExitStack() as stack:
            daemon = stack.enter_context(
                Daemon(f"OutAddress: {sink.address}", f"Workers: {workers}", level=3, hangup_after=delay)
            )
            killer.cancel()
            daemon.wait_for_log("accepting connections on")
            daemon.send(signal.SIGTERM)
            assert daemon.wait() == 0


def test_relative_paths_are_from_where_it_was_started(start: Callable[..., Daemon]) -> None:
    """The daemon in the background has gone to the root directory: see test_daemon_life."""


@pytest.mark.root
@WORKERS
def test_a_key_that_its_user_cannot_read_is_bad_settings_unless_it_has_it_already(
    start: Callable[..., Daemon], tmp_path: Path, workers: int
) -> None:
    from tests.support.certificates import authority

    assert pwd.getpwnam("nobody")
    assert authority
