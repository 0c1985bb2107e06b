"""Under a service manager: sockets that outlive us, what we say and when, and the sandbox of our unit."""

from __future__ import annotations

import contextlib
import shutil
import signal
import smtplib
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_workers import finish, in_data
from tests.support.clamd import EICAR, Clamd
from tests.support.daemon import Daemon
from tests.support.manager import Manager
from tests.support.process import free_port
from tests.support.sandbox import UNIT, sandboxed
from tests.support.sink import Sink

WORKERS = pytest.mark.parametrize("workers", [1, 2])

MAIL = b"Subject: x\r\n\r\ntext\r\n"

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="SKIPPED: systemd-analyze is not installed; see scripts/setup"
)


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as sock:
        yield sock


@pytest.fixture
def settings(clamd: Clamd, sink: Sink) -> tuple[str, ...]:
    return (f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}")


def send(port: int, text: bytes = MAIL) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.sendmail("a@example.org", ["b@example.org"], text)


# Sockets that were passed


class Clients:
    """Clients that connect all the time, and keep account of what became of each.

    ``outcomes`` are "delivered", "421", or what went wrong.
    """

    def __init__(self, port: int, number: int = 4) -> None:
        self._port = port
        self._stop = threading.Event()
        self.outcomes: list[str] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(number)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.outcomes.append(self._try())

    def _try(self) -> str:
        with contextlib.closing(smtplib.SMTP(timeout=30)) as client:
            try:
                return self._talk(client)
            except (OSError, smtplib.SMTPException) as error:
                return repr(error)

    def _talk(self, client: smtplib.SMTP) -> str:
        if client.connect("127.0.0.1", self._port)[0] == 421:
            return "421"
        for verb in ("EHLO client.example", "MAIL FROM:<a@example.org>", "RCPT TO:<b@example.org>", "DATA"):
            code, text = client.docmd(verb)
            if code == 421:
                return "421"
            if code not in (250, 354):
                return f"{verb}: {code} {text!r}"
        client.send(MAIL + b".\r\n")
        code, text = client.getreply()
        return "delivered" if code == 250 else f"message: {code} {text!r}"

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@WORKERS
def test_a_restart_loses_no_connection(
    settings: tuple[str, ...], sink: Sink, listening: socket.socket, workers: int
) -> None:
    port = listening.getsockname()[1]
    with Manager(*settings, f"Workers: {workers}", sockets=[listening]) as manager:
        manager.start()
        manager.wait_for("READY=1")
        clients = Clients(port)
        try:
            for turn in range(2, 5):
                time.sleep(0.5)
                assert manager.stop() == 0
                # Nobody is there now, and they wait.
                time.sleep(0.2)
                manager.start()
                manager.wait_for("READY=1", times=turn)
            time.sleep(0.5)
        finally:
            clients.stop()
        assert set(clients.outcomes) <= {"delivered", "421"}
        assert clients.outcomes.count("delivered") == len(sink.messages) > 20
        # Each of the four clients can have been told so once at each stop.
        assert clients.outcomes.count("421") <= 3 * 4
        assert f"accepting connections on 127.0.0.1:{port}" in manager.log()


def test_a_listen_line_says_more_about_a_socket_that_was_passed(
    settings: tuple[str, ...], tmp_path: Path, listening: socket.socket
) -> None:
    port, other = listening.getsockname()[1], free_port()
    path = tmp_path / "socket"
    with contextlib.ExitStack() as stack:
        passed = stack.enter_context(socket.socket(socket.AF_UNIX))
        passed.bind(str(path))
        path.chmod(0o640)
        passed.listen()
        lines = (
            f"Listen: lmtp:127.0.0.1:{port}",
            f"Listen: {path} mode=0666",
            f"Listen: 127.0.0.1:{other}",
            f"TrustedClients: {path}",
            "Workers: 1",
        )
        manager = stack.enter_context(Manager(*settings, *lines, sockets=[passed, listening]))
        manager.start()
        manager.wait_for("READY=1")
        with smtplib.LMTP("127.0.0.1", port) as client:
            assert client.sendmail("a@example.org", ["b@example.org"], MAIL) == {}
        send(other)
        assert path.stat().st_mode & 0o777 == 0o640
        with socket.socket(socket.AF_UNIX) as local:
            local.connect(str(path))
            assert local.recv(1000).startswith(b"220 ")
            local.sendall(b"EHLO x\r\n")
            assert b"XCLIENT" in local.recv(1000)
        assert manager.stop() == 0
        assert path.is_socket()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", other))
        socket.create_connection(("127.0.0.1", port)).close()


@pytest.mark.parametrize("spelling", ["link/socket", "run/./socket"])
def test_a_unix_socket_that_was_passed_is_known_by_any_of_its_names(
    settings: tuple[str, ...], tmp_path: Path, spelling: str
) -> None:
    # /var/run is /run, and systemd says so where a socket unit has the old one.
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    with socket.socket(socket.AF_UNIX) as passed:
        passed.bind(str(tmp_path / "run" / "socket"))
        passed.listen()
        with Manager(*settings, f"Listen: lmtp:{tmp_path}/{spelling}", sockets=[passed]) as manager:
            manager.start()
            manager.wait_for("READY=1")
            with smtplib.LMTP(str(tmp_path / "run" / "socket")) as client:
                assert client.sendmail("a@example.org", ["b@example.org"], MAIL) == {}


def test_everywhere_in_the_words_of_old_is_the_socket_of_our_unit(settings: tuple[str, ...]) -> None:
    # What 1.10 wrote for all addresses; ListenStream=10025 takes IPv4 as well, and nobody could bind that besides.
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as passed:
        port = passed.getsockname()[1]
        with Manager(*settings, f"Listen: lmtp:0.0.0.0:{port}", sockets=[passed]) as manager:
            manager.start()
            manager.wait_for("READY=1")
            with smtplib.LMTP("127.0.0.1", port) as client:
                assert client.sendmail("a@example.org", ["b@example.org"], MAIL) == {}


def test_sockets_meant_for_another_process_are_left_alone(settings: tuple[str, ...], listening: socket.socket) -> None:
    port = free_port()
    with Daemon(*settings, f"Listen: 127.0.0.1:{port}", environment={"LISTEN_PID": "1", "LISTEN_FDS": "1"}) as daemon:
        send(port)
        assert f"accepting connections on 127.0.0.1:{port}" in daemon.log()


def test_what_is_no_listening_socket_stops_the_start(settings: tuple[str, ...]) -> None:
    with socket.socket() as idle, Manager(*settings, sockets=[idle]) as manager:
        assert manager.start().wait() == 1
        assert manager.log().splitlines()[-1] == (
            "clamsmtpd: LISTEN_FDS: descriptor 3 is no stream socket that listens; "
            "write ListenStream= and Accept=no in the socket unit"
        )


# What is said


@WORKERS
@pytest.mark.parametrize("abstract", [False, True])
def test_ready_is_said_when_the_next_hop_takes_mail(clamd: Clamd, workers: int, abstract: bool) -> None:
    hop, port = free_port(), free_port()
    lines = (f"OutAddress: 127.0.0.1:{hop}", f"ClamAddress: {clamd.unix}", f"Workers: {workers}")
    with Manager(*lines, f"Listen: 127.0.0.1:{port}", abstract=abstract) as manager:
        program = manager.start()
        manager.wait_for(f"STATUS=waiting for the next hop, 127.0.0.1:{hop}")
        manager.wait_for_log(f"not ready: next hop 127.0.0.1:{hop}: Connection refused")
        # It serves all the same.
        with socket.create_connection(("127.0.0.1", port)) as client:
            assert client.recv(1000).startswith(b"421 ")
        assert "READY=1" not in manager.words
        with Sink(port=hop) as sink:
            manager.wait_for("READY=1")
            assert manager.words.count(f"MAINPID={program.pid}") == 1
            (talk,) = sink.talks
            assert [command.split()[0] for command in talk.commands] == [b"EHLO", b"QUIT"]
            send(port)
            assert manager.stop() == 0
        assert manager.words[-2:] == ["STOPPING=1", "STATUS=finishing what is in flight"]
        assert manager.log().count("not ready: ") == 1


def test_a_next_hop_that_is_found_out_anew_for_each_client_is_not_asked(clamd: Clamd) -> None:
    lines = ("OutAddress: 25", f"ClamAddress: {clamd.unix}", f"Listen: 127.0.0.1:{free_port()}", "Workers: 1")
    with Manager(*lines) as manager:
        manager.start()
        manager.wait_for("READY=1")
        assert not any("next hop" in word for word in manager.words)


def test_without_a_manager_the_next_hop_sees_only_clients(settings: tuple[str, ...], sink: Sink) -> None:
    with Daemon(*settings, level=3) as daemon:
        time.sleep(0.5)
        send(daemon.port)
    assert len(sink.talks) == 1


@WORKERS
def test_a_reload_is_said_with_its_beginning_and_its_end(settings: tuple[str, ...], workers: int) -> None:
    with Manager(*settings, f"Listen: 127.0.0.1:{free_port()}", f"Workers: {workers}") as manager:
        program = manager.start()
        manager.wait_for("READY=1")
        del manager.words[:]
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        program.send(signal.SIGHUP)
        manager.wait_for("STATUS=ready")
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        reloading, moment, *end = manager.words
        assert reloading == "RELOADING=1"
        assert before < int(moment.removeprefix("MONOTONIC_USEC=")) < after
        assert end == ["READY=1", f"MAINPID={program.pid}", "STATUS=ready"]
        # Bad ones are no reason to stay in it.
        with manager.configuration.open("a") as file:
            file.write("Nonsense")
        program.send(signal.SIGHUP)
        manager.wait_for("READY=1", times=2)


@WORKERS
def test_the_next_hop_of_settings_read_again_is_the_one_to_wait_for(clamd: Clamd, sink: Sink, workers: int) -> None:
    lines = (f"ClamAddress: {clamd.unix}", f"Listen: 127.0.0.1:{free_port()}", f"Workers: {workers}")
    with Manager(f"OutAddress: 127.0.0.1:{free_port()}", *lines) as manager:
        program = manager.start()
        manager.wait_for_log("not ready: ")
        text = manager.configuration.read_text().splitlines()[1:]
        manager.configuration.write_text("\n".join([f"OutAddress: {sink.address}", *text]))
        program.send(signal.SIGHUP)
        manager.wait_for("READY=1")
        assert "RELOADING=1" not in manager.words


@WORKERS
def test_the_watchdog_hears_of_us_as_long_as_we_move(settings: tuple[str, ...], workers: int) -> None:
    with Manager(*settings, f"Listen: 127.0.0.1:{free_port()}", f"Workers: {workers}", watchdog=0.4) as manager:
        program = manager.start()
        manager.wait_for("WATCHDOG=1", times=5)
        program.send(signal.SIGSTOP)
        time.sleep(0.3)
        before = manager.words.count("WATCHDOG=1")
        time.sleep(1)
        assert manager.words.count("WATCHDOG=1") == before
        program.send(signal.SIGCONT)
        manager.wait_for("WATCHDOG=1", times=before + 2)


def test_a_watchdog_that_is_anothers_hears_nothing(settings: tuple[str, ...]) -> None:
    with Manager(*settings, f"Listen: 127.0.0.1:{free_port()}", "Workers: 1") as manager:
        manager.start()
        manager.wait_for("READY=1")
        time.sleep(0.5)
        assert "WATCHDOG=1" not in manager.words


# The sandbox


@needs_systemd
def test_the_exposure_of_the_unit_is_low() -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Overall exposure level" in done.stdout


@needs_systemd
@WORKERS
def test_in_the_sandbox_all_works(clamd: Clamd, sink: Sink, tmp_path: Path, workers: int) -> None:
    daemon_lines = (
        f"OutAddress: localhost:{sink.port}",
        f"ClamAddress: {clamd.unix}",
        f"ClamAddress: localhost:{clamd.tcp.port}",
        "Action: pass",
        "Quarantine: on",
        "VirusAction: echo found $VIRUS",
        "MaxConnections: 2000",
        f"Workers: {workers}",
    )
    with Daemon(*daemon_lines, wrapper=sandboxed()) as daemon:
        send(daemon.port)
        # More than is kept in memory.
        send(daemon.port, MAIL + b"x" * 70 + (b"\r\n" + b"x" * 70) * 40_000 + b"\r\n")
        send(daemon.port, MAIL + EICAR)
        daemon.wait_for_log("hook: found ")
        assert len(sink.messages) == 3
        assert [name.partition(".")[0] for name in daemon.spooled()] == ["virus"]
        daemon.send(signal.SIGHUP)
        daemon.wait_for_log("settings read again: nothing has changed")
        client = in_data(daemon)
        daemon.send(signal.SIGTERM)
        assert finish(client) == 250
        assert daemon.wait() == 0
        assert "rror" not in daemon.log().replace("CLAMAV-ERROR", "")


@needs_systemd
def test_the_sandbox_forbids_what_it_says(tmp_path: Path) -> None:
    attempts = (
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)",
        "os.setuid(os.getuid())",
        "os.chown('.', os.getuid(), os.getgid())",
    )
    for attempt in attempts:
        program = ["python3", "-c", f"import mmap, os, socket; {attempt}"]
        assert subprocess.run(program, check=False).returncode == 0, attempt
        done = subprocess.run([*sandboxed(), *program], capture_output=True, text=True, check=False)
        assert "PermissionError" in done.stderr, attempt
