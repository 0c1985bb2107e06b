"""Which connections are ready, asked of the kernel for all of them at once."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable

__all__ = ["READABLE", "WRITABLE", "Poller"]

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT

# Connections that are served before the event loop has its turn again: timers and signals wait meanwhile.
_BATCH = 256


class Poller:
    """An epoll of its own, which the event loop watches as one descriptor.

    The loop's own readers and writers would do the same. But each takes a handle, a context and several look-ups
    to make and to end, which for connections that carry one message each is a tenth of all that one costs.
    """

    __slots__ = ("_epoll", "_handlers", "loop")

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self.loop.add_reader(self._epoll.fileno(), self._on_ready)

    def watch(self, descriptor: int, events: int, handler: Callable[[int], None]) -> None:
        """Call ``handler`` with the events of epoll(7) whenever one of ``events`` is there, or an error.

        Raises OSError when the system watches as many as it may.
        """
        self._epoll.register(descriptor, events)
        self._handlers[descriptor] = handler

    def change(self, descriptor: int, events: int) -> None:
        """Wait for other events."""
        self._epoll.modify(descriptor, events)

    def forget(self, descriptor: int) -> None:
        """Wait for nothing any more."""
        del self._handlers[descriptor]
        self._epoll.unregister(descriptor)

    def forget_closing(self, descriptor: int) -> None:
        """Like :meth:`forget`, for one that is closed now, at the latest in the next turn of the loop.

        The kernel forgets it by itself then, and a system call is saved.
        """
        del self._handlers[descriptor]

    def close(self) -> None:
        """Give everything back."""
        self.loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._handlers.clear()

    def _on_ready(self) -> None:
        handlers = self._handlers
        for descriptor, events in self._epoll.poll(0, _BATCH):
            # One may have been forgotten by the handler of another.
            if handler := handlers.get(descriptor):
                handler(events)
