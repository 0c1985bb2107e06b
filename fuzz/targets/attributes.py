"""XFORWARD and XCLIENT: attributes are understood as a plain reading has it, and what we pass on says the same."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import ip_address

from clamsmtpd.smtp.identity import XCLIENT_ATTRIBUTES, Identity, IdentityError
from clamsmtpd.smtp.syntax import decode_xtext, parse_xforward, xtext

__all__ = ["WORDS", "one_input"]

WORDS = (
    *(name + b"=" for name in XCLIENT_ATTRIBUTES),
    *(
        b"[UNAVAILABLE]",
        b"[TEMPUNAVAIL]",
        b"IPV6:",
        b"IPv6:2001:db8::1",
        b"192.0.2.1",
        b"::ffff:192.0.2.1",
        b"fe80::1%1",
    ),
    *(b"ESMTP", b"SMTP", b"65535", b"+2B", b"+00", b"+0D+0A", b"+C3+A4", b"+20", b" ", b"\t", b"=", b"x" * 60),
)

#: Octets of an encoded value for which every line has room.
_VALUE_MAX = 490

_HELO = b"client.example"


def one_input(data: bytes) -> None:
    """Read the octets as the argument of both commands, and as a value."""
    _check_xforward(data)
    _check_xclient(data)
    assert decode_xtext(xtext(data)) == data
    assert re.fullmatch(rb"[!-*,-<>-~]*(?:\+[0-9A-F]{2}[!-*,-<>-~]*)*", xtext(data))


def _check_xforward(argument: bytes) -> None:
    expected: dict[bytes, bytes | None] = {}
    for word in argument.split():
        name, equals, value = word.partition(b"=")
        if not equals:
            continue
        decoded = _decode(value)
        if name.upper() == b"ADDR" and decoded.upper().startswith(b"IPV6:"):
            decoded = decoded[5:]
        expected[name.upper()] = None if value.upper() in (b"", b"[UNAVAILABLE]", b"[TEMPUNAVAIL]") else decoded
    assert parse_xforward(argument) == expected


def _decode(value: bytes) -> bytes:
    first, *others = value.split(b"+")
    parts = [first]
    for other in others:
        quoted = re.match(rb"[0-9A-Fa-f]{2}", other)
        parts.append(bytes.fromhex(quoted[0].decode()) + other[2:] if quoted else b"+" + other)
    return b"".join(parts)


def _check_xclient(argument: bytes) -> None:
    before = Identity(address="198.51.100.1", port=4711)
    try:
        identity = before.taking(argument)
    except IdentityError as error:
        assert str(error)
        return
    assert identity.learnt
    _check_values(identity)
    # Told to a server that takes everything, and one that is told by several commands knows the same.
    told = Identity()
    for line in identity.xclient(XCLIENT_ATTRIBUTES, helo=_HELO, protocol=b"ESMTP"):
        told = told.taking(_argument(line, b"XCLIENT "))
    expected = replace(identity, helo=identity.helo or _HELO, protocol=identity.protocol or b"ESMTP")
    # What no line has room for is not told.
    told, expected = _short(told, expected), _short(expected, expected)
    if expected.protocol is not None:
        assert expected.protocol.upper() in (b"SMTP", b"ESMTP")
    assert told == expected
    for line in identity.xforward(XCLIENT_ATTRIBUTES, helo=_HELO, protocol=b"ESMTP"):
        assert parse_xforward(_argument(line, b"XFORWARD ")).keys() <= {b"NAME", b"ADDR", b"PORT", b"PROTO", b"HELO"}


def _short(identity: Identity, measure: Identity) -> Identity:
    """Leave away the values that may be too long for a line in ``measure``."""

    def keep(value: bytes | None, measured: bytes | None) -> bytes | None:
        return value if len(xtext(measured or b"")) <= _VALUE_MAX else None

    return replace(
        identity,
        name=keep(identity.name, measure.name),
        helo=keep(identity.helo, measure.helo),
        login=keep(identity.login, measure.login),
    )


def _check_values(identity: Identity) -> None:
    for address in (identity.address, identity.destination):
        if address is not None:
            assert str(ip_address(address)) == address
            assert "%" not in address
    for port in (identity.port, identity.destination_port):
        assert port is None or 0 <= port <= 65535
    for value in (identity.name, identity.helo, identity.login, identity.protocol):
        # No log, field or command can be forged with it.
        assert value is None or (0 < len(value) <= 255 and value.decode("utf-8").isprintable())


def _argument(line: bytes, verb: bytes) -> bytes:
    """Return the argument of a command line that is well-formed."""
    assert line.startswith(verb)
    assert line.endswith(b"\r\n")
    assert len(line) <= 512
    argument = line[len(verb) : -2]
    assert re.fullmatch(rb"[ -~]+", argument)
    return argument
