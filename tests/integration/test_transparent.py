"""The transparent proxy for real: a client, a router with a redirect rule, and a server, each a network namespace."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.clamd import Clamd
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


def sh(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=30)


class Hosts:
    """Namespaces client, router and server in a row: 10.77.1.2 - 10.77.1.1|10.77.2.1 - 10.77.2.2, and IPv6 alike."""

    def __init__(self) -> None:
        tag = f"c{os.getpid() % 100_000}"
        self.client, self.router, self.server = (f"{tag}{name}" for name in "crs")

    def build(self) -> None:
        for name in (self.client, self.router, self.server):
            sh("ip", "netns", "add", name)
            sh("ip", "-n", name, "link", "set", "lo", "up")
        for number, end in ((1, self.client), (2, self.server)):
            inside, outside = f"v{number}", f"r{number}"
            sh("ip", "-n", self.router, "link", "add", outside, "type", "veth", "peer", "name", inside, "netns", end)
            for name, device, host in ((self.router, outside, 1), (end, inside, 2)):
                sh("ip", "-n", name, "addr", "add", f"10.77.{number}.{host}/24", "dev", device)
                sh("ip", "-n", name, "addr", "add", f"fd77:{number}::{host}/64", "dev", device, "nodad")
                sh("ip", "-n", name, "link", "set", device, "up")
            sh("ip", "-n", end, "route", "add", "default", "via", f"10.77.{number}.1")
            sh("ip", "-n", end, "route", "add", "default", "via", f"fd77:{number}::1")
        for setting in ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"):
            sh("ip", "netns", "exec", self.router, "sysctl", "-q", "-w", setting)

    def redirect(self, rules: str) -> None:
        run = subprocess.run(
            ["ip", "netns", "exec", self.router, "nft", "-f", "-"],
            input=rules.encode(),
            capture_output=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr

    def tear_down(self) -> None:
        for name in (self.client, self.router, self.server):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


INCOMING = (
    "table inet scan { chain in { type nat hook prerouting priority dstnat; tcp dport 25 redirect to :10025; }; }"
)
OUTGOING = "table inet loop { chain out { type nat hook output priority -100; tcp dport 25 redirect to :10025; }; }"

Inside = Callable[..., Program]


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    made = Hosts()
    try:
        made.build()
        yield made
    finally:
        made.tear_down()


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Inside]:
    with ExitStack() as stack:

        def start(name: str, *command: str) -> Program:
            program = Program(
                ["ip", "netns", "exec", name, *command], output=tmp_path / f"{name}-{len(os.listdir(tmp_path))}"
            )
            stack.callback(program.stop)
            return program

        yield start


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
