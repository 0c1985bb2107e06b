"""Whether all that mail needs can be used: a scanner, and the next hop. Asked only for a service manager's sake."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from clamsmtpd.log import describe, escape
from clamsmtpd.smtp import replies
from clamsmtpd.smtp.syntax import Malformed, Reply, ReplyReader
from clamsmtpd.values import NextHop, UnixAddress

__all__ = ["READY", "WAITS_FOR_NEXT_HOP", "WAITS_FOR_SCANNER", "become_ready", "is_known_beforehand", "trouble_with"]

_log = logging.getLogger("clamsmtpd")

#: How far it is: what is waited for, or that nothing is any more. Zero is for what has not begun.
WAITS_FOR_SCANNER, WAITS_FOR_NEXT_HOP, READY = 1, 2, 3

#: Seconds for one try with the next hop, which may take its time before it greets, as postscreen does.
TRY_LIMIT = 30.0

#: Seconds until the next try; doubled for each further one.
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 10.0

# Said to EHLO, they mean: try HELO (RFC 5321 section 4.1.1.1).
_UNKNOWN_COMMAND = frozenset({500, 502})


async def become_ready(
    scanner: Callable[[], Awaitable[None]], next_hop: NextHop | None, tell: Callable[[int], None]
) -> None:
    """Return when ``scanner()`` has returned and the next hop, where one is known beforehand, takes mail.

    ``tell`` is called with each of the steps above.
    """
    tell(WAITS_FOR_SCANNER)
    await scanner()
    if next_hop is not None and is_known_beforehand(next_hop):
        tell(WAITS_FOR_NEXT_HOP)
        await _try_until_usable(next_hop)
    tell(READY)


def is_known_beforehand(next_hop: NextHop) -> bool:
    """Whether it is the same one for all clients."""
    return isinstance(next_hop.address, UnixAddress) or next_hop.address.host is not None


async def _try_until_usable(next_hop: NextHop) -> None:
    told = ""
    pause = FIRST_PAUSE
    while trouble := await trouble_with(next_hop):
        if trouble != told:
            told = trouble
            _log.warning("not ready: next hop %s: %s", next_hop, escape(trouble))
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


async def trouble_with(next_hop: NextHop, limit: float | None = None) -> str:
    """Say why the next hop cannot be used; nothing if it can. It has ``limit`` seconds, 30 if that is None."""
    try:
        async with asyncio.timeout(TRY_LIMIT if limit is None else limit):
            return await _ask(next_hop)
    except TimeoutError:
        return "no answer in time"
    except (OSError, ValueError) as error:
        # ValueError: a host name that the resolver cannot even encode.
        return describe(error)


async def _ask(next_hop: NextHop) -> str:
    """Greet the next hop as a session would, and leave. Raises OSError."""
    address = next_hop.address
    if isinstance(address, UnixAddress):
        reader, writer = await asyncio.open_unix_connection(address.path)
    else:
        reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        found = ReplyReader()
        greeting = await _reply(reader, found)
        if not isinstance(greeting, Reply) or greeting.code != 220:  # noqa: PLR2004
            return f"greets with {_shown(greeting)}"
        asked = "EHLO"
        writer.write(b"%b %b\r\n" % (b"LHLO" if next_hop.lmtp else b"EHLO", replies.NAME))
        answer = await _reply(reader, found)
        if isinstance(answer, Reply) and answer.code in _UNKNOWN_COMMAND and not next_hop.lmtp:
            asked = "HELO"
            writer.write(b"HELO %b\r\n" % replies.NAME)
            answer = await _reply(reader, found)
        if not isinstance(answer, Reply) or answer.code != 250:  # noqa: PLR2004
            return f"answers {asked} with {_shown(answer)}"
        writer.write(b"QUIT\r\n")
        # Left without its reply, some servers log a lost connection.
        await _reply(reader, found)
    finally:
        writer.close()
    return ""


async def _reply(reader: asyncio.StreamReader, found: ReplyReader) -> Reply | Malformed | None:
    """Return the next reply, None if the connection ends before it."""
    while (reply := found.next()) is None:
        data = await reader.read(4096)
        if not data:
            return None
        found.feed(data)
    return reply


def _shown(reply: Reply | Malformed | None) -> str:
    if reply is None:
        return "nothing, and hangs up"
    text = reply.text if isinstance(reply, Malformed) else reply.encode().splitlines()[0]
    return text.decode("utf-8", "backslashreplace")
