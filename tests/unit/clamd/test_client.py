"""Connections to clamd, against clamds of ours that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvloop

from clamsmtpd.clamd.client import KEPT_MAX, Scanner
from clamsmtpd.clamd.early import Follower
from clamsmtpd.values import Address, Clean, Infected, Oversize, TcpAddress, UnixAddress, Unscanned, Verdict
from tests.support.loops import Run
from tests.support.scanners import judge

Handler = Callable[[socket.socket], Awaitable[None]]

#: A limit that no test may reach, and one that a test waits for.
LONG, SHORT = 20.0, 0.25


@dataclass
class Message:
    """A message in pieces; ``at`` is where its file is for a clamd that opens it itself."""

    text: list[bytes] = field(default_factory=lambda: [b"Subject: x\r\n", b"\r\ntext\r\n"])
    at: str = "/var/spool/clamsmtpd.aB3x9Z"
    descriptors: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(map(len, self.text))

    def descriptor(self) -> int:
        descriptor = os.memfd_create("message")
        self.descriptors.append(descriptor)
        os.pwrite(descriptor, b"".join(self.text), 0)
        return descriptor

    def pieces(self) -> Iterator[bytes]:
        return iter(self.text)

    def path(self) -> str:
        return self.at

    def follow(self, on_growth: Callable[[], None]) -> Follower:
        raise NotImplementedError

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


def plain_scanner(address: Address, *, time_out: float = LONG) -> Scanner:
    """A scanner that has learnt that this clamd has no sessions: each scan gets a connection of its own."""
    scanner = Scanner(address, time_out=time_out)
    scanner._has_sessions = False
    return scanner


async def scan(address: Address, message: Message | None = None, *, time_out: float = LONG) -> Verdict:
    return await scan_with(plain_scanner(address, time_out=time_out), message)


async def scan_with(scanner: Scanner, message: Message | None = None) -> Verdict:
    message = message or Message()
    with contextlib.closing(message):
        return await judge(scanner, message)


@contextlib.asynccontextmanager
async def clamd(handler: Handler, listener: socket.socket) -> AsyncIterator[None]:
    """Serve ``listener`` one connection at a time."""
    loop = asyncio.get_running_loop()
    listener.setblocking(False)

    async def serve() -> None:
        while True:
            connection, _ = await loop.sock_accept(listener)
            with connection, contextlib.suppress(ConnectionError):
                await handler(connection)

    task = loop.create_task(serve())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        listener.close()


@contextlib.asynccontextmanager
async def local(path: Path, handler: Handler) -> AsyncIterator[UnixAddress]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path / "clamd"))
    listener.listen()
    async with clamd(handler, listener):
        yield UnixAddress(str(path / "clamd"))


@contextlib.asynccontextmanager
async def remote(handler: Handler, host: str = "127.0.0.1") -> AsyncIterator[TcpAddress]:
    listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    async with clamd(handler, listener):
        yield TcpAddress(host, listener.getsockname()[1])


async def request(connection: socket.socket) -> tuple[bytes, list[bytes]]:
    """Receive one request as one piece; return it and the contents of the files that came with it."""
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    loop.add_reader(connection, came.set)
    try:
        await came.wait()
    finally:
        loop.remove_reader(connection)
    data, descriptors, _, _ = socket.recv_fds(connection, 4096, 8)
    contents = []
    for descriptor in descriptors:
        with os.fdopen(descriptor, "rb") as file:
            contents.append(file.read())
    return data, contents


def answers(*pieces: bytes) -> Handler:
    """Return a clamd that takes a request, answers in these pieces and closes."""

    async def handler(connection: socket.socket) -> None:
        await request(connection)
        for piece in pieces:
            await asyncio.get_running_loop().sock_sendall(connection, piece)
            await asyncio.sleep(0.001)

    return handler


async def silence(connection: socket.socket) -> None:
    """A clamd that takes everything and says nothing."""
    while await asyncio.get_running_loop().sock_recv(connection, 65536):
        pass


async def deafness(_: socket.socket) -> None:
    """A clamd that reads nothing."""
    await asyncio.sleep(LONG)


async def reset(connection: socket.socket) -> None:
    """A clamd that goes without reading."""
    await asyncio.sleep(0.05)
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def streamed(connection: socket.socket, sizes: list[int] | None = None) -> bytes:
    """Receive a whole INSTREAM request; return its text."""
    data = b""

    async def take(count: int) -> bytes:
        nonlocal data
        while len(data) < count:
            more = await asyncio.get_running_loop().sock_recv(connection, 262144)
            assert more
            data += more
        taken, data = data[:count], data[count:]
        return taken

    assert await take(10) == b"zINSTREAM\0"
    text = []
    while size := int.from_bytes(await take(4), "big"):
        if sizes is not None:
            sizes.append(size)
        text.append(await take(size))
    assert data == b"", "nothing behind the end"
    return b"".join(text)


# ---- unix socket ---------------------------------------------------------------------------------


def test_a_descriptor_comes_with_its_request(run: Run, tmp_path: Path) -> None:
    requests = []

    async def handler(connection: socket.socket) -> None:
        requests.append(await request(connection))
        connection.send(b"fd[10]: OK\0")

    async def main() -> None:
        async with local(tmp_path, handler) as address:
            assert await scan(address) == Clean()

    run(main())
    assert requests == [(b"zFILDES\0\0", [b"Subject: x\r\n\r\ntext\r\n"])]


@pytest.mark.parametrize(
    ("pieces", "verdict"),
    [
        ([b"fd[10]: OK\0"], Clean()),
        ([bytes([octet]) for octet in b"fd[10]: OK\0"], Clean()),
        ([b"fd[10]: Evil.A FO", b"UND\0"], Infected("Evil.A")),
        ([b"fd[10]: OK"], 'it closed the connection in the middle of its reply "fd[10]: OK"'),
        ([b"fd[10]: OK\0fd[10]: Evil FOUND\0"], "octets behind its reply"),
        ([b"stream: OK\0"], 'it answered "stream: OK"'),
        ([b"fd[10]: Can't allocate memory ERROR\0"], 'it answered "fd[10]: Can\'t allocate memory ERROR"'),
        ([b"x" * 4096, b"x" * 4096], "a reply without end"),
        ([], "it closed the connection without a reply"),
    ],
)
def test_answers_over_a_unix_socket(run: Run, tmp_path: Path, pieces: list[bytes], verdict: Verdict | str) -> None:
    async def main() -> None:
        async with local(tmp_path, answers(*pieces)) as address:
            wanted = Unscanned(f"clamd at {address}: {verdict}") if isinstance(verdict, str) else verdict
            assert await scan(address) == wanted

    run(main())


def test_nobody_listens(run: Run, tmp_path: Path) -> None:
    path = str(tmp_path / "clamd")

    async def main() -> None:
        assert await scan(UnixAddress(path)) == Unscanned(f"clamd at {path}: No such file or directory")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path)
            assert await scan(UnixAddress(path)) == Unscanned(f"clamd at {path}: Connection refused")
        long = "/" + "x" * 200
        assert await scan(UnixAddress(long)) == Unscanned(f"clamd at {long}: AF_UNIX path too long")

    run(main())


def test_a_lost_connection(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with local(tmp_path, reset) as address:
            assert await scan(address) == Unscanned(f"clamd at {address}: Connection reset by peer")

    run(main())


def test_silence_has_a_limit(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with local(tmp_path, silence) as address:
            began = time.monotonic()
            verdict = await scan(address, time_out=SHORT)
            assert 0.9 * SHORT <= time.monotonic() - began < LONG, "uvloop counts milliseconds"
            assert verdict == Unscanned(f"clamd at {address}: no answer within 0.25 seconds")

    run(main())


def test_a_reply_in_drops_has_the_same_limit(run: Run, tmp_path: Path) -> None:
    async def handler(connection: socket.socket) -> None:
        while True:
            connection.send(b"x")
            await asyncio.sleep(SHORT / 5)

    async def main() -> None:
        async with local(tmp_path, handler) as address:
            verdict = await scan(address, time_out=SHORT)
            assert verdict == Unscanned(f"clamd at {address}: no answer within 0.25 seconds")

    run(main())


@contextlib.contextmanager
def full_queue(path: Path) -> Iterator[socket.socket]:
    """Yield a listener with one connection waiting and no room for another."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(str(path / "clamd"))
        listener.listen(0)
        waiting.connect(str(path / "clamd"))
        yield listener


def test_a_full_queue_is_waited_for(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        with full_queue(tmp_path) as listener:
            task = asyncio.create_task(scan(UnixAddress(str(tmp_path / "clamd"))))
            await asyncio.sleep(0.1)
            assert not task.done()
            listener.accept()[0].close()
            async with clamd(answers(b"fd[10]: OK\0"), listener):
                assert await task == Clean()

    run(main())


def test_a_full_queue_is_not_waited_for_for_ever_and_costs_little(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        with full_queue(tmp_path):
            address = UnixAddress(str(tmp_path / "clamd"))
            began = time.process_time()
            verdict = await scan(address, time_out=0.5)
            assert time.process_time() - began < 0.25
            assert verdict == Unscanned(f"clamd at {address}: it accepts no connections, and its queue of them is full")

    run(main())


# ---- SCAN of a path ------------------------------------------------------------------------------


@pytest.mark.parametrize("refusal", [b"UNKNOWN COMMAND\0", b"FILDES support not compiled in. ERROR\0"])
def test_a_clamd_that_takes_no_descriptors_gets_a_path_from_then_on(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, refusal: bytes
) -> None:
    requests = []

    async def handler(connection: socket.socket) -> None:
        command, _ = await request(connection)
        requests.append(command)
        connection.send(b"/tmp/m: Evil FOUND\0" if command.startswith(b"zSCAN ") else refusal)

    async def main() -> None:
        async with local(tmp_path, handler) as address:
            scanner = Scanner(address, time_out=LONG)
            found = await asyncio.gather(*(scan_with(scanner, Message(at="/tmp/m")) for _ in range(2)))
            assert found == [Infected("Evil")] * 2
            requests.clear()
            assert await scan_with(scanner, Message(at="/tmp/m")) == Infected("Evil")
            scanner.close()
        assert requests == [b"zSCAN /tmp/m\0"]
        assert caplog.record_tuples == [
            (
                "clamsmtpd",
                logging.WARNING,
                f"clamd at {address} takes no descriptors; it must be able to read TempDirectory",
            )
        ]

    run(main())


def test_only_the_name_of_our_file_is_clean(run: Run, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    asked = tmp_path / "link" / "m"
    named = os.fsencode(asked)

    async def handler(connection: socket.socket) -> None:
        command, _ = await request(connection)
        connection.send(named + b": OK\0" if command.startswith(b"zSCAN ") else b"UNKNOWN COMMAND\0")

    async def main() -> None:
        nonlocal named
        async with local(tmp_path, handler) as address:
            assert await scan(address, Message(at=str(asked))) == Clean()
            named = os.fsencode(tmp_path / "real" / "m")
            assert await scan(address, Message(at=str(asked))) == Clean()
            named = os.fsencode(tmp_path / "other" / "m")
            verdict = await scan(address, Message(at=str(asked)))
            assert verdict == Unscanned(f'clamd at {address}: it answered "{tmp_path}/other/m: OK"')

    run(main())


# ---- TCP -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_text_is_streamed_in_chunks(run: Run, host: str) -> None:
    texts = []
    sizes: list[int] = []

    async def handler(connection: socket.socket) -> None:
        texts.append(await streamed(connection, sizes))
        connection.send(b"stream: OK\0")

    async def main() -> None:
        async with remote(handler, host) as address:
            assert await scan(address, Message([b"first", b"", b"second"])) == Clean()
            assert await scan(address, Message([])) == Clean()

    run(main())
    assert texts == [b"firstsecond", b""]
    assert sizes == [5, 6]


def test_a_large_text_to_a_slow_clamd(run: Run) -> None:
    text = [bytes([number]) * 262144 for number in range(32)]

    async def handler(connection: socket.socket) -> None:
        await asyncio.sleep(0.1)
        good = await streamed(connection) == b"".join(text)
        connection.send(b"stream: OK\0" if good else b"stream: Damaged FOUND\0")

    async def main() -> None:
        async with remote(handler) as address:
            assert await scan(address, Message(text)) == Clean()

    run(main())


def test_whoever_makes_progress_has_time(run: Run) -> None:
    async def handler(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        data = b""
        while not data.endswith(b"\0\0\0\0"):
            data = await asyncio.get_running_loop().sock_recv(connection, 262144)
            await asyncio.sleep(0.005)
        connection.send(b"stream: OK\0")

    async def main() -> None:
        async with remote(handler) as address:
            began = time.monotonic()
            assert await scan(address, Message([b"x" * 262144 * 100]), time_out=0.5) == Clean()
            assert time.monotonic() - began > 0.5

    run(main())


def test_sending_takes_of_the_time_for_the_verdict(run: Run) -> None:
    class Slow(Message):
        def pieces(self) -> Iterator[bytes]:
            yield b"one"
            time.sleep(0.6)
            yield b"two"

    async def handler(connection: socket.socket) -> None:
        await streamed(connection)
        await silence(connection)

    async def main() -> None:
        async with remote(handler) as address:
            began = time.monotonic()
            assert await scan(address, Slow(), time_out=1) == Unscanned(
                f"clamd at {address}: no answer within 0.4 seconds"
            )
            assert 0.9 < time.monotonic() - began < 1.4

    run(main())


def test_others_get_their_turn_while_a_large_text_is_sent(run: Run) -> None:
    turns = 0
    seen = []

    class Watched(Message):
        def pieces(self) -> Iterator[bytes]:
            for _ in range(5):
                seen.append(turns)
                yield b"piece"

    async def handler(connection: socket.socket) -> None:
        await streamed(connection)
        connection.send(b"stream: OK\0")

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def main() -> None:
        async with remote(handler) as address:
            other = asyncio.create_task(count())
            assert await scan(address, Watched()) == Clean()
            other.cancel()

    run(main())
    assert seen[1] < seen[2] < seen[3] < seen[4]


@pytest.mark.parametrize(
    ("pieces", "verdict"),
    [
        ([b"stream: OK\0"], Clean()),
        ([bytes([octet]) for octet in b"stream: OK\0"], Clean()),
        ([b"stream: Evil.A FO", b"UND\0"], Infected("Evil.A")),
        ([b"stream: OK"], 'it closed the connection in the middle of its reply "stream: OK"'),
        ([b"stream: OK\0stream: OK\0"], "octets behind its reply"),
        ([b"fd[10]: OK\0"], 'it answered "fd[10]: OK"'),
        ([b"x" * 4096, b"x" * 4096], "a reply without end"),
        ([], "it closed the connection without a reply"),
    ],
)
def test_answers_over_tcp(run: Run, pieces: list[bytes], verdict: Verdict | str) -> None:
    async def main() -> None:
        async with remote(answers(*pieces)) as address:
            wanted = Unscanned(f"clamd at {address}: {verdict}") if isinstance(verdict, str) else verdict
            assert await scan(address) == wanted

    run(main())


def test_a_text_that_is_too_large_is_told_as_such(run: Run) -> None:
    async def handler(connection: socket.socket) -> None:
        await asyncio.get_running_loop().sock_recv(connection, 100_000)
        connection.send(b"INSTREAM size limit exceeded. ERROR\0")

    async def main() -> None:
        async with remote(handler) as address:
            for _ in range(10):
                verdict = await scan(address, Message([b"x" * 262144] * 80))
                assert verdict == Oversize(
                    'it answered "INSTREAM size limit exceeded. ERROR": '
                    "the message is larger than StreamMaxLength in clamd.conf"
                )

    run(main())


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        (b"stream: OK\0", "it called the message clean before it had all of it"),
        (b"stream: Evil FOUND\0", Infected("Evil")),
    ],
)
@pytest.mark.parametrize("stays", [True, False])
def test_half_a_message_is_not_clean(run: Run, reply: bytes, verdict: Verdict | str, *, stays: bool) -> None:
    async def handler(connection: socket.socket) -> None:
        connection.send(reply)
        if stays:
            await asyncio.sleep(LONG)

    async def main() -> None:
        async with remote(handler) as address:
            wanted = Unscanned(f"clamd at {address}: {verdict}") if isinstance(verdict, str) else verdict
            assert await scan(address, Message([b"x" * 262144] * 80)) == wanted

    run(main())


def test_a_clamd_that_takes_nothing(run: Run) -> None:
    async def main() -> None:
        async with remote(deafness) as address:
            verdict = await judge(plain_scanner(address), Message([b"x" * 262144] * 80), limit=SHORT)
            reason = "it took nothing more of the message within 0.25 seconds"
            assert verdict == Unscanned(f"clamd at {address}: {reason}")

    run(main())


def test_a_clamd_that_says_nothing(run: Run) -> None:
    async def main() -> None:
        async with remote(silence) as address:
            verdict = await scan(address, time_out=SHORT)
            assert verdict == Unscanned(f"clamd at {address}: no answer within 0.25 seconds")

    run(main())


def test_a_lost_connection_over_tcp(run: Run) -> None:
    async def main() -> None:
        async with remote(reset) as address:
            verdict = await scan(address)
            assert verdict == Unscanned(f"clamd at {address}: Connection reset by peer")

    run(main())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def test_nobody_listens_over_tcp(run: Run) -> None:
    async def main() -> None:
        address = TcpAddress("127.0.0.1", free_port())
        assert await scan(address) == Unscanned(f"clamd at {address}: Connection refused")

    run(main())


@contextlib.contextmanager
def black_hole() -> Iterator[TcpAddress]:
    """Yield an address that answers no attempt to connect: its queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        time.sleep(0.05)
        yield TcpAddress("127.0.0.1", listener.getsockname()[1])


def test_a_host_that_does_not_answer(run: Run) -> None:
    async def main() -> None:
        with black_hole() as address:
            # Longer than a busy machine takes to look up a number.
            verdict = await scan(address, time_out=1.0)
            assert verdict == Unscanned(f"clamd at {address}: no connection within 1 seconds")

    run(main())


# ---- connections that are kept -------------------------------------------------------------------


class Counted:
    """A clamd with sessions, that takes no more than ``places`` connections at once."""

    def __init__(self, places: int = 100) -> None:
        self.places = asyncio.Semaphore(places)
        self.connections = 0
        self.commands: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        async with self.places:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError), contextlib.closing(writer):
                number = 0
                while True:
                    command = await reader.readuntil(b"\0")
                    self.commands.append(command)
                    if command == b"zINSTREAM\0":
                        while size := int.from_bytes(await reader.readexactly(4), "big"):
                            await reader.readexactly(size)
                        number += 1
                        numbered = b"zIDSESSION\0" in self.commands
                        writer.write(b"%d: stream: OK\0" % number if numbered else b"stream: OK\0")
                    elif command != b"zIDSESSION\0":
                        number += 1
                        # The octet behind the command that the descriptor comes with.
                        await reader.readexactly(1)
                        writer.write(b"%d: fd[10]: OK\0" % number)

    @contextlib.asynccontextmanager
    async def listening(self, path: Path | None = None) -> AsyncIterator[Address]:
        server: asyncio.Server
        address: Address
        if path is not None:
            address = UnixAddress(str(path / "clamd"))
            server = await asyncio.start_unix_server(self.serve, address.path)
        else:
            server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
            address = TcpAddress("127.0.0.1", server.sockets[0].getsockname()[1])
        try:
            yield address
        finally:
            server.close()
            await server.wait_closed()
            await asyncio.sleep(0.02)


def test_over_a_unix_socket_all_scans_share_one_connection(tmp_path: Path) -> None:
    async def main() -> None:
        clamd = Counted()
        async with clamd.listening(tmp_path) as address:
            scanner = Scanner(address, time_out=LONG)
            for _ in range(3):
                assert await asyncio.gather(*(scan_with(scanner) for _ in range(50))) == [Clean()] * 50
            scanner.close()
        assert clamd.connections == 1
        assert clamd.commands == [b"zIDSESSION\0", *[b"zFILDES\0"] * 150]

    uvloop.run(main())


def test_who_waits_for_the_shared_connection_does_not_depend_on_who_asked_first(tmp_path: Path) -> None:
    async def main() -> None:
        with full_queue(tmp_path) as listener:
            scanner = Scanner(UnixAddress(str(tmp_path / "clamd")), time_out=0.6)
            first, second = (asyncio.create_task(scan_with(scanner)) for _ in range(2))
            await asyncio.sleep(0.05)
            first.cancel()
            verdict = await second
            assert isinstance(verdict, Unscanned)
            assert verdict.reason.endswith("it accepts no connections, and its queue of them is full")
            third = asyncio.create_task(scan_with(scanner))
            await asyncio.sleep(0.05)
            listener.accept()[0].close()
            async with clamd(answers(b"1: fd[10]: OK\0"), listener):
                assert await third == Clean()
            scanner.close()

    uvloop.run(main())


def test_a_scanner_that_is_closed_while_it_connects_leaves_nothing(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        with full_queue(tmp_path):
            scanner = Scanner(UnixAddress(str(tmp_path / "clamd")), time_out=LONG)
            scan = asyncio.create_task(scan_with(scanner))
            await asyncio.sleep(0.05)
            scan.cancel()
            await asyncio.sleep(0)
            scanner.close()
            await asyncio.sleep(0.05)
            assert scanner._connecting is None

    run(main())


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_session_that_has_ended_costs_a_second_try_and_no_verdict(run: Run, tmp_path: Path, kind: str) -> None:
    """Each session ends when the second request comes."""
    requests = []
    reply = b"fd[10]: " if kind == "unix" else b"stream: "

    async def handler(connection: socket.socket) -> None:
        data, _ = await request(connection)
        requests.append(data)
        if data.startswith(b"zIDSESSION"):
            connection.send(b"1: " + reply + b"OK\0")
            await request(connection)
        else:
            connection.send(reply + b"Evil FOUND\0")

    async def main() -> None:
        async with local(tmp_path, handler) if kind == "unix" else remote(handler) as address:
            scanner = Scanner(address, time_out=LONG)
            assert [await scan_with(scanner) for _ in range(4)] == [Clean(), Infected("Evil")] * 2
            scanner.close()

    run(main())
    assert [data.startswith(b"zIDSESSION") for data in requests] == [True, False] * 2


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_clamd_without_sessions_is_asked_for_none_from_then_on(run: Run, tmp_path: Path, kind: str) -> None:
    requests = []

    async def handler(connection: socket.socket) -> None:
        data, _ = await request(connection)
        requests.append(data[:5])
        if data.startswith(b"zIDSESSION"):
            connection.send(b"UNKNOWN COMMAND\0")
        else:
            connection.send(b"fd[10]: OK\0" if kind == "unix" else b"stream: OK\0")

    async def main() -> None:
        async with local(tmp_path, handler) if kind == "unix" else remote(handler) as address:
            scanner = Scanner(address, time_out=LONG)
            assert [await scan_with(scanner) for _ in range(3)] == [Clean()] * 3
            scanner.close()

    run(main())
    assert requests == [b"zIDSE", *[b"zFILD" if kind == "unix" else b"zINST"] * 3]


def test_a_scan_that_is_late_leaves_the_next_another_session(run: Run, tmp_path: Path) -> None:
    connections = 0

    async def handler(connection: socket.socket) -> None:
        nonlocal connections
        connections += 1
        await request(connection)
        if connections == 1:
            await silence(connection)
        else:
            connection.send(b"1: fd[10]: OK\0")
            await silence(connection)

    async def main() -> None:
        async with local(tmp_path, handler) as address:
            scanner = Scanner(address, time_out=SHORT)
            late = await scan_with(scanner)
            assert late == Unscanned(f"clamd at {address}: no answer within 0.25 seconds")
            assert await scan_with(scanner) == Clean()
            scanner.close()

    run(main())
    assert connections == 2, "and it is not asked the same once more"


def test_when_one_session_was_lost_the_others_make_room_for_the_second_try() -> None:
    async def main() -> None:
        clamd = Counted()
        async with clamd.listening() as address:
            scanner = Scanner(address, time_out=LONG)
            assert await asyncio.gather(*(scan_with(scanner) for _ in range(3))) == [Clean()] * 3
            kept = set(scanner._free)
            assert kept
            second = await scanner._open_or_take(asyncio.get_running_loop().time() + LONG, kept=False)
            assert scanner._sessions == {second}
            scanner.close()

    uvloop.run(main())


def test_over_tcp_a_connection_is_kept_for_the_next_stream() -> None:
    async def main() -> None:
        clamd = Counted()
        async with clamd.listening() as address:
            scanner = Scanner(address, time_out=LONG)
            for _ in range(5):
                assert await scan_with(scanner) == Clean()
            assert clamd.connections == 1
            await asyncio.gather(*(scan_with(scanner) for _ in range(30)))
            assert len(scanner._sessions) <= KEPT_MAX
            scanner.close()

    uvloop.run(main())


def test_connections_that_clamd_has_not_taken_wait_for_none_that_is_kept() -> None:
    async def main() -> None:
        clamd = Counted(places=2)
        async with clamd.listening() as address:
            scanner = Scanner(address, time_out=LONG)
            began = time.monotonic()
            assert await asyncio.gather(*(scan_with(scanner) for _ in range(6))) == [Clean()] * 6
            assert time.monotonic() - began < 5, "an idle one is kept for 10 seconds"
            scanner.close()

    uvloop.run(main())


# ---- host names ----------------------------------------------------------------------------------

Found = tuple[int, int, int, str, tuple[str, int]]


def entry(address: TcpAddress, family: int = socket.AF_INET) -> Found:
    assert address.host is not None
    return (family, socket.SOCK_STREAM, 0, "", (address.host, address.port))


@contextlib.contextmanager
def resolver(answer: Callable[[], Awaitable[list[Found]]]) -> Iterator[None]:
    """Let every name have these addresses."""
    kind = type(asyncio.get_running_loop())
    real = kind.getaddrinfo

    async def getaddrinfo(loop: asyncio.AbstractEventLoop, host: str, port: int, **how: int) -> object:
        if (host, port) == ("clamd.example", 3310):
            return await answer()
        # uvloop looks up addresses, too.
        return await real(loop, host, port, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "getaddrinfo", getaddrinfo)
        yield


NAMED = TcpAddress("clamd.example", 3310)


def test_every_address_of_a_name_is_tried_and_names_are_looked_up_anew(run: Run) -> None:
    lookups = 0

    async def main() -> None:
        async with remote(answers(b"stream: OK\0")) as good:
            with black_hole() as hole:
                refused = TcpAddress("127.0.0.1", free_port())

                async def lookup() -> list[Found]:
                    nonlocal lookups
                    lookups += 1
                    return [entry(good, socket.AF_X25), entry(refused), entry(hole), entry(good)]

                with resolver(lookup):
                    began = time.monotonic()
                    scanner = plain_scanner(NAMED, time_out=1.5)
                    assert await scan_with(scanner) == Clean()
                    assert await scan_with(scanner) == Clean()
                    assert time.monotonic() - began < 2, "one that is dead must not take all of the time"

    run(main())
    assert lookups == 2


def test_names_that_lead_nowhere(run: Run) -> None:
    async def unknown() -> list[Found]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def empty() -> list[Found]:
        return []

    async def hangs() -> list[Found]:
        await asyncio.sleep(LONG)
        return []

    async def main() -> None:
        reasons = []
        for lookup in (unknown, empty, hangs):
            with resolver(lookup):
                reasons.append(await scan(NAMED, time_out=SHORT))
        assert reasons == [
            Unscanned("clamd at clamd.example:3310: Name or service not known"),
            Unscanned("clamd at clamd.example:3310: its name has no address"),
            Unscanned("clamd at clamd.example:3310: its name was not resolved within 0.25 seconds"),
        ]

    run(main())


def test_what_cannot_be_a_name(run: Run) -> None:
    async def main() -> None:
        address = TcpAddress("x" * 64 + ".example", 3310)
        assert await scan(address, time_out=5) == Unscanned(f"clamd at {address}: that is no host name")

    run(main())


def test_a_port_alone_is_on_this_host(run: Run) -> None:
    async def main() -> None:
        async with remote(answers(b"stream: OK\0")) as address:
            assert await scan(TcpAddress(None, address.port)) == Clean()

    run(main())


# ---- faults on our side --------------------------------------------------------------------------


@pytest.mark.parametrize("address", [UnixAddress("/x/clamd"), TcpAddress("127.0.0.1", 3310)])
def test_no_descriptor_is_left(run: Run, monkeypatch: pytest.MonkeyPatch, address: Address) -> None:
    def exhausted(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def main() -> None:
        with monkeypatch.context() as patch:
            patch.setattr("clamsmtpd.clamd.connecting.socket.socket", exhausted)
            verdict = await scan(address)
        assert verdict == Unscanned(f"clamd at {address}: Too many open files")

    run(main())


class Broken(Message):
    """A message whose storage fails."""

    def descriptor(self) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def pieces(self) -> Iterator[bytes]:
        yield b"one"
        yield b"two"
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_faults_of_the_storage_are_the_callers(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with local(tmp_path, silence) as address:
            with pytest.raises(OSError, match="No space left"):
                await scan(address, Broken())
            await asyncio.sleep(0.01)
        async with remote(silence) as tcp:
            with pytest.raises(OSError, match="Input/output error"):
                await scan(tcp, Broken())

    run(main())


async def cancelled(address: Address, message: Message | None = None) -> None:
    task = asyncio.create_task(scan(address, message))
    await asyncio.sleep(0.1)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_cancelling_leaves_nothing(run: Run, tmp_path: Path) -> None:
    large = [b"x" * 262144] * 80

    async def main() -> None:
        for number in range(3):
            # Descriptors are used again: a reader that stayed behind would be found by the next.
            folder = tmp_path / str(number)
            folder.mkdir()
            async with local(folder, silence) as address:
                await cancelled(address)
            async with remote(silence) as tcp:
                await cancelled(tcp)
            async with remote(deafness) as tcp:
                await cancelled(tcp, Message(large))
            with black_hole() as hole:
                await cancelled(hole)
            (folder / "full").mkdir()
            with full_queue(folder / "full"):
                await cancelled(UnixAddress(str(folder / "full" / "clamd")))

    run(main())
