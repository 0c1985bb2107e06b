"""Verdicts that are remembered, for all workers: a message that comes again need not be scanned again."""

from __future__ import annotations

import hashlib
import mmap
import struct
import zlib
from collections.abc import Callable
from time import monotonic

from clamsmtpd.values import Clean, Infected, Verdict

__all__ = ["CELL_SIZE", "KEPT_FOR", "LATEST_SIZE", "REGION_SIZE", "Mark", "Verdicts"]

#: Seconds for which a verdict is remembered: a client that was not answered tries again within half an hour (RFC 5321
#: section 4.5.4.1), and nobody is served an old verdict for long if clamd does not tell of new signatures.
KEPT_FOR = 2700.0

#: Seconds after which an entry of a scan under way counts no more, if it was not renewed: its worker is past telling.
_UNDER_WAY_FOR = 600.0

# Octets of the text (what is looked for), its SHA-256, the time until which the entry counts, the signatures that the
# verdict rests on, what it is, and the length of the name.
_ENTRY = struct.Struct("=Q32sd8sBB")
_SIZE = struct.Struct("=Q")
_CHECK = struct.Struct("=I")

_UNDER_WAY, _CLEAN, _INFECTED = range(1, 4)

_NAME_MAX = 256 - _ENTRY.size - _CHECK.size

#: Octets of an entry.
CELL_SIZE = 256

#: Entries of a worker; then the oldest is overwritten.
_CELLS = 256

#: Octets that one worker's entries take.
REGION_SIZE = CELL_SIZE * _CELLS

_LATEST = struct.Struct("=d")

#: Octets in front of all regions: the time at which the last of all entries has run out.
LATEST_SIZE = _LATEST.size

#: What a text is known by: its length, its SHA-256, and the scanners' signatures.
Mark = tuple[int, bytes, str]


class Verdicts:
    """The verdicts of all ``workers``, in ``memory`` that they share; ``worker`` writes to its own region only.

    An entry carries a check sum, so that one that is read while it is written is none. ``clock`` gives seconds, the
    same to all processes (CLOCK_MONOTONIC).
    """

    __slots__ = ("_clock", "_memory", "_next", "_own", "_regions")

    def __init__(
        self,
        memory: mmap.mmap | bytearray,
        start: int = 0,
        workers: int = 1,
        worker: int = 0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._memory = memory
        self._regions = [start + LATEST_SIZE + number * REGION_SIZE for number in range(workers)]
        self._own = self._regions[worker]
        self._next = 0
        self._clock = clock

    @property
    def _start(self) -> int:
        return self._regions[0] - LATEST_SIZE

    def may_know(self, size: int) -> bool:
        """Tell whether it is worth knowing the digest of a text of ``size`` octets. It hardly ever is."""
        # No length at all is what free cells have.
        if not size or _LATEST.unpack_from(self._memory, self._start)[0] < self._clock():
            return False
        # Entry by entry: to search all octets for those of a length takes up to half a millisecond for each worker.
        with memoryview(self._memory) as memory:
            return any(
                size in memory[region : region + REGION_SIZE].cast("Q")[:: CELL_SIZE // _SIZE.size]
                for region in self._regions
            )

    def find(self, mark: Mark) -> tuple[Verdict | None, bool]:
        """Return the verdict on a text, None if there is none, and whether a worker has a scan of it under way."""
        under_way = False
        wanted = _SIZE.pack(mark[0]) + mark[1]
        for region in self._regions:
            for place in self._places(region, wanted):
                entry = self._read(place, mark)
                if isinstance(entry, Clean | Infected):
                    return entry, False
                under_way = under_way or entry == _UNDER_WAY
        return None, under_way

    def announce(self, mark: Mark) -> int:
        """Say that a scan of a text is under way; return the number of the entry."""
        return self._write(mark, _UNDER_WAY, b"", _UNDER_WAY_FOR)

    def keep(self, mark: Mark, verdict: Verdict | None, entry: int | None = None) -> None:
        """Remember a verdict, in place of ``entry`` if there is one; forget the entry if there is no verdict."""
        name = verdict.name.encode() if isinstance(verdict, Infected) else b""
        if isinstance(verdict, Clean | Infected) and len(name) <= _NAME_MAX:
            self._write(mark, _INFECTED if name else _CLEAN, name, KEPT_FOR, entry)
        elif entry is not None:
            self.withdraw(entry)

    def withdraw(self, entry: int) -> None:
        """Forget an entry.

        Were it overwritten meanwhile, by hundreds of others, one of those would be scanned again.
        """
        place = self._own + entry * CELL_SIZE
        self._memory[place : place + CELL_SIZE] = bytes(CELL_SIZE)

    def _write(self, mark: Mark, kind: int, name: bytes, seconds: float, entry: int | None = None) -> int:
        if entry is None:
            entry = self._next
            self._next = (entry + 1) % _CELLS
        size, digest, version = mark
        until = self._clock() + seconds
        octets = _ENTRY.pack(size, digest, until, _short(version), kind, len(name)) + name
        octets += _CHECK.pack(zlib.crc32(octets))
        place = self._own + entry * CELL_SIZE
        self._memory[place : place + len(octets)] = octets
        if _LATEST.unpack_from(self._memory, self._start)[0] < until:
            _LATEST.pack_into(self._memory, self._start, until)
        return entry

    def _places(self, region: int, wanted: bytes) -> list[int]:
        """Return where in a region entries begin with these octets."""
        found: list[int] = []
        place = self._memory.find(wanted, region, region + REGION_SIZE)
        while place >= 0:
            if (place - region) % CELL_SIZE == 0:
                found.append(place)
            place = self._memory.find(wanted, place + 1, region + REGION_SIZE)
        return found

    def _read(self, place: int, mark: Mark) -> Verdict | int | None:
        # Of one copy, and looked at again: since it was found, another text's may have taken its place.
        cell = bytes(self._memory[place : place + CELL_SIZE])
        size, digest, until, version, kind, length = _ENTRY.unpack_from(cell)
        end = _ENTRY.size + min(length, _NAME_MAX)
        if _CHECK.unpack_from(cell, end)[0] != zlib.crc32(cell[:end]):
            return None
        if (size, digest, version) != (*mark[:2], _short(mark[2])) or until < self._clock():
            return None
        if kind == _CLEAN:
            return Clean()
        return Infected(cell[_ENTRY.size : end].decode()) if kind == _INFECTED else _UNDER_WAY


def _short(version: str) -> bytes:
    return hashlib.blake2b(version.encode(), digest_size=8).digest()
