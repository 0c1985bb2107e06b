"""Real clients through the daemon as a process, with a real clamd, to a recording next hop."""

from __future__ import annotations

import shutil
import smtplib
import socket
import subprocess
from collections.abc import Callable

import pytest

from tests.support.clamd import EICAR, EICAR_NAME, Clamd
from tests.support.daemon import Daemon
from tests.support.sink import Sink

Start = Callable[..., Daemon]

FIELD = b"X-Virus-Scanned: ClamAV using ClamSMTP\r\n"
CLEAN = b"Subject: hello\r\nFrom: a@example.org\r\nTo: b@example.org\r\n\r\nText.\r\n..\r\n.\r\n"
INFECTED = b"Subject: evil\r\n\r\n" + EICAR + b"\r\n"


@pytest.fixture(params=["unix", "tcp"])
def daemon(request: pytest.FixtureRequest, clamd: Clamd, sink: Sink, start_daemon: Start) -> Daemon:
    return start_daemon(f"OutAddress: {sink.address}", f"ClamAddress: {getattr(clamd, request.param)}")


def run(*command: str, text: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    assert shutil.which(command[0]), f"{command[0]} is missing: scripts/setup test installs it"
    return subprocess.run(command, input=text, capture_output=True, timeout=50, check=False)


def test_smtplib(daemon: Daemon, sink: Sink) -> None:
    with smtplib.SMTP("127.0.0.1", daemon.port) as client:
        client.sendmail("a@example.org", ["b@example.org", "c@example.org"], CLEAN)
        refused = client.sendmail("a@example.org", ["b@example.org"], INFECTED)
        client.sendmail("<>", ["b@example.org"], b"no header\r\n")
    assert refused == {}
    first, second = sink.wait_for_messages(2)
    header, empty, body = CLEAN.partition(b"\r\n\r\n")
    assert first == header + b"\r\n" + FIELD + b"\r\n" + body.replace(b"\r\n.", b"\r\n..").replace(
        b"\r\n...\r", b"\r\n...\r"
    )
    assert empty
    assert second == FIELD + b"no header\r\n"
    daemon.wait_for_log("from=<>")
    assert daemon.message_lines() == [
        "from=a@example.org, to=b@example.org, to=c@example.org, status=CLEAN",
        f"from=a@example.org, to=b@example.org, status=VIRUS:{EICAR_NAME}",
        "from=<>, to=b@example.org, status=CLEAN",
    ]


def test_swaks(daemon: Daemon, sink: Sink) -> None:
    common = ("swaks", "--server", "127.0.0.1", "--port", str(daemon.port), "--from", "a@example.org")
    clean = run(*common, "--to", "b@example.org,c@example.org", "--body", "hello")
    assert clean.returncode == 0, clean.stdout
    infected = run(*common, "--to", "b@example.org", "--data", "-", text=INFECTED)
    assert infected.returncode == 0, infected.stdout
    assert b"250 2.0.0 Virus found; message discarded" in infected.stdout
    assert FIELD in sink.wait_for_messages(1)[0]
    assert len(sink.messages) == 1


def test_msmtp(daemon: Daemon, sink: Sink) -> None:
    sent = run(
        *("msmtp", "--file=/dev/null", "--host=127.0.0.1", f"--port={daemon.port}", "--tls=off", "--auth=off"),
        *("--from=a@example.org", "b@example.org"),
        text=b"Subject: hello\n\ntext\n.dot\n",
    )
    assert sent.returncode == 0, sent.stderr
    (text,) = sink.wait_for_messages(1)
    assert text.endswith(FIELD + b"\r\ntext\r\n..dot\r\n")


def test_smtp_source(daemon: Daemon, sink: Sink) -> None:
    # Twenty messages over five sessions at once; smtp-source keeps its connections.
    sent = run("/usr/sbin/smtp-source", "-d", "-m", "20", "-s", "5", "-l", "3000", f"127.0.0.1:{daemon.port}")
    assert sent.returncode == 0, sent.stderr
    texts = sink.wait_for_messages(20)
    assert len(texts) == 20
    assert all(FIELD in text for text in texts)


def test_a_client_on_ipv6(clamd: Clamd, sink: Sink, start_daemon: Start) -> None:
    daemon = start_daemon("Listen: [::1]:0".replace(":0", f":{_free_port_v6()}"), f"OutAddress: {sink.address}",
                          f"ClamAddress: {clamd.unix}", "Header: X-Client: %i at %l")  # fmt: skip
    with smtplib.SMTP("::1", daemon.port) as client:
        client.sendmail("a@example.org", ["b@example.org"], b"Subject: x\r\n\r\n")
    assert b"X-Client: ::1 at ::1\r\n" in sink.wait_for_messages(1)[0]
    assert daemon.wait_for_log("accepted connection from: ::1")


def test_all_addresses_by_default(clamd: Clamd, sink: Sink, start_daemon: Start) -> None:
    port = _free_port_v6()
    daemon = start_daemon(f"Listen: {port}", f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}")
    for host in ("127.0.0.1", "::1", "127.0.0.9"):
        with smtplib.SMTP(host, port) as client:
            assert client.noop()[0] == 250
    accepted = [line.partition(": ")[2] for line in daemon.log_lines() if "accepted connection" in line]
    assert accepted == [f"accepted connection from: {host}" for host in ("127.0.0.1", "::1", "127.0.0.1")]


def _free_port_v6() -> int:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as probe:
        return int(probe.getsockname()[1])


def test_a_host_name_as_next_hop(clamd: Clamd, sink: Sink, start_daemon: Start) -> None:
    daemon = start_daemon(f"OutAddress: localhost:{sink.port}", f"ClamAddress: {clamd.unix}")
    with smtplib.SMTP("127.0.0.1", daemon.port) as client:
        client.sendmail("a@example.org", ["b@example.org"], CLEAN)
    assert len(sink.wait_for_messages(1)) == 1


@pytest.mark.parametrize("size", [50_000_000])
def test_fifty_megabytes_pass_octet_for_octet(clamd: Clamd, sink: Sink, start_daemon: Start, size: int) -> None:
    daemon = start_daemon(f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}", "Header:")
    every = bytes(octet for octet in range(256) if octet not in b"\r\n")
    line = every * 300 + b"\r\n"
    text = (line + b"..\r\n" + b"x" * 4000 + b"\r\n") * (size // (len(line) + 4006))
    with socket.create_connection(("127.0.0.1", daemon.port)) as client:
        replies = client.makefile("rb")
        replies.readline()
        for command in (b"HELO x", b"MAIL FROM:<a@example.org>", b"RCPT TO:<b@example.org>", b"DATA"):
            client.sendall(command + b"\r\n")
            replies.readline()
        client.sendall(text + b".\r\n")
        assert replies.readline() == b"250 2.0.0 Ok: recorded\r\n"
    assert sink.wait_for_messages(1)[0] == text
    assert daemon.spooled() == []
