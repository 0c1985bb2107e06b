"""``clamsmtpctl top``: the running daemon, live."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from clamsmtpd.ctl.daemon import DaemonError, admin_address, ask, ask_or_fail
from clamsmtpd.ctl.output import Status, console, fail, json_option, print_json, shown
from clamsmtpd.metrics import OUTCOMES, VERDICTS

__all__ = ["top"]

_DAY = 86400


@click.command()
@click.option(
    "--interval", type=click.FloatRange(0.2, 60), default=1.0, show_default=True, help="Seconds between looks."
)
@click.option("--once", is_flag=True, help="Print one screen, and end.")
@json_option
@click.pass_context
def top(context: click.Context, interval: float, *, once: bool, as_json: bool) -> None:
    """See what the daemon does now: messages, verdicts, rates, sessions, scanners, workers.

    Ctrl-C ends it. The setting Admin must be given.

    \b
    Examples:
      clamsmtpctl top
      clamsmtpctl top --once
      clamsmtpctl top --json | jq .sessions
    """
    address = admin_address(context)
    status = ask_or_fail(address, "/status")
    if "totals" not in status:
        fail(f"what answers at {address} (Admin) is not clamsmtpd; see who listens there", Status.UNREACHABLE)
    if as_json:
        print_json(status)
        return
    if once:
        console().print(screen(status, None))
        return
    try:
        with Live(screen(status, None), console=console(), screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(interval)
                before, (code, status) = status, ask(address, "/status")
                if code != HTTPStatus.OK:
                    raise DaemonError(f"the daemon answers {code}")
                live.update(screen(status, before), refresh=True)
    except KeyboardInterrupt:
        pass
    except DaemonError as error:
        # Behind the screen, with which it would vanish.
        fail(str(error), Status.UNREACHABLE)


def screen(status: dict[str, Any], before: dict[str, Any] | None) -> RenderableType:
    """Return one screen of 80 columns; with what was seen ``before`` it has rates."""
    return Group(
        _head(status), Text(), _messages(status, before), Text(), _scanners(status, before), Text(), _workers(status)
    )


def _head(status: dict[str, Any]) -> Text:
    sessions = status["totals"]["sessions"]
    phases = ", ".join(f"{phase} {count}" for phase, count in sorted(status["sessions"].items())) or "none"
    failures = ", ".join(f"{kind} {count}" for kind, count in status["failures"].items()) or "none"
    next_hop = status["next_hop"] or "where each client meant to connect"
    return Text(
        shown(
            f"clamsmtpd {status['version']}, up {_span(status['time'] - status['since'])}, "
            f"{', '.join(status['listen'])} -> {next_hop}"
        )
        + f"\nsessions {sessions} of {status['max_connections']}: {phases}\nfailures since the start: {failures}"
    )


def _messages(status: dict[str, Any], before: dict[str, Any] | None) -> Table:
    counts = {(item["verdict"], item["outcome"]): item["count"] for item in status["messages"]}
    table = _table("messages", *OUTCOMES, "per second")
    for verdict in VERDICTS:
        row = [counts.get((verdict, outcome), 0) for outcome in OUTCOMES]
        table.add_row(verdict, *(str(count) if count else "-" for count in row), _rate_of(status, before, verdict))
    return table


def _rate_of(status: dict[str, Any], before: dict[str, Any] | None, verdict: str) -> str:
    if before is None or status["time"] <= before["time"]:
        return ""
    now, then = (
        sum(item["count"] for item in told["messages"] if item["verdict"] == verdict) for told in (status, before)
    )
    return f"{(now - then) / (status['time'] - before['time']):.1f}"


def _scanners(status: dict[str, Any], before: dict[str, Any] | None) -> Table:
    table = _table("scanner", "state", "signatures", "queue", "verdicts", "latency")
    for scanner in status["scanners"]:
        age = scanner["signatures_age"]
        table.add_row(
            shown(scanner["address"]),
            "up" if scanner["usable"] else shown(f"DOWN: {scanner['fault']}"),
            "no date" if age is None else f"{age / _DAY:.1f} d old",
            str(scanner["outstanding"]),
            str(scanner["scans"]),
            _latency(scanner, before),
        )
    return table


def _latency(scanner: dict[str, Any], before: dict[str, Any] | None) -> str:
    """Return how long a scan took, of those since the last look, or else of all."""
    scans, seconds = scanner["scans"], scanner["seconds"]
    for old in before["scanners"] if before is not None else ():
        if old["address"] == scanner["address"] and 0 <= old["scans"] < scans:
            scans, seconds = scans - old["scans"], seconds - old["seconds"]
    return f"{seconds / scans * 1000:.1f} ms" if scans else "-"


def _workers(status: dict[str, Any]) -> Table:
    table = _table("worker", "process", "sessions", "memory")
    for worker in status["workers"]:
        table.add_row(
            str(worker["number"]), str(worker["pid"]), str(worker["sessions"]), f"{worker['memory'] / 2**20:.1f} MiB"
        )
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="left" if name == "state" else "right", overflow="fold")
    return table


def _span(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days} d {hour:02}:{minute:02}:{second:02}" if days else f"{hour:02}:{minute:02}:{second:02}"
