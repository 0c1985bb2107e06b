"""Sockets that were passed: which are taken, and which Listen line each is for."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from clamsmtpd import activation, listeners
from clamsmtpd.activation import bound_to, passed_sockets
from clamsmtpd.values import Listen, StartError, TcpAddress, UnixAddress
from tests.support.process import free_port


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def pass_on(monkeypatch: pytest.MonkeyPatch, stack: ExitStack, *sockets: socket.socket) -> dict[str, str]:
    """Put copies of sockets where they would be passed, and return the variables."""
    first = 300
    monkeypatch.setattr(activation, "_FIRST", first)
    for number, sock in enumerate(sockets):
        os.dup2(sock.fileno(), first + number)
    stack.callback(os.closerange, first, first + len(sockets))
    return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(sockets)), "LISTEN_FDNAMES": "x:y", "PATH": "/bin"}


def taken(environment: dict[str, str], stack: ExitStack) -> list[socket.socket]:
    found = passed_sockets(environment)
    for sock in found:
        # Whoever passes them on closes them too.
        stack.callback(sock.detach)
    return found


def test_they_are_taken_in_their_order_and_the_variables_with_them(
    monkeypatch: pytest.MonkeyPatch, stack: ExitStack, tmp_path: Path
) -> None:
    tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    local = stack.enter_context(socket.socket(socket.AF_UNIX))
    local.bind(str(tmp_path / "socket"))
    local.listen()
    environment = pass_on(monkeypatch, stack, tcp, local)
    found = taken(environment, stack)
    assert [bound_to(sock) for sock in found] == [
        TcpAddress("127.0.0.1", tcp.getsockname()[1]),
        UnixAddress(str(tmp_path / "socket")),
    ]
    assert not any(sock.get_inheritable() for sock in found)
    assert environment == {"PATH": "/bin"}


@pytest.mark.parametrize(
    "wrong", [{"LISTEN_PID": "1"}, {"LISTEN_PID": ""}, {"LISTEN_FDS": ""}, {"LISTEN_FDS": "-1"}, {"LISTEN_FDS": "0"}]
)
def test_variables_that_are_not_for_us_pass_nothing(
    monkeypatch: pytest.MonkeyPatch, stack: ExitStack, wrong: dict[str, str]
) -> None:
    tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    environment = {**pass_on(monkeypatch, stack, tcp), **wrong}
    assert passed_sockets(environment) == []
    assert environment == {"PATH": "/bin"}


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_socket_that_does_not_listen_is_refused(
    monkeypatch: pytest.MonkeyPatch, stack: ExitStack, kind: socket.SocketKind
) -> None:
    idle = stack.enter_context(socket.socket(socket.AF_INET, kind))
    environment = pass_on(monkeypatch, stack, stack.enter_context(server()), idle)
    with pytest.raises(StartError, match="descriptor 301 is no stream socket that listens; write ListenStream="):
        passed_sockets(environment)


def test_what_is_no_socket_is_refused(monkeypatch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    environment = pass_on(monkeypatch, stack)
    environment["LISTEN_FDS"] = "1"
    with pytest.raises(StartError, match="descriptor 300 is no socket: Bad file descriptor"):
        passed_sockets(environment)


def test_an_abstract_socket_is_shown_with_an_at_sign() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("\0clamsmtpd-test-activation")
        assert str(bound_to(sock)) == "@clamsmtpd-test-activation"


# Which is for which Listen line


def server(host: str = "127.0.0.1") -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, 0), family=family)


def port_of(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


def test_one_that_no_line_names_speaks_plain_smtp() -> None:
    with server() as sock:
        (found,) = listeners.listen([], [sock])
        assert (found.socket, found.listen, found.passed) == (sock, Listen(bound_to(sock)), True)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "::"])
def test_the_line_with_its_address_is_the_ones_for_it(host: str) -> None:
    with server(host) as sock:
        place = Listen(TcpAddress(host, port_of(sock)), lmtp=True)
        (found,) = listeners.listen([place], [sock])
        assert (found.socket, found.listen, found.passed) == (sock, place, True)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_line_with_a_port_alone_is_for_all_addresses(host: str) -> None:
    with server(host) as sock:
        place = Listen(TcpAddress(None, port_of(sock)), lmtp=True)
        (found,) = listeners.listen([place], [sock])
        assert (found.socket, found.listen) == (sock, place)
        assert bound_to(sock) == place.address


def test_a_line_with_a_name_is_for_its_addresses() -> None:
    with server() as sock:
        place = Listen(TcpAddress("localhost", port_of(sock)), lmtp=True)
        (found,) = listeners.listen([place], [sock])
        assert (found.socket, found.listen) == (sock, place)


def test_another_port_or_address_is_bound_as_ever(tmp_path: Path) -> None:
    with server() as sock:
        places = [
            Listen(TcpAddress("127.0.0.2", port_of(sock))),
            Listen(TcpAddress("127.0.0.1", free_port())),
            Listen(UnixAddress(str(tmp_path / "socket"))),
        ]
        found = listeners.listen(places, [sock])
        assert [listener.listen for listener in found[:3]] == places
        assert [listener.passed for listener in found] == [False, False, False, True]
        for listener in found:
            listener.socket.close()


def test_a_unix_socket_that_was_passed_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        before = path.stat()
        (found,) = listeners.listen([Listen(UnixAddress(str(path)), mode=0o600)], [sock])
        found.remove()
        assert (path.stat().st_mode, path.stat().st_ino) == (before.st_mode, before.st_ino)
        # One of ours is.
        other = tmp_path / "other"
        (ours,) = listeners.listen([Listen(UnixAddress(str(other)))])
        with closing(ours.socket):
            ours.remove()
        assert not other.exists()


def test_a_start_that_fails_leaves_no_socket_open_and_none_removed(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    passed, left = socket.socket(socket.AF_UNIX), server()
    passed.bind(str(path))
    passed.listen()
    places = [Listen(UnixAddress(str(path))), Listen(UnixAddress(str(tmp_path / "missing" / "socket")))]
    with pytest.raises(StartError):
        listeners.listen(places, [left, passed])
    assert (passed.fileno(), left.fileno()) == (-1, -1)
    assert path.exists()


def test_a_name_that_does_not_resolve_is_told_as_ever() -> None:
    with server() as sock, pytest.raises(StartError, match=r"^Listen: name\.invalid"):
        listeners.listen([Listen(TcpAddress("name.invalid", port_of(sock)))], [sock])
