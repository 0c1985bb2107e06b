"""A process that serves: its event loop, and what signals mean to it. There is one alone, or several under another."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import uvloop

from clamsmtpd import log
from clamsmtpd.board import Board
from clamsmtpd.commons import Share
from clamsmtpd.listeners import Listener
from clamsmtpd.metrics import BEAT, READINESS, SESSIONS
from clamsmtpd.readiness import become_ready
from clamsmtpd.renewal import Renewal
from clamsmtpd.server import Server
from clamsmtpd.supervisor import CLEAN_STOP, DRAIN_LIMIT, FAILED, KILL_PAUSE, READ_AGAIN, STOP_AT_ONCE, Tie

__all__ = ["Obey", "Service", "alone", "serve", "under"]

_log = logging.getLogger("clamsmtpd")

#: Seconds between two signs of life to the supervisor.
BEAT_INTERVAL = 5.0

#: Seconds between two words of where a worker is, for those who look at the daemon from outside.
BULLETIN_INTERVAL = 1.0


class _Closable(Protocol):
    def close(self) -> None: ...


class Service:
    """A server at work, and all that it can be asked to do. The event loop runs."""

    def __init__(
        self, listeners: Sequence[Listener], renewal: Renewal, share: Share, admin: Sequence[Listener] = ()
    ) -> None:
        """Begin to serve, and to tell of it on ``admin``. Raises StartError."""
        self.loop = asyncio.get_running_loop()
        self._renewal = renewal
        self._row = share.row
        self._server = Server(renewal.settings, listeners, renewal.certificate, share)
        self._stop = asyncio.Event()
        self._serving = asyncio.ensure_future(self._server.serve(self._stop))
        self._readiness: asyncio.Task[None] | None = None
        self._on_readiness: Callable[[], None] | None = None
        self._admin: _Closable | None = None
        if share.board is not None:
            self.repeat(BULLETIN_INTERVAL, partial(self._post, share.board))
        if admin:
            # Where there is none, its libraries need not be there either.
            from clamsmtpd.admin.http import AdminServer  # noqa: PLC0415
            from clamsmtpd.admin.pages import Pages  # noqa: PLC0415
            from clamsmtpd.admin.view import View  # noqa: PLC0415

            pages = Pages(View(share, lambda: self._server.settings), self._server.examine)
            self._admin = AdminServer(pages, admin)
            self._admin.start()

    def _post(self, board: Board) -> None:
        board.post(json.dumps(self._server.bulletin()).encode())

    async def ended(self) -> int:
        """Wait for its end; return the exit status."""
        try:
            await self._serving
        except asyncio.CancelledError:
            return FAILED
        return CLEAN_STOP

    @property
    def stopping(self) -> bool:
        """Whether it has been told to stop."""
        return self._stop.is_set()

    def stop(self, limit: float) -> None:
        """Have it finish what is in flight, for up to ``limit`` seconds, and end."""
        if not self.stopping:
            if self._admin is not None:
                self._admin.close()
            self._stop.set()
            self.loop.call_later(limit, self._on_limit, limit)

    def _on_limit(self, limit: float) -> None:
        # Before the final dot nothing has been delivered, and behind it the client tries again.
        _log.warning("%g s after the stop not all had ended; connections cut: %d", limit, self._row[SESSIONS])
        self.cut()

    def cut(self) -> None:
        """Have it end at once, whatever is in flight."""
        self._serving.cancel()

    def read_again(self, *, aloud: bool) -> None:
        """Read the settings anew. Bad ones are one line in the log; ``aloud`` as with :meth:`Renewal.read`."""
        if self.stopping or not self._renewal.read(self._server.renew, aloud=aloud):
            return
        if self._readiness is not None and not self._readiness.done():
            self._find_out()

    def find_out_readiness(self, on_change: Callable[[], None]) -> None:
        """Find out when all that mail needs can be used; ``on_change`` is called with each change of ``READINESS``."""
        self._on_readiness = on_change
        self._find_out()

    def _find_out(self) -> None:
        if self._readiness is not None:
            self._readiness.cancel()
        finding = become_ready(self._server.usable, self._renewal.settings.out_address, self._note_readiness)
        self._readiness = self.loop.create_task(finding)

    def _note_readiness(self, step: int) -> None:
        self._row[READINESS] = step
        if self._on_readiness is not None:
            self._on_readiness()

    def beat(self) -> None:
        """Show that the event loop turns."""
        self._row[BEAT] += 1

    def repeat(self, interval: float, action: Callable[[], object]) -> None:
        """Do something now, and every ``interval`` seconds as long as the event loop turns."""
        action()
        self.loop.call_later(interval, self.repeat, interval, action)


#: Called once, when the server has been made, to have it react to signals.
Obey = Callable[[Service], None]


def serve(
    listeners: Sequence[Listener], renewal: Renewal, share: Share, obey: Obey, admin: Sequence[Listener] = ()
) -> int:
    """Serve until told to stop; return the exit status, 1 if not all transactions could end."""

    async def main() -> int:
        asyncio.get_running_loop().set_exception_handler(_on_loop_error)
        service = Service(listeners, renewal, share, admin)
        obey(service)
        return await service.ended()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        status = runner.run(main())
    log.finish()
    return status


def alone(
    *,
    on_serving: Callable[[Service], None],
    on_stop: Callable[[], None],
    on_hangup: Callable[[Service], None],
    report: Callable[[], None],
) -> Obey:
    """Obey SIGTERM and SIGINT, of which a second one stops at once.

    ``on_serving`` is called when they may come, ``on_stop`` at the first of them, ``on_hangup`` at each SIGHUP before,
    and ``report`` at each SIGUSR1.
    """

    def obey(service: Service) -> None:
        def on_signal() -> None:
            if service.stopping:
                # Asked twice: whoever does that will not wait for transactions any more.
                service.cut()
            else:
                on_stop()
            service.stop(DRAIN_LIMIT)

        def on_sighup() -> None:
            if not service.stopping:
                on_hangup(service)

        for number in (signal.SIGTERM, signal.SIGINT):
            service.loop.add_signal_handler(number, on_signal)
        service.loop.add_signal_handler(signal.SIGUSR1, report)
        service.loop.add_signal_handler(signal.SIGHUP, on_sighup)
        # One may have come since the settings were read.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        on_serving(service)

    return obey


def under(tie: Tie, *, on_serving: Callable[[], None], finds_out_readiness: bool) -> Obey:
    """Obey a supervisor, and stop when there is none any more.

    ``on_serving`` is called when signals may come, before the supervisor hears of it.
    """

    def obey(service: Service) -> None:
        loop = service.loop

        def stop() -> None:
            # The supervisor has a limit of its own. This one is for when there is none, or it was somebody else's word.
            service.stop(DRAIN_LIMIT + 2 * KILL_PAUSE)

        def on_orphaned() -> None:
            loop.remove_reader(tie.lifeline)
            if not service.stopping:
                _log.warning("the supervisor is gone; stopping")
            stop()

        loop.add_signal_handler(signal.SIGTERM, stop)
        loop.add_signal_handler(STOP_AT_ONCE, service.cut)
        loop.add_signal_handler(READ_AGAIN, lambda: service.read_again(aloud=False))
        loop.add_reader(tie.lifeline, on_orphaned)
        on_serving()
        service.repeat(BEAT_INTERVAL, service.beat)
        tie.admit_signals()
        # Behind the server's first step, in which it begins to accept clients.
        loop.call_soon(tie.tell)
        if finds_out_readiness:
            service.find_out_readiness(tie.tell)

    return obey


def _on_loop_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what nobody caught as one line; its traceback is for the debug log."""
    error = context.get("exception")
    if error is None:
        _log.error("internal error: %s", context.get("message"))
        return
    _log.error("internal error: %s: %s: %s", context.get("message"), type(error).__name__, error)
    _log.debug("traceback", exc_info=error)
