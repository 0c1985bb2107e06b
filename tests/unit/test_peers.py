"""Who is at the other end."""

from __future__ import annotations

import socket

import pytest

from clamsmtpd.peers import end_point, host_of, identify, original_destination
from clamsmtpd.smtp.identity import Identity
from clamsmtpd.values import TcpAddress


@pytest.mark.parametrize(
    ("name", "end"),
    [
        (("192.0.2.1", 25), TcpAddress("192.0.2.1", 25)),
        (("::ffff:192.0.2.1", 25, 0, 0), TcpAddress("192.0.2.1", 25)),
        (("2001:db8::1", 25, 0, 0), TcpAddress("2001:db8::1", 25)),
        (("fe80::1%eth0", 25, 0, 2), TcpAddress("fe80::1", 25)),
        ("/run/socket", None),
        ("", None),
        (None, None),
    ],
)
def test_an_end_of_a_connection(name: object, end: TcpAddress | None) -> None:
    assert end_point(name) == end


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_connection_that_was_not_redirected_has_no_other_destination(family: socket.AddressFamily) -> None:
    with socket.create_server(("", 0), family=family) as listener:
        host = "127.0.0.1" if family == socket.AF_INET else "::1"
        with socket.create_connection((host, listener.getsockname()[1])) as client:
            accepted, _ = listener.accept()
            with accepted:
                assert original_destination(accepted) in (None, end_point(client.getpeername()))


def test_a_unix_socket_has_no_destination() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert original_destination(ours) is None


def test_who_a_client_is_by_its_connection() -> None:
    client, local = TcpAddress("192.0.2.1", 4711), TcpAddress("2001:db8::1", 10025)
    assert identify(client, local) == Identity(
        address="192.0.2.1", port=4711, destination="2001:db8::1", destination_port=10025
    )
    assert identify(None, None) == Identity()


def test_an_address_without_its_port() -> None:
    assert host_of(TcpAddress("192.0.2.1", 25)) == "192.0.2.1"
    assert host_of(None) == "local"
