"""What is counted, by whom, and what is left when a worker dies."""

from __future__ import annotations

from clamsmtpd.clamd.outcome import Fault
from clamsmtpd.metrics import (
    BEAT,
    BOUNDS,
    CLEAN,
    CONNECTIONS,
    FAILURES,
    HISTOGRAMS,
    INFECTED,
    METRICS,
    OCTETS,
    OUTCOMES,
    OVERSIZE,
    PASSED,
    READINESS,
    REFUSED,
    ROW_SIZE,
    SCANNER_FAULTS,
    SCANNERS,
    SERVING,
    SESSIONS,
    SPARED,
    TURNED_AWAY,
    UNSCANNED,
    VERDICTS,
    Failure,
    Metrics,
    Span,
    count_failure,
    count_message,
    observe,
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


def test_every_cell_is_that_of_one_number_alone() -> None:
    metrics = shared(2)
    row = metrics.row(1)
    for verdict in range(len(VERDICTS)):
        for outcome in range(len(OUTCOMES)):
            count_message(row, verdict, outcome)
    for failure in Failure:
        count_failure(row, failure)
    for span in Span:
        observe(row, span, 1e9)
    for index in range(len(METRICS)):
        row[index] += 1
    row[BEAT] += 1
    row[READINESS] += 1
    assert {metrics.messages(verdict, outcome) for verdict in range(5) for outcome in range(6)} == {1}
    assert {metrics.failures(failure) for failure in Failure} == {1}
    assert [metrics.histogram(span).counts[-1] for span in Span] == [1, 1, 1]
    assert {metrics.total(index) for index in range(len(METRICS))} == {1}
    # What one worker counts is in no place of another's.
    assert not any(metrics.row(0))


def test_a_time_is_in_the_class_that_it_does_not_exceed() -> None:
    metrics = shared(2)
    for seconds in (0.0, 0.001, 0.0011, 600.0, 600.1):
        observe(metrics.row(0), Span.SCAN, seconds)
    observe(metrics.row(1), Span.SCAN, 0.3)
    found = metrics.histogram(Span.SCAN)
    assert len(found.counts) == len(BOUNDS) + 1
    assert found.counts[:2] == (2, 1)
    assert found.counts[-2:] == (1, 1)
    assert found.counts[BOUNDS.index(0.5)] == 1
    assert found.sum == 1200.4021
    assert sum(metrics.histogram(Span.QUEUE).counts) == 0


def test_each_kind_of_failure_and_time_is_explained_and_each_fault_of_a_scanner_has_a_kind() -> None:
    assert [failure for failure, _ in FAILURES] == list(Failure)
    assert [span for span, _ in HISTOGRAMS] == list(Span)
    assert set(SCANNER_FAULTS) == {fault.value for fault in Fault}
    metrics = shared(1)
    for cell in SCANNER_FAULTS.values():
        metrics.row(0)[cell] += 1
    assert [metrics.failures(failure) for failure in Failure] == [1] * 5 + [0] * 6


def test_what_a_dead_worker_has_counted_of_messages_stays() -> None:
    metrics = shared(1)
    count_message(metrics.row(0), 0, 0)
    count_failure(metrics.row(0), Failure.STORAGE)
    observe(metrics.row(0), Span.SCAN, 0.5)
    metrics.forget_now(0)
    assert metrics.messages(0, 0) == metrics.failures(Failure.STORAGE) == sum(metrics.histogram(Span.SCAN).counts) == 1
