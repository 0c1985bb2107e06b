"""Asking a server as a client would: what it greets with and offers. For SMTP and LMTP, TCP and unix sockets."""

from __future__ import annotations

import smtplib
import socket
from dataclasses import dataclass

from clamsmtpd.smtp import replies
from clamsmtpd.values import Address, UnixAddress

__all__ = ["Client", "Greeting", "ServerError", "greet"]

#: Seconds for each step.
LIMIT = 10.0


class ServerError(Exception):
    """A server cannot be used; ``str()`` is one line."""


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a server says of itself: its first line, and the keywords that it offers, with what stands behind each."""

    banner: str
    offers: dict[str, str]

    @property
    def size(self) -> int:
        """Octets of a message that it takes (RFC 1870); 0 for no limit."""
        words = self.offers.get("size", "").split()
        return int(words[0]) if words and words[0].isdigit() else 0


class Client(smtplib.SMTP):
    """A client for any address, that says who it is as the daemon does. Raises ServerError from :meth:`begin`."""

    def __init__(self, address: Address, *, lmtp: bool = False, limit: float = LIMIT) -> None:
        super().__init__(local_hostname=replies.NAME.decode(), timeout=limit)
        self._address = address
        self.banner = ""
        if lmtp:
            self.ehlo_msg = "lhlo"

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        if isinstance(self._address, UnixAddress):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(timeout)
            try:
                sock.connect(self._address.path)
            except OSError:
                sock.close()
                raise
            return sock
        return socket.create_connection((host, port), timeout)

    def begin(self) -> Greeting:
        """Connect and say hello."""
        address = self._address
        host, port = (
            ("localhost", 25) if isinstance(address, UnixAddress) else (address.host or "127.0.0.1", address.port)
        )
        try:
            code, text = self.connect(host, port)
            self.banner = text.decode("utf-8", "backslashreplace")
            if code != 220:  # noqa: PLR2004 - RFC 5321 section 4.2
                raise ServerError(f"it greets with {code} {self.banner}")
            code, text = self.ehlo()
            if code in {500, 502} and self.ehlo_msg == "ehlo":
                code, text = self.helo()
            if code != 250:  # noqa: PLR2004
                raise ServerError(f"it answers {self.ehlo_msg.upper()} with {code} {text.decode('utf-8', 'replace')}")
        except smtplib.SMTPServerDisconnected as error:
            raise ServerError(f"it hangs up: {error}") from None
        except (OSError, smtplib.SMTPException, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error) or "no answer in time"
            raise ServerError(str(why)) from None
        return Greeting(self.banner, dict(self.esmtp_features))

    def leave(self) -> None:
        """Say goodbye, whatever comes of it."""
        try:
            self.quit()
        except (OSError, smtplib.SMTPException):
            pass
        finally:
            self.close()


def greet(address: Address, *, lmtp: bool = False, limit: float = LIMIT) -> Greeting:
    """Return how a server greets and what it offers. Raises ServerError."""
    client = Client(address, lmtp=lmtp, limit=limit)
    try:
        return client.begin()
    finally:
        client.leave()
