"""``clamsmtpctl check``: the settings file judged without starting anything."""

from __future__ import annotations

import contextlib
import resource
import socket

import click

from clamsmtpd.config import Judged, Settings, judge
from clamsmtpd.ctl.asking import ServerError, greet
from clamsmtpd.ctl.clamdconf import ClamdSettings, parse_clamd_conf
from clamsmtpd.ctl.findings import Facts, findings
from clamsmtpd.ctl.output import Status, json_option, print_json, shown
from clamsmtpd.ctl.rights import as_user
from clamsmtpd.privileges import find_user
from clamsmtpd.readiness import is_known_beforehand
from clamsmtpd.tempdirectory import check_temp_directory
from clamsmtpd.tls import Certificate, client_context
from clamsmtpd.values import StartError

__all__ = ["check", "ground_of", "place_check", "start_errors"]

CLAMD_CONF = "/etc/clamav/clamd.conf"

_WARNED = 1

#: Seconds for the next hop to say how large a message it takes.
_LIMIT = 5.0


@click.command()
@click.argument("file", required=False)
@click.option(
    "--clamd-conf", default=CLAMD_CONF, show_default=True, metavar="FILE", help="The settings of clamd on this host."
)
@click.option("--offline", is_flag=True, help="Ask nobody: not even the next hop, how large a message it takes.")
@json_option
@click.pass_context
def check(context: click.Context, file: str | None, clamd_conf: str, *, offline: bool, as_json: bool) -> None:
    """Judge the settings file, FILE or the one of --config, without starting anything.

    Errors keep the daemon from starting; warnings say what will hurt, and what would be right. The exit status is 0
    if there is nothing to say, 1 with warnings, 2 with errors.

    \b
    Examples:
      clamsmtpctl check
      clamsmtpctl check --offline new.conf && systemctl reload clamsmtpd
      clamsmtpctl check --json | jq .warnings
    """
    path = file if file is not None else str(context.find_root().obj)
    judged = judge(path)
    errors, warnings = [*judged.errors], [*judged.warnings]
    if judged.settings is not None:
        errors += [f"{ground_of(judged, path, attribute)}: {text}" for attribute, text in start_errors(judged.settings)]
        warnings += [
            f"{ground_of(judged, path, found.setting)}: {found.text}"
            for found in findings(judged.settings, _facts(judged.settings, clamd_conf, offline=offline))
        ]
        trouble, more = place_check(judged.settings)
        place = ground_of(judged, path, "temp_directory")
        errors += [f"{place}: {trouble}"] if trouble else []
        warnings += [f"{place}: {text}" for text in more]
    errors.sort(key=_line_of)
    warnings.sort(key=_line_of)
    _tell(path, errors, warnings, as_json=as_json)
    if errors:
        raise click.exceptions.Exit(Status.USAGE)
    if warnings:
        raise click.exceptions.Exit(_WARNED)


def _tell(path: str, errors: list[str], warnings: list[str], *, as_json: bool) -> None:
    if as_json:
        print_json({"file": path, "errors": errors, "warnings": warnings})
        return
    for kind, lines in (("error", errors), ("warning", warnings)):
        for line in lines:
            where, colon, text = line.partition(": ")
            click.echo(shown(f"{where}: {kind}: {text}" if colon else f"{path}: {kind}: {line}"))
    if errors or warnings:
        click.echo(f"{path}: {_count(len(errors), 'error')}, {_count(len(warnings), 'warning')}")
    else:
        click.echo(f"{path}: good")


def _line_of(text: str) -> int:
    """Return the line that a text is about; 0 for the file as a whole."""
    number = text.partition(": ")[0].rpartition(":")[2]
    return int(number) if number.isdigit() else 0


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def ground_of(judged: Judged, path: str, attribute: str) -> str:
    """Return where a setting is given; the file as a whole if it is not."""
    return judged.where.get(attribute, path)


def start_errors(settings: Settings) -> list[tuple[str, str]]:
    """Return what would keep the daemon from starting on this machine: attribute and text."""
    found: list[tuple[str, str]] = []
    for attribute, use in (
        ("user", lambda: find_user(settings.user) if settings.user else None),
        (
            "tls_certificate",
            lambda: Certificate(settings.tls_certificate, settings.tls_key) if settings.tls_certificate else None,
        ),
        ("out_tls", lambda: client_context(settings.out_tls)),
    ):
        try:
            use()
        except StartError as error:
            found.append((attribute, str(error)))
    return found


def _facts(settings: Settings, clamd_conf: str, *, offline: bool) -> Facts:
    hop = settings.out_address
    size: int | None = None
    if hop is not None and not offline and is_known_beforehand(hop):
        with contextlib.suppress(ServerError):
            size = greet(hop.address, lmtp=hop.lmtp, limit=_LIMIT).size
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return Facts(
        clamd=_read_clamd_conf(clamd_conf),
        clamd_conf=clamd_conf,
        next_hop_size=size,
        descriptors=None if hard == resource.RLIM_INFINITY else hard,
        own_hosts=_own_hosts(),
    )


def _read_clamd_conf(path: str) -> ClamdSettings | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return parse_clamd_conf(file.read())
    except OSError:
        return None


def _own_hosts() -> frozenset[str]:
    with contextlib.suppress(OSError):
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
        return frozenset(str(name[0]) for _, _, _, _, name in found)
    return frozenset()


def place_check(settings: Settings) -> tuple[str, list[str]]:
    """Judge TempDirectory as the user that the daemon becomes, as far as we may; return an error and warnings."""
    trouble, warnings = as_user(settings.user, lambda: _check_place(settings.temp_directory))
    return trouble, warnings


def _check_place(path: str) -> tuple[str, list[str]]:
    try:
        return "", check_temp_directory(path)
    except StartError as error:
        return str(error), []
