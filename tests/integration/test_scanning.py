"""What clamd finds in mail that comes through us."""

from __future__ import annotations

import smtplib
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path

import pytest

from tests.support.clamd import EICAR, TEST_FILES, Clamd
from tests.support.daemon import Daemon
from tests.support.sink import Sink

Start = Callable[..., Daemon]


def mail_with(content: bytes, name: str) -> bytes:
    message = EmailMessage()
    message["Subject"] = name
    message.set_content("see the attachment")
    message.add_attachment(content, maintype="application", subtype="octet-stream", filename=name)
    return message.as_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def scan_beside_us(clamd: Clamd, file: Path, mail: bytes) -> bool:
    """Whether clamd finds anything in ``mail`` when it reads it from a file."""
    file.write_bytes(mail)
    return clamd.ask(b"SCAN " + bytes(file)).endswith(b"FOUND\0")


def test_every_packed_test_file_that_clamd_knows_is_stopped_on_every_way(
    clamd: Clamd, sink: Sink, start_daemon: Start, tmp_path: Path
) -> None:
    files = sorted(path for path in TEST_FILES.iterdir() if path.is_file())
    assert len(files) > 20, "clamav-testfiles is missing: scripts/setup test installs it"
    mails = {path.name: mail_with(path.read_bytes(), path.name) for path in files}
    known = [name for name, mail in mails.items() if scan_beside_us(clamd, tmp_path / "mail", mail)]
    # A clamd that finds next to nothing would make this test say nothing.
    assert len(known) > 20
    for address in (clamd.unix, clamd.tcp):
        daemon = start_daemon(f"OutAddress: {sink.address}", f"ClamAddress: {address}", "Action: bounce")
        with smtplib.SMTP("127.0.0.1", daemon.port) as client:
            for name in known:
                with pytest.raises(smtplib.SMTPDataError) as refused:
                    client.sendmail("a@example.org", ["b@example.org"], mails[name])
                assert refused.value.smtp_code == 550, name
        assert len(daemon.message_lines()) == len(known)
        assert all("status=VIRUS:" in line for line in daemon.message_lines())
    assert sink.messages == []


def test_a_clean_attachment_passes(clamd: Clamd, sink: Sink, start_daemon: Start) -> None:
    daemon = start_daemon(f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}")
    with smtplib.SMTP("127.0.0.1", daemon.port) as client:
        client.sendmail("a@example.org", ["b@example.org"], mail_with(bytes(range(256)) * 40, "clean.bin"))
    assert len(sink.wait_for_messages(1)) == 1


def test_a_dot_in_front_of_a_virus_hides_nothing(clamd: Clamd, sink: Sink, start_daemon: Start) -> None:
    # On the wire the line begins with two dots; only unstuffed is it what the recipient gets.
    daemon = start_daemon(
        f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}", "Action: bounce", "Quarantine: on"
    )
    half = EICAR.find(b"7CC")
    text = b"Subject: x\r\n\r\n." + EICAR[:half] + EICAR[half:] + b"\r\n"
    with smtplib.SMTP("127.0.0.1", daemon.port) as client, pytest.raises(smtplib.SMTPDataError):
        client.sendmail("a@example.org", ["b@example.org"], text)
    (kept,) = Path(daemon.temp_directory).glob("virus.*")
    assert kept.read_bytes() == text


def test_a_large_message_with_a_virus_at_its_end(clamd: Clamd, sink: Sink, start_daemon: Start) -> None:
    for address in (clamd.unix, clamd.tcp):
        daemon = start_daemon(f"OutAddress: {sink.address}", f"ClamAddress: {address}", "Action: bounce")
        text = b"Subject: x\r\n\r\n" + (b"y" * 76 + b"\r\n") * 20_000 + EICAR + b"\r\n"
        with smtplib.SMTP("127.0.0.1", daemon.port) as client, pytest.raises(smtplib.SMTPDataError):
            client.sendmail("a@example.org", ["b@example.org"], text)
        assert daemon.spooled() == []


def test_what_is_too_large_for_a_stream_is_deferred_and_the_log_says_why(sink: Sink, start_daemon: Start) -> None:
    with Clamd("StreamMaxLength 100K") as small:
        daemon = start_daemon(f"OutAddress: {sink.address}", f"ClamAddress: {small.tcp}")
        text = b"Subject: x\r\n\r\n" + (b"y" * 76 + b"\r\n") * 100_000
        with smtplib.SMTP("127.0.0.1", daemon.port) as client:
            with pytest.raises(smtplib.SMTPDataError) as refused:
                client.sendmail("a@example.org", ["b@example.org"], text)
            assert refused.value.smtp_code == 451
            assert client.noop()[0] == 250
        daemon.wait_for_log("octets; clamd at ")
        daemon.wait_for_log("raise StreamMaxLength, MaxFileSize and MaxScanSize in clamd.conf")
        assert daemon.message_lines() == ["from=a@example.org, to=b@example.org, status=OVERSIZE"]
    assert sink.messages == []
