"""The settings: one table that says each one's name, grammar, default and meaning.

The command line, the sample settings file and the manual page are made from this table. A settings
file has one ``Name: value`` a line; names and keywords in any case; a line that starts with ``#`` is
a comment (clamsmtpd.conf(5)).
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from clamsmtpd.addresses import AddressError, parse_address
from clamsmtpd.templates import check_header
from clamsmtpd.values import Action, Address

__all__ = [
    "DEFAULT_PATH",
    "OLD_NAMES",
    "SETTINGS",
    "ConfigError",
    "Loaded",
    "Setting",
    "Settings",
    "load",
    "printable",
]

DEFAULT_PATH = "/etc/clamsmtpd.conf"


class ConfigError(Exception):
    """A settings file or flag that cannot be used; ``str()`` is one line that says why, where and what to do."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, checked. Seconds are whole; paths are absolute."""

    action: Action
    clam_address: Address
    header: str
    keep_alives: int
    listen: Address
    max_connections: int
    out_address: Address | None
    pid_file: str | None
    quarantine: bool
    temp_directory: str
    time_out: int
    transparent_proxy: bool
    user: str | None
    virus_action: str | None
    xclient: bool
    debug_files: bool


class Loaded(NamedTuple):
    """What a settings file gave: the settings, and one line for each thing to be told about them."""

    settings: Settings
    warnings: tuple[str, ...]


class Setting(NamedTuple):
    """A row of the table. ``parse`` raises ValueError with what is wrong and what would be right."""

    name: str
    attribute: str
    parse: Callable[[str], Any]
    default: str | None
    help: str
    shown_default: str = ""


_TRUE = frozenset({"on", "yes", "true", "t", "1"})
_FALSE = frozenset({"off", "no", "false", "f", "0"})


def _switch(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError(f'"{text}" is not known; give on or off')


def _action(text: str) -> Action:
    try:
        return Action(text.lower())
    except ValueError:
        raise ValueError(f'"{text}" is not known; give drop, bounce or pass') from None


# Seconds in 1.x were a C int: a file that says "practically never" must still be taken.
_SECONDS_MAX = 2**31 - 1
_DIGITS_MAX = 20


def _number(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit()):
            raise ValueError(f'"{text}" is no whole number; give one from {least} to {most}')
        # int() refuses what is too long, and its refusal would not say what would be right.
        if len(text) <= _DIGITS_MAX and least <= int(text) <= most:
            return int(text)
        raise ValueError(f'"{text}" is out of range; give a whole number from {least} to {most}')

    return parse


def _address(default_port: int, default_host: str | None) -> Callable[[str], Address]:
    def parse(text: str) -> Address:
        return parse_address(text, default_port=default_port, default_host=default_host)

    return parse


def _path(text: str) -> str:
    # The daemon goes to the root directory; until then, a relative path means what it meant to whoever started it.
    # Not abspath: to take out ".." in the text leads elsewhere where a directory is a symbolic link.
    try:
        return text if text.startswith("/") else os.path.join(os.getcwd(), text)
    except OSError:
        raise ValueError(f'"{text}" is relative to a working directory that is gone; give a full path') from None


def _path_or_none(text: str) -> str | None:
    return _path(text) if text else None


def _user(text: str) -> str:
    # Names of directory services hold "@" and backslashes. Whether there is such a user is asked at the start.
    if re.fullmatch(r"[^\s:/-][^\s:/]*", text):
        return text
    raise ValueError(f'"{text}" is no user; give a user name or number')


def _command(text: str) -> str | None:
    return text or None


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "Action",
        "action",
        _action,
        "drop",
        "What becomes of an infected message. With drop the client is told that it was accepted, and nothing is "
        "delivered. With bounce the client is told 550, so that it is the client's task to report it. With pass the "
        "message is delivered with an X-Virus-Infected header field that names the virus.",
    ),
    Setting(
        "ClamAddress",
        "clam_address",
        _address(3310, "127.0.0.1"),
        "/var/run/clamav/clamd",
        "Where clamd(8) listens. Through a unix socket a message is handed over as an open file, without any shared "
        "folder; over TCP it is sent as a stream. A port alone is on this host, an address alone has port 3310.",
    ),
    Setting(
        "Header",
        "header",
        check_header,
        "X-Virus-Scanned: ClamAV using ClamSMTP",
        "A header field to add to scanned messages; with no value, none is added. %i stands for the client's address, "
        "%l for the local address, %d for the date and %% for a percent sign; \\r, \\n and \\t are understood, and a "
        "field may be folded with them. A field that begins with Received: goes on top of the message, any other to "
        "the end of its header section.",
    ),
    Setting(
        "KeepAlives",
        "keep_alives",
        _number(0, _SECONDS_MAX),
        "0",
        "Seconds between NOOP commands to the next hop while a message is received and scanned, so that it does not "
        "give up waiting. 0 sends none.",
    ),
    Setting(
        "Listen",
        "listen",
        _address(10025, None),
        "10025",
        "Where SMTP connections are accepted. A port alone is on all local addresses, IPv4 and IPv6; an address "
        "alone has port 10025.",
        "port 10025 on all local addresses",
    ),
    Setting(
        "MaxConnections",
        "max_connections",
        _number(1, 1_000_000),
        "64",
        "How many clients are served at once; one more is told 421. Let clamd's MaxThreads and MaxQueue, and the "
        "descriptor limit of the daemon (four a client), be large enough.",
    ),
    Setting(
        "OutAddress",
        "out_address",
        _address(25, None),
        None,
        "The next hop: where scanned mail goes. A host name is resolved again for every connection; an address alone "
        "has port 25. A port alone means that port at the client's own address (see LOOPBACK in clamsmtpd(8)). "
        "Required, except with TransparentProxy, where it must not be given.",
        "none; required",
    ),
    Setting(
        "PidFile",
        "pid_file",
        _path_or_none,
        None,
        "A file for the daemon's process id. It is removed when the daemon stops. The flag -p beats this setting.",
        "none",
    ),
    Setting(
        "Quarantine",
        "quarantine",
        _switch,
        "off",
        "Keep infected messages in TempDirectory, in files named virus.XXXXXX, where X is a random letter or digit.",
    ),
    Setting(
        "TempDirectory",
        "temp_directory",
        _path,
        "/tmp",  # noqa: S108 - the default since 1.x; files in it are made without a name or with O_EXCL
        "Where large messages wait for their verdict and quarantined ones are kept. The daemon must be able to write "
        "there; nobody else should.",
    ),
    Setting(
        "TimeOut",
        "time_out",
        _number(1, _SECONDS_MAX),
        "180",
        "Seconds that a client, the next hop or clamd may take for the next step: a command, a reply, a verdict, or "
        "100 octets of a message for each of these seconds. For the next hop's answer to a whole message they are at "
        "least 600, as RFC 5321 asks.",
    ),
    Setting(
        "TransparentProxy",
        "transparent_proxy",
        _switch,
        "off",
        "Deliver each connection's mail to where the client meant to connect before the firewall redirected it here "
        "(see TRANSPARENT PROXY in clamsmtpd(8)).",
    ),
    Setting(
        "User",
        "user",
        _user,
        None,
        "The user, by name or number, to become once the listening socket is bound. The daemon must then be started "
        "as root.",
        "none",
    ),
    Setting(
        "VirusAction",
        "virus_action",
        _command,
        None,
        "A command for /bin/sh to run for each infected message (see THE HOOK in clamsmtpd(8)).",
        "none",
    ),
    Setting(
        "XClient",
        "xclient",
        _switch,
        "off",
        "Tell the next hop the client's address with XCLIENT, where it offers that.",
    ),
    Setting(
        "DebugFiles",
        "debug_files",
        _switch,
        "off",
        "Keep every message in TempDirectory, in files named clamsmtpd.XXXXXX. For finding faults; it fills the disk.",
    ),
)

_BY_NAME = {setting.name.lower(): setting for setting in SETTINGS}

#: Old names that are still taken, each with how to write its value today.
OLD_NAMES: dict[str, Callable[[str], tuple[str, str]]] = {
    "bounce": lambda value: ("Action", "bounce" if _switch(value) else "drop"),
    "scanheader": lambda value: ("Header", value),
}


class _Line(NamedTuple):
    """A value and where it stands, as messages name that place."""

    where: str
    name: str
    value: str


def load(path: str, overrides: Sequence[tuple[str, str, str]] = (), *, required: bool = True) -> Loaded:
    """Read the settings file at ``path``, then let ``overrides`` beat it.

    An override is a flag as typed, a setting's name and its value. With ``required`` false the file may
    be missing, which is then a warning. Raises :class:`ConfigError`.
    """
    warnings: list[str] = []
    if not required and not os.path.lexists(path):
        warnings.append(f"{path}: is missing; only the flags count")
        lines: list[_Line] = []
    else:
        lines = _read(path)
    lines += [_Line(flag, name, value) for flag, name, value in overrides]
    values: dict[str, tuple[_Line, Any]] = {}
    for number, line in enumerate(lines):
        setting, value = _understand(line, warnings)
        earlier = values.get(setting.attribute)
        if earlier is not None and number < len(lines) - len(overrides):
            warnings.append(f"{line.where}: {setting.name} is given again; this one counts, not {earlier[0].where}")
        values[setting.attribute] = (line, value)
    for setting in SETTINGS:
        if setting.attribute not in values:
            value = None if setting.default is None else setting.parse(setting.default)
            values[setting.attribute] = (_Line(path, setting.name, setting.default or ""), value)
    settings = Settings(**{attribute: value for attribute, (_, value) in values.items()})
    if settings.out_address is None and not settings.transparent_proxy:
        raise ConfigError(f"{path}: OutAddress: is missing; give the next hop's address, or TransparentProxy: on")
    if settings.out_address is not None and settings.transparent_proxy:
        where = values["out_address"][0].where
        raise ConfigError(f"{where}: OutAddress: does not go with TransparentProxy: on; leave one of them out")
    return Loaded(settings, tuple(printable(warning) for warning in warnings))


def _read(path: str) -> list[_Line]:
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
            text = file.read()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; name the settings file with -f") from None
    lines = []
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.strip(" \t\r\f\v")
        if not line or line.startswith("#"):
            continue
        where = f"{path}:{number}"
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise ConfigError(f'{where}: "{printable(line)}" is no setting; write Name: value')
        lines.append(_Line(where, name.strip(), value.strip()))
    return lines


def _understand(line: _Line, warnings: list[str]) -> tuple[Setting, Any]:
    where, name, value = line
    try:
        if "\0" in value:
            raise ValueError("it holds a NUL octet; take it out")
        old = OLD_NAMES.get(name.lower())
        if old is not None:
            new_name, value = old(value)
            warnings.append(f"{where}: {name} is an old name; write {f'{new_name}: {value}'.rstrip()}")
            name = new_name
        setting = _BY_NAME.get(name.lower())
        if setting is None:
            near = difflib.get_close_matches(name.lower(), _BY_NAME, n=1)
            hint = f"did you mean {_BY_NAME[near[0]].name}?" if near else "see clamsmtpd.conf(5) for those there are"
            raise ConfigError(f"{where}: {printable(name)}: is no setting; {hint}")
        if not value and setting.attribute not in _MAY_BE_EMPTY:
            raise ValueError("a value is missing; give one, or leave the line out")
        if setting.attribute == "header":
            warnings += [
                f"{where}: Header: %{symbol} is not known and stands for nothing; there are %i, %l, %d and %%"
                for symbol in re.findall(r"%(.)", value)
                if symbol not in "ild%"
            ]
        return setting, setting.parse(value)
    except (ValueError, AddressError) as error:
        raise ConfigError(f"{where}: {printable(name)}: {printable(str(error))}") from None


_MAY_BE_EMPTY = frozenset({"header", "pid_file", "virus_action"})


def printable(text: str) -> str:
    """Keep what a stranger may have put into a file from playing with the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)
