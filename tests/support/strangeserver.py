"""A server that says what a test wants, whatever it hears, to each of its clients."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from clamsmtpd.values import TcpAddress

__all__ = ["StrangeServer"]


class StrangeServer:
    """Sends ``pieces`` at once, with ``pause`` seconds between them, and then reads on, or hangs up if ``cut``."""

    def __init__(self, *pieces: bytes, pause: float = 0.0, cut: bool = False, endless: bytes = b"") -> None:
        self._pieces = pieces
        self._pause = pause
        self._cut = cut
        self._endless = endless
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = TcpAddress("127.0.0.1", self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._clients: list[socket.socket] = []
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._clients.append(client)
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            for piece in self._all():
                client.sendall(piece)
                if self._over.wait(self._pause):
                    return
            while not self._cut and client.recv(65536):
                pass

    def _all(self) -> Iterable[bytes]:
        yield from self._pieces
        while self._endless:
            yield self._endless

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for client in self._clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
