"""Getting a message out of quarantine: to its recipients, by the next hop, with a field that says so.

What is about to be done is written down before, and what came of it after: a message is not given twice by accident.
"""

from __future__ import annotations

import contextlib
import os
import smtplib
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass

from clamsmtpd.quarantine.index import Entry, Index, Release, open_kept
from clamsmtpd.smtp.body import EndOfData, Stuffing
from clamsmtpd.values import NextHop, OutTls, UnixAddress

__all__ = ["Courier", "Outcome", "release"]

_PIECE = 262144

#: RFC 5321 section 4.5.3.2: the longest of a client's time-outs, the one behind the final dot.
TIME_OUT = 600.0

#: Seconds for the answer to QUIT, with which nothing depends on it any more.
QUIT_TIME_OUT = 5.0

_POSITIVE = range(200, 300)
_START_MAIL_INPUT = 354
_READY = 220


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a release came to: for whom it was done now, and who had it before or may have had it."""

    done: tuple[Release, ...] = ()
    held: tuple[Release, ...] = ()


class _RefusedError(Exception):
    """The next hop did not take it, for a reply or a fault in front of the text's end."""


class _Client(smtplib.SMTP):
    """smtplib's dialogue, over a path where the next hop has one, and with octets as commands."""

    def __init__(self, hop: NextHop) -> None:
        self._hop = hop
        self.ehlo_word = "lhlo" if hop.lmtp else "ehlo"
        # The name given: smtplib would otherwise ask the DNS for it.
        super().__init__(local_hostname=socket.gethostname() or "localhost", timeout=TIME_OUT)
        self._host = getattr(hop.address, "host", "localhost")
        code, text = self.connect(self._host, getattr(hop.address, "port", 0) or 25)
        if code != _READY:
            self.close()
        _expect("the greeting", code, text, _READY)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        # Not QUIT after a fault: in the midst of a text it would be text.
        if kind is None:
            with contextlib.suppress(OSError, smtplib.SMTPException):
                # What came of the message is known, and is yet to be written down.
                if self.sock is not None:
                    self.sock.settimeout(QUIT_TIME_OUT)
                self.docmd("QUIT")
        self.close()

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        address = self._hop.address
        if isinstance(address, UnixAddress):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(timeout)
            sock.connect(address.path)
            return sock
        return socket.create_connection((host, port), timeout)

    def hello(self) -> None:
        """Say who we are."""
        code, text = self.docmd(self.ehlo_word, self.local_hostname)
        _expect("EHLO", code, text, 250)
        lines = text.decode("latin-1").upper().splitlines()
        self.esmtp_features = {line.split(" ")[0]: line for line in lines[1:]}

    def command(self, line: bytes) -> tuple[int, bytes]:
        """Send one command."""
        if b"\r" in line or b"\n" in line or b"\0" in line:
            raise _RefusedError("an address has a line end or NUL")
        assert self.sock is not None  # noqa: S101 - connected since the constructor
        self.sock.sendall(line + b"\r\n")
        return self.getreply()


def _expect(what: str, code: int, text: bytes, wanted: int | range) -> None:
    if code not in (wanted if isinstance(wanted, range) else (wanted,)):
        raise _RefusedError(f"{what}: {_reply(code, text)}")


def _reply(code: int, text: bytes) -> str:
    return f"{code} {text.decode('latin-1')}".replace("\n", " ")


class Courier:
    """Delivers by ``hop``, with as much TLS as ``level`` says; ``context`` is that of :func:`tls.client_context`."""

    def __init__(self, hop: NextHop, level: OutTls, context: ssl.SSLContext | None) -> None:
        self._hop = hop
        self._level = level
        self._context = context

    def deliver(self, sender: bytes, recipients: list[bytes], pieces: Iterator[bytes]) -> dict[bytes, tuple[str, str]]:
        """Hand a text over; return for each recipient the state and the reply.

        States are those of :class:`index.Release`. "releasing" is the state when the connection broke behind the
        end of the text: nobody knows whether it was taken.
        """
        refused: dict[bytes, tuple[str, str]] = {}
        ended = False
        taken: list[bytes] = []
        try:
            with _Client(self._hop) as client:
                self._secure(client)
                utf8 = b" SMTPUTF8" if not b"".join((sender, *recipients)).isascii() else b""
                if utf8 and "SMTPUTF8" not in client.esmtp_features:
                    raise _RefusedError("the next hop takes no addresses outside ASCII (no SMTPUTF8)")
                body = b" BODY=8BITMIME" if "8BITMIME" in client.esmtp_features else b""
                _expect("MAIL", *client.command(b"MAIL FROM:<" + sender + b">" + body + utf8), _POSITIVE)
                for recipient in recipients:
                    code, text = client.command(b"RCPT TO:<" + recipient + b">")
                    if code in _POSITIVE:
                        taken.append(recipient)
                    else:
                        refused[recipient] = ("refused", _reply(code, text))
                if not taken:
                    return refused
                _expect("DATA", *client.command(b"DATA"), _START_MAIL_INPUT)
                assert client.sock is not None  # noqa: S101 - as in _Client.command
                for piece in _on_the_wire(pieces):
                    client.sock.sendall(piece)
                ended = True
                client.sock.sendall(b".\r\n")
                if self._hop.lmtp:
                    # RFC 2033 section 4.2: a reply for each RCPT that was taken, in their order.
                    for recipient in taken:
                        refused[recipient] = _final(*client.getreply())
                else:
                    final = _final(*client.getreply())
                    refused.update(dict.fromkeys(taken, final))
        except (_RefusedError, OSError, smtplib.SMTPException, ValueError) as error:
            # ValueError: a host name that the resolver, or a certificate, cannot have.
            why = str(error).replace("\n", " ")
            for recipient in recipients:
                unsure = ended and recipient in taken
                refused.setdefault(recipient, ("releasing" if unsure else "refused", why))
        return refused

    def _secure(self, client: _Client) -> None:
        client.hello()
        if self._level is OutTls.OFF or self._context is None:
            return
        if "STARTTLS" not in client.esmtp_features:
            if self._level is not OutTls.MAY:
                raise _RefusedError(f"OutTLS: {self._level.value}: the next hop offers no STARTTLS")
            return
        _expect("STARTTLS", *client.command(b"STARTTLS"), _READY)
        assert client.sock is not None  # noqa: S101 - as in _Client.command
        client.sock = self._context.wrap_socket(client.sock, server_hostname=client._host)  # noqa: SLF001
        # What came in the clear behind the reply must not pass for what came encrypted.
        client.file = None
        client.hello()


def _final(code: int, text: bytes) -> tuple[str, str]:
    return ("released" if code in _POSITIVE else "refused"), _reply(code, text)


def _on_the_wire(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield a text with dots stuffed, and ended by CRLF where it was not; raise _RefusedError for one with two ends."""
    stuffing, end = Stuffing(), EndOfData()

    def honest(octets: bytes) -> bytes:
        # One that came by BDAT may have had what only in DATA looks like an end, to servers that take it for one: what
        # stands behind it would be commands.
        end.feed(octets)
        if end.deceptive:
            raise _RefusedError("a dot stands between line ends that are not CRLF; export it in place of releasing it")
        return octets

    for piece in pieces:
        yield honest(stuffing.feed(piece))
    if not stuffing.ended:
        yield honest(b"\r\n")


def field(entry: Entry) -> bytes:
    """Return the header field that marks a message as released."""
    virus = "".join(char if "!" <= char <= "~" and char != ";" else "?" for char in entry.virus or "unknown")
    return f"X-Virus-Released: {virus}; id={entry.id}; by=clamsmtpctl\r\n".encode()


def _text(fd: int, entry: Entry) -> Iterator[bytes]:
    yield field(entry)
    while piece := os.read(fd, _PIECE):
        yield piece


def release(
    index: Index,
    temp_directory: str,
    entry: Entry,
    courier: Courier,
    *,
    sender: bytes,
    recipients: tuple[bytes, ...],
    again: bool = False,
) -> Outcome:
    """Release a message to those who have not got it, or with ``again`` to all. Raises OSError, IndexFaultError."""
    # Before anything is written down: a file that cannot be read is released to nobody.
    fd = open_kept(temp_directory, entry.name)
    try:
        todo, held = index.claim_releases(entry.id, recipients, time.time(), again=again)
        done = []
        if todo:
            for recipient, (state, reply) in courier.deliver(sender, todo, _text(fd, entry)).items():
                now = time.time()
                index.end_release(entry.id, recipient, state, reply, now)
                done.append(Release(recipient, now, state, reply))
        return Outcome(tuple(done), tuple(held))
    finally:
        os.close(fd)
