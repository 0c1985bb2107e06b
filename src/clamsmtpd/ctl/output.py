"""How the commands of clamsmtpctl speak: exit statuses, JSON, tables and the one line about what is wrong."""

from __future__ import annotations

import contextlib
import enum
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import click
from rich.console import Console

from clamsmtpd.config import ConfigError, Loaded, load

__all__ = ["Status", "console", "fail", "json_option", "load_settings", "print_json", "shown", "silence"]


class Status(enum.IntEnum):
    """Exit statuses, for scripts."""

    #: All is well.
    OK = 0
    #: Something is not as it should be: a test failed, a virus was found, a message is not known.
    FAILED = 1
    #: Bad usage, or settings that cannot be used.
    USAGE = 2
    #: What was asked cannot be reached: the daemon, a scanner, the next hop, the quarantine.
    UNREACHABLE = 3


_Command = TypeVar("_Command", bound=Callable[..., Any])


def json_option(command: _Command) -> _Command:
    """Give a command the option ``--json``, as the argument ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for other programs.")(command)


def console() -> Console:
    """Return where tables go: standard output, in colour where that is a terminal (NO_COLOR is obeyed)."""
    return Console(highlight=False, emoji=False)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object, on a line of its own for each of its parts, in ASCII."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=True))


def shown(text: str) -> str:
    """Return what strangers may have chosen as text without anything that plays with a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def fail(message: str, status: Status = Status.FAILED) -> NoReturn:
    """End with one line on standard error."""
    click.echo(f"clamsmtpctl: {shown(message)}", err=True)
    raise click.exceptions.Exit(status)


def load_settings(context: click.Context) -> Loaded:
    """Read the settings file that the command line names; end with one line if that cannot be."""
    path: str = context.find_root().obj
    try:
        return load(path)
    except ConfigError as error:
        fail(str(error), Status.USAGE)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Have the parts of the daemon log nothing: what there is to say, the results do."""
    log = logging.getLogger("clamsmtpd")
    disabled = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = disabled
