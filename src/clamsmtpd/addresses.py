"""How a socket address is written in the settings."""

from __future__ import annotations

import ipaddress
import re

from clamsmtpd.values import Address, TcpAddress, UnixAddress

__all__ = ["AddressError", "parse_address"]

# sockaddr_un.sun_path of Linux holds 108 octets, the last of them NUL.
_PATH_MAX = 107
_PORT_MAX = 65535

# RFC 1123 section 2.1; underscores are not in it and in use all the same.
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(?:\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")

_FORMS = "give a port, an IP address or host name, either with :PORT, [IPv6]:PORT, or the full path of a unix socket"


class AddressError(ValueError):
    """The text is no address; ``str()`` says what is wrong and what would be right."""


def parse_address(text: str, *, default_port: int, default_host: str | None) -> Address:
    """Return the address that ``text`` stands for.

    ``default_port`` is for an address alone, ``default_host`` for a port alone (see ``TcpAddress`` for what
    None means). Raises :class:`AddressError`.
    """
    if text.startswith("/"):
        if len(text.encode("utf-8", "surrogateescape")) > _PATH_MAX:
            raise AddressError(f"the path of a unix socket has at most {_PATH_MAX} octets")
        return UnixAddress(text)
    if text.isascii() and text.isdigit():
        return TcpAddress(default_host, _parse_port(text))
    if text.startswith("["):
        inside, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")) or not _is_ip(inside, 6):
            raise AddressError(f'"{text}" is no address; write [IPv6]:PORT')
        return TcpAddress(inside, _parse_port(rest[1:]) if rest else default_port)
    if text.count(":") > 1:
        if not _is_ip(text, 6):
            raise AddressError(f'"{text}" is no address; {_FORMS}')
        return TcpAddress(text, default_port)
    host, colon, port = text.partition(":")
    digits_only = re.fullmatch(r"[0-9.]+", host) is not None
    if not (_is_ip(host, 4) if digits_only else _HOST_NAME.fullmatch(host)):
        raise AddressError(f'"{text}" is no address; {_FORMS}')
    return TcpAddress(host, _parse_port(port) if colon else default_port)


def _is_ip(text: str, version: int) -> bool:
    try:
        return ipaddress.ip_address(text).version == version
    except ValueError:
        return False


def _parse_port(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= len(str(_PORT_MAX)) and 0 < int(text) <= _PORT_MAX:
        return int(text)
    raise AddressError(f'"{text}" is no port; give a number from 1 to {_PORT_MAX}')
