"""``clamsmtpctl explain``: the timeline of one message."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, TextIO
from urllib.parse import quote

import click

from clamsmtpd.ctl.daemon import DaemonError, admin_address, ask
from clamsmtpd.ctl.logfile import LINES_MAX, Line, Told, search
from clamsmtpd.ctl.output import Status, fail, json_option, print_json, shown
from clamsmtpd.values import UnixAddress

__all__ = ["explain", "timeline"]

_NOT_FOUND = 404

# No number in an account is as large. NaN is not less than it either.
_MOST = 1e15

# What the account of a message says itself, and more of it.
_IN_ACCOUNT = {"message.judged", "message.no_verdict", "virus.quarantined", "connection.accepted"}

_OUTCOMES = {
    "delivered": "the next hop took it",
    "refused": "the next hop refused it",
    "dropped": "it was dropped: the client was told 250, and nobody has it",
    "bounced": "it was refused for good",
    "deferred": "the client was told to try again later",
    "abandoned": "the client left before it was told anything",
}


@click.command()
@click.argument("identity", metavar="ID")
@click.option(
    "--log",
    type=click.File("r", encoding="utf-8", errors="replace"),
    help="Look in a log in place of asking the daemon; - is standard input.",
)
@json_option
@click.pass_context
def explain(context: click.Context, identity: str, log: TextIO | None, *, as_json: bool) -> None:
    """Tell the story of one message: what came, who scanned it, what was decided and why, what the next hop said.

    ID is that of a message (100ABC-2), of a connection (100ABC: all its messages), the id that the next hop gave it,
    or that of its file in quarantine. The daemon remembers the last 512 messages of each worker, and tells about them
    through a unix socket alone (setting Admin).

    With --log a log of any age can be asked. One with LogFormat: json has all; so has the journal, by journalctl -o
    json. Other text logs have only what their lines say, and know the ids of connections alone.

    \b
    Examples:
      clamsmtpctl explain 100ABC-2
      clamsmtpctl explain 4fXyz1Q2c
      journalctl -u clamsmtpd -o json | clamsmtpctl explain 100ABC --log -
      clamsmtpctl explain 100ABC --log /var/log/mail.log
    """
    if not identity:
        fail("give the id of a message", Status.USAGE)
    told = _in_log(identity, log) if log is not None else Told(_from_daemon(context, identity))
    if not told.accounts and not told.lines:
        fail(f"no message {identity} is known here", Status.FAILED)
    if as_json:
        lines = [
            {"time": line.when, "event": line.event, "message": line.message, "text": line.text} for line in told.lines
        ]
        print_json({"messages": told.accounts, "lines": lines})
        return
    click.echo("\n\n".join("\n".join(part) for part in _parts(identity, told)))


def _in_log(identity: str, log: TextIO) -> Told:
    try:
        return search(identity, log)
    except OSError as error:
        fail(f"cannot read {log.name}: {error.strerror}", Status.UNREACHABLE)


def _from_daemon(context: click.Context, identity: str) -> list[dict[str, Any]]:
    address = admin_address(context)
    if not isinstance(address, UnixAddress):
        fail(
            "single messages are told of through a unix socket alone; give Admin the path of one, or use --log",
            Status.UNREACHABLE,
        )
    try:
        status, told = ask(address, f"/messages/{quote(os.fsencode(identity), safe='')}")
    except DaemonError as error:
        fail(str(error), Status.UNREACHABLE)
    if status == _NOT_FOUND:
        return []
    messages = told.get("messages")
    return [account for account in messages if isinstance(account, dict)] if isinstance(messages, list) else []


def _parts(identity: str, told: Told) -> Iterable[list[str]]:
    for account in sorted(told.accounts, key=_since):
        yield timeline(account)
    if not told.accounts:
        why = "what the log says of it; it has not ended, or this log holds no accounts of messages (LogFormat: json)"
        yield [shown(f"{identity}: {why}"), *_shown_lines(told.lines)]
    elif lines := [line for line in told.lines if line.event and line.event not in _IN_ACCOUNT]:
        yield ["what else the log says", *_shown_lines(lines)]


def _shown_lines(lines: list[Line]) -> list[str]:
    told = [shown("  " + (f"{line.when}  " if line.when else "") + line.text) for line in lines]
    return told if len(told) < LINES_MAX else [*told, "  (and perhaps more)"]


def _since(account: dict[str, Any]) -> float:
    return _number(account, "since") or 0.0


def _begin(account: dict[str, Any]) -> str:
    try:
        began = datetime.fromtimestamp(_since(account), UTC).astimezone()
    except (OverflowError, OSError, ValueError):
        return "at an unknown time"
    return began.isoformat(sep=" ", timespec="milliseconds")


def _recipients(account: dict[str, Any]) -> str:
    listed = account.get("recipients")
    recipients = [str(recipient) for recipient in listed] if isinstance(listed, list) else []
    if (more := (_number(account, "recipients_count") or 0.0) - len(recipients)) > 0:
        recipients.append(f"{more:.0f} more")
    return ", ".join(recipients) or "nobody"


def timeline(account: dict[str, Any]) -> list[str]:
    """Return the story of a message, a line for each step: seconds since it began, and what happened."""
    client = str(account.get("client") or "an unknown client")
    if account.get("remote"):
        client += f" for {account['remote']}"
    lines = [
        f"message {account.get('message')}, {_begin(account)}",
        f"  from {account.get('sender') or '<>'} to {_recipients(account)}, through {client}",
    ]
    received = _number(account, "receive_seconds")
    lines.append(
        _step(0.0, "its text began")
        if received is None
        else _step(received, f"received whole: {account.get('size')} octets in {_ms(received)}")
    )
    at = received or 0.0
    judged = _number(account, "verdict_seconds")
    lines += _scan(account, at, judged)
    at = at if judged is None else judged
    if account.get("decision"):
        lines.append(_step(at, f"decided: {account['decision']}{_why(account)}"))
    if account.get("quarantine"):
        lines.append(_step(at, f"kept in quarantine: {account['quarantine']}"))
    took = _number(account, "next_hop_seconds")
    if took is not None:
        lines.append(_step(at + took, f"next hop {account.get('next_hop')} answered after {_ms(took)}"))
    ended = _number(account, "seconds")
    outcome = str(account.get("outcome"))
    said = f"the client was told: {account['reply']}" if account.get("reply") else "no reply"
    lines.append(_step(at if ended is None else ended, f"{said} ({_OUTCOMES.get(outcome, outcome)})"))
    return [shown(line) for line in lines]


def _scan(account: dict[str, Any], at: float, judged: float | None) -> list[str]:
    verdict = account.get("verdict")
    waited, took = _number(account, "queue_seconds"), _number(account, "scan_seconds")
    lines = []
    if waited:
        lines.append(_step(at + waited, f"waited {_ms(waited)} for a scanner"))
    if verdict is None:
        return [*lines, _step(at, "no scanner was asked")]
    words = f"verdict: {verdict}"
    if account.get("virus"):
        words += f", {account['virus']}"
    if account.get("spared"):
        words += ", from the scan of another message with the same octets"
    elif took is not None:
        words += f", by clamd at {account.get('scanner')} in {_ms(took)}"
        if account.get("early"):
            words += " after its last octet; it was scanned while it came in"
        tries = _number(account, "tries") or 1.0
        words += f" (try {tries:.0f})" if tries > 1 else ""
    return [*lines, _step(at if judged is None else judged, words)]


def _why(account: dict[str, Any]) -> str:
    return f", as {account['reason']}" if account.get("reason") else ""


def _number(account: dict[str, Any], name: str) -> float | None:
    value = account.get(name)
    return float(value) if isinstance(value, int | float) and -_MOST < value < _MOST else None


def _step(at: float, what: str) -> str:
    return f"  {at:9.3f} s  {what}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
