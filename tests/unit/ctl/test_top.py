"""What top says of a daemon that goes away, and of what is none."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from clamsmtpd.ctl import daemon
from clamsmtpd.ctl.main import cli

# In its package, the command has the name of its module.
top = importlib.import_module("clamsmtpd.ctl.top")

STATUS: dict[str, Any] = {
    "version": "2",
    "time": 2.0,
    "since": 1.0,
    "listen": ["10025"],
    "next_hop": None,
    "max_connections": 64,
    "totals": {"sessions": 0},
    "messages": [],
    "failures": {},
    "sessions": {},
    "workers": [],
    "scanners": [],
}


def run(folder: Path, *arguments: str) -> Result:
    path = folder / "conf"
    path.write_text(f"OutAddress: 127.0.0.1:10026\nAdmin: {folder}/admin\n")
    return CliRunner().invoke(cli, ["-f", str(path), "top", *arguments])


def test_a_daemon_that_goes_away_is_told_behind_the_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screens: list[bool] = []

    @contextlib.contextmanager
    def live(*_: object, **__: object) -> Iterator[None]:
        screens.append(True)
        try:
            yield
        finally:
            screens.append(False)

    def gone(*_: object) -> None:
        raise daemon.DaemonError("no answer")

    def fail(message: str, _status: object) -> None:
        assert message == "no answer"
        # Within it, the line would vanish with the screen.
        assert screens == [True, False]
        raise SystemExit(3)

    monkeypatch.setattr(top, "Live", live)
    monkeypatch.setattr(top, "ask_or_fail", lambda *_: STATUS)
    monkeypatch.setattr(top, "ask", gone)
    monkeypatch.setattr(top, "fail", fail)
    assert run(tmp_path, "--interval", "0.2").exit_code == 3


def test_another_server_that_speaks_json_is_not_taken_for_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(top, "ask_or_fail", lambda *_: {"status": "up"})
    done = run(tmp_path, "--once")
    assert done.exit_code == 3
    assert "is not clamsmtpd" in done.output
