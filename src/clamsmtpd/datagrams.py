"""A log handler that sends each record as a datagram to a unix socket, and never waits."""

from __future__ import annotations

import logging
import socket
import time

__all__ = ["DatagramHandler"]

#: Seconds without a try to reach a log daemon that is not there: mail goes on as fast as with one.
_RETRY_INTERVAL = 1.0


class DatagramHandler(logging.Handler):
    """Sends to the socket at ``path``; :meth:`encode` says what.

    A log daemon that has stopped reading must not stop the mail. What could not be sent is counted, and told once the
    way is free again.
    """

    #: What the log daemon is called in that line.
    daemon = "the log daemon"

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._socket: socket.socket | None = None
        self._lost = 0
        self._next_try = 0.0

    def encode(self, text: str, record: logging.LogRecord) -> bytes:
        """Return the datagram for a record, which is ``text`` as a line."""
        raise NotImplementedError

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record; count it as lost if it cannot be sent at once."""
        if self._lost:
            lost = logging.makeLogRecord(
                {
                    "name": record.name,
                    "levelno": logging.WARNING,
                    "levelname": "WARNING",
                    "msg": "%s log lines were lost, %s did not take them",
                    "args": (self._lost, self.daemon),
                }
            )
            if not self._send(self.encode(self.format(lost), lost)):
                self._lost += 1
                return
            self._lost = 0
        try:
            data = self.encode(self.format(record), record)
        except Exception:  # noqa: BLE001 - as in the handlers of logging: no line is worth what is being done
            self.handleError(record)
            return
        if not self._send(data):
            self._lost += 1

    def _send(self, data: bytes) -> bool:
        if self._socket is not None:
            try:
                self._socket.send(data)
            except BlockingIOError:
                return False
            except OSError:
                # It may have been started again, with a new socket.
                self.close_socket()
            else:
                return True
        return self._connect_and_send(data)

    def _connect_and_send(self, data: bytes) -> bool:
        now = time.monotonic()
        if now < self._next_try:
            return False
        try:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._socket.connect(self._path)
            self._socket.send(data)
        except BlockingIOError:
            return False
        except OSError:
            self.close_socket()
            self._next_try = now + _RETRY_INTERVAL
            return False
        return True

    def close_socket(self) -> None:
        """Close the socket; the next record opens a new one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        """Release the socket for good."""
        self.close_socket()
        super().close()
