"""The index of the quarantine: what is known of each ``virus.XXXXXX``, in SQLite.

The files are what counts. The index only says more about them, and what it lacks is taken from them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import sqlite3
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = [
    "DIRECTORY",
    "Culprit",
    "Entry",
    "Index",
    "IndexFaultError",
    "Release",
    "digest",
    "open_kept",
]

#: The directory of the index, in TempDirectory. That may be /tmp, where a stranger could put a database, or a journal
#: that SQLite would play back into ours, under the name that we are about to use.
DIRECTORY = "clamsmtpd-index"

PREFIX = "virus."

_FILE = "index.db"
_ASIDE = (_FILE, f"{_FILE}-wal", f"{_FILE}-shm", f"{_FILE}-journal")

#: What stands in ``PRAGMA user_version``.
SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    id TEXT PRIMARY KEY, message TEXT, at REAL NOT NULL, sender BLOB, recipients TEXT, remote BLOB, client TEXT,
    virus TEXT, culprit TEXT, culprit_sha256 TEXT, size INTEGER, sha256 TEXT, action TEXT,
    fate TEXT NOT NULL DEFAULT 'kept', fate_at REAL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS releases (
    id TEXT NOT NULL, recipient BLOB NOT NULL, at REAL NOT NULL, state TEXT NOT NULL, reply TEXT,
    PRIMARY KEY (id, recipient)
) WITHOUT ROWID;
"""

_NAME = re.compile(r"virus\.([A-Za-z0-9]{6})")

#: Seconds for which a process waits for another one that writes.
_BUSY = 10.0

_PIECE = 262144

_log = logging.getLogger("clamsmtpd")


class IndexFaultError(Exception):
    """The index cannot be used; ``str()`` says why, in one line."""


@dataclass(frozen=True, slots=True)
class Culprit:
    """The part of a message in which the virus is: its name as the message gives it, and its SHA-256 in hex."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Release:
    """Who got a message out of quarantine, when, and what the next hop replied.

    ``state`` is "releasing" from before the dialogue to its last reply, then "released" or "refused". One that is
    still "releasing" when nobody releases any more may or may not have been delivered.
    """

    recipient: bytes
    at: float
    state: str
    reply: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of one file.

    ``at`` is a Unix time in seconds. ``sender`` and ``recipients`` are octets as in :class:`values.Envelope`; both are
    None if nobody told. ``action`` is what became of the message: dropped, bounced or passed. ``fate`` is what became
    of the file: kept, deleted, expired or gone (by another hand).
    """

    id: str
    at: float
    message: str | None = None
    sender: bytes | None = None
    recipients: tuple[bytes, ...] | None = None
    remote: bytes | None = None
    client: str | None = None
    virus: str | None = None
    culprit: Culprit | None = None
    size: int | None = None
    sha256: str | None = None
    action: str | None = None
    fate: str = "kept"
    fate_at: float | None = None

    @property
    def name(self) -> str:
        """The name of the file in TempDirectory."""
        return PREFIX + self.id


def open_kept(temp_directory: str, name: str) -> int:
    """Open a file in quarantine. Raises OSError, also for a link and for what is no regular file."""
    fd = os.open(
        os.path.join(temp_directory, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    )
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(f"{name} is no regular file")
    return fd


def digest(temp_directory: str, name: str) -> tuple[int, str]:
    """Return the octets of a file in quarantine, and their SHA-256 in hex. Raises OSError."""
    fd = open_kept(temp_directory, name)
    try:
        sha256, size = hashlib.sha256(), 0
        while piece := os.read(fd, _PIECE):
            sha256.update(piece)
            size += len(piece)
        return size, sha256.hexdigest()
    finally:
        os.close(fd)


class Index:
    """The index for the files in ``temp_directory``; both are made and read as the user that we are.

    Of one thread. Raises IndexFaultError for whatever keeps it from its work. Several processes may have it open.
    """

    def __init__(self, temp_directory: str) -> None:
        self._temp = temp_directory
        self._directory = os.path.join(temp_directory, DIRECTORY)
        with _faults():
            _claim(self._directory)
            try:
                self._db = self._open()
            except sqlite3.DatabaseError as error:
                if not _is_corrupt(error):
                    raise
                self._move_aside(error)
                self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        path = os.path.join(self._directory, _FILE)
        # SQLite would make it by the umask. WAL and shared memory get the same rights as the database.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        db = sqlite3.connect(path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
        try:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise IndexFaultError(f"{path} is of a later version; its schema is {version}")
            db.execute("PRAGMA journal_mode=WAL")
            if version < SCHEMA_VERSION:
                db.executescript(f"BEGIN IMMEDIATE;{_SCHEMA}PRAGMA user_version={SCHEMA_VERSION};COMMIT;")
            # A page that cannot be read is found now, not in the midst of a release.
            if (found := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise _CorruptError(found)
        except BaseException:
            db.close()
            raise
        return db

    def _move_aside(self, error: Exception) -> None:
        suffix = f".corrupt-{time.time_ns()}"
        for name in _ASIDE:
            path = os.path.join(self._directory, name)
            with contextlib.suppress(FileNotFoundError):
                os.rename(path, path + suffix)
        _log.warning(
            "the index of the quarantine was corrupt (%s); it is now %s, and a new one is made from the files",
            error,
            os.path.join(self._directory, _FILE + suffix),
        )

    def close(self) -> None:
        """Close it."""
        self._db.close()

    def add(self, entry: Entry) -> None:
        """Write an entry down; one that healing has made of the same file meanwhile is replaced."""
        culprit = entry.culprit
        recipients = entry.recipients
        with _faults():
            self._db.execute(
                "INSERT OR REPLACE INTO entries VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                (
                    entry.id,
                    entry.message,
                    entry.at,
                    entry.sender,
                    None if recipients is None else json.dumps([octets.decode("latin-1") for octets in recipients]),
                    entry.remote,
                    entry.client,
                    entry.virus,
                    # In JSON, for a name may have what is no character.
                    None if culprit is None else json.dumps(culprit.name),
                    None if culprit is None else culprit.sha256,
                    entry.size,
                    entry.sha256,
                    entry.action,
                    entry.fate,
                    entry.fate_at,
                ),
            )

    def note_culprit(self, identifier: str, culprit: Culprit) -> None:
        """Write down in which part of a message the virus is."""
        with _faults():
            self._db.execute(
                "UPDATE entries SET culprit = ?, culprit_sha256 = ? WHERE id = ?",
                (json.dumps(culprit.name), culprit.sha256, identifier),
            )

    def entries(self, fate: str | None = "kept") -> list[Entry]:
        """Return the entries of one fate, or all, the oldest first."""
        with _faults():
            rows = self._db.execute(
                "SELECT * FROM entries WHERE ? IS NULL OR fate = ? ORDER BY at, id", (fate, fate)
            ).fetchall()
            return [_entry(row) for row in rows]

    def find(self, start: str) -> list[Entry]:
        """Return the entry of that id, or those whose ids start so."""
        with _faults():
            rows = self._db.execute(
                "SELECT * FROM entries WHERE substr(id, 1, ?) = ? ORDER BY at, id", (len(start), start)
            ).fetchall()
            return [_entry(row) for row in rows]

    def end(self, identifier: str, fate: str, at: float) -> None:
        """Write down what became of a file."""
        with _faults():
            self._db.execute("UPDATE entries SET fate = ?, fate_at = ? WHERE id = ?", (fate, at, identifier))

    def releases(self, identifier: str) -> list[Release]:
        """Return the releases of one file, the oldest first."""
        with _faults():
            rows = self._db.execute(
                "SELECT recipient, at, state, reply FROM releases WHERE id = ? ORDER BY at", (identifier,)
            )
            return [Release(bytes(row[0]), row[1], row[2], row[3] or "") for row in rows]

    def claim_releases(
        self, identifier: str, recipients: tuple[bytes, ...], at: float, *, again: bool
    ) -> tuple[list[bytes], list[Release]]:
        """Begin to release to those who have not got it; return them, and what there is of the others.

        In one transaction: of two that release the same at once, one does. It is on the disk when this returns.
        """
        todo: list[bytes] = []
        held: list[Release] = []
        with _faults():
            # What WAL gives by default would be lost with the machine, and with it that the message has been given.
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                before = {release.recipient: release for release in self.releases(identifier)}
                for recipient in dict.fromkeys(recipients):
                    earlier = before.get(recipient)
                    if earlier is not None and earlier.state != "refused" and not again:
                        held.append(earlier)
                        continue
                    todo.append(recipient)
                    self._db.execute(
                        "INSERT OR REPLACE INTO releases VALUES (?,?,?,'releasing',NULL)", (identifier, recipient, at)
                    )
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
        return todo, held

    def end_release(self, identifier: str, recipient: bytes, state: str, reply: str, at: float) -> None:
        """Write the final reply down."""
        with _faults():
            self._db.execute(
                "UPDATE releases SET state = ?, reply = ?, at = ? WHERE id = ? AND recipient = ?",
                (state, reply, at, identifier, recipient),
            )

    def heal(self, now: float, *, settled: float = 0.0) -> int:
        """Bring entries and files together; return how many differed.

        A file without an entry gets one of what the file tells; an entry without its file is told to be gone. Files
        younger than ``settled`` seconds are left alone: their entries may be on their way. Nothing is opened here.

        Where all may write, as in /tmp, the files of others are none of ours, whatever they are called: by its size
        alone one would have the others expired, and we could not remove it.
        """
        files: dict[str, os.stat_result] = {}
        changed = 0
        with _faults():
            shared = bool(os.stat(self._temp).st_mode & stat.S_IWOTH)
            with os.scandir(self._temp) as listing:
                for found in listing:
                    match = _NAME.fullmatch(found.name)
                    if match is not None:
                        with contextlib.suppress(FileNotFoundError):
                            status = found.stat(follow_symlinks=False)
                            ours = not shared or status.st_uid in (0, os.geteuid())
                            if ours and stat.S_ISREG(status.st_mode):
                                files[match[1]] = status
            known = {entry.id: entry.fate for entry in self.entries(None)}
            for identifier, status in files.items():
                if known.get(identifier) != "kept" and now - status.st_mtime >= settled:
                    self._db.execute(
                        "INSERT INTO entries (id, at, size) VALUES (?,?,?) ON CONFLICT (id) DO UPDATE "
                        "SET fate = 'kept', fate_at = NULL WHERE fate <> 'kept'",
                        (identifier, status.st_mtime, status.st_size),
                    )
                    changed += 1
            for identifier, fate in known.items():
                if fate == "kept" and identifier not in files and not self._is_there(identifier, shared=shared):
                    self.end(identifier, "gone", now)
                    changed += 1
        return changed

    def _is_there(self, identifier: str, *, shared: bool) -> bool:
        # A file may have come since the directory was read, and its entry before that was.
        with contextlib.suppress(FileNotFoundError):
            status = os.lstat(os.path.join(self._temp, PREFIX + identifier))
            return not shared or status.st_uid in (0, os.geteuid())
        return False


class _CorruptError(sqlite3.DatabaseError):
    """SQLite's own check found something."""


def _is_corrupt(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", 0)
    return isinstance(error, _CorruptError) or code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise IndexFaultError(f"the index of the quarantine: {error}") from error


def _claim(directory: str) -> None:
    """Have the directory of the index, and have it for us alone. Raises IndexFaultError, OSError."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    status = os.lstat(directory)
    if not stat.S_ISDIR(status.st_mode):
        raise IndexFaultError(f"{directory} is no directory; remove it")
    if status.st_uid not in (0, os.geteuid()):
        raise IndexFaultError(f"{directory} belongs to user {status.st_uid}; remove it")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise IndexFaultError(f"others may write to {directory}; remove it")


def _entry(row: tuple[Any, ...]) -> Entry:
    """Read a row. Raises DatabaseError for one that we did not write."""
    identifier, message, at, sender, recipients, remote, client, virus, culprit, sha256, *rest = row
    try:
        return Entry(
            identifier,
            at,
            message,
            sender,
            None if recipients is None else tuple(text.encode("latin-1") for text in json.loads(recipients)),
            remote,
            client,
            virus,
            None if culprit is None else Culprit(json.loads(culprit), sha256),
            *rest,
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise sqlite3.DatabaseError(f"an entry that cannot be read: {error}") from error
