"""The way of a message, tried for real: each step with what was found, and how to mend what is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import grp
import os
import pwd
import secrets
import smtplib
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from clamsmtpd.clamd.canary import EICAR
from clamsmtpd.clamd.pool import Pool
from clamsmtpd.clamd.protocol import VERSION, signatures_date
from clamsmtpd.config import Settings
from clamsmtpd.ctl.asuser import as_user
from clamsmtpd.ctl.daemon import DaemonError, ask
from clamsmtpd.ctl.nexthop import Client, ServerError
from clamsmtpd.policy import Policy
from clamsmtpd.readiness import is_known_beforehand
from clamsmtpd.smtp import replies
from clamsmtpd.tls import client_context
from clamsmtpd.values import Action, Address, Listen, NextHop, OutTls, StartError, TcpAddress, UnixAddress

__all__ = ["State", "Step", "examine", "try_mail"]

_DAY = 86400.0

#: Days after which signatures are old, and after which they are no protection any more. New ones come each day.
OLD, STALE = 3, 14

#: Seconds for one answer.
LIMIT = 10.0

_OK = 200


class State(enum.Enum):
    """How a step came out."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was tried. ``unreachable``: what was to be asked is not there at all."""

    name: str
    state: State
    finding: str
    mend: str = ""
    unreachable: bool = False


def examine(settings: Settings) -> Iterator[Step]:
    """Try each part that mail needs, in the order in which it needs it; yield each step as it has been tried."""
    for address in settings.clam_addresses:
        yield from _scanner(settings, address)
    yield from _samples(settings)
    hop = settings.out_address
    if hop is None or not is_known_beforehand(hop):
        yield Step("next hop", State.SKIPPED, "it is another one for each client (TransparentProxy, or a port alone)")
    else:
        yield from _next_hop(settings, hop)
    for listen in settings.listen:
        yield _daemon(settings, listen)
    if settings.admin is not None:
        yield _ready(settings.admin.address)


# ---- scanners -----------------------------------------------------------------------------------


def _scanner(settings: Settings, address: Address) -> Iterator[Step]:
    name = f"clamd at {address}"
    version, number, why = as_user(settings.user, lambda: _ask_version(address))
    if not version:
        yield Step(name, State.FAILED, why, _mend_scanner(settings, address, number), unreachable=True)
        return
    if not version.startswith("ClamAV"):
        yield Step(name, State.FAILED, f"it answers {version!r}: that is not clamd", "give clamd's own in ClamAddress")
        return
    yield Step(name, State.OK, version)
    date = signatures_date(version)
    if date is None:
        yield Step(
            f"{name}: signatures",
            State.WARNING,
            "it names no official signatures",
            "run freshclam, unless it has only signatures of your own on purpose",
        )
        return
    days = max((time.time() - date.timestamp()) / _DAY, 0.0)
    state = State.OK if days <= OLD else State.WARNING if days <= STALE else State.FAILED
    mend = "" if state is State.OK else "see why freshclam does not get new ones: systemctl status clamav-freshclam"
    yield Step(f"{name}: signatures", state, f"they are {days:.1f} days old", mend)


def _ask_version(address: Address) -> tuple[str, int, str]:
    """Return what clamd says of itself, or the number of an error and what it is."""
    try:
        with _connect(address) as sock:
            sock.sendall(VERSION)
            told = b""
            while b"\0" not in told and len(told) < 4096:  # noqa: PLR2004 - a line
                data = sock.recv(4096)
                if not data:
                    break
                told += data
    except TimeoutError:
        return "", errno.ETIMEDOUT, "it does not answer"
    except OSError as error:
        return "", error.errno or 0, error.strerror or str(error)
    text = told.partition(b"\0")[0].strip().decode("utf-8", "backslashreplace")
    return (text, 0, "") if text else ("", 0, "it hangs up without a word")


def _connect(address: Address) -> socket.socket:
    if isinstance(address, TcpAddress):
        return socket.create_connection((address.host or "127.0.0.1", address.port), LIMIT)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(LIMIT)
    try:
        sock.connect(address.path)
    except OSError:
        sock.close()
        raise
    return sock


def _mend_scanner(settings: Settings, address: Address, number: int) -> str:
    start = "is it running? systemctl start clamav-daemon"
    if isinstance(address, TcpAddress):
        return f"{start}; TCPSocket and TCPAddr in clamd.conf must say the same as ClamAddress"
    if number == errno.EACCES:
        return _mend_rights(settings, address)
    if number == errno.ENOENT:
        return f"{start}; LocalSocket in clamd.conf must say the same as ClamAddress"
    return start


def _mend_rights(settings: Settings, address: UnixAddress) -> str:
    user = settings.user or pwd.getpwuid(os.geteuid()).pw_name
    with contextlib.suppress(OSError, KeyError):
        group = grp.getgrgid(os.stat(address.path).st_gid).gr_name
        return f"user {user} may not use that socket: usermod -a -G {group} {user}, and restart clamsmtpd"
    return f"user {user} may not get to that socket: see the rights of the folders on the way there"


def _samples(settings: Settings) -> Iterator[Step]:
    """Have a clean and an infected sample scanned, as the daemon does."""

    def look() -> list[tuple[str, str]]:
        async def main() -> list[tuple[str, str]]:
            pool = Pool(settings.clam_addresses, time_out=LIMIT, temp_directory=settings.temp_directory)
            try:
                return await pool.examine()
            finally:
                pool.close()
                # What was closed is so in the next turns of the loop.
                await asyncio.sleep(0.01)

        return asyncio.run(main())

    for address, trouble in as_user(settings.user, look):
        mend = ""
        if "blind" in trouble:
            mend = "it has no signatures, or ScanMail is off: run freshclam, and see clamd.conf"
        elif trouble:
            mend = "see its log"
        yield Step(
            f"clamd at {address}: samples",
            State.FAILED if trouble else State.OK,
            trouble or "it finds the EICAR test file, and nothing in a clean message",
            mend,
        )


# ---- the next hop -------------------------------------------------------------------------------


def _next_hop(settings: Settings, hop: NextHop) -> Iterator[Step]:
    name = f"next hop {hop}"
    client = Client(hop.address, lmtp=hop.lmtp, limit=LIMIT)
    try:
        greeting = client.begin()
    except ServerError as error:
        client.leave()
        mend = "is it running, and does it listen there? OutAddress must be where it takes mail back"
        yield Step(name, State.FAILED, str(error), mend, unreachable=True)
        return
    try:
        offered = ", ".join(keyword.upper() for keyword in greeting.offers) or "nothing"
        yield Step(name, State.OK, f"greets with {greeting.banner}; offers {offered}")
        if replies.NAME.decode() in greeting.banner.split():
            yield Step(f"{name}: loop", State.FAILED, "it is this filter itself", "give the mail server in OutAddress")
        yield from _tls(settings, hop, client, name)
        yield from _identity(settings, client, name)
    finally:
        client.leave()


def _tls(settings: Settings, hop: NextHop, client: Client, name: str) -> Iterator[Step]:
    if settings.out_tls is OutTls.OFF:
        return
    optional = settings.out_tls is OutTls.MAY
    if not client.has_extn("starttls"):
        yield Step(
            f"{name}: TLS",
            State.WARNING if optional else State.FAILED,
            f"it does not offer STARTTLS to us, and OutTLS is {settings.out_tls.value}",
            "give it a certificate, or set OutTLS: off",
        )
        return
    try:
        context = client_context(settings.out_tls)
        address = hop.address
        assert context is not None  # noqa: S101 - there is one for all but "off"
        # The name that a certificate is held against is that of the address.
        client._host = (address.host if isinstance(address, TcpAddress) else None) or "localhost"  # type: ignore[attr-defined]  # noqa: SLF001
        client.starttls(context=context)
        client.ehlo()
    except (StartError, ssl.SSLError, OSError, smtplib.SMTPException) as error:
        told = getattr(error, "verify_message", None) or getattr(error, "strerror", None) or str(error)
        yield Step(
            f"{name}: TLS",
            State.WARNING if optional else State.FAILED,
            f"no TLS: {told}",
            "mend its certificate, or set OutTLS to less",
        )
        return
    yield Step(f"{name}: TLS", State.OK, f"OutTLS: {settings.out_tls.value} works")


def _identity(settings: Settings, client: Client, name: str) -> Iterator[Step]:
    if settings.xclient and not client.has_extn("xclient"):
        yield Step(
            f"{name}: XCLIENT",
            State.FAILED,
            "XClient is on, and it does not let us use XCLIENT",
            "with Postfix: add our address to smtpd_authorized_xclient_hosts",
        )
    elif settings.xclient:
        yield Step(f"{name}: XCLIENT", State.OK, "it lets us say who the client is")
    elif not client.has_extn("xforward"):
        yield Step(
            f"{name}: XFORWARD",
            State.WARNING,
            "it does not let us use XFORWARD: for its log, all mail comes from this host",
            "with Postfix: add our address to smtpd_authorized_xforward_hosts; others have no such thing",
        )
    else:
        yield Step(f"{name}: XFORWARD", State.OK, "it lets the server in front say who the client is")


# ---- the daemon ---------------------------------------------------------------------------------


def _daemon(settings: Settings, listen: Listen) -> Step:
    name = f"clamsmtpd at {listen}"
    if settings.proxy_protocol and settings.trusted_clients.include("127.0.0.1"):
        return Step(name, State.SKIPPED, "it waits for a PROXY header from this host; ask it through the proxy")
    client = Client(_reachable(listen.address), lmtp=listen.lmtp, limit=LIMIT)
    try:
        greeting = client.begin()
    except ServerError as error:
        if client.banner:
            return Step(name, State.FAILED, str(error), "see its log, and the steps above")
        return Step(name, State.FAILED, str(error), "start it: systemctl start clamsmtpd", unreachable=True)
    finally:
        client.leave()
    if replies.NAME.decode() not in greeting.banner.split():
        return Step(
            name,
            State.FAILED,
            f"what greets there is another server: {greeting.banner}",
            "see who listens there: ss -ltnp; give clamsmtpd a port of its own",
        )
    return Step(name, State.OK, f"greets with {greeting.banner}")


def _reachable(address: Address) -> Address:
    if isinstance(address, TcpAddress) and address.host in {None, "0.0.0.0", "::"}:
        return TcpAddress("127.0.0.1", address.port)
    return address


def _ready(address: Address) -> Step:
    name = f"Admin at {address}"
    try:
        status, told = ask(address, "/readyz")
    except DaemonError as error:
        return Step(name, State.FAILED, str(error), "restart clamsmtpd, if Admin was set since it started")
    if status == _OK:
        return Step(name, State.OK, "ready: scanners and next hop, as the daemon sees them")
    parts = told.get("parts", [])
    trouble = "; ".join(f"{part['part']}: {part['trouble']}" for part in parts if part.get("trouble"))
    return Step(name, State.FAILED, f"not ready: {trouble or told}", "see the steps above")


# ---- mail ---------------------------------------------------------------------------------------


def try_mail(settings: Settings, sender: str, recipient: str) -> Iterator[Step]:
    """Send a clean message and the EICAR test file through the running daemon, and tell what became of them."""
    listen = settings.listen[0]
    token = secrets.token_hex(4)
    subject = f"clamsmtpctl doctor {token}"
    clean = _message(sender, recipient, subject, b"This message is clean, and you should have it.\r\n")
    code, text = _send(listen, sender, recipient, clean)
    name = f"a clean message to {recipient}"
    if code // 100 != 2:  # noqa: PLR2004 - RFC 5321 section 4.2.1
        yield Step(name, State.FAILED, f"the reply was {code} {text}", "see the daemon's log, and the next hop's")
        return
    yield Step(name, State.OK, f'the next hop took it: {code} {text}; look for the subject "{subject}"')
    infected = _message(sender, recipient, f"{subject} EICAR", EICAR + b"\r\n")
    yield _judge_virus(settings, recipient, *_send(listen, sender, recipient, infected))


def _judge_virus(settings: Settings, recipient: str, code: int, text: str) -> Step:
    name = f"the EICAR test file to {recipient}"
    reply = f"{code} {text}"
    dropped = replies.VIRUS_DROPPED.decode().strip()
    bounced = replies.VIRUS_BOUNCED.decode().strip()
    if reply == dropped:
        return Step(name, State.OK, f"it was dropped: {reply}; nobody should have it")
    if reply == bounced:
        return Step(name, State.OK, f"it was refused: {reply}")
    if code // 100 != 2:  # noqa: PLR2004
        return Step(name, State.WARNING, f"it was not delivered, but not as a virus: {reply}", "see the daemon's log")
    if _passes_some(settings):
        return Step(
            name,
            State.WARNING,
            f"it was delivered, as Action or ActionFor may want: {reply}",
            "see that it has an X-Virus-Infected field, and that something behind looks for that",
        )
    return Step(
        name,
        State.FAILED,
        f"the virus was taken for clean and delivered: {reply}",
        "see the steps above; until then, viruses come through",
    )


def _passes_some(settings: Settings) -> bool:
    policy = Policy(
        action=settings.action,
        actions_for=settings.actions_for,
        oversize=settings.oversize,
        scan_failure=settings.scan_failure,
    )
    # What each scanner calls the test file is its own.
    names = ("Eicar-Test-Signature", "Win.Test.EICAR_HDB-1", "Eicar-Signature", "Eicar-Test-Signature.UNOFFICIAL")
    rules = [policy.rule_for(name) for name in names]
    return Action.PASS in {settings.action if rule is None else rule.action for rule in rules}


def _message(sender: str, recipient: str, subject: str, body: bytes) -> bytes:
    fields = f"From: <{sender}>\r\nTo: <{recipient}>\r\nSubject: {subject}\r\nDate: {_date()}\r\n"
    return (
        fields.encode("utf-8", "replace") + f"Message-ID: <{secrets.token_hex(8)}@clamsmtpctl>\r\n\r\n".encode() + body
    )


def _date() -> str:
    from email.utils import formatdate  # noqa: PLC0415 - only here

    return formatdate(localtime=True)


def _send(listen: Listen, sender: str, recipient: str, text: bytes) -> tuple[int, str]:
    """Send a message; return the last reply."""
    client = Client(_reachable(listen.address), lmtp=listen.lmtp, limit=6 * LIMIT)
    try:
        client.begin()
        for reply in (client.mail(sender), client.rcpt(recipient)):
            if reply[0] // 100 != 2:  # noqa: PLR2004
                return _shown(reply)
        return _shown(client.data(text))
    except (ServerError, OSError, smtplib.SMTPException, ValueError) as error:
        # ValueError: an address that smtplib does not send, with a line end or outside ASCII.
        return _shown(error.args[:2]) if isinstance(error, smtplib.SMTPResponseException) else (0, str(error))
    finally:
        client.leave()


def _shown(reply: Any) -> tuple[int, str]:  # noqa: ANN401 - of smtplib
    code, text = reply
    return int(code), text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else str(text)
