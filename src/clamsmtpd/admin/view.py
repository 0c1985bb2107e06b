"""The daemon as seen from outside: what all workers have counted and said, put together."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from clamsmtpd import __version__
from clamsmtpd.account import is_about
from clamsmtpd.clamd.protocol import signatures_date
from clamsmtpd.commons import Share
from clamsmtpd.config import Settings
from clamsmtpd.metrics import FAILURES, METRICS, OUTCOMES, VERDICTS, Metrics, Span

__all__ = ["Look", "ScannerView", "View", "WorkerView"]

#: Messages that are listed at once.
LISTED_MAX = 200

# Messages that are read before others have their turn.
_AT_ONCE = 64

_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(slots=True)
class WorkerView:
    """A process that serves. ``memory`` is what it has in memory, in octets."""

    number: int
    pid: int
    sessions: dict[str, int]
    memory: int


@dataclass(slots=True)
class ScannerView:
    """A scanner as all workers see it together. ``signatures`` is their date in seconds since 1970, 0 if unknown.

    ``usable``: each worker can use it. ``outstanding``: messages that it has now; ``scans`` and ``seconds``: how many
    verdicts it has given, and how long they took together. ``limit``: octets of a message that it would not look at.
    """

    address: str
    usable: bool = True
    fault: str = ""
    version: str = ""
    signatures: float = 0.0
    outstanding: int = 0
    scans: int = 0
    seconds: float = 0.0
    limit: int | None = None


@dataclass(slots=True)
class Look:
    """Where all workers are at one moment; the scanners are in the order of the settings."""

    workers: list[WorkerView]
    scanners: list[ScannerView]

    def sessions(self) -> dict[str, int]:
        """Return how many sessions wait for what, of those for which some session waits."""
        phases: dict[str, int] = {}
        for worker in self.workers:
            for phase, count in worker.sessions.items():
                phases[phase] = phases.get(phase, 0) + count
        return phases


@dataclass(slots=True)
class View:
    """Reads what the workers share. ``settings`` returns those in force."""

    share: Share
    settings: Callable[[], Settings]

    @property
    def metrics(self) -> Metrics:
        """The numbers of all workers."""
        return self.share.metrics

    def look(self) -> Look:
        """Return where all workers are now, by what each has last said, which each does every second."""
        said = list(self._read_bulletins())
        workers = [WorkerView(number, told["pid"], told["sessions"], _memory_of(told["pid"])) for number, told in said]
        return Look(workers, _put_together(scanner for _, told in said for scanner in told["scanners"]))

    def status(self) -> dict[str, Any]:
        """Return all of it by names that stay, for JSON. Times are seconds since 1970, spans seconds, sizes octets."""
        metrics, settings = self.metrics, self.settings()
        look = self.look()
        now = time.time()
        return {
            "version": __version__,
            "time": round(now, 3),
            "since": round(self.share.since, 3),
            "listen": [str(place) for place in settings.listen],
            "next_hop": str(settings.out_address) if settings.out_address is not None else None,
            "max_connections": settings.max_connections,
            "totals": {metric.name: metrics.total(index) for index, metric in enumerate(METRICS)},
            "messages": [
                {"verdict": verdict, "outcome": outcome, "count": count}
                for row, verdict in enumerate(VERDICTS)
                for column, outcome in enumerate(OUTCOMES)
                if (count := metrics.messages(row, column))
            ],
            "times": {
                span.name.lower(): {"count": sum(histogram.counts), "seconds": round(histogram.sum, 6)}
                for span in Span
                for histogram in (metrics.histogram(span),)
            },
            "failures": {
                failure.name.lower(): count for failure, _ in FAILURES if (count := metrics.failures(failure))
            },
            "sessions": look.sessions(),
            "workers": [
                {
                    "number": worker.number,
                    "pid": worker.pid,
                    "sessions": sum(worker.sessions.values()),
                    "memory": worker.memory,
                }
                for worker in look.workers
            ],
            "scanners": [
                {
                    "address": scanner.address,
                    "usable": scanner.usable,
                    "fault": scanner.fault,
                    "version": scanner.version,
                    "signatures": scanner.signatures or None,
                    "signatures_age": round(now - scanner.signatures, 1) if scanner.signatures else None,
                    "outstanding": scanner.outstanding,
                    "scans": scanner.scans,
                    "seconds": round(scanner.seconds, 6),
                    "limit": scanner.limit,
                }
                for scanner in look.scanners
            ],
        }

    async def messages(self, wanted: str = "") -> list[dict[str, Any]]:
        """Return the last messages, the latest first.

        ``wanted``: only those of that message id, connection id, quarantine id, or id in the next hop's queue.
        """
        found: list[dict[str, Any]] = []
        for number, account in enumerate(self._accounts(), 1):
            if not wanted or is_about(account, wanted):
                found.append(account)
            if number % _AT_ONCE == 0:
                # Mail has its turn: with many workers all of them take tens of milliseconds.
                await asyncio.sleep(0)
        found.sort(key=lambda account: float(account["since"]), reverse=True)
        return found[:LISTED_MAX]

    def _accounts(self) -> Iterator[dict[str, Any]]:
        if self.share.board is not None:
            for note in self.share.board.notes():
                yield json.loads(note)

    def _read_bulletins(self) -> Iterator[tuple[int, dict[str, Any]]]:
        if self.share.board is not None:
            for number, text in enumerate(self.share.board.bulletins()):
                if text:
                    yield number, json.loads(text)


def _put_together(said: Iterable[dict[str, Any]]) -> list[ScannerView]:
    """Return each scanner as all workers see it, from what each says of it."""
    found: dict[str, ScannerView] = {}
    for told in said:
        view = found.setdefault(told["address"], ScannerView(told["address"]))
        view.usable = view.usable and told["usable"]
        view.fault = view.fault or told["fault"]
        view.version = view.version or told["version"]
        view.outstanding += told["outstanding"]
        view.scans += told["scans"]
        view.seconds += told["seconds"]
        view.limit = told["limit"] if view.limit is None else view.limit
    for view in found.values():
        if (date := signatures_date(view.version)) is not None:
            # clamd tells it in the local time of its host, without saying which.
            view.signatures = date.timestamp()
    return list(found.values())


def _memory_of(pid: int) -> int:
    # Not as ASCII: its codec would be loaded only now, when User may not reach the files of Python any more.
    with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/statm", encoding="utf-8") as file:
        return int(file.read().split()[1]) * _PAGE
    return 0
