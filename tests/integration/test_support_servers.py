"""Further servers and clients that the other tests rely on: each one works by itself."""

from __future__ import annotations

import contextlib
import smtplib
import socket
import ssl
from pathlib import Path
from typing import Literal

import pytest

from clamsmtpd.values import TcpAddress
from tests.support import nodemailer
from tests.support.certificates import Certificate, make_certificate
from tests.support.clamd import TESTFILE_NAME, Clamd
from tests.support.dovecot import FULL, UNKNOWN, Dovecot
from tests.support.exim import EVERY_EXTENSION, Exim
from tests.support.haproxy import HAProxy
from tests.support.opensmtpd import OpenSmtpd
from tests.support.postfix import Postfix
from tests.support.samples import infected_mail_samples, mail_samples
from tests.support.sink import Sink

#: It has all the fields that a server would add.
MAIL = (
    b"From: a@example.test\r\nTo: b@example.test\r\nDate: Mon, 23 Nov 2026 12:00:00 +0000\r\n"
    b"Message-Id: <1@example.test>\r\nSubject: hello\r\n\r\n.text\r\n\xfc\r\n"
)
SENT = b"Subject: hello\r\n\r\n..text\r\n\xfc\r\n"
DELIVERED = b"Subject: hello\n\n.text\n\xfc\n"

Client = type[smtplib.SMTP]


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return make_certificate(tmp_path)


def send(address: TcpAddress, *, trusting: Path | None = None, client: Client = smtplib.SMTP) -> None:
    with client(address.host or "", address.port, timeout=20) as connection:
        if trusting:
            connection.starttls(context=ssl.create_default_context(cafile=trusting))
        connection.sendmail("a@example.test", ["b@example.test"], MAIL)


def offered(address: TcpAddress, client: Client = smtplib.SMTP) -> set[str]:
    with client(address.host or "", address.port, timeout=20) as connection:
        connection.ehlo()
        return set(connection.esmtp_features)


def pipeline(address: TcpAddress, hello: bytes, sent: bytes) -> list[bytes]:
    """Return the lines of all replies but those to ``hello``, when all of ``sent`` is sent at once."""
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection((address.host or "", address.port), timeout=20))
        replies = stack.enter_context(connection.makefile("rb"))
        replies.readline()
        connection.sendall(hello + b" client.example.test\r\n")
        while replies.readline()[3:4] == b"-":
            pass
        connection.sendall(sent)
        return list(replies)


def in_chunks(*recipients: str) -> bytes:
    """Return the commands for MAIL in two chunks, with an end of the first that is none of a line."""
    first, second = MAIL[:50], MAIL[50:]
    envelope = ["MAIL FROM:<a@example.test> BODY=8BITMIME", *(f"RCPT TO:<{name}@example.test>" for name in recipients)]
    return b"".join(
        (
            *(line.encode() + b"\r\n" for line in envelope),
            b"BDAT %d\r\n%bBDAT %d LAST\r\n%bQUIT\r\n" % (len(first), first, len(second), second),
        )
    )


# ---- Exim -------------------------------------------------------------------------------------------


def test_exim_offers_all_that_it_can(certificate: Certificate) -> None:
    with Exim(*EVERY_EXTENSION, certificate=certificate) as exim:
        assert offered(exim.address) == {
            *("size", "8bitmime", "dsn", "pipelining", "chunking", "starttls", "prdr", "smtputf8"),
            *("pipeconnect", "etrn", "vrfy", "expn", "help"),
        }


def test_exim_takes_chunks_in_a_pipeline() -> None:
    with Exim(*EVERY_EXTENSION) as exim:
        replies = pipeline(exim.address, b"EHLO", in_chunks("b"))
        assert replies[-1].startswith(b"221"), replies
        (text,) = exim.wait_for_messages(1)
        assert text.endswith(DELIVERED), exim.log()


def test_exim_takes_mail_by_tls(certificate: Certificate) -> None:
    with Exim(certificate=certificate) as exim:
        send(exim.address, trusting=certificate.authority)
        (text,) = exim.wait_for_messages(1)
        assert text.endswith(DELIVERED), exim.log()
        assert "P=esmtps" in exim.log()


def test_exim_sends_on_in_chunks() -> None:
    with Exim(*EVERY_EXTENSION) as last, Exim(route=last.address) as first:
        send(first.address)
        (text,) = last.wait_for_messages(1)
        assert text.endswith(DELIVERED), first.log()
        # K: it came in chunks.
        assert "P=esmtp K" in last.log()
        assert first.messages() == []


def test_exim_sends_on_as_a_next_hop_without_chunks_wants_it(sink: Sink) -> None:
    with Exim(route=TcpAddress("127.0.0.1", sink.port)) as exim:
        send(exim.address)
        (text,) = sink.wait_for_messages(1)
        assert text.endswith(SENT), exim.log()


def test_exim_sends_again_what_was_deferred() -> None:
    sink = Sink({"MAIL": [b"451 later\r\n", b"250 ok\r\n"]})
    with sink, Exim(route=TcpAddress("127.0.0.1", sink.port)) as exim:
        send(exim.address)
        assert len(sink.wait_for_messages(1)) == 1, exim.log()


def test_exim_sends_on_to_an_address_of_ipv6() -> None:
    with Sink(host="::1") as sink, Exim(route=TcpAddress("::1", sink.port)) as exim:
        send(exim.address)
        assert len(sink.wait_for_messages(1)) == 1, exim.log()


# ---- OpenSMTPD --------------------------------------------------------------------------------------


@pytest.mark.root
def test_opensmtpd_delivers_to_its_mailbox() -> None:
    with OpenSmtpd() as opensmtpd:
        assert offered(opensmtpd.address) == {"8bitmime", "enhancedstatuscodes", "size", "dsn", "help"}
        send(opensmtpd.address)
        (text,) = opensmtpd.wait_for_messages(1)
        assert text.endswith(DELIVERED), opensmtpd.log()


@pytest.mark.root
def test_opensmtpd_sends_on(sink: Sink) -> None:
    with OpenSmtpd(route=TcpAddress("127.0.0.1", sink.port)) as opensmtpd:
        send(opensmtpd.address)
        (text,) = sink.wait_for_messages(1)
        assert text.endswith(SENT), opensmtpd.log()
        assert opensmtpd.messages() == []


@pytest.mark.root
def test_opensmtpd_sends_on_to_an_address_of_ipv6() -> None:
    with Sink(host="::1") as sink, OpenSmtpd(route=TcpAddress("::1", sink.port)) as opensmtpd:
        send(opensmtpd.address)
        assert len(sink.wait_for_messages(1)) == 1, opensmtpd.log()


@pytest.mark.root
def test_opensmtpd_sends_on_by_tls(certificate: Certificate) -> None:
    with Exim(certificate=certificate) as exim, OpenSmtpd(route=exim.address) as opensmtpd:
        send(opensmtpd.address)
        (text,) = exim.wait_for_messages(1)
        assert text.endswith(DELIVERED), opensmtpd.log()
        assert "P=esmtps" in exim.log()


# ---- Dovecot ----------------------------------------------------------------------------------------


@pytest.mark.root
def test_dovecot_delivers_to_its_mailbox(certificate: Certificate) -> None:
    with Dovecot(certificate=certificate) as dovecot:
        assert offered(dovecot.address, smtplib.LMTP) == {
            *("8bitmime", "chunking", "enhancedstatuscodes", "pipelining", "starttls", "xclient", "xrcptforward"),
        }
        send(dovecot.address, client=smtplib.LMTP)
        send(dovecot.address, client=smtplib.LMTP, trusting=certificate.authority)
        first, second = dovecot.wait_for_messages(2)
        assert first.endswith(DELIVERED), dovecot.log()
        assert second.endswith(DELIVERED), dovecot.log()


@pytest.mark.root
def test_dovecot_refuses_recipient_by_recipient() -> None:
    with Dovecot() as dovecot:
        replies = pipeline(dovecot.address, b"LHLO", in_chunks("b", FULL, UNKNOWN, "d"))
        codes = [reply[:3] for reply in replies if reply[3:4] == b" "]
        # MAIL, each RCPT, the first chunk, each accepted recipient, QUIT.
        assert codes == [b"250", *(b"250", b"250", b"550", b"250"), b"250", *(b"250", b"552", b"250"), b"221"], replies
        assert len(dovecot.messages()) == 2, dovecot.log()


@pytest.mark.root
def test_dovecot_takes_xclient() -> None:
    with Dovecot() as dovecot, smtplib.LMTP("127.0.0.1", dovecot.address.port, timeout=20) as client:
        client.ehlo()
        assert client.docmd("XCLIENT ADDR=192.0.2.7")[0] == 220
        client.ehlo()
        client.sendmail("a@example.test", ["b@example.test"], MAIL)
        (text,) = dovecot.wait_for_messages(1)
        assert b"[192.0.2.7]" in text, dovecot.log()


# ---- HAProxy ----------------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("version", [1, 2])
def test_haproxy_hands_on_mail(version: Literal[1, 2]) -> None:
    postfix = Postfix(reinjection_settings={"smtpd_upstream_proxy_protocol": "haproxy"})
    with postfix, HAProxy(postfix.reinjection, version=version) as haproxy:
        send(haproxy.address)
        (text,) = postfix.wait_for_messages(1)
        assert text.endswith(DELIVERED), postfix.log()


@pytest.mark.parametrize(
    ("host", "version", "header"),
    [
        ("127.0.0.1", 1, b"PROXY TCP4 127.0.0.1 127.0.0.1 "),
        ("127.0.0.1", 2, b"\r\n\r\n\0\r\nQUIT\n\x21\x11"),
        ("::1", 2, b"\r\n\r\n\0\r\nQUIT\n\x21\x11"),
    ],
)
def test_haproxy_tells_whom_it_speaks_for(host: str, version: Literal[1, 2], header: bytes) -> None:
    with contextlib.ExitStack() as stack:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        backend = stack.enter_context(socket.create_server((host, 0), family=family))
        backend.settimeout(20)
        address = TcpAddress(host, backend.getsockname()[1])
        haproxy = stack.enter_context(HAProxy(address, version=version))
        client = stack.enter_context(socket.create_connection(("127.0.0.1", haproxy.address.port), timeout=20))
        # The first to come is our own connection, and not one that looked whether HAProxy was there.
        connection, _ = backend.accept()
        stack.enter_context(connection)
        connection.settimeout(20)
        assert connection.recv(1000).startswith(header)
        connection.sendall(b"220 hello\r\n")
        assert client.recv(100) == b"220 hello\r\n"


# ---- clients ----------------------------------------------------------------------------------------


def test_nodemailer_sends_octets_as_they_are(sink: Sink) -> None:
    sent = nodemailer.send(sink.port, MAIL, recipients=["b@example.test", "c@example.test"])
    assert (sent.error, sent.response) == (None, "250 2.0.0 Ok: recorded")
    assert sent.accepted == ("b@example.test", "c@example.test")
    (text,) = sink.wait_for_messages(1)
    assert text.endswith(SENT)


def test_nodemailer_makes_a_mail_of_fields(sink: Sink) -> None:
    fields = {"from": "a@example.test", "to": "b@example.test", "subject": "hello", "text": "grüße"}
    assert nodemailer.send(sink.port, fields).error is None
    (text,) = sink.wait_for_messages(1)
    assert b"Subject: hello\r\n" in text


def test_nodemailer_tells_what_was_refused() -> None:
    with Sink({"DATA": b"554 5.7.1 no\r\n"}) as sink:
        sent = nodemailer.send(sink.port, MAIL)
        assert (sent.response_code, sent.response) == (554, "554 5.7.1 no")
        assert sent.error is not None


def test_nodemailer_insists_on_tls_when_told(certificate: Certificate) -> None:
    with Exim(certificate=certificate) as exim:
        assert nodemailer.send(exim.address.port, MAIL, starttls=certificate.authority).error is None
        exim.wait_for_messages(1)
        assert "P=esmtps" in exim.log()
    with Sink({"STARTTLS": b"502 no\r\n"}) as sink:
        assert nodemailer.send(sink.port, MAIL, starttls=certificate.authority).code == "ETLS"
        assert sink.messages == []


def test_nodemailer_asks_for_reports() -> None:
    with Sink(extensions=["DSN"]) as sink:
        nodemailer.send(sink.port, MAIL, dsn={"id": "7", "return": "headers", "notify": ["never"]})
        sink.wait_for_messages(1)
        assert sink.recorded[0].sender == b"MAIL FROM:<a@example.test> RET=HDRS ENVID=7"
        assert sink.recorded[0].recipients == (b"RCPT TO:<b@example.test> NOTIFY=NEVER",)


@pytest.mark.root
def test_nodemailer_speaks_lmtp() -> None:
    with Dovecot() as dovecot:
        people = [f"{name}@example.test" for name in ("b", UNKNOWN)]
        sent = nodemailer.send(dovecot.address.port, MAIL, lmtp=True, recipients=people)
        assert (sent.accepted, sent.rejected) == ((people[0],), (people[1],))
        (text,) = dovecot.wait_for_messages(1)
        assert text.endswith(DELIVERED), dovecot.log()


# ---- mails and certificates -------------------------------------------------------------------------


def test_there_are_sample_mails() -> None:
    samples = mail_samples()
    assert len(samples) > 30
    assert all(sample.read_bytes() for sample in samples)


def test_clamd_finds_every_infected_sample_mail(clamd: Clamd) -> None:
    for sample in infected_mail_samples():
        assert f": {TESTFILE_NAME} FOUND".encode() in clamd.ask(b"SCAN " + bytes(sample))


def test_a_certificate_is_for_its_names_only(tmp_path: Path) -> None:
    other = make_certificate(tmp_path, "mx.example.test")
    with Exim(certificate=other) as exim, pytest.raises(ssl.SSLCertVerificationError):
        send(exim.address, trusting=other.authority)
