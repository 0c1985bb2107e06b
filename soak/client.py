"""One connection of a client: it sends a message in one of the ways that SMTP allows, or leaves in the midst."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
import random
from dataclasses import dataclass

from soak.records import CLOSED, End

__all__ = ["Client", "Leave", "Letter", "Outcome", "Way", "unreachable"]

#: Seconds that a client waits for a reply, or until it can send more: over a minute, which a verdict may take.
PATIENCE = 120.0

_CHUNKS_MAX = 4


class Way(enum.Enum):
    """How a message is sent."""

    #: Each command waits for the reply to the one before it.
    DATA = enum.auto()
    #: All commands up to DATA at once (RFC 2920).
    PIPELINED = enum.auto()
    #: In chunks, of which each waits for its reply (RFC 3030).
    CHUNKS = enum.auto()
    #: Everything at once, text and all.
    BURST = enum.auto()


class Leave(enum.Enum):
    """When a client leaves, and how."""

    BEFORE_TEXT = enum.auto()
    IN_TEXT = enum.auto()
    #: With the last octet of the text, in an orderly way.
    AT_END = enum.auto()
    #: Some time after that, by a reset.
    WAITING = enum.auto()
    #: It says that it will send nothing more, but waits for the reply.
    HALF = enum.auto()


@dataclass(frozen=True, slots=True)
class Letter:
    """A message to be sent; ``attempt`` counts the tries from 1. ``leave`` is None for a client that stays."""

    number: int
    attempt: int
    text: bytes
    leave: Leave | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a try ended; see :class:`soak.records.Try`."""

    end: End
    whole: bool
    reply: str = ""


def unreachable(why: str) -> Outcome:
    """Return the outcome of a try for which there never was a connection."""
    return Outcome(End.SILENT, whole=False, reply=why)


class _LeftError(Exception):
    """The client has left, as it was to do."""


class Client:
    """A connection to the filter. ``way`` is that of all its messages, ``chance`` decides on lengths and moments."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way, chance: random.Random
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._way = way
        self._chance = chance
        self._whole = False
        #: Whether another message can be sent.
        self.usable = True

    @classmethod
    async def connect(cls, port: int, way: Way, chance: random.Random) -> Client:
        """Connect to a port of 127.0.0.1. Raises OSError."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        # drain() is then to return when all is with the kernel.
        writer.transport.set_write_buffer_limits(0)
        return cls(reader, writer, way, chance)

    async def greet(self) -> Outcome | None:
        """Wait for the greeting and send EHLO; return what came of it if no message can be sent."""
        try:
            reply = await self._reply()
            if reply.startswith("220"):
                reply = await self._ask(b"EHLO client.soak.invalid")
                if reply.startswith("250"):
                    return None
            outcome = Outcome(End.TOLD, whole=False, reply=reply)
        except OSError as error:
            outcome = self._broken(error)
        self.usable = False
        return outcome

    async def send(self, letter: Letter) -> Outcome:
        """Try to send a message; never raise for what the other side does."""
        self._whole = False
        try:
            reply = await self._transact(letter)
        except _LeftError:
            self.usable = False
            return Outcome(End.LEFT, self._whole)
        except OSError as error:
            self.usable = False
            return self._broken(error)
        outcome = Outcome(End.TOLD, self._whole, reply)
        if letter.leave is Leave.HALF or reply.startswith("421"):
            self.usable = False
        elif not reply.startswith("2"):
            await self._reset()
        return outcome

    async def _reset(self) -> None:
        """End a transaction that may still be open."""
        try:
            self.usable = (await self._ask(b"RSET")).startswith("250")
        except OSError:
            self.usable = False

    async def quit(self) -> None:
        """Part in an orderly way, as far as the other side does."""
        with contextlib.suppress(OSError):
            await self._ask(b"QUIT")
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.usable = False
        self._writer.close()

    def _broken(self, error: OSError) -> Outcome:
        end = End.SILENT if isinstance(error, TimeoutError) else End.LOST
        return Outcome(end, self._whole, str(error))

    # ---- the ways -----------------------------------------------------------------------------

    async def _transact(self, letter: Letter) -> str:
        mail = b"MAIL FROM:<%d@soak.invalid>" % letter.attempt
        rcpt = b"RCPT TO:<%d@soak.invalid>" % letter.number
        if self._way is Way.BURST:
            chunks = self._chunked(letter.text)
            return await self._burst(b"%b\r\n%b\r\n" % (mail, rcpt), chunks, letter.leave)
        if self._way is Way.PIPELINED:
            return await self._pipeline((mail, rcpt, b"DATA"), letter)
        for command in (mail, rcpt, *((b"DATA",) if self._way is Way.DATA else ())):
            reply = await self._ask(command)
            if reply[0] not in "23":
                return reply
        if letter.leave is Leave.BEFORE_TEXT:
            self._abort()
        if self._way is Way.DATA:
            return await self._data(letter)
        if letter.leave is not None:
            return await self._burst(b"", self._chunked(letter.text), letter.leave)
        return await self._chunks(self._chunked(letter.text))

    async def _data(self, letter: Letter) -> str:
        # No text begins with a dot.
        await self._send_text(letter.text.replace(b"\r\n.", b"\r\n..") + b".\r\n", letter.leave)
        return await self._reply()

    async def _pipeline(self, commands: tuple[bytes, ...], letter: Letter) -> str:
        await self._write(b"".join(command + b"\r\n" for command in commands))
        replies = await self._replies(len(commands))
        refused = [reply for reply in replies if reply[:1] not in "23"]
        if refused:
            if replies[-1].startswith("354"):
                # RFC 2920 section 3.1: the server waits for a text all the same.
                await self._write(b".\r\n")
                await self._reply()
            return refused[0]
        if letter.leave is Leave.BEFORE_TEXT:
            self._abort()
        return await self._data(letter)

    async def _chunks(self, chunks: list[bytes]) -> str:
        reply = ""
        for chunk in chunks:
            self._whole = chunk is chunks[-1]
            await self._write(chunk)
            reply = await self._reply()
            if not reply.startswith("2"):
                break
        return reply

    async def _burst(self, commands: bytes, chunks: list[bytes], leave: Leave | None) -> str:
        """Send everything at once; return the first reply that refuses something, or else the last."""
        await self._send_text(commands + b"".join(chunks), leave)
        replies = await self._replies(commands.count(b"\r\n") + len(chunks))
        refused = [reply for reply in replies if not reply.startswith("2")]
        return refused[0] if refused else replies[-1]

    def _chunked(self, text: bytes) -> list[bytes]:
        """Return the text as one to four BDAT commands with their octets."""
        count = self._chance.randint(1, _CHUNKS_MAX)
        borders = [0, *sorted(self._chance.randrange(len(text)) for _ in range(count - 1)), len(text)]
        chunks = []
        for begin, end in itertools.pairwise(borders):
            last = b" LAST" if end == len(text) else b""
            chunks.append(b"BDAT %d%b\r\n" % (end - begin, last) + text[begin:end])
        return chunks

    # ---- octets -------------------------------------------------------------------------------

    async def _send_text(self, octets: bytes, leave: Leave | None) -> None:
        if leave in (Leave.IN_TEXT, Leave.BEFORE_TEXT):
            await self._write(octets[: self._chance.randrange(len(octets) // 2)])
            if self._chance.random() < 0.5:
                self._abort()
            self._writer.close()
            raise _LeftError
        self._whole = True
        await self._write(octets)
        if leave is Leave.AT_END:
            self._writer.close()
            raise _LeftError
        if leave is Leave.WAITING:
            await asyncio.sleep(self._chance.uniform(0, 0.5))
            self._abort()
        if leave is Leave.HALF:
            self._writer.write_eof()

    def _abort(self) -> None:
        self._writer.transport.abort()
        raise _LeftError

    async def _ask(self, command: bytes) -> str:
        await self._write(command + b"\r\n")
        return await self._reply()

    async def _write(self, octets: bytes) -> None:
        """Hand all octets to the kernel. Raises OSError; TimeoutError if nobody takes them for too long."""
        self._writer.write(octets)
        try:
            await asyncio.wait_for(self._writer.drain(), PATIENCE)
        except TimeoutError:
            raise TimeoutError(f"octets were not taken within {PATIENCE:g} s") from None

    async def _replies(self, count: int) -> list[str]:
        """Return so many replies, or those up to a 421, behind which there are no more. Raises OSError."""
        replies: list[str] = []
        while len(replies) < count and not (replies and replies[-1].startswith("421")):
            replies.append(await self._reply())
        return replies

    async def _reply(self) -> str:
        """Return the last line of the next reply. Raises OSError; TimeoutError for none within the patience."""
        while True:
            try:
                line = await asyncio.wait_for(self._reader.readline(), PATIENCE)
            except TimeoutError:
                raise TimeoutError(f"no reply within {PATIENCE:g} s") from None
            if not line.endswith(b"\n"):
                raise ConnectionAbortedError(CLOSED)
            if line[3:4] != b"-":
                return line.decode("latin-1").rstrip()
