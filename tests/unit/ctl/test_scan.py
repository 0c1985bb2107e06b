"""Which files scan looks at."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# In its package, the command has the name of its module.
scan = importlib.import_module("clamsmtpd.ctl.scan")


def test_a_folder_that_cannot_be_looked_into_is_not_passed_over_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "1.eml").touch()
    closed = tmp_path / "closed"
    closed.mkdir()
    scandir = os.scandir

    def refuse(path: str) -> Iterator[os.DirEntry[str]]:
        # Nothing refuses root, who may run this.
        if path == str(closed):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert list(scan._expand([str(tmp_path)])) == [str(tmp_path / "open" / "1.eml"), str(closed)]
