"""How addresses are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamsmtpd.addresses import AddressError, parse_address
from clamsmtpd.values import Address, TcpAddress, UnixAddress


def parse(text: str) -> Address:
    return parse_address(text, default_port=25, default_host=None)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("/run/clamd.ctl", UnixAddress("/run/clamd.ctl")),
        ("/" + "x" * 106, UnixAddress("/" + "x" * 106)),
        ("10025", TcpAddress(None, 10025)),
        ("1", TcpAddress(None, 1)),
        ("65535", TcpAddress(None, 65535)),
        ("192.0.2.1:10025", TcpAddress("192.0.2.1", 10025)),
        ("192.0.2.1", TcpAddress("192.0.2.1", 25)),
        ("mx.example.org:26", TcpAddress("mx.example.org", 26)),
        ("mx.example.org", TcpAddress("mx.example.org", 25)),
        ("localhost", TcpAddress("localhost", 25)),
        ("mx_1.example.org.", TcpAddress("mx_1.example.org.", 25)),
        ("[2001:db8::1]:26", TcpAddress("2001:db8::1", 26)),
        ("[2001:db8::1]", TcpAddress("2001:db8::1", 25)),
        ("2001:db8::1", TcpAddress("2001:db8::1", 25)),
        ("::1", TcpAddress("::1", 25)),
    ],
)
def test_every_form(text: str, address: Address) -> None:
    assert parse(text) == address
    assert parse_address(str(address), default_port=1, default_host=None) == address


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "0",
            "65536",
            "123456",
            "host:",
            "host:0",
            "host:65536",
            "host:x",
            ":25",
            "foo bar:25",
            "-x",
            "a..b",
        ),
        *("192.0.2.256", "1.2.3", "[::1", "[::1]25", "[::1]:", "[192.0.2.1]:25", "::g", "1:2:3", "a:b:c", "host:25:26"),
        *("/" + "x" * 107, "höst:25", "²⁵", "x" * 64, "relative/path"),
    ],
)
def test_what_is_no_address_says_what_would_be(text: str) -> None:
    with pytest.raises(AddressError) as error:
        parse(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) > 20


def test_a_port_alone_is_at_the_default_host() -> None:
    assert parse_address("3310", default_port=1, default_host="127.0.0.1") == TcpAddress("127.0.0.1", 3310)


@given(st.text(max_size=40))
def test_nothing_else_is_raised(text: str) -> None:
    try:
        address = parse(text)
    except AddressError:
        return
    assert isinstance(address, TcpAddress | UnixAddress)
