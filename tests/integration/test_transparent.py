"""The transparent proxy for real: a client, a router with a redirect rule, and a server, each a network namespace."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.clamd import Clamd
from tests.support.hosts import Hosts, Inside
from tests.support.process import Program, wait_until

pytestmark = pytest.mark.root

_SERVER = """
import socketserver
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        say = lambda line: self.wfile.write(line + b"\\r\\n")
        say(b"220 far.example ESMTP")
        text = False
        for line in self.rfile:
            print(self.client_address[0], line, flush=True)
            if text:
                if line == b".\\r\\n":
                    text = False
                    say(b"250 queued far away")
            elif line.startswith(b"DATA"):
                text = True
                say(b"354 go")
            elif line.startswith(b"QUIT"):
                say(b"221 bye")
                return
            else:
                say(b"250 ok")
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    address_family = __import__("socket").AF_INET6
Server(("::", 25), Handler).serve_forever()
"""

_CLIENT = """
import smtplib, sys
with smtplib.SMTP(sys.argv[1], int(sys.argv[2]), timeout=20) as client:
    client.sendmail("a@example.org", ["b@example.org"], b"Subject: x\\r\\n\\r\\ntext\\r\\n")
    print("sent")
"""


INCOMING = (
    "table inet scan { chain in { type nat hook prerouting priority dstnat; tcp dport 25 redirect to :10025; }; }"
)
OUTGOING = "table inet loop { chain out { type nat hook output priority -100; tcp dport 25 redirect to :10025; }; }"


def proxy(inside: Inside, hosts: Hosts, clamd: Clamd, tmp_path: Path) -> Program:
    config = tmp_path / "conf"
    config.write_text(
        f"TransparentProxy: on\nListen: 10025\nClamAddress: {clamd.unix}\nTempDirectory: {tmp_path}\nXClient: off\n"
    )
    daemon = inside(hosts.router, sys.executable, "-m", "clamsmtpd", "-d", "4", "-f", str(config))
    daemon.wait_until(lambda: "accepting connections" in daemon.text(), "the proxy to accept connections")
    return daemon


@pytest.mark.parametrize(("destination", "client"), [("10.77.2.2", "10.77.1.2"), ("fd77:2::2", "fd77:1::2")])
def test_mail_goes_where_the_client_meant_it_to_go(
    destination: str, client: str, hosts: Hosts, inside: Inside, clamd: Clamd, tmp_path: Path
) -> None:
    hosts.redirect(INCOMING)
    server = inside(hosts.server, sys.executable, "-c", _SERVER)
    daemon = proxy(inside, hosts, clamd, tmp_path)
    wait_until(lambda: server.running, "the server to run")
    sent = inside(hosts.client, sys.executable, "-c", _CLIENT, destination, "25")
    assert sent.wait() == 0, sent.text() + daemon.text()
    assert "sent" in sent.text()
    # The server saw the router, and the field: the mail came through the filter.
    assert "X-Virus-Scanned: ClamAV using ClamSMTP" in server.text()
    assert f"accepted connection from: {client}" in daemon.text()


def test_a_connection_made_straight_to_the_proxy_is_no_way_to_itself(
    hosts: Hosts, inside: Inside, clamd: Clamd, tmp_path: Path
) -> None:
    hosts.redirect(INCOMING)
    daemon = proxy(inside, hosts, clamd, tmp_path)
    for destination in ("10.77.1.1", "fd77:1::1"):
        sent = inside(hosts.client, sys.executable, "-c", _CLIENT, destination, "10025")
        assert sent.wait() != 0
        assert "421" in sent.text()
    assert daemon.text().count("made straight to us") == 2


def test_our_own_connection_redirected_back_to_us_is_a_loop(
    hosts: Hosts, inside: Inside, clamd: Clamd, tmp_path: Path
) -> None:
    # The classic mistake: a rule on what the router itself sends, without an exception for the proxy.
    hosts.redirect(INCOMING)
    hosts.redirect(OUTGOING)
    daemon = proxy(inside, hosts, clamd, tmp_path)
    sent = inside(hosts.client, sys.executable, "-c", _CLIENT, "10.77.2.2", "25")
    assert sent.wait() != 0
    assert "421" in sent.text()
    assert "it comes from this filter itself" in daemon.text()
    assert daemon.text().count("accepted connection") < 6
