"""Places for sessions, taken by several processes at once."""

from __future__ import annotations

import mmap
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from clamsmtpd.metrics import ROW_SIZE, SERVING, SESSIONS, Metrics
from clamsmtpd.places import Places

# Python 3.12 warns of what is no matter here: the test runner's threads do not exist in a worker.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

LIMIT = 20
WORKERS = 4


@pytest.fixture
def lock() -> Iterator[int]:
    receive, send = os.pipe()
    yield send
    os.close(receive)
    os.close(send)


def fork(work: Callable[[], int]) -> int:
    """Run ``work`` in a process of its own, which ends with its result; return its number."""
    if pid := os.fork():
        return pid
    status = 255
    try:
        status = work()
    finally:
        os._exit(status)


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_one_worker_takes_as_many_as_there_are() -> None:
    metrics = Metrics()
    places = Places(2, metrics, 0, None)
    assert [places.take(), places.take(), places.take()] == [True, True, False]
    places.give_back()
    assert places.take()
    assert metrics.row(0)[SESSIONS] == 2


def test_of_places_taken_at_once_by_several_workers_there_are_never_too_many(lock: int) -> None:
    class Slow(Metrics):
        def total(self, metric: int) -> int:
            number = super().total(metric)
            # All the time in the world for another worker to come in between.
            time.sleep(0.002)
            return number

    memory = mmap.mmap(-1, ROW_SIZE * WORKERS)
    metrics = Slow(memoryview(memory))
    receive, go = os.pipe()

    def work(worker: int) -> int:
        places = Places(LIMIT, metrics, worker, lock)
        os.read(receive, 1)
        return sum(places.take() for _ in range(LIMIT))

    pids = [fork(partial(work, worker)) for worker in range(WORKERS)]
    os.write(go, bytes(WORKERS))
    taken = [status_of(pid) for pid in pids]
    os.close(receive)
    os.close(go)
    assert sum(taken) == LIMIT == metrics.total(SESSIONS)
    assert [metrics.row(worker)[SESSIONS] for worker in range(WORKERS)] == taken


def test_places_given_back_can_be_taken_by_another_worker(lock: int) -> None:
    metrics = Metrics(memoryview(bytearray(2 * ROW_SIZE)))
    one, other = (Places(1, metrics, worker, lock) for worker in range(2))
    assert one.take()
    assert not other.take()
    one.give_back()
    assert other.take()
    assert not one.take()


def test_a_worker_that_dies_with_the_lock_gives_it_back(lock: int) -> None:
    memory = mmap.mmap(-1, 2 * ROW_SIZE)
    metrics = Metrics(memoryview(memory))

    class Stuck(Places):
        def _take(self) -> bool:
            super()._take()
            metrics.row(0)[SERVING] = 1
            time.sleep(60)
            return True

    pid = fork(lambda: int(Stuck(1, metrics, 0, lock).take()))
    while not metrics.row(0)[SERVING]:
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    assert status_of(pid) == -signal.SIGKILL
    places = Places(1, metrics, 1, lock)
    # It had counted itself: as long as nobody has noticed, its place is not given away twice.
    assert not places.take()
    metrics.forget_now(0)
    assert places.take()


@pytest.mark.parametrize(
    ("mine", "others", "fewer"),
    [
        (0, (0, 0), False),
        (4, (0, 5), False),
        (5, (0, 5), True),
        (9, (5, 6), False),
        (10, (5, 6), True),
        (44, (40, 60), False),
        (46, (40, 60), True),
        (1125, (1000, 1000), False),
        (1126, (1000, 1000), True),
    ],
)
def test_a_client_is_left_to_a_worker_with_clearly_fewer(mine: int, others: tuple[int, ...], fewer: bool) -> None:
    metrics = Metrics(memoryview(bytearray(3 * ROW_SIZE)))
    places = Places(LIMIT, metrics, 0, None)
    for worker, sessions in enumerate((mine, *others)):
        metrics.row(worker)[SESSIONS] = sessions
        Places(LIMIT, metrics, worker, None).open()
    assert places.another_has_fewer() is fewer


def test_no_client_is_left_to_a_worker_that_accepts_none() -> None:
    metrics = Metrics(memoryview(bytearray(2 * ROW_SIZE)))
    one, other = (Places(LIMIT, metrics, worker, None) for worker in range(2))
    one.open()
    other.open()
    metrics.row(0)[SESSIONS] = 10
    assert one.another_has_fewer()
    other.close()
    assert not one.another_has_fewer()
