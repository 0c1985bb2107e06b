"""Connections to clamd: one message in, one verdict out, within a time limit."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import socket
from collections.abc import Iterator
from typing import Protocol

from clamsmtpd.clamd.protocol import FILDES, INSTREAM, STREAM_END, ReplyReader, chunk_header, scan_request
from clamsmtpd.values import Address, TcpAddress, UnixAddress, Unscanned, Verdict

__all__ = ["Scannable", "Scanner"]

_log = logging.getLogger("clamsmtpd")

#: Seconds between two tries when clamd's listen queue is full.
_RETRY = 0.02

_RECEIVE = 4096


class Scannable(Protocol):
    """A message that can be scanned: its text without the dots that SMTP stuffs in."""

    @property
    def scan_size(self) -> int:
        """Octets of the text."""

    def descriptor(self) -> int:
        """Return an open file with the text, at its start; it stays the message's."""

    def pieces(self) -> Iterator[bytes]:
        """Return the text in pieces."""

    def path(self) -> str:
        """Return the name of a file with the text, which clamd may be able to open."""


class _ClamdError(Exception):
    """The scan failed; ``str()`` says why."""


class Scanner:
    """Has messages scanned by the clamd at ``address``.

    Through a unix socket the descriptor is handed over (FILDES), over TCP the text is streamed (INSTREAM).
    ``time_out``: seconds without progress after which a scan has failed.
    """

    def __init__(self, address: Address, *, time_out: float) -> None:
        self._address = address
        self._time_out = time_out
        self._passes_descriptors = True

    async def scan(self, message: Scannable) -> Verdict:
        """Return clamd's verdict; :class:`Unscanned` for whatever goes wrong on clamd's side or on the way.

        Raises OSError only for a fault of the message's own storage.
        """
        try:
            async with asyncio.timeout(self._time_out) as limit:
                if isinstance(self._address, TcpAddress):
                    verdict = await _Stream(self._address, limit, self._time_out).scan(message)
                else:
                    verdict = await self._scan_locally(self._address, message)
        except TimeoutError:
            verdict = Unscanned(f"no answer within {self._time_out:g} seconds")
        except _ClamdError as error:
            verdict = Unscanned(str(error))
        if isinstance(verdict, Unscanned):
            return Unscanned(f"clamd at {self._address}: {verdict.reason}")
        return verdict

    def close(self) -> None:
        """Release what is kept between scans: nothing yet."""

    async def _scan_locally(self, address: UnixAddress, message: Scannable) -> Verdict:
        if self._passes_descriptors:
            reader = ReplyReader(ReplyReader.FILDES_SUBJECT)
            verdict = await _ask_locally(address, FILDES, [message.descriptor()], reader)
            if not reader.unknown_command:
                return verdict
            self._passes_descriptors = False
            _log.warning("clamd at %s takes no descriptors; it must be able to read TempDirectory", address)
        path = message.path()
        # clamd may name the file by another path to it, where a directory is a symbolic link.
        name = os.path.basename(path).encode("utf-8", "surrogateescape")
        reader = ReplyReader(rb"/[^\0\r\n]*" + re.escape(name))
        return await _ask_locally(address, scan_request(path), [], reader)


async def _ask_locally(address: UnixAddress, request: bytes, descriptors: list[int], reader: ReplyReader) -> Verdict:
    """Send one request, with descriptors, through a connection of its own; return the verdict."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        try:
            # For a unix socket, EAGAIN is no connection under way but a full queue (connect(2)).
            while (code := sock.connect_ex(address.path)) == errno.EAGAIN:  # noqa: ASYNC110 - nothing tells when
                await asyncio.sleep(_RETRY)
            if code:
                raise OSError(code, os.strerror(code))
            # All in one message: the descriptor belongs to the octets that it comes with. The buffer of
            # a new socket has room for so few.
            socket.send_fds(sock, [request], descriptors)
            verdict: Verdict | None = None
            while verdict is None:
                data = await loop.sock_recv(sock, _RECEIVE)
                verdict = reader.feed(data) if data else reader.eof()
        except OSError as error:
            raise _ClamdError(error.strerror or str(error)) from None
        return verdict


class _Stream:
    """One scan by INSTREAM: writes the text and listens for the reply at the same time.

    A clamd that has seen enough, because the stream is longer than its StreamMaxLength, says so at once and
    closes. Whoever only writes gets a broken pipe in place of the reason.
    """

    def __init__(self, address: TcpAddress, limit: asyncio.Timeout, time_out: float) -> None:
        self._address = address
        self._limit = limit
        self._time_out = time_out
        self._loop = asyncio.get_running_loop()
        self._reader = ReplyReader(ReplyReader.STREAM_SUBJECT)
        self._verdict: Verdict | None = None
        self._wake: asyncio.Future[None] | None = None

    async def scan(self, message: Scannable) -> Verdict:
        sock = await self._connect()
        with sock:
            self._loop.add_reader(sock, self._on_readable, sock)
            try:
                await self._send(sock, message)
                while self._verdict is None:
                    await self._wait()
            finally:
                self._loop.remove_reader(sock)
        return self._verdict

    async def _connect(self) -> socket.socket:
        """Connect to the first of the host's addresses that takes us; names are looked up anew each time."""
        address = self._address
        try:
            found = await self._loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise _ClamdError(getattr(error, "strerror", None) or str(error)) from None
        reason = "no address"
        for family, kind, protocol, _, name in found:
            sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await self._loop.sock_connect(sock, name)
            except OSError as error:
                reason = error.strerror or str(error)
                sock.close()
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        raise _ClamdError(reason)

    async def _send(self, sock: socket.socket, message: Scannable) -> None:
        """Send the request and the text for as long as clamd has not answered."""
        before = INSTREAM
        for piece in message.pieces():
            # clamd takes a chunk of no octets for the end.
            if piece and not await self._send_all(sock, before + chunk_header(len(piece)), piece):
                return
            before = b""
        await self._send_all(sock, before, STREAM_END)

    async def _send_all(self, sock: socket.socket, *buffers: bytes) -> bool:
        """Send all of ``buffers``; false when there is no use in sending more."""
        left = [memoryview(buffer) for buffer in buffers if buffer]
        while left:
            if self._verdict is not None:
                return False
            try:
                sent = sock.sendmsg(left)
            except BlockingIOError:
                self._loop.add_writer(sock, self._on_progress)
                try:
                    await self._wait()
                finally:
                    self._loop.remove_writer(sock)
                continue
            except OSError:
                # What clamd said before it closed is still there to be read.
                return False
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if sent:
                left[0] = left[0][sent:]
        return True

    async def _wait(self) -> None:
        self._wake = self._loop.create_future()
        await self._wake
        self._limit.reschedule(self._loop.time() + self._time_out)

    def _on_progress(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _on_readable(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(_RECEIVE)
        except BlockingIOError:
            return
        except OSError as error:
            self._verdict = self._verdict or Unscanned(error.strerror or str(error))
        else:
            if self._verdict is None:
                self._verdict = self._reader.feed(data) if data else self._reader.eof()
        if self._verdict is not None:
            self._loop.remove_reader(sock)
            self._on_progress()
