"""The rules of the soak's reckoning: each holds for an honest run, and each finds what it is there for."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from soak.nexthop import refusal
from soak.reckoning import RULES, Ledger, Message, delivered_twice
from soak.records import CLOSED, Delivery, End, Heard, Record, Try

CLEAN, OTHER, VIRUS, SPARED = 1, 2, 3, 4
MESSAGES = {
    CLEAN: Message(infected=False, digest="clean", size=300),
    OTHER: Message(infected=False, digest="other", size=400),
    VIRUS: Message(infected=True, digest="virus", size=500),
    SPARED: Message(infected=False, digest="spared", size=600, spared=True),
}
OK = "250 2.0.0 Ok"
DROPPED = "250 2.0.0 Virus found; message discarded"
LATER = "451 4.3.0 Virus scan not possible now; try again later"
NEXT_HOP_LOST = "451 4.4.2 Connection to the next hop was lost; try again later"

COMPLETE = "every message was tried, and every try came to an end"
CUT_OFF = "no client was cut off without a reply by a daemon that was spared"
LOST = "what was told 250 was delivered"
DENIED = "what was told 4xx or 5xx was not delivered, but for a next hop lost meanwhile"
UNFINISHED = "nothing was delivered whose end had not been sent"
ONCE = "delivered once, but for a connection that broke behind the text"
INFECTED = "no infected message was delivered"
ALTERED = "every text arrived as it was sent, plus one header field"
REFUSED = "every refusal for good was the next hop's own"


def told(number: int, reply: str, attempt: int = 1) -> Try:
    return Try(number, attempt, End.TOLD, whole=True, reply=reply, seconds=0.1)


def lost(number: int, attempt: int = 1, *, end: End = End.LOST, whole: bool = True) -> Try:
    return Try(number, attempt, end, whole, reply=CLOSED if end is End.LOST else "", seconds=0.1)


def delivery(number: int, attempt: int = 1, digest: str | None = None) -> Delivery:
    message = MESSAGES.get(number)
    return Delivery(number, attempt, digest or (message.digest if message else "strange"), 300, ["X-Virus-Scanned: ok"])


HONEST: tuple[Record, ...] = (
    told(CLEAN, OK),
    delivery(CLEAN),
    Heard(CLEAN, 1),
    told(OTHER, OK),
    delivery(OTHER),
    Heard(OTHER, 1),
    told(VIRUS, DROPPED),
    told(SPARED, OK),
    delivery(SPARED),
    Heard(SPARED, 1),
)


def instead(number: int, *records: Record) -> list[Record]:
    """Return an honest run in which one message went another way."""
    return [record for record in HONEST if record.number != number] + list(records)


def broken(records: Iterable[Record]) -> dict[str, list[str]]:
    ledger = Ledger.of(MESSAGES, records)
    return {what: found for what, rule in RULES if (found := rule(ledger))}


def test_of_an_honest_run_no_promise_is_broken() -> None:
    assert broken(HONEST) == {}


@pytest.mark.parametrize(
    "records",
    [
        pytest.param(instead(CLEAN, told(CLEAN, LATER)), id="deferred, and given up"),
        pytest.param(instead(CLEAN, told(CLEAN, refusal("RCPT", b"550 5.7.1").decode())), id="refused by the next hop"),
        pytest.param(instead(CLEAN, told(CLEAN, LATER), told(CLEAN, OK, 2), delivery(CLEAN, 2)), id="taken later"),
        pytest.param(instead(CLEAN, lost(CLEAN)), id="connection lost, not delivered"),
        pytest.param(instead(CLEAN, lost(CLEAN), delivery(CLEAN), Heard(CLEAN, 1)), id="connection lost, delivered"),
        pytest.param(instead(CLEAN, lost(CLEAN, end=End.LEFT), delivery(CLEAN)), id="left behind the text, delivered"),
        pytest.param(instead(CLEAN, lost(CLEAN, end=End.LEFT, whole=False)), id="left before the end"),
        pytest.param(
            instead(CLEAN, lost(CLEAN), delivery(CLEAN), Heard(CLEAN, 1), told(CLEAN, OK, 2), delivery(CLEAN, 2)),
            id="delivered again after a connection that broke behind the text",
        ),
        pytest.param(
            instead(CLEAN, told(CLEAN, NEXT_HOP_LOST), delivery(CLEAN), told(CLEAN, OK, 2), delivery(CLEAN, 2)),
            id="delivered again after the next hop's connection broke before its 250 was heard",
        ),
        pytest.param(instead(SPARED, lost(SPARED, end=End.LEFT)), id="left while nothing befell the daemon"),
        pytest.param(instead(VIRUS, told(VIRUS, LATER)), id="infected and deferred"),
        pytest.param(instead(VIRUS, lost(VIRUS)), id="infected, connection lost"),
        pytest.param(instead(VIRUS, told(VIRUS, refusal("MAIL", b"550 5.7.1").decode())), id="infected, refused early"),
    ],
)
def test_what_faults_bring_about_breaks_no_promise(records: list[Record]) -> None:
    assert broken(records) == {}


BREACHES = [
    pytest.param(COMPLETE, instead(CLEAN), id="a message that was never tried"),
    pytest.param(COMPLETE, instead(CLEAN, lost(CLEAN, end=End.SILENT)), id="a client that was left without a word"),
    pytest.param(CUT_OFF, instead(SPARED, lost(SPARED)), id="a connection lost while nothing befell the daemon"),
    pytest.param(LOST, instead(CLEAN, told(CLEAN, OK)), id="told 250, not delivered"),
    pytest.param(LOST, instead(CLEAN, told(CLEAN, DROPPED)), id="clean, and dropped"),
    pytest.param(
        LOST,
        instead(CLEAN, lost(CLEAN), delivery(CLEAN), told(CLEAN, OK, 2)),
        id="told 250 for a try that was not delivered, though one before it was",
    ),
    pytest.param(
        DENIED, instead(CLEAN, told(CLEAN, LATER), delivery(CLEAN), Heard(CLEAN, 1)), id="told 451, and delivered"
    ),
    pytest.param(
        UNFINISHED,
        instead(CLEAN, lost(CLEAN, end=End.LEFT, whole=False), delivery(CLEAN, digest="clean")),
        id="half a message delivered",
    ),
    pytest.param(ONCE, instead(CLEAN, told(CLEAN, OK), delivery(CLEAN), delivery(CLEAN)), id="one try delivered twice"),
    pytest.param(
        ONCE,
        instead(CLEAN, told(CLEAN, OK), delivery(CLEAN), told(CLEAN, OK, 2), delivery(CLEAN, 2)),
        id="delivered again without a reason",
    ),
    pytest.param(INFECTED, instead(VIRUS, told(VIRUS, OK), delivery(VIRUS)), id="a virus delivered"),
    pytest.param(
        INFECTED,
        instead(VIRUS, lost(VIRUS), delivery(VIRUS)),
        id="a virus delivered whose client lost its connection",
    ),
    pytest.param(
        INFECTED,
        instead(VIRUS, told(VIRUS, refusal("text", b"450 4.7.1").decode())),
        id="a virus that the next hop was asked to take, and did not",
    ),
    pytest.param(ALTERED, instead(CLEAN, told(CLEAN, OK), delivery(CLEAN, digest="changed")), id="an altered text"),
    pytest.param(
        ALTERED,
        instead(CLEAN, told(CLEAN, OK), delivery(CLEAN, digest="other")),
        id="the text of another message",
    ),
    pytest.param(ALTERED, [*HONEST, delivery(5)], id="a message that nobody sent"),
    pytest.param(ALTERED, [*HONEST, delivery(CLEAN, 2)], id="a try that nobody made"),
    pytest.param(
        REFUSED, instead(CLEAN, told(CLEAN, "550 5.6.0 Message holds a dot")), id="refused by the filter itself"
    ),
    pytest.param(REFUSED, instead(VIRUS, told(VIRUS, "550 5.7.1 Virus found; message refused")), id="a virus bounced"),
]


@pytest.mark.parametrize(("promise", "records"), BREACHES)
def test_what_must_not_be_breaks_its_promise(promise: str, records: list[Record]) -> None:
    assert promise in broken(records)


def test_each_promise_has_been_broken() -> None:
    assert {case.values[0] for case in BREACHES} == {what for what, _ in RULES}


def test_tries_are_counted_by_their_end_and_messages_that_came_twice_once() -> None:
    records = instead(
        CLEAN, lost(CLEAN), delivery(CLEAN), lost(CLEAN, 2, end=End.LEFT), delivery(CLEAN, 2), told(CLEAN, LATER, 3)
    )
    ledger = Ledger.of(MESSAGES, records)
    assert ledger.ends() == {"2xx": 3, "4xx": 1, "lost": 1, "left": 1}
    assert delivered_twice(ledger) == 1
