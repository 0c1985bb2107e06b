"""Where a message waits for its verdict: in memory while it is small, in a file without a name when it is not."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar, TypeVar

from clamsmtpd.smtp.body import Unstuffing, unstuff
from clamsmtpd.values import Insertion

__all__ = ["MEMORY_MAX", "TOTAL_MEMORY_MAX", "FileRange", "Follower", "Share", "Spool"]

#: Octets of a message that stay in memory. By measurement: more of them cost less in a file, from which they need not
#: be read to be sent, and where the kernel has larger pages for them than in a file in memory.
MEMORY_MAX = 65536

#: Octets of all messages together that stay in memory. With more on their way, each goes to a file at once. As much
#: again may be in files in memory, for messages that clamd has now.
TOTAL_MEMORY_MAX = 64 * 1024 * 1024

#: Octets read from a file at once.
_PIECE = 262144

# A client that sends octet by octet would otherwise have an object of Python for each.
_CHUNKS_MAX = 512

_OWN_DESCRIPTORS = "/proc/self/fd"

_LETTERS = string.ascii_letters + string.digits

# How many names to try before it is not bad luck any more.
_NAMES = 100

#: Octets that may belong to a buffer in which others will follow.
Octets = bytes | bytearray | memoryview

_Made = TypeVar("_Made")


class FileRange:
    """Octets ``start`` to ``stop``, at least one, of the open file ``descriptor``, such as for sendfile(2).

    The file stays the message's, and is open until that is closed.
    """

    __slots__ = ("descriptor", "start", "stop")

    def __init__(self, descriptor: int, start: int, stop: int) -> None:
        self.descriptor = descriptor
        self.start = start
        self.stop = stop

    def pieces(self) -> Iterator[bytes]:
        """Yield the octets in pieces of at most 256 KiB. Raises OSError."""
        # By places of its own: the position in the file is shared with clamd.
        start = self.start
        while start < self.stop:
            piece = os.pread(self.descriptor, min(_PIECE, self.stop - start), start)
            if not piece:
                raise OSError(errno.EIO, "the spool file ended early")
            yield piece
            start += len(piece)


class Spool:
    """The text of one message, as on the wire: dots stuffed, ending in CRLF or empty, without the final dot.

    ``name`` is what clamd's log shows for a message that was in memory. ``keep``: leave the text in
    ``temp_directory`` in the end, as ``clamsmtpd.XXXXXX`` (setting DebugFiles). ``raw``: on this wire no dots are
    stuffed (BDAT). Methods that store raise OSError.
    """

    __slots__ = (
        "_chunks",
        "_directory",
        "_failed",
        "_fd",
        "_handed_out",
        "_keep",
        "_name",
        "_on_growth",
        "_path",
        "_plain_fd",
        "_stuffed",
        "abandoned",
        "raw",
        "sealed",
        "size",
    )

    #: Octets of all messages that are in memory.
    in_memory: ClassVar[int] = 0

    def __init__(self, temp_directory: str, name: str, *, keep: bool = False, raw: bool = False) -> None:
        self._directory = temp_directory
        self._name = name
        self._keep = keep
        #: Whether a dot at the start of a line is always its author's.
        self.raw = raw
        #: Octets stored so far.
        self.size = 0
        # The text, as long as it is in memory.
        self._chunks: list[bytes] = []
        # A file with the text as on the wire, once it has become too large for memory.
        self._fd = -1
        # A file with the text as its author wrote it, where that is not the same, or when it is in memory.
        self._plain_fd = -1
        self._path: str | None = None
        self._stuffed = False
        # Whether some of the text has been lost on its way here.
        self._failed = False
        #: Whether the text is complete.
        self.sealed = False
        #: Whether nobody waits for the verdict any more. It is still worth having; who judges it closes it then.
        self.abandoned = False
        # Whether clamd, which shares it, may have moved the position in the file.
        self._handed_out = False
        self._on_growth: Callable[[], None] | None = None

    def append(self, data: Octets) -> None:
        """Store a copy of the next octets.

        Raises OSError, such as for a full disk; the spool is then good for nothing.
        """
        start = self.size
        self.size = size = start + len(data)
        if self._fd < 0 and size <= MEMORY_MAX and Spool.in_memory + len(data) <= TOTAL_MEMORY_MAX:
            self._chunks.append(bytes(data))
            Spool.in_memory += len(data)
            if len(self._chunks) > _CHUNKS_MAX:
                self._chunks = [b"".join(self._chunks)]
        else:
            try:
                if self._fd < 0:
                    self._move_to_file(start)
                _write(self._fd, data, start)
            except BaseException:
                self._failed = True
                raise
        if self._on_growth is not None:
            self._on_growth()

    def _move_to_file(self, size: int) -> None:
        self._fd = _open_unnamed(self._directory)
        if size:
            _write(self._fd, b"".join(self._chunks), 0)
            self._leave_memory()

    def _leave_memory(self) -> None:
        Spool.in_memory -= sum(map(len, self._chunks))
        self._chunks = []

    def seal(self, *, stuffed: bool) -> None:
        """Take the text as complete. ``stuffed``: some of its lines start with a dot.

        Raises OSError when an append failed before: half a message must not get a verdict.
        """
        self._stuffed = stuffed
        if self._failed:
            raise OSError(errno.EIO, "the spool file is not whole")
        if len(self._chunks) > 1:
            self._chunks = [b"".join(self._chunks)]
        self.sealed = True

    # ---- for the next hop ---------------------------------------------------------------------

    def parts(self, insertions: Sequence[Insertion] = ()) -> Iterator[bytes | FileRange]:
        """Yield the text as on the wire, with ``insertions``, which are in their order. Raises OSError.

        What is in a file, and not between insertions, is not read: let whoever sends it do so from there.
        """
        at = 0
        if self._fd < 0:
            text = b"".join(self._chunks)
            for offset, octets in insertions:
                if before := text[at:offset]:
                    yield before
                if octets:
                    yield octets
                at = offset
            if behind := text[at:]:
                yield behind
        else:
            for offset, octets in insertions:
                if at < offset:
                    head = FileRange(self._fd, at, offset)
                    # Small as it nearly always is, it goes out in one piece with the insertion.
                    yield next(head.pieces()) if offset - at <= _PIECE else head
                if octets:
                    yield octets
                at = offset
            if at < self.size:
                yield FileRange(self._fd, at, self.size)

    # ---- for the scanner: the text without stuffed dots ---------------------------------------

    def descriptor(self) -> int:
        """Return an open file with the text, at its start. It stays ours. Raises OSError."""
        if self._fd >= 0 and not self._stuffed:
            plain = self._fd
        else:
            if self._plain_fd < 0:
                self._plain_fd = self._make_plain()
            plain = self._plain_fd
        # Nobody has moved it before: what is written is written at places of its own.
        if self._handed_out:
            os.lseek(plain, 0, os.SEEK_SET)
        self._handed_out = True
        return plain

    def pieces(self) -> Iterator[bytes]:
        """Yield the text in pieces of at most 256 KiB."""
        if self._fd >= 0:
            text = FileRange(self._fd, 0, self.size).pieces()
            return unstuff(text) if self._stuffed else text
        # In one piece, whatever it was appended or unstuffed in: each piece costs a system call.
        whole = b"".join(unstuff(self._chunks) if self._stuffed else self._chunks)
        return iter((whole,) if whole else ())

    def follow(self, on_growth: Callable[[], None]) -> Follower:
        """Return a reader of the text that need not be complete; ``on_growth`` is called whenever there is more."""
        self._on_growth = on_growth
        return Follower(self)

    def read(self, start: int, limit: int = _PIECE) -> bytes:
        """Return text as on the wire from octet ``start`` on, 256 KiB or ``limit`` at most. Raises OSError."""
        limit = min(limit, _PIECE)
        if self._fd >= 0:
            return os.pread(self._fd, limit, start)
        if len(self._chunks) > 1:
            self._chunks = [b"".join(self._chunks)]
        return self._chunks[0][start : start + limit] if self._chunks else b""

    def path(self) -> str:
        """Return the name of a file with the text, for a clamd that takes no descriptors. Raises OSError.

        Our group may read it, and nobody else, for it is mail: clamd is another user, and making it a
        member of our group is how it is let in.
        """
        if self._path is None:
            # clamd has a working directory of its own.
            self._path = os.path.abspath(self._write_named("clamsmtpd.", 0o640, lasting=False))
        return self._path

    # ---- for who compares it with others ------------------------------------------------------

    def same_text(self, other: Spool) -> bool:
        """Tell whether the scanner would get the same octets. Both are complete. Raises OSError."""
        if self.size != other.size or self._stuffed != other._stuffed:
            return False
        # Nearly always the first piece differs: there stands who sent it, and when. Where it does not, to read on
        # costs a hundredth of a second at 30 MB, once, in place of a scan.
        return all(a == b for a, b in zip(self._wire_pieces(), other._wire_pieces(), strict=True))

    def stored_pieces(self) -> Iterator[bytes]:
        """Yield what tells texts apart for the scanner: the octets, and whether dots are stuffed. Raises OSError."""
        yield b"stuffed:" if self._stuffed else b"plain:"
        yield from self._wire_pieces()

    def _wire_pieces(self) -> Iterator[bytes]:
        # What fits into memory is one piece of a file as well, and one chunk since the text is complete.
        return FileRange(self._fd, 0, self.size).pieces() if self._fd >= 0 else iter(self._chunks)

    # ---- for who reads it later ---------------------------------------------------------------

    def share(self) -> Share:
        """Return the whole text for somebody who still reads it when this is closed. Raises OSError."""
        return Share(os.dup(self._fd) if self._fd >= 0 else -1, tuple(self._chunks), self.size, stuffed=self._stuffed)

    # ---- what stays ---------------------------------------------------------------------------

    def quarantine(self) -> str:
        """Keep the text in TempDirectory as ``virus.XXXXXX``, for nobody else to read; return its path."""
        return self._write_named("virus.", 0o600)

    def close(self) -> None:
        """Forget the text. Raises OSError when it was to be kept and could not be."""
        try:
            if self._keep:
                self._keep = False
                self._write_named("clamsmtpd.", 0o600)
        finally:
            for fd in (self._fd, self._plain_fd):
                if fd >= 0:
                    os.close(fd)
            self._fd = self._plain_fd = -1
            self._leave_memory()
            self._on_growth = None
            self.size = 0
            if self._path is not None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path)
                self._path = None

    def _make_plain(self) -> int:
        # clamd may still have the file of the message before mapped: each message gets one of its own.
        fd = _open_in_memory(self._name, self._directory) if self._fd < 0 else _open_unnamed(self._directory)
        try:
            _write_all(fd, self.pieces())
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _write_named(self, prefix: str, mode: int, *, lasting: bool = True) -> str:
        """Write the text to a new file with a random name; the file is whole or not there. Raises OSError."""
        # It gets its name at last: not even a kill leaves half a file that looks like a whole one.
        fd, path = _create_without_name(self._directory) if os.path.isdir(_OWN_DESCRIPTORS) else -1, ""
        if fd < 0:
            fd, path = _create_named(self._directory, prefix, mode)
        try:
            # The umask of a daemon takes away more than is wanted for a group.
            os.fchmod(fd, mode)
            _write_all(fd, self.pieces())
            if lasting:
                os.fsync(fd)
            if not path:
                path = _give_name(fd, self._directory, prefix)
                if lasting:
                    os.fsync(fd)
        except BaseException:
            if path:
                with contextlib.suppress(OSError):
                    os.unlink(path)
            raise
        finally:
            os.close(fd)
        return path


def _claim(directory: str, prefix: str, make: Callable[[str], _Made]) -> tuple[_Made, str]:
    """Return what ``make`` returns for a random name that nobody has, and the path."""
    for _ in range(_NAMES):
        path = os.path.join(directory, prefix + "".join(secrets.choice(_LETTERS) for _ in range(6)))
        with contextlib.suppress(FileExistsError):
            return make(path), path
    raise FileExistsError(errno.EEXIST, f"no free name {prefix}XXXXXX", directory)


def _create_named(directory: str, prefix: str, mode: int) -> tuple[int, str]:
    # O_EXCL neither overwrites a file nor follows a link that somebody put in the way.
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return _claim(directory, prefix, lambda path: os.open(path, flags, mode))


def _give_name(fd: int, directory: str, prefix: str) -> str:
    """Give a file without a name one (open(2), O_TMPFILE), which overwrites nothing either; return its path."""
    own = f"{_OWN_DESCRIPTORS}/{fd}"
    # The path is absolute, so that src_dir_fd says nothing, but has Python call linkat(2), which follows links.
    return _claim(directory, prefix, lambda path: os.link(own, path, src_dir_fd=fd, follow_symlinks=True))[1]


def _create_without_name(directory: str) -> int:
    """Open a new file that has no name; return -1 where there are no such files."""
    try:
        return os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError as error:
        # What file systems without O_TMPFILE, and kernels before it, say.
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
            raise
    return -1


def _open_in_memory(name: str, directory: str) -> int:
    try:
        return os.memfd_create(name)
    except OSError:
        # Sandboxes and vm.memfd_noexec forbid it. A file does as well, only not as fast.
        return _open_unnamed(directory)


def _open_unnamed(directory: str) -> int:
    """Open a file that nobody else can open and that is gone with the process."""
    fd = _create_without_name(directory)
    if fd >= 0:
        return fd
    fd, path = _create_named(directory, "clamsmtpd.", 0o600)
    try:
        os.unlink(path)
    except BaseException:
        os.close(fd)
        raise
    return fd


class Share:
    """A text of ``size`` octets as on the wire that outlives its spool: in the file ``descriptor``, or in ``chunks``.

    It costs no copy, but holds a descriptor, and the room on the disk, until it is closed. The text in memory is no
    longer counted among what all messages have there.
    """

    __slots__ = ("_chunks", "_descriptor", "_size", "_stuffed")

    def __init__(self, descriptor: int, chunks: tuple[bytes, ...], size: int, *, stuffed: bool) -> None:
        self._descriptor = descriptor
        self._chunks = chunks
        self._size = size
        self._stuffed = stuffed

    def pieces(self) -> Iterator[bytes]:
        """Yield the text without stuffed dots, in pieces of at most 256 KiB. Raises OSError."""
        text: Iterable[bytes] = self._chunks
        if self._descriptor >= 0:
            text = FileRange(self._descriptor, 0, self._size).pieces()
        return unstuff(text) if self._stuffed else iter(text)

    def close(self) -> None:
        """Forget the text."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._chunks = ()


class Follower:
    """Reads the text of ``spool`` without stuffed dots, as far as it has come."""

    __slots__ = ("_at", "_spool", "_unstuffing")

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._at = 0
        self._unstuffing = Unstuffing()

    @property
    def left(self) -> int:
        """Octets that are there and have not been read, with stuffed dots."""
        return self._spool.size - self._at

    @property
    def complete(self) -> bool:
        """Whether no more will come."""
        return self._spool.sealed

    def read(self) -> bytes:
        """Return the next octets, 256 KiB at most; none if there are none. Raises OSError."""
        while self.left > 0:
            data = self._spool.read(self._at)
            if not data:
                raise OSError(errno.EIO, "the spool file ended early")
            self._at += len(data)
            if text := data if self._spool.raw else self._unstuffing.feed(data):
                return text
        return self._unstuffing.finish() if self.complete else b""


def _write(fd: int, data: Octets, start: int) -> None:
    """Write all of ``data`` at octet ``start``, without moving the position."""
    written = os.pwrite(fd, data, start)
    while written < len(data):
        with memoryview(data) as whole:
            written += os.pwrite(fd, whole[written:], start + written)


def _write_all(fd: int, pieces: Iterable[bytes]) -> None:
    at = 0
    for piece in pieces:
        _write(fd, piece, at)
        at += len(piece)
