"""HTTP for whoever looks at the daemon from outside: few clients, short requests, nothing that they could change."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Sequence
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

#: Octets of a request's line and header fields.
REQUEST_MAX = 8192

_READ = 4096
_TEXT = "text/plain; charset=utf-8"


class AdminServer:
    """Answers on ``listeners``, which are bound and listening, out of ``pages``.

    All workers listen on the same sockets: whichever takes a client answers for all of them.
    """

    def __init__(self, pages: Pages, listeners: Sequence[Listener]) -> None:
        self._pages = pages
        self._listeners = listeners
        self._servers: list[asyncio.Server] = []
        # In their order.
        self._clients: dict[asyncio.Task[None], _Conversation] = {}
        self._starting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to answer; needs a running loop."""
        self._starting = asyncio.get_running_loop().create_task(self._start())

    async def _start(self) -> None:
        for listener in self._listeners:
            private = listener.socket.family == socket.AF_UNIX
            listener.socket.settimeout(0)
            welcome = partial(self._welcome, private=private)
            # Its own descriptor: who has opened the socket closes it.
            sock = listener.socket.dup()
            if private:
                self._servers.append(await asyncio.start_unix_server(welcome, sock=sock, limit=REQUEST_MAX))
            else:
                self._servers.append(await asyncio.start_server(welcome, sock=sock, limit=REQUEST_MAX))

    def close(self) -> None:
        """Answer no more."""
        for server in self._servers:
            server.close()
        for client in self._clients:
            client.cancel()

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, private: bool) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - streams run this in a task
        if len(self._clients) >= CLIENTS_MAX and not self._make_room():
            writer.close()
            return
        conversation = self._clients[task] = _Conversation(self._pages, reader, writer, private=private)
        try:
            await conversation.run()
        except (OSError, TimeoutError):
            # Whoever was there has left, or sends nothing.
            pass
        except asyncio.CancelledError:
            # Streams would log it as an error that nobody has caught.
            pass
        except Exception as error:  # noqa: BLE001 - whatever it is, mail goes on
            _log.error("internal error: admin: %s", describe(error))
            _log.debug("traceback", exc_info=error)
        finally:
            self._clients.pop(task, None)
            writer.close()
            with contextlib.suppress(Exception):
                if writer.transport.get_write_buffer_size():
                    writer.transport.abort()

    def _make_room(self) -> bool:
        """Give up the client that has been here longest without a question; tell whether there was one.

        Whoever says nothing, or too slowly, could else keep out those who ask.
        """
        for task, conversation in self._clients.items():
            if not conversation.answering:
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
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(_READ))
            elif isinstance(event, h11.Request):
                request = event
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
