"""What goes wrong: at every moment that chance chooses, something is killed, stopped, restarted or told to reload."""

from __future__ import annotations

import contextlib
import functools
import heapq
import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence

from clamsmtpd.supervisor import FIRST_PAUSE
from soak.stage import DRAIN_LIMIT, START_LIMIT, Stage
from tests.support.process import ProgramError

__all__ = ["CALM", "KINDS", "Chaos"]

#: Every kind of trouble, and the part that it befalls: only one thing is done to a part at a time.
KINDS: dict[str, tuple[str, ...]] = {
    "clamd 1 killed": ("clamd 1",),
    "clamd 2 killed": ("clamd 2",),
    "both clamds killed": ("clamd 1", "clamd 2"),
    "clamd 1 stopped for a while": ("clamd 1",),
    "clamd 2 stopped for a while": ("clamd 2",),
    "both clamds stopped for a while": ("clamd 1", "clamd 2"),
    "clamd 1 restarted": ("clamd 1",),
    "clamd 2 restarted": ("clamd 2",),
    "clamd 1 reloaded": ("clamd 1",),
    "clamd 2 reloaded": ("clamd 2",),
    "next hop killed": ("next hop",),
    "next hop stopped for a while": ("next hop",),
    "worker killed": ("daemon",),
    "supervisor killed, workers left": ("daemon",),
    "daemon killed whole": ("daemon",),
    "daemon told to end (SIGTERM), restarted": ("daemon",),
    "daemon told to reload (SIGHUP)": ("daemon",),
}

#: A daemon that has ended by itself comes back like one that was told to end.
_BY_ITSELF = "daemon told to end (SIGTERM), restarted"

#: The kinds that leave the daemon's processes alive: what it holds can be told before and after them.
CALM: Sequence[str] = tuple(
    name for name, parts in KINDS.items() if parts != ("daemon",) or name == "daemon told to reload (SIGHUP)"
)

#: Seconds without a part that was killed: from, to.
_AWAY = (0.05, 1.5)
#: Seconds for which a part is stopped, at least; and of how many stops one is a long one.
_STOPPED_MIN = 0.2
_LONG_STOPS = 12

#: Failed starts of the daemon after which the run is given up.
_FAILURES_MAX = 5

#: Seconds after a kill of a worker in which its place may be empty.
_REPLACED = 2 * FIRST_PAUSE


class Chaos:
    """Does one kind of thing after the other, in an order and at moments that ``chance`` chooses.

    ``interval`` is the mean of the seconds between two. ``stops`` are the seconds for which something is stopped, at
    most, ordinarily and now and then. ``fault`` is told in words what must not be. ``tick`` is to be called often; it
    waits for nothing longer than some clamd's start, and raises ProgramError if that fails, or if the daemon fails to
    start again and again.
    """

    def __init__(
        self,
        stage: Stage,
        chance: random.Random,
        *,
        interval: float,
        stops: tuple[float, float],
        fault: Callable[[str], None],
    ) -> None:
        self._stage = stage
        self._chance = chance
        self._interval = interval
        self._stops = stops
        self._fault = fault
        self._deck: list[str] = []
        self._busy: set[str] = set()
        self._next = 0.0
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._failures = 0
        self.counts: Counter[str] = Counter()

    def tick(self, kinds: Sequence[str]) -> None:
        """Do what is due, and something of these kinds if it is time for that."""
        now = time.monotonic()
        self._go_on(now)
        if not self._stage.life.running and "daemon" not in self._busy:
            self._fault("the daemon has ended, and nobody had asked it to")
            self._busy.add("daemon")
            self._begin_again(_BY_ITSELF, asked=False)
        if not self._stage.next_hop.running and "next hop" not in self._busy:
            self._fault("the next hop has ended by itself")
            self._stage.restart_next_hop()
        if now >= self._next:
            self._next = now + self._chance.expovariate(1 / self._interval)
            self._deck = [name for name in self._deck if name in kinds]
            if not self._deck:
                # Each kind once before any comes again.
                self._deck = self._chance.sample(list(kinds), len(kinds))
            self._do_one()

    def finish(self) -> None:
        """Let everything come back that is away."""
        while self._later:
            self._go_on(time.monotonic())
            time.sleep(0.02)

    def _go_on(self, now: float) -> None:
        while self._later and self._later[0][0] <= now:
            heapq.heappop(self._later)[2]()

    def _do_one(self) -> None:
        for name in self._deck:
            if not self._busy.intersection(KINDS[name]):
                self._deck.remove(name)
                self.counts[name] += 1
                self._busy.update(KINDS[name])
                self._act(name)
                return

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._order), action))

    def _free(self, name: str, seconds: float = 0.0) -> None:
        self._after(seconds, lambda: self._busy.difference_update(KINDS[name]))

    def _act(self, name: str) -> None:
        parts = KINDS[name]
        if parts == ("daemon",):
            self._act_on_daemon(name)
        elif parts == ("next hop",):
            self._act_on_next_hop(name)
        else:
            self._act_on_clamds(name, [int(part[-1]) - 1 for part in parts])

    # ---- scanners -----------------------------------------------------------------------------

    def _act_on_clamds(self, name: str, numbers: Sequence[int]) -> None:
        clamds = [self._stage.clamds[number] for number in numbers]
        if name.endswith("stopped for a while"):
            for clamd in clamds:
                clamd.send(signal.SIGSTOP)
            seconds = self._stop_length()
            for clamd in clamds:
                self._after(seconds, functools.partial(clamd.send, signal.SIGCONT))
            self._free(name, seconds)
        elif name.endswith("reloaded"):
            for clamd in clamds:
                with contextlib.suppress(OSError):
                    clamd.ask(b"RELOAD")
            self._free(name, 0.5)
        else:
            seconds = 0.0
            if name.endswith("killed"):
                seconds = self._chance.uniform(*_AWAY)
                for clamd in clamds:
                    clamd.send(signal.SIGKILL)
            for clamd in clamds:
                self._after(seconds, clamd.restart)
            self._free(name, seconds)

    def _stop_length(self) -> float:
        ordinary, long = self._stops
        return long if self._chance.randrange(_LONG_STOPS) == 0 else self._chance.uniform(_STOPPED_MIN, ordinary)

    # ---- the next hop -------------------------------------------------------------------------

    def _act_on_next_hop(self, name: str) -> None:
        if name.endswith("killed"):
            self._stage.next_hop.send(signal.SIGKILL)
            seconds = self._chance.uniform(*_AWAY)
            self._after(seconds, self._stage.restart_next_hop)
        else:
            self._stage.next_hop.send(signal.SIGSTOP)
            seconds = self._chance.uniform(_STOPPED_MIN, self._stops[0])
            self._after(seconds, lambda: self._stage.next_hop.send(signal.SIGCONT))
        self._free(name, seconds)

    # ---- the daemon ---------------------------------------------------------------------------

    def _act_on_daemon(self, name: str) -> None:
        life = self._stage.life
        now = time.monotonic()
        if name == "worker killed":
            if workers := life.workers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._chance.choice(workers), signal.SIGKILL)
            self._free(name, _REPLACED)
        elif name == "daemon told to reload (SIGHUP)":
            life.send(signal.SIGHUP)
            self._free(name, 0.5)
        elif name.startswith("daemon told to end"):
            life.send(signal.SIGTERM)
            self._wait_for_end(name, now)
        else:
            life.kill(whole=name == "daemon killed whole")
            self._wait_for_workers(name, now)

    def _wait_for_end(self, name: str, begin: float) -> None:
        waited = time.monotonic() - begin
        self._stage.longest_drain = max(self._stage.longest_drain, waited)
        if self._stage.life.running and waited < DRAIN_LIMIT:
            self._after(0.05, lambda: self._wait_for_end(name, begin))
            return
        if self._stage.life.running:
            self._fault(f"the daemon had not ended {DRAIN_LIMIT:g} s after SIGTERM")
        self._begin_again(name, asked=True)

    def _wait_for_workers(self, name: str, begin: float) -> None:
        """Wait for workers that are without a supervisor: they are to end what they have begun, and then to end."""
        orphans = self._stage.life.orphans()
        waited = time.monotonic() - begin
        if orphans and waited < DRAIN_LIMIT:
            self._after(0.05, lambda: self._wait_for_workers(name, begin))
            return
        if orphans:
            self._fault(f"{len(orphans)} workers had not ended {DRAIN_LIMIT:g} s after their supervisor")
        self._begin_again(name, asked=False)

    def _begin_again(self, name: str, *, asked: bool) -> None:
        self._stage.end_life(asked=asked)
        self._after(self._chance.uniform(0, 0.5), lambda: self._start(name))

    def _start(self, name: str) -> None:
        self._stage.begin_life()
        self._wait_for_start(name, time.monotonic())

    def _wait_for_start(self, name: str, begin: float) -> None:
        life = self._stage.life
        if life.serving:
            # It has something to do before it is the next one's turn.
            self._free(name, self._chance.uniform(0.1, 1))
            return
        if life.running and time.monotonic() - begin < START_LIMIT:
            self._after(0.02, lambda: self._wait_for_start(name, begin))
            return
        self._fault(f"the daemon did not start: {life.lines[-3:]}")
        self._failures += 1
        if self._failures >= _FAILURES_MAX:
            raise ProgramError(f"the daemon failed to start {self._failures} times; there is no point in going on")
        life.kill(whole=True)
        self._begin_again(name, asked=False)
