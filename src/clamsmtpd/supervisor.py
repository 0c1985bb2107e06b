"""The process over the workers: it forks them, watches over them, and passes on what it is told. It serves no mail.

It has no event loop. All that can happen to it is a signal, and between two of them it sleeps in sigtimedwait(2), so
that no handler ever runs in the midst of something. Nor has it a second thread, which could take the signals.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from clamsmtpd.values import StartError

__all__ = ["STOP_AT_ONCE", "Crew", "Supervisor", "Tie", "automatic_workers"]

_log = logging.getLogger("clamsmtpd")

CLEAN_STOP = 0
FAILED = 1

#: What a worker is told when transactions in flight shall not be waited for. It is no second SIGTERM: a service manager
#: that stops us may send SIGTERM to each of our processes, and the supervisor then sends it once more.
STOP_AT_ONCE = signal.SIGQUIT

#: What the workers are told the first, the second and every further time that the supervisor is told to stop. The last
#: is for a worker that is past hearing anything.
_STEPS = (signal.SIGTERM, STOP_AT_ONCE, signal.SIGKILL)

_SIGNALS = frozenset({signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1})

#: Seconds after its start within which a worker's death is a sign that the next one will die as well.
SOON = 10.0

#: Seconds until a worker is replaced that has died soon as the one before it; doubled for each further one.
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0

#: Workers that automatic_workers() gives at most. So many pass on ten thousand messages a second and more: clamd will
#: long have taken all the processors there are.
AUTOMATIC_MAX = 8


def automatic_workers(max_connections: int) -> int:
    """Return how many workers suit this machine: one for each two processors that we may run on.

    To scan a message costs clamd several times what it costs us to pass it on. With as many workers as processors, most
    of them would only take turns with clamd, and each has its price in memory.
    """
    return max(1, min(len(os.sched_getaffinity(0)) // 2, max_connections, AUTOMATIC_MAX))


@dataclass(frozen=True, slots=True)
class Tie:
    """What a worker has of its supervisor.

    ``lifeline`` is a descriptor that becomes readable when there is no supervisor any more.
    """

    lifeline: int
    _supervisor: int
    _mask: frozenset[int]

    def admit_signals(self) -> None:
        """Let signals arrive, now that there are handlers for them; until then they have waited."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def tell_serving(self) -> None:
        """Have the supervisor look: this worker serves."""
        # The signal by which a parent hears of its children anyway. If it has died, its number may be another's.
        if os.getppid() == self._supervisor:
            os.kill(self._supervisor, signal.SIGCHLD)


class Crew(Protocol):
    """What the workers do, and what is to be done around them. A worker has a number, from 0 up."""

    def work(self, worker: int, tie: Tie) -> int:
        """Serve, in a process of its own; return the exit status.

        SIGTERM asks for a clean end, ``STOP_AT_ONCE`` for one at once, the end of the lifeline for a clean one too.
        Other signals of the supervisor are ignored: those of a terminal or of a service manager are meant for all of
        us, and the supervisor says what they mean.
        """

    def serves(self, worker: int) -> bool:
        """Whether a worker accepts clients."""

    def on_started(self) -> None:
        """Tell that the workers serve."""

    def on_stop(self) -> None:
        """Let go of what only workers yet to come would need. Those that there are hear of the stop next."""

    def on_ended(self, worker: int) -> int:
        """Clean up behind a worker that has ended; return how many sessions ended with it."""

    def report(self) -> None:
        """Log the numbers."""


class _Post:
    """The place of one worker, and the process that holds it, if any."""

    __slots__ = ("early_deaths", "next_start", "number", "pid", "served", "since")

    def __init__(self, number: int) -> None:
        self.number = number
        self.pid = 0
        self.since = 0.0
        self.served = False
        # In a row, up to now.
        self.early_deaths = 0
        self.next_start: float | None = None


class Supervisor:
    """Keeps so many ``workers`` of the ``crew`` at work until it is told to stop. ``clock`` gives seconds."""

    def __init__(self, workers: int, crew: Crew, clock: Callable[[], float] = time.monotonic) -> None:
        self._posts = [_Post(number) for number in range(workers)]
        self._crew = crew
        self._clock = clock
        self._mask: frozenset[int] = frozenset()
        self._lifeline = (-1, -1)
        self._any_served = False
        self._started = False
        self._stops = 0
        self._status = CLEAN_STOP

    def run(self) -> int:
        """Return the exit status: 0 if all workers ended well, 1 if not. Raises StartError if none comes to serve."""
        self._mask = frozenset(signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS))
        # Whoever started us may have it ignored, and then nobody would hear of a worker's end.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._lifeline = os.pipe()
        try:
            for post in self._posts:
                self._start(post)
            while self._goes_on():
                self._act()
        finally:
            for end in self._lifeline:
                os.close(end)
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        return self._status

    def _goes_on(self) -> bool:
        if any(post.pid for post in self._posts):
            return True
        if self._stops:
            if self._stops > 1 and self._status != CLEAN_STOP:
                _log.warning("stopped before all transactions had ended")
            return False
        if not self._any_served:
            # What has kept the first ones from it will keep others.
            raise StartError("no worker came to serve")
        return True

    def _act(self) -> None:
        """Wait for the next thing to happen, and do what is to be done."""
        number = self._wait()
        if number in (signal.SIGTERM, signal.SIGINT):
            self._stop()
        elif number == signal.SIGUSR1:
            self._crew.report()
        # Whatever it was: of several signals of a kind only one arrives.
        for post in self._posts:
            self._look_at(post)
        if self._stops or not self._any_served:
            return
        for post in self._posts:
            if post.next_start is not None and post.next_start <= self._clock():
                self._start(post)
        if not self._started and all(post.served or not post.pid for post in self._posts):
            self._started = True
            self._crew.on_started()

    def _wait(self) -> int | None:
        starts = [post.next_start for post in self._posts if post.next_start is not None]
        if not starts or self._stops or not self._any_served:
            return signal.sigwaitinfo(_SIGNALS).si_signo
        found = signal.sigtimedwait(_SIGNALS, max(0.0, min(starts) - self._clock()))
        return None if found is None else found.si_signo

    def _stop(self) -> None:
        if not self._stops:
            self._crew.on_stop()
        number = _STEPS[min(self._stops, len(_STEPS) - 1)]
        self._stops += 1
        for post in self._posts:
            if post.pid:
                os.kill(post.pid, number)

    def _look_at(self, post: _Post) -> None:
        if not post.pid:
            return
        # First this: that one has served is forgotten when it has ended.
        post.served = post.served or self._crew.serves(post.number)
        self._any_served = self._any_served or post.served
        pid, status = os.waitpid(post.pid, os.WNOHANG)
        if pid:
            post.pid = 0
            self._note_end(post, pid, os.waitstatus_to_exitcode(status))

    def _note_end(self, post: _Post, pid: int, code: int) -> None:
        sessions = self._crew.on_ended(post.number)
        who = f"worker {post.number + 1} (process {pid}) {_how(code)}"
        if self._stops:
            if code:
                self._status = FAILED
                if self._stops == 1:
                    _log.error("%s; sessions lost: %d", who, sessions)
            return
        pause = self._pause_after(post)
        when = f"in {pause:g} s" if pause else "at once"
        level = logging.ERROR if code else logging.INFO
        _log.log(level, "%s; sessions lost: %d; its place is taken %s", who, sessions, when)

    def _pause_after(self, post: _Post) -> float:
        """Say when the place of a worker that has ended is taken by the next; return the pause in seconds."""
        now = self._clock()
        post.early_deaths = post.early_deaths + 1 if now - post.since < SOON else 0
        pause = 0.0
        if post.early_deaths > 1:
            # No float holds every power of two.
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(post.early_deaths - 2, 16))
        post.next_start = now + pause
        return pause

    def _start(self, post: _Post) -> None:
        post.next_start = None
        post.served = False
        post.since = self._clock()
        sys.stderr.flush()
        supervisor = os.getpid()
        try:
            post.pid = os.fork()
        except OSError as error:
            pause = self._pause_after(post)
            _log.error("worker %d cannot be started: %s; next try in %g s", post.number + 1, error.strerror, pause)
            return
        if post.pid == 0:
            self._work(post.number, supervisor)

    def _work(self, number: int, supervisor: int) -> None:
        """Be a worker: this is a process of its own, which never returns to whoever started the supervisor."""
        status = FAILED
        try:
            os.close(self._lifeline[1])
            for ignored in (signal.SIGINT, signal.SIGUSR1):
                signal.signal(ignored, signal.SIG_IGN)
            status = self._crew.work(number, Tie(self._lifeline[0], supervisor, self._mask))
        except Exception as error:  # noqa: BLE001
            _log.critical("internal error: %s: %s", type(error).__name__, error)
            _log.debug("traceback", exc_info=error)
        finally:
            os._exit(status)


def _how(code: int) -> str:
    """Say how a process ended, by its exit status; negative for a signal."""
    if code >= 0:
        return f"ended with status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
