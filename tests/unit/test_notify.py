"""What a service manager hears."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clamsmtpd.notify import Notifier

Make = Callable[[dict[str, str]], Notifier]


@pytest.fixture
def make() -> Iterator[Make]:
    with contextlib.ExitStack() as made:
        yield lambda environment: made.enter_context(contextlib.closing(Notifier(environment)))


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        yield sock


def heard(ear: socket.socket) -> list[str]:
    return ear.recv(1000).decode().split("\n")


def test_each_word_is_a_datagram(make: Make, ear: socket.socket) -> None:
    notifier = make({"NOTIFY_SOCKET": ear.getsockname()})
    assert notifier
    notifier.ready()
    assert heard(ear) == ["READY=1", f"MAINPID={os.getpid()}", "STATUS=ready"]
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    word, moment = heard(ear)
    assert word == "RELOADING=1"
    assert 0 <= int(moment.removeprefix("MONOTONIC_USEC=")) - before < 1_000_000
    notifier.alive()
    assert heard(ear) == ["WATCHDOG=1"]
    notifier.stopping()
    assert heard(ear) == ["STOPPING=1", "STATUS=finishing what is in flight"]


def test_what_is_waited_for_stays_on_its_line(make: Make, ear: socket.socket) -> None:
    make({"NOTIFY_SOCKET": ear.getsockname()}).waiting("x\nREADY=1")
    assert heard(ear) == ["STATUS=waiting for x\\x0AREADY=1"]


def test_a_name_in_no_folder(make: Make) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind("\0clamsmtpd-test-notify")
        make({"NOTIFY_SOCKET": "@clamsmtpd-test-notify"}).alive()
        assert heard(ear) == ["WATCHDOG=1"]


def test_the_variables_are_for_us_alone(make: Make, ear: socket.socket) -> None:
    environment = {"NOTIFY_SOCKET": ear.getsockname(), "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "PATH": "/bin"}
    make(environment)
    assert environment == {"PATH": "/bin"}


@pytest.mark.parametrize(
    ("microseconds", "pid", "seconds"),
    [
        ("30000000", "ours", 30),
        ("500000", "", 0.5),
        ("30000000", "1", None),
        ("", "", None),
        ("0", "", None),
        ("-5", "", None),
        ("x", "", None),
    ],
)
def test_how_often_the_watchdog_wants_to_hear(
    make: Make, ear: socket.socket, microseconds: str, pid: str, seconds: float | None
) -> None:
    variables = {
        "NOTIFY_SOCKET": ear.getsockname(),
        "WATCHDOG_USEC": microseconds,
        "WATCHDOG_PID": str(os.getpid()) if pid == "ours" else pid,
    }
    assert make(variables).watchdog == seconds


def test_without_a_manager_nothing_is_told(make: Make) -> None:
    notifier = make({"WATCHDOG_USEC": "1000"})
    assert not notifier
    assert notifier.watchdog is None
    before = os.listdir("/proc/self/fd")
    notifier.ready()
    notifier.stopping()
    assert os.listdir("/proc/self/fd") == before


def test_the_watchdog_hears_of_us_when_no_descriptor_is_left(make: Make, ear: socket.socket) -> None:
    notifier = make({"NOTIFY_SOCKET": ear.getsockname()})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        notifier.alive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert heard(ear) == ["WATCHDOG=1"]


def test_a_manager_that_is_gone_or_asleep_keeps_nobody(
    make: Make, ear: socket.socket, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    notifier = make({"NOTIFY_SOCKET": ear.getsockname()})
    begin = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clamsmtpd.notify._LIMIT", 0.01)
        # More than its queue holds.
        for _ in range(2000):
            notifier.alive()
            if caplog.records:
                break
    assert "cannot notify the service manager of WATCHDOG=1: timed out" in caplog.text
    assert time.monotonic() - begin < 5
    make({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready()
    assert "cannot notify the service manager of READY=1: No such file or directory" in caplog.text
