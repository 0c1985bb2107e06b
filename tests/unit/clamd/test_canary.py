"""The samples, as a scanner gets them."""

from __future__ import annotations

import contextlib
import inspect
import os
import stat
from pathlib import Path

import pytest

from clamsmtpd.clamd.canary import CLEAN, EICAR, Sample


def test_the_same_octets_come_by_each_way(tmp_path: Path) -> None:
    with contextlib.closing(Sample(EICAR, 700_000, directory=str(tmp_path))) as sample:
        text = EICAR + bytes(700_000 - len(EICAR))
        assert sample.size == 700_000
        assert b"".join(sample.pieces()) == text
        for _ in range(2):
            with os.fdopen(os.dup(sample.descriptor()), "rb") as file:
                assert file.read() == text
        assert Path(sample.path()).read_bytes() == text
        assert Path(sample.path()).parent == tmp_path
        assert stat.S_IMODE(os.stat(sample.path()).st_mode) == 0o644, "clamd is another user"
    assert os.listdir(tmp_path) == []


def test_padding_takes_no_memory() -> None:
    with contextlib.closing(Sample(EICAR, 1 << 30)) as sample:
        assert os.fstat(sample.descriptor()).st_blocks * 512 < 65536


def test_a_sample_is_never_shorter_than_its_text() -> None:
    with contextlib.closing(Sample(CLEAN)) as sample:
        assert b"".join(sample.pieces()) == CLEAN


def test_where_there_are_no_files_in_memory_it_is_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(_: str) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "memfd_create", forbidden)
    with contextlib.closing(Sample(CLEAN, directory=str(tmp_path))) as sample:
        assert os.pread(sample.descriptor(), 100, 0) == CLEAN
        assert os.listdir(tmp_path) == []


def test_nobody_finds_the_test_file_in_our_own_files() -> None:
    source = Path(inspect.getfile(Sample)).read_bytes()
    assert EICAR not in source
    assert len(EICAR) == 68
