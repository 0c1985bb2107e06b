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

__all__ = ["READ_AGAIN", "STOP_AT_ONCE", "Crew", "Supervisor", "Tie", "automatic_workers"]

# Not the one of all others, and so without its throttle: with its pauses, what is said of workers has bounds by itself,
# and each worker to come would inherit what was left out, and tell it as its own.
_log = logging.getLogger("clamsmtpd.supervisor")

CLEAN_STOP = 0
FAILED = 1

#: What a worker is told when transactions in flight shall not be waited for. It is no second SIGTERM: a service manager
#: that stops us may send SIGTERM to each of our processes, and the supervisor then sends it once more.
STOP_AT_ONCE = signal.SIGQUIT

#: What a worker is told when the settings are to be read anew. It is no SIGHUP: one that a terminal sends to all of us
#: is for the supervisor alone to understand.
READ_AGAIN = signal.SIGUSR2

#: What the workers are told the first, the second and every further time that the supervisor is told to stop. The last
#: is for a worker that is past hearing anything.
_STEPS = (signal.SIGTERM, STOP_AT_ONCE, signal.SIGKILL)

# READ_AGAIN among them, so that it waits for a worker that has no handler for it yet.
_SIGNALS = frozenset({signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, READ_AGAIN})

#: Seconds after which what is still in flight is cut when we are told to stop. systemd kills after 90
#: (TimeoutStopSec), and we would rather say what was lost.
DRAIN_LIMIT = 75.0

#: Seconds that workers have to end when they were told to do so at once; then they are killed.
KILL_PAUSE = 5.0

#: Seconds between two looks at whether the workers' event loops turn, and how many of them in a row may find that one
#: does not before it is killed. Looks are counted, not seconds: a machine that was asleep has looked at nobody.
LOOK_INTERVAL = 10.0
LOOKS = 6

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

    def tell(self) -> None:
        """Have the supervisor look: this worker serves, or has found out something."""
        # The signal by which a parent hears of its children anyway. If it has died, its number may be another's.
        if os.getppid() == self._supervisor:
            os.kill(self._supervisor, signal.SIGCHLD)


class Crew(Protocol):
    """What the workers do, and what is to be done around them. A worker has a number, from 0 up."""

    def work(self, worker: int, tie: Tie) -> int:
        """Serve, in a process of its own; return the exit status.

        SIGTERM asks for a clean end, ``STOP_AT_ONCE`` for one at once, the end of the lifeline for a clean one too.
        ``READ_AGAIN`` asks for the settings to be read anew. Other signals of the supervisor are ignored: those of a
        terminal or of a service manager are meant for all of us, and the supervisor says what they mean.
        """

    def serves(self, worker: int) -> bool:
        """Whether a worker accepts clients."""

    def beat(self, worker: int) -> int:
        """Return a number that changes as long as a worker's event loop turns."""

    def sessions(self) -> int:
        """Return how many sessions there are now."""

    def on_started(self) -> None:
        """Tell that the workers serve."""

    def on_look(self) -> None:
        """Tell whoever wants to hear it what the workers have found out. Called whenever one of them may have."""

    def on_alive(self) -> None:
        """Tell the watchdog that we are alive."""

    def read_again(self, tell: Callable[[], None]) -> None:
        """Read the settings anew, for workers yet to come, and ``tell`` those that there are if they are good."""

    def on_stop(self) -> None:
        """Let go of what only workers yet to come would need. Those that there are hear of the stop next."""

    def on_ended(self, worker: int) -> int:
        """Clean up behind a worker that has ended; return how many sessions ended with it."""

    def report(self) -> None:
        """Log the numbers."""


class _Post:
    """The place of one worker, and the process that holds it, if any."""

    __slots__ = ("beat", "early_deaths", "next_start", "number", "pid", "served", "since", "still")

    def __init__(self, number: int) -> None:
        self.number = number
        self.pid = 0
        self.since = 0.0
        self.served = False
        # In a row, up to now.
        self.early_deaths = 0
        self.next_start: float | None = None
        self.beat = -1
        # Looks in a row that have seen the same beat.
        self.still = 0


class Supervisor:
    """Keeps so many ``workers`` of the ``crew`` at work until it is told to stop.

    ``clock`` gives seconds. ``watchdog``: seconds between two words to a watchdog, if there is one.
    """

    def __init__(
        self,
        workers: int,
        crew: Crew,
        clock: Callable[[], float] = time.monotonic,
        *,
        watchdog: float | None = None,
    ) -> None:
        self._posts = [_Post(number) for number in range(workers)]
        self._crew = crew
        self._clock = clock
        self._mask: frozenset[int] = frozenset()
        self._lifeline = (-1, -1)
        self._any_served = False
        self._started = False
        self._stops = 0
        self._status = CLEAN_STOP
        self._watchdog = watchdog
        now = clock()
        # When each of these is due.
        self._next_look = now + LOOK_INTERVAL
        self._next_word = None if watchdog is None else now
        self._next_step: float | None = None

    def run(self) -> int:
        """Return the exit status: 0 if all workers ended well, 1 if not. Raises StartError if none comes to serve."""
        self._mask = frozenset(signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS))
        # Whoever started us may have it ignored, and then nobody would hear of a worker's end.
        for number in (signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
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
        elif number == signal.SIGHUP and not self._stops:
            self._crew.read_again(lambda: self._tell_all(READ_AGAIN))
        # Whatever it was: of several signals of a kind only one arrives.
        for post in self._posts:
            self._look_at(post)
        self._keep_time()
        if self._stops or not self._any_served:
            return
        for post in self._posts:
            if post.next_start is not None and post.next_start <= self._clock():
                self._start(post)
        if not self._started and all(post.served or not post.pid for post in self._posts):
            self._started = True
            self._crew.on_started()
        self._crew.on_look()

    def _wait(self) -> int | None:
        due = [self._next_look, self._next_word, self._next_step]
        if self._any_served and not self._stops:
            due += [post.next_start for post in self._posts]
        first = min(moment for moment in due if moment is not None)
        found = signal.sigtimedwait(_SIGNALS, max(0.0, first - self._clock()))
        return None if found is None else found.si_signo

    def _keep_time(self) -> None:
        """Do what is due by now."""
        now = self._clock()
        if self._next_word is not None and self._watchdog is not None and now >= self._next_word:
            self._next_word = now + self._watchdog
            self._crew.on_alive()
        if now >= self._next_look:
            self._next_look = now + LOOK_INTERVAL
            for post in self._posts:
                self._check_beat(post)
        if self._next_step is not None and now >= self._next_step:
            if self._stops == 1:
                lost = self._crew.sessions()
                _log.warning("%g s after the stop not all had ended; connections cut: %d", DRAIN_LIMIT, lost)
            self._stop()

    def _check_beat(self, post: _Post) -> None:
        beat = self._crew.beat(post.number)
        post.still = post.still + 1 if beat == post.beat else 0
        post.beat = beat
        if post.pid and post.still >= LOOKS:
            post.still = 0
            seconds = LOOKS * LOOK_INTERVAL
            _log.error("worker %d (process %d) has not moved for %g s", post.number + 1, post.pid, seconds)
            os.kill(post.pid, signal.SIGKILL)

    def _stop(self) -> None:
        if not self._stops:
            self._crew.on_stop()
        number = _STEPS[min(self._stops, len(_STEPS) - 1)]
        self._stops += 1
        pause = DRAIN_LIMIT if self._stops == 1 else KILL_PAUSE
        self._next_step = self._clock() + pause
        self._tell_all(number)

    def _tell_all(self, number: signal.Signals) -> None:
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
        post.still = 0
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
            for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
                signal.signal(ignored, signal.SIG_IGN)
            status = self._crew.work(number, Tie(self._lifeline[0], supervisor, self._mask - {signal.SIGHUP}))
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
