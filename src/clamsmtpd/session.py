"""One client and its next hop: two connections that feed the relay, and its effects performed on them.

Nothing of SMTP is decided here. Whoever is awaited, by the relay's word, has a time limit, and
whoever does not take what we send stops us from reading more.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import ClassVar, TypeVarTuple, Unpack

from clamsmtpd.account import Account, Tag
from clamsmtpd.circles import Ends, Register
from clamsmtpd.clamd.client import EarlyScan
from clamsmtpd.config import Settings
from clamsmtpd.connection import Connection
from clamsmtpd.deadlines import LINGER_LIMIT, Deadline, Progress
from clamsmtpd.dialling import dial, dial_by_name
from clamsmtpd.inspection import Inspector, Route
from clamsmtpd.ledger import Ledger
from clamsmtpd.log import describe, escape
from clamsmtpd.metrics import Failure, Metrics, count_failure
from clamsmtpd.orphans import Orphans
from clamsmtpd.peers import LOCAL_CLIENT, UNKNOWN_CLIENT, end_point, host_of, identify, original_destination
from clamsmtpd.poller import Poller
from clamsmtpd.proxyprotocol import Proxied, ProxyError, ProxyHeader
from clamsmtpd.smtp import replies
from clamsmtpd.smtp.events import (
    Answered,
    Awaits,
    BeginMessage,
    CloseClient,
    CloseServer,
    Discard,
    Effect,
    Identify,
    Inspect,
    Note,
    Reconnect,
    SecureClient,
    SecureServer,
    Store,
    ToClient,
    ToServer,
    Transmit,
)
from clamsmtpd.smtp.relay import Relay, Terms
from clamsmtpd.spool import Spool
from clamsmtpd.tls import Certificate
from clamsmtpd.transmission import Transmission
from clamsmtpd.values import Address, Decision, Defer, Listen, TcpAddress, UnixAddress

__all__ = ["AUTOMATIC_KEEP_ALIVE", "Host", "Session"]

_log = logging.getLogger("clamsmtpd")

_Arguments = TypeVarTuple("_Arguments")

#: Seconds after which the next hop hears a NOOP while a message is received and scanned, if KeepAlives says nothing
#: else; half a minute more at most, until the clock looks again. A server has to wait for a command for 300 (RFC 5321
#: section 4.5.3.2.7); those that are short of connections wait less.
AUTOMATIC_KEEP_ALIVE = 45.0


@dataclass(slots=True)
class Host:
    """What a session needs of the server that runs it.

    ``certificate`` is for clients that want TLS, ``out_context`` for TLS with the next hop; None for no TLS.
    ``outgoing`` holds both ends, ours first, of every connection to a next hop: a connection that comes
    in with the same ends is our own. ``ended`` is called once when a session is over. Failures are counted in ``row``,
    one of :class:`~clamsmtpd.metrics.Metrics`.
    """

    settings: Settings
    inspector: Inspector
    poller: Poller
    ended: Callable[[Session], None]
    orphans: Orphans
    certificate: Certificate | None = None
    out_context: ssl.SSLContext | None = None
    outgoing: Register = field(default_factory=set[Ends])
    ledger: Ledger = field(default_factory=Ledger)
    row: memoryview = field(default_factory=lambda: Metrics().row(0))


class _ClientProtocol(asyncio.Protocol):
    """The client's connection."""

    __slots__ = ("_session",)

    def __init__(self, session: Session) -> None:
        self._session = session

    def data_received(self, data: bytes) -> None:
        self._session.client_received(data)

    def eof_received(self) -> bool:
        # A client that has said all may still listen: closing is for the relay to decide.
        return self._session.client_eof()

    def connection_lost(self, _error: Exception | None) -> None:
        self._session.client_lost()

    def pause_writing(self) -> None:
        self._session.client_full(full=True)

    def resume_writing(self) -> None:
        self._session.client_full(full=False)


class _ServerProtocol(asyncio.Protocol):
    """The connection to the next hop."""

    __slots__ = ("_session",)

    def __init__(self, session: Session) -> None:
        self._session = session

    def data_received(self, data: bytes) -> None:
        self._session.server_received(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._session.server_lost(self, error)

    def pause_writing(self) -> None:
        self._session.server_full(full=True)

    def resume_writing(self) -> None:
        self._session.server_full(full=False)


class Session:
    """The life of one client connection. ``connection`` is its id in the log."""

    __slots__ = (
        "_account",
        "_client",
        "_client_full",
        "_client_handshake",
        "_client_octets",
        "_connecting",
        "_deadline",
        "_debug",
        "_early",
        "_ends",
        "_host",
        "_inspecting",
        "_keep_alive",
        "_listen",
        "_loop",
        "_messages",
        "_over",
        "_proxy",
        "_reading",
        "_redirected",
        "_route",
        "_secure",
        "_server",
        "_server_ends",
        "_server_handshake",
        "_server_heard",
        "_server_protocol",
        "_silent_since",
        "_spool",
        "_transmission",
        "relay",
        "tag",
    )

    def __init__(self, host: Host, connection: str, sock: socket.socket, listen: Listen) -> None:
        """Take the addresses of ``sock``, accepted on ``listen``. Raises OSError when the client has left already."""
        #: What the log calls it, and the message at hand.
        self.tag = tag = Tag(connection)
        self._messages = 0
        # That of the message at hand, until the client has its reply.
        self._account: Account | None = None
        self._host = host
        self._loop = host.poller.loop
        client, local = end_point(sock.getpeername()), end_point(sock.getsockname())
        wanted = original_destination(sock) if host.settings.transparent_proxy else None
        # As the client sees its connection: if it is our own, going in a circle, these are the ends we know.
        self._ends: Ends = (client, wanted or local)
        self._redirected = wanted is not None and wanted != local
        self._route = Route(tag, host_of(client), host_of(local), LOCAL_CLIENT)
        self._listen = listen
        trusted = self._is_trusted(client)
        self.relay = Relay(self._terms(trusted=trusted), identify(*self._ends))
        # Until it has come, nobody knows who the client is, and nothing is asked of a next hop.
        self._proxy = ProxyHeader() if trusted and host.settings.proxy_protocol else None
        self._client: asyncio.Transport | None = None
        self._client_full = False
        self._reading = True
        self._secure = False
        self._over = False
        self._client_handshake: asyncio.Task[None] | None = None
        self._server_handshake: asyncio.Task[None] | None = None
        self._server: asyncio.Transport | None = None
        # Of several connections made, the one that counts.
        self._server_protocol: _ServerProtocol | None = None
        self._server_ends: Ends = (None, None)
        self._server_heard = False
        self._connecting: asyncio.Task[None] | None = None
        self._inspecting: asyncio.Task[None] | None = None
        self._spool: Spool | None = None
        self._early: EarlyScan | None = None
        self._transmission: Transmission | None = None
        self._client_octets = 0
        self._deadline = Deadline(float(host.settings.time_out), self._look, self._on_expired, self._loop)
        self._keep_alive: asyncio.TimerHandle | None = None
        # When the clock first saw a message on its way of which the next hop has heard nothing since; 0 for none.
        self._silent_since = 0.0
        self._debug = _log.isEnabledFor(logging.DEBUG)
        if self._proxy is None:
            _log.info("%s: accepted connection from: %s", tag, self._route.client)

    def _is_trusted(self, client: TcpAddress | None) -> bool:
        trusted = self._host.settings.trusted_clients
        if client is None:
            address = self._listen.address
            return isinstance(address, UnixAddress) and address.path in trusted.sockets
        return client.host is not None and trusted.include(client.host)

    def _terms(self, *, trusted: bool) -> Terms:
        settings = self._host.settings
        return Terms(
            lmtp_client=self._listen.lmtp,
            lmtp_server=settings.out_address is not None and settings.out_address.lmtp,
            announce=settings.xclient,
            trusted=trusted,
            starttls=self._host.certificate is not None,
            out_tls=settings.out_tls,
            admits=partial(self._host.inspector.admits, self.tag),
        )

    def start(self, sock: socket.socket) -> None:
        """Take over the accepted socket, and begin the dialogue.

        Raises OSError if the system cannot watch another; the socket is the caller's then.
        """
        self._client = Connection(sock, _ClientProtocol(self), self.client_received, self._host.poller)
        if self._proxy is None:
            self._connect()
        self._deadline.start()
        if interval := self._host.settings.keep_alives:
            self._schedule_keep_alive(interval)

    def drain(self) -> None:
        """Finish the transaction in flight, then say goodbye."""
        if self._proxy is not None:
            self.abort()
        self.run(self.relay.drain)

    def abort(self) -> None:
        """Cut both connections now. What was on its way is not delivered, or the next hop has it all."""
        self._abort_client()
        self._abort_server()

    def _abort_client(self) -> None:
        if self._client_handshake is not None:
            self._client_handshake.cancel()
            self._client_handshake = None
            # Nobody else will tell: who would is the handshake.
            self._loop.call_soon(self.client_lost)
        elif self._client is not None:
            self._client.abort()

    def _abort_server(self) -> None:
        if self._server_handshake is not None:
            # In the midst of it, closing would wait for its end.
            self._server_handshake.cancel()
            self._server_handshake = None
            self._drop_server()
        elif self._server is not None:
            self._server.abort()

    # ---- the client's connection --------------------------------------------------------------

    def client_received(self, data: bytes) -> None:
        """Take octets from the client."""
        if self._proxy is not None:
            self._read_proxy_header(self._proxy, data)
            return
        if not self._debug and self._server is not None and self.relay.passes_on(data):
            self._server.write(data)
            return
        self._client_octets += len(data)
        if self._debug and self.relay.awaits is not Awaits.DATA:
            self._trace("CLIENT <", data)
        self.run(self.relay.client_data, data)
        if not self.relay.wants_input:
            self._set_reading()

    def _read_proxy_header(self, header: ProxyHeader, data: bytes) -> None:
        """Learn from the proxy in front of us who the client is; then begin."""
        try:
            found = header.feed(data)
        except ProxyError as error:
            # To go on would take the proxy for the client. The protocol has no reply, and neither have we.
            _log.warning("%s: PROXY header of %s: %s; connection closed", self.tag, self._route.client, error)
            self.abort()
            return
        if found is not None:
            self._proxy = None
            proxied, rest = found
            self._begin_behind_proxy(proxied)
            self._connect()
            # For the relay it is the next hop that is awaited, now as before; but it was not asked until now.
            self._deadline.start()
            if rest:
                self.client_received(rest)

    def _begin_behind_proxy(self, proxied: Proxied) -> None:
        proxy = self._route.client
        source = proxied.source
        # Trust in the proxy is no trust in all that comes through it.
        terms = self._terms(trusted=source is not None and self._is_trusted(source))
        identity = identify(*self._ends)
        if source is not None:
            identity = replace(identify(source, proxied.destination), learnt=True)
            self._route.client = host_of(source)
        self.relay = Relay(terms, identity)
        _log.info("%s: accepted connection from: %s (through the proxy %s)", self.tag, self._route.client, proxy)

    def client_eof(self) -> bool:
        """Go on with a client that will send nothing more; tell whether it can still be written to."""
        if self._proxy is not None:
            self.abort()
        self.run(self.relay.client_eof)
        if self._client is not None and self.relay.awaits is Awaits.NOTHING:
            self._client.close()
        return not self._secure

    def client_lost(self) -> None:
        """Go on without a client."""
        self._client = None
        self._proxy = None
        self.run(self.relay.client_lost)
        self._finish()

    def client_full(self, *, full: bool) -> None:
        """React to a client that does not read its replies: read no more of its commands."""
        self._client_full = full
        self._set_reading()
        self.run(partial(self.relay.client_full, full=full))

    def _secure_client(self, _effect: SecureClient) -> None:
        client, certificate = self._client, self._host.certificate
        if not isinstance(client, Connection) or certificate is None:
            return
        # Before the socket is nobody's.
        context = certificate.context()
        sock = client.detach()
        if sock is None:
            # So many replies wait for it to read them that there is no room for the one that lets it begin.
            client.abort()
            return
        handshake = self._shake_hands_with_client(sock, context)
        self._client_handshake = self._loop.create_task(handshake)
        self._client_handshake.add_done_callback(partial(_close_if_given_up, sock))

    async def _shake_hands_with_client(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        try:
            transport, _ = await self._loop.connect_accepted_socket(
                lambda: _ClientProtocol(self),
                sock,
                ssl=context,
                ssl_handshake_timeout=self._host.settings.time_out,
                ssl_shutdown_timeout=LINGER_LIMIT,
            )
        except BaseException as error:
            sock.close()
            if not isinstance(error, OSError):
                raise
            self._client_handshake = None
            _log.info("%s: TLS handshake with the client failed: %s", self.tag, describe(error))
            self.client_lost()
            return
        self._client_handshake = None
        # uvloop's transports are Transports in all but name.
        self._client = transport
        self._secure = self._reading = True
        if self._debug:
            _log.debug("%s: client uses %s", self.tag, _tls_version(transport))
        self.run(self.relay.client_secured)

    # ---- the next hop's connection ------------------------------------------------------------

    def _connect(self) -> None:
        """Connect to the next hop. How long that may take, the session's clock says."""
        address = self._next_hop()
        if self._is_our_own():
            return
        if address is None:
            self._refuse_loop("it was made straight to us, and has no destination that we could pass it on to")
            return
        try:
            found = dial(address)
        except OSError as error:
            self._could_not_connect(address, error)
            return
        if found is not None:
            self._server_made(address, *found)
        elif isinstance(address, TcpAddress):
            self._connecting = self._loop.create_task(self._connect_by_name(address))

    async def _connect_by_name(self, address: TcpAddress) -> None:
        try:
            sock, end = await dial_by_name(address)
        except (OSError, ValueError) as error:
            # ValueError: a host name that the resolver cannot even encode.
            self._connecting = None
            self._could_not_connect(address, error)
            return
        self._connecting = None
        self._server_made(address, sock, end)

    def _could_not_connect(self, address: Address, error: Exception) -> None:
        count_failure(self._host.row, Failure.NEXT_HOP_UNREACHABLE)
        self.run(self.relay.server_lost, "cannot connect to %s: %s", str(address), describe(error))

    def _next_hop(self) -> Address | None:
        client, destination = self._ends
        if self._host.settings.transparent_proxy:
            return destination if self._redirected else None
        next_hop = self._host.settings.out_address
        address = next_hop.address if next_hop is not None else None
        if isinstance(address, TcpAddress) and address.host is None:
            # The loopback feature: back to where the client came from.
            return TcpAddress(client.host, address.port) if client is not None else None
        return address

    def _server_made(self, address: Address, sock: socket.socket, end: TcpAddress | None) -> None:
        """Take over the connection to the next hop at ``end``, which may still be under way."""
        self._server_heard = False
        protocol = _ServerProtocol(self)
        try:
            ends = end_point(sock.getsockname()), end
            self._server = Connection(sock, protocol, self.server_received, self._host.poller)
        except OSError as error:
            # So many descriptors are watched that the system takes no more (max_user_watches, epoll(7)).
            sock.close()
            self._could_not_connect(address, error)
            return
        self._server_protocol, self._server_ends = protocol, ends
        self._host.outgoing.add(ends)
        if not self._is_our_own():
            self._route.server = host_of(end)

    def _is_our_own(self) -> bool:
        """Refuse the client's connection if it is one that we made to a next hop; tell whether it is.

        Asked before we connect, so that a loop does not grow, and again after, when all connections that
        there were before are certain to be known.
        """
        # Unix sockets have no names that would tell one connection from another.
        if self._ends[0] is None or self._ends not in self._host.outgoing:
            return False
        self._refuse_loop("it comes from this filter itself")
        return True

    def server_received(self, data: bytes) -> None:
        """Take octets from the next hop."""
        if not self._debug and self._client is not None and self.relay.passes_back(data):
            self._client.write(data)
            return
        self._server_heard = True
        if self._debug:
            self._trace("SERVER <", data)
        self.run(self.relay.server_data, data)

    def server_lost(self, protocol: _ServerProtocol, error: Exception | None) -> None:
        """Go on without a next hop."""
        if protocol is not self._server_protocol:
            return
        self._host.outgoing.discard(self._server_ends)
        self._server = None
        self._transmission = None
        address = self._next_hop()
        if error is not None and not self._server_heard and address is not None:
            self._could_not_connect(address, error)
        else:
            if self.relay.awaits is not Awaits.NOTHING:
                count_failure(self._host.row, Failure.NEXT_HOP_LOST)
            why = describe(error) if error else "closed by the other side"
            self.run(self.relay.server_lost, "connection lost: %s", why)
        self._finish()

    def _secure_server(self, _effect: SecureServer) -> None:
        server, context = self._server, self._host.out_context
        if isinstance(server, Connection) and context is not None:
            sock = server.detach()
            if sock is None:
                # It owes us nothing but has not read what we said: STARTTLS at least.
                server.abort()
                return
            self._server_handshake = self._loop.create_task(self._shake_hands_with_server(sock, context))
            self._server_handshake.add_done_callback(partial(_close_if_given_up, sock))

    async def _shake_hands_with_server(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        address, protocol = self._next_hop(), self._server_protocol
        assert protocol is not None  # noqa: S101 - where there is a connection to the next hop, there is one
        try:
            # Nothing is lost between the two steps: in TLS the client speaks first.
            plain, _ = await self._loop.connect_accepted_socket(asyncio.Protocol, sock)
            transport = await self._loop.start_tls(
                plain,
                protocol,
                context,
                server_hostname=address.host if isinstance(address, TcpAddress) else None,
                ssl_handshake_timeout=self._host.settings.time_out,
                ssl_shutdown_timeout=LINGER_LIMIT,
            )
        except BaseException as error:
            sock.close()
            # RuntimeError: the connection was lost before the handshake began. ValueError: a name that no
            # certificate can have.
            if not isinstance(error, OSError | RuntimeError | ValueError):
                raise
            self._server_handshake = None
            self._drop_server()
            self.run(self.relay.server_insecure, describe(error))
            self._finish()
            return
        self._server_handshake = None
        self._server = transport
        if self._debug and transport is not None:
            _log.debug("%s: next hop uses %s", self.tag, _tls_version(transport))
        self.run(self.relay.server_secured)

    def _drop_server(self) -> None:
        """Cut the connection to the next hop, without the relay hearing of it."""
        self._server_protocol = None
        self._host.outgoing.discard(self._server_ends)
        if self._server is not None:
            self._server.abort()
            self._server = None

    def _reconnect(self, _effect: Reconnect) -> None:
        self._connect()

    def server_full(self, *, full: bool) -> None:
        """React to a next hop that does not take the text fast enough: wait with the rest."""
        if self._transmission is not None:
            self._transmission.paused = full
            if not full:
                self._send_text()

    # ---- events in, effects out ---------------------------------------------------------------

    def run(self, event: Callable[[Unpack[_Arguments]], list[Effect]], *arguments: *_Arguments) -> None:
        """Give one event to the relay, and perform all that comes of it.

        What it has for either side goes out in one piece, so that no packet holds a part of a reply.
        """
        try:
            to_client = to_server = b""
            failed = False
            for effect in event(*arguments):
                if isinstance(effect, ToServer):
                    to_server = to_server + effect.data if to_server else effect.data
                    if self._debug:
                        self._trace("SERVER >", b"(authentication)" if effect.secret else effect.data)
                elif isinstance(effect, ToClient):
                    to_client = to_client + effect.data if to_client else effect.data
                else:
                    # What comes behind may close either side.
                    if to_server and self._server is not None:
                        self._server.write(to_server)
                    if to_client:
                        self._say(to_client)
                    to_client = to_server = b""
                    failed = self._PERFORM[type(effect)](self, effect) or failed
            if to_server and self._server is not None:
                self._server.write(to_server)
            if to_client:
                self._say(to_client)
            if failed:
                # Now, for the reply to it stands behind those to what the client had said before.
                self.run(self.relay.storage_failed)
            if not self._reading:
                self._set_reading()
        except Exception as error:  # noqa: BLE001 - whatever it is, one message must not take the others along
            # A fault of ours. Cutting both connections is the one end that delivers and loses nothing.
            self._note_internal(error, self.tag)
            self._discard()
            self.abort()

    def _say(self, data: bytes) -> None:
        if self._client is not None:
            if self._debug:
                self._trace("CLIENT >", data)
            self._client.write(data)

    def _begin(self, effect: BeginMessage) -> None:
        settings = self._host.settings
        self._open_account()
        name = f"clamsmtpd-{self.tag}"
        self._spool = Spool(settings.temp_directory, name, keep=settings.debug_files, raw=effect.raw)
        self._host.inspector.expect(self.relay.size_limit)
        self._early = self._host.inspector.begin(self._spool)

    def _open_account(self) -> None:
        self._give_account_up()
        self._messages += 1
        self.tag = self._route.tag = self.tag.of_message(self._messages)
        account = Account(self.tag, self._route.client, self._route.server)
        self._account = self._host.ledger.open(account, self._loop.time())

    def _give_account_up(self) -> None:
        """Close the account of a message about which the client was told nothing."""
        if self._account is not None:
            self._close_account(b"")

    def _close_account(self, reply: bytes, taken: int | None = None) -> None:
        account = self._account
        if account is None:
            return
        self._account = None
        account.end(self._loop.time(), reply, taken=taken)
        try:
            self._host.ledger.close(account)
        except Exception as error:  # noqa: BLE001 - the client has its reply, or is about to: that must not be cut off
            self._note_internal(error, self.tag)

    def _note_internal(self, error: Exception, tag: Tag) -> None:
        count_failure(self._host.row, Failure.INTERNAL)
        _log.error("%s: internal error: %s: %s", tag, type(error).__name__, error)
        _log.debug("%s: traceback", tag, exc_info=error)

    def _answered(self, effect: Answered) -> None:
        self._close_account(effect.reply, effect.taken)
        self.tag = self._route.tag = Tag(self.tag.connection)

    def _store(self, effect: Store) -> bool:
        """Store some of the text; tell whether that failed."""
        if self._spool is None:
            return False
        try:
            self._spool.append(effect.text)
        except OSError as error:
            directory = self._host.settings.temp_directory
            count_failure(self._host.row, Failure.STORAGE)
            _log.error("%s: cannot store the message in %s: %s", self.tag, directory, describe(error))
            # Half a message is stored no further, and judged by nobody.
            self._discard()
            return True
        return False

    def _inspect(self, effect: Inspect) -> None:
        if self._spool is not None:
            account = self._account
            if account is not None:
                account.whole = self._loop.time()
            # With a name, or a number would be written out for each.
            self._inspecting = asyncio.Task(
                self._judge(self._spool, effect, self._early, account), loop=self._loop, name=self.tag.connection
            )

    async def _judge(self, spool: Spool, effect: Inspect, early: EarlyScan | None, account: Account | None) -> None:
        decision: Decision
        try:
            decision = await self._host.inspector.inspect(
                spool,
                effect.envelope,
                self._route,
                stuffed=effect.stuffed,
                header=effect.header,
                early=early,
                account=account,
            )
        except Exception as error:  # noqa: BLE001 - a fault of ours must not become a delivery
            # The message may have been given up, and ours be the tag of another one.
            self._note_internal(error, self.tag if account is None else account.tag)
            decision = Defer()
        if not spool.abandoned:
            self._inspecting = None
            self.run(self.relay.decide, decision)

    def _transmit(self, effect: Transmit) -> None:
        if self._spool is None or self._server is None:
            return
        if self._debug and effect.before:
            self._trace("SERVER >", effect.before)
        text = self._spool.parts(effect.insertions)
        self._transmission = Transmission(self._server, chain((effect.before,), text, (effect.after,)))
        self._send_text()

    def _send_text(self) -> None:
        """Hand the text to the next hop for as long as it takes it."""
        transmission = self._transmission
        if transmission is None:
            return
        try:
            done = transmission.go_on()
        except OSError as error:
            self._cannot_read(error)
            return
        if done:
            self._transmission = None
            if self._account is not None:
                self._account.sent = self._loop.time()
            self.run(self.relay.transmitted)

    def _cannot_read(self, error: OSError) -> None:
        """Give a message up of which the next hop may have a part: without its final dot, it throws that away."""
        self._transmission = None
        count_failure(self._host.row, Failure.STORAGE)
        if self._server is not None:
            self._server.abort()
        self.run(self.relay.server_lost, "cannot read the spool: %s", describe(error))

    def _discard(self, _effect: Discard | None = None) -> None:
        self._transmission = None
        early, self._early = self._early, None
        spool, self._spool = self._spool, None
        inspecting, self._inspecting = self._inspecting, None
        if spool is None:
            return
        if inspecting is not None:
            # The client that has left will be back with the same message.
            spool.abandoned = True
            inspecting.add_done_callback(partial(self._close_spool, spool, early))
            self._host.orphans.take(inspecting)
        else:
            self._close_spool(spool, early)

    def _close_spool(self, spool: Spool, early: EarlyScan | None, _inspecting: object = None) -> None:
        if early is not None:
            early.cancel()
        try:
            spool.close()
        except OSError as error:
            _log.error("%s: cannot close the spool: %s", self.tag, describe(error))

    def _close_server(self, effect: CloseServer) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if effect.abort or self._server_handshake is not None:
            self._abort_server()
        elif self._server is not None:
            self._server.close()

    def _close_client(self, effect: CloseClient) -> None:
        client = self._client
        if self._client_handshake is not None:
            self._abort_client()
            return
        if client is None or client.is_closing():
            return
        if effect.linger and client.can_write_eof():
            # Reading goes on, for the client to see our last reply; what it sends is thrown away.
            client.write_eof()
            client.resume_reading()
            self._deadline.start()
        else:
            client.close()
            if client.get_write_buffer_size():
                self._deadline.start()

    def _note(self, effect: Note) -> None:
        line = f"%s: {effect.format}"
        _log.warning(line, self.tag, *map(escape, effect.arguments))

    def _identify(self, effect: Identify) -> None:
        identity = effect.identity
        said_by = self._route.client
        self._route.client = identity.address or UNKNOWN_CLIENT
        _log.info("%s: client is: %s (as %s says by XCLIENT)", self.tag, self._route.client, said_by)

    def _refuse_loop(self, why: str) -> None:
        _log.warning("%s: connection refused, mail would loop: %s", self.tag, why)
        self.run(self.relay.refuse, replies.LOOP)

    def _set_reading(self) -> None:
        """Read from the client only as far as the relay can use it and the client takes our replies."""
        client = self._client
        if client is None or client.is_closing():
            return
        wanted = self.relay.wants_input and not self._client_full
        if wanted != self._reading:
            self._reading = wanted
            if wanted:
                client.resume_reading()
            else:
                client.pause_reading()

    def _finish(self) -> None:
        """Tell the server that this session is over, once nothing of it is left."""
        if self._over:
            return
        if self._client is None and self._server is None and self.relay.awaits is Awaits.NOTHING:
            self._over = True
            self._deadline.cancel()
            if self._keep_alive is not None:
                self._keep_alive.cancel()
                self._keep_alive = None
            self._discard()
            self._give_account_up()
            self._host.ended(self)

    # ---- time ---------------------------------------------------------------------------------

    def _look(self) -> Progress:
        """Tell the clock where the dialogue is."""
        octets = self._client_octets if self._transmission is None else self._transmission.sent
        awaits = self.relay.awaits
        if awaits is Awaits.VERDICT or awaits is Awaits.DATA:
            self._keep_awake()
        else:
            self._silent_since = 0.0
        return awaits, self.relay.steps, octets

    def _keep_awake(self) -> None:
        """Have the next hop hear something while it waits for a message that takes its time (KeepAlives: automatic)."""
        if self._host.settings.keep_alives is not None:
            return
        now = self._loop.time()
        if not self._silent_since:
            self._silent_since = now
        elif now - self._silent_since >= AUTOMATIC_KEEP_ALIVE:
            self._silent_since = now
            # Not now: it is the clock that looks.
            self._loop.call_soon(self.run, self.relay.keep_alive)

    def _on_expired(self) -> None:
        if self._proxy is not None:
            _log.warning("%s: PROXY header of %s did not come in time", self.tag, self._route.client)
            self.abort()
        elif self.relay.awaits is Awaits.NOTHING:
            self.abort()
        else:
            count_failure(self._host.row, Failure.TIME_OUT)
            self.run(self.relay.timed_out)

    def _schedule_keep_alive(self, interval: int) -> None:
        self._keep_alive = self._loop.call_later(interval, self._on_keep_alive, interval)

    def _on_keep_alive(self, interval: int) -> None:
        self._schedule_keep_alive(interval)
        self.run(self.relay.keep_alive)

    # ---- the debug log ------------------------------------------------------------------------

    def _trace(self, label: str, data: bytes) -> None:
        """Show lines of the dialogue in the debug log, but no passwords."""
        for line in data.split(b"\r\n"):
            if line:
                secret = label == "CLIENT <" and (self.relay.in_auth or line[:4].upper() == b"AUTH")
                _log.debug("%s: %s %s", self.tag, label, "(authentication)" if secret else escape(line))
                if secret:
                    break

    # True comes of what the relay has to hear of as a failure of the spool.
    _PERFORM: ClassVar[dict[type, Callable[..., bool | None]]] = {
        BeginMessage: _begin,
        Store: _store,
        Inspect: _inspect,
        Answered: _answered,
        Transmit: _transmit,
        Discard: _discard,
        SecureClient: _secure_client,
        SecureServer: _secure_server,
        Reconnect: _reconnect,
        Identify: _identify,
        CloseServer: _close_server,
        CloseClient: _close_client,
        Note: _note,
    }


def _close_if_given_up(sock: socket.socket, handshake: asyncio.Task[None]) -> None:
    """Close the socket of a handshake that was given up: before it has begun, it cannot do so itself."""
    if handshake.cancelled():
        sock.close()


def _tls_version(transport: asyncio.Transport) -> str:
    cipher = transport.get_extra_info("cipher") or ("?", "TLS", 0)
    return f"{cipher[1]} with {cipher[0]}"
