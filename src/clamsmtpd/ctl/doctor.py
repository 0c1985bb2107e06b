"""``clamsmtpctl doctor``: the whole way of mail tried for real."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable
from typing import NoReturn

import click

from clamsmtpd.config import Settings, judge
from clamsmtpd.ctl.examination.steps import State, Step, status_of
from clamsmtpd.ctl.examiner import Examiner
from clamsmtpd.ctl.machine import CLAMD_CONF
from clamsmtpd.ctl.mta_settings import MTAS, Unsuited, Way, recognise, settings_for
from clamsmtpd.ctl.output import Status, fail, json_option, load_settings, print_json, shown, silence

__all__ = ["doctor"]

#: Programs by which a mail server of this host is known.
_PROGRAMS = {"postfix": "postconf", "exim": "exim4", "opensmtpd": "smtpctl"}

_PLACES = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"

_MARKS = {State.OK: "✓", State.WARNING: "!", State.FAILED: "✗", State.SKIPPED: "-"}
_PLAIN_MARKS = {State.OK: "ok  ", State.WARNING: "warn", State.FAILED: "FAIL", State.SKIPPED: "skip"}
_COLOURS = {State.OK: "green", State.WARNING: "yellow", State.FAILED: "red", State.SKIPPED: "yellow"}

# Steps that fail when the mail server lacks its settings.
_OF_THE_MTA = ("next hop", "mail to the next hop", "XClient", "XFORWARD", "Listen")

# RFC 5321 section 4.1.2, but for quoted local parts: nothing that could end the path or the line.
_ADDRESS = re.compile(r"[!-;=?-~]{1,254}")


def _mailbox(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is None or _ADDRESS.fullmatch(value):
        return value
    raise click.BadParameter("write it as user@example.org, without blanks and angle brackets, in ASCII")


@click.command()
@click.option("--to", "recipient", metavar="ADDRESS", callback=_mailbox, help="Send both test messages there.")
@click.option(
    "--from", "sender", metavar="ADDRESS", callback=_mailbox, help="Their sender.  [default: the address of --to]"
)
@click.option(
    "--settings-for",
    "mta",
    type=click.Choice(list(MTAS)),
    help="Only print the settings that put clamsmtpd into the way of that mail server's mail.",
)
@click.option(
    "--clamd-conf", default=CLAMD_CONF, show_default=True, metavar="FILE", help="The settings of clamd on this host."
)
@json_option
@click.pass_context
def doctor(
    context: click.Context,
    recipient: str | None,
    sender: str | None,
    mta: str | None,
    clamd_conf: str,
    *,
    as_json: bool,
) -> None:
    """Try the whole way of mail, step by step, and say what would mend it.

    Settings, TempDirectory, each clamd, the next hop and the running daemon are looked at as root with the rights of
    the daemon's user. With --to, a clean message and the EICAR test file, which is harmless, go through the daemon to
    that address. The exit status is 0 if nothing failed, 1 if something did, 2 for settings that cannot be used, 3 if
    the daemon cannot be reached.

    \b
    Examples:
      clamsmtpctl doctor
      clamsmtpctl doctor --to postmaster@example.org
      clamsmtpctl doctor --settings-for postfix
      clamsmtpctl doctor --json | jq '.steps[] | select(.state == "failed")'
    """
    if mta is not None:
        _print_settings(mta, load_settings(context).settings, as_json=as_json)
        return
    path = str(context.find_root().obj)
    judged = judge(path)
    if judged.settings is None:
        steps = [
            _tell(Step("settings", State.FAILED, error, "clamsmtpctl check tells more"), as_json=as_json)
            for error in judged.errors
        ]
        _end(steps, Status.USAGE, None, None, as_json=as_json)
    examiner = Examiner(
        judged.settings,
        path,
        judged.warnings,
        clamd_conf,
        recipient,
        sender if sender is not None else recipient or "",
    )
    with silence():
        steps = [_tell(step, as_json=as_json) for step in examiner.steps()]
    found = recognise(examiner.hop.banner) if examiner.hop is not None else None
    _end(steps, status_of(steps), found or _installed(), examiner, as_json=as_json)


def _end(steps: list[Step], status: Status, mta: str | None, examiner: Examiner | None, *, as_json: bool) -> NoReturn:
    if as_json:
        print_json({"steps": [step.as_dict() for step in steps], "mta": mta, "status": int(status)})
    else:
        click.echo(_summary(steps))
        if mta is not None and examiner is not None:
            _close(mta, examiner, steps)
    raise click.exceptions.Exit(status)


def _close(mta: str, examiner: Examiner, steps: Iterable[Step]) -> None:
    """Print the settings of the mail server that is there, in full where they may be what is missing."""
    if all(step.state in {State.OK, State.SKIPPED} for step in steps if step.name.startswith(_OF_THE_MTA)):
        click.echo(f"The settings for {mta} that belong to this: clamsmtpctl doctor --settings-for {mta}")
        return
    source = examiner.hop.local if examiner.hop is not None else None
    try:
        ways = settings_for(mta, examiner.settings, source)
    except Unsuited as unsuited:
        click.echo(shown(f"No settings for {mta}: {unsuited}"))
        return
    click.echo(f"\nThe settings for {mta} that belong to this:")
    _print_ways(ways)


def _print_settings(mta: str, settings: Settings, *, as_json: bool) -> None:
    try:
        ways = settings_for(mta, settings)
    except Unsuited as unsuited:
        fail(str(unsuited), Status.USAGE)
    if as_json:
        print_json(
            {
                "mta": mta,
                "ways": [{"title": way.title, "blocks": [block._asdict() for block in way.blocks]} for way in ways],
            }
        )
        return
    _print_ways(ways)


def _print_ways(ways: Iterable[Way]) -> None:
    for way in ways:
        click.secho(f"\n{way.title}", bold=True)
        for block in way.blocks:
            click.echo(f"\n# {block.where}:\n{block.text}", nl=False)


def _installed() -> str | None:
    return next((mta for mta, program in _PROGRAMS.items() if shutil.which(program, path=_PLACES)), None)


def _tell(step: Step, *, as_json: bool) -> Step:
    """Print a step as soon as it is done."""
    if not as_json:
        mark = click.style(_marks()[step.state], fg=_COLOURS[step.state], bold=step.state is not State.OK)
        click.echo(f"{mark} {shown(f'{step.name}: {step.finding}')}")
        if step.mend:
            click.echo(f"    {'→' if _marks() is _MARKS else '->'} {shown(step.mend)}")
    return step


def _marks() -> dict[State, str]:
    try:
        "".join((*_MARKS.values(), "→")).encode(sys.stdout.encoding or "ascii")
    except (UnicodeError, LookupError):
        return _PLAIN_MARKS
    return _MARKS


def _summary(steps: Iterable[Step]) -> str:
    counts = dict.fromkeys(State, 0)
    for step in steps:
        counts[step.state] += 1
    if not counts[State.FAILED] and not counts[State.WARNING]:
        skipped = f"; {counts[State.SKIPPED]} not tried" if counts[State.SKIPPED] else ""
        return f"\nAll is well in {counts[State.OK]} steps{skipped}."
    return (
        f"\n{counts[State.OK]} well, {counts[State.WARNING]} to be looked at, {counts[State.FAILED]} failed, "
        f"{counts[State.SKIPPED]} not tried."
    )
