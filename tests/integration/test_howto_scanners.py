"""How-to: several clamds, one of which goes away."""

from __future__ import annotations

import smtplib
from collections.abc import Callable

import pytest

from tests.support.clamd import Clamd
from tests.support.daemon import Daemon
from tests.support.howto import CLEAN, INFECTED, RECIPIENT, SENDER, HowTo, usual
from tests.support.process import free_port
from tests.support.sink import Sink

pytestmark = pytest.mark.root


def test_mail_is_scanned_while_one_of_three_is_away(start_daemon: Callable[..., Daemon], sink: Sink) -> None:
    limits = HowTo("several-clamds", {}).text("clamd.conf").splitlines()
    with Clamd(*limits) as here, Clamd(*limits) as there, Clamd(*limits) as yonder:
        howto = HowTo(
            "several-clamds",
            {
                **usual(here.unix.path, p10026=sink.address),
                "127.0.0.1:10025": f"127.0.0.1:{free_port()}",
                "192.0.2.10:3310": str(there.tcp),
                "192.0.2.11:3310": str(yonder.tcp),
            },
        )
        daemon = start_daemon(*howto.settings(), level=3)
        for scanner in (here.unix, there.tcp, yonder.tcp):
            daemon.wait_for_log(f"clamd at {scanner}: ClamAV ")
        here._program.stop()
        daemon.wait_for_log(f"clamd at {here.unix} is set aside")
        with smtplib.SMTP("127.0.0.1", daemon.port) as client:
            client.sendmail(SENDER, [RECIPIENT], CLEAN)
            client.sendmail(SENDER, [RECIPIENT], INFECTED)
        here.restart()
        daemon.wait_for_log(f"clamd at {here.unix} is back")
        howto.check_seen("log.txt", daemon.log())
        howto.check_used()
        (text,) = sink.messages
        assert b"X-Virus-Scanned" in text
