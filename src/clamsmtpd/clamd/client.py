"""Connections to clamd: one message in, one verdict out, within a time limit."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any, Protocol

from clamsmtpd.clamd.protocol import (
    FILDES,
    INSTREAM,
    STREAM_END,
    ReplyReader,
    chunk_header,
    path_subject,
    scan_request,
)
from clamsmtpd.values import Address, Clean, TcpAddress, UnixAddress, Unscanned, Verdict

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
    ``time_out``: seconds without progress after which a scan has failed. Waiting for the verdict is one step:
    clamd says nothing while it scans.
    """

    def __init__(self, address: Address, *, time_out: float) -> None:
        self._address = address
        self._time_out = time_out
        self._passes_descriptors = True

    async def scan(self, message: Scannable) -> Verdict:
        """Return clamd's verdict; :class:`Unscanned` for whatever goes wrong on clamd's side or on the way.

        Raises OSError only for a fault of the message's own storage.
        """
        verdict: Verdict
        try:
            if isinstance(self._address, TcpAddress):
                verdict = await _Stream(self._address, self._time_out).scan(message)
            else:
                verdict = await self._scan_locally(self._address, message)
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
            verdict = await _ask_locally(address, FILDES, [message.descriptor()], reader, self._time_out)
            if not reader.unknown_command:
                return verdict
            if self._passes_descriptors:
                self._passes_descriptors = False
                _log.warning("clamd at %s takes no descriptors; it must be able to read TempDirectory", address)
        path = message.path()
        reader = ReplyReader(path_subject(*_names(path)))
        return await _ask_locally(address, scan_request(path), [], reader, self._time_out)


async def _ask_locally(
    address: UnixAddress, request: bytes, descriptors: list[int], reader: ReplyReader, time_out: float
) -> Verdict:
    """Send one request, with descriptors, through a connection of its own; return the verdict."""
    loop = asyncio.get_running_loop()
    with _open_socket(socket.AF_UNIX) as sock:
        try:
            await _connect_locally(sock, address, loop.time() + time_out)
            # All in one message: the descriptor belongs to the octets that it comes with. The buffer of
            # a new socket has room for so few.
            socket.send_fds(sock, [request], descriptors)
            verdict: Verdict | None = None
            async with asyncio.timeout(time_out):
                while verdict is None:
                    data = await loop.sock_recv(sock, _RECEIVE)
                    verdict = reader.feed(data) if data else reader.eof()
        except TimeoutError:
            raise _ClamdError(f"no answer within {time_out:g} seconds") from None
        except OSError as error:
            raise _ClamdError(_why(error)) from None
        return verdict


async def _connect_locally(sock: socket.socket, address: UnixAddress, deadline: float) -> None:
    # For a unix socket, EAGAIN is no connection under way but a full queue (connect(2)).
    while (code := sock.connect_ex(address.path)) == errno.EAGAIN:
        if asyncio.get_running_loop().time() >= deadline:
            raise _ClamdError("it accepts no connections, and its queue of them is full")
        await asyncio.sleep(_RETRY)
    if code:
        raise OSError(code, os.strerror(code))


def _names(path: str) -> tuple[str, str]:
    # Where a directory is a symbolic link, some versions name the file by where the link leads.
    return path, os.path.realpath(path)


def _open_socket(family: int, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
    try:
        return socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
    except OSError as error:
        raise _ClamdError(_why(error)) from None


def _why(error: OSError) -> str:
    # Event loops and socket put texts of their own into some errors, which do not say what is wrong.
    # A resolver's numbers are not those of errno.
    if error.errno is None or isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    return os.strerror(error.errno)


class _Stream:
    """One scan by INSTREAM: writes the text and listens for the reply at the same time.

    A clamd that has seen enough, because the stream is longer than its StreamMaxLength, says so at once and
    closes. Whoever only writes gets a broken pipe in place of the reason.
    """

    def __init__(self, address: TcpAddress, time_out: float) -> None:
        self._address = address
        self._time_out = time_out
        self._loop = asyncio.get_running_loop()
        self._limit = asyncio.timeout(time_out)
        self._reader = ReplyReader(ReplyReader.STREAM_SUBJECT)
        self._verdict: Verdict | None = None
        self._wake: asyncio.Future[None] | None = None

    async def scan(self, message: Scannable) -> Verdict:
        whole = False
        sock = await self._connect()
        with sock:
            self._limit = asyncio.timeout(self._time_out)
            self._loop.add_reader(sock, self._on_readable, sock)
            try:
                async with self._limit:
                    whole = await self._send(sock, message)
                    while self._verdict is None:
                        await self._wait()
            except TimeoutError:
                fault = "no answer" if whole else "it took nothing more of the message"
                raise _ClamdError(f"{fault} within {self._time_out:g} seconds") from None
            finally:
                self._loop.remove_reader(sock)
        if not whole and isinstance(self._verdict, Clean):
            return Unscanned("it called the message clean before it had all of it")
        return self._verdict

    async def _connect(self) -> socket.socket:
        """Connect to the first of the host's addresses that takes us; names are looked up anew each time."""
        address = self._address
        try:
            async with asyncio.timeout(self._time_out):
                found = await self._loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        except TimeoutError:
            raise _ClamdError(f"its name was not resolved within {self._time_out:g} seconds") from None
        except UnicodeError:
            raise _ClamdError("that is no host name") from None
        except OSError as error:
            raise _ClamdError(_why(error)) from None
        fault = _ClamdError("its name has no address")
        for family, kind, protocol, _, name in found:
            try:
                # One address that does not answer must leave time for the next.
                return await self._connect_to(name, family, kind, protocol, self._time_out / len(found))
            except _ClamdError as error:
                fault = error
        raise fault

    async def _connect_to(
        self, name: tuple[Any, ...], family: int, kind: int, protocol: int, limit: float
    ) -> socket.socket:
        sock = _open_socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(limit):
                await self._loop.sock_connect(sock, name)
        except BaseException as error:
            sock.close()
            if isinstance(error, TimeoutError):
                raise _ClamdError(f"no connection within {limit:g} seconds") from None
            if isinstance(error, OSError):
                raise _ClamdError(_why(error)) from None
            raise
        return sock

    async def _send(self, sock: socket.socket, message: Scannable) -> bool:
        """Send the request and the text for as long as clamd has not answered; tell whether it was all."""
        waiting = [INSTREAM]
        for piece in message.pieces():
            if len(waiting) > 1:
                if not await self._send_all(sock, waiting):
                    return False
                waiting = []
                # A large message is not sent in one go, even if clamd takes it in one: others wait too.
                await asyncio.sleep(0)
            # clamd takes a chunk of no octets for the end.
            if piece:
                waiting += (chunk_header(len(piece)), piece)
        # The last chunk and the end go together: TCP_NODELAY would make two packets of them.
        waiting.append(STREAM_END)
        return await self._send_all(sock, waiting)

    async def _send_all(self, sock: socket.socket, buffers: list[bytes]) -> bool:
        """Send all of ``buffers``; false when there is no use in sending more."""
        left = [memoryview(buffer) for buffer in buffers]
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
                self._restart_clock()
                continue
            except OSError:
                # What clamd said before it closed is still there to be read.
                return False
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if sent:
                left[0] = left[0][sent:]
        self._restart_clock()
        return True

    def _restart_clock(self) -> None:
        self._limit.reschedule(self._loop.time() + self._time_out)

    async def _wait(self) -> None:
        self._wake = self._loop.create_future()
        await self._wake

    def _on_progress(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _on_readable(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(_RECEIVE)
        except BlockingIOError:
            return
        except OSError as error:
            self._verdict = Unscanned(_why(error))
        else:
            self._verdict = self._reader.feed(data) if data else self._reader.eof()
        if self._verdict is not None:
            self._loop.remove_reader(sock)
            self._on_progress()
