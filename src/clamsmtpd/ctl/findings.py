"""What is to be said of good settings all the same: what will hurt, and what would be right. Nobody is asked here."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import ip_address

from clamsmtpd.config import Settings
from clamsmtpd.ctl.clamdconf import ClamdSettings
from clamsmtpd.privileges import PER_SESSION, RESERVE
from clamsmtpd.values import Address, TcpAddress, UnixAddress

__all__ = ["CertificateTimes", "Facts", "Finding", "Level", "findings", "is_here", "is_private", "is_same_path"]

#: A certificate that ends within this time should have been renewed: most are renewed a month before their end.
RENEWED_BEFORE = timedelta(days=7)

_LOCAL_NAMES = frozenset({"localhost", "ip6-localhost", "localhost.localdomain"})

_EVERYWHERE = frozenset({"0.0.0.0", "::"})

_LOOPBACK = frozenset({"127.0.0.1", "::1"})


class Level(enum.StrEnum):
    """How bad a finding is, as a compiler calls it."""

    #: The daemon would not start.
    ERROR = "error"
    #: It will hurt.
    WARNING = "warning"
    #: It could not be judged.
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to be told: ``setting`` is the attribute of Settings that it is about.

    ``number`` is that of the value, of a setting that has several.
    """

    setting: str
    text: str
    number: int = 0
    level: Level = Level.WARNING


@dataclass(frozen=True, slots=True)
class CertificateTimes:
    """From when and until when a certificate is good, and when that was asked."""

    since: datetime
    until: datetime
    now: datetime


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found on this machine; None for what could not be found out, or was not asked.

    ``clamd_fault`` says why clamd's settings could not be read, and ``next_hop_fault`` why the next hop did not say
    anything. ``next_hop_size``: octets of a message that the next hop takes, 0 for no limit. ``descriptors``: the most
    files that a process may have open. ``addresses`` has the IP addresses of each host that the settings name, as far
    as they are known, and ``own`` those IP addresses that are of this host.
    """

    clamd: ClamdSettings | None = None
    clamd_conf: str = "clamd.conf"
    clamd_fault: str = ""
    next_hop_size: int | None = None
    next_hop_fault: str = ""
    descriptors: int | None = None
    addresses: Mapping[str, frozenset[str]] = field(default_factory=dict)
    own: frozenset[str] = field(default_factory=frozenset)
    certificate: CertificateTimes | None = None


def findings(settings: Settings, facts: Facts) -> list[Finding]:
    """Return what will hurt, and what could not be judged."""
    return [
        *_unknown(settings, facts),
        *_limits(settings, facts),
        *_threads(settings, facts),
        *_elsewhere(settings, facts),
        *_exposed(settings, facts),
        *_loop(settings, facts),
        *_descriptors(settings, facts),
        *_certificate(facts),
    ]


def _unknown(settings: Settings, facts: Facts) -> Iterator[Finding]:
    if facts.clamd_fault:
        yield Finding(
            "clam_addresses",
            f"clamd's limits could not be read: {facts.clamd_fault}; name its settings file with --clamd-conf",
            level=Level.NOTE,
        )
    if facts.next_hop_fault:
        yield Finding(
            "out_address",
            f"the next hop {settings.out_address} cannot be used: {facts.next_hop_fault}; see that it runs and takes "
            "mail from here",
        )


def _limits(settings: Settings, facts: Facts) -> Iterator[Finding]:
    clamd, size = facts.clamd, facts.next_hop_size
    if clamd is None or size is None:
        return
    taken = f"takes messages of {size} octets" if size else "takes messages of any size"
    limits = [("MaxFileSize", clamd.max_file_size), ("MaxScanSize", clamd.max_scan_size)]
    if any(isinstance(address, TcpAddress) for address in settings.clam_addresses):
        limits.append(("StreamMaxLength", clamd.stream_max_length))
    for name, limit in limits:
        if limit and (not size or limit < size):
            yield Finding(
                "clam_addresses",
                f"the next hop {taken}, and clamd looks at {limit} ({name} in {facts.clamd_conf}): what is larger is "
                f"dealt with as Oversize says ({settings.oversize.value}); raise {name}, or lower the next hop's limit",
            )


def _threads(settings: Settings, facts: Facts) -> Iterator[Finding]:
    clamd = facts.clamd
    if clamd is None:
        return
    scanners = len(settings.clam_addresses)
    if clamd.max_threads * scanners < settings.max_connections:
        yield Finding(
            "max_connections",
            f"MaxConnections is {settings.max_connections}, and clamd scans {clamd.max_threads} messages at once "
            f"(MaxThreads in {facts.clamd_conf}): with more of them each waits for another; raise MaxThreads if there "
            "are processors for it, or lower MaxConnections",
        )
    if clamd.max_queue * scanners < settings.max_connections:
        yield Finding(
            "max_connections",
            f"MaxConnections is {settings.max_connections}, and clamd lets {clamd.max_queue} wait (MaxQueue in "
            f"{facts.clamd_conf}); raise MaxQueue",
        )


def _elsewhere(settings: Settings, facts: Facts) -> Iterator[Finding]:
    """Clamd on this host, and asked for where it does not listen. Its path is not the same everywhere."""
    clamd = facts.clamd
    if clamd is None or clamd.local_socket is None:
        return
    here = [address for address in settings.clam_addresses if is_here(address, facts)]
    for address in here:
        if isinstance(address, UnixAddress):
            if is_same_path(address.path, clamd.local_socket):
                return
        elif address.port == clamd.tcp_port:
            return
    if here:
        yield Finding(
            "clam_addresses",
            f"clamd listens at {clamd.local_socket} (LocalSocket in {facts.clamd_conf}), and is looked for at "
            f"{here[0]}; give ClamAddress: {clamd.local_socket}",
            settings.clam_addresses.index(here[0]),
        )


def is_same_path(one: str, other: str) -> bool:
    """Whether two paths are the same but for /var/run, which is a link to /run on all systems of these days."""
    return _without_var(one) == _without_var(other)


def _without_var(path: str) -> str:
    return path.removeprefix("/var") if path.startswith("/var/run/") else path


def _exposed(settings: Settings, facts: Facts) -> Iterator[Finding]:
    for number, address in enumerate(settings.clam_addresses):
        if not is_here(address, facts):
            yield Finding(
                "clam_addresses",
                f"mail goes to clamd at {address} in plain text, and whoever reaches that port can stop clamd with one "
                "word (SHUTDOWN); keep the way there private",
                number,
            )
    clamd = facts.clamd
    if clamd is not None and clamd.tcp_port:
        open_at = [host for host in clamd.tcp_addresses or ("all addresses",) if not _is_loopback(host)]
        if open_at:
            yield Finding(
                "clam_addresses",
                f"clamd listens on port {clamd.tcp_port} of {', '.join(open_at)}, and whoever reaches it can stop it "
                f"with one word (SHUTDOWN); give TCPAddr 127.0.0.1 in {facts.clamd_conf}, or LocalSocket in place of "
                "TCPSocket",
            )
    if settings.admin is not None and not is_private(settings.admin.address):
        yield Finding(
            "admin",
            f"Admin is at {settings.admin.address}, where nobody is asked for a password; give the path of a unix "
            "socket, or an address of this host alone",
        )


def _loop(settings: Settings, facts: Facts) -> Iterator[Finding]:
    hop = settings.out_address
    if hop is None:
        return
    for listen in settings.listen:
        if _leads_to(hop.address, listen.address, facts):
            yield Finding(
                "out_address",
                f"OutAddress {hop.address} is where this filter listens itself ({listen.address}): all mail would loop "
                "and be refused; give the address of the next hop",
            )
        elif _leads_back(hop.address, listen.address):
            yield Finding(
                "out_address",
                f"OutAddress {hop.address} is that port of each client's own host, and this filter listens there "
                f"({listen.address}): mail of clients on this host would loop and be refused; give another port",
            )


def _leads_to(one: Address, place: Address, facts: Facts) -> bool:
    if isinstance(one, UnixAddress) or isinstance(place, UnixAddress):
        return one == place
    if one.port != place.port or one.host is None:
        return False
    there = _addresses(one.host, facts)
    if place.host is None or place.host in _EVERYWHERE:
        return any(_is_loopback(host) or host in facts.own for host in there)
    return not there.isdisjoint(_addresses(place.host, facts))


def _leads_back(one: Address, place: Address) -> bool:
    """Whether clients on this host have us at that port, where a next hop is the client's own host."""
    if isinstance(one, UnixAddress) or isinstance(place, UnixAddress) or one.host is not None:
        return False
    return one.port == place.port


def _addresses(host: str, facts: Facts) -> frozenset[str]:
    """Return the IP addresses of a host, as far as they are known; a connection to none in particular is to itself."""
    if host in _EVERYWHERE or host.lower() in _LOCAL_NAMES:
        return _LOOPBACK
    return facts.addresses.get(host) or frozenset({host})


def is_here(address: Address, facts: Facts) -> bool:
    """Whether an address to connect to is of this host, as far as that is known."""
    if isinstance(address, UnixAddress):
        return True
    return address.host is not None and all(
        _is_loopback(host) or host in facts.own for host in _addresses(address.host, facts)
    )


def is_private(address: Address) -> bool:
    """Whether nobody but this host can reach an address to listen on."""
    return isinstance(address, UnixAddress) or (address.host is not None and _is_loopback(address.host))


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() in _LOCAL_NAMES


def _descriptors(settings: Settings, facts: Facts) -> Iterator[Finding]:
    wanted = settings.max_connections * PER_SESSION + RESERVE
    if facts.descriptors is not None and facts.descriptors < wanted:
        yield Finding(
            "max_connections",
            f"MaxConnections is {settings.max_connections}, which takes {wanted} descriptors, and the limit here is "
            f"{facts.descriptors} (ulimit -Hn, LimitNOFILE=); raise it, or lower MaxConnections",
        )


def _certificate(facts: Facts) -> Iterator[Finding]:
    times = facts.certificate
    if times is None:
        return
    if times.now >= times.until:
        yield Finding("tls_certificate", f"the certificate has ended on {times.until:%Y-%m-%d}; renew it")
    elif times.now < times.since:
        yield Finding(
            "tls_certificate", f"the certificate begins on {times.since:%Y-%m-%d}; give one that is good today"
        )
    elif times.until - times.now < RENEWED_BEFORE:
        yield Finding(
            "tls_certificate",
            f"the certificate ends on {times.until:%Y-%m-%d}; renew it, and see why that was not done before",
        )
