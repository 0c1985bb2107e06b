"""One message on its way to clamd by INSTREAM: writes the text and listens for the reply at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence

from clamsmtpd.clamd.allowance import scan_limit, seconds
from clamsmtpd.clamd.protocol import INSTREAM, STREAM_END, chunk_header
from clamsmtpd.clamd.session import Answer, ClamdSession, Lost

__all__ = ["Stream"]


class Stream:
    """A scan of one message through ``session``, which nobody else uses meanwhile.

    A clamd that has seen enough, because the stream is longer than its StreamMaxLength, says so at once and
    closes. Whoever only writes gets a broken pipe in place of the reason.

    All of it must be done within ``limit`` seconds. For a text that grows at the client's pleasure, that is
    what clamd may take nothing for, and then the time for the reply, to which the size of the text adds.
    """

    def __init__(self, session: ClamdSession, limit: float) -> None:
        #: Whether clamd has the whole text.
        self.whole = False
        self._session = session
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + limit
        self._grows = False
        # Octets of the text that were sent.
        self._sent = 0
        self._opening, self._answer = session.begin(INSTREAM)

    async def scan(self, pieces: Iterator[bytes]) -> Answer:
        """Send the whole text, in pieces; return clamd's reply. Raises what ``pieces`` raises."""
        # clamd takes a chunk of no octets for the end.
        pieces = filter(None, pieces)
        first, second = next(pieces, b""), next(pieces, b"")
        if not second:
            # TCP_NODELAY makes a packet of each write: a small message is one.
            text = (chunk_header(len(first)), first) if first else ()
            return await self._finish((*text, STREAM_END))
        return await self._scan(_one_after_the_other(first, second, pieces))

    async def scan_growing(self, pieces: AsyncIterator[bytes]) -> Answer:
        """Send a text as it comes; return clamd's reply. Raises what ``pieces`` raises."""
        self._grows = True
        return await self._scan(pieces)

    async def _scan(self, pieces: AsyncIterator[bytes]) -> Answer:
        async for piece in pieces:
            self._sent += len(piece)
            if piece and not await self._send((chunk_header(len(piece)), piece)):
                break
        else:
            return await self._finish((STREAM_END,))
        self._session.finish(self._left())
        return await self._answer

    def _left(self) -> float:
        """Return the seconds that the reply may take."""
        if self._grows:
            return scan_limit(self._sent, self._limit)
        return max(self._deadline - self._loop.time(), 0.0)

    async def _finish(self, buffers: Sequence[bytes]) -> Answer:
        self.whole = await self._send(buffers)
        self._session.finish(self._left())
        return await self._answer

    async def _send(self, buffers: Sequence[bytes]) -> bool:
        """Send all of ``buffers``; false when there is no use in sending more."""
        if self._opening:
            buffers, self._opening = (self._opening, *buffers), b""
        left = [memoryview(buffer) for buffer in buffers]
        while left:
            if self._answer.done():
                return False
            try:
                sent = self._session.socket.sendmsg(left)
            except BlockingIOError:
                await self._wait()
                continue
            except OSError:
                self._session.hear_out()
                return False
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if sent:
                left[0] = left[0][sent:]
        return True

    async def _wait(self) -> None:
        """Wait until the connection takes more, or clamd has answered; the limit makes an answer of its own."""
        loop = self._loop
        sock = self._session.socket
        progress = loop.create_future()

        def go_on(*_: object) -> None:
            if not progress.done():
                progress.set_result(None)

        loop.add_writer(sock, go_on)
        self._answer.add_done_callback(go_on)
        try:
            async with asyncio.timeout_at(loop.time() + self._limit if self._grows else self._deadline):
                await progress
        except TimeoutError:
            if not self._answer.done():
                reason = f"it took nothing more of the message within {seconds(self._limit)}"
                self._answer.set_result(Lost(reason, timed_out=True))
        finally:
            self._answer.remove_done_callback(go_on)
            # The session may have ended, and the number of its descriptor be somebody else's.
            if sock.fileno() >= 0:
                loop.remove_writer(sock)


async def _one_after_the_other(first: bytes, second: bytes, rest: Iterator[bytes]) -> AsyncIterator[bytes]:
    # A large message is not sent in one go, even if clamd takes it in one: others wait too.
    yield first
    await asyncio.sleep(0)
    yield second
    for piece in rest:
        await asyncio.sleep(0)
        yield piece
