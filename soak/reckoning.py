"""The reckoning: what was sent, told and delivered, held against what a mail filter promises. It is pure.

Each rule is a function that returns a line for each breach; none, and the promise was kept.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from soak.nexthop import MARK
from soak.records import CLOSED, Delivery, End, Heard, Record, Try

__all__ = ["RULES", "Ledger", "Message", "Rule", "delivered_twice"]


@dataclass(frozen=True, slots=True)
class Message:
    """A message of the run. ``digest`` is the SHA-256 of the text that must arrive, ``size`` its octets.

    ``spared``: it was sent while nothing befell the daemon itself.
    """

    infected: bool
    digest: str
    size: int
    spared: bool = False


Key = tuple[int, int]


@dataclass
class Ledger:
    """Everything that is known of a run: the messages by their numbers, and the records by number and attempt."""

    messages: Mapping[int, Message]
    tries: dict[Key, Try] = field(default_factory=dict)
    deliveries: dict[Key, list[Delivery]] = field(default_factory=lambda: defaultdict(list))
    heard: set[Key] = field(default_factory=set)

    @classmethod
    def of(cls, messages: Mapping[int, Message], records: Iterable[Record]) -> Ledger:
        """Sort records in."""
        ledger = cls(messages)
        for record in records:
            key = (record.number, record.attempt)
            match record:
                case Try():
                    ledger.tries[key] = record
                case Delivery():
                    ledger.deliveries[key].append(record)
                case Heard():
                    ledger.heard.add(key)
        return ledger

    def attempts(self, number: int) -> list[Try]:
        """Return the tries of a message, in order."""
        found: list[Try] = []
        while (one := self.tries.get((number, len(found) + 1))) is not None:
            found.append(one)
        return found

    def delivered(self, key: Key) -> bool:
        """Whether a try came to a delivery."""
        return bool(self.deliveries.get(key))

    def ends(self) -> Counter[str]:
        """Count how tries ended: 2xx, 4xx, 5xx, or by the name of the end."""
        return Counter(f"{one.code}xx" if one.code else str(one.end) for one in self.tries.values())


def _name(number: int, attempt: int) -> str:
    return f"message {number}, try {attempt}"


def untried(ledger: Ledger) -> list[str]:
    """Every message was tried, and every try came to an end."""
    found = [f"message {number} was never tried" for number in ledger.messages if (number, 1) not in ledger.tries]
    return found + [
        f"{_name(*key)}: {one.reply or 'silence'}" for key, one in ledger.tries.items() if one.end is End.SILENT
    ]


def cut_off(ledger: Ledger) -> list[str]:
    """As long as nothing befalls the daemon, whatever becomes of all others, no connection ends without a reply.

    A reset does not count: what was said before it may be lost with it, where the client is still sending.
    """
    return [
        f"{_name(*key)}: {one.reply}"
        for key, one in ledger.tries.items()
        if one.end is End.LOST and one.reply == CLOSED and ledger.messages[one.number].spared
    ]


def lost(ledger: Ledger) -> list[str]:
    """A clean message whose client was told 250 was delivered, by that very try."""
    return [
        f"{_name(*key)}: told {one.reply!r}, not delivered"
        for key, one in ledger.tries.items()
        if one.code == 2 and not ledger.messages[one.number].infected and not ledger.delivered(key)
    ]


def denied(ledger: Ledger) -> list[str]:
    """A client that was told 4xx or 5xx keeps its message: nothing was delivered.

    But for one case that nobody can prevent: the next hop had taken the message, and its connection broke before its
    250 had come back.
    """
    return [
        f"{_name(*key)}: told {one.reply!r}, and delivered"
        for key, one in ledger.tries.items()
        if one.code in (4, 5) and ledger.delivered(key) and key in ledger.heard
    ]


def unfinished(ledger: Ledger) -> list[str]:
    """Nothing was delivered of which the client had not sent the end."""
    return [
        f"{_name(*key)}: delivered without its end"
        for key, one in ledger.tries.items()
        if not one.whole and ledger.delivered(key)
    ]


def duplicate(ledger: Ledger) -> list[str]:
    """No try was delivered twice, and a message by two tries only where a connection broke behind the first's end.

    To the client it must then have seemed possible that it was not delivered: it lost its connection or left, or the
    next hop's was lost.
    """
    found = []
    for (number, attempt), deliveries in ledger.deliveries.items():
        if len(deliveries) > 1:
            found.append(f"{_name(number, attempt)}: delivered {len(deliveries)} times")
        one = ledger.tries.get((number, attempt))
        again = any(ledger.delivered((number, later.attempt)) for later in ledger.attempts(number)[attempt:])
        if again and (one is None or not _broke(ledger, one)):
            found.append(f"{_name(number, attempt)}: delivered, and again by a later try, without a broken connection")
    return found


def _broke(ledger: Ledger, one: Try) -> bool:
    if one.end in (End.LOST, End.LEFT):
        return one.whole
    return one.code == 4 and (one.number, one.attempt) not in ledger.heard


def infected(ledger: Ledger) -> list[str]:
    """No infected message was delivered, nor was the next hop ever asked to take its text."""
    numbers = {number for number, message in ledger.messages.items() if message.infected}
    found = [
        f"{_name(*key)}: infected, and delivered"
        for key, deliveries in ledger.deliveries.items()
        if deliveries and key[0] in numbers
    ]
    for key, one in ledger.tries.items():
        if key[0] in numbers and any(f"{MARK} to {stage}" in one.reply for stage in ("DATA", "text")):
            found.append(f"{_name(*key)}: infected, and the next hop was asked to take it: {one.reply!r}")
    return found


def altered(ledger: Ledger) -> list[str]:
    """Every text arrived octet by octet, with the one header field added; and none that nobody had sent."""
    found = []
    for key, deliveries in ledger.deliveries.items():
        message = ledger.messages.get(key[0])
        for one in deliveries:
            if message is None or key not in ledger.tries:
                found.append(f"{_name(*key)}: delivered, but never sent")
            elif one.digest != message.digest:
                octets = f"{one.size} octets instead of {message.size}"
                found.append(f"{_name(*key)}: arrived altered, {octets}, with the fields {one.fields}")
    return found


def refused(ledger: Ledger) -> list[str]:
    """A refusal for good is the next hop's own: nothing that was sent gives the filter a reason for one."""
    return [
        f"{_name(*key)}: refused by the filter itself: {one.reply!r}"
        for key, one in ledger.tries.items()
        if one.code == 5 and MARK not in one.reply
    ]


Rule = Callable[[Ledger], list[str]]

#: What was promised, and the rule that tells whether it was kept.
RULES: Sequence[tuple[str, Rule]] = (
    ("every message was tried, and every try came to an end", untried),
    ("no client was cut off without a reply by a daemon that was spared", cut_off),
    ("what was told 250 was delivered", lost),
    ("what was told 4xx or 5xx was not delivered, but for a next hop lost meanwhile", denied),
    ("nothing was delivered whose end had not been sent", unfinished),
    ("delivered once, but for a connection that broke behind the text", duplicate),
    ("no infected message was delivered", infected),
    ("every text arrived as it was sent, plus one header field", altered),
    ("every refusal for good was the next hop's own", refused),
)


def delivered_twice(ledger: Ledger) -> int:
    """Count the messages that were delivered by more than one try, with reason or without."""
    numbers = Counter(number for (number, _), deliveries in ledger.deliveries.items() if deliveries)
    return sum(count > 1 for count in numbers.values())
