"""Clients that leave in every phase, in every way: nothing of them stays behind."""

from __future__ import annotations

import contextlib
import random
import smtplib
import socket
import struct
from collections.abc import Callable

import pytest

from tests.support.clamd import Clamd
from tests.support.daemon import Daemon
from tests.support.process import wait_until
from tests.support.sink import Sink

#: Descriptors of an idle session: the client and the next hop.
OF_A_SESSION = 2

LINES = [
    b"EHLO client.example.org\r\n",
    b"MAIL FROM:<a@example.org>\r\n",
    b"RCPT TO:<b@example.org>\r\n",
    b"DATA\r\n",
    b"Subject: x\r\n\r\n" + b"y" * 300_000 + b"\r\n",
    b".\r\n",
    b"QUIT\r\n",
]


def leave(port: int, draw: random.Random) -> None:
    """Say some of the lines, waiting for some of the replies, then close, half close or reset."""
    with socket.create_connection(("127.0.0.1", port)) as client, contextlib.suppress(OSError):
        for line in LINES[: draw.randrange(len(LINES) + 1)]:
            client.sendall(line)
            if draw.random() < 0.6:
                client.settimeout(0.02)
                with contextlib.suppress(TimeoutError):
                    client.recv(1000)
        way = draw.random()
        if way < 0.4:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif way < 0.6:
            client.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_stays_behind(clamd: Clamd, sink: Sink, start_daemon: Callable[..., Daemon], seed: int) -> None:
    daemon = start_daemon(f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}", "MaxConnections: 400", level=3)
    # With the first connection everything has been opened that stays open.
    with smtplib.SMTP("127.0.0.1", daemon.port) as client:
        client.sendmail("a@example.org", ["b@example.org"], b"Subject: first\r\n\r\n")
        before = daemon.descriptors() - OF_A_SESSION
    draw = random.Random(seed)
    for _ in range(300):
        leave(daemon.port, draw)
    wait_until(lambda: daemon.descriptors() <= before, "all descriptors to be closed", seconds=20)
    assert daemon.spooled() == []
    assert "internal error" not in daemon.log()
    assert daemon.stop(seconds=5) == 0
