"""Inspections that nobody waits for any more: they may end, but not become many."""

from __future__ import annotations

import asyncio

__all__ = ["ORPHANS_MAX", "Orphans"]

#: So many at once in one worker. Each holds a message and a scan; clients that leave are no longer among those that
#: MaxConnections counts, and could else be any number.
ORPHANS_MAX = 64


class Orphans:
    """The tasks that inspect what their clients have abandoned."""

    __slots__ = ("_tasks",)

    def __init__(self) -> None:
        # In their order: the first has waited longest, and will soon have come to an end of one kind or the other.
        self._tasks: dict[asyncio.Task[None], None] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def take(self, task: asyncio.Task[None]) -> None:
        """Let a task go on to its end if there are not too many; else cancel it."""
        if len(self._tasks) >= ORPHANS_MAX:
            task.cancel()
            return
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)

    async def end(self) -> None:
        """Cancel all that are left, and wait for that."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
