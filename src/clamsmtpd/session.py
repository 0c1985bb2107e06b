"""One client and its next hop: two protocols that feed the relay and perform its effects.

Nothing of SMTP is decided here. Whoever is awaited, by the relay's word, has a time limit, and
whoever does not take what we send stops us from reading more.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import ClassVar, ParamSpec, cast

from clamsmtpd.config import Settings
from clamsmtpd.deadlines import Deadline
from clamsmtpd.inspection import Inspector, Route
from clamsmtpd.log import describe, escape
from clamsmtpd.peers import LOCAL_CLIENT, announcement, end_point, host_of, original_destination
from clamsmtpd.smtp import replies
from clamsmtpd.smtp.events import (
    Awaits,
    BeginMessage,
    CloseClient,
    CloseServer,
    Discard,
    Effect,
    Inspect,
    Note,
    Store,
    ToClient,
    ToServer,
    Transmit,
)
from clamsmtpd.smtp.relay import Relay
from clamsmtpd.spool import Spool
from clamsmtpd.values import Address, Decision, Defer, TcpAddress, UnixAddress

__all__ = ["Host", "Session"]

_log = logging.getLogger("clamsmtpd")

#: Octets that go to the next hop in one write.
WRITE_SIZE = 262144

_Event = ParamSpec("_Event")

#: Both ends of a connection; None for an end that is no TCP address.
Connection = tuple[TcpAddress | None, TcpAddress | None]


@dataclass(slots=True)
class Host:
    """What a session needs of the server that runs it.

    ``outgoing`` holds both ends, ours first, of every connection to a next hop: a connection that comes
    in with the same ends is our own. ``ended`` is called once when a session is over.
    """

    settings: Settings
    inspector: Inspector
    ended: Callable[[Session], None]
    outgoing: set[Connection] = field(default_factory=set)


class _ClientProtocol(asyncio.Protocol):
    """The client's connection."""

    __slots__ = ("_session",)

    def __init__(self, session: Session) -> None:
        self._session = session

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are Transports in all but name.
        self._session.client_made(cast("asyncio.Transport", transport))

    def data_received(self, data: bytes) -> None:
        self._session.client_received(data)

    def eof_received(self) -> bool:
        self._session.client_eof()
        # A client that has said all may still listen: closing is for the relay to decide.
        return True

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

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._session.server_made(cast("asyncio.Transport", transport))

    def data_received(self, data: bytes) -> None:
        self._session.server_received(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._session.server_lost(error)

    def pause_writing(self) -> None:
        self._session.server_full(full=True)

    def resume_writing(self) -> None:
        self._session.server_full(full=False)


class Session:
    """The life of one client connection. ``tag`` is its id in the log."""

    __slots__ = (
        "_client",
        "_client_full",
        "_client_octets",
        "_connecting",
        "_deadline",
        "_debug",
        "_ends",
        "_host",
        "_inspecting",
        "_keep_alive",
        "_loop",
        "_pieces",
        "_reading",
        "_redirected",
        "_route",
        "_sent_octets",
        "_server",
        "_server_ends",
        "_server_full",
        "_spool",
        "_to_client",
        "relay",
        "tag",
    )

    def __init__(self, host: Host, tag: str, sock: socket.socket) -> None:
        """Take the accepted ``sock``'s addresses. Raises OSError when the client has left already."""
        self.tag = tag
        self._host = host
        self._loop = asyncio.get_running_loop()
        client, local = end_point(sock.getpeername()), end_point(sock.getsockname())
        wanted = original_destination(sock) if host.settings.transparent_proxy else None
        # As the client sees its connection: if it is our own, going in a circle, these are the ends we know.
        self._ends: Connection = (client, wanted or local)
        self._redirected = wanted is not None and wanted != local
        self._route = Route(tag, host_of(client), host_of(local), LOCAL_CLIENT)
        self.relay = Relay(xclient=announcement(client, local) if host.settings.xclient else None)
        self._client: asyncio.Transport | None = None
        self._client_full = False
        self._reading = True
        self._to_client: list[bytes] = []
        self._server: asyncio.Transport | None = None
        self._server_ends: Connection = (None, None)
        self._server_full = False
        self._connecting: asyncio.Task[None] | None = None
        self._inspecting: asyncio.Task[None] | None = None
        self._spool: Spool | None = None
        self._pieces: Iterator[bytes] | None = None
        self._client_octets = 0
        self._sent_octets = 0
        self._deadline = Deadline(float(host.settings.time_out), self._on_expired)
        self._keep_alive: asyncio.TimerHandle | None = None
        self._debug = _log.isEnabledFor(logging.DEBUG)

    @property
    def client_address(self) -> str:
        """The client's address without port, for the log."""
        return self._route.client

    async def serve(self, sock: socket.socket) -> None:
        """Take over an accepted socket and begin. Returns when the transport has it."""
        try:
            await self._loop.connect_accepted_socket(lambda: _ClientProtocol(self), sock)
        except OSError:
            # The client left in the moment between accept and this.
            sock.close()
            self.run(self.relay.client_lost)
            self._finish()

    def drain(self) -> None:
        """Finish the transaction in flight, then say goodbye."""
        self.run(self.relay.drain)

    def abort(self) -> None:
        """Cut both connections now. What was on its way is not delivered, or the next hop has it all."""
        for transport in (self._client, self._server):
            if transport is not None:
                transport.abort()

    # ---- the client's connection --------------------------------------------------------------

    def client_made(self, transport: asyncio.Transport) -> None:
        """Start the dialogue: the client is there."""
        self._client = transport
        self._connecting = self._loop.create_task(self._connect())
        self._watch_time()
        if self._host.settings.keep_alives:
            self._schedule_keep_alive()

    def client_received(self, data: bytes) -> None:
        """Take octets from the client."""
        self._client_octets += len(data)
        if self._debug and self.relay.awaits is not Awaits.DATA:
            self._trace("CLIENT <", data)
        self.run(self.relay.client_data, data)

    def client_eof(self) -> None:
        """Go on with a client that will send nothing more."""
        self.run(self.relay.client_eof)
        if self._client is not None and self.relay.awaits is Awaits.NOTHING:
            self._client.close()

    def client_lost(self) -> None:
        """Go on without a client."""
        self._client = None
        self.run(self.relay.client_lost)
        self._finish()

    def client_full(self, *, full: bool) -> None:
        """React to a client that does not read its replies: read no more of its commands."""
        self._client_full = full
        self._set_reading()

    # ---- the next hop's connection ------------------------------------------------------------

    async def _connect(self) -> None:
        """Connect to the next hop. How long that may take, the session's clock says."""
        address = self._next_hop()
        if self._is_our_own():
            return
        if address is None:
            self._refuse_loop("it was made straight to us, and has no destination that we could pass it on to")
            return
        try:
            if isinstance(address, UnixAddress):
                await self._loop.create_unix_connection(lambda: _ServerProtocol(self), address.path)
            else:
                await self._loop.create_connection(lambda: _ServerProtocol(self), address.host or "", address.port)
        except (OSError, ValueError) as error:
            # ValueError: a host name that the resolver cannot even encode.
            self._connecting = None
            self.run(self.relay.server_lost, f"cannot connect to {address}: {describe(error)}")

    def _next_hop(self) -> Address | None:
        client, destination = self._ends
        if self._host.settings.transparent_proxy:
            return destination if self._redirected else None
        address = self._host.settings.out_address
        if isinstance(address, TcpAddress) and address.host is None:
            # The loopback feature: back to where the client came from.
            return TcpAddress(client.host, address.port) if client is not None else None
        return address

    def server_made(self, transport: asyncio.Transport) -> None:
        """Take over the connection to the next hop, unless it is a loop."""
        self._server = transport
        # From here on closing the transport is what ends it. Were the task cancelled in this moment,
        # uvloop would close it too, and tell nobody.
        self._connecting = None
        self._server_ends = (
            end_point(transport.get_extra_info("sockname")),
            end_point(transport.get_extra_info("peername")),
        )
        self._host.outgoing.add(self._server_ends)
        if self._is_our_own():
            return
        self._route = replace(self._route, server=host_of(self._server_ends[1]))

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
        if self._debug:
            self._trace("SERVER <", data)
        self.run(self.relay.server_data, data)

    def server_lost(self, error: Exception | None) -> None:
        """Go on without a next hop."""
        self._host.outgoing.discard(self._server_ends)
        self._server = None
        self._pieces = None
        why = describe(error) if error else "closed by the other side"
        self.run(self.relay.server_lost, f"connection lost: {why}")
        self._finish()

    def server_full(self, *, full: bool) -> None:
        """React to a next hop that does not take the text fast enough: wait with the rest."""
        self._server_full = full
        if not full:
            self._send_text()

    # ---- events in, effects out ---------------------------------------------------------------

    def run(self, event: Callable[_Event, list[Effect]], *args: _Event.args, **kwargs: _Event.kwargs) -> None:
        """Give one event to the relay, perform all that comes of it, and set the clock."""
        perform = self._PERFORM
        try:
            for effect in event(*args, **kwargs):
                perform[type(effect)](self, effect)
            self._flush()
            self._watch_time()
            self._set_reading()
        except Exception as error:  # noqa: BLE001 - whatever it is, one message must not take the others along
            # A fault of ours. Cutting both connections is the one end that delivers and loses nothing.
            _log.error("%s: internal error: %s: %s", self.tag, type(error).__name__, error)
            _log.debug("%s: traceback", self.tag, exc_info=error)
            self._discard()
            self.abort()

    def _flush(self) -> None:
        """Write what this turn has for the client, in one piece."""
        if self._to_client:
            data = b"".join(self._to_client)
            self._to_client.clear()
            if self._client is not None:
                if self._debug:
                    self._trace("CLIENT >", data)
                self._client.write(data)

    def _say(self, effect: ToClient) -> None:
        self._to_client.append(effect.data)

    def _ask(self, effect: ToServer) -> None:
        if self._server is not None:
            if self._debug:
                self._trace("SERVER >", b"(authentication)" if effect.secret else effect.data)
            self._server.write(effect.data)

    def _begin(self, _effect: BeginMessage) -> None:
        settings = self._host.settings
        name = f"clamsmtpd-{self.tag}"
        self._spool = Spool(settings.temp_directory, name, keep=settings.debug_files)

    def _store(self, effect: Store) -> None:
        if self._spool is None:
            return
        try:
            self._spool.append(effect.text)
        except OSError as error:
            directory = self._host.settings.temp_directory
            _log.error("%s: cannot store the message in %s: %s", self.tag, directory, describe(error))
            self.run(self.relay.storage_failed)

    def _inspect(self, effect: Inspect) -> None:
        if self._spool is not None:
            self._inspecting = self._loop.create_task(self._judge(self._spool, effect))

    async def _judge(self, spool: Spool, effect: Inspect) -> None:
        decision: Decision
        try:
            decision = await self._host.inspector.inspect(spool, effect.envelope, self._route, stuffed=effect.stuffed)
        except Exception as error:  # noqa: BLE001 - a fault of ours must not become a delivery
            _log.error("%s: internal error: %s: %s", self.tag, type(error).__name__, error)
            _log.debug("%s: traceback", self.tag, exc_info=error)
            decision = Defer()
        self._inspecting = None
        self.run(self.relay.decide, decision)

    def _transmit(self, effect: Transmit) -> None:
        if self._spool is not None:
            self._pieces = chain(self._spool.wire(effect.offset, effect.field), (b".\r\n",))
            self._send_text()

    def _send_text(self) -> None:
        """Hand the text to the next hop for as long as it takes it."""
        pieces, server = self._pieces, self._server
        if pieces is None or server is None:
            return
        while not self._server_full:
            batch: list[bytes] = []
            size = 0
            try:
                for piece in pieces:
                    batch.append(piece)
                    size += len(piece)
                    if size >= WRITE_SIZE:
                        break
            except OSError as error:
                # Without its final dot, the next hop throws away what it has of the message.
                server.abort()
                self._pieces = None
                self.run(self.relay.server_lost, f"cannot read the spool: {describe(error)}")
                return
            if not batch:
                self._pieces = None
                self.run(self.relay.transmitted)
                return
            server.writelines(batch)
            self._sent_octets += size
        self._watch_time()

    def _discard(self, _effect: Discard | None = None) -> None:
        self._pieces = None
        if self._inspecting is not None:
            self._inspecting.cancel()
            self._inspecting = None
        if self._spool is not None:
            spool, self._spool = self._spool, None
            try:
                spool.close()
            except OSError as error:
                _log.error("%s: cannot close the spool: %s", self.tag, describe(error))

    def _close_server(self, effect: CloseServer) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self._server is not None:
            if effect.abort:
                self._server.abort()
            else:
                self._server.close()

    def _close_client(self, effect: CloseClient) -> None:
        self._flush()
        client = self._client
        if client is None or client.is_closing():
            return
        if effect.linger and client.can_write_eof():
            # Reading goes on, for the client to see our last reply; what it sends is thrown away.
            client.write_eof()
            client.resume_reading()
        else:
            client.close()

    def _note(self, effect: Note) -> None:
        _log.warning("%s: %s", self.tag, escape(effect.text))

    def _refuse_loop(self, why: str) -> None:
        _log.warning("%s: connection refused, mail would loop: %s", self.tag, why)
        self.run(self.relay.refuse, replies.LOOP)

    def _set_reading(self) -> None:
        """Read from the client only as far as the relay can use it and the client takes our replies."""
        client = self._client
        if client is None or client.is_closing():
            return
        wanted = (self.relay.wants_input or self.relay.awaits is Awaits.NOTHING) and not self._client_full
        if wanted != self._reading:
            self._reading = wanted
            if wanted:
                client.resume_reading()
            else:
                client.pause_reading()

    def _finish(self) -> None:
        """Tell the server that this session is over, once nothing of it is left."""
        if self._client is None and self._server is None and self.relay.awaits is Awaits.NOTHING:
            self._deadline.cancel()
            if self._keep_alive is not None:
                self._keep_alive.cancel()
                self._keep_alive = None
            self._discard()
            self._host.ended(self)

    # ---- time ---------------------------------------------------------------------------------

    def _watch_time(self) -> None:
        relay = self.relay
        awaits = relay.awaits
        octets = self._client_octets if awaits is Awaits.DATA else self._sent_octets
        self._deadline.watch(awaits, relay.steps, octets)

    def _on_expired(self) -> None:
        if self.relay.awaits is Awaits.NOTHING:
            self.abort()
        else:
            self.run(self.relay.timed_out)

    def _schedule_keep_alive(self) -> None:
        self._keep_alive = self._loop.call_later(self._host.settings.keep_alives, self._on_keep_alive)

    def _on_keep_alive(self) -> None:
        self._schedule_keep_alive()
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

    _PERFORM: ClassVar[dict[type, Callable[..., None]]] = {
        ToClient: _say,
        ToServer: _ask,
        BeginMessage: _begin,
        Store: _store,
        Inspect: _inspect,
        Transmit: _transmit,
        Discard: _discard,
        CloseServer: _close_server,
        CloseClient: _close_client,
        Note: _note,
    }
