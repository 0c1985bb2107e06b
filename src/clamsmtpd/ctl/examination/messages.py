"""The two messages that are sent through the daemon, and what is to be said of the replies to them."""

from __future__ import annotations

import base64
from datetime import datetime
from email.utils import format_datetime

from clamsmtpd.clamd.canary import EICAR
from clamsmtpd.config import Settings
from clamsmtpd.ctl.examination.daemon import UNAVAILABLE
from clamsmtpd.ctl.examination.steps import RESTART, State, Step
from clamsmtpd.ctl.looks import Delivery
from clamsmtpd.policy import Policy
from clamsmtpd.smtp import replies
from clamsmtpd.values import Action

__all__ = ["action_on", "clean_message", "infected_message", "judge_clean", "judge_infected"]


def action_on(settings: Settings, virus: str) -> Action:
    """Return what the settings want done with a message that has this virus."""
    policy = Policy(
        action=settings.action,
        actions_for=settings.actions_for,
        oversize=settings.oversize,
        scan_failure=settings.scan_failure,
    )
    rule = policy.rule_for(virus)
    return settings.action if rule is None else rule.action


_DOCTOR = "clamsmtpctl doctor"


def clean_message(token: str, sender: str, recipient: str, now: datetime) -> bytes:
    """Return a message that must arrive. ``token`` is one that no other message has."""
    return _head(_subject(token), token, sender, recipient, now) + (
        b"\r\n"
        b"clamsmtpctl doctor has sent this through clamsmtpd, to see that clean mail arrives.\r\n"
        b"A second message, with the EICAR test file, was sent behind it.\r\n"
    )


def infected_message(token: str, sender: str, recipient: str, now: datetime) -> bytes:
    """Return a message with the EICAR test file, which is harmless, as an attachment."""
    border = f"clamsmtpctl-{token}"
    subject = f"{_DOCTOR} {token}: EICAR test file"
    return _head(subject, f"{token}.eicar", sender, recipient, now) + (
        "MIME-Version: 1.0\r\n"
        f'Content-Type: multipart/mixed; boundary="{border}"\r\n'
        "\r\n"
        f"--{border}\r\n"
        "Content-Type: text/plain; charset=us-ascii\r\n"
        "\r\n"
        "The attachment is the harmless file that every virus scanner must find.\r\n"
        f"--{border}\r\n"
        'Content-Type: application/octet-stream; name="eicar.com"\r\n'
        'Content-Disposition: attachment; filename="eicar.com"\r\n'
        "Content-Transfer-Encoding: base64\r\n"
        "\r\n"
        f"{base64.b64encode(EICAR).decode()}\r\n"
        f"--{border}--\r\n"
    ).encode("ascii")


def _head(subject: str, identity: str, sender: str, recipient: str, now: datetime) -> bytes:
    return (
        f"Date: {format_datetime(now)}\r\n"
        f"From: {_DOCTOR} <{sender}>\r\n"
        f"To: <{recipient}>\r\n"
        f"Subject: {subject}\r\n"
        f"Message-ID: <{identity}@{replies.NAME.decode()}>\r\n"
        # RFC 3834: no vacation program is to answer.
        "Auto-Submitted: auto-generated\r\n"
    ).encode("ascii")


_SCANNER_REPLIES = tuple(
    reply.decode().strip() for reply in (replies.SCAN_FAILED, replies.TURNED_AWAY, replies.CANNOT_STORE)
)
_DROPPED, _BOUNCED = replies.VIRUS_DROPPED.decode().strip(), replies.VIRUS_BOUNCED.decode().strip()


def judge_clean(delivery: Delivery, token: str, recipient: str) -> Step:
    """Return what is to be said of the clean message."""
    name = "a clean message"
    if delivery.reply in {_DROPPED, _BOUNCED}:
        return Step(name, State.FAILED, f'"{delivery.reply}": it is clean', "see the verdicts of clamd, and its log")
    if delivery.command == "the message" and 200 <= delivery.code <= 299:  # noqa: PLR2004 - RFC 5321
        return Step(
            name, State.OK, f'"{delivery.reply}"; it must arrive at {recipient}, with the subject "{_subject(token)}"'
        )
    return Step(name, State.FAILED, _refusal(delivery), _mend_refusal(delivery))


def _subject(token: str) -> str:
    return f"{_DOCTOR} {token}: clean"


def judge_infected(delivery: Delivery, action: Action, token: str) -> Step:
    """Return what is to be said of the message with the EICAR test file, which ``action`` is for."""
    name = "a message with the EICAR test file"
    if delivery.command != "the message":
        return Step(name, State.FAILED, _refusal(delivery), _mend_refusal(delivery))
    said = f'"{delivery.reply}"'
    if delivery.reply == _BOUNCED:
        return _compare(name, action, Action.BOUNCE, f"{said}; it was refused, and must not arrive")
    if delivery.reply == _DROPPED:
        return _compare(name, action, Action.DROP, f"{said}; it was dropped, and must not arrive")
    if 200 <= delivery.code <= 299:  # noqa: PLR2004 - RFC 5321
        if action is Action.PASS:
            return Step(name, State.OK, f"{said}; it was delivered, with X-Virus-Infected, and {token} in its subject")
        return Step(
            name,
            State.FAILED,
            f"{said}: it was DELIVERED, though Action is {action.value}",
            "see the steps about clamd, the daemon's log, and whether it was started with these settings",
        )
    return Step(name, State.FAILED, _refusal(delivery), _mend_refusal(delivery))


def _compare(name: str, wanted: Action, done: Action, finding: str) -> Step:
    if wanted is done:
        return Step(name, State.OK, f"{finding} (Action: {done.value})")
    return Step(
        name,
        State.WARNING,
        f"{finding}; but the settings say {wanted.value}",
        f"the daemon has other settings: systemctl reload clamsmtpd, or {RESTART}",
    )


def _refusal(delivery: Delivery) -> str:
    if delivery.fault or delivery.command == "the message":
        return delivery.fault or f'"{delivery.reply}"'
    return f'{delivery.command} is answered "{delivery.reply}"'


def _mend_refusal(delivery: Delivery) -> str:
    if delivery.reply in _SCANNER_REPLIES:
        return "see the steps about clamd and TempDirectory"
    if delivery.reply.encode("utf-8", "replace") + b"\r\n" in UNAVAILABLE:
        return UNAVAILABLE[delivery.reply.encode("utf-8", "replace") + b"\r\n"]
    if delivery.command in {"MAIL", "RCPT"}:
        return "those are the next hop's words; give an address that it takes in --to, and in --from"
    return "see the daemon's log and the next hop's"
