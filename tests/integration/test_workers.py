"""Several workers under a supervisor: what they share, and what becomes of the others when one dies."""

from __future__ import annotations

import contextlib
import os
import signal
import smtplib
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.clamd import EICAR, Clamd
from tests.support.daemon import Daemon
from tests.support.process import free_port, wait_until
from tests.support.sink import Sink

Start = Callable[..., Daemon]

TEXT = b"Subject: x\r\n\r\ntext\r\n.\r\n"


def children(pid: int) -> list[int]:
    """Return the processes that one has started, those with no life left in them as well."""
    with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]
    return []


def state(pid: int) -> str:
    """Return the letter for what a process does, Z for one that has ended; nothing if there is none."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return file.read().rpartition(")")[2].split()[0]
    return ""


def gone(pid: int) -> bool:
    # In a container nobody may be there to bury an orphan.
    return state(pid) in ("", "Z")


def accepted_by(daemon: Daemon) -> list[int]:
    """Return for each connection so far the number of the worker, of two, that has accepted it: by its id."""
    lines = [line for line in daemon.log_lines() if "accepted connection" in line]
    return [int(line.partition(":")[0], 16) % 2 for line in lines]


def connect(daemon: Daemon) -> socket.socket:
    return socket.create_connection((daemon.host, daemon.port), timeout=20)


def greeting(client: socket.socket) -> bytes:
    return client.recv(1000)[:3]


def in_data(daemon: Daemon) -> smtplib.SMTP:
    """Return a client in the midst of its message."""
    client = smtplib.SMTP(daemon.host, daemon.port, timeout=20)
    client.ehlo("client.example")
    client.mail("a@example.org")
    client.rcpt("b@example.org")
    assert client.docmd("DATA")[0] == 354
    return client


def finish(client: smtplib.SMTP) -> int:
    """Send the rest of the message and leave; return the reply to it, 0 if there was none."""
    with contextlib.closing(client):
        try:
            client.send(TEXT)
            return client.getreply()[0]
        except (OSError, smtplib.SMTPServerDisconnected):
            return 0


def totals(daemon: Daemon) -> dict[str, int]:
    """Ask for the numbers."""

    def lines() -> list[str]:
        return [line for line in daemon.log_lines() if line.startswith("totals: ")]

    before = len(lines())
    daemon.send(signal.SIGUSR1)
    wait_until(lambda: len(lines()) > before, "the numbers in the log")
    fields = [field.split("=") for field in lines()[-1].removeprefix("totals: ").split(", ")]
    return {name: int(value) for name, value in fields}


@pytest.fixture
def daemon(clamd: Clamd, sink: Sink, start_daemon: Start) -> Daemon:
    return start_daemon(
        f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}", "Workers: 2", "MaxConnections: 50", level=3
    )


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as opened:
        yield opened


def test_one_worker_is_one_process(sink: Sink, start_daemon: Start) -> None:
    daemon = start_daemon(f"OutAddress: {sink.address}", "Workers: 1")
    with connect(daemon) as client:
        assert greeting(client) == b"220"
        assert children(daemon.pid) == []


def test_clients_are_spread_over_the_workers(daemon: Daemon, stack: contextlib.ExitStack) -> None:
    assert len(children(daemon.pid)) == 2
    clients = [stack.enter_context(connect(daemon)) for _ in range(50)]
    assert {greeting(client) for client in clients} == {b"220"}
    accepted = accepted_by(daemon)
    assert len(accepted) == 50
    # On a quiet machine 24 or 25; on a busy one it may not come to its turn in time.
    assert min(accepted.count(0), accepted.count(1)) >= 10


def test_ids_of_connections_are_given_once(daemon: Daemon, stack: contextlib.ExitStack) -> None:
    for _ in range(40):
        greeting(stack.enter_context(connect(daemon)))
    ids = [line.partition(":")[0] for line in daemon.log_lines() if "accepted connection" in line]
    assert len(set(ids)) == len(ids) == 40
    assert {int(tag, 16) % 2 for tag in ids} == {0, 1}


def test_no_client_too_many_is_served_however_many_come_at_once(daemon: Daemon, stack: contextlib.ExitStack) -> None:
    for _ in range(3):
        with ThreadPoolExecutor(40) as pool:
            clients = list(pool.map(lambda _: connect(daemon), range(150)))
            replies = list(pool.map(greeting, clients))
        assert (replies.count(b"220"), replies.count(b"421")) == (50, 100)
        for client in clients:
            client.close()
        # And all places come back.
        wait_until(lambda: totals(daemon)["sessions"] == 0, "the end of all sessions")
    counted = {name: number for name, number in totals(daemon).items() if number and name != "scanners"}
    assert counted == {"connections": 150, "refused": 300, "workers": 2}
    clients = [stack.enter_context(connect(daemon)) for _ in range(51)]
    assert [greeting(client) for client in clients] == [b"220"] * 50 + [b"421"]


def test_a_worker_that_is_killed_takes_only_its_own_sessions_along(daemon: Daemon, sink: Sink) -> None:
    clients = [in_data(daemon) for _ in range(50)]
    before = totals(daemon)
    victim, survivor = children(daemon.pid)
    lost = accepted_by(daemon).count(0)
    assert 0 < lost < 50
    os.kill(victim, signal.SIGKILL)
    line = daemon.wait_for_log("was killed by SIGKILL")
    assert line == (
        f"worker 1 (process {victim}) was killed by SIGKILL; sessions lost: {lost}; its place is taken at once"
    )
    replies = [finish(client) for client in clients]
    assert (replies.count(250), replies.count(0)) == (50 - lost, lost)
    assert len(sink.messages) == 50 - lost
    wait_until(lambda: len(children(daemon.pid)) == 2, "another worker")
    assert survivor in children(daemon.pid)
    wait_until(lambda: totals(daemon)["workers"] == 2, "both to serve")
    wait_until(lambda: totals(daemon)["sessions"] == 0, "the end of all sessions")
    after = totals(daemon)
    assert (before["connections"], after["connections"]) == (50, 50)
    assert after["clean"] == 50 - lost
    with contextlib.ExitStack() as stack:
        again = [stack.enter_context(connect(daemon)) for _ in range(51)]
        assert [greeting(client) for client in again] == [b"220"] * 50 + [b"421"]
    # No id is given a second time.
    ids = [line.partition(":")[0] for line in daemon.log_lines() if "accepted connection" in line]
    assert len(set(ids)) == len(ids) == 100


def test_one_that_is_killed_again_and_again_comes_back_more_slowly(daemon: Daemon) -> None:
    survivor = children(daemon.pid)[1]
    for deaths in range(1, 4):
        wait_until(lambda: len(children(daemon.pid)) == 2, "another worker")
        (victim,) = set(children(daemon.pid)) - {survivor}
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda deaths=deaths: daemon.log().count("SIGKILL") == deaths, "its end in the log")  # type: ignore[misc]
        with connect(daemon) as client:
            assert greeting(client) == b"220"
    ends = [line.rpartition("is taken ")[2] for line in daemon.log_lines() if "SIGKILL" in line]
    assert ends == ["at once", "in 0.5 s", "in 1 s"]


def test_a_stop_lets_all_transactions_end_and_leaves_no_process(daemon: Daemon, sink: Sink) -> None:
    workers = children(daemon.pid)
    clients = [in_data(daemon) for _ in range(10)]
    with connect(daemon) as idle:
        assert greeting(idle) == b"220"
        daemon.send(signal.SIGTERM)
        assert greeting(idle) == b"421"
    # The other worker may hear of it a moment later.
    wait_until(lambda: daemon.log().count("stopping: ") == len(workers), "all workers to take no more clients")
    with pytest.raises(ConnectionRefusedError):
        connect(daemon)
    assert [finish(client) for client in clients] == [250] * 10
    assert daemon.wait() == 0
    assert all(gone(pid) for pid in workers)
    assert len(sink.messages) == 10
    totals, stopped = daemon.log_lines()[-2:]
    counted = {name for name in totals.removeprefix("totals: ").split(", ") if not name.endswith("=0")}
    assert counted == {"connections=11", "clean=10", "octets=200"}
    assert stopped == "stopped"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_at_once_is_one_stop(daemon: Daemon, number: signal.Signals) -> None:
    # A terminal sends SIGINT to all of us, a service manager SIGTERM.
    client = in_data(daemon)
    for pid in (*children(daemon.pid), daemon.pid):
        os.kill(pid, number)
    daemon.wait_for_log("stopping: 1 connections to finish")
    assert finish(client) == 250
    assert daemon.wait() == 0


def test_asked_twice_they_do_not_wait_any_longer(daemon: Daemon) -> None:
    workers = children(daemon.pid)
    client = in_data(daemon)
    daemon.send(signal.SIGTERM)
    daemon.wait_for_log("stopping: 1 connections to finish")
    daemon.send(signal.SIGTERM)
    assert daemon.wait() == 1
    assert all(gone(pid) for pid in workers)
    assert daemon.log_lines()[-1] == "stopped before all transactions had ended"
    client.close()


def test_without_a_supervisor_the_workers_end_what_they_have_begun(daemon: Daemon) -> None:
    workers = children(daemon.pid)
    clients = [in_data(daemon) for _ in range(4)]
    daemon.send(signal.SIGKILL)
    assert daemon.wait() == -signal.SIGKILL
    wait_until(lambda: daemon.log().count("the supervisor is gone; stopping") == 2, "both to notice")
    # They hold nothing that the next daemon needs.
    with pytest.raises(ConnectionRefusedError):
        connect(daemon)
    assert [finish(client) for client in clients] == [250] * 4
    wait_until(lambda: all(gone(pid) for pid in workers), "the workers to end")


def test_the_numbers_are_those_of_all_workers(daemon: Daemon, stack: contextlib.ExitStack) -> None:
    for _ in range(10):
        with smtplib.SMTP(daemon.host, daemon.port) as client:
            client.sendmail("a@example.org", ["b@example.org"], b"Subject: x\r\n\r\n")
            client.sendmail("a@example.org", ["b@example.org"], b"Subject: x\r\n\r\n" + EICAR)
    greeting(stack.enter_context(connect(daemon)))
    wait_until(lambda: totals(daemon)["sessions"] == 1, "the others to leave")
    found = totals(daemon)
    octets = 10 * (len(b"Subject: x\r\n\r\n") * 2 + len(EICAR) + 2)
    assert found["octets"] == octets
    assert [found[name] for name in ("connections", "clean", "infected", "unscanned")] == [11, 10, 10, 0]
    assert [found[name] for name in ("sessions", "workers")] == [1, 2]


def test_one_process_alone_tells_its_numbers_too(clamd: Clamd, sink: Sink, start_daemon: Start) -> None:
    daemon = start_daemon(f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}", "Workers: 1")
    with smtplib.SMTP(daemon.host, daemon.port) as client:
        client.sendmail("a@example.org", ["b@example.org"], b"Subject: x\r\n\r\n")
        found = totals(daemon)
    assert (found["clean"], found["sessions"], found["workers"]) == (1, 1, 1)


def test_a_circle_is_refused_whichever_worker_it_comes_back_to(start_daemon: Start) -> None:
    port = free_port()
    daemon = start_daemon(
        f"OutAddress: 127.0.0.1:{port}", f"Listen: 127.0.0.1:{port}", "Workers: 2", "MaxConnections: 64", level=3
    )
    for _ in range(30):
        with connect(daemon) as client:
            assert greeting(client) == b"421"
    found = totals(daemon)
    # Each client's connection and the one that came back; more if whoever made that had no time yet to enter it.
    assert 60 <= found["connections"] < 300
    assert found["refused"] == 0
    assert "it comes from this filter itself" in daemon.log()


def test_the_next_daemon_can_start_while_orphans_finish(
    clamd: Clamd, sink: Sink, start_daemon: Start, tmp_path: Path
) -> None:
    port = free_port()
    lines = (
        f"OutAddress: {sink.address}",
        f"ClamAddress: {clamd.unix}",
        f"Listen: 127.0.0.1:{port}",
        f"PidFile: {tmp_path}/pid",
        "Workers: 2",
    )
    daemon = start_daemon(*lines)
    client = in_data(daemon)
    daemon.send(signal.SIGKILL)
    wait_until(lambda: daemon.log().count("the supervisor is gone; stopping") == 2, "both to notice")
    with start_daemon(*lines) as next_one:
        assert (tmp_path / "pid").read_text() == f"{next_one.pid}\n"
        assert finish(in_data(next_one)) == 250
        assert finish(client) == 250
