"""What the settings meet on this machine: what the daemon would say when it starts here, and the facts for findings."""

from __future__ import annotations

import dataclasses
import errno
import functools
import importlib.util
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TypeVar

from clamsmtpd.config import Settings
from clamsmtpd.ctl.asking import ServerError, greet
from clamsmtpd.ctl.asuser import as_user
from clamsmtpd.ctl.certificate import validity
from clamsmtpd.ctl.clamdconf import parse_clamd_conf
from clamsmtpd.ctl.findings import CertificateTimes, Facts, Finding, Level, is_here
from clamsmtpd.listeners import find_owner
from clamsmtpd.log import describe
from clamsmtpd.privileges import look_up
from clamsmtpd.readiness import is_known_beforehand
from clamsmtpd.tempdirectory import check_temp_directory
from clamsmtpd.tls import Certificate, client_context
from clamsmtpd.values import Listen, NextHop, StartError, TcpAddress

__all__ = ["CLAMD_CONF", "begin", "facts_for", "place_check", "start"]

#: Where clamd's settings are, if nobody says anything else.
CLAMD_CONF = "/etc/clamav/clamd.conf"

#: Seconds for all that the network is asked.
ASK_LIMIT = 8.0

_ADMIN_LIBRARIES = ("h11", "prometheus_client")

#: The most files that root can let a process have open (proc(5)).
_MOST_FILES = "/proc/sys/fs/nr_open"

_AS_ROOT = "run clamsmtpctl check as root"

_Answer = TypeVar("_Answer")


# ---- what the daemon would say ----------------------------------------------------------------


def start(settings: Settings) -> list[Finding]:
    """Return what would keep the daemon from starting on this machine, what it would warn of, and what we may not see.

    That it is root and need not be is not among it: a service manager may have a user for it.
    """
    found: list[Finding] = []

    def judge(setting: str, find_out: Callable[[], object], number: int = 0) -> None:
        try:
            find_out()
        except StartError as error:
            found.append(Finding(setting, str(error), number, Level.ERROR))

    if settings.user is not None:
        # Not find_user(): that we cannot become that user now does not say that the daemon cannot.
        judge("user", functools.partial(look_up, settings.user))
    judge("out_tls", functools.partial(client_context, settings.out_tls))
    for number, place in enumerate(settings.listen):
        judge("listen", functools.partial(_check_place_to_listen, place, "Listen"), number)
    if settings.admin is not None:
        judge("admin", functools.partial(_check_place_to_listen, settings.admin, "Admin"))
        judge("admin", _check_admin_libraries)
    return [*found, *_certificate(settings), *_place(settings)]


def _check_place_to_listen(place: Listen, setting: str) -> None:
    """Raise StartError for owners that do not exist and addresses that are not here.

    Not for a port in use: it may well be the daemon that has it.
    """
    find_owner(place, setting)
    address = place.address
    if isinstance(address, TcpAddress) and address.host is not None and _is_own(address.host) is False:
        raise StartError(f"{setting}: {address}: this host has no such address; give one of its own, or a port alone")


def _check_admin_libraries() -> None:
    for library in _ADMIN_LIBRARIES:
        if importlib.util.find_spec(library) is None:
            raise StartError(
                f"Admin: the Python library {library} is missing; install clamsmtpd[admin], or leave Admin out"
            )


def _certificate(settings: Settings) -> Iterator[Finding]:
    if settings.tls_certificate is None:
        return
    if closed := _closed(settings.tls_certificate, settings.tls_key):
        yield Finding("tls_certificate", f"{closed} is not for us to read; {_AS_ROOT}", level=Level.NOTE)
        return
    try:
        certificate = Certificate(settings.tls_certificate, settings.tls_key)
    except StartError as error:
        yield Finding("tls_certificate", str(error), level=Level.ERROR)
        return
    if text := as_user(settings.user, certificate.renewable):
        yield Finding("tls_certificate", text)


def _closed(*names: str | None) -> str:
    """Return the first of the files that root could read and we cannot; empty if there is none."""
    for name in names:
        if name is not None and os.geteuid() != 0:
            try:
                os.close(os.open(name, os.O_RDONLY | os.O_NONBLOCK))
            except PermissionError:
                return name
            except OSError:
                continue
    return ""


def _place(settings: Settings) -> Iterator[Finding]:
    if _is_for_another(settings.user):
        text = f"TempDirectory could not be judged with the rights of {settings.user}; {_AS_ROOT}"
        yield Finding("temp_directory", text, level=Level.NOTE)
        return
    trouble, warnings = place_check(settings)
    if trouble:
        yield Finding("temp_directory", trouble, level=Level.ERROR)
    for text in warnings:
        yield Finding("temp_directory", text)


def _is_for_another(user: str | None) -> bool:
    """Whether the daemon becomes a user whose rights we cannot have."""
    if user is None or os.geteuid() == 0:
        return False
    try:
        return look_up(user).pw_uid != os.geteuid()
    except StartError:
        return False


def place_check(settings: Settings) -> tuple[str, list[str]]:
    """Judge TempDirectory as the user that the daemon becomes, as far as we may; return an error and warnings."""
    trouble, warnings = as_user(settings.user, lambda: _check_directory(settings.temp_directory))
    return trouble, warnings


def _check_directory(path: str) -> tuple[str, list[str]]:
    try:
        return "", check_temp_directory(path)
    except StartError as error:
        return str(error), []


# ---- facts ------------------------------------------------------------------------------------


def facts_for(settings: Settings, clamd_conf: str | None, *, offline: bool) -> Facts:
    """Find out what findings need, in a few seconds; ``clamd_conf`` None: where it usually is."""
    deadline = time.monotonic() + ASK_LIMIT
    # Both at once; and in threads of their own, as a resolver takes as long as it likes.
    addresses = begin(lambda: {host: _resolve(host, offline=offline) for host in _hosts(settings)})
    hop = settings.out_address
    answer = begin(functools.partial(_ask, hop)) if hop is not None and not offline else None
    found = addresses(deadline) or {}
    # That a name is not known in time says nothing of the next hop, and that is asked by its name, too.
    size, fault = (None, "") if answer is None else answer(deadline) or (None, "no answer in time")
    facts = Facts(
        clamd_conf=CLAMD_CONF if clamd_conf is None else clamd_conf,
        next_hop_size=size,
        next_hop_fault=fault,
        descriptors=_most_descriptors(),
        addresses=found,
        own=frozenset(host for hosts in found.values() for host in hosts if _is_own(host)),
        certificate=_certificate_times(settings),
    )
    return _with_clamd(settings, facts, named=clamd_conf is not None)


def begin(work: Callable[[], _Answer]) -> Callable[[float], _Answer | None]:
    """Begin to find something out; return what waits for it until a time, and gives None if it has not come."""
    answers: list[_Answer] = []
    thread = threading.Thread(target=lambda: answers.append(work()), daemon=True)
    thread.start()

    def wait(deadline: float) -> _Answer | None:
        thread.join(max(deadline - time.monotonic(), 0.0))
        return answers[0] if answers else None

    return wait


def _hosts(settings: Settings) -> set[str]:
    """Return the hosts that the settings name."""
    addresses = [*settings.clam_addresses, *(place.address for place in settings.listen)]
    if settings.out_address is not None:
        addresses.append(settings.out_address.address)
    return {address.host for address in addresses if isinstance(address, TcpAddress) and address.host is not None}


def _resolve(host: str, *, offline: bool) -> frozenset[str]:
    """Return the IP addresses of a host; none if they are not known."""
    flags = socket.AI_NUMERICHOST if offline else 0
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=flags)
    except (OSError, UnicodeError):
        # UnicodeError: a name that the resolver cannot even encode.
        return frozenset()
    return frozenset(str(name[0]) for _, _, _, _, name in found)


def _is_own(host: str) -> bool | None:
    """Tell whether an IP address is of this host; None for a name, and where that cannot be told."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as sock:
            # At any port: nobody who listens there is disturbed. A name would be looked up, for as long as that takes.
            socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
            sock.bind((host, 0))
    except OSError as error:
        return False if error.errno == errno.EADDRNOTAVAIL else None
    return True


def _ask(hop: NextHop) -> tuple[int | None, str]:
    """Return how large a message the next hop takes, and why it does not say."""
    if not is_known_beforehand(hop):
        return None, ""
    try:
        return greet(hop.address, lmtp=hop.lmtp, limit=ASK_LIMIT).size, ""
    except ServerError as error:
        return None, str(error)


def _most_descriptors() -> int | None:
    """Return how many files a process may have open: root may raise the limit, up to that of the kernel."""
    if os.geteuid() == 0:
        try:
            with open(_MOST_FILES, encoding="ascii") as file:
                return int(file.read())
        except (OSError, ValueError):
            return None
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return None if hard == resource.RLIM_INFINITY else hard


def _certificate_times(settings: Settings) -> CertificateTimes | None:
    """Return None where there is none, and where it cannot be read, which is told elsewhere."""
    if settings.tls_certificate is None:
        return None
    try:
        with open(settings.tls_certificate, encoding="ascii", errors="replace") as file:
            return CertificateTimes(*validity(file.read()), datetime.now(UTC))
    except (OSError, ValueError):
        return None


def _with_clamd(settings: Settings, facts: Facts, *, named: bool) -> Facts:
    """Add clamd's own settings, or why they could not be read. Those of this host are not those of another's clamd."""
    if not named and not any(is_here(address, facts) for address in settings.clam_addresses):
        return dataclasses.replace(facts, clamd_fault="it is on another host")
    try:
        with open(facts.clamd_conf, encoding="utf-8", errors="replace") as file:
            return dataclasses.replace(facts, clamd=parse_clamd_conf(file.read()))
    except OSError as error:
        return dataclasses.replace(facts, clamd_fault=f"{facts.clamd_conf}: {describe(error)}")
