"""Connections that go in a circle: the register of our own, by which one that comes back to us is known."""

from __future__ import annotations

import mmap
import struct
from typing import Protocol

from clamsmtpd.values import TcpAddress

__all__ = ["Ends", "Register", "SharedRegister", "region_size"]

#: Both ends of a connection, ours first; None for an end that is no TCP address.
Ends = tuple[TcpAddress | None, TcpAddress | None]

_CELL = struct.Struct("=q")

#: Cells in which an entry may stand, from the one that its hash gives. A table that is never more than a quarter full
#: has a free one among so many.
_WINDOW = 64

#: Cells for each connection that there can be.
_SPARE = 4


class Register(Protocol):
    """Both ends of every connection that we have made to a next hop. A plain set is one, for one worker.

    Its length is the number of this worker's own connections.
    """

    def add(self, ends: Ends, /) -> None:
        """Enter a connection."""

    def discard(self, ends: Ends, /) -> None:
        """Take a connection out, if it is there."""

    def __contains__(self, ends: object, /) -> bool: ...

    def __len__(self) -> int: ...


def _cells(connections: int) -> int:
    """Return the number of first cells: a power of two, so that a hash is cut to it by its lower bits."""
    return 1 << (_SPARE * connections - 1).bit_length()


def region_size(connections: int) -> int:
    """Return the octets that a region for so many connections needs."""
    return _CELL.size * (_cells(connections) + _WINDOW)


class SharedRegister:
    """A register in memory that all workers share, for a connection may come back to another than made it.

    From ``start`` on ``memory`` holds a region of ``region_size(connections)`` octets for each of ``workers``. Only
    ``worker`` writes to its own, so that there is no lock; all look into each. An entry is the hash of both ends, of 64
    bits, in one of the cells from where the hash says: a look into one region reads half a kilobyte at most, however
    many connections there are. What a worker leaves behind that dies, the supervisor clears.

    That the hash of a text is secret and the same in all workers is because they were forked (``PYTHONHASHSEED``).
    """

    __slots__ = ("_cells", "_connections", "_memory", "_own", "_regions")

    def __init__(self, memory: mmap.mmap, start: int, connections: int, workers: int, worker: int) -> None:
        self._memory = memory
        self._connections: dict[bytes, int] = {}
        self._cells = _cells(connections)
        size = region_size(connections)
        self._regions = [start + number * size for number in range(workers)]
        self._own = self._regions[worker]

    def _find(self, region: int, entry: bytes) -> int:
        """Return where an entry stands in a region; -1 if nowhere."""
        home = region + _CELL.size * (_CELL.unpack(entry)[0] & self._cells - 1)
        end = home + _CELL.size * _WINDOW
        place = self._memory.find(entry, home, end)
        while place >= 0 and (place - home) % _CELL.size:
            # Parts of two neighbours that look like it.
            place = self._memory.find(entry, place + 1, end)
        return place

    def add(self, ends: Ends, /) -> None:
        """Enter a connection. One over a unix socket has no ends that anybody could look for."""
        entry = _entry(ends)
        if ends[0] is None or entry in self._connections:
            return
        home = self._own + _CELL.size * (_CELL.unpack(entry)[0] & self._cells - 1)
        for place in range(home, home + _CELL.size * _WINDOW, _CELL.size):
            if self._memory[place : place + _CELL.size] == _FREE:
                self._memory[place : place + _CELL.size] = entry
                self._connections[entry] = place
                return

    def discard(self, ends: Ends, /) -> None:
        """Take a connection out, if it is there."""
        place = self._connections.pop(_entry(ends), None)
        if place is not None:
            self._memory[place : place + _CELL.size] = _FREE

    def __contains__(self, ends: object, /) -> bool:
        entry = _entry(ends)
        return any(self._find(region, entry) >= 0 for region in self._regions)

    def __len__(self) -> int:
        return len(self._connections)


_FREE = bytes(_CELL.size)


def _entry(ends: object) -> bytes:
    # Zero is what a free cell holds.
    return _CELL.pack(hash(ends) or 1)
