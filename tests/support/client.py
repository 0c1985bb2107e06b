"""An SMTP client that says what a test tells it to, and leaves when it is told to. It works on a blocking socket."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
from types import TracebackType
from typing import Self

from tests.support.daemon import Daemon

__all__ = ["LOST", "NO_REPLY", "Client", "attempt", "text_of"]

#: In place of a reply: the connection has ended, or nothing came.
LOST = "connection lost"
NO_REPLY = "nothing"

_ENVELOPE = ("EHLO client.example.org", "MAIL FROM:<a@example.org>", "RCPT TO:<b@example.org>")


def text_of(name: str, size: int = 0) -> bytes:
    """Return a message that is like no other, of ``size`` octets or somewhat more."""
    lines = size // 78 + 1
    return b"Subject: %b\r\n\r\nThis is %b\r\n" % (name.encode(), name.encode()) + (b"y" * 76 + b"\r\n") * lines


class Client:
    """A connection to the daemon.

    Replies are given in short: the code, and of refusals the enhanced status code too, as in "451 4.3.0".
    """

    def __init__(self, daemon: Daemon, *, seconds: float = 20) -> None:
        self._socket = socket.create_connection((daemon.host, daemon.port), timeout=seconds)
        self._unread = b""

    def reply(self) -> str:
        """Return the next reply."""
        try:
            while not (found := re.match(rb"(?:\d{3}-[^\n]*\n)*(\d{3})(?: (\d\.\d+\.\d+))?[^\n]*\n", self._unread)):
                octets = self._socket.recv(65536)
                if not octets:
                    return LOST
                self._unread += octets
        except TimeoutError:
            return NO_REPLY
        except OSError:
            return LOST
        self._unread = self._unread[found.end() :]
        code = found[1].decode()
        return f"{code} {found[2].decode()}" if found[2] and code[0] in "45" else code

    def send(self, octets: bytes) -> None:
        """Send as much as the other side takes; that it has gone is told by the reply."""
        with contextlib.suppress(OSError):
            self._socket.sendall(octets)

    def ask(self, line: str) -> str:
        """Send a command; return the reply."""
        self.send(line.encode() + b"\r\n")
        return self.reply()

    def greet(self) -> str:
        """Take the greeting, and send the envelope; return the last reply, the first that is no success."""
        reply = self.reply()
        return self.envelope() if reply == "220" else reply

    def envelope(self) -> str:
        """Send the envelope; return the last reply, the first that is no success."""
        reply = ""
        for line in _ENVELOPE:
            reply = self.ask(line)
            if reply != "250":
                break
        return reply

    def data(self) -> str:
        """Get as far as the text of a message; return the last reply, 354 if that succeeded."""
        reply = self.greet()
        return self.ask("DATA") if reply == "250" else reply

    def message(self, text: bytes) -> str:
        """Send one from greeting to final dot; return the reply to that, or the first one that is no success."""
        reply = self.data()
        return self.finish(text) if reply == "354" else reply

    def finish(self, text: bytes = b"") -> str:
        """Send the text, or what there is left of it, and the final dot; return the reply."""
        self.send(text + b".\r\n")
        return self.reply()

    def say_no_more(self) -> None:
        """Close the connection in one direction."""
        self._socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """End the connection without a farewell."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def attempt(daemon: Daemon, text: bytes) -> str:
    """Try to send one message; return the reply that decided about it."""
    with Client(daemon) as client:
        return client.message(text)
