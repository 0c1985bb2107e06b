"""A service manager as small as can be: it holds sockets, passes them to a daemon, and hears what that says."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.daemon import command
from tests.support.process import Program, wait_until

__all__ = ["Manager"]

# Descriptors as sd_listen_fds(3) has them, in a process that then becomes the daemon.
_PASS = """\
import os, sys
count = int(sys.argv[1])
for number, descriptor in enumerate(sys.argv[2 : 2 + count]):
    os.dup2(int(descriptor), 3 + number, inheritable=True)
    os.close(int(descriptor))
if count:
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(count), LISTEN_FDNAMES="clamsmtpd")
if "WATCHDOG_USEC" in os.environ:
    os.environ["WATCHDOG_PID"] = str(os.getpid())
os.execv(sys.argv[2 + count], sys.argv[2 + count :])
"""

#: Above whatever a test has open.
_FREE = 200


class Manager:
    """Runs one daemon after the other with the same settings, all of them given in ``lines``.

    ``sockets`` listen already, and stay open when a daemon ends. ``watchdog``: seconds, if it is to be asked for;
    ``abstract``: whether the notification socket has a name that is in no folder. ``words`` is all that was said.
    """

    def __init__(
        self,
        *lines: str,
        sockets: Sequence[socket.socket] = (),
        watchdog: float | None = None,
        abstract: bool = False,
        constants: Mapping[str, float] | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="clamsmtpd-manager-"))
        (self.folder / "temp").mkdir()
        self.configuration = self.folder / "clamsmtpd.conf"
        self.configuration.write_text("\n".join([*lines, f"TempDirectory: {self.folder}/temp"]) + "\n")
        self._sockets = sockets
        self._command = [*wrapper, *command(constants or {}), "-d", "3", "-f", str(self.configuration)]
        name = f"@{self.folder.name}" if abstract else str(self.folder / "notify")
        self._environment = {"NOTIFY_SOCKET": name, "PYTHONUNBUFFERED": "1"}
        if watchdog is not None:
            self._environment["WATCHDOG_USEC"] = str(int(watchdog * 1e6))
        self._ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ear.bind("\0" + name[1:] if abstract else name)
        self.words: list[str] = []
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()
        self._starts = 0
        self.program: Program | None = None

    def _listen(self) -> None:
        while datagram := self._ear.recv(65536):
            self.words += datagram.decode().split("\n")

    def start(self) -> Program:
        """Start a daemon; do not wait for it."""
        self._starts += 1
        high = [fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD, _FREE) for sock in self._sockets]
        passing = [sys.executable, "-E", "-S", "-c", _PASS, str(len(high)), *map(str, high)]
        try:
            self.program = Program(
                [*passing, *self._command],
                output=self.folder / f"log{self._starts}",
                environment=self._environment,
                descriptors=high,
            )
        finally:
            for descriptor in high:
                socket.close(descriptor)
        return self.program

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop the daemon; return the exit status."""
        assert self.program is not None
        return self.program.stop(number)

    def log(self) -> str:
        """Return what all daemons have logged so far."""
        return "".join((self.folder / f"log{start + 1}").read_text() for start in range(self._starts))

    def wait_for(self, word: str, *, times: int = 1, seconds: float = 20) -> None:
        """Wait until something has been said so many times."""
        wait_until(lambda: self.words.count(word) >= times, f"{word} among {self.words}", seconds=seconds)

    def wait_for_log(self, text: str, *, times: int = 1) -> None:
        """Wait until a text is so many times in the log."""
        wait_until(lambda: self.log().count(text) >= times, f"{text!r} in the log: {self.log()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.program is not None:
            self.program.stop(signal.SIGKILL)
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mouth:
            # The end of the thread that hears.
            mouth.sendto(b"", self._ear.getsockname())
        self._listener.join()
        self._ear.close()
        shutil.rmtree(self.folder, ignore_errors=True)
