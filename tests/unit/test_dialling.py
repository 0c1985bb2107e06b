"""The way to a next hop."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from clamsmtpd.dialling import dial, dial_by_name
from clamsmtpd.peers import end_point
from clamsmtpd.values import TcpAddress, UnixAddress
from tests.support.world import run


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(5)
        yield listening


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def test_an_ip_address_is_dialled_at_once(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    found = dial(TcpAddress("127.0.0.1", port))
    assert found is not None
    sock, end = found
    with sock, listener.accept()[0] as accepted:
        assert end == TcpAddress("127.0.0.1", port)
        assert accepted.getpeername() == sock.getsockname()
        assert sock.gettimeout() == 0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_ipv6_address_is_written_as_the_kernel_does() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listening:
        port = listening.getsockname()[1]
        found = dial(TcpAddress("0:0:0:0:0:0:0:1", port))
        assert found is not None
        sock, end = found
        with sock:
            assert end == TcpAddress("::1", port)


@pytest.mark.parametrize("host", ["0.0.0.0", "::ffff:127.0.0.1", "::ffff:0.0.0.0", "::", "::1", "127.0.0.1"])
def test_the_other_end_has_the_name_that_it_has_for_itself(host: str) -> None:
    family = socket.AF_INET6 if host in {"::", "::1"} else socket.AF_INET
    with socket.create_server(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), family=family) as listening:
        found = dial(TcpAddress(host, listening.getsockname()[1]))
        assert found is not None
        sock, end = found
        with sock, listening.accept()[0] as accepted:
            assert end == end_point(accepted.getsockname())
            assert end_point(sock.getsockname()) == end_point(accepted.getpeername())


def test_a_unix_socket_is_dialled_at_once(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        found = dial(UnixAddress(path))
        assert found is not None
        sock, end = found
        with sock:
            assert end is None
            assert sock.gettimeout() == 0


def test_a_unix_socket_that_is_not_there_is_told_at_once_and_nothing_is_left_open(tmp_path: Path) -> None:
    before = descriptors()
    with pytest.raises(OSError, match="No such file") as raised:
        dial(UnixAddress(str(tmp_path / "socket")))
    assert raised.value.errno == errno.ENOENT
    assert descriptors() == before


@pytest.mark.parametrize("host", ["localhost", "127.1", "mail.example", "1.2.3.4.5", ""])
def test_a_name_is_not_dialled_here(host: str) -> None:
    assert dial(TcpAddress(host, 25)) is None


def test_a_name_is_looked_up_and_its_addresses_tried_in_turn(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = listener.getsockname()[1]
    tried: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def lookup(*_: object, **__: object) -> list[object]:
            # Nobody listens at the first.
            hosts = ["127.0.0.9", "127.0.0.1"]
            tried.extend(hosts)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in hosts]

        monkeypatch.setattr(loop, "getaddrinfo", lookup, raising=False)
        sock, end = await dial_by_name(TcpAddress("mail.example", port))
        with sock, listener.accept()[0] as accepted:
            assert end == TcpAddress("127.0.0.1", port)
            assert accepted.getpeername() == sock.getsockname()

    asyncio.run(main())
    assert tried


def test_a_name_without_a_server_is_told(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    listener.close()

    async def main() -> None:
        before = descriptors()
        with pytest.raises(ConnectionRefusedError):
            await dial_by_name(TcpAddress("localhost", port))
        assert descriptors() == before

    run(main())


def test_dialling_a_name_can_be_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def never(sock: socket.socket, _name: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(loop, "sock_connect", never, raising=False)
        before = descriptors()
        dialling = loop.create_task(dial_by_name(TcpAddress("localhost", 25)))
        await asyncio.sleep(0.1)
        dialling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dialling
        assert descriptors() == before

    asyncio.run(main())


def test_a_name_without_an_address_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async def lookup(*_: object, **__: object) -> list[object]:
            return []

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup, raising=False)
        with pytest.raises(OSError, match="Cannot assign requested address"):
            await dial_by_name(TcpAddress("mail.example", 25))

    asyncio.run(main())
