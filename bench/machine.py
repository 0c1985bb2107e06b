"""What the kernel knows: CPU time and memory of a program with all its children, and the machine's shape."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Memory",
    "choose_cpus",
    "cpu_model",
    "cpu_seconds",
    "memory",
    "proportional_memory",
    "raise_file_limit",
    "tree",
]


def tree(pid: int) -> Iterator[int]:
    """Yield a process and all that descend from it."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for child in children.read_text().split():
                yield from tree(int(child))


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and its descendants, with that of all threads that ended.

    Taken from the clock of each process (clock_getcpuclockid(3)), which counts nanoseconds; /proc/PID/stat
    counts hundredths of seconds.
    """
    total = 0.0
    for process in tree(pid):
        with contextlib.suppress(OSError):
            total += time.clock_gettime((~process << 3) | 2)
    return total


def _rollup(pid: int) -> dict[str, int]:
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        return {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    return {}


def proportional_memory(pid: int) -> int:
    """Return PSS of a process and its descendants, in octets: what they share is counted once."""
    return sum(_rollup(process).get("Pss", 0) for process in tree(pid))


@dataclass(frozen=True)
class Memory:
    """What a program and its descendants hold, in octets."""

    #: Proportional set size: mapped memory, what is shared counted once.
    mapped: int
    #: Files that exist in memory only. They are not mapped, so nothing above counts them.
    memfd: int
    #: Files without a name on disk.
    unnamed: int

    @property
    def total(self) -> int:
        """All of it that is memory and not the kernel's to take away."""
        return self.mapped + self.memfd


def memory(pid: int) -> Memory:
    """Look at every descriptor of a program and its descendants; slow if there are many thousands."""
    processes = list(tree(pid))
    rollups = [_rollup(process) for process in processes]
    files: dict[tuple[int, int], tuple[bool, int]] = {}
    for process in processes:
        with contextlib.suppress(OSError):
            for entry in os.scandir(f"/proc/{process}/fd"):
                with contextlib.suppress(OSError):
                    target = os.readlink(entry.path)
                    if target.startswith("/") and target.endswith(" (deleted)"):
                        status = os.stat(entry.path)
                        in_memory = target.startswith("/memfd:")
                        files[status.st_dev, status.st_ino] = in_memory, status.st_blocks * 512
    return Memory(
        mapped=sum(rollup.get("Pss", 0) for rollup in rollups),
        memfd=sum(size for in_memory, size in files.values() if in_memory),
        unnamed=sum(size for in_memory, size in files.values() if not in_memory),
    )


def raise_file_limit(descriptors: int) -> int:
    """Allow this process, and what it starts, so many descriptors if that can be had; return the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < descriptors:
        if hard < descriptors:
            # Only root may raise the hard limit.
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, descriptors))
                hard = descriptors
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(descriptors, hard), hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def choose_cpus(count: int) -> set[int]:
    """Return so many of the usable CPUs, of different cores as long as there are any.

    The last ones: the first serve most interrupts.
    """
    cores: dict[str, list[int]] = {}
    for cpu in sorted(os.sched_getaffinity(0), reverse=True):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        core = siblings.read_text() if siblings.exists() else str(cpu)
        cores.setdefault(core, []).append(cpu)
    in_turn = sorted((place, -cpu) for threads in cores.values() for place, cpu in enumerate(threads))
    return {-negative for _, negative in in_turn[:count]}


def cpu_model() -> str:
    """Return the name of the CPU, or else its architecture."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
