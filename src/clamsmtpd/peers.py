"""Who is at the other end of a socket, and where a redirected connection wanted to go."""

from __future__ import annotations

import socket
import struct

from clamsmtpd.smtp.identity import Identity
from clamsmtpd.values import TcpAddress

__all__ = ["LOCAL_CLIENT", "UNKNOWN_CLIENT", "end_point", "host_of", "identify", "original_destination"]

#: What stands for an address where there is none: the client came through a unix socket.
LOCAL_CLIENT = "local"

#: What stands for an address that even those who are trusted do not know.
UNKNOWN_CLIENT = "unknown"

# linux/netfilter_ipv4.h and linux/netfilter_ipv6/ip6_tables.h; Python's socket module names neither.
_SO_ORIGINAL_DST = 80
_IP6T_SO_ORIGINAL_DST = 80

# struct sockaddr_in and sockaddr_in6 behind their two octets of family: port and flow in network order.
_SOCKADDR_IN = struct.Struct("!2xH4s8x")
_SOCKADDR_IN6 = struct.Struct("!2xHI16s4x")


def _plain(host: str) -> str:
    """Write an IPv4 address that an IPv6 socket shows as ``::ffff:192.0.2.1`` the way people do.

    The text comes from the system, always in the same form (RFC 5952), so that no more needs to be understood.
    """
    if host.startswith("::ffff:") and "." in host:
        return host.removeprefix("::ffff:")
    return host.partition("%")[0]


def end_point(name: object) -> TcpAddress | None:
    """Turn what getsockname() or getpeername() gave into an address; None for a unix socket."""
    if isinstance(name, tuple) and len(name) >= 2:  # noqa: PLR2004 - host and port
        return TcpAddress(_plain(name[0]), name[1])
    return None


def original_destination(sock: socket.socket) -> TcpAddress | None:
    """Return where the client wanted to go before netfilter's REDIRECT or DNAT changed it.

    None when the kernel does not know, which is so for a connection that was made straight to us and
    never went through connection tracking. ``sock`` is accepted, IPv4 or IPv6; an IPv6 socket that
    carries IPv4 is asked as an IPv4 one.
    """
    peer = end_point(sock.getpeername())
    if peer is None or peer.host is None:
        return None
    try:
        if ":" in peer.host:
            packed = sock.getsockopt(socket.IPPROTO_IPV6, _IP6T_SO_ORIGINAL_DST, _SOCKADDR_IN6.size)
            port, _, address = _SOCKADDR_IN6.unpack(packed)
            return TcpAddress(socket.inet_ntop(socket.AF_INET6, address), port)
        packed = sock.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, _SOCKADDR_IN.size)
        port, address = _SOCKADDR_IN.unpack(packed)
        return TcpAddress(socket.inet_ntop(socket.AF_INET, address), port)
    except OSError:
        return None


def host_of(end: TcpAddress | None) -> str:
    """Return the address without its port, as the log and the hook show it."""
    return end.host if end is not None and end.host is not None else LOCAL_CLIENT


def identify(client: TcpAddress | None, destination: TcpAddress | None) -> Identity:
    """Return who the client is by the ends of its connection: its own, and the one that it connected to."""
    return Identity(
        address=client.host if client is not None else None,
        port=client.port if client is not None else None,
        destination=destination.host if destination is not None else None,
        destination_port=destination.port if destination is not None else None,
    )
