"""A text on its way to clamd in chunks, while clamd takes it, hangs, answers or leaves."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clamsmtpd.clamd.session import ClamdSession, Lost
from clamsmtpd.clamd.stream import Stream
from tests.support.loops import Run

LONG, SHORT = 20.0, 0.25

#: Much more than a connection holds.
LARGE = 8_000_000


class Peer:
    """clamd's end of the connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._loop = asyncio.get_running_loop()

    async def take(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = await self._loop.sock_recv(self.socket, min(count - len(data), 262144))
            assert more
            data += more
        return data

    async def chunks(self) -> list[bytes]:
        """Take a stream; return its chunks without the last, which is empty."""
        assert await self.take(10) == b"zINSTREAM\0"
        taken = []
        while size := int.from_bytes(await self.take(4), "big"):
            taken.append(await self.take(size))
        return taken


@contextlib.asynccontextmanager
async def streaming(
    *, time_out: float = LONG, kind: type[socket.socket] = socket.socket
) -> AsyncIterator[tuple[Stream, ClamdSession, Peer]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = kind(socket.AF_INET, socket.SOCK_STREAM)
        ours.connect(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setblocking(False)
    theirs.setblocking(False)
    session = ClamdSession(ours, ended=lambda _: None, kept=False)
    with theirs:
        try:
            yield Stream(session, time_out), session, Peer(theirs)
        finally:
            session.close()


async def growing(*pieces: bytes, every: float = 0) -> AsyncIterator[bytes]:
    for piece in pieces:
        await asyncio.sleep(every)
        yield piece


def large() -> Iterator[bytes]:
    yield from (b"x" * 262144,) * (LARGE // 262144)


# ---- the text ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "chunks"),
    [
        ([], []),
        ([b""], []),
        ([b"one"], [b"one"]),
        ([b"", b"one", b"", b"two", b""], [b"one", b"two"]),
        ([b"one", b"two", b"three"], [b"one", b"two", b"three"]),
    ],
)
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "growing"])
def test_each_piece_is_a_chunk_and_none_ends_it_early(
    run: Run, pieces: list[bytes], chunks: list[bytes], *, whole: bool
) -> None:
    async def main() -> None:
        async with streaming() as (stream, _, peer):
            sending = asyncio.create_task(stream.scan(iter(pieces)) if whole else stream.scan_growing(growing(*pieces)))
            assert await peer.chunks() == chunks
            peer.socket.send(b"stream: OK\0")
            assert await sending == b"stream: OK"
            assert stream.whole

    run(main())


def test_a_small_message_is_one_packet(run: Run) -> None:
    calls = 0

    class Counting(socket.socket):
        def sendmsg(self, *args: Any) -> int:
            nonlocal calls
            calls += 1
            return super().sendmsg(*args)

    async def main() -> None:
        async with streaming(kind=Counting) as (stream, _, peer):
            sending = asyncio.create_task(stream.scan(iter([b"text"])))
            assert await peer.take(22) == b"zINSTREAM\0\0\0\0\4text\0\0\0\0"
            peer.socket.send(b"stream: OK\0")
            assert await sending == b"stream: OK"

    run(main())
    assert calls == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(pieces=st.lists(st.binary(max_size=6)), takes=st.lists(st.integers(1, 9), min_size=1))
def test_whatever_the_connection_takes_at_once_the_text_is_the_same(pieces: list[bytes], takes: list[int]) -> None:
    class Narrow(socket.socket):
        sizes = itertools.cycle(takes)

        def sendmsg(self, buffers: list[memoryview]) -> int:  # type: ignore[override]
            return self.send(b"".join(buffers)[: next(self.sizes)])

    async def main() -> None:
        for growth in (True, False):
            async with streaming(kind=Narrow) as (stream, _, peer):
                scan = stream.scan_growing(growing(*pieces)) if growth else stream.scan(iter(pieces))
                sending = asyncio.create_task(scan)
                assert await peer.chunks() == [piece for piece in pieces if piece]
                peer.socket.send(b"stream: OK\0")
                assert await sending == b"stream: OK"

    uvloop.run(main())


# ---- clamd answers early, hangs or leaves --------------------------------------------------------


@pytest.mark.parametrize("reply", [b"INSTREAM size limit exceeded. ERROR", b"stream: OK"])
def test_an_early_answer_ends_the_stream_and_the_text_was_not_whole(run: Run, reply: bytes) -> None:
    async def main() -> None:
        async with streaming() as (stream, _, peer):
            sending = asyncio.create_task(stream.scan(large()))
            await peer.take(100_000)
            peer.socket.send(reply + b"\0")
            assert await sending == reply
            assert not stream.whole

    run(main())


def test_an_early_answer_is_heard_while_the_text_does_not_grow(run: Run) -> None:
    async def main() -> None:
        async with streaming() as (stream, session, peer):
            more: asyncio.Queue[bytes] = asyncio.Queue()

            async def pieces() -> AsyncIterator[bytes]:
                while True:
                    yield await more.get()

            sending = asyncio.create_task(stream.scan_growing(pieces()))
            more.put_nowait(b"first")
            await peer.take(19)
            peer.socket.send(b"INSTREAM size limit exceeded. ERROR\0")
            peer.socket.close()
            await asyncio.sleep(0.02)
            more.put_nowait(b"second")
            assert await sending == b"INSTREAM size limit exceeded. ERROR"
            assert not stream.whole
            assert not session.usable

    run(main())


def test_a_clamd_that_hangs_in_the_midst(run: Run) -> None:
    async def main() -> None:
        async with streaming(time_out=SHORT) as (stream, _, peer):
            sending = asyncio.create_task(stream.scan(large()))
            await peer.take(100_000)
            reason = "it took nothing more of the message within 0.25 seconds"
            assert await sending == Lost(reason, timed_out=True)
            assert not stream.whole

    run(main())


def test_a_clamd_that_answers_in_the_moment_of_its_limit(run: Run) -> None:
    """Neither the answer nor the limit is lost, whichever the event loop sees first."""

    async def main() -> None:
        async with streaming(time_out=SHORT) as (stream, _, peer):
            sending = asyncio.create_task(stream.scan(large()))
            await peer.take(100_000)
            await asyncio.sleep(SHORT - 0.05)
            # The event loop sees nothing of it until the limit has passed.
            peer.socket.send(b"INSTREAM size limit exceeded. ERROR\0")
            time.sleep(0.1)  # noqa: ASYNC251 - that is the point
            assert await sending in (
                b"INSTREAM size limit exceeded. ERROR",
                Lost("it took nothing more of the message within 0.25 seconds", timed_out=True),
            )

    run(main())


def test_a_clamd_that_has_the_text_and_says_nothing(run: Run) -> None:
    async def main() -> None:
        async with streaming(time_out=SHORT) as (stream, _, _peer):
            assert await stream.scan(iter([b"x"])) == Lost("no answer within 0.25 seconds", timed_out=True)
            assert stream.whole

    run(main())


def test_a_text_that_grows_slowly_has_all_the_time(run: Run) -> None:
    async def main() -> None:
        async with streaming(time_out=SHORT) as (stream, _, peer):
            sending = asyncio.create_task(stream.scan_growing(growing(b"one", b"two", b"three", every=SHORT / 2)))
            assert await peer.chunks() == [b"one", b"two", b"three"]
            peer.socket.send(b"stream: OK\0")
            assert await sending == b"stream: OK"

    run(main())


def test_a_clamd_that_leaves_in_the_midst(run: Run) -> None:
    async def main() -> None:
        async with streaming() as (stream, _, peer):
            sending = asyncio.create_task(stream.scan(large()))
            await peer.take(100_000)
            peer.socket.close()
            answer = await sending
            assert isinstance(answer, Lost)
            assert not answer.timed_out
            assert not stream.whole

    run(main())


def test_what_cannot_be_sent_has_a_limit_too(run: Run) -> None:
    class Broken(socket.socket):
        def sendmsg(self, *_: Any) -> int:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    async def main() -> None:
        async with streaming(time_out=SHORT, kind=Broken) as (stream, _, _peer):
            assert await stream.scan(iter([b"x"])) == Lost("no answer within 0.25 seconds", timed_out=True)
            assert not stream.whole
        async with streaming(time_out=SHORT, kind=Broken) as (stream, _, _peer):
            lost = Lost("no answer within 0.25 seconds", timed_out=True)
            assert await stream.scan_growing(growing(b"x", b"y")) == lost

    run(main())


def test_giving_up_in_the_midst_leaves_nothing(run: Run) -> None:
    async def main() -> None:
        async with streaming() as (stream, _, peer):
            sending = asyncio.create_task(stream.scan(large()))
            await peer.take(100_000)
            await asyncio.sleep(0.02)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending

    run(main())


def test_faults_of_the_storage_are_the_callers(run: Run) -> None:
    def failing() -> Iterator[bytes]:
        yield b"one"
        yield b"two"
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def main() -> None:
        async with streaming() as (stream, _, _peer):
            with pytest.raises(OSError, match="Input/output error"):
                await stream.scan(failing())
            assert not stream.whole

    run(main())
