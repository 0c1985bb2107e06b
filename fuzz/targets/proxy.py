"""PROXY headers, versions 1 and 2: what they say, and where they end, is that of a plain reading, in every cutting."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv6Address

from clamsmtpd.proxyprotocol import Proxied, ProxyError, ProxyHeader
from clamsmtpd.values import TcpAddress
from fuzz.octets import cuttings

__all__ = ["WORDS", "one_input"]

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"

WORDS = (
    *(
        b"PROXY TCP4 ",
        b"PROXY TCP6 ",
        b"PROXY UNKNOWN",
        b"PROXY UNKNOWN\r\n",
        b"192.0.2.1 ",
        b"2001:db8::1 ",
        b"25\r\n",
    ),
    *(b" 65535", b"::ffff:192.0.2.1", b"\r\n", b"EHLO x\r\n"),
    *(_SIGNATURE, _SIGNATURE + b"\x21\x11\0\x0c", _SIGNATURE + b"\x21\x21\0\x24", _SIGNATURE + b"\x20\0\0\0"),
    *(_SIGNATURE + b"\x21\x31\0\xd8", b"\x03\0\x04", b"\x04\0\0", b"\x01\0\x02h2"),
)

# What a header comes to: what it says and what is behind it; None while it is not whole; or that it is none.
_Outcome = tuple[Proxied, bytes] | str | None


def one_input(data: bytes) -> None:
    """Read the octets as a header and what is behind it."""
    octets, ways = cuttings(data)
    outcomes = [_read(way) for way in ways]
    expected = _binary(octets) if octets[:1] == b"\r" else _line(octets)
    for outcome in outcomes:
        if expected is None:
            # No end has come. To refuse it already is right if no end could make it good; only then is it whatever
            # the cutting.
            assert outcome in (None, "error")
            assert outcome == outcomes[0]
        else:
            assert outcome == expected


def _read(pieces: list[bytes]) -> _Outcome:
    header = ProxyHeader()
    for number, piece in enumerate(pieces):
        try:
            found = header.feed(piece)
        except ProxyError as error:
            assert str(error).isprintable()
            return "error"
        if found is not None:
            return found[0], found[1] + b"".join(pieces[number + 1 :])
    return None


def _line(octets: bytes) -> _Outcome:
    """Read version 1 (section 2.1)."""
    line, end, rest = octets.partition(b"\r\n")
    if not octets.startswith(b"PROXY "):
        return None if b"PROXY ".startswith(octets) else "error"
    if len(line) + 2 > 107:
        return "error" if len(octets) >= 107 else None
    if not end:
        return None
    _, family, *words = line.split(b" ")
    if family == b"UNKNOWN":
        return Proxied(None, None), rest
    kind = {b"TCP4": socket.AF_INET, b"TCP6": socket.AF_INET6}.get(family)
    if kind is None or len(words) != 4:
        return "error"
    try:
        source, destination = (_address(socket.inet_pton(kind, word.decode("ascii"))) for word in words[:2])
    except (OSError, ValueError):
        return "error"
    ports = [int(word) for word in words[2:] if word.isdigit() and b"%d" % int(word) == word and int(word) < 65536]
    if len(ports) != 2:
        return "error"
    return Proxied(TcpAddress(source, ports[0]), TcpAddress(destination, ports[1])), rest


def _binary(octets: bytes) -> _Outcome:  # noqa: PLR0911 - as many as there are things to be wrong
    """Read version 2 (section 2.2)."""
    if not octets.startswith(_SIGNATURE):
        return None if _SIGNATURE.startswith(octets) else "error"
    fixed = octets[12:16]
    if fixed and fixed[0] not in (0x20, 0x21):
        return "error"
    if len(fixed) < 4:
        return None
    length = int.from_bytes(fixed[2:], "big")
    if length > 4096:
        return "error"
    family, transport = divmod(fixed[1], 16)
    proxied = fixed[0] == 0x21
    size = {0: 0, 1: 12, 2: 36, 3: 216}.get(family)
    if proxied and (size is None or size > length or (family and transport != 1)):
        return "error"
    body, rest = octets[16 : 16 + length], octets[16 + length :]
    if len(body) < length:
        return None
    if not proxied or not family or size is None:
        return Proxied(None, None), rest
    if not _good_tlvs(octets[: 16 + length], 16 + size):
        return "error"
    if family == 3:
        return Proxied(None, None), rest
    width = (size - 4) // 2
    source, destination = _address(body[:width]), _address(body[width : 2 * width])
    source_port, port = struct.unpack("!HH", body[2 * width : size])
    return Proxied(TcpAddress(source, source_port), TcpAddress(destination, port)), rest


def _good_tlvs(header: bytes, at: int) -> bool:
    sums = 0
    while at < len(header):
        length = int.from_bytes(header[at + 1 : at + 3], "big")
        begin, end = at + 3, at + 3 + length
        if end > len(header):
            return False
        if header[at] == 3:
            sums += 1
            zeroed = header[:begin] + bytes(length) + header[end:]
            if sums > 1 or length != 4 or int.from_bytes(header[begin:end], "big") != _crc32c(zeroed):
                return False
        at = end
    return True


def _crc32c(octets: bytes) -> int:
    """Divide by the polynomial of Castagnoli, bit by bit."""
    crc = 0xFFFFFFFF
    for octet in octets:
        crc ^= octet
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _address(packed: bytes) -> str:
    if len(packed) == 4:
        return str(IPv4Address(packed))
    return str(IPv6Address(packed).ipv4_mapped or IPv6Address(packed))
