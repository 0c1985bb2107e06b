"""``clamsmtpctl completion``: what a shell needs to complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from clamsmtpd.ctl.output import Status, fail

__all__ = ["completion"]

_VARIABLE = "_CLAMSMTPCTL_COMPLETE"


@click.command(no_args_is_help=True)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what has SHELL complete the commands and options of clamsmtpctl.

    \b
    Examples:
      clamsmtpctl completion bash > /etc/bash_completion.d/clamsmtpctl
      source <(clamsmtpctl completion zsh)
      clamsmtpctl completion fish > ~/.config/fish/completions/clamsmtpctl.fish
    """
    found = get_completion_class(shell)
    if found is None:
        fail(f"this version of click knows nothing of {shell}", Status.USAGE)
    click.echo(found(context.find_root().command, {}, "clamsmtpctl", _VARIABLE).source())
