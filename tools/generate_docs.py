"""Writes the parts of the documentation that come from the code's own tables, so that they cannot lie.

Without arguments the files are written; with ``--check`` it is only told whether they are up to date.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import click

from clamsmtpd.admin.exposition import EXPOSED, Exposed
from clamsmtpd.admin.pages import PATHS
from clamsmtpd.config import SETTINGS, Setting
from clamsmtpd.ctl.main import cli
from clamsmtpd.ctl.output import Status
from clamsmtpd.hooks import VARIABLES
from clamsmtpd.logevents import EVENTS, Event
from clamsmtpd.metrics import FAILURES, OUTCOMES, VERDICTS
from clamsmtpd.smtp import replies
from clamsmtpd.smtp.capabilities import OURS, PASSED
from tests.support import faults
from tools.markdown import between_markers, block, definitions, plain, table, wrapped

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
MANUAL = REFERENCE / "manual"


def shown_default(setting: Setting) -> str:
    """Return the default as the manual shows it."""
    return setting.shown_default or setting.default or "none"


def manual_settings() -> str:
    """Return the list of settings for clamsmtpd.conf(5)."""
    return definitions(
        (f"**{setting.name}**", f"{plain(setting.help)}\n\nDefault: {plain(shown_default(setting))}")
        for setting in SETTINGS
    )


def named(meanings: Mapping[str, str]) -> str:
    """Return a list of words that are typed or read as they stand, with what each means."""
    return definitions((f"`{name}`", plain(meaning)) for name, meaning in meanings.items())


def hook_variables() -> str:
    """Return the environment of the hook; what is said of each is Markdown."""
    return definitions((f"`{variable.name}`", wrapped(variable.meaning)) for variable in VARIABLES)


def keywords(reasons: Mapping[bytes, str]) -> str:
    """Return a list of EHLO keywords for clamsmtpd(8)."""
    return named({keyword.decode(): reason for keyword, reason in reasons.items()})


def reply_table() -> str:
    """Return every reply that the filter makes up."""
    rows = []
    for name, when in replies.WHEN.items():
        reply: bytes = getattr(replies, name)
        code, _, text = reply.decode("ascii").strip().partition(" ")
        enhanced, _, rest = text.partition(" ")
        if enhanced.count(".") != 2:
            enhanced, rest = "", text
        rows.append([code, enhanced, f"`{rest}`", plain_cell(when), f"`{name}`"])
    return table(["Code", "Enhanced", "Text", "When", "In the code"], rows)


def plain_cell(text: str) -> str:
    """Return text for a cell of a table."""
    return plain(text).replace("\n", " ")


def metric_table() -> str:
    """Return what /metrics tells."""

    def row(exposed: Exposed) -> list[str]:
        name = exposed.name + ("_total" if exposed.kind == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in exposed.labels)
        return [f"`{name}`", exposed.kind, labels, plain_cell(exposed.help)]

    return table(["Name", "Kind", "Labels", "What it is"], map(row, EXPOSED))


def label_values() -> str:
    """Return the values of those labels that have a fixed set of them."""
    return "\n".join(
        f"- {label}: {', '.join(f'`{value}`' for value in values)}"
        for label, values in (
            ("`verdict`", VERDICTS),
            ("`outcome`", OUTCOMES),
        )
    )


def failure_table() -> str:
    """Return the kinds of failure that are counted."""
    return table(["kind", "What it is"], ([f"`{kind.name.lower()}`", plain_cell(told)] for kind, told in FAILURES))


def event_table() -> str:
    """Return every line of the log."""

    def row(event: Event) -> list[str]:
        fields = iter(event.fields)
        line = re.sub(r"%[sdg]", lambda _: next(fields).upper(), event.format)
        shown = ", ".join(f"`{name}`" for name in event.fields)
        return [f"`{event.name}`", event.level or "varies", f"`{line}`", shown, plain_cell(event.meaning)]

    return table(["Event", "Level", "Line", "Fields", "What it means"], map(row, EVENTS))


# ---- clamsmtpctl ----------------------------------------------------------------------------------


def commands() -> str:
    """Return all commands of clamsmtpctl(8), each with its help."""
    context = click.Context(cli, info_name="clamsmtpctl")
    return "\n\n".join(_command(name, command) for name, command in _leaves(cli, context))


def _leaves(group: click.Command, context: click.Context) -> Iterator[tuple[str, click.Command]]:
    """Name all commands below a group, by the words that are typed behind "clamsmtpctl"."""
    assert isinstance(group, click.Group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            inner = click.Context(command, info_name=name, parent=context)
            yield from ((f"{name} {word}", leaf) for word, leaf in _leaves(command, inner))
        else:
            yield name, command


def _command(name: str, command: click.Command) -> str:
    arguments = [param for param in command.params if isinstance(param, click.Argument)]
    words = [name, "[OPTIONS]", *(_argument(argument) for argument in arguments)]
    parts = [f"### {name}", block(f"clamsmtpctl {' '.join(words)}"), *_help(command.help or "")]
    options = [param for param in command.params if isinstance(param, click.Option) and not param.hidden]
    if options:
        parts.append(definitions((_option(option), plain(option.help or "")) for option in options))
    return "\n\n".join(parts)


def _argument(argument: click.Argument) -> str:
    # Not by click's own make_metavar, which has changed from one version to another.
    shown = argument.metavar or (argument.name or "").upper()
    if isinstance(argument.type, click.Choice) and argument.metavar is None:
        shown = "{" + "|".join(map(str, argument.type.choices)) + "}"
    if argument.nargs == -1 and not shown.endswith("..."):
        shown += "..."
    return shown if argument.required or shown.startswith("[") else f"[{shown}]"


def _option(option: click.Option) -> str:
    names = ", ".join(f"**{name}**" for name in option.opts)
    if option.is_flag:
        return names
    shown = option.metavar or getattr(option.type, "name", "text").upper()
    if isinstance(option.type, click.Choice) and option.metavar is None:
        shown = "|".join(map(str, option.type.choices))
    return f"{names} *{shown}*"


def _help(text: str) -> Iterator[str]:
    """Give the paragraphs of a command's help; one that begins with a backspace keeps its lines, as with click."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        lines = paragraph.strip("\n").splitlines()
        if lines and lines[0].strip() == "\b":
            rest = lines[1:]
            if rest and not rest[0].startswith(" ") and rest[0].endswith(":"):
                yield plain(rest[0])
                rest = rest[1:]
            yield block(textwrap.dedent("\n".join(rest)))
        else:
            yield plain(" ".join(line.strip() for line in lines))


def exit_statuses() -> str:
    """Return the exit statuses of clamsmtpctl, by the comments that stand with them."""
    told = dict(re.findall(r"#: (.*)\n\s+(\w+) = ", inspect.getsource(Status)))
    meanings = {name: meaning for meaning, name in told.items()}
    return definitions((str(status.value), plain(meanings[status.name])) for status in Status)


# ---- files ----------------------------------------------------------------------------------------


def sample() -> str:
    """Return the sample settings file."""
    parts = [
        """\
# Settings of clamsmtpd(8); clamsmtpd.conf(5) says more about each.
# A line that starts with # is a comment. Those below that could be settings show the defaults.
"""
    ]
    for setting in SETTINGS:
        help_lines = textwrap.wrap(setting.help, 96)
        value = setting.default if setting.default is not None else ""
        line = f"#{setting.name}: {value}".rstrip()
        if setting.name == "OutAddress":
            line = "OutAddress: 127.0.0.1:10026"
        parts.append("\n".join([*(f"# {text}" for text in help_lines), line, ""]))
    return "\n".join(parts)


def main() -> int:
    """Write or check all files."""
    parts: dict[Path, dict[str, str]] = {
        MANUAL / "clamsmtpd.8.md": {
            "keywords": keywords(PASSED),
            "own keywords": keywords(OURS),
            "hook variables": hook_variables(),
            "paths": named(PATHS),
        },
        MANUAL / "clamsmtpd.conf.5.md": {"settings": manual_settings()},
        MANUAL / "clamsmtpctl.8.md": {"commands": commands(), "exit statuses": exit_statuses()},
        REFERENCE / "replies.md": {"replies": reply_table()},
        REFERENCE / "hook.md": {"hook variables": hook_variables()},
        REFERENCE / "log.md": {"events": event_table()},
        REFERENCE / "metrics.md": {
            "metrics": metric_table(),
            "labels": label_values(),
            "failures": failure_table(),
        },
    }
    wanted = {path: between_markers(path.read_text(), generated) for path, generated in parts.items()}
    wanted[ROOT / "etc/clamsmtpd.conf.sample"] = sample()
    wanted[REFERENCE / "what-happens-when.md"] = faults.page()
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of date: run make docs")
        return 1 if stale else 0
    for path in stale:
        path.write_text(wanted[path])
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
