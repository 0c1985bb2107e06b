"""How many warnings the log gets, whatever happens how often."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest

from clamsmtpd import throttle
from clamsmtpd.throttle import BURST, INTERVAL, Throttle


class Log:
    """A logger with a throttle, and a clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.lines: list[str] = []
        self.logger = logging.getLogger("clamsmtpd.throttled")
        self.logger.setLevel(logging.DEBUG)
        self.logger.propagate = False
        self.throttle = Throttle(lambda: self.now)
        self.logger.addFilter(self.throttle)
        self.handler = logging.Handler()
        self.handler.emit = lambda record: self.lines.append(record.getMessage())  # type: ignore[method-assign]
        self.logger.addHandler(self.handler)


@pytest.fixture
def log() -> Iterator[Log]:
    used = Log()
    yield used
    used.logger.removeFilter(used.throttle)
    used.logger.removeHandler(used.handler)


@pytest.mark.parametrize("level", [logging.WARNING, logging.ERROR])
def test_a_flood_is_some_lines_and_one_that_counts_the_others(log: Log, level: int) -> None:
    for number in range(1234 + BURST):
        log.logger.log(level, "%s: cannot store the message in %s", f"10000{number}", "/tmp")
    assert log.lines == [f"10000{number}: cannot store the message in /tmp" for number in range(BURST)]
    log.lines.clear()
    log.now += INTERVAL
    log.logger.log(level, "%s: cannot store the message in %s", "F", "/tmp")
    assert log.lines == [
        "1,234 more like this in 10 s, the last one: 100001253: cannot store the message in /tmp",
        "F: cannot store the message in /tmp",
    ]


def test_a_flood_that_goes_on_is_two_lines_a_second(log: Log) -> None:
    for _ in range(100):
        log.now += 1
        for number in range(1000):
            log.logger.warning("%s: no verdict: %s", number, "why")
    assert len(log.lines) <= 100 * 2 + 20
    counted = sum(int(line.split()[0].replace(",", "")) for line in log.lines if "more like this" in line)
    log.throttle.tell()
    counted += int(log.lines[-1].split()[0].replace(",", ""))
    assert counted + sum("more like this" not in line for line in log.lines) == 100_000, "each is told or counted"


def test_few_of_a_kind_all_pass(log: Log) -> None:
    for number in range(100):
        log.now += INTERVAL / BURST
        log.logger.warning("%s: no verdict: %s", number, "why")
    assert [line.partition(":")[0] for line in log.lines] == [str(number) for number in range(100)]


def test_one_kind_hides_no_other(log: Log) -> None:
    for number in range(500):
        log.logger.warning("%s: next hop: cannot connect to %s: %s", number, f"192.0.2.1:{number}", "why")
    log.logger.warning("%s: message refused: a dot stands between line ends", "A")
    log.logger.warning("MaxConnections is reached: %d", 64)
    assert len(log.lines) == BURST + 2


def test_lines_that_are_counted_by_programs_are_never_left_out(log: Log) -> None:
    for number in range(1000):
        log.logger.info("%s: %s", number, "from=a@b, to=c@d, status=CLEAN")
        log.logger.debug("%s: %s", number, "CLIENT < QUIT")
        log.logger.critical("%s", "no worker came to serve")
        log.logger.warning("%s", f"clamsmtpd.conf:{number}: an old name")
    assert len(log.lines) == 4000


def test_kinds_without_number_do_not_fill_the_memory(log: Log) -> None:
    for number in range(10_000):
        text = f"%s: stranger {number}"
        log.logger.warning(text, "F")
    assert len(log.throttle._kinds) <= throttle._KINDS_MAX


def test_a_percent_sign_in_what_is_left_out_means_nothing(log: Log) -> None:
    for _ in range(BURST + 1):
        log.logger.warning("%s: %s", "F", "next hop: %s%n%d")
    log.throttle.tell()
    assert log.lines[-1] == "1 more like this in 0 s, the last one: F: next hop: %s%n%d"


def test_when_the_flood_is_over_the_count_comes_without_another_line(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "INTERVAL", 0.05)

    async def main() -> None:
        for _ in range(2):
            for number in range(BURST + 7):
                log.logger.error("cannot accept a connection: %s", number)
            await asyncio.sleep(0.2)

    asyncio.run(main())
    told = "7 more like this in 0 s, the last one: cannot accept a connection: 26"
    assert [line for line in log.lines if "more" in line] == [told, told]
    assert len(log.lines) == 2 * (BURST + 1)


def test_what_was_left_out_is_told_once(log: Log) -> None:
    for _ in range(BURST + 1):
        log.logger.error("cannot accept a connection: %s", "Too many open files")
    log.throttle.tell()
    log.throttle.tell()
    assert len(log.lines) == BURST + 1
