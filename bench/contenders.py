"""Who is compared, and the stage that they all stand on: one clamd, one next hop, settings that differ in nothing."""

from __future__ import annotations

import contextlib
import enum
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.clamd import Clamd
from tests.support.process import Program, ProgramError, accepts, free_port

__all__ = ["CONTENDERS", "Contender", "Kind", "Python", "Running", "SkippedError", "Stage", "memory_folder"]

ROOT = Path(__file__).resolve().parent.parent
_ORIGINALS = (Path("/usr/sbin/clamsmtpd"), ROOT / ".build/root/usr/sbin/clamsmtpd")

#: As in Debian's clamd.conf, where it differs from clamd's own defaults and mail could notice.
_CLAMD = ("MaxThreads 20", "ReadTimeout 180", "MaxRecursion 16", "MaxFiles 10000")


class SkippedError(Exception):
    """A contender cannot take part here; the text says why."""


class Kind(enum.Enum):
    """How a contender is run."""

    OURS = enum.auto()
    ORIGINAL = enum.auto()
    #: The original without what stalls it (best_case.c).
    BEST_CASE = enum.auto()
    NO_PROXY = enum.auto()
    CLAMD = enum.auto()


@dataclass(frozen=True)
class Contender:
    """One row of what is measured in each scenario.

    ``settings`` are its own, beside those that all have; ``connections_max`` is the most that MaxConnections may be.
    """

    name: str
    title: str
    kind: Kind
    settings: tuple[str, ...] = ()
    connections_max: int = sys.maxsize


CONTENDERS = (
    Contender("ours", "clamsmtpd, as configured by default", Kind.OURS),
    Contender("ours-1", "clamsmtpd, Workers: 1", Kind.OURS, ("Workers: 1",)),
    Contender("ours-2", "clamsmtpd, Workers: 2", Kind.OURS, ("Workers: 2",)),
    Contender("original", "clamsmtpd 1.10, as packaged", Kind.ORIGINAL, connections_max=1023),
    Contender("best", "clamsmtpd 1.10, TCP_NODELAY and backlog forced", Kind.BEST_CASE, connections_max=1023),
    Contender("none", "no proxy", Kind.NO_PROXY),
    Contender("clamd", "clamd alone", Kind.CLAMD),
)


@dataclass(frozen=True)
class Running:
    """A contender at work; ``program`` is None where there is no proxy. ``port`` is where mail goes."""

    contender: Contender
    port: int
    program: Program | None


class Python:
    """The interpreter that the daemon, the load generator and the next hop run with.

    An administrator's daemon runs with the distribution's, so that is taken where it has the minor version for
    which the packages were installed. Raises SkippedError if uvloop does not load in the one that was asked for.
    """

    def __init__(self, asked: str | None, *, own: str) -> None:
        packages = os.pathsep.join([str(ROOT / "src"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
        self.environment = {"PYTHONPATH": packages}
        own_version, _, _ = self._look_at(own)
        self.path = asked or own
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            version, _, has_uvloop = self._look_at("/usr/bin/python3")
            if not asked and has_uvloop and version.rpartition(".")[0] == own_version.rpartition(".")[0]:
                self.path = "/usr/bin/python3"
        try:
            self.version, optimised, has_uvloop = self._look_at(self.path)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SkippedError(f"{self.path} does not run: {error}") from None
        if not has_uvloop:
            raise SkippedError(f"{self.path} cannot load uvloop as it is installed for {own}")
        self.build = "an optimised build" if optimised else "not an optimised build"

    def _look_at(self, path: str) -> tuple[str, bool, bool]:
        """Return version, whether it is an optimised build, and whether it can load uvloop."""
        # A distribution runs the profiler by hand, and its configuration does not tell.
        program = """
import importlib.util, json, platform, sys, sysconfig
try:
    import uvloop
except ImportError:
    uvloop = None
optimised = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
print(json.dumps([platform.python_version(), optimised or sys.base_prefix == "/usr", uvloop is not None]))
"""
        command = [path, "-c", program]
        environment = {**os.environ, **self.environment}
        printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        version, optimised, has_uvloop = json.loads(printed)
        return version, optimised, has_uvloop


def memory_folder() -> str | None:
    """Return a folder in memory, None if there is none that can be written to.

    clamd makes folders and files for each mail. On a disk that is most of its time, more so the longer it runs (ext4
    passes over the inodes of files just removed), and hides what the proxy costs. So it is with the original.
    """
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Stage:
    """A clamd and a next hop for contenders that are started one after the other, and all stay up.

    ``database`` are further signatures, ``clamd_settings`` further lines of clamd.conf(5), ``connections`` what the
    next hop has to bear, ``slow`` the octets a second at which it reads a text, 0 for as fast as it can. clamd works
    in memory, and so do the contenders unless their spools are to be ``on_disk``.
    """

    def __init__(
        self,
        python: Python,
        *clamd_settings: str,
        database: Mapping[str, str] | None = None,
        connections: int = 1000,
        slow: int = 0,
        on_disk: bool = False,
    ) -> None:
        self.python = python
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            parent = None if on_disk else memory_folder()
            folder = tempfile.TemporaryDirectory(prefix="clamsmtpd-bench-", dir=parent)
            self.folder = Path(stack.enter_context(folder))
            self.folder.chmod(0o755)
            self.clamd = Clamd(*_CLAMD, *clamd_settings, log_clean=False, database=database, parent=memory_folder())
            stack.callback(self.clamd.stop)
            self.sink_port = free_port()
            self.sink = Program(
                [
                    *(python.path, str(ROOT / "bench/sink.py"), str(self.sink_port)),
                    *("--slow", str(slow), "--connections", str(connections)),
                ],
                output=self.folder / "sink.log",
            )
            stack.callback(self.sink.stop)
            self.sink.wait_until(lambda: accepts(("127.0.0.1", self.sink_port)), "the next hop to accept connections")
            self._stack = stack.pop_all()

    def start(self, contender: Contender, *settings: str) -> Running:
        """Start one, with further settings if any. Raises SkippedError if that cannot be done here."""
        if contender.kind in {Kind.NO_PROXY, Kind.CLAMD}:
            return Running(contender, self.sink_port, None)
        command, environment = self._command(contender.kind)
        port, spool = free_port(), Path(tempfile.mkdtemp(prefix="spool-", dir=self.folder))
        configuration = spool.with_suffix(".conf")
        lines = [
            f"Listen: 127.0.0.1:{port}",
            f"OutAddress: 127.0.0.1:{self.sink_port}",
            f"ClamAddress: {self.clamd.unix}",
            f"TempDirectory: {spool}",
            # The default, 64, is too near to 50 sessions for one that is slow to notice their ends.
            *(settings or ["MaxConnections: 200"]),
            *contender.settings,
        ]
        configuration.write_text("\n".join(lines) + "\n")
        program = Program(
            [*command, "-d", "1", "-f", str(configuration)], output=spool.with_suffix(".log"), environment=environment
        )
        self._stack.callback(program.stop)
        try:
            program.wait_until(lambda: accepts(("127.0.0.1", port)), f"{contender.title} to accept connections")
        except ProgramError as error:
            said = program.text().strip().splitlines()
            raise SkippedError(f"it does not start: {said[-1] if said else error}") from None
        return Running(contender, port, program)

    def _command(self, kind: Kind) -> tuple[Sequence[str], Mapping[str, str]]:
        if kind is Kind.OURS:
            return [self.python.path, "-m", "clamsmtpd"], self.python.environment
        original = next((path for path in _ORIGINALS if path.exists()), None)
        if original is None:
            raise SkippedError(
                "the original clamsmtpd is not installed: scripts/setup test gets it where there is a package"
            )
        if kind is Kind.ORIGINAL:
            return [str(original)], {}
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise SkippedError("no C compiler, which bench/best_case.c needs")
        library = self.folder / "best_case.so"
        source = str(ROOT / "bench/best_case.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(library), source, "-ldl"], check=True)
        return [str(original)], {"LD_PRELOAD": str(library)}

    def taken(self) -> int:
        """Return how many messages the next hop took so far."""
        with socket.create_connection(("127.0.0.1", self.sink_port)) as connection, connection.makefile("rb") as lines:
            lines.readline()
            connection.sendall(b"STAT\r\n")
            return int(lines.readline().split()[1])

    def close(self) -> None:
        """End all of them and remove what they left."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
