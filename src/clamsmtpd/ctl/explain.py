"""``clamsmtpctl explain``: the timeline of one message."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, TextIO
from urllib.parse import quote

import click

from clamsmtpd.ctl.daemon import DaemonError, admin_address, ask
from clamsmtpd.ctl.output import Status, fail, json_option, print_json, shown
from clamsmtpd.values import UnixAddress

__all__ = ["explain", "in_log", "timeline"]

_NOT_FOUND = 404

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
    help="Look in a log (LogFormat: json) in place of asking the daemon; - is standard input.",
)
@json_option
@click.pass_context
def explain(context: click.Context, identity: str, log: TextIO | None, *, as_json: bool) -> None:
    """Tell the story of one message: what came, who scanned it, what was decided and why, what the next hop said.

    ID is that of a message (100ABC-2), of a connection (100ABC: all its messages), the id that the next hop gave it,
    or that of its file in quarantine. The daemon remembers the last 512 messages of each worker, and tells about them
    through a unix socket alone (setting Admin); with --log a log of any age can be asked.

    \b
    Examples:
      clamsmtpctl explain 100ABC-2
      clamsmtpctl explain 4fXyz1Q2c
      journalctl -u clamsmtpd -o cat | clamsmtpctl explain 100ABC --log -
    """
    if not identity:
        fail("give the id of a message", Status.USAGE)
    found = in_log(identity, log) if log is not None else _from_daemon(context, identity)
    if not found:
        fail(f"no message {identity} is known here", Status.FAILED)
    if as_json:
        print_json({"messages": found})
        return
    click.echo("\n\n".join("\n".join(timeline(account)) for account in sorted(found, key=_since)))


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
    messages: list[dict[str, Any]] = told.get("messages", [])
    return messages


def _since(account: dict[str, Any]) -> float:
    return float(account.get("since") or 0.0)


def in_log(identity: str, lines: Iterable[str]) -> list[dict[str, Any]]:
    """Return the accounts of a message in a log of JSON objects; what is none is passed over."""
    found: list[dict[str, Any]] = []
    for line in lines:
        start = line.find("{")
        if start < 0 or '"message.ended"' not in line:
            continue
        try:
            event = json.loads(line[start:])
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and event.get("event") == "message.ended" and _is_about(event, identity):
            # Whoever may write to the log of the system may write what only looks like ours.
            with contextlib.suppress(ValueError, TypeError, OverflowError):
                timeline(event)
                found.append(event)
    return found


def _is_about(event: dict[str, Any], identity: str) -> bool:
    if identity.upper() in {str(event.get("message", "")).upper(), str(event.get("connection", "")).upper()}:
        return True
    kept = str(event.get("quarantine", ""))
    if kept and kept.endswith(f"virus.{identity.removeprefix('virus.')}"):
        return True
    words = str(event.get("reply", "")).replace("=", " ").split()
    return identity in [word.strip("<>.,;") for word in words[1:]]


def timeline(account: dict[str, Any]) -> list[str]:
    """Return the story of a message, a line for each step: seconds since it began, and what happened."""
    began = datetime.fromtimestamp(_since(account), UTC).astimezone()
    sender = account.get("sender") or "<>"
    recipients = list(account.get("recipients") or ["nobody"])
    if (more := int(account.get("recipients_count") or 0) - len(recipients)) > 0:
        recipients.append(f"{more} more")
    client = str(account.get("client") or "an unknown client")
    if account.get("remote"):
        client += f" for {account['remote']}"
    lines = [
        f"message {account.get('message')}, {began.isoformat(sep=' ', timespec='milliseconds')}",
        f"  from {sender} to {', '.join(recipients)}, through {client}",
    ]
    received = _number(account, "receive_seconds")
    lines.append(
        _step(0.0, "its text began")
        if received is None
        else _step(received, f"received whole: {account.get('size')} octets in {_ms(received)}")
    )
    at = received or 0.0
    lines += _scan(account, at)
    at += (_number(account, "queue_seconds") or 0.0) + (_number(account, "scan_seconds") or 0.0)
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


def _scan(account: dict[str, Any], at: float) -> list[str]:
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
        tries = int(account.get("tries") or 1)
        words += f", by clamd at {account.get('scanner')} in {_ms(took)}"
        words += f" (try {tries})" if tries > 1 else ""
    return [*lines, _step(at + (waited or 0.0) + (took or 0.0), words)]


def _why(account: dict[str, Any]) -> str:
    return f", as {account['reason']}" if account.get("reason") else ""


def _number(account: dict[str, Any], name: str) -> float | None:
    value = account.get(name)
    return float(value) if isinstance(value, int | float) else None


def _step(at: float, what: str) -> str:
    return f"  {at:9.3f} s  {what}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
