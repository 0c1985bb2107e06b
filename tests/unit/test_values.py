"""How addresses are shown."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from clamsmtpd.values import Action, ActionFor, Address, Listen, NextHop, TcpAddress, TrustedClients, UnixAddress


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


def test_lmtp_is_shown() -> None:
    assert str(Listen(TcpAddress("::1", 24), lmtp=True)) == "lmtp:[::1]:24"
    assert str(Listen(UnixAddress("/in"), owner="me", mode=0o600)) == "/in"
    assert str(NextHop(TcpAddress("mx", 24), lmtp=True)) == "lmtp:mx:24"
    assert str(NextHop(TcpAddress(None, 25))) == "25"


def test_who_is_trusted() -> None:
    trusted = TrustedClients((ip_network("192.0.2.0/24"), ip_network("::1")))
    assert trusted.include("192.0.2.200")
    assert trusted.include("::1")
    assert not trusted.include("192.0.3.1")
    assert not trusted.include("::2")
    assert not TrustedClients().include("127.0.0.1")


def test_an_action_for_a_pattern_is_shown_as_it_is_written() -> None:
    assert str(ActionFor("PUA.*", Action.PASS)) == "PUA.* pass"
