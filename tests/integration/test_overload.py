"""More connections than select() could watch, no descriptors left, and a log that does not fill."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import smtplib
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.clamd import EICAR, Clamd
from tests.support.daemon import Daemon
from tests.support.process import free_port, wait_until
from tests.support.sink import Sink

Start = Callable[..., Daemon]


def connect(daemon: Daemon) -> socket.socket:
    return socket.create_connection(("127.0.0.1", daemon.port), timeout=20)


def greeting(connection: socket.socket) -> bytes:
    return connection.recv(1000)


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


@pytest.mark.parametrize("workers", [1, 2])
def test_many_clients_hammer_and_each_has_a_reply(clamd: Clamd, sink: Sink, start_daemon: Start, workers: int) -> None:
    daemon = start_daemon(
        f"OutAddress: {sink.address}",
        f"ClamAddress: {clamd.unix}",
        "MaxConnections: 10",
        f"Workers: {workers}",
        level=3,
    )
    served = 0
    for _ in range(3):
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connect(daemon)) for _ in range(200)]
            greetings = [greeting(client) for client in clients]
            assert all(line.startswith((b"220 ", b"421 4.3.2 ")) for line in greetings)
            taken = [client for client, line in zip(clients, greetings, strict=True) if line.startswith(b"220 ")]
            assert 0 < len(taken) <= 10
            for client in taken:
                deliver(client)
            served += len(taken)
        wait_until(lambda: all_left(daemon), "the sessions to end")
    assert len(sink.wait_for_messages(served)) == served
    complaints = [line for line in daemon.log_lines() if "MaxConnections is reached" in line]
    assert 0 < len(complaints) <= 2 * workers, "one in ten seconds for each process"


def deliver(client: socket.socket) -> None:
    for line in (b"EHLO me", b"MAIL FROM:<a@example.org>", b"RCPT TO:<b@example.org>", b"DATA", b"x\r\n.", b"QUIT"):
        client.sendall(line + b"\r\n")
        assert client.recv(1000)[:1] in b"23"


def all_left(daemon: Daemon) -> bool:
    """Whether no client has a place, by a connection that gets one and all others that do then."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(daemon)) for _ in range(10)]
        return all(greeting(client).startswith(b"220 ") for client in clients)


def test_descriptors_run_out_at_every_step_and_no_message_is_lost(
    clamd: Clamd, sink: Sink, start_daemon: Start
) -> None:
    """To accept, for the next hop, clamd, the text in memory, in a file, in quarantine, a hook: one more each time."""
    daemon = start_daemon(
        f"OutAddress: {sink.address}",
        f"ClamAddress: {clamd.unix}",
        "Quarantine: on",
        "Action: bounce",
        "VirusAction: echo >> ../hooks",
        level=3,
    )
    texts = (
        b"Subject: small\r\n\r\n",
        b"Subject: large\r\n\r\n" + b"y\r\n" * 100_000,
        b"Subject: dots\r\n\r\n" + b"..x\r\n" * 30_000,
        b"Subject: virus\r\n\r\n" + EICAR,
    )

    def outcome(text: bytes) -> int:
        try:
            with smtplib.SMTP("127.0.0.1", daemon.port, timeout=20) as client:
                client.sendmail("a@example.org", ["b@example.org"], text)
        except smtplib.SMTPResponseException as refused:
            return refused.smtp_code
        return 250

    assert [outcome(text) for text in texts] == [250, 250, 250, 550]

    def used_now() -> set[int]:
        return {int(name) for name in os.listdir(f"/proc/{daemon.pid}/fd")}

    def settled() -> bool:
        earlier = used_now()
        time.sleep(0.3)
        return used_now() == earlier

    # Connections to clamd are kept for some time; those of the sessions, and the hook, are to be gone.
    wait_until(settled, "the daemon to come to rest")
    before, used = daemon.descriptors(), used_now()
    # From where there is none left, also not between those that are open.
    free = min(set(range(len(used) + 1)) - used)
    codes: list[int] = []
    for limit in range(free, max(used) + 17):
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (limit, 4096))
        codes += [outcome(text) for text in texts]
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (4096, 4096))
    assert set(codes) <= {250, 421, 451, 550}, codes
    assert codes[0] == 421
    assert 451 in codes
    assert codes[-4:] == [250, 250, 250, 550]
    assert 550 not in (*codes[0::4], *codes[1::4], *codes[2::4])
    assert 250 not in codes[3::4], "a virus went through"
    assert [outcome(text) for text in texts] == [250, 250, 250, 550]
    delivered = codes.count(250) + 6
    assert len(sink.wait_for_messages(delivered)) == delivered
    wait_until(lambda: daemon.descriptors() <= before + 2, "what was open to be closed")
    spooled = daemon.spooled()
    assert len(spooled) == codes.count(550) + 2
    assert all(name.startswith("virus.") for name in spooled)
    assert "internal error" not in daemon.log()


def test_a_limit_of_file_sizes_is_451_and_not_the_end(clamd: Clamd, sink: Sink, start_daemon: Start) -> None:
    """SIGXFSZ (setrlimit(2)) would end a process that did not ignore it."""
    daemon = start_daemon(f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}", level=1)
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    large = b"Subject: l\r\n\r\n" + b"y\r\n" * 100_000
    with smtplib.SMTP("127.0.0.1", daemon.port, timeout=20) as client:
        with pytest.raises(smtplib.SMTPDataError) as refused:
            client.sendmail("a@example.org", ["b@example.org"], large)
        assert (refused.value.smtp_code, refused.value.smtp_error[:5]) == (451, b"4.3.1")
        client.sendmail("a@example.org", ["b@example.org"], b"Subject: s\r\n\r\n")
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        client.sendmail("a@example.org", ["b@example.org"], large)
    assert len(sink.wait_for_messages(2)) == 2
    assert daemon.wait_for_log("cannot store the message in ").endswith(": File too large")


# The log


def counted(lines: list[str], text: str) -> tuple[int, int]:
    """Return how many lines with ``text`` there are, and how many of their kind were left out by their own word."""
    of_kind = [line for line in lines if text in line]
    more = [int(line.split()[0].replace(",", "")) for line in of_kind if " more like this in " in line]
    return len(of_kind), sum(more)


def test_a_next_hop_that_refuses_every_connection_does_not_fill_the_log(start_daemon: Start) -> None:
    daemon = start_daemon(f"OutAddress: 127.0.0.1:{free_port()}", level=3)
    for _ in range(300):
        with connect(daemon) as client:
            assert greeting(client).startswith(b"421 4.4.1 ")
    daemon.send(signal.SIGTERM)
    assert daemon.wait() == 0
    lines = daemon.log_lines()
    shown, left_out = counted(lines, "cannot connect to")
    assert (shown, left_out) == (20 + 1, 280)
    assert sum("accepted connection from" in line for line in lines) == 300


def test_messages_without_a_verdict_do_not_fill_the_log_but_each_has_its_line(
    sink: Sink, start_daemon: Start, tmp_path: Path
) -> None:
    daemon = start_daemon(f"OutAddress: {sink.address}", f"ClamAddress: {tmp_path}/none", "TimeOut: 1", level=3)

    def send(number: int) -> None:
        # No two are the same: one that is would share the verdict of the other.
        with smtplib.SMTP("127.0.0.1", daemon.port, timeout=20) as client:
            with pytest.raises(smtplib.SMTPDataError) as refused:
                client.sendmail("a@example.org", ["b@example.org"], b"Subject: %d\r\n\r\n" % number)
            assert refused.value.smtp_code == 451

    # Each waits for a scanner until its time is over.
    with ThreadPoolExecutor(25) as clients:
        list(clients.map(send, range(50)))
    daemon.send(signal.SIGTERM)
    assert daemon.wait() == 0
    shown, left_out = counted(daemon.log_lines(), "no verdict")
    assert 20 < shown <= 20 + 1 + 10
    assert (shown - 1) + left_out == 50
    assert len(daemon.message_lines()) == 50, "programs count them"


def _cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.root
def test_a_full_disk_is_451_and_nothing_is_left(
    clamd: Clamd, sink: Sink, start_daemon: Start, tmp_path: object
) -> None:
    import subprocess  # noqa: PLC0415

    folder = str(tmp_path)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M,mode=1777", "tmpfs", folder], check=True)
    try:
        daemon = start_daemon(
            f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}", f"TempDirectory: {folder}", level=3
        )
        with smtplib.SMTP("127.0.0.1", daemon.port) as client:
            with pytest.raises(smtplib.SMTPDataError) as refused:
                client.sendmail(
                    "a@example.org", ["b@example.org"], b"Subject: x\r\n\r\n" + (b"QUIT" * 19 + b"\r\n") * 40_000
                )
            assert (refused.value.smtp_code, refused.value.smtp_error[:5]) == (451, b"4.3.1")
            client.sendmail("a@example.org", ["b@example.org"], b"Subject: y\r\n\r\n")
            for _ in range(60):
                with pytest.raises(smtplib.SMTPDataError):
                    client.sendmail("a@example.org", ["b@example.org"], b"Subject: x\r\n\r\n" + b"x\r\n" * 400_000)
        assert len(sink.wait_for_messages(1)) == 1
        assert os.listdir(folder) == []
        daemon.send(signal.SIGTERM)
        assert daemon.wait() == 0
        shown, left_out = counted(daemon.log_lines(), "cannot store the message in")
        assert shown < 61
        assert shown - 1 + left_out == 61
    finally:
        subprocess.run(["umount", folder], check=True)
