"""The PROXY protocol, versions 1 and 2 (HAProxy's proxy-protocol.txt), on the side of the receiver."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from clamsmtpd.values import TcpAddress

__all__ = ["Proxied", "ProxyError", "ProxyHeader"]

# Section 2.1: the longest line of version 1, CRLF included.
_LINE_MAX = 107

# Section 2.1: the first words behind "PROXY"; only UNKNOWN may have the end of the line right behind it.
_FAMILIES = (b"TCP4", b"TCP6", b"UNKNOWN\r")
_WORDS = 5
_IP_VERSIONS = {b"TCP4": 4, b"TCP6": 6}
_CUT_OFF_WORD = re.compile(rb"[0-9A-Fa-f:.]*")

# Section 2.2: the signature, then version and command, family and transport, and the length of what follows.
_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED = struct.Struct("!BBH")
_HEADER_SIZE = len(_SIGNATURE) + _FIXED.size

#: Octets of addresses and TLVs together. The largest TLVs are certificates' names; nobody sends half as much.
_BODY_MAX = 4096

_PORT_MAX = 65535
_VERSION = 2
_LOCAL, _PROXY = 0, 1
_UNSPEC, _INET, _INET6, _UNIX = range(4)
_STREAM = 1
_ADDRESSES = {_UNSPEC: 0, _INET: 12, _INET6: 36, _UNIX: 216}
_TLV = struct.Struct("!BH")

# Section 2.2.3: the TLV of the checksum.
_TYPE_CRC32C = 3
_CRC32C = struct.Struct("!I")


def _crc32c_of_octet(octet: int) -> int:
    for _ in range(8):
        # The polynomial of RFC 9260 appendix A, its bits in reverse.
        octet = octet >> 1 ^ (0x82F63B78 if octet & 1 else 0)
    return octet


_CRC32C_TABLE = tuple(_crc32c_of_octet(octet) for octet in range(256))


class ProxyError(ValueError):
    """What came is no PROXY header; ``str()`` is one line that says why."""


@dataclass(frozen=True, slots=True)
class Proxied:
    """What a header says: who connected to the proxy, and where to.

    None, for both, where it says nothing: the connection is the proxy's own, such as a health check, or it cannot
    be named. The ends of the connection count then.
    """

    source: TcpAddress | None
    destination: TcpAddress | None


_UNNAMED = Proxied(None, None)


class ProxyHeader:
    """Reads the header in front of a connection, in whatever pieces it comes."""

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> tuple[Proxied, bytes] | None:
        """Take the next octets; return what the header says and the octets behind it, None while it is not whole.

        Raises :class:`ProxyError` as soon as the octets cannot become a header.
        """
        self._data += data
        if self._data[:1] == b"\r":
            return self._read_binary(self._data)
        return self._read_line(self._data)

    @staticmethod
    def _read_line(data: bytes) -> tuple[Proxied, bytes] | None:
        start = b"PROXY "
        if data[: len(start)] != start[: len(data)]:
            raise ProxyError(f"it begins with {_show(data[:20])}")
        end = data.find(b"\r\n", 0, _LINE_MAX)
        if end >= 0:
            return _understand(data[len(start) : end]), data[end + 2 :]
        if len(data) >= _LINE_MAX:
            raise ProxyError("it has no end")
        _check_partial(data[len(start) :])
        return None

    @staticmethod
    def _read_binary(data: bytes) -> tuple[Proxied, bytes] | None:
        if data[: len(_SIGNATURE)] != _SIGNATURE[: len(data)]:
            raise ProxyError(f"it begins with {_show(data[:20])}")
        fixed = data[len(_SIGNATURE) : _HEADER_SIZE]
        if fixed and fixed[0] not in (_VERSION << 4 | _LOCAL, _VERSION << 4 | _PROXY):
            raise ProxyError(f"its version and command are 0x{fixed[0]:02x}")
        if len(fixed) < _FIXED.size:
            return None
        version_command, family_transport, length = _FIXED.unpack(fixed)
        if length > _BODY_MAX:
            raise ProxyError(f"it is {length} octets long")
        # Section 2.2: of a connection that the proxy made for itself, nothing else counts.
        named = version_command & 0x0F == _PROXY
        if named:
            _check_family(family_transport, length)
        end = _HEADER_SIZE + length
        if len(data) < end:
            return None
        return (_unpack(family_transport, data[:end]) if named else _UNNAMED), data[end:]


def _check_partial(line: bytes) -> None:
    """Refuse what stands behind ``PROXY`` in version 1 if no end can make it good; its CRLF has not come."""
    family, *words = line.split(b" ")
    if words and family == b"UNKNOWN":
        return
    if not words and any(known.startswith(family) for known in _FAMILIES):
        return
    version = _IP_VERSIONS.get(family)
    if not words or version is None:
        raise ProxyError(f"it says {_show(line)}")
    *whole, last = words
    for word in whole[:2]:
        if _address(word, version) is None:
            raise ProxyError(f"it says {_show(line)}")
    for word in whole[2:]:
        _port(word)
    if len(words) == _WORDS - 1:
        last = last.removesuffix(b"\r")
    if len(words) >= _WORDS or not _CUT_OFF_WORD.fullmatch(last):
        raise ProxyError(f"it says {_show(line)}")


def _understand(line: bytes) -> Proxied:
    """Read what stands behind ``PROXY`` in version 1."""
    family, *words = line.split(b" ")
    if family == b"UNKNOWN":
        return _UNNAMED
    version = _IP_VERSIONS.get(family)
    if version is None or len(words) != _WORDS - 1:
        raise ProxyError(f"it says {_show(line)}")
    source, destination = (_address(word, version) for word in words[:2])
    if source is None or destination is None:
        raise ProxyError(f"it says {_show(line)}")
    return Proxied(_end(source, _port(words[2])), _end(destination, _port(words[3])))


def _address(word: bytes, version: int) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(word.decode("ascii"))
    except ValueError:
        return None
    # A zone, as in fe80::1%eth0, means something only on the machine of the proxy.
    if address.version != version or b"%" in word:
        return None
    return address


def _port(word: bytes) -> int:
    # Section 2.1: decimal, without leading zeros.
    if word.isdigit() and len(word) <= len(str(_PORT_MAX)) and (word == b"0" or word[:1] != b"0"):
        port = int(word)
        if port <= _PORT_MAX:
            return port
    raise ProxyError(f"it has the port {_show(word)}")


def _check_family(family_transport: int, length: int) -> None:
    """Refuse what version 2 cannot say, or not in ``length`` octets (section 2.2)."""
    family, transport = divmod(family_transport, 16)
    size = _ADDRESSES.get(family)
    if size is None or (family != _UNSPEC and transport != _STREAM):
        raise ProxyError(f"its family and transport are 0x{family_transport:02x}")
    if length < size:
        raise ProxyError(f"it has {length} octets of addresses in place of {size}")


def _unpack(family_transport: int, header: bytes) -> Proxied:
    """Read the addresses of version 2 from a whole header."""
    family = family_transport >> 4
    if family != _UNSPEC:
        _check_tlvs(header, _HEADER_SIZE + _ADDRESSES[family])
    if family == _INET:
        source4, destination4, source_port, port = struct.unpack_from("!4s4sHH", header, _HEADER_SIZE)
        return Proxied(_end(IPv4Address(source4), source_port), _end(IPv4Address(destination4), port))
    if family == _INET6:
        source6, destination6, source_port, port = struct.unpack_from("!16s16sHH", header, _HEADER_SIZE)
        return Proxied(_end(IPv6Address(source6), source_port), _end(IPv6Address(destination6), port))
    return _UNNAMED


def _check_tlvs(header: bytes, at: int) -> None:
    """Step over what follows the addresses from ``at`` on: it must be whole, and only a checksum in it matters."""
    summed = False
    while at < len(header):
        if at + _TLV.size > len(header):
            raise ProxyError("it is cut off")
        kind, length = _TLV.unpack_from(header, at)
        at += _TLV.size
        if at + length > len(header):
            raise ProxyError("it is cut off")
        if kind == _TYPE_CRC32C:
            # Hundreds of them would hold up everybody else.
            if summed:
                raise ProxyError("it has two checksums")
            summed = True
            _check_crc32c(header, at, length)
        at += length


def _check_crc32c(header: bytes, at: int, length: int) -> None:
    """Compare the checksum at ``at`` with that of the header; its own octets count as zeros (section 2.2.3)."""
    if length != _CRC32C.size:
        raise ProxyError(f"its checksum has {length} octets")
    crc = 0xFFFFFFFF
    for octet in header[:at] + bytes(length) + header[at + length :]:
        crc = crc >> 8 ^ _CRC32C_TABLE[(crc ^ octet) & 0xFF]
    if header[at : at + length] != _CRC32C.pack(crc ^ 0xFFFFFFFF):
        raise ProxyError("its checksum is wrong")


def _end(address: IPv4Address | IPv6Address, port: int) -> TcpAddress:
    if isinstance(address, IPv6Address):
        return TcpAddress(str(address.ipv4_mapped or address), port)
    return TcpAddress(str(address), port)


def _show(octets: bytes) -> str:
    return repr(octets[:_LINE_MAX])[1:]
