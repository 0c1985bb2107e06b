"""``clamsmtpctl doctor``: would a virus that is sent now be stopped? The whole way is tried for real."""

from __future__ import annotations

from collections.abc import Iterator

import click
from rich.markup import escape

from clamsmtpd.config import Settings
from clamsmtpd.ctl.examination import State, Step, examine, try_mail
from clamsmtpd.ctl.machine import place_check
from clamsmtpd.ctl.mtas import MTAS, settings_for
from clamsmtpd.ctl.output import Status, console, fail, json_option, load_settings, print_json, shown

__all__ = ["doctor"]

_MARKS = {
    State.OK: "[green]✓[/]",
    State.WARNING: "[yellow]![/]",
    State.FAILED: "[red]✗[/]",
    State.SKIPPED: "[dim]-[/]",
}


@click.command()
@click.option("--to", "recipient", metavar="ADDRESS", help="Send a clean message and the EICAR test file there.")
@click.option("--from", "sender", metavar="ADDRESS", help="Their sender; without it, the address of --to.")
@click.option(
    "--settings-for", "mta", type=click.Choice(sorted(MTAS)), help="Print the settings of that mail server, and end."
)
@json_option
@click.pass_context
def doctor(
    context: click.Context, recipient: str | None, sender: str | None, mta: str | None, *, as_json: bool
) -> None:
    """Try the whole way of a message for real, step by step, and say how to mend what is wrong.

    Scanners, their signatures and their samples; the next hop, what it offers and what it lets us do; the running
    daemon. With --to a clean message and the EICAR test file, which is harmless, go through the daemon to that address.
    The exit status is 0 if all is well, 1 if something is not, 3 if something is not there at all.

    \b
    Examples:
      clamsmtpctl doctor
      clamsmtpctl doctor --to postmaster@example.org
      clamsmtpctl doctor --settings-for postfix
    """
    settings = load_settings(context).settings
    if mta is not None:
        _print_settings(mta, settings, as_json=as_json)
        return
    steps: list[Step] = []
    screen = console()
    for step in _steps(settings, recipient, sender):
        steps.append(step)
        if not as_json:
            screen.print(f"{_MARKS[step.state]} {escape(shown(f'{step.name}: {step.finding}'))}", soft_wrap=True)
            if step.mend:
                screen.print(f"    mend: {escape(shown(step.mend))}", soft_wrap=True)
    if as_json:
        told = [
            {"step": step.name, "state": step.state.value, "finding": step.finding, "mend": step.mend} for step in steps
        ]
        print_json({"steps": told})
    else:
        click.echo(_summary(steps))
    if any(step.unreachable for step in steps):
        raise click.exceptions.Exit(Status.UNREACHABLE)
    if any(step.state is State.FAILED for step in steps):
        raise click.exceptions.Exit(Status.FAILED)


def _steps(settings: Settings, recipient: str | None, sender: str | None) -> Iterator[Step]:
    trouble, warnings = place_check(settings)
    state = State.FAILED if trouble else State.WARNING if warnings else State.OK
    good = f"{settings.temp_directory} can be written to, and by nobody else"
    yield Step("TempDirectory", state, trouble or "; ".join(warnings) or good)
    served = True
    for step in examine(settings):
        served = served and not (step.name.startswith("clamsmtpd at ") and step.state is State.FAILED)
        yield step
    if recipient is None:
        yield Step("mail", State.SKIPPED, "no message was sent through the daemon: give --to ADDRESS to try that")
    elif not served:
        yield Step("mail", State.SKIPPED, "no message was sent, as the daemon does not answer")
    else:
        yield from try_mail(settings, sender or recipient, recipient)


def _summary(steps: list[Step]) -> str:
    failed = sum(step.state is State.FAILED for step in steps)
    warned = sum(step.state is State.WARNING for step in steps)
    if failed:
        return f"{failed} of {len(steps)} steps failed: see the mends"
    return "all is well" + (f", but for {warned} warnings" if warned > 1 else ", but for 1 warning" if warned else "")


def _print_settings(mta: str, settings: Settings, *, as_json: bool) -> None:
    try:
        found = settings_for(mta, settings)
    except TypeError as error:
        fail(f"{mta} reaches no unix socket ({error}); give a port in Listen and OutAddress", Status.USAGE)
    if as_json:
        print_json({"settings": [{"place": place, "text": text} for place, text in found]})
        return
    for place, text in found:
        click.echo(f"# ---- {place} ----\n{text}")
