"""The settings: one table that says each one's name, grammar, default and meaning.

The command line, the sample settings file and the manual page are made from this table. A settings
file has one ``Name: value`` a line; names and keywords in any case; a line that starts with ``#`` is
a comment (clamsmtpd.conf(5)).
"""

from __future__ import annotations

import difflib
import enum
import ipaddress
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from clamsmtpd.addresses import AddressError, parse_address
from clamsmtpd.settingsfile import read_settings_file
from clamsmtpd.templates import check_header
from clamsmtpd.values import (
    Action,
    ActionFor,
    Address,
    Keep,
    Listen,
    LogFormat,
    NextHop,
    OutTls,
    TrustedClients,
    UnixAddress,
    Unjudged,
)

__all__ = [
    "DEFAULT_PATH",
    "OLD_NAMES",
    "SETTINGS",
    "ConfigError",
    "Judged",
    "Loaded",
    "Setting",
    "Settings",
    "judge",
    "load",
    "parse_keep",
    "printable",
    "working_directory",
]

DEFAULT_PATH = "/etc/clamsmtpd.conf"


class ConfigError(Exception):
    """A settings file or flag that cannot be used; ``str()`` is one line that says why, where and what to do."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, checked. Seconds are whole; paths are absolute.

    ``keep_alives`` and ``workers`` are None for automatic, ``admin`` and ``quarantine_keep`` for none. ``actions_for``
    are in their order in the file. ``listen_given`` tells whether ``listen`` was given; if not, it is the default.
    """

    action: Action
    actions_for: tuple[ActionFor, ...]
    admin: Listen | None
    clam_addresses: tuple[Address, ...]
    header: str
    keep_alives: int | None
    listen: tuple[Listen, ...]
    log_format: LogFormat
    max_connections: int
    out_address: NextHop | None
    out_tls: OutTls
    oversize: Unjudged
    pid_file: str | None
    proxy_protocol: bool
    quarantine: bool
    quarantine_keep: Keep | None
    scan_failure: Unjudged
    temp_directory: str
    time_out: int
    tls_certificate: str | None
    tls_key: str | None
    transparent_proxy: bool
    trusted_clients: TrustedClients
    user: str | None
    virus_action: str | None
    workers: int | None
    xclient: bool
    debug_files: bool
    listen_given: bool = False


class Loaded(NamedTuple):
    """What a settings file gave: the settings, and one line for each thing to be told about them."""

    settings: Settings
    warnings: tuple[str, ...]


class Setting(NamedTuple):
    """A row of the table. ``parse`` raises ValueError with what is wrong and what would be right.

    ``many``: the setting may be given more than once, and its value is a tuple of all of them. ``path``: it is a path,
    which may be relative.
    """

    name: str
    attribute: str
    parse: Callable[[str], Any]
    default: str | None
    help: str
    shown_default: str = ""
    many: bool = False
    path: bool = False


_TRUE = frozenset({"on", "yes", "true", "t", "1"})
_FALSE = frozenset({"off", "no", "false", "f", "0"})


def _switch(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError(f'"{text}" is not known; give on or off')


_Choice = TypeVar("_Choice", bound=enum.Enum)


def _one_of(*choices: _Choice) -> Callable[[str], _Choice]:
    *most, last = (choice.value for choice in choices)

    def parse(text: str) -> _Choice:
        for choice in choices:
            if text.lower() == choice.value:
                return choice
        raise ValueError(f'"{text}" is not known; give {", ".join(most)} or {last}')

    return parse


_action = _one_of(*Action)


def _action_for(text: str) -> ActionFor:
    words = text.split()
    if len(words) != 2:  # noqa: PLR2004
        raise ValueError(f'"{text}" is no pattern and action; write them as Heuristics.Encrypted.* pass')
    return ActionFor(words[0], _action(words[1]))


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


_LMTP = "lmtp:"

# Behind the path of a unix socket; a path may hold blanks itself.
_SOCKET_OPTION = re.compile(r"(.*\S)[ \t]+([A-Za-z]+)=(\S*)")
_OWNER = re.compile(r"([^\s:/]+)(?::([^\s:/]+))?")
_MODE = re.compile(r"[0-7]{1,4}")
_MODE_MAX = 0o777


def _split_protocol(text: str) -> tuple[str, bool]:
    if text[: len(_LMTP)].lower() == _LMTP:
        return text[len(_LMTP) :].lstrip(" \t"), True
    return text, False


def _listen(text: str) -> Listen:
    place, lmtp = _split_protocol(text)
    return replace(_socket(place, default_port=10025, default_host=None), lmtp=lmtp)


def _admin(text: str) -> Listen | None:
    if not text:
        return None
    # What it tells is not for all: by default it is for this host's root, or for this host.
    place = _socket(text, default_port=9310, default_host="127.0.0.1")
    if isinstance(place.address, UnixAddress) and place.mode is None:
        return replace(place, mode=0o600)
    return place


def _socket(place: str, *, default_port: int, default_host: str | None) -> Listen:
    options: dict[str, str] = {}
    while match := _SOCKET_OPTION.fullmatch(place):
        place, name, value = match.groups()
        if name.lower() not in {"owner", "mode"}:
            raise ValueError(f'"{name}=" is not known; give owner= or mode=')
        if name.lower() in options:
            raise ValueError(f'"{name}=" is given twice; give it once')
        options[name.lower()] = value
    address = parse_address(place, default_port=default_port, default_host=default_host)
    if options and not isinstance(address, UnixAddress):
        raise ValueError("owner= and mode= are for unix sockets; give a full path, or leave them out")
    owner = group = None
    if "owner" in options:
        names = _OWNER.fullmatch(options["owner"])
        if names is None:
            raise ValueError(f'"{options["owner"]}" is no owner; give USER or USER:GROUP')
        owner, group = names.groups()
    mode = None
    if "mode" in options:
        if not _MODE.fullmatch(options["mode"]) or int(options["mode"], 8) > _MODE_MAX:
            raise ValueError(f'"{options["mode"]}" is no mode; give octal digits from 0 to 0777, such as 0660')
        mode = int(options["mode"], 8)
    return Listen(address, owner=owner, group=group, mode=mode)


# Units of QuarantineKeep: seconds, and octets.
_SPANS = {"h": 3600, "d": 86400, "w": 7 * 86400}
_SIZES = {"k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_AMOUNT = re.compile(r"([0-9]{1,12})(?:([hdw])|([kmgt])b?)", re.IGNORECASE)


def parse_keep(text: str) -> Keep:
    """Read what QuarantineKeep can be, such as "30d 2G". Raises ValueError."""
    seconds = octets = None
    for word in text.split():
        amount = _AMOUNT.fullmatch(word)
        if amount is None or not int(amount[1]):
            raise ValueError(f'"{word}" is no age and no size; give such as 30d, 12h, 500M or 2G')
        if amount[2]:
            if seconds is not None:
                raise ValueError(f'"{word}" is a second age; give one age, one size, or both')
            seconds = int(amount[1]) * _SPANS[amount[2].lower()]
        else:
            if octets is not None:
                raise ValueError(f'"{word}" is a second size; give one age, one size, or both')
            octets = int(amount[1]) * _SIZES[amount[3].lower()]
    return Keep(seconds, octets)


def _next_hop(text: str) -> NextHop:
    place, lmtp = _split_protocol(text)
    return NextHop(parse_address(place, default_port=24 if lmtp else 25, default_host=None), lmtp=lmtp)


def _trusted_clients(text: str) -> TrustedClients:
    networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
    sockets: list[str] = []
    for word in re.split(r"[\s,]+", text):
        if word.startswith("/"):
            sockets.append(word)
        elif word:
            networks.append(_network(word))
    return TrustedClients(tuple(networks), frozenset(sockets))


_BRACKETS = re.compile(r"^\[([^\]]+)\](?=/|$)")

# ::ffff:0:0/96, RFC 4291 section 2.5.5.2.
_MAPPED_PREFIX = 96


def _network(word: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    text = _BRACKETS.sub(r"\1", word)
    try:
        # Clients are known without the interface that an address may name behind "%".
        if "%" in text:
            raise ValueError
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            f'"{word}" is no network; give IP addresses, networks such as 192.0.2.0/24, and paths of unix sockets'
        ) from None
    exact = ipaddress.ip_interface(text).ip == network.network_address
    # Clients are known by their IPv4 address, whatever socket they come through.
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= _MAPPED_PREFIX:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            network = ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED_PREFIX))
    if not exact:
        raise ValueError(f'"{word}" has bits behind its prefix; give {network}')
    return network


def working_directory() -> str:
    """Return the directory that relative paths are relative to; nothing if it is gone."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def _path_from(folder: str, text: str) -> str:
    # The daemon goes to the root directory; a relative path means what it meant to whoever started it.
    # Not abspath: to take out ".." in the text leads elsewhere where a directory is a symbolic link.
    if text.startswith("/"):
        return text
    if not folder:
        raise ValueError(f'"{text}" is relative to a working directory that is gone; give a full path')
    return os.path.join(folder, text)


def _text_or_none(text: str) -> str | None:
    return text or None


def _user(text: str) -> str:
    # Names of directory services hold "@" and backslashes. Whether there is such a user is asked at the start.
    if re.fullmatch(r"[^\s:/-][^\s:/]*", text):
        return text
    raise ValueError(f'"{text}" is no user; give a user name or number')


def _automatic_or(parse: Callable[[str], int]) -> Callable[[str], int | None]:
    def parse_both(text: str) -> int | None:
        if text.lower() == "automatic":
            return None
        try:
            return parse(text)
        except ValueError as error:
            raise ValueError(f"{error}, or automatic") from None

    return parse_both


_WORKERS_MAX = 256


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
        "ActionFor",
        "actions_for",
        _action_for,
        None,
        "A pattern and an action, with a blank between them: what becomes of a message whose virus has a name that the "
        "pattern matches, in place of Action. In the pattern * stands for any characters, ? for one, and [...] for one "
        "of those; case does not matter. Examples are Heuristics.Encrypted.* pass, PUA.* pass and *.UNOFFICIAL bounce. "
        "It may be given several times; the first one that matches counts.",
        "none",
        many=True,
    ),
    Setting(
        "Admin",
        "admin",
        _admin,
        None,
        "Where the daemon tells about itself by HTTP: /metrics for Prometheus, /healthz, /readyz and /status (see SEEN "
        "FROM OUTSIDE in clamsmtpd(8)); clamsmtpctl(8) asks there too. Give the path of a unix socket, which may have "
        "owner= and mode= behind it as with Listen and is for its owner alone without, or an address of this host: a "
        "port alone is at 127.0.0.1. Nobody is asked for a password; only a unix socket tells about single messages.",
        "none",
    ),
    Setting(
        "ClamAddress",
        "clam_addresses",
        _address(3310, "127.0.0.1"),
        "/var/run/clamav/clamd",
        "Where clamd(8) listens. Through a unix socket a message is handed over as an open file, without any shared "
        "folder; over TCP it is sent as a stream. A port alone is on this host, an address alone has port 3310. It may "
        "be given several times: each message goes to the one that has the least to do, and to another one if that "
        "fails (see SCANNERS in clamsmtpd(8)).",
        many=True,
    ),
    Setting(
        "Header",
        "header",
        check_header,
        "X-Virus-Scanned: ClamAV using ClamSMTP",
        "A header field to add to scanned messages; with no value, none is added. %i stands for the client's address, "
        "%l for the local address, %d for the date and %% for a percent sign; \\r, \\n and \\t are understood, and a "
        "field may be folded with them. A field that begins with Received: goes on top of the message, any other to "
        "the end of its header section. A field of its name that came with the message is renamed (see FORGED HEADER "
        "FIELDS in clamsmtpd(8)).",
    ),
    Setting(
        "KeepAlives",
        "keep_alives",
        _automatic_or(_number(0, _SECONDS_MAX)),
        "automatic",
        "Seconds between NOOP commands to the next hop while a message is received and scanned, so that it does not "
        "give up waiting. 0 sends none; automatic sends one for each minute or so that a message takes, and so none "
        "for most.",
    ),
    Setting(
        "Listen",
        "listen",
        _listen,
        "10025",
        "Where SMTP connections are accepted; with lmtp: in front of the address, LMTP connections. A port alone is on "
        "all local addresses, IPv4 and IPv6; an address alone has port 10025. It may be given several times. Behind "
        "the path of a unix socket may stand owner=USER, owner=USER:GROUP and mode=MODE (octal); without them anybody "
        "who gets to the socket's directory may connect.",
        "port 10025 on all local addresses",
        many=True,
    ),
    Setting(
        "LogFormat",
        "log_format",
        _one_of(*LogFormat),
        "text",
        "What a line of the log looks like: text, as it has been since 1.x, or json, an object for each event with "
        "names that stay (see THE LOG in clamsmtpd(8)).",
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
        _next_hop,
        None,
        "The next hop: where scanned mail goes, with lmtp: in front of the address by LMTP (port 24 if none is given). "
        "A host name is resolved again for every connection; an address alone "
        "has port 25. A port alone means that port at the client's own address (see LOOPBACK in clamsmtpd(8)). "
        "Required, except with TransparentProxy, where it must not be given.",
        "none; required",
    ),
    Setting(
        "OutTLS",
        "out_tls",
        _one_of(*OutTls),
        "off",
        "TLS with the next hop, by STARTTLS: off; may, if it is offered; encrypt, or no mail is delivered; verify, and "
        "the certificate must be valid for the host name or IP address in OutAddress, by the authorities of the system "
        "or of the file that the environment variable SSL_CERT_FILE names.",
    ),
    Setting(
        "Oversize",
        "oversize",
        _one_of(Unjudged.DEFER, Unjudged.PASS, Unjudged.BOUNCE),
        "defer",
        "What becomes of a message that is larger than what clamd looks at (MaxFileSize, MaxScanSize and "
        "StreamMaxLength in clamd.conf(5)). With defer the client is told 451 and keeps it; with bounce it is told "
        "552; with pass the message is delivered unscanned, with an X-Virus-Unscanned header field that says so.",
    ),
    Setting(
        "PidFile",
        "pid_file",
        _text_or_none,
        None,
        "A file for the daemon's process id. It is removed when the daemon stops. The flag -p beats this setting.",
        "none",
        path=True,
    ),
    Setting(
        "ProxyProtocol",
        "proxy_protocol",
        _switch,
        "off",
        "Each connection from TrustedClients begins with a PROXY protocol header, version 1 or 2, that says who the "
        "client is (HAProxy's send-proxy and send-proxy-v2). Connections of others must not have one.",
    ),
    Setting(
        "Quarantine",
        "quarantine",
        _switch,
        "off",
        "Keep infected messages in TempDirectory, in files named virus.XXXXXX, where X is a random letter or digit. "
        "clamsmtpctl(8) lists and releases them.",
    ),
    Setting(
        "QuarantineKeep",
        "quarantine_keep",
        parse_keep,
        None,
        "How long, and how much, stays in quarantine: an age such as 30d (days; w and h are weeks and hours), a size "
        "such as 2G (k, M and T as well), or both. What is older is deleted, and the oldest of what is more.",
        "all, for ever",
    ),
    Setting(
        "ScanFailure",
        "scan_failure",
        _one_of(Unjudged.DEFER, Unjudged.PASS),
        "defer",
        "What becomes of a message for which no scanner has a verdict, for as long as the client can wait. With defer "
        "the client is told 451 and keeps it; with pass the message is delivered unscanned, with an X-Virus-Unscanned "
        "header field that says so.",
    ),
    Setting(
        "TempDirectory",
        "temp_directory",
        str,
        "/tmp",  # noqa: S108 - the default since 1.x; files in it are made without a name or with O_EXCL
        "Where large messages wait for their verdict and quarantined ones are kept. The daemon must be able to write "
        "there; nobody else should.",
        path=True,
    ),
    Setting(
        "TimeOut",
        "time_out",
        _number(1, _SECONDS_MAX),
        "180",
        "Seconds that a client, the next hop or clamd may take for the next step: a command, a reply, a verdict, or "
        "100 octets of a message for each of these seconds; it can be up to an eighth more until that is noticed. For "
        "the next hop's answer to a whole message they are at least 600, as RFC 5321 asks.",
    ),
    Setting(
        "TLSCertificate",
        "tls_certificate",
        str,
        None,
        "A certificate in PEM format, with those between it and its authority behind it. Clients are then offered "
        "STARTTLS. A renewed certificate is used for the next connection, if the daemon's user can read it.",
        "none; no TLS with clients",
        path=True,
    ),
    Setting(
        "TLSKey",
        "tls_key",
        str,
        None,
        "The certificate's key in PEM format, without a passphrase.",
        "in the file of the certificate",
        path=True,
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
        "TrustedClients",
        "trusted_clients",
        _trusted_clients,
        "",
        "Who may say by XCLIENT, or by the PROXY protocol, who the client is: IP addresses, networks, and paths of "
        "unix sockets that are among those of Listen, with blanks or commas between them. Whoever can connect from "
        "there is believed.",
        "nobody",
    ),
    Setting(
        "User",
        "user",
        _user,
        None,
        "The user, by name or number, to become once the listening sockets are bound. The daemon must then be started "
        "as root.",
        "none",
    ),
    Setting(
        "VirusAction",
        "virus_action",
        _text_or_none,
        None,
        "A command for /bin/sh to run for each infected message (see THE HOOK in clamsmtpd(8)).",
        "none",
    ),
    Setting(
        "Workers",
        "workers",
        _automatic_or(_number(1, _WORKERS_MAX)),
        "automatic",
        "How many processes share the work, under one more that watches over them; with 1 there is only the one. "
        "automatic is one for each two processors, as clamd has most of the work, and 8 at most. MaxConnections holds "
        "for all of them together.",
    ),
    Setting(
        "XClient",
        "xclient",
        _switch,
        "off",
        "Tell the next hop with XCLIENT, where it offers that, who the client is: each of ADDR, PORT, NAME, HELO, "
        "PROTO, LOGIN, DESTADDR and DESTPORT that it takes.",
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


class _Given(NamedTuple):
    """What a setting was given as. One that may be given more than once has a line for each of its values."""

    lines: tuple[_Line, ...]
    value: Any

    @property
    def where(self) -> str:
        return self.lines[-1].where


class _Conflict(NamedTuple):
    """Settings that are good each, and not together. ``lack``: something else is missing for them."""

    text: str
    lack: bool


def load(
    path: str, overrides: Sequence[tuple[str, str, str]] = (), *, required: bool = True, folder: str | None = None
) -> Loaded:
    """Read the settings file at ``path``, then let ``overrides`` beat it.

    An override is a flag as typed, a setting's name and its value. With ``required`` false the file may
    be missing, which is then a warning. Relative paths, ``path`` as well, are relative to ``folder``: to the
    working directory if it is None. Raises :class:`ConfigError`.
    """
    folder = working_directory() if folder is None else folder
    place = os.path.join(folder, path)
    warnings: list[str] = []
    if not required and not os.path.lexists(place):
        warnings.append(f"{path}: is missing; only the flags count")
        lines: list[_Line] = []
    else:
        lines = _read(path, place, warnings)
    lines += [_Line(flag, name, value) for flag, name, value in overrides]
    values = _collect(lines, len(overrides), folder, warnings)
    settings = _make(values)
    for conflict in _conflicts(settings, path, {attribute: given.where for attribute, given in values.items()}):
        raise ConfigError(conflict.text)
    return Loaded(settings, tuple(printable(warning) for warning in warnings))


def _make(values: dict[str, _Given]) -> Settings:
    """Return the settings; those that are not among the ``values`` have their defaults."""
    chosen = {row.attribute: _default(row) for row in SETTINGS}
    chosen |= {attribute: given.value for attribute, given in values.items()}
    return Settings(**chosen, listen_given="listen" in values)


class Judged(NamedTuple):
    """All that there is to say of a settings file by itself: ``settings`` is None with ``errors``.

    Each error and each warning is one line, as :func:`load` would tell it. ``where`` has the settings that the file
    gives by their attributes, and where each of its values stands, as ``FILE:LINE``.
    """

    settings: Settings | None
    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    where: dict[str, tuple[str, ...]]


def judge(path: str) -> Judged:
    """Read the settings file at ``path`` as :func:`load` does, and say all that is wrong with it."""
    folder = working_directory()
    warnings: list[str] = []
    errors: list[str] = []
    try:
        lines = _read(path, os.path.join(folder, path), warnings, errors)
    except ConfigError as error:
        return Judged(None, (str(error),), (), {})
    values = _collect(lines, 0, folder, warnings, errors)
    settings = _make(values)
    conflicts = _conflicts(settings, path, {attribute: given.where for attribute, given in values.items()})
    # What is missing may be in a line that is wrong; that it is wrong says more.
    errors += [conflict.text for conflict in list(conflicts) if not (conflict.lack and errors)]
    where = {attribute: tuple(line.where for line in given.lines) for attribute, given in values.items()}
    told = tuple(printable(warning) for warning in warnings)
    return Judged(None if errors else settings, tuple(errors), told, where)


def _default(setting: Setting) -> Any:  # noqa: ANN401 - of the setting's own type
    if setting.default is None:
        return () if setting.many else None
    value = setting.parse(setting.default)
    return (value,) if setting.many else value


def _collect(
    lines: Sequence[_Line], overrides: int, folder: str, warnings: list[str], errors: list[str] | None = None
) -> dict[str, _Given]:
    """Understand all lines, of which the last ``overrides`` are flags; return what was given, by attribute.

    Raises ConfigError for the first that cannot be understood; with ``errors``, all of these go there.
    """
    values: dict[str, _Given] = {}
    for number, line in enumerate(lines):
        try:
            setting, value = _understand(line, folder, warnings)
        except ConfigError as error:
            _raise_or_note(error, errors)
            continue
        earlier = values.get(setting.attribute)
        in_file = number < len(lines) - overrides
        if setting.many:
            # A flag beats the file, all that it says.
            others = earlier if earlier is not None and in_file else _Given((), ())
            if value in others.value:
                warnings.append(f"{line.where}: {setting.name}: {value} is given again; one of them is enough")
                continue
            values[setting.attribute] = _Given((*others.lines, line), (*others.value, value))
            continue
        if earlier is not None and in_file:
            warnings.append(f"{line.where}: {setting.name} is given again; this one counts, not {earlier.where}")
        values[setting.attribute] = _Given((line,), value)
    return values


def _conflicts(settings: Settings, path: str, given: dict[str, str]) -> Iterator[_Conflict]:
    """Yield what is wrong with settings that are good each; ``given`` is where those stand that are."""
    hop = settings.out_address
    if hop is None and not settings.transparent_proxy:
        yield _Conflict(
            f"{path}: OutAddress: is missing; give the next hop's address, or TransparentProxy: on", lack=True
        )
    if hop is not None and settings.transparent_proxy:
        place = given["out_address"]
        yield _Conflict(
            f"{place}: OutAddress: does not go with TransparentProxy: on; leave one of them out", lack=False
        )
    if settings.tls_key is not None and settings.tls_certificate is None:
        yield _Conflict(f"{given['tls_key']}: TLSKey: is of no use alone; give TLSCertificate too", lack=True)
    if settings.out_tls is OutTls.VERIFY and hop is not None and isinstance(hop.address, UnixAddress):
        text = "OutTLS: a unix socket has no name to verify; give off, or a host in OutAddress"
        yield _Conflict(f"{given['out_tls']}: {text}", lack=False)
    if settings.proxy_protocol:
        place = given["proxy_protocol"]
        if not (settings.trusted_clients.networks or settings.trusted_clients.sockets):
            yield _Conflict(f"{place}: ProxyProtocol: nobody may use it; name the proxy in TrustedClients", lack=True)
        if settings.transparent_proxy:
            text = "ProxyProtocol: does not go with TransparentProxy: on; leave one of them out"
            yield _Conflict(f"{place}: {text}", lack=False)
    listening = {listen.address.path for listen in settings.listen if isinstance(listen.address, UnixAddress)}
    if unknown := sorted(settings.trusted_clients.sockets - listening):
        text = f"TrustedClients: {printable(unknown[0])} is none of our sockets; give a path that is in Listen"
        yield _Conflict(f"{given['trusted_clients']}: {text}", lack=True)


def _raise_or_note(error: ConfigError, errors: list[str] | None) -> None:
    if errors is None:
        raise error
    errors.append(str(error))


def _read(path: str, place: str, warnings: list[str], errors: list[str] | None = None) -> list[_Line]:
    """Return the lines of the file at ``place``, which messages call ``path``; ``errors`` as in :func:`_collect`."""
    try:
        text, warning = read_settings_file(place)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; name the settings file with -f") from None
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be read: {error}; name the settings file with -f") from None
    if warning is not None:
        warnings.append(warning)
    lines = []
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.strip(" \t\r\f\v")
        if not line or line.startswith("#"):
            continue
        where = f"{path}:{number}"
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            _raise_or_note(ConfigError(f'{where}: "{printable(line)}" is no setting; write Name: value'), errors)
            continue
        lines.append(_Line(where, name.strip(), value.strip()))
    return lines


def _understand(line: _Line, folder: str, warnings: list[str]) -> tuple[Setting, Any]:
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
        parsed = setting.parse(value)
        return setting, _path_from(folder, parsed) if setting.path and parsed is not None else parsed
    except (ValueError, AddressError) as error:
        raise ConfigError(f"{where}: {printable(name)}: {printable(str(error))}") from None


_MAY_BE_EMPTY = frozenset({"admin", "header", "pid_file", "trusted_clients", "virus_action"})


def printable(text: str) -> str:
    """Keep what a stranger may have put into a file from playing with the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)
