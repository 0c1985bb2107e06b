"""The account of a message."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamsmtpd.account import Account, Outcome, Tag, is_about, verdict_name
from clamsmtpd.clamd.course import Course
from clamsmtpd.values import (
    Bounce,
    Clean,
    Decision,
    Defer,
    Deliver,
    Drop,
    Envelope,
    Infected,
    Oversize,
    Unscanned,
    Verdict,
)

TAG = Tag("100ABC").of_message(2)


def test_a_tag_is_shown_as_the_id_of_the_connection() -> None:
    assert str(TAG) == "100ABC"
    assert Tag("100ABC", "100ABC-2") == TAG
    assert TAG.of_message(3).message == "100ABC-3"


@pytest.mark.parametrize(
    ("reply", "taken", "outcome"),
    [
        (b"250 queued\r\n", 1, Outcome.DELIVERED),
        (b"550 one of two\r\n", 1, Outcome.DELIVERED),
        (b"451 not now\r\n", 0, Outcome.REFUSED),
        (b"250 dropped\r\n", None, Outcome.DROPPED),
        (b"550 virus\r\n", None, Outcome.BOUNCED),
        (b"451 later\r\n", None, Outcome.DEFERRED),
        (b"", None, Outcome.ABANDONED),
    ],
)
def test_the_reply_and_whose_it_was_say_what_became_of_the_message(
    reply: bytes, taken: int | None, outcome: Outcome
) -> None:
    account = Account(TAG)
    account.end(5.0, reply, taken=taken)
    assert account.outcome is outcome
    assert str(account) == f"100ABC-2 {outcome.value}, {reply.decode().strip() or 'no reply'}"
    assert account.ended == 5.0
    assert account.reply == reply.removesuffix(b"\r\n")


def test_as_text_it_says_how_it_ended() -> None:
    account = Account(TAG)
    account.end(1.0, b"250 ok\r\n", taken=1)
    assert str(account) == "100ABC-2 delivered, 250 ok"
    assert str(Account(TAG)) == "100ABC-2 , no reply"


def test_a_new_one_knows_nothing() -> None:
    told = Account(TAG).as_dict()
    assert told["message"] == "100ABC-2"
    assert told["connection"] == "100ABC"
    for name in ("receive_seconds", "queue_seconds", "scan_seconds", "next_hop_seconds", "seconds", "verdict"):
        assert told[name] is None


def test_the_times_of_a_message_that_went_all_the_way() -> None:
    account = Account(TAG, began=1.0, whole=2.0, judged=4.5, sent=5.0, course=Course("/clamd", 2.5, 1))
    account.end(7.0, b"250 2.0.0 Ok: queued as 4X\r\n", taken=1)
    told = account.as_dict()
    assert told["receive_seconds"] == 1.0
    assert told["queue_seconds"] == 0.5
    assert told["scan_seconds"] == 2.0
    assert told["next_hop_seconds"] == 2.5
    assert told["verdict_seconds"] == 3.5
    assert told["seconds"] == 6.0
    assert told["reply"] == "250 2.0.0 Ok: queued as 4X"


def test_a_message_that_was_scanned_while_it_came_in_has_not_waited() -> None:
    account = Account(TAG, began=1.0, whole=2.0, judged=2.25, course=Course("/clamd", 1.5, 1))
    assert account.queue_seconds == 0.0
    assert account.scan_seconds == 0.75
    assert account.next_hop_seconds is None


def test_long_values_of_strangers_are_cut_and_recipients_counted() -> None:
    envelope = Envelope(b"x" * 5000, tuple(b"r%d" % number for number in range(1000)))
    told = Account(TAG, envelope=envelope, reply=b"5" * 5000).as_dict()
    assert len(told["sender"]) == 320
    assert told["recipients"] == [f"r{number}" for number in range(10)]
    assert told["recipients_count"] == 1000
    assert len(json.dumps(told)) < 2000


@pytest.mark.parametrize(
    ("verdict", "name", "virus", "reason"),
    [
        (Clean(), "clean", "", ""),
        (Infected("Eicar"), "infected", "Eicar", ""),
        (Unscanned("down"), "unscanned", "", "down"),
        (Oversize("large"), "oversize", "", "large"),
        (None, None, "", ""),
    ],
)
def test_verdicts_have_names_that_stay(verdict: Verdict | None, name: str | None, virus: str, reason: str) -> None:
    told = Account(TAG, verdict=verdict).as_dict()
    assert (told["verdict"], told["virus"], told["reason"]) == (name, virus, reason)
    assert verdict_name(verdict) == name


@pytest.mark.parametrize(
    ("decision", "name"),
    [(Deliver(), "deliver"), (Drop(), "drop"), (Bounce(), "bounce"), (Defer(), "defer"), (None, None)],
)
def test_decisions_too(decision: Decision | None, name: str | None) -> None:
    assert Account(TAG, decision=decision).as_dict()["decision"] == name


@pytest.mark.parametrize("reply", ["250 2.0.0 Ok: queued as 4X", "250 OK id=4X", "250 <4X> taken", "250 4X."])
def test_an_account_is_about_the_id_that_the_next_hop_gave(reply: str) -> None:
    account = Account(TAG)
    account.end(1.0, reply.encode(), taken=1)
    assert is_about(account.as_dict(), "4X")
    assert not is_about(account.as_dict(), "4x")
    account.end(1.0, reply.encode(), taken=None)
    assert not is_about(account.as_dict(), "4X"), "that is our own word"


def test_an_account_is_about_its_connection_and_its_file_in_quarantine() -> None:
    account = Account(TAG, kept="/spool/virus.AbCdEf").as_dict()
    for identity in ("100ABC-2", "100abc-2", "100ABC", "virus.AbCdEf", "AbCdEf"):
        assert is_about(account, identity), identity
    for identity in ("", "100ABC-", "100AB", "AbCdE", "abcdef", "virus."):
        assert not is_about(account, identity), identity
    assert not is_about({}, "")


@given(st.binary(max_size=400), st.binary(max_size=400), st.binary(max_size=400))
def test_whatever_a_stranger_says_it_is_json_on_one_line(sender: bytes, recipient: bytes, helo: bytes) -> None:
    account = Account(TAG, envelope=Envelope(sender, (recipient,), helo, helo))
    account.end(1.0, recipient, taken=None)
    line = json.dumps(account.as_dict())
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line)["connection"] == "100ABC"
