"""The PROXY protocol, versions 1 and 2 (HAProxy's proxy-protocol.txt), on the side of the receiver."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from clamsmtpd.values import TcpAddress

__all__ = ["Proxied", "ProxyError", "ProxyHeader"]

# Section 2.1: the longest line of version 1, CRLF included.
_LINE_MAX = 107

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
        return None

    @staticmethod
    def _read_binary(data: bytes) -> tuple[Proxied, bytes] | None:
        if data[: len(_SIGNATURE)] != _SIGNATURE[: len(data)]:
            raise ProxyError(f"it begins with {_show(data[:20])}")
        if len(data) < _HEADER_SIZE:
            return None
        version_command, family_transport, length = _FIXED.unpack_from(data, len(_SIGNATURE))
        version, command = divmod(version_command, 16)
        if version != _VERSION or command not in (_LOCAL, _PROXY):
            raise ProxyError(f"its version and command are 0x{version_command:02x}")
        if length > _BODY_MAX:
            raise ProxyError(f"it is {length} octets long")
        if len(data) < _HEADER_SIZE + length:
            return None
        body, rest = data[_HEADER_SIZE : _HEADER_SIZE + length], data[_HEADER_SIZE + length :]
        # Section 2.2: of a connection that the proxy made for itself, nothing else counts.
        return (_UNNAMED if command == _LOCAL else _unpack(family_transport, body)), rest


def _understand(line: bytes) -> Proxied:
    """Read what stands behind ``PROXY`` in version 1."""
    family, *words = line.split(b" ")
    if family == b"UNKNOWN":
        return _UNNAMED
    version = {b"TCP4": 4, b"TCP6": 6}.get(family)
    if version is None or len(words) != 4:  # noqa: PLR2004 - two addresses, two ports
        raise ProxyError(f"it says {_show(line)}")
    try:
        source, destination = (ip_address(word.decode("ascii")) for word in words[:2])
    except ValueError:
        raise ProxyError(f"it says {_show(line)}") from None
    if source.version != version or destination.version != version:
        raise ProxyError(f"it says {_show(line)}")
    return Proxied(_end(source, _port(words[2])), _end(destination, _port(words[3])))


def _port(word: bytes) -> int:
    # Section 2.1: decimal, without leading zeros.
    if word.isdigit() and len(word) <= len(str(_PORT_MAX)) and (word == b"0" or word[:1] != b"0"):
        port = int(word)
        if port <= _PORT_MAX:
            return port
    raise ProxyError(f"it has the port {_show(word)}")


def _unpack(family_transport: int, body: bytes) -> Proxied:
    """Read the addresses of version 2."""
    family, transport = divmod(family_transport, 16)
    size = _ADDRESSES.get(family)
    if size is None or (family != _UNSPEC and transport != _STREAM):
        raise ProxyError(f"its family and transport are 0x{family_transport:02x}")
    if len(body) < size:
        raise ProxyError(f"it has {len(body)} octets of addresses in place of {size}")
    if family != _UNSPEC:
        _check_tlvs(body[size:])
    if family == _INET:
        source4, destination4, source_port, port = struct.unpack_from("!4s4sHH", body)
        return Proxied(_end(IPv4Address(source4), source_port), _end(IPv4Address(destination4), port))
    if family == _INET6:
        source6, destination6, source_port, port = struct.unpack_from("!16s16sHH", body)
        return Proxied(_end(IPv6Address(source6), source_port), _end(IPv6Address(destination6), port))
    return _UNNAMED


def _check_tlvs(data: bytes) -> None:
    """Step over what follows the addresses: nothing in it matters here, but it must be whole."""
    at = 0
    while at < len(data):
        if at + _TLV.size > len(data):
            raise ProxyError("it is cut off")
        _, length = _TLV.unpack_from(data, at)
        at += _TLV.size + length
    if at != len(data):
        raise ProxyError("it is cut off")


def _end(address: IPv4Address | IPv6Address, port: int) -> TcpAddress:
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            raise ProxyError(f"it has the address {_show(str(address).encode())}")
        return TcpAddress(str(address.ipv4_mapped or address), port)
    return TcpAddress(str(address), port)


def _show(octets: bytes) -> str:
    return repr(octets[:_LINE_MAX])[1:]
