"""How-to: Exim, whose first router sends what has not been scanned to the filter."""

from __future__ import annotations

import smtplib
from collections.abc import Callable

import pytest

from clamsmtpd.values import TcpAddress
from tests.support.clamd import Clamd
from tests.support.daemon import Daemon
from tests.support.exim import Exim
from tests.support.howto import CLEAN, INFECTED, RECIPIENT, SENDER, HowTo, usual
from tests.support.process import free_port

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

Start = Callable[..., Daemon]


def test_a_clean_message_arrives_and_an_infected_one_does_not(clamd: Clamd, start_daemon: Start) -> None:
    front, place, back = (TcpAddress("127.0.0.1", free_port()) for _ in range(3))
    howto = HowTo(
        "exim",
        {
            **usual(clamd.unix.path, p10025=place, p10026=back),
            "[0.0.0.0]:25 ; [::0]:25 ; [127.0.0.1]:10026": f"[127.0.0.1]:{front.port} ; [127.0.0.1]:{back.port}",
            "{10026}": f"{{{back.port}}}",
            "127.0.0.1::10025": f"127.0.0.1::{place.port}",
        },
    )
    with Exim(
        interfaces=howto.text("interfaces.conf"),
        first_router=howto.text("router.conf"),
        first_transport=howto.text("transport.conf"),
        address=front,
    ) as exim:
        daemon = start_daemon(*howto.settings())
        with smtplib.SMTP("127.0.0.1", front.port) as client:
            client.sendmail(SENDER, [RECIPIENT], CLEAN)
            (text,) = exim.wait_for_messages(1)
            client.sendmail(SENDER, [RECIPIENT], INFECTED)
        daemon.wait_for_log("status=VIRUS")
        exim.wait_for_log("Virus found; message discarded")
        howto.check_seen("mainlog.txt", exim.log())
        howto.check_used()
        assert text.endswith(b"X-Virus-Scanned: ClamAV using ClamSMTP\n\nText.\n")
        assert len(exim.messages()) == 1
        assert [line.rpartition(", ")[2][:12] for line in daemon.message_lines()] == ["status=CLEAN", "status=VIRUS"]
