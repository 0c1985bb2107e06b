"""HTTP for whoever looks at the daemon from outside: dialogues with the server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from clamsmtpd.account import Account, Tag
from clamsmtpd.admin import http
from clamsmtpd.admin.http import AdminServer
from clamsmtpd.admin.pages import Page, Pages
from clamsmtpd.admin.view import View
from clamsmtpd.commons import Commons
from clamsmtpd.config import Settings, load
from clamsmtpd.ledger import Ledger
from clamsmtpd.listeners import Listener, listen
from clamsmtpd.values import Listen, TcpAddress, UnixAddress
from tests.support.process import free_port

Talk = Callable[[bytes], Awaitable[bytes]]


def settings(folder: Path) -> Settings:
    path = folder / "conf"
    path.write_text("OutAddress: 127.0.0.1:10026\n")
    return load(str(path)).settings


class Stage:
    """A server, and what is asked of it."""

    def __init__(self, folder: Path, *, private: bool, trouble: str = "") -> None:
        self.looks = 0
        self._trouble = trouble
        place = Listen(UnixAddress(str(folder / "admin"))) if private else Listen(TcpAddress("127.0.0.1", free_port()))
        self.listeners = listen((place,), setting="Admin")
        share = Commons(1, 10, seen=True).share(0)
        self.board = share.board
        own = settings(folder)
        self.family = self.listeners[0].socket.family
        self.view = View(share, lambda: own)
        self.pages = Pages(self.view, self._examine)

    async def _examine(self) -> list[tuple[str, str]]:
        self.looks += 1
        await asyncio.sleep(0.01)
        return [("clamd at /clamd", self._trouble), ("next hop 127.0.0.1:25", "")]

    def run(self, story: Callable[[Talk], Awaitable[None]]) -> None:
        async def main() -> None:
            server = AdminServer(self.pages, self.listeners)
            server.start()
            await asyncio.sleep(0.05)
            try:
                await story(self.talk)
            finally:
                server.close()

        asyncio.run(main())

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        sock = self.listeners[0].socket
        if sock.family == socket.AF_UNIX:
            return await asyncio.open_unix_connection(sock.getsockname())
        return await asyncio.open_connection(*sock.getsockname()[:2])

    async def talk(self, request: bytes) -> bytes:
        reader, writer = await self.connect()
        writer.write(request)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        return answer


def get(path: str, *fields: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *fields, "", ""]).encode()


def status(answer: bytes) -> int:
    return int(answer.split()[1])


def body(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize(
    ("path", "code", "begin"),
    [
        ("/healthz", 200, b"ok\n"),
        ("/healthz?x=1", 200, b"ok\n"),
        ("/readyz", 200, b'{"ready": true'),
        ("/status", 200, b'{"version"'),
        ("/metrics", 200, b"# HELP clamsmtpd_messages_total "),
        ("/messages", 200, b'{"messages": []}'),
        ("/messages/100000", 404, b'{"messages": []}'),
        ("/", 200, b"/metrics: "),
        ("/nothing", 404, b"There are: /metrics"),
        ("/%2e%2e/etc/passwd", 404, b"There are: "),
    ],
)
def test_each_path_has_its_answer(tmp_path: Path, path: str, code: int, begin: bytes) -> None:
    async def story(talk: Talk) -> None:
        answer = await talk(get(path))
        assert status(answer) == code
        assert body(answer).startswith(begin)
        assert b"\r\nCache-Control: no-store\r\n" in answer
        head = await talk(get(path, method="HEAD"))
        assert status(head) == code
        assert body(head) == b""

    Stage(tmp_path, private=True).run(story)


def test_a_message_is_found_by_an_id_that_a_path_cannot_hold_as_it_is(tmp_path: Path) -> None:
    stage = Stage(tmp_path, private=True)
    account = Account(Tag("100ABC", "100ABC-1"))
    account.end(1.0, b"250 queued as a/b%2b\r\n", taken=1)
    Ledger(board=stage.board).close(account)

    async def story(talk: Talk) -> None:
        assert status(await talk(get("/messages/a%2Fb%252b"))) == 200
        assert status(await talk(get("/messages/a%2Fb%252c"))) == 404
        assert status(await talk(get("/messages/%FF"))) == 404

    stage.run(story)


def test_a_request_may_come_octet_by_octet_and_two_in_one_piece(tmp_path: Path) -> None:
    stage = Stage(tmp_path, private=True)

    async def story(talk: Talk) -> None:
        reader, writer = await stage.connect()
        for octet in get("/healthz"):
            writer.write(bytes([octet]))
            await writer.drain()
        assert b"ok\n" in await reader.readuntil(b"ok\n")
        writer.write(get("/healthz") + get("/healthz", "Connection: close"))
        assert (await reader.read()).count(b"200") == 2
        writer.close()
        assert status(await talk(get("/healthz") + b"trailing octets")) == 200

    stage.run(story)


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"\x16\x03\x01\x00\xa5\x01\r\n\r\n", 400),
        (b"EHLO client\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20_000, 431),
        (get("/status", method="POST"), 405),
        (get("/status", method="DELETE"), 405),
        (get("/status", "Content-Length: 3", method="POST") + b"x=1", 405),
        (get("/status", "Content-Length: 20000", method="POST") + bytes(20_000), 413),
        (get("/status", "Content-Length: 20000") + bytes(20_000), 413),
    ],
)
def test_what_is_no_request_for_us_is_told_so(tmp_path: Path, request_: bytes, code: int) -> None:
    async def story(talk: Talk) -> None:
        assert status(await talk(request_)) == code
        assert status(await talk(get("/healthz"))) == 200

    Stage(tmp_path, private=True).run(story)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9310", "127.0.0.1", "127.0.0.1:1", "[::1]:9310", "[::1]"])
def test_an_address_may_be_asked_for(tmp_path: Path, host: str) -> None:
    async def story(talk: Talk) -> None:
        assert status(await talk(f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())) == 200

    Stage(tmp_path, private=False).run(story)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9310", "localhost.evil.example", "127.0.0.1.evil.example"]
)
def test_a_page_of_the_web_that_has_its_name_lead_here_reads_nothing(tmp_path: Path, host: str) -> None:
    async def story(talk: Talk) -> None:
        answer = await talk(f"GET /status HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert status(answer) == 421
        assert b"version" not in answer

    Stage(tmp_path, private=False).run(story)


def test_messages_are_for_a_unix_socket_alone(tmp_path: Path) -> None:
    async def story(talk: Talk) -> None:
        for path in ("/messages", "/messages/100000-1"):
            answer = await talk(get(path))
            assert status(answer) == 403
            assert b"unix socket" in answer

    Stage(tmp_path, private=False).run(story)


def test_what_is_wrong_is_told_and_one_look_serves_many(tmp_path: Path) -> None:
    stage = Stage(tmp_path, private=True, trouble="it is blind")

    async def story(talk: Talk) -> None:
        answers = await asyncio.gather(*(talk(get("/readyz")) for _ in range(5)))
        assert {status(answer) for answer in answers} == {503}
        told = json.loads(body(answers[0]))
        assert told["ready"] is False
        assert told["parts"][0] == {"part": "clamd at /clamd", "trouble": "it is blind"}
        assert told["advice"].startswith("clamsmtpctl doctor ")
        assert stage.looks == 1

    stage.run(story)


def test_who_cannot_look_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def examine() -> list[tuple[str, str]]:
        raise OSError(28, "No space left on device")

    stage = Stage(tmp_path, private=True)
    stage.pages = Pages(stage.view, examine)

    async def story(talk: Talk) -> None:
        answer = await talk(get("/readyz"))
        assert status(answer) == 503
        assert json.loads(body(answer))["parts"] == [
            {"part": "clamsmtpd", "trouble": "cannot look: No space left on device"}
        ]

    stage.run(story)


@pytest.mark.parametrize("private", [True, False])
def test_once_closed_it_keeps_nobody_waiting(tmp_path: Path, *, private: bool) -> None:
    stage = Stage(tmp_path, private=private)

    async def story() -> None:
        place = stage.listeners[0].socket.getsockname()
        server = AdminServer(stage.pages, stage.listeners)
        server.start()
        reader, writer = await stage.connect()
        await asyncio.sleep(0.05)
        server.close()
        assert await reader.read() == b""
        writer.close()
        with pytest.raises(ConnectionRefusedError), socket.socket(stage.family) as client:
            client.connect(place)

    asyncio.run(story())


def test_a_client_who_has_just_come_when_it_is_closed_is_let_go(tmp_path: Path) -> None:
    stage = Stage(tmp_path, private=True)

    async def story() -> None:
        server = AdminServer(stage.pages, stage.listeners)
        server.start()
        with socket.socket(stage.family) as client:
            client.connect(stage.listeners[0].socket.getsockname())
            # In the turn in which it is accepted, before the one in which it would be served.
            server._accept(stage.listeners[0].socket)
            server.close()
            await asyncio.sleep(0.05)
            client.settimeout(1)
            assert client.recv(1) == b""

    asyncio.run(story())


def test_a_worker_that_ends_leaves_the_socket_to_the_others(tmp_path: Path) -> None:
    stage = Stage(tmp_path, private=True)
    (listener,) = stage.listeners

    async def story() -> None:
        one, other = (
            AdminServer(stage.pages, [Listener(sock, listener.listen)])
            for sock in (listener.socket.dup(), listener.socket)
        )
        one.start()
        other.start()
        one.close()
        await asyncio.sleep(0.05)
        for _ in range(4):
            assert status(await stage.talk(get("/healthz"))) == 200
        other.close()

    asyncio.run(story())


def test_without_a_descriptor_it_waits_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "ACCEPT_PAUSE", 0.05)
    stage = Stage(tmp_path, private=True)
    tries = 0
    accept = AdminServer._accept

    def count(server: AdminServer, listener: socket.socket) -> None:
        nonlocal tries
        tries += 1
        accept(server, listener)

    monkeypatch.setattr(AdminServer, "_accept", count)

    async def story(talk: Talk) -> None:
        with socket.socket(stage.family) as client:
            client.setblocking(False)
            with no_more_descriptors():
                client.connect(stage.listeners[0].socket.getsockname())
                await asyncio.sleep(0.3)
            assert 2 <= tries <= 10
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(client, get("/healthz"))
            assert status(await loop.sock_recv(client, 4096)) == 200

    stage.run(story)


@contextlib.contextmanager
def no_more_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_client_that_says_nothing_is_let_go_and_there_are_not_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "REQUEST_LIMIT", 2.0)
    stage = Stage(tmp_path, private=True)

    async def story(talk: Talk) -> None:
        silent = [await stage.connect() for _ in range(http.CLIENTS_MAX)]
        await asyncio.sleep(0.1)
        # The first of them has to go for one that asks.
        assert status(await talk(get("/healthz"))) == 200
        reader, writer = silent.pop(0)
        assert reader.at_eof() or await asyncio.wait_for(reader.read(), 0.1) == b""
        writer.close()
        assert not any(reader.at_eof() for reader, _ in silent)
        for reader, writer in silent:
            assert await reader.read() == b""
            writer.close()

    stage.run(story)


def test_nobody_is_sent_away_whose_answer_is_on_its_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path, private=True)
    go_on = asyncio.Event()
    answer = stage.pages.answer

    async def wait(path: str, **rest: object) -> Page:
        await go_on.wait()
        return await answer(path, private=bool(rest["private"]))

    monkeypatch.setattr(stage.pages, "answer", wait)

    async def story(talk: Talk) -> None:
        asking = [asyncio.ensure_future(talk(get("/healthz"))) for _ in range(http.CLIENTS_MAX)]
        await asyncio.sleep(0.1)
        reader, writer = await stage.connect()
        assert await reader.read() == b""
        writer.close()
        go_on.set()
        assert [status(each) for each in await asyncio.gather(*asking)] == [200] * http.CLIENTS_MAX

    stage.run(story)


def test_a_fault_of_ours_is_no_matter_to_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path, private=True)
    answer = stage.pages.answer

    async def fail(path: str, **rest: object) -> Page:
        if path == "/status":
            raise ZeroDivisionError
        return await answer(path, private=bool(rest["private"]))

    monkeypatch.setattr(stage.pages, "answer", fail)

    async def story(talk: Talk) -> None:
        assert await talk(get("/status")) == b""
        assert status(await talk(get("/healthz"))) == 200

    stage.run(story)
