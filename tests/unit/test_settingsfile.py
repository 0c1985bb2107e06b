"""What may lie where the settings file should be."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import pytest

from clamsmtpd.config import ConfigError, load
from clamsmtpd.settingsfile import SIZE_MAX, read_settings_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "conf"


def test_its_text(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbfHeader: caf\xc3\xa9\r\n\xff\0\n")
    assert read_settings_file(str(path)) == ("Header: caf\u00e9\r\n\udcff\0\n", None)


def test_a_link_to_it(path: Path) -> None:
    path.with_name("real").write_text("a")
    path.symlink_to("real")
    assert read_settings_file(str(path)) == ("a", None)


def test_no_file_at_all_by_its_usual_name() -> None:
    assert read_settings_file("/dev/null") == ("", None)


@pytest.mark.parametrize("kind", ["missing", "loop", "socket"])
def test_what_cannot_be_opened(path: Path, kind: str) -> None:
    if kind == "loop":
        path.symlink_to(path)
    with socket.socket(socket.AF_UNIX) as sock:
        if kind == "socket":
            sock.bind(str(path))
        with pytest.raises(OSError, match=r"."):
            read_settings_file(str(path))


@pytest.mark.parametrize("writer", [False, True])
def test_a_fifo_is_refused_at_once(path: Path, writer: bool) -> None:
    os.mkfifo(path)
    other = os.open(path, os.O_RDWR) if writer else -1
    with pytest.raises(ValueError, match=r"^it is no plain file$"):
        read_settings_file(str(path))
    if writer:
        os.close(other)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/full", "/dev/urandom"])
def test_a_device_without_end_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match=r"^it is no plain file$"):
        read_settings_file(device)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        read_settings_file(str(tmp_path))


def test_one_that_is_huge_is_not_read(path: Path) -> None:
    path.write_bytes(b"#" * SIZE_MAX)
    assert len(read_settings_file(str(path))[0]) == SIZE_MAX
    with path.open("wb") as file:
        # More than there is memory for, all holes.
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match=r"^it is larger than 1048576 octets$"):
        read_settings_file(str(path))


@pytest.mark.parametrize(("mode", "warned"), [(0o644, False), (0o664, False), (0o646, True), (0o666, True)])
def test_one_that_everybody_may_write_to_is_warned_of(path: Path, mode: int, warned: bool) -> None:
    path.write_text("OutAddress: 25\n")
    path.chmod(mode)
    warnings = (f"{path}: everybody may write to it; take that right away (chmod o-w)",) if warned else ()
    assert load(str(path)).warnings == warnings


def test_no_descriptor_is_left(path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    os.mkfifo(path)
    for name in (str(path), "/dev/zero", "/dev/null", "/"):
        with contextlib.suppress(OSError, ValueError):
            read_settings_file(name)
    assert os.listdir("/proc/self/fd") == before


def test_it_is_one_line_for_whoever_starts_it(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(ConfigError) as found:
        load(str(path))
    assert str(found.value) == f"{path}: cannot be read: it is no plain file; name the settings file with -f"
