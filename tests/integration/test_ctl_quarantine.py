"""From a virus in mail to its release: the daemon, clamd and clamsmtpctl as processes."""

from __future__ import annotations

import json
import smtplib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.clamd import EICAR, Clamd
from tests.support.daemon import Daemon
from tests.support.sink import HANG, TEXT, Sink

pytestmark = pytest.mark.integration

Start = Callable[..., Daemon]

CTL = (sys.executable, "-m", "clamsmtpd.ctl", "-f")


def ctl(settings: Path, *words: str) -> Any:
    run = subprocess.run([*CTL, settings, "quarantine", *words, "--json"], capture_output=True, check=False)
    assert run.stderr == b""
    return json.loads(run.stdout)


def test_a_virus_is_listed_released_once_and_deleted(
    clamd: Clamd, sink: Sink, start_daemon: Start, tmp_path: Path
) -> None:
    daemon = start_daemon(f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}", "Quarantine: on")
    with smtplib.SMTP("127.0.0.1", daemon.port) as client:
        client.sendmail("a@example.org", ["b@example.org"], b"Subject: x\r\n\r\n" + EICAR + b"\r\n")
    settings = tmp_path / "ctl.conf"
    settings.write_text(f"OutAddress: {sink.address}\nTempDirectory: {daemon.temp_directory}\n")
    deadline = time.monotonic() + 10
    while not (messages := ctl(settings, "list")["messages"]) and time.monotonic() < deadline:
        time.sleep(0.1)
    (entry,) = messages
    assert (entry["sender"], entry["recipients"], entry["action"]) == ("a@example.org", ["b@example.org"], "dropped")
    assert entry["virus"]
    assert entry["sha256"]
    with Sink({TEXT: HANG}) as hanging:
        stuck = tmp_path / "stuck.conf"
        stuck.write_text(f"OutAddress: {hanging.address}\nTempDirectory: {daemon.temp_directory}\n")
        with subprocess.Popen([*CTL, stuck, "quarantine", "release", entry["id"]]) as releasing:
            while not any(b"DATA" in talk.commands for talk in hanging.talks) and time.monotonic() < deadline + 10:
                time.sleep(0.05)
            releasing.kill()
    assert ctl(settings, "release", entry["id"])["messages"][0]["releases"][0]["state"] == "uncertain"
    assert sink.recorded == []
    assert ctl(settings, "release", entry["id"], "--again")["messages"][0]["releases"][0]["state"] == "released"
    assert ctl(settings, "release", entry["id"])["messages"][0]["releases"][0]["held"]
    assert len(sink.recorded) == 1
    assert sink.recorded[0].text.startswith(b"X-Virus-Released: ")
    assert sink.recorded[0].text.endswith(b"\r\n\r\n" + EICAR + b"\r\n")
    ctl(settings, "delete", entry["id"], "--yes")
    assert not list(Path(daemon.temp_directory).glob("virus.*"))
    assert ctl(settings, "list") == {"messages": []}
