"""The supervisor over real processes, whose work is as small as a test can make it."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import mmap
import os
import select
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from clamsmtpd import supervisor
from clamsmtpd.supervisor import READ_AGAIN, STOP_AT_ONCE, Supervisor, Tie, automatic_workers
from clamsmtpd.values import StartError

# Python 3.12 warns of what is no matter here: the test runner's threads do not exist in a worker.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

Work = Callable[["Crew", int, Tie], int]


class Crew:
    """Workers that do what the test says. ``told`` is what the supervisor had to tell, in order.

    The memory that they share has eight octets for each: the first says that it serves, the second counts its starts,
    the third how often it was to read the settings again.
    """

    def __init__(self, work: Work, then: Callable[[Crew], None] | None = None) -> None:
        self.told: list[str] = []
        self.memory = mmap.mmap(-1, 64)
        self.beats = True
        self.good = True
        self.looks = 0
        self._work = work
        self._then = then

    def work(self, worker: int, tie: Tie) -> int:
        self.memory[8 * worker + 1] += 1
        return self._work(self, worker, tie)

    def starts(self, worker: int) -> int:
        return self.memory[8 * worker + 1]

    @property
    def reads(self) -> list[int]:
        return [count for worker in range(2) if self.starts(worker) for count in self.memory[8 * worker + 2 :][:1]]

    def serve(self, worker: int, tie: Tie) -> None:
        self.memory[8 * worker] = 1
        tie.admit_signals()
        tie.tell()

    def serves(self, worker: int) -> bool:
        return bool(self.memory[8 * worker])

    def beat(self, worker: int) -> int:
        return time.monotonic_ns() if self.beats else 0

    def sessions(self) -> int:
        return 7

    def on_look(self) -> None:
        self.looks += 1

    def on_alive(self) -> None:
        self.told.append("alive")

    def read_again(self, tell: Callable[[], None]) -> None:
        self.told.append("read again")
        if self.good:
            tell()

    def on_started(self) -> None:
        self.told.append("started")
        if self._then is not None:
            self._then(self)

    def on_stop(self) -> None:
        self.told.append("stop")

    def on_ended(self, worker: int) -> int:
        self.told.append(f"ended {worker}")
        self.memory[8 * worker] = 0
        return 3

    def report(self) -> None:
        self.told.append("report")


#: What Outcome.status is if no worker came to serve.
NOT_STARTED = -1


@dataclass
class Outcome:
    """What came of a supervisor: its exit status, what it told the crew, and the lines of its log with their levels."""

    status: int
    told: list[str]
    log: list[tuple[int, str]]

    @property
    def lines(self) -> list[str]:
        return [text for _, text in self.log]


class Records(logging.Handler):
    """Keeps what was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.log.append((record.levelno, record.getMessage()))


def supervise(
    workers: int, crew: Crew, clock: Callable[[], float] = time.monotonic, watchdog: float | None = None
) -> Outcome:
    """Run a supervisor in a process of its own: it is for one without threads, which could take its signals."""
    receive, send = os.pipe()
    if not (pid := os.fork()):
        status = 1
        try:
            # Whatever a test waits for in vain.
            signal.alarm(20)
            os.write(send, json.dumps(_supervise(workers, crew, clock, watchdog)).encode())
            status = 0
        except Exception:  # noqa: BLE001 - told, and the test fails by the status
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(send)
    with os.fdopen(receive) as pipe:
        # Its workers have the other end too, so that this waits for them as well.
        text = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0
    exit_status, told, log = json.loads(text)
    return Outcome(exit_status, told, [(level, line) for level, line in log])


def _supervise(
    workers: int, crew: Crew, clock: Callable[[], float], watchdog: float | None
) -> tuple[int, list[str], list[tuple[int, str]]]:
    records = Records()
    logger = logging.getLogger("clamsmtpd")
    logger.handlers[:] = [records]
    logger.setLevel(logging.INFO)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    descriptors = os.listdir("/proc/self/fd")
    try:
        status = Supervisor(workers, crew, clock, watchdog=watchdog).run()
    except StartError as error:
        status = NOT_STARTED
        records.log.append((logging.CRITICAL, str(error)))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    assert os.listdir("/proc/self/fd") == descriptors
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    return status, crew.told, records.log


def until_term(crew: Crew, worker: int, tie: Tie) -> int:
    """Serve until SIGTERM, and end well."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    crew.serve(worker, tie)
    return orphaned(tie)


def orphaned(tie: Tie) -> int:
    """Wait until there is no supervisor any more."""
    select.select([tie.lifeline], [], [])
    return 1


def stop(_crew: Crew) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def soon(act: Callable[[], object], *, seconds: float = 0.1) -> None:
    """Do something while the supervisor waits."""
    threading.Timer(seconds, act).start()


def stop_when(crew: Crew, condition: Callable[[], bool]) -> None:
    def act() -> None:
        wait_until(condition)
        stop(crew)

    soon(act)


def pids() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_are_started_and_stopped(number: signal.Signals) -> None:
    crew = Crew(until_term, lambda _crew: os.kill(os.getpid(), number))
    outcome = supervise(3, crew)
    assert outcome.status == 0
    assert outcome.told[:2] == ["started", "stop"]
    assert sorted(outcome.told[2:]) == ["ended 0", "ended 1", "ended 2"]
    assert [crew.starts(worker) for worker in range(3)] == [1, 1, 1]
    assert outcome.log == []


def test_the_start_is_over_when_all_serve() -> None:
    def work(crew: Crew, worker: int, tie: Tie) -> int:
        time.sleep(0.1 * worker)
        return until_term(crew, worker, tie)

    def then(crew: Crew) -> None:
        assert all(crew.serves(worker) for worker in range(3))
        stop(crew)

    outcome = supervise(3, Crew(work, then))
    assert outcome.status == 0
    assert outcome.told.count("started") == 1


def test_whoever_dies_is_told_once_and_replaced_at_once() -> None:
    def then(crew: Crew) -> None:
        victim = pids()[0]
        crew.told.append(str(victim))
        os.kill(victim, signal.SIGKILL)
        stop_when(crew, lambda: crew.starts(0) == 2 and crew.serves(0))

    crew = Crew(until_term, then)
    begin = time.monotonic()
    outcome = supervise(2, crew)
    assert outcome.status == 0
    assert time.monotonic() - begin < 5
    assert crew.starts(1) == 1
    victim = outcome.told.pop(1)
    line = f"worker 1 (process {victim}) was killed by SIGKILL; sessions lost: 3; its place is taken at once"
    assert outcome.log == [(logging.ERROR, line)]
    # The start is told once, whoever comes later.
    assert outcome.told[:3] == ["started", "ended 0", "stop"]


def test_a_worker_that_ends_by_itself_is_replaced_too() -> None:
    def then(crew: Crew) -> None:
        os.kill(pids()[0], signal.SIGTERM)
        stop_when(crew, lambda: crew.starts(0) == 2 and crew.serves(0))

    outcome = supervise(2, Crew(until_term, then))
    assert outcome.status == 0
    ((level, line),) = outcome.log
    assert "ended with status 0; " in line
    assert level == logging.INFO


def test_one_that_keeps_dying_comes_back_after_pauses_that_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.1)
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE", 0.3)

    def work(crew: Crew, worker: int, tie: Tie) -> int:
        return until_term(crew, worker, tie) if worker else 7

    crew = Crew(work, lambda crew: stop_when(crew, lambda: crew.starts(0) == 6))
    begin = time.monotonic()
    outcome = supervise(2, crew)
    assert time.monotonic() - begin > 0.1 + 0.2 + 0.3 + 0.3
    ends = [line.rpartition("; ")[2] for line in outcome.lines if "ended with status 7" in line]
    assert ends[:5] == [
        f"its place is taken {when}" for when in ("at once", "in 0.1 s", "in 0.2 s", "in 0.3 s", "in 0.3 s")
    ]
    # The others do not wait for it to serve.
    assert "started" in outcome.told


def test_a_pause_is_over_for_one_that_has_lived() -> None:
    now = [0.0]
    ages = [1.0, 1.0, supervisor.SOON, 1.0]

    def then(crew: Crew) -> None:
        soon(lambda: die(crew))

    def die(crew: Crew) -> None:
        for age in ages:
            deaths = crew.told.count("ended 0")
            wait_until(lambda deaths=deaths: crew.starts(0) == deaths + 1 and crew.serves(0))  # type: ignore[misc]
            now[0] += age
            os.kill(pids()[0], signal.SIGKILL)
            wait_until(lambda deaths=deaths: crew.told.count("ended 0") == deaths + 1)  # type: ignore[misc]
            now[0] += 0.6
            os.kill(os.getpid(), signal.SIGCHLD)
        wait_until(lambda: crew.starts(0) == 5 and crew.serves(0))
        stop(crew)

    outcome = supervise(1, Crew(until_term, then), clock=lambda: now[0])
    ends = [line.rpartition("its place is taken ")[2] for line in outcome.lines]
    assert ends == ["at once", "in 0.5 s", "at once", "at once"]


def test_no_pause_is_longer_than_half_a_minute_however_often_one_has_died() -> None:
    watcher = Supervisor(1, Crew(until_term), clock=lambda: 0.0)
    pauses = [watcher._pause_after(watcher._posts[0]) for _ in range(5000)]
    assert pauses[:9] == [0, 0.5, 1, 2, 4, 8, 16, 30, 30]
    assert pauses[-1] == 30


def test_if_none_comes_to_serve_starting_has_failed() -> None:
    crew = Crew(lambda _crew, _worker, _tie: 1)
    outcome = supervise(3, crew)
    assert outcome.status == NOT_STARTED
    assert [crew.starts(worker) for worker in range(3)] == [1, 1, 1]
    assert "started" not in outcome.told
    assert outcome.lines[-1] == "no worker came to serve"


def test_what_a_worker_did_not_catch_is_its_end_alone(capfd: pytest.CaptureFixture[str]) -> None:
    def work(_crew: Crew, _worker: int, _tie: Tie) -> int:
        handler = logging.StreamHandler()
        logging.getLogger("clamsmtpd").addHandler(handler)
        raise LookupError("no such thing")

    assert supervise(1, Crew(work)).status == NOT_STARTED
    assert "internal error: LookupError: no such thing" in capfd.readouterr().err


def test_a_worker_that_cannot_be_forked_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.01)
    # The first of them is the supervisor.
    fork, refusals = os.fork, [None, None, errno.EAGAIN, errno.EAGAIN]

    def reluctant() -> int:
        if refusals and (number := refusals.pop(0)):
            raise OSError(number, os.strerror(number))
        return fork()

    monkeypatch.setattr("clamsmtpd.supervisor.os.fork", reluctant)
    crew = Crew(until_term, lambda crew: stop_when(crew, lambda: crew.serves(1)))
    outcome = supervise(2, crew)
    assert outcome.status == 0
    assert crew.starts(1) == 1
    assert outcome.lines == [
        "worker 2 cannot be started: Resource temporarily unavailable; next try in 0 s",
        "worker 2 cannot be started: Resource temporarily unavailable; next try in 0.01 s",
    ]


def test_what_comes_before_a_worker_can_hear_waits_for_it() -> None:
    def work(crew: Crew, worker: int, tie: Tie) -> int:
        if worker == 0:
            os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(0.2)
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        crew.serve(worker, tie)
        return orphaned(tie)

    assert supervise(2, Crew(work)).status == 0


def test_signals_that_a_terminal_sends_to_all_do_not_end_a_worker() -> None:
    def then(crew: Crew) -> None:
        for pid in pids():
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
                os.kill(pid, number)
        soon(lambda: stop(crew))

    crew = Crew(until_term, then)
    assert supervise(2, crew).status == 0
    assert [crew.starts(0), crew.starts(1)] == [1, 1]


def test_the_numbers_are_logged_for_whoever_asks() -> None:
    def then(crew: Crew) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        stop_when(crew, lambda: "report" in crew.told)

    outcome = supervise(2, Crew(until_term, then))
    assert outcome.status == 0
    assert outcome.told[:3] == ["started", "report", "stop"]


def deaf(crew: Crew, worker: int, tie: Tie, *, at_once: bool = True) -> int:
    """Serve, and take the first SIGTERM for what it is: a beginning."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(STOP_AT_ONCE, (lambda *_: os._exit(1)) if at_once else signal.SIG_IGN)
    crew.serve(worker, tie)
    return orphaned(tie)


def test_asked_twice_they_stop_at_once() -> None:
    def then(crew: Crew) -> None:
        stop(crew)
        soon(lambda: stop(crew))

    outcome = supervise(2, Crew(deaf, then))
    assert outcome.status == 1
    assert outcome.lines == ["stopped before all transactions had ended"]


def test_asked_again_they_are_killed() -> None:
    def then(crew: Crew) -> None:
        stop(crew)
        soon(lambda: stop(crew))
        soon(lambda: stop(crew), seconds=0.2)

    outcome = supervise(2, Crew(lambda *known: deaf(*known, at_once=False), then))
    assert outcome.status == 1
    assert outcome.lines == ["stopped before all transactions had ended"]


def test_one_that_dies_while_all_stop_is_told_and_not_replaced() -> None:
    def then(crew: Crew) -> None:
        pid = pids()[0]
        stop(crew)
        crew.told.append(str(pid))
        soon(lambda: os.kill(pid, signal.SIGKILL))

    crew = Crew(deaf, then)
    outcome = supervise(1, crew)
    assert outcome.status == 1
    victim = outcome.told[1]
    assert outcome.lines == [f"worker 1 (process {victim}) was killed by SIGKILL; sessions lost: 3"]
    assert crew.starts(0) == 1


def test_a_worker_notices_that_there_is_no_supervisor_any_more() -> None:
    """The supervisor is a process of its own here, and is killed; who reads the pipe sees its worker end."""
    told, tell = os.pipe()

    def work(crew: Crew, worker: int, tie: Tie) -> int:
        crew.serve(worker, tie)
        os.write(tell, b"%d\n" % os.getpid())
        select.select([tie.lifeline], [], [])
        # Whoever has the supervisor's number now is not to be bothered.
        tie.tell()
        os.write(tell, b"end\n")
        return 0

    if not (pid := os.fork()):
        with contextlib.suppress(BaseException):
            Supervisor(2, Crew(work)).run()
        os._exit(1)
    os.close(tell)
    with os.fdopen(told) as lines:
        workers = [int(lines.readline()) for _ in range(2)]
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert lines.read() == "end\nend\n"
    assert pid not in workers


# Reading the settings again


def reader(crew: Crew, worker: int, tie: Tie) -> int:
    """Serve, and count how often the settings are to be read again."""

    def read(*_: object) -> None:
        crew.memory[8 * worker + 2] += 1

    signal.signal(READ_AGAIN, read)
    return until_term(crew, worker, tie)


@pytest.mark.parametrize(("good", "reads"), [(True, [1, 1]), (False, [0, 0])])
def test_good_settings_are_told_to_all_workers(good: bool, reads: list[int]) -> None:
    def then(crew: Crew) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        stop_when(crew, lambda: "read again" in crew.told and sum(reads) == sum(crew.reads))

    crew = Crew(reader, then)
    crew.good = good
    outcome = supervise(2, crew)
    assert outcome.status == 0
    assert outcome.told[:3] == ["started", "read again", "stop"]
    assert crew.reads == reads
    assert [crew.starts(0), crew.starts(1)] == [1, 1]


def test_one_that_has_no_ears_yet_hears_of_it_later() -> None:
    def work(crew: Crew, worker: int, tie: Tie) -> int:
        if worker == 0:
            os.kill(os.getppid(), signal.SIGHUP)
        time.sleep(0.3)
        return reader(crew, worker, tie)

    crew = Crew(work, lambda crew: stop_when(crew, lambda: crew.reads == [1, 1]))
    assert supervise(2, crew).status == 0
    assert crew.reads == [1, 1]


def test_what_came_before_the_first_worker_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    start = Supervisor.run

    def run(watcher: Supervisor) -> int:
        # As under nohup, and blocked since the settings were read.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        signal.raise_signal(signal.SIGHUP)
        status = start(watcher)
        assert signal.SIGHUP in signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return status

    monkeypatch.setattr(Supervisor, "run", run)
    crew = Crew(reader, lambda crew: stop_when(crew, lambda: crew.reads == [1]))
    outcome = supervise(1, crew)
    assert outcome.status == 0
    assert outcome.told.count("read again") == 1
    assert crew.reads == [1]


def test_when_all_stop_nothing_is_read() -> None:
    def then(crew: Crew) -> None:
        stop(crew)
        soon(lambda: os.kill(os.getpid(), signal.SIGHUP))
        soon(lambda: stop(crew), seconds=0.3)

    outcome = supervise(1, Crew(deaf, then))
    assert "read again" not in outcome.told


# Limits of time


@pytest.mark.parametrize("at_once", [True, False])
def test_a_stop_has_a_limit(monkeypatch: pytest.MonkeyPatch, at_once: bool) -> None:
    monkeypatch.setattr(supervisor, "DRAIN_LIMIT", 0.3)
    monkeypatch.setattr(supervisor, "KILL_PAUSE", 0.3)
    begin = time.monotonic()
    outcome = supervise(2, Crew(lambda *known: deaf(*known, at_once=at_once), stop))
    assert (time.monotonic() - begin > 0.6) == (not at_once)
    assert outcome.status == 1
    assert outcome.lines == [
        "0.3 s after the stop not all had ended; connections cut: 7",
        "stopped before all transactions had ended",
    ]


def test_those_asked_twice_have_a_limit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "KILL_PAUSE", 0.2)

    def then(crew: Crew) -> None:
        stop(crew)
        soon(lambda: stop(crew))

    outcome = supervise(1, Crew(lambda *known: deaf(*known, at_once=False), then))
    assert outcome.status == 1
    assert outcome.lines == ["stopped before all transactions had ended"]


def test_one_whose_loop_stands_still_is_killed_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LOOK_INTERVAL", 0.1)
    monkeypatch.setattr(supervisor, "LOOKS", 3)

    def then(crew: Crew) -> None:
        victim = pids()[0]
        crew.told.append(str(victim))
        # A look or two are no matter.
        soon(lambda: setattr(crew, "beats", False), seconds=0.3)
        stop_when(crew, lambda: crew.starts(0) == 2 and crew.serves(0))

    crew = Crew(until_term, then)
    outcome = supervise(1, crew)
    assert outcome.status == 0
    victim = outcome.told[1]
    assert outcome.lines[0] == f"worker 1 (process {victim}) has not moved for 0.3 s"
    assert outcome.lines[1].startswith(f"worker 1 (process {victim}) was killed by SIGKILL; ")


def test_looks_count_and_not_the_clock() -> None:
    now = [0.0]
    killed: list[int] = []
    crew = Crew(until_term)
    crew.beats = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clamsmtpd.supervisor.os.kill", lambda pid, _number: killed.append(pid))
        watcher = Supervisor(1, crew, clock=lambda: now[0])
        watcher._posts[0].pid = 4711
        # However long a machine has slept, it is one look.
        for _ in range(supervisor.LOOKS):
            now[0] += 86400
            watcher._keep_time()
            watcher._keep_time()
        assert killed == []
        now[0] += supervisor.LOOK_INTERVAL
        watcher._keep_time()
        assert killed == [4711]


def test_a_watchdog_is_told_again_and_again() -> None:
    def then(crew: Crew) -> None:
        stop_when(crew, lambda: crew.told.count("alive") >= 4)

    outcome = supervise(1, Crew(until_term, then), watchdog=0.05)
    assert outcome.status == 0
    # From the first moment.
    assert outcome.told[0] == "alive"


@pytest.mark.parametrize(
    ("processors", "connections", "workers"),
    [(1, 64, 1), (2, 64, 1), (3, 64, 1), (4, 64, 2), (16, 64, 8), (64, 64, 8), (64, 3, 3), (64, 1, 1)],
)
def test_the_automatic_number_leaves_clamd_its_processors(
    monkeypatch: pytest.MonkeyPatch, processors: int, connections: int, workers: int
) -> None:
    monkeypatch.setattr("clamsmtpd.supervisor.os.sched_getaffinity", lambda _pid: set(range(processors)))
    assert automatic_workers(connections) == workers


@pytest.mark.parametrize(
    ("code", "how"),
    [(0, "ended with status 0"), (-11, "was killed by SIGSEGV"), (-40, "was killed by signal 40")],
)
def test_an_end_is_told_in_words(code: int, how: str) -> None:
    assert supervisor._how(code) == how
