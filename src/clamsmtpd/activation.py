"""Sockets that a service manager has bound for us, and that outlive us (sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

from clamsmtpd.values import Address, StartError, TcpAddress, UnixAddress

__all__ = ["bound_to", "passed_sockets"]

_FIRST = 3

_FAMILIES = frozenset({socket.AF_INET, socket.AF_INET6, socket.AF_UNIX})


def passed_sockets(environment: MutableMapping[str, str]) -> list[socket.socket]:
    """Take over the sockets that were passed to this process, and the variables that say so out of ``environment``.

    Raises StartError when one of them is no stream socket that listens.
    """
    pid, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    # Whoever started us may have inherited them, and have sockets of its own there.
    if pid != str(os.getpid()) or not (count.isascii() and count.isdigit()):
        return []
    sockets: list[socket.socket] = []
    try:
        # Not all at once: those before one that is none are to be closed.
        sockets.extend(map(_take, range(_FIRST, _FIRST + int(count))))
    except StartError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _take(descriptor: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise StartError(f"LISTEN_FDS: descriptor {descriptor} is no socket: {error.strerror}") from None
    sock.set_inheritable(False)
    listens = sock.family in _FAMILIES and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if sock.type != socket.SOCK_STREAM or not listens:
        sock.close()
        raise StartError(
            f"LISTEN_FDS: descriptor {descriptor} is no stream socket that listens; "
            "write ListenStream= and Accept=no in the socket unit"
        )
    return sock


def bound_to(sock: socket.socket) -> Address:
    """Return where a socket listens, as a Listen line would say it; ``@`` for an abstract unix socket."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return UnixAddress(name if isinstance(name, str) else "@" + name[1:].decode("utf-8", "backslashreplace"))
    host, port = name[:2]
    return TcpAddress(None if host in ("::", "0.0.0.0") else host, port)
