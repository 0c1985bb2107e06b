"""A spool on a file system that is really full."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from clamsmtpd.spool import Spool
from tests.support.spooled import wire

pytestmark = [pytest.mark.integration, pytest.mark.root]

SIZE = 1_048_576


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    options = ["-t", "tmpfs", "-o", f"size={SIZE}"]
    subprocess.run(["mount", *options, "clamsmtpd-test", str(tmp_path)], check=True)
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def free(disk: Path) -> int:
    state = os.statvfs(disk)
    return state.f_bavail * state.f_frsize


def test_the_disk_fills_while_a_message_comes(small_disk: Path) -> None:
    before = free(small_disk)
    with contextlib.closing(Spool(str(small_disk), "x")) as spool:
        for _ in range(SIZE // 131_072 - 1):
            spool.append(b"x" * 131_072)
        with pytest.raises(OSError, match="No space left on device"):
            spool.append(b"x" * 200_000)
        assert free(small_disk) == 0
        with pytest.raises(OSError, match="not whole"):
            spool.seal(stuffed=False)
    assert free(small_disk) == before


def test_the_disk_has_no_room_for_the_unstuffed_text(small_disk: Path) -> None:
    text = b"..\r\n" * 150_000
    with contextlib.closing(Spool(str(small_disk), "x")) as spool:
        spool.append(text)
        spool.seal(stuffed=True)
        for _ in range(2):
            with pytest.raises(OSError, match="No space left on device"):
                spool.descriptor()
        assert b"".join(wire(spool)) == text


@pytest.mark.parametrize("keep", [False, True])
def test_the_disk_has_no_room_for_a_quarantine(small_disk: Path, *, keep: bool) -> None:
    before = free(small_disk)
    spool = Spool(str(small_disk), "x", keep=keep)
    spool.append(b"x" * 700_000)
    spool.seal(stuffed=False)
    with pytest.raises(OSError, match="No space left on device"):
        spool.quarantine()
    assert os.listdir(small_disk) == [], "half a file would look like a whole one"
    with pytest.raises(OSError, match="No space left on device") if keep else contextlib.nullcontext():
        spool.close()
    assert os.listdir(small_disk) == []
    assert free(small_disk) == before
