"""A server of ours in this process, between a client, a next hop and a clamd that do as a test says."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from clamsmtpd.commons import Share
from clamsmtpd.config import load
from clamsmtpd.listeners import Listener
from clamsmtpd.server import Server
from clamsmtpd.tls import Certificate

__all__ = ["Clamd", "Client", "Hop", "World", "run", "world"]

_Result = TypeVar("_Result")


def run(main: Coroutine[Any, Any, _Result]) -> _Result:
    """Run ``main`` on the event loop that the daemon uses."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(asyncio.wait_for(main, 30))


@dataclass
class Hop:
    """A next hop. ``replies`` are by verb; ``.`` is the reply to a whole message, None is silence.

    ``heard`` holds every line outside of messages, ``texts`` every message as it came, without the final dot.
    """

    replies: dict[str, bytes | None] = field(default_factory=dict)
    heard: list[bytes] = field(default_factory=list)
    texts: list[bytes] = field(default_factory=list)
    connections: int = 0
    open: int = 0
    greeting: bytes | None = b"220 hop.example ESMTP\r\n"
    #: Reads nothing of a message while this is not set.
    reads: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.reads.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            await self._talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.greeting is not None:
            writer.write(self.greeting)
        while line := await reader.readline():
            self.heard.append(line)
            verb = line[:4].strip().upper().decode("latin-1")
            reply = self.replies.get(verb, b"354 go\r\n" if verb == "DATA" else b"250 ok\r\n")
            if verb == "QUIT":
                writer.write(b"221 bye\r\n")
                return
            if reply is None:
                continue
            writer.write(reply)
            if reply.startswith(b"354"):
                if not self.reads.is_set():
                    writer.transport.pause_reading()  # type: ignore[attr-defined]
                    await self.reads.wait()
                text = await reader.readuntil(b"\r\n.\r\n")
                self.texts.append(text[:-3])
                final = self.replies.get(".", b"250 queued\r\n")
                if final == b"":
                    return
                if final is not None:
                    writer.write(final)

    @property
    def verbs(self) -> list[str]:
        return [line[:4].strip().decode("latin-1") for line in self.heard]


@dataclass
class Clamd:
    """A clamd that gives ``reply`` to every request, or waits for ever when that is None."""

    reply: bytes | None = b"fd[1]: OK\0"
    requests: int = 0
    #: Answers nothing while this is not set.
    answers: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.answers.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read(1)
            self.requests += 1
            await self.answers.wait()
            if self.reply is None:
                await reader.read()
            else:
                writer.write(self.reply)
        writer.close()


@dataclass
class Client:
    """An SMTP client that says what it is told to say."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def reply(self) -> bytes:
        """Return the next reply, all of its lines."""
        lines = b""
        while line := await self.reader.readline():
            lines += line
            if line[3:4] != b"-":
                break
        return lines

    async def ask(self, line: bytes) -> bytes:
        self.send(line + b"\r\n")
        return await self.reply()

    async def envelope(self) -> None:
        """Greet, and get as far as DATA would go."""
        assert (await self.reply()).startswith(b"220 ")
        for line in (b"EHLO client.example", b"MAIL FROM:<a@example.org>", b"RCPT TO:<b@example.org>"):
            assert (await self.ask(line)).startswith(b"250")

    async def message(self, text: bytes = b"Subject: x\r\n\r\ntext\r\n") -> bytes:
        assert (await self.ask(b"DATA")).startswith(b"354 ")
        self.send(text + b".\r\n")
        return await self.reply()

    async def rest(self) -> bytes:
        """Return all that still comes until the connection closes."""
        return await self.reader.read()

    def close(self) -> None:
        self.writer.close()


@dataclass
class World:
    """The server and its surroundings."""

    hop: Hop
    clamd: Clamd
    server: Server
    port: int
    folder: Path
    stop: asyncio.Event
    served: asyncio.Future[None]
    clients: list[Client] = field(default_factory=list)

    async def client(self, host: str = "127.0.0.1") -> Client:
        """Connect a client, from the address ``host`` of this host."""
        streams = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(host, 0))
        self.clients.append(Client(*streams))
        return self.clients[-1]


@contextlib.asynccontextmanager
async def world(
    folder: Path,
    *lines: str,
    hop: Hop | None = None,
    clamd: Clamd | None = None,
    out: str | None = None,
    clam: Callable[[str], str] = str,
    share: Share | None = None,
    watched: bool = False,
) -> AsyncIterator[World]:
    """Start everything with ``lines`` of settings added; end everything.

    In ``out``, ``{}`` stands for the next hop's address. ``share`` is for a server that has others beside it. A clamd
    that is ``watched`` must do as the real one.
    """
    hop = hop or Hop()
    clamd = clamd or Clamd()
    hop_server = await asyncio.start_server(hop.serve, "127.0.0.1", 0, limit=1 << 26)
    hop_port = hop_server.sockets[0].getsockname()[1]
    clamd_path = str(folder / "clamd.sock")
    clamd_server = await asyncio.start_unix_server(clamd.serve, clamd_path)
    spool = folder / "spool"
    spool.mkdir(exist_ok=True)
    config = folder / "clamsmtpd.conf"
    config.write_text(
        "\n".join(
            [
                *(() if any(line.startswith("Listen:") for line in lines) else ("Listen: 127.0.0.1:10025",)),
                f"OutAddress: {(out or '{}').format(f'127.0.0.1:{hop_port}')}",
                f"ClamAddress: {clam(clamd_path)}",
                f"TempDirectory: {spool}",
                *lines,
            ]
        )
    )
    settings = load(str(config)).settings
    sock = socket.create_server(("127.0.0.1", 0), backlog=128)
    port = sock.getsockname()[1]
    stop = asyncio.Event()
    certificate = Certificate(settings.tls_certificate, settings.tls_key) if settings.tls_certificate else None
    server = Server(settings, [Listener(sock, settings.listen[0])], certificate, share, watched=watched)
    served = asyncio.ensure_future(server.serve(stop))
    await asyncio.sleep(0)
    here = World(hop, clamd, server, port, spool, stop, served)
    try:
        yield here
    finally:
        stop.set()
        hop.reads.set()
        clamd.answers.set()
        for client in here.clients:
            client.close()
            with contextlib.suppress(OSError):
                await client.writer.wait_closed()
        try:
            await asyncio.wait_for(served, 10)
        finally:
            hop_server.close()
            clamd_server.close()
            # Connections that have just been closed are still in the loop's hands.
            await asyncio.sleep(0.02)
