"""``clamsmtpctl check``: the settings file judged without starting anything."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import click

from clamsmtpd.config import Judged, judge
from clamsmtpd.ctl.findings import Finding, Level, findings
from clamsmtpd.ctl.machine import CLAMD_CONF, facts_for, start
from clamsmtpd.ctl.output import Status, json_option, print_json, shown

__all__ = ["check"]

_WARNED = 1

_LINE = re.compile(r":([0-9]+): ")


@click.command()
@click.argument("file", required=False)
@click.option("--clamd-conf", metavar="FILE", help=f"The settings of clamd.  [default: {CLAMD_CONF}]")
@click.option("--offline", is_flag=True, help="Ask nobody: no name server, and not the next hop what it takes.")
@json_option
@click.pass_context
def check(context: click.Context, file: str | None, clamd_conf: str | None, *, offline: bool, as_json: bool) -> None:
    """Judge the settings file, FILE or the one of --config, without starting anything.

    Errors keep the daemon from starting, warnings say what will hurt, notes what could not be judged. The exit status
    is 0 if there is no error and no warning, 1 with warnings, 2 with errors.

    \b
    Examples:
      clamsmtpctl check
      clamsmtpctl check --offline new.conf && systemctl reload clamsmtpd
      clamsmtpctl check --json | jq .warnings
    """
    path = file if file is not None else str(context.find_root().obj)
    judged = judge(path)
    told = [_Told.of(path, text, Level.ERROR) for text in judged.errors]
    told += [_Told.of(path, text, Level.WARNING) for text in judged.warnings]
    if judged.settings is not None:
        found = [
            *start(judged.settings),
            *findings(judged.settings, facts_for(judged.settings, clamd_conf, offline=offline)),
        ]
        told += [_Told(_line_of(judged, finding), finding.level, finding.text) for finding in found]
    # In the order of the file; what is about none of its lines comes first.
    told.sort(key=lambda one: one.line or 0)
    if as_json:
        print_json(
            {"file": path} | {f"{level}s": [one.as_dict() for one in told if one.level is level] for level in Level}
        )
    else:
        _print(path, told)
    levels = {one.level for one in told}
    if Level.ERROR in levels:
        raise click.exceptions.Exit(Status.USAGE)
    if Level.WARNING in levels:
        raise click.exceptions.Exit(_WARNED)


@dataclass(frozen=True, slots=True)
class _Told:
    """What is told of a line of the file; of the file as a whole where that is None."""

    line: int | None
    level: Level
    text: str

    @classmethod
    def of(cls, path: str, text: str, level: Level) -> _Told:
        """Take a line that begins with the path, as those about a settings file do; a path may hold anything."""
        rest = text.removeprefix(path)
        if match := _LINE.match(rest):
            return cls(int(match[1]), level, rest[match.end() :])
        return cls(None, level, rest.removeprefix(": "))

    def as_dict(self) -> dict[str, Any]:
        return {"line": self.line, "text": self.text}


def _line_of(judged: Judged, finding: Finding) -> int | None:
    places = judged.where.get(finding.setting)
    return int(places[finding.number].rpartition(":")[2]) if places else None


def _print(path: str, told: list[_Told]) -> None:
    for one in told:
        where = path if one.line is None else f"{path}:{one.line}"
        click.echo(shown(f"{where}: {one.level}: {one.text}"))
    counts = {level: sum(one.level is level for one in told) for level in Level}
    if counts[Level.ERROR] or counts[Level.WARNING]:
        click.echo(shown(f"{path}: {_count(counts[Level.ERROR], 'error')}, {_count(counts[Level.WARNING], 'warning')}"))
    else:
        click.echo(shown(f"{path}: good"))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
