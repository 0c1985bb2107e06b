"""What would become of saved messages, and why."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from clamsmtpd.config import Settings, load
from clamsmtpd.ctl.output import silence
from clamsmtpd.ctl.saved import Saved
from clamsmtpd.ctl.trial import NoScannerError, Result, Trial
from clamsmtpd.spool import Spool
from tests.support.fakeclamd import FakeClamd


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with silence():
        yield


def run(main: Coroutine[Any, Any, None]) -> None:
    async def watched() -> None:
        before = len(os.listdir("/proc/self/fd"))
        await asyncio.wait_for(main, 30)
        await asyncio.sleep(0.02)
        assert len(os.listdir("/proc/self/fd")) == before

    asyncio.run(watched())


def settings(folder: Path, *lines: str) -> Settings:
    path = folder / "conf"
    own = [f"ClamAddress: {folder}/clamd", "OutAddress: 127.0.0.1:1", f"TempDirectory: {folder}", "TimeOut: 4"]
    path.write_text("\n".join([*own, *lines]))
    return load(str(path)).settings


def message(folder: Path, text: bytes = b"Subject: x\n\ntext\n") -> Saved:
    path = folder / "message"
    path.write_bytes(text)
    return Saved("name", str(path))


async def judge(folder: Path, clamd: FakeClamd, *lines: str) -> Result:
    with clamd:
        async with Trial(settings(folder, *lines)) as trial:
            return await trial.judge(message(folder))


def test_a_clean_message_has_the_field_of_the_settings(tmp_path: Path) -> None:
    async def main() -> None:
        result = await judge(tmp_path, FakeClamd(f"{tmp_path}/clamd"), "Header: X-Seen: yes")
        assert (result.outcome, result.verdict, result.field, result.setting) == ("deliver", "clean", "X-Seen: yes", "")
        assert (result.size, result.scanner, result.well) == (20, f"{tmp_path}/clamd", True)
        assert result.seconds is not None

    run(main())


@pytest.mark.parametrize(("failure", "outcome", "reply"), [("defer", "defer", "451 "), ("pass", "deliver", "")])
def test_without_a_verdict_it_is_for_scan_failure_to_say(
    tmp_path: Path, failure: str, outcome: str, reply: str
) -> None:
    async def main() -> None:
        strange = FakeClamd(f"{tmp_path}/clamd", strange=b"what?")
        result = await judge(tmp_path, strange, f"ScanFailure: {failure}")
        assert (result.outcome, result.verdict, result.setting) == (outcome, "unscanned", f"ScanFailure: {failure}")
        assert result.reply.startswith(reply)
        assert "what?" in result.why
        assert not result.well

    run(main())


def test_a_scanner_that_cannot_be_used_is_told_at_once_and_one_that_is_silent_in_time(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(NoScannerError, match=r"no scanner can be used: clamd at .*/clamd: No such file"):
            async with Trial(settings(tmp_path)):
                pass
        with FakeClamd(f"{tmp_path}/clamd", silent=True), pytest.raises(NoScannerError, match="no answer"):
            async with Trial(settings(tmp_path), patience=0.2):
                pass
        with FakeClamd(f"{tmp_path}/clamd", sees=False), pytest.raises(NoScannerError, match="it is blind"):
            async with Trial(settings(tmp_path)):
                pass

    run(main())


def test_messages_are_told_of_in_their_order_and_only_some_are_in_work(tmp_path: Path) -> None:
    async def main() -> None:
        taken = []

        def saved() -> Iterator[Saved]:
            for number in range(10):
                taken.append(number)
                yield Saved(str(number), message(tmp_path).path)

        with FakeClamd(f"{tmp_path}/clamd"):
            async with Trial(settings(tmp_path)) as trial:
                told = []
                async for _, result in trial.results(saved(), at_once=3):
                    told.append(result.file)
                    assert len(taken) - len(told) <= 3
        assert told == [str(number) for number in range(10)]

    run(main())


def test_what_cannot_be_read_or_stored_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with FakeClamd(f"{tmp_path}/clamd"):
            async with Trial(settings(tmp_path)) as trial:
                closed = await trial.judge(Saved("folder", "/folder", fault="Permission denied"))
                gone = await trial.judge(Saved("gone", str(tmp_path / "gone")))

                def fail(_spool: Spool, _octets: bytes) -> None:
                    raise OSError(errno.ENOSPC, "No space left on device")

                monkeypatch.setattr(Spool, "append", fail)
                full = await trial.judge(message(tmp_path))
        assert closed == Result("folder", "unreadable", why="Permission denied")
        assert gone == Result("gone", "unreadable", why="No such file or directory")
        assert full == Result("name", "unreadable", why=f"it cannot be stored in {tmp_path}: No space left on device")

    run(main())


def test_a_fault_of_our_own_storage_is_no_failure_of_a_scanner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        def fail(_spool: Spool, *, stuffed: bool) -> None:
            raise OSError(errno.EIO, f"Input/output error, {stuffed=}")

        monkeypatch.setattr(Spool, "seal", fail)
        result = await judge(tmp_path, FakeClamd(f"{tmp_path}/clamd"), "ScanFailure: pass")
        assert (result.outcome, result.setting) == ("defer", "")
        assert "Input/output error" in result.why

    run(main())


def test_a_directory_that_only_the_daemon_may_write_to_is_not_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "own"))

    async def main() -> None:
        with FakeClamd(f"{tmp_path}/clamd"):
            async with Trial(settings(tmp_path, "DebugFiles: on", f"TempDirectory: {tmp_path}/none")) as trial:
                assert (await trial.judge(message(tmp_path, b"Subject: x\n\n" + 200_000 * b"x"))).well
        assert not list((tmp_path / "own").iterdir())

    run(main())


def test_the_log_is_as_it_was_when_all_is_told() -> None:
    log = logging.getLogger("clamsmtpd")
    assert log.disabled
    log.disabled = False
    with silence():
        assert log.disabled
    assert not log.disabled
