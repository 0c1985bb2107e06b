"""What is in quarantine, and what becomes of it."""

from __future__ import annotations

import codecs
import contextlib
import fnmatch
import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email import policy
from email.parser import BytesParser
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from clamsmtpd.config import Settings, parse_keep
from clamsmtpd.ctl.output import Status, console, fail, json_option, load_settings, print_json, shown
from clamsmtpd.privileges import find_user
from clamsmtpd.quarantine.expiry import choose, remove
from clamsmtpd.quarantine.index import DIRECTORY, PREFIX, Entry, Index, IndexFaultError, Release, digest, open_kept
from clamsmtpd.quarantine.release import Courier, release
from clamsmtpd.tls import client_context
from clamsmtpd.values import StartError

__all__ = ["quarantine"]

#: Octets of a message that are read to show it.
_SHOW_MAX = 32 * 1024 * 1024

#: Seconds after which a file without an entry has been left without one: the daemon writes it down some time later.
_SETTLED = 5.0

_PIECE = 262144

_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 604800}

#: What addresses and messages are read by.
_CODECS = ("ascii", "idna", "latin-1", "utf-8", "punycode")


@click.group()
def quarantine() -> None:
    """List, show, release and remove what is in quarantine.

    A message is named by its id, by as much of it as is unique, or by its file.

    \b
    Examples:
      clamsmtpctl quarantine list
      clamsmtpctl quarantine show aB3x9Z
      clamsmtpctl quarantine release aB3x9Z --to postmaster@example.org
    """


@contextlib.contextmanager
def _opened(context: click.Context) -> Iterator[tuple[Settings, Index]]:
    settings = load_settings(context).settings
    try:
        _become_owner(settings)
        index = Index(settings.temp_directory)
        with contextlib.closing(index):
            index.heal(time.time(), settled=_SETTLED)
            yield settings, index
    except (IndexFaultError, OSError) as error:
        fail(str(error), Status.UNREACHABLE)


def _become_owner(settings: Settings) -> None:
    """As root, go on as who has the quarantine: what is made in the index stays the daemon's to use."""
    if os.geteuid() != 0:
        return
    for codec in _CODECS:
        # That user may not be able to read the folders of the library.
        codecs.lookup(codec)
    place = os.path.join(settings.temp_directory, DIRECTORY)
    if settings.user is not None:
        uid, gid = _ids(settings.user)
        with contextlib.suppress(FileNotFoundError):
            if (found := os.lstat(place).st_uid) not in {0, uid}:
                # In /tmp anybody can have made it, and would have us show and release what he likes.
                fail(
                    f"{place} belongs to user {found}, and not to {settings.user} (User); remove it", Status.UNREACHABLE
                )
        _go_on_as(uid, gid)
        return
    try:
        owner = os.lstat(place)
        uid, gid = owner.st_uid, owner.st_gid
    except FileNotFoundError:
        # Whom a service manager runs it as is not in the settings, but has a directory of that user's.
        owner = os.stat(settings.temp_directory)
        shared = owner.st_mode & stat.S_IWOTH
        uid, gid = (0, 0) if shared else (owner.st_uid, owner.st_gid)
    _go_on_as(uid, gid)


def _go_on_as(uid: int, gid: int) -> None:
    if uid:
        os.setgroups([gid])
        os.setegid(gid)
        os.seteuid(uid)


def _ids(name: str) -> tuple[int, int]:
    try:
        user = find_user(name)
    except StartError as error:
        fail(str(error), Status.USAGE)
    return user.pw_uid, user.pw_gid


def _find(index: Index, name: str) -> Entry:
    start = os.path.basename(name).removeprefix(PREFIX)
    # No id has anything else in it, and not all that a command line can hold is text to SQLite.
    found = index.find(start) if start.isascii() and start.isalnum() else []
    if not found:
        fail(f"{name}: not in quarantine")
    if len(found) > 1:
        fail(f"{name}: begins the ids of {len(found)} messages; give more of it", Status.USAGE)
    return found[0]


def _find_kept(index: Index, name: str) -> Entry:
    entry = _find(index, name)
    if entry.fate != "kept":
        fail(f"{entry.id}: {entry.fate}{'' if entry.fate_at is None else ' at ' + _time(entry.fate_at)}")
    return entry


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _octets(octets: bytes) -> str:
    return octets.decode("utf-8", "backslashreplace")


def _as_dict(entry: Entry, releases: list[Release]) -> dict[str, Any]:
    culprit = entry.culprit
    return {
        "id": entry.id,
        "file": entry.name,
        "time": _time(entry.at),
        "message": entry.message,
        "sender": None if entry.sender is None else _octets(entry.sender),
        "recipients": None if entry.recipients is None else [_octets(octets) for octets in entry.recipients],
        "remote": None if entry.remote is None else _octets(entry.remote),
        "client": entry.client,
        "virus": entry.virus,
        "culprit": None if culprit is None else {"name": culprit.name, "sha256": culprit.sha256},
        "size": entry.size,
        "sha256": entry.sha256,
        "action": entry.action,
        "fate": entry.fate,
        "fate_time": None if entry.fate_at is None else _time(entry.fate_at),
        "releases": [_release_as_dict(one) for one in releases],
    }


def _release_as_dict(one: Release) -> dict[str, Any]:
    # Seen by anybody but who is at it, one that has not ended may or may not have been delivered.
    state = "uncertain" if one.state == "releasing" else one.state
    return {"recipient": _octets(one.recipient), "time": _time(one.at), "state": state, "reply": one.reply}


def _since(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,6})([mhdw])", value, re.ASCII)
    if match is not None:
        return time.time() - int(match[1]) * _UNITS[match[2]]
    try:
        return datetime.fromisoformat(value).timestamp()
    except (ValueError, OverflowError):
        raise click.BadParameter("give a time such as 2027-01-31, or how long ago: 30m, 12h, 7d, 2w") from None


@quarantine.command("list")
@click.option("--virus", metavar="PATTERN", help="Only viruses of such a name; * and ? stand for others.")
@click.option("--since", metavar="TIME", callback=_since, help="Only from then on: 2027-01-31, or 12h ago.")
@click.option("--sender", metavar="PATTERN", help="Only from such senders.")
@click.option("--recipient", metavar="PATTERN", help="Only for such recipients.")
@json_option
@click.pass_context
def list_(
    context: click.Context,
    *,
    virus: str | None,
    since: float | None,
    sender: str | None,
    recipient: str | None,
    as_json: bool,
) -> None:
    """List what is in quarantine, the oldest first.

    \b
    Examples:
      clamsmtpctl quarantine list --since 7d
      clamsmtpctl quarantine list --virus 'Win.*' --recipient '*@example.org'
    """
    with _opened(context) as (_settings, index):
        found = [
            entry
            for entry in index.entries()
            if (since is None or entry.at >= since)
            and (virus is None or fnmatch.fnmatch(entry.virus or "", virus))
            and (sender is None or fnmatch.fnmatch(_octets(entry.sender or b""), sender))
            and (recipient is None or any(fnmatch.fnmatch(_octets(one), recipient) for one in entry.recipients or ()))
        ]
        if as_json:
            print_json({"messages": [_as_dict(entry, index.releases(entry.id)) for entry in found]})
            return
        table = Table("Id", "Time", "Virus", "Sender", "Recipients", "Octets", box=None)
        for entry in found:
            recipients = "?" if entry.recipients is None else ", ".join(map(_octets, entry.recipients))
            sender_ = "?" if entry.sender is None else f"<{_octets(entry.sender)}>"
            cells = (entry.id, _time(entry.at), entry.virus or "?", sender_, recipients, str(entry.size))
            table.add_row(*(Text(shown(cell)) for cell in cells))
        console().print(table)


@quarantine.command()
@click.argument("name", metavar="ID")
@json_option
@click.pass_context
def show(context: click.Context, *, name: str, as_json: bool) -> None:
    """Show one message: what is known of it, its header section and its parts. None of them is opened.

    \b
    Example:
      clamsmtpctl quarantine show 4fT2
    """
    with _opened(context) as (settings, index):
        entry = _find(index, name)
        told = _as_dict(entry, index.releases(entry.id))
        header, parts = "", []
        if entry.fate == "kept":
            fd = open_kept(settings.temp_directory, entry.name)
            with open(fd, "rb") as file:
                text = file.read(_SHOW_MAX)
            header = re.split(rb"\r?\n\r?\n", text, maxsplit=1)[0].decode("utf-8", "backslashreplace")
            parts = _parts(text)
            if told["sha256"] is None:
                told["size"], told["sha256"] = digest(settings.temp_directory, entry.name)
        if as_json:
            print_json({**told, "header": header, "parts": parts})
            return
        for key, value in told.items():
            if key != "releases" and value is not None:
                click.echo(shown(f"{key}: {', '.join(value) if isinstance(value, list) else value}"))
        for one in told["releases"]:
            click.echo(shown(f"release: {one['state']} {one['recipient']} at {one['time']} {one['reply']}"))
        click.echo("")
        for line in header.splitlines():
            click.echo(shown(line.replace("\t", " ")))
        click.echo("")
        for part in parts:
            click.echo(shown(f"part: {part['type']} {part['name'] or '-'} {part['size']} octets"))


def _parts(text: bytes) -> list[dict[str, Any]]:
    """List the parts of a message as it calls them; sizes are as encoded."""
    found: list[dict[str, Any]] = []
    # The old policy takes anything; the newer one raises for some of what viruses come in.
    with contextlib.suppress(Exception):
        for part in BytesParser(policy=policy.compat32).parsebytes(text).walk():
            if not part.is_multipart():
                payload = part.get_payload()
                name = part.get_filename()
                size = len(payload) if isinstance(payload, str) else 0
                found.append(
                    {"name": None if name is None else str(name), "type": part.get_content_type(), "size": size}
                )
    return found


@quarantine.command("release")
@click.argument("names", metavar="ID...", nargs=-1, required=True)
@click.option("--to", "to", metavar="ADDR", multiple=True, help="To this address, not to the recipients.")
@click.option("--from", "sender", metavar="ADDR", help="From this sender, not from the message's own.")
@click.option("--again", is_flag=True, help="Also to those who have got it, or may have got it.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@json_option
@click.pass_context
def release_(
    context: click.Context,
    *,
    names: tuple[str, ...],
    to: tuple[str, ...],
    sender: str | None,
    again: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Deliver messages after all, through the next hop (OutAddress), marked with X-Virus-Released.

    \b
    Examples:
      clamsmtpctl quarantine release 4fT2Qz
      clamsmtpctl quarantine release 4fT2Qz --to security@example.org --dry-run
    """
    with _opened(context) as (settings, index):
        hop = settings.out_address
        if hop is None:
            fail("OutAddress is not set; there is no next hop to release to", Status.USAGE)
        try:
            courier = Courier(hop, settings.out_tls, client_context(settings.out_tls))
        except StartError as error:
            fail(str(error), Status.USAGE)
        results: list[dict[str, Any]] = []
        entries = [_find_kept(index, name) for name in names]
        for entry in entries:
            # Before the first is released, of which else nobody would hear.
            if not to and not entry.recipients:
                fail(f"{entry.id}: nobody wrote down whom it was for; give --to", Status.USAGE)
        for entry in entries:
            recipients = tuple(os.fsencode(one) for one in to) or entry.recipients or ()
            origin = os.fsencode(sender) if sender is not None else entry.sender or b""
            if dry_run:
                planned = [{"recipient": _octets(one), "state": "planned"} for one in recipients]
                results.append({"id": entry.id, "releases": planned})
                continue
            outcome = release(
                index, settings.temp_directory, entry, courier, sender=origin, recipients=recipients, again=again
            )
            results.append(
                {
                    "id": entry.id,
                    "releases": [
                        *map(_release_as_dict, outcome.done),
                        *({**_release_as_dict(one), "held": True} for one in outcome.held),
                    ],
                }
            )
    if as_json:
        print_json({"messages": results})
    else:
        for result in results:
            for one in result["releases"]:
                click.echo(shown(f"{result['id']}: {_say(one)}"))
    if any(one["state"] in ("refused", "uncertain") for result in results for one in result["releases"]):
        raise click.exceptions.Exit(Status.FAILED)


def _say(one: dict[str, Any]) -> str:
    who = one["recipient"]
    if one["state"] == "planned":
        return f"would be released to {who}"
    if one["state"] == "uncertain":
        return f"uncertain whether {who} got it at {one['time']}; look there, or give --again"
    if one.get("held"):
        return f"already released to {who} at {one['time']}"
    return f"{one['state']}: {who}: {one['reply']}"


@quarantine.command()
@click.argument("names", metavar="ID...", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_context
def delete(context: click.Context, *, names: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Remove messages for good.

    \b
    Example:
      clamsmtpctl quarantine delete 4fT2Qz --yes
    """
    with _opened(context) as (settings, index):
        entries = [_find_kept(index, name) for name in names]
        if not yes and not click.confirm(f"Remove {', '.join(entry.id for entry in entries)}?", err=True):
            raise click.exceptions.Exit(Status.FAILED)
        for entry in entries:
            remove(index, settings.temp_directory, entry, "deleted", time.time())
    if as_json:
        print_json({"deleted": [entry.id for entry in entries]})


@quarantine.command()
@click.option("--keep", metavar="LIMITS", help="Instead of QuarantineKeep, such as '30d 2G'.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@json_option
@click.pass_context
def expire(context: click.Context, *, keep: str | None, dry_run: bool, as_json: bool) -> None:
    """Remove what has been in quarantine long enough, the oldest first.

    \b
    Example:
      clamsmtpctl quarantine expire --keep '30d 2G' --dry-run
    """
    with _opened(context) as (settings, index):
        try:
            limits = settings.quarantine_keep if keep is None else parse_keep(keep)
        except ValueError as error:
            fail(f"--keep: {error}", Status.USAGE)
        if limits is None:
            fail("QuarantineKeep is not set; give --keep", Status.USAGE)
        now = time.time()
        chosen = choose(index.entries(), limits, now)
        if not dry_run:
            for entry in chosen:
                remove(index, settings.temp_directory, entry, "expired", now)
    if as_json:
        print_json({"expired": [entry.id for entry in chosen], "dry_run": dry_run})
    else:
        for entry in chosen:
            click.echo(f"{'would expire' if dry_run else 'expired'}: {entry.id} of {_time(entry.at)}")


@quarantine.command()
@click.argument("name", metavar="ID")
@click.argument("file", metavar="[FILE|-]", default="-")
@json_option
@click.pass_context
def export(context: click.Context, *, name: str, file: str, as_json: bool) -> None:
    """Copy a message to a file that is not there yet, or to standard output.

    With --json it goes to a file, and what is printed says which and how large it is.

    \b
    Examples:
      clamsmtpctl quarantine export 4fT2Qz /root/sample.eml
      clamsmtpctl quarantine export 4fT2Qz | less
    """
    if as_json and file == "-":
        fail("with --json the message goes to a file; name one", Status.USAGE)
    with _opened(context) as (settings, index):
        source = open_kept(settings.temp_directory, _find_kept(index, name).name)
    # The file is for who asked, wherever he may write.
    if os.getuid() != os.geteuid():
        os.seteuid(os.getuid())
        os.setegid(os.getgid())
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with (
            open(source, "rb") as text,
            contextlib.nullcontext(sys.stdout.buffer) if file == "-" else open(os.open(file, flags, 0o600), "wb") as to,
        ):
            octets = 0
            while piece := text.read(_PIECE):
                octets += to.write(piece)
    except OSError as error:
        fail(str(error))
    if as_json:
        print_json({"file": file, "octets": octets})
