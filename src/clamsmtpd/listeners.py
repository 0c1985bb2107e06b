"""The sockets that clients connect to."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from clamsmtpd.activation import bound_to
from clamsmtpd.values import Address, Listen, StartError, TcpAddress, UnixAddress

__all__ = ["Listener", "find_owner", "listen"]

#: Connections that may wait to be accepted; the kernel caps it at net.core.somaxconn. With the 5 of old, 50
#: clients at once lose seconds in repeated SYNs.
BACKLOG = 4096


_HINTS = {
    errno.EADDRINUSE: "is another clamsmtpd running, or is it in another Listen line?",
    errno.EPERM: "only root can give a socket away; start the daemon as root, or leave owner= out",
    errno.EACCES: "only root can do that; start the daemon as root, or give another address",
    errno.ENOENT: "give a path in a directory that exists",
}

#: A host name may have an address of a family that is switched off here, as ``localhost`` in many a container has.
_NOT_HERE = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})

_EVERYWHERE = frozenset({"::", "0.0.0.0"})

#: To chown(2) the highest number of 32 bits, and -1, mean "as it is".
_ID_MAX = 2**32 - 2
_AS_IT_IS = -1


@dataclass(frozen=True, slots=True)
class Listener:
    """A bound, listening socket, and the Listen line that it is for.

    ``passed``: it was bound by somebody else, and goes on when we stop.
    """

    socket: socket.socket
    listen: Listen
    passed: bool = False

    def remove(self) -> None:
        """Remove the name of a unix socket that is ours. Raises OSError."""
        if isinstance(self.listen.address, UnixAddress) and not self.passed:
            os.unlink(self.listen.address.path)


def listen(
    places: Sequence[Listen], passed: Sequence[socket.socket] = (), *, setting: str = "Listen"
) -> list[Listener]:
    """Return the sockets for all ``places``: one for each, or one for each address of a host name.

    Where one of those that were ``passed`` is bound to the address of a place, it is that place's, and nothing more is
    bound for it. The others speak plain SMTP. ``setting`` is where the places come from. Raises StartError; then none
    is left open.
    """
    left = list(passed)
    listeners: list[Listener] = []
    try:
        for place in places:
            ours = _find(place, left)
            if ours:
                left = [sock for sock in left if sock not in ours]
                listeners += [Listener(sock, place, passed=True) for sock in ours]
            else:
                listeners += [Listener(sock, place) for sock in _listen(place, setting)]
    except StartError:
        for listener in listeners:
            with contextlib.suppress(OSError):
                listener.remove()
            listener.socket.close()
        for sock in left:
            sock.close()
        raise
    return [*listeners, *(Listener(sock, Listen(bound_to(sock)), passed=True) for sock in left)]


def _find(place: Listen, passed: Sequence[socket.socket]) -> list[socket.socket]:
    """Return those of the sockets passed to us that a Listen line is about."""
    address = place.address
    if isinstance(address, UnixAddress):
        return [sock for sock in passed if _is_same(bound_to(sock), address)]
    there = [sock for sock in passed if sock.family != socket.AF_UNIX and sock.getsockname()[1] == address.port]
    hosts = _EVERYWHERE if address.host is None else _resolve(address.host) if there else frozenset()
    return [sock for sock in there if sock.getsockname()[0] in hosts or ("0.0.0.0" in hosts and _takes_both(sock))]


def _takes_both(sock: socket.socket) -> bool:
    """Whether a socket takes IPv6 and IPv4 clients at all addresses: nothing else can be bound to its port then."""
    if sock.family != socket.AF_INET6 or sock.getsockname()[0] != "::":
        return False
    return not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def _is_same(one: Address, other: UnixAddress) -> bool:
    """Whether both name the same unix socket, be it by way of a symbolic link such as /var/run."""
    if not isinstance(one, UnixAddress):
        return False
    with contextlib.suppress(OSError):
        return one == other or os.path.samefile(one.path, other.path)
    return False


def _resolve(host: str) -> frozenset[str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        # The try to listen there will say so.
        return frozenset()
    return frozenset(str(name[0]) for _, _, _, _, name in found)


def _listen(place: Listen, setting: str) -> list[socket.socket]:
    address = place.address
    try:
        if isinstance(address, UnixAddress):
            return [_listen_unix(address.path, place, setting)]
        return _listen_tcp(address)
    except socket.gaierror as error:
        raise StartError(f"{setting}: {address}: {error.strerror}; give an address of this host") from None
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "give an address of this host")
        # Not its own text: create_server() adds the address to it in its own words.
        why = os.strerror(error.errno or 0)
        raise StartError(f"{setting}: cannot listen on {address}: {why}; {hint}") from None


def _listen_tcp(address: TcpAddress) -> list[socket.socket]:
    if address.host is None:
        # One IPv6 socket takes IPv4 as well. Without IPv6 in the kernel there is IPv4 alone.
        if socket.has_dualstack_ipv6():
            return [
                socket.create_server(("::", address.port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)
            ]
        return [socket.create_server(("", address.port), backlog=BACKLOG)]
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    not_here: OSError | None = None
    for family, _, _, _, name in dict.fromkeys(found):
        try:
            sockets.append(socket.create_server(name, family=family, backlog=BACKLOG))
        except OSError as error:
            if error.errno in _NOT_HERE:
                not_here = error
                continue
            for sock in sockets:
                sock.close()
            raise
    if not sockets and not_here is not None:
        raise not_here
    return sockets


def _listen_unix(path: str, place: Listen, setting: str) -> socket.socket:
    user, group = find_owner(place, setting)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        # The MTA that connects runs as another user; who may do so is for the directory's rights to say. The socket
        # has its mode before its name, and bind(2) takes the umask away: chmod(2) afterwards would follow a link that
        # whoever may write to the directory had put in its place.
        os.fchmod(sock.fileno(), 0o666 if place.mode is None else place.mode)
        mask = os.umask(0)
        try:
            sock.bind(path)
        finally:
            os.umask(mask)
        try:
            if (user, group) != (_AS_IT_IS, _AS_IT_IS):
                # Whoever may write to the directory could have put a link to a file of root in its place.
                os.chown(path, user, group, follow_symlinks=False)
            # Only now: before, nobody can connect whom the mode would have kept out.
            sock.listen(BACKLOG)
        except OSError:
            os.unlink(path)
            raise
    except OSError:
        sock.close()
        raise
    return sock


def find_owner(place: Listen, setting: str) -> tuple[int, int]:
    """Return the numbers of user and group that a unix socket is to have. Raises StartError."""
    user = group = _AS_IT_IS
    if place.owner is not None:
        try:
            user = _number(place.owner) if _is_number(place.owner) else pwd.getpwnam(place.owner).pw_uid
        except KeyError:
            raise StartError(
                f"{setting}: {place.address}: there is no user {place.owner}; give one that exists"
            ) from None
    if place.group is not None:
        try:
            group = _number(place.group) if _is_number(place.group) else grp.getgrnam(place.group).gr_gid
        except KeyError:
            raise StartError(
                f"{setting}: {place.address}: there is no group {place.group}; give one that exists"
            ) from None
    return user, group


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _number(digits: str) -> int:
    if len(digits) <= len(str(_ID_MAX)) and int(digits) <= _ID_MAX:
        return int(digits)
    raise KeyError(digits)


def _remove_stale(path: str) -> None:
    """Remove the socket of a daemon that is dead: one that nobody listens on. Raises OSError if somebody does."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A daemon that does not accept at the moment, its queue full, would keep us waiting here for ever.
        probe.settimeout(0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
