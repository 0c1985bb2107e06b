"""A bound on the warnings and errors that strangers can cause: so many of a kind, then only how many more."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

__all__ = ["BURST", "INTERVAL", "Throttle"]

#: Seconds for which records of one kind are counted together.
INTERVAL = 10.0

#: Records of one kind that pass in that time: two a second.
BURST = 20

#: Kinds that are told apart. There are far fewer; it is a bound, should one ever come to hold what a stranger said.
_KINDS_MAX = 200


class _Count(int):
    """A number that is shown with its thousands apart."""

    __slots__ = ()

    def __str__(self) -> str:
        return f"{int(self):,}"


class _Kind:
    """Records of one kind since ``start``."""

    __slots__ = ("last", "left_out", "passed", "start")

    def __init__(self, start: float) -> None:
        self.start = start
        self.passed = 0
        self.left_out = 0
        self.last: logging.LogRecord | None = None


class Throttle(logging.Filter):
    """A filter for a logger that lets ``BURST`` warnings or errors of a kind pass in ``INTERVAL`` seconds.

    When the time is over, one line says how many were left out, and shows the last of them. Of one kind is what is made
    from one format. What has a bound by itself passes uncounted: the lines of the info level, one for each connection
    and each message, which programs count; the critical one with which the program ends; and those at the start, which
    are all of their text and no format. ``clock`` gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: dict[str, _Kind] = {}
        self._timer: asyncio.TimerHandle | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the record passes."""
        if not logging.WARNING <= record.levelno < logging.CRITICAL or record.msg == "%s":
            return True
        kind = self._kind_of(record)
        if kind.passed < BURST:
            kind.passed += 1
            return True
        kind.left_out += 1
        kind.last = record
        if self._timer is None:
            self._tell_later()
        return False

    def tell(self) -> None:
        """Say of each kind how many were left out, and begin to count anew."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        kinds, self._kinds = self._kinds, {}
        for kind in kinds.values():
            self._tell_of(kind)

    def _kind_of(self, record: logging.LogRecord) -> _Kind:
        now = self._clock()
        name = str(record.msg)
        kind = self._kinds.get(name)
        if kind is not None and now < kind.start + INTERVAL:
            return kind
        if kind is not None:
            self._tell_of(kind)
        elif len(self._kinds) >= _KINDS_MAX:
            self.tell()
        kind = self._kinds[name] = _Kind(now)
        return kind

    def _tell_later(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            # The supervisor has none, and no strangers. The next record of the kind will do.
            return
        self._timer = loop.call_later(INTERVAL, self.tell)

    def _tell_of(self, kind: _Kind) -> None:
        last = kind.last
        if last is None:
            return
        seconds = self._clock() - kind.start
        told = logging.makeLogRecord(
            {
                "name": last.name,
                "levelno": last.levelno,
                "levelname": last.levelname,
                "msg": "%s more like this in %.0f s, the last one: %s",
                "args": (_Count(kind.left_out), seconds, last.getMessage()),
            }
        )
        # Past the filters: it is not to be counted itself.
        logging.getLogger(last.name).callHandlers(told)
