"""The watch over one scanner that does as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from clamsmtpd.clamd import watch as module
from clamsmtpd.clamd.watch import Watch
from tests.support.clamd import EICAR
from tests.support.fakeclamd import FakeClamd
from tests.support.loops import until


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE", 0.2)
    monkeypatch.setattr(module, "PULSE_INTERVAL", 0.1)
    monkeypatch.setattr(module, "_PULSE_INTERVAL_MIN", 0.02)
    monkeypatch.setattr(module, "RETRY_FIRST", 0.02)
    monkeypatch.setattr(module, "RETRY_LAST", 0.1)


@pytest.fixture
def clamd(tmp_path: Path) -> FakeClamd:
    return FakeClamd(str(tmp_path / "clamd"))


def run(main: Coroutine[Any, Any, None]) -> None:
    uvloop.run(asyncio.wait_for(main, 20))


@contextlib.asynccontextmanager
async def watching(clamd: FakeClamd) -> AsyncIterator[Watch]:
    watch = Watch(clamd.address, time_out=5, directory=None, changed=lambda: None)
    watch.start()
    try:
        yield watch
    finally:
        watch.close()
        watch.scanner.close()
        await asyncio.sleep(0.02)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_scanner_that_sees_is_usable_and_its_limit_is_learnt(clamd: FakeClamd) -> None:
    async def main() -> None:
        with clamd:
            async with watching(clamd) as watch:
                await until(lambda: watch.usable and watch.limit.seen == module.LEARN_MAX)
                assert (watch.version, watch.fault) == ("ClamAV 1.0/1/now", "")

    run(main())


def test_while_nothing_happens_little_is_asked(clamd: FakeClamd) -> None:
    async def main() -> None:
        with clamd:
            async with watching(clamd) as watch:
                await until(lambda: watch.limit.seen == module.LEARN_MAX)
                await asyncio.sleep(0.1)
                before = clamd.connections, len(clamd.probes)
                await asyncio.sleep(0.5)
                assert (clamd.connections, len(clamd.probes)) == before

    run(main())


def test_the_canary_comes_again_and_again(clamd: FakeClamd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CANARY_INTERVAL", 0.2)

    async def main() -> None:
        with clamd:
            async with watching(clamd) as watch:
                await until(lambda: clamd.canaries > 3)
                assert watch.usable
                clamd.sees = False
                await until(lambda: not watch.usable)
                clamd.sees = True
                await until(lambda: watch.usable)

    run(main())


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"sees": False}, "it is blind: it calls the EICAR test file clean"),
        (
            {"greeting": b"220 mail.example ESMTP\r\n"},
            'it answered "220 mail.example ESMTP": that is an SMTP server, not clamd',
        ),
        ({"greeting": b"SSH-2.0-OpenSSH\r\n"}, 'it answered "SSH-2.0-OpenSSH"'),
        ({"silent": True}, "it is silent: no answer within 0.2 seconds"),
    ],
)
def test_what_is_no_clamd_that_sees_is_set_aside_and_told_once(
    clamd: FakeClamd, caplog: pytest.LogCaptureFixture, fault: dict[str, Any], reason: str
) -> None:
    async def main() -> None:
        for name, value in fault.items():
            setattr(clamd, name, value)
        with clamd:
            async with watching(clamd) as watch:
                await until(lambda: watch.fault != "")
                await asyncio.sleep(0.8)
                assert (watch.usable, watch.fault) == (False, reason)
                assert clamd.connections < 30, "it is tried again with pauses"
                for name in fault:
                    setattr(clamd, name, getattr(FakeClamd, name))
                await until(lambda: watch.usable)

    run(main())
    assert warnings(caplog) == [
        f"clamd at {clamd.path} is set aside: {reason}",
        f"clamd at {clamd.path} is back: ClamAV 1.0/1/now",
    ]


def test_nothing_is_known_any_more_of_a_clamd_that_was_started_anew(clamd: FakeClamd) -> None:
    async def main() -> None:
        with clamd:
            async with watching(clamd) as watch:
                await until(lambda: watch.limit.seen == module.LEARN_MAX)
                clamd.limit = 1_000_000
                clamd.restart()
                await until(lambda: watch.limit.seen != module.LEARN_MAX)
                await until(lambda: watch.usable and watch.limit.next_probe(module.LEARN_MAX) is None)
                assert watch.limit.seen <= 1_000_000 < watch.limit.blind

    run(main())


def test_other_signatures_are_looked_at_at_once(clamd: FakeClamd) -> None:
    async def main() -> None:
        with clamd:
            async with watching(clamd) as watch:
                await until(lambda: watch.usable)
                canaries = clamd.canaries
                clamd.version = b"ClamAV 1.0/2/now"
                await until(lambda: clamd.canaries > canaries)
                assert watch.version == "ClamAV 1.0/2/now"

    run(main())


def test_a_suspicion_is_looked_into_at_once_and_not_told_if_nothing_is_wrong(
    clamd: FakeClamd, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with clamd:
            async with watching(clamd) as watch:
                await until(lambda: watch.usable)
                canaries = clamd.canaries
                watch.suspect(doubt=True)
                assert not watch.usable
                await until(lambda: watch.usable)
                assert clamd.canaries > canaries

    run(main())
    assert warnings(caplog) == []


def test_a_clamd_that_ends_connections_soon_is_asked_before_that(
    clamd: FakeClamd, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with clamd:
            async with watching(clamd) as watch:
                await until(lambda: watch.usable)
                # On a machine that has much to do, the first connections may last longer than is meant.
                for number in range(20):
                    await asyncio.sleep(0.06)
                    for connection in list(clamd._open):
                        clamd._hang_up(connection)
                    await until(lambda: watch.usable)
                    if number >= 2 and watch._pulse_interval < 0.1:
                        break
                assert watch._pulse_interval < 0.1

    run(main())
    assert warnings(caplog) == []


def test_a_clamd_that_ends_each_connection_at_once_is_looked_at_with_pauses(
    clamd: FakeClamd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PULSE_INTERVAL_MIN", 0.2)

    async def main() -> None:
        with clamd:
            async with watching(clamd) as watch:
                for _ in range(50):
                    await asyncio.sleep(0.01)
                    if (pulse := watch._pulse) is not None and watch.usable:
                        # As if clamd had ended it.
                        pulse.close()
                assert 2 <= clamd.canaries <= 5

    run(main())


@pytest.mark.parametrize("octets", [1 << 40, 10**20 - 1])
def test_no_limit_is_looked_for_above_what_any_clamd_looks_at(clamd: FakeClamd, octets: int) -> None:
    async def main() -> None:
        with clamd:
            async with watching(clamd) as watch:
                watch.expect(octets)
                await until(lambda: watch.limit.seen > 0)
                assert clamd.probes == [len(EICAR), 2 << 30]

    run(main())


def test_a_clamd_without_sessions_is_watched_by_the_canary(clamd: FakeClamd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CANARY_INTERVAL", 0.2)

    async def main() -> None:
        clamd.sessions = False
        with clamd:
            async with watching(clamd) as watch:
                await until(lambda: watch.usable)
                assert watch.version == ""
                await until(lambda: watch.limit.seen == module.LEARN_MAX)
                clamd.end()
                await until(lambda: not watch.usable)

    run(main())


def test_one_probe_serves_all_who_wait_for_it(clamd: FakeClamd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEARN_MAX", 1024)

    async def main() -> None:
        with clamd:
            async with watching(clamd) as watch:
                await until(lambda: watch.limit.seen >= 1024)
                probes = len(clamd.probes)
                await asyncio.gather(*(watch.see(100_000 + number) for number in range(50)))
                assert watch.limit.seen == 131072
                assert len(clamd.probes) == probes + 1

    run(main())


def test_a_fault_of_ours_does_not_end_the_watch(
    clamd: FakeClamd, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with clamd, monkeypatch.context() as patch:
            patch.setattr(Watch, "_take_back", lambda _: 1 / 0)
            async with watching(clamd) as watch:
                await until(lambda: watch.fault != "")
                patch.undo()
                await until(lambda: watch.usable)

    run(main())
    assert "watching clamd at" in warnings(caplog)[0]
    assert "ZeroDivisionError" in warnings(caplog)[1]


def test_samples_that_cannot_be_made_are_no_fault_of_the_scanner(
    clamd: FakeClamd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CANARY_INTERVAL", 0.1)

    async def main() -> None:
        with clamd:
            async with watching(clamd) as watch:
                await until(lambda: watch.usable)

                def full(*_: object) -> None:
                    raise OSError(28, "No space left on device")

                monkeypatch.setattr("clamsmtpd.clamd.canary.Sample.descriptor", full)
                await asyncio.sleep(0.5)
                assert watch.usable

    run(main())
