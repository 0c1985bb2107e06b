"""What is counted, by whom, and what is left when a worker dies."""

from __future__ import annotations

from clamsmtpd.metrics import (
    BEAT,
    CLEAN,
    CONNECTIONS,
    INFECTED,
    METRICS,
    OCTETS,
    OVERSIZE,
    PASSED,
    READINESS,
    REFUSED,
    ROW_SIZE,
    SCANNERS,
    SERVING,
    SESSIONS,
    SPARED,
    TURNED_AWAY,
    UNSCANNED,
    Metrics,
)


def shared(workers: int) -> Metrics:
    return Metrics(memoryview(bytearray(ROW_SIZE * workers)))


def test_each_number_stands_where_its_name_says() -> None:
    metrics = shared(1)
    indices = {
        "connections": CONNECTIONS,
        "refused": REFUSED,
        "clean": CLEAN,
        "infected": INFECTED,
        "unscanned": UNSCANNED,
        "oversize": OVERSIZE,
        "passed": PASSED,
        "spared": SPARED,
        "turned_away": TURNED_AWAY,
        "octets": OCTETS,
        "sessions": SESSIONS,
        "workers": SERVING,
        "scanners": SCANNERS,
    }
    for number, index in enumerate(indices.values(), 1):
        metrics.row(0)[index] = number
    assert str(metrics) == ", ".join(f"{name}={number}" for number, name in enumerate(indices, 1))


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
    assert [metrics.total(index) for index, metric in enumerate(METRICS) if metric.gauge] == [5, 5, 5]
    assert {metrics.total(index) for index, metric in enumerate(METRICS) if not metric.gauge} == {10}


def test_what_only_the_supervisor_reads_is_no_number_and_ends_with_the_worker() -> None:
    metrics = shared(2)
    told = str(metrics)
    for cell in (BEAT, READINESS):
        metrics.row(1)[cell] = 2**40
    assert str(metrics) == told
    assert [metrics.row(0)[cell] for cell in (BEAT, READINESS)] == [0, 0]
    metrics.forget_now(1)
    assert [metrics.row(1)[cell] for cell in (BEAT, READINESS)] == [0, 0]


def test_no_two_workers_write_to_the_same_cache_line() -> None:
    assert ROW_SIZE % 64 == 0
    assert len(METRICS) < READINESS < ROW_SIZE // 8


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
