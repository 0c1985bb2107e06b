"""What the settings say becomes of mail, with a real clamd, or with none."""

from __future__ import annotations

import smtplib
from base64 import encodebytes
from collections.abc import Callable

import pytest

from tests.support.clamd import EICAR, EICAR_NAME, TEST_FILES, TESTFILE_NAME, Clamd
from tests.support.daemon import Daemon
from tests.support.dovecot import Dovecot
from tests.support.process import free_port
from tests.support.sink import Sink

Start = Callable[..., Daemon]

CLEAN = b"Subject: x\r\n\r\ntext\r\n"
INFECTED = b"Subject: x\r\n\r\n" + EICAR + b"\r\n"
SCANNED = b"X-Virus-Scanned: ClamAV using ClamSMTP\r\n"


def send(daemon: Daemon, text: bytes) -> int:
    """Send one message; return the reply code for it."""
    with smtplib.SMTP("127.0.0.1", daemon.port) as client:
        client.ehlo()
        client.mail("a@example.org")
        client.rcpt("b@example.org")
        return client.data(text)[0]


def test_the_first_pattern_that_matches_the_name_of_the_virus_counts(
    clamd: Clamd, sink: Sink, start_daemon: Start
) -> None:
    daemon = start_daemon(
        f"OutAddress: {sink.address}",
        f"ClamAddress: {clamd.unix}",
        "Action: drop",
        "ActionFor: eicar-*.unofficial pass",
        "ActionFor: *.UNOFFICIAL bounce",
    )
    program = b"Subject: x\r\nContent-Transfer-Encoding: base64\r\n\r\n" + encodebytes(
        (TEST_FILES / "clam.exe").read_bytes()
    ).replace(b"\n", b"\r\n")
    assert send(daemon, INFECTED) == 250
    assert send(daemon, program) == 550
    (passed,) = sink.wait_for_messages(1)
    assert passed == INFECTED.replace(b"\r\n\r\n", b"\r\nX-Virus-Infected: %b\r\n\r\n" % EICAR_NAME.encode(), 1)
    assert [line.rpartition(", ")[2] for line in daemon.message_lines()] == [
        f"status=VIRUS:{EICAR_NAME}",
        f"status=VIRUS:{TESTFILE_NAME}",
    ]


@pytest.mark.parametrize("settled", ["defer", "pass"])
def test_mail_waits_or_passes_while_there_is_no_clamd(sink: Sink, start_daemon: Start, settled: str) -> None:
    daemon = start_daemon(
        f"OutAddress: {sink.address}",
        f"ClamAddress: 127.0.0.1:{free_port()}",
        "TimeOut: 1",
        f"ScanFailure: {settled}",
        # It has nothing to say here.
        "Oversize: bounce",
        level=3,
    )
    forged = b"X-Virus-Scanned: yes\r\n" + INFECTED
    assert send(daemon, forged) == (250 if settled == "pass" else 451)
    daemon.wait_for_log(" no verdict")
    if settled == "pass":
        (passed,) = sink.wait_for_messages(1)
        assert passed == b"X-Untrusted-X-Virus-Scanned: yes\r\nSubject: x\r\nX-Virus-Unscanned: scan failed\r\n\r\n" + (
            EICAR + b"\r\n"
        )
        line = "from=a@example.org, to=b@example.org, passed=UNSCANNED, status=CLAMAV-ERROR"
    else:
        assert sink.messages == []
        line = "from=a@example.org, to=b@example.org, status=CLAMAV-ERROR"
    assert daemon.message_lines() == [line]


@pytest.mark.parametrize("padding", [b"", b"p" * 76 + b"\r\n"], ids=["small", "large"])
def test_forged_fields_are_renamed_on_the_way(clamd: Clamd, sink: Sink, start_daemon: Start, padding: bytes) -> None:
    daemon = start_daemon(f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}")
    header = b"x-virus-scanned: by somebody\r\nSubject: x\r\nX-Virus-Infected : no\r\n\ty\r\n"
    body = b"\r\nX-Virus-Scanned: text\r\n..text\r\n" + padding * 2000
    assert send(daemon, header + body.replace(b"\r\n..", b"\r\n.")) == 250
    (got,) = sink.wait_for_messages(1)
    assert got == (
        b"X-Untrusted-x-virus-scanned: by somebody\r\nSubject: x\r\nX-Untrusted-X-Virus-Infected : no\r\n\ty\r\n"
        + SCANNED
        + body
    )


@pytest.mark.root
def test_a_field_behind_a_line_that_is_none_does_not_pass_for_ours(clamd: Clamd, start_daemon: Start) -> None:
    forged = b"Subject: x\r\nno field\r\nX-Virus-Scanned: by nobody\r\n\r\nX-Virus-Scanned: text\r\n"
    with Dovecot() as dovecot:
        beside = start_daemon(f"OutAddress: lmtp:{dovecot.address}", f"ClamAddress: {clamd.unix}", "Header: X-Else: x")
        daemon = start_daemon(f"OutAddress: lmtp:{dovecot.address}", f"ClamAddress: {clamd.unix}")
        assert send(beside, forged) == 250
        dovecot.wait_for_messages(1)
        # This is why they are looked for as far as the empty line.
        assert dovecot.field("X-Virus-Scanned") == ["by nobody"]
        assert send(daemon, forged) == 250
        dovecot.wait_for_messages(2)
        assert sorted(dovecot.field("X-Virus-Scanned")) == ["by nobody", "clamav using clamsmtp"]
        assert sorted(dovecot.field("X-Untrusted-X-Virus-Scanned")) == ["", "by nobody"]
