"""The rights of the daemon's user: tried on in a process of their own, and who lacks which on the way to a socket."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import stat
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from clamsmtpd.privileges import become, find_user
from clamsmtpd.values import StartError

__all__ = ["Access", "Barrier", "Entry", "as_user", "barrier", "entries", "group_name", "user_name"]

_READ = 65536


def as_user(name: str | None, function: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever JSON can say
    """Return what ``function`` returns when the user ``name`` calls it, as JSON tells it.

    As root alone can become somebody, everybody else calls it as who they are, as root does where there is no such
    user or no name.
    """
    if name is None or os.geteuid() != 0:
        return function()
    try:
        user = find_user(name)
    except StartError:
        return function()
    receive, send = os.pipe()
    # Rights are those of a process: in one of its own they can be tried on.
    if child := os.fork():
        os.close(send)
        with os.fdopen(receive, "rb") as told:
            text = told.read()
        os.waitpid(child, 0)
        return json.loads(text) if text else function()
    try:
        become(user)
        with os.fdopen(send, "wb") as answer:
            answer.write(json.dumps(function()).encode())
    except BaseException:  # noqa: BLE001 - whatever it is, two processes must not go on from here
        os._exit(1)
    os._exit(0)


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
