"""The command line of clamsmtpctl: which commands there are, and what all of them share."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import NoReturn

import click

from clamsmtpd import __version__
from clamsmtpd.config import DEFAULT_PATH

__all__ = ["cli", "main"]

#: Each command, and the module of this package that has it, under the same name. A command is loaded when it is asked
#: for: what one of them needs, such as a library, is not needed by the others.
COMMANDS: dict[str, str] = {
    "check": "check",
    "completion": "completion",
    "doctor": "doctor",
    "explain": "explain",
    "quarantine": "quarantine",
    "scan": "scan",
    "top": "top",
}


class _Commands(click.Group):
    """The commands of the table."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"clamsmtpd.ctl.{COMMANDS[name]}"), name)
        assert isinstance(command, click.Command)  # noqa: S101 - a fault of the table, which a test would find
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-v", "--version", prog_name="clamsmtpctl")
@click.option(
    "-f",
    "--config",
    metavar="FILE",
    default=DEFAULT_PATH,
    show_default=True,
    help="The settings file of the daemon.",
)
@click.pass_context
def cli(context: click.Context, config: str) -> None:
    """See what clamsmtpd does, and whether a virus sent now would be stopped.

    Each command has --help with examples, and --json for other programs. The exit status is 0 if all is well, 1 if
    something is not, 2 for bad usage or settings that cannot be used, and 3 if what was asked cannot be reached.
    """
    context.obj = config


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run clamsmtpctl with ``argv``, without the program's name. Raises SystemExit, always."""
    cli.main(args=None if argv is None else list(argv), prog_name="clamsmtpctl")
