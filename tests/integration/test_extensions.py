"""What is offered works end to end: real clients and real servers on both sides of the filter."""

from __future__ import annotations

import contextlib
import re
import shutil
import smtplib
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clamsmtpd.values import TcpAddress
from tests.support import nodemailer
from tests.support.certificates import Certificate, make_certificate
from tests.support.clamd import EICAR, EICAR_NAME, Clamd
from tests.support.daemon import Daemon
from tests.support.dovecot import FULL, UNKNOWN, Dovecot
from tests.support.exim import EVERY_EXTENSION, Exim
from tests.support.haproxy import HAProxy
from tests.support.opensmtpd import OpenSmtpd
from tests.support.postfix import Postfix
from tests.support.process import ProgramError, free_port
from tests.support.sink import Sink

pytestmark = pytest.mark.timeout(120)

Start = Callable[..., Daemon]

#: It has all the fields that a server would add.
HEADER = (
    b"From: a@example.test\r\nTo: b@example.test\r\nDate: Mon, 23 Nov 2026 12:00:00 +0000\r\n"
    b"Message-Id: <1@example.test>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=latin-1\r\n"
    b"Content-Transfer-Encoding: 8bit\r\nSubject: hello\r\n"
)
BODY = b"\r\n.text\r\n..\r\n\xfc\r\n" + b"x" * 70 + b"\r\n"
CLEAN = HEADER + BODY
INFECTED = HEADER + b"\r\n" + EICAR + b"\r\n"
DELIVERED = BODY.replace(b"\r\n", b"\n")

FIELD = b"X-Virus-Scanned: ClamAV using ClamSMTP\n"


@pytest.fixture
def certificate() -> Iterator[Certificate]:
    # Exim runs as nobody, who may not look into the folders of pytest.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield make_certificate(Path(folder))


def tls(certificate: Certificate) -> tuple[str, str]:
    return f"TLSCertificate: {certificate.certificate}", f"TLSKey: {certificate.key}"


def run(*command: str, text: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    assert shutil.which(command[0]), f"{command[0]} is missing: scripts/setup test installs it"
    return subprocess.run(command, input=text, capture_output=True, timeout=50, check=False)


def send(port: int, text: bytes, *, source: str = "127.0.0.1") -> None:
    with smtplib.SMTP("127.0.0.1", port, source_address=(source, 0), local_hostname="outside.example.test") as client:
        client.sendmail("a@example.test", ["b@example.test"], text, ["BODY=8BITMIME"])


# ---- servers that pipeline and send chunks, on both sides -----------------------------------------


@pytest.mark.root
def test_postfix_sends_a_batch_to_postfix(clamd: Clamd, start_daemon: Start) -> None:
    port = free_port()
    with Postfix(content_filter=port) as postfix:
        daemon = start_daemon(
            f"Listen: 127.0.0.1:{port}", f"OutAddress: {postfix.reinjection}", f"ClamAddress: {clamd.unix}"
        )
        send(postfix.address.port, CLEAN)
        send(postfix.address.port, INFECTED)
        (text,) = postfix.wait_for_messages(1)
        assert text.endswith(FIELD + DELIVERED)
        daemon.wait_for_log(f"status=VIRUS:{EICAR_NAME}")
        log = daemon.log()
        # The batch arrives in one piece, and goes on in one piece.
        assert re.search(r"CLIENT < XFORWARD[^\n]*\n(?:[^\n]*CLIENT < XFORWARD[^\n]*\n)?[^\n]*CLIENT < MAIL", log)
        assert re.search(r"SERVER > MAIL FROM[^\n]*\n[^\n]*SERVER > RCPT TO", log)


def test_exim_sends_chunks_to_exim(clamd: Clamd, start_daemon: Start) -> None:
    port = free_port()
    large = HEADER + b"\r\n" + (b"y" * 78 + b"\r\n") * 5000
    with Exim(*EVERY_EXTENSION) as server, Exim(*EVERY_EXTENSION, route=TcpAddress("127.0.0.1", port)) as client:
        daemon = start_daemon(
            f"Listen: 127.0.0.1:{port}", f"OutAddress: {server.address}", f"ClamAddress: {clamd.unix}"
        )
        for text in (CLEAN, INFECTED, large):
            send(client.address.port, text)
        texts = server.wait_for_messages(2)
        assert sorted(len(text) > 100_000 for text in texts) == [False, True]
        (small,) = (text for text in texts if len(text) < 100_000)
        assert small.endswith(FIELD + DELIVERED)
        daemon.wait_for_log(f"status=VIRUS:{EICAR_NAME}")
        assert re.search(r"CLIENT < BDAT \d+ LAST", daemon.log())
        assert re.search(r"SERVER > BDAT \d+ LAST", daemon.log())


@pytest.mark.root
def test_exim_sends_chunks_and_opensmtpd_has_none(clamd: Clamd, start_daemon: Start) -> None:
    port = free_port()
    with OpenSmtpd() as server, Exim(*EVERY_EXTENSION, route=TcpAddress("127.0.0.1", port)) as client:
        daemon = start_daemon(
            f"Listen: 127.0.0.1:{port}", f"OutAddress: {server.address}", f"ClamAddress: {clamd.unix}"
        )
        send(client.address.port, INFECTED)
        send(client.address.port, CLEAN)
        (text,) = server.wait_for_messages(1)
        assert text.endswith(FIELD + DELIVERED)
        assert re.search(r"CLIENT < BDAT \d+ LAST", daemon.log())
        assert "SERVER > DATA" in daemon.log()
        assert "SERVER > BDAT" not in daemon.log()


@pytest.mark.root
def test_opensmtpd_on_both_sides(clamd: Clamd, start_daemon: Start) -> None:
    port = free_port()
    with OpenSmtpd() as server, OpenSmtpd(route=TcpAddress("127.0.0.1", port)) as client:
        daemon = start_daemon(
            f"Listen: 127.0.0.1:{port}", f"OutAddress: {server.address}", f"ClamAddress: {clamd.unix}"
        )
        send(client.address.port, INFECTED)
        daemon.wait_for_log(f"status=VIRUS:{EICAR_NAME}")
        send(client.address.port, CLEAN)
        (text,) = server.wait_for_messages(1)
        assert text.endswith(FIELD + DELIVERED)


# ---- TLS ------------------------------------------------------------------------------------------


@pytest.mark.root
def test_opensmtpd_uses_tls_with_us(clamd: Clamd, sink: Sink, start_daemon: Start, certificate: Certificate) -> None:
    port = free_port()
    with OpenSmtpd(route=TcpAddress("127.0.0.1", port)) as client:
        daemon = start_daemon(
            f"Listen: 127.0.0.1:{port}",
            f"OutAddress: {sink.address}",
            f"ClamAddress: {clamd.unix}",
            *tls(certificate),
        )
        send(client.address.port, CLEAN)
        (text,) = sink.wait_for_messages(1)
        assert text.endswith(BODY.replace(b"\r\n.", b"\r\n.."))
        daemon.wait_for_log("client uses TLSv1.")


def test_exim_uses_tls_with_us(clamd: Clamd, sink: Sink, start_daemon: Start, certificate: Certificate) -> None:
    port = free_port()
    verify = f"tls_verify_certificates = {certificate.authority}"
    # Its host has an address for a name, which it does not look for in a certificate.
    options = ["hosts_require_tls = *", "tls_verify_hosts = *", verify, "tls_verify_cert_hostnames ="]
    with Exim(route=TcpAddress("127.0.0.1", port), transport=options) as client:
        daemon = start_daemon(
            f"Listen: 127.0.0.1:{port}",
            f"OutAddress: {sink.address}",
            f"ClamAddress: {clamd.unix}",
            *tls(certificate),
        )
        send(client.address.port, CLEAN)
        sink.wait_for_messages(1)
        daemon.wait_for_log("client uses TLSv1.")


def test_swaks_openssl_curl_and_nodemailer_use_tls(
    clamd: Clamd, sink: Sink, start_daemon: Start, certificate: Certificate
) -> None:
    daemon = start_daemon(f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}", *tls(certificate))
    port = str(daemon.port)
    swaks = run(
        *("swaks", "--server", "127.0.0.1", "--port", port, "--from", "a@example.test", "--to", "b@example.test"),
        *("--tls", "--tls-verify", "--tls-ca-path", str(certificate.authority), "--pipeline"),
    )
    assert swaks.returncode == 0, swaks.stdout + swaks.stderr
    curl = run(
        *("curl", "--silent", "--show-error", "--ssl-reqd", "--cacert", str(certificate.authority)),
        *("--mail-from", "a@example.test", "--mail-rcpt", "b@example.test", "--upload-file", "-"),
        f"smtp://localhost:{port}/outside.example.test",
        text=CLEAN,
    )
    assert curl.returncode == 0, curl.stderr
    sent = nodemailer.send(daemon.port, CLEAN, host="localhost", starttls=certificate.authority)
    assert sent.error is None
    openssl = run(
        *("openssl", "s_client", "-starttls", "smtp", "-connect", f"127.0.0.1:{port}", "-quiet", "-ign_eof"),
        *("-verify_return_error", "-CAfile", str(certificate.authority)),
        text=b"EHLO openssl.example.test\r\nMAIL FROM:<a@example.test>\r\nRCPT TO:<b@example.test>\r\n"
        b"BDAT 8 LAST\r\nhello!\r\nQUIT\r\n",
    )
    assert openssl.returncode == 0, openssl.stderr
    assert b"\n221 " in openssl.stdout
    texts = sink.wait_for_messages(4)
    assert texts[1].endswith(BODY.replace(b"\r\n.", b"\r\n.."))
    assert texts[2].endswith(BODY.replace(b"\r\n.", b"\r\n.."))
    assert texts[3].endswith(b"hello!\r\n")
    assert daemon.log().count("client uses TLSv1.") == 4
    old = run("openssl", "s_client", "-starttls", "smtp", "-connect", f"127.0.0.1:{port}", "-tls1_1")
    assert old.returncode != 0


@pytest.mark.root
def test_a_key_for_root_only_is_read_before_root_is_given_up(
    clamd: Clamd, sink: Sink, start_daemon: Start, certificate: Certificate
) -> None:
    certificate.key.chmod(0o600)
    daemon = start_daemon(f"OutAddress: {sink.address}", f"ClamAddress: {clamd.tcp}", "User: nobody", *tls(certificate))
    daemon.wait_for_log(f"TLSCertificate: the daemon's user cannot read {certificate.key}; restart the daemon when")
    with smtplib.SMTP("127.0.0.1", daemon.port) as client:
        client.starttls(context=ssl.create_default_context(cafile=certificate.authority))
        client.sendmail("a@example.test", ["b@example.test"], CLEAN)
    sink.wait_for_messages(1)


def test_a_bad_certificate_stops_the_start(start_daemon: Start, tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("no certificate")
    with pytest.raises(ProgramError, match="no certificate with its key; give both in PEM format"):
        start_daemon("OutAddress: 25", f"TLSCertificate: {tmp_path}/cert.pem")


@pytest.mark.parametrize("level", ["may", "encrypt", "verify"])
def test_tls_with_exim_as_the_next_hop(clamd: Clamd, start_daemon: Start, certificate: Certificate, level: str) -> None:
    with Exim(*EVERY_EXTENSION, certificate=certificate) as exim:
        daemon = start_daemon(
            f"OutAddress: {exim.address}",
            f"ClamAddress: {clamd.unix}",
            f"OutTLS: {level}",
            environment={"SSL_CERT_FILE": str(certificate.authority)},
        )
        send(daemon.port, CLEAN)
        (text,) = exim.wait_for_messages(1)
        assert text.endswith(FIELD + DELIVERED)
        assert b" with esmtps" in text
        daemon.wait_for_log("next hop uses TLSv1.")


def test_a_next_hop_that_is_not_who_it_says_gets_no_mail(
    clamd: Clamd, start_daemon: Start, tmp_path: Path, certificate: Certificate
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with Exim(certificate=make_certificate(other)) as exim:
        daemon = start_daemon(
            f"OutAddress: {exim.address}",
            f"ClamAddress: {clamd.unix}",
            "OutTLS: verify",
            environment={"SSL_CERT_FILE": str(certificate.authority)},
        )
        with pytest.raises(smtplib.SMTPConnectError) as refused:
            send(daemon.port, CLEAN)
        assert refused.value.smtp_code == 421
        daemon.wait_for_log("next hop: TLS handshake failed: ")
        assert exim.messages() == []


@pytest.mark.root
def test_tls_with_dovecot_as_the_next_hop(clamd: Clamd, start_daemon: Start, certificate: Certificate) -> None:
    with Dovecot(certificate=certificate) as dovecot:
        daemon = start_daemon(
            f"OutAddress: lmtp:{dovecot.address}", f"ClamAddress: {clamd.unix}", "OutTLS: encrypt", lmtp=True
        )
        with smtplib.LMTP("127.0.0.1", daemon.port) as client:
            client.sendmail("a@example.test", ["b@example.test"], CLEAN)
        (text,) = dovecot.wait_for_messages(1)
        assert text.endswith(FIELD + DELIVERED)
        daemon.wait_for_log("next hop uses TLSv1.")


# ---- who the client is ----------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("version", [1, 2])
def test_haproxy_in_front_and_xclient_behind(clamd: Clamd, start_daemon: Start, version: int) -> None:
    with Postfix() as postfix:
        daemon = start_daemon(
            f"OutAddress: {postfix.reinjection}",
            f"ClamAddress: {clamd.unix}",
            "TrustedClients: 127.0.0.1",
            "ProxyProtocol: on",
            "XClient: on",
            "Header: X-Client: %i",
            'VirusAction: echo "client=$CLIENT"',
        )
        with HAProxy(daemon.address, version=version) as proxy:  # type: ignore[arg-type]
            send(proxy.address.port, CLEAN, source="127.0.0.99")
            send(proxy.address.port, INFECTED, source="127.0.0.99")
        (text,) = postfix.wait_for_messages(1)
        assert b"Received: from outside.example.test (unknown [127.0.0.99])" in text
        assert b"X-Client: 127.0.0.99\n" in text
        daemon.wait_for_log("accepted connection from: 127.0.0.99 (through the proxy 127.0.0.1)")
        daemon.wait_for_log("client=127.0.0.99")


@pytest.mark.root
def test_xclient_from_a_trusted_client_goes_on_to_postfix(clamd: Clamd, start_daemon: Start) -> None:
    with Postfix(reinjection_settings={"mynetworks": "[2001:db8::]/32"}) as postfix:
        daemon = start_daemon(
            f"OutAddress: {postfix.reinjection}",
            f"ClamAddress: {clamd.unix}",
            "TrustedClients: 127.0.0.0/8",
            "XClient: on",
        )
        with smtplib.SMTP("127.0.0.1", daemon.port, local_hostname="proxy.example.test") as client:
            client.ehlo()
            assert client.esmtp_features["xclient"].split() == [
                *("NAME", "ADDR", "PORT", "PROTO", "HELO", "LOGIN", "DESTADDR", "DESTPORT")
            ]
            attributes = "NAME=mx.outside.test ADDR=IPV6:2001:db8::77 PORT=4711 HELO=outside.test LOGIN=joe PROTO=SMTP"
            assert client.docmd("XCLIENT", attributes)[0] == 220
            client.ehlo_or_helo_if_needed()
            assert client.docmd("EHLO", "again.example.test")[0] == 250
            client.sendmail("a@example.test", ["b@example.test"], CLEAN)
        (text,) = postfix.wait_for_messages(1)
        # Postfix has the HELO name from the last EHLO, as its XCLIENT_README says.
        assert b"(mx.outside.test [IPv6:2001:db8::77])" in text
        postfix.wait_for_log("sasl_username=joe")
        daemon.wait_for_log("client is: 2001:db8::77 (as 127.0.0.1 says by XCLIENT)")


@pytest.mark.root
def test_xclient_tells_dovecot_too(clamd: Clamd, start_daemon: Start) -> None:
    with Dovecot() as dovecot:
        daemon = start_daemon(
            f"OutAddress: lmtp:{dovecot.address}", f"ClamAddress: {clamd.unix}", "XClient: on", lmtp=True
        )
        with smtplib.LMTP("127.0.0.1", daemon.port, source_address=("127.0.0.66", 0)) as client:
            client.sendmail("a@example.test", ["b@example.test"], CLEAN)
        (text,) = dovecot.wait_for_messages(1)
        assert b"([127.0.0.66])" in text


@pytest.mark.root
def test_the_log_of_postfix_hears_by_xforward_who_the_client_is(clamd: Clamd, start_daemon: Start) -> None:
    with Postfix() as postfix:
        daemon = start_daemon(
            f"OutAddress: {postfix.reinjection}",
            f"ClamAddress: {clamd.unix}",
            "TrustedClients: 127.0.0.1",
            "ProxyProtocol: on",
        )
        with HAProxy(daemon.address) as proxy:
            send(proxy.address.port, CLEAN, source="127.0.0.98")
        postfix.wait_for_messages(1)
        postfix.wait_for_log("orig_client=unknown[127.0.0.98]")


@pytest.mark.root
def test_postfix_hands_on_who_the_client_is(clamd: Clamd, start_daemon: Start) -> None:
    """Postfix before, HAProxy's protocol into Postfix, XFORWARD to us, and on to the next Postfix."""
    port = free_port()
    with Postfix(proxy_filter=port) as postfix:
        start_daemon(f"Listen: 127.0.0.1:{port}", f"OutAddress: {postfix.reinjection}", f"ClamAddress: {clamd.unix}")
        send(postfix.address.port, CLEAN, source="127.0.0.97")
        postfix.wait_for_messages(1)
        postfix.wait_for_log("orig_client=unknown[127.0.0.97]")


# ---- LMTP -----------------------------------------------------------------------------------------


@pytest.mark.root
def test_lmtp_to_dovecot_answers_for_each_recipient(clamd: Clamd, start_daemon: Start) -> None:
    with Dovecot() as dovecot:
        daemon = start_daemon(f"OutAddress: lmtp:{dovecot.address}", f"ClamAddress: {clamd.unix}", lmtp=True)
        people = ("b@example.test", f"{UNKNOWN}@example.test", f"{FULL}@example.test", "c@example.test")
        sent = nodemailer.send(daemon.port, CLEAN, recipients=people, lmtp=True)
        assert set(sent.rejected) == {f"{UNKNOWN}@example.test", f"{FULL}@example.test"}
        texts = dovecot.wait_for_messages(2)
        assert all(text.endswith(FIELD + DELIVERED) for text in texts)
        with smtplib.LMTP("127.0.0.1", daemon.port) as client:
            client.ehlo()
            assert client.has_extn("chunking")
            for address in people[::3]:
                assert client.docmd("MAIL", "FROM:<a@example.test>")[0] == 250
                assert client.docmd("RCPT", f"TO:<{address}>")[0] == 250
                assert client.docmd("RCPT", f"TO:<{FULL}@example.test>")[0] == 250
                client.send(b"BDAT %d LAST\r\n%b" % (len(CLEAN), CLEAN))
                assert [client.getreply()[0], client.getreply()[0]] == [250, 552]
            assert client.docmd("MAIL", "FROM:<a@example.test>")[0] == 250
            for address in people[::3]:
                assert client.docmd("RCPT", f"TO:<{address}>")[0] == 250
            assert client.docmd("DATA")[0] == 354
            client.send(INFECTED + b".\r\n")
            assert [client.getreply()[0], client.getreply()[0]] == [250, 250]
        assert len(dovecot.wait_for_messages(4)) == 4


@pytest.mark.root
def test_postfix_sends_lmtp_through_us_to_dovecot(clamd: Clamd, start_daemon: Start) -> None:
    port = free_port()
    with Dovecot() as dovecot, Postfix(settings={"virtual_transport": f"lmtp:inet:127.0.0.1:{port}"}) as postfix:
        daemon = start_daemon(
            f"Listen: lmtp:127.0.0.1:{port}", f"OutAddress: lmtp:{dovecot.address}", f"ClamAddress: {clamd.unix}"
        )
        with smtplib.SMTP("127.0.0.1", postfix.address.port) as client:
            client.sendmail("a@example.test", ["b@example.test", "c@example.test"], CLEAN, ["BODY=8BITMIME"])
            client.sendmail("a@example.test", ["b@example.test", "c@example.test"], INFECTED)
        texts = dovecot.wait_for_messages(2)
        assert all(text.endswith(FIELD + DELIVERED) for text in texts)
        daemon.wait_for_log(f"status=VIRUS:{EICAR_NAME}")
        postfix.wait_for_log("Virus found; message discarded")
        assert len(dovecot.messages()) == 2


@pytest.mark.root
def test_smtp_in_front_of_dovecot_one_recipient_a_message(clamd: Clamd, start_daemon: Start) -> None:
    port = free_port()
    people = ["b@example.test", f"{FULL}@example.test", "c@example.test"]
    with (
        Dovecot() as dovecot,
        Postfix(
            settings={"virtual_transport": f"smtp:[127.0.0.1]:{port}", "smtp_destination_recipient_limit": "1"}
        ) as postfix,
    ):
        daemon = start_daemon(
            f"Listen: 127.0.0.1:{port}", f"OutAddress: lmtp:{dovecot.address}", f"ClamAddress: {clamd.unix}"
        )
        with smtplib.SMTP("127.0.0.1", daemon.port) as direct:
            direct.ehlo()
            assert direct.esmtp_features["limits"] == "RCPTMAX=1"
            refused = direct.sendmail("a@example.test", people[::2], CLEAN)
            assert refused["c@example.test"][0] == 452
        with smtplib.SMTP("127.0.0.1", postfix.address.port) as client:
            client.sendmail("a@example.test", people, CLEAN, ["BODY=8BITMIME"])
        assert len(dovecot.wait_for_messages(3)) == 3
        postfix.wait_for_log("status=bounced (host 127.0.0.1")


@pytest.mark.root
def test_lmtp_in_front_of_smtp(clamd: Clamd, start_daemon: Start) -> None:
    with Postfix() as postfix:
        daemon = start_daemon(f"OutAddress: {postfix.reinjection}", f"ClamAddress: {clamd.unix}", lmtp=True)
        # smtplib's LMTP takes the first reply to a message for the only one.
        people = ("b@example.test", "c@example.test")
        sent = nodemailer.send(daemon.port, CLEAN, recipients=people, lmtp=True)
        assert sent.accepted == people
        assert all(text.endswith(FIELD + DELIVERED) for text in postfix.wait_for_messages(1))


# ---- several places to listen ---------------------------------------------------------------------


@pytest.mark.root
def test_several_places_to_listen(clamd: Clamd, sink: Sink, start_daemon: Start, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    port, port6 = free_port(), free_port("::1")
    path = tmp_path / "in"
    daemon = start_daemon(
        f"OutAddress: {sink.address}",
        f"ClamAddress: {clamd.unix}",
        f"Listen: [::1]:{port6}",
        f"Listen: lmtp:{path} owner=daemon:mail mode=0660",
        f"Listen: 127.0.0.1:{port}",
    )
    daemon.wait_for_log(f"accepting connections on [::1]:{port6}, lmtp:{path}, 127.0.0.1:{port}")
    status = path.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (1, 8, 0o660)
    with smtplib.SMTP("::1", port6) as client:
        client.sendmail("a@example.test", ["b@example.test"], CLEAN)
    with smtplib.SMTP("127.0.0.1", port) as client:
        client.sendmail("a@example.test", ["b@example.test"], CLEAN)
    with smtplib.LMTP(str(path)) as lmtp:
        lmtp.sendmail("a@example.test", ["b@example.test"], CLEAN)
    assert len(sink.wait_for_messages(3)) == 3
    assert "accepted connection from: ::1" in daemon.log()
    assert daemon.stop() == 0
    assert not path.exists()


# ---- the table of the documentation ---------------------------------------------------------------

TABLE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "extensions.md"


def documented(server: str) -> set[str]:
    """Return the keywords with a "yes" in a server's column."""
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in TABLE.read_text().splitlines()]
    rows = [row for row in rows if len(row) > 4]
    column = rows[0].index(server)
    return {row[0].lower() for row in rows[2:] if row[column].startswith("yes")}


@pytest.mark.root
@pytest.mark.parametrize("server", ["Postfix", "Exim", "OpenSMTPD", "Dovecot LMTP"])
def test_the_table_of_extensions_is_what_each_server_gives(
    clamd: Clamd, start_daemon: Start, certificate: Certificate, server: str
) -> None:
    with contextlib.ExitStack() as stack:
        start: dict[str, Callable[[], TcpAddress]] = {
            "Postfix": lambda: stack.enter_context(Postfix()).reinjection,
            "Exim": lambda: stack.enter_context(Exim(*EVERY_EXTENSION)).address,
            "OpenSMTPD": lambda: stack.enter_context(OpenSmtpd()).address,
            "Dovecot LMTP": lambda: stack.enter_context(Dovecot()).address,
        }
        lmtp = server == "Dovecot LMTP"
        address = start[server]()
        daemon = start_daemon(
            f"OutAddress: {'lmtp:' if lmtp else ''}{address}",
            f"ClamAddress: {clamd.unix}",
            *tls(certificate),
            lmtp=lmtp,
        )
        client = stack.enter_context((smtplib.LMTP if lmtp else smtplib.SMTP)("127.0.0.1", daemon.port))
        code, said = client.ehlo()
        assert code == 250, said
        offered = set(client.esmtp_features)
        assert offered == documented(server)
        client.starttls(context=ssl.create_default_context(cafile=certificate.authority))
        client.ehlo()
        assert set(client.esmtp_features) == offered - {"starttls"}
