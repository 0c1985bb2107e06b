"""The nouns that every layer may speak of: addresses, envelopes, verdicts, decisions.

Nothing here does anything. Names follow RFC 5321 (envelope, reply), RFC 5598
(next hop is the MTA that we hand the message to) and clamd(8) (verdict).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import TypeVar, dataclass_transform

__all__ = [
    "Action",
    "ActionFor",
    "Address",
    "Bounce",
    "Clean",
    "Decision",
    "Defer",
    "Deliver",
    "Drop",
    "Envelope",
    "Ground",
    "Infected",
    "Insertion",
    "Keep",
    "Listen",
    "LogFormat",
    "NextHop",
    "OutTls",
    "Oversize",
    "StartError",
    "TcpAddress",
    "TrustedClients",
    "UnixAddress",
    "Unjudged",
    "Unscanned",
    "Verdict",
    "record",
]

_Class = TypeVar("_Class")


@dataclass_transform(frozen_default=True)
def record(cls: type[_Class]) -> type[_Class]:
    """Make a slotted dataclass of ``cls``, for values of which every connection or message makes many.

    They are frozen to the type checker alone: at run time, freezing would treble what it costs to make one.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)


class StartError(Exception):
    """The daemon cannot start; ``str()`` is one line that says what is wrong and what would be right."""


class Action(enum.Enum):
    """What the settings want done with an infected message."""

    DROP = "drop"
    BOUNCE = "bounce"
    PASS = "pass"


@dataclass(frozen=True, slots=True)
class ActionFor:
    """What the settings want done with a message whose virus has a name that ``pattern`` matches.

    ``pattern`` is that of a shell: ``*``, ``?`` and ``[...]``.
    """

    pattern: str
    action: Action

    def __str__(self) -> str:
        return f"{self.pattern} {self.action.value}"


class Unjudged(enum.Enum):
    """What the settings want done with a message that no scanner has judged."""

    DEFER = "defer"
    PASS = "pass"
    BOUNCE = "bounce"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A stream socket in the file system, named by its path."""

    path: str

    def __str__(self) -> str:
        return self.path


@record
class TcpAddress:
    """A TCP end point.

    ``host`` is an IPv4 or IPv6 address without brackets, or a host name that is
    resolved anew for every connection. ``None`` means what the setting gives it:
    every local address for ``Listen``, the client's own address for ``OutAddress``
    (the loopback feature).
    """

    host: str | None
    port: int

    def __str__(self) -> str:
        if self.host is None:
            return str(self.port)
        if ":" in self.host:
            return f"[{self.host}]:{self.port}"
        return f"{self.host}:{self.port}"


Address = UnixAddress | TcpAddress


@dataclass(frozen=True, slots=True)
class Listen:
    """Where clients connect, and in what they speak.

    ``owner``, ``group`` (names or numbers) and ``mode`` are those of a unix socket; None leaves the default.
    """

    address: Address
    lmtp: bool = False
    owner: str | None = None
    group: str | None = None
    mode: int | None = None

    def __str__(self) -> str:
        return f"lmtp:{self.address}" if self.lmtp else str(self.address)


@dataclass(frozen=True, slots=True)
class NextHop:
    """The server that takes what we let through, and what it speaks."""

    address: Address
    lmtp: bool = False

    def __str__(self) -> str:
        return f"lmtp:{self.address}" if self.lmtp else str(self.address)


class LogFormat(enum.Enum):
    """What a line of the log looks like."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Keep:
    """How much stays in quarantine: what is at most ``seconds`` old, and ``octets`` of it; None for any."""

    seconds: int | None = None
    octets: int | None = None


class OutTls(enum.Enum):
    """How much TLS the next hop is asked for (the words are those of Postfix's smtp_tls_security_level)."""

    OFF = "off"
    MAY = "may"
    ENCRYPT = "encrypt"
    VERIFY = "verify"


@dataclass(frozen=True, slots=True)
class TrustedClients:
    """Those who may say who the client is: networks, and our own unix sockets by their paths."""

    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    sockets: frozenset[str] = frozenset()

    def include(self, host: str) -> bool:
        """Tell whether the IP address ``host`` is in one of the networks."""
        if not self.networks:
            return False
        address = ip_address(host)
        return any(address in network for network in self.networks)


@record
class Envelope:
    """What SMTP said about a message, beside its text (RFC 5321 section 2.3.1).

    Octets as they came over the wire, without the angle brackets: whoever shows
    them to a log, a shell or a person does the escaping that suits that place.
    ``remote`` and ``remote_helo`` come from an XFORWARD that the next hop accepted.
    """

    sender: bytes = b""
    recipients: tuple[bytes, ...] = ()
    remote: bytes | None = None
    remote_helo: bytes | None = None


@dataclass(frozen=True, slots=True)
class Clean:
    """The scanner looked at the whole message and found nothing."""


@dataclass(frozen=True, slots=True)
class Infected:
    """The scanner found a virus. ``name`` is printable ASCII without blanks."""

    name: str


@dataclass(frozen=True, slots=True)
class Unscanned:
    """There is no verdict. ``reason`` says why, for the log, in one line."""

    reason: str


@dataclass(frozen=True, slots=True)
class Oversize:
    """There is no verdict, for the scanner does not look at so much. ``reason`` is one line for the log.

    No scanner's fault and no virus: the same message will not fare better the next time.
    """

    reason: str


Verdict = Clean | Infected | Unscanned | Oversize


#: Octets to be put into a text, and how many octets of it stand in front of them.
Insertion = tuple[int, bytes]


@record
class Deliver:
    """Hand the message to the next hop with ``field`` added.

    ``field`` is a whole header field with its final CRLF, or empty. It stands on
    top of the message when ``on_top`` is true, else at the end of the header section.
    ``insertions`` go into the text as on the wire, in their order; none has a line end.
    """

    field: bytes = b""
    on_top: bool = False
    insertions: tuple[Insertion, ...] = ()


class Ground(enum.Enum):
    """Why a message is not delivered, for the client to be told."""

    VIRUS = "the scanner found a virus"
    FAILURE = "there is no verdict, or something on our side has failed"
    OVERSIZE = "the scanner does not look at so much"
    FORGERY = "too many header fields pretend to be ours"


@dataclass(frozen=True, slots=True)
class Drop:
    """Tell the client 250 and deliver nothing."""


@dataclass(frozen=True, slots=True)
class Bounce:
    """Tell the client 5xx and deliver nothing."""

    ground: Ground = Ground.VIRUS


@dataclass(frozen=True, slots=True)
class Defer:
    """Tell the client 451 and deliver nothing: it is to try again later."""

    ground: Ground = Ground.FAILURE


Decision = Deliver | Drop | Bounce | Defer
