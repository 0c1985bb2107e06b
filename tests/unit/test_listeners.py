from __future__ import annotations

import errno
import os
import re
import socket
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from clamsmtpd import listeners
from clamsmtpd.values import Address, Listen, StartError, TcpAddress, UnixAddress
from tests.support.process import free_port

MODULE = "clamsmtpd.listeners"


def listen(
    address: Address, owner: str | None = None, group: str | None = None, mode: int | None = None
) -> list[socket.socket]:
    """Listen on one address; return its sockets."""
    return [listener.socket for listener in listeners.listen([Listen(address, owner=owner, group=group, mode=mode)])]


def _connect(host: str, port: int) -> None:
    socket.create_connection((host, port), timeout=5).close()


def test_an_ipv4_address() -> None:
    port = free_port()
    (sock,) = listen(TcpAddress("127.0.0.1", port))
    with closing(sock):
        assert sock.getsockname() == ("127.0.0.1", port)
        assert not sock.get_inheritable()
        _connect("127.0.0.1", port)


def test_an_ipv6_address_is_ipv6_only() -> None:
    port = free_port("::1")
    (sock,) = listen(TcpAddress("::1", port))
    with closing(sock):
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
        _connect("::1", port)


def test_a_port_alone_is_all_addresses_of_both_families() -> None:
    port = free_port()
    (sock,) = listen(TcpAddress(None, port))
    with closing(sock):
        _connect("127.0.0.1", port)
        _connect("::1", port)


def test_without_ipv6_a_port_alone_is_all_ipv4_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{MODULE}.socket.has_dualstack_ipv6", lambda: False)
    port = free_port()
    (sock,) = listen(TcpAddress(None, port))
    with closing(sock):
        assert sock.getsockname() == ("0.0.0.0", port)


def _resolve_to(*hosts: str) -> Callable[..., object]:
    def getaddrinfo(_host: str, port: int, **_options: object) -> list[object]:
        return [
            (socket.AF_INET6, 1, 6, "", (host, port, 0, 0)) if ":" in host else (socket.AF_INET, 1, 6, "", (host, port))
            for host in hosts
        ]

    return getaddrinfo


def test_a_host_name_is_each_of_its_addresses_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{MODULE}.socket.getaddrinfo", _resolve_to("::1", "127.0.0.1", "127.0.0.1"))
    port = free_port()
    sockets = listen(TcpAddress("localhost", port))
    assert [sock.getsockname()[0] for sock in sockets] == ["::1", "127.0.0.1"]
    for sock in sockets:
        sock.close()


def test_an_address_of_a_name_that_is_not_here_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{MODULE}.socket.getaddrinfo", _resolve_to("2001:db8::1", "127.0.0.1"))
    (sock,) = listen(TcpAddress("mail.example", free_port()))
    with closing(sock):
        assert sock.getsockname()[0] == "127.0.0.1"


def test_a_name_with_no_address_of_this_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{MODULE}.socket.getaddrinfo", _resolve_to("2001:db8::1", "192.0.2.1"))
    with pytest.raises(StartError, match=r"give an address of this host$"):
        listen(TcpAddress("mail.example", free_port()))


def test_a_name_that_does_not_resolve_is_told() -> None:
    with pytest.raises(StartError, match=r"^Listen: name\.invalid:10025: .+; give an address of this host$"):
        listen(TcpAddress("name.invalid", 10025))


def test_an_address_in_use_leaves_no_socket_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        monkeypatch.setattr(f"{MODULE}.socket.getaddrinfo", _resolve_to("::1", "127.0.0.1"))
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(StartError) as caught:
            listen(TcpAddress("localhost", port))
        assert str(caught.value) == (
            f"Listen: cannot listen on localhost:{port}: Address already in use; "
            "is another clamsmtpd running, or is it in another Listen line?"
        )
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_port_that_only_root_may_take_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_arguments: object, **_options: object) -> socket.socket:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(f"{MODULE}.socket.create_server", forbidden)
    with pytest.raises(StartError, match=r"cannot listen on 127\.0\.0\.1:25: Permission denied; only root can do that"):
        listen(TcpAddress("127.0.0.1", 25))


# Unix sockets


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


def test_any_user_may_connect_to_a_unix_socket(path: Path) -> None:
    before = os.umask(0o077)
    try:
        (sock,) = listen(UnixAddress(str(path)))
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    with closing(sock), socket.socket(socket.AF_UNIX) as client:
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        client.connect(str(path))


def test_the_socket_of_a_dead_daemon_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    (sock,) = listen(UnixAddress(str(path)))
    sock.close()


@pytest.mark.parametrize("backlog", [0, 5])
def test_the_socket_of_a_living_daemon_is_not(path: Path, backlog: int) -> None:
    with socket.socket(socket.AF_UNIX) as living, socket.socket(socket.AF_UNIX) as waiting:
        living.bind(str(path))
        living.listen(backlog)
        # With a queue of one, it is full now.
        waiting.connect(str(path))
        with pytest.raises(StartError, match=re.escape(f"{path}: Address already in use; is another")):
            listen(UnixAddress(str(path)))
        assert path.exists()


def test_a_plain_file_is_never_replaced(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(StartError, match="Address already in use"):
        listen(UnixAddress(str(path)))
    assert path.read_text() == "precious"


def test_a_folder_that_does_not_exist_is_told(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="No such file or directory; give a path in a directory that exists"):
        listen(UnixAddress(str(tmp_path / "missing" / "socket")))


def test_the_queue_of_connections_is_long() -> None:
    assert listeners.BACKLOG >= 1024


# Several places, owners and modes


def test_several_places_each_with_its_protocol(path: Path) -> None:
    port = free_port()
    places = [Listen(TcpAddress("127.0.0.1", port)), Listen(UnixAddress(str(path)), lmtp=True)]
    found = listeners.listen(places)
    assert [listener.listen for listener in found] == places
    assert found[0].socket.family == socket.AF_INET
    assert found[1].socket.family == socket.AF_UNIX
    for listener in found:
        listener.socket.close()


def test_all_addresses_of_both_families_on_two_lines() -> None:
    port = free_port()
    found = listeners.listen([Listen(TcpAddress("0.0.0.0", port)), Listen(TcpAddress("::", port))])
    _connect("127.0.0.1", port)
    _connect("::1", port)
    for listener in found:
        listener.socket.close()


def test_one_place_that_fails_takes_the_others_along(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    port = free_port()
    with pytest.raises(StartError, match="another Listen line"):
        listeners.listen(
            [Listen(UnixAddress(str(path))), Listen(TcpAddress(None, port)), Listen(TcpAddress("127.0.0.1", port))]
        )
    assert len(os.listdir("/proc/self/fd")) == before
    assert not path.exists()


def test_the_mode_of_a_socket(path: Path) -> None:
    (sock,) = listen(UnixAddress(str(path)), mode=0o640)
    with closing(sock):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.root
def test_the_owner_of_a_socket(path: Path) -> None:
    for owner, group, numbers in (("nobody", None, (65534, 0)), ("1", "2", (1, 2)), ("daemon", "nogroup", (1, 65534))):
        (sock,) = listen(UnixAddress(str(path)), owner=owner, group=group, mode=0o600)
        with closing(sock):
            status = path.stat()
            assert (status.st_uid, status.st_gid) == numbers
            assert stat.S_IMODE(status.st_mode) == 0o600


def test_an_owner_that_does_not_exist(path: Path) -> None:
    # The highest number means "as it is" to chown(2); whoever writes it wants something else.
    for name in ("nobody-here", "4294967295", "9" * 5000, "²"):
        with pytest.raises(StartError, match=f"there is no user {name}; give one that exists"):
            listen(UnixAddress(str(path)), owner=name)
        with pytest.raises(StartError, match=f"there is no group {name}; give one that exists"):
            listen(UnixAddress(str(path)), group=name)
        assert not path.exists()


def test_a_socket_that_cannot_be_given_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_arguments: object, **_options: object) -> None:
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(f"{MODULE}.os.chown", forbidden)
    with pytest.raises(StartError, match="Operation not permitted; only root can give a socket away"):
        listen(UnixAddress(str(path)), owner="0")
    assert not path.exists()


@pytest.mark.root
def test_what_a_link_in_place_of_the_socket_leads_to_is_not_given_away(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = path.with_name("target")
    target.write_text("precious")
    chown = os.chown

    def swap(name: str, user: int, group: int, **options: bool) -> None:
        path.unlink()
        path.symlink_to(target)
        chown(name, user, group, **options)

    monkeypatch.setattr(f"{MODULE}.os.chown", swap)
    (sock,) = listen(UnixAddress(str(path)), owner="1", group="1", mode=0o600)
    sock.close()
    assert target.stat().st_uid == 0


@pytest.mark.parametrize("mode", [None, 0o600, 0o666, 0o777])
def test_the_mode_is_there_with_the_name_and_not_set_by_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, mode: int | None
) -> None:
    seen: list[int] = []
    umask = os.umask

    def note(mask: int) -> int:
        # After bind(2), before anything else.
        if path.exists():
            seen.append(stat.S_IMODE(path.stat().st_mode))
        return umask(mask)

    monkeypatch.setattr(f"{MODULE}.os.umask", note)
    monkeypatch.setattr(f"{MODULE}.os.chmod", lambda *_: pytest.fail("a link would be followed"))
    (sock,) = listen(UnixAddress(str(path)), mode=mode)
    sock.close()
    assert seen == [0o666 if mode is None else mode]


@pytest.mark.parametrize("kind", ["link to a living socket", "link to nowhere", "directory", "fifo"])
def test_what_is_no_socket_is_left_as_it_is(path: Path, kind: str) -> None:
    with socket.socket(socket.AF_UNIX) as living:
        other = path.with_name("other")
        living.bind(str(other))
        living.listen()
        if kind == "directory":
            path.mkdir()
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.symlink_to(other if "living" in kind else path.with_name("nowhere"))
        before = path.lstat()
        with pytest.raises(StartError, match="Address already in use"):
            listen(UnixAddress(str(path)))
        assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)
        assert other.is_socket()
