"""What becomes of a message when scanners fail, with clamds that do as they are told."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from clamsmtpd.clamd import pool as module
from clamsmtpd.clamd import watch
from clamsmtpd.clamd.outcome import Outcome
from clamsmtpd.clamd.pool import Pool
from clamsmtpd.metrics import SCANNERS, Metrics
from clamsmtpd.spool import Spool
from clamsmtpd.values import Clean, Infected, Oversize, Unscanned, Verdict
from tests.support.clamd import EICAR
from tests.support.fakeclamd import FakeClamd
from tests.support.loops import until

TEXT = b"Subject: x\r\n\r\ntext\r\n"
LONG = 20.0


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SILENCE", 0.2)
    monkeypatch.setattr(watch, "PULSE_INTERVAL", 0.2)
    monkeypatch.setattr(watch, "RETRY_FIRST", 0.05)
    monkeypatch.setattr(watch, "RETRY_LAST", 0.2)
    monkeypatch.setattr(module, "PAUSE", 0.1)


def run(main: Coroutine[Any, Any, None]) -> None:
    async def watched() -> None:
        before = len(os.listdir("/proc/self/fd"))
        await asyncio.wait_for(main, 30)
        await asyncio.sleep(0.02)
        assert len(os.listdir("/proc/self/fd")) == before

    uvloop.run(watched())


@pytest.fixture
def clamds(tmp_path: Path) -> list[FakeClamd]:
    return [FakeClamd(str(tmp_path / f"clamd{number}")) for number in range(3)]


@contextlib.asynccontextmanager
async def pool_of(
    *clamds: FakeClamd, time_out: float = LONG, watched: bool = True, row: memoryview | None = None
) -> AsyncIterator[Pool]:
    pool = Pool([clamd.address for clamd in clamds], time_out=time_out, watched=watched, row=row)
    pool.start()
    try:
        yield pool
    finally:
        pool.close()
        await asyncio.sleep(0.02)


@contextlib.contextmanager
def spooled(text: bytes) -> Iterator[Spool]:
    with contextlib.closing(Spool("/tmp", "test")) as spool:
        spool.append(text)
        spool.seal(stuffed=False)
        yield spool


async def judge(pool: Pool, text: bytes = TEXT) -> Verdict:
    with spooled(text) as spool:
        return await pool.scan(spool)


def usable(pool: Pool) -> int:
    return sum(member.usable for member in pool._members)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# ---- one fails, another does it ------------------------------------------------------------------


def test_a_scanner_that_is_not_there_costs_nothing(clamds: list[FakeClamd]) -> None:
    async def main() -> None:
        with clamds[1] as there:
            async with pool_of(clamds[0], there) as pool:
                assert await judge(pool) == Clean()
                assert await judge(pool, EICAR + TEXT) == Infected("Eicar")
                assert usable(pool) == 1

    run(main())


@pytest.mark.parametrize("strange", [b"fd[1]: Can't allocate memory ERROR", b"Can't allocate memory ERROR", None])
def test_what_fails_at_one_is_given_to_another(clamds: list[FakeClamd], strange: bytes | None) -> None:
    async def main() -> None:
        with clamds[0] as bad, clamds[1] as good:
            bad.strange = strange
            async with pool_of(bad, good) as pool:
                await until(lambda: usable(pool) == 2)
                for _ in range(4):
                    assert await judge(pool) == Clean()
            assert bad.texts, "or it was never asked"
            assert len(good.texts) == 4

    run(main())


def test_what_waits_at_one_that_falls_silent_is_given_to_another_at_once(
    clamds: list[FakeClamd], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with clamds[0] as silent, clamds[1] as good:
            async with pool_of(silent, good) as pool:
                await until(lambda: usable(pool) == 2)
                silent.silent = True
                began = time.monotonic()
                assert await asyncio.gather(*(judge(pool) for _ in range(10))) == [Clean()] * 10
                assert time.monotonic() - began < 3
                assert len(good.texts) == 10

    run(main())
    (line,) = warnings(caplog)
    assert line.endswith(" is set aside: it is silent: no answer within 0.2 seconds")


def test_with_no_other_it_may_only_be_slow(clamds: list[FakeClamd]) -> None:
    async def main() -> None:
        with clamds[0] as slow:
            async with pool_of(slow, clamds[1], time_out=2) as pool:
                await until(lambda: usable(pool) == 1)
                slow.silent = True
                scan = asyncio.create_task(judge(pool))
                await until(lambda: usable(pool) == 0)
                await asyncio.sleep(0.5)
                assert not scan.done()
                # Another comes, and takes over.
                with clamds[1] as other:
                    assert await scan == Clean()
                    assert other.texts == [TEXT]

    run(main())


def test_one_that_answers_commands_and_scans_nothing_is_set_aside(
    clamds: list[FakeClamd], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "CANARY_INTERVAL", 0.2)
    monkeypatch.setattr(watch, "_PATIENCE", 0.1)

    async def main() -> None:
        with clamds[0] as stuck, clamds[1] as good:
            async with pool_of(stuck, good, time_out=1.5) as pool:
                await until(lambda: usable(pool) == 2)
                stuck.stuck = True
                assert await asyncio.gather(*(judge(pool) for _ in range(4))) == [Clean()] * 4
                assert len(good.texts) == 4

    run(main())
    assert warnings(caplog)[0].endswith(" is set aside: no scan has ended for 0.75 seconds")


# ---- nothing runs in circles ---------------------------------------------------------------------


def test_a_message_that_kills_scanners_takes_two_with_it(clamds: list[FakeClamd]) -> None:
    async def main() -> None:
        with contextlib.ExitStack() as stack:
            for clamd in clamds:
                stack.enter_context(clamd).strange = None
            async with pool_of(*clamds) as pool:
                await until(lambda: usable(pool) == 3)
                verdict = await judge(pool)
                assert isinstance(verdict, Unscanned)
                assert verdict.reason.count("it closed the connection without a reply") == 2
                # A session may only have been old, and so the first one is asked twice.
                assert [len(clamd.texts) for clamd in clamds] == [2, 1, 0]

    run(main())


def test_an_answer_that_two_give_is_the_messages_own(clamds: list[FakeClamd]) -> None:
    async def main() -> None:
        with contextlib.ExitStack() as stack:
            for clamd in clamds:
                stack.enter_context(clamd).strange = b"fd[1]: Too strange ERROR"
            async with pool_of(*clamds) as pool:
                await until(lambda: usable(pool) == 3)
                reason = 'it answered "fd[1]: Too strange ERROR"'
                assert await judge(pool) == Unscanned(
                    f"clamd at {clamds[0].path}: {reason}; clamd at {clamds[1].path}: {reason}"
                )
                assert [len(clamd.texts) for clamd in clamds] == [1, 1, 0]

    run(main())


def test_one_alone_is_asked_a_second_time_after_a_pause(clamds: list[FakeClamd]) -> None:
    async def main() -> None:
        with clamds[0] as clamd:
            clamd.strange = b"Can't allocate memory ERROR"
            async with pool_of(clamd) as pool:
                scan = asyncio.create_task(judge(pool))
                await until(lambda: bool(clamd.texts))
                clamd.strange = b""
                assert await scan == Clean()
                assert len(clamd.texts) == 2

    run(main())


def test_a_fault_of_the_messages_own_storage_is_the_callers(clamds: list[FakeClamd]) -> None:
    async def main() -> None:
        with clamds[0] as one, clamds[1] as two, spooled(b"x" * 100_000) as spool:
            async with pool_of(one, two) as pool:
                await pool.usable()
                os.ftruncate(spool._fd, 10)
                spool._stuffed = True
                with pytest.raises(OSError, match="ended early"):
                    await pool.scan(spool)
                assert usable(pool), "that is no fault of a scanner"

    run(main())


def test_a_lack_of_descriptors_is_no_fault_of_a_scanner(
    clamds: list[FakeClamd], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def exhausted(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def main() -> None:
        with clamds[0] as clamd:
            async with pool_of(clamd) as pool:
                await until(lambda: pool._members[0].limit.seen > 1_000_000)
                with monkeypatch.context() as patch:
                    patch.setattr("clamsmtpd.clamd.connecting.socket.socket", exhausted)
                    scan = asyncio.create_task(judge(pool))
                    await asyncio.sleep(0.3)
                    assert not scan.done()
                    assert usable(pool)
                assert await scan == Clean()
                canaries = clamd.canaries
                assert canaries == 1

    run(main())
    assert warnings(caplog) == []


# ---- waiting -------------------------------------------------------------------------------------


def test_with_none_there_a_message_waits_for_one(clamds: list[FakeClamd]) -> None:
    async def main() -> None:
        async with pool_of(*clamds) as pool:
            scans = [asyncio.create_task(judge(pool)) for _ in range(5)]
            await asyncio.sleep(0.5)
            assert not any(scan.done() for scan in scans)
            with clamds[2]:
                assert await asyncio.gather(*scans) == [Clean()] * 5

    run(main())


def test_what_is_under_way_when_the_only_one_ends_goes_to_it_when_it_is_back(clamds: list[FakeClamd]) -> None:
    async def main() -> None:
        with clamds[0] as clamd:
            async with pool_of(clamd) as pool:
                await pool.usable()
                clamd.holds = True
                scan = asyncio.create_task(judge(pool))
                await until(lambda: bool(clamd.texts))
                clamd.end()
                await asyncio.sleep(0.3)
                clamd.holds = False
                clamd.start()
                assert await scan == Clean()
                assert clamd.texts == [TEXT] * 2

    run(main())


def test_the_end_of_the_wait_tells_what_was_tried(clamds: list[FakeClamd]) -> None:
    async def main() -> None:
        with clamds[1] as blind:
            blind.sees = False
            async with pool_of(clamds[0], blind, time_out=0.5) as pool:
                began = time.monotonic()
                verdict = await judge(pool)
                assert 0.4 < time.monotonic() - began < 1
                assert verdict == Unscanned(
                    f"clamd at {clamds[0].path}: No such file or directory; "
                    f"clamd at {blind.path}: it is blind: it calls the EICAR test file clean"
                )
                assert blind.texts == []

    run(main())


def test_whoever_gives_up_waiting_leaves_nothing(clamds: list[FakeClamd]) -> None:
    async def main() -> None:
        async with pool_of(clamds[0]) as pool:
            scan = asyncio.create_task(judge(pool))
            other = asyncio.create_task(judge(pool))
            await asyncio.sleep(0.1)
            scan.cancel()
            with pytest.raises(asyncio.CancelledError):
                await scan
            with clamds[0]:
                assert await other == Clean()
            assert pool._load.outstanding == 0

    run(main())


# ---- limits --------------------------------------------------------------------------------------


def test_a_message_goes_where_it_is_looked_at(clamds: list[FakeClamd]) -> None:
    async def main() -> None:
        with clamds[0] as small, clamds[1] as large:
            small.limit = 100_000
            async with pool_of(small, large) as pool:
                await until(lambda: usable(pool) == 2)
                for _ in range(3):
                    assert await judge(pool, b"x" * 200_000) == Clean()
                assert len(large.texts) == 3
                large.limit = 150_000
                large.restart()
                verdict = await judge(pool, b"x" * 200_000)
                assert isinstance(verdict, Oversize)
                assert verdict.reason.startswith("the message has 200000 octets; ")
                assert verdict.reason.count("raise MaxFileSize and MaxScanSize in clamd.conf") == 2

    run(main())


def test_a_verdict_from_before_a_restart_is_not_believed_for_what_is_seen_after_it(
    clamds: list[FakeClamd], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        with clamds[0] as clamd:
            async with pool_of(clamd) as pool:
                await until(lambda: pool._members[0].limit.seen > 200_000)
                member = pool._members[0]
                scan = member.scanner.scan

                async def blind(*_: object, **__: object) -> Outcome:
                    """Scan as a clamd that looks at less, and ends with that."""
                    monkeypatch.setattr(member.scanner, "scan", scan)
                    member.limit.forget()
                    return Clean()

                monkeypatch.setattr(member.scanner, "scan", blind)
                assert isinstance(await judge(pool, EICAR + b"x" * 200_000), Infected)

    run(main())


def test_what_is_infected_is_believed_at_any_size(clamds: list[FakeClamd]) -> None:
    async def main() -> None:
        with clamds[0] as clamd:
            clamd.limit = 100_000
            async with pool_of(clamd) as pool:
                clamd.strange = b"fd[1]: Heuristics.Limits.Exceeded FOUND"
                assert await judge(pool, b"x" * 50_000) == Infected("Heuristics.Limits.Exceeded")

    run(main())


def test_the_next_hop_is_told_of_once_for_each_pair_of_numbers(
    clamds: list[FakeClamd], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with clamds[0] as clamd:
            clamd.limit = 1_000_000
            async with pool_of(clamd) as pool:
                pool.expect(None)
                for _ in range(3):
                    pool.expect(10_000_000)
                    pool.expect(500_000)
                await until(lambda: len(warnings(caplog)) == 1)
                pool.expect(20_000_000)
                await until(lambda: len(warnings(caplog)) == 2)
                clamd.restart()
                await until(lambda: clamd.connections > 10)
                await until(lambda: pool._members[0].limit.next_probe(20_000_000) is None)
                for octets in range(2_000_000, 2_000_100):
                    pool.expect(octets)
                assert len(pool._expected) <= 64
                assert len(pool._warned) <= 64

    run(main())
    lines = warnings(caplog)
    assert "octets and more, but the next hop takes messages of 10000000: raise MaxFileSize and MaxScanSize" in lines[0]
    assert "takes messages of 20000000: " in lines[1]
    assert sum("takes messages of 10000000" in line for line in lines) == 1


def test_a_scanner_of_which_nothing_is_to_be_learnt_has_no_limit(
    clamds: list[FakeClamd], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with clamds[0] as clamd:
            clamd.whole = True
            async with pool_of(clamd) as pool:
                assert await judge(pool, b"x" * 500_000) == Clean()
                await until(lambda: bool(warnings(caplog)))
                await asyncio.sleep(0.3)

    run(main())
    (line,) = warnings(caplog)
    assert "does not find the EICAR test file with padding behind it" in line


def test_what_is_refused_for_its_length_is_sent_once_even_where_nothing_is_to_be_learnt(
    clamds: list[FakeClamd],
) -> None:
    async def main() -> None:
        with clamds[0] as clamd:
            clamd.whole = True
            async with pool_of(clamd, time_out=2.0) as pool:
                assert await judge(pool) == Clean()
                # As to a stream that is longer than StreamMaxLength.
                clamd.strange = b"INSTREAM size limit exceeded. ERROR"
                for _ in range(2):
                    assert isinstance(await judge(pool, b"x" * 200_000), Oversize)
                assert clamd.texts[1:] == [b"x" * 4096]

    run(main())


def test_a_message_whose_time_is_over_is_given_to_nobody(clamds: list[FakeClamd]) -> None:
    async def main() -> None:
        with clamds[0] as clamd:
            async with pool_of(clamd) as pool:
                await pool.usable()
                with spooled(TEXT) as spool:
                    verdict = await pool.scan(spool, since=asyncio.get_running_loop().time() - 2 * LONG)
                assert isinstance(verdict, Unscanned)
                assert clamd.texts == []

    run(main())


def test_a_scanner_for_which_everything_is_too_long_is_asked_no_more_than_twice(clamds: list[FakeClamd]) -> None:
    async def main() -> None:
        with clamds[0] as clamd:
            async with pool_of(clamd) as pool:
                await pool.usable()
                clamd.strange = b"INSTREAM size limit exceeded. ERROR"
                assert isinstance(await judge(pool), Unscanned)
                assert len(clamd.texts) == 2

    run(main())


# ---- what others are told ------------------------------------------------------------------------


def test_the_version_is_that_of_all(clamds: list[FakeClamd]) -> None:
    async def main() -> None:
        with clamds[0] as one, clamds[1] as two:
            async with pool_of(one, two) as pool:
                assert pool.version == ""
                await until(lambda: usable(pool) == 2)
                assert pool.version == "ClamAV 1.0/1/now"
                two.version = b"ClamAV 1.0/2/now"
                await until(lambda: pool.version == "")
                one.version = two.version
                await until(lambda: pool.version == "ClamAV 1.0/2/now")

    run(main())


def test_the_number_of_usable_scanners_is_in_the_metrics(clamds: list[FakeClamd]) -> None:
    async def main() -> None:
        row = Metrics().row(0)
        with clamds[0] as one, clamds[1]:
            async with pool_of(*clamds, row=row) as pool:
                assert row[SCANNERS] == 0
                await until(lambda: row[SCANNERS] == 2)
                one.end()
                await until(lambda: row[SCANNERS] == 1)
                assert usable(pool) == 1

    run(main())


def test_messages_are_admitted_as_long_as_there_is_hope(
    clamds: list[FakeClamd], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.3)

    async def main() -> None:
        async with pool_of(clamds[0]) as pool:
            assert pool.admits(), "a pause may be a restart"
            await asyncio.sleep(0.4)
            assert not pool.admits()
            with clamds[0]:
                await pool.usable()
                assert pool.admits()
                pool._load._mean, pool._load.outstanding = 1.0, 21
                assert not pool.admits()
                pool._load.outstanding = 20
                assert pool.admits()

    run(main())


# ---- unwatched -----------------------------------------------------------------------------------


def test_unwatched_there_is_nothing_to_wait_for(clamds: list[FakeClamd]) -> None:
    async def main() -> None:
        async with pool_of(clamds[0], watched=False) as pool:
            await pool.usable()
            assert pool.admits()
            assert await judge(pool) == Unscanned(f"clamd at {clamds[0].path}: No such file or directory")
            with clamds[0] as clamd:
                assert await judge(pool, b"x" * 1_000_000) == Clean()
                assert (clamd.probes, clamd.connections) == ([], 1)

    run(main())


def test_unwatched_each_is_tried_once_within_its_share(clamds: list[FakeClamd]) -> None:
    async def main() -> None:
        with clamds[1] as silent, clamds[2] as good:
            silent.silent = True
            async with pool_of(*clamds, time_out=1, watched=False) as pool:
                began = time.monotonic()
                assert await judge(pool) == Clean()
                assert time.monotonic() - began < 0.9
                good.strange = b"fd[1]: no ERROR"
                verdict = await judge(pool)
                assert isinstance(verdict, Unscanned)
                assert [str(clamd.path) in verdict.reason for clamd in clamds] == [True] * 3

    run(main())
