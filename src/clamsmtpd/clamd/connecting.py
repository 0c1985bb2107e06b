"""The way to clamd: a connected socket, or the reason why there is none."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import Any

from clamsmtpd.clamd.session import why
from clamsmtpd.values import Address, TcpAddress, UnixAddress

__all__ = ["ClamdError", "connect"]

# Seconds between two tries when clamd's listen queue is full, at first and at most: many may be trying.
_RETRY_FIRST, _RETRY_LAST = 0.02, 0.25


class ClamdError(Exception):
    """The scan failed; ``str()`` says why."""


async def connect(address: Address, time_out: float) -> socket.socket:
    """Return a new connection to the clamd at ``address``, which does not block.

    Each step may take ``time_out`` seconds. Raises ClamdError.
    """
    if isinstance(address, UnixAddress):
        return await _connect_locally(address, time_out)
    return await _connect_by_name(address, time_out)


async def _connect_locally(address: UnixAddress, time_out: float) -> socket.socket:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + time_out
    pause = _RETRY_FIRST
    sock = _open_socket(socket.AF_UNIX)
    try:
        # For a unix socket, EAGAIN is no connection under way but a full queue (connect(2)).
        while (code := sock.connect_ex(address.path)) == errno.EAGAIN:
            if (left := deadline - loop.time()) <= 0:
                raise ClamdError("it accepts no connections, and its queue of them is full")
            await asyncio.sleep(min(pause, left))
            pause = min(2 * pause, _RETRY_LAST)
        if code:
            raise ClamdError(os.strerror(code))
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            raise ClamdError(why(error)) from None
        raise
    return sock


async def _connect_by_name(address: TcpAddress, time_out: float) -> socket.socket:
    """Connect to the first of the host's addresses that takes us; names are looked up anew each time."""
    try:
        async with asyncio.timeout(time_out):
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise ClamdError(f"its name was not resolved within {time_out:g} seconds") from None
    except UnicodeError:
        raise ClamdError("that is no host name") from None
    except OSError as error:
        raise ClamdError(why(error)) from None
    fault = ClamdError("its name has no address")
    for family, kind, protocol, _, name in found:
        try:
            # One address that does not answer must leave time for the next.
            return await _connect_to(name, family, kind, protocol, time_out / len(found))
        except ClamdError as error:
            fault = error
    raise fault


async def _connect_to(name: tuple[Any, ...], family: int, kind: int, protocol: int, limit: float) -> socket.socket:
    sock = _open_socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.timeout(limit):
            await asyncio.get_running_loop().sock_connect(sock, name)
    except BaseException as error:
        sock.close()
        if isinstance(error, TimeoutError):
            raise ClamdError(f"no connection within {limit:g} seconds") from None
        if isinstance(error, OSError):
            raise ClamdError(why(error)) from None
        raise
    return sock


def _open_socket(family: int, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
    try:
        return socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
    except OSError as error:
        raise ClamdError(why(error)) from None
