"""clamsmtpctl check, beside a next hop."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from clamsmtpd.ctl import machine
from clamsmtpd.ctl.main import cli
from tests.support.sink import Sink

pytestmark = pytest.mark.integration


def test_the_next_hop_is_asked_how_large_a_message_it_takes(tmp_path: Path) -> None:
    with Sink() as hop:
        path = tmp_path / "conf"
        path.write_text(f"OutAddress: {hop.address}\nTempDirectory: {tmp_path}\nMaxConnections: 10\n")
        conf = tmp_path / "clamd.conf"
        conf.write_text("MaxFileSize 10\n")
        done = CliRunner().invoke(cli, ["check", "--clamd-conf", str(conf), str(path)])
        assert done.exit_code == 1
        assert "MaxFileSize in" in done.output
        assert CliRunner().invoke(cli, ["check", "--offline", "--clamd-conf", str(conf), str(path)]).exit_code == 0


def written(folder: Path, hop: str) -> list[str]:
    path = folder / "conf"
    path.write_text(f"OutAddress: {hop}\nTempDirectory: {folder}\nMaxConnections: 10\n")
    conf = folder / "clamd.conf"
    conf.touch()
    return ["check", "--clamd-conf", str(conf), str(path)]


def test_a_next_hop_that_is_not_there_is_a_warning(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, written(tmp_path, f"{tmp_path}/hop"))
    assert done.exit_code == 1
    assert done.output.replace(str(tmp_path), "FOLDER").startswith(
        "FOLDER/conf:1: warning: the next hop FOLDER/hop cannot be used: No such file or directory; "
    )


def test_a_next_hop_that_says_nothing_is_not_waited_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ASK_LIMIT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        done = CliRunner().invoke(cli, written(tmp_path, f"127.0.0.1:{silent.getsockname()[1]}"))
    assert time.monotonic() - began < 5
    assert done.exit_code == 1
    assert "cannot be used: " in done.output


def test_a_next_hop_that_dribbles_is_not_waited_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ASK_LIMIT", 0.5)
    stop = threading.Event()

    def dribble(listener: socket.socket) -> None:
        client, _ = listener.accept()
        with client:
            while not stop.wait(0.05):
                client.sendall(b"2")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=dribble, args=(listener,))
        thread.start()
        began = time.monotonic()
        done = CliRunner().invoke(cli, written(tmp_path, f"127.0.0.1:{listener.getsockname()[1]}"))
        took = time.monotonic() - began
        stop.set()
        thread.join()
    assert took < 5
    assert "cannot be used: no answer in time" in done.output
