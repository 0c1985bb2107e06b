"""The daemon as seen from outside."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from clamsmtpd.admin.exposition import EXPOSED, Exposition
from clamsmtpd.admin.view import LISTED_MAX, View
from clamsmtpd.board import ENTRIES, Board
from clamsmtpd.commons import Commons, Share
from clamsmtpd.config import load
from clamsmtpd.metrics import CONNECTIONS, Failure, Span, count_failure, count_message, observe

CLAMD = {
    "address": "/clamd",
    "usable": True,
    "fault": "",
    "version": "ClamAV 1.4.3/27600/Fri Apr  4 08:36:16 2025",
    "outstanding": 2,
    "scans": 10,
    "seconds": 0.5,
    "limit": 1000,
}


def board(share: Share) -> Board:
    assert share.board is not None
    return share.board


@pytest.fixture
def shares(tmp_path: Path) -> list[Share]:
    commons = Commons(2, 10, seen=True)
    return [commons.share(worker) for worker in range(2)]


@pytest.fixture
def view(tmp_path: Path, shares: list[Share]) -> View:
    path = tmp_path / "conf"
    path.write_text("OutAddress: 127.0.0.1:10026\n")
    own = load(str(path)).settings
    return View(shares[0], lambda: own)


def post(share: Share, **changes: object) -> None:
    bulletin = {"pid": os.getpid(), "sessions": {"command": 1}, "scanners": [{**CLAMD, **changes}]}
    board(share).post(json.dumps(bulletin).encode())


def test_before_any_worker_has_said_anything_there_are_none(view: View) -> None:
    told = view.status()
    assert told["workers"] == told["scanners"] == told["messages"] == []
    assert told["failures"] == told["sessions"] == {}
    assert told["next_hop"] == "127.0.0.1:10026"


def test_what_the_workers_say_is_put_together(view: View, shares: list[Share]) -> None:
    post(shares[0])
    post(shares[1], usable=False, fault="gone", scans=5, seconds=0.25, version="")
    for share in shares:
        share.row[CONNECTIONS] += 3
        count_message(share.row, 1, 2)
        count_failure(share.row, Failure.STORAGE)
    told = view.status()
    (scanner,) = told["scanners"]
    assert scanner["usable"] is False
    assert scanner["fault"] == "gone"
    assert (scanner["outstanding"], scanner["scans"], scanner["seconds"]) == (4, 15, 0.75)
    assert scanner["signatures_age"] > 0
    assert told["sessions"] == {"command": 2}
    assert told["messages"] == [{"verdict": "infected", "outcome": "dropped", "count": 2}]
    assert told["failures"] == {"storage": 2}
    assert told["totals"]["connections"] == 6
    assert [worker["pid"] for worker in told["workers"]] == [os.getpid()] * 2
    assert told["workers"][0]["memory"] > 1_000_000


def test_a_process_that_is_gone_has_no_memory(view: View, shares: list[Share]) -> None:
    board(shares[0]).post(json.dumps({"pid": 2**30, "sessions": {}, "scanners": []}).encode())
    assert view.status()["workers"][0]["memory"] == 0


def account(**changes: object) -> bytes:
    told = {
        "message": "100ABC-1",
        "connection": "100ABC",
        "since": 1.0,
        "reply": "250 2.0.0 Ok: queued as 4fXyz1Q2c",
        "outcome": "delivered",
        "quarantine": "",
    }
    return json.dumps({**told, **changes}).encode()


@pytest.mark.parametrize("wanted", ["100ABC-1", "100abc-1", "100ABC", "4fXyz1Q2c"])
def test_a_message_is_known_by_each_of_its_names(view: View, shares: list[Share], wanted: str) -> None:
    board(shares[1]).note(account())
    board(shares[1]).note(account(message="100ABD-1", connection="100ABD", reply="250 id=1wXY"))
    (found,) = asyncio.run(view.messages(wanted))
    assert found["message"] == "100ABC-1"


@pytest.mark.parametrize(("wanted", "count"), [("AbCdEf", 1), ("virus.AbCdEf", 1), ("1wXY", 1), ("Ok:", 0), ("250", 0)])
def test_and_no_other_word_is_a_name(view: View, shares: list[Share], wanted: str, count: int) -> None:
    board(shares[0]).note(account(quarantine="/spool/virus.AbCdEf", outcome="dropped"))
    board(shares[0]).note(account(reply="250 OK id=1wXY"))
    board(shares[0]).note(account(reply="550 refused 1wXY", outcome="refused"))
    assert len(asyncio.run(view.messages(wanted))) == count


def test_the_latest_of_all_workers_come_first(view: View, shares: list[Share]) -> None:
    for number in range(6):
        board(shares[number % 2]).note(account(since=float(number)))
    assert [found["since"] for found in asyncio.run(view.messages())] == [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]


def test_mail_has_its_turn_while_messages_are_read(view: View, shares: list[Share]) -> None:
    for _ in range(ENTRIES):
        board(shares[0]).note(account())
    turns = 0

    async def mail() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def main() -> int:
        task = asyncio.create_task(mail())
        found = await view.messages()
        task.cancel()
        return len(found)

    assert asyncio.run(main()) == LISTED_MAX
    assert turns >= ENTRIES // 100


def test_prometheus_gets_every_number_of_the_table_and_no_other(view: View, shares: list[Share]) -> None:
    post(shares[0])
    observe(shares[0].row, Span.SCAN, 0.003)
    observe(shares[1].row, Span.SCAN, 700.0)
    media_type, text = Exposition(view).render("")
    assert media_type.startswith("text/plain")
    lines = text.decode().splitlines()
    families = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert families == {exposed.name + ("_total" if exposed.kind == "counter" else "") for exposed in EXPOSED}
    assert 'clamsmtpd_scan_seconds_bucket{le="0.005"} 1.0' in lines
    assert 'clamsmtpd_scan_seconds_bucket{le="600.0"} 1.0' in lines
    assert 'clamsmtpd_scan_seconds_bucket{le="+Inf"} 2.0' in lines
    assert "clamsmtpd_scan_seconds_count 2.0" in lines
    assert 'clamsmtpd_scanner_up{scanner="/clamd"} 1.0' in lines
    assert 'clamsmtpd_messages_total{outcome="delivered",verdict="clean"} 0.0' in lines


def test_openmetrics_is_had_for_the_asking(view: View) -> None:
    media_type, text = Exposition(view).render("application/openmetrics-text; version=1.0.0")
    assert media_type.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")
