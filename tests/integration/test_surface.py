"""What a worker has: descriptors, rights and limits, each with its reason; and what it makes of hostile values."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import signal
import smtplib
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.clamd import EICAR, Clamd
from tests.support.daemon import Daemon
from tests.support.process import accepts, free_port, wait_until
from tests.support.sink import Sink

Start = Callable[..., Daemon]

#: What a process that serves may have open beside standard input, output and error, how much of it, and why.
SERVING = {
    "listener": (1, "where clients connect"),
    "socket": (2, "libuv's pair to be woken by signals; the log socket has its own entry"),
    "anon_inode:[eventpoll]": (2, "the event loop, and the poller of connections within it"),
    "anon_inode:[io_uring]": (1, "libuv's, where the kernel has it"),
    "anon_inode:[eventfd]": (1, "libuv, to be woken by threads"),
    "/dev/null": (1, "the reserve, for a client to be told 421 when there are no descriptors left"),
}
ALONE = {**SERVING, "pipe": (4, "libuv's two pairs for signals"), "pid file": (1, "locked as long as it runs")}
WORKER = {**SERVING, "pipe": (6, "as alone, the lifeline to the supervisor, and the lock of the places")}
SUPERVISOR = {
    "listener": (1, "for workers yet to come"),
    "pid file": (1, "locked as long as it runs"),
    "pipe": (3, "both ends of the lifeline, and the lock of the places"),
}


class Started:
    """A daemon that a careless shell has started, with files of its own open."""

    def __init__(self, folder: Path, *lines: str) -> None:
        self.port = free_port()
        self.pid_file = folder / "pid"
        configuration = folder / "conf"
        given = (*lines, f"Listen: 127.0.0.1:{self.port}", f"PidFile: {self.pid_file}", f"TempDirectory: {folder}/temp")
        configuration.write_text("\n".join(("OutAddress: 127.0.0.1:9", *given)) + "\n")
        (folder / "temp").mkdir()
        (folder / "temp").chmod(0o1777)
        command = '"$@" 3</etc/hostname 7</etc/hostname 9>"$0"'
        subprocess.run(
            ["/bin/sh", "-c", command, f"{folder}/left", sys.executable, "-m", "clamsmtpd", "-f", str(configuration)],
            stdin=subprocess.DEVNULL,
            check=True,
            timeout=20,
        )
        self.pid = int(self.pid_file.read_text())
        self.workers = [int(word) for word in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def kinds(self, pid: int) -> dict[str, int]:
        """Return what the process has open, and how many of each."""
        listening = {
            f"socket:[{line.split()[9]}]"
            for line in Path("/proc/net/tcp").read_text().splitlines()
            if line.split()[1].endswith(f":{self.port:04X}")
        }
        found: dict[str, int] = {}
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(entry)
            if int(entry.name) <= 2:
                assert target == "/dev/null"
                continue
            flags = next(
                line.split()[1]
                for line in Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text().splitlines()
                if line.startswith("flags:")
            )
            assert int(flags, 8) & os.O_CLOEXEC, f"a hook would have {target}"
            kind = "listener" if target in listening else "pid file" if target == str(self.pid_file) else target
            kind = re.sub(r"^(socket|pipe):.*", r"\1", kind)
            found[kind] = found.get(kind, 0) + 1
        return found

    def status(self, pid: int) -> dict[str, str]:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.fixture
def started() -> Iterator[Callable[..., Started]]:
    with tempfile.TemporaryDirectory(prefix="clamsmtpd-surface-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)

        def start(*lines: str) -> Started:
            daemon = Started(folder, *lines)

            def stop() -> None:
                os.kill(daemon.pid, signal.SIGTERM)
                wait_until(lambda: _has_ended(daemon.pid), "the daemon to end")

            stack.callback(stop)
            return daemon

        yield start


def _has_ended(pid: int) -> bool:
    with contextlib.suppress(OSError):
        # Nobody may be there to bury an orphan in a container.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def excess(found: dict[str, int], allowed: dict[str, tuple[int, str]]) -> dict[str, int]:
    # The log socket, where there is a syslogd, is opened with the first line.
    spare = {"socket": 1} if os.path.exists("/dev/log") else {}
    return {
        kind: number for kind, number in found.items() if number > allowed.get(kind, (0, ""))[0] + spare.get(kind, 0)
    }


def test_one_process_has_only_what_it_needs(started: Callable[..., Started]) -> None:
    daemon = started("Workers: 1")
    assert daemon.workers == []
    found = daemon.kinds(daemon.pid)
    assert excess(found, ALONE) == {}
    assert found["listener"] == 1


def test_workers_and_supervisor_have_only_what_they_need(started: Callable[..., Started]) -> None:
    daemon = started("Workers: 2")
    assert len(daemon.workers) == 2
    for pid in daemon.workers:
        found = daemon.kinds(pid)
        assert excess(found, WORKER) == {}
        assert found["listener"] == 1
    assert excess(daemon.kinds(daemon.pid), SUPERVISOR) == {}


@pytest.mark.root
@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_of_root_can_be_regained(started: Callable[..., Started], workers: int) -> None:
    nobody = pwd.getpwnam("nobody")
    daemon = started(f"Workers: {workers}", "User: nobody")
    for pid in (daemon.pid, *daemon.workers):
        status = daemon.status(pid)
        assert status["Uid"].split() == [str(nobody.pw_uid)] * 4, "real, effective, saved and that of files"
        assert status["Gid"].split() == [str(nobody.pw_gid)] * 4
        assert {int(group) for group in status["Groups"].split()} == set(os.getgrouplist("nobody", nobody.pw_gid))
        for capabilities in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(status[capabilities], 16) == 0
        assert status["NoNewPrivs"] == "0", "a hook may call sudo or sendmail"
        assert status["Umask"] == "0077"
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"^Max core file size +0 ", limits, re.MULTILINE)
        # Was root: the kernel lets no other process of the user read its memory, or have it dumped.
        assert Path(f"/proc/{pid}/mem").stat().st_uid == 0


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_daemon_started_without_standard_descriptors_serves(tmp_path: Path, closed: str) -> None:
    port = free_port()
    (tmp_path / "conf").write_text(
        f"OutAddress: 127.0.0.1:9\nListen: 127.0.0.1:{port}\nPidFile: {tmp_path}/pid\nTempDirectory: {tmp_path}\n"
        "Workers: 2\n"
    )
    command = f'"$0" -m clamsmtpd -f "$1" {closed}'
    subprocess.run(["/bin/sh", "-c", command, sys.executable, f"{tmp_path}/conf"], check=True, timeout=20)
    pid = int((tmp_path / "pid").read_text())
    try:
        assert accepts(("127.0.0.1", port))
        assert {os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)} == {"/dev/null"}
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not (tmp_path / "pid").exists(), "the daemon to end")


# Hostile values, through the whole of it


def test_a_hook_hears_of_a_thousand_recipients_and_nothing_is_interpreted(
    clamd: Clamd, sink: Sink, start_daemon: Start, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    daemon = start_daemon(
        f"OutAddress: {sink.address}",
        f"ClamAddress: {clamd.unix}",
        "Quarantine: on",
        f'VirusAction: env -0 > {told}.new; echo "$RECIPIENTS" | wc -l; mv {told}.new {told}',
    )
    sender = b'"$(touch${IFS}/tmp/pwned)`id`\\\\"@example.org'
    with smtplib.SMTP("127.0.0.1", daemon.port, timeout=30) as client:
        client.ehlo()
        assert client.docmd("MAIL", f"FROM:<{sender.decode()}>")[0] == 250
        for number in range(1000):
            assert client.docmd("RCPT", f"TO:<-rf.{number:04}.{'x' * 40}@example.org>")[0] == 250
        assert client.data(b"Subject: x\r\n\r\n" + EICAR)[0] == 250
    wait_until(told.exists, "the hook to end")
    variables = dict(entry.split(b"=", 1) for entry in told.read_bytes().split(b"\0") if entry)
    assert variables[b"SENDER"] == sender
    recipients = variables[b"RECIPIENTS"].split(b"\n")
    assert len(recipients) == 1000
    assert recipients[999] == b"-rf.0999." + b"x" * 40 + b"@example.org"
    assert daemon.wait_for_log("hook: 1000")
    shells = {b"PWD", b"SHLVL", b"_", b"OLDPWD"}
    ours = {b"CLIENT", b"EMAIL", b"PATH", b"RECIPIENTS", b"SENDER", b"SERVER", b"TMPDIR", b"VIRUS"}
    ours |= {b"ATTACHMENT", b"SHA256"}
    assert set(variables) - shells == ours


def test_no_dialogue_puts_a_control_character_into_the_log(clamd: Clamd, sink: Sink, start_daemon: Start) -> None:
    daemon = start_daemon(f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}", 'VirusAction: echo "$SENDER"')
    nasty = b"\x1b[2J\x9b1m\x07\x00\x7f\xe2\x80\xae%n%s"
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=10) as client:
        file = client.makefile("rb")
        file.readline()
        for line in (
            b"EHLO " + nasty,
            b"XCLIENT NAME=" + nasty,
            b"XFORWARD NAME=" + nasty,
            b"PROXY " + nasty,
            b"MAIL FROM:<" + nasty + b"@x>",
            b"RCPT TO:<" + nasty + b"\r@x>",
            b"\r" + nasty,
            b"QUIT",
        ):
            client.sendall(line + b"\r\n")
        client.settimeout(10)
        while file.readline():
            pass
    assert daemon.wait_for_log("QUIT")
    text = daemon.log()
    assert text.replace("\n", "").isprintable()
    assert "%n%s" in text


def test_a_quarantine_that_vanishes_keeps_the_message_with_the_client(
    clamd: Clamd, sink: Sink, start_daemon: Start, tmp_path: Path
) -> None:
    folder = tmp_path / "temp"
    folder.mkdir()
    daemon = start_daemon(
        f"OutAddress: {sink.address}", f"ClamAddress: {clamd.unix}", "Quarantine: on", f"TempDirectory: {folder}"
    )
    infected = b"Subject: x\r\n\r\n" + EICAR
    with smtplib.SMTP("127.0.0.1", daemon.port, timeout=20) as client:
        folder.rename(folder.with_name("gone"))
        with pytest.raises(smtplib.SMTPDataError) as refused:
            client.sendmail("a@example.org", ["b@example.org"], infected)
        assert refused.value.smtp_code == 451
        assert daemon.wait_for_log(f"cannot quarantine in {folder}")
        # Small mail needs no directory.
        client.sendmail("a@example.org", ["b@example.org"], b"Subject: small\r\n\r\n")
        with pytest.raises(smtplib.SMTPDataError):
            client.sendmail("a@example.org", ["b@example.org"], b"Subject: large\r\n\r\n" + b"x\r\n" * 100_000)
        folder.mkdir()
        client.sendmail("a@example.org", ["b@example.org"], infected)
        client.sendmail("a@example.org", ["b@example.org"], b"Subject: large\r\n\r\n" + b"x\r\n" * 100_000)
    assert len(sink.wait_for_messages(2)) == 2
    assert [name.partition(".")[0] for name in daemon.spooled()] == ["virus"]
