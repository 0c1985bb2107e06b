"""A clamd of our own, with a database of our own: its verdicts do not change from day to day."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from clamsmtpd.values import TcpAddress, UnixAddress
from tests.support.process import Program, accepts, free_port

__all__ = ["EICAR", "EICAR_NAME", "TESTFILE_NAME", "TEST_FILES", "Clamd"]

#: The test file that every scanner knows (eicar.org). In two halves, or a scanner would take this file away.
EICAR = rb"X5O!P%@AP[4\PZX54(P^)7CC)7}" + rb"$EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"

#: What clamd says for each; it marks signatures that are not the official ones.
EICAR_NAME = "Eicar-Test-Signature.UNOFFICIAL"
TESTFILE_NAME = "ClamAV-Test-File.UNOFFICIAL"

#: The files of the package clamav-testfiles: one small program, packed in many ways.
TEST_FILES = Path("/usr/share/clamav-testfiles")


class Clamd:
    """A running clamd, at the Unix socket ``unix`` and at the TCP port ``tcp``.

    ``settings`` are further lines of clamd.conf(5), ``database`` further files of signatures by their names.
    With ``log_clean`` it logs every scan, not only what it finds. ``parent`` is the folder in which it has one of its
    own. It runs as whoever runs the tests. A ``blind`` one has no signatures but those in ``database``.
    """

    def __init__(
        self,
        *settings: str,
        log_clean: bool = True,
        database: Mapping[str, str | bytes] | None = None,
        blind: bool = False,
        parent: str | None = None,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="clamsmtpd-clamd-", dir=parent))
        self.folder.chmod(0o755)
        self.unix = UnixAddress(str(self.folder / "clamd.sock"))
        self.tcp = TcpAddress("127.0.0.1", free_port())
        self.log = self.folder / "log"
        (self.folder / "database").mkdir()
        if not blind:
            self.write_signatures()
        for name, signatures in (database or {}).items():
            octets = signatures if isinstance(signatures, bytes) else signatures.encode()
            (self.folder / "database" / name).write_bytes(octets)
        lines = [
            "Foreground yes",
            f"DatabaseDirectory {self.folder / 'database'}",
            f"TemporaryDirectory {self.folder}",
            f"LocalSocket {self.unix.path}",
            "LocalSocketMode 666",
            f"TCPSocket {self.tcp.port}",
            f"TCPAddr {self.tcp.host}",
            f"LogFile {self.log}",
            "LogTime yes",
            f"LogClean {'yes' if log_clean else 'no'}",
            # Started as root it would else become clamav, who may not read this folder's neighbours.
            *(["User root"] if os.geteuid() == 0 else []),
            *settings,
        ]
        self._configuration = self.folder / "clamd.conf"
        self._configuration.write_text("\n".join(lines) + "\n")
        self._program = self._start()

    @property
    def pid(self) -> int:
        """The process that runs now."""
        return self._program.pid

    def _start(self) -> Program:
        program = Program(["clamd", f"--config-file={self._configuration}"], output=self.folder / "output")
        try:
            program.wait_until(
                lambda: accepts(self.unix.path) and accepts(("127.0.0.1", self.tcp.port)),
                "clamd to accept connections",
                seconds=50,
            )
        except BaseException:
            program.stop()
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        return program

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, and do not wait."""
        self._program.send(number)

    def restart(self) -> None:
        """End it, if it has not ended, and start it again at the same addresses."""
        self._program.stop()
        self._program = self._start()

    def write_signatures(self) -> None:
        """Give it, for its next start or reload, the signatures by which it knows the test files."""
        folder = self.folder / "database"
        name = EICAR_NAME.removesuffix(".UNOFFICIAL")
        (folder / "test.ndb").write_text(f"{name}:0:*:{EICAR.hex()}\n")
        program = TEST_FILES / "clam.exe"
        if program.exists():
            content = program.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            name = TESTFILE_NAME.removesuffix(".UNOFFICIAL")
            (folder / "test.hsb").write_text(f"{digest}:{len(content)}:{name}:73\n")

    def ask(self, command: bytes) -> bytes:
        """Send one command in the z form of clamd(8); return all that comes back."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(30)
            connection.connect(self.unix.path)
            connection.sendall(b"z" + command + b"\0")
            return b"".join(iter(lambda: connection.recv(65536), b""))

    def stop(self) -> None:
        """End it and remove its folder."""
        try:
            self._program.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
