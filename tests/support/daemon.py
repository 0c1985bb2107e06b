"""The daemon as an administrator runs it: a process of its own, with a settings file."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from clamsmtpd.values import TcpAddress
from tests.support.process import Program, accepts, free_port

__all__ = ["Daemon", "command"]

#: From this level of -d on, the log says when the daemon serves.
_LEVEL_OF_READY = 3


def command(constants: Mapping[str, object]) -> list[str]:
    """Return the command that starts clamsmtpd with some constants changed, by ``MODULE.NAME``."""
    if not constants:
        return [sys.executable, "-m", "clamsmtpd"]
    modules = ", ".join(sorted({f"clamsmtpd.{name.rpartition('.')[0]}" for name in constants}))
    changes = "; ".join(f"clamsmtpd.{name} = {value!r}" for name, value in constants.items())
    program = f"import sys, clamsmtpd.cli, {modules}; {changes}; sys.exit(clamsmtpd.cli.main())"
    return [sys.executable, "-c", program]


class Daemon:
    """A running clamsmtpd.

    ``lines`` are those of the settings file; Listen and TempDirectory are added where they are not among
    them: a free loopback port, for LMTP if ``lmtp`` is set, and a folder of its own. Without Workers among them
    there is one process, whatever the machine: the one that ``pid`` names. ``arguments`` are further
    ones of the command line. ``constants`` change what no setting can, such as ``supervisor.DRAIN_LIMIT``; ``wrapper``
    is the beginning of the command, which becomes the daemon.
    """

    def __init__(
        self,
        *lines: str,
        level: int = 4,
        lmtp: bool = False,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        constants: Mapping[str, object] | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="clamsmtpd-daemon-"))
        self.folder.chmod(0o755)
        given = {line.partition(":")[0].strip().lower(): line.partition(":")[2].strip() for line in lines}
        self.temp_directory = Path(given.get("tempdirectory", self.folder / "temp"))
        added = []
        if "tempdirectory" not in given:
            # As open as /tmp: with the setting User it is not ours who writes there.
            self.temp_directory.mkdir()
            self.temp_directory.chmod(0o1777)
            added.append(f"TempDirectory: {self.temp_directory}")
        if "workers" not in given:
            added.append("Workers: 1")
        self.host, self.port = "127.0.0.1", 0
        if "listen" not in given:
            self.port = free_port()
            added.append(f"Listen: {'lmtp:' if lmtp else ''}{self.host}:{self.port}")
        elif given["listen"].rpartition(":")[2].isdigit():
            host, _, port = given["listen"].rpartition(":")
            self.host, self.port = host.strip("[]") or self.host, int(port)
        self.configuration = self.folder / "clamsmtpd.conf"
        self.configuration.write_text("\n".join([*lines, *added]) + "\n")
        self._program = Program(
            [*wrapper, *command(constants or {}), "-d", str(level), "-f", str(self.configuration), *arguments],
            output=self.folder / "log",
            environment={"PYTHONUNBUFFERED": "1", **(environment or {})},
        )
        self.pid = self._program.pid
        try:
            self._program.wait_until(
                (lambda: "accepting connections on" in self.log())
                if level >= _LEVEL_OF_READY
                else (lambda: accepts((self.host, self.port))),
                "clamsmtpd to accept connections",
            )
        except BaseException:
            self.stop()
            raise

    @property
    def address(self) -> TcpAddress:
        """Where it listens."""
        return TcpAddress(self.host, self.port)

    @property
    def running(self) -> bool:
        return self._program.running

    def log(self) -> str:
        """Return all that it has written to standard error and standard output."""
        return self._program.text()

    def log_lines(self) -> list[str]:
        """Return its log, line by line, without the program's name in front."""
        return [line.removeprefix("clamsmtpd: ") for line in self.log().splitlines()]

    def message_lines(self) -> list[str]:
        """Return the log's one line for each message, without the connection's id."""
        return [line.partition(": ")[2] for line in self.log_lines() if ", status=" in line]

    def wait_for_log(self, text: str, *, seconds: float = 20) -> str:
        """Return the first log line with ``text`` in it, as soon as there is one."""

        def found() -> list[str]:
            return [line for line in self.log_lines() if text in line]

        self._program.wait_until(lambda: bool(found()), f"{text!r} in the log", seconds=seconds)
        return found()[0]

    def spooled(self) -> list[str]:
        """Return the names of the files in its TempDirectory; the index of the quarantine is none of them."""
        return sorted(name for name in os.listdir(self.temp_directory) if name != "clamsmtpd-index")

    def workers(self) -> list[int]:
        """Return the processes that it has started."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(word) for word in children.read_text(encoding="ascii").split()]

    def descriptors(self) -> int:
        """Return how many descriptors it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, and do not wait."""
        self._program.send(number)

    def wait(self, *, seconds: float = 20) -> int:
        """Wait for its end; return the exit status."""
        return self._program.wait(seconds=seconds)

    def stop(self, number: signal.Signals = signal.SIGTERM, *, seconds: float = 20) -> int:
        """End it and remove its folder; return the exit status. The log is gone then: read it before."""
        try:
            return self._program.stop(number, seconds=seconds)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
