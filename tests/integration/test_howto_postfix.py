"""How-tos: Postfix after its queue, and before it."""

from __future__ import annotations

import smtplib
from collections.abc import Callable

import pytest

from clamsmtpd.values import TcpAddress
from tests.support.clamd import Clamd
from tests.support.daemon import Daemon
from tests.support.howto import CLEAN, INFECTED, RECIPIENT, SENDER, HowTo, usual
from tests.support.postfix import Postfix
from tests.support.process import free_port, wait_until

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

Start = Callable[..., Daemon]


def local() -> TcpAddress:
    return TcpAddress("127.0.0.1", free_port())


def send(postfix: Postfix, text: bytes) -> None:
    with smtplib.SMTP("127.0.0.1", postfix.address.port, local_hostname="outside.example.org") as client:
        client.sendmail(SENDER, [RECIPIENT], text)


def test_after_the_queue_a_clean_message_arrives_and_an_infected_one_does_not(
    clamd: Clamd, start_daemon: Start
) -> None:
    place, back = local(), local()
    changes = usual(clamd.unix.path, p10025=place, p10026=back)
    howto = HowTo(
        "postfix-after-queue",
        {**changes, "[127.0.0.1]:10025": f"[127.0.0.1]:{place.port}"},
    )
    # Everything is copied to one more address, which no_address_mappings keeps from happening twice.
    with Postfix(
        main=howto.text("main.cf"),
        master=howto.text("master.cf"),
        reinjection=back,
        settings={"always_bcc": "archive@example.org"},
    ) as postfix:
        daemon = start_daemon(*howto.settings())
        send(postfix, CLEAN)
        texts = postfix.wait_for_messages(2)
        send(postfix, INFECTED)
        daemon.wait_for_log("status=VIRUS")
        postfix.wait_for_log("Virus found; message discarded")
        howto.check_seen("log.txt", daemon.log())
        howto.check_seen("maillog.txt", postfix.log())
        howto.check_used()
        wait_until(lambda: postfix.queued() == 0, "the queue to be empty")
        assert len(postfix.messages()) == 2
        assert all(b"X-Virus-Scanned: ClamAV using ClamSMTP\n\nText.\n" in text for text in texts)


def test_before_the_queue_the_client_of_an_infected_message_is_told(clamd: Clamd, start_daemon: Start) -> None:
    place, back, front = local(), local(), local()
    howto = HowTo(
        "postfix-before-queue",
        {**usual(clamd.unix.path, p10025=place, p10026=back), "smtp      inet": f"{front} inet"},
    )
    with Postfix(master=howto.text("master.cf"), address=front, reinjection=back) as postfix:
        daemon = start_daemon(*howto.settings())
        send(postfix, CLEAN)
        (text,) = postfix.wait_for_messages(1)
        assert b"X-Virus-Scanned" in text
        with pytest.raises(smtplib.SMTPDataError) as refused:
            send(postfix, INFECTED)
        assert refused.value.smtp_code == 550
        assert refused.value.smtp_error == b"5.7.1 Virus found; message refused"
        postfix.wait_for_log("proxy-reject")
        howto.check_seen("maillog.txt", postfix.log())
        howto.check_used()
        assert "status=VIRUS" in daemon.log()
        wait_until(lambda: postfix.queued() == 0, "the queue to be empty")
        assert len(postfix.messages()) == 1
