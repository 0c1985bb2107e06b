"""The settings of mail servers that send their mail through the filter, with the addresses of its settings."""

from __future__ import annotations

from collections.abc import Callable

from clamsmtpd.config import Settings
from clamsmtpd.values import Address, TcpAddress

__all__ = ["MTAS", "settings_for"]


class _Places:
    """Where the filter listens, and where it delivers, as another program on this host says it."""

    def __init__(self, settings: Settings) -> None:
        self.front = _local(settings.listen[0].address)
        hop = settings.out_address
        self.back = _local(hop.address) if hop is not None else TcpAddress("127.0.0.1", 10026)


def _local(address: Address) -> TcpAddress:
    """Return an address to connect to; unix sockets are none for most of these."""
    if not isinstance(address, TcpAddress):
        raise TypeError(address)
    anywhere = address.host in {None, "0.0.0.0", "::", "localhost"}
    return TcpAddress("127.0.0.1" if anywhere else address.host, address.port)


def _postfix(places: _Places) -> list[tuple[str, str]]:
    front, back = places.front, places.back
    return [
        (
            "/etc/postfix/main.cf",
            f"content_filter = scan:[{front.host}]:{front.port}\nreceive_override_options = no_address_mappings\n",
        ),
        (
            "/etc/postfix/master.cf",
            (
                "# To the filter, 16 messages at once at the most.\n"
                "scan      unix  -       -       n       -       16      smtp\n"
                "  -o smtp_send_xforward_command=yes\n"
                "  -o disable_mime_output_conversion=yes\n"
                "# Back from the filter.\n"
                f"{back} inet n  -       n       -       16      smtpd\n"
                "  -o content_filter=\n"
                "  -o receive_override_options=no_unknown_recipient_checks,no_header_body_checks,no_milters\n"
                "  -o smtpd_helo_restrictions=\n"
                "  -o smtpd_client_restrictions=\n"
                "  -o smtpd_sender_restrictions=\n"
                "  -o smtpd_relay_restrictions=\n"
                "  -o smtpd_recipient_restrictions=permit_mynetworks,reject\n"
                "  -o mynetworks=127.0.0.0/8\n"
                "  -o smtpd_authorized_xforward_hosts=127.0.0.0/8\n"
            ),
        ),
    ]


def _exim(places: _Places) -> list[tuple[str, str]]:
    front, back = places.front, places.back
    return [
        (
            "main section",
            f"local_interfaces = <; [0.0.0.0]:25 ; [::0]:25 ; [{back.host}]:{back.port}\n",
        ),
        (
            "the first router",
            (
                "scan:\n"
                "  driver = manualroute\n"
                f"  condition = ${{if !eq{{$received_port}}{{{back.port}}}}}\n"
                f"  route_list = * {front.host}::{front.port}\n"
                "  self = send\n"
                "  transport = scan\n"
                "  no_verify\n"
            ),
        ),
        ("a transport", "scan:\n  driver = smtp\n"),
    ]


def _opensmtpd(places: _Places) -> list[tuple[str, str]]:
    front, back = places.front, places.back
    return [
        (
            "/etc/smtpd.conf (example.org: your own domain)",
            (
                "listen on 0.0.0.0 port 25\n"
                f"listen on lo port {back.port} tag SCANNED\n"
                "\n"
                f'action "scan" relay host smtp://{front.host}:{front.port}\n'
                'action "local" maildir\n'
                'action "out" relay\n'
                "\n"
                'match tag SCANNED for domain "example.org" action "local"\n'
                'match tag SCANNED from any for any action "out"\n'
                'match from any for domain "example.org" action "scan"\n'
                'match from local for any action "scan"\n'
            ),
        ),
    ]


#: What is known of mail servers: for each, files or places in them, and what stands there.
MTAS: dict[str, Callable[[_Places], list[tuple[str, str]]]] = {
    "postfix": _postfix,
    "exim": _exim,
    "opensmtpd": _opensmtpd,
}


def settings_for(mta: str, settings: Settings) -> list[tuple[str, str]]:
    """Return, for a mail server of ``MTAS`` on this host, each place in its settings and what belongs there.

    Raises TypeError when the filter listens or delivers at a unix socket.
    """
    return MTAS[mta](_Places(settings))
