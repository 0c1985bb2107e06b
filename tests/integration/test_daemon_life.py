"""The daemon as the system starts it: in the background, by root or not, and what is left when it ends."""

from __future__ import annotations

import contextlib
import os
import pwd
import resource
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.clamd import EICAR, Clamd
from tests.support.daemon import Daemon
from tests.support.process import accepts, free_port, wait_until
from tests.support.sink import Sink

MAIL = b"Subject: x\r\n\r\ntext\r\n"


class Background:
    """A settings file, and the daemon that is started from it as an administrator does it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.pid_file = folder / "run" / "clamsmtpd.pid"
        self.pid_file.parent.mkdir()
        self.configuration = folder / "clamsmtpd.conf"
        self.settings = {
            "OutAddress": "127.0.0.1:9",
            "Listen": f"127.0.0.1:{self.port}",
            "TempDirectory": "/tmp",
            "PidFile": str(self.pid_file),
            "Workers": "1",
        }
        self._started: list[int] = []

    def start(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run the command until it returns, with the daemon in the background or not at all."""
        merged = {name: value for name, value in {**self.settings, **settings}.items() if value}
        self.configuration.write_text("".join(f"{name}: {value}\n" for name, value in merged.items()))
        try:
            # A daemon that kept standard error would have this wait for its end.
            return subprocess.run(
                [sys.executable, "-m", "clamsmtpd", "-f", str(self.configuration), *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=20,
                check=False,
                cwd=self.folder,
            )
        finally:
            with contextlib.suppress(OSError, ValueError):
                self._started.append(int(self.pid_file.read_text()))

    @property
    def pid(self) -> int:
        return int(self.pid_file.read_text())

    def workers(self) -> list[int]:
        """Return the processes under the one that the pid file names."""
        return [int(word) for word in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def status(self, name: str, pid: int | None = None) -> list[str]:
        """Return the words of one line of /proc/PID/status, of the process that the pid file names or of another."""
        lines = Path(f"/proc/{pid or self.pid}/status").read_text().splitlines()
        return next(line.split()[1:] for line in lines if line.startswith(f"{name}:"))

    def stop(self) -> None:
        pid = self.pid
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not alive(pid), "the daemon to end")

    def cleanup(self) -> None:
        for pid in self._started:
            with contextlib.suppress(OSError):
                if b"clamsmtpd" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        # Nobody may be there to bury an orphan in a container.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.fixture
def background() -> Iterator[Background]:
    folder = Path(tempfile.mkdtemp(prefix="clamsmtpd-life-"))
    folder.chmod(0o755)
    started = Background(folder)
    yield started
    started.cleanup()
    shutil.rmtree(folder)


def send(port: int, mail: bytes) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
        client.sendmail("a@example.com", ["b@example.com"], mail)


# In the background


def test_it_serves_when_the_command_returns(background: Background) -> None:
    result = background.start()
    assert (result.returncode, result.stdout) == (0, "")
    assert accepts(("127.0.0.1", background.port))
    assert b"clamsmtpd" in Path(f"/proc/{background.pid}/cmdline").read_bytes()
    background.stop()
    assert not background.pid_file.exists()
    assert not accepts(("127.0.0.1", background.port))


def test_it_has_left_the_terminal_and_the_folder(background: Background) -> None:
    background.start()
    process = Path(f"/proc/{background.pid}")
    assert {os.readlink(process / "fd" / str(number)) for number in range(3)} == {"/dev/null"}
    assert os.readlink(process / "cwd") == "/"
    assert background.status("Umask") == ["0077"]
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    session, terminal = int(fields[3]), int(fields[4])
    # It is in a session of its own, but does not lead it, so that it can never get a terminal again.
    assert session not in (background.pid, os.getsid(0))
    assert terminal == 0
    background.stop()


def test_a_hangup_does_not_end_it(background: Background) -> None:
    background.start()
    os.kill(background.pid, signal.SIGHUP)
    assert accepts(("127.0.0.1", background.port))
    background.stop()
    assert not background.pid_file.exists()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_relative_paths_mean_the_same_when_the_settings_are_read_again(
    background: Background, sink: Sink, workers: str
) -> None:
    temp = background.folder / "spool"
    temp.mkdir()
    settings = {"OutAddress": str(sink.address), "TempDirectory": "spool", "Workers": workers, "TimeOut": "1"}
    # The daemon has gone to the root directory, where there is neither.
    background.start("-f", background.configuration.name, **settings)
    with background.configuration.open("a") as file:
        file.write("DebugFiles: on\n")
    os.kill(background.pid, signal.SIGHUP)

    def kept() -> bool:
        with contextlib.suppress(smtplib.SMTPDataError):
            send(background.port, MAIL)
        return bool(list(temp.glob("clamsmtpd.*")))

    wait_until(kept, "a message to be kept")
    background.stop()


def test_relative_paths_mean_what_they_mean_to_who_starts_it(background: Background) -> None:
    result = background.start("-p", "other.pid")
    try:
        assert result.returncode == 0
        # And the flag beats the setting.
        assert not background.pid_file.exists()
    finally:
        background.pid_file = background.folder / "other.pid"
        background.stop()
    assert not background.pid_file.exists()


def test_a_second_one_is_refused_and_the_first_goes_on(background: Background) -> None:
    background.start()
    pid = background.pid
    result = background.start(Listen=f"127.0.0.1:{free_port()}")
    assert result.returncode == 1
    line = f"clamsmtpd: PidFile: {background.pid_file}: clamsmtpd is already running as process {pid}\n"
    assert result.stderr == line
    assert background.pid == pid
    background.stop()


def test_the_pid_file_of_a_daemon_that_was_killed_is_taken_over(background: Background) -> None:
    background.start()
    killed = background.pid
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: not alive(killed), "the daemon to be gone")
    assert background.start().returncode == 0
    assert background.pid != killed
    background.stop()


def test_its_descriptors_are_not_handed_on_to_hooks(background: Background) -> None:
    background.start()
    folder = Path(f"/proc/{background.pid}/fdinfo")
    for entry in folder.iterdir():
        flags = next(line for line in entry.read_text().splitlines() if line.startswith("flags:")).split()[1]
        if int(entry.name) > 2:
            assert int(flags, 8) & os.O_CLOEXEC, os.readlink(folder.parent / "fd" / entry.name)
    background.stop()


@pytest.mark.root
def test_with_several_workers_all_have_left_the_terminal_and_root(background: Background) -> None:
    nobody = pwd.getpwnam("nobody")
    result = background.start(User="nobody", Workers="3")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    workers = background.workers()
    assert len(workers) == 3
    for pid in (background.pid, *workers):
        process = Path(f"/proc/{pid}")
        assert background.status("Uid", pid) == [str(nobody.pw_uid)] * 4
        assert {os.readlink(process / "fd" / str(number)) for number in range(3)} == {"/dev/null"}
        assert os.readlink(process / "cwd") == "/"
        for entry in (process / "fdinfo").iterdir():
            flags = next(line for line in entry.read_text().splitlines() if line.startswith("flags:")).split()[1]
            assert int(entry.name) <= 2 or int(flags, 8) & os.O_CLOEXEC
    for pid in workers:
        assert background.status("SigBlk", pid) == ["0" * 16]
        # Locked by whoever has it open, it would outlive the supervisor.
        files = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
        assert str(background.pid_file) not in files
    for number in (signal.SIGHUP, signal.SIGUSR1):
        for pid in (background.pid, *workers):
            os.kill(pid, number)
    assert background.workers() == workers
    assert accepts(("127.0.0.1", background.port))
    background.stop()
    assert not any(alive(pid) for pid in workers)
    assert not accepts(("127.0.0.1", background.port))


def test_workers_of_a_daemon_that_was_killed_do_not_stay(background: Background) -> None:
    background.start(Workers="2")
    killed, workers = background.pid, background.workers()
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: not any(alive(pid) for pid in workers), "the workers to end")
    assert background.start(Workers="2").returncode == 0
    background.stop()


# Failures to start


@pytest.mark.root
@pytest.mark.parametrize("arguments", [(), ("-d", "1")])
def test_workers_that_cannot_be_forked(background: Background, arguments: tuple[str, ...]) -> None:
    before = resource.getrlimit(resource.RLIMIT_NPROC)
    # To root it means nothing: the daemon gets into the background, and becomes a user who may have no more processes.
    resource.setrlimit(resource.RLIMIT_NPROC, (1, before[1]))
    try:
        result = background.start(*arguments, User="nobody", Workers="2")
    finally:
        resource.setrlimit(resource.RLIMIT_NPROC, before)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "clamsmtpd: no worker came to serve"
    assert not accepts(("127.0.0.1", background.port))


def test_an_address_in_use(background: Background) -> None:
    with socket.create_server(("127.0.0.1", background.port)):
        result = background.start()
    assert result.returncode == 1
    assert result.stderr == (
        f"clamsmtpd: Listen: cannot listen on 127.0.0.1:{background.port}: Address already in use; "
        "is another clamsmtpd running, or is it in another Listen line?\n"
    )
    assert not background.pid_file.exists()


def test_a_symbolic_link_for_a_pid_file(background: Background) -> None:
    target = background.folder / "precious"
    target.write_text("precious")
    background.pid_file.symlink_to(target)
    result = background.start()
    assert result.returncode == 1
    assert "it is a symbolic link" in result.stderr
    assert target.read_text() == "precious"
    assert not accepts(("127.0.0.1", background.port))


@pytest.mark.parametrize("arguments", [(), ("-d", "0")])
def test_a_temp_directory_that_is_missing(background: Background, arguments: tuple[str, ...]) -> None:
    missing = background.folder / "missing"
    result = background.start(*arguments, TempDirectory=str(missing))
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if "root" not in line]
    expected = f"clamsmtpd: TempDirectory: {missing}: No such file or directory; give a directory that exists"
    assert lines == [expected]
    assert not background.pid_file.exists()


@pytest.mark.root
def test_a_temp_directory_that_the_user_may_not_write_to(background: Background) -> None:
    result = background.start(TempDirectory=str(background.folder), User="nobody")
    assert result.returncode == 1
    assert f"cannot write to {background.folder}" in result.stderr


@pytest.mark.root
def test_a_user_that_does_not_exist(background: Background) -> None:
    result = background.start(User="no-such-user")
    assert result.returncode == 1
    assert result.stderr == "clamsmtpd: User: there is no user no-such-user; give one that exists\n"
    assert not background.pid_file.exists()


# Root is given up


def _expect_ids(background: Background, user: pwd.struct_passwd) -> None:
    assert background.status("Uid") == [str(user.pw_uid)] * 4
    assert background.status("Gid") == [str(user.pw_gid)] * 4
    assert {int(group) for group in background.status("Groups")} == set(os.getgrouplist(user.pw_name, user.pw_gid))
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(background.status(capabilities)[0], 16) == 0


@pytest.mark.root
@pytest.mark.parametrize("by_number", [False, True])
def test_a_user_has_nothing_of_root(background: Background, by_number: bool) -> None:
    nobody = pwd.getpwnam("nobody")
    result = background.start(User=str(nobody.pw_uid) if by_number else "nobody")
    assert (result.returncode, result.stderr) == (0, "")
    _expect_ids(background, nobody)
    assert background.pid_file.stat().st_uid == 0
    assert background.pid_file.stat().st_mode & 0o777 == 0o644
    pid_file, pid = background.pid_file, background.pid
    background.stop()
    # The folder is root's: the file cannot be removed any more, but it names no process.
    assert pid_file.read_text() == "", pid


@pytest.mark.root
def test_groups_of_whoever_started_it_are_gone(background: Background) -> None:
    nobody = pwd.getpwnam("nobody")
    before = os.getgroups()
    os.setgroups([0, 4, 27])
    try:
        background.start(User="nobody")
    finally:
        os.setgroups(before)
    _expect_ids(background, nobody)
    background.stop()


@pytest.mark.root
def test_in_a_folder_of_the_user_the_pid_file_is_removed(background: Background) -> None:
    nobody = pwd.getpwnam("nobody")
    os.chown(background.pid_file.parent, nobody.pw_uid, nobody.pw_gid)
    background.start(User="nobody")
    background.stop()
    assert not background.pid_file.exists()


@pytest.mark.root
def test_nothing_is_missing_once_root_is_given_up(
    start_daemon: Callable[..., Daemon], clamd: Clamd, sink: Sink
) -> None:
    # Whatever Python loads only now may lie where this user cannot read: names to resolve, hooks to run.
    daemon = start_daemon(
        f"OutAddress: localhost:{sink.port}",
        f"ClamAddress: localhost:{clamd.tcp.port}",
        "User: nobody",
        "Quarantine: on",
        "Action: pass",
        "VirusAction: echo $(id -un) $VIRUS",
    )
    send(daemon.port, MAIL)
    send(daemon.port, MAIL + EICAR)
    assert daemon.wait_for_log("hook: nobody ")
    daemon.send(signal.SIGTERM)
    assert daemon.wait() == 0
    assert len(sink.messages) == 2
    statuses = [line.rpartition("status=")[2].partition(":")[0] for line in daemon.message_lines()]
    assert statuses == ["CLEAN", "VIRUS"]
    assert [name.partition(".")[0] for name in daemon.spooled()] == ["virus"]
    assert "error" not in daemon.log().lower().replace("clamav-error", "")


@pytest.mark.root
def test_root_without_a_user_is_warned(background: Background) -> None:
    result = background.start()
    assert result.stderr == "clamsmtpd: running as root is not needed; give a user with the setting User\n"
    background.stop()


# In the foreground


def test_in_the_foreground_it_stays_and_logs_to_standard_error(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon("OutAddress: 127.0.0.1:9", level=3)
    assert daemon.running
    assert daemon.wait_for_log(f"accepting connections on 127.0.0.1:{daemon.port}")
    daemon.send(signal.SIGHUP)
    daemon.send(signal.SIGTERM)
    assert daemon.wait() == 0
    assert daemon.log_lines()[-1] == "stopped"


def test_the_idle_are_told_421_and_the_exit_is_clean(start_daemon: Callable[..., Daemon], sink: Sink) -> None:
    daemon = start_daemon(f"OutAddress: 127.0.0.1:{sink.port}")
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=10) as client:
        assert client.recv(1000).startswith(b"220 ")
        daemon.send(signal.SIGINT)
        assert client.recv(1000).startswith(b"421 ")
        assert daemon.wait() == 0
        assert client.recv(1000) == b""


def test_a_unix_socket_is_removed_at_the_stop(start_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    path = tmp_path / "socket"
    daemon = start_daemon("OutAddress: 127.0.0.1:9", f"Listen: {path}")
    assert accepts(str(path))
    daemon.send(signal.SIGTERM)
    assert daemon.wait() == 0
    assert not path.exists()
