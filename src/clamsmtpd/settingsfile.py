"""The settings file as text: read whole or refused, whatever lies at its path."""

from __future__ import annotations

import os
import stat

__all__ = ["read_settings_file"]

#: Octets of a settings file. One with every setting and a thousand of the repeatable ones has a tenth of it.
SIZE_MAX = 1024 * 1024


def read_settings_file(path: str) -> tuple[str, str | None]:
    """Return the text, and a warning if others may change it.

    Octets that are no UTF-8 are surrogates; a byte order mark is left away. Only a plain file will do, and /dev/null
    for none: a pipe may never end or come in parts, and is empty when the settings are read again. Raises OSError, and
    ValueError for what is no such file.
    """
    with open(path, "rb", opener=_open) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) and not os.path.samestat(status, os.stat(os.devnull)):
            raise ValueError("it is no plain file")
        octets = file.read(SIZE_MAX + 1)
    if len(octets) > SIZE_MAX:
        raise ValueError(f"it is larger than {SIZE_MAX} octets")
    warning = None
    # Whoever can write VirusAction has a command run.
    if stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IWOTH:
        warning = f"{path}: everybody may write to it; take that right away (chmod o-w)"
    return octets.decode("utf-8-sig", "surrogateescape"), warning


def _open(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a FIFO would wait for its other end.
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
