"""Who the client is, as XCLIENT and XFORWARD say it (Postfix XCLIENT_README, XFORWARD_README)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv6Address, ip_address

from clamsmtpd.smtp.syntax import decode_xtext, xtext
from clamsmtpd.values import record

__all__ = ["XCLIENT_ATTRIBUTES", "Identity", "IdentityError", "attribute_lines"]

#: Attributes of XCLIENT, in the order in which we name them.
XCLIENT_ATTRIBUTES = (b"NAME", b"ADDR", b"PORT", b"PROTO", b"HELO", b"LOGIN", b"DESTADDR", b"DESTPORT")

#: Octets of a command line with its CRLF (RFC 5321 section 4.5.3.1.4).
_LINE_MAX = 512

#: Octets of a value. Nothing that is a name, a mailbox or an address is longer (RFC 5321 section 4.5.3.1).
_VALUE_MAX = 255

_PORT_MAX = 65535

_UNAVAILABLE = b"[UNAVAILABLE]"
_NO_VALUE = frozenset({b"", _UNAVAILABLE, b"[TEMPUNAVAIL]"})

_XTEXT = re.compile(rb"(?:[!-*,-<>-~]|\+[0-9A-Fa-f]{2}|=)*")
_PRINTABLE = re.compile(rb"[!-~]*")


class IdentityError(ValueError):
    """An attribute that cannot be used; ``str()`` says what is wrong with it."""


@record
class Identity:
    """The client of a session. Octets without their encoding; None stands for what is not known.

    ``address`` and ``destination`` are IP addresses in Python's notation, ``destination`` being where the client
    connected to. ``learnt``: somebody who is trusted said so; otherwise they are the ends of its connection.
    """

    address: str | None = None
    port: int | None = None
    name: bytes | None = None
    helo: bytes | None = None
    protocol: bytes | None = None
    login: bytes | None = None
    destination: str | None = None
    destination_port: int | None = None
    learnt: bool = False

    def taking(self, argument: bytes) -> Identity:
        """Return the identity as the argument of an XCLIENT command changes it.

        What the command does not name stays. Raises :class:`IdentityError`.
        """
        changes: dict[str, object] = {}
        for word in argument.split():
            name, equals, value = word.partition(b"=")
            field = _FIELDS.get(name.upper())
            if field is None or not equals:
                raise IdentityError(f"{_show(name)} is no attribute")
            if value.upper() in _NO_VALUE:
                changes[field] = None
                continue
            if not _XTEXT.fullmatch(value):
                raise IdentityError(f"the value of {_show(name)} is no xtext")
            changes[field] = _understand(field, decode_xtext(value))
        if not changes:
            raise IdentityError("an attribute is missing")
        return replace(self, learnt=True, **changes)  # type: ignore[arg-type]

    def xclient(self, offered: Iterable[bytes], *, helo: bytes, protocol: bytes) -> list[bytes]:
        """Return the command lines that tell all of this to a next hop that takes the attributes ``offered``.

        ``helo`` and ``protocol`` are what the client said itself, where nobody who is trusted said otherwise.
        """
        return attribute_lines(b"XCLIENT", self._attributes(offered, helo, protocol))

    def xforward(self, offered: Iterable[bytes], *, helo: bytes, protocol: bytes) -> list[bytes]:
        """Like :meth:`xclient`, with XFORWARD, which only changes what the next hop logs."""
        wanted = set(offered) & {b"NAME", b"ADDR", b"PORT", b"PROTO", b"HELO"}
        return attribute_lines(b"XFORWARD", self._attributes(wanted, helo, protocol))

    def _attributes(self, offered: Iterable[bytes], helo: bytes, protocol: bytes) -> list[tuple[bytes, bytes]]:
        names = frozenset(offered)
        values = {
            b"NAME": _encode(self.name),
            b"ADDR": _encode_address(self.address),
            b"PORT": _encode_port(self.port),
            b"PROTO": _encode(self.protocol or protocol),
            b"HELO": _encode(self.helo or helo or None),
            b"LOGIN": _encode(self.login),
            b"DESTADDR": _encode_address(self.destination),
            b"DESTPORT": _encode_port(self.destination_port),
        }
        # NAME is sent even if there is none: the next hop would go on believing our name beside the
        # client's address.
        return [(name, values[name]) for name in XCLIENT_ATTRIBUTES if name in names]


_FIELDS = {
    b"NAME": "name",
    b"ADDR": "address",
    b"PORT": "port",
    b"PROTO": "protocol",
    b"HELO": "helo",
    b"LOGIN": "login",
    b"DESTADDR": "destination",
    b"DESTPORT": "destination_port",
}


def _understand(field: str, value: bytes) -> object:
    if field in {"address", "destination"}:
        return _address(value)
    if field in {"port", "destination_port"}:
        if value.isdigit() and len(value) <= len(str(_PORT_MAX)) and int(value) <= _PORT_MAX:
            return int(value)
        raise IdentityError(f"{_show(value)} is no port")
    if field == "protocol" and value.upper() not in {b"SMTP", b"ESMTP"}:
        raise IdentityError(f"{_show(value)} is no protocol; there are SMTP and ESMTP")
    if len(value) > _VALUE_MAX:
        raise IdentityError(f"{_show(value[:20])}... is too long")
    # It goes to logs, header fields and other servers.
    if not _PRINTABLE.fullmatch(value) and not _is_utf8(value):
        raise IdentityError(f"{_show(value)} holds control characters")
    return value


def _is_utf8(value: bytes) -> bool:
    try:
        return value.decode("utf-8").isprintable()
    except UnicodeDecodeError:
        return False


def _address(value: bytes) -> str:
    text = value.decode("latin-1")
    tagged = text[:5].upper() == "IPV6:"
    try:
        address = ip_address(text[5:] if tagged else text)
    except ValueError:
        raise IdentityError(f"{_show(value)} is no IP address") from None
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            raise IdentityError(f"{_show(value)} has a zone, which means nothing to others")
        return str(address.ipv4_mapped or address)
    if tagged:
        raise IdentityError(f"{_show(value)} is no IPv6 address")
    return str(address)


def _encode(value: bytes | None) -> bytes:
    return _UNAVAILABLE if value is None else xtext(value)


def _encode_address(address: str | None) -> bytes:
    if address is None:
        return _UNAVAILABLE
    return (f"IPV6:{address}" if ":" in address else address).encode("ascii")


def _encode_port(port: int | None) -> bytes:
    return _UNAVAILABLE if port is None else b"%d" % port


def attribute_lines(verb: bytes, attributes: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """Write attributes, by name and encoded value, in as few lines of that command as have room for them.

    A value for which no line is long enough is not known to the next hop then.
    """
    lines: list[bytes] = []
    words: list[bytes] = []
    length = 0
    room = _LINE_MAX - len(verb) - len(b"\r\n")
    for name, value in attributes:
        word = b"%b=%b" % (name, value)
        if len(word) + 1 > room:
            word = b"%b=%b" % (name, _UNAVAILABLE)
        if words and length + len(word) + 1 > room:
            lines.append(b"%b %b\r\n" % (verb, b" ".join(words)))
            words, length = [], 0
        words.append(word)
        length += len(word) + 1
    if words:
        lines.append(b"%b %b\r\n" % (verb, b" ".join(words)))
    return lines


def _show(value: bytes) -> str:
    return value.decode("latin-1")
