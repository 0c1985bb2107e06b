"""The PROXY protocol, versions 1 and 2."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clamsmtpd.proxyprotocol import Proxied, ProxyError, ProxyHeader
from clamsmtpd.values import TcpAddress

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
UNNAMED = Proxied(None, None)
IPV4 = Proxied(TcpAddress("192.0.2.1", 4711), TcpAddress("192.0.2.25", 25))
IPV6 = Proxied(TcpAddress("2001:db8::1", 4711), TcpAddress("2001:db8::25", 25))


def version_2(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE + struct.pack("!BBH", 0x20 | command, family, len(body)) + body


def addresses(source: str, destination: str, source_port: int = 4711, port: int = 25) -> bytes:
    return ip_address(source).packed + ip_address(destination).packed + struct.pack("!HH", source_port, port)


BODY4 = addresses("192.0.2.1", "192.0.2.25")
BODY6 = addresses("2001:db8::1", "2001:db8::25")
TLV = b"\x01\x00\x02h2" + b"\x04\x00\x00"

HEADERS = [
    (b"PROXY TCP4 192.0.2.1 192.0.2.25 4711 25\r\n", IPV4),
    (b"PROXY TCP6 2001:DB8::1 2001:db8:0::25 4711 25\r\n", IPV6),
    (
        b"PROXY TCP6 ::ffff:192.0.2.1 ::1 0 65535\r\n",
        Proxied(TcpAddress("192.0.2.1", 0), TcpAddress("::1", 65535)),
    ),
    (b"PROXY UNKNOWN\r\n", UNNAMED),
    (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", UNNAMED),
    (version_2(1, 0x11, BODY4), IPV4),
    (version_2(1, 0x11, BODY4 + TLV), IPV4),
    (version_2(1, 0x21, BODY6), IPV6),
    (version_2(1, 0x21, BODY6 + TLV), IPV6),
    (version_2(1, 0x21, addresses("::ffff:192.0.2.1", "::ffff:192.0.2.25")), IPV4),
    (version_2(1, 0x31, b"/" * 216), UNNAMED),
    (version_2(1, 0x00, b""), UNNAMED),
    (version_2(1, 0x00, b"whatever"), UNNAMED),
    (version_2(0, 0x11, BODY4), UNNAMED),
    (version_2(0, 0xFF, b"of no account"), UNNAMED),
]


def read(*pieces: bytes) -> tuple[Proxied, bytes] | None:
    """Feed a header piece by piece; what comes with its end must be the last."""
    header = ProxyHeader()
    for number, piece in enumerate(pieces):
        found = header.feed(piece)
        if found is not None:
            assert number == len(pieces) - 1
            return found
    return None


@pytest.mark.parametrize(("octets", "proxied"), HEADERS)
def test_a_header_whole_octet_by_octet_and_with_more_behind(octets: bytes, proxied: Proxied) -> None:
    assert read(octets) == (proxied, b"")
    assert read(*(octets[at : at + 1] for at in range(len(octets)))) == (proxied, b"")
    assert read(octets + b"EHLO x\r\n") == (proxied, b"EHLO x\r\n")
    for end in range(len(octets)):
        assert read(octets[:end]) is None


@given(st.sampled_from(HEADERS), st.lists(st.integers(1, 30)))
def test_a_header_in_all_cuttings(header: tuple[bytes, Proxied], cuts: list[int]) -> None:
    octets, proxied = header
    pieces = []
    for cut in cuts:
        if cut < len(octets):
            pieces.append(octets[:cut])
            octets = octets[cut:]
    assert read(*pieces, octets + b"\r\nEHLO") == (proxied, b"\r\nEHLO")


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        (b"EHLO x\r\n", "it begins with 'EHLO x\\r\\n'"),
        (b"PROXY\r", "it begins with 'PROXY\\r'"),
        (b"proxy ", "it begins with 'proxy '"),
        (b"\r\n\r\nX", "it begins with '\\r\\n\\r\\nX'"),
        (b"PROXY UNKNOWN" + b" " * 94, "it has no end"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.25 4711\r\n", "it says 'TCP4 192.0.2.1 192.0.2.25 4711'"),
        (b"PROXY TCP4 192.0.2.1  192.0.2.25 4711 25\r\n", "it says 'TCP4 192.0.2.1  192.0.2.25 4711 25'"),
        (b"PROXY TCP5 192.0.2.1 192.0.2.25 4711 25\r\n", "it says 'TCP5 192.0.2.1 192.0.2.25 4711 25'"),
        (b"PROXY TCP6 192.0.2.1 192.0.2.25 4711 25\r\n", "it says 'TCP6 192.0.2.1 192.0.2.25 4711 25'"),
        (b"PROXY TCP4 ::1 ::2 4711 25\r\n", "it says 'TCP4 ::1 ::2 4711 25'"),
        (b"PROXY TCP4 192.0.2.1 ::2 4711 25\r\n", "it says 'TCP4 192.0.2.1 ::2 4711 25'"),
        (b"PROXY TCP4 192.0.2.x 192.0.2.25 4711 25\r\n", "it says 'TCP4 192.0.2.x 192.0.2.25 4711 25'"),
        (b"PROXY TCP4 \xff 192.0.2.25 4711 25\r\n", "it says 'TCP4 \\xff 192.0.2.25 4711 25'"),
        (b"PROXY TCP6 fe80::1%x ::2 4711 25\r\n", "it says 'TCP6 fe80::1%x ::2 4711 25'"),
        (b"PROXY TCP6 ::1 ::2 4711 25 1\r\n", "it says 'TCP6 ::1 ::2 4711 25 1'"),
        (b"PROXY TCP4\r\n", "it says 'TCP4'"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.25 4711 025\r\n", "it has the port '025'"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.25 04711 25\r\n", "it has the port '04711'"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.25 4711 65536\r\n", "it has the port '65536'"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.25 4711 +5\r\n", "it has the port '+5'"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.25 4711 \r\n", "it has the port ''"),
        (SIGNATURE + b"\x11\x11\x00\x00", "its version and command are 0x11"),
        (SIGNATURE + b"\x22\x11\x00\x00", "its version and command are 0x22"),
        (SIGNATURE + b"\x21\x11\xff\xff", "it is 65535 octets long"),
        (version_2(1, 0x12, BODY4), "its family and transport are 0x12"),
        (version_2(1, 0x41, BODY4), "its family and transport are 0x41"),
        (version_2(1, 0x11, BODY4[:-1]), "it has 11 octets of addresses in place of 12"),
        (version_2(1, 0x21, BODY4), "it has 12 octets of addresses in place of 36"),
        (version_2(1, 0x11, BODY4 + b"\x01\x00"), "it is cut off"),
        (version_2(1, 0x11, BODY4 + b"\x01\x00\x02x"), "it is cut off"),
        (version_2(1, 0x11, BODY4 + b"\x03\x00\x04abcd"), "its checksum is wrong"),
        (version_2(1, 0x11, BODY4 + b"\x03\x00\x02ab"), "its checksum has 2 octets"),
    ],
)
def test_what_is_no_header(octets: bytes, why: str) -> None:
    for pieces in ((octets,), tuple(octets[at : at + 1] for at in range(len(octets)))):
        with pytest.raises(ProxyError) as error:
            read(*pieces)
        if len(pieces) == 1:
            assert str(error.value) == why


@pytest.mark.parametrize(
    "octets",
    [
        b"PROXY X",
        b"PROXY TCP5",
        b"PROXY TCP4\r",
        b"PROXY UNKNOWNS",
        b"PROXY UNKNOWN\rX",
        b"PROXY TCP4 192.0.2.1\n",
        b"PROXY TCP4 192.0.2.1\r",
        b"PROXY TCP4 192.0.2.256 ",
        b"PROXY TCP4 ::1 ",
        b"PROXY TCP6 ::1 192.0.2.1 ",
        b"PROXY TCP6 ::1 ::2 025 ",
        b"PROXY TCP6 ::1 ::2 4711 25 ",
        b"PROXY TCP6 ::1 ::2 4711 25\rX",
        b"PROXY TCP6 fe80::1%",
        SIGNATURE + b"\x31",
        SIGNATURE + b"\x21\x12\x00\x0c",
        SIGNATURE + b"\x21\x11\x00\x0b",
        SIGNATURE + b"\x20\x00\xff\xff",
    ],
)
def test_what_cannot_become_a_header_is_refused_at_that_octet(octets: bytes) -> None:
    assert read(octets[:-1]) is None
    with pytest.raises(ProxyError):
        read(octets)


def crc32c(octets: bytes) -> int:
    """Add up in another way than the module does: bit for bit, without a table."""
    crc = 0xFFFFFFFF
    for octet in octets:
        for bit in range(8):
            low = (crc ^ octet >> bit) & 1
            crc = crc >> 1 ^ 0x82F63B78 * low
    return crc ^ 0xFFFFFFFF


def test_a_checksum_counts() -> None:
    # The check value of CRC-32C that is published with its polynomial.
    assert crc32c(b"123456789") == 0xE3069283
    blank = version_2(1, 0x11, BODY4 + b"\x03\x00\x04" + bytes(4) + TLV)
    at = len(SIGNATURE) + 4 + len(BODY4) + 3
    octets = blank[:at] + struct.pack("!I", crc32c(blank)) + blank[at + 4 :]
    assert read(octets) == (IPV4, b"")
    for place in (len(SIGNATURE) + 4, at, at + 3, len(octets) - 5):
        spoilt = octets[:place] + bytes((octets[place] ^ 1,)) + octets[place + 1 :]
        with pytest.raises(ProxyError, match="its checksum is wrong"):
            read(spoilt)


def test_two_checksums_are_one_too_many() -> None:
    header = version_2(1, 0x11, BODY4 + (b"\x03\x00\x04" + bytes(4)) * 2)
    at = len(SIGNATURE) + 4 + len(BODY4) + 3
    octets = header[:at] + struct.pack("!I", crc32c(header)) + header[at + 4 :]
    with pytest.raises(ProxyError, match="it has two checksums"):
        read(octets)


LIKE_HEADERS = st.lists(
    st.sampled_from(
        [b"PROXY ", b"TCP4", b"TCP6", b"UNKNOWN", b" ", b"192.0.2.1", b"::1", b"%", b"0", b"25", b"\r", b"\r\n", b"\n"]
    ),
    max_size=14,
).map(b"".join)


@given(
    st.sampled_from([b"", b"PROXY TCP4 192.0.2.1 ", b"PROXY TCP6 ::1 ::1 ", b"PROXY UNKNOWN"]),
    LIKE_HEADERS,
)
@example(b"PROXY UNKNOWN", b"\rX ")
def test_what_is_refused_is_the_same_however_it_comes(start: bytes, like: bytes) -> None:
    octets = start + like

    def outcome(*pieces: bytes) -> object:
        header, rest, found = ProxyHeader(), b"", None
        try:
            for piece in pieces:
                if found is None:
                    found = header.feed(piece)
                else:
                    rest += piece
        except ProxyError:
            return ProxyError
        return found and (found[0], found[1] + rest)

    assert outcome(*(octets[at : at + 1] for at in range(len(octets)))) == outcome(octets)


@given(st.one_of(st.binary(max_size=300), st.binary(max_size=100).map(lambda octets: SIGNATURE + b"\x21" + octets)))
def test_anything_is_a_header_or_refused(octets: bytes) -> None:
    try:
        found = read(octets)
    except ProxyError as error:
        refused = str(error)
    else:
        refused = ""
        assert found is None or octets.endswith(found[1])
    assert refused.isprintable()
