"""The table at the end of a run, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from soak.figures import Figures

__all__ = ["Result"]

#: Breaches that are shown of each promise; the others are counted.
_SHOWN = 10


@dataclass(frozen=True)
class Result:
    """What a run came to. ``promises`` are what was to hold, each with its breaches."""

    title: str
    numbers: Sequence[tuple[str, int]]
    troubles: Mapping[str, int]
    held: Sequence[tuple[str, Figures]]
    promises: Mapping[str, Sequence[str]]
    seconds: float

    @property
    def faults(self) -> int:
        """How many breaches there were, of all promises."""
        return sum(map(len, self.promises.values()))

    def table(self) -> str:
        """Return the tables, and in words what did not hold."""
        lines = [f"{self.title} {self.seconds:.0f} s.", "", "| messages | number |", "|---|---:|"]
        lines += [f"| {what} | {number:,} |" for what, number in self.numbers]
        lines += ["", "| trouble | times |", "|---|---:|"]
        lines += [f"| {what} | {times} |" for what, times in self.troubles.items()]
        lines += ["", "| the daemon, idle | processes | descriptors | first process | largest worker |"]
        lines += ["|---|---:|---:|---:|---:|"]
        for when, held in self.held:
            memory = f"{held.first.resident / 2**20:.1f} MiB | {held.largest / 2**20:.1f} MiB"
            lines.append(f"| {when} | {held.processes} | {held.descriptors} | {memory} |")
        lines += ["", "| promise | breaches |", "|---|---:|"]
        lines += [f"| {what} | {len(found) or 'none'} |" for what, found in self.promises.items()]
        for what, found in self.promises.items():
            if found:
                lines += ["", f"BROKEN: {what}", *(f"- {one}" for one in found[:_SHOWN])]
                if len(found) > _SHOWN:
                    lines.append(f"- and {len(found) - _SHOWN} more")
        return "\n".join(lines)
