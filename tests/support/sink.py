"""A next hop that records every octet, and answers or fails as a test says.

It works on blocking sockets, a thread a connection, and shares no code with the daemon that it is to judge.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from clamsmtpd.values import TcpAddress, UnixAddress
from tests.support.process import ProgramError

__all__ = ["GREETING", "HANG", "TEXT", "Cut", "Hang", "Recorded", "Reply", "Sink", "Talk"]

#: Keys of a script beside the verbs: the greeting, and the reply to a message's final dot.
GREETING = "greeting"
TEXT = "."

_END = b"\r\n.\r\n"


class Hang:
    """A reply that never comes: the sink reads on, and says nothing more."""


HANG = Hang()


@dataclass(frozen=True, slots=True)
class Cut:
    """Octets, if any, and then the end of the connection."""

    octets: bytes = b""


#: Octets are sent as they are, so a reply needs its CRLF.
Reply = bytes | Cut | Hang


@dataclass
class Talk:
    """What one connection brought."""

    #: Every octet, in order.
    received: bytearray = field(default_factory=bytearray)
    #: The lines outside of messages, without CRLF.
    commands: list[bytes] = field(default_factory=list)
    #: The messages: of DATA dots still doubled, without the final line; of BDAT all chunks as they came.
    messages: list[bytes] = field(default_factory=list)
    #: The connection has ended.
    over: bool = False

    @property
    def verbs(self) -> list[str]:
        return [command.split(b" ")[0].decode("latin-1").upper() for command in self.commands]


@dataclass(frozen=True, slots=True)
class Recorded:
    """A message as it came, with the envelope's commands."""

    sender: bytes
    recipients: tuple[bytes, ...]
    text: bytes
    chunks: int = 0


class Sink:
    """An SMTP server on a loopback port, a free one unless it is given, or at ``path`` as a Unix socket.

    ``replies`` are by verb in capitals, or GREETING, or TEXT. A sequence is used up reply by reply, its last
    one stays. What is not there gets the usual reply. ``extensions`` are the lines of the EHLO reply. With ``lmtp``
    it speaks LMTP: it wants LHLO, and replies for each recipient.
    """

    def __init__(
        self,
        replies: Mapping[str, Reply | Sequence[Reply]] | None = None,
        *,
        extensions: Sequence[str] = ("PIPELINING", "8BITMIME", "SIZE 104857600", "ENHANCEDSTATUSCODES"),
        host: str = "127.0.0.1",
        port: int = 0,
        path: str | None = None,
        lmtp: bool = False,
    ) -> None:
        self._lmtp = lmtp
        self.talks: list[Talk] = []
        self.recorded: list[Recorded] = []
        self._extensions = extensions
        self._replies = {
            verb: [reply] if isinstance(reply, Reply) else list(reply) for verb, reply in (replies or {}).items()
        }
        self._changed = threading.Condition()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.address: TcpAddress | UnixAddress
        if path is not None:
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(path)
            self._listener.listen(128)
            self.address = UnixAddress(path)
        else:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, port), family=family, backlog=128)
            self.address = TcpAddress(host, self._listener.getsockname()[1])
        self._start(self._accept)

    @property
    def port(self) -> int:
        """The TCP port."""
        assert isinstance(self.address, TcpAddress)
        return self.address.port

    @property
    def messages(self) -> list[bytes]:
        """The texts of all messages, in the order of their final dots."""
        with self._changed:
            return [recorded.text for recorded in self.recorded]

    def wait_until(self, condition: Callable[[], bool], what: str, *, seconds: float = 20) -> None:
        """Return as soon as ``condition`` holds; it is looked at whenever something has come in."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not condition():
                left = deadline - time.monotonic()
                if left <= 0:
                    talks = "\n".join(repr(bytes(talk.received[-2000:])) for talk in self.talks)
                    raise ProgramError(f"the next hop waited {seconds:g} s in vain: {what}; it heard:\n{talks}")
                self._changed.wait(left)

    def wait_for_messages(self, number: int, *, seconds: float = 20) -> list[bytes]:
        """Return the texts of all messages once there are as many as ``number``."""
        self.wait_until(lambda: len(self.recorded) >= number, f"{number} message(s)", seconds=seconds)
        return self.messages

    def wait_for_end(self, *, seconds: float = 20) -> None:
        """Return once every connection there was has ended."""
        self.wait_until(lambda: bool(self.talks) and all(talk.over for talk in self.talks), "the end", seconds=seconds)

    def stop(self) -> None:
        """Close everything and wait for the threads."""
        # shutdown() wakes the thread in accept(); close() alone would leave it there.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._changed:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            talk = Talk()
            with self._changed:
                self.talks.append(talk)
                self._open.add(connection)
            self._start(self._serve, connection, talk)

    def _serve(self, connection: socket.socket, talk: Talk) -> None:
        try:
            _Dialogue(connection, talk, self._changed, self._reply, self.recorded, lmtp=self._lmtp).run()
        except OSError:
            pass  # the other side went away, or the test ended
        finally:
            with self._changed:
                self._open.discard(connection)
                connection.close()
                talk.over = True
                self._changed.notify_all()

    def _reply(self, verb: str) -> Reply:
        with self._changed:
            scripted = self._replies.get(verb)
            if scripted:
                return scripted.pop(0) if len(scripted) > 1 else scripted[0]
        if verb == ("LHLO" if self._lmtp else "EHLO"):
            lines = ["sink.example.test", *self._extensions]
            texts = [f"250{' ' if number == len(lines) else '-'}{line}\r\n" for number, line in enumerate(lines, 1)]
            return "".join(texts).encode("ascii")
        return _USUAL[verb]


_USUAL: Mapping[str, bytes] = defaultdict(
    lambda: b"250 2.0.0 Ok\r\n",
    {
        GREETING: b"220 sink.example.test ESMTP\r\n",
        "DATA": b"354 Go on\r\n",
        "QUIT": b"221 2.0.0 Bye\r\n",
        "EHLO": b"500 5.5.1 LMTP here\r\n",
        "LHLO": b"500 5.5.1 SMTP here\r\n",
        "XCLIENT": b"220 sink.example.test ESMTP\r\n",
        TEXT: b"250 2.0.0 Ok: recorded\r\n",
    },
)


class _Dialogue:
    """One connection, by RFC 5321 and no more."""

    def __init__(
        self,
        connection: socket.socket,
        talk: Talk,
        changed: threading.Condition,
        reply: Callable[[str], Reply],
        recorded: list[Recorded],
        *,
        lmtp: bool,
    ) -> None:
        self._lmtp = lmtp
        self._connection = connection
        self._talk = talk
        self._changed = changed
        self._reply = reply
        self._recorded = recorded
        self._unread = bytearray()
        self._sender = b""
        self._recipients: list[bytes] = []
        self._chunks = bytearray()
        self._chunk_count = 0

    def run(self) -> None:
        """Talk until either side ends it."""
        going = self._answer(GREETING).startswith(b"220")
        while going and (line := self._line()) is not None:
            with self._changed:
                self._talk.commands.append(line)
                self._changed.notify_all()
            going = self._obey(line)

    def _obey(self, line: bytes) -> bool:
        verb = line.split(b" ")[0].decode("latin-1").upper()
        if verb == "BDAT":
            return self._chunk(line.upper().split())
        sent = self._answer(verb)
        if verb in {"EHLO", "HELO", "LHLO", "RSET"} or (verb == "MAIL" and sent.startswith(b"2")):
            self._sender, self._recipients = (line, []) if verb == "MAIL" else (b"", [])
        elif verb == "RCPT" and sent.startswith(b"2"):
            self._recipients.append(line)
        elif verb == "DATA" and sent.startswith(b"354"):
            return self._message()
        return verb != "QUIT"

    def _message(self) -> bool:
        # The line end of the DATA command counts as the one before an immediate final dot.
        text = bytearray(b"\r\n")
        searched = 0
        while True:
            text += self._unread
            self._unread.clear()
            if (end := text.find(_END, searched)) >= 0:
                break
            searched = max(0, len(text) - len(_END))
            if not self._read():
                return False
        self._unread += text[end + len(_END) :]
        self._record(bytes(text[2 : end + 2]), 0)
        return True

    def _chunk(self, words: list[bytes]) -> bool:
        length = int(words[1])
        while len(self._unread) < length:
            if not self._read():
                return False
        self._chunks += self._unread[:length]
        del self._unread[:length]
        self._chunk_count += 1
        if words[2:] != [b"LAST"]:
            self._answer("BDAT")
            return True
        message = bytes(self._chunks)
        self._chunks.clear()
        self._record(message, self._chunk_count)
        self._chunk_count = 0
        return True

    def _record(self, message: bytes, chunks: int) -> None:
        recipients = tuple(self._recipients)
        with self._changed:
            self._talk.messages.append(message)
            self._recorded.append(Recorded(self._sender, recipients, message, chunks))
            self._changed.notify_all()
        self._sender, self._recipients = b"", []
        for _ in recipients if self._lmtp else (None,):
            self._answer(TEXT)

    def _line(self) -> bytes | None:
        while (end := self._unread.find(b"\r\n")) < 0:
            if not self._read():
                return None
        line = bytes(self._unread[:end])
        del self._unread[: end + 2]
        return line

    def _read(self) -> bool:
        data = self._connection.recv(262_144)
        self._unread += data
        with self._changed:
            self._talk.received += data
            self._changed.notify_all()
        return bool(data)

    def _answer(self, verb: str) -> bytes:
        """Send the reply to ``verb``; return it."""
        reply = self._reply(verb)
        if isinstance(reply, Hang):
            while self._read():
                pass
            raise ConnectionAbortedError
        octets = reply.octets if isinstance(reply, Cut) else reply
        self._connection.sendall(octets)
        if isinstance(reply, Cut):
            raise ConnectionAbortedError
        return octets
