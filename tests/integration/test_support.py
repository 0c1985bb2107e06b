"""The servers that the other tests rely on: each one works by itself."""

from __future__ import annotations

import smtplib
import socket
from pathlib import Path

import pytest

from clamsmtpd.values import TcpAddress
from tests.support.clamd import EICAR, EICAR_NAME, TEST_FILES, TESTFILE_NAME, Clamd
from tests.support.daemon import Daemon
from tests.support.exim import Exim
from tests.support.postfix import Postfix
from tests.support.process import Program, ProgramError, free_port
from tests.support.sink import GREETING, HANG, TEXT, Cut, Reply, Sink

#: It has all the fields that a server would add at the end.
MAIL = (
    b"From: a@example.test\r\nDate: Mon, 23 Nov 2026 12:00:00 +0000\r\nMessage-Id: <1@example.test>\r\n"
    b"Subject: hello\r\n\r\n.text\r\n\xfc\r\n"
)


def send(address: TcpAddress, text: bytes = MAIL) -> None:
    with smtplib.SMTP(address.host or "", address.port, timeout=20) as client:
        client.sendmail("a@example.test", ["b@example.test"], text)


def test_clamd_finds_the_eicar_file(clamd: Clamd, tmp_path: Path) -> None:
    infected = tmp_path / "infected"
    infected.write_bytes(b"Subject: x\r\n\r\n" + EICAR + b"\r\n")
    assert clamd.ask(b"SCAN " + bytes(infected)) == f"{infected}: {EICAR_NAME} FOUND\0".encode()


def test_clamd_calls_other_files_clean(clamd: Clamd, tmp_path: Path) -> None:
    clean = tmp_path / "clean"
    clean.write_bytes(MAIL)
    assert clamd.ask(b"SCAN " + bytes(clean)) == f"{clean}: OK\0".encode()


def test_clamd_answers_at_its_port_too(clamd: Clamd) -> None:
    with socket.create_connection(("127.0.0.1", clamd.tcp.port), timeout=20) as connection:
        connection.sendall(b"zPING\0")
        assert connection.recv(100) == b"PONG\0"


def test_clamd_finds_its_own_test_file_in_every_packing(clamd: Clamd) -> None:
    replies = {path.name: clamd.ask(b"SCAN " + bytes(path)) for path in TEST_FILES.iterdir()}
    assert len(replies) > 40
    assert {name for name, reply in replies.items() if f": {TESTFILE_NAME} FOUND".encode() not in reply} == set()


def test_the_sink_records_every_octet(sink: Sink) -> None:
    send(TcpAddress("127.0.0.1", sink.port))
    sink.wait_for_end()
    (talk,) = sink.talks
    assert talk.verbs == ["EHLO", "MAIL", "RCPT", "DATA", "QUIT"]
    assert talk.messages == [MAIL.replace(b"\r\n.", b"\r\n..")]
    assert bytes(talk.received).endswith(b"\xfc\r\n.\r\nQUIT\r\n")
    assert sink.recorded[0].recipients == (b"rcpt TO:<b@example.test>",)


def test_the_sink_takes_a_message_in_pieces_and_an_empty_one(sink: Sink) -> None:
    with socket.create_connection(("127.0.0.1", sink.port), timeout=20) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for octet in b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<b>\r\nDATA\r\na\r\n..\r\n.\r\nMAIL FROM:<>\r\nDATA\r\n.\r\n":
            client.sendall(bytes([octet]))
        assert sink.wait_for_messages(2) == [b"a\r\n..\r\n", b""]


def test_the_sink_replies_as_the_test_says() -> None:
    script: dict[str, Reply | list[Reply]] = {
        "RCPT": [b"450 later\r\n", b"250 ok\r\n"],
        "DATA": b"554 no\r\n",
        TEXT: Cut(),
        "NOOP": HANG,
    }
    with Sink(script) as sink, smtplib.SMTP("127.0.0.1", sink.port, timeout=0.5) as client:
        client.ehlo("x")
        client.mail("a")
        assert [client.rcpt("b")[0] for _ in range(3)] == [450, 250, 250]
        assert client.docmd("DATA")[0] == 554
        with pytest.raises(smtplib.SMTPServerDisconnected):
            client.noop()


def test_the_sink_can_cut_a_reply_short() -> None:
    with Sink({GREETING: Cut(b"220-sink\r\n22")}) as sink, socket.create_connection(("127.0.0.1", sink.port)) as client:
        client.settimeout(20)
        assert b"".join(iter(lambda: client.recv(100), b"")) == b"220-sink\r\n22"


def test_the_sink_listens_at_a_path(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with Sink(path=path), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(path)
        assert client.recv(100).startswith(b"220 ")


@pytest.mark.root
def test_postfix_delivers_to_its_mailbox() -> None:
    with Postfix() as postfix:
        send(postfix.address)
        send(postfix.reinjection)
        first, second = postfix.wait_for_messages(2)
        assert first.endswith(b"Subject: hello\n\n.text\n\xfc\n"), postfix.log()
        assert second.endswith(b"Subject: hello\n\n.text\n\xfc\n"), postfix.log()
        assert "status=sent (delivered to maildir)" in postfix.log()


@pytest.mark.root
@pytest.mark.parametrize("kind", ["content_filter", "proxy_filter"])
def test_postfix_sends_through_a_filter(kind: str, sink: Sink) -> None:
    filters = {kind: sink.port}
    with Postfix(content_filter=filters.get("content_filter"), proxy_filter=filters.get("proxy_filter")) as postfix:
        send(postfix.address)
        (text,) = sink.wait_for_messages(1)
        assert text.endswith(b"Subject: hello\r\n\r\n..text\r\n\xfc\r\n"), postfix.log()
        assert postfix.messages() == []


@pytest.mark.root
def test_postfix_takes_xforward_and_xclient_where_filtered_mail_comes_back() -> None:
    with Postfix() as postfix, smtplib.SMTP("127.0.0.1", postfix.reinjection.port, timeout=20) as client:
        client.ehlo("x")
        assert client.has_extn("xforward")
        assert client.has_extn("xclient")
        assert client.docmd("XFORWARD ADDR=192.0.2.7 NAME=[UNAVAILABLE] HELO=c.test")[0] == 250
        assert client.docmd("XCLIENT ADDR=192.0.2.7")[0] == 220


def test_the_daemon_filters_mail_and_stops_when_told(clamd: Clamd, sink: Sink) -> None:
    with Daemon(f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}") as daemon:
        send(daemon.address)
        send(daemon.address, MAIL + EICAR + b"\r\n")
        daemon.wait_for_log(f"status=VIRUS:{EICAR_NAME}")
        assert [line.rpartition("=")[2] for line in daemon.message_lines()] == ["CLEAN", f"VIRUS:{EICAR_NAME}"]
        assert len(sink.messages) == 1
        assert daemon.spooled() == []
        assert daemon.stop() == 0


def test_a_daemon_that_does_not_start_tells_why() -> None:
    with pytest.raises(ProgramError, match=r"ended with 2: clamsmtpd: .*OutAddress"):
        Daemon("Action: drop")


def test_exim_delivers_to_its_mailbox() -> None:
    with Exim() as exim:
        send(exim.address)
        (text,) = exim.wait_for_messages(1)
        assert text.endswith(b"Subject: hello\n\n.text\n\xfc\n"), exim.log()


def test_what_a_program_that_fails_has_written_is_told(tmp_path: Path) -> None:
    program = Program(["sh", "-c", "echo so it goes; exit 3"], output=tmp_path / "output")
    with pytest.raises(ProgramError, match="ended with 3: so it goes"):
        program.wait_until(lambda: False, "never")
    assert program.stop() == 3


def test_a_free_port_can_be_bound() -> None:
    with socket.create_server(("127.0.0.1", free_port())):
        pass
