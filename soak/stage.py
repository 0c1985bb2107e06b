"""All that takes part: two scanners, the next hop and the daemon, each of which can fail and come back."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from clamsmtpd.config import SETTINGS
from soak.figures import Figures, descendants_by_mark, look
from soak.life import Life
from tests.support.clamd import Clamd
from tests.support.process import Program, ProgramError, accepts, free_port, wait_until

__all__ = ["Stage", "marked"]

#: Lines of clamd.conf(5): connections that are kept come to an end while the soak goes on.
_CLAMD_SETTINGS = ("IdleTimeout 3", "MaxThreads 8")

#: Seconds that the daemon gives each step of others.
_TIME_OUT = 15

#: Seconds until the daemon must have ended when it is asked to: a verdict may take a minute.
DRAIN_LIMIT = 90.0
#: Seconds until it must serve.
START_LIMIT = 60.0
#: Seconds until an idle daemon has let go of what it keeps between messages.
SETTLE_LIMIT = 45.0
#: Seconds without a descriptor less after which there is nothing left to come: some more than clamd's IdleTimeout.
_QUIET = 4.0

_MARK = "SOAK_RUN"


def marked() -> tuple[str, str]:
    """Return name and value of a variable of the environment for all that is started, by which it can be found."""
    return _MARK, uuid.uuid4().hex


class Stage:
    """A running daemon, with all that it needs around it. ``fault`` is told in words what must not be."""

    def __init__(self, *, seed: int, workers: int, fault: Callable[[str], None]) -> None:
        self._fault = fault
        self._chance = random.Random(f"{seed} next hop")
        self.folder = Path(tempfile.mkdtemp(prefix="clamsmtpd-soak-"))
        self.spool = self.folder / "spool"
        self.spool.mkdir(mode=0o700)
        self.records = self.folder / "records"
        self.log = self.folder / "log"
        self.port = free_port()
        self.next_hop_port = free_port()
        self._workers = workers
        self._configuration = self.folder / "clamsmtpd.conf"
        self._stack = contextlib.ExitStack()
        self.lives = 0
        #: The longest that a life took to end when it was asked to, in seconds.
        self.longest_drain = 0.0
        try:
            self.clamds = [self._stack.enter_context(Clamd(*_CLAMD_SETTINGS, log_clean=False)) for _ in range(2)]
            self.next_hop = self._start_next_hop()
            self._wait_for_next_hop()
            self._configuration.write_text("\n".join(self._settings()) + "\n")
            self.life = self._start_life()
            self._stack.callback(self._bury)
            self.life.wait_until_serving(seconds=START_LIMIT)
        except BaseException:
            self.close()
            raise

    def _settings(self) -> Iterator[str]:
        # One by descriptor, the other by stream; where there can be only one, the other has nothing to do.
        addresses = (self.clamds[0].unix.path, str(self.clamds[1].tcp))
        many = next(setting for setting in SETTINGS if setting.name == "ClamAddress").many
        for address in addresses if many else addresses[:1]:
            yield f"ClamAddress: {address}"
        yield f"OutAddress: 127.0.0.1:{self.next_hop_port}"
        yield f"Listen: 127.0.0.1:{self.port}"
        yield f"TempDirectory: {self.spool}"
        yield f"TimeOut: {_TIME_OUT}"
        yield f"Workers: {self._workers}"

    def _start_life(self) -> Life:
        self.lives += 1
        return Life(self._configuration, self.folder / "life.log")

    def _start_next_hop(self) -> Program:
        seed = str(self._chance.random())
        command = [sys.executable, "-m", "soak.nexthop", str(self.next_hop_port), str(self.records), "--seed", seed]
        return Program(command, output=self.folder / "nexthop.out")

    def _wait_for_next_hop(self) -> None:
        address = ("127.0.0.1", self.next_hop_port)
        self.next_hop.wait_until(lambda: accepts(address), "the next hop to accept connections", seconds=30)

    def start_load(self, *, first: int, count: int, seed: int, rate: float, pause: float) -> Program:
        """Start clients that send messages ``first`` and those behind it, ``count`` in all, ``rate`` a second.

        Whoever was not taken is tried again after ``pause`` seconds at most.
        """
        options = ["--first", str(first), "--count", str(count), "--seed", str(seed), "--rate", str(rate)]
        options += ["--pause", str(pause)]
        command = [sys.executable, "-m", "soak.load", str(self.port), str(self.records), *options]
        return Program(command, output=self.folder / "load.out")

    # ---- ends and beginnings ------------------------------------------------------------------

    def restart_next_hop(self) -> None:
        """Start the next hop, which has been killed, at the same port, and do not wait until it serves."""
        self.next_hop.stop(signal.SIGKILL)
        if text := self.next_hop.text():
            self._fault(f"the next hop wrote: {text[-500:]}")
        self.next_hop = self._start_next_hop()

    def end_life(self, *, asked: bool) -> None:
        """Note the end of the daemon's life, which has ended; ``asked``: to end in an orderly way."""
        lines = self.life.lines
        status = self.life.bury()
        if asked and status:
            self._fault(f"the daemon ended with status {status} after SIGTERM: {lines[-1:]}")
        with self.log.open("a") as log:
            log.writelines(f"{line}\n" for line in lines)

    def begin_life(self) -> None:
        """Start the daemon anew, and do not wait until it serves."""
        self.life = self._start_life()

    def stop_life(self) -> None:
        """End the daemon in an orderly way, and wait."""
        begin = time.monotonic()
        self.life.send(signal.SIGTERM)
        try:
            wait_until(lambda: not self.life.running, "the daemon to end", seconds=DRAIN_LIMIT)
        except ProgramError as error:
            self._fault(f"after SIGTERM: {error}")
        self.longest_drain = max(self.longest_drain, time.monotonic() - begin)
        self.end_life(asked=True)

    # ---- what it holds ------------------------------------------------------------------------

    def settle(self, before: Figures | None = None) -> Figures:
        """Wait until the daemon is idle, and has let go of what it keeps for a while; return what it holds then.

        It is waited for until it has no more descriptors than ``before``, or until there is nothing left to come.
        """
        if not self._idle():
            self._fault(f"sessions are left: {self._totals()[-1:]}")
        least = look(self.life.pid)
        deadline = time.monotonic() + SETTLE_LIMIT
        # clamd ends idle connections some seconds after the last message.
        quiet = time.monotonic() + _QUIET
        while time.monotonic() < deadline and (
            time.monotonic() < quiet if before is None else least.descriptors > before.descriptors
        ):
            time.sleep(0.2)
            now = look(self.life.pid)
            if now.descriptors < least.descriptors:
                quiet = time.monotonic() + _QUIET
                least = now
        return least

    def _idle(self) -> bool:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            self.life.send(signal.SIGUSR1)
            time.sleep(0.5)
            if (totals := self._totals()) and " sessions=0," in totals[-1]:
                return True
        return False

    def _totals(self) -> list[str]:
        return [line for line in self.life.lines if "totals: " in line]

    def _bury(self) -> None:
        # Those that there are then: each may have been replaced.
        self.life.bury()
        self.next_hop.stop(signal.SIGKILL)

    def close(self) -> None:
        """End everything. The folder with the records is left to the caller."""
        self._stack.close()

    def remove(self) -> None:
        """Remove the folder with all records and logs."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def survivors(mark: str, *, own: int) -> list[str]:
    """Return the processes with ``mark`` in their environment that still run, but for our ``own``."""
    return [f"{pid} {command}" for pid, command in descendants_by_mark(mark) if pid != own]
