"""Becoming an ordinary user for good, and limits: what the processes that serve may do and have."""

from __future__ import annotations

import os
import pwd
import re
import resource
import struct

from clamsmtpd.values import StartError

__all__ = [
    "PER_SESSION",
    "RESERVE",
    "become",
    "drop_capabilities",
    "find_user",
    "forbid_core_dumps",
    "look_up",
    "raise_descriptor_limit",
]

#: Descriptors of a session: client, next hop, spool, clamd.
PER_SESSION = 4

#: Descriptors for everything else: listeners, log, pid file, event loop, hooks.
RESERVE = 128

# linux/capability.h: the head and the data of capset(2), of which the latter says "none".
_CAPABILITY_VERSION_3 = 0x20080522
_NO_CAPABILITIES = bytes(24)

# The bounding set, CapBnd, is no right but a limit to those that a program with rights of its own may get.
_CAPABILITIES = re.compile(rb"^Cap(?:Inh|Prm|Eff|Amb):\s*([0-9a-f]+)$", re.MULTILINE)


def find_user(name: str) -> pwd.struct_passwd:
    """Look the user up by name or number.

    Raises StartError when there is none, or when we can neither become that user nor are it already, as
    under a service manager that has the same user in its own settings.
    """
    user = look_up(name)
    if os.geteuid() not in (0, user.pw_uid):
        raise StartError(f"User: only root can become {name}; start the daemon as root, or leave User out")
    return user


def look_up(name: str) -> pwd.struct_passwd:
    """Look the user up by name or number, whoever we are. Raises StartError when there is none."""
    try:
        return pwd.getpwuid(int(name)) if name.isascii() and name.isdigit() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        raise StartError(f"User: there is no user {name}; give one that exists") from None


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


def drop_capabilities() -> None:
    """Give up the rights that a service manager has lent to a user who is not root.

    Such is the right to bind a port below 1024 (AmbientCapabilities in systemd.exec(5)): it was for the listeners,
    and hooks would inherit it. Root's own are given up with root. Raises StartError when one is left.

    Not set is no_new_privs (prctl(2)), which would be for ever and for every hook: one that calls sudo or sendmail
    works, as it always has. A unit whose hooks do not need that says NoNewPrivileges=yes.
    """
    if os.geteuid() == 0 or _capabilities() == 0:
        return
    # Hardly anybody has any; the others need not have this in their memory.
    import ctypes  # noqa: PLC0415

    # The inherited ones are a part of the permitted ones, and the ambient ones of both: all of them go.
    ctypes.CDLL(None).capset(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), _NO_CAPABILITIES)
    if _capabilities():
        raise StartError("rights of root are left that cannot be given up; start the daemon without them")


def _capabilities() -> int:
    """Return the capabilities that this process has or can have again (capabilities(7)), as bits."""
    found = 0
    try:
        # As octets: a codec that was not used before may lie where this user cannot read.
        with open("/proc/self/status", "rb") as file:
            for digits in _CAPABILITIES.findall(file.read()):
                found |= int(digits, 16)
    except OSError:
        # Nobody can tell here; no service manager runs without /proc.
        return 0
    return found


def forbid_core_dumps() -> None:
    """Leave no memory with mail in it on the disk, should this process crash.

    The hard limit stays, for whoever looks for the fault of a crash: prlimit(1) raises the soft one again. What the
    kernel does by itself for a process that was root, to keep others of its user from reading its memory
    (PR_SET_DUMPABLE, prctl(2)), is not asked for here: strace and gdb of the daemon's user would find nothing any more.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


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
