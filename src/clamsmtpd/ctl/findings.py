"""What is to be said of good settings all the same: what will hurt, and what would be right. Nobody is asked here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address

from clamsmtpd.config import Settings
from clamsmtpd.ctl.clamdconf import ClamdSettings
from clamsmtpd.values import Address, TcpAddress, UnixAddress

__all__ = ["Facts", "Finding", "findings", "is_local"]

#: Descriptors that a client takes, with its next hop, its message and a scan.
_DESCRIPTORS = 4

_LOCAL_NAMES = frozenset({"localhost", "ip6-localhost", "localhost.localdomain"})


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that will hurt: ``setting`` is the attribute of Settings that it is about."""

    setting: str
    text: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found on this machine; None for what could not be found out.

    ``next_hop_size``: octets of a message that the next hop takes, 0 for no limit. ``descriptors``: the hard limit of
    open files. ``own_hosts``: addresses of this host.
    """

    clamd: ClamdSettings | None = None
    clamd_conf: str = "clamd.conf"
    next_hop_size: int | None = None
    descriptors: int | None = None
    own_hosts: frozenset[str] = field(default_factory=frozenset)


def findings(settings: Settings, facts: Facts) -> list[Finding]:
    """Return what will hurt."""
    return [
        *_limits(settings, facts),
        *_threads(settings, facts),
        *_exposed(settings, facts),
        *_loop(settings, facts),
        *_descriptors(settings, facts),
    ]


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


def _exposed(settings: Settings, facts: Facts) -> Iterator[Finding]:
    for address in settings.clam_addresses:
        if not is_local(address):
            yield Finding(
                "clam_addresses",
                f"mail goes to clamd at {address} in plain text, and whoever reaches that port can stop clamd with one "
                "word; keep the way there private",
            )
    clamd = facts.clamd
    if clamd is not None and clamd.tcp_port and clamd.tcp_address is None:
        yield Finding(
            "clam_addresses",
            f"clamd listens on port {clamd.tcp_port} of all addresses, and whoever reaches it can stop it with one "
            f"word; give TCPAddr in {facts.clamd_conf}, or LocalSocket in place of TCPSocket",
        )
    if settings.admin is not None and not is_local(settings.admin.address):
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
        if _leads_to(hop.address, listen.address, facts.own_hosts):
            yield Finding(
                "out_address",
                f"OutAddress {hop.address} is where this filter listens itself ({listen.address}): all mail would loop "
                "and be refused; give the address of the next hop",
            )


def _leads_to(one: Address, place: Address, own: frozenset[str]) -> bool:
    if isinstance(one, UnixAddress) or isinstance(place, UnixAddress):
        return one == place
    if one.port != place.port or one.host is None:
        return False
    if place.host is None or place.host in {"0.0.0.0", "::"}:
        return is_local(one) or one.host in own
    return one.host == place.host or (is_local(one) and is_local(place))


def is_local(address: Address) -> bool:
    """Tell whether only this host itself gets there."""
    if isinstance(address, UnixAddress):
        return True
    if address.host is None:
        return False
    try:
        return ip_address(address.host).is_loopback
    except ValueError:
        return address.host.lower() in _LOCAL_NAMES


def _descriptors(settings: Settings, facts: Facts) -> Iterator[Finding]:
    wanted = settings.max_connections * _DESCRIPTORS
    if facts.descriptors is not None and facts.descriptors < wanted:
        yield Finding(
            "max_connections",
            f"MaxConnections is {settings.max_connections}, which takes {wanted} descriptors, and the limit here is "
            f"{facts.descriptors} (ulimit -Hn, LimitNOFILE=); raise it, or lower MaxConnections",
        )
