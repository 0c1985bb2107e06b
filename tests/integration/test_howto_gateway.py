"""How-to: a gateway whose nftables redirect mail to the filter, and the server that it was meant for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.clamd import Clamd
from tests.support.daemon import Daemon
from tests.support.hosts import Hosts, Inside
from tests.support.howto import CLEAN, INFECTED, RECIPIENT, SENDER, HowTo, usual

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

_SERVER = """
import time
from tests.support.sink import Sink
with Sink(host="10.77.2.2", port=25) as sink:
    seen = 0
    while True:
        for text in sink.messages[seen:]:
            print("arrived:", text, flush=True)
            seen += 1
        time.sleep(0.01)
"""

_CLIENT = """
import smtplib, sys
with smtplib.SMTP("10.77.2.2", 25, timeout=20) as client, open(sys.argv[3], "rb") as text:
    try:
        client.sendmail(sys.argv[1], [sys.argv[2]], text.read())
    except smtplib.SMTPDataError as error:
        print(error.smtp_code, error.smtp_error.decode())
    else:
        print("sent")
"""


def test_mail_through_the_gateway_is_scanned_and_a_virus_is_refused(
    hosts: Hosts, inside: Inside, clamd: Clamd, start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    howto = HowTo("gateway", {**usual(clamd.unix.path), '"lan0"': '"r1"'})
    hosts.redirect(howto.text("mailscan.nft"))
    server = inside(hosts.server, sys.executable, "-c", _SERVER)
    daemon = start_daemon(*howto.settings(), wrapper=["ip", "netns", "exec", hosts.router])
    for name, text, told in (
        ("clean", CLEAN, "sent"),
        ("infected", INFECTED, "550 5.7.1 Virus found; message refused"),
    ):
        (tmp_path / f"{name}.eml").write_bytes(text)
        command = [sys.executable, "-c", _CLIENT, SENDER, RECIPIENT, str(tmp_path / f"{name}.eml")]
        client = inside(hosts.client, *command)
        assert client.wait() == 0, client.text() + daemon.log()
        assert client.text().strip() == told
    daemon.wait_for_log("status=VIRUS")
    howto.check_seen("log.txt", daemon.log())
    howto.check_used()
    server.wait_until(lambda: "arrived:" in server.text(), "the clean message to arrive")
    assert server.text().count("arrived:") == 1
    assert "X-Virus-Scanned: ClamAV using ClamSMTP" in server.text()


def test_nobody_on_the_other_side_of_the_gateway_gets_to_the_filter(hosts: Hosts, inside: Inside) -> None:
    howto = HowTo("gateway", {'"lan0"': '"r1"'})
    hosts.redirect(howto.text("mailscan.nft"))
    listening = "import socket, time; kept = socket.create_server(('', 10025)); print('up', flush=True); time.sleep(60)"
    proxy = inside(hosts.router, sys.executable, "-c", listening)
    proxy.wait_until(lambda: "up" in proxy.text(), "the port to be open")
    for name, address, status in ((hosts.client, "10.77.1.1", 0), (hosts.server, "10.77.2.1", 1)):
        connect = f"import socket; socket.create_connection(('{address}', 10025), timeout=1)"
        assert inside(name, sys.executable, "-c", connect).wait() == status
