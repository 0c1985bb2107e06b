"""Who lacks which right on the way to a socket."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Access", "Barrier", "Entry", "barrier", "entries", "group_name", "user_name"]


class Entry(NamedTuple):
    """A file or directory on a way: who may do what with it."""

    path: str
    uid: int
    gid: int
    mode: int


class Barrier(NamedTuple):
    """Where a user is stopped on the way to a socket; ``needed`` is ``x`` to go through, ``w`` to connect."""

    entry: Entry
    needed: str

    @property
    def group_may(self) -> bool:
        """Whether members of the entry's group pass."""
        bit = stat.S_IXGRP if self.needed == "x" else stat.S_IWGRP
        return bool(self.entry.mode & bit)


class Access(NamedTuple):
    """Who the daemon is, and what stops that user on the way to a socket, as far as modes tell."""

    who: str
    stopped: Barrier | None = None


def entries(path: str) -> list[Entry]:
    """Return what is on the way to ``path``, links followed, as far as we may see it; it comes last."""
    return list(_look(os.path.realpath(path)))


def _look(path: str) -> Iterator[Entry]:
    names = path.strip("/").split("/")
    for count in range(len(names) + 1):
        step = "/" + "/".join(names[:count])
        with contextlib.suppress(OSError):
            found = os.stat(step)
            yield Entry(step, found.st_uid, found.st_gid, found.st_mode)


def barrier(way: list[Entry], uid: int, groups: frozenset[int]) -> Barrier | None:
    """Return what stops a user with these groups on the way to a socket (path_resolution(7), unix(7)).

    None if nothing does, as far as modes tell: access control lists and security modules are not looked at.
    """
    for entry in way:
        needed = "x" if stat.S_ISDIR(entry.mode) else "w"
        bits = 1 if needed == "x" else 2
        shift = 6 if entry.uid == uid else 3 if entry.gid in groups else 0
        if uid != 0 and not entry.mode >> shift & bits:
            return Barrier(entry, needed)
    return None


def user_name(uid: int) -> str:
    """Return a user's name, or the number of one who has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    """Return a group's name, or the number of one that has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
