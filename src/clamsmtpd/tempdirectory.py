"""TempDirectory, before any mail goes there: whether we can write to it, and who else can."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from clamsmtpd.values import StartError

__all__ = ["check_temp_directory"]

#: Symbolic links on one way; more is a circle (path_resolution(7)).
_LINKS_MAX = 40


def check_temp_directory(path: str) -> list[str]:
    """Find out now, as the user we are, what would otherwise fail every message or give it away; return warnings.

    Whoever may rename or remove what others have in a directory can put a text of his own in the place of one that
    clamd is about to scan by its name, or of one in quarantine. So no directory on the way that all may write to can
    lack the sticky bit, and what lies in one that has it must be root's or ours: anybody could have made it. Beyond
    that, who owns a directory was for its owner to say, from root on; a symbolic link is as good as the directory that
    it is in. Raises StartError.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise StartError(f"TempDirectory: {path}: {error.strerror}; give a directory that exists") from None
    if not stat.S_ISDIR(status.st_mode):
        raise StartError(f"TempDirectory: {path} is no directory; give one")
    if not os.access(path, os.W_OK | os.X_OK):
        raise StartError(f"TempDirectory: cannot write to {path}; give a directory that the daemon's user owns")
    for directory, entry in _steps(path):
        _check_step(path, directory, entry)
    if _open_to_all(status):
        raise StartError(
            f"TempDirectory: others may remove and replace what is in {path}; take their right to write away, "
            "or set the sticky bit (chmod o-w, or chmod +t)"
        )
    return _warn_of_group(path, status)


def _steps(path: str) -> Iterator[tuple[str, str]]:
    """Yield each directory that is gone through, with the entry that is looked for in it; links are followed."""
    # The working directory of a daemon in the foreground may be gone, which is no matter to a full path.
    directory, entries = "/", _names(path if path.startswith("/") else os.path.join(os.getcwd(), path))
    links = 0
    while entries:
        name = entries.pop()
        if name == "..":
            directory = os.path.dirname(directory)
            continue
        entry = os.path.join(directory, name)
        yield directory, entry
        try:
            target = os.readlink(entry)
        except OSError:
            directory = entry
            continue
        links += 1
        if links > _LINKS_MAX:
            return
        entries += _names(target)
        if target.startswith("/"):
            directory = "/"


def _names(path: str) -> list[str]:
    """Return the parts of a path, the first one last."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _check_step(path: str, directory: str, entry: str) -> None:
    try:
        outer, inner = os.lstat(directory), os.lstat(entry)
    except OSError as error:
        raise StartError(f"TempDirectory: {path}: {error.strerror}; give a directory that exists") from None
    if _open_to_all(outer):
        raise StartError(
            f"TempDirectory: {path}: others may replace {entry}, as {directory} has no sticky bit; "
            "give a directory whose way there is safe"
        )
    if outer.st_mode & stat.S_IWOTH and inner.st_uid not in (0, os.geteuid()):
        raise StartError(
            f"TempDirectory: {path}: {entry} belongs to user {inner.st_uid}, and anybody could have made it there; "
            "give a directory that root or the daemon's user owns"
        )


def _open_to_all(status: os.stat_result) -> bool:
    """Whether all may remove what others have there. An ACL for many is beyond what we look for (acl(5))."""
    return status.st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH


def _warn_of_group(path: str, status: os.stat_result) -> list[str]:
    """Warn of a group that is not ours and may do the same.

    It is not refused: somebody has put just these users in it, and clamd's own group is the one that is there most.
    A group of ours needs no word: it is how the two share the directory.
    """
    if status.st_mode & (stat.S_IWGRP | stat.S_ISVTX) != stat.S_IWGRP:
        return []
    if status.st_gid in {0, os.getegid(), *os.getgroups()}:
        return []
    return [f"TempDirectory: members of group {status.st_gid} may remove and replace what is in {path}"]
