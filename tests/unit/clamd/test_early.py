"""Messages that clamd gets while they still come in."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from clamsmtpd.clamd import client as module
from clamsmtpd.clamd.client import Scanner
from clamsmtpd.clamd.early import EARLY_MIN, EarlyScan
from clamsmtpd.clamd.outcome import Outcome
from clamsmtpd.spool import Spool
from clamsmtpd.values import Clean, Infected, Oversize, TcpAddress, UnixAddress, Unscanned, Verdict
from tests.support.loops import Run, until
from tests.support.scanners import judge

LONG, SHORT = 20.0, 0.25

SMALL = b"x" * 1000
LARGE = b"y" * 300_000


class Clamd:
    """A clamd that takes streams and finds ``Evil`` where that word is in them.

    ``texts`` is what has come in each connection, also of streams that are not whole. ``first`` says what happens in
    the first connection, once, when some of a stream has come.
    """

    def __init__(self) -> None:
        self.texts: list[bytes] = []
        self.first: Callable[[asyncio.StreamWriter], Awaitable[None]] | None = None
        self.reads = asyncio.Event()
        self.reads.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError), contextlib.closing(writer):
            number = 0
            numbered = False
            while True:
                command = await reader.readuntil(b"\0")
                if command == b"zIDSESSION\0":
                    numbered = True
                    continue
                number += 1
                assert command == b"zINSTREAM\0"
                text = await self._take(reader, writer)
                reply = b"stream: Evil FOUND\0" if b"Evil" in text else b"stream: OK\0"
                writer.write(b"%d: " % number * numbered + reply)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        at = len(self.texts)
        self.texts.append(b"")
        while size := int.from_bytes(await reader.readexactly(4), "big"):
            await self.reads.wait()
            self.texts[at] += await reader.readexactly(size)
            if self.first is not None:
                first, self.first = self.first, None
                await first(writer)
        return self.texts[at]


@contextlib.asynccontextmanager
async def scanning(clamd: Clamd, *, time_out: float = LONG) -> AsyncIterator[Scanner]:
    server = await asyncio.start_server(clamd.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    scanner = Scanner(TcpAddress("127.0.0.1", port), time_out=time_out)
    try:
        yield scanner
    finally:
        scanner.close()
        server.close()
        await server.wait_closed()
        # Connections that have just been closed are still in the loop's hands.
        await asyncio.sleep(0.02)


@contextlib.contextmanager
def incoming(folder: Path, scanner: Scanner) -> Iterator[tuple[Spool, EarlyScan]]:
    with contextlib.closing(Spool(str(folder), "test")) as spool:
        early = scanner.begin(spool)
        assert early is not None
        try:
            yield spool, early
        finally:
            early.cancel()


async def verdict_on(scanner: Scanner, spool: Spool, early: EarlyScan, *, stuffed: bool = False) -> Verdict:
    spool.seal(stuffed=stuffed)
    return await judge(scanner, spool, early)


# ---- as it should be -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [LARGE, LARGE[:-5] + b"Evil!"], ids=["clean", "infected"])
def test_clamd_has_all_but_the_end_before_the_end_comes(run: Run, tmp_path: Path, kind: bytes) -> None:
    async def main() -> None:
        clamd = Clamd()
        async with scanning(clamd) as scanner:
            with incoming(tmp_path, scanner) as (spool, early):
                for at in range(0, len(kind), 10_000):
                    spool.append(kind[at : at + 10_000])
                    await asyncio.sleep(0)
                await until(lambda: bool(clamd.texts) and len(clamd.texts[0]) > len(kind) - 2 * EARLY_MIN)
                verdict = await verdict_on(scanner, spool, early)
            assert verdict == (Infected("Evil") if b"Evil" in kind else Clean())
            assert clamd.texts == [kind], "once, and whole"

    run(main())


def test_a_small_message_is_sent_when_it_is_whole(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        clamd = Clamd()
        async with scanning(clamd) as scanner:
            with incoming(tmp_path, scanner) as (spool, early):
                spool.append(b"z" * (EARLY_MIN - 1))
                await asyncio.sleep(0.01)
                assert clamd.texts == []
                assert await verdict_on(scanner, spool, early) == Clean()
            assert len(clamd.texts) == 1

    run(main())


def test_a_message_that_comes_in_one_piece_is_whole(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        clamd = Clamd()
        async with scanning(clamd) as scanner:
            with incoming(tmp_path, scanner) as (spool, early):
                spool.append(LARGE)
                assert await verdict_on(scanner, spool, early) == Clean()
            assert clamd.texts == [LARGE]

    run(main())


def test_stuffed_dots_on_every_border_are_not_seen(run: Run, tmp_path: Path) -> None:
    text = LARGE + b"\r\n..one\r\n...\r\n\r\n..Evil\r\n" + LARGE + b"\r\n..\r\n"
    plain = text.replace(b"\r\n.", b"\r\n")

    async def main() -> None:
        # The pieces are cut at each place of the part with the dots.
        for cut in range(len(LARGE) - 1, len(LARGE) + 26):
            clamd = Clamd()
            async with scanning(clamd) as scanner:
                with incoming(tmp_path, scanner) as (spool, early):
                    spool.append(text[:cut])
                    await until(lambda clamd=clamd: bool(clamd.texts) and len(clamd.texts[0]) > 299_000)  # type: ignore[misc]
                    spool.append(text[cut:])
                    assert await verdict_on(scanner, spool, early, stuffed=True) == Infected("Evil")
                assert clamd.texts == [plain]

    run(main())


def test_over_a_unix_socket_there_is_nothing_to_gain() -> None:
    with contextlib.closing(Spool("/tmp", "test")) as spool:
        assert Scanner(UnixAddress("/x"), time_out=1).begin(spool) is None


# ---- what goes wrong, and is made good -----------------------------------------------------------


async def says_ok(writer: asyncio.StreamWriter) -> None:
    writer.write(b"1: stream: OK\0")


async def leaves(writer: asyncio.StreamWriter) -> None:
    writer.close()


async def is_impatient(writer: asyncio.StreamWriter) -> None:
    writer.write(b"COMMAND READ TIMED OUT\n")
    writer.close()


@pytest.mark.parametrize("first", [says_ok, leaves, is_impatient])
@pytest.mark.parametrize("text", [LARGE, LARGE + b"Evil"], ids=["clean", "infected"])
def test_a_message_that_fails_the_early_way_is_scanned_whole(
    run: Run, tmp_path: Path, first: Callable[[asyncio.StreamWriter], Awaitable[None]], text: bytes
) -> None:
    async def main() -> None:
        clamd = Clamd()
        clamd.first = first
        async with scanning(clamd) as scanner:
            with incoming(tmp_path, scanner) as (spool, early):
                spool.append(text[:100_000])
                await until(lambda: bool(clamd.texts and clamd.texts[0]))
                await asyncio.sleep(0.01)
                spool.append(text[100_000:])
                verdict = await verdict_on(scanner, spool, early)
            assert verdict == (Infected("Evil") if b"Evil" in text else Clean())
            assert clamd.texts[-1] == text
            assert len(clamd.texts) == 2

    run(main())


def test_what_is_too_large_is_not_sent_again(run: Run, tmp_path: Path) -> None:
    async def limits(writer: asyncio.StreamWriter) -> None:
        writer.write(b"1: INSTREAM size limit exceeded. ERROR\0")

    async def main() -> None:
        clamd = Clamd()
        clamd.first = limits
        async with scanning(clamd) as scanner:
            with incoming(tmp_path, scanner) as (spool, early):
                spool.append(LARGE)
                await until(lambda: bool(clamd.texts and clamd.texts[0]))
                spool.append(LARGE)
                verdict = await verdict_on(scanner, spool, early)
            assert isinstance(verdict, Oversize)
            assert "the message is larger than StreamMaxLength" in verdict.reason
            assert len(clamd.texts) == 1

    run(main())


def test_a_clamd_that_hangs_in_the_midst_gets_the_whole_message_once_more(run: Run, tmp_path: Path) -> None:
    text = LARGE * 40

    async def main() -> None:
        clamd = Clamd()
        clamd.reads.clear()
        async with scanning(clamd, time_out=SHORT) as scanner:
            with incoming(tmp_path, scanner) as (spool, early):
                spool.append(text)
                await asyncio.sleep(2 * SHORT)
                clamd.reads.set()
                assert await verdict_on(scanner, spool, early) == Clean()
            assert clamd.texts[-1] == text

    run(main())


def test_a_clamd_that_had_all_of_it_had_its_time(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        clamd = Clamd()
        over = asyncio.Event()

        async def hangs(_: asyncio.StreamWriter) -> None:
            await over.wait()

        clamd.first = hangs
        async with scanning(clamd, time_out=SHORT) as scanner:
            with incoming(tmp_path, scanner) as (spool, early):
                spool.append(LARGE)
                verdict = await verdict_on(scanner, spool, early)
            assert isinstance(verdict, Unscanned)
            assert verdict.reason.endswith("no answer within 0.55 seconds"), "the size adds to it"
            assert len(clamd.texts) == 1
            over.set()

    run(main())


def test_nobody_listens_while_it_comes_in(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        scanner = Scanner(TcpAddress("127.0.0.1", port), time_out=LONG)
        with incoming(tmp_path, scanner) as (spool, early):
            spool.append(LARGE)
            await asyncio.sleep(0.01)
            clamd = Clamd()
            server = await asyncio.start_server(clamd.serve, "127.0.0.1", port)
            assert await verdict_on(scanner, spool, early) == Clean()
            scanner.close()
            server.close()
            await asyncio.sleep(0.02)

    run(main())


def test_a_spool_that_cannot_be_read_is_told_when_it_is_scanned_whole(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with scanning(Clamd()) as scanner:
            with incoming(tmp_path, scanner) as (spool, early):
                spool.append(LARGE)
                os.ftruncate(spool._fd, 10)
                with pytest.raises(OSError, match="ended early"):
                    await verdict_on(scanner, spool, early)

    run(main())


# ---- given up ------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", [0, 0.02])
def test_a_message_that_is_given_up_leaves_nothing(run: Run, tmp_path: Path, wait: float) -> None:
    async def main() -> None:
        clamd = Clamd()
        async with scanning(clamd) as scanner:
            with incoming(tmp_path, scanner) as (spool, early):
                spool.append(LARGE)
                if wait:
                    await asyncio.sleep(wait)
                early.cancel()
                spool.append(LARGE)
            await asyncio.sleep(0.02)
            assert not scanner._early
            assert not scanner._sessions, "in the midst of a stream a connection is good for nothing else"

    run(main())


def test_a_message_that_is_given_up_before_it_became_large_is_never_begun(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        clamd = Clamd()
        async with scanning(clamd) as scanner, asyncio.timeout(5):
            with incoming(tmp_path, scanner) as (spool, early):
                early.cancel()
                spool.append(LARGE)
                await asyncio.sleep(0.01)
                assert early.take() is None
            assert clamd.texts == []

    run(main())


def test_slow_clients_leave_connections_for_messages_that_are_whole(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EARLY_MAX", 2)

    async def main() -> None:
        clamd = Clamd()
        async with scanning(clamd) as scanner:
            with contextlib.ExitStack() as stack:
                slow = [stack.enter_context(incoming(tmp_path, scanner)) for _ in range(5)]
                for spool, _ in slow:
                    spool.append(LARGE)
                await until(lambda: len(clamd.texts) >= 2)
                await asyncio.sleep(0.02)
                assert len(clamd.texts) == 2
                # Whoever was refused is asked again when there is more of it.
                slow[0][1].cancel()
                await asyncio.sleep(0.02)
                slow[4][0].append(SMALL)
                await until(lambda: len(clamd.texts) >= 3)
                assert len(clamd.texts) == 3
                verdicts = await asyncio.gather(*(verdict_on(scanner, *one) for one in slow[1:]))
                assert verdicts == [Clean()] * 4

    run(main())


def test_the_growth_of_a_text_wakes_nobody_for_little(run: Run, tmp_path: Path) -> None:
    sent = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def take(pieces: AsyncIterator[bytes]) -> Outcome | None:
            sent.extend([len(piece) async for piece in pieces])
            return Clean()

        with contextlib.closing(Spool(str(tmp_path), "test")) as spool:
            early = EarlyScan(spool, lambda pieces: loop.create_task(take(pieces)))
            for _ in range(200):
                spool.append(SMALL)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            spool.seal(stuffed=False)
            task = early.take()
            assert task is not None
            assert await task == Clean()

    run(main())
    assert sum(sent) == 200_000
    assert min(sent[:-1]) >= 32768
    assert len(sent) in range(4, 7)
