"""Making the connection to a next hop."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import socket

from clamsmtpd.peers import end_point
from clamsmtpd.values import Address, TcpAddress, UnixAddress

__all__ = ["dial", "dial_by_name"]

# A connection to no address in particular is one to this host itself (ip(7), ipv6(7)). Had we another name for its end
# than the one that accepts it, a connection that goes in a circle would not be known.
_THIS_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1", "::ffff:0.0.0.0": "127.0.0.1"}


def dial(address: Address) -> tuple[socket.socket, TcpAddress | None] | None:
    """Begin a connection to a unix socket or an IP address; None if ``address`` is neither but a name.

    Returns a socket that does not block, and the other end as :func:`clamsmtpd.peers.end_point` writes it. Whether
    the connection comes about is seen by reading: a server of SMTP speaks first. Raises OSError.
    """
    if isinstance(address, UnixAddress):
        return _begin(socket.AF_UNIX, address.path), None
    found = _parse(address.host or "")
    if found is None:
        return None
    family, host = found
    return _begin(family, (address.host, address.port)), end_point((host, address.port))


async def dial_by_name(address: TcpAddress) -> tuple[socket.socket, TcpAddress | None]:
    """Connect to the first of a host's addresses that takes us; names are looked up anew each time.

    Returns the same as :func:`dial`. Raises OSError.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    fault = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    for family, _, _, _, name in found:
        sock = _open(family)
        try:
            await loop.sock_connect(sock, name)
            return sock, end_point(sock.getpeername())
        except BaseException as error:
            sock.close()
            if not isinstance(error, OSError):
                raise
            fault = error
    raise fault


@functools.lru_cache(maxsize=256)
def _parse(host: str) -> tuple[socket.AddressFamily, str] | None:
    """Return the family of an IP address, and the other end as the kernel would write it; None for a name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            written = socket.inet_ntop(family, socket.inet_pton(family, host.partition("%")[0]))
        except OSError:
            continue
        return family, _THIS_HOST.get(written, written)
    return None


def _begin(family: socket.AddressFamily, name: str | tuple[str | None, int]) -> socket.socket:
    sock = _open(family)
    try:
        code = sock.connect_ex(name)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
    except BaseException:
        sock.close()
        raise
    return sock


def _open(family: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    if family != socket.AF_UNIX:
        # Nagle's algorithm would hold a reply back until the one before it has been acknowledged: 40 ms and more.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock
