"""The attachment with the virus, named by log, hook and quarantine: with a real clamd and a real hook."""

from __future__ import annotations

import hashlib
import io
import re
import signal
import smtplib
import time
import zipfile
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path

import pytest

from clamsmtpd.quarantine.index import Index
from tests.support.clamd import EICAR, EICAR_NAME, Clamd
from tests.support.daemon import Daemon
from tests.support.sink import Sink

Start = Callable[..., Daemon]

#: In two parts, which are clean, and of which only the message has both.
SPLIT = (b"first half of it", b"second half of it")


def packed(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def mail(*attachments: tuple[str, bytes]) -> EmailMessage:
    message = EmailMessage()
    message["Subject"] = "the papers"
    message.set_content("see the attachments")
    for name, content in attachments:
        message.add_attachment(content, maintype="application", subtype="octet-stream", filename=name)
    return message


def send(daemon: Daemon, text: bytes) -> None:
    with smtplib.SMTP("127.0.0.1", daemon.port) as client, pytest.raises(smtplib.SMTPDataError) as refused:
        client.sendmail("a@example.org", ["b@example.org"], text)
    assert refused.value.smtp_code == 550


def hook(daemon: Daemon, folder: Path) -> dict[str, str]:
    """Wait for what the hook was told, and take it away."""
    file = folder / "told"
    end = time.monotonic() + 20
    while not file.exists():
        assert time.monotonic() < end, daemon.log()
        time.sleep(0.01)
    lines = file.read_text().splitlines()
    file.unlink()
    return dict(line.partition("=")[::2] for line in lines)


@pytest.fixture
def start(clamd: Clamd, sink: Sink, start_daemon: Start, tmp_path: Path) -> Callable[..., Daemon]:
    def start(*lines: str, address: object = clamd.unix, **options: object) -> Daemon:
        told = tmp_path / "told"
        return start_daemon(
            f"OutAddress: {sink.address}",
            f"ClamAddress: {address}",
            "Action: bounce",
            f"VirusAction: env > {told}.new && mv {told}.new {told}",
            *lines,
            **options,
        )

    return start


CLEAN_PDF = b"%PDF-1.4\n" + bytes(range(256)) * 200

MAILS: dict[str, tuple[bytes, str, str, bytes]] = {
    "a name of RFC 2231, in base64, behind a clean one": (
        mail(("report.pdf", CLEAN_PDF), ("Rechnung für Müller €.com", EICAR)).as_bytes(),
        "Rechnung für Müller €.com",
        'attachment "Rechnung f\\xC3\\xBCr M\\xC3\\xBCller \\xE2\\x82\\xAC.com"',
        EICAR,
    ),
    "in a zip": (
        mail(("a.pdf", CLEAN_PDF), ("invoice.zip", packed("x.com", EICAR))).as_bytes(),
        "invoice.zip",
        'attachment "invoice.zip"',
        packed("x.com", EICAR),
    ),
    "the text": (b"Subject: x\n\n" + EICAR, "part 1 (text/plain)", "part 1", EICAR + b"\r\n"),
}


def forwarded() -> bytes:
    outer = mail(("a.pdf", CLEAN_PDF))
    outer.add_attachment(mail(("inner.com", EICAR)))
    return outer.as_bytes()


MAILS["in a message that is forwarded"] = (forwarded(), "inner.com", 'attachment "inner.com"', EICAR)


@pytest.mark.parametrize("kind", MAILS)
def test_log_hook_and_index_name_the_attachment(clamd: Clamd, start: Start, tmp_path: Path, kind: str) -> None:
    text, name, shown, content = MAILS[kind]
    for address in (clamd.unix, clamd.tcp):
        daemon = start("Quarantine: on", address=address)
        send(daemon, text)
        told = hook(daemon, tmp_path)
        digest = hashlib.sha256(content).hexdigest()
        assert told["ATTACHMENT"] == name
        assert told["SHA256"] == digest
        assert told["VIRUS"] == EICAR_NAME
        line = daemon.wait_for_log(f"virus {EICAR_NAME} is in ")
        assert re.search(rf"is in {re.escape(shown)} \([a-z/-]+, {len(content)} octets, SHA-256 {digest}\)$", line)
        directory = str(daemon.temp_directory)
        daemon.send(signal.SIGTERM)
        daemon.wait()
        index = Index(directory)
        (entry,) = index.entries()
        assert entry.culprit is not None
        assert (entry.culprit.name, entry.culprit.sha256) == (name, digest)
        index.close()


def test_what_only_the_whole_message_has_is_in_no_part(sink: Sink, start: Start, tmp_path: Path) -> None:
    signature = "Split.Test:0:*:" + SPLIT[0].hex() + "*" + SPLIT[1].hex() + "\n"
    with Clamd(database={"split.ndb": signature}) as clamd:
        daemon = start(address=clamd.unix)
        message = EmailMessage()
        message.set_content(SPLIT[0].decode())
        message.add_attachment(SPLIT[1].decode(), filename="b.txt")
        send(daemon, message.as_bytes())
        told = hook(daemon, tmp_path)
        assert told["VIRUS"] == "Split.Test.UNOFFICIAL"
        assert "ATTACHMENT" not in told
        assert "SHA256" not in told
        daemon.wait_for_log("virus Split.Test.UNOFFICIAL is in no part by itself, but in the message as a whole")


def test_neither_the_reply_nor_the_next_mail_waits_for_the_search(sink: Sink, start: Start, tmp_path: Path) -> None:
    # A search that never has a turn: no reply could come in time if one waited for it.
    daemon = start(constants={"culprit.BUSY": -1.0})
    with smtplib.SMTP("127.0.0.1", daemon.port) as client:
        begin = time.monotonic()
        for _ in range(3):
            with pytest.raises(smtplib.SMTPDataError):
                client.sendmail("a@example.org", ["b@example.org"], MAILS["in a zip"][0])
            client.sendmail("a@example.org", ["b@example.org"], mail().as_bytes())
        assert time.monotonic() - begin < 10
    assert not (tmp_path / "told").exists()
    # What a stop cuts short has its hook all the same, without what was not found out.
    daemon.send(signal.SIGTERM)
    daemon.wait()
    assert daemon.log().count("was not found out: the daemon stops") == 3
    assert "ATTACHMENT" not in hook(daemon, tmp_path)


def test_an_outbreak_takes_neither_memory_nor_descriptors(sink: Sink, start: Start) -> None:
    daemon = start(constants={"culprit.BUSY": -1.0, "culprit.LIMIT": 2.0})
    text = mail(("a.pdf", CLEAN_PDF), ("b.com", EICAR)).as_bytes()
    send(daemon, text)
    descriptors = daemon.descriptors()
    memory = resident(daemon)
    with smtplib.SMTP("127.0.0.1", daemon.port) as client:
        for _ in range(100):
            with pytest.raises(smtplib.SMTPDataError):
                client.sendmail("a@example.org", ["b@example.org"], text)
        # What they hold: their messages, and the hooks of those that wait for nothing.
        assert daemon.descriptors() - descriptors < 16 + 16 * 6
    assert resident(daemon) - memory < 30_000
    assert daemon.log().count("too many messages wait for that") >= 85
    daemon.wait_for_log("it took more than 2 s")


def resident(daemon: Daemon) -> int:
    """Return the kilobytes that it has in memory."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0])
