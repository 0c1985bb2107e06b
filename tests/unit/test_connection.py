"""A connection over a socket pair: what one side writes, the other reads."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from clamsmtpd.connection import HIGH_WATER, Connection
from clamsmtpd.poller import READABLE, WRITABLE, Poller
from tests.support.world import run

LARGE = bytes(range(256)) * 40_000


@dataclass
class Log(asyncio.Protocol):
    """Writes down what it hears."""

    said: list[str] = field(default_factory=list)
    data: bytes = b""
    keeps_open: bool = True
    errors: list[Exception | None] = field(default_factory=list)

    def received(self, data: bytes) -> None:
        self.data += data

    def eof_received(self) -> bool:
        self.said.append("eof")
        return self.keeps_open

    def connection_lost(self, error: Exception | None) -> None:
        self.said.append("lost")
        self.errors.append(error)

    def pause_writing(self) -> None:
        self.said.append("pause")

    def resume_writing(self) -> None:
        self.said.append("resume")


@dataclass
class Pair:
    """A connection and the socket at its other end, which does not block."""

    ours: Connection
    log: Log
    theirs: socket.socket

    async def read(self, octets: int) -> bytes:
        """Read at the other end."""
        loop = asyncio.get_running_loop()
        data = bytearray()
        while len(data) < octets:
            piece = await asyncio.wait_for(loop.sock_recv(self.theirs, 1 << 16), 10)
            if not piece:
                break
            data += piece
        return bytes(data)

    async def hears(self, *said: str) -> None:
        """Wait until the protocol has heard all of this, in this order, and nothing else."""
        for _ in range(500):
            if self.log.said == list(said):
                return
            await asyncio.sleep(0.01)
        assert self.log.said == list(said)


@contextlib.asynccontextmanager
async def pair(*, small: bool = False) -> AsyncIterator[Pair]:
    """Make both ends; ``small``: hardly anything fits into the connection."""
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setblocking(False)
        if small:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    log = Log()
    poller = Poller()
    here = Pair(Connection(ours, log, log.received, poller), log, theirs)
    try:
        yield here
    finally:
        here.ours.abort()
        theirs.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        poller.close()


# ---- reading --------------------------------------------------------------------------------------


def test_what_the_other_side_sends_is_heard(tmp_path: Path) -> None:
    async def main() -> None:
        async with pair() as here:
            parts = (b"a", b"b" * 20_000, LARGE, b"c")
            for octets in parts:
                await asyncio.get_running_loop().sock_sendall(here.theirs, octets)
            here.theirs.shutdown(socket.SHUT_WR)
            await here.hears("eof")
            assert here.log.data == b"".join(parts)

    run(main())


def test_while_reading_is_paused_nothing_is_heard() -> None:
    async def main() -> None:
        async with pair() as here:
            here.ours.pause_reading()
            here.ours.pause_reading()
            here.theirs.send(b"x")
            await asyncio.sleep(0.05)
            assert here.log.data == b""
            here.ours.resume_reading()
            here.ours.resume_reading()
            await asyncio.sleep(0.05)
            assert here.log.data == b"x"

    run(main())


def test_an_end_of_the_other_side_is_heard_once_and_can_still_be_answered() -> None:
    async def main() -> None:
        async with pair() as here:
            here.theirs.send(b"bye")
            here.theirs.shutdown(socket.SHUT_WR)
            await here.hears("eof")
            here.ours.resume_reading()
            await asyncio.sleep(0.05)
            assert here.log.said == ["eof"]
            assert here.log.data == b"bye"
            here.ours.write(b"answer")
            assert await here.read(6) == b"answer"

    run(main())


def test_an_end_of_the_other_side_closes_where_the_protocol_wants_that() -> None:
    async def main() -> None:
        async with pair() as here:
            here.log.keeps_open = False
            here.theirs.close()
            await here.hears("eof", "lost")
            assert here.log.errors == [None]
            assert here.ours.is_closing()

    run(main())


def test_a_reset_is_told_with_its_reason() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
        ours.setblocking(False)
        log = Log()
        connection = Connection(ours, log, log.received, Poller())
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        await asyncio.sleep(0.05)
        assert log.said == ["lost"]
        assert isinstance(log.errors[0], ConnectionResetError)
        assert connection.is_closing()
        assert ours.fileno() == -1

    run(main())


def test_a_connection_that_does_not_come_about_is_told_like_a_reset() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            name = listener.getsockname()
        ours = socket.socket()
        ours.setblocking(False)
        ours.connect_ex(name)
        log = Log()
        Connection(ours, log, log.received, Poller())
        await asyncio.sleep(0.05)
        assert log.said == ["lost"]
        assert isinstance(log.errors[0], ConnectionRefusedError)

    run(main())


def test_a_wake_up_for_nothing_changes_nothing() -> None:
    async def main() -> None:
        async with pair() as here:
            here.ours._on_ready(READABLE)
            here.ours._on_ready(WRITABLE)
            assert here.log.said == []

    run(main())


def test_a_fault_in_what_hears_it_ends_this_connection_and_no_other() -> None:
    async def main() -> None:
        faults: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: faults.append(context["exception"]))
        poller, fault = Poller(), RuntimeError("a bug")
        pairs = [socket.socketpair() for _ in range(3)]
        logs = [Log() for _ in pairs]

        def fails(_data: bytes) -> None:
            raise fault

        for (ours, theirs), log in zip(pairs, logs, strict=True):
            ours.setblocking(False)
            Connection(ours, log, fails if log is logs[1] else log.received, poller)
            theirs.send(b"x")
        await asyncio.sleep(0.05)
        assert faults == [fault]
        assert [log.data for log in logs] == [b"x", b"", b"x"]
        assert [log.said for log in logs] == [[], ["lost"], []]
        poller.close()
        for sockets in pairs:
            for sock in sockets:
                sock.close()

    run(main())


# ---- writing --------------------------------------------------------------------------------------


def test_what_is_written_is_sent_at_once() -> None:
    async def main() -> None:
        async with pair() as here:
            here.ours.write(b"one ")
            here.ours.writelines([b"two ", bytearray(b"three "), memoryview(b"four")])
            assert here.theirs.recv(100) == b"one two three four"
            assert here.ours.get_write_buffer_size() == 0

    run(main())


@pytest.mark.parametrize("size", [1000, 70_000, len(LARGE)])
def test_what_does_not_fit_waits_in_order(size: int) -> None:
    async def main() -> None:
        async with pair(small=True) as here:
            first, second, third = LARGE[:size], b"-" * size, b"end"
            here.ours.write(first)
            here.ours.writelines([second[:10], second[10:]])
            here.ours.write(third)
            waiting = here.ours.get_write_buffer_size()
            assert ("pause" in here.log.said) == (waiting > HIGH_WATER)
            assert await here.read(2 * size + 3) == first + second + third
            await asyncio.sleep(0.01)
            assert here.ours.get_write_buffer_size() == 0
            assert here.log.said in ([], ["pause", "resume"])

    run(main())


def test_more_pieces_than_one_call_takes_are_sent_all_the_same() -> None:
    async def main() -> None:
        async with pair() as here:
            pieces = [b"%d," % number for number in range(3000)]
            here.ours.writelines(pieces)
            assert await here.read(len(b"".join(pieces))) == b"".join(pieces)

    run(main())


def test_a_file_is_sent_as_far_as_it_goes_and_then_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(LARGE)

    async def main() -> None:
        descriptor = os.open(path, os.O_RDONLY)
        async with pair(small=True) as here:
            at, stop, got = 7, len(LARGE) - 5, b""
            while at < stop:
                here.log.said.clear()
                sent = here.ours.send_file(descriptor, at, stop)
                at += sent
                assert here.log.said == (["pause"] if at < stop else [])
                got += await here.read(sent)
                if at < stop:
                    await here.hears("pause", "resume")
            assert got == LARGE[7:-5]
        os.close(descriptor)

    run(main())


def test_a_file_leaves_others_their_turn_however_fast_it_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(10))
    monkeypatch.setattr(os, "sendfile", lambda _to, _of, _at, octets: min(octets, 4))

    async def main() -> None:
        descriptor = os.open(path, os.O_RDONLY)
        async with pair() as here:
            assert here.ours.send_file(descriptor, 0, 10) == 4
            await here.hears("pause", "resume")
            assert here.ours.send_file(descriptor, 4, 10) == 4
            await here.hears("pause", "resume", "pause", "resume")
            assert here.ours.send_file(descriptor, 8, 10) == 2
            await here.hears("pause", "resume", "pause", "resume")
        os.close(descriptor)

    run(main())


def test_a_file_waits_for_what_was_written_before_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"file")

    async def main() -> None:
        descriptor = os.open(path, os.O_RDONLY)
        async with pair(small=True) as here:
            here.ours.write(LARGE[:30_000])
            assert here.ours.get_write_buffer_size()
            assert here.ours.send_file(descriptor, 0, 4) == 0
            assert here.log.said == ["pause"]
            assert await here.read(30_000) == LARGE[:30_000]
            await here.hears("pause", "resume")
            assert here.ours.send_file(descriptor, 0, 4) == 4
            assert await here.read(4) == b"file"
        os.close(descriptor)

    run(main())


def test_a_file_that_is_shorter_than_it_was_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"file")

    async def main() -> None:
        descriptor = os.open(path, os.O_RDONLY)
        async with pair() as here:
            assert here.ours.send_file(descriptor, 0, 5) == 4
            with pytest.raises(OSError, match="ended early") as raised:
                here.ours.send_file(descriptor, 4, 5)
            assert raised.value.errno == errno.EIO
        os.close(descriptor)

    run(main())


@pytest.mark.parametrize("way", ["write", "writelines", "send_file", "waiting"])
def test_writing_to_a_side_that_is_gone_ends_the_connection_once(way: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"file")

    async def main() -> None:
        descriptor = os.open(path, os.O_RDONLY)
        async with pair(small=way == "waiting") as here:
            here.ours.pause_reading()
            if way == "waiting":
                here.ours.write(LARGE)
            here.theirs.close()
            if way == "write":
                here.ours.write(b"x")
            elif way == "writelines":
                here.ours.writelines([b"x", b"y"])
            elif way == "send_file":
                assert here.ours.send_file(descriptor, 0, 4) == 0
            elif way == "waiting":
                await asyncio.sleep(0.05)
            here.ours.write(b"more")
            here.ours.writelines([b"more"])
            assert here.ours.send_file(descriptor, 0, 4) == 0
            await here.hears(*(["pause", "lost"] if way == "waiting" else ["lost"]))
            assert isinstance(here.log.errors[0], BrokenPipeError | ConnectionResetError)
        os.close(descriptor)

    run(main())


@pytest.mark.parametrize("way", ["pieces", "file"])
def test_what_the_other_side_said_before_it_went_is_heard(way: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(LARGE * 4)

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
        ours.setblocking(False)
        descriptor = os.open(path, os.O_RDONLY)

        class Sender(Log):
            def resume_writing(self) -> None:
                connection.send_file(descriptor, 0, len(LARGE))

        log = Sender()
        poller = Poller()
        connection = Connection(ours, log, log.received, poller)
        if way == "file":
            assert connection.send_file(descriptor, 0, len(LARGE) * 4) < len(LARGE) * 4
        else:
            connection.writelines([LARGE] * 4)
        # It refuses the text in the midst of it and closes, which resets the connection. All of this is there at once.
        theirs.sendall(b"552 too large\r\n")
        theirs.close()
        await asyncio.sleep(0.05)
        assert log.data == b"552 too large\r\n"
        assert log.said[-1] == "lost"
        os.close(descriptor)
        poller.close()

    run(main())


# ---- the end --------------------------------------------------------------------------------------


def test_close_sends_what_waits_and_then_tells() -> None:
    async def main() -> None:
        async with pair(small=True) as here:
            here.ours.write(LARGE)
            here.ours.close()
            here.ours.close()
            assert here.ours.is_closing()
            here.ours.write(b"too late")
            assert await here.read(len(LARGE) + 1) == LARGE
            await here.hears("pause", "resume", "lost")
            assert here.log.errors == [None]

    run(main())


def test_abort_throws_away_what_waits() -> None:
    async def main() -> None:
        async with pair(small=True) as here:
            here.ours.write(LARGE)
            here.ours.abort()
            here.ours.abort()
            await here.hears("pause", "lost")
            assert len(await here.read(len(LARGE))) < len(LARGE)

    run(main())


def test_nobody_is_called_back_by_what_it_calls() -> None:
    async def main() -> None:
        async with pair() as here:
            here.ours.abort()
            assert here.log.said == []
            await asyncio.sleep(0)
            await here.hears("lost")

    run(main())


@pytest.mark.parametrize("size", [10, len(LARGE)])
def test_an_end_of_our_side_comes_behind_all_that_was_written(size: int) -> None:
    async def main() -> None:
        async with pair(small=True) as here:
            assert here.ours.can_write_eof()
            here.ours.write(LARGE[:size])
            here.ours.write_eof()
            assert await here.read(size + 1) == LARGE[:size]
            here.theirs.send(b"still here")
            await asyncio.sleep(0.05)
            assert here.log.data == b"still here"
            assert "lost" not in here.log.said

    run(main())


def test_an_end_of_our_side_when_there_is_no_other_ends_the_connection() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            name = listener.getsockname()
        ours = socket.socket()
        ours.setblocking(False)
        log = Log()
        connection = Connection(ours, log, log.received, Poller())
        ours.connect_ex(name)
        connection.write_eof()
        connection.write_eof()
        await asyncio.sleep(0.05)
        assert log.said == ["lost"]

    run(main())


def test_the_socket_can_be_handed_on_when_nothing_waits() -> None:
    async def main() -> None:
        async with pair(small=True) as here:
            here.ours.write(LARGE)
            assert here.ours.detach() is None
            await here.read(len(LARGE))
            await here.hears("pause", "resume")
            sock = here.ours.detach()
            assert sock is not None
            assert here.ours.detach() is None
            here.theirs.send(b"for somebody else")
            here.ours.write(b"nothing")
            here.ours.close()
            here.ours.abort()
            await asyncio.sleep(0.05)
            assert here.log.data == b""
            assert here.log.said == ["pause", "resume"]
            assert sock.recv(100) == b"for somebody else"
            sock.close()

    run(main())


def test_it_knows_its_socket_and_its_protocol() -> None:
    async def main() -> None:
        async with pair() as here:
            assert isinstance(here.ours.get_extra_info("socket"), socket.socket)
            assert here.ours.get_extra_info("cipher", "none") == "none"
            assert here.ours.get_protocol() is here.log

    run(main())
