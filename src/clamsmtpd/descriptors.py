"""The descriptors that a new process has from whoever started it: which of them it keeps."""

from __future__ import annotations

import contextlib
import os
import sys

__all__ = ["shed"]

#: Standard input, output and error.
_STANDARD = 3

#: Where the descriptors of a service manager begin (sd_listen_fds(3)).
_LISTEN_START = 3


def shed() -> None:
    """Close what a shell or a cron had open when it started us, so that neither we nor a worker holds on to it.

    Kept are standard input, output and error, and what a service manager has given us. All that we have opened
    ourselves up to now has the flag close-on-exec (PEP 446), and what came through exec cannot have it: that tells them
    apart. Where one of the first three is missing, /dev/null takes its place, or the next file opened would: a listener
    or the pid file could be what somebody writes an error to.
    """
    with contextlib.suppress(OSError):
        while (null := os.open(os.devnull, os.O_RDWR)) < _STANDARD:
            os.set_inheritable(null, True)  # noqa: FBT003
        os.close(null)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    given = range(_LISTEN_START, _LISTEN_START + _given())
    for descriptor in _open_descriptors():
        if descriptor >= _STANDARD and descriptor not in given:
            with contextlib.suppress(OSError):
                if os.get_inheritable(descriptor):
                    os.close(descriptor)


def _given() -> int:
    """Return how many descriptors a service manager has given us; it says for whom they are."""
    try:
        return int(os.environ["LISTEN_FDS"]) if int(os.environ["LISTEN_PID"]) == os.getpid() else 0
    except (KeyError, ValueError):
        return 0


def _open_descriptors() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        # No /proc here, as in many a chroot. There may be a million; those that a shell has open are the first.
        return list(range(_STANDARD, min(os.sysconf("SC_OPEN_MAX"), 4096)))
