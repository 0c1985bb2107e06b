"""Files of ours that tell whether a scanner sees: a clean one, and the test file that every scanner knows."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator

from clamsmtpd.clamd.early import Follower

__all__ = ["CLEAN", "EICAR", "Sample"]

#: A message in which nobody may find anything.
CLEAN = b"Subject: canary\r\n\r\nclamsmtpd asks whether clamd calls this clean.\r\n"

#: The test file of eicar.org. In two halves, or a scanner would take the program away.
EICAR = rb"X5O!P%@AP[4\PZX54(P^)7CC)7}" + rb"$EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"

# What clamd's log shows.
_NAME = "clamsmtpd-canary"

_ZEROS = bytes(262144)


class Sample:
    """A file that begins with ``text`` and has zeros behind it, ``size`` octets in all; to be scanned as messages are.

    The zeros are a hole, which takes no memory, neither here nor in clamd, who maps it. For a clamd that opens files
    itself there is one in ``directory``, or in the system's own for such.
    """

    __slots__ = ("_descriptor", "_directory", "_path", "_text", "size")

    def __init__(self, text: bytes, size: int = 0, *, directory: str | None = None) -> None:
        self.size = max(size, len(text))
        self._text = text
        self._directory = directory
        self._descriptor = -1
        self._path = ""

    def descriptor(self) -> int:
        """Return an open file with the text, at its start; it stays the sample's. Raises OSError."""
        if self._descriptor < 0:
            try:
                self._descriptor = os.memfd_create(_NAME)
            except OSError:
                # Some sandboxes forbid it.
                with tempfile.TemporaryFile(dir=self._directory) as file:
                    self._descriptor = os.dup(file.fileno())
            self._fill(self._descriptor)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        return self._descriptor

    def pieces(self) -> Iterator[bytes]:
        """Yield the text in pieces."""
        yield self._text
        left = self.size - len(self._text)
        while left > 0:
            yield _ZEROS[:left]
            left -= len(_ZEROS)

    def path(self) -> str:
        """Return the name of a file with the text. Raises OSError."""
        if not self._path:
            descriptor, self._path = tempfile.mkstemp(prefix="clamsmtpd.", dir=self._directory)
            try:
                self._fill(descriptor)
                # Nothing in it is secret, and clamd is another user.
                os.fchmod(descriptor, 0o644)
            finally:
                os.close(descriptor)
        return self._path

    def follow(self, on_growth: Callable[[], None]) -> Follower:
        """Fail: it is whole from the beginning."""
        raise NotImplementedError

    def close(self) -> None:
        """Forget the files."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._path:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            self._path = ""

    def _fill(self, descriptor: int) -> None:
        os.pwrite(descriptor, self._text, 0)
        os.ftruncate(descriptor, self.size)
