"""Becoming an ordinary user for good, and the limit of open files."""

from __future__ import annotations

import os
import pwd
import resource

from clamsmtpd.values import StartError

__all__ = ["become", "find_user", "raise_descriptor_limit"]

#: Descriptors of a session: client, next hop, spool, clamd.
PER_SESSION = 4

#: Descriptors for everything else: listeners, log, pid file, event loop, hooks.
RESERVE = 128


def find_user(name: str) -> pwd.struct_passwd:
    """Look the user up by name or number.

    Raises StartError when there is none, or when we can neither become that user nor are it already, as
    under a service manager that has the same user in its own settings.
    """
    try:
        user = pwd.getpwuid(int(name)) if name.isascii() and name.isdigit() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        raise StartError(f"User: there is no user {name}; give one that exists") from None
    if os.geteuid() not in (0, user.pw_uid):
        raise StartError(f"User: only root can become {name}; start the daemon as root, or leave User out")
    return user


def become(user: pwd.struct_passwd) -> None:
    """Give up root for ``user``, with that user's groups and no others.

    The order is what makes it complete: whoever is no longer root cannot change groups. Raises StartError when
    anything of root is left.
    """
    try:
        os.initgroups(user.pw_name, user.pw_gid)
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    except OSError as error:
        raise StartError(f"User: cannot become {user.pw_name}: {error.strerror}") from None
    if user.pw_uid != 0:
        _check_no_way_back(user)


def _check_no_way_back(user: pwd.struct_passwd) -> None:
    try:
        os.setuid(0)
    except PermissionError:
        back = False
    else:
        back = True
    ids_left = set(os.getresuid()) != {user.pw_uid} or set(os.getresgid()) != {user.pw_gid}
    allowed = set(os.getgrouplist(user.pw_name, user.pw_gid))
    if back or ids_left or not set(os.getgroups()) <= allowed:
        raise StartError(f"User: became {user.pw_name}, but rights of root are left")


def raise_descriptor_limit(max_connections: int) -> str | None:
    """Raise the limit of open files to what ``max_connections`` sessions need; return a warning if it stays short."""
    needed = PER_SESSION * max_connections + RESERVE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return None
    wanted_hard = hard if hard == resource.RLIM_INFINITY else max(hard, needed)
    for limits in ((needed, wanted_hard), (hard, hard)):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            break
        except (OSError, ValueError):
            continue
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed:
        return None
    fit = max(1, (soft - RESERVE) // PER_SESSION)
    return f"MaxConnections: {max_connections} needs {needed} open files, the limit is {soft}; {fit} would fit"
