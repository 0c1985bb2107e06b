"""The command line of clamsmtpctl as a whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from clamsmtpd import __version__
from clamsmtpd.config import DEFAULT_PATH
from clamsmtpd.ctl.main import COMMANDS, cli


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "clamsmtpd.ctl", *arguments]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=30, check=False
    )


def test_without_a_command_it_says_which_there_are() -> None:
    done = run()
    assert done.returncode == 2
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout + done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_where_the_table_says_and_has_help_with_examples(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.name == name
    shown = CliRunner().invoke(cli, [name, "--help"])
    assert shown.exit_code == 0
    assert "Examples:" in shown.output


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"completion", "quarantine"}))
def test_each_command_speaks_json(name: str) -> None:
    assert "--json" in CliRunner().invoke(cli, [name, "--help"]).output


def test_an_unknown_command_is_bad_usage() -> None:
    done = run("frobnicate")
    assert done.returncode == 2
    assert "frobnicate" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_version_and_the_default_settings_file() -> None:
    assert run("--version").stdout == f"clamsmtpctl, version {__version__}\n"
    assert DEFAULT_PATH in run("--help").stdout


@pytest.mark.parametrize("library", ["click", "rich"])
def test_a_library_that_is_missing_is_named_in_one_line(library: str, tmp_path: Path) -> None:
    # One that cannot be found: the import system takes None for that.
    site = tmp_path / "sitecustomize.py"
    site.write_text(f"import sys\nsys.modules[{library!r}] = None\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = run("top", "--once", PYTHONPATH=path)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert f"library {library} is missing" in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_of_that_shell(shell: str, tmp_path: Path) -> None:
    done = run("completion", shell)
    assert done.returncode == 0
    assert "clamsmtpctl" in done.stdout
    script = tmp_path / "script"
    script.write_text(done.stdout)
    if shutil.which(shell):
        subprocess.run([shell, "-n", str(script)], check=True, timeout=10)


def test_commands_are_completed() -> None:
    done = run("", COMP_WORDS="clamsmtpctl comp", COMP_CWORD="1", _CLAMSMTPCTL_COMPLETE="bash_complete")
    assert done.stdout == "plain,completion\n"
