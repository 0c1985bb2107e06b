"""What is counted, by whom, and what is left when a worker dies."""

from __future__ import annotations

from clamsmtpd.metrics import (
    CLEAN,
    CONNECTIONS,
    INFECTED,
    METRICS,
    OCTETS,
    REFUSED,
    ROW_SIZE,
    SERVING,
    SESSIONS,
    UNSCANNED,
    Metrics,
)


def shared(workers: int) -> Metrics:
    return Metrics(memoryview(bytearray(ROW_SIZE * workers)))


def test_each_number_stands_where_its_name_says() -> None:
    metrics = shared(1)
    indices = (CONNECTIONS, REFUSED, CLEAN, INFECTED, UNSCANNED, OCTETS, SESSIONS, SERVING)
    for index in indices:
        metrics.row(0)[index] = index + 1
    assert str(metrics) == (
        "connections=1, refused=2, clean=3, infected=4, unscanned=5, octets=6, sessions=7, workers=8"
    )


def test_the_total_is_that_of_all_workers() -> None:
    metrics = shared(3)
    for worker in range(3):
        metrics.row(worker)[OCTETS] += 10**worker
    assert metrics.total(OCTETS) == 111
    assert str(metrics).split(", ")[OCTETS] == "octets=111"


def test_whoever_has_the_memory_can_read_the_total() -> None:
    memory = bytearray(2 * ROW_SIZE)
    Metrics(memoryview(memory)).row(1)[CLEAN] += 2
    assert Metrics(memoryview(memory)).total(CLEAN) == 2


def test_a_number_outgrows_32_bits() -> None:
    row = shared(1).row(0)
    row[OCTETS] += 2**40
    row[OCTETS] += 2**40
    assert row[OCTETS] == 2**41


def test_what_a_dead_worker_has_counted_stays_and_what_it_had_open_does_not() -> None:
    metrics = shared(2)
    for worker in range(2):
        for index in range(len(METRICS)):
            metrics.row(worker)[index] = 5
    metrics.forget_now(0)
    assert str(metrics) == (
        "connections=10, refused=10, clean=10, infected=10, unscanned=10, octets=10, sessions=5, workers=5"
    )


def test_the_fewest_sessions_are_those_of_a_worker_that_accepts_clients() -> None:
    metrics = shared(3)
    assert metrics.fewest_sessions() == 0
    for worker, sessions in enumerate((7, 4, 0)):
        metrics.row(worker)[SESSIONS] = sessions
    metrics.row(0)[SERVING] = metrics.row(1)[SERVING] = 1
    assert metrics.fewest_sessions() == 4


def test_one_worker_needs_no_memory_of_others() -> None:
    metrics = Metrics()
    metrics.row(0)[CLEAN] += 1
    assert metrics.total(CLEAN) == 1
