"""The pid file: written by root, in a directory that may not be root's alone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat

from clamsmtpd.values import StartError

__all__ = ["PidFile"]


class PidFile:
    """A file with our process id, locked for as long as we run, so that a second daemon is noticed."""

    def __init__(self, path: str) -> None:
        """Create the file, or take over one that a dead daemon left. Raises StartError."""
        self._path = path
        # O_NOFOLLOW: whoever may write to the directory could otherwise have root write anywhere.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags, 0o644)
        except OSError as error:
            why = "it is a symbolic link" if os.path.islink(path) else error.strerror
            raise StartError(f"PidFile: cannot write {path}: {why}; give a path in a directory of its own") from None
        try:
            self._take()
        except BaseException:
            os.close(self._fd)
            raise

    def _take(self) -> None:
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise StartError(f"PidFile: {self._path} is no plain file with one name; remove it")
        if not self._is_trusted(status):
            raise StartError(f"PidFile: {self._path} belongs to user {status.st_uid}; remove it")
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = os.read(self._fd, 20).decode("ascii", "replace").strip()
            raise StartError(f"PidFile: {self._path}: clamsmtpd is already running as process {pid}") from None
        if not self._is_there():
            # Its last owner removed it between our opening and our locking it.
            raise StartError(f"PidFile: {self._path}: another clamsmtpd was just stopping; start again")
        try:
            os.fchmod(self._fd, 0o644)
            os.ftruncate(self._fd, 0)
            os.write(self._fd, b"%d\n" % os.getpid())
        except OSError as error:
            raise StartError(f"PidFile: cannot write {self._path}: {error.strerror}") from None

    def _is_trusted(self, status: os.stat_result) -> bool:
        """Whether nobody has made the file who could name another process in it, for root to kill.

        The owner of the directory can do so in any case. A daemon that became that user may have left it.
        """
        if status.st_uid in (0, os.geteuid()):
            return True
        directory = os.stat(os.path.dirname(self._path) or ".")
        return directory.st_uid == status.st_uid

    def remove(self) -> None:
        """Remove the file if it is still ours; empty it where its directory does not let us remove it."""
        with contextlib.suppress(OSError):
            if self._is_there():
                try:
                    os.unlink(self._path)
                except OSError:
                    os.ftruncate(self._fd, 0)
        os.close(self._fd)

    def let_go(self) -> None:
        """Leave the file to the process that we were forked from; it stays locked for as long as that one runs."""
        os.close(self._fd)

    def _is_there(self) -> bool:
        """Whether our file is still the one at its path."""
        try:
            return os.path.samestat(os.fstat(self._fd), os.lstat(self._path))
        except FileNotFoundError:
            return False
