"""Who the client is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamsmtpd.smtp.identity import XCLIENT_ATTRIBUTES, Identity, IdentityError, attribute_lines
from clamsmtpd.smtp.syntax import decode_xtext

NOBODY = Identity()


def test_all_attributes() -> None:
    identity = NOBODY.taking(
        b"NAME=spike.example.org ADDR=168.100.189.2 PORT=4711 PROTO=ESMTP HELO=spike LOGIN=joe+2Bx+40example.org "
        b"DESTADDR=IPV6:2001:DB8::25 DESTPORT=25"
    )
    assert identity == Identity(
        address="168.100.189.2",
        port=4711,
        name=b"spike.example.org",
        helo=b"spike",
        protocol=b"ESMTP",
        login=b"joe+x@example.org",
        destination="2001:db8::25",
        destination_port=25,
        learnt=True,
    )


def test_what_is_not_named_stays_and_what_is_unavailable_goes() -> None:
    first = NOBODY.taking(b"ADDR=192.0.2.1 NAME=a HELO=b")
    assert first.taking(b"name=[UNAVAILABLE] helo=[tempunavail] PORT=") == Identity(address="192.0.2.1", learnt=True)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (b"IPV6:2001:db8::1", "2001:db8::1"),
        (b"ipv6:2001:DB8:0::1", "2001:db8::1"),
        (b"2001:db8::1", "2001:db8::1"),
        (b"IPV6:::ffff:192.0.2.1", "192.0.2.1"),
        (b"192.0.2.1", "192.0.2.1"),
    ],
)
def test_addresses(text: bytes, address: str) -> None:
    assert NOBODY.taking(b"ADDR=" + text).address == address


@pytest.mark.parametrize(
    ("argument", "why"),
    [
        (b"", "an attribute is missing"),
        (b"ADDR", "ADDR is no attribute"),
        (b"SHOE=9", "SHOE is no attribute"),
        (b"ADDR=192.0.2", "192.0.2 is no IP address"),
        (b"ADDR=IPV6:192.0.2.1", "IPV6:192.0.2.1 is no IPv6 address"),
        (b"ADDR=IPV6:fe80::1%eth0", "IPV6:fe80::1%eth0 has a zone, which means nothing to others"),
        (b"PORT=65536", "65536 is no port"),
        (b"PORT=-1", "-1 is no port"),
        (b"PORT=" + b"1" * 5000, "1" * 5000 + " is no port"),
        (b"PROTO=HTTP", "HTTP is no protocol; there are SMTP and ESMTP"),
        (b"HELO=" + b"x" * 300, "x" * 20 + "... is too long"),
        (b"HELO=a+0Ab", "a\nb holds control characters"),
        (b"NAME=a+1B[2J", "a\x1b[2J holds control characters"),
        (b"NAME=+FF", "\xff holds control characters"),
        (b"NAME=a+", "the value of NAME is no xtext"),
        (b"NAME=a+2", "the value of NAME is no xtext"),
        (b"ADDR=192.0.2.1 NAME=\xff", "the value of NAME is no xtext"),
    ],
)
def test_what_is_refused(argument: bytes, why: str) -> None:
    with pytest.raises(IdentityError) as error:
        NOBODY.taking(argument)
    assert str(error.value) == why


def test_names_in_utf8() -> None:
    assert NOBODY.taking(b"HELO=b+C3+BCcher").helo == "b\u00fccher".encode()


def test_xclient_sends_what_is_offered_and_says_what_is_unknown() -> None:
    identity = Identity(address="2001:db8::1", port=1, destination="192.0.2.25", destination_port=25)
    assert identity.xclient(frozenset(XCLIENT_ATTRIBUTES), helo=b"a b", protocol=b"SMTP") == [
        (
            b"XCLIENT NAME=[UNAVAILABLE] ADDR=IPV6:2001:db8::1 PORT=1 PROTO=SMTP HELO=a+20b LOGIN=[UNAVAILABLE]"
            b" DESTADDR=192.0.2.25 DESTPORT=25\r\n"
        )
    ]
    assert identity.xclient(frozenset({b"NEW"}), helo=b"a", protocol=b"SMTP") == []
    assert NOBODY.xclient({b"ADDR", b"PORT", b"HELO"}, helo=b"", protocol=b"SMTP") == [
        b"XCLIENT ADDR=[UNAVAILABLE] PORT=[UNAVAILABLE] HELO=[UNAVAILABLE]\r\n"
    ]


def test_what_was_learnt_beats_what_the_client_says() -> None:
    identity = NOBODY.taking(b"HELO=outside PROTO=SMTP LOGIN=joe NAME=n")
    assert identity.xclient(set(XCLIENT_ATTRIBUTES) - {b"PORT"}, helo=b"proxy", protocol=b"ESMTP") == [
        (
            b"XCLIENT NAME=n ADDR=[UNAVAILABLE] PROTO=SMTP HELO=outside LOGIN=joe"
            b" DESTADDR=[UNAVAILABLE] DESTPORT=[UNAVAILABLE]\r\n"
        )
    ]


def test_xforward_knows_fewer_attributes() -> None:
    identity = NOBODY.taking(b"ADDR=192.0.2.1 LOGIN=joe NAME=n PORT=9")
    assert identity.xforward({*XCLIENT_ATTRIBUTES, b"IDENT"}, helo=b"h", protocol=b"ESMTP") == [
        b"XFORWARD NAME=n ADDR=192.0.2.1 PORT=9 PROTO=ESMTP HELO=h\r\n"
    ]
    assert identity.xforward((), helo=b"h", protocol=b"ESMTP") == []


def test_no_line_is_longer_than_smtp_allows() -> None:
    long = b"+41" * 160
    lines = attribute_lines(b"XCLIENT", [(b"NAME", b"n"), (b"HELO", long), (b"LOGIN", b"x" * 600), (b"ADDR", b"a")])
    assert lines == [
        b"XCLIENT NAME=n HELO=" + long + b"\r\n",
        b"XCLIENT LOGIN=[UNAVAILABLE] ADDR=a\r\n",
    ]
    assert max(map(len, lines)) <= 512


@given(st.lists(st.tuples(st.sampled_from(XCLIENT_ATTRIBUTES), st.binary(min_size=1, max_size=600))))
def test_every_list_of_attributes_fits(attributes: list[tuple[bytes, bytes]]) -> None:
    values = [(name, value.hex().encode()) for name, value in attributes]
    lines = attribute_lines(b"XCLIENT", values)
    assert all(len(line) <= 512 for line in lines)
    words = [word for line in lines for word in line.split()[1:]]
    assert [word.partition(b"=")[0] for word in words] == [name for name, _ in values]


@given(st.binary(max_size=300))
def test_whatever_is_sent_is_taken_or_refused(argument: bytes) -> None:
    try:
        identity = NOBODY.taking(argument)
    except IdentityError:
        return
    (line,) = identity.xclient({b"NAME", b"ADDR", b"PORT"}, helo=b"", protocol=b"SMTP")
    assert b"\r" not in line[:-2]


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=80))
def test_what_is_encoded_comes_back(name: str) -> None:
    identity = Identity(helo=name.encode())
    (line,) = identity.xclient({b"HELO"}, helo=b"", protocol=b"SMTP")
    assert decode_xtext(line[len(b"XCLIENT HELO=") : -2]) == name.encode()
