"""What the daemon holds: its processes, their descriptors and memory; and whether that has grown."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.machine import tree

__all__ = ["Figures", "Process", "descendants_by_mark", "leaks", "look"]

#: Memory may grow by this part and these octets: neither the allocator nor what Python caches is ever quite full.
_GROWTH = 0.25
_SLACK = 8 * 1024 * 1024

#: Descriptors that a process may have more than before: connections to scanners that are kept between messages.
_KEPT_DESCRIPTORS = 2


@dataclass(frozen=True, slots=True)
class Process:
    """One process: its descriptors, and its resident memory in octets."""

    pid: int
    descriptors: int
    resident: int


@dataclass(frozen=True, slots=True)
class Figures:
    """A daemon when it is idle: the process that was started, those under it, and how many of those are zombies."""

    first: Process
    others: Sequence[Process]
    zombies: int

    @property
    def processes(self) -> int:
        """How many there are, without zombies."""
        return 1 + len(self.others)

    @property
    def descriptors(self) -> int:
        """The sum over all processes."""
        return self.first.descriptors + sum(process.descriptors for process in self.others)

    @property
    def largest(self) -> int:
        """The resident memory of the largest of the others; of the first where there are none."""
        return max((process.resident for process in self.others), default=self.first.resident)


def look(pid: int) -> Figures:
    """Return the figures of the daemon whose first process is ``pid``. Raises OSError if it is gone."""
    first, *others = tree(pid)
    alive, zombies = [], 0
    for other in others:
        try:
            if _state(other) == "Z":
                zombies += 1
            else:
                alive.append(_process(other))
        except OSError:
            continue  # it has just ended
    return Figures(_process(first), alive, zombies)


def _process(pid: int) -> Process:
    # One that has ended since it was found has nothing in memory.
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    resident = next((line for line in lines if line.startswith("VmRSS")), "VmRSS: 0 kB")
    return Process(pid, len(os.listdir(f"/proc/{pid}/fd")), int(resident.split()[1]) * 1024)


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def leaks(before: Figures, after: Figures) -> list[str]:
    """Return a line for each thing that the daemon has more of than before, both times idle."""
    found = []
    if after.zombies:
        found.append(f"{after.zombies} zombies")
    if after.processes != before.processes:
        found.append(f"{after.processes} processes instead of {before.processes}")
    if after.descriptors > before.descriptors + _KEPT_DESCRIPTORS * after.processes:
        found.append(f"{after.descriptors} descriptors instead of {before.descriptors}")
    for what, then, now in (
        ("the first process", before.first.resident, after.first.resident),
        ("the largest worker", before.largest, after.largest),
    ):
        if now > then * (1 + _GROWTH) + _SLACK:
            found.append(f"{what} has grown from {then >> 20} to {now >> 20} MiB")
    return found


def descendants_by_mark(mark: str) -> Iterator[tuple[int, str]]:
    """Yield the processes that have ``mark`` in the environment that they were started with, and their commands."""
    for entry in os.listdir("/proc"):
        # A process may end, or be another's, at any moment.
        with contextlib.suppress(OSError):
            if entry.isdigit() and mark.encode() in Path(f"/proc/{entry}/environ").read_bytes():
                command = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode("latin-1")
                yield int(entry), command.strip()
