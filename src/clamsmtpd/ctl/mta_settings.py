"""The settings that put clamsmtpd into the way of mail, for each mail server, with the very addresses in use.

They are those of the how-tos, where the reasons stand; a test keeps the two the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import NamedTuple

from clamsmtpd.config import Settings
from clamsmtpd.values import Address, Listen, TcpAddress, UnixAddress

__all__ = ["MTAS", "Block", "Unsuited", "Way", "network_of", "recognise", "settings_for"]

_LOOPBACK = "127.0.0.1"


class Unsuited(Exception):  # noqa: N818 - it says what the settings are
    """These settings do not go with that mail server; ``str()`` says why and what would be right."""


class Block(NamedTuple):
    """Lines of one file, and where they belong."""

    where: str
    text: str


class Way(NamedTuple):
    """One way to put the filter in: what it is called, and what to write where."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class _Ends:
    """Where the mail server sends mail, and where it gets it back. ``source``: our address as it sees us."""

    listen: Listen
    back: TcpAddress
    source: str
    xclient: bool

    @property
    def unix(self) -> str | None:
        return self.listen.address.path if isinstance(self.listen.address, UnixAddress) else None

    @property
    def to(self) -> TcpAddress:
        address = self.listen.address
        if isinstance(address, UnixAddress):
            raise Unsuited(f"it cannot send to the unix socket {address}; give Listen: 127.0.0.1:10025 as well")
        return TcpAddress(_host(address.host), address.port)


def network_of(address: str | None) -> str:
    """Return the network of clients to trust for one at ``address``, as Postfix writes it."""
    try:
        found = ip_address(address or _LOOPBACK)
    except ValueError:
        return "127.0.0.0/8"
    if found.version == 6:  # noqa: PLR2004 - IPv6
        return f"[{found}]/128"
    return "127.0.0.0/8" if found.is_loopback else f"{found}/32"


def recognise(banner: str) -> str | None:
    """Return which mail server greets like that, as :data:`MTAS` calls it."""
    words = banner.lower().replace("(", " ").split()
    for mta in ("opensmtpd", "postfix", "exim"):
        if mta in words:
            return mta
    return None


def settings_for(mta: str, settings: Settings, source: str | None = None) -> list[Way]:
    """Return the ways to put the filter into the mail server ``mta``, with the addresses of ``settings``.

    ``source`` is our address as it sees us, if that is known. Raises Unsuited.
    """
    return MTAS[mta](_ends(settings, source))


def _ends(settings: Settings, source: str | None) -> _Ends:
    hop = settings.out_address
    if hop is None:
        raise Unsuited(
            "with TransparentProxy the firewall sends mail here and no mail server needs settings; see the how-to "
            "about the gateway"
        )
    if hop.lmtp or isinstance(hop.address, UnixAddress):
        raise Unsuited(
            f"OutAddress {hop} is no way back into a mail server; give OutAddress: 127.0.0.1:10026, where it takes "
            "mail again, or leave its settings as they are if it only delivers to the filter"
        )
    listen = _suited(settings)
    host = _host(hop.address.host)
    return _Ends(listen, TcpAddress(host, hop.address.port), source or host, settings.xclient)


def _suited(settings: Settings) -> Listen:
    """Return the socket that suits a mail server of this host best: SMTP before LMTP, TCP before a unix socket."""
    found = [listen for listen in settings.listen if not _is_for_proxy(settings, listen.address)]
    if not found:
        raise Unsuited("ProxyProtocol is for this host as well, and mail servers do not speak it; see TrustedClients")
    return min(found, key=lambda listen: (listen.lmtp, isinstance(listen.address, UnixAddress)))


def _is_for_proxy(settings: Settings, address: Address) -> bool:
    trusted = settings.trusted_clients
    if not settings.proxy_protocol:
        return False
    if isinstance(address, UnixAddress):
        return address.path in trusted.sockets
    try:
        return trusted.include(_host(address.host))
    except ValueError:
        return False


def _host(host: str | None) -> str:
    if host in {None, "0.0.0.0"}:
        return _LOOPBACK
    return "::1" if host == "::" else str(host)


def _bracketed(address: TcpAddress) -> str:
    """Return an address as Postfix and Exim want it where a name would be looked up otherwise."""
    return f"[{address.host}]:{address.port}"


# ---- Postfix ------------------------------------------------------------------------------------


def _postfix(ends: _Ends) -> list[Way]:
    ways = []
    # Its smtp(8) knows no unix sockets, its lmtp(8) does; for smtpd_proxy_filter it is the other way round.
    if ends.unix is None or ends.listen.lmtp:
        ways.append(Way("Postfix, after the queue (Action: drop)", _after_queue(ends)))
    if not ends.listen.lmtp:
        ways.append(Way("Postfix, before the queue (Action: bounce)", _before_queue(ends)))
    return ways


def _after_queue(ends: _Ends) -> tuple[Block, ...]:
    network = network_of(ends.source)
    to = f"unix:{ends.unix}" if ends.unix is not None else _bracketed(ends.to)
    client = "lmtp" if ends.listen.lmtp else "smtp"
    return (
        Block(
            "/etc/postfix/main.cf",
            f"content_filter = scan:{to}\nreceive_override_options = no_address_mappings\n",
        ),
        Block(
            "/etc/postfix/master.cf",
            f"""\
# To the filter, 16 messages at once at the most.
scan      unix  -       -       n       -       16      {client}
  -o {client}_send_xforward_command=yes
  -o disable_mime_output_conversion=yes
# Back from the filter.
{ends.back} inet n  -       n       -       16      smtpd
  -o content_filter=
  -o receive_override_options=no_unknown_recipient_checks,no_header_body_checks,no_milters
  -o smtpd_helo_restrictions=
  -o smtpd_client_restrictions=
  -o smtpd_sender_restrictions=
  -o smtpd_relay_restrictions=
  -o smtpd_recipient_restrictions=permit_mynetworks,reject
  -o mynetworks={network}
  -o smtpd_authorized_xforward_hosts={network}
{_xclient(ends, network)}""",
        ),
    )


def _before_queue(ends: _Ends) -> tuple[Block, ...]:
    network = network_of(ends.source)
    to = f"unix:{ends.unix}" if ends.unix is not None else str(ends.to)
    return (
        Block(
            "/etc/postfix/master.cf",
            f"""\
# In place of the line "smtp inet" that there is.
smtp      inet  n       -       n       -       20      smtpd
  -o smtpd_proxy_filter={to}
  -o smtpd_proxy_timeout=600s
  -o smtpd_client_connection_count_limit=10
# Back from the filter.
{ends.back} inet n  -       n       -       -       smtpd
  -o smtpd_proxy_filter=
  -o smtpd_authorized_xforward_hosts={network}
  -o smtpd_helo_restrictions=
  -o smtpd_client_restrictions=
  -o smtpd_sender_restrictions=
  -o smtpd_relay_restrictions=
  -o smtpd_recipient_restrictions=permit_mynetworks,reject
  -o smtpd_data_restrictions=
  -o mynetworks={network}
  -o receive_override_options=no_unknown_recipient_checks
{_xclient(ends, network)}""",
        ),
    )


def _xclient(ends: _Ends, network: str) -> str:
    # Postfix offers it to those named here alone (XCLIENT_README).
    return f"  -o smtpd_authorized_xclient_hosts={network}\n" if ends.xclient else ""


# ---- Exim ---------------------------------------------------------------------------------------


def _exim(ends: _Ends) -> list[Way]:
    return [
        Way(
            "Exim",
            (
                Block(
                    "the main section of /etc/exim4/exim4.conf, in place of local_interfaces and daemon_smtp_ports",
                    f"local_interfaces = <; [0.0.0.0]:25 ; [::0]:25 ; {_bracketed(ends.back)}\n",
                ),
                Block(
                    "the first of the routers",
                    f"""\
scan:
  driver = manualroute
  condition = ${{if !eq{{$received_port}}{{{ends.back.port}}}}}
  route_list = {_exim_route(ends)}
  self = send
  transport = scan
  no_verify
""",
                ),
                Block("among the transports", f"scan:\n{_exim_transport(ends)}"),
            ),
        )
    ]


def _exim_route(ends: _Ends) -> str:
    if ends.unix is not None:
        return "*"
    if ":" in (ends.to.host or ""):
        # The usual separator is in the address; ";" is between rules.
        return f'* "<+ {_bracketed(ends.to)}"'
    return f"* {ends.to.host}::{ends.to.port}"


def _exim_transport(ends: _Ends) -> str:
    if ends.unix is not None:
        if not ends.listen.lmtp:
            raise Unsuited(
                f"Exim sends to a unix socket by LMTP alone; give Listen: 127.0.0.1:10025 or lmtp:{ends.unix}"
            )
        # A local transport: without a user, an Exim that runs as root refuses to run it.
        return f"  driver = lmtp\n  socket = {ends.unix}\n  user = Debian-exim\n"
    # The port that LMTP has without one has no number on most systems, and is asked for before the route's own is seen.
    return "  driver = smtp\n" + (f"  protocol = lmtp\n  port = {ends.to.port}\n" if ends.listen.lmtp else "")


# ---- OpenSMTPD ----------------------------------------------------------------------------------


def _opensmtpd(ends: _Ends) -> list[Way]:
    local = f"lo port {ends.back.port}" if ends.back.host == _LOOPBACK else f"{ends.back.host} port {ends.back.port}"
    return [
        Way(
            "OpenSMTPD",
            (
                Block(
                    "/etc/smtpd.conf, with your domains for example.org, and your own actions for local and out",
                    f"""\
listen on 0.0.0.0 port 25
listen on {local} tag SCANNED

action "scan" relay host {"lmtp" if ends.listen.lmtp else "smtp"}://{ends.to}
action "local" maildir
action "out" relay

match tag SCANNED for domain "example.org" action "local"
match tag SCANNED from any for any action "out"
match from any for domain "example.org" action "scan"
match from local for any action "scan"
""",
                ),
            ),
        )
    ]


#: The mail servers, by the names of the command line.
MTAS: dict[str, Callable[[_Ends], list[Way]]] = {"postfix": _postfix, "exim": _exim, "opensmtpd": _opensmtpd}
