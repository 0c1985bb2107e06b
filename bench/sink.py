"""A next hop that takes all mail, and costs less than Postfix's smtp-sink: one process, epoll, no look at each octet.

It serves as many connections as descriptors last. With --slow a text is read at so many octets a second a
connection, as by a next hop whose disk is busy. To STAT it replies with the number of messages that it took.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.machine import raise_file_limit

_GREETING = b"220 sink.bench.invalid ESMTP\r\n"
_EHLO = b"250-sink.bench.invalid\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 0\r\n"
_REPLIES = {b"EHLO": _EHLO, b"DATA": b"354 Go on\r\n", b"QUIT": b"221 2.0.0 Bye\r\n"}
_OTHER = b"250 2.0.0 Ok\r\n"

_END = b"\r\n.\r\n"
_BUFFER = 256 * 1024
#: Seconds between two looks at the connections that are slow.
_TICK = 0.05


class Peer:
    """One connection."""

    __slots__ = ("line", "rest", "socket", "tail", "text")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.line = b""
        #: Within a message.
        self.text = False
        #: What the text so far ends with, as far as it could begin its end.
        self.tail = b""


class Sink:
    """All connections of one listener."""

    def __init__(self, port: int, *, slow: int = 0) -> None:
        self._listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self._listener.settimeout(0)
        # Inherited by what is accepted.
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._slow = slow
        if slow:
            # What the kernel keeps for us would else be a large part of the message.
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        self._taken = 0
        self._peers: dict[int, Peer] = {}
        self._resting: list[Peer] = []
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)
        self._buffer = bytearray(min(_BUFFER, max(1, int(slow * _TICK))) if slow else _BUFFER)
        self._view = memoryview(self._buffer)

    def run(self) -> None:
        """Serve until something ends the process."""
        listener, peers = self._listener.fileno(), self._peers
        wake = 0.0
        while True:
            for descriptor, _ in self._poll.poll(_TICK if self._resting else None, 1024):
                if descriptor == listener:
                    self._accept()
                else:
                    self._read(peers[descriptor])
            if self._resting and time.monotonic() >= wake:
                wake = time.monotonic() + _TICK
                self._wake()

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(64):
                connection, _ = self._listener.accept()
                connection.settimeout(0)
                self._peers[connection.fileno()] = Peer(connection)
                self._poll.register(connection, select.EPOLLIN)
                connection.send(_GREETING)

    def _read(self, peer: Peer) -> None:
        try:
            count = peer.socket.recv_into(self._buffer)
            if not count:
                self._close(peer)
            elif peer.text:
                self._read_text(peer, count)
            else:
                self._read_commands(peer, bytes(self._view[:count]))
        except BlockingIOError:
            pass
        except OSError:
            self._close(peer)

    def _read_text(self, peer: Peer, count: int) -> None:
        # Most of a large message has no dot at all, and nothing else finds that out so fast.
        if self._buffer.find(b".", 0, count) < 0 and b"." not in peer.tail:
            peer.tail = (peer.tail + self._view[max(0, count - 4) : count])[-4:]
        else:
            text = peer.tail + self._view[:count]
            end = text.find(_END)
            if end >= 0:
                peer.text = False
                self._taken += 1
                peer.socket.send(_OTHER)
                if end + len(_END) < len(text):
                    self._read_commands(peer, text[end + len(_END) :])
                return
            peer.tail = text[-4:]
        if self._slow:
            self._poll.modify(peer.socket, 0)
            self._resting.append(peer)

    def _read_commands(self, peer: Peer, received: bytes) -> None:
        received = peer.line + received
        *lines, peer.line = received.split(b"\r\n")
        replies = b""
        for number, line in enumerate(lines, 1):
            verb = line[:4].upper()
            replies += b"250 %d\r\n" % self._taken if verb == b"STAT" else _REPLIES.get(verb, _OTHER)
            if verb == b"DATA":
                peer.text, peer.tail = True, b"\r\n"
                peer.socket.send(replies)
                text = b"\r\n".join([*lines[number:], peer.line])
                peer.line = b""
                if text:
                    raise ConnectionAbortedError("text before our 354")
                return
        if replies:
            peer.socket.send(replies)

    def _wake(self) -> None:
        for peer in self._resting:
            if peer.socket.fileno() >= 0:
                self._poll.modify(peer.socket, select.EPOLLIN)
        self._resting.clear()

    def _close(self, peer: Peer) -> None:
        del self._peers[peer.socket.fileno()]
        peer.socket.close()


def main() -> int:
    """Serve as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int, help="port on 127.0.0.1")
    parser.add_argument("--slow", type=int, default=0, metavar="OCTETS", help="of a text, a second a connection")
    parser.add_argument("--connections", type=int, default=1000, help="at once, at most")
    options = parser.parse_args()
    raise_file_limit(options.connections + 50)
    Sink(options.port, slow=options.slow).run()
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
