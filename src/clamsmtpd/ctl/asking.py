"""Asking a server as a client would: what it greets with and offers, over TCP or a unix socket, by SMTP or LMTP.

What a server says is bounded, in octets by :class:`ReplyReader` and in time by whoever asks: smtplib would go on
reading a reply that never ends, and has a limit for each piece of it only.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from dataclasses import dataclass, field

from clamsmtpd.clamd.session import why
from clamsmtpd.log import describe
from clamsmtpd.smtp import replies
from clamsmtpd.smtp.syntax import Malformed, Reply, ReplyReader
from clamsmtpd.values import Address, UnixAddress

__all__ = ["Dialogue", "Greeting", "ServerError", "greet", "open_dialogue", "said"]

#: Seconds for all that is asked at once.
LIMIT = 10.0

#: Seconds for the end, which no server needs.
_LEAVE_LIMIT = 1.0

_READ = 4096

_GREETS = 220
_OK = 250

# Said to EHLO, they mean: try HELO (RFC 5321 section 4.1.1.1).
_UNKNOWN_COMMAND = frozenset({500, 502})

# RFC 1870 section 4: a size has at most twenty digits.
_DIGITS_MAX = 20


class ServerError(Exception):
    """A server cannot be used; ``str()`` is one line.

    ``reply`` is what it said in place of what was right, None if it was nothing that is a reply.
    """

    def __init__(self, text: str, reply: Reply | None = None) -> None:
        super().__init__(text)
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a server says of itself: the text of its first line, and the keywords that it offers, in lower case.

    With each keyword is what stands behind it. ``name`` is what it calls itself in its reply to EHLO or LHLO.
    """

    banner: str
    offers: dict[str, str] = field(default_factory=dict)
    name: str = ""

    @property
    def size(self) -> int:
        """Octets of a message that it takes (RFC 1870); 0 for no limit."""
        words = self.offers.get("size", "").split()
        return int(words[0]) if words and words[0].isdigit() and len(words[0]) <= _DIGITS_MAX else 0


class Dialogue:
    """A connection to a server, from its greeting on. Each method raises ServerError."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, lmtp: bool) -> None:
        self._reader = reader
        self._writer = writer
        self._lmtp = lmtp
        self._found = ReplyReader()
        # Whether it has said all that was asked of it: who is late or confused is not asked for a goodbye.
        self._settled = False
        #: The text of the greeting.
        self.banner = ""

    @property
    def local(self) -> str | None:
        """Our own IP address, as the server sees it; None over a unix socket."""
        name = self._writer.get_extra_info("sockname")
        return str(name[0]) if isinstance(name, tuple) and name else None

    async def begin(self) -> Greeting:
        """Hear the greeting, and say hello."""
        reply = await self.reply()
        self.banner = _text(reply)
        if reply.code != _GREETS:
            raise ServerError(f"it greets with {said(reply)}", reply)
        return await self.hello()

    async def hello(self) -> Greeting:
        """Say hello; return what is offered from now on."""
        verb = b"LHLO" if self._lmtp else b"EHLO"
        reply = await self.ask(b"%b %b" % (verb, replies.NAME))
        if reply.code in _UNKNOWN_COMMAND and not self._lmtp:
            verb = b"HELO"
            reply = await self.ask(b"HELO %b" % replies.NAME)
        if reply.code != _OK:
            raise ServerError(f"it answers {verb.decode()} with {said(reply)}", reply)
        first, *lines = (line.decode("utf-8", "backslashreplace") for line in reply.lines)
        offers: dict[str, str] = {}
        for line in lines:
            keyword, _, rest = line.strip().partition(" ")
            offers.setdefault(keyword.lower(), rest)
        return Greeting(self.banner, offers, first.partition(" ")[0])

    async def ask(self, line: bytes) -> Reply:
        """Send a command, without its line end; return the reply."""
        return await self.send(line + b"\r\n")

    async def send(self, octets: bytes) -> Reply:
        """Send octets that have one reply, and return it."""
        try:
            self._writer.write(octets)
            await self._writer.drain()
        except OSError as error:
            raise ServerError(f"it hangs up: {why(error)}") from None
        return await self.reply()

    async def reply(self) -> Reply:
        """Return the next reply."""
        self._settled = False
        try:
            while (reply := self._found.next()) is None:
                data = await self._reader.read(_READ)
                if not data:
                    raise ServerError("it hangs up without a reply")
                self._found.feed(data)
        except OSError as error:
            raise ServerError(f"it hangs up: {why(error)}") from None
        if isinstance(reply, Malformed):
            text = reply.text.decode("utf-8", "backslashreplace")[:200]
            raise ServerError(f'it says what is no SMTP: "{text}"')
        self._settled = True
        return reply

    async def start_tls(self, context: ssl.SSLContext, host: str) -> Greeting:
        """Go on with TLS; return what is offered then."""
        reply = await self.ask(b"STARTTLS")
        if reply.code != _GREETS:
            raise ServerError(f"it answers STARTTLS with {said(reply)}", reply)
        self._settled = False
        try:
            await self._writer.start_tls(context, server_hostname=host)
        except OSError as error:
            raise ServerError(f"the TLS handshake failed: {_why_tls(error)}") from None
        # What came before is not to be believed (RFC 3207 section 4.2).
        self._found = ReplyReader()
        return await self.hello()

    async def leave(self) -> None:
        """Say goodbye, whatever comes of it."""
        if self._settled:
            with contextlib.suppress(OSError, ServerError, TimeoutError):
                async with asyncio.timeout(_LEAVE_LIMIT):
                    # Left without its reply, some servers log a lost connection.
                    await self.ask(b"QUIT")
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def _why_tls(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return describe(error)


async def open_dialogue(address: Address, *, lmtp: bool = False, preface: bytes = b"") -> Dialogue:
    """Connect; ``preface`` is sent before anything is heard. A port alone is this host's. Raises OSError."""
    if isinstance(address, UnixAddress):
        reader, writer = await asyncio.open_unix_connection(address.path)
    else:
        reader, writer = await _connect(address.host or "127.0.0.1", address.port)
    if preface:
        writer.write(preface)
    return Dialogue(reader, writer, lmtp=lmtp)


async def _connect(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the first of the host's addresses that takes us. Raises OSError."""
    fault = OSError("its name has no address")
    for address in await _resolve(host):
        try:
            return await asyncio.open_connection(address, port)
        except OSError as error:
            fault = error
    raise fault


async def _resolve(host: str) -> list[str]:
    """Return the IP addresses of a host. Raises OSError."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[str] | OSError] = loop.create_future()

    def look_up() -> None:
        result: list[str] | OSError
        try:
            infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            result = list(dict.fromkeys(str(name[0]) for _, _, _, _, name in infos))
        except OSError as error:
            result = error
        except ValueError:
            # It cannot even be encoded.
            result = OSError("that is no host name")
        # The loop may be closed by now.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(lambda: None if found.done() else found.set_result(result))

    # Not the loop's own threads, which are waited for in the end: a resolver takes as long as it likes.
    threading.Thread(target=look_up, daemon=True).start()
    result = await found
    if isinstance(result, OSError):
        raise result
    return result


def greet(address: Address, *, lmtp: bool = False, limit: float = LIMIT) -> Greeting:
    """Return how a server greets and what it offers, within ``limit`` seconds. Raises ServerError."""

    async def ask() -> Greeting:
        dialogue: Dialogue | None = None
        try:
            async with asyncio.timeout(limit):
                dialogue = await open_dialogue(address, lmtp=lmtp)
                return await dialogue.begin()
        except TimeoutError:
            raise ServerError("no answer in time") from None
        except OSError as error:
            raise ServerError(why(error)) from None
        finally:
            if dialogue is not None:
                await dialogue.leave()

    return asyncio.run(ask())


def _text(reply: Reply) -> str:
    return " ".join(line.decode("utf-8", "backslashreplace") for line in reply.lines)[:500]


def said(reply: Reply) -> str:
    """Return a reply as one line."""
    return f"{reply.code} {_text(reply)}".rstrip()
