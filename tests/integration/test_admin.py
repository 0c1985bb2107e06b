"""The daemon seen from outside: one worker and two, a real clamd, and clamsmtpctl asking."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import signal
import smtplib
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from clamsmtpd.ctl.main import cli
from tests.support.clamd import EICAR, EICAR_NAME, Clamd
from tests.support.daemon import Daemon
from tests.support.process import ProgramError, free_port, wait_until
from tests.support.sink import Sink

pytestmark = pytest.mark.integration

CLEAN = b"Subject: lunch\r\n\r\nAt noon?\r\n"


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "admin")


def daemon(sink: Sink, clamd: Clamd, place: str, *more: str) -> Daemon:
    return Daemon(f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}", f"Admin: {place}", *more, level=3)


def ask(place: str, path: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("localhost", timeout=20)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(place)
    connection.request("GET", path)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text) if text[:1] == b"{" else text.decode()


def send(running: Daemon, text: bytes = CLEAN) -> None:
    with smtplib.SMTP(running.host, running.port, timeout=30) as client:
        client.sendmail("a@example.org", ["b@example.org"], text)


def ctl(running: Daemon, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["-f", str(running.configuration), *arguments])


def said(place: str) -> Any:
    """Return the status once every worker has said where it is."""
    deadline = time.monotonic() + 10
    while True:
        _, told = ask(place, "/status")
        if told["workers"] and all(scanner["version"] for scanner in told["scanners"]) and told["scanners"]:
            return told
        assert time.monotonic() < deadline, told
        time.sleep(0.1)


@pytest.mark.parametrize("workers", [1, 2])
def test_all_that_happened_is_told_by_whichever_worker_is_asked(
    clamd: Clamd, sink: Sink, place: str, workers: int
) -> None:
    with daemon(sink, clamd, place, f"Workers: {workers}") as running:
        for _ in range(6):
            send(running)
        send(running, b"Subject: x\r\n\r\n" + EICAR + b"\r\n")
        said(place)
        time.sleep(1.1)
        for _ in range(4):
            status, told = ask(place, "/status")
            assert status == 200
            assert {(item["verdict"], item["outcome"]): item["count"] for item in told["messages"]} == {
                ("clean", "delivered"): 6,
                ("infected", "dropped"): 1,
            }
            assert len(told["workers"]) == workers
            assert told["times"]["scan"]["count"] == 7
            assert told["times"]["next_hop"]["count"] == 6
            # One more for the part of the infected one that has it.
            assert sum(scanner["scans"] for scanner in told["scanners"]) == 8
        _, text = ask(place, "/metrics")
        assert 'clamsmtpd_messages_total{outcome="delivered",verdict="clean"} 6.0' in text
        assert ask(place, "/healthz") == (200, "ok\n")
        assert len(ask(place, "/messages")[1]["messages"]) == 7
        assert running.stop() == 0
    assert not Path(place).exists()


def test_ready_means_that_a_virus_sent_now_would_be_found(sink: Sink, place: str) -> None:
    with Clamd() as own, daemon(sink, own, place) as running:
        running.wait_for_log("ClamAV")
        status, told = ask(place, "/readyz")
        assert (status, told["ready"]) == (200, True)
        assert [part["trouble"] for part in told["parts"]] == ["", ""]
        own.stop()
        # The look before may still hold.
        time.sleep(10.5)
        status, told = ask(place, "/readyz")
        assert (status, told["ready"]) == (503, False)
        assert told["parts"][0]["trouble"]
        assert "clamsmtpctl doctor" in told["advice"]
        assert told["parts"][1]["trouble"] == ""


def test_a_reload_keeps_it_and_tells_of_the_new_settings(clamd: Clamd, sink: Sink, place: str) -> None:
    with daemon(sink, clamd, place) as running, Sink() as other:
        send(running)
        text = running.configuration.read_text().replace(str(sink.address), str(other.address))
        running.configuration.write_text(text)
        os.kill(running.pid, signal.SIGHUP)
        running.wait_for_log("settings read again")
        _, told = ask(place, "/status")
        assert told["next_hop"] == str(other.address)
        assert told["messages"][0]["count"] == 1


def test_over_tcp_there_are_numbers_and_no_messages(clamd: Clamd, sink: Sink) -> None:
    port = free_port()
    with daemon(sink, clamd, str(port)) as running:
        send(running)
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
            for path, status in (("/metrics", 200), ("/status", 200), ("/messages", 403)):
                connection.request("GET", path)
                answer = connection.getresponse()
                answer.read()
                assert answer.status == status
        done = ctl(running, "explain", "100000-1")
        assert done.exit_code == 3
        assert "unix socket" in done.output
        assert ctl(running, "top", "--once").exit_code == 0


def refuses(port: int) -> bool:
    """Whether nobody listens; a queue of clients that is full is not the same."""
    with socket.socket() as probe:
        probe.settimeout(5)
        return probe.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


@pytest.mark.parametrize("workers", [1, 2])
def test_while_mail_ends_nobody_waits_for_an_answer(clamd: Clamd, sink: Sink, workers: int) -> None:
    port = free_port()
    with (
        daemon(sink, clamd, str(port), f"Workers: {workers}") as running,
        contextlib.closing(smtplib.SMTP(running.host, running.port, timeout=30)) as client,
        socket.create_connection(("127.0.0.1", port), timeout=10) as idle,
    ):
        # The worker of this client has a scanner, once this is through.
        client.sendmail("a@example.org", ["b@example.org"], CLEAN)
        client.mail("a@example.org")
        client.rcpt("b@example.org")
        assert client.docmd("DATA")[0] == 354
        os.kill(running.pid, signal.SIGTERM)
        assert idle.recv(1) == b""
        wait_until(lambda: refuses(port), "the admin address to be given up")
        client.send(CLEAN + b".\r\n")
        assert client.getreply()[0] == 250


def test_a_worker_that_is_ended_by_hand_does_not_take_the_socket_along(clamd: Clamd, sink: Sink, place: str) -> None:
    with daemon(sink, clamd, place, "Workers: 2"):
        wait_until(lambda: len(said(place)["workers"]) == 2, "two workers")
        before = {worker["pid"] for worker in said(place)["workers"]}

        def replaced() -> bool:
            # Whoever has just been taken by the worker that ends is cut off.
            with contextlib.suppress(http.client.RemoteDisconnected, ConnectionResetError):
                return len({worker["pid"] for worker in said(place)["workers"]} - before) == 1
            return False

        os.kill(min(before), signal.SIGTERM)
        wait_until(replaced, "another worker")
        for _ in range(4):
            assert ask(place, "/healthz") == (200, "ok\n")


def test_a_place_that_cannot_be_is_a_failure_to_start(clamd: Clamd, sink: Sink) -> None:
    place = "/nowhere/at/all/admin"
    with pytest.raises(ProgramError, match="Admin: cannot listen on /nowhere/at/all/admin: No such file"):
        daemon(sink, clamd, place).stop()


def test_explain_tells_the_story_of_a_message(clamd: Clamd, sink: Sink, place: str) -> None:
    with daemon(sink, clamd, place, "Quarantine: on") as running:
        send(running)
        send(running, b"Subject: x\r\n\r\n" + EICAR + b"\r\n")
        line = running.wait_for_log("status=VIRUS")
        connection = line.partition(":")[0]
        done = ctl(running, "explain", connection)
        assert done.exit_code == 0
        assert f"verdict: infected, {EICAR_NAME}, by clamd at {clamd.unix}" in done.output
        assert "it was dropped" in done.output
        (kept,) = running.temp_directory.glob("virus.*")
        assert f"kept in quarantine: {kept}" in done.output
        by_name = ctl(running, "explain", kept.name, "--json")
        assert json.loads(by_name.output)["messages"][0]["connection"] == connection
        unknown = ctl(running, "explain", "FFFFFF-9")
        assert (unknown.exit_code, unknown.output) == (1, "clamsmtpctl: no message FFFFFF-9 is known here\n")


def test_top_shows_messages_scanners_and_workers(clamd: Clamd, sink: Sink, place: str) -> None:
    with daemon(sink, clamd, place) as running:
        send(running)
        said(place)
        done = ctl(running, "top", "--once")
        assert done.exit_code == 0
        lines = done.output.splitlines()
        assert all(len(line) <= 80 for line in lines)
        (clean,) = [line.split() for line in lines if line.startswith("clean")]
        assert clean[1] == "1"
        assert str(clamd.unix)[:20] in done.output
        assert str(running.pid) in done.output
        assert json.loads(ctl(running, "top", "--json").output)["totals"]["clean"] == 1


def test_a_daemon_that_is_not_there_is_one_line(tmp_path: Path, place: str) -> None:
    settings = tmp_path / "conf"
    settings.write_text(f"OutAddress: 10026\nAdmin: {place}\n")
    done = CliRunner().invoke(cli, ["-f", str(settings), "top", "--once"])
    assert done.exit_code == 3
    assert done.output.startswith(f"clamsmtpctl: no answer at {place} (Admin): No such file or directory; is the")
    assert done.output.count("\n") == 1
    settings.write_text("OutAddress: 10026\n")
    done = CliRunner().invoke(cli, ["-f", str(settings), "top", "--once"])
    assert (done.exit_code, done.output.count("\n")) == (3, 1)
    assert "Admin is not set" in done.output
