"""How-to: HAProxy in front, the filter, and a Postfix that is told who the client is."""

from __future__ import annotations

import smtplib
from collections.abc import Callable

import pytest

from clamsmtpd.values import TcpAddress
from tests.support.clamd import Clamd
from tests.support.daemon import Daemon
from tests.support.haproxy import HAProxy
from tests.support.howto import CLEAN, INFECTED, RECIPIENT, SENDER, HowTo, usual
from tests.support.postfix import Postfix
from tests.support.process import free_port

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

CLIENT = "127.0.0.99"


def test_the_client_is_known_on_the_whole_way(clamd: Clamd, start_daemon: Callable[..., Daemon]) -> None:
    front, place, back = (TcpAddress("127.0.0.1", free_port()) for _ in range(3))
    howto = HowTo(
        "haproxy",
        {
            **usual(clamd.unix.path, p10026=back),
            "192.0.2.2:10025": str(place),
            "TrustedClients: 192.0.2.1": "TrustedClients: 127.0.0.1",
            "bind :25": f"bind {front}",
            "198.51.100.7": CLIENT,
        },
    )
    with Postfix(master=howto.text("master.cf"), reinjection=back) as postfix:
        daemon = start_daemon(*howto.settings())
        with (
            HAProxy(place, relay=howto.text("haproxy.cfg"), address=front) as proxy,
            smtplib.SMTP(
                "127.0.0.1", front.port, local_hostname="outside.example.org", source_address=(CLIENT, 0)
            ) as client,
        ):
            client.sendmail(SENDER, [RECIPIENT], CLEAN)
            client.sendmail(SENDER, [RECIPIENT], INFECTED)
            assert proxy.log() == ""
        (text,) = postfix.wait_for_messages(1)
        daemon.wait_for_log("status=VIRUS")
        howto.check_seen("log.txt", daemon.log())
        howto.check_used()
        assert f"Received: from outside.example.org (unknown [{CLIENT}])".encode() in text
        assert b"X-Virus-Scanned" in text
