"""A clamd in this process, with sessions, that sees as much and answers as a test says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from clamsmtpd.values import UnixAddress
from tests.support.clamd import EICAR

__all__ = ["FakeClamd"]


@dataclass
class FakeClamd:
    """Listens at ``path`` within the block, and again after :meth:`restart`."""

    path: str
    version: bytes = b"ClamAV 1.0/1/now"
    #: Octets of a file above which it sees nothing.
    limit: int = 1 << 40
    #: Whether it knows the test file.
    sees: bool = True
    #: Whether it knows it only where nothing stands behind.
    whole: bool = False
    #: What it says in place of a verdict on a message of the tests; none to end the connection.
    strange: bytes | None = b""
    #: Whether it takes messages of the tests and never answers.
    holds: bool = False
    #: What it says to whoever connects, without being asked.
    greeting: bytes = b""
    #: Whether it says anything at all.
    silent: bool = False
    #: Whether it answers nothing but VERSION.
    stuck: bool = False
    #: Whether it has sessions.
    sessions: bool = True
    #: The texts that it was given, as far as they are none of the samples.
    texts: list[bytes] = field(default_factory=list)
    #: The sizes of the test file that it was given.
    probes: list[int] = field(default_factory=list)
    canaries: int = 0
    connections: int = 0
    _open: set[socket.socket] = field(default_factory=set)
    _listener: socket.socket | None = None

    @property
    def address(self) -> UnixAddress:
        return UnixAddress(self.path)

    def start(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(100)
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def end(self) -> None:
        """End, and let the connections break."""
        loop = asyncio.get_running_loop()
        if self._listener is not None:
            loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        for connection in list(self._open):
            self._hang_up(connection)

    def restart(self) -> None:
        self.end()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(BlockingIOError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            self.connections += 1
            self._open.add(connection)
            if self.greeting:
                connection.send(self.greeting)
            state = {"number": 0, "session": 0}
            asyncio.get_running_loop().add_reader(connection, self._read, connection, state)

    def _hang_up(self, connection: socket.socket) -> None:
        if connection in self._open:
            self._open.discard(connection)
            asyncio.get_running_loop().remove_reader(connection)
            connection.close()

    def _read(self, connection: socket.socket, state: dict[str, int]) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(connection, 65536, 64)
        except OSError:
            data, descriptors = b"", []
        files = []
        for descriptor in descriptors:
            with os.fdopen(descriptor, "rb") as file:
                size = os.fstat(descriptor).st_size
                files.append((file.read(4096), size))
        if not data:
            self._hang_up(connection)
            return
        if self.silent or self.greeting:
            return
        for command in filter(None, data.split(b"\0")):
            if command == b"zIDSESSION":
                if not self.sessions:
                    connection.send(b"UNKNOWN COMMAND\0")
                    self._hang_up(connection)
                    return
                state["session"] = 1
                continue
            state["number"] += 1
            if command == b"zVERSION":
                reply: bytes | None = self.version
            elif command == b"zPING":
                reply = b"PONG"
            else:
                reply = self._judge(*files.pop(0))
            if reply is None:
                self._hang_up(connection)
                return
            if reply:
                prefix = b"%d: " % state["number"] if state["session"] else b""
                with contextlib.suppress(BrokenPipeError):
                    connection.send(prefix + reply + b"\0")

    def _judge(self, text: bytes, size: int) -> bytes | None:
        if text.startswith(EICAR):
            self.probes.append(size)
            if size == len(EICAR):
                self.canaries += 1
        elif b"canary" not in text:
            self.texts.append(text)
            if self.strange != b"":
                return self.strange
            if self.holds:
                return b""
        if self.stuck:
            return b""
        seen = self.sees and size <= self.limit and (not self.whole or size <= len(EICAR))
        return b"fd[1]: Eicar FOUND" if seen and EICAR in text else b"fd[1]: OK"
