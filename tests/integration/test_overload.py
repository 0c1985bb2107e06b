"""More clients than places, more connections than select() could watch, and no descriptors left."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import smtplib
import socket
import time
from collections.abc import Callable

import pytest

from tests.support.clamd import Clamd
from tests.support.daemon import Daemon
from tests.support.sink import Sink

Start = Callable[..., Daemon]


def connect(daemon: Daemon) -> socket.socket:
    return socket.create_connection(("127.0.0.1", daemon.port), timeout=20)


def greeting(connection: socket.socket) -> bytes:
    return connection.recv(1000)


def test_one_client_too_many_is_told_421_and_the_place_comes_back(
    clamd: Clamd, sink: Sink, start_daemon: Start
) -> None:
    daemon = start_daemon(f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}", "MaxConnections: 2")
    with connect(daemon) as first, connect(daemon) as second:
        assert greeting(first).startswith(b"220 ")
        assert greeting(second).startswith(b"220 ")
        with connect(daemon) as third:
            assert greeting(third).startswith(b"421 4.3.2 ")
            assert third.recv(10) == b""
        first.sendall(b"QUIT\r\n")
        assert first.recv(100).startswith(b"221 ")
        end = time.monotonic() + 10
        while time.monotonic() < end:
            with connect(daemon) as fourth:
                if greeting(fourth).startswith(b"220 "):
                    return
    pytest.fail("the place did not come back")


def test_more_connections_than_select_could_watch(clamd: Clamd, start_daemon: Start) -> None:
    # Each session has a descriptor to the client and one to the next hop: well above 1023.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = 800
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    try:
        with Sink() as sink, contextlib.ExitStack() as stack:
            daemon = start_daemon(
                f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}", f"MaxConnections: {number}", level=2
            )
            clients = []
            for _ in range(number):
                clients.append(stack.enter_context(connect(daemon)))
                assert greeting(clients[-1]).startswith(b"220 ")
            assert daemon.descriptors() > 1023
            last = clients[-1]
            for line in (b"MAIL FROM:<a@example.org>", b"RCPT TO:<b@example.org>", b"DATA"):
                last.sendall(line + b"\r\n")
                assert last.recv(1000)[:1] in b"23"
            last.sendall(b"x\r\n.\r\n")
            assert last.recv(1000).startswith(b"250 ")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_descriptor_left_is_421_without_a_busy_loop(clamd: Clamd, sink: Sink, start_daemon: Start) -> None:
    daemon = start_daemon(f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}", "MaxConnections: 64")
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(connect(daemon))
        assert greeting(first).startswith(b"220 ")
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (daemon.descriptors(), 4096))
        refused = [stack.enter_context(connect(daemon)) for _ in range(5)]
        assert all(greeting(client).startswith(b"421 4.3.2 ") for client in refused)
        before = _cpu_seconds(daemon.pid)
        time.sleep(1)
        assert _cpu_seconds(daemon.pid) - before < 0.5
        first.sendall(b"NOOP\r\n")
        assert first.recv(100).startswith(b"250 ")
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (4096, 4096))
    with smtplib.SMTP("127.0.0.1", daemon.port) as client:
        client.sendmail("a@example.org", ["b@example.org"], b"Subject: x\r\n\r\n")
    assert len(sink.wait_for_messages(1)) == 1
    assert daemon.wait_for_log("cannot accept a connection: ")


def _cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_stopped_clamd_is_451_and_the_daemon_goes_on(sink: Sink, start_daemon: Start) -> None:
    with Clamd() as clamd:
        daemon = start_daemon(f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}", "TimeOut: 2")
        os.kill(clamd._program.pid, signal.SIGSTOP)
        with smtplib.SMTP("127.0.0.1", daemon.port) as client:
            with pytest.raises(smtplib.SMTPDataError) as refused:
                client.sendmail("a@example.org", ["b@example.org"], b"Subject: x\r\n\r\n")
            assert refused.value.smtp_code == 451
            os.kill(clamd._program.pid, signal.SIGCONT)
            client.sendmail("a@example.org", ["b@example.org"], b"Subject: y\r\n\r\n")
    assert len(sink.wait_for_messages(1)) == 1


@pytest.mark.root
def test_a_full_disk_is_451_and_nothing_is_left(
    clamd: Clamd, sink: Sink, start_daemon: Start, tmp_path: object
) -> None:
    import subprocess  # noqa: PLC0415

    folder = str(tmp_path)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M,mode=1777", "tmpfs", folder], check=True)
    try:
        daemon = start_daemon(f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}", f"TempDirectory: {folder}")
        with smtplib.SMTP("127.0.0.1", daemon.port) as client:
            with pytest.raises(smtplib.SMTPDataError) as refused:
                client.sendmail(
                    "a@example.org", ["b@example.org"], b"Subject: x\r\n\r\n" + (b"QUIT" * 19 + b"\r\n") * 40_000
                )
            assert (refused.value.smtp_code, refused.value.smtp_error[:5]) == (451, b"4.3.1")
            client.sendmail("a@example.org", ["b@example.org"], b"Subject: y\r\n\r\n")
        assert len(sink.wait_for_messages(1)) == 1
        assert os.listdir(folder) == []
        daemon.stop()
    finally:
        subprocess.run(["umount", folder], check=True)
