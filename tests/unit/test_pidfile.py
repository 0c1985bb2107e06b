from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from clamsmtpd.pidfile import PidFile
from clamsmtpd.values import StartError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "clamsmtpd.pid"


def test_it_holds_our_process_id_and_is_readable_by_all(path: Path) -> None:
    mask = os.umask(0o077)
    try:
        pid_file = PidFile(str(path))
    finally:
        os.umask(mask)
    assert path.read_text() == f"{os.getpid()}\n"
    assert path.stat().st_mode & 0o7777 == 0o644
    assert not os.get_inheritable(pid_file._fd)
    pid_file.remove()
    assert not path.exists()


def test_one_that_a_dead_daemon_left_is_taken_over(path: Path) -> None:
    path.write_text("4194304000000\n and more\n")
    pid_file = PidFile(str(path))
    assert path.read_text() == f"{os.getpid()}\n"
    pid_file.remove()


def test_a_second_daemon_is_refused_and_changes_nothing(path: Path) -> None:
    first = PidFile(str(path))
    with pytest.raises(StartError, match=f"{path}: clamsmtpd is already running as process {os.getpid()}$"):
        PidFile(str(path))
    assert path.read_text() == f"{os.getpid()}\n"
    first.remove()
    PidFile(str(path)).remove()


@pytest.mark.parametrize("there", [True, False])
def test_no_symbolic_link_is_followed(path: Path, tmp_path: Path, there: bool) -> None:
    target = tmp_path / "target"
    if there:
        target.write_text("precious")
    path.symlink_to(target)
    with pytest.raises(StartError, match="it is a symbolic link"):
        PidFile(str(path))
    assert target.read_text() == "precious" if there else not target.exists()


def test_a_second_name_of_another_file_is_refused(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    os.link(target, path)
    with pytest.raises(StartError, match="no plain file with one name"):
        PidFile(str(path))
    assert target.read_text() == "precious"


@pytest.mark.root
@pytest.mark.parametrize("mode", [0o644, 0o666])
def test_one_that_a_stranger_made_is_refused(path: Path, tmp_path: Path, mode: int) -> None:
    """In a directory like /tmp. He could write another number to it, and its reader is often root who kills."""
    tmp_path.chmod(0o1777)
    path.write_text("1\n")
    path.chmod(mode)
    os.chown(path, 4321, 4321)
    with pytest.raises(StartError, match=f"PidFile: {path} belongs to user 4321; remove it"):
        PidFile(str(path))
    assert path.read_text() == "1\n"


@pytest.mark.root
def test_one_that_the_owner_of_the_directory_left_is_taken_over(path: Path, tmp_path: Path) -> None:
    path.write_text("1\n")
    for place in (path, tmp_path):
        os.chown(place, 4321, 4321)
    PidFile(str(path)).remove()


@pytest.mark.root
def test_the_directory_of_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pid").write_text("1\n")
    os.chown("pid", 4321, 4321)
    with pytest.raises(StartError, match="belongs to user 4321"):
        PidFile("pid")


def test_a_fifo_is_refused_without_waiting_for_its_other_end(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(StartError, match="no plain file"):
        PidFile(str(path))


@pytest.mark.parametrize("name", ["missing/pid", ""])
def test_a_path_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    why = "No such file or directory" if name else "Is a directory"
    with pytest.raises(StartError, match=re.escape(f"PidFile: cannot write {path}: {why}")):
        PidFile(str(path))


def test_a_full_disk_is_told() -> None:
    with pytest.raises(StartError, match="PidFile"):
        PidFile("/dev/full")


def test_a_write_that_fails_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int, _data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clamsmtpd.pidfile.os.write", full)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StartError, match=f"cannot write {path}: No space left on device"):
        PidFile(str(path))
    assert len(os.listdir("/proc/self/fd")) == before


def test_one_that_its_last_owner_removed_meanwhile_is_not_taken(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The lock is free, but only because the file it was on is gone.
    monkeypatch.setattr("clamsmtpd.pidfile.fcntl.flock", lambda *_: path.unlink())
    with pytest.raises(StartError, match="was just stopping; start again"):
        PidFile(str(path))


def test_the_file_of_another_is_left_alone(path: Path) -> None:
    pid_file = PidFile(str(path))
    path.unlink()
    path.write_text("1\n")
    pid_file.remove()
    assert path.read_text() == "1\n"


def test_one_that_is_gone_already_is_no_trouble(path: Path) -> None:
    pid_file = PidFile(str(path))
    path.unlink()
    pid_file.remove()


def test_where_it_cannot_be_removed_it_is_emptied(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(_path: str) -> None:
        raise PermissionError(13, "Permission denied")

    pid_file = PidFile(str(path))
    monkeypatch.setattr("clamsmtpd.pidfile.os.unlink", forbidden)
    pid_file.remove()
    assert path.read_text() == ""
