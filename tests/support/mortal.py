"""A next hop in a process of its own that dies, or falls asleep, at one exact moment of a dialogue."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from clamsmtpd.values import TcpAddress
from tests.support.process import Program, free_port, wait_until

__all__ = ["MortalHop"]

_ROOT = Path(__file__).parent.parent.parent


class MortalHop:
    """A next hop that sends itself the signal ``number``, SIGKILL or SIGSTOP, at the ``moment``.

    That is before it says anything ("greeting"), before its reply to a command (its verb), in the midst of a message
    ("text"), after the final dot with nothing stored ("final dot"), with the message stored but nothing said
    ("stored"), and when its 250 is said ("answered"). That happens once. Without a moment it lives on.
    """

    def __init__(self, moment: str = "", number: signal.Signals = signal.SIGKILL) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="clamsmtpd-hop-"))
        self.address = TcpAddress("127.0.0.1", free_port())
        (self._folder / "queue").mkdir()
        arguments = [str(self.address.port), str(self._folder / "queue"), moment, str(int(number))]
        self._program = Program(
            [sys.executable, "-m", "tests.support.mortal", *arguments],
            output=self._folder / "output",
            environment={"PYTHONPATH": os.pathsep.join([str(_ROOT), *sys.path])},
        )
        # Not by a connection: it could be its last.
        self._program.wait_until(lambda: "listening" in self._program.text(), "the next hop to listen")

    def wait_until_asleep(self) -> None:
        """Return once it has stopped itself."""
        state = Path(f"/proc/{self._program.pid}/stat")
        wait_until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", "the next hop to be stopped")

    def wake(self) -> None:
        """Let it go on."""
        self._program.send(signal.SIGCONT)

    @property
    def messages(self) -> list[bytes]:
        """The texts of all messages that it has stored."""
        return [path.read_bytes() for path in (self._folder / "queue").glob("*.message")]

    def stop(self) -> None:
        """End it and remove its folder."""
        try:
            self._program.stop(signal.SIGKILL)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Server:
    """What runs in that process."""

    def __init__(self, port: int, queue: Path, moment: str, number: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        # Less for the kernel to take of a message that stays where it is.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self._queue = queue
        self._moment = moment
        self._number = number

    def run(self) -> None:
        print("listening", flush=True)  # noqa: T201 - whoever waits reads it
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _reach(self, moment: str) -> None:
        if moment == self._moment:
            self._moment = ""
            os.kill(os.getpid(), self._number)
            # The signal may come to this thread a little later.
            time.sleep(0.5)

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self._reach("greeting")
            connection.sendall(b"220 hop.example.test ESMTP\r\n")
            lines = connection.makefile("rb")
            for line in lines:
                verb = line[:4].decode().upper().strip()
                self._reach(verb)
                if verb == "DATA":
                    connection.sendall(b"354 Go on\r\n")
                    if not self._take(connection):
                        return
                    connection.sendall(b"250 2.0.0 Ok: queued\r\n")
                    self._reach("answered")
                elif verb == "EHLO":
                    connection.sendall(b"250-hop.example.test\r\n250 ENHANCEDSTATUSCODES\r\n")
                else:
                    connection.sendall(b"221 2.0.0 Bye\r\n" if verb == "QUIT" else b"250 2.0.0 Ok\r\n")

    def _take(self, connection: socket.socket) -> bool:
        """Read a message, and store it; tell whether it was whole."""
        text = bytearray()
        while not text.endswith(b"\r\n.\r\n"):
            received = connection.recv(65536)
            if not received:
                return False
            text += received
            if not text.endswith(b"\r\n.\r\n"):
                self._reach("text")
        self._reach("final dot")
        place = self._queue / f"{threading.get_ident()}-{os.urandom(8).hex()}"
        place.write_bytes(text[:-3])
        place.rename(place.with_suffix(".message"))
        self._reach("stored")
        return True


if __name__ == "__main__":
    _Server(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])).run()
