"""``clamsmtpctl top`` at a terminal of 80 columns and 24 lines."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import smtplib
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.support.clamd import Clamd
from tests.support.daemon import Daemon
from tests.support.process import ProgramError
from tests.support.sink import Sink

pytestmark = pytest.mark.integration

INTERRUPT = b"\x03"

#: What moves the cursor, colours, or switches the screen; no text.
ESCAPE = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A program at a terminal of its own, which controls it as a person's does: Ctrl-C is SIGINT."""

    def __init__(self, *command: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        environment = {**os.environ, "TERM": "xterm"}
        # Those of whoever runs the tests would be believed more than the terminal.
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            environment.pop(name, None)
        self._process = subprocess.Popen(
            ["setsid", "--ctty", *command], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
        )
        os.close(theirs)
        self.written = b""

    def _read(self, seconds: float) -> bool:
        """Read on; return False once there is nobody left who could write."""
        if select.select([self._ours], [], [], seconds)[0]:
            try:
                self.written += os.read(self._ours, 65536)
            except OSError:  # EIO: the other side is closed.
                return False
        return True

    def wait_for(self, pattern: bytes, *, after: int = 0, seconds: float = 20) -> int:
        """Return where text that matches ends, in all that was written from ``after`` on, as soon as it is there."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, ESCAPE.sub(b"", self.written[after:])):
            if time.monotonic() > deadline or not self._read(0.1):
                raise ProgramError(f"in vain: {pattern!r} in {self.written[after:]!r}")
        return len(self.written)

    def press(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def wait(self, *, seconds: float = 20) -> int:
        """Read to its end; return the exit status."""
        deadline = time.monotonic() + seconds
        while self._read(0.1) and time.monotonic() < deadline:
            pass
        return self._process.wait(max(0.1, deadline - time.monotonic()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        os.close(self._ours)


def test_top_counts_a_message_while_one_looks_and_ends_by_control_c(tmp_path: Path) -> None:
    with (
        Clamd() as clamd,
        Sink() as hop,
        Daemon(f"OutAddress: {hop.address}", f"ClamAddress: {clamd.unix}", f"Admin: {tmp_path / 'admin'}") as daemon,
        Terminal(
            *(sys.executable, "-m", "clamsmtpd.ctl", "-f", str(daemon.configuration)), "top", "--interval", "0.2"
        ) as terminal,
    ):
        looked = terminal.wait_for(rb"clean +- +-[^\r\n]* 0\.0")
        assert b"\x1b[?1049h" in terminal.written
        with smtplib.SMTP(daemon.host, daemon.port, timeout=30) as client:
            client.sendmail("a@example.org", ["b@example.org"], b"Subject: lunch\r\n\r\nAt noon?\r\n")
        terminal.wait_for(rb"clean +1 +-", after=looked)
        terminal.wait_for(str(daemon.pid).encode())
        terminal.press(INTERRUPT)
        assert terminal.wait() == 0
        assert b"Traceback" not in terminal.written
        # The screen that was there before is back, and the cursor.
        assert b"\x1b[?1049l" in terminal.written
        assert b"\x1b[?25h" in terminal.written
        screens = re.split(rb"\x1b\[H|\x1b\[\?1049[hl]", terminal.written)
        lines = [ESCAPE.sub(b"", line).strip(b"\r") for screen in screens for line in screen.split(b"\n")]
        # What the terminal shows of Ctrl-C is none of ours.
        assert [line for line in lines if len(line.decode().removesuffix("^C")) > 80] == []
