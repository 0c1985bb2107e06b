"""The story of one message, with a scanner that says what it is told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest

from clamsmtpd.account import Tag
from clamsmtpd.clamd.client import EarlyScan
from clamsmtpd.clamd.course import Course
from clamsmtpd.config import Settings, load
from clamsmtpd.hooks import HookRunner
from clamsmtpd.inspection import FORGED_MAX, Inspector, Route
from clamsmtpd.metrics import CLEAN, INFECTED, OCTETS, OVERSIZE, PASSED, UNSCANNED, Metrics
from clamsmtpd.scans import Scans
from clamsmtpd.spool import MEMORY_MAX, Spool
from clamsmtpd.values import (
    Bounce,
    Clean,
    Decision,
    Defer,
    Deliver,
    Drop,
    Envelope,
    Ground,
    Infected,
    Oversize,
    Unscanned,
    Verdict,
)

NOON = datetime(2026, 11, 3, 12, 0, tzinfo=UTC)
ROUTE = Route(Tag("10002A"), "192.0.2.1", "198.51.100.2", "203.0.113.3")
ENVELOPE = Envelope(b"a@example.org", (b"b@example.org",))


class Oracle:
    """A scanner that has its verdict ready, or fails."""

    def __init__(self, verdict: Verdict | OSError) -> None:
        self.verdict = verdict
        self.seen = b""

    async def scan(self, message: Spool, _early: EarlyScan | None = None, _course: Course | None = None) -> Verdict:
        self.seen = b"".join(message.pieces())
        if isinstance(self.verdict, OSError):
            raise self.verdict
        return self.verdict


class Hooks:
    """Notes what would have been run."""

    def __init__(self) -> None:
        self.started: list[tuple[str, Mapping[str, bytes], str]] = []

    def start(self, command: str, variables: Mapping[str, bytes], tag: str) -> None:
        self.started.append((command, variables, tag))


def settings(folder: Path, *lines: str) -> Settings:
    config = folder / "conf"
    config.write_text("\n".join(["OutAddress: 25", f"TempDirectory: {folder}", *lines]))
    return load(str(config)).settings


def inspect(
    folder: Path,
    verdict: Verdict | OSError,
    *lines: str,
    text: bytes = b"x\r\n",
    stuffed: bool = False,
    header: int | None = None,
) -> tuple[Decision, Oracle, Hooks]:
    oracle, hooks = Oracle(verdict), Hooks()
    inspector = Inspector(
        settings(folder, *lines), cast("Scans", oracle), cast("HookRunner", hooks), clock=lambda: NOON
    )
    spool = Spool(str(folder), "test")
    spool.append(text)
    try:
        header = len(text) if header is None else header
        decision = asyncio.run(inspector.inspect(spool, ENVELOPE, ROUTE, stuffed=stuffed, header=header))
    finally:
        spool.close()
    return decision, oracle, hooks


def test_a_clean_message_gets_its_field(tmp_path: Path) -> None:
    decision, _, hooks = inspect(tmp_path, Clean(), "Header: X: %i %l %d", "VirusAction: true", "Quarantine: on")
    assert decision == Deliver(b"X: 192.0.2.1 198.51.100.2 Tue, 3 Nov 2026 12:00:00 +0000 (UTC)\r\n")
    assert hooks.started == []
    assert list(tmp_path.glob("virus.*")) == []


def test_a_trace_field_is_for_the_top(tmp_path: Path) -> None:
    decision, _, _ = inspect(tmp_path, Clean(), "Header: Received: x")
    assert decision == Deliver(b"Received: x\r\n", on_top=True)


@pytest.mark.parametrize(("action", "expected"), [("drop", Drop()), ("bounce", Bounce())])
def test_an_infected_message(tmp_path: Path, action: str, expected: Decision) -> None:
    decision, _, hooks = inspect(tmp_path, Infected("Worm"), f"Action: {action}", "VirusAction: run")
    assert decision == expected
    ((command, variables, tag),) = hooks.started
    assert (command, str(tag)) == ("run", "10002A")
    assert variables["VIRUS"] == b"Worm"
    assert variables["SERVER"] == b"203.0.113.3"
    assert "EMAIL" not in variables


def test_the_scanner_and_the_quarantine_see_the_text_without_stuffed_dots(tmp_path: Path) -> None:
    _, oracle, hooks = inspect(
        tmp_path, Infected("Worm"), "Quarantine: on", "VirusAction: run", text=b"..x\r\n", stuffed=True
    )
    assert oracle.seen == b".x\r\n"
    (kept,) = tmp_path.glob("virus.*")
    assert kept.read_bytes() == b".x\r\n"
    assert hooks.started[0][1]["EMAIL"] == bytes(kept)


def test_without_a_verdict_the_client_keeps_the_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="clamsmtpd")
    decision, _, hooks = inspect(tmp_path, Unscanned("clamd is\r\naway"), "Action: pass", "VirusAction: run")
    assert decision == Defer()
    assert hooks.started == []
    assert [record.getMessage() for record in caplog.records] == [
        "10002A: from=a@example.org, to=b@example.org, status=CLAMAV-ERROR",
        "10002A: no verdict: clamd is\\x0D\\x0Aaway",
    ]


@pytest.mark.parametrize(
    ("verdict", "field", "status"),
    [
        (Unscanned("clamd is away"), b"X-Virus-Unscanned: scan failed\r\n", "CLAMAV-ERROR"),
        (Oversize("30 MB of 25"), b"X-Virus-Unscanned: message too large\r\n", "OVERSIZE"),
    ],
)
def test_what_passes_without_a_verdict_says_so_to_everybody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, verdict: Unscanned | Oversize, field: bytes, status: str
) -> None:
    caplog.set_level(logging.INFO, logger="clamsmtpd")
    lines = ["ScanFailure: pass", "Oversize: pass", "VirusAction: run", "Quarantine: on"]
    decision, _, hooks = inspect(tmp_path, verdict, *lines)
    assert decision == Deliver(field)
    assert hooks.started == []
    assert list(tmp_path.glob("virus.*")) == []
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", f"10002A: from=a@example.org, to=b@example.org, passed=UNSCANNED, status={status}"),
        ("WARNING", f"10002A: no verdict, delivered unscanned: {verdict.reason}"),
    ]


@pytest.mark.parametrize(
    ("oversize", "expected"), [("defer", Defer(Ground.OVERSIZE)), ("bounce", Bounce(Ground.OVERSIZE))]
)
def test_too_large_is_neither_a_virus_nor_a_failure(tmp_path: Path, oversize: str, expected: Decision) -> None:
    decision, _, hooks = inspect(tmp_path, Oversize("vast"), f"Oversize: {oversize}", "VirusAction: run")
    assert decision == expected
    assert hooks.started == []


FORGED = b"Subject: x\r\nX-VIRUS-SCANNED: by us\r\nX-Virus-Infected : no\r\n"


@pytest.mark.parametrize("padding", [0, MEMORY_MAX], ids=["in memory", "in a file"])
@pytest.mark.parametrize("verdict", [Clean(), Infected("Worm"), Unscanned("away"), Oversize("vast")])
def test_forged_fields_of_ours_are_renamed_in_all_that_is_delivered(
    tmp_path: Path, verdict: Verdict, padding: int
) -> None:
    lines = ["Action: pass", "ScanFailure: pass", "Oversize: pass", "Quarantine: on"]
    text = FORGED + b"\r\nX-Virus-Scanned: in the body\r\n" + b"p" * padding
    decision, oracle, _ = inspect(tmp_path, verdict, *lines, text=text, header=len(FORGED))
    assert isinstance(decision, Deliver)
    assert decision.field
    assert decision.insertions == ((12, b"X-Untrusted-"), (36, b"X-Untrusted-"))
    assert oracle.seen == text
    for kept in tmp_path.glob("virus.*"):
        assert kept.read_bytes() == text, "what is kept is what came"


def test_where_there_is_no_header_section_nothing_is_renamed(tmp_path: Path) -> None:
    decision, _, _ = inspect(tmp_path, Clean(), text=b"\r\n" + FORGED, header=0)
    assert decision == Deliver(b"X-Virus-Scanned: ClamAV using ClamSMTP\r\n")


def test_forged_fields_are_found_in_a_header_section_of_many_pieces(tmp_path: Path) -> None:
    text = b"A: b\r\n" * 100_000 + FORGED
    decision, _, _ = inspect(tmp_path, Clean(), text=text)
    assert isinstance(decision, Deliver)
    assert [offset for offset, _ in decision.insertions] == [600_012, 600_036]


def test_while_a_long_header_section_is_read_others_get_their_turn(tmp_path: Path) -> None:
    inspector = Inspector(settings(tmp_path), cast("Scans", Oracle(Clean())), cast("HookRunner", Hooks()))
    spool = Spool(str(tmp_path), "test")
    spool.append(b"A: b\r\n" * 200_000)

    async def main() -> int:
        turns = 0
        task = asyncio.ensure_future(inspector.inspect(spool, ENVELOPE, ROUTE, stuffed=False, header=spool.size))
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert asyncio.run(main()) > 4
    spool.close()


@pytest.mark.parametrize("padding", [b"", b"A: b\r\n" * 100_000], ids=["in memory", "in a file"])
def test_a_message_with_too_many_of_them_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, padding: bytes
) -> None:
    text = b"X-Virus-Scanned: x\r\n" * FORGED_MAX
    decision, _, _ = inspect(tmp_path, Clean(), text=text + padding)
    assert isinstance(decision, Deliver)
    assert len(decision.insertions) == FORGED_MAX
    decision, _, _ = inspect(tmp_path, Clean(), text=text + FORGED + padding)
    assert decision == Bounce(Ground.FORGERY)
    assert "more than 100 fields pretend to be ours" in caplog.text


def test_a_spool_that_shrinks_is_not_delivered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    decision, _, _ = inspect(tmp_path, Clean(), text=FORGED, header=len(FORGED) + 1)
    assert decision == Defer()
    assert "10002A: cannot read the spool: " in caplog.text


def test_a_spool_that_cannot_be_read_is_no_verdict(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Not even where what is not scanned may pass: there may be less of it than there was.
    decision, _, _ = inspect(tmp_path, OSError(28, "No space left on device"), "ScanFailure: pass")
    assert decision == Defer()
    assert f"spool in {tmp_path}" in caplog.text


def test_what_cannot_be_kept_is_not_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_spool: Spool) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Spool, "quarantine", full)
    decision, _, hooks = inspect(tmp_path, Infected("Worm"), "Quarantine: on", "VirusAction: run")
    assert decision == Defer()
    assert hooks.started == []
    assert "cannot quarantine" in caplog.text


@pytest.mark.parametrize(
    ("verdict", "settled", "counted"),
    [
        (Clean(), "defer", [CLEAN]),
        (Infected("Worm"), "pass", [INFECTED]),
        (Unscanned("away"), "defer", [UNSCANNED]),
        (Unscanned("away"), "pass", [UNSCANNED, PASSED]),
        (Oversize("vast"), "defer", [OVERSIZE]),
        (Oversize("vast"), "pass", [OVERSIZE, PASSED]),
    ],
)
def test_a_message_is_counted_with_its_octets(
    tmp_path: Path, verdict: Verdict, settled: str, counted: list[int]
) -> None:
    row = Metrics().row(0)
    unjudged = settings(tmp_path, f"ScanFailure: {settled}", f"Oversize: {settled}")
    inspector = Inspector(unjudged, cast("Scans", Oracle(verdict)), cast("HookRunner", Hooks()), row=row)
    for _ in range(2):
        spool = Spool(str(tmp_path), "test")
        spool.append(b"12345\r\n")
        asyncio.run(inspector.inspect(spool, ENVELOPE, ROUTE, stuffed=False, header=0))
        spool.close()
    assert {index: number for index, number in enumerate(row) if number} == {
        **dict.fromkeys(counted, 2),
        OCTETS: 14,
    }


def test_the_clock_is_the_time_zone_of_the_machine(tmp_path: Path) -> None:
    inspector = Inspector(
        settings(tmp_path, "Header: X: %d"), cast("Scans", Oracle(Clean())), cast("HookRunner", Hooks())
    )
    spool = Spool(str(tmp_path), "test")
    decision = asyncio.run(inspector.inspect(spool, ENVELOPE, ROUTE, stuffed=False, header=0))
    assert isinstance(decision, Deliver)
    local = datetime.now(UTC).astimezone()
    assert f" {local.year} ".encode() in decision.field
    assert f"{local:%z}".encode() in decision.field
