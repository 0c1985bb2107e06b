"""What workers tell each other in words: where each is now, and the last messages that each has had.

It is for whoever looks at the daemon from outside (setting Admin), and is there only for that. All of it is in memory
that the workers share; whoever answers reads what all have written. Nobody waits for anybody: a text that changes while
it is read is read again.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["BOARD_SIZE", "ENTRIES", "ENTRY_MAX", "Board"]

#: Octets of what a worker says of itself.
BULLETIN_SIZE = 32 * 1024

#: Messages of a worker that are remembered, and octets of each.
ENTRIES = 512
ENTRY_SIZE = 3072

# In front of each text: a number that is odd while it is written, and its length.
_HEAD = 16

#: Octets of what can be said of a message.
ENTRY_MAX = ENTRY_SIZE - _HEAD

_COUNTER = 8

#: Octets of the memory for each worker.
BOARD_SIZE = BULLETIN_SIZE + _COUNTER + ENTRIES * ENTRY_SIZE

# A text is written in microseconds, so that one that never becomes whole belongs to a worker that has died.
_READS = 5


class Board:
    """The texts of all workers in ``memory``, of ``BOARD_SIZE`` octets for each; ``worker`` is the one that writes."""

    __slots__ = ("_memory", "_numbers", "_worker", "_workers")

    def __init__(self, memory: memoryview, workers: int, worker: int) -> None:
        self._memory = memory[: BOARD_SIZE * workers]
        self._numbers = self._memory.cast("q")
        self._workers = workers
        self._worker = worker

    def post(self, bulletin: bytes) -> None:
        """Say where this worker is now, in place of what it has said before; what is too long is left out."""
        self._write(self._worker * BOARD_SIZE, BULLETIN_SIZE, bulletin)

    def note(self, entry: bytes) -> None:
        """Add a message; the one that is ``ENTRIES`` older is forgotten. What is too long is left out."""
        counter = (self._worker * BOARD_SIZE + BULLETIN_SIZE) // 8
        number = self._numbers[counter]
        if self._write(self._entry(self._worker, number), ENTRY_SIZE, entry):
            self._numbers[counter] = number + 1

    def bulletins(self) -> list[bytes]:
        """Return what each worker says, in their order; nothing for one that has said nothing."""
        return [self._read(worker * BOARD_SIZE) for worker in range(self._workers)]

    def notes(self) -> Iterator[bytes]:
        """Yield the messages of one worker after the other, the latest of each first."""
        for worker in range(self._workers):
            number = self._numbers[(worker * BOARD_SIZE + BULLETIN_SIZE) // 8]
            for back in range(1, min(number, ENTRIES) + 1):
                if entry := self._read(self._entry(worker, number - back)):
                    yield entry

    def forget(self, worker: int) -> None:
        """Forget what a worker that has died said of the present; its messages stay."""
        start = worker * BOARD_SIZE
        self._memory[start : start + _HEAD] = bytes(_HEAD)

    @staticmethod
    def _entry(worker: int, number: int) -> int:
        return worker * BOARD_SIZE + BULLETIN_SIZE + _COUNTER + number % ENTRIES * ENTRY_SIZE

    def _write(self, start: int, size: int, text: bytes) -> bool:
        if len(text) > size - _HEAD:
            return False
        head = start // 8
        # Odd, whatever was there: a worker that died here has left it so.
        version = self._numbers[head] | 1
        self._numbers[head] = version
        self._numbers[head + 1] = len(text)
        self._memory[start + _HEAD : start + _HEAD + len(text)] = text
        self._numbers[head] = version + 1
        return True

    def _read(self, start: int) -> bytes:
        head = start // 8
        for _ in range(_READS):
            version, length = self._numbers[head], self._numbers[head + 1]
            text = bytes(self._memory[start + _HEAD : start + _HEAD + length])
            if version % 2 == 0 and self._numbers[head] == version:
                return text
        return b""
