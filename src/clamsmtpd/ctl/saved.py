"""Messages that lie in files: single ones, folders of them, Maildirs, and mboxes (RFC 4155)."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

__all__ = ["STANDARD_INPUT", "Saved", "find", "octets_in", "pieces"]

#: What standard input is called among files.
STANDARD_INPUT = "-"

#: Octets that are read at once.
PIECE = 65536

_LINE_END = re.compile(rb"\r?\n")

#: The line in front of each message of an mbox: it holds a time. A line of text that merely begins with From does not.
_SEPARATOR = re.compile(rb"From \S*.*[0-9]:[0-9]{2}")

_MAILDIR = frozenset({"cur", "new", "tmp"})


@dataclass(frozen=True, slots=True)
class Saved:
    """A message in a file: its octets from ``start`` to ``end``, None for all that there are.

    ``name`` is what it is called in what is told; with a ``fault`` it cannot be read, and that is why.
    """

    name: str
    path: str
    start: int = 0
    end: int | None = None
    fault: str = ""

    @property
    def octets(self) -> int:
        """How many there are, as far as that can be told."""
        return _size(self.path) if self.end is None else self.end - self.start


def find(files: Sequence[str]) -> Iterator[Saved]:
    """Yield the messages in files and folders, one by one: there may be any number of them.

    A folder is gone through with all that are in it. In a Maildir, tmp holds what is not there yet. Hidden files,
    symbolic links and what is no plain file are passed over in a folder, and taken where they are named.
    """
    for file in files:
        if file == STANDARD_INPUT or not os.path.isdir(file):
            yield from _messages_of(file)
        else:
            yield from _walk(file)


def octets_in(files: Sequence[str]) -> int:
    """Return how many octets :func:`find` will go through in these files and folders, without opening any."""
    return sum(_size(path) for file in files for path in (_files_in(file) if os.path.isdir(file) else (file,)))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _walk(folder: str) -> Iterator[Saved]:
    closed: list[OSError] = []
    for path in _files_in(folder, closed):
        yield from _messages_of(path)
    for error in closed:
        yield Saved(str(error.filename), str(error.filename), fault=error.strerror or str(error))


def _files_in(folder: str, closed: list[OSError] | None = None) -> Iterator[str]:
    """Yield the paths of what may be messages; folders that cannot be read are put to those that are ``closed``."""
    for place, folders, names in os.walk(folder, onerror=None if closed is None else closed.append):
        folders.sort()
        if set(folders) >= _MAILDIR:
            # Beside these lie only indexes of a server's own; the Maildirs within are folders of this one.
            folders.remove("tmp")
            continue
        for name in sorted(names):
            path = os.path.join(place, name)
            if not name.startswith(".") and _is_plain(path):
                yield path


def _is_plain(path: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        # What has just been moved, as a reader does from new to cur.
        return False


def _messages_of(path: str) -> Iterator[Saved]:
    """Yield the one message of a file, or all of an mbox."""
    # What cannot be opened is told by whoever reads it, and a pipe cannot be read twice.
    if path != STANDARD_INPUT and os.path.isfile(path):
        try:
            with open(path, "rb") as file:
                if _SEPARATOR.match(file.readline(PIECE)):
                    yield from _split(path, file)
                    return
        except OSError as error:
            yield Saved(path, path, fault=error.strerror or str(error))
            return
    yield Saved(path, path)


def _split(path: str, file: BinaryIO) -> Iterator[Saved]:
    """Yield the messages of an mbox, behind whose first line ``file`` stands."""
    number, start = 1, file.tell()
    # The empty line in front of a separator belongs to that.
    at, blank = start, 0
    whole = True
    while line := file.readline(PIECE):
        if whole and blank and _SEPARATOR.match(line):
            yield Saved(f"{path}#{number}", path, start, at - blank)
            number, start = number + 1, at + len(line)
        blank = len(line) if whole and line in (b"\n", b"\r\n") else 0
        whole = line.endswith(b"\n")
        at += len(line)
    yield Saved(f"{path}#{number}", path, start, max(at - blank, start))


def pieces(saved: Saved) -> Iterator[bytes]:
    """Yield the text, with line ends as mail has them: LF alone is taken for CRLF. Raises OSError."""
    if saved.path == STANDARD_INPUT:
        yield from _with_line_ends(_read(sys.stdin.buffer, None))
        return
    with open(saved.path, "rb") as file:
        if saved.start:
            file.seek(saved.start)
        yield from _with_line_ends(_read(file, None if saved.end is None else saved.end - saved.start))


def _read(file: BinaryIO, most: int | None) -> Iterator[bytes]:
    while piece := file.read(PIECE if most is None else min(PIECE, most)):
        if most is not None:
            most -= len(piece)
        yield piece


def _with_line_ends(read: Iterator[bytes]) -> Iterator[bytes]:
    held = b""
    for piece in read:
        data = held + piece
        # A CR may have its LF in the next piece.
        held = data[-1:] if data.endswith(b"\r") else b""
        yield _LINE_END.sub(b"\r\n", data[: len(data) - len(held)])
    if held:
        yield held
