"""From a virus in mail to its release: the daemon, clamd and clamsmtpctl as processes."""

from __future__ import annotations

import contextlib
import json
import pwd
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
from tests.support.process import wait_until
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


def listed(settings: Path, count: int) -> list[dict[str, Any]]:
    """Return what is in quarantine, once there is as much of it."""
    found: list[dict[str, Any]] = []

    def enough() -> bool:
        found[:] = ctl(settings, "list")["messages"]
        return len(found) == count

    wait_until(enough, f"{count} messages in quarantine")
    return found


def send(daemon: Daemon, subject: str, *recipients: str) -> None:
    text = f"Subject: {subject}\r\n\r\n".encode() + EICAR + b"\r\n"
    with contextlib.suppress(smtplib.SMTPDataError), smtplib.SMTP("127.0.0.1", daemon.port) as client:
        client.sendmail("a@example.org", recipients or ["b@example.org"], text)


@pytest.mark.parametrize(("setting", "action"), [("drop", "dropped"), ("bounce", "bounced"), ("pass", "passed")])
def test_what_was_done_with_it_is_written_down(
    clamd: Clamd, sink: Sink, start_daemon: Start, setting: str, action: str
) -> None:
    daemon = start_daemon(
        f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}", "Quarantine: on", f"Action: {setting}"
    )
    send(daemon, "x", "b@example.org", "c@example.org")
    (entry,) = listed(daemon.configuration, 1)
    assert (entry["action"], entry["recipients"]) == (action, ["b@example.org", "c@example.org"])


def test_it_is_shown_and_exported_as_it_came(clamd: Clamd, sink: Sink, start_daemon: Start, tmp_path: Path) -> None:
    daemon = start_daemon(f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}", "Quarantine: on")
    send(daemon, "odd \x1b[31m subject")
    (entry,) = listed(daemon.configuration, 1)
    command: list[str | Path] = [*CTL, daemon.configuration, "quarantine"]
    shown = subprocess.run([*command, "show", entry["id"]], capture_output=True, text=True, check=True)
    assert "odd ?[31m subject" in shown.stdout or "odd \\x1B[31m subject" in shown.stdout
    assert "\x1b" not in shown.stdout
    copy = tmp_path / "copy.eml"
    subprocess.run([*command, "export", entry["id"], copy], check=True, capture_output=True)
    assert copy.read_bytes() == b"Subject: odd \x1b[31m subject\r\n\r\n" + EICAR + b"\r\n"
    piped = subprocess.run([*command, "export", entry["id"][:4], "-"], check=True, capture_output=True)
    assert piped.stdout == copy.read_bytes()
    other = tmp_path / "other.eml"
    assert ctl(daemon.configuration, "export", entry["id"], str(other)) == {
        "file": str(other),
        "octets": copy.stat().st_size,
    }
    again = subprocess.run([*command, "export", entry["id"], copy], capture_output=True, text=True, check=False)
    assert again.returncode in {1, 2}
    assert again.stderr.count("\n") == 1


def test_the_daemon_lets_no_more_stay_than_quarantinekeep_says(clamd: Clamd, sink: Sink, start_daemon: Start) -> None:
    lines = (f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}", "Quarantine: on", "QuarantineKeep: 1d 1k")
    daemon = start_daemon(*lines, constants={"quarantine.keeper.EXPIRY_INTERVAL": 0.5})
    for number in range(12):
        send(daemon, f"number {number}")

    def small() -> bool:
        return sum(file.stat().st_size for file in daemon.temp_directory.glob("virus.*")) <= 1024

    wait_until(small, "old messages to be removed")
    assert daemon.wait_for_log("removed from quarantine, as QuarantineKeep says: virus.")
    # The latest are those that stay.
    kept = [file.read_bytes() for file in daemon.temp_directory.glob("virus.*")]
    assert any(b"number 11\r\n" in text for text in kept)
    assert not any(b"number 0\r\n" in text for text in kept)


@pytest.mark.root
def test_root_and_the_daemons_user_write_to_the_same_index(clamd: Clamd, sink: Sink, start_daemon: Start) -> None:
    daemon = start_daemon(f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}", "Quarantine: on", "User: nobody")
    send(daemon, "first")
    (first,) = listed(daemon.configuration, 1)
    for number in range(5):
        assert ctl(daemon.configuration, "release", first["id"], "--again")["messages"]
        send(daemon, f"more {number}")
    assert len(listed(daemon.configuration, 6)) == 6
    owner = pwd.getpwnam("nobody").pw_uid
    index = daemon.temp_directory / "clamsmtpd-index"
    assert {path.stat().st_uid for path in (index, *index.iterdir())} == {owner}
    assert "not all of them are written down" not in daemon.log()
    assert len(sink.recorded) == 5
