"""The next hop: it takes mail, refuses some, is slow at times, and may be killed at any moment.

What it takes it writes down before it says 250, so that nothing it has promised is forgotten. Which message it is it
knows from the envelope: MAIL FROM:<ATTEMPT@...> and RCPT TO:<NUMBER@...>.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import random
import re
import sys
from pathlib import Path

from soak.records import Delivery, Heard, Recorder

#: In every refusal, so that one can be told from a refusal of the filter's own; it is followed by what is refused.
MARK = "the soak's no"

_OK = b"250 2.0.0 Ok\r\n"

#: Of a thousand transactions so many meet each fate; the others are taken.
_FATES = {
    "MAIL later": 8,
    "MAIL never": 4,
    "RCPT later": 8,
    "RCPT never": 4,
    "DATA later": 8,
    "DATA never": 4,
    "text later": 10,
    "text never": 5,
    "slow": 15,
    "slow to read": 10,
    "cut": 4,
    "cut when taken": 4,
}
_ADDRESS = re.compile(rb"<(\d+)@")
_END = b"\r\n.\r\n"
#: Seconds until an idle connection is given up: more than the filter would wait for anything.
_PATIENCE = 300


class Peer:
    """One connection."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, recorder: Recorder, chance: random.Random
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._recorder = recorder
        self._chance = chance
        self._unread = bytearray()
        self._fate = ""
        self._attempt = self._number = -1
        self._chunks: list[bytes] = []
        # What was taken last, until it is known that the other side has heard of it.
        self._taken: Heard | None = None
        # Half of them offer CHUNKING, so that texts come in both ways.
        self._chunking = chance.random() < 0.5

    async def run(self) -> None:
        """Talk until either side ends it."""
        self._writer.write(b"220 nexthop.soak.invalid ESMTP\r\n")
        while (line := await self._line()) is not None:
            if self._taken is not None:
                self._recorder.write(self._taken)
                self._taken = None
            if not await self._obey(line):
                break
            await self._writer.drain()

    async def _obey(self, line: bytes) -> bool:
        """Answer one command; tell whether to go on."""
        verb = line.split(b" ")[0].upper()
        if verb == b"EHLO":
            chunking = b"250-CHUNKING\r\n" if self._chunking else b""
            self._say(b"250-nexthop.soak.invalid\r\n250-PIPELINING\r\n" + chunking + b"250 8BITMIME\r\n")
        elif verb == b"MAIL":
            self._reset()
            self._fate = self._draw()
            self._attempt = _number_in(line)
            self._say(self._refusal("MAIL") or _OK)
        elif verb == b"RCPT":
            self._number = _number_in(line)
            self._say(self._refusal("RCPT") or _OK)
        elif verb == b"DATA":
            if no := self._refusal("DATA"):
                self._say(no)
                return True
            self._say(b"354 Go on\r\n")
            return await self._take(await self._text())
        elif verb == b"BDAT":
            return await self._chunk(line.upper().split())
        else:
            if verb == b"RSET":
                self._reset()
            self._say(b"221 2.0.0 Bye\r\n" if verb == b"QUIT" else _OK)
        return verb != b"QUIT"

    def _say(self, reply: bytes) -> None:
        self._writer.write(reply)

    def _draw(self) -> str:
        place = self._chance.randrange(1000)
        for fate, share in _FATES.items():
            place -= share
            if place < 0:
                return fate
        return ""

    def _refusal(self, stage: str) -> bytes:
        if self._fate == f"{stage} later":
            return refusal(stage, b"450 4.7.1")
        return refusal(stage, b"550 5.7.1") if self._fate == f"{stage} never" else b""

    def _reset(self) -> None:
        self._fate = ""
        self._attempt = self._number = -1
        self._chunks = []

    async def _chunk(self, words: list[bytes]) -> bool:
        self._chunks.append(await self._octets(int(words[1])))
        if words[2:] != [b"LAST"]:
            self._say(_OK)
            return True
        text = b"".join(self._chunks)
        if no := self._refusal("DATA"):
            self._reset()
            self._say(no)
            return True
        return await self._take(text)

    async def _take(self, text: bytes) -> bool:
        """Take a message, or do not; tell whether to go on."""
        if self._fate == "slow":
            await asyncio.sleep(self._chance.uniform(0.1, 3))
        if no := self._refusal("text"):
            self._reset()
            self._say(no)
            return True
        if self._fate == "cut":
            return False
        head = text.partition(b"\r\n\r\n")[0].split(b"\r\n")
        fields = [line.decode("latin-1") for line in head if line.lower().startswith(b"x-virus")]
        digest = hashlib.sha256(text).hexdigest()
        self._recorder.write(Delivery(self._number, self._attempt, digest, len(text), fields))
        if self._fate == "cut when taken":
            return False
        self._say(_OK)
        self._taken = Heard(self._number, self._attempt)
        self._reset()
        return True

    # ---- octets -------------------------------------------------------------------------------

    async def _read(self) -> None:
        if self._fate == "slow to read":
            await asyncio.sleep(0.02)
        data = await asyncio.wait_for(self._reader.read(65536), _PATIENCE)
        if not data:
            raise ConnectionAbortedError
        self._unread += data

    async def _line(self) -> bytes | None:
        while (end := self._unread.find(b"\r\n")) < 0:
            await self._read()
        line = bytes(self._unread[:end])
        del self._unread[: end + 2]
        return line

    async def _octets(self, count: int) -> bytes:
        while len(self._unread) < count:
            await self._read()
        octets = bytes(self._unread[:count])
        del self._unread[:count]
        return octets

    async def _text(self) -> bytes:
        """Return the text after DATA without stuffed dots."""
        # The line end of the command counts as the one before an immediate final dot.
        self._unread[:0] = b"\r\n"
        searched = 0
        await self._writer.drain()
        while (end := self._unread.find(_END, searched)) < 0:
            searched = max(0, len(self._unread) - len(_END))
            await self._read()
        text = bytes(self._unread[: end + 2])
        del self._unread[: end + len(_END)]
        return text.replace(b"\r\n.", b"\r\n")[2:]


def refusal(stage: str, code: bytes) -> bytes:
    """Return the reply that refuses ``stage``: a verb, or the text."""
    return b"%b %b to %b\r\n" % (code, MARK.encode(), stage.encode())


def _number_in(line: bytes) -> int:
    found = _ADDRESS.search(line)
    return int(found.group(1)) if found else -1


async def _serve(port: int, recorder: Recorder, chance: random.Random) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            await Peer(reader, writer, recorder, chance).run()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(talk, "127.0.0.1", port, backlog=1000)
    await server.serve_forever()


def main() -> int:
    """Serve until something ends the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int, help="port on 127.0.0.1")
    parser.add_argument("records", type=Path, help="file to append to")
    parser.add_argument("--seed", default="", help="of the refusals and delays")
    options = parser.parse_args()
    asyncio.run(_serve(options.port, Recorder(options.records), random.Random(options.seed)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
