"""HTTP for whoever looks at the daemon from outside: few clients, short requests, nothing that they could change."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import h11

from clamsmtpd.admin.pages import Page, Pages
from clamsmtpd.listeners import Listener
from clamsmtpd.log import describe

__all__ = ["AdminServer"]

_log = logging.getLogger("clamsmtpd")

#: Clients of a worker at once. Whoever scrapes is one, or two.
CLIENTS_MAX = 16

#: Seconds for a request to come, and for a client to take the answer. One to /readyz has its own.
REQUEST_LIMIT = 10.0

#: Octets of a request's line and header fields, and of what it may bring along.
REQUEST_MAX = 8192

#: Seconds without accepting when the system has no descriptor left: the listener stays readable.
ACCEPT_PAUSE = 0.5

_READ = 4096
_TEXT = "text/plain; charset=utf-8"


@dataclass(slots=True)
class _Client:
    """One connection. Its conversation begins in a turn of the loop behind the one in which it is accepted."""

    sock: socket.socket
    conversation: _Conversation | None = None


class AdminServer:
    """Answers on ``listeners``, which are bound and listening, out of ``pages``.

    All workers listen on the same sockets: whichever takes a client answers for all of them. They are accepted from
    here and not by a server of asyncio's, which from Python 3.13 on removes the name of a unix socket when it is
    closed: one worker that ends would take it from the others.
    """

    def __init__(self, pages: Pages, listeners: Sequence[Listener]) -> None:
        self._pages = pages
        self._listeners = listeners
        # In their order.
        self._clients: dict[asyncio.Task[None], _Client] = {}

    def start(self) -> None:
        """Begin to answer; needs a running loop."""
        for listener in self._listeners:
            listener.socket.settimeout(0)
            self._watch(listener.socket)

    def close(self) -> None:
        """Answer no more: who is connected is cut off, and nobody can connect who would wait for nothing."""
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            loop.remove_reader(listener.socket)
            listener.socket.close()
        for task in self._clients:
            task.cancel()

    def _watch(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            sock, _address = listener.accept()
        except BlockingIOError:
            # Another worker was faster.
            return
        except OSError:
            loop.remove_reader(listener)
            loop.call_later(ACCEPT_PAUSE, self._watch, listener)
            return
        if len(self._clients) >= CLIENTS_MAX and not self._make_room():
            sock.close()
            return
        client = _Client(sock)
        task = loop.create_task(self._welcome(client))
        self._clients[task] = client
        task.add_done_callback(partial(self._forget, client))

    def _forget(self, client: _Client, task: asyncio.Task[None]) -> None:
        self._clients.pop(task, None)
        if task.cancelled() or task.exception() is not None:
            # It has not come to have a transport, which would close it.
            client.sock.close()

    async def _welcome(self, client: _Client) -> None:
        private = client.sock.family == socket.AF_UNIX
        opened = asyncio.open_unix_connection if private else asyncio.open_connection
        reader, writer = await opened(sock=client.sock, limit=REQUEST_MAX)
        conversation = client.conversation = _Conversation(self._pages, reader, writer, private=private)
        try:
            await conversation.run()
        except (OSError, TimeoutError):
            # Whoever was there has left, or sends nothing.
            pass
        except asyncio.CancelledError:
            # We stop, or another has its place.
            pass
        except Exception as error:  # noqa: BLE001 - whatever it is, mail goes on
            _log.error("internal error: admin: %s", describe(error))
            _log.debug("traceback", exc_info=error)
        finally:
            writer.close()
            with contextlib.suppress(Exception):
                if writer.transport.get_write_buffer_size():
                    writer.transport.abort()

    def _make_room(self) -> bool:
        """Give up the client that has been here longest without a question; tell whether there was one.

        Whoever says nothing, or too slowly, could else keep out those who ask.
        """
        for task, client in self._clients.items():
            if client.conversation is None or not client.conversation.answering:
                del self._clients[task]
                task.cancel()
                return True
        return False


class _Conversation:
    """One connection: a request after the other (RFC 9112)."""

    def __init__(
        self, pages: Pages, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, private: bool
    ) -> None:
        self._pages = pages
        self._reader = reader
        self._writer = writer
        self._private = private
        #: Whether its answer is being found out.
        self.answering = False
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_MAX)

    async def run(self) -> None:
        """Answer until either side has enough. Raises OSError and TimeoutError."""
        http = self._http
        while True:
            try:
                async with asyncio.timeout(REQUEST_LIMIT):
                    request = await self._request()
            except h11.RemoteProtocolError as error:
                if http.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
                    page = Page(error.error_status_hint, _TEXT, b"That is no request that can be understood.\n")
                    await self._send(page, head=False, close=True)
                return
            if request is None:
                return
            self.answering = True
            try:
                page = await self._answer(request)
            finally:
                self.answering = False
            await self._send(page, head=request.method == b"HEAD", close=False)
            if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                return
            http.start_next_cycle()

    async def _request(self) -> h11.Request | None:
        """Return the next request, once it has come whole; None if there is none. Raises h11.RemoteProtocolError."""
        request: h11.Request | None = None
        brought = 0
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(_READ))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                brought += len(event.data)
                if brought > REQUEST_MAX:
                    raise h11.RemoteProtocolError("more than anybody has to say here", error_status_hint=413)
            elif isinstance(event, h11.EndOfMessage):
                return request
            elif isinstance(event, h11.ConnectionClosed):
                return None
            elif event is h11.PAUSED:
                return request

    async def _answer(self, request: h11.Request) -> Page:
        if request.method not in {b"GET", b"HEAD"}:
            return Page(405, _TEXT, b"Nothing can be changed here: use GET.\n")
        fields = {name: value.decode("latin-1") for name, value in request.headers}
        if not self._private and not _is_address(fields.get(b"host", "")):
            # A page of the web can have a name of its own lead here (DNS rebinding), and would read what it gets.
            return Page(421, _TEXT, b"Ask by an IP address, or as localhost.\n")
        return await self._pages.answer(
            request.target.decode("latin-1"), accept=fields.get(b"accept", ""), private=self._private
        )

    async def _send(self, page: Page, *, head: bool, close: bool) -> None:
        fields = [
            ("Content-Type", page.media_type),
            ("Content-Length", str(len(page.body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            *([("Allow", "GET, HEAD")] if page.status == 405 else []),  # noqa: PLR2004
            *([("Connection", "close")] if close else []),
        ]
        http = self._http
        data = http.send(h11.Response(status_code=page.status, headers=fields)) or b""
        if not head:
            data += http.send(h11.Data(data=page.body)) or b""
        data += http.send(h11.EndOfMessage()) or b""
        self._writer.write(data)
        async with asyncio.timeout(REQUEST_LIMIT):
            await self._writer.drain()


def _is_address(host: str) -> bool:
    """Whether a Host field names nothing that a stranger could have given a name: an address, or this host."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if not name or name.lower() == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
