"""Exim as the next hop."""

from __future__ import annotations

import smtplib
from collections.abc import Callable

from tests.support.clamd import EICAR, Clamd
from tests.support.daemon import Daemon
from tests.support.exim import Exim

Start = Callable[..., Daemon]


def test_exim_takes_what_is_clean_and_nothing_else(clamd: Clamd, start_daemon: Start) -> None:
    with Exim() as exim:
        daemon = start_daemon(f"OutAddress: {exim.address}", f"ClamAddress: {clamd.tcp}")
        with smtplib.SMTP("127.0.0.1", daemon.port) as client:
            client.ehlo()
            assert "size" in client.esmtp_features
            assert {"pipelining", "chunking"} <= set(client.esmtp_features)
            assert "starttls" not in client.esmtp_features
            client.sendmail("a@example.org", ["b@example.org"], b"Subject: evil\r\n\r\n" + EICAR + b"\r\n")
            client.sendmail("a@example.org", ["b@example.org"], b"Subject: hello\r\n\r\n.text\r\n")
        (text,) = exim.wait_for_messages(1)
        assert b"X-Virus-Scanned: ClamAV using ClamSMTP\n" in text
        assert text.endswith(b"\n\n.text\n")
        assert len(exim.messages()) == 1
