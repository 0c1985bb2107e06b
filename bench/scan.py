"""clamd alone: messages by descriptor (FILDES with a memfd) in kept IDSESSION connections.

It prints one JSON object. It is the best that any filter can do in front of this clamd: it does nothing else.
"""

from __future__ import annotations

import argparse
import array
import gc
import json
import math
import os
import select
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.figures import percentile, steady_rate
from bench.mail import Letters

#: The command, and the one octet that carries the descriptor.
_FILDES = (b"zFILDES\0", b"\0")


class Session:
    """One connection to clamd, and when each request began whose reply is missing."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(path)
        self.socket.sendall(b"zIDSESSION\0")
        self._begun: dict[int, float] = {}
        self._number = 0
        self._rest = b""

    def ask(self, letters: Letters) -> None:
        """Have the next message scanned."""
        self._number += 1
        self._begun[self._number] = time.monotonic()
        # A file for each message: clamd may still have the last one mapped.
        file = os.memfd_create("bench", os.MFD_CLOEXEC)
        try:
            pieces: list[bytes | memoryview] = [letters.head(), letters.body]
            # One call takes 2 GB, and a memfd takes all of it.
            os.writev(file, pieces)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file]))
            self.socket.sendmsg(_FILDES, [rights])
        finally:
            os.close(file)

    def replies(self) -> list[tuple[float, bytes]]:
        """Return when each message began that now has a reply, and that reply."""
        received = self.socket.recv(65536)
        if not received:
            raise ConnectionError("clamd ended the session")
        *replies, self._rest = (self._rest + received).split(b"\0")
        found = []
        for reply in replies:
            number, _, text = reply.partition(b": ")
            found.append((self._begun.pop(int(number)), text))
        return found


def scan(path: str, *, size: int, connections: int, sessions: int, messages: int, seconds: float) -> dict[str, object]:
    """Keep ``sessions`` messages at clamd, so many in all or for so long; return what was measured."""
    letters = Letters(size)
    gc.disable()
    kept = [Session(path) for _ in range(min(connections, sessions))]
    poll = select.epoll()
    by_descriptor = {session.socket.fileno(): session for session in kept}
    for descriptor in by_descriptor:
        poll.register(descriptor, select.EPOLLIN)
    durations, finished, failures = [], [], []
    cpu, begin = time.process_time(), time.monotonic()
    asked = waiting = min(sessions, messages or sessions)
    for number in range(asked):
        kept[number % len(kept)].ask(letters)
    while waiting:
        for descriptor, _ in poll.poll():
            session = by_descriptor[descriptor]
            for begun, text in session.replies():
                now = time.monotonic()
                waiting -= 1
                durations.append(now - begun)
                finished.append(now)
                if not text.endswith(b" OK"):
                    failures.append(text)
                if now < begin + (seconds or math.inf) and asked < (messages or sys.maxsize):
                    session.ask(letters)
                    asked += 1
                    waiting += 1
    rate = steady_rate(begin, finished)
    return {
        "messages": len(durations),
        "seconds": finished[-1] - begin,
        "rate": rate,
        "megabytes": rate * letters.size / 1e6,
        "p50": percentile(durations, 50) * 1000,
        "p99": percentile(durations, 99) * 1000,
        "failure": repr(failures[0]) if failures else "",
        "cpu": time.process_time() - cpu,
    }


def main() -> int:
    """Run as the command line says; print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("socket", help="clamd's unix socket")
    parser.add_argument("--sessions", type=int, default=10, help="messages at clamd at once")
    parser.add_argument("--connections", type=int, default=4, help="connections that they share")
    parser.add_argument("--size", type=int, default=4000, help="octets of a message")
    parser.add_argument("--messages", type=int, default=0, help="how many")
    parser.add_argument("--seconds", type=float, default=0, help="how long new ones are begun")
    options = parser.parse_args()
    if not options.messages and not options.seconds:
        parser.error("give --messages or --seconds")
    result = scan(
        options.socket,
        size=options.size,
        connections=options.connections,
        sessions=options.sessions,
        messages=options.messages,
        seconds=options.seconds,
    )
    print(json.dumps(result))
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
