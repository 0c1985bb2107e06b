"""Every kind of mail, on every way through the filter, octet by octet."""

from __future__ import annotations

import random
import re
import smtplib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.support.certificates import make_certificate
from tests.support.clamd import Clamd
from tests.support.daemon import Daemon
from tests.support.samples import infected_mail_samples, mail_samples
from tests.support.sink import Sink

Start = Callable[..., Daemon]

PLAIN = ("8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES")
PIPELINING = (*PLAIN, "PIPELINING")
CHUNKING = (*PIPELINING, "CHUNKING", "BINARYMIME")

#: What stands in mail and is dangerous to pass on.
ODD = [
    b"",
    b"\r\n",
    b".\r\n",
    b"..\r\n.\r\n...\r\n",
    b"no header\r\n",
    b"Subject: no empty line\r\n",
    b"Subject: x\r\n\r\n" + b"y" * 5000 + b"\r\n",
    b"Subject: x\r\n\r\n" + bytes(octet for octet in range(256) if octet not in b"\r\n.") + b"\r\n",
    b"Subject: x\r\n\r\nbare\nline feeds\nand\rcarriage\rreturns\r\n",
    b"From - Mon Jan  1 00:00:00 2001\r\nSubject: x\r\n\r\ntext\r\n",
]


def with_crlf(path: Path) -> bytes:
    """Read a mail as a mail server would send it: with lines that end in CRLF, the last one too."""
    text = re.sub(rb"\r\n|\r|\n", b"\r\n", path.read_bytes())
    return text if text.endswith(b"\r\n") else text + b"\r\n"


def mails() -> list[bytes]:
    return [with_crlf(path) for path in mail_samples()] + ODD


def infected_mails() -> list[bytes]:
    return [with_crlf(path) for path in infected_mail_samples()]


def stuff(text: bytes) -> bytes:
    return re.sub(rb"(?m)\A\.|(?<=\r\n)\.", b"..", text)


class Client(smtplib.SMTP):
    """A client that counts replies, and knows BDAT and LMTP."""

    def transaction(self, recipients: int) -> None:
        assert self.docmd("MAIL", "FROM:<a@example.org>")[0] == 250
        for number in range(recipients):
            assert self.docmd("RCPT", f"TO:<b{number}@example.org>")[0] == 250

    def by_data(self, text: bytes, recipients: int = 1, answers: int = 1) -> None:
        self.transaction(recipients)
        assert self.docmd("DATA")[0] == 354
        self.send(stuff(text) + b".\r\n")
        assert [self.getreply()[0] for _ in range(answers)] == [250] * answers

    def by_chunks(self, text: bytes, sizes: Sequence[int], recipients: int = 1, answers: int = 1) -> None:
        """Send all in one batch, chunks of ``sizes`` and then the rest."""
        batch = b"MAIL FROM:<a@example.org>\r\n"
        batch += b"".join(b"RCPT TO:<b%d@example.org>\r\n" % number for number in range(recipients))
        chunks = []
        for size in sizes:
            chunks.append(text[:size])
            text = text[size:]
        for chunk in chunks:
            batch += b"BDAT %d\r\n%b" % (len(chunk), chunk)
        self.send(batch + b"BDAT %d LAST\r\n%b" % (len(text), text))
        expected = 1 + recipients + len(chunks) + answers
        assert [self.getreply()[0] for _ in range(expected)] == [250] * expected


def talk(daemon: Daemon, texts: list[bytes], *, lmtp: bool) -> None:
    """Send each mail twice, by DATA and in chunks."""
    with Client("127.0.0.1", daemon.port) as client:
        assert client.docmd("LHLO" if lmtp else "EHLO", "client.example.org")[0] == 250
        answers = 3 if lmtp else 1
        chance = random.Random(20030)
        for text in texts:
            client.by_data(text, answers, answers)
            sizes = [chance.randint(0, len(text) + 2) for _ in range(chance.randint(0, 3))]
            client.by_chunks(text, sizes, answers, answers)


@pytest.mark.parametrize("extensions", [PLAIN, PIPELINING, CHUNKING], ids=["plain", "pipelining", "chunking"])
@pytest.mark.parametrize("lmtp", [False, True], ids=["smtp", "lmtp"])
def test_every_mail_on_every_way(clamd: Clamd, start_daemon: Start, extensions: tuple[str, ...], lmtp: bool) -> None:
    texts = mails()
    assert len(texts) > 50
    with Sink(extensions=extensions, lmtp=lmtp) as sink:
        protocol = "lmtp:" if lmtp else ""
        daemon = start_daemon(
            f"OutAddress: {protocol}{sink.address}", f"ClamAddress: {clamd.unix}", "Header:", lmtp=lmtp, level=3
        )
        # Those with a virus are dropped, and leave no trace among the others.
        talk(daemon, [*infected_mails(), *texts], lmtp=lmtp)
        sink.wait_for_messages(2 * len(texts))
        recorded = sink.recorded
    assert len(recorded) == 2 * len(texts)
    for text, (data, chunked) in zip(texts, zip(recorded[::2], recorded[1::2], strict=True), strict=True):
        assert data.text == stuff(text)
        assert data.chunks == 0
        if "CHUNKING" in extensions:
            assert chunked.text == text
            assert chunked.chunks == 1
        else:
            assert chunked.text == stuff(text)
            assert chunked.chunks == 0
        assert len(data.recipients) == len(chunked.recipients) == (3 if lmtp else 1)


def test_every_octet_by_binarymime(clamd: Clamd, start_daemon: Start) -> None:
    texts = [path.read_bytes() for path in mail_samples()]
    texts += [bytes(range(256)) * 40, b"a\n.\nb", b"\r\n.\r\n", b"\r", b"\n.\r\n.\n", b"\0.\0"]
    with Sink(extensions=CHUNKING) as sink:
        daemon = start_daemon(f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}", "Header:", level=3)
        with Client("127.0.0.1", daemon.port) as client:
            client.ehlo()
            assert client.has_extn("binarymime")
            for text in texts:
                assert client.docmd("MAIL", "FROM:<a@example.org> BODY=BINARYMIME")[0] == 250
                assert client.docmd("RCPT", "TO:<b@example.org>")[0] == 250
                client.send(b"BDAT %d LAST\r\n%b" % (len(text), text))
                assert client.getreply()[0] == 250
        assert sink.wait_for_messages(len(texts)) == texts


def test_every_mail_through_tls(clamd: Clamd, start_daemon: Start, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    texts = mails()
    with Sink(extensions=CHUNKING) as sink:
        daemon = start_daemon(
            f"OutAddress: {sink.address}",
            f"ClamAddress: {clamd.unix}",
            f"TLSCertificate: {certificate.certificate}",
            f"TLSKey: {certificate.key}",
            "Header:",
            level=3,
        )
        with Client("127.0.0.1", daemon.port) as client:
            client.starttls()
            client.ehlo()
            for text in texts:
                client.by_chunks(text, [len(text) // 3])
                client.by_data(text)
        got = sink.wait_for_messages(2 * len(texts))
    assert got == [form for text in texts for form in (text, stuff(text))]
