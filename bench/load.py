"""A load generator that costs little: one process, epoll, a reply at a time, messages that are all different.

It prints one JSON object. Times are those of a message in milliseconds: from MAIL, or with --each from the
connection, to the reply to the final dot. A connection that is not greeted in a few seconds is tried again, as
it never will be if it got lost where a short queue of connections was full; ``stalls`` counts them. Connections that
are kept are opened one after the other, before anything is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import select
import socket
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.figures import percentile, steady_rate
from bench.mail import Letters

#: Pieces to send, and the reply to them.
Dialogue = Generator[Sequence[bytes | memoryview], bytes, None]

_EHLO = (b"EHLO client.bench.invalid\r\n",)
_MAIL = (b"MAIL FROM:<sender@bench.invalid>\r\n",)
_RCPT = (b"RCPT TO:<recipient@bench.invalid>\r\n",)
_DATA = (b"DATA\r\n",)
_QUIT = (b"QUIT\r\n",)

#: Seconds without a sign of anything.
_PATIENCE = 120
#: Seconds until the greeting. A SYN that had to be sent again once or twice is no stall.
_GREETING_PATIENCE = 5
#: Stalls in each session that say that nobody is there.
_STALLS_MAX = 20


class RefusedError(Exception):
    """A reply other than the one that was expected."""


class Client:
    """One connection and where its dialogue is."""

    __slots__ = ("begin", "dialogue", "pending", "reply", "socket")

    def __init__(self, connection: socket.socket, dialogue: Dialogue, begin: float) -> None:
        self.socket = connection
        self.dialogue = dialogue
        #: When it was wanted, by the monotonic clock: long before its socket was there if others stalled before.
        self.begin = begin
        self.reply = b""
        self.pending: list[bytes | memoryview] = []


class Load:
    """All sessions. With neither ``messages`` nor ``seconds`` it would never end; the first failure ends it."""

    def __init__(
        self, address: tuple[str, int], *, sessions: int, size: int, each: bool, messages: int, seconds: float
    ) -> None:
        self._address = address
        self._sessions = sessions
        self._messages = messages or sys.maxsize
        self._seconds = seconds or float("inf")
        self._letters = Letters(size, end=b".\r\n")
        self._each = each
        self._started = 0
        self._begin = self._deadline = self._cpu = 0.0
        self._clients: dict[int, Client] = {}
        #: Those that wait for the greeting, by their sockets' descriptors, the one that waits longest first,
        #: and since when they do.
        self._ungreeted: dict[int, float] = {}
        self._poll = select.epoll()
        #: Greeted, and waiting for the others.
        self._ready: list[Client] = []
        #: Of every message: seconds that it took, and when it was done, by the monotonic clock.
        self.durations: list[float] = []
        self.finished: list[float] = []
        self.stalls = 0
        self.failure = ""

    def run(self) -> dict[str, object]:
        """Send everything; return what was measured."""
        # Nothing here makes cycles, and a collection in between would count as the proxy's delay.
        gc.disable()
        heard = time.monotonic()
        self._start_clock()
        for _ in range(self._sessions if self._each else 1):
            self._open()
        while self._clients and not self.failure:
            ready = self._poll.poll(1 if self._ungreeted else _PATIENCE)
            if ready:
                heard = time.monotonic()
            elif time.monotonic() - heard >= _PATIENCE or self.stalls > _STALLS_MAX * self._sessions:
                self._fail(f"nothing happened for {_PATIENCE} s in {len(self._clients)} sessions")
                break
            for descriptor, events in ready:
                client = self._clients[descriptor]
                if client.pending and not events & select.EPOLLIN:
                    self._flush(client)
                else:
                    self._read(client)
            self._look_for_stalls()
        return self._result()

    def _start_clock(self) -> None:
        self._cpu = time.process_time()
        self._begin = time.monotonic()
        self._deadline = self._begin + self._seconds

    def _result(self) -> dict[str, object]:
        cpu = time.process_time() - self._cpu
        done = len(self.durations)
        rate = steady_rate(self._begin, self.finished)
        return {
            "messages": done,
            "seconds": (self.finished[-1] if done else time.monotonic()) - self._begin,
            "rate": rate,
            "megabytes": rate * self._letters.size / 1e6,
            "p50": percentile(self.durations, 50) * 1000,
            "p99": percentile(self.durations, 99) * 1000,
            "failure": self.failure,
            "stalls": self.stalls,
            "cpu": cpu,
        }

    def _more(self) -> bool:
        return (
            self._started < self._messages
            and not self.failure
            and (self._started < self._sessions or time.monotonic() < self._deadline)
        )

    def _open(self) -> None:
        """Begin a connection, if there is a message left to send."""
        if self._more():
            self._connect(time.monotonic())

    def _connect(self, begin: float) -> None:
        dialogue = self._one_message(begin) if self._each else self._many_messages()
        next(dialogue)
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = self._clients[connection.fileno()] = Client(connection, dialogue, begin)
        self._ungreeted[connection.fileno()] = time.monotonic()
        # The other side speaks first, so that there is no need to hear of the connection.
        self._poll.register(connection, select.EPOLLIN)
        with contextlib.suppress(BlockingIOError):
            try:
                connection.connect(self._address)
            except BlockingIOError:
                raise
            except OSError as error:
                self._close(client, f"connect: {error}")

    def _look_for_stalls(self) -> None:
        while self._ungreeted:
            descriptor, since = next(iter(self._ungreeted.items()))
            if time.monotonic() - since < _GREETING_PATIENCE:
                return
            client = self._clients.pop(descriptor)
            self.stalls += 1
            del self._ungreeted[descriptor]
            client.socket.close()
            client.dialogue.close()
            if self._each:
                self._started -= 1
            self._connect(client.begin)

    def _wait_for_all(self, client: Client) -> None:
        """Open the next connection that is to be kept; if this one was the last, let all go."""
        self._ready.append(client)
        if len(self._ready) < self._sessions:
            self._connect(time.monotonic())
            return
        self._start_clock()
        for ready in self._ready:
            self._send(ready, next(ready.dialogue))

    def _many_messages(self) -> Dialogue:
        yield from self._greeting()
        yield ()
        while self._more():
            self._started += 1
            begin = time.monotonic()
            yield from self._message(begin)
        _expect(b"221", (yield _QUIT))

    def _one_message(self, begin: float) -> Dialogue:
        self._started += 1
        yield from self._greeting()
        yield from self._message(begin)
        _expect(b"221", (yield _QUIT))

    @staticmethod
    def _greeting() -> Dialogue:
        _expect(b"220", (yield ()))
        _expect(b"250", (yield _EHLO))

    def _message(self, begin: float) -> Dialogue:
        _expect(b"250", (yield _MAIL))
        _expect(b"250", (yield _RCPT))
        _expect(b"354", (yield _DATA))
        _expect(b"250", (yield (self._letters.head(), self._letters.body)))
        now = time.monotonic()
        self.durations.append(now - begin)
        self.finished.append(now)

    def _read(self, client: Client) -> None:
        try:
            received = client.socket.recv(4096)
        except BlockingIOError:
            return
        except OSError as error:
            self._close(client, f"read: {error}")
            return
        if not received:
            self._close(client, "the connection was closed")
            return
        if client.reply:
            received = client.reply + received
        if not _whole(received):
            client.reply = received
            return
        client.reply = b""
        if self._ungreeted:
            self._ungreeted.pop(client.socket.fileno(), None)
        try:
            pieces = client.dialogue.send(received)
        except StopIteration:
            self._close(client)
        except RefusedError as error:
            self._close(client, str(error))
        else:
            if client.pending:
                self._close(client, f"a reply within the text: {received!r}")
            elif pieces:
                self._send(client, pieces)
            else:
                self._wait_for_all(client)

    def _send(self, client: Client, pieces: Sequence[bytes | memoryview]) -> None:
        """Send what there is room for; keep the rest until there is more."""
        try:
            sent = client.socket.sendmsg(pieces) if len(pieces) > 1 else client.socket.send(pieces[0])
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._close(client, f"write: {error}")
            return
        rest: list[bytes | memoryview] = []
        for piece in pieces:
            if sent >= len(piece):
                sent -= len(piece)
            else:
                rest.append(memoryview(piece)[sent:])
                sent = 0
        if bool(rest) != bool(client.pending):
            self._poll.modify(client.socket, select.EPOLLIN | select.EPOLLOUT if rest else select.EPOLLIN)
        client.pending = rest

    def _flush(self, client: Client) -> None:
        self._send(client, client.pending)

    def _close(self, client: Client, failure: str = "") -> None:
        if failure:
            self._fail(failure)
        del self._clients[client.socket.fileno()]
        self._ungreeted.pop(client.socket.fileno(), None)
        client.socket.close()
        self._open()

    def _fail(self, text: str) -> None:
        self.failure = self.failure or text


def _expect(code: bytes, reply: bytes) -> None:
    if not reply.startswith(code):
        raise RefusedError(f"expected {code.decode()}, got {reply!r}")


def _whole(reply: bytes) -> bool:
    """Whether the last line of a reply is there."""
    if not reply.endswith(b"\r\n"):
        return False
    last = reply.rfind(b"\r\n", 0, -2) + 2 if reply.count(b"\n") > 1 else 0
    return reply[last + 3 : last + 4] != b"-"


def main() -> int:
    """Run as the command line says; print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int, help="port on 127.0.0.1")
    parser.add_argument("--sessions", type=int, default=4, help="connections at once")
    parser.add_argument("--each", action="store_true", help="a connection for each message")
    parser.add_argument("--size", type=int, default=4000, help="octets of a message, head and all")
    parser.add_argument("--messages", type=int, default=0, help="how many")
    parser.add_argument("--seconds", type=float, default=0, help="how long new ones are begun")
    options = parser.parse_args()
    if not options.messages and not options.seconds:
        parser.error("give --messages or --seconds")
    load = Load(
        ("127.0.0.1", options.port),
        sessions=options.sessions,
        size=options.size,
        each=options.each,
        messages=options.messages,
        seconds=options.seconds,
    )
    print(json.dumps(load.run()))
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
