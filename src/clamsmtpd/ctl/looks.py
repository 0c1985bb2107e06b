"""Looks at what mail passes on its way: scanners, next hop, ourselves. What was found, and no opinion of it.

Each look has its time, and none raises for what it looks at. What is found goes through a pipe from a process with
other rights, and so is made of what JSON knows.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from dataclasses import asdict, dataclass, field
from typing import Any

from clamsmtpd.clamd.canary import CLEAN, EICAR, Sample
from clamsmtpd.clamd.client import Scanner
from clamsmtpd.clamd.connecting import ClamdError, connect
from clamsmtpd.clamd.outcome import Failed
from clamsmtpd.clamd.protocol import VERSION, quote
from clamsmtpd.clamd.session import ClamdSession, Lost, why
from clamsmtpd.ctl.asking import Dialogue, Greeting, ServerError, open_dialogue, said
from clamsmtpd.log import describe
from clamsmtpd.tls import client_context
from clamsmtpd.values import (
    Address,
    Clean,
    Infected,
    Listen,
    NextHop,
    OutTls,
    StartError,
    TcpAddress,
    UnixAddress,
)

__all__ = [
    "Delivery",
    "ListenerLook",
    "NextHopLook",
    "ScannerLook",
    "connectable",
    "deliver",
    "look_at_listener",
    "look_at_next_hop",
    "look_at_scanner",
]

#: Seconds for a scanner. The canary waits for scans that are under way, as messages do.
SCANNER_LIMIT = 10.0

#: Seconds for a server: some take their time before they greet, as postscreen does.
SERVER_LIMIT = 15.0

#: Seconds for a message, with its scan and the next hop's reply.
MESSAGE_LIMIT = 60.0


@dataclass(frozen=True, slots=True)
class ScannerLook:
    """``fault``: why it cannot be asked; ``refused``: because we may not connect; ``missing``: nobody listens.

    ``version`` is its answer to VERSION. ``clean`` and ``infected`` are what it says of the two samples, as
    ``clean``, ``infected:NAME`` or what went wrong.
    """

    fault: str = ""
    refused: bool = False
    missing: bool = False
    version: str = ""
    clean: str = ""
    infected: str = ""


def look_at_scanner(address: Address, directory: str, limit: float = SCANNER_LIMIT) -> dict[str, Any]:
    """Return the :class:`ScannerLook` at the clamd at ``address``, as a dictionary.

    ``directory`` is for samples that it opens itself.
    """
    return asdict(asyncio.run(_look_at_scanner(address, directory, limit)))


async def _look_at_scanner(address: Address, directory: str, limit: float) -> ScannerLook:
    try:
        sock = await connect(address, limit)
    except ClamdError as error:
        reason = str(error)
        missing = {os.strerror(code) for code in (errno.ENOENT, errno.ECONNREFUSED)}
        return ScannerLook(reason, refused=reason == os.strerror(errno.EACCES), missing=reason in missing)
    # Not in a session: the oldest of them understands this.
    session = ClamdSession(sock, ended=lambda _: None, kept=False)
    try:
        answer = await session.ask(VERSION, limit=limit)
    finally:
        session.close()
    if isinstance(answer, Lost):
        return ScannerLook(answer.reason)
    scanner = Scanner(address, time_out=limit)
    try:
        clean, infected = [await _verdict(scanner, text, directory, limit) for text in (CLEAN, EICAR)]
    finally:
        scanner.close()
        # What was closed hears of it now.
        await asyncio.sleep(0)
    return ScannerLook(version=quote(answer)[1:-1], clean=clean, infected=infected)


async def _verdict(scanner: Scanner, text: bytes, directory: str, limit: float) -> str:
    sample = Sample(text, directory=directory)
    try:
        outcome = await scanner.probe(sample, deadline=asyncio.get_running_loop().time() + limit)
    except OSError as error:
        return describe(error)
    finally:
        sample.close()
    match outcome:
        case Clean():
            return "clean"
        case Infected(name):
            return f"infected:{name}"
        case Failed(reason):
            return reason
        case _:
            return outcome.reason


@dataclass(frozen=True, slots=True)
class NextHopLook:
    """``fault``: why it cannot be used at all; ``refused`` and ``missing`` as with a scanner.

    ``offers`` is what it offers in the end, behind TLS where that came about; ``starttls`` whether it offered that,
    ``tls`` whether it works, ``tls_fault`` why not. ``mail`` is its reply to a MAIL that was taken back. ``local`` is
    our address, as it sees it.
    """

    fault: str = ""
    refused: bool = False
    missing: bool = False
    banner: str = ""
    name: str = ""
    offers: dict[str, str] = field(default_factory=dict)
    starttls: bool = False
    tls: bool = False
    tls_fault: str = ""
    mail: str = ""
    local: str | None = None


def look_at_next_hop(hop: NextHop, level: OutTls, limit: float = SERVER_LIMIT) -> dict[str, Any]:
    """Return the :class:`NextHopLook`, with as much TLS as the daemon would use, as a dictionary."""
    return asdict(asyncio.run(_look_at_next_hop(hop, level, limit)))


async def _look_at_next_hop(hop: NextHop, level: OutTls, limit: float) -> NextHopLook:
    dialogue: Dialogue | None = None
    told: dict[str, Any] = {}
    try:
        async with asyncio.timeout(limit):
            dialogue = await open_dialogue(hop.address, lmtp=hop.lmtp)
            told["local"] = dialogue.local
            _note(told, await dialogue.begin())
            told["starttls"] = "starttls" in told["offers"]
            if level is not OutTls.OFF and told["starttls"]:
                await _try_tls(dialogue, hop, level, told)
            if not told.get("tls_fault"):
                # With no recipient nothing comes of it, and a server that wants TLS or a password says so now.
                told["mail"] = said(await dialogue.ask(b"MAIL FROM:<>"))
                await dialogue.ask(b"RSET")
    except (ServerError, OSError) as error:
        _note_fault(told, error, dialogue)
    finally:
        if dialogue is not None:
            await dialogue.leave()
    return NextHopLook(**told)


def _note(told: dict[str, Any], greeting: Greeting) -> None:
    told.update(banner=greeting.banner, name=greeting.name, offers=greeting.offers)


def _note_fault(told: dict[str, Any], error: ServerError | OSError, dialogue: Dialogue | None) -> None:
    if isinstance(error, ServerError):
        told["fault"] = str(error)
        told["banner"] = dialogue.banner if dialogue is not None else ""
    elif isinstance(error, TimeoutError):
        told["fault"] = "no answer in time"
    else:
        told["fault"] = why(error)
        told["refused"] = isinstance(error, PermissionError)
        told["missing"] = isinstance(error, ConnectionRefusedError | FileNotFoundError)


async def _try_tls(dialogue: Dialogue, hop: NextHop, level: OutTls, told: dict[str, Any]) -> None:
    host = hop.address.host if isinstance(hop.address, TcpAddress) else None
    try:
        context = client_context(level)
        assert context is not None  # noqa: S101 - the level is not off
        _note(told, await dialogue.start_tls(context, host or "localhost"))
        told["tls"] = True
    except (ServerError, StartError) as error:
        told["tls_fault"] = str(error)


@dataclass(frozen=True, slots=True)
class ListenerLook:
    """``fault``: why nobody there can be talked to; ``missing`` and ``refused`` as with a scanner.

    ``said`` is the greeting, or what stood in its place; ``banner`` is the greeting's text alone. ``socket`` describes
    a unix socket: its owner, group and mode.
    """

    fault: str = ""
    refused: bool = False
    missing: bool = False
    said: str = ""
    banner: str = ""
    name: str = ""
    offers: dict[str, str] = field(default_factory=dict)
    socket: tuple[int, int, int] | None = None


def look_at_listener(listen: Listen, *, proxied: bool = False, limit: float = SERVER_LIMIT) -> ListenerLook:
    """Return what answers where we listen; ``proxied``: with a PROXY header in front, as of a proxy's own."""
    return asyncio.run(_look_at_listener(listen, proxied=proxied, limit=limit))


async def _look_at_listener(listen: Listen, *, proxied: bool, limit: float) -> ListenerLook:
    told: dict[str, Any] = {}
    dialogue: Dialogue | None = None
    if isinstance(listen.address, UnixAddress):
        told["socket"] = _socket_of(listen.address.path)
    try:
        async with asyncio.timeout(limit):
            dialogue = await open_dialogue(connectable(listen.address), lmtp=listen.lmtp, preface=_preface(proxied))
            _note(told, await dialogue.begin())
            told["said"] = f"220 {dialogue.banner}"
    except (ServerError, OSError) as error:
        _note_fault(told, error, dialogue)
        if isinstance(error, ServerError):
            told["said"] = said(error.reply) if error.reply is not None else ""
    finally:
        if dialogue is not None:
            await dialogue.leave()
    return ListenerLook(**told)


def _preface(proxied: bool) -> bytes:  # noqa: FBT001 - the one thing that it depends on
    return b"PROXY UNKNOWN\r\n" if proxied else b""


def _socket_of(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


def connectable(address: Address) -> Address:
    """Return where one can connect to what listens at ``address``: all addresses are this host's too."""
    if isinstance(address, TcpAddress) and address.host in {None, "0.0.0.0"}:
        return TcpAddress("127.0.0.1", address.port)
    if isinstance(address, TcpAddress) and address.host == "::":
        return TcpAddress("::1", address.port)
    return address


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of a message that was sent: the command that decided, and the reply to it; or ``fault``."""

    command: str = ""
    code: int = 0
    reply: str = ""
    fault: str = ""


def deliver(
    listen: Listen, sender: str, recipient: str, text: bytes, *, proxied: bool = False, limit: float = MESSAGE_LIMIT
) -> Delivery:
    """Send a message through the daemon; ``text`` has lines that end with CRLF, and no dot begins one."""
    return asyncio.run(_deliver(listen, sender, recipient, text, proxied=proxied, limit=limit))


async def _deliver(
    listen: Listen, sender: str, recipient: str, text: bytes, *, proxied: bool, limit: float
) -> Delivery:
    dialogue: Dialogue | None = None
    command = "the connection"
    delivery = Delivery()
    try:
        async with asyncio.timeout(limit):
            dialogue = await open_dialogue(connectable(listen.address), lmtp=listen.lmtp, preface=_preface(proxied))
            await dialogue.begin()
            for command, octets in (
                ("MAIL", f"MAIL FROM:<{sender}>\r\n".encode("ascii")),
                ("RCPT", f"RCPT TO:<{recipient}>\r\n".encode("ascii")),
                ("DATA", b"DATA\r\n"),
                ("the message", text + b".\r\n"),
            ):
                reply = await dialogue.send(octets)
                delivery = Delivery(command, reply.code, said(reply))
                if not (reply.intermediate if command == "DATA" else reply.positive):
                    break
            return delivery
    except TimeoutError:
        return Delivery(command, fault=f"no reply to {command} in time")
    except ServerError as error:
        return Delivery(command, fault=str(error))
    except OSError as error:
        return Delivery(command, fault=why(error))
    finally:
        if dialogue is not None:
            await dialogue.leave()
