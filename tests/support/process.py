"""Programs that a test starts: waited for until they serve, and ended whatever happens."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

__all__ = ["Program", "ProgramError", "accepts", "free_port", "wait_until"]

#: Below the ports that Linux gives to outgoing connections, so that none of those can take one in between.
_PORTS = range(12_000, 32_000)

_PROGRAM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")


class ProgramError(Exception):
    """A program did not start, or did not do in time what was waited for."""


_given: set[int] = set()


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port that nobody listens on; it is drawn, so that tests side by side get different ones.

    None is given twice in a process: whoever got it may not listen yet.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in random.sample(_PORTS, 100):
        with socket.socket(family, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
            if port in _given:
                continue
            probe.bind((host, port))
            _given.add(port)
            return port
    raise ProgramError(f"found no free port on {host}")


def accepts(address: tuple[str, int] | str) -> bool:
    """Whether something accepts connections at a TCP address or at a Unix socket's path."""
    if isinstance(address, str):
        probe = socket.socket(socket.AF_UNIX)
    else:
        probe = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    with probe:
        probe.settimeout(1)
        return probe.connect_ex(address) == 0


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = 20) -> None:
    """Return as soon as ``condition`` holds. Raises ProgramError naming ``what`` when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ProgramError(f"waited {seconds:g} s in vain: {what}")
        time.sleep(0.01)


class Program:
    """One program in a process group of its own. What it writes goes to the file ``output``."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        output: Path,
        environment: Mapping[str, str] | None = None,
        descriptors: Sequence[int] = (),
    ) -> None:
        self.output = output
        self.name = os.path.basename(command[0])
        # However the test run ends, the kernel ends the program with it.
        dying_with_us = ("setpriv", "--pdeathsig", "TERM", "--")
        search = os.pathsep.join([os.environ.get("PATH", os.defpath), *_PROGRAM_FOLDERS])
        with output.open("wb") as sink:
            self._process = subprocess.Popen(
                [*dying_with_us, *command],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PATH": search, **(environment or {})},
                process_group=0,
                pass_fds=descriptors,
            )
        self.pid = self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def text(self) -> str:
        """Return what it has written so far."""
        return self.output.read_text(encoding="utf-8", errors="backslashreplace")

    def wait_until(self, condition: Callable[[], bool], what: str, *, seconds: float = 20) -> None:
        """Wait as the function of this name does, but give up with what was written once the program has ended."""

        def holds() -> bool:
            if condition():
                return True
            if not self.running:
                raise ProgramError(f"{self.name} ended with {self._process.returncode}: {self.text()}")
            return False

        try:
            wait_until(holds, what, seconds=seconds)
        except ProgramError as error:
            raise ProgramError(f"{error}\n{self.name} wrote: {self.text()[-4000:]}") from None

    def wait(self, *, seconds: float = 20) -> int:
        """Wait for its end; return the exit status, negative for a signal."""
        return self._process.wait(seconds)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the program alone, not to its children."""
        self._process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM, *, seconds: float = 20) -> int:
        """Ask it to end, insist after a while, leave no child of it; return the exit status."""
        if self.running:
            self._process.send_signal(number)
        try:
            return self._process.wait(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
