"""A process that serves: its event loop, and what signals mean to it. There is one alone, or several under another."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from typing import Any

import uvloop

from clamsmtpd import log
from clamsmtpd.commons import Share
from clamsmtpd.config import Settings
from clamsmtpd.listeners import Listener
from clamsmtpd.server import Server
from clamsmtpd.supervisor import CLEAN_STOP, FAILED, STOP_AT_ONCE, Tie
from clamsmtpd.tls import Certificate

__all__ = ["Obey", "alone", "serve", "under"]

_log = logging.getLogger("clamsmtpd")

#: Called once, before the server begins, to react to signals: by setting the event for a clean stop, or by cancelling
#: the server, which ends what is in flight.
Obey = Callable[[asyncio.AbstractEventLoop, asyncio.Event, "asyncio.Future[None]"], None]


def serve(
    settings: Settings, listeners: Sequence[Listener], certificate: Certificate | None, share: Share, obey: Obey
) -> int:
    """Serve until told to stop; return the exit status, 1 if not all transactions could end."""

    async def main() -> int:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_on_loop_error)
        stop = asyncio.Event()
        serving = asyncio.ensure_future(Server(settings, listeners, certificate, share).serve(stop))
        obey(loop, stop, serving)
        try:
            await serving
        except asyncio.CancelledError:
            return FAILED
        return CLEAN_STOP

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        status = runner.run(main())
    log.finish()
    return status


def alone(*, on_serving: Callable[[], None], on_stop: Callable[[], None], report: Callable[[], None]) -> Obey:
    """Obey SIGTERM and SIGINT, of which a second one stops at once.

    ``on_serving`` is called when they may come, ``on_stop`` at the first of them, ``report`` at each SIGUSR1.
    """

    def obey(loop: asyncio.AbstractEventLoop, stop: asyncio.Event, serving: asyncio.Future[None]) -> None:
        def on_signal() -> None:
            if stop.is_set():
                # Asked twice: whoever does that will not wait for transactions any more.
                serving.cancel()
            else:
                on_stop()
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        loop.add_signal_handler(signal.SIGUSR1, report)
        # Scripts that rotate logs send it to any daemon; 1.x did not end by it either.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        on_serving()

    return obey


def under(tie: Tie, *, on_serving: Callable[[], None]) -> Obey:
    """Obey a supervisor, and stop when there is none any more.

    ``on_serving`` is called when signals may come, before the supervisor hears of it.
    """

    def obey(loop: asyncio.AbstractEventLoop, stop: asyncio.Event, serving: asyncio.Future[None]) -> None:
        def on_orphaned() -> None:
            loop.remove_reader(tie.lifeline)
            if not stop.is_set():
                _log.warning("the supervisor is gone; stopping")
            stop.set()

        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_signal_handler(STOP_AT_ONCE, serving.cancel)
        loop.add_reader(tie.lifeline, on_orphaned)
        on_serving()
        tie.admit_signals()
        # Behind the server's first step, in which it begins to accept clients.
        loop.call_soon(tie.tell_serving)

    return obey


def _on_loop_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what nobody caught as one line; its traceback is for the debug log."""
    error = context.get("exception")
    if error is None:
        _log.error("internal error: %s", context.get("message"))
        return
    _log.error("internal error: %s: %s: %s", context.get("message"), type(error).__name__, error)
    _log.debug("traceback", exc_info=error)
