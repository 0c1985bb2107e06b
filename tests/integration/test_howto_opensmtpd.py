"""How-to: OpenSMTPD, which tells by a tag what has been scanned."""

from __future__ import annotations

import smtplib
from collections.abc import Callable

import pytest

from clamsmtpd.values import TcpAddress
from tests.support.clamd import Clamd
from tests.support.daemon import Daemon
from tests.support.howto import CLEAN, INFECTED, RECIPIENT, SENDER, HowTo, usual
from tests.support.opensmtpd import OpenSmtpd
from tests.support.process import free_port, wait_until

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

Start = Callable[..., Daemon]


def test_a_clean_message_arrives_and_an_infected_one_does_not(clamd: Clamd, start_daemon: Start) -> None:
    front, place, back = (TcpAddress("127.0.0.1", free_port()) for _ in range(3))
    howto = HowTo(
        "opensmtpd",
        {
            **usual(clamd.unix.path, p10025=place, p10026=back),
            "listen on 0.0.0.0 port 25": f"listen on 127.0.0.1 port {front.port}",
            "lo port 10026": f"127.0.0.1 port {back.port}",
            'action "local" maildir': 'action "local" maildir "/mail" virtual { "@" = nobody }',
        },
    )
    with OpenSmtpd(configuration=howto.text("smtpd.conf"), address=front) as opensmtpd:
        daemon = start_daemon(*howto.settings())
        with smtplib.SMTP("127.0.0.1", front.port) as client:
            client.sendmail(SENDER, [RECIPIENT], CLEAN)
            (text,) = opensmtpd.wait_for_messages(1)
            client.sendmail(SENDER, [RECIPIENT], INFECTED)
        daemon.wait_for_log("status=VIRUS")
        wait_until(lambda: "Virus found; message discarded" in opensmtpd.log(), "OpenSMTPD to log the reply")
        howto.check_seen("maillog.txt", opensmtpd.log())
        howto.check_used()
        assert text.endswith(b"X-Virus-Scanned: ClamAV using ClamSMTP\n\nText.\n")
        assert len(opensmtpd.messages()) == 1
