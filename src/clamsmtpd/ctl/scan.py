"""``clamsmtpctl scan``: saved messages through the policy of the settings, delivered to nobody."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

import click
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from clamsmtpd.config import Settings
from clamsmtpd.ctl.output import Status, console, fail, json_option, load_settings, shown, silence
from clamsmtpd.ctl.saved import STANDARD_INPUT, Saved, find, octets_in
from clamsmtpd.ctl.trial import NoScannerError, Result, Trial

__all__ = ["scan"]

#: Messages that are judged at once, unless the command line says so: live mail wants the same scanner.
AT_ONCE = 4

_AT_ONCE_MAX = 64


@click.command(no_args_is_help=True)
@click.argument("file", nargs=-1, required=True)
@click.option("--all", "show_all", is_flag=True, help="List clean messages too.")
@click.option(
    "--at-once",
    type=click.IntRange(1, _AT_ONCE_MAX),
    default=AT_ONCE,
    show_default=True,
    metavar="NUMBER",
    help="How many messages are scanned at the same time.",
)
@json_option
@click.pass_context
def scan(context: click.Context, file: Sequence[str], at_once: int, *, show_all: bool, as_json: bool) -> None:
    """Tell what would become of saved messages with the settings of --config, and why. Nothing is delivered or kept.

    FILE is a message, an mbox, a folder of them such as a Maildir, or - for standard input. A line that ends with LF
    alone is taken to end with CRLF, as in mail. Of several messages those are listed that are not clean, and all are
    summed up. The exit status is 0 if all are clean and would be delivered, 1 if not, 2 if there are none, and 3 if no
    scanner can be used.

    \b
    Examples:
      clamsmtpctl scan invoice.eml
      clamsmtpctl -f new.conf scan ~/Maildir
      clamsmtpctl scan --json - < message.eml
    """
    settings = load_settings(context).settings
    # Its name is what the usage shows, and versions of click do not agree on what a name for show becomes.
    files = file
    if files.count(STANDARD_INPUT) > 1:
        fail("standard input can be read once; give - once", Status.USAGE)
    several = len(list(itertools.islice(find(files), 2))) > 1
    tally = _Tally()
    with _Bar(files, wanted=several and not as_json) as bar:
        report: _Report = _Json() if as_json else _Lines(bar.print, every=show_all or not several, sum_up=several)

        def take(saved: Saved, result: Result) -> None:
            tally.add(result)
            report.take(result)
            bar.advance(saved, tally.messages)

        try:
            _run(_judge(settings, files, at_once, take))
        except NoScannerError as error:
            fail(str(error), Status.UNREACHABLE)
    if not tally.messages:
        fail("there is no message in these folders", Status.USAGE)
    report.end(tally)
    if tally.well < tally.messages:
        raise click.exceptions.Exit(Status.FAILED)


async def _judge(settings: Settings, files: Sequence[str], at_once: int, take: Callable[[Saved, Result], None]) -> None:
    with silence():
        async with Trial(settings) as trial:
            async for saved, result in trial.results(find(files), at_once):
                take(saved, result)


def _run(work: Coroutine[Any, Any, None]) -> None:
    # Not by Runner.run(): to that, an interrupt is a word to the loop, which may be waiting for standard input.
    with asyncio.Runner() as runner:
        runner.get_loop().run_until_complete(work)


class _Tally:
    """How many messages there were, by what would become of them. There may be any number of messages."""

    def __init__(self) -> None:
        self.messages = 0
        self.well = 0
        self.outcomes: Counter[str] = Counter()
        self.verdicts: Counter[str] = Counter()
        self.viruses: Counter[str] = Counter()
        #: Those that are not well: what was found, the outcome, and the setting that decided.
        self.grounds: Counter[tuple[str, str, str]] = Counter()

    def add(self, result: Result) -> None:
        self.messages += 1
        self.well += result.well
        self.outcomes[result.outcome] += 1
        self.verdicts[result.verdict or "none"] += 1
        if result.virus:
            self.viruses[result.virus] += 1
        if not result.well:
            self.grounds[_found(result), result.outcome, result.setting] += 1

    def as_dict(self) -> dict[str, Any]:
        return {
            "messages": self.messages,
            "outcomes": dict(self.outcomes.most_common()),
            "verdicts": dict(self.verdicts.most_common()),
            "viruses": dict(self.viruses.most_common()),
            "grounds": [
                {"found": found, "outcome": outcome, "setting": setting, "messages": count}
                for (found, outcome, setting), count in self.grounds.most_common()
            ],
        }


class _Report(Protocol):
    """Tells of each message as it comes, and of all in the end: none is held until then."""

    def take(self, result: Result, /) -> None: ...

    def end(self, tally: _Tally, /) -> None: ...


class _Lines:
    """``every`` message is listed, or those that are not well; in the end they are summed up if ``sum_up``."""

    def __init__(self, tell: Callable[[str], None], *, every: bool, sum_up: bool) -> None:
        self._tell = tell
        self._every = every
        self._sum_up = sum_up

    def take(self, result: Result, /) -> None:
        if self._every or not result.well:
            self._tell(shown(_line(result)))

    def end(self, tally: _Tally, /) -> None:
        if not self._sum_up:
            return
        outcomes = ", ".join(f"{name} {count}" for name, count in tally.outcomes.most_common())
        click.echo(f"{tally.messages} messages: {outcomes}")
        for (found, outcome, setting), count in tally.grounds.most_common():
            click.echo(shown(f"{count:8}  {found}: {outcome}" + (f" ({setting})" if setting else "")))


class _Json:
    """One object, written as it comes."""

    def __init__(self) -> None:
        self._begun = False

    def take(self, result: Result, /) -> None:
        click.echo(",\n    " if self._begun else '{\n  "messages": [\n    ', nl=False)
        click.echo(json.dumps(dataclasses.asdict(result)), nl=False)
        self._begun = True

    def end(self, tally: _Tally, /) -> None:
        click.echo(f'\n  ],\n  "summary": {json.dumps(tally.as_dict())}\n}}')


class _Bar:
    """How far it is, on a terminal; a context manager. ``files`` are those of the command line."""

    def __init__(self, files: Sequence[str], *, wanted: bool) -> None:
        self._console = console()
        self._shown = wanted and self._console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._shown,
        )
        # By octets: how many messages there are is known only when all have been looked at.
        self._task = self._progress.add_task("scanning", total=(octets_in(files) if self._shown else 0) or None)

    def print(self, text: str) -> None:
        """Print a line above the bar."""
        if self._shown:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            click.echo(text)

    def advance(self, saved: Saved, messages: int) -> None:
        if self._shown:
            self._progress.update(self._task, advance=saved.octets, description=f"{messages} messages")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


def _found(result: Result) -> str:
    return result.virus or result.verdict or ("unreadable" if result.outcome == "unreadable" else "not scanned")


def _line(result: Result) -> str:
    if result.outcome == "unreadable":
        return f"{result.file}: cannot be read: {result.why}"
    ground = "; ".join(text for text in (result.setting, result.why) if text)
    parts = [f"{result.file}: {_found(result)}: {result.outcome} ({ground})"]
    if result.reply:
        parts.append(f"the client is told: {result.reply}")
    if result.field and not result.well:
        parts.append(f"added: {result.field}")
    if result.renamed:
        parts.append(f"header fields renamed that pretend to be ours: {result.renamed}")
    return "; ".join(parts)
