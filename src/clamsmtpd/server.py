"""The listeners, the register of sessions, MaxConnections, and the drain."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from clamsmtpd.clamd.pool import Pool
from clamsmtpd.commons import Commons, Share
from clamsmtpd.config import Settings
from clamsmtpd.culprit import Culprits, Room
from clamsmtpd.hooks import HookRunner
from clamsmtpd.inspection import Inspector
from clamsmtpd.ledger import Ledger
from clamsmtpd.listeners import Listener
from clamsmtpd.log import describe
from clamsmtpd.metrics import CONNECTIONS, REFUSED
from clamsmtpd.orphans import Orphans
from clamsmtpd.poller import Poller
from clamsmtpd.quarantine.keeper import Keeper
from clamsmtpd.readiness import is_known_beforehand, trouble_with
from clamsmtpd.scans import Scans
from clamsmtpd.session import Host, Session
from clamsmtpd.smtp import replies
from clamsmtpd.tls import Certificate, client_context
from clamsmtpd.values import Listen

__all__ = ["Server"]

_log = logging.getLogger("clamsmtpd")

#: Connections taken in one turn of the loop, so that a burst of new clients does not starve those we have.
ACCEPT_BATCH = 64

#: Seconds for which a client is left to a worker that has fewer sessions; then whoever comes first takes it. On a busy
#: machine it takes some milliseconds until that worker has a processor.
LEAVE_TO_OTHERS = 0.004

#: Seconds without accepting when the system has no descriptor left for even a refusal.
ACCEPT_PAUSE = 0.5

#: Seconds between two lines about the same trouble with accepting.
COMPLAINT_INTERVAL = 10.0

#: Seconds that hooks may still run when everything else has ended.
HOOK_LIMIT = 10.0

#: Seconds of these that searches for culprits may take, for which hooks wait.
SEARCH_LIMIT = 5.0

#: Seconds that the next hop has to greet when somebody asks whether mail could go through.
EXAMINE_LIMIT = 10.0

# Ids are six hexadecimal digits without leading zeros, as they have been since 1.x.
_FIRST_ID, _LAST_ID = 0x100000, 0xFFFFFF

_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class _Scanners:
    """The scanners of some settings, what is scanned there, and what of that nobody waits for any more."""

    __slots__ = ("culprits", "orphans", "pool", "scans", "settings")

    def __init__(self, settings: Settings, share: Share, room: Room, *, watched: bool) -> None:
        self.settings = settings
        self.pool = Pool(
            settings.clam_addresses,
            time_out=settings.time_out,
            row=share.row,
            watched=watched,
            temp_directory=settings.temp_directory,
        )
        self.scans = Scans(self.pool, share.verdicts, share.row)
        self.orphans = Orphans()
        self.culprits = Culprits(self.pool, settings.temp_directory, room)

    def suit(self, settings: Settings) -> bool:
        """Whether other settings want the same ones."""
        return self._wanted(self.settings) == self._wanted(settings)

    @staticmethod
    def _wanted(settings: Settings) -> tuple[object, ...]:
        return settings.clam_addresses, settings.time_out, settings.temp_directory

    async def close(self) -> None:
        """Give up what is still scanned, and close the connections."""
        await self.orphans.end()
        await self.culprits.end(SEARCH_LIMIT)
        self.pool.close()


class _Setup:
    """What is made of one reading of the settings. A session keeps the one that it began with."""

    __slots__ = ("_on_ended", "host", "keeper", "scanners", "sessions")

    host: Host
    keeper: Keeper | None

    def __init__(self, scanners: _Scanners, on_ended: Callable[[_Setup, Session], None]) -> None:
        self.scanners = scanners
        self.sessions = 0
        self._on_ended = on_ended

    def ended(self, session: Session) -> None:
        """Take note of the end of a session that had it."""
        self.sessions -= 1
        self._on_ended(self, session)


class Server:
    """Accepts clients on ``listeners``, which are bound and listening, and runs a session for each.

    ``certificate`` is the one for clients that want TLS; without one, none is offered. ``share`` is what this worker
    has of what all have; without it, there are no others. Scanners that are not ``watched`` are taken for usable.
    Raises StartError when TLS with the next hop is to be verified, and nothing here could do that.
    """

    def __init__(
        self,
        settings: Settings,
        listeners: Sequence[Listener],
        certificate: Certificate | None = None,
        share: Share | None = None,
        *,
        watched: bool = True,
    ) -> None:
        self._settings = settings
        self._listeners = list(listeners)
        share = Commons(1, settings.max_connections).share(0) if share is None else share
        self._share = share
        self._ledger = Ledger(share.row, share.board)
        self._watched = watched
        self._places = share.places
        # A turn in which one worker takes all who wait gives it all those connections for as long as they last.
        self._batch = ACCEPT_BATCH if share.workers == 1 else 1
        self._hooks = HookRunner()
        self._poller = Poller()
        self._room = Room()
        self._setup = self._set_up(settings, certificate, _Scanners(settings, share, self._room, watched=watched))
        # Those from before, for as long as a session has them, and the tasks that close what nobody has any more.
        self._old_setups: set[_Setup] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._sessions: set[Session] = set()
        self._empty = asyncio.Event()
        # Given up for a moment when descriptors run out, so that a client can be told 421, not cut off.
        self._reserve = -1
        # When the next line about each kind of trouble may come.
        self._next_complaint: dict[str, float] = {}

    def _set_up(
        self, settings: Settings, certificate: Certificate | None, scanners: _Scanners, keeper: Keeper | None = None
    ) -> _Setup:
        setup = _Setup(scanners, self._on_ended)
        setup.keeper = self._keeper_for(settings, keeper)
        setup.host = Host(
            settings=settings,
            poller=self._poller,
            inspector=Inspector(
                settings,
                scanners.scans,
                self._hooks,
                row=self._share.row,
                keeper=setup.keeper,
                culprits=scanners.culprits,
            ),
            orphans=scanners.orphans,
            ended=setup.ended,
            certificate=certificate,
            out_context=client_context(settings.out_tls),
            outgoing=self._share.outgoing,
            ledger=self._ledger,
            row=self._share.row,
        )
        return setup

    def _keeper_for(self, settings: Settings, old: Keeper | None) -> Keeper | None:
        """Return who writes down what is put into quarantine; the one from before where it is the same to it."""
        if not settings.quarantine:
            return None
        keeper = Keeper(settings.temp_directory, settings.quarantine_keep, tends=self._share.worker == 0)
        return old if old is not None and old.suits(keeper) else keeper

    def renew(self, settings: Settings, certificate: Certificate | None) -> None:
        """Have connections from now on served by other settings; sessions that there are keep theirs.

        Where to listen, and how many clients there may be, stays as it is. Raises StartError, as at the start; then
        nothing has changed.
        """
        old = self._setup
        # What has been learnt of the same scanners is as true as before.
        scanners = old.scanners
        if not scanners.suit(settings):
            scanners = _Scanners(settings, self._share, self._room, watched=self._watched)
        self._setup = self._set_up(settings, certificate, scanners, old.keeper)
        if self._setup.keeper is not None:
            self._setup.keeper.start()
        if scanners is not old.scanners:
            old.scanners.pool.count_no_more()
            scanners.pool.start()
        self._old_setups.add(old)
        self._let_go(old)

    def _let_go(self, setup: _Setup) -> None:
        """Let go of what a setup from before has alone, when no session has it any more."""
        if setup.sessions == 0:
            self._old_setups.discard(setup)
            if setup.keeper is not None and all(
                setup.keeper is not other.keeper for other in (self._setup, *self._old_setups)
            ):
                setup.keeper.retire()
            if all(setup.scanners is not other.scanners for other in (self._setup, *self._old_setups)):
                # Not at once: what has just been cancelled has not heard of it yet.
                closing = asyncio.get_running_loop().create_task(setup.scanners.close())
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)

    def bulletin(self) -> dict[str, Any]:
        """Tell where this worker is now, for JSON: its process, its sessions by whom they wait for, its scanners."""
        phases: dict[str, int] = {}
        for session in self._sessions:
            name = session.relay.awaits.name.lower()
            phases[name] = phases.get(name, 0) + 1
        return {"pid": os.getpid(), "sessions": phases, "scanners": self._setup.scanners.pool.describe()}

    async def examine(self) -> list[tuple[str, str]]:
        """Look at all that mail needs now; return the name of each part and what is wrong, nothing if it is well."""
        settings = self._setup.host.settings
        hop = settings.out_address
        found = [(f"clamd at {name}", trouble) for name, trouble in await self._setup.scanners.pool.examine()]
        if hop is not None and is_known_beforehand(hop):
            found.append((f"next hop {hop}", await trouble_with(hop, EXAMINE_LIMIT)))
        return found

    @property
    def settings(self) -> Settings:
        """Those in force."""
        return self._setup.host.settings

    async def usable(self) -> None:
        """Return when a scanner can be used: one of the settings in force now."""
        await self._setup.scanners.pool.usable()

    async def serve(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set; then let transactions in flight end, and return."""
        loop = asyncio.get_running_loop()
        self._open_reserve()
        self._setup.scanners.pool.start()
        if self._setup.keeper is not None:
            # Not before: a thread keeps the rights that it began with (capabilities(7)).
            self._setup.keeper.start()
        for listener in self._listeners:
            listener.socket.settimeout(0)
            if listener.socket.family != socket.AF_UNIX:
                # What is accepted inherits it: no reply waits for the one before it to be acknowledged.
                listener.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            loop.add_reader(listener.socket, self._accept, listener)
        self._places.open()
        await stop.wait()
        self._places.close()
        for listener in self._listeners:
            loop.remove_reader(listener.socket)
            listener.socket.close()
        _log.info("stopping: %d connections to finish", len(self._sessions))
        for setup in (self._setup, *self._old_setups):
            setup.scanners.pool.stop_waiting()
        for session in list(self._sessions):
            session.drain()
        while self._sessions:
            self._empty.clear()
            await self._empty.wait()
        end = loop.time() + HOOK_LIMIT
        await asyncio.gather(self._setup.scanners.close(), *self._closing)
        await self._hooks.drain(end - loop.time())
        if self._setup.keeper is not None:
            self._setup.keeper.retire()
            # Where no thread can be had, to wait is not worth an end that looks like a failure.
            with contextlib.suppress(RuntimeError):
                await asyncio.to_thread(self._setup.keeper.join)
        self._poller.close()
        if self._reserve >= 0:
            os.close(self._reserve)

    def _accept(self, listener: Listener) -> None:
        """Take the clients who wait on ``listener``, or leave them to another worker.

        The sockets are shared, not bound once for each worker (SO_REUSEPORT, socket(7)): there the kernel deals each
        client to one worker, by chance, and those who wait for one that dies are lost with it. So a client wakes all
        who have nothing to do, and the first takes it. EPOLLEXCLUSIVE (epoll_ctl(2)) would wake one, but always the
        same as long as it has time, and not through the event loop: an epoll within its own wakes all again.
        """
        if self._share.workers > 1 and self._places.another_has_fewer():
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener.socket)
            loop.call_later(LEAVE_TO_OTHERS, self._accept_after_all, listener)
            return
        self._accept_some(listener)

    def _accept_after_all(self, listener: Listener) -> None:
        if listener.socket.fileno() >= 0:
            asyncio.get_running_loop().add_reader(listener.socket, self._accept, listener)
            self._accept_some(listener)

    def _accept_some(self, listener: Listener) -> None:
        for _ in range(self._batch):
            try:
                sock, _address = listener.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._refuse_without_room(listener, error)
                    return
                # accept(2): errors that are already pending on the new connection, which is lost.
                continue
            sock.settimeout(0)
            if self._places.take():
                self._start(sock, listener.listen)
            else:
                self._share.row[REFUSED] += 1
                self._complain("MaxConnections is reached: %d", self._settings.max_connections)
                _refuse(sock)

    def _start(self, sock: socket.socket, listen: Listen) -> None:
        setup = self._setup
        try:
            session = Session(setup.host, self._next_tag(), sock, listen)
        except OSError:
            sock.close()
            self._places.give_back()
            return
        setup.sessions += 1
        self._sessions.add(session)
        try:
            session.start(sock)
        except OSError as error:
            self._complain("cannot watch a connection: %s", describe(error))
            _refuse(sock)
            setup.ended(session)

    def _next_tag(self) -> str:
        """Return the id of the next connection in the log. Each worker has its own, as a row in the same memory."""
        share = self._share
        number = share.row[CONNECTIONS] * share.workers + share.worker
        share.row[CONNECTIONS] += 1
        ids = _LAST_ID - _FIRST_ID + 1
        return f"{_FIRST_ID + number % (ids - ids % share.workers):06X}"

    def _on_ended(self, setup: _Setup, session: Session) -> None:
        self._sessions.discard(session)
        self._places.give_back()
        if setup is not self._setup:
            self._let_go(setup)
        if not self._sessions:
            self._empty.set()

    def _refuse_without_room(self, listener: Listener, error: OSError) -> None:
        """Tell one client 421 with the descriptor held in reserve; without one, pause accepting."""
        self._complain("cannot accept a connection: %s", describe(error))
        if self._reserve >= 0 and error.errno in (errno.EMFILE, errno.ENFILE):
            os.close(self._reserve)
            self._reserve = -1
            with contextlib.suppress(OSError):
                sock, _address = listener.socket.accept()
                sock.settimeout(0)
                _refuse(sock)
            self._open_reserve()
            return
        # The listener stays readable, so that without a pause this would be a busy loop.
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener.socket)
        loop.call_later(ACCEPT_PAUSE, self._resume, listener)

    def _resume(self, listener: Listener) -> None:
        if listener.socket.fileno() >= 0:
            if self._reserve < 0:
                self._open_reserve()
            asyncio.get_running_loop().add_reader(listener.socket, self._accept, listener)

    def _open_reserve(self) -> None:
        with contextlib.suppress(OSError):
            self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _complain(self, message: str, argument: object) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._next_complaint.get(message, 0.0):
            self._next_complaint[message] = now + COMPLAINT_INTERVAL
            _log.warning(message, argument)


def _refuse(sock: socket.socket) -> None:
    """Send 421 and close. The client has sent nothing yet, so that nothing resets the connection."""
    with contextlib.suppress(OSError), sock:
        sock.send(replies.TOO_MANY_CONNECTIONS)
        sock.shutdown(socket.SHUT_WR)
