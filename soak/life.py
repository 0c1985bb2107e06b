"""One life of the daemon: from its start to its end, however that comes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

from bench.machine import tree
from tests.support.process import Program

__all__ = ["Life"]

#: The level of -d that shows every message and connection, and no dialogue.
_LEVEL = 3
_READY = "accepting connections on"


class Life:
    """A daemon with the settings of ``configuration``; it logs to ``output``. It may not serve yet."""

    def __init__(self, configuration: Path, output: Path) -> None:
        command = [sys.executable, "-m", "clamsmtpd", "-d", str(_LEVEL), "-f", str(configuration)]
        self._program = Program(command, output=output, environment={"PYTHONUNBUFFERED": "1"})
        self.pid = self._program.pid
        self._family: set[int] = set()

    @property
    def serving(self) -> bool:
        """Whether it has come to serve."""
        return _READY in self._program.text()

    @property
    def running(self) -> bool:
        """Whether its first process runs."""
        return self._program.running

    @property
    def lines(self) -> list[str]:
        """What it has logged so far."""
        return self._program.text().splitlines()

    def workers(self) -> list[int]:
        """Return its processes but the first."""
        return list(tree(self.pid))[1:]

    def send(self, number: signal.Signals) -> None:
        """Send its first process a signal."""
        self._program.send(number)

    def kill(self, *, whole: bool) -> None:
        """Kill the first process with SIGKILL, or the ``whole`` of it."""
        self._family = set(self.workers())
        self.send(signal.SIGKILL)
        if whole:
            for pid in self._family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def orphans(self) -> list[int]:
        """Return the workers that have outlived the first process when that was killed."""
        return [pid for pid in self._family if "\0-m\0clamsmtpd\0" in _command(pid)]

    def bury(self) -> int:
        """End what is left of it; return the exit status of its first process."""
        return self._program.stop(signal.SIGKILL)

    def wait_until_serving(self, *, seconds: float) -> None:
        """Wait until it serves. Raises ProgramError."""
        self._program.wait_until(lambda: self.serving, "clamsmtpd to accept connections", seconds=seconds)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
