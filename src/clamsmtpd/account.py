"""What is known of one message, for the log, for who counts and for who asks later: times, envelope, verdict, reply."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
    record,
)

__all__ = ["Account", "Outcome", "Tag", "is_about", "readable", "verdict_name"]


@record
class Tag:
    """What the log calls a connection, and the message in it that a line is about.

    ``connection`` is six hexadecimal digits; ``message``, such as ``100ABC-2`` for the second one of a connection, is
    empty between messages. ``str()`` is the connection's alone: with it each line begins, as in 1.x.
    """

    connection: str
    message: str = ""

    def of_message(self, number: int) -> Tag:
        """Return the tag of the connection's message of that number."""
        return Tag(self.connection, f"{self.connection}-{number}")

    def __str__(self) -> str:
        return self.connection


class Outcome(enum.Enum):
    """What the client was told of a message, and whose word that was."""

    #: The next hop took it, for one recipient at least.
    DELIVERED = "delivered"
    #: The next hop refused it, for now or for good.
    REFUSED = "refused"
    #: We said 250 and let nobody have it.
    DROPPED = "dropped"
    #: We refused it for good.
    BOUNCED = "bounced"
    #: We said that it should come again.
    DEFERRED = "deferred"
    #: The client left before it was told anything.
    ABANDONED = "abandoned"


_POSITIVE, _TRANSIENT = b"2", b"4"

# Octets of an account that a stranger may choose: its place is small.
_PATH_MAX = 320
_RECIPIENTS_MAX = 10
_REPLY_MAX = 300


@dataclass(slots=True)
class Account:
    """Filled in as the message goes along. ``client`` and ``server`` are addresses without port.

    Times are seconds by the clock of the event loop, 0 for what has not come: ``began`` with DATA or the first BDAT,
    ``whole`` with the last octet, ``judged`` with the verdict, ``sent`` when the next hop had been given all of it,
    ``ended`` with the reply to the client. ``since`` is when it began, in seconds since 1970. ``size`` is in octets as
    on the wire. ``reply`` is the last one about the message, without its CRLF.
    """

    tag: Tag
    client: str = ""
    server: str = ""
    since: float = 0.0
    began: float = 0.0
    whole: float = 0.0
    judged: float = 0.0
    sent: float = 0.0
    ended: float = 0.0
    size: int = 0
    envelope: Envelope = field(default_factory=Envelope)
    course: Course = field(default_factory=Course)
    verdict: Verdict | None = None
    decision: Decision | None = None
    reply: bytes = b""
    outcome: Outcome | None = None
    #: The file in quarantine; empty for none.
    kept: str = ""

    def end(self, now: float, reply: bytes, *, taken: int | None) -> None:
        """Take the reply that the client got; an empty one is none at all.

        ``taken``: for how many recipients the next hop took it; None for our own reply and no word of the next hop's.
        """
        self.ended = now
        self.reply = reply.rstrip(b"\r\n")
        if not reply:
            self.outcome = Outcome.ABANDONED
        elif taken is not None:
            self.outcome = Outcome.DELIVERED if taken else Outcome.REFUSED
        elif reply.startswith(_POSITIVE):
            self.outcome = Outcome.DROPPED
        else:
            self.outcome = Outcome.DEFERRED if reply.startswith(_TRANSIENT) else Outcome.BOUNCED

    def __str__(self) -> str:
        outcome = "" if self.outcome is None else self.outcome.value
        return f"{self.tag.message} {outcome}, {readable(self.reply, _REPLY_MAX) or 'no reply'}"

    @property
    def queue_seconds(self) -> float | None:
        """How long the whole message waited for a scanner; None if none had it."""
        given = self.course.given
        return max(given - self.whole, 0.0) if given and self.whole else None

    @property
    def scan_seconds(self) -> float | None:
        """How long the scanner had it that gave the verdict; None if there was no scan."""
        given = self.course.given
        return self.judged - given if given and self.judged else None

    @property
    def next_hop_seconds(self) -> float | None:
        """How long the next hop took from the decision to its answer; None if it was not asked."""
        return self.ended - self.judged if self.sent and self.ended and self.judged else None

    def as_dict(self) -> dict[str, Any]:
        """Return all of it by names that stay, for JSON. Seconds and octets are numbers; what is not known is None."""
        envelope = self.envelope
        recipients = envelope.recipients
        return {
            "message": self.tag.message,
            "connection": self.tag.connection,
            "since": round(self.since, 6),
            "client": self.client,
            "next_hop": self.server,
            "sender": readable(envelope.sender, _PATH_MAX),
            "recipients": [readable(recipient, _PATH_MAX) for recipient in recipients[:_RECIPIENTS_MAX]],
            "recipients_count": len(recipients),
            "remote": readable(envelope.remote or b"", _PATH_MAX),
            "remote_helo": readable(envelope.remote_helo or b"", _PATH_MAX),
            "size": self.size,
            "receive_seconds": _seconds(self.whole - self.began if self.whole else None),
            "queue_seconds": _seconds(self.queue_seconds),
            "scan_seconds": _seconds(self.scan_seconds),
            "next_hop_seconds": _seconds(self.next_hop_seconds),
            "verdict_seconds": _seconds(self.judged - self.began if self.judged else None),
            "seconds": _seconds(self.ended - self.began if self.ended else None),
            "scanner": self.course.scanner,
            "tries": self.course.tries,
            "early": self.course.early,
            "spared": self.course.spared,
            "verdict": verdict_name(self.verdict),
            "virus": self.verdict.name if isinstance(self.verdict, Infected) else "",
            "reason": self.verdict.reason[:_REPLY_MAX] if isinstance(self.verdict, Unscanned | Oversize) else "",
            "decision": _decision_name(self.decision),
            "outcome": self.outcome.value if self.outcome is not None else None,
            "reply": readable(self.reply, _REPLY_MAX),
            "quarantine": self.kept,
        }


def is_about(account: Mapping[str, Any], identity: str) -> bool:
    """Tell whether the account of :meth:`Account.as_dict` is of what ``identity`` names.

    That is the id of the message, of its connection, of its file in quarantine, or the one that the next hop gave it.
    """
    if identity.upper() in (str(account.get("message", "")).upper(), str(account.get("connection", "")).upper()):
        return bool(identity)
    kept = str(account.get("quarantine") or "")
    if kept and kept.endswith(f"virus.{identity.removeprefix('virus.')}"):
        return True
    # Servers put their id among the words of the reply: "queued as 4X", "id=1w-2", "id 3".
    words = str(account.get("reply", "")).replace("=", " ").replace("<", " ").replace(">", " ").split()
    return account.get("outcome") == Outcome.DELIVERED.value and identity in [word.rstrip(".,;") for word in words[1:]]


def verdict_name(verdict: Verdict | None) -> str | None:
    """Return the name of a verdict that stays."""
    match verdict:
        case Clean():
            return "clean"
        case Infected():
            return "infected"
        case Unscanned():
            return "unscanned"
        case Oversize():
            return "oversize"
        case _:
            return None


def _decision_name(decision: Decision | None) -> str | None:
    match decision:
        case Deliver():
            return "deliver"
        case Drop():
            return "drop"
        case Bounce():
            return "bounce"
        case Defer():
            return "defer"
        case _:
            return None


def readable(octets: bytes, most: int) -> str:
    """Return octets of a stranger's, ``most`` at the most, as text for JSON."""
    return octets[:most].decode("utf-8", "backslashreplace")


def _seconds(span: float | None) -> float | None:
    return None if span is None else round(span, 6)
