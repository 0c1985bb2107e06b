"""Postfix around the filter: after its queue, before its queue, and as a next hop that takes XCLIENT."""

from __future__ import annotations

import smtplib
from collections.abc import Callable

import pytest

from tests.support.clamd import EICAR, EICAR_NAME, Clamd
from tests.support.daemon import Daemon
from tests.support.postfix import Postfix
from tests.support.process import free_port

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

Start = Callable[..., Daemon]

CLEAN = b"Subject: hello\r\n\r\nText.\r\n"
INFECTED = b"Subject: evil\r\n\r\n" + EICAR + b"\r\n"


def send(port: int, text: bytes, sender: str = "a@example.org") -> None:
    with smtplib.SMTP("127.0.0.1", port, local_hostname="outside.example.org") as client:
        client.sendmail(sender, ["b@example.org"], text)


def test_after_the_queue(clamd: Clamd, start_daemon: Start) -> None:
    port = free_port()
    with Postfix(content_filter=port) as postfix:
        daemon = start_daemon(
            f"Listen: 127.0.0.1:{port}", f"OutAddress: {postfix.reinjection}", f"ClamAddress: {clamd.unix}"
        )
        send(postfix.address.port, INFECTED)
        send(postfix.address.port, CLEAN)
        (text,) = postfix.wait_for_messages(1)
        daemon.wait_for_log(f"status=VIRUS:{EICAR_NAME}")
        postfix.wait_for_log("Virus found; message discarded")
        assert b"X-Virus-Scanned: ClamAV using ClamSMTP\n\nText.\n" in text
        # The next hop logs the client that the first Postfix had, by XFORWARD.
        postfix.wait_for_log("orig_client=unknown[127.0.0.1]")
        assert len(postfix.messages()) == 1
        assert "XFORWARD" in daemon.log()


def test_after_the_queue_while_clamd_is_away(start_daemon: Start) -> None:
    port = free_port()
    with Postfix(content_filter=port) as postfix, Clamd() as clamd:
        start_daemon(
            f"Listen: 127.0.0.1:{port}",
            f"OutAddress: {postfix.reinjection}",
            f"ClamAddress: {clamd.unix}",
            "TimeOut: 2",
        )
        clamd._program.stop()
        send(postfix.address.port, CLEAN)
        postfix.wait_for_log("451 4.3.0 Virus scan not possible now")
        # Nothing is lost: it waits in the queue.
        assert postfix.queued() >= 1
        assert postfix.messages() == []


def test_before_the_queue(clamd: Clamd, start_daemon: Start) -> None:
    port = free_port()
    with Postfix(proxy_filter=port) as postfix:
        daemon = start_daemon(
            f"Listen: 127.0.0.1:{port}",
            f"OutAddress: {postfix.reinjection}",
            f"ClamAddress: {clamd.unix}",
            "Action: bounce",
        )
        send(postfix.address.port, CLEAN)
        with pytest.raises(smtplib.SMTPDataError) as refused:
            send(postfix.address.port, INFECTED)
        assert refused.value.smtp_code == 550
        (text,) = postfix.wait_for_messages(1)
        assert b"X-Virus-Scanned" in text
        assert f"from=a@example.org, to=b@example.org, status=VIRUS:{EICAR_NAME}" in daemon.message_lines()


def test_xforward_reaches_the_hook(clamd: Clamd, start_daemon: Start) -> None:
    port = free_port()
    with Postfix(proxy_filter=port) as postfix:
        daemon = start_daemon(
            f"Listen: 127.0.0.1:{port}",
            f"OutAddress: {postfix.reinjection}",
            f"ClamAddress: {clamd.unix}",
            'VirusAction: echo "remote=$REMOTE helo=$REMOTE_HELO virus=$VIRUS mail=$EMAIL"',
        )
        send(postfix.address.port, INFECTED)
        daemon.wait_for_log(f"remote=127.0.0.1 helo=outside.example.org virus={EICAR_NAME} mail=")


def test_xclient_makes_the_next_hop_see_the_client(clamd: Clamd, start_daemon: Start) -> None:
    with Postfix() as postfix:
        daemon = start_daemon(
            f"OutAddress: {postfix.reinjection}", f"ClamAddress: {clamd.unix}", "XClient: on", "Header:"
        )
        with smtplib.SMTP(
            "127.0.0.1", daemon.port, local_hostname="outside.example.org", source_address=("127.0.0.77", 0)
        ) as client:
            client.sendmail("a@example.org", ["b@example.org"], CLEAN)
        (text,) = postfix.wait_for_messages(1)
        assert b"Received: from outside.example.org (unknown [127.0.0.77])" in text
        assert "clamsmtpd.localdomain" not in text.decode()


def test_helo_and_xclient(clamd: Clamd, start_daemon: Start) -> None:
    with Postfix() as postfix:
        daemon = start_daemon(f"OutAddress: {postfix.reinjection}", f"ClamAddress: {clamd.unix}", "XClient: on")
        with smtplib.SMTP("127.0.0.1", daemon.port, source_address=("127.0.0.78", 0)) as client:
            client.helo("old.example.org")
            client.sendmail("a@example.org", ["b@example.org"], CLEAN)
        (text,) = postfix.wait_for_messages(1)
        assert b"Received: from old.example.org (unknown [127.0.0.78])" in text
