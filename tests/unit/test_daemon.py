"""Start and stop in the foreground, in this process, with a server that does as the test wants."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from clamsmtpd import __version__, daemon, worker
from clamsmtpd.commons import Share
from clamsmtpd.config import ConfigError, Loaded, Settings, load
from clamsmtpd.listeners import Listener
from clamsmtpd.metrics import METRICS
from clamsmtpd.tls import Certificate
from clamsmtpd.values import Listen, StartError

logger = logging.getLogger("clamsmtpd")

NOTHING_COUNTED = f"totals: {', '.join(f'{metric.name}=0' for metric in METRICS)}"

Story = Callable[[asyncio.Event], object]


@pytest.fixture(autouse=True)
def _process_as_before() -> Iterator[None]:
    names = ("logThreads", "logProcesses", "logMultiprocessing", "raiseExceptions", "_srcfile")
    before = {name: getattr(logging, name) for name in names}
    level, propagate, handlers = logger.level, logger.propagate, list(logger.handlers)
    hangup = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, hangup)
    logger.handlers[:] = handlers
    logger.filters.clear()
    logger.setLevel(level)
    logger.propagate = propagate
    for name, value in before.items():
        setattr(logging, name, value)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    configuration = tmp_path / "clamsmtpd.conf"
    configuration.write_text(
        f"OutAddress: 127.0.0.1:2525\nListen: {tmp_path}/socket\nTempDirectory: {tmp_path}\nPidFile: {tmp_path}/pid\n"
        "Workers: 1\n"
    )
    return load(str(configuration)).settings


@pytest.fixture
def serve_as(monkeypatch: pytest.MonkeyPatch) -> Callable[[Story], None]:
    """Have the server run the test's story instead of serving."""

    def use(story: Story) -> None:
        class Server:
            def __init__(
                self,
                _settings: Settings,
                listeners: Sequence[Listener],
                _certificate: Certificate | None,
                _share: Share,
            ) -> None:
                self._listeners = listeners

            def renew(self, *_new: object) -> None:
                """Have the same story go on."""

            async def serve(self, stop: asyncio.Event) -> None:
                try:
                    if asyncio.iscoroutine(result := story(stop)):
                        await result
                finally:
                    for listener in self._listeners:
                        listener.socket.close()

        monkeypatch.setattr(worker, "Server", Server)

    use(lambda _stop: None)
    # What this process has from whoever runs the tests is not the daemon's to close.
    monkeypatch.setattr(daemon, "shed", lambda: None)
    # Nor are its rights and limits.
    monkeypatch.setattr(daemon, "drop_capabilities", lambda: None)
    monkeypatch.setattr(daemon, "forbid_core_dumps", lambda: None)
    # Whether the tests run as root is not their matter.
    monkeypatch.setattr("clamsmtpd.daemon.os.geteuid", lambda: 1000)
    return use


def _errors(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_and_nothing_is_left(
    settings: Settings,
    serve_as: Callable[[Story], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    async def story(stop: asyncio.Event) -> None:
        assert (tmp_path / "pid").read_text() == f"{os.getpid()}\n"
        assert (tmp_path / "socket").is_socket()
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), number)
        await stop.wait()
        # The name is free for the next daemon as soon as this one takes no more clients.
        assert not (tmp_path / "socket").exists()

    serve_as(story)
    assert daemon.run(settings, foreground_level=3) == 0
    assert _errors(capsys) == [
        f"clamsmtpd: clamsmtpd {__version__} accepting connections on {tmp_path}/socket",
        "clamsmtpd: settings read again: nothing has changed",
        f"clamsmtpd: {NOTHING_COUNTED}",
        "clamsmtpd: stopped",
    ]
    assert not (tmp_path / "pid").exists()


def test_the_socket_of_the_daemon_that_follows_is_left_alone(
    settings: Settings, serve_as: Callable[[Story], None], tmp_path: Path
) -> None:
    async def story(stop: asyncio.Event) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        (tmp_path / "socket").write_text("the next one's")

    serve_as(story)
    assert daemon.run(settings, foreground_level=0) == 0
    assert (tmp_path / "socket").exists()


def test_a_second_signal_does_not_wait_any_longer(
    settings: Settings, serve_as: Callable[[Story], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def story(stop: asyncio.Event) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)

    serve_as(story)
    assert daemon.run(settings, foreground_level=2) == 1
    assert _errors(capsys) == ["clamsmtpd: stopped before all transactions had ended"]
    assert not (tmp_path / "pid").exists()


def test_a_stop_has_a_limit(
    settings: Settings,
    serve_as: Callable[[Story], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "DRAIN_LIMIT", 0.1)

    async def story(stop: asyncio.Event) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        await asyncio.sleep(60)

    serve_as(story)
    assert daemon.run(settings, foreground_level=2) == 1
    assert _errors(capsys) == [
        "clamsmtpd: 0.1 s after the stop not all had ended; connections cut: 0",
        "clamsmtpd: stopped before all transactions had ended",
    ]


def test_a_hangup_that_came_before_it_served_is_obeyed_when_it_does(
    settings: Settings, serve_as: Callable[[Story], None], capsys: pytest.CaptureFixture[str]
) -> None:
    async def story(stop: asyncio.Event) -> None:
        await asyncio.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        # And one that comes now is too late.
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.05)

    def read() -> Loaded:
        reads.append(len(reads))
        raise ConfigError("bad")

    reads: list[int] = []
    serve_as(story)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        signal.pthread_kill(threading.get_ident(), signal.SIGHUP)
        assert daemon.run(settings, foreground_level=2, load=read) == 0
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert reads == [0]
    assert _errors(capsys) == ["clamsmtpd: bad; the settings from before are still used"]


def test_a_socket_that_cannot_be_removed_is_told(
    settings: Settings, serve_as: Callable[[Story], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def story(stop: asyncio.Event) -> None:
        (tmp_path / "socket").unlink()
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()

    serve_as(story)
    assert daemon.run(settings, foreground_level=3) == 0
    assert f"clamsmtpd: cannot remove {tmp_path}/socket: No such file or directory" in _errors(capsys)


@pytest.mark.parametrize("level", [0, 3, 4])
def test_a_bug_is_one_line_and_a_traceback_only_at_the_debug_level(
    settings: Settings,
    serve_as: Callable[[Story], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    level: int,
) -> None:
    async def story(_stop: asyncio.Event) -> None:
        raise LookupError("no such thing")

    serve_as(story)
    assert daemon.run(settings, foreground_level=level) == 1
    lines = _errors(capsys)
    assert "clamsmtpd: internal error: LookupError: no such thing" in lines
    assert any("Traceback" in line for line in lines) == (level == 4)
    assert not (tmp_path / "pid").exists()


@pytest.mark.parametrize("level", [1, 4])
def test_what_nobody_caught_is_one_line_and_the_daemon_goes_on(
    settings: Settings, serve_as: Callable[[Story], None], capsys: pytest.CaptureFixture[str], level: int
) -> None:
    def broken() -> None:
        raise LookupError("no such thing")

    async def story(_stop: asyncio.Event) -> None:
        asyncio.get_running_loop().call_soon(broken)
        asyncio.get_running_loop().call_exception_handler({"message": "strange"})
        await asyncio.sleep(0.01)

    serve_as(story)
    assert daemon.run(settings, foreground_level=level) == 0
    usual = ("accepting", "totals", "stopped")
    lines = [line for line in _errors(capsys) if not any(word in line for word in usual)]
    assert lines[0] == "clamsmtpd: internal error: strange"
    assert lines[1].startswith("clamsmtpd: internal error: Exception in callback")
    assert lines[1].endswith(": LookupError: no such thing")
    assert any("Traceback" in line for line in lines) == (level == 4)


def test_warnings_are_told_at_the_start(
    settings: Settings, serve_as: Callable[[Story], None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert daemon.run(settings, foreground_level=2, warnings=["old", "older"]) == 0
    assert _errors(capsys) == ["clamsmtpd: old", "clamsmtpd: older"]


def test_a_limit_of_open_files_that_is_too_low_is_told(
    settings: Settings,
    serve_as: Callable[[Story], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(daemon, "raise_descriptor_limit", lambda _max_connections: "too few")
    assert daemon.run(settings, foreground_level=2) == 0
    assert _errors(capsys) == ["clamsmtpd: too few"]


# Failures to start


def _fails(settings: Settings, capsys: pytest.CaptureFixture[str]) -> str:
    assert daemon.run(settings, foreground_level=0) == 1
    (line,) = _errors(capsys)
    return line.removeprefix("clamsmtpd: ")


@pytest.mark.usefixtures("serve_as")
def test_a_temp_directory_that_does_not_exist(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = dataclasses.replace(settings, temp_directory=f"{tmp_path}/missing")
    line = _fails(settings, capsys)
    assert line == f"TempDirectory: {tmp_path}/missing: No such file or directory; give a directory that exists"
    assert sorted(os.listdir(tmp_path)) == ["clamsmtpd.conf"]


@pytest.mark.usefixtures("serve_as")
def test_a_temp_directory_in_which_all_may_remove_all(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o777)
    assert _fails(settings, capsys).startswith(f"TempDirectory: others may remove and replace what is in {tmp_path}; ")


@pytest.mark.usefixtures("serve_as")
def test_what_is_said_of_a_temp_directory_is_told(
    settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "check_temp_directory", lambda path: [f"{path} is odd", "very"])
    assert daemon.run(settings, foreground_level=2) == 0
    assert _errors(capsys) == [f"clamsmtpd: {settings.temp_directory} is odd", "clamsmtpd: very"]


@pytest.mark.usefixtures("serve_as")
def test_a_pid_file_that_is_a_symbolic_link(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pid").symlink_to(tmp_path / "other")
    assert "it is a symbolic link" in _fails(settings, capsys)


@pytest.mark.usefixtures("serve_as")
def test_an_address_in_use(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(settings.listen[0]))
        living.listen()
        assert os.strerror(errno.EADDRINUSE) in _fails(settings, capsys)


# Root


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch, serve_as: Callable[[Story], None]) -> list[str]:
    """What is done, in order, with a kernel that lets us be root."""
    done: list[str] = []

    def find_user(name: str) -> str:
        done.append("find user")
        return name

    def listen(_places: Sequence[Listen], _passed: Sequence[socket.socket]) -> list[Listener]:
        done.append("listen")
        return []

    class PidFile:
        def __init__(self, _path: str) -> None:
            done.append("write pid file")

        def remove(self) -> None:
            done.append("remove pid file")

    monkeypatch.setattr(daemon, "shed", lambda: done.append("shed"))
    monkeypatch.setattr(daemon, "find_user", find_user)
    monkeypatch.setattr(daemon, "listen", listen)
    monkeypatch.setattr(daemon, "PidFile", PidFile)
    monkeypatch.setattr(daemon, "become", lambda user: done.append(f"become {user}"))
    monkeypatch.setattr(daemon, "drop_capabilities", lambda: done.append("drop capabilities"))
    monkeypatch.setattr(daemon, "forbid_core_dumps", lambda: done.append("forbid core dumps"))
    monkeypatch.setattr(daemon, "raise_descriptor_limit", lambda _connections: done.append("raise limit"))
    monkeypatch.setattr("clamsmtpd.daemon.os.geteuid", lambda: 1000 if "become mail" in done else 0)
    serve_as(lambda _stop: done.append("serve"))
    return done


def test_all_that_needs_root_is_done_before_it_is_given_up_and_the_network_is_read_after(
    settings: Settings, steps: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert daemon.run(dataclasses.replace(settings, user="mail"), foreground_level=2) == 0
    before = ["shed", "find user", "listen", "write pid file", "raise limit", "forbid core dumps"]
    assert steps == [*before, "become mail", "drop capabilities", "serve", "remove pid file"]
    assert _errors(capsys) == []


def test_nothing_is_served_when_root_cannot_be_given_up(
    settings: Settings, steps: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(_user: object) -> None:
        raise StartError("User: became mail, but rights of root are left")

    monkeypatch.setattr(daemon, "become", cannot)
    assert "rights of root" in _fails(dataclasses.replace(settings, user="mail"), capsys)
    assert "serve" not in steps
    assert steps[-1] == "remove pid file"


def test_root_without_a_user_is_warned_once(
    settings: Settings, steps: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert daemon.run(dataclasses.replace(settings, pid_file=None), foreground_level=2) == 0
    assert steps == ["shed", "listen", "raise limit", "forbid core dumps", "drop capabilities", "serve"]
    assert _errors(capsys) == ["clamsmtpd: running as root is not needed; give a user with the setting User"]
