"""Where accounts go when they are closed."""

from __future__ import annotations

import json

import pytest

from clamsmtpd.account import Account, Outcome, Tag
from clamsmtpd.board import BOARD_SIZE, Board
from clamsmtpd.clamd.course import Course
from clamsmtpd.ledger import Ledger
from clamsmtpd.metrics import OUTCOMES, VERDICTS, Metrics, Span
from clamsmtpd.values import Clean, Envelope, Infected


def test_every_outcome_has_a_name_among_the_numbers() -> None:
    assert [outcome.value for outcome in Outcome] == list(OUTCOMES)


def test_a_closed_account_is_counted_and_kept() -> None:
    metrics = Metrics()
    board = Board(memoryview(bytearray(BOARD_SIZE)), 1, 0)
    ledger = Ledger(metrics.row(0), board)
    account = ledger.open(Account(Tag("100ABC", "100ABC-1")), 10.0)
    account.whole, account.judged, account.sent = 11.0, 13.0, 13.5
    account.course = Course("/clamd", 12.0, 1)
    account.verdict = Clean()
    account.end(16.0, b"250 ok\r\n", taken=1)
    ledger.close(account)
    assert metrics.messages(VERDICTS.index("clean"), OUTCOMES.index("delivered")) == 1
    assert [metrics.histogram(span).sum for span in Span] == [1.0, 1.0, 3.0]
    (kept,) = [json.loads(note) for note in board.notes()]
    assert kept["message"] == "100ABC-1"
    assert kept["seconds"] == 6.0
    assert kept["since"] > 1_700_000_000


def test_an_account_of_the_longest_addresses_is_kept_too() -> None:
    board = Board(memoryview(bytearray(BOARD_SIZE)), 1, 0)
    envelope = Envelope(b"\0" * 2000, (b"\xff" * 2000,) * 20)
    account = Account(Tag("100ABC", "100ABC-1"), envelope=envelope)
    account.end(1.0, b"250 ok\r\n", taken=1)
    Ledger(board=board).close(account)
    (kept,) = [json.loads(note) for note in board.notes()]
    assert (kept["message"], kept["recipients_count"], kept["cut"]) == ("100ABC-1", 20, True)


def test_a_message_without_a_verdict_has_none_and_no_times() -> None:
    metrics = Metrics()
    ledger = Ledger(metrics.row(0))
    account = ledger.open(Account(Tag("100ABC")), 1.0)
    ledger.close(account)
    assert metrics.messages(VERDICTS.index("none"), OUTCOMES.index("abandoned")) == 0
    account.end(2.0, b"", taken=None)
    ledger.close(account)
    assert metrics.messages(VERDICTS.index("none"), OUTCOMES.index("abandoned")) == 1
    assert [sum(metrics.histogram(span).counts) for span in Span] == [0, 0, 0]


def test_a_dropped_virus_is_one() -> None:
    metrics = Metrics()
    account = Account(Tag("1"), verdict=Infected("Eicar"))
    account.end(1.0, b"250 dropped\r\n", taken=None)
    Ledger(metrics.row(0)).close(account)
    assert metrics.messages(VERDICTS.index("infected"), OUTCOMES.index("dropped")) == 1


@pytest.mark.parametrize("octet", [b"a", b"\xff", b"\0", "\u00fc".encode()])
def test_an_account_that_strangers_have_filled_is_on_the_board_all_the_same(octet: bytes) -> None:
    board = Board(memoryview(bytearray(BOARD_SIZE)), 1, 0)
    path = 1000 * octet
    account = Account(Tag("100ABC", "100ABC-1"), "192.0.2.1", "192.0.2.2", verdict=Infected("V" * 5000))
    account.envelope = Envelope(path, (path,) * 100, path, path)
    account.end(1.0, b"250 " + path + b"\r\n", taken=1)
    Ledger(board=board).close(account)
    (kept,) = [json.loads(note) for note in board.notes()]
    assert kept["message"] == "100ABC-1"
    assert kept["outcome"] == "delivered"
    assert len(kept["recipients"]) == 10
    assert kept["reply"].startswith("250 ")
