"""A connected socket as a transport that makes no detours: what is written goes out in the same call."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from clamsmtpd.poller import READABLE, WRITABLE, Poller

__all__ = ["HIGH_WATER", "Connection"]

#: Octets that may wait for the other side to take them before the protocol is told to pause.
HIGH_WATER = 65536

# Octets read at once: commands, replies and small messages, and the text of large ones. A large buffer for every
# small read would cost more than the reads that it saves.
_READ_SMALL = 16384
_READ_LARGE = 262144

# Buffers in one system call (IOV_MAX of Linux).
_PIECES_MAX = 1024

_Octets = bytes | bytearray | memoryview


class Connection(asyncio.Transport):
    """The connection by ``sock``, which does not block, and belongs to this from now on.

    ``protocol`` hears of it, but for what comes in: that is for ``received``. ``poller`` says when it is ready.

    It is a transport as asyncio knows them, so that one with TLS can stand in its place. But it is made without a
    task or a future, even before a connection under way has come about: the first sign of life, or of death, is
    something to read, which suits SMTP, where the server speaks first. ``connection_made`` is not called.
    """

    __slots__ = (
        "_closing",
        "_descriptor",
        "_eof",
        "_events",
        "_full",
        "_over",
        "_poller",
        "_protocol",
        "_queue",
        "_queued",
        "_read_ended",
        "_received",
        "_size",
        "_socket",
    )

    def __init__(
        self, sock: socket.socket, protocol: asyncio.Protocol, received: Callable[[bytes], None], poller: Poller
    ) -> None:
        self._socket = sock
        self._descriptor = sock.fileno()
        self._protocol = protocol
        self._received = received
        self._poller = poller
        self._size = _READ_SMALL
        # Nothing more will come.
        self._read_ended = False
        self._queue: deque[_Octets] | None = None
        self._queued = 0
        # The protocol has been told to pause.
        self._full = False
        # An end of our side, or of both, is wanted once all has been sent.
        self._eof = False
        self._closing = False
        self._over = False
        # What the poller waits for; with nothing, it does not know of us.
        self._events = READABLE
        poller.watch(self._descriptor, READABLE, self._on_ready)

    def detach(self) -> socket.socket | None:
        """Give the socket up to somebody else; None, and nothing is done, while there is something left to send."""
        if self._queue or self._closing:
            return None
        self._wait_for(0)
        self._closing = self._over = True
        return self._socket

    def get_extra_info(self, name: str, default: object = None) -> object:
        """Return the ``socket``; nothing else is known."""
        return self._socket if name == "socket" else default

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return who hears of it."""
        return self._protocol

    def _wait_for(self, events: int) -> None:
        if events == self._events:
            return
        if not events:
            self._poller.forget(self._descriptor)
        elif not self._events:
            self._poller.watch(self._descriptor, events, self._on_ready)
        else:
            self._poller.change(self._descriptor, events)
        self._events = events

    def _on_ready(self, events: int) -> None:
        # An error or a reset is there for whoever is waited for to find. First what the other side said before it went,
        # such as why it does not take a message: to write would only find that it has gone.
        try:
            if self._events & READABLE and events & ~WRITABLE:
                self._on_readable()
            if self._events & WRITABLE and events & ~READABLE:
                self._on_writable()
        except Exception as error:  # noqa: BLE001 - a fault of ours must not take those along whose turn is next
            self._poller.loop.call_exception_handler({"message": "fault in a connection", "exception": error})
            self._end(None)

    # ---- reading ------------------------------------------------------------------------------

    def pause_reading(self) -> None:
        """Leave what comes to the kernel."""
        self._wait_for(self._events & ~READABLE)

    def resume_reading(self) -> None:
        """Read on."""
        if not (self._read_ended or self._closing):
            self._wait_for(self._events | READABLE)

    def _on_readable(self) -> None:
        try:
            data = self._socket.recv(self._size)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end(error)
            return
        if not data:
            # It would be readable for ever.
            self.pause_reading()
            self._read_ended = True
            if not self._protocol.eof_received():
                self.close()
            return
        self._size = _READ_LARGE if len(data) >= _READ_SMALL else _READ_SMALL
        self._received(data)

    # ---- writing ------------------------------------------------------------------------------

    def get_write_buffer_size(self) -> int:
        """Return how many octets wait to be sent."""
        return self._queued

    def write(self, data: _Octets) -> None:
        """Send octets, at once if the kernel takes them."""
        if self._queue or self._closing:
            self._keep((data,))
            return
        try:
            sent = self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._end(error)
            return
        if sent < len(data):
            self._keep((memoryview(data)[sent:],))

    def writelines(self, list_of_data: Iterable[_Octets]) -> None:
        """Send pieces, all in one call if the kernel takes them."""
        pieces = list(list_of_data)
        if not (self._queue or self._closing):
            pieces = self._send(pieces)
        if pieces:
            self._keep(pieces)

    def send_file(self, descriptor: int, start: int, stop: int) -> int:
        """Send octets ``start`` to ``stop`` of a file, as many as the kernel takes now; return how many.

        The rest is not kept. If there is one, the protocol is told to pause writing, and to resume when it is time
        for the next call: others have their turn before, and so has what the other side may say meanwhile. Raises
        OSError when the file is shorter than that.
        """
        sent = 0
        if start < stop and not (self._queue or self._closing):
            try:
                sent = os.sendfile(self._descriptor, descriptor, start, stop - start)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError as error:
                self._end(error)
            else:
                if not sent:
                    raise OSError(errno.EIO, "the file ended early")
        if sent < stop - start and not self._closing:
            self._wait_for(self._events | WRITABLE)
            self._pause_protocol()
        return sent

    def _send(self, pieces: list[_Octets]) -> list[_Octets]:
        """Send pieces; return what is left of them."""
        try:
            sent = self._socket.sendmsg(pieces[:_PIECES_MAX])
        except (BlockingIOError, InterruptedError):
            return pieces
        except OSError as error:
            self._end(error)
            return []
        for number, piece in enumerate(pieces):
            if sent < len(piece):
                return [memoryview(piece)[sent:], *pieces[number + 1 :]]
            sent -= len(piece)
        return []

    def _keep(self, pieces: Sequence[_Octets]) -> None:
        if self._closing:
            return
        if self._queue is None:
            self._queue = deque()
        self._queue.extend(pieces)
        self._queued += sum(map(len, pieces))
        self._wait_for(self._events | WRITABLE)
        if self._queued > HIGH_WATER:
            self._pause_protocol()

    def _pause_protocol(self) -> None:
        if not self._full:
            self._full = True
            self._protocol.pause_writing()

    def _on_writable(self) -> None:
        if self._queue:
            left = self._send(list(self._queue))
            if self._over:
                return
            self._queue = deque(left) if left else None
            self._queued = sum(map(len, left))
            if left:
                return
        if self._full:
            self._full = False
            self._protocol.resume_writing()
        if self._queue or self._full or self._over:
            return
        self._wait_for(self._events & ~WRITABLE)
        if self._closing:
            self._end(None)
        elif self._eof:
            self._shut_down()

    # ---- the end ------------------------------------------------------------------------------

    def can_write_eof(self) -> bool:
        """Tell that one side can be closed alone."""
        return True

    def write_eof(self) -> None:
        """Say that nothing more will be written, once all has been sent."""
        self._eof = True
        if not (self._queue or self._closing):
            self._shut_down()

    def _shut_down(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._end(error)

    def is_closing(self) -> bool:
        """Whether it is closed, or will be once all has been sent."""
        return self._closing

    def close(self) -> None:
        """Send what is left, and close."""
        if not self._closing:
            self._closing = True
            self.pause_reading()
            if not self._queue:
                self._end(None)

    def abort(self) -> None:
        """Close at once."""
        self._end(None)

    def _end(self, error: OSError | None) -> None:
        if self._over:
            return
        self._closing = self._over = True
        if self._events:
            self._events = 0
            self._poller.forget_closing(self._descriptor)
        self._queue = None
        self._queued = 0
        # Whoever has just called would not expect to be called back by it.
        self._poller.loop.call_soon(self._tell, error)

    def _tell(self, error: OSError | None) -> None:
        self._socket.close()
        self._protocol.connection_lost(error)
