"""How addresses are shown."""

from __future__ import annotations

import pytest

from clamsmtpd.values import Address, TcpAddress, UnixAddress


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (UnixAddress("/run/clamd.ctl"), "/run/clamd.ctl"),
        (TcpAddress("192.0.2.1", 25), "192.0.2.1:25"),
        (TcpAddress("mail.example.org", 25), "mail.example.org:25"),
        (TcpAddress("2001:db8::1", 25), "[2001:db8::1]:25"),
        (TcpAddress(None, 10025), "10025"),
    ],
)
def test_an_address_is_shown_as_it_is_written_in_the_settings(address: Address, shown: str) -> None:
    assert str(address) == shown
