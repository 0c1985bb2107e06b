"""The way to clamd: a connected socket, or the reason why there is none."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import Any

from clamsmtpd.clamd.allowance import seconds
from clamsmtpd.clamd.session import why
from clamsmtpd.values import Address, TcpAddress, UnixAddress

__all__ = ["ClamdError", "connect"]

# Seconds between two tries when clamd's listen queue is full, at first and at most: many may be trying.
_RETRY_FIRST, _RETRY_LAST = 0.02, 0.25


class ClamdError(Exception):
    """There is no connection; ``str()`` says why.

    ``timed_out``: because its time was over. ``ours``: because there is no descriptor for one, which is not clamd's
    fault.
    """

    def __init__(self, reason: str, *, timed_out: bool = False, ours: bool = False) -> None:
        super().__init__(reason)
        self.timed_out = timed_out
        self.ours = ours


async def connect(address: Address, limit: float) -> socket.socket:
    """Return a new connection to the clamd at ``address``, which does not block.

    That may take ``limit`` seconds. Raises ClamdError.
    """
    if isinstance(address, UnixAddress):
        return await _connect_locally(address, limit)
    return await _connect_by_name(address, limit)


async def _connect_locally(address: UnixAddress, limit: float) -> socket.socket:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit
    pause = _RETRY_FIRST
    sock = _open_socket(socket.AF_UNIX)
    try:
        # For a unix socket, EAGAIN is no connection under way but a full queue (connect(2)).
        while (code := sock.connect_ex(address.path)) == errno.EAGAIN:
            if (left := deadline - loop.time()) <= 0:
                raise ClamdError("it accepts no connections, and its queue of them is full", timed_out=True)
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


async def _connect_by_name(address: TcpAddress, limit: float) -> socket.socket:
    """Connect to the first of the host's addresses that takes us; names are looked up anew each time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit
    try:
        async with asyncio.timeout_at(deadline):
            found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise ClamdError(f"its name was not resolved within {seconds(limit)}", timed_out=True) from None
    except UnicodeError:
        raise ClamdError("that is no host name") from None
    except OSError as error:
        raise ClamdError(why(error)) from None
    fault = ClamdError("its name has no address")
    for tried, (family, kind, protocol, _, name) in enumerate(found):
        # One address that does not answer must leave time for the next.
        share = max(deadline - loop.time(), 0.0) / (len(found) - tried)
        try:
            return await _connect_to(name, family, kind, protocol, share)
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
            raise ClamdError(f"no connection within {seconds(limit)}", timed_out=True) from None
        if isinstance(error, OSError):
            raise ClamdError(why(error)) from None
        raise
    return sock


def _open_socket(family: int, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
    try:
        return socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
    except OSError as error:
        raise ClamdError(why(error), ours=True) from None
