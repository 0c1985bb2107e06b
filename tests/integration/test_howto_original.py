"""How-to: coming from clamsmtpd 1.10, with the settings file of its Debian package."""

from __future__ import annotations

import contextlib
import smtplib
from collections.abc import Callable

import pytest

from tests.support.clamd import Clamd
from tests.support.daemon import Daemon
from tests.support.howto import CLEAN, INFECTED, RECIPIENT, SENDER, HowTo
from tests.support.process import Program, accepts, free_port
from tests.support.sink import Sink
from tests.support.unpacked import UNPACKED

ORIGINAL = UNPACKED / "usr" / "sbin" / "clamsmtpd"
SETTINGS = UNPACKED / "etc" / "clamsmtpd.conf"

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not SETTINGS.exists(), reason="no package of the original clamsmtpd: scripts/setup test tells"),
]


def send(port: int) -> None:
    with smtplib.SMTP("127.0.0.1", port) as client:
        client.sendmail(SENDER, [RECIPIENT], CLEAN)
        with contextlib.suppress(smtplib.SMTPDataError):
            client.sendmail(SENDER, [RECIPIENT], INFECTED)


def about_messages(log: str) -> list[str]:
    """Return what is said of messages, without the program's name and the connection's id."""
    return [line.split(": ", 2)[2] for line in log.splitlines() if "status=" in line]


def test_the_file_of_the_package_does_what_it_did(
    clamd: Clamd, sink: Sink, start_daemon: Callable[..., Daemon], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("original")
    changes = {
        "OutAddress: 10025": f"OutAddress: {sink.port}",
        "/var/run/clamav/clamd.ctl": clamd.unix.path,
        "TempDirectory: /var/spool/clamsmtp": "",
        "PidFile: /var/run/clamsmtp/clamsmtpd.pid": f"PidFile: {folder / 'pid'}",
    }

    def lines(user: str) -> list[str]:
        text = SETTINGS.read_text()
        listen = {"127.0.0.1:10026": f"127.0.0.1:{free_port()}", "User: clamsmtp": user}
        for shown, ours in {**changes, **listen}.items():
            assert shown in text, shown
            text = text.replace(shown, ours)
        return [line for line in text.splitlines() if line and not line.startswith("#")]

    daemon = start_daemon(*lines("User: nobody"))
    send(daemon.port)
    daemon.wait_for_log("status=VIRUS")
    HowTo("coming-from-1.10", {}).check_seen("log.txt", daemon.log())
    ours, arrived = about_messages(daemon.log()), sink.messages.copy()

    # The original with the same file; it reads the file that clamd is to scan by its name.
    settings = folder / "clamsmtpd.conf"
    settings.write_text("\n".join([*lines(""), f"TempDirectory: {folder}", ""]))
    place = next(line for line in settings.read_text().splitlines() if line.startswith("Listen"))
    port = int(place.rpartition(":")[2])
    original = Program([str(ORIGINAL), "-d", "3", "-f", str(settings)], output=folder / "log")
    try:
        original.wait_until(lambda: accepts(("127.0.0.1", port)), "the original to accept connections")
        send(port)
        original.wait_until(lambda: "status=VIRUS" in original.text(), "the original to find the virus")
    finally:
        original.stop()
    assert about_messages(original.text()) == ours
    assert sink.messages[len(arrived) :] == arrived
